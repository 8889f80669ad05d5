"""The options that a launcher starts ComfyUI with, as its own records say; read, never run.

Pure: the caller reads.  Records are somebody else's: what has not the form that is expected says nothing.  Where each
launcher keeps them was read in ComfyUI 0.33.0 (``.ci``), Comfy-Org/ComfyUI-Desktop-2.0-Beta of 2026-06-13,
Comfy-Org/desktop of 2026-05-28, LykosAI/StabilityMatrix of 2026-07-22, pinokiofactory/comfy of 2025-12-02 and
mcmonkeyprojects/SwarmUI of 2026-08-21.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from provisioner.comfyui.batch_files import BatchFile
from provisioner.comfyui.launcher_records import Read, desktop_record
from provisioner.comfyui.users_flags import UsersFlags, found_flags, split_line
from provisioner.core.errors import UsageError
from provisioner.core.json_reader import as_dict, as_list
from provisioner.core.models import OperatingSystem

_SWARM_ADDS = ("--fast", "fp16_accumulation", "cublas_ops")  # for GeForce 30 and newer, unless it is told not to
_USUAL_BATCH_FILE = "run_nvidia_gpu.bat"


def recorded_flags(
    read: Read,
    tree: Path,
    home: Path,
    environ: Mapping[str, str],
    system: OperatingSystem,
    batch_files: Sequence[BatchFile] = (),
) -> UsersFlags | None:
    """Return the options that a tree's launcher starts it with; None where no launcher says so.

    Parameters
    ----------
    read : callable
        Reads a record.
    tree : Path
        The folder of main.py.
    home, environ, system
        As for `launcher_records.recorded_trees`.
    batch_files : sequence of BatchFile
        Those of a portable build, by name.
    """
    sources: tuple[Callable[[], UsersFlags | None], ...] = (
        lambda: of_batch_files(batch_files),
        lambda: _of_desktop(read(desktop_record(home, environ, system)), tree, system),
        lambda: _of_old_desktop(read(tree / "user" / "default" / "comfy.settings.json")),
        lambda: _of_stability_matrix(read, tree, system),
        lambda: _of_swarm(read, tree, system),
        lambda: _of_pinokio(read(tree.parent / "start.js"), system),
    )
    return next((found for each in sources if (found := each()) is not None), None)


def of_batch_files(files: Sequence[BatchFile]) -> UsersFlags | None:
    """Return the options of a portable build's batch files: of the usual one, else of the first by name.

    Those that were copied and changed count before the ones that the archive brings.
    """
    if not files:
        return None
    own = [each for each in files if not each.name.lower().startswith("run_")]
    usual = [each for each in files if each.name.lower() == _USUAL_BATCH_FILE]
    chosen = (*own, *usual, *files)[0]
    return found_flags(chosen.flags, chosen.name)


def _of_desktop(text: str | None, tree: Path, system: OperatingSystem) -> UsersFlags | None:
    for record in map(as_dict, as_list(_json(text))):
        folder, line = record.get("installPath"), record.get("launchArgs")
        is_this = isinstance(folder, str) and _is_same(Path(_slashes(folder, system)) / "ComfyUI", tree, system)
        if is_this and record.get("sourceId") != "cloud":
            words = _split(line if isinstance(line, str) else "", is_windows=False)  # split as a shell does, everywhere
            return None if words is None else found_flags(words, "the settings of Comfy Desktop")
    return None


def _of_old_desktop(text: str | None) -> UsersFlags | None:
    settings = as_dict(_json(text))
    known = {
        **as_dict(settings.get("Comfy.Server.ServerConfigValues")),
        **as_dict(settings.get("Comfy.Server.LaunchArgs")),
    }
    if not known:
        return None
    words: list[str] = []
    for name, value in known.items():
        words += [f"--{name}"] if value in ("", True) else [f"--{name}", str(value)] if value is not None else []
    return found_flags(words, "the settings of ComfyUI Desktop")


def _of_stability_matrix(read: Read, tree: Path, system: OperatingSystem) -> UsersFlags | None:
    if len(tree.parents) < 2:
        return None
    library = tree.parents[1]
    for package in map(as_dict, as_list(as_dict(_json(read(library / "settings.json"))).get("InstalledPackages"))):
        inside = package.get("LibraryPath")
        if not isinstance(inside, str) or not _is_same(library / _slashes(inside, system), tree, system):
            continue
        words: list[str] = []
        for option in map(as_dict, as_list(package.get("LaunchArgs"))):
            words += _matrix_words(option, is_windows=system == "windows")
        return found_flags(words, "the settings of Stability Matrix")
    return None


def _matrix_words(option: Mapping[str, object], *, is_windows: bool) -> list[str]:
    """Return one option of Stability Matrix: a switch, one with a value, or the free text, which has no name."""
    name, value = option.get("Name"), option.get("OptionValue")
    if value is True and isinstance(name, str):
        return [name]
    if isinstance(value, bool) or value is None or value == "":
        return []
    if not name:
        return list(_split(str(value), is_windows=is_windows) or ())
    return [str(name), str(value)]


def _of_swarm(read: Read, tree: Path, system: OperatingSystem) -> UsersFlags | None:
    if len(tree.parents) < 3:
        return None
    text = read(tree.parents[2] / "Data" / "Backends.fds")
    for backend in _backends(text or ""):
        if backend.get("type") != "comfyui_selfstart" or backend.get("enabled", "true").lower() == "false":
            continue
        adds_its_own = backend.get("DisableInternalArgs", "false").lower() != "true"
        words = _split(backend.get("ExtraArgs", ""), is_windows=system == "windows")
        if words is not None:
            added = _SWARM_ADDS if adds_its_own and "--fast" not in words else ()
            return found_flags((*added, *words), "the settings of SwarmUI")
    return None


def _backends(text: str) -> Iterator[dict[str, str]]:
    """Yield the backends of a file of SwarmUI's: keys and values, indented with tabs; a section begins a backend."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.strip().partition(":")
        if not colon or key.startswith("#"):
            continue
        if not line[:1].isspace():
            if found:
                yield found
            found = {}
        elif value.strip():
            found[key.strip()] = value.strip()
    if found:
        yield found


