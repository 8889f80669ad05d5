"""SIGKILL at every change that the installation and the removal of ComfyUI's files make: the next run ends either."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from provisioner.comfyui.checkout.checkouts import Checkouts
from provisioner.comfyui.checkout_models import ComfyCheckout
from provisioner.comfyui.install_plan import NEEDED_FOLDERS, plan_checkout
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.comfyui.tree import open_tree
from provisioner.commands.inspect_comfyui import read_table
from provisioner.files.download.whole_file import WholeFiles
from provisioner.machine.process import run_process
from tests.support.sandbox import Sandbox
from tests.support.setup_fixture import PROGRAM, SetupFixture, Upstream

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

ROOT = Path(__file__).resolve().parents[2]
MINE = (  # as a person has it before ComfyUI comes
    "models",
    "models/.klein-setup",
    "models/.klein-setup/receipt.json",
    "models/vae",
    "models/vae/mine.bin",
)
KILLED = """
import json, os, signal, sys
from pathlib import Path
from tests.integration.test_kills_of_comfyui import changes, checkouts, prepare

does, base, release, source = sys.argv[1:]
number = 0
while True:
    folder = Path(base, str(number), "ComfyUI")
    prepare(folder, does, json.loads(release), source)
    child = os.fork()
    if child == 0:
        seen = 0
        def look(event, given):
            global seen
            if changes(folder, event, given):
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
        sys.addaudithook(look)
        from provisioner.comfyui.release_models import ComfyRelease
        if does == "install":
            checkouts().fetch(ComfyRelease(**json.loads(release)), folder, source=source)
        else:
            checkouts().remove(folder)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    number += 1
print(number)
"""


def checkouts() -> Checkouts:
    return Checkouts(run=run_process, download=WholeFiles().fetch)


def changes(folder: Path, event: str, given: tuple[object, ...]) -> bool:
    """Whether an audit event is a change of names; those that only build the tree aside are left out."""
    if event not in {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}:
        return False
    if not any(os.path.lexists(folder / each) for each in ("custom_nodes", ".klein-setup")) and event != "os.mkdir":
        return False
    return "klein-setup-new" not in str(given[0]) or event == "os.rename"


def prepare(folder: Path, does: str, release: dict[str, Any], source: str) -> None:
    """Make a folder as `install` leaves it after the files, for a removal with ComfyUI around it."""
    for name in MINE:
        path = folder / name
        path.write_bytes(b"w") if path.suffix in {".json", ".bin"} else path.mkdir(parents=True)
    if does == "remove":
        checkouts().fetch(ComfyRelease(**release), folder, source=source)


def killed(folder: Path, does: str, release: Mapping[str, Any], source: Path) -> list[Path]:
    """Return the trees of runs that were killed before their first change, their second, and so on to the last."""
    words = [sys.executable, "-c", KILLED, does, str(folder), json.dumps(release), str(source)]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [folder / str(number) / "ComfyUI" for number in range(int(done.stdout))]


def looked_at(folder: Path) -> ComfyCheckout:
    """Return what a run takes a folder for."""
    target = open_tree(folder, home=folder.parent, environ={})
    assert target.models == folder / "models"
    return checkouts().describe(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in PROGRAM) and all(
        (folder / each).is_dir() for each in NEEDED_FOLDERS
    )


@pytest.mark.parametrize("way", ["git", "archive"])
@pytest.mark.parametrize("does", ["install", "remove"])
def test_a_kill_at_any_change_is_made_good_by_the_next_run(
    tmp_path: Path, upstream: Upstream, does: str, way: str
) -> None:
    source = upstream.path if way == "git" else upstream.archive
    wanted: dict[str, Any] = dict(upstream.release)
    release = ComfyRelease(**wanted)
    trees = killed(tmp_path, does, upstream.release, source)
    assert len(trees) > len(PROGRAM) + len(NEEDED_FOLDERS)
    for folder in trees:
        again = folder.with_name("again")
        shutil.copytree(folder, again, symlinks=True)
        found = looked_at(folder)
        if found.tree is not None:
            assert [each for each in folder.parent.iterdir() if each.name.startswith(".")] == [], folder
        if found.receipt is not None:
            assert [each.path for each in checkouts().remove(folder).kept] == ["models"], folder
            assert names(folder) == list(MINE), folder  # what an installation finds at first
        # and an installation where the removal was not ended
        found = looked_at(again)
        if found.tree is None:
            assert plan_checkout(found, read_table()).action == "clone", (again, names(again))
            checkouts().fetch(release, again, source=str(source))
        assert is_whole(again), again
        checkouts().remove(again)
        assert names(again) == list(MINE), again


DIES = """
import os, signal, sys
def look(event, given):
    if event == "os.remove" and os.path.basename(str(given[0])) == "folder_paths.py" and "uninstall" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
"""


def test_an_uninstall_that_was_killed_is_ended_by_the_next_and_install_gets_comfyui_again(
    sandbox: Sandbox, setup: SetupFixture
) -> None:
    install = ("install", "--yes", "--only", "environment")
    assert setup.run(*install).returncode == 0
    site = sandbox.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(DIES, encoding="utf-8")
    path = f"{site}{os.pathsep}{sandbox.environ['PYTHONPATH']}"
    uninstalling = setup.start("uninstall", "--yes", env={"PYTHONPATH": path})
    uninstalling.communicate(timeout=60)
    assert uninstalling.returncode == -9
    assert not (setup.tree / "main.py").exists()
    ended = setup.run("uninstall", "--yes", "--json")
    assert (ended.returncode, ended.json["findings"]) == (0, []), ended.stderr
    assert not setup.tree.exists()
    assert setup.run(*install).returncode == 0
    assert is_whole(setup.tree)
