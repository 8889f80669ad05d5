"""The store on a real disk: growing, proving, placing, setting aside, recording, locking; and a disk that refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, NoReturn

import pytest

from provisioner.core.errors import (
    FileInUseError,
    HashMismatchError,
    InsufficientSpaceError,
    LockHeldError,
    NotTheFileError,
    NotWritableError,
    StorageError,
    UnreadableError,
)
from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER, Artifact, Damage, Destination, LocalCopy, PatchWay
from provisioner.core.ports import Claim, FileDigest, Stamp
from provisioner.disk.calls import Disk, Share, reserve
from provisioner.disk.clone import by_clonefile
from provisioner.disk.flush import flush_file, flush_folder
from provisioner.disk.locations import file_system_of
from provisioner.disk.os_errors import storage_error
from provisioner.disk.page_cache import PageCache, available_memory
from provisioner.disk.root import Root
from provisioner.files.store.file_store import FileStore
from provisioner.files.store.hash_file import hash_file
from provisioner.files.store.hub_layout import git_blob_id
from provisioner.files.store.part_file import (
    PartFile,
    log_path,
    part_path,
    read_log,
    remove_part,
    write_log_of_taken_over,
)
from provisioner.files.store.read_at import open_for_reading
from provisioner.files.store.receipts import (
    Receipts,
    is_unchanged,
    read_announced,
    read_receipt,
    receipt_path,
    stamp_of,
)
from provisioner.files.store.set_aside import copy_ranges
from provisioner.files.store.target_lock import hold
from tests.support.builders import OTHER_COMMIT, artifact, comfy_file, file_system, hub_blob, hub_file, sha256
from tests.support.faulty_root import FaultyRoot, Move, faulty

BLOCK = 1000
DATA = random.Random(1).randbytes(10_500)  # ten blocks and a half
DIGEST = sha256(DATA)
WRONG = bytes(len(DATA))
COUNT = 11
LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")


def block(index: int, data: bytes = DATA) -> bytes:
    return data[index * BLOCK : (index + 1) * BLOCK]


def part_of(final: Path, *, data: bytes = DATA, disk: Disk | None = None, root: Root | None = None) -> PartFile:
    return PartFile(final, size=len(data), sha256=sha256(data), block_size=BLOCK, root=root, disk=disk or Disk())


def fill(part: PartFile, data: bytes = DATA, *, only: range | None = None) -> None:
    for index in part.missing_blocks() if only is None else only:
        part.write(index * BLOCK, block(index, data))
        part.finish_block(index, sha256(block(index, data)))


def allocated(path: Path) -> int:
    return int(getattr(path.stat(), "st_blocks", 0)) * 512


def refusing(code: int) -> Callable[..., Any]:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return refuse


# --- a growing file --------------------------------------------------------------------------------


@pytest.mark.parametrize("disk", [Disk(), Disk(write_at=None), Disk(flush_some=None)], ids=["pwrite", "seek", "calm"])
def test_many_threads_write_blocks_in_any_order(tmp_path: Path, disk: Disk) -> None:
    final = tmp_path / "deep" / "er" / "file.bin"
    order = list(range(COUNT))
    random.Random(2).shuffle(order)
    lock = threading.Lock()
    with part_of(final, disk=disk) as part:

        def work() -> None:
            while True:
                with lock:
                    if not order:
                        return
                    index = order.pop()
                data = block(index)
                for start in range(0, len(data), 300):  # pieces, as a connection delivers them
                    part.write(index * BLOCK + start, data[start : start + 300])
                part.finish_block(index, sha256(data))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not final.exists()
        file_digest = part.seal()
        part.commit("the hub")
    assert file_digest == FileDigest(
        size=len(DATA), sha256=DIGEST, blocks=tuple(sha256(block(index)) for index in range(COUNT))
    )
    assert final.read_bytes() == DATA
    assert [path.name for path in final.parent.iterdir()] == ["file.bin"]


def test_a_write_that_takes_only_some_of_the_bytes_is_continued(tmp_path: Path) -> None:
    disk = Disk(write_at=lambda descriptor, data, offset: _pwrite(descriptor, data[:7], offset))
    with part_of(tmp_path / "x", disk=disk) as part:
        fill(part)
        assert part.seal().sha256 == DIGEST


def _pwrite(descriptor: int, data: memoryview, offset: int) -> int:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)


def test_the_digest_is_behind_when_many_blocks_wait_for_it(tmp_path: Path) -> None:
    with part_of(tmp_path / "x") as part:
        fill(part, only=range(1))
        while part.hashed < BLOCK:
            time.sleep(0.001)
        with part._lock:  # the digest stands still
            fill(part, only=range(1, 5))
            assert not part.is_digest_behind
            fill(part, only=range(5, 7))
            assert part.is_digest_behind
        fill(part)
        assert part.seal().sha256 == DIGEST
        assert not part.is_digest_behind


def test_what_an_earlier_run_left_holds_nobody_up(tmp_path: Path) -> None:
    with part_of(tmp_path / "x") as part:
        fill(part, only=range(COUNT - 1))
    with part_of(tmp_path / "x") as part, part._lock:
        assert part.frontier == (COUNT - 1) * BLOCK
        assert not part.is_digest_behind


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has the call")
def test_room_is_taken_before_the_first_byte(tmp_path: Path) -> None:
    with part_of(tmp_path / "x", data=bytes(8 * 1024 * 1024)) as part:
        assert allocated(part.path) >= 8 * 1024 * 1024


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_take_room_as_they_write(tmp_path: Path, platform: str) -> None:
    with (tmp_path / "x").open("wb") as stream:
        assert not reserve(stream.fileno(), 100, platform=platform)


def test_room_that_a_full_disk_granted_in_part_is_given_back(tmp_path: Path) -> None:
    def grant_some(descriptor: int, size: int) -> bool:
        os.write(descriptor, bytes(size // 2))
        return False

    with part_of(tmp_path / "x", disk=Disk(reserve=grant_some)) as part:
        assert (part.path.stat().st_size, allocated(part.path)) == (len(DATA), 0)
        os.lseek(part._descriptor, 0, os.SEEK_SET)
        fill(part)
        assert part.seal().sha256 == DIGEST


def test_the_log_is_there_before_the_part_takes_room(tmp_path: Path) -> None:
    """A kill in between would leave a part without a log: somebody else's, as it seems, and as large as the file."""
    seen: list[bool] = []

    def look(descriptor: int, size: int) -> bool:
        seen.append(log_path(tmp_path / "x").exists())
        return True

    with part_of(tmp_path / "x", disk=Disk(reserve=look)):
        pass
    assert seen == [True]


@pytest.mark.parametrize("data", [DATA, bytes(len(DATA))], ids=["right", "wrong"])
@pytest.mark.parametrize("is_bound", [True, False])
def test_the_whole_of_a_part_says_what_its_blocks_are_where_they_were_bound(
    tmp_path: Path, data: bytes, is_bound: bool
) -> None:
    digests = tuple(sha256(block(index)) for index in range(COUNT))
    final = tmp_path / "file.bin"
    with part_of(final) as part:
        fill(part, data, only=range(5))
    bound = digests if is_bound else ()
    with PartFile(final, size=len(DATA), sha256=sha256(DATA), block_size=BLOCK, bound=bound) as part:
        assert part.resumed_bytes == 5 * BLOCK
        fill(part)
        found = part.seal()
    is_right = data == DATA
    assert (found.sha256 == sha256(DATA)) is is_right
    if is_right:
        assert (found.blocks, found.is_one_reading) == (digests, True)
    else:
        assert (len(found.blocks), found.is_one_reading) == ((0, False) if is_bound else (COUNT, True))


