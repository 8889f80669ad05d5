"""Files under each other's names, wrong copies, no network: the real command finds the bytes that are here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.world import Wanted, World, tensors

MODEL = Wanted(data=tensors(1_500_000, seed=1), name="model.safetensors", folder="diffusion_models")
VAE = Wanted(data=tensors(1_400_000, seed=2), name="vae.safetensors")


def fetched(world: World) -> list[str | None]:
    return [request.filename for request in world.hub.requests if request.method == "GET"]


def aside(world: World) -> list[Path]:
    folder = world.tree / "models" / ".klein-setup" / "aside"
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "why.jsonl"]


def test_a_file_under_the_wrong_name_is_put_under_the_right_one(world: World) -> None:
    world.publish(VAE, MODEL)
    world.plant(world.path(VAE), MODEL.data)  # looked at first, and to be set aside
    repaired = world.run("repair", "--json")
    assert repaired.returncode == 0, repaired.said
    assert fetched(world) == [VAE.filename]
    assert {step["outcome"]["status"] for step in repaired.json["steps"]} == {"done"}


def test_two_files_with_each_others_names_are_put_right_without_a_byte_from_the_network(world: World) -> None:
    world.publish(MODEL, VAE)
    world.plant(world.path(MODEL), VAE.data)
    world.plant(world.path(VAE), MODEL.data)
    repaired = world.run("repair")
    assert repaired.returncode == 0, repaired.said
    assert world.hub.requests == ()
    assert (world.path(MODEL).read_bytes(), world.path(VAE).read_bytes()) == (MODEL.data, VAE.data)
    assert world.run("verify").returncode == 0


def test_offline_stays_offline_when_a_copy_turns_out_to_be_something_else(world: World) -> None:
    world.publish(VAE)
    wrong = world.plant(world.tree / "models" / "checkpoints" / "alike.safetensors", tensors(1_400_000, seed=9))
    run = world.run("install", "--offline", "--json")
    assert run.returncode == 5
    assert run.codes[0] == "offline"
    assert world.hub.requests == ()
    assert wrong.exists()
    assert not world.path(VAE).exists()


def test_offline_is_enough_when_every_byte_is_here(world: World) -> None:
    world.publish(VAE)
    world.plant(world.tree / "models" / "checkpoints" / "renamed.safetensors", VAE.data)
    assert world.run("install", "--offline").returncode == 0
    assert world.hub.requests == ()
    assert world.path(VAE).read_bytes() == VAE.data


@pytest.mark.parametrize(
    ("where", "kind", "stays"),
    [("checkpoints/renamed.safetensors", "move-file", False), ("vae/of-a-workflow.safetensors", "place-file", True)],
)
def test_a_file_is_moved_only_from_where_nothing_can_use_it(world: World, where: str, kind: str, stays: bool) -> None:
    world.publish(VAE)
    found = world.plant(world.tree / "models" / where, VAE.data)
    repaired = world.run("repair", "--json", "--offline")
    assert repaired.returncode == 0, repaired.said
    (step,) = repaired.json["steps"]
    assert step["kind"] == kind
    assert ("it is moved" in step["reason"], "which stays" in step["reason"]) == (not stays, stays)
    assert found.exists() == stays
    assert world.path(VAE).read_bytes() == VAE.data
    assert aside(world) == []


def test_a_folder_full_of_wrong_files_of_the_right_size_ends_in_a_download(world: World) -> None:
    world.publish(VAE)
    for number in range(6):
        world.plant(world.tree / "models" / "vae" / f"{number}.safetensors", tensors(1_400_000, seed=20 + number))
    installed = world.install()
    assert installed.returncode == 0, installed.said
    assert world.path(VAE).read_bytes() == VAE.data


def test_repair_after_repair_does_not_try_what_it_has_set_aside(world: World) -> None:
    world.publish(VAE)
    world.plant(world.path(VAE), tensors(1_400_000, seed=9))
    assert world.run("repair").returncode == 0
    assert len(aside(world)) == 1
    os.utime(world.path(VAE), ns=(1, 1))
    world.path(VAE).unlink()
    again = world.run("repair", "--json")
    assert [step["kind"] for step in again.json["steps"]] == ["fetch-file"]
    assert again.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_file_that_is_a_link_to_the_wrong_bytes_is_replaced_and_what_it_led_to_kept(world: World) -> None:
    world.publish(VAE)
    elsewhere = world.plant(world.folder / "elsewhere" / "theirs.safetensors", tensors(1_400_000, seed=9))
    world.path(VAE).parent.mkdir(parents=True)
    world.path(VAE).symlink_to(elsewhere)
    assert world.run("repair").returncode == 0
    assert not world.path(VAE).is_symlink()
    assert elsewhere.read_bytes() == tensors(1_400_000, seed=9)


def test_a_folder_under_the_files_name_is_set_aside_whole(world: World) -> None:
    world.publish(VAE)
    world.plant(world.path(VAE) / "inside.txt", b"precious")
    repaired = world.run("repair")
    assert repaired.returncode == 0, repaired.said
    assert world.path(VAE).read_bytes() == VAE.data
    assert [path.read_bytes() for path in aside(world)] == [b"precious"]
