"""A complete Flux2KleinPipeline repository of about a megabyte, made without torch.

Paths, tensor names and shapes are those of ``black-forest-labs/FLUX.2-klein-4B``; widths and depth are small and the
weights random.  The text encoder keeps 28 layers, because the pipeline reads the states after layers 9, 18 and 27
unless told otherwise.  diffusers 0.37.0 and 0.42.1, with transformers 5.23.0 and torch 2.13.0 on a CPU, load it
without a warning and generate in 4 steps an image that depends on seed and prompt (seen on 2026-11-23, 64 x 64 and
256 x 256 pixels); this module itself knows none of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from provisioner.rehearsal.tiny_models import Tensor, in_file_order, load_table, safetensors_file, shrunk

VAE_DIVISOR = 16
PT = {"format": "pt"}  # what transformers demands to find in the metadata
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
MERGES = (("Ġ", "t"), ("h", "e"), ("i", "n"), ("Ġ", "a"), ("Ġt", "he"))
# The splitting rule of Qwen's tokenizer: contractions, words, digits one by one, punctuation, white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""
LICENCE = """\
# Licence

Random numbers in the form of a model, made by `klein-setup rehearse`.  Apache-2.0, as the program that made them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSize:
    """Widths and depth of a Flux2Transformer2DModel; the defaults are the small one's."""

    in_channels: int = 8  # four times the latent channels of the VAE
    heads: int = 2
    head_dim: int = 16
    double_blocks: int = 1
    single_blocks: int = 1
    context: int = 96  # three times the width of the text encoder

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSize:
    """Widths and depth of a Qwen3ForCausalLM; the defaults are the small one's."""

    hidden: int = 32
    intermediate: int = 96
    heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 8
    layers: int = 28


def small_diffusers_repository(*, seed: int = 0) -> dict[str, bytes]:
    """Return the 19 files that the pipeline needs, by their path in the repository."""
    transformer, encoder = TransformerSize(), EncoderSize()
    vocabulary = _vocabulary()
    files = {
        "LICENSE.md": LICENCE.encode(),
        "model_index.json": _text(_MODEL_INDEX),
        "scheduler/scheduler_config.json": _text(_SCHEDULER),
        "transformer/config.json": _text(_transformer_config(transformer)),
        "transformer/diffusion_pytorch_model.safetensors": safetensors_file(
            transformer_tensors(transformer), metadata=PT, seed=seed
        ),
        "vae/config.json": _text(_VAE),
        "vae/diffusion_pytorch_model.safetensors": safetensors_file(_vae_tensors(), metadata=PT, seed=seed),
    }
    files |= {f"tokenizer/{name}": data for name, data in _tokenizer_files(vocabulary).items()}
    files |= {f"text_encoder/{name}": data for name, data in _encoder_files(encoder, len(vocabulary), seed).items()}
    return dict(sorted(files.items()))


