"""Bytes that survive: flushing to the disk, replacing a name in one step, and what the system says when it refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from provisioner.errors import (
    FileInUseError,
    InsufficientSpaceError,
    NotWritableError,
    StorageError,
    UnreadableError,
)

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_WINDOWS_NO_ROOM = {39, 112}  # ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL
_WINDOWS_IN_USE = {32, 33, 1224}  # sharing violation, lock violation, user-mapped section open
_WINDOWS_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)  # virus scanners hold a file they have just seen for about a second

Move = Callable[[Path, Path], None]
"""Gives a file another name in one step; raises OSError."""


def storage_error(error: OSError, path: Path, *, doing: str = "write") -> StorageError:
    """Return the error of ours that says what the system refused, with what to do about it."""
    windows_code = getattr(error, "winerror", None)
    reason = error.strerror or str(error)
    facts: dict[str, object] = {"path": str(path), "errno": error.errno}
    if error.errno in _NO_ROOM or windows_code in _WINDOWS_NO_ROOM:
        return InsufficientSpaceError(
            f"The disk is full: {path} could not be written ({reason}).",
            hint="Free some space and run the same command again; what has arrived is kept.",
            **facts,
        )
    if windows_code in _WINDOWS_IN_USE or error.errno in {errno.ETXTBSY, errno.EBUSY}:
        return FileInUseError(
            f"Another program holds {path} open ({reason}).",
            hint="Close ComfyUI, or whatever has the file open, and run the same command again.",
            **facts,
        )
    refusal: type[StorageError]
    if error.errno in _NOT_ALLOWED:
        refusal = UnreadableError if doing == "read" else NotWritableError
        return refusal(
            f"No permission to {doing} {path} ({reason}).",
            hint="Change the owner or the permissions of that folder, or name another one.",
            **facts,
        )
    refusal = UnreadableError if doing == "read" else StorageError
    return refusal(
        f"The system could not {doing} {path} ({reason}).",
        hint="Look at the disk's health and at the path; then run the same command again.",
        **facts,
    )


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder, doing="create") from error


def _through_the_drive(descriptor: int) -> bool:
    """Flush the drive's own cache too, where the system has a call for it (macOS: ``F_FULLFSYNC``)."""
    if sys.platform == "darwin":  # pragma: no cover - only macOS has the call
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError:
            return False  # a file system without it
        return True
    return False


def flush_file(descriptor: int, *, through_the_drive: Callable[[int], bool] = _through_the_drive) -> None:
    """Hand a file's bytes to the disk and wait until it has them.

    ``os.fsync`` on macOS stops at the drive's cache, so another call is tried before it.
    """
    if not through_the_drive(descriptor):
        os.fsync(descriptor)


def reserve(descriptor: int, size: int, *, platform: str = sys.platform) -> bool:
    """Take room for ``size`` bytes from the disk at once; false where the system or the file system cannot.

    Writing into the hole that ``ftruncate`` leaves costs ext4 three times as much (Linux 6.18: 1.1 s against 0.3 s a
    GB).  ``os.posix_fallocate`` is not used: where the file system has no such call, glibc writes a byte into every
    block instead.
    """
    if not platform.startswith("linux"):
        return False
    import ctypes

    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):  # a C library without it
        return False
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return bool(fallocate(descriptor, 0, 0, size) == 0)


def flush_folder(folder: Path, *, platform: str = sys.platform, fsync: Callable[[int], None] = os.fsync) -> None:
    """Hand a folder's list of names to the disk; Windows needs and offers no such call."""
    if platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems refuse fsync on a folder; the rename itself has happened.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}:
            raise
    finally:
        os.close(descriptor)


def _move(source: Path, destination: Path) -> None:
    source.replace(destination)


def replace(
    source: Path,
    destination: Path,
    *,
    move: Move = _move,
    platform: str = sys.platform,
    pauses_s: Sequence[float] = _WINDOWS_PAUSES_S,
) -> None:
    """Give a file its final name in one step, durably; raises StorageError and leaves both as they were.

    On Windows a refusal is taken for a passing one first: a virus scanner or an indexer looks at every new file.
    """
    pauses = iter(pauses_s if platform == "win32" else ())
    while True:
        try:
            move(source, destination)
            flush_folder(destination.parent)
            return
        except PermissionError as error:
            pause_s = next(pauses, None)
            if pause_s is None:
                raise _not_replaced(error, destination, platform) from error
            time.sleep(pause_s)
        except OSError as error:
            raise storage_error(error, destination) from error


def _not_replaced(error: PermissionError, destination: Path, platform: str) -> StorageError:
    if platform != "win32" or not destination.exists():
        return storage_error(error, destination)
    return FileInUseError(
        f"{destination} is open in another program and cannot be replaced.",
        hint="Stop ComfyUI (it keeps model files mapped) and run the same command again.",
        path=str(destination),
    )


def write_text_durably(path: Path, text: str) -> None:
    """Replace a small text file in one step, so that a reader sees the old one or the new one; raises StorageError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    make_folder(path.parent)
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            flush_file(stream.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(error, path) from error
    replace(temporary, path)
