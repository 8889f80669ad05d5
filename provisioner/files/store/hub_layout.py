"""The layout of an HF cache repository: blobs named by content, snapshots that point to them, refs.

Layout as huggingface_hub 2.4.0 writes and reads it (read in its source and run against it, 2026-11-23): an LFS
file's blob is named by its SHA-256, any other by its git blob id; where links are not to be had the file itself
lies in the snapshot.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from provisioner.core.errors import NotTheFileError, StorageError
from provisioner.core.models import HubBlob
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import Root, waiting_for, waiting_name


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


def place_blob(
    root: Root, part: Path, destination: HubBlob, *, size: int, sha256: str, source_root: Root | None = None
) -> None:
    """Move verified bytes into ``blobs``, point the snapshot to them, name the commit.

    Raises StorageError, and NotTheFileError where the Hub, or a manifest that comes with klein-setup, gives the file's
    content another id.

    Where links are not to be had the file itself goes into the snapshot, as the Hub's client does it.
    """
    try:
        blob = blob_path(destination, part, size, sha256)
    except OSError as error:
        raise storage_error(error, part, doing="read") from error
    if destination.blob_id not in {None, blob.name}:
        raise NotTheFileError(
            f"These bytes are not confirmed as {destination.filename}: its git id is "
            f"{destination.blob_id}, that of the bytes the manifest names is {blob.name}.",
            hint="Nothing was put into the HF cache. Correct the manifest if it is yours; else do not use it.",
            expected=destination.blob_id,
            observed=blob.name,
        )
    pointer = destination.path
    root.make_folder(pointer.parent)
    root.make_folder(blob.parent)
    link = _new_link(root, pointer, blob)
    if link is None:
        root.replace(part, pointer, source_root=source_root)
    else:
        try:
            root.replace(part, blob, source_root=source_root)
            root.replace(link, pointer)
        finally:
            root.remove(link)
    if destination.is_shipped:  # what main means is not for a manifest of somebody else's to say
        _name_commit(root, destination)


def _new_link(root: Root, pointer: Path, blob: Path) -> Path | None:
    """Return a relative link to the blob that waits beside the snapshot path; None where links are not to be had."""
    link = pointer.with_name(waiting_name(pointer.name))
    up = len(pointer.relative_to(blob.parent.parent).parts) - 1
    try:
        root.symlink(link, Path(*[".."] * up, "blobs", blob.name))
    except StorageError:
        return None
    return link


def remove_waiting_links(root: Root, pointer: Path) -> None:
    """Remove links that a killed run left waiting for the name of a snapshot path; raises OSError, StorageError."""
    for path in waiting_for(pointer):
        if path.is_symlink() and path.readlink().parent.name == "blobs":
            root.remove(path)


def blob_behind(destination: HubBlob) -> Path | None:
    """Return the file in ``blobs`` that the snapshot path points to, or None if it points elsewhere or is no link."""
    try:
        name = destination.path.readlink().name
    except OSError:
        return None
    blob = destination.root / "blobs" / name
    return blob if os.path.lexists(blob) else None


def is_used_elsewhere(blob: Path, destination: HubBlob) -> bool:
    """Whether another path of any snapshot in the repository points to that blob."""
    for path in (destination.root / "snapshots").rglob("*"):
        with contextlib.suppress(OSError):  # it is no link, or another thread has just given it its name
            if path != destination.path and path.readlink().name == blob.name:
                return True
    return False


def _name_commit(root: Root, destination: HubBlob) -> None:
    """Let ``main`` mean this commit if it means nothing yet; another commit there is the user's."""
    reference = destination.root / "refs" / "main"
    if not reference.exists():
        root.write_text(reference, destination.revision)
