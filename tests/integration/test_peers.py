"""Hosts that take files from each other, with the real command in real processes on loopback."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from provisioner.core.models import BLOCK_SIZE
from provisioner.files import peers
from tests.support.comfy_server import free_port
from tests.support.sandbox import MIB, Completed, Running, Sandbox, Wanted, sha256_of, tensors, wait_until

libtorrent = pytest.importorskip("libtorrent")

SIZE = BLOCK_SIZE + 3 * MIB + 5


@pytest.fixture
def wanted(sandbox: Sandbox) -> Wanted:
    wanted, _ = sandbox.publish(
        Wanted(data=tensors(SIZE)), Wanted(data=tensors(3 * MIB, seed=3), name="second.safetensors")
    )
    return wanted


class Seeder:
    """A host whose files were fetched and verified, and who seeds them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.torrent = sandbox, sandbox.folder / "set.torrent"
        done = sandbox.install("--only", "files")
        assert done.returncode == 0, done.said
        self.address = f"127.0.0.1:{free_port()}"
        self.running = self.start()
        sandbox.hub.wait_until_idle()
        sandbox.hub.clear_requests()

    def stop(self) -> Completed:
        self.running.send(signal.SIGINT)
        ended = self.running.wait()
        assert ended.returncode == 0, ended.said
        return ended

    def start(self, *more: str) -> Running:
        words = ("--manifest", self.sandbox.manifest, "--comfyui", self.sandbox.tree)
        running = self.sandbox.start("seed", *words, "--listen", self.address, "--torrent", self.torrent, *more)
        wait_until(lambda: self.answers() or running.process.poll() is not None, what="the seed")
        assert running.process.poll() is None, running.stderr_so_far
        return running

    def answers(self) -> bool:
        host, _, port = self.address.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return True
        return False

    def options(self, name: str = "there") -> tuple[str | Path, ...]:
        there = ("--comfyui", self.sandbox.folder / name, "--manifest", self.sandbox.manifest, "--only", "files")
        return (*there, "--yes", "--torrent", self.torrent, "--peer", self.address, "--stall-timeout", "3", *self.hub)

    @property
    def hub(self) -> tuple[str, ...]:
        return ("--endpoint", self.sandbox.hub.endpoint, "--send-token")

    def take(self, *words: str | Path, name: str = "there", command: str = "install") -> Completed:
        return self.sandbox.run(command, *self.options(name), *words)


@pytest.fixture
def seeder(sandbox: Sandbox, wanted: Wanted) -> Seeder:
    return Seeder(sandbox)


def staging(sandbox: Sandbox) -> list[str]:
    folder = sandbox.home / "cache" / "klein-setup" / "peers"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def right_files(sandbox: Sandbox, name: str) -> bool:
    return all(
        sha256_of(sandbox.folder / name / "models" / each.folder / each.name) == each.sha256 for each in sandbox.files
    )


def test_a_second_host_takes_all_from_the_first_and_nothing_from_the_hub(sandbox: Sandbox, seeder: Seeder) -> None:
    done = seeder.take("--json")
    assert done.returncode == 0, done.said
    assert right_files(sandbox, "there")
    assert sandbox.bytes_served() == 0
    assert staging(sandbox) == []
    assert {step["kind"] for step in done.json["steps"]} == {"place-file"}
    assert seeder.take().returncode == 0  # nothing left to do
    assert "Seeding has ended" in seeder.stop().said


def test_a_host_that_takes_sends_to_the_next_one(sandbox: Sandbox, seeder: Seeder, wanted: Wanted) -> None:
    address = f"127.0.0.1:{free_port()}"
    first = sandbox.start("install", *seeder.options("first"), "--listen", address, "--limit-rate", "4M")
    words = [each if each != seeder.address else address for each in seeder.options("second")]
    home = {f"XDG_{each}_HOME": str(sandbox.folder / "other" / each) for each in ("CACHE", "STATE")}
    second = sandbox.start("install", *words, "--stall-timeout", "8", env=home)
    taken, ended = second.wait(), first.wait()
    assert (ended.returncode, taken.returncode) == (0, 0)
    of_first = re.findall(r"([0-9.]+) MB of [0-9.]+ MB from peers", taken.said)
    assert float(of_first[-1]) > SIZE / 2e6  # perhaps not the last piece: the first one ends when it has all
    assert right_files(sandbox, "first")
    assert right_files(sandbox, "second")


