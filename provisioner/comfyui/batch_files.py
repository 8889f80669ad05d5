r"""The flags that ComfyUI's portable build is started with, read from its ``run_*.bat``; never run.

The line with ``main.py`` counts: ``.\python_embeded\python.exe -s ComfyUI\main.py --windows-standalone-build --fast``.
People copy these files and change them, so every ``*.bat`` of the folder may be one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import PurePath, PureWindowsPath
from typing import NamedTuple

from provisioner.core.models import Finding

_START = re.compile(r"""main\.py["']?(?=\s|$)""", re.IGNORECASE)
_ENDS = re.compile(r"&|\||<|\d?>")  # what follows is another command, or where the output goes
_PATH_FLAGS = ("--base-directory", "--models-directory", "--extra-model-paths-config")


class BatchFile(NamedTuple):
    """A batch file that starts ComfyUI."""

    name: str
    flags: tuple[str, ...]

    @property
    def folders(self) -> tuple[tuple[str, str], ...]:
        """The flags that say where models are, each with what follows it; ``--x=y`` is two words as well."""
        words = [part for each in self.flags for part in (each.split("=", 1) if each.startswith("--") else [each])]
        found: list[tuple[str, str]] = []
        flag = ""
        for word in words:
            if word.startswith("--"):
                flag = word
            elif flag in _PATH_FLAGS:  # --extra-model-paths-config may have several
                found.append((flag, word))
        return tuple(found)


def parse_batch_file(name: str, text: str, folder: PureWindowsPath | str = "") -> BatchFile | None:
    r"""Return the flags after ``main.py``; None for a batch file that does not start ComfyUI.

    Parameters
    ----------
    name : str
        Of the file.
    text : str
        What is in it.
    folder : PureWindowsPath or str
        Where it is, for ``%~dp0`` and ``%CD%``.

    Examples
    --------
    >>> parse_batch_file("run.bat", 'python.exe -s ComfyUI\\main.py --fast --base-directory "D:\\my models"\npause')
    BatchFile(name='run.bat', flags=('--fast', '--base-directory', 'D:\\my models'))
    >>> parse_batch_file("update.bat", "git pull")
    """
    here = str(folder).rstrip("\\/")
    joined = re.sub(r"\^[ \t]*\r?\n", " ", text)
    for line in map(str.strip, joined.splitlines()):
        if re.match(r"@?(rem\b|::)", line, re.IGNORECASE):
            continue
        if (found := _START.search(line)) is not None:
            rest = re.sub(r"%~dp0\\?", lambda _: f"{here}\\", line[found.end() :], flags=re.IGNORECASE)
            rest = re.sub(r"%cd%", lambda _: here, rest, flags=re.IGNORECASE)
            return BatchFile(name, tuple(word for word in _words(rest) if not re.fullmatch(r"%[*0-9]", word)))
    return None


def unread_folders(files: Sequence[BatchFile], folder: PurePath, read: Collection[PurePath]) -> tuple[Finding, ...]:
    """Return a warning for each folder or YAML file that a batch file gives to ComfyUI and that was not looked at.

    Parameters
    ----------
    files : sequence of BatchFile
        Those of a portable build.
    folder : PurePath
        Where they are, and where ComfyUI then starts.
    read : collection of PurePath
        The folders and YAML files that were looked at.
    """
    known = {PureWindowsPath(each) for each in read}
    named: dict[tuple[str, PureWindowsPath], list[str]] = {}
    for file in files:
        for flag, word in file.folders:
            path = PureWindowsPath(folder) / word
            if path not in known:
                named.setdefault((flag, path), []).append(file.name)
    return tuple(_unread(names, flag, path) for (flag, path), names in named.items())


def _unread(names: Sequence[str], flag: str, path: PureWindowsPath) -> Finding:
    if flag == "--extra-model-paths-config":
        what, hint = "which was not read here", f'Give it here as well: --extra-model-paths "{path}"'
    else:
        what, hint = "and not from the folder that is looked at here", f'Name that folder: --comfyui "{path}"'
    start = f"{' and '.join(names)} {'starts' if len(names) == 1 else 'start'} ComfyUI with {flag} {path}"
    return Finding(
        code="comfyui-started-elsewhere",
        severity="warning",
        remedy="by-hand",
        message=f"{start}: it reads models from there, {what}.",
        hint=f"{hint}. Or remove the flag from the batch file.",
    )


def _words(line: str) -> list[str]:
    """Return the words of the first command of a line: quotes hold spaces together, and an ``&`` or ``>`` ends it."""
    words: list[str] = []
    current, is_quoted, has_begun, at = "", False, False, 0
    while at < len(line):
        character = line[at]
        if character == '"':
            is_quoted, has_begun = not is_quoted, True
        elif not is_quoted and _ENDS.match(line, at) and (character in "&|<>" or not has_begun):
            break
        elif not is_quoted and character.isspace():
            if has_begun:
                words.append(current)
            current, has_begun = "", False
        else:
            if character == "^" and not is_quoted and at + 1 < len(line):
                at += 1
            current, has_begun = current + line[at], True
        at += 1
    return [*words, current] if has_begun else words
