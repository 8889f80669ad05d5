"""A `Report` as the one JSON document that ``--json`` prints.

The document always has the same keys, whatever happened.  What is not known is null, an empty
string or an empty object, never a zero.  Adding a key is free; renaming, removing or retyping one
raises ``SCHEMA_VERSION``.  Nothing is printed here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypedDict

from provisioner import __version__
from provisioner.core.errors import KleinError
from provisioner.core.events import Event, PlanMade, StepFinished, StepStarted
from provisioner.core.models import (
    Basis,
    Check,
    CheckStatus,
    ComfyTarget,
    Damage,
    FetchFile,
    FilesPlan,
    Finding,
    FolderLink,
    LinkConsent,
    Manifest,
    Outcome,
    OutcomeStatus,
    PatchFile,
    PatchWay,
    SpaceNeed,
    Target,
    TrustedBy,
)
from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.core.redact import redact
from provisioner.plan.steps import (
    FILE_STEPS,
    STEPS,
    GetComfyUI,
    HostWhen,
    KeepComfyUI,
    Plan,
    Remove,
    Step,
    UpdateComfyUI,
    download_of,
    place_of,
    replaced_by,
)
from provisioner.report.json_value import JsonValue, json_line, json_object
from provisioner.report.outcome import (
    EnvironmentResult,
    Report,
    ReportStatus,
    RunFacts,
    all_errors,
    all_findings,
    exit_status_of,
    next_command,
)
from provisioner.report.web_addresses import source_page

if TYPE_CHECKING:  # most runs have neither
    from provisioner.comfyui.checkout_models import ComfyCheckout
    from provisioner.report.transfer_record import TransferRecord
    from provisioner.snapshot.setup_snapshot import OnShelf

SCHEMA_VERSION = 2


class VersionsEntry(TypedDict):
    """What ran, and what it found; null where the run did not look at it."""

    klein_setup: str
    python: str  # the one that runs klein-setup
    comfyui: str | None
    torch: str | None


class ManifestEntry(TypedDict):
    """Which manifest and set the run is about; empty strings before one was read."""

    id: str
    sha256: str
    set: str
    set_because: str  # why this set; empty where it was named or not chosen


class SignedLockEntry(TypedDict):
    """The lock whose signature was verified."""

    name: str  # of its file, as it was signed
    version: int
    expires: str | None  # ISO date
    key_id: str  # SHA-256 of the public key


class TargetEntry(TypedDict):
    """Where the files go: ``comfyui`` or ``hf_cache``, and the folder; empty before a plan."""

    kind: Literal["comfyui", "hf_cache", ""]
    path: str


class TotalsEntry(TypedDict):
    """Bytes of the whole set; null before a plan."""

    size: int | None
    bytes_to_fetch: int | None
    bytes_estimated: int | None  # the part of it that comes from tables: ComfyUI, torch, packages
    bytes_saved: int | None


class ErrorEntry(TypedDict):
    """One error with its facts."""

    code: str
    message: str
    hint: str | None
    exit_status: int
    context: dict[str, JsonValue]


class OutcomeEntry(TypedDict):
    """What came of one step."""

    status: OutcomeStatus
    detail: str
    bytes_fetched: int
    seconds: float
    started_s: float | None  # after the first step of the run began; null where it did not begin
    error: ErrorEntry | None


class StepEntry(TypedDict):
    """One step of the plan; ``outcome`` is null when it was not reached."""

    kind: str
    path: str
    destination: str
    artifact: str | None  # null for a step that is not about a model file
    reason: str
    replaces: str | None  # why what is there has to go
    size: int | None
    bytes_to_fetch: int
    is_estimate: bool  # of ``bytes_to_fetch``
    way: PatchWay | None  # of ``patch-file``
    blocks: list[int] | None  # of ``patch-file``: the blocks that are replaced
    outcome: OutcomeEntry | None


class DamageEntry(TypedDict):
    """Where a file differs from content whose block digests are known."""

    block_size: int
    bad_blocks: list[int]
    trusted_by: TrustedBy  # whose digests those are


class CheckEntry(TypedDict):
    """One artifact compared with what was on disk when the plan was made."""

    path: str
    destination: str
    artifact: str
    status: CheckStatus
    basis: Basis  # what the status is based on
    expected_size: int
    expected_sha256: str  # of the content that is right: where several are accepted, of the one that is there
    observed_size: int | None
    observed_sha256: str | None
    source_url: str | None  # a page about the file, for people
    identity: str | None
    damage: DamageEntry | None


class FindingEntry(TypedDict):
    """One thing the user should know."""

    code: str
    severity: Literal["warning", "problem"]  # a problem makes ``verify`` exit with 1
    message: str
    path: str | None
    hint: str | None


class SpaceEntry(TypedDict):
    """What the plan needs of one file system."""

    path: str
    needed_bytes: int
    free_bytes: int
    is_enough: bool


class LinkEntry(TypedDict):
    """A link that leads out of the folder the user named, and behind which a step writes, moves or deletes."""

    path: str
    leads_to: str
    consent: LinkConsent  # "option" (--follow-links), "remembered" or "no": then install asks, or refuses


class ClaimEntry(TypedDict):
    """One check of the rehearsal that passed."""

    claim: str
    seen: str


class ShippedEntry(TypedDict):
    """One manifest that was listed, shown or checked."""

    id: str
    title: str
    sha256: str
    sets: list[str]


class LicenceEntry(TypedDict):
    """The licence of the models: ``details.licence``."""

    name: str
    url: str


class ComfyUIEntry(TypedDict):
    """ComfyUI as it was found, or left: ``details.comfyui``; null where something is not known."""

    path: str | None
    version: str | None
    commit: str | None
    has_local_changes: bool | None
    custom_nodes: list[str]


class SnapshotEntry(TypedDict):
    """One snapshot of ``snapshot list``; null where it is damaged, or has no such part."""

    name: str
    size: int  # bytes
    problem: str | None  # why it cannot be used
    taken_at: str | None
    reason: str | None
    is_proven: bool  # an image was generated with it
    target: str | None
    set: str | None
    comfyui: str | None  # versions
    torch: str | None


class FileTimesEntry(TypedDict):
    """What one file's time went into."""

    path: str
    seconds: dict[str, float]  # by phase, as ``file-progress`` events name them


