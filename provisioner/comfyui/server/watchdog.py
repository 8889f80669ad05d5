"""End a server of ours when klein-setup is killed and cannot end it itself.

On Windows the server is put into a job object that ends with its last handle, which only klein-setup has.  Elsewhere a
small process (`watchdog_script`) reads a pipe whose other end only klein-setup holds, and ends the server at its end.
Never makes a run fail: where neither is possible, the server runs without a watchdog.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil

from provisioner.machine.child_environment import child_environment

_SCRIPT = Path(__file__).with_name("watchdog_script.py")
_PATIENCE_S = 2.0  # until a killed process has ended

_JOB_OBJECT_EXTENDED_LIMIT_INFORMATION = 9  # winnt.h, as are the names below
_JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE = 0x2000
_PROCESS_TERMINATE = 0x0001
_PROCESS_SET_QUOTA = 0x0100


class Watchdog(Protocol):
    """Ends a server when this process is gone."""

    def release(self) -> None:
        """Stop watching a server that has ended.  Safe to call twice."""


def tie(
    pid: int,
    *,
    platform: str = sys.platform,
    watch: Callable[[int], Watchdog] | None = None,
    hold: Callable[[int], Watchdog] | None = None,
) -> Watchdog | None:
    """Return a watchdog that ends a process, with all it started, when this process ends.

    Parameters
    ----------
    pid : int
        A child of ours that was not waited for yet, so that its id is not reused; on POSIX the leader of its group.
    platform : str
        Value of ``sys.platform``.
    watch, hold : callable, optional
        Start the watcher process; put the process into a job object.

    Returns
    -------
    Watchdog or None
        To be released when the process has ended; None where the system does not allow one.
    """
    begin = (hold or JobObject) if platform == "win32" else (watch or Watcher)
    try:
        return begin(pid)
    except OSError:
        return None


class Watcher:
    """A process that ends the server at the end of its standard input.

    It is released by killing it: no message can be incomplete, and there is none to wait for.  The pipe is created
    after the server was started and no process inherits it (PEP 446), so it closes when this process ends.
    """

    def __init__(self, pid: int) -> None:
        self._process = subprocess.Popen(
            # -I and -S: no user settings, no .pth files; it is ready after 0.06 s, psutil included.
            [sys.executable or "", "-I", "-S", _SCRIPT, str(pid), Path(psutil.__file__).parents[1]],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_environment(os.environ),
            cwd=_SCRIPT.anchor,  # does not keep a folder or drive in use
            start_new_session=True,  # not ended together with our group or terminal
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
    """JOBOBJECT_BASIC_LIMIT_INFORMATION of winnt.h; with explicit widths, since those of ctypes differ by platform."""

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
    """The functions used of kernel32.dll; each returns 0 or None where it failed."""

    def CreateJobObjectW(self, attributes: None, name: None) -> int | None:
        """Return the handle of a new job, which no child inherits."""

    def SetInformationJobObject(self, job: int, kind: int, limits: object, size: int) -> int:
        """Set limits."""

    def OpenProcess(self, access: int, inherits: int, pid: int) -> int | None:
        """Return a handle."""

    def AssignProcessToJobObject(self, job: int, process: int) -> int:
        """Put a process, and whatever it starts from now on, into a job."""

    def CloseHandle(self, handle: int) -> int:
        """Close a handle; a job's last one ends what is in the job."""


class JobObject:
    """A job object that ends what is in it when its only handle is closed, which the system does for a killed process.

    Jobs can be nested since Windows 8, so a terminal's or a CI runner's own job does no harm, nor does that of the
    launcher in a virtual environment.

    Raises
    ------
    OSError
        The system does not allow it.
    """

    def __init__(self, pid: int, kernel: Kernel | None = None) -> None:
        self._kernel: Kernel = _kernel32() if kernel is None else kernel
        self._handle = self._kernel.CreateJobObjectW(None, None)
        if not self._handle:
            raise OSError("no job object can be created")
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

    def _set_limit(self, job: int) -> None:
        limits = ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = _JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
        size = ctypes.sizeof(limits)
        kind = _JOB_OBJECT_EXTENDED_LIMIT_INFORMATION
        if not self._kernel.SetInformationJobObject(job, kind, ctypes.byref(limits), size):
            raise OSError("the job object does not accept its limit")

    def _take_in(self, job: int, pid: int) -> None:
        process = self._kernel.OpenProcess(_PROCESS_SET_QUOTA | _PROCESS_TERMINATE, 0, pid)
        if not process:
            raise OSError(f"process {pid} cannot be opened")
        try:
            if not self._kernel.AssignProcessToJobObject(job, process):
                raise OSError(f"process {pid} cannot be put into a job object")
        finally:
            self._kernel.CloseHandle(process)


def _kernel32() -> Kernel:
    """Return kernel32 with handles declared as wide as pointers, which ctypes would truncate to 32 bits."""
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
