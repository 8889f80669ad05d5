"""End a server of ours when klein-setup is killed and cannot end it itself.

On Windows the server is put into a job object that ends with its last handle, which only klein-setup has.  Elsewhere a
small process (`watchdog_script`) reads a pipe whose other end only klein-setup holds, and ends the server at its end.
Never makes a run fail: where neither is possible, the server runs without a watchdog.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from provisioner.machine.child_environment import child_environment
from provisioner.processes.job_object import JobObject

_SCRIPT = Path(__file__).with_name("watchdog_script.py")
_PATIENCE_S = 2.0  # until a killed process has ended


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
