"""Explain the figures of a smoke test in sentences, and advise what to do when memory ran out.

A peak is only shown with the memory that was free before, because ComfyUI keeps in memory what fits.  No figure is
estimated: what was not measured is named as missing, or left out.  Reads no clock and asks no driver.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from provisioner.core.errors import MemoryExhaustedError, SmokeTestError
from provisioner.core.models import ArtifactSet, Conditions, Envelope, Gpu, Machine
from provisioner.core.units import count, gib, human_bytes, human_duration, listing
from provisioner.files.memory_fit import memory_need, memory_words, more_memory, pinned_limits, shortage
from provisioner.smoke_test.results import ImageRun, SmokeTest, Timings, VramReading

ABOUT_THE_SAME = 0.1
"""Peaks that differ by less than this share count as equal: allocators round, and a driver's context varies."""

ROOM_LEFT = 1.25
"""With this many times a run's own peak free at the start, ComfyUI had no reason to unload anything: version 0.33.0
on an H200 peaked at 15,347 MiB with the whole card, and at 8,211 MiB with 10.7 GiB of it (2026-11-23)."""

TILED_BELOW_BYTES = 17 * 1024**3
"""Up to this memory (16 GB), tiled decoding is advised: decoding 1024 x 1024 in one piece had a peak of about 11.5 GB
on an RTX 5060 Ti 16 GB, by a public measurement."""

FP8_FROM = (8, 9)
"""Compute capability with FP8 matrix units."""

_GIB = 1024**3


# --- samples --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VramSample:
    """One reading of a GPU's memory, in bytes."""

    used_bytes: int  # by all processes
    free_bytes: int
    process_bytes: int | None = None  # of the image's processes together; None where NVML does not report it
    at_s: float = 0.0  # since the measuring began
    readings: int = 1  # that it stands for, with the largest of each figure


MOST_POINTS = 240
"""Points of a curve: a page shows no more."""


def thinned(samples: Sequence[VramSample], most: int = MOST_POINTS) -> tuple[VramSample, ...]:
    """Return at most so many samples; neighbours become one with the peak of both, and the first stays as it is.

    Examples
    --------
    >>> peaks = [VramSample(used_bytes=used, free_bytes=9 - used, at_s=float(used)) for used in range(9)]
    >>> [(each.at_s, each.used_bytes, each.readings) for each in thinned(peaks, 3)]
    [(0.0, 0, 1), (1.0, 4, 4), (5.0, 8, 4)]
    """
    kept = tuple(samples)
    while len(kept) > most:
        rest = kept[1:]
        kept = (kept[0], *(_merged(rest[at : at + 2]) for at in range(0, len(rest), 2)))
    return kept


def _merged(samples: Sequence[VramSample]) -> VramSample:
    held = [each.process_bytes for each in samples if each.process_bytes is not None]
    return VramSample(
        used_bytes=max(each.used_bytes for each in samples),
        free_bytes=min(each.free_bytes for each in samples),
        process_bytes=max(held, default=None),
        at_s=samples[0].at_s,
        readings=sum(each.readings for each in samples),
    )


def summarise_samples(
    samples: Sequence[VramSample],
    *,
    gpu_name: str,
    gpu_uuid: str | None,
    total_bytes: int,
    phases: Sequence[tuple[str, float]] = (),
) -> VramReading | None:
    """Return the peaks of a series of samples, and its initial state.

    Parameters
    ----------
    samples : sequence of VramSample
        In the order they were taken; the first one before any model was loaded.
    gpu_name, gpu_uuid, total_bytes
        Facts about the measured GPU.
    phases : sequence of (str, float), optional
        What began when, in seconds since the measuring began.

    Returns
    -------
    VramReading or None
        None without samples: nothing was measured.
    """
    if not samples:
        return None
    first = samples[0]
    return VramReading(
        gpu_name=gpu_name,
        gpu_uuid=gpu_uuid,
        total_bytes=total_bytes,
        free_at_start_bytes=first.free_bytes,
        used_at_start_bytes=first.used_bytes,
        peak_used_bytes=max(each.used_bytes for each in samples),
        peak_process_bytes=max(
            (each.process_bytes for each in samples if each.process_bytes is not None), default=None
        ),
        samples=sum(each.readings for each in samples),
        curve=tuple((round(each.at_s, 3), each.used_bytes) for each in thinned(samples)),
        phases=tuple((name, round(at_s, 3)) for name, at_s in phases),
    )


def own_peak(reading: VramReading) -> int:
    """Return the bytes at the peak that belong to the image.

    The process's own figure where NVML has one; else the increase since the start.
    """
    if reading.peak_process_bytes is not None:
        return reading.peak_process_bytes
    return max(0, reading.peak_used_bytes - reading.used_at_start_bytes)


