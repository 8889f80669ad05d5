"""What the readers of `torch.yaml` and `comfyui.yaml` share: lists of rows, their sources, and entries named twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from provisioner.manifest.strict_yaml import LINE, Fields, Kind, Place, list_of, matching, shown
from provisioner.manifest.table_source import TableSource

_T = TypeVar("_T")

DATE = matching("a quoted date like '2026-11-23'", r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")
ID = matching("a short name of a-z, 0-9, '.' and '-'", r"[a-z0-9][a-z0-9.-]{0,63}")
THREAD = matching("a thread like 'Comfy-Org/ComfyUI#15255'", r"[\w.-]+/[\w.-]+#[1-9][0-9]{0,6}")
SOURCE_IDS = list_of(ID, "a list of ids out of 'sources'")


def rows_of(read: Callable[[Place], _T], what: str) -> Kind[tuple[_T, ...]]:
    """Return the kind of a list of mappings; unreadable rows are left out and reported."""
    rows = list_of(Kind[_T | None](what, read, None), f"a list; each entry is {what}")

    def keep(place: Place) -> tuple[_T, ...]:
        return tuple(each for each in rows.read(place) if each is not None)

    return Kind(rows.expected, keep, ())


def sources_of(synonyms: dict[str, str]) -> Kind[tuple[TableSource, ...]]:
    """Return the kind of the list ``sources``; `synonyms` are other words for a table's keys, for advice."""

    def read(place: Place) -> TableSource:
        with Fields(place, synonyms) as fields:
            return TableSource(
                id=fields.required("id", ID),
                what=fields.required("what", LINE),
                read_on=fields.required("read_on", DATE),
            )

    return rows_of(read, "a mapping of id, what and read_on")


def report_repeated(place: Place, key: str, values: Iterable[object]) -> None:
    """Report values that stand twice among the rows under a key."""
    seen: set[object] = set()
    for each in values:
        if each in seen:
            place.complain(f"names {shown(str(each))} twice; expected every entry once", key)
        seen.add(each)
