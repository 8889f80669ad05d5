"""Holds what the program prints against the schemas of docs/schema/."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schema"
AnyMapping = TypeVar("AnyMapping", bound=Mapping[str, Any])


@functools.cache
def validator(name: str) -> Draft202012Validator:
    """Return what validates against ``docs/schema/NAME.schema.json``."""
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def conforming(value: AnyMapping, name: str = "document") -> AnyMapping:
    """Return a value that conforms to a schema; fail the test where it does not."""
    wrong = best_match(validator(name).iter_errors(value))
    assert wrong is None, f"{name}.schema.json, at {wrong.json_path}: {wrong.message[:600]}"
    return value


def check_output(arguments: Sequence[str], stdout: str, returncode: int) -> None:
    """Validate what a run printed, if it was to print JSON; a run that was killed may have ended in mid-line."""
    if not any(each.startswith("--json") for each in arguments) or not stdout or returncode < 0:
        return
    if "--json=events" not in arguments:
        conforming(json.loads(stdout))
        return
    for line in stdout.splitlines():
        conforming(json.loads(line), "events")
