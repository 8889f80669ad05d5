"""A page of a package index: which wheels a project has, each with its SHA-256."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from urllib.parse import unquote, urljoin, urlsplit

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from provisioner.core.json_reader import as_dict, as_list, parse_object

_LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*(["'])(.*?)\1""", re.IGNORECASE | re.DOTALL)
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedWheel:
    """A wheel that an index offers."""

    url: str
    name: str
    version: str
    sha256: str


def newest_wheel(page: bytes, url: str) -> IndexedWheel | None:
    """Return the newest released wheel with a digest; None where there is none.

    Parameters
    ----------
    page : bytes
        The project's page, in HTML (PEP 503) or JSON (PEP 691).
    url : str
        Its address, which links are relative to.
    """
    found = parse_object(page)
    rows = _of_html(page) if found is None else _of_json(found)
    wheels = []
    for link, sha256 in rows:
        name = unquote(urlsplit(link).path).rsplit("/", 1)[-1]
        try:
            version = parse_wheel_filename(name)[1]
        except InvalidWheelFilename:
            continue
        if _SHA256.fullmatch(sha256) and not version.is_prerelease:
            address = urljoin(url, link).partition("#")[0]
            wheels.append((version, IndexedWheel(url=address, name=name, version=str(version), sha256=sha256)))
    return max(wheels, key=lambda each: each[0])[1] if wheels else None


def _of_json(page: dict[str, object]) -> list[tuple[str, str]]:
    files = [as_dict(each) for each in as_list(page.get("files"))]
    return [
        (str(each.get("url", "")), str(as_dict(each.get("hashes")).get("sha256", "")))
        for each in files
        if not each.get("yanked")
    ]


def _of_html(page: bytes) -> list[tuple[str, str]]:
    links = [unescape(each[2]) for each in _LINK.finditer(page.decode("utf-8", "replace"))]
    return [(each, each.partition("#sha256=")[2]) for each in links]
