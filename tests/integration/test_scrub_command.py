"""``verify --for`` and ``repair --for``: the real command, a little at a time, with metrics and a schedule."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.core.models import BLOCK_SIZE
from provisioner.disk.root import flip_bit
from tests.support.sandbox import MIB, Sandbox, Wanted, tensors
from tests.support.setup_fixture import states

LARGE = Wanted(data=tensors(37 * MIB), name="large.safetensors")
SMALL = Wanted(data=tensors(200_000, 1), name="small.safetensors")


@pytest.fixture(scope="module")
def installed(make_sandbox: Callable[[], Sandbox]) -> Sandbox:
    """Two files, installed by one run, which bound the blocks of each to its whole."""
    sandbox = make_sandbox()
    sandbox.publish(LARGE, SMALL)
    assert sandbox.install().returncode == 0
    return sandbox


@pytest.fixture
def sandbox(installed: Sandbox) -> Iterator[Sandbox]:
    """The same, with nothing remembered of what was read."""
    shutil.rmtree(installed.state / "scrub", ignore_errors=True)
    yield installed
    if installed.path(LARGE).read_bytes() != LARGE.data:
        assert installed.run("repair", "--only", "files", "--yes").returncode == 0


def rot(sandbox: Sandbox, offset: int) -> None:
    """Change a bit of the large file and none of its times."""
    data = bytearray(LARGE.data)
    data[offset] ^= 1
    sandbox.expect(sandbox.path(LARGE), bytes(data))
    flip_bit(sandbox.path(LARGE), offset)


def records_of(sandbox: Sandbox) -> tuple[Path, dict[str, Any]]:
    (path,) = (sandbox.state / "scrub").iterdir()
    return path, json.loads(path.read_text())


def metrics(path: Path) -> dict[str, int]:
    return {
        match[1]: int(match[2])
        for match in re.finditer(r"^klein_setup_scrub_(\w+)\{.*\} (\d+)$", path.read_text(), re.M)
    }


def test_every_file_is_read_and_what_was_read_is_remembered_outside_of_the_tree(sandbox: Sandbox) -> None:
    before = states(sandbox.tree)
    done = sandbox.run("verify", "--for", "5m", "--metrics", "klein.prom", "--json")
    assert done.returncode == 0, done.said
    assert [each["basis"] for each in done.json["checks"]] == ["blocks", "blocks"]
    told = done.json["details"]["scrub"]
    assert (told["files"], told["read_files"], told["wrong"], told["never_read"]) == (2, 2, 0, 0)
    assert told["read_bytes"] == len(LARGE.data) + len(SMALL.data)
    assert states(sandbox.tree) == before
    found = metrics(sandbox.folder / "klein.prom")
    assert (found["files"], found["damaged_files"], found["exit_status"]) == (2, 0, 0)
    assert found["oldest_verified_age_seconds"] < 60
    _, document = records_of(sandbox)
    assert set(document["files"]) == {str(sandbox.path(each)) for each in (LARGE, SMALL)}


def test_a_planted_record_hides_no_damage(sandbox: Sandbox) -> None:
    assert sandbox.run("verify", "--for", "5m").returncode == 0
    rot(sandbox, 5 * MIB)
    path, document = records_of(sandbox)
    entry = document["files"][str(sandbox.path(LARGE))]
    entry.update(began_at=entry["read_at"], next_block=2)  # "its first two blocks were read and were right"
    path.write_text(json.dumps(document))
    done = sandbox.run("verify", "--for", "5m", "--metrics", "klein.prom")
    assert (done.returncode, "block 0" in done.said) == (1, True), done.said
    assert metrics(sandbox.folder / "klein.prom")["damaged_files"] == 1
    path.write_text('{"schema_version": 1, "files": {"' + "\\ud800" * 9 + '": [')
    assert sandbox.run("verify", "--for", "5m").returncode == 1


def test_repair_fetches_the_blocks_that_are_wrong_and_what_was_found_before_comes_first(sandbox: Sandbox) -> None:
    rot(sandbox, 20 * MIB)
    assert sandbox.run("verify", "--for", "5m").returncode == 1
    sandbox.hub.clear_requests()
    done = sandbox.run("repair", "--for", "1s", "--only", "files", "--yes", "--metrics", "klein.prom", "--json")
    assert done.returncode == 0, done.said
    assert (sandbox.bytes_served(LARGE), sandbox.path(LARGE).read_bytes() == LARGE.data) == (BLOCK_SIZE, True)
    found = metrics(sandbox.folder / "klein.prom")
    assert (found["damaged_files"], found["exit_status"]) == (0, 0)


def test_a_run_that_fails_says_so_in_the_metrics(sandbox: Sandbox) -> None:
    words = ("--metrics", "klein.prom", "--comfyui", sandbox.folder / "not there")
    assert sandbox.run("verify", "--for", "5m", *words).returncode == 2
    found = metrics(sandbox.folder / "klein.prom")
    assert (found["exit_status"], "files" in found) == (2, False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_folder_that_cannot_be_written_to_is_said(sandbox: Sandbox) -> None:
    folder = sandbox.state / "scrub"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o500)
    try:
        done = sandbox.run("verify", "--for", "5m", "--verbose")
    finally:
        folder.chmod(0o700)
    assert (done.returncode, "could not be remembered" in done.said) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "--for", "5"), "'5' is not a time like 90s, 5m, 12h or 7d"),
        (("verify", "--metrics", "x.prom"), "Say for how long with --for 5m"),
        (("verify", "--schedule", "daily"), "Say for how long with --for 5m"),
        (("verify", "--for", "5m", "--quick"), "--for and --quick read different things"),
        (("repair", "--for", "5m", "--only", "environment"), "--for reads model files"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(sandbox: Sandbox, words: tuple[str, ...], said: str) -> None:
    done = sandbox.run(*words)
    assert (done.returncode, said in done.said) == (2, True)


# --- the schedule --------------------------------------------------------------------------------

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="systemd")


@pytest.fixture
def systemctl(sandbox: Sandbox) -> Path:
    """A stand-in for systemctl, because no user's systemd runs here: it notes what it is asked; return the notes."""
    folder = sandbox.folder / "bin"
    folder.mkdir(exist_ok=True)
    notes = sandbox.folder / "asked"
    notes.unlink(missing_ok=True)
    program = folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {notes}\n')
    program.chmod(0o755)
    sandbox.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return notes


