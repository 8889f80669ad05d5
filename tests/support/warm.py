"""Runs the program without Python beginning and importing it all each time, where a test is not about that.

On Linux each run is a process like any other, with its own number, folder, environment, streams and signals, forked
from a Python that has imported everything; it runs the program's own entry point.

A run whose Python would begin otherwise, with another ``PYTHONPATH`` or locale, is started the usual way, and so is
everything with ``COLD_STARTS=1``, under coverage, and on other systems.
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
        assert sys.platform == "linux"
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
            return _server().start(words, cwd, env, stdin, stdout, stderr)
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
    return sys.platform == "linux" and "COLD_STARTS" not in os.environ and counts == _usual()


def _usual() -> dict[str, str]:
    of_the_system = {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_SYSTEM)}
    return {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **of_the_system}


_LOCK = threading.Lock()


@functools.cache
def _server() -> _Server:
    return _Server()


class _Server:
    """The Python that everything is forked from, one for each process of the tests."""

    def __init__(self) -> None:
        assert sys.platform == "linux"
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
        assert sys.platform == "linux"
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
    assert sys.platform == "linux"
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
    assert sys.platform == "linux"
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


if __name__ == "__main__":
    _serve()
