"""Reading a little at a time, over a store in memory: order, going on, and records that lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from provisioner.core.models import Check
from provisioner.core.ports import Stamp
from provisioner.files import timed_reading
from provisioner.files.observe import Observer
from provisioner.files.scrub_order import (
    ScrubRecord,
    ScrubSummary,
    parse_records,
    reading_order,
    records_document,
)
from provisioner.files.timed_reading import TimedReading
from tests.support.builders import artifact, artifact_set, comfy_file, comfy_target
from tests.support.memory import MemoryStore

ONE = artifact(b"0123456789abcdefghij", name="one.safetensors", id="one")  # 5 blocks of 4 bytes
TWO = artifact(b"ABCDEFGHIJKL", name="two.safetensors", id="two")
HOME, OTHER = str(comfy_file(ONE).path), str(comfy_file(TWO).path)


def same(claimed: Stamp, found: Stamp) -> bool:
    return claimed == found


@dataclass
class Disk:
    """A tree in memory with both files, what is remembered of them, and a clock that goes on with every piece read."""

    store: MemoryStore = field(default_factory=MemoryStore)
    known: dict[str, ScrubRecord] = field(default_factory=dict)
    at: int = 1000

    def __post_init__(self) -> None:
        for each, data in ((ONE, b"0123456789abcdefghij"), (TWO, b"ABCDEFGHIJKL")):
            self.store.put(comfy_file(each).path, data)
            self.store.claim_now(comfy_file(each).path)

    def run(self, pieces: int, *, damaged_first: bool = False) -> tuple[dict[str, Check], ScrubSummary, TimedReading]:
        """Read that many pieces, with nothing in memory of the run before but its records."""
        self.at += 100
        self.store.surveyed.clear()
        self.store.proved.clear()

        def save(records: Mapping[str, ScrubRecord]) -> None:
            self.known = parse_records(records_document(records), now=self.at)

        reading = TimedReading(
            observer=Observer(store=self.store, finders=[], events=lambda event: None, is_unchanged=same, threads=1),
            wanted=artifact_set(ONE, TWO),
            target=comfy_target(),
            records=self.known,
            time_is_over=lambda: len(self.store.surveyed) + len(self.store.proved) >= pieces,
            now=lambda: self.at,
            save=save,
            damaged_first=damaged_first,
        )
        checks, summary = reading.run()
        return {str(each.destination.path): each for each in checks}, summary, reading


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(timed_reading, "_BLOCKS_AT_ONCE", 2)
    return Disk()


def test_a_file_that_is_left_in_the_middle_is_read_on_from_there(disk: Disk) -> None:
    first, summary, _ = disk.run(1)
    assert (summary.read_bytes, summary.read_files, summary.never_read) == (8, 0, 2)
    assert (first[HOME].status, first[HOME].basis) == ("ok", "receipt")  # not said to be read
    assert (disk.known[HOME].next_block, disk.known[HOME].began_at) == (2, 1100)
    _, summary, _ = disk.run(1)
    assert (summary.read_bytes, disk.known[HOME].next_block) == (8, 4)
    _, summary, _ = disk.run(1)
    assert (summary.read_bytes, summary.never_read, summary.oldest_age_s) == (4, 1, 200)  # since its first block
    assert (disk.known[HOME].began_at, disk.known[HOME].read_at) == (None, 1100)


def test_with_time_every_byte_is_read_by_one_run(disk: Disk) -> None:
    checks, summary, _ = disk.run(99)
    assert {each.basis for each in checks.values()} == {"blocks"}
    assert (summary.read_files, summary.read_bytes, summary.never_read, summary.wrong) == (2, 32, 0, 0)
    assert summary.oldest_age_s == 0


def test_what_was_read_the_longest_ago_comes_first(disk: Disk) -> None:
    disk.run(99)
    disk.known[HOME] = replace(disk.known[HOME], read_at=500)
    disk.run(1)
    assert {str(path) for path in disk.store.surveyed} == {HOME}
    disk.run(99)
    disk.known[OTHER] = replace(disk.known[OTHER], read_at=500)
    disk.run(1)
    assert {str(path) for path in disk.store.surveyed} == {OTHER}


def test_records_that_lie_make_no_damaged_file_right(disk: Disk) -> None:
    disk.run(99)
    disk.store.rot(Path(HOME), b"0X23456789abcdefghij")
    disk.known[HOME] = replace(disk.known[HOME], read_at=disk.at, began_at=disk.at, next_block=4)
    checks, summary, _ = disk.run(99)  # its first blocks are read at the end of the run
    assert (checks[HOME].status, summary.wrong, disk.known[HOME].is_damaged) == ("hash-mismatch", 1, True)
    disk.known[HOME] = replace(disk.known[HOME], is_damaged=False, began_at=disk.at, next_block=10**9)
    checks, summary, _ = disk.run(99)
    assert (checks[HOME].status, summary.wrong) == ("hash-mismatch", 1)
    disk.known[HOME] = replace(disk.known[HOME], is_damaged=False, read_at=10**9)  # in the future: as if there was none
    assert parse_records(records_document(disk.known), now=disk.at).keys() == {OTHER}


def test_damage_is_named_by_its_blocks_and_told_until_the_file_is_right_again(disk: Disk) -> None:
    disk.run(99)
    disk.store.rot(Path(OTHER), b"ABCDEFGHxJKL")
    checks, _, _ = disk.run(99)
    damage = checks[OTHER].damage
    assert damage is not None
    assert damage.bad_blocks == (2,)
    disk.known[HOME] = replace(disk.known[HOME], read_at=1)
    checks, summary, reading = disk.run(1)
    assert (checks[OTHER].status, summary.wrong) == ("ok", 1)
    assert [each.artifact for each in reading.found_before()] == [TWO]
    _, _, reading = disk.run(1, damaged_first=True)
    assert {str(path) for path in disk.store.surveyed} == {OTHER}
    assert not reading.found_before()
    disk.store.put(Path(OTHER), b"ABCDEFGHIJKL")
    disk.store.claim_now(Path(OTHER))
    _, summary, _ = disk.run(99)
    assert summary.wrong == 0


def test_a_file_whose_blocks_nobody_bound_is_read_whole_once(disk: Disk) -> None:
    disk.store.is_every_receipt_bound = False
    _, summary, _ = disk.run(1)
    assert ([str(path) for path in disk.store.proved], summary.read_bytes, summary.read_files) == ([HOME], 20, 1)
    disk.known.clear()
    disk.run(1)
    assert ([str(path) for path in disk.store.proved], disk.store.surveyed) == ([], [Path(HOME)])


def test_a_file_that_was_replaced_is_read_from_its_start(disk: Disk) -> None:
    disk.run(1)
    disk.store.put(Path(HOME), b"0123456789abcdefghij")
    disk.store.claim_now(Path(HOME))
    disk.run(1)
    assert disk.known[HOME].next_block == 2


def test_a_file_that_is_being_written_is_left_for_the_next_run(disk: Disk) -> None:
    disk.store.while_reading = lambda path: disk.store.put(path, b"0123456789abcdefghij") if str(path) == HOME else None
    checks, summary, _ = disk.run(99)
    assert (checks[HOME].status, checks[HOME].basis, summary.read_files) == ("ok", "receipt", 1)
    assert disk.known[HOME].read_at is None


def test_a_file_that_is_missing_or_of_another_size_is_wrong_without_being_read(disk: Disk) -> None:
    del disk.store.files[Path(HOME)]
    disk.store.put(Path(OTHER), b"ABC")
    checks, summary, _ = disk.run(99)
    assert {each.status for each in checks.values()} == {"missing", "size-mismatch"}
    assert (summary.files, summary.wrong, summary.read_bytes, summary.oldest_age_s) == (2, 2, 0, None)


RECORD: dict[str, Any] = {
    "size": 1, "mtime_ns": 2, "inode": 3, "sha256": "a", "read_at": 4, "began_at": None, "next_block": 0,
    "is_damaged": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"sha256": 7},
        {"read_at": "x"},
        {"read_at": 99},
        {"began_at": 99},
        {"next_block": None},
        {"is_damaged": 0},
    ],
)
def test_a_record_that_cannot_be_one_counts_as_none(changes: dict[str, object]) -> None:
    assert parse_records({"schema_version": 1, "files": {"/x": RECORD, "/y": RECORD | changes}}, now=50).keys() == {
        "/x"
    }


@pytest.mark.parametrize(
    "document", [None, {}, {"schema_version": 2, "files": {"/x": RECORD}}, {"schema_version": 1, "files": []}]
)
def test_a_document_that_is_none_of_ours_has_no_records(document: dict[str, object] | None) -> None:
    assert parse_records(document, now=50) == {}


def test_the_order_of_reading() -> None:
    new = ScrubRecord(size=1, mtime_ns=1, inode=1, sha256="")
    records = {"old": replace(new, read_at=1), "bad": replace(new, read_at=9, is_damaged=True), "new": new}
    assert reading_order(records) == ["new", "old", "bad"]
    assert reading_order(records, damaged_first=True) == ["bad", "new", "old"]
    records["begun"] = replace(new, read_at=20, began_at=30, next_block=4)
    assert reading_order(records)[0] == "begun"
