"""A root on a real disk on which single calls fail, or are not to be had, as on other file systems and systems."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from provisioner.disk.root import Place, Root

Move = Callable[[Path, Path], None]


class FaultyRoot(Root):
    """A root with other system calls.

    Parameters
    ----------
    move : callable
        Renames a file or a folder; `move_records` the small files that are written beside their name.
    link, symlink : callable
        Make a hard link and a link; raise OSError.
    has_links, has_clones : bool
        Whether the file system has hard links, and can share blocks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        move: Move | None = None,
        move_records: Move | None = None,
        link: Callable[..., None] = os.link,
        symlink: Callable[..., None] = os.symlink,
        has_links: bool = True,
        has_clones: bool = False,
        platform: str = sys.platform,
        pauses_s: Sequence[float] = (),
    ) -> None:
        super().__init__(folder, platform=platform, pauses_s=pauses_s)
        self._move, self._move_records, self._link, self._symlink = move, move_records, link, symlink
        self._has_links, self._has_clones = has_links, has_clones

    def _rename(self, old: Place, new: Place) -> None:
        is_record = Path(old.name).name.endswith(".tmp")
        move = self._move_records if is_record else self._move
        if move is None:
            super()._rename(old, new)
        else:
            move(old.folder_path / Path(old.name).name, new.folder_path / Path(new.name).name)

    def symlink(self, path: Path, target: Path | str, **_: object) -> None:
        super().symlink(path, target, link=self._symlink)

    def hard_link(self, source: Path, path: Path, **_: object) -> bool:
        return self._has_links and super().hard_link(source, path, link=self._link)

    def reflink(self, source: Path, path: Path, **_: object) -> bool:
        return self._has_clones and super().reflink(source, path)


def faulty(**calls: object) -> Callable[[Path], Root]:
    """Return what makes such roots."""
    return partial(FaultyRoot, **calls)  # type: ignore[arg-type]
