"""Where an artifact goes in a target, and where ComfyUI would look for a file of its name.

Pure: paths in, paths out.  What a manifest says is checked here once more, because a path that leaves its
root is the one mistake nobody forgives; whether links on disk leave it is `comfyui.tree`'s business.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NoReturn

from provisioner.comfyui.model_paths import current_folder_name, parent_or_self
from provisioner.core.errors import PathOutsideRootError, UsageError
from provisioner.core.models import (
    Artifact,
    ComfyFile,
    ComfyTarget,
    Destination,
    FolderRoots,
    HubBlob,
    HubCacheTarget,
    HubFile,
    Target,
)
from provisioner.disk.safe_path import complaint_about_path

_REPO_ID = r"(?a)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
_COMMIT = "[0-9a-f]{40}"
_CODE = frozenset(
    {
        *{".py", ".pyc", ".pyd", ".pyw", ".pth", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1"},
        *{".bin", ".pt", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".keras", ".h5"},  # pickles
    }
)
"""Endings of files that other programs run, or that run something when they are loaded."""


# --- one artifact ----------------------------------------------------------------------------------


def destination_for(artifact: Artifact, target: Target) -> Destination:
    """Return the one place `artifact` belongs to in `target`.

    In a ComfyUI tree that is the folder new models are written to (`FolderRoots.write`); in an HF cache the
    snapshot path of the artifact's first source on the Hub.

    Raises
    ------
    PathOutsideRootError
        A name, folder, repository or revision would leave the root, or means something else on some system.
    UsageError
        The artifact has no place in a target of this kind, or is code that a manifest of somebody else's wants in an
        HF cache.
    """
    if isinstance(target, HubCacheTarget):
        return _hub_blob(artifact, target)
    folder, inside = _place_in_tree(artifact)
    roots = _roots_of(folder, target)
    if roots is None:  # a folder some custom node reads, or that of a bundle's blobs
        relative = PurePosixPath(folder) / inside
        return ComfyFile(root=target.models, relative=relative, known_as=artifact.known_as)
    return _comfy_file(roots.write, roots.write_root, inside)


def candidates_for(artifact: Artifact, target: Target) -> tuple[ComfyFile, ...]:
    """Return every path where ComfyUI would look for a file of the artifact's name, in its order.

    The first that exists is the one it loads, so one that stands before the artifact's destination hides it.
    Two of them can be the same file when folders are linked to each other.  Empty for an HF cache.

    Raises
    ------
    PathOutsideRootError, UsageError
        As `destination_for`.
    """
    if isinstance(target, HubCacheTarget):
        return ()
    folder, inside = _place_in_tree(artifact)
    roots = _roots_of(folder, target)
    if roots is None:
        relative = PurePosixPath(folder) / inside
        return (ComfyFile(root=target.models, relative=relative, known_as=artifact.known_as),)
    return tuple(_comfy_file(path, _read_root(path, roots, target.models), inside) for path in roots.read)


def _hub_blob(artifact: Artifact, target: HubCacheTarget) -> HubBlob:
    source = next((each for each in artifact.sources if isinstance(each, HubFile)), None)
    if source is None:
        raise UsageError(
            f"{artifact.id} has no source on the Hub, so it has no place in an HF cache.",
            hint="Choose a set made for an HF cache, or a ComfyUI tree as the target.",
            artifact=artifact.id,
        )
    if not re.fullmatch(_COMMIT, source.revision):
        _refuse(source.revision, "a revision in an HF cache is a commit of 40 lower-case hex digits")
    filename = safe_relative(source.filename)
    if not target.is_shipped and filename.suffix.lower() in _CODE:
        raise UsageError(
            f"{filename} of {source.repo_id} runs as code when another program loads it; only a manifest that comes "
            "with klein-setup may put such a file into an HF cache.",
            hint="Take it out of the manifest; where you trust the repository, fetch it with `hf download`.",
            artifact=artifact.id,
        )
    return HubBlob(
        root=target.cache / repo_folder_name(source.repo_id),
        revision=source.revision,
        filename=str(filename),
        is_lfs=artifact.is_lfs,
        is_shipped=target.is_shipped,
        blob_id=artifact.git_oid if target.is_shipped and not artifact.is_lfs else None,  # of others the Hub is asked
    )


def _place_in_tree(artifact: Artifact) -> tuple[str, PurePosixPath]:
    """Return the model folder, under its current name, and the path inside it."""
    if artifact.folder is None:
        raise UsageError(
            f"{artifact.id} belongs to an HF cache and has no folder in a ComfyUI tree.",
            hint="Choose a set made for ComfyUI, or give --hf-cache.",
            artifact=artifact.id,
        )
    first, *rest = safe_relative(artifact.folder).parts
    return current_folder_name(first), PurePosixPath(*rest) / safe_relative(artifact.name)


def _roots_of(folder: str, target: ComfyTarget) -> FolderRoots | None:
    return next((each for each in target.folders if each.folder == folder), None)


def _comfy_file(folder: Path, root: Path, inside: PurePosixPath) -> ComfyFile:
    return ComfyFile(root=root, relative=PurePosixPath(*folder.relative_to(root).parts) / inside)


def _read_root(path: Path, roots: FolderRoots, models: Path) -> Path:
    """Return the models root of a folder that is only read."""
    known = (roots.write_root,) if path == roots.write else (models, roots.write_root)
    return next((root for root in known if path == root or root in path.parents), parent_or_self(path))


# --- names that become paths -----------------------------------------------------------------------


def known_as(path: Path, target: Target) -> str:
    """Return a path as a person knows it: below the models folder or the cache, whole where it lies elsewhere."""
    root = target.models if isinstance(target, ComfyTarget) else target.cache
    return path.relative_to(root).as_posix() if root in path.parents else str(path)


def safe_relative(text: str) -> PurePosixPath:
    """Return a relative path that stays below where it is joined, on every system.

    Raises
    ------
    PathOutsideRootError
        One of the systems would read it as something else (`safe_path.complaint_about_path`).

    Examples
    --------
    >>> safe_relative("vae/flux2-vae.safetensors")
    PurePosixPath('vae/flux2-vae.safetensors')
    """
    if complaint := complaint_about_path(text):
        _refuse(text, f"it {complaint}")
    return PurePosixPath(text)


def repo_folder_name(repo_id: str) -> str:
    """Return the name of a repository's folder in an HF cache.

    Raises
    ------
    PathOutsideRootError
        It is no repository id.

    Examples
    --------
    >>> repo_folder_name("black-forest-labs/FLUX.2-klein-4B")
    'models--black-forest-labs--FLUX.2-klein-4B'
    """
    if not re.fullmatch(_REPO_ID, repo_id) or ".." in repo_id or "--" in repo_id:
        _refuse(repo_id, "it is no repository id of the form owner/name")
    return "--".join(("models", *repo_id.split("/")))


def _refuse(text: str, why: str) -> NoReturn:
    raise PathOutsideRootError(
        f"{text!r} cannot be used as a path: {why}.", hint="Correct the manifest it comes from.", path=text
    )
