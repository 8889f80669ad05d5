"""ComfyUI's own files on this disk: fetched and verified, described, updated when asked, taken back.

A tree appears under its name whole or not at all, and only after its commit or the id of its tree was checked.  Refused
is an update over somebody's changes, and the removal of anything that is not ours byte for byte.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from provisioner.comfyui.checkout.archive import Bounds, unpack, verify_tree
from provisioner.comfyui.checkout.checkout_receipt import (
    RECEIPT,
    names_in,
    only_one,
    read_receipt,
    tree_root,
    write_receipt,
)
from provisioner.comfyui.checkout.describe import describe_tree, requirements_of
from provisioner.comfyui.checkout.foreign_git import disarmed
from provisioner.comfyui.checkout.git import Git, Progress, find_git
from provisioner.comfyui.checkout.git_tree import top_entries, tree_id
from provisioner.comfyui.checkout.new_checkout import clone
from provisioner.comfyui.checkout.node_packs import look_at_packs, move_pack
from provisioner.comfyui.checkout.placing import behind_links, folders_of_ours, is_behind_link, place
from provisioner.comfyui.checkout.remove import remove
from provisioner.comfyui.checkout.update import go_back, now, update
from provisioner.comfyui.checkout_models import CheckoutReceipt, ComfyCheckout, NodePack, Removal, RollbackPoint
from provisioner.comfyui.install_plan import NEEDED_FOLDERS, archive_address, is_archive, is_web_address, local_path
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.comfyui.which_release import (
    TAGS_OF_A_PAGE,
    check_has_tags,
    commit_address,
    parse_tag_page,
    parse_tree,
    releases_of,
    tags_address,
)
from provisioner.core.errors import AccessError, OfflineError, StorageError, UsageError
from provisioner.core.ports import Cancelled, Download, RunProcess
from provisioner.core.redact import redact
from provisioner.disk.flush import flush_all

_MOST_PAGES = 20  # of tags: a thousand
_MOST_ANSWER_BYTES = 4 * 1024 * 1024

__all__ = ["RECEIPT", "Bounds", "Checkouts", "Progress", "requirements_of"]


def _silent(line: str) -> None:
    """Listen to nothing."""


def _read_nothing(url: str, most: int) -> bytes:  # noqa: ARG001 - the port's signature
    """Raise: no server is asked."""
    raise UsageError("git is needed to look for a release, and it is not installed.", hint="Install git.")


@dataclass(frozen=True, kw_only=True)
class Checkouts:
    """The ComfyUI trees of this computer.

    Parameters
    ----------
    run : RunProcess
        Starts programs: `provisioner.machine.process.run_process`.
    environ : mapping
        The person's environment variables; git is looked for on their PATH.
    pass_env : collection of str
        Names of those that git gets as well.
    download : Download
        Fetches archives.
    read : callable
        Returns the bytes at an address, at most that many: a server's list of tags, where there is no git.
    answer_timeout_s : float
        Seconds for git's list of tags.
    is_offline : bool
        ``--offline``: nothing is fetched, by git neither.
    cancelled : callable
        True means: stop now.
    waits_for_lock : bool
        Wait while another run works on the same tree; else LockHeldError.
    bounds : Bounds
        What an archive may have at most.
    """

    run: RunProcess
    download: Download
    read: Callable[[str, int], bytes] = _read_nothing
    answer_timeout_s: float = 60.0
    is_offline: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    pass_env: Collection[str] = ()
    cancelled: Cancelled = lambda: False
    waits_for_lock: bool = True
    bounds: Bounds = field(default_factory=Bounds)

    # --- getting ---------------------------------------------------------------------------------

    def fetch(
        self,
        release: ComfyRelease,
        folder: Path,
        *,
        source: str,
        progress: Progress = _silent,
    ) -> CheckoutReceipt:
        """Put a release of ComfyUI into a folder: new, empty, or holding only what is not ComfyUI's own.

        Everything happens in ``.NAME.klein-setup-new`` beside it, which an interrupted run may leave and the next one
        clears away.  Models, environments and whatever else lies in the folder stays where it is.

        Parameters
        ----------
        release : ComfyRelease
            What is wanted; its tree verifies an archive.
        folder : Path
            Where it goes.
        source : str
            A repository (https address, path, ``file:`` address), or an archive (``.zip``, ``.tar.gz``) at one of them.
        progress : callable
            Told one line at a time.

        Returns
        -------
        CheckoutReceipt
            As it is kept in ``.klein-setup/comfyui.json``.

        Raises
        ------
        UsageError
            There is a ComfyUI already, or git is needed and not there.
        NetworkError, AccessError
            The source was not reached, ``--offline`` was given, or it wants to know who asks.
        IntegrityError
            It does not have the commit, or what it sent is something else.
        StorageError
            The disk refused, or other files are in the way.
        CommandError
            git failed.
        LockHeldError
            Another run works on it, and `waits_for_lock` is false.
        """
        real = Path(os.path.realpath(folder))
        tree_root(real.parent).make_folder()
        with only_one(real, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            already = read_receipt(real)
            if (real / "main.py").exists():
                if already is not None and already.commit == release.commit:
                    return already
                hint = "Name another folder, or ask for an update of this one."
                raise UsageError(f"{folder} holds a ComfyUI already.", hint=hint, path=str(folder))
            self._refuse_offline(release, source)
            with _building(real) as staging:
                return self._build(release, real, staging, source, progress)

    def _build(
        self,
        release: ComfyRelease,
        real: Path,
        staging: Path,
        source: str,
        progress: Progress,
    ) -> CheckoutReceipt:
        git = None if is_archive(source) else self.git_in(staging, progress, is_ours=True)
        shown = redact(source)
        is_new = not names_in(real)
        earlier = folders_of_ours(real)
        folders = tuple(
            each
            for each in NEEDED_FOLDERS
            if not is_behind_link(real, each) and (each in earlier or not os.path.lexists(real / each))
        )
        if git is not None:
            progress(f"Fetching ComfyUI {release.version} from {shown} with git.")
            receipt = replace(clone(git, release.wanted, source, folders), tag=release.tag)
        else:
            receipt = self._unpack(release, staging, source, folders, progress)
        root = tree_root(real.parent)
        for each in folders:
            root.make_folder(staging / each, is_flushed=False)
        write_receipt(staging, receipt)
        if git is not None and not is_new:
            skipped = behind_links(real, receipt.files)
            if skipped:  # or they would count as deleted by the person
                words = ("update-index", "-z", "--skip-worktree", "--stdin")
                git.do(*words, doing="skip files behind links", input_bytes="\0".join(skipped).encode())
        flush_all()
        place(staging, real, receipt)
        progress(f"ComfyUI {release.version} is in {real}.")
        return receipt

    def _unpack(
        self,
        release: ComfyRelease,
        staging: Path,
        source: str,
        folders: tuple[str, ...],
        progress: Progress,
    ) -> CheckoutReceipt:
        address = archive_address(source, release)
        if address is None:
            raise UsageError(
                f"{redact(source)} is a git repository, and git is not installed.",
                hint="Install git, or name an archive (.zip, .tar.gz) with --comfyui-source.",
            )
        progress(f"Fetching the archive of ComfyUI {release.version} from {redact(address)}.")
        archive = _archive_beside(staging)
        if is_web_address(address):
            self.download(
                address,
                archive,
                what="ComfyUI",
                hint="Name a complete and current mirror of ComfyUI that can be read without an account with "
                "--comfyui-source.",
                most_bytes=self.bounds.archive_bytes,
                progress=progress,
            )
        else:
            archive = Path(local_path(address) or address)
        modes = unpack(archive, staging, bounds=self.bounds, cancelled=self.cancelled)
        files = verify_tree(staging, modes, release, bounds=self.bounds, cancelled=self.cancelled)
        return CheckoutReceipt(
            version=release.version,
            commit=release.commit,
            tree=tree_id(files),
            source=redact(address),
            way="archive",
            made_at=now(),
            entries=top_entries(files),
            files=files,
            folders=folders,
            tag=release.tag,
        )

    def has_git(self) -> bool:
        """Whether git is there; else ComfyUI comes as an archive."""
        return find_git(self.run, self.environ) is not None

    # --- releases --------------------------------------------------------------------------------

    def releases_at(self, source: str) -> tuple[ComfyRelease, ...]:
        """Return the releases that a repository has tags of, newest first; without git its server is asked.

        Raises
        ------
        UsageError
            It is an archive, or its address is not encrypted.
        NetworkError, AccessError
            It was not reached, did not answer in time, wants to know who asks, or ``--offline`` was given.
        """
        check_has_tags(source)
        if self.is_offline and local_path(source) is None:
            raise OfflineError(
                f"with --offline, {redact(source)} is not asked.", hint="Run once without --offline.", missing=[]
            )
        git = self.git_in(Path(), _silent, is_ours=True)
        if git is not None:
            return git.tags_at(source, timeout_s=self.answer_timeout_s)
        self._need_server(source)
        found: dict[str, str] = {}
        for page in range(1, _MOST_PAGES + 1):
            tags = parse_tag_page(self._answer_of(source, tags_address(source, page)), source)
            found |= tags
            if len(tags) < TAGS_OF_A_PAGE:
                break
        return releases_of(found)

    def with_tree(self, release: ComfyRelease, source: str, *, comes_as_archive: bool = False) -> ComfyRelease:
        """Return a release with the id of its tree, which verifies an archive: where there is no git, or one is wanted.

        git reads it in the commit; else the server that says which commit a tag is says this, too.

        Raises
        ------
        KleinError
            As `releases_at`, and as `Git.fetch`.
        """
        if release.tree is not None or self.is_offline or is_archive(source):
            return release
        git = self.git_in(Path(), _silent, is_ours=True)
        if git is not None:
            return replace(release, tree=git.tree_at(release, source)) if comes_as_archive else release
        self._need_server(source)
        tree = parse_tree(self._answer_of(source, commit_address(source, release.commit)), release.commit)
        return replace(release, tree=tree)

    def _need_server(self, source: str) -> None:
        if not is_web_address(source):
            raise UsageError(
                f"{redact(source)} is a git repository, and git is not installed.",
                hint="Install git, or leave --comfyui-version out.",
            )

    def _answer_of(self, source: str, address: str) -> str:
        try:
            return self.read(address, _MOST_ANSWER_BYTES).decode("utf-8", "replace")
        except AccessError as error:
            raise AccessError(
                f"{redact(source)} does not say what releases it has: {error}",
                hint="Install git, which reads the tags of any repository; or use --comfyui-version pinned.",
                **error.context,
            ) from error

    # --- looking ---------------------------------------------------------------------------------

    def describe(self, folder: Path) -> ComfyCheckout:
        """Return what a folder is; writes nothing, and runs nothing but git's questions.

        Parameters
        ----------
        folder : Path
            Anything: a tree, its ``models``, a portable build, a base folder, nothing yet.

        Raises
        ------
        StorageError
            It cannot be read.
        """
        return describe_tree(
            folder.absolute(),
            lambda tree: self.git_in(tree, _silent, is_ours=False),
            environ=self.environ,
        )

    def node_packs(self, tree: Path, wanted: Mapping[str, str], *, only: str | None = None) -> tuple[NodePack, ...]:
        """Return the custom nodes of a tree, and whether each can be moved to the commit wanted of it.

        Runs nothing but git's questions.

        Parameters
        ----------
        tree : Path
            ComfyUI.
        wanted : mapping of str to str
            Commits, by the names of the nodes.
        only : str, optional
            The name of the one to look at.
        """
        return look_at_packs(tree, lambda pack: self.git_in(pack, _silent, is_ours=False), wanted, only=only)

    # --- moving ----------------------------------------------------------------------------------

    def update(
        self,
        folder: Path,
        release: ComfyRelease,
        *,
        source: str,
        branch: str | None = None,
        progress: Progress = _silent,
    ) -> RollbackPoint:
        """Move a git checkout to a release; where that fails it is where it was, and `go_back` undoes it later.

        Parameters
        ----------
        folder : Path
            The tree, or the portable build around it.
        release : ComfyRelease
            Where it goes.
        source : str
            The repository its commit comes from; the tree's own remotes are not asked.
        branch : str, optional
            To be checked out where it is at that commit; else no branch is.
        progress : callable
            Told one line at a time.

        Returns
        -------
        RollbackPoint
            Where it stood, as it is kept in ``.klein-setup/comfyui-before.json``.

        Raises
        ------
        CommandError
            Files of ComfyUI itself were changed (``reason="local-changes"``, ``files``), or git failed.
        UsageError
            It is no git checkout, or git is not installed.
        KleinError
            As `fetch`.
        """
        with self._checkout(folder, progress) as git:
            if not git.has_commit(release.commit):
                self._refuse_offline(release, source)
            return update(git, release, source, branch=branch)

    def go_back(self, folder: Path, *, progress: Progress = _silent) -> RollbackPoint:
        """Move a checkout to where it stood before its last update, finished or interrupted.

        Raises
        ------
        UsageError
            No update of ours is known.
        CommandError
            Files of ComfyUI itself were changed since, or git failed.
        """
        with self._checkout(folder, progress) as git:
            return go_back(git)

    def move_pack(self, pack: Path, commit: str, *, branch: str | None, progress: Progress = _silent) -> None:
        """Move one of the custom nodes to a commit that it has; where that fails, it is where it was.

        Raises
        ------
        UsageError
            git is not installed, or the node's git settings start programs that cannot be switched off.
        CommandError
            Files in it were changed, it does not have the commit, or git failed.
        """
        git = self.git_in(pack, progress, is_ours=False)
        if git is None:
            raise UsageError(f"git is needed for {pack}, and it is not installed.", hint="Install git.")
        with only_one(pack, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            move_pack(disarmed(git), commit, branch)

    def removable(self, folder: Path) -> Removal:
        """Return what `remove` would remove; changes nothing.  Raises UsageError where we did not make it."""
        return remove(Path(os.path.realpath(folder)), is_rehearsal=True)

    def remove(self, folder: Path, *, progress: Progress = _silent) -> Removal:
        """Remove the files we put there that are still ours byte for byte; say what stayed.

        Parameters
        ----------
        folder : Path
            The tree.
        progress : callable
            Told that another run is waited for.

        Raises
        ------
        UsageError
            We did not make it.
        StorageError
            The disk refused.
        """
        real = Path(os.path.realpath(folder))
        with only_one(real, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            return remove(real)

    def _refuse_offline(self, release: ComfyRelease, source: str) -> None:
        if self.is_offline and local_path(source) is None:
            raise OfflineError(
                f"ComfyUI {release.version} is not on this computer, and with --offline it is not fetched from "
                f"{redact(source)}.",
                hint="Run once without --offline, or name a repository or an archive on this disk with "
                "--comfyui-source.",
                missing=[f"ComfyUI {release.version}"],
            )

    # --- git -------------------------------------------------------------------------------------

    def git_in(self, tree: Path, progress: Progress, *, is_ours: bool) -> Git | None:
        """Return git in a folder, None where it is not installed.

        Parameters
        ----------
        tree : Path
            The folder.
        progress : callable
            Told how far git is.
        is_ours : bool
            Whether the folder is one that we make.
        """
        program = find_git(self.run, self.environ)
        if program is None:
            return None
        return Git(
            program=program,
            run=self.run,
            environ=self.environ,
            tree=tree,
            cancelled=self.cancelled,
            progress=progress,
            is_ours=is_ours,
            pass_env=self.pass_env,
        )

    @contextlib.contextmanager
    def _checkout(self, folder: Path, progress: Progress) -> Iterator[Git]:
        """Hold a checkout's lock and yield git in it."""
        tree = describe_tree(folder.absolute(), lambda _: None, environ={}).tree
        if tree is None or not (tree / ".git").exists():
            hint = "Install ComfyUI in a new folder instead."
            raise UsageError(f"{folder} is no git checkout of ComfyUI.", hint=hint, path=str(folder))
        git = self.git_in(tree, progress, is_ours=False)
        if git is None:
            raise UsageError(f"git is needed for {folder}, and it is not installed.", hint="Install git.")
        with only_one(tree, wait=self.waits_for_lock, notice=progress, cancelled=self.cancelled):
            yield disarmed(git)


# --- parts -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; whatever becomes of it, it is gone afterwards."""
    staging = folder.with_name(f".{folder.name}.klein-setup-new")
    left_over = (staging, _archive_beside(staging))
    root = tree_root(folder.parent)
    for each in left_over:
        root.remove_tree(each)  # of a run that was interrupted
    root.make_folder(staging)
    try:
        yield staging
    finally:
        for each in left_over:
            with contextlib.suppress(StorageError):
                root.remove_tree(each)


def _archive_beside(staging: Path) -> Path:
    return staging.with_name(f"{staging.name}.archive")
