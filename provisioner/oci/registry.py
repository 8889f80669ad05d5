"""Asks OCI registries and image layouts where a blob is, and which manifest a tag names.

Who we are is settled by the handshake of the distribution spec, which ``oras`` speaks: it reads the challenge, asks the
token service, and knows basic authentication.  What it leaves open is done here, each for a reason found in oras
0.2.43: it reads ``~/.docker/config.json`` alone (not ``DOCKER_CONFIG``) and starts credential helpers with all of our
variables; it takes a realm for an address whatever the challenge is, also over http and after a redirect; it asks for
no scope where the challenge names none; it reads answers of any length, hides the token service's status, keeps a token
that has expired, and waits two minutes where a login is wrong.  No bytes of a model pass through here.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import itertools
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3

from provisioner.core.errors import (
    AccessError,
    EntryNotFoundError,
    HashMismatchError,
    NotTheFileError,
    RateLimitedError,
    ServerError,
    UnauthorizedError,
    UsageError,
)
from provisioner.core.hosts import is_in_the_clear
from provisioner.core.json_reader import as_dict, as_list, parse_object
from provisioner.core.models import Artifact, OciFile, OciRepository
from provisioner.core.ports import BlobAddress, Cancelled
from provisioner.core.retries import MAX_PATIENCE_S, PASSING_STATUSES, Retries, asked_patience_s
from provisioner.network.deadline import Deadline
from provisioner.network.http_session import (
    CONNECT_TIMEOUT_S,
    OF_A_REGISTRY,
    Credentials,
    may_pass,
    network_error,
    next_hop,
    open_session,
    origin,
    shown,
)
from provisioner.oci.docker_config import Login
from provisioner.oci.logins import DockerLogins

INSTEAD = "another --registry"
"""What a hint names where a registry is of no use."""

_RETRIES = Retries()
_NOBODY_THERE = Retries(attempts=4)  # about three seconds
_TICK_S = 0.1
_BLOCK = 1024 * 1024
_MAX_HOPS = 6
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
_LARGEST_MANIFEST = 4 * 1024 * 1024  # bytes; what the spec asks registries to take at least
_LARGEST_TOKEN = 1024 * 1024
_LARGEST_LAYOUT = 4096
_MOST_MANIFESTS = 32  # of an index that are looked into
_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)

_Answer = TypeVar("_Answer")


class OciRegistries:
    """What the fetcher knows as ``Registries``; safe to use from several threads.

    Parameters
    ----------
    logins : DockerLogins
        Who we are at a registry.
    read_timeout_s : float
        Seconds without any byte after which a request counts as failed.
    cancelled : callable
        Asked while waiting; true stops with KeyboardInterrupt.
    notice : callable
        Told one line that a person may want to read.
    keep_secret : callable
        Told every password and token before it is used, so that no output shows it.
    """

    def __init__(
        self,
        *,
        logins: DockerLogins,
        read_timeout_s: float = 10.0,
        cancelled: Cancelled = lambda: False,
        notice: Callable[[str], None] = lambda text: None,
        keep_secret: Callable[[str], None] = lambda secret: None,
    ) -> None:
        self.logins = logins
        self.read_timeout_s = read_timeout_s
        self.cancelled = cancelled
        self.notice = notice
        self.keep_secret = keep_secret
        self._clients: dict[OciRepository, RegistryClient] = {}
        self._lock = threading.Lock()

    def locate(self, source: OciFile, artifact: Artifact) -> BlobAddress:
        """Return where the artifact's bytes are now; raises what the port says."""
        return self.ask(source.repository, lambda client: client.locate(source, artifact))

    def pin(self, source: OciFile) -> OciFile:
        """Return the source with the digest of the manifest that its tag names now; raises as `locate` does."""
        if source.digest is not None or source.tag is None:
            return source
        tag = source.tag
        return replace(source, digest=self.ask(source.repository, lambda client: client.digest_of(tag)))

    def read_manifest(self, source: OciFile) -> bytes:
        """Return the manifest, or the index, that a reference names; raises as `locate` does.

        What a digest names has that SHA-256.
        """
        return self.ask(source.repository, lambda client: client.read_manifest(source.digest or source.tag or ""))

    def hash_blob(self, source: OciFile, artifact: Artifact) -> tuple[str, int]:
        """Read every byte of a blob and return their SHA-256 and number; raises as `locate` does."""
        return self.ask(source.repository, lambda client: client.hash_blob(source, artifact))

    def ask(self, repository: OciRepository, ask: Callable[[RegistryClient], _Answer]) -> _Answer:
        """Return an answer of one repository, tried again while that may help; raises what the port says."""
        with self._lock:
            if repository not in self._clients:
                self._clients[repository] = RegistryClient(self, repository)
            client = self._clients[repository]
        with client.lock:
            pause_s: float | None
            for failures in itertools.count(1):
                if self.cancelled():
                    raise KeyboardInterrupt
                try:
                    return ask(client)
                except _PassingError as error:
                    pause_s = error.pause_s(failures)
                except _BROKEN as error:
                    pause = _NOBODY_THERE.pause_s(failures, jitter=_jitter())
                    if pause is None or not may_pass(error):
                        raise network_error(
                            error, _address_of(error) or repository.base, setting=OF_A_REGISTRY
                        ) from error
                    pause_s = pause
                self.wait(pause_s)
        raise AssertionError

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the run is cancelled."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.cancelled():
            time.sleep(min(_TICK_S, left))


