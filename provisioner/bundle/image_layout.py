"""The JSON of a bundle: an OCI image layout whose manifests list model files, ComfyUI's archive and wheels as blobs.

``index.json`` names one manifest for each set of model files and one for each other part.  Model files follow CNCF's
ModelPack specification; the rest has media types of its own.  Sources: the image layout and the image manifest of OCI
image-spec 1.1 (https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md, manifest.md) and
https://github.com/modelpack/model-spec/blob/v0.0.7/docs/spec.md.

A bundle comes on somebody's stick: what is read here is bounded, and a name in it never becomes a path.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from provisioner.core.errors import NotTheFileError
from provisioner.core.json_reader import as_dict, as_list, parse_object
from provisioner.core.models import Artifact, ArtifactSet

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
"""What stands in ``oci-layout``."""

BLOBS = "blobs/sha256"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
COMFYUI_TYPE = "application/vnd.klein-setup.comfyui.v1"
WHEELS_TYPE = "application/vnd.klein-setup.wheels.v1"
PROGRAM_TYPE = "application/vnd.klein-setup.program.v1"
_MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
_MODEL_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
_MODEL_SETTINGS = "application/vnd.cncf.model.weight.config.v1.raw"
_EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
_FILE_PATH = "org.cncf.model.filepath"
_TITLE = "org.opencontainers.image.title"
_NAME = "org.opencontainers.image.ref.name"
_VERSION = "org.opencontainers.image.version"
_COMMIT = "org.opencontainers.image.revision"
_TREE = "vnd.klein-setup.tree"
_KIND = "vnd.klein-setup.kind"

LARGEST_JSON = 4 * 1024 * 1024
"""Bytes of an index or a manifest; what the distribution specification asks registries to take at least."""

MOST_PARTS = 5_000
"""Blobs of one manifest, and manifests of one index: a bundle of ours has a few hundred at the most."""

MOST_MANIFEST_BYTES = 4 * LARGEST_JSON
"""Of all manifests of one index together, each as often as it is named: what is kept in memory stays below 100 MB."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LARGEST_BLOB = 2**53  # bytes; beyond that a number of JSON is not exact

