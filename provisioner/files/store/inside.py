"""Whether the folders of a destination can be used: reached as its root allows, and folders indeed."""

from __future__ import annotations

import stat
from pathlib import Path

from provisioner.core.errors import NotWritableError, UnreadableError
from provisioner.core.models import Destination
from provisioner.disk.os_errors import broken_link
from provisioner.disk.root import Root


def check_inside(destination: Destination, root: Root) -> None:
    """Raise for a destination whose folders cannot be used, as they are now; what is not there yet is fine.

    The file itself may be a link: one at its path is replaced, never written through.

    Parameters
    ----------
    destination : Destination
        Where a file is, or is to go.
    root : Root
        Its root, which says which links may be followed.

    Raises
    ------
    PathOutsideRootError
        A folder leads out of the root through a link that may not be followed, or the path contains ``..``.
    UnreadableError
        A link on the way is broken or circular.
    NotWritableError
        A file is where a folder is needed.
    """
    for folder in dict.fromkeys((destination.path.parent, destination.part_folder)):
        step = root.folder
        for part in ("", *root.relative(folder).parts):
            step = step / part
            if not _is_there(step):
                break
        root.check(folder / "file")


def _is_there(step: Path) -> bool:
    """Return whether a folder exists; raise where something else is in its place."""
    try:
        mode = step.stat().st_mode  # follows links, and so junctions
    except FileNotFoundError:
        try:
            leads_to = step.readlink()
        except OSError:  # nothing is there, or a folder that another thread has just made
            return step.is_dir()
        raise broken_link(step, leads_to) from None
    except NotADirectoryError as error:
        raise NotWritableError(f"{step.parent} is a file where a folder is needed.", path=str(step.parent)) from error
    except OSError as error:  # a circle of links, or no permission to look
        raise UnreadableError(
            f"{step} cannot be followed: {error.strerror}.", hint="Correct the link or its permissions.", path=str(step)
        ) from error
    if not stat.S_ISDIR(mode):
        raise NotWritableError(f"{step} is a file where a folder is needed.", hint="Move it away.", path=str(step))
    return True
