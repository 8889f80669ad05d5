"""A tree comes from a stranger, and its records lie: nothing outside of it is written, moved or deleted, nor what is
the user's inside.

Each of these did what it refuses once.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.comfyui.checkout.checkout_receipt import read_receipt as read_checkout_receipt
from provisioner.comfyui.checkout.checkout_receipt import write_receipt as write_checkout_receipt
from provisioner.comfyui.checkout.checkouts import Checkouts
from provisioner.comfyui.checkout.git_tree import blob_id, top_entries, tree_id
from provisioner.comfyui.checkout_models import CheckoutReceipt, TreeFile
from provisioner.commands.apply import apply_plan
from provisioner.commands.inspect_comfyui import read_table
from provisioner.commands.install import RunUi, run_install
from provisioner.commands.look import InstallOptions
from provisioner.commands.run import Options, Run, open_run
from provisioner.commands.session import Session, Settings
from provisioner.commands.uninstall import UninstallOptions, run_uninstall
from provisioner.core.errors import PathOutsideRootError, PlanOutdatedError, StorageError, UsageError
from provisioner.core.models import BLOCK_SIZE, Download
from provisioner.environment.kept_packages import KeptPackages
from provisioner.environment.package_list import PackageList
from provisioner.environment.swap import Workspace, only_one
from provisioner.files.download.whole_file import WholeFiles
from provisioner.files.planner import no_steps
from provisioner.files.store.file_store import FileStore
from provisioner.files.store.part_file import PartFile
from provisioner.files.store.receipts import stamp_of
from provisioner.machine.process import run_process
from provisioner.plan.make_plan import make_plan
from provisioner.plan.steps import GetComfyUI, MakeEnvironment, Plan, RepairEnvironment, Step, UpdateComfyUI
from provisioner.torch.builds import TorchBuild, TorchChoice, TorchSet
from tests.support.builders import artifact, comfy_file, file_system
from tests.support.sandbox import MIB, Sandbox, sha256_of, tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")

PRECIOUS = b"years of work"
TIME = "20261123T061404Z"
NEW = tensors(70_000, 1)


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A file in a folder of the user's outside of every tree; it is as it was afterwards, and alone."""
    path = tmp_path / "documents" / "thesis.safetensors"
    path.parent.mkdir()
    path.write_bytes(PRECIOUS)
    yield path
    assert [each.name for each in path.parent.rglob("*")] == [path.name]
    assert path.read_bytes() == PRECIOUS


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


# --- an environment and what lies beside it ------------------------------------------------------------

ENVIRONMENT_RECEIPT = {
    "schema_version": 1, "build_id": "x", "made_at": "", "installer": "pip", "python_version": "3.11.7",
    "python_home": "/usr", "torch_backend": "cpu", "index_url": None, "local_tag": "cpu",
    "set": {"torch": "2.14.1", "torchvision": "0.29.1", "torchaudio": None}, "versions": [], "constraints": [],
    "probe": None, "driver_version": None, "gpus": [],
}  # fmt: skip


def hostile_journal(where: Path, **values: object) -> None:
    journal = {"build_id": "x", "stage": "swapping", "staging": "~" + where.name[1:], **values}
    write_json(where.with_name(f"{where.name}.klein-setup") / "journal.json", journal)


def test_a_journal_names_no_folder_that_uninstall_deletes(sandbox: Sandbox, precious: Path) -> None:
    sandbox.publish(NEW)
    assert sandbox.run("install").returncode == 0
    where = sandbox.tree / ".venv"
    where.mkdir()
    write_json(where / ".klein-setup" / "environment.json", ENVIRONMENT_RECEIPT)
    hostile_journal(where, old=str(precious.parent))
    done = sandbox.run("uninstall", "--yes", "--json")
    assert done.returncode == 0, done.stderr


def test_a_journal_names_no_folder_that_becomes_the_environment(tmp_path: Path, precious: Path) -> None:
    where = tmp_path / "ComfyUI" / ".venv"
    hostile_journal(where, old=str(precious.parent))
    Workspace(where).recover()
    assert not where.exists()