PartKind = Literal["models", "comfyui", "wheels", "program"]
_TYPE_OF: Mapping[PartKind, str] = {
    "models": MODEL_TYPE,
    "comfyui": COMFYUI_TYPE,
    "wheels": WHEELS_TYPE,
    "program": PROGRAM_TYPE,
}
_KIND_OF = {value: key for key, value in _TYPE_OF.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One file of a bundle; it lies in ``blobs/sha256`` under its digest."""

    sha256: str  # 64 lower-case hex digits
    size: int  # bytes
    title: str  # what a person calls it, "vae/flux2-vae.safetensors"; never a path here
    media_type: str = "application/octet-stream"
    kind: str | None = None  # of a wheel: its index, "torch" or "packages"; of klein-setup's: "linux-x86_64-cp312"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One manifest of a bundle, and the files that it lists."""

    name: str  # "flux2-klein-4b/fp8", "comfyui", "wheels/linux-cp312-cu130", "klein-setup"
    kind: PartKind
    blobs: tuple[Blob, ...]
    version: str | None = None
    commit: str | None = None  # of ComfyUI, 40 hex digits
    tree: str | None = None  # git's id of that commit's files, which verifies the archive
    config: Blob | None = field(default=None, compare=False)  # as it was read; `manifest_files` makes it anew
    manifest_sha256: str | None = field(default=None, compare=False)  # of the manifest that it was read from

    @property
    def size(self) -> int:
        """Bytes of all its files, each once."""
        return sum({blob.sha256: blob.size for blob in self.blobs}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A manifest as the index names it."""

    name: str
    sha256: str
    size: int  # bytes of the manifest


# --- model files as blobs ----------------------------------------------------------------------------


def models_part(manifest_id: str, wanted: ArtifactSet) -> Part:
    """Return the part for the files of a set, under the names that they have in a target."""
    blobs = [
        Blob(
            sha256=each.sha256,
            size=each.size,
            title=_title(each),
            media_type=_MODEL_SETTINGS if each.role == "other" else _MODEL_WEIGHT,
        )
        for each in wanted.artifacts
    ]
    return Part(name=f"{manifest_id}/{wanted.id}", kind="models", blobs=tuple(blobs))


def _title(artifact: Artifact) -> str:
    return f"{artifact.folder}/{artifact.name}" if artifact.folder else artifact.name


def blob_artifacts(artifacts: Iterable[Artifact]) -> tuple[Artifact, ...]:
    """Return artifacts whose place is that of a blob, so that they are fetched, verified and repaired as any other.

    Of two with the same bytes one is left.  Only the artifact's own content has that place: what else a target accepts
    has another digest.
    """
    placed = {
        each.sha256: replace(
            each, name=each.sha256, folder=BLOBS, accept=(), lookalikes=(), fingerprint=None, known_as=_title(each)
        )
        for each in artifacts
    }
    return tuple(placed.values())


def artifacts_of(parts: Iterable[Part]) -> tuple[Artifact, ...]:
    """Return every file of a bundle as an artifact without a source, for reading all of it."""
    known = {blob.sha256: blob for part in parts for blob in (part.config, *part.blobs) if blob is not None}
    return tuple(
        Artifact(
            id=blob.title,
            role="other",
            name=blob.sha256,
            folder=BLOBS,
            size=blob.size,
            sha256=blob.sha256,
            sources=(),
            known_as=blob.title,
        )
        for blob in known.values()
    )


# --- writing -----------------------------------------------------------------------------------------


def manifest_files(part: Part) -> tuple[bytes, bytes]:
    """Return the manifest of a part and the config that it names, as bytes; the same part gives the same bytes."""
    config: dict[str, object] = {}
    if part.kind == "models":
        config = {
            "descriptor": {"name": part.name},
            "modelfs": {"type": "layers", "diffIds": [f"sha256:{blob.sha256}" for blob in part.blobs]},
            "config": {},
        }
    config_bytes = _json(config)
    config_type = _MODEL_CONFIG if part.kind == "models" else _EMPTY_CONFIG
    facts = {_VERSION: part.version, _COMMIT: part.commit, _TREE: part.tree}
    annotations = {_NAME: part.name} | {key: value for key, value in facts.items() if value}
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": _TYPE_OF[part.kind],
        "config": _descriptor(config_type, config_bytes),
        "layers": [_layer(blob) for blob in part.blobs],
        "annotations": annotations,
    }
    return _json(document), config_bytes


def index_bytes(listed: Iterable[Listed]) -> bytes:
    """Return ``index.json`` for these manifests, ordered by name."""
    manifests = [
        {
            "mediaType": MANIFEST_TYPE,
            "digest": f"sha256:{each.sha256}",
            "size": each.size,
            "annotations": {_NAME: each.name},
        }
        for each in sorted(listed, key=lambda each: each.name)
    ]
    return _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})


def _layer(blob: Blob) -> dict[str, object]:
    annotations = {_TITLE: blob.title}
    if blob.media_type in {_MODEL_WEIGHT, _MODEL_SETTINGS}:
        annotations[_FILE_PATH] = blob.title
    if blob.kind is not None:
        annotations[_KIND] = blob.kind
    return {
        "mediaType": blob.media_type,
        "digest": f"sha256:{blob.sha256}",
        "size": blob.size,
        "annotations": annotations,
    }


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# --- reading -----------------------------------------------------------------------------------------


def parse_index(data: bytes) -> tuple[Listed, ...]:
    """Return the manifests that an ``index.json`` names; raises NotTheFileError where it is none of a bundle."""
    found = parse_object(data, most=LARGEST_JSON)
    listed = None if found is None else found.get("manifests")
    if not isinstance(listed, list):
        raise _odd("index.json", "has no list of manifests")
    rows = [as_dict(each) for each in _bounded("index.json", listed)]
    parts = tuple(
        Listed(
            name=_text(as_dict(row.get("annotations")).get(_NAME)) or "",
            sha256=_sha256("index.json", row),
            size=_size("index.json", row, LARGEST_JSON),
        )
        for row in rows
    )
    named = sum(each.size for each in parts)
    if named > MOST_MANIFEST_BYTES:
        raise _odd("index.json", f"names manifests of {named:,} bytes; at most {MOST_MANIFEST_BYTES:,} are read")
    if len({each.name for each in parts}) < len(parts):
        raise _odd("index.json", "names two manifests alike, or one without a name")
    return parts


def parse_manifest(listed: Listed, data: bytes) -> Part | None:
    """Return what a manifest lists; None for one that is not of ours, which a layout may hold too.

    Raises
    ------
    NotTheFileError
        It is not the manifest that the index names, or a descriptor in it is malformed.
    """
    where = f"the manifest {listed.name or listed.sha256[:12]}"
    if len(data) != listed.size or hashlib.sha256(data).hexdigest() != listed.sha256:
        raise _odd(where, "is not the one that index.json names: its SHA-256 is another")
    found = parse_object(data, most=LARGEST_JSON)
    if found is None:
        raise _odd(where, "is no JSON object")
    kind = _KIND_OF.get(str(found.get("artifactType")))
    if kind is None:
        return None
    layers = [as_dict(each) for each in _bounded(where, as_list(found.get("layers")))]
    blobs = tuple(_blob(where, each) for each in layers)
    facts = as_dict(found.get("annotations"))
    return Part(
        name=listed.name,
        kind=kind,
        blobs=blobs,
        version=_text(facts.get(_VERSION)),
        commit=_git_id(facts.get(_COMMIT)),
        tree=_git_id(facts.get(_TREE)),
        config=_config(where, listed, found),
        manifest_sha256=listed.sha256,
    )


def _config(where: str, listed: Listed, manifest: Mapping[str, object]) -> Blob:
    row = as_dict(manifest.get("config"))
    return Blob(sha256=_sha256(where, row), size=_size(where, row, LARGEST_JSON), title=f"the config of {listed.name}")


def _blob(where: str, row: Mapping[str, object]) -> Blob:
    annotations = as_dict(row.get("annotations"))
    title = _text(annotations.get(_TITLE)) or _text(annotations.get(_FILE_PATH))
    if title is None:
        raise _odd(where, "lists a blob without a title, or with one that cannot be shown")
    return Blob(
        sha256=_sha256(where, row),
        size=_size(where, row, _LARGEST_BLOB),
        title=title,
        media_type=_text(row.get("mediaType")) or "application/octet-stream",
        kind=_text(annotations.get(_KIND)),
    )


def _bounded(where: str, rows: Sequence[object]) -> Sequence[object]:
    if len(rows) > MOST_PARTS:
        raise _odd(where, f"lists {len(rows):,} entries; a bundle has at most {MOST_PARTS:,}")
    return rows


def _sha256(where: str, row: Mapping[str, object]) -> str:
    match = _DIGEST.fullmatch(str(row.get("digest")))
    if match is None:
        raise _odd(where, "names a digest that is no SHA-256")
    return match[1]


def _size(where: str, row: Mapping[str, object], most: int) -> int:
    size = row.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= most:
        raise _odd(where, "names a size that no file has")
    return size


def _text(value: object) -> str | None:
    """Return a text that can be shown in one line; None for anything else."""
    return value if isinstance(value, str) and 0 < len(value) <= 300 and value.isprintable() else None


def _git_id(value: object) -> str | None:
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{40}", value) else None


def _odd(where: str, complaint: str) -> NotTheFileError:
    return NotTheFileError(
        f"{where} of the bundle {complaint}.",
        hint="Copy the bundle again, or delete its index.json and make it once more where a network is: "
        "the files in it that are correct are kept.",
    )
