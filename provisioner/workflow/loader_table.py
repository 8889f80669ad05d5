"""Which inputs of which nodes name a model file, and the folder it lies in.

Read in nodes.py and comfy_extras of ComfyUI 0.33.0; those after the first blank line in the templates of
comfyui-workflow-templates-json 0.1.123, those of GGUF in city96/ComfyUI-GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from provisioner.core.models import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderInput:
    """An input that names a file."""

    name: str
    folder: str  # of ComfyUI's models tree
    position: int  # among the node's values


_TABLE = """
CheckpointLoaderSimple: checkpoints ckpt_name
ImageOnlyCheckpointLoader: checkpoints ckpt_name
unCLIPCheckpointLoader: checkpoints ckpt_name
CheckpointLoader: configs config_name, checkpoints ckpt_name
CreateHookModelAsLora: checkpoints ckpt_name
CreateHookModelAsLoraModelOnly: checkpoints ckpt_name
UNETLoader: diffusion_models unet_name
CLIPLoader: text_encoders clip_name
DualCLIPLoader: text_encoders clip_name1 clip_name2
TripleCLIPLoader: text_encoders clip_name1 clip_name2 clip_name3
QuadrupleCLIPLoader: text_encoders clip_name1 clip_name2 clip_name3 clip_name4
LTXAVTextEncoderLoader: text_encoders text_encoder, checkpoints ckpt_name
LTXVAudioVAELoader: checkpoints ckpt_name
VAELoader: vae vae_name
LoraLoader: loras lora_name
LoraLoaderModelOnly: loras lora_name
LoraLoaderBypass: loras lora_name
LoraLoaderBypassModelOnly: loras lora_name
CreateHookLora: loras lora_name
CreateHookLoraModelOnly: loras lora_name
ControlNetLoader: controlnet control_net_name
DiffControlNetLoader: controlnet control_net_name
CLIPVisionLoader: clip_vision clip_name
StyleModelLoader: style_models style_model_name
GLIGENLoader: gligen gligen_name
HypernetworkLoader: hypernetworks hypernetwork_name
PhotoMakerLoader: photomaker photomaker_model_name
UpscaleModelLoader: upscale_models model_name
LatentUpscaleModelLoader: latent_upscale_models model_name
ModelPatchLoader: model_patches name
AudioEncoderLoader: audio_encoders audio_encoder_name
LoadBackgroundRemovalModel: background_removal bg_removal_name
LoadMoGeModel: geometry_estimation model_name
LoadDA3Model: geometry_estimation model_name
OpticalFlowLoader: optical_flow model_name
FrameInterpolationModelLoader: frame_interpolation model_name
LoadMediaPipeFaceLandmarker: detection model_name

SAM3DBody_Loader: detection model_name
ConditioningLoader: embeddings conditioning_name

UnetLoaderGGUF: diffusion_models unet_name
UnetLoaderGGUFAdvanced: diffusion_models unet_name
CLIPLoaderGGUF: text_encoders clip_name
DualCLIPLoaderGGUF: text_encoders clip_name1 clip_name2
TripleCLIPLoaderGGUF: text_encoders clip_name1 clip_name2 clip_name3
"""


def _rows(text: str) -> dict[str, tuple[LoaderInput, ...]]:
    rows: dict[str, tuple[LoaderInput, ...]] = {}
    for line in filter(None, text.splitlines()):
        kind, _, inputs = line.partition(": ")
        words = [each.split() for each in inputs.split(", ")]
        pairs = [(folder, name) for folder, *names in words for name in names]
        rows[kind] = tuple(LoaderInput(folder=each[0], name=each[1], position=at) for at, each in enumerate(pairs))
    return rows


LOADER_INPUTS: Mapping[str, tuple[LoaderInput, ...]] = MappingProxyType(_rows(_TABLE))
"""By class of node; the values that name files come first in each of them."""

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "diffusion_models": "diffusion_model",
        "text_encoders": "text_encoder",
        "vae": "vae",
        "checkpoints": "checkpoint",
        "loras": "lora",
        "controlnet": "controlnet",
        "upscale_models": "upscale_model",
        "clip_vision": "clip_vision",
    }
)
"""By folder; what lies in another is a file without a role of its own."""