def test_a_journal_names_no_other_environment_beside_it_that_is_cleared_away(tmp_path: Path) -> None:
    where = tmp_path / "ComfyUI" / ".venv"
    own = where.with_name("_venv") / "pyvenv.cfg"
    own.parent.mkdir(parents=True)
    own.write_text("home = /usr/bin\n", encoding="utf-8")
    hostile_journal(where, stage="building", staging="_venv")
    Workspace(where).recover()
    assert own.is_file()


@pytest.mark.parametrize("build_id", [None, "", 0, ["x"]])
def test_a_journal_without_a_build_names_no_folder_of_yours(tmp_path: Path, build_id: object) -> None:
    where = tmp_path / "ComfyUI" / ".venv"
    own = where.with_name("_venv") / "work" / "precious.txt"
    building = where.with_name("_venv") / ".klein-setup" / "building"
    for path, content in ((own, PRECIOUS), (building, b"")):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    hostile_journal(where, stage="building", staging="_venv", build_id=build_id)
    Workspace(where).recover()
    assert own.read_bytes() == PRECIOUS


@pytest.mark.parametrize("wrong", [{"old": 5}, {"staging": ["~venv"]}, {"stage": "begun"}, {"stage": {}}])
def test_a_journal_with_values_of_another_kind_is_none(tmp_path: Path, wrong: dict[str, object]) -> None:
    work = Workspace(tmp_path / "ComfyUI" / ".venv")
    hostile_journal(work.where, **wrong)
    assert (work.interrupted(), work.recover()) == (None, None)


@pytest.mark.parametrize("linked", ["", "tmp"])
def test_no_folder_of_a_building_is_a_link(tmp_path: Path, linked: str) -> None:
    """Earlier temporary files are removed where a building begins."""
    where = tmp_path / "ComfyUI" / ".venv"
    work = Workspace(where)
    own = where.with_name("custom") / "mine.whl"
    (own.parent / "tmp").mkdir(parents=True)
    own.write_bytes(PRECIOUS)
    hostile_journal(where, stage="building", staging="_venv")
    link = work.folder / linked
    if not linked:
        (work.folder / "journal.json").rename(own.parent / "journal.json")
        work.folder.rmdir()
    link.symlink_to(own.parent)
    before = sorted(own.parent.rglob("*"))
    with pytest.raises(PathOutsideRootError, match="no link is followed"):
        work.begin("x")
    if not linked:
        with pytest.raises(PathOutsideRootError, match="no link is followed"):
            work.recover()
    assert sorted(own.parent.rglob("*")) == before


