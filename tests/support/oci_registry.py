"""Debian's docker-registry on loopback, a token service that speaks the distribution spec, and a front with faults.

The registry is the real program; files are pushed with the client of oras.  `Front` stands before it where a test
needs to see what was asked, or wants it answered wrongly.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from tests.support.comfy_server import free_port
from tests.support.sandbox import Wanted
from tests.support.tls import Authority

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
FOREIGN_PATH = "/signed/blob"
_CHUNK = 64 * 1024


def needs_docker_registry() -> None:
    """Skip the test where Debian's docker-registry is missing."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry (on Debian: apt-get install docker-registry)")


class DockerRegistry:
    """The real program, with its data in a folder.

    Parameters
    ----------
    folder : Path
        Where its configuration, log and data are.
    auth : mapping, optional
        That section of its configuration.
    config : mapping, optional
        A whole configuration, of which only the port is changed.
    """

    def __init__(
        self,
        folder: Path,
        auth: Mapping[str, object] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        needs_docker_registry()
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        config = config or {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            **({"auth": auth} if auth else {}),
        }
        (folder / "config.yml").write_text(json.dumps({**config, "http": {"addr": self.host}}))
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log, env={"PATH": "/bin"}
            )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(requests.RequestException):
                requests.get(f"http://{self.host}/v2/", timeout=5)
                return
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(10)

    def push(
        self,
        name: str,
        tag: str,
        folder: Path,
        *files: Wanted,
        login: tuple[str, str] | None = None,
    ) -> str:
        """Push files under a tag, as `oras push` does; return the digest of the manifest."""
        from oras.client import OrasClient

        client = OrasClient(insecure=True)
        if login is not None:
            client.auth.set_basic_auth(*login)
            client.auth._auth_config = {"auths": {}}  # nothing of the developer's
        paths = []
        for each in files:
            path = folder / each.name
            path.write_bytes(each.data)
            paths.append(str(path))
        answer = client.push(f"{self.host}/{name}:{tag}", files=paths, disable_path_validation=True, quiet=True)
        return str(answer.headers["Docker-Content-Digest"]).removeprefix("sha256:")


class TokenService:
    """A token service of the distribution spec, which signs for a docker-registry with ``auth: token``.

    Parameters
    ----------
    folder : Path
        Where its key and certificate are.
    logins : mapping
        Passwords by the user's name; without a login only a token without rights is given.
    """

    def __init__(self, folder: Path, logins: Mapping[str, str]) -> None:
        self.logins = dict(logins)
        self.lifetime_s = 300.0
        self.asked: list[tuple[dict[str, list[str]], str | None]] = []  # query and Authorization
        self.tokens: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler], bool] = lambda request: False  # in its place
        authority = Authority(folder)
        self.certificate = authority.certificate
        both = authority.issue("token-service").read_text()
        self._key = folder / "signing.pem"
        self._key.write_text(both)
        lines = both.split("-----BEGIN CERTIFICATE-----")[1].split("-----END")[0]
        self._x5c = "".join(lines.split())
        self._server = _serve(self._handle)
        self.port: int = self._server.server_address[1]
        self.realm = f"http://127.0.0.1:{self.port}/token"

    @property
    def auth(self) -> dict[str, object]:
        """The section of a registry's configuration."""
        return {
            "token": {
                "realm": self.realm,
                "service": "lab",
                "issuer": "lab-tokens",
                "rootcertbundle": str(self.certificate),
            }
        }

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(request.path).query)
        login = request.headers.get("Authorization")
        self.asked.append((query, login))
        name = self._who(login)
        if self.answer(request):
            return
        if login is not None and name is None:
            _answer(request, 401, b"{}")
            return
        access: list[dict[str, object]] = []
        for scope in query.get("scope", []) if name is not None else []:
            kind, repository, _ = scope.split(":", 2)
            # More than was asked for: the client of oras pushes with the token that it got for looking.
            access.append({"type": kind, "name": repository, "actions": ["pull", "push"]})
        token = self._signed(name or "", access)
        self.tokens.append(token)
        _answer(request, 200, json.dumps({"token": token, "expires_in": int(self.lifetime_s)}).encode())

    def _who(self, login: str | None) -> str | None:
        if login is None or not login.startswith("Basic "):
            return None
        user, _, password = base64.b64decode(login[6:]).decode().partition(":")
        return user if self.logins.get(user) == password else None

    def _signed(self, user: str, access: list[dict[str, object]]) -> str:
        now = time.time()
        # docker-registry grants 60 s beyond the end.
        ends = int(now + self.lifetime_s) - (60 if self.lifetime_s < 60 else 0)
        claims = {
            "iss": "lab-tokens",
            "sub": user,
            "aud": "lab",
            "exp": ends,
            "nbf": int(now) - 120,
            "iat": int(now) - 120,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        head = _b64(json.dumps({"typ": "JWT", "alg": "RS256", "x5c": [self._x5c]}).encode())
        text = f"{head}.{_b64(json.dumps(claims).encode())}"
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=text.encode(),
            capture_output=True,
            check=True,
        )
        return f"{text}.{_b64(done.stdout)}"


