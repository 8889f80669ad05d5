"""Files of the right size in other folders, and what the last run left for the next."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from provisioner.core.models import Artifact
from provisioner.disk.last_run import (
    LARGEST_REPORT,
    last_report_time,
    read_last_report,
    read_last_runs,
    write_defect_log,
    write_for_user,
    write_last_report,
    write_last_run,
)
from provisioner.files.local_copies import FilesInFolders
from tests.support.builders import artifact, sha256, variant

DATA = b"the right bytes"
VAE = artifact(DATA)
LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")


def put(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def found(folder: Path, wanted: Artifact = VAE) -> list[str]:
    copies = FilesInFolders((folder,), "--look-in").find(wanted, wanted.contents)
    return [copy.path.relative_to(folder).as_posix() for copy in copies]


def test_finds_by_size_and_puts_the_same_name_first(tmp_path: Path) -> None:
    put(tmp_path / "a" / "other.safetensors")
    put(tmp_path / "b" / "vae.safetensors")
    put(tmp_path / "c" / "vae.safetensors", DATA + b"more")
    finder = FilesInFolders((tmp_path,), "--look-in")
    copies = finder.find(VAE, VAE.contents)
    assert [copy.path for copy in copies] == [tmp_path / "b" / "vae.safetensors", tmp_path / "a" / "other.safetensors"]
    assert {(copy.artifact_id, copy.origin, copy.size, copy.sha256, copy.device) for copy in copies} == {
        ("vae", "--look-in", len(DATA), sha256(DATA), tmp_path.stat().st_dev)
    }


def test_looks_again_when_a_file_of_the_same_size_has_taken_a_name(tmp_path: Path) -> None:
    path = put(tmp_path / "other.safetensors")
    finder = FilesInFolders((tmp_path,), "--look-in")
    assert len(finder.find(VAE, VAE.contents)) == 1
    path.rename(tmp_path / "older.safetensors")
    put(path, b"x" * len(DATA))
    assert len(finder.find(VAE, VAE.contents)) == 2


def test_every_content_that_is_right_is_looked_for_with_its_own_digest(tmp_path: Path) -> None:
    put(tmp_path / "x", b"as good")
    wanted = artifact(DATA, accept=(variant(b"as good"),))
    (copy,) = FilesInFolders((tmp_path,), "--look-in").find(wanted, wanted.contents)
    assert copy.sha256 == sha256(b"as good")


@pytest.mark.parametrize(
    "name",
    [
        "x.part",
        "x.safetensors.incomplete",
        "x.crdownload",
        "x.aria2",
        "x.bad",
        ".git/x",
        "venv/x",
        "node_modules/x",
        ".klein-setup/x",
        ".klein-setup/other/x",
        ".klein-setup/aside/20260101T000000Z/vae/vae.safetensors",  # set aside because it was wrong under this name
        ".klein-setup/aside/20260101T000000Z/vae/vae.safetensors.1",
    ],
)
def test_what_is_unfinished_or_no_model_is_passed_over(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    assert found(tmp_path) == []


def test_what_was_set_aside_under_another_name_is_offered_last(tmp_path: Path) -> None:
    put(tmp_path / ".klein-setup" / "aside" / "then" / "vae" / "other.safetensors")
    put(tmp_path / "z" / "else.safetensors")
    copies = FilesInFolders((tmp_path,), "--look-in").find(VAE, VAE.contents)
    assert [copy.origin for copy in copies] == ["--look-in", "the backups"]


def test_empty_files_and_folders_that_are_not_there_are_nothing(tmp_path: Path) -> None:
    put(tmp_path / "x", b"")
    assert found(tmp_path, artifact(b"")) == []
    assert found(tmp_path / "none") == []


@LINKS
def test_links_to_files_count_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    real = put(tmp_path / "outside" / "real")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(real)
    (tree / "dangling").symlink_to("nowhere")
    (tree / "around").symlink_to(tree)
    (tree / "folder").symlink_to(real.parent)
    assert found(tree) == ["link"]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("its pipes have no names in a folder")
    os.mkfifo(tmp_path / "pipe")
    put(tmp_path / "x")
    assert found(tmp_path) == ["x"]


def test_two_names_of_one_file_are_read_once(tmp_path: Path) -> None:
    os.link(put(tmp_path / "a"), tmp_path / "b")
    assert found(tmp_path) == ["a"]


def test_a_folder_is_walked_once_and_again_when_a_file_has_gone(tmp_path: Path) -> None:
    first = put(tmp_path / "first")
    finder = FilesInFolders((tmp_path,), "--look-in")
    assert [copy.path.name for copy in finder.find(VAE, VAE.contents)] == ["first"]
    put(tmp_path / "later")
    assert [copy.path.name for copy in finder.find(VAE, VAE.contents)] == ["first"]
    first.unlink()
    assert [copy.path.name for copy in finder.find(VAE, VAE.contents)] == ["later"]
    put(tmp_path / "later", b"another size")
    assert finder.find(VAE, VAE.contents) == ()


# --- what is remembered ------------------------------------------------------------------------------


def remember(folder: Path, path: Path) -> None:
    write_last_run(folder, kind="comfyui", path=path, manifest="flux2-klein-4b", set_id="fp8")


def test_the_last_run_is_remembered_and_written_only_when_it_changed(tmp_path: Path) -> None:
    state = tmp_path / "state" / "klein"
    assert read_last_runs(state) == ()
    remember(state, tmp_path / "ComfyUI")
    (last,) = read_last_runs(state)
    assert (last["kind"], last["path"], last["set"]) == ("comfyui", str(tmp_path / "ComfyUI"), "fp8")
    file = state / "last-run.json"
    os.utime(file, ns=(1, 1))
    remember(state, tmp_path / "ComfyUI")
    assert file.stat().st_mtime_ns == 1
    remember(state, tmp_path / "Other")
    assert file.stat().st_mtime_ns != 1
    assert [path.name for path in state.iterdir()] == ["last-run.json"]


def test_every_target_is_remembered_once_the_latest_first(tmp_path: Path) -> None:
    for name in ("first", "second", "first"):
        remember(tmp_path / "state", tmp_path / name)
    assert [Path(each["path"]).name for each in read_last_runs(tmp_path / "state")] == ["first", "second"]
    for number in range(60):
        remember(tmp_path / "state", tmp_path / str(number))
    assert len(read_last_runs(tmp_path / "state")) == 50


TARGET = {"kind": "comfyui", "path": "/x", "manifest": "m", "set": "s"}


def remembered(**more: object) -> str:
    return json.dumps({"schema_version": 2, "targets": [TARGET], **more})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    named = {**TARGET, "path": "/y", "manifest_file": "/m.yaml"}
    (tmp_path / "last-run.json").write_text(remembered(targets=[TARGET, named]))
    assert read_last_runs(tmp_path) == ({**TARGET, "manifest_file": None}, named)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        remembered(schema_version=3),
        remembered(targets=5),
        remembered(targets=[{**TARGET, "kind": "disk"}]),
        remembered(targets=[{**TARGET, "manifest_file": 5}]),
        remembered(targets=[{**TARGET, "kind": ["comfyui"]}]),
        remembered(targets=[{name: value for name, value in TARGET.items() if name != "path"}]),
        "[" * 100_000,
        "\udcff",
    ],
)
def test_what_cannot_be_read_was_never_remembered(tmp_path: Path, text: str) -> None:
    (tmp_path / "last-run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_last_runs(tmp_path) == ()


def test_a_folder_that_may_not_be_written_to_is_no_error(tmp_path: Path) -> None:
    remember(put(tmp_path / "file"), tmp_path)
    assert write_defect_log(tmp_path / "file", "trace") is None
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_defect_is_kept_for_the_bug_report(tmp_path: Path) -> None:
    path = write_defect_log(tmp_path, "trace \u00fc")
    assert path is not None
    assert path.read_text(encoding="utf-8") == "trace \u00fc"
    assert path.parent == tmp_path / "logs"


def test_the_last_report_comes_back_as_it_was(tmp_path: Path) -> None:
    state = tmp_path / "state" / "klein"
    assert read_last_report(state) is None
    for command in ("install", "verify"):
        report = {"schema_version": 1, "command": command, "details": {"prompt": "fox \u00fc \u6a21"}}
        assert write_last_report(state, report)
        assert read_last_report(state) == report
    assert [path.name for path in state.iterdir()] == ["last-report.json"]


def test_the_last_image_stays_in_the_reports_of_runs_without_one(tmp_path: Path) -> None:
    smoke = {"picture": {"path": "/fox.png"}}
    drawn = {
        "schema_version": 1,
        "target": {"path": "/models"},
        "manifest": {"id": "m"},
        "details": {"smoke_test": smoke},
    }
    assert write_last_report(tmp_path, drawn)
    os.utime(tmp_path / "last-report.json", (1_790_000_000, 1_790_000_000))
    last = {
        "made_at": "2026-09-21T14:13:20Z",
        "target": {"path": "/models"},
        "manifest": {"id": "m"},
        "smoke_test": smoke,
    }
    without = {"schema_version": 1, "command": "verify", "details": {"smoke_test": {"picture": None}}}
    for _ in range(3):
        assert write_last_report(tmp_path, without)
        kept = read_last_report(tmp_path)
        assert kept is not None
        assert kept["details"] == {"smoke_test": {"picture": None}, "last_image": last}
    newer = {"schema_version": 1, "details": {"smoke_test": {"picture": {"path": "/cat.png"}}}}
    assert write_last_report(tmp_path, newer)
    assert read_last_report(tmp_path) == newer


def test_the_last_image_has_the_date_of_its_run_however_old_the_file_is(tmp_path: Path) -> None:
    ended_at, smoke = "2026-09-21T14:13:20.125Z", {"picture": {"path": "/fox.png"}}
    assert write_last_report(tmp_path, {"schema_version": 1, "ended_at": ended_at, "details": {"smoke_test": smoke}})
    assert write_last_report(tmp_path, {"schema_version": 1, "details": {}})
    kept = read_last_report(tmp_path)
    assert kept is not None
    assert kept["details"] == {
        "last_image": {"made_at": ended_at, "target": None, "manifest": None, "smoke_test": smoke}
    }


@pytest.mark.parametrize("before", [{"details": None}, {"details": {"smoke_test": [], "last_image": None}}, {}])
def test_an_earlier_report_without_an_image_leaves_the_next_as_it_is(tmp_path: Path, before: dict[str, object]) -> None:
    assert write_last_report(tmp_path, {"schema_version": 1, **before})
    report = {"schema_version": 1, "details": {}}
    assert write_last_report(tmp_path, report)
    assert read_last_report(tmp_path) == report


def test_the_page_and_the_report_are_for_their_user_alone(tmp_path: Path) -> None:
    assert last_report_time(tmp_path).endswith("Z")  # of now: nothing was kept yet
    path = tmp_path / "state" / "page.html"
    write_for_user(path, b"<!DOCTYPE html>")
    assert path.read_bytes() == b"<!DOCTYPE html>"
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"schema_version": "1"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema_version": 1, "cut": "he',
        b'{"schema_version": 1}' + b" " * LARGEST_REPORT,
    ],
    ids=range(9),
)
def test_a_damaged_report_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "last-report.json").write_bytes(data)
    assert read_last_report(tmp_path) is None


def test_a_report_beyond_the_bound_is_not_written_over_one_that_can_be_read(tmp_path: Path) -> None:
    good = {"schema_version": 1}
    write_last_report(tmp_path, good)
    assert not write_last_report(tmp_path, {"schema_version": 1, "details": "x" * LARGEST_REPORT})
    assert read_last_report(tmp_path) == good


def test_a_report_that_cannot_be_kept_is_no_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    assert not write_last_report(put(tmp_path / "file"), {"schema_version": 1})
    (tmp_path / "state" / "last-report.json").mkdir(parents=True)
    assert not write_last_report(tmp_path / "state", {"schema_version": 1})
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["last-report.json"]
