"""What a file is, from its first bytes and its size."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.identify import family_table
from provisioner.identify.identification import HEADER_READ_LIMIT, SNIFF_BYTES, TAIL_BYTES, Identity, identify
from tests.support.model_headers import (
    DATA,
    Table,
    header_bytes_of,
    in_file_order,
    klein_4b,
    klein_4b_diffusers,
    published,
    quantised,
    qwen3_4b,
    qwen3_8b,
    qwen3_vl,
    qwen3_vl_4b,
    recorded,
)

FIGURES = {row["name"]: row for row in json.loads((DATA / "published.json").read_text(encoding="utf-8"))}
FAMILIES = json.loads((DATA / "families.json").read_text(encoding="utf-8"))


def identify_table(tensors: Table, metadata: dict[str, str] | None = None, *, name: str = "") -> Identity:
    return identify(*header_bytes_of(tensors, metadata), name=name)


# --- published files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tensors", "metadata"), published(), ids=[name for name, _, _ in published()])
def test_a_published_file_is_known_by_a_header_of_its_true_size(
    name: str, tensors: Table, metadata: dict[str, str] | None
) -> None:
    figures = FIGURES[name]
    first, size = header_bytes_of(tensors, metadata)
    assert (len(tensors), size) == (figures["tensors"], figures["size"])
    assert figures["header_bytes"] in (None, len(first) - 8)
    found = identify(first, size)
    assert (found.kind, found.is_complete, found.findings) == ("safetensors", True, ())
    assert (found.family, found.precision, found.variant) == tuple(
        figures[key] for key in ("family", "precision", "variant")
    )


def test_every_published_figure_has_a_table() -> None:
    assert {name for name, _, _ in published()} == set(FIGURES)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (recorded("flux-2-klein-4b-fp8"), "the FLUX.2 [klein] 4B transformer, distilled, FP8"),
        (klein_4b_diffusers(), "the FLUX.2 [klein] 4B transformer in diffusers' layout, BF16"),
        (recorded("flux2-vae"), "the FLUX.2 VAE in BFL's names, FP32"),
        (qwen3_4b(), "a Qwen3-4B text encoder, BF16"),
        (qwen3_8b(), "a Qwen3-8B text encoder, BF16; FLUX.2 [klein] 9B reads it; 4B needs Qwen3-4B"),
        (
            {"decoder.conv_in.weight": ("F32", [512, 16, 3, 3])},
            "a VAE of 16 channels, as FLUX.1 and Stable Diffusion 3 use it, FP32; "
            "FLUX.2 [klein] needs the FLUX.2 VAE (32 channels)",
        ),
        (
            {"text_model.encoder.layers.0.mlp.fc1.weight": ("F16", [3072, 768])},
            "a CLIP-L text encoder, FP16, for FLUX.1 [dev], FLUX.1 [schnell], FLUX.1 Fill [dev] and 7 more; "
            "FLUX.2 [klein] 4B needs Qwen3-4B, and 9B needs Qwen3-8B",
        ),
        (
            qwen3_vl_4b(),
            "a Qwen3-VL-4B text encoder, BF16, for Krea 2 and Mage-Flow; FLUX.2 [klein] 4B needs Qwen3-4B, and 9B "
            "needs Qwen3-8B: ComfyUI loads it without an error, and images can degrade (Comfy-Org/ComfyUI#14526)",
        ),
        ({"something.else": ("I8", [2, 2])}, "a safetensors file of an unknown family (1 tensor), INT8"),
    ],
)
def test_says_it_in_words(tensors: Table, words: str) -> None:
    assert identify_table(tensors).sentence == words


# --- families ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FAMILIES, ids=[f"{row['role']}-{row['family']}" for row in FAMILIES])
def test_names_the_family_by_its_tensors(row: dict[str, object]) -> None:
    tensors: Table = row["tensors"]  # type: ignore[assignment]
    found = identify_table(tensors)
    assert (found.family, found.role) == (row["family"], row["role"])
    assert found.is_complete


def test_every_kind_of_model_has_tensors_that_show_it() -> None:
    shown = {(row["family"], row["role"]) for row in FAMILIES}
    assert {(each.id, each.role) for each in family_table.FAMILIES} <= shown


QWEN3_VL = (qwen3_vl_4b(), qwen3_vl(qwen3_4b(), 2560, eyes=1024, inner=4096, depth=24, prefix="visual."))


@pytest.mark.parametrize("tensors", QWEN3_VL, ids=["model.visual", "visual"])
def test_an_encoder_with_eyes_is_none_of_kleins(tensors: Table) -> None:
    assert set(qwen3_4b()) < set(tensors)
    found = identify_table(tensors)
    assert (found.family, found.is_complete) == ("qwen3vl-4b", True)
    assert identify_table(in_file_order(tensors)).family == "qwen3vl-4b"
    first, size = header_bytes_of(tensors)
    cut = identify(first, size - 1)
    assert (cut.kind, cut.family) == ("truncated", "qwen3vl-4b")
    assert "is cut off" in cut.sentence or "ends" in cut.sentence
    assert identify(first[:5000], 5000).family is None  # cut inside the header


def test_an_encoder_whose_header_lies_is_what_its_tensors_say() -> None:
    """What a file calls itself does not matter; without its eyes a Qwen3-VL has the header of a Qwen3."""
    told = {"modelspec.architecture": "qwen3-4b", "format": "pt"}
    assert identify_table(qwen3_vl_4b(), told, name="qwen_3_4b.safetensors").family == "qwen3vl-4b"
    wrong_width = {**qwen3_vl_4b(), "model.visual.merger.linear_fc2.weight": ("BF16", [1, 1])}
    assert identify_table(wrong_width).family == "qwen3vl"
    blind = {name: each for name, each in qwen3_vl_4b().items() if "visual" not in name}
    assert identify_table(blind).family == "qwen3-4b"  # only the SHA-256 tells these two apart


@pytest.mark.parametrize(
    ("tensors", "layout"),
    [
        (klein_4b(), "comfyui"),
        (klein_4b_diffusers(), "diffusers"),
        (recorded("flux2-vae"), "comfyui"),
        (qwen3_4b(), None),
    ],
)
def test_tells_whose_names_the_tensors_carry(tensors: Table, layout: str | None) -> None:
    assert identify_table(tensors).layout == layout


QWEN = {
    "model.layers.0.post_attention_layernorm.weight": ("BF16", [2560]),
    "model.layers.0.self_attn.q_norm.weight": ("BF16", [128]),
}
FP8 = {"model.layers.0.mlp.up_proj.weight": ("F8_E4M3", [9728, 2560])}
NVFP4 = {
    "model.layers.1.mlp.up_proj.weight": ("U8", [9728, 1280]),
    "model.layers.1.mlp.up_proj.weight_scale": ("F8_E4M3", [9728, 160]),
    "model.layers.1.mlp.up_proj.weight_scale_2": ("F32", []),
}


@pytest.mark.parametrize(
    ("tensors", "precision"),
    [
        ({}, None),
        ({"a": ("F16", [2])}, "FP16"),
        ({"a": ("BF16", [2])}, "BF16"),
        ({"a": ("F8_E5M2", [2])}, "FP8 (E5M2)"),
        ({"a": ("I8", [9]), "b": ("F32", [2])}, "INT8"),
        ({"a": ("I64", [2])}, "I64"),
        ({**QWEN, **FP8}, "FP8"),
        ({**QWEN, **NVFP4}, "NVFP4"),
        ({**QWEN, **FP8, **NVFP4}, "mixed FP8 and NVFP4"),
    ],
)
def test_names_the_number_format(tensors: Table, precision: str | None) -> None:
    assert identify_table(tensors).precision == precision


@pytest.mark.parametrize(
    ("formats", "dtype", "precision"),
    [
        (["asym_w4a8_int8", "asym_w4a8_int8"], "I8", "INT4 (W4A8)"),
        (["convrot_w4a4"], "I8", "INT4 (W4A4)"),
        (["mxfp8"], "F8_E4M3", "MXFP8"),
        (["int8_tensorwise"], "I8", "INT8"),
        (["mxfp8", "float8_e4m3fn"], "F8_E4M3", "FP8"),
        ([1], "I8", "INT8"),
    ],
)
def test_a_format_that_is_stored_as_another_is_known_by_what_the_file_says(
    formats: list[object], dtype: str, precision: str
) -> None:
    layers = {f"layer.{at}": {"format": each} for at, each in enumerate(formats)}
    told = {"_quantization_metadata": json.dumps({"layers": {**layers, "x": "nothing"}})}
    assert identify_table({"layer.0.weight": (dtype, [8, 8])}, told).precision == precision


def test_a_file_that_only_resembles_the_published_ones_has_no_variant() -> None:
    tensors, metadata = quantised(klein_4b(), "float8_e4m3fn", kept=r"single_blocks\.0\..*")
    assert identify_table(tensors, metadata).variant is None


# --- how a file says that it is quantised --------------------------------------------------------------

SCALED, SAID = quantised(klein_4b(), "float8_e4m3fn")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "no _quantization_metadata"),
        ({"format": "pt"}, "no _quantization_metadata"),
        ({"_quantization_metadata": "{"}, "names no layer"),
        ({"_quantization_metadata": "[" * 100_000}, "names no layer"),
        ({"_quantization_metadata": '{"layers": {}}'}, "names no layer"),
        ({"_quantization_metadata": "[]"}, "names no layer"),
    ],
)
def test_scales_that_comfyui_would_ignore_are_a_problem(metadata: dict[str, str] | None, words: str) -> None:
    found = identify_table(SCALED, metadata)
    (finding,) = found.findings
    assert (finding.code, finding.severity) == ("scales-ignored", "problem")
    assert words in finding.message
    assert finding.hint
    assert found.family == "flux2-klein-4b"


@pytest.mark.parametrize(
    "tensors",
    [
        {**SCALED, "single_blocks.0.linear1.comfy_quant": ("U8", [27])},
        {**SCALED, "scaled_fp8": ("F8_E4M3", [2])},
        {"a.weight": ("F8_E4M3", [4, 4])},
        klein_4b(),
    ],
)
def test_files_that_say_it_another_way_or_need_not_are_fine(tensors: Table) -> None:
    assert identify_table(tensors).findings == ()


def test_fp8_without_scales_is_named() -> None:
    tensors = {name: ("F8_E4M3", shape) for name, (_, shape) in klein_4b().items()}
    found = identify_table(tensors)
    assert (found.precision, found.findings) == ("FP8", ())
    assert found.sentence.endswith("FP8 without scales")


# --- parts of a model ----------------------------------------------------------------------------------


def test_a_part_is_known_by_its_layers_whatever_their_numbers() -> None:
    second = {
        name: each
        for name, each in qwen3_4b().items()
        if name.startswith(("model.layers.2", "model.layers.3", "model.norm"))
    }
    found = identify_table(second, name="model-00002-of-00002.safetensors")
    assert (found.family, found.part) == ("qwen3-4b", (2, 2))
    assert found.sentence == "part 2 of 2 of a Qwen3-4B text encoder, BF16"


@pytest.mark.parametrize(("hidden", "family"), [(3072, "flux2-klein-4b"), (4096, "flux2-klein-9b"), (64, "flux2")])
def test_a_later_part_of_a_transformer_is_known_by_its_width(hidden: int, family: str) -> None:
    part = {"single_transformer_blocks.31.attn.to_qkv_mlp_proj.weight": ("BF16", [9 * hidden, hidden])}
    name = "diffusion_pytorch_model-00005-of-00007.safetensors"
    assert identify_table(part, name=name).family == family
    assert identify_table(part).family is None  # without the name it may be anything


def test_a_part_of_something_else_is_not_guessed() -> None:
    found = identify_table({"x.3.y": ("BF16", [2])}, name="x-00001-of-00003.safetensors")
    assert (found.family, found.part) == (None, (1, 3))


INDEX = json.dumps(
    {
        "metadata": {"total_size": 8044936192},
        "weight_map": {
            f"model.layers.{layer}.x": f"model-0000{1 + layer // 18}-of-00002.safetensors" for layer in range(36)
        },
    },
    indent=2,
).encode()


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (INDEX, "index", "in 2 files, 8,044,936,192 bytes together"),
        (b'{"weight_map": {"a": "x-00001-of-00009.safetensors"}}', "index", "in 9 files; it holds no weights"),
        (b'{"weight_map": {}}', "json", "a JSON document"),
    ],
)
def test_the_list_of_parts_is_no_model(data: bytes, kind: str, words: str) -> None:
    found = identify(data[:SNIFF_BYTES], len(data))
    assert found.kind == kind
    assert words in found.sentence


# --- the end of a file ---------------------------------------------------------------------------------


def test_zeros_at_the_end_are_reported_when_the_end_is_given() -> None:
    first, size = header_bytes_of(in_file_order(SCALED), SAID)
    found = identify(first, size, tail=bytes(TAIL_BYTES))
    assert (found.kind, found.is_complete, found.family) == ("zero-tail", False, "flux2-klein-4b")
    assert "its last 65,536 bytes are all zeros" in found.sentence


@pytest.mark.parametrize("tail", [b"", bytes(100), bytes(TAIL_BYTES - 1), bytes(TAIL_BYTES - 1) + b"x"])
def test_an_end_that_is_short_or_not_all_zeros_is_not_reported(tail: bytes) -> None:
    first, size = header_bytes_of(in_file_order(SCALED), SAID)
    assert identify(first, size, tail=tail).is_complete


def test_the_whole_payload_of_a_small_file_is_end_enough() -> None:
    first, size = header_bytes_of({"a": ("U8", [5000])})
    assert identify(first, size, tail=bytes(5000)).kind == "zero-tail"
    assert identify(first, size, tail=bytes(4999)).kind == "safetensors"


# --- any bytes -----------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.integers(-1, 2**63), st.text(max_size=20), st.binary(max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_input_raises(data: bytes, size: int, name: str, tail: bytes) -> None:
    for file_size in (len(data), size):
        identity = identify(data, file_size, name=name, tail=tail)
        assert identity.sentence
        assert not identity.sentence.endswith(".")


STARTS = st.sampled_from(
    [
        b"GGUF\3\0\0\0",
        b"PK\3\4",
        b"\x08\x07\x12\x07",
        b"\x80\x02}",
        b"<?xml ",
        b"<html",
        b'{"error":',
        b"version https://",
    ]
)


@given(STARTS, st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_no_beginning_of_another_form_raises(start: bytes, rest: bytes) -> None:
    assert identify(start + rest, len(start) + len(rest)).sentence


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_header_never_raises(data: st.DataObject) -> None:
    first, size = header_bytes_of({"a": ("BF16", [2, 3]), "b": ("U8", [4])}, {"x": "y"})
    damaged = bytearray(first)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert identify(bytes(damaged), size).sentence


# --- safetensors that are not whole ------------------------------------------------------------------

VAE_16 = {"decoder.conv_in.weight": ("F32", [512, 16, 3, 3]), "encoder.conv_in.weight": ("F32", [128, 3, 3, 3])}


def file_of(raw: bytes) -> bytes:
    """Return a file that is nothing but a header."""
    return len(raw).to_bytes(8, "little") + raw


def test_a_cut_download_is_named_with_both_sizes() -> None:
    first, size = header_bytes_of(recorded("flux-2-klein-4b-fp8"))
    found = identify(first, 1_000_000_000)
    assert (found.kind, found.family, found.expected_size, found.is_complete) == (
        "truncated",
        "flux2-klein-4b",
        size,
        False,
    )
    assert "cut off at 1,000,000,000 of" in found.sentence


def test_a_file_cut_inside_its_header_is_truncated_too() -> None:
    first, _ = header_bytes_of(recorded("flux-2-klein-4b-fp8"))
    found = identify(first[:5000], 5000)
    assert (found.kind, found.expected_size) == ("truncated", None)
    assert "inside its header" in found.sentence


def test_bytes_after_the_payload_are_reported() -> None:
    first, size = header_bytes_of(VAE_16)
    assert "has 7 bytes after its" in identify(first, size + 7).sentence


def test_a_broken_header_is_not_taken_for_another_form() -> None:
    assert identify(file_of(b"{ nonsense"), 18).kind == "broken-safetensors"


def test_a_header_too_long_to_read_is_still_safetensors() -> None:
    length = HEADER_READ_LIMIT + 1
    first = length.to_bytes(8, "little") + b'{"a":' + b" " * 5000
    found = identify(first, length + 8)
    assert (found.kind, found.is_complete) == ("safetensors", False)


def test_a_header_whose_length_begins_like_a_pickle_is_safetensors() -> None:
    text = b"{}" + b" " * 894  # 0x0380: the two bytes 80 03
    assert identify(file_of(text), 8 + 896).kind == "safetensors"


# --- other files under a model's name -------------------------------------------------------------------

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
        (GGUF, "gguf", ("a FLUX transformer as GGUF", "ComfyUI-GGUF")),
        (b"GGUF" + bytes(3), "gguf", ("GGUF",)),
        (b"\x08\x07\x12\x07pytorch\x1a\x05", "onnx", ("ONNX",)),
        (b"\x08\x07\x12\x20pyto\x00\x1a\x05", "unknown", ("08 07 12 20",)),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "picture", ("PNG",)),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "picture", ("JPEG",)),
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pklFB", "pickle", ("not opened",)),
        (b"PK\x03\x04" + bytes(26) + b"readme.txt", "archive", ("zip",)),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle", ("not opened",)),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "archive", ("7-Zip",)),
        (b"\x1f\x8b\x08\x00", "archive", ("gzip",)),
        (b"\x00\x01\x02\x03", "unknown", ("00 01 02 03",)),
    ],
)
def test_says_what_a_file_is_instead_of_a_model(data: bytes, kind: str, words: tuple[str, ...]) -> None:
    found = identify(data, len(data))
    assert found.kind == kind
    assert all(word in found.sentence for word in words), found.sentence
    assert TOKEN not in found.sentence
    assert not found.is_complete


def test_an_lfs_pointer_tells_the_file_it_stands_for() -> None:
    found = identify(LFS, len(LFS))
    assert (found.expected_size, found.sha256) == (4070624520, LFS.split()[3].removeprefix(b"sha256:").decode())


def test_zeros_at_the_start_of_a_large_file_are_reported() -> None:
    found = identify(bytes(SNIFF_BYTES), 4_070_624_520, name="x.safetensors")
    assert found.kind == "zero-filled"
    assert "at least 4,096 zero bytes" in found.sentence


def test_a_large_file_that_begins_like_a_pointer_is_text() -> None:
    assert identify(LFS + b"x" * 2000, len(LFS) + 2000).kind == "text"


def test_text_that_ends_inside_a_character_is_text() -> None:
    data = ("é" * SNIFF_BYTES).encode()[: SNIFF_BYTES - 1]
    assert identify(data, 10_000).kind == "text"


def test_a_file_of_which_nothing_was_read_says_so() -> None:
    assert "none of it was read" in identify(b"", 100).sentence


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
    first, size = header_bytes_of(recorded("flux-2-klein-4b-fp8"))
    found = identify(first, size - 1, name=name)
    assert found.kind == "partial"
    assert words in found.sentence
    assert "4B transformer" in found.sentence
    assert (found.family, found.expected_size, found.is_complete) == ("flux2-klein-4b", size, False)


def test_a_record_of_aria2_is_no_model() -> None:
    found = identify(b"\x00\x01\x00\x00\x00\x00", 6, name="x.safetensors.aria2")
    assert (found.kind, found.sentence) == ("partial", "aria2's record of an unfinished download")


def test_a_file_with_the_record_of_aria2_beside_it_is_not_finished() -> None:
    first, size = header_bytes_of(VAE_16)
    found = identify(first, size, name="ae.safetensors", beside=["ae.safetensors.aria2", "other"])
    assert (found.kind, found.family) == ("partial", "vae-16")
    assert identify(first, size, name="ae.safetensors", beside=["other.aria2"]).kind == "safetensors"


@pytest.mark.parametrize("name", ["x.safetensors", "partial.safetensors", "my.part.safetensors", "departed"])
def test_an_ordinary_name_says_nothing(name: str) -> None:
    assert identify_table(VAE_16) == identify(*header_bytes_of(VAE_16), name=name)
