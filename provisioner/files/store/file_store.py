"""The files of one target: proving, growing, placing, recording.  The only place that changes a models folder."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace as with_fields
from io import FileIO
from pathlib import Path

from provisioner.core.errors import FileInUseError, HashMismatchError, StorageError
from provisioner.core.models import (
    BLOCK_SIZE,
    Artifact,
    BackupEntry,
    ComfyFile,
    Damage,
    Destination,
    FileSystem,
    HubBlob,
    LocalCopy,
    PatchWay,
)
from provisioner.core.ports import (
    FOUND_IN_PLACE,
    Cancelled,
    Claim,
    FileDigest,
    GrowingFile,
    HashProgress,
    Stamp,
    Survey,
    source_of_copy,
)
from provisioner.disk.calls import write_all
from provisioner.disk.flush import flush_file
from provisioner.disk.locations import kind_of_file_system
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import Root, free_name
from provisioner.files.store.bound_blocks import BoundBlocks
from provisioner.files.store.hash_file import hash_file, survey
from provisioner.files.store.hash_pool import IN_ORDER, Hashers
from provisioner.files.store.hub_layout import (
    blob_behind,
    blob_path,
    is_used_elsewhere,
    place_blob,
    remove_waiting_links,
)
from provisioner.files.store.inside import check_inside
from provisioner.files.store.intents import announced_claim, waiting_copies, waiting_path
from provisioner.files.store.part_file import (
    LogKind,
    PartFile,
    bytes_of_blocks,
    drop_waiting,
    has_other_names,
    is_our_log,
    log_path,
    part_path,
    read_log,
    remove_part,
    write_log_of_taken_over,
)
from provisioner.files.store.patch import PatchPart, patch_log_path, patch_path, read_patch_log, remove_patch
from provisioner.files.store.read_at import Opener, fill, open_for_reading
from provisioner.files.store.receipts import Receipts, is_same_file, stamp_of
from provisioner.files.store.set_aside import (
    backups_folder,
    clear_backups,
    copy_ranges,
    list_backups,
    put_back,
    save_pieces,
    say_why,
)
from provisioner.files.store.target_lock import hold

_READINGS = 16  # of a file that others link at the same time; each of them changes its ctime twice


class FileStore:
    """What the engine knows as ``Store``, on real disks.

    Parameters
    ----------
    file_system_of : callable
        The file system a path is, or would be, on.
    cancelled : callable
        Asked during long reads; true stops with KeyboardInterrupt.
    wait : bool
        Wait for a lock that somebody else holds.
    notice : callable
        Told one line a person may want to read.
    roots : callable
        Returns the root of a folder: what changes anything below it.
    opener : callable
        Opens a file whose bytes are to be verified.
    bound : BoundBlocks, optional
        Which block digests of receipts count; none where None.
    cores : int, optional
        Most files and blocks hashed at a time; every core by default.
    """

    block_size = BLOCK_SIZE

    def __init__(
        self,
        *,
        file_system_of: Callable[[Path], FileSystem],
        cancelled: Cancelled = lambda: False,
        wait: bool = True,
        notice: Callable[[str], None] = lambda text: None,
        roots: Callable[[Path], Root] = Root,
        opener: Opener = open_for_reading,
        bound: BoundBlocks | None = None,
        cores: int | None = None,
    ) -> None:
        self._bound = bound
        self._file_system_of = file_system_of
        self._cancelled = cancelled
        self._wait = wait
        self._notice = notice
        self._roots = roots
        self._opener = opener
        self._hashers = Hashers(cores)
        self._receipts = Receipts()
        self._moving_to_backups = threading.Lock()  # a free name is found and taken in two steps

    def fill_for(self, folder: Path, manifests: Mapping[str, Collection[str]]) -> None:
        """Let the receipt of a root name these manifests, each with its files, when it is written next."""
        self._receipts.filled_for[folder] = manifests

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
                raise storage_error(
                    OSError(0, f"it is a link to {path.readlink()}, which is not there"), path, doing="read"
                ) from None
            return None
        except OSError as error:
            raise storage_error(error, path, doing="read") from error
        if not path.is_file():
            raise storage_error(OSError(0, "a folder or the like has its name"), path, doing="read")
        return found

    def claim(self, destination: Destination) -> Claim | None:
        """Return the receipt's entry for a destination, or None."""
        return self._receipts.claim(destination.root, str(destination.relative))

    def hash_file(
        self, path: Path, *, progress: HashProgress, with_blocks: bool = False, size: int | None = None
    ) -> FileDigest:
        """Read every byte in order, or the first ``size`` of them; raises UnreadableError."""

        def work() -> FileDigest:
            return hash_file(
                path,
                progress=progress,
                cancelled=self._cancelled,
                with_blocks=with_blocks,
                size=size,
                opener=self._opener,
            )

        return self._hashers.give(work, rank=IN_ORDER).result()

    def survey(self, path: Path, *, size: int, progress: HashProgress, first: int = 0) -> Survey:
        """Digest the blocks of the first ``size`` bytes, from ``first`` on, over all cores; raises UnreadableError."""
        return survey(
            path,
            size=size,
            first=first,
            progress=progress,
            cancelled=self._cancelled,
            hashers=self._hashers,
            opener=self._opener,
        )

    def is_shared(self, destination: Destination, sha256: str) -> bool:
        """Whether writing that content into the file would change more than this one name, or is not allowed.

        Behind a snapshot path of an HF cache lies a blob; it may be written if its name says that it is to hold these
        very bytes, whoever points to it.
        """
        path = _bytes_of(destination)
        if path != destination.path and path.name != sha256:
            return True
        try:
            status = path.lstat()
        except OSError:
            return True
        return not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not os.access(path, os.W_OK)

    def head(self, path: Path) -> bytes:
        """Return the first bytes of a file: enough for its safetensors header. Raises UnreadableError."""
        from provisioner.identify.identification import (  # only where a file is in doubt: the import takes its time
            how_much_to_read,
        )

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

    def are_blocks_bound(self, file_digest: FileDigest) -> bool:
        """Whether a run of this user has read these blocks together with the whole."""
        return self._bound is not None and self._bound.has(file_digest)

    def bind_blocks(self, file_digest: FileDigest) -> None:
        """Remember in the user's state folder that these blocks were read together with the whole, if they were."""
        if self._bound is not None:
            self._bound.keep(file_digest)

    def taken_bytes(self, destination: Destination, artifact: Artifact) -> int:
        """Return the bytes of the disk that the part of a download has taken: a new one needs only the rest."""
        final = _growing_name(destination, artifact)
        try:
            if not stat.S_ISREG(log_path(final).lstat().st_mode):  # the part will be moved to the backups
                return 0
            part = part_path(final).lstat()
        except OSError:
            return 0
        blocks: int | None = getattr(part, "st_blocks", None)
        if not stat.S_ISREG(part.st_mode):
            return 0
        return part.st_size if blocks is None else blocks * 512  # Windows gives a file room for all of its length

    def held_blocks(self, destination: Destination, size: int, sha256: str) -> tuple[int, ...]:
        """Return the blocks of that content that an interrupted repair in place has fetched already."""
        final = _growing_path(destination, sha256)
        return tuple(sorted(read_patch_log(final, size=size, sha256=sha256, block_size=self.block_size).slots))

    def file_system(self, destination: Destination, *, with_kind: bool = False) -> FileSystem:
        """Return the file system a destination is on; with its kind only where that is asked for."""
        found = self._file_system_of(destination.part_folder)
        return with_fields(found, kind=kind_of_file_system(found)) if with_kind else found

    def check_readable(self, destination: Destination) -> None:
        """Raise where the way to a destination is broken; links are followed, for nothing is changed behind them."""
        check_inside(destination, Root(destination.root, follows=lambda _link, _real: True))

    # --- changing --------------------------------------------------------------------------------

    def check_inside(self, destination: Destination) -> None:
        """Raise where nothing may be changed at a destination, as `check_inside` does."""
        check_inside(destination, self._roots(destination.root))

    def lock(self, destinations: Sequence[Destination]) -> AbstractContextManager[None]:
        """Hold every root of these destinations, always in the same order; entering raises LockHeldError."""
        return self.lock_roots([destination.root for destination in destinations])

    def part(
        self,
        destination: Destination,
        artifact: Artifact,
        *,
        replaces: str | None = None,
        right: Mapping[int, str] | None = None,
        bound: Sequence[str] = (),
    ) -> AbstractContextManager[PartFile]:
        """Return the part file of a destination, continuing an interrupted one; entering raises StorageError.

        Parameters
        ----------
        destination, artifact : Destination, Artifact
            What grows, and where it belongs.
        replaces : str, optional
            Why what is there has to go.  It stays until its successor is verified, and is then set aside.
        right : mapping of int to str, optional
            Digests of blocks that are known; what an earlier run left is compared with them.
        bound : sequence of str
            Digests of all blocks, if a run of this user read them together with the whole.
        """
        self.check_inside(destination)
        final = _growing_name(destination, artifact)
        root = self._roots(destination.root)
        self._make_way(root, part_path(final), log_path(final))
        content = FileDigest(size=artifact.size, sha256=artifact.sha256)
        return PartFile(
            final,
            size=artifact.size,
            sha256=artifact.sha256,
            root=root,
            right=right,
            bound=bound,
            cancelled=self._cancelled,
            place=lambda part, source: self._place(part, destination, artifact.id, content, source, replaces),
        )

    def patch(
        self, destination: Destination, artifact: Artifact, damage: Damage, *, way: PatchWay, reason: str
    ) -> AbstractContextManager[GrowingFile]:
        """Return the repair of a damaged file, continuing an interrupted one; entering raises StorageError.

        Parameters
        ----------
        destination, artifact : Destination, Artifact
            The file, and the content it is to have.
        damage : Damage
            Which of its blocks are wrong.
        way : {"in-place", "continue", "beside"}
            See `PatchFile`; what has become impossible since the plan is done beside the file.
        reason : str
            Why bytes of the user's go; they are kept in ``aside``.
        """
        self.check_inside(destination)
        whole = FileDigest(size=damage.size, sha256=damage.sha256, blocks=damage.digests)
        bound = damage.digests if self.are_blocks_bound(whole) else ()
        if way == "in-place" and not self.is_shared(destination, damage.sha256):
            target, content = _bytes_of(destination), FileDigest(size=damage.size, sha256=damage.sha256)
            final, root = _growing_name(destination, artifact), self._roots(destination.root)
            self._make_way(root, patch_path(final), patch_log_path(final))
            return PatchPart(
                final,
                target=target,
                root=root,
                damage=damage,
                reason=reason,
                are_blocks_bound=bool(bound),
                cancelled=self._cancelled,
                opener=self._opener,
                announce=lambda source, mtime_ns: self._announce(
                    destination, artifact.id, content, target, source, mtime_ns=mtime_ns
                ),
            )
        if way == "continue" and self._take_over(destination, damage, reason):
            return self.part(destination, artifact, bound=bound)
        return self._part_beside(destination, artifact, damage, reason, bound)

    def move_file(
        self,
        copy: LocalCopy,
        destination: Destination,
        artifact: Artifact,
        *,
        progress: HashProgress,
        replaces: str | None = None,
    ) -> tuple[str, FileDigest]:
        """Give a misplaced file its place, verified where it lies; return how and its proof.

        A link is not moved, nor is a file on another file system: those are placed as copies are.

        Raises
        ------
        HashMismatchError, UnreadableError, StorageError
            As `place_copy`; the file is still where it was.
        """
        self.check_inside(destination)
        is_plain = isinstance(destination, ComfyFile) and not copy.path.is_symlink()
        self._roots(destination.root).make_folder(destination.path.parent)
        if not is_plain or not _is_same_device(copy.path, destination.path.parent):
            return self.place_copy(copy, destination, artifact, progress=progress, replaces=replaces)
        if self.stamp(copy.path) is None:
            raise storage_error(FileNotFoundError(errno.ENOENT, "it is gone"), copy.path, doing="read")
        file_digest = self._verify_link(copy.path, progress)
        _check_copy(copy, file_digest)
        self._place(copy.path, destination, artifact.id, file_digest, source_of_copy("moved", copy.path), replaces)
        return "moved", file_digest

    def place_copy(
        self,
        copy: LocalCopy,
        destination: Destination,
        artifact: Artifact,
        *,
        progress: HashProgress,
        replaces: str | None = None,
    ) -> tuple[str, FileDigest]:
        """Put a local copy in place, verified; return how it got there and its proof.

        The link or copy is made first under another name and verified there, so that what gets the final name is
        what was read.  A blob of an HF cache that a killed run of ours placed and announced only gets the link to it.

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
        waiting = waiting_path(final)
        root = self._roots(destination.root)
        root.make_folder(waiting.parent)
        try:
            if replaces is None and self._is_blob_of_ours(source, destination):
                file_digest = self._verify_link(source, progress)
                _check_copy(copy, file_digest)
                self._give_name(source, destination, file_digest, None)
                return "linked", file_digest
            for left_over in waiting_copies(final):
                root.remove(left_over)
            if root.reflink(source, waiting):
                way, file_digest = "reflinked", self._verify_link(waiting, progress)
            elif root.hard_link(source, waiting):
                way, file_digest = "hard-linked", self._verify_link(waiting, progress)
            else:
                way, file_digest = "copied", self._copy(source, root, waiting, progress)
            _check_copy(copy, file_digest)
            self._place(waiting, destination, artifact.id, file_digest, source_of_copy(way, copy.path), replaces)
        except OSError as error:
            raise storage_error(error, waiting) from error
        finally:
            with contextlib.suppress(StorageError):
                root.remove(waiting)
        return way, file_digest

    def _is_blob_of_ours(self, path: Path, destination: Destination) -> bool:
        """Whether a file is the blob of a destination, and what was announced before a kill speaks of it."""
        if path.parent != Path(os.path.realpath(destination.root / "blobs")):
            return False
        relative = str(destination.relative)
        try:
            found = stamp_of(path)
            return announced_claim(self._receipts, destination.root, relative, destination.path, found) is not None
        except OSError:
            return False

    def set_aside(self, destination: Destination, reason: str) -> Path:
        """Move what is at a destination to ``.klein-setup/aside/<time>/``; return where it is now.

        Behind a snapshot path of an HF cache that is the blob too.  A blob that other snapshots point to stays, and
        gets a second name in ``aside``, so that whatever takes its place the bytes are kept.
        """
        self.check_inside(destination)
        if not isinstance(destination, HubBlob):
            return self._move_to_backups(destination.root, destination.path, reason)
        blob = blob_behind(destination)
        # The bytes first: a kill between the two leaves a link that leads nowhere, and no bytes without a name.
        kept = None if blob is None else self._keep_blob(blob, destination, reason)
        moved_to = self._move_to_backups(destination.root, destination.path, reason)
        return kept or moved_to

    def _keep_blob(self, blob: Path, destination: HubBlob, reason: str) -> Path | None:
        """Set the bytes of a blob aside and return where they are; None where they stay in the store of all."""
        if not is_used_elsewhere(blob, destination):
            return self._move_to_backups(destination.root, blob, reason)
        if blob.is_symlink():  # to the store that all repositories share
            return None
        return self._link_to_backups(destination.root, blob, reason)

    def source_of(self, destination: Destination, file_digest: FileDigest) -> str:
        """Return what the receipt of a verified file that lies there shall name as its source.

        A user's own file counts as theirs, the same bytes in the same place as well: ours is only the very file that
        a receipt or an announcement speaks of.

        Raises
        ------
        StorageError
            The system does not show the file.
        """
        found = self._stamp_there(destination)
        relative = str(destination.relative)
        announced = announced_claim(self._receipts, destination.root, relative, destination.path, found)
        for claim in (announced, self.claim(destination)):
            if (
                claim is not None
                and claim.file_digest.sha256 == file_digest.sha256
                and is_same_file(claim.stamp, found)
            ):
                return claim.source
        return FOUND_IN_PLACE

    def record(self, destination: Destination, artifact: Artifact, file_digest: FileDigest, source: str) -> None:
        """Write the receipt of a file that is in place; raises StorageError."""
        stamp = self._stamp_there(destination)
        if stamp.size != file_digest.size:
            raise FileInUseError(
                f"{destination.path} changed after it was verified.",
                hint="Something else writes to it; stop that and run the same command again.",
                path=str(destination.path),
            )
        self._sweep(_growing_name(destination, artifact), destination)  # first: nobody looks beside a recorded file
        claim = Claim(artifact_id=artifact.id, stamp=stamp, file_digest=file_digest, source=source)
        self._receipts.write_claim(self._roots(destination.root), str(destination.relative), claim, recorded_at=_now())
        self.bind_blocks(file_digest)

    # --- inside ----------------------------------------------------------------------------------

    def _stamp_there(self, destination: Destination) -> Stamp:
        try:
            return stamp_of(destination.path)
        except OSError as error:
            raise storage_error(error, destination.path, doing="read") from error

    def _announce(
        self,
        destination: Destination,
        artifact_id: str,
        file_digest: FileDigest,
        path: Path,
        source: str,
        *,
        mtime_ns: int | None = None,
    ) -> None:
        """Write down, if the disk takes it, that the file at `path` is about to be what lies at a destination.

        Not of what is the user's: without a receipt it counts as theirs anyway.

        Parameters
        ----------
        destination, artifact_id, proof, source : Destination, str, FileDigest, str
            What its receipt will say.
        path : Path
            Where the file is now.
        mtime_ns : int, optional
            What a file that is still to be written will have.

        Raises
        ------
        StorageError
            The file cannot be seen.
        """
        if source == FOUND_IN_PLACE:
            return
        try:
            stamp = stamp_of(path)
        except OSError as error:
            raise storage_error(error, path, doing="read") from error
        if mtime_ns is not None:
            stamp = with_fields(stamp, size=file_digest.size, mtime_ns=mtime_ns)
        bare = FileDigest(
            size=file_digest.size, sha256=file_digest.sha256
        )  # it speaks of whose the file is, not of its blocks
        claim = Claim(artifact_id=artifact_id, stamp=stamp, file_digest=bare, source=source)
        with contextlib.suppress(StorageError):  # a disk too full for it may have room for the file's name all the same
            root, relative = self._roots(destination.root), str(destination.relative)
            self._receipts.announce_claim(root, relative, claim, recorded_at=_now())

    def _sweep(self, final: Path, destination: Destination) -> None:
        """Remove what interrupted runs of ours left beside a file that is in place now, if the system lets us."""
        root = self._roots(destination.root)
        with contextlib.suppress(OSError, StorageError):
            for left_over in waiting_copies(final):
                root.remove(left_over)
            for log in (log_path(final), patch_log_path(final)):
                drop_waiting(root, log)
            if is_our_log(log_path(final), "download"):
                remove_part(root, final)
            if is_our_log(patch_log_path(final), "patch"):
                remove_patch(root, final)
            if isinstance(destination, HubBlob):
                remove_waiting_links(root, destination.path)

    def _make_way(self, root: Root, part: Path, log: Path) -> None:
        """Set aside what has the names that a growing file of ours and its log will have, and is not ours."""
        kind: LogKind = "patch" if part.name.endswith(".patch.part") else "download"
        if os.path.lexists(part) and (has_other_names(part) or not is_our_log(log, kind)):
            # Some other program's partial file, or a link, under the name we use.
            self._move_to_backups(root.folder, part, "a .part file that is not ours was in the way")
        if os.path.lexists(log) and not is_our_log(log, kind):
            self._move_to_backups(root.folder, log, "another file was in the way of the log of a download")

    def _place(
        self,
        part: Path,
        destination: Destination,
        artifact_id: str,
        file_digest: FileDigest,
        source: str,
        replaces: str | None,
    ) -> None:
        """Announce verified bytes and give them their final name; what did not get it is not announced any more."""
        self._announce(destination, artifact_id, file_digest, part, source)
        try:
            self._give_name(part, destination, file_digest, replaces)
        except BaseException as error:
            if os.path.lexists(part):
                with contextlib.suppress(StorageError):
                    self._receipts.drop_announced(self._roots(destination.root), str(destination.relative))
            if isinstance(error, OSError):  # what was seen there a moment ago is gone
                raise storage_error(error, destination.path) from error
            raise

    def _give_name(self, part: Path, destination: Destination, file_digest: FileDigest, replaces: str | None) -> None:
        """Give verified bytes their final name; what is there is set aside, also if it came after the plan."""
        path, root = destination.path, self._roots(destination.root)
        source_root = root if root.folder in part.parents else self._roots(part.parent)
        reason = replaces or "it was in the place of a verified file"
        if isinstance(destination, HubBlob):
            if replaces is not None:
                self.set_aside(destination, replaces)
            elif os.path.lexists(path) and not path.is_symlink():
                self._move_to_backups(destination.root, path, reason)
            with contextlib.suppress(OSError):  # of the part, which `place_blob` says
                blob = blob_path(destination, part, file_digest.size, file_digest.sha256)
                if os.path.lexists(blob) and not blob.samefile(part) and not is_used_elsewhere(blob, destination):
                    self._move_to_backups(destination.root, blob, "other bytes had the name of this blob")
            place_blob(
                root, part, destination, size=file_digest.size, sha256=file_digest.sha256, source_root=source_root
            )
            return
        if os.path.lexists(path) and (path.is_symlink() or not path.samefile(part)):
            moved_to = self._move_to_backups(destination.root, path, reason)
            if replaces is None:
                self._notice(f"{path} appeared meanwhile; it is now {moved_to}.")
        root.replace(part, path, source_root=source_root)

    def _take_over(self, destination: Destination, damage: Damage, reason: str) -> bool:
        """Make a truncated file a part that is continued; False, and nothing done, where that is not possible.

        The log comes first, so that a kill in between leaves the file or a part whose good blocks are known.
        """
        path = destination.path
        try:
            size = path.lstat().st_size
        except OSError:
            return False
        if (
            not isinstance(destination, ComfyFile)
            or self.is_shared(destination, damage.sha256)
            or size != damage.observed_size
        ):
            return False
        if os.path.lexists(part_path(path)) or (os.path.lexists(log_path(path)) and not is_our_log(log_path(path))):
            return False
        file = self._opener(path)
        try:
            self._keep_cut_bytes(destination, damage, reason, lambda view, offset: fill(file, view, offset))
        finally:
            file.close()
        good = set(range(len(damage.digests))) - set(damage.bad_blocks)
        root = self._roots(destination.root)
        write_log_of_taken_over(
            root,
            path,
            size=damage.size,
            sha256=damage.sha256,
            block_size=damage.block_size,
            there=damage.observed_size,
            good={index: damage.digests[index] for index in good},
        )
        root.replace(path, part_path(path))
        return True

    def _keep_cut_bytes(
        self, destination: Destination, damage: Damage, reason: str, read_into: Callable[[memoryview, int], int]
    ) -> None:
        """Keep the bytes of a truncated file that a fetched block will be written over."""

        def read(offset: int, length: int) -> bytes:
            view = memoryview(bytearray(length))
            return bytes(view[: read_into(view, offset)])

        starts = (index * damage.block_size for index in damage.bad_blocks)
        save_pieces(
            self._roots(destination.root),
            destination.path,
            [(at, min(damage.block_size, damage.observed_size - at)) for at in starts if at < damage.observed_size],
            read=read,
            old_size=damage.observed_size,
            new_size=damage.size,
            new_sha256=damage.sha256,
            reason=reason,
        )

    @contextlib.contextmanager
    def _part_beside(
        self, destination: Destination, artifact: Artifact, damage: Damage, reason: str, bound: Sequence[str]
    ) -> Iterator[PartFile]:
        """Open a part that has the good blocks of a damaged file; that file is set aside when the part is verified."""
        source = destination.path
        bad = set(damage.bad_blocks)
        good = {index: digest for index, digest in enumerate(damage.digests) if index not in bad}
        right = {index: digest for index, digest in enumerate(damage.digests) if digest}
        with self.part(destination, artifact, replaces=reason, right=right, bound=bound) as part:
            if source.is_file():  # a truncated file that is continued has become the part itself
                part.take_over(good, lambda writer, ranges: copy_ranges(self._opener, source, writer, ranges))
            yield part

    # --- what was set aside ----------------------------------------------------------------------

    def list_backups(self, roots: Sequence[Path]) -> tuple[BackupEntry, ...]:
        """Return everything set aside below some roots, oldest first."""
        return list_backups(roots)

    def put_back(self, entry: BackupEntry, *, progress: HashProgress = lambda count: None) -> Path:
        """Give what was set aside its old name again; see `aside.put_back` for what it raises."""
        return put_back(
            self._roots(entry.root),
            entry,
            hash_file=lambda path: self.hash_file(path, progress=progress),
            opener=self._opener,
            move_to_backups=lambda path, reason: self._move_to_backups(entry.root, path, reason),
        )

    def clear_backups(self, entries: Sequence[BackupEntry]) -> int:
        """Delete what was set aside, for good; return the bytes that were freed. Raises StorageError."""
        return clear_backups(self._roots, entries)

    def lock_roots(self, roots: Sequence[Path]) -> AbstractContextManager[None]:
        """Hold some roots, always in the same order; entering raises LockHeldError."""
        return self._hold(sorted(set(roots)))

    @contextlib.contextmanager
    def _hold(self, roots: Sequence[Path]) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            for root in roots:
                held.enter_context(
                    hold(self._roots(root), wait=self._wait, cancelled=self._cancelled, notice=self._notice)
                )
            yield

    # --- moving ----------------------------------------------------------------------------------

    def _verify_link(self, waiting: Path, progress: HashProgress) -> FileDigest:
        """Verify a file whose bytes another name may share, so that somebody else may be writing them.

        Another run that links the same file changes its ctime and none of its bytes; so then it is read again.
        """
        before = stamp_of(waiting)
        for _ in range(_READINGS):
            file_digest = self.hash_file(waiting, progress=progress, with_blocks=True)
            after = stamp_of(waiting)
            if after == before:
                return file_digest
            if not is_same_file(before, after):
                break
            before = after
        raise storage_error(OSError(errno.EIO, "it changed while it was read"), waiting, doing="read")

    def _copy(self, source: Path, root: Root, waiting: Path, progress: HashProgress) -> FileDigest:
        with root.create(waiting) as stream:
            file_digest = hash_file(
                source,
                progress=progress,
                cancelled=self._cancelled,
                with_blocks=True,
                also=lambda piece: _write(stream, piece, waiting),
            )
            flush_file(stream.fileno())
        return file_digest

    def _move_to_backups(self, below: Path, path: Path, reason: str) -> Path:
        """Move what is at a path aside and return where it is now; does nothing if nothing is there."""
        with self._moving_to_backups:
            return self._moved_to_backups(below, path, reason)

    def _moved_to_backups(self, below: Path, path: Path, reason: str) -> Path:
        root = self._roots(below)
        folder = backups_folder(below)
        if not os.path.lexists(path):
            return folder
        moved_to = free_name(folder / path.relative_to(below))
        root.make_folder(moved_to.parent)
        try:
            root.replace(path, moved_to)
        except StorageError as error:
            if error.context.get("errno") != errno.EXDEV:
                for made in (moved_to.parent, *moved_to.parent.parents):
                    if not root.remove_folder(made):  # only what is empty goes
                        break
                raise
            # Another file system is mounted below the root: a rename needs a folder on it.  The name gets an ending,
            # because ComfyUI looks for models in every folder below this one.
            folder = backups_folder(path.parent)
            moved_to = free_name(folder / f"{path.name}.aside")
            root.make_folder(folder)
            root.replace(path, moved_to)
        say_why(root, folder, path, moved_to, reason)
        return moved_to

    def _link_to_backups(self, below: Path, path: Path, reason: str) -> Path | None:
        """Give a file that has to stay a second name in ``aside``; None where the file system has no such thing."""
        root = self._roots(below)
        folder = backups_folder(below)
        with self._moving_to_backups:
            linked = free_name(folder / path.relative_to(below))
            root.make_folder(linked.parent)
            if not root.hard_link(path, linked):
                return None
            say_why(root, folder, path, linked, reason)
        return linked


def _check_copy(copy: LocalCopy, file_digest: FileDigest) -> None:
    """Raise HashMismatchError unless a copy has the bytes it would have to have."""
    if file_digest.sha256 != copy.sha256:
        raise HashMismatchError(
            f"{copy.path} has the right size and other bytes (SHA-256 {file_digest.sha256}, not {copy.sha256}).",
            hint="It was left alone; the file is taken from another place.",
            path=str(copy.path),
            expected=copy.sha256,
            observed=file_digest.sha256,
        )


def _is_same_device(path: Path, folder: Path) -> bool:
    try:
        return path.stat().st_dev == folder.stat().st_dev
    except OSError:
        return False


def _bytes_of(destination: Destination) -> Path:
    """Return the file that holds a destination's bytes: behind a snapshot path the blob of that name, if it is one."""
    blob = blob_behind(destination) if isinstance(destination, HubBlob) else None
    return blob if blob is not None else destination.path


def _growing_name(destination: Destination, artifact: Artifact) -> Path:
    """Return the final name a growing file's ``.part`` is named after."""
    return _growing_path(destination, artifact.sha256)


def _growing_path(destination: Destination, sha256: str) -> Path:
    return destination.path if isinstance(destination, ComfyFile) else destination.part_folder / sha256


def _write(stream: FileIO, piece: bytes | memoryview, path: Path) -> None:
    try:
        write_all(stream, piece)
    except OSError as error:  # told apart here from an error of the file being read
        raise storage_error(error, path) from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
