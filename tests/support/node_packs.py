"""Packs of custom nodes on 127.0.0.1: repositories that git fetches, archives, and what the registry says of them."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.setup_fixture import git, write_tree

FILES = {"__init__.py": "NODE_CLASS_MAPPINGS = {}\n", "nodes/one.py": "ONE = 1\n"}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Packs:
    """What a web server of this machine serves.

    Parameters
    ----------
    url : str
        Its address: GitHub's and the registry's in one.
    folder : Path
        What it serves.
    """

    url: str
    folder: Path

    def repository(self, name: str, files: Mapping[str, str] = FILES) -> str:
        """Publish "owner/repository" with one commit; return the commit."""
        work = self.folder.parent / "work" / name
        write_tree(work, files)
        git(work, "init", "-q", "-b", "main")
        git(work, "add", "-A", "-f")
        git(work, "commit", "-q", "-m", "first")
        bare = self.folder / name
        bare.parent.mkdir(parents=True, exist_ok=True)
        git(work, "clone", "-q", "--bare", str(work), str(bare))
        git(bare, "update-server-info")
        return git(work, "rev-parse", "HEAD")

    def archive(self, name: str, files: Mapping[str, str] = FILES) -> str:
        """Publish an archive as the registry has them, without a folder around it; return its SHA-256."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as packed:
            for path, text in files.items():
                packed.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), text)
        (self.folder / name).write_bytes(stream.getvalue())
        return hashlib.sha256(stream.getvalue()).hexdigest()

    def answer(self, path: str, value: object) -> None:
        """Publish what the registry answers for a path."""
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")

    def version(self, name: str, version: str, files: Mapping[str, str] = FILES, **more: object) -> str:
        """Publish a version of a pack in the registry; return the SHA-256 of its archive."""
        archive = f"{name}-{version}.zip"
        found = {"version": version, "status": "NodeVersionStatusActive", "downloadUrl": f"{self.url}/{archive}"}
        self.answer(f"nodes/{name}/versions/{version}", found | more)
        return self.archive(archive, files)

    def git_entry(self, name: str, commit: str) -> dict[str, object]:
        """Return how a manifest pins a pack by its commit."""
        key = name.rpartition("/")[2]
        read = {"read_from": "the workflow", "read_on": "2026-11-27"}
        return {"id": key, "repository": f"{self.url}/{name}", "commit": commit, **read}

    def archive_entry(self, name: str, version: str, sha256: str) -> dict[str, object]:
        """Return how a manifest pins a pack by its archive."""
        file = f"{name}-{version}.zip"
        where = {"archive": f"{self.url}/{file}", "size": (self.folder / file).stat().st_size, "sha256": sha256}
        return {"id": name, "version": version, **where, "read_from": "the registry", "read_on": "2026-11-27"}


@contextmanager
def serving_packs(folder: Path) -> Iterator[Packs]:
    """Serve a folder while the block runs."""
    folder.mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield Packs(f"http://127.0.0.1:{server.server_port}", folder)
    finally:
        server.shutdown()
        server.server_close()
