"""Which nodes a run would use: no muted and no bypassed ones, and nothing behind the closed side of a switch."""

from __future__ import annotations

from provisioner.workflow.graph_values import FlatNode, FlatWorkflow, Wire
from provisioner.workflow.loader_table import LOADER_INPUTS

SWITCHES = {"ComfySwitchNode": ("switch", {True: "on_true", False: "on_false"})}
"""By class: the input that decides, and the one used for each of its values; what is behind the other is not run."""

_CONSTANTS = frozenset({"PrimitiveBoolean", "PrimitiveInt", "PrimitiveFloat", "PrimitiveString"})


def value_of(node: FlatNode, name: str, position: int) -> object:
    """Return the value of an input: what reaches it from outside, else its widget's; None where it is wired."""
    if name in node.wires:
        return None
    if name in node.given:
        return node.given[name]
    return node.values[position] if position < len(node.values) else node.named.get(name)


def reasons_off(flat: FlatWorkflow) -> dict[str, str]:
    """Return why a node is not used, for each that is not, by id."""
    used: set[str] = set()
    consumed = {wire.node for node in flat.nodes.values() if node.why_off is None for wire in node.wires.values()}
    closed = {wire.node for node in flat.nodes.values() for wire in _closed(flat, node)}
    waiting = [
        node.id
        for node in flat.nodes.values()
        if node.why_off is None and node.id not in consumed and node.kind not in LOADER_INPUTS
    ]
    while waiting:
        key = waiting.pop()
        node = flat.nodes.get(key)
        if node is None or key in used or node.why_off is not None:
            continue
        used.add(key)
        shut = _closed(flat, node)
        waiting += [wire.node for wire in node.wires.values() if wire not in shut]
    return {
        key: node.why_off or _why_unused(key, closed, consumed) for key, node in flat.nodes.items() if key not in used
    }


def _why_unused(key: str, closed: set[str], consumed: set[str]) -> str:
    if key in closed:
        return "a switch does not select it"
    return "it is used only by what a switch does not select" if key in consumed else "nothing uses it"


def _closed(flat: FlatWorkflow, node: FlatNode) -> tuple[Wire, ...]:
    """Return the wires into a switch that it does not look at; none where its position is not known before a run."""
    if node.kind not in SWITCHES:
        return ()
    name, sides = SWITCHES[node.kind]
    decides = value_of(node, name, 0)
    wire = node.wires.get(name)
    origin = None if wire is None else flat.nodes.get(wire.node)
    if origin is not None and origin.kind in _CONSTANTS:
        decides = value_of(origin, "value", 0)
    if not isinstance(decides, bool):
        return ()
    open_side = node.wires.get(sides[decides])
    shut = node.wires.get(sides[not decides])
    return () if shut is None or shut == open_side else (shut,)
