"""Whom programs are told to trust, and what the words of five TLS libraries and some proxies mean."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import requests

from provisioner.comfyui.checkout.git import Git
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.core.errors import CertificateError, ProxyLoginError, ProxyRefusedError, StalledError, UsageError
from provisioner.machine.process import Completed
from provisioner.network import http_session
from provisioner.network.certificates import (
    Bundle,
    bundle_in,
    certificate_error,
    certificate_problem,
    git_variables,
    pip_variables,
    proxy_error,
    proxy_status,
    retries_variables,
    uv_variables,
)
from provisioner.network.http_session import may_pass, network_error

THREE = {"REQUESTS_CA_BUNDLE": "/1", "CURL_CA_BUNDLE": "/2", "SSL_CERT_FILE": "/3"}


def test_the_first_variable_that_is_set_names_the_bundle() -> None:
    left = dict(THREE)
    for name, path in THREE.items():
        assert bundle_in(left) == Bundle(name, path)
        left[name] = ""
    assert bundle_in(left) is None


@pytest.mark.parametrize(
    ("environ", "version", "expected"),
    [
        (THREE, (26, 3), {"REQUESTS_CA_BUNDLE": "/1"}),
        ({"SSL_CERT_FILE": "/3"}, (21, 0), {"REQUESTS_CA_BUNDLE": "/3"}),
        ({}, (26, 3), {}),
        ({}, (24, 2), {}),
        ({}, (24, 1), {"PIP_USE_FEATURE": "truststore"}),
        ({}, (23, 3), {"PIP_USE_FEATURE": "truststore"}),
        ({}, (23, 2), {"REQUESTS_CA_BUNDLE": "/store"}),  # has no truststore of its own, and would fail
        ({}, (0, 0), {}),  # fetches nothing
    ],
)
def test_each_pip_is_told_whom_to_trust(
    environ: Mapping[str, str], version: tuple[int, int], expected: dict[str, str]
) -> None:
    assert pip_variables(environ, version, "/store") == expected
    assert pip_variables(environ, version, None) == {name: it for name, it in expected.items() if it != "/store"}


@pytest.mark.parametrize("is_folder", [False, True])
def test_uv_and_git_are_told_whom_to_trust(is_folder: bool) -> None:
    folder = lambda path: is_folder  # noqa: E731
    assert uv_variables(THREE, folder) == {"SSL_CERT_DIR" if is_folder else "SSL_CERT_FILE": "/1"}
    assert git_variables(THREE, folder) == {"GIT_SSL_CAPATH" if is_folder else "GIT_SSL_CAINFO": "/1"}
    assert git_variables(THREE | {"GIT_SSL_CAINFO": "/own"}, folder) == {}
    assert git_variables(THREE | {"GIT_SSL_CAPATH": "/own"}, folder) == {}
    assert (git_variables({}, folder), uv_variables({}, folder)["UV_SYSTEM_CERTS"]) == ({}, "1")


SAID = [  # by whom: OpenSSL 3.0, uv 0.13 (rustls), curl 8 in git with GnuTLS, OpenSSL and schannel
    ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)", "expired"),
    ("invalid peer certificate: Expired", "expired"),
    ("certificate verify failed: certificate is not yet valid", "not-yet-valid"),
    ("invalid peer certificate: NotValidYet", "not-yet-valid"),
    ("certificate verify failed: Hostname mismatch, certificate is not valid for 'localhost'.", "wrong-host"),
    ("certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.1'.", "wrong-host"),
    ('invalid peer certificate: certificate not valid for name "localhost"', "wrong-host"),
    ("SSL: no alternative certificate subject name matches target host name 'localhost'", "wrong-host"),
    ("SSL: certificate subject name (a) does not match target host name 'localhost'", "wrong-host"),
    ("schannel: SNI or certificate check failed: SEC_E_WRONG_PRINCIPAL (0x80090322)", "wrong-host"),
    ("certificate verify failed: certificate revoked", "revoked"),
    ("certificate verify failed: unable to get local issuer certificate (_ssl.c:1006)", "unknown-issuer"),
    ("certificate verify failed: self-signed certificate in certificate chain", "unknown-issuer"),
    ("invalid peer certificate: UnknownIssuer", "unknown-issuer"),
    ("server certificate verification failed. CAfile: none CRLfile: none", "unknown-issuer"),
    ("SSL certificate problem: self signed certificate", "unknown-issuer"),
    ("schannel: CertGetCertificateChain trust error CERT_TRUST_IS_UNTRUSTED_ROOT", "unknown-issuer"),
    ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: CA cert does not include key usage", "refused"),
    ("invalid peer certificate: BadSignature", "refused"),
    ("Connection refused", None),
    ("[SSL: WRONG_VERSION_NUMBER] wrong version number", None),
]


@pytest.mark.parametrize(("text", "reason"), SAID)
def test_the_words_of_each_library_are_understood(text: str, reason: str | None) -> None:
    assert certificate_problem(text) == reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (10, "expired"), (0x800B0101, "expired"), (-67818, "expired"), (9, "not-yet-valid"), (62, "wrong-host"),
        (0x800B010F, "wrong-host"), (-67602, "wrong-host"), (0x800B010C, "revoked"), (20, "unknown-issuer"),
        (0x800B0109, "unknown-issuer"), (-67843, "unknown-issuer"), (999, None), (None, None),
    ],
)  # fmt: skip
def test_the_codes_of_each_system_are_understood(code: int | None, reason: str | None) -> None:
    assert certificate_problem("", code) == reason


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"all_proxy": "http://me@proxy"}, {"PIP_RETRIES": "0"}),
        ({"HTTP_PROXY": "http://me:x@proxy:1"}, {"PIP_RETRIES": "0"}),
        ({"HTTPS_PROXY": "http://proxy:1", "MAIL": "me@example.org"}, {}),
        ({}, {}),
    ],
)
def test_pip_tries_once_where_each_try_sends_a_login(environ: Mapping[str, str], expected: dict[str, str]) -> None:
    assert retries_variables(environ) == expected


def test_every_reason_has_a_sentence_of_its_own() -> None:
    reasons = sorted({str(reason) for _, reason in SAID if reason})
    errors = [certificate_error("hub.example", each, bundle=None, today="2026-11-26", url="x") for each in reasons]
    assert len({str(each) for each in errors}) == len(reasons) == 6
    for error in errors:
        assert isinstance(error, CertificateError)
        assert "hub.example" in str(error)
        assert error.hint
    named = certificate_error("h", "unknown-issuer", bundle=Bundle("SSL_CERT_FILE", "/a.pem"), today="")
    assert "/a.pem (SSL_CERT_FILE), which alone count" in str(named)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Tunnel connection failed: 407 Proxy Authentication Required", 407),
        ("fatal: unable to access 'https://x/': CONNECT tunnel failed, response 403", 403),
        ("fatal: unable to access 'https://x/': Received HTTP code 407 from proxy after CONNECT", 407),
        ("tunnel error: proxy authorization required", 407),
        ("unsuccessful tunnel", None),
        ("HTTP code 404", None),
    ],
)
def test_what_a_proxy_answered_is_found_in_the_words_of_each_program(text: str, status: int | None) -> None:
    assert proxy_status(text) == status


def test_a_proxy_that_asks_is_another_error_than_one_that_refuses() -> None:
    assert isinstance(proxy_error("h", 407), ProxyLoginError)
    assert isinstance(proxy_error("h", 502), ProxyRefusedError)


# --- our own connections -------------------------------------------------------------------------------


def test_neither_a_certificate_nor_a_login_is_tried_again() -> None:
    proxy = requests.exceptions.ProxyError
    assert may_pass(proxy("Cannot connect to proxy."))
    assert may_pass(requests.exceptions.ConnectTimeout())
    assert not may_pass(proxy("Tunnel connection failed: 407 Proxy Authentication Required"))
    assert not may_pass(requests.exceptions.SSLError(ssl.SSLCertVerificationError("certificate verify failed")))
    assert may_pass(requests.exceptions.SSLError(ssl.SSLEOFError("EOF occurred in violation of protocol")))


def test_an_error_that_names_itself_as_its_cause_is_read_to_its_end() -> None:
    first, second = OSError(1, "one"), OSError(2, "two")
    first.__context__, second.__context__ = second, first
    assert http_session.causes_of(first) == [first, second]


@pytest.mark.parametrize("address", ["http://wpad.corp.example/proxy.pac?token=secret", None])
def test_a_script_that_finds_the_proxy_is_named_with_a_way_out(address: str | None) -> None:
    for error in (requests.exceptions.ConnectTimeout(), OSError(113, "No route to host")):
        told = network_error(error, "https://hub.example/x", automatic_proxy=lambda: address)
        assert ("(PAC, http://wpad.corp.example/proxy.pac), which klein-setup does not run" in str(told.hint)) == (
            address is not None
        )
        assert "set HTTPS_PROXY to http://HOST:PORT" in str(told.hint) or address is None
        assert "secret" not in str(told.hint)
    assert isinstance(network_error(requests.exceptions.ConnectTimeout(), "https://h"), StalledError)


def test_a_bundle_that_is_not_there_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(UsageError, match=r"SSL_CERT_FILE names /nowhere/ca\.pem, which is not there"):
        http_session.open_session(http_session.Credentials(None, "https://hub.example"))


# --- git on Windows, which may have a list of its own ----------------------------------------------------


class ScriptedGit:
    """Answers as git does whose own list lacks the company's authority, and the store of Windows has it."""

    def __init__(self, says: str) -> None:
        self.says, self.has_it = says, False
        self.fetches: list[bool] = []  # whether each asked the store of Windows

    def __call__(self, args: Sequence[str | Path], **more: object) -> Completed:
        words = [str(each) for each in args]
        if "fetch" not in words:
            return self.ended(0 if self.has_it else 1)
        self.fetches.append("http.sslBackend=schannel" in words)
        self.has_it = self.fetches[-1]
        return self.ended(0 if self.has_it else 128)

    def ended(self, status: int) -> Completed:
        lines = (self.says,) if status == 128 else ()
        return Completed(args=(), returncode=status, stdout="", stderr="", seconds=0.0, last_lines=lines)


