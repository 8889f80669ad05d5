"""One trial: a tree, a hub, a user with belongings, runs of the real program, and what must hold after each of them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from provisioner.core.models import STATE_FOLDER
from provisioner.rehearsal.hub import RehearsalHub
from scripts.torturing.belongings import Belongings, State, everything_below, walk
from scripts.torturing.child import KILLED

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 64 * 1024
SECTOR = 512
REVISION = "c0de" * 10
TOKEN = "hf_" + "OnlyForTheseTrials" + "Zq9" * 5
STATUSES = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130, 143})
"""Every documented exit status but that of a defect of ours (70)."""

LONGEST_S = 180.0 if os.name == "nt" else 60.0  # a start takes seconds under Wine


class BrokenPromiseError(Exception):
    """Something did not hold."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A small file that the manifest asks for."""

    role: str
    folder: str
    name: str
    data: bytes

    @functools.cached_property
    def sha256(self) -> str:
        """Its SHA-256."""
        return hashlib.sha256(self.data).hexdigest()


def model_files(number: int = 0) -> tuple[ModelFile, ...]:
    """Return four files of one to six blocks, two of equal size."""
    made = (
        ("diffusion_model", "diffusion_models", "klein.safetensors", 5 * BLOCK + 4321),
        ("text_encoder", "text_encoders", "encoder.safetensors", 2 * BLOCK),
        ("vae", "vae", "vae.safetensors", BLOCK // 2 + 77),
        ("lora", "loras", "style.safetensors", BLOCK // 2 + 77),
    )
    return tuple(
        ModelFile(role=role, folder=folder, name=name, data=_model(size, number * 10 + index))
        for index, (role, folder, name, size) in enumerate(made)
    )


@functools.lru_cache(maxsize=32)
def _model(size: int, seed: int) -> bytes:
    """Return a well-formed file of tensors."""
    head = b'{"weight":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
    text = (head % (size - 128, size - 128)).ljust(120)
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(size - 128)  # noqa: S311


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that is over."""

    arguments: tuple[str, ...]
    status: int  # negative: the signal that ended it
    said: str  # both streams

    @property
    def is_killed(self) -> bool:
        """Whether it did not end by itself."""
        return self.status == -KILLED

    def __str__(self) -> str:
        """Return it in a line."""
        words = " ".join(self.arguments[:2])
        return f"{words} (exit {self.status}): {' '.join(self.said.split())[-600:]}"


class Starter:
    """Starts runs, quickly."""

    def __init__(self) -> None:
        server = subprocess.Popen(
            [sys.executable, "-m", "scripts.torturing.child"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if server.stdin is None or server.stdout is None:
            raise OSError("no pipes")
        self._server, self._orders, self._answers = server, server.stdin, server.stdout

    def close(self) -> None:
        """End it."""
        self._orders.close()
        self._server.wait()
        self._answers.close()

    def ask(self, order: Mapping[str, object]) -> int | None:
        """Give an order; return the answer."""
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        answer = json.loads(self._answers.readline())
        return None if answer is None else int(answer)


class SlowStarter:
    """Starts runs where nothing can be forked: each imports everything anew."""

    def __init__(self) -> None:
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def close(self) -> None:
        """Nothing is left running."""

    def ask(self, order: Mapping[str, Any]) -> int | None:
        """Do as `Starter.ask`."""
        if "start" in order:
            words = [sys.executable, "-m", "scripts.torturing.child", "--once", json.dumps(order["start"])]
            run = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
            self._running[run.pid] = run
            return run.pid
        try:
            status = self._running[order["wait"]].wait(order["seconds"])
        except subprocess.TimeoutExpired:
            return None
        del self._running[order["wait"]]
        return -KILLED if status == KILLED else status


class Run:
    """A run in progress."""

    def __init__(self, starter: Starter | SlowStarter, order: Mapping[str, object], arguments: tuple[str, ...]) -> None:
        self._starter, self._order, self._arguments = starter, order, arguments
        self.pid = starter.ask({"start": order}) or 0

    def kill(self) -> None:
        """End it with SIGKILL, or as Windows does; it may be over already."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, KILLED)

    def wait(self, seconds: float = LONGEST_S) -> Ended:
        """Wait for its end; raise BrokenPromiseError where it does not come."""
        status = self._starter.ask({"wait": self.pid, "seconds": seconds})
        if status is None:
            self.kill()
            self._starter.ask({"wait": self.pid, "seconds": 5})
            raise BrokenPromiseError(f"{' '.join(self._arguments[:3])} did not end within {seconds:.0f} s")
        streams = [Path(str(self._order[each])) for each in ("out", "err")]
        said = "".join(each.read_text(errors="replace") for each in streams if each.exists())
        return Ended(arguments=self._arguments, status=status, said=said)


class Trial:
    """A folder in which one number of the seed is played through.

    Parameters
    ----------
    folder : Path
        An empty folder; it is removed at the end.
    hub : RehearsalHub
        Serves the files.
    starter : Starter
        Starts the program.
    chance : random.Random
        Decides everything.
    """

    def __init__(self, folder: Path, hub: RehearsalHub, starter: Starter | SlowStarter, chance: random.Random) -> None:
        self.folder, self.hub, self.chance = folder, hub, chance
        self._starter = starter
        self._runs = 0
        self.events = 0
        self.tree = folder / "ComfyUI"
        self.home = folder / "home"
        self.cache: Path | None = None  # where the files go in place of the tree
        self.manifest = folder / "trial.json"
        self.environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.home),
            "HF_HOME": str(self.home / "hf"),
            "HF_TOKEN": TOKEN,
            "TMPDIR": str(folder / "tmp"),
            "LANG": "C.UTF-8",
            "NO_PROXY": "127.0.0.1",
        }
        if os.name == "nt":
            self.environ |= {name: str(self.home) for name in ("USERPROFILE", "APPDATA", "LOCALAPPDATA")}
            self.environ |= {"SYSTEMROOT": os.environ["SYSTEMROOT"], "TEMP": self.environ["TMPDIR"]}
        self.files = model_files()
        self.theirs = Belongings(self.tree, folder / "outside")
        self.damaged: dict[Path, list[bytes]] = {}  # files that need not be right, and what they were made to be
        self.obstacles: list[Callable[[], None]] = []  # take away what the program may refuse to pass
        self.may_be_absent = True
        self.may_have_bad = False  # whether a server sends wrong bytes, which are kept as NAME.bad
        self.may_leave = False  # whether the disk refuses to have things removed
        self.settled = True  # whether a run that changes something came after the last kill: it clears the records
        self.was_killed = False
        self.history: list[str] = []
        self.repository = f"trials/{folder.name}"
        hub.clear_faults()
        hub.clear_requests()
        hub.rate_bytes_s_per_connection = None
        hub.add_repository(self.repository, REVISION, {each.name: each.data for each in self.files}, tokens=[TOKEN])
        self.home.mkdir(parents=True)
        (folder / "tmp").mkdir()
        self.manifest.write_text(json.dumps(manifest_of(self.files, self.repository)), encoding="utf-8")
        self.theirs.plant()

    def __enter__(self) -> Trial:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def use_hub_cache(self) -> None:
        """Let the files go into a cache of the Hub's client from now on."""
        self.cache = self.home / "hf" / "hub"
        self.theirs.tree = self.home
        self.manifest.write_text(json.dumps(manifest_of(self.files, self.repository, "hf_cache")), encoding="utf-8")

    @property
    def models(self) -> Path:
        """The models folder, or that of the repository in the cache."""
        if self.cache is not None:
            return self.cache / f"models--{self.repository.replace('/', '--')}"
        return self.tree / "models"

    @property
    def state(self) -> Path:
        """The folder of the program's records in the tree."""
        return self.models / STATE_FOLDER

    def path(self, file: ModelFile) -> Path:
        """Return a file's final name."""
        if self.cache is not None:
            return self.models / "snapshots" / REVISION / file.name
        return self.models / file.folder / file.name

    # --- running ---------------------------------------------------------------------------------

    def order(self, *arguments: str, **more: object) -> dict[str, object]:
        """Return what a run is started with; `more` goes to ``child.py``."""
        self._runs += 1
        streams = self.folder / f"run{self._runs}"
        return {
            "arguments": list(arguments),
            "environ": self.environ,
            "folder": str(self.folder),
            "out": f"{streams}.out",
            "err": f"{streams}.err",
            **more,
        }

    def arguments(self, *given: str) -> tuple[str, ...]:
        """Return a whole command line; tree, manifest and hub are added where the command has them."""
        words = [*given]
        if given[:2] == ("manifest", "lock") or given[0] != "manifest":
            words += ["--hf-cache", str(self.cache)] if self.cache is not None else ["--comfyui", str(self.tree)]
            words += ["--manifest", str(self.manifest)]
        if given[0] in {"install", "repair"} and "--only" not in given:
            words += ["--only", "files"]
        if given[0] in {"install", "repair"}:
            words += ["--endpoint", self.hub.endpoint, "--send-token"]
        return tuple(words)

    def start(self, *given: str, **more: object) -> Run:
        """Start a command."""
        arguments = self.arguments(*given)
        self.history.append(" ".join(given[:4]) + (f" {more['trip']}" if "trip" in more else ""))
        return Run(self._starter, self.order(*arguments, **more), arguments)

    def run(self, *given: str, **more: object) -> Ended:
        """Run a command to its end, or its death, and look after it."""
        ended = self.start(*given, **more).wait()
        self.look_at(ended)
        return ended

    def succeed(self, *given: str) -> Ended:
        """Run a command that has to end well."""
        self.may_leave = False
        ended = self.run(*given)
        if ended.status != 0:
            raise BrokenPromiseError(f"the next run does not succeed: {ended}")
        return ended

    def happened(self, count: int = 1) -> None:
        """Count events whose promises were looked at."""
        self.events += count

    # --- what must hold --------------------------------------------------------------------------

    def look_at(self, ended: Ended) -> None:
        """Raise BrokenPromiseError unless what must hold after every run does."""
        if TOKEN in ended.said or "Signature=" in ended.said:
            raise BrokenPromiseError(f"a secret was shown by {ended}")
        if not ended.is_killed and (ended.status not in STATUSES or "Traceback" in ended.said):
            raise BrokenPromiseError(f"no documented end: {ended}")
        self.look_at_disk()
        self.settled &= not ended.is_killed
        self.was_killed |= ended.is_killed
        if not ended.is_killed and not self.may_leave:
            self._refuse(self.left_over(is_success=False), f"left behind by {ended}")

    def look_at_disk(self) -> None:
        """Raise BrokenPromiseError unless no byte is wrong, worse or lost, whatever happened."""
        for file in self.files:
            if complaint := self._complaint_about(file):
                raise BrokenPromiseError(f"{self.path(file).name} {complaint}")
        if complaint := self.theirs.complaint():
            raise BrokenPromiseError(complaint)
        if self.hub.violations:
            raise BrokenPromiseError(f"the hub saw: {self.hub.violations}")

    def look_at_success(self, ended: Ended | None = None) -> None:
        """Raise BrokenPromiseError unless the tree is whole and nothing is left over."""
        for file in self.files:
            path = self.path(file)
            if not path.is_file() or path.read_bytes() != file.data:
                raise BrokenPromiseError(f"{path.name} is wrong after a run that said success: {ended or ''}")
        self.damaged.clear()
        self.may_be_absent = False
        self._refuse(self.left_over(is_success=True), "left behind after a success")

    def left_over(self, *, is_success: bool) -> list[str]:
        """Return what a run left that it made for itself alone."""
        endings: tuple[str, ...] = (".placing.part", ".restoring.part", ".tmp", ".klein-setup.part")
        if is_success:
            endings += (".part", ".part.jsonl") if self.may_have_bad else (".part", ".part.jsonl", ".bad")
        found = [path for folder in (self.tree, self.home) for path in walk(folder) if path.name.endswith(endings)]
        if not self.was_killed:  # the system clears its folder for temporary files itself
            found += walk(self.folder / "tmp")
        found += self.state.glob("lock.json") if is_success else ()
        if not self.settled:
            found = [path for path in found if path.parent != self.state]
        # A run with nothing new writes none of these; the next one that has removes what an earlier one left of it.
        found = [path for path in found if not path.name.startswith(("last-report.json.", "last-run.json."))]
        found = [path for path in found if path.parent.parts[-2:] != ("klein-setup", "blocks")]
        found = [path for path in found if not self._waits_for_a_receipt(path)]
        kept = self.state / "aside"
        return [str(path) for path in found if not self._is_theirs(path) and kept not in path.parents]

    def _waits_for_a_receipt(self, path: Path) -> bool:
        """Whether a half-written receipt was left, and none was written since it looks old, which would remove it."""
        receipt = self.state / "receipt.json"
        is_half = path.parent == self.state and path.name.startswith("receipt.json.")
        return is_half and receipt.exists() and receipt.stat().st_ctime < path.stat().st_ctime

    def age_leftovers(self) -> None:
        """Let everything a killed run left look two minutes old: the next one removes what nobody writes any more."""
        for path in walk(self.folder):
            if path.name.endswith(".tmp") and not self._is_theirs(path):
                with contextlib.suppress(FileNotFoundError):  # its writer may have been faster than the kill
                    follows = os.utime not in os.supports_follow_symlinks
                    os.utime(path, (time.time() - 120,) * 2, follow_symlinks=follows)  # not the blob it leads to

    def inventory(self) -> dict[str, State | None]:
        """Return the state of everything in the tree."""
        return everything_below(self.tree)

    def _is_theirs(self, path: Path) -> bool:
        return self.theirs.has(path)

    def _complaint_about(self, file: ModelFile) -> str | None:
        path = self.path(file)
        found = path.read_bytes() if path.is_file() else None
        if found == file.data:
            return None
        if path in self.damaged:
            if found is None:
                return None  # that what was there is not lost is looked at with the belongings
            complaints = [complaint_about_sectors(found, old, file.data) for old in self.damaged[path]]
            return None if None in complaints else next(iter(complaints), "has wrong bytes, where nothing was")
        if found is None:
            return None if self.may_be_absent else "was right and is gone"
        return "has wrong bytes under its final name"

    @staticmethod
    def _refuse(found: Iterable[str], what: str) -> None:
        if names := sorted(found):
            raise BrokenPromiseError(f"{what}: {', '.join(names)}")


