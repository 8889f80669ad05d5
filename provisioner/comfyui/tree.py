"""Recognise what kind of ComfyUI tree a folder is.

Looks at names, links and the `extra_model_paths.yaml`; it changes nothing.  `model_paths` computes which
folders ComfyUI then reads, `layout` where files go.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from provisioner.comfyui.model_paths import (
    CONFIG_NAME,
    MAX_CONFIG_CHARACTERS,
    MODEL_SUBFOLDERS,
    ExtraPath,
    folder_roots,
    parse_extra_model_paths,
)
from provisioner.core.errors import StorageError, UnreadableError, UsageError
from provisioner.core.models import STATE_FOLDER, ComfyTarget
from provisioner.disk.os_errors import broken_link

# What systems create in a folder that users consider empty.
_NOISE = frozenset({".ds_store", "thumbs.db", "desktop.ini", "lost+found", "system volume information", STATE_FOLDER})
_RECORDS = ("comfyui.json", "comfyui-placing.json")  # of ComfyUI's installation, in our folder
_BESIDE_MODELS = frozenset({"custom_nodes", "user", "input", "output"})
_PORTABLE_PYTHON = ("python_embeded", "python_embedded")  # the first is the portable build's own spelling
_LOOKED_FOR = (
    "a checkout (main.py, folder_paths.py), a portable build (ComfyUI and python_embeded), "
    "a base folder (models beside custom_nodes, user, input or output), "
    "or a models folder (diffusion_models, checkpoints, vae ...)"
)
# A file that shows what the folder is, and what to do instead.
_FOREIGN = (
    ("model_index.json", "a diffusers model", "Give the HF cache with --hf-cache instead."),
    ("webui.py", "a Stable Diffusion WebUI", "Name ComfyUI's own folder; it can read this one's models."),
    ("invokeai.yaml", "an InvokeAI folder", "Name ComfyUI's own folder."),
)


@dataclass(frozen=True, slots=True)
class _Tree:
    """What a folder was recognised as."""

    models: Path
    base: Path | None  # contains custom_nodes and output; None where only the models folder is known
    config: Path | None = None  # where ComfyUI would look for its YAML; it need not exist
    is_new: bool = False


_Recogniser = Callable[[Path, frozenset[str]], "_Tree | None"]


def open_tree(
    given: Path, *, home: Path, environ: Mapping[str, str], extra_configs: Sequence[Path] = ()
) -> ComfyTarget:
    """Return the models tree of a folder, as ComfyUI itself would read it.

    Recognised are a checkout, its ``models`` folder, a portable build, a base folder (``--base-directory``,
    Desktop), and a models folder by itself (``--models-directory``).  A missing or empty folder is a new tree.

    Parameters
    ----------
    given : Path
        The folder the user named.
    home : Path
        Replaces ``~``.
    environ : mapping of str to str
        Environment variables, for ``base_path`` in the YAML.
    extra_configs : sequence of Path
        Further YAML files, as ``--extra-model-paths-config`` names them; read after the one beside main.py.

    Raises
    ------
    UsageError
        It is a file, or a folder that is none of these; or a YAML file is missing or wrong.
    UnreadableError
        The folder, its models or a YAML file exists but cannot be read.
    """
    folder = _absolute(given, home)
    tree = _recognised(folder)
    _check_root(tree.models)
    automatic = tree.config if tree.config is not None and tree.config.is_file() else None
    configs = (*((automatic,) if automatic else ()), *(_absolute(each, home) for each in extra_configs))
    extras = tuple(
        _respelled(extra, tree.base)
        for config in configs
        for extra in parse_extra_model_paths(_read_config(config), file=config, home=home, environ=environ)
    )
    return ComfyTarget(
        given=given,
        models=tree.models,
        folders=folder_roots(tree.models, extras, base=tree.base),
        is_new=tree.is_new,
        config=next(iter(configs), None),
    )


# --- what a folder is ------------------------------------------------------------------------------


def _absolute(path: Path, home: Path) -> Path:
    """Return `path` as an absolute path with links unresolved, so that messages name folders as the user does."""
    first, *rest = path.parts or (".",)
    # not resolve(), which would follow the links
    return Path(os.path.abspath(home.joinpath(*rest) if first == "~" else path))  # noqa: PTH100


def _recognised(folder: Path) -> _Tree:
    names = _names_in(folder)
    # A checkout's own models folder means the checkout: its YAML decides too what is read.
    if folder.name == "models" and (tree := _checkout(folder.parent, _names_in(folder.parent) or frozenset())):
        return tree
    # Hidden names do not make a tree of another kind: a virtual environment, complete or not, may come first.
    if names is None or not {name for name in names if name.lower() not in _NOISE and name[0] not in ".~"}:
        return _Tree(models=folder / "models", base=folder, config=folder / CONFIG_NAME, is_new=True)
    for file, what, hint in _FOREIGN:
        if file in names:
            raise UsageError(f"{folder} is {what}, not a ComfyUI tree: it has {file}.", hint=hint, path=str(folder))
    for recognise in _RECOGNISERS:
        if tree := recognise(folder, names):
            return tree
    raise UsageError(f"{folder} is not a ComfyUI tree. Looked for: {_LOOKED_FOR}.", hint=_hint(folder, names))


def _names_in(folder: Path) -> frozenset[str] | None:
    """Return the names in a folder; None where it does not exist."""
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        if os.path.lexists(folder):
            raise broken_link(folder, folder.readlink()) from None
        return None
    except NotADirectoryError as error:
        raise UsageError(
            f"{folder} is not a folder.", hint="Name the folder that ComfyUI is in.", path=str(folder)
        ) from error
    except OSError as error:
        raise UnreadableError(f"{folder} cannot be read: {error.strerror}.", path=str(folder)) from error


def _checkout(folder: Path, names: frozenset[str]) -> _Tree | None:
    if not {"main.py", "folder_paths.py"} <= names:
        return None
    return _Tree(models=folder / "models", base=folder, config=folder / CONFIG_NAME)


def _portable(folder: Path, names: frozenset[str]) -> _Tree | None:
    if "ComfyUI" not in names or names.isdisjoint(_PORTABLE_PYTHON):
        return None
    inner = folder / "ComfyUI"
    return _checkout(inner, _names_in(inner) or frozenset())


def _unfinished(folder: Path, names: frozenset[str]) -> _Tree | None:
    """Recognise what an interrupted installation or removal of ComfyUI left, by our record of it."""
    if STATE_FOLDER not in names or not any((folder / STATE_FOLDER / each).is_file() for each in _RECORDS):
        return None
    return _Tree(models=folder / "models", base=folder, config=folder / CONFIG_NAME)


def _base_folder(folder: Path, names: frozenset[str]) -> _Tree | None:
    if "models" not in names or not (folder / "models").is_dir():
        return None
    inside = _names_in(folder / "models") or frozenset()
    is_ours = STATE_FOLDER in inside  # a folder of ours is recognised, whatever kinds of models it contains
    is_fresh = not {name for name in inside if name.lower() not in _NOISE}
    if names.isdisjoint(_BESIDE_MODELS) and inside.isdisjoint(MODEL_SUBFOLDERS) and not (is_ours or is_fresh):
        return None
    return _Tree(models=folder / "models", base=folder)


def _models_folder(folder: Path, names: frozenset[str]) -> _Tree | None:
    found = [name for name in names & (MODEL_SUBFOLDERS | {STATE_FOLDER}) if (folder / name).is_dir()]
    return _Tree(models=folder, base=None) if found else None


_RECOGNISERS: tuple[_Recogniser, ...] = (_checkout, _portable, _unfinished, _base_folder, _models_folder)


def _hint(folder: Path, names: frozenset[str]) -> str:
    """Return the hint for an unknown folder: often the tree is one level further in."""
    for name in sorted(names):
        inner = folder / name
        try:
            inside = _names_in(inner) if inner.is_dir() else None
        except (UsageError, StorageError):
            continue
        if inside and (_checkout(inner, inside) or _portable(inner, inside)):
            return f"Name {inner} instead."
    if any(name.startswith("models--") for name in names):
        return "This looks like an HF cache: give it with --hf-cache."
    return "Name ComfyUI's own folder, or a new or empty one."


def _check_root(models: Path) -> None:
    """Raise for a models folder that cannot be used: a file, or a link to a missing drive."""
    try:
        mode = models.stat().st_mode
    except FileNotFoundError:
        if os.path.lexists(models):
            raise broken_link(models, models.readlink()) from None
        return
    except OSError as error:
        raise UnreadableError(f"{models} cannot be read: {error.strerror}.", path=str(models)) from error
    if not stat.S_ISDIR(mode):
        raise UsageError(f"{models} is a file where a folder is needed.", hint="Move it away.", path=str(models))


# --- the YAML files --------------------------------------------------------------------------------


def _read_config(config: Path) -> str:
    """Return the text of a YAML file, reading no more than such a file can have."""
    try:
        with config.open("rb") as stream:
            data = stream.read(MAX_CONFIG_CHARACTERS + 1)
    except FileNotFoundError as error:
        raise UsageError(f"{config} does not exist.", hint="Correct its path.", path=str(config)) from error
    except OSError as error:
        raise UnreadableError(f"{config} cannot be read: {error.strerror}.", path=str(config)) from error
    if len(data) > MAX_CONFIG_CHARACTERS:
        raise UsageError(
            f"{config} is larger than {MAX_CONFIG_CHARACTERS:,} bytes: not a list of folders.", path=str(config)
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{config} is not UTF-8 (byte {error.start:,}).", hint="Save it as UTF-8.", path=str(config)
        ) from error


def _respelled(extra: ExtraPath[Path], base: Path | None) -> ExtraPath[Path]:
    """Return `extra` with the base folder spelled as the user did.

    ComfyUI resolves the links to its own folder before it compares paths; a YAML that names the resolved
    folder means the same tree, which must not appear twice.
    """
    if base is None:
        return extra
    real = Path(os.path.realpath(base))

    def spelled(path: Path) -> Path:
        return base / path.relative_to(real) if path == real or real in path.parents else path

    return replace(extra, path=spelled(extra.path), base=None if extra.base is None else spelled(extra.base))
