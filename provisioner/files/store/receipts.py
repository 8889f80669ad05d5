"""The receipt of a models root: what was proved once, and the file's stamp at that moment.  A claim, not a proof.

It lies in ``<root>/.klein-setup/receipt.json``, with the files, so that it travels with the drive.  ``files`` speaks of
what is in place.  ``placing`` speaks of what was about to get its name, so that a kill before the receipt of a file
does not make it look like one that was there before us; writing the receipt takes that entry away in the same step.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypedDict

from provisioner.core.errors import StorageError
from provisioner.core.json_reader import FieldError, Fields, as_dict
from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from provisioner.core.ports import Claim, FileDigest, Stamp
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root

SCHEMA_VERSION = 1
_PLACING: Literal["placing"] = "placing"
_CHANGING = threading.Lock()  # files arrive at once, and each change reads the document and writes it anew


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
    return _read(root, "files")


def read_announced(root: Path) -> dict[str, Claim]:
    """Return what was about to be placed and has no receipt yet, by its path relative to the root."""
    return _read(root, _PLACING)


def _read(root: Path, key: Literal["files", "placing"]) -> dict[str, Claim]:
    document = read_object(receipt_path(root)) or {}
    entries = as_dict(document.get(key)) if document.get("schema_version") == SCHEMA_VERSION else {}
    claims = {relative: _claim(Fields(as_dict(entry))) for relative, entry in entries.items()}
    return {relative: claim for relative, claim in claims.items() if claim is not None}


def write_claim(root: Root, relative: str, claim: Claim, *, recorded_at: str) -> None:
    """Add or replace one entry, keeping the others and any key we do not know; raises StorageError."""
    with _CHANGING:
        document = _document(root)
        document["files"][relative] = _entry(claim, recorded_at)
        _forget_announced(document, [relative])
        _write(root, document)


def announce_claim(root: Root, relative: str, claim: Claim, *, recorded_at: str) -> None:
    """Write down that a file is about to get its name; raises StorageError.

    The folder is not flushed: the file's own folder is, once it has its name, and what a power cut takes from here is
    only the knowledge that the file is ours.
    """
    with _CHANGING:
        document = _document(root)
        known = document.get(_PLACING)
        document[_PLACING] = {**(known if isinstance(known, dict) else {}), relative: _entry(claim, recorded_at)}
        _write(root, document, is_name_flushed=False)


def drop_claims(root: Root, relatives: Collection[str]) -> None:
    """Remove entries, announced ones too, keeping the others and any key we do not know; raises StorageError."""
    with _CHANGING:
        document = _document(root)
        files = document["files"]
        document["files"] = {name: entry for name, entry in files.items() if name not in relatives}
        if _forget_announced(document, relatives) or len(document["files"]) != len(files):
            _write(root, document)


def drop_announced(root: Root, relative: str) -> None:
    """Remove an announcement of which nothing came; raises StorageError."""
    with _CHANGING:
        document = _document(root)
        if _forget_announced(document, [relative]):
            _write(root, document, is_name_flushed=False)


def refuse_later_release(root: Path) -> None:
    """Raise StorageError where a later release wrote the receipt, of which this one would keep nothing."""
    _read_document(root)


def _document(root: Root) -> dict[str, Any]:
    """Return the document that is there, or an empty one: claims nobody can read are proved again."""
    document = _read_document(root.folder)
    is_ours = document.get("schema_version") == SCHEMA_VERSION and isinstance(document.get("files"), dict)
    return document if is_ours else {"schema_version": SCHEMA_VERSION, "files": {}}


def _read_document(root: Path) -> dict[str, Any]:
    path = receipt_path(root)
    document = read_object(path) or {}
    version = document.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StorageError(
            f"{path} was written by a later release of klein-setup (schema_version {version}).",
            hint="Update klein-setup; or move that file away, and every file is verified anew.",
            path=str(path),
            schema_version=version,
        )
    return document


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


def _write(root: Root, document: dict[str, Any], *, is_name_flushed: bool = True) -> None:
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    root.write_text(receipt_path(root.folder), text, is_name_flushed=is_name_flushed)


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