def complaint_about_sectors(found: bytes, old: bytes, right: bytes) -> str | None:
    """Return what a file that is being repaired has worse than before: every sector is the old or the right one."""
    if len(found) not in {len(old), len(right)}:
        return f"has {len(found)} bytes, neither {len(old)} nor {len(right)}"
    for at in range(0, len(found), SECTOR):
        if found[at : at + SECTOR] not in (old[at : at + SECTOR], right[at : at + SECTOR]):
            return f"has bytes of neither the old nor the right file at {at}"
    return None


def manifest_of(files: Sequence[ModelFile], repository: str, target: str = "comfyui") -> dict[str, object]:
    """Return a manifest that names the files, for a ComfyUI tree or a cache of the Hub's client."""
    artifacts = [
        {
            "id": each.role.replace("_", "-"),
            "role": each.role,
            "name": each.name,
            "folder": each.folder,
            "size": len(each.data),
            "sha256": each.sha256,
            "sources": [{"repo_id": repository, "revision": REVISION, "filename": each.name}],
        }
        for each in files
    ]
    return {
        "schema_version": 1,
        "id": "trial",
        "title": "Small files",
        "licence": {"name": "none", "url": "https://example.org", "is_commercial_use_allowed": True},
        "default_set": "all",
        "sets": [{"id": "all", "title": "All", "target": target, "artifacts": [each["id"] for each in artifacts]}],
        "artifacts": artifacts,
    }
