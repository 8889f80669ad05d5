"""Links that people set up on purpose: read as ComfyUI reads them, written through once somebody agreed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.sandbox import Completed, Sandbox, Wanted, sha256_of, tensors
from tests.support.setup_fixture import SetupFixture, inventory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege, and a terminal the pty module")

SIZE = 100_000


@pytest.fixture
def drive(sandbox: Sandbox) -> Path:
    """A folder on another drive, as it were."""
    drive = sandbox.folder / "drive"
    drive.mkdir()
    return drive


def link(sandbox: Sandbox, name: str, to: Path) -> Path:
    """Put a link into the tree, ``models`` or a folder of it, that leads to a folder."""
    path = sandbox.tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to, target_is_directory=True)
    return path


def state_file(sandbox: Sandbox) -> Path:
    (found,) = sandbox.home.rglob("followed-links.json")
    return found


def links_of(done: Completed) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = done.json["links"]
    return entries


@pytest.mark.parametrize("name", ["models", "models/vae"])
def test_a_plan_names_each_link_where_it_leads_and_who_agreed(sandbox: Sandbox, drive: Path, name: str) -> None:
    sandbox.publish(tensors(SIZE))
    path = link(sandbox, name, drive)
    told = sandbox.run("plan", "--json")
    assert told.returncode == 0
    assert links_of(told) == [{"path": str(path), "leads_to": str(drive), "consent": "no"}]
    shown = sandbox.run("plan")
    assert f"{path} leads to {drive}: you are asked before it is followed" in shown.said
    agreed = sandbox.run("plan", "--json", "--follow-links")
    assert [each["consent"] for each in links_of(agreed)] == ["option"]
    assert list(drive.iterdir()) == []


def test_a_file_in_the_tree_that_names_a_folder_elsewhere_is_agreed_to_as_a_link_is(
    sandbox: Sandbox, drive: Path
) -> None:
    """A tree from a stranger brings its own extra_model_paths.yaml; what the command line names is the user's."""
    (wanted,) = sandbox.publish(tensors(SIZE))
    for name in ("models", "comfy", "custom_nodes"):
        (sandbox.tree / name).mkdir(parents=True)
    for name in ("main.py", "folder_paths.py"):
        (sandbox.tree / name).touch()
    yaml = f"elsewhere:\n  base_path: {drive}\n  is_default: true\n  vae: vae\n"
    config = sandbox.tree / "extra_model_paths.yaml"
    config.write_text(yaml)
    only = ("--only", "files")
    refused = sandbox.install("--yes", *only)
    assert (refused.returncode, f"{config} leads to {drive}" in refused.said) == (4, True)
    assert list(drive.iterdir()) == []
    assert links_of(sandbox.run("plan", "--json", *only)) == [
        {"path": str(config), "leads_to": str(drive), "consent": "no"}
    ]
    assert sandbox.answering("install", *only, answers=("y", "y")).returncode == 0
    placed = drive / "vae" / wanted.name
    assert sha256_of(placed) == wanted.sha256
    assert sandbox.run("verify").returncode == 0
    placed.unlink()
    assert sandbox.install("--yes", *only).returncode == 0  # it is remembered

    placed.unlink()
    config.write_text("# nothing\nnone:\n  vae: nowhere\n")
    named = sandbox.folder / "mine.yaml"
    named.write_text(yaml)
    config.unlink()
    state_file(sandbox).unlink()
    assert sandbox.install("--yes", *only, "--extra-model-paths", str(named)).returncode == 0
    assert placed.is_file()


def test_a_link_that_nothing_is_written_behind_is_not_named(sandbox: Sandbox, drive: Path) -> None:
    sandbox.publish(tensors(SIZE))
    link(sandbox, "models/loras", drive)
    (sandbox.tree / "models" / "real").mkdir()
    (sandbox.tree / "models" / "vae").symlink_to("real")  # it stays below models
    assert links_of(sandbox.run("plan", "--json")) == []
    assert sandbox.install().returncode == 0


@pytest.mark.parametrize(("name", "option"), [("models", "--yes"), ("models/vae", "--no-input")])
def test_without_an_answer_nothing_goes_through_a_link_and_the_words_say_what_to_do(
    sandbox: Sandbox, drive: Path, name: str, option: str
) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    path = link(sandbox, name, drive)
    done = sandbox.install(option, "--json")
    assert (done.returncode, done.codes) == (4, ["path-outside-root"])
    (error,) = done.json["errors"]
    assert error["message"] == (
        f"{path} leads to {drive}, outside of {sandbox.tree}, and nobody agreed that files are written, moved or "
        "deleted there. Nothing was changed."
    )
    assert error["hint"].startswith("Pass --follow-links to agree for this run, or run the same command in a terminal")
    assert list(drive.iterdir()) == []
    assert sandbox.hub.requests == ()
    assert sandbox.install(option, "--follow-links").returncode == 0
    (placed,) = drive.rglob(wanted.name)
    assert sha256_of(placed) == wanted.sha256
    assert list(sandbox.home.rglob("followed-links.json")) == []  # an option is about one run
    assert sandbox.install(option).returncode == 0  # nothing is written any more
    placed.unlink()
    assert sandbox.install(option).returncode == 4


