"""Which steps of a plan may run at once, and when the next one begins: decided from values alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from provisioner.core.models import ComfyFile, FetchFile, FileStep, HubBlob, MoveFile, PatchFile, PlaceFile


def uses_network(step: FileStep) -> bool:
    """Whether a step fetches bytes."""
    return isinstance(step, (FetchFile, PatchFile)) and step.bytes_to_fetch > 0


def must_wait_for(step: FileStep, earlier: FileStep) -> bool:
    """Whether a step may not begin before an earlier one of the plan is over.

    They are about one artifact, share a file, or one may change what the other reads.  Links are not resolved here, so
    whatever takes a file of this machine waits for, and holds up, all that replaces, moves or repairs one.
    """
    if step.artifact.id == earlier.artifact.id or not _files_of(step).isdisjoint(_files_of(earlier)):
        return True
    if (_changes_a_file(step) and _reads_a_copy(earlier)) or (_changes_a_file(earlier) and _reads_a_copy(step)):
        return True
    ours, theirs = step.destination, earlier.destination
    if isinstance(ours, HubBlob) and isinstance(theirs, HubBlob) and ours.root == theirs.root:
        return _changes_a_file(step) or _changes_a_file(earlier)  # an old blob may belong to both
    return _reads_only_this_machine(step) and _reads_only_this_machine(earlier)


def next_step(
    steps: Sequence[FileStep], over: Collection[int], running: Mapping[int, bool], *, at_once: int
) -> int | None:
    """Return the number of the step to begin now, or None.

    Parameters
    ----------
    steps : sequence of FileStep
        The plan's.
    over : collection of int
        Numbers of the steps that are over, from 0.
    running : mapping of int to bool
        Those that run, and whether each leaves room on the network: it waits for its digest, for the disk or for a
        server, or it has no block left that nobody asked for.
    at_once : int
        Most steps at a time.
    """
    if len(running) >= at_once:
        return None
    is_network_free = all(running.values())
    for number, step in enumerate(steps):
        if number in over or number in running:
            continue
        open_before = (each for each in range(number) if each not in over)
        if (is_network_free or not uses_network(step)) and not any(
            must_wait_for(step, steps[each]) for each in open_before
        ):
            return number
    return None


def _changes_a_file(step: FileStep) -> bool:
    return isinstance(step, (MoveFile, PatchFile)) or (
        isinstance(step, (FetchFile, PlaceFile)) and step.replaces is not None
    )


def _reads_a_copy(step: FileStep) -> bool:
    return isinstance(step, (MoveFile, PlaceFile))


def _reads_only_this_machine(step: FileStep) -> bool:
    return not isinstance(step, (FetchFile, PatchFile))


def _files_of(step: FileStep) -> set[Path]:
    """Return the paths a step reads or writes: its destination, the file that grows, the copy."""
    destination = step.destination
    files = {destination.path}
    if not isinstance(destination, ComfyFile):
        files.add(destination.part_folder / step.artifact.sha256)
    if isinstance(step, (MoveFile, PlaceFile)):
        files.add(step.copy.path)
    return files
