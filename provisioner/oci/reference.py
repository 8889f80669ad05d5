"""Text -> `OciFile` and `OciRepository`: the references of the OCI distribution spec, and nothing shorter.

A reference begins with ``oci://`` and names its registry: there is no default registry and no default tag, which would
mean something else tomorrow.  The grammar of names, tags and digests is that of the spec, version 1.1 ("Pulling
manifests", https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md).
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from provisioner.core.hosts import LOOPBACK
from provisioner.core.models import OciFile, OciRepository

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(?::([0-9]{1,5}))?")
_LONGEST_NAME = 255  # characters; registries allow that much for host and name together
_LONGEST_TEXT = 1000  # characters
# Docker Hub answers under another name than the one that people write.
_ANSWERS_AT = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


def parse_reference(text: str) -> OciFile:
    """Return the file that a reference names, or the manifest that lists it.

    Parameters
    ----------
    text : str
        ``oci://REGISTRY/NAME:TAG``, ``oci://REGISTRY/NAME@sha256:DIGEST``, or both.  A registry on this computer
        (``localhost``, ``127.0.0.1``, ``[::1]``) is asked over http, every other one over https.

    Raises
    ------
    ValueError
        It is none; the message says why, as what follows the quoted text.

    Examples
    --------
    >>> found = parse_reference("oci://Registry.Lab:5000/models/klein:v1")
    >>> found.repository.base, found.repository.name, found.tag, found.digest
    ('https://registry.lab:5000', 'models/klein', 'v1', None)
    >>> str(parse_reference("oci://127.0.0.1:5000/klein@sha256:" + "a" * 64))[:40]
    'oci://127.0.0.1:5000/klein@sha256:aaaaaa'
    """
    rest = _after_scheme(text)
    rest, at, digest_text = rest.partition("@")
    digest = _DIGEST.fullmatch(digest_text)
    if at and digest is None:
        raise ValueError("has no digest of the form sha256: and 64 lower-case hex digits after its @")
    host, slash, path = rest.partition("/")
    name, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError("has no valid tag after its last colon: letters, digits, '.', '_' and '-', 128 at most")
    if not slash:
        raise ValueError("names no repository after the registry, as in oci://registry.lab:5000/models")
    if not colon and digest is None:
        raise ValueError("names neither a tag nor a digest, as in oci://registry.lab/models:v1")
    return OciFile(
        repository=_repository(host, name), tag=tag if colon else None, digest=None if digest is None else digest[1]
    )


def parse_repository(text: str) -> OciRepository:
    """Return where ``--registry`` looks: a repository, as ``registry.lab:5000/models``, or a web address.

    At an http or https address an image layout may lie, too; which of the two it is, the server says.  Plain http is
    used on this computer, and where the address begins with ``http://``.

    Raises
    ------
    ValueError
        It is neither; the message says why, as what follows the quoted text.

    Examples
    --------
    >>> str(parse_repository("registry.lab:5000/models")), str(parse_repository("http://mirror.lab/Bundle/"))
    ('registry.lab:5000/models', 'mirror.lab/Bundle')
    """
    if not re.match(r"https?://", text, re.IGNORECASE):
        written = text if "://" in text else f"oci://{text}"
        host, slash, name = _after_scheme(written).partition("/")
        if not slash:
            raise ValueError("names no repository after the registry, as in registry.lab:5000/models")
        if ":" in name or "@" in name:
            raise ValueError("names a tag or a digest; every file is asked for by its own, so leave it out")
        return _repository(host, name, is_named_by_user=True)
    parts = urlsplit(_checked(text))
    if not _HOST.fullmatch(parts.netloc) or parts.query or parts.fragment:
        raise ValueError("is no address of a registry or of a folder: no user name, no query, a host with a valid port")
    path = parts.path.strip("/")
    base = f"{parts.scheme.lower()}://{_host(parts.netloc)}"
    is_name = len(path) <= _LONGEST_NAME and _NAME.fullmatch(path) is not None
    layout = f"{base}/{path}" if path else base
    return OciRepository(base=base, name=path if is_name else "", layout=layout, is_named_by_user=True)


def _after_scheme(text: str) -> str:
    scheme, found, rest = _checked(text).partition("://")
    if not found or scheme.lower() != "oci":
        raise ValueError("does not begin with oci://")
    return rest


def _checked(text: str) -> str:
    if len(text) > _LONGEST_TEXT or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("is longer than 1,000 characters, or has a space or another character that no address has")
    if "@" in text.partition("://")[2].partition("/")[0] or ("://" not in text and "@" in text.partition("/")[0]):
        raise ValueError("holds a user name or a password; a login comes from Docker's configuration (`docker login`)")
    return text


def _repository(host: str, name: str, *, is_named_by_user: bool = False) -> OciRepository:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ValueError(
            "has no valid repository name: parts of lower-case letters and digits, with '.', '_' or '-' between them, "
            "separated by slashes"
        )
    at = _host(host)
    scheme = "http" if urlsplit(f"//{at}").hostname in LOOPBACK else "https"
    return OciRepository(base=f"{scheme}://{at}", name=name, is_named_by_user=is_named_by_user)


def _host(text: str) -> str:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match[1] or 443) < 65536:
        raise ValueError("has no valid host and port before its first slash")
    host = text.lower()
    return _ANSWERS_AT.get(host, host)
