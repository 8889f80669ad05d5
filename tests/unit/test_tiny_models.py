"""The small models are true safetensors files with the published names; their tables are those of the publishers."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from typing import Any

import pytest
import safetensors

from provisioner.core.models import BLOCK_SIZE
from provisioner.rehearsal.other_model import other_model
from provisioner.rehearsal.tiny_models import (
    Tensor,
    load_table,
    safetensors_file,
    safetensors_header,
    shrunk,
    small_comfyui_files,
)
from provisioner.rehearsal.tiny_pipeline import TransformerSize, small_diffusers_repository, transformer_tensors
from provisioner.workflow.model_files import model_files
from provisioner.workflow.read_workflow import read_workflow

TABLES = {"diffusion_model": "flux-2-klein-4b-fp8", "text_encoder": "qwen_3_4b", "vae": "flux2-vae"}


def opened(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the safetensors library reads in a file: dtype, shape and values by name."""
    rows: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    return {name: (each["dtype"], tuple(each["shape"]), bytes(each["data"])) for name, each in rows}


def metadata_of(data: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", data[:8])
    found: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return found


def schema_sha256(tensors: tuple[Tensor, ...]) -> str:
    rows = sorted((tensor.name, (tensor.dtype, tensor.shape)) for tensor in tensors)
    return hashlib.sha256("\n".join(f"{name}:{row}" for name, row in rows).encode()).hexdigest()


# --- tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("flux-2-klein-4b-fp8", {"F8_E4M3": 80, "BF16": 69, "F32": 160}),
        ("qwen_3_4b", {"BF16": 398}),
        ("flux2-vae", {"F32": 250, "I64": 1}),
    ],
)
def test_a_table_at_full_size_gives_the_published_file(name: str, dtypes: dict[str, int]) -> None:
    table = load_table(name)
    header = safetensors_header(table.tensors, table.metadata)
    assert Counter(tensor.dtype for tensor in table.tensors) == dtypes
    assert len(header) - 8 == table.header_bytes
    assert len(header) + sum(tensor.size for tensor in table.tensors) == table.size
    assert schema_sha256(table.tensors) == table.schema_sha256


def test_the_sizes_are_those_of_the_default_set() -> None:
    assert sum(load_table(name).size for name in TABLES.values()) == 12_451_820_124


def test_the_pipeline_transformer_at_full_size_has_the_published_size() -> None:
    full = TransformerSize(in_channels=128, heads=24, head_dim=128, double_blocks=5, single_blocks=20, context=7680)
    tensors = transformer_tensors(full)
    header = safetensors_header(tensors, {"format": "pt"})
    assert (len(tensors), len(header) - 8) == (169, 20_584)
    assert len(header) + sum(tensor.size for tensor in tensors) == 7_751_109_744


