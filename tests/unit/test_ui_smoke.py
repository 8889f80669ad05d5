"""What a smoke test looks like in a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.errors import SmokeTestError
from provisioner.core.models import Finding
from provisioner.smoke_test.media import audio_words, video_words
from provisioner.smoke_test.results import (
    Card,
    CardEvidence,
    CardResult,
    ImageFacts,
    ImageOptions,
    ImageRun,
    SmokeTest,
    StartedWith,
    Timings,
    VramReading,
)
from provisioner.ui.smoke_text import cards_blocks, smoke_blocks
from provisioner.ui.text import cells, laid_out, rendered
from tests.support.films import FILM, FRAME, FRAMES, SAMPLES, SONG
from tests.support.pictures import SOUND

GIB = 1024**3
BARE = SmokeTest(backend="diffusers", options=ImageOptions(prompt="a red fox", seed=7), timings=Timings())
SMOKE = SmokeTest(
    backend="comfyui",
    options=ImageOptions(prompt="a red fox in fresh snow", seed=42),
    timings=Timings(start_s=6.4, load_s=3.9, encode_s=0.8, steps_s=(0.34, 0.29), decode_s=0.5, total_s=6.1),
    image=ImageFacts(
        width=1024,
        height=1024,
        mode="RGB",
        size=1_500_000,
        sha256="ab" * 32,
        minimum=0,
        maximum=255,
        mean=1,
        deviation=1,
        figures=SOUND,
    ),
    image_path=Path("fox.png"),
    vram=VramReading(
        gpu_name="A card",
        gpu_uuid=None,
        total_bytes=12 * GIB,
        free_at_start_bytes=11 * GIB,
        peak_used_bytes=9 * GIB,
        used_at_start_bytes=GIB,
        peak_process_bytes=8 * GIB,
    ),
    device="cuda:0 A card",
    versions=(("comfyui", "0.33.0"), ("torch", "2.14.1+cu130")),
    log_path=Path("comfyui.log"),
    notes=("The peak was 9.0 GiB.", "Published are 8.4 GB."),
)


def generated(smoke: SmokeTest, width: int | None = None) -> list[str]:
    return [rendered(line, is_coloured=False) for line in laid_out(smoke_blocks(smoke), width=width)]


@pytest.mark.parametrize(
    ("started", "words"),
    [
        (StartedWith(), "none"),
        (StartedWith(words=("--cpu", "--fast a")), "--cpu --fast a"),
        (StartedWith(words=("--fast",), origin="run.bat"), "--fast (from run.bat)"),
        (
            StartedWith(origin="run.bat", left_out=("--port", "--listen")),
            "none (from run.bat, without its --port, --listen)",
        ),
    ],
)
def test_the_options_of_comfyui_are_shown_with_their_origin(started: StartedWith, words: str) -> None:
    assert f"  options    {words}" in generated(replace(SMOKE, started_with=started))


def test_the_whole_smoke_test_is_shown() -> None:
    assert generated(SMOKE) == [
        "Test image",
        "  image      fox.png",
        "             1024 x 1024, 1.50 MB",
        "  verdict    looks like an image: it has edges, and more detail in some places than in others",
        "             neighbour correlation 0.97, spectrum slope 1.2, edge peakedness 18, contrast variation 0.7,"
        " colour detail 0.1, saturation 0.4, tonal range 190, levels 256, clipped 0.01, direction 1.4,"
        " block edges 1.05",
        "  prompt     a red fox in fresh snow",
        "  made with  seed 42, 4 steps, guidance 1, 1024 x 1024",
        "  took       6.1 s",
        "  phases     start 6.4 s, load 3.9 s, encode 0.8 s, denoise 0.6 s (0.34 + 0.29), decode 0.5 s",
        "  notes      The peak was 9.0 GiB.",
        "             Published are 8.4 GB.",
        "  device     cuda:0 A card",
        "  versions   comfyui 0.33.0, torch 2.14.1+cu130",
        "  log        comfyui.log",
    ]


NOISE = replace(SOUND, colour_detail=1.8, edge_peakedness=3.0, contrast_variation=0.1)


@pytest.mark.parametrize(
    ("is_stand_in", "said", "style"),
    [(False, "looks like noise: no edge", "33"), (True, "looks like noise, as expected of stand-ins for the m", "32")],
)
def test_noise_is_green_only_where_it_is_expected(is_stand_in: bool, said: str, style: str) -> None:
    assert SMOKE.image is not None
    noise = replace(SMOKE, image=replace(SMOKE.image, figures=NOISE), is_stand_in=is_stand_in)
    (line,) = (
        each for each in laid_out(smoke_blocks(noise), width=None) if "verdict" in rendered(each, is_coloured=False)
    )
    assert said in rendered(line, is_coloured=False)
    assert f"\x1b[{style}m" in rendered(line, is_coloured=True)


def test_a_video_and_a_sound_are_shown_with_what_was_seen_and_heard() -> None:
    film = replace(FILM, path=Path("fox.mp4"), frame=FRAME, frame_path=Path("fox-frame.png"))
    shown = generated(replace(SMOKE, image=None, image_path=None, media=(film, SONG)))
    assert shown[1:4] == [
        "  video      fox.mp4",
        "             MP4, 1.00 MB",
        f"             {video_words(FRAMES)}",
    ]
    assert "  its frame  fox-frame.png" in shown
    assert f"             {audio_words(SAMPLES)}" in shown
    assert "  made with  seed 42, 4 steps, guidance 1, 1024 x 1024" in shown
    assert not any(line.startswith("  image") for line in shown)


def test_a_sound_has_no_size_and_what_was_not_decoded_is_said() -> None:
    heard = replace(SONG, path=Path("fox.flac"), decoder=None, audio=None, complaint="this Python has no PyAV")
    shown = generated(replace(SMOKE, image=None, image_path=None, media=(heard,)))
    assert "             not decoded, so it is not known whether it is right" in shown
    assert "  made with  seed 42, 4 steps, guidance 1" in shown


def test_an_image_too_small_to_be_measured_has_a_verdict_and_no_figures() -> None:
    assert SMOKE.image is not None
    words = "\n".join(generated(replace(SMOKE, image=replace(SMOKE.image, figures=None))))
    assert "uncertain whether it is an image or noise: it is too small to tell" in words
    assert "spectrum slope" not in words


def test_what_was_not_measured_is_not_shown() -> None:
    assert generated(BARE) == [
        "Test image",
        "  image      none was generated",
        "  prompt     a red fox",
        "  made with  seed 7, 4 steps, guidance 1, 1024 x 1024",
    ]


def test_without_notes_the_memory_is_said_beside_what_was_free() -> None:
    text = "\n".join(generated(replace(SMOKE, notes=())))
    said = "The peak was 9.0 GiB of 12.0 GiB on A card, with 11.0 GiB free at the start. 8.0 GiB of it was used"
    assert f"  memory     {said} by the generating process." in text


def test_the_share_of_the_process_is_left_out_where_nobody_can_tell() -> None:
    assert SMOKE.vram is not None
    text = "\n".join(generated(replace(SMOKE, notes=(), vram=replace(SMOKE.vram, peak_process_bytes=None))))
    assert "11.0 GiB free at the start." in text
    assert "drawing process" not in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_path": None}, "1024 x 1024, 1.50 MB, not kept"),
        ({"options": ImageOptions(has_tiled_decode=True)}, "decoded in tiles"),
        ({"timings": Timings(steps_s=(0.5,))}, "  phases     denoise 0.5 s\n"),
        (
            {
                "findings": (
                    Finding(
                        code="black", severity="problem", message="It is black.", remedy="by-hand", hint="Draw again."
                    ),
                )
            },
            "  problem  It is black.\n           hint: Draw again.",
        ),
    ],
)
def test_the_special_cases_are_said(change: dict[str, object], said: str) -> None:
    assert said in "\n".join(generated(replace(SMOKE, **change))) + "\n"  # type: ignore[arg-type]


def test_it_fits_a_narrow_window() -> None:
    assert max(cells(line) for line in generated(SMOKE, width=60)) <= 60


CARD = Card(label="GPU 1", name="A card", vendor="nvidia", index=1, uuid="GPU-b", memory_total_bytes=12 * GIB)


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ("processes", "the driver lists the program there"),
        ("memory", "its memory grew while the program ran"),
        ("name", "by its name, which no other GPU here has"),
        (None, "not verified: the driver does not say"),
    ],
)
def test_the_card_is_said_with_how_it_is_known(evidence: CardEvidence | None, said: str) -> None:
    lines = generated(replace(SMOKE, card=CARD, card_evidence=evidence))
    assert f"  GPU        1, GPU-b ({said})" in lines
    assert f"  GPU        1, A card ({said})" in generated(
        replace(SMOKE, card=replace(CARD, uuid=None), card_evidence=evidence)
    )


def test_several_cards_are_a_row_each() -> None:
    runs = (ImageRun(seed=1, total_s=6.1), ImageRun(seed=2, total_s=0.6))
    rows = [
        CardResult(card=CARD, smoke=replace(SMOKE, runs=runs)),
        CardResult(card=replace(CARD, label="GPU 2:0", memory_total_bytes=None), error=SmokeTestError("It is gone.")),
        CardResult(card=CARD, smoke=BARE),
    ]
    assert [rendered(line, is_coloured=False).rstrip() for line in laid_out(cards_blocks(rows), width=None)] == [
        "GPUs",
        "  ok      GPU 1    A card, 12.0 GiB  6.1 s, next 0.6 s, 9.0 GiB at the peak",
        "  failed  GPU 2:0  A card",
        "  ok      GPU 1    A card, 12.0 GiB",
        "",
    ]
