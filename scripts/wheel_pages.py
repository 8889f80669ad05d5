"""Reads pages of package indexes (PEP 503, 691, 700) and the metadata beside wheels (PEP 658); fetches no wheel.

What it takes from a wheel is what its file name says: release, build, Pythons and systems.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import unquote, urljoin, urlsplit

import requests
from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from provisioner.core.errors import (  # noqa: E402
    AccessError,
    RateLimitedError,
    ServerError,
    UnauthorizedError,
    UnreachableError,
)
from provisioner.core.redact import redact  # noqa: E402
from provisioner.torch.build_table import PlatformName, Version  # noqa: E402

if TYPE_CHECKING:
    from packaging.tags import Tag

PLATFORMS: tuple[PlatformName, ...] = get_args(PlatformName)
TIMEOUT_S = (15.0, 60.0)  # to connect, and between two bytes
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"

# --- wheels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wheel:
    """One wheel as a page of an index lists it."""

    project: str
    version: Version
    local: str | None  # "cu130"
    tags: frozenset[Tag]
    url: str
    has_metadata: bool = False  # PEP 658
    size: int | None = None  # bytes; HTML pages do not tell
    uploaded: str | None = None  # PEP 700
    sha256: str | None = None  # what the page says, 64 lower-case hex digits

    @property
    def file_name(self) -> str:
        """The wheel's own name."""
        return _name_in(self.url)

    @property
    def platforms(self) -> frozenset[PlatformName]:
        """The systems of the table that it is for."""
        return frozenset(name for name in map(_platform, self.tags) if name is not None)

    def serves(self, python: str) -> bool:
        """Return whether a Python such as "3.13" or "3.13t" takes it.

        >>> wheel_of("torch-2.9.0-cp313-cp313t-win_amd64.whl", "").serves("3.13t")
        True
        >>> wheel_of("torch-2.9.0-cp310-abi3-win_amd64.whl", "").serves("3.13")
        True
        """
        minor = int(python.removeprefix("3.").removesuffix("t"))
        is_free = python.endswith("t")
        for tag in self.tags:
            if tag.interpreter == "py3":
                return True
            match = re.fullmatch(r"cp3([0-9]+)", tag.interpreter)
            if match is None:
                continue
            is_exact = int(match[1]) == minor and (tag.abi.endswith("t") == is_free)
            if is_exact or (tag.abi == "abi3" and int(match[1]) <= minor and not is_free):
                return True
        return False


def wheel_of(name: str, url: str, **more: Any) -> Wheel | None:  # noqa: ANN401 - what a page says beside the name
    """Return the wheel of a file name; None for what is no wheel, and for versions that are no plain release."""
    try:
        project, version, _, tags = parse_wheel_filename(name)
    except (InvalidWheelFilename, InvalidVersion):
        return None
    if version.is_prerelease or version.is_postrelease or version.epoch:
        return None
    return Wheel(str(project), version.release, version.local, tags, url, **more)


def _platform(tag: Tag) -> PlatformName | None:
    for name in PLATFORMS:
        system, _, machine = name.partition("_")
        words = ("linux", "manylinux") if system == "linux" else (system,)
        if tag.platform == name or (tag.platform.startswith(words) and tag.platform.endswith(f"_{machine}")):
            return name
    return None


def dotted(version: Version) -> str:
    """Return a version as a text."""
    return ".".join(map(str, version))


# --- pages ----------------------------------------------------------------------------------------


class _Anchors(HTMLParser):
    """The links of a PEP 503 page, each with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take one element."""
        if tag == "a":
            self.found.append({name: value or "" for name, value in attrs})


