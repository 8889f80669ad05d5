"""Tell which model a LoRA belongs to, from the names and widths of the layers it changes.

Sources, read 2026-11-23: the endings from ComfyUI, `comfy/weight_adapter/lora.py`, and the names in front of a layer
from `comfy/lora.py`, both at a125cd84; what tells FLUX.2 [klein] from FLUX.1 from invoke-ai/InvokeAI,
`invokeai/backend/model_manager/configs/lora.py` at 01d6f09b, and the widths of the tensor tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from provisioner.identify.family_table import Family
from provisioner.identify.safetensors_header import Tensor

# The half that takes the layer's input (its last width is the layer's), and the half that produces its output.
_DOWN = (
    ".lora_A.weight",
    ".lora_A.default.weight",
    ".lora_A",
    ".lora_down.weight",
    ".lora.down.weight",
    "_lora.down.weight",
    ".lora_linear_layer.down.weight",
)
_UP = (
    ".lora_B.weight",
    ".lora_B.default.weight",
    ".lora_B",
    ".lora_up.weight",
    ".lora.up.weight",
    "_lora.up.weight",
    ".lora_linear_layer.up.weight",
)
# LoKr and LoHa: a layer is a product; its widths need both factors.
_FACTORS = (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".hada_w1_a", ".hada_w1_b")
_SIGNS = ("lora", "lokr_", "hada_")  # one of them is in every ending
_ALL = _DOWN + _UP + _FACTORS
_IN_FRONT = re.compile(
    r"^(?:base_model_model_|unet_base_model_model_|diffusion_model_|transformer_(?!blocks)|lora_transformer_|lora_unet_"
    r"|lycoris_|unet_)+"
)
_MANY = 6_000  # tensors; later ones do not change the answer


class Layer(NamedTuple):
    """A layer that a LoRA changes: its name with underscores, and its widths where the header has them."""

    name: str
    inputs: int | None
    outputs: int | None


class _Rule(NamedTuple):
    """A layer that only one model has."""

    family: str
    title: str
    name: re.Pattern[str]
    inputs: int | None = None
    outputs: int | None = None


_KLEIN_4B, _KLEIN_9B = ("flux2-klein-4b", "FLUX.2 [klein] 4B"), ("flux2-klein-9b", "FLUX.2 [klein] 9B")
_FLUX2_DEV, _FLUX1 = ("flux2-dev", "FLUX.2 [dev]"), ("flux1", "FLUX.1")


def _rule(model: tuple[str, str], name: str, inputs: int | None = None, outputs: int | None = None) -> _Rule:
    return _Rule(*model, re.compile(name), inputs, outputs)


# The first rule that any layer matches decides.  [klein] 4B and FLUX.1 are both 3072 wide: they differ in the text's
# width, the share of the feed-forward part (six against four times), and layers only one of them has.
_RULES: tuple[_Rule, ...] = (
    *(
        _rule(model, name, inputs=width)
        for model, width in ((_KLEIN_4B, 3072), (_KLEIN_9B, 4096), (_FLUX2_DEV, 6144))
        for name in (
            r"^single_transformer_blocks_\d+_attn_to_qkv_mlp_proj$",
            r"^transformer_blocks_\d+_ff(_context)?_linear_in$",
            r"^(double|single)_stream_modulation",
        )
    ),
    *(
        _rule(model, r"^(txt_in|context_embedder)$", inputs=width)
        for model, width in ((_KLEIN_4B, 7680), (_KLEIN_9B, 12288), (_FLUX2_DEV, 15360), (_FLUX1, 4096))
    ),
    *(
        _rule(model, r"^single_blocks_\d+_linear1$", inputs=width, outputs=rows)
        for model, width, rows in (
            (_KLEIN_4B, 3072, 27648),
            (_KLEIN_9B, 4096, 36864),
            (_FLUX2_DEV, 6144, 55296),
            (_FLUX1, 3072, 21504),
        )
    ),
    *(
        _rule(model, r"^double_blocks_\d+_(img|txt)_mlp_0$", inputs=width, outputs=rows)
        for model, width, rows in (
            (_KLEIN_4B, 3072, 18432),
            (_KLEIN_9B, 4096, 24576),
            (_FLUX2_DEV, 6144, 36864),
            (_FLUX1, 3072, 12288),
        )
    ),
    *(
        _rule(_FLUX1, name)
        for name in (
            r"^single_transformer_blocks_\d+_proj_mlp$",
            r"^double_blocks_\d+_(img|txt)_mod_lin$",
            r"^single_blocks_\d+_modulation_lin$",
            # deeper than the 5 and 20 blocks of [klein] 4B, and as wide as FLUX.1
        )
    ),
    _rule(_FLUX1, r"^double_blocks_(?:[5-9]|\d\d)_", inputs=3072),
    _rule(_FLUX1, r"^single_blocks_(?:[2-9]\d)_", inputs=3072),
    *(
        _rule(model, r"^(double|single)_blocks_\d+_", inputs=width)
        for model, width in ((_KLEIN_9B, 4096), (_FLUX2_DEV, 6144))
    ),
    _rule(("flux1-or-klein-4b", "FLUX.1 or FLUX.2 [klein] 4B (the header does not say)"), r"^(double|single)_blocks_"),
    _rule(("qwen-image", "Qwen-Image"), r"^transformer_blocks_\d+_(img|txt)_mlp_net_"),
    _rule(("z-image", "Z-Image"), r"^layers_\d+_attention_", inputs=3840),
    _rule(("wan", "Wan"), r"^blocks_\d+_(cross|self)_attn_[qkvo]$"),
    _rule(("sd3", "Stable Diffusion 3"), r"^joint_blocks_\d+_"),
    *(
        _rule(model, r"attn2_to_[kv]$", inputs=width)
        for model, width in (
            (("sd1", "Stable Diffusion 1"), 768),
            (("sd2", "Stable Diffusion 2"), 1024),
            (("sdxl", "Stable Diffusion XL"), 2048),
        )
    ),
)


def lora_of(tensors: Mapping[str, Tensor]) -> Family | None:
    """Return the family of the model a LoRA is for ("unknown" if none matches); None if the file is not a LoRA."""
    names = "\n".join(tensors)  # searching one string takes a tenth of the time of searching its lines
    if not any(sign in names for sign in _SIGNS) or not any(name.endswith(_ALL) for name in tensors):
        return None
    layers = layers_of(tensors)
    for rule in _RULES:
        for layer in layers:
            if (
                (rule.inputs is None or layer.inputs == rule.inputs)
                and (rule.outputs is None or layer.outputs == rule.outputs)
                and rule.name.search(layer.name)
            ):
                return Family(rule.family, "lora", f"a LoRA for {rule.title}")
    return Family("unknown", "lora", "a LoRA for an unknown model")


def layers_of(tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Return the layers a LoRA changes, with the trainers' different spellings made the same."""
    halves: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in list(tensors.items())[:_MANY]:
        ending = next((each for each in _ALL if name.endswith(each)), None)
        if ending is not None:
            halves.setdefault(name.removesuffix(ending), {})[ending] = tensor.shape
    return [Layer(_plain(stem), _inputs(shapes), _outputs(shapes)) for stem, shapes in halves.items()]


def _plain(stem: str) -> str:
    return _IN_FRONT.sub("", stem.replace(".", "_"))


def _inputs(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    for ending in _DOWN:
        if (shape := shapes.get(ending)) and len(shape) > 1:
            return shape[1]
    return _product(shapes, "b", 1)


def _outputs(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    for ending in _UP:
        if shape := shapes.get(ending):
            return shape[0]
    return _product(shapes, "a", 0)


def _product(shapes: Mapping[str, tuple[int, ...]], half: str, place: int) -> int | None:
    """Return one width of a LoKr layer: the product of both factors, each stored whole or as two halves."""
    factors = [shapes.get(f".lokr_w{each}") or shapes.get(f".lokr_w{each}_{half}") for each in (1, 2)]
    widths = [shape[place] for shape in factors if shape and len(shape) > place]
    return widths[0] * widths[1] if len(widths) == 2 else None
