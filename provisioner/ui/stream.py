"""Output streams: what a stream can show, and writing to it without ever failing.

A full or closed stream, or one with a limited encoding, must not stop a download, so nothing here raises.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TextIO

from provisioner.ui.text import Line, rendered

Terminal = Literal["none", "plain", "full"]
"""No terminal; one that cannot move its cursor up; one that can redraw."""

_UNICODE_PROBE = "\u2026\u2501\u2500"  # what the bars and the shortened paths are made of


def terminal_of(*, is_terminal: bool, term: str | None, is_windows: bool, has_escape_sequences: bool) -> Terminal:
    """Return what a stream can do.

    `has_escape_sequences` says whether a Windows console understands them; it is used nowhere else.
    """
    if not is_terminal:
        return "none"
    if is_windows:
        return "full" if has_escape_sequences else "plain"
    return "plain" if term in {None, "", "dumb", "unknown"} else "full"


def wants_colour(*, terminal: Terminal, choice: bool | None, environ: Mapping[str, str]) -> bool:
    """Return whether to use colour: the user's option, else ``NO_COLOR`` (no-color.org), else what the terminal can."""
    if terminal == "plain" or choice is False:
        return False
    if choice is True:
        return True
    return terminal == "full" and not environ.get("NO_COLOR")


def enable_escape_sequences(stream: TextIO) -> bool:
    """Return whether the console behind `stream` understands escape sequences, after asking it to.

    Windows only: since Windows 10 1511 a console does when told so (ENABLE_VIRTUAL_TERMINAL_PROCESSING, 4);
    an older one refuses, and a redirected stream has no console.
    """
    if sys.platform != "win32":
        return True
    import ctypes
    import msvcrt

    try:
        handle = msvcrt.get_osfhandle(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    kernel = ctypes.windll.kernel32
    mode = ctypes.c_ulong()
    if not kernel.GetConsoleMode(ctypes.c_void_p(handle), ctypes.byref(mode)):
        return False
    return bool(kernel.SetConsoleMode(ctypes.c_void_p(handle), mode.value | 4))


def home_of(environ: Mapping[str, str]) -> str:
    """Return the home folder that a tilde stands for; empty where there is none, or where it is the root.

    >>> home_of({"HOME": "/home/me/"}), home_of({"HOME": "/"}), home_of({})
    ('/home/me', '', '')
    """
    home = environ.get("USERPROFILE" if sys.platform == "win32" else "HOME", "").rstrip("/\\")
    return home if Path(home).is_absolute() and len(Path(home).parts) > 1 else ""


# Windows says "invalid argument" for a pipe whose reader has ended.
_NOBODY_READS = {errno.EPIPE, errno.ECONNRESET} | ({errno.EINVAL} if sys.platform == "win32" else set())


class Output:
    """One stream, with what it can show.  Looks enough like a text file for rich and tqdm to write to."""

    def __init__(self, stream: TextIO, *, color: bool | None, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._environ = environ
        self._is_gone = False
        self.lost: OSError | None = None  # why what was written did not arrive, where nobody chose not to read it
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        is_windows = sys.platform == "win32"
        is_terminal = self.isatty()
        self.terminal = terminal_of(
            is_terminal=is_terminal,
            term=environ.get("TERM"),
            is_windows=is_windows,
            has_escape_sequences=is_terminal and enable_escape_sequences(stream),
        )
        self.is_coloured = wants_colour(terminal=self.terminal, choice=color, environ=environ)
        self.is_unicode = self._can_encode(_UNICODE_PROBE)
        self.is_linked = self.terminal == "full" and self.is_coloured  # who wants no colours wants plain characters
        self.home = home_of(environ) if is_terminal else ""

    def _can_encode(self, text: str) -> bool:
        try:
            text.encode(self.encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    @property
    def ellipsis(self) -> str:
        """What stands for text left out."""
        return "\u2026" if self.is_unicode else "..."

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal now; a window may be resized at any time."""
        try:
            measured = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError, AttributeError):
            measured = os.terminal_size((0, 0))
        return measured.columns or _number(self._environ.get("COLUMNS"), 80), measured.lines or _number(
            self._environ.get("LINES"), 24
        )

    @property
    def width(self) -> int | None:
        """Cells to lay text out for; None where lines may be as long as they are."""
        return None if self.terminal == "none" else max(40, self.size[0])

    def lines(self, lines: Iterable[Line]) -> None:
        """Write lines and flush."""
        self.write(
            "".join(f"{rendered(line, is_coloured=self.is_coloured, is_linked=self.is_linked)}\n" for line in lines)
        )
        self.flush()

    def write(self, text: str) -> int:
        """Write text, characters that the encoding lacks as escapes; a closed stream ignores it."""
        if not self._is_gone and text:
            try:
                self._stream.write(self._encodable(text))
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def _encodable(self, text: str) -> str:
        try:
            return text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        except LookupError:
            return text.encode("ascii", "backslashreplace").decode("ascii")

    def flush(self) -> None:
        """Flush, unless the stream is closed."""
        if self._is_gone:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Stop writing: the reader of a pipe has ended (``klein-setup plan | head``), or the disk is full.

        The descriptor is pointed at the null device; otherwise the interpreter reports an error when it flushes
        at exit (docs.python.org, signal, note on SIGPIPE).
        """
        self._is_gone = True
        if isinstance(error, OSError) and error.errno not in _NOBODY_READS:
            self.lost = error
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, self._stream.fileno())
            os.close(sink)
        except (OSError, ValueError, AttributeError):
            return

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        try:
            return self._stream.isatty()
        except (AttributeError, ValueError, OSError):
            return False

    def fileno(self) -> int:
        """Return the stream's descriptor."""
        return self._stream.fileno()


def _number(text: str | None, default: int) -> int:
    """Return a positive number from an environment variable, or the default."""
    return int(text) if text is not None and text.isdecimal() and int(text) > 0 else default
