"""Read how much memory there is to use: RAM, swap or page file, limits of control groups, the limit of locked memory.

No program is started.  What a source does not say is unknown, never zero.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.core.models import OperatingSystem, ProbeResult
from provisioner.machine.readings import MemoryReading

_SYSTEM_MEMINFO = "proc/meminfo"
_OWN_GROUPS = "proc/self/cgroup"
_SECOND = "sys/fs/cgroup"  # one tree
_FIRST = "sys/fs/cgroup/memory"  # a tree for each kind of limit
_PAGE_FILES_KEY = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management"
_LONGEST = 64 * 1024  # characters of such a file

RamAndFree = Callable[[], tuple[int, int]]
"""Returns total and available bytes; raises ImportError, OSError, RuntimeError or ValueError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimit:
    """What the control groups that we are in allow together; None: no limit."""

    memory_bytes: int | None = None
    available_bytes: int | None = None  # of that limit
    swap_bytes: int | None = None


def read_memory(
    root: Path,
    system: OperatingSystem,
    *,
    ram: RamAndFree | None = None,
    swap: RamAndFree | None = None,
    locked: Callable[[], int | None] | None = None,
    page_files: Callable[[], Sequence[str]] | None = None,
) -> MemoryReading:
    """Return the memory of this computer, at most what its container may use.

    Parameters
    ----------
    root : Path
        The folder that stands for ``/``.
    system : str
        The operating system.
    ram, swap : callable, optional
        Return total and available bytes of RAM, and of swap or Windows' page file; by default psutil is asked, for
        the page file ``GlobalMemoryStatusEx``: psutil wants performance counters for it, which can be switched off.
        On Linux swap comes from ``/proc/meminfo``.
    locked : callable, optional
        Returns the bytes that a process may lock in RAM, None without a limit; by default ``RLIMIT_MEMLOCK``.
    page_files : callable, optional
        Returns Windows' settings of its page files; by default they come from the registry.
    """
    swap_total, swap_free = _swap(root, system, swap or _system_swap)
    grows: bool | None = system == "macos"
    if system == "windows":
        grows, most = _page_file_setting(page_files or _page_files)
        swap_total = swap_total if swap_total is None or most is None else max(swap_total, most)
    locked_limit = (locked or _locked_limit)()
    try:
        total, available = (ram or _psutil_ram)()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return MemoryReading(probe=ProbeResult(source="ram", is_ok=False, detail=f"not known: {error}"))
    group = group_limit(root)
    if group.swap_bytes is not None and swap_total is not None:
        swap_total = min(swap_total, group.swap_bytes)
        swap_free = None if swap_free is None else min(swap_free, swap_total)
    physical, detail = None, f"{total} bytes"
    if group.memory_bytes is not None and group.memory_bytes < total:
        detail = f"{group.memory_bytes} bytes, the limit of this container; the computer has {total}"
        physical, total = total, group.memory_bytes
        available = min(available, total if group.available_bytes is None else group.available_bytes)
    return MemoryReading(
        total_bytes=total,
        available_bytes=available,
        physical_bytes=physical,
        swap_total_bytes=swap_total,
        swap_free_bytes=swap_free,
        swap_grows=grows,
        locked_limit_bytes=locked_limit,
        probe=ProbeResult(source="ram", is_ok=True, detail=detail),
    )


# --- control groups --------------------------------------------------------------------------------


def group_limit(root: Path = Path("/")) -> GroupLimit:
    """Return the smallest limits of the control group that we are in and of those above it.

    In a container ``/proc/self/cgroup`` may name a path that only the computer has; then the folder that is mounted is
    the container's own, and it is read all the same.
    """
    found = [*_second_version(root), *_first_version(root)]
    return GroupLimit(
        memory_bytes=_smallest(each.memory_bytes for each in found),
        available_bytes=_smallest(each.available_bytes for each in found),
        swap_bytes=_smallest(each.swap_bytes for each in found),
    )


def _second_version(root: Path) -> Iterator[GroupLimit]:
    for folder in _groups(root / _SECOND, _own_path(root, "")):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        yield GroupLimit(
            memory_bytes=limit,
            available_bytes=_left(limit, used, _statistic(folder, "inactive_file")),
            swap_bytes=_number(folder / "memory.swap.max"),
        )


def _first_version(root: Path) -> Iterator[GroupLimit]:
    """Yield the limits of version 1, where the limit of swap includes that of memory."""
    for folder in _groups(root / _FIRST, _own_path(root, "memory")):
        limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
        both = _number(folder / "memory.memsw.limit_in_bytes")
        yield GroupLimit(
            memory_bytes=limit,
            available_bytes=_left(limit, used, _statistic(folder, "total_inactive_file")),
            swap_bytes=None if both is None or limit is None else max(0, both - limit),
        )


