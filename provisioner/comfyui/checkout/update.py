"""Moves a git checkout to another commit and back; what a person wrote is never overwritten."""

from __future__ import annotations

import stat
import time
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import (
    BACKUPS_FOLDER,
    ROLLBACK_POINT,
    read_receipt,
    read_rollback_point,
    tree_root,
    write_receipt,
    write_rollback_point,
)
from provisioner.comfyui.checkout.describe import describe_tree, read_head
from provisioner.comfyui.checkout.git import Git
from provisioner.comfyui.checkout.git_tree import top_entries
from provisioner.comfyui.checkout.placing import is_behind_link
from provisioner.comfyui.checkout_models import CheckoutReceipt, RollbackPoint
from provisioner.comfyui.install_plan import changed_error
from provisioner.comfyui.release_models import ComfyRelease, WantedCommit
from provisioner.core.errors import CommandError, NotTheFileError, UsageError
from provisioner.core.events import Lasting
from provisioner.core.units import listing
from provisioner.disk.root import Root, free_name

_BEFORE = "refs/klein-setup/before"  # so that no cleaning up of git's takes the commit away
_LOCK_S = 10.0  # how long a git that outlived its run may still hold the index


def now() -> str:
    """Return the time, as it is written down."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def update(git: Git, release: ComfyRelease, source: str, *, branch: str | None = None) -> RollbackPoint:
    """Move a checkout to a release's commit; where that fails, it is where it was.

    Parameters
    ----------
    git : Git
        In the checkout.
    release : ComfyRelease
        Where it goes.
    source : str
        Where its commit comes from.
    branch : str, optional
        To be checked out where it is at that commit; else no branch is.

    Raises
    ------
    CommandError
        Files of ComfyUI itself were changed, or git failed.
    KleinError
        As `Git.fetch`.
    """
    tree = git.tree
    recover(git)
    _refuse_changes(git)
    is_shallow = git.ask("rev-parse", "--is-shallow-repository") == "true"
    git.fetch(release.wanted, source, is_shallow=is_shallow)
    _check_tree(git, release)
    version = describe_tree(tree, lambda _: None, environ={}).version
    commit, _ = _head(git)
    git.do("update-ref", _BEFORE, commit, doing="keep the way back")
    git.progress(f"Moving {tree} from {version or commit[:12]} to {release.version}.")
    rollback_point = move(git, release.commit, branch=branch, version=version)
    _renew_receipt(git, release, source)
    finished = replace(rollback_point, is_finished=True)
    write_rollback_point(tree, finished)
    return finished


def move(git: Git, commit: str, *, branch: str | None, version: str | None) -> RollbackPoint:
    """Check a commit out that is here, with the way back written down before; where that fails, walk it.

    Raises
    ------
    CommandError
        Files were changed, or git failed.
    """
    before, was_on = _head(git)
    _refuse_changes(git)
    rollback_point = RollbackPoint(commit=before, branch=was_on, version=version, target=commit, started_at=now())
    write_rollback_point(git.tree, rollback_point)
    try:
        words = _way_to(git, commit, branch)
        git.do("checkout", "--no-guess", *words, "--", doing=f"check out {commit[:12]}")
        if _head(git)[0] != commit:
            raise CommandError(f"{git.tree} is not at {commit[:12]} after git said it was.")
        _refuse_changes(git)
    except BaseException:
        _return(git, rollback_point)
        raise
    return rollback_point


def _way_to(git: Git, commit: str, branch: str | None) -> tuple[str, ...]:
    """Return what git is to check out: the branch where it is at that commit, else the commit alone."""
    is_there = branch is not None and git.ask("rev-parse", f"refs/heads/{branch}") == commit
    return (branch,) if branch is not None and is_there else ("--detach", commit)


def recover(git: Git) -> str | None:
    """Put back what an interrupted update left, and say so; None where there was none."""
    rollback_point = read_rollback_point(git.tree)
    if rollback_point is None or rollback_point.is_finished:
        return None
    _return(git, rollback_point)
    was = rollback_point.version or rollback_point.commit[:12]
    said = f"An interrupted update was taken back: {git.tree} is at {was} again."
    git.progress(Lasting(said))
    return said


def go_back(git: Git) -> RollbackPoint:
    """Move a checkout to where it stood before its last update.

    Raises
    ------
    UsageError
        No update of ours is known.
    CommandError
        Files of ComfyUI itself were changed since, or git failed.
    """
    rollback_point = read_rollback_point(git.tree)
    if rollback_point is None:
        hint = "Only an update by `klein-setup install --update-comfyui` can be undone."
        raise UsageError(f"There is no update of {git.tree} to undo.", hint=hint, path=str(git.tree))
    if rollback_point.is_finished:
        _refuse_changes(git)
    _return(git, rollback_point)
    receipt = read_receipt(git.tree)
    if receipt is not None and receipt.commit != rollback_point.commit:
        release = ComfyRelease(version=rollback_point.version or "unknown", commit=rollback_point.commit)
        _renew_receipt(git, release, receipt.source)
    return rollback_point


def _head(git: Git) -> tuple[str, str | None]:
    commit, branch = read_head(git.tree)
    commit = git.ask("rev-parse", "HEAD") or commit
    if commit is None:
        raise CommandError(f"{git.tree} is at no commit.", hint="Look at it with `git status`.", path=str(git.tree))
    return commit, branch


def _refuse_changes(git: Git) -> None:
    changed = git.changed()
    if changed:
        raise changed_error(str(git.tree), changed)


def _check_tree(git: Git, release: ComfyRelease) -> None:
    found = git.ask("rev-parse", f"{release.commit}^{{tree}}")
    if release.tree is not None and found != release.tree:
        raise NotTheFileError(
            f"Commit {release.commit[:12]} has tree {(found or 'none')[:12]}, not {release.tree[:12]}.",
            hint="Correct manifests/comfyui.yaml: a commit has one tree.",
            expected=release.tree,
            observed=found,
        )


def _renew_receipt(git: Git, release: ComfyRelease, source: str) -> None:
    """Write down what the tree is now; only where it is one we made.  A commit the person made there stays theirs."""
    before = read_receipt(git.tree)
    if before is not None:
        earlier = (*before.previous_commits, before.commit)
        receipt = receipt_of(git, release.wanted, source, folders=before.folders, previous_commits=earlier)
        write_receipt(git.tree, replace(receipt, tag=release.tag))


def receipt_of(
    git: Git,
    wanted: WantedCommit,
    source: str,
    *,
    folders: tuple[str, ...] = (),
    previous_commits: tuple[str, ...] = (),
) -> CheckoutReceipt:
    """Return the receipt of a checkout at a commit."""
    files = git.files_of(wanted.commit)
    return CheckoutReceipt(
        version=wanted.version,
        commit=wanted.commit,
        tree=git.ask("rev-parse", f"{wanted.commit}^{{tree}}") or "",
        source=source,
        way="git",
        made_at=now(),
        entries=top_entries(files),
        files=files,
        folders=folders,
        previous_commits=tuple(dict.fromkeys(previous_commits)),
    )


# --- the way back ------------------------------------------------------------------------------


def _return(git: Git, rollback_point: RollbackPoint) -> None:
    """Move to where the tree was before the update; git is never told to overwrite what it would refuse to."""
    git = replace(git, cancelled=lambda: False)  # the way back is walked to its end, whoever is in a hurry
    tree = git.tree
    _wait_for_lock(tree)
    if not rollback_point.is_finished:
        _restore_files(git, rollback_point)
    words = _way_to(git, rollback_point.commit, rollback_point.branch)
    git.do("checkout", "--no-guess", *words, "--", doing=f"go back to {rollback_point.commit[:12]}")
    tree_root(tree).remove(tree / ROLLBACK_POINT)


def _wait_for_lock(tree: Path) -> None:
    """Wait for a git that is still at work; a lock whose git was killed is removed, as git itself advises."""
    lock = tree / ".git" / "index.lock"
    until = time.monotonic() + _LOCK_S
    while lock.exists():
        if time.monotonic() >= until:
            tree_root(tree).remove(lock)
            return
        time.sleep(0.2)


def _restore_files(git: Git, rollback_point: RollbackPoint) -> None:
    """Give every tracked file, and git's index, the content of the commit before the update.

    What the update brought is removed.  What is neither commit's (a change of the person's, or a file git was killed
    at) is moved aside where its name is needed, and else stays.
    """
    tree, root = git.tree, tree_root(git.tree)
    brought = _unchanged(git, rollback_point.target) if git.has_commit(rollback_point.target) else {}
    right = _unchanged(git, rollback_point.commit)
    needed = {each.path for each in git.files_of(rollback_point.commit)}
    folder = tree / BACKUPS_FOLDER / datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    moved = []
    for path in sorted((needed | brought.keys()) - right.keys()):
        before = brought.get(path)
        if before is not None and root.remove_if(tree / path, partial(_is_from, before)):
            _remove_empty(root, tree / path)
        elif path in needed and _written_at(tree, path) is not None:
            kept = free_name(folder / path)
            root.make_folder(kept.parent)
            root.replace(tree / path, kept)
            moved.append(path)
    if moved:
        git.progress(Lasting(f"Moved aside to {folder}: {listing(moved[:5])}."))
    missing = _differing(git, "--diff-filter=D")
    words = ("checkout-index", "-z", "--stdin")
    git.do(*words, doing="put files back", input_bytes="\0".join(missing).encode())


def _unchanged(git: Git, commit: str) -> dict[str, int]:
    """Make git's index that of a commit; return the files that are as it has them, and when each was written (ns)."""
    git.do("read-tree", "-i", "--reset", commit, doing=f"read {commit[:12]}")
    seen = {each.path: _written_at(git.tree, each.path) for each in git.files_of(commit)}
    differing = _differing(git)
    return {path: at for path, at in seen.items() if at is not None and path not in differing}


def _differing(git: Git, *options: str) -> frozenset[str]:
    """Return the files that differ from git's index."""
    words = ("diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--ignore-submodules=all", *options, "--")
    return frozenset(git.do(*words, doing="compare the files").split("\0")) - {""}


def _written_at(tree: Path, path: str) -> int | None:
    """Return when a file or link of the tree was written (ns); None where none is there, or only behind a link."""
    try:
        facts = (tree / path).lstat()
    except OSError:
        return None
    return None if stat.S_ISDIR(facts.st_mode) or is_behind_link(tree, path) else facts.st_mtime_ns


def _is_from(at: int, path: Path) -> bool:
    return path.lstat().st_mtime_ns == at


def _remove_empty(root: Root, path: Path) -> None:
    """Remove the folders that a file left empty."""
    for parent in path.parents:
        if parent == root.folder or not root.remove_folder(parent):
            return
