"""Decides what is still needed: manifest, machine and inventory in, plan out.  Reads nothing, writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from provisioner.core.errors import (
    EntryNotFoundError,
    FileTooLargeError,
    InsufficientSpaceError,
    OfflineError,
    PathTooLongError,
)
from provisioner.core.exhaustive import assert_never
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    Check,
    ComfyFile,
    ComfyTarget,
    Damage,
    FetchFile,
    FilesPlan,
    FileStep,
    FileSystem,
    Finding,
    HubFile,
    Inventory,
    LocalCopy,
    Machine,
    Manifest,
    MoveFile,
    OciFile,
    PatchFile,
    PatchWay,
    PlaceFile,
    RecordReceipt,
    Registry,
    SpaceNeed,
    Target,
)
from provisioner.core.units import human_bytes
from provisioner.files.choose_set import unmet_conditions
from provisioner.files.layout import known_as
from provisioner.files.memory_fit import largest_fitting

_NAMES_BESIDE = 45
"""Characters of the longest name of ours beside a file, beyond its own: that of its backup below the same folder."""

_NAMES_IN_ENVIRONMENT = 192
r"""Characters below an environment: ``\Lib\site-packages\`` has 19, the longest name of torch 2.13.0 in it 173
(``torch-2.13.0+cu130.dist-info\licenses\third_party\kineto\...\duktape-1.8.0\LICENSE.txt``, read in its wheel)."""

SPACE_MARGIN = 32 * 1024 * 1024
"""Bytes kept free on every file system a plan writes to: receipts, logs, and the system's own breathing room."""


def plan(manifest: Manifest, wanted: ArtifactSet, machine: Machine | None, inventory: Inventory) -> FilesPlan:
    """Return the steps still needed, each with its reason, and what a person should know before them.

    Parameters
    ----------
    manifest, wanted : Manifest, ArtifactSet
        What is asked for.
    machine : Machine or None
        What it has to run on; None leaves the set's conditions unjudged.
    inventory : Inventory
        What is there.

    Returns
    -------
    Plan
        With no steps if the target is as the manifest asks.
    """
    needed = [_step(check, inventory) for check in inventory.checks]
    steps = tuple(_in_order(step for step in needed if step is not None))
    unmet = unmet_conditions(wanted.conditions, machine) if machine is not None else ()
    findings = (
        *inventory.findings,
        *(_unmet_finding(wanted, sentence, _fitting_words(manifest, wanted, machine)) for sentence in unmet),
        *_without_links(steps, inventory),
    )
    return FilesPlan(
        manifest=manifest,
        set=wanted,
        target=inventory.target,
        steps=steps,
        checks=inventory.checks,
        findings=findings,
        space=_space(inventory.checks, steps, inventory.file_systems),
    )


def no_steps(manifest: Manifest, wanted: ArtifactSet, target: Target) -> FilesPlan:
    """Return the plan of a run that is not about files: nobody looked at them."""
    return FilesPlan(manifest=manifest, set=wanted, target=target, steps=(), checks=())


def _fitting_words(manifest: Manifest, wanted: ArtifactSet, machine: Machine | None) -> str:
    """Return which set fits the machine, or where the sets are listed."""
    other = largest_fitting(wanted, machine, manifest.sets) if machine is not None else None
    if other is None:
        return "`klein-setup manifest show` lists the other sets"
    return f"the largest set that fits this machine is {other.id}: `klein-setup install --set {other.id}`"


def _unmet_finding(wanted: ArtifactSet, sentence: str, instead: str) -> Finding:
    return Finding(
        code="set-does-not-suit",
        severity="warning",
        message=f"The set {wanted.id} {sentence}.",
        remedy="by-hand",
        hint=f"The files are installed anyway; {instead}.",
    )


def _without_links(steps: Iterable[FileStep], inventory: Inventory) -> Iterator[Finding]:
    """Yield a warning for each file system on which a copy cannot be a link."""
    placed = {step.artifact.id for step in steps if isinstance(step, PlaceFile)}
    devices = {check.device for check in inventory.checks if check.artifact.id in placed}
    for system in inventory.file_systems:
        if system.device in devices and not system.has_links:
            yield Finding(
                code="no-links",
                severity="warning",
                message=f"{system.path} is {system.kind}, which has no links: a file that is found on this computer is "
                "copied there, and takes its whole size once more.",
                remedy="by-hand",
                path=system.path,
                hint="Name a folder on another drive if there is too little room.",
            )


# --- steps -------------------------------------------------------------------------------------


