"""Runs whose target is a bundle: each file has the place of its blob, and is planned, fetched and verified as any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.commands.apply import apply_plan
from provisioner.commands.look import InstallOptions, plan_run
from provisioner.commands.run import Options, Run
from provisioner.core.errors import IntegrityError
from provisioner.core.models import Artifact, ArtifactSet, ComfyTarget, Licence, Manifest, SetChoice
from provisioner.files import planner

if TYPE_CHECKING:
    from provisioner.commands.session import Session

FILES_ONLY = InstallOptions(parts=frozenset({"files"}))


def run_on_blobs(
    session: Session,
    options: Options,
    manifest: Manifest,
    choice: SetChoice,
    folder: Path,
    artifacts: tuple[Artifact, ...],
) -> Run:
    """Return a run whose target is a bundle: each file of the set has the place of its blob."""
    wanted = replace(choice.set, target="comfyui", artifacts=artifacts)
    return Run(
        session=session,
        options=replace(options, extra_model_paths=()),
        manifest=replace(manifest, artifacts=artifacts, sets=(wanted,)),
        choice=replace(choice, set=wanted),
        target=ComfyTarget(given=folder, models=folder, folders=(), is_new=not folder.exists(), is_bundle=True),
        machine=session.known_machine,
    )


def run_on_listed(session: Session, folder: Path, artifacts: tuple[Artifact, ...], sha256: str) -> Run:
    """Return a run on what an index lists, which has no manifest of ours; `sha256` is that of the index."""
    whole = ArtifactSet(id="bundle", title=f"All of {folder}", target="comfyui", artifacts=artifacts)
    manifest = Manifest(
        schema_version=1,
        id="bundle",
        title=whole.title,
        licence=Licence(name="of its parts", url="", is_commercial_use_allowed=True),
        default_set=whole.id,
        sets=(whole,),
        artifacts=artifacts,
        sha256=sha256,
    )
    return run_on_blobs(session, Options(), manifest, SetChoice(set=whole), folder, artifacts)


def bring_blobs(session: Session, folder: Path, artifacts: Sequence[Artifact], sha256: str) -> None:
    """Have blobs lie in a folder, each verified; what is there already is not fetched again.

    Raises
    ------
    KleinError
        As `install`: no space, no answer, other bytes.
    """
    run = run_on_listed(session, folder, tuple(artifacts), sha256)
    plan = plan_run(run, FILES_ONLY, "claims")
    planner.check_file_sizes(plan.files)
    planner.check_space(plan.space)
    applied = apply_plan(run, FILES_ONLY, plan, show_smoke=lambda smoke: None)
    if applied.errors:
        raise applied.errors[0]
    if applied.files.steps:
        raise IntegrityError(
            f"Every step was done, but {folder} still lacks {applied.files.steps[0].artifact.id}.",
            hint="Something else changes this folder; stop it and run the same command again.",
        )
