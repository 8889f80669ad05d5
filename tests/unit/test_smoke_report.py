"""A smoke test as the document says it: stable keys, JSON values only, nothing measured is nothing said."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.errors import SmokeTestError
from provisioner.core.models import Finding
from provisioner.report.json_document import document
from provisioner.report.outcome import Report
from provisioner.report.smoke_test_json import card_result_entry, is_verified, smoke_entry
from provisioner.smoke_test.results import (
    Card,
    CardResult,
    ImageFacts,
    ImageOptions,
    ImageRun,
    ModelNames,
    SmokeTest,
    StartedWith,
    Timings,
    VramReading,
)
from tests.support.films import FILM, FRAME, SONG
from tests.support.pictures import SOUND

BARE = SmokeTest(backend="diffusers", options=ImageOptions(seed=7), timings=Timings())
IMAGE = ImageFacts(
    width=1024,
    height=768,
    mode="RGB",
    size=1_234_567,
    sha256="ab" * 32,
    minimum=0,
    maximum=255,
    mean=120.5,
    deviation=61.25,
    figures=replace(SOUND, spectrum_slope=1.23456789),
)
BLACK = Finding(code="black", severity="problem", message="It is black.", remedy="by-hand")
WHOLE = SmokeTest(
    backend="comfyui",
    options=ImageOptions(prompt="a fox", seed=2**64 - 1, width=1024, height=768, has_tiled_decode=True),
    timings=Timings(start_s=6.12345, load_s=2, encode_s=0.5, steps_s=(0.30001, 0.29), decode_s=0.4, total_s=4.25),
    names=ModelNames(diffusion_model="m.safetensors", text_encoder="t.safetensors", vae="v.safetensors"),
    image=IMAGE,
    image_path=Path("fox.png"),
    runs=(
        ImageRun(seed=7, total_s=4.25, vram_bytes=9, memory_bytes=8),
        ImageRun(seed=8, total_s=0.50049, verdict="noise"),
    ),
    vram=VramReading(
        gpu_name="A card",
        gpu_uuid="GPU-1",
        total_bytes=12,
        free_at_start_bytes=10,
        peak_used_bytes=9,
        used_at_start_bytes=2,
        peak_process_bytes=7,
        samples=30,
        curve=((0.0, 2), (1.5, 9)),
        phases=(("start", 0.0),),
    ),
    card=Card(
        label="GPU 1:0",
        name="A card",
        vendor="nvidia",
        index=1,
        slice_number=0,
        uuid="MIG-1",
        memory_total_bytes=12,
        variables=(("CUDA_VISIBLE_DEVICES", "MIG-1"),),
    ),
    card_evidence="processes",
    device="cuda:0 A card",
    started_with=StartedWith(words=("--fast a",), origin="run.bat", left_out=("--port",)),
    versions=(("comfyui", "0.33.0"), ("torch", "2.14.1+cu130")),
    log_path=Path("comfyui.log"),
    template="image_flux2.json",
    notes=("The peak was 9 bytes.",),
    findings=(
        Finding(
            code="slow", severity="warning", message="It was slow.", remedy="by-hand", path=Path("x"), hint="Wait."
        ),
    ),
)


def test_a_whole_smoke_test_is_one_object_with_these_keys() -> None:
    assert smoke_entry(WHOLE) == {
        "backend": "comfyui",
        "is_proven": True,
        "wish": {
            "prompt": "a fox",
            "seed": 18446744073709551615,
            "width": 1024,
            "height": 768,
            "steps": 4,
            "guidance": 1.0,
            "has_tiled_decode": True,
        },
        "picture": {
            "path": "fox.png",
            "width": 1024,
            "height": 768,
            "mode": "RGB",
            "size": 1234567,
            "sha256": "ab" * 32,
            "minimum": 0,
            "maximum": 255,
            "mean": 120.5,
            "deviation": 61.25,
            "verdict": "image",
            "because": "it has edges, and more detail in some places than in others",
            "is_noise_expected": False,
            "figures": {
                "neighbour_correlation": 0.97,
                "spectrum_slope": 1.2346,
                "edge_peakedness": 18.0,
                "contrast_variation": 0.7,
                "colour_detail": 0.1,
                "saturation": 0.4,
                "tonal_range": 190,
                "levels": 256,
                "clipped": 0.01,
                "direction": 1.4,
                "block_edges": 1.05,
            },
        },
        "media": [],
        "timings": {
            "start_s": 6.123,
            "load_s": 2.0,
            "encode_s": 0.5,
            "steps_s": [0.3, 0.29],
            "decode_s": 0.4,
            "total_s": 4.25,
            "warm_s": 0.5,
        },
        "images": [
            {"seed": 7, "total_s": 4.25, "vram_bytes": 9, "memory_bytes": 8, "verdict": None},
            {"seed": 8, "total_s": 0.5, "vram_bytes": None, "memory_bytes": None, "verdict": "noise"},
        ],
        "vram": {
            "gpu_name": "A card",
            "gpu_uuid": "GPU-1",
            "total_bytes": 12,
            "free_at_start_bytes": 10,
            "used_at_start_bytes": 2,
            "peak_used_bytes": 9,
            "peak_process_bytes": 7,
            "samples": 30,
            "curve": [(0.0, 2), (1.5, 9)],
            "phases": [("start", 0.0)],
        },
        "card": {
            "gpu": 1,
            "mig_device": 0,
            "name": "A card",
            "uuid": "MIG-1",
            "memory_total_bytes": 12,
            "is_chosen_by_us": True,
            "evidence": "processes",
        },
        "device": "cuda:0 A card",
        "started_with": {"flags": ["--fast a"], "flags_from": "run.bat", "left_out": ["--port"]},
        "versions": {"comfyui": "0.33.0", "torch": "2.14.1+cu130"},
        "models": {"diffusion_model": "m.safetensors", "text_encoder": "t.safetensors", "vae": "v.safetensors"},
        "log_path": "comfyui.log",
        "template": "image_flux2.json",
        "notes": ["The peak was 9 bytes."],
        "findings": [{"code": "slow", "severity": "warning", "message": "It was slow.", "path": "x", "hint": "Wait."}],
    }


def test_what_nobody_measured_is_null_under_the_same_keys() -> None:
    entry = smoke_entry(BARE)
    assert list(entry) == list(smoke_entry(WHOLE))
    assert [key for key, value in entry.items() if value is None] == [
        "picture",
        "vram",
        "card",
        "device",
        "started_with",
        "models",
        "log_path",
        "template",
    ]
    assert entry["timings"] == {
        "start_s": None,
        "load_s": None,
        "encode_s": None,
        "steps_s": [],
        "decode_s": None,
        "total_s": None,
        "warm_s": None,
    }


def test_of_an_image_too_small_to_be_measured_the_figures_are_null() -> None:
    picture = smoke_entry(replace(WHOLE, image=replace(IMAGE, figures=None), is_stand_in=True))["picture"]
    assert picture is not None
    assert (picture["verdict"], picture["figures"], picture["is_noise_expected"]) == ("uncertain", None, True)


def test_a_video_and_a_sound_of_a_workflow_are_entries_with_these_keys() -> None:
    film = replace(FILM, path=Path("fox.mp4"), frame=FRAME, frame_path=Path("fox-frame.png"))
    video, sound = smoke_entry(replace(BARE, media=(film, SONG)))["media"]
    frame = video["frame"]
    assert frame is not None
    assert (frame["path"], frame["width"], frame["verdict"]) == ("fox-frame.png", 768, "image")
    assert {**video, "frame": None} == {
        "kind": "video",
        "path": "fox.mp4",
        "format": "MP4",
        "size": 1_000_000,
        "sha256": "ab" * 32,
        "decoder": "PyAV 18",
        "complaint": None,
        "duration_stated_s": 5.07,
        "video": {
            "codec": "h264",
            "width": 832,
            "height": 480,
            "has_one_size": True,
            "frames": 81,
            "frames_stated": 81,
            "frames_per_second": 16.0,
            "duration_s": 5.062,
            "maximum": 250,
            "deviation": 58.0,
            "flat_frames": 0,
            "change": 120,
            "damaged_frames": 0,
        },
        "audio": None,
        "frame": None,
    }
    assert (sound["path"], sound["video"], sound["frame"]) == (None, None, None)
    assert sound["audio"] == {
        "codec": "flac",
        "sample_rate": 44100,
        "channels": 2,
        "samples": 220500,
        "duration_s": 5.0,
        "peak": 0.8,
        "rms": 0.1,
        "deviation": 0.1,
        "clipped": 0.0,
        "not_numbers": 0,
    }


@pytest.mark.parametrize(
    ("smoke", "verified"),
    [
        (WHOLE, True),
        (replace(BARE, media=(FILM,)), True),
        (replace(BARE, media=(FILM,), findings=(BLACK,)), False),
        (BARE, False),
        (replace(WHOLE, image=None), False),
        (replace(WHOLE, findings=(BLACK,)), False),
    ],
)
def test_it_is_verified_by_an_image_without_a_problem(smoke: SmokeTest, verified: bool) -> None:
    assert is_verified(smoke) is verified
    assert smoke_entry(smoke)["is_proven"] is verified


def test_a_figure_that_is_no_number_becomes_null_so_that_json_stays_json() -> None:
    broken = replace(WHOLE, image=replace(IMAGE, mean=math.nan), timings=Timings(total_s=math.inf))
    report = Report(command="smoke-test", status="ok", exit_status=0, smoke_test=broken)
    entry = json.loads(json.dumps(document(report), allow_nan=False))["details"]["smoke_test"]
    assert entry["picture"]["mean"] is None
    assert entry["timings"]["total_s"] is None


def test_in_the_document_it_is_redacted_like_everything_else() -> None:
    prompt = "a fox with the token hf_AbCdEfGh1234 and topsecret"
    smoke = replace(WHOLE, options=ImageOptions(prompt=prompt))
    report = Report(command="smoke-test", status="ok", exit_status=0, smoke_test=smoke)
    text = json.dumps(document(report, secrets=("topsecret",)))
    assert "AbCdEfGh1234" not in text
    assert "topsecret" not in text
    assert json.loads(text)["details"]["smoke_test"]["wish"]["seed"] == 0


def test_each_card_is_a_row_with_what_is_wrong_with_it() -> None:
    assert WHOLE.card is not None
    rows = [
        CardResult(card=WHOLE.card, smoke=WHOLE),
        CardResult(card=WHOLE.card, smoke=replace(WHOLE, findings=(BLACK,))),
        CardResult(card=WHOLE.card, error=SmokeTestError("It did not start.")),
    ]
    report = Report(command="smoke-test", status="failed", exit_status=9, cards=tuple(rows))
    good, black, dead = map(card_result_entry, rows)
    assert document(report)["details"]["cards"] == [good, black, dead]
    assert (good["is_proven"], good["picture"], good["peak_bytes"], good["problem"]) == (True, "fox.png", 9, None)
    assert (good["total_s"], good["warm_s"]) == (4.25, 0.5)
    assert (black["is_proven"], black["problem"]) == (False, "It is black.")
    assert (dead["is_proven"], dead["picture"], dead["problem"]) == (False, None, "It did not start.")
    assert (dead["card"]["uuid"], dead["card"]["evidence"]) == ("MIG-1", None)
