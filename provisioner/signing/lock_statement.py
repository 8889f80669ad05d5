"""What the signature of a lock says, and whether a lock with a good signature may be used: its version, its expiry.

Pure.  The statement is that of OpenSSF Model Signing v1.0 for one file: its name, and the SHA-256 of all its bytes.
The attacks are those of The Update Framework: rollback, freeze, mix-and-match.
"""

from __future__ import annotations

import hashlib
import json
import re
from calendar import monthrange
from collections.abc import Callable

from provisioner.core.errors import LockExpiredError, LockRollbackError, LockSignatureError, ManifestError, UsageError
from provisioner.core.json_reader import FieldError, Fields, parse_object
from provisioner.core.models import AcceptedLock, Lock, Manifest
from provisioner.manifest.parse import LARGEST_LOCK_VERSION
from provisioner.signing.sigstore_bundle import HINT, LARGEST_BUNDLE

DayAfter = Callable[[int], str]
"""The date so many days from today by this machine's clock, in UTC: "2026-11-27"."""

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

_WHOLE_FILE = "."
"""How Model Signing names a file that was signed by itself."""

_LONGEST_DAYS = 3650


# --- the statement -----------------------------------------------------------------------------


def lock_payload(name: str, content: bytes) -> bytes:
    """Return the statement to sign for a lock.

    Parameters
    ----------
    name : str
        The name of its file, without a folder.
    content : bytes
        All of it.
    """
    digest = hashlib.sha256(content)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": hashlib.sha256(digest.digest()).hexdigest()}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": _WHOLE_FILE, "algorithm": "sha256", "digest": digest.hexdigest()}],
        },
    }
    return json.dumps(statement).encode("utf-8")


def check_payload(payload: bytes, name: str, content: bytes, *, label: str) -> None:
    """Raise unless a statement whose signature is good is about this file: its name and its bytes.

    Parameters
    ----------
    payload : bytes
        What was signed.
    name, content : str, bytes
        Of the lock at hand.
    label : str
        What messages call the lock.

    Raises
    ------
    LockSignatureError
        The statement is of another kind, or about a file of another name or with other bytes.
    """
    try:
        signed_name, signed_digest = _subject_of(Fields(parse_object(payload, most=LARGEST_BUNDLE) or {}))
    except FieldError as error:
        raise LockSignatureError(
            f"What was signed beside {label} is not a lock: {error}.",
            hint="Sign the lock with `klein-setup manifest lock --sign KEY`.",
            path=label,
        ) from error
    if signed_digest != hashlib.sha256(content).hexdigest():
        raise LockSignatureError(
            f"{label} is not the file that was signed: the signature is of other bytes, of a file {signed_name!r}.",
            hint=HINT,
            path=label,
            expected=signed_digest,
            observed=hashlib.sha256(content).hexdigest(),
        )
    if signed_name != name:
        raise LockSignatureError(
            f"{label} was signed as {signed_name!r}: it is another lock under this name.",
            hint=f"Get the lock that was signed as {name!r}, or name the file {signed_name!r} if that is the lock you "
            "want.",
            path=label,
        )


def _subject_of(statement: Fields) -> tuple[str, str]:
    """Return name and SHA-256 of the one file that a statement is about; raises FieldError."""
    statement.choice("_type", (STATEMENT_TYPE,), "")
    statement.choice("predicateType", (PREDICATE_TYPE,), "")
    predicate = statement.inner("predicate")
    serialization = predicate.inner("serialization")
    serialization.choice("method", ("files",), "")
    serialization.choice("hash_type", ("sha256",), "")
    subjects, resources = statement.objects("subject"), predicate.objects("resources")
    if len(subjects) != 1:
        statement.complain("subject", "a list of exactly one file", None)
    if len(resources) != 1:
        predicate.complain("resources", "a list of exactly one file", None)
    resources[0].choice("name", (_WHOLE_FILE,), "")
    resources[0].choice("algorithm", ("sha256",), "")
    digest = resources[0].text("digest")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        resources[0].complain("digest", "64 lower-case hex digits", None)
    of_all = hashlib.sha256(bytes.fromhex(digest)).hexdigest()
    subjects[0].inner("digest").choice("sha256", (of_all,), "")
    return subjects[0].text("name"), digest


# --- version and expiry ------------------------------------------------------------------------