class TransfersEntry(TypedDict):
    """How the model files came: ``details.transfers``."""

    interval_s: float
    received_bytes: list[int]  # in each interval from the first byte on; at most 240
    files: list[FileTimesEntry]


class HostUseEntry(TypedDict):
    """A host that the run would contact, and what for."""

    host: str  # ``*.hf.co`` stands for every host below that name
    port: int
    what: str
    when: HostWhen  # ``redirect``: where another host sends a download
    proxy: str | None  # through which it is reached, without its login


class HostsEntry(TypedDict):
    """Every host that the run would contact: ``details.hosts`` of ``plan --hosts``."""

    uses: list[HostUseEntry]
    open_ended: list[str]  # hosts that may send a download on to others, which only they know


class ConfigEntry(TypedDict):
    """The user's own defaults for options, and the file that they are in, or would be."""

    file: str
    settings: dict[str, JsonValue]


class ReportDocument(TypedDict):
    """The document of ``--json``: always these keys."""

    schema_version: int
    command: str
    status: ReportStatus
    exit_status: int
    klein_setup: str  # its version; also in ``versions``
    host: str  # name of the computer; empty where it has none
    started_at: str | None  # UTC, ISO 8601, to the millisecond
    ended_at: str | None
    seconds: float | None
    versions: VersionsEntry
    machine: dict[str, JsonValue]  # empty where the run did not look at it
    manifest: ManifestEntry
    target: TargetEntry
    totals: TotalsEntry
    steps: list[StepEntry]
    checks: list[CheckEntry]
    findings: list[FindingEntry]
    space: list[SpaceEntry]
    links: list[LinkEntry]
    errors: list[ErrorEntry]
    next_command: str | None  # ready to paste
    details: dict[str, JsonValue]


