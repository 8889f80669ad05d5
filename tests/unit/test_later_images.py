"""The images after the first one: how many, how long each may take, and what growing memory looks like."""

from __future__ import annotations

import pytest

from provisioner.core.errors import GenerationError, SmokeTestError
from provisioner.core.models import Envelope, Finding
from provisioner.smoke_test.later_images import failed_later, growth, judged_later
from provisioner.smoke_test.measurement import describe
from provisioner.smoke_test.results import ImageOptions, ImageRun, SmokeTest, Timings

MIB = 1024**2


def runs(vram: list[int | None], memory: list[int | None] | None = None) -> tuple[ImageRun, ...]:
    held = memory or [None] * len(vram)
    return tuple(
        ImageRun(
            seed=number,
            total_s=1.0 + number,
            vram_bytes=None if on_card is None else on_card * MIB,
            memory_bytes=None if resident is None else resident * MIB,
        )
        for number, (on_card, resident) in enumerate(zip(vram, held, strict=True))
    )


def test_memory_that_every_image_adds_to_is_a_warning() -> None:
    (found,) = growth(runs([8000, 9000, 9100, 9200]))
    assert (found.code, found.severity) == ("memory-grows", "warning")
    assert "GPU memory" in found.message
    assert "after image 2" in found.message
    assert "after image 4" in found.message
    both = growth(runs([8000, 9000, 9100, 9200], [1000, 1000, 1100, 1200]))
    assert ["GPU memory" in each.message for each in both] == [True, False]


@pytest.mark.parametrize(
    "vram",
    [
        [8000, 9000],  # the second image loads what the first did not need
        [8000, 9000, 9100],
        [8000, 9000, 9100, 9100],
        [8000, 9000, 9100, 9110],  # rounding
        [8000, 9000, 9100, 8900],
        [8000, 9000, None, 9200],
        [None, None, None, None],
    ],
)
def test_memory_that_is_being_filled_is_none(vram: list[int | None]) -> None:
    assert growth(runs(vram)) == ()


def test_an_image_that_hangs_is_told_with_the_time_of_the_first_and_where_it_stands() -> None:
    late = GenerationError(
        "No image was generated within 60 s; it had reached SamplerCustom (node 9).", cause="timeout"
    )
    found = failed_later(2, runs([None])[0], late, 60.0)
    assert found.code == "later-image-hangs"
    assert found.message == (
        "The first image took 1.0 s, but image 2 did not come within 1 min; it had reached SamplerCustom (node 9)."
    )
    assert "--disable-dynamic-vram" in str(found.hint)
    other = failed_later(3, runs([None])[0], SmokeTestError("The VAE is empty.", hint="Repair it."), 60.0)
    assert (other.code, other.hint) == ("later-image-fails", "Repair it.")
    assert other.message.endswith("but image 3 failed: The VAE is empty.")


def test_a_judgement_says_of_which_image_it_is() -> None:
    black = Finding(code="picture-black", severity="problem", message="It is black.", remedy="by-hand", hint="Again.")
    (found,) = judged_later(4, (black,))
    assert (found.message, found.code, found.hint) == ("Image 4: It is black.", "picture-black", "Again.")


def test_warm_seconds_are_the_median_without_the_first() -> None:
    smoke = SmokeTest(backend="comfyui", options=ImageOptions(), timings=Timings(), runs=runs([None] * 4))
    assert smoke.warm_s == 3.0
    assert SmokeTest(backend="comfyui", options=ImageOptions(), timings=Timings(), runs=runs([None])).warm_s is None


def test_what_was_added_from_the_first_to_the_last_is_said_where_it_is_more_than_rounding() -> None:
    def notes(*vram: int) -> str:
        held = runs([*vram], [100, *(100 for _ in vram[1:])])
        smoke = SmokeTest(backend="comfyui", options=ImageOptions(), timings=Timings(total_s=4.0), runs=held)
        return " ".join(describe(smoke, Envelope()))

    assert "ComfyUI took" not in notes(8000)
    assert "ComfyUI took" not in notes(8000, 8010)
    assert "From the first image to the last, image 2, ComfyUI took 1.0 GiB of GPU memory more." in notes(8000, 9024)
