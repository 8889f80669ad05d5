"""How this program was started, and how its commands are written so that they can be pasted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Shell = Literal["posix", "cmd", "powershell"]

_SPECIAL: dict[Shell, re.Pattern[str]] = {
    "cmd": re.compile(r"[\s&()^;,='|<>\"]"),
    "powershell": re.compile(r"[\s&(){};,'`$@|<>#\"]"),
}
"""What a word may not hold outside quotes (Microsoft, "cmd" and "about_Quoting_Rules")."""


@dataclass(frozen=True, slots=True)
class Program:
    """The words that start this program again, and the shell that they are written for."""

    name: str = "klein-setup"
    shell: Shell = "posix"
    words: tuple[str, ...] = ("klein-setup",)  # of `name`, as a program is started without a shell

    def command(self, verb: str, words: Iterable[str] = ()) -> str:
        """Return a command of this program, ready to paste.

        >>> Program().command("verify", ["--comfyui", "/my models"])
        "klein-setup verify --comfyui '/my models'"
        """
        return " ".join((self.name, verb, *(quoted(word, self.shell) for word in words)))

    def as_started(self, text: str) -> str:
        """Return text with the commands in it, which stand in backquotes, as this program was started.

        >>> Program("uvx klein-setup").as_started("Run `klein-setup repair`.")
        'Run `uvx klein-setup repair`.'
        """
        return text.replace("`klein-setup ", f"`{self.name} ")


KLEIN_SETUP = Program()
"""The program as it is called where it is installed."""


def quoted(word: str, shell: Shell) -> str:
    r"""Return a word as it is written in that shell.

    >>> print(quoted("my models", "cmd"), quoted("it's", "powershell"))
    "my models" 'it''s'
    """
    if shell == "posix":
        import shlex  # only where there is a command to show

        return shlex.quote(word)
    if word and not _SPECIAL[shell].search(word):
        return word
    return f'"{word}"' if shell == "cmd" else "'" + word.replace("'", "''") + "'"
