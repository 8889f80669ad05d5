"""Takes away what a receipt says is ours and nothing else: what changed since, or was there before us, stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from provisioner.core.models import STATE_FOLDER, HubBlob
from provisioner.core.ports import FOUND_IN_PLACE, Claim
from provisioner.disk.atomic import half_written
from provisioner.disk.os_errors import storage_error
from provisioner.disk.safe_path import complaint_about_path
from provisioner.files.store.hub_layout import blob_behind, is_used_elsewhere
from provisioner.files.store.intents import announced_claim
from provisioner.files.store.receipts import (
    drop_claims,
    is_unchanged,
    read_announced,
    read_receipt,
    receipt_path,
    stamp_of,
)

State = Literal["ours", "adopted", "changed", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """One file a receipt speaks of, and what became of it."""

    root: Path
    relative: str  # as in the receipt, with forward slashes
    size: int  # bytes, by the receipt
    state: State

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root.joinpath(*PurePosixPath(self.relative).parts)


def owned_files(root: Path) -> tuple[Owned, ...]:
    """Return every file the root's receipt speaks of; names that leave the root are passed over.

    A file that a run placed before it was killed, with no time left for its receipt, is one of them.
    """
    claims = read_receipt(root)
    found = []
    for relative in sorted({*claims, *read_announced(root)}):
        if complaint_about_path(relative) is None:
            owned = _owned(root, relative, claims.get(relative))
            found += [owned] if owned is not None else []
    return tuple(found)


def _owned(root: Path, relative: str, claim: Claim | None) -> Owned | None:
    """Return what a receipt says of one path, or what was announced of the file that lies there; None for neither."""
    path = root.joinpath(*PurePosixPath(relative).parts)
    state: State
    try:
        there = stamp_of(path)
        announced = announced_claim(root, relative, path, there)
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
    return Owned(root=root, relative=relative, size=claim.stamp.size, state=state)


def remove_file(owned: Owned) -> None:
    """Delete one file of ours, the blob behind it in an HF cache too, and the folders that are empty then.

    Raises
    ------
    StorageError
        The system refused; the receipt still speaks of the file.
    """
    if owned.state not in {"ours", "missing"}:
        message = f"{owned.path} is not ours to remove"
        raise ValueError(message)
    path = owned.path
    blob = _blob_of(owned)
    try:
        path.unlink(missing_ok=True)
        if blob is not None:
            blob.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path, doing="remove") from error
    drop_claims(owned.root, [owned.relative])
    if blob is not None:
        _remove_empty(blob.parent, owned.root)
    _remove_empty(path.parent, owned.root)


def _blob_of(owned: Owned) -> Path | None:
    parts = PurePosixPath(owned.relative).parts
    if len(parts) < 3 or parts[0] != "snapshots" or not owned.path.is_symlink():
        return None
    destination = HubBlob(root=owned.root, revision=parts[1], filename="/".join(parts[2:]), is_lfs=True)
    blob = blob_behind(destination)
    return None if blob is None or blob.is_symlink() or is_used_elsewhere(blob, destination) else blob


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and its parents below the root as long as they are empty.

    A folder ComfyUI or the user made may be empty too; ComfyUI makes those it needs again at its next start.
    """
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def forget_root(root: Path) -> tuple[Path, ...]:
    """Remove our own records in a root whose receipt is empty; return what stays: the user's files in ``aside``."""
    state = root / STATE_FOLDER
    if read_receipt(root):
        return (state,)
    for path in (receipt_path(root), state / "lock", state / "proven.json", *half_written(state)):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    _forget_commits(root)
    with contextlib.suppress(OSError):
        (state / "aside").rmdir()
    with contextlib.suppress(OSError):
        state.rmdir()
    for folder in (root / "snapshots", root / "refs", root / "blobs"):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        root.rmdir()
    return tuple(_left(state))


def _forget_commits(root: Path) -> None:
    """In an HF cache, remove the names of commits of which no file is left."""
    for reference in (root / "refs").glob("*") if (root / "snapshots").parent.name.startswith("models--") else ():
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if not os.path.lexists(root / "snapshots" / reference.read_text(encoding="utf-8").strip()):
                reference.unlink()


def _left(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(folder.iterdir())
