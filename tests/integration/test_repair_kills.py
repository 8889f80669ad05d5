"""A repair that is killed, at many moments: the file is no worse, and the next run fetches only what is missing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from provisioner.core.ports import Claim, FileDigest
from provisioner.disk.root import Root
from provisioner.files.store.receipts import Receipts, stamp_of
from tests.support.sandbox import MIB, Running, Sandbox, Wanted, sha256_of, tensors

SIZE = 3 * BLOCK_SIZE + MIB
BAD = (0, 2, 3)
RATE = 60 * MIB  # bytes per second: a block takes a quarter of a second
SECTOR = 512


def installed(sandbox: Sandbox) -> Wanted:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.plant(sandbox.path(), wanted.data)
    blocks = tuple(sha256_of(wanted.data[at : at + BLOCK_SIZE]) for at in range(0, SIZE, BLOCK_SIZE))
    file_digest = FileDigest(size=SIZE, sha256=wanted.sha256, blocks=blocks)
    claim = Claim(artifact_id="small", stamp=stamp_of(sandbox.path()), file_digest=file_digest, source="the hub")
    root = Root(sandbox.tree / "models")
    Receipts().write_claim(root, f"vae/{wanted.name}", claim, recorded_at="2026-11-23T00:00:00Z")
    return wanted


def damaged(wanted: Wanted) -> bytes:
    data = bytearray(wanted.data)
    for block in BAD:
        for offset in range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, SIZE), 64 * 1024):
            data[offset] ^= 0xFF
    return bytes(data)


def patch_log(path: Path) -> Path:
    return path.with_name(path.name + ".patch.part.jsonl")


def blocks_in(log: Path) -> set[int]:
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines[1:]:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            found |= {int(entry["block"])} if "block" in entry else set()
    return found


def bytes_of(blocks: set[int]) -> int:
    return sum(min(BLOCK_SIZE, SIZE - block * BLOCK_SIZE) for block in blocks)


def assert_no_worse(now: bytes, old: bytes, right: bytes) -> None:
    """Assert that every sector is the old one or the right one, and the length is as it was."""
    assert len(now) == len(old)
    for at in range(0, len(now), MIB):
        if now[at : at + MIB] not in (old[at : at + MIB], right[at : at + MIB]):
            for sector in range(at, min(at + MIB, len(now)), SECTOR):
                piece = now[sector : sector + SECTOR]
                assert piece in (old[sector : sector + SECTOR], right[sector : sector + SECTOR]), f"byte {sector}"


def until(is_so: Callable[[], bool], running: Running) -> None:
    """Wait, as closely as can be, until something is so or the process has ended."""
    while not is_so() and running.process.poll() is None:
        time.sleep(0.0005)


def aside(tree: Path) -> Path:
    return tree / "models" / STATE_FOLDER / "aside"


def has_aside(tree: Path, pattern: str) -> bool:
    """Whether something of that name is set aside; a folder that goes while it is looked through has nothing."""
    with contextlib.suppress(FileNotFoundError):
        return any(aside(tree).rglob(pattern))
    return False


MOMENTS: dict[str, Callable[[Path, Path], bool]] = {
    "the log begins": lambda tree, log: log.exists(),
    "a block arrived": lambda tree, log: len(blocks_in(log)) >= 1,
    "two blocks arrived": lambda tree, log: len(blocks_in(log)) >= 2,
    "all blocks arrived": lambda tree, log: len(blocks_in(log)) >= len(BAD),
    "old bytes are being kept": lambda tree, log: has_aside(tree, "0*"),
    "old bytes are kept": lambda tree, log: has_aside(tree, "index.json"),
    "the reason is written": lambda tree, log: has_aside(tree, "why.jsonl"),
}


@pytest.mark.parametrize("delays_ms", [(0, 2, 5), (10, 20, 40)], ids=["at once", "a little later"])
def test_a_killed_repair_leaves_the_file_no_worse_and_the_next_fetches_only_the_rest(
    sandbox: Sandbox, delays_ms: tuple[int, ...]
) -> None:
    wanted = installed(sandbox)
    path, old = sandbox.path(), damaged(wanted)
    path.write_bytes(old)
    log = patch_log(path)
    sandbox.hub.rate_bytes_s_per_connection = RATE
    sandbox.files = ()  # old and right sectors side by side are looked at here, and not by the sandbox
    killed = 0
    for number, is_so in enumerate(MOMENTS.values()):
        held = bytes_of(blocks_in(log))
        sandbox.hub.clear_requests()
        running = sandbox.start("repair")
        until(functools.partial(is_so, sandbox.tree, log), running)
        time.sleep(delays_ms[number % len(delays_ms)] / 1000)
        running.kill()
        killed += running.wait().returncode != 0
        assert_no_worse(path.read_bytes(), old, wanted.data)
        assert sandbox.bytes_served() <= bytes_of(set(BAD)) - held
    assert killed >= 4  # of seven; a repair can be over before the last moments are noticed
    sandbox.files = (wanted,)
    still_bad = {block for block in BAD if not _is_right(path, wanted, block)}
    sandbox.hub.rate_bytes_s_per_connection = None
    sandbox.hub.clear_requests()
    needed = bytes_of(still_bad - blocks_in(log))
    done = sandbox.run("repair", "--json")
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() == needed
    sandbox.assert_in_place(wanted)
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]
    assert _restored(sandbox, wanted) == sha256_of(old)


def _is_right(path: Path, wanted: Wanted, block: int) -> bool:
    with path.open("rb") as stream:
        stream.seek(block * BLOCK_SIZE)
        return stream.read(BLOCK_SIZE) == wanted.data[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]


def _restored(sandbox: Sandbox, wanted: Wanted) -> str:
    """Return the SHA-256 of what the bytes kept in ``aside`` make of the repaired file."""
    (index,) = aside(sandbox.tree).rglob("index.json")
    data = bytearray(wanted.data)
    for piece in json.loads(index.read_text(encoding="utf-8"))["pieces"]:
        kept = (index.parent / piece["name"]).read_bytes()
        data[piece["offset"] : piece["offset"] + piece["size"]] = kept
    return hashlib.sha256(data).hexdigest()


def kill_repair(sandbox: Sandbox, is_so: Callable[[], bool]) -> None:
    """Start a slow repair with one connection and kill it as soon as something is so."""
    sandbox.hub.rate_bytes_s_per_connection = RATE
    running = sandbox.start("repair", "--connections", "1")
    until(is_so, running)
    sandbox.kill(running)


def assert_the_rest_is_fetched(sandbox: Sandbox, wanted: Wanted, held: int) -> None:
    done = sandbox.run("repair", "--json")
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() == SIZE - held
    sandbox.assert_in_place(wanted)


@pytest.mark.parametrize("moment", ["the log is there", "it is a part", "a block arrived", "two blocks arrived"])
def test_a_killed_continuation_of_a_truncated_file_loses_nothing_of_it(sandbox: Sandbox, moment: str) -> None:
    wanted = installed(sandbox)
    length = BLOCK_SIZE + MIB
    path = sandbox.path()
    os.truncate(path, length)
    sandbox.expect(path, wanted.data[:length])
    conditions: dict[str, Callable[[], bool]] = {
        "the log is there": lambda: sandbox.log().exists(),
        "it is a part": lambda: sandbox.part().exists(),
        "a block arrived": lambda: sandbox.blocks_in_log() >= 2,
        "two blocks arrived": lambda: sandbox.blocks_in_log() >= 3,
    }
    kill_repair(sandbox, conditions[moment])
    there = path if path.exists() else sandbox.part()
    assert there.read_bytes()[:BLOCK_SIZE] == wanted.data[:BLOCK_SIZE]
    held = max(sandbox.bytes_in_log() if sandbox.part().exists() else 0, BLOCK_SIZE)
    assert_the_rest_is_fetched(sandbox, wanted, held)


@pytest.mark.parametrize("moment", ["the part is there", "what was there is copied", "a block arrived"])
def test_a_killed_continuation_of_what_another_program_left_changes_no_byte_of_it(
    sandbox: Sandbox, moment: str
) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    length = BLOCK_SIZE + MIB
    sandbox.plant(sandbox.path(), wanted.data[:length])
    conditions: dict[str, Callable[[], bool]] = {
        "the part is there": lambda: sandbox.part().exists(),
        "what was there is copied": lambda: sandbox.blocks_in_log() >= 1,
        "a block arrived": lambda: sandbox.blocks_in_log() >= 2,
    }
    kill_repair(sandbox, conditions[moment])
    assert sandbox.path().read_bytes() == wanted.data[:length]
    assert_the_rest_is_fetched(sandbox, wanted, max(sandbox.bytes_in_log(), BLOCK_SIZE))