def test_of_an_environment_that_is_a_link_only_the_link_is_removed(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.publish(NEW)
    where, own = sandbox.tree / ".venv", tmp_path / "drive" / "venv"
    where.parent.mkdir()
    receipt = own / ".klein-setup" / "environment.json"
    write_json(receipt, ENVIRONMENT_RECEIPT)
    where.symlink_to(own)
    (own / "bin").mkdir()
    (own / "bin" / "python").symlink_to(sys.executable)
    packages = KeptPackages(lambda: Path(sandbox.environ["XDG_STATE_HOME"], "klein-setup", "environments"))
    packages.keep(own, PackageList(made_at=""))
    done = sandbox.run("uninstall", "--yes", "--json")
    (step,) = done.json["steps"]
    assert (step["size"], step["outcome"]["status"]) == (0, "done")
    assert "stays" in step["reason"]
    assert list(where.parent.glob("?venv*")) == []
    assert receipt.is_file()
    assert packages.read(own) is not None


# --- what was set aside --------------------------------------------------------------------------------


def state_of(sandbox: Sandbox) -> Path:
    return sandbox.tree / "models" / ".klein-setup"


def test_clearing_follows_no_link_in_a_backup(sandbox: Sandbox, precious: Path) -> None:
    sandbox.publish(NEW)
    folder = state_of(sandbox) / "aside" / TIME
    folder.mkdir(parents=True)
    (folder / "vae").symlink_to(precious.parent)
    line = {"was": "vae/x", "is": f"vae/{precious.name}", "why": "other bytes"}
    (folder / "why.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    listed = sandbox.run("aside", "list", "--json")
    assert [entry["id"] for entry in listed.json["details"]["aside"]] == [f"{TIME}/vae"]
    assert "link" in listed.json["details"]["aside"][0]["reason"]
    assert sandbox.run("aside", "clear", "--yes").returncode == 0
    assert not os.path.lexists(folder / "vae")  # the link itself went


def test_a_time_that_is_a_link_is_shown_and_only_itself_removed(sandbox: Sandbox, precious: Path) -> None:
    sandbox.publish(NEW)
    (state_of(sandbox) / "aside").mkdir(parents=True)
    (state_of(sandbox) / "aside" / TIME).symlink_to(precious.parent)
    listed = sandbox.run("aside", "list", "--json")
    assert [entry["id"] for entry in listed.json["details"]["aside"]] == [TIME]
    assert sandbox.run("aside", "clear", "--yes").returncode == 0
    assert not (state_of(sandbox) / "aside").exists()


@pytest.mark.parametrize("command", [["list"], ["clear", "--yes"], ["restore", f"{TIME}/thesis.safetensors"]])
@pytest.mark.parametrize("linked", ["aside", ".klein-setup"])
def test_a_folder_of_backups_that_is_a_link_is_named_and_not_followed(
    sandbox: Sandbox, tmp_path: Path, command: list[str], linked: str
) -> None:
    sandbox.publish(NEW)
    elsewhere = tmp_path / "elsewhere"
    kept = elsewhere / TIME / "thesis.safetensors" if linked == "aside" else elsewhere / "aside" / TIME / "x"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(PRECIOUS)
    link = state_of(sandbox) / "aside" if linked == "aside" else state_of(sandbox)
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    done = sandbox.run("aside", *command, "--json")
    assert (done.returncode, done.codes) == (4, ["path-outside-root"]), done.stderr
    assert str(link) in done.json["errors"][0]["message"]
    assert "link" in (done.json["errors"][0]["hint"] or "")
    assert kept.read_bytes() == PRECIOUS


def test_nothing_is_put_back_through_a_folder_that_is_a_link(sandbox: Sandbox, precious: Path) -> None:
    sandbox.publish(NEW)
    folder = state_of(sandbox) / "aside" / TIME
    folder.mkdir(parents=True)
    (folder / "profile").write_bytes(b"rm -rf ~")
    line = {"was": "loras/.bash_profile", "is": "profile", "why": "other bytes"}
    (folder / "why.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (sandbox.tree / "models" / "loras").symlink_to(precious.parent)
    done = sandbox.run("aside", "restore", f"{TIME}/profile", "--json")
    assert (done.returncode, done.codes) == (4, ["path-outside-root"])
    assert str(sandbox.tree / "models" / "loras") in done.json["errors"][0]["message"]
    assert (folder / "profile").is_file()


# --- receipts ------------------------------------------------------------------------------------------


def checkout_receipt(*files: TreeFile, folders: tuple[str, ...] = ()) -> CheckoutReceipt:
    return CheckoutReceipt(
        version="0.33.0", commit="0" * 40, tree=tree_id(files), source="", way="archive", made_at="",
        entries=top_entries(files), files=files, folders=folders,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["file", "folder", ".git", "ours"])
def test_a_receipt_of_comfyui_names_nothing_that_is_not_comfyuis(tmp_path: Path, precious: Path, way: str) -> None:
    tree = tmp_path / "ComfyUI"
    tree.mkdir()
    names = {
        "file": f"../documents/{precious.name}",
        "folder": "main.py",
        ".git": ".git/HEAD",
        "ours": ".klein-setup/x",
    }
    empty = tmp_path / "empty"
    empty.mkdir()
    (tree / ".git").mkdir()
    for name in (names["folder"], names[".git"]):
        (tree / name).write_bytes(PRECIOUS)
    files = TreeFile(path=names[way], mode="100644", id=blob_id(PRECIOUS))
    write_checkout_receipt(tree, checkout_receipt(files, folders=("../empty",) if way == "folder" else ()))
    with pytest.raises(UsageError):
        Checkouts(run=run_process, download=WholeFiles().fetch).remove(tree)
    assert (tree / ".git" / "HEAD").read_bytes() == PRECIOUS
    assert empty.is_dir()


def receipt_for(path: Path, data: bytes, relative: str) -> dict[str, object]:
    stamp = stamp_of(path)
    entry = {
        "artifact": "x", "size": stamp.size, "mtime_ns": stamp.mtime_ns, "ctime_ns": stamp.ctime_ns,
        "inode": stamp.inode, "sha256": sha256_of(data), "block_size": BLOCK_SIZE, "blocks": [],
        "source": "the hub", "recorded_at": "2026-11-23T00:00:00Z",
    }  # fmt: skip
    return {"schema_version": 1, "files": {relative: entry}}


def test_a_receipt_names_no_file_behind_a_folder_that_is_a_link(sandbox: Sandbox, precious: Path) -> None:
    sandbox.publish(NEW)
    assert sandbox.run("install").returncode == 0
    (sandbox.tree / "models" / "loras").symlink_to(precious.parent)
    write_json(state_of(sandbox) / "receipt.json", receipt_for(precious, PRECIOUS, f"loras/{precious.name}"))
    done = sandbox.run("uninstall", "--yes", "--json")
    assert done.returncode == 0
    (finding,) = [each for each in done.json["findings"] if precious.name in each["message"]]
    assert "link" in finding["message"]


def test_a_file_behind_a_link_that_was_agreed_to_is_removed_when_that_is_said_again(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.publish(NEW)
    drive = tmp_path / "drive"
    drive.mkdir()
    (sandbox.tree / "models").mkdir(parents=True)
    (sandbox.tree / "models" / "vae").symlink_to(drive)
    assert sandbox.run("install", "--follow-links").returncode == 0
    assert sandbox.run("uninstall", "--yes").returncode == 0
    assert (drive / sandbox.files[0].name).is_file()
    assert sandbox.run("uninstall", "--yes", "--follow-links").returncode == 0
    assert list(drive.iterdir()) == []


def test_a_receipt_with_a_files_stamp_and_other_bytes_takes_it_from_nobody(sandbox: Sandbox) -> None:
    sandbox.publish(NEW)
    assert sandbox.run("install").returncode == 0
    mine = sandbox.plant(sandbox.tree / "models" / "loras" / "mine.safetensors", PRECIOUS)
    write_json(state_of(sandbox) / "receipt.json", receipt_for(mine, b"other bytes", "loras/mine.safetensors"))
    assert sandbox.run("uninstall", "--yes").returncode == 0
    assert mine.read_bytes() == PRECIOUS


def test_a_receipt_of_a_later_release_is_not_replaced(sandbox: Sandbox) -> None:
    sandbox.publish(NEW)
    receipt = state_of(sandbox) / "receipt.json"
    write_json(receipt, {"schema_version": 2, "files": {"vae/x": {"more": "than we know"}}})
    before = receipt.read_bytes()
    done = sandbox.run("install", "--json")
    assert (done.returncode, done.codes) == (4, ["storage"]), done.stderr
    assert str(receipt) in done.json["errors"][0]["message"]
    assert (receipt.read_bytes(), sandbox.bytes_served()) == (before, 0)


# --- names that can be guessed ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lock.json", "lock"])
def test_no_record_is_written_through_a_link_that_waits_under_its_name(
    sandbox: Sandbox, precious: Path, name: str
) -> None:
    sandbox.publish(NEW)
    state_of(sandbox).mkdir(parents=True)
    (state_of(sandbox) / name).symlink_to(precious)
    done = sandbox.run("install", "--json")
    if name == "lock":  # it cannot be held, and it says so; the note of who holds it just replaces the link
        assert (done.returncode, str(state_of(sandbox) / name) in done.said) == (4, True)
    else:
        assert done.returncode == 0


def test_no_temporary_file_has_a_name_that_can_be_guessed(tmp_path: Path, precious: Path) -> None:
    tree, where = tmp_path / "ComfyUI", tmp_path / "ComfyUI" / ".venv"
    for record in (tree / ".klein-setup" / "comfyui.json", where.with_name(".venv.klein-setup") / "journal.json"):
        record.parent.mkdir(parents=True)
        record.with_name(f"{record.name}.tmp").symlink_to(precious)
        record.with_name(f"{record.name}.{os.getpid()}.tmp").symlink_to(precious)
    write_checkout_receipt(tree, checkout_receipt(TreeFile(path="main.py", mode="100644", id=blob_id(b""))))
    assert read_checkout_receipt(tree) is not None
    Workspace(where).begin("x")


def test_a_reason_is_not_written_through_a_link(tmp_path: Path, precious: Path) -> None:
    models, wanted = tmp_path / "models", artifact(b"right")
    aside = models / ".klein-setup" / "aside"
    for seconds in range(5):
        folder = aside / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + seconds))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "why.jsonl").symlink_to(precious)
    place = comfy_file(wanted, models)
    place.path.parent.mkdir(parents=True)
    place.path.write_bytes(b"wrong")
    store = FileStore(file_system_of=file_system)
    with pytest.raises(StorageError, match=r"why\.jsonl"):
        store.set_aside(place, "other bytes")


def test_a_state_folder_that_is_a_link_is_named_and_not_followed(sandbox: Sandbox, precious: Path) -> None:
    sandbox.publish(NEW)
    state_of(sandbox).parent.mkdir(parents=True)
    state_of(sandbox).symlink_to(precious.parent)
    done = sandbox.run("install", "--json")
    assert (done.returncode, done.codes) == (4, ["path-outside-root"])
    assert str(state_of(sandbox)) in done.json["errors"][0]["message"]
    assert "link" in done.json["errors"][0]["hint"]


def test_a_part_with_a_second_name_is_not_written_into(sandbox: Sandbox, precious: Path) -> None:
    sandbox.publish(NEW)
    part, log = sandbox.part(), sandbox.log()
    part.parent.mkdir(parents=True)
    os.link(precious, part)
    head = {"version": 1, "size": len(NEW), "sha256": sha256_of(NEW), "block_size": BLOCK_SIZE}
    log.write_text(json.dumps(head) + "\n", encoding="utf-8")
    assert sandbox.run("install").returncode == 0


# --- the user's own work ---------------------------------------------------------------------------------


def run_of(sandbox: Sandbox) -> Run:
    session = Session(settings=Settings(remembers=False), environ=sandbox.environ)
    return open_run(session, Options(manifest=str(sandbox.manifest), comfyui=sandbox.tree))


def test_a_file_saved_after_the_plan_was_shown_is_not_replaced(sandbox: Sandbox) -> None:
    sandbox.publish(NEW)

    def save(plan: Plan) -> None:
        assert [step.reason for step in plan.steps] == ["missing"]
        sandbox.plant(sandbox.path(), PRECIOUS)

    ui = RunUi(ask=lambda question: True, show_plan=save, show_smoke=lambda smoke: None)
    with pytest.raises(PlanOutdatedError, match="changed after the plan was shown"):
        run_install(run_of(sandbox), InstallOptions(parts=frozenset({"files"})), ui)
    assert sandbox.path().read_bytes() == PRECIOUS
    assert sandbox.hub.requests == ()


def applied(run: Run, step: Step) -> Exception | None:
    """Apply a plan of one step, which was made before the world changed; return why it failed."""
    plan = make_plan(no_steps(run.manifest, run.wanted, run.target), [step])
    options = InstallOptions(parts=frozenset({"environment"}))
    (outcome,) = apply_plan(run, options, plan, show_smoke=lambda smoke: None).outcomes
    assert outcome.status == "failed"
    return outcome.error


@pytest.mark.parametrize("kind", ["get", "update"])
def test_a_comfyui_that_appeared_or_went_after_the_plan_was_shown_is_left_alone(sandbox: Sandbox, kind: str) -> None:
    sandbox.publish(NEW)
    run = run_of(sandbox)
    table, files = read_table(), {}
    make = GetComfyUI if kind == "get" else UpdateComfyUI
    step = make(
        folder=sandbox.tree, release=table.pinned, source=sandbox.hub.endpoint, reason="", download=table.download
    )
    if kind == "get":  # somebody put one there; an update finds none any more
        files = {sandbox.tree / name: PRECIOUS for name in ("main.py", "folder_paths.py", "mine.py")}
        for path, data in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    error = applied(run, step)
    assert isinstance(error, PlanOutdatedError)
    assert f"{sandbox.tree} changed after the plan was shown" in str(error)
    assert {path: path.read_bytes() for path in sandbox.tree.rglob("*") if path.is_file()} == files
    assert sandbox.hub.requests == ()


@pytest.mark.parametrize("kind", ["make", "repair"])
def test_an_environment_that_appeared_after_the_plan_was_shown_is_left_alone(sandbox: Sandbox, kind: str) -> None:
    sandbox.publish(NEW)
    run, where = run_of(sandbox), sandbox.tree / ".venv"
    torch = TorchSet(torch="2.15.0", torchvision="0.29.2", torchaudio="2.11.0")
    build = TorchBuild(torch_backend="cpu", index_url=sandbox.hub.endpoint, local_tag="cpu", sets=(torch,))
    choice = TorchChoice(build=build, reasons=(), runner_up=None)
    make = MakeEnvironment if kind == "make" else RepairEnvironment
    step = make(where=where, choice=choice, app="comfyui", reason="", download=Download(fetched_bytes=1, disk_bytes=1))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True)
    (where / "mine").write_bytes(PRECIOUS)
    before = {path: path.lstat().st_mtime_ns for path in sandbox.tree.rglob("*")}
    error = applied(run, step)
    assert isinstance(error, PlanOutdatedError)
    assert f"{where} appeared after the plan was shown" in str(error)
    assert {path: path.lstat().st_mtime_ns for path in sandbox.tree.rglob("*")} == before


