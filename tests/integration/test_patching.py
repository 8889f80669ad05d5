"""A repair in place, step by step: every system call may be the last one, disks may refuse, others may write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from provisioner.core.errors import (
    FileInUseError,
    HashMismatchError,
    InsufficientSpaceError,
    StorageError,
    UnreadableError,
)
from provisioner.core.models import Damage
from provisioner.disk.calls import Disk
from provisioner.disk.root import Root
from provisioner.files.store.patch import PatchPart, patch_log_path, patch_path, read_patch_log
from provisioner.files.store.read_at import OpenFile, open_for_reading
from provisioner.files.store.set_aside import list_backups, read_index
from tests.support.builders import sha256

BLOCK = 2048
DATA = random.Random(3).randbytes(10 * BLOCK + 700)
COUNT = 11
DIGESTS = tuple(sha256(DATA[at : at + BLOCK]) for at in range(0, len(DATA), BLOCK))
BAD = (1, 4, 10)
SECTOR = 512


def spoilt(blocks: tuple[int, ...] = BAD) -> bytes:
    data = bytearray(DATA)
    for block in blocks:
        for at in range(block * BLOCK, min((block + 1) * BLOCK, len(DATA)), 100):
            data[at] ^= 0x55
    return bytes(data)


OLD = spoilt()


def damage_of(data: bytes) -> Damage:
    """Look at some bytes as the observer does."""
    bad = tuple(
        index
        for index in range(COUNT)
        if sha256(data[index * BLOCK : (index + 1) * BLOCK][: length(index)]) != DIGESTS[index]
    )
    return Damage(
        size=len(DATA),
        sha256=sha256(DATA),
        block_size=BLOCK,
        digests=DIGESTS,
        trusted_by="receipt",
        observed_size=len(data),
        bad_blocks=bad,
    )


def length(index: int) -> int:
    return min(BLOCK, len(DATA) - index * BLOCK)


class Killed(BaseException):
    """Stands for a SIGKILL."""


@dataclass
class Scene:
    """A tree with one damaged file."""

    root: Path
    disk: Disk = field(default_factory=Disk)
    opener: Callable[[Path], OpenFile] = open_for_reading
    are_blocks_bound: bool = False
    announce: Callable[[str, int], None] = lambda source, mtime_ns: None
    fetched: int = 0

    @property
    def path(self) -> Path:
        return self.root / "vae" / "vae.safetensors"

    def put(self, data: bytes = OLD) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(data)

    def part(self) -> PatchPart:
        return PatchPart(
            self.path,
            target=self.path,
            root=Root(self.root),
            damage=damage_of(self.path.read_bytes()),
            reason="blocks differ",
            are_blocks_bound=self.are_blocks_bound,
            opener=self.opener,
            announce=self.announce,
            disk=self.disk,
        )

    def fill(self, part: PatchPart, data: bytes = DATA) -> None:
        for index in part.missing_blocks():
            piece = data[index * BLOCK : (index + 1) * BLOCK]
            part.write(index * BLOCK, piece[:300])
            part.write(index * BLOCK + 300, piece[300:])
            part.finish_block(index, sha256(piece))
            self.fetched += len(piece)

    def repair(self) -> None:
        with self.part() as part:
            self.fill(part)
            assert part.seal().sha256 == sha256(DATA)
            part.commit("the hub")

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())

    def restored(self) -> bytes:
        """Return what the oldest kept bytes make of the repaired file."""
        entry = list_backups([self.root])[0]
        index = read_index(entry.path)
        assert index is not None
        data = bytearray(self.path.read_bytes())
        for piece in index["pieces"]:
            data[piece["offset"] : piece["offset"] + piece["size"]] = (entry.path / piece["name"]).read_bytes()
        return bytes(data[: index["old_size"]])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.put()
    return scene


def positional(descriptor: int, view: memoryview, offset: int) -> int:
    if sys.platform == "win32":
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, view)
    return os.pwrite(descriptor, view, offset)


@pytest.mark.parametrize("disk", [Disk(), Disk(write_at=None)], ids=["here", "as on Windows"])
def test_only_the_bad_blocks_are_written_and_the_old_ones_are_kept(scene: Scene, disk: Disk) -> None:
    scene.disk = disk
    inode = scene.path.stat().st_ino
    scene.repair()
    assert scene.path.read_bytes() == DATA
    assert scene.path.stat().st_ino == inode
    assert scene.fetched == sum(map(length, BAD))
    assert scene.names() == ["vae.safetensors"]
    assert scene.restored() == OLD
    (entry,) = list_backups([scene.root])
    assert (entry.was, entry.reason, entry.is_blocks) == ("vae/vae.safetensors", "blocks differ", True)


def test_nothing_under_the_name_changes_before_the_whole_is_verified(scene: Scene) -> None:
    before = scene.path.stat().st_mtime_ns
    with scene.part() as part:
        scene.fill(part)
        file_digest = part.seal()
        assert scene.path.read_bytes() == OLD
    assert (file_digest.sha256, file_digest.blocks) == (sha256(DATA), DIGESTS)
    assert (scene.path.read_bytes(), scene.path.stat().st_mtime_ns) == (OLD, before)


def test_what_an_interrupted_repair_fetched_is_not_fetched_again(scene: Scene) -> None:
    with scene.part() as part:
        part.write(4 * BLOCK, DATA[4 * BLOCK : 5 * BLOCK])
        part.finish_block(4, DIGESTS[4])
        part.write(BLOCK, b"half a block")
    with scene.part() as part:
        assert (part.missing_blocks(), part.resumed_bytes) == ([1, 10], BLOCK)
        assert part.bytes_on_disk == len(DATA) - BLOCK - length(10)
    scene.repair()
    assert (scene.path.read_bytes(), scene.fetched) == (DATA, BLOCK + length(10))


def test_what_was_fetched_is_forgotten_on_a_reset_and_what_is_right_stays(scene: Scene) -> None:
    with scene.part() as part:
        scene.fill(part, bytes(len(DATA)))
        assert part.seal().sha256 != sha256(DATA)
        part.reset()
        assert part.missing_blocks() == list(BAD)
        assert [part.has_block(index) for index in (0, 1)] == [True, False]
        scene.fill(part)
        assert part.seal().sha256 == sha256(DATA)
        part.commit("the hub")
    assert scene.path.read_bytes() == DATA


def test_blocks_given_up_leave_the_file_and_nothing_beside_it(scene: Scene) -> None:
    with scene.part() as part:
        scene.fill(part, bytes(len(DATA)))
        part.seal()
        assert part.keep_as_bad() == scene.path
    assert (scene.path.read_bytes(), scene.names()) == (OLD, ["vae.safetensors"])


def test_what_is_too_much_is_kept_and_cut(scene: Scene) -> None:
    old = OLD + b"and more" * 700
    scene.put(old)
    scene.repair()
    assert (scene.path.read_bytes(), scene.restored()) == (DATA, old)


# --- a kill at every system call ---------------------------------------------------------------------


@dataclass
class Counter:
    """Lets so many system calls happen and kills the next; a write that is killed has written some of its bytes."""

    left: int

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def disk(self) -> Disk:
        def write_at(descriptor: int, view: memoryview, offset: int) -> int:
            try:
                self()
            except Killed:
                positional(descriptor, view[: len(view) // SECTOR // 2 * SECTOR], offset)
                raise
            return positional(descriptor, view, offset)

        def append(descriptor: int, line: bytes) -> int:
            try:
                self()
            except Killed:
                os.write(descriptor, line[: len(line) // 2])
                raise
            return os.write(descriptor, line)

        def flush(descriptor: int) -> None:
            self()

        return Disk(write_at=write_at, append=append, flush=flush)


def assert_no_worse(now: bytes) -> None:
    assert len(now) == len(OLD)
    for at in range(0, len(now), SECTOR):
        assert now[at : at + SECTOR] in (OLD[at : at + SECTOR], DATA[at : at + SECTOR])


CALLS = range(16)


@pytest.mark.parametrize("calls", list(CALLS))
@pytest.mark.parametrize("again", [None, 1, 4], ids=["then left alone", "then killed soon", "then killed later"])
def test_a_kill_at_any_call_leaves_the_file_no_worse_and_costs_no_block_twice(
    scene: Scene, calls: int, again: int | None
) -> None:
    scene.disk = Counter(calls).disk()
    with pytest.raises(Killed):
        scene.repair()
    assert_no_worse(scene.path.read_bytes())
    if again is not None:
        scene.disk = Counter(again).disk()
        with contextlib.suppress(Killed):  # what is left to do may be less than that
            scene.repair()
        assert_no_worse(scene.path.read_bytes())
    scene.disk = Disk()
    log = read_patch_log(scene.path, size=len(DATA), sha256=sha256(DATA), block_size=BLOCK)
    bad = damage_of(scene.path.read_bytes()).bad_blocks
    before = scene.fetched
    scene.repair()
    assert scene.fetched - before == sum(length(block) for block in bad if block not in log.slots)
    assert scene.path.read_bytes() == DATA
    assert scene.names() == ["vae.safetensors"]
    assert scene.restored() == OLD


def test_the_calls_above_are_all_there_are(scene: Scene) -> None:
    counter = Counter(10**6)
    scene.disk = counter.disk()
    scene.repair()
    assert 10**6 - counter.left == len(CALLS)


def test_old_bytes_that_were_kept_in_part_are_kept_again_whole(scene: Scene) -> None:
    with scene.part() as part:
        scene.fill(part)
    kept = scene.root / ".klein-setup" / "aside" / "20261123T000000Z" / "vae" / "vae.safetensors.blocks"
    kept.mkdir(parents=True)
    (kept / f"{BLOCK:015d}").write_bytes(b"torn")  # killed before the index was written
    inside = kept.relative_to(scene.root).as_posix()
    with patch_log_path(scene.path).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"aside": inside, "inode": scene.path.stat().st_ino}) + "\n")
    scene.repair()
    assert (scene.path.read_bytes(), scene.restored()) == (DATA, OLD)
    assert not kept.exists()


@pytest.mark.parametrize("inside", ["../../theirs", "vae", "/", ".klein-setup/aside/../../vae"])
def test_a_log_that_names_a_folder_elsewhere_makes_nothing_go(scene: Scene, inside: str) -> None:
    theirs = scene.path.parent / f"{BLOCK:015d}"
    theirs.write_bytes(b"precious")
    with scene.part() as part:
        scene.fill(part)
    with patch_log_path(scene.path).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"aside": inside, "inode": scene.path.stat().st_ino}) + "\n")
    scene.repair()
    assert (scene.path.read_bytes(), theirs.read_bytes()) == (DATA, b"precious")


def test_a_file_somebody_changed_between_two_runs_has_its_bytes_kept_anew(scene: Scene) -> None:
    scene.disk = Counter(14).disk()  # killed when the old bytes were kept and some blocks written
    with pytest.raises(Killed):
        scene.repair()
    theirs = bytearray(OLD)
    theirs[4 * BLOCK : 4 * BLOCK + SECTOR] = b"!" * SECTOR
    with scene.path.open("r+b") as stream:
        stream.write(theirs)
    scene.disk = Disk()
    scene.repair()
    first, second = list_backups([scene.root])
    index = read_index(second.path)
    assert index is not None
    kept = {piece["offset"]: (second.path / piece["name"]).read_bytes() for piece in index["pieces"]}
    assert kept[4 * BLOCK] == bytes(theirs[4 * BLOCK : 5 * BLOCK])
    assert first.path != second.path


# --- trouble -----------------------------------------------------------------------------------------


def full(*arguments: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "disk", [Disk(write_at=full), Disk(append=full), Disk(flush=full)], ids=["write", "append", "flush"]
)
def test_a_full_disk_is_told_and_the_file_is_as_it_was(scene: Scene, disk: Disk) -> None:
    scene.disk = disk
    with pytest.raises(InsufficientSpaceError):
        scene.repair()
    assert scene.path.read_bytes() == OLD


def test_a_disk_that_does_not_keep_what_is_written_is_told(scene: Scene) -> None:
    target = scene.path.stat().st_ino

    def forgetful(descriptor: int, view: memoryview, offset: int) -> int:
        if os.fstat(descriptor).st_ino == target:
            return len(view)
        return positional(descriptor, view, offset)

    scene.disk = Disk(write_at=forgetful)
    with pytest.raises(HashMismatchError, match="did not keep block 1"):
        scene.repair()
    assert scene.restored() == OLD


@pytest.mark.parametrize("change", ["written", "replaced", "linked", "gone"])
def test_a_file_that_changes_while_it_is_repaired_is_not_written_to(scene: Scene, change: str) -> None:
    with scene.part() as part:
        scene.fill(part)
        part.seal()
        if change == "linked":
            os.link(scene.path, scene.root / "other")
        else:
            scene.path.unlink()
            if change != "gone":
                scene.path.write_bytes(b"theirs" if change == "written" else OLD)
        with pytest.raises(FileInUseError, match="changed while it was repaired"):
            part.commit("the hub")
    if change != "gone":
        assert scene.path.read_bytes() == (b"theirs" if change == "written" else OLD)
    assert list_backups([scene.root]) == ()
    assert patch_path(scene.path).exists()


def test_a_file_that_changes_while_its_old_bytes_are_kept_is_not_written_to(scene: Scene) -> None:
    theirs = OLD + b"and more"

    def write(source: str, mtime_ns: int) -> None:
        scene.path.write_bytes(theirs)

    scene.announce = write
    with pytest.raises(FileInUseError, match="changed while it was repaired"):
        scene.repair()
    assert scene.path.read_bytes() == theirs
    assert patch_path(scene.path).exists()


@pytest.mark.parametrize("is_bound", [True, False])
def test_the_whole_says_what_its_blocks_are_where_they_were_bound(scene: Scene, is_bound: bool) -> None:
    scene.are_blocks_bound = is_bound
    with scene.part() as part:
        scene.fill(part, bytes(len(DATA)))  # what arrived is wrong, and its digests say so
        found = part.seal()
        assert found.sha256 != sha256(DATA)
        assert (len(found.blocks), found.is_one_reading) == ((0, False) if is_bound else (COUNT, True))
        assert not part.drop_wrong()
        part.reset()
        scene.fill(part)
        found = part.seal()
        assert (found.sha256, found.blocks, found.is_one_reading) == (sha256(DATA), DIGESTS, True)
        part.commit("the hub")
    assert (scene.path.read_bytes(), scene.restored()) == (DATA, OLD)


@pytest.mark.parametrize("is_bound", [True, False])
def test_only_what_arrived_damaged_is_fetched_again(scene: Scene, is_bound: bool) -> None:
    scene.are_blocks_bound = is_bound
    with scene.part() as part:
        scene.fill(part)
        part.write(BAD[1] * BLOCK, b"torn")
        assert part.seal().sha256 != sha256(DATA)
        assert part.drop_wrong()
        assert part.missing_blocks() == [BAD[1]]
        scene.fill(part)
        assert part.seal().blocks == DIGESTS
        part.commit("the hub")
    assert scene.path.read_bytes() == DATA


def test_a_good_block_that_cannot_be_read_any_more_is_told(scene: Scene) -> None:
    class Failing:
        def __init__(self, path: Path) -> None:
            self._file = open_for_reading(path)
            self._fails = path == scene.path

        def read_into(self, view: memoryview, offset: int) -> int:
            if self._fails and offset >= 6 * BLOCK:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self._file.read_into(view, offset)

        def close(self) -> None:
            self._file.close()

    scene.opener = Failing
    with pytest.raises(UnreadableError):
        scene.repair()
    assert scene.path.read_bytes() == OLD


@pytest.mark.parametrize(
    "log",
    [
        "",
        "{}",
        '{"version": 9}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_log_that_is_not_ours_is_not_believed(scene: Scene, log: str) -> None:
    patch_path(scene.path).write_bytes(bytes(len(DATA)))
    patch_log_path(scene.path).write_bytes(log.encode("latin-1"))
    scene.repair()
    assert (scene.path.read_bytes(), scene.fetched) == (DATA, sum(map(length, BAD)))


@pytest.mark.parametrize(
    "line",
    [
        '{"block": 1, "slot": 9, "sha256": "%s"}' % ("0" * 64),  # its bytes are not there
        '{"block": 99, "slot": 0, "sha256": "%s"}' % ("0" * 64),
        '{"block": -1, "slot": 0, "sha256": "%s"}' % ("0" * 64),
        '{"block": 1, "slot": -1, "sha256": "%s"}' % ("0" * 64),
        '{"block": 1, "slot": 0, "sha256": "short"}',
        '{"block": 1}',
        '{"block": 1, "slot": 0, "sha',
    ],
)
def test_a_line_of_the_log_that_cannot_be_is_not_believed(scene: Scene, line: str) -> None:
    with scene.part():
        pass
    with patch_log_path(scene.path).open("a", encoding="utf-8") as stream:
        stream.write(line)
    patch_path(scene.path).write_bytes(bytes(3 * BLOCK))
    scene.repair()
    assert (scene.path.read_bytes(), scene.fetched) == (DATA, sum(map(length, BAD)))


def test_two_blocks_in_one_slot_are_not_believed(scene: Scene) -> None:
    with scene.part():
        pass
    with patch_log_path(scene.path).open("a", encoding="utf-8") as stream:
        for block in (1, 4):
            stream.write(json.dumps({"block": block, "slot": 0, "sha256": "0" * 64}) + "\n")
    patch_path(scene.path).write_bytes(bytes(3 * BLOCK))
    with scene.part() as part:
        assert part.missing_blocks() == list(BAD)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_never_writes_through_a_link(scene: Scene) -> None:
    victim = scene.root / "victim"
    victim.write_bytes(b"precious")
    patch_path(scene.path).symlink_to(victim)
    patch_log_path(scene.path).symlink_to(victim)
    scene.repair()
    assert (scene.path.read_bytes(), victim.read_bytes()) == (DATA, b"precious")


def test_a_repair_that_was_closed_takes_no_more_bytes(scene: Scene) -> None:
    with scene.part() as part:
        pass
    with pytest.raises(StorageError, match="closed"):
        part.write(BLOCK, b"x")


def test_a_cancelled_repair_stops_while_it_verifies(scene: Scene) -> None:
    with PatchPart(
        scene.path, target=scene.path, root=Root(scene.root), damage=damage_of(OLD), reason="", cancelled=lambda: True
    ) as part:
        scene.fill(part)
        with pytest.raises(KeyboardInterrupt):
            part.seal()
    assert scene.path.read_bytes() == OLD
