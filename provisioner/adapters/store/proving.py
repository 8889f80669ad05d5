"""Reading every byte of a file: its SHA-256, and if wanted that of every block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from provisioner.adapters.store.durable import storage_error
from provisioner.models import BLOCK_SIZE
from provisioner.ports import Cancelled, HashProgress, Proof

_READ_STEP = 1024 * 1024  # divides BLOCK_SIZE, so that a step never crosses a block


def prove(
    path: Path,
    *,
    progress: HashProgress,
    cancelled: Cancelled,
    with_blocks: bool = False,
    also: Callable[[bytes | memoryview], None] | None = None,
) -> Proof:
    """Return the proof of a file's content as it is now, read once from start to end.

    Parameters
    ----------
    path : Path
        The file; links are followed.
    progress : callable
        Told the bytes read so far, after every MiB.
    cancelled : callable
        Asked after every MiB.
    with_blocks : bool
        Also digest every 16 MiB block; costs a second hash over the same bytes.
    also : callable, optional
        Given every piece in order: a copy is written in the same pass that proves it.

    Raises
    ------
    UnreadableError
        The system does not let us read the file to its end.
    KeyboardInterrupt
        ``cancelled`` said so.
    """
    whole, block, blocks, total = hashlib.sha256(), hashlib.sha256(), [], 0
    buffer = bytearray(_READ_STEP)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as stream:
            while count := _fill(stream.readinto, view):
                piece = view[:count]
                whole.update(piece)
                if also is not None:
                    also(piece)
                total += count
                if with_blocks:
                    block.update(piece)
                    if total % BLOCK_SIZE == 0:
                        blocks.append(block.hexdigest())
                        block = hashlib.sha256()
                progress(total)
                if cancelled():
                    raise KeyboardInterrupt
    except OSError as error:
        raise storage_error(error, path, doing="read") from error
    if with_blocks and total % BLOCK_SIZE:
        blocks.append(block.hexdigest())
    return Proof(size=total, sha256=whole.hexdigest(), blocks=tuple(blocks))


def _fill(read_into: Callable[[memoryview], int | None], view: memoryview) -> int:
    """Fill the whole buffer unless the file ends; short reads happen on network file systems."""
    filled = 0
    while filled < len(view):
        count = read_into(view[filled:])
        if not count:
            break
        filled += count
    return filled
