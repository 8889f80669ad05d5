"""The header of a safetensors file: what the library accepts is accepted, what it rejects is named."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from provisioner.identify.identification import (
    GGUF_READ_BYTES,
    HEADER_READ_LIMIT,
    HEADER_VALUE_LIMIT,
    MAX_HEADER_BYTES,
    SNIFF_BYTES,
    HeaderProblem,
    SafetensorsHeader,
    how_much_to_read,
    read_header,
)
from provisioner.rehearsal.tiny_models import TinyFile, small_comfyui_files
from tests.support.model_headers import BITS, Table, header_bytes_of, recorded


def file_of(document: object, payload: bytes = b"", *, raw: bytes | None = None) -> bytes:
    """Return a small file with any header at all."""
    text = json.dumps(document).encode() if raw is None else raw
    return len(text).to_bytes(8, "little") + text + payload


def read_by_library(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return names, dtypes and shapes as the safetensors library sees them."""
    entries = deserialize(data)  # type: ignore[no-untyped-call]
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries}


def is_accepted_by_library(data: bytes) -> bool:
    try:
        read_by_library(data)
    except SafetensorError:
        return False
    return True


# --- headers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensors", "payload", "schema"),
    [
        ("flux-2-klein-4b-fp8", 309, 4070588032, "2ff21124fb997716c2da1597fab0824dc7bedcaf1aa182ade036e46788b79d6b"),
        ("qwen_3_4b", 398, 8044936192, "e0a22a9523c6c3a8e298311bc7389a035f1ac6081133b71067629bd72ac5899d"),
        ("flux-2-klein-4b", 149, 7751105712 - 16552 - 8, None),
        ("flux2-vae", 251, 336185492, None),
    ],
)
def test_reads_the_published_tables_with_their_published_figures(
    name: str, tensors: int, payload: int, schema: str | None
) -> None:
    found = read_header(*header_bytes_of(recorded(name), {"format": "pt"}))
    assert isinstance(found, SafetensorsHeader)
    assert (len(found.tensors), found.payload_bytes, found.metadata) == (tensors, payload, {"format": "pt"})
    assert sum(count for _, count in found.dtypes) == tensors
    assert schema in (None, found.schema_sha256)


def test_counts_the_dtypes_of_a_quantised_file() -> None:
    found = read_header(*header_bytes_of(recorded("flux-2-klein-4b-fp8")))
    assert isinstance(found, SafetensorsHeader)
    assert found.dtypes == (("BF16", 69), ("F32", 160), ("F8_E4M3", 80))


ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "too-short"),
        (b"1234567", "too-short"),
        (bytes(8), "header-length"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "header-length"),
        (b"\xff" * 20, "header-length"),
        ((100).to_bytes(8, "little") + b"{}", "header-cut"),
        (file_of(0, raw=b"{x"), "not-json"),
        (file_of(0, raw=b"{}\0"), "not-json"),
        (file_of(0, raw=b'{"a":NaN}'), "not-json"),
        (file_of(0, raw=b"\xff\xfe{}"), "not-json"),
        (file_of(0, raw=b"\xef\xbb\xbf{}"), "not-json"),
        (file_of(0, raw=b'{"a":' * 100_000), "not-json"),
        (file_of(0, raw=b'{"a":' + b"9" * 10_000 + b"}"), "not-json"),
        (file_of([]), "malformed"),
        (file_of(None), "malformed"),
        (file_of({"a": 1}), "malformed"),
        (file_of({"a": {}}), "malformed"),
        (file_of({"__metadata__": []}), "malformed"),
        (file_of({"__metadata__": {"x": 1}}), "malformed"),
        (file_of({"a\ud800": ENTRY}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "dtype": "X1"}}, b"12"), "unknown-dtype"),
        (file_of({"a": {**ENTRY, "shape": [-2]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "shape": [2.0]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "shape": [True, 2]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "shape": [3]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "shape": [2**63, 2**63, 0]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "data_offsets": [0, 2, 2]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "data_offsets": [2, 0]}}, b"12"), "malformed"),
        (file_of({"a": {**ENTRY, "data_offsets": [1, 3]}}, b"123"), "malformed"),
        (file_of({"a": ENTRY, "b": ENTRY}, b"12"), "malformed"),
        (file_of({"a": ENTRY, "b": {**ENTRY, "data_offsets": [3, 5]}}, b"12345"), "malformed"),
        (file_of({"a": ENTRY}, b"1"), "truncated"),
        (file_of({"a": ENTRY}, b"123"), "overlong"),
    ],
)
def test_answers_a_header_that_is_none(data: bytes, code: str) -> None:
    found = read_header(data, len(data))
    assert isinstance(found, HeaderProblem)
    assert found.code == code
    with pytest.raises(SafetensorError):
        read_by_library(data)


