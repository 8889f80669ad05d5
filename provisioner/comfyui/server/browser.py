"""Open the user's browser on an address, from a process of its own that gets no secret of ours.

Python's ``webbrowser`` passes on the whole environment of the process it runs in, tokens included.  Where there is no
display nothing is started: ``webbrowser`` would run a text browser in this terminal.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping

from provisioner.machine.child_environment import child_environment

BROWSER_VARIABLES = frozenset(
    {
        "BROWSER", "DBUS_SESSION_BUS_ADDRESS", "DESKTOP_SESSION", "GNOME_DESKTOP_SESSION_ID", "KDE_FULL_SESSION",
        "KDE_SESSION_VERSION", "VSCODE_IPC_HOOK_CLI", "WSL_DISTRO_NAME", "WSL_INTEROP", "WSLENV",
    }
)  # fmt: skip
"""What a browser gets beside the list of `child_environment`: how to find it, and the session it runs in."""

_OPEN = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.argv[1]))"
_PATIENCE_S = 6.0  # webbrowser itself waits up to 5 s for a browser that may fail


def has_display(environ: Mapping[str, str], *, platform: str = sys.platform) -> bool:
    """Whether a browser's window would be in front of the user.

    Over SSH it would not, except where ``BROWSER`` names a helper, as VS Code does.

    >>> has_display({"DISPLAY": ":0"}, platform="linux"), has_display({}, platform="linux")
    (True, False)
    >>> has_display({"SSH_CONNECTION": "..."}, platform="darwin")
    False
    """
    if environ.get("BROWSER"):
        return True
    if environ.get("SSH_CONNECTION"):
        return False
    return platform in {"win32", "darwin"} or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def open_browser(url: str, environ: Mapping[str, str]) -> bool:
    """Open an address in the user's browser and return whether that worked; it stays open when we end."""
    try:
        process = subprocess.Popen(
            [sys.executable or "", "-I", "-c", _OPEN, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_environment(environ, BROWSER_VARIABLES),
            cwd=os.path.abspath(os.sep),  # noqa: PTH100 - the drive we are on; keeps no folder of the user's in use
            start_new_session=True,  # not ended by Ctrl-C in our terminal
        )
    except OSError:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=_PATIENCE_S) == 0
    return True  # a browser that this process is the parent of
