"""Small real wheels of a torch set, and a package index that serves them on loopback, with faults as switches."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from packaging.requirements import Requirement

from provisioner.core.events import Events, ignore
from provisioner.files.download.limiter import RateLimiter
from provisioner.files.download.transfer import Connections, RangeFetcher
from provisioner.files.download.wheel_cache import WheelCache

_WHEEL = "application/octet-stream"
CONSOLE = "def main():\n    import sys\n    print(sys.prefix)\n"


@dataclass(frozen=True, kw_only=True)
class Toy:
    """What a wheel is to be.  The version in the file name and the one inside may differ: that is a fault."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    inner_version: str | None = None  # METADATA's; the file name's where None
    built_version: str | None = None  # version.py's; METADATA's where None
    cuda: str | None = None  # of version.py
    padding: int = 0  # incompressible bytes, to make it large
    has_script: bool = False
    extras: tuple[str, ...] = ()  # that its requirements name: 'x; extra == "device-gfx1100"'

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def metadata(self) -> bytes:
        version = self.inner_version or self.version
        lines = ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {each}" for each in self.extras]
        lines += [f"Requires-Dist: {each}" for each in self.requires]
        return ("\n".join(lines) + "\n").encode()

    def content(self) -> bytes:
        """The wheel's bytes; the same for the same toy."""
        version = self.inner_version or self.version
        info = f"{self.name}-{version}.dist-info"
        built = self.built_version or version
        module = f"__version__ = {built!r}\ncuda = {self.cuda!r}\n"
        files = {
            f"{self.name}/__init__.py": f"from {self.name}.version import __version__\n{CONSOLE}".encode(),
            f"{self.name}/version.py": module.encode(),
            f"{info}/METADATA": self.metadata,
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: toys\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        if self.has_script:
            files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{self.name}-where = {self.name}:main\n".encode()
        if self.padding:
            files[f"{self.name}/padding.bin"] = _noise(self.padding)
        record = "".join(f"{path},sha256={_digest64(data)},{len(data)}\n" for path, data in files.items())
        files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
        stream = BytesIO()
        with zipfile.ZipFile(stream, "w") as wheel:
            for path, data in files.items():
                wheel.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), data)
        return stream.getvalue()


_BACKEND = """
import base64, hashlib, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "NAME-VERSION-py3-none-any.whl"
    info = "NAME-VERSION.dist-info"
    files = {"NAME/__init__.py": "", f"{info}/METADATA": META, f"{info}/WHEEL": WHEEL}
    record = "".join(f"{path},sha256={digest(text)},{len(text)}\\n" for path, text in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\\n"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name

def digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()

WHEEL = "Wheel-Version: 1.0\\nGenerator: toys\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
META = PKG_INFO
"""


@dataclass(frozen=True, kw_only=True)
class Source(Toy):
    """A source archive that pip builds a wheel from, with a backend of its own."""

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}.tar.gz"

    def content(self) -> bytes:
        """The archive's bytes; they differ from one making to the next."""
        project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        backend = _BACKEND.replace("NAME", self.name).replace("VERSION", self.version)
        backend = backend.replace("PKG_INFO", repr(self.metadata.decode()))
        files = {"PKG-INFO": self.metadata, "pyproject.toml": project.encode(), "backend.py": backend.encode()}
        stream = BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for path, data in files.items():
                member = tarfile.TarInfo(f"{self.name}-{self.version}/{path}")
                member.size = len(data)
                archive.addfile(member, BytesIO(data))
        return stream.getvalue()


