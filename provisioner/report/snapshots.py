"""The state at the last full check of a models folder, kept with the files: ``<models root>/.klein-setup/proven.json``.

It moves with the drive, as the receipt does.  `changes` defines its content; here it is read, with a size limit, and
written so that no crash leaves half of it.
"""

from __future__ import annotations

import json
from pathlib import Path

from provisioner.core.models import STATE_FOLDER
from provisioner.disk.root import Root
from provisioner.report.changes import Snapshot, parse_snapshot, snapshot_document

NAME = "proven.json"
LARGEST_SNAPSHOT = 1024 * 1024
"""Bytes.  A real one has about 2 kB; more is not read into memory."""


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


def write_snapshot(root: Root, snapshot: Snapshot) -> Path:
    """Write a state of a models root as the one of the last full check, durably; return its path.

    Raises
    ------
    StorageError
        The folder cannot be written to; what was there is still there.
    """
    path = snapshot_path(root.folder)
    root.write_text(path, json.dumps(snapshot_document(snapshot), indent=1, allow_nan=False) + "\n")
    return path
