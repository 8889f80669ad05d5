"""Which packs of custom nodes a workflow needs, and at which version or commit each is to be had.

Pure.  A workflow is a stranger's: an id means nothing before it was looked at as one, a version nothing before somebody
was asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from provisioner.core.json_reader import as_dict
from provisioner.core.redact import printable
from provisioner.core.units import count, listing
from provisioner.workflow.graph_values import FlatNode, FlatWorkflow

GITHUB = "https://github.com"
OWN = "comfy-core"
"""Under this name the editor notes the nodes that ComfyUI has itself."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_RELEASE = re.compile(r"v?[0-9]{1,6}(\.[0-9]{1,6}){1,3}([-+.][0-9A-Za-z.+-]{1,40})?", re.ASCII)
_REGISTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}", re.ASCII)
_SHOWN = 4  # names in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededPack:
    """A pack that nodes of a workflow say they are from."""

    name: str  # as the workflow has it: an id of the registry, or "owner/repository"
    repository: str | None = None  # "owner/repository", where the workflow has that, too
    versions: tuple[str, ...] = ()  # each that its nodes name
    nodes: tuple[str, ...]  # their classes

    @property
    def label(self) -> str:
        """What a person is shown: nothing of a stranger's that moves a cursor."""
        return printable(self.name)[:100]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackNeeds:
    """What a workflow needs beside ComfyUI itself."""

    packs: tuple[NeededPack, ...] = ()
    unused: tuple[str, ...] = ()  # packs whose nodes are all muted or bypassed
    unknown: tuple[str, ...] = ()  # classes of nodes that name no pack, and that the server asked does not have
    unrecorded: tuple[str, ...] = ()  # classes that name no pack; no server was asked about them


def needed_packs(flat: FlatWorkflow, object_info: Mapping[str, object] | None) -> PackNeeds:
    """Return the packs a workflow needs, in the order of the file; nodes inside subgraphs count.

    Parameters
    ----------
    flat : FlatWorkflow
        The workflow with its subgraphs dissolved.
    object_info : mapping or None
        The classes of nodes that a ComfyUI has; None where none was asked.
    """
    used: dict[str, list[FlatNode]] = {}
    unused: dict[str, None] = {}
    unrecorded: dict[str, None] = {}
    for node in flat.nodes.values():
        name = node.package.name
        if name == OWN:
            continue
        if name is None:
            unrecorded |= {} if node.why_off is not None else {node.kind: None}
        elif node.why_off is None:
            used.setdefault(name, []).append(node)
        else:
            unused[printable(name)[:100]] = None
    return PackNeeds(
        packs=tuple(_pack(name, nodes) for name, nodes in used.items()),
        unused=tuple(each for each in unused if each not in used),
        unknown=() if object_info is None else tuple(each for each in unrecorded if each not in object_info),
        unrecorded=tuple(unrecorded) if object_info is None else (),
    )


def _pack(name: str, nodes: Sequence[FlatNode]) -> NeededPack:
    return NeededPack(
        name=name,
        repository=next((each.package.repository for each in nodes if each.package.repository), None),
        versions=tuple(dict.fromkeys(each.package.version for each in nodes if each.package.version)),
        nodes=tuple(dict.fromkeys(each.kind for each in nodes)),
    )


# --- where one is to be had ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Whom to ask about a pack: the registry about a version, or a repository about a commit."""

    registry_id: str | None  # None: it is known by its repository alone
    repository: str | None  # "owner/repository"
    version: str
    kind: Literal["commit", "release"]


def wanted_version(pack: NeededPack, given: str | None) -> Wanted | str:
    """Return whom to ask about a pack and for which version, or why nobody is asked, as a clause.

    >>> wanted_version(NeededPack(name="some-pack", versions=("1.0.9", "1.0.10"), nodes=("A",)), None).version
    '1.0.10'
    >>> wanted_version(NeededPack(name="../x", versions=("1.0",), nodes=("A",)), None)
    'its name is neither an id of the registry nor owner/repository'

    Parameters
    ----------
    pack : NeededPack
        As the workflow names it.
    given : str or None
        The version that the user named for it.
    """
    is_id = _REGISTRY_ID.fullmatch(pack.name) is not None
    if not is_id and not _REPOSITORY.fullmatch(pack.name):
        return "its name is neither an id of the registry nor owner/repository"
    if given is not None:
        version: str | None = given
    elif len(pack.versions) > 1:
        version = _newest(pack.versions)
    else:
        version = pack.versions[0] if pack.versions else None
    if version is None:
        names = [printable(each)[:40] for each in pack.versions]
        return (
            f"the workflow names {count(len(names), 'version')} of it ({listing(names, most=_SHOWN)})"
            if names
            else "the workflow names no version of it"
        )
    is_commit = _COMMIT.fullmatch(version) is not None
    if not is_commit and (not is_id or not _RELEASE.fullmatch(version)):
        return f"{printable(version)[:40]!r} is no {'release and no ' if is_id else ''}commit of 40 hex digits"
    named = pack.name if not is_id else pack.repository
    return Wanted(
        registry_id=pack.name if is_id else None,
        repository=named if named is not None and _REPOSITORY.fullmatch(named) else None,
        version=version,
        kind="commit" if is_commit else "release",
    )


