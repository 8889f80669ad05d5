"""Decode an image's bytes into facts, and check whether it can be the requested image.

Judges only numbers: it detects black or empty images and noise, but cannot tell whether an image shows the prompt.
Reads PNG, JPEG and WebP; anything else is an error that says what it is.  Pillow is imported when it is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

from provisioner.core.errors import GenerationError
from provisioner.core.models import Finding
from provisioner.core.units import count, human_bytes
from provisioner.smoke_test.image_figures import measure
from provisioner.smoke_test.image_verdict import likeness_of
from provisioner.smoke_test.results import ImageFacts, ImageOptions

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
"""Larger images are rejected before they are decoded: 64 megapixels need 256 MB, and a smoke test generates one."""

MAX_BLACK = 16
"""An image without a value above this is black.  16 of 255 is the black of video; a night scene has lights above it.

Values that are not numbers become 0 when ComfyUI converts them to bytes (``astype(numpy.uint8)``), so an image of NaN
looks like this.
"""

MIN_DEVIATION = 2.0
"""Standard deviation below which the image is one colour.  Rounding to 8 bits gives 0.3, the grain of a VAE over an
even area and the artefacts of JPEG 1 to 2, photographs 30 to 80, fog 10."""

LOW_DEVIATION = 8.0
"""Below this the image is hardly more than one colour: a warning, because a prompt can ask for fog."""

MIN_BYTES_PER_PIXEL = 0.02
"""Below this the file contains hardly any detail: a warning.  A PNG of a photograph takes 1 to 2 bytes a pixel, a
smooth gradient a hundredth of that."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_PNG_END = b"IEND\xaeB`\x82"  # type and checksum of the last chunk, which is empty
_MAX_PARAMETERS = 4 * 1024 * 1024  # characters of JSON; a graph of ours has 2,000
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, TypeError)
"""What Pillow raises for damaged files (its decoders document none of it)."""


# --- from bytes to facts --------------------------------------------------------------------------


def read_image(data: bytes) -> ImageFacts:
    """Return the facts of an image, with every pixel decoded.

    Values are those a viewer shows: palettes resolved, transparency laid over black, 16-bit greys scaled to 8 bits.
    ``deviation`` is the standard deviation of each colour channel about its own mean, pooled over the channels, so
    that an even surface has 0 whatever its colour.

    Parameters
    ----------
    data : bytes
        The encoded file.

    Raises
    ------
    GenerationError
        It is not an image, is truncated or damaged, or has more than 64 megapixels; ``cause`` in the context is
        ``not-a-picture``, ``picture-damaged`` or ``picture-too-large``.
    """
    image, shown = _decoded(data)
    minimum, maximum, mean, deviation = _statistics(shown)
    return ImageFacts(
        width=image.width,
        height=image.height,
        mode=image.mode,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        deviation=deviation,
        figures=measure(shown),
    )


def small_copy(data: bytes, *, longest: int = 256) -> bytes:
    """Return a small copy of an image, as JPEG; raises as `read_image`.

    Parameters
    ----------
    data : bytes
        The encoded file.
    longest : int
        Pixels of its longer side, at most.
    """
    _, shown = _decoded(data)
    small = shown.convert("RGB")
    small.thumbnail((longest, longest))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=85)
    return written.getvalue()


def png_of(width: int, height: int, pixels: bytes) -> bytes:
    """Return a PNG of these pixels: RGB, row by row, 3 x `width` x `height` bytes."""
    from PIL import Image

    written = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).save(written, "PNG")
    return written.getvalue()


def _decoded(data: bytes) -> tuple[Image.Image, Image.Image]:
    """Return an image with every pixel decoded, and as a viewer shows it."""
    image = _open(data)
    _refuse_large(image)
    try:
        image.load()
        shown = _as_shown(image)
    except _UNREADABLE as error:
        raise _damaged(data, image, error) from error
    if image.format == "PNG" and _PNG_END not in data:  # Pillow is content with the last pixel
        raise _damaged(data, image, EOFError("its end is missing"))
    return image, shown


def _open(data: bytes) -> Image.Image:
    """Return the opened image, with only its header read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_refuse_large` is stricter
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large("too many pixels to decode") from error
    except UnidentifiedImageError as error:
        raise GenerationError(
            f"The file is {what_it_is(data)} instead of the image.",
            hint="Read the log of the program that generated it; if a proxy answers for this address, bypass it.",
            cause="not-a-picture",
            size=len(data),
        ) from error
    except _UNREADABLE as error:
        raise _damaged(data, None, error) from error