def _own_path(root: Path, controller: str) -> tuple[str, ...]:
    """Return the parts of our group's path; a line is ``0::/a/b``, or ``7:memory:/a/b`` in version 1."""
    for line in _text(root / _OWN_GROUPS).splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            return tuple(part for part in path.split("/") if part and part != "..")
    return ()


def _groups(top: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    for number in range(len(parts) + 1):
        yield top.joinpath(*parts[:number])


def _left(limit: int | None, used: int | None, given_back: int | None) -> int | None:
    """Return what is left of a limit; files that were only read count as used, and are given back when needed."""
    if limit is None or used is None:
        return None
    return min(limit, max(0, limit - used + (given_back or 0)))


def _statistic(folder: Path, name: str) -> int | None:
    words = (line.split() for line in _text(folder / "memory.stat").splitlines())
    return next((int(row[1]) for row in words if len(row) == 2 and row[0] == name and row[1].isdigit()), None)


def _smallest(values: Iterator[int | None]) -> int | None:
    return min((each for each in values if each is not None), default=None)


def _number(file: Path) -> int | None:
    """Return the number in a file; "max" means no limit."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        with file.open(encoding="ascii", errors="replace") as opened:
            return opened.read(_LONGEST)
    except (OSError, ValueError):
        return ""


# --- the system ------------------------------------------------------------------------------------


def _swap(root: Path, system: OperatingSystem, ask: RamAndFree) -> tuple[int | None, int | None]:
    """Return total and free bytes of swap; psutil reads more on Linux, and warns where a container hides it."""
    if system == "linux":
        found = dict(_meminfo(root))
        return found.get("SwapTotal"), found.get("SwapFree")
    try:
        return ask()
    except (ImportError, OSError, RuntimeError, ValueError):
        return None, None


def _page_file_setting(ask: Callable[[], Sequence[str]]) -> tuple[bool | None, int | None]:
    try:
        return parse_page_files(ask())
    except OSError:
        return None, None


def parse_page_files(settings: Sequence[str]) -> tuple[bool, int | None]:
    r"""Return whether Windows enlarges its page files as needed, else the bytes up to which they grow.

    The registry has a text for each, with its first and its largest size in MiB where a person set them:
    https://learn.microsoft.com/troubleshoot/windows-client/performance/introduction-to-the-page-file

    >>> parse_page_files([r"?:\pagefile.sys"]), parse_page_files([r"C:\pagefile.sys 0 0"])
    ((True, None), (True, None))
    >>> parse_page_files([r"C:\pagefile.sys 1024 5120", r"D:\page file.sys 16 16"]), parse_page_files([])
    ((False, 5385486336), (False, 0))
    """
    sizes = []
    for each in settings:
        words = each.split()
        largest = words[-1] if len(words) > 2 and words[-1].isdigit() and words[-2].isdigit() else "0"
        sizes.append(int(largest) * 1024**2)
    return (True, None) if 0 in sizes else (False, sum(sizes))


def _page_files() -> Sequence[str]:
    if sys.platform != "win32":
        return ()
    import winreg

    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _PAGE_FILES_KEY) as key:
        found, _ = winreg.QueryValueEx(key, "PagingFiles")
    return [each for each in found if each] if isinstance(found, list) else ()


def _meminfo(root: Path) -> Iterator[tuple[str, int]]:
    """Yield what ``/proc/meminfo`` says, ``SwapTotal:  8388604 kB``, in bytes."""
    for line in _text(root / _SYSTEM_MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            yield name, int(words[0]) * 1024


def _psutil_ram() -> tuple[int, int]:
    import psutil  # takes 30 ms, needed by a full detection only

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _system_swap() -> tuple[int, int]:
    if sys.platform == "win32":
        return _page_file()
    import psutil  # as above

    memory = psutil.swap_memory()
    return int(memory.total), int(memory.free)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h: https://learn.microsoft.com/windows/win32/api/sysinfoapi/ns-sysinfoapi-memorystatusex."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("ram_total", ctypes.c_uint64),
        ("ram_free", ctypes.c_uint64),
        ("commit_total", ctypes.c_uint64),  # RAM and page files together
        ("commit_free", ctypes.c_uint64),
        ("virtual_total", ctypes.c_uint64),
        ("virtual_free", ctypes.c_uint64),
        ("extended_free", ctypes.c_uint64),
    )


def _page_file() -> tuple[int, int]:
    """Return total and free bytes that may be committed beyond RAM; raises OSError."""
    if sys.platform != "win32":
        raise OSError("only Windows has page files")
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError(ctypes.get_last_error())
    total = max(0, status.commit_total - status.ram_total)
    return total, min(total, max(0, status.commit_free - status.ram_free))


def _locked_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft
