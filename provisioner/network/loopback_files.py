"""Serves files of this disk on 127.0.0.1, to ourselves and the programs we start, for as long as a block runs.

What reads from a mirror or an index reads a bundle the same way then: in ranges, resumable, each file by its SHA-256.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

_STEP = 1024 * 1024
_RANGE = re.compile(r"bytes=(\d{1,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class Served:
    """A file that is served."""

    path: Path
    etag: str  # a strong one: the SHA-256 of the file that is meant to lie there


@dataclass
class LoopbackFiles:
    """What is served under which path, which begins with a slash."""

    files: dict[str, Served] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)  # of JSON

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """Serve while the block runs; yield the address, without a slash at its end."""
        server = _Server(("127.0.0.1", 0), _Handler)
        server.served = self
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    served: LoopbackFiles


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def _answer(self, *, has_body: bool) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # it has what it wanted
            path = self.path.partition("?")[0]
            served: LoopbackFiles = self.server.served  # type: ignore[attr-defined]
            page = served.pages.get(path)
            if page is not None:
                self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(page))})
                if has_body:
                    self.wfile.write(page)
                return
            file = served.files.get(path)
            try:
                stream = None if file is None else file.path.open("rb")
            except OSError:
                stream = None
            if file is None or stream is None:
                self._head(404, {"Content-Length": "0"})
                return
            with stream:
                self._send_file(stream, file.etag, has_body=has_body)

    def _send_file(self, stream: BinaryIO, etag: str, *, has_body: bool) -> None:
        size = stream.seek(0, 2)
        quoted = f'"{etag}"'
        headers = {"ETag": quoted, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = _RANGE.fullmatch(self.headers.get("Range", "")) if size else None
        if asked is None or self.headers.get("If-Range", quoted) != quoted:
            first, last, status = 0, size - 1, 200
        else:
            first, last, status = int(asked[1]), min(int(asked[2] or size), size - 1), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if first > last and status == 206:
            self._head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        left = last - first + 1
        self._head(status, headers | {"Content-Length": str(left)})
        if not has_body:
            return
        stream.seek(first)
        while left and (data := stream.read(min(_STEP, left))):
            self.wfile.write(data)
            left -= len(data)
        if left:
            self.close_connection = True  # the file became shorter

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
