"""The same bytes a second time without a second copy: the calls by which a file shares the disk blocks of another."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_AT_FDCWD = -2  # macOS
_NOT_POSSIBLE = {
    errno.EXDEV,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EINVAL,
    errno.ENOTTY,
    errno.EPERM,
    errno.EACCES,
    errno.ENOSYS,
    errno.EMLINK,
}
_WINDOWS_NOT_POSSIBLE = {1, 17, 50, 1142}  # no such function, another device, not supported, too many links

CloneAt = Callable[[int, bytes, int, bytes, int], int]


def is_impossible(error: OSError) -> bool:
    """Whether the file system, or a boundary between two, does not allow what was asked for."""
    return error.errno in _NOT_POSSIBLE or getattr(error, "winerror", None) in _WINDOWS_NOT_POSSIBLE


def ficlone(writer: int, reader: int) -> None:
    """Let one open file share the blocks of another (btrfs, xfs, bcachefs, ZFS); raises OSError."""
    if sys.platform == "win32":  # pragma: no cover - has no ioctl
        raise OSError(errno.ENOTSUP, "no ioctl here")
    import fcntl

    fcntl.ioctl(writer, _FICLONE, reader)


def find_clonefile() -> CloneAt | None:
    """Return macOS' ``clonefileat``, or None where there is none."""
    import ctypes

    return getattr(ctypes.CDLL(None), "clonefileat", None)


def by_clonefile(
    source: Path, name: str | Path, dir_fd: int | None, *, find: Callable[[], CloneAt | None] = find_clonefile
) -> bool:
    """Clone a file under a new name in an open folder; False where the call is not there or does not succeed (APFS)."""
    clonefile = find()
    if clonefile is None:
        return False
    where = _AT_FDCWD if dir_fd is None else dir_fd
    return clonefile(_AT_FDCWD, os.fsencode(source), where, os.fsencode(name), 0) == 0
