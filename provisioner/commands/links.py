"""The links of one run's target: which lead out of the folder the user named, and whether they may be followed.

An ``extra_model_paths.yaml`` that lies in the folder and names another one is such a link, too: it may be a stranger's.

Reading follows every link, as ComfyUI does.  What is written, moved or deleted goes through one that leads out only
where ``--follow-links`` was given, or a person agreed: then that link, leading to that place, is remembered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.core.models import FolderLink, LinkConsent, MoveFile
from provisioner.plan.steps import (
    FILE_STEPS,
    GenerateImage,
    GetComfyUI,
    InstallNodePack,
    InstallPackages,
    KeepComfyUI,
    KeepEnvironment,
    MakeEnvironment,
    MoveNodePack,
    Remove,
    RepairEnvironment,
    StartComfyUI,
    Step,
    UpdateComfyUI,
)

if TYPE_CHECKING:
    from provisioner.disk.agreed_links import AgreedLink
    from provisioner.disk.root import Root


class FolderLinks:
    """The links of a run.

    Parameters
    ----------
    follows_all : bool
        ``--follow-links`` was given.
    remembers : bool
        Whether what a person agrees to is kept for later runs.
    """

    def __init__(self, *, follows_all: bool, remembers: bool) -> None:
        self.named: Path | None = None  # the folder the user named; known once the target is
        self.config: Path | None = None  # an extra_model_paths.yaml in it, which leads elsewhere as a link does
        self._follows_all = follows_all
        self._remembers = remembers

    @cached_property
    def _agreed(self) -> set[AgreedLink]:
        from provisioner.disk.agreed_links import read_agreed_links
        from provisioner.disk.locations import state_folder

        return set(read_agreed_links(state_folder()))

    def root(self, folder: Path) -> Root:
        """Return what changes anything below a folder; through links only as they may be followed."""
        from provisioner.disk.root import Root

        return Root(folder, named=self.named, follows=lambda link, real: self._consent(link, real) != "no")

    def agree(self, links: Iterable[FolderLink]) -> None:
        """Follow these links from now on, in later runs as well."""
        from provisioner.disk.agreed_links import keep_agreed_links
        from provisioner.disk.locations import state_folder

        entries = [self._entry(link.path, link.real) for link in links]
        self._agreed.update(entries)
        if self._remembers:
            keep_agreed_links(state_folder(), entries)

    def on_the_way_of(self, steps: Iterable[Step]) -> tuple[FolderLink, ...]:
        """Return the links that lead out, and behind which one of these steps changes something.

        Raises
        ------
        PathOutsideRootError
            One of them is among the records of klein-setup.
        StorageError
            The system does not say.
        """
        from provisioner.disk.root import links_leading_out

        chosen = tuple(steps)
        found: dict[Path, Path] = {}
        for folder, path in dict.fromkeys(way for step in chosen for way in self._ways(step)):
            found.update(links_leading_out(folder, path))
        leading = dict.fromkeys((*found.items(), *(way for step in chosen for way in self._by_config(step))))
        return self._judged(leading)

    def on_the_way_into(self, folder: Path) -> tuple[FolderLink, ...]:
        """Return the links that lead out on the way to what lies in a folder; raises as `on_the_way_of`."""
        from provisioner.disk.root import links_leading_out

        if self.named is None or self.named not in folder.parents:
            return ()
        return self._judged(links_leading_out(self.named, folder / "file"))

    def _judged(self, leading: Iterable[tuple[Path, Path]]) -> tuple[FolderLink, ...]:
        return tuple(FolderLink(path=link, real=real, consent=self._consent(link, real)) for link, real in leading)

    def _by_config(self, step: Step) -> Iterator[tuple[Path, Path]]:
        """Yield the file that names a folder elsewhere, and that folder, if a step changes something there."""
        if self.config is None or self.named is None:
            return
        if isinstance(step, FILE_STEPS):
            folder = step.destination.root
        elif isinstance(step, Remove) and step.what == "file":
            folder = step.path.parent
        else:
            return
        if self.named not in (folder, *folder.parents):
            yield self.config, Path(os.path.realpath(folder))

    def _ways(self, step: Step) -> Iterator[tuple[Path, Path]]:
        """Yield each folder and path between which a step follows links; what the user named itself is no link."""
        places: list[Path] = []
        match step:
            case KeepComfyUI() | KeepEnvironment() | StartComfyUI() | GenerateImage():
                pass
            case Remove(what="file" | "environment"):
                places.append(step.path)  # a link with its name is removed itself
            case Remove():
                places.append(step.path / "file")
            case GetComfyUI() | UpdateComfyUI() | MoveNodePack() | InstallNodePack():
                places.append(step.folder / "file")
            case MakeEnvironment() | RepairEnvironment() | InstallPackages():
                places.append(step.where / "file")
            case _:
                destination = step.destination
                yield destination.root, destination.path
                yield destination.root, destination.part_folder / "file"
                places += [destination.root / "file", *([step.copy.path] if isinstance(step, MoveFile) else [])]
        yield from ((self.named, each) for each in places if self.named is not None and self.named in each.parents)

    def _consent(self, link: Path, real: Path) -> LinkConsent:
        if self._follows_all:
            return "option"
        return "remembered" if self._entry(link, real) in self._agreed else "no"

    def _entry(self, link: Path, real: Path) -> AgreedLink:
        from provisioner.disk.agreed_links import agreed_link

        return agreed_link(self.named or link.parent, link, real)


def named_folder(given: Path, models: Path) -> Path:
    """Return the folder a user named, links unresolved; the models folder where that is not below it."""
    folder = Path(os.path.abspath(given))  # noqa: PTH100 - not resolve(), which would follow the links
    return folder if folder in models.parents else models
