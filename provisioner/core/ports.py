"""The interfaces the engine needs to the disk, the network and other programs, as protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from provisioner.core.errors import KleinError
from provisioner.core.models import (
    Artifact,
    Damage,
    Destination,
    FileSystem,
    HubFile,
    LocalCopy,
    OciFile,
    PatchWay,
    Source,
    Variant,
)
from provisioner.core.route import Route

FOUND_IN_PLACE = "found in place"
"""The source in the receipt of a file that klein-setup found: it stays the user's, even after a repair."""


def source_of_copy(way: str, path: Path) -> str:
    """Return the source in the receipt of a file whose bytes came from another place on this machine.

    A file that was only moved is the user's own file under another name.
    """
    return FOUND_IN_PLACE if way == "moved" else f"{way} from {path}"


Cancelled = Callable[[], bool]
"""Called often during long work; True means: stop now and raise KeyboardInterrupt."""

HashProgress = Callable[[int], None]
"""Called with the bytes hashed so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What the file system says about a file; where it is equal to the receipt's, the receipt is trusted."""

    size: int
    mtime_ns: int
    ctime_ns: int | None  # None on Windows, where st_ctime is the time of creation
    inode: int
    device: int
    is_in_cloud: bool = field(default=False, compare=False)  # its bytes are not on this disk


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """The result of reading every byte of a file."""

    size: int
    sha256: str
    blocks: tuple[str, ...] = ()  # SHA-256 of every 16 MiB block, in order; empty where not taken
    is_one_reading: bool = field(default=False, compare=False)  # both were taken from the same bytes, in this run


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The result of reading a file block by block, in any order; without a digest of the whole."""

    blocks: tuple[str | None, ...]  # SHA-256 of every block that was read; None: reading failed
    unreadable: str | None = None  # where and why, in words, of the first block that could not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A receipt's entry for one file: what was verified, and the file's stamp at that moment."""

    artifact_id: str
    stamp: Stamp
    file_digest: FileDigest
    source: str  # where the bytes came from, without query or token


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress:
    """The state of a transfer; the fetcher sends about ten a second."""

    received: int  # bytes over the network in this run
    rate_bytes_s: float
    connections: int
    attempt: int
    note: str = ""  # why nothing arrives at the moment, if so
    leaves_room: bool = False  # another file could use connections that those on their way have no use for


class ProcessResult(Protocol):
    """The result of a program that ended by itself."""

    @property
    def returncode(self) -> int:
        """Exit status."""

    @property
    def stdout(self) -> str:
        """What it wrote to stdout."""

    @property
    def stderr(self) -> str:
        """What it wrote to stderr."""

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The end of both streams."""


class RunProcess(Protocol):
    """Starts a program by argument list; raises CommandError where it cannot, or where it takes too long.

    ``env`` is the whole environment, this process's where None; ``on_line`` gets the stream and each line while the
    program runs, and an exception it raises ends the program; ``keep_bytes`` limits what is kept of each stream.
    """

    def __call__(
        self,
        args: Sequence[str | Path],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input_bytes: bytes | None = None,
        on_line: Callable[[str, str], None] | None = None,
        keep_bytes: int = ...,
    ) -> ProcessResult:
        """Run it to its end."""


class Download(Protocol):
    """Brings the file at an address to a path; raises NetworkError, AccessError, IntegrityError, StorageError.

    ``what`` and ``hint`` go into the sentences of an error.
    """

    def __call__(
        self,
        url: str,
        path: Path,
        *,
        what: str,
        hint: str,
        most_bytes: int,
        progress: Callable[[str], None],
    ) -> None:
        """Fetch it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineFile:
    """A file at an address, its SHA-256 known beforehand, and how its server is reached."""

    url: str
    name: str  # its own, "torch-2.14.1+cu130-cp312-cp312-manylinux_2_28_x86_64.whl"
    label: str  # for a person, "torch 2.14.1+cu130"
    sha256: str  # 64 lower-case hex digits
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What came of fetching several files."""

    paths: Mapping[str, Path]  # by SHA-256; each was verified
    refused: tuple[tuple[OnlineFile, KleinError], ...] = ()  # another client may know a way: credentials, a size


class FileCache(Protocol):
    """Files by their SHA-256 in a folder of the user's own; what is taken from it is verified first."""

    def held(self) -> Mapping[str, Path]:
        """Return every file that is complete, by the SHA-256 it should have; none of them is verified."""

    def bring(self, files: Sequence[OnlineFile]) -> Brought:
        """Return these files, fetching those that are not there, several at a time.

        Raises
        ------
        NetworkError, IntegrityError, StorageError
            A server was not reached, has other bytes, or the disk refused; what arrived of it is continued next time.
        EntryNotFoundError
            It does not have the file.
        KeyboardInterrupt
            The run was cancelled.
        """

    def arriving(self) -> AbstractContextManager[Path]:
        """Return an empty folder for files that another client fetches; it is gone afterwards."""

    def adopt(self, path: Path, sha256: str | None) -> tuple[str, Path]:
        """Take over a file from `arriving`; return its SHA-256 and its place.

        Raises
        ------
        HashMismatchError
            It has another digest than the one that is given.
        StorageError
            The disk refused.
        """