# --- sentences ------------------------------------------------------------------------------------


def describe(smoke: SmokeTest, envelope: Envelope, machine: Machine | None = None) -> tuple[str, ...]:
    """Return sentences that explain a smoke test's figures.

    Parameters
    ----------
    smoke : SmokeTest
        The image and its measurements.
    envelope : Envelope
        The figures published for the set, and their source.
    machine : Machine, optional
        The detected machine, for facts about the card.
    """
    said = [*_memory_sentences(smoke, envelope, machine)]
    said += _time_sentences(smoke)
    said += _card_sentences(smoke, machine)
    return tuple(said)


def _memory_sentences(smoke: SmokeTest, envelope: Envelope, machine: Machine | None) -> list[str]:
    reading = smoke.vram
    if reading is None:
        if smoke.device is not None and smoke.device.startswith("cpu"):
            return ["It was generated on the processor, so no GPU memory was used."]
        return ["GPU memory was not measured."]
    said = [_peak_sentence(reading), _share_sentence(reading)]
    if envelope.vram_bytes is not None:
        said.append(_comparison(smoke, reading, envelope.vram_bytes, envelope.source))
    elif envelope.source is not None:
        said.append(f"There is no published memory figure to compare with ({envelope.source}).")
    card = _gpu_of(reading, machine)
    if card is not None and card.is_display_attached:
        said.append(f"A display is attached to {reading.gpu_name} and keeps part of its memory.")
    return said


def _peak_sentence(reading: VramReading) -> str:
    return (
        f"{gib(reading.peak_used_bytes)} of {gib(reading.total_bytes)} were in use at the peak on {reading.gpu_name},"
        f" with {gib(reading.free_at_start_bytes)} free at the start."
    )


def _share_sentence(reading: VramReading) -> str:
    """Return how much of the peak belongs to the image, as far as that is known."""
    own = reading.peak_process_bytes
    if own is None:
        before = gib(reading.used_at_start_bytes)
        return (
            f"{before} of it were in use before the run; the driver does not report here which process uses how much."
        )
    if reading.peak_used_bytes - own < _GIB // 20:
        return "All of it was used for the image."
    return f"{gib(own)} of it were used for the image; the rest by other programs."


def _comparison(smoke: SmokeTest, reading: VramReading, published: int, source: str | None) -> str:
    """Return a comparison of the peak with the published figure."""
    own = own_peak(reading)
    whose = f"{human_bytes(published)} ({gib(published)}) were published"
    whose += f": {source}." if source else "."
    if reading.peak_process_bytes is None and smoke.timings.start_s is None:
        return f"{whose} What the program used before this image is not known, so the two are not compared."
    if abs(own - published) <= ABOUT_THE_SAME * published:
        return f"{whose} This run's {gib(own)} is about the same."
    if own < published:
        return f"{whose} This run took less, {gib(own)}."
    more = f"{whose} This run took more, {gib(own)}"
    if smoke.backend == "comfyui" and reading.free_at_start_bytes >= ROOM_LEFT * own:
        return f"{more}, because it was free: ComfyUI keeps models in memory where they fit, else it unloads them."
    return f"{more}."


def _gpu_of(reading: VramReading, machine: Machine | None) -> Gpu | None:
    """Return the card of a reading; by name only where there is no UUID and the name is unique."""
    if machine is None:
        return None
    if reading.gpu_uuid is not None:
        uuid = reading.gpu_uuid
        return next((each for each in machine.gpus if uuid in {each.uuid, *each.mig_devices}), None)
    named = [each for each in machine.gpus if each.name == reading.gpu_name]
    return named[0] if len(named) == 1 else None


def _time_sentences(smoke: SmokeTest) -> list[str]:
    timings = smoke.timings
    if timings.total_s is None:
        return ["The time for the image was not measured."] if smoke.image is not None else []
    took = human_duration(timings.total_s)
    if smoke.image is None and smoke.media:
        first = f"What the workflow makes took {took}{_split(timings)}."
    elif timings.start_s is None:
        first = f"The image took {took}{_split(timings)}, with a program that was already running."
    else:
        first = f"The first image after the start took {took}{_split(timings)}."
    return [first, *_step_sentences(smoke), *_growth_sentences(smoke.runs)]


