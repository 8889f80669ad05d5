"""The receipt of a models root: what was proved once, and the file's stamp at that moment.  A claim, not a proof.

It lies in ``<root>/.klein-setup/receipt.json``, with the files, so that it travels with the drive.  ``files`` speaks of
what is in place.  ``placing`` speaks of what was about to get its name, so that a kill before the receipt of a file
does not make it look like one that was there before us; writing the receipt takes that entry away in the same step.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from provisioner.core.errors import StorageError
from provisioner.core.json_reader import LARGEST, FieldError, Fields, as_dict, parse_object
from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from provisioner.core.ports import Claim, FileDigest, Stamp
from provisioner.disk.read_json import read_at_most, read_object
from provisioner.disk.real_paths import is_only_in_cloud
from provisioner.disk.root import Root

SCHEMA_VERSION = 1
_PLACING: Literal["placing"] = "placing"
_CHANGING = threading.Lock()  # files arrive at once, and each change reads the document and writes it anew
_MANIFESTS: Literal["manifests"] = "manifests"
_Key = Literal["files", "placing", "manifests"]
_FileStamp = tuple[int, int, int, int]  # inode, size, mtime and ctime in nanoseconds


class Entry(TypedDict):
    """One file, as written."""

    artifact: str
    size: int
    mtime_ns: int
    ctime_ns: int | None
    inode: int
    sha256: str
    block_size: int
    blocks: list[str]
    source: str
    recorded_at: str


def receipt_path(root: Path) -> Path:
    """Return where a root's receipt lies."""
    return root / STATE_FOLDER / "receipt.json"


def stamp_of(path: Path, *, platform: str = sys.platform) -> Stamp:
    """Return a file's stamp, links followed; raises OSError."""
    status = path.stat()
    return Stamp(
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        # st_ctime is the time of creation on Windows and says nothing about changes there.
        ctime_ns=None if platform == "win32" else status.st_ctime_ns,
        inode=status.st_ino,
        device=status.st_dev,
        is_in_cloud=is_only_in_cloud(getattr(status, "st_file_attributes", 0), getattr(status, "st_flags", 0)),
    )


def is_unchanged(claimed: Stamp, found: Stamp) -> bool:
    """Whether nobody touched the file since.

    The device number is left out: it changes when a drive is plugged in anew.
    """
    return (claimed.size, claimed.mtime_ns, claimed.ctime_ns, claimed.inode) == (
        found.size,
        found.mtime_ns,
        found.ctime_ns,
        found.inode,
    )


def is_same_file(claimed: Stamp, found: Stamp) -> bool:
    """Whether it is the very file a claim speaks of, under whatever name and permissions: never a proof of its bytes.

    Renaming a file changes its ctime on most systems and leaves the rest.  A file system without inode numbers gives
    no answer, which counts as no.
    """
    return claimed.inode != 0 and (claimed.size, claimed.mtime_ns, claimed.inode) == (
        found.size,
        found.mtime_ns,
        found.inode,
    )


def read_receipt(root: Path) -> dict[str, Claim]:
    """Return every entry that can be read, by its path relative to the root; a broken receipt is an empty one."""
    return _claims(root, "files")


def read_announced(root: Path) -> dict[str, Claim]:
    """Return what was about to be placed and has no receipt yet, by its path relative to the root."""
    return _claims(root, _PLACING)


def read_manifests(root: Path) -> dict[str, frozenset[str]]:
    """Return the manifests that a root was filled for, by id, each with its files' paths relative to the root.

    It says who may still need a file; it is never a reason to remove one.
    """
    found = _entries(read_object(receipt_path(root)) or {}, _MANIFESTS)
    return {
        name: frozenset(each for each in paths if isinstance(each, str))
        for name, paths in found.items()
        if isinstance(paths, list) and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name)
    }


def _claims(root: Path, key: _Key) -> dict[str, Claim]:
    entries = _entries(read_object(receipt_path(root)) or {}, key)
    claims = {relative: _claim(Fields(as_dict(entry))) for relative, entry in entries.items()}
    return {relative: claim for relative, claim in claims.items() if claim is not None}


