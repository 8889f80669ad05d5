"""A file that is growing: blocks in any order, a digest that follows the frontier, a log that survives a kill.

Beside ``<name>`` lie ``<name>.part``, the bytes, and ``<name>.part.jsonl``, one line for what is being fetched
and one for every block that is complete.  The log is a claim: the digest of the whole file is taken from the disk
and decides, so a log that lies costs a restart and never a wrong file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from provisioner.core.errors import StorageError
from provisioner.core.models import BLOCK_SIZE
from provisioner.core.ports import Cancelled, FileDigest
from provisioner.disk.calls import DISK, Disk
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import Root, waiting_for

_READ_STEP = 1024 * 1024  # hashing speed is flat from 64 KiB up
_LOG_VERSION = 1
_LAG_BLOCKS = 4  # so far behind the frontier, the digest is what everything waits for
_POLL_S = 0.005
_LONGEST_HEAD = 4096  # bytes

LogKind = Literal["download", "patch"]


def part_path(final: Path) -> Path:
    """Return where a file grows.  ComfyUI lists models by their ending and never sees this one."""
    return final.with_name(final.name + ".part")


def log_path(final: Path) -> Path:
    """Return where a growing file's log lies."""
    return final.with_name(final.name + ".part.jsonl")


def read_log(final: Path, *, size: int, sha256: str, block_size: int = BLOCK_SIZE) -> dict[int, str]:
    """Return the digests of the blocks an earlier run completed for exactly this content; empty if none."""
    try:
        if part_path(final).is_symlink():
            return {}
        there = part_path(final).stat().st_size
        lines = log_path(final).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    blocks: dict[int, str] = {}
    expected = size
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if number == 0:
                wanted = {"version": _LOG_VERSION, "size": size, "sha256": sha256, "block_size": block_size}
                # A truncated file that became a part has its own length until the part is opened.
                expected = entry.pop("taken_over", size)
                if entry != wanted:
                    return {}
            else:
                blocks[int(entry["block"])] = str(entry["sha256"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            break  # a line torn by a kill; what stands before it is whole
    if there not in (size, expected):
        return {}
    return {
        index: digest
        for index, digest in blocks.items()
        if 0 <= index * block_size < size
        and index * block_size + min(block_size, size - index * block_size) <= there
        and len(digest) == 64
    }


def is_our_log(log: Path, kind: LogKind = "download") -> bool:
    """Whether a file is the log of a download, or of a repair, that a run of ours began: a file with our first line."""
    try:
        if has_other_names(log):
            return False
        with log.open("rb") as stream:
            head = json.loads(stream.readline(_LONGEST_HEAD))
        return head.get("kind", "download") == kind and {"version", "size", "sha256", "block_size"} <= set(head)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def has_other_names(path: Path) -> bool:
    """Whether something is no plain file that has this name alone: what is written into it changes another; OSError."""
    status = path.lstat()
    return not stat.S_ISREG(status.st_mode) or status.st_nlink > 1


def begin_log(root: Root, log: Path, lines: Iterable[str]) -> int:
    """Write a log anew, in one step, and return a descriptor that appends to it; raises StorageError."""
    drop_waiting(root, log)
    root.write_text(log, "".join(line + "\n" for line in lines), is_name_flushed=False)
    return root.open_appending(log)


def bytes_of_blocks(blocks: dict[int, str], size: int, block_size: int = BLOCK_SIZE) -> int:
    """Return how many bytes those blocks hold; the last block may be short."""
    return sum(min(block_size, size - index * block_size) for index in blocks)


def write_log_of_taken_over(
    root: Root, final: Path, *, size: int, sha256: str, block_size: int, there: int, good: Mapping[int, str]
) -> None:
    """Write the log that makes a truncated file, once it has the part's name, a part with so many good blocks.

    Raises
    ------
    StorageError
        The disk refused.
    """
    head = {"version": _LOG_VERSION, "size": size, "sha256": sha256, "block_size": block_size, "taken_over": there}
    lines = [json.dumps(head), *(_block_line(index, digest) for index, digest in sorted(good.items()))]
    root.write_text(log_path(final), "".join(line + "\n" for line in lines))


class PartFile:
    """A growing file on disk; safe to use from several threads.

    Use as a context manager: leaving it keeps bytes and log for the next run, unless `commit` was called.

    Parameters
    ----------
    final : Path
        The name it gets in the end; its own is `part_path` of that.
    size, sha256, block_size : int, str, int
        What it is to be, in bytes and hex digits.
    root : Root, optional
        What changes anything in its folder; that folder by default.
    place : callable, optional
        Gives the finished part its name; told the part and where its bytes came from.
    right : mapping of int to str, optional
        Digests of blocks that are known to be right: of those the bytes on disk are read, whatever the log says.
    bound : sequence of str
        Digests of all blocks, if a run of this user read them together with the whole.  Then a right whole has these
        blocks, and of bytes that were there already only the whole is digested.
    cancelled : callable
        Asked during long reads and while the whole is digested; true stops with KeyboardInterrupt.
    disk : Disk
        The system calls for writing.
    """

    def __init__(
        self,
        final: Path,
        *,
        size: int,
        sha256: str,
        block_size: int = BLOCK_SIZE,
        root: Root | None = None,
        place: Callable[[Path, str], None] | None = None,
        right: Mapping[int, str] | None = None,
        bound: Sequence[str] = (),
        cancelled: Cancelled = lambda: False,
        disk: Disk = DISK,
    ) -> None:
        self.final = final
        self._bound = tuple(bound)
        self._right = right or {}
        self._root = root = root or Root(final.parent)
        self._place = place or (lambda part, source: root.replace(part, final))
        self._cancelled = cancelled
        self._disk = disk
        self.path = part_path(final)
        self.size = size
        self.sha256 = sha256
        self.block_size = block_size
        self.block_count = -(-size // block_size)
        self.hashed = 0
        self.resumed_bytes = 0
        self._has_caught_up = False
        self._written = 0
        self._blocks: dict[int, str] = {}
        self._claimed: set[int] = set()  # blocks whose digest somebody else took
        self._read_again: dict[int, str] = {}  # their digests, taken together with that of the whole
        self._frontier_block = 0
        # The main thread takes the lock itself: a signal inside Condition's Python code could leave it taken for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._generation = 0
        self._closing = False
        self._failure: OSError | None = None
        self._digest = hashlib.sha256()
        self._descriptor = -1
        self._let_go = 0  # everything before it is on the disk and was digested: its pages are not needed any more
        self._log_descriptor = -1
        self._threads: list[threading.Thread] = []
        self._writers = 0

    # --- opening and leaving ---------------------------------------------------------------------

    def __enter__(self) -> PartFile:
        """Open or continue the part; raises StorageError."""
        self._root.make_folder(self.path.parent)
        noted = read_log(self.final, size=self.size, sha256=self.sha256, block_size=self.block_size)
        self._blocks = {index: digest for index, digest in noted.items() if self._is_credible(index, digest)}
        self._claimed = set(self._blocks)
        self.resumed_bytes = self._written = bytes_of_blocks(self._blocks, self.size, self.block_size)
        try:
            if self.path.is_symlink():
                self._root.remove(self.path)  # never write through a link
            is_new = not self.path.exists()
            if is_new:
                self._start_log()  # first: a part without a log counts as somebody else's
            self._descriptor = self._root.open_file(self.path, is_new=True)
            self._take_room()
            if not is_new:
                self._start_log()  # last: the old one may say that the part is still shorter
        except (OSError, StorageError) as error:
            self._close_descriptors()
            if not self.path.exists():
                with contextlib.suppress(StorageError):
                    self._root.remove(log_path(self.final))
            raise error if isinstance(error, StorageError) else storage_error(error, self.path) from error
        self._move_frontier()
        self._start(self._hash_behind_frontier, "hash")
        if (flush := self._disk.flush_some) is not None:
            self._start(lambda: self._flush_behind_frontier(flush), "flush")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads and close; bytes and log stay for the next run."""
        self._stop_threads()
        self._close_descriptors()

    def _is_credible(self, index: int, noted: str) -> bool:
        """Whether a block that a log speaks of is what it should be, as far as that is known."""
        right = self._right.get(index)
        return right is None or (right == noted and self._digest_on_disk(index) == right)

    def _digest_on_disk(self, index: int) -> str | None:
        """Return the digest of a block's bytes; None where the disk does not give them."""
        digest = hashlib.sha256()
        left = min(self.block_size, self.size - index * self.block_size)
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(index * self.block_size)
                while left and (piece := stream.read(min(_READ_STEP, left))):
                    self._check_cancelled()
                    digest.update(piece)
                    left -= len(piece)
        except OSError:
            return None
        return None if left else digest.hexdigest()

    def _take_room(self) -> None:
        """Give the part its final size; blocks written into a hole cost Linux more than those with room."""
        if not self._disk.reserve(self._descriptor, self.size) and not self._blocks:
            self._disk.set_size(self._descriptor, 0)  # gives back what a disk that is too full had granted
        self._disk.set_size(self._descriptor, self.size)

    def _start(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=f"{name} {self.final.name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop_threads(self) -> None:
        with self._lock:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _close_descriptors(self) -> None:
        with self._lock:
            # A connection that was given up may still be writing: the number must not become another file's under it.
            descriptors, self._descriptor, self._log_descriptor = (self._descriptor, self._log_descriptor), -1, -1
        while self._writers:
            time.sleep(_POLL_S)
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    def _start_log(self) -> None:
        """Write the log anew, in one step: a kill in between leaves the old one."""
        if self._log_descriptor >= 0:
            os.close(self._log_descriptor)
            self._log_descriptor = -1
        head = {"version": _LOG_VERSION, "size": self.size, "sha256": self.sha256, "block_size": self.block_size}
        lines = [json.dumps(head), *(_block_line(index, digest) for index, digest in sorted(self._blocks.items()))]
        self._log_descriptor = begin_log(self._root, log_path(self.final), lines)

    # --- what the fetcher uses -------------------------------------------------------------------

    @property
    def frontier(self) -> int:
        """Everything before this offset is on disk."""
        return min(self._frontier_block * self.block_size, self.size)

    @property
    def is_digest_behind(self) -> bool:
        """Whether the digest, and not the network, is what everything waits for.

        False while the bytes of an earlier run are read: the network has no reason to wait for those.
        """
        return self._has_caught_up and self.frontier - self.hashed > _LAG_BLOCKS * self.block_size

    @property
    def bytes_on_disk(self) -> int:
        """Bytes that are there, wherever they are, those of unfinished blocks too: for people."""
        return min(self._written, self.size)

    def missing_blocks(self) -> list[int]:
        """Return the numbers of the blocks that are not there yet, in order."""
        with self._lock:
            return [index for index in range(self.block_count) if index not in self._blocks]

    def has_block(self, index: int) -> bool:
        """Whether that block is there."""
        return index in self._blocks

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at an offset; raises StorageError."""
        with self._lock:
            self._check_usable()
            self._writers += 1
            descriptor = self._descriptor
        try:
            self._disk.write(descriptor, data, offset)
        except OSError as error:
            raise storage_error(error, self.path) from error
        finally:
            with self._lock:
                self._writers -= 1
                self._written += len(data)

    def finish_block(self, index: int, sha256: str) -> None:
        """Say that every byte of a block was written, and what its digest is; raises StorageError."""
        with self._lock:
            self._check_usable()
            self._blocks[index] = sha256
            self._move_frontier()
            self._changed.notify_all()
            try:
                self._disk.append(self._log_descriptor, (_block_line(index, sha256) + "\n").encode())
            except OSError as error:
                raise storage_error(error, log_path(self.final)) from error

    def take_over(self, digests: Mapping[int, str], copy: Callable[[int, list[tuple[int, int]]], None]) -> None:
        """Take blocks from a file on this machine that has them, before anything is fetched; raises StorageError.

        Parameters
        ----------
        digests : mapping of int to str
            The blocks, and the SHA-256 each should have: claims, as the log's are.
        copy : callable
            Copies ranges of offset and length to the part's descriptor; raises OSError.
        """
        for index in sorted(set(digests) & set(self.missing_blocks())):
            self._check_cancelled()
            offset = index * self.block_size
            length = min(self.block_size, self.size - offset)
            try:
                copy(self._descriptor, [(offset, length)])
            except OSError as error:
                raise storage_error(error, self.path) from error
            with self._lock:
                self.resumed_bytes += length
                self._written += length
                self._claimed.add(index)
            self.finish_block(index, digests[index])

    def reset(self) -> None:
        """Forget every block: what was written belongs to other content; raises StorageError."""
        self._keep({})

    def drop_wrong(self) -> bool:
        """Forget the blocks whose bytes are not those of their digest; return whether there were any."""
        noted = dict(self._blocks)
        good = {index: digest for index, digest in noted.items() if self._digest_on_disk(index) == digest}
        if len(good) == len(noted):
            return False
        self._keep(good)
        return True

    def _keep(self, blocks: dict[int, str]) -> None:
        """Go on with some of the blocks; raises StorageError."""
        with self._lock:
            self._blocks = blocks
            self._claimed &= blocks.keys()
            self._read_again.clear()
            self._frontier_block = 0
            self._move_frontier()
            self._generation += 1
            self.hashed = self._let_go = 0
            self.resumed_bytes = self._written = bytes_of_blocks(blocks, self.size, self.block_size)
            self._digest = hashlib.sha256()
            self._start_log()
            self._changed.notify_all()

    def _check_usable(self) -> None:
        """Raise StorageError after a failure of the disk, or when the file was closed."""
        if self._failure is not None:
            raise storage_error(self._failure, self.path)
        if self._descriptor < 0:
            raise storage_error(OSError(errno.EBADF, "it is closed already"), self.path)

    def _check_cancelled(self) -> None:
        if self._cancelled():
            raise KeyboardInterrupt

    def _move_frontier(self) -> None:
        while self._frontier_block in self._blocks:
            self._frontier_block += 1

    # --- what the engine uses --------------------------------------------------------------------

    def seal(self, progress: Callable[[], None] = lambda: None) -> FileDigest:
        """Wait for the digest of the whole file; every block must be there. Raises StorageError."""
        while True:
            with self._lock:
                self._check_usable()
                if self.hashed >= self.size:
                    sha256 = self._digest.hexdigest()
                    known = {**self._blocks, **self._read_again}
                    blocks = tuple(known[index] for index in range(self.block_count))
                    if self._bound:
                        blocks = self._bound if sha256 == self.sha256 else ()
                    return FileDigest(size=self.size, sha256=sha256, blocks=blocks, is_one_reading=bool(blocks))
            time.sleep(_POLL_S)
            self._check_cancelled()
            progress()

    def commit(self, source: str) -> None:
        """Make it durable, put it where it belongs as come from `source`, drop the log; raises StorageError."""
        self._stop_threads()
        # The system reports bytes it could not write once: to the thread that flushed, not to the next who asks.
        self._check_usable()
        try:
            self._disk.flush(self._descriptor)
        except OSError as error:
            raise storage_error(error, self.path) from error
        self._let_pages_go(self.size)
        self._close_descriptors()  # Windows renames no open file
        self._place(self.path, source)
        self._root.remove(log_path(self.final))

    def keep_as_bad(self) -> Path | None:
        """Keep the wrong bytes under ``<name>.bad`` or ``.bad.1``, and drop the log; return that path.

        None: both names are taken, and the bytes were discarded.  A server that keeps sending wrong ones must not fill
        the disk.
        """
        self._stop_threads()
        self._close_descriptors()
        names = (self.final.with_name(self.final.name + ending) for ending in (".bad", ".bad.1"))
        bad = next((each for each in names if not os.path.lexists(each)), None)
        if bad is None:
            self._root.remove(self.path)
        else:
            self._root.replace(self.path, bad)
        self._root.remove(log_path(self.final))
        return bad

    # --- the two threads -------------------------------------------------------------------------

    def _hash_behind_frontier(self) -> None:
        """Read what is complete back from the page cache and hash it, always in order and never across two blocks."""
        block = hashlib.sha256()
        buffer = bytearray(_READ_STEP)
        view = memoryview(buffer)
        try:
            with self.path.open("rb", buffering=0) as stream:
                while True:
                    with self._lock:
                        while self.hashed >= min(self.frontier, self.size) and not self._closing:
                            self._has_caught_up = True
                            self._changed.wait()
                        if self._closing:
                            return
                        generation, start = self._generation, self.hashed
                        index, end = start // self.block_size, (start // self.block_size + 1) * self.block_size
                        count = min(_READ_STEP, self.frontier - start, end - start)
                        digest, is_claimed = self._digest, index in self._claimed and not self._bound
                    stream.seek(start)
                    read = stream.readinto(view[:count])
                    if not read:
                        raise OSError(0, "the file became shorter while it was read")
                    digest.update(view[:read])
                    if is_claimed:
                        block = block if start % self.block_size else hashlib.sha256()
                        block.update(view[:read])
                    with self._lock:
                        if generation == self._generation:
                            self.hashed = start + read
                            if is_claimed and self.hashed in (end, self.size):
                                self._read_again[index] = block.hexdigest()
                            if self.hashed >= self.size:
                                self._changed.notify_all()
        except OSError as error:
            self._fail(error)

    def _flush_behind_frontier(self, flush: Callable[[int], None]) -> None:
        """Hand finished bytes to the disk while more arrive, so that the last flush is short."""
        flushed = self.frontier
        try:
            while True:
                with self._lock:
                    while not self._closing and self.frontier - flushed < self._disk.flush_step:
                        flushed = min(flushed, self.frontier)  # after a reset it starts from the first byte again
                        self._changed.wait()
                    if self._closing:
                        return
                    flushed = self.frontier
                flush(self._descriptor)
                self._let_pages_go(flushed)
        except OSError as error:
            self._fail(error)

    def _let_pages_go(self, flushed: int) -> None:
        """Tell the page cache what is on the disk and was digested."""
        end = min(flushed, self.hashed)
        self._disk.written(self._descriptor, self._let_go, end - self._let_go)
        self._let_go = max(self._let_go, end)

    def _fail(self, error: OSError) -> None:
        with self._lock:
            self._failure = error
            self._changed.notify_all()


def _block_line(index: int, sha256: str) -> str:
    return json.dumps({"block": index, "sha256": sha256})


def remove_part(root: Root, final: Path) -> None:
    """Remove a growing file and its log, both ours; raises StorageError."""
    for path in (part_path(final), log_path(final)):
        root.remove(path)


def drop_waiting(root: Root, path: Path) -> None:
    """Remove what a killed run wrote to become that file; for who has the lock, for another run may be at it."""
    for waiting in waiting_for(path):
        root.remove(waiting)
