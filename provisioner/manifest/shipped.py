"""Read the manifests that come with the program, and those the user names by path.

Returns their text; ``parse.py`` interprets it.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal, NoReturn, get_args

from provisioner.core.errors import ManifestError, UsageError
from provisioner.manifest.strict_yaml import MAX_TEXT_BYTES

_PACKAGE = Path(__file__).resolve().parent.parent
Table = Literal["torch", "comfyui", "failures"]
_NO_MODELS = frozenset(get_args(Table))
"""Data of other kinds in the same folder: torch builds, the pinned ComfyUI release, known failures."""


def shipped_folder() -> Path:
    """Return the folder of the shipped manifests: inside an installed wheel, or of a source checkout."""
    installed = _PACKAGE / "_manifests"
    return installed if installed.is_dir() else _PACKAGE.parent / "manifests"


def locked_list() -> Path:
    """Return the list of what klein-setup itself runs with, each package by its SHA-256: in a wheel, or a checkout."""
    installed = _PACKAGE / "_locked" / "run.txt"
    return installed if installed.is_file() else _PACKAGE.parent / "scripts" / "locked" / "run.txt"


def shipped_manifests(folder: Path | None = None) -> tuple[str, ...]:
    """Return the ids of the shipped model manifests, sorted.

    Parameters
    ----------
    folder : Path, optional
        The folder to use instead of `shipped_folder`.
    """
    found = {path.stem for path in (folder or shipped_folder()).glob("*.yaml")}
    return tuple(sorted(found - _NO_MODELS))


def is_shipped(name_or_path: str, *, folder: Path | None = None) -> bool:
    """Return whether that is the id of a manifest that comes with the program, not a file of somebody else's."""
    return name_or_path in shipped_manifests(folder)  # looking for the file would accept any case on Windows


def read_manifest_text(name_or_path: str, *, folder: Path | None = None) -> tuple[str, str]:
    """Return the text of a manifest, and what to call it in messages.

    Parameters
    ----------
    name_or_path : str
        The id of a shipped manifest (``"flux2-klein-4b"``), or the path of a file.
    folder : Path, optional
        The folder of shipped manifests instead of `shipped_folder`.

    Returns
    -------
    tuple of str
        The text, without a byte order mark, and its label: ``"flux2-klein-4b.yaml"``, or the path as it was given.

    Raises
    ------
    UsageError
        A bare name that is neither the id of a shipped manifest nor a file; the message lists the ids.
    ManifestError
        The file is missing, unreadable, not a regular file, longer than 1 MiB, or not UTF-8.
    """
    content, label = read_manifest_bytes(name_or_path, folder=folder)
    return decode_manifest(content, label), label


def read_manifest_bytes(name_or_path: str, *, folder: Path | None = None) -> tuple[bytes, str]:
    """Return the bytes of a manifest, and what to call it in messages; raises as `read_manifest_text` does."""
    name = f"{name_or_path}.yaml"
    shipped = folder or shipped_folder()
    if is_shipped(name_or_path, folder=folder):
        return _read(shipped, name, label=name), name
    if not name_or_path or (_is_bare(name_or_path) and not _exists(Path(name_or_path))):
        _refuse_unknown(name_or_path, shipped_manifests(folder))
    return _read(Path(), name_or_path, label=name_or_path), name_or_path


def read_table_text(table: Table, folder: Path | None = None) -> tuple[str, str]:
    """Return the text of a shipped table, and what to call it in messages.

    Parameters
    ----------
    table : {"torch", "comfyui", "failures"}
        Builds of torch, releases of ComfyUI, or known failures.
    folder : Path, optional
        The folder to use instead of `shipped_folder`.

    Raises
    ------
    ManifestError
        The file is missing, unreadable, longer than 1 MiB, or not UTF-8.
    """
    name = f"{table}.yaml"
    return decode_manifest(_read(folder or shipped_folder(), name, label=name), name), name


def _is_bare(name: str) -> bool:
    """Return whether `name` looks like an id: no folder, no ending of a YAML file."""
    return not any(each in name for each in "/\\") and not name.casefold().endswith((".yaml", ".yml"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file system accepts, or one with a NUL in it
        return False


def _refuse_unknown(name: str, known: tuple[str, ...]) -> NoReturn:
    from provisioner.core.suggestions import did_you_mean  # needed only after a mistake

    raise UsageError(
        f"There is no manifest {name!r}.{did_you_mean(name, known)}",
        hint=f"Give one of {', '.join(known)}, or the path of a YAML file.",
        known=list(known),
    )


def _read(root: Path, name: str, *, label: str) -> bytes:
    try:
        path = root / name
        found = path.stat()  # before opening: a pipe would wait for a writer
        if not stat.S_ISREG(found.st_mode):
            _refuse(
                label, "is a folder" if stat.S_ISDIR(found.st_mode) else "is not a regular file", "Name a YAML file."
            )
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)  # whatever size it has or grows to
    except FileNotFoundError as error:
        raise ManifestError(f"{label}: there is no such file", hint="Check the path.", file=label) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ManifestError(f"{label!r} cannot be read: {reason}", hint="Check the path.", file=label) from error
    if len(content) <= MAX_TEXT_BYTES:
        return content
    _refuse(label, f"is longer than {MAX_TEXT_BYTES} bytes", "Name a manifest; the longest shipped one has 50 KB.")


def _refuse(label: str, complaint: str, hint: str) -> NoReturn:
    raise ManifestError(f"{label} {complaint}", hint=hint, file=label)


def decode_manifest(content: bytes, label: str) -> str:
    """Return the text of a manifest's bytes, without a byte order mark; raises ManifestError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{label} is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}",
            issues=(f"{label}:{line}: document: is not UTF-8 text; expected UTF-8",),
            hint="Save it as UTF-8, or name the YAML file that was meant.",
            file=label,
        ) from error
