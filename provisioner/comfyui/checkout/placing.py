"""Gives a finished tree its final name: by one rename, or file by file around what lies there already.

``main.py``, which is what makes a folder a ComfyUI, comes last, so an interrupted placing is never taken for a tree.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import (
    PLACING,
    names_in,
    read_receipt,
    tree_root,
    write_json,
)
from provisioner.comfyui.checkout.git_tree import disk_id
from provisioner.comfyui.checkout.repository import why_not_ours
from provisioner.comfyui.checkout_models import TreeFile
from provisioner.core.errors import StorageError
from provisioner.core.models import STATE_FOLDER
from provisioner.core.units import count
from provisioner.disk.flush import flush_all
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root, is_link

_LAST = "main.py"


def place(staging: Path, folder: Path, files: Sequence[TreeFile]) -> None:
    """Give the folder aside its final name; raises StorageError and leaves everything as it was."""
    root = tree_root(folder.parent)
    if not names_in(folder):
        root.remove_folder(folder)
        root.replace(staging, folder)
        return
    _place_around(root, staging, folder, files)


def _place_around(root: Root, staging: Path, folder: Path, files: Sequence[TreeFile]) -> None:
    """Move the files of a tree into a folder that holds other things; one of those is never replaced."""
    beyond = _behind_links(folder, files)
    to_move = [each for each in files if each.path not in beyond]
    _refuse_conflicts(staging, folder, to_move)
    write_json(root, folder / PLACING, {each.path: each.id for each in to_move})
    for each in sorted(to_move, key=lambda file: file.path == _LAST):
        if each.path == _LAST:
            _move_own(root, staging, folder)
            flush_all()
        root.make_folder((folder / each.path).parent, is_flushed=False)
        root.replace(staging / each.path, folder / each.path, is_flushed=each.path == _LAST)
    root.remove(folder / PLACING)
    root.remove_tree(staging)


def _move_own(root: Root, staging: Path, folder: Path) -> None:
    """Move what is not among the files: the repository, the receipt, empty folders."""
    if (staging / ".git").exists():
        root.remove_tree(folder / ".git")  # of a placing that was interrupted: another one was refused
        root.replace(staging / ".git", folder / ".git")
    for state in sorted((staging / STATE_FOLDER).glob("*")):
        root.make_folder(folder / STATE_FOLDER)
        root.replace(state, folder / STATE_FOLDER / state.name)


def _behind_links(folder: Path, files: Sequence[TreeFile]) -> frozenset[str]:
    """Return the files whose folder is a link here: what is behind it is somebody's, and stays as it is."""
    found = set()
    for each in files:
        if is_behind_link(folder, each.path):
            found.add(each.path)
    return frozenset(found)


def is_behind_link(folder: Path, path: str) -> bool:
    """Whether one of the folders between a tree and a path in it is a link."""
    return any(is_link(folder / parent) for parent in Path(path).parents if parent != Path())


def behind_links(folder: Path, files: Sequence[TreeFile]) -> tuple[str, ...]:
    """Return the files that are not placed because a folder of theirs is a link."""
    return tuple(sorted(_behind_links(folder, files)))


def _refuse_conflicts(staging: Path, folder: Path, files: Sequence[TreeFile]) -> None:
    """Raise where a file of another content is in the way, or a repository with anything in it that we do not bring."""
    journal = read_object(folder / PLACING)
    in_the_way = [".git"] if os.path.lexists(folder / ".git") and not _is_of_placing(staging, folder, journal) else []
    for each in files:
        try:
            found = disk_id(folder / each.path)
        except OSError:
            found = "unreadable"
        if found not in (None, each.id, (journal or {}).get(each.path)):
            in_the_way.append(each.path)
    if in_the_way:
        raise StorageError(
            f"{folder} already holds {count(len(in_the_way), 'other file')} where ComfyUI's would go: "
            f"{', '.join(in_the_way[:5])}.",
            hint="Name an empty folder, or move those away; nothing was changed.",
            path=str(folder),
            files=in_the_way,
        )


def _is_of_placing(staging: Path, folder: Path, journal: object) -> bool:
    """Whether the repository in a folder is what an interrupted placing moved there."""
    receipts = (read_receipt(staging), read_receipt(folder))
    known = [receipt for receipt in receipts if receipt is not None]
    return journal is not None and any(why_not_ours(folder / ".git", receipt) is None for receipt in known)
