"""Disks that are full or closed, links that lead away, files in the way, and the same bytes lying elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioner.rehearsal.faults import WrongBytes
from tests.support.world import MIB, REPOSITORY, REVISION, Wanted, World, eventually, sha256_of, tensors

SIZE = 2 * MIB
LARGE = 37 * MIB

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Return a function that mounts a file system in memory; skips where that needs rights we do not have."""
    mounted: list[Path] = []

    def tmpfs(options: str) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("mounting a file system takes root on Linux")
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"this machine does not let us mount: {done.stderr.strip()}")
        mounted.append(place)
        return place

    try:
        yield tmpfs
    finally:
        for place in reversed(mounted):
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill_the_disk(filler: Path) -> None:
    """Write until nothing more goes in."""
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(MIB))


# --- the disk --------------------------------------------------------------------------------------


def test_full_disk_is_refused_before_the_first_byte(world: World, mount: Mount) -> None:
    disk = mount("size=100m")
    world.tree = disk / "ComfyUI"
    world.publish(*(Wanted(data=tensors(LARGE, seed), name=f"{seed}.safetensors") for seed in range(2)))
    done = world.install("--json")
    assert (done.returncode, done.codes) == (4, ["insufficient-space"])
    assert world.hub.requests == ()
    error = done.json["errors"][0]
    assert str(disk) in error["message"]
    assert "nothing was fetched" in error["message"]
    assert f"{2 * LARGE + 32 * MIB:,} bytes needed" in error["message"]
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_is_named_and_the_fetch_continues_when_there_is_room(
    world: World, mount: Mount
) -> None:
    disk = mount("size=120m")
    world.tree = disk / "ComfyUI"
    first, second = (Wanted(data=tensors(LARGE, seed), name=f"{seed}.safetensors") for seed in range(2))
    world.publish(first, second)
    world.hub.rate_bytes_s_per_connection = 30 * MIB
    running = world.start("install", "--connections", "1", "--json")
    eventually(lambda: world.blocks_in_log(first) >= 1, what="a block is complete")
    filler = disk / "somebody else's.bin"
    fill_the_disk(filler)  # all but what the file on its way took before its first byte
    done = running.wait()
    assert (done.returncode, done.codes) == (4, ["insufficient-space"]), done.stderr
    assert "The disk is full" in done.said
    world.assert_in_place(first)
    assert not world.path(second).exists()
    filler.unlink()
    world.hub.rate_bytes_s_per_connection = None
    before = world.bytes_served()
    again = world.install()
    assert again.returncode == 0, again.stderr
    assert world.bytes_served() - before == LARGE
    world.assert_in_place(second)


def test_an_unwritable_folder_is_named_and_nothing_is_asked(world: World, mount: Mount) -> None:
    disk = mount("size=100m,mode=755")
    (disk / "ComfyUI" / "models" / "vae").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    world.tree = disk / "ComfyUI"
    world.publish(tensors(SIZE))
    done = world.install("--json")
    assert (done.returncode, done.codes) == (4, ["not-writable"])
    assert str(disk) in done.json["errors"][0]["message"]
    assert "Read-only file system" in done.said
    assert world.gets() == []


def test_a_copy_from_another_file_system_is_a_copy(world: World, mount: Mount) -> None:
    disk = mount("size=100m")
    (wanted,) = world.publish(tensors(LARGE))
    world.plant(disk / "their models" / "vae-of-mine.safetensors", wanted.data)
    done = world.install("--look-in", disk, "--json")
    assert done.returncode == 0, done.stderr
    assert [step["outcome"]["detail"].split(" ")[0] for step in done.json["steps"]] == ["copied"]
    assert world.hub.requests == ()
    world.assert_in_place(wanted)


def test_a_folder_that_is_a_file_is_named(world: World) -> None:
    world.publish(tensors(SIZE))
    (world.tree / "models" / "loras").mkdir(parents=True)
    world.plant(world.tree / "models" / "vae", b"somebody's file")
    done = world.install("--json")
    assert done.returncode == 4
    assert "is a file where a folder is needed" in done.said
    assert (world.tree / "models" / "vae").read_bytes() == b"somebody's file"
    assert world.gets() == []


# --- links -----------------------------------------------------------------------------------------


