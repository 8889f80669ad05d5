"""The disk under a tree: what its refusals mean, small files, folders that change names, one run at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from provisioner.comfyui.checkout.git_tree import top_entries, tree_id
from provisioner.comfyui.checkout_models import CheckoutReceipt, RollbackPoint, TreeFile
from provisioner.core.errors import StorageError
from provisioner.core.models import STATE_FOLDER
from provisioner.disk.locks import hold_lock, lock_among_temporary_files
from provisioner.disk.os_errors import storage_error
from provisioner.disk.read_json import read_object

RECEIPT = Path(STATE_FOLDER, "comfyui.json")
ROLLBACK_POINT = Path(STATE_FOLDER, "comfyui-before.json")
PLACING = Path(STATE_FOLDER, "comfyui-placing.json")
BACKUPS_FOLDER = Path(STATE_FOLDER, "aside")

_SCHEMA = 1
_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)  # virus scanners on Windows; a git that outlived the run it belonged to


def disk_error(error: OSError, path: Path, *, doing: str) -> StorageError:
    """Return the error of ours that a refusal of the disk amounts to."""
    return storage_error(error, path, doing=doing, is_arrival_kept=False)


# --- small files -------------------------------------------------------------------------------


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace a small file in one step, flushed to the disk; raises StorageError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            json.dump(value, stream, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path, doing="write") from error


def write_receipt(tree: Path, receipt: CheckoutReceipt) -> None:
    """Write down what was made; raises StorageError."""
    value: dict[str, object] = {"schema_version": _SCHEMA}
    value |= {name: getattr(receipt, name) for name in CheckoutReceipt.__slots__}
    for name in ("entries", "files"):
        value[name] = [[each.mode, each.id, each.path] for each in getattr(receipt, name)]
    write_json(tree / RECEIPT, value)


def read_receipt(tree: Path) -> CheckoutReceipt | None:
    """Return the receipt a tree holds; None where there is none, or where its files do not make up its tree."""
    value = read_object(tree / RECEIPT)
    if value is None or value.pop("schema_version", None) != _SCHEMA:
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
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    return receipt if is_whole else None


def write_rollback_point(tree: Path, rollback_point: RollbackPoint) -> None:
    """Write down where a tree stood; raises StorageError."""
    write_json(tree / ROLLBACK_POINT, {name: getattr(rollback_point, name) for name in RollbackPoint.__slots__})


def read_rollback_point(tree: Path) -> RollbackPoint | None:
    """Return where a tree stood before its last update, or None."""
    value = read_object(tree / ROLLBACK_POINT)
    try:
        return None if value is None else RollbackPoint(**value)  # our own file
    except TypeError:
        return None


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
        raise disk_error(error, folder, doing="read") from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder, doing="create") from error


def remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it, read-only files (git's objects) included; a link only itself.

    Raises
    ------
    StorageError
        Something in it could not be removed, not even after some seconds.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            if folder.is_symlink() or folder.is_file():
                folder.unlink()
            elif folder.exists():
                _allow_removal(folder)
                shutil.rmtree(folder)
            return
        except OSError as error:
            if pause_s is None:
                raise disk_error(error, folder, doing="remove") from error
            time.sleep(pause_s)


def _allow_removal(folder: Path) -> None:
    """Take read-only marks away: Windows removes no file that has one, POSIX nothing in a folder that has one."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *(files if sys.platform == "win32" else ())):
            path = Path(parent, name)
            if not path.is_symlink() and not os.access(path, os.W_OK):
                path.chmod(stat.S_IRWXU)


def move(source: Path, destination: Path, *, platform: str = sys.platform) -> None:
    """Give a file or folder another name, in one step; raises StorageError and leaves both as they were."""
    for pause_s in (*_PAUSES_S, None) if platform == "win32" else (None,):
        try:
            source.replace(destination)
            return
        except PermissionError as error:
            if pause_s is None:
                raise disk_error(error, destination, doing="write") from error
            time.sleep(pause_s)
        except OSError as error:
            raise disk_error(error, destination, doing="write") from error


def flush_all() -> None:
    """Hand everything to the disk: thousands of files, many written by another program, in one call."""
    if sys.platform != "win32":
        os.sync()


def flush_folder(folder: Path) -> None:
    """Hand a folder's list of names to the disk, where the system has a call for it."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse; the rename itself has happened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- one at a time -----------------------------------------------------------------------------


def only_one(folder: Path, *, wait: bool, notice: Callable[[str], None]) -> AbstractContextManager[None]:
    """Return what holds the lock of one tree, however its path is spelled; entering raises LockHeldError."""
    lock = lock_among_temporary_files("comfyui-", os.path.realpath(folder))
    return hold_lock(lock, guards=folder, wait=wait, notice=notice)
