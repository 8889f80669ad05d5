"""Whether a relative path in a manifest means the same file on Linux, macOS and Windows.

Pure: looks at the text alone, never at a disk, and gives the same answer on every platform.  Links inside the
target are not its business; ``layout.py`` and the store look at those.
"""

from __future__ import annotations

import re
from pathlib import PurePath, PureWindowsPath

from provisioner.disk.real_paths import without_prefix

_MAX_PATH = 400  # characters; leaves room for a root before the classic 32,767 and 4,096 limits
_MAX_SEGMENT_BYTES = 200  # below the 255 of every common file system, with room for ".part.jsonl" and a date
_FORBIDDEN_ON_WINDOWS = frozenset('<>"|?*')
_SHORT_NAME = r"(?a)[^.]{1,8}~[0-9]+(\.[^.]{0,3})?"

# https://learn.microsoft.com/windows/win32/fileio/naming-a-file: reserved with any ending, in any case, and with
# the superscript digits that Windows folds to 1, 2 and 3.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"}
)


def complaint_about_path(text: str) -> str | None:
    """Return what is wrong with `text` as a relative path, or None when all three systems agree on it.

    Forward slashes separate; every segment must be a plain name.  Refused is whatever one of the systems reads
    differently: drive letters and streams (``C:``, ``a:b``), backslashes, device names, dots and spaces that
    Windows drops from the end, short names (``PROGRA~1``), characters nobody sees, names not in composed form.

    Parameters
    ----------
    text : str
        A path relative to some root, ``"diffusion_models/x.safetensors"``.

    Returns
    -------
    str or None
        A complaint that starts with a verb (``"climbs with '..'"``) and holds no control characters.

    Examples
    --------
    >>> complaint_about_path("vae/flux2-vae.safetensors")
    >>> complaint_about_path("../startup.sh")
    "climbs out with '..'"
    >>> complaint_about_path("vae/NUL.safetensors")
    "uses 'NUL.safetensors', which is a device on Windows"
    """
    whole = _complaint_about_whole(text)
    if whole is not None:
        return whole
    return next((each for each in map(_complaint_about_segment, text.split("/")) if each is not None), None)


def complaint_about_folder(folder: PurePath) -> str | None:
    r"""Return what is wrong with a folder that a user named, or None; only Windows has names that mean something else.

    ``C:models`` and ``\\nas\share`` are folders; devices are not, nor what only a path after ``\\?\`` can name, which
    ComfyUI could not open under the name that it gets.

    Examples
    --------
    >>> complaint_about_folder(PurePath("models"))
    >>> complaint_about_folder(PureWindowsPath("C:/x/a:b"))
    "uses 'a:b'; on Windows ':' names a drive or a hidden stream"
    >>> complaint_about_folder(PureWindowsPath(r"\\.\PhysicalDrive0"))
    'names a device'
    """
    if not isinstance(folder, PureWindowsPath):
        return None
    plain = without_prefix(folder)
    if str(plain).startswith(("\\\\.\\", "\\\\?\\")):
        return "names a device"
    names = plain.parts[1:] if plain.anchor else plain.parts
    if plain != folder and (only := next((name for name in names if name[-1] in ". "), None)) is not None:
        return f"uses '{only}', which only a path after \\\\?\\ can name"
    return next((said for said in map(_complaint_about_windows_name, names) if said is not None), None)


def _complaint_about_whole(text: str) -> str | None:
    if not text:
        return "is empty"
    if len(text) > _MAX_PATH:
        return f"is {len(text)} characters long; {_MAX_PATH} are allowed"
    unseen = _complaint_about_characters(text)
    if unseen is not None:
        return unseen
    if "\\" in text:
        return "has a backslash; separate folders with '/'"
    if text.startswith("/"):
        return "is absolute"
    if len(text) > 1 and text[1] == ":" and text[0].isalpha():
        return "starts with a drive letter"
    return None


def _complaint_about_characters(text: str) -> str | None:
    if not text.isprintable():  # control, format, surrogate, unassigned, and every space but the plain one
        return "has a control or invisible character"
    if text.isascii():
        return None
    import unicodedata  # a megabyte of tables, for the few names that are not ASCII

    if not unicodedata.is_normalized("NFC", text):
        return "is not in composed Unicode form (NFC), which macOS reads as another spelling of the same name"
    return None


def _complaint_about_segment(segment: str) -> str | None:
    if segment == "":
        return "has an empty folder name ('//', or '/' at the end)"
    if segment == ".":
        return "has a '.' as a folder name"
    if segment == "..":
        return "climbs out with '..'"
    if segment[-1] in ". " or segment[0] == " ":
        return f"uses '{segment}'; Windows drops dots and spaces there"
    said = _complaint_about_windows_name(segment)
    if said is not None:
        return said
    if "~" in segment and re.fullmatch(_SHORT_NAME, segment):
        return f"uses '{segment}', which Windows may read as the short form of another name"
    if len(segment.encode("utf-8")) > _MAX_SEGMENT_BYTES:
        return f"has a name of {len(segment.encode('utf-8'))} bytes; {_MAX_SEGMENT_BYTES} are allowed"
    return None


def _complaint_about_windows_name(segment: str) -> str | None:
    if ":" in segment:
        return f"uses '{segment}'; on Windows ':' names a drive or a hidden stream"
    if not _FORBIDDEN_ON_WINDOWS.isdisjoint(segment):
        return f"uses '{segment}'; Windows allows none of <>\"|?* in a name"
    if segment.split(".", 1)[0].rstrip().casefold() in _DEVICES:
        return f"uses '{segment}', which is a device on Windows"
    return None
