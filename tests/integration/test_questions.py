"""What a run asks: once, with the folder and the bytes in the question, and nothing is lost by any answer."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.commands.choose_environment import environment_folder, start_command
from provisioner.commands.run import Options, open_run
from provisioner.commands.session import Session, Settings
from provisioner.disk.last_run import write_last_run
from tests.support.sandbox import Sandbox, sha256_of, tensors

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals here")
SIZE = 300_000
RIGHT, OTHER = tensors(SIZE), tensors(SIZE, seed=7)


def state_folder(sandbox: Sandbox) -> Path:
    return sandbox.home / "state" / "klein-setup"


def test_a_first_run_asks_once_with_the_bytes_and_the_folder(sandbox: Sandbox) -> None:
    sandbox.publish(RIGHT)
    refused = sandbox.answering("install", answers=["n"])
    assert refused.returncode == 2
    assert f"Fetch 300 kB into {sandbox.tree}? [Y/n]" in refused.said, refused.said
    assert not sandbox.path().exists()
    assert sandbox.hub.requests == ()
    done = sandbox.answering("install", answers=[""])  # Enter
    assert done.returncode == 0
    assert sha256_of(sandbox.path()) == sandbox.files[0].sha256
    again = sandbox.answering("install", answers=[])  # nothing to do, nothing to ask
    assert again.returncode == 0


def test_another_folder_is_an_answer_where_none_was_named(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(RIGHT)
    other = sandbox.folder / "other ComfyUI"
    done = sandbox.answering("install", "--no-target", answers=["there", str(other), "y"])
    assert done.returncode == 0, done.said
    assert "into ~/ComfyUI, a new folder?" in done.said
    assert "or a folder with its path: ./ComfyUI" in done.said
    assert (other / "models" / wanted.folder / wanted.name).is_file()
    assert not (sandbox.home / "ComfyUI").exists()


@pytest.mark.parametrize("answer", ["", "n", "\x04"], ids=["enter", "no", "end"])
def test_what_would_be_replaced_in_a_remembered_folder_is_asked_about(sandbox: Sandbox, answer: str) -> None:
    """A bare command with another manifest once replaced the files of the last folder and asked nothing."""
    sandbox.publish(RIGHT)
    sandbox.plant(sandbox.path(), OTHER)
    write_last_run(state_folder(sandbox), kind="comfyui", path=sandbox.tree, manifest="another", set_id="tree")
    asked = sandbox.answering("install", "--no-target", answers=[answer])
    assert asked.returncode == 2
    said = asked.said
    assert "replace 1 file (kept as backups) in" in said
    assert "the folder of the last run? [y/N, or another folder]" in said
    silent = sandbox.run("install", "--no-target", "--json")
    assert (silent.returncode, silent.json["errors"][0]["code"]) == (2, "answer-needed")
    assert sandbox.path().read_bytes() == OTHER
    agreed = sandbox.answering("install", "--no-target", answers=["y"])
    assert agreed.returncode == 0
    assert sandbox.path().read_bytes() == RIGHT


def test_a_remembered_folder_is_repaired_and_filled_without_a_person(sandbox: Sandbox) -> None:
    sandbox.publish(RIGHT)
    assert sandbox.run("install").returncode == 0
    sandbox.path().unlink()
    assert sandbox.run("install", "--no-target").returncode == 0
    sandbox.plant(sandbox.path(), OTHER)
    assert sandbox.run("repair", "--no-target").returncode == 0
    assert sandbox.path().read_bytes() == RIGHT


def test_the_set_that_is_installed_stays(sandbox: Sandbox) -> None:
    sandbox.publish(RIGHT)
    document = json.loads(sandbox.manifest.read_text())
    first = document["sets"][0]
    document["sets"].insert(0, {**first, "id": "large", "conditions": {"min_vram": "900 GiB"}})
    document["default_set"] = "large"
    sandbox.manifest.write_text(json.dumps(document))
    assert sandbox.run("install", "--set", "tree").returncode == 0
    for command in ("verify", "plan"):
        told = sandbox.run(command, "--json").json["manifest"]
        assert (told["set"], told["set_because"]) == ("tree", "it was installed here before")
    (state_folder(sandbox) / "last-run.json").unlink()
    assert sandbox.run("plan", "--json").json["manifest"]["set_because"] == "the receipt in this folder lists its files"


@pytest.mark.parametrize("command", ["verify", "uninstall", "backups list"])
def test_a_folder_that_is_not_there_is_no_new_one(sandbox: Sandbox, command: str) -> None:
    sandbox.publish(RIGHT)
    named = sandbox.run(*command.split(), "--json")
    assert (named.returncode, named.json["errors"][0]["code"]) == (2, "usage")
    assert f"There is no folder {sandbox.tree}." in named.json["errors"][0]["message"]
    nowhere = sandbox.run(*command.split(), "--no-target", "--json").json["errors"][0]
    assert nowhere["message"] == "No ComfyUI was found on this machine."
    assert "klein-setup install" in nowhere["hint"]


def test_the_command_that_starts_comfyui_names_what_is_not_remembered(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(sandbox.home / "state"))
    sandbox.publish(RIGHT)
    paths = sandbox.folder / "paths.yaml"
    paths.write_text("mine:\n  vae: vae\n", encoding="utf-8")
    elsewhere = sandbox.folder / "elsewhere"
    options = Options(manifest=str(sandbox.manifest), comfyui=sandbox.tree)
    session = Session(settings=Settings(), environ=sandbox.environ)
    run = open_run(session, options)
    usual = environment_folder(run, None)
    named = f"klein-setup start --manifest {sandbox.manifest} --set tree --comfyui {sandbox.tree}"
    assert start_command(run, usual) == named
    more = open_run(session, replace(options, extra_model_paths=(paths,)))
    assert start_command(more, elsewhere, "--port", "1") == (
        f"{named} --extra-model-paths {paths} --environment {elsewhere} --port 1"
    )
    assert sandbox.install().returncode == 0
    assert start_command(open_run(session, options), usual) == "klein-setup start"
    assert start_command(open_run(session, options), elsewhere) == f"klein-setup start --environment {elsewhere}"
