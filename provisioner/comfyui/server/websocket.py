"""The WebSocket of one ComfyUI server: returns messages, drops previews, and never raises for a lost connection."""

from __future__ import annotations

import contextlib
import time

import websockets.exceptions
from websockets.sync.client import ClientConnection, connect

from provisioner.comfyui.server.launch import ServerAddress
from provisioner.comfyui.server.messages import MESSAGE_CHARACTERS, Message, parse_message

_OPEN_S = 10.0
_CLOSE_S = 1.0
_WAITING = 4  # messages that have arrived and are not read yet


class Listener:
    """Receives a server's messages to one client.  Without a connection it receives nothing, and does not raise."""

    def __init__(self, address: ServerAddress, client_id: str) -> None:
        self.last_sign = time.monotonic()  # when anything arrived last, including previews
        self.is_whole = True  # False once a message may have been missed
        self._connection: ClientConnection | None = None
        self._until_closed = contextlib.ExitStack()  # from 17.1 on the connection must be used in a ``with``
        try:
            self._connection = self._until_closed.enter_context(
                connect(
                    f"{address.websocket}?clientId={client_id}",
                    proxy=None if address.is_loopback else True,
                    open_timeout=_OPEN_S,
                    close_timeout=_CLOSE_S,
                    ping_interval=None,  # a server that loads a model ignores pings for minutes; use /history then
                    compression=None,
                    max_size=MESSAGE_CHARACTERS,  # in bytes; a preview has some 100 kB
                    max_queue=_WAITING,
                )
            )
        except (OSError, ImportError, websockets.exceptions.WebSocketException):  # a SOCKS proxy needs another module
            self.is_whole = False

    @property
    def is_open(self) -> bool:
        """Whether messages can still arrive."""
        return self._connection is not None

    def next_message(self, timeout_s: float) -> Message | None:
        """Return the next message about a prompt; None where none came in time, or the connection broke."""
        deadline = time.monotonic() + timeout_s
        while self._connection is not None and (left := deadline - time.monotonic()) > 0:
            try:
                data = self._connection.recv(timeout=left)
            except TimeoutError:
                return None
            except (OSError, websockets.exceptions.WebSocketException):
                self.is_whole = False
                self.close()
                return None
            self.last_sign = time.monotonic()
            message = parse_message(data) if isinstance(data, str) else None
            if message is not None:
                return message
        return None

    def close(self) -> None:
        """Close the connection."""
        self._connection = None
        self._until_closed.close()
