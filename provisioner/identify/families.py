"""Which model a set of tensors belongs to: rules as data, and the function that applies them.

A rule is a kind of model, recognised by tensors it has (some of a given width) and tensors it lacks.  The first rule
whose marks are all present is the answer, so special rules come before general ones.  Widths are those that
quantising does not change: rows of a matrix, never its columns.

Sources, read 2026-11-23; a rule names the one it follows:
[detect]  ComfyUI, `comfy/model_detection.py` at 0b61ce5b
[text]    ComfyUI, `detect_te_model` of `comfy/sd.py` at 033046cc
[vae]     ComfyUI, class VAE of `comfy/sd.py` at a125cd84
[control] ComfyUI, `load_controlnet_state_dict` of `comfy/controlnet.py` at a125cd84
[models]  ComfyUI, `comfy/supported_models.py` at a125cd84
[gguf]    city96/ComfyUI-GGUF, `tools/convert.py` at 795e4515
[flux2]   the tensor tables of tests/contract/data/headers and tests/unit/data/headers
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from provisioner.core.models import Role
from provisioner.identify.safetensors_header import Tensor

Layout = Literal["comfyui", "diffusers"]


class Mark(NamedTuple):
    """A tensor that must be present, under one of its names, with these dimensions where they are given."""

    names: tuple[str, ...]
    first: int | None = None
    second: int | None = None


class Family(NamedTuple):
    """A kind of model."""

    id: str
    role: Role
    title: str
    marks: tuple[Mark, ...]
    lacks: tuple[str, ...] = ()
    layout: Layout | None = None


class Match(NamedTuple):
    """The rule that matched, and the tensors it matched, under the model's own names."""

    family: Family
    tensors: Mapping[str, Tensor]


def _has(*names: str, first: int | None = None, second: int | None = None) -> Mark:
    return Mark(names, first, second)


def _norm(stem: str) -> Mark:
    """Return the mark of a norm: newer writers call its tensor "weight", older ones "scale"."""
    return Mark((f"{stem}.scale", f"{stem}.weight"))


# Prefixes of a model's own names, where several models or a training tool's wrapper share a file.  [detect], [models]
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "first_stage_model.", "vae.", "net.")
# Together with a diffusion model these make a file a checkpoint.  [models]: `vae_key_prefix`, `text_encoder_key_prefix`
_COMPANIONS = frozenset({"first_stage_model", "vae", "text_encoders", "cond_stage_model", "conditioner"})

