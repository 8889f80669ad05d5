"""Decide from its figures whether an image looks like one, or like noise.

An image looks like noise where its detail is like that of chance: no edges that stand out, as much of it in every
place, and colours that have nothing to do with each other.  It looks like an image where none of that holds.  All
between is uncertain, and so is an image with a fault that photographs can have too: hardly any contrast, few shades,
blocks, bands.  What these limits are worth is in ``scripts/results/judge.md``, by ``scripts/calibrate_judge.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from provisioner.smoke_test.results import ImageFigures, Verdict

# The limits lie between what was measured of the images that they were chosen on: scripts/results/judge.md.

RANDOM_COLOURS = 1.2
"""Colour detail above this: noise in three independent colours has 1.4 to 2.3."""

LOOSE_COLOURS = 1.05
"""Colour detail above this is not that of a photograph under white light: nearly all have under 0.6."""

NO_EDGES = 5.0
"""Peakedness below this: no edge stands out.  Photographs of even textures, like grass, have 4."""

EVEN_COLOURS = 0.62
"""Contrast varies less than this between places of noise, even of blotches so large that few fit into the image."""

EVEN = 0.25
"""Contrast varies less than this where every place is like any other; most photographs have over 0.35."""

SMOOTH = 0.985
"""Correlation of neighbours above this: a gradient of colours is as smooth, and so are only the largest blotches."""

RANDOM_PIXELS = 0.15
"""Correlation of neighbours below this: each pixel is by chance."""

UNRELATED_PIXELS = 0.3
"""Correlation of neighbours below this is that of hardly any photograph: gravel seen from far away has 0.3."""

BLOCKS_OF_NOISE = 6.0
"""Edges of blocks stand out as much where one random colour fills a block."""

VISIBLE_BLOCKS = 2.5
"""Above this the edges of blocks can be seen, as JPEG at its worst leaves them."""

LEAST_RANGE = 20
"""Of 255, from the darkest to the brightest: less is washed out, or fog."""

LEAST_LEVELS = 32
"""Levels of each colour: fewer are a graphic, or a photograph that lost its shades."""

MOST_CLIPPED = 0.15
"""Share of values that are 0, and of those that are 255: more of both are a photograph that lost its shades, or a
drawing.  Much of one of them is a night, or a white background."""

ONE_DIRECTION = 16.0
"""Neighbours differ this many times as much in one direction in bands and stripes; in photographs up to 10 times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What an image looks like, and why."""

    verdict: Verdict
    because: str  # a clause about the image: "its detail is the same in every place"


def verdict_words(verdict: str, because: str, *, is_noise_expected: bool) -> str:
    """Return the verdict as words for a person; of an unknown one, nothing.

    >>> verdict_words("noise", "it has no edges", is_noise_expected=True)
    'looks like noise, as expected of stand-ins for the models: it has no edges'
    >>> verdict_words("uncertain", "it has hardly any contrast", is_noise_expected=False)
    'uncertain whether it is an image or noise: it has hardly any contrast'
    """
    match verdict:
        case "image":
            words = "looks like an image"
        case "noise":
            words = "looks like noise" + (", as expected of stand-ins for the models" if is_noise_expected else "")
        case "uncertain":
            words = "uncertain whether it is an image or noise"
        case _:
            return ""
    return f"{words}: {because}" if because else words


def figure_words(figures: Mapping[str, float]) -> str:
    """Return figures with their names, as a person reads them.

    >>> figure_words({"spectrum_slope": 1.04321, "levels": 240})
    'spectrum slope 1.04, levels 240'
    """
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in figures.items())


def likeness_of(figures: ImageFigures | None) -> Likeness:
    """Return what an image with these figures looks like; None is one too small to be measured."""
    if figures is None:
        return Likeness(verdict="uncertain", because="it is too small to tell")
    noise = _as_noise(figures)
    if noise is not None:
        return Likeness(verdict="noise", because=noise)
    doubt = _doubt(figures)
    if doubt is not None:
        return Likeness(verdict="uncertain", because=doubt)
    return Likeness(verdict="image", because="it has edges, and more detail in some places than in others")


def _as_noise(figures: ImageFigures) -> str | None:
    """Return why these are the figures of noise; None where they are not."""
    if figures.tonal_range < LEAST_RANGE:
        return None  # what little there is may be the rounding of a smooth surface
    has_random_colours = figures.colour_detail > RANDOM_COLOURS
    if (
        has_random_colours
        and figures.edge_peakedness < NO_EDGES
        and figures.contrast_variation < EVEN_COLOURS
        and figures.neighbour_correlation < SMOOTH
    ):
        return "no edge stands out from its detail, and its colours change as if they had nothing to do with each other"
    if has_random_colours and figures.block_edges > BLOCKS_OF_NOISE:
        return "it consists of squares whose colours have nothing to do with each other"
    if (
        figures.neighbour_correlation < RANDOM_PIXELS
        and figures.edge_peakedness < NO_EDGES
        and figures.contrast_variation < EVEN
    ):
        return "neighbouring pixels have nothing to do with each other, and every place has as much detail as any other"
    return None


def _doubt(figures: ImageFigures) -> str | None:
    """Return what keeps an image that is no noise from being taken for a sound one; None where nothing does."""
    doubts = (
        (figures.tonal_range < LEAST_RANGE, "it has hardly any contrast"),
        (figures.levels < LEAST_LEVELS, f"it has no more than {figures.levels} levels of each colour"),
        (figures.clipped > MOST_CLIPPED, "much of it is black or white, without shades between"),
        (figures.direction > ONE_DIRECTION, "it changes in one direction only, as bands do"),
        (figures.block_edges > VISIBLE_BLOCKS, "the edges of blocks stand out"),
        (figures.colour_detail > LOOSE_COLOURS, "its colours change as if they had nothing to do with each other"),
        (figures.edge_peakedness < NO_EDGES, "no edge stands out from its detail"),
        (figures.contrast_variation < EVEN, "every place has as much detail as any other"),
        (figures.neighbour_correlation < UNRELATED_PIXELS, "neighbouring pixels have little to do with each other"),
    )
    return next((why for holds, why in doubts if holds), None)
