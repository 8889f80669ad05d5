"""File systems, ComfyUI trees and the program's own folders, on this computer and on described ones."""

from __future__ import annotations

import sys
from pathlib import Path

import platformdirs
import pytest

from provisioner.comfyui.installed_programs import (
    batch_files_of,
    installed_on_windows,
    own_folders_on_windows,
    portable_builds,
    read_record,
)
from provisioner.core.errors import StorageError
from provisioner.disk.locations import (
    data_folder,
    drive_roots,
    existing_comfyui_trees,
    file_system_of,
    kind_in_mountinfo,
    kind_of_file_system,
    longest_path,
    looks_like_comfyui,
    own_folder_on_windows,
    state_folder,
    usual_comfyui_trees,
    where_archives_are_unpacked,
)

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")


def test_on_windows_the_variable_says_where_the_users_own_things_are() -> None:
    environ = {"LOCALAPPDATA": "C:\\scratch"}
    assert own_folder_on_windows(environ, platform="win32") == Path("C:\\scratch") / "klein-setup"
    assert own_folder_on_windows({"LOCALAPPDATA": "scratch"}, platform="win32") is None
    assert own_folder_on_windows({}, platform="win32") is None
    assert own_folder_on_windows(environ, platform="linux") is None


@pytest.mark.skipif(sys.platform == "win32", reason="what is allowed there is the computer's matter")
def test_only_windows_has_a_longest_path() -> None:
    assert longest_path() is None


# --- file systems ------------------------------------------------------------------------------


def test_the_file_system_of_a_path_that_does_not_exist_yet_is_its_parents(tmp_path: Path) -> None:
    found = file_system_of(tmp_path / "a" / "b" / "c.safetensors")
    assert found.path == tmp_path
    assert found.device == tmp_path.stat().st_dev
    assert found.total_bytes > 0
    assert 0 <= found.free_bytes <= found.total_bytes


def test_a_file_is_on_the_file_system_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert file_system_of(tmp_path / "file").path == tmp_path
    assert file_system_of(tmp_path / "file" / "below").path == tmp_path


@pytest.mark.skipif(sys.platform == "darwin", reason="it does not say")
def test_a_file_system_says_what_it_is(tmp_path: Path) -> None:
    assert kind_of_file_system(file_system_of(tmp_path / "new")) in {
        "ext4",
        "xfs",
        "btrfs",
        "tmpfs",
        "overlay",
        "zfs",
        "NTFS",
        "ReFS",
    }


def test_a_file_system_is_known_by_its_device_number() -> None:
    text = (
        "25 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n"
        "99 25 8:17 / /media/My\\040stick rw,nosuid shared:9 - vfat /dev/sdb1 rw,utf8\n"
        "a line of another form\n"
    )
    assert [kind_in_mountinfo(text, device) for device in ("259:1", "8:17", "8:1")] == ["ext4", "vfat", None]


@POSIX
def test_a_link_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert file_system_of(tmp_path / "link" / "models").path == tmp_path / "link"


