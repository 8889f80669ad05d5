"""The links that a person agreed to have followed, in a file of the user's own state folder.

An entry is about one link of one tree and the one place it led to: where it leads elsewhere, nobody agreed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from provisioner.core.errors import StorageError
from provisioner.core.json_reader import FieldError, Fields
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root

_SCHEMA_VERSION = 1
_MOST = 1000  # entries; the newest are kept


@dataclass(frozen=True, slots=True)
class AgreedLink:
    """One link that is followed; each path resolved, the link's own name aside."""

    tree: str  # what the user named
    link: str
    leads_to: str


def agreed_link(tree: Path, link: Path, real: Path) -> AgreedLink:
    """Return the entry of a link as it is now, the same however the tree is spelled."""
    found = (os.path.realpath(tree), str(Path(os.path.realpath(link.parent), link.name)), str(real))
    return AgreedLink(*map(os.path.normcase, found))


def agreed_links_path(folder: Path) -> Path:
    """Return the file, in the user's state folder; deleting it takes back every agreement."""
    return folder / "followed-links.json"


def read_agreed_links(folder: Path) -> tuple[AgreedLink, ...]:
    """Return what was agreed to, oldest first; nothing where no file of ours can be read."""
    document = Fields(read_object(agreed_links_path(folder)) or {})
    try:
        document.exactly("schema_version", _SCHEMA_VERSION)
        return tuple(
            AgreedLink(tree=each.text("tree"), link=each.text("link"), leads_to=each.text("leads_to"))
            for each in document.objects("links")
        )
    except FieldError:
        return ()


def keep_agreed_links(folder: Path, links: Iterable[AgreedLink]) -> None:
    """Remember links; a folder that cannot be written to is no error: they are asked about again."""
    known = read_agreed_links(folder)
    entries = tuple(dict.fromkeys((*known, *links)))[-_MOST:]
    if entries == known:
        return
    document = {"schema_version": _SCHEMA_VERSION, "links": [asdict(entry) for entry in entries]}
    with contextlib.suppress(StorageError):
        Root(folder, is_private=True).write_text(agreed_links_path(folder), json.dumps(document, indent=1) + "\n")