def test_a_file_saved_while_the_question_stands_stays(sandbox: Sandbox) -> None:
    sandbox.publish(NEW)
    assert sandbox.run("install").returncode == 0
    said: list[str] = []

    def save_and_agree(question: str) -> bool:
        sandbox.plant(sandbox.path(), PRECIOUS)
        return True

    options = UninstallOptions(parts=frozenset({"files"}))
    report = run_uninstall(run_of(sandbox), options, ask=save_and_agree, say=said.append)
    assert sandbox.path().read_bytes() == PRECIOUS
    assert [finding.path for finding in report.findings if finding.code == "kept-file"] == [sandbox.path()]
    assert [(outcome.status, "changed" in outcome.detail) for outcome in report.outcomes] == [("skipped", True)]
    assert not (state_of(sandbox) / "receipt.json").exists()  # it is the user's own from now on


def test_wrong_bytes_of_an_earlier_time_are_kept_beside_new_ones(sandbox: Sandbox) -> None:
    sandbox.publish(NEW)
    bad = sandbox.path().with_name(sandbox.path().name + ".bad")
    sandbox.plant(bad, PRECIOUS)
    kept = []
    for contents in (b"four", b"more"):
        with PartFile(sandbox.path(), size=4, sha256="0" * 64) as part:
            part.write(0, contents)
            part.finish_block(0, hashlib.sha256(contents).hexdigest())
            kept.append(part.keep_as_bad())
    second = bad.with_name(f"{bad.name}.1")
    assert kept == [second, None]  # a server that goes on sending wrong bytes does not fill the disk
    assert (bad.read_bytes(), second.read_bytes()) == (PRECIOUS, b"four")
    assert sorted(each.name for each in bad.parent.iterdir()) == sorted([bad.name, second.name])


