"""Which model a set of tensors belongs to: the function that applies `family_table`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from provisioner.identify.family_table import CHECKPOINT, FAMILIES, FLUX2_PARTS, Family, Mark
from provisioner.identify.safetensors_header import Tensor


class Match(NamedTuple):
    """The rule that matched, and the tensors it matched, under the model's own names."""

    family: Family
    tensors: Mapping[str, Tensor]


# Prefixes of a model's own names, where several models or a training tool's wrapper share a file.  [detect], [models]
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "first_stage_model.", "vae.", "net.")
# Together with a diffusion model these make a file a checkpoint.  [models]: `vae_key_prefix`, `text_encoder_key_prefix`
_COMPANIONS = frozenset({"first_stage_model", "vae", "text_encoders", "cond_stage_model", "conditioner"})


def family_of(tensors: Mapping[str, Tensor]) -> Match | None:
    """Return the first rule that matches a file's tensors; for a checkpoint, the rule of its diffusion model."""
    tops = {name.partition(".")[0] for name in tensors}
    views = [
        (prefix, _behind(tensors, prefix)) for prefix in PREFIXES if not prefix or prefix.partition(".")[0] in tops
    ]
    is_checkpoint = not tops.isdisjoint(_COMPANIONS) and any(
        prefix.endswith("diffusion_model.") and view for prefix, view in views
    )
    if is_checkpoint:
        views = [(prefix, view) for prefix, view in views if prefix.endswith("diffusion_model.")]
    found = _first(view for _, view in views)
    if not is_checkpoint:
        return found or _first([_behind(tensors, "model.")])  # [detect]: "aura flow and others"
    if found is None:
        return Match(CHECKPOINT, tensors)
    inside = found.family
    return Match(inside._replace(role="checkpoint", title=f"{CHECKPOINT.title}, with {inside.title}"), found.tensors)


def family_of_part(tensors: Mapping[str, Tensor]) -> Match | None:
    """Return the family of one part of a model in several files, whose layers need not begin at 0."""
    numbered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        steps = name.split(".")
        place = next((at for at, step in enumerate(steps) if step.isdecimal()), None)
        if place is not None:
            steps[place] = "0"
        numbered.setdefault(".".join(steps), tensor)
    found = family_of(numbered)
    if found is None:
        found = next((Match(each, numbered) for each in FLUX2_PARTS if _belongs(numbered, each)), None)
    return found and Match(found.family, tensors)


def _first(views: Iterable[Mapping[str, Tensor]]) -> Match | None:
    filled = [view for view in views if view]
    return next((Match(each, view) for each in FAMILIES for view in filled if _belongs(view, each)), None)


def _behind(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    if not prefix:
        return tensors
    start = len(prefix)
    return {name[start:]: each for name, each in tensors.items() if name.startswith(prefix)}


def _belongs(tensors: Mapping[str, Tensor], family: Family) -> bool:
    return all(_is_there(tensors, mark) for mark in family.marks) and not any(name in tensors for name in family.lacks)


def _is_there(tensors: Mapping[str, Tensor], mark: Mark) -> bool:
    for name in mark.names:
        tensor = tensors.get(name)
        if tensor is not None and _fits(tensor.shape, mark):
            return True
    return False


def _fits(shape: tuple[int, ...], mark: Mark) -> bool:
    """Return whether the tensor has the dimensions that the mark names."""
    return (mark.first is None or shape[:1] == (mark.first,)) and (mark.second is None or shape[1:2] == (mark.second,))
