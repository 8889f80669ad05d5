"""The Ansible collection on several hosts at once: one play, real ansible-core, a recorded machine for each host.

The hosts are folders of this computer with homes of their own, reached by Ansible's local connection; the mirror is the
embedded hub.  What is the same for one host is tested with the command itself, elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from provisioner.core.models import BLOCK_SIZE
from tests.support.builders import recording_of
from tests.support.comfy_server import free_port
from tests.support.fleet import Fleet, install_collection, program
from tests.support.mounts import own_mounts
from tests.support.oci_registry import DockerRegistry
from tests.support.sandbox import MIB, TOKEN, Sandbox, sha256_of, tensors, wait_until
from tests.support.setup_fixture import ENCODER, VAE, ModelFile, SetupFixture, git, rtx_4070, write_tree
from tests.support.signing import make_pair

ROOT = Path(__file__).resolve().parents[2]
MACHINES = ROOT / "tests" / "support" / "machines"
MODEL = ModelFile(data=tensors(2 * BLOCK_SIZE + MIB), name="flux-2-klein-4b-fp8.safetensors", folder="diffusion_models")
SMALLER = ModelFile(data=tensors(60_000, 4), name="qwen_3_4b_fp4.safetensors", folder="text_encoders")


pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the collection is tried from Linux"),
    pytest.mark.skipif(program("ansible-playbook") is None, reason="ansible-core is not installed"),
]


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the collection as a person does; return the folder."""
    return install_collection(tmp_path_factory.mktemp("collections"))


@pytest.fixture
def fleet(tmp_path: Path, sandbox: Sandbox, collections: Path) -> Fleet:
    """Return a mirror with two sets, one for large and one for small GPUs, and no hosts."""
    sandbox.publish(MODEL, ENCODER, SMALLER, VAE)
    sets = {"large": ("11 GiB", (MODEL, ENCODER, VAE)), "small": ("7 GiB", (MODEL, SMALLER, VAE))}
    entries = [
        {
            "id": name,
            "title": name,
            "target": "comfyui",
            "conditions": {"min_vram": memory},
            "artifacts": [each.artifact()["id"] for each in chosen],
        }
        for name, (memory, chosen) in sets.items()
    ]
    sandbox.write_manifest(sets=entries, default_set="large")
    return Fleet(tmp_path / "fleet", sandbox, collections)


LARGE = {MODEL.name, ENCODER.name, VAE.name}
SMALL = {MODEL.name, SMALLER.name, VAE.name}
GB10 = (MACHINES / "gb10-linux.json").read_text(encoding="utf-8")


def card(gib: int) -> str:
    """Return the recording of a machine whose GPU has so much memory."""
    machine = rtx_4070()
    return recording_of(replace(machine, gpus=(replace(machine.gpus[0], memory_total_bytes=gib * 1024**3),)))


def test_different_machines_get_their_own_sets_a_killed_one_continues_and_then_nothing_changes(fleet: Fleet) -> None:
    fleet.add("a", card(12))
    fleet.add("b", card(8))
    fleet.add("c", GB10, klein_setup_extra_arguments=["--connections", "1"])
    planned = fleet.play("install", "--check")
    assert planned.changed == {"a": 1, "b": 1, "c": 1}, planned.text
    assert [name for name in fleet.hosts if Path(fleet.hosts[name]["klein_setup_comfyui"]).exists()] == []

    fleet.sandbox.hub.rate_bytes_s_per_connection = 12 * MIB
    killed = threading.Thread(target=fleet.kill_after_a_block, args=["c", MODEL])
    killed.start()
    first = fleet.play("install")
    killed.join()
    assert (first.status, first.changed, first.failed) == (2, {"a": 1, "b": 1}, {"c"}), first.text
    assert "klein-setup was killed on c and said nothing. Run the playbook again" in first.said
    assert {name: fleet.has(name) for name in ("a", "b")} == {"a": LARGE, "b": SMALL}
    assert MODEL.name not in fleet.has("c")

    fleet.sandbox.hub.rate_bytes_s_per_connection = None
    fleet.sandbox.hub.wait_until_idle()
    fleet.sandbox.hub.clear_requests()
    second = fleet.play("install")
    assert (second.status, second.changed) == (0, {"a": 0, "b": 0, "c": 1}), second.text
    assert fleet.sandbox.bytes_served(MODEL) <= len(MODEL.data) - BLOCK_SIZE  # the block that was there is not fetched
    assert fleet.has("c") == LARGE