@pytest.fixture
def outside(world: World) -> Path:
    """Return a folder outside the tree that the tree's ``vae`` leads to."""
    outside = world.folder / "outside"
    outside.mkdir()
    (world.tree / "models" / "loras").mkdir(parents=True)
    try:
        (world.tree / "models" / "vae").symlink_to(outside, target_is_directory=True)
    except OSError as error:  # Windows without developer mode
        pytest.skip(f"this machine makes no links: {error}")
    return outside


def test_path_cannot_leave_the_root(world: World, outside: Path) -> None:
    world.publish(tensors(SIZE))
    done = world.install("--json")
    assert (done.returncode, done.codes) == (4, ["path-outside-root"])
    error = done.json["errors"][0]
    assert f"is a link to {outside}, outside of" in error["message"]
    assert "--follow-links" in error["hint"]
    assert list(outside.iterdir()) == []
    assert world.hub.requests == ()


def test_a_link_that_leaves_the_root_is_followed_when_the_user_says_so(world: World, outside: Path) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    done = world.install("--follow-links")
    assert done.returncode == 0, done.stderr
    assert sha256_of(outside / wanted.name) == wanted.sha256
    assert (world.tree / "models" / "vae").is_symlink()


def test_a_link_in_the_place_of_the_file_is_set_aside_and_its_target_left_alone(world: World) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    theirs = world.plant(world.folder / "theirs.safetensors", tensors(SIZE, seed=1))
    world.path().parent.mkdir(parents=True)
    world.path().symlink_to(theirs)
    before = theirs.stat()
    assert world.install().returncode == 0
    world.assert_in_place(wanted)
    assert not world.path().is_symlink()
    assert (theirs.stat().st_mtime_ns, sha256_of(theirs)) == (before.st_mtime_ns, sha256_of(tensors(SIZE, seed=1)))
    assert world.set_aside()[f"vae/{wanted.name}"].is_symlink()


def test_a_link_to_nothing_in_the_place_of_the_file_is_set_aside(world: World) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    world.path().parent.mkdir(parents=True)
    world.path().symlink_to(world.folder / "gone")
    assert world.install().returncode == 0
    world.assert_in_place(wanted)
    assert world.set_aside()[f"vae/{wanted.name}"].is_symlink()
    assert not (world.folder / "gone").exists()


def test_a_link_to_the_right_bytes_is_right(world: World) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    theirs = world.plant(world.folder / "theirs.safetensors", wanted.data)
    world.path().parent.mkdir(parents=True)
    world.path().symlink_to(theirs)
    assert world.install().returncode == 0
    assert world.path().is_symlink()
    assert world.hub.requests == ()


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
def test_unknown_file_in_the_way_is_set_aside_not_overwritten(world: World, theirs: bytes, why: str) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    world.plant(world.path(), theirs)
    done = world.install("--json")
    assert done.returncode == 0, done.stderr
    assert [step["kind"] for step in done.json["steps"]] == ["fetch-file"]
    world.assert_in_place(wanted)
    aside = world.set_aside()
    assert aside[f"vae/{wanted.name}"].read_bytes() == theirs
    line = json.loads(aside["why.jsonl"].read_text(encoding="utf-8"))
    assert line["was"] == f"vae/{wanted.name}"
    assert why in line["why"]


def test_a_folder_in_the_way_is_set_aside_with_what_is_in_it(world: World) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    world.plant(world.path() / "inside.txt", b"somebody's")
    assert world.install().returncode == 0
    world.assert_in_place(wanted)
    assert world.set_aside()[f"vae/{wanted.name}/inside.txt"].read_bytes() == b"somebody's"


def test_a_file_in_the_way_stays_where_it_is_until_its_successor_is_proven(world: World) -> None:
    theirs = tensors(SIZE, seed=1)
    world.publish(tensors(SIZE))
    world.plant(world.path(), theirs)
    before = world.path().stat()
    world.hub.fault(WrongBytes(count=1))
    ended = [world.install("--offline").returncode, world.install().returncode]
    assert ended == [5, 7]
    after = world.path().stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert world.path().read_bytes() == theirs
    assert world.set_aside() == {}
    assert world.install().returncode == 0
    world.assert_in_place()
    assert world.set_aside()["vae/small.safetensors"].read_bytes() == theirs


def test_right_bytes_that_are_there_are_adopted_without_a_request(world: World) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    world.plant(world.path(), wanted.data)
    inode = world.path().stat().st_ino
    done = world.install("--json")
    assert done.returncode == 0, done.stderr
    assert [step["kind"] for step in done.json["steps"]] == ["record-receipt"]
    assert world.path().stat().st_ino == inode
    assert world.hub.requests == ()
    world.assert_in_place(wanted)


