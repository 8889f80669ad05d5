"""A file whose size and digest nobody knows beforehand, over one connection: ComfyUI's archive."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

from provisioner.core.errors import (
    AccessError,
    KleinError,
    NotTheFileError,
    OfflineError,
    RateLimitedError,
    ServerError,
    StalledError,
    UnreachableError,
)
from provisioner.core.ports import Cancelled
from provisioner.core.redact import redact
from provisioner.core.retries import FEW_RETRIES, PASSING_STATUSES, Retries, asked_patience_s
from provisioner.core.units import human_bytes
from provisioner.disk.calls import write_all
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import Root
from provisioner.files.download.limiter import RateLimiter
from provisioner.network.deadline import Deadline
from provisioner.network.http_session import (
    CONNECT_TIMEOUT_S,
    Credentials,
    may_pass,
    network_error,
    open_session,
)

_READ_TIMEOUT_S = 60.0
_STEP = 256 * 1024
_TOLD_EVERY_S = 1.0


class _Passing(Exception):
    """A failure that may pass, and what the server said of it."""

    def __init__(self, error: KleinError, status: int | None = None, asked_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.status, self.asked_s = error, status, asked_s


@dataclass(frozen=True, kw_only=True)
class WholeFiles:
    """Brings whole files, each in one go.

    Parameters
    ----------
    limiter : RateLimiter
        Shared with everything else that is fetched.
    retries : Retries
        How often a broken download is begun again.
    is_offline : bool
        ``--offline``: nothing is fetched.
    cancelled : callable
        True means: stop now.
    longest_s : float
        Seconds after which a download is given up, whatever arrives.
    read_timeout_s : float
        Seconds for the headers, and for each 256 KiB.
    """

    limiter: RateLimiter = field(default_factory=RateLimiter)
    retries: Retries = FEW_RETRIES
    is_offline: bool = False
    cancelled: Cancelled = lambda: False
    longest_s: float = 3 * 3600.0
    read_timeout_s: float = _READ_TIMEOUT_S

    def fetch(
        self,
        url: str,
        path: Path,
        *,
        what: str,
        hint: str,
        most_bytes: int,
        progress: Callable[[str], None],
    ) -> None:
        """Bring the file at an address to a path; what is there already is replaced.

        Parameters
        ----------
        url, path
            From where, and whereto.
        what : str
            What a sentence calls it: "ComfyUI".
        hint : str
            What to do where the server does not have it or wants to know who asks.
        most_bytes : int
            More than this is another file.
        progress : callable
            Told one line at a time.

        Raises
        ------
        NetworkError
            ``--offline`` was given, or the server was not reached, stopped answering or kept failing.
        AccessError
            It wants to know who asks.
        IntegrityError
            It has no such file, or another one.
        StorageError
            The disk refused.
        """
        if self.is_offline:
            raise OfflineError(
                f"{what} is not on this computer, and with --offline it is not fetched from {redact(url)}.",
                hint="Run once without --offline.",
                missing=[redact(url)],
            )
        one = _One(self, url, path, what, hint, most_bytes, progress)
        for failures in itertools.count(1):
            try:
                one.try_once()
                return
            except _Passing as passing:
                jitter = random.random()  # noqa: S311 - spreads retries, keeps no secret
                pause_s = self.retries.pause_s(failures, status=passing.status, asked_s=passing.asked_s, jitter=jitter)
                if pause_s is None:
                    raise passing.error from passing
                one.progress(f"{passing.error} Trying again in {pause_s:.2g} s.")
                self.wait(pause_s)
        raise AssertionError

    def wait(self, seconds: float) -> None:
        """Sleep, ready to stop."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.cancelled():
                raise KeyboardInterrupt
            time.sleep(min(0.1, left))


@dataclass(frozen=True)
class _One:
    """One file that is wanted."""

    files: WholeFiles
    url: str
    path: Path
    what: str
    hint: str
    most_bytes: int
    progress: Callable[[str], None]

    @property
    def shown(self) -> str:
        return redact(self.url)

    def try_once(self) -> None:
        """Fetch it."""
        try:
            with (
                Deadline(self.files.read_timeout_s) as deadline,
                open_session(Credentials(None, "")) as session,
                session.get(self.url, stream=True, timeout=(CONNECT_TIMEOUT_S, self.files.read_timeout_s)) as answer,
            ):
                if answer.status_code != 200:
                    raise self._refusal(answer)
                expected = answer.headers.get("Content-Length", "")
                if expected.isdigit() and int(expected) > self.most_bytes:
                    raise self._too_large()
                received = self._save(answer.iter_content(min(_STEP, self.files.limiter.read_step)), deadline)
                if expected.isdigit() and int(expected) != received:
                    raise _Passing(
                        UnreachableError(
                            f"{self.shown} broke off after {human_bytes(received)} of {human_bytes(int(expected))}."
                        )
                    )
        except requests.exceptions.Timeout as error:
            hint = "Run the same command again."
            raise _Passing(StalledError(f"{self.shown} did not answer in time.", hint=hint)) from error
        except requests.exceptions.RequestException as error:
            if not may_pass(error):
                raise network_error(error, self.url) from error
            hint = "Check the connection (and HTTPS_PROXY behind a proxy), then run the same command again."
            said = f"{self.shown} could not be reached ({type(error).__name__})."
            raise _Passing(UnreachableError(said, hint=hint)) from error

    def _refusal(self, answer: requests.Response) -> Exception:
        status = answer.status_code
        if status in PASSING_STATUSES:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            kind = RateLimitedError if status == 429 else ServerError
            error = kind(f"{self.shown} answered with an error ({status}).", hint="Try again later.", status=status)
            return _Passing(error, status, asked_patience_s(status, headers, time.time()))
        if status in (401, 403):
            return AccessError(f"{self.shown} wants to know who asks ({status}).", hint=self.hint, status=status)
        return NotTheFileError(f"{self.shown} is not there ({status}).", hint=self.hint, status=status)

    def _too_large(self) -> KleinError:
        return NotTheFileError(f"{self.shown} is larger than {human_bytes(self.most_bytes)}: it is not {self.what}.")

    def _save(self, chunks: Iterator[bytes], deadline: Deadline) -> int:
        """Write what arrives; return the number of bytes."""
        received = 0
        began = told_at = time.monotonic()
        root = Root(self.path.parent, is_arrival_kept=False)
        root.remove(self.path)  # of an attempt that broke off
        with root.create(self.path) as stream:
            deadline.restart()
            for chunk in chunks:
                deadline.pause()
                received += len(chunk)
                if received > self.most_bytes:
                    raise self._too_large()
                try:
                    write_all(stream, chunk)
                except OSError as error:
                    raise storage_error(error, self.path, is_arrival_kept=False) from error
                now = time.monotonic()
                if now - began > self.files.longest_s:
                    raise _Passing(StalledError(f"{self.shown} took longer than {self.files.longest_s:g} s."))
                if now - told_at >= _TOLD_EVERY_S:
                    told_at = now
                    self.progress(f"{human_bytes(received)} of {self.what} have arrived.")
                self.files.wait(self.files.limiter.delay_s(len(chunk), now))
                if self.files.cancelled():
                    raise KeyboardInterrupt
                deadline.restart()
        return received