def test_detect_shows_what_each_machine_is_and_would_get(fleet: Fleet) -> None:
    fleet.add("a", card(12))
    fleet.add("c", GB10)
    shown = fleet.play("detect")
    assert (shown.status, shown.changed) == (0, {"a": 0, "c": 0}), shown.text
    assert '"msg": "NVIDIA GeForce RTX 4070, driver 580.95.05, torch cu130"' in shown.said
    assert '"msg": "NVIDIA GB10, driver 580.159.03, torch cu130"' in shown.said


def test_without_a_network_different_machines_come_to_the_same_signed_lock_from_a_drive(fleet: Fleet) -> None:
    own = own_mounts()
    if own is None:
        pytest.skip("a network without a device needs a namespace, and this user may not make one")
    fleet.add("drive", card(12))
    fleet.install("drive")
    source, drive = fleet.hosts.pop("drive")["klein_setup_comfyui"], fleet.folder / "mnt"
    drive.mkdir()
    mounted = f'mount -t tmpfs none {drive} && cp -a {source}/. {drive} && exec "$@"'  # another file system, as ever
    before = (*own, "--net", "sh", "-c", mounted, "sh")
    lock, pair = fleet.folder / "lab.yaml", make_pair(fleet.folder)
    signed = ("--output", lock, "--sign", pair.private, "--expires", "90d")
    written = fleet.sandbox.run("manifest", "lock", "--comfyui", source, *signed)
    assert written.returncode == 0, written.said
    offline = {"klein_setup_look_in": [str(drive)], "klein_setup_lock": str(lock), "klein_setup_endpoint": ""}
    offline["klein_setup_verify_with"] = str(pair.public)
    for name, recording in (("a", card(12)), ("b", card(8)), ("c", GB10)):
        fleet.add(name, recording, klein_setup_home=str(fleet.folder / name / "program"), **offline)
    fleet.add("forgotten", card(12), klein_setup_endpoint="")
    tampered = fleet.folder / "tampered"
    tampered.mkdir()
    shutil.copy(f"{lock}.sig", tampered)
    (tampered / "lab.yaml").write_text(f"{lock.read_text(encoding='utf-8')}# one line more\n", encoding="utf-8")
    home = str(fleet.folder / "cheated" / "program")
    fleet.add("cheated", card(12), **{**offline, "klein_setup_lock": str(tampered / "lab.yaml")}, klein_setup_home=home)
    played = fleet.play("install_without_network", before=before)
    failed = {"forgotten", "cheated"}
    assert (played.status, set(played.changed), played.failed) == (2, {"a", "b", "c"}, failed), played.text
    assert "[lock-signature]" in played.said
    assert fleet.has("cheated") == set()
    assert "No place with the files is named. Set klein_setup_from to a bundle, or klein_setup_look_in" in played.said
    assert {name: fleet.has(name) for name in played.changed} == dict.fromkeys("abc", LARGE)

    for name in failed:
        del fleet.hosts[name]
    for host in fleet.hosts.values():
        host["klein_setup_offline"] = True
    with fleet.path("b", MODEL).open("r+b") as stream:
        stream.write(b"????")
    repaired = fleet.play("repair", "--limit", "a,b", before=before)
    assert (repaired.status, repaired.changed) == (0, {"a": 0, "b": 1}), repaired.text
    assert fleet.has("b") == LARGE


