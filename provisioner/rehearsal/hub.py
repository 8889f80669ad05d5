"""A loopback Hub: the hub and its content network on two free ports of 127.0.0.1, answering as the real one does.

It serves the routes and headers that a download uses and no others; it needs no network, no account and nothing
beyond the standard library.  Header names and error codes are those huggingface_hub 2.4.0 reads (``file_download.py``,
``utils/_http.py``); tests/contract runs that client against it, so that it cannot drift.

As a process of its own, for benchmarks::

    python -m provisioner.rehearsal.hub --repository ORG/NAME --revision HEX FOLDER
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, quote

from provisioner.rehearsal.content import Commit, Content, Entry, LfsRule, Repository, is_stored_by_lfs
from provisioner.rehearsal.faults import (
    ExpireSignatures,
    Fault,
    FaultQueue,
    HtmlPage,
    IgnoreRange,
    Occasion,
    OtherContent,
    Place,
)
from provisioner.rehearsal.http_answers import (
    denial,
    disturbed,
    file_answer,
    html_answer,
    json_answer,
    paths_info,
    refusal,
    select_bytes,
)
from provisioner.rehearsal.http_server import Answer, Listener, Recorded, Request, Shared

CLOSE_WITHIN_S = 1.0
INVALID_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - the Hub's words, not a secret
LOGIN_PAGE = HtmlPage().page


@dataclass(slots=True)
class _Address:
    """A signed address of the content network."""

    sha256: str
    filename: str
    expires_at: float  # seconds since the epoch
    uses: int = 0
    is_dead: bool = False


class RehearsalHub:
    """A Hub on 127.0.0.1 for as long as it is open.

    Parameters
    ----------
    tokens : iterable of str
        Tokens of accounts without access to anything gated or private.  Any other token, beside those given to
        ``add_repository``, is invalid: 401, as at the real Hub.
    port : int
        Port of the hub; 0 takes a free one.  The content network always takes a free one.

    Attributes
    ----------
    violations : list of str
        What a client did that it must never do: showing its token to the content network.  A mistake of the hub's
        own is put here too, so that an assertion on an empty list catches both.
    signature_lifetime_s : float
        Seconds a signed address lives, 3600 as at the real one.

    Examples
    --------
    >>> import urllib.request
    >>> with RehearsalHub() as hub:
    ...     hub.add_repository("org/name", "a" * 40, {"config.json": b"{}"})
    ...     url = f"{hub.endpoint}/org/name/resolve/{'a' * 40}/config.json"
    ...     urllib.request.urlopen(url).read()
    b'{}'
    """

    def __init__(self, *, tokens: Iterable[str] = (), port: int = 0) -> None:
        self.signature_lifetime_s = 3600.0
        self._repositories: dict[str, Repository] = {}
        self._renamed: dict[str, str] = {}
        self._contents: dict[str, Content] = {}
        self._replaced: dict[str, tuple[Content, str]] = {}  # by the true name of the bytes: what lies there now
        self._addresses: dict[str, _Address] = {}
        self._tokens = set(tokens)
        self._violations: list[str] = []
        self._faults = FaultQueue()
        self._shared = Shared()
        self._lock = threading.RLock()
        self._hub = Listener("hub", self._answer_as_hub, self._shared, port)
        self._network = Listener("content", self._answer_as_network, self._shared)

    def __enter__(self) -> RehearsalHub:
        """Return the hub; it answers since it was made."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the hub."""
        self.close()

    def close(self) -> None:
        """Break every connection and end every thread, within a second.  May be called again."""
        if self._shared.stop.is_set():
            return
        self._shared.stop.set()
        deadline = time.monotonic() + CLOSE_WITHIN_S
        for listener in (self._hub, self._network):
            listener.close(deadline)

    # --- what it holds ---

    def add_repository(
        self,
        repo_id: str,
        revision: str,
        files: Mapping[str, bytes | Path],
        *,
        branch: str = "main",
        is_gated: bool = False,
        is_private: bool = False,
        tokens: Iterable[str] = (),
        is_direct: bool = False,
        licence: str | None = None,
        lfs: LfsRule = is_stored_by_lfs,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Publish `files` as one commit; a second call for a repository adds a commit and moves the branch.

        Parameters
        ----------
        repo_id, revision : str
            ``org/name`` and 40 hex digits.
        files : mapping of str to bytes or Path
            Path in the repository to content.  A file given by path is served from where it lies.
        branch : str
            The branch that points to the commit from now on.
        is_gated, is_private : bool
            Only `tokens` may read it: gated is refused by name, private is not admitted to exist.
        tokens : iterable of str
            Tokens of accounts with access.
        is_direct : bool
            ``/resolve/`` answers with the bytes themselves instead of a redirect, as mirrors do.
        licence : str, optional
            What its model card says.
        lfs : callable
            ``(name, size) -> bool``: whether a file is kept in LFS and served by the content network.
        digests : mapping of str to str, optional
            SHA-256 by name, used without reading the file.
        """
        known = digests or {}
        entries = {name: Entry.of(name, source, lfs, known.get(name)) for name, source in sorted(files.items())}
        with self._lock:
            repository = self._repositories.setdefault(repo_id, Repository(repo_id))
            repository.commits[revision] = Commit(revision, entries)
            repository.branches[branch] = revision
            repository.is_gated, repository.is_private = is_gated, is_private
            repository.is_direct, repository.licence = is_direct, licence
            repository.tokens |= frozenset(tokens)
            self._tokens.update(tokens)
            self._contents.update({each.etag: each.content for each in entries.values()})

    def rename(self, old_repo_id: str, new_repo_id: str) -> None:
        """Give a repository another name; the old one answers 307 to the new one on the same origin."""
        with self._lock:
            repository = self._repositories.pop(old_repo_id)
            repository.repo_id = new_repo_id
            self._repositories[new_repo_id] = repository
            self._renamed[old_repo_id] = new_repo_id

    # --- what it does and saw ---

    @property
    def endpoint(self) -> str:
        """What ``HF_ENDPOINT`` is set to."""
        return self._hub.origin

    @property
    def content_origin(self) -> str:
        """Origin of the content network."""
        return self._network.origin

    @property
    def requests(self) -> tuple[Recorded, ...]:
        """Every request so far, oldest first."""
        return self._shared.record.requests()

    @property
    def bytes_served(self) -> int:
        """Bytes of bodies sent so far, by both listeners."""
        return sum(recorded.bytes_sent for recorded in self.requests)

    @property
    def violations(self) -> list[str]:
        """What must be empty at the end of a test."""
        return [*self._violations, *self._shared.defects]

    @property
    def rate_bytes_s_per_connection(self) -> int | None:
        """Bytes per second that one connection gets; None: as fast as it goes."""
        return self._shared.pace.rate_bytes_s_per_connection

    @rate_bytes_s_per_connection.setter
    def rate_bytes_s_per_connection(self, rate: int | None) -> None:
        self._shared.pace.rate_bytes_s_per_connection = rate

    @property
    def rate_bytes_s(self) -> int | None:
        """Bytes per second that all connections get together, as one wire; None: as fast as it goes."""
        return self._shared.pace.rate_bytes_s

    @rate_bytes_s.setter
    def rate_bytes_s(self, rate: int | None) -> None:
        self._shared.pace.rate_bytes_s = rate

    @property
    def latency_s(self) -> float:
        """Seconds before each answer."""
        return self._shared.pace.latency_s

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self._shared.pace.latency_s = seconds

    def clear_requests(self) -> None:
        """Forget what was recorded so far."""
        self._shared.record.clear()

    def wait_until_idle(self, timeout_s: float = 2.0) -> bool:
        """Wait until no request is being answered; return whether that came true in time."""
        return self._shared.record.wait_until_idle(timeout_s)

    def fault(
        self,
        fault: Fault,
        *,
        on: Place = "content",
        times: int | None = 1,
        filename: str | None = None,
        skip: int = 0,
        min_offset: int | None = None,
    ) -> None:
        """Let something go wrong for requests to come.

        Parameters
        ----------
        fault : Fault
            What happens.
        on : {"content", "hub", "head", "api"}
            Kind of request: "content" is a GET answered with bytes of a file, wherever they come from; "hub" a
            GET and "head" a HEAD of ``/resolve/``; "api" the rest of the hub.
        times : int or None
            How many requests; None: all.
        filename : str, optional
            Glob on the path in the repository.
        skip : int
            Suitable requests to let pass first.
        min_offset : int, optional
            Only requests whose first byte lies there or behind.
        """
        self._faults.add(fault, on=on, times=times, filename=filename, skip=skip, min_offset=min_offset)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more; bytes put in place by ``OtherContent`` become the true ones again."""
        self._faults.clear()
        with self._lock:
            self._replaced.clear()

    @property
    def faults_waiting(self) -> int:
        """Faults that have not been used up; a test that wants its fault to have happened asserts 0."""
        return len(self._faults)

    # --- the hub ---

    def _answer_as_hub(self, request: Request) -> Answer:
        parts = request.parts
        if request.method in {"GET", "HEAD"}:
            if parts == ("login",):
                return html_answer(LOGIN_PAGE)
            if parts[:3] == ("api", "resolve-cache", "models") and len(parts) > 6:
                return self._with_limits("resolvers", self._cached(request, "/".join(parts[3:5]), parts[5], parts[6:]))
            if "resolve" in parts[1:3]:
                at = parts.index("resolve", 1)
                if len(parts) > at + 2:
                    repo_id, filename = "/".join(parts[:at]), "/".join(parts[at + 2 :])
                    answer = self._resolve(request, repo_id, parts[at + 1], filename)
                    return self._with_limits("resolvers", answer)
        if parts[0] == "api":
            fault = self._faults.take(Occasion(frozenset({"api"})))
            return self._with_limits("api", disturbed(self._api(request, parts[1:]), fault))
        return refusal(404, "", "Sorry, we can't find the page you are looking for.")

    @staticmethod
    def _with_limits(resource: str, answer: Answer) -> Answer:
        # Shapes of the real answers; the numbers stand still, so that no client is slowed by them.
        quota = 3000 if resource == "resolvers" else 500
        limits = (
            ("RateLimit", f'"{resource}";r={quota - 1};t=172'),
            ("RateLimit-Policy", f'"fixed window";"{resource}";q={quota};w=300'),
        )
        given = {name.lower() for name, _ in answer.headers}
        return replace(answer, headers=(*answer.headers, *(each for each in limits if each[0].lower() not in given)))

    def _resolve(self, request: Request, repo_id: str, revision: str, filename: str) -> Answer:
        if request.method == "HEAD":
            places: frozenset[Place] = frozenset({"head"})
        else:
            places = frozenset({"hub"})
        found = self._find(request, repo_id, revision, filename, is_content=True)
        if isinstance(found, Answer):
            fault = self._faults.take(Occasion(places, filename))
            return replace(disturbed(found, fault), filename=filename)
        repository, commit, entry = found
        common = (("X-Repo-Commit", commit.revision), ("Accept-Ranges", "bytes"))
        if repository.is_direct:
            if request.method == "GET":
                places |= {"content"}
            return self._bytes(request, entry.path, entry.content, entry.etag, common, places)
        fault = self._faults.take(Occasion(places, filename))
        answer = Answer(307 if entry.sha256 is None else 302, common, filename=filename)
        if entry.sha256 is None:
            answer = answer.having("Location", _cache_path(repository.repo_id, commit.revision, entry))
        else:
            answer = (
                answer.having("X-Linked-Size", str(entry.content.size))
                .having("X-Linked-Etag", f'"{entry.sha256}"')
                .having("Location", self._sign(entry.sha256, filename))
            )
        return disturbed(answer, fault)

    def _cached(self, request: Request, repo_id: str, revision: str, path: Sequence[str]) -> Answer:
        filename = "/".join(path)
        found = self._find(request, repo_id, revision, filename, is_content=True)
        if isinstance(found, Answer):
            return replace(found, filename=filename)
        _, commit, entry = found
        places: frozenset[Place] = frozenset({"content"}) if request.method == "GET" else frozenset()
        headers = (("X-Repo-Commit", commit.revision), ("Accept-Ranges", "bytes"))
        return self._bytes(request, filename, entry.content, entry.etag, headers, places)

    def _find(
        self, request: Request, repo_id: str, revision: str, filename: str, *, is_content: bool
    ) -> tuple[Repository, Commit, Entry] | Answer:
        found = self._find_commit(request, repo_id, revision, is_content=is_content)
        if isinstance(found, Answer):
            return found
        repository, commit = found
        entry = commit.entries.get(filename)
        if entry is None:
            return refusal(404, "EntryNotFound", "Entry not found").having("X-Repo-Commit", commit.revision)
        return repository, commit, entry

    def _find_commit(
        self, request: Request, repo_id: str, revision: str | None, *, is_content: bool
    ) -> tuple[Repository, Commit] | Answer:
        """Return repository and commit, or the refusal the real Hub gives (`revision` None: the default branch)."""
        with self._lock:
            if repo_id in self._renamed:
                return self._moved(request, repo_id, self._renamed[repo_id])
            repository = self._repositories.get(repo_id)
            refused = self._refused(request, repository, is_content=is_content)
            if refused is not None or repository is None:
                return refused or refusal(404, "RepoNotFound", "Repository not found")
            commit = repository.commit("main" if revision is None else revision)
            if commit is None:
                return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return repository, commit

    def _refused(self, request: Request, repository: Repository | None, *, is_content: bool) -> Answer | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme and (scheme.lower() != "bearer" or token not in self._tokens):
            return refusal(401, "", INVALID_TOKEN)
        if repository is not None and token in repository.tokens:
            return None
        if repository is None or repository.is_private:
            # The real Hub does not admit to strangers what exists, hence 401 and not 404 without a token.
            if not token:
                return refusal(401, "RepoNotFound", "Invalid username or password.")
            return refusal(404, "RepoNotFound", "Repository not found")
        if repository.is_gated and is_content:  # names and sizes of gated repositories are public
            reason = "you are not in the authorized list" if token else "you are not authenticated"
            message = f"Access to model {repository.repo_id} is restricted and {reason}."
            return refusal(403 if token else 401, "GatedRepo", message)
        return None

    @staticmethod
    def _moved(request: Request, old: str, new: str) -> Answer:
        target = request.path.replace(f"/{old}", f"/{new}", 1)
        query = f"?{request.query}" if request.query else ""
        return Answer(307, (("Location", f"{target}{query}"),), f"Temporary Redirect. Redirecting to {target}".encode())

    def _sign(self, sha256: str, filename: str) -> str:
        signature = secrets.token_urlsafe(24)
        expires_at = time.time() + self.signature_lifetime_s
        with self._lock:
            self._addresses[signature] = _Address(sha256, filename, expires_at)
        return f"{self.content_origin}/blob/{sha256}?Expires={int(expires_at)}&Signature={signature}"

    # --- /api ---

    def _api(self, request: Request, parts: Sequence[str]) -> Answer:
        if len(parts) < 3 or parts[0] != "models":
            return refusal(404, "", "Not Found")
        repo_id, what, rest = "/".join(parts[1:3]), parts[3] if len(parts) > 3 else "", parts[4:]
        revision = rest[0] if rest else None
        if (request.method, what) not in {("GET", ""), ("GET", "revision"), ("GET", "tree"), ("POST", "paths-info")}:
            return refusal(404, "", "Not Found")  # xet-read-token among them: this hub keeps nothing in Xet
        found = self._find_commit(request, repo_id, revision, is_content=False)
        if isinstance(found, Answer):
            return found
        repository, commit = found
        query = parse_qs(request.query)
        if what == "paths-info":
            return json_answer(paths_info(commit, request))
        if what == "tree":
            is_recursive = query.get("recursive", ["false"])[0].lower() in {"true", "1"}
            return json_answer(commit.tree("/".join(rest[1:]), is_recursive=is_recursive))
        return json_answer(repository.info(commit, has_blobs="blobs" in query))

    # --- the content network ---

    def _answer_as_network(self, request: Request) -> Answer:
        if "authorization" in request.headers:
            self._violations.append(f"{request.method} {request.path} showed a token to the content network")
        if request.parts == ("login",):
            return html_answer(LOGIN_PAGE)
        if request.method not in {"GET", "HEAD"} or len(request.parts) != 2 or request.parts[0] != "blob":
            return denial("NoSuchKey", 404)
        signature = parse_qs(request.query).get("Signature", [""])[0]
        with self._lock:
            address = self._addresses.get(signature)
            content = self._contents.get(request.parts[1])
        if content is None:
            return denial("NoSuchKey", 404)
        if address is None or address.sha256 != request.parts[1]:
            return denial("SignatureDoesNotMatch", 403)
        if address.is_dead or time.time() >= address.expires_at:
            return replace(denial("AccessDenied", 403), filename=address.filename)
        places: frozenset[Place] = frozenset({"content"}) if request.method == "GET" else frozenset()
        return self._bytes(
            request, address.filename, content, address.sha256, (("Accept-Ranges", "bytes"),), places, address
        )

    def _bytes(
        self,
        request: Request,
        filename: str,
        content: Content,
        etag: str,
        headers: tuple[tuple[str, str], ...],
        places: frozenset[Place],
        address: _Address | None = None,
    ) -> Answer:
        """Answer with bytes of a file: 200, 206 or 416, under whatever fault was queued for it."""
        name = etag
        with self._lock:
            content, etag = self._replaced.get(name, (content, etag))
        start, length, _ = select_bytes(request, etag, content.size)
        with self._lock:
            uses = address.uses if address else 0
            fault = self._faults.take(Occasion(places, filename, start, length, uses)) if places else None
            if address:
                address.uses += 1
                address.is_dead = address.is_dead or isinstance(fault, ExpireSignatures)
        if isinstance(fault, ExpireSignatures):
            return replace(denial("AccessDenied", 403), filename=filename, fault=fault)
        if isinstance(fault, OtherContent):
            content, etag = Content.of(fault.replacement), fault.etag
            with self._lock:
                self._replaced[name] = (content, etag)
        answer = file_answer(request, content, etag, headers, is_range_ignored=isinstance(fault, IgnoreRange))
        return replace(disturbed(answer, fault), filename=filename)


def _cache_path(repo_id: str, revision: str, entry: Entry) -> str:
    etag = quote(f'"{entry.git_oid}"', safe="")
    return f"/api/resolve-cache/models/{repo_id}/{revision}/{quote(entry.path)}?etag={etag}"


# --- as a process ------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a folder as one repository until killed; one JSON line on stdout says where.

    Returns
    -------
    int
        0, after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m provisioner.rehearsal.hub", description="Serve a folder as a Hub.")
    parser.add_argument("--repository", required=True, metavar="ORG/NAME")
    parser.add_argument("--revision", required=True, metavar="HEX", help="commit, 40 hex digits")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--direct", action="store_true", help="answer with the bytes instead of a redirect")
    parser.add_argument("--rate", type=int, metavar="BYTES", help="bytes per second and connection")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    files = {path.relative_to(options.folder).as_posix(): path for path in options.folder.rglob("*") if path.is_file()}
    with RehearsalHub(port=options.port) as hub:
        hub.add_repository(options.repository, options.revision, files, is_direct=options.direct)
        hub.rate_bytes_s_per_connection = options.rate
        hub.latency_s = options.latency
        sys.stdout.write(json.dumps({"endpoint": hub.endpoint, "content_origin": hub.content_origin}) + "\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
