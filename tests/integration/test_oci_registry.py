"""Model files from an OCI registry: Debian's docker-registry, a real token service, and a front that misbehaves."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests
import yaml

from provisioner.core.models import BLOCK_SIZE
from tests.support.comfy_server import free_port
from tests.support.oci_registry import DockerRegistry, Front, TokenService, answer_with, forward
from tests.support.sandbox import MIB, ROOT, TOKEN, Completed, Sandbox, Wanted, tensors, wait_until
from tests.support.setup_fixture import KLEIN, VAE, SetupFixture
from tests.support.tls import Authority, Proxy, TlsFront

pytestmark = pytest.mark.skipif(os.name == "nt", reason="docker-registry is packaged for Linux")

USER, PASSWORD = "lab-user", "mark-of-the-registry/1+x"
HASHED = "$2b$04$ChWBFycgg8Xjl12omRVBHOC6P7a5fQM05Uax2PV.AozIOWnBSK7YC"  # of the password, by bcrypt
SIZE = 3 * BLOCK_SIZE + 5 * MIB
LARGE = Wanted(data=tensors(SIZE, 7))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Return a registry that asks for no login, with the three files of Klein in ``models/klein``."""
    folder = tmp_path_factory.mktemp("registry")
    made = DockerRegistry(folder / "served")
    (folder / "klein").mkdir()
    made.push("models/klein", "v1", folder / "klein", *KLEIN)
    made.push("models/large", "v1", folder / "klein", LARGE)
    yield made
    made.close()


@pytest.fixture
def fronts() -> Iterator[Callable[..., Front]]:
    """Return a function that puts a front before a registry."""
    made: list[Front] = []

    def make(behind: str, answer: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False) -> Front:
        made.append(Front(behind, answer))
        return made[-1]

    yield make
    for each in made:
        each.close()


@dataclass
class Guarded:
    """A registry that asks for a token, with its token service."""

    registry: DockerRegistry
    tokens: TokenService
    digest: str = ""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Return a registry with ``auth: token``."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens = TokenService(folder / "tokens", {USER: PASSWORD})
    made = Guarded(DockerRegistry(folder / "served", tokens.auth), tokens)
    (folder / "files").mkdir()
    made.digest = made.registry.push("klein", "v1", folder / "files", *KLEIN, login=(USER, PASSWORD))
    made.registry.push("large", "v1", folder / "files", LARGE, login=(USER, PASSWORD))
    yield made
    made.registry.close()
    tokens.close()


def install(sandbox: Sandbox, *words: str | Path, env: dict[str, str | None] | None = None) -> Completed:
    return sandbox.install("--only", "files", *words, env=env)


def log_in(sandbox: Sandbox, host: str, **more: object) -> dict[str, str | None]:
    """Save a login as `docker login` does; return the variable that leads to it."""
    folder = sandbox.home / "docker"
    folder.mkdir(exist_ok=True)
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}, **more}))
    return {"DOCKER_CONFIG": str(folder)}


def without_login(sandbox: Sandbox) -> None:
    """Assert that no secret of the registry is in what a run left behind."""
    secrets = [PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(), "eyJ0eXAi"]
    for path in sandbox.folder.rglob("*"):
        if path.is_file() and path.name != "config.json" and path.stat().st_size < MIB:
            text = path.read_bytes()
            assert not [each for each in secrets if each.encode() in text], path


# --- what it is for --------------------------------------------------------------------------------


def test_a_whole_set_comes_from_the_registry_alone(sandbox: Sandbox, registry: DockerRegistry) -> None:
    sandbox.publish(*KLEIN)
    done = install(sandbox, "--registry", f"{registry.host}/models/klein", "--registry-only", "--json")
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place(*KLEIN)
    assert not sandbox.hub.requests
    assert sandbox.receipt()[f"vae/{VAE.name}"]["source"] == f"oci://{registry.host}/models/klein@sha256:{VAE.sha256}"


