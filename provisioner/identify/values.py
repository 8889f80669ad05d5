"""The answer: what a file is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from provisioner.core.models import Finding, Role
from provisioner.identify.safetensors_header import SafetensorsHeader

Kind = Literal[
    "empty",
    "zero-filled",  # its beginning is: space reserved for a download that never came
    "zero-tail",  # safetensors whose end is nothing but zeros: the same, and the download came half way
    "html",
    "xml",
    "json",
    "index",  # the list of the parts of a model in several files
    "text",
    "lfs-pointer",
    "safetensors",
    "truncated",  # safetensors or GGUF that ends early
    "overlong",  # safetensors with something behind it
    "broken-safetensors",
    "gguf",
    "pickle",
    "onnx",
    "picture",
    "archive",
    "partial",  # by its name: a download that did not end
    "unknown",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a file is."""

    kind: Kind
    sentence: str  # goes on after "this is": "a web page (HTML), not a model"
    family: str | None = None  # "flux2-klein-4b"; None where the header does not tell.  A LoRA's is its model's
    role: Role | None = None
    precision: str | None = None  # "FP8", "NVFP4", "BF16", "mixed FP8 and NVFP4"; of a GGUF "Q4_K"
    variant: str | None = None  # "distilled" or "base", where the header tells
    layout: Literal["comfyui", "diffusers"] | None = None  # whose names the tensors carry, where there are two ways
    header: SafetensorsHeader | None = None
    expected_size: int | None = None  # bytes of the whole file, where the file says so
    sha256: str | None = None  # of what a Git LFS pointer stands for
    part: tuple[int, int] | None = None  # (2, 3): by its name the second of three parts of one model
    is_complete: bool = False  # a whole safetensors file by its header; says nothing about its payload
    findings: tuple[Finding, ...] = ()  # what is wrong with a file that is whole
