"""A whole installation behind a company's proxy: each host by name through it, certificates of the company alone."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from provisioner.environment.build_context import BuildContext, pip_version
from provisioner.machine.process import run_process
from tests.support.sandbox import Completed, Sandbox
from tests.support.setup_fixture import EINOPS, KLEIN, PROGRAM, TORCH, SetupFixture, Upstream, git, write_tree
from tests.support.tls import Authority, Proxy, TlsFront
from tests.support.wheels import ToyIndex, wheel_cache

PASSWORD = "proxy/pass:word"
SPY = """
import os, sys
def note(event, arguments):
    if event == "socket.getaddrinfo":
        with open(os.environ["LOOKED_UP"], "a") as log:
            log.write(f"{arguments[0]}\\n")
sys.addaudithook(note)
"""


@dataclass
class Company:
    """Four servers that only the proxy knows by name, behind TLS of the company's own authority."""

    setup: SetupFixture
    proxy: Proxy
    environ: dict[str, str]
    looked_up: Path

    def options(self) -> list[str]:
        return [
            *("--endpoint", "https://hub.example", "--torch-index", "https://torch.example/simple"),
            *("--package-index", "https://packages.example/simple"),
        ]

    def run(self, *words: str, env: dict[str, str] | None = None) -> Completed:
        given = [*words, *self.options()]
        return self.setup.run(*given, source="https://git.example/ComfyUI.git", env=self.environ | (env or {}))

    def install_environment(self, *, has_comfyui: bool, env: dict[str, str]) -> Completed:
        if has_comfyui:
            write_tree(self.setup.tree, PROGRAM)
        return self.run("install", "--yes", "--json", "--only", "environment", env=env)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def company(sandbox: Sandbox, tmp_path: Path) -> Iterator[Company]:
    torch, packages = ToyIndex(TORCH), ToyIndex([EINOPS])
    upstream = Upstream(tmp_path / "upstream" / "ComfyUI")
    bare = tmp_path / "served" / "ComfyUI.git"
    git(tmp_path, "clone", "-q", "--bare", str(upstream.path), str(bare))
    git(bare, "update-server-info")
    files = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(bare.parent)))
    threading.Thread(target=files.serve_forever, args=(0.05,), daemon=True).start()
    setup = SetupFixture(sandbox, torch, upstream)
    sandbox.publish(*KLEIN, is_direct=True)
    authority = Authority(tmp_path / "authority")
    served = {
        "hub.example": sandbox.hub.endpoint,
        "torch.example": torch.url,
        "packages.example": packages.url,
        "git.example": f"http://127.0.0.1:{files.server_port}",
    }
    fronts = {name: TlsFront(behind, authority.issue(name)) for name, behind in served.items()}
    proxy = Proxy({name: front.port for name, front in fronts.items()}, login=f"me:{PASSWORD}")
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    environ = {
        "HTTPS_PROXY": proxy.url_of("me", "proxy%2Fpass%3Aword"),
        "NO_PROXY": "127.0.0.1,localhost",
        "REQUESTS_CA_BUNDLE": str(authority.certificate),
        "PIP_INDEX_URL": "https://nobody-asks.example/simple",
        "PYTHONPATH": f"{spy}{os.pathsep}{sandbox.environ['PYTHONPATH']}",
        "LOOKED_UP": str(tmp_path / "looked-up.txt"),
    }
    for name in ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT", "GIT_SSL_CAINFO"):
        sandbox.environ.pop(name, None)
    yield Company(setup, proxy, environ, tmp_path / "looked-up.txt")
    for front in fronts.values():
        front.close()
    for index in (torch, packages):
        index.close()
    proxy.close()
    files.shutdown()
    files.server_close()


def test_an_installation_contacts_the_hosts_that_were_listed_and_no_other(company: Company) -> None:
    proxy = company.proxy
    planned = company.run("plan", "--hosts", "--json")
    assert planned.returncode == 0, planned.said
    assert proxy.asked == []
    uses = planned.json["details"]["hosts"]["uses"]
    listed = {f"{use['host']}:{use['port']}" for use in uses}
    sure = {f"{use['host']}:{use['port']}" for use in uses if use["when"] == "always"}
    assert {use["proxy"] for use in uses} == {proxy.url}
    assert sorted(planned.json["details"]["hosts"]["open_ended"]) == [
        *("git.example", "hub.example", "packages.example", "torch.example")
    ]

    done = company.run("install", "--yes", "--size", "256x256")
    assert done.returncode == 0, done.said
    contacted = {host for _, host in proxy.asked}
    assert {method for method, _ in proxy.asked} == {"CONNECT"}
    assert sure <= contacted <= listed
    assert contacted == {f"{name}.example:443" for name in ("git", "hub", "packages", "torch")}
    # What does not go through the proxy has no name but this computer's own: nothing else was looked up.
    assert set(company.looked_up.read_text().split()) <= {"127.0.0.1", "localhost"}
    assert PASSWORD not in done.said + planned.said
    assert "proxy%2Fpass" not in done.said + planned.said

    again = company.run("plan", "--hosts", "--no-color")
    assert "no host is contacted" in again.said


