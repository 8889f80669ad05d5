"""``snapshot``: taken after an image and before a change, brought back with git, pip, the hub and an image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioner.disk.root import flip_bit
from provisioner.rehearsal.faults import Status
from provisioner.smoke_test.image import read_image
from tests.support.sandbox import Completed, Sandbox, sha256_of, wait_until
from tests.support.setup_fixture import MODEL, VAE, SetupFixture, Upstream, git, inventory, states, write_tree
from tests.support.wheels import Toy, ToyIndex

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the layout of the environment's folders")
SMALL = ("--size", "256x256")


def shelf(setup: SetupFixture) -> Path:
    return setup.sandbox.home / "data" / "klein-setup" / "snapshots"


def listed(setup: SetupFixture) -> list[dict[str, Any]]:
    done = setup.run("snapshot", "list", "--json")
    assert done.returncode == 0, done.said
    found: list[dict[str, Any]] = done.json["details"]["snapshots"]
    return found


def restore(setup: SetupFixture, name: str, *words: str | Path) -> Completed:
    return setup.run("snapshot", "restore", name, "--yes", "--json", *SMALL, *words)


def make_pack(folder: Path, version: str = "1.0") -> str:
    """Make a custom node that is a git checkout on a branch; return its commit."""
    write_tree(folder, {"__init__.py": "A = 1\n", "pyproject.toml": f'[project]\nname = "x"\nversion = "{version}"\n'})
    git(folder, "init", "-q", "-b", "main")
    git(folder, "remote", "add", "origin", "https://me:secret@git.example/pack.git")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", version)
    return git(folder, "rev-parse", "HEAD")


def commit_of(folder: Path) -> str:
    return git(folder, "rev-parse", "HEAD")


def einops_of(setup: SetupFixture) -> str:
    """Return the version that the environment's Python finds."""
    asked = "import einops, importlib.metadata as m; print(m.version('einops'))"
    python = setup.environment / "bin" / "python"
    return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def whole(
    make_sandbox: Callable[[], Sandbox], index: ToyIndex, tmp_path_factory: pytest.TempPathFactory
) -> SetupFixture:
    """Everything installed and verified by an image, with custom nodes of every kind; and a newer ComfyUI upstream."""
    upstream = Upstream(tmp_path_factory.mktemp("upstream") / "ComfyUI")
    setup = SetupFixture(make_sandbox(), index, upstream)
    done = setup.run("install", "--yes", *SMALL)
    assert done.returncode == 0, done.said
    nodes = setup.tree / "custom_nodes"
    make_pack(nodes / "with-git")
    write_tree(nodes / "without-git", {"__init__.py": "", "pyproject.toml": '[project]\nname = "y"\nversion = "2.0"\n'})
    write_tree(nodes, {"single.py": ""})
    assert setup.run("smoke-test", *SMALL).returncode == 0

    newer = {"comfyui_version.py": '__version__ = "0.34.0"\n', "requirements.txt": "torch\ntorchvision\neinops>=0.9\n"}
    write_tree(upstream.path, newer)
    git(upstream.path, "commit", "-q", "-a", "-m", "newer")
    git(upstream.path, "tag", "v0.34.0")
    index.toys.append(Toy(name="einops", version="0.9.0"))
    return setup


@pytest.fixture
def setup(whole: SetupFixture) -> Iterator[SetupFixture]:
    """The same, brought back to its first image after the test, with the snapshots that there were."""
    before = inventory(shelf(whole))
    yield whole
    for path in shelf(whole).iterdir():
        if path.name not in before:
            path.unlink()
    for name, data in before.items():
        assert isinstance(data, bytes)
        (shelf(whole) / name).write_bytes(data)


def proven(setup: SetupFixture) -> str:
    """Return the name of the last snapshot that an image proved."""
    return str(next(each["name"] for each in reversed(listed(setup)) if each["is_proven"]))


