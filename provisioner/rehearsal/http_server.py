"""HTTP/1.1 on 127.0.0.1: listeners, answers sent over sockets, every request recorded.

Knows sockets and nothing of the Hub: what to answer is decided by the function a listener is given.  Every wait
ends when the listener is closed.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Literal
from urllib.parse import unquote, urlsplit

from provisioner.rehearsal.content import Content
from provisioner.rehearsal.faults import CutAfter, Endless, Fault, ResetAfter, Send, Stall, Wait, WrongBytes, script

SLICE_BYTES = 4 * 1024 * 1024  # per system call where nothing paces: a shutdown waits for one slice at most
COPY_BYTES = 256 * 1024  # per copy where there is no sendfile, or bytes are changed on the way
BODY_LIMIT = 4 * 1024 * 1024  # bytes of a request body
RESET_GRACE_S = 0.05  # lets the kernel deliver what was sent before a reset throws the rest away

ListenerName = Literal["hub", "content"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request, and what it was answered."""

    listener: ListenerName
    method: str
    path: str  # as sent, still percent-encoded, without the query
    query: str  # kept apart: signatures live in it
    filename: str  # in the repository; "" where the request means no file
    range: str | None
    if_range: str | None
    authorization: str | None
    accept_encoding: str | None
    user_agent: str | None
    status: int | None  # None: the connection ended before an answer
    bytes_sent: int  # of the body
    fault: str | None  # name of the fault's class, when one was used
    at: float  # time.monotonic() when the request had been read
    is_finished: bool  # nothing more will be sent for it


@dataclass(frozen=True, slots=True)
class Request:
    """What a listener has read."""

    method: str
    path: str  # percent-encoded, without the query
    query: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def parts(self) -> tuple[str, ...]:
        """The segments of the path, decoded."""
        return tuple(unquote(part) for part in self.path.strip("/").split("/"))


@dataclass(frozen=True, slots=True)
class Span:
    """A run of bytes of a file."""

    content: Content
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send back."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | Span = b""
    fault: Fault | None = None
    filename: str = ""  # for the record
    declared_length: int | None = None  # Content-Length, where it is not the body's

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.length

    def without(self, name: str) -> Answer:
        """Return the answer without the header `name`."""
        return replace(self, headers=tuple(each for each in self.headers if each[0].lower() != name.lower()))

    def having(self, name: str, value: str) -> Answer:
        """Return the answer with the header `name` set to `value`."""
        return replace(self, headers=(*self.without(name).headers, (name, value)))


Respond = Callable[[Request], Answer]


