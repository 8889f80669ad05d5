"""By which words this program was started, so that what it prints can be pasted."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from provisioner.core.program import Program, Shell, quoted

_CHECKOUT_ENVIRONMENT = ".klein-setup-env"


def started_as(
    argv0: str,
    *,
    prefix: str = sys.prefix,
    executable: str = sys.executable,
    environ: Mapping[str, str] = os.environ,
    is_windows: bool = sys.platform == "win32",
) -> Program:
    """Return the words that start this program again from any folder.

    Parameters
    ----------
    argv0 : str
        ``sys.argv[0]``.
    prefix, executable : str
        Those of `sys`.
    environ : mapping
        ``PATH``; on Windows ``PROMPT`` tells cmd.exe from PowerShell, which does not set it.
    is_windows : bool
        Whether the commands are for Windows.
    """
    shell: Shell = "posix" if not is_windows else "cmd" if "PROMPT" in environ else "powershell"
    words = tuple(_words(argv0, prefix, executable, environ, is_windows=is_windows))
    return Program(_call(words, shell), shell, words)


def _words(argv0: str, prefix: str, executable: str, environ: Mapping[str, str], *, is_windows: bool) -> Sequence[str]:
    folders = Path(prefix).parts
    if _CHECKOUT_ENVIRONMENT in folders:
        checkout = Path(*folders[: folders.index(_CHECKOUT_ENVIRONMENT)])
        return "python" if is_windows else "python3", str(checkout / "scripts" / "klein_setup.py")
    if Path(argv0).name == "__main__.py":
        return executable, "-m", "provisioner"
    if "archive-v0" in folders or ("uv" in folders and "environments-v2" in folders):  # uv's cache (uv 0.5 to 0.9)
        return "uvx", "klein-setup"
    if "pipx" in folders and "venvs" not in folders:
        return "pipx", "run", "klein-setup"
    program = Path(argv0)
    name = program.stem if is_windows else program.name
    if name != "klein-setup" or _is_on_path(program, environ):
        return ("klein-setup",)
    return (str(program.absolute()),)


def _is_on_path(program: Path, environ: Mapping[str, str]) -> bool:
    """Whether a shell that is given the program's name alone starts it."""
    for folder in environ.get("PATH", "").split(os.pathsep):
        found = Path(folder, program.name)
        if folder and found.exists():
            return program.exists() and found.samefile(program)
    return not program.exists()  # Windows leaves out .exe, and the shell found it somehow


def _call(words: Sequence[str], shell: Shell) -> str:
    text = " ".join(quoted(word, shell) for word in words)
    return f"& {text}" if shell == "powershell" and text.startswith("'") else text
