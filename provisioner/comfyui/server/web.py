"""HTTP access to one ComfyUI server: limited size and time, no login, no proxy for this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import requests

from provisioner import __version__
from provisioner.comfyui.server.failures import not_comfyui_error, too_large_error, unreachable_error
from provisioner.comfyui.server.launch import ServerAddress
from provisioner.core.errors import SmokeTestError
from provisioner.core.ports import Cancelled
from provisioner.network.deadline import Deadline, DeadlineAdapter

MEGABYTE = 1024 * 1024

_CONNECT_S = 5.0
_READ_S = 30.0  # a busy server answers late: its threads share one interpreter
_CHUNK_BYTES = 64 * 1024
_ANSWER_BYTES = 4 * MEGABYTE  # a loader with 50,000 model files; parsed, JSON takes up to twenty times as much
_BEGINNING = 200  # characters of a wrong answer that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer of any status."""

    status: int
    content_type: str
    data: bytes

    def json(self) -> object:
        """Return the decoded JSON; the beginning of the text where it is not JSON."""
        try:
            body: object = json.loads(self.data)
        except (ValueError, RecursionError):
            return self.beginning
        return body

    @property
    def beginning(self) -> str:
        """The first characters, for messages."""
        return self.data[: 4 * _BEGINNING].decode("utf-8", "replace")[:_BEGINNING]


class Web:
    """Sends requests to one server."""

    def __init__(self, address: ServerAddress, *, cancelled: Cancelled) -> None:
        self.address = address
        self._cancelled = cancelled
        self._session = requests.Session()
        self._session.trust_env = not address.is_loopback  # no proxy for this machine
        self._session.mount("https://", DeadlineAdapter())
        self._session.mount("http://", DeadlineAdapter())
        self._session.auth = _no_login
        self._session.headers["User-Agent"] = f"klein-setup/{__version__} python-requests/{requests.__version__}"

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get_json(self, path: str, *, timeout_s: float = _READ_S, most_bytes: int = _ANSWER_BYTES) -> object:
        """Return the JSON of an answer with status 200.

        Raises
        ------
        ServerNotUsableError
            Nothing answers, or not as a ComfyUI server does.
        KeyboardInterrupt
            The run was cancelled.
        """
        answer = self.get(path, timeout_s=timeout_s, most_bytes=most_bytes)
        body = answer.json()
        if answer.status != 200 or not isinstance(body, (dict, list)):
            raise self.wrong(path, answer)
        return body

    def get(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        timeout_s: float = _READ_S,
        most_bytes: int = _ANSWER_BYTES,
    ) -> Answer:
        """Return the answer; raises as `get_json` does."""
        return self._ask("GET", path, None, query, timeout_s, most_bytes)

    def post(self, path: str, body: Mapping[str, object], *, timeout_s: float = _READ_S) -> Answer:
        """Send JSON and return the answer; raises as `get_json` does."""
        return self._ask("POST", path, body, None, timeout_s, _ANSWER_BYTES)

    def wrong(self, path: str, answer: Answer) -> SmokeTestError:
        """Return the error for an answer that is not ComfyUI's."""
        return not_comfyui_error(self.address.url, path, answer.status, answer.content_type, answer.beginning)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        query: Mapping[str, str] | None,
        timeout_s: float,
        most_bytes: int,
    ) -> Answer:
        if self._cancelled():
            raise KeyboardInterrupt
        try:
            with (
                Deadline(timeout_s),
                self._session.request(
                    method,
                    self.address.url + quote(path),
                    json=body,
                    params=query,
                    stream=True,
                    allow_redirects=False,  # a prompt is not sent on to another address
                    timeout=(min(_CONNECT_S, timeout_s), timeout_s),
                ) as response,
            ):
                return Answer(
                    status=response.status_code,
                    content_type=response.headers.get("Content-Type", ""),
                    data=self._read(response, path, time.monotonic() + timeout_s, most_bytes),
                )
        except (requests.RequestException, OSError, ValueError) as error:
            raise unreachable_error(self.address.url, _reason(error), is_slow=_is_slow(error)) from error

    def _read(self, response: requests.Response, path: str, deadline: float, most_bytes: int) -> bytes:
        data = bytearray()
        for chunk in response.iter_content(_CHUNK_BYTES):
            data += chunk
            if self._cancelled():
                raise KeyboardInterrupt
            if len(data) > most_bytes:
                raise too_large_error(self.address.url, path, most_bytes)
            if time.monotonic() > deadline:
                raise unreachable_error(self.address.url, f"the answer to {path} does not end", is_slow=True)
        return bytes(data)


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Return the request unchanged; an auth hook keeps requests from reading ``.netrc``."""
    return request


def _is_slow(error: BaseException) -> bool:
    """Whether the server was connected but slow; in mid-answer requests raises a ConnectionError for that."""
    inner = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else None
    return isinstance(error, requests.ReadTimeout) or type(inner).__name__ == "ReadTimeoutError"


def _reason(error: BaseException) -> str:
    """Return the innermost reason as text; the outer ones print addresses and objects."""
    if isinstance(error, requests.Timeout) or _is_slow(error):
        return "it did not answer in time"
    seen: set[int] = set()
    innermost = error
    while id(innermost) not in seen:
        seen.add(id(innermost))
        inner = getattr(innermost, "reason", None)
        following = inner if isinstance(inner, BaseException) else innermost.__cause__ or innermost.__context__
        if following is None:
            break
        innermost = following
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return str(innermost) or type(innermost).__name__
