"""Packs of custom nodes, installed from a manifest: fetched and verified aside, placed, compared, removed again.

They are third-party code, and nothing of them is started: neither their ``install.py`` nor any other script.  What lies
under a pack's name already is never overwritten.  Only what this user's own receipts name, and what is still as it was
installed, byte for byte, is removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioner.comfyui.checkout.archive import Bounds, read_unpacked, unpack
from provisioner.comfyui.checkout.checkout_receipt import names_in, only_one, receipt_in, receipt_value, tree_root
from provisioner.comfyui.checkout.checkouts import Checkouts, Progress
from provisioner.comfyui.checkout.git_tree import SUBMODULE, top_entries, tree_id, walk
from provisioner.comfyui.checkout.new_checkout import clone
from provisioner.comfyui.checkout.node_packs import FOLDER
from provisioner.comfyui.checkout.pack_receipts import PackReceipts
from provisioner.comfyui.checkout.remove import remove_folders, remove_ours, sort_out
from provisioner.comfyui.checkout.repository import remove_repository, why_not_ours
from provisioner.comfyui.checkout.update import now
from provisioner.comfyui.checkout_models import CheckoutReceipt, FoundPack, PackCheck, PackReceipt
from provisioner.comfyui.install_plan import parse_requirements
from provisioner.comfyui.release_models import WantedCommit
from provisioner.core.errors import HashMismatchError, NotTheFileError, StorageError, UsageError
from provisioner.core.models import STATE_FOLDER, CustomNode, GitCommit, NodeArchive
from provisioner.core.redact import redact
from provisioner.core.units import listing
from provisioner.disk.file_digest import sha256_of
from provisioner.disk.flush import flush_all
from provisioner.disk.os_errors import storage_error
from provisioner.disk.root import is_link

DISABLED = ".disabled"
"""The ending of a folder that ComfyUI, and ComfyUI-Manager, take for switched off."""

_ASIDE = Path(STATE_FOLDER, "custom-nodes")
_REQUIREMENTS = "requirements.txt"
_REQUIREMENTS_BYTES = 1024 * 1024
_HINT = "Take the manifest that its author gives now, or pin the pack anew with `klein-setup manifest from-workflow`."


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedPack:
    """A pack that was fetched and verified, and has no name in ``custom_nodes`` yet."""

    pack: CustomNode
    folder: Path
    checkout: CheckoutReceipt

    def requirements(self) -> tuple[str, ...]:
        """Return the lines of its ``requirements.txt``; raises StorageError."""
        path = self.folder / _REQUIREMENTS
        if is_link(path) or not path.is_file():
            return ()
        try:
            with path.open("rb") as stream:
                return parse_requirements(stream.read(_REQUIREMENTS_BYTES).decode("utf-8", "replace"))
        except OSError as error:
            raise storage_error(error, path, doing="read") from error


@dataclass(frozen=True, kw_only=True)
class PackInstalls:
    """The packs of custom nodes in the trees of this computer.

    Parameters
    ----------
    checkouts : Checkouts
        What fetches.
    receipts : PackReceipts
        What was installed.
    """

    checkouts: Checkouts
    receipts: PackReceipts

    # --- looking ---------------------------------------------------------------------------------

    def look(self, tree: Path, pack: CustomNode) -> FoundPack:
        """Return what is in the place of a pack; starts nothing but git's questions, writes nothing."""
        folder = tree / FOLDER
        if is_link(folder):
            return _kept(f"{folder} is a link", "Install it yourself behind the link, or put a folder in its place.")
        same = [name for name in names_in(folder) or () if name.casefold() == pack.id.casefold()]
        if not same:
            return FoundPack(state="absent")
        other = next((name for name in same if name != pack.id), None)
        if other is not None:
            hint = f"If it is the same pack, rename it to {pack.id}; else rename it to {other}{DISABLED}."
            return _kept(f"{folder / other} is there, which some systems take for the same", hint)
        return self._look(tree, pack)

    def _look(self, tree: Path, pack: CustomNode) -> FoundPack:
        path, source = tree / FOLDER / pack.id, pack.source
        away = f"To have the pinned one, rename it to {pack.id}{DISABLED} and run the same command again."
        receipt = self.receipts.of(tree).get(pack.id)
        if receipt is not None and _is_of(receipt, pack):
            found = check(path, receipt)
            if found.is_whole:
                return FoundPack(state="right")
            if found.is_gone:
                return _kept(f"{path} is a link or a file", away)
            odd = listing((*found.changed, *found.missing), most=3)
            return _kept(f"files of {path} were changed or deleted ({odd})", away)
        if receipt is not None:
            hint = "Remove it with `klein-setup uninstall --only custom-nodes`, and run the same command again."
            return _kept(f"klein-setup installed another version of it, {receipt.checkout.version}", hint)
        seen = next(iter(self.checkouts.node_packs(tree, {}, only=pack.id)), None)
        if seen is not None and isinstance(source, GitCommit) and seen.commit == source.commit:
            if seen.has_local_changes is False:
                return FoundPack(state="right")
            return _kept(f"{path} is at that commit, and {seen.why_not_moved or 'files in it were changed'}", away)
        is_at = "" if seen is None or seen.commit is None else f" (at commit {seen.commit[:12]})"
        return _kept(f"{path} is there, and klein-setup did not put it there{is_at}", away)

    def check_all(self, tree: Path) -> tuple[PackCheck, ...]:
        """Return how every installed pack of a tree differs from what was installed."""
        return tuple(check(tree / FOLDER / name, each) for name, each in self.receipts.of(tree).items())

    def requirements(self, tree: Path) -> dict[str, tuple[str, ...]]:
        """Return what was installed for the packs that are still there, by name."""
        return {
            name: each.requirements
            for name, each in self.receipts.of(tree).items()
            if each.requirements and (tree / FOLDER / name).is_dir()
        }

    # --- getting ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def fetched(self, tree: Path, pack: CustomNode, *, progress: Progress) -> Iterator[FetchedPack]:
        """Yield a pack, fetched into a folder of our own in the tree and verified; what is not placed is gone after.

        Raises
        ------
        NotTheFileError, HashMismatchError
            The repository does not have the commit, or the archive is another one.
        UsageError
            git is needed and not there, or the pack needs more than its own files.
        KleinError
            As `Checkouts.fetch`.
        """
        root, aside = tree_root(tree), tree / _ASIDE
        with only_one(tree, wait=self.checkouts.waits_for_lock, notice=progress, cancelled=self.checkouts.cancelled):
            root.remove_tree(aside)  # of a run that was interrupted
            try:
                root.make_folder(aside)
                yield self._fetch(aside, pack, progress)
            finally:
                with contextlib.suppress(StorageError):
                    root.remove_tree(aside)
                    root.remove_folder(aside.parent)

    def _fetch(self, aside: Path, pack: CustomNode, progress: Progress) -> FetchedPack:
        source, staging = pack.source, aside / pack.id
        what = f"the custom nodes {pack.id}"
        progress(f"Fetching {what} from {redact(pack.address)}.")
        if isinstance(source, GitCommit):
            checkout = self._clone(staging, pack, source, what, progress)
        else:
            checkout = self._unpacked(aside, staging, pack, source, what, progress)
        if any(each.mode == SUBMODULE for each in checkout.files):
            raise UsageError(
                f"{pack.id} has git submodules, which no commit of its own proves; it was not installed.",
                hint="Install it yourself, as its author says.",
            )
        if receipt_in(receipt_value(checkout)) is None:
            raise UsageError(
                f"{pack.id} holds a path that some system reads differently, or that is klein-setup's own; it was not "
                "installed.",
                hint="Install it yourself, if you trust its author.",
            )
        flush_all()
        return FetchedPack(pack=pack, folder=staging, checkout=checkout)

    def _clone(
        self, staging: Path, pack: CustomNode, source: GitCommit, what: str, progress: Progress
    ) -> CheckoutReceipt:
        git = self.checkouts.git_in(staging, progress, is_ours=True)
        if git is None:
            raise UsageError(f"{pack.id} is fetched with git, and git is not installed.", hint="Install git.")
        tree_root(staging).make_folder()
        wanted = WantedCommit(
            what=what, commit=source.commit, version=pack.version or source.commit[:12], elsewhere=_HINT
        )
        return clone(git, wanted, source.repository)

    def _unpacked(
        self, aside: Path, staging: Path, pack: CustomNode, source: NodeArchive, what: str, progress: Progress
    ) -> CheckoutReceipt:
        archive = aside / f"{pack.id}.archive"
        self.checkouts.download(source.url, archive, what=what, hint=_HINT, most_bytes=source.size, progress=progress)
        try:
            found = sha256_of(archive)
        except OSError as error:
            raise storage_error(error, archive, doing="read") from error
        if found != source.sha256:
            raise HashMismatchError(
                f"The archive of {what} is not the one that the manifest pins.",
                hint=_HINT,
                expected=source.sha256,
                observed=found,
            )
        bounds = Bounds(what=what, elsewhere=_HINT, has_folder=False)
        modes = unpack(archive, staging, bounds=bounds, cancelled=self.checkouts.cancelled)
        if not modes:
            raise NotTheFileError(f"The archive of {what} is empty.", hint=_HINT)
        files = read_unpacked(staging, modes, bounds=bounds, cancelled=self.checkouts.cancelled)
        return CheckoutReceipt(
            version=pack.version or source.sha256[:12],
            commit="",
            tree=tree_id(files),
            source=redact(source.url),
            way="archive",
            made_at=now(),
            entries=top_entries(files),
            files=files,
        )

    def place(self, tree: Path, fetched: FetchedPack, requirements: tuple[str, ...]) -> None:
        """Give a fetched pack its name, by one rename, its receipt first; raises StorageError.

        Parameters
        ----------
        tree : Path
            ComfyUI, in which it was fetched.
        fetched : FetchedPack
            The pack.
        requirements : tuple of str
            What was installed for it.
        """
        root, target = tree_root(tree), tree / FOLDER / fetched.pack.id
        root.make_folder(target.parent)
        if os.path.lexists(target):
            raise StorageError(
                f"{target} appeared meanwhile; nothing was overwritten.", hint="Look at it, and run the same again."
            )
        source = fetched.pack.source
        receipt = PackReceipt(
            name=fetched.pack.id,
            archive_sha256=None if isinstance(source, GitCommit) else source.sha256,
            requirements=requirements,
            checkout=fetched.checkout,
        )
        self.receipts.keep(tree, receipt)
        try:
            root.replace(fetched.folder, target)
        except BaseException:
            if not os.path.lexists(target):
                self.receipts.forget(tree, receipt.name)
            raise

    # --- taking back -----------------------------------------------------------------------------

    def remove(self, tree: Path, name: str, *, progress: Progress) -> str | None:
        """Remove a pack that is as it was installed; else switch it off, and return what of it is not, as a clause.

        One that holds anything of somebody else's goes nowhere: its folder gets the ending ``.disabled``, with which
        ComfyUI skips it.

        Raises
        ------
        UsageError
            It is changed, and a folder with that ending is there already.
        StorageError
            The disk refused.
        """
        with only_one(tree, wait=self.checkouts.waits_for_lock, notice=progress, cancelled=self.checkouts.cancelled):
            receipt = self.receipts.of(tree).get(name)
            path = tree / FOLDER / name
            if receipt is None:
                return None
            found = check(path, receipt)
            why = None
            if is_link(path) or is_link(path.parent):
                why = "a link is in its place, which stays as it is"
            elif not found.is_gone and found.is_ours_alone:
                _remove(path, receipt.checkout)
            elif not found.is_gone:
                why = self._switch_off(tree, path, found)
            self.receipts.forget(tree, name)
            return why

    def _switch_off(self, tree: Path, path: Path, found: PackCheck) -> str:
        off = path.with_name(f"{path.name}{DISABLED}")
        if os.path.lexists(off):
            raise UsageError(
                f"{path} holds files of yours ({_what_is_odd(found)}), and {off} is there already.",
                hint="Move one of them away, and run the same command again.",
                path=str(path),
            )
        tree_root(tree).replace(path, off)
        return f"{_what_is_odd(found)}; its folder is {off.name} now, which ComfyUI skips"


