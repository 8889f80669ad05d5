"""One file put in its place by the real store and the real engine, and real SIGKILLs at every call on the way.

A process of its own forks a child for every call the system is asked for under a folder, and the child kills itself
right before it: what a signal at that moment leaves is what lies there then.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from provisioner.core.models import (
    BLOCK_SIZE,
    STATE_FOLDER,
    Artifact,
    Destination,
    FilesPlan,
    HubBlob,
    HubCacheTarget,
    HubFile,
    Source,
)
from provisioner.core.ports import Claim, FileDigest, Finder, Part, TransferProgress
from provisioner.disk.root import Root
from provisioner.files.engine import Engine
from provisioner.files.local_copies import FilesInFolders
from provisioner.files.observe import Observer
from provisioner.files.planner import plan
from provisioner.files.store.file_store import FileStore
from provisioner.files.store.hash_file import hash_file
from provisioner.files.store.part_file import write_log_of_taken_over
from provisioner.files.store.receipts import (
    Receipts,
    is_unchanged,
    read_receipt,
    stamp_of,
)
from provisioner.files.store.removal import State, owned_files, remove_file
from tests.support.builders import artifact, artifact_set, comfy_file, comfy_target, file_system, hub_blob, manifest
from tests.support.builders import sha256 as digest
from tests.support.faulty_root import Move, faulty

Way = Literal[
    "fetched", "fetched-over", "copied", "hard-linked", "cached", "repaired", "cut", "blob-there", "log-there"
]
WAYS: tuple[Way, ...] = tuple(way for way in get_args(Way) if way not in {"blob-there", "log-there"})

ROOT = Path(__file__).resolve().parents[2]
_TOKEN = re.compile(r"\.[0-9a-f]{16}")
_KILL = 9  # SIGKILL, by a number that Windows has too
_SMALL = bytes(range(256)) * 300
_LARGE = bytes(range(256)) * ((BLOCK_SIZE + 4096) // 256)  # a block and a little: one of the two can be wrong
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@functools.cache
def _wanted(data: bytes) -> Artifact:
    return artifact(data)


@functools.cache
def _blocks(data: bytes) -> tuple[str, ...]:
    return tuple(digest(data[at : at + BLOCK_SIZE]) for at in range(0, len(data), BLOCK_SIZE))


@dataclass
class Serving:
    """A source that serves the right bytes and counts them."""

    data: bytes
    served: int = 0

    def blob_id(self, source: HubFile) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def fetch(
        self, source: Source, artifact: Artifact, part: Part, *, progress: Callable[[TransferProgress], None]
    ) -> str:
        for index in part.missing_blocks():
            piece = self.data[index * part.block_size : (index + 1) * part.block_size]
            part.write(index * part.block_size, piece)
            part.finish_block(index, _blocks(self.data)[index])
            self.served += len(piece)
        return "the hub"


@dataclass
class Scene:
    """A folder, and one file that belongs into it."""

    folder: Path
    way: Way

    @property
    def data(self) -> bytes:
        """The right bytes."""
        return _LARGE if self.way in {"repaired", "cut"} else _SMALL

    @property
    def artifact(self) -> Artifact:
        """The file that is wanted."""
        return _wanted(self.data)

    @property
    def models(self) -> Path:
        """The models folder, or the HF cache."""
        return self.folder / "models"

    @property
    def elsewhere(self) -> Path:
        """The user's other folder, in which the same bytes may lie."""
        return self.folder / "downloads"

    @property
    def destination(self) -> Destination:
        """Where the file belongs."""
        if self.way in {"cached", "blob-there"}:
            return hub_blob(self.models, self.artifact)
        return comfy_file(self.artifact, self.models)

    def prepare(self) -> None:
        """Make the folder what it is before the run."""
        path = self.destination.path
        if self.way == "fetched-over":
            path.parent.mkdir(parents=True)
            path.write_bytes(b"something else of the user's")
        if self.way in {"copied", "hard-linked"}:
            self.elsewhere.mkdir(parents=True)
            (self.elsewhere / "theirs.bin").write_bytes(self.data)
        if self.way in {"blob-there", "log-there"}:
            self.install()
            root, relative = Root(self.destination.root), str(self.destination.relative)
            claim = read_receipt(root.folder)[relative]
            Receipts().drop_claims(root, [relative])
            Receipts().announce_claim(root, relative, claim, recorded_at="2026-11-23T00:00:00Z")
            if self.way == "blob-there":  # as a kill leaves it right before the link to the blob
                path.unlink()
            else:  # as one leaves it right after the file got its name
                size, sha256 = len(self.data), self.artifact.sha256
                write_log_of_taken_over(
                    root, path, size=size, sha256=sha256, block_size=BLOCK_SIZE, there=size, good={}
                )
        if self.way in {"repaired", "cut"}:
            path.parent.mkdir(parents=True)
            path.write_bytes(self.data)
            file_digest = FileDigest(size=len(self.data), sha256=self.artifact.sha256, blocks=_blocks(self.data))
            claim = Claim(artifact_id="vae", stamp=stamp_of(path), file_digest=file_digest, source="the hub, long ago")
            Receipts().write_claim(Root(self.models), "vae/vae.safetensors", claim, recorded_at="2026-11-23T00:00:00Z")
            with path.open("r+b") as stream:
                stream.seek(BLOCK_SIZE if self.way == "repaired" else len(self.data))
                stream.write(b"?" * 100)

    def install(self, *, move: Move | None = None) -> int:
        """Install as the command does; return the bytes that were fetched."""
        source = Serving(self.data)
        store = FileStore(
            file_system_of=lambda path: file_system(self.models),
            roots=faulty(move=move, has_links=self.way in {"hard-linked", "blob-there"}),
        )
        finders: list[Finder] = [FilesInFolders([self.elsewhere, self.models], "--look-in")]
        observer = Observer(store=store, finders=finders, events=_ignore, is_unchanged=is_unchanged)

        def hash_again(destination: Destination, label: str) -> FileDigest:
            stamp = store.stamp(destination.path)
            assert stamp is not None
            return observer.digest_of(destination.path, stamp, label)

        def look(rejected: frozenset[tuple[str, Path]]) -> FilesPlan:
            is_cache = isinstance(self.destination, HubBlob)
            one = artifact_set(self.artifact, target="hf_cache" if is_cache else "comfyui")
            target = HubCacheTarget(cache=self.models) if is_cache else comfy_target(self.models)
            return plan(manifest(one), one, None, observer.observe(one, target, depth="claims", rejected=rejected))

        with store.lock([self.destination]):
            last, outcomes = Engine(store=store, fetcher=source, events=_ignore, hash_again=hash_again).provide(look)
        if errors := [str(outcome.error) for outcome in outcomes if outcome.error is not None] or last.steps:
            raise AssertionError(errors)
        return source.served

    def source(self) -> str:
        """Return what the receipt says of where the file is from."""
        return read_receipt(self.destination.root)[str(self.destination.relative)].source

    def names(self) -> list[str]:
        """Return the names of everything below the models folder that is no folder and no record of ours."""
        return sorted(
            path.name
            for path in self.models.rglob("*")
            if not (path.is_dir() or STATE_FOLDER in path.parts or "refs" in path.parts)
        )

    def uninstall(self) -> list[State]:
        """Remove what is ours as the command does; return what each file was taken for."""
        root = Root(self.destination.root)
        found = owned_files(root)
        for each in found:
            if each.state in {"ours", "missing"}:
                remove_file(root, each, hash_file=_digest_of)
        return [each.state for each in found]