def test_what_was_taken_over_survives_a_run_that_ends_before_the_part_has_its_room(tmp_path: Path) -> None:
    final, there = tmp_path / "x", 3 * BLOCK + 7
    good = {index: sha256(DATA[index * BLOCK : (index + 1) * BLOCK]) for index in range(3)}
    write_log_of_taken_over(
        Root(tmp_path), final, size=len(DATA), sha256=DIGEST, block_size=BLOCK, there=there, good=good
    )
    part_path(final).write_bytes(DATA[:there])

    def die(descriptor: int, size: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part_of(final, disk=Disk(reserve=die)).__enter__()
    with part_of(final) as part:
        assert part.missing_blocks() == list(range(3, COUNT))


def test_the_digest_follows_the_frontier_and_the_frontier_the_first_gap(tmp_path: Path) -> None:
    with part_of(tmp_path / "x") as part:
        fill(part, only=range(3, COUNT))
        assert (part.frontier, part.hashed, part.missing_blocks(), part.has_block(3)) == (0, 0, [0, 1, 2], True)
        assert part.bytes_on_disk == len(DATA) - 3 * BLOCK
        fill(part, only=range(2))
        assert part.frontier == 2 * BLOCK
        fill(part)
        assert part.frontier == len(DATA)
        steps: list[int] = []
        assert part.seal(lambda: steps.append(part.hashed)).sha256 == DIGEST


def test_an_empty_file_needs_no_block(tmp_path: Path) -> None:
    with part_of(tmp_path / "empty", data=b"") as part:
        assert part.missing_blocks() == []
        assert part.seal() == FileDigest(size=0, sha256=sha256(b""))
        part.commit("the hub")
    assert (tmp_path / "empty").read_bytes() == b""


def test_resumes_after_a_kill_from_the_bytes_on_disk(tmp_path: Path) -> None:
    final = tmp_path / "x"
    script = f"""
import os, sys
from pathlib import Path
from provisioner.files.store.part_file import PartFile
data = bytes.fromhex({DATA.hex()!r})
import hashlib
part = PartFile(Path({str(final)!r}), size=len(data), sha256={DIGEST!r}, block_size={BLOCK}).__enter__()
for index in (0, 1, 5, {COUNT - 1}):
    piece = data[index * {BLOCK}:(index + 1) * {BLOCK}]
    part.write(index * {BLOCK}, piece)
    part.finish_block(index, hashlib.sha256(piece).hexdigest())
part.write(2 * {BLOCK}, data[2 * {BLOCK}:2 * {BLOCK} + 10])
os._exit(9)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert killed.returncode == 9
    with part_of(final) as part:
        assert part.resumed_bytes == 3 * BLOCK + 500
        assert part.missing_blocks() == [2, 3, 4, 6, 7, 8, 9]
        fill(part)
        assert part.seal().sha256 == DIGEST
        part.commit("the hub")
    assert final.read_bytes() == DATA


def interrupted(final: Path, blocks: range = range(4)) -> None:
    with part_of(final) as part:
        fill(part, only=blocks)


HEAD = json.dumps({"version": 1, "size": len(DATA), "sha256": DIGEST, "block_size": BLOCK})
LINES = [json.dumps({"block": index, "sha256": sha256(block(index))}) for index in range(4)]


@pytest.mark.parametrize(
    ("log", "blocks"),
    [
        ("\n".join([HEAD, *LINES]) + "\n", [0, 1, 2, 3]),
        ("\n".join([HEAD, *LINES]), [0, 1, 2, 3]),
        ("\n".join([HEAD, *LINES])[:-20], [0, 1, 2]),  # torn by a kill
        ("\n".join([HEAD, LINES[0], "{", LINES[2]]), [0]),
        ("\n".join([HEAD, LINES[2], LINES[2], LINES[0]]), [0, 2]),
        ("\n".join([HEAD, "[]", LINES[0]]), []),
        ("\n".join([HEAD, '{"block": 1e999, "sha256": ""}', LINES[0]]), []),
        ("\n".join([HEAD, json.dumps({"block": COUNT, "sha256": "0" * 64}), LINES[0]]), [0]),  # no such block
        ("\n".join([HEAD, json.dumps({"block": -1, "sha256": "0" * 64}), LINES[0]]), [0]),
        ("\n".join([HEAD, json.dumps({"block": 1, "sha256": "short"}), LINES[0]]), [0]),
        (HEAD, []),
        (HEAD[:-1], []),
        ("", []),
        ("\n".join([HEAD.replace('"version": 1', '"version": 2'), *LINES]), []),
        ("\n".join([HEAD.replace(DIGEST, "0" * 64), *LINES]), []),  # of other content
        ("\n".join([HEAD.replace(f"{BLOCK}}}", "16}"), *LINES]), []),
        ("[" * 100_000, []),
        ("\xff\xfe", []),
    ],
)
def test_only_what_the_log_says_for_this_very_content_is_resumed(tmp_path: Path, log: str, blocks: list[int]) -> None:
    final = tmp_path / "x"
    interrupted(final)
    log_path(final).write_bytes(log.encode("latin-1"))
    assert sorted(read_log(final, size=len(DATA), sha256=DIGEST, block_size=BLOCK)) == blocks
    with part_of(final) as part:
        assert [index for index in range(COUNT) if part.has_block(index)] == blocks
        fill(part)
        assert part.seal().sha256 == DIGEST


@pytest.mark.parametrize("change", ["truncated", "gone", "longer"])
def test_a_part_of_another_size_is_not_resumed(tmp_path: Path, change: str) -> None:
    final = tmp_path / "x"
    interrupted(final)
    if change == "gone":
        part_path(final).unlink()
    else:
        os.truncate(part_path(final), len(DATA) + (1 if change == "longer" else -1))
    with part_of(final) as part:
        assert part.resumed_bytes == 0
        assert part_path(final).stat().st_size == len(DATA)


def test_starting_again_does_not_lose_the_log_of_the_run_before(tmp_path: Path) -> None:
    final = tmp_path / "x"
    interrupted(final)
    before = log_path(final).read_bytes()
    full = FaultyRoot(tmp_path, move_records=refused_move(1)[0])  # the log cannot be written anew
    with pytest.raises(StorageError), part_of(final, root=full):
        pass
    assert log_path(final).read_bytes() == before
    with part_of(final) as part:
        assert part.resumed_bytes == 4 * BLOCK


def test_damage_in_the_bytes_on_disk_shows_in_the_digest_and_a_reset_heals_it(tmp_path: Path) -> None:
    final = tmp_path / "x"
    interrupted(final)
    with part_path(final).open("r+b") as stream:
        stream.seek(1500)
        stream.write(b"damage")
    with part_of(final) as part:
        fill(part)
        assert part.seal().sha256 != DIGEST
        part.reset()
        assert (part.hashed, part.frontier, part.resumed_bytes) == (0, 0, 0)
        assert part.missing_blocks() == list(range(COUNT))
        fill(part)
        assert part.seal().sha256 == DIGEST
        part.commit("the hub")
    assert final.read_bytes() == DATA


def test_a_reset_while_bytes_are_hashed_does_not_mix_the_two(tmp_path: Path) -> None:
    big = random.Random(3).randbytes(6_000_000)
    for _ in range(5):
        with PartFile(tmp_path / "x", size=len(big), sha256=sha256(big), block_size=1_000_000) as part:
            for data in (bytes(len(big)), big):
                for index in part.missing_blocks():
                    piece = data[index * 1_000_000 : (index + 1) * 1_000_000]
                    part.write(index * 1_000_000, piece)
                    part.finish_block(index, sha256(piece))
                if data is not big:
                    part.reset()
            assert part.seal().sha256 == sha256(big)


def test_a_log_of_a_reset_part_claims_nothing(tmp_path: Path) -> None:
    final = tmp_path / "x"
    with part_of(final) as part:
        fill(part)
        part.reset()
    with part_of(final) as part:
        assert part.resumed_bytes == 0


def test_wrong_bytes_are_kept_as_evidence_and_not_resumed(tmp_path: Path) -> None:
    final = tmp_path / "x"
    with part_of(final) as part:
        fill(part, WRONG)
        assert part.seal().sha256 == sha256(WRONG)
        assert part.keep_as_bad() == tmp_path / "x.bad"
    assert (tmp_path / "x.bad").read_bytes() == WRONG
    assert [path.name for path in tmp_path.iterdir()] == ["x.bad"]


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, InsufficientSpaceError), (errno.EDQUOT, InsufficientSpaceError), (errno.EIO, StorageError)],
)
@pytest.mark.parametrize("call", ["write_at", "flush"])
def test_a_disk_that_refuses_is_named_and_nothing_gets_the_final_name(
    tmp_path: Path, call: str, code: int, error: type[StorageError]
) -> None:
    final = tmp_path / "x"
    disk = Disk(write_at=refusing(code)) if call == "write_at" else Disk(flush=refusing(code))

    def run() -> None:
        with part_of(final, disk=disk) as part:
            fill(part)
            part.seal()
            part.commit("the hub")

    with pytest.raises(error) as caught:
        run()
    assert type(caught.value) is error
    assert str(part_path(final)) in str(caught.value)
    assert not final.exists()
    with part_of(final) as part:
        assert part.resumed_bytes == (0 if call == "write_at" else len(DATA))


def test_bytes_the_disk_lost_while_more_arrived_are_not_committed(tmp_path: Path) -> None:
    final = tmp_path / "x"
    failed = threading.Event()

    def lose(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "lost")  # reported once, to this thread; the last flush would say that all is well

    disk = Disk(flush_some=lose, flush_step=2 * BLOCK)

    def run() -> None:
        with part_of(final, disk=disk) as part:
            fill(part, only=range(2))
            assert failed.wait(10)
            part.commit("the hub")

    with pytest.raises(StorageError, match="lost"):
        run()
    assert not final.exists()


def test_after_the_disk_failed_writing_and_waiting_end_with_its_error(tmp_path: Path) -> None:
    failed = threading.Event()

    def lose(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "lost")

    with part_of(tmp_path / "x", disk=Disk(flush_some=lose, flush_step=2 * BLOCK)) as part:
        fill(part, only=range(2))
        assert failed.wait(10)
        deadline = time.monotonic() + 10

        def write_on() -> None:
            while time.monotonic() < deadline:
                part.write(0, b"x")

        with pytest.raises(StorageError, match="lost"):
            write_on()
        with pytest.raises(StorageError, match="lost"):
            part.finish_block(4, "0" * 64)
        with pytest.raises(StorageError, match="lost"):
            part.seal()


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    final = tmp_path / "x"
    with part_of(final, disk=Disk(append=refusing(errno.ENOSPC))) as part:
        part.write(0, block(0))
        with pytest.raises(InsufficientSpaceError, match=r"x\.part\.jsonl"):
            part.finish_block(0, sha256(block(0)))
    moves = iter([refused_move(0)[0], refused_move(1)[0]])  # the second time the log is begun
    root = FaultyRoot(tmp_path, move_records=lambda source, destination: next(moves)(source, destination))
    with part_of(final, root=root) as part, pytest.raises(StorageError):
        part.reset()


def test_finished_bytes_are_flushed_while_more_arrive(tmp_path: Path) -> None:
    flushed: list[int] = []
    came = threading.Semaphore(0)

    def flush(descriptor: int) -> None:
        flushed.append(descriptor)
        came.release()

    with part_of(tmp_path / "x", disk=Disk(flush_some=flush, flush_step=4 * BLOCK)) as part:
        fill(part, only=range(4))
        assert came.acquire(timeout=10)
        fill(part, only=range(4, 8))
        assert came.acquire(timeout=10)
        assert len(flushed) == 2


def test_a_part_that_became_shorter_under_us_is_a_failure_of_the_disk(tmp_path: Path) -> None:
    final = tmp_path / "x"
    interrupted(final, range(COUNT))
    with part_of(final, data=DATA) as part:
        part.reset()
        os.truncate(part_path(final), 0)
        part.finish_block(0, "0" * 64)
        with pytest.raises(StorageError, match="shorter"):
            part.seal()


def test_a_connection_that_was_given_up_cannot_write_into_another_file(tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(descriptor: int, data: memoryview, offset: int) -> int:
        entered.set()
        assert go_on.wait(10)
        return _pwrite(descriptor, data, offset)

    part = part_of(tmp_path / "x", disk=Disk(write_at=slow)).__enter__()
    writer = threading.Thread(target=part.write, args=(0, b"late"))
    writer.start()
    assert entered.wait(10)
    closer = threading.Thread(target=part.__exit__, args=(None, None, None))
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()  # the file's number stays taken for as long as somebody writes to it
    go_on.set()
    for thread in (writer, closer):
        thread.join(10)
        assert not thread.is_alive()
    with (tmp_path / "other").open("wb") as other:
        other.write(b"mine")
        other.flush()
        with pytest.raises(StorageError, match="closed already"):
            part.write(0, b"later")
        with pytest.raises(StorageError, match="closed already"):
            part.finish_block(0, "0" * 64)
    assert (tmp_path / "other").read_bytes() == b"mine"
    assert (tmp_path / "x.part").read_bytes()[:4] == b"late"


def test_a_part_that_cannot_be_opened_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "x.part").mkdir()
    with pytest.raises(StorageError), part_of(tmp_path / "x"):
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError), part_of(tmp_path / "file" / "x"):
        pass


@LINKS
@pytest.mark.parametrize("suffix", [".part", ".part.jsonl"])
def test_never_writes_through_a_link(tmp_path: Path, suffix: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    final = tmp_path / "x"
    final.with_name(f"x{suffix}").symlink_to(victim)
    with part_of(final) as part:
        fill(part)
        assert part.seal().sha256 == DIGEST
        part.commit("the hub")
    assert victim.read_bytes() == b"precious"
    assert final.read_bytes() == DATA


def test_removing_a_part_removes_its_log_too(tmp_path: Path) -> None:
    interrupted(tmp_path / "x")
    remove_part(Root(tmp_path), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    remove_part(Root(tmp_path), tmp_path / "x")  # nothing there is no error
    part_path(tmp_path / "x").mkdir()
    with pytest.raises(StorageError, match="remove"):
        remove_part(Root(tmp_path), tmp_path / "x")


# --- what the system says when it refuses ------------------------------------------------------------


def refused_move(times: int) -> tuple[Move, list[int]]:
    tries: list[int] = []

    def move(source: Path, destination: Path) -> None:
        tries.append(1)
        if len(tries) <= times:
            raise PermissionError(errno.EACCES, "a scanner has it open")
        source.replace(destination)

    return move, tries


@pytest.mark.parametrize(
    ("platform", "refusals", "is_there", "tries", "error"),
    [
        ("linux", 0, True, 1, None),
        ("linux", 1, True, 1, NotWritableError),
        ("darwin", 1, True, 1, NotWritableError),
        ("win32", 0, True, 1, None),
        ("win32", 2, True, 3, None),  # a virus scanner lets go after a moment
        ("win32", 99, True, 7, FileInUseError),
        ("win32", 99, False, 7, NotWritableError),
    ],
)
def test_replacing_waits_for_windows_only(
    tmp_path: Path, platform: str, refusals: int, is_there: bool, tries: int, error: type[StorageError] | None
) -> None:
    source, destination = tmp_path / "new", tmp_path / "old"
    source.write_bytes(b"new")
    if is_there:
        destination.write_bytes(b"old")
    move, tried = refused_move(refusals)
    root = FaultyRoot(tmp_path, move=move, platform=platform, pauses_s=(0.001,) * 6)
    if error is None:
        root.replace(source, destination)
        assert destination.read_bytes() == b"new"
    else:
        with pytest.raises(error) as caught:
            root.replace(source, destination)
        assert type(caught.value) is error
        assert source.read_bytes() == b"new"
        assert not is_there or destination.read_bytes() == b"old"
    assert len(tried) == tries


def test_replacing_says_when_there_is_nothing_to_move(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Root(tmp_path).replace(tmp_path / "none", tmp_path / "x")


@pytest.mark.parametrize(
    ("platform", "code", "calls", "is_error"),
    [
        ("win32", None, 0, False),
        ("linux", None, 1, False),
        ("linux", errno.EINVAL, 1, False),
        ("linux", errno.ENOTSUP, 1, False),
        ("linux", errno.EIO, 1, True),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens no folders")
def test_a_folder_is_flushed_where_that_exists(
    tmp_path: Path, platform: str, code: int | None, calls: int, is_error: bool
) -> None:
    asked: list[int] = []

    def fsync(descriptor: int) -> None:
        asked.append(descriptor)
        if code is not None:
            raise OSError(code, "no")

    if is_error:
        with pytest.raises(OSError, match="no"):
            flush_folder(tmp_path, platform=platform, fsync=fsync)
    else:
        flush_folder(tmp_path, platform=platform, fsync=fsync)
    assert len(asked) == calls


@pytest.mark.parametrize("has_call", [True, False])
def test_the_drives_own_cache_is_flushed_where_the_system_can(tmp_path: Path, has_call: bool) -> None:
    asked: list[int] = []

    def through_the_drive(descriptor: int) -> bool:
        asked.append(descriptor)
        return has_call

    with (tmp_path / "x").open("wb") as stream:
        flush_file(stream.fileno(), through_the_drive=through_the_drive)
        flush_file(stream.fileno())
        assert asked == [stream.fileno()]


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x"
    Root(tmp_path).write_text(path, "first")
    Root(tmp_path).write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "second"
    with pytest.raises(StorageError):
        FaultyRoot(tmp_path, move_records=refused_move(1)[0]).write_text(path, "third")
    assert path.read_text(encoding="utf-8") == "second"
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="create"):
        Root(tmp_path).write_text(tmp_path / "file" / "x", "text")


# --- proving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1])
def test_a_proof_has_the_digest_of_the_whole_and_of_every_block(tmp_path: Path, size: int) -> None:
    data = (DATA * (size // len(DATA) + 1))[:size]
    (tmp_path / "x").write_bytes(data)
    told: list[int] = []
    pieces: list[bytes] = []
    file_digest = hash_file(
        tmp_path / "x",
        progress=told.append,
        cancelled=lambda: False,
        with_blocks=True,
        also=lambda piece: pieces.append(bytes(piece)),
    )
    blocks = [data[at : at + BLOCK_SIZE] for at in range(0, size, BLOCK_SIZE)]
    assert file_digest == FileDigest(size=size, sha256=sha256(data), blocks=tuple(map(sha256, blocks)))
    assert b"".join(pieces) == data
    assert told == sorted(told)
    assert told[-1:] == ([size] if size else [])
    assert changed(file_digest, blocks=()) == hash_file(tmp_path / "x", progress=told.append, cancelled=lambda: False)


def test_a_cancelled_proof_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    with pytest.raises(KeyboardInterrupt):
        hash_file(tmp_path / "x", progress=lambda count: None, cancelled=lambda: True)


def test_what_cannot_be_read_cannot_be_proved(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UnreadableError):
            hash_file(path, progress=lambda count: None, cancelled=lambda: False)


# --- receipts ----------------------------------------------------------------------------------------

PROOF = FileDigest(size=3, sha256=sha256(b"abc"), blocks=(sha256(b"abc"),))
STAMP = Stamp(size=3, mtime_ns=1_700_000_000_123_456_789, ctime_ns=5, inode=7, device=0)
CLAIM = Claim(artifact_id="vae", stamp=STAMP, file_digest=PROOF, source="the hub")


def test_a_receipt_round_trips(tmp_path: Path) -> None:
    windows = changed(CLAIM, stamp=changed(STAMP, ctime_ns=None))
    Receipts().write_claim(Root(tmp_path), "vae/x", CLAIM, recorded_at="now")
    Receipts().write_claim(Root(tmp_path), "vae/\u00fc y", windows, recorded_at="now")
    assert read_receipt(tmp_path) == {"vae/x": CLAIM, "vae/\u00fc y": windows}
    assert [path.name for path in (tmp_path / ".klein-setup").iterdir()] == ["receipt.json"]


def test_receipts_of_files_that_end_at_once_are_all_kept(tmp_path: Path) -> None:
    names = [f"vae/{number}" for number in range(24)]

    receipts = Receipts()

    def work(name: str) -> None:
        receipts.announce_claim(Root(tmp_path), name, CLAIM, recorded_at="now")
        receipts.write_claim(Root(tmp_path), name, CLAIM, recorded_at="now")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, names))
    assert sorted(read_receipt(tmp_path)) == sorted(names)
    assert read_announced(tmp_path) == {}


def test_writing_one_entry_keeps_the_others_and_every_key_it_does_not_know(tmp_path: Path) -> None:
    Receipts().write_claim(Root(tmp_path), "vae/x", CLAIM, recorded_at="now")
    document = json.loads(receipt_path(tmp_path).read_text(encoding="utf-8"))
    document["note"] = "kept"
    document["files"]["vae/x"]["colour"] = "blue"
    document["files"]["vae/odd"] = {"half": "an entry"}
    receipt_path(tmp_path).write_text(json.dumps(document), encoding="utf-8")
    assert read_receipt(tmp_path) == {"vae/x": CLAIM}
    Receipts().write_claim(Root(tmp_path), "vae/y", CLAIM, recorded_at="later")
    written = json.loads(receipt_path(tmp_path).read_text(encoding="utf-8"))
    assert written["note"] == "kept"
    assert written["files"]["vae/x"]["colour"] == "blue"
    assert written["files"]["vae/odd"] == {"half": "an entry"}
    assert set(read_receipt(tmp_path)) == {"vae/x", "vae/y"}


GOOD = {
    "artifact": "vae",
    "size": 3,
    "mtime_ns": 1,
    "ctime_ns": 2,
    "inode": 3,
    "sha256": "0" * 64,
    "block_size": BLOCK_SIZE,
    "blocks": ["0" * 64],
    "source": "hub",
    "recorded_at": "now",
}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "null",
        '{"schema_version": 1}',
        '{"schema_version": 1, "files": []}',
        '{"schema_version": 1, "files": {"vae/x": []}}',
        '{"schema_version": 1, "files": {"vae/x": {}}}',
        json.dumps({"schema_version": 1, "files": {"vae/x": {**GOOD, "size": "many"}}}),
        json.dumps({"schema_version": 1, "files": {"vae/x": {**GOOD, "mtime_ns": float("inf")}}}),
        json.dumps({"schema_version": 1, "files": {"vae/x": {**GOOD, "blocks": 5}}}),
        json.dumps({"schema_version": 0, "files": {"vae/x": GOOD}}),
        "[" * 100_000,
        "\x00",
    ],
)
def test_a_broken_receipt_claims_nothing_and_is_replaced_by_the_next_entry(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        receipt_path(tmp_path).parent.mkdir()
        receipt_path(tmp_path).write_text(text, encoding="utf-8")
    assert read_receipt(tmp_path) == {}
    Receipts().write_claim(Root(tmp_path), "vae/y", CLAIM, recorded_at="now")
    assert read_receipt(tmp_path) == {"vae/y": CLAIM}  # and nothing of another version read as if it were ours


@pytest.mark.parametrize(
    ("entry", "blocks"),
    [(GOOD, 1), ({**GOOD, "block_size": 1}, 0), ({**GOOD, "blocks": []}, 0), ({**GOOD, "blocks": ["0", "1"]}, 0)],
)
def test_block_digests_that_do_not_fit_are_not_believed(tmp_path: Path, entry: object, blocks: int) -> None:
    receipt_path(tmp_path).parent.mkdir()
    receipt_path(tmp_path).write_text(json.dumps({"schema_version": 1, "files": {"x": entry}}), encoding="utf-8")
    assert len(read_receipt(tmp_path)["x"].file_digest.blocks) == blocks


def rewrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        (lambda path: None, True),
        (lambda path: path.read_bytes(), True),
        (lambda path: path.write_bytes(b"longer than before"), False),
        (lambda path: os.utime(path, ns=(1, 1)), False),
        pytest.param(rewrite, False, marks=pytest.mark.skipif(sys.platform == "win32", reason="no ctime there")),
        (swap, False),
    ],
    ids=["untouched", "read", "another size", "another time", "mtime put back", "another file of that time"],
)
def test_a_stamp_shows_that_a_file_was_touched(tmp_path: Path, change: Callable[[Path], object], is_same: bool) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"bytes")
    before = stamp_of(path)
    time.sleep(0.02)
    change(path)
    assert is_unchanged(before, stamp_of(path)) == is_same


def test_a_drive_that_got_another_number_is_the_same_drive() -> None:
    assert is_unchanged(STAMP, changed(STAMP, device=99))


@pytest.mark.parametrize(("platform", "has_ctime"), [("linux", True), ("darwin", True), ("win32", False)])
def test_the_time_of_creation_is_no_time_of_change(tmp_path: Path, platform: str, has_ctime: bool) -> None:
    assert (stamp_of(tmp_path, platform=platform).ctime_ns is not None) == has_ctime


def test_many_processes_that_hold_the_lock_lose_no_entry_and_show_no_half_receipt(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from provisioner.disk.root import Root
from provisioner.files.store.target_lock import hold
from provisioner.files.store.receipts import Receipts
from provisioner.core.ports import Claim, FileDigest, Stamp
claim = Claim(artifact_id=sys.argv[1], stamp=Stamp(size=1, mtime_ns=1, ctime_ns=1, inode=1, device=0),
              file_digest=FileDigest(size=1, sha256="0" * 64), source="x")
for number in range(5):
    with hold(Root(Path({str(tmp_path)!r})), wait=True, cancelled=lambda: False, notice=lambda text: None):
        Receipts().write_claim(Root(Path({str(tmp_path)!r})), f"{{sys.argv[1]}}-{{number}}", claim, recorded_at="now")
"""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(subprocess.Popen([sys.executable, "-c", script, name])) for name in "abc"]
        seen = 0
        while any(writer.poll() is None for writer in writers):
            count = len(read_receipt(tmp_path))
            assert count >= seen  # never an empty or half receipt in between
            seen = count
            time.sleep(0.001)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert set(read_receipt(tmp_path)) == {f"{name}-{number}" for name in "abc" for number in range(5)}


