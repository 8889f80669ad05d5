"""Manifest -> YAML text, the way back from ``parse.py``; pure.  The text has no comments: programs read it."""

from __future__ import annotations

from dataclasses import asdict

from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    Conditions,
    CustomNode,
    Envelope,
    Fingerprint,
    GitCommit,
    HubFile,
    Lock,
    Manifest,
    OciFile,
    Source,
)
from provisioner.manifest.strict_yaml import coerced

_NUMERIC = tuple("0123456789+-.")
_UNITS = (("GB", 10**9), ("GiB", 2**30), ("MB", 10**6), ("MiB", 2**20))


def manifest_text(manifest: Manifest) -> str:
    """Return the YAML text of a manifest; contents that are accepted beside an artifact's own are left out."""
    import yaml

    document = _without_none(
        schema_version=manifest.schema_version,
        id=manifest.id,
        title=manifest.title,
        is_stand_in=manifest.is_stand_in or None,
        licence=_without_none(
            id=manifest.licence.id,
            name=manifest.licence.name,
            url=manifest.licence.url,
            is_commercial_use_allowed=manifest.licence.is_commercial_use_allowed,
            commercial_use_condition=manifest.licence.commercial_use_condition,
            notice=manifest.licence.notice,
            git_oid=manifest.licence.git_oid,
        ),
        lock=None if manifest.lock is None else _lock_entry(manifest.lock),
        custom_nodes=[_node_entry(each) for each in manifest.custom_nodes] or None,
        default_set=manifest.default_set,
        sets=[_set_entry(each) for each in manifest.sets],
        artifacts=[_artifact_entry(each) for each in manifest.artifacts],
    )

    class Quoting(yaml.SafeDumper):
        """Quotes what a reader of YAML may take for something else: the digest 0b25... or 12e4..., a class called N."""

    def written(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        is_odd = text[:1] in _NUMERIC or (text.strip() and coerced(text) is not None)
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if is_odd else None)

    Quoting.add_representer(str, written)
    return str(yaml.dump(document, Dumper=Quoting, sort_keys=False, allow_unicode=True, width=10_000))


def _node_entry(pack: CustomNode) -> dict[str, object]:
    source = pack.source
    if isinstance(source, GitCommit):
        where: dict[str, object] = {"repository": source.repository, "commit": source.commit}
    else:
        where = {"archive": source.url, "size": source.size, "sha256": source.sha256}
    entry = {"id": pack.id} | _without_none(version=pack.version) | where
    return entry | _without_none(read_from=pack.read_from, read_on=pack.read_on, nodes=list(pack.nodes) or None)


def _lock_entry(lock: Lock) -> dict[str, object]:
    return _without_none(
        manifest_sha256=lock.manifest_sha256,
        locked_on=lock.locked_on,
        version=lock.version,
        expires=lock.expires,
        torch_backend=lock.torch_backend,
        torch=lock.torch,
        torch_wheels=[{"file": name, "sha256": sha256} for name, sha256 in lock.torch_wheels] or None,
        comfyui_commit=lock.comfyui_commit,
        comfyui_version=lock.comfyui_version,
        bundle_parts=[{"name": name, "sha256": sha256} for name, sha256 in lock.bundle_parts] or None,
    )


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
        workflow=wanted.workflow and _without_none(name=wanted.workflow.name, sha256=wanted.workflow.sha256),
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
        blocks=list(artifact.blocks) or None,
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
