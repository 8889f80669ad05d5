"""The environment half of a run: which torch goes where, making it so, and whether it still holds.

Like `commands` it prints nothing; unlike files, an environment is one thing, so its plan is one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from provisioner.commands.files_part import Ask, Run, need_yes
from provisioner.commands.session import Session
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK, UnsupportedMachineError
from provisioner.core.models import ComfyTarget, Finding, Machine, Target
from provisioner.environment.state import EnvironmentReceipt, Observation, drift, judge_probe
from provisioner.report.outcome import EnvironmentCheck, EnvironmentResult, Report
from provisioner.torch.builds import App, TorchBuild, TorchChoice
from provisioner.torch.choose import TorchOptions, choose_torch

if TYPE_CHECKING:
    from provisioner.environment.environments import Environments

Action = Literal["make", "put-back", "make-anew", "none"]
PYTHONS = ("3.12", "3.11", "3.13", "3.10", "3.14")
"""Minor versions an environment may be made from, the one ComfyUI's portable build uses most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentPlan:
    """What an environment needs."""

    where: Path
    choice: TorchChoice
    action: Action
    reason: str
    findings: tuple[Finding, ...] = ()
    receipt: EnvironmentReceipt | None = None

    @property
    def build(self) -> TorchBuild:
        """The build it shall have."""
        return self.choice.build

    def sentence(self) -> str:
        """Return the plan as a line for a person."""
        newest = self.build.sets[0]
        what = f"torch {newest.torch}, torchvision {newest.torchvision}" + (
            f", torchaudio {newest.torchaudio}" if newest.torchaudio else ""
        )
        source = self.build.index_url or "the installer's default index"
        words = {
            "make": f"make {self.where} with {what} ({self.build.torch_backend}, from {source})",
            "put-back": f"put the torch set back in {self.where} ({self.build.torch_backend}, from {source})",
            "make-anew": f"make {self.where} anew with {what} ({self.build.torch_backend}, from {source})",
            "none": f"{self.where} is as it was proven",
        }
        return f"Environment: {words[self.action]}; {self.reason}."


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentOptions:
    """What the command line asks for of the environment."""

    where: Path | None = None
    python: Path | None = None
    use_uv: bool = False
    accepts_cpu: bool = False
    torch: TorchOptions = field(default_factory=TorchOptions)


def folder_of(target: Target, options: EnvironmentOptions, data_folder: Callable[[], Path]) -> Path:
    """Return where the environment of a target lies: beside ComfyUI's own files, else in the user's data folder."""
    if options.where is not None:
        return options.where.expanduser().absolute()
    if isinstance(target, ComfyTarget):
        home = target.models.parent if target.models.name == "models" else target.models
        return home / ".venv"
    return data_folder() / "diffusers-env"


def plan_environment(
    session: Session, machine: Machine, where: Path, app: App, options: EnvironmentOptions
) -> EnvironmentPlan:
    """Look at an environment and say what it needs; writes nothing.

    Raises
    ------
    UnsupportedMachineError
        No build suits the machine, no Python fits, or there is no GPU and the CPU was not accepted.
    """
    seen = session.environments.observe(where)
    choice = _choose(session.environments, machine, app, options, seen)
    _check_cpu(choice, options)
    found = drift(seen.receipt, seen, machine)
    action, reason = _needed(seen, choice, found)
    return EnvironmentPlan(
        where=where, choice=choice, action=action, reason=reason, findings=found, receipt=seen.receipt
    )


def _choose(
    environments: Environments, machine: Machine, app: App, options: EnvironmentOptions, seen: Observation
) -> TorchChoice:
    """Choose for the Python the environment has or would get."""
    if options.python is not None:
        version = environments.find_python(given=options.python).version
    elif seen.receipt is not None and seen.python is not None:
        version = seen.python.version
    else:
        version = environments.find_python(_fitting(machine, app, options)).version
    return choose_torch(machine, options.torch, app=app, python_version=version)


