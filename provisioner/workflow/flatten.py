"""Dissolve subgraphs: every node once for each place it is used in, with what reaches it there.

Follows links through subgraphs, reroutes, primitives, get/set pairs and bypassed nodes as the editor does before it
sends a workflow (graphToPrompt and ExecutableNodeDTO of ComfyUI_frontend).  A value of a subgraph's instance wins over
that of the widget inside (SubgraphNode: the host owns a promoted widget).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from provisioner.core.errors import WorkflowError
from provisioner.workflow.graph_values import (
    BYPASSED,
    MUTED,
    FlatNode,
    FlatWorkflow,
    Graph,
    Input,
    Link,
    Node,
    Port,
    Wire,
    Workflow,
)

MOST_NODES = 100_000
MOST_DEPTH = 32
_MOST_HOPS = 300
_INSIDE = "-10"  # where a subgraph's inputs come from
_NOTES = ("Note", "MarkdownNote")
_VIRTUAL = frozenset({*_NOTES, "PrimitiveNode", "Reroute", "GetNode", "SetNode"})
"""Nodes that the editor alone knows: none of them reaches a server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A value that reaches an input in the place of a wire."""

    value: object


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """The value of another node's widget, which reaches an input in the place of a wire."""

    node: str
    widget: str


_Source = Wire | _Given | _Shared


@dataclass(slots=True, kw_only=True, eq=False)
class _Scope:
    """One use of a graph: the workflow itself, or a subgraph in the place of one instance."""

    graph: Graph
    prefix: str = ""
    parent: _Scope | None = None
    instance: Node | None = None
    why_off: str | None = None
    chain: tuple[str, ...] = ()  # kinds of the instances around it
    children: dict[str, _Scope] = field(default_factory=dict)  # by instance
    ports: dict[str, object] = field(default_factory=dict)  # values of the instance by the subgraph's input
    widgets: dict[str, dict[str | int, object]] = field(default_factory=dict)  # by inner node, then widget or its place


def flatten(workflow: Workflow, *, name: str) -> FlatWorkflow:
    """Return every node of a workflow; notes, primitives and reroutes are gone.

    Parameters
    ----------
    workflow : Workflow
        As the editor saved it.
    name : str
        What complaints call it.

    Raises
    ------
    WorkflowError
        A subgraph contains itself, or everything together is too large.
    """
    nodes: dict[str, FlatNode] = {}
    notes: list[str] = []
    for scope in _scopes(workflow, name):
        for node in scope.graph.nodes.values():
            if node.kind in _NOTES:
                notes += [each for each in node.values if isinstance(each, str)]
            if node.kind not in _VIRTUAL and node.kind not in workflow.subgraphs:
                flat = _flat(scope, node, name)
                nodes[flat.id] = flat
    return FlatWorkflow(nodes=nodes, notes=tuple(notes))


def _scopes(workflow: Workflow, name: str) -> list[_Scope]:
    """Return every use of every graph, the workflow first; they know each other."""
    found = [_Scope(graph=workflow.graph)]
    count = 0
    for scope in found:  # which grows meanwhile
        count += len(scope.graph.nodes)
        if count > MOST_NODES:
            raise WorkflowError(f"{name} has more than {MOST_NODES:,} nodes with its subgraphs unfolded.")
        for node in scope.graph.nodes.values():
            inner = workflow.subgraphs.get(node.kind)
            if inner is None:
                continue
            if node.kind in scope.chain or len(scope.chain) >= MOST_DEPTH:
                what = "contains itself" if node.kind in scope.chain else f"lies more than {MOST_DEPTH} deep"
                raise WorkflowError(f"{name}: the subgraph {(inner.name or node.kind)[:80]!r} {what}.")
            child = _Scope(
                graph=inner,
                prefix=f"{scope.prefix}{node.id}:",
                parent=scope,
                instance=node,
                why_off=scope.why_off or _why_off(node, scope),
                chain=(*scope.chain, node.kind),
            )
            _take_values(child, node)
            scope.children[node.id] = child
            found.append(child)
    return found


def _why_off(node: Node, scope: _Scope) -> str | None:
    state = {MUTED: "muted", BYPASSED: "bypassed"}.get(node.mode)
    return None if state is None else f"node {scope.prefix}{node.id} is {state}"


def _take_values(scope: _Scope, instance: Node) -> None:
    """Note the values of an instance: one for each input with a widget, in 2025 one for each entry of proxyWidgets."""
    promoted = [port.name for port in scope.graph.inputs if _widget_of(scope, port) is not None]
    values = instance.values
    if scope.graph.is_group:
        places = [(node.id, at) for node in scope.graph.nodes.values() for at in range(len(node.values))]
        if len(places) == len(values):
            for (inner, at), value in zip(places, values, strict=True):
                scope.widgets.setdefault(inner, {})[at] = value
    elif values and len(values) == len(instance.proxies) and len(values) != len(promoted):
        for (inner, widget), value in zip(instance.proxies, values, strict=True):
            if inner == "-1":
                scope.ports[widget] = value
            else:
                scope.widgets.setdefault(inner, {})[widget] = value
    elif len(values) != len(promoted) and instance.named_values:
        scope.ports.update(instance.named_values)
    else:
        scope.ports.update(zip(promoted, values, strict=False))


