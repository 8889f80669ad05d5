"""GGUF files: which model, which quantisation, and whether the file is complete; never more than the bytes given."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.identify.gguf import read_gguf
from provisioner.identify.identification import identify

UINT32, FLOAT32, STRING, ARRAY, UINT64 = 4, 6, 8, 9, 10
Q4_K, F32, F16, Q8_0 = 12, 0, 1, 8
BLOCKS = {Q4_K: (256, 144), F32: (1, 4), F16: (1, 2), Q8_0: (32, 34)}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_of(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    assert isinstance(value, list)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
    return struct.pack("<IIQ", ARRAY, UINT32, len(value)) + b"".join(struct.pack("<I", each) for each in value)


def gguf(keys: Mapping[str, object], tensors: Sequence[tuple[str, tuple[int, ...], int]] = ()) -> tuple[bytes, int]:
    """Return the beginning of a GGUF file with these shapes as PyTorch has them, and the size of the whole."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(text(key) + value_of(value) for key, value in keys.items())
    position = 0
    for name, shape, type_ in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", side) for side in shape[::-1])
        head += struct.pack("<IQ", type_, position)
        count = 1
        for side in shape:
            count *= side
        block, size = BLOCKS[type_]
        position += -(-(-(-count // block) * size) // 32) * 32
    head += bytes(-len(head) % 32)
    return head, len(head) + position


KLEIN = [
    ("double_stream_modulation_img.lin.weight", (18432, 3072), Q4_K),
    ("double_blocks.0.img_attn.norm.key_norm.scale", (128,), F32),
    ("single_blocks.0.linear1.weight", (27648, 3072), Q4_K),
]


def test_the_tensors_tell_the_family_and_the_quantisation() -> None:
    first, size = gguf({"general.architecture": "flux", "general.quantization_version": 2}, KLEIN)
    found = identify(first, size)
    assert (found.kind, found.family, found.role, found.precision) == (
        "gguf", "flux2-klein-4b", "diffusion_model", "Q4_K",
    )  # fmt: skip
    assert found.expected_size == size
    assert found.sentence == (
        "the FLUX.2 [klein] 4B transformer as GGUF, Q4_K: ComfyUI reads it only with the ComfyUI-GGUF custom node"
    )


def test_a_file_without_keys_as_stable_diffusion_cpp_writes_it_is_known() -> None:
    tensors = [(f"model.diffusion_model.{name}", shape, Q8_0) for name, shape, _ in KLEIN]
    assert identify(*gguf({}, tensors)).family == "flux2-klein-4b"


def test_a_cut_file_is_named_with_both_sizes() -> None:
    first, size = gguf({"general.architecture": "flux"}, KLEIN)
    found = identify(first, size - 1)
    assert (found.kind, found.family, found.expected_size) == ("truncated", "flux2-klein-4b", size)
    assert f"cut off at {size - 1:,} of {size:,} bytes" in found.sentence


def test_the_alignment_of_the_file_counts() -> None:
    first, size = gguf({"general.alignment": 64}, [("a", (256,), Q4_K)])
    head = read_gguf(first)
    assert head is not None
    assert head.expected_size == -(-len(first) // 64) * 64 + 144
    assert size - len(first) >= 144


@pytest.mark.parametrize(
    ("keys", "family", "words"),
    [
        ({"general.architecture": "qwen3", "qwen3.embedding_length": 2560}, "qwen3-4b", "a Qwen3-4B text encoder"),
        ({"general.architecture": "qwen3", "qwen3.embedding_length": 7}, "qwen3", "a Qwen3 text encoder"),
        (
            {"general.architecture": "qwen3vl", "qwen3vl.embedding_length": 2560},
            "qwen3vl-4b",
            "a Qwen3-VL-4B text encoder",
        ),
        ({"general.architecture": "qwen3vl"}, "qwen3vl", "a Qwen3-VL text encoder"),
        ({"general.architecture": "qwen_image"}, "qwen-image", "a Qwen-Image transformer"),
        ({"general.architecture": "flux"}, "flux", "a FLUX transformer"),
        ({"general.architecture": "mamba"}, None, "a GGUF file of the architecture mamba"),
        ({"general.architecture": "x" * 5000}, None, "a GGUF file of the architecture ..."),
        ({"general.architecture": 7}, None, "a GGUF file"),
        ({}, None, "a GGUF file"),
    ],
)
def test_the_keys_tell_what_the_tensors_do_not(keys: dict[str, object], family: str | None, words: str) -> None:
    found = identify(*gguf(keys))
    assert (found.kind, found.family) == ("gguf", family)
    assert found.sentence.startswith(words)


@pytest.mark.parametrize(("number", "precision"), [(15, "Q4_K_M"), (1, "F16"), (999, None), ("x", None)])
def test_the_writers_word_for_the_quantisation_is_taken(number: object, precision: str | None) -> None:
    assert identify(*gguf({"general.file_type": number})).precision == precision


def test_lists_are_passed_over() -> None:
    keys = {"a": ["x", "yy", ""], "b": [1, 2, 3], "c": 1.5, "general.architecture": "wan"}
    assert identify(*gguf(keys)).family == "wan"


HEAD = b"GGUF" + struct.pack("<I", 3)
MANY = 2**64 - 1


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF",
        HEAD,
        HEAD + struct.pack("<QQ", MANY, MANY),
        HEAD + struct.pack("<QQ", 0, MANY) + bytes(100_000),
        HEAD + struct.pack("<QQ", MANY, 0) + bytes(100_000),
        HEAD + struct.pack("<QQQ", 0, 1, MANY) + b"x",
        HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<I", 99),
        HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, UINT64, MANY) + b"x",
        HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, MANY) + bytes(200_000),
        HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 5000,
        HEAD + struct.pack("<QQ", 1, 0) + text("a") + struct.pack("<I", 2**31),
        HEAD + struct.pack("<QQ", 1, 0) + text("a") + struct.pack("<IQQIQ", 2, MANY, MANY, 0, 0),
        HEAD + struct.pack("<QQ", 1, 0) + text("a") + struct.pack("<IQIQ", 1, 2, 4, 0),
    ],
)
def test_a_hostile_file_is_still_a_gguf_file_and_nothing_is_trusted(data: bytes) -> None:
    found = identify(data, len(data))
    assert (found.kind, found.family, found.expected_size) == ("gguf", None, None)


def test_a_million_empty_strings_are_not_all_read() -> None:
    endless = (
        HEAD + struct.pack("<QQ", 0, 2) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 150_000) + bytes(1_200_000)
    )
    head = read_gguf(endless + text("general.architecture") + value_of("flux"))
    assert head is not None
    assert head.architecture is None


def test_other_files_are_none() -> None:
    assert read_gguf(b"GGU") is None


@given(st.integers(0, 400), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_never_raises(cut: int, damage: list[tuple[int, int]]) -> None:
    keys = {"general.architecture": "flux", "a": ["x", "y"], "general.file_type": 15}
    first = bytearray(gguf(keys, KLEIN)[0])
    for place, byte in damage:
        first[4 + place % (len(first) - 4)] = byte
    data = bytes(first[: max(4, len(first) - cut)])
    assert identify(data, len(data)).kind in ("gguf", "truncated")
