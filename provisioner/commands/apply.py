"""Applies a Plan step by step.  Decides nothing: a world that changed since the plan was shown is an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from provisioner.commands.choose_environment import apply_environment, check_environment, environment_folder
from provisioner.commands.inspect_comfyui import check_comfyui, inspect_comfyui
from provisioner.commands.look import InstallOptions
from provisioner.commands.packages import all_requirements, needed_packages
from provisioner.commands.run import Run
from provisioner.commands.smoke_test import generate_image
from provisioner.core.errors import KleinError, OfflineError, PlanOutdatedError
from provisioner.core.models import Artifact, FilesPlan, Finding, HubFile, Outcome, OutcomeStatus, Source
from provisioner.core.units import count, listing
from provisioner.files import planner
from provisioner.plan.make_plan import check_unchanged
from provisioner.plan.steps import (
    FILE_STEPS,
    GenerateImage,
    GetComfyUI,
    InstallPackages,
    KeepComfyUI,
    KeepEnvironment,
    MakeEnvironment,
    Plan,
    RepairEnvironment,
    Step,
    UpdateComfyUI,
)

if TYPE_CHECKING:
    from pathlib import Path

    from provisioner.core.ports import Part, TransferProgress
    from provisioner.environment.state import EnvironmentReceipt
    from provisioner.smoke_test.results import SmokeTest


@dataclass
class Applied:
    """What came of a plan so far."""

    files: FilesPlan  # the files after the last look
    outcomes: list[Outcome] = field(default_factory=list)
    findings: tuple[Finding, ...] = ()
    receipt: EnvironmentReceipt | None = None
    smoke: SmokeTest | None = None

    @property
    def errors(self) -> list[KleinError]:
        """Why steps failed.

        Where all files are right in the end, a copy or a source that was no good before another one is no failure.
        """
        from provisioner.files.engine import is_retriable

        failed = [outcome for outcome in self.outcomes if isinstance(outcome.error, KleinError)]
        of_files = [outcome for outcome in failed if isinstance(outcome.step, FILE_STEPS)] if self.files.steps else []
        serious = [outcome for outcome in of_files if not is_retriable(outcome)] or of_files
        others = [outcome for outcome in failed if not isinstance(outcome.step, FILE_STEPS)]
        return [outcome.error for outcome in (*serious, *others) if isinstance(outcome.error, KleinError)]


def apply_plan(
    run: Run,
    options: InstallOptions,
    plan: Plan,
    *,
    show_smoke: Callable[[SmokeTest], None],
) -> Applied:
    """Do what a plan says, in its order, until it is done or a step fails; return what came of it.

    Raises
    ------
    PlanOutdatedError
        Something that the plan is about changed after it was shown.
    """
    applied = Applied(files=plan.files)
    for step in plan.steps:
        if isinstance(step, FILE_STEPS):
            if step is plan.file_steps[0]:
                _apply_files(run, plan, applied)
        else:
            _apply_one(run, options, step, applied, show_smoke=show_smoke)
        if applied.errors or (isinstance(step, FILE_STEPS) and applied.files.steps):
            break
    return applied


# --- files -----------------------------------------------------------------------------------------


def _apply_files(run: Run, plan: Plan, applied: Applied) -> None:
    """Apply the files' steps, look again, and go on until nothing is left or a step failed for good."""
    engine = run.session.engine(run.observer)
    if run.session.is_offline:
        # A copy found here can turn out to be something else; the next plan would fetch.
        engine = replace(engine, fetcher=_NoNetwork())

    agreed: Plan | None = plan

    def look(rejected: frozenset[tuple[str, Path]]) -> FilesPlan:
        nonlocal agreed
        following = run.plan_files("claims", rejected)
        if rejected:
            planner.check_space(following.space)  # what was to be linked is fetched now
        elif agreed is not None:
            check_unchanged(agreed, following)
        agreed = None  # what comes after the first look follows from it
        return following

    with _locked(run, plan.files):
        # Somebody else may have done the work while we waited for the lock.
        applied.files, outcomes = engine.provide(look)
    applied.outcomes += outcomes


class _NoNetwork:
    """Stands where the network would be when it is off."""

    def blob_id(self, source: HubFile) -> str:
        """Raise: nobody can be asked."""
        raise OfflineError(
            f"Only the Hub can confirm that {source.filename} belongs to {source.repo_id}, and with --offline it is "
            "not asked; a manifest that does not come with klein-setup needs that for an HF cache.",
            hint="Run once without --offline.",
        )

    def fetch(  # the port's signature
        self,
        source: Source,  # noqa: ARG002
        artifact: Artifact,
        part: Part,  # noqa: ARG002
        *,
        progress: Callable[[TransferProgress], None],  # noqa: ARG002
    ) -> str:
        """Raise OfflineError."""
        raise OfflineError(
            f"Offline, and {artifact.name} would have to be fetched ({artifact.size:,} bytes).",
            hint="Run once without --offline, or name a folder that has the file with --look-in DIR.",
            missing=[artifact.name],
        )


@contextmanager
def _locked(run: Run, plan: FilesPlan) -> Iterator[None]:
    destinations = [step.destination for step in plan.steps]
    for destination in destinations:
        run.session.store.check_inside(destination)
    with run.session.store.lock(destinations):
        yield


# --- everything else -------------------------------------------------------------------------------