def _growth_sentences(runs: Sequence[ImageRun]) -> list[str]:
    """Return what the images after the first one added to the memory, where that is more than rounding."""
    if not runs:
        return []
    first, last = runs[0], runs[-1]
    added = [
        f"{gib(after - before)} of {what}"
        for what, before, after in (
            ("GPU memory", first.vram_bytes, last.vram_bytes),
            ("memory", first.memory_bytes, last.memory_bytes),
        )
        if before is not None and after is not None and after - before >= _GIB // 20
    ]
    if not added:
        return []
    return [f"From the first image to the last, image {len(runs)}, ComfyUI took {' and '.join(added)} more."]


def _split(timings: Timings) -> str:
    """Return the parts of the time that were measured separately."""
    parts = [
        (timings.load_s, "to read the models"),
        (timings.encode_s, "for the prompt"),
        (sum(timings.steps_s) if timings.steps_s else None, "for the steps"),
        (timings.decode_s, "to decode"),
    ]
    told = [f"{human_duration(seconds)} {what}" for seconds, what in parts if seconds is not None]
    return f", {', '.join(told)}" if told else ""


def _step_sentences(smoke: SmokeTest) -> list[str]:
    """Return the time of the steps; the first one includes loading the weights."""
    seen = smoke.timings.steps_s
    later = sorted(seen[1:])
    if not later:
        return []
    middle = later[len(later) // 2]
    missed = (
        f" ({count(len(seen), 'step')} of {smoke.options.steps} were measured)"
        if len(seen) < smoke.options.steps
        else ""
    )
    if seen[0] > 2 * middle:
        return [
            f"The first step took {human_duration(seen[0])}, including moving the weights to the GPU; a later one"
            f" {human_duration(middle)}{missed}."
        ]
    return [f"A step took {human_duration(middle)}{missed}."]


def _card_sentences(smoke: SmokeTest, machine: Machine | None) -> list[str]:
    """Return the limits of the card for these weights."""
    card = _gpu_of(smoke.vram, machine) if smoke.vram is not None else None
    if card is None or card.compute_capability is None or smoke.names is None:
        return []
    if "fp8" in smoke.names.diffusion_model.casefold() and card.compute_capability < FP8_FROM:
        return [
            f"{card.name} has no FP8 units (those came with compute capability 8.9): FP8 weights save memory here, but"
            " no time."
        ]
    return []


# --- out of memory --------------------------------------------------------------------------------

_GENERAL = frozenset({"gpu-out-of-memory", "ram-out-of-memory", None})
"""Causes that say only that memory ran out; the others have a remedy of their own, which comes first."""

_AMOUNT = re.compile(r"(`--(?:reserve-vram|vram-headroom)) [0-9.]+`")


def failure_advice(
    error: SmokeTestError,
    machine: Machine | None,
    chosen: ArtifactSet,
    reading: VramReading | None,
    *,
    sets: Sequence[ArtifactSet],
    is_tiled: bool = False,
    reserved_gib: float | None = None,
) -> str | None:
    """Return what to do about an error, with the numbers of this machine.

    Parameters
    ----------
    error : SmokeTestError
        What happened; its context says which memory ran out, and its hint is the remedy of a known failure.
    machine : Machine or None
        What was probed; None: it happened on another one.
    chosen : ArtifactSet
        The set in use.
    reading : VramReading or None
        What NVML reported, where it was read.
    sets : sequence of ArtifactSet
        The manifest's sets, of which a smaller one is chosen.
    is_tiled : bool, optional
        Whether it was decoded in tiles already.
    reserved_gib : float, optional
        What ``--reserve-vram`` was given already, in GiB.
    """
    card = _card(machine, reading)
    total = reading.total_bytes if reading is not None else card.memory_total_bytes if card is not None else None
    reserve = max(1.0 if total is not None and total < 11 * _GIB else 2.0, (reserved_gib or 0.0) + 1)
    is_special = not isinstance(error, MemoryExhaustedError) or error.context.get("cause") not in _GENERAL
    own = [error.hint] if is_special and error.hint else []
    advice = [each if machine is None else _AMOUNT.sub(rf"\1 {reserve:g}`", each) for each in own]
    if not isinstance(error, MemoryExhaustedError):
        return " ".join([*advice, *_pinned_sentences(error, machine, chosen)]) or None
    if _is_about_vram(error):
        advice += _vram_facts(reading, chosen)
        if not own:
            advice += _vram_advice(chosen, reading, total, reserve, is_tiled=is_tiled)
    else:
        advice += _ram_facts(machine, chosen)
        if not own:
            more = "" if machine is None else more_memory(chosen, machine)
            advice.append(more if more.startswith("Close") else f"Close other programs. {more}".strip())
        advice += _pinned_sentences(error, machine, chosen)
    if not own:
        advice += _options_left(error, advice)
    smaller = _smaller_set(chosen, sets, machine, card)
    if smaller is None:
        advice.append(f"The manifest has no smaller set that can replace {chosen.id} here.")
    else:
        saved = human_bytes(chosen.size - smaller.size)
        advice.append(
            f"Use the set {smaller.id}, whose files are {saved} smaller: `klein-setup install --set {smaller.id}`."
        )
    return " ".join(advice)


def _options_left(error: SmokeTestError, said: Sequence[str]) -> list[str]:
    """Return the options of ComfyUI that a known failure names and that were not said."""
    named = _flags(error)
    left = [f"`{each}`" for each in named if not any(each in sentence for sentence in said)]
    return (
        [f"If that is not enough, start ComfyUI with {listing(left)}{', each alone' if len(left) > 1 else ''}."]
        if left
        else []
    )


def _flags(error: SmokeTestError) -> list[str]:
    flags = error.context.get("flags")
    return [str(each) for each in flags] if isinstance(flags, list) else []


def _is_about_vram(error: SmokeTestError) -> bool:
    context = error.context
    return (
        context.get("memory") == "vram"
        or context.get("cause") == "gpu-out-of-memory"
        or context.get("layer") == "gpu-memory"
    )


def _vram_facts(reading: VramReading | None, chosen: ArtifactSet) -> list[str]:
    if reading is None:
        return []
    free, published = reading.free_at_start_bytes, chosen.envelope.vram_bytes
    told = [f"{gib(free)} of {gib(reading.total_bytes)} were free on {reading.gpu_name} before the run."]
    if published is not None and free < published:
        told.append(f"The published peak of the set {chosen.id} is {gib(published)}.")
    return told


def _vram_advice(
    chosen: ArtifactSet, reading: VramReading | None, total: int | None, reserve: float, *, is_tiled: bool
) -> list[str]:
    advice: list[str] = []
    if reading is not None and reading.used_at_start_bytes >= _GIB:
        advice.append(f"Close other programs that use it: {gib(reading.used_at_start_bytes)} of it were in use.")
    if chosen.target == "comfyui":
        advice.append(
            f"Start ComfyUI with `--reserve-vram {reserve:g}`, so that it moves models out of memory earlier."
        )
    if not is_tiled and (total is None or total < TILED_BELOW_BYTES):
        advice.append("Decode in tiles (`--tiled-decode`): decoding a whole image has a peak of several GB.")
    return advice


def _ram_facts(machine: Machine | None, chosen: ArtifactSet) -> list[str]:
    """Return what the set needs of the computer's memory, beside what there is."""
    if machine is None or machine.memory_total_bytes is None:
        return [f"The set {chosen.id} passes through the machine's memory: its files are {human_bytes(chosen.size)}."]
    need = memory_need(chosen, machine)
    return [f"The set {chosen.id} needs about {gib(need.total_bytes)} of memory. {memory_words(machine)}"]


def _pinned_sentences(error: SmokeTestError, machine: Machine | None, chosen: ArtifactSet) -> list[str]:
    """Return how much memory a program may pin here, where a known failure is about that."""
    if machine is None or "--disable-pinned-memory" not in _flags(error):
        return []
    return pinned_limits(chosen, machine)


def _card(machine: Machine | None, reading: VramReading | None) -> Gpu | None:
    """Return the card that was used; without a reading the only one there is."""
    if reading is not None:
        return _gpu_of(reading, machine)
    return machine.gpus[0] if machine is not None and len(machine.gpus) == 1 else None


def _smaller_set(
    chosen: ArtifactSet, sets: Sequence[ArtifactSet], machine: Machine | None, card: Gpu | None
) -> ArtifactSet | None:
    """Return the largest set that is smaller than the chosen one, generates the same, and suits the machine."""
    kind = (chosen.target, chosen.envelope.steps, chosen.envelope.guidance)
    fitting = [
        each
        for each in sets
        if each.size < chosen.size
        and (machine is None or shortage(each, machine) is None)
        and (each.target, each.envelope.steps, each.envelope.guidance) == kind
        and _suits(each.conditions, machine, card)
    ]
    return max(fitting, key=lambda each: each.size, default=None)


def _suits(conditions: Conditions, machine: Machine | None, card: Gpu | None) -> bool:
    """Whether a card meets what a set asks; of an unknown one only a compute capability is doubted."""
    if conditions.platforms and machine is not None and machine.os not in conditions.platforms:
        return False
    if conditions.min_compute_capability is not None:
        capability = card.compute_capability if card is not None else None
        if capability is None or capability < conditions.min_compute_capability:
            return False
    total = card.memory_total_bytes if card is not None else None
    return conditions.min_vram_bytes is None or total is None or total >= conditions.min_vram_bytes
