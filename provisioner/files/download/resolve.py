"""From a source to the address its bytes can be had at, asking the Hub once per file.

The Hub answers ``HEAD /{repo}/resolve/{commit}/{file}`` with a redirect to a signed address on a content network
(for LFS files), with a redirect on its own origin (small files, renamed repositories), or directly (mirrors).
The manifest is the authority: the Hub's headers may only disagree *earlier* than the bytes would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from provisioner.core.errors import (
    AccessError,
    EntryNotFoundError,
    GatedError,
    KleinError,
    NotTheFileError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    ServerError,
    SizeMismatchError,
    UnauthorizedError,
)
from provisioner.core.models import Artifact, HubFile, OciFile, Source, UrlFile
from provisioner.network.deadline import Deadline
from provisioner.network.http_session import CONNECT_TIMEOUT_S, next_hop, origin, shown

if TYPE_CHECKING:
    import requests

_MAX_HOPS = 6
_REDIRECTS = {301, 302, 303, 307, 308}


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes are."""

    url: str
    is_signed: bool  # on another origin than the one asked: may expire, never sees the token
    authorization: str | None = field(default=None, repr=False)  # of a registry: the header for this origin alone

    @property
    def hop(self) -> str:
        """What an ETag seen here is valid for: the address without its signature."""
        return shown(self.url)


@dataclass(frozen=True, slots=True)
class Passing:
    """An answer that may be different in a moment."""

    status: int
    headers: dict[str, str]


def hub_url(endpoint: str, source: HubFile) -> str:
    """Return the Hub's address of a file at a commit.

    >>> hub_url("https://huggingface.co", HubFile(repo_id="a/b", revision="c" * 4, filename="d e/f#1.txt"))
    'https://huggingface.co/a/b/resolve/cccc/d%20e/f%231.txt'
    """
    return f"{endpoint.rstrip('/')}/{source.repo_id}/resolve/{source.revision}/{quote(source.filename)}"


def label_of(source: Source, endpoint: str) -> str:
    """Return a short, safe name of a source for people and receipts."""
    if isinstance(source, UrlFile):
        return shown(source.url)
    if isinstance(source, OciFile):
        return str(source)
    host = urlsplit(endpoint).netloc.rpartition("@")[2]
    return f"{host}/{source.repo_id}@{source.revision[:12]}/{source.filename}"


def resolve(
    session: requests.Session,
    source: HubFile | UrlFile,
    artifact: Artifact,
    *,
    endpoint: str,
    read_timeout_s: float,
    headers: dict[str, str] | None = None,
) -> Location | Passing:
    """Return where the bytes are, or an answer worth asking again for.

    Raises
    ------
    AccessError, IntegrityError
        The Hub denies access, or has another file than the manifest names.
    requests.RequestException
        No answer; the caller decides whether to ask again.
    """
    if isinstance(source, UrlFile):
        return Location(source.url, is_signed=False)
    asked = hub_url(endpoint, source)
    url = asked
    for _ in range(_MAX_HOPS):
        with Deadline(read_timeout_s):
            response = session.head(
                url, allow_redirects=False, timeout=(CONNECT_TIMEOUT_S, read_timeout_s), headers=headers
            )
            response.close()
        answered = {name.lower(): value for name, value in response.headers.items()}
        if response.status_code in _REDIRECTS:
            _compare_with_manifest(answered, artifact, source)
            target = next_hop(url, answered.get("location"))
            if origin(target) != origin(asked):
                return Location(target, is_signed=True)
            url = target
            continue
        if response.status_code == 200:
            _compare_with_manifest(answered, artifact, source, is_content=True)
            return Location(url, is_signed=False)
        if response.status_code == 405:  # a plain mirror without HEAD: the ranges will tell
            return Location(url, is_signed=False)
        if (refusal := access_error(response.status_code, answered, source, is_gated=artifact.is_gated)) is not None:
            raise refusal
        return Passing(response.status_code, answered)
    raise ServerError(
        f"{urlsplit(endpoint).netloc} redirects {source.repo_id}/{source.filename} in circles.",
        hint="If a mirror is set (HF_ENDPOINT, --endpoint), try without it.",
    )


def blob_id(session: requests.Session, source: HubFile, *, endpoint: str, read_timeout_s: float) -> str | Passing:
    """Return the Hub's id of a file's content, or an answer worth asking again for.

    Raises
    ------
    AccessError
        The Hub says no.
    NotTheFileError
        It names no id, as a plain mirror does.
    ServerError
        It redirects in circles.
    requests.RequestException
        No answer; the caller decides whether to ask again.
    """
    asked = url = hub_url(endpoint, source)
    for _ in range(_MAX_HOPS):
        with Deadline(read_timeout_s):
            response = session.head(url, allow_redirects=False, timeout=(CONNECT_TIMEOUT_S, read_timeout_s))
            response.close()
        answered = {name.lower(): value for name, value in response.headers.items()}
        is_redirect = response.status_code in _REDIRECTS
        named = answered.get("x-linked-etag") or ("" if is_redirect else answered.get("etag", ""))
        found = named.removeprefix("W/").strip('"')
        if response.status_code == 200 or (is_redirect and found):
            if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", found):
                return found
            break
        if not is_redirect:
            if (refusal := access_error(response.status_code, answered, source)) is not None:
                raise refusal
            return Passing(response.status_code, answered)
        url = next_hop(url, answered.get("location"))
        if origin(url) != origin(asked):
            break  # another server's word about it is of no use
    raise NotTheFileError(
        f"{urlsplit(endpoint).netloc} does not say which content {source.filename} of {source.repo_id} has.",
        hint="A manifest that does not come with klein-setup needs that for an HF cache: use the Hub itself.",
    )