def test_an_image_that_is_right_and_a_change_make_a_snapshot_and_the_same_again_does_not(setup: SetupFixture) -> None:
    first, second = listed(setup)
    assert (first["is_proven"], second["is_proven"], second["comfyui"], second["torch"]) == (
        True,
        True,
        "0.33.0",
        "2.15.0",
    )
    assert setup.run("smoke-test", *SMALL).returncode == 0
    assert len(listed(setup)) == 2

    shown = setup.run("snapshot", "show", second["name"], "--json").json["details"]["snapshot"]
    packs = {each["name"]: each for each in shown["node_packs"]}
    assert packs["with-git"]["commit"] == commit_of(setup.tree / "custom_nodes" / "with-git")
    assert packs["with-git"]["url"] == "https://git.example/pack.git"
    assert (packs["without-git"]["version"], packs["single.py"]["kind"]) == ("2.0", "file")
    assert {each["sha256"] for each in shown["files"]} == {each.sha256 for each in setup.sandbox.files}
    assert {each["name"] for each in shown["environment"]["packages"]["packages"]} >= {"torch", "einops"}
    assert all(each["sha256"] for each in shown["environment"]["packages"]["packages"])
    assert shown["comfyui"]["commit"] == commit_of(setup.tree)
    image = shelf(setup) / f"{second['name']}.jpg"
    assert 0 < image.stat().st_size < 100_000
    said = setup.run("snapshot", "show", second["name"]).said
    for words in ("Custom nodes", "with-git", VAE.sha256, str(image)):
        assert words in said


def test_everything_that_changed_is_brought_back_and_the_rest_is_said(setup: SetupFixture) -> None:
    name, nodes = proven(setup), setup.tree / "custom_nodes"
    was = {each: commit_of(each) for each in (setup.tree, nodes / "with-git")}
    release, manifest = setup.upstream.release, setup.sandbox.manifest.read_text()
    setup.upstream.release = {**release, "version": "0.34.0", "commit": commit_of(setup.upstream.path)}
    setup.upstream.release["tree"] = git(setup.upstream.path, "rev-parse", "HEAD^{tree}")
    try:
        assert setup.run("install", "--yes", "--update-comfyui", *SMALL).returncode == 0
        assert (commit_of(setup.tree) != was[setup.tree], einops_of(setup)) == (True, "0.9.0")
        assert [each["reason"] for each in listed(setup)][2:] == ["the test image was right"]  # nothing new before it

        (nodes / "with-git" / "__init__.py").write_text("A = 2\n")
        git(nodes / "with-git", "commit", "-q", "-a", "-m", "newer")
        write_tree(nodes / "without-git", {"pyproject.toml": '[project]\nname = "y"\nversion = "3.0"\n'})
        (nodes / "single.py").unlink()
        write_tree(nodes, {"newer.py": ""})
        setup.sandbox.path(VAE).unlink()
        damaged = bytearray(MODEL.data)
        damaged[60_000] ^= 1
        setup.sandbox.expect(setup.sandbox.path(MODEL), bytes(damaged))
        flip_bit(setup.sandbox.path(MODEL), 60_000)

        setup.sandbox.manifest.write_text(manifest.replace("Small files for a test", "Other files for a test"))
        done = restore(setup, name)  # by the manifest that is kept
        assert done.returncode == 0, done.said
    finally:
        setup.upstream.release = release
        setup.sandbox.manifest.write_text(manifest)
    assert done.json["manifest"]["sha256"] == sha256_of(manifest.encode())
    assert str(shelf(setup)) not in (setup.sandbox.state / "last-run.json").read_text()
    assert {each: commit_of(each) for each in was} == was
    assert git(nodes / "with-git", "status", "--porcelain") == ""
    setup.sandbox.assert_in_place()
    assert einops_of(setup) == "0.8.1"
    before = listed(setup)[-2]
    assert (before["reason"], before["is_proven"]) == (f"before going back to {name}", False)
    told = done.json["details"]
    assert told["smoke_test"]["is_proven"] is True
    said = "\n".join(told["not_restored"])
    assert "without-git was version 2.0 and is 3.0" in said
    assert "single.py is gone" in said
    assert "newer.py is newer than the snapshot" in said
    assert len(told["not_restored"]) == 3
    again = restore(setup, name)  # nothing is left to do but the image
    assert again.returncode == 0
    kinds = {each["kind"] for each in again.json["steps"]}
    assert kinds == {"keep-comfyui", "keep-environment", "start-comfyui", "generate-image"}


# --- what cannot be done -------------------------------------------------------------------------


