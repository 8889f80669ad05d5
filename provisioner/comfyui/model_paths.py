"""Compute the folders ComfyUI 0.33 reads models from: its defaults, and those of `extra_model_paths.yaml`.

Reads text and computes paths; it never asks whether a folder exists, and never writes the user's YAML.
The behaviour was read in ComfyUI's `folder_paths.py`, `utils/extra_config.py` and `main.py`, and compared
with the answer of a running 0.33.0 to `/internal/folder_paths` (2026-11-23).
"""

from __future__ import annotations

import ntpath
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from provisioner.core.errors import UsageError
from provisioner.core.models import FolderRoots

if TYPE_CHECKING:
    from yaml.nodes import MappingNode, Node

P = TypeVar("P", bound=PurePath)

CONFIG_NAME = "extra_model_paths.yaml"
"""The one file ComfyUI reads by itself, beside main.py; `.yml` is not read."""

MAX_CONFIG_CHARACTERS = 1024 * 1024
"""A real file has a few hundred bytes; longer ones are rejected."""

LEGACY_FOLDERS: Mapping[str, str] = {"unet": "diffusion_models", "clip": "text_encoders"}
"""Old names of model folders, and their current names in ComfyUI."""

# Folder, and the sub-folders of the models root that are read for it, in order.  `unet` really comes
# before `diffusion_models`, and `clip` after `text_encoders`.
_UNDER_MODELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("checkpoints", ("checkpoints",)),
    ("configs", ("configs",)),
    ("loras", ("loras",)),
    ("vae", ("vae",)),
    ("text_encoders", ("text_encoders", "clip")),
    ("diffusion_models", ("unet", "diffusion_models")),
    ("clip_vision", ("clip_vision",)),
    ("style_models", ("style_models",)),
    ("embeddings", ("embeddings",)),
    ("diffusers", ("diffusers",)),
    ("vae_approx", ("vae_approx",)),
    ("controlnet", ("controlnet", "t2i_adapter")),
    ("gligen", ("gligen",)),
    ("upscale_models", ("upscale_models",)),
    ("latent_upscale_models", ("latent_upscale_models",)),
    ("hypernetworks", ("hypernetworks",)),
    ("photomaker", ("photomaker",)),
    ("classifiers", ("classifiers",)),
    ("model_patches", ("model_patches",)),
    ("audio_encoders", ("audio_encoders",)),
    ("background_removal", ("background_removal",)),
    ("frame_interpolation", ("frame_interpolation",)),
    ("geometry_estimation", ("geometry_estimation",)),
    ("optical_flow", ("optical_flow",)),
    ("detection", ("detection",)),
)
NOT_MODELS = ("custom_nodes", "datasets")
"""Folders of the base folder that ComfyUI lists with the model folders."""

# Where ComfyUI's own save nodes write; registered after every YAML file, so read last.
_UNDER_OUTPUT = (
    ("checkpoints", "checkpoints"),
    ("text_encoders", "clip"),
    ("vae", "vae"),
    ("diffusion_models", "diffusion_models"),
    ("loras", "loras"),
)

