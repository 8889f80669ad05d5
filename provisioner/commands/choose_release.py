"""Which release of ComfyUI a run installs or updates to: asked for, recorded, needed by the models, or the pinned one.

A repository is asked only for what the shipped table does not know.  What it answers is compared with what was recorded
in the tree's receipt and in the lock; a tag that was moved is never followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from provisioner.comfyui.known_bad import reason, release_that_works, works_here
from provisioner.comfyui.release_models import ComfyRelease, ComfyTable
from provisioner.comfyui.releases import is_at_least
from provisioner.comfyui.which_release import (
    PINNED,
    Need,
    Recorded,
    check_not_moved,
    check_suffices,
    lowest_that_suffices,
    moved_by,
    need_of,
    no_release_for,
    not_recorded,
    release_named,
)
from provisioner.core.errors import NetworkError, OfflineError

if TYPE_CHECKING:
    from provisioner.comfyui.checkout_models import ComfyCheckout
    from provisioner.commands.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseChoice:
    """The release a run goes to."""

    release: ComfyRelease
    why: str | None = None  # it is not the pinned one, a clause; None where it was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseChooser:
    """Chooses the release for one tree.

    Parameters
    ----------
    run : Run
        What is wanted, and the machine.
    table : ComfyTable
        As it came with klein-setup.
    checkout : ComfyCheckout
        The tree.
    source : str
        The repository whose tags are looked at.
    may_ask : bool
        Whether it may be asked; False where only the hosts of a run are listed: the commit then is "".
    """

    run: Run
    table: ComfyTable
    checkout: ComfyCheckout
    source: str
    may_ask: bool = True

    def choose(self, wanted: str | None) -> ReleaseChoice:
        """Return the release for what was asked for: a version, "latest", "pinned", or None for nothing.

        Raises
        ------
        UsageError
            There is no such version, or it does not load the files.
        IntegrityError
            Its tag was moved since it was recorded.
        NetworkError, AccessError
            The repository could not be asked, and what is known here does not do.
        """
        chosen = self._choose(wanted)
        if not self.may_ask:
            return chosen
        return replace(chosen, release=self.run.session.checkouts.with_tree(chosen.release, self.source))

    def take(self, bundled: ComfyRelease) -> ReleaseChoice:
        """Return the release that a bundle holds; raises UsageError where it does not load the files."""
        check_suffices(bundled, need_of(self.run.wanted.artifacts), asked="that of the bundle")
        is_pinned = bundled.commit == self.table.pinned.commit
        return ReleaseChoice(release=bundled, why=None if is_pinned else "as in the bundle")

    def _choose(self, wanted: str | None) -> ReleaseChoice:
        need = need_of(self.run.wanted.artifacts)
        if wanted is not None:
            release = self.table.pinned if wanted == PINNED else self._named(wanted)
            check_suffices(release, need, asked=wanted)
            return ReleaseChoice(release=release)
        recorded = self._recorded_choice()
        if recorded is not None:
            release = self._named(recorded.version)
            check_suffices(release, need, asked=recorded.where)
            return ReleaseChoice(release=release, why=f"as in {recorded.where}")
        if need is not None and not _loads(self.table.pinned, need):
            return ReleaseChoice(release=self._needed(need), why=moved_by(need, self.table.pinned))
        needs_tree = not self.run.session.checkouts.has_git()
        release, bad = release_that_works(self.run.session.machine, self.table, needs_tree=needs_tree)
        if bad is None or (need is not None and not _loads(release, need)):
            return ReleaseChoice(release=self.table.pinned)
        pinned = self.table.pinned.version
        return ReleaseChoice(
            release=release, why=f"not {pinned}, which is known to fail on machines like this: {reason(bad)}"
        )

    def _recorded_choice(self) -> Recorded | None:
        """Return what a lock names, else what was in a tree of ours whose program is gone, if the table lacks it.

        A stranger can have written what lies in a tree: it never brings an older release than the pinned one.
        """
        lost = [
            each
            for each in self._receipts()
            if self.checkout.tree is None and is_at_least(each.version, self.table.pinned.version) is True
        ]
        for each in (*self._locks(), *lost):
            if self.table.release(each.version) is None:
                return each
        return None

    def _named(self, wanted: str) -> ComfyRelease:
        """Return the release of a version, or the latest one."""
        known = self.table.release(wanted)
        if known is not None:
            return known
        if not self.may_ask:
            return ComfyRelease(version=wanted, commit="")
        try:
            found = release_named(wanted, self.run.session.checkouts.releases_at(self.source), self.source)
        except NetworkError as error:
            here = next((each for each in self._receipts() if each.version == wanted), None)
            if here is not None and here.commit == self.checkout.commit:  # nothing is fetched for it
                return ComfyRelease(version=wanted, commit=here.commit, tag=f"v{wanted}")
            if isinstance(error, OfflineError):
                raise not_recorded(wanted, self.table, str(error)) from error
            raise
        rows = (Recorded(each.version, each.commit, "klein-setup's table") for each in self.table.releases)
        check_not_moved(found, (*rows, *self._receipts(), *self._locks()), self.source)
        return self.table.release(found.version) or found

    def _needed(self, need: Need) -> ComfyRelease:
        """Return the oldest release that loads the files, known to work on this machine if there is one."""
        found = tuple(lowest_that_suffices(self.table.releases, need))
        if not found and not self.may_ask:
            return ComfyRelease(version=need.version, commit="")
        if not found:
            try:
                tags = self.run.session.checkouts.releases_at(self.source)
            except NetworkError as error:
                raise no_release_for(need, self.table.releases[0].version, str(error)) from error
            found = tuple(lowest_that_suffices(tags, need)) or (release_named(need.version, tags, self.source),)
        machine = self.run.session.machine
        return next((each for each in found if works_here(each, machine, self.table)), found[0])

    def _receipts(self) -> Iterator[Recorded]:
        receipt = self.checkout.receipt
        if receipt is not None and receipt.tag is not None and receipt.tag.removeprefix("v") == receipt.version:
            where = f"the receipt of {self.checkout.tree or self.checkout.given}"
            yield Recorded(receipt.version, receipt.commit, where)

    def _locks(self) -> Iterator[Recorded]:
        lock = self.run.manifest.lock
        if lock is not None and lock.comfyui_version is not None and lock.comfyui_commit is not None:
            yield Recorded(lock.comfyui_version, lock.comfyui_commit, f"the lock of {lock.locked_on}")


def _loads(release: ComfyRelease, need: Need) -> bool:
    return is_at_least(release.version, need.version) is True
