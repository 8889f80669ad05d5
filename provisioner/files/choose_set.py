"""Which set of a manifest a run is about, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from provisioner.core.errors import UsageError
from provisioner.core.models import ArtifactSet, Conditions, Gpu, Machine, Manifest, SetChoice, TargetKind

AUTO = "auto"


def choose_set(
    manifest: Manifest,
    asked: str | None,
    *,
    kind: TargetKind | None,
    look: Callable[[], Machine],
    remembered: str | None = None,
    recorded: Callable[[], Collection[str]] = tuple,
) -> SetChoice:
    """Return the set that was named; else the one that is installed; else the first that this machine can run.

    Parameters
    ----------
    manifest : Manifest
        Whose sets; their order is the order of preference.
    asked : str or None
        The set that was named, ``auto`` to choose by the machine alone, None if nothing was said.
    kind : {"comfyui", "hf_cache"} or None
        The kind of target that was named; only sets for it are chosen.  None: no target was named.
    look : callable
        Returns the machine; called only where the choice depends on it.
    remembered : str or None
        The set that the user's own runs installed in this target.
    recorded : callable
        Returns the ids of the artifacts in the target's receipts; called only where nothing is remembered.

    Raises
    ------
    UsageError
        No such set, none for this kind of target, or ``auto`` and no set suits the machine.
    """
    if asked is not None and asked != AUTO:
        return SetChoice(set=_named(manifest, asked))
    kind = kind or (None if asked == AUTO else _default(manifest).target)
    sets = [each for each in manifest.sets if kind in {None, each.target}]
    if not sets:
        option = "--comfyui" if kind == "comfyui" else "--hf-cache"
        raise UsageError(f"{manifest.id} has no set for {option}.", hint="`klein-setup manifest show` lists its sets.")
    if asked is None:
        before = next((each for each in sets if each.id == remembered), None)
        if before is not None:
            return SetChoice(set=before, because="it was installed here before")
        there = set(recorded())
        listed = next((each for each in sets if {file.id for file in each.artifacts} <= there), None)
        if listed is not None:
            return SetChoice(set=listed, because="the receipt in this folder lists its files")
        if len(sets) == 1 or all(each.conditions == Conditions() for each in sets):
            return SetChoice(set=_default(manifest) if _default(manifest) in sets else sets[0])
    return _suiting(manifest, sets, look(), is_demanded=asked == AUTO)


def _default(manifest: Manifest) -> ArtifactSet:
    return _named(manifest, manifest.default_set)


def _named(manifest: Manifest, set_id: str) -> ArtifactSet:
    found = manifest.set_named(set_id)
    if found is None:
        from provisioner.core.suggestions import did_you_mean  # needed only after a mistake

        known = (*(each.id for each in manifest.sets), AUTO)
        raise UsageError(
            f"{manifest.id} has no set {set_id!r}.{did_you_mean(set_id, known)}",
            hint=f"Choose one of: {', '.join(known)}.",
        )
    return found


def _suiting(manifest: Manifest, sets: list[ArtifactSet], machine: Machine, *, is_demanded: bool) -> SetChoice:
    """Return the first set that the machine can run; where none is, the manifest's default unless one is demanded."""
    passed_over: list[str] = []
    for each in sets:
        lacks = "; ".join(unmet_conditions(each.conditions, machine))
        if not lacks:
            return SetChoice(set=each, machine=machine_words(machine), because=". ".join(passed_over))
        passed_over.append(f"{each.id} {lacks}")
    if is_demanded:
        raise UsageError(
            f"No set of {manifest.id} suits this machine: {'. '.join(passed_over)}.",
            hint="Name a set with --set if you know better; `klein-setup detect` shows what was found.",
        )
    default = _default(manifest)
    chosen = default if default in sets else sets[0]
    return SetChoice(
        set=chosen, machine=machine_words(machine), because="no set suits this machine; this is the default"
    )


def machine_words(machine: Machine) -> str:
    """Return the GPU, its memory and its driver in one clause."""
    if not machine.gpus:
        return "no GPU"
    largest = max(machine.gpus, key=lambda gpu: gpu.memory_total_bytes or 0)
    words = [largest.name]
    if largest.memory_total_bytes is not None:
        words.append(_gib(largest.memory_total_bytes))
    if machine.driver_version is not None:
        words.append(f"driver {machine.driver_version}")
    if len(machine.gpus) > 1:
        words.append(f"and {len(machine.gpus) - 1} more")
    return ", ".join(words)


def unmet_conditions(conditions: Conditions, machine: Machine) -> tuple[str, ...]:
    """Return what the machine lacks, in words; empty if it has everything or nothing is known against it."""
    unmet = []
    if conditions.platforms and machine.os not in conditions.platforms:
        unmet.append(f"is made for {', '.join(conditions.platforms)}, and this is {machine.os}")
    if conditions.min_vram_bytes is not None:
        largest = max((_usable_bytes(gpu, machine) for gpu in machine.gpus), default=0)
        if not _has_unknown_memory(machine.gpus) and largest < conditions.min_vram_bytes:
            found = f"the largest GPU has {_gib(largest)}" if machine.gpus else "no GPU was found"
            unmet.append(f"needs {_gib(conditions.min_vram_bytes)} of VRAM, but {found}")
    if conditions.min_compute_capability is not None:
        best = max((gpu.compute_capability for gpu in machine.gpus if gpu.compute_capability), default=None)
        if best is None or best < conditions.min_compute_capability:
            found = "none is known" if best is None else f"found {best[0]}.{best[1]}"
            wanted = conditions.min_compute_capability
            unmet.append(f"needs compute capability {wanted[0]}.{wanted[1]}, {found}")
    return tuple(unmet)


def _usable_bytes(gpu: Gpu, machine: Machine) -> int:
    """Return a GPU's memory; one in a processor may use half of the computer's beside it."""
    own = gpu.memory_total_bytes or 0
    return own + (machine.memory_total_bytes or 0) // 2 if gpu.shares_memory else own


def _has_unknown_memory(gpus: Iterable[Gpu]) -> bool:
    return any(gpu.memory_total_bytes is None for gpu in gpus)


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"
