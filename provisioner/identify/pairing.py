"""What does not go together: diffusion model, text encoder, VAE, and the steps they are asked for.

What ComfyUI says is quoted where a run of ComfyUI 0.33.0 said it on 2026-11-23; where only the widths differ from that
run they are worked out from the models.  Which files belong together and the official sampling: Comfy-Org/docs and
ComfyUI's templates, read 2026-11-23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from provisioner.core.models import ROLE_WORDS, Finding, Remedy, Role
from provisioner.identify.values import Identity, Kind


class _Needs(NamedTuple):
    """What a diffusion model has to be given."""

    title: str
    width: int  # of the model
    context: int  # of the text it reads: three layers of its encoder
    encoder: str
    encoder_title: str


_NEEDS: Mapping[str, _Needs] = {
    "flux2-klein-4b": _Needs("FLUX.2 [klein] 4B", 3072, 7680, "qwen3-4b", "Qwen3-4B"),
    "flux2-klein-9b": _Needs("FLUX.2 [klein] 9B", 4096, 12288, "qwen3-8b", "Qwen3-8B"),
}
# How wide the text is that an encoder gives when it is loaded for FLUX.2: three layers of the two that belong to
# [klein] and of Mistral, one layer of any other (measured with Qwen3-0.6B: 1024).
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

# ComfyUI 0.33.0 gave the loader's words for exactly these files.
_LOADER_WORDS: Mapping[Kind, str] = {
    "empty": "Error while deserializing header: header too small",
    "html": "Error while deserializing header: header too large",
    "truncated": "Error while deserializing header: incomplete metadata, file not fully covered",
}
_FEWEST_BASE_STEPS = 10  # half of the official 20; the distilled model's are 4


def comfyui_words(identity: Identity) -> str | None:
    """Return what ComfyUI's loader says of a file that is no whole model; None where no run has shown it."""
    if identity.kind == "truncated" and identity.header is None:  # cut inside its header: another sentence, not seen
        return None
    return _LOADER_WORDS.get(identity.kind)


def pairing_problems(
    diffusion: Identity | None,
    encoder: Identity | None,
    vae: Identity | None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
) -> tuple[Finding, ...]:
    """Return what is wrong with these files together, the worst first; empty where nothing is known against them.

    Parameters
    ----------
    diffusion, encoder, vae : Identity or None
        What `identify` said of each; None where there is none, or nobody looked.
    steps : int, optional
        Denoising steps the files are meant for.
    guidance : float, optional
        Guidance (CFG) they are meant for.

    Returns
    -------
    tuple of Finding
        Each with what ComfyUI would say, where that is known, and what to do.
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
    """Say what is wrong with a file whatever stands beside it."""
    place = ROLE_WORDS[role]
    if identity.kind in ("safetensors", "gguf"):
        yield from identity.findings
        if identity.role is not None and identity.role != role:
            yield _problem(
                "wrong-role",
                f"In the {place}'s place lies {_what(identity)}.",
                f"Move it to the folder of its kind, and put the {place} in its place.",
            )
        return
    words = comfyui_words(identity)
    yield _problem(
        "not-a-model",
        f"In the {place}'s place lies {_what(identity)}.{_says(words)}",
        "Run klein-setup repair; it fetches what is missing.",
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
        f"{needs.title} reads {needs.encoder_title}, and the text encoder is {_what(encoder)}.{_says(words)}",
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
        f"FLUX.2 needs its own VAE (32 channels), and this is {_what(vae)}.{_says(words)}",
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
            f"The base model of {needs.title} is not distilled: with {steps} steps it draws an unfinished picture, and "
            "ComfyUI says nothing.",
            "Use 20 steps and guidance 5.0, or the distilled model with 4 steps and guidance 1.0.",
        )
    if diffusion.variant == "distilled" and guidance is not None and guidance != 1.0:
        yield _warning(
            "guidance",
            f"{needs.title} is distilled for guidance 1.0; with {guidance:g} the picture can come out black or wrong, "
            "and ComfyUI says nothing.",
            "Use guidance 1.0.",
        )


def _what(identity: Identity) -> str:
    """Return what a file is, without the advice behind it."""
    return identity.sentence.partition("; FLUX.2 [klein]")[0]


def _says(words: str | None) -> str:
    return f' ComfyUI stops with: "{words}".' if words else ""


def _problem(code: str, message: str, hint: str, remedy: Remedy = "by-hand") -> Finding:
    return Finding(code=code, severity="problem", message=message, remedy=remedy, hint=hint)


def _warning(code: str, message: str, hint: str) -> Finding:
    return Finding(code=code, severity="warning", message=message, remedy="by-hand", hint=hint)
