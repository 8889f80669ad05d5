"""The files of one target: proving, growing, placing, recording.  The only place that changes a models folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from provisioner.adapters.store.durable import Move, flush_file, make_folder, replace, storage_error
from provisioner.adapters.store.hubcache import Symlink, blob_behind, is_used_elsewhere, make_symlink, place_blob
from provisioner.adapters.store.locking import hold
from provisioner.adapters.store.partfile import (
    PartFile,
    bytes_of_blocks,
    log_path,
    part_path,
    read_log,
    remove_part,
)
from provisioner.adapters.store.placing import WAYS, Linker, hard_link, link_somehow
from provisioner.adapters.store.proving import prove
from provisioner.adapters.store.receipts import read_receipt, stamp_of, write_claim
from provisioner.errors import FileInUseError, HashMismatchError, StorageError
from provisioner.models import (
    STATE_FOLDER,
    Artifact,
    ComfyFile,
    Destination,
    FileSystem,
    HubBlob,
    LocalCopy,
)
from provisioner.ports import Cancelled, Claim, HashProgress, Proof, Stamp


class FileStore:
    """What the engine knows as ``Store``, on real disks.

    Parameters
    ----------
    file_system_of : callable
        The file system a path is, or would be, on.
    inside : callable
        Raises PathOutsideRootError where a link leads out of a destination's root.
    cancelled : callable
        Asked during long reads; true stops with KeyboardInterrupt.
    wait : bool
        Wait for a lock that somebody else holds.
    notice : callable
        Told one line a person may want to read.
    ways : tuple
        How a copy elsewhere may be linked into place, best first.
    move, symlink, second_name : callable
        How a file gets another name, how a link is made, and how a file gets a second name.
    """

    def __init__(
        self,
        *,
        file_system_of: Callable[[Path], FileSystem],
        inside: Callable[[Destination], None],
        cancelled: Cancelled = lambda: False,
        wait: bool = True,
        notice: Callable[[str], None] = lambda text: None,
        ways: tuple[tuple[str, Linker], ...] = WAYS,
        move: Move = replace,
        symlink: Symlink = make_symlink,
        second_name: Linker = hard_link,
    ) -> None:
        self._file_system_of = file_system_of
        self.check_inside = inside
        self._cancelled = cancelled
        self._wait = wait
        self._notice = notice
        self._ways = ways
        self._move = move
        self._symlink = symlink
        self._second_name = second_name

    # --- looking ---------------------------------------------------------------------------------

    def stamp(self, path: Path) -> Stamp | None:
        """Return the file's stamp, links followed; None where nothing is.

        Raises
        ------
        UnreadableError
            Something is there that is no file, or that the system does not show.
        """
        try:
            found = stamp_of(path)
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise storage_error(OSError(0, "the link leads nowhere"), path, doing="read") from None
            return None
        except OSError as error:
            raise storage_error(error, path, doing="read") from error
        if not path.is_file():
            raise storage_error(OSError(0, "it is not a file"), path, doing="read")
        return found

    def claim(self, destination: Destination) -> Claim | None:
        """Return the receipt's entry for a destination, or None."""
        return read_receipt(destination.root).get(str(destination.relative))

    def prove(self, path: Path, *, progress: HashProgress, with_blocks: bool = False) -> Proof:
        """Read every byte; raises UnreadableError."""
        return prove(path, progress=progress, cancelled=self._cancelled, with_blocks=with_blocks)

    def head(self, path: Path) -> bytes:
        """Return the first bytes of a file: enough for its safetensors header. Raises UnreadableError."""
        from provisioner.identify import how_much_to_read  # only where a file is in doubt: the import takes its time

        try:
            with path.open("rb") as stream:
                first = stream.read(8)
                return first + stream.read(max(0, how_much_to_read(first) - len(first)))
        except OSError as error:
            raise storage_error(error, path, doing="read") from error

    def held_bytes(self, destination: Destination, artifact: Artifact) -> int:
        """Return the bytes of an interrupted download that a new one can build on."""
        blocks = read_log(_growing_name(destination, artifact), size=artifact.size, sha256=artifact.sha256)
        return bytes_of_blocks(blocks, artifact.size)

    def file_system(self, destination: Destination) -> FileSystem:
        """Return the file system a destination is on."""
        return self._file_system_of(destination.part_folder)

    # --- changing --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, destinations: Sequence[Destination]) -> Iterator[None]:
        """Hold every root of these destinations, always in the same order; raises LockHeldError."""
        roots = sorted({destination.root for destination in destinations})
        with contextlib.ExitStack() as held:
            for root in roots:
                held.enter_context(hold(root, wait=self._wait, cancelled=self._cancelled, notice=self._notice))
            yield

    def part(
        self, destination: Destination, artifact: Artifact, *, replaces: str | None = None
    ) -> AbstractContextManager[PartFile]:
        """Return the part file of a destination, continuing an interrupted one; entering raises StorageError.

        Parameters
        ----------
        destination, artifact : Destination, Artifact
            What grows, and where it belongs.
        replaces : str, optional
            Why what is there has to go.  It stays until its successor is proven, and is then set aside.
        """
        self.check_inside(destination)
        final = _growing_name(destination, artifact)
        part, log = part_path(final), log_path(final)
        if os.path.lexists(part) and (part.is_symlink() or log.is_symlink() or not log.exists()):
            # Some other program's partial file, or a link, under the name we use.
            self._move_aside(destination.root, part, "a .part file that is not ours was in the way")
        if log.is_symlink():
            self._move_aside(destination.root, log, "a link was in the way of the log of a download")
        return PartFile(
            final,
            size=artifact.size,
            sha256=artifact.sha256,
            place=lambda part: self._place(part, destination, artifact.size, artifact.sha256, replaces),
        )

    def place_copy(
        self,
        copy: LocalCopy,
        destination: Destination,
        artifact: Artifact,
        *,
        progress: HashProgress,
        replaces: str | None = None,
    ) -> tuple[str, Proof]:
        """Put a local copy in place, proven; return how it got there and its proof.

        The link or copy is made first under another name and proven there, so that what gets the final name is
        what was read.

        Raises
        ------
        HashMismatchError
            The copy holds other bytes; nothing was placed.
        UnreadableError
            The copy is gone, cannot be read, or changes while it is read; nothing was placed.
        StorageError
            The disk refused.
        """
        self.check_inside(destination)
        source = copy.path.resolve()
        if self.stamp(source) is None:
            raise storage_error(FileNotFoundError(errno.ENOENT, "it is gone"), copy.path, doing="read")
        final = _growing_name(destination, artifact)
        waiting = _waiting_name(final)
        make_folder(waiting.parent)
        try:
            waiting.unlink(missing_ok=True)
            way = link_somehow(source, waiting, self._ways)
            if way is None:
                way, proof = "copied", self._copy(source, waiting, progress)
            else:
                proof = self._prove_link(waiting, progress)
            if proof.sha256 != copy.sha256:
                raise HashMismatchError(
                    f"{copy.path} has the right size and other bytes (SHA-256 {proof.sha256}, not {copy.sha256}).",
                    hint="It was left alone; the file is taken from another place.",
                    path=str(copy.path),
                    expected=copy.sha256,
                    observed=proof.sha256,
                )
            self._place(waiting, destination, proof.size, proof.sha256, replaces)
        except OSError as error:
            raise storage_error(error, waiting) from error
        finally:
            with contextlib.suppress(OSError):
                waiting.unlink(missing_ok=True)
        return way, proof

    def set_aside(self, destination: Destination, reason: str) -> Path:
        """Move what is at a destination to ``.klein-setup/aside/<time>/``; return where it is now.

        Behind a snapshot path of an HF cache that is the blob too.  A blob that other snapshots point to stays, and
        gets a second name in ``aside``, so that whatever takes its place the bytes are kept.
        """
        self.check_inside(destination)
        if not isinstance(destination, HubBlob):
            return self._move_aside(destination.root, destination.path, reason)
        blob = blob_behind(destination)
        moved_to = self._move_aside(destination.root, destination.path, reason)
        if blob is None:
            return moved_to
        if not is_used_elsewhere(blob, destination):
            return self._move_aside(destination.root, blob, reason)
        if blob.is_symlink():  # to the store that all repositories share
            return moved_to
        return self._link_aside(destination.root, blob, reason) or moved_to

    def record(self, destination: Destination, artifact: Artifact, proof: Proof, source: str) -> None:
        """Write the receipt of a file that is in place; raises StorageError."""
        try:
            stamp = stamp_of(destination.path)
        except OSError as error:
            raise storage_error(error, destination.path, doing="read") from error
        if stamp.size != proof.size:
            raise FileInUseError(
                f"{destination.path} changed after it was proven.",
                hint="Something else writes to it; stop that and run the same command again.",
                path=str(destination.path),
            )
        claim = Claim(artifact_id=artifact.id, stamp=stamp, proof=proof, source=source)
        write_claim(destination.root, str(destination.relative), claim, recorded_at=_now())
        self._sweep(_growing_name(destination, artifact))

    # --- inside ----------------------------------------------------------------------------------

    def _sweep(self, final: Path) -> None:
        """Remove what interrupted runs of ours left beside a file that is in place now, if the system lets us."""
        with contextlib.suppress(OSError, StorageError):
            _waiting_name(final).unlink(missing_ok=True)
            if log_path(final).is_file() and not log_path(final).is_symlink():
                remove_part(final)

    def _place(self, part: Path, destination: Destination, size: int, sha256: str, replaces: str | None) -> None:
        """Give proven bytes their final name; what is there is set aside, also if it came after the plan."""
        path = destination.path
        reason = replaces or "it was in the way of a proven file"
        if isinstance(destination, HubBlob):
            if replaces is not None:
                self.set_aside(destination, replaces)
            elif os.path.lexists(path) and not path.is_symlink():
                self._move_aside(destination.root, path, reason)
            place_blob(part, destination, size=size, sha256=sha256, symlink=self._symlink, move=self._move)
            return
        if os.path.lexists(path) and (path.is_symlink() or not path.samefile(part)):
            moved_to = self._move_aside(destination.root, path, reason)
            if replaces is None:
                self._notice(f"{path} appeared meanwhile; it is now {moved_to}.")
        self._move(part, path)

    def _prove_link(self, waiting: Path, progress: HashProgress) -> Proof:
        """Prove a file whose bytes another name may share, so that somebody else may be writing them."""
        before = stamp_of(waiting)
        proof = self.prove(waiting, progress=progress, with_blocks=True)
        if stamp_of(waiting) != before:
            raise storage_error(OSError(errno.EIO, "it changed while it was read"), waiting, doing="read")
        return proof

    def _copy(self, source: Path, waiting: Path, progress: HashProgress) -> Proof:
        with waiting.open("xb") as stream:
            proof = prove(
                source,
                progress=progress,
                cancelled=self._cancelled,
                with_blocks=True,
                also=lambda piece: _write(stream, piece, waiting),
            )
            stream.flush()
            flush_file(stream.fileno())
        return proof

    def _move_aside(self, root: Path, path: Path, reason: str) -> Path:
        """Move what is at a path aside and return where it is now; does nothing if nothing is there."""
        folder = _aside_folder(root)
        if not os.path.lexists(path):
            return folder
        moved_to = _free_name(folder / path.relative_to(root))
        make_folder(moved_to.parent)
        try:
            self._move(path, moved_to)
        except StorageError as error:
            if error.context.get("errno") != errno.EXDEV:
                raise
            # Another file system is mounted below the root: a rename needs a folder on it.  The name gets an ending,
            # because ComfyUI looks for models in every folder below this one.
            folder = _aside_folder(path.parent)
            moved_to = _free_name(folder / f"{path.name}.aside")
            make_folder(folder)
            self._move(path, moved_to)
        _say_why(folder, path, moved_to, reason)
        return moved_to

    def _link_aside(self, root: Path, path: Path, reason: str) -> Path | None:
        """Give a file that has to stay a second name in ``aside``; None where the file system has no such thing."""
        folder = _aside_folder(root)
        linked = _free_name(folder / path.relative_to(root))
        make_folder(linked.parent)
        try:
            if not self._second_name(path, linked):
                return None
        except OSError as error:
            raise storage_error(error, linked) from error
        _say_why(folder, path, linked, reason)
        return linked


