"""What a file is, from its first bytes and its size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from provisioner.identify import (
    HEADER_READ_LIMIT,
    MAX_HEADER_BYTES,
    SNIFF_BYTES,
    HeaderProblem,
    Identity,
    SafetensorsHeader,
    how_much_to_read,
    identify,
    read_header,
)

TABLES = Path(__file__).parents[1] / "contract" / "data" / "headers"
Table = Mapping[str, tuple[str, list[int]]]

BITS = {"F8_E4M3": 8, "U8": 8, "I8": 8, "BF16": 16, "F16": 16, "F32": 32, "I64": 64}


def table(name: str) -> Table:
    """Read one of the recorded tensor tables."""
    tensors: Table = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return tensors


def header_of(tensors: Table, metadata: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """Return the first bytes of a safetensors file with these tensors, and its size; no payload is made."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + position


def file_of(document: object, payload: bytes = b"", *, raw: bytes | None = None) -> bytes:
    """Return a small file with any header at all."""
    text = json.dumps(document).encode() if raw is None else raw
    return len(text).to_bytes(8, "little") + text + payload


def read_by_library(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return names, dtypes and shapes as the safetensors library sees them."""
    entries = deserialize(data)  # type: ignore[no-untyped-call]
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries}


def identify_table(tensors: Table, metadata: Mapping[str, str] | None = None) -> Identity:
    return identify(*header_of(tensors, metadata))


def with_hidden_size(tensors: Table, hidden: int) -> Table:
    """Return a FLUX.2 or Qwen3 table as a model of another width would have it."""
    old = next(shape[-1] for name, (_, shape) in tensors.items() if name.endswith(("proj.weight", "k_proj.weight")))
    return {
        name: (dtype, [size * hidden // old if size % old == 0 else size for size in shape])
        for name, (dtype, shape) in tensors.items()
    }


# --- headers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensors", "payload", "schema"),
    [
        ("flux-2-klein-4b-fp8", 309, 4070588032, "2ff21124fb997716c2da1597fab0824dc7bedcaf1aa182ade036e46788b79d6b"),
        ("qwen_3_4b", 398, 8044936192, "e0a22a9523c6c3a8e298311bc7389a035f1ac6081133b71067629bd72ac5899d"),
        ("flux-2-klein-4b", 149, 7751105712 - 16552 - 8, None),
        ("flux2-vae", 251, 336185492, None),
    ],
)
def test_reads_the_published_tables_with_their_published_figures(
    name: str, tensors: int, payload: int, schema: str | None
) -> None:
    found = read_header(*header_of(table(name), {"format": "pt"}))
    assert isinstance(found, SafetensorsHeader)
    assert (len(found.tensors), found.payload_bytes, found.metadata) == (tensors, payload, {"format": "pt"})
    assert sum(count for _, count in found.dtypes) == tensors
    assert schema in (None, found.schema_sha256)


def test_counts_the_dtypes_of_a_quantised_file() -> None:
    found = read_header(*header_of(table("flux-2-klein-4b-fp8")))
    assert isinstance(found, SafetensorsHeader)
    assert found.dtypes == (("BF16", 69), ("F32", 160), ("F8_E4M3", 80))


ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "too-short"),
        (b"1234567", "too-short"),
        (bytes(8), "header-length"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "header-length"),
        (b"\xff" * 20, "header-length"),
        ((100).to_bytes(8, "little") + b"{}", "header-cut"),
        (file_of(0, raw=b"{x"), "not-json"),
        (file_of(0, raw=b"{}\0"), "not-json"),
        (file_of(0, raw=b'{"a":NaN}'), "not-json"),
        (file_of(0, raw=b"\xff\xfe{}"), "not-json"),
        (file_of(0, raw=b"\xef\xbb\xbf{}"), "not-json"),
        (file_of(0, raw=b'{"a":' * 100_000), "not-json"),
        (file_of(0, raw=b'{"a":' + b"9" * 10_000 + b"}"), "not-json"),
        (file_of([]), "malformed"),
        (file_of(None), "malformed"),
        (file_of({"a": 1}), "malformed"),
        (file_of({"a": {}}), "malformed"),
        (file_of({"__metadata__": []}), "malformed"),
        (file_of({"__metadata__": {"x": 1}}), "malformed"),
        (file_of({"a\ud800": ENTRY}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "dtype": "X1"}}, b"12"), "unknown-dtype"),
        (file_of({"a": {**ENTRY, "shape": [-2]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "shape": [2.0]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "shape": [True, 2]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "shape": [3]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "shape": [2**63, 2**63, 0]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "data_offsets": [0, 2, 2]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "data_offsets": [2, 0]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "data_offsets": [1, 3]}}, b"123"), "malformed"),
        (file_of({"a": ENTRY, "b": ENTRY}, b"12"), "malformed"),
        (file_of({"a": ENTRY, "b": {**ENTRY, "data_offsets": [3, 5]}}, b"12345"), "malformed"),
        (file_of({"a": ENTRY}, b"1"), "truncated"),
        (file_of({"a": ENTRY}, b"123"), "overlong"),
    ],
)
def test_answers_a_header_that_is_none(data: bytes, code: str) -> None:
    found = read_header(data, len(data))
    assert isinstance(found, HeaderProblem)
    assert found.code == code
    with pytest.raises(SafetensorError):
        read_by_library(data)


def test_a_truncated_file_still_says_what_it_was_to_be() -> None:
    first, size = header_of({"a": ("U8", [1000])})
    found = read_header(first, size - 10)
    assert isinstance(found, HeaderProblem)
    assert (found.expected_size, found.header is None) == (size, False)
    assert f"{size - 10:,} of {size:,}" in found.sentence


def test_a_header_that_was_not_handed_over_is_not_guessed() -> None:
    first, size = header_of(table("flux2-vae"))
    found = read_header(first[:100], size)
    assert isinstance(found, HeaderProblem)
    assert found.code == "header-not-read"


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (b"", SNIFF_BYTES),
        (bytes(8), SNIFF_BYTES),
        ((16).to_bytes(8, "little"), SNIFF_BYTES),
        ((36480).to_bytes(8, "little"), 36488),
        (HEADER_READ_LIMIT.to_bytes(8, "little"), HEADER_READ_LIMIT + 8),
        ((HEADER_READ_LIMIT + 1).to_bytes(8, "little"), SNIFF_BYTES),
        (b"\xff" * 8, SNIFF_BYTES),
        (b"<!DOCTYPE html>", SNIFF_BYTES),
    ],
)
def test_never_asks_for_more_than_a_header_can_need(first: bytes, expected: int) -> None:
    assert how_much_to_read(first) == expected


# --- agreement with the library ------------------------------------------------------------------------

SHAPES = st.lists(st.integers(0, 4), max_size=3)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(BITS)), SHAPES), max_size=5)


@given(TENSORS, st.none() | st.dictionaries(NAMES, NAMES, max_size=2))
@settings(max_examples=60, deadline=None)
def test_reads_what_the_library_reads(tensors: Table, metadata: dict[str, str] | None) -> None:
    first, size = header_of(tensors, metadata)
    data = first + bytes(size - len(first))
    found = read_header(data, size)
    assert isinstance(found, SafetensorsHeader)
    assert {name: (each.dtype, each.shape) for name, each in found.tensors.items()} == read_by_library(data)
    assert found.metadata == (metadata or {})


OFFSETS = st.lists(st.integers(0, 6), min_size=2, max_size=2)
LOOSE_ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["U8", "F16", "F4", "Q9"]), "shape": SHAPES, "data_offsets": OFFSETS}
)


@given(st.dictionaries(st.sampled_from("abc"), LOOSE_ENTRY, max_size=3), st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_accepts_exactly_what_the_library_accepts(document: dict[str, object], payload: int) -> None:
    data = file_of(document, bytes(payload))
    try:
        read_by_library(data)
        is_accepted = True
    except SafetensorError:
        is_accepted = False
    assert isinstance(read_header(data, len(data)), SafetensorsHeader) is is_accepted


@given(st.binary(max_size=200), st.integers(-1, 2**63), st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_input_raises(data: bytes, size: int, name: str) -> None:
    for file_size in (len(data), size):
        identity = identify(data, file_size, name=name)
        assert identity.sentence
        assert not identity.sentence.endswith(".")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_header_never_raises(data: st.DataObject) -> None:
    first, size = header_of({"a": ("BF16", [2, 3]), "b": ("U8", [4])}, {"x": "y"})
    damaged = bytearray(first)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert identify(bytes(damaged), size).sentence


# --- families ----------------------------------------------------------------------------------------

NVFP4_LINEAR = {
    "double_blocks.0.img_attn.qkv.weight": ("U8", [9216, 1536]),
    "double_blocks.0.img_attn.qkv.weight_scale": ("F8_E4M3", [9216, 192]),
    "double_blocks.0.img_attn.qkv.weight_scale_2": ("F32", []),
    "double_stream_modulation_img.lin.weight": ("BF16", [18432, 3072]),
}
VAE_16 = {"decoder.conv_in.weight": ("F32", [512, 16, 3, 3]), "encoder.conv_in.weight": ("F32", [128, 3, 3, 3])}


def small_decoder() -> Table:
    return {
        name: (dtype, [size * 3 // 4 if name.startswith("decoder.") and size % 128 == 0 else size for size in shape])
        for name, (dtype, shape) in table("flux2-vae").items()
    }


def diffusers_vae() -> Table:
    tensors = {name: entry for name, entry in table("flux2-vae").items() if not name.startswith("decoder.up.")}
    return {**tensors, "decoder.up_blocks.0.resnets.0.conv1.weight": ("F32", [512, 512, 3, 3])}


def qwen(width: int) -> Table:
    return {
        "model.embed_tokens.weight": ("BF16", [151936, width]),
        "model.layers.0.post_attention_layernorm.weight": ("BF16", [width]),
        "model.layers.0.self_attn.q_norm.weight": ("BF16", [128]),
    }


def prefixed(tensors: Table, prefix: str) -> Table:
    return {prefix + name: entry for name, entry in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "family", "precision", "variant"),
    [
        (table("flux-2-klein-4b-fp8"), "flux2-klein-4b", "FP8", "distilled"),
        (table("flux-2-klein-4b"), "flux2-klein-4b", "BF16", None),
        (prefixed(table("flux-2-klein-4b"), "model.diffusion_model."), "flux2-klein-4b", "BF16", None),
        (with_hidden_size(table("flux-2-klein-4b"), 4096), "flux2-klein-9b", "BF16", None),
        (with_hidden_size(table("flux-2-klein-4b"), 6144), "flux2-dev", "BF16", None),
        (with_hidden_size(table("flux-2-klein-4b"), 512), "flux2", "BF16", None),
        ({"double_stream_modulation_img.linear.weight": ("BF16", [24576, 4096])}, "flux2-klein-9b", "BF16", None),
        (NVFP4_LINEAR, "flux2-klein-4b", "NVFP4", None),
        (table("qwen_3_4b"), "qwen3-4b", "BF16", None),
        (qwen(1024), "qwen3-0.6b", "BF16", None),
        (qwen(4096), "qwen3-8b", "BF16", None),
        (
            {
                **qwen(2560),
                "model.layers.0.mlp.up_proj.weight": ("F8_E4M3", [9728, 2560]),
                "model.layers.1.mlp.up_proj.weight": ("U8", [9728, 1280]),
                "model.layers.1.mlp.up_proj.weight_scale_2": ("F32", []),
            },
            "qwen3-4b",
            "mixed FP8 and NVFP4",
            None,
        ),
        ({**qwen(2560), "model.layers.0.post_feedforward_layernorm.weight": ("BF16", [2560])}, "gemma", "BF16", None),
        (
            {
                "model.layers.0.post_attention_layernorm.weight": ("BF16", [5120]),
                "model.layers.0.self_attn.k_proj.weight": ("BF16", [1024, 5120]),
            },
            "mistral-small",
            "BF16",
            None,
        ),
        ({"encoder.block.23.layer.1.DenseReluDense.wi_1.weight": ("F16", [10240, 4096])}, "t5-xxl", "FP16", None),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": ("F16", [3072, 768])}, "clip-l", "FP16", None),
        (table("flux2-vae"), "flux2-vae", "FP32", None),
        (diffusers_vae(), "flux2-vae", "FP32", None),
        (small_decoder(), "flux2-vae-small", "FP32", None),
        (VAE_16, "vae-16", "FP32", None),
        ({"decoder.conv_in.weight": ("F16", [512, 4, 3, 3])}, "vae-4", "FP16", None),
        ({"double_blocks.0.img_mod.lin.weight": ("BF16", [18432, 3072])}, "flux1-schnell", "BF16", None),
        (
            {
                "double_blocks.0.img_mod.lin.weight": ("BF16", [18432, 3072]),
                "guidance_in.in_layer.weight": ("BF16", [3072, 256]),
            },
            "flux1-dev",
            "BF16",
            None,
        ),
        (
            {
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": ("BF16", [16, 3072]),
                "diffusion_model.double_stream_modulation_img.lin.lora_B.weight": ("BF16", [18432, 16]),
            },
            "lora",
            "BF16",
            None,
        ),
        (
            {**prefixed(table("flux-2-klein-4b"), "model.diffusion_model."), **prefixed(VAE_16, "vae.")},
            "checkpoint",
            "BF16",
            None,
        ),
        ({"something.else": ("I8", [2, 2])}, None, "INT8", None),
        ({}, None, None, None),
    ],
)
def test_names_the_family_by_its_tensors(
    tensors: Table, family: str | None, precision: str | None, variant: str | None
) -> None:
    found = identify_table(tensors)
    assert (found.kind, found.is_complete) == ("safetensors", True)
    assert (found.family, found.precision, found.variant) == (family, precision, variant)
    assert precision is None or precision in found.sentence


def test_the_published_base_file_is_told_from_the_distilled_one_by_its_header() -> None:
    kept = ("double_blocks.0.img_attn.proj", "double_blocks.0.txt_attn.proj")
    base: dict[str, tuple[str, list[int]]] = {}
    for name, (dtype, shape) in table("flux-2-klein-4b-fp8").items():
        if name.startswith(kept) and not name.endswith(".weight"):
            continue
        base[name] = ("BF16" if name.startswith(kept) else dtype, shape)
    found = identify_table(base)
    assert (len(base), found.variant) == (305, "base")
    assert found.header is not None
    assert found.header.payload_bytes == 4089462384  # the published base file's


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (table("flux-2-klein-4b-fp8"), "the FLUX.2 [klein] 4B transformer, distilled, FP8"),
        (diffusers_vae(), "the FLUX.2 VAE in diffusers' names, FP32"),
        (table("flux2-vae"), "the FLUX.2 VAE in BFL's names, FP32"),
        (qwen(4096), "a Qwen3-8B text encoder, BF16"),
    ],
)
def test_says_it_in_words(tensors: Table, words: str) -> None:
    assert identify_table(tensors).sentence == words


# --- safetensors that are not whole ------------------------------------------------------------------


def test_a_cut_download_is_named_with_both_sizes() -> None:
    first, size = header_of(table("flux-2-klein-4b-fp8"))
    found = identify(first, 1_000_000_000)
    assert (found.kind, found.family, found.expected_size, found.is_complete) == (
        "truncated",
        "flux2-klein-4b",
        size,
        False,
    )
    assert "cut off at 1,000,000,000 of" in found.sentence


def test_a_file_cut_inside_its_header_is_truncated_too() -> None:
    first, _ = header_of(table("flux-2-klein-4b-fp8"))
    found = identify(first[:5000], 5000)
    assert (found.kind, found.expected_size) == ("truncated", None)
    assert "inside its header" in found.sentence


def test_bytes_behind_the_payload_are_said() -> None:
    first, size = header_of(VAE_16)
    assert "has 7 bytes behind its" in identify(first, size + 7).sentence


def test_a_broken_header_is_not_taken_for_another_form() -> None:
    assert identify(file_of(0, raw=b"{ nonsense"), 18).kind == "broken-safetensors"


def test_a_header_too_long_to_read_is_still_safetensors() -> None:
    length = HEADER_READ_LIMIT + 1
    first = length.to_bytes(8, "little") + b'{"a":' + b" " * 5000
    found = identify(first, length + 8)
    assert (found.kind, found.is_complete) == ("safetensors", False)


def test_a_header_whose_length_begins_like_a_pickle_is_safetensors() -> None:
    text = b"{}" + b" " * 894  # 0x0380: the two bytes 80 03
    assert identify(file_of(0, raw=text), 8 + 896).kind == "safetensors"


# --- what else lies under a model's name ---------------------------------------------------------------

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:97ed34fe0567e436200f2faee3939b88f2b5d99f8af2a4dc16532c4245c0ccb6\nsize 4070624520\n"
)
GGUF = (
    b"GGUF" + (3).to_bytes(4, "little") + (300).to_bytes(8, "little") + (20).to_bytes(8, "little")
    + (20).to_bytes(8, "little") + b"general.architecture" + (8).to_bytes(4, "little")
    + (4).to_bytes(8, "little") + b"flux" + bytes(100)
)  # fmt: skip
TOKEN = "hf_" + "a" * 34


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "empty", ("empty",)),
        (bytes(1), "zero-filled", ("nothing but zero bytes",)),
        (b"\r\n <!DOCTYPE html><html>", "html", ("web page",)),
        (b"\xef\xbb\xbf<html lang=en>", "html", ("web page",)),
        (b"<!-- cached --><HTML><body>", "html", ("web page",)),
        (b"<html>\xe9t\xe9", "html", ("web page",)),
        (
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>',
            "xml",
            ("AccessDenied", "Request has expired"),
        ),
        (b'{"error":"Invalid username or password."}', "json", ("Invalid username or password.",)),
        (b'{"a":1', "json", ("JSON",)),
        (b"[1, 2]", "json", ("JSON",)),
        (b"Entry not found", "text", ("Entry not found",)),
        (f"go to https://cdn.example/x?Signature=abc with {TOKEN}".encode(), "text", ("go to ... with ...",)),
        (LFS, "lfs-pointer", ("4,070,624,520",)),
        (LFS.replace(b"\n", b"\r\n"), "lfs-pointer", ("Git LFS",)),
        (GGUF, "gguf", ("architecture flux", "ComfyUI-GGUF")),
        (b"GGUF" + bytes(3), "gguf", ("GGUF",)),
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pklFB", "pickle", ("not opened",)),
        (b"PK\x03\x04" + bytes(26) + b"readme.txt", "archive", ("zip",)),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle", ("not opened",)),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "archive", ("7-Zip",)),
        (b"\x1f\x8b\x08\x00", "archive", ("gzip",)),
        (b"\x00\x01\x02\x03", "unknown", ("00 01 02 03",)),
    ],
)
def test_says_what_lies_there_instead_of_a_model(data: bytes, kind: str, words: tuple[str, ...]) -> None:
    found = identify(data, len(data))
    assert found.kind == kind
    assert all(word in found.sentence for word in words), found.sentence
    assert TOKEN not in found.sentence
    assert not found.is_complete


def test_an_lfs_pointer_tells_the_file_it_stands_for() -> None:
    found = identify(LFS, len(LFS))
    assert (found.expected_size, found.sha256) == (4070624520, LFS.split()[3].removeprefix(b"sha256:").decode())


def test_a_hole_at_the_start_of_a_large_file_is_seen() -> None:
    found = identify(bytes(SNIFF_BYTES), 4_070_624_520)
    assert found.kind == "zero-filled"
    assert "at least 4,096 zero bytes" in found.sentence


def test_a_large_file_that_begins_like_a_pointer_is_text() -> None:
    assert identify(LFS + b"x" * 2000, len(LFS) + 2000).kind == "text"


def test_text_that_ends_inside_a_character_is_text() -> None:
    data = ("é" * SNIFF_BYTES).encode()[: SNIFF_BYTES - 1]
    assert identify(data, 10_000).kind == "text"


def test_nothing_read_is_said() -> None:
    assert "nothing was read" in identify(b"", 100).sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.safetensors.part", "(.part)"),
        ("x.safetensors.PART", "(.part)"),
        ("x.safetensors.partial", "(.partial)"),
        ("abc.incomplete", "Hugging Face"),
        ("x.downloading", "(.downloading)"),
        ("x.crdownload", "Chrome"),
        ("x.opdownload", "browser"),
        ("Unconfirmed 123.tmp", "browser"),
        ("sha256-ab-partial-3", "ollama"),
        ("sha256-ab-partial", "ollama"),
    ],
)
def test_an_unfinished_download_is_named_with_what_it_holds_so_far(name: str, words: str) -> None:
    first, size = header_of(table("flux-2-klein-4b-fp8"))
    found = identify(first, size - 1, name=name)
    assert found.kind == "partial"
    assert words in found.sentence
    assert "4B transformer" in found.sentence
    assert (found.family, found.expected_size, found.is_complete) == ("flux2-klein-4b", size, False)


def test_a_record_of_aria2_is_no_model() -> None:
    found = identify(b"\x00\x01\x00\x00\x00\x00", 6, name="x.safetensors.aria2")
    assert (found.kind, found.sentence) == ("partial", "aria2's record of an unfinished download")


@pytest.mark.parametrize("name", ["x.safetensors", "partial.safetensors", "my.part.safetensors", "departed"])
def test_an_ordinary_name_says_nothing(name: str) -> None:
    assert identify_table(VAE_16) == identify(*header_of(VAE_16), name=name)
