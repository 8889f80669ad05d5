"""Small but true safetensors files: the published names, types and layout, with every dimension divided.

``tables/*.json`` hold the tensor tables of the published files; at full size each gives the published number of
bytes and schema digest (tests/unit/test_tiny_models.py).  The values are pseudo-random, finite, and depend on
nothing but the seed and the tensor's name.  Nothing here knows where the files go.
"""

from __future__ import annotations

import json
import math
import random
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from provisioner.core.models import Role

TABLES = Path(__file__).with_name("tables")
DIVISORS = (128, 64, 32, 16, 8, 4, 2, 1)
"""What the dimensions of transformer and encoder can be divided by: 128 is their greatest common divisor."""

ITEM_SIZE = {"I64": 8, "F32": 4, "BF16": 2, "F8_E4M3": 1}
"""Bytes of one element, in the order in which the safetensors library lays dtypes out (largest alignment first)."""

_SMALL = bytes(0x3C | (byte & 0x80) for byte in range(256))  # top byte of a float: sign kept, 0.0078 <= |x| < 0.032
_LARGER = bytes(0x3D | (byte & 0x80) for byte in range(256))  # four times as much
_SMALL_F8 = bytes((byte & 0x80) | (byte & 0x7F) % 0x28 for byte in range(256))  # |x| < 0.25 in E4M3, never its NaN
_ONE = {"I64": struct.pack("<q", 1), "F32": struct.pack("<f", 1.0), "BF16": b"\x80\x3f", "F8_E4M3": b"\x38"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One row of a tensor table."""

    name: str
    dtype: str  # as in a safetensors header: "BF16"
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements; a scalar has one."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return self.count * ITEM_SIZE[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The tensor table of a published file."""

    role: Role
    name: str  # file name
    folder: str  # ComfyUI models folder
    size: int  # bytes of the published file
    header_bytes: int  # of its JSON header, padding included
    schema_sha256: str  # as manifests/README.md defines it
    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class TinyFile:
    """A small model file for a ComfyUI models tree."""

    role: Role
    name: str
    folder: str
    data: bytes


# --- safetensors -------------------------------------------------------------------------------


def in_file_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return `tensors` as the safetensors library writes them: by dtype, largest alignment first, then by name."""
    rank = list(ITEM_SIZE)
    return sorted(tensors, key=lambda tensor: (rank.index(tensor.dtype), tensor.name))


def safetensors_header(tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the head of a file: 8 bytes of length and the JSON, padded with spaces to a multiple of 8."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in in_file_order(tensors):
        offsets = [offset, offset + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def safetensors_file(
    tensors: Iterable[Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
    amplified: Collection[str] = (),
) -> bytes:
    """Return a safetensors file with pseudo-random values.

    Weights and biases are small (below 0.25), norms and variances are 1, quantisation scales are positive, so that
    whatever computes with them stays finite.  The floats of the tensors named in `amplified` are four times as large.
    """
    ordered = in_file_order(tensors)
    values = (tensor_values(each, seed, is_amplified=each.name in amplified) for each in ordered)
    return b"".join((safetensors_header(ordered, metadata), *values))


def tensor_values(tensor: Tensor, seed: int = 0, *, is_amplified: bool = False) -> bytes:
    """Return the values of a tensor, as `safetensors_file` writes them."""
    is_neutral = re.search(r"norm\w*\.(\d\.)?(weight|scale)$|running_var$|_scale$|num_batches_tracked$", tensor.name)
    if is_neutral or tensor.dtype == "I64":
        return _ONE[tensor.dtype] * tensor.count
    source = random.Random(f"{seed}:{tensor.name}")  # noqa: S311 - reproducible bytes, not secrets
    if tensor.dtype == "F8_E4M3":
        return source.randbytes(tensor.count).translate(_SMALL_F8)
    width = ITEM_SIZE[tensor.dtype]
    values = bytearray(source.randbytes(tensor.size))
    table = _LARGER if is_amplified else _SMALL
    values[width - 1 :: width] = values[width - 1 :: width].translate(table)  # little-endian: the top byte is last
    return bytes(values)


# --- tables ------------------------------------------------------------------------------------


def load_table(name: str) -> Table:
    """Return a table of ``tables/`` at its full size: ``load_table("qwen_3_4b")``."""
    raw = cast("dict[str, Any]", json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8")))
    tensors = tuple(tensor for row in raw["tensors"] for tensor in expanded(*row))
    return Table(
        role=raw["role"],
        name=raw["name"],
        folder=raw["folder"],
        size=raw["size"],
        header_bytes=raw["header_bytes"],
        schema_sha256=raw["schema_sha256"],
        metadata=_metadata(raw["metadata"] or {}, raw["quantization"], tensors),
        tensors=tensors,
    )


def expanded(name: str, dtype: str, shape: Sequence[int]) -> Iterator[Tensor]:
    """Yield the tensors of a row of a table: of a run ``{a..b}`` in its name one for each number."""
    run = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if run is None:
        yield Tensor(name, dtype, tuple(shape))
        return
    for number in range(int(run[1]), int(run[2]) + 1):
        yield Tensor(f"{name[: run.start()]}{number}{name[run.end() :]}", dtype, tuple(shape))


def _metadata(given: Mapping[str, str], quantization: str | None, tensors: Iterable[Tensor]) -> dict[str, str]:
    if quantization is None:
        return dict(given)
    stems = [tensor.name.removesuffix(".weight") for tensor in tensors if tensor.dtype == "F8_E4M3"]
    layers = {stem: {"format": quantization} for stem in stems}
    return {**given, "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def shrunk(tensors: Iterable[Tensor], divisor: int) -> tuple[Tensor, ...]:
    """Return `tensors` with every dimension that `divisor` divides divided by it.

    All widths keep their ratios (qkv is three times hidden, and so on); kernel sizes and the three colours stay.
    """
    return tuple(
        replace(tensor, shape=tuple(side // divisor if side % divisor == 0 else side for side in tensor.shape))
        for tensor in tensors
    )


# --- a ComfyUI tree ----------------------------------------------------------------------------


def small_comfyui_files(*, seed: int = 0, scale_bytes: int = 0) -> tuple[TinyFile, ...]:
    """Return diffusion model (FP8), text encoder and VAE, with the published names of files and tensors.

    Parameters
    ----------
    seed : int
        Other seeds give other bytes of the same size.
    scale_bytes : int
        About how large the text encoder shall be, from half a megabyte up: its layers are made as wide as fits, and
        its vocabulary takes the rest.  0: as small as can be.

    Returns
    -------
    tuple of TinyFile
        The diffusion model has 0.28 MB, the text encoder 0.54 MB or `scale_bytes`, the VAE 1.36 MB.
    """
    model, encoder, vae = (load_table(name) for name in ("flux-2-klein-4b-fp8", "qwen_3_4b", "flux2-vae"))
    contents = (
        (model, shrunk(model.tensors, DIVISORS[0])),
        (encoder, _encoder_of(encoder.tensors, scale_bytes)),
        (vae, shrunk(vae.tensors, 16)),
    )
    return tuple(
        TinyFile(table.role, table.name, table.folder, safetensors_file(tensors, metadata=table.metadata, seed=seed))
        for table, tensors in contents
    )


def _encoder_of(tensors: Sequence[Tensor], wanted_bytes: int) -> tuple[Tensor, ...]:
    """Return the text encoder at about `wanted_bytes`: the widest layers that fit, then rows of vocabulary."""
    candidates = [shrunk(tensors, divisor) for divisor in DIVISORS]
    fitting = [each for each in candidates if sum(tensor.size for tensor in each) <= wanted_bytes]
    chosen = fitting[-1] if fitting else candidates[0]
    missing = max(0, wanted_bytes - sum(tensor.size for tensor in chosen))
    return tuple(
        replace(tensor, shape=(tensor.shape[0] + missing // (tensor.shape[1] * 2), tensor.shape[1]))
        if tensor.name == "model.embed_tokens.weight"
        else tensor
        for tensor in chosen
    )
