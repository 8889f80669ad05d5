"""The range engine: 16 MiB blocks in order over connections that grow while they pay.

A block's bytes are written as they arrive and digested on the way; a broken connection costs nothing but the
connection, a killed process no more than the blocks in flight.  The engine trusts the manifest's size, one strong
ETag, and nothing else; whether the bytes are the right ones is decided by whoever seals the part.
"""

from __future__ import annotations

import hashlib
import heapq
import http.client
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import requests
import urllib3

from provisioner.core.errors import (
    AccessError,
    IntegrityError,
    KleinError,
    RateLimitedError,
    ServerError,
    StalledError,
    UnauthorizedError,
    UnreachableError,
)
from provisioner.core.models import Artifact, HubFile, OciFile, Source, UrlFile
from provisioner.core.ports import Cancelled, Part, Registries, TransferProgress
from provisioner.core.retries import MAX_PATIENCE_S, NOBODY_THERE, PASSING_STATUSES, Retries, asked_patience_s
from provisioner.files.download.limiter import RateLimiter
from provisioner.files.download.policy import (
    MAX_CONNECTIONS,
    MIN_RATE_BYTES_S,
    Need,
    Ramp,
    parse_content_range,
    share,
    strong_etag,
)
from provisioner.files.download.resolve import (
    Location,
    Passing,
    access_error,
    blob_id,
    hub_url,
    label_of,
    resolve,
    wrong_size,
)
from provisioner.network.deadline import Deadline
from provisioner.network.http_session import (
    CONNECT_TIMEOUT_S,
    OF_A_REGISTRY,
    Credentials,
    causes_of,
    may_pass,
    network_error,
    next_hop,
    open_session,
    origin,
    reason_of,
    shown,
)

_RETRIES = Retries()  # failures in a row that brought next to nothing
_LEAST_PROGRESS = 16 * 1024  # bytes between two failures; a server that sends one byte a request would keep us for ever
_TICK_S = 0.1
_RATE_MEMORY_S = 3.0
_JOIN_S = 2.0
_DIGEST_PAUSE_S = 0.005
_DIGEST_MEMORY_S = 0.5  # so long after its digest was behind, a file counts as bound by it
_MAX_RENEWALS = 3  # new signed addresses in a row that brought no byte
_MAX_RESTARTS = 3  # times the content may change under us
_MAX_SLOW_WINDOWS = 6
_HOPELESS_RATE_BYTES_S = 1024
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


_Answer = TypeVar("_Answer")


