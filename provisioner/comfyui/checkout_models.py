"""The values of a ComfyUI tree: what a folder contains, what to do with it, and what was installed in it.

Commits and trees are git ids of 40 hex digits.  Nothing here reads a disk or starts git.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CheckoutKind = Literal["git", "source", "portable", "base", "models", "empty", "other"]
"""A checkout with its ``.git``; the same files without; the Windows portable build; a base folder (Desktop,
``--base-directory``); a models folder by itself; nothing yet; something else."""

PythonOrigin = Literal["portable", ".venv", "venv", "env", "beside", "active"]
"""Where a tree's Python was found: in the portable build, in the tree, beside the tree, or the one in use (conda)."""

Way = Literal["git", "archive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFile:
    """One file of a tree, as in git; the id of a link is that of the text of its target."""

    path: str  # with forward slashes
    mode: str  # "100644"; of a top-level folder, "40000"
    id: str  # git's SHA-1 of the content, 40 hex digits


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutReceipt:
    """What was installed in a folder: a claim, which can be checked, since the files together must give the tree."""

    version: str
    commit: str
    tree: str
    source: str  # address without credentials, or a path
    way: Way
    made_at: str  # ISO time, UTC
    entries: tuple[TreeFile, ...]  # the top level, folders with the id of their contents
    files: tuple[TreeFile, ...]  # every file
    folders: tuple[str, ...] = ()  # empty folders that were created too
    previous_commits: tuple[str, ...] = ()  # the commits before our updates
    tag: str | None = None  # whose commit it is, "v0.46.0", where the repository was asked for it


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPoint:
    """The state of a tree before an update."""

    commit: str
    branch: str | None  # None: no branch was checked out
    version: str | None
    target: str  # the commit the update goes to
    started_at: str  # ISO time, UTC
    is_finished: bool = False


PackKind = Literal["git", "folder", "file", "link"]
"""A git checkout, a folder without git, a single file, or something behind a link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePack:
    """One of the custom nodes of a tree.  None means: not known, or does not apply."""

    name: str  # of its file or folder below ``custom_nodes``
    kind: PackKind
    commit: str | None = None
    branch: str | None = None
    version: str | None = None  # of its pyproject.toml
    url: str | None = None  # where it was cloned from, without a login
    has_local_changes: bool | None = None
    is_interrupted: bool = False  # a move of ours did not come to its end; the next one takes it back first
    why_not_moved: str | None = None  # why it cannot be moved to another commit, as a clause


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReceipt:
    """A pack of custom nodes that klein-setup installed, as this user's own state folder has it."""

    name: str  # of its folder below ``custom_nodes``
    archive_sha256: str | None  # None: it came with git
    requirements: tuple[str, ...]  # lines that were installed for it
    checkout: CheckoutReceipt  # its files; of an archive without a commit


PackState = Literal["absent", "right", "kept"]
"""Not there; there as the manifest pins it; there, and something else: it stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPack:
    """What is in the place of a pack that a manifest names."""

    state: PackState
    reason: str = ""  # why it stays, as a clause
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackCheck:
    """How an installed pack differs from what was installed; nothing in it means: not at all."""

    receipt: PackReceipt
    is_gone: bool = False
    changed: tuple[str, ...] = ()  # files with other content
    missing: tuple[str, ...] = ()  # files that are gone: deleted, or removed by a run that was killed
    added: tuple[str, ...] = ()  # files that klein-setup did not put there
    of_git: str | None = None  # what its repository holds of somebody else's

    @property
    def is_whole(self) -> bool:
        """Whether all that was installed is there, byte for byte."""
        return not (self.is_gone or self.changed or self.missing)

    @property
    def is_ours_alone(self) -> bool:
        """Whether nothing of somebody else's is in it, so that what is left can be removed."""
        return not (self.is_gone or self.changed or self.added or self.of_git)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyPython:
    """A Python that belongs to a tree; lists of them have the likeliest first."""

    path: Path
    origin: PythonOrigin
    is_there: bool  # False: a broken link


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyCheckout:
    """What a folder contains.  None means: not known, or does not apply."""

    given: Path
    kind: CheckoutKind
    tree: Path | None = None  # the folder with main.py
    version: str | None = None  # "0.33.0"
    commit: str | None = None
    branch: str | None = None
    has_git: bool = False  # the tree has a ``.git`` of its own
    local_changes: tuple[str, ...] | None = None  # changed files that git tracks; None where git was not run
    pythons: tuple[ComfyPython, ...] = ()
    custom_nodes: tuple[str, ...] = ()
    receipt: CheckoutReceipt | None = None  # of what we made here
    rollback_point: RollbackPoint | None = None
    why_unknown: str | None = None  # why `local_changes` is not known: "git is not installed"

    @property
    def has_local_changes(self) -> bool | None:
        """Whether files of ComfyUI itself were changed; None where that is not known."""
        return None if self.local_changes is None else bool(self.local_changes)

    @property
    def python(self) -> Path | None:
        """The Python to start it with, or None."""
        return next((each.path for each in self.pythons if each.is_there), None)


CheckoutAction = Literal["clone", "update", "none", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutPlan:
    """What to do with ComfyUI itself, and why."""

    action: CheckoutAction
    reason: str  # a clause for "...; because": "there is no ComfyUI yet"
    hint: str | None = None  # what to do, where the action is "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Something that was not removed, and why."""

    path: str  # relative to the tree
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What removing a tree did, or would do."""

    removed_files: int
    removed_bytes: int
    kept: tuple[Kept, ...] = ()
    is_folder_gone: bool = False
