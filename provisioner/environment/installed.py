"""Reads what is installed in an environment from its files: dist-info, ``version.py``; torch is never imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from provisioner.environment.state import FAMILY, Distribution, SecondTorch
from provisioner.environment.swap import read_text

_METADATA_BYTES = 256 * 1024  # the headers stand first; torch's METADATA has about 30 kB
_VERSION_LINE = re.compile(r"^__version__\s*(?::[^=]*)?=\s*['\"]([^'\"]+)['\"]", re.M)
_CUDA_LINE = re.compile(r"^cuda\s*(?::[^=]*)?=\s*['\"]([^'\"]+)['\"]", re.M)


def python_in(where: Path) -> Path | None:
    """Return the interpreter of an environment, a portable ComfyUI's included; None where there is none."""
    for relative in ("bin/python", "Scripts/python.exe", "python.exe", "bin/python3"):
        path = where / relative
        if os.path.lexists(path):
            return path
    return None


def read_distributions(folders: Iterable[Path]) -> tuple[Distribution, ...]:
    """Return every distribution whose dist-info lies in one of the folders, in their order."""
    found: list[Distribution] = []
    for folder in dict.fromkeys(folders):
        for info in sorted(_listed(folder, ".dist-info")):
            distribution = _read_one(info)
            if distribution is not None:
                found.append(distribution)
    return tuple(found)


def _listed(folder: Path, suffix: str) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffix) and not entry.name.startswith("~"):
                    yield Path(entry.path)
    except OSError:
        return  # a zip file, or a folder that is named and not there


def _read_one(info: Path) -> Distribution | None:
    text = read_text(info / "METADATA", _METADATA_BYTES)
    if text is None:
        return None  # an interrupted uninstall takes METADATA first
    headers = parse_metadata(text)
    name, version = headers.get("name"), headers.get("version")
    if not name or not version:
        return None
    name = canonicalize_name(name)
    built, cuda = _read_version_file(info.parent / name / "version.py") if name in FAMILY else (None, None)
    return Distribution(name=name, version=version, location=info.parent, built_version=built, cuda=cuda, info=info)


def parse_metadata(text: str) -> dict[str, str]:
    """Return the headers of a METADATA file by their lower-case names; of those that repeat, the last."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            break
        key, colon, value = line.partition(":")
        if colon and not line.startswith((" ", "\t")):
            found[key.strip().lower()] = value.strip()
    return found


def _read_version_file(path: Path) -> tuple[str | None, str | None]:
    text = read_text(path) or ""
    version, cuda = _VERSION_LINE.search(text), _CUDA_LINE.search(text)
    return version[1] if version else None, cuda[1] if cuda else None


def read_leftovers(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return the folders that an interrupted pip left: it renames what it uninstalls to ``~name``."""
    found: list[Path] = []
    for folder in dict.fromkeys(folders):
        try:
            found += sorted(path for path in folder.iterdir() if path.name.startswith("~"))
        except OSError:
            continue
    return tuple(found)


def own_folders(where: Path, import_path: Sequence[str]) -> tuple[Path, ...]:
    """Return the folders of packages on the import path that lie in the environment itself."""
    root = where.resolve()
    folders = [Path(entry) for entry in import_path]
    return tuple(folder for folder in folders if folder.name == "site-packages" and root in folder.resolve().parents)


def read_second_torches(own: Sequence[Path], import_path: Sequence[str]) -> tuple[SecondTorch, ...]:
    """Return every torch beside the one in the environment's own folders."""
    found = [
        SecondTorch(path=info, why="another torch is recorded in the same folder")
        for folder in own
        for info in sorted(path for path in _listed(folder, ".dist-info") if path.name.startswith("torch-"))[1:]
    ]
    ours = {folder.resolve() for folder in own}
    has_met_ours = False
    for entry in dict.fromkeys(import_path):
        folder = Path(entry)
        is_ours = folder.resolve() in ours
        has_met_ours = has_met_ours or (is_ours and (folder / "torch").is_dir())
        if is_ours or not (folder / "torch" / "__init__.py").is_file():
            continue
        found.append(SecondTorch(path=folder / "torch", why=f"{folder} is on the path", is_first=not has_met_ours))
    return tuple(found)
