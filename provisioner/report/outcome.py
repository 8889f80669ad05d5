"""The result of a run: its exit status, its findings and errors, and the next command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from provisioner.core.errors import (
    EXIT_DEFECT,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    KleinError,
    ModelNotListedError,
    SmokeTestError,
)
from provisioner.core.models import (
    AcceptedLock,
    BackupEntry,
    ComfyTarget,
    Config,
    Finding,
    Machine,
    Manifest,
    Outcome,
)
from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.plan.steps import Plan, PlanHosts
from provisioner.report.remedies import remedy_verb

if TYPE_CHECKING:  # most runs have few of these parts, and `verify --quick` has none
    from provisioner.comfyui.checkout_models import ComfyCheckout
    from provisioner.environment.package_list import PackageChange
    from provisioner.environment.state import EnvironmentReceipt
    from provisioner.files.scrub_order import ScrubSummary
    from provisioner.report.changes import ChangesSince
    from provisioner.report.fleet_comparison import Fleet
    from provisioner.report.transfer_record import TransferRecord
    from provisioner.smoke_test.diagnosis import Diagnosis
    from provisioner.smoke_test.results import CardResult, SmokeTest
    from provisioner.snapshot.setup_snapshot import OnShelf, SetupSnapshot
    from provisioner.torch.builds import TorchChoice

DEFAULT_MANIFEST = "flux2-klein-4b"
"""What ``--manifest`` means when it is not given."""

KEPT_COMMANDS = frozenset({"install", "verify", "repair", "smoke-test", "diagnose"})
"""The runs whose report is kept."""

ReportStatus = Literal["ok", "planned", "findings", "failed", "interrupted"]
EnvironmentAction = Literal["make", "put-back", "make-anew", "none"]

# --- the report --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentResult:
    """What an environment needed, and what it is now."""

    path: Path
    action: EnvironmentAction
    reason: str  # a clause
    torch: TorchChoice
    receipt: EnvironmentReceipt | None  # None: there is no environment of ours yet


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCheck:
    """Whether an environment of ours still is what it was when it was verified."""

    path: Path
    holds: bool
    packages: PackagesCheck | None = None  # None: no run of this user has listed what was installed in it


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagesCheck:
    """How the packages of an environment differ from the list of what was installed, every file read."""

    listed: int  # number of packages
    listed_at: str  # ISO 8601, UTC: when something was last installed
    is_outdated: bool  # the application has other requirements now than those that were resolved
    changed: tuple[PackageChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoneUpdate:
    """An update of ComfyUI that was undone; a version is None where it is not known."""

    path: Path
    left: str | None  # the version that was there
    version: str | None  # the one that is there now
    commit: str
    branch: str | None  # None: no branch has this commit


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalCheck:
    """One check of the rehearsal that passed."""

    claim: str  # what is so
    seen: str  # what was observed


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalResult:
    """What the rehearsal checked."""

    checks: tuple[RehearsalCheck, ...]
    scratch_folder: Path | None = None  # where its files are; None: they were deleted


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledFile:
    """One file in the zip of ``doctor``."""

    name: str
    what: str  # what it holds, as a clause
    size: int  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """One file that is not in the zip."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The zip that ``doctor`` wrote."""

    path: Path
    size: int  # bytes
    files: tuple[BundledFile, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Where and when a run was made; times are UTC, ISO 8601, to the millisecond: ``2026-11-26T13:46:46.123Z``."""

    host: str  # name of the computer; empty where the system has none
    started_at: str
    ended_at: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedServer:
    """The ComfyUI that ``start`` started or found."""

    url: str
    was_running: bool
    template: str | None  # ComfyUI's own workflow for the model
    log_path: Path | None  # None where it ran before


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How ComfyUI is opened after a test image."""

    command: str  # ready to paste
    url: str
    template: str | None  # the title of its own workflow for the model, or else its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run, as it is shown and as ``--json`` prints it.

    The parts below `errors` are None where the run had no such part.
    """

    command: str
    status: ReportStatus
    exit_status: int
    machine: Machine | None = None
    manifest: Manifest | None = None
    plan: Plan | None = None
    outcomes: tuple[Outcome, ...] = ()
    findings: tuple[Finding, ...] = ()
    errors: tuple[Exception, ...] = ()
    manifest_argument: str | None = None  # what the user gave for the manifest; may be a file
    more_manifest_arguments: tuple[str, ...] = ()  # the others that were given
    key_argument: str | None = None  # the public key it was verified with, an absolute path
    signed_lock: AcceptedLock | None = None  # the manifest, where its signature was verified
    set_argument: str | None = None  # the set that the user named
    given_arguments: tuple[str, ...] | None = None  # of a run that another one continues or applies
    environment: EnvironmentResult | EnvironmentCheck | None = None
    smoke_test: SmokeTest | None = None
    cards: tuple[CardResult, ...] = ()  # of ``smoke-test --gpu``: each that it names
    diagnosis: Diagnosis | None = None  # of ``diagnose``; of one that was interrupted, so far
    changes: ChangesSince | None = None
    rehearsal: RehearsalResult | None = None
    backups: tuple[BackupEntry, ...] | None = None
    torch: TorchChoice | None = None  # of ``detect``
    manifests: tuple[Manifest, ...] | None = None
    config: Config | None = None  # of ``detect``: the user's own defaults for options
    undone_update: UndoneUpdate | None = None
    snapshots: tuple[OnShelf, ...] | None = None  # of ``snapshot list``
    snapshot: SetupSnapshot | None = None  # that was shown, exported or restored
    snapshot_image: Path | None = None  # its small image
    not_restored: tuple[str, ...] | None = None  # of ``snapshot restore``, in sentences
    scrub: ScrubSummary | None = None  # of ``--for``: what was read in that time
    transfers: TransferRecord | None = None  # how the files came
    comfyui: ComfyCheckout | None = None  # as it was found, or left
    opening: Opening | None = None
    server: StartedServer | None = None
    page: Path | None = None  # where ``report`` or ``fleet report`` wrote it
    fleet: Fleet | None = None  # of ``fleet report``
    bundle: Bundle | None = None  # what ``doctor`` wrote
    hosts: PlanHosts | None = None  # of ``plan --hosts``
    seen_versions: tuple[tuple[str, str], ...] = ()  # ("comfyui", "0.33.0"), ("torch", "2.14.1+cu130"): looked at


# --- from what happened to a Report ------------------------------------------------------------


def exit_status_of(error: BaseException) -> int:
    """Return the exit status an error ends the program with.

    Errors raised on purpose carry theirs; an interrupt is 130; ``SystemExit`` keeps its number;
    anything else is an internal error, 70.
    """
    if isinstance(error, KleinError):
        return error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return _system_exit_status(error)
    return EXIT_DEFECT


def _system_exit_status(error: SystemExit) -> int:
    """Return what the interpreter itself would exit with."""
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


def report_for_error(
    command: str,
    error: BaseException,
    *,
    machine: Machine | None = None,
    manifest: Manifest | None = None,
    plan: Plan | None = None,
    outcomes: tuple[Outcome, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> Report:
    """Return the report of a run that `error` ended, with whatever was known by then."""
    exit_status = exit_status_of(error)
    is_interrupted = exit_status in {EXIT_INTERRUPTED, EXIT_TERMINATED}
    return Report(
        command=command,
        status="interrupted" if is_interrupted else "failed",
        exit_status=exit_status,
        machine=machine,
        manifest=manifest,
        plan=plan,
        outcomes=outcomes,
        findings=findings,
        errors=(error,) if isinstance(error, Exception) else (),
    )


def all_findings(report: Report) -> tuple[Finding, ...]:
    """Return the findings of the plan and of the report, each once, in that order."""
    planned = report.plan.findings if report.plan else ()
    return tuple(dict.fromkeys((*planned, *report.findings)))


def all_errors(report: Report) -> tuple[Exception, ...]:
    """Return the errors of the report and of its outcomes, each once."""
    errors = list(report.errors)
    for outcome in report.outcomes:
        if outcome.error is not None and not any(outcome.error is known for known in errors):
            errors.append(outcome.error)
    return tuple(errors)


_ONLY_SHOWN = ("--json", "--quiet", "--verbose", "--no-color", "--dry-run", "--hosts")
"""Options that change only what is shown."""

# --- what to run next --------------------------------------------------------------------------


def next_command(report: Report, program: Program = KLEIN_SETUP) -> str | None:
    """Return the command to run next, ready to paste; None when there is none.

    After a plan or an interruption it has the same arguments as this run, where the report has them.
    Otherwise the manifest is named as the user gave it.
    """
    verb = _next_verb(report)
    given = report.given_arguments
    if verb is None:
        return None
    if report.status in {"planned", "interrupted", "failed"} and given is not None:
        first = verb.partition(" ")[0]  # of "bundle create" the second word is among what was given
        return program.command(first, [word for word in given if not word.startswith(_ONLY_SHOWN)])
    return None if report.plan is None else program.command(verb, _options(report, report.plan))


def _next_verb(report: Report) -> str | None:
    """Return the command to run after this report, without its options."""
    match report.status:
        case "findings":
            return None if report.command in {"install", "repair"} else _remedy_verb(report)
        case "interrupted":
            return report.command
        case "planned":
            given = report.given_arguments or ()
            is_elsewhere = any(word.partition("=")[0] == "--machine" for word in given)  # a plan for another machine
            has_work = report.plan is not None and report.plan.to_do and not is_elsewhere
            return ("uninstall" if report.command == "uninstall" else "install") if has_work else None
        case "ok":
            return "verify" if report.command in {"install", "repair"} else None
        case "failed":
            return "diagnose" if _is_to_be_diagnosed(report) else None


def _is_to_be_diagnosed(report: Report) -> bool:
    """Whether a ComfyUI that was started for the test image made none, or a bad one, and no file is missing."""
    if report.command not in {"install", "repair", "smoke-test"}:
        return False
    given = report.given_arguments or ()
    if any(word.startswith(("--server", "--hf-cache", "--gpu=all", "--workflow")) for word in given) or "all" in given:
        return False  # not ours to start again, several GPUs, or another graph
    if report.plan is not None and not isinstance(report.plan.target, ComfyTarget):
        return False
    failed = [each for each in all_errors(report) if isinstance(each, SmokeTestError)]
    return bool(failed) and not any(isinstance(each, ModelNotListedError) for each in failed)


def _remedy_verb(report: Report) -> str | None:
    plan = report.plan
    if plan is not None and plan.checks and all(check.status == "missing" for check in plan.checks):
        return "install"
    files_are_wrong = plan is not None and bool(plan.file_steps or any(check.status != "ok" for check in plan.checks))
    return remedy_verb(all_findings(report), files_are_wrong=files_are_wrong)


def _options(report: Report, plan: Plan) -> list[str]:
    """Return the options that make the next command mean the same files in the same place."""
    words: list[str] = []
    manifest = report.manifest_argument or plan.manifest.id
    more = report.more_manifest_arguments
    if manifest != DEFAULT_MANIFEST or more:
        words += [word for each in (manifest, *more) for word in ("--manifest", each)]
    if report.key_argument is not None:
        words += ["--verify-with", report.key_argument]
    if report.set_argument is not None:
        words += ["--set", plan.set.id]
    if isinstance(plan.target, ComfyTarget):
        return [*words, "--comfyui", str(plan.target.given)]
    return [*words, "--hf-cache", str(plan.target.cache)]
