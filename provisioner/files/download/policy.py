"""The rules of a polite and quick transfer: how many connections, for which file, and what headers say.

Pure decisions: whoever owns the sockets hands in times and counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
class Need:
    """What one file on its way could use."""

    blocks: int  # nobody asked for them yet, or they are on their way: as many connections have something to do
    held: int = 0  # connections it has
    is_digest_bound: bool = False  # its digest is what it waits for: more connections bring it nothing


@dataclass(frozen=True, slots=True)
class Shares:
    """Who gets how many connections."""

    connections: tuple[int, ...]  # in the order of the needs
    leaves_room: bool  # whether another file could use connections that these have no use for


def share(wanted: int, limit: int, needs: Sequence[Need]) -> Shares:
    """Share connections over files, the oldest first.

    Every file gets one while there are any.  A file whose digest is behind keeps some of those it has, and they do not
    count among the `wanted`: these go to the oldest of the others, as many as it has blocks for, then to the next.  So
    on a wire that one file fills, files finish one after the other, and another begins when a file has no use for all
    of the wire.

    Parameters
    ----------
    wanted : int
        Connections that the wire pays for, as `Ramp` finds.
    limit : int
        Most of them.
    needs : sequence of Need
        The files, the oldest first.

    >>> share(4, 8, [Need(blocks=100), Need(blocks=100)])
    Shares(connections=(3, 1), leaves_room=False)
    >>> share(4, 8, [Need(blocks=2)])
    Shares(connections=(2,), leaves_room=True)
    >>> share(2, 8, [Need(blocks=100, held=8, is_digest_bound=True), Need(blocks=100)])
    Shares(connections=(2, 2), leaves_room=False)
    """
    given = [0] * len(needs)
    for number, need in enumerate(needs):
        given[number] = int(need.blocks > 0 and sum(given) < limit)
    most_kept = max(1, limit // (len(needs) + 1))
    for number, need in enumerate(needs):
        if need.is_digest_bound and given[number]:
            given[number] += max(0, min(need.held, most_kept, need.blocks, limit - sum(given) + 1) - 1)
    flowing = [number for number, need in enumerate(needs) if not need.is_digest_bound]
    for number in flowing:
        free = min(wanted - sum(given[each] for each in flowing), limit - sum(given))
        if given[number]:
            given[number] += max(0, min(needs[number].blocks - given[number], free))
    used = sum(given[number] for number in flowing)
    return Shares(connections=tuple(given), leaves_room=used < wanted and sum(given) < limit)


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
