"""The files of a bundle as 127.0.0.1 serves them: ranges, strong ETags, and nothing that was not named."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from provisioner.network.loopback_files import LoopbackFiles, Served

DATA = bytes(range(256)) * 40


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "blob").write_bytes(DATA)
    (tmp_path / "empty").write_bytes(b"")
    files = {
        "/blobs/a": Served(tmp_path / "blob", etag="sha256:a"),
        "/blobs/e": Served(tmp_path / "empty", etag="sha256:e"),
        "/blobs/gone": Served(tmp_path / "gone", etag="sha256:g"),
    }
    with LoopbackFiles(files=files, pages={"/oci-layout": b"{}"}).serve() as address:
        yield address


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=5)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_whole_file_and_parts_of_it(address: str) -> None:
    status, headers, body = ask(address, "/blobs/a?x=1")
    assert (status, body, headers["ETag"], headers["Accept-Ranges"]) == (200, DATA, '"sha256:a"', "bytes")
    for asked, first, last in (("bytes=10-19", 10, 19), ("bytes=10000-", 10000, 10239), ("bytes=5-99999", 5, 10239)):
        status, headers, body = ask(address, "/blobs/a", Range=asked)
        assert (status, body) == (206, DATA[first : last + 1])
        assert headers["Content-Range"] == f"bytes {first}-{last}/10240"
    assert ask(address, "/blobs/a", Range="bytes=10240-")[0] == 416
    assert ask(address, "/blobs/a", "HEAD")[1]["Content-Length"] == "10240"
    assert ask(address, "/blobs/e")[2] == b""


def test_a_range_of_another_file_is_answered_with_the_whole(address: str) -> None:
    assert ask(address, "/blobs/a", Range="bytes=1-2", If_Range='"sha256:a"')[0] == 206
    assert ask(address, "/blobs/a", Range="bytes=1-2", If_Range='"sha256:b"')[::2] == (200, DATA)


@pytest.mark.parametrize("path", ["/", "/blob", "/blobs/../blob", "/blobs/%2e%2e/blob", "/blobs/gone", "/etc/passwd"])
def test_what_was_not_named_or_is_gone_is_not_there(address: str, path: str) -> None:
    assert ask(address, path)[::2] == (404, b"")


def test_many_ask_at_once(address: str) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(ask(address, "/blobs/a")[2])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA] * 16


def test_it_ends_with_its_block(tmp_path: Path) -> None:
    with LoopbackFiles(pages={"/oci-layout": b"{}"}).serve() as address:
        assert ask(address, "/oci-layout")[2] == b"{}"
    with pytest.raises(ConnectionRefusedError):
        ask(address, "/oci-layout")
