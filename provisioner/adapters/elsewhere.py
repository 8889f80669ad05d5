"""Finds files of the right size in folders: other models folders, and trees the user names with ``--look-in``.

A size is only a reason to read the file; what it is, its digest says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from provisioner.models import STATE_FOLDER, Artifact, LocalCopy, Variant

_UNFINISHED = (".part", ".partial", ".incomplete", ".downloading", ".crdownload", ".aria2", ".tmp", ".bad")
_SKIPPED_FOLDERS = {STATE_FOLDER, ".git", "__pycache__", "node_modules", ".venv", "venv", "python_embeded"}


class FilesInFolders:
    """Looks once through some folders and answers from memory."""

    def __init__(self, folders: Sequence[Path], origin: str) -> None:
        self._folders = folders
        self._origin = origin
        self._by_size: dict[int, list[tuple[Path, int]]] | None = None

    def find(self, artifact: Artifact, contents: Sequence[Variant]) -> tuple[LocalCopy, ...]:
        """Return the files whose size is that of one of the contents, same name first; none is proven."""
        if self._by_size is None:
            self._by_size = self._index()
        copies = [
            LocalCopy(
                artifact_id=artifact.id,
                path=path,
                origin=self._origin,
                device=device,
                size=content.size,
                sha256=content.sha256,
            )
            for content in contents
            for path, device in self._by_size.get(content.size, [])
        ]
        return tuple(sorted(copies, key=lambda copy: (copy.path.name != artifact.name, str(copy.path))))

    def _index(self) -> dict[int, list[tuple[Path, int]]]:
        index: dict[int, list[tuple[Path, int]]] = {}
        seen: set[tuple[int, int]] = set()
        for path, status in _files(self._folders):
            if (status.st_dev, status.st_ino) not in seen or status.st_ino == 0:
                seen.add((status.st_dev, status.st_ino))
                index.setdefault(status.st_size, []).append((path, status.st_dev))
        return index


def _files(folders: Sequence[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every file worth a look; what cannot be read is passed over, links to folders are not followed."""
    for folder in folders:
        for where, subfolders, names in os.walk(folder, onerror=lambda error: None):
            subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS)
            for name in sorted(names):
                if name.endswith(_UNFINISHED):
                    continue
                path = Path(where, name)
                try:
                    status = path.stat()
                except OSError:
                    continue
                if path.is_file() and status.st_size > 0:
                    yield path, status
