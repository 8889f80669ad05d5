"""Which certificates a server's is checked against, and what it means that one was not accepted.

A file that ``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE`` or ``SSL_CERT_FILE`` names counts alone; else what the operating
system trusts does.  The programs that fetch for us (pip, uv, git) each read other variables: they are told the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from provisioner.core.errors import CertificateError, ProxyLoginError, ProxyRefusedError, UnreachableError

BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables that name a file of certificates, or a folder; the first that is set counts."""


class Bundle(NamedTuple):
    """The certificates that a person names."""

    variable: str
    path: str


def bundle_in(environ: Mapping[str, str]) -> Bundle | None:
    """Return the file or folder of certificates that the environment names, None where the system's count.

    >>> bundle_in({"SSL_CERT_FILE": "/a.pem", "REQUESTS_CA_BUNDLE": "/b.pem"})
    Bundle(variable='REQUESTS_CA_BUNDLE', path='/b.pem')
    """
    return next((Bundle(name, environ[name]) for name in BUNDLES if environ.get(name)), None)


_FIRST_PIP_WITH_THE_SYSTEMS = (24, 2)  # does so by itself; from 23.3 on when asked to
_FIRST_PIP_THAT_CAN = (23, 3)


def pip_variables(environ: Mapping[str, str], version: tuple[int, int], system: str | None) -> dict[str, str]:
    """Return what lets a pip of that version trust whom we trust, as variables.

    Parameters
    ----------
    environ : mapping
        The person's variables.
    version : tuple of int
        Of pip, (25, 3); (0, 0) for one that fetches nothing.
    system : str or None
        The system's store as a file or a folder, for a pip before 23.3, which knows no other; None where there is none
        (Windows): then such a pip goes on trusting Mozilla's list.

    Examples
    --------
    >>> pip_variables({"SSL_CERT_FILE": "/a.pem"}, (24, 0), None), pip_variables({}, (23, 2), "/etc/ssl/certs")
    ({'REQUESTS_CA_BUNDLE': '/a.pem'}, {'REQUESTS_CA_BUNDLE': '/etc/ssl/certs'})
    >>> pip_variables({}, (24, 0), None), pip_variables({}, (25, 3), "/etc/ssl/certs")
    ({'PIP_USE_FEATURE': 'truststore'}, {})
    """
    bundle = bundle_in(environ)
    if bundle is not None:
        return {"REQUESTS_CA_BUNDLE": bundle.path}
    if _FIRST_PIP_THAT_CAN <= version < _FIRST_PIP_WITH_THE_SYSTEMS:
        return {"PIP_USE_FEATURE": "truststore"}
    is_old = (0, 0) < version < _FIRST_PIP_THAT_CAN
    return {"REQUESTS_CA_BUNDLE": system} if is_old and system is not None else {}


