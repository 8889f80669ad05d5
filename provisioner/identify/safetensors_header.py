"""Read the header of a safetensors file: names, dtypes, shapes and offsets, or why it is not valid.

Pure: the caller reads (`how_much_to_read` says how much) and passes the bytes in.  It accepts exactly the
files that the safetensors library would load.  No length found in a file is trusted before it was compared with the
file's size, nothing is allocated because a header says so, and no input raises.

Source: the safetensors library 0.8.0 (`safetensors/src/tensor.rs`; huggingface/safetensors at 24b0b285, read
2026-11-23) and how it treats each oddity named here (tests/unit/test_identify_header.py compares with it).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Literal, NamedTuple

from provisioner.identify.quoting import quoted

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library rejects longer headers."""

HEADER_READ_LIMIT = 8 * 1024 * 1024
"""Longer headers are valid but not read: parsing them can take a hundred times their size in memory.

The longest of the FLUX.2 files has 62,136 bytes.
"""

HEADER_VALUE_LIMIT = 500_000
"""Headers with more values than this are not read either: each value of ``[[],[],...`` takes 30 bytes of memory.

A header of 2,500 tensors, as whole SDXL checkpoints have, holds about 20,000.
"""

SNIFF_BYTES = 4096
"""Bytes needed to recognise everything that is neither safetensors nor GGUF."""

GGUF_READ_BYTES = 256 * 1024
"""Holds the tensor table of any image model in GGUF: 149 rows of about 80 bytes for FLUX.2 [klein] 4B."""

_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
_U64 = 2**64
_DEEPEST = 127  # arrays and objects inside each other that serde_json follows

ProblemCode = Literal[
    "too-short",  # no room for the length of a header
    "header-length",  # not the length of a header: the file is something else
    "header-cut",  # the file ends inside its header
    "header-not-read",  # more of the file is needed, or the header is larger than we read
    "not-json",
    "malformed",  # JSON, but not a safetensors header
    "unknown-dtype",
    "truncated",  # the header is valid and the payload ends early
    "overlong",  # the header is valid and the file continues after its payload
]


