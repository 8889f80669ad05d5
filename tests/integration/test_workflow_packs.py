"""Custom nodes that a workflow needs: pinned, installed, verified and removed, with real git and archives by HTTP."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from provisioner.comfyui.checkout.checkouts import Checkouts
from provisioner.comfyui.checkout.pack_installs import PackInstalls
from provisioner.comfyui.checkout.pack_receipts import PackReceipts
from provisioner.commands.pin_packs import NotPinnedPack, PackOptions, PackPinning
from provisioner.core.errors import IntegrityError, KleinError, NotTheFileError, UsageError
from provisioner.core.models import CustomNode, GitCommit, NodeArchive
from provisioner.files.download.whole_file import WholeFiles
from provisioner.machine.process import run_process
from provisioner.manifest.parse import parse_manifest
from provisioner.workflow.needed_packs import NeededPack
from tests.support.comfy_server import ReplayServer
from tests.support.node_packs import FILES, Packs, serving_packs
from tests.support.sandbox import Sandbox, tensors
from tests.support.setup_fixture import GIT, PROGRAM, SetupFixture, git, inventory, write_tree
from tests.support.wheels import Toy, ToyIndex
from tests.support.workflows import node, subgraph, workflow

HUB = "https://huggingface.co"
COLD = "ok_fp8_h200_cold_1024"  # what a server was recorded with
NOT_THERE = "1b" * 20


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[Packs]:
    """Return a server of packs."""
    with serving_packs(tmp_path / "packs") as served:
        yield served


# --- from a workflow to a manifest -----------------------------------------------------------------


def of(key: int, kind: str, name: str | None = None, version: str | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a node may have
    """Return a node of a pack, as the editor notes it."""
    where = {} if name is None else {"aux_id" if "/" in name else "cnr_id": name, "ver": version}
    return node(key, kind, properties=where, **more)


def made(sandbox: Sandbox, packs: Packs, data: bytes, *options: str) -> Any:  # noqa: ANN401 - what came of the command
    sandbox.hub.add_repository("org/model", "3c" * 20, {"m.safetensors": tensors(3000)}, licence="apache-2.0")
    sandbox.plant(sandbox.folder / "flow.json", data)
    where = ("--github", packs.url, "--node-registry", packs.url, "--allow-loopback")
    words = ("--endpoint", sandbox.hub.endpoint, "--send-token", *where, *options)
    return sandbox.run("manifest", "from-workflow", "flow.json", "--output", "out.yaml", *words)


MODEL = node(
    1,
    "UNETLoader",
    "m.safetensors",
    models=[("m.safetensors", f"{HUB}/org/model/resolve/main/m.safetensors", "diffusion_models")],
)


def test_a_workflow_names_its_packs_and_what_cannot_be_pinned_says_why(sandbox: Sandbox, packs: Packs) -> None:
    by_git = packs.repository("alice/Git-Pack")
    named_by_id = packs.repository("bob/by-id")
    packs.repository("alice/lost")
    sha256 = packs.version("zip-pack", "1.2.3")
    packs.answer("nodes/by-id", {"repository": "https://github.com/bob/by-id"})
    packs.version("banned", "1.0", status="NodeVersionStatusBanned")
    packs.version("climbs", "1.0", {"../evil.py": ""})
    packs.answer("nodes/nonsense/versions/1.0", "<html>")
    packs.answer("nodes/inside/versions/1.0", {"version": "1.0", "downloadUrl": "https://me:secret@x.example/a.zip"})
    inner = subgraph("5a" * 16, of(2, "Inner", "zip-pack", "1.2.3"), of(3, "Own", "comfy-core", "0.33.0"))
    nodes = [
        MODEL,
        node(2, "5a" * 16),
        of(3, "ByCommit", "alice/Git-Pack", by_git),
        of(4, "ById", "by-id", named_by_id),
        of(5, "Muted", "muted-pack", "1.0", mode=2),
        of(6, "Nobody's"),
        of(7, "UNETLoader"),
        of(10, "Some", "alice/lost", NOT_THERE),
        of(11, "Some", "alice/Git-Pack2", "nightly"),
        of(20, "Some", "alice/gone", NOT_THERE),
        of(12, "Some", "banned", "1.0"),
        of(13, "Some", "climbs", "1.0"),
        of(14, "Some", "nonsense", "1.0"),
        of(15, "Some", "../x", "1.0"),
        of(16, "Some", "/etc/passwd", "1.0"),
        of(17, "Some", "nul", "1.0"),
        of(18, "Some", "GIT-PACK", "1.0"),
        of(19, "Some", "inside", "1.0"),
    ]
    packs.version("GIT-PACK", "1.0")
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        done = made(sandbox, packs, workflow(*nodes, subgraphs=[inner]), "--server", server.url, "--json")
    assert done.returncode == 1, done.said
    assert "secret" not in done.said
    found = {each["message"] for each in done.json["findings"]}
    expected = {
        "alice/lost": "does not have commit",
        "alice/gone": "is not a git repository",
        "alice/Git-Pack2": "'nightly' is no commit of 40 hex digits",
        "banned": "the registry has banned that version",
        "climbs": "climbs out with '..'",
        "nonsense": "the registry names no archive of it",
        "../x": "its name is neither an id of the registry nor owner/repository",
        "/etc/passwd": "its name is neither",
        "nul": "is a device on Windows",
        "GIT-PACK": "its folder GIT-PACK would be that of alice/Git-Pack",
        "inside": "holds a user name, a password or a token",
        "Nobody's": "of an unknown pack",
    }
    for name, why in expected.items():
        assert any(name in each and why in each for each in found), (name, sorted(found))
    assert len(found) == len(expected)
    manifest = parse_manifest((sandbox.folder / "out.yaml").read_text(encoding="utf-8"), file="out.yaml")
    assert {each.id: each.source for each in manifest.custom_nodes} == {
        "zip-pack": NodeArchive(
            url=f"{packs.url}/zip-pack-1.2.3.zip",
            size=(packs.folder / "zip-pack-1.2.3.zip").stat().st_size,
            sha256=sha256,
        ),
        "Git-Pack": GitCommit(repository=f"{packs.url}/alice/Git-Pack", commit=by_git),
        "by-id": GitCommit(repository=f"{packs.url}/bob/by-id", commit=named_by_id),
    }
    assert {each.id: each.nodes for each in manifest.custom_nodes}["zip-pack"] == ("Inner",)
    assert sandbox.run("manifest", "check", "out.yaml").returncode == 0


def test_a_registry_that_hangs_is_asked_once_and_a_version_may_be_given(sandbox: Sandbox, packs: Packs) -> None:
    @dataclass(frozen=True)
    class Settings:
        allows_loopback: bool = True

    @dataclass(frozen=True)
    class Session:
        is_offline: bool = False
        settings: Settings = Settings()

    names = [NeededPack(name=name, versions=("1.0",), nodes=("N",)) for name in ("one", "two")]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = PackOptions(registry=f"http://127.0.0.1:{silent.getsockname()[1]}")
        pinning = PackPinning(session=Session(), options=options, timeout_s=0.5)  # type: ignore[arg-type]
        found = pinning.pin_all(names)
    assert [isinstance(each, NotPinnedPack) for each in found] == [True, True]
    assert found[0].reason == found[1].reason  # type: ignore[union-attr]
    assert "127.0.0.1" in found[0].reason  # type: ignore[union-attr]

    commit = packs.repository("alice/pack")
    names = [NeededPack(name="alice/pack", versions=(commit,), nodes=("A",)), names[0]]
    offline = PackPinning(session=Session(is_offline=True), options=PackOptions(github=packs.url))  # type: ignore[arg-type]
    by_commit, by_archive = offline.pin_all(names)
    assert isinstance(by_commit, CustomNode)  # a commit is its own proof, whoever has it
    assert "nobody was asked" in by_commit.read_from
    assert "nobody states its SHA-256" in by_archive.reason  # type: ignore[union-attr]
    strange = PackPinning(session=Session(settings=Settings(False)), options=PackOptions(github=packs.url))  # type: ignore[arg-type]
    assert "at an address of this machine" in strange.pin_all(names[:1])[0].reason  # type: ignore[union-attr]

    data = workflow(MODEL, of(2, "Some", "alice/pack", "nightly"))
    assert made(sandbox, packs, data, "--node-version", "other=1.0").returncode == 2
    done = made(sandbox, packs, data, "--node-version", f"alice/pack={commit}")
    assert done.returncode == 0, done.said
    assert "--custom-node pack" in done.said
    assert "given by hand" in (sandbox.folder / "out.yaml").read_text(encoding="utf-8")


# --- the whole life --------------------------------------------------------------------------------

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the driver's environment is made with links")


@pytest.fixture(scope="module")
def index(index: ToyIndex) -> ToyIndex:
    index.toys += [
        Toy(name="packdep", version="1.0"),
        Toy(name="clash", version="1.0", requires=("einops<0.8",)),
        Toy(name="einops", version="0.7"),
    ]
    return index


def pin(setup: SetupFixture, *entries: dict[str, object]) -> None:
    manifest = json.loads(setup.sandbox.manifest.read_text(encoding="utf-8"))
    setup.sandbox.manifest.write_text(json.dumps(manifest | {"custom_nodes": entries}), encoding="utf-8")


def test_install_verify_and_uninstall(setup: SetupFixture, packs: Packs) -> None:
    starts = "import pathlib; pathlib.Path(__file__).with_name('started').touch()\n"
    files = {**FILES, "requirements.txt": "torch\npackdep>=1.0  # needed\n", "install.py": starts}
    commit = packs.repository("alice/git-pack", files)
    sha256 = packs.version("zip-pack", "1.2.3", {**FILES, "install.py": starts})
    refused = packs.version("refused", "1.0", {**FILES, "requirements.txt": "torch==1.0\ngit+https://x.example/y\n"})
    clash = packs.version("clashes", "1.0", {**FILES, "requirements.txt": "clash\n"})
    pin(
        setup,
        packs.git_entry("alice/git-pack", commit),
        packs.archive_entry("zip-pack", "1.2.3", sha256),
        packs.archive_entry("refused", "1.0", refused),
        packs.archive_entry("clashes", "1.0", clash),
    )
    nodes, options = setup.tree / "custom_nodes", ("--only", "files,environment", "--allow-loopback", "--yes")

    both = ("--custom-node", "git-pack", "--custom-node", "zip-pack")
    planned = setup.run("plan", *options[:-1], *both, "--json")
    reasons = {each["path"]: each["reason"] for each in planned.json["steps"] if each["kind"] == "install-node-pack"}
    assert set(reasons) == {str(nodes / "git-pack"), str(nodes / "zip-pack")}
    assert all("third-party code that will run as you" in each for each in reasons.values())
    left = [each for each in planned.json["findings"] if each["code"] == "custom-nodes-not-installed"]
    assert ["add --custom-node refused" in left[0]["hint"], "add --custom-node clashes" in left[1]["hint"]] == [
        True
    ] * 2

    bad = ("--custom-node", "refused", "--custom-node", "clashes")
    done = setup.run("install", *options, *both, *bad, "--json")
    assert done.returncode == 8, done.said
    messages = [each["message"] for each in done.json["errors"]]
    assert any("requires torch==1.0, and the environment has torch 2.15.0" in each for each in messages), messages
    assert any("git+https://x.example/y' is an address" in each for each in messages)
    assert any("einops<0.8" in each and "einops>=0.8" in each for each in messages), messages  # both sides
    assert sorted(each.name for each in nodes.iterdir()) == ["git-pack", "zip-pack"]
    assert git(nodes / "git-pack", "rev-parse", "HEAD") == commit
    assert not list(nodes.rglob("started"))
    site = next(setup.environment.glob("lib/python*/site-packages"))
    assert (site / "packdep").is_dir()
    assert not (site / "clash").exists()
    assert not (setup.tree / ".klein-setup" / "custom-nodes").exists()

    assert setup.run("verify", "--no-smoke").returncode == 0
    (nodes / "zip-pack" / "nodes" / "one.py").write_text("mine\n")
    verified = setup.run("verify", "--no-smoke", "--json")
    assert verified.returncode == 1
    codes = [each["code"] for each in verified.json["findings"]]
    assert sorted(each for each in codes if each.startswith("custom-nodes")) == [
        "custom-nodes-changed",
        "custom-nodes-missing",
        "custom-nodes-missing",
    ]
    assert not any(each.startswith("package") for each in codes)  # what they require belongs to the list

    removed = setup.run("uninstall", "--yes", "--only", "custom-nodes")
    assert removed.returncode == 0, removed.said
    assert "its folder is zip-pack.disabled now, which ComfyUI skips" in removed.said
    assert sorted(each.name for each in nodes.iterdir()) == ["zip-pack.disabled"]
    assert (nodes / "zip-pack.disabled" / "nodes" / "one.py").read_text() == "mine\n"
    assert "packdep>=1.0" in removed.said  # stays in the environment, and that is said


def test_a_person_is_asked_about_each_pack_by_its_name(sandbox: Sandbox, packs: Packs) -> None:
    sandbox.publish(tensors(3000))
    write_tree(sandbox.tree, {name: PROGRAM[name] for name in ("main.py", "folder_paths.py")})
    entries = [packs.git_entry(f"alice/{name}", packs.repository(f"alice/{name}")) for name in ("first", "second")]
    manifest = json.loads(sandbox.manifest.read_text(encoding="utf-8"))
    sandbox.manifest.write_text(json.dumps(manifest | {"custom_nodes": entries}), encoding="utf-8")
    done = sandbox.answering("install", "--allow-loopback", answers=["y", "n", "y"])
    assert done.returncode == 0, done.said
    for name in ("first", "second"):
        assert f"The workflow needs the custom nodes {name} (commit" in done.said
    assert "third-party code" in done.said
    assert "nobody agreed to them by name" in done.said  # of the second, in the plan
    assert [each.name for each in (sandbox.tree / "custom_nodes").iterdir()] == ["first"]


# --- single cases ----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    return tmp_path / "ComfyUI"


@pytest.fixture
def installs(tmp_path: Path) -> PackInstalls:
    checkouts = Checkouts(run=run_process, download=WholeFiles().fetch, environ={**GIT, "PATH": os.environ["PATH"]})
    return PackInstalls(checkouts=checkouts, receipts=PackReceipts(lambda: tmp_path / "state" / "custom-nodes"))


def git_pack(packs: Packs, files: dict[str, str] | None = None) -> CustomNode:
    commit = packs.repository("alice/pack", files or FILES)
    source = GitCommit(repository=f"{packs.url}/alice/pack", commit=commit)
    return CustomNode(id="pack", source=source, read_from="a test", read_on="2026-11-27")


def zip_pack(packs: Packs, files: dict[str, str] | None = None) -> CustomNode:
    sha256 = packs.archive("pack.zip", files or FILES)
    size = (packs.folder / "pack.zip").stat().st_size
    source = NodeArchive(url=f"{packs.url}/pack.zip", size=size, sha256=sha256)
    return CustomNode(id="pack", source=source, read_from="a test", read_on="2026-11-27")


def install(installs: PackInstalls, tree: Path, pack: CustomNode) -> Path:
    with installs.fetched(tree, pack, progress=lambda _: None) as fetched:
        installs.place(tree, fetched, fetched.requirements())
    return tree / "custom_nodes" / pack.id


def remove(installs: PackInstalls, tree: Path) -> str | None:
    return installs.remove(tree, "pack", progress=lambda _: None)


@pytest.mark.parametrize("make", [git_pack, zip_pack], ids=["git", "archive"])
def test_what_was_installed_goes_without_a_trace(installs: PackInstalls, tree: Path, packs: Packs, make: Any) -> None:  # noqa: ANN401 - one of two functions
    before = inventory(tree)
    pack = make(packs)
    assert installs.look(tree, pack).state == "absent"
    path = install(installs, tree, pack)
    assert installs.look(tree, pack).state == "right"
    (path / "nodes" / "__pycache__").mkdir()
    (path / "nodes" / "__pycache__" / "one.cpython-312.pyc").write_bytes(b"")  # as Python leaves it
    (check,) = installs.check_all(tree)
    assert check.is_ours_alone
    assert remove(installs, tree) is None
    assert inventory(tree) == before
    assert installs.receipts.of(tree) == {}


def test_what_is_changed_or_added_is_switched_off_and_never_deleted(
    installs: PackInstalls, tree: Path, packs: Packs
) -> None:
    pack = git_pack(packs)
    path = install(installs, tree, pack)
    write_tree(path, {"mine.json": "settings\n"})
    off = path.with_name("pack.disabled")
    assert (
        remove(installs, tree) == "files were added (mine.json); its folder is pack.disabled now, which ComfyUI skips"
    )
    assert (off / "mine.json").read_text() == "settings\n"

    path = install(installs, tree, pack)
    git(path, "-c", "user.name=a", "-c", "user.email=a@x", "commit", "-q", "--allow-empty", "-m", "mine")
    with pytest.raises(UsageError, match=r"pack\.disabled is there already"):
        remove(installs, tree)
    assert path.is_dir()


def test_a_removal_that_was_killed_is_gone_on_from(installs: PackInstalls, tree: Path, packs: Packs) -> None:
    before = inventory(tree)
    pack = git_pack(packs)
    path = install(installs, tree, pack)
    (path / "__init__.py").unlink()
    assert installs.look(tree, pack).reason == f"files of {path} were changed or deleted (__init__.py)"
    assert remove(installs, tree) is None
    assert inventory(tree) == before


@pytest.mark.parametrize("case", ["own folder", "other commit", "other version", "other case", "file", "link"])
def test_what_lies_there_already_is_never_overwritten(
    installs: PackInstalls, tree: Path, packs: Packs, case: str
) -> None:
    pack, nodes = git_pack(packs), tree / "custom_nodes"
    if case == "own folder":
        write_tree(nodes / "pack", {"mine.py": ""})
    elif case == "other commit":
        git(nodes, "clone", "-q", str(packs.folder / "alice" / "pack"), "pack")
        git(nodes / "pack", "commit", "-q", "--allow-empty", "-m", "mine")
    elif case == "other version":
        install(installs, tree, zip_pack(packs))
    elif case == "other case":
        write_tree(nodes / "Pack", {"mine.py": ""})
    elif case == "file":
        (nodes / "pack").write_text("")
    else:
        (tree / "elsewhere").mkdir()
        (nodes / "pack").symlink_to(tree / "elsewhere")
    before = inventory(tree)
    found = installs.look(tree, pack)
    assert found.state == "kept"
    assert found.reason
    assert found.hint
    if case != "other case" or (nodes / "pack").exists():
        with pytest.raises(KleinError, match="appeared meanwhile"):
            install(installs, tree, pack)
    assert case == "other case" or inventory(tree) == before


def test_a_checkout_of_the_user_s_at_that_commit_is_right(installs: PackInstalls, tree: Path, packs: Packs) -> None:
    pack = git_pack(packs)
    git(tree / "custom_nodes", "clone", "-q", str(packs.folder / "alice" / "pack"), "pack")
    assert installs.look(tree, pack).state == "right"
    assert remove(installs, tree) is None  # no receipt, nothing removed
    assert (tree / "custom_nodes" / "pack").is_dir()
    write_tree(tree / "custom_nodes" / "pack", {"__init__.py": "import os\n"})
    found = installs.look(tree, pack)
    assert (found.state, found.reason) == (
        "kept",
        f"{tree / 'custom_nodes' / 'pack'} is at that commit, and files in it were changed",
    )


def test_what_a_tree_says_of_itself_removes_nothing(installs: PackInstalls, tree: Path, packs: Packs) -> None:
    path = install(installs, tree, git_pack(packs))
    write_tree(tree, {".klein-setup/comfyui.json": "{}"})
    write_tree(path, {".klein-setup/comfyui.json": "{}"})
    elsewhere = replace(installs, receipts=PackReceipts(lambda: tree.parent / "of-somebody-else"))
    assert remove(elsewhere, tree) is None
    assert (path / "__init__.py").is_file()


def test_an_archive_that_changed_or_is_hostile_is_refused_and_nothing_is_left(
    installs: PackInstalls, tree: Path, packs: Packs
) -> None:
    before = inventory(tree)
    pinned = zip_pack(packs)
    packs.archive("pack.zip", {**FILES, "nodes/one.py": "ONE = 2\n"})  # as long as before
    with pytest.raises(IntegrityError, match="is not the one that the manifest pins"):
        install(installs, tree, pinned)
    for files in ({"../evil.py": ""}, {".git/config": ""}, {"a/NUL.py": ""}, {".klein-setup/x": ""}):
        with pytest.raises((NotTheFileError, UsageError)):
            install(installs, tree, zip_pack(packs, files))
    assert inventory(tree) == before
    assert not (tree.parent / "evil.py").exists()


def test_a_repository_that_lost_the_commit_is_refused_and_nothing_is_left(
    installs: PackInstalls, tree: Path, packs: Packs
) -> None:
    before = inventory(tree)
    pack = git_pack(packs)
    lost = replace(pack, source=GitCommit(repository=f"{packs.url}/alice/pack", commit=NOT_THERE))
    with pytest.raises(NotTheFileError, match="does not have commit 1b1b1b1b1b1b") as error:
        install(installs, tree, lost)
    assert "comfyui-source" not in str(error.value.hint)
    assert inventory(tree) == before
