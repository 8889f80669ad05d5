"""One run at a time: a lock that dies with its process, waited for or refused in the same words everywhere.

It knows files that lock, and nothing of what they guard: the other rooms stand on it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from provisioner.core.errors import LockHeldError, StorageError
from provisioner.core.ports import Cancelled
from provisioner.disk.locations import APPLICATION, state_folder
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import Root

_POLL_S = 0.2
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""What network drives say whose server gives no locks; Windows' runtime makes EINVAL of "not supported"."""

_HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})


@contextlib.contextmanager
def hold_lock(
    root: Root,
    lock_path: Path,
    *,
    guards: Path,
    wait: bool,
    notice: Callable[[str], None],
    cancelled: Cancelled = lambda: False,
    holder: Callable[[], str] = lambda: "",
    lock: Callable[[int], None] = lambda descriptor: _lock(descriptor),
) -> Iterator[None]:
    """Hold a lock while the block runs; its folder has to be there.

    ``flock`` on POSIX, ``msvcrt`` on Windows: the system lets go when the process ends, however it ends.  On a drive
    without locks one in the user's state folder is held instead, which other computers do not see.

    Parameters
    ----------
    root : Root
        What the lock's file lies below.
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
    lock : callable, optional
        Locks an open file, or raises OSError.

    Raises
    ------
    LockHeldError
        Somebody else holds it and `wait` is false.
    StorageError
        The lock file cannot be made.
    KeyboardInterrupt
        Cancelled while waiting.
    """
    descriptor = root.open_file(lock_path, is_new=True)
    try:
        has_told = False
        while (is_taken := _take(descriptor, lock_path, lock)) is False:
            who = f"{guards}{holder()}"
            if not wait:
                hint = "Wait for it to end, or leave --no-wait out and this run waits by itself."
                raise LockHeldError(f"Another run is working on {who}.", hint=hint, path=str(guards))
            if not has_told:
                notice(f"Waiting for another run that works on {who}.")
                has_told = True
            if cancelled():
                raise KeyboardInterrupt
            time.sleep(_POLL_S)
        if is_taken:
            yield
            return
        notice(f"The drive of {guards} has no locks: do not let another computer work on it at the same time.")
        with hold_place("drive-", lock_path, guards=guards, wait=wait, notice=notice, cancelled=cancelled):
            yield
    finally:
        os.close(descriptor)  # lets go of the lock


def _take(descriptor: int, lock_path: Path, lock: Callable[[int], None]) -> bool | None:
    """Take the lock of an open file; False where somebody else has it, None where the drive has no locks."""
    try:
        lock(descriptor)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _NO_LOCKS and not _is_ours(lock_path):
            return None
        raise storage_error(error, lock_path, doing="lock") from error
    return True


def _is_ours(lock_path: Path) -> bool:
    """Whether a lock is the one that would be taken instead."""
    return lock_path.name.startswith("drive-")


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def hold_place(
    kind: str,
    place: str | Path,
    *,
    guards: Path,
    wait: bool,
    notice: Callable[[str], None],
    cancelled: Cancelled = lambda: False,
) -> Iterator[None]:
    """Hold the lock of a place beside which no file may be left over for good; raises as `hold_lock` does.

    The file lies in the user's own state folder; where that cannot be written to, in a folder of theirs among the
    temporary files.

    Parameters
    ----------
    kind : str
        What lies there, as the beginning of the name; nothing, or it ends with a hyphen.
    place : str or Path
        Its path; one spelling of it, since another is another lock.
    guards, wait, notice, cancelled : Path, bool, callable, callable
        As for `hold_lock`.
    """
    key = hashlib.sha256(os.fsencode(os.path.normcase(place))).hexdigest()[:24]
    root = _own_folder()
    path = root.folder / f"{kind}{key}.lock"
    with hold_lock(root, path, guards=guards, wait=wait, notice=notice, cancelled=cancelled):
        yield


def _own_folder() -> Root:
    root = Root(state_folder() / "locks", is_private=True)
    try:
        Root(state_folder(), is_private=True).make_folder()
        root.make_folder()
    except StorageError:
        if sys.platform == "win32":
            raise
        import tempfile  # brings shutil and random along

        root = Root(Path(tempfile.gettempdir(), f"{APPLICATION}-{os.getuid()}"), is_private=True)
        root.make_folder()
        status = root.folder.lstat()
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
            raise StorageError(
                f"{root.folder} belongs to somebody else.",
                hint="Name a folder of your own with TMPDIR, or make the state folder writable.",
                path=str(root.folder),
            ) from None
    return root
