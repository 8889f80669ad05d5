"""One connection's manners: proxies and certificates from the environment, the token to its own origin only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.auth import AuthBase, HTTPBasicAuth

from provisioner import __version__
from provisioner.core.errors import KleinError, StalledError, UnreachableError
from provisioner.core.hosts import LOOPBACK
from provisioner.core.route import Route
from provisioner.network.deadline import DeadlineAdapter

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What proves who asks, and the one origin that may see it."""

    token: str | None
    endpoint: str
    route: Route | None = None  # of a package index: its user's name and password, else those of ``.netrc``

    def may_see(self, url: str) -> bool:
        """Whether a request to this address carries them: same scheme, host and port, and never in the clear."""
        if origin(url) != origin(self.endpoint):
            return False
        parts = urlsplit(url)
        return parts.scheme == "https" or parts.hostname in LOOPBACK

    def user(self) -> tuple[str, str] | None:
        """Return the name and password for an index, None where there are none."""
        if self.route is None:
            return None
        return self.route.user or requests.utils.get_netrc_auth(self.endpoint)


class _OnlyToItsOrigin(AuthBase):
    """Adds what proves who asks where it belongs.  Being set at all, it keeps requests from using ``.netrc`` itself."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._user = credentials.user()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if request.url and self._credentials.may_see(request.url):
            if self._credentials.token:
                request.headers["Authorization"] = f"Bearer {self._credentials.token}"
            elif self._user is not None:
                HTTPBasicAuth(*(each.encode() for each in self._user))(request)
        return request


class _Session(requests.Session):
    """A session that reaches a server on this very machine directly, whatever the proxy variables say."""

    _index: Credentials | None = None

    def take(self, index: Credentials) -> None:
        """Reach servers as a package index's settings say; what they leave open stays as the variables say."""
        self._index = index

    def merge_environment_settings(  # the stubs' types for these are private
        self,
        url: Any,  # noqa: ANN401
        proxies: Any,  # noqa: ANN401
        stream: Any,  # noqa: ANN401
        verify: Any,  # noqa: ANN401
        cert: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Take proxies and certificates from the environment, the proxies not for loopback."""
        host = urlsplit(url).hostname or ""
        route = Route() if self._index is None or self._index.route is None else self._index.route
        if route.proxy is not None:
            proxies = {"http": route.proxy, "https": route.proxy}
        elif host in LOOPBACK:
            proxies = {**(proxies or {}), "no_proxy": host}
        if route.certificates is not None:
            verify = str(route.certificates)
        if self._index is not None and origin(url) == origin(self._index.endpoint):  # not where it redirects to
            verify = verify if route.checks_certificate else False
            cert = cert if route.client_certificate is None else str(route.client_certificate)
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port; two addresses with the same three are the same origin.

    >>> origin("https://huggingface.co/x") == origin("https://HuggingFace.co:443/y")
    True
    >>> origin("http://127.0.0.1:1/") == origin("http://127.0.0.1:2/")
    False
    """
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def shown(url: str) -> str:
    """Return an address as it may be shown: no query, no user name, no fragment.

    >>> shown("https://user:secret@host/path?Signature=abc#x")
    'https://host/path'
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def open_session(credentials: Credentials) -> requests.Session:
    """Return a session for one thread; proxies and certificate bundles come from the usual variables."""
    session = _Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, DeadlineAdapter())
    session.auth = _OnlyToItsOrigin(credentials)
    session.headers.update(
        {
            "User-Agent": f"klein-setup/{__version__} python-requests/{requests.__version__}",
            "Accept-Encoding": "identity",  # the manifest counts the bytes as they lie in the repository
            "Accept": "*/*",
        }
    )
    # requests reads REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE by itself, but not the variable OpenSSL's users set.
    bundle = os.environ.get("SSL_CERT_FILE")
    if bundle and not (os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")):
        session.verify = bundle
    if credentials.route is not None:
        session.take(credentials)
    return session


def network_error(error: Exception, url: str) -> KleinError:
    """Return the error of ours that says why a request never got an answer."""
    host = urlsplit(url).hostname or url
    if isinstance(error, requests.exceptions.ProxyError):
        return UnreachableError(
            f"The proxy did not let us reach {host}: {reason_of(error)}.",
            hint="Check HTTPS_PROXY and NO_PROXY.",
            url=shown(url),
        )
    if isinstance(error, requests.exceptions.SSLError):
        return UnreachableError(
            f"The certificate of {host} was not accepted: {reason_of(error)}.",
            hint="Behind a company proxy, set REQUESTS_CA_BUNDLE to its certificate file.",
            url=shown(url),
        )
    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
        return StalledError(
            f"{host} did not answer in time.",
            hint="Check the connection and run the same command again; what has arrived is kept.",
            url=shown(url),
        )
    return UnreachableError(
        f"{host} could not be reached: {reason_of(error)}.",
        hint="Check the connection (and HF_ENDPOINT or --endpoint if you use a mirror); run the same command again, "
        "what has arrived is kept.",
        url=shown(url),
    )


def reason_of(error: BaseException) -> str:
    """Return the innermost reason in the system's words; the outer ones print whole addresses with their queries."""
    seen: set[int] = set()
    innermost: BaseException = error
    while id(innermost) not in seen:
        seen.add(id(innermost))
        reason = getattr(innermost, "reason", None)
        following = reason if isinstance(reason, BaseException) else innermost.__cause__ or innermost.__context__
        if following is None:
            break
        innermost = following
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return type(innermost).__name__
