"""Asks which manifests the tags of a manifest's sources name now, so that a run has one answer from plan to end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from provisioner.commands.run import Run
from provisioner.core.errors import KleinError
from provisioner.core.events import Notice
from provisioner.core.models import Artifact, FetchFile, FilesPlan, OciFile, PatchFile, Source


def pin_tags_of(run: Run, files: FilesPlan) -> tuple[OciFile, ...]:
    """Pin the tags of what a plan would fetch; return them with their digests.  `run` has them afterwards.

    Nobody is asked with ``--offline`` and ``--registry-only``.  A registry that does not answer is a warning: a tag
    without a digest is looked up when its file is fetched.
    """
    registry = run.session.settings.registry
    if run.session.is_offline or (registry is not None and registry.is_only):
        return ()
    return pin_tags(run, [step.artifact for step in files.steps if isinstance(step, (FetchFile, PatchFile))])


def pin_tags(run: Run, artifacts: Iterable[Artifact]) -> tuple[OciFile, ...]:
    """Pin the tags in the sources of these artifacts; return them with their digests."""
    tagged = {source for artifact in artifacts for source in _sources_of(artifact) if _is_open(source)}
    pinned: dict[Source, OciFile] = {}
    for source in sorted(tagged, key=str):
        try:
            pinned[source] = run.session.registries.pin(source)
        except KleinError as error:
            run.session.events(Notice(message=f"{source} was not looked up: {error}", severity="warning"))
    if pinned:
        wanted = run.choice.set
        run.choice = replace(
            run.choice, set=replace(wanted, artifacts=tuple(_with(each, pinned) for each in wanted.artifacts))
        )
    return tuple(pinned.values())


def _is_open(source: Source) -> bool:
    return isinstance(source, OciFile) and source.digest is None


def _sources_of(artifact: Artifact) -> tuple[OciFile, ...]:
    listed = (*artifact.sources, *(source for each in artifact.accept for source in each.sources))
    return tuple(source for source in listed if isinstance(source, OciFile))


def _with(artifact: Artifact, pinned: dict[Source, OciFile]) -> Artifact:
    def known(sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(pinned.get(each, each) for each in sources)

    accept = tuple(replace(each, sources=known(each.sources)) for each in artifact.accept)
    return replace(artifact, sources=known(artifact.sources), accept=accept)
