"""A file that a command makes for a person: written where ``--output`` says, else into the user's state folder."""

from __future__ import annotations

from pathlib import Path

from provisioner.core.errors import NotWritableError, StorageError
from provisioner.disk.last_run import write_for_user
from provisioner.disk.locations import state_folder
from provisioner.disk.os_errors import reason_of
from provisioner.disk.root import write_output


def write_file(data: bytes, output: Path | None, *, name: str = "", option: str = "--output") -> Path:
    """Write a file and return its absolute path.

    Parameters
    ----------
    data : bytes
        All of it.
    output : Path or None
        Where the user wants it; None for the state folder, where it is readable by its user alone.
    name : str
        Its name there; needed where `output` may be None.
    option : str
        What names another file.

    Raises
    ------
    NotWritableError
        It cannot be written there.
    """
    path = state_folder() / name if output is None else output.expanduser().absolute()
    try:
        if output is None:
            write_for_user(path, data)
        else:
            write_output(path, data)
    except StorageError as error:
        raise NotWritableError(
            f"{path} cannot be written: {reason_of(error)}.", hint=f"Name another {option} FILE.", path=str(path)
        ) from error
    return path
