"""Looks at the machine, the target, ComfyUI and the environment once, and returns the one Plan of a run.

Writes nothing.  Says in the plan what will not be done, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.choose_environment import EnvironmentOptions, environment_folder, look_at_environment
from provisioner.commands.inspect_comfyui import ComfyUIInstall, ComfyUIOptions, check_comfyui, inspect_comfyui
from provisioner.commands.parts import can_generate
from provisioner.commands.run import Run
from provisioner.commands.smoke_test import SmokeTestOptions
from provisioner.core.errors import UsageError
from provisioner.core.hosts import LOOPBACK
from provisioner.core.models import FileSystem, Finding, SetChoice, UrlFile
from provisioner.core.redact import redact
from provisioner.core.units import count
from provisioner.environment.app_packages import requirement_lines
from provisioner.environment.requirements import unmet
from provisioner.environment.state import FAMILY, Observation
from provisioner.files import planner
from provisioner.files.choose_set import machine_words
from provisioner.files.observe import Depth
from provisioner.plan.make_plan import comfyui_step, environment_step, make_plan
from provisioner.plan.steps import (
    ComfyUIStep,
    EnvironmentStep,
    GenerateImage,
    GetComfyUI,
    InstallPackages,
    KeepEnvironment,
    MakeEnvironment,
    Plan,
    Step,
    UpdateComfyUI,
    download_of,
    place_of,
)
from provisioner.torch.choose import shipped_table

if TYPE_CHECKING:
    from provisioner.commands.parts import Part
    from provisioner.torch.builds import App


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """What the command line asks for, part by part."""

    parts: frozenset[Part]
    comfyui: ComfyUIOptions = field(default_factory=ComfyUIOptions)
    environment: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    smoke: SmokeTestOptions = field(default_factory=SmokeTestOptions)
    are_parts_named: bool = False  # by --only: what cannot be done is an error then, else it is left out and said


def plan_run(run: Run, options: InstallOptions, depth: Depth) -> Plan:
    """Return everything that the run needs, in the order in which it is done.

    Raises
    ------
    UsageError, UnsupportedMachineError
        Something that was asked for cannot be done here.
    StorageError
        A folder cannot be read.
    """
    _check_addresses(run)
    files = (
        run.plan_files(depth) if "files" in options.parts else planner.no_steps(run.manifest, run.wanted, run.target)
    )
    wants_comfyui = bool({"environment", "smoke"} & options.parts) and can_generate(run.wanted)
    comfyui = inspect_comfyui(run, options.comfyui) if wants_comfyui else None
    where = environment_folder(run, options.environment)
    steps: list[Step] = []
    findings: list[Finding] = []
    notes: list[str] = []

    of_comfyui = _comfyui_step(comfyui, options) if "environment" in options.parts else None
    if of_comfyui is not None:
        steps.append(of_comfyui)
    if comfyui is not None and not isinstance(of_comfyui, (GetComfyUI, UpdateComfyUI)):
        findings += check_comfyui(comfyui)
    steps += files.steps
    if "environment" in options.parts:
        for step, found in _environment_steps(run, options, comfyui, of_comfyui, where):
            steps.append(step)
            findings += found
    if "smoke" in options.parts:
        obstacle = _obstacle(run, options, comfyui, of_comfyui, where, steps)
        if obstacle is None or options.are_parts_named:
            steps.append(
                GenerateImage(app=app_of(run), reason="to check what is installed", server=options.smoke.server)
            )
        else:
            notes.append(f"No test image is generated: {obstacle}.")
    systems = dict(_file_systems(steps))
    links = run.session.links.on_the_way_of(steps)
    return make_plan(
        files, steps, findings=findings, notes=notes, file_systems=systems, links=links, choice=_choice(run)
    )


def _choice(run: Run) -> SetChoice:
    """Return the choice of the set, with the machine beside it wherever that is known."""
    if run.choice.machine or run.machine is None:
        return run.choice
    return replace(run.choice, machine=machine_words(run.machine))


def _check_addresses(run: Run) -> None:
    """Raise where the manifest names an address of this machine, whose servers are none of a stranger's business."""
    if run.session.settings.allows_loopback:
        return
    from urllib.parse import urlsplit  # takes 6 ms, and most runs have no such address

    for artifact in run.wanted.artifacts:
        for source in (*artifact.sources, *(source for each in artifact.accept for source in each.sources)):
            if isinstance(source, UrlFile) and urlsplit(source.url).hostname in LOOPBACK:
                raise UsageError(
                    f"The manifest fetches {artifact.id} from {redact(source.url)}, an address of this machine.",
                    hint="If you wrote it, for a test, pass --allow-loopback.",
                )


def app_of(run: Run) -> App:
    """Return which program uses the files."""
    return "comfyui" if run.wanted.target == "comfyui" else "diffusers"


def _file_systems(steps: list[Step]) -> Iterator[tuple[Path, FileSystem]]:
    from provisioner.disk.locations import file_system_of

    for step in steps:
        place = place_of(step)
        if place is not None and download_of(step) is not None:
            yield place, file_system_of(place)


