"""Measures klein-setup beside the tools people use today, in one run on one machine; ratios, not absolutes.

    python3 scripts/bench.py [--size 2G] [--rounds 5] [--write]

It starts from a fresh checkout: where a package is missing, it makes the private environment first.
Everything happens on 127.0.0.1: nginx serves one file of random bytes, and each tool fetches it in turn, so that what
else the machine does hits all of them alike.  Needs nginx, curl and aria2 (installed with apt-get when run as root on
Debian).  With --write the result goes to scripts/results/bench.md, which is kept in the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if sys.platform == "win32":
    sys.exit("bench: nginx, sync and wait4 are needed; run this on Linux or macOS")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "scripts" / "results" / "bench.md"
CAP_MB_S = 40
START_UPS = 25  # rounds: a hundred milliseconds are easily disturbed
QUICK_BOUND_MS = 150
PROGRAMS = {"nginx": "nginx-light", "curl": "curl", "aria2c": "aria2"}


@dataclass
class ProcessResult:
    """One process: seconds from start to end, and its largest resident memory in bytes."""

    seconds: float
    memory_bytes: int


@dataclass
class Row:
    """One contestant: what it did, and every round's time."""

    name: str
    runs: list[ProcessResult] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """The middle of the rounds."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def memory_bytes(self) -> int:
        """The largest of the rounds."""
        return max(run.memory_bytes for run in self.runs)


def main() -> int:
    """Run every comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="2G", help="of the file, 512M or 2G (default: 2G)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    install_programs()
    size = int(arguments.size[:-1]) * {"M": 1024**2, "G": 1024**3}[arguments.size[-1]]
    with tempfile.TemporaryDirectory(prefix="klein-bench-", dir=arguments.folder) as folder:
        lines = Bench(Path(folder), size, arguments.rounds).run()
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(text, encoding="utf-8")
    return 0


def install_programs() -> None:
    """Bring the tools to compare with; raises SystemExit where that cannot be done here."""
    missing = [package for comfyui, package in PROGRAMS.items() if shutil.which(comfyui) is None]
    if not missing:
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        sys.exit(f"bench: please install {' '.join(missing)} first")
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", *missing], check=True)