def _digest_of(path: Path) -> FileDigest:
    return hash_file(path, progress=_ignore, cancelled=lambda: False)


def _ignore(event: object) -> None:
    """Listen to nothing."""


# --- kills -------------------------------------------------------------------------------------------


def _changes(below: Path, event: str, arguments: Sequence[object]) -> str | None:
    """Return the call in words if it is one that changes names or opens a file for writing; None if not.

    A name without a folder is one in a folder that is open, and everything that is done in this process is done there.
    """
    names = [os.fspath(each) for each in arguments if isinstance(each, (str, os.PathLike))]
    inside = [
        name
        for name in names
        if isinstance(name, str) and (name.startswith(str(below)) or not Path(name).is_absolute())
    ]
    is_change = event in {"os.rename", "os.remove", "os.link", "os.symlink", "os.utime", "os.truncate"}
    is_opening = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
    is_by_number = event in {"os.utime", "os.truncate"}  # of a descriptor
    if not (is_change or is_opening) or not (inside or is_by_number):
        return None
    return " ".join((event.removeprefix("os."), *(_TOKEN.sub(".N", Path(name).name) for name in inside)))


def _run_and_die(scene: Scene, die_at: int, told: int) -> None:
    """Install in this process and kill it before the call of that number; tell every call to a descriptor."""
    seen = 0

    def look(event: str, arguments: Sequence[object]) -> None:
        nonlocal seen
        call = _changes(scene.folder, event, arguments)
        if call is not None:
            if seen == die_at:
                os.kill(os.getpid(), _KILL)
            seen += 1
            os.write(told, (call + "\n").encode())

    sys.addaudithook(look)
    scene.install()


def _fork(folder: Path, way: Way, die_at: int) -> tuple[str, list[str], int]:
    """Return a new scene's folder, the calls a child made in it before its end, and how it ended (-9: killed)."""
    if sys.platform == "win32":
        raise OSError("no fork here")
    scene = Scene(folder / str(die_at), way)
    scene.prepare()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _run_and_die(scene, die_at, writer)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stream:
        calls = stream.read().splitlines()
    return str(scene.folder), calls, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: str, way: str, call: str, nth: str) -> None:
    """Let one run come to its end and kill others before a call of it; say what came of each, a line of JSON each."""
    whole = _fork(Path(folder), cast("Way", way), -1)
    places = [number for number, each in enumerate(whole[1]) if each == call]
    numbers = [places[int(nth)]] if nth else range(places[0], len(whole[1]))
    for found in (whole, *(_fork(Path(folder), cast("Way", way), number) for number in numbers)):
        sys.stdout.write(json.dumps(found) + "\n")


@dataclass(frozen=True)
class Kills:
    """A run that came to its end, and others that were killed before one call each."""

    calls: list[str]
    killed: list[tuple[Scene, list[str]]]  # each with the calls that were made before


def _killed(folder: Path, way: Way, call: str, nth: str) -> Kills:
    script = "import sys; from tests.support.placing import main; main(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), way, call, nth],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, *killed = [json.loads(line) for line in done.stdout.splitlines()]
    assert (whole[2], {ended for _, _, ended in killed}) == (0, {-_KILL}), done.stderr
    return Kills(whole[1], [(Scene(Path(where), way), calls) for where, calls, _ in killed])


def killed_from(folder: Path, way: Way, call: str) -> Kills:
    """Kill an installation at the first call of that name, another at the call after it, and so on to the last."""
    return _killed(folder, way, call, "")


def killed_before(folder: Path, way: Way, call: str, nth: int = 0) -> Scene:
    """Return the scene of an installation that was killed right before one of the calls of that name."""
    ((scene, _),) = _killed(folder, way, call, str(nth)).killed
    return scene