class Tensor(NamedTuple):
    """One entry of a safetensors header; a tuple, because a file has hundreds and tuples are quick to make."""

    dtype: str  # "BF16"
    shape: tuple[int, ...]
    begin: int  # bytes into the payload
    end: int

    @property
    def size(self) -> int:
        """Bytes in the payload."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """A valid safetensors header: its tensors fill the payload without gap or overlap."""

    header_bytes: int  # the 8-byte length's value: JSON plus padding
    payload_bytes: int  # as declared by the header
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_size(self) -> int:
        """Bytes the whole file must have."""
        return 8 + self.header_bytes + self.payload_bytes

    @property
    def dtypes(self) -> tuple[tuple[str, int], ...]:
        """How many tensors there are of each dtype, by dtype."""
        return tuple(sorted(Counter(tensor.dtype for tensor in self.tensors.values()).items()))

    @property
    def schema_sha256(self) -> str:
        """SHA-256 over the lines ``name:(dtype, shape)``, sorted by name (`Fingerprint.schema_sha256`)."""
        lines = (f"{name}:{(each.dtype, each.shape)}" for name, each in sorted(self.tensors.items()))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderProblem:
    """Why a file is not a complete safetensors file."""

    code: ProblemCode
    sentence: str  # continues after "the file"
    header: SafetensorsHeader | None = None  # where the header itself is valid
    expected_size: int | None = None  # bytes of the whole file, where the header says so


class _UnsoundHeaderError(ValueError):
    """Carries a complaint to `read_header`; never leaves this module."""

    def __init__(self, code: ProblemCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class _DisagreementError(_UnsoundHeaderError):
    """A well-formed tensor entry whose values contradict each other."""


def how_much_to_read(first_8: bytes) -> int:
    """Return how many bytes of a file's beginning `identify` needs, given its first eight.

    Never more than `HEADER_READ_LIMIT` plus eight, whatever the eight bytes claim.
    """
    if first_8.startswith(b"GGUF"):
        return GGUF_READ_BYTES
    length = int.from_bytes(first_8[:8], "little")
    return max(SNIFF_BYTES, 8 + length) if length <= HEADER_READ_LIMIT else SNIFF_BYTES


def read_header(first_bytes: bytes, file_size: int) -> SafetensorsHeader | HeaderProblem:
    """Return the safetensors header at the start of a file, or why it is not valid.

    Accepts exactly what the safetensors library would load: JSON of known dtypes whose offsets
    begin at 0, follow each other without a gap and end with the file.

    Parameters
    ----------
    first_bytes : bytes
        The file's beginning, as much as `how_much_to_read` asked for.
    file_size : int
        Bytes of the whole file.
    """
    if min(len(first_bytes), file_size) < 8:
        return HeaderProblem(code="too-short", sentence="is too short to have a safetensors header")
    length = int.from_bytes(first_bytes[:8], "little")
    if problem := _frame_problem(length, len(first_bytes), file_size):
        return problem
    text = first_bytes[8 : 8 + length]
    if length > HEADER_VALUE_LIMIT and (values := _values_in(text)) > HEADER_VALUE_LIMIT:
        return HeaderProblem(
            code="header-not-read", sentence=f"has a header of about {values:,} values, which was not read"
        )
    try:
        document = _parse_json(text)
        tensors, metadata = _tensors_of(document), _metadata_of(document)
        payload = _payload_bytes(tensors)
    except _UnsoundHeaderError as error:
        return HeaderProblem(code=error.code, sentence=error.sentence)
    header = SafetensorsHeader(header_bytes=length, payload_bytes=payload, tensors=tensors, metadata=metadata)
    return _size_problem(header, file_size) or header


def _values_in(text: bytes) -> int:
    """Return about how many values a header holds, without parsing it."""
    return sum(text.count(mark) for mark in (b",", b"[", b"{"))


# --- the frame -------------------------------------------------------------------------------------


def _frame_problem(length: int, available: int, file_size: int) -> HeaderProblem | None:
    """Return what is wrong with the claimed header length; None if it fits the file."""
    if not 2 <= length <= MAX_HEADER_BYTES:
        return HeaderProblem(code="header-length", sentence="does not begin with the length of a safetensors header")
    if 8 + length > file_size:
        return HeaderProblem(
            code="header-cut",
            sentence=f"ends at byte {file_size:,}, inside its header of {length:,} bytes",
        )
    if 8 + length > available:
        return HeaderProblem(code="header-not-read", sentence=f"has a header of {length:,} bytes, which was not read")
    return None


def _size_problem(header: SafetensorsHeader, file_size: int) -> HeaderProblem | None:
    """Return the problem if the file does not have the size its header requires; else None."""
    expected = header.file_size
    if file_size < expected:
        sentence = f"is cut off at {file_size:,} of {expected:,} bytes"
        return HeaderProblem(code="truncated", sentence=sentence, header=header, expected_size=expected)
    if file_size > expected:
        sentence = f"has {file_size - expected:,} bytes after its {expected:,}"
        return HeaderProblem(code="overlong", sentence=sentence, header=header, expected_size=expected)
    return None


# --- JSON, read as serde_json reads it -------------------------------------------------------------


class _Repeating(dict[str, object]):
    """An object in which a key occurs twice; the last one counts, but all of them must be valid."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeating(pairs)


def _pairs_of(found: dict[str, object]) -> list[tuple[str, object]]:
    return found.pairs if isinstance(found, _Repeating) else list(found.items())


def _repeats(found: dict[str, object], *keys: str) -> bool:
    """Return whether one of these keys occurs twice in an object."""
    return isinstance(found, _Repeating) and any(sum(name == key for name, _ in found.pairs) > 1 for key in keys)


def _refuse_constant(text: str) -> object:
    raise ValueError(text)  # NaN and Infinity: Python accepts them as JSON, nobody else does