@POSIX
def test_a_link_that_leads_nowhere_is_not_taken_for_its_parent(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("/mnt/drive-that-is-not-attached")
    with pytest.raises(StorageError, match="leads nowhere") as caught:
        file_system_of(tmp_path / "models" / "vae")
    assert caught.value.hint is not None


def test_a_name_no_system_can_have_is_an_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be looked at"):
        file_system_of(tmp_path / "nul\0character")


@pytest.mark.parametrize("home", ["/home/x", "", "x", None])
@pytest.mark.parametrize("state", ["/srv/state", "", " ", "state", "~/state", None])
def test_the_state_folder_is_where_platformdirs_has_it(
    home: str | None, state: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", home), ("XDG_STATE_HOME", state), ("LOCALAPPDATA", None)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert state_folder() == platformdirs.user_state_path("klein-setup", appauthor=False)


def test_own_folders_are_named_for_the_program() -> None:
    assert state_folder().name == "klein-setup" or "klein-setup" in state_folder().parts
    assert "klein-setup" in data_folder().parts
    assert state_folder().is_absolute()


# --- ComfyUI trees -----------------------------------------------------------------------------

HOME = Path("/home/someone")
CWD = Path("/work/here")


def test_the_current_directory_is_the_first_place_and_the_home_folder_the_next() -> None:
    places = usual_comfyui_trees(HOME, {}, "linux", cwd=CWD)
    assert places[:4] == (CWD, HOME / "ComfyUI", HOME / "comfy/ComfyUI", HOME / "Documents/ComfyUI")
    assert {Path("/workspace/ComfyUI"), Path("/opt/ComfyUI")} <= set(places)


def test_windows_says_where_documents_are_and_people_have_more_drives() -> None:
    environ = {"OneDrive": "/home/someone/OneDrive"}
    own = {"Documents": Path("/e/My documents")}
    drives = (Path("/c"), Path("/d"))
    places = usual_comfyui_trees(HOME, environ, "windows", cwd=CWD, drives=drives, own_folders=own)
    wanted = {
        Path("/e/My documents/ComfyUI"),
        HOME / "Documents/ComfyUI",
        HOME / "OneDrive/Documents/ComfyUI",
        Path("/d/ComfyUI"),
    }
    assert wanted <= set(places)
    assert Path("/opt/ComfyUI") not in places


def test_archives_are_unpacked_where_they_were_fetched_to() -> None:
    own = {"Downloads": Path("/e/Downloads")}
    places = where_archives_are_unpacked(HOME, {"OneDrive": "/o"}, drives=(Path("/d"),), own_folders=own)
    assert set(places) == {
        HOME,
        *(HOME / name for name in ("Desktop", "Downloads", "Documents")),
        *(Path("/o") / name for name in ("Desktop", "Downloads", "Documents")),
        Path("/e/Downloads"),
        Path("/d"),
    }


@pytest.mark.parametrize(
    "folder",
    ["ComfyUI_windows_portable", "ComfyUI_windows_portable_nvidia_cu126/ComfyUI_windows_portable"],
)
def test_a_portable_build_is_found_under_the_name_of_its_archive(tmp_path: Path, folder: str) -> None:
    inner = tmp_path / folder / "ComfyUI"
    inner.mkdir(parents=True)
    assert inner in portable_builds((tmp_path / "none", tmp_path, tmp_path))
    assert portable_builds(()) == ()


def test_batch_files_are_read_and_records_have_a_largest_size(tmp_path: Path) -> None:
    (tmp_path / "RUN.BAT").write_bytes(b"python ComfyUI\\main.py --lowvram \xff")
    (tmp_path / "update.bat").write_text("git pull", encoding="utf-8")
    (tmp_path / "folder.bat").mkdir()
    (tmp_path / "huge.bat").write_bytes(b"python main.py" + b" " * 70_000)
    assert [(each.name, each.flags[0]) for each in batch_files_of(tmp_path)] == [("RUN.BAT", "--lowvram")]
    assert batch_files_of(tmp_path / "none") == ()
    assert read_record(tmp_path / "RUN.BAT") is not None
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "none") is None


def test_the_registry_is_a_matter_of_windows() -> None:
    folders = own_folders_on_windows()
    assert set(folders) == ({"Documents", "Desktop", "Downloads"} if sys.platform == "win32" else set())
    assert all(each.is_absolute() for each in folders.values())
    assert isinstance(installed_on_windows(), tuple)


def test_no_place_is_named_twice() -> None:
    places = usual_comfyui_trees(HOME, {}, "linux", cwd=HOME / "ComfyUI")
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (("main.py", "models/"), True),
        (("models/", "custom_nodes/"), True),  # the Desktop program's folder
        (("models/",), False),
        (("main.py",), False),
        (("main.py", "models"), False),  # a file of that name
        ((), False),
    ],
)
def test_a_tree_is_known_by_what_is_in_it(tmp_path: Path, content: tuple[str, ...], expected: bool) -> None:
    for name in content:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).touch()
    assert looks_like_comfyui(tmp_path) is expected


@POSIX
def test_a_tree_with_two_names_is_found_once(tmp_path: Path) -> None:
    (tmp_path / "real" / "models").mkdir(parents=True)
    (tmp_path / "real" / "main.py").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    places = (tmp_path / "none", tmp_path / "link", tmp_path / "real")
    assert existing_comfyui_trees(places) == (tmp_path / "link",)


def test_drives_are_a_matter_of_windows() -> None:
    assert bool(drive_roots()) == (sys.platform == "win32")
