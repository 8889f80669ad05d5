"""Kills the program again and again, and looks after every death whether what it promises still holds.

    python3 scripts/kill_runs.py [--kills 1000] [--seed 1] [--write]

An embedded hub serves three files; ``klein-setup install`` is started as its own process, killed with SIGKILL at a
random moment, and started again, until it ends by itself.  Then the largest file is damaged, and ``klein-setup repair``
is killed in the same way; then everything begins anew with an empty tree, until the number of kills is reached.

After every kill: no file that was right is wrong, a damaged one is no worse (every sector is the old one or the right
one, or it is there as a part that holds its right blocks), nothing the user had is gone.  After every run that ended by
itself: the tree is whole, no half file is left, and the bytes served exceed those that were needed by no more than what
was in flight at each kill.  With --write the result goes to scripts/results/kills.md, which is kept in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER  # noqa: E402 - found through the line above
from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402
from provisioner.rehearsal.tiny_models import TinyFile, small_comfyui_files  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "kills.md"
REPOSITORY, REVISION = "rehearsal/kills", "c0de" * 10
CONNECTIONS = 4
SECTOR = 512
DAMAGES = ("two bits flipped", "truncated", "truncated, no receipt")


def main() -> int:
    """Kill until the number is reached; print and return 0 only if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="klein-kills-") as folder, RehearsalHub() as hub:
        runs = Runs(Path(folder), hub, random.Random(arguments.seed))  # noqa: S311 - reproducible moments
        while runs.kills < arguments.kills:
            tree = runs.one_installation()
            runs.one_repair(tree, DAMAGES[runs.repairs % len(DAMAGES)])
            shutil.rmtree(tree)
        text = runs.summary(time.monotonic() - began, arguments.seed)
    print(text)
    if arguments.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text, encoding="utf-8")
    return 0


@dataclass(frozen=True)
class Damaged:
    """A file with the bytes it had and the bytes it shall have."""

    path: Path
    old: bytes
    right: bytes

    def complaint(self) -> str | None:
        """Return what is worse than before, or None."""
        if not self.path.exists():
            return None if self._is_a_part() or self.is_backup() else "is gone"
        found = self.path.read_bytes()
        if found in (self.old, self.right):
            return None
        if not len(found) == len(self.old) == len(self.right):
            return "is something else"
        for at in range(0, len(found), SECTOR):
            if found[at : at + SECTOR] not in (self.old[at : at + SECTOR], self.right[at : at + SECTOR]):
                return f"holds bytes of neither at {at}"
        return None

    def is_backup(self) -> bool:
        """Whether the whole of what it was has been set aside."""
        aside = self.path.parents[1] / STATE_FOLDER / "aside"
        return any(each.is_file() and each.read_bytes() == self.old for each in aside.rglob(self.path.name))

    def _is_a_part(self) -> bool:
        part = self.path.with_name(self.path.name + ".part")
        whole = len(self.old) // BLOCK_SIZE * BLOCK_SIZE
        return part.exists() and part.read_bytes()[:whole] == self.right[:whole]


