"""Small disks: a file system in memory, and how it is filled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from tests.support.sandbox import MIB

Mount = Callable[..., Path]


def fill_the_disk(filler: Path) -> None:
    """Write until nothing more goes in."""
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(MIB))
