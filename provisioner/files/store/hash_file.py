"""Reading every byte of a file: its SHA-256 in one pass from start to end, or that of every block, many at a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from provisioner.core.models import BLOCK_SIZE
from provisioner.core.ports import Cancelled, FileDigest, HashProgress, Survey
from provisioner.disk.os_errors import storage_error
from provisioner.files.store.hash_pool import BY_BLOCKS, Hashers
from provisioner.files.store.read_at import READ_STEP, Opener, OpenFile, fill, named_at, open_for_reading


def hash_file(
    path: Path,
    *,
    progress: HashProgress,
    cancelled: Cancelled,
    with_blocks: bool = False,
    also: Callable[[bytes | memoryview], None] | None = None,
    size: int | None = None,
    block_size: int = BLOCK_SIZE,
    opener: Opener = open_for_reading,
) -> FileDigest:
    """Return the proof of a file's content as it is now, read once from start to end.

    Parameters
    ----------
    path : Path
        The file; links are followed.
    progress : callable
        Told the bytes read so far, after every MiB.
    cancelled : callable
        Asked after every MiB.
    with_blocks : bool
        Also digest every block; costs a second hash over the same bytes.
    also : callable, optional
        Given every piece in order: a copy is written in the same pass that verifies it.
    size : int, optional
        Stop after so many bytes.
    block_size : int
        Bytes of a block.
    opener : callable
        Opens the file.

    Raises
    ------
    UnreadableError
        The system does not let us read the file to its end; it says at which byte.
    KeyboardInterrupt
        ``cancelled`` said so.
    """
    whole, block, blocks, total = hashlib.sha256(), hashlib.sha256(), [], 0
    view = memoryview(bytearray(min(READ_STEP, block_size)))
    try:
        file = opener(path)
    except OSError as error:
        raise storage_error(error, path, doing="read") from error
    try:
        while piece := _next_piece(file, view, total, size, block_size):
            whole.update(piece)
            if also is not None:
                also(piece)
            total += len(piece)
            if with_blocks:
                block.update(piece)
                if total % block_size == 0:
                    blocks.append(block.hexdigest())
                    block = hashlib.sha256()
            progress(total)
            if cancelled():
                raise KeyboardInterrupt
    except OSError as error:
        raise named_at(storage_error(error, path, doing="read"), total) from error
    finally:
        file.close()
    if with_blocks and total % block_size:
        blocks.append(block.hexdigest())
    return FileDigest(size=total, sha256=whole.hexdigest(), blocks=tuple(blocks), is_one_reading=with_blocks)


def _next_piece(file: OpenFile, view: memoryview, offset: int, size: int | None, block_size: int) -> memoryview:
    """Return the next bytes, never across the end of a block or beyond `size`; empty at the end."""
    room = min(len(view), block_size - offset % block_size)
    room = room if size is None else min(room, size - offset)
    return view[: fill(file, view[:room], offset)]


def survey(
    path: Path,
    *,
    size: int,
    first: int = 0,
    progress: HashProgress,
    cancelled: Cancelled,
    hashers: Hashers,
    block_size: int = BLOCK_SIZE,
    opener: Opener = open_for_reading,
) -> Survey:
    """Return the digests of the blocks of a file's first `size` bytes, taken by as many threads as are free.

    Blocks before number `first` are left out.
    A block that the disk does not give is None, and the others are read all the same.

    Raises
    ------
    UnreadableError
        The file cannot be opened.
    KeyboardInterrupt
        ``cancelled`` said so.
    """
    try:
        file = opener(path)
    except OSError as error:
        raise storage_error(error, path, doing="read") from error
    looking = _Looking(file, path, size, block_size, progress, cancelled)
    tasks = [
        hashers.give(lambda index=index: looking.digest_of(index), rank=BY_BLOCKS)  # type: ignore[misc]
        for index in range(first, -(-size // block_size))
    ]
    try:
        blocks = tuple([task.result() for task in tasks])
    finally:
        looking.is_over = True
        for task in tasks:  # nobody may read a descriptor that was closed
            task.wait()
        file.close()
    return Survey(blocks=blocks, unreadable=looking.first_refusal())


class _Looking:
    """One file whose blocks are being digested by several threads."""

    def __init__(
        self, file: OpenFile, path: Path, size: int, block_size: int, progress: HashProgress, cancelled: Cancelled
    ) -> None:
        self.is_over = False
        self._file = file
        self._path = path
        self._size = size
        self._block_size = block_size
        self._progress = progress
        self._cancelled = cancelled
        self._own = threading.local()
        self._lock = threading.Lock()
        self._read = 0
        self._refusals: dict[int, str] = {}

    def digest_of(self, index: int) -> str | None:
        """Return the digest of one block, or None where the disk refuses; raises KeyboardInterrupt."""
        view = self._buffer()
        offset, end = index * self._block_size, min((index + 1) * self._block_size, self._size)
        digest = hashlib.sha256()
        while offset < end:
            if self.is_over or self._cancelled():
                raise KeyboardInterrupt
            try:
                count = fill(self._file, view[: min(len(view), end - offset)], offset)
            except OSError as error:
                self._refuse(error, offset)
                self._tell(end - offset)
                return None
            if not count:
                break  # it became shorter: whoever compares stamps says so
            digest.update(view[:count])
            offset += count
            self._tell(count)
        return digest.hexdigest()

    def first_refusal(self) -> str | None:
        """Return in words where the disk refused first, or None."""
        return self._refusals[min(self._refusals)] if self._refusals else None

    def _buffer(self) -> memoryview:
        view: memoryview | None = getattr(self._own, "view", None)
        if view is None:
            view = self._own.view = memoryview(bytearray(min(READ_STEP, self._block_size)))
        return view

    def _refuse(self, error: OSError, offset: int) -> None:
        with self._lock:
            self._refusals[offset] = str(named_at(storage_error(error, self._path, doing="read"), offset))

    def _tell(self, count: int) -> None:
        with self._lock:
            self._read += count
            self._progress(self._read)