@pytest.mark.parametrize("name", ["models", "models/vae"])
def test_a_yes_is_remembered_for_that_link_and_where_it_led(sandbox: Sandbox, drive: Path, name: str) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    path = link(sandbox, name, drive)
    asked = sandbox.answering("install", answers=("y", "y"))
    assert asked.returncode == 0, asked.said
    assert f"{path} leads to {drive} Follow it now and in later runs? [y/N]" in asked.said
    (placed,) = drive.rglob(wanted.name)
    assert sha256_of(placed) == wanted.sha256

    placed.unlink()
    told = sandbox.run("plan", "--json")
    assert [each["consent"] for each in links_of(told)] == ["remembered"]
    assert "followed, as you agreed in an earlier run" in sandbox.run("plan").said
    assert sandbox.install("--yes").returncode == 0
    assert placed.is_file()

    other = sandbox.folder / "other drive"
    other.mkdir()
    path.unlink()
    path.symlink_to(other)
    assert sandbox.install("--yes").returncode == 4  # another place: nobody agreed to that
    assert list(other.iterdir()) == []
    again = sandbox.answering("install", answers=("y", "n"))
    assert (again.returncode, "leads to" in again.said) == (2, True)
    assert list(other.iterdir()) == []

    path.unlink()
    path.symlink_to(drive)
    placed.unlink()
    state_file(sandbox).unlink()  # which is how an agreement is taken back
    assert sandbox.install("--yes").returncode == 4


def test_a_tree_by_another_name_is_the_same_tree(sandbox: Sandbox, drive: Path) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    link(sandbox, "models/vae", drive)
    assert sandbox.answering("install", answers=("y", "y")).returncode == 0
    (drive / wanted.name).unlink()
    alias = sandbox.folder / "alias"
    alias.symlink_to(sandbox.tree)
    assert sandbox.install("--yes", "--comfyui", alias).returncode == 0
    (drive / wanted.name).unlink()
    copy = sandbox.folder / "another tree"
    (copy / "models").mkdir(parents=True)
    (copy / "models" / "vae").symlink_to(drive)
    assert sandbox.install("--yes", "--comfyui", copy).returncode == 4  # the same drive, in a tree of somebody else's


def test_a_tree_says_nothing_about_what_was_agreed(sandbox: Sandbox, drive: Path) -> None:
    sandbox.publish(tensors(SIZE))
    path = link(sandbox, "models/vae", drive)
    entry = {"tree": str(sandbox.tree), "link": str(path), "leads_to": str(drive)}
    for folder in (sandbox.tree, sandbox.tree / "models", sandbox.tree / "models" / ".klein-setup"):
        folder.mkdir(exist_ok=True)
        (folder / "followed-links.json").write_text(json.dumps({"schema_version": 1, "links": [entry]}))
    assert sandbox.install("--yes").returncode == 4


def test_a_memory_that_cannot_be_read_agrees_to_nothing_and_is_written_anew(sandbox: Sandbox, drive: Path) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    link(sandbox, "models/vae", drive)
    assert sandbox.answering("install", answers=("y", "y")).returncode == 0
    (drive / wanted.name).unlink()
    for text in ("", "[]", '{"schema_version": 1, "links": 3}', '{"schema_version": 1, "links": [{}]}'):
        state_file(sandbox).write_text(text)
        assert sandbox.install("--yes").returncode == 4, text
    assert sandbox.answering("install", answers=("y", "y")).returncode == 0
    (drive / wanted.name).unlink()
    assert sandbox.install("--yes").returncode == 0


@pytest.mark.parametrize("name", ["models", "models/vae"])
def test_what_is_behind_a_link_is_read_as_comfyui_reads_it(sandbox: Sandbox, drive: Path, name: str) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    link(sandbox, name, drive)
    assert sandbox.install("--follow-links").returncode == 0
    for command in (("verify", "--no-smoke"), ("verify", "--quick"), ("install", "--yes")):
        done = sandbox.run(*command, "--json")
        assert (done.returncode, [each["status"] for each in done.json["checks"]]) == (0, ["ok"])
    (placed,) = drive.rglob(wanted.name)
    sandbox.expect(placed, tensors(SIZE, seed=1))
    placed.write_bytes(tensors(SIZE, seed=1))
    found = sandbox.run("verify", "--no-smoke", "--json")
    assert (found.returncode, [each["status"] for each in found.json["checks"]]) == (1, ["hash-mismatch"])
    assert sandbox.run("repair", "--yes").returncode == 4
    assert placed.read_bytes() == tensors(SIZE, seed=1)
    assert sandbox.run("repair", "--yes", "--follow-links").returncode == 0
    assert sha256_of(placed) == wanted.sha256


