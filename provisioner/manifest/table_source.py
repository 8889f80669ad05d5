"""Where the facts of a table were read: `torch.yaml` and `comfyui.yaml` name a source for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """Where facts were read."""

    id: str
    what: str
    read_on: str  # ISO date
