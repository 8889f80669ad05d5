"""One connection's manners: proxies and certificates from the environment, the token to its own origin only."""

from __future__ import annotations

import os
import re
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.auth import AuthBase, HTTPBasicAuth

from provisioner import __version__
from provisioner.core.errors import KleinError, ServerError, StalledError, UnreachableError, UsageError
from provisioner.core.hosts import LOOPBACK, is_private
from provisioner.core.route import Route
from provisioner.network.certificates import (
    Bundle,
    bundle_in,
    certificate_error,
    certificate_problem,
    proxy_error,
    proxy_status,
)
from provisioner.network.system_store import SystemStoreAdapter

CONNECT_TIMEOUT_S = 10.0
OF_A_REGISTRY = "--registry, if you named one"
"""The `setting` of `network_error` for an OCI registry."""


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What proves who asks, and the one origin that may see it."""

    token: str | None
    endpoint: str
    route: Route | None = None  # of a package index: its user's name and password, else those of ``.netrc``

    @property
    def instead(self) -> str:
        """What a hint names where this server is of no use."""
        return "another --endpoint" if self.route is None else "another index (--torch-index, --package-index)"

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

    def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:  # noqa: ANN401 - handed on
        """Send a request; raises what an https proxy's 407 raises where the proxy answers for a server itself."""
        answer = super().send(request, **more)
        if answer.status_code == 407:
            answer.close()
            raise requests.exceptions.ProxyError("Tunnel connection failed: 407 Proxy Authentication Required")
        return answer


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
    """Return a session for one thread; proxies and certificate bundles come from the usual variables.

    Raises UsageError where a variable names certificates that are not there.
    """
    session = _Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, SystemStoreAdapter())
    session.auth = _OnlyToItsOrigin(credentials)
    session.headers.update(
        {
            "User-Agent": f"klein-setup/{__version__} python-requests/{requests.__version__}",
            "Accept-Encoding": "identity",  # the manifest counts the bytes as they lie in the repository
            "Accept": "*/*",
        }
    )
    # requests reads REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE by itself, but not the variable OpenSSL's users set.
    bundle = bundle_in(os.environ)
    if bundle is not None:
        if not Path(bundle.path).exists():
            raise UsageError(
                f"{bundle.variable} names {bundle.path}, which is not there.",
                hint=f"Correct {bundle.variable}, or unset it: then the certificates of the operating system count.",
                path=bundle.path,
            )
        session.verify = bundle.path
    if credentials.route is not None:
        session.take(credentials)
    return session


def proxy_for(url: str) -> str | None:
    """Return the proxy through which an address is reached, without its login; None for none."""
    if urlsplit(url).hostname in LOOPBACK:
        return None
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    return None if proxy is None else shown(proxy).rstrip("/")


def next_hop(url: str, location: str | None, *, stays_public: bool = False, instead: str = "another --endpoint") -> str:
    """Return where a redirect leads; `instead` is what a hint names where it leads nowhere.

    Raises ServerError for none, for one that would leave https, and where it `stays_public` for one from a public host
    into a private network.
    """
    target = urljoin(url, location or "")
    scheme = urlsplit(target).scheme
    if not location or scheme not in {"http", "https"}:
        raise ServerError(f"{shown(url)} redirects to nowhere.", hint=f"Try again later, or use {instead}.")
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise ServerError(
            f"{shown(url)} redirects to an unencrypted address, {shown(target)}; that is never followed.",
            hint=f"Use {instead}, or another network.",
        )
    if stays_public and is_private(urlsplit(target).hostname or "") and not is_private(urlsplit(url).hostname or ""):
        raise ServerError(
            f"{shown(url)} redirects into a private network, to {shown(target)}; that is never followed.",
            hint=f"Do not go on, unless you know who named that address; or use {instead}.",
        )
    return target


def may_pass(error: Exception) -> bool:
    """Whether asking again may help; not where a certificate was refused or a proxy said no: that locks accounts."""
    is_final = isinstance(error, requests.exceptions.SSLError) and _cause(error, ssl.SSLEOFError) is None
    return not is_final and _status_of_proxy(error) is None


