"""The files a rehearsal hub holds: where their bytes are, what they hash to, how the Hub lists them.

Files given by path are never read into memory; digests are computed once per path, size and mtime.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

READ_BYTES = 1024 * 1024

LfsRule = Callable[[str, int], bool]

_digests: dict[tuple[str, str, int, int], str] = {}
_digests_lock = threading.Lock()


def is_stored_by_lfs(name: str, size: int) -> bool:
    """Return whether the Hub would keep a file of that name and size (bytes) in LFS.

    The Hub's default ``.gitattributes`` names the suffixes; larger text files are refused by git itself
    (10 MiB).
    """
    return name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".onnx")) or size > 10 * 1024**2


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes in memory or in a file."""

    source: bytes | Path
    size: int  # bytes

    @classmethod
    def of(cls, source: bytes | Path) -> Content:
        """Return the content of `source` as it is now."""
        return cls(source, len(source) if isinstance(source, bytes) else source.stat().st_size)

    def pieces(self, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` in pieces of at most 1 MiB."""
        stop = self.size if length is None else start + length
        if isinstance(self.source, bytes):
            for offset in range(start, stop, READ_BYTES):
                yield self.source[offset : min(offset + READ_BYTES, stop)]
            return
        with self.source.open("rb") as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(READ_BYTES, stop - start))
                if not piece:
                    return
                yield piece
                start += len(piece)

    def sha256(self) -> str:
        """Return the SHA-256 of all bytes, in hex."""
        return self._digest("sha256", b"")

    def git_oid(self) -> str:
        """Return the git blob id: SHA-1 over "blob", the size, a NUL and the bytes."""
        return self._digest("sha1", b"blob %d\0" % self.size)

    def _digest(self, algorithm: str, prefix: bytes) -> str:
        if isinstance(self.source, bytes):
            return _hash(algorithm, prefix, (self.source,))
        state = self.source.stat()
        key = (algorithm, str(self.source), state.st_size, state.st_mtime_ns)
        with _digests_lock:
            known = _digests.get(key)
        if known is None:
            known = _hash(algorithm, prefix, self.pieces())
            with _digests_lock:
                _digests[key] = known
        return known


def _hash(algorithm: str, prefix: bytes, pieces: Iterable[bytes]) -> str:
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the text git keeps in place of an LFS file (git-lfs specification, version 1)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of one commit."""

    path: str  # in the repository, "vae/diffusion_pytorch_model.safetensors"
    content: Content
    is_lfs: bool
    sha256: str | None  # of an LFS file
    git_oid: str  # of the file, or of its LFS pointer

    @classmethod
    def of(cls, path: str, source: bytes | Path, lfs: LfsRule, sha256: str | None = None) -> Entry:
        """Return the entry for `source`; a `sha256` that is given is not computed."""
        content = Content.of(source)
        if not lfs(path, content.size):
            return cls(path, content, False, None, content.git_oid())
        digest = sha256 or content.sha256()
        pointer = lfs_pointer(digest, content.size)
        return cls(path, content, True, digest, Content.of(pointer).git_oid())

    @property
    def etag(self) -> str:
        """What the Hub names the bytes by, without quotes: SHA-256 of an LFS file, else the git blob id."""
        return self.sha256 or self.git_oid

    def listing(self) -> dict[str, object]:
        """Return the entry as ``tree`` and ``paths-info`` give it."""
        listing: dict[str, object] = {
            "type": "file",
            "oid": self.git_oid,
            "size": self.content.size,
            "path": self.path,
        }
        if self.sha256 is not None:
            pointer_size = len(lfs_pointer(self.sha256, self.content.size))
            listing["lfs"] = {"oid": self.sha256, "size": self.content.size, "pointerSize": pointer_size}
        return listing

    def sibling(self, *, has_blob: bool) -> dict[str, object]:
        """Return the entry as ``/api/models/{id}`` lists it; with sizes when `has_blob`."""
        sibling: dict[str, object] = {"rfilename": self.path}
        if has_blob:
            sibling |= {"size": self.content.size, "blobId": self.git_oid}
            if self.sha256 is not None:
                pointer_size = len(lfs_pointer(self.sha256, self.content.size))
                sibling["lfs"] = {"sha256": self.sha256, "size": self.content.size, "pointerSize": pointer_size}
        return sibling


@dataclass(frozen=True, slots=True)
class Commit:
    """The files of a repository at one revision."""

    revision: str  # 40 hex digits
    entries: Mapping[str, Entry]

    def folders(self) -> dict[str, dict[str, object]]:
        """Return every folder as ``tree`` gives it, by path; the ids are derived, not git's own."""
        paths = sorted({str(parent) for path in self.entries for parent in _parents(path)})
        return {
            path: {"type": "directory", "oid": _hash("sha1", path.encode(), ()), "size": 0, "path": path}
            for path in paths
        }

    def tree(self, under: str, *, is_recursive: bool) -> list[dict[str, object]]:
        """Return what ``GET tree`` lists below `under` ("" is the root)."""
        prefix = f"{under}/" if under else ""
        listed = [*self.folders().values(), *(entry.listing() for entry in self.entries.values())]
        below = [item for item in listed if str(item["path"]).startswith(prefix)]
        return [item for item in below if is_recursive or "/" not in str(item["path"])[len(prefix) :]]


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")[:-1]
    for depth in range(len(parts)):
        yield "/".join(parts[: depth + 1])


@dataclass(slots=True)
class Repository:
    """A model repository: commits, branches and who may read it."""

    repo_id: str  # "org/name"
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # name to revision
    is_gated: bool = False
    is_private: bool = False
    tokens: frozenset[str] = frozenset()  # of accounts that may read it
    is_direct: bool = False  # /resolve/ answers with the bytes, as mirrors do
    licence: str | None = None  # as a model card says: "apache-2.0"

    def commit(self, revision: str) -> Commit | None:
        """Return the commit that a branch name or a commit id means, or None."""
        return self.commits.get(self.branches.get(revision, revision))

    def info(self, commit: Commit, *, has_blobs: bool) -> dict[str, object]:
        """Return what ``GET /api/models/{id}`` says."""
        return {
            "_id": _hash("sha1", self.repo_id.encode(), ())[:24],
            "id": self.repo_id,
            "modelId": self.repo_id,
            "author": self.repo_id.split("/")[0],
            "sha": commit.revision,
            "lastModified": "2026-01-15T12:00:00.000Z",
            "createdAt": "2026-01-15T12:00:00.000Z",
            "private": self.is_private,
            "gated": "manual" if self.is_gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [] if self.licence is None else [f"license:{self.licence}"],
            **({} if self.licence is None else {"cardData": {"license": self.licence}}),
            "siblings": [entry.sibling(has_blob=has_blobs) for entry in commit.entries.values()],
        }
