"""``--sign`` and ``--verify-with``: a lock with its signature beside it, read once, verified, and then parsed.

The bytes that are verified are the bytes that are parsed: the file is not read a second time.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.output_file import write_file
from provisioner.core.errors import EXIT_OK, LockSignatureError, SigningKeyError, UnreadableError
from provisioner.core.models import AcceptedLock, Manifest
from provisioner.disk.accepted_locks import accept_lock, accepted_before, read_accepted
from provisioner.disk.locations import state_folder
from provisioner.disk.read_json import read_at_most
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import decode_manifest, is_shipped, read_manifest_bytes
from provisioner.report.outcome import Report
from provisioner.signing.lock_statement import check_fresh, check_not_older, check_payload, lock_payload
from provisioner.signing.sigstore_bundle import LARGEST_BUNDLE, bundle_text, parse_bundle

if TYPE_CHECKING:
    from provisioner.signing.ec_keys import PrivateKey

PASSWORD, PASSWORD_FILE = "KLEIN_SETUP_KEY_PASSWORD", "KLEIN_SETUP_KEY_PASSWORD_FILE"
ENDING = ".sig"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedLock:
    """A lock whose signature is good and which has not expired."""

    manifest: Manifest
    identity: AcceptedLock
    label: str


def day_after(days: int) -> str:
    """Return the date so many days from today by this machine's clock, ISO in UTC."""
    return (datetime.now(tz=timezone.utc).date() + timedelta(days=days)).isoformat()


def signature_path(lock: Path) -> Path:
    """Return where the signature of a file is: beside it."""
    return lock.with_name(lock.name + ENDING)


def read_signed(name: str, key: Path) -> SignedLock:
    """Return a lock whose signature, version and expiry are good; what was accepted before is not asked for.

    Parameters
    ----------
    name : str
        What ``--manifest`` says.
    key : Path
        The public key.

    Raises
    ------
    SigningKeyError
        The key cannot be used.
    LockSignatureError, LockExpiredError
        The lock must not be used.
    ManifestError, UsageError
        There is no such lock, or it is wrong in itself.
    """
    from provisioner.signing.ec_keys import read_public_key

    public = read_public_key(key.expanduser())
    content, label = read_manifest_bytes(name)
    if is_shipped(name):
        raise LockSignatureError(
            f"{name} comes with klein-setup and is no signed lock, and only those are taken (--verify-with, or "
            "verify-with in klein-setup.toml).",
            hint="Name the lock with --manifest FILE, or do without --verify-with.",
        )
    envelope = parse_bundle(_read_signature(Path(label)), label=f"{label}{ENDING}")
    file_name = Path(label).name
    check_payload(public.verify(envelope, label=label), file_name, content, label=label)
    manifest = parse_manifest(decode_manifest(content, label), file=label)
    version = check_fresh(manifest, day_after, label=label)
    identity = AcceptedLock(
        name=file_name,
        key_id=public.id,
        version=version,
        sha256=hashlib.sha256(content).hexdigest(),
        accepted_on=day_after(0),
    )
    return SignedLock(manifest=manifest, identity=identity, label=label)


def accept_signed(name: str, key: Path, *, notice: Callable[[str], None]) -> SignedLock:
    """Return a signed lock, and record its version: an older one is refused from now on.

    Raises
    ------
    LockRollbackError
        A newer one was accepted before.
    KleinError
        As `read_signed`; and StorageError where the record cannot be read or written.
    """
    found = read_signed(name, key)
    accept_lock(
        state_folder(),
        found.identity,
        check=lambda before: check_not_older(before, found.identity, label=found.label),
        notice=notice,
    )
    return found


def check_signed(name: str, key: Path) -> Manifest:
    """Return the manifest of a signed lock that could be accepted, and record nothing; raises as `accept_signed`."""
    found = read_signed(name, key)
    before = accepted_before(read_accepted(state_folder()), found.identity)
    check_not_older(before, found.identity, label=found.label)
    return found.manifest


def run_accept(name: str, key: Path, *, say: Callable[[str], None]) -> Report:
    """Accept a signed lock although a newer one was accepted before: a person goes back on purpose.

    Raises
    ------
    KleinError
        As `read_signed`; and StorageError where the record cannot be written.
    """
    found = read_signed(name, key)
    accept_lock(state_folder(), found.identity, check=None, notice=say)
    say(
        f"{found.label}: version {found.identity.version} is accepted on this machine from now on, and every newer one."
    )
    return Report(command="manifest accept", status="ok", exit_status=EXIT_OK, manifest=found.manifest)


def _read_signature(lock: Path) -> bytes:
    path = signature_path(lock)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LockSignatureError(f"{path} is not a regular file.", hint="Copy the signature again.", path=str(path))
        with path.open("rb") as stream:
            return read_at_most(stream, LARGEST_BUNDLE)
    except FileNotFoundError as error:
        raise LockSignatureError(
            f"{lock} is not signed: there is no {path.name} beside it, and --verify-with asks for one.",
            hint="Copy both files from the place that publishes them; `manifest lock --sign KEY` writes both.",
            path=str(lock),
        ) from error
    except OSError as error:
        raise UnreadableError(
            f"{path} cannot be read: {error.strerror or error}.", hint="Check its rights.", path=str(path)
        ) from error


# --- signing -----------------------------------------------------------------------------------


def read_signing_key(path: Path, environ: Mapping[str, str], ask: Callable[[str], str | None]) -> PrivateKey:
    """Return the private key that ``--sign`` names.

    Parameters
    ----------
    path : Path
        The PEM file.
    environ : mapping
        May hold the password, or name the file that does.
    ask : callable
        Asks a person for the password, without showing it; None where nobody is there.

    Raises
    ------
    SigningKeyError
        It cannot be used.
    """
    from provisioner.signing.ec_keys import read_private_key

    return read_private_key(path.expanduser(), lambda: _password(path, environ, ask))


def _password(path: Path, environ: Mapping[str, str], ask: Callable[[str], str | None]) -> str | None:
    if environ.get(PASSWORD):
        return environ[PASSWORD]
    named = environ.get(PASSWORD_FILE)
    if not named:
        return ask(f"Password of {path}: ")
    try:
        with Path(named).expanduser().open("rb") as stream:
            return stream.readline(4096).decode("utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SigningKeyError(
            f"The password of the key cannot be read from {named}: {reason}.",
            hint=f"Correct the path in {PASSWORD_FILE}; its first line is the password.",
            path=named,
        ) from error


def write_signature(key: PrivateKey, lock: Path, content: bytes) -> Path:
    """Write the signature of a lock beside it; return its path.

    Raises
    ------
    NotWritableError
        It cannot be written there.
    """
    envelope = key.sign(lock_payload(lock.name, content))
    return write_file(bundle_text(envelope).encode("ascii"), signature_path(lock))
