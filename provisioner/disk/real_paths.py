r"""What two resolved paths have to do with each other, and what a link is, on each system.

Pure: looks at text and numbers alone.  Where a disk may or may not tell upper from lower case, the answer is the one
that refuses or asks: two spellings of one folder count as two folders, and any spelling of our own records as ours.
"""

from __future__ import annotations

import stat
from pathlib import PurePath, PureWindowsPath
from typing import Literal

from provisioner.core.models import STATE_FOLDER

_OFFLINE, _RECALL_ON_OPEN, _RECALL_ON_DATA_ACCESS = 0x1000, 0x40000, 0x400000  # FILE_ATTRIBUTE_ of winnt.h
_DATALESS = 0x40000000  # SF_DATALESS of macOS, sys/stat.h
_LEADS_ELSEWHERE = 0x20000000  # the name-surrogate bit of a reparse tag: a link or a junction, not a file in a cloud


def is_link_status(mode: int, reparse_tag: int) -> bool:
    """Return whether a status is that of a link, or on Windows of a junction; the tag is 0 on other systems.

    https://learn.microsoft.com/windows/win32/fileio/reparse-point-tags
    """
    return stat.S_ISLNK(mode) or bool(reparse_tag & _LEADS_ELSEWHERE)


def is_only_in_cloud(attributes: int, flags: int = 0) -> bool:
    """Return whether a file is a placeholder: whoever reads it waits until a program has fetched its bytes.

    Parameters
    ----------
    attributes : int
        ``st_file_attributes`` of Windows; 0 elsewhere.
    flags : int
        ``st_flags`` of macOS; 0 elsewhere.

    Notes
    -----
    https://learn.microsoft.com/windows/win32/fileio/file-attribute-constants

    >>> is_only_in_cloud(0x400020), is_only_in_cloud(0x20), is_only_in_cloud(0, 0x40000000)
    (True, False, True)
    """
    return bool(attributes & (_OFFLINE | _RECALL_ON_OPEN | _RECALL_ON_DATA_ACCESS) or flags & _DATALESS)


def is_inside(root_real: PurePath, path_real: PurePath) -> bool:
    r"""Return whether one resolved path is the other or below it.

    Both must be resolved already; a path that still contains ``..`` is not inside anything.  Windows paths
    are compared as Windows does, without case, and with or without their ``\\?\`` prefix.
    """
    root, path = without_prefix(root_real), without_prefix(path_real)
    if ".." in root.parts or ".." in path.parts:
        return False
    return root == path or root in path.parents


def is_same_path(one_real: PurePath, other_real: PurePath) -> bool:
    """Return whether two resolved paths are one, compared as `is_inside` compares them."""
    return without_prefix(one_real) == without_prefix(other_real)


def is_among_records(relative: PurePath) -> bool:
    """Return whether a path below a root is among the records of klein-setup, however a system spells their folder.

    The folder beside an environment, ``.venv.klein-setup``, is one of them.  Windows and macOS know it in any case,
    Windows also with dots and spaces at the end and with the name of a stream.
    """
    return any(part.partition(":")[0].rstrip(". ").casefold().endswith(STATE_FOLDER) for part in relative.parts)


def way_of_link(link: PurePath, real: PurePath, *, root: PurePath) -> Literal["records", "stays", "leaves"]:
    """Return what a link below a root is: among our records, one that stays below the root, or one that leaves it.

    Parameters
    ----------
    link : PurePath
        The link, relative to the root.
    real : PurePath
        Where it leads, resolved.
    root : PurePath
        The root, resolved.
    """
    if is_among_records(link):
        return "records"
    if not is_inside(root, real) or is_same_path(root, real):
        return "leaves"
    return "leaves" if is_among_records(without_prefix(real).relative_to(without_prefix(root))) else "stays"


def without_prefix(path: PurePath) -> PurePath:
    r"""Return a path of Windows without ``\\?\`` or ``\\?\UNC\`` before it; every other path as it is.

    >>> print(without_prefix(PureWindowsPath(r"\\?\C:\a")), without_prefix(PureWindowsPath(r"\\?\UNC\nas\share\a")))
    C:\a \\nas\share\a
    """
    if not isinstance(path, PureWindowsPath):
        return path
    text = str(path)
    if text[:8].upper() == "\\\\?\\UNC\\":
        return PureWindowsPath("\\\\" + text[8:])
    has_drive = text[:4] == "\\\\?\\" and text[5:7] == ":\\"  # what else may stand there is a device
    return PureWindowsPath(text[4:]) if has_drive else path
