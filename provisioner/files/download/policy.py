"""The rules of a polite and quick transfer: how many connections, and what headers say.

Pure decisions: whoever owns the sockets hands in times and counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CONNECTIONS = 8
FIRST_CONNECTIONS = 2
GAIN_TO_KEEP = 1.05  # n+1 connections stay only if they beat n by 5 % (huggingface.js pull 2352)
GAIN_TO_DOUBLE = 1.5  # while each doubling pays this much, the next step doubles again
WINDOW_S = 0.5  # one measurement
HOLD_S = 5.0  # after that long on a plateau, one more connection is tried
MIN_RATE_BYTES_S = 64 * 1024  # below this for a whole window a connection counts as stalled


@dataclass(slots=True)
class Ramp:
    """Decides how many connections to hold: grow while it pays, step back when it does not, try again later.

    Call `observe` with the time and the bytes received so far; it returns the number wanted.  A server that hands
    out bytes in bursts makes single measurements lie, so a step is given up only after two windows without gain.
    """

    limit: int = MAX_CONNECTIONS
    wanted: int = FIRST_CONNECTIONS
    _best: tuple[int, float] | None = None  # the number that paid so far, and its rate
    _window: tuple[float, int] | None = None  # when it began, bytes received then
    _disappointments: int = 0
    _hold_until_s: float | None = None
    _may_grow: bool = True

    def __post_init__(self) -> None:
        """Never want more than the limit."""
        self.wanted = min(self.wanted, self.limit)

    def observe(self, now_s: float, received: int, active: int) -> int:
        """Return the connections wanted, given bytes received so far and connections that deliver."""
        if self._is_holding(now_s) or active < self.wanted:
            self._window = None
            return self.wanted
        if self._window is None:
            self._window = (now_s, received)
            return self.wanted
        began_s, before = self._window
        if now_s - began_s >= WINDOW_S:
            self._window = None
            self._judge((received - before) / (now_s - began_s), now_s)
        return self.wanted

    def back_off(self) -> None:
        """Halve the connections and grow no more: the server asked for less."""
        self.wanted = max(1, self.wanted // 2)
        self._may_grow = False

    def _is_holding(self, now_s: float) -> bool:
        if self._hold_until_s is not None and now_s >= self._hold_until_s:
            # The link may have become free: measure anew what the present number brings, then try one more.
            self._hold_until_s, self._best = None, None
        return self._hold_until_s is not None or not self._may_grow or self.limit == 1

    def _judge(self, rate: float, now_s: float) -> None:
        if self._best is None:
            self._best = (self.wanted, rate)
            self._grow(GAIN_TO_DOUBLE if self.wanted <= FIRST_CONNECTIONS else GAIN_TO_KEEP, now_s)
            return
        count, best = self._best
        gain = rate / max(best, 1.0)
        if gain >= GAIN_TO_KEEP:
            self._best, self._disappointments = (self.wanted, rate), 0
            self._grow(gain, now_s)
        elif self._disappointments == 0:
            self._disappointments = 1
        else:
            self.wanted, self._disappointments = count, 0
            self._hold_until_s = now_s + HOLD_S

    def _grow(self, gain: float, now_s: float) -> None:
        if self.wanted >= self.limit:
            self._hold_until_s = now_s + HOLD_S
            return
        self.wanted = min(self.limit, self.wanted * 2 if gain >= GAIN_TO_DOUBLE else self.wanted + 1)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """``Content-Range: bytes first-last/total``; ``total`` is None where the server says ``*``."""

    first: int
    last: int
    total: int | None


def parse_content_range(text: str | None) -> ContentRange | None:
    """Return the parsed header, or None if it is missing or malformed.

    >>> parse_content_range("bytes 0-15/100")
    ContentRange(first=0, last=15, total=100)
    >>> parse_content_range("bytes */100") is None, parse_content_range("bytes 0-15/10") is None
    (True, True)
    """
    match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", (text or "").strip())
    if match is None:
        return None
    first, last = int(match.group(1)), int(match.group(2))
    total = None if match.group(3) == "*" else int(match.group(3))
    if last < first or (total is not None and total <= last):
        return None
    return ContentRange(first, last, total)


def strong_etag(text: str | None) -> str | None:
    """Return the ETag if ``If-Range`` may use it; None for a weak or missing one (RFC 9110, 13.1.5).

    >>> strong_etag('"abc"'), strong_etag('W/"abc"'), strong_etag(None)
    ('"abc"', None, None)
    """
    return text if text and text.startswith('"') and text.endswith('"') and len(text) > 1 else None


def parse_rate(text: str) -> int:
    """Return bytes per second from ``10M``, ``500k``, ``2.5MB/s`` (decimal) or ``8MiB`` (binary).

    ``Mbps`` is refused: to most people it means bits.

    >>> parse_rate("10M"), parse_rate("500k"), parse_rate("1MiB/s"), parse_rate("2000000")
    (10000000, 500000, 1048576, 2000000)

    Raises
    ------
    ValueError
        The text is no rate, or it is zero.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kKmMgG]?)(i?)(?:[bB]?(?:/s)?|Bps)\s*", text)
    if match is None or (match.group(3) and not match.group(2)):
        message = f"{text!r} is not a rate; write it as 10M, 500k or 8MiB (bytes per second)"
        raise ValueError(message)
    base = 1024 if match.group(3) else 1000
    value = int(float(match.group(1)) * base ** " kmg".index(match.group(2).lower() or " "))
    if value <= 0:
        message = f"{text!r} would stop the transfer; give a rate above zero"
        raise ValueError(message)
    return value
