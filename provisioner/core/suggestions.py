"""What somebody probably meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

_MOST_NAMES, _LONGEST_WORD = 300, 100  # limit the cost of a hostile text


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the closest of the known names, whatever the case and the dashes before it; None where none is close.

    >>> closest("Instal", ["install", "plan"]), closest("--comfui", ["--comfyui", "--cpu"]), closest("xyz", ["plan"])
    ('install', '--comfyui', None)
    """
    import difflib  # needed only after a mistake

    names = {name.lstrip("-").casefold(): name for name in islice(known, _MOST_NAMES)}
    close = difflib.get_close_matches(word[:_LONGEST_WORD].lstrip("-").casefold(), names, n=1)
    return names[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence that begins with a blank and names the closest of the known names, or nothing.

    >>> did_you_mean("instal", ["install", "plan"])
    ' Did you mean install?'
    >>> did_you_mean("xyz", ["install", "plan"])
    ''
    """
    close = closest(word, known)
    return "" if close is None else f" Did you mean {close}?"