def _fitting(machine: Machine, app: App, options: EnvironmentOptions) -> tuple[str, ...]:
    """Return the Python versions for which there is a build; raises what the first one raises if there is none."""
    fitting, first = [], None
    for version in PYTHONS:
        try:
            choose_torch(machine, options.torch, app=app, python_version=version)
            fitting.append(version)
        except UnsupportedMachineError as error:
            first = first or error
    if not fitting and first is not None:
        raise first
    return tuple(fitting)


def _check_cpu(choice: TorchChoice, options: EnvironmentOptions) -> None:
    if choice.build.torch_backend == "cpu" and not options.accepts_cpu and options.torch.tag == "auto":
        raise UnsupportedMachineError(
            f"There is no GPU here that torch has a build for. {choice.reasons[0]}",
            hint="If the CPU will do (minutes per picture), pass --cpu; `klein-setup detect` shows what was found.",
        )


def _needed(seen: Observation, choice: TorchChoice, found: tuple[Finding, ...]) -> tuple[Action, str]:
    if not seen.is_there:
        return "make", seen.interrupted or "there is none"
    if seen.broken is not None:
        return "make-anew", f"the one that is there cannot be used: {seen.broken}"
    if seen.receipt is None:
        return "make-anew", "the one that is there was not made by klein-setup and is kept beside it"
    if seen.receipt.torch_backend != choice.build.torch_backend:
        return "make-anew", f"it has {seen.receipt.torch_backend}, this machine wants {choice.build.torch_backend}"
    problems = [each for each in found if each.severity == "problem"]
    if problems:
        return "put-back", problems[0].message.rstrip(".")
    if seen.receipt.probe is None or not seen.receipt.probe.ok:
        return "put-back", "it was never proven"
    return "none", "nothing changed since"


def apply_environment(
    session: Session, machine: Machine, plan: EnvironmentPlan, options: EnvironmentOptions
) -> EnvironmentReceipt | None:
    """Make it so; return the receipt, or None if there was nothing to do.

    Raises
    ------
    KleinError
        As `Environments.create`; the environment that was there is still there.
    """
    if plan.action == "none":
        return plan.receipt
    needs_device = plan.build.torch_backend not in {"cpu", "default"}
    if plan.action == "put-back":
        return session.environments.repair(
            plan.build, plan.where, machine=machine, needs_device=needs_device, progress=session.say_progress
        )
    return session.environments.create(
        plan.build,
        plan.where,
        python=options.python,
        python_versions=() if options.python is not None else _fitting(machine, _app_of(plan), options),
        installer="uv" if options.use_uv else "pip",
        machine=machine,
        needs_device=needs_device,
        progress=session.say_progress,
    )


def _app_of(plan: EnvironmentPlan) -> App:
    return "comfyui" if plan.build.sets[0].torchaudio is not None else "diffusers"


def check_environment(session: Session, machine: Machine, where: Path) -> tuple[tuple[Finding, ...], bool]:
    """Say what changed in an environment of ours since it was proven and whether it still computes.

    Returns
    -------
    tuple of Finding, bool
        The findings, and whether there is an environment of ours at all.
    """
    seen = session.environments.observe(where)
    if seen.receipt is None and seen.interrupted is None:
        return (), False
    found = drift(seen.receipt, seen, machine)
    if seen.receipt is None or seen.python is None:
        return found, True
    receipt = seen.receipt
    packages = [name for name, _ in receipt.versions]
    answer = session.environments.probe(where, backend=receipt.torch_backend, packages=packages)
    build = TorchBuild(
        torch_backend=receipt.torch_backend,
        index_url=receipt.index_url,
        local_tag=receipt.local_tag,
        sets=(receipt.set,),
    )
    judged = judge_probe(answer, build, machine)
    if receipt.torch_backend in {"cpu", "default"}:
        judged = tuple(each for each in judged if each.code != "probe-no-device")
    return (*found, *judged), True


