"""Recognise files that are not safetensors: a server's answer, an unfinished download, another model format.

Only the first bytes are used.  Pickles and archives are never opened.  What is quoted from a file goes through
`quoting.quoted` first.  Signatures and endings are those of the programs that write them; the table names the program
where it is not obvious.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from provisioner.identify.families import family_of
from provisioner.identify.family_table import Family
from provisioner.identify.gguf import ARCHITECTURES, QWEN3_WIDTHS, GgufHead, read_gguf
from provisioner.identify.quoting import quoted
from provisioner.identify.safetensors_header import SNIFF_BYTES
from provisioner.identify.values import Identity, Kind


@dataclass(frozen=True, slots=True)
class Sample:
    """What the recognisers are given."""

    first: bytes
    size: int
    name: str

    @property
    def lead(self) -> bytes:
        """The first bytes without a byte order mark and leading blanks, in lower case."""
        return self.first[:SNIFF_BYTES].removeprefix(codecs.BOM_UTF8).lstrip().lower()


Recogniser = Callable[[Sample], Identity | None]


def _empty(sample: Sample) -> Identity | None:
    return Identity(kind="empty", sentence="an empty file") if sample.size <= 0 else None


def _zero_filled(sample: Sample) -> Identity | None:
    if not sample.first or sample.first.strip(b"\0"):
        return None
    extent = "nothing but" if len(sample.first) >= sample.size else f"at least {len(sample.first):,}"
    return Identity(
        kind="zero-filled",
        sentence=f"a file that begins with {extent} zero bytes: space reserved for a download that never arrived",
    )


# --- unfinished downloads --------------------------------------------------------------------------

# Endings of unfinished downloads, and the program that writes them.
_PARTIALS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), what)
    for pattern, what in (
        (r"\.aria2$", "aria2's record of an unfinished download"),
        (r"\.dl-meta$", "a downloader's record of an unfinished download"),
        (r"\.part$", "an unfinished download (.part)"),
        (r"\.partial$", "an unfinished download (.partial)"),
        (r"-partial(-\d+)?$", "an unfinished download of ollama (-partial)"),
        (r"\.incomplete$", "an unfinished download of the Hugging Face client (.incomplete)"),
        (r"\.downloading$", "an unfinished download (.downloading)"),
        (r"\.(opdownload|download)$", "an unfinished download of a browser (.download)"),
        (r"\.crdownload$", "an unfinished download of Chrome or Edge (.crdownload)"),
        (r"^unconfirmed .*\.tmp$", "an unfinished download of a browser (Unconfirmed)"),
    )
)


def unfinished(name: str, beside: Collection[str] = ()) -> str | None:
    """Return which program's unfinished download a file is, judged by its name or by a record beside it."""
    if f"{name}.aria2" in beside:  # aria2 writes to the final name and keeps its record beside it until it is done
        return "an unfinished download of aria2 (its .aria2 record is beside it)"
    return next((what for pattern, what in _PARTIALS if pattern.search(name)), None)


# --- what a server sent instead of a model ---------------------------------------------------------

_LFS_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\r?\n(?:ext-[^\n]*\n)*"
    rb"oid sha256:(?P<oid>[0-9a-f]{64})\r?\nsize (?P<size>[0-9]{1,18})\r?\n?"
)
_MAX_POINTER_BYTES = 1024  # of the LFS specification
_PART_COUNT = re.compile(r'-of-([0-9]{5})\.safetensors"')
_TOTAL_SIZE = re.compile(r'"total_size":\s*([0-9]{1,18})\b')
_XML_MESSAGE = re.compile(r"<(?:Code|Message)>([^<]{1,200})<")


def _lfs_pointer(sample: Sample) -> Identity | None:
    if sample.size > _MAX_POINTER_BYTES:
        return None
    match = _LFS_POINTER.fullmatch(sample.first)
    if match is None:
        return None
    size = int(match["size"])
    return Identity(
        kind="lfs-pointer",
        sentence=f"a Git LFS pointer: a short text in place of a file of {size:,} bytes",
        expected_size=size,
        sha256=match["oid"].decode(),
    )


def _html(sample: Sample) -> Identity | None:
    lead = sample.lead
    is_page = lead.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))
    if not is_page and (b"<html" not in lead or _text_of(sample) is None):
        return None
    return Identity(kind="html", sentence="a web page (HTML), not a model")


def _xml(sample: Sample) -> Identity | None:
    if not sample.lead.startswith((b"<?xml", b"<error>")):
        return None
    said = " ".join(_XML_MESSAGE.findall(_text_of(sample) or ""))
    return Identity(kind="xml", sentence="a server's answer (XML), not a model" + _saying(said))


def _json(sample: Sample) -> Identity | None:
    text = _text_of(sample)
    if text is None or not sample.lead.startswith((b"{", b"[")):
        return None
    if (index := _index(text)) is not None:
        return index
    return Identity(kind="json", sentence="a JSON document, not a model" + _saying(_error_in(text)))


def _index(text: str) -> Identity | None:
    """Recognise ``model.safetensors.index.json`` by its beginning, as transformers and diffusers write it."""
    if '"weight_map"' not in text or not (parts := [int(count) for count in _PART_COUNT.findall(text)]):
        return None
    total = _TOTAL_SIZE.search(text)
    size = f", {int(total[1]):,} bytes together" if total else ""
    return Identity(
        kind="index", sentence=f"the list of the parts of a model in {max(parts)} files{size}; it holds no weights"
    )