def document(
    report: Report, *, run: RunFacts | None = None, secrets: Iterable[str] = (), program: Program = KLEIN_SETUP
) -> ReportDocument:
    """Return the ``--json`` document of a report: JSON values only, redacted, always the same keys.

    Parameters
    ----------
    report : Report
        A run, finished or not; ``plan``, ``manifest`` and ``machine`` may be missing.
    run : RunFacts, optional
        Where and when it was made; None: not known.
    secrets : iterable of str
        Values to mask wherever they stand, beyond what ``redact`` knows by its shape.
    """
    hidden = tuple(secrets)
    plan = report.plan
    return {
        "schema_version": SCHEMA_VERSION,
        "command": report.command,
        "status": report.status,
        "exit_status": report.exit_status,
        "klein_setup": __version__,
        "host": redact(run.host, hidden) if run else "",
        "started_at": run.started_at if run else None,
        "ended_at": run.ended_at if run else None,
        "seconds": run.seconds if run else None,
        "versions": _versions_entry(report),
        "machine": json_object(report.machine, hidden) if report.machine else {},
        "manifest": _manifest_entry(report),
        "target": _target_entry(plan.target, hidden) if plan else {"kind": "", "path": ""},
        "totals": _totals_entry(plan),
        "steps": _step_entries(report, hidden),
        "checks": [_check_entry(check, hidden) for check in plan.checks] if plan else [],
        "findings": [finding_entry(finding, hidden) for finding in all_findings(report)],
        "space": [_space_entry(need, hidden) for need in plan.space] if plan else [],
        "links": [_link_entry(link, hidden) for link in plan.links] if plan else [],
        "errors": _error_entries(report, hidden),
        "next_command": _redacted_or_none(next_command(report, program), hidden),
        "details": json_object(_details(report), hidden),
    }


def _versions_entry(report: Report) -> VersionsEntry:
    """Return the versions that this run found; what it installed counts where that step is done."""
    found = dict(_comfyui_versions(report))
    if isinstance(report.environment, EnvironmentResult) and report.environment.receipt is not None:
        found |= dict(report.environment.receipt.versions)
    found |= dict(report.seen_versions)
    if report.smoke_test is not None:
        found |= dict(report.smoke_test.versions)
    return {
        "klein_setup": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "comfyui": _redacted_or_none(found.get("comfyui"), ()),
        "torch": _redacted_or_none(found.get("torch"), ()),
    }


def _comfyui_versions(report: Report) -> Iterable[tuple[str, str]]:
    for step in report.plan.steps if report.plan else ():
        if isinstance(step, KeepComfyUI) and step.version is not None:
            yield "comfyui", step.version
    for outcome in report.outcomes:
        if isinstance(outcome.step, (GetComfyUI, UpdateComfyUI)) and outcome.status == "done":
            yield "comfyui", outcome.step.release.version
    if report.comfyui is not None and report.comfyui.version is not None:
        yield "comfyui", report.comfyui.version


def _redacted_or_none(text: str | None, secrets: tuple[str, ...]) -> str | None:
    return None if text is None else redact(text, secrets)


def _manifest_entry(report: Report) -> ManifestEntry:
    manifest = report.plan.manifest if report.plan else report.manifest
    return {
        "id": manifest.id if manifest else "",
        "sha256": manifest.sha256 if manifest else "",
        "set": report.plan.set.id if report.plan else "",
        "set_because": report.plan.choice.because if report.plan and report.plan.choice else "",
    }


def _target_entry(target: Target, secrets: tuple[str, ...]) -> TargetEntry:
    if isinstance(target, ComfyTarget):
        return {"kind": "comfyui", "path": redact(str(target.models), secrets)}
    return {"kind": "hf_cache", "path": redact(str(target.cache), secrets)}


def _totals_entry(plan: Plan | FilesPlan | None) -> TotalsEntry:
    if plan is None:
        return {"size": None, "bytes_to_fetch": None, "bytes_estimated": None, "bytes_saved": None}
    return {
        "size": plan.set.size,
        "bytes_to_fetch": plan.bytes_to_fetch,
        "bytes_estimated": plan.estimated_bytes if isinstance(plan, Plan) else 0,
        "bytes_saved": plan.bytes_saved,
    }


def _step_entries(report: Report, secrets: tuple[str, ...]) -> list[StepEntry]:
    """Return the plan's steps with their outcomes, then outcomes of steps that are not in the plan."""
    planned = report.plan.steps if report.plan else ()
    done = [(outcome.step, outcome) for outcome in report.outcomes if isinstance(outcome.step, STEPS)]
    outcomes = dict(done)
    began_s = min((each.started_s for _, each in done if each.started_s is not None), default=0.0)
    steps = dict.fromkeys((*planned, *outcomes))
    return [_step_entry(step, outcomes.get(step), secrets, began_s) for step in steps]


