"""Asks git about a tree whose own settings may be a stranger's: they name programs, and none of those is started.

To look, git works in an empty repository of ours, with the tree's objects and index beside it, so that it reads none of
the tree's settings (filters, fsmonitor, hooks, promisor remotes).  To move a tree, git needs the repository itself; the
programs its settings name are then switched off one by one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from provisioner.comfyui.checkout.git import Git
from provisioner.core.errors import UsageError
from provisioner.core.redact import printable
from provisioner.disk.calls import write_all
from provisioner.disk.root import Root, scratch_folder

_SMALL_FILE = 16 * 1024 * 1024  # bytes
_MOST_SETTINGS = 1024 * 1024  # characters
_TAG = re.compile(r"v[0-9][\w.-]*")
_PACKED_TAG = re.compile(r"^([0-9a-f]{40}) refs/tags/(v[0-9][\w.-]*)$", re.MULTILINE)
_ID = re.compile(r"[0-9a-f]{40}")
# What says how files of this tree lie on this disk, and starts nothing.
_HARMLESS = frozenset({"core.autocrlf", "core.eol", "core.filemode", "core.ignorecase", "core.precomposeunicode"})
_HARMLESS |= {"core.symlinks"}
_HARMLESS_VALUE = re.compile(r"true|false|input|lf|crlf|native")


def git_folders(tree: Path) -> tuple[Path, Path] | None:
    """Return a tree's repository and the one it shares objects and branches with, mostly the same; None where broken.

    Raises
    ------
    OSError
        A file of it cannot be read.
    """
    folder = tree / ".git"
    if folder.is_file():  # a linked work tree, or a submodule
        found = re.fullmatch(r"gitdir: (.+)", _text(folder).strip())
        if found is None:
            return None
        folder = tree / found[1]
    common = _text(folder / "commondir").strip() if (folder / "commondir").is_file() else ""
    return folder, folder / common


@contextlib.contextmanager
def looking(git: Git, commit: str) -> Iterator[Git]:
    """Yield a git that sees the files, objects, index and version tags of `git.tree` at `commit`, not its settings.

    Raises
    ------
    OSError
        A file of the repository cannot be read.
    KleinError
        No temporary folder can be made, or git does not start.
    """
    folders = git_folders(git.tree)
    if folders is None:
        raise OSError(0, "this .git file names no repository", str(git.tree / ".git"))
    folder, common = folders
    with scratch_folder("klein-setup-git-") as empty:
        root = Root(empty)
        for name in ("refs", "objects"):
            root.make_folder(empty / name, is_flushed=False)
        for name, text in (("HEAD", f"{commit}\n"), ("packed-refs", _version_tags(common))):
            with root.create(empty / name) as stream:
                write_all(stream, text.encode())
        apart = replace(
            git,
            variables={
                "GIT_DIR": str(empty),
                "GIT_WORK_TREE": str(git.tree),
                "GIT_OBJECT_DIRECTORY": str((common / "objects").absolute()),
                "GIT_INDEX_FILE": str((folder / "index").absolute()),
                "GIT_NO_LAZY_FETCH": "1",
            },
        )
        found = _settings(apart, common)
        yield replace(apart, settings={key: found[key] for key in found if _is_harmless(key, found[key])})


def origin_of(git: Git) -> str | None:
    """Return the address a repository was cloned from, as its settings say it, a login included; None for none.

    Raises
    ------
    OSError, KleinError
        As `disarmed`.
    """
    folders = git_folders(git.tree)
    return None if folders is None else _settings(git, folders[1]).get("remote.origin.url")


def disarmed(git: Git) -> Git:
    """Return a git that moves `git.tree`, and nothing else, without starting what the tree's own settings name.

    Raises
    ------
    OSError
        A file of the repository cannot be read.
    UsageError
        A setting cannot be switched off, or ``.git`` names no repository.
    CommandError
        git cannot read the settings.
    """
    folders = git_folders(git.tree)
    if folders is None:
        hint = "Install ComfyUI in a new folder instead."
        raise UsageError(f"{git.tree / '.git'} names no repository.", hint=hint, path=str(git.tree))
    folder, common = folders
    off: dict[str, str] = {}
    for key in {**_settings(git, common), **_settings(git, folder, "config.worktree")}:
        if re.fullmatch(r"filter\..*\.(clean|smudge|process)|core\.alternaterefscommand", key):
            off[key] = ""
        elif re.fullmatch(r"filter\..*\.required", key):
            off[key] = "false"
        elif re.fullmatch(r"remote\..*\.uploadpack", key):
            off[key] = "git-upload-pack"
        elif re.fullmatch(r"include\.path|includeif\..*\.path", key):
            raise _cannot_switch_off(git.tree, key)  # what it names may depend on the branch: nobody read it yet
        if key in off and ("=" in key or "\N{REPLACEMENT CHARACTER}" in key):
            raise _cannot_switch_off(git.tree, key)  # `git -c` takes the first `=` for the end of the name
    # Spelled out, so that git works in the repository that was looked at and core.worktree leads nowhere else.
    place = {"GIT_DIR": folder, "GIT_COMMON_DIR": common, "GIT_WORK_TREE": git.tree}
    return replace(git, settings=off, variables={name: str(path.absolute()) for name, path in place.items()})


def _cannot_switch_off(tree: Path, key: str) -> UsageError:
    return UsageError(
        f"The git settings of {tree} contain {printable(key)}, which may start programs and cannot be switched off.",
        hint="If you trust this folder, update it with git yourself; or remove that setting from .git/config.",
        path=str(tree),
        setting=printable(key),
    )


def _is_harmless(key: str, value: str) -> bool:
    return key in _HARMLESS and _HARMLESS_VALUE.fullmatch(value) is not None


def _settings(git: Git, folder: Path, name: str = "config") -> dict[str, str]:
    """Return what a settings file of a repository says itself; git reads it, follows none of it and includes nothing.

    Raises
    ------
    UsageError
        There is more of it than anybody writes.
    CommandError
        git cannot read it.
    """
    path = (folder / name).absolute()
    if not path.is_file():
        return {}
    said = git.do("config", "--file", str(path), "--no-includes", "--list", "-z", doing="read its settings")
    if len(said) > _MOST_SETTINGS:
        raise UsageError(f"{path} has too many settings.", hint="Install ComfyUI in a new folder.", path=str(path))
    rows = (row.partition("\n") for row in said.split("\0") if row)
    return {key: value for key, _, value in rows}


def _version_tags(common: Path) -> str:
    """Return the version tags of a repository, as git packs them."""
    packed, tags = common / "packed-refs", common / "refs" / "tags"
    found = {name: commit for commit, name in _PACKED_TAG.findall(_text(packed))} if packed.is_file() else {}
    for tag in tags.iterdir() if tags.is_dir() else ():
        if _TAG.fullmatch(tag.name) and tag.is_file() and _ID.fullmatch(_text(tag).strip()):
            found[tag.name] = _text(tag).strip()
    return "".join(f"{commit} refs/tags/{name}\n" for name, commit in sorted(found.items()))


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(_SMALL_FILE).decode("utf-8", "replace")
