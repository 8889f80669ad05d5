"""What a run needs besides model files: ComfyUI, an environment, packages, the test image.  Values in, steps out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.core.errors import PlanOutdatedError, UsageError
from provisioner.core.models import Download, FilesPlan, FileSystem, Finding, FolderLink, SetChoice, SpaceNeed
from provisioner.core.units import listing
from provisioner.files.planner import SPACE_MARGIN
from provisioner.plan.steps import (
    EnvironmentStep,
    GetComfyUI,
    KeepComfyUI,
    KeepEnvironment,
    MakeEnvironment,
    Plan,
    RepairEnvironment,
    Step,
    UpdateComfyUI,
    download_of,
    place_of,
    replaced_by,
)

if TYPE_CHECKING:
    from provisioner.comfyui.checkout_models import CheckoutPlan, ComfyCheckout
    from provisioner.comfyui.release_models import ComfyTable
    from provisioner.environment.state import EnvironmentReceipt, Observation
    from provisioner.torch.builds import App, TorchChoice, TorchSet

# --- one step each -------------------------------------------------------------------------------


def comfyui_step(
    checkout: ComfyCheckout, planned: CheckoutPlan, table: ComfyTable, *, folder: Path, source: str
) -> GetComfyUI | UpdateComfyUI | KeepComfyUI | None:
    """Return what is done about ComfyUI itself; None where only a models folder was named.

    Raises
    ------
    UsageError
        What was asked for cannot be done.
    """
    release = table.pinned
    match planned.action:
        case "clone":
            return GetComfyUI(
                folder=folder, release=release, source=source, reason=planned.reason, download=table.download
            )
        case "update":
            return UpdateComfyUI(
                folder=folder, release=release, source=source, reason=planned.reason, download=table.download
            )
        case "refuse":
            raise UsageError(
                f"ComfyUI in {folder} cannot be moved to {release.version}: {planned.reason}.",
                hint=planned.hint or "Name another folder.",
            )
        case _:
            if checkout.tree is None:
                return None
            return KeepComfyUI(folder=checkout.tree, version=checkout.version, reason=planned.reason)


def environment_step(
    seen: Observation,
    choice: TorchChoice,
    drifted: Iterable[Finding],
    *,
    where: Path,
    app: App,
    download: Download,
    python: Path | None = None,
    python_versions: tuple[str, ...] = (),
    exactly: TorchSet | None = None,
) -> EnvironmentStep:
    """Return what an environment of ours needs: to be made, made anew, repaired, or nothing.

    Parameters
    ----------
    seen : Observation
        What is in the folder.
    choice : TorchChoice
        The torch build it shall have.
    drifted : iterable of Finding
        How it differs from its receipt.
    where, app, download, python, python_versions
        As the step has them.
    exactly : TorchSet, optional
        The set it had at an earlier time, and has to have again, with one of these versions of Python.
    """
    make = MakeEnvironment(
        where=where,
        choice=choice,
        app=app,
        reason=seen.interrupted or "there is none",
        download=download,
        python=python,
        python_versions=python_versions,
    )
    if not seen.is_there:
        return make
    if seen.broken is not None:
        reason = f"the one that is there cannot be used: {seen.broken}"
        return replace(make, reason=reason, replaces=reason, is_foreign=seen.receipt is None)
    if seen.receipt is None:
        reason = "the one that is there was not made by klein-setup and is kept beside it"
        return replace(make, reason=reason, replaces=reason, is_foreign=True)
    if seen.receipt.torch_backend != choice.build.torch_backend:
        reason = f"it has {seen.receipt.torch_backend}, this machine needs {choice.build.torch_backend}"
        return replace(make, reason=reason, replaces=reason)
    if exactly is not None:
        other = _other_than(seen.receipt, exactly, python_versions)
        if other is not None:
            return replace(make, reason=other, replaces=other)
    why = _why_repaired(seen.receipt, drifted) or _lacking_device_packages(seen, choice)
    if why is not None:
        return RepairEnvironment(where=where, choice=choice, app=app, reason=why, download=download)
    return KeepEnvironment(where=where, reason="nothing changed since it was verified", choice=choice)


def _other_than(receipt: EnvironmentReceipt, exactly: TorchSet, python_versions: tuple[str, ...]) -> str | None:
    """Return what an environment has instead of a set of an earlier time; None where it has it."""
    if receipt.set != exactly:
        return f"it has torch {receipt.set.torch} and had torch {exactly.torch} then"
    if ".".join(receipt.python_version.split(".")[:2]) not in python_versions:
        return f"it has Python {receipt.python_version} and had {listing(python_versions)} then"
    return None


def _why_repaired(receipt: EnvironmentReceipt, drifted: Iterable[Finding]) -> str | None:
    problem = next((each for each in drifted if each.severity == "problem"), None)
    if problem is not None:
        return problem.message.rstrip(".")
    return "it was never verified" if receipt.probe is None or not receipt.probe.ok else None


def _lacking_device_packages(seen: Observation, choice: TorchChoice) -> str | None:
    """Return why another AMD GPU needs more than is there: the code for each architecture is in packages of its own."""
    names = [each.name for each in seen.distributions]
    extras = [each for each in choice.build.device_extras if not each.endswith("-all")]
    lacking = [extra for extra in extras if not any(name.endswith(f"-{extra}") for name in names)]
    return f"it lacks the packages of {listing(lacking)}, which this machine's GPU needs" if lacking else None


# --- the whole -----------------------------------------------------------------------------------


def make_plan(
    files: FilesPlan,
    steps: Iterable[Step],
    *,
    findings: Iterable[Finding] = (),
    notes: Iterable[str] = (),
    file_systems: Mapping[Path, FileSystem] | None = None,
    links: Iterable[FolderLink] = (),
    choice: SetChoice | None = None,
) -> Plan:
    """Return the plan of a run: its steps in their order, and the room they take together on each file system.

    Parameters
    ----------
    files : FilesPlan
        What the model files need; its steps are among `steps` where the run is about files.
    steps : iterable of Step
        Everything that is done, in order.
    findings : iterable of Finding
        What a person should know, beside what `files` says.
    notes : iterable of str
        What will not be done, and why, in sentences.
    file_systems : mapping of Path to FileSystem, optional
        Of the folder of each step that downloads something else than model files.
    links : iterable of FolderLink
        Behind which a step writes, moves or deletes.
    choice : SetChoice, optional
        Which set it is about, and why.
    """
    ordered = tuple(steps)
    return Plan(
        files=files,
        steps=ordered,
        findings=tuple(dict.fromkeys((*files.findings, *findings))),
        notes=tuple(notes),
        space=_space(files, ordered, file_systems or {}),
        links=tuple(links),
        choice=choice,
    )


def _space(files: FilesPlan, steps: tuple[Step, ...], file_systems: Mapping[Path, FileSystem]) -> tuple[SpaceNeed, ...]:
    has_files = any(step in steps for step in files.steps)
    needs = {need.file_system.device: need for need in files.space if has_files or not need.needed_bytes}
    for step in steps:
        download, place = download_of(step), place_of(step)
        system = file_systems.get(place) if place is not None else None
        if download is None or system is None or not download.disk_bytes:
            continue
        known = needs.get(system.device, SpaceNeed(file_system=system, needed_bytes=0))
        margin = 0 if known.needed_bytes else SPACE_MARGIN
        needs[system.device] = replace(known, needed_bytes=known.needed_bytes + download.disk_bytes + margin)
    return tuple(needs.values())


def check_unchanged(shown: Plan, now: FilesPlan) -> None:
    """Raise PlanOutdatedError if files changed since the plan was shown, so that something else would be replaced.

    Fewer steps are fine: another run may have done the work.  So is a step that replaces nothing.
    """
    agreed = {place_of(step) for step in shown.file_steps if replaced_by(step) is not None}
    surprising = [step for step in now.steps if replaced_by(step) is not None and place_of(step) not in agreed]
    if surprising:
        step = surprising[0]
        raise PlanOutdatedError(
            f"{place_of(step)} changed after the plan was shown: {step.reason}. No model file was changed.",
            hint="Run the same command again and read the new plan.",
            path=str(place_of(step)),
        )
