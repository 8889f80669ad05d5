"""Small workflows as ComfyUI's editor saves them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Any

Row = tuple[Any, ...]
HUB = "https://huggingface.co"


def node(key: int, kind: str, *values: object, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a node may have
    """Return a node: `inputs` are (name, type, link, is_widget), `outputs` types, `models` (name, url, directory)."""
    inputs = [
        {"name": name, "type": kind_, "link": link, **({"widget": {"name": name}} if is_widget else {})}
        for name, kind_, link, is_widget in more.pop("inputs", ())
    ]
    models = [dict(zip(("name", "url", "directory"), each, strict=True)) for each in more.pop("models", ())]
    properties = {**({"models": models} if models else {}), **more.pop("properties", {})}
    outputs = [{"name": each, "type": each} for each in more.pop("outputs", ())]
    found = {"id": key, "type": kind, "mode": 0, "inputs": inputs, "outputs": outputs, "properties": properties}
    return {**found, "widgets_values": list(values), **more}


def workflow(
    *nodes: dict[str, Any], links: Iterable[Row] = (), subgraphs: Iterable[object] = (), **more: object
) -> bytes:
    """Return a workflow; a link is (id, origin, slot, target, slot, type)."""
    document = {"nodes": list(nodes), "links": [list(each) for each in links], "version": 0.4, **more}
    if subgraphs:
        document["definitions"] = {"subgraphs": list(subgraphs)}
    return json.dumps(document).encode()


def subgraph(
    key: str, *nodes: dict[str, Any], links: Iterable[Row] = (), inputs: Iterable[Row] = (), outputs: Iterable[Row] = ()
) -> dict[str, Any]:
    """Return a subgraph; `inputs` and `outputs` are (name, link, ...), a link has its parts as in `workflow`."""
    parts = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {
        "id": key,
        "name": f"the {key}",
        "nodes": list(nodes),
        "links": [dict(zip(parts, each, strict=True)) for each in links],
        "inputs": [{"name": name, "linkIds": list(ids)} for name, *ids in inputs],
        "outputs": [{"name": name, "linkIds": list(ids)} for name, *ids in outputs],
    }


def png(**texts: bytes) -> bytes:
    """Return the parts of a PNG that hold texts, none of its pixels."""
    chunks = [(b"IHDR", bytes(13)), *((b"tEXt", name.encode() + b"\0" + text) for name, text in texts.items())]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in (*chunks, (b"IEND", b"")))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
