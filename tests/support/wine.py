"""What Wine cannot do, each with a probe that shows it: a test that needs it is skipped by that name.

On Windows and elsewhere nothing is skipped: there a probe that fails is a finding.  A probe succeeds on a system that
can do the thing, so that a newer Wine that learnt it runs the tests, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Gap:
    """Something that Windows can do."""

    what: str
    works: Callable[[], bool]


def is_wine() -> bool:
    """Whether this Windows is Wine, which says so itself (``wine_get_version`` of its ntdll)."""
    return sys.platform == "win32" and hasattr(ctypes.windll.ntdll, "wine_get_version")


def _resets() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname(), timeout=5)
        far, _ = server.accept()
        with near:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
            far.close()
            try:
                near.recv(1)
            except ConnectionResetError:
                return True
    return False


def _junctions() -> bool:
    if sys.platform != "win32":
        return True
    import _winapi

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
        (Path(folder) / "to").mkdir()
        _winapi.CreateJunction(str(Path(folder) / "to"), str(Path(folder) / "from"))
        return (Path(folder) / "from").is_dir()
    return False


def _no_folder() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.touch()
        try:
            os.listdir(file)  # noqa: PTH208 - this is the call in question
        except NotADirectoryError:
            return True
        except OSError:
            return False
    return False


GAPS = {
    "resets": Gap("a connection that is closed without lingering ends with a reset", _resets),
    "junctions": Gap("junctions lead to folders", _junctions),
    "no folder": Gap(
        "listing a file says that it is no folder (267); Wine 8 says that its name is wrong (123)", _no_folder
    ),
}


@functools.cache
def lacks(name: str) -> bool:
    """Whether this is Wine, and one that cannot do this."""
    return is_wine() and not GAPS[name].works()


def needs(name: str) -> pytest.MarkDecorator:
    """Return the mark of a test that Wine cannot pass for lack of one of the `GAPS`."""
    return pytest.mark.skipif(lacks(name), reason=f"Wine lacks {name}: {GAPS[name].what}")


def skip_without(name: str) -> None:
    """Skip the test that runs where Wine cannot pass it for lack of one of the `GAPS`."""
    if lacks(name):
        pytest.skip(f"Wine lacks {name}: {GAPS[name].what}")