MODEL_SUBFOLDERS: frozenset[str] = frozenset(name for _, names in _UNDER_MODELS for name in names)
"""Every sub-folder of a models root that ComfyUI reads by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraPath(Generic[P]):
    """One line of an `extra_model_paths.yaml`: read this folder too."""

    folder: str  # "diffusion_models"; legacy names already translated
    path: P
    is_default: bool  # read first, and where downloads belong
    section: str  # the top-level key it is under
    base: P | None = None  # the section's base_path; None where it has none


def current_folder_name(folder: str) -> str:
    """Return ComfyUI's current name of a model folder that may have an old name.

    >>> current_folder_name("unet"), current_folder_name("vae")
    ('diffusion_models', 'vae')
    """
    return LEGACY_FOLDERS.get(folder, folder)


def folder_paths(models: P, extras: Iterable[ExtraPath[P]] = (), *, base: P | None = None) -> dict[str, tuple[P, ...]]:
    """Return for each kind of model the folders ComfyUI reads, in its order: the first that has the file wins.

    Parameters
    ----------
    models : path
        The main models root (``--models-directory``, else ``models`` in the base folder).
    extras : iterable of ExtraPath
        Lines of the YAML files in the order of registration.
    base : path, optional
        The folder that holds ``custom_nodes`` and ``output`` (``--base-directory``, else the checkout).  Without
        it only the folders of `models` and `extras` are returned.

    Returns
    -------
    dict of str to tuple of path
        Keyed by folder name.  A default line is inserted at the front, so the last of several comes first; a path
        that was already listed is moved, not repeated.
    """
    lists: dict[str, list[P]] = {folder: [models / name for name in names] for folder, names in _UNDER_MODELS}
    if base is not None:
        lists.update({folder: [base / folder] for folder in NOT_MODELS})
    for extra in extras:
        _register(lists.setdefault(extra.folder, []), extra.path, is_default=extra.is_default)
    if base is not None:
        for folder, name in _UNDER_OUTPUT:
            _register(lists[folder], base / "output" / name, is_default=False)
    return {folder: tuple(paths) for folder, paths in lists.items()}


def _register(paths: list[P], path: P, *, is_default: bool) -> None:
    """Add `path` to the folders read: at the front when default, moved there when already listed."""
    if not is_default:
        if path not in paths:
            paths.append(path)
        return
    if path in paths:
        paths.remove(path)
    paths.insert(0, path)


# --- the YAML file -------------------------------------------------------------------------------


def parse_extra_model_paths(text: str, *, file: P, home: P, environ: Mapping[str, str]) -> tuple[ExtraPath[P], ...]:
    """Return the folders that an `extra_model_paths.yaml` adds, in the order ComfyUI registers them.

    Only ``base_path`` expands ``~`` and variables (``$NAME``, ``${NAME}``; on Windows also ``%NAME%``); what is
    relative is relative to the YAML file.  The type of `file` decides which system's rules apply.

    Parameters
    ----------
    text : str
        The file's content.
    file : path
        Its absolute path: the base of relative paths, and the name in messages.
    home : path
        Replaces ``~``.
    environ : mapping of str to str
        Environment variables.

    Raises
    ------
    UsageError
        It is not YAML, or not the YAML that ComfyUI understands (lists, numbers, empty values), or a default
        folder would be created under a wrong name.  The message names file, line and key.
    """
    reader = _Reader(file=file, home=home, environ=environ)
    if len(text) > MAX_CONFIG_CHARACTERS:
        reader.refuse(None, f"is longer than {MAX_CONFIG_CHARACTERS:,} characters")
    return tuple(extra for section in _sections(text, reader) for extra in reader.extras_of(section))


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the YAML file, reduced to what is needed here."""

    kind: str  # "str", "null", "bool", "int", "float", "list", "mapping", or a tag
    text: str
    line: int  # of the key, from 1


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    values: Mapping[str, _Value]


