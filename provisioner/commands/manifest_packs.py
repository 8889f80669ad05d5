"""The custom nodes that a run's manifest pins: planned, asked about by name, installed, compared, and missed.

They are third-party code.  Who agrees to one, names it; ``--yes`` is no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.checkout.node_packs import FOLDER
from provisioner.commands.combination import combination_of, requirements_here
from provisioner.commands.inspect_comfyui import ComfyUIInstall, inspect_comfyui
from provisioner.commands.packages import all_requirements
from provisioner.commands.run import options_of
from provisioner.core.errors import CommandError, PlanOutdatedError, UsageError
from provisioner.core.events import Notice
from provisioner.core.models import CustomNode, Finding
from provisioner.core.redact import redact
from provisioner.core.suggestions import did_you_mean
from provisioner.core.units import human_bytes, listing
from provisioner.environment.pack_requirements import PackRequirements, pack_requirements
from provisioner.environment.requirements import unmet
from provisioner.plan.steps import (
    NODES_LEFT_OUT,
    ComfyUIStep,
    GenerateImage,
    GetComfyUI,
    InstallNodePack,
    Plan,
    StartComfyUI,
    Step,
)

if TYPE_CHECKING:
    from provisioner.comfyui.checkout.pack_installs import FetchedPack
    from provisioner.comfyui.checkout_models import PackCheck
    from provisioner.commands.questions import Ask
    from provisioner.commands.run import Run
    from provisioner.environment.environments import Installer
    from provisioner.environment.state import Observation

_RUNS_AS_YOU = "third-party code that will run as you; its install scripts are not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPacks:
    """What is done about the packs of a manifest, and why not more."""

    steps: tuple[InstallNodePack, ...] = ()
    findings: tuple[Finding, ...] = ()
    obstacle: str | None = None  # why a workflow of the manifest can generate no image, as a clause


def _check_named(run: Run, named: Iterable[str]) -> None:
    """Raise UsageError where ``--custom-node`` names what the manifest does not pin."""
    known = [each.id for each in run.manifest.custom_nodes]
    unknown = next((name for name in named if name not in known), None)
    if unknown is not None:
        raise UsageError(
            f"--custom-node names {unknown!r}, which {run.manifest.id} does not pin.{did_you_mean(unknown, known)}",
            hint=f"It pins {listing(known)}." if known else "It pins no custom nodes.",
        )


def plan_packs(
    run: Run, named: Iterable[str], comfyui: ComfyUIInstall | None, of_comfyui: ComfyUIStep | None, environment: Path
) -> PlannedPacks:
    """Return a step for each pack that is not there, and a finding for each that cannot be installed.

    Parameters
    ----------
    run : Run
        Whose manifest says which.
    named : iterable of str
        Those of ``--custom-node``.
    comfyui : ComfyUIInstall or None
        ComfyUI as it was found.
    of_comfyui : ComfyUIStep or None
        What is done about ComfyUI itself.
    environment : Path
        Where their requirements go.

    Raises
    ------
    UsageError
        One was named that the manifest does not pin.
    """
    _check_named(run, named)
    packs = run.manifest.custom_nodes
    tree = of_comfyui.folder if isinstance(of_comfyui, GetComfyUI) else None
    tree = tree or (None if comfyui is None else comfyui.checkout.tree)
    if tree is None:
        hint = "Name a ComfyUI with --comfyui DIR."
        return PlannedPacks(
            findings=tuple(_left_out(each, "there is no ComfyUI to add them to", hint) for each in packs)
        )
    steps: list[InstallNodePack] = []
    findings: list[Finding] = []
    absent: list[str] = []
    for pack in packs:
        found = run.session.packs.look(tree, pack)
        if found.state == "kept":
            findings.append(_left_out(pack, found.reason, found.hint))
        elif found.state == "absent" and run.session.is_offline:
            absent.append(pack.id)
            findings.append(
                _left_out(pack, "the network is off", "Run it without --offline; a bundle has no custom nodes.")
            )
        elif found.state == "absent":
            size = "" if (bytes_ := _size(pack)) is None else f", {human_bytes(bytes_)}"
            reason = f"{_RUNS_AS_YOU}; from {redact(pack.address)}{size}"
            folder = tree / FOLDER / pack.id
            steps.append(InstallNodePack(folder=folder, tree=tree, pack=pack, environment=environment, reason=reason))
    obstacle = _no_image_without(absent) if absent and run.wanted.workflow is not None else None
    return PlannedPacks(steps=tuple(steps), findings=tuple(findings), obstacle=obstacle)


def _no_image_without(names: Sequence[str]) -> str:
    return f"its workflow needs the custom nodes {listing(names)}, which are not installed"


def _left_out(pack: CustomNode, why: str, hint: str) -> Finding:
    return Finding(
        code=NODES_LEFT_OUT,
        severity="warning",
        remedy="by-hand",
        message=f"The custom nodes {pack.id} are not installed: {why}.",
        hint=hint,
    )


def _size(pack: CustomNode) -> int | None:
    return getattr(pack.source, "size", None)


def agreed_packs(plan: Plan, named: frozenset[str], ask: Ask | None, *, keeps_image: bool = False) -> Plan:
    """Return the plan with the packs that somebody agreed to by name, and a finding about each of the others.

    Parameters
    ----------
    plan : Plan
        What would be done.
    named : frozenset of str
        Those of ``--custom-node``.
    ask : callable or None
        Asks about each of the others; None where nobody is there, or ``--yes`` is to answer.
    keeps_image : bool
        The test image was asked for by name: that it cannot be generated is an error then.
    """
    left: list[InstallNodePack] = []
    for step in plan.steps:
        if not isinstance(step, InstallNodePack) or step.pack.id in named:
            continue
        if ask is None or not ask(_question(step)):
            left.append(step)
    if not left:
        return plan
    found = (
        _left_out(
            each.pack,
            f"they are third-party code that would run as you ({each.pack.pin}, from {redact(each.pack.address)}), and "
            "nobody agreed to them by name",
            f"If you trust their author, add --custom-node {each.pack.id}; --yes does not agree to it.",
        )
        for each in left
    )
    dropped: list[Step] = [*left]
    notes = plan.notes
    images = [each for each in plan.steps if isinstance(each, GenerateImage) and each.server is None]
    if images and plan.set.workflow is not None and not keeps_image:
        dropped += [each for each in plan.steps if each in images or isinstance(each, StartComfyUI)]
        notes += (f"No test image is generated: {_no_image_without([each.pack.id for each in left])}.",)
    return replace(
        plan,
        steps=tuple(each for each in plan.steps if each not in dropped),
        findings=(*plan.findings, *found),
        notes=notes,
    )


def _question(step: InstallNodePack) -> str:
    pack = step.pack
    version = f" {pack.version}" if pack.version else ""
    return (
        f"The workflow needs the custom nodes {pack.id}{version} ({pack.pin}, from {redact(pack.address)}): "
        "third-party code, which nobody at klein-setup has read, and which will run as you.\nInstall it?"
    )


# --- installing ------------------------------------------------------------------------------------


def install_pack(run: Run, step: InstallNodePack, installer: Installer) -> str:
    """Fetch a pack, verify it, install what it requires under the constraints, and give it its name.

    Raises
    ------
    PlanOutdatedError
        Something lies in its place by now.
    CommandError
        What it requires excludes what is there, or is nothing that is installed; nothing was changed.
    KleinError
        As `PackInstalls.fetched` and `Environments.install`.
    """
    session, pack = run.session, step.pack
    found = session.packs.look(step.tree, pack)
    if found.state == "right":
        return f"{pack.id} is there by now"
    if found.state == "kept":
        raise PlanOutdatedError(
            f"{step.folder} changed after the plan was shown: {found.reason}.", hint=found.hint, path=str(step.folder)
        )
    with session.stages.stage("installing", f"the custom nodes {pack.id}", "installed") as came_of_it:
        with session.packs.fetched(step.tree, pack, progress=session.stages.teller) as fetched:
            lines = _install_requirements(run, step, fetched, installer)
            session.packs.place(step.tree, fetched, lines)
        came_of_it(f"the custom nodes {pack.id} ({pack.pin})")
    return f"{pack.id} is at {pack.pin}"


def _install_requirements(
    run: Run, step: InstallNodePack, fetched: FetchedPack, installer: Installer
) -> tuple[str, ...]:
    """Install what a pack requires together with everything else that is required; return its lines."""
    rows = fetched.requirements()
    if not rows:
        return ()
    comfyui = inspect_comfyui(run)
    where = _environment(step, comfyui)
    seen = run.session.environments.observe(where)
    if seen.python is None:
        raise UsageError(
            f"The custom nodes {step.pack.id} require packages, and there is no Python in {where}.",
            hint="Make the environment first: `klein-setup install --only environment`.",
        )
    installed = {each.name: each.version for each in seen.distributions}
    found = pack_requirements(rows, installed=installed, python_version=seen.python.version)
    _refuse(step, found)
    if found.left_out:
        said = f"{step.pack.id} asks for {listing(found.left_out)}, which is not in this torch set: left out."
        run.session.events(Notice(message=said, severity="warning"))
    missing = unmet(found.lines, installed, python_version=seen.python.version)
    if seen.receipt is None:
        _refuse_foreign(step, seen, missing)
        return found.lines
    combination = combination_of(run, comfyui, where)
    more = requirements_here(run, comfyui, combination, {step.pack.id: found.lines})
    together = tuple(dict.fromkeys((*all_requirements("comfyui", step.tree, installed), *more)))
    try:
        run.session.environments.install(
            where,
            together if missing else (),  # with the others' requirements, so that none of them is broken
            out_of=(*all_requirements("comfyui", step.tree), *more),
            installer=installer,
            progress=run.session.stages.teller,
        )
    except CommandError as error:
        if error.context.get("reason") != "conflict":
            raise
        raise CommandError(
            f"The custom nodes {step.pack.id} were not installed, and no package was changed. {error}",
            hint="They do not fit to this ComfyUI and its other custom nodes. Pin another version of them with "
            "`klein-setup manifest from-workflow --node-version`, or give them a ComfyUI of their own.",
            **error.context,
        ) from error
    return found.lines


def _environment(step: InstallNodePack, comfyui: ComfyUIInstall | None) -> Path:
    """Return the folder of our environment, else that of ComfyUI's own Python."""
    python = None if comfyui is None else comfyui.checkout.python
    if step.environment.is_dir() or python is None:
        return step.environment
    return python.parent.parent if python.parent.name in {"bin", "Scripts"} else python.parent