class Part(Protocol):
    """An unfinished file: the fetcher writes blocks in any order, the part hashes behind the frontier."""

    @property
    def size(self) -> int:
        """Bytes the finished file will have."""

    @property
    def block_size(self) -> int:
        """Bytes of a block; the last one may be shorter."""

    @property
    def frontier(self) -> int:
        """Everything before this offset is on disk."""

    @property
    def bytes_on_disk(self) -> int:
        """Bytes that are there, also those of unfinished blocks: only to be shown."""

    @property
    def hashed(self) -> int:
        """Everything before this offset is in the digest."""

    @property
    def resumed_bytes(self) -> int:
        """Bytes of an earlier, interrupted run that this run continues from."""

    def missing_blocks(self) -> list[int]:
        """Return the numbers of the blocks that are not there yet, in order."""

    def has_block(self, index: int) -> bool:
        """Whether that block is there."""

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at an offset; raises StorageError."""

    @property
    def is_digest_behind(self) -> bool:
        """Whether hashing, and not the network, is the bottleneck."""

    def finish_block(self, index: int, sha256: str) -> None:
        """Record that every byte of a block was written, and its digest."""

    def reset(self) -> None:
        """Discard every block: what was written belongs to other content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobAddress:
    """Where the bytes of an `OciFile` are."""

    url: str
    is_elsewhere: bool  # a registry sent us on to another origin: that address may expire, and sees no login
    authorization: str | None = field(default=None, repr=False)  # the header that the address asks for


class Registries(Protocol):
    """OCI registries and image layouts."""

    def locate(self, source: OciFile, artifact: Artifact) -> BlobAddress:
        """Return where the artifact's bytes are now; asked again, with a new token where the last one has expired.

        Raises
        ------
        NetworkError, AccessError, IntegrityError
            Nobody answers, the registry asks for a login, does not have the file, or names another one.
        UsageError
            It asks for a login, and what knows how to answer is not installed.
        KeyboardInterrupt
            The run was cancelled.
        """


class Fetcher(Protocol):
    """Downloads the bytes of one source into a part."""

    def fetch(
        self, source: Source, artifact: Artifact, part: Part, *, progress: Callable[[TransferProgress], None]
    ) -> str:
        """Fill the part from the source; return a label of where the bytes came from.

        Raises
        ------
        NetworkError, AccessError, IntegrityError
            The source cannot be read, or offers something else; the part keeps what it has.
        StorageError
            Disk full, not writable, or a path outside the root.
        KeyboardInterrupt
            The run was cancelled.
        """

    def blob_id(self, source: HubFile) -> str:
        """Return the Hub's own id of a file's content: its SHA-256 (64 digits) for LFS, else its git id (40 digits).

        Raises
        ------
        NetworkError, AccessError, IntegrityError
            Nobody answers, the Hub does not have the file, or names no id.
        KeyboardInterrupt
            The run was cancelled.
        """


