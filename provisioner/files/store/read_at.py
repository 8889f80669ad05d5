"""Reading a file at offsets, from several threads: by positional reads where the system has them, else by seeking.

Knows no digests.  Every refusal names the byte at which it happened.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Protocol

from provisioner.core.errors import StorageError

READ_STEP = 1024 * 1024
"""Bytes of one read; hashing speed is flat from 64 KiB up, and a step never crosses a block of 16 MiB."""

ReadAt = Callable[[int, "list[memoryview]", int], int]
_PREADV: ReadAt | None = getattr(os, "preadv", None)  # Linux, macOS 11, FreeBSD; not Windows


class OpenFile(Protocol):
    """A file that is open for reading; safe to use from several threads."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read up to the length of `view` at an offset and return how much; 0 at the end. Raises OSError."""

    def close(self) -> None:
        """Close it, when nobody reads any more."""


Opener = Callable[[Path], OpenFile]
"""Opens a file for reading; raises OSError."""


class _Positional:
    """One descriptor for all threads: a positional read moves nothing they share."""

    def __init__(self, path: Path, read_at: ReadAt) -> None:
        self._stream = path.open("rb", buffering=0)
        self._read_at = read_at

    def read_into(self, view: memoryview, offset: int) -> int:
        return self._read_at(self._stream.fileno(), [view], offset)

    def close(self) -> None:
        self._stream.close()


class _Seeking:
    """A descriptor for each thread, where reading at an offset moves the descriptor's own position."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: list[FileIO] = []
        self._own = threading.local()
        self._stream()  # a file that cannot be opened is refused here

    def _stream(self) -> FileIO:
        stream: FileIO | None = getattr(self._own, "stream", None)
        if stream is None:
            stream = self._own.stream = self._path.open("rb", buffering=0)
            self._streams.append(stream)
        return stream

    def read_into(self, view: memoryview, offset: int) -> int:
        stream = self._stream()
        stream.seek(offset)
        return stream.readinto(view) or 0

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def open_for_reading(path: Path, *, read_at: ReadAt | None = _PREADV) -> OpenFile:
    """Open a file, links followed; raises OSError."""
    return _Seeking(path) if read_at is None else _Positional(path, read_at)


def fill(file: OpenFile, view: memoryview, offset: int) -> int:
    """Fill the whole of `view` unless the file ends; return how much. Short reads happen on network file systems."""
    filled = 0
    while filled < len(view):
        read = file.read_into(view[filled:], offset + filled)
        if not read:
            break
        filled += read
    return filled


def named_at(error: StorageError, offset: int) -> StorageError:
    """Return the error with the byte at which the disk refused in its words and its facts."""
    error.args = (f"{str(error).removesuffix('.')} at byte {offset:,}.",)
    error.context["offset"] = offset
    return error
