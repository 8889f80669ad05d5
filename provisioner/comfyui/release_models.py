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
class ComfyRelease:
    """A release of ComfyUI."""

    version: str  # "0.33.0"
    commit: str  # 40 lower-case hex digits
    tree: str | None = None  # git's hash over every file of that commit, which verifies an unpacked archive
    released: str | None = None  # ISO date
    note: str | None = None
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
    """Releases that are known to fail on some machines, and what works there.  None: does not matter."""

    id: str
    since: str  # the first release that fails
    before: str | None = None  # the first that does not, as far as known
    vendor: Vendor | None = None  # of a GPU
    os: OperatingSystem | None = None
    is_wsl: bool = False  # only in WSL
    min_sm: int | None = None  # compute capability of an NVIDIA GPU, 120 for 12.0
    architectures: tuple[str, ...] = ()  # of an AMD GPU, beginnings: "gfx11"
    min_gpus: int | None = None  # of that vendor
    max_memory_gb: int | None = None  # RAM
    symptom: str  # a clause, shown to the user
    good: str  # what works: a release, or an option
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

    def release(self, version: str) -> ComfyRelease | None:
        """Return the release of that version, or None."""
        return next((each for each in self.releases if each.version == version), None)
