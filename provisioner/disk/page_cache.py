"""What files that were written leave in the system's page cache: a share of the memory that is free, and no more.

A model that was just fetched is read soon, so where there is room it stays.  What goes beyond would push out the pages
of the programs that a person works with.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

_SHARE = 4  # a quarter of the available memory
_MEMINFO = Path("/proc/meminfo")

Advise = Callable[[int, int, int, int], None]

_ADVISE: Advise | None = getattr(os, "posix_fadvise", None)  # Linux, FreeBSD; neither macOS nor Windows
_DONT_NEED: int = getattr(os, "POSIX_FADV_DONTNEED", 0)


class PageCache:
    """The pages that the files of one run may leave.

    Parameters
    ----------
    available : callable
        Returns the bytes of memory that programs could take now; asked once, when the first bytes are written.
    advise : callable, optional
        ``os.posix_fadvise``; nothing is ever given up where the system has none.
    """

    def __init__(self, available: Callable[[], int], advise: Advise | None = _ADVISE) -> None:
        self._available = available
        self._advise = advise
        self._left: int | None = None
        self._lock = threading.Lock()

    def written(self, descriptor: int, offset: int, length: int) -> None:
        """Take note of bytes that are on the disk and are not read again here; their pages go if they are too many.

        The system may refuse: that is no error.
        """
        if self._advise is None or length <= 0:
            return
        with self._lock:
            if self._left is None:
                self._left = self._available() // _SHARE
            stays = length <= self._left
            self._left -= length if stays else 0
        if not stays:
            with contextlib.suppress(OSError):
                self._advise(descriptor, offset, length, _DONT_NEED)


def available_memory() -> int:
    """Return the bytes of memory that programs could take, as Linux estimates them; 0 where it does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return 0


PAGE_CACHE = PageCache(available_memory)
