"""The parts of a setup and which of them a set of files can have; what ``--only`` may say."""

from __future__ import annotations

from typing import Literal, get_args

from provisioner.core.errors import UsageError
from provisioner.core.models import ArtifactSet

Part = Literal["files", "environment", "smoke"]
PARTS: tuple[Part, ...] = get_args(Part)

_IMAGE_ROLES = frozenset({"diffusion_model", "text_encoder", "vae"})
_PIPELINE_INDEX = "model_index.json"


def can_generate(wanted: ArtifactSet) -> bool:
    """Whether a set has all that an image needs: the three models of a tree, or a whole pipeline in a cache."""
    if wanted.target == "hf_cache":
        return any(each.name == _PIPELINE_INDEX for each in wanted.artifacts)
    return {each.role for each in wanted.artifacts} >= _IMAGE_ROLES


def parse_parts(text: str | None, wanted: ArtifactSet) -> frozenset[Part]:
    """Return the parts a run is about.

    Parameters
    ----------
    text : str or None
        What ``--only`` says; None asks for all parts the set can have: files alone where it cannot generate an image.

    Raises
    ------
    UsageError
        A part that does not exist, or a smoke test of a set that cannot generate an image.
    """
    if text is None:
        return frozenset(PARTS) if can_generate(wanted) else frozenset({"files"})
    named = {part.strip() for part in text.split(",")}
    known = frozenset(part for part in PARTS if part in named)
    if unknown := sorted(named - set(PARTS)):
        raise UsageError(
            f"--only knows no part {', '.join(map(repr, unknown))}.", hint=f"There are three: {', '.join(PARTS)}."
        )
    if "smoke" in known and not can_generate(wanted):
        raise UsageError(
            f"The set {wanted.id} cannot generate images: it lacks a diffusion model, a text encoder or a VAE.",
            hint="Leave smoke out of --only, or choose another --set.",
        )
    return known
