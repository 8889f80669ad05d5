"""An HF cache we filled is one the Hub's own client accepts; one it filled is one we accept; damage is put right."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from provisioner.rehearsal.hub import RehearsalHub
from tests.support.oci_registry import MarkedRegistry
from tests.support.sandbox import REPOSITORY, REVISION, TOKEN, Completed, Sandbox, tensors

OTHER_REVISION = "c0de" * 10
CONFIG = b'{"hidden_size": 32}\n'
LICENCE = b"Do as you like.\n"
WEIGHTS = tensors(3_000_000)
FILES = {"model_index.json": CONFIG, "vae/weights.safetensors": WEIGHTS, "a/b/licence.txt": LICENCE}
LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")

Script = Callable[..., dict[str, Any]]


@pytest.fixture
def cache(sandbox: Sandbox) -> Path:
    """Return the person's own cache folder, and let the sandbox's hub and manifest have a small repository for it."""
    sandbox.hub.add_repository(REPOSITORY, REVISION, FILES, tokens=[TOKEN])
    entries = [
        {
            "id": name.lower().replace("/", "-").replace("_", "-").replace(".", "-"),
            "role": "other",
            "name": Path(name).name,
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "sources": [{"repo_id": REPOSITORY, "revision": REVISION, "filename": name}],
            "is_lfs": name.endswith(".safetensors"),
        }
        for name, data in FILES.items()
    ]
    one = {"id": "cache", "title": "All", "target": "hf_cache", "artifacts": [each["id"] for each in entries]}
    sandbox.write_manifest(default_set="cache", sets=[one], artifacts=entries)
    return sandbox.cache


def repository(cache: Path) -> Path:
    return cache / f"models--{REPOSITORY.replace('/', '--')}"


def snapshot(cache: Path, revision: str = REVISION) -> Path:
    return repository(cache) / "snapshots" / revision


def blob(cache: Path, data: bytes = WEIGHTS) -> Path:
    return repository(cache) / "blobs" / hashlib.sha256(data).hexdigest()


def run(sandbox: Sandbox, command: str, cache: Path, *arguments: str) -> Completed:
    only = ["--only", "files"] if command in {"install", "plan"} else []
    return sandbox.run(command, "--hf-cache", str(cache), *only, *arguments)


def client(sandbox: Sandbox, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the real client's settings: this hub, no Xet, nothing of the developer's."""
    environ = {**sandbox.environ, "HF_ENDPOINT": sandbox.hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False
    )


READ_BACK = f"""
import hashlib, json, pathlib, sys
from huggingface_hub import scan_cache_dir, snapshot_download
cache = sys.argv[1]
folder = pathlib.Path(snapshot_download({REPOSITORY!r}, revision={REVISION!r}, cache_dir=cache, local_files_only=True))
scan = scan_cache_dir(cache)
(repo,) = scan.repos
print(json.dumps({{
    "files": {{path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
              for path in sorted(folder.rglob("*")) if path.is_file()}},
    "warnings": [str(each) for each in scan.warnings],
    "revisions": {{each.commit_hash: sorted(each.refs) for each in repo.revisions}},
    "size": repo.size_on_disk, "count": repo.nb_files,
}}))
"""


def what_the_client_reads(sandbox: Sandbox, cache: Path) -> dict[str, Any]:
    done = client(sandbox, "-c", READ_BACK, str(cache))
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


# --- a cache we filled -------------------------------------------------------------------------------


