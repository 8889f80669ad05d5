"""Building a folder aside and giving it its name: nothing that worked is touched before the new one is proven.

A virtual environment writes its own path into its scripts, its launchers and its activation files, so it does not
survive a plain rename.  The folder aside therefore bears a name of exactly as many bytes as the final one (``~venv``
for ``.venv``), in the same parent.  Exchanging one for the other shifts no byte, which holds for text files and for the
Windows launchers alike, whose path stands between a program and a zip archive.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from provisioner.core.errors import StorageError
from provisioner.core.json_reader import FieldError, Fields
from provisioner.core.models import STATE_FOLDER
from provisioner.core.ports import Cancelled
from provisioner.disk.locks import hold_place
from provisioner.disk.os_errors import storage_error
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root, is_link, waiting_for
from provisioner.environment.state import EnvironmentReceipt, parse_receipt

RECEIPT = Path(STATE_FOLDER, "environment.json")
CONSTRAINTS = Path(STATE_FOLDER, "constraints.txt")
PACKAGES = Path(STATE_FOLDER, "packages.txt")  # for people and for pip; nothing here reads it
_BUILDING = Path(STATE_FOLDER, "building")  # in a folder aside, while it is built: the build's id

_FIRST_BYTES = "~_-+="
_LARGEST_SCRIPT = 4 * 1024 * 1024  # bytes; a launcher has about 100 kB, what is larger is a program without our path

Stage = Literal["building", "swapping"]


_HOLDER = "whatever runs from that environment"


def disk_error(error: OSError, path: Path, *, doing: str) -> StorageError:
    """Return the error of ours that a refusal of the disk amounts to."""
    return storage_error(error, path, doing=doing, holder=_HOLDER)


def environment_root(folder: Path) -> Root:
    """Return what changes anything below an environment, or below the folder it lies in."""
    return Root(folder, holder=_HOLDER)


# --- small files -------------------------------------------------------------------------------


def read_text(path: Path, limit: int = 1024 * 1024) -> str | None:
    """Return a small text file's content; None where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(limit).decode("utf-8", "replace")
    except OSError:
        return None


def read_receipt(where: Path) -> EnvironmentReceipt | None:
    """Return the receipt an environment holds, or None."""
    text = read_text(where / RECEIPT)
    return None if text is None else parse_receipt(text)


# --- one at a time -----------------------------------------------------------------------------


def only_one(
    where: Path, *, wait: bool, notice: Callable[[str], None], cancelled: Cancelled = lambda: False
) -> AbstractContextManager[None]:
    """Return what holds the lock of one environment's place; entering raises LockHeldError."""
    return hold_place("", where, guards=where, wait=wait, notice=notice, cancelled=cancelled)


# --- a name of the same length -----------------------------------------------------------------


def staging_names(name: str) -> tuple[str, ...]:
    """Return names for the folder aside: as many bytes as `name`, and not `name`.

    >>> staging_names(".venv")[:2], staging_names("äb")[0]
    (('~venv', '_venv'), '~~b')
    """
    width = len(name[0].encode())
    return tuple(first * width + name[1:] for first in _FIRST_BYTES if first * width != name[0])


def relocated(content: bytes, old: str, new: str) -> bytes:
    r"""Return a file's content with the folder name `old` exchanged for `new`, no byte longer or shorter.

    Only whole path components are exchanged, whatever the separator.

    >>> relocated(b"#!/comfy/~venv/bin/python\n", "~venv", ".venv")
    b'#!/comfy/.venv/bin/python\n'
    """
    before, after = old.encode(), new.encode()
    if len(before) != len(after):
        raise ValueError(f"{old} and {new} are not of one length")
    return re.sub(rb"(?<=[/\\])" + re.escape(before) + rb"(?=[/\\'\"\s:;)]|$)", lambda _: after, content)


def relocate(folder: Path, new: str) -> None:
    """Write the name `new` into everything of an environment that holds the folder's own; raises StorageError."""
    root = environment_root(folder)
    for path in (folder / "pyvenv.cfg", *_scripts(folder)):
        try:
            content, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            raise disk_error(error, path, doing="read") from error
        changed = relocated(content, folder.name, new)
        if changed != content:
            root.write_bytes(path, changed, mode=mode)  # under another inode: uv hard-links files with its cache