# --- a store ---------------------------------------------------------------------------------------

VAE = artifact(DATA)


def store_for(root: Path, **more: object) -> FileStore:
    calls = {name: more.pop(name) for name in tuple(more) if name in _CALLS}
    values = {"file_system_of": file_system, "roots": faulty(**calls), **more}
    return FileStore(**values)  # type: ignore[arg-type]


_CALLS = {"move", "link", "symlink", "has_links", "has_clones"}


def home(root: Path, wanted: Artifact = VAE) -> Path:
    return comfy_file(wanted, root).path


def put(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def copy_of(path: Path, data: bytes = DATA) -> LocalCopy:
    return LocalCopy(artifact_id="vae", path=path, origin="--look-in", device=1, size=len(data), sha256=sha256(data))


def nothing(count: int) -> None:
    """Listen to no progress."""


def never(source: Path, destination: Path) -> bool:
    return False


def fetched(
    store: FileStore,
    destination: Destination,
    wanted: Artifact = VAE,
    data: bytes = DATA,
    *,
    replaces: str | None = None,
) -> FileDigest:
    with store.part(destination, wanted, replaces=replaces) as part:
        for index in part.missing_blocks():
            piece = data[index * part.block_size : (index + 1) * part.block_size]
            part.write(index * part.block_size, piece)
            part.finish_block(index, sha256(piece))
        file_digest = part.seal()
        part.commit("the hub")
    return file_digest


def asides(root: Path) -> dict[str, bytes]:
    """Return the files set aside below a root, by name."""
    folder = root / ".klein-setup" / "aside"
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "why.jsonl"
    }


