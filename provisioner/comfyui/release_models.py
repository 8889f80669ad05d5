"""The values of the ComfyUI table: releases with their commits, the oldest that knows Klein, the nodes our graph uses.

Commits are 40 hex digits and decide; a version is only a name for one.  Nothing here reads a file or asks a server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from provisioner.core.models import Download

NodeUse = Literal["always", "distilled", "guided", "whole-decode", "tiled-decode"]
"""When our graph has a node: always, at guidance 1, at any other, with one of the two ways to decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfySource:
    """Where facts were read."""

    id: str
    what: str
    read_on: str  # ISO date


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyRelease:
    """A release of ComfyUI."""

    version: str  # "0.33.0"
    commit: str  # 40 lower-case hex digits
    tree: str | None = None  # git's hash over every file of that commit, which proves an unpacked archive
    released: str | None = None  # ISO date
    note: str | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionBound:
    """A version that something starts with, and why."""

    version: str
    because: str  # half a sentence: it is shown
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNeed:
    """A node class our graph uses, with the inputs it gives it."""

    class_type: str  # "UNETLoader"
    inputs: tuple[str, ...]
    use: NodeUse = "always"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyTable:
    """What is known of ComfyUI's releases and of what a Klein picture needs of them."""

    schema_version: int
    repository: str  # https address, without ".git" and without a slash at the end
    pinned: ComfyRelease  # what is installed where nothing is there yet; its tree is always known
    releases: tuple[ComfyRelease, ...]  # newest first, the pinned one among them
    download: Download  # of a release: an estimate
    minimum: VersionBound  # below it Klein does not load
    advised: VersionBound  # below it Klein loads, with the fault that ``because`` tells
    nodes: tuple[NodeNeed, ...]
    sources: tuple[ComfySource, ...]

    def release(self, version: str) -> ComfyRelease | None:
        """Return the release of that version, or None."""
        return next((each for each in self.releases if each.version == version), None)
