"""Reads a JSON document of any version: a key that is missing or of another type counts as absent."""

from __future__ import annotations

import math
from collections.abc import Mapping

_LARGEST = 2**64
"""No size, time or seed is larger; Python refuses to print integers of thousands of digits."""


class Node:
    """A value in a document, present or absent."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def at(self, *keys: str) -> Node:
        """Return the value under these nested keys."""
        value = self.value
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return Node(value)

    @property
    def text(self) -> str:
        """The text, empty if there is none."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def number(self) -> float | None:
        """The number; None if there is none that can be shown."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST < value < _LARGEST:
            return None
        return value if math.isfinite(value) else None

    @property
    def whole(self) -> int | None:
        """The integer, exactly as written."""
        return None if self.number is None else int(self.number)

    @property
    def flag(self) -> bool | None:
        """True or false; None if it is neither."""
        return self.value if isinstance(self.value, bool) else None

    @property
    def rows(self) -> list[Node]:
        """The values of a list."""
        return [Node(each) for each in self.value] if isinstance(self.value, (list, tuple)) else []

    @property
    def texts(self) -> list[str]:
        """The texts of a list."""
        return [row.text for row in self.rows if row.text]

    @property
    def items(self) -> list[tuple[str, Node]]:
        """The keys and values of an object; a list of pairs is read in the same way."""
        if isinstance(self.value, Mapping):
            return [(str(key), Node(each)) for key, each in self.value.items()]
        pairs = [row.rows for row in self.rows]
        return [(pair[0].text, pair[1]) for pair in pairs if len(pair) == 2 and pair[0].text]

    def __bool__(self) -> bool:
        return bool(self.value)
