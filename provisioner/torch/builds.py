"""The values of the torch choice: a build, a matched set, why it was chosen, and warnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

App = Literal["comfyui", "diffusers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchSet:
    """Releases that belong together; versions without the local part."""

    torch: str  # "2.14.1"
    torchvision: str  # "0.29.1"
    torchaudio: str | None  # "2.11.0"; None: not needed, or none published


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """One build of torch that runs on a machine, ready to be installed."""

    torch_backend: str  # "cu130", "cpu", "rocm7.2", "xpu"; "default" for the default index (macOS)
    index_url: str | None  # None: the installer's own default index
    local_tag: str | None  # local label of the installed version, "cu130" in "2.14.1+cu130"; None: not checked
    sets: tuple[TorchSet, ...]  # acceptable, newest first
    sm: tuple[int, ...] = ()  # machine code in the wheels of the newest set, 86 for sm_86
    ptx: tuple[int, ...] = ()  # virtual architectures in them
    gfx: tuple[str, ...] = ()  # AMD: architectures with code in them, "gfx1100"
    targets: tuple[str, ...] = ()  # AMD: architectures of the GPUs it was chosen for
    device_extras: tuple[str, ...] = ()  # of torch and torchvision, "device-gfx1100": packages with the code itself
    is_alone: bool = False  # its index must not be used together with another
    source_packages: tuple[str, ...] = ()  # what its index has as source archives only
    names_digests: bool = True  # its index publishes the SHA-256 of its files
    digests: tuple[tuple[str, str], ...] = ()  # SHA-256 of wheels, by file name, where an index published one


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchWarning:
    """Something about a choice that the user should know."""

    code: str  # kebab-case
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchChoice:
    """A build and why it was chosen."""

    build: TorchBuild
    reasons: tuple[str, ...]  # which row, which limit, in sentences
    runner_up: str | None  # the next candidate, and why it was not chosen
    warnings: tuple[TorchWarning, ...] = ()
    uncovered: tuple[str, ...] = ()  # names of GPUs the build has no code for
