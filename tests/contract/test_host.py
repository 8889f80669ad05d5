"""The system and its programs, on this computer and on described ones."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from provisioner.core.errors import UnreadableError
from provisioner.disk.locations import file_system_of
from provisioner.disk.programs import find_on_path
from provisioner.machine.host import LocalHost, nvidia_smi_candidates, running_python

local_host = partial(LocalHost, file_system_of=file_system_of)

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")


# --- the machine -------------------------------------------------------------------------------


def test_this_computer_describes_itself() -> None:
    reading = local_host().read()
    assert reading.python_version == ".".join(map(str, sys.version_info[:3]))
    assert reading.os in ("linux", "windows", "macos")
    assert reading.os_release
    assert reading.memory.total_bytes is not None
    assert reading.memory.total_bytes > 2**28
    assert reading.memory.available_bytes is not None
    assert reading.memory.swap_total_bytes is not None
    assert reading.memory.probe is not None
    assert reading.memory.probe.is_ok


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (
            local_host(
                environ={},
                platform="linux",
                release="6.1.0",
                machine="x86_64",
                libc_name="glibc 2.36",
            ),
            ("linux", "6.1.0", False, "x86_64", "glibc 2.36"),
        ),
        (
            local_host(
                environ={},
                platform="linux",
                release="5.15-microsoft-standard-WSL2",
                machine="aarch64",
                libc_name="x",
            ),
            ("linux", "5.15-microsoft-standard-WSL2", True, "aarch64", "x"),
        ),
        (
            local_host(
                environ={"WSL_DISTRO_NAME": "x"},
                platform="win32",
                release="11",
                machine="amd64",
                libc_name=None,
            ),
            ("windows", "11", False, "x86_64", None),
        ),
        (
            local_host(
                environ={},
                platform="darwin",
                release="14.5",
                machine="arm64",
                libc_name=None,
            ),
            ("macos", "14.5", False, "arm64", None),
        ),
        (
            local_host(
                environ={},
                platform="linux",
                release="6",
                machine="armv8l",
                pointer_bits=32,
                libc_name="glibc 2.36",
            ),
            ("linux", "6", False, "arm", "glibc 2.36"),
        ),
    ],
)
def test_other_computers_are_described_with_our_names(host: LocalHost, expected: tuple[object, ...]) -> None:
    reading = host.read()
    assert (reading.os, reading.os_release, reading.is_wsl, reading.architecture, reading.libc) == expected


def test_musl_is_known_by_its_loader(tmp_path: Path) -> None:
    host = local_host(platform="linux", libc_name=None, root=tmp_path)
    assert host.read().libc is None
    assert [probe.is_ok for probe in host.read().probes if probe.source == "libc"] == [False]
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "ld-musl-x86_64.so.1").touch()
    assert host.read().libc == "musl"


def test_a_container_has_the_memory_it_may_use(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1048576\n")
    reading = local_host(root=tmp_path).read()
    assert reading.memory.total_bytes == 2**20
    assert reading.memory.available_bytes is not None
    assert reading.memory.available_bytes <= 2**20
    assert reading.memory.probe is not None
    assert "limit of this container" in reading.memory.probe.detail


def test_the_kernels_driver_files_are_read_where_they_are(tmp_path: Path) -> None:
    host = local_host(root=tmp_path)
    assert host.kernel_driver_files() == ()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_bytes(b"NVRM version: x 580.95.05\n")
    assert host.kernel_driver_files() == (("/proc/driver/nvidia/version", "NVRM version: x 580.95.05\n"),)


def test_a_text_is_read_within_bounds(tmp_path: Path) -> None:
    host = local_host()
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf{}\xff")
    assert host.read_text(tmp_path / "text") == "{}\ufffd"
    (tmp_path / "huge").write_bytes(b" " * (4 * 2**20 + 1))
    for name in ("huge", "missing", "."):
        with pytest.raises(UnreadableError):
            host.read_text(tmp_path / name)


# --- programs ----------------------------------------------------------------------------------


def make_program(folder: Path, name: str = "nvidia-smi") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    comfyui = folder / name
    comfyui.write_text("#!/bin/sh\n")
    comfyui.chmod(0o755)
    return comfyui


def test_a_program_is_found_by_absolute_path(tmp_path: Path) -> None:
    comfyui = make_program(tmp_path / "bin", "git.exe" if sys.platform == "win32" else "git")
    environ = {"PATH": os.pathsep.join([str(tmp_path / "empty"), str(tmp_path / "bin")])}
    assert find_on_path("git", environ, cwd=tmp_path, is_windows=sys.platform == "win32") == comfyui


def test_a_program_in_the_current_directory_is_never_found(tmp_path: Path) -> None:
    make_program(tmp_path, "git.exe" if sys.platform == "win32" else "git")
    environ = {"PATH": os.pathsep.join(["", ".", str(tmp_path)])}
    assert find_on_path("git", environ, cwd=tmp_path, is_windows=sys.platform == "win32") is None


@POSIX
def test_a_file_that_may_not_be_executed_is_no_program(tmp_path: Path) -> None:
    make_program(tmp_path / "bin").chmod(0o644)
    assert find_on_path("nvidia-smi", {"PATH": str(tmp_path / "bin")}, cwd=tmp_path, is_windows=False) is None


@POSIX
def test_on_windows_only_an_exe_is_a_program(tmp_path: Path) -> None:
    make_program(tmp_path / "bin", "git.bat")
    make_program(tmp_path / "bin", "git.cmd")
    environ = {"PATH": str(tmp_path / "bin")}
    assert find_on_path("git", environ, cwd=tmp_path, is_windows=True) is None
    exe = make_program(tmp_path / "bin", "git.exe")
    assert find_on_path("git", environ, cwd=tmp_path, is_windows=True) == exe
    assert find_on_path("git.exe", environ, cwd=tmp_path, is_windows=True) == exe


def test_nothing_is_found_without_a_path(tmp_path: Path) -> None:
    assert find_on_path("git", {}, cwd=tmp_path, is_windows=False) is None


@POSIX
def test_nvidia_smi_is_looked_for_where_drivers_put_it_and_then_on_the_path(tmp_path: Path) -> None:
    elsewhere = make_program(tmp_path / "usr/local/nvidia/bin")
    host = local_host(platform="linux", root=tmp_path, environ={"PATH": str(elsewhere.parent)})
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


def test_a_linux_distribution_says_its_name_and_release(tmp_path: Path) -> None:
    host = local_host(platform="linux", root=tmp_path)
    assert host.read().distribution is None
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text('NAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n')
    assert host.read().distribution == "debian 12"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID=ubuntu\nVERSION_ID="24.04"\n')
    assert host.read().distribution == "ubuntu 24.04"
    assert local_host(platform="win32", root=tmp_path).read().distribution is None


def test_a_free_threaded_python_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ".".join(map(str, sys.version_info[:3]))
    for is_disabled, expected in ((None, plain), (0, plain), (1, f"{plain}t")):
        monkeypatch.setattr("sysconfig.get_config_var", {"Py_GIL_DISABLED": is_disabled}.get)
        assert running_python() == expected