def _text(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


# --- pipeline, scheduler, VAE ------------------------------------------------------------------

_MODEL_INDEX = {
    "_class_name": "Flux2KleinPipeline",
    "_diffusers_version": "0.37.0",
    "is_distilled": True,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
    "transformer": ["diffusers", "Flux2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
}

_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.37.0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}

_VAE = {
    "_class_name": "AutoencoderKLFlux2",
    "_diffusers_version": "0.37.0",
    "act_fn": "silu",
    "batch_norm_eps": 0.0001,
    "batch_norm_momentum": 0.1,
    "block_out_channels": [side // VAE_DIVISOR for side in (128, 256, 512, 512)],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 32 // VAE_DIVISOR,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 4,  # 32 in the published one; must divide the narrowest block
    "out_channels": 3,
    "patch_size": [2, 2],
    "sample_size": 1024,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


def _vae_tensors() -> tuple[Tensor, ...]:
    # The published repository keeps its VAE in BF16; names and shapes are those of flux2-vae.safetensors.
    small = shrunk(load_table("flux2-vae").tensors, VAE_DIVISOR)
    return tuple(replace(tensor, dtype="BF16") if tensor.dtype == "F32" else tensor for tensor in small)


# --- transformer -------------------------------------------------------------------------------


def transformer_tensors(size: TransformerSize) -> tuple[Tensor, ...]:
    """Return the tensors of a Flux2Transformer2DModel without guidance embedding, in BF16."""
    shapes = _outer_shapes(size)
    for number in range(size.double_blocks):
        shapes |= {f"transformer_blocks.{number}.{name}": shape for name, shape in _double_shapes(size).items()}
    for number in range(size.single_blocks):
        shapes |= {f"single_transformer_blocks.{number}.{name}": shape for name, shape in _single_shapes(size).items()}
    return tuple(Tensor(f"{name}.weight", "BF16", shape) for name, shape in shapes.items())


def _outer_shapes(size: TransformerSize) -> dict[str, tuple[int, ...]]:
    hidden = size.hidden
    return {
        "x_embedder": (hidden, size.in_channels),
        "context_embedder": (hidden, size.context),
        "time_guidance_embed.timestep_embedder.linear_1": (hidden, 256),
        "time_guidance_embed.timestep_embedder.linear_2": (hidden, hidden),
        "double_stream_modulation_img.linear": (6 * hidden, hidden),
        "double_stream_modulation_txt.linear": (6 * hidden, hidden),
        "single_stream_modulation.linear": (3 * hidden, hidden),
        "norm_out.linear": (2 * hidden, hidden),
        "proj_out": (size.in_channels, hidden),
    }


def _double_shapes(size: TransformerSize) -> dict[str, tuple[int, ...]]:
    hidden = size.hidden
    square = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    return {
        **{f"attn.{name}": (hidden, hidden) for name in square},
        **{f"attn.{name}": (size.head_dim,) for name in norms},
        **{f"{name}.linear_in": (6 * hidden, hidden) for name in ("ff", "ff_context")},
        **{f"{name}.linear_out": (hidden, 3 * hidden) for name in ("ff", "ff_context")},
    }


def _single_shapes(size: TransformerSize) -> dict[str, tuple[int, ...]]:
    hidden = size.hidden
    return {
        "attn.to_qkv_mlp_proj": (9 * hidden, hidden),
        "attn.to_out": (hidden, 4 * hidden),
        "attn.norm_q": (size.head_dim,),
        "attn.norm_k": (size.head_dim,),
    }


def _transformer_config(size: TransformerSize) -> dict[str, object]:
    return {
        "_class_name": "Flux2Transformer2DModel",
        "_diffusers_version": "0.37.0",
        "attention_head_dim": size.head_dim,
        "axes_dims_rope": [size.head_dim // 4] * 4,
        "eps": 1e-06,
        "guidance_embeds": False,
        "in_channels": size.in_channels,
        "joint_attention_dim": size.context,
        "mlp_ratio": 3.0,
        "num_attention_heads": size.heads,
        "num_layers": size.double_blocks,
        "num_single_layers": size.single_blocks,
        "out_channels": None,
        "patch_size": 1,
        "rope_theta": 2000,
        "timestep_guidance_channels": 256,
    }


# --- text encoder ------------------------------------------------------------------------------


def encoder_tensors(size: EncoderSize, vocabulary_size: int) -> tuple[Tensor, ...]:
    """Return the tensors of a Qwen3ForCausalLM whose output layer is the embedding, in BF16."""
    sides = {
        151936: vocabulary_size,
        2560: size.hidden,
        9728: size.intermediate,
        4096: size.heads * size.head_dim,
        1024: size.key_value_heads * size.head_dim,
        128: size.head_dim,
    }
    return tuple(
        replace(tensor, shape=tuple(sides[side] for side in tensor.shape))
        for tensor in load_table("qwen_3_4b").tensors
        if _layer(tensor.name) < size.layers
    )


def _layer(name: str) -> int:
    return int(name.split(".")[2]) if name.startswith("model.layers.") else -1


def _encoder_files(size: EncoderSize, vocabulary_size: int, seed: int) -> dict[str, bytes]:
    tensors = encoder_tensors(size, vocabulary_size)
    first = [
        tensor for tensor in tensors if _layer(tensor.name) < size.layers // 2 and tensor.name != "model.norm.weight"
    ]
    second = [tensor for tensor in tensors if tensor not in first]
    shards = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    index = {
        "metadata": {
            "total_parameters": sum(tensor.count for tensor in tensors),
            "total_size": sum(tensor.size for tensor in tensors),
        },
        "weight_map": dict(sorted(_weight_map(shards))),
    }
    files = {name: safetensors_file(shard, metadata=PT, seed=seed) for name, shard in shards.items()}
    return files | {
        "config.json": _text(_encoder_config(size, vocabulary_size)),
        "generation_config.json": _text(
            {"eos_token_id": _id_of("<|im_end|>"), "pad_token_id": _id_of("<|endoftext|>")}
        ),
        "model.safetensors.index.json": _text(index),
    }


def _weight_map(shards: Mapping[str, Iterable[Tensor]]) -> Iterator[tuple[str, str]]:
    for name, shard in shards.items():
        for tensor in in_file_order(shard):
            yield tensor.name, name


def _encoder_config(size: EncoderSize, vocabulary_size: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": _id_of("<|endoftext|>"),
        "eos_token_id": _id_of("<|im_end|>"),
        "head_dim": size.head_dim,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "initializer_range": 0.02,
        "intermediate_size": size.intermediate,
        "max_position_embeddings": 40960,
        "max_window_layers": size.layers,
        "model_type": "qwen3",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.key_value_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary_size,
    }


# --- tokenizer ---------------------------------------------------------------------------------


def _byte_letters() -> list[str]:
    """Return the letter by which byte-level BPE writes each byte: itself where it prints, else one from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


def _vocabulary() -> dict[str, int]:
    tokens = [*sorted(_byte_letters()), *("".join(pair) for pair in MERGES), *SPECIAL_TOKENS]
    return {token: number for number, token in enumerate(tokens)}


def _id_of(token: str) -> int:
    return _vocabulary()[token]


def _tokenizer_files(vocabulary: Mapping[str, int]) -> dict[str, bytes]:
    plain = {token: number for token, number in vocabulary.items() if token not in SPECIAL_TOKENS}
    special = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    return {
        "added_tokens.json": _text(special),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "merges.txt": "".join(f"{left} {right}\n" for left, right in MERGES).encode(),
        "special_tokens_map.json": _text({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
        "tokenizer.json": _text(_tokenizer(plain, [_added(*item) for item in special.items()])),
        "tokenizer_config.json": _text(_tokenizer_config(special)),
        "vocab.json": _text(plain),
    }


def _added(token: str, number: int) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **flags, "special": token not in {"<think>", "</think>"}}


def _tokenizer(vocabulary: Mapping[str, int], added: Sequence[Mapping[str, object]]) -> dict[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in MERGES],
        },
    }


def _tokenizer_config(special: Mapping[str, int]) -> dict[str, object]:
    decoder = {str(number): _added(token, number) for token, number in special.items()}
    for entry in decoder.values():
        del entry["id"]
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
