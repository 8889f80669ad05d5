"""Looks at a folder and says what of ComfyUI it is: kind, version, commit, changes, Python.  Writes and runs nothing.

git is only asked for what the files do not say by themselves, and reads none of the tree's own settings, which could
start programs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import PLACING, names_in, read_receipt, read_rollback_point
from provisioner.comfyui.checkout.foreign_git import git_folders, looking
from provisioner.comfyui.checkout.git import Git
from provisioner.comfyui.checkout.git_tree import disk_id
from provisioner.comfyui.checkout_models import CheckoutKind, CheckoutReceipt, ComfyCheckout, ComfyPython, PythonOrigin
from provisioner.comfyui.custom_nodes import SHIPPED_NODES
from provisioner.comfyui.install_plan import parse_project_version, parse_requirements, parse_version_file
from provisioner.comfyui.model_paths import MODEL_SUBFOLDERS
from provisioner.core.errors import CommandError, KleinError
from provisioner.core.models import STATE_FOLDER

_NOISE = frozenset({".ds_store", "thumbs.db", "desktop.ini", "lost+found", "system volume information", STATE_FOLDER})
_BESIDE_MODELS = frozenset({"custom_nodes", "user", "input", "output"})
_PORTABLE = ("python_embeded", "python_embedded")  # the first is how the portable build really spells it
_SMALL_FILE = 1024 * 1024  # bytes
_COMMIT = re.compile(r"[0-9a-f]{40}")

GitFor = Callable[[Path], "Git | None"]


def describe_tree(
    given: Path,
    git_for: GitFor,
    *,
    environ: Mapping[str, str],
    platform: str = sys.platform,
) -> ComfyCheckout:
    """Return what a folder is; raises StorageError where it cannot be read."""
    kind, tree = _kind(given)
    found = ComfyCheckout(given=given, kind=kind, tree=tree)
    if kind in ("empty", "other"):
        return replace(found, receipt=read_receipt(given))
    home = tree or given
    found = replace(
        found,
        pythons=tuple(_pythons(home, kind, environ, platform)),
        custom_nodes=names_of_nodes(home / "custom_nodes"),
    )
    if tree is None:
        return replace(found, receipt=read_receipt(given))
    return _with_program(found, tree, git_for)


def requirements_of(tree: Path) -> tuple[str, ...]:
    """Return the requirements of a tree, a line each; empty where it has no such file."""
    return parse_requirements(_text(tree / "requirements.txt") or "")


def _with_program(found: ComfyCheckout, tree: Path, git_for: GitFor) -> ComfyCheckout:
    receipt = read_receipt(tree)
    commit, branch = read_head(tree)
    has_git = os.path.lexists(tree / ".git")
    version = _version(tree)
    why_unknown: str | None = None
    changes: tuple[str, ...] | None = None
    if has_git:
        git = git_for(tree)
        if git is None:
            why_unknown = "git is not installed"
        else:
            try:
                if commit is None:
                    raise CommandError("the commit it is on is not known")
                with looking(git, commit) as apart:
                    changes = apart.changed()
                    if version is None and (said := apart.ask("describe", "--tags", "--match", "v[0-9]*")):
                        version = said.removeprefix("v")
            except (KleinError, OSError) as error:
                why_unknown = str(error)
    if not has_git and receipt is not None:
        commit = receipt.commit
        changes = _changed_since(receipt, tree)
    return replace(
        found,
        version=version,
        commit=commit,
        branch=branch,
        has_git=has_git,
        local_changes=changes,
        receipt=receipt,
        rollback_point=read_rollback_point(tree),
        why_unknown=why_unknown,
    )


# --- kinds -------------------------------------------------------------------------------------


def _kind(given: Path) -> tuple[CheckoutKind, Path | None]:
    names = names_in(given)
    if names is None:
        return "empty", None
    if given.name == "models" and _is_program(given.parent):
        return _kind(given.parent)
    if _is_program(given):
        has_python_beside = any((given.parent / each).is_dir() for each in _PORTABLE)
        if has_python_beside:
            return "portable", given
        return ("git" if ".git" in names else "source"), given
    if not names.isdisjoint(_PORTABLE) and _is_program(given / "ComfyUI"):
        return "portable", given / "ComfyUI"
    return _kind_without_program(given, names), None


def _is_program(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "folder_paths.py").is_file()


def _kind_without_program(given: Path, names: frozenset[str]) -> CheckoutKind:
    visible = {name for name in names if name.lower() not in _NOISE and name[0] not in ".~"}
    if not visible or (given / PLACING).exists():  # the second: we were interrupted, and will go on
        return "empty"
    if "models" in names and (given / "models").is_dir():
        inside = names_in(given / "models") or frozenset()
        if not visible.isdisjoint(_BESIDE_MODELS):
            return "base"
        if STATE_FOLDER in inside and visible == {"models"}:
            return "empty"  # models we fetched before there was a ComfyUI
        if not inside.isdisjoint(MODEL_SUBFOLDERS):
            return "base"
    if any((given / name).is_dir() for name in names & (MODEL_SUBFOLDERS | {STATE_FOLDER})):
        return "models"
    return "other" if read_receipt(given) is None else "empty"  # the second: what an interrupted removal left


# --- facts -------------------------------------------------------------------------------------


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return stream.read(_SMALL_FILE).decode("utf-8", "replace")
    except OSError:
        return None


def _version(tree: Path) -> str | None:
    readers = (("comfyui_version.py", parse_version_file), ("pyproject.toml", parse_project_version))
    for name, parse in readers:
        version = parse(_text(tree / name) or "")
        if version is not None:
            return version
    return None


def read_head(tree: Path) -> tuple[str | None, str | None]:
    """Return the commit and the branch a tree is on, read from git's files; None for what they do not say."""
    try:
        folders = git_folders(tree)
    except OSError:
        folders = None
    if folders is None:
        return None, None
    folder, common = folders
    head = (_text(folder / "HEAD") or "").strip()
    if _COMMIT.fullmatch(head):
        return head, None
    if not head.startswith("ref: refs/") or ".." in head:
        return None, None
    ref = head[5:]
    loose = next((text.strip() for each in (folder, common) if (text := _text(each / ref))), "")
    packed = re.search(rf"^([0-9a-f]{{40}}) {re.escape(ref)}$", _text(common / "packed-refs") or "", re.M)
    commit = loose if _COMMIT.fullmatch(loose) else packed[1] if packed else None
    return commit, ref.removeprefix("refs/heads/")


