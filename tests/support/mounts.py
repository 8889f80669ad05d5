"""Mounts of a process's own, where the system lets this user make them."""

from __future__ import annotations

import shutil
import subprocess


def own_mounts() -> list[str] | None:
    """Return the words that start a program with mounts of its own; None where this user may make none."""
    for words in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        if shutil.which("unshare"):
            done = subprocess.run([*words, "true"], check=False, capture_output=True)
            if done.returncode == 0:
                return words
    return None
