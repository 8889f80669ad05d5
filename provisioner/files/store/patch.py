"""A repair in place: bad blocks arrive beside the file, the whole is verified, and only then are they written into it.

Beside ``<name>`` lie ``<name>.patch.part``, the blocks that were fetched one after the other, and
``<name>.patch.part.jsonl``, a line for each.  The damaged file stays under its name all the while, so a program that
reads it sees what it saw before; the proof is taken over its good blocks and the fetched ones together.  Then the
bytes that go are kept in ``aside``, the blocks are written, flushed and read back.

A kill before the writing leaves the file untouched.  One in its middle leaves a file in which every byte is either
the old one or the right one: never worse than it was, and the next run has every block it needs beside it.  It is not
renamed out of the way meanwhile, because a file that is missing after a kill would be worse than one that is damaged,
and it is not copied, because that takes its size on the disk once more.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from provisioner.core.errors import FileInUseError, HashMismatchError, StorageError
from provisioner.core.models import Damage
from provisioner.core.ports import Cancelled, FileDigest
from provisioner.disk.calls import DISK, Disk
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import Root
from provisioner.files.store.part_file import begin_log
from provisioner.files.store.read_at import READ_STEP, Opener, OpenFile, fill, open_for_reading
from provisioner.files.store.set_aside import Piece, drop_unfinished, is_backup, read_index, save_pieces

_LOG_VERSION = 1
_PAGE = 512  # the least a disk writes at once: a torn write is old or new in each of these
_POLL_S = 0.005
_SECOND_NS = 1_000_000_000


def patch_path(final: Path) -> Path:
    """Return where the blocks of a repair arrive."""
    return final.with_name(final.name + ".patch.part")


def patch_log_path(final: Path) -> Path:
    """Return where the log of a repair lies."""
    return final.with_name(final.name + ".patch.part.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchLog:
    """What the log of an interrupted repair says."""

    slots: dict[int, tuple[int, str]]  # by block: its place among the blocks that arrived, and its SHA-256
    kept_in: str | None = None  # folder in which the old bytes are, relative to the root
    inode: int = 0  # of the file they were taken from


def read_patch_log(final: Path, *, size: int, sha256: str, block_size: int) -> PatchLog:
    """Return what an interrupted repair left for exactly this content; empty if nothing."""
    nothing = PatchLog(slots={})
    data, log = patch_path(final), patch_log_path(final)
    try:
        if data.is_symlink() or log.is_symlink():
            return nothing
        there = data.stat().st_size
        lines = log.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return nothing
    head = _head(size, sha256, block_size)
    slots: dict[int, tuple[int, str]] = {}
    kept_in, inode = None, 0
    for number, line in enumerate(lines):
        try:
            entry: dict[str, Any] = json.loads(line)
            if number == 0:
                if entry != head:
                    return nothing
            elif "aside" in entry:
                kept_in, inode = str(entry["aside"]), int(entry["inode"])
            else:
                slots[int(entry["block"])] = int(entry["slot"]), str(entry["sha256"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            break  # a line torn by a kill; what stands before it is whole
    count = -(-size // block_size)
    whole = {
        index: (slot, digest)
        for index, (slot, digest) in slots.items()
        if 0 <= index < count
        and 0 <= slot < count
        and slot * block_size + min(block_size, size - index * block_size) <= there
        and len(digest) == 64
    }
    is_clear = len({slot for slot, _ in whole.values()}) == len(whole)
    return PatchLog(slots=whole, kept_in=kept_in, inode=inode) if is_clear else nothing


def remove_patch(root: Root, final: Path) -> None:
    """Remove what an interrupted repair left, both files ours; raises StorageError."""
    for path in (patch_path(final), patch_log_path(final)):  # the log last: without it the other is nobody's
        root.remove(path)


def _head(size: int, sha256: str, block_size: int) -> dict[str, object]:
    return {"version": _LOG_VERSION, "kind": "patch", "size": size, "sha256": sha256, "block_size": block_size}


class PatchPart:
    """A repair in place, as a growing file; safe to write to from several threads.

    Parameters
    ----------
    final : Path
        The name that the repair's own files are named after.
    target : Path
        The damaged file itself: no link, one name.
    root : Root
        The models root, whose ``aside`` keeps the bytes that go.
    damage : Damage
        What is wrong with it.
    reason : str
        Why the bytes go.
    are_blocks_bound : bool
        Whether a run of this user read the blocks of `damage` together with the whole.  Then a right whole has these
        blocks, and only the whole is digested.
    cancelled : callable
        Asked while the whole is verified.
    opener : callable
        Opens a file for reading.
    announce : callable
        Told the source that `commit` was given and the mtime in nanoseconds that the file will have, before the first
        byte of it changes.
    disk : Disk
        The system calls for writing.
    """

    def __init__(
        self,
        final: Path,
        *,
        target: Path,
        root: Root,
        damage: Damage,
        reason: str,
        are_blocks_bound: bool = False,
        cancelled: Cancelled = lambda: False,
        opener: Opener = open_for_reading,
        announce: Callable[[str, int], None] = lambda source, mtime_ns: None,
        disk: Disk = DISK,
    ) -> None:
        self.final = final
        self.size = damage.size
        self.block_size = damage.block_size
        self.hashed = 0
        self.resumed_bytes = 0
        self._target = target
        self._root = root
        self._damage = damage
        self._reason = reason
        self._are_blocks_bound = are_blocks_bound
        self._cancelled = cancelled
        self._opener = opener
        self._announce = announce
        self._disk = disk
        self._bad = frozenset(damage.bad_blocks)
        self._slots: dict[int, int] = {}
        self._done: dict[int, str] = {}
        self._kept: PatchLog = PatchLog(slots={})
        self._seen: tuple[int, ...] | None = None  # what the file was when the whole was verified
        self._digests: tuple[str, ...] = ()
        self._written = 0
        self._descriptor = self._log_descriptor = -1
        self._writers = 0
        self._lock = threading.RLock()

    # --- opening and leaving ---------------------------------------------------------------------

    def __enter__(self) -> PatchPart:
        """Open or continue the repair; raises StorageError."""
        self._root.make_folder(self.final.parent)
        found = read_patch_log(self.final, size=self.size, sha256=self._damage.sha256, block_size=self.block_size)
        self._kept = found
        used = {
            index: slot for index, slot in found.slots.items() if index in self._bad and self._may_be(index, slot[1])
        }
        self._done = {index: digest for index, (_, digest) in used.items()}
        self._slots = {index: slot for index, (slot, _) in used.items()}
        free = iter(sorted(set(range(len(self._bad))) - set(self._slots.values())))
        for index in sorted(self._bad - set(self._slots)):
            self._slots[index] = next(free)
        self.resumed_bytes = self._written = sum(map(self._bytes_of, self._done))
        try:
            for path in (patch_path(self.final), patch_log_path(self.final)):
                if path.is_symlink():
                    self._root.remove(path)  # never write through a link
            self._start_log()  # first: a patch without a log counts as somebody else's
            self._descriptor = self._root.open_file(patch_path(self.final), is_new=True)
        except StorageError:
            self._close()
            raise
        return self

    def _may_be(self, index: int, noted: str) -> bool:
        """Whether a log can be right of a block: where the right digest is known it is that one."""
        known = self._damage.digests[index] if index < len(self._damage.digests) else ""
        return known in ("", noted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; blocks and log stay for the next run."""
        self._close()

    def _close(self) -> None:
        with self._lock:
            descriptors, self._descriptor, self._log_descriptor = (self._descriptor, self._log_descriptor), -1, -1
        while self._writers:  # a connection that was given up may still be writing
            time.sleep(_POLL_S)
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    def _start_log(self) -> None:
        """Write the log anew, in one step: a kill in between leaves the old one."""
        if self._log_descriptor >= 0:
            os.close(self._log_descriptor)
            self._log_descriptor = -1
        lines = [json.dumps(_head(self.size, self._damage.sha256, self.block_size))]
        if self._kept.kept_in is not None:
            lines.append(json.dumps({"aside": self._kept.kept_in, "inode": self._kept.inode}))
        lines += [self._line(index) for index in sorted(self._done)]
        self._log_descriptor = begin_log(self._root, patch_log_path(self.final), lines)

    def _line(self, index: int) -> str:
        return json.dumps({"block": index, "slot": self._slots[index], "sha256": self._done[index]})

    def _append(self, line: str) -> None:
        try:
            self._disk.append(self._log_descriptor, (line + "\n").encode())
        except OSError as error:
            raise storage_error(error, patch_log_path(self.final)) from error

    # --- what the fetcher uses -------------------------------------------------------------------

    @property
    def frontier(self) -> int:
        """Everything before this offset is on disk, in the file or beside it."""
        missing = self.missing_blocks()
        return missing[0] * self.block_size if missing else self.size

    @property
    def is_digest_behind(self) -> bool:
        """Whether the digest is what everything waits for: it is taken at the end."""
        return False

    @property
    def bytes_on_disk(self) -> int:
        """Bytes that are there: the good blocks of the file, and what arrived."""
        return min(self.size, self.size - self._damage.bad_bytes + self._written)

    def missing_blocks(self) -> list[int]:
        """Return the numbers of the bad blocks that have not arrived, in order."""
        with self._lock:
            return sorted(self._bad - set(self._done))

    def has_block(self, index: int) -> bool:
        """Whether that block is there: good in the file, or arrived."""
        return index not in self._bad or index in self._done

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes of a bad block; raises StorageError."""
        index, inside = divmod(offset, self.block_size)
        with self._lock:
            self._check_open()
            self._writers += 1
            descriptor = self._descriptor
        try:
            self._disk.write(descriptor, data, self._slots[index] * self.block_size + inside)
        except OSError as error:
            raise storage_error(error, patch_path(self.final)) from error
        finally:
            with self._lock:
                self._writers -= 1
                self._written += len(data)

    def finish_block(self, index: int, sha256: str) -> None:
        """Say that every byte of a block was written, and what its digest is; raises StorageError."""
        with self._lock:
            self._check_open()
            self._done[index] = sha256
            self._append(self._line(index))

    def reset(self) -> None:
        """Forget every block that was fetched; the good blocks of the file stay. Raises StorageError."""
        with self._lock:
            self._done.clear()
            self.hashed = self.resumed_bytes = self._written = 0
            self._start_log()

    def drop_wrong(self) -> bool:
        """Forget the blocks that arrived and hold other bytes than their digest says; return whether there were any."""
        with self._reading() as (_, new):
            found = {index: self._digest_of(new, self._slots[index], self._bytes_of(index)) for index in self._done}
        with self._lock:
            wrong = [index for index, digest in self._done.items() if found[index] != digest]
            for index in wrong:
                del self._done[index]
                self._written -= self._bytes_of(index)
            self.resumed_bytes = sum(map(self._bytes_of, self._done))
            if wrong:
                self._start_log()
        return bool(wrong)

    def _check_open(self) -> None:
        if self._descriptor < 0:
            raise storage_error(OSError(errno.EBADF, "it is closed already"), patch_path(self.final))

    def _bytes_of(self, index: int) -> int:
        return min(self.block_size, self.size - index * self.block_size)

    # --- proving ---------------------------------------------------------------------------------

    def seal(self, progress: Callable[[], None] = lambda: None) -> FileDigest:
        """Return the digest of the whole as it will be: good blocks from the file, the others as they arrived.

        Where the blocks are bound, a right whole is the only thing that is digested; a wrong one has no blocks.

        Raises
        ------
        StorageError
            The disk refused, or the file changed meanwhile.
        KeyboardInterrupt
            The run was cancelled.
        """
        whole, digests = hashlib.sha256(), []
        view = memoryview(bytearray(min(READ_STEP, self.block_size)))
        self.hashed = 0
        with self._reading() as (old, new):
            self._seen = self._state()
            for index in range(-(-self.size // self.block_size)):
                block = hashlib.sha256()
                for piece in self._pieces(index, old, new, view):
                    whole.update(piece)
                    if not self._are_blocks_bound:
                        block.update(piece)
                    self.hashed += len(piece)
                    progress()
                    if self._cancelled():
                        raise KeyboardInterrupt
                digests.append(block.hexdigest())
        self._check_unchanged()
        sha256 = whole.hexdigest()
        if self._are_blocks_bound:
            self._digests = self._damage.digests if sha256 == self._damage.sha256 else ()
        else:
            self._digests = tuple(digests)
        return FileDigest(size=self.size, sha256=sha256, blocks=self._digests, is_one_reading=bool(self._digests))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[OpenFile, OpenFile]]:
        """Open the damaged file and what arrived; refusals of either become errors that name the damaged file."""
        opened: list[OpenFile] = []
        try:
            for path in (self._target, patch_path(self.final)):
                opened.append(self._opener(path))
            yield opened[0], opened[1]
        except OSError as error:
            raise storage_error(error, self._target, doing="read") from error
        finally:
            for file in opened:
                file.close()

    def _pieces(self, index: int, old: OpenFile, new: OpenFile, view: memoryview) -> Iterator[memoryview]:
        """Yield the bytes of one block as it will be; raises OSError."""
        file, base = (new, self._slots[index]) if index in self._bad else (old, index)
        done, length = 0, self._bytes_of(index)
        while done < length:
            count = fill(file, view[: min(len(view), length - done)], base * self.block_size + done)
            if not count:
                raise OSError(errno.EIO, "it became shorter while it was read")
            yield view[:count]
            done += count

    def _state(self) -> tuple[int, ...]:
        """Return what shows that the damaged file is still the one that was read; raises OSError."""
        found = self._target.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OSError(errno.EMLINK, "it became a link or got a second name")
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _check_unchanged(self) -> None:
        try:
            now: tuple[int, ...] | None = self._state()
        except OSError:
            now = None
        if now is None or now != self._seen:
            raise FileInUseError(
                f"{self._target} changed while it was repaired; what was fetched is kept.",
                hint="Wait until nothing writes to it, then run the same command again.",
                path=str(self._target),
            )

    # --- writing ---------------------------------------------------------------------------------

    def commit(self, source: str) -> None:
        """Keep the bytes that go, write the blocks, flush, read them back, drop the log; raises StorageError.

        Only after `seal` gave the right digest.
        """
        self._flush(self._descriptor, patch_path(self.final))  # what the next run needs if this one ends below
        self._check_unchanged()
        writer, mtime_ns = -1, int(time.time()) * _SECOND_NS  # whole seconds: every file system keeps those exactly
        try:
            writer = self._root.open_file(self._target)
            with self._reading() as (old, new):
                self._keep_old_bytes(old, new)
                self._announce(source, mtime_ns)
                self._check_unchanged()  # keeping the old bytes took a moment
                for index in sorted(self._bad):
                    data = self._bytes_at(new, self._slots[index], self._bytes_of(index))
                    self._disk.write(writer, data, index * self.block_size)
                if os.fstat(writer).st_size > self.size:
                    self._disk.set_size(writer, self.size)
                self._disk.set_mtime(writer, self._target, mtime_ns)
                self._flush(writer, self._target)
                self._read_back(old)
        except OSError as error:
            raise storage_error(error, self._target) from error
        finally:
            if writer >= 0:
                os.close(writer)
        self._close()
        remove_patch(self._root, self.final)

    def keep_as_bad(self) -> Path:
        """Drop what was fetched; return the damaged file, which stays as it is."""
        self._close()
        remove_patch(self._root, self.final)
        return self._target

    def _flush(self, descriptor: int, path: Path) -> None:
        try:
            self._disk.flush(descriptor)
        except OSError as error:
            raise storage_error(error, path) from error

    def _bytes_at(self, file: OpenFile, slot: int, length: int) -> memoryview:
        view = memoryview(bytearray(length))
        count = fill(file, view, slot * self.block_size)
        if count != length:
            raise OSError(errno.EIO, "it became shorter while it was read")
        return view

    def _digest_of(self, file: OpenFile, slot: int, length: int) -> str:
        return hashlib.sha256(self._bytes_at(file, slot, length)).hexdigest()

    def _read_back(self, file: OpenFile) -> None:
        """Raise unless the blocks that were written read as they were verified."""
        for index in sorted(self._bad):
            digest = self._digest_of(file, index, self._bytes_of(index))
            if digest != self._digests[index]:
                raise HashMismatchError(
                    f"The disk did not keep block {index} of {self._target} as it was written.",
                    hint="Look at the disk's health before anything else; the old bytes are in aside.",
                    path=str(self._target),
                    expected=self._digests[index],
                    observed=digest,
                )

    # --- what goes -------------------------------------------------------------------------------

    def _keep_old_bytes(self, old: OpenFile, new: OpenFile) -> None:
        """Keep every byte that is about to go, unless an earlier run did before it was killed."""
        if self._kept.kept_in is not None:
            folder = self._root.folder.joinpath(*PurePosixPath(self._kept.kept_in).parts)
            if is_backup(self._root, folder):  # a log can say anything
                if self._is_kept(folder, old, new):
                    return
                drop_unfinished(self._root, folder)

        def announce(folder: Path) -> None:
            inside = folder.relative_to(self._root.folder).as_posix()
            self._append(json.dumps({"aside": inside, "inode": self._target.lstat().st_ino}))

        save_pieces(
            self._root,
            self._target,
            self._ranges(),
            read=lambda offset, length: bytes(self._old_bytes(old, offset, length)),
            old_size=self._damage.observed_size,
            new_size=self.size,
            new_sha256=self._damage.sha256,
            reason=self._reason,
            announce=announce,
        )
        self._flush(self._log_descriptor, patch_log_path(self.final))

    def _ranges(self) -> list[tuple[int, int]]:
        """Return offset and length of every stretch of the file that goes: bad blocks, and what is too much."""
        ranges = [(index * self.block_size, self._bytes_of(index)) for index in sorted(self._bad)]
        ranges += [
            (offset, min(self.block_size, self._damage.observed_size - offset))
            for offset in range(self.size, self._damage.observed_size, self.block_size)
        ]
        return ranges

    def _old_bytes(self, old: OpenFile, offset: int, length: int) -> memoryview:
        view = memoryview(bytearray(length))
        return view[: fill(old, view, offset)]

    def _is_kept(self, folder: Path, old: OpenFile, new: OpenFile) -> bool:
        """Whether the old bytes lie there already: every sector is still as kept, or as the kill left it, right."""
        index = read_index(folder)
        if index is None or index["new_sha256"] != self._damage.sha256:
            return False
        if self._kept.inode != self._target.lstat().st_ino:
            return False
        if self._damage.observed_size not in {index["old_size"], self.size}:
            return False
        pieces = {piece["offset"]: piece for piece in index["pieces"]}
        for offset, length in self._ranges():
            kept = _kept_bytes(folder, pieces.get(offset))
            now = self._old_bytes(old, offset, length)
            slot = self._slots.get(offset // self.block_size) if offset < self.size else None
            right = now if slot is None else self._bytes_at(new, slot, length)
            if kept is None or not _is_torn_from(now, kept, right, is_cut=slot is None):
                return False
        return True


def _kept_bytes(folder: Path, piece: Piece | None) -> bytes | None:
    """Return saved bytes, or None where they are not there or not as their digest says."""
    if piece is None:
        return None
    try:
        data = (folder / piece["name"]).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == piece["sha256"] else None


def _is_torn_from(now: memoryview, old: bytes, new: memoryview, *, is_cut: bool) -> bool:
    """Whether every sector of `now` is that of `old` or that of `new`; bytes to be cut off are only ever the old."""
    if is_cut:
        return now == old
    if len(now) != len(new) or len(old) != len(new):
        return False
    return all(now[at : at + _PAGE] in (old[at : at + _PAGE], new[at : at + _PAGE]) for at in range(0, len(now), _PAGE))
