"""The commands that README.md and docs/ show, read from their fenced blocks.

A block that is to be typed is fenced as ``sh`` or ``powershell``; every other block has another name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
SHELLS = ("sh", "powershell")
NAMES = (*SHELLS, "text", "json", "python", "yaml", "toml", "help")
_STARTS = (["klein-setup"], ["uvx", "klein-setup"], ["pipx", "run", "klein-setup"])
_SCRIPT = re.compile(r"(?:.*[/\\])?(?:scripts[/\\]klein_setup|klein-setup)\.py")  # of a checkout, of a bundle


@dataclass(frozen=True, kw_only=True)
class Typed:
    """One command of a block.

    Attributes
    ----------
    words : tuple of str
        Its words as the shell passes them, without what stands before and after.
    environ : dict of str to str
        Variables that are set for it.
    output : str or None
        The file that its stdout goes to.
    line : str
        The line as it is shown.
    """

    words: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)
    output: str | None = None
    line: str

    @property
    def arguments(self) -> tuple[str, ...] | None:
        """What klein-setup gets; None for another program."""
        words = list(self.words)
        for start in _STARTS:
            if words[: len(start)] == start:
                return tuple(words[len(start) :])
        if words[0] in {"python3", "python"} and len(words) > 1 and _SCRIPT.fullmatch(words[1]):
            return tuple(words[2:])
        return None


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield (name, content) of each fenced block of a page, one inside a list included."""
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        fence = re.match(r"\s*```(\S*)", line)
        if fence is None:
            lines.append(line)
        elif name is None:
            name, lines = fence[1], []
        else:
            yield name, "\n".join(lines)
            name = None


def commands(page: Path) -> list[Typed]:
    """Return every command in the blocks of a page, in their order."""
    return [
        typed
        for name, content in blocks(page.read_text(encoding="utf-8"))
        if name in SHELLS
        for line in content.splitlines()
        for typed in parse_line(line, is_posix=name == "sh")
    ]


def parse_line(line: str, *, is_posix: bool = True) -> Iterator[Typed]:
    r"""Yield the commands of one line.

    >>> [typed.words for typed in parse_line("git clone X && python3 X/scripts/klein_setup.py plan # first")]
    [('git', 'clone', 'X'), ('python3', 'X/scripts/klein_setup.py', 'plan')]
    >>> typed = next(parse_line("A=1 klein-setup verify --json > a.json"))
    >>> typed.words, typed.environ, typed.output
    (('klein-setup', 'verify', '--json'), {'A': '1'}, 'a.json')
    >>> next(parse_line(r"klein-setup plan --comfyui C:\X", is_posix=False)).arguments
    ('plan', '--comfyui', 'C:\\X')
    """
    reader = shlex.shlex(line, posix=True, punctuation_chars="&;>")
    reader.whitespace_split = True
    if not is_posix:
        reader.escape = ""
    words: list[str] = []
    for word in [*reader, ";"]:
        if word not in {"&&", ";"}:
            words.append(word)
        elif words:
            environ = {}
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                environ[name] = value
            output = None
            if len(words) > 2 and words[-2] == ">":
                output = words[-1]
                words = words[:-2]
            yield Typed(words=tuple(words), environ=environ, output=output, line=line.strip())
            words = []