def _error_in(text: str) -> str:
    """Return the message of a JSON error body; empty where there is none, or it was not read whole."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    return next((value for key in ("error", "message", "detail") if isinstance(value := document.get(key), str)), "")


def _text(sample: Sample) -> Identity | None:
    text = _text_of(sample)
    if text is None or not text.strip():
        return None
    return Identity(kind="text", sentence="a text file, not a model" + _saying(text.strip().splitlines()[0]))


def _text_of(sample: Sample) -> str | None:
    """Return the beginning of the file as text, or None where it is not text."""
    try:
        # the sample may end inside a character
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(sample.first[:SNIFF_BYTES])
    except UnicodeDecodeError:
        return None
    return text if all(each.isprintable() or each in "\r\n\t\f" for each in text) else None


def _saying(text: str) -> str:
    said = quoted(text)
    return f'; it says: "{said}"' if said else ""


# --- other model formats, and files that are no model -------------------------------------------------------

# First bytes, kind, and what to say.  Pickles and zips of pickles can run code when they are loaded.
_MAGIC: tuple[tuple[tuple[bytes, ...], Kind, str], ...] = (
    (
        (b"\x80\x02}", b"\x80\x02\x8a", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95"),
        "pickle",
        "a Python pickle, which can run code when it is loaded; it was not opened",
    ),
    ((b"\x89PNG\r\n\x1a\n",), "picture", "an image (PNG), not a model"),
    ((b"\xff\xd8\xff",), "picture", "an image (JPEG), not a model"),
    ((b"7z\xbc\xaf\x27\x1c",), "archive", "a 7-Zip archive, not a model"),
    ((b"Rar!\x1a\x07",), "archive", "a RAR archive, not a model"),
    ((b"\x1f\x8b\x08",), "archive", "a gzip archive, not a model"),
    ((b"\x28\xb5\x2f\xfd",), "archive", "a Zstandard archive, not a model"),
)
# onnx.proto: field 1 is the version of the format (a number), field 2 the name of the writer (a string).
_ONNX = re.compile(rb"\x08[\x01-\x20]\x12[\x01-\x40][A-Za-z][ -~]*")


def _by_magic(sample: Sample) -> Identity | None:
    for starts, kind, sentence in _MAGIC:
        if sample.first.startswith(starts):
            return Identity(kind=kind, sentence=sentence)
    return None


def _onnx(sample: Sample) -> Identity | None:
    found = _ONNX.match(sample.first[:128])
    if found is None or found.end() < 4 + sample.first[3]:  # the writer's name ends before it should
        return None
    return Identity(kind="onnx", sentence="an ONNX model, which ComfyUI's loaders do not read")


def _zip(sample: Sample) -> Identity | None:
    if not sample.first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None
    if b"/data.pkl" in sample.first[:SNIFF_BYTES]:
        sentence = "a PyTorch file (a zip with a pickle in it), which can run code when it is loaded; it was not opened"
        return Identity(kind="pickle", sentence=sentence)
    return Identity(kind="archive", sentence="a zip archive, not a model; PyTorch files have this form too")


# --- GGUF ------------------------------------------------------------------------------------------


def _gguf(sample: Sample) -> Identity | None:
    head = read_gguf(sample.first)
    if head is None:
        return None
    family = _gguf_family(head)
    named = f" of the architecture {quoted(head.architecture)}" if head.architecture else ""
    what = f"{family.title} as GGUF" if family else f"a GGUF file{named}"
    precision = f", {head.precision}" if head.precision else ""
    is_cut = head.expected_size is not None and sample.size < head.expected_size
    ending = (
        f"; the file is cut off at {sample.size:,} of {head.expected_size:,} bytes"
        if is_cut
        else ": ComfyUI reads it only with the ComfyUI-GGUF custom node"
    )
    return Identity(
        kind="truncated" if is_cut else "gguf",
        sentence=what + precision + ending,
        family=family.id if family else None,
        role=family.role if family else None,
        precision=head.precision,
        expected_size=head.expected_size,
    )


_QWEN3 = {"qwen3": "Qwen3", "qwen3vl": "Qwen3-VL"}


def _gguf_family(head: GgufHead) -> Family | None:
    """Return the family by the tensors, else by the width, else by the architecture's name."""
    found = family_of(head.tensors)
    if found is not None:
        return found.family
    if (size := QWEN3_WIDTHS.get(head.width or 0)) and (name := _QWEN3.get(head.architecture or "")):
        return Family(
            f"{name.lower().replace('-', '')}-{size}", "text_encoder", f"a {name}-{size.upper()} text encoder"
        )
    told = ARCHITECTURES.get(head.architecture or "")
    return Family(told[0], told[1], told[2]) if told else None


# Signatures first; plain text last, because it matches most.
BEFORE_SAFETENSORS: tuple[Recogniser, ...] = (_empty, _zero_filled)
AFTER_SAFETENSORS: tuple[Recogniser, ...] = (
    _gguf,
    _zip,
    _by_magic,
    _onnx,
    _lfs_pointer,
    _html,
    _xml,
    _json,
    _text,
)
