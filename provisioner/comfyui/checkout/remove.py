"""Takes back what we put into a tree: files that are still ours, byte for byte; everything else stays and is named."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import (
    RECEIPT,
    ROLLBACK_POINT,
    disk_error,
    names_in,
    read_receipt,
    remove_tree,
)
from provisioner.comfyui.checkout.describe import read_head
from provisioner.comfyui.checkout.git_tree import SUBMODULE, disk_id
from provisioner.comfyui.checkout_models import CheckoutReceipt, Kept, Removal, TreeFile
from provisioner.core.errors import UsageError
from provisioner.core.models import STATE_FOLDER


def remove(folder: Path, *, is_rehearsal: bool = False) -> Removal:
    """Remove what our receipt says we made, or only say what would go.

    Raises
    ------
    UsageError
        There is no receipt of ours, or it does not fit together.
    StorageError
        The disk refused; what is left is removed by the same call again.
    """
    receipt = read_receipt(folder)
    if receipt is None:
        raise UsageError(
            f"{folder} was not made by klein-setup, or the record of it is damaged; nothing was removed.",
            hint="Remove it yourself, if you want it gone.",
            path=str(folder),
        )
    ours, kept = _sort_out(folder, receipt.files)
    size = sum((folder / each.path).lstat().st_size for each in ours)
    git_reason = _why_git_stays(folder, receipt)
    if git_reason is not None:
        kept.append(Kept(path=".git", reason=git_reason))
    if not is_rehearsal:
        for each in ours:
            _unlink(folder / each.path)
        if git_reason is None:
            remove_tree(folder / ".git")
        _remove_folders(folder, receipt)
        _unlink(folder / ROLLBACK_POINT)
        _unlink(folder / RECEIPT)
        for empty in (folder / STATE_FOLDER, folder):
            _remove_if_empty(empty)
    kept += _others(folder, receipt, {each.path.split("/")[0] for each in ours} if is_rehearsal else set())
    return Removal(
        removed_files=len(ours), removed_bytes=size, kept=tuple(kept), is_folder_gone=not os.path.lexists(folder)
    )


def _sort_out(folder: Path, files: Iterable[TreeFile]) -> tuple[list[TreeFile], list[Kept]]:
    """Return the files that are still ours, and the ones that are not any more."""
    ours: list[TreeFile] = []
    kept: list[Kept] = []
    linked: dict[str, bool] = {}
    for each in files:
        above = each.path.split("/")[:-1]
        parents = ["/".join(above[: depth + 1]) for depth in range(len(above))]
        if any(linked.setdefault(parent, (folder / parent).is_symlink()) for parent in parents):
            continue  # a folder of somebody's stands in the place of ours
        try:
            found = disk_id(folder / each.path) if each.mode != SUBMODULE else None
        except OSError as error:
            kept.append(Kept(path=each.path, reason=f"cannot be read ({error.strerror or error})"))
            continue
        if found == each.id:
            ours.append(each)
        elif found is not None:
            kept.append(Kept(path=each.path, reason="was changed"))
    return ours, kept


def _why_git_stays(folder: Path, receipt: CheckoutReceipt) -> str | None:
    """Return why the repository is left: anything in it that we did not put there."""
    git = folder / ".git"
    if not git.is_dir() or git.is_symlink():
        return None if not os.path.lexists(git) else "is not what we made"
    commit, branch = read_head(folder)
    if branch is not None or commit not in (receipt.commit, *receipt.previous_commits):
        return "holds a branch or a commit of yours"
    packed = (
        (git / "packed-refs").read_text(encoding="utf-8", errors="replace") if (git / "packed-refs").exists() else ""
    )
    has_branches = any(path.is_file() for path in (git / "refs" / "heads").rglob("*")) or "refs/heads/" in packed
    if has_branches or (git / "refs" / "stash").exists() or "refs/stash" in packed:
        return "holds a branch or a stash of yours"
    return None


def _remove_folders(folder: Path, receipt: CheckoutReceipt) -> None:
    """Remove the folders that are empty now, with the byte code Python left beside sources that are gone."""
    sources = {Path(file.path) for file in receipt.files}
    folders = {Path(), *map(Path, receipt.folders)}
    folders |= {parent for path in (*sources, *folders) for parent in path.parents}
    for each in sorted(folders, key=lambda path: -len(path.parts)):
        if any((folder / part).is_symlink() for part in (each, *each.parents) if part != Path()):
            continue
        _remove_byte_code(folder, each, sources)
        if each != Path():
            _remove_if_empty(folder / each)


def _remove_byte_code(folder: Path, below: Path, sources: set[Path]) -> None:
    cache = folder / below / "__pycache__"
    if cache.is_symlink() or not cache.is_dir():
        return
    for compiled in sorted(cache.glob("*.pyc")):
        source = below / (compiled.name.split(".", 1)[0] + ".py")
        if source in sources and not (folder / source).exists():
            _unlink(compiled)
    _remove_if_empty(cache)


def _others(folder: Path, receipt: CheckoutReceipt, going: set[str]) -> list[Kept]:
    """Return what lies at the top and was never ours, and folders of ours in which something is left."""
    own = {each.path for each in receipt.entries} | {each.split("/")[0] for each in receipt.folders}
    found = []
    for name in sorted(names_in(folder) or ()):
        if name in (".git", STATE_FOLDER) or (name in going and not (folder / name).is_dir()):
            continue
        if name not in own:
            found.append(Kept(path=name, reason="is not ComfyUI's"))
        elif (folder / name).is_dir() and not going:
            found.append(Kept(path=name, reason="holds files of yours"))
    return found


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, path, doing="remove") from error


def _remove_if_empty(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
        return
    try:
        folder.rmdir()
    except OSError as error:
        raise disk_error(error, folder, doing="remove") from error