def _changed_since(receipt: CheckoutReceipt, tree: Path) -> tuple[str, ...] | None:
    """Return the files of a tree without git that are no longer what we put there; None where one cannot be read."""
    try:
        return tuple(each.path for each in receipt.files if disk_id(tree / each.path) != each.id)
    except OSError:
        return None


def names_of_nodes(folder: Path) -> tuple[str, ...]:
    """Return the names of the custom nodes in a folder; none where it cannot be read."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name.lower())
    except OSError:
        return ()
    return tuple(entry.name for entry in entries if _is_node(entry))


def _is_node(entry: Path) -> bool:
    name = entry.name
    if name[0] in "._~" or name.endswith(".disabled") or name in SHIPPED_NODES:
        return False
    return name.endswith(".py") or entry.is_dir()


# --- Pythons -----------------------------------------------------------------------------------


def _pythons(home: Path, kind: CheckoutKind, environ: Mapping[str, str], platform: str) -> Iterator[ComfyPython]:
    """Yield the Pythons of a tree, likeliest first: the portable build's batch files name theirs, so it wins there."""
    names = ("Scripts/python.exe", "python.exe") if platform == "win32" else ("bin/python", "bin/python3")
    places: list[tuple[PythonOrigin, Path]] = [
        *(("portable", home.parent / each) for each in _PORTABLE if kind == "portable"),
        (".venv", home / ".venv"),
        ("venv", home / "venv"),
        ("env", home / "env"),  # Pinokio's, and conda's `--prefix ./env`
        *(("beside", home.parent / each) for each in (".venv", "venv")),
    ]
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if kind != "portable" and environ.get(variable):
            places.append(("active", Path(environ[variable])))
    seen: set[Path] = set()
    for origin, folder in places:
        # the portable build's folder is a Windows one wherever it is looked at
        spelled = ("python.exe",) if origin == "portable" else names
        path = next((folder / each for each in spelled if os.path.lexists(folder / each)), None)
        if path is not None and path not in seen:
            seen.add(path)
            yield ComfyPython(path=path, origin=origin, is_there=path.exists())
