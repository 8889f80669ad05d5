"""What a diffusion model is used with, as a table: its text encoders and its VAE.

A new model is a row here, and the rows in `family_table` by which its files are known.

Sources: the three of FLUX.2, Comfy-Org/docs and ComfyUI's templates, read 2026-11-23; the others, ComfyUI 0.33.0
(783545f6), `clip_target` and `latent_format` of `comfy/supported_models.py`, and the templates of
comfyui-workflow-templates-json 0.1.123, read 2026-11-27.  A header does not tell the VAE of Stable Diffusion XL from
that of 1, nor that of Stable Diffusion 3 from that of FLUX.1: these pairs are one family each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Partners(NamedTuple):
    """What a diffusion model is used with."""

    title: str  # "FLUX.2 [klein] 4B"
    encoders: tuple[str, ...] = ()  # families, all of which it needs; "a|b": one of two.  Empty: none, or not known
    vaes: tuple[str, ...] = ()  # families, any of which.  Empty: as above
    vae_file: str | None = None  # the official one
    text: tuple[int, int] | None = None  # widths of its text layer: of the text it reads, and its own
    channels: int | None = None  # of what its VAE decodes


_FLUX2_VAES = ("flux2-vae", "flux2-vae-small", "flux2-vae-other")
_FLUX1 = (("clip-l", "t5-xxl"), ("vae-16",), "ae.safetensors")
_QWEN_VAE = (("wan21-vae",), "qwen_image_vae.safetensors")
_WAN = (("umt5-xxl",), ("wan21-vae",), "wan_2.1_vae.safetensors")

PARTNERS: Mapping[str, Partners] = {
    "flux2-klein-4b": Partners(
        "FLUX.2 [klein] 4B", ("qwen3-4b",), _FLUX2_VAES, "flux2-vae.safetensors", (7680, 3072), 128
    ),
    "flux2-klein-9b": Partners(
        "FLUX.2 [klein] 9B", ("qwen3-8b",), _FLUX2_VAES, "flux2-vae.safetensors", (12288, 4096), 128
    ),
    "flux2-dev": Partners(
        "FLUX.2 [dev]",
        ("mistral-small|mistral-small-pruned",),
        _FLUX2_VAES,
        "flux2-vae.safetensors",
        (15360, 6144),
        128,
    ),
    "flux2": Partners("FLUX.2", (), _FLUX2_VAES, "flux2-vae.safetensors", None, 128),
    "flux1-dev": Partners("FLUX.1 [dev]", *_FLUX1),
    "flux1-schnell": Partners("FLUX.1 [schnell]", *_FLUX1),
    "flux1-fill": Partners("FLUX.1 Fill [dev]", *_FLUX1),
    "chroma": Partners("Chroma", ("t5-xxl",), *_FLUX1[1:]),
    "chroma-radiance": Partners("Chroma Radiance", ("t5-xxl",)),
    "z-image": Partners("Z-Image", ("qwen3-4b",), *_FLUX1[1:]),
    "z-image-pixel": Partners("Z-Image (pixel space)", ("qwen3-4b",)),
    "lumina2": Partners("Lumina 2", ("gemma2-2b",), *_FLUX1[1:]),
    "newbie": Partners("NewBie", ("gemma3-4b", "jina-clip-2"), *_FLUX1[1:]),
    "hidream": Partners("HiDream", ("clip-l", "clip-g", "t5-xxl", "llama3-8b"), *_FLUX1[1:]),
    "omnigen2": Partners("OmniGen2", ("qwen25-3b",), *_FLUX1[1:]),
    "boogu": Partners("Boogu-Image", ("qwen3vl-8b",), *_FLUX1[1:]),
    "longcat-image": Partners("LongCat-Image", ("qwen25-7b",), *_FLUX1[1:]),
    "ovis-image": Partners("Ovis-Image", ("qwen3-1.7b",), *_FLUX1[1:]),
    "kandinsky5-image": Partners("Kandinsky 5 (images)", ("clip-l", "qwen25-7b"), *_FLUX1[1:]),
    "sd3": Partners("Stable Diffusion 3", ("clip-l", "clip-g", "t5-xxl"), ("vae-16",)),
    "qwen-image": Partners("Qwen-Image", ("qwen25-7b",), *_QWEN_VAE),
    "krea2": Partners("Krea 2", ("qwen3vl-4b",), *_QWEN_VAE),
    "joyimage": Partners("JoyImage", ("qwen3vl-8b",), ("wan21-vae",)),
    "anima": Partners("Anima", ("qwen3-0.6b",), *_QWEN_VAE),
    "cosmos-predict2": Partners("Cosmos Predict2", ("t5-xxl-1.0",), *_WAN[1:]),
    "wan": Partners("Wan", *_WAN),
    "wan-vace": Partners("Wan VACE", *_WAN),
    "wan22-5b": Partners("Wan 2.2 5B", ("umt5-xxl",), ("wan22-vae",), "wan2.2_vae.safetensors"),
    "cosmos": Partners("Cosmos", ("t5-xxl-1.0",), ("cosmos-vae",)),
    "mage-flow": Partners("Mage-Flow", ("qwen3vl-4b",), ("mage-vae",)),
    "ideogram4": Partners("Ideogram 4", ("qwen3vl-8b|qwen3-8b",), _FLUX2_VAES, "flux2-vae.safetensors"),
    "ernie-image": Partners("ERNIE-Image", ("ministral-3b",), _FLUX2_VAES, "flux2-vae.safetensors"),
    "lens": Partners("Lens", ("gpt-oss-20b",), _FLUX2_VAES, "flux2-vae.safetensors"),
    "hunyuan-video": Partners("HunyuanVideo", ("clip-l", "llama3-8b"), ("hunyuan-video-vae",)),
    "hunyuan-video-1.5": Partners("HunyuanVideo 1.5", ("qwen25-7b", "byt5-small"), ("hunyuan-video-1.5-vae",)),
    "hunyuan-image": Partners("HunyuanImage 2.1", ("qwen25-7b", "byt5-small"), ("vae-64", "hunyuan-video-1.5-vae")),
    "kandinsky5": Partners("Kandinsky 5 (video)", ("clip-l", "qwen25-7b"), ("hunyuan-video-vae",)),
    "minimax-h3": Partners("MiniMax H3", ("qwen3vl-32b",)),
    "mochi": Partners("Mochi", ("t5-xxl",), ("mochi-vae",)),
    "ltx": Partners("LTX-Video", ("t5-xxl",), ("ltx-vae",)),
    "ltx-2": Partners("LTX-2", ("gemma3-12b|gemma4-12b",), ("ltx-vae",)),
    "cogvideox": Partners("CogVideoX", ("t5-xxl",), ("cogvideox-vae",)),
    "auraflow": Partners("AuraFlow", ("t5-xl",), ("vae-4",)),
    "pixart": Partners("PixArt", ("t5-xxl",), ("vae-4",)),
    "sdxl": Partners("Stable Diffusion XL", ("clip-l", "clip-g"), ("vae-4",)),
    "sdxl-refiner": Partners("the Stable Diffusion XL refiner", ("clip-g",), ("vae-4",)),
    "sd1": Partners("Stable Diffusion 1", ("clip-l",), ("vae-4",)),
    "sd2": Partners("Stable Diffusion 2", ("clip-h",), ("vae-4",)),
}

FLUX2_TEXT_WIDTHS: Mapping[str, int] = {
    "qwen3-4b": 7680,
    "qwen3vl-4b": 7680,
    "qwen3-8b": 12288,
    "qwen3vl-8b": 12288,
    "qwen3-0.6b": 1024,
    "mistral-small": 15360,
    "mistral-small-pruned": 15360,
}
"""Width of the text that an encoder gives when it is loaded for FLUX.2.

Three layers for those of [klein] and for Mistral, one layer for any other (measured with Qwen3-0.6B).  A Qwen3-VL is
loaded as the Qwen3 of its size, and what it sees with is left unused (ComfyUI 0.33.0, `load_text_encoder_state_dicts`).
"""
