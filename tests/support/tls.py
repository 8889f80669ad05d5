"""A certificate authority, TLS in front of a server on loopback, a proxy with or without a login; all of them real."""

from __future__ import annotations

import base64
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest


class Authority:
    """A certificate authority that nobody has heard of; it needs the ``openssl`` command."""

    def __init__(self, folder: Path, name: str = "Test Authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command to make certificates")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.certificate, self._key = folder, folder / "ca.pem", folder / "ca.key"
        self._issued = 0
        made = ["-keyout", str(self._key), "-out", str(self.certificate)]
        _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", *made)

    def issue(self, *names: str, from_day: str = "", to_day: str = "") -> Path:
        """Return a PEM file with a key and a certificate for names and addresses; days as ``20250101000000Z``."""
        self._issued += 1
        here = self.folder / f"issued-{self._issued}"
        (here / "new").mkdir(parents=True)
        (here / "index.txt").write_text("")
        (here / "serial").write_text(f"{self._issued:02x}\n")
        listed = ",".join(f"{'IP' if each[:1].isdigit() else 'DNS'}:{each}" for each in names)
        (here / "ca.conf").write_text(
            f"[ca]\ndefault_ca = our\n[our]\nnew_certs_dir = {here / 'new'}\ndatabase = {here / 'index.txt'}\n"
            f"serial = {here / 'serial'}\ndefault_md = sha256\ndefault_days = 2\npolicy = any\nunique_subject = no\n"
            f"[any]\ncommonName = supplied\n[names]\nsubjectAltName = {listed}\nbasicConstraints = CA:FALSE\n"
        )
        key, asked, signed = here / "key.pem", here / "request.pem", here / "signed.pem"
        subject = ["-subj", f"/CN={names[0]}", "-keyout", str(key), "-out", str(asked)]
        _openssl("req", "-newkey", "rsa:2048", "-nodes", *subject)
        days = [*(["-startdate", from_day] if from_day else []), *(["-enddate", to_day] if to_day else [])]
        words = ["-batch", "-notext", "-config", str(here / "ca.conf"), "-extensions", "names", *days]
        words += ["-cert", str(self.certificate), "-keyfile", str(self._key), "-in", str(asked), "-out", str(signed)]
        _openssl("ca", *words)
        both = here / "both.pem"
        both.write_text(key.read_text() + signed.read_text())
        return both

    def as_system_store(self) -> Path:
        """Return a folder as OpenSSL's ``SSL_CERT_DIR`` names the system's store on Linux."""
        folder = self.folder / "store"
        folder.mkdir()
        hashed = _openssl("x509", "-noout", "-hash", "-in", str(self.certificate)).strip()
        shutil.copy(self.certificate, folder / f"{hashed}.0")
        return folder


def _openssl(*words: str) -> str:
    done = subprocess.run(["openssl", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class _Listener:
    """Takes connections on loopback, a thread for each."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._guard, args=(client,), daemon=True).start()

    def _guard(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            self.serve(client)

    def serve(self, client: socket.socket) -> None:
        raise NotImplementedError


class TlsFront(_Listener):
    """TLS in front of a plain server: what arrives is handed on byte for byte."""

    def __init__(self, behind: str, certificate: Path) -> None:
        self._behind = urlsplit(behind)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        super().__init__()
        self.endpoint = f"https://localhost:{self.port}"

    def serve(self, client: socket.socket) -> None:
        with (
            self._context.wrap_socket(client, server_side=True) as secure,
            socket.create_connection((self._behind.hostname or "", self._behind.port or 0)) as plain,
        ):
            _join(secure, plain)


class Proxy(_Listener):
    """An HTTP proxy that knows some names, which no resolver does, and may ask who is there.

    Parameters
    ----------
    ports : mapping
        From a name to the port on loopback that it stands for.
    login : str, optional
        ``"user:password"``.
    refuses : callable, optional
        Told a host; whether the proxy lets nothing through to it.
    """

    def __init__(
        self, ports: Mapping[str, int], *, login: str | None = None, refuses: Callable[[str], bool] = lambda host: False
    ) -> None:
        self._ports, self._login, self._refuses = ports, login, refuses
        self.asked: list[tuple[str, str]] = []  # method and host:port
        self.logins: list[str | None] = []  # as they came, one for each request
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"

    def url_of(self, user: str, password: str) -> str:
        return f"http://{user}:{password}@127.0.0.1:{self.port}"

    def serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(65536)
            if not piece:
                return
            head += piece
        lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines[1:]}
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = parts.hostname or "", parts.port or 80
        self.asked.append((method, f"{host}:{port}"))
        self.logins.append(headers.get("proxy-authorization"))
        if self._login is not None:
            wanted = "Basic " + base64.b64encode(self._login.encode()).decode()
            if headers.get("proxy-authorization") != wanted:
                answer = '407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="test"'
                client.sendall(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                return
        if self._refuses(host):
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self._ports.get(host, port))) as server:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                kept = [line for line in lines[1:] if not line.lower().startswith(("proxy-", "connection:"))]
                server.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode())
            _join(client, server)


def _join(first: socket.socket, second: socket.socket) -> None:
    back = threading.Thread(target=_pump, args=(second, first), daemon=True)
    back.start()
    _pump(first, second)
    back.join(10)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
