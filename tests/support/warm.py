"""Runs the program without Python beginning and importing it all each time, where a test is not about that.

On Linux each run is a process like any other, with its own number, folder, environment, streams and signals, forked
from a Python that has imported everything; it runs the program's own entry point.  On Windows, where no process can be
forked and a start is the slowest there is, one process runs a command after the other while it is idle.

A run whose Python would begin otherwise, with another ``PYTHONPATH`` or locale, is started the usual way, and so is
everything with ``COLD_STARTS=1`` (what the fixture ``cold_starts`` sets), under coverage, and on other systems.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
_OF_THE_SYSTEM = ("LD_", "MALLOC_", "GLIBC_", "OPENSSL_")
_COUNTS_AT_THE_START = ("PYTHON", "LC_", "LANG", "COVERAGE_", *_OF_THE_SYSTEM)
_OTHERS = ("argparse", "PIL.Image", "requests", "rich.live", "rich.progress", "rich.table", "websockets.sync.client")
# The Hub's client is not among them: it reads the environment when it is imported.


class Warm:
    """A run; with what the tests use of ``subprocess.Popen``."""

    def __init__(self, pid: int, status: Callable[[], int], stdout: IO[str] | None = None) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None
        self._status = status
        self._is_over = threading.Event()
        threading.Thread(target=self._note_end, daemon=True).start()

    def _note_end(self) -> None:
        self.returncode = self._status()
        self._is_over.set()

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status."""
        if not self._is_over.wait(timeout):
            raise subprocess.TimeoutExpired("klein-setup", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Read all that it prints, wait for its end."""
        with contextlib.closing(self.stdout or io.StringIO()) as stdout:
            said = stdout.read()
        self.wait(timeout)
        return said, None

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        if sys.platform == "win32":
            self.send_signal(signal.SIGTERM)
        else:
            self.send_signal(signal.SIGKILL)


def start(
    words: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: IO[bytes] | None,
    stderr: IO[bytes],
    stdin: int = subprocess.DEVNULL,
) -> Warm | subprocess.Popen[str]:
    """Start Python with ``-m provisioner ...`` or ``script.py ...``; without `stdout` its end is the process's own."""
    with _LOCK:
        if _is_usual(env):
            if sys.platform == "linux":
                return _server().start(words, cwd, env, stdin, stdout, stderr)
            if stdout is not None and (begun := _begin_in_turn(words, cwd, env, stdout, stderr)):
                return begun
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=cwd,
        env=dict(env),
        stdin=stdin,
        stdout=stdout or subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def _is_usual(env: Mapping[str, str]) -> bool:
    counts = {name: value for name, value in env.items() if name.startswith(_COUNTS_AT_THE_START)}
    return sys.platform in {"linux", "win32"} and "COLD_STARTS" not in os.environ and counts == _usual()


def _usual() -> dict[str, str]:
    of_the_system = {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_SYSTEM)}
    return {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **of_the_system}


_LOCK = threading.Lock()


@functools.cache
def _server() -> _Server:
    return _Server()


class _Server:
    """The Python that everything is forked from, one for each process of the tests."""

    _control: socket.socket
    _process: subprocess.Popen[bytes]

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise NotImplementedError
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environ = {"PATH": os.environ["PATH"], "HOME": os.devnull, **_usual()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        atexit.register(self._close)

    def _close(self) -> None:
        self._control.close()
        self._process.wait()

    def start(
        self,
        words: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        stdin: int,
        stdout: IO[bytes] | None,
        stderr: IO[bytes],
    ) -> Warm:
        if sys.platform != "linux":
            raise NotImplementedError
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        nothing = os.open(os.devnull, os.O_RDONLY)
        read = write = -1
        if stdout is None:
            read, write = os.pipe()
        streams = [nothing if stdin < 0 else stdin, write if stdout is None else stdout.fileno(), stderr.fileno()]
        request = json.dumps([list(words), str(cwd), dict(env)], ensure_ascii=True).encode()
        try:
            with theirs:
                self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(1 << 18, 4 * len(request)))
                socket.send_fds(self._control, [request], [*streams, theirs.fileno()])
        finally:
            os.close(nothing)
            if write >= 0:
                os.close(write)
        pid = int(ours.recv(32))

        def status() -> int:
            with ours:
                return int(ours.recv(32) or -9)  # nothing: with the whole server

        return Warm(pid, status, os.fdopen(read, encoding="utf-8") if stdout is None else None)


_IN_TURN: list[_InTurn] = []


