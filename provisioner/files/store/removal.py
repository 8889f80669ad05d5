"""Takes away what a receipt says is ours and nothing else: what changed since, or was there before us, stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from provisioner.core.errors import StorageError
from provisioner.core.models import STATE_FOLDER, HubBlob
from provisioner.core.ports import FOUND_IN_PLACE, FileDigest
from provisioner.disk.root import Root, half_written
from provisioner.disk.safe_path import complaint_about_path
from provisioner.files.store.hub_layout import blob_behind, is_used_elsewhere
from provisioner.files.store.intents import announced_claim
from provisioner.files.store.receipts import (
    Receipts,
    is_unchanged,
    read_announced,
    read_receipt,
    receipt_path,
    refuse_later_release,
    stamp_of,
)

State = Literal["ours", "adopted", "changed", "missing", "behind-link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """One file a receipt speaks of, and what became of it."""

    root: Path
    relative: str  # as in the receipt, with forward slashes
    size: int  # bytes, by the receipt
    sha256: str  # by the receipt
    state: State

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root.joinpath(*PurePosixPath(self.relative).parts)


def owned_files(root: Root) -> tuple[Owned, ...]:
    """Return every file the root's receipt speaks of; names that leave the root are passed over.

    A file that a run placed before it was killed, with no time left for its receipt, is one of them.  Raises
    StorageError where a later release wrote the receipt.
    """
    refuse_later_release(root.folder)
    receipts = Receipts()
    names = sorted({*read_receipt(root.folder), *read_announced(root.folder)})
    found = [_owned(root, relative, receipts) for relative in names]
    return tuple(owned for owned in found if owned is not None)


def _owned(root: Root, relative: str, receipts: Receipts) -> Owned | None:
    """Return what a receipt says of one path, or what was announced of the file that lies there; None for neither."""
    if complaint_about_path(relative) is not None or STATE_FOLDER in relative.split("/"):
        return None
    claim = receipts.claim(root.folder, relative)
    path = root.folder.joinpath(*PurePosixPath(relative).parts)
    state: State
    try:
        there = stamp_of(path)
        announced = announced_claim(receipts, root.folder, relative, path, there)
        if announced is not None and (claim is None or not is_unchanged(claim.stamp, there)):
            claim, state = announced, "ours"
        elif claim is None:
            return None
        elif is_unchanged(claim.stamp, there):
            state = "adopted" if claim.source == FOUND_IN_PLACE else "ours"
        else:
            state = "changed"
    except OSError:
        if claim is None:
            return None
        state = "missing"
    if state == "ours" and not root.holds(path):
        state = "behind-link"
    return Owned(
        root=root.folder, relative=relative, size=claim.stamp.size, sha256=claim.file_digest.sha256, state=state
    )


def remove_file(root: Root, owned: Owned, *, hash_file: Callable[[Path], FileDigest]) -> Owned:
    """Delete one file of ours, the blob behind it in an HF cache too, and the folders that are empty then.

    Whose the file is is looked at again now, and every byte of it is read: what somebody saved under its name since
    `owned_files` was asked stays.

    Returns
    -------
    Owned
        What was found now; the file stays unless that is "ours" or "missing".

    Raises
    ------
    StorageError
        The system refused; the receipt still speaks of the file.
    """
    refuse_later_release(root.folder)
    now = _owned(root, owned.relative, Receipts())
    if now is None or now.state != "ours":
        now = now or replace(owned, state="missing")
        if now.state == "missing":  # a run that was killed here had removed the blob and not yet the link to it
            root.remove_if(owned.path, _is_link_to_no_blob)
    else:
        now = _remove_bytes(root, now, hash_file)
    if now.state in {"ours", "missing"}:
        Receipts().drop_claims(root, [owned.relative])
        _remove_empty(root, owned.path.parent)
    return now


def _remove_bytes(root: Root, owned: Owned, hash_file: Callable[[Path], FileDigest]) -> Owned:
    """Remove a file whose bytes are those its receipt speaks of; a blob before the link to it, by which it is found."""
    blob = _blob_of(owned)
    if not root.remove_if(blob or owned.path, lambda real: hash_file(real).sha256 == owned.sha256):
        return replace(owned, state="changed")
    if blob is not None:
        _remove_empty(root, blob.parent)
        root.remove_if(owned.path, _is_link_to_no_blob)
    return owned


def _is_link_to_no_blob(path: Path) -> bool:
    return path.is_symlink() and path.readlink().parent.name == "blobs" and not path.exists()


def _blob_of(owned: Owned) -> Path | None:
    parts = PurePosixPath(owned.relative).parts
    if len(parts) < 3 or parts[0] != "snapshots" or not owned.path.is_symlink():
        return None
    destination = HubBlob(root=owned.root, revision=parts[1], filename="/".join(parts[2:]), is_lfs=True)
    blob = blob_behind(destination)
    return None if blob is None or blob.is_symlink() or is_used_elsewhere(blob, destination) else blob


def _remove_empty(root: Root, folder: Path) -> None:
    """Remove a folder and its parents below the root as long as they are empty.

    A folder ComfyUI or the user made may be empty too; ComfyUI makes those it needs again at its next start.
    """
    while root.folder in folder.parents and root.remove_folder(folder):
        folder = folder.parent


def forget_root(root: Root) -> tuple[Path, ...]:
    """Remove our own records in a root whose receipt is empty; return what stays: the user's files in ``aside``."""
    state = root.folder / STATE_FOLDER
    if read_receipt(root.folder):
        return (state,)
    for path in (receipt_path(root.folder), state / "lock", state / "proven.json", *half_written(state)):
        with contextlib.suppress(StorageError):
            root.remove(path)
    _forget_commits(root)
    for folder in (state / "aside", state, *(root.folder / name for name in ("snapshots", "refs", "blobs"))):
        root.remove_folder(folder)
    Root(root.folder.parent).remove_folder(root.folder)
    return tuple(_left(state))


def _forget_commits(root: Root) -> None:
    """In an HF cache, remove the names of commits of which no file is left."""
    folder = root.folder
    for reference in (folder / "refs").glob("*") if folder.name.startswith("models--") else ():
        with contextlib.suppress(OSError, UnicodeDecodeError, StorageError):
            if not os.path.lexists(folder / "snapshots" / reference.read_text(encoding="utf-8").strip()):
                root.remove(reference)


def _left(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(folder.iterdir())
