"""Disks that are full or closed, links that lead away, files in the way, and the same bytes lying elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner.rehearsal.faults import WrongBytes
from tests.support.disks import Mount, fill_the_disk
from tests.support.sandbox import MIB, REPOSITORY, REVISION, Sandbox, Wanted, sha256_of, tensors, wait_until

LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
SIZE = 2 * MIB
LARGE = 37 * MIB


# --- the disk --------------------------------------------------------------------------------------


def test_full_disk_is_refused_before_the_first_byte(sandbox: Sandbox, mount: Mount) -> None:
    disk = mount("size=100m")
    sandbox.tree = disk / "ComfyUI"
    sandbox.publish(*(Wanted(data=tensors(LARGE, seed), name=f"{seed}.safetensors") for seed in range(2)))
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (4, ["insufficient-space"])
    assert sandbox.hub.requests == ()
    error = done.json["errors"][0]
    assert str(disk) in error["message"]
    assert "nothing was fetched" in error["message"]
    assert f"{2 * LARGE + 32 * MIB:,} bytes needed" in error["message"]
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_is_named_and_the_fetch_continues_when_there_is_room(
    sandbox: Sandbox, mount: Mount
) -> None:
    disk = mount("size=120m")
    sandbox.tree = disk / "ComfyUI"
    first, second = (Wanted(data=tensors(LARGE, seed), name=f"{seed}.safetensors") for seed in range(2))
    sandbox.publish(first, second)
    sandbox.hub.rate_bytes_s_per_connection = 30 * MIB
    running = sandbox.start("install", "--connections", "1", "--json")
    wait_until(lambda: sandbox.blocks_in_log(first) >= 1, what="a block is complete")
    filler = disk / "somebody else's.bin"
    fill_the_disk(filler)  # all but what the file on its way took before its first byte
    done = running.wait()
    assert (done.returncode, done.codes) == (4, ["insufficient-space"]), done.stderr
    assert "The disk is full" in done.said
    sandbox.assert_in_place(first)
    assert not sandbox.path(second).exists()
    filler.unlink()
    sandbox.hub.rate_bytes_s_per_connection = None
    before = sandbox.bytes_served()
    again = sandbox.install()
    assert again.returncode == 0, again.stderr
    assert sandbox.bytes_served() - before == LARGE
    sandbox.assert_in_place(second)


@pytest.mark.parametrize("is_killed", [False, True], ids=["ctrl-c", "kill"])
def test_an_interrupted_download_goes_on_where_it_fits(sandbox: Sandbox, mount: Mount, is_killed: bool) -> None:
    """The part has taken the room for all of itself; what it holds is not needed once more."""
    sandbox.tree = mount("size=100m") / "ComfyUI"
    (wanted,) = sandbox.publish(tensors(LARGE))
    (sandbox.tree.parent / "somebody else's.bin").write_bytes(bytes(20 * MIB))
    sandbox.hub.rate_bytes_s_per_connection = 20 * MIB
    running = sandbox.start("install", "--connections", "1")
    wait_until(lambda: sandbox.blocks_in_log(wanted) >= 1, what="a block is complete")
    if is_killed:
        running.kill()
    else:
        running.send(signal.SIGINT)
    running.wait()
    sandbox.hub.rate_bytes_s_per_connection = None
    again = sandbox.install("--json")
    assert again.returncode == 0, again.stderr
    sandbox.assert_in_place(wanted)


def test_an_unwritable_folder_is_named_and_nothing_is_asked(sandbox: Sandbox, mount: Mount) -> None:
    disk = mount("size=100m,mode=755")
    (disk / "ComfyUI" / "models" / "vae").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    sandbox.tree = disk / "ComfyUI"
    sandbox.publish(tensors(SIZE))
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (4, ["not-writable"])
    assert str(disk) in done.json["errors"][0]["message"]
    assert "Read-only file system" in done.said
    assert sandbox.gets() == []


def test_a_copy_from_another_file_system_is_a_copy(sandbox: Sandbox, mount: Mount) -> None:
    disk = mount("size=100m")
    (wanted,) = sandbox.publish(tensors(LARGE))
    sandbox.plant(disk / "their models" / "vae-of-mine.safetensors", wanted.data)
    done = sandbox.install("--look-in", disk, "--json")
    assert done.returncode == 0, done.stderr
    assert [step["outcome"]["detail"].split(" ")[0] for step in done.json["steps"]] == ["copied"]
    assert sandbox.hub.requests == ()
    sandbox.assert_in_place(wanted)


def test_a_folder_that_is_a_file_is_named(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    (sandbox.tree / "models" / "loras").mkdir(parents=True)
    sandbox.plant(sandbox.tree / "models" / "vae", b"somebody's file")
    done = sandbox.install("--json")
    assert done.returncode == 4
    assert "is a file where a folder is needed" in done.said
    assert (sandbox.tree / "models" / "vae").read_bytes() == b"somebody's file"
    assert sandbox.gets() == []


# --- links -----------------------------------------------------------------------------------------


@pytest.fixture
def outside(sandbox: Sandbox) -> Path:
    """Return a folder outside the tree that the tree's ``vae`` leads to."""
    outside = sandbox.folder / "outside"
    outside.mkdir()
    (sandbox.tree / "models" / "loras").mkdir(parents=True)
    try:
        (sandbox.tree / "models" / "vae").symlink_to(outside, target_is_directory=True)
    except OSError as error:  # Windows without developer mode
        pytest.skip(f"this machine makes no links: {error}")
    return outside


