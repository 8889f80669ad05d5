"""Which manifests are installed in a tree and which of them need a file: what is shared stays when one of them goes.

A receipt names the manifests of a tree, and the user's own records name those of this user's runs.  Either can only
keep a file from being removed, or be told; neither is a reason to remove one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from provisioner.commands.run import Run, load_manifest, runs_in, tree_roots
from provisioner.core.errors import KleinError
from provisioner.core.models import ArtifactSet, Check, ComfyTarget, Finding, Target
from provisioner.core.units import listing
from provisioner.disk.safe_path import complaint_about_path
from provisioner.files.layout import destination_for


def announce_manifests(run: Run) -> None:
    """Let every receipt that this run writes name its manifests: without a write of their own."""
    for folder, manifests in _files_of(run).items():
        run.session.store.fill_for(folder, manifests)


def note_manifests(run: Run) -> None:
    """Write into the receipts which manifests the tree has now, where none was written; a refusal is only said."""
    from provisioner.files.store.receipts import Receipts, read_manifests

    for folder, manifests in _files_of(run).items():
        known = read_manifests(folder)
        if all(files <= known.get(name, frozenset()) for name, files in manifests.items()):
            continue
        try:
            with run.session.store.lock_roots([folder]):
                Receipts().note_manifests(run.session.root(folder), manifests)
        except KleinError as error:
            run.session.notice(str(error))


def _files_of(run: Run) -> dict[Path, dict[str, frozenset[str]]]:
    """Return the files of each manifest of a run below each folder that has a receipt; empty for an HF cache."""
    if not isinstance(run.target, ComfyTarget) or run.target.is_bundle:
        return {}
    found: dict[Path, dict[str, frozenset[str]]] = {}
    for part in run.parts:
        for artifact in part.set.artifacts:
            place = destination_for(artifact, run.target)
            of_root = found.setdefault(place.root, {})
            of_root[part.manifest.id] = of_root.get(part.manifest.id, frozenset()) | {place.relative.as_posix()}
    return found


def other_manifests(run: Run) -> Mapping[str, frozenset[Path]]:
    """Return the files that other manifests need in this tree, by the manifest's id."""
    if not isinstance(run.target, ComfyTarget):
        return {}
    from provisioner.files.store.receipts import read_manifests

    own = {part.manifest.id for part in run.parts}
    found: dict[str, frozenset[Path]] = {}
    for root in tree_roots(run.target):
        for name, relatives in read_manifests(root).items():
            if name not in own:
                safe = (each for each in relatives if complaint_about_path(each) is None)
                paths = frozenset(root.joinpath(*PurePosixPath(each).parts) for each in safe)
                found[name] = found.get(name, frozenset()) | paths
    for name, paths in _of_own_runs(run.target):
        if name not in own:
            found[name] = found.get(name, frozenset()) | paths
    return {name: paths for name, paths in sorted(found.items()) if paths}


def _of_own_runs(target: ComfyTarget) -> Iterator[tuple[str, frozenset[Path]]]:
    """Yield what this user's runs installed in this tree, where every file of it is still there."""
    for last in runs_in(target):
        try:
            wanted = load_manifest(last["manifest_file"] or last["manifest"]).set_named(last["set"])
            paths = frozenset() if wanted is None else paths_of(wanted, target)
        except KleinError:  # a file of somebody's that is not there any more
            continue
        if paths and all(each.exists() for each in paths):
            yield last["manifest"], paths


def paths_of(wanted: ArtifactSet, target: Target) -> frozenset[Path]:
    """Return where the files of a set are; raises as `destination_for`."""
    return frozenset(destination_for(each, target).path for each in wanted.artifacts)


def needed_by(path: Path, others: Mapping[str, frozenset[Path]]) -> tuple[str, ...]:
    """Return the manifests among `others` that need a file."""
    return tuple(name for name, paths in others.items() if path in paths)


def shared_findings(run: Run, checks: Iterable[Check]) -> tuple[Finding, ...]:
    """Return a finding for each file that is wrong and that other manifests need, too."""
    wrong = [each for each in checks if each.status != "ok"]
    others = other_manifests(run) if wrong else {}
    return tuple(
        Finding(
            code="shared-file",
            severity="warning",
            message=f"{check.destination.label} is part of {listing(names)}, too.",
            remedy="repair",
            path=check.destination.path,
        )
        for check in wrong
        if (names := needed_by(check.destination.path, others))
    )