class RangeFetcher:
    """What the engine knows as ``Fetcher``, over HTTP.

    Parameters
    ----------
    credentials : Credentials
        The endpoint, and the token that only it may see.
    registries : Registries, optional
        Who knows where a file of an OCI registry is; not needed where none is asked for, as for wheels.
    connections : Connections, optional
        What it shares with other fetchers of the run.
    limiter : RateLimiter, optional
        Bandwidth for everything together.
    stall_timeout_s : float
        A connection that delivers less than 64 KiB/s for so long is opened anew.
    cancelled : callable
        Asked ten times a second; true stops with KeyboardInterrupt.
    notice : callable
        Told one line a person may want to read.
    """

    def __init__(
        self,
        *,
        credentials: Credentials,
        registries: Registries | None = None,
        connections: Connections | None = None,
        limiter: RateLimiter | None = None,
        stall_timeout_s: float = 20.0,
        cancelled: Cancelled = lambda: False,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.credentials = credentials
        self.registries = registries
        self.limiter = limiter or RateLimiter()
        self.stall_timeout_s = stall_timeout_s
        self.cancelled = cancelled
        self.notice = notice
        self.sharing = connections or Connections()

    def fetch(
        self, source: Source, artifact: Artifact, part: Part, *, progress: Callable[[TransferProgress], None]
    ) -> str:
        """Fill the part from the source; return a label of where the bytes came from.

        May be called from several threads at once: the files share the connections, the oldest first.

        Raises
        ------
        NetworkError
            No byte came in spite of every retry; the part keeps what it has.
        AccessError, IntegrityError
            The source denies access, or has another file than the manifest names.
        StorageError
            The disk refused.
        KeyboardInterrupt
            The run was cancelled.
        """
        transfer = _Transfer(self, source, artifact, part, progress)
        self.sharing.join(transfer)
        try:
            transfer.run()
        finally:
            self.sharing.leave(transfer)
        return label_of(source, self.credentials.endpoint)

    def blob_id(self, source: HubFile) -> str:
        """Return the Hub's own id of a file's content; raises what the port says."""
        return self.with_or_without_token(lambda credentials: self._blob_id(source, credentials))

    def with_or_without_token(self, ask: Callable[[Credentials], _Answer], *, is_gated: bool = False) -> _Answer:
        """Return what the Hub answers; once more without the token where it is refused.

        One that has expired is refused even for public files.
        """
        credentials = self.credentials
        try:
            return ask(credentials)
        except UnauthorizedError:
            if not credentials.token or is_gated:
                raise
            without = Credentials(None, credentials.endpoint)
            answer = ask(without)
            if self.credentials is credentials:  # else another file found out
                self.credentials = without
                self.notice("The Hub did not accept the token that is set; going on without it.")
            return answer

    def _blob_id(self, source: HubFile, credentials: Credentials) -> str:
        address = hub_url(credentials.endpoint, source)
        for failures in itertools.count(1):
            if self.cancelled():
                raise KeyboardInterrupt
            try:
                with open_session(credentials) as session:
                    found = blob_id(session, source, endpoint=credentials.endpoint, read_timeout_s=self.read_timeout_s)
            except _BROKEN as error:
                pause_s = NOBODY_THERE.pause_s(failures, jitter=_jitter())
                if pause_s is None or not may_pass(error):
                    raise network_error(error, credentials.endpoint) from error
            else:
                if isinstance(found, str):
                    return found
                asked_s = asked_patience_s(found.status, found.headers, time.time())
                pause_s = _RETRIES.pause_s(failures, status=found.status, asked_s=asked_s, jitter=_jitter())
                if pause_s is None:
                    raise ServerError(
                        f"{shown(address)} answers {found.status}.", hint="Try again later.", status=found.status
                    )
            until = time.monotonic() + pause_s
            while (left := until - time.monotonic()) > 0 and not self.cancelled():
                time.sleep(min(_TICK_S, left))
        raise AssertionError

    @property
    def read_timeout_s(self) -> float:
        """Seconds without any byte after which a request counts as failed."""
        return min(10.0, self.stall_timeout_s)


class Connections:
    """The connections of a run, shared over the files on their way; safe to use from several threads.

    Parameters
    ----------
    limit : int
        Most of them at a time, for everything together.
    """

    def __init__(self, limit: int = MAX_CONNECTIONS) -> None:
        self.limit = limit
        self._ramp = Ramp(limit=limit)
        self._transfers: list[_Transfer] = []  # the oldest first
        self._measured: list[_Transfer] = []  # those that the ramp's open window is about
        self._lock = threading.RLock()  # taken itself, in C, as the lock of a transfer is

    def join(self, transfer: _Transfer) -> None:
        """Take a file in; the first of several begins with as many connections as paid for the last one."""
        with self._lock:
            if not self._transfers:
                self._ramp = Ramp(limit=self.limit, wanted=self._ramp.wanted)
            self._transfers.append(transfer)

    def leave(self, transfer: _Transfer) -> None:
        """Let a file go."""
        with self._lock:
            self._transfers.remove(transfer)
            self._measured = []

    def share_of(self, transfer: _Transfer, now: float) -> tuple[int, bool]:
        """Return how many connections a file may hold now, and whether another file could use some."""
        with self._lock:
            needs = [each.need(now) for each in self._transfers]
            flowing = [each for each, need in zip(self._transfers, needs, strict=True) if not need.is_digest_bound]
            if flowing:
                if flowing != self._measured:
                    self._measured = flowing
                    self._ramp.observe(now, 0, active=0)  # what was measured so far is of other files
                active = sum(len(each.receiving) for each in flowing)
                self._ramp.observe(now, sum(each.received for each in flowing), active)
            shares = share(self._ramp.wanted, self.limit, needs)
            return shares.connections[self._transfers.index(transfer)], shares.leaves_room

    def open_one(self, begin: Callable[[], None]) -> bool:
        """Begin a connection unless all are open; one too many closes when its block is there."""
        with self._lock:
            if sum(sum(worker.is_alive() for worker in each.workers) for each in self._transfers) >= self.limit:
                return False
            begin()
            return True

    def back_off(self) -> None:
        """Hold fewer connections for everything: a server asked for less."""
        with self._lock:
            self._ramp.back_off()


class _Broken(Exception):
    """A connection that ended before its time; the rest is asked for again."""


class _StopWorking(Exception):
    """The transfer is over or starts anew; this worker's connection is of no use any more."""


class _Transfer:
    """One file on its way from one source."""

    def __init__(
        self,
        fetcher: RangeFetcher,
        source: Source,
        artifact: Artifact,
        part: Part,
        progress: Callable[[TransferProgress], None],
    ) -> None:
        self.fetcher = fetcher
        self.source = source
        self.artifact = artifact
        self.part = part
        self.progress = progress
        self.owner = threading.get_ident()  # of the thread that runs it
        # That thread, which may be the main one, takes the lock itself and not the condition: a signal that arrives
        # inside the condition's own `__enter__` or `__exit__`, which are Python, leaves the lock taken for ever.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.renewing = threading.Lock()
        self.location = Location("", is_signed=False)
        self.etag: str | None = None
        self.etag_hop = ""
        self.pending: list[int] = []
        self.workers: list[threading.Thread] = []
        self.receiving: set[int] = set()
        self.received = 0
        self.busy = 0  # blocks on their way
        self.share = 0  # connections it may hold
        self.leaves_room = False
        self.digest_was_behind_s = float("-inf")
        self.round = 0  # counts the starts from the first byte
        self.is_round_over = False
        self.fatal: BaseException | None = None
        self.restart: str | None = None  # why everything starts anew
        self.restarts = 0
        self.is_stream = False  # the server ignores ranges: one connection from the start
        self.renewals = 0
        self.received_at_renewal = -1
        self.slow_windows = 0
        self.resume_at_s = 0.0  # nobody asks before this moment
        self.attempt = 1
        self.note = ""
        self._rates: deque[tuple[float, int]] = deque()
        self._used_ids = 0
        self._own = threading.local()  # a worker's own round

    @property
    def instead(self) -> str:
        """What a hint names where the server is of no use."""
        return "another --registry" if isinstance(self.source, OciFile) else self.fetcher.credentials.instead

    @property
    def credentials(self) -> Credentials:
        """What its connections may send by themselves: to a registry nothing."""
        if isinstance(self.source, OciFile):
            return Credentials(None, self.source.repository.base)
        return self.fetcher.credentials

    @property
    def halted(self) -> bool:
        """Whether the worker that asks has to stop: one that hung in a read may wake in a later round than its own."""
        return self.is_round_over or getattr(self._own, "round", self.round) != self.round

    def need(self, now: float) -> Need:
        """Return what it could use."""
        held, is_bound = len(self.workers), now - self.digest_was_behind_s < _DIGEST_MEMORY_S
        blocks = 1 if self.is_stream else len(self.pending) + self.busy
        return Need(blocks=blocks, held=held, is_digest_bound=is_bound)

    # --- the thread that runs it -----------------------------------------------------------------

    def run(self) -> None:
        """Bring every missing block; raises what `RangeFetcher.fetch` says."""
        try:
            self.location = self._resolve()
            while missing := self.part.missing_blocks():
                self.pending = list(missing)
                self.round += 1
                self.restart, self.is_round_over = None, False
                self._work_until_done_or_restart(missing)
                self._stop_workers()
                if self.fatal is not None:
                    raise self.fatal
                if self.restart is not None:
                    self._begin_anew()
        finally:
            self._stop_workers()

    def _work_until_done_or_restart(self, missing: list[int]) -> None:
        while self.fatal is None and self.restart is None and not all(map(self.part.has_block, missing)):
            self._check_cancelled()
            now = time.monotonic()
            self.workers = [worker for worker in self.workers if worker.is_alive()]
            self.share, self.leaves_room = self.fetcher.sharing.share_of(self, now)
            while len(self.workers) < self.share and self.pending:
                if not self.fetcher.sharing.open_one(self._start_worker) or len(self.workers) >= len(self.pending):
                    break
            self._report(now)
            with self.lock:
                if self.fatal is None and self.restart is None:
                    self.changed.wait(_TICK_S)

    def _start_worker(self) -> None:
        self._used_ids += 1
        work = self._stream if self.is_stream else self._blocks
        worker = threading.Thread(
            target=self._guard, args=(work, self._used_ids, self.round), name=f"fetch {self._used_ids}", daemon=True
        )
        self.workers.append(worker)
        worker.start()

    def _stop_workers(self) -> None:
        self.is_round_over = True
        with self.lock:
            self.changed.notify_all()
        limit = time.monotonic() + _JOIN_S
        for worker in self.workers:
            # One that hangs in a read is left behind: it writes nothing any more and dies with the process.
            worker.join(max(0.0, limit - time.monotonic()))
        self.workers = []
        self.receiving.clear()

    def _begin_anew(self) -> None:
        self.restarts += 1
        if self.restarts > _MAX_RESTARTS:
            raise IntegrityError(
                f"What {shown(self.location.url)} serves as {self.artifact.name} keeps changing while it is fetched.",
                hint=f"Try again later, or use {self.instead}.",
            )
        self.fetcher.notice(f"{self.artifact.name}: {self.restart}; starting again from the first byte.")
        # Two answers may have been read in another order than they were sent: the next one decides.
        self.etag = None
        self.part.reset()

    def _check_cancelled(self) -> None:
        if self.fetcher.cancelled():
            raise KeyboardInterrupt

    def _report(self, now: float) -> None:
        self._rates.append((now, self.received))
        while now - self._rates[0][0] > _RATE_MEMORY_S:
            self._rates.popleft()
        elapsed = now - self._rates[0][0]
        rate = (self.received - self._rates[0][1]) / elapsed if elapsed > 0 else 0.0
        self.progress(
            TransferProgress(
                received=self.received,
                rate_bytes_s=rate,
                connections=len(self.workers),
                attempt=self.attempt,
                note=self.note,
                leaves_room=self.leaves_room,
            )
        )

    # --- asking the Hub --------------------------------------------------------------------------

    def _resolve(self) -> Location:
        """Return where the bytes are, with retries; raises KleinError."""
        source = self.source
        if isinstance(source, OciFile):
            if self.fetcher.registries is None:
                raise AssertionError
            found = self.fetcher.registries.locate(source, self.artifact)
            return Location(found.url, is_signed=found.is_elsewhere, authorization=found.authorization)
        return self.fetcher.with_or_without_token(
            lambda credentials: self._resolve_with(source, credentials), is_gated=self.artifact.is_gated
        )

    def _resolve_with(self, source: HubFile | UrlFile, credentials: Credentials) -> Location:
        for failures in itertools.count(1):
            try:
                with open_session(credentials) as session:
                    answer = resolve(
                        session,
                        source,
                        self.artifact,
                        endpoint=credentials.endpoint,
                        read_timeout_s=self.fetcher.read_timeout_s,
                    )
            except _BROKEN as error:
                pause_s = NOBODY_THERE.pause_s(failures, jitter=_jitter())
                if pause_s is None or not may_pass(error):
                    raise network_error(error, credentials.endpoint) from error
                self._wait(pause_s, "the Hub does not answer")
                continue
            if isinstance(answer, Location):
                return answer
            pause_s = self._pause_s(answer, failures)
            if pause_s is None:
                raise self._server_error(answer, credentials.endpoint)
            self._wait(pause_s, _asks_for_patience(answer))
        raise AssertionError

    def _renew(self, refused: Location, status: int) -> None:
        """Get a new signed address, once for all connections; raises AccessError after too many in a row."""
        with self.renewing:
            if self.location is not refused:
                return
            self.renewals = self.renewals + 1 if self.received == self.received_at_renewal else 1
            self.received_at_renewal = self.received
            if self.renewals > _MAX_RENEWALS:
                is_oci = isinstance(self.source, OciFile)
                what = "what the registry has just given" if is_oci else "addresses the Hub has just signed"
                raise AccessError(
                    f"{shown(refused.url)} keeps refusing {what} ({status}).",
                    hint="Check this machine's clock; a proxy that rewrites addresses does this too.",
                    status=status,
                )
            self.location = self._resolve()

    def _server_error(self, answer: Passing, url: str) -> KleinError:
        if answer.status == 429:
            return RateLimitedError(
                f"{shown(url)} answers 429, too many requests, and keeps doing so.",
                hint="Wait some minutes; with an account, set HF_TOKEN for a larger allowance. What has arrived is "
                "kept.",
                status=429,
            )
        return ServerError(
            f"{shown(url)} answers {answer.status} for {self.artifact.name}.",
            hint="The server has a problem: try again later; what has arrived is kept.",
            status=answer.status,
        )

    def _pause_s(self, answer: Passing, failures: int) -> float | None:
        """Return how long to wait after an answer, None where that is of no use; raises RateLimitedError."""
        asked_s = asked_patience_s(answer.status, answer.headers, time.time())
        if asked_s is not None and asked_s > MAX_PATIENCE_S:
            raise RateLimitedError(
                f"{shown(self.location.url or self.fetcher.credentials.endpoint)} asks to wait {asked_s:.0f} s.",
                hint="Run the same command again after that time; what has arrived is kept.",
                status=answer.status,
                retry_after_s=asked_s,
            )
        if answer.status == 429:
            self.fetcher.sharing.back_off()
        return _RETRIES.pause_s(failures, status=answer.status, asked_s=asked_s, jitter=_jitter())

    def _wait(self, seconds: float, why: str) -> None:
        """Sleep while staying ready to stop; everybody's next request waits too."""
        until = time.monotonic() + seconds
        self.resume_at_s = max(self.resume_at_s, until)
        self.note = f"{why}; next try in {seconds:.0f} s" if seconds >= 1 else why
        is_main = threading.get_ident() == self.owner
        while (left := until - time.monotonic()) > 0:
            if self.halted and not is_main:
                raise _StopWorking
            self._check_cancelled()
            if is_main:
                self._report(time.monotonic())
            time.sleep(min(_TICK_S, left))
        self.note = ""

    # --- a worker --------------------------------------------------------------------------------

    def _guard(self, work: Callable[[requests.Session, int], None], worker_id: int, in_round: int) -> None:
        """Run a worker's loop; whatever ends it reaches the main thread."""
        self._own.round = in_round
        try:
            with open_session(self.credentials) as session:
                work(session, worker_id)
        except _StopWorking:
            pass
        except BaseException as error:
            self.fatal = self.fatal or error
        finally:
            self.receiving.discard(worker_id)
            with self.changed:
                self.changed.notify_all()

    def _blocks(self, session: requests.Session, worker_id: int) -> None:
        """Take block after block, in order, until none is left or fewer connections are wanted."""
        while not self.halted:
            if self.part.is_digest_behind:
                self.digest_was_behind_s = time.monotonic()
                time.sleep(_DIGEST_PAUSE_S)  # more bytes would only take the processor from the digest
                continue
            with self.changed:
                if not self.pending or len(self.receiving - {worker_id}) >= self.share:
                    return
                index = heapq.heappop(self.pending)
                self.busy += 1
            try:
                self._one_block(session, worker_id, index)  # whatever it raises ends the round
            finally:
                with self.changed:
                    self.busy -= 1

    def _one_block(self, session: requests.Session, worker_id: int, index: int) -> None:
        first = index * self.part.block_size
        end = min(first + self.part.block_size, self.part.size)
        piece = _Piece(first, end)
        self._until_done(lambda: self._ask_range(session, worker_id, piece), lambda: piece.offset >= end)
        self.part.finish_block(index, piece.digest.hexdigest())
        with self.changed:
            self.changed.notify_all()

    def _stream(self, session: requests.Session, worker_id: int) -> None:
        """Read the whole file over one connection, skipping the blocks that are there."""
        self._until_done(lambda: self._ask_everything(session, worker_id), lambda: not self.part.missing_blocks())

    def _until_done(self, ask: Callable[[], None], is_done: Callable[[], bool]) -> None:
        """Ask until it is done; give up after too many failures in a row that brought next to nothing."""
        failures, seen = 0, self.received
        while not is_done():
            if self.halted:
                raise _StopWorking
            while (left := self.resume_at_s - time.monotonic()) > 0:
                self._wait(left, self.note or "waiting")
            try:
                with self._in_time():
                    ask()
                continue
            except _Broken as error:
                reason: BaseException = error.__cause__ or error
                answer = None
            except _Again as error:
                reason, answer = error, error.answer
            if self.halted:
                raise _StopWorking
            if self.received - seen >= _LEAST_PROGRESS:
                failures, seen = 0, self.received
            failures += 1
            self.attempt = failures + 1
            if answer is None:
                pause_s, why = _RETRIES.pause_s(failures, jitter=_jitter()), "the connection broke"
            else:
                pause_s, why = self._pause_s(answer, failures), _asks_for_patience(answer)
            if pause_s is None or (isinstance(reason, Exception) and not may_pass(reason)):
                raise self._given_up(reason, answer) from reason
            self._wait(pause_s, why)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Ask with a clock: a byte now and then is no answer, whether in a header or in the length of a chunk."""
        try:
            with Deadline(self.fetcher.read_timeout_s) as self._own.deadline:
                yield
        except (_Broken, *_BROKEN) as error:
            if not self._own.deadline.is_over:
                raise
            raise _Broken from TimeoutError(str(error))

    def _given_up(self, reason: BaseException, answer: Passing | None) -> KleinError:
        if answer is not None:
            return self._server_error(answer, self.location.url)
        if not isinstance(reason, Exception) or not _is_no_answer(reason):
            return UnreachableError(
                f"{shown(self.location.url)} breaks off again and again: "
                f"{reason if isinstance(reason, _Broken) else reason_of(reason)}.",
                hint="Check the connection and run the same command again; what has arrived is kept.",
            )
        if isinstance(self.source, OciFile):
            return network_error(reason, self.location.url, setting=OF_A_REGISTRY)
        return network_error(reason, self.location.url)

    # --- one request -----------------------------------------------------------------------------

    def _ask_range(self, session: requests.Session, worker_id: int, piece: _Piece) -> None:
        """Ask for the rest of a block and write what comes; returning with less than the rest is no failure."""
        location = self.location
        headers = {"Range": f"bytes={piece.offset}-{piece.end - 1}"}
        if self.etag is not None and self.etag_hop == location.hop:
            headers["If-Range"] = self.etag
        response = self._get(session, location, headers)
        try:
            self._check_range_answer(response, location, piece)
            self._read_body(response, worker_id, lambda data: self._write_piece(piece, data), piece.rest)
        finally:
            if piece.rest:
                response.close()  # the connection carries bytes nobody reads
            # otherwise the body was read to its end and urllib3 has taken the connection back

    def _check_range_answer(self, response: requests.Response, location: Location, piece: _Piece) -> None:
        if response.status_code == 206:
            span = parse_content_range(response.headers.get("Content-Range"))
            if span is not None and span.total not in {None, self.part.size}:
                raise wrong_size(location.hop, self.artifact, span.total, instead=self.instead)
            if span is None or span.first != piece.offset:
                message = "another range was sent than asked for"
                raise _Broken(message)
            self._compare_etag(response, location)
            return
        # 200: everything, although a range was asked for.
        self._check_whole_answer(response, location)
        self._compare_etag(response, location)
        if (piece.first, piece.end, piece.offset) != (0, self.part.size, 0):
            self.is_stream = True  # of this file alone: those of other servers keep their connections
            self._start_anew("the server does not send ranges")

    def _ask_everything(self, session: requests.Session, worker_id: int) -> None:
        location = self.location
        response = self._get(session, location, {})
        try:
            self._check_whole_answer(response, location)
            self._compare_etag(response, location)
            reader = _StreamWriter(self.part)
            self._read_body(response, worker_id, reader.take, lambda: self.part.size - reader.offset)
            self._own.deadline.restart()
            if "Content-Length" not in response.headers and response.raw.read1(1):
                raise wrong_size(location.hop, self.artifact, None, instead=self.instead)
        except _BROKEN as error:
            raise _Broken from error
        finally:
            response.close()

    def _get(self, session: requests.Session, location: Location, headers: dict[str, str]) -> requests.Response:
        """Return an answer of 200 or 206, redirects followed; raises everything else."""
        url = location.url
        for _ in range(5):
            is_ours = location.authorization is not None and origin(url) == origin(location.url)
            proof = {"Authorization": location.authorization} if is_ours else {}
            try:
                response = session.get(
                    url,
                    headers={**headers, **proof},
                    stream=True,
                    allow_redirects=False,
                    timeout=(CONNECT_TIMEOUT_S, self.fetcher.read_timeout_s),
                )
            except _BROKEN as error:
                raise _Broken from error
            if self.halted:
                response.close()
                raise _StopWorking
            if response.status_code in {200, 206}:
                return response
            answered = {name.lower(): value for name, value in response.headers.items()}
            response.close()
            if response.status_code in {301, 302, 303, 307, 308}:
                stays_public = isinstance(self.source, UrlFile) or (
                    isinstance(self.source, OciFile) and not self.source.repository.is_named_by_user
                )
                url = next_hop(url, answered.get("location"), stays_public=stays_public, instead=self.instead)
                continue
            self._refuse(response.status_code, answered, location)
        raise ServerError(f"{shown(location.url)} redirects in circles.", hint=f"Use {self.instead}.")

    def _refuse(self, status: int, headers: dict[str, str], location: Location) -> None:
        """Raise what a status other than 200 and 206 means."""
        if status == 416:
            raise wrong_size(location.hop, self.artifact, _total_of_416(headers), instead=self.instead)
        if status in PASSING_STATUSES:
            raise _Again(Passing(status, headers))
        is_expired = status == 401 and isinstance(self.source, OciFile)  # a token, in the middle of a file
        if is_expired or (location.is_signed and status in {400, 401, 403, 404, 410}):
            self._renew(location, status)
            raise _Again(None)
        refusal = access_error(status, headers, self.source, is_gated=self.artifact.is_gated)
        raise refusal or self._server_error(Passing(status, headers), location.url)

    def _check_whole_answer(self, response: requests.Response, location: Location) -> None:
        length = response.headers.get("Content-Length")
        is_page = "text/html" in response.headers.get("Content-Type", "")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ServerError(
                f"{location.hop} compresses what must come as it is.", hint=f"Use {self.instead}, or another network."
            )
        if length is not None and length != str(self.part.size):
            raise wrong_size(
                location.hop,
                self.artifact,
                int(length) if length.isdigit() else None,
                is_page=is_page,
                instead=self.instead,
            )
        if is_page and length is None:
            raise wrong_size(location.hop, self.artifact, None, is_page=True, instead=self.instead)

    def _compare_etag(self, response: requests.Response, location: Location) -> None:
        """All parts come from one content: another ETag at the same address means that it changed."""
        etag = strong_etag(response.headers.get("ETag"))
        with self.changed:
            if self.halted:
                raise _StopWorking
            is_known = self.etag is not None and self.etag_hop == location.hop
            changed = is_known and etag is not None and etag != self.etag
            if etag is not None:
                self.etag, self.etag_hop = etag, location.hop
        if changed:
            self._start_anew("the content on the server changed")

    def _start_anew(self, why: str) -> None:
        self.restart = self.restart or why
        self.is_round_over = True
        raise _StopWorking

    # --- one body --------------------------------------------------------------------------------

    def _write_piece(self, piece: _Piece, data: bytes) -> None:
        self.part.write(piece.offset, data)
        piece.digest.update(data)
        piece.offset += len(data)

    def _read_body(
        self,
        response: requests.Response,
        worker_id: int,
        take: Callable[[bytes], None],
        rest: int | Callable[[], int],
    ) -> None:
        """Read until nothing is left, as it arrives: ``read1`` returns what is there and loses nothing on a break."""
        limiter = self.fetcher.limiter
        window = _Window(time.monotonic())
        left = rest if callable(rest) else None
        fixed = rest if isinstance(rest, int) else 0
        while (count := left() if left else fixed) > 0:
            self._own.deadline.restart()
            try:
                data = response.raw.read1(min(limiter.read_step, count))
            except _BROKEN as error:
                raise _Broken from error
            self._own.deadline.pause()
            if self.halted:
                raise _StopWorking
            if not data:
                message = "it ended before its time"
                raise _Broken(message)
            take(data)
            fixed -= len(data)
            self.received += len(data)  # a lost update between threads costs a progress figure, nothing else
            self.receiving.add(worker_id)
            self._hold_back(limiter.delay_s(len(data), time.monotonic()))
            self._check_pace(window, len(data))

    def _hold_back(self, seconds: float) -> None:
        """Sleep as long as ``--limit-rate`` asks, ready to stop."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.halted:
                raise _StopWorking
            time.sleep(min(_TICK_S, left))

    @property
    def _least_rate_bytes_s(self) -> float:
        """Below this a connection drips; a limit of ours that is shared by many explains less than its share."""
        limit = self.fetcher.limiter.bytes_s
        share = MIN_RATE_BYTES_S if limit is None else limit / (4 * self.fetcher.sharing.limit)
        return min(MIN_RATE_BYTES_S, share)

    def _check_pace(self, window: _Window, count: int) -> None:
        """Raise if a connection drips: little, but enough for no time-out to see it."""
        window.count += count
        elapsed = time.monotonic() - window.start_s
        if elapsed < self.fetcher.stall_timeout_s:
            return
        rate = window.count / elapsed
        window.start_s, window.count = time.monotonic(), 0
        if rate >= self._least_rate_bytes_s:
            self.slow_windows = 0
            return
        self.slow_windows += 1
        if rate < _HOPELESS_RATE_BYTES_S and self.slow_windows >= _MAX_SLOW_WINDOWS:
            raise StalledError(
                f"{shown(self.location.url)} delivers next to nothing ({rate:.0f} bytes per second).",
                hint="Run the same command again later; what has arrived is kept.",
            )
        message = "it only dripped"
        raise _Broken(message)


class _Again(Exception):
    """An answer worth asking again for; ``answer`` is None where a new address was got meanwhile."""

    def __init__(self, answer: Passing | None) -> None:
        super().__init__(f"status {answer.status}" if answer else "a new address was signed")
        self.answer = answer


class _Window:
    """One measurement of a connection's pace."""

    __slots__ = ("count", "start_s")

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.count = 0


class _Piece:
    """A block on its way: where it begins and ends, how far it is, its digest so far."""

    __slots__ = ("digest", "end", "first", "offset")

    def __init__(self, first: int, end: int) -> None:
        self.first = first
        self.end = end
        self.offset = first
        self.digest = hashlib.sha256()

    @property
    def rest(self) -> int:
        """Bytes still missing."""
        return self.end - self.offset


class _StreamWriter:
    """Writes a body that starts at byte 0 into the blocks that are missing."""

    def __init__(self, part: Part) -> None:
        self.offset = 0
        self._part = part
        self._digest = hashlib.sha256()

    def take(self, data: bytes) -> None:
        """Take the next bytes of the file."""
        view = memoryview(data)
        while view:
            index, start = divmod(self.offset, self._part.block_size)
            room = min(self._part.block_size - start, self._part.size - self.offset)
            piece = bytes(view[:room])
            if start == 0:
                self._digest = hashlib.sha256()
            if not self._part.has_block(index):
                self._part.write(self.offset, piece)
                self._digest.update(piece)
                if len(piece) == room:
                    self._part.finish_block(index, self._digest.hexdigest())
            self.offset += len(piece)
            view = view[len(piece) :]


def _jitter() -> float:
    return random.random()  # noqa: S311 - spreads retries, keeps no secret


def _asks_for_patience(answer: Passing) -> str:
    return f"the server asked to wait ({answer.status})"


def _is_no_answer(error: Exception) -> bool:
    """Whether nobody was there, or too late; else an answer had begun, or the other side hung up."""
    nobody = (requests.exceptions.ProxyError, requests.exceptions.SSLError, urllib3.exceptions.NewConnectionError)
    late = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    return any(isinstance(each, (*nobody, *late)) for each in causes_of(error))


def _total_of_416(headers: dict[str, str]) -> int | None:
    total = headers.get("content-range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None
