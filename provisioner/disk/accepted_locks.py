"""Which signed locks this user's runs accepted: the newest of each name and key, in the user's state folder.

What cannot be read or written is an error here, unlike elsewhere: without it an old lock would be taken for a new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from provisioner.core.errors import StorageError, UnreadableError
from provisioner.core.json_reader import FieldError, Fields
from provisioner.core.models import AcceptedLock
from provisioner.disk.last_run import write_for_user
from provisioner.disk.locks import hold_place
from provisioner.disk.os_errors import reason_of
from provisioner.disk.read_json import read_object

_SCHEMA_VERSION = 1
_FILE = "accepted-locks.json"


def read_accepted(folder: Path) -> tuple[AcceptedLock, ...]:
    """Return what was accepted so far.

    Raises
    ------
    UnreadableError
        There is such a file and it cannot be read, or is damaged.
    """
    path = folder / _FILE
    document = read_object(path)
    if document is None and not os.path.lexists(path):
        return ()
    try:
        fields = Fields(document or {})
        fields.exactly("schema_version", _SCHEMA_VERSION)
        return tuple(
            AcceptedLock(
                name=each.text("name"),
                key_id=each.text("key_id"),
                version=each.count("version"),
                sha256=each.text("sha256"),
                accepted_on=each.text("accepted_on"),
            )
            for each in fields.objects("locks")
        )
    except FieldError as error:
        raise UnreadableError(
            f"{path}, which says which locks were accepted, cannot be read or is damaged.",
            hint="Give your user the right to read it. If it is damaged, `klein-setup manifest accept FILE "
            "--verify-with KEY` begins it anew; check the version of FILE yourself: an older one is taken, too.",
            path=str(path),
        ) from error


def accept_lock(
    folder: Path,
    new: AcceptedLock,
    *,
    check: Callable[[AcceptedLock | None], None] | None,
    notice: Callable[[str], None],
) -> None:
    """Record a lock as accepted unless it is; under a lock of its own, so that no other run forgets it.

    Parameters
    ----------
    folder : Path
        The user's state folder.
    new : AcceptedLock
        What is to be accepted.
    check : callable or None
        Given what was accepted before under that name and key; raises if the new one must not take its place.  None:
        a person wants it whatever was before, and a record that cannot be read begins anew.
    notice : callable
        Told if another run is waited for.

    Raises
    ------
    StorageError
        The record cannot be read or written.
    """
    if check is not None:
        before = accepted_before(read_accepted(folder), new)
        if before is not None and (before.version, before.sha256) == (new.version, new.sha256):
            return
        check(before)
    path = folder / _FILE
    try:
        with hold_place("accepted-", path, guards=path, wait=True, notice=notice):
            known = _known(folder, begins_anew=check is None)
            if check is not None:
                check(accepted_before(known, new))
            others = [each for each in known if (each.name, each.key_id) != (new.name, new.key_id)]
            document = {"schema_version": _SCHEMA_VERSION, "locks": [asdict(each) for each in (new, *others)]}
            write_for_user(path, (json.dumps(document, indent=1) + "\n").encode("ascii"))
    except UnreadableError:
        raise
    except StorageError as error:
        raise StorageError(
            f"{path} cannot be written: {reason_of(error)}. Without it an older lock could be offered later.",
            hint="Make the state folder writable, or name another one with XDG_STATE_HOME.",
            path=str(path),
        ) from error


def _known(folder: Path, *, begins_anew: bool) -> tuple[AcceptedLock, ...]:
    try:
        return read_accepted(folder)
    except UnreadableError:
        if begins_anew:
            return ()
        raise


def accepted_before(known: Iterable[AcceptedLock], new: AcceptedLock) -> AcceptedLock | None:
    """Return the lock of the same name and key among those that were accepted."""
    return next((each for each in known if (each.name, each.key_id) == (new.name, new.key_id)), None)