def _refuse(step: InstallNodePack, found: PackRequirements) -> None:
    if found.refusals:
        raise CommandError(
            f"The custom nodes {step.pack.id} were not installed, and no package was changed: "
            f"{listing(found.refusals[:4])}.",
            hint="If you trust its author, install it yourself, as its page says; torch should stay as it is.",
            reason="requirements",
        )


def _refuse_foreign(step: InstallNodePack, seen: Observation, missing: tuple[str, ...]) -> None:
    if missing and seen.python is not None:
        raise CommandError(
            f"The custom nodes {step.pack.id} require {listing(missing)}, and klein-setup did not make the Python of "
            "this ComfyUI: it adds nothing to it.",
            hint=f"Install these yourself with the pip of {seen.python.path}, and run the same command again.",
            reason="requirements",
        )


# --- afterwards ------------------------------------------------------------------------------------


def check_packs(run: Run, comfyui: ComfyUIInstall | None) -> tuple[Finding, ...]:
    """Return how the packs that klein-setup installed differ from then, and which of the manifest's are not there."""
    tree = None if comfyui is None else comfyui.checkout.tree
    if tree is None:
        return ()
    checked = run.session.packs.check_all(tree)
    changed = tuple(_changed(run, tree, each) for each in checked if not each.is_whole)
    told = {each.receipt.name for each in checked}
    missing = tuple(
        _missing(run, tree, each)
        for each in run.manifest.custom_nodes
        if each.id not in told and run.session.packs.look(tree, each).state == "absent"
    )
    return (*changed, *missing)


