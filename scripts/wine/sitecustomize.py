"""Two calls as Windows answers them; part of the Windows Python that ``scripts/windows_python.py`` makes.

CreateSymbolicLink of Wine 8 answers that it succeeded, and makes nothing.  Windows refuses links to everybody who is
neither an administrator nor in Developer Mode.

The runtime's ``_locking`` of Wine 8 fails without a reason (``errno``) where somebody else has the lock.
"""

import errno
import os
import sys


def symlink(src: str, dst: str, target_is_directory: bool = False, *, dir_fd: int | None = None) -> None:  # noqa: ARG001 - as it is
    """Raise OSError: something has the name, or the user lacks the right."""
    if os.path.lexists(dst):
        raise OSError(None, "Cannot create a file when that file already exists", os.fspath(src), 183, os.fspath(dst))
    raise OSError(None, "A required privilege is not held by the client", os.fspath(src), 1314, os.fspath(dst))


os.symlink = symlink  # type: ignore[assignment]  # paths as text are enough here

if sys.platform == "win32":
    import msvcrt

    _locking = msvcrt.locking

    def locking(fd: int, mode: int, nbytes: int, /) -> None:
        """Lock or unlock bytes of a file; raises PermissionError where somebody else has them."""
        try:
            _locking(fd, mode, nbytes)
        except OSError as error:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES)) from error

    msvcrt.locking = locking
