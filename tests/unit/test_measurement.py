"""What the figures of a smoke test mean, and the advice when memory ran out: whole sentences, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisioner.core.errors import GenerationError, MemoryExhaustedError, SmokeTestError
from provisioner.core.models import ArtifactSet, Envelope, Machine
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text
from provisioner.smoke_test.measurement import (
    MOST_POINTS,
    VramSample,
    describe,
    failure_advice,
    own_peak,
    summarise_samples,
    thinned,
)
from provisioner.smoke_test.results import ImageFacts, ImageOptions, ModelNames, SmokeTest, Timings, VramReading
from tests.support.builders import GIB, gpu, machine
from tests.support.films import FILM

MIB = 1024**2
MANIFEST = parse_manifest(read_manifest_text("flux2-klein-4b")[0], file="flux2-klein-4b.yaml")
TUTORIAL = Envelope(vram_bytes=8_400_000_000, steps=4, guidance=1.0, source="a tutorial, RTX 5090")
NAMES = ModelNames(diffusion_model="flux-2-klein-4b-fp8.safetensors", text_encoder="q", vae="v")
IMAGE = ImageFacts(
    width=1024, height=1024, mode="RGB", size=1, sha256="0" * 64, minimum=0, maximum=255, mean=127.0, deviation=60.0
)
COLD = Timings(start_s=9.0, load_s=0.3, encode_s=2.5, steps_s=(1.4, 0.16, 0.15, 0.17), decode_s=0.6, total_s=5.67)
WARM = Timings(encode_s=0.1, steps_s=(0.09, 0.09, 0.1, 0.09), decode_s=0.1, total_s=0.64)


def set_named(set_id: str) -> ArtifactSet:
    found = MANIFEST.set_named(set_id)
    assert found is not None
    return found


def reading(peak: int, *, total: int = 12 * GIB, used: int = 1200 * MIB, process: int | None = None) -> VramReading:
    return VramReading(
        gpu_name="NVIDIA GeForce RTX 4070",
        gpu_uuid="GPU-1",
        total_bytes=total,
        free_at_start_bytes=total - used - 250 * MIB,
        peak_used_bytes=peak,
        used_at_start_bytes=used,
        peak_process_bytes=process,
        samples=120,
    )


def smoke(vram: VramReading | None = None, **more: object) -> SmokeTest:
    known = SmokeTest(backend="comfyui", options=ImageOptions(), timings=COLD, names=NAMES, image=IMAGE, vram=vram)
    return replace(known, **more)  # type: ignore[arg-type]


def one(said: tuple[str, ...], part: str) -> str:
    found = [each for each in said if part in each]
    assert len(found) == 1, said
    return found[0]


# --- samples --------------------------------------------------------------------------------------


def test_a_series_is_summed_up_by_its_start_and_its_peaks() -> None:
    samples = [
        VramSample(used_bytes=5, free_bytes=95),
        VramSample(used_bytes=80, free_bytes=20, process_bytes=60),
        VramSample(used_bytes=70, free_bytes=30, process_bytes=65),
        VramSample(used_bytes=6, free_bytes=94, process_bytes=None),
    ]
    assert summarise_samples(samples, gpu_name="A card", gpu_uuid=None, total_bytes=100) == VramReading(
        gpu_name="A card",
        gpu_uuid=None,
        total_bytes=100,
        free_at_start_bytes=95,
        peak_used_bytes=80,
        used_at_start_bytes=5,
        peak_process_bytes=65,
        samples=4,
        curve=((0.0, 5), (0.0, 80), (0.0, 70), (0.0, 6)),
    )


def test_a_long_series_becomes_a_short_curve_that_keeps_start_and_peak() -> None:
    samples = [VramSample(used_bytes=number % 1000, free_bytes=0, at_s=number / 20) for number in range(5000)]
    found = summarise_samples(
        thinned(samples), gpu_name="A", gpu_uuid=None, total_bytes=100, phases=[("start", 0), ("load", 1.23456)]
    )
    assert found is not None
    assert found.samples == 5000
    assert MOST_POINTS // 2 <= len(found.curve) <= MOST_POINTS
    assert found.curve[0] == (0.0, 0)
    assert max(used for _, used in found.curve) == found.peak_used_bytes == 999
    assert [at_s for at_s, _ in found.curve] == sorted(at_s for at_s, _ in found.curve)
    assert found.phases == (("start", 0), ("load", 1.235))


def test_no_sample_is_no_reading() -> None:
    assert summarise_samples([], gpu_name="A card", gpu_uuid=None, total_bytes=100) is None


def test_an_unknown_process_stays_unknown_and_its_share_is_the_growth() -> None:
    found = summarise_samples([VramSample(used_bytes=30, free_bytes=70)], gpu_name="A", gpu_uuid=None, total_bytes=100)
    assert found is not None
    assert found.peak_process_bytes is None
    assert own_peak(replace(found, peak_used_bytes=75)) == 45
    assert own_peak(replace(found, peak_used_bytes=20)) == 0
    assert own_peak(replace(found, peak_used_bytes=75, peak_process_bytes=44)) == 44


# --- sentences ------------------------------------------------------------------------------------


def test_a_peak_is_shown_with_free_memory_its_share_and_the_published_figure() -> None:
    said = describe(smoke(reading(8211 * MIB + 1200 * MIB, process=8211 * MIB)), TUTORIAL)
    assert said == (
        "9.2 GiB of 12.0 GiB were in use at the peak on NVIDIA GeForce RTX 4070, with 10.6 GiB free at the start.",
        "8.0 GiB of it were used for the image; the rest by other programs.",
        "8.40 GB (7.8 GiB) were published: a tutorial, RTX 5090. This run's 8.0 GiB is about the same.",
        "The first image after the start took 5.7 s, 0.3 s to read the models, 2.5 s for the prompt, 1.9 s for the"
        " steps, 0.6 s to decode.",
        "The first step took 1.4 s, including moving the weights to the GPU; a later one 0.2 s.",
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (reading(11 * GIB, process=10 * GIB), "This run took more, 10.0 GiB."),
        (reading(6 * GIB, process=5 * GIB), "This run took less, 5.0 GiB."),
        (
            reading(15_347 * MIB, total=140 * GIB, used=0, process=15_347 * MIB),
            "This run took more, 15.0 GiB, because it was free: ComfyUI keeps",
        ),
        (reading(11 * GIB, used=GIB), "This run took more, 10.0 GiB."),  # the growth, where no process is known
    ],
)
def test_a_peak_is_compared_with_the_published_figure(found: VramReading, said: str) -> None:
    assert said in one(describe(smoke(found), TUTORIAL), "were published")


def test_a_published_figure_without_a_source_is_shown_without() -> None:
    said = describe(smoke(reading(9 * GIB, process=8 * GIB)), Envelope(vram_bytes=8_400_000_000))
    assert one(said, "were published").startswith("8.40 GB (7.8 GiB) were published. This run's")


def test_what_a_running_server_used_before_is_not_compared() -> None:
    said = describe(smoke(reading(10 * GIB, used=9 * GIB), timings=WARM), TUTORIAL)
    assert one(said, "were published").endswith("so the two are not compared.")
    assert "9.0 GiB of it were in use before the run" in one(said, "before the run")
    assert one(said, "already running").startswith("The image took 0.6 s, 0.1 s for the prompt")


def test_a_process_alone_on_the_card_has_all_of_it() -> None:
    said = describe(smoke(reading(8 * GIB, used=0, process=8 * GIB - 20 * MIB)), TUTORIAL)
    assert "All of it was used for the image." in said


def test_a_set_without_a_published_figure_says_so() -> None:
    envelope = Envelope(source="the official template; no memory figure was published for this set")
    said = describe(smoke(reading(8 * GIB, process=7 * GIB)), envelope)
    assert one(said, "no published").startswith("There is no published memory figure to compare with (the official")
    assert not [each for each in describe(smoke(reading(8 * GIB)), Envelope()) if "published" in each]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cpu", "It was generated on the processor, so no GPU memory was used."),
        ("cuda:0 NVIDIA GeForce RTX 4070", "GPU memory was not measured."),
        (None, "GPU memory was not measured."),
    ],
)
def test_memory_that_was_not_measured_is_reported_as_missing(device: str | None, said: str) -> None:
    assert describe(smoke(device=device), TUTORIAL)[0] == said


def test_times_that_were_not_measured_are_reported_as_missing() -> None:
    assert describe(smoke(timings=Timings()), TUTORIAL)[1:] == ("The time for the image was not measured.",)
    assert len(describe(smoke(timings=Timings(), image=None), TUTORIAL)) == 1


def test_of_a_video_the_time_is_not_that_of_an_image() -> None:
    said = describe(smoke(image=None, media=(FILM,)), TUTORIAL)
    assert any(each.startswith("What the workflow makes took ") for each in said)


def test_parts_of_the_time_that_were_not_measured_are_left_out() -> None:
    said = describe(smoke(timings=Timings(start_s=3.0, total_s=8.0)), TUTORIAL)
    assert said[1] == ("The first image after the start took 8.0 s.")


def test_diffusers_keeps_nothing_for_the_next_image() -> None:
    assert "The next one" not in " ".join(describe(smoke(backend="diffusers"), TUTORIAL))


def test_steps_that_were_not_measured_are_counted() -> None:
    timings = replace(COLD, steps_s=(0.2, 0.2, 0.2))
    assert one(describe(smoke(timings=timings), TUTORIAL), "A step") == (
        "A step took 0.2 s (3 steps of 4 were measured)."
    )
    assert not [
        each for each in describe(smoke(timings=replace(COLD, steps_s=(0.2,))), TUTORIAL) if "step took" in each
    ]


def test_a_card_is_known_by_its_uuid() -> None:
    old = gpu(name="NVIDIA GeForce RTX 3060", uuid="GPU-1", compute_capability=(8, 6), is_display_attached=True)
    said = describe(smoke(reading(8 * GIB)), TUTORIAL, machine(gpu(uuid="GPU-0"), old))
    assert one(said, "FP8 units").startswith("NVIDIA GeForce RTX 3060 has no FP8 units")
    assert one(said, "display") == "A display is attached to NVIDIA GeForce RTX 4070 and keeps part of its memory."


def test_room_explains_nothing_for_diffusers() -> None:
    found = reading(15_347 * MIB, total=140 * GIB, used=0, process=15_347 * MIB)
    assert one(describe(smoke(found, backend="diffusers"), TUTORIAL), "published").endswith("more, 15.0 GiB.")


@pytest.mark.parametrize(
    ("host", "more"),
    [
        (None, {}),
        (machine(gpu(uuid="GPU-1", compute_capability=(8, 9))), {}),
        (machine(gpu(uuid="GPU-1", compute_capability=None)), {}),
        (machine(gpu(uuid="GPU-9", compute_capability=(7, 5))), {}),
        (machine(gpu(uuid="GPU-1", compute_capability=(8, 6))), {"names": None}),
        (machine(gpu(uuid="GPU-1", compute_capability=(8, 6))), {"names": replace(NAMES, diffusion_model="k-bf16")}),
    ],
    ids=["no machine", "8.9", "unknown", "another card", "no names", "BF16"],
)
def test_fp8_units_are_only_missed_where_they_are_known_to_be_missing(
    host: Machine | None, more: dict[str, object]
) -> None:
    assert "FP8 units" not in " ".join(describe(smoke(reading(8 * GIB), **more), TUTORIAL, host))


def test_without_a_uuid_the_only_card_of_that_name_is_meant() -> None:
    anonymous = replace(reading(8 * GIB), gpu_uuid=None)
    card = gpu(name="NVIDIA GeForce RTX 4070", is_display_attached=True)
    assert one(describe(smoke(anonymous), TUTORIAL, machine(card)), "A display is attached")
    both = machine(card, replace(card, index=1))
    assert "A display" not in " ".join(describe(smoke(anonymous), TUTORIAL, both))


# --- out of memory --------------------------------------------------------------------------------

CARD_12 = gpu(memory_total_bytes=12 * GIB)


def advise(set_id: str, host: Machine | None, vram: VramReading | None = None, **more: object) -> str:
    memory = more.pop("memory", "vram")
    error = MemoryExhaustedError("it ran out", memory=memory)
    said = failure_advice(error, host, set_named(set_id), vram, sets=MANIFEST.sets, **more)  # type: ignore[arg-type]
    return said or ""


def test_a_card_of_12_gb_gets_the_best_advice_first() -> None:
    card = gpu(uuid="GPU-1", memory_total_bytes=12_282 * MIB)
    assert advise("fp8", machine(card), reading(12 * GIB, total=12_282 * MIB, used=2 * GIB)) == (
        "9.8 GiB of 12.0 GiB were free on NVIDIA GeForce RTX 4070 before the run."
        " Close other programs that use it: 2.0 GiB of it were in use."
        " Start ComfyUI with `--reserve-vram 2`, so that it moves models out of memory earlier."
        " Decode in tiles (`--tiled-decode`): decoding a whole image has a peak of several GB."
        " Use the set fp8-midi, whose files are 2.41 GB smaller: `klein-setup install --set fp8-midi`."
    )


def test_a_reserve_that_was_not_enough_is_raised() -> None:
    assert "--reserve-vram 4`" in advise("fp8", machine(gpu()), reserved_gib=3.0)


@pytest.mark.parametrize(
    ("context", "is_of_the_card"),
    [
        ({"cause": "gpu-out-of-memory"}, True),  # ComfyUI
        ({"cause": "ram-out-of-memory"}, False),
        ({"kind": "out-of-memory", "memory": "vram"}, True),  # diffusers
        ({"kind": "out-of-memory", "memory": "ram"}, False),
        ({"kind": "out-of-memory", "returncode": -9}, False),  # the system ended it
        ({"cause": "cublas-not-init", "layer": "gpu-memory"}, True),
    ],
)
def test_the_error_says_which_memory_the_advice_is_about(context: dict[str, object], is_of_the_card: bool) -> None:
    error = MemoryExhaustedError("it ran out", hint=None, **context)
    said = failure_advice(error, machine(gpu()), set_named("fp8"), None, sets=MANIFEST.sets) or ""
    assert ("--reserve-vram" in said) is is_of_the_card


@pytest.mark.parametrize(
    ("total", "used", "is_tiled", "present", "absent"),
    [
        (8 * GIB, 0, False, "--reserve-vram 1", "Close other programs"),
        (16 * GIB, 0, False, "Decode in tiles", "Close other programs"),
        (16 * GIB, 0, True, "--reserve-vram 2", "Decode in tiles"),
        (24 * GIB, 2 * GIB, False, "Close other programs", "Decode in tiles"),
    ],
)
def test_advice_follows_the_card(total: int, used: int, is_tiled: bool, present: str, absent: str) -> None:
    host = machine(gpu(uuid="GPU-1", memory_total_bytes=total))
    said = advise("fp8", host, reading(total, total=total, used=used), is_tiled=is_tiled)
    assert present in said
    assert absent not in said


def test_without_a_reading_the_only_card_of_the_machine_counts() -> None:
    assert "Decode in tiles" not in advise("fp8", machine(gpu(memory_total_bytes=24 * GIB)))
    assert "Decode in tiles" in advise("fp8", machine(gpu(), gpu(index=1)))
    assert "Decode in tiles" in advise("fp8", None)


@pytest.mark.parametrize(
    ("set_id", "host", "expected"),
    [
        ("fp8", machine(gpu(memory_total_bytes=12 * GIB)), "fp8-midi"),  # the largest that fits, not the first
        ("fp8", machine(gpu(memory_total_bytes=8 * GIB)), "fp8-lean"),
        ("fp8-midi", machine(gpu()), "fp8-lean"),
        ("fp8-lean", machine(gpu(compute_capability=(12, 0))), "nvfp4"),
        ("fp8-lean", machine(gpu(compute_capability=(8, 9))), None),  # never the set that has just failed
        ("fp8-lean", machine(gpu(compute_capability=None)), None),
        ("fp8", machine(gpu(memory_total_bytes=6 * GIB)), None),
        ("fp8", machine(gpu(), os="macos"), None),
        ("fp8", None, "fp8-midi"),
        ("base-fp8", None, None),  # no other set can replace the base model
        ("diffusers", None, None),
    ],
)
@pytest.mark.parametrize("memory", ["vram", "ram"])
def test_the_largest_set_that_fits_is_named(
    set_id: str, host: Machine | None, expected: str | None, memory: str
) -> None:
    said = advise(set_id, host, memory=memory)
    assert ("--set" in said) == (expected is not None)
    assert f"`klein-setup install --set {expected}`" in said or f"can replace {set_id} here" in said


def test_diffusers_gets_no_advice_about_comfyui() -> None:
    assert "ComfyUI" not in advise("diffusers", None)


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ({"os": "windows"}, "Close other programs. Let Windows manage the size of the page file"),
        ({"os": "linux"}, "Close other programs. Add 2 GiB of swap"),
        ({"os": "linux", "is_wsl": True}, "Give WSL more: memory=18GB"),
        ({"os": "linux", "memory_physical_bytes": 64 * GIB}, "Give the container at least 18 GiB"),
        ({"os": "macos"}, "Close other programs before"),
    ],
)
def test_memory_of_the_machine_is_another_advice(system: dict[str, object], said: str) -> None:
    host = replace(machine(CARD_12), memory_total_bytes=16 * GIB, **system)  # type: ignore[arg-type]
    advice = advise("fp8", host, memory="ram")
    assert said in advice
    assert "The set fp8 needs about 14.6 GiB of memory. This " in advice
    assert "--reserve-vram" not in advice


def test_memory_that_is_not_known_is_left_out_of_the_advice() -> None:
    assert "its files are 12.45 GB. Close other programs. Use the set" in advise("fp8", None, memory="ram")


def test_a_smaller_set_has_to_fit_the_memory_of_the_machine_too() -> None:
    short = replace(machine(gpu(memory_total_bytes=11 * GIB)), memory_total_bytes=11 * GIB, swap_total_bytes=0)
    assert "--set fp8-lean`" in advise("fp8", short, memory="ram")
    roomy = replace(short, memory_total_bytes=64 * GIB)
    assert "--set fp8-midi`" in advise("fp8", roomy, memory="ram")


def test_a_card_that_had_less_free_than_was_published_is_told_so() -> None:
    said = advise("fp8", machine(gpu(uuid="GPU-1")), reading(7 * GIB, total=12 * GIB, used=5 * GIB))
    assert "The published peak of the set fp8 is 7.8 GiB." in said
    assert "published" not in advise("fp8-lean", machine(gpu()), reading(GIB))


def test_the_card_of_a_mig_device_is_the_gpu_that_it_is_carved_out_of() -> None:
    card = gpu(uuid="GPU-9", mig_devices=("GPU-1",), is_display_attached=True)
    assert one(describe(smoke(reading(8 * GIB)), TUTORIAL, machine(card)), "A display is attached")


# --- failures with a remedy of their own ------------------------------------------------------------


def remedied(error: SmokeTestError, host: Machine | None, **more: object) -> str | None:
    return failure_advice(error, host, set_named("fp8"), None, sets=MANIFEST.sets, **more)  # type: ignore[arg-type]


WINDOWS = replace(machine(CARD_12), os="windows", memory_total_bytes=16 * GIB, swap_total_bytes=5 * GIB)
PIN = "Start ComfyUI with `--disable-pinned-memory`."
PINNED = {"layer": "computer-memory", "flags": ["--disable-pinned-memory"]}


def test_a_remedy_of_its_own_comes_first_and_this_machine_adds_the_numbers() -> None:
    error = MemoryExhaustedError("1450", hint=PIN, cause="os-1450", **PINNED)
    assert remedied(error, WINDOWS) == (
        f"{PIN} The set fp8 needs about 14.6 GiB of memory."
        " This machine has 16.0 GiB, and a page file of 5.0 GiB."
        " Windows lets a program pin half of the memory, 8.0 GiB here; the weights are 11.6 GiB."
        " Use the set fp8-midi, whose files are 2.41 GB smaller: `klein-setup install --set fp8-midi`."
    )


def test_a_failure_of_memory_streaming_keeps_its_remedy_with_the_limit_of_pinned_memory() -> None:
    error = GenerationError(
        "HostBuffer", hint=PIN, cause="aimdo-hostbuffer-other", **{**PINNED, "layer": "memory-streaming"}
    )
    linux = replace(WINDOWS, os="linux", locked_limit_bytes=65536)
    assert remedied(error, linux) == (
        f"{PIN} A process may lock 65.5 kB in memory here (`ulimit -l`); the weights are 11.6 GiB."
    )
    assert remedied(error, None) == PIN
    assert remedied(GenerationError("no hint", cause="unknown"), linux) is None


@pytest.mark.parametrize(("total", "expected"), [(8, 1), (12, 2)])
def test_a_number_in_a_remedy_is_that_of_this_card(total: int, expected: int) -> None:
    hint = "Close other programs. `--reserve-vram 1` leaves room, or `--vram-headroom 1`."
    error = MemoryExhaustedError("full", hint=hint, cause="cublas-not-init", layer="gpu-memory")
    card = machine(gpu(memory_total_bytes=total * GIB))
    start = f"Close other programs. `--reserve-vram {expected}` leaves room, or `--vram-headroom {expected}`."
    assert (remedied(error, card) or "").startswith(f"{start} Use the set")
    assert "`--reserve-vram 4`" in (remedied(error, card, reserved_gib=3.0) or "")
    assert (remedied(error, None) or "").startswith(hint)


def test_options_of_a_general_failure_are_not_lost() -> None:
    flags = ["--disable-pinned-memory", "--cache-none"]
    killed = MemoryExhaustedError("killed", hint="x", cause="ram-out-of-memory", layer="computer-memory", flags=flags)
    said = remedied(killed, replace(machine(gpu()), memory_total_bytes=16 * GIB)) or ""
    assert "If that is not enough, start ComfyUI with `--disable-pinned-memory` and `--cache-none`, each alone." in said
    full = MemoryExhaustedError(
        "full", cause="gpu-out-of-memory", layer="gpu-memory", flags=["--reserve-vram", "--disable-dynamic-vram"]
    )
    assert "If that is not enough, start ComfyUI with `--disable-dynamic-vram`. Use" in (remedied(full, None) or "")