def _apply_one(
    run: Run,
    options: InstallOptions,
    step: Step,
    applied: Applied,
    *,
    show_smoke: Callable[[SmokeTest], None],
) -> None:
    began_s = time.monotonic()
    try:
        match step:
            case GetComfyUI() | UpdateComfyUI():
                detail = _apply_comfyui(run, options, step)
            case MakeEnvironment() | RepairEnvironment():
                detail = _apply_environment(run, options, step, applied)
            case InstallPackages():
                detail = _install_packages(run, options, step)
            case GenerateImage():
                detail = _generate(run, options, applied, show_smoke)
            case KeepEnvironment():
                if step.choice is not None:
                    run.session.environments.clear_leftovers(step.where, progress=run.session.notice)
                applied.outcomes.append(Outcome(step=step, status="skipped", detail="kept"))
                return
            case KeepComfyUI():
                applied.outcomes.append(Outcome(step=step, status="skipped", detail="kept"))
                return
            case _:
                raise AssertionError(step.kind)  # files and removals are applied elsewhere
    except KleinError as error:
        outcome = Outcome(step=step, status="failed", detail=str(error), error=error)
    else:
        status: OutcomeStatus = "done" if detail else "skipped"
        outcome = Outcome(step=step, status=status, detail=detail or "problems were found before it")
    applied.outcomes.append(replace(outcome, seconds=time.monotonic() - began_s, started_s=began_s))


def _apply_comfyui(run: Run, options: InstallOptions, step: GetComfyUI | UpdateComfyUI) -> str:
    now = inspect_comfyui(run, options.comfyui)
    wanted = "clone" if isinstance(step, GetComfyUI) else "update"
    if now is None or now.plan.action != wanted:
        raise PlanOutdatedError(
            f"{step.folder} changed after the plan was shown: {'it is gone' if now is None else now.plan.reason}.",
            hint="Run the same command again and read the new plan.",
            path=str(step.folder),
        )
    session, what = run.session, f"ComfyUI {step.release.version}"
    if isinstance(step, GetComfyUI):
        with session.stages.stage("fetching", what, "fetched") as came_of_it:
            session.checkouts.fetch(step.release, step.folder, source=step.source, progress=session.say_progress)
            came_of_it(f"{what} into {step.folder}")
    else:
        with session.stages.stage("updating to", what, "updated") as came_of_it:
            session.checkouts.update(step.folder, step.release, source=step.source, progress=session.say_progress)
            came_of_it(f"{what} in {step.folder}")
    return f"{what} is in {step.folder}"


def _apply_environment(
    run: Run,
    options: InstallOptions,
    step: MakeEnvironment | RepairEnvironment,
    applied: Applied,
) -> str:
    _refuse_other_environment(run, step)
    is_new = isinstance(step, MakeEnvironment)
    doing, done = ("making", "made") if is_new else ("repairing", "repaired")
    with run.session.stages.stage(doing, "the environment", done) as came_of_it:
        applied.receipt = apply_environment(run.session, step, use_uv=options.environment.use_uv)
        environments, machine = run.session.environments, run.session.machine
        environments.clear_leftovers(step.where, progress=run.session.notice)
        findings, _ = check_environment(run.session, machine, step.where)
        applied.findings += findings
        versions = ", ".join(f"{name} {version}" for name, version in applied.receipt.versions)
        came_of_it(f"the environment: {versions}")
    return versions


def _refuse_other_environment(run: Run, step: MakeEnvironment | RepairEnvironment) -> None:
    """Raise PlanOutdatedError where somebody else's environment appeared in the folder since the plan was shown."""
    seen = run.session.environments.observe(step.where)
    is_foreign = seen.is_there and seen.receipt is None
    if is_foreign and not (isinstance(step, MakeEnvironment) and step.is_foreign):
        raise PlanOutdatedError(
            f"{step.where} appeared after the plan was shown, and klein-setup did not make it.",
            hint="Run the same command again and read the new plan.",
            path=str(step.where),
        )


def _install_packages(run: Run, options: InstallOptions, step: InstallPackages) -> str:
    """Install what is missing, under the constraints that hold the torch set."""
    environments = run.session.environments
    installer: Literal["pip", "uv"] = "uv" if options.environment.use_uv else "pip"
    progress = run.session.say_progress
    stage = run.session.stages.stage
    if step.restores:
        with stage("restoring", "packages", "restored") as came_of_it:
            environments.restore(step.where, step.restores, installer=installer, progress=progress)
            came_of_it(f"{listing(step.restores)}, each from the same file as before")
    lines = needed_packages(step.app, step.tree, environments.observe(step.where))
    asked = all_requirements(step.app, step.tree)
    install = partial(environments.install, step.where, lines, out_of=asked, installer=installer, progress=progress)
    if not lines:
        install()  # only its list is renewed
        return "every requirement is met"
    with stage("installing", "packages", "installed") as came_of_it:
        came_of_it(count(install(), "package"))
    left = needed_packages(step.app, step.tree, environments.observe(step.where))
    name = "ComfyUI" if step.app == "comfyui" else "diffusers"
    return f"{len(lines) - len(left)} of {count(len(lines), 'package')} that {name} requires were installed"


def _generate(run: Run, options: InstallOptions, applied: Applied, show_smoke: Callable[[SmokeTest], None]) -> str:
    comfyui = inspect_comfyui(run)
    found = (*applied.files.findings, *applied.findings, *(() if comfyui is None else check_comfyui(comfyui)))
    if any(each.severity == "problem" for each in found):
        return ""
    where = environment_folder(run, options.environment.where)
    applied.smoke = generate_image(run, options.smoke, comfyui=comfyui, environment=where, show=show_smoke)
    return "generated and checked"