class Record:
    """The requests of all listeners of a hub, in the order in which they were read."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: dict[int, Recorded] = {}
        self._next = 0

    def open(self, recorded: Recorded) -> int:
        """Add a request and return its number."""
        with self._changed:
            self._next += 1
            self._requests[self._next] = recorded
            return self._next

    def update(self, number: int, **changes: object) -> None:
        """Change fields of a request that is under way."""
        with self._changed:
            if number in self._requests:
                self._requests[number] = replace(self._requests[number], **changes)  # type: ignore[arg-type]
                self._changed.notify_all()

    def count(self, number: int, difference: int) -> None:
        """Add to the bytes sent for a request."""
        with self._changed:
            if number in self._requests:
                known = self._requests[number]
                self._requests[number] = replace(known, bytes_sent=known.bytes_sent + difference)

    def requests(self) -> tuple[Recorded, ...]:
        """Return every request so far."""
        with self._changed:
            return tuple(self._requests.values())

    def clear(self) -> None:
        """Forget every request; those under way are not recorded further."""
        with self._changed:
            self._requests.clear()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until no request is under way; return False when that took longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: all(each.is_finished for each in self._requests.values()), timeout_s)


@dataclass(slots=True)
class Pace:
    """How fast and how late the listeners answer; may be changed while they run."""

    rate_bytes_s_per_connection: int | None = None
    rate_bytes_s: int | None = None  # of all connections together: one slow wire
    latency_s: float = 0.0
    wire_lock: threading.Lock = field(default_factory=threading.Lock)
    wire_due: float = 0.0  # when the wire has carried what was given to it


@dataclass(slots=True)
class Shared:
    """What the listeners of one hub have in common."""

    record: Record = field(default_factory=Record)
    pace: Pace = field(default_factory=Pace)
    stop: threading.Event = field(default_factory=threading.Event)
    defects: list[str] = field(default_factory=list)  # tracebacks of bugs in this module


class _Ended(Exception):
    """The connection ends now: by plan, or because the hub closes.  Not an error."""


class Listener(ThreadingHTTPServer):
    """One origin: ``http://127.0.0.1:<free port>``."""

    daemon_threads = True
    block_on_close = False  # close() does it, with a limit
    request_queue_size = 128
    allow_reuse_address = sys.platform != "win32"  # there it would let a second program take the port

    def __init__(self, name: ListenerName, respond: Respond, shared: Shared, port: int = 0) -> None:
        self.name = name
        self.respond = respond
        self.shared = shared
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._resetting: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Connection)
        self._accepting = threading.Thread(
            target=self.serve_forever, args=(0.05,), name=f"rehearsal-{name}", daemon=True
        )
        self._accepting.start()

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        """Bind without asking the resolver for our name, which takes seconds on some machines."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Serve a connection in a thread of its own that close() can find."""
        request.setblocking(True)  # whatever default timeout the program has set: sendfile needs it
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def reset(self, connection: socket.socket) -> None:
        """Let `connection` end with RST instead of FIN."""
        form = "hh" if sys.platform == "win32" else "ii"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(form, 1, 0))
        with self._lock:
            self._resetting.add(connection)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """End a connection: FIN, or RST where reset() asked for it."""
        with self._lock:
            is_reset = request in self._resetting
            self._resetting.discard(request)
            self._connections.pop(request, None)
        if is_reset:
            request.close()  # no shutdown() before it: that would send the FIN
        else:
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the base class's
        """Keep bugs of this module where a test sees them; a client that hung up is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.shared.defects.append(traceback.format_exc())

    def close(self, deadline: float) -> None:
        """Stop accepting, break every connection, wait for the threads until `deadline` (time.monotonic())."""
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # ended by itself meanwhile
        for thread in (self._accepting, *connections.values()):
            thread.join(max(0.0, deadline - time.monotonic()))


class _Connection(BaseHTTPRequestHandler):
    """One connection of a client, with any number of requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener
    connection: socket.socket

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing: requests are recorded, not logged."""

    def handle_one_request(self) -> None:
        """Answer one request; a client that hangs up ends the connection and nothing else."""
        try:
            super().handle_one_request()
        except (_Ended, OSError):
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer a GET."""
        shared = self.server.shared
        request = self._read()
        number = shared.record.open(self._recorded(request))
        try:
            self._pause(shared.pace.latency_s)
            answer = self.server.respond(request)
            fault = None if answer.fault is None else type(answer.fault).__name__
            shared.record.update(number, filename=answer.filename, fault=fault)
            self._send(answer, number)
        finally:
            shared.record.update(number, is_finished=True)

    do_HEAD = do_GET
    do_POST = do_GET

    def _read(self) -> Request:
        length = int(self.headers.get("Content-Length") or 0)
        if length > BODY_LIMIT:
            raise _Ended
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.command, parts.path, parts.query, headers, self.rfile.read(length) if length else b"")

    def _recorded(self, request: Request) -> Recorded:
        header = request.headers.get
        return Recorded(
            listener=self.server.name,
            method=request.method,
            path=request.path,
            query=request.query,
            filename="",
            range=header("range"),
            if_range=header("if-range"),
            authorization=header("authorization"),
            accept_encoding=header("accept-encoding"),
            user_agent=header("user-agent"),
            status=None,
            bytes_sent=0,
            fault=None,
            at=time.monotonic(),
            is_finished=False,
        )

    # --- sending ---

    def _send(self, answer: Answer, number: int) -> None:
        has_body = self.command != "HEAD" and answer.length > 0
        if not has_body and isinstance(answer.fault, CutAfter | ResetAfter):
            self._hang_up(is_reset=isinstance(answer.fault, ResetAfter))
        if not has_body and isinstance(answer.fault, Stall):
            self._pause(answer.fault.seconds)
        is_chunked = has_body and isinstance(answer.fault, Endless)
        self.server.shared.record.update(number, status=answer.status)
        head = self._head(answer, is_chunked=is_chunked)
        if has_body and isinstance(answer.body, bytes) and answer.fault is None:
            self.server.shared.record.count(number, len(answer.body))
            self.connection.sendall(head + answer.body)
        elif has_body:
            self.connection.sendall(head)
            self._send_body(answer, number)
        else:
            self.connection.sendall(head)
        if has_body and answer.declared_length not in {None, answer.length}:
            self._hang_up(is_reset=False)

    def _head(self, answer: Answer, *, is_chunked: bool) -> bytes:
        length = answer.length if answer.declared_length is None else answer.declared_length
        framing = ("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", str(length))
        has_length = any(name.lower() == "content-length" for name, _ in answer.headers)
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in (("Date", self.date_time_string()), *answer.headers)]
        if not has_length:
            lines.append(f"{framing[0]}: {framing[1]}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _send_body(self, answer: Answer, number: int) -> None:
        body = answer.body if isinstance(answer.body, Span) else Span(Content.of(answer.body), 0, len(answer.body))
        if isinstance(answer.fault, Endless):
            self._send_endless(body, number, answer.fault.limit)
            return
        flips = answer.fault.within(body.start, body.length) if isinstance(answer.fault, WrongBytes) else ()
        with _Sender(self.connection, body, flips) as sender:
            meter = _Meter(self.server.shared, number)
            for action in script(answer.fault, body.length):
                if isinstance(action, Send):
                    self._send_run(sender, meter, action)
                elif isinstance(action, Wait):
                    self._pause(action.seconds)
                else:
                    self._hang_up(is_reset=action.is_reset)

    def _send_run(self, sender: _Sender, meter: _Meter, action: Send) -> None:
        start, stop = action.start, action.start + action.length
        while start < stop:
            if self.server.shared.stop.is_set():
                raise _Ended
            planned = min(stop - start, meter.slice_bytes())
            # Counted before it is sent: a client that has the last byte must find it in the record.
            self.server.shared.record.count(meter.number, planned)
            sent = 0
            try:
                sent = sender.send(start, planned)
            finally:
                if sent != planned:
                    self.server.shared.record.count(meter.number, sent - planned)
            start += sent
            self._pause(meter.due_in(sent))

    def _send_endless(self, body: Span, number: int, limit: int) -> None:
        sent = 0
        for piece in _endless_pieces(body):
            if sent >= limit or self.server.shared.stop.is_set():
                break
            self.server.shared.record.count(number, len(piece))
            self.connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
        self._hang_up(is_reset=False)

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and self.server.shared.stop.wait(seconds):
            raise _Ended

    def _hang_up(self, *, is_reset: bool) -> None:
        if is_reset:
            self._pause(RESET_GRACE_S)
            self.server.reset(self.connection)
        raise _Ended


def _endless_pieces(body: Span) -> Iterator[bytes]:
    yield from body.content.pieces(body.start, body.length)
    zeros = bytes(COPY_BYTES)
    while True:
        yield zeros


class _Meter:
    """Paces one body to the rate that is set at the moment."""

    def __init__(self, shared: Shared, number: int) -> None:
        self.number = number
        self._pace = shared.pace
        self._due = time.monotonic()

    def slice_bytes(self) -> int:
        rates = [each for each in (self._pace.rate_bytes_s_per_connection, self._pace.rate_bytes_s) if each]
        return max(1, min([SLICE_BYTES, *(rate // 50 for rate in rates)]))

    def due_in(self, sent: int) -> float:
        """Return the seconds to wait after `sent` bytes."""
        rate, wire = self._pace.rate_bytes_s_per_connection, self._pace.rate_bytes_s
        now = time.monotonic()
        if rate:
            self._due = max(self._due, now - 0.1) + sent / rate  # at most 0.1 s of delay is caught up
        if wire:
            with self._pace.wire_lock:
                self._pace.wire_due = max(self._pace.wire_due, now - 0.1) + sent / wire
                self._due = max(self._due, self._pace.wire_due)
        return self._due - now if rate or wire else 0.0


class _Sender:
    """Sends runs of a span over a connection, by sendfile where the system has it."""

    def __init__(self, connection: socket.socket, body: Span, flips: tuple[int, ...]) -> None:
        self._connection = connection
        self._body = body
        self._flips = flips
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Sender:
        source = self._body.content.source
        if isinstance(source, Path):
            self._file = source.open("rb", buffering=0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._file is not None:
            self._file.close()

    def send(self, start: int, length: int) -> int:
        """Send at most `length` bytes from `start` within the span and return how many went."""
        offset = self._body.start + start
        source = self._body.content.source
        if self._flips:
            return self._send_flipped(offset, length)
        if isinstance(source, bytes):
            return self._connection.send(memoryview(source)[offset : offset + length])
        if sys.platform != "win32" and self._file is not None:
            sent = os.sendfile(self._connection.fileno(), self._file.fileno(), offset, length)
            if sent == 0:
                raise _Ended  # the file became shorter meanwhile
            return sent
        return self._send_copy(self._read(offset, min(length, COPY_BYTES)))

    def _send_flipped(self, offset: int, length: int) -> int:
        piece = bytearray(self._read(offset, min(length, COPY_BYTES)))
        for position in self._flips:
            if offset <= position < offset + len(piece):
                piece[position - offset] ^= 0xFF
        return self._send_copy(bytes(piece))

    def _send_copy(self, piece: bytes) -> int:
        if not piece:
            raise _Ended
        self._connection.sendall(piece)
        return len(piece)

    def _read(self, offset: int, length: int) -> bytes:
        if self._file is None:
            return b"".join(self._body.content.pieces(offset, length))
        self._file.seek(offset)
        return self._file.read(length)
