"""Measures klein-setup beside the tools people use today, in one run on one machine; ratios, not absolutes.

    python3 scripts/bench.py [--size 300M] [--rounds 3] [--folder DIR] [--only fetch,hub,...] [--write [FILE]]

It starts from a fresh checkout: where a package is missing, it makes the private environment first.  Everything happens
on 127.0.0.1: three files of random bytes with the proportions of the default set (``--size 12452M`` is its true size)
are fetched by each tool in turn, so that what else the machine does hits all of them alike.

fetch
    ``curl``, ``aria2c`` and ``install`` from nginx, as fast as it goes; then with a cap per connection.
hub
    ``hf download`` and ``install`` from the embedded hub, which is a Python server: compare these two, not with nginx.
wheel
    ``uv pip install`` of a wheel of a quarter of the size, and the bare fetch of its bytes.
start
    What a person waits for before anything happens.
verify
    What ``scripts/bench_verify.py`` measures: ``sha256sum``, a bare loop over blocks, verify, damage and repair.

A tool that is missing is left out, and the result says so.  With --write the result goes to scripts/results/bench.md,
or where it says, and that of `verify` to bench_verify.md; they are kept in the repository.
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
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if sys.platform == "win32":
    sys.exit("bench: nginx, sync and wait4 are needed; run this on Linux or macOS")

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "scripts" / "results" / "bench.md"
CAP_MB_S = 40
START_UPS = 25  # rounds: a hundred milliseconds are easily disturbed
QUICK_BOUND_MS = 150
PROGRAMS = ("nginx", "curl", "aria2c", "uv", "sha256sum")
PARTS = ("fetch", "hub", "wheel", "start", "verify")
SHAPE = {"text-encoder": 0.646, "model": 0.327, "vae": 0.027}  # of all bytes, as in the default set
REPO_ID, REVISION = "bench/set", "5e0a" * 10


@dataclass
class ProcessResult:
    """One process: seconds from start to end, its largest resident memory in bytes, and the work of the machine."""

    seconds: float
    memory_bytes: int
    busy_s: float  # of all cores together, the server's included; 0 where the system does not say


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
    def busy_s(self) -> float:
        """The middle of the rounds."""
        return statistics.median(run.busy_s for run in self.runs)

    @property
    def memory_bytes(self) -> int:
        """The largest of the rounds."""
        return max(run.memory_bytes for run in self.runs)


def main() -> int:
    """Run every comparison and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_of, default="2G", help="of all files: 300M, 2G, 12451M (default: 2G)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default: all)")
    kept = RESULT.relative_to(ROOT)
    parser.add_argument("--write", nargs="?", type=Path, const=RESULT, metavar="FILE", help=f"write {kept}, or FILE")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="klein-bench-", dir=arguments.folder) as folder:
        text = "\n".join(Bench(Path(folder), arguments.size, arguments.rounds).run(parts)) + "\n"
    print(text)
    from scripts import bench_verify

    of_verify = ""
    if "verify" in parts and found("sha256sum"):
        with tempfile.TemporaryDirectory(prefix="klein-bench-", dir=arguments.folder) as folder:
            size = arguments.size // 3
            of_verify = bench_verify.report(
                bench_verify.measure(Path(folder), size=size, files=3, rounds=arguments.rounds)
            )
        print(of_verify)
    if arguments.write is not None:
        arguments.write.write_text(text, encoding="utf-8")
        if of_verify:
            bench_verify.RESULT.write_text(of_verify, encoding="utf-8")
    return 0


def size_of(text: str) -> int:
    """Return the bytes of a size like 300M or 2G; raises ValueError."""
    return int(text[:-1]) * {"M": 1000**2, "G": 1000**3}[text[-1:].upper()] if text[-1:].upper() in "MG" else int(text)