def _number(digits: str) -> int | float:
    """Return an integer of 64 bits; a longer one and "-0" become floats, which are no sizes, as in the library."""
    if len(digits) <= 19 and digits != "-0":
        return int(digits)
    if len(digits) > 310:  # more than any float; converting megabytes of digits takes minutes
        raise ValueError("number too long")
    if digits != "-0" and 0 <= (whole := int(digits)) < _U64:
        return whole
    return _finite(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return value


# From Python 3.10.7 on `int` rejects more than 4,300 digits; before, megabytes of digits took minutes.
_REFUSES_LONG_NUMBERS = hasattr(sys, "get_int_max_str_digits")
_PLAIN = json.JSONDecoder(parse_constant=_refuse_constant)
_CAREFUL = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_int=_number, parse_float=_finite, object_pairs_hook=_object_of
)


def _parse_json(data: bytes) -> dict[str, object]:
    try:
        text = data.decode("utf-8")
        document = _plainly(data, text) or _CAREFUL.decode(text)
    except (ValueError, RecursionError) as error:
        raise _UnsoundHeaderError("not-json", "has a header that is not JSON") from error
    if not isinstance(document, dict):
        raise _UnsoundHeaderError("malformed", "has a header that is not a JSON object")
    if "\\u" in text and not _is_all_unicode(document):
        raise _UnsoundHeaderError("malformed", "has half a character in its header")
    return document


def _plainly(data: bytes, text: str) -> dict[str, object] | None:
    """Return the header, parsed quickly; None where quick parsing would miss something.

    Python's decoder drops the first of two equal keys unless it calls back for every object, which takes as long as
    all the rest.  So the keys are counted in the text instead, and if some are missing the slow parser is used.
    """
    if not _REFUSES_LONG_NUMBERS or b"-0" in data or b'\\\\"' in data:  # "-0" is no size; the other breaks the counting
        return None
    document = _PLAIN.decode(text)
    if not isinstance(document, dict):
        return None
    metadata = document.get("__metadata__")
    keys = 4 * len(document)  # a name and three fields for every tensor
    if isinstance(metadata, dict):
        keys += len(metadata) - 3
    return document if keys == data.count(b'":') - data.count(b'\\":') else None


def _is_all_unicode(document: object) -> bool:
    """Return whether every string can be written as UTF-8: JSON escapes can contain half a character."""
    waiting = [document]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            try:
                each.encode()
            except UnicodeEncodeError:
                return False
        elif isinstance(each, dict):
            waiting += [part for pair in _pairs_of(each) for part in pair]
        elif isinstance(each, list):
            waiting += each
    return True


def _is_too_deep(value: object) -> bool:
    """Return whether a value of an entry is nested more deeply than the library follows."""
    level, depth = [value], 2  # the header and the entry
    while level:
        inside = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [part for each in inside if isinstance(each, list) for part in each if isinstance(part, dict | list)]
        depth += any(isinstance(each, list) for each in inside)
        if depth > _DEEPEST:
            return True
    return False


# --- what the JSON says ----------------------------------------------------------------------------


def _metadata_of(document: dict[str, object]) -> dict[str, str]:
    if _repeats(document, "__metadata__"):
        raise _UnsoundHeaderError("malformed", "has __metadata__ twice")
    metadata = document.get("__metadata__")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise _UnsoundHeaderError("malformed", "has __metadata__ that is not a JSON object")
    pairs = _pairs_of(metadata)
    texts = {key: value for key, value in pairs if isinstance(value, str)}
    if len(texts) < len(metadata) or not all(isinstance(value, str) for _, value in pairs):
        raise _UnsoundHeaderError("malformed", "has __metadata__ that is not all text")
    return texts


_NO_TENSOR = "has a tensor in its header without dtype, shape or offsets"
# Twice as fast as the constructor, which takes its arguments by name.
_make_tensor: Callable[[tuple[str, tuple[int, ...], int, int]], Tensor] = partial(tuple.__new__, Tensor)


