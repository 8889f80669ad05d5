"""What somebody probably meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence that begins with a blank and names the closest of the known names, or nothing.

    >>> did_you_mean("instal", ["install", "plan"])
    ' Did you mean install?'
    >>> did_you_mean("--comfui", ["--comfyui", "--cpu"])
    ' Did you mean --comfyui?'
    >>> did_you_mean("xyz", ["install", "plan"])
    ''
    """
    import difflib  # needed only after a mistake

    names = {name.lstrip("-").casefold(): name for name in known}
    close = difflib.get_close_matches(word.lstrip("-").casefold(), names, n=1)
    return f" Did you mean {names[close[0]]}?" if close else ""
