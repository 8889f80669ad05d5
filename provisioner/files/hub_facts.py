"""What the Hub says of a repository and its files, asked through its own client; nothing comes into anybody's cache."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from provisioner.core.errors import (
    AccessError,
    GatedError,
    KleinError,
    NotTheFileError,
    RateLimitedError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    ServerError,
    UnauthorizedError,
    UnreachableError,
)
from provisioner.core.models import HubFile
from provisioner.core.ports import Cancelled
from provisioner.core.retries import asked_patience_s
from provisioner.files.download.resolve import hub_url
from provisioner.files.download.small_file import fetch_bytes, patiently
from provisioner.network.http_session import Credentials

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_Answer = TypeVar("_Answer")

_LICENCE_FILE = re.compile(r"licen[cs]e(\.(md|txt))?", re.IGNORECASE)
_TIMEOUT_S = 60.0  # the client itself waits for ever (huggingface_hub 2.4.0)
SMALL = 32 * 1024 * 1024
"""Bytes.  A file outside of LFS has to be fetched to know its SHA-256; the Hub takes none of more than 10 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFacts:
    """A repository at one commit."""

    repo_id: str  # as it is called now, whatever it was asked for by
    commit: str  # 40 hex digits
    licence: str | None  # as its model card says: "apache-2.0", "other"
    is_gated: bool
    licence_file: str | None = None  # the text of it, at the top of the repository


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One file of one commit."""

    size: int  # bytes
    sha256: str
    git_oid: str  # of the file, or of its LFS pointer
    is_lfs: bool


@dataclass(frozen=True)
class HubFacts:
    """Asks the Hub.

    Parameters
    ----------
    credentials : Credentials
        The Hub's address, and the token for it.
    cancelled : callable
        Asked while it waits before another attempt; true stops with KeyboardInterrupt.
    """

    credentials: Credentials
    cancelled: Cancelled = lambda: False
    _digests: dict[tuple[str, str], str] = field(default_factory=dict)  # by repository and git blob id

    def repository(self, repo_id: str, revision: str | None = None) -> RepositoryFacts:
        """Return what the Hub says of a repository, at a branch, tag or commit, else at its default branch.

        Raises
        ------
        NetworkError
            The Hub does not answer, or not as it should.
        AccessError
            It does not show this repository to us, or has no such revision.
        """
        about = self._asked(repo_id, lambda: self._api().model_info(repo_id, revision=revision, timeout=_TIMEOUT_S))
        if not about.sha:
            raise ServerError(f"the Hub names no commit of {repo_id}")
        card = about.card_data
        named = None if card is None else card.get("license")
        tags = [each.removeprefix("license:") for each in about.tags or [] if each.startswith("license:")]
        licence = named if isinstance(named, str) else next(iter(tags), None)
        names = sorted(each.rfilename for each in about.siblings or [])
        return RepositoryFacts(
            repo_id=about.id,
            commit=about.sha,
            licence=licence,
            is_gated=about.gated not in (None, False),
            licence_file=next((each for each in names if _LICENCE_FILE.fullmatch(each)), None),
        )

    def files(self, repo_id: str, commit: str, filenames: Iterable[str]) -> dict[str, FileFacts]:
        """Return what the Hub says of some files, without those that it does not have; raises as `repository`."""
        from huggingface_hub.hf_api import RepoFile

        names = sorted(set(filenames))
        listed = self._asked(repo_id, lambda: self._api().get_paths_info(repo_id, names, revision=commit))
        found: dict[str, FileFacts] = {}
        for each in listed:
            if isinstance(each, RepoFile):  # and no folder of that name
                source = HubFile(repo_id=repo_id, revision=commit, filename=each.path)
                sha256 = each.lfs.sha256 if each.lfs else self._digest(source, each.size, each.blob_id)
                is_lfs = each.lfs is not None
                found[each.path] = FileFacts(size=each.size, sha256=sha256, git_oid=each.blob_id, is_lfs=is_lfs)
        return found

    def beginning(self, source: HubFile, count: int) -> bytes:
        """Return the first bytes of a file, `count` at most; raises as `fetch_bytes`."""
        address = hub_url(self.credentials.endpoint, source)
        return patiently(
            lambda: fetch_bytes(address, most=count, credentials=self.credentials, is_beginning=True, source=source),
            cancelled=self.cancelled,
        )

    def _digest(self, source: HubFile, size: int, git_oid: str) -> str:
        """Return the SHA-256 of a file that git keeps itself: the Hub knows its git blob id only."""
        known = self._digests.get((source.repo_id, git_oid))
        if known is not None:
            return known
        where = f"{source.filename} of {source.repo_id} at {source.revision[:8]}"
        if size > SMALL:
            raise NotTheFileError(f"{where} is not in LFS and has {size} bytes; expected a small file")
        address = hub_url(self.credentials.endpoint, source)
        content = patiently(
            lambda: fetch_bytes(address, most=SMALL, credentials=self.credentials, source=source),
            cancelled=self.cancelled,
        )
        prefix = b"blob %d\0" % len(content)
        if hashlib.sha1(prefix + content, usedforsecurity=False).hexdigest() != git_oid:
            raise NotTheFileError(f"the Hub sent other bytes for {where} than it lists")
        return self._digests.setdefault((source.repo_id, git_oid), hashlib.sha256(content).hexdigest())

    # --- patience ---------------------------------------------------------------------------------

    def _asked(self, repo_id: str, ask: Callable[[], _Answer]) -> _Answer:
        """Return what the Hub's client answers, its errors as ours."""

        def attempt() -> _Answer:
            try:
                return ask()
            except self._errors() as error:
                raise self._explained(repo_id, error) from error

        return patiently(attempt, cancelled=self.cancelled)

    # --- the client -------------------------------------------------------------------------------

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi, get_session

        get_session().timeout = _TIMEOUT_S
        token = self.credentials.token or False
        return HfApi(endpoint=self.credentials.endpoint, token=token, library_name="klein-setup")

    @staticmethod
    def _errors() -> tuple[type[Exception], ...]:
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own name for whatever it uses

        return OSError, httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, KeyError

    def _explained(self, repo_id: str, error: Exception) -> KleinError:
        """Return what happened as one of our errors, without a word that the Hub chose."""
        from huggingface_hub import errors

        address = self.credentials.endpoint
        if isinstance(error, errors.GatedRepoError):
            return GatedError(
                f"{repo_id} is gated, and this account has not been admitted",
                hint=f"Accept its agreement at {address}/{repo_id}, and log in (`hf auth login`).",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return RevisionNotFoundError(f"{repo_id} has no such branch, tag or commit", hint="Look at its history.")
        if isinstance(error, errors.RepositoryNotFoundError):
            return RepositoryNotFoundError(
                f"the Hub does not show {repo_id}: it is private, has gone, or never was",
                hint=self._hint_about_access(),
            )
        if isinstance(error, errors.HfHubHTTPError):
            return self._refused(repo_id, error.response.status_code, error.response.headers)
        if isinstance(error, (ValueError, TypeError, KeyError)):
            return ServerError(f"{address} answers otherwise than a Hub does ({type(error).__name__})")
        return UnreachableError(
            f"{address} was not reached ({type(error).__name__})",
            hint="Look at the connection and at --endpoint, and run it again.",
        )

    def _refused(self, repo_id: str, status: int, headers: Mapping[str, str]) -> KleinError:
        if status == 401:
            return UnauthorizedError(
                f"the Hub wants to know who asks for {repo_id} (401)", hint=self._hint_about_access()
            )
        if status == 429:
            return RateLimitedError(
                "the Hub asks for patience (429)",
                hint="Wait five minutes and run it again.",
                **_context(status, headers),
            )
        if 400 <= status < 500:
            return AccessError(f"the Hub refuses {repo_id} ({status})", hint=self._hint_about_access())
        return ServerError(
            f"the Hub answers {status} for {repo_id}", hint="Run it again later.", **_context(status, headers)
        )

    def _hint_about_access(self) -> str:
        if self.credentials.token:
            return "Look whether the token is valid and may read it."
        return "Log in (`hf auth login`) with an account that may read it."


def _context(status: int, headers: Mapping[str, str]) -> dict[str, object]:
    """Return what an error keeps of a refusal, to decide whether and when asking again may help."""
    known = {name.lower(): value for name, value in headers.items()}
    return {"status": status, "patience_s": asked_patience_s(status, known, time.time())}
