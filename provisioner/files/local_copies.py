"""Finds files of the right size in folders: other models folders, and trees the user names with ``--look-in``.

A size is only a reason to read the file; what it is, its digest says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from provisioner.core.models import STATE_FOLDER, Artifact, LocalCopy, Variant

_UNFINISHED = (".part", ".partial", ".incomplete", ".downloading", ".crdownload", ".aria2", ".tmp", ".bad")
_SKIPPED_FOLDERS = {".git", "__pycache__", "node_modules", ".venv", "venv", "python_embeded"}

_Hit = tuple[Path, os.stat_result]


class FilesInFolders:
    """Looks once through some folders and answers from memory; again when a file it remembers is not what it was.

    Backups are looked at too: a file under a wrong name may be the right one for another.
    """

    def __init__(self, folders: Sequence[Path], origin: str) -> None:
        self._folders = folders
        self._origin = origin
        self._by_size: dict[int, list[_Hit]] | None = None

    def find(self, artifact: Artifact, contents: Sequence[Variant]) -> tuple[LocalCopy, ...]:
        """Return the files whose size is that of one of the contents, same name first; none is verified."""
        known = self._by_size
        if known is None or any(not _is_as_it_was(*hit) for each in contents for hit in known.get(each.size, [])):
            known = self._by_size = self._index()
        copies = [
            LocalCopy(
                artifact_id=artifact.id,
                path=path,
                origin="the backups" if _is_backup(path) else self._origin,
                device=status.st_dev,
                size=content.size,
                sha256=content.sha256,
            )
            for content in contents
            for path, status in known.get(content.size, [])
            # A backup of this very name was read when it was made, and was something else.
            if not (_is_backup(path) and path.name.startswith(artifact.name))
        ]
        likeliest = sorted(copies, key=lambda copy: (_is_backup(copy.path), copy.path.name != artifact.name, copy.path))
        return tuple(likeliest)

    def _index(self) -> dict[int, list[_Hit]]:
        index: dict[int, list[_Hit]] = {}
        seen: set[tuple[int, int]] = set()
        for path, status in _files(self._folders):
            if (status.st_dev, status.st_ino) not in seen or status.st_ino == 0:  # 0: a file system without numbers
                seen.add((status.st_dev, status.st_ino))
                index.setdefault(status.st_size, []).append((path, status))
        return index


def _files(folders: Sequence[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every file worth a look; what cannot be read is passed over, links to folders are not followed."""
    for folder in folders:
        for where, subfolders, names in os.walk(folder, onerror=lambda error: None):
            subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS)
            if Path(where).name == STATE_FOLDER:
                subfolders[:], names = [name for name in subfolders if name == "aside"], []
            for name in sorted(names):
                if name.endswith(_UNFINISHED):
                    continue
                path = Path(where, name)
                try:
                    status = path.stat()
                except (OSError, ValueError):
                    continue
                if stat.S_ISREG(status.st_mode) and status.st_size > 0:
                    yield path, status


def _is_backup(path: Path) -> bool:
    return STATE_FOLDER in path.parts


def _is_as_it_was(path: Path, before: os.stat_result) -> bool:
    """Whether a file is the one that was seen: where two of one size change places, neither goes away."""
    try:
        now = path.stat()
    except OSError:
        return False
    return (now.st_size, now.st_mtime_ns, now.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
