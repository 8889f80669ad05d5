"""Run in a process of its own and end a ComfyUI server when klein-setup was killed before it could.

POSIX only.  Started by its path, as ``python -I -S watchdog_script.py PID FOLDER``, where FOLDER contains psutil;
imports nothing of klein-setup.  Never signals a process id that was reused, and neither writes nor prints anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_GRACE_S = 2.0  # between asking a server to end and killing it; no one waits for its image any more


def wait_for_the_end_of(holder: int) -> None:
    """Return once the other end of a pipe is closed, however its process ended.

    Parameters
    ----------
    holder : int
        File descriptor of the pipe's reading end; nothing is ever written to the other.
    """
    while os.read(holder, 1):
        continue


def has_its_group(server: psutil.Process) -> bool:
    """Return whether the process group with the id of `server` is that server's.

    An id is not reused while a process or a group has it.  Where no process has that id, what is left of the group is
    therefore the server's own: to be another's, all ids would have to be used up between the end of the server and
    this check, which is made as soon as klein-setup is gone.
    """
    import psutil

    try:
        return psutil.Process(server.pid) == server  # the same id and start time
    except psutil.NoSuchProcess:
        return True


def signal_group(server: psutil.Process, number: int) -> None:
    """Send a signal to the server's process group, if that is still its own."""
    if sys.platform != "win32" and has_its_group(server):
        # Already ended; macOS says "not permitted" for a group with only a zombie left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, number)


def main(arguments: list[str]) -> int:
    """Watch the server with the given process id until klein-setup is gone; return the exit status."""
    pid, folder = arguments
    sys.path.append(folder)  # last, so that the standard library comes first
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
    for child in children:  # those that left the group; psutil detects a reused id
        with contextlib.suppress(psutil.Error):
            child.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
