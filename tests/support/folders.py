"""Folders with empty files in them, and links between folders as users of each system make them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.wine import skip_without


def make(root: Path, *entries: str) -> Path:
    """Make files, and folders where a name ends in a slash."""
    root.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        path = root / entry
        if entry.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
    return root


def link_folder(link: Path, real: Path) -> None:
    """Make a link to a folder as a user of this system would: on Windows a junction, which needs no privilege."""
    if sys.platform == "win32":
        skip_without("junctions")
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(real)], check=True, capture_output=True)
    else:
        link.symlink_to(real, target_is_directory=True)
