"""Which failures may pass, and how long to wait before the next attempt: one rule for everything that is fetched.

Pure: whoever fetches hands in what happened, sleeps, and tries again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Answers of a server that may be different in a moment."""

MAX_PATIENCE_S = 300.0
"""The longest ``Retry-After`` that is obeyed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often something is tried, and how the pauses grow."""

    attempts: int = 6  # in a row, without anything that arrived
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0

    def pause_s(
        self, failures: int, *, status: int | None = None, asked_s: float | None = None, jitter: float
    ) -> float | None:
        """Return the seconds to wait after so many failures in a row; None where another attempt is of no use.

        Parameters
        ----------
        failures : int
            Attempts in a row that brought nothing.
        status : int, optional
            What the server answered; None where it did not answer or the connection broke.
        asked_s : float, optional
            What it asks to wait, as `asked_patience_s` reads it.
        jitter : float
            In [0, 1): spreads the attempts of many over the second half of the pause.

        Examples
        --------
        >>> [Retries().pause_s(failures, jitter=0.0) for failures in (1, 2, 3, 4, 5, 6)]
        [0.25, 0.5, 1.0, 2.0, 4.0, None]
        >>> [Retries().pause_s(1, status=status, asked_s=3.0, jitter=0.0) for status in (404, 429)]
        [None, 3.0]
        """
        if failures >= self.attempts or (status is not None and status not in PASSING_STATUSES):
            return None
        if asked_s is not None:
            return None if asked_s > MAX_PATIENCE_S else asked_s
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)


NOBODY_THERE = Retries(attempts=4)
"""For a server that does not answer at all: about three seconds."""

FEW_RETRIES = Retries(attempts=3, first_pause_s=4.0)
"""For what is fetched in one go and begun again from its first byte."""


def asked_patience_s(status: int, headers: Mapping[str, str], now_epoch_s: float) -> float | None:
    """Return the seconds a 429 or 503 asks for, from ``Retry-After`` or the Hub's ``RateLimit``; None: not said.

    ``headers`` has lower-case names.  The Hub writes ``RateLimit: "resolvers";r=0;t=172`` on every answer, which says
    when the window ends; only a 429 with nothing left (``r=0``) means that it is used up.

    >>> asked_patience_s(503, {"retry-after": "3"}, 0.0), asked_patience_s(200, {"retry-after": "3"}, 0.0)
    (3.0, None)
    >>> asked_patience_s(429, {"ratelimit": '"resolvers";r=0;t=172'}, 0.0)
    172.0
    >>> asked_patience_s(429, {"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 50.0)
    10.0
    """
    if status not in {429, 503}:
        return None
    text = headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]+", text):
        return float(text)
    if text:
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - now_epoch_s)
        except (ValueError, TypeError, IndexError, OverflowError, OSError):
            pass  # no date; a hostile one can be beyond the clock's reach
    limit = headers.get("ratelimit", "") if status == 429 else ""
    match = re.search(r"(?:^|;)\s*t=([0-9]+)", limit)
    is_used_up = re.search(r"(?:^|;)\s*r=0*[1-9]", limit) is None  # else the refusal has another reason
    return float(match.group(1)) if match and is_used_up else None
