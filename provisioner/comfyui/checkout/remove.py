"""Takes back what we put into a tree: files that are still ours, byte for byte; everything else stays and is named."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import (
    PLACING,
    RECEIPT,
    ROLLBACK_POINT,
    names_in,
    read_receipt,
    tree_root,
)
from provisioner.comfyui.checkout.git_tree import SUBMODULE, disk_id
from provisioner.comfyui.checkout.placing import PLACED_LAST, WAITING, is_behind_link
from provisioner.comfyui.checkout.repository import remove_repository, why_not_ours
from provisioner.comfyui.checkout_models import CheckoutReceipt, Kept, Removal, TreeFile
from provisioner.core.errors import UsageError
from provisioner.core.models import STATE_FOLDER
from provisioner.disk.root import Root, half_written, is_link


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
    ours, kept = sort_out(folder, receipt.files)
    sizes = {each.path: (folder / each.path).lstat().st_size for each in ours}
    git_reason = why_not_ours(folder / ".git", receipt) if os.path.lexists(folder / ".git") else None
    if git_reason is not None:
        kept.append(Kept(path=".git", reason=git_reason))
    if not is_rehearsal:
        root = tree_root(folder)
        ours.sort(key=lambda file: file.path != PLACED_LAST)  # first here, so that half a tree is no ComfyUI
        gone = [each for each in ours if remove_ours(root, each)]
        kept += [Kept(path=each.path, reason="was changed") for each in ours if each not in gone]
        ours = gone
        if git_reason is None:
            remove_repository(root, folder / ".git")
        remove_folders(root, receipt)
        for each in _waiting(receipt):
            remove_ours(root, each)
        records = (folder / ROLLBACK_POINT, folder / PLACING, *half_written(folder / STATE_FOLDER))
        for record in (*records, folder / RECEIPT):  # last: until then the next call goes on
            root.remove(record)
        root.remove_folder(folder / STATE_FOLDER)
        tree_root(folder.parent).remove_folder(folder)
    kept += _others(folder, receipt, {each.path.split("/")[0] for each in ours} if is_rehearsal else set())
    return Removal(
        removed_files=len(ours),
        removed_bytes=sum(sizes[each.path] for each in ours),
        kept=tuple(kept),
        is_folder_gone=not os.path.lexists(folder),
    )


def remove_ours(root: Root, file: TreeFile) -> bool:
    """Remove a file whose content is at this moment still what we put there; return whether it is gone."""
    return root.remove_if(root.folder / file.path, lambda real: disk_id(real) == file.id)


def _waiting(receipt: CheckoutReceipt) -> list[TreeFile]:
    """Return where an interrupted placing left the file that comes last."""
    return [replace(each, path=WAITING.as_posix()) for each in receipt.files if each.path == PLACED_LAST]


def sort_out(folder: Path, files: Iterable[TreeFile]) -> tuple[list[TreeFile], list[Kept]]:
    """Return the files that are still ours, and the ones that are not any more."""
    ours: list[TreeFile] = []
    kept: list[Kept] = []
    for each in files:
        if is_behind_link(folder, each.path):
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


def remove_folders(root: Root, receipt: CheckoutReceipt) -> None:
    """Remove the folders that are empty now, with the byte code Python left beside sources that are gone."""
    sources = {Path(file.path) for file in receipt.files}
    folders = {Path(), *map(Path, receipt.folders)}
    folders |= {parent for path in (*sources, *folders) for parent in path.parents}
    for each in sorted(folders, key=lambda path: -len(path.parts)):
        if is_behind_link(root.folder, str(each / "x")):
            continue
        _remove_byte_code(root, each, sources)
        if each != Path():
            root.remove_folder(root.folder / each)


def _remove_byte_code(root: Root, below: Path, sources: set[Path]) -> None:
    cache = root.folder / below / "__pycache__"
    if is_link(cache) or not cache.is_dir():
        return
    for compiled in sorted(cache.glob("*.pyc")):
        source = below / (compiled.name.split(".", 1)[0] + ".py")
        if source in sources and not (root.folder / source).exists():
            root.remove(compiled)
    root.remove_folder(cache)


def _others(folder: Path, receipt: CheckoutReceipt, going: set[str]) -> list[Kept]:
    """Return what is not ours: at the top, in folders of ours in which something is left, and beside our records."""
    own = {each.path for each in receipt.entries} | {each.split("/")[0] for each in receipt.folders}
    found = []
    for name in sorted(names_in(folder) or ()):
        if name in (".git", STATE_FOLDER) or (name in going and not (folder / name).is_dir()):
            continue
        if name not in own:
            found.append(Kept(path=name, reason="is not ComfyUI's"))
        elif (folder / name).is_dir() and not going:
            found.append(Kept(path=name, reason="holds files of yours"))
    state = folder / STATE_FOLDER
    records = {RECEIPT.name, ROLLBACK_POINT.name, PLACING.name, *(each.name for each in half_written(state))}
    records |= {WAITING.name for _ in sort_out(folder, _waiting(receipt))[0]}
    for name in sorted((names_in(state) or frozenset()) - records):
        found.append(Kept(path=f"{STATE_FOLDER}/{name}", reason="is not ComfyUI's"))
    return found
