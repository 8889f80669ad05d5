"""Which block digests belong to a file's whole digest, as runs of this user found by reading both from the same bytes.

A receipt lies with the files and may come from a stranger, who can write the digests of other blocks beside the right
digest of the whole.  What was bound lies in the user's own state folder: a file per content, named by its SHA-256, that
holds the SHA-256 of the list of its blocks.  Without it a file is read whole once.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from provisioner.core.errors import StorageError
from provisioner.core.models import BLOCK_SIZE
from provisioner.core.ports import FileDigest
from provisioner.disk.root import Root

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class BoundBlocks:
    """What this user's runs have bound.

    Parameters
    ----------
    folder : callable
        Returns the folder they are in; asked when it is needed.
    """

    folder: Callable[[], Path]

    def has(self, file_digest: FileDigest) -> bool:
        """Whether the blocks of a digest are those that were read with the whole."""
        try:
            return self._path(file_digest).read_text(encoding="ascii").strip() == _digest_of_list(file_digest)
        except (OSError, ValueError):
            return False

    def keep(self, file_digest: FileDigest) -> None:
        """Keep the blocks of a digest if they were read with the whole; a state folder that refuses is no error."""
        if file_digest.is_one_reading and file_digest.blocks and not self.has(file_digest):
            with contextlib.suppress(StorageError, ValueError):
                root, folder = Root(self.folder(), is_private=True), self.folder()
                root.write_text(self._path(file_digest), _digest_of_list(file_digest) + "\n")
                root.remove_abandoned(folder.glob("*.tmp"))  # of killed runs, about whatever file

    def _path(self, file_digest: FileDigest) -> Path:
        if _SHA256.fullmatch(file_digest.sha256) is None:
            raise ValueError(file_digest.sha256)
        return self.folder() / file_digest.sha256


def _digest_of_list(file_digest: FileDigest) -> str:
    text = "\n".join((f"{file_digest.size} bytes in blocks of {BLOCK_SIZE}", *file_digest.blocks))
    return hashlib.sha256(text.encode()).hexdigest()
