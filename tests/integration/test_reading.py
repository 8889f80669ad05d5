"""Reading every byte over all cores: right whatever the system offers, bounded, and honest about a disk that fails."""

from __future__ import annotations

import errno
import functools
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.core.errors import UnreadableError
from provisioner.core.models import BLOCK_SIZE
from provisioner.core.ports import Survey
from provisioner.files.store.file_store import FileStore
from provisioner.files.store.hash_file import hash_file, survey
from provisioner.files.store.hash_pool import BY_BLOCKS, IN_ORDER, Hashers, usable_cores
from provisioner.files.store.read_at import READ_STEP, OpenFile, open_for_reading
from tests.support.builders import file_system, sha256

BLOCK = 1000
DATA = random.Random(5).randbytes(10_500)
DIGESTS = tuple(sha256(DATA[at : at + BLOCK]) for at in range(0, len(DATA), BLOCK))


def nothing(count: int) -> None:
    """Listen to no progress."""


def by_seeking(path: Path) -> OpenFile:
    return open_for_reading(path, read_at=None)


def by_small_reads(path: Path) -> OpenFile:
    return Failing(path, most=7)


class Failing:
    """A file on a disk that fails at some bytes, or gives little at a time."""

    def __init__(self, path: Path, *, bad: frozenset[int] = frozenset(), most: int = 1 << 30) -> None:
        self._file = open_for_reading(path)
        self._bad = bad
        self._most = most

    def read_into(self, view: memoryview, offset: int) -> int:
        if any(offset <= byte < offset + len(view) for byte in self._bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._file.read_into(view[: self._most], offset)

    def close(self) -> None:
        self._file.close()


def failing_at(*bad: int) -> Callable[[Path], OpenFile]:
    return lambda path: Failing(path, bad=frozenset(bad))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    return path


def survey_of(path: Path, opener: Callable[[Path], OpenFile] = open_for_reading, size: int = len(DATA)) -> Survey:
    return survey(
        path,
        size=size,
        progress=nothing,
        cancelled=lambda: False,
        hashers=Hashers(3),
        block_size=BLOCK,
        opener=opener,
    )


@pytest.mark.parametrize("opener", [open_for_reading, by_seeking, by_small_reads])
def test_blocks_have_the_same_digests_in_whatever_way_they_are_read(
    path: Path, opener: Callable[[Path], OpenFile]
) -> None:
    assert survey_of(path, opener) == Survey(blocks=DIGESTS)
    file_digest = hash_file(
        path, progress=nothing, cancelled=lambda: False, with_blocks=True, block_size=BLOCK, opener=opener
    )
    assert (file_digest.sha256, file_digest.blocks) == (sha256(DATA), DIGESTS)


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, len(DATA) - 1])
def test_only_so_many_bytes_are_looked_at_as_were_asked_for(path: Path, size: int) -> None:
    wanted = tuple(sha256(DATA[at : min(at + BLOCK, size)]) for at in range(0, size, BLOCK))
    assert survey_of(path, size=size).blocks == wanted
    file_digest = hash_file(
        path, progress=nothing, cancelled=lambda: False, with_blocks=True, block_size=BLOCK, size=size
    )
    assert (file_digest.size, file_digest.sha256, file_digest.blocks) == (size, sha256(DATA[:size]), wanted)


def test_a_block_that_the_disk_does_not_give_is_named_and_the_others_are_read(path: Path) -> None:
    found = survey_of(path, failing_at(3 * BLOCK + 5, 7 * BLOCK))
    assert [index for index, digest in enumerate(found.blocks) if digest is None] == [3, 7]
    assert [each for each in found.blocks if each] == [each for i, each in enumerate(DIGESTS) if i not in {3, 7}]
    assert found.unreadable is not None
    assert found.unreadable.endswith(f"at byte {3 * BLOCK:,}.")
    assert str(path) in found.unreadable


