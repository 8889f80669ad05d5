"""The kinds of model, as a table: of each the tensors it is known by, and what it is called.

A row's marks are tensors: ``name`` has to be there, ``name[18432]`` with so many rows, ``name[,384]`` with so many
columns, ``a|b`` under one of two names, and ``!name`` must not be there.  The first row whose marks all hold is the
answer, so special rows come before general ones.  Widths are those that quantising does not change: rows of a matrix,
and its columns only where nothing else tells.

A new model is a row here, and one in `partners` for what it is used with.

Sources, read 2026-11-23 and, for the rows marked [0.33], on 2026-11-27; a row follows the one that is named above it:
[detect]  ComfyUI, `comfy/model_detection.py` at 0b61ce5b
[text]    ComfyUI, `detect_te_model` of `comfy/sd.py` at 033046cc
[vae]     ComfyUI, class VAE of `comfy/sd.py` at a125cd84
[control] ComfyUI, `load_controlnet_state_dict` of `comfy/controlnet.py` at a125cd84
[models]  ComfyUI, `comfy/supported_models.py` at a125cd84
[0.33]    ComfyUI 0.33.0 (783545f6), the same files
[gguf]    city96/ComfyUI-GGUF, `tools/convert.py` at 795e4515
[flux2]   the tensor tables of tests/contract/data/headers and tests/unit/data/headers
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from provisioner.core.models import Role

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
    title: str  # "a Qwen3-4B text encoder"
    marks: tuple[Mark, ...] = ()
    lacks: tuple[str, ...] = ()
    layout: Layout | None = None
    name: str = ""  # of an encoder or a VAE, "Qwen3-4B"


def _mark(text: str) -> Mark:
    names, _, sizes = text.rstrip("]").partition("[")
    first, _, second = sizes.partition(",")
    return Mark(tuple(names.split("|")), int(first) if first else None, int(second) if second else None)


def _row(role: Role, id_: str, title: str, marks: tuple[str, ...], layout: Layout | None, name: str = "") -> Family:
    lacks = tuple(each[1:] for each in marks if each.startswith("!"))
    return Family(id_, role, title, tuple(_mark(each) for each in marks if each[0] != "!"), lacks, layout, name)


def _model(id_: str, title: str, *marks: str, layout: Layout | None = None) -> Family:
    return _row("diffusion_model", id_, title, marks, layout)


def _diffusers(id_: str, title: str, *marks: str) -> Family:
    return _row("diffusion_model", id_, f"{title} in diffusers' layout", marks, "diffusers")


def _control(id_: str, title: str, *marks: str, layout: Layout | None = None) -> Family:
    return _row("controlnet", id_, title, marks, layout)


def _encoder(id_: str, name: str, *marks: str) -> Family:
    return _row("text_encoder", id_, f"a {name} text encoder", marks, None, name)


def _vae(id_: str, name: str, title: str, *marks: str, layout: Layout | None = None) -> Family:
    return _row("vae", id_, title, marks, layout, name)


# --- ControlNets [control] -------------------------------------------------------------------------

_FLUX_KEY_NORM = "double_blocks.0.img_attn.norm.key_norm.scale|double_blocks.0.img_attn.norm.key_norm.weight"
_CONTROL: tuple[Family, ...] = (
    _control("hunyuan-dit", "a ControlNet for Hunyuan-DiT", "after_proj_list.18.bias"),
    _control("sd", "a control LoRA for Stable Diffusion", "lora_controlnet"),
    _control(
        "sd",
        "a ControlNet for Stable Diffusion in diffusers' layout",
        "controlnet_cond_embedding.conv_in.weight",
        layout="diffusers",
    ),
    _control("flux1", "a ControlNet for FLUX.1", "controlnet_blocks.0.weight", _FLUX_KEY_NORM),
    _control("sd3", "a ControlNet for Stable Diffusion 3", "controlnet_blocks.0.weight", "pos_embed_input.proj.weight"),
    _control(
        "qwen-image",
        "a ControlNet for Qwen-Image",
        "controlnet_blocks.0.weight",
        "transformer_blocks.0.img_mlp.net.0.proj.weight",
    ),
    _control("flux1", "a ControlNet for FLUX.1", "controlnet_blocks.0.weight", "controlnet_x_embedder.weight"),
    _control("flux1", "a ControlNet for FLUX.1", "controlnet_blocks.0.linear.weight"),
    _control("sd", "a ControlNet for Stable Diffusion", "zero_convs.0.0.weight|control_model.zero_convs.0.0.weight"),
)

# --- diffusion models ------------------------------------------------------------------------------

# Six times the hidden size, the rows of FLUX.2's shared modulation.  [flux2]; of [dev] 48 heads of 128: [detect]
_FLUX2_WIDTHS = (
    (18432, "flux2-klein-4b", "the FLUX.2 [klein] 4B transformer"),
    (24576, "flux2-klein-9b", "the FLUX.2 [klein] 9B transformer"),
    (36864, "flux2-dev", "the FLUX.2 [dev] transformer"),
    (None, "flux2", "a FLUX.2 transformer of unknown width"),
)
_FLUX2: tuple[Family, ...] = (
    *(
        _model(id_, title, f"double_stream_modulation_img.lin.weight[{rows or ''}]", layout="comfyui")
        for rows, id_, title in _FLUX2_WIDTHS
    ),
    *(
        _diffusers(id_, title, f"double_stream_modulation_img.linear.weight[{rows or ''}]")
        for rows, id_, title in _FLUX2_WIDTHS
    ),
)
FLUX2_PARTS: tuple[Family, ...] = tuple(
    _diffusers(id_, title, f"single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight[{rows * 3 // 2 if rows else ''}]")
    for rows, id_, title in _FLUX2_WIDTHS
)
"""A later part of the diffusers transformer, which has no modulation, but nine times the hidden size.  [flux2]"""

_CHROMA = "|".join(
    f"distilled_guidance_layer.{middle}norms.0.{end}" for middle in ("", "0.") for end in ("scale", "weight")
)
_FLUX1: tuple[Family, ...] = (
    # [detect]
    _model(
        "chroma-radiance",
        "a Chroma Radiance transformer",
        _CHROMA,
        "nerf_blocks.0.norm.scale|nerf_blocks.0.norm.weight",
    ),
    _model("chroma", "a Chroma transformer", _CHROMA, _FLUX_KEY_NORM),
    # [detect], `yak_mlp`
    _model("ovis-image", "an Ovis-Image transformer", _FLUX_KEY_NORM, "double_blocks.0.img_mlp.gate_proj.weight"),
    # [detect]: the text is 3584 wide, and there is no pooled vector
    _model(
        "longcat-image",
        "a LongCat-Image transformer",
        _FLUX_KEY_NORM,
        "txt_in.weight[,3584]",
        "!vector_in.in_layer.weight",
    ),
    # [models], FluxInpaint: 96 channels in patches of 2 x 2
    _model("flux1-fill", "a FLUX.1 Fill [dev] transformer", _FLUX_KEY_NORM, "img_in.weight[,384]", layout="comfyui"),
    _model(
        "flux1-dev",
        "a FLUX.1 [dev] transformer",
        _FLUX_KEY_NORM,
        "img_in.weight",
        "guidance_in.in_layer.weight",
        layout="comfyui",
    ),
    _model("flux1-schnell", "a FLUX.1 [schnell] transformer", _FLUX_KEY_NORM, "img_in.weight", layout="comfyui"),
    # [gguf], ModelFlux; the guidance as diffusers' conversion names it
    _diffusers(
        "flux1-dev",
        "a FLUX.1 [dev] transformer",
        "transformer_blocks.0.attn.norm_added_k.weight",
        "single_transformer_blocks.0.norm.linear.weight[9216]",
        "time_text_embed.guidance_embedder.linear_1.weight",
    ),
    _diffusers(
        "flux1-schnell",
        "a FLUX.1 [schnell] transformer",
        "transformer_blocks.0.attn.norm_added_k.weight",
        "single_transformer_blocks.0.norm.linear.weight[9216]",
    ),
)

_HUNYUAN = "txt_in.individual_token_refiner.blocks.0.norm1.weight"
_LUMINA = "noise_refiner.0.attention.k_norm.weight"
_TIMESTEP = "adaln_single.emb.timestep_embedder.linear_1.bias"
_UNET, _UNET_TEXT = "input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_UNET_OF_DIFFUSERS = ("conv_in.weight", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight")
# [detect] up to Qwen-Image, [0.33] where it says so; the UNets: [models] (`context_dim`, `adm_in_channels`), [gguf]
_OTHER_DIFFUSION: tuple[Family, ...] = (
    _model("sd3", "a Stable Diffusion 3 transformer", "joint_blocks.0.context_block.attn.qkv.weight", layout="comfyui"),
    _diffusers(
        "sd3",
        "a Stable Diffusion 3 transformer",
        "transformer_blocks.0.attn.add_q_proj.weight",
        "pos_embed.proj.weight",
    ),
    _model("stable-cascade", "a Stable Cascade model", "clf.1.weight"),
    # [0.33]
    _model(
        "stable-audio-3",
        "a Stable Audio 3 model",
        "transformer.rotary_pos_emb.inv_freq",
        "transformer.global_cond_embedder.0.weight",
    ),
    _model("stable-audio", "a Stable Audio model", "transformer.rotary_pos_emb.inv_freq"),
    _model("auraflow", "an AuraFlow transformer", "double_layers.0.attn.w1q.weight", layout="comfyui"),
    _diffusers("auraflow", "an AuraFlow transformer", "joint_transformer_blocks.0.attn.add_k_proj.weight"),
    _model("hunyuan-dit", "a Hunyuan-DiT transformer", "mlp_t5.0.weight"),
    # [0.33]: 1.5 reads vision features, which are 1152 wide; HunyuanImage has no pooled vector
    _model("hunyuan-video-1.5", "a HunyuanVideo 1.5 transformer", _HUNYUAN, "vision_in.proj.0.weight[1152]"),
    _model("hunyuan-video", "a HunyuanVideo transformer", _HUNYUAN, "vector_in.in_layer.weight"),
    _model("hunyuan-image", "a HunyuanImage 2.1 transformer", _HUNYUAN),
    _model("mochi", "a Mochi transformer", "t5_yproj.weight"),
    _model("pixart", "a PixArt transformer", _TIMESTEP, "pos_embed.proj.bias", layout="diffusers"),
    _model("minimax-h3", "a MiniMax H3 transformer", "video_patch_proj.weight", "audio_patch_proj.weight"),  # [0.33]
    _model("ltx-2", "an LTX-2 transformer", _TIMESTEP, "audio_adaln_single.linear.weight"),
    _model("ltx", "an LTX-Video transformer", _TIMESTEP),
    _model("ace-step", "an ACE-Step model", "genre_embedder.weight"),
    _model("ace-step-1.5", "an ACE-Step 1.5 model", "encoder.lyric_encoder.layers.0.input_layernorm.weight"),  # [0.33]
    _model("pixart", "a PixArt transformer", "t_block.1.weight", layout="comfyui"),
    _model("cosmos", "a Cosmos transformer", "blocks.block0.blocks.0.block.attn.to_q.0.weight"),
    # [0.33]
    _model("pid", "a PiD decoder", "lq_proj.latent_proj.0.weight"),
    _model("pixeldit", "a PixelDiT transformer", "core.pixel_embedder.proj.weight"),
    # [detect]
    _model("z-image-pixel", "a Z-Image transformer for pixels", _LUMINA, "dec_net.cond_embed.weight"),  # [0.33]
    _model("z-image", "a Z-Image transformer", "cap_embedder.1.weight[3840]", _LUMINA, layout="comfyui"),
    _model("newbie", "a NewBie transformer", _LUMINA, "clip_text_pooled_proj.0.weight"),  # [0.33]
    _model("lumina2", "a Lumina 2 transformer", "cap_embedder.1.weight[2304]", _LUMINA, layout="comfyui"),
    _model("cogvideox", "a CogVideoX transformer", "blocks.0.norm1.linear.weight"),
    # [0.33]
    _model("seedvr2", "a SeedVR2 transformer", "blocks.35.mlp.vid.proj_out.weight[3072]"),
    _model("seedvr2", "a SeedVR2 transformer", "blocks.31.mlp.all.proj_in_gate.weight"),
    _model("wan-vace", "a Wan VACE transformer", "head.modulation", "vace_patch_embedding.weight"),
    # [0.33], WAN22_T2V: 48 channels in patches of 2 x 2
    _model("wan22-5b", "a Wan 2.2 5B transformer", "head.modulation", "head.head.weight[192]"),
    _model("wan", "a Wan transformer", "head.modulation"),
    _model("hunyuan3d", "a Hunyuan3D model", "latent_in.weight", "cond_in.weight"),
    # [0.33]
    _model("hunyuan3d-2.1", "a Hunyuan3D 2.1 model", "t_embedder.mlp.2.weight", "blocks.0.attn1.k_norm.weight"),
    _model("hidream-o1", "a HiDream-O1 transformer", "t_embedder1.mlp.0.weight", "x_embedder.proj1.weight"),
    _model("hidream", "a HiDream transformer", "caption_projection.0.linear.weight"),
    _model(
        "anima", "an Anima transformer", "blocks.0.mlp.layer1.weight", "llm_adapter.blocks.0.cross_attn.q_proj.weight"
    ),
    _model("cosmos-predict2", "a Cosmos Predict2 transformer", "blocks.0.mlp.layer1.weight"),
    # [0.33]
    _model("boogu", "a Boogu-Image transformer", "double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight"),
    _model("omnigen2", "an OmniGen2 transformer", "time_caption_embed.timestep_embedder.linear_1.bias"),
    # [0.33]
    _model(
        "lens",
        "a Lens transformer",
        "transformer_blocks.0.attn.norm_added_q.weight",
        "transformer_blocks.0.img_mlp.w1.weight",
    ),
    _model("mage-flow", "a Mage-Flow transformer", "txt_norm.weight[2560]", "proj_out.weight[128]"),
    _model("qwen-image", "a Qwen-Image transformer", "txt_norm.weight", "img_in.weight"),
    # [0.33]
    _model("ideogram4", "an Ideogram 4 transformer", "embed_image_indicator.weight"),
    _model("krea2", "a Krea 2 transformer", "txtfusion.projector.weight"),
    _model(
        "kandinsky5-image",
        "a Kandinsky 5 image transformer",
        "visual_transformer_blocks.0.cross_attention.key_norm.weight",
        "visual_embeddings.in_layer.weight[2560,64]",
    ),
    _model(
        "kandinsky5",
        "a Kandinsky 5 video transformer",
        "visual_transformer_blocks.0.cross_attention.key_norm.weight",
    ),
    _model(
        "joyimage",
        "a JoyImage transformer",
        "double_blocks.0.attn.img_attn_qkv.weight",
        "condition_embedder.time_embedder.linear_1.weight",
    ),
    _model(
        "sdxl-refiner",
        "a Stable Diffusion XL refiner UNet",
        _UNET,
        "label_emb.0.0.weight[,2560]",
        layout="comfyui",
    ),
    _model("sdxl", "a Stable Diffusion XL UNet", _UNET, "label_emb.0.0.weight[,2816]", layout="comfyui"),
    _diffusers("sdxl", "a Stable Diffusion XL UNet", "conv_in.weight", "add_embedding.linear_1.weight[,2816]"),
    # where a UNet's first attention layer is; its width is that of the text the UNet reads
    *(
        row
        for width, id_, title in (
            (768, "sd1", "a Stable Diffusion 1 UNet"),
            (1024, "sd2", "a Stable Diffusion 2 UNet"),
        )
        for row in (
            _model(id_, title, _UNET, f"{_UNET_TEXT}[,{width}]", layout="comfyui"),
            _diffusers(id_, title, _UNET_OF_DIFFUSERS[0], f"{_UNET_OF_DIFFUSERS[1]}[,{width}]"),
        )
    ),
    _model("sd", "a Stable Diffusion UNet of unknown kind", _UNET),
    # [0.33]; after all others, because the name is one that many models have
    _model("ernie-image", "an ERNIE-Image transformer", "layers.0.mlp.linear_fc2.weight"),
)

# --- text encoders [text], [0.33] ------------------------------------------------------------------

_LAYER = "model.layers.0"
_LAYER_NORM = f"{_LAYER}.post_attention_layernorm.weight"
_Q_NORM = f"{_LAYER}.self_attn.q_norm.weight"
_T5 = "encoder.block.23.layer.1.DenseReluDense"
_GEMMA = f"{_LAYER}.post_feedforward_layernorm.weight"
# A Qwen3-VL has the layers of a Qwen3 beside its eyes; DeepStack is its own, and the last width is that of its layers.
_EYES = "model.visual.deepstack_merger_list.0.norm.weight|visual.deepstack_merger_list.0.norm.weight"
_EYES_WIDTH = "model.visual.merger.linear_fc2.weight|visual.merger.linear_fc2.weight"
_ENCODERS: tuple[Family, ...] = (
    _encoder("clip-g", "CLIP-G", "text_model.encoder.layers.30.mlp.fc1.weight"),
    _encoder("clip-h", "CLIP-H", "text_model.encoder.layers.22.mlp.fc1.weight"),
    _encoder("clip-l", "CLIP-L", "text_model.encoder.layers.0.mlp.fc1.weight"),
    _encoder("jina-clip-2", "Jina CLIP 2", "model.encoder.layers.0.mixer.Wqkv.weight"),
    # UMT5 has its own vocabulary of 256,384 words (ComfyUI's umt5_config_xxl.json)
    _encoder("umt5-xxl", "UMT5-XXL", f"{_T5}.wi_1.weight[10240]", "shared.weight[256384]"),
    _encoder("t5-xxl", "T5-XXL", f"{_T5}.wi_1.weight[10240]"),
    _encoder("t5-xl", "T5-XL", f"{_T5}.wi_1.weight[5120]"),
    _encoder("t5-xxl-1.0", "T5-XXL (first version)", f"{_T5}.wi.weight"),
    _encoder("byt5-small", "ByT5-small", "encoder.block.0.layer.0.SelfAttention.k.weight[384]"),
    _encoder("t5-base", "T5-base", "encoder.block.0.layer.0.SelfAttention.k.weight"),
    _encoder("t5-gemma", "T5Gemma", "model.encoder.layers.0.pre_self_attn_layernorm.weight"),
    _encoder("gemma4-31b", "Gemma 4 31B", _GEMMA, "model.layers.59.self_attn.q_norm.weight"),
    # every sixth layer of the 12B has no values of its own
    _encoder(
        "gemma4-12b",
        "Gemma 4 12B",
        _GEMMA,
        "model.layers.47.self_attn.q_norm.weight",
        "!model.layers.5.self_attn.v_proj.weight",
    ),
    _encoder("gemma3-12b", "Gemma 3 12B", _GEMMA, "model.layers.47.self_attn.q_norm.weight"),
    _encoder("gemma4-e4b", "Gemma 4 E4B", _GEMMA, "model.layers.41.self_attn.q_norm.weight"),
    _encoder("gemma4-e2b", "Gemma 4 E2B", _GEMMA, "model.layers.34.self_attn.q_norm.weight"),
    _encoder("gemma3-4b", "Gemma 3 4B", _GEMMA, _Q_NORM),
    _encoder("gemma2-2b", "Gemma 2 2B", _GEMMA),
    _encoder("gpt-oss-20b", "GPT-OSS-20B", "layers.0.self_attn.sinks", "layers.0.mlp.experts.gate_up_proj.weight"),
    _encoder("qwen25-3b", "Qwen2.5-3B (Qwen2.5-VL)", f"{_LAYER}.self_attn.k_proj.bias[256]"),
    _encoder("qwen25-7b", "Qwen2.5-7B (Qwen2.5-VL)", f"{_LAYER}.self_attn.k_proj.bias[512]"),
    *(
        _encoder(
            f"qwen35-{size}",
            f"Qwen3.5-{size.upper()}",
            "model.language_model.layers.0.linear_attn.A_log",
            f"model.language_model.layers.0.input_layernorm.weight[{width}]",
        )
        for width, size in ((1024, "0.8b"), (2048, "2b"), (2560, "4b"), (4096, "9b"), (5120, "27b"))
    ),
    *(
        _encoder(f"qwen3vl-{size}", f"Qwen3-VL-{size.upper()}", _EYES, f"{each}[{width}]")
        for width, size in ((2560, "4b"), (4096, "8b"), (5120, "32b"))
        for each in _EYES_WIDTH.split("|")
    ),
    _encoder("qwen3vl", "Qwen3-VL", _EYES),
    # Qwen3-14B after its config.json (hidden_size 5120), because ComfyUI does not use it
    *(
        _encoder(f"qwen3-{size}", f"Qwen3-{size.upper()}", f"{_LAYER_NORM}[{width}]", _Q_NORM)
        for width, size in ((1024, "0.6b"), (2048, "1.7b"), (2560, "4b"), (4096, "8b"), (5120, "14b"))
    ),
    _encoder(
        "mistral-small", "Mistral Small", f"{_LAYER_NORM}[5120]", "model.layers.39.post_attention_layernorm.weight"
    ),
    _encoder(
        "mistral-small-pruned", "Mistral Small (cut short for FLUX.2 [dev])", f"{_LAYER_NORM}[5120]", f"!{_Q_NORM}"
    ),
    _encoder("ministral-3b", "Ministral 3B", f"{_LAYER_NORM}[3072]", f"!{_Q_NORM}"),
    _encoder("llama3-8b", "Llama 3 8B", f"{_LAYER_NORM}[4096]", f"!{_Q_NORM}"),
)

# --- VAEs ------------------------------------------------------------------------------------------

# How the two layouts of an image VAE differ.  [vae]: "diffusers format"
_VAE_LAYOUTS: tuple[tuple[str, str, Layout], ...] = (
    ("decoder.up.0.block.0.norm1.weight|decoder.up.0.block.0.conv1.weight", " in BFL's names", "comfyui"),
    (
        "decoder.up_blocks.0.resnets.0.norm1.weight|decoder.up_blocks.0.resnets.0.conv1.weight",
        " in diffusers' names",
        "diffusers",
    ),
)
_CHANNELS = (
    (16, "vae-16", "VAE of 16 channels", "as FLUX.1 and Stable Diffusion 3 use it"),
    (4, "vae-4", "VAE of 4 channels", "as Stable Diffusion 1 and XL use it"),
    (32, "vae-32", "VAE of 32 channels", "as HunyuanImage uses it"),
    (64, "vae-64", "VAE of 64 channels", "as HunyuanImage 2.1 uses it"),
)
_FLUX2_VAE = "FLUX.2 VAE (32 channels)"
_VAES: tuple[Family, ...] = (
    # [flux2]: channels of the decoder's last convolution; the batch norm is what ComfyUI looks for
    *(
        _vae(
            id_, _FLUX2_VAE, title + words, "bn.running_mean", f"decoder.conv_out.weight[,{width}]", mark, layout=layout
        )
        for mark, words, layout in _VAE_LAYOUTS
        for width, id_, title in (
            (128, "flux2-vae", "the FLUX.2 VAE"),
            (96, "flux2-vae-small", "the FLUX.2 VAE with small decoder"),
        )
    ),
    _vae("flux2-vae-other", _FLUX2_VAE, "a FLUX.2 VAE of unknown width", "bn.running_mean", "decoder.conv_in.weight"),
    # [0.33]
    _vae("mage-vae", "Mage-Flow VAE", "the Mage-Flow VAE", "student.dconv_encoder.proj_out.weight"),
    _vae("ltx-vae", "LTX VAE", "an LTX-2.5 VAE with diffusion decoder", "decoder.conv_in_x_t.weight"),
    _vae("seedvr2-vae", "SeedVR2 VAE", "the SeedVR2 VAE", "decoder.up_blocks.2.upsamplers.0.upscale_conv.weight"),
    # [vae]
    _vae("taesd", "TAESD", "a tiny preview VAE (TAESD)", "taesd_decoder.1.weight"),
    *(
        _vae(id_, name, f"a {name}, {use}{words}", f"decoder.conv_in.weight[,{channels}]", *mark, layout=layout)
        for mark, words, layout in (*(((mark,), words, layout) for mark, words, layout in _VAE_LAYOUTS), ((), "", None))
        for channels, id_, name, use in _CHANNELS
    ),
    _vae("mochi-vae", "Mochi VAE", "the Mochi VAE", "decoder.blocks.2.blocks.3.stack.5.weight"),
    _vae("ltx-vae", "LTX VAE", "an LTX-Video VAE", "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"),
    # [0.33]
    _vae(
        "hunyuan-video-1.5-vae",
        "HunyuanVideo 1.5 VAE",
        "a HunyuanVideo 1.5 or HunyuanImage refiner VAE",
        "decoder.conv_in.conv.weight[,32]",
    ),
    _vae(
        "cogvideox-vae",
        "CogVideoX VAE",
        "the CogVideoX VAE",
        "decoder.conv_in.conv.weight",
        "decoder.mid_block.resnets.0.norm1.norm_layer.weight",
    ),
    _vae("hunyuan-video-vae", "HunyuanVideo VAE", "a HunyuanVideo VAE", "decoder.conv_in.conv.weight"),
    _vae("cosmos-vae", "Cosmos VAE", "the Cosmos VAE", "decoder.unpatcher3d.wavelets"),
    _vae(
        "wan22-vae",
        "Wan 2.2 VAE",
        "the Wan 2.2 VAE (48 channels)",
        "decoder.middle.0.residual.0.gamma",
        "decoder.upsamples.0.upsamples.0.residual.2.weight",
    ),
    _vae(
        "wan21-vae",
        "Wan 2.1 VAE",
        "the Wan 2.1 VAE (16 channels), which Qwen-Image uses, too",
        "decoder.middle.0.residual.0.gamma",
    ),
    # [0.33]
    _vae("stable-audio-vae", "Stable Audio VAE", "a Stable Audio VAE", "decoder.layers.1.layers.0.beta"),
    _vae("hunyuan3d-vae", "Hunyuan3D VAE", "a Hunyuan3D VAE", "geo_decoder.cross_attn_decoder.ln_1.bias"),
    _vae("ace-step-vae", "ACE-Step VAE", "the ACE-Step VAE", "vocoder.backbone.channel_layers.0.0.bias"),
    _vae(
        "ltx-audio-vae",
        "LTX audio VAE",
        "an LTX audio VAE",
        "vocoder.resblocks.0.convs1.0.weight|vocoder.vocoder.resblocks.0.convs1.0.weight",
    ),
    _vae("taehv", "TAEHV", "a tiny preview VAE for video (TAEHV)", "decoder.22.bias"),
)

FAMILIES: tuple[Family, ...] = (*_CONTROL, *_FLUX2, *_FLUX1, *_OTHER_DIFFUSION, *_ENCODERS, *_VAES)
CHECKPOINT = Family("checkpoint", "checkpoint", "a checkpoint: several models in one file")
