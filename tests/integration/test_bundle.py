"""Bundles with the real command: made from a hub, carried, verified, installed from with the network off, repaired."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisioner import __version__
from provisioner.core.models import BLOCK_SIZE, Gpu
from tests.support.builders import recording_of
from tests.support.disks import Mount, fill_the_disk
from tests.support.sandbox import MIB, Completed, Sandbox, Wanted, sha256_of, tensors, wait_until
from tests.support.setup_fixture import EINOPS, PROGRAM, SetupFixture, Upstream, index_of_toys, rtx_4070
from tests.support.signing import make_pair
from tests.support.wheels import Toy, ToyIndex, content_of, own_packages, own_pip, torch_set

ROOT = Path(__file__).resolve().parents[2]
SIZE = 2 * BLOCK_SIZE + MIB
POSIX = pytest.mark.skipif(os.name == "nt", reason="the environment of the setup is laid out for POSIX")
NOBODY = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def wanted(sandbox: Sandbox) -> Wanted:
    (wanted,) = sandbox.publish(tensors(SIZE))
    return wanted


def make(sandbox: Sandbox, bundle: Path, *words: str | Path, action: str = "create") -> Completed:
    hub = ("--endpoint", sandbox.hub.endpoint, "--send-token")
    return sandbox.run("bundle", action, bundle, "--manifest", sandbox.manifest, *hub, "--yes", "--no-comfyui", *words)


@pytest.fixture
def bundle(sandbox: Sandbox, wanted: Wanted) -> Path:
    folder = sandbox.folder / "stick" / "klein"
    folder.parent.mkdir()
    done = make(sandbox, folder)
    assert done.returncode == 0, done.said
    sandbox.hub.wait_until_idle()
    sandbox.hub.clear_requests()
    return folder


def blob(bundle: Path, wanted: Wanted) -> Path:
    return bundle / "blobs" / "sha256" / wanted.sha256


def there(sandbox: Sandbox, bundle: Path) -> tuple[str | Path, ...]:
    """Return the options of a run on a machine that has the bundle and reaches nobody."""
    return ("--from", bundle, "--manifest", sandbox.manifest, "--comfyui", sandbox.folder / "there", "--only", "files")


def test_a_bundle_is_an_image_layout_with_the_locked_manifest_beside_it(
    sandbox: Sandbox, bundle: Path, wanted: Wanted
) -> None:
    assert json.loads((bundle / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (row,) = json.loads((bundle / "index.json").read_bytes())["manifests"]
    manifest = json.loads((bundle / "blobs" / "sha256" / row["digest"].removeprefix("sha256:")).read_bytes())
    assert [each["digest"] for each in manifest["layers"]] == [f"sha256:{wanted.sha256}"]
    assert sha256_of(blob(bundle, wanted)) == wanted.sha256
    for path in (bundle / "blobs" / "sha256").iterdir():
        assert path.name == sha256_of(path)
    (lock,) = bundle.glob("*.lock.yaml")
    assert sandbox.run("manifest", "check", lock).returncode == 0


def test_a_machine_without_a_network_installs_from_it_and_repairs_by_blocks(
    sandbox: Sandbox, bundle: Path, wanted: Wanted
) -> None:
    off = {"HF_ENDPOINT": NOBODY, "HTTP_PROXY": NOBODY, "http_proxy": NOBODY}
    done = sandbox.run("install", "--yes", *there(sandbox, bundle), env=off)
    assert done.returncode == 0, done.said
    assert f"the bundle {bundle}" in done.said
    path = sandbox.folder / "there" / "models" / wanted.folder / wanted.name
    assert sha256_of(path) == wanted.sha256
    damaged = bytearray(wanted.data)
    damaged[BLOCK_SIZE + 5] ^= 1
    sandbox.plant(path, bytes(damaged))
    repaired = sandbox.run("repair", "--json", "--yes", *there(sandbox, bundle), env=off)
    assert repaired.returncode == 0, repaired.said
    (step,) = repaired.json["steps"]
    assert (step["way"], step["blocks"]) == ("in-place", [1])
    assert sha256_of(path) == wanted.sha256
    assert not sandbox.hub.requests


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root makes a network namespace")
def test_it_is_installed_from_where_there_is_no_network_at_all(sandbox: Sandbox, bundle: Path, wanted: Wanted) -> None:
    if subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    words = ["install", "--yes", *map(str, there(sandbox, bundle))]
    shell = 'ip link set lo up && exec "$@"'
    command = ["unshare", "-n", "sh", "-c", shell, "sh", sys.executable, "-m", "provisioner", *words]
    done = subprocess.run(command, env=sandbox.environ, cwd=sandbox.folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sha256_of(sandbox.folder / "there" / "models" / wanted.folder / wanted.name) == wanted.sha256


def test_a_second_run_fetches_nothing_and_what_verify_names_is_mended_by_its_blocks(
    sandbox: Sandbox, bundle: Path, wanted: Wanted
) -> None:
    before = (bundle / "index.json").read_bytes()
    assert make(sandbox, bundle).returncode == 0
    assert sandbox.bytes_served() == 0
    assert (bundle / "index.json").read_bytes() == before
    verified = sandbox.run("bundle", "verify", bundle)
    assert verified.returncode == 0, verified.said
    assert "every byte was read" in verified.said

    damaged = bytearray(wanted.data)
    damaged[3] ^= 1
    times = blob(bundle, wanted).stat()
    blob(bundle, wanted).write_bytes(bytes(damaged))
    os.utime(blob(bundle, wanted), ns=(times.st_atime_ns, times.st_mtime_ns))
    verified = sandbox.run("bundle", "verify", bundle, "--json")
    assert verified.returncode == 1
    (finding,) = verified.json["findings"]
    assert (finding["code"], finding["severity"]) == ("bundle-hash-mismatch", "problem")
    assert wanted.name in finding["message"]
    assert make(sandbox, bundle).returncode == 0
    assert sandbox.bytes_served() == BLOCK_SIZE
    assert sandbox.run("bundle", "verify", bundle).returncode == 0


def test_its_lock_is_signed_and_another_machine_accepts_nothing_else(
    sandbox: Sandbox, wanted: Wanted, tmp_path: Path
) -> None:
    make_pair(tmp_path, "lab")
    bundle, key, public = sandbox.folder / "signed", tmp_path / "lab.key", tmp_path / "lab.pub"
    done = make(sandbox, bundle, "--sign", key, "--expires", "9d")
    assert done.returncode == 0, done.said
    (lock,) = bundle.glob("*.lock.yaml")
    words = ("--from", bundle, "--comfyui", sandbox.folder / "there", "--only", "files")
    signed = ("--manifest", lock, "--verify-with", public, "--yes")
    assert "version 1" in done.said
    taken = sandbox.run("install", *words, *signed)
    assert taken.returncode == 0, taken.said
    lock.write_text(lock.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    refused = sandbox.run("install", *words, *signed)
    assert refused.returncode == 7, refused.said
    again = make(sandbox, bundle, "--sign", key)
    assert "version 2" in again.said, again.said


def test_a_file_that_is_gone_is_named_before_anything_is_changed(
    sandbox: Sandbox, bundle: Path, wanted: Wanted
) -> None:
    blob(bundle, wanted).unlink()
    verified = sandbox.run("bundle", "verify", bundle, "--json")
    assert (verified.returncode, [each["code"] for each in verified.json["findings"]]) == (1, ["bundle-missing"])
    done = sandbox.run("install", "--yes", *there(sandbox, bundle))
    assert done.returncode == 7
    assert f"lacks {wanted.folder}/{wanted.name}" in done.stderr
    assert not (sandbox.folder / "there").exists()


def test_another_set_than_it_was_made_for_is_refused_with_what_is_missing(
    sandbox: Sandbox, bundle: Path, wanted: Wanted
) -> None:
    (other,) = sandbox.publish(tensors(3000, seed=5))
    done = sandbox.run("install", "--yes", *there(sandbox, bundle))
    assert done.returncode == 6, done.said
    assert other.name in done.stderr
    assert f" bundle add {bundle} --set tree --manifest {sandbox.manifest}`" in done.stderr
    assert not (sandbox.folder / "there" / "models").exists()
    added = make(sandbox, bundle, action="add")
    assert added.returncode == 0, added.said
    assert sandbox.run("install", "--yes", *there(sandbox, bundle)).returncode == 0


def test_what_is_elsewhere_on_this_computer_is_not_fetched_again(sandbox: Sandbox, wanted: Wanted) -> None:
    assert sandbox.install("--only", "files").returncode == 0
    sandbox.hub.wait_until_idle()
    sandbox.hub.clear_requests()
    bundle = sandbox.folder / "bundle"
    done = make(sandbox, bundle, "--look-in", sandbox.tree / "models")
    assert done.returncode == 0, done.said
    assert sandbox.bytes_served() == 0
    assert sha256_of(blob(bundle, wanted)) == wanted.sha256


def test_a_run_that_was_killed_is_no_bundle_and_the_next_one_continues(sandbox: Sandbox, wanted: Wanted) -> None:
    bundle = sandbox.folder / "bundle"
    sandbox.hub.rate_bytes_s_per_connection = 12_000_000
    hub = ("--endpoint", sandbox.hub.endpoint, "--send-token", "--connections", "1")
    words = ("bundle", "create", bundle, "--manifest", sandbox.manifest, *hub, "--yes", "--no-comfyui")
    running = sandbox.start(*words)
    log = bundle / "blobs" / "sha256" / f"{wanted.sha256}.part.jsonl"
    wait_until(lambda: log.is_file() and len(log.read_bytes().splitlines()) > 1, what="a block")
    sandbox.kill(running)
    assert not (bundle / "index.json").exists()
    refused = sandbox.run("install", "--yes", *there(sandbox, bundle))
    assert refused.returncode == 2
    assert "There is no bundle" in refused.stderr
    sandbox.hub.rate_bytes_s_per_connection = None
    sandbox.hub.wait_until_idle()
    sandbox.hub.clear_requests()
    assert sandbox.run(*words).returncode == 0
    assert sandbox.bytes_served() < SIZE
    assert sandbox.run("bundle", "verify", bundle).returncode == 0


@pytest.mark.parametrize("where", ["index.json", "a blob", "its manifest"])
def test_a_link_in_a_bundle_is_not_followed(sandbox: Sandbox, bundle: Path, wanted: Wanted, where: str) -> None:
    (row,) = json.loads((bundle / "index.json").read_bytes())["manifests"]
    path = {
        "index.json": bundle / "index.json",
        "a blob": blob(bundle, wanted),
        "its manifest": bundle / "blobs" / "sha256" / row["digest"].removeprefix("sha256:"),
    }[where]
    elsewhere = sandbox.folder / "elsewhere"
    shutil.move(path, elsewhere)
    try:
        path.symlink_to(elsewhere)
    except OSError:
        pytest.skip("no links here")
    done = sandbox.run("install", "--yes", *there(sandbox, bundle))
    assert done.returncode == 7, done.said
    assert not (sandbox.folder / "there").exists()


def test_a_folder_with_something_else_in_it_gets_no_bundle(sandbox: Sandbox, wanted: Wanted) -> None:
    folder = sandbox.folder / "home"
    sandbox.plant(folder / "thesis.odt", b"mine")
    done = make(sandbox, folder)
    assert done.returncode == 2
    assert "thesis.odt" in done.stderr
    assert sorted(each.name for each in folder.iterdir()) == ["thesis.odt"]
    added = make(sandbox, sandbox.folder / "new", action="add")
    assert added.returncode == 2
    assert "bundle create" in added.stderr


@pytest.mark.parametrize(
    "words",
    [("--registry", "registry.lab/models"), ("--endpoint", NOBODY), ("--comfyui-source", "x.zip"), ("--offline",)],
)
def test_a_second_place_beside_a_bundle_is_a_usage_error(
    sandbox: Sandbox, bundle: Path, words: tuple[str, ...]
) -> None:
    done = sandbox.run("install", "--yes", *there(sandbox, bundle), *words)
    assert done.returncode == 2
    assert words[0] in done.stderr


# --- with ComfyUI and an environment ---------------------------------------------------------------


@pytest.fixture(scope="module")
def made_once(make_sandbox: Callable[[], Sandbox], index: ToyIndex, upstream: Upstream) -> Path:
    """A bundle with ComfyUI and wheels, for tests that copy it."""
    setup = SetupFixture(make_sandbox(), index, upstream)
    bundle = setup.sandbox.folder / "bundle"
    made = setup.run("bundle", "create", bundle, "--yes")
    assert made.returncode == 0, made.stderr
    return bundle


@pytest.fixture
def whole(setup: SetupFixture, made_once: Path) -> Path:
    """A bundle of one's own with ComfyUI and wheels."""
    return Path(shutil.copytree(made_once, setup.sandbox.folder / "bundle"))


