"""Refuses links as Windows does; part of the Windows Python that ``scripts/windows_python.py`` makes.

CreateSymbolicLink of Wine 8 answers that it succeeded, and makes nothing.  Windows refuses links to everybody who is
neither an administrator nor in Developer Mode.
"""

import os


def symlink(src: str, dst: str, target_is_directory: bool = False, *, dir_fd: int | None = None) -> None:  # noqa: ARG001 - as it is
    """Raise OSError: something has the name, or the user lacks the right."""
    if os.path.lexists(dst):
        raise OSError(None, "Cannot create a file when that file already exists", os.fspath(src), 183, os.fspath(dst))
    raise OSError(None, "A required privilege is not held by the client", os.fspath(src), 1314, os.fspath(dst))


os.symlink = symlink  # type: ignore[assignment]  # paths as text are enough here