def test_the_digest_of_the_whole_says_at_which_byte_the_disk_failed(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(3 * READ_STEP))
    with pytest.raises(UnreadableError, match=f"at byte {2 * READ_STEP:,}") as caught:
        hash_file(path, progress=nothing, cancelled=lambda: False, opener=failing_at(2 * READ_STEP + 9))
    assert caught.value.context["offset"] == 2 * READ_STEP
    assert caught.value.context["errno"] == errno.EIO


@pytest.mark.parametrize("opener", [open_for_reading, by_seeking])
def test_what_cannot_be_opened_is_unreadable(tmp_path: Path, opener: Callable[[Path], OpenFile]) -> None:
    with pytest.raises(UnreadableError):
        survey_of(tmp_path / "nothing", opener)
    with pytest.raises(UnreadableError):
        hash_file(tmp_path / "nothing", progress=nothing, cancelled=lambda: False, opener=opener)


def test_a_file_that_becomes_shorter_has_other_blocks_and_does_not_hang(path: Path) -> None:
    os.truncate(path, 2 * BLOCK + 3)
    found = survey_of(path)
    assert found.blocks[:2] == DIGESTS[:2]
    assert found.blocks[2] == sha256(DATA[2 * BLOCK : 2 * BLOCK + 3])
    assert set(found.blocks[3:]) == {sha256(b"")}


def test_progress_counts_every_byte_once_whoever_read_it(path: Path) -> None:
    told: list[int] = []
    survey(path, size=len(DATA), progress=told.append, cancelled=lambda: False, hashers=Hashers(4), block_size=BLOCK)
    assert (told, told[-1]) == (sorted(told), len(DATA))


def test_a_cancelled_look_stops(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        survey(path, size=len(DATA), progress=nothing, cancelled=lambda: True, hashers=Hashers(2), block_size=BLOCK)


# --- the threads -------------------------------------------------------------------------------------


def test_no_more_threads_work_than_there_are_cores_over_all_files_together() -> None:
    hashers, busy, most = Hashers(3), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.005)
        with lock:
            busy -= 1

    tasks = [hashers.give(work, rank=rank) for _ in range(10) for rank in (IN_ORDER, BY_BLOCKS)]
    for task in tasks:
        task.result()
    assert 1 < most <= 3


def test_what_has_to_be_read_in_order_goes_first() -> None:
    hashers, order = Hashers(1), list[str]()
    gate = threading.Event()
    first = hashers.give(gate.wait, rank=IN_ORDER)
    others = [
        hashers.give(functools.partial(order.append, name), rank=rank)
        for name, rank in (("block", BY_BLOCKS), ("whole", IN_ORDER))
    ]
    gate.set()
    assert first.result()
    for task in others:
        task.wait()
    assert order == ["whole", "block"]


def test_what_goes_wrong_on_a_thread_reaches_who_waits_and_the_thread_goes_on() -> None:
    hashers = Hashers(1)

    def fail() -> None:
        raise KeyboardInterrupt

    failed, fine = hashers.give(fail, rank=0), hashers.give(lambda: 5, rank=1)
    with pytest.raises(KeyboardInterrupt):
        failed.result()
    assert fine.result() == 5


def test_the_threads_go_when_there_is_nothing_to_do() -> None:
    hashers = Hashers(2)
    before = threading.active_count()
    for task in [hashers.give(lambda: None, rank=0) for _ in range(6)]:
        task.result()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_core_is_always_there() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert Hashers().limit == usable_cores()


def test_a_store_proves_and_surveys_with_the_block_size_of_its_receipts(tmp_path: Path) -> None:
    data = bytes(BLOCK_SIZE) + b"x"
    (tmp_path / "x").write_bytes(data)
    store = FileStore(file_system_of=file_system, cores=2)
    file_digest = store.hash_file(tmp_path / "x", progress=nothing, with_blocks=True)
    assert store.survey(tmp_path / "x", size=len(data), progress=nothing).blocks == file_digest.blocks
    assert len(file_digest.blocks) == 2
    assert store.hash_file(tmp_path / "x", progress=nothing, size=BLOCK_SIZE).sha256 == sha256(bytes(BLOCK_SIZE))
