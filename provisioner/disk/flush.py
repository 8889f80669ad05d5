"""Bytes that survive a power cut: handing files and folders to the disk, and waiting for Windows to let go of one."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # virus scanners hold a file they have just seen for a second or so
# Some network and FUSE file systems refuse fsync on a folder; what was done in it has been done.
_NO_FOLDER_FLUSH = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES})


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
    """Hand a file's bytes to the disk and wait until it has them; raises OSError.

    ``os.fsync`` on macOS stops at the drive's cache, so another call is tried before it.
    """
    if not through_the_drive(descriptor):
        os.fsync(descriptor)


def flush_folder(
    folder: str | Path,
    *,
    dir_fd: int | None = None,
    platform: str = sys.platform,
    fsync: Callable[[int], None] = flush_file,
) -> None:
    """Hand a folder's list of names to the disk; Windows needs and offers no such call. Raises OSError."""
    if platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY, dir_fd=dir_fd)
        try:
            fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise


def flush_all() -> None:
    """Hand everything to the disk: thousands of files, many written by another program, in one call."""
    if sys.platform != "win32":
        os.sync()


def patiently(
    action: Callable[[], None], *, platform: str = sys.platform, pauses_s: Sequence[float] = PAUSES_S
) -> None:
    """Do something; raises what it raises, after some seconds where it may pass.

    On Windows a virus scanner or an indexer looks at every new file; everywhere a program that outlived the run it
    belonged to may still write into a folder that is being removed.
    """
    pauses = iter(pauses_s)
    while True:
        try:
            action()
            return
        except OSError as error:
            is_passing = error.errno == errno.ENOTEMPTY or (platform == "win32" and isinstance(error, PermissionError))
            pause_s = next(pauses, None) if is_passing else None
            if pause_s is None:
                raise
            time.sleep(pause_s)