def _tensors_of(document: dict[str, object]) -> dict[str, Tensor]:
    if isinstance(document, _Repeating):
        for name, entry in document.pairs:
            if name != "__metadata__":
                with suppress(_DisagreementError):  # entries that do not count only have to be well-formed
                    _tensor(entry)
    plain = _plain_tensors_of(document)
    if plain is not None:
        return plain
    return {name: _tensor(entry) for name, entry in document.items() if name != "__metadata__"}


def _plain_tensors_of(document: dict[str, object]) -> dict[str, Tensor] | None:
    """Return the tensors of a header in which every entry is plainly valid; None for any other, valid or not.

    One loop without unnecessary calls, because files have hundreds of tensors and folders hundreds of files;
    `_tensor` checks the same and says what is wrong.  By type, because a bool is an int in Python and not one in JSON.
    """
    tensors: dict[str, Tensor] = {}
    for name, entry in document.items():
        if name == "__metadata__":
            continue
        if type(entry) is not dict or len(entry) != 3:
            return None
        dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if type(dtype) is not str or type(shape) is not list or type(place) is not list or len(place) != 2:
            return None
        begin, end = place
        bits = _BITS.get(dtype)
        if bits is None or type(begin) is not int or type(end) is not int or not 0 <= begin < end < _U64:
            return None
        for side in shape:
            if type(side) is not int or not 0 < side < _U64 or bits >= _U64:
                return None
            bits *= side
        if not bits == 8 * (end - begin) < _U64:
            return None
        tensors[name] = _make_tensor((dtype, tuple(shape), begin, end))
    return tensors


def _tensor(entry: object) -> Tensor:
    """Return one entry as a tensor after checking its fields, its dtype, and that its bytes match its shape."""
    if type(entry) is dict and len(entry) == 3:
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    else:
        dtype, shape, offsets = _odd_entry(entry)
    if type(dtype) is dict and len(_pairs_of(dtype)) == 1:  # serde lets a word be written as {"U8": null}
        dtype = next((name for name, value in dtype.items() if value is None), None)
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise _UnsoundHeaderError("malformed", _NO_TENSOR)
    begin, end = offsets
    # by type, because a bool is an int in Python and not one in JSON
    if type(begin) is not int or type(end) is not int or begin < 0 or not 0 <= end < _U64:
        raise _UnsoundHeaderError("malformed", _NO_TENSOR)
    width = _BITS.get(dtype)
    if width is None:
        raise _UnsoundHeaderError("unknown-dtype", f"has tensors of the unknown number format {quoted(dtype)}")
    count, is_possible = 1, True
    for side in shape:
        if type(side) is not int or not 0 <= side < _U64:
            raise _UnsoundHeaderError("malformed", _NO_TENSOR)
        if is_possible:  # the library rejects a product that overflows, even if a zero follows
            count *= side
            is_possible = count < _U64
    if not is_possible or count * width >= _U64:
        raise _DisagreementError("malformed", "has a tensor larger than any file")
    if count * width != 8 * (end - begin):
        raise _DisagreementError("malformed", "has a tensor whose shape and byte range do not agree")
    return _make_tensor((dtype, tuple(shape), begin, end))


def _odd_entry(entry: object) -> tuple[object, object, object]:
    """Return dtype, shape and offsets of an entry that has an unusual form."""
    if isinstance(entry, list) and len(entry) == 3:  # serde lets a record be written as a list
        return entry[0], entry[1], entry[2]
    if not isinstance(entry, dict) or _repeats(entry, "dtype", "shape", "data_offsets"):
        raise _UnsoundHeaderError("malformed", "has an entry in its header that describes no tensor")
    if any(_is_too_deep(value) for _, value in _pairs_of(entry)):
        raise _UnsoundHeaderError("not-json", "has a header nested too deeply")
    return entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")


_place_of = itemgetter(2, 3)


def _payload_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return where the last tensor ends; each must begin where the one before it ended."""
    position = 0
    places = sorted(map(_place_of, tensors.values()))
    for begin, end in places:
        if begin != position:
            raise _UnsoundHeaderError("malformed", "has gaps or overlaps between its tensors")
        position = end
    return position
