"""Applies a Plan, each step as soon as what it needs is done.

Decides nothing: a world that changed since the plan was shown is an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from provisioner.commands.choose_environment import apply_environment, check_environment, environment_folder
from provisioner.commands.combination import combination_of, requirements_here
from provisioner.commands.comfyui_image import ReadyServer, start_for_image
from provisioner.commands.inspect_comfyui import ComfyUIInstall, check_comfyui, inspect_comfyui
from provisioner.commands.look import InstallOptions
from provisioner.commands.packages import all_requirements, needed_packages
from provisioner.commands.run import Run
from provisioner.commands.side_by_side import run_side_by_side
from provisioner.commands.smoke_test import generate_image
from provisioner.core.errors import KleinError, LockHeldError, OfflineError, PlanOutdatedError
from provisioner.core.events import Notice
from provisioner.core.models import Artifact, FilesPlan, Finding, HubFile, Outcome, OutcomeStatus, Source
from provisioner.core.units import count, listing
from provisioner.files import planner
from provisioner.plan.make_plan import check_unchanged
from provisioner.plan.order import Task, TaskName, TaskState, tasks_of
from provisioner.plan.steps import (
    FILE_STEPS,
    GenerateImage,
    GetComfyUI,
    InstallNodePack,
    InstallPackages,
    KeepComfyUI,
    KeepEnvironment,
    MakeEnvironment,
    MoveNodePack,
    Plan,
    RepairEnvironment,
    StartComfyUI,
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
    """Do what a plan says, each step as soon as what it needs is done; return what came of it.

    A step that fails stops those that need it.  The others go on to their end: what they bring need not be brought
    again by the next run.

    Raises
    ------
    LockHeldError, PlanOutdatedError
        Another run works on the model files, or they are not as they were when the plan was shown; all was stopped.
    KeyboardInterrupt
        Cancelled: every thread, program and server of this run has ended.
    Exception
        A defect in one of the steps; the others were stopped.
    """
    return _Work(run, options, plan, show_smoke).apply()


_IN_WORDS: Mapping[TaskName, str] = {
    "comfyui": "ComfyUI",
    "nodes": "the custom nodes",
    "files": "the model files",
    "environment": "the environment",
    "packages": "the packages",
    "node-packs": "the custom nodes of the workflow",
    "server": "the start of ComfyUI",
    "image": "the test image",
}


def _after_an_error_in(cause: TaskName) -> str:
    return f"left out after an error in {_IN_WORDS[cause]}"


class _Work:
    """A plan while it is applied."""

    def __init__(self, run: Run, options: InstallOptions, plan: Plan, show_smoke: Callable[[SmokeTest], None]) -> None:
        self._run, self._options, self._plan, self._show_smoke = run, options, plan, show_smoke
        self._tasks = tasks_of(plan)
        self._states: dict[TaskName, TaskState] = {}
        self._came_of: dict[TaskName, list[Outcome]] = {task.name: [] for task in self._tasks}
        self._applied = Applied(files=plan.files)
        self._server: ReadyServer | None = None

    def apply(self) -> Applied:
        session = self._run.session
        _ = session.stages, session.limiter  # which threads share: made once, before there are any
        if self._plan.changes:
            _ = session.connections
        try:
            run_side_by_side(self._tasks, self._do, states=self._states, skip=self._skip, cancelled=session.cancelled)
        finally:
            if self._server is not None:
                self._server.end.close()
        self._applied.outcomes = [outcome for task in self._tasks for outcome in self._came_of[task.name]]
        return self._applied

    def _do(self, task: Task) -> TaskState:
        if task.name == "files":
            return self._do_files(task)
        if task.name in {"nodes", "node-packs"}:
            return self._do_nodes(task)
        (step,) = task.steps
        outcome = self._outcome(step)
        self._came_of[task.name].append(outcome)
        if outcome.status == "failed":
            self._say_what_failed(task, outcome)
            return "failed"
        return (
            "skipped"
            if outcome.status == "skipped" and not isinstance(step, (KeepComfyUI, KeepEnvironment))
            else "done"
        )

    def _do_nodes(self, task: Task) -> TaskState:
        """Move or install each of the custom nodes, whatever became of the one before."""
        outcomes = self._came_of[task.name]
        outcomes += [self._outcome(step) for step in task.steps]
        failed = next((each for each in outcomes if each.status == "failed"), None)
        if failed is None:
            return "done"
        self._say_what_failed(task, failed)
        return "failed"

    def _do_files(self, task: Task) -> TaskState:
        outcomes = self._came_of["files"]
        try:
            self._applied.files, came = _apply_files(self._run, self._plan)
        except (LockHeldError, PlanOutdatedError):
            raise  # another run is at work here, or the world is not as it was agreed to: nothing of the plan goes on
        except KleinError as error:  # before the first of them, or between two looks
            outcomes += [Outcome(step=step, status="failed", detail=str(error), error=error) for step in task.steps[:1]]
            outcomes += [
                Outcome(step=step, status="skipped", detail="an earlier step failed") for step in task.steps[1:]
            ]
            self._say_what_failed(task, outcomes[0])
            return "failed"
        outcomes += came
        if not self._applied.files.steps:
            return "done"
        failed = next((outcome for outcome in came if outcome.status == "failed"), None)
        if failed is not None:
            self._say_what_failed(task, failed)
        return "failed"

    def _skip(self, task: Task, cause: TaskName) -> None:
        why = _after_an_error_in(cause) if self._states[cause] == "failed" else self._why_skipped()
        self._came_of[task.name] += [Outcome(step=step, status="skipped", detail=why) for step in task.steps]

    def _say_what_failed(self, task: Task, outcome: Outcome) -> None:
        """Say at once that a step failed, where others go on: the error itself is shown at the end."""
        others = [name for name, state in self._states.items() if state == "running" and name != task.name]
        if others:
            going_on = listing([_IN_WORDS[name] for name in others])
            detail = outcome.detail.rstrip(".")
            message = (
                f"An error in {_IN_WORDS[task.name]}: {detail}. What comes after is left out; going on with {going_on}."
            )
            self._run.session.events(Notice(message=message, severity="warning"))

    def _outcome(self, step: Step) -> Outcome:
        began_s = time.monotonic()
        try:
            match step:
                case GetComfyUI() | UpdateComfyUI():
                    detail = _apply_comfyui(self._run, self._options, step)
                case MoveNodePack():
                    detail = _move_pack(self._run, step)
                case InstallNodePack():
                    from provisioner.commands.manifest_packs import install_pack  # most plans have none

                    detail = install_pack(self._run, step, self._options.environment.installer)
                case MakeEnvironment() | RepairEnvironment():
                    detail = _apply_environment(self._run, self._options, step, self._applied)
                case InstallPackages():
                    detail = _install_packages(self._run, self._options, step)
                case StartComfyUI():
                    detail = self._start_server(step)
                case GenerateImage():
                    detail = self._generate()
                case KeepEnvironment():
                    if step.choice is not None:
                        session = self._run.session
                        session.environments.clear_leftovers(step.where, progress=session.notice)
                    return Outcome(step=step, status="skipped", detail="kept")
                case KeepComfyUI():
                    return Outcome(step=step, status="skipped", detail="kept")
                case _:
                    raise AssertionError(step.kind)  # files and removals are applied elsewhere
        except KleinError as error:
            outcome = Outcome(step=step, status="failed", detail=str(error), error=error)
        else:
            status: OutcomeStatus = "done" if detail else "skipped"
            outcome = Outcome(step=step, status=status, detail=detail or self._why_skipped())
        return replace(outcome, seconds=time.monotonic() - began_s, started_s=began_s)

    def _why_skipped(self) -> str:
        failed = next((name for name, state in self._states.items() if state == "failed"), None)
        return "problems were found before it" if failed is None else _after_an_error_in(failed)

    def _start_server(self, step: StartComfyUI) -> str:
        """Start ComfyUI for the image; stop where that cannot be generated any more."""
        session, comfyui = self._run.session, inspect_comfyui(self._run)
        if self._has_problems(comfyui):
            return ""
        try:
            self._server = start_for_image(
                self._run,
                self._options.smoke,
                comfyui=comfyui,
                environment=environment_folder(self._run, self._options.environment.where),
                cancelled=lambda: session.cancelled.is_set() or self._states.get("files") == "failed",
            )
        except KeyboardInterrupt:
            if session.cancelled.is_set():
                raise
            return ""
        return f"ComfyUI in {step.folder} answers"

    def _generate(self) -> str:
        comfyui = inspect_comfyui(self._run)
        if self._has_problems(comfyui) or any(each.severity == "problem" for each in self._applied.files.findings):
            return ""
        self._applied.smoke = generate_image(
            self._run,
            self._options.smoke,
            comfyui=comfyui,
            environment=environment_folder(self._run, self._options.environment.where),
            show=self._show_smoke,
            ready=self._server,
        )
        return "generated and checked"

    def _has_problems(self, comfyui: ComfyUIInstall | None) -> bool:
        found = (*self._applied.findings, *(() if comfyui is None else check_comfyui(comfyui)))
        return any(each.severity == "problem" for each in found)


# --- files -----------------------------------------------------------------------------------------


def _apply_files(run: Run, plan: Plan) -> tuple[FilesPlan, list[Outcome]]:
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
            if run.session.settings.peers is not None and _take_from_peers(run, following):
                following = run.plan_files("claims")  # what came is a copy on this machine
        agreed = None  # what comes after the first look follows from it
        return following

    with _locked(run, plan.files):
        # Somebody else may have done the work while we waited for the lock.
        done, outcomes = engine.provide(look)
    if run.session.settings.peers is not None and not done.steps:
        from provisioner.commands.seed import remove_staging

        remove_staging(run)
    return done, outcomes


def _take_from_peers(run: Run, plan: FilesPlan) -> bool:
    from provisioner.commands.seed import take_from_peers  # few runs have peers

    return take_from_peers(run, plan)


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


def _apply_comfyui(run: Run, options: InstallOptions, step: GetComfyUI | UpdateComfyUI) -> str:
    now = inspect_comfyui(run, replace(options.comfyui, release=step.release))
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
            session.checkouts.fetch(step.release, step.folder, source=step.source, progress=session.stages.teller)
            came_of_it(f"{what} into {step.folder}")
    else:
        kept = None if options.snapshot is None else options.snapshot.comfyui
        branch = None if kept is None else kept.branch
        with session.stages.stage("updating to", what, "updated") as came_of_it:
            session.checkouts.update(
                step.folder, step.release, source=step.source, branch=branch, progress=session.stages.teller
            )
            came_of_it(f"{what} in {step.folder}")
    return f"{what} is in {step.folder}"


def _move_pack(run: Run, step: MoveNodePack) -> str:
    session, name = run.session, step.folder.name
    with session.stages.stage("moving", f"the custom node {name}", "moved"):
        session.checkouts.move_pack(step.folder, step.commit, branch=step.branch, progress=session.stages.teller)
    return f"{name} is at {step.commit[:12]}"


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
        applied.receipt = apply_environment(run.session, step, installer=options.environment.installer)
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
    installer = options.environment.installer
    progress = run.session.stages.teller
    stage = run.session.stages.stage
    if step.restores:
        with stage("restoring", "packages", "restored") as came_of_it:
            kept = None if options.snapshot is None else options.snapshot.environment
            environments.restore(
                step.where,
                step.restores,
                packages=None if kept is None else kept.packages,
                installer=installer,
                progress=progress,
            )
            came_of_it(f"{listing(step.restores)}, each from the same file as before")
    comfyui = inspect_comfyui(run)
    more = requirements_here(run, comfyui, combination_of(run, comfyui, step.where))
    lines = needed_packages(step.app, step.tree, environments.observe(step.where), more=more)
    asked = (*all_requirements(step.app, step.tree), *more)
    install = partial(environments.install, step.where, lines, out_of=asked, installer=installer, progress=progress)
    if not lines:
        install()  # only its list is renewed
        return "every requirement is met"
    with stage("installing", "packages", "installed") as came_of_it:
        came_of_it(count(install(), "package"))
    left = needed_packages(step.app, step.tree, environments.observe(step.where), more=more)
    name = "ComfyUI" if step.app == "comfyui" else "diffusers"
    return f"{len(lines) - len(left)} of {count(len(lines), 'package')} that {name} requires were installed"
