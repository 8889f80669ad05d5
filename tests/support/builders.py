"""Small values for tests: say what matters, the rest is filled in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from provisioner.comfyui.model_paths import folder_roots
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    Check,
    ComfyFile,
    ComfyTarget,
    FilesPlan,
    FileSystem,
    Gpu,
    HubBlob,
    HubFile,
    Inventory,
    Licence,
    LocalCopy,
    Lookalike,
    Machine,
    Manifest,
    Recipe,
    Variant,
)
from provisioner.plan.make_plan import make_plan
from provisioner.plan.steps import Plan

COMMIT = "5e0a" * 10
OTHER_COMMIT = "c0de" * 10
MODELS = Path("/models").absolute()
GIB = 1024**3


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def _filled(more: dict[str, object], **values: object) -> dict[str, Any]:
    """Return the values, with what was said put over them."""
    return {**values, **more}


def hub_file(filename: str = "split_files/vae/vae.safetensors", **more: object) -> HubFile:
    """Return a file on the Hub."""
    return HubFile(**_filled(more, repo_id="org/name", revision=COMMIT, filename=filename))


def artifact(data: bytes = b"the right bytes", *, id: str = "vae", **more: object) -> Artifact:  # noqa: A002
    """Return an artifact whose content is `data`."""
    name = str(more.get("name", f"{id}.safetensors"))
    return Artifact(
        **_filled(
            more,
            id=id,
            role="vae",
            name=name,
            folder="vae",
            size=len(data),
            sha256=sha256(data),
            sources=(hub_file(f"split_files/vae/{name}"),),
        )
    )


def variant(data: bytes, what: str = "as good", **more: object) -> Variant:
    """Return other bytes that are as good."""
    return Variant(**_filled(more, size=len(data), sha256=sha256(data), what=what))


def lookalike(data: bytes, what: str = "The base model, not the distilled one.") -> Lookalike:
    """Return bytes that are known to be something else."""
    return Lookalike(size=len(data), sha256=sha256(data), what=what)


KLEIN_RECIPE = Recipe(
    clip_type="flux2", latent="EmptyFlux2LatentImage", sampler="euler", scheduler_node="Flux2Scheduler"
)
"""As the shipped manifests of Klein have it."""


def artifact_set(*artifacts: Artifact, **more: object) -> ArtifactSet:
    """Return a set of artifacts for a ComfyUI tree."""
    return ArtifactSet(**_filled(more, id="fp8", title="A set", target="comfyui", artifacts=artifacts))


def manifest(*sets: ArtifactSet, **more: object) -> Manifest:
    """Return a manifest with some sets; the first is the default."""
    chosen = sets or (artifact_set(artifact()),)
    return Manifest(
        **_filled(
            more,
            schema_version=1,
            id="klein",
            title="A manifest",
            licence=Licence(name="Apache-2.0", url="https://example.org/licence", is_commercial_use_allowed=True),
            default_set=chosen[0].id,
            sets=chosen,
            artifacts=tuple({each.id: each for one in chosen for each in one.artifacts}.values()),
            sha256="0" * 64,
        )
    )


def gpu(**more: object) -> Gpu:
    """Return an NVIDIA GPU of 24 GiB."""
    known = {"memory_total_bytes": 24 * GIB, "compute_capability": (8, 9), **more}
    return Gpu(**_filled(known, vendor="nvidia", name="A card", index=0))


def machine(*gpus: Gpu, **more: object) -> Machine:
    """Return a Linux machine with these GPUs."""
    known = {"libc": "glibc 2.36", "python_version": "3.11.7", "gpus": gpus, **more}
    return Machine(**_filled(known, os="linux", os_release="6.1", is_wsl=False, architecture="x86_64"))


def comfy_target(models: Path = MODELS) -> ComfyTarget:
    """Return a ComfyUI tree with nothing but its models folder."""
    return ComfyTarget(given=models, models=models, folders=folder_roots(models))


def comfy_file(wanted: Artifact, root: Path = MODELS) -> ComfyFile:
    """Return where an artifact goes in a tree."""
    assert wanted.folder is not None
    return ComfyFile(root=root, relative=PurePosixPath(wanted.folder, wanted.name))


def hub_blob(cache: Path, wanted: Artifact, **more: object) -> HubBlob:
    """Return where an artifact goes in an HF cache."""
    source = wanted.sources[0]
    assert isinstance(source, HubFile)
    root = cache / ("models--" + source.repo_id.replace("/", "--"))
    return HubBlob(**_filled(more, root=root, revision=source.revision, filename=source.filename, is_lfs=wanted.is_lfs))


def file_system(
    path: Path = MODELS, *, device: int = 1, free_bytes: int = 10**12, kind: str | None = None
) -> FileSystem:
    """Return a file system."""
    return FileSystem(path=path, device=device, total_bytes=10**13, free_bytes=free_bytes, kind=kind)


def check(wanted: Artifact, status: str = "ok", **more: object) -> Check:
    """Return a comparison that came out as `status`."""
    basis = {"ok": "receipt", "missing": "none", "unreadable": "none", "size-mismatch": "size"}.get(status, "sha256")
    if status == "size-mismatch":
        more.setdefault("observed_size", wanted.size + 1)
    known = {"destination": comfy_file(wanted), "device": 1, "is_recorded": status == "ok", **more}
    return Check(**_filled(known, artifact=wanted, status=status, basis=basis))


def local_copy(wanted: Artifact, path: Path, *, device: int = 1, **more: object) -> LocalCopy:
    """Return a file elsewhere that may hold an artifact's bytes."""
    known = {"origin": "--look-in", "size": wanted.size, "sha256": wanted.sha256, **more}
    return LocalCopy(**_filled(known, artifact_id=wanted.id, path=path, device=device))


def inventory(*checks: Check, **more: object) -> Inventory:
    """Return what lies in a tree."""
    return Inventory(**_filled(more, target=comfy_target(), checks=checks, file_systems=(file_system(),)))


def whole(files: FilesPlan) -> Plan:
    """Return the plan of a run that is about files alone."""
    return make_plan(files, files.steps)


def recording_of(machine: Machine) -> str:
    """Return a machine as the recording that KLEIN_SETUP_MACHINE names."""
    return json.dumps({"schema_version": 1, **asdict(machine)}, default=str)
