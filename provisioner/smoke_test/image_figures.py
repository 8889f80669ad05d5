"""Measure what tells a photograph from noise: detail at each scale, where it lies, and its colour.

Differences between neighbouring pixels are taken of the image as it is, then of the image at half the size, and so on.
In photographs most of them are small and a few, at edges, are large; they gather in some places; and colour changes
less than brightness does.  In noise, and in what an untrained or a wrong decoder makes of it, none of that holds.
Pillow is imported by whoever opened the image.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from provisioner.smoke_test.results import ImageFigures

if TYPE_CHECKING:
    from PIL import Image

LEAST_SIDE = 64
"""Pixels of the shorter side; a smaller image has too little of anything to measure."""

_MOST_SIDE = 1536  # a larger image is halved first: its figures change little, the time by four
_LEAST_OCTAVE = 16  # pixels of the shorter side, down to which the image is halved
_FINE_OCTAVES = 4  # in which edges and colour are measured; coarser ones hold too few differences
_PLACES = 8  # local contrast is compared between 8 x 8 places
_BLOCKS = (16, 64)  # pixels each way: what one value of the latent stands for, and tiles of a decoder
_LEAST_EDGES = 6  # of blocks; the mean of fewer says nothing
_MOST_DIRECTION = 1000.0  # of stripes, whose columns do not change at all
_NEARLY_NOTHING = 1e-3  # of squared differences, which are whole numbers


class _Octave(NamedTuple):
    """What one halving of the image shows."""

    across: float  # mean square of the brightness differences between neighbours in a row
    down: float  # in a column
    peakedness: float  # kurtosis of the differences; 3 is that of a normal distribution
    variation: float  # standard deviation of the local contrast over its mean
    colour: float  # mean square of the colour differences, of both colour channels


def measure(shown: Image.Image) -> ImageFigures | None:
    """Return the figures of an image; None where it is smaller than 64 pixels.

    Parameters
    ----------
    shown : PIL.Image.Image
        In 8-bit greys or RGB.
    """
    if min(shown.size) < LEAST_SIDE:
        return None
    image = shown.convert("RGB")
    while min(image.size) > _MOST_SIDE:
        image = image.reduce(2)
    brightness, *colours = image.convert("YCbCr").split()
    counts = brightness.histogram()
    octaves = _octaves(brightness, colours)
    fine = octaves[:_FINE_OCTAVES]
    energies = [(each.across + each.down) / 2 for each in octaves]
    variance = _variance(counts)
    return ImageFigures(
        neighbour_correlation=1 - energies[0] / 2 / max(variance, _NEARLY_NOTHING),
        spectrum_slope=_slope(energies),
        edge_peakedness=_mean([each.peakedness for each in fine]),
        contrast_variation=_mean([each.variation for each in fine]),
        colour_detail=_mean([each.colour / (e + _NEARLY_NOTHING) for each, e in zip(fine, energies, strict=False)]),
        saturation=_mean_of(image.convert("HSV").getchannel("S").histogram()) / 255,
        tonal_range=_percentile(counts, 0.98) - _percentile(counts, 0.02),
        levels=max(_used(each) for each in image.split()),
        clipped=_clipped(image),
        direction=_direction(octaves[0]),
        block_edges=_block_edges(brightness),
    )


def _octaves(brightness: Image.Image, colours: list[Image.Image]) -> list[_Octave]:
    found = []
    while min(brightness.size) >= _LEAST_OCTAVE:
        across, down = _differences(brightness)
        (square_across, fourth_across), (square_down, fourth_down) = _moments(across), _moments(down)
        found.append(
            _Octave(
                across=square_across,
                down=square_down,
                peakedness=_mean([_kurtosis(square_across, fourth_across), _kurtosis(square_down, fourth_down)]),
                variation=_mean([_variation(across), _variation(down)]),
                colour=sum(_moments(each)[0] for channel in colours for each in _differences(channel)) / 2,
            )
        )
        brightness, colours = brightness.reduce(2), [each.reduce(2) for each in colours]
    return found


def _differences(channel: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return how much neighbours differ, in rows and in columns."""
    from PIL import ImageChops

    width, height = channel.size
    return (
        ImageChops.difference(channel.crop((1, 0, width, height)), channel.crop((0, 0, width - 1, height))),
        ImageChops.difference(channel.crop((0, 1, width, height)), channel.crop((0, 0, width, height - 1))),
    )


