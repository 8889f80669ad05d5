"""A job object of Windows: ends a process with everything that it started, also what its parent no longer knows.

A process is started suspended (`CREATION_FLAGS`), put into the job, and only then let run (`resume`): nothing that it
starts can be outside of the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from typing import Any, Final, Protocol

if sys.platform == "win32":
    _SUSPENDED = 0x0000_0004
    CREATION_FLAGS: Final = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW | _SUSPENDED
else:
    CREATION_FLAGS: Final = 0
"""Flags for starting a process that opens no window, hears no Ctrl-C and waits for `resume`; 0 on other systems."""

_JOB_OBJECT_EXTENDED_LIMIT_INFORMATION = 9  # winnt.h, as are the names below
_JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE = 0x2000
_PROCESS_TERMINATE = 0x0001
_PROCESS_SET_QUOTA = 0x0100


def resume(process: subprocess.Popen[bytes]) -> None:
    """Let a process run that was started with `CREATION_FLAGS`; nothing on other systems.

    Raises
    ------
    OSError
        The system does not let it run.  It has been ended then: nothing else would ever end it.
    """
    if sys.platform == "win32":
        import psutil  # takes 30 ms

        try:
            psutil.Process(process.pid).resume()
        except psutil.NoSuchProcess:
            return
        except psutil.Error as error:
            with contextlib.suppress(OSError):
                process.kill()
            raise OSError(f"it was started and cannot be let run: {error}") from error


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
            self._set_limit(self._handle, _JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE)
            self._take_in(self._handle, pid)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Close the job, which ends what is still in it.  Safe to call twice."""
        if self._handle:
            self._kernel.CloseHandle(self._handle)
        self._handle = None

    def let_go(self) -> None:
        """Close the job and leave what is still in it alone."""
        if self._handle:
            with contextlib.suppress(OSError):
                self._set_limit(self._handle, 0)
        self.release()

    def _set_limit(self, job: int, flags: int) -> None:
        limits = ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = flags
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
