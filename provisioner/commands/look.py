"""Looks at the machine, the target, ComfyUI and the environment once, and returns the one Plan of a run.

Writes nothing.  Says in the plan what will not be done, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.choose_environment import EnvironmentOptions, environment_folder, look_at_environment
from provisioner.commands.combination import avoided, check_combination, combination_of, requirements_here
from provisioner.commands.image_options import SmokeTestOptions
from provisioner.commands.inspect_comfyui import ComfyUIInstall, ComfyUIOptions, check_comfyui, inspect_comfyui
from provisioner.commands.packages import app_of, compare_packages, needed_packages
from provisioner.commands.parts import can_generate, needs_program
from provisioner.commands.pin_tags import pin_tags_of
from provisioner.commands.run import Run
from provisioner.core.errors import UsageError
from provisioner.core.hosts import LOOPBACK
from provisioner.core.models import ComfyTarget, FileSystem, Finding, OciFile, SetChoice, UrlFile
from provisioner.core.redact import redact
from provisioner.core.units import count, listing
from provisioner.environment.package_list import PackageChange, why_restored
from provisioner.environment.state import Observation
from provisioner.files import planner
from provisioner.files.choose_set import machine_words
from provisioner.files.memory_fit import memory_findings
from provisioner.files.observe import Depth
from provisioner.plan.make_plan import comfyui_step, environment_step, make_plan
from provisioner.plan.steps import (
    ComfyUIStep,
    EnvironmentStep,
    ExpectedRate,
    GenerateImage,
    GetComfyUI,
    InstallPackages,
    KeepEnvironment,
    MakeEnvironment,
    MoveNodePack,
    Plan,
    StartComfyUI,
    Step,
    UpdateComfyUI,
    download_of,
    place_of,
)
from provisioner.torch.choose import shipped_table

if TYPE_CHECKING:
    from provisioner.comfyui.known_bad import Combination
    from provisioner.commands.parts import Part
    from provisioner.snapshot.setup_snapshot import SetupSnapshot
    from provisioner.torch.builds import App


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """What the command line asks for, part by part."""

    parts: frozenset[Part]
    comfyui: ComfyUIOptions = field(default_factory=ComfyUIOptions)
    environment: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    smoke: SmokeTestOptions = field(default_factory=SmokeTestOptions)
    are_parts_named: bool = False  # by --only: what cannot be done is an error then, else it is left out and said
    custom_nodes: frozenset[str] = frozenset()  # ids of packs that were agreed to
    snapshot: SetupSnapshot | None = None  # what is brought back: its commit, custom nodes, torch set and packages


def plan_run(run: Run, options: InstallOptions, depth: Depth, *, looks_up_tags: bool = True) -> Plan:
    """Return everything that the run needs, in the order in which it is told.

    Tags are looked up, unless nobody may be contacted: those of OCI registries where their files have to be fetched,
    and those of ComfyUI's repository where the shipped table does not know the release that is wanted.

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
    pinned = pin_tags_of(run, files) if looks_up_tags else ()
    if pinned:
        files = run.plan_files(depth)
    wants_comfyui = bool({"environment", "smoke"} & options.parts) and needs_program(run.wanted)
    of_options = replace(options.comfyui, may_ask=looks_up_tags) if "environment" in options.parts else None
    wants_packs = _wants_packs(run, options)
    comfyui = inspect_comfyui(run, of_options) if wants_comfyui or wants_packs else None
    where = environment_folder(run, options.environment.where)
    steps: list[Step] = []
    findings: list[Finding] = []
    notes: list[str] = []

    of_comfyui = _comfyui_step(comfyui, options) if "environment" in options.parts else None
    if of_comfyui is not None:
        steps.append(of_comfyui)
    combination = _combination(run, options, comfyui, where)
    findings += () if comfyui is None else check_comfyui(comfyui)
    if combination is not None and not isinstance(of_comfyui, (GetComfyUI, UpdateComfyUI)):
        findings += check_combination(comfyui, combination, where)
    if comfyui is not None and combination is not None:
        notes += [comfyui.note] if comfyui.note is not None and of_comfyui is not None else []
        notes += avoided(comfyui, of_comfyui, combination)
    steps += _node_steps(run, options, comfyui)
    steps += files.steps
    if "environment" in options.parts:
        for step, found in _environment_steps(
            run,
            options,
            comfyui,
            of_comfyui,
            where,
            depth,
            () if combination is None else requirements_here(run, comfyui, combination),
        ):
            steps.append(step)
            findings += found
    no_packs: str | None = None
    if wants_packs:
        from provisioner.commands.manifest_packs import plan_packs  # most manifests pin none

        packs = plan_packs(run, options.custom_nodes, comfyui, of_comfyui, where)
        steps += packs.steps
        findings += packs.findings
        no_packs = packs.obstacle
    if "smoke" in options.parts:
        obstacle = _obstacle(run, options, comfyui, of_comfyui, where, steps) or no_packs
        if obstacle is None or options.are_parts_named:
            if comfyui is not None and comfyui.has_one and options.smoke.server is None:
                steps.append(StartComfyUI(folder=comfyui.folder, reason="for the test image"))
            steps.append(
                GenerateImage(app=app_of(run), reason="to check what is installed", server=options.smoke.server)
            )
        else:
            notes.append(f"No test image is generated: {obstacle}.")
    elif needs_program(run.wanted) and not can_generate(run.wanted) and "environment" in options.parts:
        notes.append(_why_no_image(run))
    machine = run.machine or run.session.known_machine
    if machine is not None and not (isinstance(run.target, ComfyTarget) and run.target.is_bundle):
        findings += memory_findings(run.wanted, machine, run.manifest.sets)
    systems = dict(_file_systems(steps))
    links = run.session.links.on_the_way_of(steps)
    plan = make_plan(
        files, steps, findings=findings, notes=notes, file_systems=systems, links=links, choice=_choice(run)
    )
    return replace(plan, rate=_expected_rate(run), pinned=pinned)


