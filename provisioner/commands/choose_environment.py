"""The environment of a run: where it is, which torch it gets, how a step is applied, and whether it still works."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.combination import combination_of, requirements_here
from provisioner.commands.inspect_comfyui import inspect_comfyui
from provisioner.commands.packages import ComparedPackages, app_of, compare_packages
from provisioner.commands.run import Run, named_by_user, options_of
from provisioner.commands.session import Session
from provisioner.core.errors import EXIT_FINDINGS, UnsupportedMachineError
from provisioner.core.models import ComfyTarget, Finding, Machine
from provisioner.environment.state import EnvironmentReceipt, Observation, drift, judge_probe, visible_devices
from provisioner.plan.steps import EnvironmentStep, MakeEnvironment, Plan, RepairEnvironment
from provisioner.report.outcome import EnvironmentAction, EnvironmentCheck, EnvironmentResult, PackagesCheck, Report
from provisioner.torch.builds import App, TorchBuild, TorchChoice
from provisioner.torch.choose import TorchOptions, choose_torch

if TYPE_CHECKING:
    from provisioner.environment.environments import Environments, Installer

PYTHONS = ("3.12", "3.11", "3.13", "3.10", "3.14")
"""Minor versions an environment may be made from, the one ComfyUI's portable build uses most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentOptions:
    """What the command line asks for of the environment."""

    where: Path | None = None
    python: Path | None = None
    installer: Installer = "auto"
    accepts_cpu: bool = False
    torch: TorchOptions = field(default_factory=TorchOptions)


def environment_folder(run: Run, named: Path | None) -> Path:
    """Return the folder of a run's environment: the named one, else beside ComfyUI's files or in the data folder."""
    if named is not None:
        return named_by_user(named)
    if isinstance(run.target, ComfyTarget):
        models = run.target.models
        return (models.parent if models.name == "models" else models) / ".venv"
    from provisioner.disk.locations import data_folder

    return data_folder() / "diffusers-env"


def start_command(run: Run, environment: Path, *more: str) -> str:
    """Return the command that starts this ComfyUI with this environment, ready to paste."""
    named = None if environment == environment_folder(run, None) else environment
    return run.session.settings.program.command("start", [*options_of(run, named), *more])


def look_at_environment(
    session: Session, where: Path, app: App, options: EnvironmentOptions
) -> tuple[Observation, TorchChoice, tuple[Finding, ...], tuple[str, ...]]:
    """Look at an environment and choose its torch; writes nothing.

    Returns
    -------
    Observation, TorchChoice, tuple of Finding, tuple of str
        What is there, the build it shall have, how it differs from its receipt, and the Python versions a new one may
        be made from.

    Raises
    ------
    UsageError
        A variable of pip's names an index in the clear.
    UnsupportedMachineError
        No build suits the machine, no Python fits, or there is no GPU and the CPU was not accepted.
    """
    from provisioner.environment.installer import check_indexes
    from provisioner.environment.pip_settings import settings_in

    check_indexes(settings_in(session.environ))
    machine = session.machine
    seen = session.environments.observe(where)
    choice = _choose(session.environments, machine, app, options, seen)
    _check_cpu(choice, options)
    fitting = () if options.python is not None else fitting_pythons(machine, app, options)
    return seen, choice, drift(seen.receipt, seen, machine), fitting


def _choose(
    environments: Environments, machine: Machine, app: App, options: EnvironmentOptions, seen: Observation
) -> TorchChoice:
    """Choose for the Python the environment has or would get."""
    if options.python is not None:
        version = environments.find_python(given=options.python).release
    elif seen.receipt is not None and seen.python is not None:
        version = seen.python.release
    else:
        version = environments.find_python(fitting_pythons(machine, app, options)).release
    return choose_torch(machine, options.torch, app=app, python_version=version)


def fitting_pythons(machine: Machine, app: App, options: EnvironmentOptions) -> tuple[str, ...]:
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
            hint="Pass --cpu to use the CPU (minutes per image); `klein-setup detect` shows what was found.",
        )