def _step(check: Check, inventory: Inventory) -> FileStep | None:
    """Return what an artifact still needs, or None: the way that costs least comes first."""
    artifact, destination = check.artifact, check.destination
    if check.status == "ok":
        if check.is_recorded or check.basis not in {"sha256", "blocks"}:
            return None
        reason = "verified just now; its receipt is missing, incomplete or older than the file"
        return RecordReceipt(artifact=artifact, destination=destination, reason=reason)
    reason = _reason(check)
    replaces = None if check.status == "missing" else reason
    copy = next((each for each in inventory.copies if each.artifact_id == artifact.id), None)
    if copy is not None:
        return _from_copy(check, copy, inventory, reason, replaces)
    return _patch(check, reason) or FetchFile(
        artifact=artifact, destination=destination, reason=reason, held_bytes=check.held_bytes, replaces=replaces
    )


def _from_copy(
    check: Check, copy: LocalCopy, inventory: Inventory, reason: str, replaces: str | None
) -> PlaceFile | MoveFile:
    """Return how a copy on this machine gets to its place: moved where nobody can use it, else placed.

    ComfyUI reads a file only from folders of its kind, so one that lies in a folder of another kind is of no use
    there, and a person expects it to be moved.  One of the same kind under another name may be what somebody's
    workflow names: it stays, and a link takes no room.
    """
    artifact, destination = check.artifact, check.destination
    where = known_as(copy.path, inventory.target)
    is_near = where != str(copy.path)
    why = f"{reason}; {where if is_near else copy.origin} may hold the same bytes{'' if is_near else f': {where}'}"
    if _is_misplaced(check, copy, inventory):
        why = f"{reason}; {where} may be it, in a folder where nothing can use it: it is moved"
        return MoveFile(artifact=artifact, destination=destination, reason=why, copy=copy, replaces=replaces)
    is_wanted = any(each.destination.path == copy.path for each in inventory.checks)
    if _kind_of(copy.path, inventory.target) is not None and not is_wanted:
        why = f"{why}, which stays, because a workflow may name it"
    return PlaceFile(artifact=artifact, destination=destination, reason=why, copy=copy, replaces=replaces)


def _is_misplaced(check: Check, copy: LocalCopy, inventory: Inventory) -> bool:
    """Whether a copy lies in this tree where nothing can use it, and no other file of the set belongs there."""
    kind = _kind_of(copy.path, inventory.target)
    own = _kind_of(check.destination.path, inventory.target)
    is_wanted = any(each.destination.path == copy.path for each in inventory.checks)
    is_near = copy.device == check.device and isinstance(check.destination, ComfyFile)
    return is_near and not is_wanted and kind is not None and own is not None and kind != own


def _kind_of(path: Path, target: Target) -> str | None:
    """Return the kind of model folder a path lies in; None outside of all of them, and for backups.

    A folder of a custom node's own is no kind that is known here, so what lies there is nobody's mistake.
    """
    if not isinstance(target, ComfyTarget):
        return None
    known = [(len(root.parts), each.folder) for each in target.folders for root in each.read if root in path.parents]
    return max(known, default=(0, None))[1]


# --- repairing by blocks -----------------------------------------------------------------------


def _patch(check: Check, reason: str) -> PatchFile | None:
    """Return the repair of a damaged file by its blocks, or None where fetching the whole is no dearer."""
    damage = check.damage
    if damage is None or damage.bad_bytes - damage.held_bytes >= check.artifact.size:
        return None
    artifact = _with_content(check.artifact, damage)
    if artifact is None:
        return None
    way = patch_way(check, damage)
    if way != "in-place":  # only a repair in place builds on blocks that an earlier one in place has fetched
        damage = replace(damage, held_blocks=())
    step = PatchFile(
        artifact=artifact, destination=check.destination, reason=reason, damage=damage, way=way, replaces=reason
    )
    return replace(step, reason=f"{reason}; {_patch_words(step)}")


def _with_content(artifact: Artifact, damage: Damage) -> Artifact | None:
    """Return the artifact with the content that is repaired, and who publishes it; None where nobody does."""
    for content in artifact.contents:
        if (content.size, content.sha256) != (damage.size, damage.sha256):
            continue
        sources = artifact.sources if content.sha256 == artifact.sha256 else content.sources
        if sources or damage.bad_bytes == 0:
            return replace(artifact, size=content.size, sha256=content.sha256, sources=sources)
    return None


def patch_way(check: Check, damage: Damage) -> PatchWay:
    """Return how a damaged file is repaired.

    ``beside`` where its bytes have another name (a link is never written through), where the disk does not give all
    of them (the bad sectors stay with the old file), where nobody knows yet that they are right (it stays as it was
    until somebody does), or where a download of it has begun.  A truncated file is continued under the name of a
    part, for under its own nothing can load it; any other is repaired in place.
    """
    if damage.is_shared or damage.unreadable is not None or damage.trusted_by == "header":
        return "beside"
    if damage.observed_size < damage.size:
        return "continue" if isinstance(check.destination, ComfyFile) and not check.held_bytes else "beside"
    is_nearly_there = check.artifact.size - check.held_bytes < damage.bad_bytes - damage.held_bytes
    return "beside" if check.held_bytes and is_nearly_there else "in-place"


