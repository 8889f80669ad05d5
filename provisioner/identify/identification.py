"""Say what a file is from its first bytes and its size, never from its name alone.

Pure: the caller reads (`how_much_to_read` says how much) and passes the bytes in.  No tensor is loaded, no pickle is
opened, no length found in a file is trusted before it was compared with the file's size, and no input raises.  A
header says which family a file belongs to; only its SHA-256 says that it is the right file.

Most callers need only `identify`; `pairing_problems` says which files do not go together.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from provisioner.core.units import count
from provisioner.identify.families import Match, family_of, family_of_part
from provisioner.identify.family_table import Family
from provisioner.identify.lora import lora_of
from provisioner.identify.number_formats import has_fp8_weights, has_scales, precision_of, quantisation_findings
from provisioner.identify.pairing import encoder_words, pairing_problems
from provisioner.identify.safetensors_header import (
    GGUF_READ_BYTES,
    HEADER_READ_LIMIT,
    HEADER_VALUE_LIMIT,
    MAX_HEADER_BYTES,
    SNIFF_BYTES,
    HeaderProblem,
    ProblemCode,
    SafetensorsHeader,
    Tensor,
    how_much_to_read,
    read_header,
)
from provisioner.identify.sniff import AFTER_SAFETENSORS, BEFORE_SAFETENSORS, Sample, unfinished
from provisioner.identify.values import Identity, Kind

__all__ = [
    "GGUF_READ_BYTES",
    "HEADER_READ_LIMIT",
    "HEADER_VALUE_LIMIT",
    "MAX_HEADER_BYTES",
    "SNIFF_BYTES",
    "TAIL_BYTES",
    "HeaderProblem",
    "Identity",
    "Kind",
    "ProblemCode",
    "SafetensorsHeader",
    "Tensor",
    "how_much_to_read",
    "identify",
    "pairing_problems",
    "read_header",
]

TAIL_BYTES = 64 * 1024
"""Bytes of a file's end that `identify` needs as `tail`.

