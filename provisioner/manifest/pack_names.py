"""Which names a folder of custom nodes may have."""

from __future__ import annotations

import re

from provisioner.core.models import STATE_FOLDER
from provisioner.disk.safe_path import complaint_about_path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_TAKEN = frozenset({"__init__.py", "__pycache__", "websocket_image_save.py", STATE_FOLDER, "comfy-core"})


def complaint_about_pack(name: str) -> str | None:
    """Return what is wrong with a text as the name of a pack, or None.

    Its folder below ``custom_nodes`` has that name, on every system; a name with ``.disabled`` is one that ComfyUI
    skips.

    >>> complaint_about_pack("comfyui-kjnodes")
    >>> complaint_about_pack("../x")
    "climbs out with '..'"
    >>> complaint_about_pack("COM1")
    "uses 'COM1', which is a device on Windows"
    >>> complaint_about_pack("a/b"), complaint_about_pack("a.disabled"), complaint_about_pack("x" * 101)
    ('is not a plain name', 'is a name that ComfyUI skips', 'is longer than 100 characters')
    """
    complaint = complaint_about_path(name)
    if complaint is not None:
        return complaint
    if len(name) > 100:
        return "is longer than 100 characters"
    if not _NAME.fullmatch(name):
        return "is not a plain name"
    if name.casefold().endswith((".disabled", ".py")) or name.casefold() in _TAKEN:
        return "is a name that ComfyUI skips" if name.casefold().endswith(".disabled") else "is a name of ComfyUI's own"
    return None
