"""The work of one run in counts: what it opens, reads, writes, lists, flushes, asks for and allocates.  No clock.

The interpreter's audit events say which files are opened and which names change; the kernel says how many bytes go
through read and write, of which those of modules are taken off; tracemalloc says what Python's memory came to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from tests.support.builders import recording_of
from tests.support.sandbox import Sandbox, Wanted, tensors
from tests.support.setup_fixture import rtx_4070

IS_COUNTED = Path("/proc/self/io").exists()

_PROGRAM = """
import os, sys, tracemalloc

below, result, has_peak = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1) == "True"
work = dict.fromkeys(("opened", "listed", "changed", "flushed", "children", "connections"), 0)
outside = []
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.mkdir", "os.truncate", "os.utime"}
LISTS = {"os.listdir", "os.scandir"}
CHILDREN = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec"}

def look(event, arguments):
    if event == "open":
        if isinstance(arguments[0], (str, bytes)) and (path := os.fsdecode(arguments[0])) != result:
            if path.startswith(below):
                work["opened"] += 1
            else:
                outside.append(path)
    elif event in CHANGES:
        work["changed"] += 1
    elif event in LISTS:
        work["listed"] += str(arguments[0]).startswith(below)
    elif event in CHILDREN:
        work["children"] += 1
    elif event == "socket.connect":
        work["connections"] += 1

def counted(flush):
    def flushed(descriptor):
        work["flushed"] += 1
        return flush(descriptor)
    return flushed

for name in ("fsync", "fdatasync"):
    if hasattr(os, name):
        setattr(os, name, counted(getattr(os, name)))

def passed():
    with open("/proc/self/io") as file:
        lines = dict(line.split(": ") for line in file.read().splitlines())
    return int(lines["rchar"]), int(lines["wchar"]), int(lines["syscr"]) + int(lines["syscw"])

before, modules = passed(), set(sys.modules)
if has_peak:
    tracemalloc.start()
sys.addaudithook(look)
try:
    from provisioner.cli.main import main
    status = main(sys.argv[1:])
finally:
    _, work["peak"] = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    after = passed()
    of_modules = sum(os.path.getsize(path) for path in outside if os.path.isfile(path))
    work["read"] = max(0, after[0] - before[0] - of_modules)
    work["written"] = after[1] - before[1]
    work["calls"] = after[2] - before[2]
    work["modules"] = len(set(sys.modules) - modules)
    import json
    with open(result, "w") as file:
        json.dump(work, file)
sys.exit(status)
"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one run did."""

    opened: int  # files and folders below the sandbox: the tree, the user's state, the manifest
    listed: int  # folders of the sandbox
    read: int  # bytes, without those of modules
    written: int  # bytes, output included
    calls: int  # of the kernel's read and write
    changed: int  # names and times of files
    flushed: int
    children: int  # processes
    connections: int
    requests: int  # at the hub
    fetched: int  # bytes from the hub
    modules: int  # beyond a bare interpreter
    peak: int  # bytes that Python had allocated at once

    def beyond(self, bound: Work) -> dict[str, tuple[int, int]]:
        """Return what is more than a bound allows: by name the count and the bound."""
        pairs = {each.name: (getattr(self, each.name), getattr(bound, each.name)) for each in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] > pair[1]}


def work_of(sandbox: Sandbox, *arguments: str, status: int = 0, has_peak: bool = True) -> Work:
    """Run a command and return what it did; another exit status fails the test.

    Without `has_peak` what Python had allocated is not counted, which takes longer than the command itself.
    """
    result = sandbox.folder / "work.json"
    sandbox.hub.clear_requests()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _PROGRAM,
            str(sandbox.folder),
            str(result),
            str(has_peak),
            *sandbox.completed(arguments),
        ],
        env=sandbox.environ,
        cwd=sandbox.folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    sandbox.hub.wait_until_idle()
    found = json.loads(result.read_text(encoding="utf-8"))
    requests = sandbox.hub.requests
    return Work(requests=len(requests), fetched=sum(each.bytes_sent for each in requests), **found)


def on_a_recorded_machine(sandbox: Sandbox) -> Sandbox:
    """Return the sandbox on a machine that was recorded, so that no other machine's drivers are counted."""
    recording = sandbox.folder / "machine.json"
    recording.write_text(recording_of(rtx_4070()), encoding="utf-8")
    sandbox.environ["KLEIN_SETUP_MACHINE"] = str(recording)
    return sandbox


def small_files(count: int) -> list[Wanted]:
    """Return files of a kilobyte, no two of one size."""
    return [Wanted(data=tensors(1000 + number, number), name=f"small-{number}.safetensors") for number in range(count)]


def damaging(path: Path, at: int) -> Callable[[], None]:
    """Return what changes one byte of a file."""

    def damage() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    return damage


def each_command(sandbox: Sandbox, *, damage: Callable[[], None]) -> dict[str, Work]:
    """Return the work of each command on the files that the sandbox has published, in the order of a person's day.

    Parameters
    ----------
    sandbox : Sandbox
        Its files are published and not installed.
    damage : callable
        Damages what is installed, before the repair.
    """
    files = ("--only", "files")
    for warm in (("plan", *files), ("detect",)):  # what is imported is compiled, and the first run's notes are written
        sandbox.run(*warm)
    found = {"--help": work_of(sandbox, "--help"), "detect": work_of(sandbox, "detect")}
    found["plan"] = work_of(sandbox, "plan", *files)
    found["install"] = work_of(sandbox, "install", *files)
    sandbox.run("verify")  # the first full verify keeps what later ones compare with
    found["second install"] = work_of(sandbox, "install", *files)
    found["verify --quick"] = work_of(sandbox, "verify", "--quick")
    found["verify"] = work_of(sandbox, "verify")
    damage()
    found["verify, damaged"] = work_of(sandbox, "verify", status=1)
    found["repair"] = work_of(sandbox, "repair", *files)
    return found
