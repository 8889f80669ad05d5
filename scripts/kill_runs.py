"""Kills the program again and again, and looks after every death whether what it promises still holds.

    python3 scripts/kill_runs.py [--kills 1000] [--seed 1] [--write]

An embedded hub serves three files; ``klein-setup install`` is started as its own process, killed with SIGKILL at a
random moment, and started again, until it ends by itself; then everything begins anew with an empty tree, until the
number of kills is reached.  After every kill: no file under a final name has a wrong SHA-256, nothing the user had is
gone.  After every completed installation: the tree is whole, no half file is left, and the bytes served exceed the
size of the files by no more than what was in flight at each kill.  With --write the result goes to
scripts/results/kills.md, which is kept in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.models import BLOCK_SIZE  # noqa: E402 - found through the line above
from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402
from provisioner.rehearsal.tiny import TinyFile, small_comfyui_files  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "kills.md"
REPOSITORY, REVISION = "rehearsal/kills", "c0de" * 10
CONNECTIONS = 4


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
            runs.one_installation()
        text = runs.summary(time.monotonic() - began, arguments.seed)
    print(text)
    if arguments.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text, encoding="utf-8")
    return 0


class Runs:
    """A hub, a manifest, and the installations so far."""

    def __init__(self, folder: Path, hub: RehearsalHub, chance: random.Random) -> None:
        self.folder = folder
        self.hub = hub
        self.chance = chance
        self.files = small_comfyui_files(scale_bytes=40_000_000)
        self.kills = 0
        self.installations = 0
        self.extra_bytes = 0
        self.allowed_bytes = 0
        self.manifest = folder / "kills.json"
        hub.add_repository(REPOSITORY, REVISION, {each.name: each.data for each in self.files})
        hub.rate_bytes_s_per_connection = 60_000_000  # slow enough for a kill to find something in flight
        self.manifest.write_text(json.dumps(manifest_of(self.files)), encoding="utf-8")

    def one_installation(self) -> None:
        """Install into a new tree, killed as often as it happens."""
        tree = self.folder / f"tree{self.installations}"
        mine = tree / "models" / "vae" / "mine.safetensors"
        mine.parent.mkdir(parents=True)
        mine.write_bytes(b"the user's own")
        served_before, kills_before = self.hub.bytes_served, self.kills
        while not self.ends_by_itself(tree):
            self.kills += 1
            self.check_after_a_kill(tree, mine)
        self.check_whole(tree)
        self.installations += 1
        extra = self.hub.bytes_served - served_before - sum(len(each.data) for each in self.files)
        allowed = (self.kills - kills_before) * CONNECTIONS * BLOCK_SIZE
        self.extra_bytes += extra
        self.allowed_bytes += allowed
        if extra > allowed + BLOCK_SIZE:
            sys.exit(f"kill_runs: {extra:,} bytes were fetched twice, {allowed:,} could have been in flight")

    def ends_by_itself(self, tree: Path) -> bool:
        """Start the program and kill it after a random time; whether it was quicker."""
        command = [sys.executable, "-m", "provisioner", "install", "--quiet", "--manifest", str(self.manifest)]
        command += ["--comfyui", str(tree), "--endpoint", self.hub.endpoint, "--connections", str(CONNECTIONS)]
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder / "home"),
            "HF_HOME": str(self.folder),
        }
        child = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        killed = False
        try:
            child.wait(timeout=self.chance.uniform(0.25, 1.6))
        except subprocess.TimeoutExpired:
            killed = True
            child.kill()  # SIGKILL; on Windows TerminateProcess, which no program can catch either
        complaint = child.communicate()[1]
        if child.returncode != 0 and not killed:
            sys.exit(f"kill_runs: exit status {child.returncode}: {complaint.decode(errors='replace')}")
        return child.returncode == 0

    def check_after_a_kill(self, tree: Path, mine: Path) -> None:
        """Look at every final name, and at what was not ours."""
        for each in self.files:
            path = tree / "models" / each.folder / each.name
            if path.exists() and path.read_bytes() != each.data:
                sys.exit(f"kill_runs: wrong bytes under a final name after kill {self.kills}: {path.name}")
        if mine.read_bytes() != b"the user's own":
            sys.exit(f"kill_runs: a file of the user's was touched by kill {self.kills}")

    def check_whole(self, tree: Path) -> None:
        """Look at a tree whose installation ended by itself."""
        for each in self.files:
            if (tree / "models" / each.folder / each.name).read_bytes() != each.data:
                sys.exit(f"kill_runs: {each.name} is wrong after a completed installation")
        left = [path.name for path in tree.rglob("*") if ".part" in path.name or path.suffix in {".bad", ".tmp"}]
        if left:
            sys.exit(f"kill_runs: left behind: {', '.join(left)}")

    def summary(self, seconds: float, seed: int) -> str:
        """Return the result as Markdown."""
        each = self.extra_bytes / max(self.kills, 1) / 1e6
        return (
            "# Killed again and again\n\n"
            f"`python3 scripts/kill_runs.py --seed {seed}`, {time.strftime('%Y-%m-%d', time.gmtime())}: "
            f"{self.kills} kills at random moments over {self.installations} installations in {seconds:.0f} s.\n\n"
            "Wrong bytes under a final name: 0. Files of the user's touched: 0. Half files left after a completed "
            "installation: 0.\n"
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