class Bench:
    """A folder, a file, a server and the contestants."""

    def __init__(self, folder: Path, size: int, rounds: int) -> None:
        self.folder = folder
        self.size = size
        self.rounds = rounds
        self.out = folder / "out"
        self.www = folder / "www"
        self.www.mkdir()
        self.sha256 = write_random(self.www / "big", size)
        self.small = min(size, 1024**3)
        self.small_sha256 = write_random(self.www / "small", self.small)

    def run(self) -> list[str]:
        """Return the report, a line each."""
        lines = [
            "# Measured side by side",
            "",
            f"`python3 scripts/bench.py`, {time.strftime('%Y-%m-%d', time.gmtime())}: {platform.machine()}, "
            f"{os.cpu_count()} cores shared by server and client, Python {platform.python_version()}, nginx on "
            f"loopback, {self.rounds} rounds interleaved, medians.",
            "",
        ]
        with serve(self.folder, self.www) as (free, capped):
            lines += self.table(
                f"{self.size / 1e9:.2f} GB, no limit",
                self.compete(f"{free}/big", "big", self.size, self.sha256, self.rounds),
                "curl -o, sync (no hash)",
                self.size,
            )
            lines += self.table(
                f"{self.small / 1e9:.2f} GB, {CAP_MB_S} MB/s per connection",
                self.compete(f"{capped}/small", "small", self.small, self.small_sha256, 1, ("curl", "ours")),
                "curl -o, sync (no hash)",
                self.small,
            )
            lines += self.start_up(f"{free}/big")
        return lines

    # --- contestants -------------------------------------------------------------------------------

    def compete(
        self,
        url: str,
        name: str,
        size: int,
        sha256: str,
        rounds: int,
        who: Sequence[str] = ("curl", "hash", "aria", "ours"),
    ) -> list[Row]:
        """Let each fetch the file in turn, as often as there are rounds."""
        target = self.out / "file"
        manifest = self.manifest(url, name, size, sha256)
        contestants: dict[str, tuple[str, Callable[[], ProcessResult]]] = {
            "curl": ("curl -o, sync (no hash)", lambda: shell(f"curl -sf -o '{target}' '{url}' && sync '{target}'")),
            "hash": (
                "curl -o, sync, sha256sum",
                lambda: shell(f"curl -sf -o '{target}' '{url}' && sync '{target}' && sha256sum '{target}' >/dev/null"),
            ),
            "aria": (
                "aria2c -x8 -s8 --checksum, sync",
                lambda: shell(
                    f"aria2c -q -x8 -s8 --file-allocation=none --allow-overwrite=true --checksum=sha-256={sha256} "
                    f"-d '{self.out}' -o file '{url}' && sync '{target}'"
                ),
            ),
            "ours": ("klein-setup install (SHA-256, durable)", lambda: self.ours(manifest)),
        }
        rows = {each: Row(contestants[each][0]) for each in who}
        for _ in range(rounds):
            for each in who:
                shutil.rmtree(self.out, ignore_errors=True)
                self.out.mkdir()
                os.sync()
                rows[each].runs.append(contestants[each][1]())
        return list(rows.values())

    def ours(self, manifest: Path) -> ProcessResult:
        """Fetch into a new tree and check that the bytes are the right ones."""
        ran = process(self.command(manifest), self.environ)
        placed = self.out / "models" / "other" / "file.safetensors"
        wanted = json.loads(manifest.read_text())["artifacts"][0]
        if not placed.is_file() or placed.stat().st_size != wanted["size"]:
            sys.exit("bench: klein-setup did not place the file")
        return ran

    def command(self, manifest: Path, command: str = "install") -> list[str]:
        """Return the whole command, as a person would start it."""
        words = [sys.executable, "-m", "provisioner", command, "--manifest", str(manifest), "--comfyui", str(self.out)]
        return [*words, "--allow-loopback"] if command == "install" else words

    @property
    def environ(self) -> dict[str, str]:
        """A home of its own, and Python as people run it: with its compiled modules kept."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, "PYTHONPATH": str(ROOT), "HOME": str(self.folder / "home")}

    def manifest(self, url: str, name: str, size: int, sha256: str) -> Path:
        """Write a manifest that names the one file."""
        path = self.folder / f"{name}.json"
        artifact = {
            "id": "file",
            "role": "other",
            "name": "file.safetensors",
            "folder": "other",
            "size": size,
            "sha256": sha256,
            "sources": [{"url": url}],
        }
        document = {
            "schema_version": 1,
            "id": "bench",
            "title": "One file of random bytes",
            "licence": {"name": "none", "url": "https://example.org", "is_commercial_use_allowed": True},
            "default_set": "one",
            "sets": [{"id": "one", "title": "One", "target": "comfyui", "artifacts": ["file"]}],
            "artifacts": [artifact],
        }
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    # --- start-up ------------------------------------------------------------------------------------

    def start_up(self, url: str) -> list[str]:
        """Measure what a person waits for before anything happens."""
        manifest = self.manifest(url, "big", self.size, self.sha256)
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.ours(manifest)
        python = [sys.executable, "-c", "pass"]
        rows = [
            ("python -c pass", python),
            ("klein-setup --help", [sys.executable, "-m", "provisioner", "--help"]),
            ("klein-setup verify --quick", [*self.command(manifest, "verify"), "--quick"]),
            ("second klein-setup install", self.command(manifest)),
        ]
        before = snapshot(self.out)
        times: dict[str, list[float]] = {name: [] for name, _ in rows}
        for _ in range(START_UPS):
            for name, words in rows:
                times[name].append(start(words, self.environ))
        bare = statistics.median(times["python -c pass"])
        lines = [
            "## Start-up",
            "",
            f"Medians of {START_UPS} rounds, interleaved.",
            "",
            "| what | ms | beyond bare Python |",
            "|---|---:|---:|",
        ]
        for name, _ in rows:
            middle = statistics.median(times[name])
            lines.append(f"| {name} | {middle * 1000:.0f} | {(middle - bare) * 1000:.0f} |")
        unchanged = "no path changed" if snapshot(self.out) == before else "PATHS CHANGED"
        lines += ["", f"The bound of `verify --quick` is {QUICK_BOUND_MS} ms beyond bare Python."]
        return [*lines, "", f"The second installations wrote nothing: {unchanged}.", ""]

    def table(self, title: str, rows: list[Row], against: str, size: int) -> list[str]:
        """Return one comparison as Markdown."""
        base = next(row.median_s for row in rows if row.name == against)
        lines = [f"## {title}", "", "| tool | s | MB/s | ratio | resident |", "|---|---:|---:|---:|---:|"]
        for row in rows:
            rate = size / row.median_s / 1e6
            memory = f"{row.memory_bytes / 1e6:.0f} MB" if row.name.startswith("klein") else ""
            lines.append(f"| {row.name} | {row.median_s:.2f} | {rate:.0f} | {base / row.median_s:.2f} | {memory} |")
        extremes = [(row.name, [run.seconds for run in row.runs]) for row in rows]
        spread = ", ".join(f"{name.split(' ')[0]} {min(times):.2f}-{max(times):.2f}" for name, times in extremes)
        return [*lines, "", f"Fastest to slowest round, seconds: {spread}.", ""]


# --- doing it ------------------------------------------------------------------------------------------


def shell(line: str) -> ProcessResult:
    """Run one line of shell."""
    return process(["sh", "-c", line], dict(os.environ))


def process(words: Sequence[str], environ: dict[str, str]) -> ProcessResult:
    """Run a process to its end; a failure ends the benchmark."""
    with tempfile.TemporaryFile() as complaint:
        began = time.perf_counter()
        child = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=complaint)
        memory = 0
        while child.poll() is None:
            memory = max(memory, resident_peak(child.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.05)
        seconds = time.perf_counter() - began
        if child.returncode:
            complaint.seek(0)
            said = complaint.read().decode(errors="replace")[-400:]
            sys.exit(f"bench: {words[:4]} failed with {child.returncode}: {said}")
    return ProcessResult(seconds, memory)


def start(words: Sequence[str], environ: dict[str, str]) -> float:
    """Return the seconds of a short process; waited for without looking in between, which is too coarse for it."""
    began = time.perf_counter()
    subprocess.run(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def resident_peak(pid: int) -> int:
    """Return the largest resident memory a process had so far; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return 0