def _aside_folder(root: Path) -> Path:
    return root / STATE_FOLDER / "aside" / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def _say_why(folder: Path, path: Path, moved_to: Path, reason: str) -> None:
    line = {"was": str(path.relative_to(folder.parents[2])), "is": str(moved_to.relative_to(folder)), "why": reason}
    if moved_to.is_symlink():
        line["link"] = str(moved_to.readlink())  # a relative one leads nowhere from here
    try:
        with (folder / "why.jsonl").open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(line) + "\n")
    except OSError as error:
        raise storage_error(error, folder / "why.jsonl") from error


def _waiting_name(final: Path) -> Path:
    """Return the name under which a local copy waits for its proof."""
    return final.with_name(final.name + ".placing.part")


def _growing_name(destination: Destination, artifact: Artifact) -> Path:
    """Return the final name a growing file's ``.part`` is named after."""
    if isinstance(destination, ComfyFile):
        return destination.path
    return destination.part_folder / artifact.sha256


def _free_name(path: Path) -> Path:
    """Return the path, or one beside it that is not taken."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate


def _write(stream: BinaryIO, piece: bytes | memoryview, path: Path) -> None:
    try:
        stream.write(piece)
    except OSError as error:  # told apart here from an error of the file being read
        raise storage_error(error, path) from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