def _scripts(folder: Path) -> Iterator[Path]:
    for name in ("bin", "Scripts"):
        for path in sorted((folder / name).glob("*")):
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode) and facts.st_size <= _LARGEST_SCRIPT:
                yield path


# --- the work beside an environment ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Where a building stands: what a next run needs to know after a kill."""

    build_id: str
    stage: Stage
    staging: str  # name of the folder aside
    old: str | None = None  # path the environment before was moved to


@dataclass(frozen=True, slots=True)
class Workspace:
    """What lies beside an environment while one is built: temporary files, the journal.

    Parameters
    ----------
    where : Path
        The environment's final place, absolute.
    """

    where: Path

    @property
    def root(self) -> Root:
        """What changes anything beside the environment, or its own name."""
        return environment_root(self.where.parent)

    @property
    def folder(self) -> Path:
        """The folder of the work, in the environment's parent."""
        return self.where.with_name(self.where.name + STATE_FOLDER)

    @property
    def temporary(self) -> Path:
        """The installers' temporary files: on the environment's own file system."""
        return self.folder / "tmp"

    @property
    def _journal(self) -> Path:
        return self.folder / "journal.json"

    def journal(self) -> Journal | None:
        """Return where an earlier building stopped; None where none did, or where we cannot have written that."""
        fields = Fields(read_object(self._journal) or {})
        try:
            return Journal(
                build_id=fields.text("build_id"),
                stage=fields.choice("stage", get_args(Stage), "building"),
                staging=fields.text("staging"),
                old=fields.optional_text("old"),
            )
        except FieldError:
            return None

    def note(self, journal: Journal) -> None:
        """Write down where the building stands."""
        text = {name: getattr(journal, name) for name in Journal.__slots__}
        self.root.write_text(self._journal, json.dumps(text) + "\n")

    def begin(self, build_id: str, *, is_in_place: bool = False) -> Path:
        """Make the folders, note the building, and return the folder aside, which holds nothing but the build's id.

        A building in place makes no folder aside.
        """
        self.root.make_folder(self.temporary)
        self.root.check(self.temporary / "any")  # installers write there, and follow links
        staging = self._free_staging()
        self.note(Journal(build_id=build_id, stage="building", staging=staging.name))
        if not is_in_place:
            self.root.write_text(staging / _BUILDING, build_id)
        return staging

    def _free_staging(self) -> Path:
        for name in staging_names(self.where.name):
            if not os.path.lexists(staging := self.where.with_name(name)):
                return staging
        raise StorageError(f"No free name for a folder beside {self.where}.", hint="Remove what you do not need there.")

    def interrupted(self) -> str | None:
        """Say what an interrupted building left, changing nothing; None where none did."""
        journal = self.journal()
        if journal is None:
            return None
        old = self._old(journal)
        if journal.stage == "swapping" and not self.where.exists() and old is not None:
            return f"A building was interrupted while folders changed places; the environment is in {old}."
        return f"A building of {self.where} was interrupted."

    def recover(self) -> str | None:
        """Put right what an interrupted building left; wheels that arrived are in the cache.

        Returns
        -------
        str or None
            What was done, in a sentence; None where nothing was left.
        """
        journal = self.journal()
        if journal is None:
            return None
        said = "An interrupted building was cleared away; it is done again with what had arrived."
        if journal.stage == "swapping":
            said = self._end_swap(journal) or said
        if journal.staging in staging_names(self.where.name):
            staging = self.where.with_name(journal.staging)
            if _is_of(staging, journal.build_id):
                self.root.remove_tree(staging)
        self._remove_work()
        return said

    def remove_environment(self, build_id: str) -> None:
        """Remove the environment, of a link only itself, and what lies beside it.

        It is moved aside first, so that a killed run leaves a whole one or none.
        """
        if is_link(self.where):
            self.root.remove_tree(self.where)
            if self.journal() is not None:  # else what lies beside it only has the name that ours would have
                self._remove_work()
            return
        staging = self._free_staging()
        self.note(Journal(build_id=build_id, stage="building", staging=staging.name))
        self.root.replace(self.where, staging)
        self.root.remove_tree(staging)
        self.root.remove_tree(self.folder)

    def _remove_work(self) -> None:
        """Remove the work, but for an environment from before that has not found its place again."""
        self.root.remove_tree(self.temporary)
        if not os.path.lexists(self._old_of_ours):
            self.root.remove_tree(self.folder)

    def _end_swap(self, journal: Journal) -> str | None:
        old = self._old(journal)
        if old is None or not old.exists():
            return None
        if not self.where.exists():
            self.root.replace(old, self.where)
            return "An interrupted building was taken back: the environment from before is in its place again."
        receipt = read_receipt(self.where)
        if receipt is not None and receipt.build_id == journal.build_id and old == self._old_of_ours:
            self.root.remove_tree(old)  # the new one was proven before the folders changed places
        return "An interrupted building had come to its end; what it left was cleared away."

    @property
    def _old_of_ours(self) -> Path:
        return self.folder / "old"

    def _old(self, journal: Journal) -> Path | None:
        """Return where the environment from before was moved to: one of the two names we give it, whatever is noted."""
        if journal.old is None:
            return None
        named = Path(journal.old)
        kept = re.escape(self.where.name) + r"\.before-[0-9]{8}-[0-9]{6}"
        is_kept = named.parent == self.where.parent and re.fullmatch(kept, named.name) is not None
        is_environment = (named / "pyvenv.cfg").is_file() and not is_link(named)
        return named if (named == self._old_of_ours or is_kept) and is_environment else None

    def swap(self, staging: Path, build_id: str, stamp: str, check: Callable[[], None]) -> Path | None:
        """Give the folder aside its name; the environment from before comes back if the check fails.

        Parameters
        ----------
        staging : Path
            The folder aside, complete and proven.
        build_id : str
            Of its receipt.
        stamp : str
            For the name under which somebody else's environment is kept.
        check : callable
            Raises where the environment does not work in its place.

        Returns
        -------
        Path or None
            Where the environment from before is kept, if it was not ours.
        """
        is_ours = read_receipt(self.where) is not None
        old = self._old_of_ours if is_ours else self.where.with_name(f"{self.where.name}.before-{stamp}")
        had_one = os.path.lexists(self.where)
        journal = Journal(
            build_id=build_id,
            stage="swapping",
            staging=staging.name,
            old=str(old) if had_one else None,
        )
        self.note(journal)
        if had_one:
            self.root.replace(self.where, old)
        try:
            self.root.replace(staging, self.where)
            check()
        except BaseException:
            if self.where.exists():
                self.root.replace(self.where, staging)
            if had_one:
                self.root.replace(old, self.where)
            raise
        if had_one and is_ours:
            self.root.remove_tree(old)
        self.root.remove_tree(self.folder)
        return old if had_one and not is_ours else None

    def give_up(self, twins: Iterable[Path]) -> None:
        """Remove a building that failed."""
        with contextlib.suppress(StorageError):
            for staging in twins:
                self.root.remove_tree(staging)
            self._remove_work()


def _is_of(staging: Path, build_id: str) -> bool:
    """Whether a folder is the one a building works in, or has no file but our records; a name alone says nothing."""
    if is_link(staging) or not staging.is_dir():
        return False
    receipt = read_receipt(staging)
    noted = read_text(staging / _BUILDING)
    records = {staging / each for each in (RECEIPT, CONSTRAINTS, PACKAGES, _BUILDING)}
    records |= {half for each in records for half in waiting_for(each)}
    is_built_here = build_id != "" and build_id in (noted, receipt and receipt.build_id)
    return is_built_here or all(path in records or (path.is_dir() and not is_link(path)) for path in staging.rglob("*"))


def forget_building(folder: Path) -> None:
    """Take the build's id out of a folder whose receipt has it now; raises StorageError."""
    environment_root(folder).remove(folder / _BUILDING)