def write_random(path: Path, size: int) -> str:
    """Write random bytes; return their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        while size > 0:
            piece = os.urandom(min(size, 16 * 1024**2))
            digest.update(piece)
            stream.write(piece)
            size -= len(piece)
    return digest.hexdigest()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every path below a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@contextlib.contextmanager
def serve(folder: Path, www: Path) -> Iterator[tuple[str, str]]:
    """Serve a folder with nginx twice: as fast as it goes, and capped per connection."""
    free, capped = free_port(), free_port()
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    server = "server {{ listen 127.0.0.1:{}; root " + str(www) + "; {} }}"
    config = folder / "nginx.conf"
    user = "user root; " if os.geteuid() == 0 else ""
    config.write_text(
        f"{user}daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 256; }}\nhttp {{ access_log off; sendfile on; tcp_nopush on; {temporary}\n"
        f"{server.format(free, '')}\n{server.format(capped, f'limit_rate {CAP_MB_S}m;')} }}\n",
        encoding="utf-8",
    )
    nginx = subprocess.Popen(["nginx", "-c", str(config), "-e", f"{folder}/error.log"])
    try:
        for port in (free, capped):
            wait_for(port)
        yield f"http://127.0.0.1:{free}", f"http://127.0.0.1:{capped}"
    finally:
        nginx.terminate()
        nginx.wait()


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until a port answers."""
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    sys.exit("bench: nginx did not start")


if __name__ == "__main__":
    if importlib.util.find_spec("huggingface_hub") is None:  # a fresh checkout: begin anew where the packages are
        sys.path.insert(0, str(ROOT / "scripts"))
        from bootstrap import run  # type: ignore[import-not-found]  # a sibling; mypy knows it as scripts.bootstrap

        sys.exit(run("run", [__file__, *sys.argv[1:]]))
    sys.exit(main())