def test_a_truncated_file_still_says_what_it_was_to_be() -> None:
    first, size = header_bytes_of({"a": ("U8", [1000])})
    found = read_header(first, size - 10)
    assert isinstance(found, HeaderProblem)
    assert (found.expected_size, found.header is None) == (size, False)
    assert f"{size - 10:,} of {size:,}" in found.sentence


def test_a_header_that_was_not_given_is_not_guessed() -> None:
    first, size = header_bytes_of(recorded("flux2-vae"))
    found = read_header(first[:100], size)
    assert isinstance(found, HeaderProblem)
    assert found.code == "header-not-read"


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (b"", SNIFF_BYTES),
        (bytes(8), SNIFF_BYTES),
        ((16).to_bytes(8, "little"), SNIFF_BYTES),
        ((36480).to_bytes(8, "little"), 36488),
        (HEADER_READ_LIMIT.to_bytes(8, "little"), HEADER_READ_LIMIT + 8),
        ((HEADER_READ_LIMIT + 1).to_bytes(8, "little"), SNIFF_BYTES),
        (b"\xff" * 8, SNIFF_BYTES),
        (b"<!DOCTYPE html>", SNIFF_BYTES),
        (b"GGUF\x03\x00\x00\x00", GGUF_READ_BYTES),
    ],
)
def test_never_asks_for_more_than_a_header_can_need(first: bytes, expected: int) -> None:
    assert how_much_to_read(first) == expected


# --- agreement with the library ------------------------------------------------------------------------

SHAPES = st.lists(st.integers(0, 4), max_size=3)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(BITS)), SHAPES), max_size=5)


@given(TENSORS, st.none() | st.dictionaries(NAMES, NAMES, max_size=2))
@settings(max_examples=60, deadline=None)
def test_reads_what_the_library_reads(tensors: Table, metadata: dict[str, str] | None) -> None:
    first, size = header_bytes_of(tensors, metadata)
    data = first + bytes(size - len(first))
    found = read_header(data, size)
    assert isinstance(found, SafetensorsHeader)
    assert {name: (each.dtype, each.shape) for name, each in found.tensors.items()} == read_by_library(data)
    assert found.metadata == (metadata or {})


OFFSETS = st.lists(st.integers(0, 6), min_size=2, max_size=2)
LOOSE_ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["U8", "F16", "F4", "Q9"]), "shape": SHAPES, "data_offsets": OFFSETS}
)


