"""File systems, and where people and this program keep things: the ComfyUI trees, the user's data and state folders.

Asks the system, starts no program, writes nothing.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Final

from provisioner.core.errors import StorageError
from provisioner.core.models import FileSystem, OperatingSystem

APPLICATION: Final = "klein-setup"
_LONGEST_ON_WINDOWS = 259  # MAX_PATH less the NUL at the end


# --- file systems ------------------------------------------------------------------------------


def file_system_of(path: Path) -> FileSystem:
    """Return the file system a path is on, or would be on once its folders exist.

    Free space is that of this user: blocks kept for root are not counted.

    Raises
    ------
    StorageError
        No folder above the path exists, or the system does not answer.
    """
    folder, status = _nearest_folder(path.absolute())
    try:
        total_bytes, free_bytes = _total_and_free(folder)
    except OSError as error:
        raise StorageError(
            f"the free space of {folder} is not known: {error.strerror or error}", path=str(folder)
        ) from error
    return FileSystem(path=folder, device=status.st_dev, total_bytes=total_bytes, free_bytes=free_bytes)


def _total_and_free(folder: Path) -> tuple[int, int]:
    if sys.platform == "win32":
        import shutil  # elsewhere its three compression libraries cost 5 ms of every start

        usage = shutil.disk_usage(folder)
        return usage.total, usage.free
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _nearest_folder(path: Path) -> tuple[Path, os.stat_result]:
    for folder in (path, *path.parents):
        try:
            status = folder.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            if folder.is_symlink():  # its parent may be on another file system than what it will lead to
                raise StorageError(
                    f"{folder} is a link that leads nowhere", hint="attach the drive it leads to", path=str(path)
                ) from error
            continue
        except (OSError, ValueError) as error:
            raise StorageError(f"{folder} cannot be looked at: {error}", path=str(path)) from error
        if stat.S_ISDIR(status.st_mode):
            return folder, status
    raise StorageError(
        f"no folder above {path} exists", hint="attach the drive, or name another folder", path=str(path)
    )


def own_folder_on_windows(environ: Mapping[str, str], *, platform: str = sys.platform) -> Path | None:
    r"""Return ``%LOCALAPPDATA%\klein-setup``, where everything of the user's is on Windows; None elsewhere.

    The variable counts, as it does for the programs that are started, and not what the system says behind its back:
    whoever sets it to another folder, a test for one, finds nothing in the profile.
    """
    local = environ.get("LOCALAPPDATA", "")
    return Path(local) / APPLICATION if platform == "win32" and PureWindowsPath(local).is_absolute() else None


def state_folder() -> Path:
    """Return the user's folder for what runs leave behind: logs, reports, the last target."""
    if (own := own_folder_on_windows(os.environ)) is not None:
        return own
    if sys.platform == "linux":  # the plain cases, as platformdirs has them, without the 5 ms that importing it takes
        given = os.environ.get("XDG_STATE_HOME") or f"{os.environ.get('HOME', '')}/.local/state"
        if given.startswith("/") and os.environ.get("HOME", "").startswith("/"):
            return Path(given) / APPLICATION
    import platformdirs

    return platformdirs.user_state_path(APPLICATION, appauthor=False)


def config_file() -> Path:
    """Return where the user's own defaults for options are, if there are any."""
    name = f"{APPLICATION}.toml"
    if (own := own_folder_on_windows(os.environ)) is not None:
        return own / name
    if sys.platform == "linux":  # the plain cases, as above
        given = os.environ.get("XDG_CONFIG_HOME") or f"{os.environ.get('HOME', '')}/.config"
        if given.startswith("/") and os.environ.get("HOME", "").startswith("/"):
            return Path(given) / APPLICATION / name
    import platformdirs

    return platformdirs.user_config_path(APPLICATION, appauthor=False) / name


def own_cache_folder() -> Path:
    """Return the user's folder for what can be fetched again: wheels."""
    if (own := own_folder_on_windows(os.environ)) is not None:
        return own / "Cache"  # as platformdirs has it
    import platformdirs

    return platformdirs.user_cache_path(APPLICATION, appauthor=False)


def data_folder() -> Path:
    """Return the user's folder for images and for an environment that belongs to no tree."""
    if (own := own_folder_on_windows(os.environ)) is not None:
        return own
    import platformdirs

    return platformdirs.user_data_path(APPLICATION, appauthor=False)


