"""True headers of published model files, made from their architecture: names, dtypes, shapes, metadata and size.

Every table here gives the published number of bytes of its file (tests/unit/data/headers/published.json, which says
where the figures come from), so names, dtypes and shapes are right in number and length.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

DATA = Path(__file__).parents[1] / "unit" / "data" / "headers"
CONTRACT = Path(__file__).parents[1] / "contract" / "data" / "headers"
Table = Mapping[str, tuple[str, list[int]]]

BITS = {"I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8}
"""Bits of one element, in the order in which the safetensors library lays dtypes out."""


def recorded(name: str) -> Table:
    """Read one of the tensor tables of tests/contract/data/headers."""
    tensors: Table = json.loads((CONTRACT / f"{name}.json").read_text(encoding="utf-8"))
    return tensors


def header_bytes_of(tensors: Table, metadata: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """Return the first bytes of a safetensors file in the order given, and its size; no payload is made."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + position


def in_file_order(tensors: Table) -> Table:
    """Return `tensors` as the safetensors library writes them: by dtype, then by name."""
    rank = list(BITS)
    return dict(sorted(tensors.items(), key=lambda item: (rank.index(item[1][0]), item[0])))


def quantisation_metadata(stems: Iterable[str], format_: str) -> dict[str, str]:
    """Return the metadata by which a quantised file says so."""
    layers = {stem: {"format": format_} for stem in stems}
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


# --- FLUX.2 ------------------------------------------------------------------------------------------


def flux2(hidden: int, context: int, double: int, single: int) -> Table:
    """Return a FLUX.2 transformer in BFL's names, BF16."""
    shapes: dict[str, list[int]] = {
        "img_in.weight": [hidden, 128],
        "txt_in.weight": [hidden, context],
        "time_in.in_layer.weight": [hidden, 256],
        "time_in.out_layer.weight": [hidden, hidden],
        "double_stream_modulation_img.lin.weight": [6 * hidden, hidden],
        "double_stream_modulation_txt.lin.weight": [6 * hidden, hidden],
        "single_stream_modulation.lin.weight": [3 * hidden, hidden],
        "final_layer.adaLN_modulation.1.weight": [2 * hidden, hidden],
        "final_layer.linear.weight": [128, hidden],
    }
    for block in range(double):
        for side in ("img", "txt"):
            stem = f"double_blocks.{block}.{side}"
            shapes |= {
                f"{stem}_attn.qkv.weight": [3 * hidden, hidden],
                f"{stem}_attn.proj.weight": [hidden, hidden],
                f"{stem}_attn.norm.query_norm.scale": [128],
                f"{stem}_attn.norm.key_norm.scale": [128],
                f"{stem}_mlp.0.weight": [6 * hidden, hidden],
                f"{stem}_mlp.2.weight": [hidden, 3 * hidden],
            }
    for block in range(single):
        stem = f"single_blocks.{block}"
        shapes |= {
            f"{stem}.linear1.weight": [9 * hidden, hidden],
            f"{stem}.linear2.weight": [hidden, 4 * hidden],
            f"{stem}.norm.query_norm.scale": [128],
            f"{stem}.norm.key_norm.scale": [128],
        }
    return {name: ("BF16", shape) for name, shape in shapes.items()}


def klein_4b() -> Table:
    return flux2(3072, 7680, 5, 20)


def klein_9b() -> Table:
    return flux2(4096, 12288, 8, 24)


