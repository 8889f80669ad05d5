"""The layout of an HF cache repository: blobs named by content, snapshots that point to them, refs.

Layout as huggingface_hub 2.4.0 writes and reads it (read in its source and run against it, 2026-11-23): an LFS
file's blob is named by its SHA-256, any other by its git blob id; where links are not to be had the file itself
lies in the snapshot.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from provisioner.core.models import HubBlob
from provisioner.disk.atomic import Move, make_folder, replace, write_text_durably
from provisioner.disk.os_errors import storage_error

Symlink = Callable[[Path, Path], None]
"""Makes the first path a link to the second; raises OSError where that is not possible."""


def make_symlink(link: Path, target: Path) -> None:
    """Make a link; raises OSError."""
    link.symlink_to(target)


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
    part: Path, destination: HubBlob, *, size: int, sha256: str, symlink: Symlink = make_symlink, move: Move = replace
) -> None:
    """Move proven bytes into ``blobs``, point the snapshot to them, name the commit; raises StorageError.

    Where links are not to be had the file itself goes into the snapshot, as the Hub's client does it.
    """
    try:
        blob = blob_path(destination, part, size, sha256)
    except OSError as error:
        raise storage_error(error, part, doing="read") from error
    pointer = destination.path
    make_folder(pointer.parent)
    link = _new_link(pointer, blob, symlink)
    if link is None:
        move(part, pointer)
    else:
        try:
            move(part, blob)
            move(link, pointer)
        finally:
            link.unlink(missing_ok=True)
    _name_commit(destination)


def _new_link(pointer: Path, blob: Path, symlink: Symlink) -> Path | None:
    """Return a relative link to the blob that waits beside the snapshot path; None where links are not to be had."""
    link = pointer.with_name(f"{pointer.name}.{os.getpid()}.tmp")
    up = len(pointer.relative_to(blob.parent.parent).parts) - 1
    try:
        link.unlink(missing_ok=True)
        symlink(link, Path(*[".."] * up, "blobs", blob.name))
    except (OSError, NotImplementedError):
        return None
    return link


def remove_waiting_links(pointer: Path) -> None:
    """Remove links to a blob that a killed run left waiting for the name of a snapshot path; raises OSError."""
    import glob

    for path in pointer.parent.glob(f"{glob.escape(pointer.name)}.*.tmp"):
        number = path.name.removeprefix(pointer.name + ".").removesuffix(".tmp")
        if number.isdecimal() and path.is_symlink() and path.readlink().parent.name == "blobs":
            path.unlink()


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
        if path != destination.path and path.is_symlink() and path.readlink().name == blob.name:
            return True
    return False


def _name_commit(destination: HubBlob) -> None:
    """Let ``main`` mean this commit if it means nothing yet; another commit there is the user's."""
    reference = destination.root / "refs" / "main"
    if not reference.exists():
        write_text_durably(reference, destination.revision)