@linux_only
def test_a_schedule_is_shown_written_after_a_yes_and_removed(sandbox: Sandbox, systemctl: Path) -> None:
    units = sandbox.home / "config" / "systemd" / "user"
    words = ("verify", "--for", "5m", "--schedule", "daily", "--metrics", "klein.prom")
    refused = sandbox.run(*words)
    assert (refused.returncode, "ExecStart=" in refused.said, units.exists()) == (2, True, False)
    done = sandbox.run(*words, "--yes")
    assert done.returncode == 0, done.said
    service, timer = sorted(units.iterdir())
    text = service.read_text()
    assert "\nNice=19\n" in text
    assert f"Environment=XDG_STATE_HOME={sandbox.home / 'state'}\n" in text
    assert systemctl.read_text().splitlines() == ["--user daemon-reload", f"--user enable --now {timer.name}"]

    command = re.search(r"^ExecStart=(.*)$", text, re.M)
    assert command is not None
    ran = subprocess.run(command[1].split(), env=sandbox.environ, cwd="/", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert metrics(sandbox.folder / "klein.prom")["read_files"] == 2

    assert sandbox.run("verify", "--schedule", "off").returncode == 0
    assert (list(units.iterdir()), sandbox.run("verify", "--schedule", "off").returncode) == ([], 2)


@linux_only
def test_somebody_elses_unit_of_that_name_is_neither_replaced_nor_removed(sandbox: Sandbox, systemctl: Path) -> None:
    shown = sandbox.run("verify", "--for", "5m", "--schedule", "weekly").stdout
    found = re.search(r"klein-setup-scrub-\w+\.timer", shown)
    assert found is not None
    timer = sandbox.home / "config" / "systemd" / "user" / found[0]
    timer.parent.mkdir(parents=True, exist_ok=True)
    timer.write_text("[Timer]\n")
    for words in (("--for", "5m", "--schedule", "weekly", "--yes"), ("--schedule", "off")):
        assert "was not written by klein-setup" in sandbox.run("repair", *words).said
        assert timer.read_text() == "[Timer]\n"
    timer.unlink()


@linux_only
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_what_is_written(sandbox: Sandbox, systemctl: Path) -> None:
    tree = sandbox.folder / 'my "odd" 50% $HOME'
    tree.symlink_to(sandbox.tree)
    try:
        assert sandbox.run("verify", "--for", "5m", "--schedule", "hourly", "--yes", "--comfyui", tree).returncode == 0
    finally:
        tree.unlink()
    units = sorted((sandbox.home / "config" / "systemd" / "user").iterdir())
    words = ["systemd-analyze", "--user", "verify", *map(str, units)]
    environ = {"XDG_RUNTIME_DIR": str(sandbox.folder), "PATH": os.environ["PATH"], "HOME": str(sandbox.home)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environ)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "klein-setup-scrub" in line]
    assert (done.returncode, said) == (0, [])
    assert sandbox.run("verify", "--schedule", "off", "--yes").returncode == 0


@linux_only
def test_without_systemd_the_command_for_another_scheduler_is_named(sandbox: Sandbox) -> None:
    sandbox.environ["PATH"] = str(sandbox.folder / "nothing")
    done = sandbox.run("verify", "--for", "5m", "--schedule", "daily")
    assert (done.returncode, "Let your own scheduler run this: " in done.said) == (2, True)