@pytest.mark.parametrize("ending", [".patch.part", ".patch.part.jsonl", ".part.jsonl", ".placing.part"])
def test_a_file_of_the_users_with_a_name_like_ours_is_kept(sandbox: Sandbox, tmp_path: Path, ending: str) -> None:
    """Set aside or left where it is; a repair, an installation and a copy from elsewhere all come by."""
    data = tensors(BLOCK_SIZE + MIB)
    (wanted,) = sandbox.publish(data)
    mine = sandbox.path().with_name(sandbox.path().name + ending)
    elsewhere = tmp_path / "downloads" / wanted.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(data)
    assert sandbox.run("install", "--look-in", str(elsewhere.parent)).returncode == 0
    sandbox.plant(mine, PRECIOUS)
    with sandbox.path().open("r+b") as stream:
        stream.write(b"?")
    elsewhere.unlink()
    assert sandbox.run("repair").returncode == 0
    assert sandbox.path().read_bytes() == data
    assert PRECIOUS in [path.read_bytes() for path in sandbox.tree.rglob("*") if path.is_file()]
    sandbox.path().unlink()
    elsewhere.write_bytes(data)
    sandbox.plant(mine, PRECIOUS)
    assert sandbox.run("install", "--look-in", str(elsewhere.parent)).returncode == 0
    assert PRECIOUS in [path.read_bytes() for path in sandbox.tree.rglob("*") if path.is_file()]


