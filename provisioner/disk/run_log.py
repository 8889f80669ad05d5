"""The log of a run: what the installers that it starts print, whole, for whoever looks for the reason of a failure."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from provisioner.core.errors import StorageError
from provisioner.core.redact import printable, redact
from provisioner.disk.root import Root

MOST_BYTES = 8 * 1024 * 1024
"""Bytes of one log; what comes after them is left out, and the log says so."""

MOST_LOGS = 20
"""Logs that are kept, the newest."""

_BUFFER = 64  # lines
_NAME = re.compile(r"run-\d{8}T\d{6}Z\.txt")


class RunLog:
    """Lines in a file that is made with the first of them.  A folder that cannot be written to is no error: no log.

    Parameters
    ----------
    folder : callable
        Returns the folder of the logs.
    secrets : tuple of str
        Values to mask, beside what looks like a token or a signed address.
    """

    def __init__(self, folder: Callable[[], Path], secrets: tuple[str, ...] = ()) -> None:
        self._folder, self._secrets = folder, secrets
        self._waiting: list[str] = []
        self._written = 0
        self._is_full = False
        self.path: Path | None = None
        """The file, or None where there is none."""

    def write(self, line: str) -> None:
        """Add a line, redacted; it is on disk after `flush` at the latest."""
        if self._is_full:
            return
        self._waiting.append(line)
        if len(self._waiting) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Bring what is waiting to the disk."""
        waiting, self._waiting = self._waiting, []
        if not waiting or self._is_full:
            return
        text = "".join(f"{redact(printable(line), self._secrets).rstrip()}\n" for line in waiting)
        if self._written + len(text.encode()) > MOST_BYTES:
            self._is_full, text = True, f"[The rest was left out: a log has at most {MOST_BYTES:,} bytes.]\n"
        self._written += len(text.encode())
        try:
            self._append(text)
        except StorageError:
            self._is_full = True

    def _append(self, text: str) -> None:
        path = self.path or self._folder() / time.strftime("run-%Y%m%dT%H%M%SZ.txt", time.gmtime())
        root = Root(path.parent, is_private=True)
        if self.path is None:
            root.make_folder()
            logs = sorted(each for each in path.parent.glob("run-*.txt") if _NAME.fullmatch(each.name))
            for old in logs[: 1 - MOST_LOGS]:
                with contextlib.suppress(StorageError):  # another run may have it open
                    root.remove(old)
        with root.open_log(path) as stream:
            stream.write(text.encode("utf-8"))
        self.path = path