def network_error(
    error: Exception,
    url: str,
    *,
    automatic_proxy: Callable[[], str | None] | None = None,
    setting: str = "HF_ENDPOINT or --endpoint if you use a mirror",
) -> KleinError:
    """Return the error of ours that says why a request never got an answer.

    Parameters
    ----------
    error : Exception
        What requests, urllib3 or the system raised.
    url : str
        What was asked for.
    automatic_proxy : callable, optional
        Returns the address of the system's automatic proxy configuration; the registry's on Windows.
    setting : str
        What names the server, and is worth checking.
    """
    host = urlsplit(url).hostname or url
    bundle = bundle_in(os.environ)
    if (status := _status_of_proxy(error)) is not None:
        return proxy_error(host, status, url=shown(url))
    refused = _cause(error, ssl.SSLCertVerificationError)
    if refused is not None:
        said = getattr(refused, "verify_message", "") or str(refused)
        reason = certificate_problem(said, getattr(refused, "verify_code", None)) or "refused"
        today = time.strftime("%Y-%m-%d")
        return certificate_error(host, reason, bundle=bundle, today=today, url=shown(url), said=said)
    if isinstance(error, requests.exceptions.ProxyError):
        return UnreachableError(
            f"The proxy did not let us reach {host}: {reason_of(error)}.",
            hint="Check HTTPS_PROXY and NO_PROXY: the address of most proxies begins with http://, also for https.",
            url=shown(url),
        )
    if isinstance(error, requests.exceptions.InvalidSchema):  # a proxy for SOCKS: Python needs PySocks for it
        return UnreachableError(
            f"The proxy for {host} speaks SOCKS, which klein-setup does not.",
            hint="Name an HTTP proxy in HTTPS_PROXY (most SOCKS servers have one, too), or unset ALL_PROXY.",
            url=shown(url),
        )
    if isinstance(error, requests.exceptions.SSLError):
        return _no_tls(error, host, url, bundle)
    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
        return StalledError(
            f"{host} did not answer in time.",
            hint="Check the connection and run the same command again; what has arrived is kept."
            + _about_automatic_proxy(automatic_proxy),
            url=shown(url),
        )
    return UnreachableError(
        f"{host} could not be reached: {reason_of(error)}.",
        hint=f"Check the connection (and {setting}); run the same command again, what has arrived is kept."
        + _about_automatic_proxy(automatic_proxy),
        url=shown(url),
    )


def _no_tls(error: Exception, host: str, url: str, bundle: Bundle | None) -> KleinError:
    """Return the error for a connection that never got as far as a certificate."""
    said = str(_cause(error, ssl.SSLError) or error)
    if bundle is not None and "[X509" in said:
        return UsageError(
            f"{bundle.variable} names {bundle.path}, which holds no certificates that can be read.",
            hint="It has to be a PEM file, with lines -----BEGIN CERTIFICATE-----; or a folder that `openssl rehash` "
            "prepared.",
            path=bundle.path,
        )
    found = re.search(r"\[SSL[^\]]*\]\s*([^(]*)", said)
    return UnreachableError(
        f"{host} could not be asked over TLS: {found[1].strip() if found else reason_of(error)}.",
        hint="A firewall, or a proxy whose address begins with https:// and should begin with http://, does that; so "
        "does an address with the port of another service.",
        url=shown(url),
    )


def _about_automatic_proxy(automatic_proxy: Callable[[], str | None] | None) -> str:
    """Return what to do about a proxy that only a script knows; nothing where the system has none."""
    address = (automatic_proxy or automatic_proxy_of_windows)()
    if not address:
        return ""
    return (
        f" This computer finds its proxy with a script (PAC, {shown(address)}), which klein-setup does not run: open "
        "that address, look for PROXY HOST:PORT in it, and set HTTPS_PROXY to http://HOST:PORT."
    )


def automatic_proxy_of_windows() -> str | None:
    """Return the address of the user's automatic proxy configuration, None where there is none or a proxy is set."""
    if sys.platform != "win32" or any(os.environ.get(name) for name in ("HTTPS_PROXY", "ALL_PROXY")):
        return None
    import winreg

    try:
        with winreg.OpenKey(
            winreg.HKEY_CURRENT_USER, r"Software\Microsoft\Windows\CurrentVersion\Internet Settings"
        ) as key:
            return str(winreg.QueryValueEx(key, "AutoConfigURL")[0]) or None
    except OSError:
        return None


def _status_of_proxy(error: BaseException) -> int | None:
    return proxy_status(str(error)) if isinstance(error, requests.exceptions.ProxyError) else None


def causes_of(error: BaseException) -> list[BaseException]:
    """Return an error, and what lies behind it, the innermost last."""
    found = [error]
    while True:
        reason = getattr(found[-1], "reason", None)
        each = reason if isinstance(reason, BaseException) else found[-1].__cause__ or found[-1].__context__
        if each is None:  # urllib3 puts what TLS raised into an error that it does not raise itself
            each = next((part for part in found[-1].args if isinstance(part, BaseException)), None)
        if each is None or any(each is known for known in found):
            return found
        found.append(each)


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    return next((each for each in causes_of(error) if isinstance(each, kind)), None)


def reason_of(error: BaseException) -> str:
    """Return the innermost reason in the system's words; the outer ones print whole addresses with their queries."""
    innermost = causes_of(error)[-1]
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return type(innermost).__name__
