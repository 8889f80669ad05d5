"""The one reader of JSON: bounded, never surprised, and every complaint with its place."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.core.json_reader import FieldError, Fields, as_dict, as_int, as_list, parse_object

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
GETTERS: dict[str, Callable[[Fields, str], object]] = {
    "text": Fields.text,
    "optional_text": Fields.optional_text,
    "texts": Fields.texts,
    "optional_texts": Fields.optional_texts,
    "flag": Fields.flag,
    "optional_flag": Fields.optional_flag,
    "integer": Fields.integer,
    "count": Fields.count,
    "optional_count": Fields.optional_count,
    "optional_counts": Fields.optional_counts,
    "optional_seconds": Fields.optional_seconds,
    "list_of_seconds": Fields.list_of_seconds,
    "optional_pair": Fields.optional_pair,
    "pairs": Fields.pairs,
    "inner": Fields.inner,
    "objects": Fields.objects,
    "optional_objects": Fields.optional_objects,
}


@given(JSON)
def test_an_object_comes_back_and_nothing_else_does(value: object) -> None:
    assert parse_object(json.dumps(value)) == (value if isinstance(value, dict) else None)
    assert parse_object(json.dumps(value).encode()) == (value if isinstance(value, dict) else None)


@given(st.binary(max_size=40))
def test_no_bytes_break_it(data: bytes) -> None:
    assert parse_object(data) is None or isinstance(parse_object(data), dict)


def test_what_is_too_long_is_not_read() -> None:
    assert parse_object('{"a": 1}', most=8) == {"a": 1}
    assert parse_object('{"a": 1}', most=7) is None


@given(JSON)
def test_a_getter_returns_its_kind_or_names_the_key(value: object) -> None:
    for name, get in GETTERS.items():
        for values in ({"key": value}, {}):
            complaints: list[str] = []
            collected = get(Fields(values, "place.", complaints), "key")
            if complaints:
                assert complaints[0].startswith("place.key"), name
                with pytest.raises(FieldError) as raised:
                    get(Fields(values, "place."), "key")
                assert str(raised.value) == complaints[0]
            else:
                found = get(Fields(values, "place."), "key")
                assert found is not None or name.startswith("optional"), name
                assert name in {"inner", "objects", "optional_objects"} or found == collected


@pytest.mark.parametrize(
    ("get", "value", "complaint"),
    [
        ("text", 7, "key: must be a string; not 7"),
        ("texts", ["a", None], "key[1]: must be a string; not null"),
        ("pairs", [["a", "b"], ["a"]], 'key[1]: must be two strings; not ["a"]'),
        ("objects", [{}, []], "key[1]: must be an object; not []"),
        ("integer", True, "key: must be a whole number; not true"),
        ("count", 2**64, "key: must be a whole number from 0 up; not 18446744073709551616"),
    ],
)
def test_a_complaint_has_place_kind_and_value(get: str, value: object, complaint: str) -> None:
    with pytest.raises(FieldError) as raised:
        GETTERS[get](Fields({"key": value}), "key")
    assert str(raised.value) == complaint


def test_a_choice_and_names_nobody_asked_for() -> None:
    fields = Fields({"kind": "a", "more": 1, "inner": {"odd": 2}})
    assert fields.choice("kind", ("b", "a"), "b") == "a"
    with pytest.raises(FieldError, match="kind: must be one of b, c"):
        fields.choice("kind", ("b", "c"), "b")
    with pytest.raises(FieldError, match=r"inner\.odd: must be left out; not 2"):
        fields.inner("inner").report_unknown_keys()
    complaints: list[str] = []
    Fields({"more": 1}, complaints=complaints).report_unknown_keys()
    assert complaints == ["more: not known"]


def test_what_is_there_is_taken_and_the_rest_left_out() -> None:
    assert (as_dict([]), as_list({}), as_int("1")) == ({}, [], None)
    assert (as_dict({"a": 1}), as_list([1]), as_int(1)) == ({"a": 1}, [1], 1)
