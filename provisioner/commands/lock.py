"""``manifest lock`` and ``--locked``: writing down what one machine holds, and refusing another that differs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.choose_environment import environment_folder
from provisioner.commands.inspect_comfyui import inspect_comfyui
from provisioner.commands.output_file import write_file
from provisioner.commands.pin_tags import pin_tags
from provisioner.commands.run import Run
from provisioner.commands.signed_locks import read_signing_key, signature_path, write_signature
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK, ManifestError, UsageError
from provisioner.core.models import Check, Lock
from provisioner.core.program import KLEIN_SETUP
from provisioner.environment.state import FAMILY
from provisioner.manifest.lock_file import Verified, drift_from, locked_text, refuse_drift
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text
from provisioner.report.outcome import Report
from provisioner.signing.lock_statement import next_version

if TYPE_CHECKING:
    from provisioner.signing.ec_keys import PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOptions:
    """What the command line asks for."""

    output: Path
    environment: Path | None = None
    key: Path | None = None  # the private key to sign with
    version: int | None = None  # None: one more than the lock that is replaced
    expires: str | None = None  # ISO date


def run_lock(
    run: Run, options: LockOptions, *, say: Callable[[str], None], ask_password: Callable[[str], str | None]
) -> Report:
    """Read every byte of the set, and write the locked manifest if all of it is right; sign it if asked to.

    Raises
    ------
    NotWritableError
        A file cannot be written there.
    ManifestError
        The digests of the blocks are not known.
    SigningKeyError
        The key cannot be used.
    UsageError
        There is a file in the place of the lock that is none, so that no version follows from it; or another file in
        the place of the workflow that the manifest names.
    """
    key = None if options.key is None else read_signing_key(options.key, run.session.environ, ask_password)
    workflow = _workflow_to_bring(run, options.output)
    version = options.version or next_version(replaced_lock(options.output.expanduser()))
    if not run.session.is_offline:
        for source in pin_tags(run, run.wanted.artifacts):
            say(f"{source} is locked: the tag may move.")
    report = run_verify(run, is_quick=False)
    plan = report.plan
    if plan is None or any(check.status != "ok" for check in plan.checks):
        say("Nothing was locked: files are wrong or missing.")
        return run.report("manifest lock", "findings", EXIT_FINDINGS, plan=plan)
    verified = verified_files(run, plan.checks)
    lock = replace(_machine_lock(run, options.environment), version=version, expires=options.expires)
    content = locked_text(run.manifest, run.wanted, verified, lock).encode("utf-8")
    path = write_file(content, options.output)
    if workflow is not None:
        say(f"{write_file(*workflow)} is the workflow that it names: keep both together.")
    blocks = sum(len(each.blocks) for each in verified.values())
    say(f"{path} names {len(verified)} files and {blocks} blocks of 16 MiB.")
    repair = KLEIN_SETUP.command("repair", ["--manifest", path.name])
    say(f"Elsewhere, `{repair}` fetches only the blocks that are wrong.")
    sign_lock(key, path, content, lock, say)
    return run.report("manifest lock", "ok", EXIT_OK, plan=plan)


def _workflow_to_bring(run: Run, output: Path) -> tuple[bytes, Path] | None:
    """Return the workflow that the manifest names and where it belongs, None where there is none or it is there."""
    from provisioner.commands.workflow_image import workflow_beside

    own, found = run.wanted.workflow, workflow_beside(run)
    if own is None or found is None:
        return None
    place = output.expanduser().absolute().parent / own.name
    if not place.exists():
        return found.data, place
    with contextlib.suppress(OSError):
        if place.read_bytes() == found.data:
            return None
    raise UsageError(
        f"The manifest names the workflow {own.name}, and {place} is another file.",
        hint="Move that file away, or name an --output in another folder.",
        path=str(place),
    )


def verified_files(run: Run, checks: Iterable[Check]) -> dict[str, Verified]:
    """Return the digests of files that were read to the last byte and are right, by the id of the artifact."""
    verified = {}
    for check in checks:
        stamp = run.session.store.stamp(check.destination.path)
        if stamp is not None:
            file_digest = run.observer.digest_of(check.destination.path, stamp, check.artifact.name)
            verified[check.artifact.id] = Verified(
                size=file_digest.size, sha256=file_digest.sha256, blocks=file_digest.blocks
            )
    return verified


def sign_lock(key: PrivateKey | None, path: Path, content: bytes, lock: Lock, say: Callable[[str], None]) -> None:
    """Write the signature of a lock that was just written, if there is a key; say for how long it is good."""
    if key is None:
        if signature_path(path).exists():
            say(f"{signature_path(path)} is the signature of the lock before, not of this one: sign with --sign KEY.")
        return
    signature = write_signature(key, path, content)
    until = f"until {lock.expires}" if lock.expires else "for ever, as --expires was not given"
    say(f"{signature} signs version {lock.version}, good {until}, with the key {key.id[:16]}...")


def replaced_lock(output: Path) -> Lock | None:
    """Return the lock that a new one takes the place of; raises UsageError where something else lies there."""
    if not output.is_file():
        return None
    try:
        text, label = read_manifest_text(str(output.absolute()))
        return parse_manifest(text, file=label).lock
    except ManifestError as error:
        raise UsageError(
            f"{output} is there and is no lock, so that it does not say which version comes next.",
            hint="Name the version with --lock-version N, or another --output FILE.",
            path=str(output),
        ) from error


def check_locked(run: Run, environment: Path | None) -> None:
    """Raise unless the manifest is locked and what is installed here is what it was locked with (``--locked``)."""
    torch, backend, wheels = _torch_of(run, environment)
    commit, _ = _comfyui_of(run)
    lock = run.manifest.lock
    differences = (
        ()
        if lock is None
        else drift_from(lock, torch_backend=backend, torch=torch, comfyui_commit=commit, torch_wheels=wheels)
    )
    refuse_drift(run.manifest, differences)


def _machine_lock(run: Run, environment: Path | None) -> Lock:
    torch, backend, wheels = _torch_of(run, environment)
    commit, version = _comfyui_of(run)
    return Lock(
        manifest_sha256=run.manifest.sha256,
        locked_on=time.strftime("%Y-%m-%d", time.gmtime()),
        torch_backend=backend,
        torch=torch.partition("+")[0] if torch else None,
        torch_wheels=wheels,
        comfyui_commit=commit,
        comfyui_version=version,
    )


def _torch_of(run: Run, environment: Path | None) -> tuple[str | None, str | None, tuple[tuple[str, str], ...]]:
    """Return version and build of torch in the environment of ours, and the files it was installed from.

    None where there is none; no files where this user's runs did not install them, or where they changed since.
    """
    where = environment_folder(run, environment)
    seen = run.session.environments.observe(where) if where.is_dir() else None
    if seen is None or seen.receipt is None:
        return None, None, ()
    torch = seen.distribution("torch")
    packages, changes, _ = run.session.environments.compare(where, seen, reads_files=False) or (None, (), None)
    changed = {each.package for each in changes}
    wheels = tuple(
        (each.file_name, each.sha256)
        for each in (packages.packages if packages is not None else ())
        if each.name in FAMILY and each.name not in changed and each.sha256 is not None
    )
    return (None if torch is None else torch.version), seen.receipt.torch_backend, wheels


def _comfyui_of(run: Run) -> tuple[str | None, str | None]:
    comfyui = inspect_comfyui(run)
    if comfyui is None or comfyui.checkout.tree is None:
        return None, None
    version = comfyui.checkout.version
    is_plain = version is not None and all(part.isdigit() for part in version.split("."))
    return comfyui.checkout.commit, version if is_plain else None
