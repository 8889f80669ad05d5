"""Runs beside a server of ours, in its own process, and ends that server where klein-setup was killed before it did.

POSIX only.  Started by its path, as ``python -I -S watchdog_script.py PID FOLDER``, where FOLDER holds psutil;
imports nothing
of ours.  Refuses to signal a number that is somebody else's by now, and neither writes nor says anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_GRACE_S = 2.0  # between asking a server to end and making it; nobody waits for a picture of it any more


def wait_for_the_end_of(holder: int) -> None:
    """Return once nobody holds the other end of a pipe any more, however its holder ended.

    Parameters
    ----------
    holder : int
        File descriptor of the pipe's reading end; nothing is ever written to the other.
    """
    while os.read(holder, 1):
        continue


def has_its_group(server: psutil.Process) -> bool:
    """Say whether the group with the number of `server` is that server's.

    A number is not given away while a process or a group has it.  Where nobody is the process of that number, what is
    left of a group is therefore the server's own: to be somebody else's, all numbers would have to be used up between
    the end of the server and this question, which is asked as soon as klein-setup is gone.
    """
    import psutil

    try:
        return psutil.Process(server.pid) == server  # the same number and the same time of start
    except psutil.NoSuchProcess:
        return True


def signal_group(server: psutil.Process, number: int) -> None:
    """Send a signal to the server's process group, if that is still its own."""
    if sys.platform != "win32" and has_its_group(server):
        # Gone already; macOS says "not permitted" of a group of which only a zombie is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, number)


def main(arguments: list[str]) -> int:
    """Watch over the server with the given number until klein-setup is gone; return the exit status."""
    pid, folder = arguments
    sys.path.append(folder)  # last: nothing in it can stand before the standard library
    import psutil

    try:
        server = psutil.Process(int(pid))
    except psutil.NoSuchProcess:
        return 0
    wait_for_the_end_of(sys.stdin.fileno())
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = server.children(recursive=True)
    if sys.platform != "win32":
        signal_group(server, signal.SIGTERM)
        psutil.wait_procs([server, *children], timeout=_GRACE_S)
        signal_group(server, signal.SIGKILL)
    for child in children:  # those that left the group; psutil knows a number that was given away again
        with contextlib.suppress(psutil.Error):
            child.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
