"""Whether an image looks like one: photographs, noise as decoders make it, and photographs with faults."""

from __future__ import annotations

import importlib.resources
import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from provisioner.core.models import Finding
from provisioner.smoke_test.image import judge, read_image
from provisioner.smoke_test.image_figures import LEAST_SIDE, measure
from provisioner.smoke_test.image_verdict import Likeness, figure_words, likeness_of, verdict_words
from provisioner.smoke_test.results import ImageFigures, ImageOptions
from tests.support.pictures import SOUND, blotches, grains, leaves, png, stripes


def likeness(image: Image.Image) -> Likeness:
    return likeness_of(measure(image))


def figures(image: Image.Image) -> ImageFigures:
    found = measure(image)
    assert found is not None
    return found


# --- what is measured ------------------------------------------------------------------------------


def test_white_noise_has_the_figures_of_white_noise() -> None:
    found = figures(grains(512))
    assert found.neighbour_correlation == pytest.approx(0, abs=0.02)
    assert found.spectrum_slope == pytest.approx(0, abs=0.05)
    assert found.edge_peakedness == pytest.approx(3, abs=0.2)  # of a normal distribution
    assert found.contrast_variation < 0.1
    assert found.colour_detail == pytest.approx(1.83, abs=0.1)  # (0.388 + 0.432) / 0.447, of Y, Cb and Cr of BT.601
    assert found.direction == pytest.approx(1, abs=0.05)
    assert found.block_edges == pytest.approx(1, abs=0.05)


def test_grey_noise_has_no_colour() -> None:
    found = figures(grains(is_grey=True))
    assert (found.colour_detail, found.saturation) == (0, 0)


def test_a_photograph_has_other_figures() -> None:
    found = figures(leaves())
    assert found.neighbour_correlation > 0.85
    assert 0.8 < found.spectrum_slope < 1.6
    assert found.edge_peakedness > 6
    assert found.colour_detail < 0.3
    assert found.levels > 200


def test_a_gradient_is_measured_without_dividing_by_nothing() -> None:
    flat = figures(Image.new("RGB", (64, 64), (9, 9, 9)))
    assert (flat.tonal_range, flat.levels, flat.contrast_variation, flat.block_edges) == (0, 1, 0, 0)
    assert flat.clipped == 0
    ramp = figures(Image.linear_gradient("L").convert("RGB"))
    assert ramp.direction == 1000  # columns change, rows do not
    assert ramp.tonal_range == pytest.approx(0.96 * 255, abs=2)


def test_edges_of_blocks_and_clipped_values_are_found() -> None:
    squares = grains(16).resize((256, 256), Image.Resampling.NEAREST)
    assert figures(squares).block_edges > 100
    assert figures(leaves().point(lambda value: 0 if value < 100 else 255)).clipped > 0.25
    assert figures(leaves().point(lambda value: max(value, 100) if value < 130 else 255)).clipped == 0


def test_a_large_image_is_halved_first_and_has_nearly_the_same_figures() -> None:
    small = figures(leaves(1024))
    large = figures(leaves(1024).resize((2048, 2048), Image.Resampling.BICUBIC))
    assert large.tonal_range == pytest.approx(small.tonal_range, abs=5)
    assert large.edge_peakedness == pytest.approx(small.edge_peakedness, rel=0.3)


@pytest.mark.parametrize("size", [(LEAST_SIDE - 1, 500), (500, LEAST_SIDE - 1), (2, 1)])
def test_an_image_that_is_too_small_is_not_measured(size: tuple[int, int]) -> None:
    assert measure(Image.new("RGB", size)) is None
    assert likeness_of(None) == Likeness(verdict="uncertain", because="it is too small to tell")


def test_a_grey_image_of_one_channel_is_measured() -> None:
    assert figures(leaves().convert("L")) == figures(leaves().convert("L").convert("RGB"))


def test_an_image_of_1024_takes_well_under_a_third_of_a_second() -> None:
    image = blotches(1024)
    began = time.process_time()
    likeness(image)
    assert time.process_time() - began < 0.3


# --- verdicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", [128, 256])
def test_what_has_edges_looks_like_an_image(side: int, seed: int) -> None:
    assert likeness(leaves(side, seed)).verdict == "image"


