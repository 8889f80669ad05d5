"""Several files at once: who gets the connections, and what a failure, a signal or a kill leaves of each."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provisioner.core.models import BLOCK_SIZE, HubFile
from provisioner.files.download.transfer import Connections, RangeFetcher
from provisioner.files.store.part_file import PartFile
from provisioner.network.http_session import Credentials
from provisioner.rehearsal.faults import CutAfter, IgnoreRange, Status, WrongBytes
from provisioner.rehearsal.hub import RehearsalHub
from tests.support.builders import artifact
from tests.support.sandbox import (
    MIB,
    REPOSITORY,
    REVISION,
    TOKEN,
    Completed,
    Sandbox,
    Wanted,
    tensors,
    wait_until,
)

SIZE = 2 * BLOCK_SIZE + 3 * MIB  # two blocks and a short one: no more than three connections have something to do
RATE = 4 * MIB  # bytes per second and connection: a block takes four seconds

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that a process can catch")


def two(sandbox: Sandbox, size: int = SIZE) -> tuple[Wanted, Wanted]:
    """Publish two files; their sizes differ a little, so that neither is taken for a copy of the other."""
    first, second = sandbox.publish(
        *(Wanted(data=tensors(size + seed, seed), name=f"{seed}.safetensors") for seed in (0, 1000))
    )
    return first, second


def both_flow(sandbox: Sandbox, blocks: int = 0) -> None:
    """Wait until bytes of both files have come, and so many blocks of the first are complete."""
    wait_until(
        lambda: (
            all(sum(get.bytes_sent for get in sandbox.gets(each)) >= MIB for each in sandbox.files)
            and sandbox.blocks_in_log(sandbox.files[0]) >= blocks
        ),
        what=f"both files flow, and {blocks} blocks of the first are complete",
    )


def starts(sandbox: Sandbox, wanted: Wanted) -> list[float]:
    """Return when each request for a file's content came."""
    return sorted(each.at for each in sandbox.gets(wanted))


def most_at_once(sandbox: Sandbox, is_over: Callable[[], bool]) -> int:
    """Return how many requests for content were open at once, until something is over.

    One counts that is open in two looks in a row: the hub notes an end a moment after the client has read it.
    """
    most, before = 0, set[int]()
    while not is_over():
        now = {number for number, each in enumerate(sandbox.gets()) if not each.is_finished}
        most, before = max(most, len(now & before)), now
        time.sleep(0.01)
    return most


# --- who gets the connections --------------------------------------------------------------------------


def test_where_each_connection_is_slow_the_next_file_gets_those_that_the_first_has_no_use_for(
    sandbox: Sandbox,
) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = RATE
    running = sandbox.start("install", "--connections", "6")
    both_flow(sandbox)
    assert not any(sandbox.path(each).exists() for each in files), "they flow at once"
    assert running.wait().returncode == 0
    sandbox.assert_in_place(*files)


def test_on_one_slow_wire_files_finish_one_after_the_other(sandbox: Sandbox) -> None:
    first, second = two(sandbox, 4 * BLOCK_SIZE)
    sandbox.hub.rate_bytes_s = 24 * MIB
    running = sandbox.start("install")
    wait_until(lambda: sandbox.path(first).exists(), what="the first file is in place")
    assert sandbox.blocks_in_log(second) <= 1, "it did not take the wire from the first"
    assert running.wait().returncode == 0
    last_of_first = starts(sandbox, first)[-1]
    assert starts(sandbox, second)[0] > last_of_first, "it begins when nobody has to ask for a block of the first"
    sandbox.assert_in_place(first, second)


def test_the_connections_of_all_files_together_are_no_more_than_was_said(sandbox: Sandbox) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = RATE
    running = sandbox.start("install", "--connections", "4")
    most = most_at_once(sandbox, lambda: running.process.poll() is not None)
    assert running.wait().returncode == 0
    assert most == 4
    sandbox.assert_in_place(*files)


def test_fetchers_of_one_run_share_its_connections(sandbox: Sandbox, tmp_path: Path) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = 2 * RATE
    connections = Connections(3)

    def fetch(wanted: Wanted) -> str:
        source = HubFile(repo_id=REPOSITORY, revision=REVISION, filename=wanted.filename)
        fetcher = RangeFetcher(credentials=Credentials(TOKEN, sandbox.hub.endpoint), connections=connections)
        with PartFile(tmp_path / wanted.name, size=len(wanted.data), sha256=wanted.sha256) as part:
            fetcher.fetch(source, artifact(wanted.data, sources=(source,)), part, progress=lambda _: None)
            return part.seal().sha256

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(fetch, wanted) for wanted in files]
        most = most_at_once(sandbox, lambda: all(job.done() for job in jobs))
    assert [job.result() for job in jobs] == [wanted.sha256 for wanted in files]
    assert most == 3


