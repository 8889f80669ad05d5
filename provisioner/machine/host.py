"""Read the computer around the GPU: system, Python, RAM, file systems and programs.

Everything comes from a system call, a file or the interpreter itself; no program is started.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provisioner.core.errors import UnreadableError
from provisioner.core.models import FileSystem, OperatingSystem, ProbeResult
from provisioner.disk.programs import find_on_path
from provisioner.machine.memory_limits import read_memory
from provisioner.machine.readings import (
    HostReading,
    is_wsl_kernel,
    normal_architecture,
    operating_system_named,
    parse_distribution,
    windows_release,
)

_KERNEL_DRIVER_FILES = ("sys/module/nvidia/version", "proc/driver/nvidia/version")
_DISTRIBUTION_FILES = ("etc/os-release", "usr/lib/os-release")
_TEXT_LIMIT = 4 * 1024 * 1024


# --- the machine -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalHost:
    """This computer; the fields allow tests to describe another one."""

    file_system_of: Callable[[Path], FileSystem]
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    platform: str = sys.platform
    release: str = field(default_factory=lambda: _release())
    machine: str = field(default_factory=lambda: _machine())
    pointer_bits: int = 64 if sys.maxsize > 2**32 else 32
    libc_name: str | None = field(default_factory=lambda: _libc_name())  # name of the C library
    root: Path = Path("/")

    def read(self) -> HostReading:
        """Return the system, its Python and RAM; what could not be read is a failed probe."""
        system = operating_system_named(self.platform)
        libc = self._libc() if system == "linux" else None
        memory = read_memory(self.root, system)
        probes: list[ProbeResult] = []
        if system == "linux" and libc is None:
            probes.append(ProbeResult(source="libc", is_ok=False, detail="neither glibc nor musl was recognised"))
        return HostReading(
            os=system,
            os_release=self.release,
            is_wsl=system == "linux" and is_wsl_kernel(self.release, self.environ),
            architecture=normal_architecture(self.machine, system, pointer_bits=self.pointer_bits),
            libc=libc,
            python_version=running_python(),
            distribution=self._distribution() if system == "linux" else None,
            memory=memory,
            probes=tuple(probes),
        )

    def _libc(self) -> str | None:
        if self.libc_name:
            return self.libc_name
        return "musl" if any(self.root.glob("lib/ld-musl-*.so.1")) else None

    def _distribution(self) -> str | None:
        for relative in _DISTRIBUTION_FILES:
            try:
                return parse_distribution(self.read_text(self.root / relative))
            except UnreadableError:
                continue
        return None

    def read_text(self, path: Path) -> str:
        """Return the text of a small file; raises UnreadableError."""
        try:
            with path.open("rb") as file:
                data = file.read(_TEXT_LIMIT + 1)
        except OSError as error:
            raise UnreadableError(f"{path} cannot be read: {error.strerror or error}", path=str(path)) from error
        if len(data) > _TEXT_LIMIT:
            raise UnreadableError(f"{path} is larger than {_TEXT_LIMIT} bytes", path=str(path))
        return data.decode("utf-8-sig", "replace")

    def kernel_driver_files(self) -> tuple[tuple[str, str], ...]:
        """Return the paths and texts of the Linux kernel's files that name the NVIDIA driver, where they exist."""
        found = []
        for relative in _KERNEL_DRIVER_FILES:
            try:
                found.append((f"/{relative}", self.read_text(self.root / relative)))
            except UnreadableError:
                continue  # module not loaded, or not Linux: no finding by itself
        return tuple(found)

    def nvidia_smi_paths(self) -> tuple[Path, ...]:
        """Return the absolute paths of nvidia-smi, likeliest first."""
        fixed = nvidia_smi_candidates(operating_system_named(self.platform), self.environ, self.root)
        found = [path for path in fixed if path.is_file()]
        on_path = self.find_on_path("nvidia-smi")
        return tuple(dict.fromkeys([*found, *([on_path] if on_path else [])]))

    def find_on_path(self, name: str) -> Path | None:
        """Return the absolute path of a program on ``PATH``, never one in the current directory; else None."""
        return find_on_path(name, self.environ, cwd=Path.cwd(), is_windows=self.platform == "win32")


def running_python() -> str:
    """Return the version of the running Python, ``"3.14.1t"`` for a free-threaded build."""
    letter = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return ".".join(map(str, sys.version_info[:3])) + letter


def _release() -> str:
    if sys.platform == "win32":
        version = sys.getwindowsversion()  # platform.release() may ask WMI, which is slow
        return windows_release(version.major, version.build)
    if sys.platform == "darwin":
        import platform

        return platform.mac_ver()[0] or os.uname().release
    return os.uname().release


def _machine() -> str:
    if sys.platform == "win32":
        # The interpreter's own platform: an x86-64 Python on an ARM computer gets x86-64 wheels.
        return sysconfig.get_platform().removeprefix("win-")
    return os.uname().machine


def _libc_name() -> str | None:
    if sys.platform == "win32":
        return None
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")  # "glibc 2.36"
    except (ValueError, OSError):  # musl and macOS do not have this value
        return None


# --- programs ----------------------------------------------------------------------------------


def nvidia_smi_candidates(
    system: OperatingSystem, environ: Mapping[str, str], root: Path = Path("/")
) -> tuple[Path, ...]:
    """Return where the driver installs nvidia-smi, likeliest first."""
    if system == "windows":
        windows = Path(environ.get("SystemRoot") or r"C:\Windows")
        programs = Path(environ.get("ProgramFiles") or r"C:\Program Files")
        return windows / "System32" / "nvidia-smi.exe", programs / "NVIDIA Corporation" / "NVSMI" / "nvidia-smi.exe"
    if system == "linux":
        return tuple(root / folder / "nvidia-smi" for folder in ("usr/bin", "usr/local/bin", "usr/lib/wsl/lib"))
    return ()