def longest_path() -> int | None:
    """Return how many characters a path may have for programs to open it; None where no such limit is known.

    Windows: 259 unless long paths are allowed on the computer and this program says that it can handle them, which
    python.exe says, and with it the one that runs ComfyUI.
    https://learn.microsoft.com/windows/win32/fileio/maximum-file-path-limitation
    """
    if sys.platform != "win32":
        return None
    import ctypes

    are_enabled = getattr(ctypes.windll.ntdll, "RtlAreLongPathsEnabled", None)  # since Windows 10, 1607
    return _LONGEST_ON_WINDOWS if are_enabled is not None and not are_enabled() & 0xFF else None


# --- ComfyUI trees -----------------------------------------------------------------------------


def usual_comfyui_trees(
    home: Path, environ: Mapping[str, str], system: OperatingSystem, *, cwd: Path, drives: Sequence[Path] = ()
) -> tuple[Path, ...]:
    """Return where people keep ComfyUI, the likeliest first, whether it is there or not.

    Parameters
    ----------
    home : Path
        The user's home folder.
    environ : mapping
        Environment: ``APPDATA`` and ``OneDrive`` on Windows, ``XDG_CONFIG_HOME`` on Linux.
    system : OperatingSystem
        Which of the places make sense.
    cwd : Path
        The current directory, the first place of all.
    drives : sequence of Path
        Roots of the drives of a Windows computer.
    """
    documents = [home / "Documents"]
    if system == "windows" and environ.get("OneDrive"):
        documents.append(Path(environ["OneDrive"]) / "Documents")  # Windows may keep Documents there
    places = [cwd, home / "ComfyUI", home / "comfy" / "ComfyUI", *(folder / "ComfyUI" for folder in documents)]
    if system == "windows":
        for folder in (home, home / "Desktop", home / "Downloads", *documents, *drives):
            places.append(folder / "ComfyUI_windows_portable" / "ComfyUI")
        places += [drive / "ComfyUI" for drive in drives]
    places += [folder / "Packages" / "ComfyUI" for folder in _stability_matrix_folders(home, environ, system, drives)]
    if system != "windows":
        places += [Path("/workspace/ComfyUI"), Path("/opt/ComfyUI")]
    return tuple(dict.fromkeys(places))


def _stability_matrix_folders(
    home: Path, environ: Mapping[str, str], system: OperatingSystem, drives: Sequence[Path]
) -> list[Path]:
    """Return its data folders: that of the user, and ``Data`` beside a portable program (its issue 21)."""
    if system == "windows":
        roaming = Path(environ.get("APPDATA") or home / "AppData" / "Roaming")
        portable = [drive / "StabilityMatrix" for drive in drives]
        return [roaming / "StabilityMatrix", *(each / "Data" for each in portable), *portable]
    if system == "macos":
        return [home / "Library" / "Application Support" / "StabilityMatrix"]
    return [Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "StabilityMatrix"]


def existing_comfyui_trees(candidates: Sequence[Path]) -> tuple[Path, ...]:
    """Return those of the places that hold a ComfyUI tree, each once however many names lead to it."""
    found: dict[Path, Path] = {}
    for place in candidates:
        try:
            if looks_like_comfyui(place):
                found.setdefault(place.resolve(), place)
        except (OSError, ValueError):
            continue  # a place we may not look into is no usual place
    return tuple(found.values())


def looks_like_comfyui(folder: Path) -> bool:
    """Whether a folder is a checkout of ComfyUI, or a folder of the Desktop program, which keeps its code elsewhere."""
    if not (folder / "models").is_dir():
        return False
    return (folder / "main.py").is_file() or (folder / "custom_nodes").is_dir()


def drive_roots() -> tuple[Path, ...]:
    """Return the roots of the fixed drives of a Windows computer, nothing elsewhere.

    Only fixed ones: looking at an empty card reader or a sleeping network drive can take seconds.
    """
    if sys.platform != "win32":
        return ()
    import ctypes

    fixed = 3  # DRIVE_FIXED
    roots = (f"{letter}:\\" for letter in "CDEFGHIJKLMNOPQRSTUVWXYZ")
    return tuple(Path(root) for root in roots if ctypes.windll.kernel32.GetDriveTypeW(root) == fixed)
