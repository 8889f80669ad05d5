"""What a person calls each kind of file."""

from __future__ import annotations

from provisioner.models import Role

ROLES: dict[Role, str] = {
    "diffusion_model": "diffusion model",
    "text_encoder": "text encoder",
    "vae": "VAE",
    "checkpoint": "checkpoint",
    "lora": "LoRA",
    "controlnet": "ControlNet",
    "upscale_model": "upscaler",
    "clip_vision": "vision encoder",
    "config": "configuration",
    "tokenizer": "tokenizer",
    "licence": "licence",
    "other": "file",
}
