"""The values of the ComfyUI table: releases with their commits, the oldest that loads Klein, the nodes our graph uses.

Commits are 40 hex digits and identify a release; a version is only a name for one.  Nothing here reads a file or asks
a server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from provisioner.core.models import Download, OperatingSystem, Vendor
from provisioner.manifest.table_source import TableSource

NodeUse = Literal["always", "distilled", "guided", "whole-decode", "tiled-decode"]
"""When our graph uses a node: always, at guidance 1, at any other, with one of the two ways to decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedCommit:
    """A commit to bring, whatever program it is of, and what sentences call it."""

    what: str  # "ComfyUI 0.33.0"
    commit: str  # 40 lower-case hex digits
    tree: str | None = None  # git's hash over every file of it, where that is known beforehand
    version: str = "unknown"
    tag: str | None = None  # under which a server that gives no commit by its id may have it
    elsewhere: str = "Name a complete and current mirror of ComfyUI with --comfyui-source."  # to do if it is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyRelease:
    """A release of ComfyUI."""

    version: str  # "0.33.0"
    commit: str  # 40 lower-case hex digits
    tree: str | None = None  # git's hash over every file of that commit, which verifies an unpacked archive
    released: str | None = None  # ISO date
    note: str | None = None
    sources: tuple[str, ...] = ()
    tag: str | None = None
    """``"v0.46.0"`` where a repository was asked for the commit; None: from the table, or no release."""

    @property
    def wanted(self) -> WantedCommit:
        """What is to be brought of it."""
        return WantedCommit(
            what=f"ComfyUI {self.version}",
            commit=self.commit,
            tree=self.tree,
            version=self.version,
            tag=f"refs/tags/{self.tag or f'v{self.version}'}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRelease:
    """A release that exists; its commit was not read."""

    version: str
    released: str  # ISO date
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionBound:
    """The first version with some property, and why it is needed."""

    version: str
    because: str  # a clause, shown to the user
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNeed:
    """A node class our graph uses, and the inputs the graph sets."""

    class_type: str  # "UNETLoader"
    inputs: tuple[str, ...]
    use: NodeUse = "always"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBad:
    """A combination that is known to fail: all of it has to be there.  None, 0 or nothing: does not matter."""

    id: str
    app: Literal["comfyui", "diffusers"] = "comfyui"
    since: str | None = None  # the first release of ComfyUI that fails
    before: str | None = None  # the first that does not, as far as known
    is_unreleased: bool = False  # only a commit that is no release's, although it reports such a version
    packages: tuple[str, ...] = ()  # installed, each as a requirement: "comfy-aimdo>=0.6.0"
    outdated: str | None = None  # a package that is there, and not as ComfyUI's requirements.txt wants it
    torch_tags: tuple[str, ...] = ()  # beginnings of the torch build's local version: "cu130", "rocm7.14.1"
    python: str | None = None  # a version specifier: "==3.13.12"
    driver: str | None = None  # of NVIDIA, a version specifier: ">=610,<611"
    custom_nodes: tuple[str, ...] = ()  # one of these folders of custom_nodes, in any case of letters
    vendor: Vendor | None = None  # of a GPU
    os: OperatingSystem | None = None
    is_wsl: bool = False  # only in WSL
    sm: tuple[int, ...] = ()  # compute capabilities of an NVIDIA GPU, 120 for 12.0
    max_sm: int | None = None  # the highest such number that fails
    architectures: tuple[str, ...] = ()  # of an AMD GPU, beginnings: "gfx11"
    min_gpus: int | None = None  # of that vendor
    max_vram_gb: int | None = None  # of a GPU, as it is sold
    max_memory_gb: int | None = None  # RAM
    symptom: str  # a clause, shown to the user
    good: str | None = None  # what works: a release, a build
    option: str | None = None  # of ComfyUI, with which it works: "--disable-pinned-memory"
    requirement: str | None = None  # with which pip takes a version that works: "av>=17.0.0"
    threads: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyTable:
    """What is known about ComfyUI's releases and what Klein needs of them."""

    schema_version: int
    repository: str  # https address, without ".git" and without a slash at the end
    pinned: ComfyRelease  # the release of a new installation; its tree is always known
    releases: tuple[ComfyRelease, ...]  # newest first, including the pinned one
    download: Download  # of a release: an estimate
    minimum: VersionBound  # below it Klein does not load
    advised: VersionBound  # below it Klein loads, with the fault in ``because``
    nodes: tuple[NodeNeed, ...]
    sources: tuple[TableSource, ...]
    known_bad: tuple[KnownBad, ...] = ()
    newest_seen: SeenRelease | None = None  # where it is newer than all of `releases`

    def release(self, version: str) -> ComfyRelease | None:
        """Return the release of that version, or None."""
        return next((each for each in self.releases if each.version == version), None)