def reasons(root: Path) -> list[dict[str, str]]:
    lines = [path.read_text(encoding="utf-8").splitlines() for path in sorted(root.rglob("why.jsonl"))]
    return [json.loads(line) for each in lines for line in each]


def test_a_fetched_file_arrives_with_a_receipt_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    file_digest = fetched(store, destination)
    store.record(destination, VAE, file_digest, "the hub")
    assert home(tmp_path).read_bytes() == DATA
    claim = store.claim(destination)
    assert claim is not None
    assert (claim.artifact_id, claim.file_digest, claim.source) == ("vae", file_digest, "the hub")
    assert is_unchanged(claim.stamp, stamp_of(home(tmp_path)))
    assert sorted(path.name for path in home(tmp_path).parent.iterdir()) == ["vae.safetensors"]


def test_held_bytes_are_those_of_the_same_content(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    assert store.held_bytes(destination, VAE) == 0
    with store.part(destination, VAE) as part:
        part.write(0, DATA)
        part.finish_block(0, DIGEST)
    assert store.held_bytes(destination, VAE) == len(DATA)
    assert store.held_bytes(destination, artifact(WRONG)) == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="it does not say what kind a file system is")
def test_the_kind_of_a_file_system_is_asked_for_only_where_it_matters(tmp_path: Path) -> None:
    store = FileStore(file_system_of=file_system_of)
    place = comfy_file(VAE, tmp_path)
    assert store.file_system(place).kind is None
    assert store.file_system(place, with_kind=True).kind


def test_the_file_system_is_that_of_the_folder_the_file_grows_in(tmp_path: Path) -> None:
    store = store_for(tmp_path)
    found = store.file_system(comfy_file(VAE, tmp_path))
    assert (found.path, found.kind) == (tmp_path / "vae", None)
    assert store.file_system(hub_blob(tmp_path, VAE)).path == tmp_path / "models--org--name" / "blobs"


def test_stamps_tell_nothing_there_from_nothing_to_be_read(tmp_path: Path) -> None:
    store = store_for(tmp_path)
    assert store.stamp(tmp_path / "none") is None
    assert store.stamp(put(tmp_path / "file") / "below") is None
    assert store.stamp(tmp_path / "file") == stamp_of(tmp_path / "file")
    with pytest.raises(UnreadableError, match="a folder or the like"):
        store.stamp(tmp_path)
    if sys.platform == "win32":  # says of a name that is too long that nothing is there
        assert store.stamp(tmp_path / ("x" * 5000)) is None
        return
    with pytest.raises(UnreadableError):
        store.stamp(tmp_path / ("x" * 5000))


@LINKS
def test_a_link_that_leads_nowhere_or_in_a_circle_is_there_and_unreadable(tmp_path: Path) -> None:
    store = store_for(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UnreadableError, match="which is not there"):
        store.stamp(tmp_path / "dangling")
    with pytest.raises(UnreadableError):
        store.stamp(tmp_path / "circle")


@pytest.mark.parametrize("length", [0, 5, 8, 20, 100])
def test_the_head_is_enough_for_a_header_and_never_more_than_the_file(tmp_path: Path, length: int) -> None:
    data = (12).to_bytes(8, "little") + b"x" * 100
    head = store_for(tmp_path).head(put(tmp_path / "x", data[:length]))
    assert data[:length].startswith(head)
    assert len(head) >= min(length, 20)


def test_the_head_of_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError):
        store_for(tmp_path).head(tmp_path)


@pytest.mark.parametrize("kind", ["file", "dangling link", "link", "link for a log"])
def test_a_part_of_another_program_is_set_aside(tmp_path: Path, kind: str) -> None:
    if kind != "file" and sys.platform == "win32":
        pytest.skip("links need a privilege on Windows")
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    part = part_path(destination.path)
    victim = put(tmp_path / "victim", b"precious")
    put(part, b"not ours")
    if kind == "link for a log":
        log_path(destination.path).symlink_to(victim)
    elif kind != "file":
        part.unlink()
        part.symlink_to(victim if kind == "link" else "nowhere")
        log_path(destination.path).write_text("a log", encoding="utf-8")
    fetched(store, destination)
    assert home(tmp_path).read_bytes() == DATA
    assert victim.read_bytes() == b"precious"
    moved = [path.name for path in (tmp_path / ".klein-setup" / "aside").glob("*/vae/*")]
    assert "vae.safetensors.part" in moved
    assert ("vae.safetensors.part.jsonl" in moved) == (kind != "file")


def test_what_vanishes_from_the_place_at_the_last_moment_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    samefile = Path.samefile

    def after_it_went(path: Path, other: Path) -> bool:
        path.unlink()
        return samefile(path, other)

    with store.part(destination, VAE) as part:
        part.write(0, DATA)
        part.finish_block(0, DIGEST)
        part.seal()
        put(home(tmp_path), b"the user's own")
        monkeypatch.setattr(Path, "samefile", after_it_went)
        with pytest.raises(StorageError, match=re.escape(str(home(tmp_path)))):
            part.commit("the hub")
    assert not home(tmp_path).exists()


def test_what_appears_in_the_place_while_we_fetch_is_set_aside_not_overwritten(tmp_path: Path) -> None:
    said: list[str] = []
    store, destination = store_for(tmp_path, notice=said.append), comfy_file(VAE, tmp_path)
    with store.part(destination, VAE) as part:
        part.write(0, DATA)
        part.finish_block(0, DIGEST)
        part.seal()
        put(home(tmp_path), b"the user's own")
        part.commit("the hub")
    assert home(tmp_path).read_bytes() == DATA
    assert asides(tmp_path) == {"vae.safetensors": b"the user's own"}
    assert len(said) == 1
    assert str(home(tmp_path)) in said[0]


