"""Who is asked for a file, in which order, and which content each of them serves."""

from __future__ import annotations

from dataclasses import replace

from provisioner.core.models import (
    Artifact,
    ComfyFile,
    FetchFile,
    HubBlob,
    HubFile,
    OciFile,
    PatchFile,
    Registry,
    Source,
)


def offers_of(step: FetchFile | PatchFile, registry: Registry | None) -> list[tuple[Source, Artifact]]:
    """Return every source with the content it serves: the artifact's own first, then what is as good.

    The registry of ``--registry`` has every content under its SHA-256 and is asked first.  A snapshot in an HF cache
    must hold the commit's own bytes, so nothing else is offered for it.
    """
    artifact = step.artifact
    is_snapshot = isinstance(step.destination, HubBlob)
    offers = [
        (source, artifact)
        for source in sources_of(artifact, registry)
        if not is_snapshot or isinstance(source, HubFile) or source == _in(registry, artifact)
    ]
    if isinstance(step, FetchFile) and isinstance(step.destination, ComfyFile):
        for variant in artifact.accept:
            content = replace(artifact, size=variant.size, sha256=variant.sha256, sources=variant.sources)
            offers += [(source, content) for source in sources_of(content, registry)]
    return offers


def sources_of(content: Artifact, registry: Registry | None) -> tuple[Source, ...]:
    """Return who is asked for a content, the first one first."""
    first = _in(registry, content)
    if registry is None or first is None:
        return content.sources
    return (first,) if registry.is_only else (first, *content.sources)


def _in(registry: Registry | None, content: Artifact) -> OciFile | None:
    return None if registry is None else OciFile(repository=registry.repository, digest=content.sha256)
