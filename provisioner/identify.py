"""What a file is, in words, from its first bytes and its size; never from its name alone.

Pure: the caller reads (`how_much_to_read` says how much) and hands the bytes over.  No pickle is opened, no
length found in a file is believed before it was compared with the file's size, and no input raises.  A
header says which family a file belongs to; only its SHA-256 says that it is the right file.

Facts about headers: ComfyUI 0.33.0 (`comfy/model_detection.py`, `comfy/sd.py`), diffusers, the safetensors
format and library 0.8.0; tensor tables compiled from public sources, 2026-11-23.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeGuard

from provisioner.models import Role
from provisioner.records import dataclass

# --- safetensors headers ---------------------------------------------------------------------------

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer headers."""

HEADER_READ_LIMIT = 8 * 1024 * 1024
"""Longer headers are legal but not read: parsed, they can take a hundred times their size in memory.

The longest of the FLUX.2 files has 62,136 bytes.
"""

SNIFF_BYTES = 4096
"""Enough to know everything that is not safetensors."""

# Bits per element, the table of safetensors 0.8.0.
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

ProblemCode = Literal[
    "too-short",  # no room for the length of a header
    "header-length",  # the length is no header's: the file is something else
    "header-cut",  # the file ends inside its header
    "header-not-read",  # more of the file is needed, or the header is longer than we read
    "not-json",
    "malformed",  # JSON, and not a safetensors header
    "unknown-dtype",
    "truncated",  # the header is sound and the payload ends early
    "overlong",  # the header is sound and the file goes on behind its payload
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One entry of a safetensors header."""

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
    """A sound safetensors header: its tensors fill the payload without gap or overlap."""

    header_bytes: int  # the 8-byte length's value: JSON plus padding
    payload_bytes: int  # that the header promises
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
    """Why there is no whole safetensors file here."""

    code: ProblemCode
    sentence: str  # goes on after "the file"
    header: SafetensorsHeader | None = None  # where the header itself is sound
    expected_size: int | None = None  # bytes of the whole file, where the header says so


class _UnsoundHeaderError(ValueError):
    """Carries a complaint to `read_header`; never leaves this module."""

    def __init__(self, code: ProblemCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


def how_much_to_read(first_8: bytes) -> int:
    """Return how many bytes of a file's beginning `identify` wants, given its first eight.

    Never more than `HEADER_READ_LIMIT` plus eight, whatever the eight bytes claim.
    """
    length = int.from_bytes(first_8[:8], "little")
    return max(SNIFF_BYTES, 8 + length) if length <= HEADER_READ_LIMIT else SNIFF_BYTES


def read_header(first_bytes: bytes, file_size: int) -> SafetensorsHeader | HeaderProblem:
    """Return the safetensors header at the start of a file, or why there is none.

    Agrees with the safetensors library on what is a file it would load: JSON of known dtypes whose offsets
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
    try:
        document = _parse_json(first_bytes[8 : 8 + length])
        tensors, metadata = _tensors_of(document), _metadata_of(document)
        payload = _payload_bytes(tensors)
    except _UnsoundHeaderError as error:
        return HeaderProblem(code=error.code, sentence=error.sentence)
    header = SafetensorsHeader(header_bytes=length, payload_bytes=payload, tensors=tensors, metadata=metadata)
    return _size_problem(header, file_size) or header


def _frame_problem(length: int, available: int, file_size: int) -> HeaderProblem | None:
    """Compare the claimed length with what there is."""
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
    """Compare the size the header asks for with the size the file has."""
    expected = header.file_size
    if file_size < expected:
        sentence = f"is cut off at {file_size:,} of {expected:,} bytes"
        return HeaderProblem(code="truncated", sentence=sentence, header=header, expected_size=expected)
    if file_size > expected:
        sentence = f"has {file_size - expected:,} bytes behind its {expected:,}"
        return HeaderProblem(code="overlong", sentence=sentence, header=header, expected_size=expected)
    return None


def _refuse_constant(text: str) -> object:
    raise ValueError(text)  # NaN and Infinity: Python takes them for JSON, nobody else does


def _short_int(digits: str) -> int:
    if len(digits) > 20:  # longer than any 64-bit number; turning megabytes of digits into a number takes minutes
        raise ValueError("number too long")
    return int(digits)


def _parse_json(data: bytes) -> dict[str, object]:
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_int=_short_int)
    except (ValueError, RecursionError) as error:
        raise _UnsoundHeaderError("not-json", "has a header that is not JSON") from error
    if not isinstance(document, dict):
        raise _UnsoundHeaderError("malformed", "has a header that is not a JSON object")
    return document