def test_path_cannot_leave_the_root(sandbox: Sandbox, outside: Path) -> None:
    sandbox.publish(tensors(SIZE))
    done = sandbox.install("--json")
    assert (done.returncode, done.codes) == (4, ["path-outside-root"])
    error = done.json["errors"][0]
    assert f"leads to {outside}, outside of" in error["message"]
    assert "--follow-links" in error["hint"]
    assert list(outside.iterdir()) == []
    assert sandbox.hub.requests == ()


def test_a_link_that_leaves_the_root_is_followed_when_the_user_says_so(sandbox: Sandbox, outside: Path) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    done = sandbox.install("--follow-links")
    assert done.returncode == 0, done.stderr
    assert sha256_of(outside / wanted.name) == wanted.sha256
    assert (sandbox.tree / "models" / "vae").is_symlink()


@LINKS
def test_a_link_in_the_place_of_the_file_is_set_aside_and_its_target_left_alone(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    theirs = sandbox.plant(sandbox.folder / "theirs.safetensors", tensors(SIZE, seed=1))
    sandbox.path().parent.mkdir(parents=True)
    sandbox.path().symlink_to(theirs)
    before = theirs.stat()
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place(wanted)
    assert not sandbox.path().is_symlink()
    assert (theirs.stat().st_mtime_ns, sha256_of(theirs)) == (before.st_mtime_ns, sha256_of(tensors(SIZE, seed=1)))
    assert sandbox.backups()[f"vae/{wanted.name}"].is_symlink()


@LINKS
def test_a_link_to_nothing_in_the_place_of_the_file_is_set_aside(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.path().parent.mkdir(parents=True)
    sandbox.path().symlink_to(sandbox.folder / "gone")
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place(wanted)
    assert sandbox.backups()[f"vae/{wanted.name}"].is_symlink()
    assert not (sandbox.folder / "gone").exists()


@LINKS
def test_a_link_to_the_right_bytes_is_right(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    theirs = sandbox.plant(sandbox.folder / "theirs.safetensors", wanted.data)
    sandbox.path().parent.mkdir(parents=True)
    sandbox.path().symlink_to(theirs)
    assert sandbox.install().returncode == 0
    assert sandbox.path().is_symlink()
    assert sandbox.hub.requests == ()


# --- what is in the way ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (b"notes about a model", "19 bytes instead of"),
        (b"", "0 bytes instead of"),
        (tensors(SIZE, seed=1), "other bytes of the right size"),
        (tensors(SIZE)[: SIZE // 2], "instead of"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "instead of"),
    ],
    ids=["a text", "an empty file", "another file of the right size", "half of the file", "a web page"],
)
def test_unknown_file_in_the_way_is_set_aside_not_overwritten(sandbox: Sandbox, theirs: bytes, why: str) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.plant(sandbox.path(), theirs)
    done = sandbox.install("--json")
    assert done.returncode == 0, done.stderr
    assert [step["kind"] for step in done.json["steps"]] == ["fetch-file"]
    sandbox.assert_in_place(wanted)
    aside = sandbox.backups()
    assert aside[f"vae/{wanted.name}"].read_bytes() == theirs
    line = json.loads(aside["why.jsonl"].read_text(encoding="utf-8"))
    assert line["was"] == f"vae/{wanted.name}"
    assert why in line["why"]


def test_a_folder_in_the_way_is_set_aside_with_what_is_in_it(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.plant(sandbox.path() / "inside.txt", b"somebody's")
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place(wanted)
    assert sandbox.backups()[f"vae/{wanted.name}/inside.txt"].read_bytes() == b"somebody's"


def test_a_file_in_the_way_stays_where_it_is_until_its_successor_is_verified(sandbox: Sandbox) -> None:
    theirs = tensors(SIZE, seed=1)
    sandbox.publish(tensors(SIZE))
    sandbox.plant(sandbox.path(), theirs)
    before = sandbox.path().stat()
    sandbox.hub.fault(WrongBytes(count=1))
    ended = [sandbox.install("--offline").returncode, sandbox.install().returncode]
    assert ended == [5, 7]
    after = sandbox.path().stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sandbox.path().read_bytes() == theirs
    assert sandbox.backups() == {}
    assert sandbox.install().returncode == 0
    sandbox.assert_in_place()
    assert sandbox.backups()["vae/small.safetensors"].read_bytes() == theirs


def test_right_bytes_that_are_there_are_adopted_without_a_request(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.plant(sandbox.path(), wanted.data)
    inode = sandbox.path().stat().st_ino
    done = sandbox.install("--json")
    assert done.returncode == 0, done.stderr
    assert [step["kind"] for step in done.json["steps"]] == ["record-receipt"]
    assert sandbox.path().stat().st_ino == inode
    assert sandbox.hub.requests == ()
    sandbox.assert_in_place(wanted)


# --- the same bytes elsewhere ------------------------------------------------------------------------


def cached(sandbox: Sandbox, data: bytes, wanted: Wanted, *, is_shared: bool) -> Path:
    """Put bytes into the user's HF cache under the name of `wanted`; return the file that holds them.

    The layouts are those of huggingface_hub 2.4.0: snapshot to blob, or two links deep into the shared store of Xet
    files, whose payload is read-only.
    """
    repository = sandbox.cache / f"models--{REPOSITORY.replace('/', '--')}"
    blob = repository / "blobs" / wanted.sha256
    snapshot = repository / "snapshots" / REVISION / wanted.filename
    for folder in (blob.parent, snapshot.parent):
        folder.mkdir(parents=True)
    payload = blob
    if is_shared:
        payload = sandbox.cache / "blobs" / "ab" / ("ab" + "0" * 62)
        payload.parent.mkdir(parents=True)
        blob.symlink_to(os.path.relpath(payload, blob.parent))
    payload.write_bytes(data)
    payload.chmod(0o444)
    snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
    return payload


@pytest.mark.skipif(sys.platform == "win32", reason="an HF cache on Windows may have no links")
@pytest.mark.parametrize("is_shared", [False, True], ids=["snapshot and blob", "the shared store"])
def test_takes_a_file_from_the_hf_cache_without_a_request(sandbox: Sandbox, is_shared: bool) -> None:
    (wanted,) = sandbox.publish(tensors(LARGE))
    payload = cached(sandbox, wanted.data, wanted, is_shared=is_shared)
    done = sandbox.install("--json")
    assert done.returncode == 0, done.stderr
    assert sandbox.hub.requests == ()
    (step,) = done.json["steps"]
    assert step["kind"] == "place-file"
    assert not sandbox.path().is_symlink()
    sandbox.assert_in_place(wanted)
    assert sha256_of(payload) == wanted.sha256
    if step["outcome"]["detail"].startswith("hard-linked"):
        assert sandbox.path().stat().st_ino == payload.stat().st_ino


@pytest.mark.skipif(sys.platform == "win32", reason="an HF cache on Windows may have no links")
@pytest.mark.parametrize("is_shared", [False, True], ids=["snapshot and blob", "the shared store"])
def test_leaves_wrong_bytes_in_the_hf_cache_alone_and_fetches_its_own(sandbox: Sandbox, is_shared: bool) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    wrong = tensors(SIZE, seed=1)
    payload = cached(sandbox, wrong, wanted, is_shared=is_shared)
    done = sandbox.install("--json")
    assert done.returncode == 0, done.stderr
    assert payload.read_bytes() == wrong
    assert sandbox.bytes_served() == SIZE
    assert str(payload) in done.said  # the person learns that the cache is damaged
    sandbox.assert_in_place(wanted)


def test_takes_a_blob_of_any_repository_by_its_digest(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.plant(sandbox.cache / "models--some--body" / "blobs" / wanted.sha256, wanted.data)
    assert sandbox.install().returncode == 0
    assert sandbox.hub.requests == ()
    sandbox.assert_in_place(wanted)


@pytest.mark.parametrize("name", ["small.safetensors", "another name.safetensors"])
def test_takes_the_same_bytes_from_a_folder_the_user_names(sandbox: Sandbox, name: str) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    theirs = sandbox.plant(sandbox.folder / "their models" / "deep" / name, wanted.data)
    done = sandbox.install("--look-in", sandbox.folder / "their models", "--json")
    assert done.returncode == 0, done.stderr
    assert sandbox.hub.requests == ()
    assert sha256_of(theirs) == wanted.sha256
    assert str(theirs) in sandbox.receipt()["vae/small.safetensors"]["source"]
    sandbox.assert_in_place(wanted)


def test_a_file_of_the_right_size_and_other_bytes_is_no_copy(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    for number in range(3):
        sandbox.plant(sandbox.folder / "their models" / f"{number}.safetensors", tensors(SIZE, seed=number + 1))
    done = sandbox.install("--look-in", sandbox.folder / "their models")
    assert done.returncode == 0, done.stderr
    assert sandbox.bytes_served() == SIZE
    sandbox.assert_in_place(wanted)


def test_a_misplaced_file_in_the_tree_itself_is_found(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    misplaced = sandbox.plant(sandbox.tree / "models" / "checkpoints" / "klein-vae.safetensors", wanted.data)
    assert sandbox.install().returncode == 0
    assert sandbox.hub.requests == ()
    assert not misplaced.exists()
    sandbox.assert_in_place(wanted)
