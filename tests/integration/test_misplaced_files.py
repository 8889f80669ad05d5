"""Files under each other's names, wrong copies, no network: the real command finds the bytes that are here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.sandbox import Sandbox, Wanted, tensors

MODEL = Wanted(data=tensors(1_500_000, seed=1), name="model.safetensors", folder="diffusion_models")
VAE = Wanted(data=tensors(1_400_000, seed=2), name="vae.safetensors")


def fetched(sandbox: Sandbox) -> list[str | None]:
    return [request.filename for request in sandbox.hub.requests if request.method == "GET"]


def aside(sandbox: Sandbox) -> list[Path]:
    folder = sandbox.tree / "models" / ".klein-setup" / "aside"
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "why.jsonl"]


def test_a_file_under_the_wrong_name_is_put_under_the_right_one(sandbox: Sandbox) -> None:
    sandbox.publish(VAE, MODEL)
    sandbox.plant(sandbox.path(VAE), MODEL.data)  # looked at first, and to be set aside
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.said
    assert fetched(sandbox) == [VAE.filename]
    assert {step["outcome"]["status"] for step in repaired.json["steps"]} == {"done"}


def test_two_files_with_each_others_names_are_put_right_without_a_byte_from_the_network(sandbox: Sandbox) -> None:
    sandbox.publish(MODEL, VAE)
    sandbox.plant(sandbox.path(MODEL), VAE.data)
    sandbox.plant(sandbox.path(VAE), MODEL.data)
    repaired = sandbox.run("repair")
    assert repaired.returncode == 0, repaired.said
    assert sandbox.hub.requests == ()
    assert (sandbox.path(MODEL).read_bytes(), sandbox.path(VAE).read_bytes()) == (MODEL.data, VAE.data)
    assert sandbox.run("verify").returncode == 0


def test_offline_stays_offline_when_a_copy_turns_out_to_be_something_else(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    wrong = sandbox.plant(sandbox.tree / "models" / "checkpoints" / "alike.safetensors", tensors(1_400_000, seed=9))
    run = sandbox.run("install", "--offline", "--json")
    assert run.returncode == 5
    assert run.codes[0] == "offline"
    assert sandbox.hub.requests == ()
    assert wrong.exists()
    assert not sandbox.path(VAE).exists()


def test_offline_is_enough_when_every_byte_is_here(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    sandbox.plant(sandbox.tree / "models" / "checkpoints" / "renamed.safetensors", VAE.data)
    assert sandbox.run("install", "--offline").returncode == 0
    assert sandbox.hub.requests == ()
    assert sandbox.path(VAE).read_bytes() == VAE.data


@pytest.mark.parametrize(
    ("where", "kind", "stays"),
    [("checkpoints/renamed.safetensors", "move-file", False), ("vae/of-a-workflow.safetensors", "place-file", True)],
)
def test_a_file_is_moved_only_from_where_nothing_can_use_it(
    sandbox: Sandbox, where: str, kind: str, stays: bool
) -> None:
    sandbox.publish(VAE)
    found = sandbox.plant(sandbox.tree / "models" / where, VAE.data)
    repaired = sandbox.run("repair", "--json", "--offline")
    assert repaired.returncode == 0, repaired.said
    (step,) = repaired.json["steps"]
    assert step["kind"] == kind
    assert ("it is moved" in step["reason"], "which stays" in step["reason"]) == (not stays, stays)
    assert found.exists() == stays
    assert sandbox.path(VAE).read_bytes() == VAE.data
    assert aside(sandbox) == []


def test_a_folder_full_of_wrong_files_of_the_right_size_ends_in_a_download(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    for number in range(6):
        sandbox.plant(sandbox.tree / "models" / "vae" / f"{number}.safetensors", tensors(1_400_000, seed=20 + number))
    installed = sandbox.install()
    assert installed.returncode == 0, installed.said
    assert sandbox.path(VAE).read_bytes() == VAE.data


def test_repair_after_repair_does_not_try_what_it_has_set_aside(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    sandbox.plant(sandbox.path(VAE), tensors(1_400_000, seed=9))
    assert sandbox.run("repair").returncode == 0
    assert len(aside(sandbox)) == 1
    os.utime(sandbox.path(VAE), ns=(1, 1))
    sandbox.path(VAE).unlink()
    again = sandbox.run("repair", "--json")
    assert [step["kind"] for step in again.json["steps"]] == ["fetch-file"]
    assert again.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_a_file_that_is_a_link_to_the_wrong_bytes_is_replaced_and_what_it_led_to_kept(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    elsewhere = sandbox.plant(sandbox.folder / "elsewhere" / "theirs.safetensors", tensors(1_400_000, seed=9))
    sandbox.path(VAE).parent.mkdir(parents=True)
    sandbox.path(VAE).symlink_to(elsewhere)
    assert sandbox.run("repair").returncode == 0
    assert not sandbox.path(VAE).is_symlink()
    assert elsewhere.read_bytes() == tensors(1_400_000, seed=9)


def test_a_folder_under_the_files_name_is_set_aside_whole(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    sandbox.plant(sandbox.path(VAE) / "inside.txt", b"precious")
    repaired = sandbox.run("repair")
    assert repaired.returncode == 0, repaired.said
    assert sandbox.path(VAE).read_bytes() == VAE.data
    assert [path.read_bytes() for path in aside(sandbox)] == [b"precious"]