def _metadata_of(document: Mapping[str, object]) -> dict[str, str]:
    metadata = document.get("__metadata__")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise _UnsoundHeaderError("malformed", "has __metadata__ that is not a JSON object")
    for key, value in metadata.items():
        if not (isinstance(value, str) and _is_unicode(key) and _is_unicode(value)):
            raise _UnsoundHeaderError("malformed", "has __metadata__ that is not all text")
    return metadata


def _tensors_of(document: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: _tensor(name, entry) for name, entry in document.items() if name != "__metadata__"}


def _tensor(name: str, entry: object) -> Tensor:
    """Check one entry by itself: its fields, its dtype, that its bytes are those of its shape."""
    if not _is_unicode(name) or not isinstance(entry, dict):
        raise _UnsoundHeaderError("malformed", "has an entry in its header that describes no tensor")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(dtype, str) and _is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2):
        raise _UnsoundHeaderError("malformed", "has a tensor in its header without dtype, shape or place")
    if dtype not in _BITS:
        raise _UnsoundHeaderError("unknown-dtype", f"has tensors of the number format {_quoted(dtype)}, unknown here")
    begin, end = offsets
    if _bits_of(dtype, shape) != 8 * (end - begin):
        raise _UnsoundHeaderError("malformed", "has a tensor whose shape and place in the file do not agree")
    return Tensor(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    # bool is an int in Python and not one in JSON
    return isinstance(value, list) and all(type(each) is int and 0 <= each < _U64 for each in value)


def _bits_of(dtype: str, shape: list[int]) -> int:
    """Multiply as the library does, refusing what overflows 64 bits; this also keeps the numbers small."""
    product = 1
    for factor in (*shape, _BITS[dtype]):
        product *= factor
        if product >= _U64:
            raise _UnsoundHeaderError("malformed", "has a tensor larger than any file")
    return product


def _payload_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return where the last tensor ends; every one has to begin where the one before it ended."""
    position = 0
    for tensor in sorted(tensors.values(), key=lambda each: (each.begin, each.end)):
        if tensor.begin != position:
            raise _UnsoundHeaderError("malformed", "has gaps or overlaps between its tensors")
        position = tensor.end
    return position


def _is_unicode(text: str) -> bool:
    """Return whether `text` can be written as UTF-8: JSON escapes can smuggle half a character in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- what is said of a file ------------------------------------------------------------------------

Kind = Literal[
    "empty",
    "zero-filled",
    "html",
    "xml",
    "json",
    "text",
    "lfs-pointer",
    "safetensors",
    "truncated",  # safetensors that ends early
    "overlong",  # safetensors with something behind it
    "broken-safetensors",
    "gguf",
    "pickle",
    "archive",
    "partial",  # by its name: a download that did not end
    "unknown",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a file is."""

    kind: Kind
    sentence: str  # goes on after "this is": "a web page (HTML), not a model"
    family: str | None = None  # "flux2-klein-4b"; None where the header does not tell
    role: Role | None = None
    precision: str | None = None  # "FP8", "NVFP4", "BF16", "mixed FP8 and NVFP4"
    variant: str | None = None  # "distilled" or "base", where the header tells
    header: SafetensorsHeader | None = None
    expected_size: int | None = None  # bytes of the whole file, where the file says so
    sha256: str | None = None  # of what a Git LFS pointer stands for
    is_complete: bool = False  # a whole safetensors file by its header; says nothing about its payload


@dataclass(frozen=True, slots=True)
class _Sample:
    """What recognisers look at."""

    first: bytes
    size: int
    name: str

    @property
    def lead(self) -> bytes:
        """The first bytes without a byte order mark and leading blanks, in lower case."""
        return self.first[:SNIFF_BYTES].removeprefix(codecs.BOM_UTF8).lstrip().lower()


_Recogniser = Callable[[_Sample], Identity | None]


def identify(first_bytes: bytes, file_size: int, *, name: str = "") -> Identity:
    """Return what a file is, from its beginning and its size.

    Parameters
    ----------
    first_bytes : bytes
        The file's beginning, as much as `how_much_to_read` asks for.
    file_size : int
        Bytes of the whole file.
    name : str, optional
        The file's name; only the endings of unfinished downloads matter.
    """
    sample = _Sample(first_bytes[: max(file_size, 0)], file_size, name)
    for recognise in _RECOGNISERS:
        if identity := recognise(sample):
            return identity
    return _unknown(sample)


def _unknown(sample: _Sample) -> Identity:
    if not sample.first:
        return Identity(kind="unknown", sentence=f"a file of {sample.size:,} bytes of which nothing was read")
    start = sample.first[:8].hex(" ")
    return Identity(kind="unknown", sentence=f"no kind of model file known here (it begins with the bytes {start})")


def _empty(sample: _Sample) -> Identity | None:
    return Identity(kind="empty", sentence="an empty file") if sample.size <= 0 else None


def _zero_filled(sample: _Sample) -> Identity | None:
    if not sample.first or sample.first.strip(b"\0"):
        return None
    extent = "nothing but" if len(sample.first) >= sample.size else f"at least {len(sample.first):,}"
    return Identity(
        kind="zero-filled",
        sentence=f"a file that begins with {extent} zero bytes: space reserved for a download that never came",
    )


# --- unfinished downloads --------------------------------------------------------------------------

# Endings seen in the wild; whose they are.
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


def _partial(sample: _Sample) -> Identity | None:
    """Name an unfinished download, and what its content is so far."""
    what = next((what for pattern, what in _PARTIALS if pattern.search(sample.name)), None)
    if what is None:
        return None
    content = identify(sample.first, sample.size)
    known = content.kind != "unknown"
    return replace(content, kind="partial", sentence=f"{what}: {content.sentence}" if known else what)


# --- what a server sent instead of a model ---------------------------------------------------------

_LFS_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\r?\n(?:ext-[^\n]*\n)*"
    rb"oid sha256:(?P<oid>[0-9a-f]{64})\r?\nsize (?P<size>[0-9]{1,18})\r?\n?"
)
_MAX_POINTER_BYTES = 1024  # of the LFS specification
_XML_MESSAGE = re.compile(r"<(?:Code|Message)>([^<]{1,200})<")


def _lfs_pointer(sample: _Sample) -> Identity | None:
    if sample.size > _MAX_POINTER_BYTES:
        return None
    match = _LFS_POINTER.fullmatch(sample.first)
    if match is None:
        return None
    size = int(match["size"])
    return Identity(
        kind="lfs-pointer",
        sentence=f"a Git LFS pointer: a note that stands for a file of {size:,} bytes, not the file",
        expected_size=size,
        sha256=match["oid"].decode(),
    )


def _html(sample: _Sample) -> Identity | None:
    lead = sample.lead
    is_page = lead.startswith((b"<!doctype html", b"<html", b"<head", b"<body"))
    if not is_page and (b"<html" not in lead or _text_of(sample) is None):
        return None
    return Identity(kind="html", sentence="a web page (HTML), not a model")


def _xml(sample: _Sample) -> Identity | None:
    if not sample.lead.startswith((b"<?xml", b"<error>")):
        return None
    said = " ".join(_XML_MESSAGE.findall(_text_of(sample) or ""))
    return Identity(kind="xml", sentence="a server's answer (XML), not a model" + _saying(said))


def _json(sample: _Sample) -> Identity | None:
    text = _text_of(sample)
    if text is None or not sample.lead.startswith((b"{", b"[")):
        return None
    return Identity(kind="json", sentence="a JSON document, not a model" + _saying(_error_in(text)))


def _error_in(text: str) -> str:
    """Return what a JSON error body says; empty where it says nothing we know, or was not read whole."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    return next((value for key in ("error", "message", "detail") if isinstance(value := document.get(key), str)), "")


def _text(sample: _Sample) -> Identity | None:
    text = _text_of(sample)
    if text is None or not text.strip():
        return None
    return Identity(kind="text", sentence="a text, not a model" + _saying(text.strip().splitlines()[0]))


def _text_of(sample: _Sample) -> str | None:
    """Return the beginning of the file as text, or None where it is not text."""
    try:
        # not final: the sample may end inside a character
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(sample.first[:SNIFF_BYTES])
    except UnicodeDecodeError:
        return None
    return text if all(each.isprintable() or each in "\r\n\t\f" for each in text) else None


def _saying(text: str) -> str:
    quoted = _quoted(text)
    return f'; it says: "{quoted}"' if quoted else ""


def _quoted(text: str) -> str:
    """Return a harmless piece of `text`: one line, printable, without addresses, tokens and signatures."""
    words = "".join(each if each.isprintable() else " " for each in text[:400]).split()
    return " ".join(word if len(word) <= 24 and "://" not in word else "..." for word in words)[:100].strip()


# --- other forms of models -------------------------------------------------------------------------

# First bytes, kind, and what to say.  Pickles and zips of pickles can run code when they are loaded.
_MAGIC: tuple[tuple[tuple[bytes, ...], Kind, str], ...] = (
    (
        (b"\x80\x02}", b"\x80\x02\x8a", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95"),
        "pickle",
        "a Python pickle, which can run code when it is loaded; it was not opened",
    ),
    ((b"7z\xbc\xaf\x27\x1c",), "archive", "a 7-Zip archive, not a model"),
    ((b"Rar!\x1a\x07",), "archive", "a RAR archive, not a model"),
    ((b"\x1f\x8b\x08",), "archive", "a gzip archive, not a model"),
    ((b"\x28\xb5\x2f\xfd",), "archive", "a Zstandard archive, not a model"),
)
_GGUF_STRING = 8  # the type code of a string value


def _by_magic(sample: _Sample) -> Identity | None:
    for starts, kind, sentence in _MAGIC:
        if sample.first.startswith(starts):
            return Identity(kind=kind, sentence=sentence)
    return None


def _zip(sample: _Sample) -> Identity | None:
    if not sample.first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None
    if b"/data.pkl" in sample.first[:SNIFF_BYTES]:
        sentence = "a PyTorch file (a zip with a pickle in it), which can run code when it is loaded; it was not opened"
        return Identity(kind="pickle", sentence=sentence)
    return Identity(kind="archive", sentence="a zip archive, not a model; PyTorch files have this form, too")


def _gguf(sample: _Sample) -> Identity | None:
    if not sample.first.startswith(b"GGUF"):
        return None
    architecture = _gguf_architecture(sample.first)
    named = f" of the architecture {architecture}" if architecture else ""
    return Identity(
        kind="gguf", sentence=f"a GGUF file{named}: ComfyUI reads it only with the ComfyUI-GGUF custom node"
    )


def _gguf_architecture(first: bytes) -> str:
    """Return `general.architecture` where it is the first key, as its writers put it; else nothing."""
    key = b"general.architecture"
    start = 4 + 4 + 8 + 8  # magic, version, count of tensors, count of keys
    head = len(key).to_bytes(8, "little") + key + _GGUF_STRING.to_bytes(4, "little")
    if first[start : start + len(head)] != head:
        return ""
    at = start + len(head)
    length = int.from_bytes(first[at : at + 8], "little")
    return _quoted(first[at + 8 : at + 8 + min(length, 32)].decode("ascii", "replace"))


# --- safetensors by family -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mark:
    """A tensor that has to be there: its name (one ``*`` allowed) and, where given, its first two dimensions."""

    name: str
    first: int | None = None
    second: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """A kind of model, known by tensors it has and tensors it lacks."""

    id: str
    role: Role
    title: str
    marks: tuple[_Mark, ...]
    lacks: tuple[str, ...] = ()


# In front of a model's own names, when several models or a training tool's wrapper share a file.
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "first_stage_model.", "vae.")

# Six times the hidden size, the rows of FLUX.2's shared modulation; quantising does not change the rows.
_FLUX2_WIDTHS = (
    (18432, "flux2-klein-4b", "the FLUX.2 [klein] 4B transformer"),
    (24576, "flux2-klein-9b", "the FLUX.2 [klein] 9B transformer"),
    (36864, "flux2-dev", "the FLUX.2 [dev] transformer"),
    (None, "flux2", "a FLUX.2 transformer of unknown width"),
)
_FLUX2_NAMES = (
    ("double_stream_modulation_img.lin.weight", ""),
    ("double_stream_modulation_img.linear.weight", " in diffusers' layout"),
)
# Channels of the decoder's last convolution, and whose names the tensors carry.
_FLUX2_VAE_WIDTHS = ((128, "flux2-vae", "the FLUX.2 VAE"), (96, "flux2-vae-small", "the FLUX.2 VAE with small decoder"))
_VAE_NAMES = (
    ("decoder.up.0.block.0.conv1.weight", " in BFL's names"),
    ("decoder.up_blocks.0.resnets.0.conv1.weight", " in diffusers' names"),
)
_LAYER_NORM = "model.layers.0.post_attention_layernorm.weight"
_QWEN3_WIDTHS = ((1024, "0.6b"), (2048, "1.7b"), (2560, "4b"), (4096, "8b"), (5120, "14b"))
_T5 = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
_CLIP = "text_model.encoder.layers.0.mlp.fc1.weight"

# The first family whose marks are all there is the answer, so the special stand before the general.
_FAMILIES: tuple[_Family, ...] = (
    *(
        _Family(id="lora", role="lora", title="a LoRA", marks=(_Mark(f"*{ending}"),))
        for ending in (
            ".lora_A.weight",
            ".lora_A.default.weight",
            ".lora_down.weight",
            ".lora.down.weight",
            ".lokr_w1",
            ".hada_w1_a",
        )
    ),
    *(
        _Family(
            id="checkpoint",
            role="checkpoint",
            title="a checkpoint with several models in one file",
            marks=(_Mark("model.diffusion_model.*"), _Mark(f"{other}.*")),
        )
        for other in ("first_stage_model", "vae", "text_encoders", "cond_stage_model", "conditioner")
    ),
    *(
        _Family(id=id_, role="diffusion_model", title=title + layout, marks=(_Mark(name, first=rows),))
        for name, layout in _FLUX2_NAMES
        for rows, id_, title in _FLUX2_WIDTHS
    ),
    _Family(
        id="chroma",
        role="diffusion_model",
        title="a Chroma transformer",
        marks=(_Mark("distilled_guidance_layer.*"), _Mark("double_blocks.0.img_attn.qkv.weight")),
    ),
    _Family(
        id="flux1-dev",
        role="diffusion_model",
        title="a FLUX.1 [dev] transformer",
        marks=(_Mark("double_blocks.0.img_mod.lin.weight", first=18432), _Mark("guidance_in.in_layer.weight")),
    ),
    _Family(
        id="flux1-schnell",
        role="diffusion_model",
        title="a FLUX.1 [schnell] transformer",
        marks=(_Mark("double_blocks.0.img_mod.lin.weight", first=18432),),
    ),
    _Family(
        id="flux1",
        role="diffusion_model",
        title="a FLUX.1 transformer in diffusers' layout",
        marks=(_Mark("single_transformer_blocks.0.norm.linear.weight", first=9216), _Mark("x_embedder.weight")),
    ),
    _Family(
        id="sd3",
        role="diffusion_model",
        title="a Stable Diffusion 3 transformer",
        marks=(_Mark("joint_blocks.0.context_block.attn.qkv.weight"),),
    ),
    _Family(
        id="sdxl",
        role="diffusion_model",
        title="a Stable Diffusion XL UNet",
        marks=(_Mark("input_blocks.0.0.weight"), _Mark("label_emb.0.0.weight")),
    ),
    _Family(
        id="sd",
        role="diffusion_model",
        title="a Stable Diffusion UNet",
        marks=(_Mark("input_blocks.0.0.weight"),),
    ),
    *(
        _Family(
            id=f"qwen3-{size}",
            role="text_encoder",
            title=f"a Qwen3-{size.upper()} text encoder",
            marks=(_Mark(_LAYER_NORM, first=width), _Mark("model.layers.0.self_attn.q_norm.weight")),
            lacks=("model.layers.0.post_feedforward_layernorm.weight",),
        )
        for width, size in _QWEN3_WIDTHS
    ),
    _Family(
        id="gemma",
        role="text_encoder",
        title="a Gemma text encoder",
        marks=(_Mark("model.layers.0.post_feedforward_layernorm.weight"),),
    ),
    _Family(
        id="qwen25-3b",
        role="text_encoder",
        title="a Qwen2.5-3B text encoder",
        marks=(_Mark(_LAYER_NORM, first=2048), _Mark("model.layers.0.self_attn.k_proj.bias")),
    ),
    _Family(
        id="qwen25-7b",
        role="text_encoder",
        title="a Qwen2.5-7B text encoder",
        marks=(_Mark(_LAYER_NORM, first=3584), _Mark("model.layers.0.self_attn.k_proj.bias")),
    ),
    _Family(
        id="mistral-small",
        role="text_encoder",
        title="a Mistral Small text encoder, as FLUX.2 [dev] uses it",
        marks=(_Mark(_LAYER_NORM, first=5120), _Mark("model.layers.0.self_attn.k_proj.weight", first=1024)),
    ),
    _Family(id="t5-xxl", role="text_encoder", title="a T5-XXL text encoder", marks=(_Mark(_T5, first=10240),)),
    _Family(id="clip-l", role="text_encoder", title="a CLIP-L text encoder", marks=(_Mark(_CLIP, first=3072),)),
    _Family(id="clip-g", role="text_encoder", title="a CLIP-G text encoder", marks=(_Mark(_CLIP, first=5120),)),
    *(
        _Family(
            id=id_,
            role="vae",
            title=title + names,
            marks=(_Mark("bn.running_mean"), _Mark("decoder.conv_out.weight", second=width), _Mark(layout)),
        )
        for layout, names in _VAE_NAMES
        for width, id_, title in _FLUX2_VAE_WIDTHS
    ),
    _Family(
        id="flux2-vae-other",
        role="vae",
        title="a FLUX.2 VAE of unknown width",
        marks=(_Mark("bn.running_mean"), _Mark("decoder.conv_in.weight")),
    ),
    _Family(
        id="vae-16",
        role="vae",
        title="a VAE of 16 channels, as FLUX.1 and Stable Diffusion 3 use it",
        marks=(_Mark("decoder.conv_in.weight", second=16),),
    ),
    _Family(
        id="vae-4",
        role="vae",
        title="a VAE of 4 channels, as Stable Diffusion 1 and XL use it",
        marks=(_Mark("decoder.conv_in.weight", second=4),),
    ),
)

# What the published FP8 and NVFP4 files of the 4B differ in: the base ones keep two projections in BF16.  In
# BF16 base and distilled have equal headers.
_VARIANTS: Mapping[tuple[str, str, int], str] = {
    ("flux2-klein-4b", "FP8", 309): "distilled",
    ("flux2-klein-4b", "FP8", 305): "base",
    ("flux2-klein-4b", "NVFP4", 389): "distilled",
    ("flux2-klein-4b", "NVFP4", 383): "base",
}
_PRECISIONS: Mapping[str, str] = {
    "F8_E4M3": "FP8",
    "F8_E5M2": "FP8 (E5M2)",
    "F16": "FP16",
    "F32": "FP32",
    "F64": "FP64",
    "I8": "INT8",
}
_PROBLEM_KINDS: Mapping[ProblemCode, Kind] = {
    "header-cut": "truncated",
    "truncated": "truncated",
    "overlong": "overlong",
    "header-not-read": "safetensors",
}


def _safetensors(sample: _Sample) -> Identity | None:
    if sample.first[8:9] != b"{":  # what every writer puts there; the length alone proves nothing
        return None
    found = read_header(sample.first, sample.size)
    if isinstance(found, SafetensorsHeader):
        described = _described(found)
        return replace(described, is_complete=True)
    if found.code in ("too-short", "header-length"):
        return None
    kind = _PROBLEM_KINDS.get(found.code, "broken-safetensors")
    if found.header is None:
        sentence = f"a safetensors file that {found.sentence}"
        return Identity(kind=kind, sentence=sentence, expected_size=found.expected_size)
    described = _described(found.header)
    return replace(described, kind=kind, sentence=f"{described.sentence}; the file {found.sentence}")


def _described(header: SafetensorsHeader) -> Identity:
    """Return the family, precision and variant that a sound header tells."""
    family = next((each for each in _FAMILIES if _belongs(header.tensors, each)), None)
    precision = _precision(header.tensors)
    count = len(header.tensors)
    variant = None if family is None else _VARIANTS.get((family.id, precision, count))
    title = family.title if family else f"a safetensors file of a family unknown here ({count:,} tensors)"
    return Identity(
        kind="safetensors",
        sentence=", ".join(filter(None, (title, variant, precision))),
        family=family.id if family else None,
        role=family.role if family else None,
        precision=precision or None,
        variant=variant,
        header=header,
        expected_size=header.file_size,
    )


def _belongs(tensors: Mapping[str, Tensor], family: _Family) -> bool:
    return all(_has(tensors, mark) for mark in family.marks) and not any(
        _has(tensors, _Mark(name)) for name in family.lacks
    )


def _has(tensors: Mapping[str, Tensor], mark: _Mark) -> bool:
    if "*" in mark.name:
        return any(fnmatchcase(name, mark.name) for name in tensors)
    return any(
        (tensor := tensors.get(prefix + mark.name)) is not None and _fits(tensor.shape, mark) for prefix in _PREFIXES
    )


def _fits(shape: tuple[int, ...], mark: _Mark) -> bool:
    """Return whether the dimensions that the mark names are the tensor's."""
    wanted = (mark.first, mark.second)
    return all(want is None or (place < len(shape) and shape[place] == want) for place, want in enumerate(wanted))


def _precision(tensors: Mapping[str, Tensor]) -> str:
    """Return the number format most of a model is in; empty for a header without tensors.

    NVFP4 weights are bytes (U8) with two scales beside them, so it is the second scale that tells.
    """
    is_nvfp4 = any(name.endswith(".weight_scale_2") for name in tensors)
    is_fp8 = any(
        name.endswith(".weight") and each.dtype == "F8_E4M3" and len(each.shape) == 2 for name, each in tensors.items()
    )
    if is_nvfp4:
        return "mixed FP8 and NVFP4" if is_fp8 else "NVFP4"
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.size
    if not sizes:
        return ""
    dtype = sizes.most_common(1)[0][0]
    return _PRECISIONS.get(dtype, dtype)


# In this order: the name first, because it goes in front of what the content is; safetensors before the other
# signatures, because a header of 896 bytes begins like a pickle (80 03); plain text last, because much is text.
_RECOGNISERS: tuple[_Recogniser, ...] = (
    _partial,
    _empty,
    _zero_filled,
    _safetensors,
    _gguf,
    _zip,
    _by_magic,
    _lfs_pointer,
    _html,
    _xml,
    _json,
    _text,
)
