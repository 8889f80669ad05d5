"""One run per models root: a lock that dies with its process, and a note of who holds it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from provisioner.core.errors import StorageError
from provisioner.core.json_reader import FieldError, Fields
from provisioner.core.models import STATE_FOLDER
from provisioner.core.ports import Cancelled
from provisioner.disk.locks import hold_lock
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root, half_written
from provisioner.files.store.receipts import refuse_later_release
from provisioner.files.store.set_aside import drop_all_unfinished


@contextlib.contextmanager
def hold(root: Root, *, wait: bool, cancelled: Cancelled, notice: Callable[[str], None]) -> Iterator[None]:
    """Hold a root's lock while the block runs, and say meanwhile who does.

    Raises
    ------
    LockHeldError
        Somebody else holds it and ``wait`` is false.
    StorageError
        The lock file cannot be made, or a later release works on this root.
    KeyboardInterrupt
        Cancelled while waiting.
    """
    folder = root.folder / STATE_FOLDER
    root.make_folder(folder)
    note = folder / "lock.json"
    with hold_lock(
        root,
        folder / "lock",
        guards=root.folder,
        wait=wait,
        notice=notice,
        cancelled=cancelled,
        holder=lambda: _holder(folder),
    ):
        refuse_later_release(root.folder)
        try:
            with contextlib.suppress(StorageError):  # only a courtesy to whoever waits
                import platform  # five milliseconds that only a run that writes has to pay

                note_text = json.dumps({"pid": os.getpid(), "host": platform.node()})
                root.write_text(note, note_text, is_name_flushed=False)
            root.remove_abandoned(half_written(folder))
            drop_all_unfinished(root)
            yield
        finally:
            with contextlib.suppress(StorageError):
                root.remove(note)


def _holder(folder: Path) -> str:
    note = Fields(read_object(folder / "lock.json") or {})
    try:
        return f" (process {note.count('pid')} on {note.text('host')})"
    except FieldError:
        return ""