def check_fresh(manifest: Manifest, day_after: DayAfter, *, label: str) -> int:
    """Return the version of a signed lock that may be used today.

    Parameters
    ----------
    manifest : Manifest
        What the verified bytes say.
    day_after : callable
        This machine's clock.
    label : str
        What messages call the lock.

    Raises
    ------
    LockSignatureError
        It is not a lock, or has no version.
    LockExpiredError
        It has expired, or the clock is before the day on which it was locked.
    """
    lock = manifest.lock
    if lock is None or lock.version is None:
        raise LockSignatureError(
            f"{label} is signed, but {'it is not a lock' if lock is None else 'its lock has no version'}, so that an "
            "older one could take its place.",
            hint="Lock it again with `klein-setup manifest lock --sign KEY`.",
            path=label,
        )
    if lock.expires is None:
        return lock.version
    today, locked_on, expires = day_after(0), _day(lock.locked_on, label), _day(lock.expires, label)
    clock = f"this machine's clock says {today} (UTC)"
    if today > expires:
        raise LockExpiredError(
            f"{label} has expired: its last day was {expires}, and {clock}.",
            hint="Get the current lock from those who sign it. If the clock is wrong, set it.",
            path=label,
            expires=lock.expires,
            clock=today,
        )
    if day_after(1) < locked_on:  # a day for clocks that know no time zone
        raise LockExpiredError(
            f"{label} was locked on {locked_on} by the clock of the machine that made it, and {clock}: one of the two "
            f"is wrong, so that nobody can say whether {expires}, its last day, is over.",
            hint="Set the clock of this machine. If it is right, those who sign the lock have to set theirs and lock "
            "again.",
            path=label,
            locked_on=lock.locked_on,
            clock=today,
        )
    return lock.version


def _day(text: str, label: str) -> str:
    if _is_day(text):
        return text
    raise ManifestError(f"{label}: {text} is not a day of the calendar.", hint="Lock it again.", file=label)


def _is_day(text: str) -> bool:
    year, month, day = map(int, text.split("-"))
    return year > 0 and 0 < month < 13 and 0 < day <= monthrange(year, month)[1]


def check_not_older(before: AcceptedLock | None, now: AcceptedLock, *, label: str) -> None:
    """Raise LockRollbackError for a lock that is older than one accepted before, or another one of its version."""
    if before is None or now.version > before.version or (now.version, now.sha256) == (before.version, before.sha256):
        return
    known = f"version {before.version} was accepted here on {before.accepted_on}"
    what = (
        f"{label} is version {now.version}, and {known}: somebody may be offering an old lock"
        if now.version < before.version
        else f"{label} is version {now.version} with other content: {known} with the SHA-256 {before.sha256}"
    )
    raise LockRollbackError(
        f"{what}.",
        hint="Get the current lock. To go back on purpose, sign the old state again with a higher version "
        "(`manifest lock --lock-version N`), or accept this one on this machine with `klein-setup manifest accept "
        "FILE --verify-with KEY`.",
        path=label,
        accepted=before.version,
        observed=now.version,
    )


def next_version(replaced: Lock | None) -> int:
    """Return the version of a lock that takes the place of another.

    >>> next_version(None)
    1

    Raises
    ------
    UsageError
        The other has the largest version there is.
    """
    version = 1 if replaced is None else (replaced.version or 0) + 1
    if version > LARGEST_LOCK_VERSION:
        raise UsageError(
            f"The lock that is replaced has version {LARGEST_LOCK_VERSION}, after which none comes.",
            hint="Give the new lock another name with --output, and name it on every machine.",
        )
    return version


def parse_expiry(text: str, day_after: DayAfter) -> str:
    """Return the last day of a lock, as an ISO date.

    Parameters
    ----------
    text : str
        A number of days from today, "90d", or a date, "2027-03-31".
    day_after : callable
        This machine's clock.

    Raises
    ------
    ValueError
        It is none of them, over, or further away than ten years; the message says which.
    """
    days = re.fullmatch(r"([0-9]{1,5})d", text, re.ASCII)
    if days is not None:
        day = day_after(int(days[1]))
    elif re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
        day = text
    else:
        message = f"{text!r} is neither a number of days like 90d nor a date like 2027-03-31"
        raise ValueError(message)
    if not _is_day(day):
        message = f"{text!r} is not a day of the calendar"
        raise ValueError(message)
    if day < day_after(0):
        message = f"{text!r} is over: this machine's clock says {day_after(0)} (UTC)"
        raise ValueError(message)
    if day > day_after(_LONGEST_DAYS):
        message = f"{text!r} is more than ten years away, which protects from nothing"
        raise ValueError(message)
    return day
