"""What a set needs of the computer's memory, whether this machine has it, and what does fit.

No published figure says how much RAM FLUX.2 [klein] needs, so it is added up from the sizes of the files, by rules that
agree with what was published: 16 GB of RAM with a GPU of 8 GB ran the set of 12.45 GB; 32 GB were advised for diffusers
with 16 GB of files; a Mac of 24 GB holds that much, one of 16 GB swaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from provisioner.core.models import ArtifactSet, Finding, Gpu, Machine
from provisioner.core.units import gib, human_bytes
from provisioner.files.choose_set import unmet_conditions

_GIB = 1024**3

BESIDE_BYTES = 3 * _GIB
"""For the system and for ComfyUI with torch, without a model: an estimate."""

GPU_ROOM_BYTES = 4 * _GIB
"""What a GPU needs beside the weights to keep them all: ComfyUI 0.33.0 peaked at 15,347 MiB on an H200 with a set of
11,875 MiB (2026-11-23)."""

PINNED_SHARE = 0.5
"""Part of the memory that Windows lets a program pin (Comfy-Org/ComfyUI pull 10638)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What a set needs of the computer's memory, in bytes."""

    weights_bytes: int  # that stay there while an image is generated
    largest_bytes: int  # of the largest file, which passes through it in any case
    why: str  # a clause about the weights

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + BESIDE_BYTES


Shortage = Literal["memory-too-small", "memory-swaps", "page-file-too-small"]


def memory_need(wanted: ArtifactSet, machine: Machine) -> MemoryNeed:
    """Return what a set needs of this machine's memory.

    ComfyUI keeps in the computer's memory what does not fit the GPU beside the rest; diffusers reads everything into it
    first.  A GPU that shares the computer's memory, and a processor, work on weights that are there.
    """
    largest = max((each.size for each in wanted.artifacts), default=0)
    gpu = _gpu(machine)
    if gpu is None:
        return MemoryNeed(weights_bytes=wanted.size, largest_bytes=largest, why="all weights, without a GPU")
    if gpu.shares_memory:
        why = f"all weights, because {gpu.name} has no memory of its own"
        return MemoryNeed(weights_bytes=wanted.size, largest_bytes=largest, why=why)
    size = gpu.memory_total_bytes
    if wanted.target == "hf_cache":
        why = "all weights, which diffusers reads before it moves them to the GPU"
        return MemoryNeed(weights_bytes=wanted.size, largest_bytes=largest, why=why)
    if size is not None and size < wanted.size + GPU_ROOM_BYTES:
        why = f"the weights, which stay there while the GPU with {gib(size)} works on a part of them"
        return MemoryNeed(weights_bytes=wanted.size, largest_bytes=largest, why=why)
    return MemoryNeed(
        weights_bytes=largest, largest_bytes=largest, why="the largest file, which passes through it to the GPU"
    )


def _gpu(machine: Machine) -> Gpu | None:
    """Return the GPU with the most memory, for which a set is chosen; one of its own before one that shares."""
    return max(machine.gpus, key=lambda each: (not each.shares_memory, each.memory_total_bytes or 0), default=None)


def shortage(wanted: ArtifactSet, machine: Machine) -> Shortage | None:
    """Return what this machine has too little of; None where nothing is, or where its memory is not known.

    Windows counts a file that is read a second time until it is closed, against RAM and page file together: that is
    where ``os error 1455`` comes from (ComfyUI issues 7550 and 7069).  macOS makes swap files as it needs them, and
    Windows enlarges its page file where nobody set the size.
    """
    have, swap = machine.memory_total_bytes, machine.swap_total_bytes
    if have is None:
        return None
    need = memory_need(wanted, machine)
    grows = machine.swap_grows or machine.os == "macos"
    commit = have + (swap or 0)
    if machine.os == "windows" and swap is not None and not grows and commit < need.total_bytes + need.largest_bytes:
        return "page-file-too-small" if have >= need.total_bytes else "memory-too-small"
    if have >= need.total_bytes:
        return None
    if grows:
        return "memory-swaps" if have >= need.largest_bytes + BESIDE_BYTES else "memory-too-small"
    return "memory-swaps" if commit >= need.total_bytes else "memory-too-small"


def memory_findings(wanted: ArtifactSet, machine: Machine, sets: Sequence[ArtifactSet]) -> tuple[Finding, ...]:
    """Return a warning where a set needs more of the computer's memory than there is, with the numbers and what helps.

    Parameters
    ----------
    wanted : ArtifactSet
        The set.
    machine : Machine
        The machine.
    sets : sequence of ArtifactSet
        The manifest's sets, of which another one may fit.
    """
    short = shortage(wanted, machine)
    if short is None:
        return _busy_gpu(wanted, machine)
    need = memory_need(wanted, machine)
    then = {
        "memory-too-small": "ComfyUI will most likely be ended by the system, or stop with an error, while it loads",
        "memory-swaps": "The rest is swapped to the disk, which makes every image slow",
        "page-file-too-small": "Windows will most likely refuse to open a model file (os error 1455)",
    }[short]
    if wanted.target == "hf_cache":
        then = then.replace("ComfyUI", "diffusers")
    asked = f"{gib(need.total_bytes)} of memory: {gib(need.weights_bytes)} for {need.why}, and about"
    message = f"The set {wanted.id} needs {asked} {gib(BESIDE_BYTES)} for everything else"
    if machine.os == "windows":
        message += f"; while it reads the largest file Windows counts {gib(need.largest_bytes)} more"
    return (
        Finding(
            code=short,
            severity="warning",
            remedy="by-hand",
            message=f"{message}. {memory_words(machine)} {then}.",
            hint=" ".join(_advice(wanted, machine, sets)),
        ),
        *_busy_gpu(wanted, machine),
    )