Real weights never have this many zeros in a row; space that was reserved and never written does.
"""

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.(?:safetensors|gguf)")
_PROBLEM_KINDS: dict[ProblemCode, Kind] = {
    "header-cut": "truncated",
    "truncated": "truncated",
    "overlong": "overlong",
    "header-not-read": "safetensors",
}
# How the published FP8 and NVFP4 files of the 4B differ: the base ones keep two projections in BF16.  In BF16
# base and distilled have equal headers.  (Tensor tables of the four files, tests/unit/data/headers.)
_KEPT = tuple(f"double_blocks.0.{side}_attn.proj.weight" for side in ("img", "txt"))
_VARIANTS = {  # family, precision, number of tensors, whether the two are in BF16
    ("flux2-klein-4b", "FP8", 309, False): "distilled",
    ("flux2-klein-4b", "FP8", 305, True): "base",
    ("flux2-klein-4b", "NVFP4", 389, False): "distilled",
    ("flux2-klein-4b", "NVFP4", 383, True): "base",
}
_KLEIN_HAS = frozenset({"flux2-vae", "flux2-vae-small", "flux2-vae-other", "qwen3-4b"})


def identify(
    first_bytes: bytes, file_size: int, *, name: str = "", tail: bytes = b"", beside: Collection[str] = ()
) -> Identity:
    """Return what a file is, judged by its beginning and its size.

    Parameters
    ----------
    first_bytes : bytes
        The file's beginning, as much as `how_much_to_read` asks for.
    file_size : int
        Bytes of the whole file.
    name : str, optional
        The file's name; only the endings of unfinished downloads and of parts ("-00001-of-00002") matter.
    tail : bytes, optional
        The file's last bytes, `TAIL_BYTES` of them: with these a hole at the end is detected.
    beside : collection of str, optional
        Names of the files in the same folder, where aria2 keeps its record.

    Returns
    -------
    Identity
        Always returned; nothing is raised, whatever the bytes are.
    """
    sample = Sample(first_bytes[: max(file_size, 0)], file_size, name)
    found = _by_content(sample)
    if part := _PART.search(name):
        found = replace(found, part=(int(part[1]), int(part[2])))
    if found.is_complete:
        found = _with_tail(found, tail)
    whose = unfinished(name, beside)
    if whose is None:
        return found
    sentence = f"{whose}: {found.sentence}" if found.kind != "unknown" else whose
    return replace(found, kind="partial", sentence=sentence)


def _by_content(sample: Sample) -> Identity:
    """Return what the first matching recogniser says.

    Safetensors come before the other signatures, because a header of 896 bytes begins like a pickle (80 03).
    """
    for recognise in (*BEFORE_SAFETENSORS, _safetensors, *AFTER_SAFETENSORS):
        if identity := recognise(sample):
            return identity
    if not sample.first:
        return Identity(kind="unknown", sentence=f"a file of {sample.size:,} bytes; none of it was read")
    start = sample.first[:8].hex(" ")
    return Identity(kind="unknown", sentence=f"not a known kind of model file (it begins with the bytes {start})")


def _with_tail(found: Identity, tail: bytes) -> Identity:
    """Return the file as unfinished where its last bytes are all zeros, though its header is valid."""
    payload = found.header.payload_bytes if found.header else 0
    if len(tail) < min(TAIL_BYTES, payload) or len(tail) < SNIFF_BYTES or tail.strip(b"\0"):
        return found
    sentence = (
        f"{found.sentence}; its last {len(tail):,} bytes are all zeros: space reserved for a download that "
        "did not finish"
    )
    return replace(found, kind="zero-tail", sentence=sentence, is_complete=False)


# --- safetensors -------------------------------------------------------------------------------------


def _safetensors(sample: Sample) -> Identity | None:
    if sample.first[8:72].lstrip(b" \t\r\n")[:1] != b"{":  # every header begins so; the length shows nothing
        return None
    found = read_header(sample.first, sample.size)
    if isinstance(found, SafetensorsHeader):
        return replace(_described(found, sample.name), is_complete=True)
    if found.code in ("too-short", "header-length"):
        return None
    kind = _PROBLEM_KINDS.get(found.code, "broken-safetensors")
    if found.header is None:
        sentence = f"a safetensors file that {found.sentence}"
        return Identity(kind=kind, sentence=sentence, expected_size=found.expected_size)
    described = _described(found.header, sample.name)
    return replace(described, kind=kind, sentence=f"{described.sentence}; the file {found.sentence}")


def _described(header: SafetensorsHeader, name: str) -> Identity:
    """Return the family, precision and variant that a valid header shows."""
    part = _PART.search(name)
    match = _match(header, is_part=part is not None)
    family = match.family if match else None
    precision = precision_of(header)
    variant = _variant(match, precision)
    return Identity(
        kind="safetensors",
        sentence=_sentence(header, family, variant, precision, part),
        family=family.id if family else None,
        role=family.role if family else None,
        precision=precision,
        variant=variant,
        layout=family.layout if family else None,
        header=header,
        expected_size=header.file_size,
        findings=quantisation_findings(header),
    )


def _match(header: SafetensorsHeader, *, is_part: bool) -> Match | None:
    lora = lora_of(header.tensors)
    if lora is not None:
        return Match(lora, header.tensors)
    found = family_of(header.tensors)
    return family_of_part(header.tensors) if found is None and is_part else found


def _variant(match: Match | None, precision: str | None) -> str | None:
    """Return "base" or "distilled" where the number and format of the tensors match a published file."""
    if match is None or match.family.role == "lora" or precision is None:
        return None
    kept = [each.dtype == "BF16" for name in _KEPT if (each := match.tensors.get(name))]
    return _VARIANTS.get((match.family.id, precision, len(match.tensors), len(kept) == 2 and all(kept)))


def _sentence(
    header: SafetensorsHeader,
    family: Family | None,
    variant: str | None,
    precision: str | None,
    part: re.Match[str] | None,
) -> str:
    tensors = header.tensors
    title = family.title if family else f"a safetensors file of an unknown family ({count(len(tensors), 'tensor')})"
    if part:
        title = f"part {int(part[1])} of {int(part[2])} of {title}"
    format_ = precision
    if precision == "FP8" and has_fp8_weights(tensors) and not has_scales(tensors):
        format_ = "FP8 without scales"
    words = ", ".join(filter(None, (title, variant, format_)))
    if family is None or family.id in _KLEIN_HAS:
        return words
    if family.role == "text_encoder":
        return words + encoder_words(family.id)
    return f"{words}; FLUX.2 [klein] needs the FLUX.2 VAE (32 channels)" if family.role == "vae" else words
