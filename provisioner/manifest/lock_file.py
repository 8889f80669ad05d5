"""Write a locked manifest: one set as it is installed on one machine, with the digest of every block.

Pure: values in, text out.  Only verified files are locked, with the digests found in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from provisioner.core.errors import LockDriftError, ManifestError
from provisioner.core.models import (
    BLOCK_SIZE,
    Artifact,
    ArtifactSet,
    Conditions,
    Envelope,
    Fingerprint,
    HubFile,
    Lock,
    Manifest,
    OciFile,
    Source,
)

_UNITS = (("GB", 10**9), ("GiB", 2**30), ("MB", 10**6), ("MiB", 2**20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One file that was just verified."""

    size: int  # bytes
    sha256: str
    blocks: tuple[str, ...]  # SHA-256 of every 16 MiB, in order


def locked_text(manifest: Manifest, wanted: ArtifactSet, verified: Mapping[str, Verified], lock: Lock) -> str:
    """Return the YAML text of a manifest of one set that names exactly the bytes on this machine.

    Parameters
    ----------
    manifest : Manifest
        The manifest to lock.
    wanted : ArtifactSet
        The set that is installed.
    verified : mapping of str to Verified
        By artifact id, the file that was found, every byte of it read.
    lock : Lock
        What is installed on the machine.

    Raises
    ------
    ManifestError
        A file was not verified, or is something the manifest does not accept.
    """
    import yaml

    artifacts = tuple(_locked(each, verified.get(each.id)) for each in wanted.artifacts)
    document = {
        "schema_version": manifest.schema_version,
        "id": manifest.id,
        "title": manifest.title,
        "licence": _without_none(
            id=manifest.licence.id,
            name=manifest.licence.name,
            url=manifest.licence.url,
            is_commercial_use_allowed=manifest.licence.is_commercial_use_allowed,
            commercial_use_condition=manifest.licence.commercial_use_condition,
            notice=manifest.licence.notice,
        ),
        "lock": _without_none(
            manifest_sha256=lock.manifest_sha256,
            locked_on=lock.locked_on,
            version=lock.version,
            expires=lock.expires,
            torch_backend=lock.torch_backend,
            torch=lock.torch,
            torch_wheels=[{"file": name, "sha256": sha256} for name, sha256 in lock.torch_wheels] or None,
            comfyui_commit=lock.comfyui_commit,
            comfyui_version=lock.comfyui_version,
        ),
        "default_set": wanted.id,
        "sets": [_set_entry(wanted)],
        "artifacts": [_artifact_entry(each) for each in artifacts],
    }
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=10_000))


