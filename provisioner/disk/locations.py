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


def kind_of_file_system(found: FileSystem) -> str | None:
    """Return what the system calls a file system; None where it does not say, as on macOS.  Asked once for each."""
    if found.device not in _KINDS:
        _KINDS[found.device] = _asked_kind(found.path, found.device)
    return _KINDS[found.device]


_KINDS: dict[int, str | None] = {}


def _asked_kind(folder: Path, device: int) -> str | None:
    if sys.platform == "win32":
        import ctypes

        root, name = ctypes.create_unicode_buffer(1024), ctypes.create_unicode_buffer(64)
        kernel = ctypes.windll.kernel32
        if not kernel.GetVolumePathNameW(str(folder), root, len(root)):
            return None
        is_known = kernel.GetVolumeInformationW(root, None, 0, None, None, None, name, len(name))
        return name.value or None if is_known else None
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return kind_in_mountinfo(text, f"{os.major(device)}:{os.minor(device)}")


def kind_in_mountinfo(text: str, device: str) -> str | None:
    """Return the type of the file system with a device number, ``8:1``, from ``/proc/self/mountinfo`` (proc(5)).

    >>> kind_in_mountinfo("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue", "98:0")
    'ext3'
    """
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        if separator and before.split()[2:3] == [device]:
            return after.split(" ", 1)[0]
    return None


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


def docker_config_file(environ: Mapping[str, str]) -> Path:
    """Return the file in which Docker's client keeps logins: in ``DOCKER_CONFIG``, else in the user's ``.docker``."""
    folder = environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")  # noqa: PTH111 - raises nothing
    return Path(folder) / "config.json"


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


def systemd_user_folder() -> Path:
    """Return where the user's own systemd units are (systemd.unit(5))."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(given if given.startswith("/") else os.path.expanduser("~/.config"), "systemd", "user")  # noqa: PTH111


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
    home: Path,
    environ: Mapping[str, str],
    system: OperatingSystem,
    *,
    cwd: Path,
    drives: Sequence[Path] = (),
    own_folders: Mapping[str, Path] | None = None,
) -> tuple[Path, ...]:
    """Return where people keep ComfyUI, the likeliest first, whether it is there or not.

    Parameters
    ----------
    home : Path
        The user's home folder.
    environ : mapping
        Environment: ``OneDrive`` on Windows.
    system : OperatingSystem
        Which of the places make sense.
    cwd : Path
        The current directory, the first place of all.
    drives : sequence of Path
        Roots of the drives of a Windows computer.
    own_folders : mapping of str to Path, optional
        Where ``Documents`` really is, where Windows says so.
    """
    places = [cwd, home / "ComfyUI", home / "comfy" / "ComfyUI"]
    places += [folder / "ComfyUI" for folder in _own("Documents", home, environ, system, own_folders or {})]
    places += [drive / "ComfyUI" for drive in drives]
    if system != "windows":
        places += [Path("/workspace/ComfyUI"), Path("/opt/ComfyUI")]
    return tuple(dict.fromkeys(places))


def where_archives_are_unpacked(
    home: Path, environ: Mapping[str, str], *, drives: Sequence[Path], own_folders: Mapping[str, Path]
) -> tuple[Path, ...]:
    """Return the folders of a Windows computer in which people unpack ComfyUI's portable build."""
    names = ("Desktop", "Downloads", "Documents")
    folders = [each for name in names for each in _own(name, home, environ, "windows", own_folders)]
    return tuple(dict.fromkeys((home, *folders, *drives)))


def _own(
    name: str, home: Path, environ: Mapping[str, str], system: OperatingSystem, own_folders: Mapping[str, Path]
) -> list[Path]:
    """Return where a folder of the user's may be: where Windows says, in the home folder, in OneDrive."""
    known = [own_folders[name]] if name in own_folders else []
    synced = [Path(environ["OneDrive"]) / name] if system == "windows" and environ.get("OneDrive") else []
    return [*known, home / name, *synced]


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