def test_a_run_that_was_interrupted_goes_on_with_what_it_has(sandbox: Sandbox, seeder: Seeder, wanted: Wanted) -> None:
    if sys.platform == "win32":
        pytest.skip("a signal ends it at once there")
    seeder.stop()
    seeder.running = seeder.start("--limit-rate", "4M")
    first = sandbox.start("install", *seeder.options("first"))
    folder = sandbox.home / "cache" / "klein-setup" / "peers"

    def has_half() -> bool:
        parts = [*folder.rglob("*.part")]
        return sum(path.stat().st_blocks * 512 for path in parts) > SIZE // 2 or first.process.poll() is not None

    wait_until(has_half, what="half of it")
    first.send(signal.SIGTERM)
    assert first.wait().returncode == 143
    done = seeder.take(name="first")
    assert done.returncode == 0, done.said
    assert right_files(sandbox, "first")
    assert sandbox.bytes_served() == 0
    total = sum(len(each.data) for each in sandbox.files)
    sent = re.search(r"ended: ([0-9.]+) MB sent", seeder.stop().said)
    assert sent is not None
    assert total / 1e6 <= float(sent[1]) < 1.4 * total / 1e6


def test_the_torrent_is_the_same_for_the_same_files_and_names_nobody(sandbox: Sandbox, seeder: Seeder) -> None:
    before = seeder.torrent.read_bytes()
    seeder.stop()
    seeder.start()
    assert seeder.torrent.read_bytes() == before
    document = libtorrent.bdecode(before)
    assert set(document) == {b"info", b"piece layers"}
    assert document[b"info"][b"name"] == b"klein-setup"
    assert {name.decode() for name in document[b"info"][b"file tree"]} == {each.sha256 for each in sandbox.files}


def test_nobody_at_the_peers_address_is_said_and_the_hub_has_the_files(sandbox: Sandbox, seeder: Seeder) -> None:
    seeder.running.kill()
    seeder.running.process.wait()
    done = seeder.take()
    assert done.returncode == 0, done.said
    assert "did not come from the peers" in done.said
    assert done.seconds < 30
    assert right_files(sandbox, "there")
    assert sandbox.bytes_served() == sum(len(each.data) for each in sandbox.files)
    assert staging(sandbox) == []


def test_a_file_that_changes_under_its_seed_is_neither_passed_on_nor_overwritten(
    sandbox: Sandbox, seeder: Seeder, wanted: Wanted
) -> None:
    path = sandbox.path(wanted)
    changed = bytearray(wanted.data)
    changed[BLOCK_SIZE + 7] ^= 1
    sandbox.plant(path, bytes(changed))
    done = seeder.take()
    assert done.returncode == 0, done.said
    assert right_files(sandbox, "there")
    assert sandbox.bytes_served(wanted) == len(wanted.data)  # from the Hub
    assert path.read_bytes() == bytes(changed)
    assert seeder.running.process.poll() is None


def test_wrong_bytes_that_fit_their_torrent_get_no_name(sandbox: Sandbox, wanted: Wanted) -> None:
    """The torrent itself lies: under the right SHA-256 and size it has the hashes of other bytes."""
    forged = bytearray(wanted.data)
    forged[BLOCK_SIZE + 99] ^= 1
    (sandbox.folder / "forged").write_bytes(bytes(forged))
    torrent, address = sandbox.folder / "set.torrent", f"127.0.0.1:{free_port()}"
    is_over, sent = threading.Event(), [0]
    with peers.linked_by_digest({wanted.sha256: sandbox.folder / "forged"}) as folder:
        data = peers.make_torrent(folder, {wanted.sha256: SIZE}, lambda done, of: None)
        torrent.write_bytes(data)
        seeding = threading.Thread(
            target=peers.seed,
            args=(data, folder, address),
            kwargs={
                "up_bytes_s": None,
                "is_over": is_over.is_set,
                "ready": lambda: None,
                "tell": lambda now: sent.__setitem__(0, now.sent),
            },
        )
        seeding.start()
        try:
            done = sandbox.install("--only", "files", "--yes", "--torrent", torrent, "--peer", address)
            wait_until(lambda: sent[0] >= SIZE, what="that the forged bytes were taken")
        finally:
            is_over.set()
            seeding.join()
    assert done.returncode == 0, done.said
    assert sha256_of(sandbox.path(wanted)) == wanted.sha256
    assert sandbox.bytes_served(wanted) == SIZE
    assert staging(sandbox) == []


def test_the_torrent_of_another_set_is_said_and_the_hub_has_the_files(sandbox: Sandbox, seeder: Seeder) -> None:
    for each in sandbox.files:
        sandbox.expect(sandbox.path(each), each.data)
    (other,) = sandbox.publish(tensors(2 * MIB, seed=9))
    done = seeder.take()
    assert done.returncode == 0, done.said
    assert "has no file of the set" in done.said
    assert sandbox.bytes_served() == len(other.data)


