"""The whole of a setup in order: ComfyUI, the environment, the files, the packages, the picture.

What each part does is its own module's knowledge; here is only what comes when, and what is not done after a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.comfyui_part import (
    Program,
    ProgramWish,
    apply_program,
    check_program,
    install_packages,
    look_at_program,
    refuse_hopeless,
)
from provisioner.commands.environment_part import (
    EnvironmentPlan,
    EnvironmentWish,
    ask_about_strangers,
    folder_of,
    plan_for,
    run_environment,
    show_environment,
)
from provisioner.commands.files_part import Ask, Job, ask_about_target, run_install, run_repair
from provisioner.commands.parts import can_draw
from provisioner.commands.smoke_test import SmokeWish, run_smoke_test
from provisioner.commands.verify import remember_proven, take_snapshot
from provisioner.core.errors import EXIT_OK
from provisioner.core.models import Finding, Plan, Report
from provisioner.core.records import dataclass, field, replace

if TYPE_CHECKING:
    from provisioner.commands.parts import Part
    from provisioner.smoke_test.results import SmokeTest
    from provisioner.torch.builds import App


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """How a run is seen and heard."""

    ask: Ask
    say: Callable[[str], None]
    show_plan: Callable[[Plan], None]
    show_smoke: Callable[[SmokeTest], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupWish:
    """What the command line asks for, part by part."""

    parts: frozenset[Part]
    program: ProgramWish = field(default_factory=ProgramWish)
    environment: EnvironmentWish = field(default_factory=EnvironmentWish)
    smoke: SmokeWish = field(default_factory=SmokeWish)
    are_parts_named: bool = False  # by --only: what cannot be done is an error then, else it is left out and said


@dataclass
class _Setup:
    """One run, with what was found out about its parts."""

    job: Job
    wish: SetupWish
    face: Face
    program: Program | None
    environment: Path
    plan: EnvironmentPlan | None  # where the environment is ours to make
    can_draw: bool


def run_setup(job: Job, wish: SetupWish, face: Face, command: str = "install") -> Report:
    """Plan, ask, apply and prove every part; return the report of the whole run.

    Raises
    ------
    KleinError
        A part could not be done; what was done before it stays, and the next run goes on from there.
    """
    setup = _look(job, wish, face)
    if setup.plan is not None:
        ask_about_strangers(job, setup.plan, face.ask)
    report = _files(setup, command) if "files" in wish.parts else _without_files(setup, command)
    if report.status == "failed":
        return report
    if setup.plan is not None:
        report = run_environment(job, command, report, wish.environment, ask=face.ask, say=face.say, is_announced=True)
        job.bench.environments.clear_leftovers(setup.environment, progress=job.bench.notice)
        install_packages(job, _app(job), _tree(setup), setup.environment, has_uv=wish.environment.has_uv, say=face.say)
    program = None if setup.program is None else look_at_program(job)
    if program is not None:
        report = _with_findings(report, check_program(program))
    if setup.can_draw and report.exit_status == EXIT_OK:
        report = run_smoke_test(
            job,
            wish.smoke,
            program=program,
            environment=setup.environment,
            show=face.show_smoke,
            report=report,
        )
    if report.exit_status == EXIT_OK and "files" in wish.parts:
        remember_proven(job, take_snapshot(job, report, program, wish.environment.where))
    return report


def show_setup(job: Job, report: Report, wish: SetupWish, face: Face) -> Report:
    """Say what every part needs; nothing is written."""
    setup = _look(job, wish, face)
    if setup.plan is None:
        return report
    return show_environment(job, report, wish.environment)


def _look(job: Job, wish: SetupWish, face: Face) -> _Setup:
    """Find out about ComfyUI and the environment, say what will be done, and refuse what cannot be."""
    from provisioner.disk.locations import data_folder

    wants_program = bool({"environment", "smoke"} & wish.parts) and can_draw(job.wanted)
    program = look_at_program(job, wish.program) if wants_program else None
    environment = folder_of(job.target, wish.environment, data_folder)
    can_equip = "environment" in wish.parts and _can_equip(job, program, wish)
    obstacle = None if can_equip else _no_python(job, program, wish, environment)
    obstacle = obstacle or _no_program(program, wish)
    setup = _Setup(
        job=job,
        wish=wish,
        face=face,
        program=program,
        environment=environment,
        plan=plan_for(job, wish.environment) if can_equip else None,  # raises here what no later step could mend
        can_draw="smoke" in wish.parts and (obstacle is None or wish.are_parts_named),
    )
    if program is not None and "environment" in wish.parts:
        refuse_hopeless(program)
        if program.has_one:
            face.say(program.sentence())
    if "environment" in wish.parts and setup.plan is None and program is not None and program.checkout.python:
        face.say(f"Environment: ComfyUI's own, {program.checkout.python}, stays as it is; the picture will prove it.")
    if setup.plan is not None:
        face.say(setup.plan.sentence())
    if "smoke" in wish.parts and not setup.can_draw:
        face.say(f"Picture: none, for {obstacle}.")
    return setup


def _can_equip(job: Job, program: Program | None, wish: SetupWish) -> bool:
    environment = wish.environment
    is_asked_for = environment.where is not None or environment.python is not None or environment.torch.tag != "auto"
    if environment.torch.tag == "none":
        return False
    if program is None or is_asked_for:
        return True
    if not program.has_one:
        return wish.are_parts_named
    return (
        program.is_ours_to_equip
        or job.bench.environments.observe(folder_of(job.target, environment, Path)).receipt is not None
    )


def _no_program(program: Program | None, wish: SetupWish) -> str | None:
    """Return the clause that says that there is no ComfyUI to draw with, or None."""
    if program is None or program.has_one or wish.smoke.server is not None:
        return None
    return "there is no ComfyUI here; name a running one with --server URL"


def _no_python(job: Job, program: Program | None, wish: SetupWish, environment: Path) -> str | None:
    """Return the clause that says that there is no Python to draw with, and none will be made; or None."""
    if "smoke" not in wish.parts or wish.smoke.server is not None:
        return None
    if program is not None and (not program.has_one or program.checkout.python is not None):
        return None
    if job.bench.environments.observe(environment).python is not None:
        return None
    return f"there is no Python in {environment} and none is to be installed; make that environment and run smoke-test"


def _files(setup: _Setup, command: str) -> Report:
    run = run_repair if command == "repair" else run_install
    return run(setup.job, setup.face.ask, setup.face.show_plan, before=lambda: _get_program(setup))


def _without_files(setup: _Setup, command: str) -> Report:
    job = setup.job
    if _makes_program(setup):
        ask_about_target(job, setup.face.ask)
    _get_program(setup)
    return job.report(command, "ok", EXIT_OK)


def _makes_program(setup: _Setup) -> bool:
    return setup.program is not None and "environment" in setup.wish.parts and setup.program.plan.action != "none"


def _get_program(setup: _Setup) -> None:
    if setup.program is not None and _makes_program(setup):
        apply_program(setup.job, setup.program, setup.wish.program)


def _app(job: Job) -> App:
    return "comfyui" if job.wanted.target == "comfyui" else "diffusers"


def _tree(setup: _Setup) -> Path | None:
    return None if setup.program is None else setup.program.folder


def _with_findings(report: Report, findings: tuple[Finding, ...]) -> Report:
    known = {(each.code, each.path) for each in report.findings}
    return replace(
        report, findings=(*report.findings, *(each for each in findings if (each.code, each.path) not in known))
    )