def _moments(differences: Image.Image) -> tuple[float, float]:
    """Return the mean of the squares and of the fourth powers."""
    counts = differences.histogram()
    total = sum(counts)
    squares = sum(value**2 * times for value, times in enumerate(counts))
    return squares / total, sum(value**4 * times for value, times in enumerate(counts)) / total


def _kurtosis(square: float, fourth: float) -> float:
    return fourth / square**2 if square else 0.0


def _variation(differences: Image.Image) -> float:
    """Return how unevenly differences are spread over the image: 0 where every place has as much as every other."""
    from PIL import Image

    places = differences.convert("F").resize((_PLACES, _PLACES), Image.Resampling.BOX)
    values = [float(places.getpixel((x, y))) for x in range(_PLACES) for y in range(_PLACES)]  # type: ignore[arg-type]
    mean = _mean(values)
    return math.sqrt(_mean([(each - mean) ** 2 for each in values])) / mean if mean else 0.0


def _slope(energies: list[float]) -> float:
    """Return b where the amplitude falls with the frequency as 1 / frequency ** b: 0 of white noise.

    The squared differences of octaves grow by 4 ** (b - 1) from each to the next coarser one.
    """
    heights = [math.log2(max(each, _NEARLY_NOTHING)) for each in energies]
    middle, height = (len(heights) - 1) / 2, _mean(heights)
    rise = sum((at - middle) * (each - height) for at, each in enumerate(heights))
    return 1 + rise / sum((at - middle) ** 2 for at in range(len(heights))) / 2


def _direction(finest: _Octave) -> float:
    """Return how many times as much one direction changes as the other."""
    across, down = finest.across + _NEARLY_NOTHING, finest.down + _NEARLY_NOTHING
    return min(_MOST_DIRECTION, max(across / down, down / across))


def _block_edges(brightness: Image.Image) -> float:
    """Return how many times as much neighbours differ at the edges of blocks as elsewhere, for the worse size."""
    from PIL import Image

    across, down = (each.convert("F") for each in _differences(brightness))
    row = across.resize((across.width, 1), Image.Resampling.BOX)
    column = down.resize((1, down.height), Image.Resampling.BOX)
    profile = [(at, float(row.getpixel((at, 0)))) for at in range(row.width)]  # type: ignore[arg-type]
    profile += [(at, float(column.getpixel((0, at)))) for at in range(column.height)]  # type: ignore[arg-type]
    found = 0.0
    for side in _BLOCKS:
        edges = [value for at, value in profile if at % side == side - 1]
        if len(edges) >= _LEAST_EDGES:
            elsewhere = [value for at, value in profile if at % side != side - 1]
            found = max(found, _mean(edges) / max(_mean(elsewhere), _NEARLY_NOTHING))
    return found


def _used(channel: Image.Image) -> int:
    """Return how many of the 256 levels a channel uses."""
    return sum(1 for times in channel.histogram() if times)


def _clipped(image: Image.Image) -> float:
    """Return the share of values that are 0, or that are 255, whichever are fewer."""
    counts = image.histogram()
    lowest, highest = (sum(counts[at] for at in range(end, len(counts), 256)) for end in (0, 255))
    return min(lowest, highest) / sum(counts)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _mean_of(counts: list[int]) -> float:
    return sum(value * times for value, times in enumerate(counts)) / sum(counts)


def _variance(counts: list[int]) -> float:
    mean = _mean_of(counts)
    return sum((value - mean) ** 2 * times for value, times in enumerate(counts)) / sum(counts)


def _percentile(counts: list[int], share: float) -> int:
    """Return the value that `share` of the pixels do not exceed."""
    wanted = share * sum(counts)
    return next(value for value, seen in enumerate(accumulate(counts)) if seen >= wanted)