def _entries(document: dict[str, Any], key: _Key) -> dict[str, Any]:
    return as_dict(document.get(key)) if document.get("schema_version") == SCHEMA_VERSION else {}


class Receipts:
    """Receipts as one run reads and writes them: parsed anew only where the file is not the one that was parsed.

    A thousand files would else be a thousand readings of a receipt that speaks of a thousand files.  What another
    program writes is seen, because its file has another stamp.  Safe to use from several threads; who writes holds
    the lock of the root against other programs.
    """

    def __init__(self) -> None:
        self.filled_for: dict[Path, Mapping[str, Collection[str]]] = {}  # by root: manifests, each with its files
        self._seen: dict[Path, tuple[_FileStamp, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def claim(self, root: Path, relative: str) -> Claim | None:
        """Return the entry of a file, or None where there is none that can be read."""
        return self._claim(root, "files", relative)

    def announced(self, root: Path, relative: str) -> Claim | None:
        """Return what was announced of a file that was about to be placed, or None."""
        return self._claim(root, _PLACING, relative)

    def _claim(self, root: Path, key: _Key, relative: str) -> Claim | None:
        entry = _entries(self._document(receipt_path(root)) or {}, key).get(relative)
        return None if entry is None else _claim(Fields(as_dict(entry)))

    def write_claim(self, root: Root, relative: str, claim: Claim, *, recorded_at: str) -> None:
        """Add or replace one entry, keeping the others and any key we do not know; raises StorageError."""
        with _CHANGING:
            document = self._own_document(root)
            document["files"] = {**document["files"], relative: _entry(claim, recorded_at)}
            _forget_announced(document, [relative])
            _name_manifests(document, self.filled_for.get(root.folder, {}))
            self._write(root, document)

    def announce_claim(self, root: Root, relative: str, claim: Claim, *, recorded_at: str) -> None:
        """Write down that a file is about to get its name; raises StorageError.

        The folder is not flushed: the file's own folder is, once it has its name, and what a power cut takes from here
        is only the knowledge that the file is ours.
        """
        with _CHANGING:
            document = self._own_document(root)
            announced = document.get(_PLACING)
            kept = announced if isinstance(announced, dict) else {}
            document[_PLACING] = {**kept, relative: _entry(claim, recorded_at)}
            self._write(root, document, is_name_flushed=False)

    def drop_claims(self, root: Root, relatives: Collection[str]) -> None:
        """Remove entries, announced ones too, keeping the others and any key we do not know; raises StorageError."""
        with _CHANGING:
            document = self._own_document(root)
            files = document["files"]
            document["files"] = {name: entry for name, entry in files.items() if name not in relatives}
            if _forget_announced(document, relatives) or len(document["files"]) != len(files):
                self._write(root, document)

    def note_manifests(self, root: Root, manifests: Mapping[str, Collection[str]]) -> None:
        """Add to what the root was filled for, each manifest with its files; raises StorageError."""
        with _CHANGING:
            document = self._own_document(root)
            _name_manifests(document, manifests)
            self._write(root, document)

    def drop_manifests(self, root: Root, names: Collection[str] | None) -> None:
        """Forget that the root was filled for these manifests, for any of them where None; raises StorageError."""
        with _CHANGING:
            document = self._own_document(root)
            known = as_dict(document.pop(_MANIFESTS, None))
            kept = {name: paths for name, paths in known.items() if names is not None and name not in names}
            if kept:
                document[_MANIFESTS] = kept
            if len(kept) != len(known):
                self._write(root, document)

    def drop_announced(self, root: Root, relative: str) -> None:
        """Remove an announcement of which nothing came; raises StorageError."""
        with _CHANGING:
            document = self._own_document(root)
            if _forget_announced(document, [relative]):
                self._write(root, document, is_name_flushed=False)

    def _own_document(self, root: Root) -> dict[str, Any]:
        """Return a copy of the document that is there, or an empty one: claims nobody can read are proved again."""
        document = self._document(receipt_path(root.folder)) or {}
        _refuse_later(document, receipt_path(root.folder))
        is_ours = document.get("schema_version") == SCHEMA_VERSION and isinstance(document.get("files"), dict)
        return dict(document) if is_ours else {"schema_version": SCHEMA_VERSION, "files": {}}

    def _document(self, path: Path) -> dict[str, Any] | None:
        """Return what a receipt holds, which nobody may change; None where there is no object that can be read."""
        try:
            with self._lock, path.open("rb") as stream:
                stamp = _file_stamp(os.fstat(stream.fileno()))
                known = self._seen.get(path)
                if known is not None and known[0] == stamp:
                    return known[1]
                document = parse_object(read_at_most(stream, LARGEST))
                if document is not None:
                    self._seen[path] = stamp, document
                return document
        except OSError:
            return None

    def _write(self, root: Root, document: dict[str, Any], *, is_name_flushed: bool = True) -> None:
        path = receipt_path(root.folder)
        root.write_text(path, _text(document), is_name_flushed=is_name_flushed)
        with contextlib.suppress(OSError), self._lock:
            self._seen[path] = _file_stamp(path.stat()), document


def refuse_later_release(root: Path) -> None:
    """Raise StorageError where a later release wrote the receipt, of which this one would keep nothing."""
    _refuse_later(read_object(receipt_path(root)) or {}, receipt_path(root))


def _refuse_later(document: dict[str, Any], path: Path) -> None:
    version = document.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StorageError(
            f"{path} was written by a later release of klein-setup (schema_version {version}).",
            hint="Update klein-setup; or move that file away, and every file is verified anew.",
            path=str(path),
            schema_version=version,
        )


def _name_manifests(document: dict[str, Any], manifests: Mapping[str, Collection[str]]) -> None:
    """Add manifests with their files to a document."""
    known = as_dict(document.get(_MANIFESTS))
    for name, paths in manifests.items():
        before = known.get(name)
        kept = [each for each in before if isinstance(each, str)] if isinstance(before, list) else []
        known = {**known, name: sorted({*kept, *paths})}
    if known:
        document[_MANIFESTS] = known


def _file_stamp(status: os.stat_result) -> _FileStamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _forget_announced(document: dict[str, Any], relatives: Collection[str]) -> bool:
    """Take announcements out of a document, and the key when none is left; return whether there were any."""
    announced = document.get(_PLACING)
    if not isinstance(announced, dict):
        return document.pop(_PLACING, None) is not None
    kept = {name: entry for name, entry in announced.items() if name not in relatives}
    document[_PLACING] = kept
    if not kept:
        del document[_PLACING]
    return len(kept) != len(announced)


def _text(document: dict[str, Any]) -> str:
    """Return a document with a line for each file, sorted, so that two of them can be compared."""
    parts = []
    for key, value in sorted(document.items()):
        if key in {"files", _PLACING} and value:
            lines = (f"  {json.dumps(name)}: {json.dumps(value[name], sort_keys=True)}" for name in sorted(value))
            parts.append(f" {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n }")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, sort_keys=True)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _entry(claim: Claim, recorded_at: str) -> Entry:
    return {
        "artifact": claim.artifact_id,
        "size": claim.stamp.size,
        "mtime_ns": claim.stamp.mtime_ns,
        "ctime_ns": claim.stamp.ctime_ns,
        "inode": claim.stamp.inode,
        "sha256": claim.file_digest.sha256,
        "block_size": BLOCK_SIZE,
        "blocks": list(claim.file_digest.blocks),
        "source": claim.source,
        "recorded_at": recorded_at,
    }


def _claim(entry: Fields) -> Claim | None:
    try:
        size, blocks = entry.count("size"), entry.texts("blocks")
        if entry.count("block_size") != BLOCK_SIZE or len(blocks) not in {0, -(-size // BLOCK_SIZE)}:
            blocks = ()
        return Claim(
            artifact_id=entry.text("artifact"),
            stamp=Stamp(
                size=size,
                mtime_ns=entry.integer("mtime_ns"),
                ctime_ns=None if entry.values.get("ctime_ns") is None else entry.integer("ctime_ns"),
                inode=entry.count("inode"),
                device=0,
            ),
            file_digest=FileDigest(size=size, sha256=entry.text("sha256"), blocks=blocks),
            source=entry.text("source"),
        )
    except FieldError:
        return None
