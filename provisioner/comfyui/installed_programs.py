"""Looks for the ComfyUI trees of a computer: records of programs, the registry of Windows, unpacked portable builds.

Reads, and starts nothing.  Which places make sense is decided in ``launcher_records`` and ``disk/locations.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from provisioner.comfyui.batch_files import BatchFile, parse_batch_file
from provisioner.comfyui.launcher_records import Installed

_MOST_OF_A_RECORD = 4 * 1024 * 1024  # bytes; a settings.json of Stability Matrix has some 100 kB
_MOST_OF_A_BATCH_FILE = 64 * 1024  # bytes
_MOST_BATCH_FILES = 50
_UNINSTALL = r"Software\Microsoft\Windows\CurrentVersion\Uninstall"


def read_record(path: Path) -> str | None:
    """Return the text of a record; None where there is none that can be read, or it is too long for one."""
    return _text(path, _MOST_OF_A_RECORD)


def _text(path: Path, most: int) -> str | None:
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError):
        return None
    return None if len(data) > most else data.decode("utf-8", "replace")


def batch_files_of(folder: Path) -> tuple[BatchFile, ...]:
    """Return the batch files of a portable build's folder that start ComfyUI, and their flags; by name."""
    try:
        paths = sorted(each for each in folder.iterdir() if each.suffix.lower() == ".bat")
    except OSError:
        return ()
    texts = ((path.name, _text(path, _MOST_OF_A_BATCH_FILE)) for path in paths[:_MOST_BATCH_FILES])
    found = (parse_batch_file(name, text, str(folder)) for name, text in texts if text is not None)
    return tuple(each for each in found if each is not None)


def portable_builds(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return ComfyUI's folder in the portable builds that were unpacked in `folders`.

    The archive is named for the card (``ComfyUI_windows_portable_nvidia_cu126.7z``), and Windows unpacks it into a
    folder of that name, in which there is ``ComfyUI_windows_portable``.
    """
    found: list[Path] = []
    for folder in dict.fromkeys(folders):
        for pattern in ("ComfyUI_windows_portable*", "ComfyUI_windows_portable*/ComfyUI_windows_portable*"):
            try:
                found += sorted(each / "ComfyUI" for each in folder.glob(pattern))
            except OSError:
                continue  # a place we may not look into is no usual place
    return tuple(found)


def installed_on_windows() -> tuple[Installed, ...]:
    """Return the programs that Windows lists with a folder, the user's first; nothing outside Windows."""
    if sys.platform != "win32":
        return ()
    import winreg

    found: list[Installed] = []
    for hive, view in (
        (winreg.HKEY_CURRENT_USER, 0),
        (winreg.HKEY_LOCAL_MACHINE, winreg.KEY_WOW64_64KEY),
        (winreg.HKEY_LOCAL_MACHINE, winreg.KEY_WOW64_32KEY),
    ):
        try:
            with winreg.OpenKey(hive, _UNINSTALL, 0, winreg.KEY_READ | view) as parent:
                names = [winreg.EnumKey(parent, number) for number in range(winreg.QueryInfoKey(parent)[0])]
                for name in names:
                    values = _values(parent, name)
                    title, folder = values.get("DisplayName"), values.get("InstallLocation")
                    if isinstance(title, str) and isinstance(folder, str) and folder.strip('" '):
                        found.append(Installed(title, Path(folder.strip('" '))))
        except OSError:
            continue  # no such key: nothing was installed that way
    return tuple(dict.fromkeys(found))


def own_folders_on_windows() -> dict[str, Path]:
    r"""Return where Documents, Desktop and Downloads really are, which may be in OneDrive or on another drive.

    Nothing outside Windows, and nothing for a folder of which the registry says nothing
    (``Explorer\User Shell Folders``; the identifier is that of FOLDERID_Downloads in knownfolders.h).
    """
    if sys.platform != "win32":
        return {}
    import winreg

    key = r"Software\Microsoft\Windows\CurrentVersion\Explorer\User Shell Folders"
    values = _values(winreg.HKEY_CURRENT_USER, key)
    names = {"Documents": "Personal", "Desktop": "Desktop", "Downloads": "{374DE290-123F-4565-9164-39C4925E467B}"}
    texts = {own: values.get(name) for own, name in names.items()}
    return {
        own: Path(winreg.ExpandEnvironmentStrings(text))
        for own, text in texts.items()
        if isinstance(text, str) and text
    }


def _values(parent: object, name: str) -> dict[str, object]:
    """Return the values of a key; nothing where there is no such key, or no registry."""
    if sys.platform != "win32":
        return {}
    import winreg

    try:
        with winreg.OpenKey(cast("Any", parent), name) as key:
            rows = [winreg.EnumValue(key, number) for number in range(winreg.QueryInfoKey(key)[1])]
    except OSError:
        return {}
    return {row[0]: row[1] for row in rows}
