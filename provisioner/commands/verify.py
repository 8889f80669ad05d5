"""``klein-setup verify``: what changed since the last full check, what was checked, and what is wrong now."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner import __version__
from provisioner.commands.choose_environment import environment_folder, verify_environment
from provisioner.commands.combination import check_combination, combination_of
from provisioner.commands.comfyui_image import check_server
from provisioner.commands.image_options import SmokeTestOptions
from provisioner.commands.inspect_comfyui import ComfyUIInstall, check_comfyui, inspect_comfyui, with_comfyui
from provisioner.commands.parts import can_generate, needs_program
from provisioner.commands.run import Run
from provisioner.commands.smoke_test import generate_image, with_smoke_test
from provisioner.commands.snapshot import keep_proven
from provisioner.commands.verify_all import check_pairing, look_at_everything
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK, KleinError, SmokeTestError, UsageError
from provisioner.core.models import ComfyTarget, Finding
from provisioner.report.changes import (
    Change,
    ChangesSince,
    CheckedState,
    LookedAt,
    SeenFile,
    SeenGpu,
    checks_for,
    compare,
    without_files,
)
from provisioner.report.outcome import Report, next_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from provisioner.smoke_test.results import SmokeTest

    ShowChanges = Callable[[Sequence[Change], tuple[str, ...], Sequence[Finding], str | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What the command line asks for."""

    check_all: bool = False  # every other file of the models folder, too
    environment: Path | None = None
    wants_image: bool = True  # where something changed that an image depends on
    smoke: SmokeTestOptions = field(default_factory=SmokeTestOptions)


def run_full_verify(
    run: Run,
    files: Report,
    options: VerifyOptions,
    *,
    show_changes: ShowChanges,
    show_smoke: Callable[[SmokeTest], None],
) -> Report:
    """Check environment and ComfyUI too; where something changed since the last full check, generate an image.

    Parameters
    ----------
    run : Run
        Where, and what is wanted.
    files : Report
        What is right of the files, every byte of which was read.
    options : VerifyOptions
        What the command line asks for.
    show_changes, show_smoke : callable
        Told what a person may want to see.

    Raises
    ------
    KleinError
        Looking itself failed.
    """
    report = replace(files, machine=run.session.machine)
    report = verify_environment(run, report, options.environment)
    if report.plan is not None and any(check.status != "ok" for check in report.plan.checks):
        report = with_problems(report, check_pairing(run))
    if options.check_all:
        report = with_problems(report, look_at_everything(run))
    comfyui = inspect_comfyui(run) if needs_program(run.wanted) else None
    if comfyui is not None and comfyui.checkout.tree is not None:
        report = with_comfyui(with_problems(report, check_comfyui(comfyui)), comfyui)
    if comfyui is not None or run.manifest.custom_nodes:
        from provisioner.commands.manifest_packs import check_packs  # files alone have none

        report = with_problems(report, check_packs(run, comfyui or inspect_comfyui(run)))
    if can_generate(run.wanted):
        environment = environment_folder(run, options.environment)
        combination = combination_of(run, comfyui, environment)
        report = with_problems(report, check_combination(comfyui, combination, environment))
    if options.smoke.server is not None:
        report = with_problems(report, check_server(run, options.smoke.server))
    before = _last_check(run)
    if before is None:
        return report
    now = state_now(run, report, comfyui, options.environment)
    report = with_problems(report, tuple(_gone(before, now, comfyui, environment_folder(run, options.environment))))
    changes = compare(before, now)
    checked = list(checks_for(changes))
    if _should_generate(run, changes, report, comfyui, options):
        report = _generated(run, report, comfyui, options, show_smoke)
    return _told(run, report, changes, tuple(checked), before, now, show_changes)


def _gone(
    before: CheckedState, now: CheckedState, comfyui: ComfyUIInstall | None, environment: Path
) -> Iterator[Finding]:
    """Yield what was verified and is gone now; a comparison knows only what both times had."""
    lost = set(before.looked_at) - set(now.looked_at)
    if "environment" in lost:
        yield Finding(
            code="environment-gone",
            severity="problem",
            remedy="install-environment",
            message=f"The environment {environment} was verified earlier; now it is gone or its Python does not start.",
            path=environment,
            hint="Name it with --environment DIR, or make it again with `klein-setup install --only environment`.",
        )
    if "comfyui" in lost:
        is_fetched_again = comfyui is not None and comfyui.plan.action == "clone"
        yield Finding(
            code="comfyui-gone",
            severity="problem",
            remedy="install" if is_fetched_again else "by-hand",
            message="ComfyUI was verified with these files earlier; now its program is gone.",
            hint="Run `klein-setup install`, which fetches it again, or name the folder it went to with --comfyui DIR."
            if is_fetched_again
            else "Put it back, or name the folder it went to with --comfyui DIR.",
        )


def with_problems(report: Report, findings: tuple[Finding, ...]) -> Report:
    """Return the report with findings added; a problem among them makes the run one with findings."""
    known = {(each.code, each.path) for each in report.findings}
    added = tuple(each for each in findings if (each.code, each.path) not in known)
    if not any(each.severity == "problem" for each in added):
        return replace(report, findings=(*report.findings, *added))
    return replace(
        report,
        status="findings" if report.exit_status == EXIT_OK else report.status,
        exit_status=report.exit_status or EXIT_FINDINGS,
        findings=(*report.findings, *added),
    )


