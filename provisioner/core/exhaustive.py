"""The end of a ``match`` that handles every case; `typing` has it only from Python 3.11 on."""

from __future__ import annotations

from typing import NoReturn


def assert_never(value: NoReturn) -> NoReturn:
    """Raise; the type checker refuses a call with a case that was not handled."""
    raise AssertionError(f"unexpected: {value!r}")
