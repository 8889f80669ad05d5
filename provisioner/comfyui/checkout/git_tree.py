"""git's ids of files, links and whole trees, computed without git: what an unpacked archive is proved with.

The id of a file is the SHA-1 of a header and its content; the id of a folder is that of the sorted list of what it
holds.  Whether a file is executable is part of the list and cannot be read from every disk (Windows, FAT, some mounts),
so modes are always given: by the archive's own directory, or by ``git ls-tree``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Union

from provisioner.comfyui.checkout_models import TreeFile

LINK = "120000"
FOLDER = "40000"
SUBMODULE = "160000"
_CHUNK_BYTES = 1024 * 1024
_Level = dict[str, Union[TreeFile, "_Level"]]


def blob_id(data: bytes) -> str:
    """Return the id git gives to a file with that content.

    >>> blob_id(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return _id("blob", data)


def _id(kind: str, data: bytes) -> str:
    # git's ids are SHA-1; GitHub and git refuse the known ways to make two files with one id
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def disk_id(path: Path) -> str | None:
    """Return the id of a file or link on disk, a link's being that of its target's text; None where neither is there.

    Raises
    ------
    OSError
        It is there and cannot be read, or is neither.
    """
    try:
        facts = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(facts.st_mode):
        return blob_id(os.fsencode(os.readlink(path)))  # noqa: PTH115 - Path.readlink rewrites what it reads
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(0, "not a file", str(path))
    digest = hashlib.sha1(f"blob {facts.st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_files(folder: Path, modes: Mapping[str, str], *, on_file: Callable[[], None]) -> tuple[TreeFile, ...]:
    """Return every file in a folder with the id of what the disk holds.

    Parameters
    ----------
    folder : Path
        The tree.
    modes : mapping of str to str
        git's mode of each path; a file the mapping does not have is an error.
    on_file : callable
        Called before each file; what it raises is passed on.

    Raises
    ------
    OSError
        Something cannot be read.
    ValueError
        The disk holds other names than `modes`: a file system that takes two names for one.
    """
    on_disk = sorted(walk(folder))
    if on_disk != sorted(modes):
        odd = sorted(set(on_disk) ^ set(modes))
        raise ValueError(f"{odd[0]!r} is on one side only")
    found = []
    for path in on_disk:
        on_file()
        found.append(TreeFile(path=path, mode=modes[path], id=disk_id(folder / path) or ""))
    return tuple(found)


def walk(folder: Path) -> Iterator[str]:
    """Yield the paths of all files and links below a folder, with forward slashes; links are not followed."""
    for parent, folders, files in os.walk(folder):
        below = Path(parent).relative_to(folder)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            yield (below / name).as_posix()


def tree_id(files: Iterable[TreeFile]) -> str:
    """Return the id of the tree that these files make up.

    Raises
    ------
    ValueError
        A path is there twice, or as a file and as a folder.
    """
    return _write_tree(_levels(files))


def top_entries(files: Iterable[TreeFile]) -> tuple[TreeFile, ...]:
    """Return what lies at the top of the tree, in git's order: files, and folders with the id of all they hold."""
    return tuple(_entry(name, each) for name, each in sorted(_levels(files).items(), key=_git_order))


def _levels(files: Iterable[TreeFile]) -> _Level:
    top: _Level = {}
    for file in files:
        *folders, name = file.path.split("/")
        level = top
        for folder in folders:
            below = level.setdefault(folder, {})
            if isinstance(below, TreeFile):
                raise ValueError(f"{below.path!r} is a file and a folder")  # noqa: TRY004 - what is wrong is the list
            level = below
        if name in level:
            raise ValueError(f"{file.path!r} is there twice")
        level[name] = file
    return top


def _git_order(item: tuple[str, TreeFile | _Level]) -> bytes:
    """Return what git sorts by: bytes, a folder as if its name ended in a slash, so that ``a.b`` precedes ``a/``."""
    name, each = item
    return os.fsencode(name) + (b"" if isinstance(each, TreeFile) else b"/")


def _entry(name: str, each: TreeFile | _Level) -> TreeFile:
    if isinstance(each, TreeFile):
        return TreeFile(path=name, mode=each.mode, id=each.id)
    return TreeFile(path=name, mode=FOLDER, id=_write_tree(each))


def _write_tree(level: _Level) -> str:
    content = b""
    for name, each in sorted(level.items(), key=_git_order):
        entry = _entry(name, each)
        content += f"{entry.mode} ".encode() + os.fsencode(name) + b"\0" + bytes.fromhex(entry.id)
    return _id("tree", content)