class MarkedRegistry:
    """A registry in small whose every secret is known: its login, its token, the signature of its store's addresses.

    It serves `blobs` in the repository ``models``; ``denied`` is open to nobody, and answers with what it was sent.
    """

    def __init__(self, blobs: Mapping[str, bytes], *, login: tuple[str, str], token: str, signature: str) -> None:
        self.blobs = dict(blobs)
        self.seen: list[tuple[str, str | None]] = []  # path without its query, and Authorization
        self.login = "Basic " + base64.b64encode(":".join(login).encode()).decode()
        self.token, self._signature = token, signature
        self._server = _serve(self._handle)
        self.port: int = self._server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        login = request.headers.get("Authorization")
        self.seen.append((path, login))
        data = self.blobs.get(path.rpartition(":")[2])
        if path == "/token":
            _answer(request, 200 if login == self.login else 401, json.dumps({"token": self.token}).encode())
        elif path.startswith("/store/"):
            if data is None or query != f"Signature={self._signature}":
                _answer(request, 403, b"")
            else:
                _answer_range(request, data)
        elif login != f"Bearer {self.token}":
            realm = f'Bearer realm="http://{self.host}/token",service="lab",scope="repository:models:pull"'
            _answer(request, 401, b"", WWW_Authenticate=realm)
        elif "/denied/" in path:
            _answer(request, 403, f"{login} {self.token} {self.login}".encode())
        elif data is None:
            _answer(request, 404, b"{}")
        else:
            digest = path.rpartition("/")[2]
            location = f"http://localhost:{self.port}/store/{digest}?Signature={self._signature}"
            _answer(request, 307, b"", Location=location)


def _answer_range(request: BaseHTTPRequestHandler, data: bytes) -> None:
    first, _, last = (request.headers.get("Range") or f"bytes=0-{len(data) - 1}")[6:].partition("-")
    body = data[int(first) : int(last) + 1]
    _answer(request, 206, body, Content_Range=f"bytes {first}-{int(first) + len(body) - 1}/{len(data)}")


@dataclass(frozen=True)
class Asked:
    """One request that a front saw."""

    method: str
    path: str  # with its query
    range: str | None
    authorization: str | None
    content_range: str | None = None


@dataclass
class Front:
    """Stands before a registry: writes down what is asked, and answers some of it as a test says.

    Parameters
    ----------
    behind : str
        Host and port of the registry.
    answer : callable, optional
        Told each request; True where it has answered it itself.
    rate_bytes_s : int, optional
        How fast it sends.
    """

    behind: str
    answer: Callable[[BaseHTTPRequestHandler], bool] = lambda request: False
    rate_bytes_s: int | None = None
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = _serve(self._handle)
        self.port: int = self._server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def blobs(self) -> list[Asked]:
        """Return the requests for bytes, those that only look for the address left out."""
        return [each for each in self.asked if "/blobs/" in each.path and each.range != "bytes=0-0"]

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        headers = request.headers
        asked = [headers.get(name) for name in ("Range", "Authorization", "Content-Range")]
        self.asked.append(Asked(request.command, request.path, *asked))
        if not self.answer(request):
            forward(request, self.behind, rate_bytes_s=self.rate_bytes_s)


def forward(
    request: BaseHTTPRequestHandler,
    behind: str,
    *,
    path: str | None = None,
    change: Callable[[bytes], bytes] = lambda data: data,
    cut: int | None = None,
    rate_bytes_s: int | None = None,
    with_login: bool = True,
) -> None:
    """Answer a request as the registry does, with its bytes changed, cut off or slowed down."""
    connection = http.client.HTTPConnection(behind, timeout=30)
    wanted = {name: value for name, value in request.headers.items() if name.lower() != "authorization" or with_login}
    body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    connection.request(request.command, path or request.path, body=body, headers=wanted)
    answer = connection.getresponse()
    request.send_response(answer.status)
    for name, value in answer.getheaders():
        if name.lower() not in {"date", "server", "connection"}:
            request.send_header(name, value)
    request.send_header("Connection", "close")
    request.end_headers()
    sent = 0
    with contextlib.suppress(OSError):
        while data := answer.read(_CHUNK):
            data = change(data)[: None if cut is None else max(0, cut - sent)]
            request.wfile.write(data)
            sent += len(data)
            if rate_bytes_s is not None:
                time.sleep(len(data) / rate_bytes_s)
            if cut is not None and sent >= cut:
                break
    request.close_connection = True
    connection.close()


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


answer_with = _answer


def _serve(handle: Callable[[BaseHTTPRequestHandler], None]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                handle(self)

        do_HEAD = do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
