"""What the address of a model file names: a file on the Hub, a model of Civitai, or any other place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from provisioner.core.hosts import LOOPBACK, is_private

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"})
_CIVITAI_HOSTS = frozenset({"civitai.com", "www.civitai.com", "civitai.green", "civitai.red"})
_VIEWS = frozenset({"resolve", "blob", "raw"})
_REPO_ID = re.compile(r"[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """A file on the Hub, at a branch, tag or commit."""

    repo_id: str
    revision: str  # "main"
    filename: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CivitaiAddress:
    """A version of a model of Civitai."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainAddress:
    """Any other address; it says nothing about the file."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BadAddress:
    """What is no address that a file may be fetched from."""

    complaint: str  # "is http, which others on the network can change"


Address = HubAddress | CivitaiAddress | PlainAddress | BadAddress


def parse_address(url: str, *, endpoint: str = "https://huggingface.co", allows_loopback: bool = False) -> Address:
    """Return what an address names.

    Parameters
    ----------
    url : str
        As it stands in a workflow.
    endpoint : str
        The Hub that is asked: its host counts as the Hub's, too.
    allows_loopback : bool
        Whether an address of this machine is one, for tests.

    Examples
    --------
    >>> parse_address("https://huggingface.co/o/r/resolve/main/vae/a%20b.safetensors?download=true")
    HubAddress(repo_id='o/r', revision='main', filename='vae/a b.safetensors')
    >>> parse_address("https://civitai.com/models/7/x?modelVersionId=12")
    CivitaiAddress(version=12)
    >>> parse_address("http://example.com/a.safetensors")
    BadAddress(complaint='is http, which others on the network can change')
    """
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return BadAddress(complaint="has no valid host or port")
    if parts.scheme not in ("https", "http") or not host or not url.isprintable():
        return BadAddress(complaint="is no web address")
    if parts.username is not None or parts.password is not None:
        return BadAddress(complaint="holds a user name or a password")
    if host in _HUB_HOSTS or parts.netloc == urlsplit(endpoint).netloc:
        return _on_the_hub(parts.path)
    if not (allows_loopback and host in LOOPBACK):
        if parts.scheme == "http":
            return BadAddress(complaint="is http, which others on the network can change")
        if is_private(host) or host in LOOPBACK:
            return BadAddress(complaint="is an address of a private network, or of this machine")
    if host in _CIVITAI_HOSTS:
        return _at_civitai(parts.path, parts.query)
    return PlainAddress(url=url)


def _on_the_hub(path: str) -> Address:
    """Return the file: ``/org/name/resolve/main/folder/file``, or with one of the other views of a file."""
    segments = unquote(path).strip("/").split("/")
    repo_id = "/".join(segments[:2])
    if len(segments) < 5 or segments[2] not in _VIEWS or not _REPO_ID.fullmatch(repo_id):
        return BadAddress(complaint="is an address of the Hub, but not that of a file")
    return HubAddress(repo_id=repo_id, revision=segments[3], filename="/".join(segments[4:]))


def _at_civitai(path: str, query: str) -> Address:
    """Return the version: ``/api/download/models/12``, ``/model-versions/12`` or ``/models/7?modelVersionId=12``."""
    named = re.search(r"/(?:download/models|model-versions)/([0-9]{1,12})(?:/|$)", path, re.ASCII)
    text = named[1] if named else parse_qs(query).get("modelVersionId", [""])[0]
    if not re.fullmatch("[0-9]{1,12}", text, re.ASCII):
        return BadAddress(complaint="is an address of Civitai that names no version of a model")
    return CivitaiAddress(version=int(text))
