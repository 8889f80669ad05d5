"""A model of the time from the command to the first image: today's order, the order that the needs allow, the bound.

    python3 scripts/time_to_image.py [--measure] [--write]

A link has a rate and a latency; a machine hashes, installs and starts at measured rates.  The steps
are those of a first installation, each with what it needs.  Three ways to do them are compared:

serial
    One step after the other, the packages before the models, each file hashed while it arrives.
graph
    Every step begins as soon as what it needs is there; everything that arrives shares one link, the packages first,
    because more waits for them than for the models.
bound
    All bytes over the link at its full rate, then one image: no order can be below it.  The start of the server is not
    in it, because it can be over when the last model arrives.

Nothing is run, unless --measure is given: then the real ``install`` fetches small files from the embedded hub, which
keeps to a rate and answers late, and what it takes is put beside what the model says of the same files.

With --write the tables go to scripts/results/time_to_image.md, which is kept in the repository.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULT = ROOT / "scripts" / "results" / "time_to_image.md"
MBIT = 1e6 / 8  # bytes


@dataclass(frozen=True, kw_only=True)
class Link:
    """A way to the servers.

    Parameters
    ----------
    rate : float
        Bytes a second, all connections together.
    latency_s : float
        Seconds of a round trip.
    window : int
        Most bytes that one connection has on the way, which is what limits it on a long way (TCP's receive window).
    connections : int
        Most at a time.
    """

    rate: float
    latency_s: float
    window: int = 6 * 1024 * 1024  # Linux's default limit, net.ipv4.tcp_rmem
    connections: int = 8

    def rate_with(self, connections: int) -> float:
        """Return the bytes a second that so many connections get through."""
        return min(self.rate, connections * self.window / self.latency_s if self.latency_s else self.rate)

    def before_first_byte_s(self, requests: int) -> float:
        """Return what is waited for before bytes flow: a name, TCP, TLS (4 round trips), and each request's own."""
        return (4 + requests) * self.latency_s


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine does by itself, measured."""

    hash_bytes_s: float  # SHA-256, one stream
    install_bytes_s: float  # wheels, unpacked
    make_environment_s: float
    resolve_s: float
    start_server_s: float  # ComfyUI's imports
    load_and_draw_s: float  # the first image, models read from the disk


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: bytes that arrive and seconds of work, after what it needs."""

    name: str
    needs: tuple[str, ...] = ()
    bytes: int = 0
    requests: int = 0
    work_s: float = 0.0
    connections: int = 1


@dataclass(frozen=True, kw_only=True)
class Done:
    """When a step began and ended, in seconds."""

    began_s: float
    ended_s: float


def first_installation(machine: Machine, link: Link, *, wheels: int, models: Sequence[int]) -> tuple[Step, ...]:
    """Return the steps of a first installation in today's order; sizes in bytes."""
    fetches = tuple(
        Step(name=f"model {number}", bytes=size, requests=3, connections=link.connections)
        for number, size in enumerate(models, start=1)
    )
    return (
        Step(name="checkout", bytes=15_000_000, requests=3),
        Step(name="environment", work_s=machine.make_environment_s),
        Step(name="resolve", needs=("environment", "checkout"), requests=20, work_s=machine.resolve_s),
        Step(name="wheels", needs=("resolve",), bytes=wheels, requests=60, connections=link.connections),
        Step(name="install", needs=("wheels", "environment"), work_s=wheels / machine.install_bytes_s),
        *fetches,
        Step(name="server", needs=("install", "checkout"), work_s=machine.start_server_s),
        Step(name="image", needs=("server", *(each.name for each in fetches)), work_s=machine.load_and_draw_s),
    )


def in_series(steps: Iterable[Step], machine: Machine, link: Link) -> dict[str, Done]:
    """Return when each step runs if every one waits for the one before; bytes are hashed while they arrive."""
    now, done = 0.0, {}
    for step in steps:
        arrives = step.bytes / min(link.rate_with(step.connections), machine.hash_bytes_s) if step.bytes else 0.0
        ended = now + link.before_first_byte_s(step.requests) * bool(step.requests) + arrives + step.work_s
        done[step.name], now = Done(began_s=now, ended_s=ended), ended
    return done


def as_a_graph(steps: Sequence[Step], machine: Machine, link: Link) -> dict[str, Done]:
    """Return when each step runs if it begins as soon as it can.

    What arrives takes the link in the order of `steps`: the first of those that are under way gets what it can use, the
    next one the rest.  Work on the processor of different steps goes side by side.

    Raises
    ------
    ValueError
        A step needs one that is not there, or that needs it.
    """
    left = {step.name: float(step.bytes) for step in steps}
    waits: dict[str, float] = {}  # by step under way: when its first byte comes, then when its work is done
    began: dict[str, float] = {}
    done: dict[str, Done] = {}
    works: dict[str, float] = {}
    now = 0.0
    while len(done) < len(steps):
        for step in steps:
            if step.name not in began and all(need in done for need in step.needs):
                began[step.name] = now
                waits[step.name] = now + link.before_first_byte_s(step.requests) * bool(step.requests)
        rates = _shares(
            [step for step in steps if step.name in began and left[step.name] > 0], waits, now, machine, link
        )
        moments = [waits[name] for name in began if waits[name] > now and name not in works and name not in done]
        moments += [now + left[name] / rate for name, rate in rates.items() if rate > 0]
        moments += works.values()
        for step in steps:
            is_whole = step.name in began and left[step.name] <= 0 and waits[step.name] <= now
            if is_whole and step.name not in works and step.name not in done:
                works[step.name] = now + step.work_s
                moments.append(works[step.name])
        if not moments:
            missing = [step.name for step in steps if step.name not in done]
            raise ValueError(f"these steps wait for one another, or for one that is not there: {', '.join(missing)}")
        then = min(moments)
        for name, rate in rates.items():
            left[name] = 0.0 if now + left[name] / rate <= then else left[name] - rate * (then - now)
        now = then
        for name in [name for name, ends in works.items() if ends <= now]:
            done[name] = Done(began_s=began[name], ended_s=works.pop(name))
    return done


def _shares(
    steps: Iterable[Step], waits: Mapping[str, float], now: float, machine: Machine, link: Link
) -> dict[str, float]:
    """Return the bytes a second that each step gets, the first as much as it can use."""
    free, shares = link.rate, {}
    for step in steps:
        if waits[step.name] <= now and free > 0:
            rate = min(free, link.rate_with(step.connections), machine.hash_bytes_s)
            shares[step.name], free = rate, free - rate
    return shares


def bound_s(steps: Iterable[Step], link: Link) -> float:
    """Return the least seconds that any order takes: all bytes at the link's rate, then the image."""
    steps = tuple(steps)
    return sum(step.bytes for step in steps) / link.rate + steps[-1].work_s


def total_s(done: Mapping[str, Done]) -> float:
    """Return when the last step ends."""
    return max(each.ended_s for each in done.values())


MACHINES = {
    "16 cores with SHA instructions": Machine(
        hash_bytes_s=1.2e9,
        install_bytes_s=250e6,
        make_environment_s=3,
        resolve_s=4,
        start_server_s=15,
        load_and_draw_s=13,
    ),
    "2 cores without": Machine(
        hash_bytes_s=0.2e9,
        install_bytes_s=80e6,
        make_environment_s=8,
        resolve_s=10,
        start_server_s=25,
        load_and_draw_s=30,
    ),
}
WHEELS = 3_000_000_000
MODELS = (4_070_000_000, 8_045_000_000, 336_000_000)  # bytes: model, text encoder, VAE
MEASURED_MBIT = (50, 100, 500, 1_000)
RATES_MBIT = (50, 100, 500, 1_000, 2_500, 10_000)
LATENCIES_MS = (5, 20, 80)


def fetch_s(machine: Machine, link: Link, sizes: Sequence[int]) -> float:
    """Return what the model says of files alone, in seconds."""
    steps = first_installation(machine, link, wheels=0, models=sizes)
    return total_s(as_a_graph([step for step in steps if step.name.startswith("model")], machine, link))


def measured() -> list[str]:
    """Let the real ``install`` fetch files over links that are slowed down; return the table beside the model's."""
    if sys.platform == "win32":
        sys.exit("time_to_image: --measure needs Linux or macOS")
    from provisioner.rehearsal.hub import RehearsalHub
    from scripts.bench_verify import REPO_ID, REVISION, make_file, write_manifest

    lines = [
        "## The model against real runs",
        "",
        "`install --only files` from the embedded hub, which keeps all connections together to the rate and begins",
        "each answer late; files of the same proportions, eight seconds of the link, at most 200 MB. The program's own",
        "start is in what was measured and not in the model.",
        "",
        "| link | round trip | bytes | measured | model | more |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    for rate, latency in itertools.product(MEASURED_MBIT, LATENCIES_MS):
        link = Link(rate=rate * MBIT, latency_s=latency / 1000)
        room = min(200_000_000, int(8 * link.rate))
        sizes = {f"model-{number}": size * room // sum(MODELS) for number, size in enumerate(MODELS)}
        with tempfile.TemporaryDirectory() as name, RehearsalHub() as hub:
            folder = Path(name)
            files = {f"{each}.safetensors": folder / each for each in sizes}
            digests = {each: make_file(folder / each, size, seed) for seed, (each, size) in enumerate(sizes.items())}
            write_manifest(folder / "files.yaml", digests, sizes)
            hub.add_repository(REPO_ID, REVISION, dict(files))
            hub.rate_bytes_s, hub.latency_s = int(link.rate), link.latency_s
            words = [sys.executable, "-m", "provisioner", "install", "--only", "files", "--endpoint", hub.endpoint]
            words += ["--manifest", str(folder / "files.yaml"), "--comfyui", str(folder / "ComfyUI"), "--json"]
            own = {"HOME": name, "XDG_STATE_HOME": f"{name}/state", "XDG_CACHE_HOME": f"{name}/cache"}
            began = time.monotonic()
            subprocess.run(words, env={**environ, **own}, check=True, capture_output=True)
            took_s = time.monotonic() - began
        says_s = fetch_s(MACHINES["2 cores without"], link, tuple(sizes.values()))
        lines.append(
            f"| {rate:,} Mbit/s | {latency} ms | {room / 1e6:.0f} MB | {took_s:.1f} s | {says_s:.1f} s | "
            f"{took_s - says_s:.1f} s |"
        )
    return [*lines, ""]


def report(*, measure: bool = False) -> str:
    """Return the tables as Markdown."""
    lines = [
        "# Time to image, simulated",
        "",
        f"`python3 scripts/time_to_image.py`, {time.strftime('%Y-%m-%d', time.gmtime())}: a model.  "
        f"{sum(MODELS) / 1e9:.2f} GB of models in {len(MODELS)} files, {WHEELS / 1e9:.1f} GB of packages, at most 8 "
        "connections.",
        "",
    ]
    for name, machine in MACHINES.items():
        lines += [
            f"## {name}",
            "",
            f"SHA-256 {machine.hash_bytes_s / 1e9:.1f} GB/s a stream, packages unpacked at "
            f"{machine.install_bytes_s / 1e6:.0f} MB/s, server {machine.start_server_s:.0f} s, "
            f"image {machine.load_and_draw_s:.0f} s.",
            "",
            "| link | round trip | serial | graph | bound | graph saves | above the bound |",
            "|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for rate in RATES_MBIT:
            for latency in LATENCIES_MS:
                link = Link(rate=rate * MBIT, latency_s=latency / 1000)
                steps = first_installation(machine, link, wheels=WHEELS, models=MODELS)
                serial = total_s(in_series(steps, machine, link))
                graph = total_s(as_a_graph(steps, machine, link))
                least = bound_s(steps, link)
                lines.append(
                    f"| {rate:,} Mbit/s | {latency} ms | {serial:,.0f} s | {graph:,.0f} s | {least:,.0f} s | "
                    f"{serial - graph:,.0f} s | {100 * (graph / least - 1):.0f} % |"
                )
        lines.append("")
    return "\n".join(lines + (measured() if measure else []))


def main() -> int:
    """Print the tables, and keep them with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="let the program fetch over slow links, too")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    text = report(measure=arguments.measure)
    sys.stdout.write(text)
    if arguments.write:
        RESULT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
