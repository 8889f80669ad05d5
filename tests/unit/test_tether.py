"""The watchdog that ends a server with klein-setup: which kind is chosen, and the calls made on Windows."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest

from provisioner.comfyui.server.watchdog import Watchdog, tie
from provisioner.processes.job_object import ExtendedLimits, JobObject

JOB, PROCESS, PID = 0x7FF6_0000_1110, 0x7FF6_0000_2220, 4711


class Loose:
    """A watchdog that only records what it was created for."""

    def __init__(self, how: str, pid: int) -> None:
        self.made = (how, pid)

    def release(self) -> None:
        """Let go of nothing."""


def watch(pid: int) -> Watchdog:
    return Loose("watcher", pid)


def hold(pid: int) -> Watchdog:
    return Loose("job", pid)


def refuse(pid: int) -> Watchdog:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize(
    ("platform", "how"), [("linux", "watcher"), ("darwin", "watcher"), ("freebsd14", "watcher"), ("win32", "job")]
)
def test_windows_holds_the_server_in_a_job_and_everybody_else_watches(platform: str, how: str) -> None:
    watchdog = tie(PID, platform=platform, watch=watch, hold=hold)
    assert isinstance(watchdog, Loose)
    assert watchdog.made == (how, PID)


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_a_system_without_a_watchdog_still_runs_the_server(platform: str) -> None:
    assert tie(PID, platform=platform, watch=refuse, hold=refuse) is None


class Kernel32:
    """Answers as kernel32 does and keeps what it was asked; the named function fails."""

    def __init__(self, *, failing: str = "") -> None:
        self.failing = failing
        self.open: set[int] = set()
        self.asked: list[tuple[Any, ...]] = []

    def _answer(self, name: str, *asked: object) -> bool:
        self.asked.append((name, *asked))
        return name != self.failing

    def _opened(self, handle: int, *, is_open: bool) -> int | None:
        if is_open:
            self.open.add(handle)
        return handle if is_open else None

    def CreateJobObjectW(self, attributes: None, name: None) -> int | None:
        return self._opened(JOB, is_open=self._answer("CreateJobObjectW", attributes, name))

    def SetInformationJobObject(self, job: int, kind: int, limits: object, size: int) -> int:
        given: Any = limits  # what byref() made
        flags = given._obj.BasicLimitInformation.LimitFlags
        return int(self._answer("SetInformationJobObject", job, kind, flags, size))

    def OpenProcess(self, access: int, inherits: int, pid: int) -> int | None:
        return self._opened(PROCESS, is_open=self._answer("OpenProcess", access, inherits, pid))

    def AssignProcessToJobObject(self, job: int, process: int) -> int:
        assert {job, process} <= self.open
        return int(self._answer("AssignProcessToJobObject", job, process))

    def CloseHandle(self, handle: int) -> int:
        self.open.remove(handle)
        return int(self._answer("CloseHandle", handle))


def test_a_job_gets_its_limit_before_the_process_and_keeps_only_its_own_handle() -> None:
    kernel = Kernel32()
    job = JobObject(PID, kernel)
    assert kernel.asked == [
        ("CreateJobObjectW", None, None),  # no security attributes: no child inherits the handle
        ("SetInformationJobObject", JOB, 9, 0x2000, ctypes.sizeof(ExtendedLimits)),
        ("OpenProcess", 0x0101, 0, PID),
        ("AssignProcessToJobObject", JOB, PROCESS),
        ("CloseHandle", PROCESS),
    ]
    assert kernel.open == {JOB}
    job.release()
    assert kernel.open == set()
    job.release()  # twice does no harm: the number may be another handle's by now
    assert kernel.asked.count(("CloseHandle", JOB)) == 1


def test_a_job_that_lets_go_takes_its_limit_away_first() -> None:
    kernel = Kernel32()
    job = JobObject(PID, kernel)
    kernel.asked.clear()
    job.let_go()
    job.let_go()
    size = ctypes.sizeof(ExtendedLimits)
    assert kernel.asked == [("SetInformationJobObject", JOB, 9, 0, size), ("CloseHandle", JOB)]
    assert kernel.open == set()


@pytest.mark.parametrize(
    "failing", ["CreateJobObjectW", "SetInformationJobObject", "OpenProcess", "AssignProcessToJobObject"]
)
def test_a_failed_job_object_leaves_no_handle_open(failing: str) -> None:
    kernel = Kernel32(failing=failing)
    assert tie(PID, platform="win32", hold=lambda pid: JobObject(pid, kernel)) is None
    assert kernel.open == set()


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="the figures are those of 64 bits")
@pytest.mark.parametrize(
    ("field", "offset"),
    [("BasicLimitInformation", 0), ("IoInfo", 64), ("ProcessMemoryLimit", 112), ("PeakJobMemoryUsed", 136)],
)
def test_the_limits_lie_where_64_bit_windows_reads_them(field: str, offset: int) -> None:
    """Figures: sizes and alignments of the fields in winnt.h (LARGE_INTEGER, SIZE_T and ULONGLONG 8, DWORD 4)."""
    assert getattr(ExtendedLimits, field).offset == offset
    assert ctypes.sizeof(ExtendedLimits) == 144
    assert type(ExtendedLimits().BasicLimitInformation).LimitFlags.offset == 16


@pytest.mark.skipif(sys.platform == "win32", reason="there, kernel32 is real")
def test_a_job_object_on_another_system_is_an_error_and_not_a_crash() -> None:
    assert tie(PID, platform="win32") is None