def _step_entry(
    step: Step, outcome: Outcome | None, secrets: tuple[str, ...], began_s: float | None = None
) -> StepEntry:
    place, download, replaced = place_of(step), download_of(step), replaced_by(step)
    is_file = isinstance(step, FILE_STEPS)
    fetched = download.fetched_bytes if download is not None else 0
    label = step.destination.label if isinstance(step, FILE_STEPS) else str(place) if place is not None else ""
    return {
        "kind": step.kind,
        "path": redact(label, secrets),
        "destination": redact(str(place), secrets) if place is not None else "",
        "artifact": step.artifact.id if isinstance(step, FILE_STEPS) else None,
        "reason": redact(step.reason, secrets),
        "replaces": redact(replaced, secrets) if replaced else None,
        "size": step.artifact.size if isinstance(step, FILE_STEPS) else step.size if isinstance(step, Remove) else None,
        "bytes_to_fetch": step.bytes_to_fetch if isinstance(step, (FetchFile, PatchFile)) else fetched,
        "is_estimate": not is_file and fetched > 0,
        "way": step.way if isinstance(step, PatchFile) else None,
        "blocks": list(step.damage.bad_blocks) if isinstance(step, PatchFile) else None,
        "outcome": _outcome_entry(outcome, secrets, began_s) if outcome else None,
    }


def _outcome_entry(outcome: Outcome, secrets: tuple[str, ...], began_s: float | None) -> OutcomeEntry:
    started_s = None if outcome.started_s is None or began_s is None else round(outcome.started_s - began_s, 3)
    return {
        "status": outcome.status,
        "detail": redact(outcome.detail, secrets),
        "bytes_fetched": outcome.bytes_fetched,
        "seconds": round(outcome.seconds, 3),
        "started_s": started_s,
        "error": error_entry(outcome.error, secrets) if outcome.error is not None else None,
    }


def _check_entry(check: Check, secrets: tuple[str, ...]) -> CheckEntry:
    return {
        "path": redact(check.destination.label, secrets),
        "destination": redact(str(check.destination.path), secrets),
        "artifact": check.artifact.id,
        "status": check.status,
        "basis": check.basis,
        "expected_size": check.artifact.size,
        "expected_sha256": _expected_sha256(check),
        "observed_size": check.observed_size,
        "observed_sha256": check.observed_sha256,
        "source_url": _redacted_or_none(source_page(check.artifact), secrets),
        "identity": _redacted_or_none(check.identity, secrets),
        "damage": _damage_entry(check.damage) if check.damage is not None else None,
    }


def _expected_sha256(check: Check) -> str:
    """Return the digest the file should have; of several accepted contents, that of the one that is or was there."""
    here = check.observed_sha256 if check.status == "ok" else check.damage.sha256 if check.damage is not None else None
    accepted = {each.sha256 for each in check.artifact.contents}
    return here if here is not None and here in accepted else check.artifact.sha256


def _damage_entry(damage: Damage) -> DamageEntry:
    return {
        "block_size": damage.block_size,
        "bad_blocks": list(damage.bad_blocks),
        "trusted_by": damage.trusted_by,
    }


def finding_entry(finding: Finding, secrets: tuple[str, ...] = ()) -> FindingEntry:
    """Return one finding as the document shows it."""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "message": redact(finding.message, secrets),
        "path": redact(str(finding.path), secrets) if finding.path is not None else None,
        "hint": _redacted_or_none(finding.hint, secrets),
    }


def _link_entry(link: FolderLink, secrets: tuple[str, ...]) -> LinkEntry:
    return {
        "path": redact(str(link.path), secrets),
        "leads_to": redact(str(link.real), secrets),
        "consent": link.consent,
    }


def _space_entry(need: SpaceNeed, secrets: tuple[str, ...]) -> SpaceEntry:
    return {
        "path": redact(str(need.file_system.path), secrets),
        "needed_bytes": need.needed_bytes,
        "free_bytes": need.file_system.free_bytes,
        "is_enough": need.is_enough,
    }