class _InTurn:
    """The process that runs one command after the other, where none can be forked."""

    def __init__(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_COUNTS_AT_THE_START)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm"],
            cwd=ROOT,
            env={**environ, **_usual()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self.is_busy = False
        atexit.register(self._end)

    def _end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def status(self) -> int:
        """Wait until the command has ended; return its exit status."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        self.is_busy = False
        return int(said) if said else self.process.wait()


def _begin_in_turn(
    words: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]
) -> Warm | None:
    """Begin a run of the program; None while another one is running, or for a script."""
    if _IN_TURN and _IN_TURN[0].process.poll() is not None:
        _IN_TURN.clear()
    if not _IN_TURN:
        _IN_TURN.append(_InTurn())
    if _IN_TURN[0].is_busy or list(words[:2]) != ["-m", "provisioner"]:
        return None
    _IN_TURN[0].is_busy = True
    process = _IN_TURN[0].process
    assert process.stdin is not None
    request = [list(words[2:]), dict(env), str(cwd), stdout.name, stderr.name]
    process.stdin.write(f"{json.dumps(request)}\n")
    process.stdin.flush()
    return Warm(process.pid, _IN_TURN[0].status)


# --- the other side ------------------------------------------------------------------------------


def _import_all() -> None:
    """Import the program, but for what runs elsewhere or reads the environment when it is imported."""
    import provisioner

    for name in _OTHERS:
        importlib.import_module(name)
    for each in pkgutil.walk_packages(provisioner.__path__, "provisioner."):
        if not each.name.endswith(("_script", ".__main__")):
            importlib.import_module(each.name)


def _next_request(control: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    """Fork for each request; return in the child what it asks for.  The server itself ends with its tests."""
    if sys.platform != "linux":
        raise NotImplementedError
    running: dict[int, tuple[int, int]] = {}  # by a descriptor of the process: its number, and who waits for it
    poller = select.poll()
    poller.register(control.fileno(), select.POLLIN)
    while True:
        for found, _ in poller.poll():
            if found in running:
                pid, reply = running.pop(found)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):
                    os.write(reply, str(status).encode())
                poller.unregister(found)
                os.close(found)
                os.close(reply)
                continue
            data, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
            if not data:
                sys.exit()
            *streams, reply = descriptors
            pid = os.fork()
            if pid == 0:
                for number, each in enumerate(streams):
                    os.dup2(each, number)
                control.detach()
                os.closerange(3, max(*descriptors, *running, 3) + 1024)
                words, cwd, env = json.loads(data)
                return words, cwd, env
            for each in streams:
                os.close(each)
            watched = os.pidfd_open(pid)
            running[watched] = pid, reply
            poller.register(watched, select.POLLIN)
            with contextlib.suppress(OSError):
                os.write(reply, str(pid).encode())


def _become(cwd: str, env: Mapping[str, str]) -> None:
    """Be as a Python that has just been started there."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # it was found for another environment
    if sys.platform != "win32":
        time.tzset()
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        old = getattr(sys, name)
        buffering = 1 if name == "stderr" or os.isatty(number) else -1
        new = open(number, mode, buffering, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _serve() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    _import_all()
    gc.collect()
    gc.freeze()
    words, cwd, env = _next_request(control)
    _become(cwd, env)
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path[0] = cwd
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            sys.path[0] = os.path.dirname(words[0])  # noqa: PTH120 - as Python itself does
            runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = _status_of(ended)
    # As Python ends, but for taking down a thousand modules: that takes longer than many a run.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status_of(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    sys.stderr.write(f"{ended.code}\n")
    return 1


def _run_in_turn() -> None:
    """Run one command after the other, each a line of JSON; write the exit status of each."""
    from provisioner import __main__ as program
    from provisioner.cli.main import main

    given = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for line in given:
        arguments, environ, cwd, *names = json.loads(line)
        os.dup2(nothing, 0)
        for number, name in enumerate(names, start=1):
            stream = os.open(name, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
            os.dup2(stream, number)
            os.close(stream)
        _become(cwd, environ)
        try:
            status = main(arguments, argv0=program.__file__)
        except SystemExit as ended:
            status = _status_of(ended)
        except BaseException:  # as Python itself does
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            os.dup2(nothing, number)
        os.chdir(ROOT)
        for name in [each for each in sys.modules if each.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]  # it read the environment of this run
        gc.collect()  # what still holds a file open keeps Windows from removing it
        answers.write(f"{status}\n")
        answers.flush()


if __name__ == "__main__":
    _serve() if len(sys.argv) > 1 else _run_in_turn()
