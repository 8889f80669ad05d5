"""The one reader of JSON that others wrote: files of ours that may be damaged, answers of programs and servers.

`parse_object` bounds what is read and never raises.  `Fields` asks an object for values of a kind: it raises at the
first that is another, or collects every complaint.  The ``as_`` functions take what is there and leave out the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")

LARGEST = 64 * 1024 * 1024
"""Bytes or characters: a receipt of 100 GB of files has about 500 kB."""

_LARGEST_COUNT = 2**64
_MISSING = object()


def parse_object(text: str | bytes, *, most: int = LARGEST) -> dict[str, Any] | None:
    """Return the JSON object a text holds; None where it is none, or longer than `most` bytes or characters.

    >>> parse_object('{"a": 1}'), parse_object(b"[1]"), parse_object("{"), parse_object("[" * 100_000)
    ({'a': 1}, None, None, None)
    """
    if len(text) > most:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- what is there ------------------------------------------------------------------------------


def as_dict(value: object) -> dict[str, object]:
    """Return `value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """Return `value` where it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def as_int(value: object) -> int | None:
    """Return `value` where it is a whole number, else None; true and false are none.

    >>> as_int(7), as_int(True), as_int("7")
    (7, None, None)
    """
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# --- what has to be there -----------------------------------------------------------------------


class FieldError(ValueError):
    """A value is missing or of another kind; the message names it and what was expected.

    Parameters
    ----------
    name : str
        With its place: "gpus[0].name".
    wanted : str
        In words: "a string".
    value : object
        What is there.
    """

    def __init__(self, name: str, wanted: str, value: object) -> None:
        was = "it is missing" if value is _MISSING else f"not {json.dumps(value, default=str)[:60]}"
        super().__init__(f"{name}: must be {wanted}; {was}")


@dataclass(slots=True)
class Fields:
    """A JSON object that is asked for values of a kind.

    Parameters
    ----------
    values : mapping
        The object.
    place : str
        Where it stands, before every name: "" or "gpus[0].".
    complaints : list of str, optional
        Takes every complaint, and something empty is returned instead; where None, FieldError is raised.
    """

    values: Mapping[str, object]
    place: str = ""
    complaints: list[str] | None = None
    asked: set[str] = field(default_factory=set)

    def text(self, name: str) -> str:
        """Return a text."""
        value = self._required(name)
        return value if isinstance(value, str) else self._complain(name, "a string", value, "")

    def optional_text(self, name: str) -> str | None:
        """Return a text or None."""
        value = self._get(name)
        return (
            value if value is None or isinstance(value, str) else self._complain(name, "a string or null", value, None)
        )

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(
            each if isinstance(each, str) else self._complain(f"{name}[{number}]", "a string", each, "")
            for number, each in enumerate(self._list(name))
        )

    def optional_texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts; one that is not there, or null, is empty."""
        return () if self._get(name) is None else self.texts(name)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._required(name)
        return value if isinstance(value, bool) else self._complain(name, "true or false", value, False)

    def optional_flag(self, name: str) -> bool | None:
        """Return true, false or None."""
        value = self._get(name)
        if value is None or isinstance(value, bool):
            return value
        return self._complain(name, "true, false or null", value, None)

    def integer(self, name: str) -> int:
        """Return a whole number; a time before 1970 is below 0."""
        value = as_int(self._required(name))
        return value if value is not None else self.complain(name, "a whole number", 0)

    def count(self, name: str) -> int:
        """Return a whole number from 0 up."""
        value = self._required(name)
        return value if _is_count(value) else self._complain(name, "a whole number from 0 up", value, 0)

    def optional_count(self, name: str) -> int | None:
        """Return a whole number from 0 up, or None."""
        value = self._get(name)
        if value is None or _is_count(value):
            return value
        return self._complain(name, "a whole number from 0 up or null", value, None)

    def optional_counts(self, name: str) -> tuple[int | None, ...]:
        """Return a list of whole numbers from 0 up, each of which may be null; one that is not there is empty."""
        value = self._get(name)
        if value is None:
            return ()
        if isinstance(value, list) and all(each is None or _is_count(each) for each in value):
            return tuple(value)
        return self._complain(name, "a list of whole numbers from 0 up or null", value, ())

    def optional_seconds(self, name: str) -> float | None:
        """Return a number of seconds from 0 up, or None."""
        value = self._get(name)
        return None if value is None else self._seconds(name, value)

    def list_of_seconds(self, name: str) -> tuple[float, ...]:
        """Return a list of numbers of seconds."""
        return tuple(self._seconds(f"{name}[{number}]", each) for number, each in enumerate(self._list(name)))

    def optional_pair(self, name: str) -> tuple[int, int] | None:
        """Return two whole numbers, or None."""
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, list) and len(value) == 2:
            major, minor = value
            if _is_count(major) and _is_count(minor):
                return major, minor
        return self._complain(name, "two whole numbers, such as [8, 9], or null", value, None)

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        """Return a list of two texts each."""
        found = []
        for number, each in enumerate(self._list(name)):
            if isinstance(each, list) and len(each) == 2 and all(isinstance(part, str) for part in each):
                found.append((str(each[0]), str(each[1])))
            else:
                self._complain(f"{name}[{number}]", "two strings", each, None)
        return tuple(found)

    def choice(self, name: str, options: tuple[T, ...], otherwise: T) -> T:
        """Return one of the options; `otherwise` where there is a complaint."""
        value = self._required(name)
        chosen = next((option for option in options if option == value), None)
        if chosen is not None:
            return chosen
        return self._complain(name, f"one of {', '.join(map(str, options))}", value, otherwise)

    def exactly(self, name: str, wanted: int) -> None:
        """Complain where a number is another."""
        value = self._required(name)
        if value != wanted or isinstance(value, bool):
            self._complain(name, str(wanted), value, None)

    def inner(self, name: str) -> Fields:
        """Return an object inside this one."""
        value = self._required(name)
        found: dict[str, object] = {}
        found = value if isinstance(value, dict) else self._complain(name, "an object", value, found)
        return Fields(found, f"{self.place}{name}.", self.complaints)

    def objects(self, name: str) -> list[Fields]:
        """Return a list of objects."""
        return list(self._objects(name))

    def optional_objects(self, name: str) -> list[Fields]:
        """Return a list of objects; one that is not there, or null, is empty."""
        return [] if self._get(name) is None else self.objects(name)

    def report_unknown_keys(self) -> None:
        """Complain about every name nobody asked for."""
        for name in sorted(set(self.values) - self.asked):
            if self.complaints is None:
                raise FieldError(f"{self.place}{name}", "left out", self.values[name])
            self.complaints.append(f"{self.place}{name}: not known")

    def complain(self, name: str, wanted: str, otherwise: T) -> T:
        """Say that a value is another than wanted; return `otherwise` where complaints are collected."""
        return self._complain(name, wanted, self._required(name), otherwise)

    # --- parts -----------------------------------------------------------------------------------

    def _objects(self, name: str) -> Iterator[Fields]:
        for number, each in enumerate(self._list(name)):
            place = f"{name}[{number}]"
            if isinstance(each, dict):
                yield Fields(each, f"{self.place}{place}.", self.complaints)
            else:
                self._complain(place, "an object", each, None)

    def _get(self, name: str) -> object:
        self.asked.add(name)
        return self.values.get(name)

    def _required(self, name: str) -> object:
        return self._get(name) if name in self.values else _MISSING

    def _list(self, name: str) -> list[object]:
        value = self._required(name)
        return value if isinstance(value, list) else self._complain(name, "a list", value, [])

    def _seconds(self, name: str, value: object) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and 0 <= value < float("inf"):  # type: ignore[operator]  # mypy does not follow the name
            return float(value)  # type: ignore[arg-type]
        return self._complain(name, "a number of seconds", value, 0.0)

    def _complain(self, name: str, wanted: str, value: object, otherwise: T) -> T:
        error = FieldError(f"{self.place}{name}", wanted, value)
        if self.complaints is None:
            raise error
        self.complaints.append(str(error))
        return otherwise


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_COUNT
