"""Generated images, images that only look like one, and bytes that are not an image."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image, PngImagePlugin

from provisioner.core.errors import GenerationError, SmokeTestError
from provisioner.core.models import Finding
from provisioner.smoke_test.graph import build_graph
from provisioner.smoke_test.image import MAX_PIXELS, judge, read_image, seed_in
from provisioner.smoke_test.results import ImageFacts, ImageOptions, ModelNames
from tests.support.builders import KLEIN_RECIPE
from tests.support.pictures import leaves

SIDE = 64
OPTIONS = ImageOptions(width=SIDE, height=SIDE, seed=42)


def noise(mode: str = "RGB", side: int = SIDE) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (side, side), random.Random(1).randbytes(side * side * bands))


def photograph() -> Image.Image:
    return leaves(SIDE)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def facts_of(image: Image.Image) -> ImageFacts:
    return read_image(encoded(image))


def codes(found: tuple[Finding, ...]) -> list[tuple[str, str]]:
    return [(each.severity, each.code) for each in found]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --- facts ----------------------------------------------------------------------------------------


def test_the_facts_are_those_of_every_pixel() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(0, 100, 200), (200, 100, 0)])
    data = encoded(image)
    facts = read_image(data)
    assert facts.deviation == pytest.approx((100**2 * 2 / 3) ** 0.5)  # green does not vary
    assert facts == ImageFacts(
        width=2,
        height=1,
        mode="RGB",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        minimum=0,
        maximum=200,
        mean=100.0,
        deviation=facts.deviation,
    )


def test_noise_scatters_as_noise_does() -> None:
    facts = facts_of(noise())
    assert (facts.minimum, facts.maximum) == (0, 255)
    assert facts.mean == pytest.approx(127.5, abs=3)
    assert facts.deviation == pytest.approx(73.9, abs=2)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {"lossless": True})])
def test_a_generated_image_passes_in_every_format(kind: str, options: dict[str, object]) -> None:
    facts = read_image(encoded(photograph(), kind, **options))
    assert (facts.width, facts.height, facts.mode) == (SIDE, SIDE, "RGB")
    assert judge(facts, OPTIONS) == ()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_modes_are_read_as_a_viewer_shows_them(mode: str) -> None:
    image = photograph().convert(mode)
    facts = facts_of(image)
    assert facts.mode == mode
    assert codes(judge(facts, OPTIONS)) == ([("warning", "picture-uncertain")] if mode in {"P", "1"} else [])


def test_a_palette_is_resolved_to_its_colours() -> None:
    image = Image.new("P", (SIDE, SIDE))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1] * (SIDE * SIDE // 2))
    facts = facts_of(image)
    assert (facts.mode, facts.minimum, facts.maximum, facts.mean) == ("P", 10, 60, 35.0)


def test_greys_of_16_bits_are_scaled_and_not_clipped() -> None:
    image = Image.new("I;16", (SIDE, SIDE))
    image.putdata([0, 16448, 32896, 65535] * (SIDE * SIDE // 4))
    facts = facts_of(image)
    assert (facts.mode, facts.minimum, facts.maximum) == ("I;16", 0, 255)
    assert facts.mean == pytest.approx((0 + 64 + 128 + 255) / 4, abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_black(mode: str) -> None:
    image = photograph().convert(mode)
    image.putalpha(0)
    assert codes(judge(facts_of(image), OPTIONS)) == [("problem", "picture-black")]


def test_a_transparent_colour_of_a_palette_is_laid_over_black() -> None:
    data = encoded(Image.new("P", (SIDE, SIDE), 0), transparency=0)
    assert read_image(data).maximum == 0


# --- judgement ------------------------------------------------------------------------------------


def test_a_photograph_passes_and_noise_does_not() -> None:
    assert judge(facts_of(photograph()), OPTIONS) == ()
    assert codes(judge(facts_of(noise()), OPTIONS)) == [("problem", "picture-noise")]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (SIDE, SIDE)), ("problem", "picture-black")),
        (noise("L").point(lambda value: value // 16), ("problem", "picture-black")),
        (Image.new("RGB", (SIDE, SIDE), (255, 255, 255)), ("problem", "picture-constant")),
        (Image.new("RGB", (SIDE, SIDE), (92, 84, 40)), ("problem", "picture-constant")),  # olive, as seen of NVFP4
        (noise("L").point(lambda value: 100 + value // 128), ("problem", "picture-constant")),
        (noise("L").point(lambda value: 100 + value // 16), ("warning", "picture-flat")),
        (noise("L").point(lambda value: 100 + value // 6), ("warning", "picture-uncertain")),
        (photograph().point(lambda value: 60 + value // 2), None),
    ],
    ids=["black", "nearly black", "white", "olive", "two greys", "sixteen greys", "forty greys", "half the contrast"],
)
def test_images_without_content_are_distinguished(image: Image.Image, expected: tuple[str, str] | None) -> None:
    assert codes(judge(facts_of(image), OPTIONS)) == ([expected] if expected else [])


def test_a_smooth_gradient_is_a_warning() -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((512, 512))
    found = judge(facts_of(image), ImageOptions(width=512, height=512))
    assert codes(found) == [("warning", "picture-flat")]


def test_values_that_are_not_numbers_become_a_black_image() -> None:
    nan = Image.new("F", (SIDE, SIDE), float("nan")).convert("L")
    found = judge(facts_of(nan), OPTIONS)
    assert codes(found) == [("problem", "picture-black")]
    assert "NaN" in found[0].message


def test_another_size_is_named_with_both() -> None:
    (found,) = judge(facts_of(photograph()), ImageOptions(width=1024, height=768))
    assert found.code == "picture-size"
    assert found.message == "The image has 64 x 64 pixels, not 1024 x 768."


def test_size_seed_and_content_are_reported_together() -> None:
    found = judge(facts_of(Image.new("RGB", (32, 32))), OPTIONS, generated_seed=7)
    assert [each.code for each in found] == ["picture-size", "picture-seed", "picture-black"]
    assert all(each.hint for each in found)


# --- the seed in the file -------------------------------------------------------------------------


def with_text(text: str, key: str = "prompt") -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text)
    return encoded(photograph(), pnginfo=info)


def test_the_seed_of_our_own_graph_is_read_back() -> None:
    names = ModelNames(diffusion_model="k", text_encoder="q", vae="v")
    graph = build_graph(KLEIN_RECIPE, names, ImageOptions(seed=2**64 - 1))
    data = with_text(json.dumps(graph))
    assert seed_in(data) == 2**64 - 1
    assert judge(read_image(data), OPTIONS, generated_seed=42) == ()
    (found,) = judge(read_image(data), OPTIONS, generated_seed=seed_in(data))
    assert found.code == "picture-seed"
    assert str(2**64 - 1) in found.message
    assert "42" in found.message


def random_noise(*seeds: object) -> str:
    return json.dumps(
        {str(at): {"class_type": "RandomNoise", "inputs": {"noise_seed": each}} for at, each in enumerate(seeds)}
    )


@pytest.mark.parametrize(
    "data",
    [
        encoded(photograph()),
        encoded(photograph(), "JPEG"),
        b"no image",
        with_text(random_noise(1), key="workflow"),
        with_text("{"),
        with_text("[" * 100_000),
        with_text("[]"),
        with_text('"text"'),
        with_text("{}"),
        with_text('{"1": 5, "2": {"class_type": "RandomNoise"}}'),
        with_text(random_noise(1, 2)),
        with_text(random_noise("1", True, None, 1.5)),
    ],
    ids=lambda data: None,
)
def test_a_file_that_says_no_one_seed_says_none(data: bytes) -> None:
    assert seed_in(data) is None


# --- what is not an image -------------------------------------------------------------------------


def failure(data: bytes) -> GenerationError:
    with pytest.raises(GenerationError) as caught:
        read_image(data)
    assert isinstance(caught.value, SmokeTestError)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>Bad gateway</body></html>", "is a web page"),
        (b'\n {"error": "not found"}', "is a JSON document"),
        (encoded(photograph(), "GIF"), "is in another image format (expected PNG, JPEG or WebP)"),
        (encoded(photograph(), "TIFF"), "is in another image format"),
        (encoded(photograph(), "BMP"), "is in another image format"),
        (encoded(photograph())[:5], "is the first 5 bytes of a PNG"),
        (bytes(4096), "is 4.10 kB of zeros"),
        (b"PK\x03\x04 some archive", "is 17 bytes of unknown data"),
    ],
)
def test_other_content_is_described(data: bytes, said: str) -> None:
    error = failure(data)
    assert said in str(error)
    assert error.context["cause"] == "not-a-picture"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_image_is_damaged(kind: str, share: float) -> None:
    data = encoded(noise(), kind)
    error = failure(data[: int(len(data) * share)])
    assert error.context["cause"] == "picture-damaged"
    assert "bytes arrived" in str(error)


def test_a_flipped_byte_in_the_pixels_of_a_png_is_damage() -> None:
    data = bytearray(encoded(noise()))
    data[len(data) // 2] ^= 0xFF
    assert failure(bytes(data)).context["cause"] == "picture-damaged"


@pytest.mark.parametrize("side", [8001, 20_000, 2**31 - 1])
def test_an_image_of_too_many_pixels_is_rejected_before_it_is_decoded(side: int) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    error = failure(data)
    assert error.context["cause"] == "picture-too-large"
    assert f"{MAX_PIXELS:,}" in str(error)


def test_a_text_that_unpacks_without_end_is_rejected() -> None:
    bomb = png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(50_000_000), 9))
    data = encoded(photograph())
    assert failure(data[:33] + bomb + data[33:]).context["cause"] == "picture-damaged"


def every_cut(data: bytes) -> list[bytes]:
    cuts = {*range(0, len(data), max(1, len(data) // 60)), *range(max(0, len(data) - 40), len(data))}
    return [data[:at] for at in sorted(cuts)]


@pytest.mark.parametrize("make", [photograph, noise])
def test_no_cut_anywhere_is_taken_for_an_image_or_crashes(make: Callable[[], Image.Image]) -> None:
    for cut in every_cut(encoded(make())):
        failure(cut)