def _should_generate(
    run: Run, changes: tuple[Change, ...], report: Report, comfyui: ComfyUIInstall | None, options: VerifyOptions
) -> bool:
    moved = any(each.matters for each in changes) and can_generate(run.wanted)
    has_program = comfyui is not None and (comfyui.checkout.tree is not None or options.smoke.server is not None)
    return moved and options.wants_image and has_program and report.exit_status == EXIT_OK


def _generated(
    run: Run, report: Report, comfyui: ComfyUIInstall | None, options: VerifyOptions, show: Callable[[SmokeTest], None]
) -> Report:
    try:
        where = environment_folder(run, options.environment)
        smoke = generate_image(run, options.smoke, comfyui=comfyui, environment=where, show=show)
        done = with_smoke_test(report, smoke)
        if done.exit_status == EXIT_OK and report.plan is not None:
            keep_proven(run, smoke, comfyui, where, report.plan.checks)
        return done
    except (SmokeTestError, UsageError) as error:  # the second: nothing is left to generate it with
        return replace(report, status="failed", exit_status=error.exit_status, errors=(*report.errors, error))


def _told(
    run: Run,
    report: Report,
    changes: tuple[Change, ...],
    checked: tuple[str, ...],
    before: CheckedState,
    now: CheckedState,
    show_changes: ShowChanges,
) -> Report:
    """Show the page where something changed or is wrong, and record a state that is verified."""
    plan = report.plan
    findings = report.findings if plan is None else (*report.findings, *plan.findings)
    mend = next_command(report, run.session.settings.program)
    shown = _not_shown_below(changes, report)
    if shown:
        show_changes(shown, checked, (*findings, *map(_no_image, report.errors)), mend)
    if changes and report.exit_status == EXIT_OK:
        remember_verified(run, now)
    since = ChangesSince(changes=changes, since=before.taken_at, checked=checked, mend=mend)
    return replace(report, changes=since)


def _no_image(error: Exception) -> Finding:
    """Return what the page says where no image was generated; the report's error says why."""
    hint = error.hint if isinstance(error, KleinError) else None
    return Finding(
        code="no-picture",
        severity="problem",
        remedy="by-hand",
        message="No correct image was generated with what is installed now.",
        hint=hint,
    )


def _not_shown_below(changes: tuple[Change, ...], report: Report) -> tuple[Change, ...]:
    """Return the changes without those of files that have a row of their own in the table that follows."""
    wrong = () if report.plan is None else [check for check in report.plan.checks if check.status != "ok"]
    return without_files(changes, {check.destination.label for check in wrong})


# --- the last check --------------------------------------------------------------------------------


def remember_verified(run: Run, state: CheckedState) -> None:
    """Keep a verified state beside the receipts unless it is there; an unwritable folder is no error."""
    if not isinstance(run.target, ComfyTarget):
        return
    from provisioner.report.last_check import write_last_check

    before = _last_check(run)
    if before is not None and set(before.looked_at) == set(state.looked_at) and not compare(before, state):
        return
    try:
        write_last_check(run.session.root(run.target.models), state)
    except KleinError as error:
        run.session.notice(str(error))


def _last_check(run: Run) -> CheckedState | None:
    if not isinstance(run.target, ComfyTarget):
        return None
    from provisioner.report.last_check import read_last_check

    return read_last_check(run.target.models)[0]


def state_now(run: Run, report: Report, comfyui: ComfyUIInstall | None, environment: Path | None) -> CheckedState:
    """Return the state of everything this run looked at."""
    machine = report.machine or run.machine
    where = environment_folder(run, environment)
    seen = run.session.environments.observe(where) if where.is_dir() else None
    versions = {} if seen is None else {each.name: each.version for each in seen.distributions}
    checkout = comfyui.checkout if comfyui is not None and comfyui.checkout.tree is not None else None
    looked_at: list[LookedAt] = ["files"]
    looked_at += ["machine"] if machine is not None else []
    looked_at += ["environment"] if versions else []
    looked_at += ["comfyui"] if checkout is not None else []
    return CheckedState(
        taken_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        klein_setup=__version__,
        looked_at=tuple(looked_at),
        driver_version=machine.driver_version if machine else None,
        cuda_driver_version=machine.cuda_driver_version if machine else None,
        gpus=tuple(SeenGpu(name=each.name, uuid=each.uuid) for each in machine.gpus) if machine else (),
        os_release=machine.os_release if machine else None,
        python_version=seen.python.version if seen is not None and seen.python is not None else None,
        torch=versions.get("torch"),
        torchvision=versions.get("torchvision"),
        torchaudio=versions.get("torchaudio"),
        comfyui_version=checkout.version if checkout else None,
        comfyui_commit=checkout.commit if checkout else None,
        comfyui_has_local_changes=checkout.has_local_changes if checkout else None,
        custom_nodes=checkout.custom_nodes if checkout else (),
        wanted=f"{run.manifest.id}/{run.wanted.id}",
        files=_files(report),
        extra_model_paths_sha256=_config_digest(run),
    )


def _files(report: Report) -> tuple[SeenFile, ...]:
    if report.plan is None:
        return ()
    return tuple(
        SeenFile(
            label=check.destination.label,
            size=check.observed_size
            if check.observed_size is not None or check.status != "ok"
            else check.artifact.size,
            sha256=check.observed_sha256 or (check.artifact.sha256 if check.status == "ok" else None),
            is_damaged=check.status == "hash-mismatch" and check.observed_sha256 is None,
        )
        for check in report.plan.checks
    )


def _config_digest(run: Run) -> str | None:
    config = run.target.config if isinstance(run.target, ComfyTarget) else None
    try:
        return None if config is None else hashlib.sha256(config.read_bytes()).hexdigest()
    except OSError:
        return None
