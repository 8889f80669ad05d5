"""Custom nodes with real git: what is seen of them, and that one is moved only where nothing of its owner's is lost."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.comfyui.checkout.checkout_receipt import ROLLBACK_POINT, write_rollback_point
from provisioner.comfyui.checkout.checkouts import Checkouts
from provisioner.comfyui.checkout_models import NodePack, RollbackPoint
from provisioner.core.errors import CommandError
from provisioner.machine.process import run_process
from tests.support.setup_fixture import GIT, git, inventory, write_tree


def checkouts(path: str = os.environ["PATH"]) -> Checkouts:
    return Checkouts(
        run=run_process, download=lambda *_, **__: None, environ={**GIT, "PATH": path}, waits_for_lock=False
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    return tmp_path / "ComfyUI"


@pytest.fixture
def pack(tree: Path) -> Path:
    """A checkout on the branch main with two commits."""
    folder = tree / "custom_nodes" / "pack"
    write_tree(folder, {"a.py": "1\n", "old.py": "", "pyproject.toml": '[project]\nname = "p"\nversion = "1"\n'})
    git(folder, "init", "-q", "-b", "main")
    git(folder, "remote", "add", "origin", "https://me:secret@git.example/pack.git")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "a.py").write_text("2\n")
    (folder / "old.py").unlink()
    (folder / "new.py").write_text("")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "second")
    return folder


def head(pack: Path) -> str:
    return git(pack, "rev-parse", "HEAD")


def first(pack: Path) -> str:
    return git(pack, "rev-parse", "HEAD~1")


def look(tree: Path, wanted: str | None = None) -> NodePack:
    (found,) = checkouts().node_packs(tree, {} if wanted is None else {"pack": wanted})
    return found


def test_a_checkout_is_seen_with_its_commit_and_nothing_is_written(tree: Path, pack: Path) -> None:
    before = inventory(tree)
    assert look(tree, first(pack)) == NodePack(
        name="pack",
        kind="git",
        commit=head(pack),
        branch="main",
        version="1",
        url="https://git.example/pack.git",
        has_local_changes=False,
    )
    assert inventory(tree) == before


def test_each_kind_that_is_not_moved_says_why(tree: Path, pack: Path, tmp_path: Path) -> None:
    nodes = tree / "custom_nodes"
    write_tree(nodes, {"single.py": "", "folder/__init__.py": "", "file-as-git/.git": f"gitdir: {pack / '.git'}\n"})
    (nodes / "linked").symlink_to(pack)
    (nodes / "git-behind-link").mkdir()
    (nodes / "git-behind-link" / ".git").symlink_to(pack / ".git")
    found = {each.name: each for each in checkouts().node_packs(tree, {"pack": "a" * 40})}
    assert {name: (each.kind, each.why_not_moved) for name, each in found.items()} == {
        "single.py": ("file", "it is a single file"),
        "folder": ("folder", "it is no git checkout"),
        "file-as-git": ("folder", "it is no git checkout"),
        "linked": ("link", "it lies behind a link"),
        "git-behind-link": ("folder", "it is no git checkout"),
        "pack": ("git", "it does not have that commit any more"),
    }
    (pack / "a.py").write_text("mine\n")
    assert look_of(tree).why_not_moved == "files in it were changed"
    assert look_of(tree, path=str(tmp_path)).why_not_moved == "git is not installed"


def look_of(tree: Path, path: str = os.environ["PATH"]) -> NodePack:
    return next(each for each in checkouts(path).node_packs(tree, {}) if each.name == "pack")


def test_a_pack_goes_to_a_commit_and_back_to_its_branch(tree: Path, pack: Path) -> None:
    newer, older = head(pack), first(pack)
    write_tree(pack, {"mine.txt": "untracked"})
    checkouts().move_pack(pack, older, branch="main")
    assert (head(pack), look(tree).branch, (pack / "a.py").read_text()) == (older, None, "1\n")
    checkouts().move_pack(pack, newer, branch="main")
    assert (head(pack), look(tree).branch) == (newer, "main")
    assert not (pack / ".klein-setup").exists()
    assert (pack / "mine.txt").read_text() == "untracked"


def test_changed_files_and_files_in_the_way_stay(tree: Path, pack: Path) -> None:
    older = first(pack)
    (pack / "a.py").write_text("mine\n")
    before = inventory(pack, ".git")
    with pytest.raises(CommandError, match=r"a\.py"):
        checkouts().move_pack(pack, older, branch=None)
    assert inventory(pack, ".git") == before
    git(pack, "checkout", "-q", "--", "a.py")
    (pack / "old.py").write_text("mine, untracked\n")  # the older commit has a file of that name
    newer = head(pack)
    with pytest.raises(CommandError):
        checkouts().move_pack(pack, older, branch=None)
    assert (head(pack), (pack / "old.py").read_text(), look(tree).branch) == (newer, "mine, untracked\n", "main")


def test_a_commit_that_is_gone_is_an_error_and_nothing_moves(tree: Path, pack: Path) -> None:
    before = inventory(pack)
    with pytest.raises(CommandError, match="does not have the commit"):
        checkouts().move_pack(pack, "a" * 40, branch=None)
    assert inventory(pack) == before


def test_a_move_that_was_killed_is_gone_on_from(tree: Path, pack: Path) -> None:
    newer, older = head(pack), first(pack)
    point = RollbackPoint(
        commit=newer, branch="main", version=None, target=older, started_at="2026-11-27T00:00:00+00:00"
    )
    write_rollback_point(pack, point)
    (pack / "a.py").write_text("1\n")  # git had written this, and neither its index nor HEAD
    (pack / "new.py").unlink()
    (pack / ".git" / "index.lock").write_text("")
    found = look(tree, older)
    assert (found.is_interrupted, found.why_not_moved, found.has_local_changes) == (True, None, True)
    (pack / ".git" / "index.lock").unlink()
    checkouts().move_pack(pack, older, branch=None)
    assert (head(pack), (pack / "a.py").read_text(), git(pack, "status", "--porcelain")) == (older, "1\n", "")
    assert not (pack / ROLLBACK_POINT).exists()


def test_no_program_that_the_settings_of_a_pack_name_is_started(tree: Path, pack: Path, tmp_path: Path) -> None:
    older, mark = first(pack), tmp_path / "started"
    (pack / ".git" / "hooks").mkdir(exist_ok=True)
    hook = pack / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    git(pack, "config", "core.fsmonitor", f"touch {mark}; false")
    git(pack, "config", "filter.x.smudge", f"touch {mark}; cat")
    git(pack, "config", "filter.x.clean", f"touch {mark}; cat")
    (pack / ".git" / "info").mkdir(exist_ok=True)
    (pack / ".git" / "info" / "attributes").write_text("*.py filter=x\n")
    mark.unlink(missing_ok=True)
    assert look(tree, older).why_not_moved is None
    checkouts().move_pack(pack, older, branch=None)
    assert not mark.exists()
    assert (pack / "a.py").read_text() == "1\n"


def test_a_broken_checkout_is_seen_and_said(tree: Path, pack: Path) -> None:
    (pack / ".git" / "HEAD").write_text("ref: refs/heads/nothing\n")
    found = look(tree, "a" * 40)
    assert (found.kind, found.commit, found.why_not_moved) == ("git", None, "the commit it is on is not known")
    (pack / ".git" / "HEAD").write_text(f"{'a' * 40}\n")
    found = replace(look(tree, "a" * 40), url=None)
    assert found.why_not_moved is not None