@pytest.mark.parametrize("is_copy", [False, True], ids=["fetched", "copied"])
def test_what_is_replaced_stays_until_its_successor_is_proven_and_is_kept_with_the_reason(
    tmp_path: Path, is_copy: bool
) -> None:
    said: list[str] = []
    root = tmp_path / "tree"
    store, destination = store_for(root, notice=said.append), comfy_file(VAE, root)
    put(home(root), b"wrong")
    if is_copy:
        bad = put(tmp_path / "bad", WRONG)
        with pytest.raises(HashMismatchError):
            store.place_copy(copy_of(bad), destination, VAE, progress=nothing, replaces="it is wrong")
    else:
        with store.part(destination, VAE, replaces="it is wrong") as part:
            part.write(0, DATA)  # interrupted
    assert home(root).read_bytes() == b"wrong"
    assert asides(root) == {}
    if is_copy:
        good = put(tmp_path / "good")
        store.place_copy(copy_of(good), destination, VAE, progress=nothing, replaces="it is wrong")
    else:
        fetched(store, destination, replaces="it is wrong")
    assert home(root).read_bytes() == DATA
    assert asides(root) == {"vae.safetensors": b"wrong"}
    assert [line["why"] for line in reasons(root)] == ["it is wrong"]
    assert said == []


def test_a_file_that_cannot_be_moved_costs_no_byte_of_its_successor(tmp_path: Path) -> None:
    def move(source: Path, destination: Path) -> None:
        raise FileInUseError("ComfyUI has it open")

    destination = comfy_file(VAE, tmp_path)
    put(home(tmp_path), b"wrong")
    with pytest.raises(FileInUseError):
        fetched(store_for(tmp_path, move=move), destination, replaces="it is wrong")
    assert home(tmp_path).read_bytes() == b"wrong"
    assert store_for(tmp_path).held_bytes(destination, VAE) == len(DATA)


@LINKS
def test_a_blob_is_replaced_only_when_its_successor_is_verified(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), hub_blob(tmp_path, VAE)
    fetched(store, destination)
    put(destination.root / "blobs" / DIGEST, WRONG)
    with store.part(destination, VAE, replaces="other bytes"):
        pass  # interrupted
    assert destination.path.read_bytes() == WRONG
    fetched(store, destination, replaces="other bytes")
    assert destination.path.read_bytes() == DATA
    assert WRONG in asides(destination.root).values()


# --- placing a copy --------------------------------------------------------------------------------


def impossible(code: int) -> Callable[..., None]:
    """Return the call that makes a hard link as it is across file systems, or where the system does not allow it."""

    def link(*paths: object, **_: object) -> None:
        raise OSError(code, os.strerror(code))

    return link


@pytest.mark.parametrize(
    ("calls", "way", "is_shared"),
    [
        ({}, "hard-linked", True),
        ({"link": impossible(errno.EXDEV)}, "copied", False),
        ({"link": impossible(errno.EPERM)}, "copied", False),
        ({"link": impossible(errno.EMLINK)}, "copied", False),
        ({"has_links": False}, "copied", False),
    ],
)
def test_a_copy_is_placed_in_the_best_way_there_is(
    tmp_path: Path, calls: dict[str, object], way: str, is_shared: bool
) -> None:
    store, destination = store_for(tmp_path, **calls), comfy_file(VAE, tmp_path / "tree")
    source = put(tmp_path / "source")
    told: list[int] = []
    how, file_digest = store.place_copy(copy_of(source), destination, VAE, progress=told.append)
    assert (how, file_digest.sha256, file_digest.blocks) == (way, DIGEST, (DIGEST,))
    assert destination.path.read_bytes() == source.read_bytes() == DATA
    assert destination.path.samefile(source) == is_shared
    assert [path.name for path in destination.path.parent.iterdir()] == ["vae.safetensors"]
    assert told[-1] == len(DATA)


def test_the_ways_of_this_system_are_tried_best_first(tmp_path: Path) -> None:
    store = FileStore(file_system_of=file_system)
    source, destination = put(tmp_path / "source"), comfy_file(VAE, tmp_path / "tree")
    way, _ = store.place_copy(copy_of(source), destination, VAE, progress=nothing)
    assert way in {"reflinked", "hard-linked"}
    assert destination.path.read_bytes() == DATA


@pytest.mark.parametrize("platform", ["win32", "freebsd14"])
def test_there_are_no_reflinks_elsewhere(tmp_path: Path, platform: str) -> None:
    assert Root(tmp_path, platform=platform).reflink(put(tmp_path / "source"), tmp_path / "placed") is False
    assert not (tmp_path / "placed").exists()


def cloning(code: int | None) -> Callable[[int, int], None]:
    def clone(writer: int, reader: int) -> None:
        if code is not None:
            raise OSError(code, os.strerror(code))
        os.write(writer, os.read(reader, len(DATA)))

    return clone


@pytest.mark.parametrize(
    ("code", "result"),
    [(None, True), (errno.EOPNOTSUPP, False), (errno.EXDEV, False), (errno.EINVAL, False), (errno.EIO, None)],
)
def test_a_clone_works_or_leaves_nothing(tmp_path: Path, code: int | None, result: bool | None) -> None:
    source, placed = put(tmp_path / "source"), tmp_path / "placed"
    root = Root(tmp_path, platform="linux")
    if result is None:
        with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
            root.reflink(source, placed, clone=cloning(code))
    else:
        assert root.reflink(source, placed, clone=cloning(code)) is result
    assert placed.exists() == (result is True)
    assert source.read_bytes() == DATA


@pytest.mark.parametrize(("answer", "result"), [(0, True), (-1, False), (None, False)])
def test_macos_clones_where_its_call_is_there_and_succeeds(tmp_path: Path, answer: int | None, result: bool) -> None:
    asked: list[tuple[int, bytes, int, bytes, int]] = []

    def clonefile(here: int, source: bytes, there: int, destination: bytes, flags: int) -> int:
        asked.append((here, source, there, destination, flags))
        assert answer is not None
        return answer

    find = (lambda: None) if answer is None else (lambda: clonefile)
    assert by_clonefile(tmp_path / "a", "b", 7, find=find) is result
    assert asked == ([] if answer is None else [(-2, os.fsencode(tmp_path / "a"), 7, b"b", 0)])


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="macOS has the call, Windows no such library")
def test_a_system_without_clonefile_says_so(tmp_path: Path) -> None:
    assert Root(tmp_path, platform="darwin").reflink(put(tmp_path / "source"), tmp_path / "placed") is False


def test_a_link_that_fails_for_another_reason_is_an_error(tmp_path: Path) -> None:
    root = FaultyRoot(tmp_path, link=impossible(errno.EIO))
    with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
        root.hard_link(put(tmp_path / "source"), tmp_path / "placed")


def test_a_name_that_is_taken_is_never_linked_over(tmp_path: Path) -> None:
    source, taken = put(tmp_path / "source"), put(tmp_path / "taken", b"mine")
    root = Root(tmp_path, platform="linux")
    for link in (root.reflink, root.hard_link):
        with pytest.raises(StorageError, match="exists"):
            link(source, taken)
    assert taken.read_bytes() == b"mine"


@pytest.mark.parametrize("has_links", [True, False], ids=["linked", "copied"])
def test_wrong_bytes_place_nothing_and_leave_the_source_alone(tmp_path: Path, has_links: bool) -> None:
    store, destination = store_for(tmp_path, has_links=has_links), comfy_file(VAE, tmp_path / "tree")
    source = put(tmp_path / "source", WRONG)
    with pytest.raises(HashMismatchError) as caught:
        store.place_copy(copy_of(source), destination, VAE, progress=nothing)
    assert caught.value.context == {"path": str(source), "expected": DIGEST, "observed": sha256(WRONG)}
    assert source.read_bytes() == WRONG
    assert list(destination.path.parent.iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False], ids=["linked", "copied"])
def test_a_copy_that_is_gone_or_a_folder_is_unreadable(tmp_path: Path, has_links: bool) -> None:
    store, destination = store_for(tmp_path, has_links=has_links), comfy_file(VAE, tmp_path / "tree")
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UnreadableError):
            store.place_copy(copy_of(path), destination, VAE, progress=nothing)


def test_a_linked_copy_that_somebody_writes_to_is_not_proved(tmp_path: Path) -> None:
    store = store_for(tmp_path)
    destination = comfy_file(VAE, tmp_path / "tree")
    source = put(tmp_path / "source")

    def write_meanwhile(count: int) -> None:
        with source.open("r+b") as stream:
            stream.write(b"X")
        os.utime(source, ns=(1, 1))

    with pytest.raises(UnreadableError, match="changed while it was read"):
        store.place_copy(copy_of(source), destination, VAE, progress=write_meanwhile)
    assert not destination.path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the ctime there is the time of creation")
def test_a_copy_that_others_link_to_at_the_same_time_is_linked(tmp_path: Path) -> None:
    store = store_for(tmp_path)
    destination = comfy_file(VAE, tmp_path / "tree")
    source = put(tmp_path / "source")
    others = iter(range(3))

    def link_meanwhile(count: int) -> None:
        for number in others:  # once in each reading; a link changes the file's ctime, and none of its bytes
            os.link(source, tmp_path / f"other-{number}")
            return

    way, file_digest = store.place_copy(copy_of(source), destination, VAE, progress=link_meanwhile)
    assert (way, file_digest.sha256) == ("hard-linked", DIGEST)
    assert destination.path.stat().st_nlink == 5
    assert next(others, None) is None


@pytest.mark.skipif(sys.platform == "win32", reason="the ctime there is the time of creation")
def test_a_copy_whose_ctime_never_rests_is_not_proved(tmp_path: Path) -> None:
    store = store_for(tmp_path)
    destination = comfy_file(VAE, tmp_path / "tree")
    source = put(tmp_path / "source")

    def touch(count: int) -> None:
        source.chmod(0o600 if source.stat().st_mode & 0o040 else 0o640)

    with pytest.raises(UnreadableError, match="changed while it was read"):
        store.place_copy(copy_of(source), destination, VAE, progress=touch)
    assert not destination.path.exists()


@LINKS
def test_a_copy_behind_links_is_linked_to_the_file_itself(tmp_path: Path) -> None:
    store = store_for(tmp_path)
    source = put(tmp_path / "blobs" / "real")
    (tmp_path / "one").symlink_to(source)
    (tmp_path / "two").symlink_to("one")
    destination = comfy_file(VAE, tmp_path / "tree")
    store.place_copy(copy_of(tmp_path / "two"), destination, VAE, progress=nothing)
    assert not destination.path.is_symlink()
    assert destination.path.samefile(source)