def _changed(run: Run, tree: Path, found: PackCheck) -> Finding:
    name = found.receipt.name
    path = tree / FOLDER / name
    if found.is_gone:
        return Finding(
            code="custom-nodes-gone",
            severity="problem",
            remedy="by-hand",
            message=f"The custom nodes {name}, which klein-setup installed, are gone.",
            path=path,
            hint=f"{_command(run, name)} installs them again; `klein-setup uninstall --only custom-nodes` forgets "
            "them.",
        )
    some = listing((*found.changed, *found.missing), most=3)
    pin = found.receipt.archive_sha256 or found.receipt.checkout.commit
    return Finding(
        code="custom-nodes-changed",
        severity="problem",
        remedy="by-hand",
        message=f"The custom nodes {name} are not as they were installed ({pin[:12]}): {some}.",
        path=path,
        hint="If you changed or updated them, nothing is wrong, and klein-setup leaves them alone. Else remove them "
        "with `klein-setup uninstall --only custom-nodes`, and install them again.",
    )


def _missing(run: Run, tree: Path, pack: CustomNode) -> Finding:
    return Finding(
        code="custom-nodes-missing",
        severity="warning",
        remedy="by-hand",
        message=f"The workflow of the manifest needs the custom nodes {pack.id}, which are not there.",
        path=tree / FOLDER / pack.id,
        hint=f"{_command(run, pack.id)} installs them: third-party code from {redact(pack.address)}.",
    )


def _command(run: Run, name: str) -> str:
    words = [*options_of(run, None), "--custom-node", name]
    return f"`{run.session.settings.program.command('install', words)}`"
