"""What each command does, from its options to a report.  Nothing here prints; nothing here catches defects."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.session import Session
from provisioner.core.errors import (
    EXIT_FINDINGS,
    EXIT_OK,
    AnswerNeededError,
    IntegrityError,
    KleinError,
    ManifestError,
    OfflineError,
    UnsupportedMachineError,
    UsageError,
)
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    ComfyTarget,
    Conditions,
    FetchFile,
    FilesPlan,
    Finding,
    HubCacheTarget,
    Machine,
    Manifest,
    Outcome,
    PatchFile,
    Source,
    Target,
)
from provisioner.core.ports import Part, TransferProgress
from provisioner.files import planner
from provisioner.files.observe import Depth, Observer
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text, shipped_manifests
from provisioner.manifest.strict_yaml import Composer, compose
from provisioner.report.outcome import Report, ReportStatus

if TYPE_CHECKING:
    from provisioner.torch.builds import App, TorchChoice
    from provisioner.torch.choose import TorchOptions

Ask = Callable[[str], bool]
"""Asks a question; false is the answer that changes nothing."""


def _nothing() -> None:
    """Come between the questions and the work, and do nothing."""


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
        """Make what looks at the target."""
        self.observer = self.session.observer(self.target)

    def plan(self, depth: Depth, rejected: frozenset[tuple[str, Path]] = frozenset()) -> FilesPlan:
        """Look at the target and plan."""
        inventory = self.observer.observe(self.wanted, self.target, depth=depth, rejected=rejected)
        return planner.plan(self.manifest, self.wanted, self.machine, inventory)

    def report(
        self,
        command: str,
        status: ReportStatus,
        exit_status: int,
        *,
        plan: FilesPlan | None = None,
        outcomes: tuple[Outcome, ...] = (),
        findings: tuple[Finding, ...] = (),
        errors: tuple[Exception, ...] = (),
    ) -> Report:
        """Return a report about this job."""
        return Report(
            command=command,
            status=status,
            exit_status=exit_status,
            machine=self.machine,
            manifest=self.manifest,
            plan=plan,
            outcomes=outcomes,
            findings=findings,
            errors=errors,
            manifest_argument=self.options.manifest,
        )


# --- what a run is about ---------------------------------------------------------------------------


def load_manifest(name: str, composer: Composer = compose) -> Manifest:
    """Return a manifest by its id or its file; raises ManifestError or UsageError."""
    text, file = read_manifest_text(name)
    return parse_manifest(text, file=file, composer=composer)


def open_run(session: Session, options: Options, *, with_machine: bool = True, composer: Composer = compose) -> Run:
    """Make a wish concrete: manifest, set, target, machine.  Changes nothing.

    Parameters
    ----------
    bench, wish
        What to work with, and what is asked for.
    with_machine : bool
        Look at the machine where the manifest sets conditions.
    composer : callable, optional
        How the manifest's text is read; see `adapters.documents`.

    Raises
    ------
    ManifestError, UsageError
        What was asked for does not exist or does not fit together.
    """
    manifest = load_manifest(options.manifest, composer)
    asks = options.set_id == "auto" or any(each.conditions != Conditions() for each in manifest.sets)
    machine = session.detect_machine() if with_machine and asks else None
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
    if wanted.target == "hf_cache":
        if options.hf_cache is not None and options.hf_cache != Path():
            return HubCacheTarget(cache=options.hf_cache.expanduser().absolute()), False
        from provisioner.files.hub_cache import cache_folder

        return HubCacheTarget(cache=cache_folder(session.environ).absolute()), False
    if options.comfyui is not None:
        return _open_tree(session, options.comfyui, options), False
    return _usual_tree(session, options)


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


# --- plan --------------------------------------------------------------------------------------------


def run_plan(run: Run) -> Report:
    """Return what `install` would do; nothing is written."""
    plan = run.plan("claims")
    short = [
        Finding(
            code="insufficient-space",
            severity="problem",
            remedy="by-hand",
            message=f"{need.file_system.path} has {need.file_system.free_bytes:,} bytes free and the plan needs "
            f"{need.needed_bytes:,}.",
            hint="Free some space there, or choose a smaller set or another folder.",
        )
        for need in plan.space
        if not need.is_enough
    ]
    return run.report("plan", "planned", EXIT_OK, plan=plan, findings=tuple(short))


# --- install and repair --------------------------------------------------------------------------------


def run_install(
    run: Run, ask: Ask, show: Callable[[FilesPlan], None], *, before: Callable[[], None] = _nothing
) -> Report:
    """Plan, ask, apply, prove: until a second plan is empty.

    Parameters
    ----------
    run : Run
        What to do.
    ask : callable
        Asks what needs an answer.
    show : callable
        Shows the plan before anything is done.
    before : callable
        What comes after the questions and before the first file.

    Raises
    ------
    KleinError
        Before anything was changed: no space, offline, no answer.
    """
    return _bring_about(run, "install", "claims", ask, show, before)


def run_repair(
    run: Run, ask: Ask, show: Callable[[FilesPlan], None], *, before: Callable[[], None] = _nothing
) -> Report:
    """Read every byte, then put right what is wrong; the same steps as `install`."""
    return _bring_about(run, "repair", "full", ask, show, before)


def _bring_about(
    run: Run, command: str, depth: Depth, ask: Ask, show: Callable[[FilesPlan], None], before: Callable[[], None]
) -> Report:
    plan = run.plan(depth)
    if not plan.steps:
        before()
        return _finished(run, command, plan, [])
    show(plan)
    _before_anything(run, plan, ask)
    before()
    engine = run.session.engine(run.observer)
    if run.session.is_offline:
        # A copy found here can turn out to be something else; the next plan would fetch.
        engine = replace(engine, fetcher=_NoNetwork())

    def look(rejected: frozenset[tuple[str, Path]]) -> FilesPlan:
        following = run.plan("claims", rejected)
        if rejected:
            planner.check_space(following)  # what was to be linked is fetched now
        return following

    with _locked(run, plan):
        # Somebody else may have done the work while we waited for the lock.
        plan, outcomes = engine.provide(look)
    return _finished(run, command, plan, outcomes)


class _NoNetwork:
    """Stands where the network would be when it is off."""

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


@contextlib.contextmanager
def _locked(run: Run, plan: FilesPlan) -> Iterator[None]:
    destinations = [step.destination for step in plan.steps]
    for destination in destinations:
        run.session.store.check_inside(destination)
    with run.session.store.lock(destinations):
        yield


def _before_anything(run: Run, plan: FilesPlan, ask: Ask) -> None:
    """Raise, or ask, about everything that can be known before the first byte."""
    if run.session.is_offline:
        planner.check_offline(plan)
    planner.check_space(plan)
    if run.options.assume_yes:
        return
    licence = run.manifest.licence
    fetches = any(isinstance(step, (FetchFile, PatchFile)) for step in plan.steps)
    if fetches and not licence.is_commercial_use_allowed:
        need_yes(
            ask,
            f"{licence.notice or licence.name} ({licence.url})\nDo you accept this licence?",
            hint="Choose another manifest, or accept with --yes.",
        )
    ask_about_target(run, ask)


def ask_about_target(run: Run, ask: Ask) -> None:
    """Ask before a folder is used that nobody named; raises AnswerNeededError."""
    if run.is_target_chosen_here and not run.options.assume_yes:
        need_yes(
            ask,
            f"Use {_shown(run.target)}?",
            hint="Name the folder yourself with --comfyui DIR or --hf-cache DIR.",
        )


def need_yes(ask: Ask, question: str, *, hint: str) -> None:
    """Ask, and raise AnswerNeededError unless the answer is yes."""
    if not ask(question):
        raise AnswerNeededError("Nothing was done: the question was answered with no.", hint=hint)


def _shown(target: Target) -> str:
    return str(target.models if isinstance(target, ComfyTarget) else target.cache)


def _finished(run: Run, command: str, plan: FilesPlan, outcomes: list[Outcome]) -> Report:
    """Return the report of a run that looked again at the end."""
    if plan.steps:
        errors = _failures(outcomes) or [_not_empty(plan)]
        return run.report(
            command, "failed", errors[0].exit_status, plan=plan, outcomes=tuple(outcomes), errors=tuple(errors)
        )
    _remember(run)
    problems = any(finding.severity == "problem" for finding in plan.findings)
    status: ReportStatus = "findings" if problems else "ok"
    return run.report(command, status, EXIT_FINDINGS if problems else EXIT_OK, plan=plan, outcomes=tuple(outcomes))


def _failures(outcomes: list[Outcome]) -> list[KleinError]:
    """Return why steps failed; what was tried first and was no good counts only if nothing else went wrong."""
    from provisioner.files.engine import is_retriable

    failed = [outcome for outcome in outcomes if isinstance(outcome.error, KleinError)]
    serious = [outcome for outcome in failed if not is_retriable(outcome)] or failed
    return [outcome.error for outcome in serious if isinstance(outcome.error, KleinError)]


def _not_empty(plan: FilesPlan) -> IntegrityError:
    return IntegrityError(
        f"Every step was done, and looking again still asks for {len(plan.steps)}: {plan.steps[0].reason}.",
        hint="Something else changes this folder; stop it and run the same command again.",
    )


def _remember(run: Run) -> None:
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
        manifest=run.manifest.id,
        set_id=run.wanted.id,
    )


# --- verify --------------------------------------------------------------------------------------------


def run_verify(run: Run, *, is_quick: bool) -> Report:
    """Say what holds and what does not; nothing is written, nothing is fetched."""
    plan = run.plan("quick" if is_quick else "full")
    wrong = any(check.status != "ok" for check in plan.checks)
    problems = wrong or any(finding.severity == "problem" for finding in plan.findings)
    return run.report("verify", "findings" if problems else "ok", EXIT_FINDINGS if problems else EXIT_OK, plan=plan)


# --- detect and manifest -------------------------------------------------------------------------------


def run_detect(
    session: Session,
    paths: tuple[Path, ...],
    options: TorchOptions,
    app: App,
    show: Callable[[Machine, TorchChoice | None], None],
) -> Report:
    """Show the machine and the torch build that suits it; a machine that no build suits is an error, and shown too."""
    from provisioner.torch.choose import choose_torch

    machine = session.detect_machine(paths)
    choice: TorchChoice | None = None
    errors: tuple[KleinError, ...] = ()
    try:
        choice = None if options.tag == "none" else choose_torch(machine, options, app=app)
    except (UnsupportedMachineError, UsageError) as error:
        errors = (error,)
    show(machine, choice)
    return Report(
        command="detect",
        status="failed" if errors else "ok",
        exit_status=errors[0].exit_status if errors else EXIT_OK,
        machine=machine,
        errors=errors,
        torch=choice,
    )


def shipped() -> tuple[Manifest, ...]:
    """Return every manifest that comes with the program."""
    return tuple(load_manifest(name) for name in shipped_manifests())


def about_manifests(command: str, manifests: tuple[Manifest, ...], errors: tuple[ManifestError, ...] = ()) -> Report:
    """Return a report about manifests; one that is wrong makes it fail."""
    return Report(
        command=command,
        status="failed" if errors else "ok",
        exit_status=errors[0].exit_status if errors else EXIT_OK,
        manifest=manifests[0] if len(manifests) == 1 else None,
        errors=errors,
        manifests=manifests,
    )


def check_manifests(files: tuple[str, ...]) -> tuple[tuple[Manifest, ...], tuple[ManifestError, ...]]:
    """Return the manifests that are right, and the errors of those that are not."""
    good, bad = [], []
    for file in files or shipped_manifests():
        try:
            good.append(load_manifest(file))
        except ManifestError as error:
            bad.append(error)
    return tuple(good), tuple(bad)
