#!/usr/bin/env python3
"""Print the tensors of a model family's files as JSON, as ComfyUI's own classes name and shape them.

    TREE/.venv/bin/python scripts/family_shapes.py TREE FAMILY [--small]

Runs in ComfyUI's own Python, reads TREE (ComfyUI 0.33.0), and needs no model: all is built without memory ("meta").
The answer is ``{file name: {tensor: [dtype, shape]}}``, the names those of the shipped manifest.  With ``--small`` a
transformer has a block or two; text encoders and VAEs keep their shapes, which ComfyUI does not read from the file.
`scripts/family_images.py` starts it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Tensors = dict[str, "list[object]"]
NAMES = {"torch.bfloat16": "BF16", "torch.float32": "F32", "torch.int64": "I64"}

tree = Path(sys.argv[1]).resolve()
family, is_small = sys.argv[2], "--small" in sys.argv
sys.path.insert(0, str(tree))
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # type: ignore[import-not-found]  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.clip_model  # type: ignore[import-not-found]  # noqa: E402
import comfy.ldm.flux.model  # type: ignore[import-not-found]  # noqa: E402
import comfy.ldm.lumina.model  # type: ignore[import-not-found]  # noqa: E402
import comfy.ldm.models.autoencoder  # type: ignore[import-not-found]  # noqa: E402
import comfy.ldm.modules.diffusionmodules.openaimodel  # type: ignore[import-not-found]  # noqa: E402
import comfy.ldm.qwen_image.model  # type: ignore[import-not-found]  # noqa: E402
import comfy.ldm.wan.vae  # type: ignore[import-not-found]  # noqa: E402
import comfy.ops  # type: ignore[import-not-found]  # noqa: E402
import comfy.text_encoders.llama  # type: ignore[import-not-found]  # noqa: E402
import comfy.text_encoders.t5  # type: ignore[import-not-found]  # noqa: E402
import torch  # type: ignore[import-not-found]  # noqa: E402

HERE: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16, "operations": comfy.ops.disable_weight_init}


def tensors_of(model: Any, dtype: str | None = None, *, prefix: str = "") -> Tensors:  # noqa: ANN401 - torch is not typed here
    """Return names, dtypes and shapes of a model's state; `dtype` instead of its own."""
    return {
        prefix + name: [dtype or NAMES[str(each.dtype)], list(each.shape)]
        for name, each in model.state_dict().items()
        if each is not None
    }


def config(name: str) -> dict[str, Any]:
    """Return a configuration that ComfyUI ships."""
    found: dict[str, Any] = json.loads((tree / "comfy" / name).read_text(encoding="utf-8"))
    return found


# --- parts ------------------------------------------------------------------------------------------


def autoencoder(channels: int, dtype: str, *, prefix: str = "", is_legacy: bool = False) -> Tensors:
    """Return the VAE of Stable Diffusion and FLUX.1."""
    sizes = {"resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    ddconfig = {**sizes, "double_z": True, "z_channels": channels, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        model = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=ddconfig, embed_dim=channels)
    found = tensors_of(model, dtype, prefix=prefix)
    return found if is_legacy else {name: each for name, each in found.items() if "quant_conv" not in name}


def clip_l() -> Tensors:
    """Return CLIP-L without the projection, which the files of FLUX.1 lack."""
    found = tensors_of(comfy.clip_model.CLIPTextModel(config("sd1_clip_config.json"), **HERE))
    return {name: each for name, each in found.items() if "text_projection" not in name}


def t5xxl() -> Tensors:
    """Return the encoder of T5 XXL."""
    return tensors_of(comfy.text_encoders.t5.T5(config("text_encoders/t5_config_xxl.json"), **HERE))


# --- families ---------------------------------------------------------------------------------------


def z_image_turbo() -> Iterator[tuple[str, Tensors]]:
    """Z-Image-Turbo: the sizes that ComfyUI's detection knows for a width of 3840."""
    transformer = comfy.ldm.lumina.model.NextDiT(
        patch_size=2,
        in_channels=16,
        dim=3840,
        cap_feat_dim=2560,
        n_layers=2 if is_small else 30,
        qk_norm=True,
        n_heads=30,
        n_kv_heads=30,
        axes_dims=[32, 48, 48],
        axes_lens=[1536, 512, 512],
        rope_theta=256.0,
        ffn_dim_multiplier=8.0 / 3.0,
        z_image_modulation=True,
        time_scale=1000.0,
        pad_tokens_multiple=32,
        **HERE,
    )
    yield "z_image_turbo_bf16.safetensors", tensors_of(transformer)
    yield "qwen_3_4b.safetensors", tensors_of(comfy.text_encoders.llama.Qwen3_4B({}, **HERE))
    yield "ae.safetensors", autoencoder(16, "F32")


def qwen_image() -> Iterator[tuple[str, Tensors]]:
    """Qwen-Image: 60 blocks; the published transformer and encoder are FP8, the stand-ins BF16."""
    layers = 1 if is_small else 60
    transformer = comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(num_layers=layers, **HERE)
    yield "qwen_image_fp8_e4m3fn.safetensors", tensors_of(transformer)
    yield "qwen_2.5_vl_7b_fp8_scaled.safetensors", tensors_of(comfy.text_encoders.llama.Qwen25_7BVLI({}, **HERE))
    with torch.device("meta"):
        downs = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
        vae = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, **downs)
    yield "qwen_image_vae.safetensors", tensors_of(vae, "BF16")


def flux1_schnell() -> Iterator[tuple[str, Tensors]]:
    """FLUX.1 [schnell]; ComfyUI reads the transformer's width from the file."""
    width, double, single = (256, 1, 2) if is_small else (3072, 19, 38)
    transformer = comfy.ldm.flux.model.Flux(
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=width,
        mlp_ratio=4.0,
        num_heads=width // 128,
        depth=double,
        depth_single_blocks=single,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=False,
        txt_ids_dims=[],
        **HERE,
    )
    yield "flux1-schnell.safetensors", tensors_of(transformer)
    yield "clip_l.safetensors", clip_l()
    yield "t5xxl_fp16.safetensors", t5xxl()
    yield "ae.safetensors", autoencoder(16, "F32")


def sdxl() -> Iterator[tuple[str, Tensors]]:
    """Stable Diffusion XL in one file; of its second text encoder one tensor, the rest is zero."""
    model = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[2, 2, 2],
        channel_mult=[1, 2, 4],
        transformer_depth=[0, 0, 2, 2, 10, 10],
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        transformer_depth_middle=10,
        use_linear_in_transformer=True,
        use_spatial_transformer=True,
        context_dim=2048,
        adm_in_channels=2816,
        num_classes="sequential",
        num_head_channels=64,
        legacy=False,
        **HERE,
    )
    encoder = {f"conditioner.embedders.0.transformer.{name}": each for name, each in clip_l().items()}
    yield (
        "sd_xl_base_1.0.safetensors",
        {
            **tensors_of(model, "BF16", prefix="model.diffusion_model."),
            **encoder,
            "conditioner.embedders.1.model.ln_final.weight": ["BF16", [1280]],
            **autoencoder(4, "BF16", prefix="first_stage_model.", is_legacy=True),
        },
    )


FAMILIES: Mapping[str, Callable[[], Iterator[tuple[str, Tensors]]]] = {
    "z-image-turbo": z_image_turbo,
    "qwen-image": qwen_image,
    "flux1-schnell": flux1_schnell,
    "sdxl": sdxl,
}

if __name__ == "__main__":
    json.dump(dict(FAMILIES[family]()), sys.stdout)
