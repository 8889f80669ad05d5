"""One run per models root: a lock that dies with its process, and a note of who holds it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from provisioner.adapters.store.durable import make_folder, storage_error
from provisioner.errors import LockHeldError
from provisioner.models import STATE_FOLDER
from provisioner.ports import Cancelled

_POLL_S = 0.2


@contextlib.contextmanager
def hold(root: Path, *, wait: bool, cancelled: Cancelled, notice: Callable[[str], None]) -> Iterator[None]:
    """Hold a root's lock while the block runs.

    ``flock`` on POSIX, ``msvcrt`` on Windows (filelock): the system lets go when the process ends, however it ends.

    Raises
    ------
    LockHeldError
        Somebody else holds it and ``wait`` is false.
    StorageError
        The lock file cannot be made.
    KeyboardInterrupt
        Cancelled while waiting.
    """
    from filelock import FileLock, Timeout

    folder = root / STATE_FOLDER
    make_folder(folder)
    lock = FileLock(folder / "lock")
    told = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            holder = _holder(folder)
            if not wait:
                raise LockHeldError(
                    f"Another run is working on {root}{holder}.",
                    hint="Wait for it to end, or leave --no-wait out and this run waits by itself.",
                    path=str(root),
                ) from None
            if not told:
                notice(f"Waiting for another run that works on {root}{holder}.")
                told = True
            if cancelled():
                raise KeyboardInterrupt from None
            time.sleep(_POLL_S)
        except OSError as error:
            raise storage_error(error, folder / "lock") from error
    note = folder / "lock.json"
    try:
        with contextlib.suppress(OSError):  # only a courtesy to whoever waits
            import platform  # five milliseconds that only a run that writes has to pay

            note.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        note = json.loads((folder / "lock.json").read_text(encoding="utf-8"))
        return f" (process {int(note['pid'])} on {note['host']!s})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
