"""Secrets that can be recognised wherever they turn up: as they are, percent-encoded, and in base64.

`Watcher` looks for them in streams and files, and in the arguments and variables of every program that was started:
`SPY` is a script that runs another one and writes those down, as Python's audit hooks report them; it can run code of
the test in the place of a command, or after it.
"""

from __future__ import annotations

import base64
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

SPY = '''"""Runs a script; writes down every program that it starts, and runs the code of KLEIN_SPY_CODE."""
import json, os, runpy, sys

LOG, CODE = os.environ.pop("KLEIN_SPY_LOG"), os.environ.pop("KLEIN_SPY_CODE", None)


def write_down(event, values):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system"):
        _, args, *rest = (None, *values) if event == "os.system" else values
        env = rest[-1] if rest and rest[-1] is not None else os.environ
        words = [args] if isinstance(args, (str, bytes)) else args
        entry = {"args": [os.fsdecode(each) for each in words]}
        entry["env"] = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
        with open(LOG, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\\n")


sys.addaudithook(write_down)
if CODE is not None:
    from provisioner.cli import main

    def spied(work, moment, text):
        def run(arguments, ui, cancelled):
            if moment == "after":
                work(arguments, ui, cancelled)
            exec(text)
        return run

    moment, _, text = CODE.partition(":")
    main._RUNS.update({name: spied(work, moment, text) for name, work in main._RUNS.items()})
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
'''


class Started(TypedDict):
    """A program that was started."""

    args: list[str]
    env: dict[str, str]


def spellings(secret: str) -> tuple[bytes, ...]:
    """Return how a secret may be spelled: plain, percent-encoded, and within a longer text in base64."""
    data = secret.encode()
    found = {data, quote(secret, safe="").encode(), quote(secret, safe="").lower().encode()}
    for shift in range(3):  # where the secret begins among the three bytes that become four letters
        whole = base64.b64encode(b"\0" * shift + data)
        inner = whole[(0, 2, 3)[shift] : (shift + len(data)) * 8 // 6]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return tuple(sorted(found))


def content_of(path: Path) -> bytes:
    """Return what a file holds; of a zip file, what the files in it hold."""
    if path.suffix != ".zip":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"\0".join(archive.read(each) for each in archive.infolist())


class Watcher:
    """Looks for marks.

    Parameters
    ----------
    folder : Path
        Everything in it is looked at, however it got there.
    secrets : mapping of str to str
        Marks by the name they are reported under.
    """

    def __init__(self, folder: Path, secrets: Mapping[str, str]) -> None:
        self.folder = folder
        self.secrets = dict(secrets)
        self.log = folder / "spy" / "started.jsonl"
        self.script = self.log.with_name("spy.py")
        self.own: set[Path] = {self.log}  # files of the test that hold marks on purpose
        self.started: list[Started] = []  # every program until now
        self._needles = {name: spellings(secret) for name, secret in secrets.items()}
        self._beginnings = {each[:6] for needles in self._needles.values() for each in needles}  # most are the same
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self.log.parent.mkdir()
        self.script.write_text(SPY, encoding="utf-8")

    def names_in(self, data: bytes) -> list[str]:
        """Return the names of the marks in some bytes."""
        if not any(each in data for each in self._beginnings):
            return []
        return [name for name, needles in self._needles.items() if any(each in data for each in needles)]

    def leaks(self, streams: Mapping[str, str], may_pass: Mapping[str, Iterable[str]]) -> list[str]:
        """Return every place where a mark is now, since the last call, and must not be.

        Parameters
        ----------
        streams : mapping of str to str
            What was printed, by the stream's name.
        may_pass : mapping of str to names
            The variables of other programs in which a mark may be, by the mark's name.
        """
        found = [f"{name} is on {stream}" for stream, text in streams.items() for name in self.names_in(text.encode())]
        found += [f"{name} is in {path}" for path in self._changed() for name in self.names_in(content_of(path))]
        for entry in self._started():
            words = "\0".join(entry["args"]).encode()
            program = Path(entry["args"][0]).name
            found += [f"{name} is in the arguments of {entry['args']}" for name in self.names_in(words)]
            found += [
                f"{name} is in the variable {variable} of {program}"
                for variable, value in entry["env"].items()
                for name in self.names_in(value.encode())
                if variable not in may_pass.get(name, ())
            ]
        return found

    def _started(self) -> Iterator[Started]:
        if self.log.exists():
            lines = self.log.read_text(encoding="utf-8").splitlines()
            self.log.unlink()
            for line in lines:
                entry: Started = json.loads(line)
                self.started.append(entry)
                yield entry

    def _changed(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                if path in self.own or path.is_symlink():
                    continue
                status = path.stat()
                stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
                if self._seen.get(path) != stamp:
                    self._seen[path] = stamp
                    yield path
