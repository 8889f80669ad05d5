"""Any value as JSON can say it, with every secret masked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import TypeAlias

from provisioner.core.redact import MASK, redact

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

_SECRET_KEYS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "token", "password"})


def json_line(value: object) -> str:
    """Return a JSON value on one line, ASCII only, so that no locale can break it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def json_value(value: object, secrets: Iterable[str] = ()) -> JsonValue:
    """Return any value as JSON can say it, every string in it redacted.

    Paths become native strings, dataclasses objects, sets sorted lists, exceptions their message;
    a float that is not finite becomes null, because JSON has no word for it.
    """
    hidden = tuple(secrets)
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case str():
            return redact(value, hidden)
        case PurePath():
            return redact(str(value), hidden)
        case Mapping():
            return {redact(str(key), hidden): _entry(str(key), each, hidden) for key, each in value.items()}
        case list() | tuple():
            return [json_value(each, hidden) for each in value]
        case set() | frozenset():
            return [json_value(each, hidden) for each in sorted(value, key=str)]
        case _:
            return _other_value(value, hidden)


def _entry(key: str, value: object, secrets: tuple[str, ...]) -> JsonValue:
    """Return a value under its key; headers that carry credentials are masked by their name."""
    return MASK if key.lower() in _SECRET_KEYS and value is not None else json_value(value, secrets)


def _other_value(value: object, secrets: tuple[str, ...]) -> JsonValue:
    """Return a dataclass as an object, and anything else as its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _entry(each.name, getattr(value, each.name), secrets) for each in fields(value)}
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "backslashreplace"), secrets)
    return redact(str(value), secrets)


def json_object(value: object, secrets: tuple[str, ...]) -> dict[str, JsonValue]:
    """Return a mapping or dataclass as a JSON object."""
    entry = json_value(value, secrets)
    return entry if isinstance(entry, dict) else {}
