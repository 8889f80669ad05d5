"""The values of a workflow: as the editor saves it, and with every subgraph dissolved.

Ids are text, whatever the file has.  Nothing in them is checked: a name is whatever its author wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MUTED, BYPASSED = 2, 4
"""Modes of a node that is not run: one gives nothing, the other hands its inputs on (LGraphEventMode of litegraph)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A model file as ``properties.models`` of a node names it."""

    name: str
    url: str | None = None
    folder: str | None = None  # its "directory"
    sha256: str | None = None  # where a hash of that type stands beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input of a node; with `widget` it can be typed in, too."""

    name: str
    type: str
    link: str | None = None
    widget: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Whose node it is, as the editor noted it."""

    name: str | None = None  # "comfy-core", an id of the registry (``cnr_id``), or "owner/repository" (``aux_id``)
    version: str | None = None
    repository: str | None = None  # "owner/repository" on GitHub (``aux_id``), whatever the name is


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as the editor saved it."""

    id: str
    kind: str  # its class, or the id of a subgraph
    mode: int = 0
    title: str | None = None
    inputs: tuple[Input, ...] = ()
    output_types: tuple[str, ...] = ()
    values: tuple[object, ...] = ()  # of its widgets, in their order
    named_values: Mapping[str, object] = field(default_factory=dict)  # where the file has them by name
    files: tuple[NamedFile, ...] = ()
    proxies: tuple[tuple[str, str], ...] = ()  # of a subgraph, before 2026: inner node and widget for each value
    package: Package = Package()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """From an output to an input."""

    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of a subgraph."""

    name: str
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes and links; of a subgraph with its inputs and outputs."""

    nodes: Mapping[str, Node]
    links: Mapping[str, Link]
    name: str = ""
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    is_group: bool = False  # a "group node", the older form: an instance has the values of all its nodes in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A workflow as the editor saves it."""

    graph: Graph
    subgraphs: Mapping[str, Graph] = field(default_factory=dict)


# --- with every subgraph dissolved ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """The output of another node."""

    node: str
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatNode:
    """A node with what reaches it from outside of subgraphs, primitives and reroutes."""

    id: str  # "57:8": node 8 in the subgraph of node 57, as the editor writes it
    kind: str
    title: str | None = None
    why_off: str | None = None  # why it is not run; None: it is
    inputs: tuple[Input, ...] = ()
    values: tuple[object, ...] = ()
    named: Mapping[str, object] = field(default_factory=dict)  # the same by name, where the file has them so, too
    given: Mapping[str, object] = field(default_factory=dict)  # by input: these win over `values`
    wires: Mapping[str, Wire] = field(default_factory=dict)  # by input
    shared: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # input -> node and widget whose value it takes
    files: tuple[NamedFile, ...] = ()
    package: Package = Package()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatWorkflow:
    """Every node of a workflow, in the order of the file."""

    nodes: Mapping[str, FlatNode]
    is_api: bool = False  # it came in API form: `given` and `wires` have every input
    notes: tuple[str, ...] = ()  # what its authors wrote beside the nodes
