"""Parse a ComfyUI server's HTTP answers into values.

Knows the shape of each answer of ComfyUI 0.33.0 (``tests/contract/data/comfyui-0.33.0``) and both shapes of a choice in
``/object_info``.  Trusts nothing: what is missing becomes None or empty, an answer that is not a ComfyUI server's
raises an error, and a file name remains text that is only sent back to the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from provisioner.core.errors import ServerNotUsableError
from provisioner.core.json_reader import as_dict, as_int, as_list
from provisioner.core.redact import printable, redact

Graph = Mapping[str, Mapping[str, object]]
"""A prompt in API form: node id to ``{"class_type": ..., "inputs": {...}}``."""

_LONGEST_ID = 200  # characters; a prompt has 36, a node of a subgraph "57:8"
_MOST_FILES = 100  # of one node
_VIDEOS = frozenset({"mp4", "m4v", "mov", "webm", "mkv", "avi", "gif", "apng"})
_SOUNDS = frozenset({"flac", "mp3", "opus", "ogg", "wav", "m4a", "aac"})
_LONGEST_SHOWN = 300  # characters of a server's message that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDevice:
    """One device the server uses."""

    name: str  # "cuda:0 NVIDIA GeForce RTX 4070 : cudaMallocAsync", "cpu"
    kind: str  # "cuda", "cpu", "mps", "xpu"
    index: int | None = None
    total_bytes: int | None = None  # its memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What ``/system_stats`` reports about a running server."""

    comfyui_version: str | None  # "0.33.0"; None where the server is older than this field
    torch_version: str | None  # "2.11.0+cu130"
    python_version: str | None  # "3.11.7 (main, ...)"
    os: str | None
    argv: tuple[str, ...] = ()  # the command line it was started with, from main.py on
    devices: tuple[ServerDevice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModels:
    """What the loaders offer, spelled as the server expects it."""

    diffusion_models: tuple[str, ...]
    text_encoders: tuple[str, ...]
    vaes: tuple[str, ...]
    clip_types: tuple[str, ...]  # types that CLIPLoader offers
    missing_nodes: tuple[str, ...] = ()  # of the requested classes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A file the server wrote.  Its names come from the server: they are sent back to it, never used as a path here."""

    filename: str
    subfolder: str
    folder: str  # "output", "temp"
    kind: Literal["image", "video", "audio"] = "image"  # as the server says; an animated image is a video


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeComplaint:
    """Why one node of a prompt was rejected."""

    node_id: str
    node_class: str
    kind: str  # "value_not_in_list", "invalid_input_type", ...
    message: str
    details: str
    input_name: str | None = None
    received: str | None = None
    allowed: tuple[str, ...] = ()  # for a choice: what would have been accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A prompt that was not accepted."""

    status: int  # of HTTP
    kind: str  # "prompt_outputs_failed_validation", "missing_node_type", "prompt_no_outputs"
    message: str
    details: str
    node_id: str | None = None
    node_class: str | None = None
    complaints: tuple[NodeComplaint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFailure:
    """A node that raised while the prompt ran."""

    node_id: str
    node_class: str
    exception_type: str  # "safetensors._safetensors_rust.SafetensorError", "torch.OutOfMemoryError"
    exception_message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """What ``/history`` reports about a prompt that ended."""

    end: Literal["success", "error", "interrupted"]
    files: tuple[OutputFile, ...] = ()
    cached: tuple[str, ...] = ()  # ids of the nodes that were not run
    failure: NodeFailure | None = None
    node_id: str | None = None  # where it was interrupted


# --- reading JSON values -----------------------------------------------------------------------


def as_text(value: object) -> str | None:
    """Return `value` where it is text, made safe to show, else None."""
    return printable(value) if isinstance(value, str) else None


def as_id(value: object) -> str | None:
    """Return a node's or a prompt's id; a number becomes text, like the graph's keys."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and len(value) <= _LONGEST_ID else None


def shortened(text: str) -> str:
    """Return the beginning of a server's text, redacted, as one line."""
    line = " ".join(redact(printable(text)).split())
    return line if len(line) <= _LONGEST_SHOWN else line[: _LONGEST_SHOWN - 3] + "..."


def _texts(value: object) -> tuple[str, ...]:
    return tuple(each for each in as_list(value) if isinstance(each, str))


# --- the server itself -------------------------------------------------------------------------


def parse_system_stats(body: object) -> ServerFacts:
    """Return the server's versions, devices and packages.

    Parameters
    ----------
    body : object
        The decoded JSON of ``GET /system_stats``.

    Returns
    -------
    ServerFacts
        Sizes in bytes.

    Raises
    ------
    ServerNotUsableError
        The answer has neither ``system`` nor ``devices``: another program answered.
    """
    system = as_dict(as_dict(body).get("system"))
    if not system or not isinstance(as_dict(body).get("devices"), list):
        raise ServerNotUsableError(
            "The answer to /system_stats is not that of a ComfyUI server: it lacks `system` or `devices`.",
            hint="Check the address: another program may be listening there.",
            cause="not-comfyui",
        )
    return ServerFacts(
        comfyui_version=as_text(system.get("comfyui_version")),
        torch_version=as_text(system.get("pytorch_version")),
        python_version=as_text(system.get("python_version")),
        os=as_text(system.get("os")),
        argv=_texts(system.get("argv")),
        devices=tuple(_device(as_dict(each)) for each in as_list(as_dict(body).get("devices"))),
    )


def _device(body: dict[str, object]) -> ServerDevice:
    return ServerDevice(
        name=as_text(body.get("name")) or "",
        kind=as_text(body.get("type")) or "",
        index=as_int(body.get("index")),
        total_bytes=as_int(body.get("vram_total")),
    )


def parse_folder_paths(body: object) -> dict[str, tuple[str, ...]]:
    """Return the folders the running server reads for each kind of model, in its own order.

    Examples
    --------
    >>> parse_folder_paths({"vae": ["/m/vae", "/out/vae"], "odd": 3})
    {'vae': ('/m/vae', '/out/vae')}
    """
    return {kind: _texts(paths) for kind, paths in as_dict(body).items() if isinstance(paths, list)}


# --- what the nodes offer ----------------------------------------------------------------------


def knows_node(body: object, node_class: str) -> bool:
    """Whether the answer of ``/object_info/<node_class>`` describes the class; an unknown one is answered ``{}``."""
    return bool(as_dict(as_dict(body).get(node_class)))


def parse_choices(body: object, node_class: str, input_name: str) -> tuple[str, ...]:
    """Return the values a node's input offers, in the server's order and spelling.

    Both forms of a choice are read: ``[[values], {options}]`` and ``["COMBO", {"options": [values]}]``.

    Examples
    --------
    >>> parse_choices({"VAELoader": {"input": {"required": {"vae_name": [["a", "b"]]}}}}, "VAELoader", "vae_name")
    ('a', 'b')
    >>> parse_choices({"N": {"input": {"optional": {"x": ["COMBO", {"options": ["c"]}]}}}}, "N", "x")
    ('c',)
    """
    groups = as_dict(as_dict(as_dict(body).get(node_class)).get("input"))
    for group in ("required", "optional"):
        declared = as_list(as_dict(groups.get(group)).get(input_name))
        if declared:
            return _choices(declared)
    return ()


def _choices(declared: list[object]) -> tuple[str, ...]:
    """Return the values that an input's declaration (its type, and possibly its options) offers."""
    if isinstance(declared[0], list):
        return _texts(declared[0])
    return _texts(as_dict(declared[1]).get("options")) if len(declared) > 1 else ()


def node_classes(graph: Graph) -> tuple[str, ...]:
    """Return the node classes a graph uses, each once, in the graph's order."""
    found = (node.get("class_type") for node in graph.values())
    return tuple(dict.fromkeys(each for each in found if isinstance(each, str)))


# --- a prompt ----------------------------------------------------------------------------------


def parse_acceptance(body: object) -> str:
    """Return the id under which a prompt was accepted.

    Raises
    ------
    ServerNotUsableError
        The answer has no prompt id.
    """
    prompt_id = as_id(as_dict(body).get("prompt_id"))
    if not prompt_id:
        raise ServerNotUsableError(
            "The server accepted the graph without giving it an id.",
            hint="Update ComfyUI, or check that nothing between here and the server changes its answers.",
            cause="not-comfyui",
        )
    return prompt_id


def parse_refusal(status: int, body: object) -> Refusal:
    """Return why a prompt was rejected.

    Parameters
    ----------
    status : int
        HTTP status; ComfyUI rejects with 400.
    body : object
        The decoded JSON, or the text of an answer that is not JSON.
    """
    error = as_dict(body).get("error")
    if not isinstance(error, dict):
        said = error if isinstance(error, str) else body if isinstance(body, str) else ""
        return Refusal(status=status, kind="unknown", message=shortened(said), details="")
    extra = as_dict(error.get("extra_info"))
    by_node = as_dict(as_dict(body).get("node_errors"))
    return Refusal(
        status=status,
        kind=as_text(error.get("type")) or "unknown",
        message=shortened(as_text(error.get("message")) or ""),
        details=shortened(as_text(error.get("details")) or ""),
        node_id=as_id(extra.get("node_id")),
        node_class=as_text(extra.get("class_type")),
        complaints=tuple(
            _complaint(node_id, as_dict(node), as_dict(each))
            for node_id, node in by_node.items()
            for each in as_list(as_dict(node).get("errors"))
        ),
    )


def _complaint(node_id: str, node: dict[str, object], body: dict[str, object]) -> NodeComplaint:
    extra = as_dict(body.get("extra_info"))
    received = extra.get("received_value")
    declared = as_list(extra.get("input_config"))
    return NodeComplaint(
        node_id=node_id,
        node_class=as_text(node.get("class_type")) or "",
        kind=as_text(body.get("type")) or "unknown",
        message=shortened(as_text(body.get("message")) or ""),
        details=shortened(as_text(body.get("details")) or ""),
        input_name=as_text(extra.get("input_name")),
        received=None if received is None else shortened(str(received)),
        allowed=_choices(declared) if declared else (),
    )


def parse_files(output: object) -> tuple[OutputFile, ...]:
    """Return the images, videos and sounds of a node's output, saved ones before previews.

    ComfyUI lists a video among the images and says that they are animated; custom nodes (VideoHelperSuite) have lists
    of their own.  What is neither (3D models, text) is left out.

    Examples
    --------
    >>> [each.kind for each in parse_files({"images": [{"filename": "a.webp"}], "animated": [True]})]
    ['video']
    >>> [each.kind for each in parse_files({"gifs": [{"filename": "a.mp4"}], "audio": [{"filename": "a.flac"}]})]
    ['video', 'audio']
    """
    body = as_dict(output)
    is_animated = as_list(body.get("animated"))[:1] == [True]
    files = [
        OutputFile(
            filename=filename,
            subfolder=subfolder if isinstance(subfolder := entry.get("subfolder"), str) else "",
            folder=folder if isinstance(folder := entry.get("type"), str) else "output",
            kind=_kind_of(filename, key, is_animated=is_animated),
        )
        for key in ("images", "gifs", "video", "videos", "audio")
        for entry in map(as_dict, as_list(body.get(key))[:_MOST_FILES])
        if isinstance(filename := entry.get("filename"), str) and filename
    ]
    return tuple(sorted(files, key=lambda each: each.folder != "output"))


def _kind_of(filename: str, key: str, *, is_animated: bool) -> Literal["image", "video", "audio"]:
    extension = filename.rpartition(".")[2].casefold()
    if extension in _SOUNDS or key == "audio":
        return "audio"
    return "video" if extension in _VIDEOS or key != "images" or is_animated else "image"


def parse_failure(body: object) -> NodeFailure:
    """Return which node raised what, from an ``execution_error``."""
    data = as_dict(body)
    return NodeFailure(
        node_id=as_id(data.get("node_id")) or "",
        node_class=as_text(data.get("node_type")) or "",
        exception_type=as_text(data.get("exception_type")) or "",
        exception_message=(as_text(data.get("exception_message")) or "").strip(),
    )


def parse_history(body: object, prompt_id: str) -> HistoryEntry | None:
    """Return how a prompt ended; None while the server does not report it.

    An empty object right after the end is normal: the entry appears shortly after
    (``wrong_text_encoder_06b`` in the recordings of 0.33.0).
    """
    entry = as_dict(as_dict(body).get(prompt_id))
    if not entry:
        return None
    messages = _history_messages(as_dict(entry.get("status")))
    outputs = as_dict(entry.get("outputs"))
    files = tuple(file for output in outputs.values() for file in parse_files(output))
    cached = tuple(node for each in as_list(messages.get("execution_cached", {}).get("nodes")) if (node := as_id(each)))
    if "execution_interrupted" in messages:
        stopped_at = as_id(messages["execution_interrupted"].get("node_id"))
        return HistoryEntry(end="interrupted", files=files, cached=cached, node_id=stopped_at)
    is_error = as_dict(entry.get("status")).get("status_str") == "error" or "execution_error" in messages
    if is_error:
        failure = parse_failure(messages.get("execution_error", {}))
        return HistoryEntry(end="error", files=files, cached=cached, failure=failure, node_id=failure.node_id)
    return HistoryEntry(end="success", files=files, cached=cached)


def _history_messages(status: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return the messages of a history entry by their type; the last of a type wins."""
    pairs = (as_list(each) for each in as_list(status.get("messages")))
    return {str(pair[0]): as_dict(pair[1]) for pair in pairs if len(pair) == 2}


def parse_queue(body: object) -> frozenset[str]:
    """Return the ids of the running and waiting prompts."""
    waiting: Iterable[object] = [
        *as_list(as_dict(body).get("queue_running")),
        *as_list(as_dict(body).get("queue_pending")),
    ]
    items = (as_list(each) for each in waiting)
    return frozenset(prompt_id for item in items if len(item) > 1 and (prompt_id := as_id(item[1])))