def _error_entries(report: Report, secrets: tuple[str, ...]) -> list[ErrorEntry]:
    """Return every error; an interrupt, which is no ``Exception``, gets an entry of its own."""
    entries = [error_entry(error, secrets) for error in all_errors(report)]
    if report.status == "interrupted" and not entries:
        entries.append(
            {
                "code": "interrupted",
                "message": "The run was interrupted before its end.",
                "hint": "Run the same command again: it continues from the bytes on disk.",
                "exit_status": report.exit_status,
                "context": {},
            }
        )
    return entries


def error_entry(error: BaseException, secrets: Iterable[str] = ()) -> ErrorEntry:
    """Return one error as the document shows it; an unexpected one has the code ``defect``."""
    hidden = tuple(secrets)
    if isinstance(error, KleinError):
        return {
            "code": error.code,
            "message": redact(str(error), hidden),
            "hint": _redacted_or_none(error.hint, hidden),
            "exit_status": error.exit_status,
            "context": json_object(error.context, hidden),
        }
    return {
        "code": "defect",
        "message": redact(f"{type(error).__name__}: {error}", hidden),
        "hint": None,
        "exit_status": exit_status_of(error),
        "context": {},
    }


def _details(report: Report) -> dict[str, object]:
    """Return the parts that this run had, under the names of the contract."""
    details: dict[str, object] = {}
    if report.manifest_argument is not None:
        details["manifest_argument"] = report.manifest_argument
    if report.more_manifest_arguments:
        details["more_manifest_arguments"] = report.more_manifest_arguments
    if report.rehearsal is not None:
        details["claims"] = [ClaimEntry(claim=each.claim, seen=each.seen) for each in report.rehearsal.checks]
        if report.rehearsal.scratch_folder is not None:
            details["scratch_folder"] = report.rehearsal.scratch_folder
    manifest = report.plan.manifest if report.plan is not None else report.manifest
    signed = report.signed_lock
    if signed is not None:
        expires = manifest.lock.expires if manifest is not None and manifest.lock is not None else None
        details["signed_lock"] = SignedLockEntry(
            name=signed.name, version=signed.version, expires=expires, key_id=signed.key_id
        )
    if manifest is not None:
        details["licence"] = LicenceEntry(name=manifest.licence.name, url=manifest.licence.url)
    if isinstance(report.plan, Plan) and report.plan.pinned:
        details["pinned"] = [str(each) for each in report.plan.pinned]
    if report.comfyui is not None:
        details["comfyui"] = _comfyui_entry(report.comfyui)
    if report.transfers is not None:
        details["transfers"] = _transfers_entry(report.transfers)
    if report.environment is not None:
        details["environment"] = report.environment
    if report.smoke_test is not None:
        from provisioner.report.smoke_test_json import smoke_entry

        details["smoke_test"] = smoke_entry(report.smoke_test)
    if report.cards:
        from provisioner.report.smoke_test_json import card_result_entry

        details["cards"] = [card_result_entry(each) for each in report.cards]
    if report.diagnosis is not None:
        from provisioner.report.diagnosis_json import diagnosis_entry

        details["diagnosis"] = diagnosis_entry(report.diagnosis)
    if report.changes is not None:
        from provisioner.report.changes import changes_entry

        details["changes"] = changes_entry(report.changes)
    if report.backups is not None:
        details["aside"] = report.backups
    if report.command in {"detect", "doctor"} and report.machine is not None:  # null: no build suits it
        details["torch"] = report.torch
    if report.config is not None:
        details["config"] = {"file": report.config.file, "settings": dict(report.config.settings)}
    if report.manifests is not None:
        details["manifests"] = [_shipped_entry(each) for each in report.manifests]
    if report.undone_update is not None:
        details["undo_update"] = report.undone_update
    if report.snapshots is not None:
        details["snapshots"] = [_snapshot_entry(each) for each in report.snapshots]
    if report.snapshot is not None:
        details["snapshot"] = report.snapshot
    if report.snapshot_image is not None:
        details["snapshot_image"] = report.snapshot_image
    if report.not_restored is not None:
        details["not_restored"] = list(report.not_restored)
    if report.scrub is not None:
        details["scrub"] = report.scrub
    if report.server is not None:
        details["server"] = report.server
    if report.page is not None:
        details["page"] = report.page
    if report.fleet is not None:
        details["fleet"] = report.fleet
    if report.bundle is not None:
        details["bundle"] = report.bundle
    if report.hosts is not None:
        details["hosts"] = report.hosts
    if report.given_arguments is not None:
        details["given_arguments"] = report.given_arguments
    return details