UNKNOWN = "fatal: unable to access 'https://x/': SSL certificate problem: unable to get local issuer certificate"


def fetch_with(run: ScriptedGit, tmp_path: Path, *, is_windows: bool = True, **environ: str) -> None:
    git = Git(
        program=Path("git"),
        run=run,
        environ=environ,
        tree=tmp_path,
        cancelled=lambda: False,
        progress=lambda line: None,
        is_windows=is_windows,
    )
    git.fetch(ComfyRelease(version="0.33.0", commit="a" * 40).wanted, "https://x/ComfyUI", is_shallow=True)


def test_git_is_tried_with_the_store_of_windows_where_its_own_list_lacks_an_authority(
    tmp_path: Path,
) -> None:
    run = ScriptedGit(UNKNOWN)
    fetch_with(run, tmp_path)
    assert run.fetches == [False, True]


@pytest.mark.parametrize(
    ("says", "is_windows", "environ"),
    [
        (UNKNOWN, False, {}),
        (UNKNOWN, True, {"REQUESTS_CA_BUNDLE": "/b.pem"}),
        ("fatal: unable to access 'https://x/': SSL certificate problem: certificate has expired", True, {}),
    ],
)
def test_git_is_not_tried_twice_where_the_store_of_windows_is_of_no_use(
    tmp_path: Path, says: str, is_windows: bool, environ: dict[str, str]
) -> None:
    run = ScriptedGit(says)
    with pytest.raises(CertificateError):
        fetch_with(run, tmp_path, is_windows=is_windows, **environ)
    assert run.fetches == [False]