def _wants_packs(run: Run, options: InstallOptions) -> bool:
    """Whether the run is about the custom nodes of its manifest: unless it is about something else by name."""
    if options.custom_nodes:
        return True
    is_asked = "environment" in options.parts or not options.are_parts_named
    return is_asked and bool(run.manifest.custom_nodes) and run.wanted.target == "comfyui" and options.snapshot is None


def _why_no_image(run: Run) -> str:
    if run.several:
        drawn = [f"`klein-setup smoke-test --manifest {each.name}`" for each in run.several if can_generate(each.set)]
        later = f"; afterwards {listing(drawn)} make{'s' if len(drawn) == 1 else ''} one" if drawn else ""
        return f"No test image is generated of several models at once{later}."
    return f"No test image is generated: the manifest has no recipe and no workflow for the set {run.wanted.id}."


def _expected_rate(run: Run) -> ExpectedRate | None:
    """Return the rate of the last download, or the limit where that is lower; None where none was measured."""
    from provisioner.disk.last_run import read_last_rate
    from provisioner.disk.locations import state_folder

    rate, limit = read_last_rate(state_folder()), run.session.settings.limit_bytes_s
    if rate is not None and limit is not None and limit < rate:
        return ExpectedRate(limit, is_limit=True)
    return None if rate is None else ExpectedRate(rate)


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

    for pack in run.manifest.custom_nodes:
        if urlsplit(pack.address).hostname in LOOPBACK:
            raise UsageError(
                f"The manifest fetches the custom nodes {pack.id} from {redact(pack.address)}, an address of this "
                "machine.",
                hint="If you wrote it, for a test, pass --allow-loopback.",
            )
    for artifact in run.wanted.artifacts:
        for source in (*artifact.sources, *(source for each in artifact.accept for source in each.sources)):
            url = source.url if isinstance(source, UrlFile) else ""
            if isinstance(source, OciFile) and not source.repository.is_named_by_user:
                url = source.repository.base
            if urlsplit(url).hostname in LOOPBACK:
                raise UsageError(
                    f"The manifest fetches {artifact.id} from {redact(url)}, an address of this machine.",
                    hint="If you wrote it, for a test, pass --allow-loopback.",
                )


def _file_systems(steps: list[Step]) -> Iterator[tuple[Path, FileSystem]]:
    from provisioner.disk.locations import file_system_of

    for step in steps:
        place = place_of(step)
        if place is not None and download_of(step) is not None:
            yield place, file_system_of(place)


# --- ComfyUI ---------------------------------------------------------------------------------------


def _combination(run: Run, options: InstallOptions, comfyui: ComfyUIInstall | None, where: Path) -> Combination | None:
    """Return what an image would be generated with here; None where none of it is looked at."""
    is_asked = bool({"environment", "smoke"} & options.parts) and needs_program(run.wanted)
    return combination_of(run, comfyui, where) if is_asked else None


def _comfyui_step(comfyui: ComfyUIInstall | None, options: InstallOptions) -> ComfyUIStep | None:
    if comfyui is None:
        return None
    source = options.comfyui.source or comfyui.table.repository
    return comfyui_step(comfyui.checkout, comfyui.plan, comfyui.table, folder=comfyui.folder, source=source)


