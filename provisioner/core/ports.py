"""What the engine needs of the world outside, as protocols; the adapters satisfy them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from provisioner.core.models import Artifact, Damage, Destination, FileSystem, LocalCopy, PatchWay, Source, Variant
from provisioner.core.route import Route

FOUND_IN_PLACE = "found in place"
"""What a receipt names as the source of a file that was there before us: it is the user's, whatever was repaired."""


def source_of_copy(way: str, path: Path) -> str:
    """Return what a receipt names as the source of a file that got its bytes from elsewhere on this machine.

    What was only moved is the user's own file under another name.
    """
    return FOUND_IN_PLACE if way == "moved" else f"{way} from {path}"


Cancelled = Callable[[], bool]
"""Asked often by long work; True means: stop now and raise KeyboardInterrupt."""

HashProgress = Callable[[int], None]
"""Called with the bytes hashed so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What the file system says of a file; equal stamps mean nobody touched it, as far as claims go."""

    size: int
    mtime_ns: int
    ctime_ns: int | None  # None on Windows, where st_ctime is the time of creation
    inode: int
    device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """What reading every byte of a file gave."""

    size: int
    sha256: str
    blocks: tuple[str, ...] = ()  # SHA-256 of every 16 MiB block, in order; empty where not taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What reading a file block by block, in any order, gave.  It has no digest of the whole."""

    blocks: tuple[str | None, ...]  # SHA-256 of every block that was looked at; None: the disk gave no bytes
    unreadable: str | None = None  # where and why, in words, of the first block that could not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A receipt's entry for one file: what we proved once, and the file's stamp at that moment."""

    artifact_id: str
    stamp: Stamp
    file_digest: FileDigest
    source: str  # where the bytes came from, without query or token


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress:
    """Where a transfer stands; the fetcher sends about ten a second."""

    received: int  # bytes over the network in this run
    rate_bytes_s: float
    connections: int
    attempt: int
    note: str = ""  # why nothing moves at the moment, if so


class ProcessResult(Protocol):
    """What came of a program that ended by itself."""

    @property
    def returncode(self) -> int:
        """Exit status."""

    @property
    def stdout(self) -> str:
        """What it printed."""

    @property
    def stderr(self) -> str:
        """What it complained about."""

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The end of both streams."""


class RunProcess(Protocol):
    """Starts a program by argument list; raises CommandError where it cannot, or where it takes too long.

    ``env`` is the whole environment, ours where None; ``on_line`` is told the stream and each line while the program
    runs, and what it raises ends the program; ``keep_bytes`` bounds what is kept of each stream.
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

    ``what`` and ``hint`` go into the sentences of an error; ``sha256`` is checked where it is given.
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
        sha256: str | None = None,
        route: Route = ...,
    ) -> None:
        """Fetch it."""


