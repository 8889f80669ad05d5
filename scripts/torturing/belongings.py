"""What the user has: planted before anything happens, and compared after everything that does.

Three sorts.  What must stay where and what it is: files, links, folders, a repository with commits.  What may be moved,
because its name is needed, and must not be lost: it is in the backups, or what is there gives it back byte for byte.
And a folder outside of the tree, in which nothing at all may happen.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

State = tuple[int, str, int]
"""Permissions, digest or target, and time of the last change in nanoseconds."""


def state_of(path: Path) -> State | None:
    """Return what lies at a path, links not followed; None where nothing is."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(status.st_mode):
        return status.st_mode, os.readlink(path), 0  # noqa: PTH115 - as it is written
    if stat.S_ISDIR(status.st_mode):
        return status.st_mode, "folder", 0
    return status.st_mode, sha256(path.read_bytes()).hexdigest(), status.st_mtime_ns


def everything_below(folder: Path) -> dict[str, State | None]:
    """Return the state of everything below a folder, no link followed."""
    return {str(path): state_of(path) for path in walk(folder)}


def walk(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder, no link followed; what goes meanwhile is left out."""
    for where, folders, names in os.walk(folder):
        for name in sorted((*folders, *names)):
            yield Path(where, name)


class Belongings:
    """The user's things of one trial.

    Parameters
    ----------
    tree : Path
        The ComfyUI folder.
    outside : Path
        A folder of the user's beside it.
    """

    def __init__(self, tree: Path, outside: Path) -> None:
        self.tree, self.outside = tree, outside
        self._stay: dict[Path, State | None] = {}
        self._kept: dict[str, tuple[Path, bytes, bytes]] = {}
        self._outside: dict[str, State | None] = {}
        self._planted: set[Path] = set()
        self._lying: dict[Path, State | None] = {}
        self._moved: set[Path] = set()

    def plant(self) -> None:
        """Put the usual things of a user there."""
        for name, data in (
            ("house/photo.jpg", b"\xff\xd8 a photo"),
            ("house/.bash_profile", b"export EDITOR=vi\n"),
            ("models/big.safetensors", b"another model" * 99),
            ("models/receipt.json", b'{"schema_version": 1, "files": {}}'),
            ("empty", b""),
        ):
            path = self.outside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.seal_outside()
        models = self.tree / "models"
        for name, data in (
            ("loras/mine.safetensors", b"my own work " * 50),
            ("vae/another vae.safetensors", b"not in the manifest"),
            ("vae/half.safetensors.part", b"a browser's half"),
            ("vae/half.safetensors.crdownload", b"another browser's half"),
            ("vae/old.bad", b"kept by hand"),
            ("vae/notes.json.0123456789abcdef.tmp", b"an editor's own"),
            ("text_encoders/.hidden", b""),
            (".klein-setup-notes/notes.txt", b"a folder with nearly our name"),
        ):
            self.stay(models / name, data)
        node = self.tree / "custom_nodes" / "my_node"
        self.stay(node / "nodes.py", b"class Node: ...\n")
        self.stay(node / ".git" / "HEAD", b"ref: refs/heads/main\n")
        self.stay(node / ".git" / "refs" / "heads" / "main", b"5" * 40 + b"\n")
        self.stay(self.tree / "output" / "picture_0001.png", b"\x89PNG a picture")
        self.stay(self.tree / "extra_notes.txt", b"mine\n")
        self.link(models / "loras" / "linked.safetensors", self.outside / "models" / "big.safetensors")
        self.link(models / "embeddings", self.outside / "house")
        self.link(models / "loras" / "unplugged.safetensors", self.outside / "not plugged in")

    def stay(self, path: Path, data: bytes) -> None:
        """Put a file there that must stay as it is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._stay[path] = state_of(path)

    def link(self, path: Path, target: Path) -> None:
        """Put a link there that must stay as it is; Windows lets few users make one."""
        if os.name == "nt":
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        self._stay[path] = state_of(path)

    def stays(self, path: Path) -> None:
        """Let what is there stay as it is."""
        self._stay[path] = state_of(path)

    def may_go(self, path: Path) -> None:
        """Let something that was planted stay or go: its loss is none."""
        self._planted.add(path)

    def may_lie(self, path: Path) -> None:
        """Let something that was planted lie there as it is now; what a run makes of it is the run's."""
        self._lying[path] = state_of(path)

    def suspend(self, path: Path) -> dict[Path, State | None]:
        """Return what stays at or below a path that has another name for a while; not looked at until `resume`."""
        found = {each: state for each, state in self._stay.items() if path in (each, *each.parents)}
        self._stay = {path: state for path, state in self._stay.items() if path not in found}
        self._moved |= set(found)
        return found

    def resume(self, found: dict[Path, State | None]) -> None:
        """Look at it again."""
        self._stay.update(found)

    def kept(self) -> list[tuple[Path, bytes]]:
        """Return the bytes that may be replaced, with their paths."""
        return [(path, data) for path, data, _ in self._kept.values()]

    def keep(self, path: Path, data: bytes, right: bytes = b"") -> None:
        """Remember bytes of the user's that may be replaced at a path, by `right`, and must not be lost."""
        self._planted.add(path)
        self._kept[f"{path}:{sha256(data).hexdigest()}"] = path, data, right

    def let_go(self) -> None:
        """Forget what was to be kept: the user deletes it for good."""
        self._kept.clear()

    def seal_outside(self) -> None:
        """From now on nothing may change in the folder outside."""
        self._outside = everything_below(self.outside)

    def has(self, path: Path) -> bool:
        """Whether something at a path is the user's, planted there, or in a folder that was renamed since."""
        if path in self._lying and self._lying[path] == state_of(path):
            return True
        return path in self._planted or path.name in {each.name for each in (*self._stay, *self._moved)}

    def complaint(self) -> str | None:
        """Return what was touched or lost, or None."""
        for path, state in self._stay.items():
            if state_of(path) != state:
                return f"{path} of the user's was touched"
        found = everything_below(self.outside)
        for name in {*self._outside, *found}:
            if found.get(name) != self._outside.get(name):
                return f"{name}, outside of the tree, was touched"
        for path, data, right in self._kept.values():
            if not is_there_still(self.tree, path, data, right):
                return f"{len(data)} bytes that the user had at {path} are lost"
        return None


def is_there_still(tree: Path, path: Path, data: bytes, right: bytes) -> bool:
    """Whether bytes that were at a path are there still, in whole under any name, or from saved pieces."""
    try:
        if path.is_file() and not path.is_symlink() and path.read_bytes() == data:
            return True
        files = [each for each in walk(tree) if each.is_file() and not each.is_symlink()]
        if any(each.stat().st_size == len(data) and each.read_bytes() == data for each in files):
            return True
    except FileNotFoundError:  # moved while it was looked at, by a run that goes on
        return is_there_still(tree, path, data, right)
    bases = [right, *(each.read_bytes() for each in (path, path.with_name(path.name + ".part")) if each.is_file())]
    folders = [each for each in walk(tree) if each.is_dir() and each.name.startswith(f"{path.name}.blocks")]
    return any(_with_pieces(base, folder, len(data)) == data for base in bases for folder in folders)


def _with_pieces(base: bytes, folder: Path, size: int) -> bytes:
    """Return what pieces in the backups make of a file, the index being there or not yet."""
    made = bytearray(base[:size].ljust(size, b"\0"))
    for piece in folder.iterdir():
        if piece.name.isdecimal():
            saved = piece.read_bytes()
            made[int(piece.name) : int(piece.name) + len(saved)] = saved
    return bytes(made[:size])