def test_a_limit_of_the_rate_holds_for_all_files_together(sandbox: Sandbox) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = RATE
    began = time.monotonic()
    done = sandbox.install("--limit-rate", "20M", "--connections", "6")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began > 2 * SIZE / 20e6
    sandbox.assert_in_place(*files)


# --- servers that do not want it -----------------------------------------------------------------------


def test_servers_that_ignore_ranges_get_one_connection_at_a_time(sandbox: Sandbox) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = 4 * RATE
    sandbox.hub.fault(IgnoreRange(), times=None)
    running = sandbox.start("install")
    wait_until(lambda: any(sandbox.blocks_in_log(each) for each in files), what="it knows that ranges are ignored")
    most = most_at_once(sandbox, lambda: running.process.poll() is not None)
    assert running.wait().returncode == 0
    assert most <= 2  # one file ends while the next one begins
    sandbox.assert_in_place(*files)


def test_a_server_that_ignores_ranges_takes_no_connection_from_another(sandbox: Sandbox, tmp_path: Path) -> None:
    first, second = two(sandbox)
    with RehearsalHub(tokens=[TOKEN]) as other:
        other.add_repository(REPOSITORY, REVISION, {first.filename: first.data}, digests={first.filename: first.sha256})
        other.fault(IgnoreRange(), times=None)
        other.rate_bytes_s_per_connection = sandbox.hub.rate_bytes_s_per_connection = RATE
        connections, most = Connections(6), 0

        def fetch(wanted: Wanted, hub: RehearsalHub) -> str:
            source = HubFile(repo_id=REPOSITORY, revision=REVISION, filename=wanted.filename)
            fetcher = RangeFetcher(credentials=Credentials(TOKEN, hub.endpoint), connections=connections)
            with PartFile(tmp_path / wanted.name, size=len(wanted.data), sha256=wanted.sha256) as part:
                fetcher.fetch(source, artifact(wanted.data, sources=(source,)), part, progress=lambda _: None)
                return part.seal().sha256

        with ThreadPoolExecutor(2) as pool:
            stream = pool.submit(fetch, first, other)
            wait_until(lambda: any(each.method == "GET" for each in other.requests), what="ranges are ignored")
            ranged = pool.submit(fetch, second, sandbox.hub)
            while not ranged.done():
                most = max(most, sum(not each.is_finished for each in sandbox.gets()))
                time.sleep(0.01)
        assert [stream.result(), ranged.result()] == [first.sha256, second.sha256]
    assert most >= 2


def test_a_server_that_asks_for_patience_is_asked_by_fewer_for_all_files(sandbox: Sandbox) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = RATE
    sandbox.hub.fault(Status(429, (("Retry-After", "0"),)), skip=2, times=3)
    done = sandbox.install("--connections", "6")
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() == 2 * SIZE + 1000
    sandbox.assert_in_place(*files)


# --- failures ------------------------------------------------------------------------------------------


def outcomes(done: Completed) -> list[str]:
    return [step["outcome"]["status"] for step in done.json["steps"]]


def test_a_wrong_copy_blocks_only_its_file(sandbox: Sandbox) -> None:
    first, second = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = RATE
    sandbox.hub.fault(WrongBytes(), filename=first.filename, times=None)
    done = sandbox.install("--json", "--connections", "6")
    assert (done.returncode, outcomes(done)) == (7, ["failed", "done"])
    assert not sandbox.path(first).exists()
    sandbox.assert_in_place(second)


def test_a_network_that_fails_for_one_pauses_the_other_and_is_said_once(sandbox: Sandbox) -> None:
    first, second = two(sandbox, 8 * BLOCK_SIZE + MIB)  # the second begins when blocks of the first are complete
    sandbox.hub.rate_bytes_s_per_connection = RATE
    sandbox.hub.fault(Status(429, (("Retry-After", "9999"),)), filename=second.filename, times=None)
    done = sandbox.install("--json", "--connections", "8")
    assert (done.returncode, outcomes(done)) == (5, ["skipped", "failed"]), done.stderr
    assert len(done.codes) == 1
    assert 0 < sandbox.bytes_in_log(first) < len(first.data)
    held = sandbox.bytes_in_log(first)
    sandbox.hub.clear_faults()
    sandbox.hub.rate_bytes_s_per_connection = None
    sandbox.hub.clear_requests()
    assert sandbox.install().returncode == 0
    assert sandbox.bytes_served() == len(first.data) - held + len(second.data)
    sandbox.assert_in_place(first, second)


