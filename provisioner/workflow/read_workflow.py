"""Bytes -> workflow: the editor's form, the API's, and either of them in a PNG.

Nothing is trusted and nothing is run.  What cannot be a node, a link or a value is left out, as the editor does; only
what makes the whole unreadable is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from provisioner.core.errors import WorkflowError
from provisioner.core.json_reader import as_dict, as_int, as_list
from provisioner.workflow.flatten import flatten
from provisioner.workflow.graph_values import (
    FlatNode,
    FlatWorkflow,
    Graph,
    Input,
    Link,
    NamedFile,
    Node,
    Package,
    Port,
    Wire,
    Workflow,
)
from provisioner.workflow.png_text import SIGNATURE, png_texts

LARGEST = 50 * 1024 * 1024
"""Bytes of a workflow.  The largest template of comfyui-workflow-templates-json 0.1.123 has 376 kB."""

LARGEST_IMAGE = 256 * 1024 * 1024
"""Bytes of a PNG with a workflow in it."""

_OTHER_IMAGES = {b"\xff\xd8\xff": "a JPEG", b"RIFF": "a WebP or another RIFF file", b"GIF8": "a GIF"}


def read_workflow(data: bytes, *, name: str) -> FlatWorkflow:
    """Return the workflow in a file.

    Parameters
    ----------
    data : bytes
        JSON in the editor's or in API form, or a PNG that ComfyUI wrote.
    name : str
        What complaints call it.

    Raises
    ------
    WorkflowError
        It is too large, holds no workflow, or its subgraphs contain each other.
    """
    if data.startswith(SIGNATURE):
        return _in_image(data, name)
    for start, what in _OTHER_IMAGES.items():
        if data.startswith(start):
            raise WorkflowError(
                f"{name} is {what}; expected JSON, or a PNG that ComfyUI wrote.",
                hint="In ComfyUI, open the file and save the workflow as JSON.",
            )
    return _in_json(data, name)


def _in_image(data: bytes, name: str) -> FlatWorkflow:
    if len(data) > LARGEST_IMAGE:
        raise _too_large(name, len(data), LARGEST_IMAGE)
    texts = png_texts(data, ("workflow", "prompt"), most=LARGEST)
    for keyword in ("workflow", "prompt"):  # the first has addresses of files, which the second lacks
        if keyword in texts:
            return _in_json(texts[keyword], f"the {keyword} in {name}")
    raise WorkflowError(
        f"{name} is a PNG without a workflow in it.",
        hint="Use the file as ComfyUI saved it: editors and web sites take the workflow out of an image.",
    )


def _in_json(data: bytes, name: str) -> FlatWorkflow:
    if len(data) > LARGEST:
        raise _too_large(name, len(data), LARGEST)
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise WorkflowError(f"{name} is nested too deep to be a workflow.") from error
    except ValueError as error:
        raise WorkflowError(
            f"{name} is no JSON ({error}); expected a workflow that ComfyUI saved.",
            hint="Save it again in ComfyUI: Workflow, Save or Export.",
        ) from error
    for document in _documents(found):
        if isinstance(document.get("nodes"), list):
            return flatten(_workflow(document), name=name)
        if _is_api(document):
            return _api(document)
    raise WorkflowError(
        f"{name} is JSON, but no workflow: it has neither 'nodes' nor entries with a 'class_type'.",
        hint="Save it again in ComfyUI: Workflow, Save or Export.",
    )


def _documents(found: object) -> Iterable[dict[str, object]]:
    """Return what may be a workflow: the object itself, or what stands in it under the names of a request."""
    outer = as_dict(found)
    yield outer
    yield from (as_dict(outer.get(key)) for key in ("workflow", "prompt"))


def _too_large(name: str, size: int, most: int) -> WorkflowError:
    return WorkflowError(f"{name} has {size:,} bytes; a workflow has at most {most:,}.")


# --- the API's form ------------------------------------------------------------------------------


def _is_api(document: dict[str, object]) -> bool:
    return any(isinstance(as_dict(each).get("class_type"), str) for each in document.values())


def _api(document: dict[str, object]) -> FlatWorkflow:
    nodes: dict[str, FlatNode] = {}
    for key, value in document.items():
        entry = as_dict(value)
        kind = entry.get("class_type")
        if not isinstance(kind, str):
            continue
        given: dict[str, object] = {}
        wires: dict[str, Wire] = {}
        for name, each in as_dict(entry.get("inputs")).items():
            pair = as_list(each)
            slot = as_int(pair[1]) if len(pair) == 2 else None
            if slot is not None and isinstance(pair[0], str):
                wires[name] = Wire(node=pair[0], slot=slot)
            else:
                given[name] = each
        title = _text(as_dict(entry.get("_meta")).get("title"))
        nodes[key] = FlatNode(id=key, kind=kind, title=title, given=given, wires=wires)
    return FlatWorkflow(nodes=nodes, is_api=True)


# --- the editor's form ---------------------------------------------------------------------------


def _workflow(document: dict[str, object]) -> Workflow:
    subgraphs: dict[str, Graph] = {}
    for each in map(as_dict, as_list(as_dict(document.get("definitions")).get("subgraphs"))):
        name = each.get("id")
        if isinstance(name, str):
            subgraphs[name] = _graph(each)
    groups = as_dict(as_dict(document.get("extra")).get("groupNodes"))
    for key, value in groups.items():
        for separator in (">", "/"):
            subgraphs[f"workflow{separator}{key}"] = _group(as_dict(value))
    return Workflow(graph=_graph(document), subgraphs=subgraphs)


def _graph(found: dict[str, object]) -> Graph:
    nodes = [node for each in as_list(found.get("nodes")) if (node := _node(as_dict(each))) is not None]
    links = dict(link for each in as_list(found.get("links")) if (link := _link(each)) is not None)
    return Graph(
        nodes={node.id: node for node in nodes},
        links=links,
        name=_text(found.get("name")) or "",
        inputs=_ports(found.get("inputs")),
        outputs=_ports(found.get("outputs")),
    )


def _node(found: dict[str, object], number: str | None = None) -> Node | None:
    key, kind = number or _id(found.get("id")), found.get("type")
    if key is None or not isinstance(kind, str) or not kind:
        return None
    properties = as_dict(found.get("properties"))
    values = found.get("widgets_values")
    return Node(
        id=key,
        kind=kind,
        mode=as_int(found.get("mode")) or 0,
        title=_text(found.get("title")),
        inputs=tuple(_input(as_dict(each)) for each in as_list(found.get("inputs"))),
        output_types=tuple(_type(as_dict(each)) for each in as_list(found.get("outputs"))),
        values=tuple(as_list(values)),
        named_values=as_dict(values) or as_dict(found.get("widgets_values_named")),
        files=tuple(file for each in as_list(properties.get("models")) if (file := _file(as_dict(each))) is not None),
        proxies=_proxies(properties.get("proxyWidgets")),
        package=Package(
            name=_text(properties.get("cnr_id")) or _text(properties.get("aux_id")),
            version=_text(properties.get("ver")),
            repository=_text(properties.get("aux_id")),
        ),
    )


def _input(found: dict[str, object]) -> Input:
    widget = found.get("widget")
    name = _text(found.get("name")) or ""
    return Input(
        name=name,
        type=_type(found),
        link=_id(found.get("link")),
        widget=(_text(as_dict(widget).get("name")) or name) if isinstance(widget, dict) else None,
    )


def _file(found: dict[str, object]) -> NamedFile | None:
    name = _text(found.get("name"))
    if name is None:
        return None
    is_sha256 = str(found.get("hash_type", "")).casefold() in ("sha256", "sha-256")
    return NamedFile(
        name=name,
        url=_text(found.get("url")),
        folder=_text(found.get("directory")),
        sha256=_text(found.get("hash")) if is_sha256 else None,
    )


def _proxies(found: object) -> tuple[tuple[str, str], ...]:
    pairs = [as_list(each) for each in as_list(found)]
    return tuple((str(each[0]), str(each[1])) if len(each) >= 2 else ("", "") for each in pairs)


def _link(found: object) -> tuple[str, Link] | None:
    """Return a link with its id: the first form is that of a workflow, the second that of a subgraph."""
    if isinstance(found, dict):
        parts = [found.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    else:
        parts = as_list(found)[:5]
    if len(parts) < 5:
        return None
    key, origin, target = _id(parts[0]), _id(parts[1]), _id(parts[3])
    if key is None or origin is None or target is None:
        return None
    link = Link(origin=origin, origin_slot=_slot(parts[2]), target=target, target_slot=_slot(parts[4]))
    return key, link


def _ports(found: object) -> tuple[Port, ...]:
    return tuple(
        Port(
            name=_text(each.get("name")) or "",
            links=tuple(link for one in as_list(each.get("linkIds")) if (link := _id(one)) is not None),
        )
        for each in map(as_dict, as_list(found))
    )


def _group(found: dict[str, object]) -> Graph:
    """Return a group node, the older form, as a subgraph: its inputs and outputs are what no link inside uses.

    As groupNode.ts of ComfyUI_frontend makes them: node by node, an output also where ``external`` names it.
    """
    nodes = [node for at, each in enumerate(as_list(found.get("nodes"))) if (node := _node(as_dict(each), str(at)))]
    links: dict[str, Link] = {}
    for at, each in enumerate(as_list(found.get("links"))):
        link = _link([at, *as_list(each)[:4]])
        if link is not None:
            links[link[0]] = link[1]
    outside = {(str(one[0]), one[1]) for each in as_list(found.get("external")) if len(one := as_list(each)) >= 2}
    linked = {(each.target, each.target_slot): key for key, each in links.items()}
    used = {(each.origin, each.origin_slot) for each in links.values()}
    inner: dict[str, Node] = {}
    inputs: list[Port] = []
    outputs: list[Port] = []
    for node in nodes:
        wired: list[Input] = []
        for at, each in enumerate(node.inputs):
            key = linked.get((node.id, at))
            if key is None and each.widget is None:
                key = f"in{len(inputs)}"
                links[key] = Link(origin="-10", origin_slot=len(inputs), target=node.id, target_slot=at)
                inputs.append(Port(name="", links=(key,)))  # its place tells which it is: names were made unique
            wired.append(replace(each, link=key))
        for at in range(len(node.output_types)):
            if (node.id, at) not in used or (node.id, at) in outside:
                key = f"out{len(outputs)}"
                links[key] = Link(origin=node.id, origin_slot=at, target="-20", target_slot=len(outputs))
                outputs.append(Port(name="", links=(key,)))
        inner[node.id] = replace(node, inputs=tuple(wired))
    return Graph(nodes=inner, links=links, inputs=tuple(inputs), outputs=tuple(outputs), is_group=True)


# --- single values -------------------------------------------------------------------------------


def _id(value: object) -> str | None:
    return value if isinstance(value, str) else None if (number := as_int(value)) is None else str(number)


def _slot(value: object) -> int:
    number = as_int(value)
    return -1 if number is None else number


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _type(found: dict[str, object]) -> str:
    value = found.get("type")
    return value if isinstance(value, str) else "*"
