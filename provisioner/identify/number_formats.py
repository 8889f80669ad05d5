"""Tell which number format a model is stored in, and whether ComfyUI can read it.

Sources: `convert_old_quants` of ComfyUI's `comfy/utils.py` (0.33.0) for the three ways in which a file says that it is
quantised; the tensor tables for the names of the scales; and runs of ComfyUI 0.33.0 on 2026-11-23 for what happens
with a file that does not say it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from provisioner.core.models import Finding
from provisioner.identify.safetensors_header import SafetensorsHeader, Tensor

_NAMES: Mapping[str, str] = {
    "F8_E4M3": "FP8",
    "F8_E5M2": "FP8 (E5M2)",
    "F16": "FP16",
    "F32": "FP32",
    "F64": "FP64",
    "I8": "INT8",
}
# Stored as FP8 or INT8, and read as something else (`QUANT_ALGOS` of ComfyUI 0.33.0's `comfy/quant_ops.py`).
_DECLARED: Mapping[str, str] = {
    "mxfp8": "MXFP8",
    "convrot_w4a4": "INT4 (W4A4)",
    "asym_w4a8_int8": "INT4 (W4A8)",
}
_FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
_SCALES = (".weight_scale", ".scale_weight")  # the second is the older writers'
_MARK = "_quantization_metadata"


def precision_of(header: SafetensorsHeader) -> str | None:
    """Return the number format of most of a model; None for a header without tensors.

    NVFP4 weights are bytes (U8) with two scales, so the second scale identifies them.  Formats that are stored as
    another one are known by the metadata alone; where each layer has a tensor for it instead, the header does not say.
    """
    tensors = header.tensors
    told = {_DECLARED.get(each, "") for each in _declared_formats(header.metadata.get(_MARK, ""))}
    if len(told) == 1 and (declared := told.pop()):
        return declared
    sizes: dict[str, int] = {}
    for dtype, _, begin, end in tensors.values():
        sizes[dtype] = sizes.get(dtype, 0) + end - begin
    if not sizes:
        return None
    if "U8" in sizes and any(name.endswith(".weight_scale_2") for name in tensors):
        return "mixed FP8 and NVFP4" if has_fp8_weights(tensors) else "NVFP4"
    dtype = max(sizes, key=sizes.__getitem__)
    return _NAMES.get(dtype, dtype)


def has_fp8_weights(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a matrix is stored in FP8; the scales of NVFP4, which are FP8 too, do not count."""
    return any(
        each.dtype in _FP8 and len(each.shape) == 2 and name.endswith(".weight") for name, each in tensors.items()
    )


def has_scales(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the weights have scales, without which quantised values have no meaning."""
    return any(name.endswith(_SCALES) for name in tensors)


def quantisation_findings(header: SafetensorsHeader) -> tuple[Finding, ...]:
    """Return what is wrong with how a file declares its quantisation; empty if nothing is.

    A quantised file says so in its metadata, in one ``comfy_quant`` tensor per layer, or (older ones) by a tensor
    called ``scaled_fp8``.  Without any of them ComfyUI 0.33.0 ignores the scales with a warning in its log, and the
    image is wrong; there is no error.
    """
    tensors = header.tensors
    names = "\n".join(tensors)  # searching one string takes a tenth of the time of searching its lines
    if "scale" not in names or not has_scales(tensors) or ".comfy_quant" in names or "scaled_fp8" in names:
        return ()
    told = header.metadata.get(_MARK)
    if told is not None and _declared_layers(told):
        return ()
    what = f"no {_MARK}" if told is None else f"{_MARK} that names no layer"
    return (
        Finding(
            code="scales-ignored",
            severity="problem",
            message=(
                f"The weights are quantised and have scales, but the file has {what}: ComfyUI ignores the scales, "
                "says so only in its log, and generates a wrong image."
            ),
            remedy="by-hand",
            hint="Fetch the published file again; whatever rewrote this one dropped its metadata.",
        ),
    )


def _declared_layers(told: str) -> Mapping[str, object]:
    try:
        document = json.loads(told)
    except (ValueError, RecursionError):
        return {}
    layers = document.get("layers") if isinstance(document, dict) else None
    return layers if isinstance(layers, dict) else {}


def _declared_formats(told: str) -> set[str]:
    found = (each.get("format") for each in _declared_layers(told).values() if isinstance(each, dict))
    return {each for each in found if isinstance(each, str)}
