"""The files below some folders, with their first and last bytes: what it takes to say what each of them is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioner.core.models import STATE_FOLDER

_SKIPPED_FOLDERS = frozenset({STATE_FOLDER, ".git", "__pycache__", ".cache"})
_MOST_LINKS_DEEP = 8  # folder links are followed as ComfyUI follows them, but not in circles


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file, as far as it was read; `problem` says why it was not."""

    path: Path
    size: int = 0  # bytes
    head: bytes = b""
    tail: bytes = b""
    problem: str | None = None


def files_below(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield every file below the folders once, links to folders followed; what cannot be listed is passed over."""
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        yield from _walk(folder, seen, 0)


def _walk(folder: Path, seen: set[tuple[int, int]], depth: int) -> Iterator[Path]:
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen and status.st_ino:
            return
        seen.add((status.st_dev, status.st_ino))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name in _SKIPPED_FOLDERS:
            continue
        try:
            is_folder, is_link = entry.is_dir(), entry.is_symlink()
        except OSError:
            continue
        if not is_folder:
            yield Path(entry.path)
        elif not is_link or depth < _MOST_LINKS_DEEP:
            yield from _walk(Path(entry.path), seen, depth + is_link)


def read_ends(path: Path, *, head_length: Callable[[bytes], int], tail_length: int) -> FoundFile:
    """Return a file's first and last bytes; a file that cannot be read says so.

    Parameters
    ----------
    path : Path
        What to read.
    head_length : callable
        Told the first eight bytes; says how many to read from the beginning.
    tail_length : int
        Bytes to read from the end.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return FoundFile(path=path, problem="it is no regular file")
        with path.open("rb") as stream:
            first = stream.read(8)
            head = first + stream.read(max(0, head_length(first) - len(first)))
            stream.seek(max(0, status.st_size - tail_length))
            return FoundFile(path=path, size=status.st_size, head=head, tail=stream.read(tail_length))
    except OSError as error:
        return FoundFile(path=path, problem=error.strerror or str(error))
