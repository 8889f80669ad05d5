"""Starts the command line.  It imports next to nothing, so that a signal is heard before the rest is imported."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` is made of; that one imports enum, and typing re
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

GC_THRESHOLD = 20_000
"""Importing, and reading headers, make much that stays; to look through it again and again is a tenth of it all."""

_INTERRUPTED, _TERMINATED = 130, 143


def run() -> NoReturn:
    """Run one command as a process of its own, and end it."""
    for number in (_signal.SIGINT, _signal.SIGTERM):
        _signal.signal(number, _leave)
    gc.set_threshold(GC_THRESHOLD)
    from provisioner.cli.main import main

    status = main(argv0=sys.argv[0])
    gc.freeze()  # nor is it looked through on the way out, which takes 20 ms: the process takes all of it along
    sys.exit(status)


def _leave(number: int, _frame: FrameType | None) -> None:
    """End the process: before a command begins there is nothing to clean up, and after it nothing is left."""
    os._exit(_TERMINATED if number == _signal.SIGTERM else _INTERRUPTED)
