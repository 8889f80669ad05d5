"""The beginning of a file, or all of a small one, into memory: a workflow, an index, the header of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import requests
import urllib3

from provisioner.core.errors import NotTheFileError, RateLimitedError, ServerError
from provisioner.core.models import Source, UrlFile
from provisioner.core.units import human_bytes
from provisioner.files.download.policy import parse_content_range
from provisioner.files.download.resolve import access_error
from provisioner.network.deadline import Deadline
from provisioner.network.http_session import (
    CONNECT_TIMEOUT_S,
    Credentials,
    network_error,
    next_hop,
    open_session,
    shown,
)

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
    raise kind(f"{shown(url)} answers {status}.", hint="Run the same command again later.", status=status)
