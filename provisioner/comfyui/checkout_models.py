"""The values of a ComfyUI tree: what a folder was found to be, what is to be done with it, what we made of it.

Commits and trees are git's ids, 40 hex digits.  Nothing here reads a disk or starts git.
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
    """One file of a tree, as git names it; the id of a link is that of its target's text."""

    path: str  # with forward slashes
    mode: str  # "100644"; of a top-level folder, "40000"
    id: str  # SHA-1 git gives the content, 40 hex digits


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutReceipt:
    """What we put somewhere: a claim, but one that is either whole or worthless, since its files make up its tree."""

    version: str
    commit: str
    tree: str
    source: str  # address without credentials, or a path
    way: Way
    made_at: str  # ISO time, UTC
    entries: tuple[TreeFile, ...]  # what lies at the top, folders with the id of all they hold
    files: tuple[TreeFile, ...]  # every file
    folders: tuple[str, ...] = ()  # empty folders we made beside them
    previous_commits: tuple[str, ...] = ()  # that updates of ours came from


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPoint:
    """Where a tree stood before an update."""

    commit: str
    branch: str | None  # None: no branch was checked out
    version: str | None
    target: str  # the commit the update goes to
    started_at: str  # ISO time, UTC
    is_finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyPython:
    """A Python that belongs to a tree, likeliest first in a list of them."""

    path: Path
    origin: PythonOrigin
    is_there: bool  # False: a link that leads nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyCheckout:
    """What a folder was found to be.  None means: could not be learnt, or does not apply."""

    given: Path
    kind: CheckoutKind
    tree: Path | None = None  # the folder with main.py
    version: str | None = None  # "0.33.0"
    commit: str | None = None
    branch: str | None = None
    has_git: bool = False  # the tree has a ``.git`` of its own
    local_changes: tuple[str, ...] | None = None  # paths git tracks and finds changed; None where git was not asked
    pythons: tuple[ComfyPython, ...] = ()
    custom_nodes: tuple[str, ...] = ()
    receipt: CheckoutReceipt | None = None  # of what we made here
    rollback_point: RollbackPoint | None = None
    why_unknown: str | None = None  # why `local_changes` is not known: "git is not installed"

    @property
    def has_local_changes(self) -> bool | None:
        """Whether files of ComfyUI itself were changed; None where nobody could tell."""
        return None if self.local_changes is None else bool(self.local_changes)

    @property
    def python(self) -> Path | None:
        """The Python it is started with, or None."""
        return next((each.path for each in self.pythons if each.is_there), None)


CheckoutAction = Literal["clone", "update", "none", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutPlan:
    """What is to be done about ComfyUI itself, with the reason."""

    action: CheckoutAction
    reason: str  # a clause for "...; because": "there is no ComfyUI yet"
    hint: str | None = None  # what to do, where the action is "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Something that was left where it is, with the reason."""

    path: str  # relative to the tree
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What came of removing a tree, or what would come of it."""

    removed_files: int
    removed_bytes: int
    kept: tuple[Kept, ...] = ()
    is_folder_gone: bool = False
