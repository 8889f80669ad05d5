"""Find a diffusion model, text encoder, VAE and sampling settings that do not go together.

What goes together is in `partners`.  ComfyUI's messages are quoted from runs of ComfyUI 0.33.0 on 2026-11-23; where
only the widths differ from such a run, they are computed from the models.  The official sampling: Comfy-Org/docs and
ComfyUI's templates, read 2026-11-23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from provisioner.core.models import ROLE_WORDS, Finding, Remedy, Role
from provisioner.core.units import listing
from provisioner.identify.family_table import FAMILIES
from provisioner.identify.partners import FLUX2_TEXT_WIDTHS, PARTNERS, Partners
from provisioner.identify.values import Identity, Kind

_NAMES: Mapping[str, str] = {each.id: each.name for each in FAMILIES if each.name}  # of encoders and VAEs
_TEXT_TOKENS = 512  # every prompt is padded to so many
_VAE_CHANNELS: Mapping[str, int] = {"vae-4": 4, "vae-16": 16}  # those of which the message was seen
_SILENT = "ComfyUI loads it without an error, and images can degrade (Comfy-Org/ComfyUI#14526)"
_SHOWN = 3  # models in a sentence

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


def users_of(encoder: str) -> tuple[str, ...]:
    """Return the models that an encoder is for.

    >>> users_of("qwen3-4b"), users_of("unknown")
    (('FLUX.2 [klein] 4B', 'Z-Image', 'Z-Image (pixel space)'), ())
    """
    return tuple(each.title for each in PARTNERS.values() if encoder in _families(each))


def encoder_words(encoder: str) -> str:
    """Return what else there is to say of an encoder that is not one of FLUX.2 [klein]; it continues a sentence.

    >>> encoder_words("t5-base")
    '; FLUX.2 [klein] 4B needs Qwen3-4B, and 9B needs Qwen3-8B'
    """
    users = users_of(encoder)
    words = f", for {listing(users, most=_SHOWN)}" if users else ""
    if encoder == "qwen3-8b":
        return "; FLUX.2 [klein] 9B reads it; 4B needs Qwen3-4B"
    words += "; FLUX.2 [klein] 4B needs Qwen3-4B, and 9B needs Qwen3-8B"
    is_silent = any(_is_silent(encoder, PARTNERS[f"flux2-klein-{size}"]) for size in ("4b", "9b"))
    return f"{words}: {_SILENT}" if is_silent else words


def _families(partners: Partners) -> frozenset[str]:
    return frozenset(each for one in partners.encoders for each in one.split("|"))


def _is_silent(encoder: str, partners: Partners) -> bool:
    """Whether FLUX.2 takes the text of an encoder that is not its own, because it is as wide."""
    is_as_wide = partners.text is not None and FLUX2_TEXT_WIDTHS.get(encoder) == partners.text[0]
    return is_as_wide and encoder not in _families(partners)


def _with_encoder(diffusion: Identity, encoder: Identity | None) -> Iterator[Finding]:
    partners = PARTNERS.get(diffusion.family or "")
    if partners is None or not partners.encoders or encoder is None or encoder.role != "text_encoder":
        return
    family = encoder.family or ""
    if family in _families(partners):
        return
    needed = listing([" or ".join(dict.fromkeys(_NAMES[each] for each in one.split("|"))) for one in partners.encoders])
    width = FLUX2_TEXT_WIDTHS.get(family)
    said = ""
    if _is_silent(family, partners):
        said = f" {_SILENT}."
    elif partners.text is not None and width is not None:
        reads, own = partners.text
        said = _says(f"mat1 and mat2 shapes cannot be multiplied ({_TEXT_TOKENS}x{width} and {reads}x{own})")
    others = users_of(family)[:_SHOWN]
    yield _problem(
        "wrong-encoder",
        f"{partners.title} needs {needed}, but the text encoder is {_what(encoder)}.{said}",
        f"Use {needed} with {partners.title}" + (f", or this encoder with {' or '.join(others)}." if others else "."),
    )


def _with_vae(diffusion: Identity, vae: Identity | None) -> Iterator[Finding]:
    partners = PARTNERS.get(diffusion.family or "")
    if partners is None or not partners.vaes or vae is None or vae.role != "vae" or vae.family in partners.vaes:
        return
    channels = _VAE_CHANNELS.get(vae.family or "")
    words = (
        f"Given groups=1, weight of size [512, {channels}, 3, 3], expected input[1, {partners.channels}, ...] to have "
        f"{channels} channels, but got {partners.channels} channels instead"
        if channels and partners.channels
        else None
    )
    needed = " or ".join(dict.fromkeys(_NAMES[each] for each in partners.vaes))
    yield _problem(
        "wrong-vae",
        f"{partners.title} needs the {needed}, but this is {_what(vae)}.{_says(words)}",
        f"Use {partners.vae_file or f'the {needed}'}.",
    )


def _with_sampling(diffusion: Identity, steps: int | None, guidance: float | None) -> Iterator[Finding]:
    """Compare steps and guidance with the official ones: 4 and 1.0 for the distilled model, 20 and 5.0 for the base."""
    if diffusion.variant is None or diffusion.family is None:
        return
    title = PARTNERS[diffusion.family].title
    if diffusion.variant == "base" and steps is not None and steps < _FEWEST_BASE_STEPS:
        yield _warning(
            "too-few-steps",
            f"The base model of {title} is not distilled: with {steps} steps it generates an unfinished image, "
            "and ComfyUI does not say so.",
            "Use 20 steps and guidance 5.0, or the distilled model with 4 steps and guidance 1.0.",
        )
    if diffusion.variant == "distilled" and guidance is not None and guidance != 1.0:
        yield _warning(
            "guidance",
            f"{title} is distilled for guidance 1.0; with {guidance:g} the image can come out black or wrong, "
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
