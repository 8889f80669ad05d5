"""The whole of a setup in order: ComfyUI, the environment, the files, the packages, the picture.

What each part does is its own module's knowledge; here is only what comes when, and what is not done after a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.comfyui_part import (
    ComfyUIInstall,
    ComfyUIOptions,
    apply_comfyui,
    check_comfyui,
    inspect_comfyui,
    install_packages,
    refuse_hopeless,
)
from provisioner.commands.environment_part import (
    EnvironmentOptions,
    EnvironmentPlan,
    ask_about_strangers,
    folder_of,
    plan_for,
    run_environment,
    show_environment,
)
from provisioner.commands.files_part import Ask, Run, ask_about_target, run_install, run_repair
from provisioner.commands.parts import can_generate
from provisioner.commands.smoke_test import SmokeTestOptions, run_smoke_test
from provisioner.commands.verify import remember_verified, take_snapshot
from provisioner.core.errors import EXIT_OK
from provisioner.core.models import FilesPlan, Finding
from provisioner.report.outcome import Report

if TYPE_CHECKING:
    from provisioner.commands.parts import Part
    from provisioner.smoke_test.results import SmokeTest
    from provisioner.torch.builds import App


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUi:
    """How a run is seen and heard."""

    ask: Ask
    say: Callable[[str], None]
    show_plan: Callable[[FilesPlan], None]
    show_smoke: Callable[[SmokeTest], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """What the command line asks for, part by part."""

    parts: frozenset[Part]
    comfyui: ComfyUIOptions = field(default_factory=ComfyUIOptions)
    environment: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    smoke: SmokeTestOptions = field(default_factory=SmokeTestOptions)
    are_parts_named: bool = False  # by --only: what cannot be done is an error then, else it is left out and said


@dataclass
class _Setup:
    """One run, with what was found out about its parts."""

    run: Run
    options: InstallOptions
    ui: RunUi
    comfyui: ComfyUIInstall | None
    environment: Path
    plan: EnvironmentPlan | None  # where the environment is ours to make
    can_generate: bool


def run_setup(run: Run, options: InstallOptions, ui: RunUi, command: str = "install") -> Report:
    """Plan, ask, apply and prove every part; return the report of the whole run.

    Raises
    ------
    KleinError
        A part could not be done; what was done before it stays, and the next run goes on from there.
    """
    setup = _look(run, options, ui)
    if setup.plan is not None:
        ask_about_strangers(run, setup.plan, ui.ask)
    report = _files(setup, command) if "files" in options.parts else _without_files(setup, command)
    if report.status == "failed":
        return report
    if setup.plan is not None:
        report = run_environment(run, command, report, options.environment, ask=ui.ask, say=ui.say, is_announced=True)
        run.session.environments.clear_leftovers(setup.environment, progress=run.session.notice)
        install_packages(run, _app(run), _tree(setup), setup.environment, use_uv=options.environment.use_uv, say=ui.say)
    comfyui = None if setup.comfyui is None else inspect_comfyui(run)
    if comfyui is not None:
        report = _with_findings(report, check_comfyui(comfyui))
    if setup.can_generate and report.exit_status == EXIT_OK:
        report = run_smoke_test(
            run,
            options.smoke,
            comfyui=comfyui,
            environment=setup.environment,
            show=ui.show_smoke,
            report=report,
        )
    if report.exit_status == EXIT_OK and "files" in options.parts:
        remember_verified(run, take_snapshot(run, report, comfyui, options.environment.where))
    return report


def show_setup(run: Run, report: Report, options: InstallOptions, ui: RunUi) -> Report:
    """Say what every part needs; nothing is written."""
    setup = _look(run, options, ui)
    if setup.plan is None:
        return report
    return show_environment(run, report, options.environment)


def _look(run: Run, options: InstallOptions, ui: RunUi) -> _Setup:
    """Find out about ComfyUI and the environment, say what will be done, and refuse what cannot be."""
    from provisioner.disk.locations import data_folder

    wants_comfyui = bool({"environment", "smoke"} & options.parts) and can_generate(run.wanted)
    comfyui = inspect_comfyui(run, options.comfyui) if wants_comfyui else None
    environment = folder_of(run.target, options.environment, data_folder)
    can_equip = "environment" in options.parts and _can_equip(run, comfyui, options)
    obstacle = None if can_equip else _no_python(run, comfyui, options, environment)
    obstacle = obstacle or _no_comfyui(comfyui, options)
    setup = _Setup(
        run=run,
        options=options,
        ui=ui,
        comfyui=comfyui,
        environment=environment,
        plan=plan_for(run, options.environment) if can_equip else None,  # raises here what no later step could mend
        can_generate="smoke" in options.parts and (obstacle is None or options.are_parts_named),
    )
    if comfyui is not None and "environment" in options.parts:
        refuse_hopeless(comfyui)
        if comfyui.has_one:
            ui.say(comfyui.sentence())
    if "environment" in options.parts and setup.plan is None and comfyui is not None and comfyui.checkout.python:
        ui.say(f"Environment: ComfyUI's own, {comfyui.checkout.python}, stays as it is; the picture will prove it.")
    if setup.plan is not None:
        ui.say(setup.plan.sentence())
    if "smoke" in options.parts and not setup.can_generate:
        ui.say(f"Picture: none, for {obstacle}.")
    return setup


def _can_equip(run: Run, comfyui: ComfyUIInstall | None, options: InstallOptions) -> bool:
    environment = options.environment
    is_asked_for = environment.where is not None or environment.python is not None or environment.torch.tag != "auto"
    if environment.torch.tag == "none":
        return False
    if comfyui is None or is_asked_for:
        return True
    if not comfyui.has_one:
        return options.are_parts_named
    return (
        comfyui.is_ours_to_equip
        or run.session.environments.observe(folder_of(run.target, environment, Path)).receipt is not None
    )


def _no_comfyui(comfyui: ComfyUIInstall | None, options: InstallOptions) -> str | None:
    """Return the clause that says that there is no ComfyUI to draw with, or None."""
    if comfyui is None or comfyui.has_one or options.smoke.server is not None:
        return None
    return "there is no ComfyUI here; name a running one with --server URL"


def _no_python(run: Run, comfyui: ComfyUIInstall | None, options: InstallOptions, environment: Path) -> str | None:
    """Return the clause that says that there is no Python to draw with, and none will be made; or None."""
    if "smoke" not in options.parts or options.smoke.server is not None:
        return None
    if comfyui is not None and (not comfyui.has_one or comfyui.checkout.python is not None):
        return None
    if run.session.environments.observe(environment).python is not None:
        return None
    return f"there is no Python in {environment} and none is to be installed; make that environment and run smoke-test"


def _files(setup: _Setup, command: str) -> Report:
    run = run_repair if command == "repair" else run_install
    return run(setup.run, setup.ui.ask, setup.ui.show_plan, before=lambda: _get_comfyui(setup))


def _without_files(setup: _Setup, command: str) -> Report:
    run = setup.run
    if _makes_comfyui(setup):
        ask_about_target(run, setup.ui.ask)
    _get_comfyui(setup)
    return run.report(command, "ok", EXIT_OK)


def _makes_comfyui(setup: _Setup) -> bool:
    return setup.comfyui is not None and "environment" in setup.options.parts and setup.comfyui.plan.action != "none"


def _get_comfyui(setup: _Setup) -> None:
    if setup.comfyui is not None and _makes_comfyui(setup):
        apply_comfyui(setup.run, setup.comfyui, setup.options.comfyui)


def _app(run: Run) -> App:
    return "comfyui" if run.wanted.target == "comfyui" else "diffusers"


def _tree(setup: _Setup) -> Path | None:
    return None if setup.comfyui is None else setup.comfyui.folder


def _with_findings(report: Report, findings: tuple[Finding, ...]) -> Report:
    known = {(each.code, each.path) for each in report.findings}
    return replace(
        report, findings=(*report.findings, *(each for each in findings if (each.code, each.path) not in known))
    )