def parse_html_page(text: str, base: str) -> tuple[Wheel, ...]:
    """Return the wheels of a PEP 503 page.

    >>> page = '<a href="/whl/cu130/torch-2.9.0%2Bcu130-cp312-cp312-win_amd64.whl#sha256=0" data-core-metadata>x</a>'
    >>> [(each.version, each.local, each.has_metadata) for each in parse_html_page(page, "https://example.org/")]
    [((2, 9, 0), 'cu130', True)]
    """
    anchors = _Anchors()
    anchors.feed(text)
    found: list[Wheel | None] = []
    for each in anchors.found:
        if "data-yanked" in each or "href" not in each:
            continue
        url = urljoin(base, each["href"])
        has_metadata = any(
            each.get(key, "false") != "false" for key in ("data-core-metadata", "data-dist-info-metadata")
        )
        address, _, fragment = url.partition("#")
        algorithm, _, digest = fragment.partition("=")
        sha256 = _digest(digest) if algorithm == "sha256" else None
        found.append(wheel_of(_name_in(url), address, has_metadata=has_metadata, sha256=sha256))
    return tuple(each for each in found if each is not None)


def parse_json_page(page: Mapping[str, Any], base: str) -> tuple[Wheel, ...]:
    """Return the wheels of a PEP 691 page; its keys as PEP 700 and PEP 714 extend them.

    Raises
    ------
    KeyError, TypeError, AttributeError
        It is no such page.
    """
    found: list[Wheel | None] = []
    for each in page["files"]:
        if each.get("yanked", False) is not False:
            continue
        size, uploaded = each.get("size"), each.get("upload-time")
        wheel = wheel_of(
            each["filename"],
            urljoin(base, each["url"]),
            has_metadata=bool(each.get("core-metadata", each.get("data-dist-info-metadata", False))),
            size=size if isinstance(size, int) else None,
            uploaded=uploaded[:10] if isinstance(uploaded, str) else None,
            sha256=_digest(each.get("hashes", {}).get("sha256")),
        )
        found.append(wheel)
    return tuple(each for each in found if each is not None)


def _digest(said: object) -> str | None:
    return said if isinstance(said, str) and re.fullmatch(r"[0-9a-f]{64}", said) else None


def _name_in(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


class IndexReader:
    """Reads pages of package indexes, and the metadata beside their wheels; never a wheel."""

    def __init__(self) -> None:
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "klein-setup refresh_torch"
        retry = Retry(2, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504), raise_on_status=False)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))

    def project(self, index: str, name: str) -> tuple[Wheel, ...] | None:
        """Return the wheels that an index lists for a project; None where it has no such page.

        Raises
        ------
        NetworkError, AccessError
            The index was not reached, or refused.
        """
        address = f"{index.rstrip('/')}/{name}/"
        response = self._get(address, ACCEPT)
        if response is None:
            return None
        try:
            if "json" in response.headers.get("Content-Type", ""):
                return parse_json_page(response.json(), response.url)
            return parse_html_page(response.text, response.url)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"{redact(address)} is no page of a package index ({type(error).__name__})") from error

    def requirements(self, wheel: Wheel) -> tuple[Requirement, ...] | None:
        """Return what a wheel requires, by the metadata beside it; None where the index has none."""
        response = self._get(f"{wheel.url}.metadata", "*/*") if wheel.has_metadata else None
        if response is None:
            return None
        raw, _ = parse_email(response.content)
        try:
            return tuple(Requirement(each) for each in raw.get("requires_dist", []))
        except InvalidRequirement:
            return None

    def _get(self, address: str, accept: str) -> requests.Response | None:
        shown = redact(address)
        try:
            response = self._session.get(address, headers={"Accept": accept}, timeout=TIMEOUT_S)
        except (requests.RequestException, ValueError) as error:
            raise UnreachableError(
                f"{shown} was not reached ({type(error).__name__})",
                hint="Look at the connection, at --torch-index and at --default-index, and run it again.",
            ) from error
        status = response.status_code
        if status == 404:
            return None
        if status == 401:
            raise UnauthorizedError(
                f"{shown} wants to know who asks (401)", hint="Name an index that needs no password."
            )
        if status == 429:
            raise RateLimitedError(f"{shown} asks for patience (429)", hint="Run it again later.")
        if 400 <= status < 500:
            raise AccessError(
                f"{shown} is refused ({status})", hint="Look at --torch-index and --default-index.", status=status
            )
        if status != 200:
            raise ServerError(f"{shown} answers {status}", hint="Run it again later.")
        return response
