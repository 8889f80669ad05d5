"""Measures what peers save the mirror, with real processes on loopback, and works out what that means for more hosts.

    uv run python scripts/bench_peers.py [--hosts 1,6,12] [--size 256] [--rate 50] [--write]

The mirror is the embedded hub behind one wire of so many MB/s, and counts what it sends.  Without peers every host
fetches from it.  With peers one host fetches, seeds with the same rate, and the others take from it and each other.
All hosts share the processors of this computer.  With --write the tables go to scripts/results/peers.md.  Linux only.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

if sys.platform != "linux":
    sys.exit("bench_peers: measured on Linux; run this there")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402
from tests.support.comfy_server import free_port  # noqa: E402
from tests.support.sandbox import MIB, TOKEN, Sandbox, Wanted, sha256_of, tensors  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "peers.md"
PIECE = 4 * MIB  # of a torrent of ours
MORE_HOSTS = (20, 200, 2000)
SET_BYTES, WIRE_BYTES_S = 12e9, 125e6  # of the table for more hosts: a set of 12 GB, 1 Gbit/s for every host
MOST_SECONDS = 400


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one play took: seconds until the slowest host was done, and what was sent."""

    hosts: int
    plain_s: float
    plain_sent: float  # times the set
    plain_processor_s: float  # of each host
    peers_s: float  # the first host's fetch, hashing and start of the seed included
    first_s: float  # of it: until the seed was ready
    peers_sent: float  # by the mirror, times the set
    seed_sent: float  # by the seed, times the set
    peers_processor_s: float  # of each host that takes; the seed's own not included
    seed_processor_s: float