def test_connections_that_break_in_both_files_cost_no_file(sandbox: Sandbox) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = 2 * RATE
    for wanted in files:
        sandbox.hub.fault(CutAfter(5 * MIB), filename=wanted.filename, times=2)
    done = sandbox.install("--connections", "6")
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() == 2 * SIZE + 1000
    sandbox.assert_in_place(*files)


def test_a_disk_that_fills_up_between_two_files_is_said_once_and_both_parts_are_kept(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of some megabytes cannot be mounted here")
    try:
        sandbox.tree = disk / "ComfyUI"
        first, second = two(sandbox)
        sandbox.hub.rate_bytes_s_per_connection = RATE
        running = sandbox.start("install", "--connections", "6", "--json")
        wait_until(
            lambda: sandbox.part(first).exists() and sandbox.part(first).stat().st_blocks * 512 >= SIZE,
            what="the first file has its room",
        )
        filler = disk / "somebody else's.bin"
        with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(MIB))
        os.truncate(filler, filler.stat().st_size - 2 * MIB)  # the second begins, and then there is no room
        done = running.wait()
        assert (done.returncode, done.codes) == (4, ["insufficient-space"]), done.stderr
        assert outcomes(done) == ["skipped", "failed"]
        assert sandbox.part(first).exists()
        assert sandbox.part(second).exists()
        filler.unlink()
        held = sum(map(sandbox.bytes_in_log, (first, second)))
        sandbox.hub.rate_bytes_s_per_connection = None
        sandbox.hub.clear_requests()
        assert sandbox.install().returncode == 0
        assert sandbox.bytes_served() == 2 * SIZE + 1000 - held
        sandbox.assert_in_place(first, second)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --- signals and kills ---------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_kill_while_two_files_flow_costs_the_blocks_on_their_way(sandbox: Sandbox, blocks: int) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = RATE
    running = sandbox.start("install", "--connections", "6")
    both_flow(sandbox, blocks)
    running.kill()
    running.wait()
    held = sum(sandbox.bytes_in_log(each) for each in files if not sandbox.path(each).exists())
    held += sum(len(each.data) for each in files if sandbox.path(each).exists())
    sandbox.hub.rate_bytes_s_per_connection = None
    sandbox.hub.wait_until_idle()
    sandbox.hub.clear_requests()
    done = sandbox.install("--json")
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() == 2 * SIZE + 1000 - held
    sandbox.assert_in_place(*files)


@posix_only
def test_a_signal_while_two_files_flow_ends_the_run_quickly_and_keeps_both(sandbox: Sandbox) -> None:
    files = two(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = RATE
    running = sandbox.start("install", "--connections", "6", "--json")
    both_flow(sandbox)
    sandbox.hub.rate_bytes_s_per_connection = MIB // 10  # what is left would take a minute and more
    running.send(signal.SIGINT)
    done = running.wait(timeout=30)
    assert (done.returncode, done.codes) == (130, ["interrupted"])
    assert all(sandbox.part(each).exists() for each in files)
    held = [sandbox.bytes_in_log(each) for each in files]
    sandbox.hub.rate_bytes_s_per_connection = None
    sandbox.hub.clear_requests()
    assert sandbox.install().returncode == 0
    assert sandbox.bytes_served() == 2 * SIZE + 1000 - sum(held)
    sandbox.assert_in_place(*files)


# --- repairs -------------------------------------------------------------------------------------------


def test_two_damaged_files_are_repaired_at_once(sandbox: Sandbox) -> None:
    files = two(sandbox)
    assert sandbox.install().returncode == 0
    for wanted in files:
        with sandbox.path(wanted).open("r+b") as stream:
            stream.seek(BLOCK_SIZE + 1000)
            byte = stream.read(1)[0]
            stream.seek(BLOCK_SIZE + 1000)
            stream.write(bytes([byte ^ 1]))
    sandbox.hub.clear_requests()
    sandbox.hub.rate_bytes_s_per_connection = RATE
    done = sandbox.run("repair", "--json=events", "--connections", "6")
    assert done.returncode == 0, done.stderr
    told = [line["event"] for line in done.lines if line["event"].startswith("step-")]
    assert told == ["step-started", "step-started", "step-finished", "step-finished"]
    assert sandbox.bytes_served() == 2 * BLOCK_SIZE
    sandbox.assert_in_place(*files)