@dataclass(frozen=True, slots=True)
class _Reader(Generic[P]):
    """Turns values into paths, with the file, home folder and variables they refer to."""

    file: P
    home: P
    environ: Mapping[str, str]

    def refuse(self, line: int | None, message: str, *, hint: str | None = None, key: str | None = None) -> NoReturn:
        """Raise the complaint, with its file, line and key."""
        where = str(self.file) if line is None else f"{self.file}, line {line}"
        named = "" if key is None else f" `{key}`"
        raise UsageError(f"{where}:{named} {message}", hint=hint, path=str(self.file), line=line, key=key)

    def extras_of(self, section: _Section) -> Iterator[ExtraPath[P]]:
        """Yield the folders of one section; `base_path` and `is_default` apply to all of it."""
        base = self._base_of(section)
        is_default = "is_default" in section.values and _is_true(section.values["is_default"])
        for key, value in section.values.items():
            if key in ("base_path", "is_default"):
                continue
            for line in self._text_of(section.name, key, value).split("\n"):
                if not line.strip():
                    continue
                path = self._absolute(str(base or self.file.parent), line)
                if is_default:
                    self._check_default(path, value.line, f"{section.name}.{key}")
                yield ExtraPath(
                    folder=current_folder_name(key), path=path, is_default=is_default, section=section.name, base=base
                )

    def _base_of(self, section: _Section) -> P | None:
        value = section.values.get("base_path")
        if value is None:
            return None
        text = self._text_of(section.name, "base_path", value)
        return self._absolute(str(self.file.parent), self._expanded(section.name, value, text))

    def _text_of(self, section: str, key: str, value: _Value) -> str:
        if value.kind == "str":
            if "\0" in value.text:
                self.refuse(value.line, "holds a NUL, which no path has", key=f"{section}.{key}")
            return value.text
        what, hint = _NOT_TEXT.get(value.kind, (f"is a {value.kind}", "Write a folder, in quotes if needed."))
        self.refuse(value.line, f"{what}; ComfyUI accepts only text here", hint=hint, key=f"{section}.{key}")

    def _absolute(self, anchor: str, text: str) -> P:
        """Return `text` as ComfyUI joins it: absolute paths stay, others are relative to `anchor`."""
        rules = ntpath if isinstance(self.file, PureWindowsPath) else posixpath
        return type(self.file)(rules.normpath(rules.join(anchor, text)))

    def _expanded(self, section: str, value: _Value, text: str) -> str:
        """Return `text` with ``~`` first, then variables, replaced; unknown variables are kept."""
        is_windows = isinstance(self.file, PureWindowsPath)
        head = re.split(r"[/\\]" if is_windows else "/", text, maxsplit=1)[0]
        if head == "~":
            text = str(self.home) + text[1:]
        elif head.startswith("~"):
            self.refuse(
                value.line,
                f"begins with {head}, another user's home",
                hint="Write that folder out in full.",
                key=f"{section}.base_path",
            )
        return _expand_windows(text, self.environ) if is_windows else _expand_posix(text, self.environ)

    def _check_default(self, path: P, line: int, key: str) -> None:
        """Raise for a default folder whose name shows a mistake: files would be written under that name."""
        is_windows = isinstance(self.file, PureWindowsPath)
        for pattern, holds_on_windows, complaint, hint in _SLIPS:
            if (holds_on_windows or not is_windows) and any(re.search(pattern, part) for part in path.parts):
                self.refuse(line, f"becomes {path}; {complaint}", hint=hint, key=key)


_NOT_TEXT: Mapping[str, tuple[str, str]] = {
    "null": ("has no value", "Give it a folder, or delete the line."),
    "list": ("is a list", "Write several folders below each other as text, after a `|` sign."),
    "mapping": ("is a group of keys", "Sections have one level: a key and its folder."),
    "int": ("is a number", "Put the folder's name in quotes."),
    "float": ("is a number", "Put the folder's name in quotes."),
    "bool": ("is a yes/no value", "Put the folder's name in quotes."),
    "timestamp": ("is a date", "Put the folder's name in quotes."),
}

# Mistakes in a folder that files would be written to: pattern of one path component, whether it is a mistake
# on Windows too, the complaint, the hint.
_SLIPS: tuple[tuple[str, bool, str, str], ...] = (
    (
        r"^[A-Za-z]:(\\|$)",
        False,
        "that is a Windows path, but this is not Windows",
        "Name the folder as this system spells it, such as /mnt/d/models.",
    ),
    (
        r"^\$(\w+|\{\w+\})$",
        True,
        "the variable is not set, or is used where ComfyUI does not expand it",
        "Set the variable, or write the folder out in full; only base_path expands variables.",
    ),
    (
        r"^%\w+%$",
        True,
        "the variable is not set, or is used where ComfyUI does not expand it",
        "Set the variable, or write the folder out in full; only base_path expands variables.",
    ),
    (
        r"^~$",
        True,
        "ComfyUI expands ~ only in base_path",
        "Write the folder out in full, or move the ~ to base_path.",
    ),
)

# As in os.path.expandvars on each system.  On Windows single quotes protect, and %% and $$ mean one sign.
_POSIX_VARIABLE = r"(?a)\$(?:(?P<name>\w+)|\{(?P<braced>[^}]*)\})"
_WINDOWS_VARIABLE = (
    r"(?a)(?P<quoted>'[^']*')|(?P<double>%%|\$\$)|%(?P<percent>[^%]+)%|\$\{(?P<braced>[^}]*)\}|\$(?P<name>[\w-]+)"
)


def _expand_posix(text: str, environ: Mapping[str, str]) -> str:
    return re.sub(
        _POSIX_VARIABLE,
        lambda match: environ.get(match["name"] or match["braced"] or "", match[0]),
        text,
    )


