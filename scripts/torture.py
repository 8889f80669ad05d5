"""Tries to break the program, many thousand times, and looks after every event whether what it promises still holds.

    python3 scripts/torture.py [--events 10000] [--minutes 60] [--seed 1] [--only KIND] [--trial N] [--write [FILE]]

Every trial has a number; number and seed decide all of it.  A trial is a tree with belongings of a user, a hub that
serves four small files, and events of one kind: kills, faults of the network, full disks, runs at the same time,
damages, refused system calls, and the same for ComfyUI's checkout and its environment.  After every event: no wrong
byte under a final name, no damaged file worse, no byte of the user's touched or lost.  After every run that ended by
itself: a documented exit status, no traceback, nothing left over.  And the next run succeeds.

Runs are real processes of the real program.  So that ten thousand events take half an hour, they are forked where
everything is imported already, with blocks of 64 KiB in place of 16 MiB (``scripts/torturing/small_blocks.py``).
Windows cannot fork; there it takes ``--only kills`` or ``--only damages``, and a second or more for each event.

What did not hold is printed with the command that plays that trial again; how fast processes run is the one thing that
the seed does not decide.  With --write the figures go to scripts/results/torture.md, which is kept in the repository.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from provisioner.rehearsal.hub import RehearsalHub  # noqa: E402 - found through the line above
from scripts.torturing.call_order import call_order, has_strace  # noqa: E402
from scripts.torturing.crowds import crowds  # noqa: E402
from scripts.torturing.damages import damages  # noqa: E402
from scripts.torturing.disks import disks  # noqa: E402
from scripts.torturing.faults import faults  # noqa: E402
from scripts.torturing.kills import kills  # noqa: E402
from scripts.torturing.trial import BrokenPromiseError, SlowStarter, Starter, Trial  # noqa: E402

MOST_BROKEN = 25
RESULT = ROOT / "scripts" / "results" / "torture.md"


@dataclass(frozen=True)
class Kind:
    """One kind of trial: what it does, how often it is chosen, what it is called in the table."""

    play: Callable[[Trial], None]
    weight: int
    title: str


def programs(trial: Trial) -> None:
    """Play one of ComfyUI and its environment, which needs the packages of the tests."""
    from scripts.torturing.programs import programs as play_one

    play_one(trial)


KINDS: Mapping[str, Kind] = {
    "kills": Kind(kills, 30, "SIGKILL of install, repair, verify, backups, uninstall, manifest lock"),
    "damages": Kind(damages, 30, "damaged, swapped, truncated, linked and lying files and records, then repair"),
    "faults": Kind(faults, 12, "faults of the network, two or three at a time"),
    "disks": Kind(disks, 12, "disks that are full at a random byte, or refuse a random call"),
    "crowds": Kind(crowds, 8, "two to nine runs at once on one tree, some of them killed"),
    "programs": Kind(
        programs, 3, "SIGKILL of the installation, update, undoing and removal of ComfyUI and environment"
    ),
    "calls": Kind(call_order, 4, "the order of system calls; calls that fail, and kills, by strace"),
}


@dataclass(kw_only=True)
class Played:
    """What one trial came to."""

    number: int
    kind: str
    events: int = 0
    complaint: str | None = None
    history: list[str] = field(default_factory=list)


def play(seed: int, number: int, only: str | None, folder: str) -> Played:
    """Play one trial; this process keeps its hub and its starter for the next."""
    chance = random.Random(f"{seed}:{number}")  # noqa: S311 - reproducible
    names = [only] if only else [name for name in KINDS if name != "calls" or has_strace()]
    kind = chance.choices(names, [KINDS[name].weight for name in names])[0]
    hub, starter = _kept_by_this_process()
    with Trial(Path(folder) / f"trial{number}", hub, starter, chance) as trial:
        played = Played(number=number, kind=kind, history=trial.history)
        try:
            KINDS[kind].play(trial)
        except BrokenPromiseError as error:
            played.complaint = str(error)
        except Exception:  # a mistake of the harness is shown like one of the program
            played.complaint = traceback.format_exc()
        played.events = trial.events
    return played


_PROCESS: list[tuple[RehearsalHub, Starter | SlowStarter]] = []


def _kept_by_this_process() -> tuple[RehearsalHub, Starter | SlowStarter]:
    if not _PROCESS:
        _PROCESS.append((RehearsalHub(), SlowStarter() if os.name == "nt" else Starter()))
    return _PROCESS[0]


def all_played(arguments: argparse.Namespace, folder: str) -> Iterator[Played]:
    """Yield trials as they end, until there are enough events or the time is over."""
    if arguments.trial is not None:
        try:
            yield play(arguments.seed, arguments.trial, arguments.only, folder)
        finally:
            for hub, starter in _PROCESS:
                hub.close()
                starter.close()
            _PROCESS.clear()
        return
    deadline, events, number = time.monotonic() + 60 * arguments.minutes, 0, 0
    waiting: set[Future[Played]] = set()
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as workers:
        while True:
            while len(waiting) < arguments.jobs and events < arguments.events and time.monotonic() < deadline:
                waiting.add(workers.submit(play, arguments.seed, number, arguments.only, folder))
                number += 1
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for each in done:
                played = each.result()
                events += max(played.events, played.complaint is not None)
                yield played


def main(given: Sequence[str] | None = None) -> int:
    """Play until there were enough events; print the table and return 0 only if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(KINDS), help="trials of this kind alone")
    parser.add_argument("--trial", type=int, metavar="N", help="play this one again")
    parser.add_argument("--jobs", type=int, default=2, help="trials at the same time")
    parser.add_argument("--folder", type=Path, help="where (default: in memory, /dev/shm, where there is one)")
    kept = RESULT.relative_to(ROOT)
    parser.add_argument("--write", nargs="?", type=Path, const=RESULT, metavar="FILE", help=f"write {kept}, or FILE")
    arguments = parser.parse_args(given)
    if os.name == "nt" and arguments.only not in ("kills", "damages"):
        parser.error("Windows cannot fork: choose --only kills or damages, and fewer events")
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    began, events, broken = time.monotonic(), Counter[str](), Counter[str]()
    trials: Counter[str] = Counter()
    where = arguments.folder or (memory if memory.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="klein-torture-", dir=where, ignore_cleanup_errors=True) as folder:
        for played in all_played(arguments, folder):
            trials[played.kind] += 1
            events[played.kind] += played.events
            if played.complaint is not None:
                broken[played.kind] += 1
                if sum(broken.values()) > MOST_BROKEN:
                    sys.exit(f"more than {MOST_BROKEN} promises broken: look at those first")
                only = f" --only {arguments.only}" if arguments.only else ""
                print(f"trial {played.number}, {played.kind}: {played.complaint}")
                print("   " + "\n   ".join(line[:200] for line in played.history[-12:]))
                print(f"   again: python3 scripts/torture.py --seed {arguments.seed}{only} --trial {played.number}")
    text = summary(arguments, trials, events, broken, time.monotonic() - began)
    print(text)
    if arguments.write is not None:
        arguments.write.write_text(text, encoding="utf-8")
    return 1 if broken else 0


def summary(
    arguments: argparse.Namespace, trials: Counter[str], events: Counter[str], broken: Counter[str], seconds: float
) -> str:
    """Return the result as Markdown."""
    rows = [
        f"| {name} | {KINDS[name].title} | {trials[name]:,} | {events[name] + broken[name]:,} | "
        f"{events[name]:,} | {broken[name]} |"
        for name in KINDS
        if trials[name]
    ]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    only = f" --only {arguments.only}" if arguments.only else ""
    return (
        "# Tried to break\n\n"
        f"`python3 scripts/torture.py --seed {arguments.seed}{only} --events {arguments.events}`, {date}, "
        f"{platform.system()}: "
        f"{sum(events.values()) + sum(broken.values()):,} events in "
        f"{sum(trials.values()):,} trials, {seconds:.0f} s.\n\n"
        f"Promises broken: {sum(broken.values())}.\n\n"
        "| kind | what happens | trials | events | held | broken |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
