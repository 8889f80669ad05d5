"""The system calls that a growing file is made with: writing at an offset, taking room, flushing while more arrives."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from provisioner.disk.flush import flush_file
from provisioner.disk.page_cache import PAGE_CACHE

WriteAt = Callable[[int, memoryview, int], int]
Share = Callable[[int, int, int, int, int], int]
"""Copies within the system: two descriptors, a length, two offsets in; how much out. Raises OSError."""

SHARE: Share | None = getattr(os, "copy_file_range", None)  # Linux
_PWRITE: WriteAt | None = getattr(os, "pwrite", None)
_FLUSH_SOME: Callable[[int], None] | None = None if sys.platform == "win32" else getattr(os, "fdatasync", os.fsync)
_ONE_AT_A_TIME = threading.Lock()


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


def write_all(stream: FileIO, data: bytes | memoryview) -> None:
    """Write all of some bytes to a file without a buffer, whose closing cannot fail any more; raises OSError."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


@dataclass(frozen=True, slots=True)
class Disk:
    """The system calls that a growing file is made with; each raises OSError."""

    write_at: WriteAt | None = _PWRITE
    """Writes at an offset and returns how much; None where the system has no such call (Windows)."""

    flush_some: Callable[[int], None] | None = _FLUSH_SOME
    """Hands over what was written so far while more arrives; None: not worth it."""

    flush: Callable[[int], None] = flush_file
    """Hands over everything, at the end."""

    reserve: Callable[[int, int], bool] = reserve
    """Takes room for a size from the disk at once; false where it cannot."""

    append: Callable[[int, bytes], int] = os.write
    """Adds a line to the log."""

    written: Callable[[int, int, int], None] = PAGE_CACHE.written
    """Takes note of bytes that are on the disk and are not read again: descriptor, offset, length."""

    flush_step: int = 128 * 1024 * 1024
    """Bytes behind the frontier that make a flush worth it."""

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data`; where the system has no positional write, one writer at a time."""
        view = memoryview(data)
        if self.write_at is not None:
            while view:
                written = self.write_at(descriptor, view, offset)
                view, offset = view[written:], offset + written
            return
        with _ONE_AT_A_TIME:
            os.lseek(descriptor, offset, os.SEEK_SET)
            while view:
                view = view[os.write(descriptor, view) :]

    def set_size(self, descriptor: int, size: int) -> None:
        """Make a file longer or shorter."""
        os.ftruncate(descriptor, size)

    def set_mtime(self, descriptor: int, path: Path, mtime_ns: int) -> None:
        """Give an open file the time of its last change; by its path where the system takes no descriptor (Windows)."""
        os.utime(descriptor if os.utime in os.supports_fd else path, ns=(mtime_ns, mtime_ns))


DISK = Disk()