def _noise(size: int) -> bytes:
    block = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(2048))
    return (block * (size // len(block) + 1))[:size]


def _digest64(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@dataclass(frozen=True, kw_only=True)
class Copied(Toy):
    """A wheel made again out of an installed distribution: the real one, where a test needs it."""

    folder: Path

    def content(self) -> bytes:
        stream = BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
            for path in sorted(self.folder.glob(f"{self.name}*/**/*")):
                inside = path.relative_to(self.folder)
                is_ours = inside.parts[0] in (self.name, f"{self.name}-{self.version}.dist-info")
                if is_ours and path.is_file() and path.suffix != ".pyc":
                    wheel.writestr(zipfile.ZipInfo(inside.as_posix(), (2026, 1, 1, 0, 0, 0)), path.read_bytes())
        return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class Installed(Toy):
    """A wheel made again out of the files that an installed distribution lists, whatever its modules are called."""

    def content(self) -> bytes:
        stream = BytesIO()
        found = metadata.distribution(self.name)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
            for path in found.files or ():
                if ".." not in path.parts and path.suffix != ".pyc":
                    data = Path(str(found.locate_file(path))).read_bytes()
                    wheel.writestr(zipfile.ZipInfo(path.as_posix(), (2026, 1, 1, 0, 0, 0)), data)
        return stream.getvalue()


def own_packages(locked: Path) -> list[Toy]:
    """Return what klein-setup itself runs with, as it is installed here, for this Python and system."""
    lines = (line.partition(" \\")[0] for line in locked.read_text(encoding="utf-8").splitlines() if "==" in line)
    wanted = [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate()]
    return [Installed(name=each.name, version=metadata.version(each.name)) for each in wanted]


def own_pip() -> Toy:
    """Return the pip of the running interpreter as a wheel."""
    found = metadata.distribution("pip")
    return Copied(name="pip", version=found.version, folder=Path(str(found.locate_file(""))))


def torch_set(
    tag: str | None, torch: str = "2.14.1", vision: str = "0.29.1", audio: str = "2.11.0", *, padding: int = 0
) -> list[Toy]:
    """Return the three with one tag, and what they depend on."""
    local = f"+{tag}" if tag else ""
    cuda = f"{tag[2:-1]}.{tag[-1]}" if tag and tag.startswith("cu") else None
    return [
        Toy(
            name="torch",
            version=torch + local,
            requires=("sympy", "triton==3.6.0"),
            cuda=cuda,
            padding=padding,
            has_script=True,
        ),
        Toy(name="torchvision", version=vision + local, requires=(f"torch=={torch}",)),
        Toy(name="torchaudio", version=audio + local),
        Toy(name="triton", version="3.6.0"),
        Toy(name="sympy", version="1.14.0"),
    ]


@lru_cache(maxsize=64)
def content_of(toy: Toy) -> bytes:
    """Return a wheel's bytes, made once."""
    return toy.content()


@dataclass
class Faults:
    """What goes wrong, for every request until it is switched off."""

    is_gone: bool = False  # every page is 404
    is_refused: bool = False  # 401
    is_broken: bool = False  # 503
    no_ranges: bool = False  # every wheel comes whole, whatever was asked for
    no_sizes: bool = False  # and without its length
    without_files: set[str] = field(default_factory=set)  # file names that are listed and not there
    logins: dict[str, str] = field(default_factory=dict)  # file names that want this ``Authorization``
    without_metadata: bool = False  # no PEP 658
    without_hashes: bool = False  # pages name no SHA-256
    cut_after: dict[str, int] = field(default_factory=dict)  # file name: bytes before the connection drops
    wrong_bytes: set[str] = field(default_factory=set)  # file names whose last byte differs
    bytes_per_s: float | None = None


class ToyIndex:
    """A package index on loopback: PEP 503 as HTML, PEP 691 as JSON, PEP 658 metadata beside the wheels.

    Parameters
    ----------
    toys : sequence of Toy
        What it offers.
    """

    def __init__(self, toys: Sequence[Toy]) -> None:
        self.toys = list(toys)
        self.faults = Faults()
        self.requests: list[str] = []
        self.sent: dict[str, int] = {}  # bytes of each wheel that went out
        self.asked: list[tuple[str, str | None]] = []  # path and ``Authorization`` of each request
        self.redirect: str | None = None  # where the wheels really are: "http://localhost:1234"
        self.query = ""  # of the wheels' addresses: "?Signature=..."
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """What goes into ``--index-url``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/simple"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fetched(self, suffix: str = ".whl") -> list[str]:
        """Return the names of the files that were asked for, each once, in order."""
        names = [unquote(path).rpartition("/")[2] for path in self.requests if path.endswith(suffix)]
        return list(dict.fromkeys(names))

    # --- answering ---------------------------------------------------------------------------------

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        index = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                index.requests.append(self.path)
                index.asked.append((self.path, self.headers.get("Authorization")))
                index._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        for is_on, status in ((self.faults.is_gone, 404), (self.faults.is_refused, 401), (self.faults.is_broken, 503)):
            if is_on:
                return self._send(request, status, b"no", "text/plain")
        path, _, query = request.path.partition("?")
        path = unquote(path) + (".metadata" if query.endswith(".metadata") else "")  # pip puts it at the very end
        if path.startswith("/simple/"):
            return self._send_project(request, path.strip("/").rpartition("/")[2])  # /simple/torch, /simple/cu130/torch
        name = path.rpartition("/")[2]
        for toy in self.toys:
            if name == toy.file_name:
                return self._send_wheel(request, toy)
            if name == f"{toy.file_name}.metadata" and not self.faults.without_metadata:
                return self._send(request, 200, toy.metadata, "text/plain")
        return self._send(request, 404, b"no such file", "text/plain")

    def _send_project(self, request: BaseHTTPRequestHandler, project: str) -> None:
        toys = [toy for toy in self.toys if re.sub(r"[-_.]+", "-", toy.name).lower() == project]
        if not toys:
            return self._send(request, 404, b"no such project", "text/plain")
        if "application/vnd.pypi.simple.v1+json" in request.headers.get("Accept", ""):
            page = {"meta": {"api-version": "1.0"}, "name": project, "files": [self._entry(toy) for toy in toys]}
            return self._send(request, 200, json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
        lines = "".join(self._anchor(toy) for toy in toys)
        return self._send(request, 200, f"<!DOCTYPE html><body>{lines}</body>".encode(), "text/html")

    def _entry(self, toy: Toy) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "filename": toy.file_name,
            "url": f"/files/{quote(toy.file_name)}{self.query}",
            "hashes": {} if self.faults.without_hashes else {"sha256": hashlib.sha256(content_of(toy)).hexdigest()},
        }
        if not self.faults.without_metadata:
            digest = {"sha256": hashlib.sha256(toy.metadata).hexdigest()}
            entry |= {"core-metadata": digest, "data-dist-info-metadata": digest}  # as the default index spells them
        return entry

    def _anchor(self, toy: Toy) -> str:
        entry = self._entry(toy)
        digest = hashlib.sha256(toy.metadata).hexdigest()
        attribute = "" if self.faults.without_metadata else f' data-core-metadata="sha256={digest}"'
        fragment = "".join(f"#{name}={value}" for name, value in entry["hashes"].items())
        return f'<a href="{entry["url"]}{fragment}"{attribute}>{toy.file_name}</a><br>'

    def _send_wheel(self, request: BaseHTTPRequestHandler, toy: Toy) -> None:
        content, name = content_of(toy), toy.file_name
        if self.redirect is not None:
            return self._send(request, 302, b"", "text/plain", more={"Location": self.redirect + request.path})
        if name in self.faults.without_files:
            return self._send(request, 404, b"no such file", "text/plain")
        if self.faults.logins.get(name) not in (None, request.headers.get("Authorization")):
            return self._send(request, 401, b"who?", "text/plain", more={"WWW-Authenticate": "Basic"})
        if name in self.faults.wrong_bytes:
            content = content[:-1] + bytes([content[-1] ^ 1])
        limit = self.faults.cut_after.get(name)
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", request.headers.get("Range", ""))
        if asked is None or self.faults.no_ranges or self.faults.no_sizes:
            return self._send(request, 200, content, _WHEEL, limit=limit, name=name)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        left = None if limit is None else max(0, limit - first)
        return self._send(request, 206, content[first : last + 1], _WHEEL, limit=left, name=name, more=span)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        kind: str,
        *,
        limit: int | None = None,
        name: str = "",
        more: Mapping[str, str] | None = None,
    ) -> None:
        is_endless = self.faults.no_sizes and kind == _WHEEL
        request.send_response(status)
        request.send_header("Content-Type", kind)
        for header, value in (more or {}).items():
            request.send_header(header, value)
        request.send_header(*(("Connection", "close") if is_endless else ("Content-Length", str(len(body)))))
        request.end_headers()
        request.close_connection = request.close_connection or is_endless
        self._write(request, body if limit is None else body[:limit], kind, name)
        if limit is not None:
            request.close_connection = True

    def _write(self, request: BaseHTTPRequestHandler, body: bytes, kind: str, name: str) -> None:
        try:
            for piece in _pieces(body):
                request.wfile.write(piece)
                self.sent[name] = self.sent.get(name, 0) + len(piece)
                if self.faults.bytes_per_s is not None and kind == _WHEEL:
                    time.sleep(len(piece) / self.faults.bytes_per_s)
            request.wfile.flush()
        except OSError:
            request.close_connection = True  # the client went away


def _pieces(body: bytes, size: int = 64 * 1024) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@contextmanager
def serving(toys: Sequence[Toy]) -> Iterator[ToyIndex]:
    """Serve toys while the block runs."""
    index = ToyIndex(toys)
    try:
        yield index
    finally:
        index.close()


def wheel_cache(
    folder: Path,
    *,
    events: Events = ignore,
    is_offline: bool = False,
    limiter: RateLimiter | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> WheelCache:
    """Return a cache of wheels in a folder, over the real engine."""
    return WheelCache(
        folder=lambda: folder / "wheels",
        fetcher=lambda credentials, cancelled: RangeFetcher(
            credentials=credentials, cancelled=cancelled, limiter=limiter, connections=Connections(2), notice=notice
        ),
        events=events,
        is_offline=is_offline,
        notice=notice,
    )