class Host:
    """One host: a home and a tree of its own, one process at a time."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self.sandbox, self.folder = sandbox, sandbox.folder / name
        self.folder.mkdir()
        old, new = str(sandbox.home), str(self.folder / "home")
        self.environ = {key: value.replace(old, new) for key, value in sandbox.environ.items()}
        self.seconds = self.processor_s = 0.0
        self.status: int | None = None

    def start(self, command: str, *words: str | Path) -> None:
        """Start a command with this host's tree."""
        usual = ["--comfyui", self.folder / "ComfyUI", "--manifest", self.sandbox.manifest]
        if command == "install":
            usual += ["--yes", "--only", "files", "--send-token", "--endpoint", self.sandbox.hub.endpoint]
        self.status, self._began = None, time.monotonic()
        self.said = self.folder / f"{command}.txt"
        with self.said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "provisioner", command, *map(str, [*usual, *words])],
                env=self.environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self._watch = threading.Thread(target=self._wait, daemon=True)
        self._watch.start()

    def _wait(self) -> None:
        _, status, used = os.wait4(self._process.pid, 0)
        self.seconds, self.processor_s = time.monotonic() - self._began, used.ru_utime + used.ru_stime
        self.status = os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        """Wait for the end; whatever is wrong ends the measurement."""
        self._watch.join(MOST_SECONDS)
        if self.status != 0:
            self.kill()
            sys.exit(f"exit status {self.status}\n{self.said.read_text()}")

    def check(self) -> None:
        """Read what was installed."""
        for wanted in self.sandbox.files:
            if sha256_of(self.folder / "ComfyUI" / "models" / wanted.folder / wanted.name) != wanted.sha256:
                sys.exit(f"{self.folder}: {wanted.name} is wrong")

    def interrupt(self) -> None:
        """End it as Ctrl-C does."""
        os.kill(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End what still runs."""
        if self.status is None:
            os.kill(self._process.pid, signal.SIGKILL)


def install_all(hosts: Sequence[Host], words: Sequence[Sequence[str | Path]]) -> float:
    """Install on all at once; return the seconds until the slowest was done."""
    began = time.monotonic()
    for host, each in zip(hosts, words, strict=True):
        host.start("install", *each)
    for host in hosts:
        host.end()
    seconds = time.monotonic() - began
    for host in hosts:
        host.check()
    return seconds


def measure(number: int, size: int, rate: int) -> Row:
    """Return the row of so many hosts."""
    with tempfile.TemporaryDirectory() as name, RehearsalHub(tokens=[TOKEN]) as hub:
        sandbox = Sandbox(Path(name), hub)
        sandbox.publish(Wanted(data=tensors(size * 3 // 4)), Wanted(data=tensors(size // 4), name="b.safetensors"))
        hub.rate_bytes_s = rate
        plain = [Host(sandbox, f"plain-{index}") for index in range(number)]
        plain_s = install_all(plain, [[] for _ in plain])
        plain_sent = sandbox.bytes_served() / size
        hub.clear_requests()

        began = time.monotonic()
        seeder, torrent = Host(sandbox, "seeder"), sandbox.folder / "set.torrent"
        install_all([seeder], [[]])
        address = f"127.0.0.1:{free_port()}"
        seeder.start("seed", "--listen", address, "--torrent", torrent, "--limit-rate", str(rate))
        wait_for(address, seeder)
        first_s = time.monotonic() - began
        takers = [Host(sandbox, f"taker-{index}") for index in range(number)]
        listens = [f"127.0.0.1:{port}" for port in free_ports(number)]
        words: list[list[str | Path]] = []
        for own in listens:
            others = [["--peer", each] for each in (address, *listens) if each != own]
            words.append(["--torrent", torrent, "--listen", own, *(word for each in others for word in each)])
        install_all(takers, words)
        peers_s = time.monotonic() - began
        seeder.interrupt()
        seeder.end()
        sent = re.search(r"ended: ([\d.]+) ([kMG]?B) sent", seeder.said.read_text())
        seed_sent = float(sent[1]) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[sent[2]] if sent else math.nan
        return Row(
            hosts=number,
            plain_s=plain_s,
            plain_sent=plain_sent,
            plain_processor_s=sum(each.processor_s for each in plain) / number,
            peers_s=peers_s,
            first_s=first_s,
            peers_sent=sandbox.bytes_served() / size,
            seed_sent=seed_sent / size,
            peers_processor_s=sum(each.processor_s for each in takers) / number,
            seed_processor_s=seeder.processor_s,
        )


def free_ports(number: int) -> list[int]:
    """Return ports that are free now, each another one."""
    ports: set[int] = set()
    while len(ports) < number:
        ports.add(free_port())
    return sorted(ports)


def wait_for(address: str, seeder: Host) -> None:
    """Wait until somebody answers there."""
    host, _, port = address.partition(":")
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((host, int(port))).close()
        except OSError:
            if seeder.status is not None or time.monotonic() > until:
                sys.exit(f"the seed does not answer\n{seeder.said.read_text()}")
            time.sleep(0.05)
        else:
            return


def plain_model(hosts: int, size: float, wire: float) -> float:
    """Return the seconds of a plain mirror: everything passes its one wire."""
    return hosts * size / wire


def peers_model(hosts: int, size: float, wire: float, seed_sent: float, processor_s: float) -> float:
    """Return the seconds with peers: to the first host, from it so often, a piece per doubling, and one host's work."""
    return (1 + seed_sent) * size / wire + math.ceil(math.log2(max(hosts, 2))) * PIECE / wire + processor_s


def page(rows: Sequence[Row], size: int, rate: int) -> str:
    """Return the result as Markdown."""
    last = rows[-1]
    per_byte = last.peers_processor_s / size
    cores = os.cpu_count() or 1
    lines = [
        "# Peers on one floor",
        "",
        f"`scripts/bench_peers.py`, {datetime.now(timezone.utc):%Y-%m-%d}: Python {platform.python_version()};",
        f"{cores} cores for the mirror and all hosts, with other work on them; a set of {size / 1e6:.0f} MB",
        f"in two files; the mirror has one wire of {rate / 1e6:.0f} MB/s, and the seed uploads no faster.",
        "Measured, with real processes of `klein-setup` on loopback, each with a home of its own.",
        "*Slowest* is the time until the last host was done; with peers there is one host more, which fetches first,",
        "hashes the files again and seeds.",
        "",
        "| hosts | plain: slowest | mirror sent | processor, each host |"
        " peers: slowest | the first host | mirror sent | seed sent | processor, each host | the seed |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.hosts} | {row.plain_s:.1f} s | {row.plain_sent:.2f} times | {row.plain_processor_s:.1f} s |"
        f" {row.peers_s:.1f} s | {row.first_s:.1f} s | {row.peers_sent:.2f} times | {row.seed_sent:.2f} times |"
        f" {row.peers_processor_s:.1f} s | {row.seed_processor_s:.1f} s |"
        for row in rows
    ]
    lines += [
        "",
        "## More hosts: worked out, not measured",
        "",
        f"A set of {SET_BYTES / 1e9:.0f} GB; {WIRE_BYTES_S * 8 / 1e9:.0f} Gbit/s for the mirror and for each host, and",
        "processors of its own for each.  Nothing else is on the wires, and no switch slows anybody down.",
        "",
        "- Plain: hosts * set / wire.",
        "- Peers: (1 + how often the seed sends the set) * set / wire + log2(hosts), rounded up, * 4 MiB / wire",
        "  (a piece from host to host) + the work of one host.  The last row above says how often the seed sends it",
        f"  ({last.seed_sent:.2f} times, which is assumed for more hosts, too) and how many processor seconds a host",
        f"  takes, {per_byte * 1e9:.1f} s per GB, its start included.",
        "",
        "| hosts | plain | mirror sends | peers | mirror sends |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {hosts:,} | {plain_model(hosts, SET_BYTES, WIRE_BYTES_S) / 60:,.0f} min |"
        f" {hosts * SET_BYTES / 1e12:.2f} TB |"
        f" {peers_model(hosts, SET_BYTES, WIRE_BYTES_S, last.seed_sent, per_byte * SET_BYTES) / 60:.1f} min |"
        f" {SET_BYTES / 1e12:.3f} TB |"
        for hosts in MORE_HOSTS
    ]
    lines += [
        "",
        "How far the formulas are off here, with the work of all hosts shared out over the cores of this computer:",
        "",
        "| hosts | plain | measured | peers | measured |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        plain = max(plain_model(row.hosts, size, rate), row.hosts * row.plain_processor_s / cores)
        work = max(row.peers_processor_s, row.hosts * row.peers_processor_s / cores)
        peers = peers_model(row.hosts, size, rate, row.seed_sent, work)
        lines.append(f"| {row.hosts} | {plain:.1f} s | {row.plain_s:.1f} s | {peers:.1f} s | {row.peers_s:.1f} s |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="1,6,12", help="numbers of hosts (default: 1,6,12)")
    parser.add_argument("--size", type=int, default=256, help="MiB of the set (default: 256)")
    parser.add_argument("--rate", type=int, default=50, help="MB/s of the mirror and of the seed (default: 50)")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    size, rate = options.size * MIB, options.rate * 1_000_000
    rows = []
    for number in map(int, options.hosts.split(",")):
        rows.append(measure(number, size, rate))
        print(rows[-1], flush=True)
    text = page(rows, size, rate)
    print(text)
    if options.write:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
