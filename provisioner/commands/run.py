"""What one run is about: the options of the command line made concrete on this machine."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from provisioner.commands.links import named_folder
from provisioner.commands.session import Session
from provisioner.core.errors import UsageError
from provisioner.core.models import (
    ArtifactSet,
    ComfyTarget,
    Conditions,
    FilesPlan,
    Finding,
    HubCacheTarget,
    Machine,
    Manifest,
    Outcome,
    Target,
)
from provisioner.disk.safe_path import complaint_about_folder
from provisioner.files import planner
from provisioner.files.observe import Depth, Observer
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import is_shipped, read_manifest_text
from provisioner.plan.steps import Plan
from provisioner.report.outcome import Report, ReportStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    manifest: str = "flux2-klein-4b"
    set_id: str | None = None
    comfyui: Path | None = None
    hf_cache: Path | None = None  # Path("") stands for the user's own cache
    extra_model_paths: tuple[Path, ...] = ()
    assume_yes: bool = False


@dataclass
class Run:
    """One run: what is wanted, made concrete on this machine."""

    session: Session
    options: Options
    manifest: Manifest
    wanted: ArtifactSet
    target: Target
    machine: Machine | None
    is_target_chosen_here: bool = False  # nobody named it: a folder we thought of ourselves
    observer: Observer = field(init=False)

    def __post_init__(self) -> None:
        """Say which folder the user named, and make what looks at the target."""
        target = self.target
        named = target.cache if isinstance(target, HubCacheTarget) else named_folder(target.given, target.models)
        self.session.links.named = named
        self.observer = self.session.observer(self.target)

    def plan_files(self, depth: Depth, rejected: frozenset[tuple[str, Path]] = frozenset()) -> FilesPlan:
        """Look at the files of the target and return the steps they need."""
        inventory = self.observer.observe(self.wanted, self.target, depth=depth, rejected=rejected)
        return planner.plan(self.manifest, self.wanted, self.machine, inventory)

    def report(
        self,
        command: str,
        status: ReportStatus,
        exit_status: int,
        *,
        plan: Plan | None = None,
        outcomes: tuple[Outcome, ...] = (),
        findings: tuple[Finding, ...] = (),
        errors: tuple[Exception, ...] = (),
    ) -> Report:
        """Return a report about this run."""
        return Report(
            command=command,
            status=status,
            exit_status=exit_status,
            machine=self.machine or self.session.known_machine,
            manifest=self.manifest,
            plan=plan,
            outcomes=outcomes,
            findings=findings,
            errors=errors,
            manifest_argument=self.options.manifest,
        )


# --- what a run is about ---------------------------------------------------------------------------


def load_manifest(name: str) -> Manifest:
    """Return a manifest by its id or its file; raises ManifestError or UsageError."""
    text, file = read_manifest_text(name)
    return parse_manifest(text, file=file)


def open_run(session: Session, options: Options, *, with_machine: bool = True) -> Run:
    """Return the run that the options ask for: its manifest, set, target and machine.  Changes nothing.

    Parameters
    ----------
    session, options
        What to work with, and what is asked for.
    with_machine : bool
        Look at the machine where the manifest sets conditions.

    Raises
    ------
    ManifestError, UsageError
        What was asked for does not exist or does not fit together.
    """
    manifest = load_manifest(options.manifest)
    asks = options.set_id == "auto" or any(each.conditions != Conditions() for each in manifest.sets)
    machine = session.machine if with_machine and asks else None
    wanted = _select_set(manifest, options, machine)
    target, is_chosen_here = _open_target(session, options, wanted)
    return Run(
        session=session,
        options=options,
        manifest=manifest,
        wanted=wanted,
        target=target,
        machine=machine,
        is_target_chosen_here=is_chosen_here,
    )


def _select_set(manifest: Manifest, options: Options, machine: Machine | None) -> ArtifactSet:
    if options.comfyui is not None and options.hf_cache is not None:
        raise UsageError("--comfyui and --hf-cache name two targets.", hint="Give one of them.")
    kind = "comfyui" if options.comfyui is not None else "hf_cache" if options.hf_cache is not None else None
    choice = options.set_id
    if choice is None and kind is not None:
        default = planner.select_set(manifest, None, machine)
        fitting = [default, *manifest.sets]
        choice = next((each.id for each in fitting if each.target == kind), None)
        if choice is None:
            raise UsageError(
                f"{manifest.id} has no set for {_option_of(kind)}.", hint="`klein-setup manifest show` lists its sets."
            )
    wanted = planner.select_set(manifest, choice, machine)
    if kind is not None and wanted.target != kind:
        raise UsageError(
            f"The set {wanted.id} goes into {_option_of(wanted.target)}, not into {_option_of(kind)}.",
            hint=f"Use {_option_of(wanted.target)}, or another --set.",
        )
    return wanted


def _option_of(kind: str) -> str:
    return "--comfyui" if kind == "comfyui" else "--hf-cache"


def _open_target(session: Session, options: Options, wanted: ArtifactSet) -> tuple[Target, bool]:
    """Return the target, and whether it is a folder that nobody named."""
    for folder in (options.comfyui, options.hf_cache):
        check_folder_name(folder)
    if wanted.target == "hf_cache":
        comes_with_us = is_shipped(options.manifest)
        if options.hf_cache is not None and options.hf_cache != Path():
            return HubCacheTarget(cache=options.hf_cache.expanduser().absolute(), is_shipped=comes_with_us), False
        from provisioner.files.hub_cache import cache_folder

        return HubCacheTarget(cache=cache_folder(session.environ).absolute(), is_shipped=comes_with_us), False
    if options.comfyui is not None:
        return _open_tree(session, options.comfyui, options), False
    return _usual_tree(session, options)


def check_folder_name(folder: Path | None) -> None:
    """Raise UsageError where a folder's name means something else on this system: a device, or a stream of a file."""
    complaint = None if folder is None else complaint_about_folder(folder)
    if complaint is not None:
        raise UsageError(f"{folder} is no name of a folder: it {complaint}.", hint="Name another folder.")