def elsewhere(tmp_path: Path) -> dict[str, str]:
    """Return the variables of another user, who reaches no index and no hub."""
    home = tmp_path / "home"
    home.mkdir()
    own = {f"XDG_{name}_HOME": str(home / name.lower()) for name in ("STATE", "DATA", "CACHE", "CONFIG")}
    return {"HOME": str(home), **own, "PIP_INDEX_URL": NOBODY, "HF_ENDPOINT": NOBODY, "HTTP_PROXY": NOBODY}


@POSIX
def test_models_comfyui_and_environment_come_out_of_it_on_a_machine_without_network(
    setup: SetupFixture, whole: Path, tmp_path: Path
) -> None:
    verified = setup.run("bundle", "verify", whole)
    assert verified.returncode == 0, verified.stderr
    assert "wheels/comfyui-cu130" in verified.stdout
    env, tree = elsewhere(tmp_path), tmp_path / "ComfyUI"
    hosts = setup.run("plan", "--from", whole, "--comfyui", tree, "--hosts", "--json", env=env)
    assert (hosts.returncode, hosts.json["details"]["hosts"]["uses"]) == (0, []), hosts.stderr
    setup.sandbox.hub.wait_until_idle()
    setup.sandbox.hub.clear_requests()
    there = ("--from", whole, "--comfyui", tree)
    done = setup.run("install", *there, "--yes", "--size", "256x256", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert done.json["details"]["smoke_test"]["is_proven"]
    assert (tree / "main.py").read_text(encoding="utf-8") == PROGRAM["main.py"]
    assert not setup.sandbox.hub.requests

    site = next((tree / ".venv" / "lib").glob("python*/site-packages"))
    next(site.glob("einops/__init__.py")).write_text("damaged", encoding="utf-8")
    repaired = setup.run("repair", *there, "--only", "environment", "--yes", env=env)
    assert repaired.returncode == 0, repaired.stderr
    assert next(site.glob("einops/__init__.py")).read_text(encoding="utf-8") != "damaged"


@POSIX
@pytest.mark.parametrize(
    ("left_out", "words"), [("--no-wheels", "holds no wheels"), ("--no-comfyui", "holds no ComfyUI")]
)
def test_what_was_left_out_is_named_before_anything_is_changed(
    setup: SetupFixture, tmp_path: Path, left_out: str, words: str
) -> None:
    bundle, tree = setup.sandbox.folder / "bundle", tmp_path / "ComfyUI"
    assert setup.run("bundle", "create", bundle, "--yes", left_out).returncode == 0
    done = setup.run("install", "--from", bundle, "--comfyui", tree, "--yes")
    assert done.returncode == 6
    assert words in done.stderr
    assert not tree.exists()


def exchange(bundle: Path, part: str, old: str, toy: Toy) -> None:
    """Put another wheel in the place of one, as somebody does who knows the format: every digest is right again."""
    blobs, index = bundle / "blobs" / "sha256", json.loads((bundle / "index.json").read_bytes())

    def write(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    (row,) = (
        each for each in index["manifests"] if each["annotations"]["org.opencontainers.image.ref.name"].startswith(part)
    )
    manifest = json.loads((blobs / row["digest"][7:]).read_bytes())
    for layer in manifest["layers"]:
        if layer["annotations"]["org.opencontainers.image.title"].startswith(old):
            layer |= write(content_of(toy))
    row |= write(json.dumps(manifest).encode())
    (bundle / "index.json").write_text(json.dumps(index))


@POSIX
def test_a_signed_lock_covers_the_wheels_and_comfyui(setup: SetupFixture, tmp_path: Path) -> None:
    make_pair(tmp_path, "lab")
    bundle, tree = setup.sandbox.folder / "bundle", tmp_path / "ComfyUI"
    made = setup.run("bundle", "create", bundle, "--yes", "--sign", tmp_path / "lab.key")
    assert made.returncode == 0, made.stderr
    (lock,) = bundle.glob("*.lock.yaml")
    assert setup.sandbox.run("manifest", "check", lock, "--verify-with", tmp_path / "lab.pub").returncode == 0
    words = ("plan", "--from", bundle, "--comfyui", tree)
    signed = ("--manifest", lock, "--verify-with", tmp_path / "lab.pub")
    held = setup.run(*words, *signed)
    assert held.returncode == 0, held.stderr
    assert "does not cover" not in held.said
    exchange(bundle, "wheels/", "einops", replace(EINOPS, padding=5))
    assert setup.run("bundle", "verify", bundle).returncode == 0  # it fits together, and anybody could have made it
    assert setup.run(*words).returncode == 0
    for command in ("plan", "install"):
        refused = setup.run(command, *words[1:], *signed, *(["--yes"] if command == "install" else []))
        assert refused.returncode == 6, refused.stderr
        assert "no wheels that the lock of" in refused.stderr
    assert not tree.exists()

    plain = setup.sandbox.folder / "plain.lock.yaml"  # one that knows nothing of a bundle
    assert setup.run("install", "--only", "files", "--yes").returncode == 0
    of_tree = ("--manifest", setup.sandbox.manifest, "--comfyui", setup.tree, "--output", plain)
    locked = setup.sandbox.run("manifest", "lock", *of_tree, "--sign", tmp_path / "lab.key")
    assert locked.returncode == 0, locked.stderr
    warned = setup.run(*words, "--manifest", plain, "--verify-with", tmp_path / "lab.pub")
    assert "does not cover the bundle's ComfyUI and wheels" in warned.said


@POSIX
def test_recorded_machines_get_their_own_wheels_in_one_bundle(setup: SetupFixture, tmp_path: Path) -> None:
    bundle, own = setup.sandbox.folder / "bundle", setup.sandbox.folder / "machine.json"
    there, old, mac = tmp_path / "there.json", tmp_path / "old.json", tmp_path / "mac.json"
    there.write_text(own.read_text(encoding="utf-8"))
    pascal = Gpu(vendor="nvidia", name="NVIDIA GeForce GTX 1080", index=0, compute_capability=(6, 1))
    old.write_text(recording_of(rtx_4070(gpus=(pascal,))))
    mac.write_text(recording_of(rtx_4070(os="macos", architecture="arm64", gpus=())))
    own.write_text("nothing that a machine is")  # so that it cannot be what counts
    setup.index.toys += torch_set("cu126")
    made = setup.run("bundle", "create", bundle, "--yes", "--machine", there, "--machine", old)
    assert made.returncode == 0, made.stderr
    names = [each["annotations"]["org.opencontainers.image.ref.name"] for each in manifests(bundle)]
    assert [name for name in names if "wheels/" in name] == [
        "wheels/comfyui-cu126-py3-none-any",
        "wheels/comfyui-cu130-py3-none-any",
    ]
    (lock,) = bundle.glob("*.lock.yaml")  # which covers the wheels of both
    for machine, torch in ((there, "2.15.0"), (old, "2.14.1")):
        words = ("--from", bundle, "--comfyui", tmp_path / "ComfyUI", "--manifest", lock)
        plan = setup.run("plan", *words, "--machine", machine)
        assert plan.returncode == 0, plan.stderr
        assert torch in plan.stdout
    refused = setup.run("bundle", "create", setup.sandbox.folder / "other", "--yes", "--machine", mac, "--cpu")
    assert refused.returncode == 2, refused.stderr
    assert "macos on arm64" in refused.stderr
    assert not (setup.sandbox.folder / "other").exists()


@POSIX
def test_amds_own_build_which_no_bundle_can_hold_is_named_in_time(setup: SetupFixture, tmp_path: Path) -> None:
    amd, bundle = ROOT / "tests" / "support" / "machines" / "rx-6900-xt-linux.json", setup.sandbox.folder / "bundle"
    made = setup.run("bundle", "create", bundle, "--yes", "--machine", amd, "--torch", "rocm10.0.0")
    assert made.returncode == 0, made.stderr
    assert "No bundle can hold torch for rocm10.0.0" in made.said
    names = [each["annotations"]["org.opencontainers.image.ref.name"] for each in manifests(bundle)]
    assert names == ["comfyui", "klein-setup", "small/tree"]
    tree = tmp_path / "ComfyUI"
    words = ("--from", bundle, "--comfyui", tree, "--torch", "rocm10.0.0")
    refused = setup.run("plan", *words, "--machine", amd)
    assert refused.returncode == 6, refused.stderr
    assert "has rocm only as a source archive" in refused.stderr
    assert setup.run("plan", *words, "--machine", amd, "--only", "files").returncode == 0


def manifests(bundle: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((bundle / "index.json").read_bytes())["manifests"]
    return found


@POSIX
def test_a_damaged_wheel_is_refused_and_named(setup: SetupFixture, whole: Path, tmp_path: Path) -> None:
    rows = json.loads((whole / "index.json").read_bytes())["manifests"]
    name = next(row for row in rows if "wheels/" in row["annotations"]["org.opencontainers.image.ref.name"])
    layers = json.loads((whole / "blobs" / "sha256" / name["digest"][7:]).read_bytes())["layers"]
    einops = next(each for each in layers if "einops" in each["annotations"]["org.opencontainers.image.title"])
    blob = whole / "blobs" / "sha256" / einops["digest"][7:]
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    env = elsewhere(tmp_path)
    done = setup.run("install", "--from", whole, "--comfyui", tmp_path / "ComfyUI", "--yes", env=env)
    assert done.returncode == 7, done.stderr
    assert "einops" in done.stderr
    verified = setup.run("bundle", "verify", whole, "--json")
    assert (verified.returncode, len(verified.json["findings"])) == (1, 1)


def test_verify_reads_the_config_of_a_manifest_too(sandbox: Sandbox, bundle: Path) -> None:
    (row,) = json.loads((bundle / "index.json").read_bytes())["manifests"]
    blobs = bundle / "blobs" / "sha256"
    manifest = json.loads((blobs / row["digest"].removeprefix("sha256:")).read_bytes())
    (blobs / manifest["config"]["digest"].removeprefix("sha256:")).unlink()
    verified = sandbox.run("bundle", "verify", bundle, "--json")
    assert (verified.returncode, [each["code"] for each in verified.json["findings"]]) == (1, ["bundle-missing"])
    assert "the config of" in verified.json["findings"][0]["message"]
    assert make(sandbox, bundle).returncode == 0
    assert sandbox.run("bundle", "verify", bundle).returncode == 0


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
def test_a_link_in_place_of_a_folder_of_a_bundle_is_not_followed(sandbox: Sandbox, bundle: Path, name: str) -> None:
    elsewhere = sandbox.folder / "elsewhere"
    shutil.move(bundle / name, elsewhere)
    try:
        (bundle / name).symlink_to(elsewhere, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    for words in (("install", "--yes", *there(sandbox, bundle)), ("bundle", "verify", bundle)):
        done = sandbox.run(*words)
        assert done.returncode == 7, done.said
    assert not (sandbox.folder / "there").exists()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"schemaVersion": 2, "manifests": []}, "without models, ComfyUI or wheels"),
        ({"manifests": [{"digest": "sha256:../../../etc/passwd", "size": 7}]}, "no SHA-256"),
        ({"manifests": [{"digest": "sha256:" + "0" * 64, "size": 4_000_000}] * 5}, "at most 16,777,216"),
        ({"manifests": "x" * 5_000_000}, "no list of manifests"),
    ],
)
def test_an_index_that_lies_is_refused_by_whatever_reads_it(
    sandbox: Sandbox, wanted: Wanted, index: object, said: str
) -> None:
    bundle = sandbox.folder / "odd"
    bundle.mkdir()
    (bundle / "index.json").write_text(json.dumps(index))
    for words in (("bundle", "verify", bundle), ("install", "--yes", *there(sandbox, bundle))):
        done = sandbox.run(*words)
        assert done.returncode == 7, done.said
        assert said in done.stderr
    assert not (sandbox.folder / "there").exists()


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(sandbox: Sandbox, wanted: Wanted, mount: Mount) -> None:
    bundle = mount("size=8m") / "klein"
    done = make(sandbox, bundle)
    assert done.returncode == 4, done.said
    assert "space" in done.stderr
    assert sandbox.bytes_served() == 0
    assert not (bundle / "index.json").exists()


