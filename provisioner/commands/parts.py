"""The parts of a setup and which of them a set of files can have; what ``--only`` may say."""

from __future__ import annotations

from typing import Literal, get_args

from provisioner.core.errors import UsageError
from provisioner.core.models import ArtifactSet, Role

Part = Literal["files", "environment", "smoke"]
PARTS: tuple[Part, ...] = get_args(Part)

_IMAGE_ROLES: tuple[Role, ...] = ("diffusion_model", "text_encoder", "vae")
_LACKS = "a diffusion model, a text encoder or a VAE"
_PIPELINE_INDEX = "model_index.json"


def can_generate(wanted: ArtifactSet) -> bool:
    """Whether a test image can be made: by a workflow or recipe of its manifest, or of a whole pipeline in a cache."""
    if wanted.target == "hf_cache" or wanted.workflow is not None:
        return needs_program(wanted)
    return wanted.recipe is not None and needs_program(wanted)


def needs_program(wanted: ArtifactSet) -> bool:
    """Whether a set has all that an image needs, and so ComfyUI or diffusers belongs to it."""
    if wanted.target == "hf_cache":
        return any(each.name == _PIPELINE_INDEX for each in wanted.artifacts)
    if wanted.workflow is not None:
        return True
    roles = {each.role for each in wanted.artifacts}
    return "checkpoint" in roles or roles.issuperset(_IMAGE_ROLES)


def parse_parts(text: str | None, wanted: ArtifactSet) -> frozenset[Part]:
    """Return the parts a run is about.

    Parameters
    ----------
    text : str or None
        What ``--only`` says; None asks for all parts the set can have: no test image where nothing says how it is made,
        and files alone where it is no whole model.

    Raises
    ------
    UsageError
        A part that does not exist, or a smoke test of a set that cannot generate an image.
    """
    if text is None:
        if can_generate(wanted):
            return frozenset(PARTS)
        return frozenset({"files", "environment"}) if needs_program(wanted) else frozenset({"files"})
    named = {part.strip() for part in text.split(",")}
    known = frozenset(part for part in PARTS if part in named)
    if unknown := sorted(named - set(PARTS)):
        raise UsageError(
            f"--only knows no part {', '.join(map(repr, unknown))}.", hint=f"There are three: {', '.join(PARTS)}."
        )
    if "smoke" in known and not can_generate(wanted):
        lacks = "its manifest has no recipe and no workflow for it" if needs_program(wanted) else f"it lacks {_LACKS}"
        raise UsageError(
            f"The set {wanted.id} cannot generate images: {lacks}.",
            hint="Leave smoke out of --only, or choose another --set.",
        )
    return known