# --- parts -------------------------------------------------------------------------------------


def _kept(reason: str, hint: str) -> FoundPack:
    return FoundPack(state="kept", reason=reason, hint=hint)


def _is_of(receipt: PackReceipt, pack: CustomNode) -> bool:
    source = pack.source
    if isinstance(source, GitCommit):
        return receipt.archive_sha256 is None and receipt.checkout.commit == source.commit
    return receipt.archive_sha256 == source.sha256


def check(path: Path, receipt: PackReceipt) -> PackCheck:
    """Return how a pack differs from what was installed; every byte of it is read.

    Parameters
    ----------
    path : Path
        Its folder.
    receipt : PackReceipt
        What was installed.
    """
    if is_link(path) or not path.is_dir():
        return PackCheck(receipt=receipt, is_gone=True)
    files = receipt.checkout.files
    ours, kept = sort_out(path, files)
    changed = {each.path for each in kept}
    here = {each.path for each in ours} | changed
    known = {each.path for each in files}
    sources = {Path(each) for each in known}
    git = path / ".git"
    has_git = os.path.lexists(git)
    return PackCheck(
        receipt=receipt,
        changed=tuple(sorted(changed)),
        missing=tuple(sorted(known - here)),
        added=tuple(
            sorted(
                each
                for each in walk(path)
                if each not in known and not each.startswith(".git/") and not _is_byte_code(Path(each), sources)
            )
        ),
        of_git=why_not_ours(git, receipt.checkout) if has_git else None,
    )


def _is_byte_code(path: Path, sources: set[Path]) -> bool:
    """Whether Python wrote a file for one of these sources."""
    is_compiled = path.suffix == ".pyc" and path.parent.name == "__pycache__"
    return is_compiled and path.parent.parent / f"{path.name.split('.', 1)[0]}.py" in sources


def _what_is_odd(found: PackCheck) -> str:
    if found.changed:
        return f"files were changed ({listing(found.changed, most=3)})"
    if found.added:
        return f"files were added ({listing(found.added, most=3)})"
    return f"its repository {found.of_git}"


def _remove(path: Path, checkout: CheckoutReceipt) -> None:
    """Remove a pack of ours, each file only if it is at this moment what was put there."""
    root = tree_root(path)
    for each in checkout.files:
        remove_ours(root, each)
    if os.path.lexists(path / ".git"):
        remove_repository(root, path / ".git")
    remove_folders(root, checkout)
    tree_root(path.parent).remove_folder(path)
