"""Bytes that survive: flushing to the disk, replacing a name in one step, and what the system says when it refuses."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from provisioner.errors import (
    FileInUseError,
    InsufficientSpaceError,
    NotWritableError,
    StorageError,
    UnreadableError,
)

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_WINDOWS_NO_ROOM = {39, 112}  # ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL
_WINDOWS_IN_USE = {32, 33, 1224}  # sharing violation, lock violation, user-mapped section open


def storage_error(error: OSError, path: Path, *, doing: str = "write") -> StorageError:
    """Return the error of ours that says what the system refused, with what to do about it."""
    windows_code = getattr(error, "winerror", None)
    reason = error.strerror or str(error)
    facts: dict[str, object] = {"path": str(path), "errno": error.errno}
    if error.errno in _NO_ROOM or windows_code in _WINDOWS_NO_ROOM:
        return InsufficientSpaceError(
            f"The disk is full: {path} could not be written ({reason}).",
            hint="Free some space and run the same command again; what has arrived is kept.",
            **facts,
        )
    if windows_code in _WINDOWS_IN_USE or error.errno in {errno.ETXTBSY, errno.EBUSY}:
        return FileInUseError(
            f"Another program holds {path} open ({reason}).",
            hint="Close ComfyUI, or whatever has the file open, and run the same command again.",
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


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder, doing="create") from error


def flush_file(descriptor: int) -> None:
    """Hand a file's bytes to the disk and wait until it has them."""
    if sys.platform == "darwin":
        import fcntl

        try:  # fsync on macOS stops at the drive's cache; F_FULLFSYNC does not
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass  # file systems without it: the ordinary call below
    os.fsync(descriptor)


def flush_folder(folder: Path) -> None:
    """Hand a folder's list of names to the disk; Windows needs and offers no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems refuse fsync on a folder; the rename itself has happened.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}:
            raise
    finally:
        os.close(descriptor)


def replace(source: Path, destination: Path) -> None:
    """Give a file its final name in one step, durably; raises StorageError and leaves both as they were."""
    try:
        source.replace(destination)
        flush_folder(destination.parent)
    except PermissionError as error:
        if sys.platform == "win32" and destination.exists():
            raise FileInUseError(
                f"{destination} is open in another program and cannot be replaced.",
                hint="Stop ComfyUI (it keeps model files mapped) and run the same command again.",
                path=str(destination),
            ) from error
        raise storage_error(error, destination) from error
    except OSError as error:
        raise storage_error(error, destination) from error


def write_text_durably(path: Path, text: str) -> None:
    """Replace a small text file in one step, so that a reader sees the old one or the new one; raises StorageError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    make_folder(path.parent)
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            flush_file(stream.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(error, path) from error
    replace(temporary, path)
