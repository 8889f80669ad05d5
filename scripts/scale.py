"""Measures what a set of many files costs: processor seconds and bytes of each command, by the number of files.

    python3 scripts/scale.py [--files 1,10,100,1000] [--write]

Files of one kilobyte are made, adopted by ``install``, and looked at by each command.  Processor time and the bytes
that went through read and write are the kernel's count for the whole process, so a busy machine changes little.  A
manifest may have 1 MiB, which is about 3,000 files.  With --write the table goes to scripts/results/scale.md, which is
kept in the repository.  Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "linux":
    sys.exit("scale: the kernel's counts in /proc are needed; run this on Linux")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "scripts" / "results" / "scale.md"
COMMANDS: Mapping[str, Sequence[str]] = {
    "plan": ("plan", "--offline", "--only", "files", "--json"),
    "install": ("install", "--offline", "--only", "files", "--json"),
    "verify --quick": ("verify", "--quick", "--json"),
    "verify": ("verify", "--json"),
    "second install": ("install", "--offline", "--only", "files", "--json"),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a command took."""

    processor_s: float
    written: int  # bytes
    memory: int  # bytes resident at most


def write_set(folder: Path, number: int) -> Path:
    """Write so many files of a kilobyte, no two alike, and a manifest that asks for them; return its path."""
    models = folder / "ComfyUI" / "models" / "vae"
    models.mkdir(parents=True)
    artifacts = []
    for index in range(number):
        data, name = index.to_bytes(8, "big") * 128, f"f{index}.safetensors"
        (models / name).write_bytes(data)
        source = {"repo_id": "bench/many", "revision": "5e0a" * 10, "filename": name}
        artifact = {"id": f"f{index}", "role": "vae", "name": name, "folder": "vae", "size": len(data)}
        artifacts.append({**artifact, "sha256": hashlib.sha256(data).hexdigest(), "sources": [source]})
    document = {
        "schema_version": 1,
        "id": "many",
        "title": "Many small files",
        "licence": {"name": "CC0-1.0", "url": "https://example.org", "is_commercial_use_allowed": True},
        "default_set": "all",
        "sets": [{"id": "all", "title": "All", "target": "comfyui", "artifacts": [each["id"] for each in artifacts]}],
        "artifacts": artifacts,
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def cost_of(words: Sequence[str], environ: Mapping[str, str]) -> Cost:
    """Run a command and return what it took; a failure ends the measurement."""
    child = subprocess.Popen(words, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    written = Path(f"/proc/{child.pid}/io")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and the kernel still knows its counts
    lines = dict(line.split(": ") for line in written.read_text(encoding="ascii").splitlines())
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"scale: {words[3:5]} failed with {child.returncode}")
    return Cost(processor_s=used.ru_utime + used.ru_stime, written=int(lines["wchar"]), memory=used.ru_maxrss * 1024)


def measure(number: int) -> dict[str, Cost]:
    """Return what each command takes on so many files."""
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        manifest = write_set(folder, number)
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": name, "XDG_STATE_HOME": str(folder / "state")}
        where = ["--manifest", str(manifest), "--comfyui", str(folder / "ComfyUI")]
        python = [sys.executable, "-m", "provisioner"]
        return {name: cost_of([*python, *words, *where], environ) for name, words in COMMANDS.items()}


def table(found: Mapping[int, Mapping[str, Cost]]) -> str:
    """Return the costs as Markdown, a row for each number of files."""
    lines = [
        "# Many files",
        "",
        f"`python3 scripts/scale.py`, {time.strftime('%Y-%m-%d', time.gmtime())}: Python {platform.python_version()}, "
        f"{platform.machine()}; files of 1 kB that are there already, so `install` adopts them.  Processor seconds, "
        "start-up included; in brackets the bytes written.",
        "",
        f"| files | {' | '.join(COMMANDS)} | resident at most |",
        f"|---:|{'---:|' * len(COMMANDS)}---:|",
    ]
    for number, costs in found.items():
        cells = [f"{cost.processor_s:.2f} ({cost.written / 1e6:.1f} MB)" for cost in costs.values()]
        most = max(cost.memory for cost in costs.values())
        lines.append(f"| {number:,} | {' | '.join(cells)} | {most / 1e6:.0f} MB |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, and with --write keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="1,10,100,1000", help="numbers of files (default: 1,10,100,1000)")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    text = table({number: measure(number) for number in map(int, arguments.files.split(","))})
    sys.stdout.write(text)
    if arguments.write:
        RESULT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