def test_a_photograph_looks_like_an_image_whatever_was_done_to_it() -> None:
    path = importlib.resources.files("textual_image") / "gracehopper.jpg"
    with path.open("rb") as file:
        image = Image.open(file).convert("RGB")
    for variant in (
        image,
        image.convert("L"),
        image.resize((256, 256)),
        ImageOps.mirror(image),
        image.crop((0, 0, 300, 300)),
    ):
        assert likeness(variant).verdict == "image"


NOISE: dict[str, Callable[[int, int], Image.Image]] = {
    "grains": grains,
    "weak grains": lambda side, seed: grains(side, seed, deviation=12),
    "grey grains": lambda side, seed: grains(side, seed, is_grey=True),
    "blotches of 2": lambda side, seed: blotches(side, seed, scale=2),
    "blotches of 4": lambda side, seed: blotches(side, seed, scale=4),
    "blotches of 8 and grains": lambda side, seed: Image.blend(blotches(side, seed), grains(side, seed + 1), 0.3),
    "squares": lambda side, seed: grains(side // 16, seed).resize((side, side), Image.Resampling.NEAREST),
    "stripes": stripes,
    "noise that covers a photograph": lambda side, seed: Image.blend(leaves(side, seed), grains(side, seed), 0.85),
}


@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("name", NOISE)
def test_noise_looks_like_noise(name: str, side: int) -> None:
    found = likeness(NOISE[name](side, 7))
    assert found.verdict == "noise", found


SMALL_OR_SMOOTH: dict[str, Image.Image] = {
    "large blotches": blotches(256, scale=32),
    "small and blotchy": blotches(64),
    "small grains": grains(64),
}


@pytest.mark.parametrize("name", SMALL_OR_SMOOTH)
def test_noise_with_little_of_it_is_never_taken_for_an_image(name: str) -> None:
    assert likeness(SMALL_OR_SMOOTH[name]).verdict != "image"


def lost_blocks(colour: int) -> Image.Image:
    image, chance = leaves(512).copy(), random.Random(3)
    draw = ImageDraw.Draw(image)
    for x in range(0, 512, 64):
        for y in range(0, 512, 64):
            if chance.random() < 0.25:
                draw.rectangle((x, y, x + 63, y + 63), fill=(colour,) * 3)
    return image


def shuffled(side: int) -> Image.Image:
    image, made, chance = leaves(256), Image.new("RGB", (256, 256)), random.Random(4)
    places = [(x, y) for x in range(0, 256, side) for y in range(0, 256, side)]
    for (x, y), (a, b) in zip(places, chance.sample(places, len(places)), strict=True):
        made.paste(image.crop((a, b, a + side, b + side)), (x, y))
    return made


def banded() -> Image.Image:
    rows = grains(256, is_grey=True, deviation=60).crop((0, 0, 1, 256)).resize((256, 256), Image.Resampling.NEAREST)
    return ImageChops.add(leaves().filter(ImageFilter.GaussianBlur(2)), rows, 1, -128)


FAULTS: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "NaN became black": (lambda: lost_blocks(0), "the edges of blocks stand out"),
    "NaN became white": (lambda: lost_blocks(255), "the edges of blocks stand out"),
    "blocks of 16 in any order": (lambda: shuffled(16), "the edges of blocks stand out"),
    "washed out": (lambda: leaves().point(lambda value: 200 + value // 20), "it has hardly any contrast"),
    "few levels": (lambda: ImageOps.posterize(leaves(), 3), "it has no more than 8 levels of each colour"),
    "bands": (banded, "it changes in one direction only, as bands do"),
    "no shades": (
        lambda: leaves().point(lambda value: max(0, min(255, (value - 110) * 6))),
        "much of it is black or white, without shades between",
    ),
    "mush": (lambda: leaves().filter(ImageFilter.GaussianBlur(30)), "no edge stands out from its detail"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_photograph_with_a_fault_is_uncertain_and_the_fault_is_named(name: str) -> None:
    make, because = FAULTS[name]
    assert likeness(make()) == Likeness(verdict="uncertain", because=because)


FIGURES: list[tuple[dict[str, float], str, str]] = [
    ({}, "image", "it has edges"),
    ({"colour_detail": 1.8, "edge_peakedness": 3.2, "contrast_variation": 0.1}, "noise", "no edge stands out"),
    ({"colour_detail": 1.8, "edge_peakedness": 5.5, "contrast_variation": 0.1}, "uncertain", "its colours change"),
    ({"colour_detail": 1.8, "edge_peakedness": 3.2, "contrast_variation": 0.7}, "uncertain", "its colours change"),
    (
        {"colour_detail": 1.8, "edge_peakedness": 3.2, "contrast_variation": 0.1, "neighbour_correlation": 0.995},
        "uncertain",
        "its colours change",
    ),
    (
        {"colour_detail": 1.8, "edge_peakedness": 3.2, "contrast_variation": 0.1, "tonal_range": 19},
        "uncertain",
        "it has hardly any contrast",
    ),
    ({"colour_detail": 1.8, "block_edges": 9.0}, "noise", "it consists of squares"),
    ({"colour_detail": 0.1, "block_edges": 9.0}, "uncertain", "the edges of blocks"),
    ({"colour_detail": 5.0, "edge_peakedness": 150.0}, "uncertain", "its colours change"),  # in coloured light
    (
        {"neighbour_correlation": 0.01, "edge_peakedness": 3.0, "contrast_variation": 0.1, "colour_detail": 0.0},
        "noise",
        "neighbouring pixels have nothing",
    ),
    ({"neighbour_correlation": 0.2}, "uncertain", "neighbouring pixels have little"),
    ({"edge_peakedness": 4.4}, "uncertain", "no edge stands out"),  # grass
    ({"contrast_variation": 0.2}, "uncertain", "every place has as much detail"),
    ({"tonal_range": 12}, "uncertain", "it has hardly any contrast"),
    ({"levels": 16}, "uncertain", "it has no more than 16 levels"),
    ({"clipped": 0.8}, "uncertain", "much of it is black or white"),
    ({"direction": 40.0}, "uncertain", "it changes in one direction"),
]


@pytest.mark.parametrize(("changes", "verdict", "because"), FIGURES)
def test_each_limit_decides(changes: dict[str, float], verdict: str, because: str) -> None:
    found = likeness_of(replace(SOUND, **changes))  # type: ignore[arg-type]
    assert found.verdict == verdict
    assert found.because.startswith(because)


# --- words, and what comes of a verdict -------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "is_expected", "words"),
    [
        ("image", False, "looks like an image: why"),
        ("noise", False, "looks like noise: why"),
        ("noise", True, "looks like noise, as expected of stand-ins for the models: why"),
        ("uncertain", True, "uncertain whether it is an image or noise: why"),
        ("another", False, ""),
        ("", False, ""),
    ],
)
def test_a_verdict_is_said_in_words(verdict: str, is_expected: bool, words: str) -> None:
    assert verdict_words(verdict, "why", is_noise_expected=is_expected) == words


def test_words_need_no_reason() -> None:
    assert verdict_words("image", "", is_noise_expected=False) == "looks like an image"


def test_figures_are_said_with_three_digits() -> None:
    assert figure_words({"colour_detail": 0.12345, "levels": 256}) == "colour detail 0.123, levels 256"
    assert figure_words({}) == ""


def codes(image: Image.Image, *, is_stand_in: bool) -> list[tuple[str, str]]:
    found: tuple[Finding, ...] = judge(
        read_image(png(image)), ImageOptions(width=image.width, height=image.height), is_stand_in=is_stand_in
    )
    assert all(each.hint for each in found)
    return [(each.severity, each.code) for each in found]


@pytest.mark.parametrize("image", [grains(), blotches(), stripes()], ids=["grains", "blotches", "stripes"])
def test_noise_is_a_problem_of_published_weights_and_none_of_stand_ins(image: Image.Image) -> None:
    assert codes(image, is_stand_in=False) == [("problem", "picture-noise")]
    assert codes(image, is_stand_in=True) == []


def test_an_uncertain_image_is_a_warning_of_published_weights() -> None:
    doubtful = leaves().filter(ImageFilter.GaussianBlur(30))
    assert codes(doubtful, is_stand_in=False) == [("warning", "picture-uncertain")]
    assert codes(doubtful, is_stand_in=True) == []


def test_an_image_is_neither() -> None:
    assert codes(leaves(), is_stand_in=False) == []


@pytest.mark.parametrize("is_stand_in", [True, False])
def test_a_black_image_is_black_whoever_made_it(is_stand_in: bool) -> None:
    assert codes(Image.new("RGB", (64, 64)), is_stand_in=is_stand_in) == [("problem", "picture-black")]