def test_a_full_disk_while_copying_leaves_nothing_half(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of a file")
    store, destination = store_for(tmp_path, has_links=False), comfy_file(VAE, tmp_path / "tree")
    big = put(tmp_path / "source", bytes(3_000_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))  # as good as a disk that fills up on the way
    try:
        with pytest.raises(InsufficientSpaceError):
            store.place_copy(copy_of(big, bytes(3_000_000)), destination, VAE, progress=nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(destination.path.parent.iterdir()) == []
    assert big.stat().st_size == 3_000_000


def test_another_programs_file_of_nearly_our_name_stays_and_is_in_nobodys_way(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path / "tree")
    theirs = put(destination.path.with_name("vae.safetensors.placing.part"), b"theirs")
    store.place_copy(copy_of(put(tmp_path / "source")), destination, VAE, progress=nothing)
    assert (destination.path.read_bytes(), theirs.read_bytes()) == (DATA, b"theirs")


def test_cancelling_a_copy_leaves_nothing_half(tmp_path: Path) -> None:
    store, destination = (
        store_for(tmp_path, has_links=False, cancelled=lambda: True),
        comfy_file(VAE, tmp_path / "tree"),
    )
    with pytest.raises(KeyboardInterrupt):
        store.place_copy(copy_of(put(tmp_path / "source")), destination, VAE, progress=nothing)
    assert list(destination.path.parent.iterdir()) == []


# --- receipts of a store -----------------------------------------------------------------------------


def test_a_file_that_changed_since_it_was_proved_gets_no_receipt(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    file_digest = fetched(store, destination)
    put(home(tmp_path), DATA + b"more")
    with pytest.raises(FileInUseError, match="changed after it was verified"):
        store.record(destination, VAE, file_digest, "the hub")
    assert store.claim(destination) is None
    home(tmp_path).unlink()
    with pytest.raises(UnreadableError):
        store.record(destination, VAE, file_digest, "the hub")


def test_what_interrupted_runs_left_goes_when_the_file_is_there(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    with store.part(destination, VAE):
        pass  # interrupted at once
    put(home(tmp_path))  # and brought by hand
    put(home(tmp_path).with_name(f"vae.safetensors.{'0' * 16}.placing.part"), b"half a copy")
    store.record(destination, VAE, FileDigest(size=len(DATA), sha256=DIGEST), "found in place")
    assert sorted(path.name for path in home(tmp_path).parent.iterdir()) == ["vae.safetensors"]


def test_a_part_of_another_program_stays_beside_a_file_that_is_there(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    put(home(tmp_path))
    put(home(tmp_path).with_name("vae.safetensors.part"), b"not ours")
    store.record(destination, VAE, FileDigest(size=len(DATA), sha256=DIGEST), "found in place")
    assert home(tmp_path).with_name("vae.safetensors.part").read_bytes() == b"not ours"


# --- setting aside -----------------------------------------------------------------------------------


def test_a_file_set_aside_is_kept_with_the_reason(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    put(home(tmp_path), WRONG)
    moved_to = store.set_aside(destination, "other bytes of the right size")
    assert (moved_to.read_bytes(), home(tmp_path).exists()) == (WRONG, False)
    assert asides(tmp_path) == {"vae.safetensors": WRONG}
    (line,) = reasons(tmp_path)
    name = "vae/vae.safetensors"  # with slashes on every system, as in a manifest
    assert line == {"was": name, "is": name, "why": "other bytes of the right size"}


def test_names_already_taken_aside_are_not_overwritten(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    for number in range(3):
        put(home(tmp_path), b"%d" % number)
        store.set_aside(destination, "again")
    kept = sorted(path.read_bytes() for path in (tmp_path / ".klein-setup").rglob("vae.safetensors*"))
    assert kept == [b"0", b"1", b"2"]
    assert len(reasons(tmp_path)) == 3


def test_a_folder_in_the_way_is_set_aside_with_all_that_is_in_it(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    put(home(tmp_path) / "inside" / "file", b"precious")
    moved_to = store.set_aside(destination, "it is not a file")
    assert (moved_to / "inside" / "file").read_bytes() == b"precious"


@LINKS
@pytest.mark.parametrize("is_dangling", [True, False])
def test_of_a_link_only_the_link_is_set_aside(tmp_path: Path, is_dangling: bool) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    if not is_dangling:
        elsewhere.write_bytes(WRONG)
    home(tmp_path).parent.mkdir()
    home(tmp_path).symlink_to(elsewhere)
    moved_to = store.set_aside(destination, "other bytes")
    assert moved_to.is_symlink()
    assert elsewhere.exists() != is_dangling
    assert reasons(tmp_path)[0]["link"] == str(elsewhere)


def test_setting_aside_what_is_gone_is_nothing(tmp_path: Path) -> None:
    store_for(tmp_path).set_aside(comfy_file(VAE, tmp_path), "it was wrong")
    assert list(tmp_path.iterdir()) == []


def test_a_file_on_a_drive_mounted_below_the_root_is_set_aside_on_that_drive(tmp_path: Path) -> None:
    def move(source: Path, destination: Path) -> None:
        if tmp_path / ".klein-setup" in destination.parents:
            raise storage_error(OSError(errno.EXDEV, "Invalid cross-device link"), destination)
        source.replace(destination)

    store, destination = store_for(tmp_path, move=move), comfy_file(VAE, tmp_path)
    put(home(tmp_path), WRONG)
    moved_to = store.set_aside(destination, "other bytes")
    assert moved_to.read_bytes() == WRONG
    assert moved_to.name == "vae.safetensors.aside"  # ComfyUI lists what ends in .safetensors
    assert tmp_path / "vae" / ".klein-setup" in moved_to.parents
    assert reasons(tmp_path / "vae")[0]["was"] == "vae.safetensors"


def test_a_file_that_cannot_be_moved_stays(tmp_path: Path) -> None:
    def move(source: Path, destination: Path) -> None:
        raise FileInUseError("ComfyUI has it open")

    store, destination = store_for(tmp_path, move=move), comfy_file(VAE, tmp_path)
    put(home(tmp_path), WRONG)
    with pytest.raises(FileInUseError):
        store.set_aside(destination, "other bytes")
    assert home(tmp_path).read_bytes() == WRONG
    assert reasons(tmp_path) == []


def test_a_reason_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    def move(source: Path, destination: Path) -> None:
        (destination.parents[1] / "why.jsonl").mkdir()
        source.replace(destination)

    put(home(tmp_path), WRONG)
    with pytest.raises(StorageError, match=r"why\.jsonl"):
        store_for(tmp_path, move=move).set_aside(comfy_file(VAE, tmp_path), "other bytes")
    assert asides(tmp_path) == {"vae.safetensors": WRONG}


# --- an HF cache -----------------------------------------------------------------------------------

CONFIG = artifact(b'{"a": 1}\n', id="config", is_lfs=False, sources=(hub_file("sub/folder/config.json"),))


@pytest.mark.parametrize(
    ("data", "object_id"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),  # `git hash-object --stdin`
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
        (b"test content\n", "d670460b4b4aece5915caf5c68d12f560a9fe3e4"),  # the one of the Git book, chapter 10.2
        (b"what is up, doc?", "bd9dbf5aae1a3862dd1526723246b20206e5fc37"),
    ],
)
def test_a_git_blob_has_the_id_that_git_gives_it(tmp_path: Path, data: bytes, object_id: str) -> None:
    assert git_blob_id(put(tmp_path / "x", data), len(data)) == object_id


def no_links(*paths: object, **_: object) -> None:
    raise OSError(errno.EPERM, "A required privilege is not held by the client")


def not_implemented(*paths: object, **_: object) -> None:
    raise NotImplementedError


@LINKS
@pytest.mark.parametrize("wanted", [VAE, CONFIG], ids=["lfs", "git"])
def test_a_snapshot_file_is_a_relative_link_to_a_blob_named_by_its_content(tmp_path: Path, wanted: Artifact) -> None:
    store, destination = store_for(tmp_path), hub_blob(tmp_path, wanted, is_shipped=True)
    data = DATA if wanted is VAE else b'{"a": 1}\n'
    store.record(destination, wanted, fetched(store, destination, wanted, data), "the hub")
    name = DIGEST if wanted is VAE else hashlib.sha1(b"blob 9\0" + data, usedforsecurity=False).hexdigest()
    assert destination.path.readlink() == Path("../../../..", "blobs", name)
    assert destination.path.read_bytes() == data
    assert (destination.root / "refs" / "main").read_text(encoding="utf-8") == destination.revision
    assert [path.name for path in (destination.root / "blobs").iterdir()] == [name]
    assert [path.name for path in destination.path.parent.iterdir()] == [destination.path.name]
    assert store.claim(destination) is not None


@pytest.mark.parametrize("symlink", [no_links, not_implemented])
def test_without_links_the_file_itself_lies_in_the_snapshot(tmp_path: Path, symlink: Callable[..., None]) -> None:
    store, destination = store_for(tmp_path, symlink=symlink), hub_blob(tmp_path, VAE)
    fetched(store, destination)
    assert not destination.path.is_symlink()
    assert destination.path.read_bytes() == DATA
    assert list((destination.root / "blobs").iterdir()) == []


@LINKS
def test_a_cache_that_lost_its_links_keeps_the_blobs_that_others_point_to(tmp_path: Path) -> None:
    other = hub_blob(tmp_path, VAE, revision=OTHER_COMMIT)
    fetched(store_for(tmp_path), other)
    destination = hub_blob(tmp_path, VAE)
    fetched(store_for(tmp_path, symlink=no_links), destination)
    assert other.path.read_bytes() == destination.path.read_bytes() == DATA


def test_bytes_that_the_hub_names_otherwise_get_no_place_in_a_snapshot(tmp_path: Path) -> None:
    destination = hub_blob(tmp_path, CONFIG, blob_id="0" * 40)
    with pytest.raises(NotTheFileError, match="its git id is 000"):
        fetched(store_for(tmp_path), destination, CONFIG, b'{"a": 1}\n')
    assert not destination.path.exists()
    assert not (destination.root / "refs").exists()


def test_what_main_means_to_the_user_is_left_alone(tmp_path: Path) -> None:
    destination = hub_blob(tmp_path, VAE, is_shipped=True)
    put(destination.root / "refs" / "main", OTHER_COMMIT.encode())
    fetched(store_for(tmp_path), destination)
    assert (destination.root / "refs" / "main").read_text(encoding="utf-8") == OTHER_COMMIT


@LINKS
def test_a_blob_that_is_there_without_its_link_is_placed_from_itself(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), hub_blob(tmp_path, VAE)
    blob = put(destination.root / "blobs" / DIGEST)  # killed between the blob and the link
    store.place_copy(copy_of(blob), destination, VAE, progress=nothing)
    assert destination.path.resolve() == blob.resolve()
    assert [path.name for path in blob.parent.iterdir()] == [DIGEST]


@LINKS
def test_a_wrong_blob_is_set_aside_with_the_link_to_it(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), hub_blob(tmp_path, VAE)
    fetched(store, destination)
    put(destination.root / "blobs" / DIGEST, WRONG)
    moved_to = store.set_aside(destination, "other bytes")
    assert moved_to.read_bytes() == WRONG
    assert not os.path.lexists(destination.path)
    assert list((destination.root / "blobs").iterdir()) == []
    assert len(reasons(destination.root)) == 2


@LINKS
def test_a_blob_that_another_snapshot_points_to_stays_and_its_bytes_are_kept(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), hub_blob(tmp_path, VAE)
    other = hub_blob(tmp_path, VAE, revision=OTHER_COMMIT)
    for each in (destination, other):
        fetched(store, each)
    blob = destination.root / "blobs" / DIGEST
    blob.write_bytes(WRONG)
    moved_to = store.set_aside(destination, "other bytes")
    assert other.path.read_bytes() == WRONG  # no worse than before
    assert not os.path.lexists(destination.path)
    fetched(store, destination)
    assert other.path.read_bytes() == destination.path.read_bytes() == DATA
    assert moved_to.read_bytes() == WRONG


@LINKS
def test_a_link_to_a_blob_that_is_right_for_another_snapshot_takes_nothing_from_it(tmp_path: Path) -> None:
    """A snapshot path that points to the wrong blob: the blob is somebody else's."""
    store, destination = store_for(tmp_path), hub_blob(tmp_path, VAE)
    wanted = artifact(WRONG)
    other = hub_blob(tmp_path, wanted, revision=OTHER_COMMIT)
    fetched(store, other, wanted, WRONG)
    destination.path.parent.mkdir(parents=True)
    destination.path.symlink_to(Path("../../../..", "blobs", sha256(WRONG)))
    store.set_aside(destination, "other bytes")
    fetched(store, destination)
    assert (other.path.read_bytes(), destination.path.read_bytes()) == (WRONG, DATA)


@LINKS
@pytest.mark.parametrize("is_used", [True, False])
def test_the_store_that_repositories_share_is_left_alone(tmp_path: Path, is_used: bool) -> None:
    """With Xet a blob is itself a link, to ``<cache>/blobs/ab/<hash>``."""
    store, destination = store_for(tmp_path), hub_blob(tmp_path, VAE)
    shared = put(tmp_path / "blobs" / "ab" / "xet", WRONG)
    (destination.root / "blobs").mkdir(parents=True)
    (destination.root / "blobs" / DIGEST).symlink_to(Path("../../blobs/ab/xet"))
    for each in [destination, *([hub_blob(tmp_path, VAE, revision=OTHER_COMMIT)] if is_used else [])]:
        each.path.parent.mkdir(parents=True)
        each.path.symlink_to(Path("../../../..", "blobs", DIGEST))
    store.set_aside(destination, "other bytes")
    fetched(store, destination)
    assert shared.read_bytes() == WRONG
    assert destination.path.read_bytes() == DATA
    assert not (destination.root / "blobs" / DIGEST).is_symlink()


@LINKS
@pytest.mark.parametrize("kind", ["file", "link out of the repository", "dangling link"])
def test_a_snapshot_path_that_is_no_link_to_a_blob_is_set_aside_alone(tmp_path: Path, kind: str) -> None:
    store, destination = store_for(tmp_path), hub_blob(tmp_path, VAE)
    elsewhere = put(tmp_path / "elsewhere", WRONG)
    destination.path.parent.mkdir(parents=True)
    if kind == "file":
        destination.path.write_bytes(WRONG)
    else:
        destination.path.symlink_to(elsewhere if kind.startswith("link") else Path("../../../../blobs/none"))
    store.set_aside(destination, "other bytes")
    assert not os.path.lexists(destination.path)
    assert elsewhere.read_bytes() == WRONG
    assert len(reasons(destination.root)) == 1


@LINKS
def test_where_a_second_name_is_not_to_be_had_a_shared_blob_just_stays(tmp_path: Path) -> None:
    store = store_for(tmp_path, has_links=False)
    destination, other = hub_blob(tmp_path, VAE), hub_blob(tmp_path, VAE, revision=OTHER_COMMIT)
    for each in (destination, other):
        fetched(store, each)
    store.set_aside(destination, "other bytes")
    assert other.path.read_bytes() == DATA


@LINKS
def test_a_second_name_that_fails_is_a_storage_error(tmp_path: Path) -> None:
    store = store_for(tmp_path, link=impossible(errno.EIO))
    destination, other = hub_blob(tmp_path, VAE), hub_blob(tmp_path, VAE, revision=OTHER_COMMIT)
    for each in (destination, other):
        fetched(store, each)
    with pytest.raises(StorageError):
        store.set_aside(destination, "other bytes")
    assert other.path.read_bytes() == DATA


def test_what_appears_in_a_snapshot_while_we_fetch_is_set_aside(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), hub_blob(tmp_path, VAE)
    put(destination.path, b"the user's own")
    fetched(store, destination)
    assert destination.path.read_bytes() == DATA
    assert asides(destination.root) == {"vae.safetensors": b"the user's own"}


@LINKS
def test_a_blob_that_cannot_be_moved_leaves_no_link_behind(tmp_path: Path) -> None:
    def move(source: Path, destination: Path) -> None:
        raise FileInUseError("it is open")

    destination = hub_blob(tmp_path, VAE)
    with pytest.raises(FileInUseError):
        fetched(store_for(tmp_path, move=move), destination)
    assert list(destination.path.parent.iterdir()) == []


def test_a_part_that_vanishes_before_it_is_named_is_unreadable(tmp_path: Path) -> None:
    from provisioner.files.store.hub_layout import place_blob

    with pytest.raises(UnreadableError):
        place_blob(Root(tmp_path), tmp_path / "none", hub_blob(tmp_path, CONFIG), size=1, sha256="0" * 64)


# --- one run at a time -------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
from pathlib import Path
from provisioner.disk.root import Root
from provisioner.files.store.target_lock import hold
with hold(Root(Path(sys.argv[1])), wait=True, cancelled=lambda: False, notice=lambda text: None):
    print(os.getpid(), flush=True)  # on Windows Python is a child of the environment's launcher
    time.sleep(60)
"""


class Holder:
    """A process that holds the lock."""

    def __init__(self, tree: Path) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tree)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.pid = int(self._process.stdout.readline())

    def end(self) -> None:
        os.kill(self.pid, 9)
        self._process.communicate(timeout=10)


@pytest.fixture
def holder(tmp_path: Path) -> Holder:
    return Holder(tmp_path)


def test_a_second_run_is_told_who_holds_the_lock(tmp_path: Path, holder: Holder) -> None:
    store = store_for(tmp_path, wait=False)
    try:
        with pytest.raises(LockHeldError, match=f"process {holder.pid} on "), store.lock([comfy_file(VAE, tmp_path)]):
            pass
    finally:
        holder.end()


def test_the_lock_dies_with_its_process(tmp_path: Path, holder: Holder) -> None:
    said: list[str] = []
    store = store_for(tmp_path, notice=said.append)
    killer = threading.Timer(0.5, holder.end)
    killer.start()
    with store.lock([comfy_file(VAE, tmp_path), comfy_file(CONFIG, tmp_path)]):
        note = json.loads((tmp_path / ".klein-setup" / "lock.json").read_text(encoding="utf-8"))
        assert note["pid"] == os.getpid()
    killer.join()
    assert len(said) == 1
    assert f"process {holder.pid}" in said[0]
    assert not (tmp_path / ".klein-setup" / "lock.json").exists()


def test_waiting_for_the_lock_can_be_cancelled(tmp_path: Path, holder: Holder) -> None:
    store = store_for(tmp_path, cancelled=lambda: True)
    try:
        with pytest.raises(KeyboardInterrupt), store.lock([comfy_file(VAE, tmp_path)]):
            pass
    finally:
        holder.end()


def test_saved_bytes_without_an_index_are_swept_and_nothing_else_is(tmp_path: Path) -> None:
    folder = tmp_path / STATE_FOLDER / "aside" / "20261123T000000Z" / "vae"
    unfinished, whole, mine = (folder / name for name in ("a.blocks", "b.blocks", "mine.blocks"))
    for path in (unfinished / "000000000000000", unfinished / "index.json.17.tmp", whole / "000000000000000"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (whole / "index.json").write_text("{}", encoding="utf-8")
    mine.mkdir()
    (mine / "notes.txt").write_text("mine", encoding="utf-8")
    with hold(Root(tmp_path), wait=False, cancelled=lambda: False, notice=lambda text: None):
        assert sorted(folder.rglob("*")) == [whole, *sorted(whole.iterdir()), mine, mine / "notes.txt"]


def test_records_that_a_killed_run_left_half_written_are_swept(tmp_path: Path) -> None:
    state = tmp_path / STATE_FOLDER
    state.mkdir()
    old, fresh = state / "receipt.json.4711.tmp", state / "proven.json.abc.tmp"
    for path in (old, fresh):
        path.write_text("{", encoding="utf-8")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    with hold(Root(tmp_path), wait=False, cancelled=lambda: False, notice=lambda text: None):
        assert (old.exists(), fresh.exists()) == (False, True)


@pytest.mark.parametrize("note", ["", "{", "[]", '{"pid": "x", "host": ""}', None])
def test_a_lock_without_a_readable_note_is_held_all_the_same(tmp_path: Path, note: str | None) -> None:
    def quiet() -> bool:
        return False

    with hold(Root(tmp_path), wait=True, cancelled=quiet, notice=lambda text: None):
        path = tmp_path / ".klein-setup" / "lock.json"
        path.unlink()
        if note is not None:
            path.write_text(note, encoding="utf-8")
        second = hold(Root(tmp_path), wait=False, cancelled=quiet, notice=lambda text: None)
        with pytest.raises(LockHeldError) as caught:
            second.__enter__()
        assert str(caught.value) == f"Another run is working on {tmp_path}."


def test_several_roots_are_locked_always_in_the_same_order_and_freed_after_a_failure(tmp_path: Path) -> None:
    store = store_for(tmp_path, wait=False)
    both = [comfy_file(VAE, tmp_path / name) for name in ("b", "a")]

    def fail_inside() -> None:
        with store.lock(both):
            assert all((each.root / ".klein-setup" / "lock.json").exists() for each in both)
            raise ZeroDivisionError

    for _ in range(2):  # the second is not told that the first still holds it
        with pytest.raises(ZeroDivisionError):
            fail_inside()


def test_a_lock_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / ".klein-setup" / "lock").mkdir(parents=True)
    with pytest.raises(StorageError), store_for(tmp_path).lock([comfy_file(VAE, tmp_path)]):
        pass


# --- repairing -------------------------------------------------------------------------------------

BIG = random.Random(2).randbytes(2 * BLOCK_SIZE + 5000)
BIG_VAE = artifact(BIG)
BIG_DIGESTS = tuple(sha256(BIG[at : at + BLOCK_SIZE]) for at in range(0, len(BIG), BLOCK_SIZE))


def damage_of(bad: tuple[int, ...], observed_size: int = len(BIG)) -> Damage:
    return Damage(
        size=len(BIG),
        sha256=BIG_VAE.sha256,
        block_size=BLOCK_SIZE,
        digests=BIG_DIGESTS,
        trusted_by="receipt",
        observed_size=observed_size,
        bad_blocks=bad,
    )


def patched(store: FileStore, destination: Destination, damage: Damage, way: PatchWay) -> list[int]:
    """Repair a file; return the blocks that had to be brought."""
    with store.patch(destination, BIG_VAE, damage, way=way, reason="blocks differ") as part:
        missing = part.missing_blocks()
        for index in missing:
            piece = BIG[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            part.write(index * BLOCK_SIZE, piece)
            part.finish_block(index, sha256(piece))
        assert part.seal(lambda: None).sha256 == BIG_VAE.sha256
        part.commit("the hub")
    return missing


def spoilt(block: int) -> bytes:
    data = bytearray(BIG)
    data[block * BLOCK_SIZE] ^= 1
    return bytes(data)


@pytest.mark.parametrize("is_shared", [False, True], ids=["one name", "two names"])
def test_a_file_with_a_second_name_is_never_written_in_place(tmp_path: Path, is_shared: bool) -> None:
    store, destination = store_for(tmp_path), comfy_file(BIG_VAE, tmp_path)
    path = put(destination.path, spoilt(1))
    if is_shared:
        os.link(path, tmp_path / "other")  # since the plan was made
    inode = path.stat().st_ino
    assert patched(store, destination, damage_of((1,)), "in-place") == [1]
    assert path.read_bytes() == BIG
    assert (path.stat().st_ino == inode) == (not is_shared)
    if is_shared:
        assert (tmp_path / "other").read_bytes() == spoilt(1)
        assert asides(tmp_path) == {"vae.safetensors": spoilt(1)}


def test_right_blocks_are_copied_beside_a_file_that_is_not_to_be_written(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(BIG_VAE, tmp_path)
    put(destination.path, spoilt(0))
    assert patched(store, destination, damage_of((0,)), "beside") == [0]
    assert destination.path.read_bytes() == BIG
    assert asides(tmp_path) == {"vae.safetensors": spoilt(0)}


def some_of_it(reader: int, writer: int, count: int, start: int, to: int) -> int:
    """Stand for a system that copies a little and then no more."""
    if start >= 3 * BLOCK:
        return 0
    os.lseek(reader, start, os.SEEK_SET)
    os.lseek(writer, to, os.SEEK_SET)
    return os.write(writer, os.read(reader, min(count, 600)))


@pytest.mark.parametrize("share", [None, refusing(errno.EXDEV), some_of_it], ids=["none", "refuses", "some"])
def test_ranges_are_copied_in_whatever_way_the_system_has(tmp_path: Path, share: Share | None) -> None:
    source = put(tmp_path / "source")
    ranges = [(0, BLOCK), (2 * BLOCK, 3 * BLOCK)]
    with (tmp_path / "copy").open("xb", buffering=0) as copy:
        copy_ranges(open_for_reading, source, copy.fileno(), ranges, share=share)
        copied = (tmp_path / "copy").read_bytes()
        assert copied == block(0) + bytes(BLOCK) + DATA[2 * BLOCK : 5 * BLOCK]
        copy_ranges(open_for_reading, source, copy.fileno(), [(BLOCK, BLOCK)], share=share)
        assert (tmp_path / "copy").read_bytes() == DATA[: 5 * BLOCK]
        with pytest.raises(OSError, match="shorter"):
            copy_ranges(open_for_reading, source, copy.fileno(), [(len(DATA) - 5, 10)], share=share)


def test_a_truncated_file_is_continued_and_can_be_had_back(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(BIG_VAE, tmp_path)
    old = BIG[: BLOCK_SIZE + 1234]
    path = put(destination.path, old)
    assert patched(store, destination, damage_of((1, 2), len(old)), "continue") == [1, 2]
    assert path.read_bytes() == BIG
    (entry,) = store.list_backups([tmp_path])
    assert entry.size < BLOCK_SIZE
    assert store.put_back(entry).read_bytes() == old


def test_a_truncated_file_that_was_taken_over_counts_as_held_before_the_part_is_opened(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(BIG_VAE, tmp_path)
    put(destination.path, BIG[: BLOCK_SIZE + 1234])
    store.patch(destination, BIG_VAE, damage_of((1, 2), BLOCK_SIZE + 1234), way="continue", reason="cut short")
    assert not destination.path.exists()  # a kill came here
    assert store.held_bytes(destination, BIG_VAE) == BLOCK_SIZE
    with store.part(destination, BIG_VAE) as part:
        assert part.missing_blocks() == [1, 2]
    assert part_path(destination.path).read_bytes()[:BLOCK_SIZE] == BIG[:BLOCK_SIZE]


@pytest.mark.parametrize("obstacle", ["a part", "a second name", "grew"])
def test_a_truncated_file_that_cannot_be_taken_over_is_completed_beside_it(tmp_path: Path, obstacle: str) -> None:
    store, destination = store_for(tmp_path), comfy_file(BIG_VAE, tmp_path)
    old = BIG[: BLOCK_SIZE + 1234]
    path = put(destination.path, old)
    if obstacle == "a part":
        with store.part(destination, BIG_VAE):
            pass
    elif obstacle == "a second name":
        os.link(path, tmp_path / "other")
    else:
        path.write_bytes(old + b"more")
    assert patched(store, destination, damage_of((1, 2), len(old)), "continue") == [1, 2]
    assert path.read_bytes() == BIG
    assert list(asides(tmp_path).values()) == [old + b"more" if obstacle == "grew" else old]


@LINKS
def test_what_may_be_written_in_place_is_a_plain_file_with_one_name(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    assert store.is_shared(destination, DIGEST)  # nothing is there
    path = put(destination.path)
    assert not store.is_shared(destination, DIGEST)
    os.link(path, tmp_path / "other")
    assert store.is_shared(destination, DIGEST)
    path.unlink()
    path.symlink_to(tmp_path / "other")
    assert store.is_shared(destination, DIGEST)
    blob = hub_blob(tmp_path, VAE)
    fetched(store, blob)
    assert not store.is_shared(blob, DIGEST)
    assert store.is_shared(blob, "0" * 64)  # a blob named for other content stays what it is


def test_a_misplaced_file_is_moved_when_it_is_right_and_only_then(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    wrong = put(tmp_path / "checkpoints" / "wrong", WRONG)
    with pytest.raises(HashMismatchError):
        store.move_file(copy_of(wrong), destination, VAE, progress=nothing)
    assert wrong.read_bytes() == WRONG
    right = put(tmp_path / "checkpoints" / "right")
    inode = right.stat().st_ino
    put(destination.path, WRONG)
    way, file_digest = store.move_file(copy_of(right), destination, VAE, progress=nothing, replaces="it is wrong")
    assert (way, file_digest.sha256, right.exists()) == ("moved", DIGEST, False)
    assert destination.path.stat().st_ino == inode
    assert asides(tmp_path) == {"vae.safetensors": WRONG}


@LINKS
def test_a_misplaced_link_is_not_moved(tmp_path: Path) -> None:
    store, destination = store_for(tmp_path), comfy_file(VAE, tmp_path)
    theirs = put(tmp_path / "theirs")
    link = tmp_path / "checkpoints" / "link"
    link.parent.mkdir()
    link.symlink_to(theirs)
    way, _ = store.move_file(copy_of(link), destination, VAE, progress=nothing)
    assert way != "moved"
    assert link.is_symlink()
    assert destination.path.read_bytes() == theirs.read_bytes() == DATA


MIB = 1024 * 1024

# --- the page cache ----------------------------------------------------------------------------------


def is_cached(path: Path) -> bool:
    """Whether the first bytes of a file come without the disk; skips where the system does not say."""
    if sys.platform != "linux":
        pytest.skip("only Linux says")
    with path.open("rb", buffering=0) as stream:
        try:
            return os.preadv(stream.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT) == 4096
        except BlockingIOError:
            return False
        except OSError:
            pytest.skip("this file system does not say what is cached")


@pytest.mark.parametrize(("available", "stays"), [(0, False), (10**9, True)])
def test_a_file_that_was_fetched_leaves_no_more_in_the_page_cache_than_there_is_room_for(
    tmp_path: Path, available: int, stays: bool
) -> None:
    data = os.urandom(3 * MIB)
    final = tmp_path / "x"
    disk = Disk(written=PageCache(lambda: available).written)
    with PartFile(final, size=len(data), sha256=sha256(data), block_size=MIB, disk=disk) as part:
        for index in range(3):
            piece = data[index * MIB : (index + 1) * MIB]
            part.write(index * MIB, piece)
            part.finish_block(index, sha256(piece))
        part.seal()
        part.commit("the hub")
    assert is_cached(final) == stays
    assert final.read_bytes() == data


def test_the_share_of_the_page_cache_is_one_for_all_files_and_a_refusal_is_no_error() -> None:
    asked: list[tuple[int, int, int]] = []

    def refuse(descriptor: int, offset: int, length: int, _advice: int) -> None:
        asked.append((descriptor, offset, length))
        raise OSError(errno.EINVAL, "no")

    cache = PageCache(lambda: 400, refuse)
    cache.written(3, 0, 60)
    cache.written(4, 0, 60)
    cache.written(3, 60, 40)
    cache.written(3, 100, 1)
    cache.written(3, 101, 0)
    assert asked == [(4, 0, 60), (3, 100, 1)]
    PageCache(lambda: 0, None).written(3, 0, 60)


def test_the_memory_that_is_available_is_read_from_the_system() -> None:
    assert (available_memory() > 10 * MIB) == Path("/proc/meminfo").exists()  # on Linux, and in Wine on Linux
