"""``verify --all``: every model file of a tree looked at by its header, and the three of a set looked at together."""

from __future__ import annotations

from pathlib import Path

from provisioner.commands.run import Run
from provisioner.core.models import ComfyTarget, Finding
from provisioner.files.layout import destination_for
from provisioner.files.unlisted import is_of_interest, judge_file


def look_at_everything(run: Run) -> tuple[Finding, ...]:
    """Return what is wrong with any model file below the folders ComfyUI reads; reads headers only, writes nothing."""
    if not isinstance(run.target, ComfyTarget):
        return ()
    from provisioner.files.file_heads import files_below, read_ends
    from provisioner.identify.identification import TAIL_BYTES, how_much_to_read, identify

    kinds = {path: each.folder for each in run.target.folders for path in each.read}
    found: list[Finding] = []
    ours = {destination_for(each, run.target).path for each in run.wanted.artifacts}
    for path in files_below([run.target.models, *kinds]):
        if path in ours or not is_of_interest(path):
            continue
        seen = read_ends(path, head_length=how_much_to_read, tail_length=TAIL_BYTES)
        if seen.problem is not None:
            found.append(
                Finding(
                    code="unreadable",
                    severity="problem",
                    remedy="by-hand",
                    message=f"{path} cannot be read: {seen.problem}.",
                    path=path,
                    hint="Look at its permissions, and at the disk's health.",
                )
            )
            continue
        identity = identify(seen.head, seen.size, name=path.name, tail=seen.tail)
        found += judge_file(path, _folder_of(path, kinds, run.target.models), seen.size, identity)
    return tuple(found)


def _folder_of(path: Path, kinds: dict[Path, str], models: Path) -> str:
    for parent in path.parents:
        if parent in kinds:
            return kinds[parent]
    return path.relative_to(models).parts[0] if models in path.parents and path.parent != models else ""


def check_pairing(run: Run) -> tuple[Finding, ...]:
    """Return what does not go together among the three files that lie in the set's places, with ComfyUI's own words."""
    if not isinstance(run.target, ComfyTarget):
        return ()
    from provisioner.files.file_heads import read_ends
    from provisioner.identify.identification import TAIL_BYTES, Identity, how_much_to_read, identify, pairing_problems

    identities: dict[str, Identity] = {}
    for artifact in run.wanted.artifacts:
        path = destination_for(artifact, run.target).path
        seen = read_ends(path, head_length=how_much_to_read, tail_length=TAIL_BYTES)
        if seen.problem is None:
            identities[artifact.role] = identify(seen.head, seen.size, name=path.name, tail=seen.tail)
    found = pairing_problems(
        identities.get("diffusion_model"),
        identities.get("text_encoder"),
        identities.get("vae"),
        steps=run.wanted.envelope.steps,
        guidance=run.wanted.envelope.guidance,
    )
    # What is no model at all has a row of its own that says so: here it would be a second problem with one cause.
    return tuple(finding for finding in found if finding.code != "not-a-model")