def test_a_stick_whose_file_system_cannot_hold_a_file_is_named_before_the_first_byte(
    sandbox: Sandbox, wanted: Wanted
) -> None:
    text = sandbox.manifest.read_text(encoding="utf-8")
    sandbox.manifest.write_text(text.replace(str(SIZE), str(2**32)), encoding="utf-8")
    code = "import sys\nfrom provisioner.files.store import file_store\nfrom provisioner.cli.main import main\n"
    code += "file_store.kind_of_file_system = lambda found: 'vfat'\nsys.exit(main(sys.argv[1:]))"
    words = ["bundle", "create", sandbox.folder / "stick", "--manifest", sandbox.manifest, "--yes", "--no-comfyui"]
    words += ["--endpoint", sandbox.hub.endpoint, "--send-token"]
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=sandbox.environ, cwd=sandbox.folder, text=True, capture_output=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "is vfat: no file there can have more than 4,294,967,295 bytes. Nothing was fetched." in done.stderr
    assert sandbox.bytes_served() == 0
    assert not (sandbox.folder / "stick").exists()


def test_a_disk_that_fills_in_the_middle_leaves_no_bundle_and_the_next_run_continues(
    sandbox: Sandbox, wanted: Wanted, mount: Mount
) -> None:
    disk = mount("size=400m")
    bundle, filler = disk / "klein", disk / "other"
    sandbox.hub.rate_bytes_s_per_connection = 5_000_000
    hub = ("--endpoint", sandbox.hub.endpoint, "--send-token", "--connections", "1")
    words = ("bundle", "create", bundle, "--manifest", sandbox.manifest, *hub, "--yes", "--no-comfyui")
    running = sandbox.start(*words)
    log = bundle / "blobs" / "sha256" / f"{wanted.sha256}.part.jsonl"
    wait_until(lambda: log.is_file() and len(log.read_bytes().splitlines()) > 1, what="a block")
    fill_the_disk(filler)
    done = running.wait(60)
    assert done.returncode == 4, done.said
    assert not (bundle / "index.json").exists()
    filler.unlink()
    sandbox.hub.rate_bytes_s_per_connection = None
    sandbox.hub.wait_until_idle()
    sandbox.hub.clear_requests()
    assert sandbox.run(*words).returncode == 0
    assert sandbox.bytes_served() < SIZE
    assert sandbox.run("bundle", "verify", bundle).returncode == 0


