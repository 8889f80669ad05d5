"""Finds programs on the PATH, and never one that merely lies in the folder we are started in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def find_on_path(name: str, environ: Mapping[str, str], *, cwd: Path, is_windows: bool) -> Path | None:
    """Return the absolute path of a program on ``PATH``, or None.

    Relative entries and the current directory are skipped, so that a program somebody put
    there is never started (Comfy-Org/comfy-cli#641).  On Windows only ``.exe`` counts: a batch
    file would go through a shell.
    """
    file_name = f"{name}.exe" if is_windows and not name.lower().endswith(".exe") else name
    for entry in (environ.get("PATH") or "").split(";" if is_windows else ":"):
        folder = Path(entry.strip('"'))
        if not entry or not folder.is_absolute() or folder == cwd:
            continue
        candidate = folder / file_name
        try:
            is_program = candidate.is_file() and os.access(candidate, os.X_OK)
        except (OSError, ValueError):
            continue
        if is_program:
            return candidate
    return None