def test_the_real_client_accepts_a_cache_we_filled(sandbox: Sandbox, cache: Path) -> None:
    assert run(sandbox, "install", cache).returncode == 0
    said = what_the_client_reads(sandbox, cache)
    assert said["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in sorted(FILES.items())}
    assert said["warnings"] == []
    assert said["revisions"] == {REVISION: []}  # what main means only a manifest that comes with klein-setup says
    assert (said["size"], said["count"]) == (sum(map(len, FILES.values())), len(FILES))


def test_hf_cache_is_filled_from_a_registry_and_the_hub_only_confirms(sandbox: Sandbox, cache: Path) -> None:
    blobs = {hashlib.sha256(data).hexdigest(): data for data in FILES.values()}
    registry = MarkedRegistry(blobs, login=("me", "lab-password"), token="lab-token", signature="lab")
    saved = base64.b64encode(b"me:lab-password").decode()
    (sandbox.home / ".docker").mkdir()
    (sandbox.home / ".docker" / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": saved}}}))
    done = run(sandbox, "install", cache, "--registry", f"{registry.host}/models", "--registry-only")
    registry.close()
    assert done.returncode == 0, done.stderr
    assert {each.method for each in sandbox.hub.requests} == {"HEAD"}
    assert blob(cache).read_bytes() == WEIGHTS
    assert run(sandbox, "verify", cache).returncode == 0


def test_hf_cache_verify_finds_nothing_wrong(sandbox: Sandbox, cache: Path) -> None:
    assert run(sandbox, "install", cache).returncode == 0
    command = "from huggingface_hub.cli.hf import main; main()"
    arguments = ["cache", "verify", REPOSITORY, "--revision", REVISION, "--cache-dir", str(cache)]
    verified = client(sandbox, "-c", command, *arguments, "--fail-on-missing-files")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    (snapshot(cache) / "model_index.json").resolve().write_bytes(CONFIG.replace(b"32", b"33"))
    assert client(sandbox, "-c", command, *arguments).returncode == 1  # and it would have said so


def test_a_second_run_asks_nobody_and_writes_nothing(sandbox: Sandbox, cache: Path) -> None:
    assert run(sandbox, "install", cache).returncode == 0
    sandbox.hub.clear_requests()
    before = {path: path.lstat().st_mtime_ns for path in cache.rglob("*")}
    assert run(sandbox, "install", cache).returncode == 0
    assert run(sandbox, "verify", cache, "--quick").returncode == 0
    assert sandbox.hub.requests == ()
    assert {path: path.lstat().st_mtime_ns for path in cache.rglob("*")} == before


def test_what_main_means_already_is_left_alone(sandbox: Sandbox, cache: Path) -> None:
    reference = repository(cache) / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(OTHER_REVISION, encoding="utf-8")
    assert run(sandbox, "install", cache).returncode == 0
    assert reference.read_text(encoding="utf-8") == OTHER_REVISION


# --- a cache the client filled -----------------------------------------------------------------------


def test_a_cache_the_client_filled_is_proved_and_not_fetched_again(sandbox: Sandbox, cache: Path) -> None:
    script = (
        f"from huggingface_hub import snapshot_download; snapshot_download({REPOSITORY!r}, cache_dir={str(cache)!r})"
    )
    done = client(sandbox, "-c", script)
    assert done.returncode == 0, done.stderr
    sandbox.hub.clear_requests()
    installed = run(sandbox, "install", cache, "--json")
    assert installed.returncode == 0
    assert {step["kind"] for step in installed.json["steps"]} == {"record-receipt"}
    assert sandbox.hub.requests == ()
    assert what_the_client_reads(sandbox, cache)["warnings"] == []


# --- damage ------------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


def damage_blob(cache: Path) -> None:
    path = blob(cache)
    os.chmod(path, 0o644)  # noqa: PTH101 - the client may have made it read-only
    path.write_bytes(flipped(WEIGHTS))


def damage_link(cache: Path) -> None:
    (snapshot(cache) / "vae" / "weights.safetensors").unlink()


def damage_target(cache: Path) -> None:
    blob(cache).unlink()


def damage_by_copying(cache: Path) -> None:
    path = snapshot(cache) / "vae" / "weights.safetensors"
    path.unlink()
    path.write_bytes(flipped(WEIGHTS))


def damage_size(cache: Path) -> None:
    blob(cache).write_bytes(WEIGHTS[:-5])


@LINKS
@pytest.mark.parametrize(
    ("damage", "fetches"),
    [
        (damage_blob, True),
        (damage_size, True),
        (damage_target, True),
        (damage_link, False),  # the blob is there
        (damage_by_copying, False),
    ],
)
def test_repair_puts_right_what_is_wrong_in_one_run(
    sandbox: Sandbox, cache: Path, damage: Callable[[Path], None], fetches: bool
) -> None:
    assert run(sandbox, "install", cache).returncode == 0
    damage(cache)
    sandbox.hub.clear_requests()
    repaired = run(sandbox, "repair", cache)
    assert repaired.returncode == 0, repaired.said
    fetched = {request.filename for request in sandbox.hub.requests if request.method == "GET"}
    assert fetched == ({"vae/weights.safetensors"} if fetches else set())
    pointer = snapshot(cache) / "vae" / "weights.safetensors"
    assert (pointer.read_bytes(), pointer.resolve()) == (WEIGHTS, blob(cache).resolve())
    assert sorted(path.name for path in pointer.parent.iterdir()) == ["weights.safetensors"]


@LINKS
def test_repairing_one_snapshot_repairs_the_others_that_share_its_blob(sandbox: Sandbox, cache: Path) -> None:
    assert run(sandbox, "install", cache).returncode == 0
    other = snapshot(cache, OTHER_REVISION)
    shutil.copytree(snapshot(cache), other, symlinks=True)
    damage_blob(cache)
    assert run(sandbox, "repair", cache).returncode == 0
    for each in (other, snapshot(cache)):
        assert (each / "vae" / "weights.safetensors").read_bytes() == WEIGHTS
    kept = [path.read_bytes() for path in (repository(cache) / ".klein-setup" / "aside").rglob("*") if path.is_file()]
    assert flipped(WEIGHTS) in kept


@LINKS
def test_a_blob_of_other_bytes_that_no_snapshot_points_to_is_kept(sandbox: Sandbox, cache: Path) -> None:
    """So it lies there after a kill between its name in a snapshot and itself was set aside."""
    assert run(sandbox, "install", cache).returncode == 0
    damage_blob(cache)
    (snapshot(cache) / "vae" / "weights.safetensors").unlink()
    assert run(sandbox, "install", cache).returncode == 0
    assert (snapshot(cache) / "vae" / "weights.safetensors").read_bytes() == WEIGHTS
    kept = [path.read_bytes() for path in (repository(cache) / ".klein-setup" / "aside").rglob("*") if path.is_file()]
    assert flipped(WEIGHTS) in kept


@LINKS
def test_while_it_cannot_be_repaired_the_others_are_no_worse_off(sandbox: Sandbox, cache: Path) -> None:
    assert run(sandbox, "install", cache).returncode == 0
    other = snapshot(cache, OTHER_REVISION)
    shutil.copytree(snapshot(cache), other, symlinks=True)
    damage_blob(cache)
    sandbox.hub.close()
    with RehearsalHub() as nothing_there:
        failed = run(sandbox, "repair", cache, "--endpoint", nothing_there.endpoint)
    assert failed.returncode == 6
    assert (other / "vae" / "weights.safetensors").read_bytes() == flipped(WEIGHTS)


@LINKS
def test_two_artifacts_with_the_same_bytes_share_a_blob(sandbox: Sandbox, cache: Path) -> None:
    twins = {"one.safetensors": WEIGHTS, "two.safetensors": WEIGHTS}
    sandbox.hub.add_repository(REPOSITORY, REVISION, twins, tokens=[TOKEN])
    entries = [
        {
            "id": name.partition(".")[0],
            "role": "other",
            "name": name,
            "size": len(WEIGHTS),
            "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
            "sources": [{"repo_id": REPOSITORY, "revision": REVISION, "filename": name}],
        }
        for name in twins
    ]
    one = {"id": "cache", "title": "Both", "target": "hf_cache", "artifacts": ["one", "two"]}
    sandbox.write_manifest(default_set="cache", sets=[one], artifacts=entries)
    assert run(sandbox, "install", cache).returncode == 0
    assert [path.name for path in (repository(cache) / "blobs").iterdir()] == [blob(cache).name]
    damage_blob(cache)
    repaired = run(sandbox, "repair", cache)
    assert repaired.returncode == 0, repaired.said
    assert [(snapshot(cache) / name).read_bytes() for name in twins] == [WEIGHTS, WEIGHTS]


KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))

def die(event, given):
    global left
    if event == "os.remove" and "models--" in os.path.realpath(f"/proc/self/fd/{given[1]}"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
from provisioner.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at descriptors in /proc")
@pytest.mark.parametrize("at", [2, 3, 5])
def test_an_uninstallation_that_is_killed_is_finished_by_the_next(sandbox: Sandbox, cache: Path, at: int) -> None:
    assert run(sandbox, "install", cache).returncode == 0
    words = ["uninstall", "--yes", "--hf-cache", str(cache), "--manifest", str(sandbox.manifest)]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(at), *words], env=sandbox.environ, check=False)
    assert killed.returncode == -9
    assert run(sandbox, "uninstall", cache, "--yes").returncode == 0
    assert not repository(cache).exists()