def _snapshot_entry(each: OnShelf) -> SnapshotEntry:
    snapshot = each.snapshot
    comfyui = None if snapshot is None else snapshot.comfyui
    environment = None if snapshot is None else snapshot.environment
    return {
        "name": each.name,
        "size": each.size,
        "problem": each.problem,
        "taken_at": None if snapshot is None else snapshot.taken_at,
        "reason": None if snapshot is None else snapshot.reason,
        "is_proven": snapshot is not None and snapshot.is_proven,
        "target": None if snapshot is None else snapshot.target,
        "set": None if snapshot is None else snapshot.set_id,
        "comfyui": None if comfyui is None else comfyui.version,
        "torch": None if environment is None else environment.set.torch,
    }


def _comfyui_entry(checkout: ComfyCheckout) -> ComfyUIEntry:
    return {
        "path": str(checkout.tree) if checkout.tree is not None else None,
        "version": checkout.version,
        "commit": checkout.commit,
        "has_local_changes": checkout.has_local_changes,
        "custom_nodes": list(checkout.custom_nodes),
    }


def _transfers_entry(record: TransferRecord) -> TransfersEntry:
    return {
        "interval_s": record.interval_s,
        "received_bytes": list(record.received_bytes),
        "files": [{"path": each.path, "seconds": {**dict(each.seconds)}} for each in record.files],
    }


def _shipped_entry(manifest: Manifest) -> ShippedEntry:
    sets = [each.id for each in manifest.sets]
    return {"id": manifest.id, "title": manifest.title, "sha256": manifest.sha256, "sets": sets}


# --- events as lines ---------------------------------------------------------------------------


class EventLine(TypedDict):
    """What every line of ``--json=events`` has, beside the name of its ``event``."""

    time: str  # UTC, ISO 8601, to the millisecond
    host: str  # name of the computer
    klein_setup: str  # its version


class PlanMadeLine(EventLine):
    """A plan of the files was made; the steps follow."""

    event: Literal["plan-made"]
    target: TargetEntry
    totals: TotalsEntry
    steps: list[StepEntry]


class StepLine(EventLine):
    """A step begins or ended."""

    event: Literal["step-started", "step-finished"]
    number: int  # from 1
    total: int
    step: StepEntry


def event_line(event: Event, *, time: str, host: str = "", secrets: Iterable[str] = ()) -> str:
    """Return one event as one line of JSON, without the newline, named by its key ``event``.

    Parameters
    ----------
    event : Event
        What happened.
    time : str
        When: UTC, ISO 8601.
    host : str
        Name of the computer.
    secrets : iterable of str
        Values to mask.
    """
    hidden = tuple(secrets)
    about = EventLine(time=time, host=redact(host, hidden), klein_setup=__version__)
    return json_line(_event_entry(event, about, hidden))


def report_line(entry: ReportDocument) -> str:
    """Return the last line of ``--json=events``: the document, as the event ``report``."""
    return json_line({"event": "report", "time": entry["ended_at"], **entry})


def _event_entry(
    event: Event, about: EventLine, secrets: tuple[str, ...]
) -> PlanMadeLine | StepLine | dict[str, object]:
    match event:
        case PlanMade(plan=plan):
            return {
                **about,
                "event": "plan-made",
                "target": _target_entry(plan.target, secrets),
                "totals": _totals_entry(plan),
                "steps": [_step_entry(step, None, secrets) for step in plan.steps],
            }
        case StepStarted(step=step, number=number, total=total):
            shown = _step_entry(step, None, secrets)
            return {**about, "event": "step-started", "number": number, "total": total, "step": shown}
        case StepFinished(step=step, outcome=outcome, number=number, total=total):
            shown = _step_entry(step, outcome, secrets)
            return {**about, "event": "step-finished", "number": number, "total": total, "step": shown}
        case _:
            return {"event": event_name(type(event)), **about, **json_object(event, secrets)}


def event_name(kind: type[object]) -> str:
    """Return the name of an event whose fields say all: ``file-progress`` for FileProgress."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
