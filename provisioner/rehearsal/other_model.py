"""A second model for the rehearsal: of another family, with names that are made up anew each time, so no code knows it.

Its workflow (`tables/other_workflow.json`) is one that ComfyUI's editor opens.  The files are small; ComfyUI loads them
where `is_loadable` says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from provisioner.core.models import Role
from provisioner.rehearsal.tiny_models import TABLES, TinyFile, expanded, safetensors_file, shrunk

_PARTS: tuple[tuple[str, Role, str], ...] = (
    ("model", "diffusion_model", "diffusion_models"),
    ("encoder", "text_encoder", "text_encoders"),
    ("vae", "vae", "vae"),
)
_AMPLIFIED = frozenset(f"taesd_decoder.{number}.weight" for number in (1, 7, 12, 17, 19))  # else the image is black
_PLACEHOLDER = "NAME"  # in the workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherModel:
    """A workflow, and the files that its links lead to."""

    workflow: bytes
    repo_id: str
    files: tuple[TinyFile, ...]

    @property
    def published(self) -> dict[str, bytes]:
        """The files by their place in the repository."""
        return {f"split_files/{each.folder}/{each.name}": each.data for each in self.files}


def other_model(name: str, *, is_loadable: bool = False) -> OtherModel:
    """Return the second model.

    Parameters
    ----------
    name : str
        What its repository and its files are called by: letters and digits.
    is_loadable : bool
        With a text encoder as large as ComfyUI takes it (246 MB), instead of one of 0.1 MB.
    """
    table = cast("dict[str, Any]", json.loads((TABLES / "other_model.json").read_text(encoding="utf-8")))
    files = []
    for part, role, folder in _PARTS:
        tensors = tuple(tensor for row in table[part] for tensor in expanded(*row))
        if role == "text_encoder" and not is_loadable:
            tensors = shrunk(tensors, 64)
        files.append(
            TinyFile(role, f"{name}-{part}.safetensors", folder, safetensors_file(tensors, amplified=_AMPLIFIED))
        )
    workflow = (TABLES / "other_workflow.json").read_text(encoding="utf-8").replace(_PLACEHOLDER, name)
    return OtherModel(workflow=workflow.encode(), repo_id=f"{name}/{name}", files=tuple(files))