@given(st.dictionaries(st.sampled_from("abc"), LOOSE_ENTRY, max_size=3), st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_accepts_exactly_what_the_library_accepts(document: dict[str, object], payload: int) -> None:
    data = file_of(document, bytes(payload))
    assert isinstance(read_header(data, len(data)), SafetensorsHeader) is is_accepted_by_library(data)


# --- the oddities of serde, as the library has them -----------------------------------------------------

GOOD = b'{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
WITH_MORE = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"z":%s}}'
TWICE = b'"__metadata__":{},"__metadata__":{}'


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":%s,"a":%s}' % (GOOD, GOOD),
        b'{"a":1,"a":%s}' % GOOD,
        b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,2]},"a":%s}' % GOOD,
        b'{"a":{"dtype":"Q8","shape":[9],"data_offsets":[0,2]},"a":%s}' % GOOD,
        b'{"__metadata__":{},"a":%s,"__metadata__":{}}' % GOOD,
        b'{%s,"a":%s}' % (TWICE, GOOD),
        b'{"__metadata__":{},"__m\\u0065tadata__":{},"a":%s}' % GOOD,
        b'{"__metadata__":{"x":"1","x":"2"},"a":%s}' % GOOD,
        b'{"__metadata__":{"x":1,"x":"2"},"a":%s}' % GOOD,
        b'{"__metadata__":{"x\\\\":"1","x\\\\":2},"a":%s}' % GOOD,
        b'{"__metadata__":{"x":"\\":"},"a":%s}' % GOOD,
        b'{"__metadata__":null,"a":%s}' % GOOD,
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"shape":[2]}}',
        b'{"a":["U8",[2],[0,2]]}',
        b'{"a":["U8",[2],[0,2],1]}',
        b'{"a":["U8",[2]]}',
        b'{"a":{"dtype":{"U8":null},"shape":[2],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":{"U8":1},"shape":[2],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":{"U8":null,"I8":null},"shape":[2],"data_offsets":[0,2]}}',
        b'{"a":null}',
        b'{"a" : {"dtype" : "U8", "shape" : [2], "data_offsets" : [0, 2]}}',
        b'  {"a":%s}  ' % GOOD,
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}',
        b'{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":"U8","shape":[2e0],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":"U8","shape":[02],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,2]}}',
        b'{"a":{"dtype":"U8","shape":[0,18446744073709551615],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,2]}}',
        WITH_MORE % b'{"q":[1]}',
        WITH_MORE % b"1e400",
        WITH_MORE % b"-1e400",
        WITH_MORE % (b"9" * 25),
        WITH_MORE % (b"1" * 309),
        WITH_MORE % (b"1" * 310),
        WITH_MORE % (b"1" * 5000),
        WITH_MORE.replace(b"a", b"a-0", 1) % (b"1" * 5000),
        WITH_MORE % (b"0." + b"1" * 400),
        WITH_MORE % b"18446744073709551615",
        WITH_MORE % b"NaN",
        WITH_MORE % b'"\\ud800"',
        WITH_MORE % b'"\\ud83d\\ude00"',
        WITH_MORE % b'1,"z":2',
        *(WITH_MORE % (b"[" * depth + b"]" * depth) for depth in (1, 124, 125, 126, 127, 128, 200)),
        *(WITH_MORE % (b'{"y":' * depth + b"1" + b"}" * depth) for depth in (124, 125, 126, 127)),
        b'{"a\tb":%s}' % GOOD,
        b'{"a\x7fb":%s}' % GOOD,
        b'{"":%s}' % GOOD,
        b'{"layer-0":%s}' % GOOD,
        b'{"\\ud83d\\ude00":%s}' % GOOD,
        b'{"a":%s,}' % GOOD,
        b'{"a":%s} {}' % GOOD,
    ],
)
def test_agrees_with_the_library_on_oddities(raw: bytes) -> None:
    for payload in (b"", b"12"):
        data = file_of(0, payload, raw=raw)
        found = read_header(data, len(data))
        assert isinstance(found, SafetensorsHeader) is is_accepted_by_library(data)
        if isinstance(found, SafetensorsHeader):
            assert {name: (each.dtype, each.shape) for name, each in found.tensors.items()} == read_by_library(data)


# --- properties ------------------------------------------------------------------------------------------


@given(TENSORS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_places_are_those_where_the_library_reads(tensors: Table, order: random.Random) -> None:
    first, size = header_bytes_of(tensors)
    payload = order.randbytes(size - len(first))
    found = read_header(first + payload, size)
    assert isinstance(found, SafetensorsHeader)
    seen = {name: bytes(entry["data"]) for name, entry in deserialize(first + payload)}  # type: ignore[no-untyped-call]
    assert {name: payload[each.begin : each.end] for name, each in found.tensors.items()} == seen


@given(
    st.dictionaries(st.sampled_from("abc"), LOOSE_ENTRY, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(b'0129-"{}[]:,e.\\u \x80')), max_size=3),
    st.integers(0, 8),
)
@settings(max_examples=120, deadline=None)
def test_accepts_what_the_library_accepts_of_damaged_headers(
    document: dict[str, object], damage: list[tuple[int, int]], payload: int
) -> None:
    raw = bytearray(json.dumps(document).encode())
    for place, byte in damage:
        raw[place % len(raw)] = byte
    data = file_of(0, bytes(payload), raw=bytes(raw))
    assert isinstance(read_header(data, len(data)), SafetensorsHeader) is is_accepted_by_library(data)


# --- too much -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filling", [b"[],", b"{},", b"1,"])
def test_a_header_of_countless_values_is_not_read(filling: bytes) -> None:
    values = filling * HEADER_VALUE_LIMIT
    data = file_of(0, raw=b'{"a":[' + values + b"1]}")
    found = read_header(data, len(data))
    assert isinstance(found, HeaderProblem)
    assert found.code == "header-not-read"


def test_a_tensor_of_countless_sides_takes_no_time() -> None:
    shape = [2**60] * 200_000
    data = file_of({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, 2]}}, b"12")
    found = read_header(data, len(data))
    assert isinstance(found, HeaderProblem)
    assert found.code == "malformed"


# --- the library opens what is described ------------------------------------------------------------------


@pytest.mark.parametrize("file", small_comfyui_files(), ids=lambda file: file.name)
def test_the_library_sees_the_same_in_a_small_but_true_file(file: TinyFile) -> None:
    found = read_header(file.data, len(file.data))
    assert isinstance(found, SafetensorsHeader)
    seen = {name: (tensor.dtype, tensor.shape) for name, tensor in found.tensors.items()}
    assert seen == read_by_library(file.data)
