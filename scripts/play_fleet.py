"""Measures what the Ansible collection costs: a play that installs from one mirror, by the number of hosts.

    uv run python scripts/play_fleet.py [--hosts 1,5,20] [--write]

The hosts are folders of this computer over Ansible's local connection, so they share its processors; the mirror is the
embedded hub.  Then one of the hosts is slowed down and the others are watched.  With --write the table goes to
scripts/results/play_fleet.md, which is kept in the repository.  Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

if sys.platform != "linux":
    sys.exit("play_fleet: the collection is tried from Linux; run this there")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402
from tests.support.builders import recording_of  # noqa: E402
from tests.support.fleet import Fleet, install_collection, program  # noqa: E402
from tests.support.sandbox import MIB, TOKEN, Sandbox, tensors  # noqa: E402
from tests.support.setup_fixture import ENCODER, VAE, ModelFile, rtx_4070  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "play_fleet.md"
MODEL = ModelFile(data=tensors(8 * MIB), name="flux-2-klein-4b-fp8.safetensors", folder="diffusion_models")
SIZE = sum(len(each.data) for each in (MODEL, ENCODER, VAE))
SLOW_RATE = 200_000  # bytes per second: the slow host takes three quarters of a minute for its files


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a play took; seconds and processor seconds of everything it started."""

    seconds: float
    processor_s: float


def make_fleet(folder: Path, hub: RehearsalHub, collections: Path, number: int) -> Fleet:
    """Return so many hosts, all of one machine, with nothing installed."""
    sandbox = Sandbox(folder / "sandbox", hub)
    sandbox.publish(MODEL, ENCODER, VAE)
    fleet = Fleet(folder / "hosts", sandbox, collections)
    for index in range(number):
        fleet.add(f"h{index:02}", recording_of(rtx_4070()))
    return fleet


def play(fleet: Fleet, playbook: str, *options: str, changes: int) -> Cost:
    """Run a playbook; it must succeed everywhere and change so many tasks on each host."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    played = fleet.play(playbook, *options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if played.status != 0 or set(played.changed.values()) != {changes}:
        sys.exit(played.text)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds=time.monotonic() - began, processor_s=used)


def measure(number: int, collections: Path) -> str:
    """Return the row of so many hosts."""
    with tempfile.TemporaryDirectory() as name, RehearsalHub(tokens=[TOKEN]) as hub:
        fleet = make_fleet(Path(name), hub, collections, number)
        costs = [
            play(fleet, "install", "--check", changes=1),
            play(fleet, "install", changes=1),
            play(fleet, "install", changes=0),
            play(fleet, "verify", changes=0),
        ]
        served = fleet.sandbox.bytes_served()
        cells = [f"{each.seconds:.1f} s ({each.processor_s / number:.2f})" for each in costs]
        return f"| {number} | {' | '.join(cells)} | {served / SIZE:.2f} |"


def slow_one(number: int, forks: int, collections: Path) -> str:
    """Return how the others do beside one slow host, as a sentence."""
    with tempfile.TemporaryDirectory() as name, RehearsalHub(tokens=[TOKEN]) as hub:
        fleet = make_fleet(Path(name), hub, collections, number)
        fleet.hosts["h00"]["klein_setup_limit_rate"] = f"{SLOW_RATE}"
        documents = Path(name) / "documents"
        documents.mkdir()
        fleet.environ["ANSIBLE_FORKS"] = str(forks)
        for host in fleet.hosts.values():
            host["klein_setup_documents"] = str(documents)
        began = time.time()
        play(fleet, "install", changes=1)
        ended = {path.stem: path.stat().st_mtime - began for path in documents.iterdir()}
        own = json.loads((documents / "h00.json").read_text(encoding="utf-8"))["seconds"]
    slow = ended.pop("h00")
    earlier = sum(each < slow for each in ended.values())
    return (
        f"{number} hosts, {forks} at a time, the first slowed down to {SLOW_RATE / 1e6:.1f} MB/s:\n"
        f"it was done after {slow:.1f} s ({own:.1f} s of it its run), the last of the others after\n"
        f"{max(ended.values()):.1f} s; {earlier} of the {len(ended)} others were done before it."
    )


def main() -> None:
    """Measure, print, and with ``--write`` keep."""
    parser = argparse.ArgumentParser(description="Measure the Ansible collection on many hosts.")
    parser.add_argument("--hosts", default="1,5,20", help="numbers of hosts, with commas between them")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    given = parser.parse_args()
    if program("ansible-playbook") is None:
        sys.exit("play_fleet: ansible-core is not installed beside this Python, nor on PATH")
    numbers = [int(each) for each in given.hosts.split(",")]
    with tempfile.TemporaryDirectory() as name:
        collections = install_collection(Path(name))
        rows = [measure(number, collections) for number in numbers]
        sentence = slow_one(max(numbers), 5, collections) if max(numbers) > 1 else "One host waits for nobody."
    today = datetime.now(tz=timezone.utc).date()
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# Many hosts with Ansible",
        "",
        f"`scripts/play_fleet.py`, {today}: Python {platform.python_version()}; {cores} cores for the controller,",
        f"the mirror and all hosts; a set of {SIZE / 1e6:.1f} MB.  Seconds of the whole play, in brackets processor",
        "seconds for each host; last, how often the mirror sent the set in all four plays.",
        "",
        "| hosts | `install --check` | `install` | second `install` | `verify` | sent |",
        "|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        sentence,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.write:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
