"""The layout of an HF cache repository: blobs named by content, snapshots that point to them, refs.

Layout as huggingface_hub 2.4.0 writes and reads it (read in its source and run against it, 2026-11-23): an LFS
file's blob is named by its SHA-256, any other by its git blob id; where links are not to be had the file itself
lies in the snapshot.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

from provisioner.adapters.store.durable import make_folder, replace, storage_error, write_text_durably
from provisioner.models import HubBlob


def git_blob_id(path: Path, size: int) -> str:
    """Return the git object id of a file's content; raises OSError."""
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1024 * 1024):
            digest.update(piece)
    return digest.hexdigest()


def blob_path(destination: HubBlob, content: Path, size: int, sha256: str) -> Path:
    """Return where the blob of a content belongs; ``content`` is a file with that content."""
    name = sha256 if destination.is_lfs else git_blob_id(content, size)
    return destination.root / "blobs" / name


def place_blob(part: Path, destination: HubBlob, *, size: int, sha256: str) -> None:
    """Move proven bytes into ``blobs``, point the snapshot to them, name the commit; raises StorageError."""
    try:
        blob = blob_path(destination, part, size, sha256)
    except OSError as error:
        raise storage_error(error, part, doing="read") from error
    make_folder(destination.path.parent)
    replace(part, blob)
    if not _point(destination.path, blob):
        replace(blob, destination.path)  # no links here: the snapshot holds the file itself
    _name_commit(destination)


def _point(pointer: Path, blob: Path) -> bool:
    """Make the snapshot path a relative link to the blob, in one step; False where links are not to be had."""
    temporary = pointer.with_name(f"{pointer.name}.{os.getpid()}.tmp")
    up = len(PurePosixPath(pointer.relative_to(blob.parent.parent).as_posix()).parts) - 1
    target = Path(*[".."] * up, "blobs", blob.name)
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
    except (OSError, NotImplementedError):
        return False
    replace(temporary, pointer)
    return True


def _name_commit(destination: HubBlob) -> None:
    """Let ``main`` mean this commit if it means nothing yet; another commit there is the user's."""
    reference = destination.root / "refs" / "main"
    if not reference.exists():
        write_text_durably(reference, destination.revision)