def test_two_machines_come_to_one_signed_lock_from_a_bundle_and_the_damaged_one_is_repaired_by_blocks(
    fleet: Fleet,
) -> None:
    own = own_mounts()
    if own is None:
        pytest.skip("a network without a device needs a namespace, and this user may not make one")
    before = (*own, "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")  # 127.0.0.1 and nothing else
    if subprocess.run([*before, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    sandbox, stick = fleet.sandbox, fleet.folder / "stick"
    bundle, lock = stick / "klein", stick / "lab.lock.yaml"
    stick.mkdir(parents=True)
    pair = make_pair(fleet.folder)
    hub = ("--endpoint", sandbox.hub.endpoint, "--send-token")
    made = sandbox.run(
        "bundle", "create", bundle, "--manifest", sandbox.manifest, "--set", "large", *hub, "--yes", "--no-comfyui"
    )
    assert made.returncode == 0, made.said
    fleet.add("first", card(12))
    fleet.install("first")
    tree = fleet.hosts.pop("first")["klein_setup_comfyui"]
    signed = ("--output", lock, "--sign", pair.private, "--expires", "90d")
    written = sandbox.run("manifest", "lock", "--comfyui", tree, *signed)
    assert written.returncode == 0, written.said
    sandbox.hub.close()

    documents = fleet.folder / "documents"
    documents.mkdir()
    more: dict[str, object] = {"klein_setup_from": str(bundle), "klein_setup_endpoint": ""}
    more |= {"klein_setup_lock": str(lock), "klein_setup_verify_with": str(pair.public)}
    more |= {"klein_setup_documents": str(documents)}
    for name, recording in (("a", GB10), ("b", card(8))):
        fleet.add(name, recording, klein_setup_home=str(fleet.folder / name / "program"), **more)
    fleet.add("both", card(12), **{**more, "klein_setup_endpoint": sandbox.hub.endpoint})
    played = fleet.play("install_without_network", before=before)
    assert (played.status, set(played.changed), played.failed) == (2, {"a", "b"}, {"both"}), played.text
    assert "from the bundle alone, but klein_setup_endpoint is set, too. Leave one of them out for both." in played.said
    assert {name: fleet.has(name) for name in played.changed} == dict.fromkeys("ab", LARGE)
    del fleet.hosts["both"]

    damaged = fleet.path("b", MODEL)
    with damaged.open("r+b") as stream:
        stream.seek(BLOCK_SIZE + 5)
        stream.write(b"?")
    verified = fleet.play("verify", "--limit", "b", before=before)  # of the other the installation said all
    assert (verified.status, verified.failed) == (2, {"b"}), verified.text
    report = (
        "fleet",
        "report",
        documents,
        "--by-file",
        "--manifest",
        lock,
        "--json",
        "--output",
        fleet.folder / "p.html",
    )
    differs = sandbox.run(*report)
    states = {each["host"]: each["state"] for each in differs.json["details"]["fleet"]["hosts"]}
    assert (differs.returncode, states) == (1, {"a": "in-line", "b": "differs"}), differs.said
    assert differs.json["details"]["fleet"]["bytes_to_fetch"] == BLOCK_SIZE

    repaired = fleet.play("repair", before=before)
    assert (repaired.status, repaired.changed) == (0, {"a": 0, "b": 1}), repaired.text
    (step,) = json.loads((documents / "b.json").read_text(encoding="utf-8"))["steps"]
    assert (step["way"], step["blocks"]) == ("in-place", [1])
    assert fleet.has("b") == LARGE
    again = fleet.play("repair", "--limit", "b", before=before)  # of the other it was seen just now
    assert (again.status, again.changed) == (0, {"b": 0}), again.text
    in_line = sandbox.run(*report)
    states = {each["host"]: each["state"] for each in in_line.json["details"]["fleet"]["hosts"]}
    assert (in_line.returncode, states) == (0, dict.fromkeys("ab", "in-line")), in_line.said
    said = [json.loads(each.read_text(encoding="utf-8")) for each in documents.iterdir()]
    assert {each["manifest"]["sha256"] for each in said} == {sha256_of(lock)}
    assert [each["details"]["signed_lock"]["name"] for each in said] == ["lab.lock.yaml"] * 2


def test_a_host_whose_disk_is_full_fails_with_its_sentence_and_the_others_go_on(fleet: Fleet) -> None:
    own = own_mounts()
    if own is None:
        pytest.skip("a small disk needs a mount namespace, and this user may not make one")
    fleet.add("a", card(12))
    fleet.add("d", card(12))
    tree = fleet.folder / "d" / "ComfyUI"
    tree.mkdir()
    small_disk = (*own, "sh", "-c", f'mount -t tmpfs -o size=4m none {tree} && exec "$@"', "sh")
    planned = fleet.play("install", "--check", before=small_disk)
    assert (planned.status, planned.changed, planned.failed) == (2, {"a": 1}, {"d"}), planned.text
    assert "klein-setup plan on d: planned, exit status 0." in planned.said
    played = fleet.play("install", before=small_disk)
    assert (played.status, played.changed, played.failed) == (2, {"a": 1}, {"d"}), played.text
    assert "klein-setup install on d: failed, exit status 4." in played.said
    assert "[insufficient-space]" in played.said
    assert fleet.has("a") == LARGE


def test_verify_names_the_damaged_block_of_one_host_and_repair_fetches_only_that(fleet: Fleet) -> None:
    for name in ("a", "b"):
        fleet.add(name, card(12))
        fleet.install(name)
    damaged = fleet.path("b", MODEL)
    with damaged.open("r+b") as stream:
        stream.seek(BLOCK_SIZE + 5)
        stream.write(b"?")
    documents = fleet.folder / "documents"
    documents.mkdir()
    fleet.add("wrong", card(12), klein_setup_command=["no-such-program"])
    verified = fleet.play("verify", klein_setup_documents=str(documents))
    assert (verified.status, verified.changed, verified.failed) == (2, {"a": 0}, {"b", "wrong"}), verified.text
    assert f"{damaged}: hash-mismatch, damaged blocks: 1" in verified.said
    assert "Next, on b: " in verified.said
    assert "Started as: no-such-program. Set klein_setup_command" in verified.said
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in documents.iterdir()}
    assert {name: each["exit_status"] for name, each in kept.items()} == {"a": 0, "b": 1}

    del fleet.hosts["wrong"]
    fleet.sandbox.hub.clear_requests()
    checked = fleet.play("repair", "--check")
    assert (checked.status, checked.changed) == (0, {"a": 0, "b": 1}), checked.text
    assert fleet.sandbox.hub.requests == ()
    repaired = fleet.play("repair")
    assert (repaired.status, repaired.changed) == (0, {"a": 0, "b": 1}), repaired.text
    assert fleet.sandbox.bytes_served() == BLOCK_SIZE
    assert fleet.has("b") == LARGE


def test_hosts_take_their_files_from_a_registry_alone(fleet: Fleet) -> None:
    registry = DockerRegistry(fleet.folder / "registry")
    (fleet.folder / "pushed").mkdir()
    registry.push("models/klein", "v1", fleet.folder / "pushed", MODEL, ENCODER, SMALLER, VAE)
    more = {"klein_setup_registry": f"{registry.host}/models/klein", "klein_setup_registry_only": True}
    for name, gib in (("a", 12), ("b", 8)):
        fleet.add(name, card(gib), klein_setup_endpoint="", **more)
    played = fleet.play("install")
    registry.close()
    assert (played.status, played.changed) == (0, {"a": 1, "b": 1}), played.text
    assert {name: fleet.has(name) for name in fleet.hosts} == {"a": LARGE, "b": SMALL}
    assert fleet.sandbox.hub.requests == ()


def test_a_host_takes_its_files_from_another_one_that_seeds(fleet: Fleet) -> None:
    pytest.importorskip("libtorrent")
    sandbox, torrent, address = fleet.sandbox, fleet.folder / "lab.torrent", f"127.0.0.1:{free_port()}"
    fleet.folder.mkdir(exist_ok=True)
    assert sandbox.install("--only", "files").returncode == 0
    where = ("--manifest", sandbox.manifest, "--comfyui", sandbox.tree)
    seeding = sandbox.start("seed", *where, "--listen", address, "--torrent", torrent)
    wait_until(torrent.is_file, what="the torrent")
    sandbox.hub.wait_until_idle()
    sandbox.hub.clear_requests()
    peers: dict[str, object] = {"klein_setup_peers": [address], "klein_setup_torrent": str(torrent)}
    peers["klein_setup_home"] = str(fleet.folder / "b" / "own")
    fleet.add("b", card(12), klein_setup_listen=f"127.0.0.1:{free_port()}", **peers)
    played = fleet.play("install")
    seeding.kill()
    assert (played.status, fleet.has("b")) == (0, LARGE), played.text
    assert sandbox.bytes_served() == 0


def test_a_batch_in_which_every_host_fails_is_the_last(fleet: Fleet) -> None:
    fleet.add("a", card(12), klein_setup_set="no-such-set")
    fleet.add("b", card(12))
    played = fleet.play("install", klein_setup_serial=[1, "100%"])
    assert (played.status, played.failed) == (2, {"a"}), played.text
    assert "small has no set 'no-such-set'. Choose one of: large, small, auto. [usage]" in played.said
    assert not Path(fleet.hosts["b"]["klein_setup_comfyui"]).exists()


def test_the_token_reaches_the_hub_and_neither_an_output_nor_the_list_of_processes(fleet: Fleet) -> None:
    token = f"{TOKEN}ThatNoOtherTestHas"  # others may run at the same time
    gated = replace(VAE, is_gated=True)
    fleet.sandbox.publish(gated, is_gated=True, tokens=[token])
    fleet.add("a", card(12), klein_setup_token=token, klein_setup_send_token=True)
    fleet.sandbox.hub.rate_bytes_s_per_connection = len(VAE.data) // 2
    stop = threading.Event()
    shown: list[list[str]] = []
    seen: set[str] = set()

    def watch() -> None:
        while not stop.wait(0.02):
            for each in psutil.process_iter(["cmdline"]):
                words = each.info["cmdline"] or []
                seen.update(words)
                shown.extend([words] * any(token in word for word in words))

    watcher = threading.Thread(target=watch)
    watcher.start()
    played = fleet.play("install", "-vvv")
    stop.set()
    watcher.join()
    assert (played.status, played.changed) == (0, {"a": 1}), played.text
    assert str(fleet.hosts["a"]["klein_setup_comfyui"]) in seen  # the command was looked at while it ran
    assert shown == []
    assert token not in played.text
    assert fleet.has("a") == {VAE.name}


def test_klein_setup_comes_as_wheels_or_as_a_checkout(fleet: Fleet) -> None:
    wheels, checkout = fleet.folder / "wheels", fleet.folder / "upstream"
    write_wheel(wheels)
    start = "import sys\nfrom provisioner.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
    write_tree(checkout, {"scripts/klein_setup.py": start})
    git(checkout, "init", "-q", "-b", "main")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "release")
    for name, source in (("a", {"wheels": str(wheels)}), ("b", {"checkout": str(checkout)})):
        more = {f"klein_setup_{kind}": value for kind, value in source.items()}
        more |= {"klein_setup_home": str(fleet.folder / name / "program"), "klein_setup_python": sys.executable}
        fleet.add(name, card(12), klein_setup_poll_s=1, **more)
        packages = os.pathsep.join([str(ROOT), sysconfig.get_paths()["purelib"]])
        fleet.hosts[name]["klein_setup_environment"]["PYTHONPATH"] = packages  # what the wheel would need
    planned = fleet.play("install", "--check")
    assert planned.status == 0, planned.text
    assert "klein-setup or the lock would be brought to a first." in planned.said
    assert [name for name in fleet.hosts if (fleet.folder / name / "program").exists()] == []
    first = fleet.play("install")
    assert first.status == 0, first.text
    assert {name: fleet.has(name) for name in fleet.hosts} == {"a": LARGE, "b": LARGE}