def _locked(artifact: Artifact, file_digest: Verified | None) -> Artifact:
    """Return the artifact with the content found: its own, or the accepted variant of it."""
    variant = next((each for each in artifact.contents if file_digest and each.sha256 == file_digest.sha256), None)
    if file_digest is None or variant is None:
        raise ManifestError(
            f"{artifact.name} is not the file the manifest names, so it cannot be locked.",
            hint="Run `klein-setup verify`, fix what it finds, and lock again.",
        )
    if len(file_digest.blocks) != -(-file_digest.size // BLOCK_SIZE):
        raise ManifestError(
            f"{artifact.name} was verified without the digests of its blocks.",
            hint="Run `klein-setup verify` once, which records them, and lock again.",
        )
    is_own = file_digest.sha256 == artifact.sha256
    return replace(
        artifact,
        size=file_digest.size,
        sha256=file_digest.sha256,
        blocks=file_digest.blocks,
        accept=(),
        sources=artifact.sources if is_own else variant.sources or artifact.sources,
        fingerprint=artifact.fingerprint if is_own else None,
        provenance=artifact.provenance if is_own else None,
    )


def drift_from(
    lock: Lock,
    *,
    torch_backend: str | None,
    torch: str | None,
    comfyui_commit: str | None,
    torch_wheels: tuple[tuple[str, str], ...] = (),
) -> tuple[str, ...]:
    """Return a clause for every version known here that differs from the lock.

    >>> locked = Lock(manifest_sha256="0" * 64, locked_on="2026-11-23", torch="2.11.0", torch_backend="cu130")
    >>> drift_from(locked, torch_backend="cu130", torch="2.13.0", comfyui_commit=None)
    ('torch is 2.13.0 here and 2.11.0 in the lock',)
    """
    pairs = (
        ("torch", torch and torch.partition("+")[0], lock.torch),
        ("torch's build", torch_backend, lock.torch_backend),
        ("ComfyUI's commit", comfyui_commit, lock.comfyui_commit),
    )
    locked_wheels = dict(lock.torch_wheels)
    return (
        *(
            f"{what} is {here} here and {locked} in the lock"
            for what, here, locked in pairs
            if here and locked and here != locked
        ),
        *(
            f"{name} had the SHA-256 {sha256} here and has {locked_wheels[name]} in the lock"
            for name, sha256 in torch_wheels
            if locked_wheels.get(name, sha256) != sha256
        ),
    )


def refuse_drift(manifest: Manifest, differences: tuple[str, ...]) -> None:
    """Raise LockDriftError for differences, and ManifestError for a manifest that is not locked (``--locked``)."""
    if manifest.lock is None:
        raise ManifestError(
            f"{manifest.id} is not locked, and --locked was given.",
            hint="Name a file that `klein-setup manifest lock` wrote with --manifest FILE.",
        )
    if differences:
        raise LockDriftError(
            f"This machine differs from the lock of {manifest.lock.locked_on}: {'; '.join(differences)}.",
            hint="Restore it with `klein-setup repair`, or write a new lock with `klein-setup manifest lock`.",
            differences=list(differences),
        )


# --- entries ---------------------------------------------------------------------------------------


def _without_none(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _set_entry(wanted: ArtifactSet) -> dict[str, object]:
    return _without_none(
        id=wanted.id,
        title=wanted.title,
        target=wanted.target,
        artifacts=[each.id for each in wanted.artifacts],
        conditions=_conditions_entry(wanted.conditions),
        envelope=_envelope_entry(wanted.envelope),
        recipe=None if wanted.recipe is None else _without_none(**asdict(wanted.recipe)),
        template=wanted.template,
        note=wanted.note,
    )


def _conditions_entry(conditions: Conditions) -> dict[str, object] | None:
    capability = conditions.min_compute_capability
    entry = _without_none(
        min_vram=memory_text(conditions.min_vram_bytes),
        min_compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        platforms=list(conditions.platforms) or None,
    )
    return entry or None


def _envelope_entry(envelope: Envelope) -> dict[str, object] | None:
    entry = _without_none(
        vram=memory_text(envelope.vram_bytes),
        steps=envelope.steps,
        guidance=envelope.guidance,
        source=envelope.source,
    )
    return entry or None


def memory_text(count: int | None) -> str | None:
    """Return an amount of memory that was read from a manifest as a manifest writes it.

    >>> memory_text(8_400_000_000), memory_text(11 * 2**30), memory_text(10_702 * 2**20)
    ('8.4 GB', '11 GiB', '10702 MiB')
    """
    if count is None:
        return None
    written = ((f"{count / size:.3f}".rstrip("0").rstrip("."), unit, size) for unit, size in _UNITS)
    return next(f"{text} {unit}" for text, unit, size in written if round(float(text) * size) == count >= size)


def _artifact_entry(artifact: Artifact) -> dict[str, object]:
    provenance = artifact.provenance
    return _without_none(
        id=artifact.id,
        role=artifact.role,
        name=artifact.name,
        folder=artifact.folder,
        size=artifact.size,
        sha256=artifact.sha256,
        sources=[_source_entry(each) for each in artifact.sources],
        lookalikes=[{"size": each.size, "sha256": each.sha256, "what": each.what} for each in artifact.lookalikes]
        or None,
        fingerprint=_fingerprint_entry(artifact.fingerprint),
        provenance=None
        if provenance is None
        else {
            "read_from": provenance.read_from,
            "read_on": provenance.read_on,
            "agreeing": provenance.agreeing,
            "confidence": provenance.confidence,
        },
        licence=artifact.licence,
        is_gated=artifact.is_gated or None,
        is_lfs=None if artifact.is_lfs else False,
        git_oid=artifact.git_oid,
        min_comfyui=artifact.min_comfyui,
        note=artifact.note,
        blocks=list(artifact.blocks),
    )


def _source_entry(source: Source) -> dict[str, object]:
    if isinstance(source, HubFile):
        return {"repo_id": source.repo_id, "revision": source.revision, "filename": source.filename}
    return {"oci": str(source)} if isinstance(source, OciFile) else {"url": source.url}


def _fingerprint_entry(known: Fingerprint | None) -> dict[str, object] | None:
    if known is None:
        return None
    return _without_none(
        tensors=known.tensors,
        header_bytes=known.header_bytes,
        payload_bytes=known.payload_bytes,
        schema_sha256=known.schema_sha256,
        dtypes=dict(known.dtypes) or None,
        proof=known.proof,
    )
