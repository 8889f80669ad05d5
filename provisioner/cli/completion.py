"""What completes the command in each shell, and its man page: files that ``scripts/make_completions.py`` writes."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "shell"
FILES = {
    "bash": "klein-setup.bash",
    "zsh": "_klein-setup",
    "fish": "klein-setup.fish",
    "powershell": "klein-setup.ps1",
    "man": "klein-setup.1",
}


def read_completion(shell: str) -> str:
    """Return the text for a shell, one of `FILES`."""
    return (FOLDER / FILES[shell]).read_text(encoding="utf-8")
