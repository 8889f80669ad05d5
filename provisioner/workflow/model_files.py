"""Which model files a workflow names: in ``properties.models`` of its nodes, and in the inputs of loaders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from provisioner.core.models import Role
from provisioner.disk.safe_path import complaint_about_path
from provisioner.workflow.graph_values import FlatNode, FlatWorkflow, NamedFile
from provisioner.workflow.live_nodes import reasons_off, value_of
from provisioner.workflow.loader_table import LOADER_INPUTS, ROLES

PICKLES = (".ckpt", ".pt", ".pth", ".pt2", ".bin", ".pkl", ".pickle")
"""Endings of files that can run code when they are loaded."""

_ENDINGS = (".safetensors", ".sft", ".gguf", ".onnx", *PICKLES)
_OLDER_FOLDERS = {"unet": "diffusion_models", "clip": "text_encoders"}
_LINK = re.compile(r"https://[^\s()\[\]<>\"'`|\\]{1,500}")
_LONGEST_NOTE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model file that a workflow names."""

    name: str  # with the folders below `folder`: "klein/style.safetensors"
    folder: str | None  # of ComfyUI's models tree; None: a node names it that we do not know
    role: Role
    nodes: tuple[str, ...]  # "UNETLoader 57:8"
    urls: tuple[str, ...] = ()  # where the workflow says it is
    sha256: tuple[str, ...] = ()  # as the workflow states it
    why_off: str | None = None  # why a run would not read it; None: it would
    complaint: str | None = None  # what is wrong with its name or folder

    @property
    def label(self) -> str:
        """Return its place in the models tree."""
        return f"{self.folder or '?'}/{self.name}"


def model_files(flat: FlatWorkflow) -> tuple[ModelFile, ...]:
    """Return every model file once, those that a run reads first; one name in two folders is two files."""
    off = reasons_off(flat)
    named = _by_name(flat)
    noted = _noted(flat.notes)
    found: dict[tuple[str | None, str], ModelFile] = {}
    for node in flat.nodes.values():
        for each in _files_of(node, named, off.get(node.id)):
            urls = each.urls or noted.get(_last(each.name), ())
            key = (each.folder, each.name.casefold())
            found[key] = _merged(found.get(key), replace(each, urls=urls))
    return tuple(sorted(found.values(), key=lambda each: each.why_off is not None))


def _files_of(node: FlatNode, named: dict[str, tuple[NamedFile, ...]], why_off: str | None) -> Iterator[ModelFile]:
    label = f"{node.kind[:80]} {node.id}"
    loaded: set[str] = set()
    for each in LOADER_INPUTS.get(node.kind, ()):
        value = value_of(node, each.name, each.position)
        if not _is_file(value):
            continue
        loaded.add(_plain(value))
        own = [file for file in node.files if _plain(file.name) == _plain(value)]
        files = own or named.get(_plain(value), ())
        folders = [file.folder for file in own if file.folder]
        yield _model_file(value, folders[0] if folders else each.folder, label, files, why_off)
    for file in node.files:
        if _plain(file.name) not in loaded and _is_file(file.name):
            why = f"node {node.id} loads another file" if loaded else None
            yield _model_file(file.name, file.folder, label, [file], why_off or why)
    if node.kind not in LOADER_INPUTS and not node.files:
        for value in {
            str(each): None for each in (*node.values, *node.named.values(), *node.given.values()) if _is_file(each)
        }:
            files = named.get(_plain(value), ())
            yield _model_file(value, files[0].folder if files else None, label, files, why_off)


def _model_file(
    name: str, folder: str | None, label: str, files: Sequence[NamedFile], why_off: str | None
) -> ModelFile:
    path = name.replace("\\", "/")
    first, separator, rest = (folder or "").replace("\\", "/").partition("/")
    place = _OLDER_FOLDERS.get(first, first) + separator + rest or None
    said = complaint_about_path(path) or (complaint_about_path(place) if place else None)
    return ModelFile(
        name=path,
        folder=place,
        role=ROLES.get(first and _OLDER_FOLDERS.get(first, first), "other"),
        nodes=(label,),
        urls=_once(file.url for file in files if file.url),
        sha256=_once(file.sha256.lower() for file in files if file.sha256),
        why_off=why_off,
        complaint=said,
    )


def _merged(one: ModelFile | None, other: ModelFile) -> ModelFile:
    """Return what two nodes say of one file; it is read where one of them reads it."""
    if one is None:
        return other
    return replace(
        one,
        nodes=_once((*one.nodes, *other.nodes)),
        urls=_once((*one.urls, *other.urls)),
        sha256=_once((*one.sha256, *other.sha256)),
        why_off=None if other.why_off is None else one.why_off,
    )


def _by_name(flat: FlatWorkflow) -> dict[str, tuple[NamedFile, ...]]:
    """Return what any node says of a name: an instance of a subgraph can load what another one names."""
    found: dict[str, tuple[NamedFile, ...]] = {}
    for node in flat.nodes.values():
        for file in node.files:
            found[_plain(file.name)] = (*found.get(_plain(file.name), ()), file)
    return found


def _noted(notes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the addresses in notes by file name: before 2025 authors wrote there where the files are."""
    found: dict[str, tuple[str, ...]] = {}
    for note in notes:
        for url in _LINK.findall(note[:_LONGEST_NOTE]):
            name = _last(url.partition("?")[0])
            if _is_file(name):
                found[name] = _once((*found.get(name, ()), url))
    return found


def _is_file(value: object) -> TypeGuard[str]:
    return (
        isinstance(value, str)
        and len(value) <= 1000
        and "\n" not in value
        and "://" not in value
        and value.casefold().endswith(_ENDINGS)
    )


def _plain(name: object) -> str:
    return str(name).replace("\\", "/")


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
