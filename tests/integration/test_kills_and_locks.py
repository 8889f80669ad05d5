"""A run that ends before its time, the run after it, and two runs at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from provisioner.rehearsal.faults import Stall, Status
from tests.support.sandbox import MIB, REPOSITORY, REVISION, TOKEN, Sandbox, Wanted, sha256_of, tensors, wait_until

SIZE = 3 * BLOCK_SIZE + 5 * MIB  # three blocks and a short one
SLOW = 4 * MIB  # for runs that must not end before somebody else has begun
RATE = 60 * MIB  # bytes per second and connection: a block takes a quarter of a second
CONNECTIONS = 2

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that a process can catch")


def held_until(sandbox: Sandbox, blocks: int) -> None:
    """Wait until so many blocks are in the log and more bytes are on their way."""
    wait_until(
        lambda: (
            sandbox.blocks_in_log() >= blocks
            and sandbox.bytes_served_so_far() > min(SIZE - MIB, blocks * BLOCK_SIZE + 3 * MIB)
        ),
        what=f"{blocks} blocks are complete",
    )


# --- SIGKILL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_resumes_after_a_kill_from_the_bytes_on_disk(sandbox: Sandbox, blocks: int) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.hub.rate_bytes_s_per_connection = RATE
    running = sandbox.start("install", "--connections", str(CONNECTIONS))
    held_until(sandbox, blocks)
    running.kill()
    killed = running.wait()
    assert killed.returncode != 0
    sandbox.assert_nothing_placed()
    held = sandbox.bytes_in_log()
    assert held >= min(blocks * BLOCK_SIZE, SIZE - BLOCK_SIZE)
    before = sandbox.bytes_served()
    sandbox.hub.rate_bytes_s_per_connection = None
    done = sandbox.install("--json")
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() - before == SIZE - held
    assert sandbox.bytes_served() <= SIZE + CONNECTIONS * BLOCK_SIZE
    assert [step["outcome"]["bytes_fetched"] for step in done.json["steps"]] == [SIZE - held]
    sandbox.assert_in_place(wanted)


def test_a_kill_at_the_very_end_costs_nothing_but_another_start(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    running = sandbox.start("install", "--connections", "1")
    wait_until(lambda: sandbox.bytes_served_so_far() >= SIZE, what="every byte was sent")
    running.kill()
    running.wait()
    sandbox.hub.clear_requests()
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() <= BLOCK_SIZE
    assert sha256_of(sandbox.path()) == wanted.sha256


def test_three_kills_in_a_row_still_end_in_the_right_file(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.hub.rate_bytes_s_per_connection = RATE
    for blocks in (1, 2, 3):
        running = sandbox.start("install", "--connections", "1")
        held_until(sandbox, blocks)
        running.kill()
        running.wait()
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() <= SIZE + 3 * BLOCK_SIZE
    sandbox.assert_in_place(wanted)


def test_a_kill_while_a_copy_is_proven_leaves_no_final_name(sandbox: Sandbox) -> None:
    size = 512 * MIB  # sparse: half a second to read, no room on the disk
    sha256 = "9acca8e8c22201155389f65abbf6bc9723edc7384ead80503839f49dcc56d767"  # of so many zeros
    (wanted,) = sandbox.publish(tensors(MIB))
    entry = wanted.artifact() | {"size": size, "sha256": sha256}
    sandbox.write_manifest(artifacts=[entry])
    sandbox.files = ()  # the invariant would read the two gigabytes as well
    blob = sandbox.cache / "models--org--other" / "blobs" / sha256
    blob.parent.mkdir(parents=True)
    with blob.open("wb") as stream:
        stream.truncate(size)
    final = sandbox.tree / "models" / wanted.folder / wanted.name

    def waiting() -> bool:
        return any(final.parent.glob(f"{final.name}.*.placing.part"))

    running = sandbox.start("install")
    wait_until(waiting, what="the copy is being verified")
    running.kill()
    running.wait()
    assert waiting()
    assert not final.exists()
    done = sandbox.install("--json")
    assert (done.returncode, sandbox.hub.requests) == (0, ()), done.stderr
    assert final.stat().st_size == size
    assert not waiting()
    assert blob.stat().st_size == size


# --- SIGINT and SIGTERM ------------------------------------------------------------------------------


@posix_only
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("is_stalled", [False, True], ids=["while bytes arrive", "while the server stalls"])
def test_a_signal_ends_the_run_quickly_and_keeps_the_part(
    sandbox: Sandbox, number: signal.Signals, status: int, is_stalled: bool
) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.hub.rate_bytes_s_per_connection = None if is_stalled else RATE
    if is_stalled:
        sandbox.hub.fault(Stall(after=0.5, seconds=60), skip=1, times=None)
    running = sandbox.start("install", "--connections", "1", "--json")
    held_until(sandbox, 1)
    sent_at = time.monotonic()
    running.send(number)
    done = running.wait()
    assert time.monotonic() - sent_at < 20  # the stall takes a minute
    assert done.returncode == status
    assert (done.json["status"], done.json["exit_status"], done.codes) == ("interrupted", status, ["interrupted"])
    sandbox.assert_nothing_placed()
    held = sandbox.bytes_in_log()
    assert held >= BLOCK_SIZE
    sandbox.hub.clear_faults()
    sandbox.hub.rate_bytes_s_per_connection = None
    sandbox.hub.clear_requests()
    assert sandbox.install().returncode == 0
    assert sandbox.bytes_served() == SIZE - held
    sandbox.assert_in_place(wanted)


@posix_only
def test_an_impatient_person_who_presses_ctrl_c_twice_sees_no_trace(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    sandbox.hub.fault(Stall(after=0.5, seconds=60), skip=1, times=None)
    running = sandbox.start("install", "--connections", "1")
    held_until(sandbox, 1)
    sent_at = time.monotonic()
    running.send(signal.SIGINT)
    time.sleep(0.02)
    running.send(signal.SIGINT)
    assert running.wait().returncode in {130, -signal.SIGINT}  # the same to a shell: Python was ending by itself
    assert time.monotonic() - sent_at < 20
    assert sandbox.bytes_in_log() == BLOCK_SIZE


@posix_only
def test_a_signal_ends_a_wait_for_the_servers_patience(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    sandbox.hub.fault(Status(429, (("Retry-After", "60"),)), on="head", times=None)
    running = sandbox.start("install")
    wait_until(lambda: bool(sandbox.heads()), what="the Hub was asked")
    time.sleep(0.2)
    sent_at = time.monotonic()
    running.send(signal.SIGTERM)
    assert running.wait().returncode == 143
    assert time.monotonic() - sent_at < 20


@posix_only
def test_a_signal_ends_a_wait_for_the_lock(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    sandbox.hub.rate_bytes_s_per_connection = SLOW
    first = sandbox.start("install")
    wait_until(lambda: bool(sandbox.gets()), what="the first run fetches")
    second = sandbox.start("install", "--verbose")
    wait_until(lambda: "Waiting for another run" in second.stderr_so_far, what="the second run waits")
    second.send(signal.SIGINT)
    assert second.wait().returncode == 130
    sandbox.hub.rate_bytes_s_per_connection = None
    assert first.wait().returncode == 0
    sandbox.assert_in_place()


# --- what an earlier run left, and lies ----------------------------------------------------------------


def leave_a_part(sandbox: Sandbox, blocks: int = 1) -> None:
    """Let a run be killed when so many blocks are complete."""
    sandbox.hub.rate_bytes_s_per_connection = RATE
    running = sandbox.start("install", "--connections", "1")
    held_until(sandbox, blocks)
    sandbox.kill(running)


def flip_a_byte(part: Path, log: Path) -> None:
    with part.open("r+b") as stream:
        stream.seek(1_000_000)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def claim_every_block(part: Path, log: Path) -> None:
    head = log.read_text(encoding="utf-8").splitlines()[0]
    lines = [json.dumps({"block": index, "sha256": "0" * 64}) for index in range(4)]
    log.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("damage", [flip_a_byte, claim_every_block])
def test_notices_a_part_that_is_not_what_its_log_says_and_fetches_the_wrong_blocks_anew_once(
    sandbox: Sandbox, damage: Callable[[Path, Path], None]
) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    leave_a_part(sandbox)
    damage(sandbox.part(), sandbox.log())
    done = sandbox.install("--verbose")
    assert done.returncode == 0, done.stderr
    assert "was damaged; fetching its wrong blocks anew" in done.said
    assert sandbox.bytes_served() <= SIZE + MIB
    assert not sandbox.path().with_name(wanted.name + ".bad").exists()
    sandbox.assert_in_place(wanted)


def garble(log: Path) -> None:
    log.write_bytes(b"\xff\x00 not json\n" * 3)


def tear(log: Path) -> None:
    with log.open("ab") as stream:
        stream.write(b'{"block": 1, "sha2')


def name_other_content(log: Path) -> None:
    log.write_text(log.read_text(encoding="utf-8").replace('"size": ', '"size": 1'), encoding="utf-8")


def name_impossible_blocks(log: Path) -> None:
    head = log.read_text(encoding="utf-8").splitlines()[0]
    rows = ({"block": 99, "sha256": "0" * 64}, {"block": -1, "sha256": "0" * 64}, {"block": 0, "sha256": "short"})
    log.write_text("\n".join([head, *map(json.dumps, rows)]) + "\n", encoding="utf-8")


def empty(log: Path) -> None:
    log.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "kept"),
    [(garble, 0), (tear, 1), (name_other_content, 0), (name_impossible_blocks, 0), (empty, 0)],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_believes_of_a_damaged_log_only_what_is_whole(
    sandbox: Sandbox, damage: Callable[[Path], None], kept: int
) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    leave_a_part(sandbox)
    damage(sandbox.log())
    done = sandbox.install()
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() == SIZE - kept * BLOCK_SIZE
    sandbox.assert_in_place(wanted)


def test_a_part_of_another_program_is_moved_aside_and_not_overwritten(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(MIB))
    theirs = b"half a download of another program"
    sandbox.plant(sandbox.part(), theirs)
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place(wanted)
    aside = sandbox.backups()
    assert aside[f"vae/{wanted.name}.part"].read_bytes() == theirs
    why = json.loads(aside["why.jsonl"].read_text(encoding="utf-8"))
    assert why["was"] == f"vae/{wanted.name}.part"
    assert "not ours" in why["why"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_part_that_is_a_link_is_never_written_through(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(MIB))
    theirs = sandbox.plant(sandbox.folder / "theirs.bin", b"do not touch")
    sandbox.part().parent.mkdir(parents=True)
    sandbox.part().symlink_to(theirs)
    assert sandbox.install().returncode == 0
    assert theirs.read_bytes() == b"do not touch"
    sandbox.assert_in_place(wanted)


# --- two runs --------------------------------------------------------------------------------------


def test_two_installs_at_once_fetch_once(sandbox: Sandbox) -> None:
    files = sandbox.publish(*(Wanted(data=tensors(20 * MIB, seed), name=f"{seed}.safetensors") for seed in range(2)))
    sandbox.hub.rate_bytes_s_per_connection = SLOW
    first = sandbox.start("install")
    wait_until(lambda: bool(sandbox.gets()), what="the first run fetches")
    second = sandbox.start("install", "--verbose", "--json")
    wait_until(lambda: "Waiting for another run" in second.stderr_so_far, what="the second run waits")
    assert f"process {first.process.pid}" in second.stderr_so_far
    sandbox.hub.rate_bytes_s_per_connection = None
    ended = [first.wait(), second.wait()]
    assert [each.returncode for each in ended] == [0, 0], ended[1].stderr
    assert [step["kind"] for step in ended[1].json["steps"]] == []
    assert len(sandbox.heads()) == len(files)
    assert sandbox.bytes_served() == sum(len(each.data) for each in files)
    sandbox.assert_in_place(*files)


def test_the_second_of_two_runs_gives_up_at_once_with_no_wait(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    sandbox.hub.rate_bytes_s_per_connection = SLOW
    first = sandbox.start("install")
    wait_until(lambda: bool(sandbox.gets()), what="the first run fetches")
    second = sandbox.install("--no-wait", "--json")
    assert (second.returncode, second.codes) == (10, ["lock-held"])
    assert f"process {first.process.pid}" in second.json["errors"][0]["message"]
    sandbox.hub.rate_bytes_s_per_connection = None
    assert first.wait().returncode == 0
    sandbox.assert_in_place()


def test_the_lock_of_a_killed_run_holds_nobody_up(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    leave_a_part(sandbox, blocks=1)
    assert (sandbox.tree / "models" / STATE_FOLDER / "lock").exists()
    done = sandbox.install("--no-wait")
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place()


def test_second_install_fetches_nothing_and_touches_nothing(sandbox: Sandbox) -> None:
    sandbox.publish(*(Wanted(data=tensors(MIB, seed), name=f"{seed}.safetensors") for seed in range(3)))
    assert sandbox.install().returncode == 0
    before, asked = sandbox.snapshot(), len(sandbox.hub.requests)
    again = sandbox.install("--json")
    assert (again.returncode, again.json["steps"]) == (0, [])
    assert sandbox.snapshot() == before
    assert len(sandbox.hub.requests) == asked


def test_a_repository_is_asked_with_the_commit_and_never_with_a_branch(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    assert sandbox.install().returncode == 0
    assert {each.path.partition(f"/{REPOSITORY}/resolve/")[2].partition("/")[0] for each in sandbox.heads()} == {
        REVISION
    }
    assert {each.authorization for each in sandbox.heads()} == {f"Bearer {TOKEN}"}
    assert {each.accept_encoding for each in sandbox.hub.requests} == {"identity"}
