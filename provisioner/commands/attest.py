"""``verify --attest`` and ``attestation``: what a full check found right as a signed statement, and reading it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.choose_environment import environment_folder
from provisioner.commands.inspect_comfyui import inspect_comfyui
from provisioner.commands.lock import verified_files
from provisioner.commands.output_file import write_file
from provisioner.commands.parts import needs_program
from provisioner.commands.run import Run, named_path
from provisioner.commands.verify import state_now
from provisioner.core.errors import EXIT_OK, HashMismatchError, IntegrityError, UnreadableError
from provisioner.core.json_reader import Fields, as_dict
from provisioner.core.models import ComfyTarget
from provisioner.disk.last_run import last_report_time, read_last_report
from provisioner.disk.locations import state_folder
from provisioner.disk.read_json import read_at_most
from provisioner.environment.package_list import requirements_digest
from provisioner.report.attestation import LARGEST_ATTESTATION, Attestation, Verified, parse_statement, statement_text
from provisioner.report.outcome import Report
from provisioner.signing.sigstore_bundle import bundle_text, parse_bundle

if TYPE_CHECKING:
    from provisioner.signing.ec_keys import PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestOptions:
    """What the command line asks for."""

    output: Path
    key: PrivateKey | None = None  # None: the statement alone
    environment: Path | None = None


def attest(run: Run, report: Report, options: AttestOptions, *, say: Callable[[str], None]) -> None:
    """Write the statement about a full check that found everything right; say so where it did not.

    Raises
    ------
    NotWritableError
        The file cannot be written there.
    HashMismatchError
        A file was changed meanwhile.
    """
    plan, machine = report.plan, report.machine
    if report.exit_status != EXIT_OK or plan is None or machine is None:
        say("Nothing was attested: something is wrong, or could not be checked.")
        return
    found = verified_files(run, plan.checks)
    for each in run.wanted.artifacts:
        if each.id not in found or found[each.id].sha256 not in {content.sha256 for content in each.contents}:
            raise HashMismatchError(
                f"{each.name} was changed while it was verified, so that nothing was attested.",
                hint="Run the same command again when nothing else writes there.",
            )
    comfyui = inspect_comfyui(run) if needs_program(run.wanted) else None
    image, made_at = _last_image(run, report)
    text = statement_text(
        Verified(
            manifest=run.manifest,
            set_id=run.wanted.id,
            files={
                f"{each.folder}/{each.name}" if each.folder else each.name: found[each.id].sha256
                for each in run.wanted.artifacts
            },
            machine=machine,
            state=state_now(run, report, comfyui, options.environment),
            packages_sha256=_packages_digest(run, options.environment),
            image_sha256=image,
            image_made_at=made_at,
        )
    )
    data = text.encode("utf-8")
    signed = data if options.key is None else bundle_text(options.key.sign(data)).encode("ascii")
    path = write_file(signed, options.output)
    how = "is not signed" if options.key is None else f"is signed with the key {options.key.id[:16]}..."
    say(f"{path} attests {len(found)} files and {how}")


def _packages_digest(run: Run, environment: Path | None) -> str | None:
    """Return the digest of the list of an environment's packages; None where this user's runs have none."""
    where = environment_folder(run, environment)
    seen = run.session.environments.observe(where) if where.is_dir() else None
    listed = None if seen is None else run.session.environments.compare(where, seen, reads_files=False)
    if listed is None:
        return None
    return requirements_digest(f"{each.name}=={each.version} {each.sha256 or '-'}" for each in listed[0].packages)


def _last_image(run: Run, report: Report) -> tuple[str | None, str | None]:
    """Return SHA-256 and time of the last test image of this target: of this run, else of an earlier one."""
    made = report.smoke_test
    if made is not None and made.image is not None:
        return made.image.sha256, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kept = Fields(read_last_report(state_folder()) or {})
    details = as_dict(kept.values.get("details"))
    earlier = as_dict(details.get("last_image"))
    target = run.target
    folder = str(target.models if isinstance(target, ComfyTarget) else named_path(target))
    for where, when, smoke in (
        (kept.values.get("target"), kept.values.get("ended_at"), details.get("smoke_test")),
        (earlier.get("target"), earlier.get("made_at"), earlier.get("smoke_test")),
    ):
        digest = as_dict(as_dict(smoke).get("picture")).get("sha256")
        if as_dict(where).get("path") == folder and isinstance(digest, str):
            return digest, str(when or last_report_time(state_folder()))
    return None, None


# --- reading -----------------------------------------------------------------------------------


def run_attestation(files: tuple[Path, ...], key: Path, *, say: Callable[[str], None]) -> Report:
    """Verify signed attestations and say what each attests; one that is wrong makes it fail.

    Raises
    ------
    SigningKeyError
        The key cannot be used.
    UnreadableError
        A file cannot be read.
    """
    from provisioner.signing.ec_keys import read_public_key

    public = read_public_key(key.expanduser())
    wrong: list[IntegrityError] = []
    for path in files:
        data = _read(path)
        try:
            payload = public.verify(parse_bundle(data, label=str(path)), label=str(path))
            say(f"{path}: {_said(parse_statement(payload, label=str(path)))}")
        except IntegrityError as error:
            wrong.append(error)
    status = wrong[0].exit_status if wrong else EXIT_OK
    return Report(command="attestation", status="failed" if wrong else "ok", exit_status=status, errors=tuple(wrong))


def _read(path: Path) -> bytes:
    try:
        with path.expanduser().open("rb") as stream:
            return read_at_most(stream, LARGEST_ATTESTATION)
    except OSError as error:
        raise UnreadableError(
            f"{path} cannot be read: {error.strerror or error}.", hint="Check the path.", path=str(path)
        ) from error


def _said(found: Attestation) -> str:
    lock = "" if found.lock_version is None else f", lock version {found.lock_version}"
    return (
        f"signed; {found.time}: {len(found.files)} files of {found.manifest}{lock} are correct "
        f"(manifest {found.manifest_sha256[:16]}...; {_said_of_gpus(found)}; "
        f"torch {found.torch or 'not there'}; ComfyUI {(found.comfyui_commit or 'not known')[:12]})"
    )


def _said_of_gpus(found: Attestation) -> str:
    gpus = ", ".join(found.gpus) or "no GPU"
    return f"{gpus}, by a recording and not by a look at the machine" if found.is_recorded else gpus