def test_hosts_are_listed_for_people_with_the_proxy_and_without_its_login(company: Company) -> None:
    shown = company.run("plan", "--hosts")
    assert shown.returncode == 0, shown.said
    for line in ("hub.example model files", "torch.example torch", "packages.example packages", "git.example ComfyUI"):
        assert line in shown.said
    assert f"All: through the proxy {company.proxy.url}." in shown.said
    assert "may send a download on to another host" in shown.said
    assert "me:" not in shown.said
    assert "install --hosts" not in shown.said


# --- what goes wrong, in the words of each program ------------------------------------------------------

HAS_COMFYUI = {"git.example": 0, "torch.example": 1}  # whether a ComfyUI is there: git is asked, or pip


@pytest.mark.parametrize("first", HAS_COMFYUI)
def test_a_proxy_that_wants_another_password_is_named_by_each_program(company: Company, first: str) -> None:
    environ = {"HTTPS_PROXY": company.proxy.url_of("me", "wrong-one")}
    done = company.install_environment(has_comfyui=bool(HAS_COMFYUI[first]), env=environ)
    assert done.returncode == 5, done.said
    assert done.codes == ["proxy-login"]
    assert f"on the way to {first} " in done.json["errors"][0]["message"]
    assert len(company.proxy.asked) <= 2, company.proxy.asked  # each wrong password brings an account nearer to a lock
    assert "wrong-one" not in done.said


@pytest.mark.parametrize("first", HAS_COMFYUI)
def test_an_authority_that_is_not_known_is_named_by_each_program(company: Company, tmp_path: Path, first: str) -> None:
    environ = {"REQUESTS_CA_BUNDLE": str(Authority(tmp_path / "another").certificate)}
    done = company.install_environment(has_comfyui=bool(HAS_COMFYUI[first]), env=environ)
    assert done.returncode == 5, done.said
    assert done.codes == ["certificate"]
    assert first in done.json["errors"][0]["message"]
    assert done.json["errors"][0]["context"]["reason"] == "unknown-issuer"


# --- pip and uv, each as it is -------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="SSL_CERT_DIR names the system's store on Linux alone")
@pytest.mark.parametrize("program", ["pip of this Python", "uv"])
@pytest.mark.parametrize("by", ["store", "bundle"])
def test_pip_and_uv_trust_whom_we_trust(tmp_path: Path, program: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, index = Authority(tmp_path / "authority"), ToyIndex([EINOPS])
    front = TlsFront(index.url, authority.issue("localhost"))
    for name in tuple(os.environ):
        if name.startswith(("SSL_", "REQUESTS_", "CURL_", "PIP_")):
            monkeypatch.delenv(name)
    if by == "store":
        monkeypatch.setenv("SSL_CERT_DIR", str(authority.as_system_store()))
    else:
        monkeypatch.setenv("CURL_CA_BUNDLE", str(authority.certificate))
    bare = ["--without-pip"] if program == "uv" else []
    subprocess.run([sys.executable, "-m", "venv", *bare, tmp_path / "venv"], check=True)
    python = next((tmp_path / "venv").glob("[bS]*/python*"))
    context = BuildContext(run=run_process, environ=dict(os.environ), cache=wheel_cache(tmp_path / "cache"))
    pip = (0, 0) if program == "uv" else pip_version(context, python)
    environ = context.installer_environ({"index-url": f"{front.endpoint}/simple"}, pip=pip)
    command = [str(python), "-I", "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path / "out"), "einops"]
    if program == "uv":
        environ["UV_INDEX_URL"] = f"{front.endpoint}/simple"
        command = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--python", str(python), "einops"]
    done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
    front.close()
    index.close()
    assert done.returncode == 0, done.stderr
