"""A small sandbox for one test: an embedded hub, a manifest, a scratch home, and the real command in a real process.

After every run the sandbox checks itself without the program's code: no wrong bytes under a final name, no token and no
signature in any output or file, no token sent to the content network.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from provisioner.rehearsal.http_server import Recorded
from provisioner.rehearsal.hub import RehearsalHub
from tests.support import warm
from tests.support.builders import KLEIN_RECIPE
from tests.support.schemas import check_output, conforming

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "org/small-klein"
MIRROR = "org/small-klein-mirror"
REVISION = "5e0a" * 10
TOKEN = "hf_" + "OnlyForThisTest" + "Qz7" * 6
CALLED = f"{sys.executable} -m provisioner"  # how a sandbox's commands name the program
"""Looks like a real one; valid at the hub, and given to every run unless a test changes it."""

MIB = 1024 * 1024
_SMALL_TEXT = 2 * MIB
_QUESTION = re.compile(rb"\[(Y/n|y/N)[^\]]*\] $|Password of [^\n]*: $")


@functools.lru_cache(maxsize=16)
def tensors(size: int, seed: int = 0) -> bytes:
    """Return a well-formed safetensors file of exactly `size` bytes; other seeds give other bytes."""
    entry = {"weight": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    head = json.dumps(entry).encode().ljust(120)
    payload = size - 8 - len(head)
    entry["weight"].update(shape=[payload], data_offsets=[0, payload])
    head = json.dumps(entry).encode().ljust(120)
    if size < 8 + 120 or len(head) != 120:
        message = f"{size} bytes are not enough, or too many"
        raise ValueError(message)
    return struct.pack("<Q", len(head)) + head + random.Random(f"{seed}:{size}").randbytes(payload)


def sha256_of(data: bytes | Path) -> str:
    """Return the SHA-256 of bytes, or of a file's bytes, in hex."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    with data.open("rb") as stream:
        while piece := stream.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


def wait_until(is_so: Callable[[], bool], *, what: str, timeout_s: float = 20.0) -> None:
    """Wait until `is_so` returns True; fail the test when it takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for this in vain: {what}"
        time.sleep(0.01)


RECIPE = {key: value for key, value in asdict(KLEIN_RECIPE).items() if value is not None}
"""How a test image is made of the three files of a set, as a manifest says it."""

DRAWN = {"recipe": RECIPE, "template": "image_flux2_klein_text_to_image"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One file the manifest asks for."""

    data: bytes = field(repr=False)
    name: str = "small.safetensors"
    folder: str = "vae"
    repositories: tuple[str, ...] = (REPOSITORY,)
    is_gated: bool = False

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 the manifest names."""
        return sha256_of(self.data)

    @property
    def filename(self) -> str:
        """Path in the repository."""
        return f"split_files/{self.folder}/{self.name}"

    def artifact(self) -> dict[str, object]:
        """Return the entry of the manifest."""
        return {
            "id": Path(self.name).stem.replace("_", "-").replace(".", "-"),
            "role": "vae" if self.folder == "vae" else "text_encoder",
            "name": self.name,
            "folder": self.folder,
            "size": len(self.data),
            "sha256": self.sha256,
            "is_gated": self.is_gated,
            "sources": [
                {"repo_id": repo_id, "revision": REVISION, "filename": self.filename} for repo_id in self.repositories
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The output and exit status of a run."""

    arguments: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        """The one document on stdout."""
        return cast("dict[str, Any]", json.loads(self.stdout))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The objects of ``--json=events``."""
        return [cast("dict[str, Any]", json.loads(line)) for line in self.stdout.splitlines()]

    @property
    def said(self) -> str:
        """Both streams with white space reduced to single blanks, so that wrapped sentences can be found."""
        return " ".join(f"{self.stdout} {self.stderr}".split())

    @property
    def codes(self) -> list[str]:
        """The codes of the errors in the document."""
        return [error["code"] for error in self.json["errors"]]


_EACH = """
import json, os, sys, time
from provisioner.cli.main import main

for number, arguments in enumerate(json.load(sys.stdin)):
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"each-{number}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    began = time.monotonic()
    status = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"each-{number}.json", "w") as ended:
        json.dump([status, time.monotonic() - began], ended)
