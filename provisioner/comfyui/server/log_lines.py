"""Which lines of a running ComfyUI's output a person wants to see on the screen; all of them are in its log."""

from __future__ import annotations

import re
from collections.abc import Iterable

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVEL = re.compile(r"\[(DEBUG|INFO|WARNING|ERROR|CRITICAL)\]")
_ERROR = re.compile(r"(?<![\w/-])(?:[\w.]*error|[\w.]*exception|fatal|critical|fail(?:ed|ure)|cannot)(?![\w/-])", re.I)
_FRAMES = "Traceback (most recent call last)"


def error_lines(lines: Iterable[str]) -> list[str]:
    r"""Return the lines that say that something failed, without colours and without the frames of a traceback.

    ComfyUI 0.33.0 begins its messages with their level (seen 2026-11-26); in what older ones and custom nodes print,
    and in warnings, such as "Cannot import ... module for custom nodes", the words decide.

    Examples
    --------
    >>> error_lines(["got prompt", "Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: no"])
    ['ValueError: no']
    >>> error_lines(["[INFO] No triton: ImportError", "\x1b[31m[ERROR]\x1b[0m !!! No", "[WARNING] Cannot import x"])
    ['[ERROR] !!! No', '[WARNING] Cannot import x']
    """
    return [plain for plain in (_COLOUR.sub("", each) for each in lines) if _is_error(plain)]


def _is_error(line: str) -> bool:
    level = _LEVEL.match(line)
    if level is not None and level[1] != "WARNING":
        return level[1] in {"ERROR", "CRITICAL"}
    return _ERROR.search(line) is not None and not line[:1].isspace() and not line.startswith(_FRAMES)
