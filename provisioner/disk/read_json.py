"""Reads a small JSON file, whatever became of it."""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path
from typing import Any

from provisioner.core.json_reader import LARGEST, parse_object
from provisioner.disk.patience import PAUSES_S, READS, is_held, patiently

_MOMENTS_S = (0.02, 0.05, 0.1, 0.2)
"""Between attempts where nobody holds it any more by the time that is asked: several writers replace it in turn."""


def read_object(path: Path, *, most: int = LARGEST) -> dict[str, Any] | None:
    """Return the JSON object a file holds; None where there is none that can be read, or more than `most` bytes.

    On Windows a run that replaces the file holds it for a moment, which is waited out.
    """

    def read() -> dict[str, Any] | None:
        with path.open("rb") as stream:
            return parse_object(read_at_most(stream, most), most=most)

    try:
        return patiently(read, path, pauses_s=_MOMENTS_S, pauses_for_holder_s=PAUSES_S, holds=_is_unreadable)
    except OSError:
        return None


def _is_unreadable(path: Path) -> bool:
    return is_held(path, READS)


def read_at_most(stream: BufferedReader, most: int) -> bytes:
    """Return a file from its start, or `most` bytes and one more of a longer one; raises OSError.

    Python takes the room that a call of ``read`` names before it reads: 64 MiB for a file of one kilobyte.
    """
    room = min(most, os.fstat(stream.fileno()).st_size) + 1
    data = stream.read(room)
    return data if len(data) < room else data + stream.read(most + 1 - len(data))  # it grew, or has no size: a pipe
