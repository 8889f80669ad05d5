"""Moves a git checkout to another commit and back; what a person wrote is copied aside before it is overwritten."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
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
from provisioner.comfyui.checkout_models import CheckoutReceipt, RollbackPoint
from provisioner.comfyui.install_plan import changed_error
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.core.errors import CommandError, NotTheFileError, UsageError
from provisioner.core.events import Lasting
from provisioner.core.units import listing
from provisioner.disk.root import free_name

_BEFORE = "refs/klein-setup/before"  # so that no cleaning up of git's takes the commit away
_LOCK_S = 10.0  # how long a git that outlived its run may still hold the index


def now() -> str:
    """Return the time, as it is written down."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def update(git: Git, release: ComfyRelease, source: str) -> RollbackPoint:
    """Move a checkout to a release's commit; where that fails, it is where it was.

    Raises
    ------
    CommandError
        Files of ComfyUI itself were changed, or git failed.
    KleinError
        As `Git.fetch`.
    """
    tree = git.tree
    recover(git)
    commit, branch = _head(git)
    _refuse_changes(git)
    is_shallow = git.ask("rev-parse", "--is-shallow-repository") == "true"
    git.fetch(release, source, is_shallow=is_shallow)
    _check_tree(git, release)
    version = describe_tree(tree, lambda _: None, environ={}).version
    rollback_point = RollbackPoint(
        commit=commit, branch=branch, version=version, target=release.commit, started_at=now()
    )
    write_rollback_point(tree, rollback_point)
    git.do("update-ref", _BEFORE, commit, doing="keep the way back")
    git.progress(f"Moving {tree} from {version or commit[:12]} to {release.version}.")
    try:
        git.do("checkout", "--detach", "--no-guess", release.commit, "--", doing=f"check out {release.version}")
        if _head(git)[0] != release.commit:
            raise CommandError(f"{tree} is not at {release.commit[:12]} after git said it was.")
        _refuse_changes(git)
    except BaseException:
        _return(git, rollback_point)
        raise
    _renew_receipt(git, release, source)
    finished = replace(rollback_point, is_finished=True)
    write_rollback_point(tree, finished)
    return finished


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
        write_receipt(git.tree, receipt_of(git, release, source, folders=before.folders, previous_commits=earlier))


def receipt_of(
    git: Git,
    release: ComfyRelease,
    source: str,
    *,
    folders: tuple[str, ...] = (),
    previous_commits: tuple[str, ...] = (),
) -> CheckoutReceipt:
    """Return the receipt of a checkout at a release's commit."""
    files = git.files_of(release.commit)
    return CheckoutReceipt(
        version=release.version,
        commit=release.commit,
        tree=git.ask("rev-parse", f"{release.commit}^{{tree}}") or "",
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
    """Put every tracked file back as it was before the update; files that are neither's are copied aside first."""
    git = replace(git, cancelled=lambda: False)  # the way back is walked to its end, whoever is in a hurry
    tree = git.tree
    _wait_for_lock(tree)
    _keep_strangers(git, rollback_point)
    branch = rollback_point.branch
    has_branch = branch is not None and git.ask("rev-parse", f"refs/heads/{branch}") == rollback_point.commit
    words = (branch,) if branch is not None and has_branch else ("--detach", rollback_point.commit)
    git.do("checkout", "--force", "--no-guess", *words, "--", doing=f"go back to {rollback_point.commit[:12]}")
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


def _keep_strangers(git: Git, rollback_point: RollbackPoint) -> None:
    """Copy aside what differs from both commits: changes of the person's, or a file git was killed at."""
    sides = []
    for commit in (rollback_point.commit, rollback_point.target):
        if not git.has_commit(commit):
            return
        words = ("diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--diff-filter=d", commit, "--")
        sides.append(set(git.do(*words, doing="compare the files").split("\0")) - {""})
    strange = sorted(path for path in sides[0] & sides[1] if (git.tree / path).is_file())
    if strange:
        folder = git.tree / BACKUPS_FOLDER / datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        _copy_to_backups(git.tree, folder, strange)
        git.progress(Lasting(f"Copied aside to {folder}: {listing(strange[:5])}."))


def _copy_to_backups(tree: Path, folder: Path, paths: Iterable[str]) -> None:
    root = tree_root(tree)
    for path in paths:
        root.copy_file(tree / path, free_name(folder / path))
