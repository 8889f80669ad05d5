"""Finds the Pythons of this computer and asks each what it is; starts them, and changes nothing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from provisioner.core.errors import CommandError
from provisioner.core.json_reader import FieldError, Fields, parse_object
from provisioner.core.ports import RunProcess
from provisioner.disk.programs import find_on_path
from provisioner.environment.state import PythonFacts

ASK_TIMEOUT_S = 30.0

# Works on every Python from 2.7 on, so that an old one says what it is rather than a syntax error.
_QUESTION = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]  # nothing of the folder it is started in
import json, struct
def has(name):
    try:
        __import__(name)
        return True
    except Exception:
        return False
print(json.dumps({
    "version": "%d.%d.%d" % sys.version_info[:3],
    "prefix": sys.prefix,
    "base_prefix": getattr(sys, "base_prefix", sys.prefix),
    "bits": struct.calcsize("P") * 8,
    "free": not getattr(sys, "_is_gil_enabled", lambda: True)() or "t" in getattr(sys, "abiflags", ""),
    "implementation": getattr(getattr(sys, "implementation", None), "name", "cpython"),
    "venv": has("venv") and has("ensurepip"),
    "path": sys.path,
}))
"""


def ask_python(
    run: RunProcess, python: Path, env: Mapping[str, str], *, cwd: Path
) -> tuple[PythonFacts, tuple[str, ...]]:
    """Return what an interpreter says of itself, and where it would import from.

    Raises
    ------
    CommandError
        It does not start, or does not answer.
    """
    done = run([python, "-c", _QUESTION], timeout_s=ASK_TIMEOUT_S, env=env, cwd=cwd)
    lines = done.stdout.splitlines()
    said = Fields((parse_object(lines[-1]) if lines else None) or {})
    try:
        facts = PythonFacts(
            path=python,
            version=said.text("version"),
            prefix=Path(said.text("prefix")),
            base_prefix=Path(said.text("base_prefix")),
            bits=said.count("bits"),
            is_free_threaded=said.flag("free"),
            can_make_environments=said.flag("venv"),
            implementation=said.text("implementation"),
        )
        return facts, said.texts("path")
    except FieldError as error:
        last = done.last_lines[-1].strip() if done.last_lines else f"exit status {done.returncode}"
        message = f"{python} does not work as a Python: {last}"
        raise CommandError(message, hint="Name another one with --python.", path=str(python)) from error


def candidates(environ: Mapping[str, str], home: Path, *, platform: str = sys.platform) -> tuple[Path, ...]:
    """Return the interpreters worth asking, the one that runs us first, then the newest versions on the PATH."""
    found = [Path(getattr(sys, "_base_executable", "") or sys.executable)]
    folders = [Path(folder) for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    found += _on_path(environ, platform)
    found += _in_known_folders(home, environ, platform)
    is_store_alias = [folder for folder in folders if folder.name == "WindowsApps"]
    kept = [path for path in found if path.parent not in is_store_alias]  # these open a shop, not a Python
    return tuple(dict.fromkeys(kept))


def _on_path(environ: Mapping[str, str], platform: str) -> Iterator[Path]:
    names = ["python"] if platform == "win32" else [f"python3.{minor}" for minor in range(15, 9, -1)] + ["python3"]
    for name in names:
        program = find_on_path(name, environ, cwd=Path.cwd(), is_windows=platform == "win32")
        if program is not None:
            yield program


def _in_known_folders(home: Path, environ: Mapping[str, str], platform: str) -> Iterator[Path]:
    """Where python.org, uv, pyenv and Homebrew put theirs."""
    if platform == "win32":
        local = Path(environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
        places: Iterable[tuple[Path, str]] = (
            (local / "Programs" / "Python", "Python3*/python.exe"),
            (Path(environ.get("ProgramFiles", r"C:\Program Files")), "Python3*/python.exe"),
            (Path(environ.get("APPDATA", home / "AppData" / "Roaming"), "uv", "python"), "cpython-3*/python.exe"),
        )
    else:
        places = (
            (home / ".local" / "share" / "uv" / "python", "cpython-3*/bin/python3"),
            (home / ".pyenv" / "versions", "3.*/bin/python3"),
            (Path("/opt/homebrew/bin"), "python3.[0-9]*"),
            (Path("/Library/Frameworks/Python.framework/Versions"), "3.*/bin/python3"),
        )
    for folder, pattern in places:
        yield from sorted((each for each in folder.glob(pattern) if _is_plain(each)), key=_newest_first)


def _is_plain(path: Path) -> bool:
    return path.name in ("python3", "python.exe") or re.fullmatch(r"python3\.\d+", path.name) is not None


def _newest_first(path: Path) -> tuple[int, str]:
    numbers = re.findall(r"3\.?(\d+)", str(path))
    return -int(numbers[-1]) if numbers else 0, str(path)


def find_pythons(
    run: RunProcess,
    environ: Mapping[str, str],
    home: Path,
    *,
    env: Mapping[str, str],
    cwd: Path,
    wanted: Callable[[PythonFacts], bool],
) -> tuple[PythonFacts, ...]:
    """Ask the candidates, started with `env`, in turn until one is wanted; return all that answered, that one last."""
    found: list[PythonFacts] = []
    for path in candidates(environ, home):
        try:
            facts = ask_python(run, path, env, cwd=cwd)[0]
        except CommandError:
            continue  # a shim without a version behind it, a store alias: not a Python
        found.append(facts)
        if wanted(facts):
            break
    return tuple(found)