@pytest.mark.parametrize("kind", ["huge", "malformed", "missing", "version 1", "negative"])
def test_a_torrent_that_is_none_stops_the_run_before_anything_is_changed(
    sandbox: Sandbox, wanted: Wanted, kind: str
) -> None:
    torrent = sandbox.folder / "bad.torrent"
    info = {
        "version 1": b"d6:lengthi5e4:name1:x12:piece lengthi16384e6:pieces20:" + bytes(20) + b"e",
        "negative": b"d9:file treed1:ad0:d6:lengthi-5e11:pieces root32:" + bytes(32)
        + b"eee12:meta versioni2e4:name1:a12:piece lengthi16384ee",
    }  # fmt: skip
    contents = {"huge": bytes(5 * MIB), "malformed": b"d4:infod"}
    contents |= {name: b"d4:info" + each + b"e" for name, each in info.items()}
    if kind != "missing":
        torrent.write_bytes(contents[kind])
    words = ("--torrent", torrent, "--peer", "127.0.0.1:9", "--only", "files")
    done = sandbox.install(*words)
    assert done.returncode == 2, done.said
    assert str(torrent) in done.stderr
    assert "seed --torrent FILE" in done.said
    assert not (sandbox.tree / "models").exists()


def test_names_in_a_torrent_are_no_paths(sandbox: Sandbox, wanted: Wanted, seeder: Seeder) -> None:
    document = libtorrent.bdecode(seeder.torrent.read_bytes())
    tree = document[b"info"][b"file tree"]
    tree[b"../../../../escaped"] = tree[wanted.sha256.encode()]
    document[b"info"][b"name"] = b"../../elsewhere"
    seeder.torrent.write_bytes(libtorrent.bencode(document))
    done = seeder.take()
    assert done.returncode in {0, 2}, done.said
    assert not list(sandbox.folder.parent.rglob("*escaped*"))
    assert not list(sandbox.folder.parent.rglob("*elsewhere*"))


def test_a_set_that_is_not_right_is_not_seeded(sandbox: Sandbox, wanted: Wanted) -> None:
    assert sandbox.install("--only", "files").returncode == 0
    path = sandbox.path(wanted)
    damaged = bytearray(wanted.data)
    damaged[9000] ^= 1
    sandbox.plant(path, bytes(damaged))
    torrent = sandbox.folder / "set.torrent"
    words = ("--manifest", sandbox.manifest, "--comfyui", sandbox.tree, "--torrent", torrent)
    done = sandbox.run("seed", *words, "--listen", f"127.0.0.1:{free_port()}")
    assert done.returncode == 1, done.said
    assert "Nothing is seeded" in done.said
    assert not torrent.exists()


def test_a_port_that_is_taken_and_an_address_of_somebody_else_are_usage_errors(
    sandbox: Sandbox, seeder: Seeder
) -> None:
    words = ("--manifest", sandbox.manifest, "--comfyui", sandbox.tree)
    for address in (seeder.address, "192.0.2.1:6881", "lab-1:6881", "127.0.0.1"):
        done = sandbox.run("seed", *words, "--listen", address)
        assert done.returncode == 2, done.said
        assert address in done.stderr


def test_without_the_extra_the_error_says_how_to_get_it(sandbox: Sandbox, wanted: Wanted) -> None:
    blocked = sandbox.folder / "blocked"
    blocked.mkdir()
    (blocked / "libtorrent.py").write_text("raise ImportError('not here')\n")
    path = f"{blocked}:{sandbox.environ['PYTHONPATH']}" if sys.platform != "win32" else str(blocked)
    done = sandbox.run(
        *("install", "--only", "files", "--yes", "--manifest", sandbox.manifest, "--comfyui", sandbox.tree),
        *("--torrent", sandbox.folder / "x", "--peer", "lab-1:6881"),
        env={"PYTHONPATH": path},
    )
    assert done.returncode == 2
    assert "pip install 'klein-setup[torrent]'" in done.said
    assert not (sandbox.tree / "models").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--peer", "lab-1:6881"), "--torrent"),
        (("--torrent", "x"), "--peer"),
        (("--listen", "127.0.0.1:6881"), "--peer"),
        (("--peer", "lab-1", "--torrent", "x"), "HOST:PORT"),
        (("--peer", "lab-1:0", "--torrent", "x"), "port"),
        (("--peer", "lab-1:6881", "--torrent", "x", "--offline"), "--offline"),
    ],
)
def test_options_that_do_not_go_together(sandbox: Sandbox, wanted: Wanted, words: tuple[str, ...], said: str) -> None:
    done = sandbox.install("--only", "files", *words)
    assert done.returncode == 2
    assert re.search(said, done.said)