# Six times the hidden size, the rows of FLUX.2's shared modulation.  [flux2]; of [dev] 48 heads of 128: [detect]
_FLUX2_WIDTHS = (
    (18432, "flux2-klein-4b", "the FLUX.2 [klein] 4B transformer"),
    (24576, "flux2-klein-9b", "the FLUX.2 [klein] 9B transformer"),
    (36864, "flux2-dev", "the FLUX.2 [dev] transformer"),
    (None, "flux2", "a FLUX.2 transformer of unknown width"),
)
_FLUX2_NAMES: tuple[tuple[str, str, Layout], ...] = (
    ("double_stream_modulation_img.lin.weight", "", "comfyui"),
    ("double_stream_modulation_img.linear.weight", " in diffusers' layout", "diffusers"),
)
_FLUX2: tuple[Family, ...] = tuple(
    Family(id_, "diffusion_model", title + words, (_has(name, first=rows),), layout=layout)
    for name, words, layout in _FLUX2_NAMES
    for rows, id_, title in _FLUX2_WIDTHS
)
# A later part of the diffusers transformer has no modulation; it has nine times the hidden size instead.  [flux2]
_FLUX2_PARTS: tuple[Family, ...] = tuple(
    Family(
        id_,
        "diffusion_model",
        f"{title} in diffusers' layout",
        (_has("single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight", first=rows and rows * 3 // 2),),
        layout="diffusers",
    )
    for rows, id_, title in _FLUX2_WIDTHS
)

_FLUX_KEY_NORM = _norm("double_blocks.0.img_attn.norm.key_norm")
_FLUX_GUIDANCE = _has("guidance_in.in_layer.weight")
_CHROMA = Mark(
    tuple(f"distilled_guidance_layer.{middle}norms.0.{end}" for middle in ("", "0.") for end in ("scale", "weight"))
)
_FLUX1: tuple[Family, ...] = (
    # [detect]
    Family(
        "chroma-radiance", "diffusion_model", "a Chroma Radiance transformer", (_CHROMA, _norm("nerf_blocks.0.norm"))
    ),
    Family("chroma", "diffusion_model", "a Chroma transformer", (_CHROMA, _FLUX_KEY_NORM)),
    # [detect], `yak_mlp`
    Family(
        "ovis-image",
        "diffusion_model",
        "an Ovis-Image transformer",
        (_FLUX_KEY_NORM, _has("double_blocks.0.img_mlp.gate_proj.weight")),
    ),
    # [detect]: the text is 3584 wide, and there is no pooled vector
    Family(
        "longcat-image",
        "diffusion_model",
        "a LongCat-Image transformer",
        (_FLUX_KEY_NORM, _has("txt_in.weight", second=3584)),
        lacks=("vector_in.in_layer.weight",),
    ),
    # [models], FluxInpaint: 96 channels in patches of 2 x 2
    Family(
        "flux1-fill",
        "diffusion_model",
        "a FLUX.1 Fill [dev] transformer",
        (_FLUX_KEY_NORM, _has("img_in.weight", second=384)),
        layout="comfyui",
    ),
    Family(
        "flux1-dev",
        "diffusion_model",
        "a FLUX.1 [dev] transformer",
        (_FLUX_KEY_NORM, _has("img_in.weight"), _FLUX_GUIDANCE),
        layout="comfyui",
    ),
    Family(
        "flux1-schnell",
        "diffusion_model",
        "a FLUX.1 [schnell] transformer",
        (_FLUX_KEY_NORM, _has("img_in.weight")),
        layout="comfyui",
    ),
    # [gguf], ModelFlux; the guidance as diffusers' conversion names it
    Family(
        "flux1-dev",
        "diffusion_model",
        "a FLUX.1 [dev] transformer in diffusers' layout",
        (
            _has("transformer_blocks.0.attn.norm_added_k.weight"),
            _has("single_transformer_blocks.0.norm.linear.weight", first=9216),
            _has("time_text_embed.guidance_embedder.linear_1.weight"),
        ),
        layout="diffusers",
    ),
    Family(
        "flux1-schnell",
        "diffusion_model",
        "a FLUX.1 [schnell] transformer in diffusers' layout",
        (
            _has("transformer_blocks.0.attn.norm_added_k.weight"),
            _has("single_transformer_blocks.0.norm.linear.weight", first=9216),
        ),
        layout="diffusers",
    ),
)

# Where a UNet's first attention layer is; its width is that of the text the UNet reads.
_UNET_CONTEXTS: tuple[tuple[str, str, str, Layout], ...] = (
    ("input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "", "comfyui"),
    (
        "conv_in.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        " in diffusers' layout",
        "diffusers",
    ),
)
# [detect] up to Qwen-Image; the UNets after [models] (`context_dim`, `adm_in_channels`) and [gguf]
_OTHER_DIFFUSION: tuple[Family, ...] = (
    Family(
        "sd3",
        "diffusion_model",
        "a Stable Diffusion 3 transformer",
        (_has("joint_blocks.0.context_block.attn.qkv.weight"),),
        layout="comfyui",
    ),
    Family(
        "sd3",
        "diffusion_model",
        "a Stable Diffusion 3 transformer in diffusers' layout",
        (_has("transformer_blocks.0.attn.add_q_proj.weight"), _has("pos_embed.proj.weight")),
        layout="diffusers",
    ),
    Family("stable-cascade", "diffusion_model", "a Stable Cascade model", (_has("clf.1.weight"),)),
    Family(
        "auraflow",
        "diffusion_model",
        "an AuraFlow transformer",
        (_has("double_layers.0.attn.w1q.weight"),),
        layout="comfyui",
    ),
    Family(
        "auraflow",
        "diffusion_model",
        "an AuraFlow transformer in diffusers' layout",
        (_has("joint_transformer_blocks.0.attn.add_k_proj.weight"),),
        layout="diffusers",
    ),
    Family("hunyuan-dit", "diffusion_model", "a Hunyuan-DiT transformer", (_has("mlp_t5.0.weight"),)),
    Family(
        "hunyuan-video",
        "diffusion_model",
        "a HunyuanVideo transformer",
        (_has("txt_in.individual_token_refiner.blocks.0.norm1.weight"),),
    ),
    Family("mochi", "diffusion_model", "a Mochi transformer", (_has("t5_yproj.weight"),)),
    Family(
        "pixart",
        "diffusion_model",
        "a PixArt transformer",
        (_has("adaln_single.emb.timestep_embedder.linear_1.bias"), _has("pos_embed.proj.bias")),
        layout="diffusers",
    ),
    Family(
        "ltx-2",
        "diffusion_model",
        "an LTX-2 transformer",
        (
            _has("adaln_single.emb.timestep_embedder.linear_1.bias"),
            _has("audio_adaln_single.linear.weight"),
        ),
    ),
    Family(
        "ltx",
        "diffusion_model",
        "an LTX-Video transformer",
        (_has("adaln_single.emb.timestep_embedder.linear_1.bias"),),
    ),
    Family("ace-step", "diffusion_model", "an ACE-Step model", (_has("genre_embedder.weight"),)),
    Family("pixart", "diffusion_model", "a PixArt transformer", (_has("t_block.1.weight"),), layout="comfyui"),
    Family(
        "cosmos",
        "diffusion_model",
        "a Cosmos transformer",
        (_has("blocks.block0.blocks.0.block.attn.to_q.0.weight"),),
    ),
    Family(
        "z-image",
        "diffusion_model",
        "a Z-Image transformer",
        (_has("cap_embedder.1.weight", first=3840), _has("noise_refiner.0.attention.k_norm.weight")),
        layout="comfyui",
    ),
    Family(
        "lumina2",
        "diffusion_model",
        "a Lumina 2 transformer",
        (_has("cap_embedder.1.weight", first=2304), _has("noise_refiner.0.attention.k_norm.weight")),
        layout="comfyui",
    ),
    Family("cogvideox", "diffusion_model", "a CogVideoX transformer", (_has("blocks.0.norm1.linear.weight"),)),
    Family(
        "wan-vace",
        "diffusion_model",
        "a Wan VACE transformer",
        (_has("head.modulation"), _has("vace_patch_embedding.weight")),
    ),
    Family("wan", "diffusion_model", "a Wan transformer", (_has("head.modulation"),)),
    Family("hunyuan3d", "diffusion_model", "a Hunyuan3D model", (_has("latent_in.weight"), _has("cond_in.weight"))),
    Family(
        "hidream",
        "diffusion_model",
        "a HiDream transformer",
        (_has("caption_projection.0.linear.weight"),),
    ),
    Family(
        "anima",
        "diffusion_model",
        "an Anima transformer",
        (_has("blocks.0.mlp.layer1.weight"), _has("llm_adapter.blocks.0.cross_attn.q_proj.weight")),
    ),
    Family("cosmos", "diffusion_model", "a Cosmos Predict2 transformer", (_has("blocks.0.mlp.layer1.weight"),)),
    Family(
        "omnigen2",
        "diffusion_model",
        "an OmniGen2 transformer",
        (_has("time_caption_embed.timestep_embedder.linear_1.bias"),),
    ),
    Family(
        "qwen-image",
        "diffusion_model",
        "a Qwen-Image transformer",
        (_has("txt_norm.weight"), _has("img_in.weight")),
    ),
    Family(
        "sdxl-refiner",
        "diffusion_model",
        "a Stable Diffusion XL refiner UNet",
        (_has("input_blocks.0.0.weight"), _has("label_emb.0.0.weight", second=2560)),
        layout="comfyui",
    ),
    Family(
        "sdxl",
        "diffusion_model",
        "a Stable Diffusion XL UNet",
        (_has("input_blocks.0.0.weight"), _has("label_emb.0.0.weight", second=2816)),
        layout="comfyui",
    ),
    Family(
        "sdxl",
        "diffusion_model",
        "a Stable Diffusion XL UNet in diffusers' layout",
        (_has("conv_in.weight"), _has("add_embedding.linear_1.weight", second=2816)),
        layout="diffusers",
    ),
    *(
        Family(id_, "diffusion_model", title + words, (_has(start), _has(context, second=width)), layout=layout)
        for start, context, words, layout in _UNET_CONTEXTS
        for width, id_, title in (
            (768, "sd1", "a Stable Diffusion 1 UNet"),
            (1024, "sd2", "a Stable Diffusion 2 UNet"),
        )
    ),
    Family("sd", "diffusion_model", "a Stable Diffusion UNet of unknown kind", (_has("input_blocks.0.0.weight"),)),
)

# [control]
_CONTROL: tuple[Family, ...] = (
    Family("hunyuan-dit", "controlnet", "a ControlNet for Hunyuan-DiT", (_has("after_proj_list.18.bias"),)),
    Family("sd", "controlnet", "a control LoRA for Stable Diffusion", (_has("lora_controlnet"),)),
    Family(
        "sd",
        "controlnet",
        "a ControlNet for Stable Diffusion in diffusers' layout",
        (_has("controlnet_cond_embedding.conv_in.weight"),),
        layout="diffusers",
    ),
    Family("flux1", "controlnet", "a ControlNet for FLUX.1", (_has("controlnet_blocks.0.weight"), _FLUX_KEY_NORM)),
    Family(
        "sd3",
        "controlnet",
        "a ControlNet for Stable Diffusion 3",
        (_has("controlnet_blocks.0.weight"), _has("pos_embed_input.proj.weight")),
    ),
    Family(
        "qwen-image",
        "controlnet",
        "a ControlNet for Qwen-Image",
        (_has("controlnet_blocks.0.weight"), _has("transformer_blocks.0.img_mlp.net.0.proj.weight")),
    ),
    Family(
        "flux1",
        "controlnet",
        "a ControlNet for FLUX.1",
        (_has("controlnet_blocks.0.weight"), _has("controlnet_x_embedder.weight")),
    ),
    Family("flux1", "controlnet", "a ControlNet for FLUX.1", (_has("controlnet_blocks.0.linear.weight"),)),
    Family(
        "sd",
        "controlnet",
        "a ControlNet for Stable Diffusion",
        (_has("zero_convs.0.0.weight", "control_model.zero_convs.0.0.weight"),),
    ),
)

_LAYER = "model.layers.0"
_LAYER_NORM = f"{_LAYER}.post_attention_layernorm.weight"
_T5 = "encoder.block.23.layer.1.DenseReluDense"


def _encoder(id_: str, title: str, *marks: Mark, lacks: tuple[str, ...] = ()) -> Family:
    return Family(id_, "text_encoder", f"{title} text encoder", marks, lacks)


# [text]; Qwen3-14B after its config.json (hidden_size 5120), because ComfyUI does not use it
_ENCODERS: tuple[Family, ...] = (
    _encoder("clip-g", "a CLIP-G", _has("text_model.encoder.layers.30.mlp.fc1.weight")),
    _encoder("clip-h", "a CLIP-H", _has("text_model.encoder.layers.22.mlp.fc1.weight")),
    _encoder("clip-l", "a CLIP-L", _has("text_model.encoder.layers.0.mlp.fc1.weight")),
    _encoder("t5-xxl", "a T5-XXL", _has(f"{_T5}.wi_1.weight", first=10240)),
    _encoder("t5-xl", "a T5-XL", _has(f"{_T5}.wi_1.weight", first=5120)),
    _encoder("t5-xxl", "a T5-XXL (first version)", _has(f"{_T5}.wi.weight")),
    _encoder("byt5-small", "a ByT5-small", _has("encoder.block.0.layer.0.SelfAttention.k.weight", first=384)),
    _encoder("t5-base", "a T5-base", _has("encoder.block.0.layer.0.SelfAttention.k.weight")),
    _encoder(
        "gemma3-12b",
        "a Gemma 3 12B",
        _has(f"{_LAYER}.post_feedforward_layernorm.weight"),
        _has("model.layers.47.self_attn.q_norm.weight"),
    ),
    _encoder(
        "gemma3-4b",
        "a Gemma 3 4B",
        _has(f"{_LAYER}.post_feedforward_layernorm.weight"),
        _has(f"{_LAYER}.self_attn.q_norm.weight"),
    ),
    _encoder("gemma2-2b", "a Gemma 2 2B", _has(f"{_LAYER}.post_feedforward_layernorm.weight")),
    _encoder("qwen25-3b", "a Qwen2.5-3B (Qwen2.5-VL)", _has(f"{_LAYER}.self_attn.k_proj.bias", first=256)),
    _encoder("qwen25-7b", "a Qwen2.5-7B (Qwen2.5-VL)", _has(f"{_LAYER}.self_attn.k_proj.bias", first=512)),
    *(
        _encoder(
            f"qwen3-{size}",
            f"a Qwen3-{size.upper()}",
            _has(_LAYER_NORM, first=width),
            _has(f"{_LAYER}.self_attn.q_norm.weight"),
        )
        for width, size in ((1024, "0.6b"), (2048, "1.7b"), (2560, "4b"), (4096, "8b"), (5120, "14b"))
    ),
    _encoder(
        "mistral-small",
        "a Mistral Small",
        _has(_LAYER_NORM, first=5120),
        _has("model.layers.39.post_attention_layernorm.weight"),
    ),
    _encoder(
        "mistral-small-pruned",
        "a Mistral Small (cut short for FLUX.2 [dev])",
        _has(_LAYER_NORM, first=5120),
        lacks=(f"{_LAYER}.self_attn.q_norm.weight",),
    ),
    _encoder(
        "ministral-3b",
        "a Ministral 3B",
        _has(_LAYER_NORM, first=3072),
        lacks=(f"{_LAYER}.self_attn.q_norm.weight",),
    ),
    _encoder(
        "llama3-8b",
        "a Llama 3 8B",
        _has(_LAYER_NORM, first=4096),
        lacks=(f"{_LAYER}.self_attn.q_norm.weight",),
    ),
)


def _vae(id_: str, title: str, *marks: Mark, layout: Layout | None = None) -> Family:
    return Family(id_, "vae", title, marks, layout=layout)


# How the two layouts of an image VAE differ.  [vae]: "diffusers format"
_VAE_LAYOUTS: tuple[tuple[Mark, str, Layout], ...] = (
    (_has("decoder.up.0.block.0.norm1.weight", "decoder.up.0.block.0.conv1.weight"), " in BFL's names", "comfyui"),
    (
        _has("decoder.up_blocks.0.resnets.0.norm1.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"),
        " in diffusers' names",
        "diffusers",
    ),
)
_VAES: tuple[Family, ...] = (
    # [flux2]: channels of the decoder's last convolution; the batch norm is what ComfyUI looks for
    *(
        _vae(
            id_,
            title + words,
            _has("bn.running_mean"),
            _has("decoder.conv_out.weight", second=width),
            mark,
            layout=layout,
        )
        for mark, words, layout in _VAE_LAYOUTS
        for width, id_, title in (
            (128, "flux2-vae", "the FLUX.2 VAE"),
            (96, "flux2-vae-small", "the FLUX.2 VAE with small decoder"),
        )
    ),
    _vae(
        "flux2-vae-other",
        "a FLUX.2 VAE of unknown width",
        _has("bn.running_mean"),
        _has("decoder.conv_in.weight"),
    ),
    # [vae]
    _vae("taesd", "a tiny preview VAE (TAESD)", _has("taesd_decoder.1.weight")),
    *(
        _vae(id_, title + words, _has("decoder.conv_in.weight", second=channels), mark, layout=layout)
        for mark, words, layout in (*_VAE_LAYOUTS, (_has("decoder.conv_in.weight"), "", None))
        for channels, id_, title in (
            (16, "vae-16", "a VAE of 16 channels, as FLUX.1 and Stable Diffusion 3 use it"),
            (4, "vae-4", "a VAE of 4 channels, as Stable Diffusion 1 and XL use it"),
            (32, "vae-32", "a VAE of 32 channels, as HunyuanImage uses it"),
            (64, "vae-64", "a VAE of 64 channels, as HunyuanImage 2.1 uses it"),
        )
    ),
    _vae("mochi-vae", "the Mochi VAE", _has("decoder.blocks.2.blocks.3.stack.5.weight")),
    _vae("ltx-vae", "an LTX-Video VAE", _has("decoder.up_blocks.0.res_blocks.0.conv1.conv.weight")),
    _vae("hunyuan-video-vae", "a HunyuanVideo VAE", _has("decoder.conv_in.conv.weight")),
    _vae(
        "wan22-vae",
        "the Wan 2.2 VAE (48 channels)",
        _has("decoder.middle.0.residual.0.gamma"),
        _has("decoder.upsamples.0.upsamples.0.residual.2.weight"),
    ),
    _vae(
        "wan21-vae",
        "the Wan 2.1 VAE (16 channels), which Qwen-Image uses, too",
        _has("decoder.middle.0.residual.0.gamma"),
    ),
)

FAMILIES: tuple[Family, ...] = (*_CONTROL, *_FLUX2, *_FLUX1, *_OTHER_DIFFUSION, *_ENCODERS, *_VAES)
CHECKPOINT = Family("checkpoint", "checkpoint", "a checkpoint: several models in one file", ())


def family_of(tensors: Mapping[str, Tensor]) -> Match | None:
    """Return the first rule that matches a file's tensors; for a checkpoint, the rule of its diffusion model."""
    tops = {name.partition(".")[0] for name in tensors}
    views = [
        (prefix, _behind(tensors, prefix)) for prefix in PREFIXES if not prefix or prefix.partition(".")[0] in tops
    ]
    is_checkpoint = not tops.isdisjoint(_COMPANIONS) and any(
        prefix.endswith("diffusion_model.") and view for prefix, view in views
    )
    if is_checkpoint:
        views = [(prefix, view) for prefix, view in views if prefix.endswith("diffusion_model.")]
    found = _first(view for _, view in views)
    if not is_checkpoint:
        return found or _first([_behind(tensors, "model.")])  # [detect]: "aura flow and others"
    if found is None:
        return Match(CHECKPOINT, tensors)
    inside = found.family
    return Match(inside._replace(role="checkpoint", title=f"{CHECKPOINT.title}, with {inside.title}"), found.tensors)


def family_of_part(tensors: Mapping[str, Tensor]) -> Match | None:
    """Return the family of one part of a model in several files, whose layers need not begin at 0."""
    numbered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        steps = name.split(".")
        place = next((at for at, step in enumerate(steps) if step.isdecimal()), None)
        if place is not None:
            steps[place] = "0"
        numbered.setdefault(".".join(steps), tensor)
    found = family_of(numbered)
    if found is None:
        found = next((Match(each, numbered) for each in _FLUX2_PARTS if _belongs(numbered, each)), None)
    return found and Match(found.family, tensors)


def _first(views: Iterable[Mapping[str, Tensor]]) -> Match | None:
    filled = [view for view in views if view]
    return next((Match(each, view) for each in FAMILIES for view in filled if _belongs(view, each)), None)


def _behind(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    if not prefix:
        return tensors
    start = len(prefix)
    return {name[start:]: each for name, each in tensors.items() if name.startswith(prefix)}


def _belongs(tensors: Mapping[str, Tensor], family: Family) -> bool:
    return all(_is_there(tensors, mark) for mark in family.marks) and not any(name in tensors for name in family.lacks)


def _is_there(tensors: Mapping[str, Tensor], mark: Mark) -> bool:
    for name in mark.names:
        tensor = tensors.get(name)
        if tensor is not None and _fits(tensor.shape, mark):
            return True
    return False


def _fits(shape: tuple[int, ...], mark: Mark) -> bool:
    """Return whether the tensor has the dimensions that the mark names."""
    return (mark.first is None or shape[:1] == (mark.first,)) and (mark.second is None or shape[1:2] == (mark.second,))
