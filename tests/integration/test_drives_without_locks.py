"""A drive whose server gives no locks: a lock of this computer stands in for it, and that is said."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from provisioner.core.errors import LockHeldError, StorageError
from provisioner.disk.locks import hold_lock
from provisioner.disk.root import Root


def refused(number: int) -> None:
    raise OSError(number, "as a network drive says it")


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder; the state folder of the user, where the other lock is, is another one."""
    for name in ("XDG_STATE_HOME", "HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "state"))
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_two_runs_of_one_computer_still_notice_each_other(drive: Path, number: int) -> None:
    said: list[str] = []

    def hold(name: str) -> AbstractContextManager[None]:
        return hold_lock(
            Root(drive),
            drive / name,
            guards=drive,
            wait=False,
            notice=said.append,
            lock=lambda descriptor: refused(number),
        )

    with hold("lock"):
        with pytest.raises(LockHeldError), hold("lock"):
            pass
        with hold("other"):
            pass
    with hold("lock"):
        pass
    assert set(said) == {f"The drive of {drive} has no locks: do not let another computer work on it at the same time."}


def test_another_refusal_is_an_error(drive: Path) -> None:
    held = hold_lock(
        Root(drive),
        drive / "lock",
        guards=drive,
        wait=False,
        notice=print,
        lock=lambda descriptor: refused(errno.EIO),
    )
    with pytest.raises(StorageError, match="as a network drive says it"), held:
        pass