def test_the_token_of_the_hub_never_goes_to_a_registry(
    sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    front = fronts(registry.host)
    sandbox.publish(*KLEIN)
    words = ("--endpoint", f"http://{front.host}", "--send-token")  # even where both are one server
    done = install(sandbox, "--registry", f"{front.host}/models/klein", *words)
    assert done.returncode == 0, done.stderr
    assert front.blobs()
    assert {each.authorization for each in front.asked} == {None}


def test_resumes_after_a_kill_from_the_bytes_on_disk(
    sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    front = fronts(registry.host)
    front.rate_bytes_s = 60 * MIB
    (wanted,) = sandbox.publish(LARGE)
    words = ("--only", "files", "--registry", f"{front.host}/models/large", "--connections", "1")
    running = sandbox.start("install", *words)
    wait_until(lambda: sandbox.blocks_in_log() >= 1, what="a block is complete")
    running.kill()
    running.wait()
    held = sandbox.bytes_in_log()
    assert held >= BLOCK_SIZE
    front.rate_bytes_s = None
    front.asked.clear()
    done = sandbox.install(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert [step["outcome"]["bytes_fetched"] for step in done.json["steps"]] == [SIZE - held]
    assert sum(_span(each.range) for each in front.blobs()) == SIZE - held
    assert not sandbox.hub.requests
    sandbox.assert_in_place(wanted)


def test_repair_fetches_only_the_damaged_block(
    sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    front = fronts(registry.host)
    (wanted,) = sandbox.publish(LARGE)
    words = ("--only", "files", "--registry", f"{front.host}/models/large")
    assert sandbox.install(*words).returncode == 0
    path = sandbox.path(wanted)
    with path.open("r+b") as stream:
        stream.seek(BLOCK_SIZE + 99)
        stream.write(b"\0\1\2\3")
    front.asked.clear()
    done = sandbox.run("repair", *words)
    assert done.returncode == 0, done.stderr
    assert [each.range for each in front.blobs()] == [f"bytes={BLOCK_SIZE}-{2 * BLOCK_SIZE - 1}"]
    sandbox.assert_in_place(wanted)


def _span(text: str | None) -> int:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", text or "")
    assert found is not None, text
    return int(found[2]) - int(found[1]) + 1


# --- who we are --------------------------------------------------------------------------------------


def test_a_token_is_got_with_the_saved_login_and_kept_secret(sandbox: Sandbox, guarded: Guarded) -> None:
    sandbox.publish(*KLEIN)
    env = log_in(sandbox, guarded.registry.host)
    guarded.tokens.asked.clear()
    words = ("--registry", f"{guarded.registry.host}/klein", "--registry-only", "--verbose")
    done = install(sandbox, *words, env=env)
    assert done.returncode == 0, done.stderr
    query, login = guarded.tokens.asked[0]
    assert query == {"service": ["lab"], "scope": ["repository:klein:pull"]}
    assert login == "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert len(guarded.tokens.asked) == 1  # for all three files
    without_login(sandbox)


def test_without_a_login_the_next_source_is_asked_and_the_reason_said(sandbox: Sandbox, guarded: Guarded) -> None:
    sandbox.publish(*KLEIN)
    host = guarded.registry.host
    done = install(sandbox, "--registry", f"{host}/klein")
    assert done.returncode == 0, done.stderr
    assert f"asks for a login (401), and none is saved for {host}. Trying the next source." in done.said
    sandbox.assert_in_place(*KLEIN)
    only = install(sandbox, "--registry", f"{host}/klein", "--registry-only", "--comfyui", sandbox.folder / "other")
    assert only.returncode == 6
    assert f"docker login {host}" in only.said


def test_a_wrong_password_is_not_tried_again_for_the_next_file(sandbox: Sandbox, guarded: Guarded) -> None:
    sandbox.publish(*KLEIN)
    env = log_in(sandbox, guarded.registry.host)
    guarded.tokens.logins[USER] = "another one"
    guarded.tokens.asked.clear()
    try:
        done = install(sandbox, "--registry", f"{guarded.registry.host}/klein", "--registry-only", env=env)
    finally:
        guarded.tokens.logins[USER] = PASSWORD
    assert done.returncode == 6
    assert "does not let the saved login" in done.said
    assert len(guarded.tokens.asked) == 1  # more of them lock accounts
    without_login(sandbox)


def test_a_token_that_expires_in_the_middle_is_fetched_anew(
    sandbox: Sandbox, guarded: Guarded, fronts: Callable[..., Front]
) -> None:
    front = fronts(guarded.registry.host)
    front.rate_bytes_s = 12 * MIB
    sandbox.publish(LARGE)
    env = log_in(sandbox, front.host)
    guarded.tokens.asked.clear()
    guarded.tokens.lifetime_s = 2
    try:
        words = ("--registry", f"{front.host}/large", "--registry-only", "--connections", "1", "--json")
        done = install(sandbox, *words, env=env)
    finally:
        guarded.tokens.lifetime_s = 300
    assert done.returncode == 0, done.stderr
    assert len(guarded.tokens.asked) >= 2
    assert len({each.authorization for each in front.blobs() if each.authorization}) >= 2
    sandbox.assert_in_place(LARGE)


def test_a_registry_may_ask_for_name_and_password_itself(
    sandbox: Sandbox, tmp_path: Path, fronts: Callable[..., Front]
) -> None:
    (tmp_path / "htpasswd").write_text(f"{USER}:{HASHED}\n")
    auth = {"htpasswd": {"realm": "lab", "path": str(tmp_path / "htpasswd")}}
    registry = DockerRegistry(tmp_path / "served", auth)
    try:
        (tmp_path / "files").mkdir()
        _push_with_basic(registry, tmp_path / "files")
        sandbox.publish(VAE)
        front = fronts(registry.host)
        words = ("--registry", f"{front.host}/klein", "--registry-only")
        assert install(sandbox, *words).returncode == 6
        done = install(sandbox, *words, env=log_in(sandbox, front.host))
        assert done.returncode == 0, done.stderr
        without_login(sandbox)
    finally:
        registry.close()


def _push_with_basic(registry: DockerRegistry, folder: Path) -> None:
    from oras.client import OrasClient

    client = OrasClient(insecure=True, auth_backend="basic")
    client.auth.set_basic_auth(USER, PASSWORD)
    (folder / VAE.name).write_bytes(VAE.data)
    client.push(f"{registry.host}/klein:v1", files=[str(folder / VAE.name)], disable_path_validation=True, quiet=True)


def test_a_credential_helper_is_asked_without_our_secrets(sandbox: Sandbox, guarded: Guarded) -> None:
    sandbox.publish(VAE)
    host = guarded.registry.host
    env = log_in(sandbox, "another.example", credHelpers={host: "lab"})
    programs = sandbox.folder / "bin"
    programs.mkdir()
    helper = programs / "docker-credential-lab"
    answer = json.dumps({"ServerURL": host, "Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\nenv > {programs}/seen\necho \"$@\" >> {programs}/seen\ncat >> {programs}/seen\n"
                      f"echo '{answer}'\n")  # fmt: skip
    helper.chmod(0o755)
    env["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = install(sandbox, "--registry", f"{host}/klein", "--registry-only", env=env)
    helper.unlink()
    assert done.returncode == 0, done.stderr
    seen = (programs / "seen").read_text()
    assert seen.endswith(f"get\n{host}")
    assert TOKEN not in seen
    without_login(sandbox)


def test_what_answers_a_login_is_named_where_it_is_missing(sandbox: Sandbox, guarded: Guarded) -> None:
    sandbox.publish(VAE)
    (sandbox.folder / "without" / "oras").mkdir(parents=True)
    (sandbox.folder / "without" / "oras" / "__init__.py").write_text("raise ImportError('not installed')")
    env = log_in(sandbox, guarded.registry.host)
    env["PYTHONPATH"] = f"{sandbox.folder / 'without'}{os.pathsep}{sandbox.environ['PYTHONPATH']}"
    done = install(sandbox, "--registry", f"{guarded.registry.host}/klein", "--registry-only", env=env)
    assert done.returncode == 2
    assert "pip install 'klein-setup[oci]'" in done.said


def _answer_of_the_token_service(kind: str) -> Callable[[BaseHTTPRequestHandler], bool]:
    def answer(request: BaseHTTPRequestHandler) -> bool:
        match kind:
            case "elsewhere":
                answer_with(request, 302, b"", Location="http://localhost:9/token")
            case "no token":
                answer_with(request, 200, b'{"expires_in": 300}')
            case "no JSON":
                answer_with(request, 200, b"<html>Welcome</html>")
            case "a list":
                answer_with(request, 200, b"[]")
            case "endless":
                answer_with(request, 200, b'{"token": "' + b"x" * (3 * MIB) + b'"}')
            case _:
                answer_with(request, 403, b"{}")
        return True

    return answer


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("elsewhere", 5, "redirects to another address, where a login is not sent"),
        ("no token", 5, "answers without a token"),
        ("no JSON", 5, "answers without a token"),
        ("a list", 5, "answers without a token"),
        ("endless", 5, "answers without a token"),
        ("forbidden", 6, "does not let the saved login"),
    ],
)
def test_a_token_service_that_is_none(sandbox: Sandbox, guarded: Guarded, kind: str, status: int, said: str) -> None:
    sandbox.publish(VAE)
    guarded.tokens.answer = _answer_of_the_token_service(kind)
    try:
        env = log_in(sandbox, guarded.registry.host)
        done = install(sandbox, "--registry", f"{guarded.registry.host}/klein", "--registry-only", env=env)
    finally:
        guarded.tokens.answer = lambda _: False
    assert (done.returncode, said in done.said) == (status, True), done.said
    without_login(sandbox)


def test_a_token_service_that_is_busy_is_asked_again(sandbox: Sandbox, guarded: Guarded) -> None:
    left = [503, 503]

    def busy(request: BaseHTTPRequestHandler) -> bool:
        if left:
            answer_with(request, left.pop(), b"")
            return True
        return False

    sandbox.publish(VAE)
    guarded.tokens.answer = busy
    env = log_in(sandbox, guarded.registry.host)
    done = install(sandbox, "--registry", f"{guarded.registry.host}/klein", "--registry-only", env=env)
    guarded.tokens.answer = lambda _: False
    assert done.returncode == 0, done.stderr
    assert left == []


def test_a_token_service_over_plain_http_gets_no_login_of_a_registry_with_tls(
    sandbox: Sandbox, guarded: Guarded, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    secure = TlsFront(f"http://{guarded.registry.host}", authority.issue("localhost"))
    sandbox.publish(VAE)
    guarded.tokens.asked.clear()
    env = {**log_in(sandbox, f"localhost:{secure.port}"), "REQUESTS_CA_BUNDLE": str(authority.certificate)}
    done = install(sandbox, "--registry", f"https://localhost:{secure.port}/klein", "--registry-only", env=env)
    secure.close()
    assert done.returncode == 5
    assert "names no token service that may see a login" in done.said
    assert guarded.tokens.asked == []


def test_a_registry_that_a_manifest_names_leads_into_no_private_network(
    sandbox: Sandbox, tmp_path: Path, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    private = TlsFront(f"http://{registry.host}", Authority(tmp_path / "ca").issue("localhost"))

    def redirect(request: BaseHTTPRequestHandler) -> bool:
        answer_with(request, 307, b"", Location=f"https://127.0.0.1:{private.port}/x")
        return True

    front = fronts(registry.host, redirect)
    authority = Authority(tmp_path / "public")
    secure = TlsFront(f"http://{front.host}", authority.issue("registry.example"))
    proxy = Proxy({"registry.example": secure.port})
    env: dict[str, str | None] = {"https_proxy": proxy.url, "REQUESTS_CA_BUNDLE": str(authority.certificate)}
    sandbox.publish(VAE)
    tagged(sandbox, f"oci://registry.example/models@sha256:{VAE.sha256}")
    done = install(sandbox, env=env)
    assert done.returncode == 5
    assert "redirects into a private network" in done.said
    for each in (proxy, secure, private):
        each.close()


def test_a_whole_setup_from_a_registry_survives_a_kill_and_ends_with_an_image(
    setup: SetupFixture, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    front = fronts(registry.host)
    front.rate_bytes_s = 30_000  # three seconds a file
    words = ("install", "--yes", "--size", "256x256", "--registry", f"{front.host}/models/klein", "--registry-only")
    running = setup.start(*words)
    wait_until(lambda: len(front.blobs()) >= 2, what="files are on their way")
    running.kill()
    running.wait(20)
    assert running.stdout is not None
    running.stdout.close()
    assert not any(setup.sandbox.path(each).exists() for each in KLEIN)
    front.rate_bytes_s = None
    done = setup.run(*words)
    assert done.returncode == 0, done.stderr
    assert len(list(setup.images.glob("*.png"))) == 1
    setup.sandbox.assert_in_place(*KLEIN)
    assert not setup.sandbox.hub.requests


# --- where the bytes are --------------------------------------------------------------------------------


@dataclass
class Store:
    """What a registry keeps its blobs in: another server, with signed addresses that expire."""

    behind: str
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    valid: int = 0

    def __call__(self, request: BaseHTTPRequestHandler) -> bool:
        self.seen.append((request.path, request.headers.get("Authorization")))
        path, _, signature = request.path.partition("?")
        if signature != f"Signature=mark-of-the-store-{self.valid}":
            answer_with(request, 403, b"expired")
        else:
            forward(request, self.behind, path=path, with_login=False)
        return True


def test_a_login_does_not_follow_a_redirect_to_another_host(
    sandbox: Sandbox, guarded: Guarded, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    store = Store(registry.host)
    behind = fronts(registry.host, store)
    asked = {"front": 0}

    def redirect(request: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" not in request.path or request.headers.get("Authorization") is None:
            return False
        asked["front"] += 1
        store.valid = asked["front"] if asked["front"] < 3 else 99  # an address that has expired is asked for anew
        where = f"http://{behind.host}{request.path.replace('/v2/klein/', '/v2/models/klein/')}"
        location = f"{where}?Signature=mark-of-the-store-{min(asked['front'], 99)}"
        store.valid = asked["front"]
        answer_with(request, 307, b"", Location=location)
        return True

    front = fronts(guarded.registry.host, redirect)
    sandbox.publish(VAE)
    words = ("--registry", f"{front.host}/klein", "--registry-only", "--json")
    done = install(sandbox, *words, env=log_in(sandbox, front.host))
    assert done.returncode == 0, done.stderr
    assert asked["front"] == 1  # the signed address is used for every block
    assert store.seen
    assert {login for _, login in store.seen} == {None}
    assert "mark-of-the-store" not in done.stdout + done.stderr
    without_login(sandbox)


def test_an_address_that_a_store_refuses_is_asked_for_anew(
    sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    store = Store(registry.host, valid=2)
    behind = fronts(registry.host, store)
    count = {"signed": 0}

    def redirect(request: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" not in request.path:
            return False
        count["signed"] += 1
        location = f"http://{behind.host}{request.path}?Signature=mark-of-the-store-{count['signed']}"
        answer_with(request, 307, b"", Location=location)
        return True

    front = fronts(registry.host, redirect)
    sandbox.publish(VAE)
    done = install(sandbox, "--registry", f"{front.host}/models/klein", "--registry-only")
    assert done.returncode == 0, done.stderr
    assert count["signed"] == 2


# --- registries that lie, and worse ------------------------------------------------------------------------


def test_wrong_bytes_under_a_digest_are_never_placed_and_the_hub_is_asked(
    sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    def lie(request: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" not in request.path:
            return False
        forward(request, registry.host, change=lambda data: data.replace(data[:8], b"\0\0\0\0\0\0\0\1", 1))
        return True

    front = fronts(registry.host, lie)
    sandbox.publish(VAE)
    done = install(sandbox, "--registry", f"{front.host}/models/klein", "--registry-only")
    assert done.returncode == 7
    assert "sent other bytes than the manifest names" in done.said
    sandbox.assert_nothing_placed()
    done = install(sandbox, "--registry", f"{front.host}/models/klein")
    assert done.returncode == 0, done.stderr
    sandbox.assert_in_place(VAE)


def test_a_blob_that_is_cut_off_is_continued(
    sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    def cut(request: BaseHTTPRequestHandler) -> bool:
        if "/blobs/" not in request.path or request.headers.get("Range") == "bytes=0-0":
            return False
        forward(request, registry.host, cut=30_000)
        return True

    front = fronts(registry.host, cut)
    sandbox.publish(VAE)
    done = install(sandbox, "--registry", f"{front.host}/models/klein", "--registry-only")
    assert done.returncode == 0, done.stderr
    assert len(front.blobs()) >= 3
    sandbox.assert_in_place(VAE)


def test_a_blob_that_is_not_there_comes_from_the_next_source(
    sandbox: Sandbox, tmp_path: Path, registry: DockerRegistry
) -> None:
    registry.push("models/part", "v1", tmp_path, *KLEIN[:2])
    sandbox.publish(*KLEIN)
    done = install(sandbox, "--registry", f"{registry.host}/models/part")
    assert done.returncode == 0, done.stderr
    missing = f"{registry.host}/models/part has no blob sha256:{VAE.sha256} ({VAE.name}) (404). Trying the next source."
    assert missing in done.said
    assert {each.path for each in sandbox.heads()} == {f"/org/small-klein/resolve/{'5e0a' * 10}/{VAE.filename}"}
    only = install(
        sandbox, "--registry", f"{registry.host}/models/part", "--registry-only", "--comfyui", sandbox.folder / "x"
    )
    assert only.returncode == 6
    assert "has no blob" in only.said


def test_an_unknown_certificate_is_named_and_nothing_is_sent(
    sandbox: Sandbox, tmp_path: Path, registry: DockerRegistry
) -> None:
    authority = Authority(tmp_path / "ca")
    secure = TlsFront(f"http://{registry.host}", authority.issue("localhost"))
    sandbox.publish(VAE)
    words = ("--registry", f"https://localhost:{secure.port}/models/klein", "--registry-only")
    done = install(sandbox, *words)
    assert done.returncode == 5
    assert "certificate" in done.said
    known = install(sandbox, *words, env={"REQUESTS_CA_BUNDLE": str(authority.certificate)})
    secure.close()
    assert known.returncode == 0, known.stderr


def test_nobody_there_is_said_and_the_hub_is_asked(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    done = install(sandbox, "--registry", f"127.0.0.1:{free_port()}/models/klein")
    assert done.returncode == 0, done.stderr
    assert "could not be reached" in done.said
    assert "Trying the next source." in done.said


def test_a_login_is_never_sent_over_plain_http(sandbox: Sandbox, guarded: Guarded, tmp_path: Path) -> None:
    host = f"registry.example:{guarded.registry.port}"
    proxy = Proxy({"registry.example": guarded.registry.port})
    sandbox.publish(VAE)
    guarded.tokens.asked.clear()
    env = {**log_in(sandbox, host), "http_proxy": proxy.url}
    done = install(sandbox, "--registry", f"http://{host}/klein", "--registry-only", env=env)
    proxy.close()
    assert done.returncode == 6
    assert "never sent over plain http" in done.said
    assert guarded.tokens.asked == []


# --- tags and manifests ---------------------------------------------------------------------------------


def tagged(sandbox: Sandbox, reference: str, *others: dict[str, object]) -> None:
    """Let every file of the manifest come from a reference, and then from others."""
    document = yaml.safe_load(sandbox.manifest.read_text())
    for each in document["artifacts"]:
        each["sources"] = [{"oci": reference}, *others]
    sandbox.manifest.write_text(yaml.safe_dump(document))


LOOPBACK = "--allow-loopback"


def test_a_tag_is_pinned_shown_and_locked(sandbox: Sandbox, tmp_path: Path, registry: DockerRegistry) -> None:
    digest = registry.push("models/tagged", "v1", tmp_path, *KLEIN)
    sandbox.publish(*KLEIN)
    tagged(sandbox, f"oci://{registry.host}/models/tagged:v1")
    pinned = f"oci://{registry.host}/models/tagged:v1@sha256:{digest}"
    plan = sandbox.run("plan", "--only", "files", LOOPBACK)
    assert plan.returncode == 0, plan.stderr
    assert pinned in "".join(plan.stdout.split())
    planned = sandbox.run("plan", "--only", "files", LOOPBACK, "--json")
    assert planned.json["details"]["pinned"] == [pinned]
    done = install(sandbox, LOOPBACK)
    assert done.returncode == 0, done.stderr
    assert not sandbox.hub.requests
    locked = sandbox.folder / "locked.yaml"
    done = sandbox.run("manifest", "lock", "--output", locked)
    assert done.returncode == 0, done.stderr
    assert [each["sources"] for each in yaml.safe_load(locked.read_text())["artifacts"]] == [[{"oci": pinned}]] * 3
    # The tag moves: what is locked is still fetched, and the move is said.
    moved = registry.push("models/tagged", "v1", tmp_path, LARGE)
    shutil.rmtree(sandbox.tree)
    done = install(sandbox, LOOPBACK, "--manifest", locked, "--verbose")
    assert done.returncode == 0, done.stderr
    said = (
        f"The tag v1 of {registry.host}/models/tagged has moved to sha256:{moved}; sha256:{digest} is used, as pinned."
    )
    assert said in done.said
    sandbox.assert_in_place(*KLEIN)


def test_a_tag_that_moves_between_plan_and_fetch_changes_nothing_but_what_is_said(
    sandbox: Sandbox, tmp_path: Path, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    digest = registry.push("models/moving", "v1", tmp_path, VAE)
    seen = {"tag": 0}

    def move(request: BaseHTTPRequestHandler) -> bool:
        if request.path.endswith("/manifests/v1"):
            seen["tag"] += 1
            if seen["tag"] == 2:
                registry.push("models/moving", "v1", tmp_path, KLEIN[0])
        return False

    front = fronts(registry.host, move)
    sandbox.publish(VAE)
    tagged(sandbox, f"oci://{front.host}/models/moving:v1")
    done = install(sandbox, LOOPBACK, "--verbose")
    assert done.returncode == 0, done.stderr
    assert "has moved to sha256:" in done.said
    assert f"sha256:{digest} is used, as pinned" in done.said
    sandbox.assert_in_place(VAE)


@pytest.mark.parametrize("kind", ["not a model", "no manifest", "huge", "wrong digest", "gone", "endless nesting"])
def test_a_manifest_that_does_not_list_the_file_is_refused_before_a_byte_is_fetched(
    kind: str, sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    bodies = {
        "not a model": json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": EMPTY, "layers": [EMPTY]}),
        "no manifest": "<html>Welcome</html>",
        "huge": json.dumps({"schemaVersion": 2, "annotations": {"a": "x" * (5 * MIB)}}),
        "wrong digest": "{}",
    }
    sent = {"bytes": 0}

    def answer(request: BaseHTTPRequestHandler) -> bool:
        if "/manifests/" not in request.path:
            return False
        if kind == "gone":
            answer_with(request, 404, b"{}")
            return True
        body = bodies.get(kind, "").encode()
        if kind == "endless nesting":
            inner = {"mediaType": INDEX_TYPE, "digest": "sha256:" + "a" * 64, "size": 9}
            body = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [inner] * 5000}).encode()
        sent["bytes"] += len(body)
        answer_with(request, 200, body, Content_Type=MANIFEST_TYPE)
        return True

    front = fronts(registry.host, answer)
    sandbox.publish(VAE)
    tag = f"@sha256:{'b' * 64}" if kind == "wrong digest" else ":v1"
    tagged(sandbox, f"oci://{front.host}/models/klein{tag}")
    done = install(sandbox, LOOPBACK)
    assert done.returncode == (6 if kind == "gone" else 7), done.said
    assert front.blobs() == []
    said = {
        "not a model": "lists no blob",
        "no manifest": "is no manifest",
        "huge": "is larger than",
        "wrong digest": "sent another manifest",
        "gone": "has no manifest v1 (404)",
        "endless nesting": "sent another manifest",
    }
    assert said[kind] in done.said
    assert len([each for each in front.asked if "/manifests/" in each.path]) < 10


MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:" + "e" * 64, "size": 2}


def test_a_stranger_names_no_registry_on_this_machine(sandbox: Sandbox, registry: DockerRegistry) -> None:
    sandbox.publish(VAE)
    tagged(sandbox, f"oci://{registry.host}/models/klein:v1")
    done = install(sandbox)
    assert done.returncode == 2
    assert "an address of this machine" in done.said


def test_the_registry_of_the_page_takes_what_the_page_pushes(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "how-to" / "registry.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(yaml|python)\n(.*?)^```", page.split("## Install")[0], re.M | re.S))
    config = yaml.safe_load(blocks["yaml"])
    config["storage"]["filesystem"]["rootdirectory"] = str(tmp_path / "data")
    registry = DockerRegistry(tmp_path / "served", config=config)
    try:
        for each in KLEIN:
            path = tmp_path / "ComfyUI" / "models" / each.folder / each.name
            path.parent.mkdir(parents=True)
            path.write_bytes(each.data)
        monkeypatch.chdir(tmp_path)
        exec(blocks["python"].replace("127.0.0.1:5000", registry.host), {})  # noqa: S102 - our own page
        sandbox.publish(*KLEIN)
        done = install(sandbox, "--registry", f"{registry.host}/models/klein", "--registry-only")
        assert done.returncode == 0, done.stderr
        sandbox.assert_in_place(*KLEIN)
    finally:
        registry.close()


# --- image layouts, and what is said ------------------------------------------------------------------------


NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def layout(folder: Path, *files: Wanted) -> None:
    """Write an image layout as it lies on a stick."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    for each in files:
        (blobs / each.sha256).write_bytes(each.data)


def test_nginx_serves_an_image_layout_as_it_lies(sandbox: Sandbox, tmp_path: Path) -> None:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("needs nginx")
    layout(tmp_path / "srv" / "Bundle 1", LARGE)
    port = free_port()
    folders = "".join(f"{each}_temp_path {tmp_path}/{each}; " for each in NGINX_FOLDERS)
    config = f"""
pid {tmp_path}/pid;
events {{}}
http {{
  access_log {tmp_path}/access.log;
  {folders}
  server {{ listen 127.0.0.1:{port}; root {tmp_path}/srv; }}
}}
"""
    (tmp_path / "nginx.conf").write_text(config)
    tmp_path.chmod(0o755)
    paths = ["-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]
    nginx = subprocess.Popen([program, *paths, "-g", "daemon off; master_process off;"])
    try:
        wait_until(lambda: _answers(port), what="nginx answers")
        sandbox.publish(LARGE)
        words = ("--registry", f"http://127.0.0.1:{port}/Bundle%201/", "--registry-only")
        done = install(sandbox, *words)
        assert done.returncode == 0, done.stderr
        sandbox.assert_in_place(LARGE)
        with sandbox.path(LARGE).open("r+b") as stream:
            stream.seek(5)
            stream.write(b"\0\1\2")
        before = (tmp_path / "access.log").read_text()
        done = sandbox.run("repair", "--only", "files", *words)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "access.log").read_text()[len(before) :].splitlines()
        assert [line.split('"')[2].split() for line in lines if "/blobs/" in line] == [["206", str(BLOCK_SIZE)]]
    finally:
        nginx.kill()
        nginx.wait()


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/", timeout=5).status_code > 0
    except requests.ConnectionError:
        return False


def test_a_web_server_without_a_layout_is_named(sandbox: Sandbox, fronts: Callable[..., Front]) -> None:
    def nothing(request: BaseHTTPRequestHandler) -> bool:
        answer_with(request, 200, b"<html>Welcome</html>")
        return True

    front = fronts("127.0.0.1:9", nothing)
    sandbox.publish(VAE)
    done = install(sandbox, "--registry", f"http://{front.host}/", "--registry-only")
    assert done.returncode == 7
    assert f"There is no image layout at http://{front.host}" in done.said


def test_plan_hosts_names_the_registry_and_contacts_nobody(sandbox: Sandbox, fronts: Callable[..., Front]) -> None:
    front = fronts("127.0.0.1:9")
    sandbox.publish(*KLEIN)
    words = ("--only", "files", "--hosts", "--json")
    done = sandbox.run("plan", *words, "--registry", f"{front.host}/models", "--registry-only")
    assert [(each["host"], each["port"], each["when"]) for each in done.json["details"]["hosts"]["uses"]] == [
        ("127.0.0.1", front.port, "always")
    ]
    both = sandbox.run("plan", *words, "--registry", "registry.example:5000/models")
    found = {(each["host"], each["when"]) for each in both.json["details"]["hosts"]["uses"]}
    assert found == {("registry.example", "always"), ("127.0.0.1", "if-needed")}
    tagged(sandbox, f"oci://{front.host}/klein:v1")
    named = sandbox.run("plan", *words, LOOPBACK)
    assert {each["port"] for each in named.json["details"]["hosts"]["uses"]} == {front.port}
    assert front.asked == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("models", "names no repository after the registry"),
        ("registry.example/models:v1", "leave it out"),
        ("registry.example/Models", "has no valid repository name"),
        ("person:secret-word@registry.example/models", "holds a user name or a password"),
        ("https://person:secret-word@registry.example/models", "holds a user name or a password"),
        ("registry.example:99999/models", "has no valid host and port"),
    ],
)
def test_an_address_that_is_none_is_refused_with_its_reason(sandbox: Sandbox, address: str, said: str) -> None:
    sandbox.publish(VAE)
    done = install(sandbox, "--registry", address)
    assert done.returncode == 2
    assert said in done.said
    assert "secret-word" not in done.said


def test_registry_only_needs_a_registry(sandbox: Sandbox) -> None:
    sandbox.publish(VAE)
    done = install(sandbox, "--registry-only")
    assert (done.returncode, "--registry-only was given without --registry" in done.said) == (2, True)