@POSIX
def test_a_second_set_does_not_fetch_comfyui_again(setup: SetupFixture) -> None:
    sandbox, bundle = setup.sandbox, setup.sandbox.folder / "bundle"
    archive = sandbox.folder / "ComfyUI.zip"
    shutil.copyfile(setup.upstream.archive, archive)

    def made(action: str) -> subprocess.CompletedProcess[str]:
        driver = [sandbox.folder / "driver.py", sandbox.folder / "probe.py", json.dumps(setup.upstream.release)]
        words = ["bundle", action, bundle, "--manifest", sandbox.manifest, "--endpoint", sandbox.hub.endpoint]
        words += ["--send-token", "--yes", "--no-wheels", "--comfyui-source", archive]
        command = [sys.executable, *map(str, (*driver, *words))]
        environ, where = sandbox.environ, sandbox.folder
        return subprocess.run(command, cwd=where, env=environ, text=True, capture_output=True, check=False)

    done = made("create")
    assert done.returncode == 0, done.stderr
    before = (bundle / "index.json").read_bytes()
    archive.unlink()  # whoever asks for it again fails
    done = made("add")
    assert done.returncode == 0, done.stderr
    assert (bundle / "index.json").read_bytes() == before
    assert sandbox.run("bundle", "verify", bundle).returncode == 0

    rows = json.loads(before)["manifests"]
    (row,) = [each for each in rows if each["annotations"]["org.opencontainers.image.ref.name"] == "comfyui"]
    blobs = bundle / "blobs" / "sha256"
    (layer,) = json.loads((blobs / row["digest"].removeprefix("sha256:")).read_bytes())["layers"]
    held = blobs / layer["digest"].removeprefix("sha256:")
    damaged = bytearray(held.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    held.write_bytes(bytes(damaged))
    assert made("add").returncode != 0  # what is damaged is fetched, and there is nothing to fetch
    shutil.copyfile(setup.upstream.archive, archive)
    assert made("add").returncode == 0
    assert sandbox.run("bundle", "verify", bundle).returncode == 0


@POSIX
def test_a_bundle_without_comfyui_is_refused_where_comfyui_is_needed(setup: SetupFixture) -> None:
    sandbox, bundle = setup.sandbox, setup.sandbox.folder / "bundle"
    assert make(sandbox, bundle).returncode == 0
    folder = sandbox.folder / "there"
    done = sandbox.run("install", "--yes", "--from", bundle, "--manifest", sandbox.manifest, "--comfyui", folder)
    assert done.returncode == 6, done.said
    assert "holds no ComfyUI" in done.stderr
    assert "--only files" in done.stderr
    assert not folder.exists()


# --- klein-setup itself ----------------------------------------------------------------------------


def start(bundle: Path, home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Start klein-setup out of a bundle, with nothing but a Python, in an empty home and without any network."""
    command = [str(Path(sys.executable).resolve()), str(bundle / "klein-setup.py"), *map(str, words)]
    namespace = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if (
        sys.platform == "linux"
        and subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode == 0
    ):
        command = [*namespace, *command]
    home.mkdir(exist_ok=True)
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOBODY)
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "PIP_INDEX_URL": NOBODY, "PYTHONPATH": "/nowhere", **proxies}
    return subprocess.run(command, env=env, cwd=home, text=True, capture_output=True, check=False)


@pytest.fixture(scope="module")
def complete(make_sandbox: Callable[[], Sandbox], upstream: Upstream) -> Iterator[tuple[SetupFixture, Path]]:
    """A bundle with everything, klein-setup and what it really needs too."""
    own = own_packages(ROOT / "scripts" / "locked" / "run.txt")
    index = index_of_toys(own_pip(), *own)
    setup = SetupFixture(make_sandbox(), index, upstream)
    lines = [f"{toy.name}=={toy.version} --hash=sha256:{hashlib.sha256(content_of(toy)).hexdigest()}\n" for toy in own]
    (setup.sandbox.folder / "locked.txt").write_text("".join(lines))
    bundle = setup.sandbox.folder / "bundle"
    made = setup.run("bundle", "create", bundle, "--yes")
    assert made.returncode == 0, made.stderr
    assert f"the SHA-256 of this file is {sha256_of(bundle / 'klein-setup.py')}" in made.stdout
    yield setup, bundle
    index.close()


@POSIX
def test_a_machine_with_nothing_but_python_starts_klein_setup_out_of_it(
    complete: tuple[SetupFixture, Path], tmp_path: Path
) -> None:
    setup, bundle = complete
    home = tmp_path / "home"
    version = start(bundle, home, "--version")
    assert (version.returncode, version.stdout) == (0, f"klein-setup {__version__}\n"), version.stderr
    words = ("--manifest", setup.sandbox.manifest, "--comfyui", home / "ComfyUI", "--only", "files")
    plan = start(bundle, home, "plan", "--from", bundle, *words, "--json")
    assert plan.returncode == 0, plan.stderr
    assert plan.stderr.count("once") == 0  # the second start has nothing to install
    assert len(json.loads(plan.stdout)["steps"]) == 3
    done = start(bundle, home, "install", "--from", bundle, *words, "--yes")
    assert done.returncode == 0, done.stderr
    assert f"{home}/.local/share/klein-setup/program/" in done.stdout  # the commands that it shows can be pasted
    (own,) = (home / ".local" / "share" / "klein-setup" / "program").glob("*/bin/python")
    code = "import hashlib\nfrom provisioner.commands.bundle_program import own_wheel\n"
    code += "print(hashlib.sha256(own_wheel()).hexdigest())"
    again = subprocess.run([own, "-I", "-c", code], text=True, capture_output=True, check=True)
    assert again.stdout.strip() in (bundle / "klein-setup.py").read_text()  # it packs itself as it was packed
    (site,) = own.parents[1].glob("lib/python*/site-packages/provisioner")
    (site / "commands" / "detect.py").write_text("# changed\n")
    refused = subprocess.run([own, "-I", "-c", code], text=True, capture_output=True, check=False)
    assert "commands/detect.py is not the one that was installed" in refused.stderr


@POSIX
def test_a_wheel_of_klein_setup_that_was_exchanged_is_not_installed(
    complete: tuple[SetupFixture, Path], tmp_path: Path
) -> None:
    _, made = complete
    bundle, home = tmp_path / "bundle", tmp_path / "home"
    shutil.copytree(made, bundle)
    blobs = bundle / "blobs" / "sha256"
    named = re.search(r"'requests-[^']*', '([0-9a-f]{64})'", (bundle / "klein-setup.py").read_text())
    assert named is not None
    (blobs / named[1]).write_bytes(content_of(EINOPS))
    done = start(bundle, home, "--version")
    assert done.returncode == 7, done.stderr
    assert "requests-" in done.stderr
    assert not list(home.rglob("klein-setup*/bin/klein-setup"))
    (blobs / named[1]).unlink()
    assert start(bundle, home, "--version").returncode == 7
    shutil.copyfile(made / "blobs" / "sha256" / named[1], blobs / named[1])
    assert start(bundle, home, "--version").returncode == 0  # what was begun is made anew


def test_a_start_script_that_was_changed_is_found(setup: SetupFixture, whole: Path) -> None:
    script = whole / "klein-setup.py"
    assert setup.run("bundle", "verify", whole).returncode == 0
    script.write_text(script.read_text() + "# changed\n")
    verified = setup.run("bundle", "verify", whole, "--json")
    assert (verified.returncode, [each["code"] for each in verified.json["findings"]]) == (1, ["bundle-start"])