@pytest.mark.parametrize("name", ["models", "models/vae"])
def test_what_is_behind_a_link_is_removed_only_where_that_was_agreed(sandbox: Sandbox, drive: Path, name: str) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    path = link(sandbox, name, drive)
    assert sandbox.install("--follow-links").returncode == 0
    (placed,) = drive.rglob(wanted.name)
    kept = sandbox.run("uninstall", "--yes", "--json")
    assert placed.is_file()
    (finding,) = kept.json["findings"]
    assert finding["message"].endswith("stays: a folder on the way to it is a link that leads elsewhere.")
    assert f"{path} is a link to {drive}" in finding["hint"]
    assert "--follow-links" in finding["hint"]

    placed.unlink()
    assert sandbox.answering("install", answers=("y", "y")).returncode == 0
    told = sandbox.run("uninstall", "--dry-run", "--json")
    assert links_of(told) == [{"path": str(path), "leads_to": str(drive), "consent": "remembered"}]
    done = sandbox.run("uninstall", "--yes")
    assert (done.returncode, placed.exists()) == (0, False)
    assert f"{path} leads to {drive}: what is removed behind it is removed there" in done.said


@pytest.mark.parametrize("name", ["models", "models/vae"])
def test_backups_behind_a_link_are_listed_and_changed_only_where_that_was_agreed(
    sandbox: Sandbox, drive: Path, name: str
) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    link(sandbox, name, drive)
    (drive / "vae" if name == "models" else drive).mkdir(exist_ok=True)
    sandbox.plant(sandbox.path(), tensors(SIZE, seed=1))
    assert sandbox.install("--follow-links").returncode == 0
    (entry,) = sandbox.run("backups", "list", "--json").json["details"]["aside"]
    denied = sandbox.run("backups", "restore", entry["id"], "--json")
    assert (denied.returncode, denied.codes) == (4, ["path-outside-root"])
    assert sha256_of(sandbox.path()) == wanted.sha256
    sandbox.expect(sandbox.path().resolve(), tensors(SIZE, seed=1))
    assert sandbox.run("backups", "restore", entry["id"], "--follow-links").returncode == 0
    assert sandbox.path().read_bytes() == tensors(SIZE, seed=1)


def test_two_links_are_one_question(sandbox: Sandbox, drive: Path) -> None:
    files = (
        Wanted(data=tensors(SIZE), name="a.safetensors"),
        Wanted(data=tensors(SIZE, seed=1), name="b.safetensors", folder="text_encoders"),
    )
    sandbox.publish(*files)
    places = []
    for name in ("vae", "text_encoders"):
        (drive / name).mkdir()
        places.append((link(sandbox, f"models/{name}", drive / name), drive / name))
    asked = sandbox.answering("install", answers=("y", "y"))
    assert asked.returncode == 0
    assert asked.said.count("[y/N]") == 1
    assert all(f"{path} leads to {real}" in asked.said for path, real in places)
    assert [each["consent"] for each in links_of(sandbox.run("plan", "--json"))] == []  # nothing is left to write


def test_programs_behind_a_link_are_removed_and_moved_back_only_where_that_was_agreed(
    sandbox: Sandbox, setup: SetupFixture, tmp_path: Path
) -> None:
    """A stranger's folder with the form of a portable build may lead to a ComfyUI of the user's, receipt and all."""
    assert setup.run("install", "--yes", "--only", "environment").returncode == 0
    strangers = tmp_path / "strangers"
    (strangers / "python_embeded").mkdir(parents=True)
    path = strangers / "ComfyUI"
    path.symlink_to(setup.tree)
    before = inventory(setup.tree)
    named = ("--manifest", str(sandbox.manifest), "--comfyui", str(strangers))
    for part in ("comfyui", "environment"):
        refused = sandbox.run("uninstall", "--yes", "--only", part, "--json", *named)
        assert (refused.returncode, refused.codes) == (4, ["path-outside-root"]), part
        assert f"{path} leads to {setup.tree}" in refused.stderr
    point = {"commit": "a" * 40, "branch": None, "version": "0.1.0", "target": "b" * 40, "started_at": "2026-11-26"}
    record = setup.tree / ".klein-setup" / "comfyui-before.json"
    record.write_text(json.dumps(point), encoding="utf-8")
    undone = sandbox.run("repair", "--undo-update", "--yes", "--json", *named)
    assert (undone.returncode, undone.codes) == (4, ["path-outside-root"])
    record.unlink()
    assert inventory(setup.tree) == before
    agreed = sandbox.run("uninstall", "--yes", "--only", "environment", "--follow-links", *named)
    assert (agreed.returncode, setup.environment.exists()) == (0, False)