# --- logs that lie ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("digests", ["of what is there", "of what should be there"])
def test_a_repair_fetches_one_block_whatever_a_log_says(sandbox: Sandbox, digests: str) -> None:
    data = tensors(2 * BLOCK_SIZE + MIB)
    sandbox.publish(data)
    assert sandbox.run("install").returncode == 0
    with sandbox.path().open("r+b") as stream:
        stream.seek(BLOCK_SIZE + 5)
        stream.write(b"???")
    garbage = bytes(len(data))
    sandbox.part().write_bytes(garbage)
    told = garbage if digests == "of what is there" else data
    lines: list[object] = [{"version": 1, "size": len(data), "sha256": sha256_of(data), "block_size": BLOCK_SIZE}]
    for index in range(3):
        lines.append({"block": index, "sha256": sha256_of(told[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])})
    sandbox.log().write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    sandbox.hub.clear_requests()
    done = sandbox.run("repair", "--json")
    assert done.returncode == 0, done.stderr
    assert sandbox.path().read_bytes() == data
    assert sandbox.bytes_served() <= BLOCK_SIZE + MIB


def test_an_interrupted_download_of_which_one_block_rots_fetches_that_block(sandbox: Sandbox) -> None:
    data = tensors(2 * BLOCK_SIZE + MIB)
    sandbox.publish(data)
    lines: list[object] = [{"version": 1, "size": len(data), "sha256": sha256_of(data), "block_size": BLOCK_SIZE}]
    for index in range(3):
        lines.append({"block": index, "sha256": sha256_of(data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])})
    sandbox.part().parent.mkdir(parents=True)
    sandbox.part().write_bytes(data[:BLOCK_SIZE] + b"?" + data[BLOCK_SIZE + 1 :])
    sandbox.log().write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = sandbox.run("install", "--json")
    assert done.returncode == 0, done.stderr
    assert sandbox.path().read_bytes() == data
    assert sandbox.bytes_served() <= BLOCK_SIZE + MIB