def _result(plan: EnvironmentPlan, receipt: EnvironmentReceipt | None) -> EnvironmentResult:
    """Return what the report says of an environment."""
    return EnvironmentResult(
        path=plan.where, action=plan.action, reason=plan.reason, torch=plan.choice, receipt=receipt
    )


# --- what the commands do with it ------------------------------------------------------------------


def run_environment(
    run: Run,
    command: str,
    report: Report | None,
    options: EnvironmentOptions,
    *,
    ask: Ask,
    say: Callable[[str], None],
    is_announced: bool = False,
) -> Report:
    """Plan, ask, apply, prove; return the report of the whole run.

    ``is_announced`` leaves out the sentence of the plan and the question: both came before anything was done.

    Raises
    ------
    AnswerNeededError
        An environment of somebody else's is there, and nobody agreed to its being replaced.
    KleinError
        As `plan_environment` and `apply_environment`.
    """
    machine = run.machine or run.session.detect_machine()
    plan = _planned(run, machine, options)
    if not is_announced:
        say(plan.sentence())
        ask_about_strangers(run, plan, ask)
    receipt = apply_environment(run.session, machine, plan, options)
    findings, _ = check_environment(run.session, machine, plan.where) if plan.action != "none" else ((), True)
    base = report or run.report(command, "ok", EXIT_OK)
    problems = any(each.severity == "problem" for each in findings)
    if receipt is not None:
        versions = ", ".join(f"{name} {version}" for name, version in receipt.versions)
        say(f"The environment {plan.where} was proven: {versions}.")
    return replace(
        base,
        machine=machine,
        status="findings" if problems else base.status,
        exit_status=EXIT_FINDINGS if problems else base.exit_status,
        findings=(*base.findings, *findings),
        environment=_result(plan, receipt),
    )


def ask_about_strangers(run: Run, plan: EnvironmentPlan, ask: Ask) -> None:
    """Ask before an environment of somebody else's makes way for a new one; raises AnswerNeededError."""
    if plan.action == "make-anew" and plan.receipt is None and not run.options.assume_yes:
        need_yes(
            ask,
            f"{plan.where} was not made by klein-setup. Put a new one in its place, and keep it beside?",
            hint="Name another folder with --environment DIR, or agree with --yes.",
        )


def plan_for(run: Run, options: EnvironmentOptions) -> EnvironmentPlan:
    """Return what the environment of a job needs; raises as `plan_environment`."""
    return _planned(run, run.machine or run.session.detect_machine(), options)


def show_environment(run: Run, report: Report, options: EnvironmentOptions) -> Report:
    """Add what an environment needs to a report; nothing is written."""
    machine = run.machine or run.session.detect_machine()
    plan = _planned(run, machine, options)
    return replace(
        report,
        machine=machine,
        findings=(*report.findings, *(() if plan.action == "make" else plan.findings)),
        environment=_result(plan, plan.receipt),
    )


def verify_environment(run: Run, report: Report, where: Path | None) -> Report:
    """Add what became of the environment beside the files, if there is one of ours."""
    folder = folder_of(run.target, EnvironmentOptions(where=where), _data_folder)
    if not folder.is_dir():
        return report
    machine = run.machine or run.session.detect_machine()
    findings, is_ours = check_environment(run.session, machine, folder)
    if not is_ours:
        return report
    problems = any(each.severity == "problem" for each in findings)
    return replace(
        report,
        machine=machine,
        status="findings" if problems else report.status,
        exit_status=EXIT_FINDINGS if problems else report.exit_status,
        findings=(*report.findings, *findings),
        environment=EnvironmentCheck(path=folder, holds=not problems),
    )


def _planned(run: Run, machine: Machine, options: EnvironmentOptions) -> EnvironmentPlan:
    app: App = "comfyui" if run.wanted.target == "comfyui" else "diffusers"
    return plan_environment(run.session, machine, folder_of(run.target, options, _data_folder), app, options)


def _data_folder() -> Path:
    from provisioner.disk.locations import data_folder

    return data_folder()
