"""The beginning of a file, or all of a small one, into memory: a workflow, an index, the header of a model."""

from __future__ import annotations

import contextlib
import itertools
import random
import ssl
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import requests
import urllib3

from provisioner.core.errors import (
    CertificateError,
    NetworkError,
    NotTheFileError,
    ProxyLoginError,
    ProxyRefusedError,
    RateLimitedError,
    ServerError,
)
from provisioner.core.models import Source, UrlFile
from provisioner.core.ports import Cancelled
from provisioner.core.retries import NOBODY_THERE, Retries, asked_patience_s
from provisioner.core.units import human_bytes
from provisioner.files.download.policy import parse_content_range
from provisioner.files.download.resolve import access_error
from provisioner.network.deadline import Deadline
from provisioner.network.http_session import (
    CONNECT_TIMEOUT_S,
    Credentials,
    causes_of,
    network_error,
    next_hop,
    open_session,
    shown,
)

_Answer = TypeVar("_Answer")

_RETRIES = Retries()
_FINAL = (CertificateError, ProxyLoginError, ProxyRefusedError, ServerError)  # asking again locks accounts, or is vain
_TICK_S = 0.1  # between two looks whether the run was cancelled
_MAX_HOPS = 6
_STEP = 256 * 1024
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


def fetch_bytes(
    url: str,
    *,
    most: int,
    credentials: Credentials | None = None,
    is_beginning: bool = False,
    accept: str | None = None,
    source: Source | None = None,
    timeout_s: float = 30.0,
) -> bytes:
    """Return what an address answers with.

    Parameters
    ----------
    url : str
        The address.
    most : int
        Bytes: how long the file may be; where `is_beginning`, how much of it is wanted.
    credentials : Credentials, optional
        Shown to their own origin alone.
    is_beginning : bool
        Only that much is asked for; a server that sends everything is stopped there.
    accept : str, optional
        The form that is preferred, "application/json".
    source : Source, optional
        What an error calls it, otherwise its address.
    timeout_s : float
        Seconds without a byte, and for every 256 KiB.

    Raises
    ------
    AccessError
        The server denies access, or has no such file.
    IntegrityError
        The file is longer than `most`.
    NetworkError
        No answer, or an error.
    """
    headers = {"Range": f"bytes=0-{most - 1}"} if is_beginning else {}
    headers |= {"Accept": accept} if accept else {}
    found = bytearray()
    with _answer(url, headers, credentials or Credentials(None, url), source, timeout_s) as (answer, deadline):
        for piece in answer.iter_content(_STEP):
            deadline.restart()
            found += piece
            if len(found) > most and not is_beginning:
                raise NotTheFileError(f"{shown(url)} is longer than {human_bytes(most)}.", hint="Name another address.")
            if len(found) >= most and is_beginning:
                break
    return bytes(found[:most])


def patiently(ask: Callable[[], _Answer], *, cancelled: Cancelled) -> _Answer:
    """Return what `ask` returns, asking again after failures that may pass, by the rules of every download.

    Parameters
    ----------
    ask : callable
        Raises NetworkError; one with ``status`` in its context was refused, and ``patience_s`` says for how long.
    cancelled : callable
        Asked before each attempt and while it waits; true stops with KeyboardInterrupt.
    """
    for failures in itertools.count(1):
        if cancelled():
            raise KeyboardInterrupt
        try:
            return ask()
        except NetworkError as error:
            pause_s = _pause_s(error, failures)
            if pause_s is None:
                raise
        until_s = time.monotonic() + pause_s
        while (left_s := until_s - time.monotonic()) > 0 and not cancelled():
            time.sleep(min(_TICK_S, left_s))
    raise AssertionError  # counting does not end


def _pause_s(error: NetworkError, failures: int) -> float | None:
    """Return the seconds until another attempt; None where it is of no use."""
    status, patience_s = error.context.get("status"), error.context.get("patience_s")
    jitter = random.random()  # noqa: S311 - spreads retries, keeps no secret
    if isinstance(status, int):
        asked_s = patience_s if isinstance(patience_s, float) else None
        return _RETRIES.pause_s(failures, status=status, asked_s=asked_s, jitter=jitter)
    behind = causes_of(error)  # of the Hub's own client, whose errors have no class of ours
    is_final = isinstance(error, _FINAL) or any(isinstance(each, ssl.SSLCertVerificationError) for each in behind)
    is_final = is_final or any(type(each).__name__ == "ProxyError" for each in behind)
    return None if is_final else NOBODY_THERE.pause_s(failures, jitter=jitter)


def fetch_size(url: str, *, timeout_s: float = 30.0) -> int | None:
    """Return how many bytes a file has; None where its server does not say; raises as `fetch_bytes`."""
    with _answer(url, {"Range": "bytes=0-0"}, Credentials(None, url), None, timeout_s) as (answer, _):
        found = parse_content_range(answer.headers.get("Content-Range"))
        stated = answer.headers.get("Content-Length", "")
        return found.total if found else int(stated) if stated.isdigit() else None


@contextlib.contextmanager
def _answer(
    asked: str, headers: dict[str, str], credentials: Credentials, source: Source | None, timeout_s: float
) -> Iterator[tuple[requests.Response, Deadline]]:
    """Give the answer behind every redirect, with the clock that runs while its body is read."""
    url = asked
    try:
        with open_session(credentials) as session:
            for _ in range(_MAX_HOPS):
                with (
                    Deadline(timeout_s) as deadline,
                    session.get(
                        url, headers=headers, stream=True, allow_redirects=False, timeout=(CONNECT_TIMEOUT_S, timeout_s)
                    ) as answer,
                ):
                    if answer.status_code in {301, 302, 303, 307, 308}:
                        url = next_hop(url, answer.headers.get("Location"), stays_public=True)
                        continue
                    _check(answer, asked, source)
                    yield answer, deadline
                    return
    except _BROKEN as error:
        raise network_error(error, asked) from error
    raise ServerError(f"{shown(asked)} redirects in circles.", hint="Name another address.")


def _check(answer: requests.Response, url: str, source: Source | None) -> None:
    status = answer.status_code
    if status in {200, 206}:
        return
    headers = {name.lower(): value for name, value in answer.headers.items()}
    refusal = access_error(status, headers, source or UrlFile(url=url))
    if refusal is not None:
        raise refusal
    kind = RateLimitedError if status == 429 else ServerError
    patience_s = asked_patience_s(status, headers, time.time())
    raise kind(
        f"{shown(url)} answers {status}.",
        hint="Run the same command again later.",
        status=status,
        patience_s=patience_s,
    )
