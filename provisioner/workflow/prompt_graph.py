"""From any workflow to the graph that a server accepts, by the server's own ``GET /object_info``.

As graphToPrompt of ComfyUI_frontend does it: widgets in the order of the node's inputs, each with the value that its
place in ``widgets_values`` has, unless a wire, a primitive or a subgraph's instance gives another.  Which inputs are
widgets follows the editor's own rules (read in 1.48, and in comfy-cli 1.23, which follows them, too).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from provisioner.core.errors import WorkflowError
from provisioner.core.json_reader import as_dict, as_list
from provisioner.workflow.graph_values import FlatNode, FlatWorkflow
from provisioner.workflow.needed_packs import OWN, lacking_nodes, lacking_words

Prompt = dict[str, dict[str, Any]]
"""A graph in API form: node id to ``class_type`` and ``inputs``; an input ``[id, number]`` is another node's output."""

_CONTROLS = frozenset({"fixed", "increment", "decrement", "randomize"})  # of "control after generate"
_WIDGETS = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
_DRAWN = frozenset({"LOAD_3D", "LOAD_3D_ADVANCED", "PREVIEW_3D", "AUDIO_UI", "COLOR"})  # widgets of their own kind
_BUTTONS = ("upload3dmodel", "uploadExtraResources", "clear")  # beside LOAD_3D, with a value each
_UPLOADS = ("image", "audio", "video", "upload", "", None)  # of a button to choose a file, behind all others
_ROWS = "COMFY_DYNAMICGROUP_V3"
_MOST_DEPTH = 16
_MOST_ROWS = 1000


def to_prompt(flat: FlatWorkflow, object_info: Mapping[str, object], *, name: str) -> Prompt:
    """Return the graph of a workflow in API form.

    Parameters
    ----------
    flat : FlatWorkflow
        What is muted or bypassed in it is left out.
    object_info : mapping
        What the server says of each class of node.
    name : str
        What complaints call the workflow.

    Raises
    ------
    WorkflowError
        The server lacks a class of node; the message names all of them, with the package where that is known.
    """
    nodes = {key: node for key, node in flat.nodes.items() if node.why_off is None}
    lacking = lacking_nodes(flat, object_info)
    if lacking:
        raise WorkflowError(
            f"{name} needs what this ComfyUI does not have: {lacking_words(lacking)}.",
            hint="Update ComfyUI if they are its own, or install the custom nodes that have them.",
            packs=[each for each in lacking if each not in {None, OWN}],
        )
    prompt: Prompt = {}
    for key, node in nodes.items():
        inputs = _given(node) if flat.is_api else _inputs(node, as_dict(object_info[node.kind]))
        wires = {each: [wire.node, wire.slot] for each, wire in node.wires.items() if wire.node in nodes}
        prompt[key] = {"class_type": node.kind, "inputs": inputs | wires}
    for key, node in nodes.items():
        for each, (other, widget) in node.shared.items():
            held = prompt.get(other, {}).get("inputs", {})
            if widget in held:
                prompt[key]["inputs"][each] = held[widget]
    return prompt


def _given(node: FlatNode) -> dict[str, Any]:
    return {name: _wrapped(value) for name, value in node.given.items()}


def _inputs(node: FlatNode, schema: Mapping[str, object]) -> dict[str, Any]:
    """Return the values of a node's widgets by name."""
    declared = list(_declared(schema.get("input"), as_dict(schema.get("input_order"))))
    choices = dict(declared)
    values, is_exact = _Values(node.values).of(declared)
    known = {name: value for name, value in node.named.items() if _may_have(choices, name)}
    values = known | values if is_exact else values | known
    for name, spec in declared:
        if name not in values and name not in node.wires and _is_widget(spec):
            default = _default(spec)
            values |= {} if default is None else {name: default}
    values |= {name: value for name, value in node.given.items() if _may_have(choices, name)}
    return {name: _wrapped(_as_listed(value, choices.get(name))) for name, value in values.items()}


def _may_have(choices: Mapping[str, object], name: str) -> bool:
    """Whether a class has an input: one that it declares, or one that follows from the value of another."""
    first, dot, _ = name.partition(".")
    return name in choices or bool(dot and first in choices and _kind(choices[first]).startswith("COMFY_"))


def _default(spec: object) -> object:
    """Return what a widget has that nobody touched."""
    options = as_dict(_options(spec))
    if options.get("default") is not None:
        return options["default"]
    listed = _listed(spec)
    return listed[0] if listed else "" if options.get("socketless") else None  # the last is drawn by the editor


def _wrapped(value: object) -> object:
    """Return a list so that the server does not take it for a wire (execution.py of ComfyUI unpacks it)."""
    return {"__value__": value} if isinstance(value, list) else value


def _as_listed(value: object, spec: object) -> object:
    """Return a choice as the server spells it: file names have its separators, whatever the workflow has."""
    if not isinstance(value, str) or spec is None:
        return value
    listed = _listed(spec)
    plain = value.replace("\\", "/")
    same = (each for each in listed if isinstance(each, str) and each.replace("\\", "/") == plain)
    return value if value in listed else next(same, value)


# --- what a class of node declares -----------------------------------------------------------------


