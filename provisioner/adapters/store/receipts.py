"""The receipt of a models root: what was proved once, and the file's stamp at that moment.  A claim, not a proof.

It lies in ``<root>/.klein-setup/receipt.json``, with the files, so that it travels with the drive.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TypedDict

from provisioner.adapters.store.durable import write_text_durably
from provisioner.models import BLOCK_SIZE, STATE_FOLDER
from provisioner.ports import Claim, Proof, Stamp

SCHEMA_VERSION = 1


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


def read_receipt(root: Path) -> dict[str, Claim]:
    """Return every entry that can be read, by its path relative to the root; a broken receipt is an empty one."""
    try:
        document = json.loads(receipt_path(root).read_text(encoding="utf-8"))
        files = document["files"] if document["schema_version"] == SCHEMA_VERSION else {}
        items = list(files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    claims = {}
    for relative, entry in items:
        claim = _claim(entry)
        if claim is not None:
            claims[str(relative)] = claim
    return claims


def write_claim(root: Path, relative: str, claim: Claim, *, recorded_at: str) -> None:
    """Add or replace one entry, keeping the others and any key we do not know; raises StorageError."""
    path = receipt_path(root)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        is_ours = isinstance(document, dict) and document.get("schema_version") == SCHEMA_VERSION
        if not is_ours or not isinstance(document.get("files"), dict):
            document = {}  # claims nobody can read are proved again
    except (OSError, ValueError, RecursionError):
        document = {}
    document["schema_version"] = SCHEMA_VERSION
    document.setdefault("files", {})[relative] = _entry(claim, recorded_at)
    write_text_durably(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def drop_claims(root: Path, relatives: Collection[str]) -> None:
    """Remove entries, keeping the others and any key we do not know; raises StorageError."""
    path = receipt_path(root)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        files = document["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # nothing readable speaks of them
    kept = {name: entry for name, entry in files.items() if name not in relatives}
    if len(kept) != len(files):
        document["files"] = kept
        write_text_durably(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def _entry(claim: Claim, recorded_at: str) -> Entry:
    return {
        "artifact": claim.artifact_id,
        "size": claim.stamp.size,
        "mtime_ns": claim.stamp.mtime_ns,
        "ctime_ns": claim.stamp.ctime_ns,
        "inode": claim.stamp.inode,
        "sha256": claim.proof.sha256,
        "block_size": BLOCK_SIZE,
        "blocks": list(claim.proof.blocks),
        "source": claim.source,
        "recorded_at": recorded_at,
    }


def _claim(entry: Entry) -> Claim | None:
    try:
        size, sha256, blocks = int(entry["size"]), str(entry["sha256"]), tuple(map(str, entry["blocks"]))
        if entry["block_size"] != BLOCK_SIZE or len(blocks) not in {0, -(-size // BLOCK_SIZE)}:
            blocks = ()
        ctime_ns = entry["ctime_ns"]
        return Claim(
            artifact_id=str(entry["artifact"]),
            stamp=Stamp(
                size=size,
                mtime_ns=int(entry["mtime_ns"]),
                ctime_ns=None if ctime_ns is None else int(ctime_ns),
                inode=int(entry["inode"]),
                device=0,
            ),
            proof=Proof(size=size, sha256=sha256, blocks=blocks),
            source=str(entry["source"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
