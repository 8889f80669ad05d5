"""The engine's ports in memory: a store whose files are a dictionary, a fetcher that follows a script."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from provisioner.core.errors import HashMismatchError, KleinError, UnreadableError
from provisioner.core.models import (
    Artifact,
    Damage,
    Destination,
    FileSystem,
    HubFile,
    LocalCopy,
    PatchWay,
    Source,
    Variant,
)
from provisioner.core.ports import (
    FOUND_IN_PLACE,
    Claim,
    FileDigest,
    HashProgress,
    Part,
    Stamp,
    Survey,
    TransferProgress,
    source_of_copy,
)
from tests.support.builders import file_system

BLOCK = 4


def digests_of(data: bytes) -> tuple[str, ...]:
    """Return the SHA-256 of every block of some bytes."""
    return tuple(hashlib.sha256(data[at : at + BLOCK]).hexdigest() for at in range(0, len(data), BLOCK))


def digest_of(data: bytes) -> FileDigest:
    """Return the digest of some bytes."""
    return FileDigest(
        size=len(data), sha256=hashlib.sha256(data).hexdigest(), blocks=digests_of(data), is_one_reading=True
    )


class MemoryPart:
    """An unfinished file in memory, in blocks of four bytes."""

    def __init__(
        self, store: MemoryStore, destination: Destination, artifact: Artifact, replaces: str | None = None
    ) -> None:
        self._destination, self._replaces = destination, replaces
        self.block_size = BLOCK
        self.size = artifact.size
        self.data = bytearray(self.size)
        self.resets = 0
        self._store = store
        self._path = destination.path
        held = store.held.get(self._path, b"")
        self.data[: len(held)] = held
        self._blocks = set(range(len(held) // BLOCK))
        self.resumed_bytes = len(self._blocks) * BLOCK

    def __enter__(self) -> MemoryPart:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._path in self._store.unfinished:
            self._store.held[self._path] = bytes(self.data[: self.frontier])

    @property
    def frontier(self) -> int:
        missing = self.missing_blocks()
        return missing[0] * BLOCK if missing else self.size

    @property
    def is_digest_behind(self) -> bool:
        """Whether hashing is the bottleneck: never, here it is done at once."""
        return False

    @property
    def bytes_on_disk(self) -> int:
        return self.frontier

    @property
    def hashed(self) -> int:
        return self.frontier

    def missing_blocks(self) -> list[int]:
        return [index for index in range(-(-self.size // BLOCK)) if index not in self._blocks]

    def has_block(self, index: int) -> bool:
        return index in self._blocks

    def write(self, offset: int, data: bytes) -> None:
        if self._store.write_error is not None:
            raise self._store.write_error
        self.data[offset : offset + len(data)] = data

    def finish_block(self, index: int, sha256: str) -> None:
        self._blocks.add(index)

    def drop_wrong(self) -> bool:
        return False

    def reset(self) -> None:
        self.resets += 1
        self.resumed_bytes = 0
        self._blocks.clear()
        self._store.held.pop(self._path, None)

    def seal(self, progress: Callable[[], None]) -> FileDigest:
        assert not self.missing_blocks()
        progress()
        return digest_of(bytes(self.data))

    def commit(self, source: str) -> None:
        if self._replaces is not None:
            self._store.set_aside(self._destination, self._replaces)
        self._store.unfinished.discard(self._path)
        self._store.held.pop(self._path, None)
        self._store.place(self._path, bytes(self.data), source)

    def keep_as_bad(self) -> Path:
        self._store.unfinished.discard(self._path)
        bad = self._path.with_name(self._path.name + ".bad")
        self._store.put(bad, bytes(self.data))
        return bad


class MemoryPatch(MemoryPart):
    """A repair in memory: the correct blocks of the damaged file, and those that arrive."""

    def __init__(
        self, store: MemoryStore, destination: Destination, artifact: Artifact, damage: Damage, reason: str
    ) -> None:
        super().__init__(store, destination, artifact, reason)
        old = store.files[destination.path]
        self.data[:] = old[: self.size].ljust(self.size, b"\0")
        self._kept = set(range(len(damage.digests))) - set(damage.bad_blocks)
        self._blocks = set(self._kept)
        self.resumed_bytes = 0

    def reset(self) -> None:
        super().reset()
        self._blocks = set(self._kept)

    def commit(self, source: str) -> None:
        old = self._store.files[self._path]
        self._store.aside.append((self._path, self._replaces or ""))
        self._store.kept.append(old)
        self._store.unfinished.discard(self._path)
        self._store.place(self._path, bytes(self.data), source)

    def keep_as_bad(self) -> Path:
        self._store.unfinished.discard(self._path)
        return self._path


@dataclass
class MemoryStore:
    """Files in a dictionary; every write gives a file another stamp."""

    files: dict[Path, bytes] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)
    in_cloud: set[Path] = field(default_factory=set)
    claims: dict[Path, Claim] = field(default_factory=dict)
    announced: dict[Path, Claim] = field(default_factory=dict)
    held: dict[Path, bytes] = field(default_factory=dict)
    unfinished: set[Path] = field(default_factory=set)
    aside: list[tuple[Path, str]] = field(default_factory=list)
    recorded: list[tuple[Path, str, str]] = field(default_factory=list)  # path, SHA-256, source
    proved: list[Path] = field(default_factory=list)
    parts: list[MemoryPart] = field(default_factory=list)
    devices: dict[Path, FileSystem] = field(default_factory=dict)
    kept: list[bytes] = field(default_factory=list)  # what files were before they were repaired in place
    surveyed: list[Path] = field(default_factory=list)
    patched: list[PatchWay] = field(default_factory=list)
    refused: dict[Path, set[int]] = field(default_factory=dict)  # blocks that the disk does not give
    shared: set[Path] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)  # SHA-256 of contents whose blocks were read together with the whole
    is_every_receipt_bound: bool = True
    write_error: KleinError | None = None
    place_error: KleinError | None = None
    while_reading: Callable[[Path], None] = lambda path: None
    outside: Callable[[Destination], None] = lambda destination: None
    _stamps: dict[Path, int] = field(default_factory=dict)
    _inodes: dict[Path, int] = field(default_factory=dict)
    _clock: int = 0

    def put(self, path: Path, data: bytes) -> None:
        """Write a file."""
        self._clock += 1
        self.files[path] = data
        self._stamps[path] = self._clock
        self._inodes.setdefault(path, self._clock)

    def place(self, path: Path, data: bytes, source: str) -> None:
        """Give verified bytes their final name, and record their source."""
        self.put(path, data)
        stamp = self.stamp(path)
        assert stamp is not None
        self.announced[path] = Claim(artifact_id="", stamp=stamp, file_digest=digest_of(data), source=source)

    def link(self, path: Path, other: Path) -> None:
        """Give a file a second name."""
        self.files[other] = self.files[path]
        self._stamps[other], self._inodes[other] = self._stamps[path], self._inodes[path]

    def rot(self, path: Path, data: bytes) -> None:
        """Change a file's bytes and nothing that a stamp shows."""
        assert len(data) == len(self.files[path])
        self.files[path] = data

    def claim_now(self, path: Path, artifact_id: str = "vae") -> None:
        """Write a receipt of what lies there."""
        stamp = self.stamp(path)
        assert stamp is not None
        file_digest = digest_of(self.files[path])
        self.claims[path] = Claim(artifact_id=artifact_id, stamp=stamp, file_digest=file_digest, source="earlier")

    def lie(self, path: Path, *, block: int, artifact_id: str = "vae") -> None:
        """Write a receipt that is right but for the digest of one block."""
        self.claim_now(path, artifact_id)
        claim = self.claims[path]
        blocks = tuple("0" * 64 if index == block else each for index, each in enumerate(claim.file_digest.blocks))
        self.claims[path] = replace(claim, file_digest=replace(claim.file_digest, blocks=blocks))

    # --- the port --------------------------------------------------------------------------------

    def stamp(self, path: Path) -> Stamp | None:
        if path in self.unreadable:
            raise UnreadableError(f"{path}: {self.unreadable[path]}")
        if path not in self.files:
            return None
        tick = self._stamps.setdefault(path, 0)
        inode = self._inodes.setdefault(path, 1000 + len(self._inodes))
        return Stamp(
            size=len(self.files[path]),
            mtime_ns=tick,
            ctime_ns=tick,
            inode=inode,
            device=1,
            is_in_cloud=path in self.in_cloud,
        )

    def claim(self, destination: Destination) -> Claim | None:
        return self.claims.get(destination.path)

    @property
    def block_size(self) -> int:
        return BLOCK

    def hash_file(
        self, path: Path, *, progress: HashProgress, with_blocks: bool = False, size: int | None = None
    ) -> FileDigest:
        self.proved.append(path)
        if path not in self.files:
            raise UnreadableError(f"{path} is gone")
        if self.refused.get(path):
            raise UnreadableError(f"{path}: the disk failed at byte {min(self.refused[path]) * BLOCK}.")
        data = self.files[path][:size]
        for count in (1, 2, len(data)):
            progress(count)
        self.while_reading(path)
        return digest_of(data)

    def survey(self, path: Path, *, size: int, progress: HashProgress, first: int = 0) -> Survey:
        self.surveyed.append(path)
        refused = self.refused.get(path, set())
        digests = digests_of(self.files[path][:size])
        progress(size)
        self.while_reading(path)
        return Survey(
            blocks=tuple(None if index in refused else digest for index, digest in enumerate(digests))[first:],
            unreadable=f"the disk failed at byte {min(refused) * BLOCK}" if refused else None,
        )

    def are_blocks_bound(self, file_digest: FileDigest) -> bool:
        is_honest = "0" * 64 not in file_digest.blocks  # what `lie` writes was never read from a file
        return is_honest and (self.is_every_receipt_bound or file_digest.sha256 in self.bound)

    def bind_blocks(self, file_digest: FileDigest) -> None:
        if file_digest.is_one_reading:
            self.bound.add(file_digest.sha256)

    def is_shared(self, destination: Destination, sha256: str) -> bool:
        return destination.path in self.shared

    def held_blocks(self, destination: Destination, size: int, sha256: str) -> tuple[int, ...]:
        return ()

    def head(self, path: Path) -> bytes:
        return self.files[path][:1000]

    def held_bytes(self, destination: Destination, artifact: Artifact) -> int:
        return len(self.held.get(destination.path, b""))

    def taken_bytes(self, destination: Destination, artifact: Artifact) -> int:
        return len(self.held.get(destination.path, b""))

    def file_system(self, destination: Destination, *, with_kind: bool = False) -> FileSystem:
        found = self.devices.get(destination.path.parent, file_system())
        return replace(found, kind="ext4") if with_kind else found

    def check_readable(self, destination: Destination) -> None:
        self.outside(destination)

    def check_inside(self, destination: Destination) -> None:
        self.outside(destination)

    def part(
        self, destination: Destination, artifact: Artifact, *, replaces: str | None = None
    ) -> AbstractContextManager[MemoryPart]:
        part = MemoryPart(self, destination, artifact, replaces)
        self.unfinished.add(destination.path)
        self.parts.append(part)
        return part

    def patch(
        self, destination: Destination, artifact: Artifact, damage: Damage, *, way: PatchWay, reason: str
    ) -> AbstractContextManager[MemoryPart]:
        patch = MemoryPatch(self, destination, artifact, damage, reason)
        self.unfinished.add(destination.path)
        self.parts.append(patch)
        self.patched.append(way)
        return patch

    def move_file(
        self,
        copy: LocalCopy,
        destination: Destination,
        artifact: Artifact,
        *,
        progress: HashProgress,
        replaces: str | None = None,
    ) -> tuple[str, FileDigest]:
        _, file_digest = self.place_copy(copy, destination, artifact, progress=progress, replaces=replaces)
        self.announced.pop(destination.path)
        del self.files[copy.path]
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
        if self.place_error is not None:
            raise self.place_error
        if self.stamp(copy.path) is None:
            raise UnreadableError(f"{copy.path} is gone")
        file_digest = self.hash_file(copy.path, progress=progress)
        if file_digest.sha256 != copy.sha256:
            raise HashMismatchError(f"{copy.path} holds other bytes")
        data = self.files[copy.path]
        if replaces is not None:
            self.set_aside(destination, replaces)
        self.place(destination.path, data, source_of_copy("hard-linked", copy.path))
        return "hard-linked", file_digest

    def set_aside(self, destination: Destination, reason: str) -> Path:
        self.unreadable.pop(destination.path, None)
        data = self.files.pop(destination.path, b"")
        moved_to = destination.root / ".klein-setup" / "aside" / str(len(self.aside)) / destination.path.name
        self.put(moved_to, data)
        self.aside.append((destination.path, reason))
        return moved_to

    def source_of(self, destination: Destination, file_digest: FileDigest) -> str:
        stamp = self.stamp(destination.path)
        for claim in (self.announced.get(destination.path), self.claims.get(destination.path)):
            if claim is not None and (claim.stamp, claim.file_digest.sha256) == (stamp, file_digest.sha256):
                return claim.source
        return FOUND_IN_PLACE

    def record(self, destination: Destination, artifact: Artifact, file_digest: FileDigest, source: str) -> None:
        stamp = self.stamp(destination.path)
        assert stamp is not None
        self.claims[destination.path] = Claim(
            artifact_id=artifact.id, stamp=stamp, file_digest=file_digest, source=source
        )
        self.recorded.append((destination.path, file_digest.sha256, source))
        self.announced.pop(destination.path, None)

    @contextlib.contextmanager
    def lock(self, destinations: Sequence[Destination]) -> Iterator[None]:
        yield


