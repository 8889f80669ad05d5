"""Reads from its files what an environment's Python is and where it imports from; the Python itself is not started.

An environment may lie in a stranger's tree, and its Python may be any program.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from provisioner.environment.state import PythonFacts, python_number
from provisioner.environment.swap import read_text

_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?")
_NAMED = re.compile(r"python(\d)\.?(\d+)(t?)(?:\.exe|\.dll|\._pth)?", re.IGNORECASE)


def read_python(where: Path, python: Path) -> PythonFacts | str:
    """Return what an environment's Python is, or a clause that says why it cannot be used.

    Parameters
    ----------
    where : Path
        The environment: of ``venv``, virtualenv, uv or conda, or the folder of a portable ComfyUI's Python.
    python : Path
        Its interpreter, which is there.
    """
    if not python.is_file() or not os.access(python, os.X_OK):
        return f"{python} is not a program."
    config = read_config(where)
    home = Path(config["home"]) if config.get("home") else None
    if home is not None and not home.is_dir():
        return f"the Python it was made from is gone: {home}."
    version = _version(where, python, config)
    if version is None:
        return f"no file in it says which Python {python} is."
    return PythonFacts(
        path=python,
        version=version,
        prefix=where,
        base_prefix=where if home is None else home.parent if home.name in {"bin", "Scripts"} else home,
        is_free_threaded=any(folder.parent.name.endswith("t") for folder in _packages(where, version)),
        implementation=config.get("implementation", "cpython").lower(),
    )


def read_config(where: Path) -> dict[str, str]:
    """Return the lines of ``pyvenv.cfg``, names in lower case; empty where there is none."""
    rows = (line.partition("=") for line in (read_text(where / "pyvenv.cfg") or "").splitlines())
    return {name.strip().lower(): value.strip() for name, equals, value in rows if equals}


def _version(where: Path, python: Path, config: Mapping[str, str]) -> str | None:
    """Return "3.12.4", or "3.12" where no file says more."""
    written = _VERSION.match(config.get("version_info") or config.get("version") or _conda_version(where) or "")
    named = _version_of_program(where, python)
    if named is None or (written is not None and python_number(named) == python_number(written[0])):
        return written[0] if written is not None else None
    return named  # the Python it was made from has another version now


def _version_of_program(where: Path, python: Path) -> str | None:
    """Return the version in the name of the program that a link leads to, or of the files beside a Windows one."""
    for name in (python.resolve().name, *sorted(_names(where, "*._pth")), *sorted(_names(where, "python3??.dll"))):
        found = _NAMED.fullmatch(name)
        if found is not None:
            return f"{found[1]}.{found[2]}"
    folders = sorted(_names(where / "lib", "python3.*"))
    found = _NAMED.fullmatch(folders[-1]) if folders and not (where / "pyvenv.cfg").exists() else None
    return f"{found[1]}.{found[2]}" if found is not None else None


def _conda_version(where: Path) -> str | None:
    for name in _names(where / "conda-meta", "python-3*.json"):
        return name.split("-")[1]
    return None


def _names(folder: Path, pattern: str) -> Iterator[str]:
    return (path.name for path in folder.glob(pattern))


# --- where it imports from -------------------------------------------------------------------------------


def import_path(where: Path, python: PythonFacts, environ: Mapping[str, str], home: Path) -> tuple[str, ...]:
    """Return the folders an environment's Python imports packages from, in its order.

    Parameters
    ----------
    where : Path
        The environment.
    python : PythonFacts
        As `read_python` gave it.
    environ : mapping
        The user's variables: ``PYTHONPATH`` counts when they start ComfyUI themselves.
    home : Path
        The user's home folder.
    """
    own = _packages(where, python.version)
    is_alone = any(_names(where, "python*._pth"))  # a portable Python heeds no variables
    config = read_config(where)
    sees_others = not is_alone and (not config or config.get("include-system-site-packages", "").lower() == "true")
    first = [] if is_alone else [each for each in environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    others = []
    if sees_others:
        base = _system_packages(python.base_prefix, python.version) if python.base_prefix != where else ()
        user = () if environ.get("PYTHONNOUSERSITE") else _user_packages(environ, home, python.version)
        others = [*user, *base]
    folders = [each for folder in (*own, *others) for each in (folder, *_named_in_pth(folder))]
    return tuple(dict.fromkeys([*first, *map(str, folders)]))


def _packages(prefix: Path, version: str) -> tuple[Path, ...]:
    """Return the folders of packages below a prefix."""
    minor = ".".join(map(str, python_number(version)))
    names = (f"lib/python{minor}", f"lib/python{minor}t", f"lib64/python{minor}", "Lib")
    found: dict[Path, Path] = {}
    for folder in (prefix / name / "site-packages" for name in names):
        if folder.is_dir():
            found.setdefault(folder.resolve(), folder)  # `lib64` is mostly a link to `lib`
    return tuple(found.values())


def _system_packages(prefix: Path, version: str) -> Iterable[Path]:
    minor = ".".join(map(str, python_number(version)))
    debian = (prefix / "local" / "lib" / f"python{minor}" / "dist-packages", prefix / "lib/python3/dist-packages")
    return (*_packages(prefix, version), *(folder for folder in debian if folder.is_dir()))


def _user_packages(environ: Mapping[str, str], home: Path, version: str) -> tuple[Path, ...]:
    major, minor = python_number(version)
    given = environ.get("PYTHONUSERBASE")
    if sys.platform == "win32":
        base = Path(given or Path(environ.get("APPDATA") or home / "AppData" / "Roaming", "Python"))
        folder = base / f"Python{major}{minor}" / "site-packages"
    else:
        folder = Path(given or home / ".local") / "lib" / f"python{major}.{minor}" / "site-packages"
    return (folder,) if folder.is_dir() else ()


def _named_in_pth(folder: Path) -> Iterator[Path]:
    """Yield the folders that the ``.pth`` files of a folder of packages add; their code is not run."""
    for file in sorted(folder.glob("*.pth")):
        for line in (read_text(file) or "").splitlines():
            added = folder / line.strip()
            if line.strip() and not line.startswith(("#", "import ", "import\t")) and added.is_dir():
                yield added
