"""What is about to get its final name, written down before it does: a kill before the receipt takes no file from us.

An announcement says whose a file is and nothing of its bytes: they are verified as if nothing had been written down.
It is believed of the very file it speaks of (size, mtime, inode), once nothing waits for that name any more.
"""

from __future__ import annotations

import os
from pathlib import Path

from provisioner.core.ports import Claim, Stamp
from provisioner.disk.root import waiting_for, waiting_name
from provisioner.files.store.part_file import part_path
from provisioner.files.store.receipts import Receipts, is_same_file

_WAITING = ".placing.part"


def waiting_path(final: Path) -> Path:
    """Return a new name under which a local copy waits for its proof; nobody else gives a file such a name."""
    return final.with_name(waiting_name(final.name, _WAITING))


def waiting_copies(final: Path) -> list[Path]:
    """Return the copies that wait, or that a killed run left waiting."""
    return waiting_for(final, _WAITING)


def announced_claim(receipts: Receipts, root: Path, relative: str, path: Path, found: Stamp) -> Claim | None:
    """Return what was announced of the file that lies at a path now, or None where nothing was, or of another file.

    A hard link that waits has the inode of the file it leads to: as long as it waits, that file is not what we placed.
    """
    claim = receipts.announced(root, relative)
    if claim is None or not is_same_file(claim.stamp, found):
        return None
    grows_beside = (path, root / "blobs" / claim.file_digest.sha256)  # the latter in an HF cache
    waits = any(os.path.lexists(part_path(final)) or waiting_copies(final) for final in grows_beside)
    return None if waits else claim
