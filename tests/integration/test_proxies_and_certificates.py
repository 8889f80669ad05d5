"""A company's network: proxies and what they ask for, certificates and who trusts them; with real servers."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from provisioner.core.errors import CertificateError
from provisioner.files.download.whole_file import WholeFiles
from tests.support.sandbox import MIB, TOKEN, Completed, Sandbox, tensors
from tests.support.tls import Authority, Proxy, TlsFront

BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
NO_BUNDLE = dict.fromkeys((*BUNDLES, "SSL_CERT_DIR"), None)
NAME = "hub.example"  # a host that no resolver knows: only the proxy can reach it


@pytest.fixture
def proxy(sandbox: Sandbox) -> Iterator[Proxy]:
    proxy = Proxy({NAME: urlsplit(sandbox.hub.endpoint).port or 0})
    yield proxy
    proxy.close()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_variable_holds(sandbox: Sandbox, proxy: Proxy, variable: str) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    done = sandbox.install("--endpoint", f"http://{NAME}", env={variable: proxy.url})
    assert done.returncode == 0, done.said
    assert {host for _, host in proxy.asked} == {f"{NAME}:80"}
    sandbox.assert_in_place()


def test_the_token_does_not_travel_in_the_clear(sandbox: Sandbox, proxy: Proxy) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    assert sandbox.install("--endpoint", f"http://{NAME}", env={"http_proxy": proxy.url}).returncode == 0
    assert {request.authorization for request in sandbox.hub.requests} == {None}


def test_no_proxy_holds(sandbox: Sandbox, proxy: Proxy) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    done = sandbox.install("--endpoint", f"http://{NAME}", env={"http_proxy": proxy.url, "NO_PROXY": NAME})
    assert (done.returncode, proxy.asked) == (5, [])
    assert f"{NAME} could not be reached" in done.said


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(sandbox: Sandbox, proxy: Proxy) -> None:
    sandbox.publish(tensors(MIB))
    done = sandbox.install(env={"http_proxy": proxy.url, "HTTPS_PROXY": proxy.url, "NO_PROXY": None})
    assert (done.returncode, proxy.asked) == (0, [])


def test_a_proxy_that_is_not_there_is_named_as_the_cause(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    done = sandbox.install("--endpoint", f"http://{NAME}", env={"http_proxy": closed})
    assert done.returncode == 5
    assert "proxy" in done.said.lower()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("password", ["right%2Fword%3A1", "wrong-password", None])
def test_a_proxy_with_a_login_is_told_who_asks_once(
    sandbox: Sandbox, tmp_path: Path, authority: Authority, scheme: str, password: str | None
) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    front = TlsFront(sandbox.hub.endpoint, authority.issue(NAME))
    behind = front.port if scheme == "https" else urlsplit(sandbox.hub.endpoint).port or 0
    proxy = Proxy({NAME: behind}, login="me:right/word:1")
    url = proxy.url if password is None else proxy.url_of("me", password)
    environ = NO_BUNDLE | {"REQUESTS_CA_BUNDLE": str(authority.certificate)}
    done = sandbox.install("--endpoint", f"{scheme}://{NAME}", "--json", env=environ | {f"{scheme}_proxy": url})
    proxy.close()
    front.close()
    if password == "right%2Fword%3A1":
        assert done.returncode == 0, done.said
        sandbox.assert_in_place()
        return
    assert (done.returncode, done.codes) == (5, ["proxy-login"])
    assert f"The proxy on the way to {NAME} asks who you are (407)" in done.said
    assert "Put your name and password before the host in HTTPS_PROXY" in done.said
    assert "wrong-password" not in done.said
    assert len(proxy.asked) == 1  # a second wrong password may lock an account


def test_a_host_that_the_proxy_does_not_allow_is_named(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    proxy = Proxy({}, refuses=lambda host: host == NAME)
    done = sandbox.install("--endpoint", f"https://{NAME}", "--json", env={"https_proxy": proxy.url})
    proxy.close()
    assert (done.returncode, done.codes) == (5, ["proxy-refused"])
    assert f"does not let this computer reach {NAME} (403)" in done.said
    assert "plan --hosts" in done.said
    assert len(proxy.asked) == 1


def test_a_proxy_for_socks_is_said_to_be_no_way(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    done = sandbox.install("--endpoint", f"https://{NAME}", env={"ALL_PROXY": "socks5h://127.0.0.1:9"})
    assert done.returncode == 5
    assert "speaks SOCKS, which klein-setup does not" in done.said


# --- certificates ------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def install_behind(sandbox: Sandbox, certificate: Path, *words: str, env: dict[str, str | None]) -> Completed:
    """Install from the hub behind TLS with that certificate; NAME is what no certificate of ours is for."""
    sandbox.publish(tensors(MIB), is_direct=True)
    front = TlsFront(sandbox.hub.endpoint, certificate)
    try:
        return sandbox.install("--endpoint", front.endpoint, *words, env=NO_BUNDLE | env)
    finally:
        front.close()


@pytest.mark.parametrize("variable", BUNDLES)
def test_a_bundle_of_certificates_holds(sandbox: Sandbox, authority: Authority, variable: str) -> None:
    environ: dict[str, str | None] = {variable: str(authority.certificate)}
    done = install_behind(sandbox, authority.issue("localhost"), "--send-token", env=environ)
    assert done.returncode == 0, done.said
    sandbox.assert_in_place()
    assert {request.authorization for request in sandbox.hub.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.skipif(sys.platform != "linux", reason="SSL_CERT_DIR names the system's store on Linux alone")
def test_the_store_of_the_system_is_trusted(sandbox: Sandbox, authority: Authority) -> None:
    environ: dict[str, str | None] = {"SSL_CERT_DIR": str(authority.as_system_store())}
    done = install_behind(sandbox, authority.issue("localhost"), env=environ)
    assert done.returncode == 0, done.said
    sandbox.assert_in_place()


@pytest.mark.skipif(sys.platform != "linux", reason="SSL_CERT_DIR names the system's store on Linux alone")
def test_a_bundle_counts_before_the_store_of_the_system(sandbox: Sandbox, authority: Authority, tmp_path: Path) -> None:
    environ: dict[str, str | None] = {
        "SSL_CERT_DIR": str(authority.as_system_store()),
        "REQUESTS_CA_BUNDLE": str(Authority(tmp_path / "another").certificate),
    }
    done = install_behind(sandbox, authority.issue("localhost"), "--json", env=environ)
    assert (done.returncode, done.codes) == (5, ["certificate"])
    assert f"({'REQUESTS_CA_BUNDLE'}), which alone count" in done.said


PAST, FUTURE = ("20240101000000Z", "20240601000000Z"), ("20900101000000Z", "20910101000000Z")


@pytest.mark.parametrize(
    ("reason", "names", "days", "is_known", "says", "hint"),
    [
        (
            "unknown-issuer",
            ("localhost",),
            ("", ""),
            False,
            "signed by an authority that is not among",
            "REQUESTS_CA_BUNDLE",
        ),
        ("expired", ("localhost",), PAST, True, "certificate of localhost has expired", "This computer's date is 20"),
        ("not-yet-valid", ("localhost",), FUTURE, True, "is not valid yet", "This computer's date is 20"),
        ("wrong-host", (NAME, "10.1.2.3"), ("", ""), True, "for another name, not for localhost", "login page"),
    ],
)
def test_each_certificate_that_is_refused_has_its_sentence(
    sandbox: Sandbox,
    authority: Authority,
    reason: str,
    names: tuple[str, ...],
    days: tuple[str, str],
    is_known: bool,
    says: str,
    hint: str,
) -> None:
    certificate = authority.issue(*names, from_day=days[0], to_day=days[1])
    environ: dict[str, str | None] = {"REQUESTS_CA_BUNDLE": str(authority.certificate)} if is_known else {}
    done = install_behind(sandbox, certificate, "--json", env=environ)
    assert (done.returncode, done.codes) == (5, ["certificate"])
    (error,) = done.json["errors"]
    assert error["context"]["reason"] == reason
    assert says in error["message"]
    assert hint in error["hint"]
    assert sandbox.hub.requests == ()


def test_a_proxy_that_reads_connections_is_refused_until_its_authority_is_named(
    sandbox: Sandbox, authority: Authority, tmp_path: Path
) -> None:
    company = Authority(tmp_path / "company", "Company Inspection")
    sandbox.publish(tensors(MIB), is_direct=True)
    front = TlsFront(sandbox.hub.endpoint, company.issue(NAME))
    proxy = Proxy({NAME: front.port})
    environ = NO_BUNDLE | {"https_proxy": proxy.url}
    for bundle in (None, authority.certificate):
        refused = sandbox.install(
            "--endpoint", f"https://{NAME}", env=environ | {"SSL_CERT_FILE": bundle and str(bundle)}
        )
        assert refused.returncode == 5
        assert "a proxy that reads connections signs them itself" in refused.said, refused.stderr
        assert "do not go on: somebody reads this connection" in refused.said
    assert sandbox.hub.requests == ()
    named = sandbox.install(
        "--endpoint", f"https://{NAME}", env=environ | {"REQUESTS_CA_BUNDLE": str(company.certificate)}
    )
    front.close()
    proxy.close()
    assert named.returncode == 0, named.said


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bundle_that_is_none_is_named_with_its_variable(
    sandbox: Sandbox, authority: Authority, tmp_path: Path, content: str | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    done = install_behind(sandbox, authority.issue("localhost"), env={"CURL_CA_BUNDLE": str(bundle)})
    assert done.returncode == 2, done.said
    assert f"CURL_CA_BUNDLE names {bundle}" in done.said


def test_a_server_that_speaks_no_tls_is_no_matter_of_certificates(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB), is_direct=True)
    done = sandbox.install("--endpoint", sandbox.hub.endpoint.replace("http://", "https://"), env=NO_BUNDLE)
    assert done.returncode == 5
    assert "could not be asked over TLS" in done.said


def test_an_archive_behind_a_certificate_that_is_refused_is_asked_for_once(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NO_BUNDLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "localhost")
    front = TlsFront("http://127.0.0.1:9", authority.issue("localhost"))
    said: list[str] = []
    with pytest.raises(CertificateError):
        WholeFiles().fetch(
            f"{front.endpoint}/x.zip", tmp_path / "x", what="ComfyUI", hint="", most_bytes=1, progress=said.append
        )
    front.close()
    assert said == []
