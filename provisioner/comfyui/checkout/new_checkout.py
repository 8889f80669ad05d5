"""A repository with one commit, made in an empty folder, checked out and verified."""

from __future__ import annotations

from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import tree_root
from provisioner.comfyui.checkout.git import Git
from provisioner.comfyui.checkout.git_tree import tree_id
from provisioner.comfyui.checkout.update import receipt_of
from provisioner.comfyui.checkout_models import CheckoutReceipt
from provisioner.comfyui.install_plan import local_path
from provisioner.comfyui.release_models import WantedCommit
from provisioner.core.errors import CommandError, NotTheFileError
from provisioner.core.models import STATE_FOLDER
from provisioner.core.redact import redact


def clone(git: Git, wanted: WantedCommit, source: str, folders: tuple[str, ...] = ()) -> CheckoutReceipt:
    """Make a repository with one commit in `git.tree`, checked out and verified; return what it holds.

    Parameters
    ----------
    git : Git
        In an empty folder of ours.
    wanted : WantedCommit
        The commit.
    source : str
        The repository that it comes from.
    folders : tuple of str
        Empty folders that are made beside it, for the receipt.

    Raises
    ------
    NotTheFileError
        The source does not have the commit, or its tree is another one than is known.
    KleinError
        As `Git.fetch`.
    """
    doing = f"make a checkout of {wanted.what}"
    git.do("init", "--quiet", doing=doing)
    git.do("config", "core.autocrlf", "false", doing=doing)  # so that the person's git sees the same bytes as ours
    address = redact(source) if local_path(source) is None else str(Path(local_path(source) or "").absolute())
    git.do("remote", "add", "origin", address, doing=doing)  # for the person's own `git pull`, and for ComfyUI-Manager
    git.fetch(wanted, source, is_shallow=True)
    git.do("checkout", "--quiet", "--detach", "--force", wanted.commit, "--", doing=f"check out {wanted.version}")
    receipt = receipt_of(git, wanted, redact(source), folders=folders)
    head = git.ask("rev-parse", "HEAD")
    if head != wanted.commit or tree_id(receipt.files) != receipt.tree or git.changed():
        raise CommandError(f"git did not put commit {wanted.commit[:12]} on the disk as it is.", observed=head)
    if wanted.tree is not None and receipt.tree != wanted.tree:
        raise NotTheFileError(
            f"Commit {wanted.commit[:12]} has tree {receipt.tree[:12]}, not {wanted.tree[:12]}.",
            hint="Correct manifests/comfyui.yaml: a commit has one tree.",
            expected=wanted.tree,
            observed=receipt.tree,
        )
    _hide_state(git.tree)
    return receipt


def _hide_state(tree: Path) -> None:
    """Keep our folder out of the person's ``git status``."""
    root = tree_root(tree)
    exclude = tree / ".git" / "info" / "exclude"
    root.make_folder(exclude.parent)
    root.append_text(exclude, f"/{STATE_FOLDER}/\n")
    root.remove(tree / ".git" / "FETCH_HEAD")