def test_a_comfyui_with_changes_is_not_moved_and_nothing_else_is_touched(setup: SetupFixture) -> None:
    name = proven(setup)
    path, was = setup.tree / "comfy" / "sd.py", (setup.tree / "comfy" / "sd.py").read_text()
    record = shelf(setup) / f"{name}.json"
    document = json.loads(record.read_text())
    document["comfyui"]["commit"] = commit_of(setup.upstream.path)  # as if it had been taken after an update
    record.write_text(json.dumps(document))
    path.write_text("mine\n")
    pack = setup.tree / "custom_nodes" / "with-git"
    git(pack, "commit", "-q", "--allow-empty", "-m", "newer")
    before = states(setup.tree, ".git")
    try:
        done = restore(setup, name)
        assert (done.returncode, "comfy/sd.py" in done.said) == (2, True), done.said
        assert states(setup.tree, ".git") == before
    finally:
        path.write_text(was)
        git(pack, "reset", "-q", "--hard", "HEAD~1")


def test_names_that_are_none_and_records_that_are_damaged_are_said(setup: SetupFixture) -> None:
    name = proven(setup)
    wrong = f"{name[:-1]}x"
    record, odd = shelf(setup) / f"{name}.json", ("../../../hf/token", "", "/etc/passwd")
    done = setup.sandbox.run_each(
        [
            ("snapshot", "show", wrong),
            ("snapshot", "restore", wrong),
            ("snapshot", "export", wrong, "--output", "x.zip"),
            *(("snapshot", "show", each) for each in odd),
        ]
    )
    assert [each.returncode for each in done] == [2] * 6
    assert all(f"Did you mean {name}?" in each.said for each in done[:3])
    (shelf(setup) / f"{name}.yaml").write_text("another: manifest\n")
    setup.sandbox.manifest.rename(setup.sandbox.manifest.with_suffix(".away"))
    try:
        other = setup.sandbox.run("snapshot", "restore", name, "--json")
    finally:
        setup.sandbox.manifest.with_suffix(".away").rename(setup.sandbox.manifest)
    assert other.returncode != 0
    record.write_bytes(record.read_bytes()[:500])
    (shelf(setup) / f"{name}.yaml").unlink()
    table, told, refused = setup.sandbox.run_each(
        [("snapshot", "list"), ("snapshot", "list", "--json"), ("snapshot", "restore", name, "--json")]
    )
    assert "damaged" in table.said
    rows = {each["name"]: each["problem"] for each in told.json["details"]["snapshots"]}
    assert rows[name] == "it is no JSON object"
    assert (refused.returncode, refused.codes) == (4, ["unreadable"])


def test_a_file_that_no_source_has_any_more_is_named_and_the_rest_is_brought_back(setup: SetupFixture) -> None:
    name, path = proven(setup), setup.sandbox.path(VAE)
    path.unlink()
    pack = setup.tree / "custom_nodes" / "with-git"
    was = commit_of(pack)
    git(pack, "commit", "-q", "--allow-empty", "-m", "newer")
    setup.sandbox.hub.fault(Status(404), times=None)
    try:
        done = restore(setup, name)
    finally:
        setup.sandbox.hub.clear_faults()
    assert done.returncode != 0
    assert done.json["details"]["not_restored"][-1] == (
        f"The file vae/{VAE.name} (SHA-256 {VAE.sha256}) could not be brought back."
    )
    assert commit_of(pack) == was


