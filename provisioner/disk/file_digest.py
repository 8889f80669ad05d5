"""The SHA-256 of a small file, or of one that is read whole anyway; model files have `hash_file`, with its progress."""

from __future__ import annotations

import hashlib
from pathlib import Path

_CHUNK_BYTES = 1024 * 1024


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