def apply_environment(
    session: Session, step: MakeEnvironment | RepairEnvironment, *, installer: Installer = "auto"
) -> EnvironmentReceipt:
    """Make or repair an environment and return its receipt; raises as `Environments.create`.

    Where it fails the environment that was there is still there.
    """
    build = step.choice.build
    needs_device = build.torch_backend not in {"cpu", "default"}
    if isinstance(step, RepairEnvironment):
        return session.environments.repair(
            build, step.where, machine=session.machine, needs_device=needs_device, progress=session.stages.teller
        )
    return session.environments.create(
        build,
        step.where,
        python=step.python,
        python_versions=step.python_versions,
        installer=installer,
        machine=session.machine,
        needs_device=needs_device,
        progress=session.stages.teller,
    )


def check_environment(
    session: Session, machine: Machine, where: Path
) -> tuple[tuple[Finding, ...], Observation | None]:
    """Return what changed in an environment of ours since it was verified, and whether it still computes.

    Returns
    -------
    tuple of Finding, Observation or None
        The findings, and what lies in the environment; None: it is not one of ours.
    """
    seen = session.environments.observe(where)
    if seen.receipt is None and seen.interrupted is None:
        return (), None
    found = drift(seen.receipt, seen, machine)
    if seen.receipt is None or seen.python is None:
        return found, seen
    receipt = seen.receipt
    packages = [name for name, _ in receipt.versions]
    with session.stages.stage("testing", "the environment", "tested"):
        answer = session.environments.probe(
            where, backend=receipt.torch_backend, packages=packages, architectures=_targets(receipt)
        )
    build = TorchBuild(
        torch_backend=receipt.torch_backend,
        index_url=receipt.index_url,
        local_tag=receipt.local_tag,
        sets=(receipt.set,),
    )
    judged = judge_probe(answer, build, machine)
    if receipt.torch_backend in {"cpu", "default"}:
        judged = tuple(each for each in judged if each.code != "probe-no-device")
    return (*found, *judged), seen


def _targets(receipt: EnvironmentReceipt) -> list[str]:
    """Return the architectures of the AMD GPUs that computed when the environment was made."""
    devices = receipt.probe.devices if receipt.probe is not None else ()
    return [each.architecture for each in devices if each.kind == "rocm" and each.checks and each.architecture]


def environ_for(session: Session, receipt: EnvironmentReceipt | None) -> dict[str, str]:
    """Return the user's variables with the one that hides the GPUs an environment has no code for; theirs wins."""
    return {**visible_devices(receipt), **session.environ}


def verify_environment(run: Run, report: Report, where: Path | None) -> Report:
    """Add what became of the environment beside the files, if there is one of ours."""
    folder = environment_folder(run, where)
    if not folder.is_dir():
        return report
    machine = run.session.machine
    findings, seen = check_environment(run.session, machine, folder)
    if seen is None:
        return report
    comfyui = inspect_comfyui(run)
    tree = None if comfyui is None else comfyui.checkout.tree
    more = requirements_here(run, comfyui, combination_of(run, comfyui, folder))
    compared = compare_packages(run.session, seen, app_of(run), tree, reads_files=True, more=more)
    findings = (*findings, *compared.findings)
    torch = seen.distribution("torch")
    problems = any(each.severity == "problem" for each in findings)
    return replace(
        report,
        machine=machine,
        status="findings" if problems else report.status,
        exit_status=EXIT_FINDINGS if problems else report.exit_status,
        findings=(*report.findings, *findings),
        environment=EnvironmentCheck(path=folder, holds=not problems, packages=_packages_check(compared)),
        seen_versions=(*report.seen_versions, *([("torch", torch.version)] if torch is not None else [])),
    )


def _packages_check(compared: ComparedPackages) -> PackagesCheck | None:
    if compared.packages is None:
        return None
    return PackagesCheck(
        listed=len(compared.packages.packages),
        listed_at=compared.packages.made_at,
        is_outdated=compared.is_outdated,
        changed=compared.changes,
    )


def with_environment(report: Report, plan: Plan, receipt: EnvironmentReceipt | None) -> Report:
    """Return a report with what was planned for the environment, and the receipt of one that was made."""
    step = next((each for each in plan.steps if isinstance(each, EnvironmentStep)), None)
    if step is None or step.choice is None:
        return report
    action: EnvironmentAction = "none"
    if isinstance(step, RepairEnvironment):
        action = "put-back"
    elif isinstance(step, MakeEnvironment):
        action = "make-anew" if step.replaces else "make"
    result = EnvironmentResult(path=step.where, action=action, reason=step.reason, torch=step.choice, receipt=receipt)
    return replace(report, environment=result)