def _open_tree(session: Session, folder: Path, options: Options) -> ComfyTarget:
    from provisioner.comfyui.tree import open_tree

    return open_tree(
        folder.expanduser().absolute(),
        home=Path.home(),
        environ=session.environ,
        extra_configs=options.extra_model_paths,
    )


def _usual_tree(session: Session, options: Options) -> tuple[Target, bool]:
    """Return the tree of the last run, else one in the usual places, else a new one in the user's data folder."""
    from provisioner.disk import locations as places
    from provisioner.disk.last_run import read_last_run
    from provisioner.machine.readings import operating_system_named

    last = read_last_run(places.state_folder())
    if last is not None and last["kind"] == "comfyui" and os.access(last["path"], os.R_OK | os.X_OK):
        return _open_tree(session, Path(last["path"]), options), False
    candidates = places.usual_comfyui_trees(
        Path.home(), session.environ, operating_system_named(sys.platform), cwd=Path.cwd(), drives=places.drive_roots()
    )
    found = places.existing_comfyui_trees(candidates)
    if found:
        return _open_tree(session, found[0], options), True
    return _open_tree(session, places.data_folder() / "ComfyUI", options), True


def remember(run: Run) -> None:
    """Make the target of a run the default of the next one."""
    if not run.session.settings.remembers:
        return
    from provisioner.disk.last_run import write_last_run
    from provisioner.disk.locations import state_folder

    is_tree = isinstance(run.target, ComfyTarget)
    path = run.target.given if isinstance(run.target, ComfyTarget) else run.target.cache
    write_last_run(
        state_folder(),
        kind="comfyui" if is_tree else "hf_cache",
        path=path,
        manifest=_manifest_name(run),
        set_id=run.wanted.id,
    )


def _manifest_name(run: Run) -> str:
    """Return what names the manifest of a run from any folder: its id, or its file."""
    given = run.options.manifest
    return given if is_shipped(given) else str(Path(given).expanduser().absolute())


def options_of(run: Run) -> list[str]:
    """Return the options that mean this manifest, set and tree to ``start``; none where they were remembered."""
    from provisioner.disk.last_run import read_last_run
    from provisioner.disk.locations import state_folder

    last = read_last_run(state_folder())
    folder = run.target.given if isinstance(run.target, ComfyTarget) else run.target.cache
    here = (str(folder.absolute()), _manifest_name(run), run.wanted.id)
    if last is not None and (last["path"], last["manifest"], last["set"]) == here:
        return []
    named = [] if run.options.manifest == Options().manifest else ["--manifest", run.options.manifest]
    return [*named, "--set", run.wanted.id, "--comfyui", str(folder)]


def with_last_choice(options: Options) -> Options:
    """Return the options with the manifest and the set that were last provided there, where none are named."""
    from provisioner.disk.last_run import read_last_run
    from provisioner.disk.locations import state_folder

    last = read_last_run(state_folder())
    is_named = options.set_id is not None or options.manifest != Options().manifest or options.hf_cache is not None
    if last is None or last["kind"] != "comfyui" or is_named:
        return options
    if options.comfyui is not None and options.comfyui.expanduser().absolute() != Path(last["path"]):
        return options
    return replace(options, manifest=last["manifest"], set_id=last["set"])