def _flat(scope: _Scope, node: Node, name: str) -> FlatNode:
    values = list(node.values)
    given: dict[str, object] = {}
    wires: dict[str, Wire] = {}
    shared: dict[str, tuple[str, str]] = {}
    for widget, value in scope.widgets.get(node.id, {}).items():
        if isinstance(widget, str):
            given[widget] = value
        else:
            values[widget] = value
    for each in node.inputs:
        if each.link is not None:
            source = _source(scope, each.link, name)
            if isinstance(source, Wire):
                wires[each.name] = source
            elif isinstance(source, _Given):
                given[each.widget or each.name] = source.value
            elif source is not None and each.widget is None:
                shared[each.name] = (source.node, source.widget)
    return FlatNode(
        id=scope.prefix + node.id,
        kind=node.kind,
        title=node.title,
        why_off=scope.why_off or _why_off(node, scope),
        inputs=node.inputs,
        values=tuple(values),
        named=node.named_values,
        given=given,
        wires=wires,
        shared=shared,
        files=node.files,
        package=node.package,
    )


# --- following a link backwards ------------------------------------------------------------------


def _source(scope: _Scope, key: str, name: str) -> _Source | None:
    """Return what a link brings: the output of a node that is run, a value, or nothing."""
    for _ in range(_MOST_HOPS):
        link = scope.graph.links.get(key)
        if link is None:
            return None
        found = _at_input(scope, link) if link.origin == _INSIDE and scope.parent else _at_node(scope, link)
        if not isinstance(found, tuple):
            return found
        scope, key = found
    raise WorkflowError(f"{name}: a link leads through more than {_MOST_HOPS} nodes, or round in a circle.")


def _at_input(scope: _Scope, link: Link) -> tuple[_Scope, str] | _Given | _Shared | None:
    """Go on outside of a subgraph, at the input of its instance."""
    parent, instance = scope.parent, scope.instance
    if parent is None or instance is None or not 0 <= link.origin_slot < len(scope.graph.inputs):
        return None
    declared = scope.graph.inputs[link.origin_slot]
    port = declared.name
    named = [each for each in instance.inputs if each.name == port] if port else []
    entry = named[0] if named else None
    if entry is None and not port and link.origin_slot < len(instance.inputs):
        entry = instance.inputs[link.origin_slot]
    if entry is not None and entry.link is not None and entry.link in parent.graph.links:
        return parent, entry.link
    return _Given(value=scope.ports[port]) if port in scope.ports else _widget_of(scope, declared)


def _widget_of(scope: _Scope, port: Port) -> _Shared | None:
    """Return the first widget that a subgraph's input leads to: it has the value where the instance has none."""
    for link in (scope.graph.links[key] for key in port.links if key in scope.graph.links):
        target = scope.graph.nodes.get(link.target)
        inputs = () if target is None else target.inputs
        widget = inputs[link.target_slot].widget if 0 <= link.target_slot < len(inputs) else None
        if widget is not None:
            return _Shared(node=scope.prefix + link.target, widget=widget)
    return None


def _at_node(scope: _Scope, link: Link) -> tuple[_Scope, str] | Wire | _Given | None:
    node = scope.graph.nodes.get(link.origin)
    if node is None or node.mode == MUTED:
        return None
    if node.mode == BYPASSED:
        return _in_scope(scope, _passed_through(node, link.origin_slot, scope.graph.links))
    child = scope.children.get(node.id)
    if child is not None:
        outputs = child.graph.outputs
        links = outputs[link.origin_slot].links if 0 <= link.origin_slot < len(outputs) else ()
        return _in_scope(child, links[0] if links else None)
    if node.kind in ("Reroute", "SetNode"):
        return _in_scope(scope, node.inputs[0].link if node.inputs else None)
    if node.kind == "GetNode":
        return next(_setters(scope, node), None)
    if node.kind == "PrimitiveNode":
        return _Given(value=node.values[0]) if node.values else None
    return Wire(node=scope.prefix + node.id, slot=link.origin_slot)


def _in_scope(scope: _Scope, key: str | None) -> tuple[_Scope, str] | None:
    return None if key is None else (scope, key)


def _setters(scope: _Scope | None, getter: Node) -> Iterator[tuple[_Scope, str]]:
    """Find the SetNode whose name a GetNode has, in its own graph or in one around it (ComfyUI-KJNodes)."""
    while scope is not None and getter.values:
        for node in scope.graph.nodes.values():
            if node.kind == "SetNode" and node.values[:1] == getter.values[:1] and node.inputs:
                key = node.inputs[0].link
                if key is not None:
                    yield scope, key
        scope = scope.parent


def _passed_through(node: Node, slot: int, links: Mapping[str, Link]) -> str | None:
    """Return the link that a bypassed node hands on for an output: of its place, else its type, else a fitting one."""
    wanted = node.output_types[slot] if 0 <= slot < len(node.output_types) else "*"
    linked = [each for each in node.inputs if each.link in links]
    same = node.inputs[slot : slot + 1] if slot >= 0 else ()
    candidates: list[Input] = [each for each in same if each in linked and _fits(each.type, wanted)]
    candidates += [each for each in linked if each.type == wanted]
    candidates += [each for each in linked if _fits(each.type, wanted)]
    return candidates[0].link if candidates else None


def _fits(one: str, other: str) -> bool:
    """Whether an output may go into an input, as LiteGraph.isValidConnection: equal, anything, or one of several."""
    if one in ("*", "") or other in ("*", ""):
        return True
    return not {each.strip().lower() for each in one.split(",")}.isdisjoint(
        each.strip().lower() for each in other.split(",")
    )
