"""Which custom nodes a ComfyUI loads: by the names in its folder, and by what it said at its start."""

from __future__ import annotations

import re
from collections.abc import Iterable

SHIPPED_NODES = frozenset({"websocket_image_save.py", "__init__.py"})
"""What is no node of the user's in that folder."""

ALWAYS_ON = ("websocket_image_save.py",)
"""What comes with ComfyUI there, and stays on with whatever nodes are on."""

_IMPORTED = re.compile(
    r"^(?:\[INFO\]\s*)?\s*\d+\.\d seconds(?P<failed> \(IMPORT FAILED\))?: (?:.*[/\\])?(?P<name>[^/\\]+)$"
)


def is_loaded(name: str, *, is_folder: bool) -> bool:
    """Whether ComfyUI loads what has this name in a folder of custom nodes (0.33.0, ``nodes.py``).

    >>> [is_loaded(name, is_folder=True) for name in ("A-Pack", ".hidden", "__pycache__", "off.disabled")]
    [True, True, False, False]
    >>> [is_loaded(name, is_folder=False) for name in ("one.py", "one.py.disabled", "README.md")]
    [True, False, False]
    """
    if name == "__pycache__" or name.endswith(".disabled"):
        return False
    return is_folder or name.endswith(".py")


def imported_nodes(lines: Iterable[str]) -> dict[str, bool]:
    r"""Return the custom nodes that ComfyUI's output lists with their import times, and whether each was imported.

    >>> imported_nodes(
    ...     [
    ...         "Import times for custom nodes:",
    ...         "   0.0 seconds: /c/custom_nodes/a b",
    ...         "[INFO]    1.2 seconds (IMPORT FAILED): C:\\\\c\\\\one.py",
    ...     ]
    ... )
    {'a b': True, 'one.py': False}
    """
    found = (_IMPORTED.match(line.rstrip()) for line in lines)
    return {each["name"]: each["failed"] is None for each in found if each is not None}
