"""Gives a finished tree its final name: by one rename, or file by file around what lies there already.

``main.py``, which is what makes a folder a ComfyUI, comes last: an interrupted placing is never taken for a tree.  It
waits among our records until everything else of the placing is cleared away: nobody looks for that in a whole tree.
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
from provisioner.comfyui.checkout.repository import remove_repository, why_not_ours
from provisioner.comfyui.checkout_models import CheckoutReceipt, TreeFile
from provisioner.core.errors import StorageError
from provisioner.core.models import STATE_FOLDER
from provisioner.core.units import count
from provisioner.disk.flush import flush_all
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root, is_link

PLACED_LAST = "main.py"
WAITING = Path(STATE_FOLDER, PLACED_LAST)
_FOLDER = "folder"  # in place of a file's id in the journal


def place(staging: Path, folder: Path, receipt: CheckoutReceipt) -> None:
    """Give the folder aside its final name; raises StorageError and leaves everything as it was."""
    root = tree_root(folder.parent)
    if not names_in(folder):
        root.remove_folder(folder)
        root.replace(staging, folder)
        return
    _place_around(root, staging, folder, receipt)


def folders_of_ours(folder: Path) -> frozenset[str]:
    """Return the empty folders that came with ComfyUI, as an interrupted placing or removal wrote them down."""
    receipt = read_receipt(folder)
    journal = read_object(folder / PLACING) or {}
    placed = {path for path, what in journal.items() if what == _FOLDER}
    return frozenset(placed.union(receipt.folders if receipt is not None else ()))


def _place_around(root: Root, staging: Path, folder: Path, receipt: CheckoutReceipt) -> None:
    """Move the files of a tree into a folder that holds other things; one of those is never replaced.

    The journal comes first: what an interrupted placing made is known by it, a folder without anything in it, too.
    """
    beyond = _behind_links(folder, receipt.files)
    to_move = [each for each in receipt.files if each.path not in beyond]
    _refuse_conflicts(staging, folder, to_move)
    journal = {each.path: each.id for each in to_move} | dict.fromkeys(receipt.folders, _FOLDER)
    write_json(root, folder / PLACING, journal)
    for path in receipt.folders:
        root.make_folder(folder / path, is_flushed=False)
    for each in to_move:
        target = folder / (WAITING if each.path == PLACED_LAST else each.path)
        root.make_folder(target.parent, is_flushed=False)
        root.replace(staging / each.path, target, is_flushed=False)
    _move_own(root, staging, folder)
    flush_all()
    root.remove(folder / PLACING)  # what was placed is known by the receipt now
    root.remove_tree(staging)
    root.replace(folder / WAITING, folder / PLACED_LAST)


def _move_own(root: Root, staging: Path, folder: Path) -> None:
    """Move what is not among the files: the repository and the receipt."""
    if (staging / ".git").exists():
        remove_repository(root, folder / ".git")  # of a placing that was interrupted: another one was refused
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
    receipt = read_receipt(folder)  # of an interrupted removal, or of a placing whose main.py did not come any more
    known = {each.path: each.id for each in receipt.files} if receipt is not None else {}
    known |= journal or {}
    has_git = os.path.lexists(folder / ".git")
    in_the_way = [".git"] if has_git and not _is_git_of_ours(staging, folder, journal) else []
    for each in files:
        try:
            found = disk_id(folder / each.path)
        except OSError:
            found = "unreadable"
        if found not in (None, each.id, known.get(each.path)):
            in_the_way.append(each.path)
    if in_the_way:
        raise StorageError(
            f"{folder} already holds {count(len(in_the_way), 'other file')} where ComfyUI's would go: "
            f"{', '.join(in_the_way[:5])}.",
            hint="Name an empty folder, or move those away; nothing was changed.",
            path=str(folder),
            files=in_the_way,
        )


def _is_git_of_ours(staging: Path, folder: Path, journal: object) -> bool:
    """Whether the repository in a folder is what an interrupted placing moved there, or a removal did not get to."""
    receipts = (read_receipt(staging) if journal is not None else None, read_receipt(folder))
    known = [receipt for receipt in receipts if receipt is not None]
    return any(why_not_ours(folder / ".git", receipt) is None for receipt in known)