# --- what others see -------------------------------------------------------------------------------------


def test_what_runs_leave_behind_is_for_this_user_alone(sandbox: Sandbox) -> None:
    sandbox.publish(NEW)
    assert sandbox.run("install").returncode == 0
    state = sandbox.state
    open_to_others = [path for path in (state, *state.rglob("*")) if path.lstat().st_mode & 0o077]
    assert open_to_others == []
    assert (state / "last-run.json").is_file()
    assert stat.S_IMODE((sandbox.tree / "models" / ".klein-setup" / "receipt.json").stat().st_mode) & 0o044 == 0o044


def test_no_lock_lies_where_everybody_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home" / "state"))
    before = set(Path(tempfile.gettempdir()).glob("klein-setup-*"))
    with only_one(tmp_path / "env", wait=True, notice=print):
        assert set(Path(tempfile.gettempdir()).glob("klein-setup-*")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads where a descriptor leads from /proc")
def test_a_new_folder_is_known_to_the_disk_before_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    tree = tmp_path / "new" / "ComfyUI"
    write_checkout_receipt(tree, checkout_receipt(TreeFile(path="main.py", mode="100644", id=blob_id(b""))))
    assert [path for path in flushed if path.is_dir()] == [tmp_path, tree.parent, tree, tree / ".klein-setup"]
