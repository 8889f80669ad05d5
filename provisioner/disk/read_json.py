"""Reads a small JSON file, whatever became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provisioner.core.json_reader import LARGEST, parse_object


def read_object(path: Path, *, most: int = LARGEST) -> dict[str, Any] | None:
    """Return the JSON object a file holds; None where there is none that can be read, or more than `most` bytes."""
    try:
        with path.open("rb") as stream:
            return parse_object(stream.read(most + 1), most=most)
    except OSError:
        return None
