"""Read the beginning of a GGUF file: which model, which quantisation, which tensors.

Bounded: only the bytes passed in are read, however many entries the file claims to hold, so a count of 2**63 costs no
more than its first entry.

Sources, read 2026-11-23: ggml-org/ggml at d99724f2, `docs/gguf.md` (layout, names of value types and tensor types) and
`src/ggml-common.h` (bytes per block); city96/ComfyUI-GGUF at 795e4515, `loader.py` (architectures).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from provisioner.core.models import Role
from provisioner.identify.safetensors_header import Tensor

_U64 = 2**64
_STRING, _ARRAY = 8, 9
_FIXED: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value
_UNSIGNED = frozenset({0, 2, 4, 10})
_MOST_STEPS = 100_000  # keys, strings of an array and tensors read; a limit for files made of a million empty strings
_DEEPEST_ARRAY = 4


class _Form(NamedTuple):
    """How a tensor type stores its values."""

    name: str
    block: int  # values
    size: int  # bytes of one block


_FORMS: Mapping[int, _Form] = {
    0: _Form("F32", 1, 4),
    1: _Form("F16", 1, 2),
    2: _Form("Q4_0", 32, 18),
    3: _Form("Q4_1", 32, 20),
    6: _Form("Q5_0", 32, 22),
    7: _Form("Q5_1", 32, 24),
    8: _Form("Q8_0", 32, 34),
    9: _Form("Q8_1", 32, 36),
    10: _Form("Q2_K", 256, 84),
    11: _Form("Q3_K", 256, 110),
    12: _Form("Q4_K", 256, 144),
    13: _Form("Q5_K", 256, 176),
    14: _Form("Q6_K", 256, 210),
    15: _Form("Q8_K", 256, 292),
    16: _Form("IQ2_XXS", 256, 66),
    17: _Form("IQ2_XS", 256, 74),
    18: _Form("IQ3_XXS", 256, 98),
    19: _Form("IQ1_S", 256, 50),
    20: _Form("IQ4_NL", 32, 18),
    21: _Form("IQ3_S", 256, 110),
    22: _Form("IQ2_S", 256, 82),
    23: _Form("IQ4_XS", 256, 136),
    24: _Form("I8", 1, 1),
    25: _Form("I16", 1, 2),
    26: _Form("I32", 1, 4),
    27: _Form("I64", 1, 8),
    28: _Form("F64", 1, 8),
    29: _Form("IQ1_M", 256, 56),
    30: _Form("BF16", 1, 2),
    34: _Form("TQ1_0", 256, 54),
    35: _Form("TQ2_0", 256, 66),
    39: _Form("MXFP4", 32, 17),
    40: _Form("NVFP4", 64, 36),
}
# `general.file_type`, used where the tensors were not reached.
_FILE_TYPES: Mapping[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
}

ARCHITECTURES: Mapping[str, tuple[str, Role, str]] = {
    "flux": ("flux", "diffusion_model", "a FLUX transformer"),
    "sd1": ("sd1", "diffusion_model", "a Stable Diffusion 1 UNet"),
    "sdxl": ("sdxl", "diffusion_model", "a Stable Diffusion XL UNet"),
    "sd3": ("sd3", "diffusion_model", "a Stable Diffusion 3 transformer"),
    "aura": ("auraflow", "diffusion_model", "an AuraFlow transformer"),
    "hidream": ("hidream", "diffusion_model", "a HiDream transformer"),
    "cosmos": ("cosmos", "diffusion_model", "a Cosmos transformer"),
    "ltxv": ("ltx", "diffusion_model", "an LTX-Video transformer"),
    "hyvid": ("hunyuan-video", "diffusion_model", "a HunyuanVideo transformer"),
    "wan": ("wan", "diffusion_model", "a Wan transformer"),
    "lumina2": ("lumina2", "diffusion_model", "a Lumina 2 or Z-Image transformer"),
    "qwen_image": ("qwen-image", "diffusion_model", "a Qwen-Image transformer"),
    "t5": ("t5", "text_encoder", "a T5 text encoder"),
    "t5encoder": ("t5", "text_encoder", "a T5 text encoder"),
    "llama": ("llama", "text_encoder", "a Llama text encoder"),
    "qwen2vl": ("qwen25", "text_encoder", "a Qwen2.5-VL text encoder"),
    "qwen3": ("qwen3", "text_encoder", "a Qwen3 text encoder"),
    "qwen3vl": ("qwen3vl", "text_encoder", "a Qwen3-VL text encoder"),
}
# `qwen3.embedding_length`; the widths of the Qwen3 family.
QWEN3_WIDTHS: Mapping[int, str] = {1024: "0.6b", 2048: "1.7b", 2560: "4b", 4096: "8b", 5120: "14b"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHead:
    """What the beginning of a GGUF file contains, as far as it was read."""

    architecture: str | None = None  # "flux"; at most 32 characters
    file_type: str | None = None  # "Q4_K_M", as the writer wrote it
    width: int | None = None  # `<architecture>.embedding_length`
    tensors: Mapping[str, Tensor]  # shapes as in PyTorch: GGUF writes the dimensions in reverse order
    expected_size: int | None = None  # bytes of the whole file; None where the table of tensors was not reached

    @property
    def precision(self) -> str | None:
        """The type of most values; what the writer declared where no tensor was reached."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.dtype] += tensor.size
        return self.file_type or (sizes.most_common(1)[0][0] if sizes else None)


