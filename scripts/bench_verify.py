"""Measures a full ``klein-setup verify`` beside ``sha256sum`` of the same files one after the other, page cache warm.

    python3 scripts/bench_verify.py [--size 1000000000] [--files 3] [--rounds 5] [--folder DIR] [--write]

They take turns, so that what else the machine does hits all alike, with a third: ``hashlib`` in one stream, because
what a processor's SHA instructions bring is not our doing.  The files are adopted first by the real
``install``, which verifies them once and writes receipts with block digests; what is measured is the whole command,
start-up included.  The bound is 0.85 times the number of cores.  With --write the result goes to
scripts/results/bench_verify.md, which is kept in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.platform == "win32":
    sys.exit("bench_verify: sha256sum is needed; run this on Linux or macOS")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "scripts" / "results" / "bench_verify.md"
BOUND = 0.85  # times the number of cores
_PIECE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Measured:
    """The rounds of one run of this script, in seconds."""

    size: int
    files: int
    cores: int
    one_after_the_other: tuple[float, ...]  # sha256sum
    one_stream: tuple[float, ...]  # hashlib
    verify: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as quick the median verify was."""
        return statistics.median(self.one_after_the_other) / statistics.median(self.verify)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def make_file(path: Path, size: int, seed: int) -> str:
    """Write random bytes and return their SHA-256."""
    generator, digest = random.Random(seed), hashlib.sha256()  # noqa: S311 - fills files, keeps no secret
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for offset in range(0, size, _PIECE):
            piece = generator.randbytes(min(_PIECE, size - offset))
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


def write_manifest(path: Path, digests: Mapping[str, str], size: int) -> None:
    """Write a manifest that asks for these files in ``checkpoints``."""
    source = {"repo_id": "bench/files", "revision": "5e0a" * 10}
    artifacts = [
        {
            "id": name,
            "role": "checkpoint",
            "name": f"{name}.safetensors",
            "folder": "checkpoints",
            "size": size,
            "sha256": sha256,
            "sources": [{**source, "filename": f"{name}.safetensors"}],
        }
        for name, sha256 in digests.items()
    ]
    document = {
        "schema_version": 1,
        "id": "bench",
        "title": "Files to verify",
        "licence": {"name": "CC0-1.0", "url": "https://example.org", "is_commercial_use_allowed": True},
        "default_set": "all",
        "sets": [{"id": "all", "title": "All", "target": "comfyui", "artifacts": list(digests)}],
        "artifacts": artifacts,
    }
    path.write_text(json.dumps(document), encoding="utf-8")


ONE_STREAM = """
import hashlib, sys
buffer = memoryview(bytearray(1 << 20))
for name in sys.argv[1:]:
    digest = hashlib.sha256()
    with open(name, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
"""


def timed(command: Sequence[str], environ: Mapping[str, str]) -> float:
    """Run a command and return its seconds; a failure ends the measurement."""
    began = time.monotonic()
    subprocess.run(command, env=dict(environ), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def measure(folder: Path, *, size: int, files: int, rounds: int) -> Measured:
    """Make the files, adopt them, and let the two take turns."""
    models = folder / "ComfyUI" / "models"
    paths = {f"file-{number}": models / "checkpoints" / f"file-{number}.safetensors" for number in range(files)}
    digests = {name: make_file(path, size, seed) for seed, (name, path) in enumerate(paths.items())}
    write_manifest(folder / "bench.yaml", digests, size)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    options = ["--manifest", str(folder / "bench.yaml"), "--comfyui", str(models.parent), "--json"]
    command = [sys.executable, "-m", "provisioner"]
    timed([*command, "install", *options, "--offline", "--only", "files"], environ)
    old, stream, ours = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        old.append(timed(["sha256sum", *map(str, paths.values())], environ))
        stream.append(timed([sys.executable, "-c", ONE_STREAM, *map(str, paths.values())], environ))
        ours.append(timed([*command, "verify", *options], environ))
    return Measured(
        size=size,
        files=files,
        cores=usable_cores(),
        one_after_the_other=tuple(old),
        one_stream=tuple(stream),
        verify=tuple(ours),
    )


def report(measured: Measured) -> str:
    """Return the result as Markdown."""
    total = measured.size * measured.files
    rows = []
    contestants = {
        "sha256sum": measured.one_after_the_other,
        "hashlib, one stream": measured.one_stream,
        "klein-setup verify": measured.verify,
    }
    for name, runs in contestants.items():
        median = statistics.median(runs)
        spread = f"{min(runs):.2f}-{max(runs):.2f}"
        rows.append(f"| {name} | {median:.2f} | {total / median / 1e9:.2f} | {spread} |")
    bound = BOUND * measured.cores
    of_streams = statistics.median(measured.one_stream) / statistics.median(measured.verify)
    verdict = "holds" if measured.ratio >= bound else "does not hold"
    return "\n".join(
        [
            "# A full verify beside sha256sum",
            "",
            f"`python3 scripts/bench_verify.py`, {time.strftime('%Y-%m-%d')}: {platform.machine()}, "
            f"{measured.cores} cores, Python {platform.python_version()}; {measured.files} files of "
            f"{measured.size / 1e9:.2f} GB with receipts, page cache warm, {len(measured.verify)} rounds in turns, "
            "medians.",
            "",
            "| what | s | GB/s | fastest to slowest |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"On {measured.cores} cores verify is {measured.ratio:.2f} times as quick as sha256sum, and "
            f"{of_streams:.2f} times as quick as one stream of the same hash; the bound of {BOUND} times the cores, "
            f"{bound:.2f}, {verdict}.",
            "",
        ]
    )


def main() -> int:
    """Measure, print, and with --write keep the result; return 1 if the bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000_000, help="bytes of a file")
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go for as long as it takes")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-verify-", dir=arguments.folder) as folder:
        measured = measure(Path(folder), size=arguments.size, files=arguments.files, rounds=arguments.rounds)
    text = report(measured)
    sys.stdout.write(text)
    if arguments.write:
        RESULT.write_text(text, encoding="utf-8")
    return 0 if measured.ratio >= BOUND * measured.cores else 1


if __name__ == "__main__":
    sys.exit(main())