class Part(Protocol):
    """A file that is growing: the fetcher writes blocks in any order, the part hashes behind the frontier."""

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
        """Bytes that are there, wherever they are, those of unfinished blocks too: for people."""

    @property
    def hashed(self) -> int:
        """Everything before this offset went into the digest."""

    @property
    def resumed_bytes(self) -> int:
        """Bytes that an earlier, interrupted run left here and this run builds on."""

    def missing_blocks(self) -> list[int]:
        """Return the numbers of the blocks that are not there yet, in order."""

    def has_block(self, index: int) -> bool:
        """Whether that block is there."""

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at an offset; raises StorageError."""

    @property
    def is_digest_behind(self) -> bool:
        """Whether the digest, and not the network, is what everything waits for."""

    def finish_block(self, index: int, sha256: str) -> None:
        """Say that every byte of a block was written, and what its digest is."""

    def reset(self) -> None:
        """Forget every block: what was written belongs to other content."""


class Fetcher(Protocol):
    """Brings the bytes of one source into a part."""

    def fetch(
        self, source: Source, artifact: Artifact, part: Part, *, progress: Callable[[TransferProgress], None]
    ) -> str:
        """Fill the part from the source; return a label of where the bytes came from.

        Raises
        ------
        NetworkError, AccessError, IntegrityError
            The source cannot be had, or offers something else; the part keeps what it has.
        StorageError
            The disk refused.
        KeyboardInterrupt
            The run was cancelled.
        """


class Store(Protocol):
    """The files of one target: proving, growing, placing, recording."""

    def stamp(self, path: Path) -> Stamp | None:
        """Return the file's stamp, links followed; None where nothing is. Raises UnreadableError."""

    def claim(self, destination: Destination) -> Claim | None:
        """Return the receipt's entry for a destination, or None."""

    @property
    def block_size(self) -> int:
        """Bytes of a block in proofs, surveys and receipts."""

    def hash_file(
        self, path: Path, *, progress: HashProgress, with_blocks: bool = False, size: int | None = None
    ) -> FileDigest:
        """Read every byte in order, or the first ``size`` of them; raises UnreadableError."""

    def survey(self, path: Path, *, size: int, progress: HashProgress) -> Survey:
        """Digest the blocks of the first ``size`` bytes, several at a time; raises UnreadableError."""

    def is_shared(self, destination: Destination, sha256: str) -> bool:
        """Whether writing that content into the file would change more than this one name, or is not allowed."""

    def head(self, path: Path) -> bytes:
        """Return the first bytes of a file: enough for its safetensors header. Raises UnreadableError."""

    def held_bytes(self, destination: Destination, artifact: Artifact) -> int:
        """Return the bytes of an interrupted download that a new one can build on."""

    def held_blocks(self, destination: Destination, size: int, sha256: str) -> tuple[int, ...]:
        """Return the blocks of that content that an interrupted repair in place has fetched already."""

    def file_system(self, destination: Destination) -> FileSystem:
        """Return the file system a destination is on."""

    def check_inside(self, destination: Destination) -> None:
        """Raise PathOutsideRootError where a link leads out of the destination's root."""

    def part(
        self, destination: Destination, artifact: Artifact, *, replaces: str | None = None
    ) -> AbstractContextManager[GrowingFile]:
        """Open the part file of a destination, continuing an interrupted one.

        ``replaces`` is why what is there has to go; it is set aside when the part is committed.
        """

    def patch(
        self, destination: Destination, artifact: Artifact, damage: Damage, *, way: PatchWay, reason: str
    ) -> AbstractContextManager[GrowingFile]:
        """Open the repair of a damaged file, continuing an interrupted one.

        Nothing under the final name changes before the whole is proven; the bytes that are replaced are kept in
        ``aside`` with the reason.
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
        """Give a misplaced file its place, proven; return how ("moved", or as `place_copy`) and the proof."""

    def place_copy(
        self,
        copy: LocalCopy,
        destination: Destination,
        artifact: Artifact,
        *,
        progress: HashProgress,
        replaces: str | None = None,
    ) -> tuple[str, FileDigest]:
        """Put a local copy in place, proven; return how ("reflinked", "hard-linked", "copied") and the proof."""

    def source_of(self, destination: Destination, file_digest: FileDigest) -> str:
        """Return whose a proven file is that lies there without a receipt that holds: the source to write down.

        `FOUND_IN_PLACE`, unless it is the very file that we placed, or were placing when a run was killed.
        """

    def record(self, destination: Destination, artifact: Artifact, file_digest: FileDigest, source: str) -> None:
        """Write the receipt of a file that is in place."""

    def lock(self, destinations: Sequence[Destination]) -> AbstractContextManager[None]:
        """Hold every root of these destinations; raises LockHeldError."""


class GrowingFile(Part, Protocol):
    """A part as the engine sees it: it can be sealed, committed or kept as evidence."""

    def seal(self, progress: Callable[[], None]) -> FileDigest:
        """Wait for the digest of the whole; the part is complete. Raises StorageError."""

    def commit(self, source: str) -> None:
        """Make it durable and give it its final name; raises StorageError.

        ``source`` is what its receipt will say; a run that is killed before it leaves that word for the next one.
        """

    def keep_as_bad(self) -> Path:
        """Keep the wrong bytes under ``<name>.bad`` as evidence; return that path."""


class Finder(Protocol):
    """Finds files elsewhere on this machine that may hold an artifact's bytes."""

    def find(self, artifact: Artifact, contents: Sequence[Variant]) -> tuple[LocalCopy, ...]:
        """Return candidates, likeliest first; none of them is proven."""
