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


def reflink(source: Path, destination: Path, *, platform: str = sys.platform) -> bool:
    """Make ``destination`` share the disk blocks of ``source``; False where the file system cannot.

    Linux: ``FICLONE`` (btrfs, xfs, bcachefs, ZFS).  macOS: ``clonefile`` (APFS).  Elsewhere: False.
    Both files may be changed later without touching the other.
    """
    if platform == "linux":
        return by_ficlone(source, destination)
    if platform == "darwin":
        return by_clonefile(source, destination)
    return False


def _ficlone(writer: int, reader: int) -> None:
    if sys.platform == "win32":  # pragma: no cover - has no ioctl
        raise OSError(errno.ENOTSUP, "no ioctl here")
    import fcntl

    fcntl.ioctl(writer, _FICLONE, reader)


def by_ficlone(source: Path, destination: Path, *, clone: Callable[[int, int], None] = _ficlone) -> bool:
    """Clone with Linux's ioctl; raises FileExistsError, and OSError for what is no matter of being able to."""
    with source.open("rb") as reader, destination.open("xb") as writer:
        try:
            clone(writer.fileno(), reader.fileno())
            return True
        except OSError as error:
            refused = error
    destination.unlink(missing_ok=True)
    if refused.errno in _NOT_POSSIBLE:
        return False
    raise refused


def _clonefile() -> Callable[[bytes, bytes, int], int] | None:
    import ctypes

    return getattr(ctypes.CDLL(None), "clonefile", None)


def by_clonefile(
    source: Path, destination: Path, *, find: Callable[[], Callable[[bytes, bytes, int], int] | None] = _clonefile
) -> bool:
    """Clone with macOS' call; False where it is not there or does not succeed."""
    clonefile = find()
    return clonefile is not None and clonefile(os.fsencode(source), os.fsencode(destination), 0) == 0


def hard_link(source: Path, destination: Path, *, link: Callable[[Path, Path], None] = os.link) -> bool:
    """Give the file a second name; False where the file system, or a boundary between two, does not allow it."""
    try:
        link(source, destination)
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
