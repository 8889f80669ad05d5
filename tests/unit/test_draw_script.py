"""The decisions of the image script; tests/integration/test_drawing.py generates real images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provisioner.smoke_test.diffusers_script import (
    GenerationError,
    choose_offload,
    find_snapshot,
    memory_of,
    numbers,
    one_line,
    parse_arguments,
)

GB = 1_000_000_000
KLEIN = (8_044_936_192, 7_751_089_152, 168_093_262)  # encoder, transformer and VAE of the 4B in BF16
ASKED = ["--cache", "c", "--repo", "o/n", "--revision", "a" * 40, "--prompt=-x", "--output", "o.png"]


@pytest.mark.parametrize(
    ("free", "pixels", "chosen"),
    [
        (150 * GB, 1024 * 1024, "none"),
        (25 * GB, 1024 * 1024, "none"),
        (25 * GB, 2048 * 2048, "model"),
        (17 * GB, 1024 * 1024, "model"),
        (17_500_000_000, 512 * 512, "none"),
        (12 * GB, 1024 * 1024, "model"),
        (9 * GB, 1024 * 1024, "sequential"),
        (6 * GB, 1024 * 1024, "sequential"),
        (None, 1024 * 1024, "model"),
    ],
)
def test_as_much_stays_on_the_card_as_fits(free: int | None, pixels: int, chosen: str) -> None:
    assert choose_offload("auto", "cuda", free, KLEIN, pixels) == chosen


@pytest.mark.parametrize(
    ("wanted", "kind", "chosen"),
    [("model", "cuda", "model"), ("none", "cuda", "none"), ("sequential", "cpu", "none"), ("model", "mps", "none")],
)
def test_what_was_asked_for_is_done_where_there_are_two_memories(wanted: str, kind: str, chosen: str) -> None:
    assert choose_offload(wanted, kind, 1, KLEIN, 1024 * 1024) == chosen


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), "ram"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            "ram",
        ),
        (OSError(1455, "The paging file is too small for this operation to complete. (os error 1455)"), "ram"),
        (RuntimeError("CUDA error: out of memory"), "vram"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_an_exhausted_memory_is_recognised_by_its_message(error: Exception, memory: str | None) -> None:
    assert memory_of(None, error) == memory


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--revision", "main"], "'main' is not of the form"),
        (["--repo", "../../etc"], "not of the form"),
        (["--device", "tpu"], "'tpu' is not of the form"),
        (["--offload", "some"], "invalid choice"),
        (["--seed", "x"], "invalid int value"),
        (["--more"], "unrecognized arguments: --more"),
    ],
)
def test_wrong_arguments_are_answered_not_printed(changed: list[str], said: str) -> None:
    with pytest.raises(GenerationError) as caught:
        parse_arguments([*ASKED, *changed])
    assert caught.value.kind == "usage"
    assert said in str(caught.value)


def test_a_prompt_may_begin_with_a_dash() -> None:
    assert parse_arguments(ASKED).prompt == "-x"


@pytest.mark.parametrize(
    ("version", "pair"), [("0.37.0", (0, 37)), ("0.42.1.dev0", (0, 42)), ("1.0", (1, 0)), ("none", (0, 0))]
)
def test_versions_are_compared_as_numbers(version: str, pair: tuple[int, int]) -> None:
    assert numbers(version) == pair


def test_a_message_stays_in_one_line_of_bounded_length() -> None:
    assert one_line(ValueError("a\n  b\t" + "c" * 500)) == "a b " + "c" * 393 + "..."
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_every_missing_file_of_a_snapshot_is_named(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--o--n" / "snapshots" / ("a" * 40)
    (snapshot / "vae").mkdir(parents=True)
    (snapshot / "vae" / "config.json").write_text("{}", encoding="utf-8")
    index = {"_class_name": "X", "vae": ["d", "V"], "tokenizer": ["t", "T"], "image_encoder": [None, None]}
    (snapshot / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(GenerationError) as caught:
        find_snapshot(tmp_path, "o/n", "a" * 40)
    assert caught.value.facts["missing"] == ["tokenizer/config.json", "vae/*.safetensors"]


@pytest.mark.parametrize(("text", "said"), [("[1]", "does not contain a JSON object"), ("{", "cannot be read")])
def test_a_broken_index_is_reported(tmp_path: Path, text: str, said: str) -> None:
    snapshot = tmp_path / "models--o--n" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text(text, encoding="utf-8")
    with pytest.raises(GenerationError) as caught:
        find_snapshot(tmp_path, "o/n", "a" * 40)
    assert caught.value.kind == "snapshot-incomplete"
    assert said in str(caught.value)
