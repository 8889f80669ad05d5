"""How much memory there is: on this computer, in control groups of both versions, on described computers."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from provisioner.core.models import OperatingSystem
from provisioner.machine.memory_limits import GroupLimit, group_limit, read_memory
from provisioner.machine.readings import MemoryReading

MIB = 1024**2
GIB = 1024**3
V1 = "sys/fs/cgroup/memory"
UNLIMITED_V1 = "9223372036854771712"


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def reading_of(root: Path, system: OperatingSystem = "linux", ram: int = 64 * GIB, **more: object) -> MemoryReading:
    asked = {"ram": lambda: (ram, ram // 2), "swap": lambda: (5 * GIB, 4 * GIB), "locked": lambda: None, **more}
    return read_memory(root, system, **asked)  # type: ignore[arg-type]


def test_this_computer_says_what_psutil_says() -> None:
    system: OperatingSystem = {"win32": "windows", "darwin": "macos"}.get(sys.platform, "linux")  # type: ignore[assignment]
    reading = read_memory(Path("/"), system)
    assert (reading.physical_bytes or reading.total_bytes) == psutil.virtual_memory().total
    assert reading.swap_total_bytes is not None
    assert reading.probe is not None
    assert reading.probe.is_ok


# --- control groups --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, GroupLimit()),
        ({"sys/fs/cgroup/memory.max": "2147483648\n"}, GroupLimit(memory_bytes=2 * GIB)),
        ({"sys/fs/cgroup/memory.max": "max\n"}, GroupLimit()),
        ({"sys/fs/cgroup/memory.max": ""}, GroupLimit()),
        ({f"{V1}/memory.limit_in_bytes": "4294967296\n"}, GroupLimit(memory_bytes=4 * GIB)),
        (  # a container: what it read from files is given back when it is needed
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
                "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
                "sys/fs/cgroup/memory.swap.max": "0\n",
            },
            GroupLimit(memory_bytes=8 * GIB, available_bytes=7 * GIB, swap_bytes=0),
        ),
        (  # a service of systemd: the limit stands at a group above ours
            {
                "proc/self/cgroup": "0::/user.slice/user-1000.slice/app.service\n",
                "sys/fs/cgroup/user.slice/memory.max": f"{6 * GIB}\n",
                "sys/fs/cgroup/user.slice/user-1000.slice/memory.max": "max\n",
                "sys/fs/cgroup/user.slice/user-1000.slice/app.service/memory.max": f"{9 * GIB}\n",
                "sys/fs/cgroup/user.slice/user-1000.slice/app.service/memory.current": f"{8 * GIB}\n",
            },
            GroupLimit(memory_bytes=6 * GIB, available_bytes=GIB),
        ),
        (  # a path that only the computer has
            {"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/memory.max": f"{8 * GIB}\n"},
            GroupLimit(memory_bytes=8 * GIB),
        ),
        (  # and one that leads out
            {"proc/self/cgroup": "0::/../../memory\n", "memory/memory.max": "1\n"},
            GroupLimit(),
        ),
        (
            {
                "proc/self/cgroup": "12:cpu,cpuacct:/a\n7:memory:/docker/0123\n0::/system\n",
                f"{V1}/docker/0123/memory.limit_in_bytes": f"{8 * GIB}\n",
                f"{V1}/docker/0123/memory.usage_in_bytes": f"{9 * GIB}\n",
                f"{V1}/docker/0123/memory.memsw.limit_in_bytes": f"{10 * GIB}\n",
                f"{V1}/docker/0123/memory.stat": "total_inactive_file x\n",
                f"{V1}/memory.limit_in_bytes": f"{UNLIMITED_V1}\n",
            },
            GroupLimit(memory_bytes=8 * GIB, available_bytes=0, swap_bytes=2 * GIB),
        ),
    ],
)
def test_the_limits_of_a_group_and_of_those_above_it(
    tmp_path: Path, files: dict[str, str], expected: GroupLimit
) -> None:
    assert group_limit(written(tmp_path, files)) == expected


def test_a_container_of_8_gib_on_a_computer_of_64(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory.max": str(8 * GIB),
        "sys/fs/cgroup/memory.current": str(GIB),
        "sys/fs/cgroup/memory.swap.max": str(GIB),
        "proc/meminfo": "MemTotal: 1 kB\nSwapTotal:  8388604 kB\nSwapFree:   4194304 kB\nHugePages_Total: 0\n",
    }
    reading = reading_of(written(tmp_path, files))
    assert (reading.total_bytes, reading.available_bytes, reading.physical_bytes) == (8 * GIB, 7 * GIB, 64 * GIB)
    assert (reading.swap_total_bytes, reading.swap_free_bytes) == (GIB, GIB)
    assert reading.probe is not None
    assert reading.probe.detail == f"{8 * GIB} bytes, the limit of this container; the computer has {64 * GIB}"


def test_a_limit_above_the_memory_is_none(tmp_path: Path) -> None:
    files = {f"{V1}/memory.limit_in_bytes": UNLIMITED_V1, f"{V1}/memory.usage_in_bytes": "4096"}
    reading = reading_of(written(tmp_path, files))
    assert (reading.total_bytes, reading.available_bytes, reading.physical_bytes) == (64 * GIB, 32 * GIB, None)


# --- swap, page file, locked memory ------------------------------------------------------------------


def test_linux_says_its_swap_in_meminfo_and_off_is_zero(tmp_path: Path) -> None:
    off = reading_of(written(tmp_path, {"proc/meminfo": "SwapTotal: 0 kB\nSwapFree: 0 kB\n"}))
    assert (off.swap_total_bytes, off.swap_free_bytes) == (0, 0)
    unknown = reading_of(written(tmp_path, {"proc/meminfo": "SwapTotal: much kB\n"}))
    assert (unknown.swap_total_bytes, unknown.swap_free_bytes) == (None, None)


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_elsewhere_psutil_is_asked_which_may_fail(tmp_path: Path, system: OperatingSystem) -> None:
    def refuses() -> tuple[int, int]:
        raise RuntimeError("GlobalMemoryStatusEx")

    assert reading_of(tmp_path, system).swap_total_bytes == 5 * GIB
    reading = reading_of(tmp_path, system, swap=refuses)
    assert (reading.total_bytes, reading.swap_total_bytes) == (64 * GIB, None)
    failed = read_memory(tmp_path, system, ram=refuses, swap=refuses, locked=lambda: None)
    assert (failed.total_bytes, failed.probe and failed.probe.is_ok) == (None, False)
    assert "GlobalMemoryStatusEx" in str(failed.probe)


def test_the_limit_of_locked_memory_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    for soft, expected in ((8 * MIB, 8 * MIB), (resource.RLIM_INFINITY, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert read_memory(tmp_path, "linux", ram=lambda: (GIB, GIB)).locked_limit_bytes == expected
