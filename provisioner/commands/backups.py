"""``klein-setup backups``: list what was replaced, put one back, delete some for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from provisioner.commands.questions import Ask, need_yes
from provisioner.commands.run import Run
from provisioner.core.errors import EXIT_OK, UsageError
from provisioner.core.models import BackupEntry, ComfyTarget, HubCacheTarget, Target
from provisioner.core.units import count, human_bytes, listing
from provisioner.files import planner
from provisioner.plan.make_plan import make_plan
from provisioner.plan.steps import Plan
from provisioner.report.outcome import Report


def backup_roots(target: Target) -> tuple[Path, ...]:
    """Return the folders of a target that may have backups; reads the names in an HF cache, nothing else."""
    match target:
        case ComfyTarget():
            elsewhere = (folder.parent for each in target.folders for folder in each.read)
            roots = (target.models, *(each.write_root for each in target.folders), *elsewhere)
            return tuple(dict.fromkeys(root for root in roots if root == target.models or _has_backups(root)))
        case HubCacheTarget():
            try:
                return tuple(sorted(path for path in target.cache.glob("models--*") if _has_backups(path)))
            except OSError:
                return ()


def _has_backups(root: Path) -> bool:
    from provisioner.core.models import STATE_FOLDER

    return (root / STATE_FOLDER / "aside").is_dir()


def run_backups_list(run: Run) -> Report:
    """Return every backup, oldest first; nothing is written."""
    return _report(run, "aside list", _entries(run))


def run_backups_restore(run: Run, name: str, *, say: Callable[[str], None]) -> Report:
    """Put a backup back in its place; the file that is there now becomes a backup.

    Parameters
    ----------
    run : Run
        Names the target.
    name : str
        The entry's id, its path, or the path it was replaced at if only one was.
    say : callable
        Prints what was done.

    Raises
    ------
    UsageError
        No such entry, or several.
    HashMismatchError
        The bytes do not fit the file that is there now; nothing was changed.
    StorageError
        Disk full or not writable; both files are still there.
    LockHeldError
        Another run works on that folder, and ``--no-wait`` was given.
    """
    entry = find_entry(_entries(run), name)
    with run.session.store.lock_roots([entry.root]):
        path = run.session.store.put_back(entry)
    say(f"{path} is again the file from before {entry.time}; the file it replaces is now in the backups.")
    return _report(run, "aside restore", (entry,))


def run_backups_clear(
    run: Run,
    names: Sequence[str] = (),
    *,
    ask: Ask,
    say: Callable[[str], None],
) -> Report:
    """Delete backups for good, after a yes.

    Parameters
    ----------
    run : Run
        Names the target; with ``options.assume_yes`` nothing is asked.
    names : sequence of str
        Which entries, as for `run_backups_restore`; all of them if empty.
    ask, say : callable
        Asks before anything goes; told in a line what was freed.

    Raises
    ------
    AnswerNeededError
        Nobody agreed; nothing was deleted.
    UsageError, StorageError, LockHeldError
        As `run_backups_restore`.
    """
    found = _entries(run)
    chosen = tuple(dict.fromkeys(find_entry(found, name) for name in names)) if names else found
    if not chosen:
        say("There are no backups.")
        return _report(run, "aside clear", ())
    size = human_bytes(sum(entry.size for entry in chosen))
    if not run.options.assume_yes:
        what = count(len(chosen), "backup")
        need_yes(ask, f"Delete {what} ({size}) for good?", hint="Agree with --yes, or leave them where they are.")
    with run.session.store.lock_roots([entry.root for entry in chosen]):
        freed = run.session.store.clear_backups(chosen)
    say(f"{human_bytes(freed)} were freed.")
    return _report(run, "aside clear", chosen)


def find_entry(entries: Sequence[BackupEntry], name: str) -> BackupEntry:
    """Return the entry a person means: by its id, by where it is, or by where it was; raises UsageError."""
    by_id = [entry for entry in entries if name in {entry.id, str(entry.path)}]
    by_place = [entry for entry in entries if name in {entry.was, str(entry.root / entry.was)}]
    found = by_id or by_place
    if len(found) == 1:
        return found[0]
    if found:
        ids = listing([entry.id if len(by_id) < 2 else str(entry.path) for entry in found])
        raise UsageError(f"{name!r} means {count(len(found), 'backup')}: {ids}.", hint="Name one of them.")
    raise UsageError(f"There is no backup called {name!r}.", hint="`klein-setup backups list` shows the names.")


def _entries(run: Run) -> tuple[BackupEntry, ...]:
    return run.session.store.list_backups(backup_roots(run.target))


def _no_plan(run: Run) -> Plan:
    """Return a plan of nothing: it names the target."""
    return make_plan(planner.no_steps(run.manifest, run.wanted, run.target), ())


def _report(run: Run, command: str, entries: tuple[BackupEntry, ...]) -> Report:
    return replace(run.report(command, "ok", EXIT_OK, plan=_no_plan(run)), machine=None, backups=entries)
