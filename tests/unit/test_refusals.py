"""Every refusal of the system has an error of ours, and a hint that fits whoever was refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from provisioner.core.errors import (
    FileInUseError,
    InsufficientSpaceError,
    NotWritableError,
    StorageError,
    UnreadableError,
)
from provisioner.disk.os_errors import broken_link, reason_of, storage_error
from provisioner.disk.patience import READS, WRITES

PATH = Path("/models/vae/x")


class WindowsError_(OSError):
    """An error as Windows raises it."""

    def __init__(self, code: int, winerror: int) -> None:
        super().__init__(code, "as Windows says it")
        self.winerror = winerror


@pytest.mark.parametrize(
    ("error", "doing", "kind"),
    [
        (OSError(errno.ENOSPC, "full"), "write", InsufficientSpaceError),
        (OSError(errno.EFBIG, "too big"), "write", InsufficientSpaceError),
        (WindowsError_(errno.EACCES, 112), "write", InsufficientSpaceError),
        (WindowsError_(errno.EACCES, 32), "write", FileInUseError),
        (WindowsError_(errno.EACCES, 32), "read", FileInUseError),
        (OSError(errno.ETXTBSY, "busy"), "write", FileInUseError),
        (OSError(errno.EACCES, "no"), "write", NotWritableError),
        (OSError(errno.EROFS, "read-only"), "create", NotWritableError),
        (OSError(errno.EACCES, "no"), "read", UnreadableError),
        (OSError(errno.EIO, "broken"), "read", UnreadableError),
        (OSError(errno.EIO, "broken"), "write", StorageError),
        (OSError("without a number"), "write", StorageError),
    ],
)
def test_each_refusal_has_its_error(error: OSError, doing: str, kind: type[StorageError]) -> None:
    made = storage_error(error, PATH, doing=doing)
    assert type(made) is kind
    assert str(PATH) in str(made)
    assert made.hint
    assert made.context == {"path": str(PATH), "errno": error.errno}


@pytest.mark.parametrize(("is_kept", "said"), [(True, "; what has arrived is kept."), (False, "command again.")])
def test_only_who_keeps_what_has_arrived_says_so(is_kept: bool, said: str) -> None:
    made = storage_error(OSError(errno.ENOSPC, "full"), PATH, is_arrival_kept=is_kept)
    assert made.hint is not None
    assert made.hint.endswith(said)


@pytest.mark.parametrize(
    ("cause", "said"),
    [(OSError(errno.ENOSPC, "full"), "full"), (OSError("without a number"), "without a number"), (None, "Not there.")],
)
def test_the_reason_is_what_the_system_said_where_it_said_something(cause: OSError | None, said: str) -> None:
    error = NotWritableError("Not there.", hint="Name another.")
    error.__cause__ = cause
    assert reason_of(error) == said


def test_a_hint_names_what_may_have_the_file_open() -> None:
    made = storage_error(OSError(errno.EBUSY, "busy"), PATH, holder="whatever runs from that environment")
    assert made.hint == "Close ComfyUI, or whatever runs from that environment, and run the same command again."


def test_a_broken_link_is_named_with_what_it_leads_to() -> None:
    error = broken_link(PATH, Path("/mnt/drive"))
    assert isinstance(error, UnreadableError)
    assert str(error) == f"{PATH} is a link to {Path('/mnt/drive')}, which does not exist."
    assert "Mount the drive" in (error.hint or "")


@pytest.mark.parametrize(
    ("doing", "access", "code", "kind"),
    [
        ("read", READS, 32, FileInUseError),
        ("write", WRITES, 33, FileInUseError),
        ("read", READS, 5, UnreadableError),
        ("write", WRITES, 0, NotWritableError),
    ],
)
def test_windows_is_asked_why_a_file_was_not_opened(
    doing: str, access: int, code: int, kind: type[StorageError]
) -> None:
    asked: list[tuple[Path, int]] = []

    def ask(path: Path, wanted: int) -> int:
        asked.append((path, wanted))
        return code

    made = storage_error(PermissionError(errno.EACCES, "Permission denied"), PATH, doing=doing, ask=ask)
    assert type(made) is kind
    assert asked == [(PATH, access)]