def _of_pinokio(text: str | None, system: OperatingSystem) -> UsersFlags | None:
    """Return the words behind ``main.py`` in Pinokio's script; those in braces are decided when it runs."""
    plain = re.sub(r"\{\{.{0,500}?\}\}|\$\{.{0,500}?\}", " ", text or "")
    said = re.search(r"""["'`]python3?\s+(?:\S{0,80}/)?main\.py([^"'`\n]{0,2000})["'`]""", plain)
    if said is None:
        return None
    words = _split(said[1], is_windows=system == "windows")
    return None if words is None else found_flags(words, "Pinokio's start.js")


def of_running_server(argv: Sequence[str], url: str) -> UsersFlags | None:
    """Return the options of a server that runs, from the command line it reports; None where it reports none.

    >>> of_running_server(["main.py", "--listen", "--fast"], "http://127.0.0.1:8188")
    UsersFlags(words=('--fast',), origin='the ComfyUI that runs at http://127.0.0.1:8188', left_out=('--listen',))
    """
    return found_flags(argv[1:], f"the ComfyUI that runs at {url}") if argv else None


def _split(line: str, *, is_windows: bool) -> tuple[str, ...] | None:
    try:
        return split_line(line, is_windows=is_windows)
    except UsageError:
        return None


def _json(text: str | None) -> object:
    try:
        return json.loads((text or "null").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


def _slashes(text: str, system: OperatingSystem) -> str:
    return text.replace("\\", "/") if system == "windows" else text


def _is_same(one: PurePath, other: PurePath, system: OperatingSystem) -> bool:
    folded = [str(each).replace("\\", "/").casefold() if system == "windows" else str(each) for each in (one, other)]
    return folded[0] == folded[1]