class Runs:
    """A hub, a manifest, and what was installed and repaired so far."""

    def __init__(self, folder: Path, hub: RehearsalHub, chance: random.Random) -> None:
        self.folder = folder
        self.hub = hub
        self.chance = chance
        self.files = small_comfyui_files(scale_bytes=40_000_000)
        self.kills = 0
        self.installations = 0
        self.repairs = 0
        self.extra_bytes = 0
        self.manifest = folder / "kills.json"
        hub.add_repository(REPOSITORY, REVISION, {each.name: each.data for each in self.files})
        hub.rate_bytes_s_per_connection = 60_000_000  # slow enough for a kill to find something in flight
        self.manifest.write_text(json.dumps(manifest_of(self.files)), encoding="utf-8")

    def one_installation(self) -> Path:
        """Install into a new tree, killed as often as it happens; return it."""
        tree = self.folder / f"tree{self.installations}"
        mine = tree / "models" / "vae" / "mine.safetensors"
        mine.parent.mkdir(parents=True)
        mine.write_bytes(b"the user's own")
        needed = sum(len(each.data) for each in self.files)
        self.until_it_ends(tree, "install", needed, lambda: self.complaint_about(tree, None))
        self.installations += 1
        return tree

    def one_repair(self, tree: Path, kind: str) -> None:
        """Damage the largest file and repair it, killed as often as it happens."""
        file = max(self.files, key=lambda each: len(each.data))
        path = tree / "models" / file.folder / file.name
        data = bytearray(file.data)
        if kind == "two bits flipped":
            offsets = (self.chance.randrange(BLOCK_SIZE), len(data) - 1 - self.chance.randrange(1000))
            for offset in offsets:
                data[offset] ^= 1
            needed = sum(min(BLOCK_SIZE, len(data) - at // BLOCK_SIZE * BLOCK_SIZE) for at in offsets)
        else:
            del data[self.chance.randrange(BLOCK_SIZE, len(data)) :]
            needed = len(file.data) - len(data) // BLOCK_SIZE * BLOCK_SIZE
        path.write_bytes(data)
        has_receipt = kind != "truncated, no receipt"
        if not has_receipt:
            (tree / "models" / STATE_FOLDER / "receipt.json").unlink()
        damaged = Damaged(path, bytes(data), file.data)
        self.until_it_ends(tree, "repair", needed, lambda: self.complaint_about(tree, damaged))
        if not has_receipt and not damaged.is_backup():
            sys.exit(f"kill_runs: {path.name} was replaced and is not among what was set aside")
        self.repairs += 1

    def until_it_ends(self, tree: Path, verb: str, needed: int, complaint: Callable[[], str | None]) -> None:
        """Run a command again and again until it was quicker than its death; look around after each."""
        served_before, kills_before = self.hub.bytes_served, self.kills
        while not self.ends_by_itself(tree, verb):
            self.kills += 1
            wrong = complaint()
            if wrong is not None:
                sys.exit(f"kill_runs: after kill {self.kills}, of {verb}: {wrong}")
        self.check_whole(tree)
        self.hub.wait_until_idle()
        extra = self.hub.bytes_served - served_before - needed
        allowed = (self.kills - kills_before) * CONNECTIONS * BLOCK_SIZE
        self.extra_bytes += extra
        if extra > allowed + BLOCK_SIZE:
            sys.exit(f"kill_runs: {verb} fetched {extra:,} bytes twice, {allowed:,} could have been in flight")

    def ends_by_itself(self, tree: Path, verb: str) -> bool:
        """Start the program and kill it after a random time; whether it was quicker."""
        command = [sys.executable, "-m", "provisioner", verb, "--only", "files", "--quiet", "--comfyui", str(tree)]
        command += ["--manifest", str(self.manifest), "--endpoint", self.hub.endpoint]
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder / "home"),
            "HF_HOME": str(self.folder),
        }
        child = subprocess.Popen(
            [*command, "--connections", str(CONNECTIONS)],
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        killed = False
        try:
            child.wait(timeout=self.chance.uniform(0.2, 1.0))
        except subprocess.TimeoutExpired:
            killed = True
            child.kill()  # SIGKILL; on Windows TerminateProcess, which no program can catch either
        complaint = child.communicate()[1]
        if child.returncode != 0 and not killed:
            sys.exit(f"kill_runs: exit status {child.returncode}: {complaint.decode(errors='replace')}")
        return child.returncode == 0

    def complaint_about(self, tree: Path, damaged: Damaged | None) -> str | None:
        """Look at every final name, and at what was not ours; return what is wrong."""
        for each in self.files:
            path = tree / "models" / each.folder / each.name
            if damaged is not None and path == damaged.path:
                if complaint := damaged.complaint():
                    return f"{path.name} {complaint}"
            elif path.exists() and path.read_bytes() != each.data:
                return f"{path.name} has wrong bytes under its final name"
        if (tree / "models" / "vae" / "mine.safetensors").read_bytes() != b"the user's own":
            return "a file of the user's was touched"
        return None

    def check_whole(self, tree: Path) -> None:
        """Look at a tree whose installation ended by itself."""
        for each in self.files:
            if (tree / "models" / each.folder / each.name).read_bytes() != each.data:
                sys.exit(f"kill_runs: {each.name} is wrong after a run that ended by itself")
        found = [path for path in tree.rglob("*") if ".part" in path.name or path.suffix in {".bad", ".tmp"}]
        # A record of some kilobytes that was being written is swept by a run a minute later.
        left = [str(path.relative_to(tree)) for path in found if not path.match(f"{STATE_FOLDER}/*.json.*.tmp")]
        if left:
            sys.exit(f"kill_runs: left behind: {', '.join(left)}")

    def summary(self, seconds: float, seed: int) -> str:
        """Return the result as Markdown."""
        each = self.extra_bytes / max(self.kills, 1) / 1e6
        return (
            "# Killed again and again\n\n"
            f"`python3 scripts/kill_runs.py --seed {seed}`, {time.strftime('%Y-%m-%d', time.gmtime())}: "
            f"{self.kills} kills at random moments over {self.installations} installations and {self.repairs} repairs "
            f"({', '.join(DAMAGES)}, in turn) in {seconds:.0f} s.\n\n"
            "Wrong bytes under a final name: 0. Damaged files that a kill made worse: 0. Files of the user's touched: "
            "0. Half files left after a run that ended by itself: 0.\n"
            f"Fetched twice: {each:.1f} MB per kill, with {CONNECTIONS} connections of 16 MiB blocks.\n"
        )


def manifest_of(files: tuple[TinyFile, ...]) -> dict[str, object]:
    """Return a manifest that names the files."""
    artifacts = [
        {
            "id": each.role.replace("_", "-"),
            "role": each.role,
            "name": each.name,
            "folder": each.folder,
            "size": len(each.data),
            "sha256": hashlib.sha256(each.data).hexdigest(),
            "sources": [{"repo_id": REPOSITORY, "revision": REVISION, "filename": each.name}],
        }
        for each in files
    ]
    return {
        "schema_version": 1,
        "id": "kills",
        "title": "Three small files",
        "licence": {"name": "none", "url": "https://example.org", "is_commercial_use_allowed": True},
        "default_set": "all",
        "sets": [{"id": "all", "title": "All", "target": "comfyui", "artifacts": [each["id"] for each in artifacts]}],
        "artifacts": artifacts,
    }


if __name__ == "__main__":
    sys.exit(main())
