"""Shipped manifests with small stand-ins for their files: names, places and sources stay, the bytes change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from provisioner.core.models import ArtifactSet, HubFile
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text
from provisioner.rehearsal.hub import RehearsalHub
from tests.support.sandbox import TOKEN, sha256_of, tensors


def bytes_of(sha256: str) -> bytes:
    """Return the stand-in of the file with that digest: the same one in every manifest."""
    return tensors(20_000 + int(sha256[:3], 16), int(sha256[:8], 16))


def write_stand_ins(folder: Path, hub: RehearsalHub, *names: str, token: str = TOKEN) -> dict[str, Path]:
    """Write each shipped manifest with stand-ins for the files of its ComfyUI sets, and publish those.

    Returns
    -------
    dict of str to Path
        The manifest's file by its id.
    """
    written: dict[str, Path] = {}
    published: dict[tuple[str, str], dict[str, bytes]] = {}
    for name in names:
        document: dict[str, Any] = yaml.safe_load(read_manifest_text(name)[0])
        document["sets"] = [each for each in document["sets"] if each["target"] == "comfyui"]
        wanted = {each for one in document["sets"] for each in one["artifacts"]}
        document["artifacts"] = [each for each in document["artifacts"] if each["id"] in wanted]
        for each in document["artifacts"]:
            data = bytes_of(each["sha256"])
            each |= {"size": len(data), "sha256": sha256_of(data)}
            for key in ("accept", "lookalikes", "fingerprint"):
                each.pop(key, None)
            for source in each["sources"]:
                place = source["repo_id"], source["revision"]
                published.setdefault(place, {})[source["filename"]] = data
        written[name] = folder / f"{name}.yaml"
        written[name].write_text(json.dumps(document), encoding="utf-8")
        parse_manifest(written[name].read_text(encoding="utf-8"), file=name)
    for (repo_id, revision), files in published.items():
        hub.add_repository(repo_id, revision, files, tokens=[token])
    return written


def sets_of(path: Path) -> tuple[ArtifactSet, ...]:
    """Return the sets of a manifest's file."""
    return parse_manifest(path.read_text(encoding="utf-8"), file=str(path)).sets


def is_pinned(chosen: ArtifactSet) -> bool:
    """Whether every file of a set is on the Hub at a commit."""
    return all(isinstance(source, HubFile) for each in chosen.artifacts for source in each.sources)
