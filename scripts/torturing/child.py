"""Starts runs of the program, each a process of its own that is forked where everything is imported already.

On Windows, which cannot fork, each is started with ``--once``.

Started as a program it reads orders from its input, a JSON object a line, and answers each with a line::

    {"start": {"arguments": [...], "environ": {...}, "folder": "...", "out": "...", "err": "...", "trip": {...}}}
    {"wait": PID, "seconds": 5}

A start is answered with the process's id, a wait with its exit status (-9: killed) or null while it still runs.  With
``--once ORDER`` it becomes the one run itself, which is what ``strace`` is given.

A trip lets something happen at the N-th call that changes a disk, as Python's audit events tell: the process is killed,
or the system refuses.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import runpy
import sys
import time
from dataclasses import dataclass
from typing import Any

from scripts.torturing.small_blocks import make_small

WARM = (
    "provisioner.cli.main",
    "provisioner.commands.apply",
    "provisioner.commands.install",
    "provisioner.commands.session",
    "provisioner.files.download.transfer",
    "provisioner.files.engine",
    "provisioner.files.store.removal",
    "provisioner.report.json_document",
    "provisioner.ui.console",
    "provisioner.ui.tables",
    "requests",
    "rich.console",
    "yaml",
)
"""What nearly every run imports, and what starts nothing when it is imported."""

KILLED = 9  # SIGKILL, which Windows has no name for; there it is the exit status

_CHANGES = frozenset(
    f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "utime")
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(slots=True)
class Trip:
    """What happens at the N-th change of a disk, and with `stays` at every one after it."""

    at: int
    does: str  # "kill", or the name of an error: "ENOSPC"
    stays: bool = False
    seen: int = 0

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        """Count a change, and act; an audit hook."""
        opens = event == "open" and isinstance(given[0], str | bytes) and _is_for_writing(given)
        if not opens and event not in _CHANGES:
            return
        self.seen += 1
        if self.seen == self.at or (self.stays and self.seen > self.at):
            if self.does == "kill":
                os.kill(os.getpid(), KILLED)
            number = getattr(errno, self.does)
            raise OSError(number, os.strerror(number))


def _is_for_writing(given: tuple[Any, ...]) -> bool:
    _path, mode, flags = given
    is_null = given[0] in {os.devnull, os.devnull.encode()}
    return not is_null and (bool(flags & _WRITES) or bool(mode and set(mode) & set("wax+")))


def run(order: dict[str, Any]) -> None:
    """Become one run of the program; ends the process."""
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["folder"])
    for descriptor, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY),
        (2, order["err"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY),
    ):
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    if order.get("before"):
        runpy.run_path(order["before"])
    sys.argv = ["klein-setup", *order["arguments"]]
    from provisioner.cli.entry import run as run_program

    if order.get("trip"):
        sys.addaudithook(Trip(**order["trip"]))
    run_program()


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit status of a run, negative for a signal, or None if it runs longer."""
    if sys.platform == "win32":
        raise NotImplementedError
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def main() -> None:
    """Take orders until there are no more."""
    make_small()
    if sys.argv[1:2] == ["--once"]:
        run(json.loads(sys.argv[2]))
    if sys.platform == "win32":
        sys.exit("runs are forked here, which Windows cannot")
    for name in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = wait(order["wait"], order["seconds"])
        else:
            answer = os.fork()
            if answer == 0:
                run(order["start"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