def _newest(versions: Sequence[str]) -> str | None:
    """Return the newest of several releases; None where one is something else: commits have no order."""
    if not all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){1,3}", each, re.ASCII) for each in versions):
        return None
    return max(versions, key=lambda each: [int(part) for part in each.split(".")])


def folder_of(wanted: Wanted) -> str:
    """Return the name of a pack's folder: its id in the registry, else that of its repository, as others name it."""
    return wanted.registry_id or (wanted.repository or "").rpartition("/")[2].removesuffix(".git")


def repository_address(repository: str, github: str) -> str:
    """Return the address of "owner/repository".

    >>> repository_address("kijai/ComfyUI-KJNodes", "https://github.com/")
    'https://github.com/kijai/ComfyUI-KJNodes'
    """
    return f"{github.rstrip('/')}/{repository}"


def version_address(registry: str, wanted: Wanted) -> str:
    """Return where the registry says what a version of a pack is (docs.comfy.org, "API reference", Registry)."""
    name, version = quote(wanted.registry_id or "", safe=""), quote(wanted.version, safe="")
    return f"{registry.rstrip('/')}/nodes/{name}/versions/{version}"


def pack_address(registry: str, wanted: Wanted) -> str:
    """Return where the registry says what a pack is."""
    return f"{registry.rstrip('/')}/nodes/{quote(wanted.registry_id or '', safe='')}"


_STATES = {
    "NodeVersionStatusBanned": "the registry has banned that version",
    "NodeVersionStatusDeleted": "the registry has deleted that version",
    "NodeVersionStatusFlagged": "the registry has flagged that version for a review of its security",
}


def archive_in(answer: object, wanted: Wanted) -> tuple[str, None] | tuple[None, str]:
    """Return the address of the archive that the registry answered with, or why there is none, as a clause."""
    found = as_dict(answer)
    url, status, version = found.get("downloadUrl"), found.get("status"), found.get("version")
    if isinstance(status, str) and status in _STATES:
        return None, _STATES[status]
    if isinstance(version, str) and version != wanted.version.removeprefix("v") and version != wanted.version:
        return None, f"the registry answered about version {printable(version)[:40]}"
    if not isinstance(url, str) or not url:
        return None, "the registry names no archive of it"
    return url, None


def repository_in(answer: object, github: str) -> str | None:
    """Return the address of the repository that the registry names of a pack, on `github` where it is GitHub's.

    >>> repository_in({"repository": "https://github.com/a/b.git/"}, "http://127.0.0.1:8000")
    'http://127.0.0.1:8000/a/b'
    """
    address = as_dict(answer).get("repository")
    if not isinstance(address, str) or not address:
        return None
    plain = address.rstrip("/").removesuffix(".git")
    return plain.replace(GITHUB, github.rstrip("/"), 1) if plain.startswith(f"{GITHUB}/") else plain


# --- what a server lacks ---------------------------------------------------------------------------


def lacking_nodes(flat: FlatWorkflow, object_info: Mapping[str, object]) -> dict[str | None, tuple[str, ...]]:
    """Return the classes of nodes that a server lacks, by the pack that the workflow names; None where it names none.

    Muted and bypassed nodes are not sent to it.
    """
    found: dict[str | None, tuple[str, ...]] = {}
    for node in flat.nodes.values():
        if node.why_off is None and node.kind not in object_info:
            name = None if node.package.name is None else printable(node.package.name)[:80]
            kind = printable(node.kind)[:80]
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), kind)))
    return found


def lacking_words(lacking: Mapping[str | None, Sequence[str]]) -> str:
    """Return what `lacking_nodes` found as a clause.

    >>> lacking_words({"some-pack": ["A", "B"], None: ["C"], "comfy-core": ["D"]})
    'the custom nodes some-pack (A, B), nodes of an unknown pack (C) and nodes of a newer ComfyUI (D)'
    """
    whose = {None: "nodes of an unknown pack", OWN: "nodes of a newer ComfyUI"}
    parts = ((whose.get(name, f"the custom nodes {name}"), classes) for name, classes in lacking.items())
    return listing([f"{said} ({', '.join(classes)})" for said, classes in parts])
