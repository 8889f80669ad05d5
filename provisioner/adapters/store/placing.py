"""The same bytes a second time without a second copy: reflink, else hard link, else copy."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
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


def reflink(source: Path, destination: Path) -> bool:
    """Make ``destination`` share the disk blocks of ``source``; False where the file system cannot.

    Linux: ``FICLONE`` (btrfs, xfs, bcachefs, ZFS).  macOS: ``clonefile`` (APFS).  Elsewhere: False.
    Both files may be changed later without touching the other.
    """
    if sys.platform == "linux":
        return _reflink_linux(source, destination)
    if sys.platform == "darwin":
        return _reflink_macos(source, destination)
    return False


def _reflink_linux(source: Path, destination: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as reader, destination.open("xb") as writer:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        destination.unlink(missing_ok=True)
        if error.errno in _NOT_POSSIBLE:
            return False
        raise
    return True


def _reflink_macos(source: Path, destination: Path) -> bool:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    clonefile = getattr(library, "clonefile", None)
    if clonefile is None:
        return False
    return bool(clonefile(os.fsencode(source), os.fsencode(destination), 0) == 0)


def hard_link(source: Path, destination: Path) -> bool:
    """Give the file a second name; False where the file system, or a boundary between two, does not allow it."""
    try:
        os.link(source, destination)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        if error.errno in _NOT_POSSIBLE or getattr(error, "winerror", None) in {1, 17, 50, 1142}:
            return False
        raise
    return True


Linker = Callable[[Path, Path], bool]

WAYS: tuple[tuple[str, Linker], ...] = (("reflinked", reflink), ("hard-linked", hard_link))
"""Ways without a second copy, best first: a reflink's bytes are nobody else's, a hard link's are shared."""


def link_somehow(source: Path, destination: Path, ways: tuple[tuple[str, Linker], ...] = WAYS) -> str | None:
    """Return how ``destination`` now has the bytes of ``source`` without a copy, or None if no way works."""
    return next((name for name, link in ways if link(source, destination)), None)
