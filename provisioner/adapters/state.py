"""What this program remembers between runs: the target of the last one, and logs of its own defects."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TypedDict

_SCHEMA_VERSION = 1


class LastRun(TypedDict):
    """The last target that something was provided in."""

    schema_version: int
    kind: str  # "comfyui" or "hf_cache"
    path: str
    manifest: str
    set: str


def read_last_run(folder: Path) -> LastRun | None:
    """Return what the last run left, or None if nothing readable is there."""
    try:
        document = json.loads((folder / "last-run.json").read_text(encoding="utf-8"))
        if document["schema_version"] != _SCHEMA_VERSION or document["kind"] not in {"comfyui", "hf_cache"}:
            return None
        return LastRun(
            schema_version=_SCHEMA_VERSION,
            kind=str(document["kind"]),
            path=str(document["path"]),
            manifest=str(document["manifest"]),
            set=str(document["set"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_last_run(folder: Path, *, kind: str, path: Path, manifest: str, set_id: str) -> None:
    """Remember a target; writes nothing if that is what is remembered, and a folder it may not write to is no error."""
    entry = LastRun(schema_version=_SCHEMA_VERSION, kind=kind, path=str(path.absolute()), manifest=manifest, set=set_id)
    if read_last_run(folder) == entry:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"last-run.json.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / "last-run.json")
    except OSError:
        return


def write_defect_log(folder: Path, text: str) -> Path | None:
    """Keep a defect's trace for a bug report; return its path, or None where it cannot be written."""
    path = folder / "logs" / time.strftime("defect-%Y%m%dT%H%M%SZ.txt", time.gmtime())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError:
        return None
    return path