def _declared(found: object, order: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the inputs of a class with their specifications, in the order of its widgets."""
    sections = as_dict(found)
    for section in ("required", "optional"):
        inputs = as_dict(sections.get(section))
        first = [each for each in as_list(order.get(section)) if isinstance(each, str) and each in inputs]
        for name in dict.fromkeys((*first, *inputs)):
            yield name, inputs[name]


def _options(spec: object) -> object:
    parts = as_list(spec)
    return parts[1] if len(parts) > 1 else None


def _kind(spec: object) -> str:
    """Return the type of an input; the choices of the older form are a COMBO."""
    parts = as_list(spec)
    if not parts:
        return ""
    return "COMBO" if isinstance(parts[0], list) else parts[0] if isinstance(parts[0], str) else ""


def _listed(spec: object) -> list[object]:
    """Return the choices of an input: they stand in the place of the type in its older form."""
    first = as_list(spec)[:1]
    if first and isinstance(first[0], list):
        return as_list(first[0])
    return as_list(as_dict(_options(spec)).get("options")) if _kind(spec) == "COMBO" else []


def _is_widget(spec: object) -> bool:
    """Whether an input has a widget, and so a place in ``widgets_values``."""
    options, kind = as_dict(_options(spec)), _kind(spec)
    if options.get("forceInput") or options.get("defaultInput"):
        return False
    if options.get("widgetType") or options.get("socketless"):
        return True
    return kind in _WIDGETS or kind in _DRAWN or kind == _ROWS or _is_dynamic(spec)


def _is_dynamic(spec: object) -> bool:
    """Whether further inputs follow from the choice (a dynamic combo)."""
    kind = _kind(spec)
    return kind.startswith("COMFY_") and "COMBO" in kind


class _Values:
    """Deals out the values of a node's widgets, which stand in a row, to its inputs.

    After a seed stands what is done to it after a run.  Whether a word there is that or the value of the next input is
    tried both ways: the one that leaves no value over is right.
    """

    def __init__(self, values: Sequence[object]) -> None:
        self._values = values
        self._at = 0
        self._is_strict = True
        self._is_short = False

    def of(self, declared: Sequence[tuple[str, object]]) -> tuple[dict[str, Any], bool]:
        """Return the value of each input that has a widget, and whether none was over and none missing."""
        found: dict[str, Any] = {}
        for self._is_strict in (True, False):
            self._at, self._is_short, found = 0, False, {}
            self._deal(declared, found, None, 0)
            if not self._is_short and all(each in _UPLOADS for each in self._values[self._at :]):
                return found, True
        return found, False

    def _deal(
        self, declared: Sequence[tuple[str, object]], found: dict[str, Any], following: object, depth: int
    ) -> None:
        for at, (name, spec) in enumerate(declared):
            if not _is_widget(spec):
                continue
            rest = (each for _, each in declared[at + 1 :] if _is_widget(each))
            self._one(name, spec, next(rest, following), found, depth)

    def _one(self, name: str, spec: object, following: object, found: dict[str, Any], depth: int) -> None:
        if _kind(spec) == "LOAD_3D":
            while self._at < len(self._values) and self._values[self._at] in _BUTTONS:
                self._at += 1
        if self._at >= len(self._values):
            self._is_short = True
            return
        value = self._values[self._at]
        self._at += 1
        if _kind(spec) == _ROWS:
            self._rows(name, spec, value, found, depth)
            return
        found[name] = value
        if _is_dynamic(spec) and depth < _MOST_DEPTH:
            self._deal(_chosen(name, spec, value), found, following, depth + 1)
        elif self._at < len(self._values) and self._is_control(name, spec, following):
            self._at += 1

    def _rows(self, name: str, spec: object, count: object, found: dict[str, Any], depth: int) -> None:
        """Deal out a group of inputs that is repeated; its value is how often."""
        template = list(_declared(as_dict(_options(spec)).get("template"), {}))
        rows = count if isinstance(count, int) and 0 <= count <= _MOST_ROWS and depth < _MOST_DEPTH else 0
        for row in range(rows):
            self._deal([(f"{name}.{row}.{each}", one) for each, one in template], found, None, depth + 1)

    def _is_control(self, name: str, spec: object, following: object) -> bool:
        """Whether the next value says what is done to this one after a run (useIntWidget of ComfyUI_frontend)."""
        word = self._values[self._at]
        if not isinstance(word, str) or word not in _CONTROLS:
            return False
        flag = as_dict(_options(spec)).get("control_after_generate")
        if flag is not None:
            return bool(flag)
        if _kind(spec) != "INT" or "seed" not in name.rpartition(".")[2].casefold():
            return False
        is_named = name in ("seed", "noise_seed")
        holds = _kind(following) == "STRING" or word in _listed(following)
        return (is_named and self._is_strict) or not holds


def _chosen(name: str, spec: object, value: object) -> list[tuple[str, object]]:
    """Return the inputs that follow from a choice of a dynamic combo, with its name before theirs."""
    options = [as_dict(each) for each in as_list(as_dict(_options(spec)).get("options"))]
    inputs = next((each.get("inputs") for each in options if str(each.get("key")) == str(value)), None)
    return [(f"{name}.{each}", one) for each, one in _declared(inputs, {})]
