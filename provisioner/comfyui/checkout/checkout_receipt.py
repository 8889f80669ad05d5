"""What is written down about a tree of ours: what was put there, where it stood before an update, how far a placing is.

All of it lies in the tree and is a claim: a path it names means nothing before it was looked at as a path, and what it
says of a file nothing before the file was read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from os.path import realpath
from pathlib import Path
from typing import Any

from provisioner.comfyui.checkout.git_tree import top_entries, tree_id
from provisioner.comfyui.checkout_models import CheckoutReceipt, RollbackPoint, TreeFile
from provisioner.core.errors import StorageError
from provisioner.core.models import STATE_FOLDER
from provisioner.core.ports import Cancelled
from provisioner.disk.locks import hold_place
from provisioner.disk.os_errors import storage_error
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root
from provisioner.disk.safe_path import complaint_about_path

RECEIPT = Path(STATE_FOLDER, "comfyui.json")
ROLLBACK_POINT = Path(STATE_FOLDER, "comfyui-before.json")
PLACING = Path(STATE_FOLDER, "comfyui-placing.json")
BACKUPS_FOLDER = Path(STATE_FOLDER, "aside")

_SCHEMA = 1
_LARGEST_JSON = 64 * 1024 * 1024  # bytes
_NOT_OURS = frozenset({".git", STATE_FOLDER})


def tree_root(tree: Path) -> Root:
    """Return what changes anything below a tree, or below the folder it is made in."""
    return Root(tree, is_arrival_kept=False)


def write_json(root: Root, path: Path, value: Mapping[str, object]) -> None:
    """Replace a small file in one step, flushed to the disk; raises StorageError."""
    root.write_text(path, json.dumps(value, indent=1) + "\n")


def write_receipt(tree: Path, receipt: CheckoutReceipt) -> None:
    """Write down what was made; raises StorageError."""
    write_json(tree_root(tree), tree / RECEIPT, receipt_value(receipt))


def receipt_value(receipt: CheckoutReceipt) -> dict[str, object]:
    """Return a receipt as JSON has it; `receipt_in` reads it."""
    value: dict[str, object] = {"schema_version": _SCHEMA}
    value |= {name: getattr(receipt, name) for name in CheckoutReceipt.__slots__}
    for name in ("entries", "files"):
        value[name] = [[each.mode, each.id, each.path] for each in getattr(receipt, name)]
    return value


def read_receipt(tree: Path) -> CheckoutReceipt | None:
    """Return the receipt a tree holds; None where there is none, or one that we cannot have written."""
    value = read_object(tree / RECEIPT, most=_LARGEST_JSON)
    return None if value is None else receipt_in(value)


def receipt_in(value: dict[str, Any]) -> CheckoutReceipt | None:
    """Return the receipt that an object of JSON holds; None for one that we cannot have written.

    Its files have to make up its tree, and every path in it has to lie in the tree and belong to ComfyUI.
    """
    if value.pop("schema_version", None) != _SCHEMA:
        return None
    try:
        for name in ("entries", "files"):
            rows = value[name]
            if not isinstance(rows, list):
                return None
            value[name] = tuple(TreeFile(mode=mode, id=id_, path=path) for mode, id_, path in rows)
        value["folders"] = tuple(map(str, value["folders"]))  # a list, or a TypeError
        value["previous_commits"] = tuple(map(str, value["previous_commits"]))
        receipt = CheckoutReceipt(**value)  # checked by what follows
        is_whole = tree_id(receipt.files) == receipt.tree and top_entries(receipt.files) == receipt.entries
        is_whole = is_whole and (receipt.tag is None or re.fullmatch(r"v?[0-9.]{5,17}", receipt.tag) is not None)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    paths = (*(each.path for each in (*receipt.files, *receipt.entries)), *receipt.folders)
    return receipt if is_whole and _are_inside(paths) else None


def _are_inside(paths: Iterable[str]) -> bool:
    return all(complaint_about_path(path) is None and _NOT_OURS.isdisjoint(path.lower().split("/")) for path in paths)


def write_rollback_point(tree: Path, rollback_point: RollbackPoint) -> None:
    """Write down where a tree stood; raises StorageError."""
    value = {name: getattr(rollback_point, name) for name in RollbackPoint.__slots__}
    write_json(tree_root(tree), tree / ROLLBACK_POINT, value)


def read_rollback_point(tree: Path) -> RollbackPoint | None:
    """Return where a tree stood before its last update; None for none, or one that we cannot have written."""
    value = read_object(tree / ROLLBACK_POINT)
    try:
        point = None if value is None else RollbackPoint(**value)  # looked at below
        if point is None or any(re.fullmatch("[0-9a-f]{40}", each) is None for each in (point.commit, point.target)):
            return None
    except TypeError:
        return None
    return point if point.branch is None or re.fullmatch(r"[^-\s][^\s:^~?*\[\\]*", point.branch) else None


# --- folders -----------------------------------------------------------------------------------


def names_in(folder: Path) -> frozenset[str] | None:
    """Return what a folder holds; None where it is not there. Raises StorageError."""
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise StorageError(f"{folder} is a file where a folder is needed.", path=str(folder)) from error
    except OSError as error:
        raise storage_error(error, folder, doing="read") from error


# --- one at a time -----------------------------------------------------------------------------


def only_one(
    folder: Path, *, wait: bool, notice: Callable[[str], None], cancelled: Cancelled = lambda: False
) -> AbstractContextManager[None]:
    """Return what holds the lock of one tree, however its path is spelled; entering raises LockHeldError."""
    place = realpath(folder)
    return hold_place("comfyui-", place, guards=folder, wait=wait, notice=notice, cancelled=cancelled)
