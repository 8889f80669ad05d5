"""What can go wrong during a download, as values, and the queue that assigns each fault to a request.

Knows nothing of sockets: a fault says *what* happens, ``http_server.py`` makes it happen.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

ENDLESS_LIMIT = 8 * 1024**3
"""Bytes after which even an endless body ends (8 GiB), so that a client without a bound fills no real disk."""

# --- how the body is sent ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CutAfter:
    """The connection ends (FIN) early although the whole ``Content-Length`` was promised.

    Where there is no body (a HEAD, a redirect) it ends before the answer.
    """

    at: int | float  # bytes of this answer's body; a float is a fraction of it


@dataclass(frozen=True, slots=True)
class ResetAfter:
    """The connection is reset (RST) early; without a body: before the answer."""

    at: int | float  # as in CutAfter


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing comes for a while, then the rest; without a body the wait is before the answer."""

    after: int | float  # as in CutAfter
    seconds: float


@dataclass(frozen=True, slots=True)
class Drip:
    """From some point on a few bytes come now and then: no socket timeout fires, yet it never ends."""

    bytes_each: int = 1
    every_s: float = 0.5
    after: int | float = 0  # as in CutAfter


@dataclass(frozen=True, slots=True)
class WrongBytes:
    """Bytes are flipped, the length is right.

    With ``positions`` (offsets in the file) only an answer that holds one of them is hit; without, ``count``
    bytes are flipped, spread over whatever answer is hit.
    """

    positions: tuple[int, ...] = ()
    count: int = 3

    def within(self, start: int, length: int) -> tuple[int, ...]:
        """Return the file offsets to flip in an answer of `length` bytes from `start`."""
        if self.positions:
            return tuple(position for position in self.positions if start <= position < start + length)
        return (
            tuple(sorted({start + length * (i + 1) // (self.count + 1) for i in range(self.count)})) if length else ()
        )


@dataclass(frozen=True, slots=True)
class ShortLength:
    """Body and ``Content-Length`` are both short by that many bytes; ``Content-Range`` says what was asked."""

    missing: int


@dataclass(frozen=True, slots=True)
class Endless:
    """A chunked body that goes on with zeros after the true bytes, until the client hangs up."""

    limit: int = ENDLESS_LIMIT  # bytes


# --- what the answer says ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """Another status instead of the answer: ``Status(429, (("Retry-After", "3"),))``."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """A ranged request is answered with 200 and everything."""


@dataclass(frozen=True, slots=True)
class OtherContent:
    """From this request on, other bytes with another ETag lie at the same address."""

    etag: str  # without quotes
    replacement: bytes


@dataclass(frozen=True, slots=True)
class WrongLinkedSize:
    """``X-Linked-Size`` (or the length of a direct answer to HEAD) is another number."""

    size: int


@dataclass(frozen=True, slots=True)
class WrongLinkedEtag:
    """``X-Linked-Etag`` (or ``ETag``) names other bytes."""

    etag: str = "0" * 64  # without quotes


@dataclass(frozen=True, slots=True)
class OmitHeader:
    """One header is missing."""

    name: str


@dataclass(frozen=True, slots=True)
class WrongTotal:
    """The total in ``Content-Range`` is another number; of a 200 the ``Content-Length``, followed by a FIN."""

    size: int


@dataclass(frozen=True, slots=True)
class HtmlPage:
    """200 and a web page: a captive portal, a login form, an error page of a proxy."""

    page: bytes = (
        b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><form action='/login'></form></body></html>\n"
    )


@dataclass(frozen=True, slots=True)
class ExpireSignatures:
    """A signed address expires after so many requests: 403 until the file is resolved again.

    It is used up once per expired address; with ``times=None`` every address is valid for ``after_requests``.
    """

    after_requests: int


@dataclass(frozen=True, slots=True)
class RedirectElsewhere:
    """302 to an address of the test's choice."""

    url: str


@dataclass(frozen=True, slots=True)
class LoginRedirect:
    """302 to ``/login`` of the same origin, which answers with a web page."""


Fault = (
    CutAfter
    | ResetAfter
    | Stall
    | Drip
    | WrongBytes
    | ShortLength
    | Endless
    | Status
    | IgnoreRange
    | OtherContent
    | WrongLinkedSize
    | WrongLinkedEtag
    | OmitHeader
    | WrongTotal
    | HtmlPage
    | ExpireSignatures
    | RedirectElsewhere
    | LoginRedirect
)

# --- a body as a sequence of actions -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes of the body."""

    start: int  # within the body
    length: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Send nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class HangUp:
    """End the connection, with FIN or with RST."""

    is_reset: bool


Action = Send | Wait | HangUp


def point(at: int | float, length: int) -> int:
    """Return the byte that `at` means in a body of `length` bytes.

    >>> point(0.5, 1000), point(10, 1000), point(5000, 1000)
    (500, 10, 1000)
    """
    return min(length, int(at * length) if isinstance(at, float) else at)


def script(fault: Fault | None, length: int) -> Iterator[Action]:
    """Yield what happens to a body of `length` bytes under `fault`, in order."""
    if isinstance(fault, CutAfter | ResetAfter):
        yield Send(0, point(fault.at, length))
        yield HangUp(is_reset=isinstance(fault, ResetAfter))
    elif isinstance(fault, Stall):
        stop = point(fault.after, length)
        yield Send(0, stop)
        yield Wait(fault.seconds)
        yield Send(stop, length - stop)
    elif isinstance(fault, Drip):
        start = point(fault.after, length)
        yield Send(0, start)
        while start < length:
            yield Wait(fault.every_s)
            yield Send(start, min(fault.bytes_each, length - start))
            start += fault.bytes_each
    else:
        yield Send(0, length)


# --- the queue ---------------------------------------------------------------------------------

Place = Literal[
    "content",  # a GET that is answered with bytes of a file, wherever they come from
    "hub",  # a GET of /resolve/ at the hub
    "head",  # a HEAD of /resolve/ at the hub
    "api",  # anything under /api/ but the bytes of small files
]


@dataclass(frozen=True, slots=True)
class Occasion:
    """What is known of a request when a fault is chosen for it."""

    places: frozenset[Place]
    filename: str = ""  # in the repository
    start: int = 0  # first byte of the file that was asked for
    length: int = 0  # bytes that would be sent
    address_uses: int = 0  # requests the signed address has served before this one


@dataclass(slots=True)
class _Queued:
    fault: Fault
    on: Place
    times: int | None
    filename: str | None
    skip: int
    min_offset: int | None

    def suits(self, occasion: Occasion) -> bool:
        if self.on not in occasion.places:
            return False
        if self.filename is not None and not fnmatch.fnmatchcase(occasion.filename, self.filename):
            return False
        if self.min_offset is not None and occasion.start < self.min_offset:
            return False
        if isinstance(self.fault, WrongBytes):
            return bool(self.fault.within(occasion.start, occasion.length))
        if isinstance(self.fault, ExpireSignatures):
            return occasion.address_uses >= self.fault.after_requests
        return True


@dataclass(slots=True)
class FaultQueue:
    """Faults waiting for their request; the first queued that suits a request is used."""

    _queued: list[_Queued] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        fault: Fault,
        *,
        on: Place,
        times: int | None,
        filename: str | None,
        skip: int,
        min_offset: int | None,
    ) -> None:
        """Queue `fault`; see ``RehearsalHub.fault`` for the arguments."""
        with self._lock:
            self._queued.append(_Queued(fault, on, times, filename, skip, min_offset))

    def clear(self) -> None:
        """Forget every fault."""
        with self._lock:
            self._queued.clear()

    def __len__(self) -> int:
        """Return how many faults still wait."""
        with self._lock:
            return len(self._queued)

    def take(self, occasion: Occasion) -> Fault | None:
        """Return the fault for this request and count it as used, or None."""
        with self._lock:
            for queued in self._queued:
                if not queued.suits(occasion):
                    continue
                if queued.skip > 0:
                    queued.skip -= 1
                    continue
                if queued.times is not None:
                    queued.times -= 1
                    if queued.times <= 0:
                        self._queued.remove(queued)
                return queued.fault
        return None
