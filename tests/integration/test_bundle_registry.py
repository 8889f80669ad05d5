"""Bundles in an OCI registry: Debian's docker-registry, pushed by `bundle create`, taken from by `--from`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests

from provisioner.core.models import Gpu
from provisioner.oci.push import CHUNK_BYTES
from tests.integration.test_bundle import elsewhere
from tests.integration.test_oci_registry import PASSWORD, Guarded, guarded, log_in, without_login
from tests.support.builders import recording_of
from tests.support.oci_registry import DockerRegistry, Front
from tests.support.sandbox import MIB, Sandbox, Wanted, sha256_of, tensors
from tests.support.setup_fixture import KLEIN, SetupFixture, rtx_4070
from tests.support.wheels import torch_set

pytestmark = pytest.mark.skipif(os.name == "nt", reason="docker-registry is packaged for Linux")
__all__ = ["guarded"]  # a fixture


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    made = DockerRegistry(tmp_path_factory.mktemp("registry"))
    yield made
    made.close()


@pytest.fixture
def fronts() -> Iterator[Callable[..., Front]]:
    made: list[Front] = []

    def make_one(behind: str, answer: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False) -> Front:
        made.append(Front(behind, answer))
        return made[-1]

    yield make_one
    for each in made:
        each.close()


def staged(sandbox: Sandbox) -> Path:
    (folder,) = (sandbox.home / "cache" / "klein-setup" / "bundles").iterdir()
    return folder


def there(sandbox: Sandbox, reference: str) -> tuple[str | Path, ...]:
    return (
        "--from",
        reference,
        "--manifest",
        sandbox.manifest,
        "--comfyui",
        sandbox.folder / "there",
        "--only",
        "files",
    )


def test_everything_comes_out_of_a_registry(setup: SetupFixture, registry: DockerRegistry, tmp_path: Path) -> None:
    reference = f"oci://{registry.host}/klein:v1"
    here, old = setup.sandbox.folder / "machine.json", tmp_path / "old.json"
    pascal = Gpu(vendor="nvidia", name="NVIDIA GeForce GTX 1080", index=0, compute_capability=(6, 1))
    old.write_text(recording_of(rtx_4070(gpus=(pascal,))))
    others = torch_set("cu126")
    setup.index.toys += others
    made = setup.run("bundle", "create", reference, "--yes", "--machine", here, "--machine", old)
    assert made.returncode == 0, made.stderr
    assert f"oci://{registry.host}/klein:v1@sha256:" in made.stdout
    digest = made.stdout.partition(f"{reference}@")[2].split()[0]
    assert setup.sandbox.run("bundle", "verify", reference).returncode == 0

    env, tree = elsewhere(tmp_path), tmp_path / "ComfyUI"
    plan = setup.run("plan", "--from", reference, "--comfyui", tree, "--hosts", "--json", env=env)
    assert plan.returncode == 0, plan.stderr
    uses = plan.json["details"]["hosts"]["uses"]
    assert {(each["host"], each["port"]) for each in uses} == {("127.0.0.1", registry.port)}
    assert not list((tmp_path / "home").rglob("*.whl"))  # a plan fetches nothing
    setup.sandbox.hub.clear_requests()
    done = setup.run(
        "install",
        "--from",
        f"oci://{registry.host}/klein@{digest}",
        "--comfyui",
        tree,
        "--yes",
        "--size",
        "256x256",
        "--json",
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert done.json["details"]["smoke_test"]["is_proven"]
    assert not setup.sandbox.hub.requests
    fetched = {each.name for each in (tmp_path / "home").rglob("*.whl")}
    assert fetched
    assert not fetched & {each.file_name for each in others}  # those of the other machine are not even fetched
    assert not (tmp_path / "home" / "cache" / "klein-setup" / "bundles" / "taken").exists()
    file = tree / "models" / KLEIN[0].folder / KLEIN[0].name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    repaired = setup.run("repair", "--from", reference, "--comfyui", tree, "--only", "files", "--yes", env=env)
    assert repaired.returncode == 0, repaired.stderr
    assert sha256_of(file) == KLEIN[0].sha256


def test_what_the_registry_has_is_not_sent_again_and_a_second_set_is_added(
    sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    front = fronts(registry.host)
    reference = f"oci://{front.host}/added:v1"
    (first,) = sandbox.publish(tensors(3 * MIB, seed=1))
    none = sandbox.run("bundle", "add", reference, "--manifest", sandbox.manifest, "--yes", "--no-comfyui")
    assert none.returncode == 2
    assert f"bundle create {reference}" in none.stderr
    hub = ("--endpoint", sandbox.hub.endpoint, "--send-token", "--yes", "--no-comfyui", "--manifest")
    assert sandbox.run("bundle", "create", reference, *hub, sandbox.manifest).returncode == 0
    front.asked.clear()
    again = sandbox.run("bundle", "create", reference, *hub, sandbox.manifest)
    assert again.returncode == 0, again.said
    assert not [each for each in front.asked if each.method in {"POST", "PATCH"}]
    assert "0 bytes had to be sent" in again.said

    shutil.rmtree(staged(sandbox))  # another computer adds to it: what is there already need not be on it
    (second,) = sandbox.publish(tensors(2 * MIB, seed=2))
    sandbox.write_manifest(id="other")
    front.asked.clear()
    added = sandbox.run("bundle", "add", reference, *hub, sandbox.manifest)
    assert added.returncode == 0, added.said
    heads = [each.path.rpartition(":")[2] for each in front.asked if each.method == "HEAD"]
    assert {first.sha256, second.sha256} <= set(heads)
    done = sandbox.run("install", "--yes", *there(sandbox, reference))
    assert done.returncode == 0, done.said


def test_a_broken_upload_is_continued_where_it_broke(
    sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]
) -> None:
    (wanted,) = sandbox.publish(tensors(2 * CHUNK_BYTES + MIB, seed=3))
    broken: list[str] = []

    def cut(request: BaseHTTPRequestHandler) -> bool:
        is_second = (request.headers.get("Content-Range") or "").startswith(f"{CHUNK_BYTES}-")
        if request.command != "PATCH" or not is_second or broken:
            return False
        broken.append(request.path)
        request.rfile.read(MIB)
        request.close_connection = True
        return True

    front = fronts(registry.host, cut)
    hub = ("--endpoint", sandbox.hub.endpoint, "--send-token", "--yes", "--no-comfyui", "--manifest")
    done = sandbox.run("bundle", "create", f"oci://{front.host}/broken:v1", *hub, sandbox.manifest)
    assert done.returncode == 0, done.said
    assert broken
    answer = requests.get(f"http://{registry.host}/v2/broken/blobs/sha256:{wanted.sha256}", timeout=20)
    assert answer.content == wanted.data
    sent = [each.content_range for each in front.asked if each.method == "PATCH"]
    assert sent.count(f"0-{CHUNK_BYTES - 1}") == 1  # what had arrived was not sent again


def test_it_is_pushed_with_the_login_of_docker_which_stays_a_secret(sandbox: Sandbox, guarded: Guarded) -> None:
    sandbox.publish(tensors(MIB, seed=4))
    words = ("--manifest", sandbox.manifest, "--endpoint", sandbox.hub.endpoint, "--send-token")
    command = ("bundle", "create", f"oci://{guarded.registry.host}/lab/klein:v1", *words, "--yes", "--no-comfyui")
    refused = sandbox.run(*command)
    assert refused.returncode == 6, refused.said
    assert f"docker login {guarded.registry.host}" in refused.stderr
    env = log_in(sandbox, guarded.registry.host)
    done = sandbox.run(*command, env=env)
    assert done.returncode == 0, done.said
    taken = sandbox.run("install", "--yes", *there(sandbox, command[2]), env=env)
    assert taken.returncode == 0, taken.said
    assert PASSWORD not in done.said + taken.said
    without_login(sandbox)


def test_a_registry_that_lost_a_blob_or_changed_one_is_found(sandbox: Sandbox, tmp_path: Path) -> None:
    registry = DockerRegistry(tmp_path / "registry")
    try:
        (wanted,) = sandbox.publish(tensors(MIB, seed=5))
        reference = f"oci://{registry.host}/klein:v1"
        hub = ("--endpoint", sandbox.hub.endpoint, "--send-token", "--yes", "--no-comfyui", "--manifest")
        assert sandbox.run("bundle", "create", reference, *hub, sandbox.manifest).returncode == 0
        (kept,) = (tmp_path / "registry").rglob(f"{wanted.sha256}/data")
        kept.write_bytes(wanted.data[:-1] + b"?")
        verified = sandbox.run("bundle", "verify", reference, "--json")
        assert (verified.returncode, [each["code"] for each in verified.json["findings"]]) == (
            1,
            ["bundle-hash-mismatch"],
        )
        assert wanted.name in verified.json["findings"][0]["message"]
        refused = sandbox.run("install", "--yes", *there(sandbox, reference))
        assert refused.returncode == 7, refused.said
        kept.unlink()
        verified = sandbox.run("bundle", "verify", reference, "--json")
        assert (verified.returncode, [each["code"] for each in verified.json["findings"]]) == (1, ["bundle-missing"])
    finally:
        registry.close()


@pytest.mark.parametrize(
    ("reference", "status", "said"),
    [
        ("oci://127.0.0.1:9/klein:v1", 5, "127.0.0.1 could not be reached"),
        ("oci://127.0.0.1:9/klein", 2, "neither a tag nor a digest"),
        ("oci://user:word@127.0.0.1:9/klein:v1", 2, "user name or a password"),
    ],
)
def test_a_reference_that_leads_nowhere_is_named(sandbox: Sandbox, reference: str, status: int, said: str) -> None:
    sandbox.publish(tensors(MIB, seed=6))
    done = sandbox.run("install", "--yes", *there(sandbox, reference))
    assert done.returncode == status, done.said
    assert said in done.stderr


def test_offline_no_registry_is_asked(sandbox: Sandbox, registry: DockerRegistry, fronts: Callable[..., Front]) -> None:
    front = fronts(registry.host)
    sandbox.publish(tensors(MIB, seed=6))
    reference = f"oci://{front.host}/klein:v1"
    words = ("--manifest", sandbox.manifest, "--yes", "--no-comfyui", "--offline")
    for done in (
        sandbox.run("bundle", "create", reference, *words),
        sandbox.run("install", "--yes", *there(sandbox, reference), env={"HF_HUB_OFFLINE": "1"}),
    ):
        assert done.returncode == 5, done.said
        assert "offline none is asked" in done.stderr
    assert not front.asked


def test_a_bundle_is_not_made_at_a_digest(sandbox: Sandbox) -> None:
    done = sandbox.run("bundle", "create", f"oci://127.0.0.1:9/klein@sha256:{'0' * 64}", "--yes")
    assert done.returncode == 2
    assert "needs a tag" in done.stderr


def test_an_image_of_somebody_else_is_no_bundle(sandbox: Sandbox, registry: DockerRegistry, tmp_path: Path) -> None:
    registry.push("image", "v1", tmp_path, Wanted(data=b"x" * 100, name="x.bin"))
    sandbox.publish(tensors(MIB, seed=6))
    done = sandbox.run("install", "--yes", *there(sandbox, f"oci://{registry.host}/image:v1"))
    assert done.returncode == 7, done.said
    assert "has no list of manifests" in done.stderr