# --- the same bytes elsewhere ------------------------------------------------------------------------


def cached(world: World, data: bytes, wanted: Wanted, *, is_shared: bool) -> Path:
    """Put bytes into the user's HF cache under the name of `wanted`; return the file that holds them.

    The layouts are those of huggingface_hub 2.4.0: snapshot to blob, or two links deep into the shared store of Xet
    files, whose payload is read-only.
    """
    repository = world.cache / f"models--{REPOSITORY.replace('/', '--')}"
    blob = repository / "blobs" / wanted.sha256
    snapshot = repository / "snapshots" / REVISION / wanted.filename
    for folder in (blob.parent, snapshot.parent):
        folder.mkdir(parents=True)
    payload = blob
    if is_shared:
        payload = world.cache / "blobs" / "ab" / ("ab" + "0" * 62)
        payload.parent.mkdir(parents=True)
        blob.symlink_to(os.path.relpath(payload, blob.parent))
    payload.write_bytes(data)
    payload.chmod(0o444)
    snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
    return payload


@pytest.mark.skipif(sys.platform == "win32", reason="an HF cache on Windows may have no links")
@pytest.mark.parametrize("is_shared", [False, True], ids=["snapshot and blob", "the shared store"])
def test_takes_a_file_from_the_hf_cache_without_a_request(world: World, is_shared: bool) -> None:
    (wanted,) = world.publish(tensors(LARGE))
    payload = cached(world, wanted.data, wanted, is_shared=is_shared)
    done = world.install("--json")
    assert done.returncode == 0, done.stderr
    assert world.hub.requests == ()
    (step,) = done.json["steps"]
    assert step["kind"] == "place-file"
    assert not world.path().is_symlink()
    world.assert_in_place(wanted)
    assert sha256_of(payload) == wanted.sha256
    if step["outcome"]["detail"].startswith("hard-linked"):
        assert world.path().stat().st_ino == payload.stat().st_ino


@pytest.mark.skipif(sys.platform == "win32", reason="an HF cache on Windows may have no links")
@pytest.mark.parametrize("is_shared", [False, True], ids=["snapshot and blob", "the shared store"])
def test_leaves_wrong_bytes_in_the_hf_cache_alone_and_fetches_its_own(world: World, is_shared: bool) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    wrong = tensors(SIZE, seed=1)
    payload = cached(world, wrong, wanted, is_shared=is_shared)
    done = world.install("--json")
    assert done.returncode == 0, done.stderr
    assert payload.read_bytes() == wrong
    assert world.bytes_served() == SIZE
    assert str(payload) in done.said  # the person learns that the cache is damaged
    world.assert_in_place(wanted)


def test_takes_a_blob_of_any_repository_by_its_digest(world: World) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    world.plant(world.cache / "models--some--body" / "blobs" / wanted.sha256, wanted.data)
    assert world.install().returncode == 0
    assert world.hub.requests == ()
    world.assert_in_place(wanted)


@pytest.mark.parametrize("name", ["small.safetensors", "another name.safetensors"])
def test_takes_the_same_bytes_from_a_folder_the_user_names(world: World, name: str) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    theirs = world.plant(world.folder / "their models" / "deep" / name, wanted.data)
    done = world.install("--look-in", world.folder / "their models", "--json")
    assert done.returncode == 0, done.stderr
    assert world.hub.requests == ()
    assert sha256_of(theirs) == wanted.sha256
    assert str(theirs) in world.receipt()["vae/small.safetensors"]["source"]
    world.assert_in_place(wanted)


def test_a_file_of_the_right_size_and_other_bytes_is_no_copy(world: World) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    for number in range(3):
        world.plant(world.folder / "their models" / f"{number}.safetensors", tensors(SIZE, seed=number + 1))
    done = world.install("--look-in", world.folder / "their models")
    assert done.returncode == 0, done.stderr
    assert world.bytes_served() == SIZE
    world.assert_in_place(wanted)


def test_a_misplaced_file_in_the_tree_itself_is_found(world: World) -> None:
    (wanted,) = world.publish(tensors(SIZE))
    misplaced = world.plant(world.tree / "models" / "checkpoints" / "klein-vae.safetensors", wanted.data)
    assert world.install().returncode == 0
    assert world.hub.requests == ()
    assert not misplaced.exists()
    world.assert_in_place(wanted)
