"""One run at a time: a lock that dies with its process, waited for or refused in the same words everywhere.

It knows files that lock, and nothing of what they guard: the other adapters stand on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from provisioner.core.errors import LockHeldError
from provisioner.core.ports import Cancelled
from provisioner.disk.os_errors import storage_error

_POLL_S = 0.2


@contextlib.contextmanager
def hold_lock(
    lock_path: Path,
    *,
    guards: Path,
    wait: bool,
    notice: Callable[[str], None],
    cancelled: Cancelled = lambda: False,
    holder: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Hold a lock while the block runs; its folder has to be there.

    ``flock`` on POSIX, ``msvcrt`` on Windows (filelock): the system lets go when the process ends, however it ends.

    Parameters
    ----------
    lock_path : Path
        The file that is locked.
    guards : Path
        What a person knows it by.
    wait : bool
        Wait for whoever holds it.
    notice : callable
        Told once that this run waits.
    cancelled : callable
        Asked while waiting.
    holder : callable
        Who holds it, as the end of a sentence, or nothing.

    Raises
    ------
    LockHeldError
        Somebody else holds it and `wait` is false.
    StorageError
        The lock file cannot be made.
    KeyboardInterrupt
        Cancelled while waiting.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(lock_path)
    has_told = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            who = f"{guards}{holder()}"
            if not wait:
                hint = "Wait for it to end, or leave --no-wait out and this run waits by itself."
                raise LockHeldError(f"Another run is working on {who}.", hint=hint, path=str(guards)) from None
            if not has_told:
                notice(f"Waiting for another run that works on {who}.")
                has_told = True
            if cancelled():
                raise KeyboardInterrupt from None
            time.sleep(_POLL_S)
        except OSError as error:
            raise storage_error(error, lock_path, doing="lock") from error
    try:
        yield
    finally:
        lock.release()


def lock_among_temporary_files(kind: str, place: str | Path) -> Path:
    """Return the lock file of a place beside which none may be left over for good.

    Parameters
    ----------
    kind : str
        What lies there, as the beginning of the name; nothing, or it ends with a hyphen.
    place : str or Path
        Its path; one spelling of it, since another is another lock.
    """
    key = hashlib.sha256(os.fsencode(os.path.normcase(place))).hexdigest()[:24]
    import tempfile  # brings shutil and random along

    return Path(tempfile.gettempdir(), f"klein-setup-{kind}{_user()}-{key}.lock")


def _user() -> str:
    """Return what tells users of one folder for temporary files apart; on Windows each has its own."""
    if sys.platform == "win32":
        return ""
    return str(os.getuid())
