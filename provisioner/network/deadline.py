"""A wall-clock limit for one HTTP request, which closes its socket.

The time-outs of requests count from the last byte: a server that sends one now and then holds a connection for ever,
in the middle of a header where nobody can look at a clock.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.client import HTTPException
from types import TracebackType
from typing import Any

from requests.adapters import HTTPAdapter
from requests.exceptions import ReadTimeout, RequestException
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

_TICK_S = 0.1
_BROKEN = (RequestException, HTTPError, HTTPException, OSError)
_of_thread = threading.local()


class Deadline:
    """Lets one request of this thread last so many seconds, through a session that has a `DeadlineAdapter`.

    The clock starts when the connection is made, again when the request is sent on it, and at each `restart`.  Use it
    in a ``with``, around the reading of the body too: what comes too late meets a closed socket, and the ``with`` ends
    with `requests.exceptions.ReadTimeout`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_over = False
        self._until_s: float | None = None
        self._sockets: list[socket.socket] = []  # names of ours for the connections: closing one closes no connection

    def __enter__(self) -> Deadline:
        self._outer: Deadline | None = getattr(_of_thread, "deadline", None)
        _of_thread.deadline = self
        _watch.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _of_thread.deadline = self._outer
        _watch.discard(self)
        with contextlib.suppress(OSError):
            while self._sockets:
                self._sockets.pop().close()
        if self.is_over and (error is None or isinstance(error, _BROKEN)):
            message = f"not complete within {self.seconds:g} s"
            raise ReadTimeout(message) from error

    def restart(self) -> None:
        """Start the clock again."""
        self._until_s = time.monotonic() + self.seconds

    def pause(self) -> None:
        """Stop the clock while nothing is waited for."""
        self._until_s = None

    def adopt(self, connection: socket.socket) -> None:
        """Close this connection, too, when the time is over."""
        self.restart()
        with contextlib.suppress(OSError, ValueError):  # it is closed already
            self._sockets.append(socket.fromfd(connection.fileno(), connection.family, connection.type))

    def close_if_over(self) -> None:
        """Shut the connections down when the time is over."""
        until_s = self._until_s
        if until_s is not None and time.monotonic() >= until_s:
            self.end()

    def end(self) -> None:
        """Shut the connections down."""
        self.is_over = True
        for each in tuple(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class _Watch:
    """One thread for all deadlines, which ends when there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: set[Deadline] = set()
        self._thread: threading.Thread | None = None

    def add(self, deadline: Deadline) -> None:
        with self._lock:
            self._deadlines.add(deadline)
            if self._thread is None or not self._thread.is_alive():  # the second: this process was forked
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()

    def discard(self, deadline: Deadline) -> None:
        with self._lock:
            self._deadlines.discard(deadline)

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            with self._lock:
                current = tuple(self._deadlines)
                if current:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > 1.0:
                    self._thread = None
                    return
            for each in current:
                each.close_if_over()
            time.sleep(_TICK_S)

    def end_all(self) -> None:
        with self._lock:
            current = tuple(self._deadlines)
        for each in current:
            each.end()


_watch = _Watch()


def end_all() -> None:
    """Shut down the connections of every request that is under way, in whichever thread: nobody wants the answers."""
    _watch.end_all()


def _adopt(connection: socket.socket | None) -> None:
    deadline: Deadline | None = getattr(_of_thread, "deadline", None)
    if deadline is not None and connection is not None:
        deadline.adopt(connection)


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _adopt(made)
        return made

    def request(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - handed on
        _adopt(self.sock)
        super().request(*arguments, **more)


class _SafeConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _adopt(made)
        return made

    def request(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - handed on
        _adopt(self.sock)
        super().request(*arguments, **more)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SafePool(HTTPSConnectionPool):
    ConnectionCls = _SafeConnection


class DeadlineAdapter(HTTPAdapter):
    """Connects a session with the `Deadline` of the thread that asks."""

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - handed on
        """Make the pools of connections without a proxy."""
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SafePool}

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:  # noqa: ANN401 - handed on
        """Make the pools of connections through a proxy; one for SOCKS keeps its own kind of connection."""
        manager = super().proxy_manager_for(proxy, **more)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _SafePool}
        return manager