class Store(Protocol):
    """The files of one target: verifying, downloading, placing, recording."""

    def stamp(self, path: Path) -> Stamp | None:
        """Return the file's stamp, links followed; None where nothing is. Raises UnreadableError."""

    def claim(self, destination: Destination) -> Claim | None:
        """Return the receipt's entry for a destination, or None."""

    @property
    def block_size(self) -> int:
        """Bytes of a block in digests, surveys and receipts."""

    def hash_file(
        self, path: Path, *, progress: HashProgress, with_blocks: bool = False, size: int | None = None
    ) -> FileDigest:
        """Read every byte in order, or the first ``size`` of them; raises UnreadableError."""

    def survey(self, path: Path, *, size: int, progress: HashProgress, first: int = 0) -> Survey:
        """Hash the blocks of the first ``size`` bytes, from block ``first`` on, several at a time.

        Raises
        ------
        UnreadableError
            The file cannot be opened.
        """

    def are_blocks_bound(self, file_digest: FileDigest) -> bool:
        """Whether a run of this user has read these blocks together with the whole."""

    def bind_blocks(self, file_digest: FileDigest) -> None:
        """Remember, outside the target, that these blocks were read together with the whole, if they were."""

    def is_shared(self, destination: Destination, sha256: str) -> bool:
        """Whether writing that content into the file would change more than this one name, or is not allowed."""

    def head(self, path: Path) -> bytes:
        """Return the first bytes of a file: enough for its safetensors header. Raises UnreadableError."""

    def held_bytes(self, destination: Destination, artifact: Artifact) -> int:
        """Return the bytes of an interrupted download that a new one can continue from."""

    def taken_bytes(self, destination: Destination, artifact: Artifact) -> int:
        """Return the bytes of the disk that the part file of a download has taken: a new one needs only the rest."""

    def held_blocks(self, destination: Destination, size: int, sha256: str) -> tuple[int, ...]:
        """Return the blocks of that content that an interrupted repair in place has fetched already."""

    def file_system(self, destination: Destination, *, with_kind: bool = False) -> FileSystem:
        """Return the file system a destination is on; its kind, which is one more question, where that is asked for."""

    def check_readable(self, destination: Destination) -> None:
        """Raise StorageError where a destination cannot even be looked at; links are followed."""

    def check_inside(self, destination: Destination) -> None:
        """Raise PathOutsideRootError where a link leads out of the destination's root, and nobody agreed to it."""

    def part(
        self, destination: Destination, artifact: Artifact, *, replaces: str | None = None
    ) -> AbstractContextManager[GrowingFile]:
        """Open the part file of a destination, continuing an interrupted one.

        ``replaces`` is why the present file is replaced; it moves to the backups when the part is committed.
        """

    def patch(
        self, destination: Destination, artifact: Artifact, damage: Damage, *, way: PatchWay, reason: str
    ) -> AbstractContextManager[GrowingFile]:
        """Open the repair of a damaged file, continuing an interrupted one.

        Nothing under the final name changes before the whole is verified; the bytes that are replaced are kept in
        the backups with the reason.
        """

    def move_file(
        self,
        copy: LocalCopy,
        destination: Destination,
        artifact: Artifact,
        *,
        progress: HashProgress,
        replaces: str | None = None,
    ) -> tuple[str, FileDigest]:
        """Verify a misplaced file and move it into place; return how ("moved", or as `place_copy`) and its digest."""

    def place_copy(
        self,
        copy: LocalCopy,
        destination: Destination,
        artifact: Artifact,
        *,
        progress: HashProgress,
        replaces: str | None = None,
    ) -> tuple[str, FileDigest]:
        """Verify a local copy and put it in place; return how ("reflinked", "hard-linked", ...) and its digest."""

    def source_of(self, destination: Destination, file_digest: FileDigest) -> str:
        """Return the source to record for a verified file without a valid receipt.

        `FOUND_IN_PLACE`, unless klein-setup placed this very file, or was placing it when a run was killed.
        """

    def record(self, destination: Destination, artifact: Artifact, file_digest: FileDigest, source: str) -> None:
        """Write the receipt of a file that is in place."""

    def lock(self, destinations: Sequence[Destination]) -> AbstractContextManager[None]:
        """Lock every root of these destinations; raises LockHeldError."""


class GrowingFile(Part, Protocol):
    """A part as the engine sees it: it can be sealed, committed or kept as ``.bad``."""

    def seal(self, progress: Callable[[], None]) -> FileDigest:
        """Wait for the digest of the whole; the part is complete. Raises StorageError."""

    def drop_wrong(self) -> bool:
        """Forget the blocks whose bytes are not those that were written down of them; return whether there were any.

        For when the digest of the whole is another: what an earlier run left, and its log, are claims.
        """

    def commit(self, source: str) -> None:
        """Flush it to disk and give it its final name; raises StorageError.

        ``source`` is what its receipt will say; it is noted first, so that the run after a kill knows it.
        """

    def keep_as_bad(self) -> Path | None:
        """Keep the wrong bytes under ``<name>.bad`` for inspection; return that path, or None where they were dropped.

        They are dropped where wrong bytes of two attempts are kept already.
        """


class Finder(Protocol):
    """Finds files on this machine that may hold an artifact's bytes."""

    def find(self, artifact: Artifact, contents: Sequence[Variant]) -> tuple[LocalCopy, ...]:
        """Return candidates, likeliest first; none of them is verified."""
