"""Read the table of known failures that comes with the program: once, and only when something has to be explained."""

from __future__ import annotations

from functools import cache

from provisioner.comfyui.server.catalogue import Catalogue, parse_catalogue
from provisioner.manifest.shipped import read_table_text


@cache
def known_failures() -> Catalogue:
    """Return the shipped catalogue.

    Raises
    ------
    ManifestError
        The file is missing or was changed into something that cannot be read.
    """
    text, file = read_table_text("failures")
    return parse_catalogue(text, file=file)
