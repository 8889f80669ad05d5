"""Backups: listed with their reason, put back byte for byte, deleted only when told to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.commands.backups import (
    backup_roots,
    find_entry,
    run_backups_clear,
    run_backups_list,
    run_backups_restore,
)
from provisioner.commands.run import Options, Run, open_run
from provisioner.commands.session import Session, Settings
from provisioner.core.errors import AnswerNeededError, FileInUseError, HashMismatchError, StorageError, UsageError
from provisioner.core.models import BackupEntry, ComfyTarget, HubCacheTarget
from provisioner.disk.root import Root
from provisioner.files.store.file_store import FileStore
from provisioner.files.store.set_aside import list_backups, save_pieces
from provisioner.report.json_document import document
from provisioner.report.outcome import Report
from tests.support.builders import artifact, comfy_file, comfy_target, file_system, sha256
from tests.support.faulty_root import faulty
from tests.support.sandbox import Sandbox, tensors
from tests.support.schemas import conforming

OLD, NEW = b"old " * 300, b"new " * 300
VAE = artifact(NEW)
LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")


def store_for(**more: object) -> FileStore:
    values = {"file_system_of": file_system, "roots": faulty(**more)}
    return FileStore(**values)  # type: ignore[arg-type]


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def replaced(root: Path, data: bytes = OLD) -> BackupEntry:
    """Set a file aside and put another in its place."""
    place = comfy_file(VAE, root)
    put(place.path, data)
    store_for().set_aside(place, "other bytes")
    put(place.path, NEW)
    (entry,) = store_for().list_backups([root])
    return entry


def repaired(
    root: Path, old: bytes, new: bytes, ranges: list[tuple[int, int]], roots: Callable[[Path], Root] = Root
) -> BackupEntry:
    """Keep what a repair in place replaces, and put the repaired file there."""
    path = put(comfy_file(VAE, root).path, old)
    save_pieces(
        roots(root),
        path,
        ranges,
        read=lambda offset, length: old[offset : offset + length],
        old_size=len(old),
        new_size=len(new),
        new_sha256=sha256(new),
        reason="block 1 differs",
    )
    put(path, new)
    (entry,) = list_backups([root])
    return entry


def set_aside(root: Path) -> list[bytes]:
    return [entry.path.read_bytes() for entry in list_backups([root]) if entry.path.is_file()]


# --- listing ---------------------------------------------------------------------------------------


def test_an_entry_says_what_it_was_when_and_why(tmp_path: Path) -> None:
    entry = replaced(tmp_path)
    assert (entry.was, entry.reason, entry.size, entry.is_blocks) == ("vae/vae.safetensors", "other bytes", 1200, False)
    assert entry.id == f"{entry.path.parts[-3]}/vae/vae.safetensors"
    assert len(entry.time) == len("2026-11-23T06:14:04Z")
    assert entry.root == tmp_path


def test_nothing_set_aside_is_an_empty_list(tmp_path: Path) -> None:
    assert list_backups([tmp_path, tmp_path / "not there"]) == ()


def test_what_nobody_explained_is_listed_too(tmp_path: Path) -> None:
    entry = replaced(tmp_path)
    why = entry.path.parents[1] / "why.jsonl"
    why.write_text(
        '{"torn": \n{"was": "x", "is": "../../../vae/vae.safetensors", "why": "hostile"}\n', encoding="utf-8"
    )
    (found,) = list_backups([tmp_path])
    assert (found.was, found.reason, found.path) == ("", "nobody wrote down why", entry.path)


def test_a_kill_before_the_index_leaves_nothing_unexplained(tmp_path: Path) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repaired(tmp_path, OLD, NEW, [(0, 100)], faulty(move_records=die))
    assert [entry.reason for entry in list_backups([tmp_path])] == ["block 1 differs"]


def test_a_folder_and_a_drive_mounted_below_the_root_are_found(tmp_path: Path) -> None:
    put(tmp_path / "vae" / ".klein-setup" / "aside" / "20261123T061404Z" / "x.aside", b"12345")
    folder = put(tmp_path / "vae" / "vae.safetensors" / "inside.txt", b"123").parent
    store_for().set_aside(comfy_file(VAE, tmp_path), "a folder was in the way")
    found = {entry.was: entry.size for entry in list_backups([tmp_path, tmp_path])}
    assert found == {"": 5, "vae/vae.safetensors": 3}
    assert not folder.exists()


# --- putting back ----------------------------------------------------------------------------------


def test_what_is_put_back_and_what_was_there_change_places(tmp_path: Path) -> None:
    path = store_for().put_back(replaced(tmp_path))
    assert path.read_bytes() == OLD
    assert set_aside(tmp_path) == [NEW]
    (entry,) = list_backups([tmp_path])
    assert "was put back in its place" in entry.reason
    store_for().put_back(entry)
    assert (path.read_bytes(), set_aside(tmp_path)) == (NEW, [OLD])


def test_the_folder_it_came_from_is_made_again(tmp_path: Path) -> None:
    entry = replaced(tmp_path)
    (tmp_path / "vae" / "vae.safetensors").unlink()
    (tmp_path / "vae").rmdir()
    assert store_for().put_back(entry).read_bytes() == OLD
    assert list_backups([tmp_path]) == ()
    assert not (tmp_path / ".klein-setup" / "aside").exists()


@LINKS
def test_a_link_is_put_back_as_the_link_it_was(tmp_path: Path) -> None:
    put(tmp_path / "real", OLD)
    path = comfy_file(VAE, tmp_path).path
    path.parent.mkdir()
    path.symlink_to("../real")
    store_for().set_aside(comfy_file(VAE, tmp_path), "a link")
    (entry,) = list_backups([tmp_path])
    assert store_for().put_back(entry).readlink() == Path("../real")
    assert path.read_bytes() == OLD


@pytest.mark.parametrize(
    ("old", "new", "ranges"),
    [
        (OLD, OLD[:100] + b"!" * 100 + OLD[200:], [(100, 100)]),
        (OLD + b"tail", OLD, [(1200, 4)]),
        (OLD[:700], OLD[:600] + NEW[600:], [(600, 100)]),
        (OLD, NEW, [(0, 1000), (1000, 200)]),
        (OLD[:700], OLD, []),
    ],
    ids=["a block", "cut", "continued", "everything", "nothing went"],
)
def test_bytes_that_a_repair_replaced_give_the_old_file_back(
    tmp_path: Path, old: bytes, new: bytes, ranges: list[tuple[int, int]]
) -> None:
    entry = repaired(tmp_path, old, new, ranges)
    assert (entry.is_blocks, entry.was) == (True, "vae/vae.safetensors")
    path = store_for().put_back(entry)
    assert path.read_bytes() == old
    assert set_aside(tmp_path) == [new]
    assert sorted(each.name for each in path.parent.iterdir()) == ["vae.safetensors"]


def test_what_a_killed_restore_left_is_removed_by_the_next_run_that_changes_something(tmp_path: Path) -> None:
    entry = repaired(tmp_path, OLD, NEW, [(0, 1200)])
    left = put(tmp_path / "vae" / f"vae.safetensors.{'a' * 16}.restoring.part", OLD[:500])
    theirs = put(tmp_path / "vae" / "another.safetensors.restoring.part", b"mine")
    with store_for().lock_roots([tmp_path]):
        assert (left.exists(), theirs.exists()) == (False, True)
    assert list_backups([tmp_path]) == (entry,)


def test_bytes_that_do_not_fit_the_file_any_more_change_nothing(tmp_path: Path) -> None:
    entry = repaired(tmp_path, OLD, NEW, [(0, 1200)])
    path = put(tmp_path / "vae" / "vae.safetensors", b"something else")
    with pytest.raises(HashMismatchError, match="is not the file that was repaired"):
        store_for().put_back(entry)
    assert (path.read_bytes(), list_backups([tmp_path])) == (b"something else", (entry,))


@pytest.mark.parametrize("damage", ["index", "piece", "gone", "lost"])
def test_bytes_that_were_damaged_in_aside_change_nothing(tmp_path: Path, damage: str) -> None:
    entry = repaired(tmp_path, OLD, NEW, [(0, 1200)])
    index = entry.path / "index.json"
    if damage == "index":
        index.write_text("{", encoding="utf-8")
    elif damage == "lost":
        document = json.loads(index.read_text(encoding="utf-8"))
        index.write_text(json.dumps({**document, "lost": [[0, 5]]}), encoding="utf-8")
    elif damage == "gone":
        (entry.path / "000000000000000").unlink()
    else:
        (entry.path / "000000000000000").write_bytes(NEW)
    with pytest.raises((StorageError, HashMismatchError)):
        store_for().put_back(entry)
    assert (tmp_path / "vae" / "vae.safetensors").read_bytes() == NEW


def test_an_index_that_names_a_file_elsewhere_is_not_believed(tmp_path: Path) -> None:
    entry = repaired(tmp_path, OLD, NEW, [(0, 1200)])
    index = entry.path / "index.json"
    text = index.read_text(encoding="utf-8").replace('"000000000000000"', '"../../../secret"')
    index.write_text(text, encoding="utf-8")
    with pytest.raises(StorageError, match="index cannot be read"):
        store_for().put_back(entry)


def test_what_nobody_wrote_down_is_not_put_anywhere(tmp_path: Path) -> None:
    entry = replaced(tmp_path)
    (entry.path.parents[1] / "why.jsonl").unlink()
    (lost,) = list_backups([tmp_path])
    with pytest.raises(UsageError, match="Nobody wrote down where"):
        store_for().put_back(lost)


def test_a_reason_that_names_a_place_outside_puts_nothing_there(tmp_path: Path) -> None:
    root = tmp_path / "models"
    entry = replaced(root)
    why = entry.path.parents[1] / "why.jsonl"
    line = json.loads(why.read_text(encoding="utf-8"))
    why.write_text(json.dumps({**line, "was": "../outside"}), encoding="utf-8")
    (hostile,) = list_backups([root])
    with pytest.raises(UsageError):
        store_for().put_back(hostile)
    assert not (tmp_path / "outside").exists()


def test_a_file_in_use_stays_where_it_is(tmp_path: Path) -> None:
    def refuse(source: Path, destination: Path) -> None:
        raise FileInUseError("ComfyUI has it open")

    entry = replaced(tmp_path)
    with pytest.raises(FileInUseError):
        store_for(move=refuse).put_back(entry)
    assert (tmp_path / "vae" / "vae.safetensors").read_bytes() == NEW
    assert list_backups([tmp_path]) == (entry,)


# --- clearing --------------------------------------------------------------------------------------


def test_clearing_deletes_what_it_is_given_and_no_more(tmp_path: Path) -> None:
    first = replaced(tmp_path)
    second = put(first.path.with_name("another"), b"12345")
    assert store_for().clear_backups([first]) == 1200
    assert [entry.path for entry in list_backups([tmp_path])] == [second]
    assert store_for().clear_backups(list_backups([tmp_path])) == 5
    assert sorted(path.name for path in (tmp_path / ".klein-setup").iterdir()) == []
    assert (tmp_path / "vae" / "vae.safetensors").read_bytes() == NEW


@LINKS
def test_clearing_follows_no_link(tmp_path: Path) -> None:
    theirs = put(tmp_path / "theirs" / "x", b"precious").parent
    path = comfy_file(VAE, tmp_path / "models").path
    path.parent.mkdir(parents=True)
    path.symlink_to(theirs)
    store_for().set_aside(comfy_file(VAE, tmp_path / "models"), "a link to a folder")
    store_for().clear_backups(list_backups([tmp_path / "models"]))
    assert (theirs / "x").read_bytes() == b"precious"
    assert list_backups([tmp_path / "models"]) == ()


# --- the command -----------------------------------------------------------------------------------


def run_of(sandbox: Sandbox, *, assume_yes: bool = False) -> Run:
    session = Session(settings=Settings(remembers=False), environ=sandbox.environ)
    options = Options(manifest=str(sandbox.manifest), comfyui=sandbox.tree, assume_yes=assume_yes)
    return open_run(session, options)


def entries_of(report: Report) -> tuple[BackupEntry, ...]:
    assert report.backups is not None
    return report.backups


@pytest.fixture
def run(sandbox: Sandbox) -> Run:
    sandbox.publish(NEW)
    replaced(sandbox.tree / "models")
    return run_of(sandbox)


def test_the_list_is_in_the_document(run: Run) -> None:
    told = conforming(document(run_backups_list(run)))
    assert (told["command"], told["status"], told["exit_status"]) == ("aside list", "ok", 0)
    listed = json.loads(json.dumps(told["details"]["aside"]))
    assert [entry["was"] for entry in listed] == ["vae/vae.safetensors"]


def test_restoring_by_name_says_what_was_done(run: Run) -> None:
    said: list[str] = []
    (entry,) = entries_of(run_backups_restore(run, "vae/vae.safetensors", say=said.append))
    assert (entry.root / entry.was).read_bytes() == OLD
    assert str(entry.root / entry.was) in said[0]


def test_clearing_asks_and_no_keeps_everything(run: Run) -> None:
    asked: list[str] = []

    def no(question: str) -> bool:
        asked.append(question)
        return False

    with pytest.raises(AnswerNeededError):
        run_backups_clear(run, ask=no, say=lambda line: None)
    assert asked == ["Delete 1 backup (1.20 kB) for good?"]
    assert len(entries_of(run_backups_list(run))) == 1


def test_clearing_with_yes_asks_nothing_and_says_what_was_freed(sandbox: Sandbox, run: Run) -> None:
    said: list[str] = []
    agreed = run_of(sandbox, assume_yes=True)
    for _ in range(2):
        run_backups_clear(agreed, ask=lambda question: False, say=said.append)
    assert entries_of(run_backups_list(run)) == ()
    assert said == ["1.20 kB were freed.", "There are no backups."]


def test_an_entry_is_found_by_every_name_that_means_only_one(tmp_path: Path) -> None:
    one = replaced(tmp_path)
    path = put(one.path.with_name("vae.safetensors.1"), b"x")
    two = BackupEntry(id="x/y", root=tmp_path, was=one.was, path=path, time="", reason="", size=1)
    for name in (one.id, str(one.path)):
        assert find_entry([one, two], name) == one
    assert find_entry([one], one.was) == find_entry([one], str(tmp_path / one.was)) == one
    with pytest.raises(UsageError, match="means 2 backups"):
        find_entry([one, two], one.was)
    with pytest.raises(UsageError, match="no backup called 'nothing'"):
        find_entry([one, two], "nothing")


def test_every_root_that_has_an_aside_is_looked_at(tmp_path: Path) -> None:
    for root in ("models--org--one", "other"):
        (tmp_path / root / ".klein-setup" / "aside").mkdir(parents=True)
    (tmp_path / "models--org--two").mkdir()
    assert backup_roots(HubCacheTarget(cache=tmp_path)) == (tmp_path / "models--org--one",)
    target: ComfyTarget = comfy_target(tmp_path / "tree" / "models")
    assert backup_roots(target) == (tmp_path / "tree" / "models",)
    assert os.path.lexists(tmp_path / "other")


# --- the command -------------------------------------------------------------------------------------


def test_the_command_lists_restores_and_clears(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(2000))
    theirs = tensors(2000, seed=1)
    sandbox.plant(sandbox.path(), theirs)
    assert sandbox.run("repair").returncode == 0
    listed = sandbox.run("backups", "list")
    (entry,) = sandbox.run("aside", "list", "--json").json["details"]["aside"]
    assert listed.returncode == 0
    assert f"vae/{wanted.name}" in listed.stdout
    assert "other bytes of the right size" in listed.said
    assert sandbox.run("backups", "restore", entry["id"]).returncode == 0
    assert sandbox.path().read_bytes() == theirs
    refused = sandbox.run("backups", "clear")
    assert (refused.returncode, refused.said.count("--yes")) == (2, 1)  # nobody to ask, so nothing goes
    assert sha256(wanted.data) in {sha256(path.read_bytes()) for path in sandbox.backups().values()}
    assert sandbox.run("backups", "clear", "--yes").returncode == 0
    assert sandbox.backups() == {}
    assert sandbox.path().read_bytes() == theirs
