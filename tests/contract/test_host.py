"""System, file systems, programs and ComfyUI trees, on this computer and on described ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from provisioner.adapters.host import (
    LocalHost,
    container_memory_limit,
    data_folder,
    drive_roots,
    existing_comfyui_trees,
    file_system_of,
    find_program,
    looks_like_comfyui,
    nvidia_smi_candidates,
    state_folder,
    usual_comfyui_trees,
)
from provisioner.errors import StorageError, UnreadableError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")


# --- the machine -------------------------------------------------------------------------------


def test_this_computer_describes_itself() -> None:
    reading = LocalHost().read()
    assert reading.python_version == ".".join(map(str, sys.version_info[:3]))
    assert reading.os in ("linux", "windows", "macos")
    assert reading.os_release
    assert reading.memory_total_bytes is not None
    assert reading.memory_total_bytes > 2**28
    assert reading.memory_available_bytes is not None
    assert [probe.is_ok for probe in reading.probes if probe.source == "ram"] == [True]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (
            LocalHost(environ={}, platform="linux", release="6.1.0", machine="x86_64", libc_name="glibc 2.36"),
            ("linux", "6.1.0", False, "x86_64", "glibc 2.36"),
        ),
        (
            LocalHost(
                environ={}, platform="linux", release="5.15-microsoft-standard-WSL2", machine="aarch64", libc_name="x"
            ),
            ("linux", "5.15-microsoft-standard-WSL2", True, "aarch64", "x"),
        ),
        (
            LocalHost(
                environ={"WSL_DISTRO_NAME": "x"}, platform="win32", release="11", machine="amd64", libc_name=None
            ),
            ("windows", "11", False, "x86_64", None),
        ),
        (
            LocalHost(environ={}, platform="darwin", release="14.5", machine="arm64", libc_name=None),
            ("macos", "14.5", False, "arm64", None),
        ),
        (
            LocalHost(
                environ={}, platform="linux", release="6", machine="armv8l", pointer_bits=32, libc_name="glibc 2.36"
            ),
            ("linux", "6", False, "arm", "glibc 2.36"),
        ),
    ],
)
def test_other_computers_are_described_in_our_words(host: LocalHost, expected: tuple[object, ...]) -> None:
    reading = host.read()
    assert (reading.os, reading.os_release, reading.is_wsl, reading.architecture, reading.libc) == expected


def test_musl_is_known_by_its_loader(tmp_path: Path) -> None:
    host = LocalHost(platform="linux", libc_name=None, root=tmp_path)
    assert host.read().libc is None
    assert [probe.is_ok for probe in host.read().probes if probe.source == "libc"] == [False]
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "ld-musl-x86_64.so.1").touch()
    assert host.read().libc == "musl"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("sys/fs/cgroup/memory.max", "2147483648\n", 2**31),
        ("sys/fs/cgroup/memory.max", "max\n", None),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4294967296\n", 2**32),
        ("sys/fs/cgroup/memory.max", "", None),
    ],
)
def test_a_containers_memory_limit_is_read(tmp_path: Path, file: str, text: str, expected: int | None) -> None:
    assert container_memory_limit(tmp_path) is None
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert container_memory_limit(tmp_path) == expected


def test_a_container_has_the_memory_it_may_use(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1048576\n")
    reading = LocalHost(root=tmp_path).read()
    assert reading.memory_total_bytes == 2**20
    assert reading.memory_available_bytes is not None
    assert reading.memory_available_bytes <= 2**20
    assert any("limit of this container" in probe.detail for probe in reading.probes)


def test_the_kernels_driver_files_are_read_where_they_are(tmp_path: Path) -> None:
    host = LocalHost(root=tmp_path)
    assert host.kernel_driver_files() == ()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: x 580.95.05\n")
    assert host.kernel_driver_files() == (("/proc/driver/nvidia/version", "NVRM version: x 580.95.05\n"),)


def test_a_text_is_read_within_bounds(tmp_path: Path) -> None:
    host = LocalHost()
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf{}\xff")
    assert host.read_text(tmp_path / "text") == "{}\ufffd"
    (tmp_path / "huge").write_bytes(b" " * (4 * 2**20 + 1))
    for name in ("huge", "missing", "."):
        with pytest.raises(UnreadableError):
            host.read_text(tmp_path / name)


# --- programs ----------------------------------------------------------------------------------


def make_program(folder: Path, name: str = "nvidia-smi") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_a_program_is_found_by_absolute_path(tmp_path: Path) -> None:
    program = make_program(tmp_path / "bin", "git.exe" if sys.platform == "win32" else "git")
    environ = {"PATH": os.pathsep.join([str(tmp_path / "empty"), str(tmp_path / "bin")])}
    assert find_program("git", environ, cwd=tmp_path, is_windows=sys.platform == "win32") == program


def test_a_program_in_the_current_directory_is_never_found(tmp_path: Path) -> None:
    make_program(tmp_path, "git.exe" if sys.platform == "win32" else "git")
    environ = {"PATH": os.pathsep.join(["", ".", str(tmp_path)])}
    assert find_program("git", environ, cwd=tmp_path, is_windows=sys.platform == "win32") is None


@POSIX
def test_a_file_that_may_not_be_executed_is_no_program(tmp_path: Path) -> None:
    make_program(tmp_path / "bin").chmod(0o644)
    assert find_program("nvidia-smi", {"PATH": str(tmp_path / "bin")}, cwd=tmp_path, is_windows=False) is None


@POSIX
def test_on_windows_only_an_exe_is_a_program(tmp_path: Path) -> None:
    make_program(tmp_path / "bin", "git.bat")
    make_program(tmp_path / "bin", "git.cmd")
    environ = {"PATH": str(tmp_path / "bin")}
    assert find_program("git", environ, cwd=tmp_path, is_windows=True) is None
    exe = make_program(tmp_path / "bin", "git.exe")
    assert find_program("git", environ, cwd=tmp_path, is_windows=True) == exe
    assert find_program("git.exe", environ, cwd=tmp_path, is_windows=True) == exe


def test_nothing_is_found_without_a_path(tmp_path: Path) -> None:
    assert find_program("git", {}, cwd=tmp_path, is_windows=False) is None


@POSIX
def test_nvidia_smi_is_looked_for_where_drivers_put_it_and_then_on_the_path(tmp_path: Path) -> None:
    elsewhere = make_program(tmp_path / "usr/local/nvidia/bin")
    host = LocalHost(platform="linux", root=tmp_path, environ={"PATH": str(elsewhere.parent)})
    assert host.nvidia_smi_paths() == (elsewhere,)
    wsl = make_program(tmp_path / "usr/lib/wsl/lib")
    usual = make_program(tmp_path / "usr/bin")
    assert host.nvidia_smi_paths() == (usual, wsl, elsewhere)


def test_nvidia_smi_on_windows_is_named_by_the_systems_folders() -> None:
    environ = {"SystemRoot": "D:/Windows", "ProgramFiles": "D:/Programs"}
    assert nvidia_smi_candidates("windows", environ) == (
        Path("D:/Windows/System32/nvidia-smi.exe"),
        Path("D:/Programs/NVIDIA Corporation/NVSMI/nvidia-smi.exe"),
    )
    assert nvidia_smi_candidates("macos", {}) == ()


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
    assert HOME / ".config/StabilityMatrix/Packages/ComfyUI" in places


def test_windows_has_portable_builds_on_every_drive_and_onedrive() -> None:
    environ = {"OneDrive": "/home/someone/OneDrive", "APPDATA": "/home/someone/Roaming"}
    places = usual_comfyui_trees(HOME, environ, "windows", cwd=CWD, drives=(Path("/c"), Path("/d")))
    wanted = {
        HOME / "OneDrive/Documents/ComfyUI",
        HOME / "Downloads/ComfyUI_windows_portable/ComfyUI",
        HOME / "Desktop/ComfyUI_windows_portable/ComfyUI",
        Path("/d/ComfyUI_windows_portable/ComfyUI"),
        Path("/d/ComfyUI"),
        HOME / "Roaming/StabilityMatrix/Packages/ComfyUI",
        Path("/d/StabilityMatrix/Data/Packages/ComfyUI"),
    }
    assert wanted <= set(places)
    assert Path("/opt/ComfyUI") not in places


def test_macos_keeps_stability_matrix_in_application_support() -> None:
    places = usual_comfyui_trees(HOME, {}, "macos", cwd=CWD)
    assert HOME / "Library/Application Support/StabilityMatrix/Packages/ComfyUI" in places


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
