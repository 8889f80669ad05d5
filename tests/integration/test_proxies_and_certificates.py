"""The usual variables hold: proxies, exceptions from them, and bundles of certificates."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.sandbox import MIB, TOKEN, Sandbox, tensors

BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
NAME = "hub.example"  # a host that no resolver knows: only the proxy can reach it


class Proxy:
    """An HTTP proxy on loopback that knows one name, and keeps what it was asked."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.asked: list[tuple[str, str, str | None]] = []  # method, URL, Authorization
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._forward()

            def do_GET(self) -> None:
                self._forward()

            def _forward(self) -> None:
                proxy.asked.append((self.command, self.path, self.headers.get("Authorization")))
                url = sandbox.hub.endpoint + urlsplit(self.path).path
                headers = {name: self.headers[name] for name in ("Range", "Authorization") if name in self.headers}
                with requests.Session() as session:
                    session.trust_env = False
                    answer = session.request(self.command, url, headers=headers, allow_redirects=False)
                    body = answer.content
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", answer.headers.get("Content-Length", str(len(body))))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def proxy(sandbox: Sandbox) -> Iterator[Proxy]:
    proxy = Proxy(sandbox)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_variable_holds(sandbox: Sandbox, proxy: Proxy, variable: str) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    done = sandbox.install("--endpoint", f"http://{NAME}", env={variable: proxy.url})
    assert done.returncode == 0, done.said
    assert {urlsplit(url).hostname for _, url, _ in proxy.asked} == {NAME}
    sandbox.assert_in_place()


def test_the_token_does_not_travel_in_the_clear(sandbox: Sandbox, proxy: Proxy) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    assert sandbox.install("--endpoint", f"http://{NAME}", env={"http_proxy": proxy.url}).returncode == 0
    assert [authorization for _, _, authorization in proxy.asked if authorization] == []


def test_no_proxy_holds(sandbox: Sandbox, proxy: Proxy) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    done = sandbox.install("--endpoint", f"http://{NAME}", env={"http_proxy": proxy.url, "NO_PROXY": NAME})
    assert (done.returncode, proxy.asked) == (5, [])
    assert f"{NAME} could not be reached" in done.said


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(sandbox: Sandbox, proxy: Proxy) -> None:
    sandbox.publish(tensors(MIB))
    done = sandbox.install(env={"http_proxy": proxy.url, "HTTPS_PROXY": proxy.url, "NO_PROXY": None})
    assert (done.returncode, proxy.asked) == (0, [])


def test_a_proxy_that_is_not_there_is_named_as_the_cause(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    done = sandbox.install("--endpoint", f"http://{NAME}", env={"http_proxy": closed})
    assert done.returncode == 5
    assert "proxy" in done.said.lower()


# --- certificates ------------------------------------------------------------------------------------


class Encrypted:
    """The hub of a sandbox behind TLS, with a certificate nobody has heard of."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.certificate, key = folder / "cert.pem", folder / "key.pem"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        command += ["-keyout", str(key), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self._hub = urlsplit(sandbox.hub.endpoint)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"https://localhost:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(client, server_side=True) as secure,
            socket.create_connection((self._hub.hostname or "", self._hub.port or 0)) as plain,
        ):
            back = threading.Thread(target=_pump, args=(plain, secure), daemon=True)
            back.start()
            _pump(secure, plain)
            back.join(5)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def encrypted(sandbox: Sandbox, tmp_path: Path) -> Iterator[Encrypted]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    server = Encrypted(sandbox, tmp_path)
    try:
        yield server
    finally:
        server.close()


def test_a_certificate_nobody_vouches_for_is_refused(sandbox: Sandbox, encrypted: Encrypted) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    done = sandbox.install("--endpoint", encrypted.endpoint)
    assert done.returncode == 5
    assert "certificate of localhost was not accepted" in done.said
    assert "REQUESTS_CA_BUNDLE" in done.said
    assert sandbox.hub.requests == ()


@pytest.mark.parametrize("variable", BUNDLES)
def test_a_bundle_of_certificates_holds(sandbox: Sandbox, encrypted: Encrypted, variable: str) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    others = dict.fromkeys(BUNDLES, None)
    done = sandbox.install(
        "--endpoint", encrypted.endpoint, "--send-token", env={**others, variable: str(encrypted.certificate)}
    )
    assert done.returncode == 0, done.said
    sandbox.assert_in_place()
    assert {request.authorization for request in sandbox.hub.requests} == {f"Bearer {TOKEN}"}
