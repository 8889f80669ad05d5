"""What a repository holds beyond what we brought into it, read from git's own files: the work somebody did in it.

git is not asked: it need not be installed any more, and the tree's own settings could start programs.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from provisioner.comfyui.checkout.checkout_receipt import names_in
from provisioner.comfyui.checkout_models import CheckoutReceipt
from provisioner.disk.root import Root

# What git puts there when we make a checkout and move it; what a person does adds other names.
_BROUGHT = frozenset(
    {"HEAD", "FETCH_HEAD", "config", "gc.log", "index", "info", "logs", "objects", "packed-refs", "refs"}
)
_BROUGHT = _BROUGHT | {"branches", "description", "shallow"}
_OUR_REFS = "refs/klein-setup/"
_BEFORE = "refs/klein-setup/before"
_SETTINGS = re.compile(r'\[(core|extensions|remote "origin")\]', re.IGNORECASE)
_NO_COMMIT = "0" * 40
_COMMIT = b"commit "
_OBJECT_START = 64  # bytes of an object that are enough for its kind
_LONGEST = 64 * 1024 * 1024  # bytes


def why_not_ours(git: Path, receipt: CheckoutReceipt) -> str | None:
    """Return what a ``.git`` holds that we did not put there, as the end of a sentence; None where that is nothing."""
    if git.is_symlink() or not git.is_dir():
        return "is not what we made"
    known = {receipt.commit, *receipt.previous_commits}
    try:
        if not any(git.iterdir()):
            return None
        head = _text(git / "HEAD").strip()
        if head not in known:
            return "holds a branch or a commit of yours"
        for name, commit in _refs(git):
            if not name.startswith(_OUR_REFS) or (name == _BEFORE and commit not in known):
                return f"holds {_what(name)} of yours ({name})"
        if _logged(git / "logs") - known - {_NO_COMMIT}:
            return "holds a commit of yours, which its log (git reflog) names"
        if set(_loose_commits(git / "objects")) - known:
            return "holds a commit of yours that no name leads to any more (git fsck names it)"
        brought = {(each.path, each.id) for each in receipt.files}
        if any(entry not in brought for entry in _staged(git / "index")):
            return "holds changes of yours that were added with git add"
        others = sorted(each.name for each in git.iterdir() if each.name not in _BROUGHT and _is_filled(each))
        if others:
            return f"holds something of yours ({others[0]})"
        settings = _text(git / "config") if (git / "config").exists() else ""
        if any(not _SETTINGS.match(line.strip()) for line in settings.splitlines() if "[" in line):
            return "holds settings of yours"
    except (OSError, ValueError, struct.error) as error:
        return f"cannot be read ({error})"
    return None


def remove_repository(root: Root, git: Path) -> None:
    """Remove a repository that `why_not_ours` calls ours, in an order in which it says so of every half, too."""
    for name in sorted(names_in(git) or (), key=lambda name: (name == "HEAD", name == "config")):
        root.remove_tree(git / name)
    root.remove_folder(git)


def _what(name: str) -> str:
    kinds = {"heads": "a branch", "tags": "a tag", "stash": "a stash", "remotes": "what you fetched"}
    return kinds.get(name.split("/")[1], "a name")


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(_LONGEST).decode("utf-8", "replace")


def _is_filled(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir() or any(path.iterdir())


def _refs(git: Path) -> Iterator[tuple[str, str]]:
    """Yield every name in a repository with what it means."""
    for path in sorted((git / "refs").rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(git).as_posix(), _text(path).strip()
    if (git / "packed-refs").exists():
        for line in _text(git / "packed-refs").splitlines():
            commit, _, name = line.partition(" ")
            if name and commit[0] not in "#^":
                yield name, commit


def _logged(logs: Path) -> set[str]:
    """Return every commit that a log of a repository names."""
    lines = [line for path in logs.rglob("*") if path.is_file() for line in _text(path).splitlines()]
    return {commit for line in lines for commit in line.split(" ", 2)[:2]}


def _loose_commits(objects: Path) -> Iterator[str]:
    """Yield every commit that lies in a file of its own: made here, or one of the few of a small fetch.

    Raises
    ------
    ValueError
        An object cannot be read.
    """
    for path in objects.glob("[0-9a-f][0-9a-f]/*"):
        with path.open("rb") as stream:
            start = stream.read(_OBJECT_START)
        try:
            kind = zlib.decompressobj().decompress(start, len(_COMMIT))
        except zlib.error as error:
            raise ValueError(f"its object {path.parent.name}{path.name}: {error}") from error
        if kind == _COMMIT:
            yield path.parent.name + path.name


def _staged(index: Path) -> Iterator[tuple[str, str]]:
    """Yield path and id of every entry of an index; raises ValueError for one that git writes only when told to."""
    if not index.exists():
        return
    data = index.read_bytes()
    signature, version, count = struct.unpack_from(">4sII", data)
    if signature != b"DIRC" or version not in (2, 3):
        raise ValueError(f"its index has version {version}")
    at = 12
    for _ in range(count):
        (flags,) = struct.unpack_from(">H", data, at + 60)
        start = at + (64 if version == 3 and flags & 0x4000 else 62)
        end = data.index(b"\0", start)
        yield data[start:end].decode("utf-8", "surrogateescape"), data[at + 40 : at + 60].hex()
        at += (end - at + 8) // 8 * 8
