"""Find a diffusion model, text encoder, VAE and sampling settings that do not go together.

ComfyUI's messages are quoted from runs of ComfyUI 0.33.0 on 2026-11-23; where only the widths differ from such a run,
they are computed from the models.  Which files belong together and the official sampling: Comfy-Org/docs and
ComfyUI's templates, read 2026-11-23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from provisioner.core.models import ROLE_WORDS, Finding, Remedy, Role
from provisioner.identify.values import Identity, Kind


class _Needs(NamedTuple):
    """What a diffusion model needs."""

    title: str
    width: int  # of the model
    context: int  # of the text it reads: three layers of its encoder
    encoder: str
    encoder_title: str


_NEEDS: Mapping[str, _Needs] = {
    "flux2-klein-4b": _Needs("FLUX.2 [klein] 4B", 3072, 7680, "qwen3-4b", "Qwen3-4B"),
    "flux2-klein-9b": _Needs("FLUX.2 [klein] 9B", 4096, 12288, "qwen3-8b", "Qwen3-8B"),
}
# Width of the text an encoder returns when it is loaded for FLUX.2: three layers for the two of [klein] and for
# Mistral, one layer for any other (measured with Qwen3-0.6B: 1024).
_TEXT_WIDTHS: Mapping[str, int] = {
    "qwen3-4b": 7680,
    "qwen3-8b": 12288,
    "qwen3-0.6b": 1024,
    "mistral-small": 15360,
    "mistral-small-pruned": 15360,
}
_TEXT_TOKENS = 512  # every prompt is padded to so many
_FLUX2_VAES = frozenset({"flux2-vae", "flux2-vae-small", "flux2-vae-other"})
_VAE_CHANNELS: Mapping[str, int] = {"vae-4": 4, "vae-16": 16}

# What ComfyUI 0.33.0's loader printed for exactly these files.
_LOADER_ERRORS: Mapping[Kind, str] = {
    "empty": "Error while deserializing header: header too small",
    "html": "Error while deserializing header: header too large",
    "truncated": "Error while deserializing header: incomplete metadata, file not fully covered",
}
_FEWEST_BASE_STEPS = 10  # half of the official 20; the distilled model's are 4


def comfyui_words(identity: Identity) -> str | None:
    """Return ComfyUI's loader error for a file that is not a whole model; None where no run has shown it."""
    if identity.kind == "truncated" and identity.header is None:  # cut inside its header: another sentence, not seen
        return None
    return _LOADER_ERRORS.get(identity.kind)


def pairing_problems(
    diffusion: Identity | None,
    encoder: Identity | None,
    vae: Identity | None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
) -> tuple[Finding, ...]:
    """Return why these files do not work together, the worst first; empty where no problem is known.

    Parameters
    ----------
    diffusion, encoder, vae : Identity or None
        What `identify` returned for each; None where there is no file, or it was not read.
    steps : int, optional
        Denoising steps the files are meant for.
    guidance : float, optional
        Guidance (CFG) they are meant for.

    Returns
    -------
    tuple of Finding
        Each with ComfyUI's error message, where it is known, and what to do.
    """
    given: tuple[tuple[Role, Identity | None], ...] = (
        ("diffusion_model", diffusion),
        ("text_encoder", encoder),
        ("vae", vae),
    )
    found = [finding for role, identity in given if identity for finding in _alone(role, identity)]
    if diffusion is not None:
        found += [*_with_encoder(diffusion, encoder), *_with_vae(diffusion, vae)]
        found += _with_sampling(diffusion, steps, guidance)
    return tuple(sorted(found, key=lambda finding: finding.severity != "problem"))


def _alone(role: Role, identity: Identity) -> Iterator[Finding]:
    """Yield what is wrong with a file by itself."""
    place = ROLE_WORDS[role]
    if identity.kind in ("safetensors", "gguf"):
        yield from identity.findings
        if identity.role is not None and identity.role != role:
            yield _problem(
                "wrong-role",
                f"The {place} file is {_what(identity)}.",
                f"Move it to the folder for its kind, and put the {place} here.",
            )
        return
    words = comfyui_words(identity)
    yield _problem(
        "not-a-model",
        f"The {place} file is {_what(identity)}.{_says(words)}",
        "Run `klein-setup repair`; it downloads what is missing.",
        remedy="repair",
    )


def _with_encoder(diffusion: Identity, encoder: Identity | None) -> Iterator[Finding]:
    needs = _NEEDS.get(diffusion.family or "")
    if needs is None or encoder is None or encoder.role != "text_encoder" or encoder.family == needs.encoder:
        return
    width = _TEXT_WIDTHS.get(encoder.family or "")
    words = (
        f"mat1 and mat2 shapes cannot be multiplied ({_TEXT_TOKENS}x{width} and {needs.context}x{needs.width})"
        if width
        else None
    )
    hint = f"Use {needs.encoder_title} with {needs.title}."
    other = next((each for each in _NEEDS.values() if each.encoder == encoder.family), None)
    if other is not None:
        hint = f"Use {needs.encoder_title} with {needs.title}, or this encoder with {other.title}."
    yield _problem(
        "wrong-encoder",
        f"{needs.title} needs {needs.encoder_title}, but the text encoder is {_what(encoder)}.{_says(words)}",
        hint,
    )


def _with_vae(diffusion: Identity, vae: Identity | None) -> Iterator[Finding]:
    is_flux2 = (diffusion.family or "").startswith("flux2")
    if not is_flux2 or vae is None or vae.role != "vae" or vae.family in _FLUX2_VAES:
        return
    channels = _VAE_CHANNELS.get(vae.family or "")
    words = (
        f"Given groups=1, weight of size [512, {channels}, 3, 3], expected input[1, 128, ...] to have {channels} "
        "channels, but got 128 channels instead"
        if channels
        else None
    )
    yield _problem(
        "wrong-vae",
        f"FLUX.2 needs its own VAE (32 channels), but this is {_what(vae)}.{_says(words)}",
        "Use flux2-vae.safetensors.",
    )


def _with_sampling(diffusion: Identity, steps: int | None, guidance: float | None) -> Iterator[Finding]:
    """Compare steps and guidance with the official ones: 4 and 1.0 for the distilled model, 20 and 5.0 for the base."""
    needs = _NEEDS.get(diffusion.family or "")
    if needs is None or diffusion.variant is None:
        return
    if diffusion.variant == "base" and steps is not None and steps < _FEWEST_BASE_STEPS:
        yield _warning(
            "too-few-steps",
            f"The base model of {needs.title} is not distilled: with {steps} steps it generates an unfinished image, "
            "and ComfyUI does not say so.",
            "Use 20 steps and guidance 5.0, or the distilled model with 4 steps and guidance 1.0.",
        )
    if diffusion.variant == "distilled" and guidance is not None and guidance != 1.0:
        yield _warning(
            "guidance",
            f"{needs.title} is distilled for guidance 1.0; with {guidance:g} the image can come out black or wrong, "
            "and ComfyUI does not say so.",
            "Use guidance 1.0.",
        )


def _what(identity: Identity) -> str:
    """Return what a file is, without the advice that follows."""
    return identity.sentence.partition("; FLUX.2 [klein]")[0]


def _says(words: str | None) -> str:
    return f' ComfyUI stops with: "{words}".' if words else ""


def _problem(code: str, message: str, hint: str, remedy: Remedy = "by-hand") -> Finding:
    return Finding(code=code, severity="problem", message=message, remedy=remedy, hint=hint)


def _warning(code: str, message: str, hint: str) -> Finding:
    return Finding(code=code, severity="warning", message=message, remedy="by-hand", hint=hint)