def _node_steps(run: Run, options: InstallOptions, comfyui: ComfyUIInstall | None) -> Iterator[Step]:
    """Yield the custom nodes of a snapshot that are at another commit and can be moved."""
    if options.snapshot is None or comfyui is None or comfyui.checkout.tree is None:
        return
    then = {each.name: each for each in options.snapshot.node_packs if each.commit is not None}
    wanted = {name: each.commit for name, each in then.items() if each.commit is not None}
    for pack in run.session.checkouts.node_packs(comfyui.checkout.tree, wanted):
        commit = wanted.get(pack.name)
        if commit is None or pack.why_not_moved is not None or (pack.commit == commit and not pack.is_interrupted):
            continue
        folder = comfyui.checkout.tree / "custom_nodes" / pack.name
        reason = "a move of it was interrupted" if pack.is_interrupted else f"it is at {(pack.commit or '')[:12]}"
        yield MoveNodePack(folder=folder, commit=commit, branch=then[pack.name].branch, reason=reason)


# --- the environment -------------------------------------------------------------------------------


def _environment_steps(
    run: Run,
    options: InstallOptions,
    comfyui: ComfyUIInstall | None,
    of_comfyui: ComfyUIStep | None,
    where: Path,
    depth: Depth,
    more: tuple[str, ...],
) -> Iterator[tuple[Step, tuple[Finding, ...]]]:
    """Yield what the environment needs, each step with what a person should know about it."""
    if not _is_ours(run, options, comfyui, where):
        python = None if comfyui is None else comfyui.checkout.python
        if python is not None:
            yield KeepEnvironment(where=python, reason="ComfyUI's own Python; the test image checks it"), ()
        return
    app = app_of(run)
    tree = of_comfyui.folder if of_comfyui is not None else None
    seen, choice, drifted, fitting = look_at_environment(run.session, where, app, options.environment)
    kept = None if options.snapshot is None else options.snapshot.environment
    if kept is not None:
        of_torch = kept.packages.packages if kept.packages is not None else ()
        digests = tuple((each.file_name, each.sha256) for each in of_torch if each.origin == "torch" and each.sha256)
        choice = replace(choice, build=replace(choice.build, sets=(kept.set,), digests=digests))
        fitting = (kept.python_minor,)
    if run.manifest.lock is not None:
        digests = (*choice.build.digests, *run.manifest.lock.torch_wheels)
        choice = replace(choice, build=replace(choice.build, digests=digests))
    compared = compare_packages(
        run.session,
        seen,
        app,
        tree,
        reads_files=depth == "full",
        more=more,
        packages=None if kept is None else kept.packages,
    )
    step = environment_step(
        seen,
        choice,
        (*drifted, *compared.torch_findings),
        where=where,
        app=app,
        download=shipped_table().download_of(choice.build.torch_backend),
        python=options.environment.python,
        python_versions=fitting,
        exactly=None if kept is None else kept.set,
    )
    found = (*drifted, *compared.findings)
    yield step, () if isinstance(step, MakeEnvironment) and not step.replaces else found
    of_app = [each for each in compared.changes if each.origin == "application" and not compared.is_excused(each)]
    if depth != "full":  # another version is somebody's decision, of a custom node for one; `repair` undoes it
        of_app = [each for each in of_app if each.what != "replaced"]
    lost = () if kept is None or kept.packages is None else kept.packages.names_of("application")
    packages = _packages_step(
        app, of_comfyui, where, seen, step, of_app, more, is_outdated=compared.is_outdated, lost=lost
    )
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
    app: App,
    of_comfyui: ComfyUIStep | None,
    where: Path,
    seen: Observation,
    step: EnvironmentStep,
    changed: list[PackageChange],
    more: tuple[str, ...],
    *,
    is_outdated: bool,
    lost: tuple[str, ...],
) -> InstallPackages | None:
    tree = of_comfyui.folder if of_comfyui is not None else None
    arrives = isinstance(of_comfyui, (GetComfyUI, UpdateComfyUI))
    is_new = isinstance(step, MakeEnvironment)
    lines = None if arrives else needed_packages(app, tree, seen, is_new=is_new, more=more)
    restores = lost if is_new else tuple(each.package for each in changed)
    if lines == () and not restores and (is_new or not is_outdated):
        return None
    reason = (
        "its requirements.txt, once it is there"
        if lines is None
        else why_restored(changed)
        if changed
        else "each from the file that it was installed from"
        if restores
        else f"{count(len(lines), 'requirement')} not met"
        if lines
        else "its requirements changed since they were resolved"
    )
    download = shipped_table().app(app).packages
    if lines is not None and not is_new:  # most are there already; nobody knows how large these are
        download = replace(download, fetched_bytes=0, disk_bytes=0)
    return InstallPackages(
        where=where, app=app, tree=tree, lines=lines, restores=restores, reason=reason, download=download
    )


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