# --- ComfyUI ---------------------------------------------------------------------------------------


def _comfyui_step(comfyui: ComfyUIInstall | None, options: InstallOptions) -> ComfyUIStep | None:
    if comfyui is None:
        return None
    source = options.comfyui.source or comfyui.table.repository
    return comfyui_step(comfyui.checkout, comfyui.plan, comfyui.table, folder=comfyui.folder, source=source)


# --- the environment -------------------------------------------------------------------------------


def _environment_steps(
    run: Run, options: InstallOptions, comfyui: ComfyUIInstall | None, of_comfyui: ComfyUIStep | None, where: Path
) -> Iterator[tuple[Step, tuple[Finding, ...]]]:
    """Yield what the environment needs, each step with what a person should know about it."""
    if not _is_ours(run, options, comfyui, where):
        python = None if comfyui is None else comfyui.checkout.python
        if python is not None:
            yield KeepEnvironment(where=python, reason="ComfyUI's own Python; the test image checks it"), ()
        return
    app = app_of(run)
    seen, choice, drifted, fitting = look_at_environment(run.session, where, app, options.environment)
    step = environment_step(
        seen,
        choice,
        drifted,
        where=where,
        app=app,
        download=shipped_table().download_of(choice.build.torch_backend),
        python=options.environment.python,
        python_versions=fitting,
    )
    yield step, () if isinstance(step, MakeEnvironment) and not step.replaces else drifted
    packages = _packages_step(app, of_comfyui, where, seen, step)
    if packages is not None:
        yield packages, ()


def _is_ours(run: Run, options: InstallOptions, comfyui: ComfyUIInstall | None, where: Path) -> bool:
    """Whether the environment is ours to make: ComfyUI has none of its own, or the user asked for one."""
    asked = options.environment
    if asked.torch.tag == "none":
        return False
    if comfyui is None or asked.where is not None or asked.python is not None or asked.torch.tag != "auto":
        return True
    if not comfyui.has_one:
        return options.are_parts_named
    return comfyui.is_ours_to_equip or run.session.environments.observe(where).receipt is not None


def _packages_step(
    app: App, of_comfyui: ComfyUIStep | None, where: Path, seen: Observation, step: EnvironmentStep
) -> InstallPackages | None:
    tree = of_comfyui.folder if of_comfyui is not None else None
    arrives = isinstance(of_comfyui, (GetComfyUI, UpdateComfyUI))
    is_new = isinstance(step, MakeEnvironment)
    lines = None if arrives else needed_packages(app, tree, seen, is_new=is_new)
    if lines == ():
        return None
    reason = (
        "its requirements.txt, once it is there" if lines is None else f"{count(len(lines), 'requirement')} not met"
    )
    download = shipped_table().app(app).packages
    if lines is not None and not is_new:  # most are there already; nobody knows how large these are
        download = replace(download, fetched_bytes=0, disk_bytes=0)
    return InstallPackages(where=where, app=app, tree=tree, lines=lines, reason=reason, download=download)


def needed_packages(app: App, tree: Path | None, seen: Observation, *, is_new: bool = False) -> tuple[str, ...]:
    """Return the requirement lines of an application that an environment does not meet.

    Parameters
    ----------
    app : App
        Whose requirements.
    tree : Path or None
        ComfyUI, whose own list is read.
    seen : Observation
        What is installed.
    is_new : bool
        The environment will be made: nothing but the torch set is in it then.
    """
    installed = {} if is_new else {each.name: each.version for each in seen.distributions}
    lines = requirement_lines(app)
    if app == "comfyui" and tree is not None:
        from provisioner.comfyui.checkout.checkouts import requirements_of
        from provisioner.comfyui.install_plan import requirements_to_install

        present = FAMILY if is_new else [name for name in FAMILY if name in installed]
        lines, _ = requirements_to_install(requirements_of(tree), family=FAMILY, present=present)
    version = seen.python.version if seen.python is not None and not is_new else None
    return lines if version is None else unmet(lines, installed, python_version=version)


# --- the test image --------------------------------------------------------------------------------


def _obstacle(
    run: Run,
    options: InstallOptions,
    comfyui: ComfyUIInstall | None,
    of_comfyui: ComfyUIStep | None,
    where: Path,
    steps: list[Step],
) -> str | None:
    """Return the clause that says why no image can be generated, or None."""
    if options.smoke.server is not None:
        return None
    if comfyui is not None and not comfyui.has_one:
        return "there is no ComfyUI here; name a running one with --server URL"
    if any(isinstance(step, (MakeEnvironment, KeepEnvironment)) or step.kind == "repair-environment" for step in steps):
        return None
    if comfyui is not None and comfyui.checkout.python is not None and not isinstance(of_comfyui, GetComfyUI):
        return None
    if run.session.environments.observe(where).python is not None:
        return None
    return f"there is no Python in {where} and none is to be installed; make that environment and run smoke-test"
