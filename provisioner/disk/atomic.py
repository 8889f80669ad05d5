"""Bytes that survive: flushing to the disk, replacing a name in one step, and what the system says when it refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from provisioner.core.errors import FileInUseError, StorageError
from provisioner.disk.os_errors import storage_error

_WINDOWS_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)  # virus scanners hold a file they have just seen for about a second

Move = Callable[[Path, Path], None]
"""Gives a file another name in one step; raises OSError."""


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
    is_flushed: bool = True,
) -> None:
    """Give a file its final name in one step, durably; raises StorageError and leaves both as they were.

    On Windows a refusal is taken for a passing one first: a virus scanner or an indexer looks at every new file.
    Without `is_flushed` a power cut may bring the old names back.
    """
    pauses = iter(pauses_s if platform == "win32" else ())
    while True:
        try:
            move(source, destination)
            if is_flushed:
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


def write_text_durably(path: Path, text: str, *, is_name_flushed: bool = True) -> None:
    """Replace a small text file in one step, so that a reader sees the old one or the new one; raises StorageError.

    Without `is_name_flushed` its bytes are on the disk and a power cut may still bring the old one back.
    """
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
    replace(temporary, path, is_flushed=is_name_flushed)


def half_written(folder: Path) -> list[Path]:
    """Return what `write_text_durably` and the snapshot's writer left in a folder where a run was killed over it."""
    return list(folder.glob("*.json.*.tmp"))
