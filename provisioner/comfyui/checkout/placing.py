"""Gives a finished tree its final name: by one rename, or file by file around what lies there already.

``main.py``, which is what makes a folder a ComfyUI, comes last, so an interrupted placing is never taken for a tree.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import (
    PLACING,
    disk_error,
    flush_folder,
    make_folder,
    move,
    names_in,
    remove_tree,
    write_json,
)
from provisioner.comfyui.checkout.git_tree import disk_id
from provisioner.comfyui.checkout_models import TreeFile
from provisioner.core.errors import StorageError
from provisioner.core.models import STATE_FOLDER
from provisioner.core.units import count
from provisioner.disk.read_json import read_object

_LAST = "main.py"


def place(staging: Path, folder: Path, files: Sequence[TreeFile]) -> None:
    """Give the folder aside its final name; raises StorageError and leaves everything as it was."""
    if not names_in(folder):
        if folder.exists():
            try:
                folder.rmdir()
            except OSError as error:
                raise disk_error(error, folder, doing="replace") from error
        move(staging, folder)
        flush_folder(folder.parent)
        return
    _place_around(staging, folder, files)


def _place_around(staging: Path, folder: Path, files: Sequence[TreeFile]) -> None:
    """Move the files of a tree into a folder that holds other things; one of those is never replaced."""
    beyond = _behind_links(folder, files)
    to_move = [each for each in files if each.path not in beyond]
    _refuse_conflicts(folder, to_move)
    write_json(folder / PLACING, {each.path: each.id for each in to_move})
    for each in sorted(to_move, key=lambda file: file.path == _LAST):
        if each.path == _LAST:
            _move_own(staging, folder)
            flush_folder(folder)
        make_folder((folder / each.path).parent)
        move(staging / each.path, folder / each.path)
    flush_folder(folder)
    try:
        (folder / PLACING).unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, folder / PLACING, doing="remove") from error
    remove_tree(staging)


def _move_own(staging: Path, folder: Path) -> None:
    """Move what is not among the files: the repository, the receipt, empty folders."""
    if (staging / ".git").exists():
        remove_tree(folder / ".git")  # of a placing that was interrupted: a stranger's was refused
        move(staging / ".git", folder / ".git")
    for state in sorted((staging / STATE_FOLDER).glob("*")):
        make_folder(folder / STATE_FOLDER)
        move(state, folder / STATE_FOLDER / state.name)


def _behind_links(folder: Path, files: Sequence[TreeFile]) -> frozenset[str]:
    """Return the files whose folder is a link here: what is behind it is somebody's, and stays as it is."""
    found = set()
    for each in files:
        if any((folder / parent).is_symlink() for parent in Path(each.path).parents if parent != Path()):
            found.add(each.path)
    return frozenset(found)


def behind_links(folder: Path, files: Sequence[TreeFile]) -> tuple[str, ...]:
    """Return the files that are not placed because a folder of theirs is a link."""
    return tuple(sorted(_behind_links(folder, files)))


def _refuse_conflicts(folder: Path, files: Sequence[TreeFile]) -> None:
    """Raise where a file of another content is in the way, or somebody's repository."""
    journal = read_object(folder / PLACING)
    in_the_way = [".git"] if journal is None and os.path.lexists(folder / ".git") else []
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