def test_an_environment_and_a_test_image_of_every_run_are_no_change(setup: SetupFixture, collections: Path) -> None:
    assert setup.run("install", "--no-input").returncode == 0
    fleet = Fleet(setup.sandbox.folder / "fleet", setup.sandbox, collections)
    driver = [str(setup.sandbox.folder / name) for name in ("driver.py", "probe.py")]
    fleet.add(
        "a",
        recording_of(rtx_4070()),
        klein_setup_command=[sys.executable, *driver, json.dumps(setup.upstream.release)],
        klein_setup_environment={name: value for name, value in setup.sandbox.environ.items() if name != "HF_TOKEN"},
        klein_setup_comfyui=str(setup.tree),
        klein_setup_comfyui_source=str(setup.upstream.path),
        klein_setup_torch_index=setup.index.url,
        klein_setup_only=[],
    )
    images = len(list(setup.images.iterdir()))
    played = fleet.play("install")
    assert (played.status, played.changed) == (0, {"a": 0}), played.text
    assert len(list(setup.images.iterdir())) == images + 1


def write_wheel(folder: Path) -> None:
    """Write a wheel whose command is klein-setup's own entry point, without the code."""
    info = "klein_setup-1.0.dist-info"
    files = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: klein-setup\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nklein-setup = provisioner.cli.entry:run\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "klein_setup-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