@dataclass
class ScriptedFetcher:
    """Serves each source what the script says, one entry per call: the whole content, or an error."""

    script: Mapping[Source, Sequence[bytes | BaseException]]
    asked: list[Source] = field(default_factory=list)
    confirmed: dict[HubFile, str] = field(default_factory=dict)  # the Hub's ids of contents

    def blob_id(self, source: HubFile) -> str:
        return self.confirmed[source]

    def fetch(
        self, source: Source, artifact: Artifact, part: Part, *, progress: Callable[[TransferProgress], None]
    ) -> str:
        answer = self.script[source][self.asked.count(source)]
        self.asked.append(source)
        if isinstance(answer, BaseException):
            raise answer
        received = 0
        for index in part.missing_blocks():
            piece = answer[index * BLOCK : (index + 1) * BLOCK]
            part.write(index * BLOCK, piece)
            part.finish_block(index, hashlib.sha256(piece).hexdigest())
            received += len(piece)
            progress(TransferProgress(received=received, rate_bytes_s=1.0, connections=1, attempt=1))
        return f"the source of {source.filename if isinstance(source, HubFile) else 'an address'}"


@dataclass
class ListedFinder:
    """Finds what it was given, for every artifact."""

    copies: tuple[LocalCopy, ...] = ()
    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # artifact, SHA-256 of each content

    def find(self, artifact: Artifact, contents: Sequence[Variant]) -> tuple[LocalCopy, ...]:
        self.asked.append((artifact.id, tuple(content.sha256 for content in contents)))
        return tuple(copy for copy in self.copies if copy.artifact_id == artifact.id)
