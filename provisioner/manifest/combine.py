"""Make one manifest of the chosen sets of several: a file that they share is in it once.  Values in, values out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from provisioner.core.errors import UsageError
from provisioner.core.models import Artifact, ArtifactSet, Conditions, CustomNode, Licence, Manifest, OperatingSystem
from provisioner.core.units import listing


def combined(parts: Sequence[tuple[Manifest, ArtifactSet]]) -> Manifest:
    """Return a manifest whose one set holds every file of these sets, for a ComfyUI tree.

    It has no recipe and no workflow: which of the models would make the test image, nobody said.

    Parameters
    ----------
    parts : sequence of (Manifest, ArtifactSet)
        At least two manifests, each with its set that was chosen.

    Raises
    ------
    UsageError
        Two sets want other bytes in one place, or one of the manifests is locked.
    """
    locked = next((each.id for each, _ in parts if each.lock is not None), None)
    if locked is not None:
        raise UsageError(
            f"{locked} is locked, and a lock describes a whole machine.", hint="Name a locked manifest alone."
        )
    artifacts: dict[str, Artifact] = {}
    for manifest, chosen in parts:
        for artifact in chosen.artifacts:
            _add(artifacts, artifact, manifest)
    wanted = ArtifactSet(
        id="+".join(chosen.id for _, chosen in parts),
        title=" and ".join(f"{chosen.id} of {manifest.id}" for manifest, chosen in parts),
        target="comfyui",
        artifacts=_with_own_ids(tuple(artifacts.values())),
        conditions=_strictest([chosen.conditions for _, chosen in parts]),
    )
    licences: tuple[Licence, ...] = tuple(dict.fromkeys(manifest.licence for manifest, _ in parts))
    return Manifest(
        schema_version=parts[0][0].schema_version,
        id="+".join(manifest.id for manifest, _ in parts),
        title=listing([manifest.title for manifest, _ in parts]),
        licence=licences[0],
        other_licences=licences[1:],
        default_set=wanted.id,
        sets=(wanted,),
        artifacts=wanted.artifacts,
        custom_nodes=_packs([manifest for manifest, _ in parts]),
        sha256=hashlib.sha256("".join(manifest.sha256 for manifest, _ in parts).encode()).hexdigest(),
    )


def _add(artifacts: dict[str, Artifact], artifact: Artifact, manifest: Manifest) -> None:
    """Add a file by its place; the same bytes that are there already only bring their sources."""
    place = f"{artifact.folder}/{artifact.name}".casefold()
    known = artifacts.setdefault(place, artifact)
    if known is artifact:
        return
    if known.sha256 != artifact.sha256:
        raise UsageError(
            f"{manifest.id} wants other bytes as {artifact.folder}/{artifact.name} than a manifest before it.",
            hint="Install them into two trees, each with its own --comfyui DIR.",
        )
    sources = tuple(dict.fromkeys((*known.sources, *artifact.sources)))
    artifacts[place] = replace(known, sources=sources)


def _packs(manifests: Sequence[Manifest]) -> tuple[CustomNode, ...]:
    """Return the packs of all; one of the same name has to be the same commit or archive."""
    packs: dict[str, CustomNode] = {}
    for manifest in manifests:
        for each in manifest.custom_nodes:
            known = packs.setdefault(each.id.casefold(), each)
            if known.source != each.source:
                raise UsageError(
                    f"{manifest.id} wants the custom nodes {each.id} of {each.pin}; a manifest before it, {known.pin}.",
                    hint="Install them into two trees, each with its own --comfyui DIR.",
                )
    return tuple(packs.values())


def _with_own_ids(artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """Return the artifacts, each with an id that no other has: manifests choose them without knowing each other."""
    taken: set[str] = set()
    own = []
    for each in artifacts:
        name = each.id if each.id not in taken else f"{each.id[:50]}-{each.sha256[:12]}"
        taken.add(name)
        own.append(replace(each, id=name))
    return tuple(own)


def _strictest(conditions: Sequence[Conditions]) -> Conditions:
    """Return what a machine must have for every set: the models are used one after the other."""
    asked = [each.platforms for each in conditions if each.platforms]
    platforms: tuple[OperatingSystem, ...] = tuple(
        each for each in (asked[0] if asked else ()) if all(each in others for others in asked)
    )
    return Conditions(
        min_vram_bytes=max((each.min_vram_bytes for each in conditions if each.min_vram_bytes), default=None),
        min_compute_capability=max(
            (each.min_compute_capability for each in conditions if each.min_compute_capability), default=None
        ),
        platforms=platforms,
    )