def _expand_windows(text: str, environ: Mapping[str, str]) -> str:
    upper = {name.upper(): value for name, value in environ.items()}  # names there ignore case

    def replacement(match: re.Match[str]) -> str:
        if match["quoted"]:
            return match[0]
        if match["double"]:
            return match[0][0]
        name = match["percent"] or match["braced"] or match["name"] or ""
        return upper.get(name.upper(), match[0])

    return re.sub(_WINDOWS_VARIABLE, replacement, text)


def _is_true(value: _Value) -> bool:
    """Return whether Python treats the value as true, which is ComfyUI's test: the text "false" is true."""
    if value.kind == "bool":
        return value.text.lower() in ("yes", "true", "on")
    if value.kind in ("int", "float"):
        return value.text.strip("+-0._eEx") != ""
    return value.kind != "null" and value.text != ""


# --- YAML nodes to values ------------------------------------------------------------------------
# Only the node tree is read and nothing is constructed: no tag runs, no alias multiplies, no number overflows.


def _sections(text: str, reader: _Reader[P]) -> Sequence[_Section]:
    from yaml.nodes import MappingNode, ScalarNode

    root = _compose(text, reader)
    if root is None or (isinstance(root, ScalarNode) and _kind(root) == "null"):
        return ()  # only comments: nothing is added
    if not isinstance(root, MappingNode):
        reader.refuse(_line(root), "must consist of named sections", hint="See extra_model_paths.yaml.example.")
    found: dict[str, _Section] = {}  # as in Python, a name that comes twice keeps its place and its last value
    for name, _, node in _pairs(root, reader):
        if isinstance(node, ScalarNode) and _kind(node) == "null":
            found[name] = _Section(name, {})
        elif isinstance(node, MappingNode):
            found[name] = _Section(name, {key: _value(each, line) for key, line, each in _pairs(node, reader)})
        else:
            reader.refuse(
                _line(node), "must be a section with folders in it", hint="Indent its folders below it.", key=name
            )
    return tuple(found.values())


def _compose(text: str, reader: _Reader[P]) -> Node | None:
    import yaml

    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        escape = "unknown escape" in (error.problem or "")
        hint = "In double quotes a backslash is an escape: use single quotes." if escape else None
        reader.refuse(line, f"is not valid YAML: {error.problem or error.context}", hint=hint)
    except yaml.YAMLError as error:
        reader.refuse(None, f"is not valid YAML: {str(error).splitlines()[0]}")
    except RecursionError:
        reader.refuse(None, "is nested too deeply to be a list of folders")


def _pairs(mapping: MappingNode, reader: _Reader[P]) -> Iterator[tuple[str, int, Node]]:
    """Yield key, line and value of a mapping."""
    from yaml.nodes import ScalarNode

    for key, value in mapping.value:
        if not isinstance(key, ScalarNode):
            reader.refuse(_line(key), "has a key that is not text")
        if key.tag == "tag:yaml.org,2002:merge":
            reader.refuse(
                _line(key), "merges another section, which is not supported here", hint="Write the lines out.", key="<<"
            )
        yield key.value, _line(key), value


def _value(node: Node, line: int) -> _Value:
    from yaml.nodes import MappingNode, SequenceNode

    if isinstance(node, SequenceNode):
        return _Value("list", "filled" if node.value else "", line)
    if isinstance(node, MappingNode):
        return _Value("mapping", "filled" if node.value else "", line)
    return _Value(_kind(node), str(node.value), line)


def _kind(node: Node) -> str:
    """Return the type that YAML sees in a scalar: "str", "null", "int"."""
    return node.tag.removeprefix("tag:yaml.org,2002:")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def folder_roots(
    models: Path, extras: Sequence[ExtraPath[Path]] = (), *, base: Path | None = None
) -> tuple[FolderRoots, ...]:
    """Return for each kind of model the folders ComfyUI reads and the one files are written to.

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
    old name (``unet``, ``clip``) is used only where the user's YAML leaves no other default.
    """
    defaults = [each.path for each in reversed(extras) if each.folder == folder and each.is_default]
    current = [path for path in defaults if path.name.lower() not in LEGACY_FOLDERS]
    return next(iter(current or defaults), models / folder)


def write_root(folder: P, *, models: P, base: P | None) -> P:
    """Return the models root a folder belongs to, where its receipts are.

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
    return parent_or_self(folder)


def parent_or_self(folder: P) -> P:
    """Return the parent, or the folder itself where the parent is the root of a file system."""
    return folder if folder.parent == folder.parent.parent else folder.parent