def _patch_words(step: PatchFile) -> str:
    """Return what a repair by blocks does, in words."""
    if not step.damage.bad_blocks:
        return f"the {step.damage.extra_bytes:,} bytes that are too much are cut off"
    fetched = f"{human_bytes(step.bytes_to_fetch)} of {human_bytes(step.damage.size)} are fetched"
    match step.way:
        case "in-place":
            return f"{fetched} and written in place once the whole file is verified"
        case "continue":
            return f"it is continued as a download: {fetched}"
        case "beside" if step.damage.trusted_by == "header":
            return f"what is there is copied into a new file, {fetched}, and more if the whole does not come right"
        case "beside":
            return f"the blocks that are right are copied into a new file, {fetched}"
        case _:
            assert_never(step.way)


def _in_order(steps: Iterable[FileStep]) -> list[FileStep]:
    """Return the steps in the manifest's order but for one case.

    A file under the wrong name is taken as a copy before it is replaced there.  Where two files have each other's
    names the second is found again in ``aside``, one plan later.
    """
    waiting, ordered = list(steps), list[FileStep]()
    while waiting:
        wanted = {step.copy.path: step for step in waiting if isinstance(step, (PlaceFile, MoveFile))}
        free = (step for step in waiting if wanted.get(step.destination.path, step) is step)
        following = next(free, waiting[0])
        waiting.remove(following)
        ordered.append(following)
    return ordered


def _reason(check: Check) -> str:
    what = f": {check.identity}" if check.identity else ""
    if check.status == "missing":
        return "missing; an interrupted download is continued" if check.held_bytes else "missing"
    if check.status == "size-mismatch" and check.damage is not None and check.identity:
        return check.identity  # it says the sizes
    if check.status == "size-mismatch":
        return f"{check.observed_size:,} bytes instead of {check.artifact.size:,}{what}"
    if check.status == "hash-mismatch":
        return f"other bytes of the right size{what}"
    return f"cannot be read{what}"


# --- space -------------------------------------------------------------------------------------


def _space(checks: Iterable[Check], steps: Iterable[FileStep], systems: Iterable[FileSystem]) -> tuple[SpaceNeed, ...]:
    """Return what each file system needs for the whole plan."""
    check_of = {check.artifact.id: check for check in checks}
    systems = tuple(systems)
    with_links = {system.device for system in systems if system.has_links}
    needs: dict[int | None, int] = {}
    for step in steps:
        check = check_of[step.artifact.id]
        room = _room_for(step, check, has_links=check.device in with_links)
        needs[check.device] = needs.get(check.device, 0) + room
    return tuple(
        SpaceNeed(file_system=system, needed_bytes=needed + (SPACE_MARGIN if needed else 0))
        for system in systems
        for needed in [needs.get(system.device, 0)]
    )


def _room_for(step: FileStep, check: Check, *, has_links: bool) -> int:
    match step:
        case FetchFile():
            return step.artifact.size - min(max(step.held_bytes, check.taken_bytes), step.artifact.size)
        case PatchFile():
            return _patch_room(step, check.taken_bytes)
        case PlaceFile():
            # A reflink or a hard link needs no room; between file systems, and on one without links, it is a copy.
            return step.copy.size if step.copy.device != check.device or not has_links else 0
        case MoveFile() | RecordReceipt():
            return 0
        case _:
            assert_never(step)


def _patch_room(step: PatchFile, taken_bytes: int) -> int:
    """Return the bytes a repair takes beyond what is there: what is fetched, and the old bytes that are kept."""
    damage = step.damage
    match step.way:
        case "in-place":
            return step.bytes_to_fetch + damage.bad_bytes + damage.extra_bytes
        case "continue":
            return damage.size - damage.observed_size + min(damage.bad_bytes, damage.observed_size)
        case "beside":
            return max(damage.size - taken_bytes, 0)
        case _:
            assert_never(step.way)


# --- what stops a plan before it starts ----------------------------------------------------------