def _busy_gpu(wanted: ArtifactSet, machine: Machine) -> tuple[Finding, ...]:
    """Say that other programs hold so much of the GPU's memory that less than the published peak is left."""
    gpu, peak = _gpu(machine), wanted.envelope.vram_bytes
    if gpu is None or peak is None or gpu.memory_total_bytes is None or gpu.memory_free_bytes is None:
        return ()
    if gpu.is_mig_enabled or gpu.memory_total_bytes < peak or gpu.memory_free_bytes >= peak:
        return ()
    return (
        Finding(
            code="gpu-memory-in-use",
            severity="warning",
            remedy="by-hand",
            message=f"{gib(gpu.memory_free_bytes)} of {gib(gpu.memory_total_bytes)} are free on {gpu.name}, and the"
            f" published peak of the set {wanted.id} is {gib(peak)}.",
            hint="Close other programs that use the GPU before an image is generated.",
        ),
    )


# --- words ------------------------------------------------------------------------------------------


def memory_words(machine: Machine) -> str:
    """Return what there is, in a sentence."""
    have = machine.memory_total_bytes
    if have is None:
        return "How much memory there is here is not known."
    if machine.memory_physical_bytes is not None:
        words = f"This container may use {gib(have)} (the computer has {gib(machine.memory_physical_bytes)})"
    else:
        words = f"This machine has {gib(have)}"
    if machine.memory_available_bytes is not None:
        words += f", {gib(machine.memory_available_bytes)} of it free"
    return f"{words}{_swap_words(machine)}."


def _swap_words(machine: Machine) -> str:
    swap = machine.swap_total_bytes
    if swap is None or machine.os == "macos":
        return ""
    if machine.os == "windows":
        return f", and a page file of {gib(swap)}" if swap else ", and no page file"
    return f", and {gib(swap)} of swap" if swap else ", and no swap"


def _advice(wanted: ArtifactSet, machine: Machine, sets: Sequence[ArtifactSet]) -> list[str]:
    said = [more_memory(wanted, machine)]
    other = largest_fitting(wanted, machine, sets)
    if other is not None:
        said.append(
            f"Or use the set {other.id}, the largest that fits this machine ({human_bytes(other.size)}):"
            f" `klein-setup install --set {other.id}`."
        )
    else:
        said.append("No other set of this manifest fits this machine.")
    said += pinned_words(wanted, machine)
    return said


def more_memory(wanted: ArtifactSet, machine: Machine) -> str:
    """Return how this machine gets the memory that a set needs, with how much that is.

    Where it should have had enough, it is 2 GiB more than it has.
    """
    need = memory_need(wanted, machine)
    have, swap = machine.memory_total_bytes or 0, machine.swap_total_bytes or 0
    goal = math.ceil(max(need.total_bytes, have + 2 * _GIB if have >= need.total_bytes else 0) / _GIB)
    if machine.memory_physical_bytes is not None:
        return (
            f"Give the container at least {goal} GiB: `--memory {goal}g` of docker and podman, resources.limits.memory"
            " of Kubernetes, or MemoryMax= of systemd."
        )
    if machine.is_wsl:
        return f"Give WSL more: memory={goal}GB in the section [wsl2] of .wslconfig, then `wsl --shutdown`."
    if machine.os == "windows":
        page = math.ceil(max(2 * _GIB, need.total_bytes + need.largest_bytes - have) / _GIB)
        if machine.swap_grows:
            return f"Keep {page} GiB free on the drive of the page file, which Windows enlarges as needed."
        return (
            f"Let Windows manage the size of the page file, on a drive with {page} GiB free or more, or set it to that"
            " much."
        )
    if machine.os == "macos":
        return "Close other programs before an image is generated."
    missing = math.ceil(max(2 * _GIB, need.total_bytes - have - swap) / _GIB)
    return f"Add {missing} GiB of swap, or more memory."


def pinned_words(wanted: ArtifactSet, machine: Machine) -> list[str]:
    """Return what to do where the weights are more than a program may pin; only Windows has such a limit for GPUs."""
    share = int((machine.memory_total_bytes or 0) * PINNED_SHARE)
    if wanted.target != "comfyui" or machine.os != "windows" or wanted.size <= share:
        return []
    return [
        *pinned_limits(wanted, machine),
        "If ComfyUI stops with os error 1450 or at HostBuffer, start it with `--disable-pinned-memory`.",
    ]


def pinned_limits(wanted: ArtifactSet, machine: Machine) -> list[str]:
    """Return in a sentence how much memory a program may pin here; nothing where no limit is known."""
    have = machine.memory_total_bytes
    if machine.os == "windows" and have is not None:
        share = gib(int(have * PINNED_SHARE))
        return [f"Windows lets a program pin half of the memory, {share} here; the weights are {gib(wanted.size)}."]
    if machine.locked_limit_bytes is not None:
        limit = human_bytes(machine.locked_limit_bytes)
        return [f"A process may lock {limit} in memory here (`ulimit -l`); the weights are {gib(wanted.size)}."]
    return []


# --- what fits --------------------------------------------------------------------------------------


def largest_fitting(wanted: ArtifactSet, machine: Machine, sets: Iterable[ArtifactSet]) -> ArtifactSet | None:
    """Return the largest other set that generates the same and that this machine has GPU and memory for."""
    kind = (wanted.target, wanted.envelope.steps, wanted.envelope.guidance)
    fitting = [
        each
        for each in sets
        if each.id != wanted.id
        and (each.target, each.envelope.steps, each.envelope.guidance) == kind
        and not unmet_conditions(each.conditions, machine)
        and shortage(each, machine) is None
    ]
    return max(fitting, key=lambda each: each.size, default=None)
