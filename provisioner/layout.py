"""Where an artifact goes in a target, and where ComfyUI would look for a file of its name.

Pure: paths in, paths out.  What a manifest says is checked here once more, because a path that leaves its
root is the one mistake nobody forgives; whether links on disk leave it is `adapters/comfy_tree.py`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import NoReturn

from provisioner.errors import PathOutsideRootError, UsageError
from provisioner.model_paths import LEGACY_FOLDERS, NOT_MODELS, ExtraPath, P, current_folder_name, folder_paths
from provisioner.models import (
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
from provisioner.safe_path import complaint_about_path

_REPO_ID = r"(?a)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
_COMMIT = "[0-9a-f]{40}"


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
        The artifact has no place in a target of this kind.
    """
    if isinstance(target, HubCacheTarget):
        return _hub_blob(artifact, target)
    folder, inside = _place_in_tree(artifact)
    roots = _roots_of(folder, target)
    if roots is None:  # a folder some custom node reads
        return ComfyFile(root=target.models, relative=PurePosixPath(folder) / inside)
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
        return (ComfyFile(root=target.models, relative=PurePosixPath(folder) / inside),)
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
    return HubBlob(
        root=target.cache / repo_folder_name(source.repo_id),
        revision=source.revision,
        filename=str(safe_relative(source.filename)),
        is_lfs=artifact.is_lfs,
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
    return next((root for root in known if path == root or root in path.parents), _parent_or_self(path))


# --- the folders of a tree ---------------------------------------------------------------------------


def folder_roots(
    models: Path, extras: Sequence[ExtraPath[Path]] = (), *, base: Path | None = None
) -> tuple[FolderRoots, ...]:
    """Return for each kind of model what ComfyUI reads and where we write.

    Parameters
    ----------
    models : Path
        The main models root.
    extras : sequence of ExtraPath
        From `parse_extra_model_paths`, in the order of registration.
    base : Path, optional
        The folder that holds ``custom_nodes`` and ``output``, where it is known.
    """
    return tuple(
        _folder_roots(folder, read, models, extras)
        for folder, read in folder_paths(models, extras, base=base).items()
        if folder not in NOT_MODELS
    )


def _folder_roots(folder: str, read: tuple[Path, ...], models: Path, extras: Sequence[ExtraPath[Path]]) -> FolderRoots:
    write = write_folder(folder, models, extras)
    base = next((each.base for each in extras if each.folder == folder and each.path == write), None)
    return FolderRoots(folder=folder, read=read, write=write, write_root=write_root(write, models=models, base=base))


def write_folder(folder: str, models: P, extras: Sequence[ExtraPath[P]]) -> P:
    """Return the folder new files of a kind are written to.

    That is the user's own default (``is_default``), else the folder of that name in the main models root.  An
    old name (``unet``, ``clip``) is taken only where the user's YAML leaves no other default.
    """
    defaults = [each.path for each in reversed(extras) if each.folder == folder and each.is_default]
    current = [path for path in defaults if path.name.lower() not in LEGACY_FOLDERS]
    return next(iter(current or defaults), models / folder)


def write_root(folder: P, *, models: P, base: P | None) -> P:
    """Return the models root a folder belongs to, where its receipts live.

    The main root for what is inside it; else the section's base folder, or the ``models`` folder in it when the
    line goes through one; else the folder's parent.
    """
    if models in folder.parents:
        return models
    if base is not None and folder == base:
        return folder
    if base is not None and base in folder.parents:
        first, *deeper = folder.relative_to(base).parts
        return base / first if deeper and first.lower() == "models" else base
    return _parent_or_self(folder)


def _parent_or_self(folder: P) -> P:
    """Return the parent, but never the root of a file system: nothing of ours belongs there."""
    return folder if folder.parent == folder.parent.parent else folder.parent


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


def is_inside(root_real: PurePath, path_real: PurePath) -> bool:
    r"""Return whether one resolved path is the other or below it.

    Both have to be resolved already; a path that still climbs (``..``) is not inside anything.  Windows paths
    are compared as Windows does, without case, and with or without their ``\\?\`` prefix.
    """
    root, path = _plain(root_real), _plain(path_real)
    if ".." in root.parts or ".." in path.parts:
        return False
    return root == path or root in path.parents


def _plain(path: PurePath) -> PurePath:
    if not isinstance(path, PureWindowsPath):
        return path
    text = str(path)
    for prefix, replacement in (("\\\\?\\UNC\\", "\\\\"), ("\\\\?\\", "")):
        if text.upper().startswith(prefix):
            return PureWindowsPath(replacement + text[len(prefix) :])
    return path


def _refuse(text: str, why: str) -> NoReturn:
    raise PathOutsideRootError(
        f"{text!r} cannot be used as a path: {why}.", hint="Correct the manifest it comes from.", path=text
    )