def found(program: str) -> str | None:
    """Return the path of a program, first of those beside this Python, or None."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(program, path=os.pathsep.join((beside, os.environ.get("PATH", ""))))


def machine() -> str:
    """Return in words what this runs on: cores, processor, what it has for SHA-256, kernel, memory, Python."""
    from scripts.bench_verify import has_sha_instructions, usable_cores

    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    release = ".".join(platform.release().split(".")[:2])
    return (
        f"{platform.system()} {release}, {platform.machine()}, {name or 'processor not named'} "
        f"{has_sha_instructions()}, {usable_cores()} cores shared by server and client, {memory:.0f} GB of memory, "
        f"Python {platform.python_version()}"
    )


@dataclass(frozen=True)
class Contestant:
    """What takes part: how it is called, the program it needs, and what it does."""

    name: str
    program: str | None
    does: Callable[[], ProcessResult]


class Bench:
    """A folder, the files, a server and the contestants."""

    def __init__(self, folder: Path, size: int, rounds: int) -> None:
        self.folder = folder
        self.rounds = rounds
        self.out = folder / "out"
        self.www = folder / "www"
        self.www.mkdir()
        self.sizes = {name: int(size * share) for name, share in SHAPE.items()}
        self.digests = {name: write_random(self.www / name, each) for name, each in self.sizes.items()}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def run(self, parts: Sequence[str]) -> list[str]:
        """Return the report, a line each."""
        missing = [program for program in PROGRAMS if found(program) is None]
        said = ["python3", "scripts/bench.py", *sys.argv[1:]]
        lines = [
            "# Measured side by side",
            "",
            f"`{' '.join(said)}`, {time.strftime('%Y-%m-%d', time.gmtime())}: {machine()}; loopback, "
            f"{self.rounds} rounds interleaved, medians; {os.getloadavg()[0]:.1f} processes wanted a core at first.",
            *(["", f"Not installed here, so not compared: {', '.join(missing)}."] if missing else []),
            "",
        ]
        if found("nginx") and {"fetch", "wheel", "start"} & set(parts):
            with serve(self.folder, self.www) as (free, capped):
                lines += self.fetch(free, capped) if "fetch" in parts else []
                lines += self.wheel(free) if "wheel" in parts else []
                lines += self.start_up(free) if "start" in parts else []
        return lines + (self.hub() if "hub" in parts else [])

    # --- contestants -------------------------------------------------------------------------------

    def fetch(self, free: str, capped: str) -> list[str]:
        """Fetch the set from nginx."""
        everything, smallest = tuple(self.sizes), ("model",)
        rows = self.compete(self.from_server(free, everything), self.rounds)
        return [
            *self.table(f"{len(everything)} files, {self.size / 1e9:.2f} GB, no limit", rows, self.size),
            *self.bound(rows[0]),
            *self.table(
                f"1 file, {self.sizes['model'] / 1e9:.2f} GB, {CAP_MB_S} MB/s per connection",
                self.compete(self.from_server(capped, smallest, ("curl", "aria", "ours")), 1),
                self.sizes["model"],
            ),
        ]

    def bound(self, without_hash: Row) -> list[str]:
        """Say what the processor allows: fetching without a hash costs what it costs, and SHA-256 comes on top."""
        from scripts.bench_verify import usable_cores

        if not without_hash.busy_s:
            return []
        path, cores = self.www / "model", usable_cores()
        digest, began = hashlib.sha256(), time.process_time()
        with path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        once_s = (time.process_time() - began) * self.size / path.stat().st_size
        least_s = (without_hash.busy_s + 2 * once_s) / cores
        return [
            f"One SHA-256 of all bytes takes {once_s:.2f} s of one core; klein-setup makes two, of each block and of "
            f"each whole file. With what `{without_hash.name}` and the server need, {without_hash.busy_s:.2f} s, these "
            f"{cores} cores cannot be done in less than {least_s:.2f} s, which is a ratio of "
            f"{without_hash.median_s / least_s:.2f}.",
            "",
        ]

    def from_server(
        self, server: str, names: Sequence[str], who: Sequence[str] = ("curl", "at-once", "hash", "aria", "ours")
    ) -> dict[str, Contestant]:
        """Return who fetches files from a server, and how; the first is what the others are compared with."""
        wanted = " ".join(f"-o '{self.out}/{name}' '{server}/{name}'" for name in names)
        sums = self.folder / "sums"
        sums.write_text("".join(f"{self.digests[name]}  {self.out}/{name}\n" for name in names), encoding="utf-8")
        listed = self.folder / "aria2.txt"
        listed.write_text(
            "".join(f"{server}/{name}\n  out={name}\n  checksum=sha-256={self.digests[name]}\n" for name in names),
            encoding="utf-8",
        )
        manifest = self.manifest({name: {"url": f"{server}/{name}"} for name in names})
        sync = f"sync '{self.out}'/*"
        contestants = {
            "curl": Contestant("curl, sync (no hash)", "curl", lambda: shell(f"curl -sf {wanted} && {sync}")),
            "at-once": Contestant("curl -Z, sync (no hash)", "curl", lambda: shell(f"curl -Zsf {wanted} && {sync}")),
            "hash": Contestant(
                "curl -Z, sync, sha256sum -c",
                "curl",
                lambda: shell(f"curl -Zsf {wanted} && {sync} && sha256sum -c --quiet '{sums}'"),
            ),
            "aria": Contestant(
                "aria2c -x8 -s8 --checksum, sync",
                "aria2c",
                lambda: shell(
                    f"aria2c -q -x8 -s8 --file-allocation=none --allow-overwrite=true -d '{self.out}' -i '{listed}' "
                    f"&& {sync}"
                ),
            ),
            "ours": Contestant("klein-setup install (SHA-256, durable)", None, lambda: self.ours(manifest)),
        }
        return {name: contestants[name] for name in who}

    def hub(self) -> list[str]:
        """Fetch the set from the embedded hub."""
        from provisioner.rehearsal.hub import RehearsalHub

        files = {f"{name}.safetensors": self.www / name for name in self.sizes}
        with RehearsalHub() as hub:
            digests = {f"{name}.safetensors": digest for name, digest in self.digests.items()}
            hub.add_repository(REPO_ID, REVISION, dict(files), digests=digests)
            source = {"repo_id": REPO_ID, "revision": REVISION}
            manifest = self.manifest({name: {**source, "filename": f"{name}.safetensors"} for name in self.sizes})
            words = [sys.executable, "-m", "huggingface_hub.cli.hf", "download", REPO_ID, "--revision", REVISION]
            words += ["--local-dir", str(self.out)]
            environ = {**self.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
            rows = self.compete(
                {
                    "hf": Contestant("hf download (no SHA-256)", None, lambda: process(words, environ)),
                    "ours": Contestant(
                        "klein-setup install (SHA-256, durable)", None, lambda: self.ours(manifest, hub.endpoint)
                    ),
                },
                self.rounds,
            )
        return self.table(f"{len(files)} files, {self.size / 1e9:.2f} GB, from a hub in Python", rows, self.size)

    def wheel(self, server: str) -> list[str]:
        """Install a wheel from an index, beside the fetch of its bytes."""
        name, folder = "benchwheel-1.0-py3-none-any.whl", self.www / "simple" / "benchwheel"
        folder.mkdir(parents=True)
        digest = make_wheel(folder / name, self.size // 4)
        page = f'<a href="{name}#sha256={digest}">{name}</a>'
        (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{page}</body></html>", encoding="utf-8")
        url, target = f"{server}/simple/benchwheel/{name}", self.out / "site"
        fetch = f"curl -sf -o '{self.out}/{name}' '{url}' && sync '{self.out}/{name}'"
        uv = [found("uv") or "uv", "pip", "install", "--no-cache", "--index-url", f"{server}/simple"]
        uv += ["--python", sys.executable, "--target", str(target), "benchwheel==1.0"]
        rows = self.compete(
            {
                "curl": Contestant("curl, sync (no hash)", "curl", lambda: shell(fetch)),
                "uv": Contestant("uv pip install --no-cache", "uv", lambda: process(uv, self.environ)),
            },
            self.rounds,
        )
        size = (folder / name).stat().st_size
        return self.table(f"1 wheel, {size / 1e9:.2f} GB, no limit", rows, size)

    def compete(self, contestants: Mapping[str, Contestant], rounds: int) -> list[Row]:
        """Let each that is installed do it in turn, as often as there are rounds."""
        there = [each for each in contestants.values() if each.program is None or found(each.program)]
        rows = [Row(each.name) for each in there]
        for _ in range(rounds):
            for row, each in zip(rows, there, strict=True):
                shutil.rmtree(self.out, ignore_errors=True)
                self.out.mkdir()
                os.sync()
                row.runs.append(each.does())
        return rows

    def ours(self, manifest: Path, endpoint: str | None = None) -> ProcessResult:
        """Fetch into a new tree and check that the files are there."""
        words = ["--endpoint", endpoint] if endpoint else ["--allow-loopback"]
        ran = process([*self.command(manifest), "--only", "files", *words], self.environ)
        for wanted in json.loads(manifest.read_text())["artifacts"]:
            placed = self.out / "models" / "other" / wanted["name"]
            if not placed.is_file() or placed.stat().st_size != wanted["size"]:
                sys.exit(f"bench: klein-setup did not place {placed.name}")
        return ran

    def command(self, manifest: Path, command: str = "install") -> list[str]:
        """Return the whole command, as a person would start it."""
        return [sys.executable, "-m", "provisioner", command, "--manifest", str(manifest), "--comfyui", str(self.out)]

    @property
    def environ(self) -> dict[str, str]:
        """A home of its own, and Python as people run it: with its compiled modules kept."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        home = self.folder / "home"
        return {**kept, "PYTHONPATH": str(ROOT), "HOME": str(home), "HF_HOME": str(home / "hf")}

    def manifest(self, sources: Mapping[str, Mapping[str, str]]) -> Path:
        """Write a manifest that names some of the files, each with where it comes from."""
        path = self.folder / "manifest.json"
        artifacts = [
            {
                "id": name,
                "role": "other",
                "name": f"{name}.safetensors",
                "folder": "other",
                "size": self.sizes[name],
                "sha256": self.digests[name],
                "sources": [source],
            }
            for name, source in sources.items()
        ]
        document = {
            "schema_version": 1,
            "id": "bench",
            "title": "Files of random bytes",
            "licence": {"name": "none", "url": "https://example.org", "is_commercial_use_allowed": True},
            "default_set": "all",
            "sets": [{"id": "all", "title": "All", "target": "comfyui", "artifacts": list(sources)}],
            "artifacts": artifacts,
        }
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    # --- start-up ------------------------------------------------------------------------------------

    def start_up(self, server: str) -> list[str]:
        """Measure what a person waits for before anything happens."""
        manifest = self.manifest({name: {"url": f"{server}/{name}"} for name in self.sizes})
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.ours(manifest)
        python = [sys.executable, "-c", "pass"]
        rows = [
            ("python -c pass", python),
            ("klein-setup --help", [sys.executable, "-m", "provisioner", "--help"]),
            ("klein-setup verify --quick", [*self.command(manifest, "verify"), "--quick"]),
            ("second klein-setup install", [*self.command(manifest), "--only", "files", "--allow-loopback"]),
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

    def table(self, title: str, rows: list[Row], size: int) -> list[str]:
        """Return one comparison as Markdown; the first is what the others are compared with."""
        base = rows[0].median_s
        lines = [f"## {title}", "", "| tool | s | MB/s | ratio | core seconds | resident |"]
        lines.append("|---|---:|---:|---:|---:|---:|")
        for row in rows:
            rate = size / row.median_s / 1e6
            memory = f"{row.memory_bytes / 1e6:.0f} MB" if row.name.startswith("klein") else ""
            busy = f"{row.busy_s:.2f}" if row.busy_s else ""
            ratio = base / row.median_s
            lines.append(f"| {row.name} | {row.median_s:.2f} | {rate:.0f} | {ratio:.2f} | {busy} | {memory} |")
        spread = "; ".join(
            f"{row.name} {min(run.seconds for run in row.runs):.2f}-{max(run.seconds for run in row.runs):.2f}"
            for row in rows
        )
        return [*lines, "", f"Fastest to slowest round, seconds: {spread}.", ""]


# --- doing it ------------------------------------------------------------------------------------------


def shell(line: str) -> ProcessResult:
    """Run one line of shell."""
    return process(["sh", "-c", line], dict(os.environ))


def process(words: Sequence[str], environ: dict[str, str]) -> ProcessResult:
    """Run a process to its end; a failure ends the benchmark."""
    with tempfile.TemporaryFile() as complaint:
        began, busy_s = time.perf_counter(), busy_seconds()
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
    return ProcessResult(seconds, memory, busy_seconds() - busy_s)


def start(words: Sequence[str], environ: dict[str, str]) -> float:
    """Return the seconds of a short process; waited for without looking in between, which is too coarse for it."""
    began = time.perf_counter()
    subprocess.run(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def busy_seconds() -> float:
    """Return what all cores of the machine have worked since it started; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text("ascii").split(None, 9)[1:8])
        return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return 0.0


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


def make_wheel(path: Path, size: int) -> str:
    """Write a wheel with one file of random bytes; return its SHA-256."""
    record = "benchwheel/data.bin,,\nbenchwheel-1.0.dist-info/METADATA,,\nbenchwheel-1.0.dist-info/WHEEL,,\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as wheel:
        with wheel.open(zipfile.ZipInfo("benchwheel/data.bin"), "w", force_zip64=True) as data:
            for offset in range(0, size, 16 * 1024**2):
                data.write(os.urandom(min(16 * 1024**2, size - offset)))
        wheel.writestr("benchwheel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: benchwheel\nVersion: 1.0\n")
        wheel.writestr(
            "benchwheel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("benchwheel-1.0.dist-info/RECORD", record + "benchwheel-1.0.dist-info/RECORD,,\n")
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while piece := stream.read(1024**2):
            digest.update(piece)
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
        "events { worker_connections 256; }\nhttp { access_log off; default_type application/octet-stream; "
        f"types {{ text/html html; }} sendfile on; tcp_nopush on; {temporary}\n"
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
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
