"""The custom nodes of a tree: which are git checkouts, at which commit, and moving one to a commit that it has.

They are other people's.  Nothing of them is fetched or started, none of their git settings is followed, and one is only
moved where it is a plain checkout in the tree, of which no file was changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import ROLLBACK_POINT, read_rollback_point, tree_root
from provisioner.comfyui.checkout.describe import GitFor, names_of_nodes, read_head
from provisioner.comfyui.checkout.foreign_git import looking, origin_of
from provisioner.comfyui.checkout.git import Git
from provisioner.comfyui.checkout.placing import is_behind_link
from provisioner.comfyui.checkout.update import move, recover
from provisioner.comfyui.checkout_models import NodePack
from provisioner.comfyui.install_plan import parse_project_version
from provisioner.core.errors import CommandError, KleinError
from provisioner.core.redact import redact
from provisioner.disk.root import is_link

FOLDER = "custom_nodes"
_MOST_PACKS = 500
_SMALL_FILE = 1024 * 1024  # bytes


def look_at_packs(
    tree: Path, git_for: GitFor, wanted: Mapping[str, str], *, only: str | None = None
) -> tuple[NodePack, ...]:
    """Return the custom nodes of a tree, by name; runs nothing but git's questions, writes nothing.

    Parameters
    ----------
    tree : Path
        ComfyUI.
    git_for : callable
        Returns git in a folder, None where it is not installed.
    wanted : mapping of str to str
        By name, the commit that a pack is to be moved to: why it cannot is in `NodePack.why_not_moved`.
    only : str, optional
        The name of the one to look at: git is asked about no other.
    """
    names = names_of_nodes(tree / FOLDER)[:_MOST_PACKS]
    return tuple(_look(tree, name, git_for, wanted.get(name)) for name in names if only is None or name == only)


def _look(tree: Path, name: str, git_for: GitFor, wanted: str | None) -> NodePack:
    path = tree / FOLDER / name
    if not path.is_dir():
        return NodePack(name=name, kind="file", why_not_moved="it is a single file")
    found = NodePack(name=name, kind="folder", version=_version(path), why_not_moved="it is no git checkout")
    if is_link(path) or is_behind_link(tree, f"{FOLDER}/{name}"):
        return replace(found, kind="link", why_not_moved="it lies behind a link")
    if not (path / ".git").is_dir() or is_link(path / ".git"):
        return found
    commit, branch = read_head(path)
    found = replace(found, kind="git", commit=commit, branch=branch)
    git = git_for(path)
    if git is None or commit is None:
        why = "git is not installed" if git is None else "the commit it is on is not known"
        return replace(found, why_not_moved=why)
    try:
        url = origin_of(git)
        with looking(git, commit) as apart:
            changes = apart.changed()
            has_wanted = wanted is None or apart.has_commit(wanted)
    except (KleinError, OSError) as error:
        return replace(found, why_not_moved=str(error).rstrip("."))
    point = read_rollback_point(path)
    is_interrupted = point is not None and not point.is_finished
    why_not = (
        "files in it were changed"
        if changes and not is_interrupted
        else "it does not have that commit any more"
        if not has_wanted
        else None
    )
    return replace(
        found,
        url=None if url is None else redact(url),
        has_local_changes=bool(changes),
        is_interrupted=is_interrupted,
        why_not_moved=why_not,
    )


def _version(path: Path) -> str | None:
    try:
        with (path / "pyproject.toml").open("rb") as stream:
            return parse_project_version(stream.read(_SMALL_FILE).decode("utf-8", "replace"))
    except OSError:
        return None


def move_pack(git: Git, commit: str, branch: str | None) -> None:
    """Move a pack to a commit that it has, to the branch that is there, or to none; a move that failed is undone.

    Raises
    ------
    CommandError
        Files in it were changed, it does not have the commit, or git failed.
    """
    recover(git)
    if not git.has_commit(commit):
        raise CommandError(f"{git.tree} does not have the commit {commit} any more.", path=str(git.tree))
    move(git, commit, branch=branch, version=None)
    root = tree_root(git.tree)
    root.remove(git.tree / ROLLBACK_POINT)  # a snapshot says how it was: no second way back is kept in it
    root.remove_folder((git.tree / ROLLBACK_POINT).parent)
