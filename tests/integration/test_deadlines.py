"""A server that sends a byte now and then holds nobody for ever: neither a download nor the test image."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from provisioner.comfyui.server.client import ComfyClient
from provisioner.comfyui.server.launch import parse_address
from provisioner.comfyui.server.websocket import Listener
from provisioner.core.errors import NetworkError, ServerNotUsableError, StalledError
from provisioner.core.models import HubFile
from provisioner.core.retries import Retries
from provisioner.files.download.transfer import RangeFetcher
from provisioner.files.download.whole_file import WholeFiles
from provisioner.network.deadline import end_all
from provisioner.network.http_session import Credentials
from tests.support.builders import artifact, comfy_file
from tests.support.memory import MemoryPart, MemoryStore

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
FILE = HubFile(repo_id="org/x", revision="a" * 40, filename="x.bin")


@contextmanager
def dripping(
    start: bytes, drip: bytes = b"X", *, first: Callable[[bytes], bytes | None] = lambda _: None
) -> Iterator[str]:
    """Serve an answer that begins like `start` and goes on with a `drip` every 50 ms; some get a whole one `first`."""
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            asked = connection.recv(65536)
            whole = first(asked)
            if whole is not None:
                connection.sendall(whole)
                return
            connection.sendall(start)
            while not stop.wait(0.05):
                connection.sendall(drip)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)


def in_time(work: Callable[[], object], seconds: float = 30.0) -> BaseException | None:
    """Do it in another thread; return what it raised, and fail if it does not end."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits for ever"
    return raised[0]


HEADERS = b"HTTP/1.1 200 OK\r\nX-Long: "
CHUNKED = HEAD + b'ETag: "x"\r\nTransfer-Encoding: chunked\r\n\r\n1;long='


@pytest.mark.parametrize("start", [b"", HEADERS], ids=["status line", "header"])
def test_dripped_headers_do_not_hold_the_question_to_the_hub(start: bytes) -> None:
    with dripping(start) as url:
        fetcher = RangeFetcher(credentials=Credentials(None, url), stall_timeout_s=0.5)
        error = in_time(lambda: fetcher.blob_id(FILE))
    assert isinstance(error, NetworkError)
    assert "in time" in str(error)


@pytest.mark.parametrize("start", [HEADERS, CHUNKED], ids=["headers", "length of a chunk"])
def test_dripped_answers_do_not_hold_a_download(start: bytes) -> None:
    data = b"the right bytes"

    def of_the_hub(asked: bytes) -> bytes | None:
        return HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode() if asked.startswith(b"HEAD") else None

    wanted = artifact(data, sources=(FILE,))
    with dripping(start, first=of_the_hub) as url:
        fetcher = RangeFetcher(credentials=Credentials(None, url), stall_timeout_s=0.3)
        part = MemoryPart(MemoryStore(), comfy_file(wanted), wanted, None)
        error = in_time(lambda: fetcher.fetch(FILE, wanted, part, progress=lambda _: None))
    assert isinstance(error, StalledError)


def test_a_transfer_that_keeps_breaking_off_is_not_called_a_server_that_is_not_there() -> None:
    data = b"the right bytes"

    def answer(asked: bytes) -> bytes:
        return HEAD + f"Content-Length: {len(data)}\r\n\r\n".encode() if asked.startswith(b"HEAD") else b""

    wanted = artifact(data, sources=(FILE,))
    with dripping(b"", first=answer) as url:
        fetcher = RangeFetcher(credentials=Credentials(None, url))
        part = MemoryPart(MemoryStore(), comfy_file(wanted), wanted, None)
        error = in_time(lambda: fetcher.fetch(FILE, wanted, part, progress=lambda _: None))
    assert isinstance(error, NetworkError)
    assert "breaks off again and again" in str(error)
    assert "could not be reached" not in str(error)


@pytest.mark.parametrize("start", [HEADERS, HEAD + b"Content-Length: 1000000\r\n\r\n"], ids=["headers", "body"])
def test_dripped_answers_do_not_hold_a_whole_file(start: bytes, tmp_path: Path) -> None:
    with dripping(start) as url:
        files = WholeFiles(retries=Retries(attempts=1), read_timeout_s=0.5)
        error = in_time(
            lambda: files.fetch(f"{url}/x.zip", tmp_path / "x", what="x", hint="", most_bytes=10**9, progress=print)
        )
    assert isinstance(error, StalledError)


@pytest.mark.parametrize(
    "start", [HEADERS, HEAD + b"Content-Length: 1000000\r\n\r\n", CHUNKED], ids=["headers", "body", "chunk"]
)
def test_dripped_answers_do_not_hold_the_test_image(start: bytes) -> None:
    with dripping(start) as url, ComfyClient(url, cancelled=lambda: False) as client:
        error = in_time(lambda: client.web.get("/history/x", timeout_s=0.5))
    assert isinstance(error, ServerNotUsableError)
    assert error.context["cause"] == "slow-server"


def test_a_flood_of_messages_takes_no_memory() -> None:
    text = json.dumps({"type": "executed", "data": {"prompt_id": "p", "node": "1", "output": {"x": "a" * 30_000_000}}})

    def flood(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(20):
                connection.send(text)

    with serve(flood, "127.0.0.1", 0, compression=None, close_timeout=0.2) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        listener = Listener(parse_address(f"http://127.0.0.1:{server.socket.getsockname()[1]}"), "me")
        time.sleep(1)
        tracemalloc.start()
        try:
            for _ in range(20):
                listener.next_message(0.1)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        is_open = listener.is_open
        listener.close()
        server.shutdown()
    assert peak < 20_000_000
    assert not is_open  # /history says the rest


def test_a_download_from_a_silent_server_ends_at_once_when_every_request_is_ended(tmp_path: Path) -> None:
    """What Ctrl-C does to the threads of a run: none of them gets a signal."""
    cancelled, came = threading.Event(), []

    def fetch(url: str) -> None:
        files = WholeFiles(cancelled=cancelled.is_set)
        try:
            files.fetch(f"{url}/x.zip", tmp_path / "x", what="x", hint="h", most_bytes=10**9, progress=print)
        except KeyboardInterrupt:
            came.append("stopped")

    with dripping(HEAD, b"") as url:
        thread = threading.Thread(target=fetch, args=(url,), daemon=True)
        thread.start()
        time.sleep(1.0)
        assert thread.is_alive()
        cancelled.set()
        end_all()
        thread.join(5)
        assert not thread.is_alive()
    assert came == ["stopped"]
