"""Run a ComfyUI server with its output in a log, and end it with all its children.

Never ends a process it did not start: if another server took the port first, the next port is tried, or it is an error
where the user named the port.  A server started here does not outlive klein-setup, even where that is killed
(`watchdog`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from provisioner.comfyui.server.api import ServerFacts, parse_system_stats
from provisioner.comfyui.server.failures import (
    death_error,
    is_port_taken,
    no_port_error,
    port_taken_error,
    silent_start_error,
)
from provisioner.comfyui.server.known_failures import known_failures
from provisioner.comfyui.server.launch import (
    LOOPBACK,
    Launch,
    ServerAddress,
    is_launched_as,
    parse_address,
    server_arguments,
)
from provisioner.comfyui.server.watchdog import Watchdog, tie
from provisioner.comfyui.server.web import Web
from provisioner.core.errors import NotWritableError, ServerNotUsableError, SmokeTestError, StorageError
from provisioner.core.ports import Cancelled
from provisioner.disk.os_errors import reason_of
from provisioner.disk.root import Root
from provisioner.machine.child_environment import child_environment
from provisioner.processes.job_object import CREATION_FLAGS, resume

_TICK_S = 0.1
_GRACE_S = 5.0  # between asking a server to end and killing it
_PROBE_S = 5.0  # one request to a server that may still be importing
_PORTS = 5  # tried before giving up
_TAIL_BYTES = 64 * 1024  # end of the log, in which the reason of a failure is searched


class ServerProcess:
    """A running server.  Leaving the ``with`` block stops it, even after an exception."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        log: IO[bytes],
        *,
        log_path: Path,
        log_start: int,
        address: ServerAddress,
        watchdog: Watchdog | None,
        is_users_own: bool = False,
    ) -> None:
        self.address = address
        self.log_path = log_path
        self.start_s = 0.0  # seconds until it answered
        self.facts: ServerFacts | None = None
        self._process = process
        self._log = log
        self._log_start = log_start
        self._read_to = log_start
        # As Ctrl-C in a terminal of its own: ComfyUI then empties its temp folder.
        self._polite_signal = signal.SIGINT if is_users_own else signal.SIGTERM
        self._watchdog = watchdog
        self._is_swept = False

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the server itself, for measuring its memory."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._sweep_group()
            self._let_go()
        return code

    def last_lines(self, number: int = 40) -> list[str]:
        """Return the last lines of its output, not redacted."""
        return self._tail().splitlines()[-number:]

    def output(self) -> list[str]:
        """Return the lines of the end of its output, up to 64 KiB, not redacted."""
        return self._tail().splitlines()

    def new_lines(self) -> list[str]:
        """Return the whole lines of its output since the last call, not redacted; at most 64 KiB at a time."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(self._read_to)
                data = file.read(_TAIL_BYTES)
        except OSError:
            return []
        end = data.rfind(b"\n") + 1 or (len(data) if len(data) == _TAIL_BYTES else 0)
        self._read_to += end
        return data[:end].decode("utf-8", "replace").splitlines()

    def death(self, *, node: str | None = None, is_starting: bool = False) -> SmokeTestError | None:
        """Return the error for a server that ended on its own; None while it runs."""
        code = self.returncode
        if code is None:
            return None
        return death_error(
            code, self.output(), known_failures(), log_path=self.log_path, node=node, is_starting=is_starting
        )

    def stop(self) -> None:
        """End the server and everything it started: first politely, then by force.  Safe to call twice."""
        if self.returncode is None:
            children = self._children()
            self._terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_GRACE_S)
            self._sweep_group()
            for child in children:  # those that left the group; psutil detects a reused process id
                with contextlib.suppress(psutil.Error):
                    child.kill()
            psutil.wait_procs(children, timeout=_GRACE_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_GRACE_S)  # a process stuck in a driver cannot be waited for
        self._let_go()
        self._log.close()

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def _terminate(self) -> None:
        if sys.platform == "win32":
            self._process.terminate()
        else:
            # Already ended; macOS says "not permitted" for a group with only a zombie left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, self._polite_signal)

    def _sweep_group(self) -> None:
        """Kill what is left of the server's group, once: later its number may be another group's."""
        if self._is_swept:
            return
        self._is_swept = True
        if sys.platform == "win32":
            self._process.kill()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _let_go(self) -> None:
        """Release the watchdog once the server has ended; after an interrupted stop it still ends the server."""
        if self._watchdog is not None:
            self._watchdog.release()
            self._watchdog = None

    def _tail(self) -> str:
        try:
            with self.log_path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - _TAIL_BYTES))
                return file.read(_TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""


def start_server(
    launch: Launch,
    *,
    log_path: Path,
    cancelled: Cancelled,
    timeout_s: float = 300.0,
    environ: Mapping[str, str] | None = None,
    pass_env: Collection[str] = (),
    address: ServerAddress | None = None,
) -> ServerProcess:
    """Return a ComfyUI server once it answers.

    Parameters
    ----------
    launch : Launch
        What to start; its folders are created.
    log_path : Path
        File to which its output is appended.
    cancelled : callable
        Called several times a second.
    timeout_s : float
        Seconds until it must answer, for all ports tried together.
    environ : mapping, optional
        The user's variables, of which it gets what `child_environment` leaves; ours where None.
    pass_env : collection of str
        Names of variables it gets as well.
    address : ServerAddress, optional
        Where its arguments make it listen; a free loopback port where None.

    Returns
    -------
    ServerProcess
        To be used in a ``with`` block.

    Raises
    ------
    ServerNotUsableError, MemoryExhaustedError
        It ended at start, never answered, or its port was taken; its last lines are in the context.
    NotWritableError
        The log or one of the folders cannot be created.
    KeyboardInterrupt
        The run was cancelled; nothing is left running.
    """
    began = time.monotonic()
    said: list[str] = []
    env = _environment(os.environ if environ is None else environ, pass_env)
    for _ in range(_PORTS if address is None else 1):
        place = address or parse_address(f"http://{LOOPBACK}:{_free_port()}")
        pool = ThreadPoolExecutor(
            max_workers=1
        )  # signals are raised in the main thread: no server without its watchdog
        starting = pool.submit(_spawn, launch, place, log_path, env)
        pool.shutdown(wait=False)
        try:
            server = starting.result()
            is_ours = _wait_for_answer(server, launch, began + timeout_s, timeout_s, cancelled)
        except BaseException:
            if starting.exception() is None:
                starting.result().stop()
            raise
        if is_ours:
            server.start_s = time.monotonic() - began
            return server
        server.stop()
        said = server.output()
    if address is not None:
        raise port_taken_error(address, None)
    raise no_port_error(_PORTS, said, log_path=log_path)


def _spawn(launch: Launch, address: ServerAddress, log_path: Path, env: Mapping[str, str]) -> ServerProcess:
    try:
        for folder in (*launch.folders, log_path.parent):
            Root(folder).make_folder()
        log = Root(log_path.parent).open_log(log_path)
    except StorageError as error:
        path = error.context.get("path", log_path)
        raise NotWritableError(
            f"{path} cannot be created: {reason_of(error)}.",
            hint="Give this user the right to write there, or choose another folder.",
            path=str(path),
        ) from error
    log_start = log.tell()  # read before the server writes: it shares the file position
    words = server_arguments(launch, address.port)
    watchdog = None
    try:
        process = subprocess.Popen(
            words,
            cwd=launch.tree,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,  # POSIX: one group, ended as a whole; Windows ignores it
            creationflags=CREATION_FLAGS,
        )
        watchdog = tie(process.pid)
        resume(process)
    except OSError as error:
        if watchdog is not None:
            watchdog.release()
        log.close()
        raise ServerNotUsableError(
            f"ComfyUI could not be started: {error.filename or words[0]}: {error.strerror or error}",
            hint="Run `klein-setup install --only environment`, which creates the environment ComfyUI runs in.",
            cause="missing-program",
            command=list(words),
        ) from error
    return ServerProcess(
        process,
        log,
        log_path=log_path,
        log_start=log_start,
        address=address,
        watchdog=watchdog,
        is_users_own=launch.output is None,
    )


def _environment(environ: Mapping[str, str], pass_env: Collection[str]) -> dict[str, str]:
    """Return the server's environment: its output is unbuffered, and UTF-8 on every console."""
    return {**child_environment(environ, pass_env), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def _free_port() -> int:
    """Return a loopback port on which nothing listens now; another program may still take it first."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_answer(
    server: ServerProcess, launch: Launch, deadline: float, timeout_s: float, cancelled: Cancelled
) -> bool:
    """Return True once the server answers; False if its port was taken."""
    web = Web(server.address, cancelled=cancelled)
    try:
        while time.monotonic() < deadline:
            if cancelled():
                raise KeyboardInterrupt
            death = server.death(is_starting=True)
            if death is not None:
                if is_port_taken(server.output(), known_failures()):
                    return False
                raise death
            server.facts = _facts(web, min(_PROBE_S, max(deadline - time.monotonic(), _TICK_S)))
            if server.facts is not None:
                return is_launched_as(server.facts.argv, launch, server.address.port)
            if server.address.url.startswith("https:") and accepts(server.address):
                return True  # its certificate is the user's own, which no authority vouches for
            time.sleep(_TICK_S)
    finally:
        web.close()
    raise silent_start_error(timeout_s, server.output(), log_path=server.log_path)


def accepts(address: ServerAddress) -> bool:
    """Whether anything accepts a connection there."""
    try:
        socket.create_connection((address.host, address.port), timeout=_PROBE_S).close()
    except OSError:
        return False
    return True


def find_listener(address: ServerAddress, *, cancelled: Cancelled) -> ServerFacts | str | None:
    """Return who answers at an address of this machine: a ComfyUI's facts, another program's name, None for nobody."""
    if not accepts(address):
        return None
    web = Web(address, cancelled=cancelled)
    try:
        return _facts(web, _PROBE_S) or _program_at(address.port)
    finally:
        web.close()


def _program_at(port: int) -> str:
    """Return the name and the process id of the program that listens on a port, as far as the system tells."""
    with contextlib.suppress(psutil.Error, OSError):
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid is not None:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return "another program"


def _facts(web: Web, timeout_s: float) -> ServerFacts | None:
    try:
        return parse_system_stats(web.get_json("/system_stats", timeout_s=timeout_s))
    except ServerNotUsableError:
        return None
