"""One run per models root: a lock that dies with its process, and a note of who holds it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from provisioner.core.json_reader import FieldError, Fields
from provisioner.core.models import STATE_FOLDER
from provisioner.core.ports import Cancelled
from provisioner.disk.atomic import half_written, make_folder
from provisioner.disk.locks import hold_lock
from provisioner.disk.read_json import read_object
from provisioner.files.store.set_aside import drop_all_unfinished

_WRITTEN_WITHIN_S = 60.0  # a record has some kilobytes


@contextlib.contextmanager
def hold(root: Path, *, wait: bool, cancelled: Cancelled, notice: Callable[[str], None]) -> Iterator[None]:
    """Hold a root's lock while the block runs, and say meanwhile who does.

    Raises
    ------
    LockHeldError
        Somebody else holds it and ``wait`` is false.
    StorageError
        The lock file cannot be made.
    KeyboardInterrupt
        Cancelled while waiting.
    """
    folder = root / STATE_FOLDER
    make_folder(folder)
    note = folder / "lock.json"
    with hold_lock(
        folder / "lock", guards=root, wait=wait, notice=notice, cancelled=cancelled, holder=lambda: _holder(folder)
    ):
        try:
            with contextlib.suppress(OSError):  # only a courtesy to whoever waits
                import platform  # five milliseconds that only a run that writes has to pay

                note.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
            _sweep(folder)
            drop_all_unfinished(root)
            yield
        finally:
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove records that a run was killed over, half written; not one that another program writes just now."""
    for path in half_written(folder):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _WRITTEN_WITHIN_S:
                path.unlink()


def _holder(folder: Path) -> str:
    note = Fields(read_object(folder / "lock.json") or {})
    try:
        return f" (process {note.count('pid')} on {note.text('host')})"
    except FieldError:
        return ""
