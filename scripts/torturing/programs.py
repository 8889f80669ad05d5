"""SIGKILL while ComfyUI is fetched, updated, moved back and removed, and while its environment is made and removed.

The repository, the wheels and the GPU are those of the tests: a small stand-in for ComfyUI, a torch set of a few bytes
that the real pip installs, and a recorded machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.torturing.belongings import State, everything_below
from scripts.torturing.trial import BrokenPromiseError, Ended, Trial
from tests.support.builders import recording_of
from tests.support.setup_fixture import GIT, PROBE, PROGRAM, Upstream, git, index_of_toys, rtx_4070, write_tree
from tests.support.wheels import ToyIndex

BEFORE = """
import json
from dataclasses import replace
from pathlib import Path
from provisioner.commands import inspect_comfyui
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.environment import environments
from tests.support import quick_venv

environments.PROBE = Path({probe!r})
quick_venv.use()
table = inspect_comfyui.read_table()
release = ComfyRelease(**json.loads({release!r}))
inspect_comfyui.read_table = lambda: replace(table, pinned=release, releases=(release,))
"""
INSTALL = ("install", "--yes", "--only", "environment")
MOST_CHANGES = 120


class Programs:
    """A trial with a release of ComfyUI and an index of wheels."""

    def __init__(self, trial: Trial, index: ToyIndex) -> None:
        self.trial, self.index = trial, index
        self.upstream = Upstream(trial.folder / "upstream")
        write_tree(
            trial.folder,
            {
                "probe.py": PROBE,
                "machine.json": recording_of(rtx_4070()),
                "before.py": BEFORE.format(
                    probe=str(trial.folder / "probe.py"), release=json.dumps(self.upstream.release)
                ),
            },
        )
        trial.environ |= {
            **GIT,
            "KLEIN_SETUP_MACHINE": str(trial.folder / "machine.json"),
            "PIP_INDEX_URL": index.url,
            "PIP_CONFIG_FILE": os.devnull,
            "PATH": f"{Path(sys.executable).resolve().parent}{os.pathsep}{os.environ['PATH']}",
        }

    def command(self, *given: str) -> tuple[str, ...]:
        """Return a command with its sources."""
        sources = ("--comfyui-source", str(self.upstream.path), "--torch-index", self.index.url)
        return (*given, *sources) if given[0] in {"install", "repair"} else given

    def kill_often(self, *given: str, most: int) -> Ended:
        """Run a command, killed now and then, and then to its end."""
        trial, before = self.trial, str(self.trial.folder / "before.py")
        for _ in range(most):
            self.index.faults.bytes_per_s = trial.chance.choice((None, 500_000))
            if trial.chance.random() < 0.5:
                trip = {"at": trial.chance.randint(1, MOST_CHANGES), "does": "kill"}
                ended = trial.run(*self.command(*given), before=before, trip=trip)
            else:
                running = trial.start(*self.command(*given), before=before)
                time.sleep(trial.chance.choice((0.3, 1.5, 4.0)) * trial.chance.random())
                running.kill()
                ended = running.wait()
                trial.look_at(ended)
            if not ended.is_killed:
                return ended
            trial.happened()
            trial.age_leftovers()
        self.index.faults.bytes_per_s = None
        return trial.run(*self.command(*given), before=before)


def programs(trial: Trial) -> None:
    """Play one of the two lives of a tree."""
    index = index_of_toys()
    try:
        made = Programs(trial, index)
        if trial.chance.random() < 0.6:
            install_and_remove(made)
        else:
            update_and_undo(made)
    finally:
        index.close()


def install_and_remove(made: Programs) -> None:
    """Let ComfyUI and its environment come and go."""
    trial = made.trial
    for path in trial.tree.iterdir():
        if path.name != "models":  # a folder that has more is a ComfyUI already, or something else of the user's
            trial.theirs.suspend(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = tree_without_ours(trial)
    trial.succeed("install")
    ended = made.kill_often(*INSTALL, most=5)
    need(0, ended)
    check_program(trial, ended)
    ended = made.kill_often("uninstall", "--yes", most=5)
    need(0, ended)
    beside(trial)
    left = tree_without_ours(trial)
    if changed := sorted({*before.items()} ^ {*left.items()}, key=str):
        raise BrokenPromiseError(
            f"after uninstall the tree is not what it was: {changed[0]}, {len(changed)} in all, after {ended}"
        )
    trial.succeed("install")
    ended = made.kill_often(*INSTALL, most=0)
    need(0, ended)
    check_program(trial, ended)


def update_and_undo(made: Programs) -> None:
    """Let a checkout of the user's be updated and moved back."""
    trial, tree = made.trial, made.trial.tree
    clone = trial.folder / "clone"
    git(made.upstream.path, "clone", "-q", str(made.upstream.path), str(clone))
    (clone / "comfyui_version.py").write_text('__version__ = "0.10.0"\n', encoding="utf-8")
    git(clone, "commit", "-q", "-a", "-m", "older")
    subprocess.run(["cp", "-a", f"{clone}/.", str(tree)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tree / ".venv")], check=True)
    head = git(tree, "rev-parse", "HEAD")
    ended = made.kill_often(*INSTALL, "--update-comfyui", most=4)
    need(0, ended)
    if git(tree, "rev-parse", "HEAD") != made.upstream.release["commit"]:
        raise BrokenPromiseError(f"the update is not there after {ended}")
    ended = made.kill_often("repair", "--undo-update", "--yes", most=4)
    need((0, 2), ended)  # 2: a killed run had undone it
    if git(tree, "rev-parse", "HEAD") != head or git(tree, "status", "--porcelain", "-uno"):
        raise BrokenPromiseError(f"ComfyUI is not where it was after {ended}")
    beside(trial)


def need(status: int | tuple[int, ...], ended: Ended) -> None:
    """Raise BrokenPromiseError unless a run ended so."""
    if ended.status not in ((status,) if isinstance(status, int) else status):
        raise BrokenPromiseError(f"the next run does not succeed: {ended}")


def check_program(trial: Trial, ended: Ended) -> None:
    """Look at a ComfyUI and an environment after a run that said success."""
    for name, text in PROGRAM.items():
        path = trial.tree / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise BrokenPromiseError(f"{name} of ComfyUI is wrong after {ended}")
    python = trial.tree / ".venv" / "bin" / "python"
    code = "import torch, torchvision, torchaudio; print(torch.__version__)"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BrokenPromiseError(f"the environment does not work: {done.stderr[-300:]}")
    beside(trial)


def beside(trial: Trial) -> None:
    """Raise BrokenPromiseError where something of ours is left beside the tree or the environment."""
    known = {".klein-setup", "klein-setup"}
    found = [path for folder in (trial.folder, trial.tree) for path in folder.iterdir() if "klein-setup" in path.name]
    found += [path for path in trial.tree.iterdir() if path.name.startswith((".venv.", ".venv-"))]
    if left := sorted({str(path) for path in found if path.name not in known}):
        raise BrokenPromiseError(f"left beside: {', '.join(left)}")


def tree_without_ours(trial: Trial) -> dict[str, State | None]:
    """Return what is in the tree, folders left out: an empty one may go."""
    found = everything_below(trial.tree).items()
    return {name: state for name, state in found if state is not None and state[1] != "folder"}