def _refuse_large(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{image.width} x {image.height} pixels")


def _too_large(what: str) -> GenerationError:
    return GenerationError(
        f"The image's header says {what}; expected at most {MAX_PIXELS:,}.",
        hint="Ask for a smaller image.",
        cause="picture-too-large",
    )


def _damaged(data: bytes, image: Image.Image | None, error: BaseException) -> GenerationError:
    size = f" of {image.width} x {image.height} pixels" if image is not None else ""
    return GenerationError(
        f"The image{size} cannot be decoded: {str(error).rstrip('.') or type(error).__name__}"
        f" ({count(len(data), 'byte')} arrived).",
        hint="Generate it again; if that fails too, check for a full disk or a broken connection.",
        cause="picture-damaged",
        size=len(data),
    )


def what_it_is(data: bytes) -> str:
    """Return what bytes that are not what was expected look like, in words."""
    start = data[:512].lstrip().lower()
    if not data:
        return "empty"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "a web page"
    if start.startswith((b"{", b"[")):
        return "a JSON document"
    if start.startswith((b"gif8", b"bm", b"ii*\x00", b"mm\x00*")):
        return "in another image format (expected PNG, JPEG or WebP)"
    if b"\x89PNG\r\n\x1a\n".startswith(data[:8]) or data.startswith(b"\x89PNG"):
        return f"the first {count(len(data), 'byte')} of a PNG"
    if not any(data[:4096]):
        return f"{human_bytes(len(data))} of zeros"
    return f"{human_bytes(len(data))} of unknown data"


def _as_shown(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit greys or colours, transparency over black."""
    from PIL import Image

    if image.mode in {"L", "RGB"} and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit greys of a PNG; converting to L would clip them
        return image.convert("I").point(lambda value: value * (255 / 65535)).convert("L")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        colours = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, colours).convert("RGB")
    return image.convert("RGB")


def _statistics(image: Image.Image) -> tuple[int, int, float, float]:
    """Return minimum, maximum, mean and the pooled deviation, from the counts of each of the 256 values."""
    counts = image.histogram()
    channels = [counts[at : at + 256] for at in range(0, len(counts), 256)]
    values = [value for channel in channels for value, times in enumerate(channel) if times]
    moments = [_moments(channel) for channel in channels]
    mean = sum(each for each, _ in moments) / len(moments)
    return min(values), max(values), mean, math.sqrt(sum(each for _, each in moments) / len(moments))


def _moments(counts: list[int]) -> tuple[float, float]:
    """Return mean and variance of one channel."""
    pixels = sum(counts)
    mean = sum(value * times for value, times in enumerate(counts)) / pixels
    return mean, sum((value - mean) ** 2 * times for value, times in enumerate(counts)) / pixels


# --- the seed in the file -------------------------------------------------------------------------


def seed_in(data: bytes) -> int | None:
    """Return the seed recorded in an image of ComfyUI.

    ComfyUI writes the graph into the text chunk ``prompt`` of a PNG, unless it was started with
    ``--disable-metadata``.

    Returns
    -------
    int or None
        None where there is no such chunk, or not exactly one seed in it; never an error.
    """
    try:
        image = _open(data)
    except GenerationError:
        return None
    return _seed_of(image.info.get("prompt"))


def _seed_of(text: object) -> int | None:
    if not isinstance(text, str) or len(text) > _MAX_PARAMETERS:
        return None
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return None
    nodes = graph.values() if isinstance(graph, dict) else ()
    inputs = [
        node.get("inputs") for node in nodes if isinstance(node, dict) and node.get("class_type") == "RandomNoise"
    ]
    seeds = {
        each.get("noise_seed") for each in inputs if isinstance(each, dict) and type(each.get("noise_seed")) is int
    }
    return seeds.pop() if len(seeds) == 1 else None


# --- checking -------------------------------------------------------------------------------------


def judge(
    facts: ImageFacts, options: ImageOptions, *, generated_seed: int | None = None, is_stand_in: bool = False
) -> tuple[Finding, ...]:
    """Return what is wrong with an image; empty when it passes.

    An image passes when it has the requested size, is not black, not one colour and does not look like noise.  Whether
    it shows what the prompt says is for the user to see.

    Parameters
    ----------
    facts : ImageFacts
        From `read_image`.
    options : ImageOptions
        The request.
    generated_seed : int, optional
        From `seed_in`; None where the file has none, which is no fault.
    is_stand_in : bool, optional
        Whether the weights are made up, as the manifest says: noise is what they give.

    Returns
    -------
    tuple of Finding
        Problems: ``picture-size``, ``picture-seed``, ``picture-black``, ``picture-constant``, ``picture-noise``.
        Warnings: ``picture-flat``, ``picture-uncertain``.
    """
    found: list[Finding] = []
    if (facts.width, facts.height) != (options.width, options.height):
        found.append(_other_size(facts, options))
    if generated_seed is not None and generated_seed != options.seed:
        found.append(_other_seed(generated_seed, options))
    content = _content(facts, is_stand_in=is_stand_in)
    return (*found, content) if content else tuple(found)


def _other_size(facts: ImageFacts, options: ImageOptions) -> Finding:
    return Finding(
        code="picture-size",
        severity="problem",
        remedy="by-hand",
        message=f"The image has {facts.width} x {facts.height} pixels, not {options.width} x {options.height}.",
        hint="Check whether another program generated it, or a custom node of the server changes sizes.",
    )


def _other_seed(generated: int, options: ImageOptions) -> Finding:
    return Finding(
        code="picture-seed",
        severity="problem",
        remedy="by-hand",
        message=f"The image has the seed {generated}, but {options.seed} was requested: it is an older one.",
        hint="Use an output folder that nothing else writes to.",
    )


def _content(facts: ImageFacts, *, is_stand_in: bool) -> Finding | None:
    """Return the worst finding about the values; None where they pass."""
    likeness = likeness_of(facts.figures)
    if facts.maximum <= MAX_BLACK:
        return Finding(
            code="picture-black",
            severity="problem",
            remedy="by-hand",
            message=f"The image is black: no value is above {facts.maximum} of 255. Values that are not numbers (NaN)"
            " look like this.",
            hint="Check for a guidance other than 1 with a distilled model, an old driver, or files that verify"
            " reports; in ComfyUI try --fp32-vae.",
        )
    if facts.deviation < MIN_DEVIATION:
        return Finding(
            code="picture-constant",
            severity="problem",
            remedy="by-hand",
            message=f"The image is one colour: its values vary by {facts.deviation:.1f} of 255, a normal image's by"
            " 30 and more.",
            hint="Verify the model files: weights without their scales, or another model's VAE, give such images.",
        )
    if likeness.verdict == "noise" and not is_stand_in:
        return Finding(
            code="picture-noise",
            severity="problem",
            remedy="by-hand",
            message=f"The image looks like noise: {likeness.because}.",
            hint="View it, then run `klein-setup verify`: damaged weights, another model's VAE or text encoder, an"
            " optimised attention or a faulty driver give such images.",
        )
    if facts.deviation < LOW_DEVIATION or facts.size < MIN_BYTES_PER_PIXEL * facts.width * facts.height:
        return Finding(
            code="picture-flat",
            severity="warning",
            remedy="by-hand",
            message=f"The image has hardly any detail: its values vary by {facts.deviation:.1f} of 255, and the"
            f" file takes {facts.size / (facts.width * facts.height):.3f} bytes a pixel.",
            hint="View it; if it does not show the prompt, verify the model files.",
        )
    if likeness.verdict == "uncertain" and not is_stand_in:
        return Finding(
            code="picture-uncertain",
            severity="warning",
            remedy="by-hand",
            message=f"Whether the image is one or noise cannot be told from its figures: {likeness.because}.",
            hint="View it; if it does not show the prompt, verify the model files.",
        )
    return None
