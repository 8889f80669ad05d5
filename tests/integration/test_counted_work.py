"""A guard without clocks: how much work each command does, counted, beside what it may do.

The counts are exact and the same in every run, but for what arrives over several connections.  Measured on 2026-11-26
with Python 3.11 on Linux; `scripts/count_work.py` prints them anew.  Who raises a bound says in the commit what the
work is for; who lowers a count lowers its bound.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from provisioner.core.models import BLOCK_SIZE
from scripts import count_work
from scripts.count_work import count
from tests.support.counted import IS_COUNTED, Work, on_a_recorded_machine, small_files, work_of
from tests.support.sandbox import MIB, Sandbox

pytestmark = pytest.mark.skipif(not IS_COUNTED, reason="the kernel does not count what is read")

SIZE = 3 * BLOCK_SIZE  # of the one file that is not small
KIB = 1024
NOTHING = Work(**dict.fromkeys(Work.__dataclass_fields__, 0))

VERIFY = replace(
    NOTHING,
    opened=21,
    listed=3,
    read=SIZE + 128 * KIB,
    written=16 * KIB,
    calls=650,
    changed=1,
    flushed=2,
    modules=310,
    peak=24 * MIB,
)

# Bytes and memory have room for what differs by release of Python; the rest has room for one file of the user's more.
BOUNDS = {
    "--help": replace(NOTHING, read=24 * KIB, written=KIB, calls=90, modules=60, peak=6 * MIB),
    "detect": replace(NOTHING, opened=2, read=40 * KIB, written=4 * KIB, calls=350, modules=190, peak=16 * MIB),
    "plan": replace(NOTHING, opened=5, listed=1, read=96 * KIB, written=4 * KIB, calls=600, modules=310, peak=20 * MIB),
    "install": Work(
        opened=141,
        listed=45,
        read=SIZE + 192 * KIB,  # what a tail of a block was before it was complete
        written=SIZE + 256 * KIB,  # how often an unfinished block is noted is a matter of time
        calls=1020,
        changed=60,
        flushed=49,
        children=0,
        connections=13,
        requests=13,
        fetched=SIZE + 8 * KIB,
        modules=520,
        peak=48 * MIB,
    ),
    "second install": replace(
        NOTHING, opened=11, listed=2, read=96 * KIB, written=4 * KIB, calls=600, modules=310, peak=20 * MIB
    ),
    "verify --quick": replace(
        NOTHING, opened=8, listed=2, read=64 * KIB, written=2 * KIB, calls=350, modules=190, peak=14 * MIB
    ),
    "verify": VERIFY,
    "verify, damaged": replace(
        VERIFY,
        opened=29,  # who else needs the file
        listed=11,
        calls=680,
        read=SIZE + 192 * KIB,
    ),
    "repair": Work(  # with a snapshot of what was there before: its record and its manifest
        opened=97,
        listed=27,
        # Looked at, verified whole, and the block that was wrong: kept, written, and read back.
        read=2 * SIZE + 3 * BLOCK_SIZE + 256 * KIB,
        written=3 * BLOCK_SIZE + 64 * KIB,
        calls=1210,
        changed=32,
        flushed=23,
        children=0,
        connections=4,
        requests=3,
        fetched=BLOCK_SIZE + KIB,
        modules=590,
        peak=80 * MIB,
    ),
}


def test_no_command_does_more_than_its_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Work] = {}

    def kept(files: int, blocks: int) -> dict[str, Work]:
        found.update(count(files, blocks))
        return found

    monkeypatch.setattr(count_work, "count", kept)
    monkeypatch.setattr(sys, "argv", ["count_work.py"])
    assert count_work.main() == 0
    printed = capsys.readouterr().out
    assert [name for name in BOUNDS if f"| `{name}` |" not in printed] == []
    assert set(found) == set(BOUNDS)
    over = {name: work.beyond(BOUNDS[name]) for name, work in found.items()}
    assert {name: what for name, what in over.items() if what} == {}
    assert found["install"].fetched >= SIZE  # it was counted at all
    assert found["verify"].read >= SIZE
    assert found["install"].flushed >= 4 * 2  # each file's bytes and its receipt
    assert set(found["verify"].beyond(NOTHING)) >= {"opened", "listed", "read", "written", "calls", "modules", "peak"}


PER_FILE = {
    "install": {"opened": 28, "listed": 9, "flushed": 8, "requests": 2, "changed": 11},
    "verify --quick": {"opened": 1, "listed": 0, "read": 1200},
    "verify": {"opened": 3, "listed": 0, "read": 4000},
}


def test_a_file_more_is_a_constant_more(make_sandbox: Callable[[], Sandbox]) -> None:
    """What the tenth file costs, the thirtieth costs too: nothing is read or listed again for each of the others.

    The bytes of an installation are left out: a receipt of all files is written whole for each of them.
    """
    found = []
    for number in (10, 30):
        sandbox = on_a_recorded_machine(make_sandbox())
        sandbox.publish(*small_files(number))
        commands = (("install", "--only", "files"), ("verify",), ("verify", "--quick"))
        install, full, quick = (work_of(sandbox, *command, has_peak=False) for command in commands)
        found.append({"install": install, "verify": full, "verify --quick": quick})
    for name, bounds in PER_FILE.items():
        per_file = {each: (getattr(found[1][name], each) - getattr(found[0][name], each)) / 20 for each in bounds}
        assert {each: count for each, count in per_file.items() if count > bounds[each]} == {}, name
