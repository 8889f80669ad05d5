"""Wait for another program to let go of a file, and tell whether one holds it.

Virus scanners, indexers and backup programs read every new file on Windows and let nobody rename or remove it
meanwhile: of a large model for half a minute.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Between attempts where it is not known why the system refused."""

PAUSES_FOR_HOLDER_S = (*PAUSES_S, 2.85, 4.0, 5.0, 5.0, 5.0, 5.0)
"""Between attempts where another program holds the file: 30 s together."""

SAID_AFTER_S = 1.0  # most holders are gone before anybody needs to know
IN_USE = frozenset({32, 33, 1224})  # winerror.h: sharing violation, lock violation, user-mapped section open

READS, WRITES, RENAMES = 0x80000000, 0xC0000000, 0x00010000  # winnt.h: GENERIC_READ, and GENERIC_WRITE too; DELETE
_SHARES = 0x3  # FILE_SHARE_READ and FILE_SHARE_WRITE, as the C runtime opens files
_SHARES_ALL = 0x7  # and FILE_SHARE_DELETE, as a rename does
_EXISTING = 3  # OPEN_EXISTING
_FOLDERS_TOO = 0x02000000  # FILE_FLAG_BACKUP_SEMANTICS
_LINKS_THEMSELVES = 0x00200000  # FILE_FLAG_OPEN_REPARSE_POINT

Tell = Callable[[str], None]
T = TypeVar("T")


class _Listener:
    """Who is told that this process waits, and who is asked whether it goes on."""

    def __init__(self) -> None:
        self.tell: Tell = lambda message: None
        self.cancelled: Callable[[], bool] = lambda: False


_LISTENER = _Listener()


def listen(tell: Tell, cancelled: Callable[[], bool]) -> None:
    """Have somebody told, once for each wait that lasts, and asked between attempts whether the run was cancelled."""
    _LISTENER.tell, _LISTENER.cancelled = tell, cancelled


def refusal_code(path: Path, access: int = RENAMES, *, platform: str = sys.platform) -> int:
    """Return why Windows refuses an access to a file, 0 where it does not; elsewhere always 0.

    ``open`` and ``os.open`` go through the C runtime, which keeps "permission denied" and forgets whether that is a
    matter of rights (5) or another program's doing (32); and a rename says 5 of a file in its way that is held.
    """
    if platform != "win32" or sys.platform != "win32":
        return 0
    import _winapi

    shared = _SHARES_ALL if access == RENAMES else _SHARES
    try:
        handle = _winapi.CreateFile(str(path), access, shared, 0, _EXISTING, _FOLDERS_TOO | _LINKS_THEMSELVES, 0)
    except OSError as error:
        return error.winerror or 0
    _winapi.CloseHandle(handle)
    return 0


def is_held(path: Path, access: int = RENAMES) -> bool:
    """Whether another program holds a file so that it cannot be renamed, or accessed as given. Windows only."""
    return refusal_code(path, access) in IN_USE


def patiently(
    action: Callable[[], T],
    *paths: Path,
    platform: str = sys.platform,
    pauses_s: Sequence[float] = PAUSES_S,
    pauses_for_holder_s: Sequence[float] = PAUSES_FOR_HOLDER_S,
    holds: Callable[[Path], bool] = is_held,
) -> T:
    """Do something and return what it returns; raises what it raises, only after a while where that may pass.

    Everywhere a program that outlived the run it belonged to may still write into a folder that is being removed.

    Parameters
    ----------
    action : callable
        What is done, again and again.
    paths : Path
        What it is about: asked after when the system refused.
    platform, pauses_s, pauses_for_holder_s, holds
        The system; how long to wait before each next attempt; whether another program holds a path.
    """
    waited_s, attempt, has_told = 0.0, 0, False
    while True:
        try:
            return action()
        except OSError as error:
            held = _held(error, paths, holds) if platform == "win32" else None
            pauses = pauses_s if held is None else pauses_for_holder_s
            if not _may_pass(error, platform) or attempt >= len(pauses) or _LISTENER.cancelled():
                raise
            if held is not None and not has_told and waited_s >= SAID_AFTER_S:
                left_s = sum(pauses[attempt:])
                _LISTENER.tell(f"Another program holds {held}, perhaps a virus scanner; waiting up to {left_s:.0f} s.")
                has_told = True
            _sleep(pauses[attempt])
            waited_s += pauses[attempt]
            attempt += 1


def _sleep(seconds: float) -> None:
    """Wait, at most until the run is cancelled."""
    end = time.monotonic() + seconds
    while (left_s := end - time.monotonic()) > 0 and not _LISTENER.cancelled():
        time.sleep(min(left_s, 0.2))


def _may_pass(error: OSError, platform: str) -> bool:
    return error.errno == errno.ENOTEMPTY or (platform == "win32" and isinstance(error, PermissionError))


def _held(error: OSError, paths: Sequence[Path], holds: Callable[[Path], bool]) -> Path | None:
    """Return which of the paths another program holds, or None where it is not known that one does."""
    if not isinstance(error, PermissionError):
        return None
    found = next((path for path in paths if holds(path)), None)
    if found is None and getattr(error, "winerror", None) in IN_USE and paths:
        return paths[0]  # let go of a moment ago
    return found
