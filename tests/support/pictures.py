"""Images made for tests: one with what photographs have in common, and noise as decoders make it."""

from __future__ import annotations

import functools
import io
import random
from statistics import NormalDist

from PIL import Image, ImageDraw, ImageFilter

from provisioner.smoke_test.results import ImageFigures

SOUND = ImageFigures(
    neighbour_correlation=0.97,
    spectrum_slope=1.2,
    edge_peakedness=18.0,
    contrast_variation=0.7,
    colour_detail=0.1,
    saturation=0.4,
    tonal_range=190,
    levels=256,
    clipped=0.01,
    direction=1.4,
    block_edges=1.05,
)
"""What is measured of a photograph."""

_BELL = NormalDist()


@functools.cache
def leaves(side: int = 256, seed: int = 1) -> Image.Image:
    """Return a fall of leaves: discs of all sizes that hide each other, lit from one side.

    Such images have the spectrum and the edges of photographs (Lee, Mumford and Huang 2001, the dead leaves model).
    """
    chance = random.Random(seed)
    image = Image.new("RGB", (side, side), (70, 90, 60))
    draw = ImageDraw.Draw(image)
    for _ in range(900):
        radius = min(side / 3, 1.5 / max(1e-3, chance.random()))  # the number falls with the size
        x, y = chance.uniform(-radius, side + radius), chance.uniform(-radius, side + radius)
        light = chance.gauss(0, 40) + 60 * x / side
        red, green, blue = (round(min(255, max(0, base + light + chance.gauss(0, 6)))) for base in (95, 85, 60))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue))
    return image.filter(ImageFilter.GaussianBlur(0.7))


def grains(side: int = 256, seed: int = 1, *, deviation: float = 50, is_grey: bool = False) -> Image.Image:
    """Return white noise: each value by itself, normally distributed about the middle."""
    levels = [round(min(255, max(0, 128 + deviation * _BELL.inv_cdf((at + 0.5) / 256)))) for at in range(256)]
    bands = 1 if is_grey else 3
    values = random.Random(seed).randbytes(side * side * bands)
    return Image.frombytes("L" if is_grey else "RGB", (side, side), values).point(levels * bands).convert("RGB")


def blotches(side: int = 256, seed: int = 1, *, scale: int = 8) -> Image.Image:
    """Return noise whose values each cover about `scale` pixels, as a decoder makes them of a random latent."""
    return grains(side // scale, seed, deviation=60).resize((side, side), Image.Resampling.BICUBIC)


def stripes(side: int = 256, seed: int = 1) -> Image.Image:
    """Return one row of noise, again and again."""
    row = Image.frombytes("RGB", (side, 1), random.Random(seed).randbytes(3 * side))
    return row.resize((side, side), Image.Resampling.NEAREST)


def png(image: Image.Image) -> bytes:
    """Return an image as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
