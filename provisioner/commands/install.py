"""``klein-setup install``, ``repair`` and ``plan``: look, show the plan, ask, apply it, look again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from provisioner.commands.apply import Applied, apply_plan
from provisioner.commands.choose_environment import environment_folder, with_environment
from provisioner.commands.combination import check_combination, combination_of
from provisioner.commands.inspect_comfyui import ComfyUIInstall, check_comfyui, inspect_comfyui, with_comfyui
from provisioner.commands.look import InstallOptions, plan_run
from provisioner.commands.parts import needs_program
from provisioner.commands.questions import Ask, AskToApply, agree_to_links, ask_about, ask_to_apply, decide_on_token
from provisioner.commands.run import Run, open_run, remember, remember_rate
from provisioner.commands.shared_files import announce_manifests, note_manifests
from provisioner.commands.smoke_test import opening_of, with_smoke_test
from provisioner.commands.snapshot import keep_before, keep_proven
from provisioner.commands.try_requirements import try_requirements
from provisioner.commands.verify import remember_verified, state_now
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK, IntegrityError, KleinError
from provisioner.core.models import Finding
from provisioner.disk.locations import longest_path
from provisioner.files import planner
from provisioner.files.observe import Depth
from provisioner.plan.make_plan import make_plan
from provisioner.plan.steps import (
    FILE_STEPS,
    NODES_LEFT_OUT,
    InstallNodePack,
    MakeEnvironment,
    Plan,
    PlanHosts,
    RepairEnvironment,
)
from provisioner.report.outcome import Report, ReportStatus

if TYPE_CHECKING:
    from provisioner.smoke_test.results import SmokeTest

Command = Literal["install", "repair"]
_DEPTHS: dict[Command, Depth] = {"install": "claims", "repair": "full"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUi:
    """How a run is shown, and how it asks."""

    ask: Ask
    show_plan: Callable[[Plan], None]
    show_smoke: Callable[[SmokeTest], None]
    ask_to_apply: AskToApply | None = None  # None: nobody is there to answer


def run_plan(
    run: Run,
    options: InstallOptions,
    show: Callable[[Plan], None],
    show_hosts: Callable[[PlanHosts], None] | None = None,
) -> Report:
    """Show what `run_install` would do, or only which hosts it would contact; nothing is written."""
    plan = plan_run(run, options, "claims", looks_up_tags=show_hosts is None)
    plan = _with_agreed_packs(plan, options, None)
    hosts = None
    if show_hosts is None:
        show(plan)
    else:
        from provisioner.commands.list_hosts import find_hosts

        show_hosts(hosts := find_hosts(run, plan))
    if run.session.settings.bundle is not None:
        run.session.settings.bundle.check(plan, run.options.manifest)
    _check_names_and_sizes(plan)
    short = [
        Finding(
            code="insufficient-space",
            remedy="by-hand",
            severity="problem",
            message=f"{need.file_system.path} has {need.file_system.free_bytes:,} bytes free and the plan needs "
            f"{need.needed_bytes:,}.",
            hint="Free some space there, or choose a smaller set or another folder.",
        )
        for need in plan.space
        if not need.is_enough
    ]
    report = run.report("plan", "planned", EXIT_OK, plan=plan, findings=tuple(short))
    return with_environment(replace(report, hosts=hosts), plan, None)


def run_install(
    run: Run, options: InstallOptions, ui: RunUi, command: Command = "install", *, depth: Depth | None = None
) -> Report:
    """Make the plan, show it, ask, apply it; return the report of the whole run.

    ``repair`` differs only in that it reads every byte of the files before it plans, unless `depth` says less.

    Raises
    ------
    KleinError
        Before anything was changed: something cannot be done here, no space, offline, no answer.
    """
    run, plan = _agreed(run, options, ui, command, depth or _DEPTHS[command])
    agree_to_links(run, plan.links, ui.ask)
    ask_about(run, plan, ui.ask)
    decide_on_token(run, plan, ui.ask)
    if run.session.settings.bundle is not None:
        run.session.take_from(run.session.settings.bundle.narrowed(plan))
        run.session.settings.bundle.prepare(plan)
    try_requirements(run, options, plan)
    if plan.changes:
        what = command if options.snapshot is None else f"going back to {options.snapshot.name}"
        keep_before(run, what, options.environment.where, plan.checks)
    if "files" in options.parts:
        announce_manifests(run)
    applied = apply_plan(run, options, plan, show_smoke=ui.show_smoke)
    remember_rate(run, applied.outcomes)
    comfyui: ComfyUIInstall | None = None
    found: tuple[Finding, ...] = ()
    if {"environment", "smoke"} & options.parts and needs_program(run.wanted):
        comfyui = inspect_comfyui(run)
        environment = environment_folder(run, options.environment.where)
        found = check_combination(comfyui, combination_of(run, comfyui, environment), environment)
        found = found if comfyui is None else (*check_comfyui(comfyui), *found)
    report = _report(run, command, plan, applied, found)
    report = with_comfyui(report, comfyui)
    if "files" in options.parts and not applied.files.steps:
        remember(run)
        note_manifests(run)
        if report.exit_status == EXIT_OK:
            remember_verified(run, state_now(run, report, comfyui, options.environment.where))
    if report.smoke_test is not None and report.exit_status == EXIT_OK:
        keep_proven(run, report.smoke_test, comfyui, options.environment.where, applied.files.checks or None)
    if report.smoke_test is None:
        return report
    return replace(report, opening=opening_of(run, comfyui, environment_folder(run, options.environment.where)))


def _agreed(run: Run, options: InstallOptions, ui: RunUi, command: Command, depth: Depth) -> tuple[Run, Plan]:
    """Plan, show it and ask, until the folder is the right one; return the run and the plan that were agreed to."""
    while True:
        plan = plan_run(run, options, depth)
        is_asked = ui.ask_to_apply is not None and not run.options.assume_yes
        plan = _with_agreed_packs(plan, options, ui.ask if is_asked else None)
        if plan.steps or plan.notes:
            ui.show_plan(plan)
        if run.session.is_offline:
            planner.check_offline(plan.files)
        if run.session.settings.bundle is not None:
            run.session.settings.bundle.check(plan, run.options.manifest)
        _check_names_and_sizes(plan)
        planner.check_space(plan.space)
        folder = ask_to_apply(run, plan, ui.ask_to_apply, is_repair=command == "repair")
        if folder is None:
            return run, plan
        run = open_run(run.session, replace(run.options, comfyui=folder))


def _with_agreed_packs(plan: Plan, options: InstallOptions, ask: Ask | None) -> Plan:
    """Return the plan with those of its packs of custom nodes that somebody agreed to by name."""
    if not any(isinstance(step, InstallNodePack) for step in plan.steps):
        return plan
    from provisioner.commands.manifest_packs import agreed_packs  # most manifests pin none

    return agreed_packs(plan, options.custom_nodes, ask, keeps_image=options.are_parts_named)


def _check_names_and_sizes(plan: Plan) -> None:
    """Raise where a file could not be opened under its name, or not be as large as it is."""
    made = (step.where for step in plan.steps if isinstance(step, (MakeEnvironment, RepairEnvironment)))
    planner.check_path_lengths(plan.files.checks, longest_path(), next(made, None))
    planner.check_file_sizes(plan.files)


def _report(run: Run, command: Command, plan: Plan, applied: Applied, found: tuple[Finding, ...]) -> Report:
    """Return the report of a run that looked again at the end."""
    errors: list[KleinError] = applied.errors
    if not errors and applied.files.steps:
        errors = [_not_empty(applied)]
    # A file that another run brought while this one waited for its turn is no step of this run.
    reached = {outcome.step for outcome in applied.outcomes}
    steps = [step for step in plan.steps if errors or not isinstance(step, FILE_STEPS) or step in reached]
    final = make_plan(
        applied.files,
        steps,
        findings=(*applied.findings, *found, *(each for each in plan.findings if each.code == NODES_LEFT_OUT)),
        notes=plan.notes,
        links=plan.links,
        choice=plan.choice,
    )
    problems = any(each.severity == "problem" for each in final.findings)
    status: ReportStatus = "failed" if errors else "findings" if problems else "ok"
    report = run.report(
        command,
        status,
        errors[0].exit_status if errors else EXIT_FINDINGS if problems else EXIT_OK,
        plan=final,
        outcomes=tuple(applied.outcomes),
        errors=tuple(errors),
    )
    report = with_environment(report, plan, applied.receipt)
    return report if applied.smoke is None else with_smoke_test(report, applied.smoke)


def _not_empty(applied: Applied) -> IntegrityError:
    steps = applied.files.steps
    return IntegrityError(
        f"Every step was done, but a second check still finds {len(steps)} to do: {steps[0].reason}.",
        hint="Something else changes this folder; stop it and run the same command again.",
    )
