"""The order of system calls, as strace sees it, and system calls that fail or kill where strace makes them."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from provisioner.core.models import STATE_FOLDER
from scripts.torturing.damages import damage
from scripts.torturing.kills import finish
from scripts.torturing.trial import ROOT, BrokenPromiseError, Ended, Trial

CALLS = "openat,write,pwrite64,copy_file_range,ftruncate,fsync,fdatasync,rename,renameat,renameat2,close"
INJECTED = (
    "pwrite64",
    "write",
    "fsync",
    "fdatasync",
    "renameat",
    "openat",
    "unlinkat",
    "mkdirat",
    "ftruncate",
    "fallocate",
)
_LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+)(.*)$")
_UNFINISHED = re.compile(r"^(\d+)\s+(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. (\w+) resumed>(.*)$")
_PATH = re.compile(r"<(/[^>]*)>")
_NAME = re.compile(r'"([^"]*)"')


def call_order(trial: Trial) -> None:
    """Install and repair under strace, look at the order, and let calls fail."""
    for command in ("install", "repair"):
        trace = trial.folder / "trace"
        ended = under_strace(trial, command, ["-y", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(trace)])
        trial.look_at(ended)
        if ended.status != 0:
            raise BrokenPromiseError(f"under strace: {ended}")
        trial.look_at_success(ended)
        calls = parse_calls(trace.read_text(errors="replace").splitlines())
        if complaint := complaint_about_order(calls, trial.models):
            raise BrokenPromiseError(f"{command}: {complaint}")
        trial.happened()
        damage(trial, 2, is_kind=True)
    for _ in range(3):
        inject(trial)
        trial.happened()
    trial.age_leftovers()
    trial.succeed("repair")
    finish(trial)


def inject(trial: Trial) -> None:
    """Let a random call of a repair fail, or be the last of its process."""
    call, when = trial.chance.choice(INJECTED), trial.chance.randint(1, 40)
    does = trial.chance.choice(("signal=KILL", "error=ENOSPC", "error=EIO", "error=EINTR"))
    repeats = "+" if does.startswith("error=ENOSPC") and call not in {"openat", "write"} else ""
    if call == "openat":
        does = "signal=KILL"  # an interpreter that cannot open its own files is no matter of ours
    words = ["-e", f"trace={call}", "-e", f"inject={call}:{does}:when={when}{repeats}", "-o", "/dev/null"]
    trial.history.append(f"strace {words[3]}")
    trial.may_leave, trial.settled = True, False
    ended = under_strace(trial, "repair", words)
    trial.look_at(ended)
    if not ended.is_killed and ended.status not in {0, 4}:
        raise BrokenPromiseError(f"{call} that fails ({does}) ends so: {ended}")


def under_strace(trial: Trial, command: str, words: list[str]) -> Ended:
    """Run a command to its end under strace."""
    arguments = trial.arguments(command)
    order = trial.order(*arguments)
    strace = ["strace", "-f", "-qq", *words, sys.executable, "-m", "scripts.torturing.child", "--once"]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*strace, json.dumps(order)], cwd=ROOT, env=environ, capture_output=True, check=False)
    streams = [Path(str(order[each])) for each in ("out", "err")]
    said = "".join(each.read_text(errors="replace") for each in streams if each.exists())
    return Ended(arguments=arguments, status=done.returncode, said=said + done.stderr.decode(errors="replace"))


@functools.cache
def has_strace() -> bool:
    """Whether processes can be traced here."""
    strace = shutil.which("strace")
    return (
        strace is not None and subprocess.run([strace, "-qq", "true"], capture_output=True, check=False).returncode == 0
    )


# --- the order ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One system call that did not fail: its name, the open file or folder it is about, the names it was given."""

    name: str
    path: str
    names: tuple[str, ...] = ()


def parse_calls(lines: Iterable[str]) -> list[Call]:
    """Return the calls of a trace made with ``-f -y``, in the order in which they ended.

    >>> parse_calls(["7 fsync(3</a/b>) = 0", '7 renameat(4</a>, "x.part", 4</a>, "x") = 0'])
    [Call(name='fsync', path='/a/b', names=()), Call(name='renameat', path='/a', names=('/a/x.part', '/a/x'))]
    >>> parse_calls(["7 copy_file_range(3</a/old>, [0], 4</a/new>, [0], 9, 0) = 9"])
    [Call(name='copy_file_range', path='/a/new', names=())]
    """
    begun: dict[tuple[str, str], str] = {}
    calls: list[Call] = []
    for line in lines:
        if found := _UNFINISHED.match(line):
            begun[found[1], found[2]] = found[3]
            continue
        if found := _RESUMED.match(line):
            line = f"{found[1]} {found[2]}({begun.pop((found[1], found[2]), '')}{found[3]}"
        found = _LINE.match(line)
        if found is None or found[3].startswith("-"):
            continue
        name, given = found[1], found[2]
        folders = _PATH.findall(given)
        if name.startswith("rename"):
            names = _NAME.findall(given)
            joined = tuple(f"{folder}/{each}" for folder, each in zip(folders, names, strict=False)) or tuple(names)
            calls.append(Call(name, folders[0] if folders else "", joined))
        elif folders:
            calls.append(Call(name, folders[-1] if name == "copy_file_range" else folders[0]))  # from, to
    return calls


def complaint_about_order(calls: list[Call], models: Path) -> str | None:
    """Return what came in the wrong order, or not at all, for a file below the models folder; None where all is right.

    A file is written and flushed (``fsync``); then it gets its final name (``rename``); then its folder is flushed, and
    then its receipt is written.
    """
    dirty: set[str] = set()
    placed: dict[str, str] = {}  # by folder: a new name in it that is not flushed
    without_receipt: set[str] = set()
    for call in calls:
        if call.name in {"write", "pwrite64", "copy_file_range", "ftruncate"}:
            dirty.add(call.path)
        elif call.name in {"fsync", "fdatasync"}:
            dirty.discard(call.path)
            placed.pop(call.path, None)
        elif call.name.startswith("rename") and len(call.names) == 2 and call.names[1].startswith(f"{models}/"):
            old, new = call.names
            if old in dirty:
                return f"{new} got its name before its bytes were flushed"
            if new == f"{models}/{STATE_FOLDER}/receipt.json":
                if placed:
                    return f"the receipt was written before the folder of {', '.join(placed.values())} was flushed"
                without_receipt.clear()
            elif new.endswith(".safetensors") and not new.startswith(f"{models}/{STATE_FOLDER}/"):
                placed[str(Path(new).parent)] = new
                without_receipt |= {new}
    if placed:
        return f"the folder of {', '.join(sorted(placed.values()))} was not flushed"
    if without_receipt:
        return f"no receipt was written after {', '.join(sorted(without_receipt))} got its name"
    if unflushed := sorted(path for path in dirty if path.startswith(f"{models}/") and path.endswith(".safetensors")):
        return f"{', '.join(unflushed)} was written to and not flushed"
    return None
