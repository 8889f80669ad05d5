"""Bytes that survive a power cut: handing files and folders to the disk."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

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
