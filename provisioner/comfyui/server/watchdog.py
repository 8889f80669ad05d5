"""Ties a server of ours to the life of klein-setup: killed outright, it can end nothing itself any more.

On Windows the server is put into a job object that ends with its last handle, which only klein-setup has.  Elsewhere a
small process (`watchdog_script`) reads a pipe whose other end only klein-setup holds, and ends the server at its end.
Refuses to be a reason why there is no picture: where neither can be had, the server runs untied.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil

_SCRIPT = Path(__file__).with_name("watchdog_script.py")
_PATIENCE_S = 2.0  # for a process that was killed to be gone

_JOB_OBJECT_EXTENDED_LIMIT_INFORMATION = 9  # winnt.h, as are the names below
_JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE = 0x2000
_PROCESS_TERMINATE = 0x0001
_PROCESS_SET_QUOTA = 0x0100


class Watchdog(Protocol):
    """What ends a server when this process is gone."""

    def release(self) -> None:
        """Let go of a server that has ended.  Safe to call twice."""


def tie(
    pid: int,
    *,
    platform: str = sys.platform,
    watch: Callable[[int], Watchdog] | None = None,
    hold: Callable[[int], Watchdog] | None = None,
) -> Watchdog | None:
    """Make a process end, with all it started, when this one does; return at once.

    Parameters
    ----------
    pid : int
        A child of ours that nobody has waited for, so that its number is its own; on POSIX the leader of its group.
    platform : str
        As ``sys.platform`` says it.
    watch, hold : callable, optional
        Start the watcher; put into a job object.

    Returns
    -------
    Watchdog or None
        To be released when the process has ended; None where the system refused.
    """
    begin = (hold or Run) if platform == "win32" else (watch or Watcher)
    try:
        return begin(pid)
    except OSError:
        return None


class Watcher:
    """A process that ends the server at the end of its standard input.

    It is let go of by killing it: there is no message that could be half said, and none to wait for.  The pipe is made
    after the server was started and is inherited by nobody (PEP 446), so its end is the end of this process.
    """

    def __init__(self, pid: int) -> None:
        self._process = subprocess.Popen(
            # -I and -S: no settings of a person, no .pth files; it is ready after 0.06 s, psutil included.
            [sys.executable or "", "-I", "-S", _SCRIPT, str(pid), Path(psutil.__file__).parents[1]],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=_SCRIPT.anchor,  # keeps no folder or drive busy
            start_new_session=True,  # what ends our group or our terminal does not end it
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def release(self) -> None:
        """Kill the watcher and wait for it: about a millisecond."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_PATIENCE_S)
        if self._process.stdin is not None:
            self._process.stdin.close()


# --- Windows ---------------------------------------------------------------------------------------


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION of winnt.h; the widths are said, since ctypes' own differ by platform."""

    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION of winnt.h: 144 bytes on 64-bit Windows."""

    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


class Kernel(Protocol):
    """What is used of kernel32.dll; each answers 0 or None where it failed."""

    def CreateJobObjectW(self, attributes: None, name: None) -> int | None:
        """Return the handle of a new job, which no child inherits."""

    def SetInformationJobObject(self, run: int, kind: int, limits: object, size: int) -> int:
        """Set limits."""

    def OpenProcess(self, access: int, inherits: int, pid: int) -> int | None:
        """Return a handle."""

    def AssignProcessToJobObject(self, run: int, process: int) -> int:
        """Put a process, and whatever it starts from now on, into a job."""

    def CloseHandle(self, handle: int) -> int:
        """Close a handle; a job's last one ends what is in the job."""


class Run:
    """A job object that ends what is in it when its only handle is closed, which the system does for a killed process.

    Jobs nest since Windows 8, so that a terminal's or a CI runner's own job is no obstacle, and neither is that of the
    launcher in a virtual environment.

    Raises
    ------
    OSError
        The system refused.
    """

    def __init__(self, pid: int, kernel: Kernel | None = None) -> None:
        self._kernel: Kernel = _kernel32() if kernel is None else kernel
        self._handle = self._kernel.CreateJobObjectW(None, None)
        if not self._handle:
            raise OSError("no job object can be made")
        try:
            self._set_limit(self._handle)
            self._take_in(self._handle, pid)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Close the job, which ends what is still in it."""
        if self._handle:
            self._kernel.CloseHandle(self._handle)
        self._handle = None

    def _set_limit(self, run: int) -> None:
        limits = ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = _JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
        size = ctypes.sizeof(limits)
        kind = _JOB_OBJECT_EXTENDED_LIMIT_INFORMATION
        if not self._kernel.SetInformationJobObject(run, kind, ctypes.byref(limits), size):
            raise OSError("the job object takes no limit")

    def _take_in(self, run: int, pid: int) -> None:
        process = self._kernel.OpenProcess(_PROCESS_SET_QUOTA | _PROCESS_TERMINATE, 0, pid)
        if not process:
            raise OSError(f"process {pid} cannot be opened")
        try:
            if not self._kernel.AssignProcessToJobObject(run, process):
                raise OSError(f"process {pid} cannot be put into a job object")
        finally:
            self._kernel.CloseHandle(process)


def _kernel32() -> Kernel:
    """Return kernel32 with handles declared as wide as pointers, which ctypes would cut to 32 bits."""
    if sys.platform != "win32":
        raise OSError("only Windows has job objects")
    handle, dword, boolean = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int
    kernel: Any = ctypes.WinDLL("kernel32")
    for name, result, *arguments in (
        ("CreateJobObjectW", handle, ctypes.c_void_p, ctypes.c_wchar_p),
        ("SetInformationJobObject", boolean, handle, boolean, ctypes.c_void_p, dword),
        ("OpenProcess", handle, dword, boolean, dword),
        ("AssignProcessToJobObject", boolean, handle, handle),
        ("CloseHandle", boolean, handle),
    ):
        function = getattr(kernel, name)
        function.restype, function.argtypes = result, arguments
    found: Kernel = kernel
    return found
