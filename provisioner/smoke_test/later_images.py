"""The images after the first one, made by the same server with the models in memory: how many, and what they tell.

A first image shows that the set works.  ComfyUI is also known to stand still at the second one, to generate it black,
and to keep more memory with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from provisioner.core.errors import SmokeTestError
from provisioner.core.models import Finding
from provisioner.core.units import human_bytes, human_duration
from provisioner.smoke_test.results import ImageRun

IMAGES_ON_A_GPU = 2
"""Images by default; on a CPU, where one takes minutes, it is one."""

LEAST_PATIENCE_S = 60.0
"""Seconds that a later image may take in any case."""

TIMES_THE_FIRST = 3.0
"""How many times as long as the first image, which also loaded the models, a later one may take."""

LEAST_FOR_GROWTH = 4
"""Images from which on growing memory is told from memory that is still being filled."""

GROWTH_BYTES = 32 * 1024**2
"""What has to be added by every image from the second on; allocators and the driver add less."""

_STANDS_STILL = (
    "Start ComfyUI with --disable-dynamic-vram, or with --disable-pinned-memory, and see whether it goes on: its"
    " streaming of weights is known to stand still there (ComfyUI issues 15255 and 15269). With --debug-hang, Ctrl-C"
    " prints where it stands."
)
_GROWS = (
    "Let it make more with --images 20. Where it goes on, start ComfyUI with --disable-all-custom-nodes: a node that"
    " keeps what it made is the usual reason."
)


def images_wanted(asked: int | None, device_kind: str | None) -> int:
    """Return how many images to generate; `device_kind` is what the server draws with, "cuda" or "cpu".

    >>> images_wanted(None, "cuda"), images_wanted(None, "cpu"), images_wanted(None, None), images_wanted(5, "cpu")
    (2, 1, 1, 5)
    """
    if asked is not None:
        return asked
    return 1 if device_kind in {None, "cpu"} else IMAGES_ON_A_GPU


def patience_s(first_s: float, timeout_s: float) -> float:
    """Return the seconds after which a later image is said to hang.

    >>> patience_s(4.0, 900.0), patience_s(100.0, 900.0), patience_s(100.0, 90.0)
    (60.0, 300.0, 90.0)
    """
    return min(timeout_s, max(LEAST_PATIENCE_S, TIMES_THE_FIRST * first_s))


def later_seed(seed: int, number: int) -> int:
    """Return the seed of an image, where the first is number 1 and has `seed`: another one each, below 2**64.

    >>> later_seed(7, 1), later_seed(7, 2), later_seed(2**64 - 1, 2)
    (7, 8, 0)
    """
    return (seed + number - 1) % 2**64


def failed_later(number: int, first: ImageRun, error: SmokeTestError, waited_s: float) -> Finding:
    """Return the problem of an image that did not come although the first one had."""
    came = f"The first image took {human_duration(first.total_s)}"
    if error.context.get("cause") == "timeout":
        where = str(error).partition("; ")[2]
        return Finding(
            code="later-image-hangs",
            severity="problem",
            remedy="by-hand",
            message=f"{came}, but image {number} did not come within {human_duration(waited_s)}"
            f"{f'; {where}' if where else '.'}",
            hint=_STANDS_STILL,
        )
    return Finding(
        code="later-image-fails",
        severity="problem",
        remedy="by-hand",
        message=f"{came}, but image {number} failed: {error}",
        hint=error.hint,
    )


def judged_later(number: int, found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return what is wrong with a later image, with its number said."""
    return tuple(replace(each, message=f"Image {number}: {each.message}") for each in found)


def growth(runs: Sequence[ImageRun]) -> tuple[Finding, ...]:
    """Return a warning where every image from the second on added to the memory: of the GPU, or of the server."""
    if len(runs) < LEAST_FOR_GROWTH:
        return ()
    warnings = []
    for what, taken in (
        ("GPU memory", [each.vram_bytes for each in runs[1:]]),
        ("memory", [each.memory_bytes for each in runs[1:]]),
    ):
        known = [each for each in taken if each is not None]
        steps = [later - earlier for earlier, later in pairwise(known)]
        if len(known) == len(taken) and min(steps) >= GROWTH_BYTES:
            warnings.append(
                Finding(
                    code="memory-grows",
                    severity="warning",
                    remedy="by-hand",
                    message=f"Each image after the second one added {human_bytes(sum(steps) // len(steps))} or so to"
                    f" the {what} of ComfyUI: {human_bytes(known[0])} after image 2, {human_bytes(known[-1])} after"
                    f" image {len(runs)}.",
                    hint=_GROWS,
                )
            )
    return tuple(warnings)
