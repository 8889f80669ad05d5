"""The values of a smoke test: what is to be drawn, how it went, and what came out.

Times are seconds, memory is bytes; None means that nobody measured it, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from provisioner.core.models import Finding

Backend = Literal["comfyui", "diffusers"]

DEFAULT_PROMPT = "a red fox sitting in fresh snow, morning light, photograph"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """The picture that is asked for."""

    prompt: str = DEFAULT_PROMPT
    seed: int = 0  # 0 to 2**64 - 1; a fresh one unless the user gave it: ComfyUI caches whole runs
    width: int = 1024  # pixels, a multiple of 16
    height: int = 1024
    steps: int = 4
    guidance: float = 1.0
    has_tiled_decode: bool = False  # for cards with little memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNames:
    """The three files as ComfyUI's loaders name them: paths under the folder, separators as the server writes them."""

    diffusion_model: str
    text_encoder: str
    vae: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long each part took."""

    start_s: float | None = None  # until the server, or the pipeline's libraries, answered
    load_s: float | None = None  # reading the models, where it can be told apart
    encode_s: float | None = None  # the prompt
    steps_s: tuple[float, ...] = ()  # each denoising step that was seen to end
    decode_s: float | None = None  # latent to picture
    total_s: float | None = None  # from asking to the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class VramReading:
    """What NVML said of one GPU while the picture was drawn."""

    gpu_name: str
    gpu_uuid: str | None
    total_bytes: int
    free_at_start_bytes: int
    peak_used_bytes: int  # of the whole card, everybody's
    used_at_start_bytes: int
    peak_process_bytes: int | None = None  # of the drawing process alone, where NVML can tell
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What a decoded picture is made of."""

    width: int
    height: int
    mode: str  # "RGB"
    size: int  # bytes of the encoded file
    sha256: str  # of the encoded file
    minimum: int  # 0 to 255, over all channels
    maximum: int
    mean: float
    deviation: float  # standard deviation over all channels, in the same units


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTest:
    """One picture that was asked for, and everything known of it."""

    backend: Backend
    options: ImageOptions
    timings: Timings
    names: ModelNames | None = None  # ComfyUI only
    image: ImageFacts | None = None
    image_path: Path | None = None  # where it was kept
    vram: VramReading | None = None
    device: str | None = None  # "cuda:0 NVIDIA GeForce RTX 4070", "cpu"
    versions: tuple[tuple[str, str], ...] = ()  # ("comfyui", "0.33.0"), ("torch", "2.11.0+cu130")
    log_path: Path | None = None  # the server's or the script's whole output
    notes: tuple[str, ...] = ()  # sentences for a person: what the figures mean
    findings: tuple[Finding, ...] = field(default=())
