"""What a file is: the value that `identify` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from provisioner.core.models import Finding, Role
from provisioner.identify.safetensors_header import SafetensorsHeader

Kind = Literal[
    "empty",
    "zero-filled",  # its beginning is zeros: space reserved for a download that never arrived
    "zero-tail",  # safetensors whose end is all zeros: the download stopped part of the way
    "html",
    "xml",
    "json",
    "index",  # the list of the parts of a model in several files
    "text",
    "lfs-pointer",
    "safetensors",
    "truncated",  # safetensors or GGUF that ends early
    "overlong",  # safetensors with bytes after its end
    "broken-safetensors",
    "gguf",
    "pickle",
    "onnx",
    "picture",
    "archive",
    "partial",  # by its name: an unfinished download
    "unknown",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a file is."""

    kind: Kind
    sentence: str  # continues after "this is": "a web page (HTML), not a model"
    family: str | None = None  # "flux2-klein-4b"; None where the header does not say.  For a LoRA, its model's family
    role: Role | None = None
    precision: str | None = None  # "FP8", "NVFP4", "BF16", "mixed FP8 and NVFP4"; for a GGUF "Q4_K"
    variant: str | None = None  # "distilled" or "base", where the header shows it
    layout: Literal["comfyui", "diffusers"] | None = None  # which naming the tensors use, where there are two
    header: SafetensorsHeader | None = None
    expected_size: int | None = None  # bytes of the whole file, where the file says so
    sha256: str | None = None  # of the file a Git LFS pointer refers to
    part: tuple[int, int] | None = None  # (2, 3): by its name, the second of three parts of one model
    is_complete: bool = False  # a whole safetensors file by its header; says nothing about its payload
    findings: tuple[Finding, ...] = ()  # what is wrong with a complete file
