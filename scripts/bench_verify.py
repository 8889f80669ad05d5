"""Measures ``klein-setup verify`` and ``repair`` beside the bare work of the same run, page cache warm.

    python3 scripts/bench_verify.py [--size 1000000000] [--files 3] [--rounds 5] [--folder DIR] [--write]

They take turns, so that what else the machine does hits all alike: ``sha256sum`` of the files one after the other;
``hashlib`` in one stream, because what a processor's SHA instructions bring is not our doing; a bare loop that hashes
blocks of 16 MiB on all cores and does nothing else; verify of the healthy files; verify and repair after one byte of
the first file was changed and the last one was cut in half; and a bare fetch of the bytes that the repair fetches.  The
files are adopted first by the real ``install``, which verifies them once and writes receipts with block digests; what
is measured is the whole command, start-up included.  The bound of the healthy verify is 0.85 times the number of cores.
With --write the result goes to scripts/results/bench_verify.md, which is kept in the repository.  It starts from a
fresh checkout: where a package is missing, it makes the private environment first.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import random
import shutil
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
DAMAGED_BOUND = 1.5  # times the healthy verify
REPAIR_ROOM_S = 1.0  # beyond looking, fetching, and one SHA-256 of each repaired file
BLOCK = 16 * 1024 * 1024
REPO_ID, REVISION = "bench/files", "5e0a" * 10
_PIECE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Measured:
    """The rounds of one run of this script, in seconds."""

    size: int
    files: int
    cores: int
    one_after_the_other: tuple[float, ...]  # sha256sum
    one_stream: tuple[float, ...]  # hashlib
    bare_loop: tuple[float, ...]  # blocks of 16 MiB on all cores
    verify: tuple[float, ...]
    verify_damaged: tuple[float, ...]
    fetch: tuple[float, ...]  # the bytes of the repair, and nothing done with them
    one_stream_of_damaged: tuple[float, ...]  # hashlib over the files that are repaired, whole
    repair: tuple[float, ...]
    fetched: int  # bytes
    load: tuple[float, float]  # processes that wanted a core, at the start and at the end

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


def write_manifest(path: Path, digests: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Write a manifest that asks for these files in ``checkpoints``."""
    source = {"repo_id": REPO_ID, "revision": REVISION}
    artifacts = [
        {
            "id": name,
            "role": "checkpoint",
            "name": f"{name}.safetensors",
            "folder": "checkpoints",
            "size": sizes[name],
            "sha256": sha256,
            "sources": [{**source, "filename": f"{name}.safetensors"}],
        }
        for name, sha256 in digests.items()
    ]
    document = {
        "schema_version": 1,
        "id": "bench",
        "title": "Files to verify",
        "is_stand_in": True,
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


BARE_LOOP = """
import hashlib, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
block, own = int(sys.argv[1]), threading.local()
def digest(name, offset):
    if not hasattr(own, "view"):
        own.view = memoryview(bytearray(1 << 20))
    found, end = hashlib.sha256(), offset + block
    while offset < end and (count := os.preadv(files[name], [own.view], offset)):
        found.update(own.view[:count])
        offset += count
    return found.hexdigest()
files = {name: os.open(name, os.O_RDONLY) for name in sys.argv[3:]}
with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    for name, file in files.items():
        for offset in range(0, os.fstat(file).st_size, block):
            pool.submit(digest, name, offset)
"""

FETCH = """
import sys, urllib.request
for url, span in zip(sys.argv[1::2], sys.argv[2::2]):
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=" + span})) as answer:
        while answer.read(1 << 20):
            pass
"""


def timed(command: Sequence[str], environ: Mapping[str, str], *, status: int = 0) -> float:
    """Run a command and return its seconds; another exit status ends the measurement."""
    began = time.monotonic()
    done = subprocess.run(
        command, env=dict(environ), check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8"
    )
    seconds = time.monotonic() - began
    if done.returncode != status:
        sys.exit(f"bench_verify: {command[:4]} ended with {done.returncode}: {done.stderr[-400:]}")
    return seconds


def damage(paths: Sequence[Path]) -> dict[Path, range]:
    """Change one byte of the first file and cut the last one in half; return which bytes a repair has to fetch."""
    size = paths[0].stat().st_size
    at = size // 2
    with paths[0].open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    first = at // BLOCK * BLOCK
    lost = {paths[0]: range(first, min(first + BLOCK, size))}
    if len(paths) > 1:
        lost[paths[-1]] = range(first, paths[-1].stat().st_size)
        os.truncate(paths[-1], at)
    return lost


def measure(folder: Path, *, size: int, files: int, rounds: int) -> Measured:
    """Make the files, adopt them, and let everybody take turns."""
    from provisioner.rehearsal.hub import RehearsalHub

    began_with = os.getloadavg()[0]
    models = folder / "ComfyUI" / "models"
    paths = {f"file-{number}": models / "checkpoints" / f"file-{number}.safetensors" for number in range(files)}
    # No two have the same size: one would be read as a possible copy of the other.
    sizes = {name: size - number for number, name in enumerate(paths)}
    digests = {name: make_file(path, sizes[name], seed) for seed, (name, path) in enumerate(paths.items())}
    write_manifest(folder / "bench.yaml", digests, sizes)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as people run it
    environ = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    options = ["--manifest", str(folder / "bench.yaml"), "--comfyui", str(models.parent), "--json"]
    command = [sys.executable, "-m", "provisioner"]
    timed([*command, "install", *options, "--offline", "--only", "files"], environ)
    there, cores = list(paths.values()), usable_cores()
    names = [str(path) for path in there]
    copies = {path.name: Path(shutil.copy(path, folder / path.name)) for path in dict.fromkeys((there[0], there[-1]))}
    times: dict[str, list[float]] = {}
    lost: dict[Path, range] = {}
    with RehearsalHub() as hub:
        known = {f"{name}.safetensors": sha256 for name, sha256 in digests.items()}
        hub.add_repository(REPO_ID, REVISION, dict(copies), digests=known)

        def take(what: str, words: Sequence[str], status: int = 0) -> None:
            times.setdefault(what, []).append(timed(words, environ, status=status))

        for _ in range(rounds):
            take("sha256sum", ["sha256sum", *names])
            take("one stream", [sys.executable, "-c", ONE_STREAM, *names])
            take("bare loop", [sys.executable, "-c", BARE_LOOP, str(BLOCK), str(cores), *names])
            take("verify", [*command, "verify", *options])
            lost = damage(there)
            take("verify damaged", [*command, "verify", *options], status=1)
            spans = [
                each
                for path, span in lost.items()
                for each in (
                    f"{hub.endpoint}/{REPO_ID}/resolve/{REVISION}/{path.name}",
                    f"{span.start}-{span.stop - 1}",
                )
            ]
            take("fetch", [sys.executable, "-c", FETCH, *spans])
            take("repair", [*command, "repair", *options, "--only", "files", "--endpoint", hub.endpoint])
            take("one stream of damaged", [sys.executable, "-c", ONE_STREAM, *map(str, lost)])
    return Measured(
        size=size,
        files=files,
        cores=cores,
        one_after_the_other=tuple(times["sha256sum"]),
        one_stream=tuple(times["one stream"]),
        bare_loop=tuple(times["bare loop"]),
        verify=tuple(times["verify"]),
        verify_damaged=tuple(times["verify damaged"]),
        fetch=tuple(times["fetch"]),
        one_stream_of_damaged=tuple(times["one stream of damaged"]),
        repair=tuple(times["repair"]),
        fetched=sum(map(len, lost.values())),
        load=(began_with, os.getloadavg()[0]),
    )


def has_sha_instructions() -> str:
    """Return in words whether the processor has instructions for SHA-256."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return "SHA instructions not known"
    return "with SHA instructions" if {"sha_ni", "sha2"} & set(flags) else "without SHA instructions"


def compared(measured: Measured) -> list[str]:
    """Return what the rows mean beside each other, a line each."""
    middle = {
        name: statistics.median(getattr(measured, name))
        for name in ("bare_loop", "verify", "verify_damaged", "fetch", "one_stream_of_damaged", "repair")
    }
    damaged = middle["verify_damaged"] / middle["verify"]
    parts = middle["verify_damaged"] + middle["fetch"] + middle["one_stream_of_damaged"]
    return [
        f"* Verify takes {middle['verify'] / middle['bare_loop']:.2f} times as long as the bare loop.",
        f"* With damage it takes {damaged:.2f} times as long as without; the bound of {DAMAGED_BOUND} "
        f"{'holds' if damaged <= DAMAGED_BOUND else 'does not hold'}.",
        f"* Repair takes {middle['repair']:.2f} s; looking, fetching, and one SHA-256 of each repaired file take "
        f"{parts:.2f} s; the bound of {REPAIR_ROOM_S:.0f} s more "
        f"{'holds' if middle['repair'] <= parts + REPAIR_ROOM_S else 'does not hold'}.",
    ]


def report(measured: Measured) -> str:
    """Return the result as Markdown."""
    total = measured.size * measured.files
    rows = []
    contestants = {
        "sha256sum": measured.one_after_the_other,
        "hashlib, one stream": measured.one_stream,
        "blocks of 16 MiB on all cores, nothing else": measured.bare_loop,
        "klein-setup verify": measured.verify,
        "klein-setup verify, damaged": measured.verify_damaged,
        f"bare fetch of {measured.fetched / 1e6:.0f} MB": measured.fetch,
        "hashlib, one stream over the damaged files": measured.one_stream_of_damaged,
        "klein-setup repair": measured.repair,
    }
    for name, runs in contestants.items():
        median = statistics.median(runs)
        spread = f"{min(runs):.2f}-{max(runs):.2f}"
        is_over_all = runs in (measured.one_after_the_other, measured.one_stream, measured.bare_loop, measured.verify)
        rate = f"{total / median / 1e9:.2f}" if is_over_all else ""
        rows.append(f"| {name} | {median:.2f} | {rate} | {spread} |")
    bound = BOUND * measured.cores
    of_streams = statistics.median(measured.one_stream) / statistics.median(measured.verify)
    verdict = "holds" if measured.ratio >= bound else "does not hold"
    return "\n".join(
        [
            "# Verify and repair beside the bare work",
            "",
            f"`python3 scripts/bench_verify.py`, {time.strftime('%Y-%m-%d')}: {platform.machine()}, "
            f"{measured.cores} cores {has_sha_instructions()}, Python {platform.python_version()}; "
            f"{measured.files} files of "
            f"{measured.size / 1e9:.2f} GB with receipts, page cache warm, {len(measured.verify)} rounds in turns, "
            f"medians. {measured.load[0]:.1f} processes wanted a core at the start, {measured.load[1]:.1f} at the end.",
            "",
            "| what | s | GB/s | fastest to slowest |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"On {measured.cores} cores verify is {measured.ratio:.2f} times as quick as sha256sum, and "
            f"{of_streams:.2f} times as quick as one stream of the same hash; the bound of {BOUND} times the cores, "
            f"{bound:.2f}, {verdict}.",
            "",
            *compared(measured),
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
    if importlib.util.find_spec("huggingface_hub") is None:  # a fresh checkout: begin anew where the packages are
        sys.path.insert(0, str(ROOT / "scripts"))
        from bootstrap import run  # type: ignore[import-not-found]  # a sibling; mypy knows it as scripts.bootstrap

        sys.exit(run("run", [__file__, *sys.argv[1:]]))
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
