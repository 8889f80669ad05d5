"""What is wrong with the files of a models folder, by their first bytes and where they lie: findings, no digests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath

from provisioner.comfyui.model_paths import current_folder_name
from provisioner.core.models import Finding, Role
from provisioner.core.units import human_bytes
from provisioner.identify.identification import Identity, Kind

MODEL_ENDINGS = frozenset({".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".onnx", ".pkl"})
"""What ComfyUI lists (``folder_paths.supported_pt_extensions``, read in 0.33.0), and GGUF and ONNX for custom nodes."""

UNFINISHED_ENDINGS = frozenset({".part", ".partial", ".incomplete", ".crdownload", ".download", ".aria2", ".tmp"})

_BROKEN: frozenset[Kind] = frozenset(
    {
        "empty",
        "zero-filled",
        "zero-tail",
        "html",
        "xml",
        "json",
        "text",
        "lfs-pointer",
        "truncated",
        "overlong",
        "broken-safetensors",
        "picture",
        "archive",
    }
)
_FOLDER_OF: dict[Role, str] = {
    "diffusion_model": "diffusion_models",
    "text_encoder": "text_encoders",
    "vae": "vae",
    "checkpoint": "checkpoints",
    "lora": "loras",
    "controlnet": "controlnet",
    "upscale_model": "upscale_models",
    "clip_vision": "clip_vision",
}


def is_of_interest(path: PurePath) -> bool:
    """Whether a file is a model by its ending, or somebody's unfinished download of one.

    >>> is_of_interest(PurePath("vae/a.safetensors")), is_of_interest(PurePath("vae/put_vae_here"))
    (True, False)
    """
    return path.suffix.lower() in MODEL_ENDINGS | UNFINISHED_ENDINGS


def judge_file(path: PurePath, folder: str, size: int, identity: Identity) -> tuple[Finding, ...]:
    """Return what a person should know of one file.

    Parameters
    ----------
    path : PurePath
        Where it lies.
    folder : str
        The ComfyUI models folder it lies under, "vae"; "" where it lies beside them.
    size : int
        Bytes.
    identity : Identity
        What `identify` said.
    """
    if identity.kind == "partial":
        what = "an unfinished download"
        return (
            _finding(
                "unfinished-file", "warning", path, size, what, "Finish it with the tool that began it, or delete it."
            ),
        )
    if identity.kind in _BROKEN:
        hint = "ComfyUI cannot load it: fetch it again from where it came, or delete it."
        return (_finding("broken-model", "problem", path, size, identity.sentence, hint),)
    if identity.kind == "pickle":
        hint = "Loading it runs whatever code is in it: use a .safetensors of the same model if there is one."
        return (_finding("pickle", "warning", path, size, identity.sentence, hint),)
    wanted = _FOLDER_OF.get(identity.role) if identity.role is not None else None
    if wanted is not None and folder and current_folder_name(folder) != wanted:
        hint = f"Move it to {wanted}, where ComfyUI looks for its kind."
        return (_finding("wrong-folder", "warning", path, size, identity.sentence, hint),)
    return tuple(_about(each, path) for each in identity.findings)


def _finding(code: str, severity: str, path: PurePath, size: int, what: str, hint: str) -> Finding:
    return Finding(
        code=code,
        severity="problem" if severity == "problem" else "warning",
        message=f"{path} ({human_bytes(size)}) is {what}.",
        remedy="by-hand",
        path=Path(path),
        hint=hint,
    )


def _about(finding: Finding, path: PurePath) -> Finding:
    return replace(finding, message=f"{path}: {finding.message}", path=Path(path))