"""


class Running:
    """A run in progress, or one that has ended and was not yet waited for."""

    def __init__(self, sandbox: Sandbox, arguments: tuple[str, ...], environ: Mapping[str, str], number: int) -> None:
        self.arguments = arguments
        self._sandbox = sandbox
        self._streams = (sandbox.folder / f"run-{number}.out", sandbox.folder / f"run-{number}.err")
        self._began = time.monotonic()
        with self._streams[0].open("wb") as out, self._streams[1].open("wb") as err:
            self.process = warm.start(
                ["-m", "provisioner", *arguments], cwd=sandbox.folder, env=environ, stdout=out, stderr=err
            )
        self._ended_at = 0.0
        self._watch = threading.Thread(target=self._note_end, daemon=True)
        self._watch.start()

    def _note_end(self) -> None:
        self.process.wait()
        self._ended_at = time.monotonic()

    def kill(self) -> None:
        """End it with SIGKILL (on Windows: TerminateProcess)."""
        self.process.kill()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    @property
    def stderr_so_far(self) -> str:
        """What it has said on stderr."""
        return self._streams[1].read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        """End it if it still runs."""
        self.process.kill()
        self._watch.join()

    def wait(self, timeout: float = 60.0) -> Completed:
        """Wait for its end and check the sandbox's invariant."""
        try:
            returncode = self.process.wait(timeout)
        finally:
            self.end()
        completed = Completed(
            arguments=self.arguments,
            returncode=returncode,
            stdout=self._streams[0].read_text(encoding="utf-8", errors="surrogateescape"),
            stderr=self._streams[1].read_text(encoding="utf-8", errors="surrogateescape"),
            seconds=self._ended_at - self._began,
        )
        self._sandbox.check(completed)
        return completed