_HOW_TO_LOG_IN = (
    "make a read token of that account at https://huggingface.co/settings/tokens and set HF_TOKEN to it, "
    "or log in once with `hf auth login`"
)


def access_error(status: int, headers: dict[str, str], source: Source, *, is_gated: bool = False) -> AccessError | None:
    """Return what a 401, 403, 404, 410 or 451 means, as the sentence a person needs; None for other statuses."""
    if status not in {401, 403, 404, 410, 451}:
        return None
    if isinstance(source, UrlFile):
        return _plain_access_error(status, shown(source.url))
    if isinstance(source, OciFile):
        return _plain_access_error(status, str(source), hint="Put it there, or use another --registry.")
    facts = {"repo_id": source.repo_id, "revision": source.revision, "filename": source.filename, "status": status}
    code = headers.get("x-error-code", "")
    page = f"https://huggingface.co/{source.repo_id}"
    if code == "GatedRepo" or (status == 403 and is_gated):
        return GatedError(
            f"{source.repo_id} is gated: its licence has to be accepted before {source.filename} can be fetched.",
            hint=f"Log in at {page} and accept the licence there. Then {_HOW_TO_LOG_IN}; "
            "then run the same command again.",
            **facts,
        )
    if code == "RevisionNotFound":
        return RevisionNotFoundError(
            f"{source.repo_id} has no commit {source.revision}.",
            hint="The manifest pins a commit that is gone; update klein-setup, or check the manifest if it is yours.",
            **facts,
        )
    if code == "EntryNotFound":
        return EntryNotFoundError(
            f"{source.repo_id} has no file {source.filename} at commit {source.revision[:12]}.",
            hint="Check the manifest; at another endpoint the repository may not be mirrored completely.",
            **facts,
        )
    if status == 401 or (status == 403 and code != "RepoNotFound"):
        return UnauthorizedError(
            f"The Hub asks for a token for {source.repo_id} ({status}): it is private or gated, does not exist, "
            "or the token that was sent is not valid.",
            hint=f"Open {page} while logged in; if it asks for it, accept the licence. Then {_HOW_TO_LOG_IN}; "
            "a token that was set already is not valid, or of an account without access.",
            **facts,
        )
    return RepositoryNotFoundError(
        f"There is no repository {source.repo_id} here, or it is private.",
        hint=f"Check the manifest and the endpoint; if {page} opens while you are logged in, {_HOW_TO_LOG_IN}.",
        **facts,
    )


def _plain_access_error(status: int, where: str, *, hint: str = "Check the manifest's address.") -> AccessError:
    if status in {401, 403}:
        return UnauthorizedError(f"{where} is not open to us ({status}).", hint="Use another source.", status=status)
    return EntryNotFoundError(f"{where} is not there ({status}).", hint=hint, status=status)


def _compare_with_manifest(
    headers: dict[str, str], artifact: Artifact, source: HubFile, *, is_content: bool = False
) -> None:
    """Raise if the Hub itself says that it has another size or another SHA-256 than the manifest names."""
    size = headers.get("x-linked-size") or (headers.get("content-length") if is_content else None)
    where = f"{source.repo_id}/{source.filename} at {source.revision[:12]}"
    if size is not None and size.isdigit() and int(size) != artifact.size:
        html = "text/html" in headers.get("content-type", "") and is_content
        raise wrong_size(where, artifact, int(size), is_page=html)
    digest = headers.get("x-linked-etag", "").strip('"')
    if len(digest) == 64 and digest != artifact.sha256:
        raise NotTheFileError(
            f"The Hub says that {where} has SHA-256 {digest}; the manifest names {artifact.sha256}.",
            hint="Nothing was fetched. Update klein-setup, or check the manifest if it is yours.",
            expected=artifact.sha256,
            observed=digest,
        )


def wrong_size(
    where: str, artifact: Artifact, size: int | None, *, is_page: bool = False, instead: str = "another --endpoint"
) -> KleinError:
    """Return the error for a server that offers another number of bytes, or a web page."""
    if is_page:
        return NotTheFileError(
            f"{where} answered with a web page instead of {artifact.name}.",
            hint="A login page, a proxy or a broken mirror does that: open the address in a browser, or use "
            f"{instead}.",
        )
    offered = "more bytes than" if size is None else f"{size:,} bytes instead of"
    return SizeMismatchError(
        f"{where} offers {offered} the {artifact.size:,} bytes of {artifact.name} that are expected.",
        hint=f"Nothing of it was put in place. Try again later, use {instead}, or update klein-setup.",
        expected=artifact.size,
        observed=size,
    )