def check_space(space: Iterable[SpaceNeed]) -> None:
    """Raise InsufficientSpaceError if a file system has less room than a plan needs."""
    short = [need for need in space if not need.is_enough]
    if not short:
        return
    lines = [
        f"{need.file_system.path}: {need.needed_bytes:,} bytes needed, {need.file_system.free_bytes:,} free"
        for need in short
    ]
    missing = sum(need.needed_bytes - need.file_system.free_bytes for need in short)
    raise InsufficientSpaceError(
        f"Not enough space; nothing was fetched. {'; '.join(lines)}.",
        hint=f"Free {missing:,} bytes there, or choose a smaller set (--set) or another folder.",
        needed=[need.needed_bytes for need in short],
        free=[need.file_system.free_bytes for need in short],
    )


def check_path_lengths(checks: Iterable[Check], longest: int | None, environment: Path | None = None) -> None:
    """Raise PathTooLongError if a file would get a longer path than programs can open.

    Parameters
    ----------
    checks : iterable of Check
        Where each file goes.
    longest : int, optional
        Characters of the longest path that can be opened; None: as many as there are.
    environment : Path, optional
        The virtual environment that packages are installed in.
    """
    if longest is None:
        return
    paths = [str(check.destination.path) for check in checks if check.status != "ok"]
    path = max(paths, key=len, default="")
    if len(path) + _NAMES_BESIDE > longest:
        beside = f"a name beside a file, or that of its backup, has up to {_NAMES_BESIDE} more"
        raise _path_too_long(path, longest, beside)
    if environment is not None and len(str(environment)) + _NAMES_IN_ENVIRONMENT > longest:
        raise _path_too_long(str(environment), longest, f"torch's files have up to {_NAMES_IN_ENVIRONMENT} more")


def _path_too_long(path: str, longest: int, more: str) -> PathTooLongError:
    return PathTooLongError(
        f"{path} has {len(path)} characters; Windows opens up to {longest} here, and {more}. Nothing was fetched.",
        hint="Name a folder with a shorter path, or allow long paths: set LongPathsEnabled to 1 in the registry, at "
        r"HKLM\SYSTEM\CurrentControlSet\Control\FileSystem, and sign in again.",
        path=path,
        longest=longest,
    )


def check_file_sizes(plan: FilesPlan) -> None:
    """Raise FileTooLargeError if a file has to be written that its file system cannot hold."""
    devices = {check.artifact.id: check.device for check in plan.checks}
    systems = {need.file_system.device: need.file_system for need in plan.space}
    for step in plan.steps:
        system = systems.get(devices[step.artifact.id] or 0)
        limit = None if system is None else system.largest_file_bytes
        if system is not None and limit is not None and step.artifact.size > limit:
            raise FileTooLargeError(
                f"{step.artifact.name} has {human_bytes(step.artifact.size)}, and {system.path} is {system.kind}: no "
                f"file there can have more than {limit:,} bytes. Nothing was fetched.",
                hint="Name a folder on a drive with another file system (NTFS, exFAT, ext4, APFS), or a set of smaller "
                "files with --set.",
                path=str(step.destination.path),
                limit=limit,
            )


def check_offline(plan: FilesPlan) -> None:
    """Raise OfflineError if the plan fetches anything; the message lists every file and where it is published."""
    fetches = [step for step in plan.steps if isinstance(step, (FetchFile, PatchFile)) and step.bytes_to_fetch]
    if not fetches:
        return
    lines = [f"{step.artifact.name} ({step.bytes_to_fetch:,} bytes, {_published(step.artifact)})" for step in fetches]
    raise OfflineError(
        f"Offline, and {len(fetches)} of {len(plan.set.artifacts)} files would have to be fetched: {'; '.join(lines)}.",
        hint="Run once without --offline, or name a folder that has the files with --look-in DIR.",
        missing=[step.artifact.name for step in fetches],
    )


def check_registry(plan: FilesPlan, registry: Registry | None, *, complete: str) -> None:
    """Raise EntryNotFoundError if the plan fetches what the one place that is asked does not hold.

    `complete` is the command that adds it there.
    """
    if registry is None or registry.holds is None:
        return
    lacking = [
        step.artifact.name
        for step in plan.steps
        if isinstance(step, (FetchFile, PatchFile))
        and not any(each.sha256 in registry.holds for each in step.artifact.contents)
    ]
    if lacking:
        raise EntryNotFoundError(
            f"{registry.repository} lacks {len(lacking)} of the files that the set {plan.set.id} of"
            f" {plan.manifest.id} needs here: {', '.join(lacking[:5])}.",
            hint="Choose with --set or --manifest what it was made for, or complete it where a network is, with"
            f" `{complete}`.",
            missing=lacking,
        )


def _published(artifact: Artifact) -> str:
    source = artifact.sources[0]
    if isinstance(source, HubFile):
        return f"{source.repo_id}/{source.filename}"
    return str(source) if isinstance(source, OciFile) else source.url.partition("?")[0]
