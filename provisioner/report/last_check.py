"""The state at the last full check of a models folder, kept with the files: ``<models root>/.klein-setup/proven.json``.

It moves with the drive, as the receipt does.  `changes` defines its content; here it is read, with a size limit, and
written so that no crash leaves half of it.
"""

from __future__ import annotations

import json
from pathlib import Path

from provisioner.core.models import STATE_FOLDER
from provisioner.disk.root import Root
from provisioner.report.changes import CheckedState, checked_state_document, parse_checked_state

NAME = "proven.json"
LARGEST_STATE = 1024 * 1024
"""Bytes.  A real one has about 2 kB; more is not read into memory."""


def last_check_path(models: Path) -> Path:
    """Return the path of the state of a models folder."""
    return models / STATE_FOLDER / NAME


def read_last_check(models: Path) -> tuple[CheckedState | None, str | None]:
    """Return the state at the last full check, or None with the reason why the file cannot be used.

    Returns
    -------
    tuple of CheckedState or None, str or None
        ``(None, None)`` where there is no file: a first run is no problem.
    """
    path = last_check_path(models)
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST_STATE + 1)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{path} cannot be read ({error.strerror or error})"
    if len(data) > LARGEST_STATE:
        return None, f"{path} is larger than {LARGEST_STATE:,} bytes"
    try:
        state, reason = parse_checked_state(data.decode("utf-8"))
    except UnicodeDecodeError:
        return None, f"{path} cannot be used: it is not UTF-8"
    return state, None if reason is None else f"{path} cannot be used: {reason}"


def write_last_check(root: Root, state: CheckedState) -> Path:
    """Write a state of a models root as the one of the last full check, durably; return its path.

    Raises
    ------
    StorageError
        The folder cannot be written to; what was there is still there.
    """
    path = last_check_path(root.folder)
    root.write_text(path, json.dumps(checked_state_document(state), indent=1, allow_nan=False) + "\n")
    return path
