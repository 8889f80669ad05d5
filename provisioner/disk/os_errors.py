"""What a refusal of the system amounts to: an OSError in, the error of ours that says what to do about it out.

Of a file that could not be opened, Windows is asked why: see `patience.refusal_code`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from provisioner.core.errors import (
    FileInUseError,
    InsufficientSpaceError,
    NotWritableError,
    StorageError,
    UnreadableError,
)
from provisioner.disk.patience import IN_USE, READS, WRITES, refusal_code

_NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_USE = {errno.ETXTBSY, errno.EBUSY}
_WINDOWS_NO_ROOM = {39, 112}  # ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL


def storage_error(
    error: OSError,
    path: Path,
    *,
    doing: str = "write",
    holder: str = "whatever has the file open",
    is_arrival_kept: bool = True,
    ask: Callable[[Path, int], int] = refusal_code,
) -> StorageError:
    """Return the error of ours that says what the system refused, with what to do about it.

    Parameters
    ----------
    error : OSError
        The refusal.
    path : Path
        What it is about.
    doing : str
        A verb; with "read" it is an UnreadableError where nothing better is known.
    holder : str
        What may have the file open, beside ComfyUI.
    is_arrival_kept : bool
        Whether the next run builds on what has arrived.
    ask : callable
        Says why Windows refuses an access to a path.
    """
    windows_code = getattr(error, "winerror", None)
    if windows_code is None and error.errno == errno.EACCES:
        windows_code = ask(path, READS if doing == "read" else WRITES)
    reason = error.strerror or str(error)
    facts: dict[str, object] = {"path": str(path), "errno": error.errno}
    if error.errno in _NO_ROOM or windows_code in _WINDOWS_NO_ROOM:
        kept = "; what has arrived is kept" if is_arrival_kept else ""
        return InsufficientSpaceError(
            f"The disk is full: {path} could not be written ({reason}).",
            hint=f"Free some space and run the same command again{kept}.",
            **facts,
        )
    if windows_code in IN_USE or error.errno in _IN_USE:
        return FileInUseError(
            f"Another program holds {path} open ({reason}).",
            hint=f"Close ComfyUI, or {holder}, and run the same command again.",
            **facts,
        )
    refusal: type[StorageError]
    if error.errno in _NOT_ALLOWED:
        refusal = UnreadableError if doing == "read" else NotWritableError
        return refusal(
            f"No permission to {doing} {path} ({reason}).",
            hint="Change the owner or the permissions of that folder, or name another one.",
            **facts,
        )
    refusal = UnreadableError if doing == "read" else StorageError
    return refusal(
        f"The system could not {doing} {path} ({reason}).",
        hint="Look at the disk's health and at the path; then run the same command again.",
        **facts,
    )


def reason_of(error: StorageError) -> str:
    """Return what the system said, for an error that says the rest in other words."""
    cause = error.__cause__
    return (cause.strerror or str(cause)) if isinstance(cause, OSError) else str(error)


def broken_link(link: Path, target: Path) -> UnreadableError:
    """Return the error for a link on the way to something that leads nowhere."""
    return UnreadableError(
        f"{link} is a link to {target}, which does not exist.",
        hint="Mount the drive it points to, or correct the link.",
        path=str(link),
    )