class _EndOfBytesError(Exception):
    """The bytes passed in end here, or are not GGUF; never leaves this module."""


class _Reader:
    """Reads little-endian numbers and strings in order."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise _EndOfBytesError

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise _EndOfBytesError
        self.at += count

    def number(self, size: int) -> int:
        start = self.at
        self.skip(size)
        return int.from_bytes(self.data[start : self.at], "little")

    def text(self) -> str:
        length = self.number(8)
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, type_: int, depth: int = 0) -> object:
        """Return an integer or a string; None for a value that was only skipped."""
        self.step()
        if type_ == _STRING:
            return self.text()
        if type_ == _ARRAY:
            self._skip_array(depth)
            return None
        size = _FIXED.get(type_)
        if size is None:
            raise _EndOfBytesError
        found = self.number(size)
        return found if type_ in _UNSIGNED else None

    def _skip_array(self, depth: int) -> None:
        type_, count = self.number(4), self.number(8)
        if type_ in _FIXED:
            self.skip(count * _FIXED[type_])
        elif depth < _DEEPEST_ARRAY:
            for _ in range(count):
                self.value(type_, depth + 1)
        else:
            raise _EndOfBytesError


def read_gguf(first_bytes: bytes) -> GgufHead | None:
    """Return what the beginning of a GGUF file contains; None if it is not GGUF.  Accepts any bytes.

    Parameters
    ----------
    first_bytes : bytes
        The file's beginning, as much as `how_much_to_read` asked for; fewer bytes give fewer facts.
    """
    if not first_bytes.startswith(b"GGUF"):
        return None
    reader = _Reader(first_bytes)
    keys: dict[str, object] = {}
    tensors: dict[str, Tensor] = {}
    expected: int | None = None
    try:
        reader.skip(8)  # magic and version
        tensor_count, key_count = reader.number(8), reader.number(8)
        for _ in range(key_count):
            name = reader.text()
            keys[name[:128]] = reader.value(reader.number(4))
        for _ in range(tensor_count):
            name, tensor = _tensor(reader)
            tensors[name] = tensor
        expected = _expected_size(reader.at, tensors, keys.get("general.alignment"))
    except _EndOfBytesError:
        pass
    architecture = keys.get("general.architecture")
    file_type, width = keys.get("general.file_type"), keys.get(f"{architecture}.embedding_length")
    return GgufHead(
        architecture=architecture[:32] if isinstance(architecture, str) else None,
        file_type=_FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        width=width if isinstance(width, int) else None,
        tensors=tensors,
        expected_size=expected,
    )


def _tensor(reader: _Reader) -> tuple[str, Tensor]:
    reader.step()
    name, dimensions = reader.text(), reader.number(4)
    if dimensions > 8:  # the format allows 4 for now
        raise _EndOfBytesError
    shape = tuple(reader.number(8) for _ in range(dimensions))[::-1]
    form, begin = _FORMS.get(reader.number(4)), reader.number(8)
    values = 1
    for side in shape:
        values *= side
        if values >= _U64:
            raise _EndOfBytesError
    if form is None:
        raise _EndOfBytesError
    return name, Tensor(form.name, shape, begin, begin + -(-values // form.block) * form.size)


def _expected_size(table_end: int, tensors: Mapping[str, Tensor], alignment: object) -> int | None:
    """Return where the last tensor ends; the payload begins at the next multiple of the alignment."""
    step = alignment if isinstance(alignment, int) and 8 <= alignment <= 2**20 else 32
    if not tensors:
        return None
    return -(-table_end // step) * step + max(each.end for each in tensors.values())