def uv_variables(environ: Mapping[str, str], is_folder: Callable[[str], bool]) -> dict[str, str]:
    """Return what lets uv trust whom we trust, as variables; ``UV_NATIVE_TLS`` is for a uv before 0.11.

    >>> uv_variables({"REQUESTS_CA_BUNDLE": "/a.pem"}, lambda path: False)
    {'SSL_CERT_FILE': '/a.pem'}
    >>> uv_variables({}, lambda path: False)
    {'UV_SYSTEM_CERTS': '1', 'UV_NATIVE_TLS': '1'}
    """
    bundle = bundle_in(environ)
    if bundle is None:
        return {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
    return {"SSL_CERT_DIR" if is_folder(bundle.path) else "SSL_CERT_FILE": bundle.path}


def git_variables(environ: Mapping[str, str], is_folder: Callable[[str], bool]) -> dict[str, str]:
    """Return what lets git trust whom we trust, as variables; git's own, where the person set it, stays.

    Without a file git asks the library it was built with: the system's certificates on Linux and macOS.

    >>> git_variables({"SSL_CERT_FILE": "/a.pem"}, lambda path: False)
    {'GIT_SSL_CAINFO': '/a.pem'}
    """
    bundle = bundle_in(environ)
    if bundle is None or environ.get("GIT_SSL_CAINFO") or environ.get("GIT_SSL_CAPATH"):
        return {}
    return {"GIT_SSL_CAPATH" if is_folder(bundle.path) else "GIT_SSL_CAINFO": bundle.path}


# --- what went wrong ---------------------------------------------------------------------------

# Codes of OpenSSL (x509_vfy.h), of Windows (winerror.h) and of macOS (SecBase.h), as truststore hands them on.
_OF_CODE = {
    **dict.fromkeys((10, 0x800B0101, -67818), "expired"),
    **dict.fromkeys((9, -67819), "not-yet-valid"),
    **dict.fromkeys((62, 64, 0x800B010F, -67602), "wrong-host"),
    **dict.fromkeys((23, 0x800B010C, 0x80092010, -67820), "revoked"),
    **dict.fromkeys((2, 18, 19, 20, 21, 27, 0x800B0109, 0x800B010A, -67843, -25318), "unknown-issuer"),
}
# Words of OpenSSL, GnuTLS, curl, rustls (uv) and Windows; the first row that fits counts.
_OF_WORDS = (
    ("not-yet-valid", r"not yet valid|notvalidyet|not activated"),
    ("expired", r"certificate has expired|certificate expired|invalid peer certificate: expired|cert_e_expired"),
    (
        "wrong-host",
        r"hostname mismatch|ip address mismatch|notvalidforname|not valid for name|does(?: not|n't) match|"
        r"no alternative certificate subject name|sec_e_wrong_principal",
    ),
    ("revoked", r"certificate (?:has been |is )?revoked|crypt_e_revoked"),
    (
        "unknown-issuer",
        r"unable to get (?:local )?issuer certificate|self[- ]signed certificate|unknownissuer|unknown issuer|"
        r"unable to verify the first certificate|server certificate verification failed|untrusted_?root|"
        r"signer not found|caused?usedasendentity",
    ),
    ("refused", r"certificate[ _]verify[ _]failed|ssl certificate problem|invalid peer certificate"),
)


def certificate_problem(text: str, code: int | None = None) -> str | None:
    """Return why a certificate was not accepted, None where a text tells of something else.

    Parameters
    ----------
    text : str
        What OpenSSL, pip, uv or git said.
    code : int, optional
        The number that came with it.

    Returns
    -------
    str or None
        ``"expired"``, ``"not-yet-valid"``, ``"wrong-host"``, ``"revoked"``, ``"unknown-issuer"``; ``"refused"`` where
        no reason is known.

    Examples
    --------
    >>> certificate_problem("SSL certificate problem: unable to get local issuer certificate")
    'unknown-issuer'
    >>> certificate_problem("", 62), certificate_problem("Connection refused")
    ('wrong-host', None)
    """
    if code in _OF_CODE:
        return _OF_CODE[code]
    lowered = text.lower()
    return next((reason for reason, words in _OF_WORDS if re.search(words, lowered)), None)


_INTERCEPTED = (
    "In a company network, a proxy that reads connections signs them itself: get its certificate authority from those "
    "who run it, and add it to the operating system's store, or name its PEM file in REQUESTS_CA_BUNDLE. Anywhere else "
    "do not go on: somebody reads this connection."
)


def certificate_error(
    host: str, reason: str, *, bundle: Bundle | None, today: str | None, consequence: str = "", **context: object
) -> CertificateError:
    """Return the error for a certificate that was not accepted.

    Parameters
    ----------
    host : str
        Who was asked.
    reason : str
        As `certificate_problem` returns it.
    bundle : Bundle or None
        The certificates that count alone.
    today : str or None
        This computer's date, ``2026-11-26``; None where whoever says it does not know.
    consequence : str
        What could not be done, as a sentence.
    context : object
        More facts.
    """
    trusted = "the certificates that this computer trusts"
    if bundle is not None:
        trusted = f"the certificates in {bundle.path} ({bundle.variable}), which alone count"
    date = "Look at this computer's date" if today is None else f"This computer's date is {today}"
    read = f"To see it, open https://{host} in a browser and look at who issued it."
    message, hint = {
        "expired": (
            f"The certificate of {host} has expired.",
            f"{date}: correct it if it is wrong. If it is right, whoever runs {host}, or the "
            "proxy in between, has to renew the certificate.",
        ),
        "not-yet-valid": (
            f"The certificate of {host} is not valid yet.",
            f"{date}: correct it, then run the same command again.",
        ),
        "wrong-host": (
            f"The certificate that came from {host} is one for another name, not for {host}.",
            "The login page of a network or a proxy does that, or the address is misspelt. " + read,
        ),
        "revoked": (
            f"The certificate of {host} was revoked by who issued it.",
            f"Do not go on; whoever runs {host}, or the proxy in between, has to replace the certificate.",
        ),
        "unknown-issuer": (
            f"The certificate of {host} is signed by an authority that is not among {trusted}.",
            f"{_INTERCEPTED} {read}",
        ),
    }.get(reason, (f"The certificate of {host} was not accepted.", f"{_INTERCEPTED} {read}"))
    return CertificateError(_with(message, consequence), hint=hint, reason=reason, **context)


def retries_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what keeps pip from giving a proxy the same wrong password six times in a row: that locks accounts.

    pip tries everything again that is no answer, a refused login too; where no login is sent, it may.

    >>> (
    ...     retries_variables({"https_proxy": "http://me:secret@proxy:3128"}),
    ...     retries_variables({"HTTPS_PROXY": "http://p"}),
    ... )
    ({'PIP_RETRIES': '0'}, {})
    """
    has_login = any(name.upper().endswith("_PROXY") and "@" in value for name, value in environ.items())
    return {"PIP_RETRIES": "0"} if has_login else {}


_FROM_A_PROXY = re.compile(
    r"(?:tunnel connection failed: |connect tunnel failed, response |http code (?=\d+ from proxy))(\d{3})|"
    r"proxy auth(?:orization|entication) required",
    re.I,
)


def proxy_status(text: str) -> int | None:
    """Return the status with which a proxy refused, None where a text tells of something else.

    >>> (
    ...     proxy_status("Tunnel connection failed: 403 Forbidden"),
    ...     proxy_status("fatal: Received HTTP code 407 from proxy"),
    ... )
    (403, 407)
    >>> proxy_status("Connection refused") is None
    True
    """
    found = _FROM_A_PROXY.search(text)  # uv has words alone for 407
    return None if found is None else int(found[1] or 407)


def proxy_error(host: str, status: int, *, consequence: str = "", **context: object) -> UnreachableError:
    """Return the error for a proxy that let nothing through to a host; `consequence` as in `certificate_error`."""
    if status == 407:
        return ProxyLoginError(
            _with(
                f"The proxy on the way to {host} asks who you are (407), and did not accept what it was told.",
                consequence,
            ),
            hint="Put your name and password before the host in HTTPS_PROXY and HTTP_PROXY, with a colon between and "
            "an @ behind, special characters as %XX (docs/how-to/company-network.md). A proxy that wants NTLM or "
            "Kerberos needs a helper on this computer (px, cntlm): name its address instead.",
            status=status,
            **context,
        )
    return ProxyRefusedError(
        _with(f"The proxy does not let this computer reach {host} ({status}).", consequence),
        hint="Ask those who run it to allow the hosts that `klein-setup plan --hosts` lists; or name a mirror that is "
        "allowed. HTTPS_PROXY and NO_PROXY say which proxy is used.",
        status=status,
        **context,
    )


def _with(message: str, consequence: str) -> str:
    return f"{message} {consequence}" if consequence else message