def quantised(tensors: Table, format_: str, *, kept: str = "(?!)") -> tuple[Table, dict[str, str]]:
    """Return a transformer with the matrices of its blocks in FP8 or NVFP4, but those whose names fit `kept`."""
    result: dict[str, tuple[str, list[int]]] = {}
    stems = []
    for name, (dtype, shape) in tensors.items():
        stem = name.removesuffix(".weight")
        if len(shape) != 2 or not re.match(r"(double|single)_blocks\.", name) or re.fullmatch(kept, stem):
            result[name] = (dtype, shape)
            continue
        stems.append(stem)
        rows, columns = shape
        if format_ == "nvfp4":
            result[name] = ("U8", [rows, columns // 2])
            result[f"{stem}.weight_scale"] = ("F8_E4M3", [rows, columns // 16])
            result[f"{stem}.weight_scale_2"] = ("F32", [])
        else:
            result[name] = ("F8_E4M3", shape)
            result[f"{stem}.weight_scale"] = ("F32", [])
        result[f"{stem}.input_scale"] = ("F32", [])
    return result, quantisation_metadata(stems, format_)


def klein_4b_diffusers() -> Table:
    """Return the 4B transformer in diffusers' names: q, k and v apart."""
    h = 3072
    shapes: dict[str, list[int]] = {
        "x_embedder.weight": [h, 128],
        "context_embedder.weight": [h, 7680],
        "time_guidance_embed.timestep_embedder.linear_1.weight": [h, 256],
        "time_guidance_embed.timestep_embedder.linear_2.weight": [h, h],
        "double_stream_modulation_img.linear.weight": [6 * h, h],
        "double_stream_modulation_txt.linear.weight": [6 * h, h],
        "single_stream_modulation.linear.weight": [3 * h, h],
        "norm_out.linear.weight": [2 * h, h],
        "proj_out.weight": [128, h],
    }
    for block in range(5):
        attn = f"transformer_blocks.{block}.attn"
        matrices = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        shapes |= {f"{attn}.{name}.weight": [h, h] for name in matrices}
        shapes |= {f"{attn}.{name}.weight": [128] for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")}
        for side in ("ff", "ff_context"):
            shapes[f"transformer_blocks.{block}.{side}.linear_in.weight"] = [6 * h, h]
            shapes[f"transformer_blocks.{block}.{side}.linear_out.weight"] = [h, 3 * h]
    for block in range(20):
        attn = f"single_transformer_blocks.{block}.attn"
        shapes[f"{attn}.to_qkv_mlp_proj.weight"] = [9 * h, h]
        shapes[f"{attn}.to_out.weight"] = [h, 4 * h]
        shapes |= {f"{attn}.{name}.weight": [128] for name in ("norm_q", "norm_k")}
    return {name: ("BF16", shape) for name, shape in shapes.items()}


# --- text encoders and VAEs --------------------------------------------------------------------------


def qwen3(hidden: int, inner: int, heads: int, *, layers: int = 36, has_head: bool = False) -> Table:
    """Return a Qwen3 text encoder, BF16."""
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [151936, hidden], "model.norm.weight": [hidden]}
    if has_head:
        shapes["lm_head.weight"] = [151936, hidden]
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        shapes |= {
            f"{stem}.input_layernorm.weight": [hidden],
            f"{stem}.post_attention_layernorm.weight": [hidden],
            f"{stem}.mlp.gate_proj.weight": [inner, hidden],
            f"{stem}.mlp.up_proj.weight": [inner, hidden],
            f"{stem}.mlp.down_proj.weight": [hidden, inner],
            f"{stem}.self_attn.q_norm.weight": [128],
            f"{stem}.self_attn.k_norm.weight": [128],
            f"{stem}.self_attn.q_proj.weight": [heads * 128, hidden],
            f"{stem}.self_attn.k_proj.weight": [1024, hidden],
            f"{stem}.self_attn.v_proj.weight": [1024, hidden],
            f"{stem}.self_attn.o_proj.weight": [hidden, heads * 128],
        }
    return {name: ("BF16", shape) for name, shape in shapes.items()}


def qwen3_4b() -> Table:
    return qwen3(2560, 9728, 32)


def qwen3_8b() -> Table:
    return qwen3(4096, 12288, 32, has_head=True)


def qwen3_vl(text: Table, width: int, *, eyes: int, inner: int, depth: int, prefix: str = "model.visual.") -> Table:
    """Return a Qwen3-VL: a Qwen3 and its eyes, with the names and widths of ComfyUI 0.33.0's `Qwen3VLVisionModel`.

    Not recorded from a file: the order and number of the tensors are those of the code.
    """
    shapes: dict[str, list[int]] = {
        "patch_embed.proj.weight": [eyes, 3, 2, 16, 16],
        "patch_embed.proj.bias": [eyes],
        "pos_embed.weight": [2304, eyes],
    }
    for block in range(depth):
        stem = f"blocks.{block}"
        for layer, (rows, columns) in {
            "attn.qkv": (3 * eyes, eyes),
            "attn.proj": (eyes, eyes),
            "mlp.linear_fc1": (inner, eyes),
            "mlp.linear_fc2": (eyes, inner),
        }.items():
            shapes |= {f"{stem}.{layer}.weight": [rows, columns], f"{stem}.{layer}.bias": [rows]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{stem}.{norm}.weight": [eyes], f"{stem}.{norm}.bias": [eyes]}
    for stem, norm_width in (("merger", eyes), *((f"deepstack_merger_list.{at}", 4 * eyes) for at in range(3))):
        for layer, rows, columns in (("linear_fc1", 4 * eyes, 4 * eyes), ("linear_fc2", width, 4 * eyes)):
            shapes |= {f"{stem}.{layer}.weight": [rows, columns], f"{stem}.{layer}.bias": [rows]}
        shapes |= {f"{stem}.norm.weight": [norm_width], f"{stem}.norm.bias": [norm_width]}
    return {**text, **{prefix + name: ("BF16", shape) for name, shape in shapes.items()}}


def qwen3_vl_4b() -> Table:
    return qwen3_vl(qwen3_4b(), 2560, eyes=1024, inner=4096, depth=24)


def qwen3_vl_8b() -> Table:
    return qwen3_vl(qwen3_8b(), 4096, eyes=1152, inner=4304, depth=27)


def flux2_vae_bfl() -> Table:
    """Return the FLUX.2 VAE in BFL's names; the recorded table has the two convolutions at its waist without stem."""
    stems = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    return {
        ".".join((stems.get(name.partition(".")[0], name.partition(".")[0]), name.partition(".")[2])): entry
        for name, entry in recorded("flux2-vae").items()
    }


def small_decoder() -> Table:
    """Return the FLUX.2 VAE in BFL's names with the decoder at three quarters of its width."""
    return {
        name: (dtype, [size * 3 // 4 if name.startswith("decoder.") and size % 128 == 0 else size for size in shape])
        for name, (dtype, shape) in flux2_vae_bfl().items()
    }


def published() -> list[tuple[str, Table, dict[str, str] | None]]:
    """Return name, tensors and metadata of every published file whose header is known."""
    keeps_proj = r"double_blocks\.0\.(img|txt)_attn\.proj"
    keeps_qkv = r"double_blocks\.0\.(img|txt)_attn\.qkv"
    tables: list[tuple[str, Table, dict[str, str] | None]] = [
        ("flux-2-klein-4b", klein_4b(), None),
        ("flux-2-klein-4b-fp8", *quantised(klein_4b(), "float8_e4m3fn")),
        ("flux-2-klein-base-4b-fp8", *quantised(klein_4b(), "float8_e4m3fn", kept=keeps_proj)),
        ("flux-2-klein-4b-nvfp4", *quantised(klein_4b(), "nvfp4")),
        ("flux-2-klein-base-4b-nvfp4", *quantised(klein_4b(), "nvfp4", kept=keeps_proj)),
        ("flux-2-klein-4b-diffusers", klein_4b_diffusers(), {"format": "pt"}),
        ("flux-2-klein-9b", klein_9b(), None),
        ("flux-2-klein-9b-fp8", *quantised(klein_9b(), "float8_e4m3fn")),
        ("flux-2-klein-9b-nvfp4", *quantised(klein_9b(), "nvfp4", kept=keeps_qkv)),
        ("qwen_3_4b", qwen3_4b(), None),
        ("qwen_3_8b", qwen3_8b(), None),
        ("flux2-vae-ldm", flux2_vae_bfl(), None),
        ("full_encoder_small_decoder", small_decoder(), None),
    ]
    return [(name, in_file_order(tensors), metadata) for name, tensors, metadata in tables]