@pytest.mark.parametrize("divisor", [128, 16, 1])
def test_dividing_keeps_every_ratio(divisor: int) -> None:
    shapes = {tensor.name: tensor.shape for tensor in shrunk(load_table("flux-2-klein-4b-fp8").tensors, divisor)}
    hidden = 3072 // divisor
    assert shapes["double_blocks.0.img_attn.qkv.weight"] == (3 * hidden, hidden)
    assert shapes["single_blocks.19.linear1.weight"] == (9 * hidden, hidden)
    assert shapes["double_blocks.4.txt_attn.norm.key_norm.scale"] == (128 // divisor,)
    assert shapes["double_blocks.0.img_attn.qkv.weight_scale"] == ()


# --- files -------------------------------------------------------------------------------------


def test_the_library_opens_every_file_and_finds_the_published_names() -> None:
    files = small_comfyui_files()
    assert [(file.role, file.folder, file.name) for file in files] == [
        ("diffusion_model", "diffusion_models", "flux-2-klein-4b-fp8.safetensors"),
        ("text_encoder", "text_encoders", "qwen_3_4b.safetensors"),
        ("vae", "vae", "flux2-vae.safetensors"),
    ]
    for file in files:
        table = load_table(TABLES[file.role])
        assert {name: dtype for name, (dtype, _, _) in opened(file.data).items()} == {
            tensor.name: tensor.dtype for tensor in table.tensors
        }
        assert metadata_of(file.data) == table.metadata
        assert 100_000 < len(file.data) < 2_000_000


def test_the_diffusion_model_says_which_layers_are_quantised() -> None:
    model = small_comfyui_files()[0]
    said = json.loads(metadata_of(model.data)["_quantization_metadata"])
    weights = {name.removesuffix(".weight") for name, (dtype, _, _) in opened(model.data).items() if dtype == "F8_E4M3"}
    assert said["format_version"] == "1.0"
    assert said["layers"] == {stem: {"format": "float8_e4m3fn"} for stem in weights}


def test_every_value_is_finite() -> None:
    for file in small_comfyui_files(seed=3):
        for name, (dtype, _, data) in opened(file.data).items():
            if dtype == "F8_E4M3":
                assert not {0x7F, 0xFF} & set(data), name  # its NaN; it has no infinity
            elif dtype == "BF16":
                assert {byte & 0x7F for byte in data[1::2]} <= {0x3C, 0x3F}, name
            elif dtype == "F32":
                assert all(abs(value) <= 1 for (value,) in struct.iter_unpack("<f", data)), name


def test_scales_and_norms_are_neutral_and_weights_are_not() -> None:
    tensors = opened(small_comfyui_files()[0].data)
    assert tensors["double_blocks.0.img_attn.qkv.weight_scale"][2] == struct.pack("<f", 1.0)
    assert set(tensors["double_blocks.0.img_attn.norm.key_norm.scale"][2]) == {0x80, 0x3F}
    assert len(set(tensors["double_blocks.0.img_attn.qkv.weight"][2])) > 50


def test_the_seed_decides_the_bytes_and_nothing_else_does() -> None:
    first, again, other = (small_comfyui_files(seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [len(file.data) for file in first] == [len(file.data) for file in other]
    assert all(a.data != b.data for a, b in zip(first, other, strict=True))
    digest = hashlib.sha256(first[0].data).hexdigest()
    assert digest == "7e0f3a2b44409ae27116a59ea3f0d9e6e8cd8499f30f81925c7d8c242f14a164"  # on every platform and Python


def test_the_text_encoder_grows_to_the_size_asked_for() -> None:
    encoder = small_comfyui_files(scale_bytes=48_000_000)[1]
    assert abs(len(encoder.data) - 48_000_000) < 100_000
    assert len(encoder.data) > 2 * BLOCK_SIZE
    tensors = opened(encoder.data)
    assert {name for name in tensors} == {tensor.name for tensor in load_table("qwen_3_4b").tensors}
    assert tensors["model.layers.0.mlp.up_proj.weight"][1] == (9728 // 16, 2560 // 16)


def test_a_files_tensors_lie_in_the_order_of_the_format() -> None:
    data = safetensors_file([Tensor("b", "BF16", (2, 3)), Tensor("a", "F32", ()), Tensor("a1", "BF16", (1,))])
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert {name: row["data_offsets"] for name, row in header.items()} == {"a": [0, 4], "a1": [4, 6], "b": [6, 18]}
    assert (len(data) - 18) % 8 == 0


# --- the pipeline repository -------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository() -> dict[str, bytes]:
    return small_diffusers_repository(seed=4)


def config(repository: dict[str, bytes], path: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(repository[path])
    return parsed


def test_the_repository_has_the_files_of_the_published_one(repository: dict[str, bytes]) -> None:
    assert set(repository) == {
        "LICENSE.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/generation_config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "tokenizer/added_tokens.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert sum(map(len, repository.values())) < 2_000_000
    assert small_diffusers_repository(seed=4) == repository


def test_the_shards_hold_what_the_index_says(repository: dict[str, bytes]) -> None:
    index = config(repository, "text_encoder/model.safetensors.index.json")
    held = {
        name: shard
        for shard in set(index["weight_map"].values())
        for name in opened(repository[f"text_encoder/{shard}"])
    }
    assert held == index["weight_map"]
    payload = sum(
        len(data) for shard in set(held.values()) for _, _, data in opened(repository[f"text_encoder/{shard}"]).values()
    )
    assert payload == index["metadata"]["total_size"]
    assert "lm_head.weight" not in held


def test_shapes_and_configurations_agree(repository: dict[str, bytes]) -> None:
    transformer = config(repository, "transformer/config.json")
    vae = config(repository, "vae/config.json")
    encoder = config(repository, "text_encoder/config.json")
    hidden = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    weights = opened(repository["transformer/diffusion_pytorch_model.safetensors"])
    decoder = opened(repository["vae/diffusion_pytorch_model.safetensors"])
    first = opened(repository["text_encoder/model-00001-of-00002.safetensors"])
    assert weights["x_embedder.weight"][1] == (hidden, transformer["in_channels"])
    assert weights["context_embedder.weight"][1] == (hidden, transformer["joint_attention_dim"])
    assert sum(transformer["axes_dims_rope"]) == transformer["attention_head_dim"]
    assert transformer["joint_attention_dim"] == 3 * encoder["hidden_size"]  # states of three layers side by side
    assert transformer["in_channels"] == vae["latent_channels"] * 4  # patches of 2 x 2
    assert decoder["bn.running_mean"][1] == (transformer["in_channels"],)
    assert decoder["encoder.conv_in.weight"][1] == (vae["block_out_channels"][0], 3, 3, 3)
    assert all(channels % vae["norm_num_groups"] == 0 for channels in vae["block_out_channels"])
    assert {name.split(".")[1] for name in weights if name.startswith("transformer_blocks")} == {"0"}
    assert first["model.embed_tokens.weight"][1] == (encoder["vocab_size"], encoder["hidden_size"])
    assert encoder["num_hidden_layers"] > 27  # the pipeline reads the state after layer 27


def test_the_tokenizer_knows_every_byte_and_nothing_beyond_the_embedding(repository: dict[str, bytes]) -> None:
    tokenizer = config(repository, "tokenizer/tokenizer.json")
    plain, special = tokenizer["model"]["vocab"], config(repository, "tokenizer/added_tokens.json")
    assert plain == config(repository, "tokenizer/vocab.json")
    assert len([token for token in plain if len(token) == 1]) == 256
    assert all("".join(pair) in plain for pair in tokenizer["model"]["merges"])
    numbers = sorted([*plain.values(), *special.values()])
    assert numbers == list(range(config(repository, "text_encoder/config.json")["vocab_size"]))
    assert {each["content"]: each["id"] for each in tokenizer["added_tokens"]} == special
    assert config(repository, "text_encoder/config.json")["eos_token_id"] == special["<|im_end|>"]


def test_the_pipeline_is_the_distilled_klein(repository: dict[str, bytes]) -> None:
    index = config(repository, "model_index.json")
    assert (index["_class_name"], index["is_distilled"]) == ("Flux2KleinPipeline", True)
    assert set(index) - {"_class_name", "_diffusers_version", "is_distilled"} == {
        path.split("/")[0] for path in repository if "/" in path
    }


# --- the second model of the rehearsal ----------------------------------------------------------------


def test_the_workflow_of_the_second_model_names_its_files_which_are_true_ones() -> None:
    other = other_model("model07")
    named = model_files(read_workflow(other.workflow, name="x"))
    assert {(each.folder, each.name, each.urls) for each in named} == {
        (file.folder, file.name, (f"https://huggingface.co/model07/model07/resolve/main/{place}",))
        for file, place in zip(other.files, other.published, strict=True)
    }
    assert all(each.why_off is None for each in named)
    model, encoder, vae = (opened(each.data) for each in other.files)
    assert {"joint_blocks.1.context_block.attn.qkv.weight", "final_layer.linear.weight"} <= set(model)
    assert encoder["text_model.encoder.layers.11.mlp.fc1.weight"][1] == (48, 12)  # 3072 x 768 in a whole one
    assert "taesd_decoder.1.weight" in vae
