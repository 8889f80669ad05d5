"""The state at the last full check of a models folder, kept with the files: ``<models root>/.klein-setup/proven.json``.

It moves with the drive, as the receipt does.  `changes` defines its content; here it is read, with a size limit, and
written so that no crash leaves half of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from provisioner.core.models import STATE_FOLDER
from provisioner.disk.os_errors import storage_error
from provisioner.report.changes import Snapshot, parse_snapshot, snapshot_document

NAME = "proven.json"
LARGEST_SNAPSHOT = 1024 * 1024
"""Bytes.  A real one has about 2 kB; more is not read into memory."""


Move = Callable[[Path, Path], object]
"""Gives a file another name in one step; raises OSError."""


def snapshot_path(models: Path) -> Path:
    """Return the path of the snapshot of a models folder."""
    return models / STATE_FOLDER / NAME


def read_snapshot(models: Path) -> tuple[Snapshot | None, str | None]:
    """Return the state at the last full check, or None with the reason why the file cannot be used.

    Returns
    -------
    tuple of Snapshot or None, str or None
        ``(None, None)`` where there is no file: a first run is no problem.
    """
    path = snapshot_path(models)
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST_SNAPSHOT + 1)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{path} cannot be read ({error.strerror or error})"
    if len(data) > LARGEST_SNAPSHOT:
        return None, f"{path} is larger than {LARGEST_SNAPSHOT:,} bytes"
    try:
        snapshot, reason = parse_snapshot(data.decode("utf-8"))
    except UnicodeDecodeError:
        return None, f"{path} cannot be used: it is not UTF-8"
    return snapshot, None if reason is None else f"{path} cannot be used: {reason}"


def write_snapshot(models: Path, snapshot: Snapshot, *, move: Move = Path.replace) -> Path:
    """Write a state as the one of the last full check, durably; return its path.

    Parameters
    ----------
    models : Path
        The models root.
    snapshot : Snapshot
        What was verified just now.
    move : callable
        Gives the finished file its name.

    Raises
    ------
    StorageError
        The folder cannot be written to; what was there is still there.
    """
    path = snapshot_path(models)
    try:
        _write(path, snapshot_document(snapshot), move)
    except OSError as error:
        raise storage_error(error, path) from error
    return path


def _write(path: Path, document: Mapping[str, object], move: Move) -> None:
    """Put the whole document under its name in one step: the bytes are on the disk before the name is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{NAME}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            json.dump(document, stream, indent=1, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Hand the new name to the disk where the system has a call for it; the replace itself has happened."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse fsync on a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
