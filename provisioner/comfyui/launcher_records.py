"""Where the programs that install ComfyUI for people write down where it is, and what their records say.

Pure: the caller reads.  Records are somebody else's: whatever has not the form that is expected names nothing, and
what is named still has to look like a ComfyUI.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from provisioner.core.json_reader import as_dict, as_list
from provisioner.core.models import OperatingSystem

Read = Callable[[Path], "str | None"]
"""Returns the text of a file; None where there is none, or it is too long for a record."""


class Installed(NamedTuple):
    """A program that Windows lists under "Apps", from the uninstall keys of its registry."""

    name: str  # DisplayName
    folder: Path  # InstallLocation


def recorded_trees(
    read: Read,
    home: Path,
    environ: Mapping[str, str],
    system: OperatingSystem,
    *,
    drives: Sequence[Path] = (),
    installed: Sequence[Installed] = (),
) -> tuple[Path, ...]:
    """Return the folders that the records of Comfy Desktop, ComfyUI Desktop and Stability Matrix name, in this order.

    Then the folders in which Pinokio and SwarmUI keep theirs, and those of programs that Windows has listed.  None of
    them has to exist.

    Parameters
    ----------
    read : callable
        Reads a record.
    home : Path
        The user's home folder.
    environ : mapping
        ``APPDATA`` on Windows, ``XDG_CONFIG_HOME`` and ``XDG_DATA_HOME`` elsewhere.
    system : OperatingSystem
        Which records there can be.
    drives : sequence of Path
        Roots of the drives of a Windows computer, where portable programs lie.
    installed : sequence of Installed
        What Windows lists.

    Notes
    -----
    Read in Comfy-Org/ComfyUI-Desktop-2.0-Beta of 2026-06-13 (its folders: docs.comfy.org of 2026-08-21),
    Comfy-Org/desktop of 2026-05-28, LykosAI/StabilityMatrix of 2026-07-22, pinokiofactory/comfy of 2025-12-02 and
    mcmonkeyprojects/SwarmUI of 2026-08-21.
    """
    config = _config_folder(home, environ, system)
    ours = [each.folder for each in installed if _is_about_comfyui(each.name)]
    found = [
        *_desktop(read(desktop_record(home, environ, system)), system),
        *_old_desktop(read(config / "ComfyUI" / "config.json"), system),
        *_stability_matrix(read, [config / "StabilityMatrix", *_portable_matrices(drives), *ours], system),
    ]
    for root in (home, *drives, *(each.parent for each in ours)):
        found += [root / "pinokio" / "api" / name / "app" for name in ("comfy.git", "comfy")]
        found.append(root / "SwarmUI" / "dlbackend" / "comfy" / "ComfyUI")
    found += [folder / name for folder in ours for name in (".", "ComfyUI", "resources/ComfyUI")]
    return tuple(dict.fromkeys(found))


def _config_folder(home: Path, environ: Mapping[str, str], system: OperatingSystem) -> Path:
    if system == "windows":
        return Path(environ.get("APPDATA") or home / "AppData" / "Roaming")
    if system == "macos":
        return home / "Library" / "Application Support"
    return Path(environ.get("XDG_CONFIG_HOME") or home / ".config")


def desktop_record(home: Path, environ: Mapping[str, str], system: OperatingSystem) -> Path:
    """Return the file in which Comfy Desktop (2) lists what it installed; parameters as for `recorded_trees`."""
    if system == "linux":
        folder = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "comfyui-desktop-2"
    else:
        folder = _config_folder(home, environ, system) / "Comfy Desktop"
    return folder / "installations.json"


def _portable_matrices(drives: Sequence[Path]) -> list[Path]:
    """Return the data folders of portable copies of Stability Matrix: ``Data`` beside the program."""
    return [drive / "StabilityMatrix" / "Data" for drive in drives]


def _is_about_comfyui(name: str) -> bool:
    words = name.casefold().replace(" ", "")
    return any(each in words for each in ("comfyui", "comfydesktop", "stabilitymatrix", "pinokio", "swarmui"))


# --- what the records say ------------------------------------------------------------------------


def _desktop(text: str | None, system: OperatingSystem) -> Iterator[Path]:
    """Yield the trees of Comfy Desktop (2): one record for each installation, but for those in the cloud."""
    for record in map(as_dict, as_list(_json(text))):
        if record.get("sourceId") == "cloud":
            continue
        if (folder := _folder(record.get("installPath"), system)) is not None:
            yield folder / "ComfyUI"
        if (adopted := _folder(record.get("adoptedBaseDir"), system)) is not None:  # of the older ComfyUI Desktop
            yield adopted


def _old_desktop(text: str | None, system: OperatingSystem) -> Iterator[Path]:
    """Yield the base folder of ComfyUI Desktop, which holds models and no program."""
    if (folder := _folder(as_dict(_json(text)).get("basePath"), system)) is not None:
        yield folder


def _stability_matrix(read: Read, folders: Sequence[Path], system: OperatingSystem) -> Iterator[Path]:
    """Yield ComfyUI of Stability Matrix, whose packages have the folders that a person named."""
    for folder in folders:
        named = _folder(as_dict(_json(read(folder / "library.json"))).get("LibraryPath"), system)
        for library in (named, folder):
            if library is None:
                continue
            settings = as_dict(_json(read(library / "settings.json")))
            for package in map(as_dict, as_list(settings.get("InstalledPackages"))):
                inside = package.get("LibraryPath")
                if package.get("PackageName") == "ComfyUI" and isinstance(inside, str):
                    yield library / (inside.replace("\\", "/") if system == "windows" else inside)


def _json(text: str | None) -> object:
    try:
        return json.loads((text or "null").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


def _folder(value: object, system: OperatingSystem) -> Path | None:
    """Return a folder that a record names in full, with forward slashes, which Windows reads as well."""
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    text = value.replace("\\", "/") if system == "windows" else value
    is_whole = text.startswith("/") or (system == "windows" and text[1:3] == ":/")
    return Path(text) if is_whole else None