class Sandbox:
    """Everything one test needs; ask for it with the fixture ``sandbox``.

    Parameters
    ----------
    folder : Path
        Scratch folder.
    hub : RehearsalHub
        The Hub of this sandbox.
    """

    def __init__(self, folder: Path, hub: RehearsalHub) -> None:
        self.folder = folder
        self.hub = hub
        self.tree = folder / "ComfyUI"
        self.home = folder / "home"
        self.cache = self.home / "hf" / "hub"
        self.manifest = folder / "small.yaml"
        self.files: tuple[Wanted, ...] = ()
        self.environ = self._environment()
        self._planted: dict[Path, set[str]] = {}
        self._secret_files: set[Path] = set()
        self._running: list[Running] = []
        self._seen: dict[str, tuple[int, ...]] = {}  # each text that was looked at, as it was then
        self.home.mkdir(parents=True)

    @property
    def state(self) -> Path:
        """The folder of the program's own state."""
        return self.home / ("local" if os.name == "nt" else "state") / "klein-setup"

    def close(self) -> None:
        """End what is still running."""
        for running in self._running:
            running.end()

    def _environment(self) -> dict[str, str]:
        """Return the environment of a user with an account at this hub and nothing else."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().endswith("_PROXY") and not name.startswith(("HF_", "XDG_", "LC_", "PYTHON"))
        }
        home = str(self.home)
        return kept | {
            "PYTHONPATH": str(ROOT),
            "HOME": home,
            "USERPROFILE": home,
            "APPDATA": str(self.home / "roaming"),
            "LOCALAPPDATA": str(self.home / "local"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "HF_HOME": str(self.home / "hf"),
            "HF_TOKEN": TOKEN,
            "LANG": "C.UTF-8",
            "NO_PROXY": "127.0.0.1",
        }

    # --- files --------------------------------------------------------------------------------

    def publish(
        self,
        *files: Wanted | bytes,
        is_direct: bool = False,
        is_gated: bool = False,
        is_private: bool = False,
        tokens: Sequence[str] = (TOKEN,),
    ) -> tuple[Wanted, ...]:
        """Put files on the hub and write the manifest that names them; bytes stand for one file in ``vae``."""
        self.files = tuple(each if isinstance(each, Wanted) else Wanted(data=each) for each in files)
        for repo_id in sorted({repo_id for each in self.files for repo_id in each.repositories}):
            held = [each for each in self.files if repo_id in each.repositories]
            self.hub.add_repository(
                repo_id,
                REVISION,
                {each.filename: each.data for each in held},
                digests={each.filename: each.sha256 for each in held},
                is_direct=is_direct,
                is_gated=is_gated,
                is_private=is_private,
                tokens=tokens,
            )
        self.write_manifest()
        return self.files

    def write_manifest(self, **changes: object) -> None:
        """Write the manifest anew; `changes` replace top-level keys."""
        entries = [each.artifact() for each in self.files]
        roles = {each["role"] for each in entries}
        document: dict[str, object] = {
            "schema_version": 1,
            "id": "small",
            "title": "Small files for a test",
            "is_stand_in": True,  # the stand-in for ComfyUI draws noise
            "licence": {
                "name": "CC0-1.0",
                "url": "https://creativecommons.org/publicdomain/zero/1.0/",
                "is_commercial_use_allowed": True,
            },
            "default_set": "tree",
            "sets": [
                {
                    "id": "tree",
                    "title": "All of them",
                    "target": "comfyui",
                    "artifacts": [each["id"] for each in entries],
                    **(DRAWN if {"diffusion_model", "text_encoder", "vae"} <= roles else {}),
                }
            ],
            "artifacts": entries,
        }
        self.manifest.write_text(json.dumps(document | changes, indent=1), encoding="utf-8")  # JSON is YAML

    def path(self, wanted: Wanted | None = None) -> Path:
        """Return a file's final name in the tree; of the first file by default."""
        each = wanted or self.files[0]
        return self.tree / "models" / each.folder / each.name

    def part(self, wanted: Wanted | None = None) -> Path:
        """Return where a file grows."""
        path = self.path(wanted)
        return path.with_name(path.name + ".part")

    def log(self, wanted: Wanted | None = None) -> Path:
        """Return the growing file's log."""
        path = self.path(wanted)
        return path.with_name(path.name + ".part.jsonl")

    def blocks_in_log(self, wanted: Wanted | None = None) -> int:
        """Return how many blocks the log says are complete."""
        try:
            return max(0, len(self.log(wanted).read_bytes().splitlines()) - 1)
        except FileNotFoundError:
            return 0

    def bytes_in_log(self, wanted: Wanted | None = None) -> int:
        """Return the bytes of the blocks that the log says are complete."""
        each = wanted or self.files[0]
        try:
            lines = self.log(each).read_text(encoding="utf-8").splitlines()[1:]
        except FileNotFoundError:
            return 0
        indices = [json.loads(line)["block"] for line in lines if line.endswith("}")]
        return sum(min(BLOCK_SIZE, len(each.data) - index * BLOCK_SIZE) for index in indices)

    def plant(self, path: Path, data: bytes) -> Path:
        """Put a user's file somewhere; the invariant then expects these bytes, or the right ones."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._planted.setdefault(path, set()).add(sha256_of(data))
        return path

    def expect(self, path: Path, data: bytes) -> None:
        """Let the invariant accept these bytes, too, as the user's own at that path."""
        self._planted.setdefault(path, set()).add(sha256_of(data))

    def plant_token(self, path: Path, token: str = TOKEN) -> None:
        """Put a token file somewhere, as ``hf auth login`` does."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(token + "\n", encoding="utf-8")
        self._secret_files.add(path)

    def is_secret(self, *paths: Path) -> None:
        """Let the invariant accept that secrets stand in these files."""
        self._secret_files.update(paths)

    # --- the hub's record ----------------------------------------------------------------------

    def heads(self) -> list[Recorded]:
        """Return the HEAD requests that resolve a file."""
        return [each for each in self.hub.requests if each.method == "HEAD" and "/resolve/" in each.path]

    def gets(self, wanted: Wanted | None = None) -> list[Recorded]:
        """Return the requests for content."""
        gets = [each for each in self.hub.requests if each.method == "GET"]
        return [each for each in gets if wanted is None or each.filename == wanted.filename]

    def bytes_served(self, wanted: Wanted | None = None) -> int:
        """Return the bytes of content the hub has handed to its sockets."""
        self.hub.wait_until_idle()
        return sum(each.bytes_sent for each in self.gets(wanted))

    def bytes_served_so_far(self) -> int:
        """Return the same while requests are in progress."""
        return sum(each.bytes_sent for each in self.gets())

    # --- running -------------------------------------------------------------------------------

    def start(self, *arguments: str | Path, env: Mapping[str, str | None] | None = None) -> Running:
        """Start the command; ``install`` and its like get the tree, the manifest and this hub unless they are named.

        `env` changes the environment; None takes a variable away.
        """
        environ = dict(self.environ)
        for name, value in (env or {}).items():
            environ.pop(name, None)
            if value is not None:
                environ[name] = value
        running = Running(self, self.completed(arguments), environ, len(self._running) + 1)
        self._running.append(running)
        return running

    def run(
        self, *arguments: str | Path, timeout: float = 60.0, env: Mapping[str, str | None] | None = None
    ) -> Completed:
        """Run the command to its end."""
        return self.start(*arguments, env=env).wait(timeout)

    def run_each(self, commands: Sequence[Sequence[str | Path]]) -> list[Completed]:
        """Run commands one after the other in one process, which for a table of them is quicker than one each."""
        given = [self.completed(each) for each in commands]
        subprocess.run(
            [sys.executable, "-c", _EACH],
            input=json.dumps(given),
            cwd=self.folder,
            env=self.environ,
            text=True,
            timeout=60,
            check=True,
        )
        found = []
        for number, arguments in enumerate(given):
            out, err, ended = (self.folder / f"each-{number}.{name}" for name in ("out", "err", "json"))
            status, seconds = json.loads(ended.read_text(encoding="utf-8"))
            found.append(
                Completed(
                    arguments=arguments,
                    returncode=status,
                    stdout=out.read_text(encoding="utf-8"),
                    stderr=err.read_text(encoding="utf-8"),
                    seconds=seconds,
                )
            )
            self.check(found[-1])
        return found

    def answering(self, *arguments: str | Path, answers: Sequence[str]) -> Completed:
        """Run a command on a terminal, giving one answer after the other; everything it says is its ``stdout``."""
        if sys.platform == "win32":
            pytest.skip("no pseudo-terminals here")
        import pty

        far, near = pty.openpty()
        said, left = bytearray(), list(answers)
        given = self.completed(arguments)
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "provisioner", *given],
            stdin=near,
            stdout=near,
            stderr=near,
            env=self.environ,
            cwd=self.folder,
        )
        os.close(near)

        def talk() -> None:
            while True:
                try:
                    chunk = os.read(far, 65536)
                except OSError:
                    return
                if not chunk:
                    return
                said.extend(chunk)
                if left and _QUESTION.search(said):
                    os.write(far, f"{left.pop(0)}\n".encode())

        talker = threading.Thread(target=talk, daemon=True)
        talker.start()
        try:
            code = process.wait(60)
        finally:
            process.kill()
            talker.join(10)
            os.close(far)
        text = said.decode(errors="replace").replace("\r\n", "\n")
        return Completed(arguments=given, returncode=code, stdout=text, stderr="", seconds=time.monotonic() - began)

    def kill(self, running: Running) -> None:
        """Kill a run on a hub that was slow for it; the hub is quick, idle and without memories for the next one."""
        running.kill()
        running.wait()
        self.hub.rate_bytes_s_per_connection = None
        self.hub.wait_until_idle()
        self.hub.clear_requests()

    def install(
        self, *arguments: str | Path, timeout: float = 60.0, env: Mapping[str, str | None] | None = None
    ) -> Completed:
        """Run ``install`` into this sandbox's tree."""
        return self.run("install", *arguments, timeout=timeout, env=env)

    def completed(self, arguments: Sequence[str | Path]) -> tuple[str, ...]:
        """Return arguments with the tree, the manifest and this hub, unless they name their own."""
        given = [str(each) for each in arguments]
        words = 2 if given[:1] in (["backups"], ["aside"], ["manifest"]) else 1
        targeted = {"install", "repair", "plan", "verify", "uninstall", "smoke-test", "diagnose", "manifest lock"}
        if " ".join(given[:words]) not in targeted and given[:1] not in (["backups"], ["aside"]):
            return tuple(given)
        if "--manifest" not in given and given[0] != "uninstall":  # without one it is about every manifest
            given += ["--manifest", str(self.manifest)]
        if not {"--comfyui", "--hf-cache", "--no-target"} & set(given):
            given += ["--comfyui", str(self.tree)]
        if not {"--endpoint", "--no-endpoint", "--from"} & set(given) and given[0] in {"install", "repair", "plan"}:
            given += ["--endpoint", self.hub.endpoint, "--send-token"]
        return tuple(each for each in given if each not in {"--no-target", "--no-endpoint"})

    # --- what must always be so ----------------------------------------------------------------

    def check(self, run: Completed) -> None:
        """Assert what must hold after every run, whatever was asked and whatever went wrong."""
        assert self.hub.violations == []
        check_output(run.arguments, run.stdout, run.returncode)
        for stream in (run.stdout, run.stderr):
            assert TOKEN not in stream, f"the token was shown by {run.arguments}"
            assert "Signature=" not in stream, f"a signed address was shown by {run.arguments}"
            assert "Traceback" not in stream, stream
        for path in self._changed_texts():
            text = path.read_bytes()
            assert TOKEN.encode() not in text, f"the token is in {path}"
            assert b"Signature=" not in text, f"a signed address is in {path}"
        for wanted in self.files:
            path = self.path(wanted)
            if path.is_file():
                allowed = {wanted.sha256, *self._planted.get(path, ()), *self._planted.get(path.resolve(), ())}
                assert sha256_of(path) in allowed, f"wrong bytes under the final name {path}"

    def _changed_texts(self) -> Iterator[Path]:
        """Yield every file that may hold words, all but the models themselves, and was not looked at as it is now."""
        for folder in (self.tree, self.home):
            for where, _, names in os.walk(folder):
                for path in (f"{where}{os.sep}{name}" for name in names):
                    try:
                        found = os.stat(path)  # noqa: PTH116 - thousands of them after each run
                    except OSError:
                        continue  # a link to nothing, or gone meanwhile
                    stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                    is_text = stat.S_ISREG(found.st_mode) and found.st_size <= _SMALL_TEXT
                    if is_text and self._seen.get(path) != stamp and Path(path) not in self._secret_files:
                        yield Path(path)
                        self._seen[path] = stamp

    def assert_in_place(self, *files: Wanted) -> None:
        """Assert that files are there, whole, with a receipt and without leftovers."""
        for wanted in files or self.files:
            assert sha256_of(self.path(wanted)) == wanted.sha256
            assert not self.part(wanted).exists()
            assert not self.log(wanted).exists()
            assert self.receipt()[f"{wanted.folder}/{wanted.name}"]["sha256"] == wanted.sha256

    def assert_nothing_placed(self) -> None:
        """Assert that no final name exists."""
        assert [str(self.path(each)) for each in self.files if os.path.lexists(self.path(each))] == []

    def receipt(self) -> dict[str, Any]:
        """Return the receipt's files."""
        text = (self.tree / "models" / STATE_FOLDER / "receipt.json").read_text(encoding="utf-8")
        return cast("dict[str, Any]", conforming(json.loads(text), "receipt")["files"])

    def backups(self) -> dict[str, Path]:
        """Return what is in the backups folder, by its path in the tree."""
        folder = self.tree / "models" / STATE_FOLDER / "aside"
        found = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
        return {path.relative_to(folder).as_posix().partition("/")[2]: path for path in found}

    def snapshot(self) -> dict[str, tuple[int, int, int]]:
        """Return size, mtime and inode of every path in tree and home."""
        paths = [path for folder in (self.tree, self.home) for path in folder.rglob("*")]
        states = {str(path): path.lstat() for path in paths}
        return {path: (each.st_size, each.st_mtime_ns, each.st_ino) for path, each in states.items()}


class Ahead:
    """Runs of one table of cases, each started a few tests before it is looked at: most of their time is waiting.

    Parameters
    ----------
    make_sandbox : callable
        Makes a sandbox that lives as long as the module.
    begin : mapping of str to callable
        How to start each case, in the order in which the tests come.
    at_once : int
        How many run side by side.
    """

    def __init__(
        self,
        make_sandbox: Callable[[], Sandbox],
        begin: Mapping[str, Callable[[Sandbox], Running]],
        *,
        at_once: int = 4,
    ) -> None:
        self._make_sandbox = make_sandbox
        self._begin = begin
        self._at_once = at_once
        self._started: dict[str, tuple[Sandbox, Running]] = {}

    def take(self, name: str) -> tuple[Sandbox, Completed]:
        """Return a case's sandbox, and its run after its end."""
        names = list(self._begin)
        first = names.index(name)
        for each in names[first : first + self._at_once]:
            if each not in self._started:
                sandbox = self._make_sandbox()
                self._started[each] = sandbox, self._begin[each](sandbox)
        sandbox, running = self._started[name]
        return sandbox, running.wait()
