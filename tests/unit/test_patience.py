"""How long an action is tried again, and what a person is told meanwhile, decided on errors as Windows raises them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.disk import patience
from provisioner.disk.patience import PAUSES_FOR_HOLDER_S, PAUSES_S, listen, patiently

MODEL, OTHER = Path("models", "vae", "x.safetensors"), Path("models", "y")


class Refusing:
    """An action that is refused some times, then succeeds."""

    def __init__(self, error: OSError, times: int) -> None:
        self.error, self.left, self.calls = error, times, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "done"


def denied(winerror: int = 5) -> OSError:
    error = PermissionError(errno.EACCES, "Access is denied")
    error.winerror = winerror  # type: ignore[attr-defined,unused-ignore]  # only Windows knows it
    return error


@pytest.fixture
def told() -> Iterator[list[str]]:
    said: list[str] = []
    listen(said.append, lambda: False)
    yield said
    listen(lambda message: None, lambda: False)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(patience, "_sleep", pauses.append)
    return pauses


def test_a_holder_is_waited_for_half_a_minute_with_growing_pauses() -> None:
    assert sum(PAUSES_FOR_HOLDER_S) == 30
    assert list(PAUSES_FOR_HOLDER_S) == sorted(PAUSES_FOR_HOLDER_S)


def test_a_file_that_a_scanner_holds_is_tried_again_and_said_once(told: list[str], slept: list[float]) -> None:
    action = Refusing(denied(32), times=8)
    assert patiently(action, MODEL, platform="win32", holds=lambda path: True) == "done"
    assert slept == list(PAUSES_FOR_HOLDER_S[:8])
    assert told == [f"Another program holds {MODEL}, perhaps a virus scanner; waiting up to 28 s."]


def test_nothing_is_said_of_a_scanner_that_is_gone_at_once(told: list[str], slept: list[float]) -> None:
    patiently(Refusing(denied(32), times=4), MODEL, platform="win32", holds=lambda path: True)
    assert told == []


def test_the_one_of_two_files_that_is_held_is_named(told: list[str], slept: list[float]) -> None:
    patiently(Refusing(denied(5), times=6), MODEL, OTHER, platform="win32", holds=lambda path: path == OTHER)
    assert str(OTHER) in told[0]


def test_a_holder_that_stays_ends_the_wait_with_its_error(told: list[str], slept: list[float]) -> None:
    action = Refusing(denied(32), times=99)
    with pytest.raises(PermissionError):
        patiently(action, MODEL, platform="win32", holds=lambda path: True)
    assert slept == list(PAUSES_FOR_HOLDER_S)


def test_a_matter_of_rights_is_not_waited_for_half_a_minute(told: list[str], slept: list[float]) -> None:
    with pytest.raises(PermissionError):
        patiently(Refusing(denied(5), times=99), MODEL, platform="win32", holds=lambda path: False)
    assert slept == list(PAUSES_S)
    assert told == []


@pytest.mark.parametrize("error", [denied(32), FileNotFoundError(errno.ENOENT, "gone")])
def test_elsewhere_only_a_folder_that_fills_again_may_pass(error: OSError, slept: list[float]) -> None:
    with pytest.raises(type(error)):
        patiently(Refusing(error, times=1), MODEL, platform="linux")
    assert slept == []
    patiently(Refusing(OSError(errno.ENOTEMPTY, "not empty"), times=2), platform="linux")
    assert slept == [0.05, 0.1]


def test_a_cancelled_run_waits_for_nobody(slept: list[float]) -> None:
    listen(lambda message: None, lambda: True)
    try:
        with pytest.raises(PermissionError):
            patiently(Refusing(denied(32), times=1), MODEL, platform="win32", holds=lambda path: True)
    finally:
        listen(lambda message: None, lambda: False)
    assert slept == []