class _PassingError(Exception):
    """An answer that may be different in a moment."""

    def __init__(self, url: str, response: requests.Response) -> None:
        super().__init__(f"{shown(url)} answers {response.status_code}")
        self.url, self.status = url, response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    def pause_s(self, failures: int) -> float:
        """Return how long to wait; raises NetworkError where that is of no use."""
        asked_s = asked_patience_s(self.status, self.headers, time.time())
        pause_s = _RETRIES.pause_s(failures, status=self.status, asked_s=asked_s, jitter=_jitter())
        if pause_s is not None:
            return pause_s
        if self.status == 429:
            long = "" if asked_s is None or asked_s <= MAX_PATIENCE_S else f" and asks to wait {asked_s:.0f} s"
            raise RateLimitedError(
                f"{shown(self.url)} answers 429, too many requests{long}.",
                hint="Wait some minutes; a registry may allow more to those who log in. What has arrived is kept.",
                status=429,
            )
        raise ServerError(
            f"{shown(self.url)} answers {self.status}.",
            hint="The registry has a problem: try again later; what has arrived is kept.",
            status=self.status,
        )


class RegistryClient:
    """One repository, and what was found out about it; used by one thread at a time."""

    def __init__(self, registries: OciRegistries, repository: OciRepository) -> None:
        self.repository = repository
        self.lock = threading.RLock()
        self._registries = registries
        # It has no token of the Hub, and sends no login by itself.
        self._session = open_session(Credentials(None, repository.base))
        self._is_layout: bool | None = None if repository.layout else False
        self._authorization: str | None = None
        self._login: Login | None = None
        self._has_asked_for_login = False
        self._denied: int | None = None  # the status of a login that was refused: a second try may lock an account
        self._listed: dict[str, tuple[str, frozenset[str]]] = {}  # by tag or digest: the digest, and what it lists
        self._moved: set[str] = set()  # tags about which something was said

    # --- what is asked ---------------------------------------------------------------------------

    def locate(self, source: OciFile, artifact: Artifact) -> BlobAddress:
        """Return where the artifact's bytes are."""
        repository = self.repository
        if self._has_layout():
            url = f"{repository.layout}/blobs/sha256/{artifact.sha256}"
            return BlobAddress(url=url, is_elsewhere=False, authorization=self._authorization)
        if source.digest != artifact.sha256:
            self._check_listed(source, artifact)
        url = f"{repository.base}/v2/{repository.name}/blobs/sha256:{artifact.sha256}"
        for _ in range(_MAX_HOPS):
            # Not HEAD: the address that a store signs is for one method.
            response = self._get(url, {"Range": "bytes=0-0"})
            response.close()
            if response.status_code in _REDIRECTS:
                target = self._next_hop(url, response.headers.get("Location"))
                if origin(target) != origin(repository.base):
                    return BlobAddress(url=target, is_elsewhere=True)
                url = target
            elif response.status_code in {200, 206}:
                return BlobAddress(url=url, is_elsewhere=False, authorization=self._authorization)
            else:
                raise self.refusal(url, response, f"no blob sha256:{artifact.sha256} ({artifact.name})")
        raise ServerError(f"{repository} redirects {artifact.name} in circles.", hint=f"Use {INSTEAD}.")

    def hash_blob(self, source: OciFile, artifact: Artifact) -> tuple[str, int]:
        """Return SHA-256 and number of the bytes that the registry sends; more than there should be are not read."""
        url, digest, size = self.locate(source, artifact).url, hashlib.sha256(), 0
        response = self._get(url, {"Accept-Encoding": "identity"})
        try:
            if response.status_code != 200:
                raise self.refusal(url, response, f"no blob sha256:{artifact.sha256} ({artifact.name})")
            with Deadline(self._registries.read_timeout_s) as deadline:
                deadline.restart()
                while size <= artifact.size and (block := response.raw.read(_BLOCK)):
                    if self._registries.cancelled():
                        raise KeyboardInterrupt
                    deadline.restart()
                    digest.update(block)
                    size += len(block)
        finally:
            response.close()
        return digest.hexdigest(), size

    def digest_of(self, tag: str) -> str:
        """Return the digest of the manifest that a tag names now."""
        return self._manifest(tag)[0]

    def _check_listed(self, source: OciFile, artifact: Artifact) -> None:
        """Raise NotTheFileError where the manifest does not list the artifact; say where its tag has moved."""
        digest, listed = self._manifest(source.digest or source.tag or "")
        if source.tag is not None and source.digest is not None:
            self._tell_moved(source.tag, source.digest)
        if artifact.sha256 not in listed:
            raise NotTheFileError(
                f"The manifest sha256:{digest} in {self.repository} lists no blob sha256:{artifact.sha256}: it is not "
                f"of a model with {artifact.name}, or of another version of it.",
                hint="Nothing was fetched. Check the reference in the manifest of klein-setup, or push the file there.",
                expected=artifact.sha256,
                observed=sorted(listed)[:20],
            )

    def _tell_moved(self, tag: str, pinned: str) -> None:
        if tag in self._moved:
            return
        self._moved.add(tag)
        try:
            now = self._fetched_manifest(tag)[0]
        except AccessError:
            self._registries.notice(f"{self.repository} has no tag {tag} any more; sha256:{pinned} is used, as pinned.")
            return
        if now != pinned:
            self._registries.notice(
                f"The tag {tag} of {self.repository} has moved to sha256:{now}; sha256:{pinned} is used, as pinned."
            )

    # --- manifests -------------------------------------------------------------------------------

    def _manifest(self, named: str) -> tuple[str, frozenset[str]]:
        """Return the digest of a manifest by its tag or digest, and the digests of all files that it lists."""
        if named not in self._listed:
            self._listed[named] = self._fetched_manifest(named)
        return self._listed[named]

    def read_manifest(self, named: str) -> bytes:
        """Return the bytes of a manifest by its tag or digest; raises HashMismatchError where the digest is another."""
        is_digest = re.fullmatch("[0-9a-f]{64}", named) is not None
        reference = f"sha256:{named}" if is_digest else named
        body = self._read(
            f"{self.repository.base}/v2/{self.repository.name}/manifests/{reference}",
            f"no manifest {reference}",
            _LARGEST_MANIFEST,
        )
        digest = hashlib.sha256(body).hexdigest()
        if is_digest and digest != named:
            raise HashMismatchError(
                f"{self.repository} sent another manifest than it was asked for: SHA-256 {digest}, expected {named}.",
                hint=f"The registry, or something between it and you, changes what it sends: use {INSTEAD}.",
                expected=named,
                observed=digest,
            )
        return body

    def _fetched_manifest(self, named: str, *, is_inner: bool = False) -> tuple[str, frozenset[str]]:
        body = self.read_manifest(named)
        files, inner = self._parts_of(body, named)
        for each in () if is_inner else inner[:_MOST_MANIFESTS]:
            files |= self._fetched_manifest(each, is_inner=True)[1]
        return hashlib.sha256(body).hexdigest(), files

    def _parts_of(self, body: bytes, reference: str) -> tuple[frozenset[str], tuple[str, ...]]:
        """Return the digests of the files that a manifest lists, and of the manifests that an index lists."""
        found = parse_object(body)
        if found is None or not {"layers", "manifests"} & found.keys():
            raise NotTheFileError(
                f"What {self.repository} has as {reference} is no manifest of an OCI registry.",
                hint=f"Check the reference, or use {INSTEAD}.",
            )
        return frozenset(_digests(found.get("layers"))), _digests(found.get("manifests"))

    # --- requests --------------------------------------------------------------------------------

    def _has_layout(self) -> bool:
        """Whether a web server serves an image layout here; else it is asked as a registry."""
        if self._is_layout is None:
            url = f"{self.repository.layout}/oci-layout"
            try:
                body = self._read(url, "no oci-layout", _LARGEST_LAYOUT)
            except (AccessError, NotTheFileError):
                body = b""
            self._is_layout = b'"imageLayoutVersion"' in body
            if not self._is_layout and not self.repository.name:
                raise NotTheFileError(
                    f"There is no image layout at {self.repository.layout}: {shown(url)} is missing or something else.",
                    hint="Name the folder in which oci-layout, index.json and blobs lie, or a repository of a registry "
                    "as --registry HOST/NAME.",
                )
        return self._is_layout

    def _read(self, url: str, missing: str, limit: int) -> bytes:
        """Return what a GET answers, redirects followed, the login for our own origin alone."""
        at = url
        for _ in range(_MAX_HOPS):
            response = self._get(at, {"Accept": _MANIFESTS})
            try:
                if response.status_code in _REDIRECTS:
                    at = self._next_hop(at, response.headers.get("Location"))
                    continue
                if response.status_code != 200:
                    raise self.refusal(url, response, missing)
                body = self._body(response, limit + 1)
            finally:
                response.close()
            if len(body) > limit:
                raise NotTheFileError(
                    f"{shown(url)} is larger than {limit:,} bytes, which no manifest of a model is.",
                    hint=f"Check the reference, or use {INSTEAD}.",
                )
            return body
        raise ServerError(f"{shown(url)} redirects in circles.", hint=f"Use {INSTEAD}.")

    def _body(self, response: requests.Response, limit: int) -> bytes:
        with Deadline(self._registries.read_timeout_s) as deadline:
            deadline.restart()
            return bytes(response.raw.read(limit, decode_content=True))

    def _get(self, url: str, headers: Mapping[str, str] | None = None) -> requests.Response:
        return self.request("GET", url, headers)

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        timeout_s: float | None = None,
    ) -> requests.Response:
        """Return an answer, unread; once more with a new proof of who we are where the first one is 401."""
        if self._denied is not None:
            raise self._needs_login(self._denied)
        response = self._send(method, url, headers, body, timeout_s)
        if response.status_code == 401 and origin(url) == origin(self.repository.base):
            response.close()
            if self._authorize(response):
                response = self._send(method, url, headers, body, timeout_s)
        return response

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None, body: bytes | None, timeout_s: float | None
    ) -> requests.Response:
        proof = {}
        if self._authorization is not None and origin(url) == origin(self.repository.base):
            proof = {"Authorization": self._authorization}
        timeout_s = timeout_s or self._registries.read_timeout_s
        with Deadline(timeout_s):
            return self._session.request(
                method,
                url,
                headers={**(headers or {}), **proof},
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=(CONNECT_TIMEOUT_S, timeout_s),
            )

    def _next_hop(self, url: str, location: str | None) -> str:
        return next_hop(url, location, stays_public=not self.repository.is_named_by_user, instead=INSTEAD)

    def refusal(self, url: str, response: requests.Response, missing: str) -> Exception:
        """Return what a status other than the one that was hoped for means; `missing` is what 404 says."""
        status = response.status_code
        if status in PASSING_STATUSES:
            return _PassingError(url, response)
        if status in {401, 403}:
            self._denied = status if status == 401 else None
            return self._needs_login(status)
        if status in {404, 410}:
            return EntryNotFoundError(
                f"{self.repository} has {missing} ({status}).",
                hint="Push it there (docs/how-to/registry.md), check the name, or leave --registry-only out.",
                status=status,
            )
        return ServerError(f"{shown(url)} answers {status}.", hint=f"Use {INSTEAD}.", status=status)

    # --- who we are ------------------------------------------------------------------------------

    def _authorize(self, response: requests.Response) -> bool:
        """Answer a challenge; whether there is a new proof now.  Raises UsageError where oras is not installed."""
        self._authorization = None
        challenge = response.headers.get("WWW-Authenticate", "")
        scheme = challenge.partition(" ")[0].lower()
        if scheme not in {"basic", "bearer"}:
            return False
        if is_in_the_clear(self.repository.base):
            raise UnauthorizedError(
                f"{self.repository} asks for a login, which is never sent over plain http.",
                hint="Use an address that begins with https://, or let the registry serve models without a login.",
            )
        auth = _oras_auth()
        backend = auth.get_auth_backend("basic" if scheme == "basic" else "token", session=self._session)
        backend._tls_verify = None
        login = self._saved_login()
        if login is not None:
            backend.set_basic_auth(login.user, login.password)
        elif scheme == "basic":
            return False
        statuses = self._check_realm(auth, response) if scheme == "bearer" else []
        try:
            with Deadline(self._registries.read_timeout_s):
                headers, is_new = backend.authenticate_request(response, {}, refresh=True)
        except (ValueError, AttributeError, TypeError) as error:  # of an answer that is no JSON object
            raise self._no_token(response, statuses) from error
        finally:
            self._session.hooks["response"] = []
        if not is_new or "Authorization" not in headers:
            raise self._no_token(response, statuses)
        self._authorization = str(headers["Authorization"])
        self._registries.keep_secret(self._authorization.partition(" ")[2])
        return True

    def _check_realm(self, auth: Any, response: requests.Response) -> list[requests.Response]:  # noqa: ANN401 - untyped
        """Make a challenge safe to answer; return a list that gets the token service's answers."""
        named = auth.utils.parse_auth_header(response.headers["WWW-Authenticate"])
        try:
            realm = self._next_hop(self.repository.base, named.realm if "://" in (named.realm or "") else None)
        except ServerError as error:
            raise ServerError(
                f"{self.repository} names no token service that may see a login: {error}", hint=error.hint
            ) from error
        if not named.scope:
            actions = "pull" if response.request.method in {"GET", "HEAD"} else "pull,push"
            response.headers["WWW-Authenticate"] += f',scope="repository:{self.repository.name}:{actions}"'
        answers: list[requests.Response] = []

        def look(answer: requests.Response, **_: object) -> None:
            answers.append(answer)
            if answer.status_code in _REDIRECTS:
                raise ServerError(
                    f"The token service {shown(realm)} redirects to another address, where a login is not sent.",
                    hint=f"Use {INSTEAD}, or ask whoever runs it.",
                )
            answer.raw = io.BytesIO(answer.raw.read(_LARGEST_TOKEN, decode_content=True))

        self._session.hooks["response"] = [look]
        return answers

    def _no_token(self, response: requests.Response, answers: list[requests.Response]) -> Exception:
        last = answers[-1] if answers else response
        if last.status_code in PASSING_STATUSES:
            return _PassingError(last.url, last)
        if last.status_code == 200:
            return ServerError(
                f"The token service {shown(last.url)} answers without a token.", hint=f"Use {INSTEAD}, or try later."
            )
        self._denied = last.status_code
        return self._needs_login(last.status_code)

    def _saved_login(self) -> Login | None:
        if not self._has_asked_for_login:
            self._has_asked_for_login = True
            self._login = self._registries.logins.of(urlsplit(self.repository.base).netloc)
            if self._login is not None:
                self._registries.keep_secret(self._login.password)
        return self._login

    def _needs_login(self, status: int) -> UnauthorizedError:
        host = urlsplit(self.repository.base).netloc
        how = f"Log in with `docker login {host}` or `oras login {host}`"
        if self._login is None:
            return UnauthorizedError(
                f"{self.repository} asks for a login ({status}), and none is saved for {host}.",
                hint=f"{how}; klein-setup reads it from {self._registries.logins.path}.",
                status=status,
            )
        return UnauthorizedError(
            f"{self.repository} does not let the saved login of {host} do that ({status}).",
            hint=f"{how} as somebody who may; klein-setup reads it from {self._registries.logins.path}.",
            status=status,
        )


def _digests(listed: object) -> tuple[str, ...]:
    """Return the SHA-256 of every descriptor in a list; what has another digest is of no use."""
    named = (as_dict(each).get("digest") for each in as_list(listed))
    matches = (re.fullmatch("sha256:([0-9a-f]{64})", each) for each in named if isinstance(each, str))
    return tuple(match[1] for match in matches if match is not None)


def _oras_auth() -> Any:  # noqa: ANN401 - oras has no types
    """Return the part of oras that speaks the handshake; raises UsageError where it is not installed."""
    try:
        import oras.auth
        import oras.logger
    except ImportError as error:
        raise UsageError(
            "This registry asks for a login, and answering it needs oras.",
            hint="Install it with `pip install 'klein-setup[oci]'`, and run the same command again.",
        ) from error
    oras.logger.logger.set_level(100)  # it would print to stderr by itself
    return oras.auth


def _address_of(error: Exception) -> str | None:
    """Return what was asked for when it broke: the registry, or its token service."""
    request = getattr(error, "request", None)
    url = getattr(request, "url", None)
    return url if isinstance(url, str) else None


def _jitter() -> float:
    return random.random()  # noqa: S311 - spreads retries, keeps no secret
