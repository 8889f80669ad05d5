"""Where snapshots lie: ``snapshots`` in the user's own data folder, each as JSON, its manifest and a small image."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from provisioner.core.errors import UnreadableError, UsageError
from provisioner.core.suggestions import did_you_mean
from provisioner.disk.read_json import read_at_most
from provisioner.disk.root import Root
from provisioner.snapshot.setup_snapshot import (
    OnShelf,
    SetupSnapshot,
    is_snapshot_name,
    parse_snapshot_text,
    snapshot_text,
    superfluous,
)

_LARGEST_BYTES = 8 * 1024 * 1024
_RECORD, _MANIFEST, _IMAGE = ".json", ".yaml", ".jpg"
_BESIDE = (_MANIFEST, _IMAGE)
_STRAY_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class SnapshotShelf:
    """The snapshots of this user.

    Parameters
    ----------
    folder : Path
        Where they lie.
    """

    folder: Path

    def all(self) -> tuple[OnShelf, ...]:
        """Return every snapshot, the oldest first; one that cannot be read is there with the reason."""
        return self._all(self._files())

    def _all(self, files: Mapping[Path, os.stat_result]) -> tuple[OnShelf, ...]:
        sizes: dict[str, int] = {}
        for path, status in files.items():
            sizes[path.stem] = sizes.get(path.stem, 0) + status.st_size
        names = sorted(path.stem for path in files if path.suffix == _RECORD and is_snapshot_name(path.stem))
        return tuple(self._read(name, sizes[name]) for name in names)

    def named(self, name: str) -> SetupSnapshot:
        """Return the snapshot of that name.

        Raises
        ------
        UsageError
            There is none.
        UnreadableError
            It is damaged.
        """
        found = self._read(name, 0) if is_snapshot_name(name) and self._path(name, _RECORD).exists() else None
        if found is None:
            names = [each.name for each in self.all()]
            raise UsageError(
                f"There is no snapshot called {name!r}.{did_you_mean(name, names)}",
                hint="`klein-setup snapshot list` shows the names.",
            )
        if found.snapshot is None:
            path = self._path(name, _RECORD)
            raise UnreadableError(
                f"The snapshot {name} cannot be used: {found.problem}.",
                hint=f"Choose another one from `klein-setup snapshot list`; this one can be deleted: {path}.",
                path=str(path),
            )
        return found.snapshot

    def manifest(self, name: str) -> Path:
        """Return where the manifest of a snapshot lies."""
        return self._path(name, _MANIFEST)

    def image(self, name: str) -> Path | None:
        """Return where the small image of a snapshot lies; None where it has none."""
        path = self._path(name, _IMAGE)
        return path if path.is_file() else None

    def newest(self, like: SetupSnapshot) -> SetupSnapshot | None:
        """Return the last snapshot of the same folder."""
        found = (each.snapshot for each in reversed(self.all()))
        return next((each for each in found if each is not None and each.is_about(like.kind, like.target)), None)

    def keep(self, snapshot: SetupSnapshot, *, manifest: bytes, image: bytes | None) -> SetupSnapshot:
        """Keep a snapshot under a free name, and let the oldest go where there are too many; return it as it is kept.

        Raises
        ------
        StorageError
            The folder cannot be written to.
        """
        root = Root(self.folder, is_private=True)
        root.make_folder()
        kept = replace(snapshot, name=self._free_name(snapshot.name))
        root.write_bytes(self._path(kept.name, _MANIFEST), manifest, is_name_flushed=False)
        if image is not None:
            root.write_bytes(self._path(kept.name, _IMAGE), image, is_name_flushed=False)
        root.write_text(self._path(kept.name, _RECORD), snapshot_text(kept))  # the last: from here on it is there
        files = self._files()
        for name in superfluous(self._all(files)):
            self.remove(name)
        _remove_strays(root, files)
        return kept

    def remove(self, name: str) -> None:
        """Remove a snapshot; raises StorageError."""
        root = Root(self.folder, is_private=True)
        for ending in (_RECORD, *_BESIDE):
            path = self._path(name, ending)
            if os.path.lexists(path):
                root.remove(path)

    def _files(self) -> dict[Path, os.stat_result]:
        try:
            with os.scandir(self.folder) as entries:
                return {Path(each.path): each.stat(follow_symlinks=False) for each in entries}
        except OSError:
            return {}

    def _free_name(self, name: str) -> str:
        tried, number = name, 1
        while self._path(tried, _MANIFEST).exists() or self._path(tried, _RECORD).exists():
            number += 1
            tried = f"{name}-{number}"
        return tried

    def _read(self, name: str, size: int) -> OnShelf:
        path = self._path(name, _RECORD)
        try:
            with path.open("rb") as stream:
                data = read_at_most(stream, _LARGEST_BYTES)
        except OSError as error:
            return OnShelf(name=name, size=size, snapshot=None, problem=error.strerror or str(error))
        found = parse_snapshot_text(data, name=name) if len(data) <= _LARGEST_BYTES else "it is too large"
        if isinstance(found, str):
            return OnShelf(name=name, size=size, snapshot=None, problem=found)
        return OnShelf(name=name, size=size, snapshot=found)

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}{ending}"


def _remove_strays(root: Root, files: Mapping[Path, os.stat_result]) -> None:
    """Remove what a run that was killed left without its record; another run may be about to write its own."""
    for path, status in files.items():
        is_left = path.suffix in _BESIDE and path.with_suffix(_RECORD) not in files and is_snapshot_name(path.stem)
        if is_left and time.time() - status.st_mtime > _STRAY_AFTER_S:
            root.remove(path)
    root.remove_abandoned(path for path in files if path.suffix == ".tmp")


def read_kept(path: Path) -> bytes:
    """Return what lies beside a snapshot; raises UnreadableError."""
    try:
        with path.open("rb") as stream:
            return read_at_most(stream, _LARGEST_BYTES)
    except OSError as error:
        raise UnreadableError(
            f"{path}, which belongs to a snapshot, cannot be read: {error.strerror or error}.",
            hint="Choose another snapshot from `klein-setup snapshot list`.",
            path=str(path),
        ) from error