def test_a_kill_in_the_middle_is_gone_on_from(setup: SetupFixture) -> None:
    name, pack = proven(setup), setup.tree / "custom_nodes" / "with-git"
    was = commit_of(pack)
    git(pack, "commit", "-q", "--allow-empty", "-m", "newer")
    shutil.rmtree(setup.environment)
    setup.sandbox.path(VAE).unlink(missing_ok=True)
    process = setup.start("snapshot", "restore", name, "--yes", *SMALL)
    wait_until(lambda: commit_of(pack) == was, what="the custom node is moved")
    process.kill()
    process.communicate()
    done = restore(setup, name)
    assert done.returncode == 0, done.said
    setup.sandbox.assert_in_place()
    assert einops_of(setup) == "0.8.1"  # from the very file, though the index has a newer one


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting takes root on Linux")
def test_a_folder_that_is_read_only_is_an_error_and_stays_as_it_is(setup: SetupFixture) -> None:
    name, pack = proven(setup), setup.tree / "custom_nodes" / "with-git"
    setup.sandbox.path(VAE).unlink(missing_ok=True)
    git(pack, "commit", "-q", "--allow-empty", "-m", "newer")
    if subprocess.run(["mount", "--bind", setup.tree, setup.tree], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let us mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", setup.tree], check=True)
        before = states(setup.tree)
        done = restore(setup, name)
        assert states(setup.tree) == before
    finally:
        subprocess.run(["umount", "-l", setup.tree], check=True)
        git(pack, "reset", "-q", "--hard", "HEAD~1")
    assert (done.returncode, "not-writable" in done.codes) == (4, True), done.said


def test_an_export_has_everything_in_files_that_other_programs_read(setup: SetupFixture) -> None:
    name = proven(setup)
    output = setup.sandbox.folder / "friday.zip"
    assert setup.run("snapshot", "export", name, "--output", output).returncode == 0
    with zipfile.ZipFile(output) as archive:
        assert archive.namelist() == ["snapshot.json", "manifest.yaml", "requirements.txt", "image.jpg"]
        assert archive.read("manifest.yaml") == setup.sandbox.manifest.read_bytes()
        assert re.search(rb"^einops==0\.8\.1 --hash=sha256:[0-9a-f]{64}$", archive.read("requirements.txt"), re.M)
        assert json.loads(archive.read("snapshot.json"))["name"] == name
        facts = read_image(archive.read("image.jpg"))
    assert (facts.width, facts.height) == (256, 256)


def test_a_shelf_that_is_full_lets_the_oldest_go_and_what_was_proven_stays(setup: SetupFixture) -> None:
    name = proven(setup)
    document = json.loads((shelf(setup) / f"{name}.json").read_text())
    for number in range(10, 40):  # newer ones without an image
        other = f"29990101-0000{number}"
        (shelf(setup) / f"{other}.json").write_text(
            json.dumps({**document, "name": other, "image": None, "set_id": "x"})
        )
    setup.sandbox.path(VAE).unlink(missing_ok=True)
    assert setup.run("repair", "--yes", "--only", "files").returncode == 0
    names = [each["name"] for each in listed(setup)]
    assert len(names) == 20
    assert name in names


def test_a_data_folder_that_cannot_be_written_to_costs_no_image(setup: SetupFixture) -> None:
    folder = shelf(setup)
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("a file in its place")
    try:
        done = setup.run("smoke-test", "--verbose", *SMALL)
    finally:
        folder.unlink()
        aside.rename(folder)
    assert (done.returncode, "No snapshot was kept" in done.said) == (0, True), done.said


def test_a_folder_that_was_moved_is_named(setup: SetupFixture) -> None:
    name, elsewhere = proven(setup), setup.sandbox.folder / "Elsewhere"
    setup.tree.rename(elsewhere)
    try:
        gone = restore(setup, name)
        assert (gone.returncode, "which is gone" in gone.said) == (2, True)
        (elsewhere / "models" / "vae" / VAE.name).unlink(missing_ok=True)
        done = restore(setup, name, "--comfyui", elsewhere)
        assert (elsewhere / "models" / "vae" / VAE.name).read_bytes() == VAE.data, done.said
    finally:
        elsewhere.rename(setup.tree)


def test_a_new_folder_is_filled_with_all_but_the_custom_nodes(setup: SetupFixture) -> None:
    name, fresh = proven(setup), setup.sandbox.folder / "Fresh"
    done = restore(setup, name, "--comfyui", fresh)
    assert done.returncode == 0, done.said
    assert commit_of(fresh) == setup.upstream.release["commit"]
    for each in setup.sandbox.files:
        assert (fresh / "models" / each.folder / each.name).read_bytes() == each.data
    assert (fresh / ".venv" / "bin" / "python").exists()
    told = done.json["details"]["not_restored"]
    assert [each.split(" is gone")[0] for each in told] == [
        "The custom node single.py",
        "The custom node with-git",
        "The custom node without-git",
    ]
