"""Run one program, read all its output, and never wait for it longer than its time limit.

Programs are started from an argument list, never through a shell.  Only a bounded part of the output is
kept, and a process that runs out of time is ended with everything it started.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from provisioner.core.errors import CommandError
from provisioner.core.ports import Cancelled
from provisioner.core.redact import printable, redact
from provisioner.machine.child_environment import child_environment

if TYPE_CHECKING:
    from provisioner.processes.job_object import JobObject  # brings ctypes, which only Windows needs

Stream = Literal["stdout", "stderr"]
OnLine = Callable[[Stream, str], None]

_KEPT_BYTES = 256 * 1024  # of each stream: half from its beginning, half from its end
_KEPT_LINES = 200  # the last ones of both streams, in order of arrival
_SHOWN_LINES = 40  # of those, in an error
_LONGEST_LINE = 16 * 1024  # characters; a stream without line ends is passed on in pieces of this length
_CHUNK_BYTES = 64 * 1024
_TICK_S = 0.2  # between two checks of the clock; on Windows also how soon Ctrl-C is noticed
_QUIET_S = 2.0  # after the program ended, how long to wait for a silent pipe held by one of its children
_GRACE_S = 2.0  # between asking a process tree to end and killing it


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A program that ended by itself."""

    args: tuple[str, ...]
    returncode: int
    stdout: str  # beginning and end; a line in between says how much was left out
    stderr: str
    seconds: float
    last_lines: tuple[str, ...]  # of both streams, in order of arrival


def run_process(
    args: Sequence[str | Path],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_bytes: bytes | None = None,
    on_line: OnLine | None = None,
    keep_bytes: int = _KEPT_BYTES,
    cancelled: Cancelled = lambda: False,
) -> Completed:
    """Run a program to its end and return its output, whatever its exit status.

    Parameters
    ----------
    args : sequence of str or Path
        The program and its arguments.  Give the program's absolute path: Windows looks for a
        bare name in the current directory first.
    timeout_s : float
        Seconds until the program and everything it started is ended.
    env : mapping, optional
        The whole environment; what `child_environment` leaves of ours where None.
    cwd : Path, optional
        Folder to start in.
    input_bytes : bytes, optional
        Bytes for its standard input; empty where None.
    on_line : callable, optional
        Called on this thread with the stream and each line, while the program runs.  An
        exception from it ends the program and is passed on.
    keep_bytes : int
        Bytes to keep of each stream, half from its beginning and half from its end.
    cancelled : callable
        Asked five times a second; True ends the program with KeyboardInterrupt.  Signals reach the main thread only.

    Returns
    -------
    Completed
        Exit status and output; undecodable bytes are replaced.

    Raises
    ------
    CommandError
        The program could not be started (``reason="missing"``) or ran out of time
        (``reason="timeout"``); ``last_lines`` is in the context.
    """
    words = tuple(os.fspath(word) for word in args)
    started = time.monotonic()
    process, job = _start(words, env, cwd, has_input=input_bytes is not None)
    heard = _Heard(keep_bytes, on_line)
    pipes = _Pipes(process, input_bytes)
    try:
        ended = _follow(process, pipes, heard, started + timeout_s, cancelled)
        if not ended or pipes.open_streams:
            _end_tree(process, job)  # out of time, or a child of it still holds the pipes and prints nothing
    except BaseException:
        _end_tree(process, job)
        raise
    finally:
        if job is not None:
            job.let_go()
        pipes.close()
    heard.finish()
    seconds = time.monotonic() - started
    if not ended:
        raise _failed(f"did not end within {timeout_s:g} s and was stopped", words, heard.lines, reason="timeout")
    return Completed(
        args=words,
        returncode=process.returncode,
        stdout=heard.text("stdout"),
        stderr=heard.text("stderr"),
        seconds=seconds,
        last_lines=tuple(heard.lines),
    )


def run_checked(
    args: Sequence[str | Path],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_bytes: bytes | None = None,
    on_line: OnLine | None = None,
    keep_bytes: int = _KEPT_BYTES,
    hint: str | None = None,
) -> Completed:
    """Run a program that must succeed; parameters and result are those of `run_process`.

    Raises
    ------
    CommandError
        It could not be started, ran out of time, or ended with another exit status than 0
        (``reason="exit-status"``); ``returncode`` and ``last_lines`` are in the context.
    """
    done = run_process(
        args,
        timeout_s=timeout_s,
        env=env,
        cwd=cwd,
        input_bytes=input_bytes,
        on_line=on_line,
        keep_bytes=keep_bytes,
    )
    if done.returncode != 0:
        what = f"ended with {_exit_status_in_words(done.returncode)}"
        raise _failed(what, done.args, done.last_lines, hint=hint, reason="exit-status", returncode=done.returncode)
    return done


# --- starting and following --------------------------------------------------------------------


def _start(
    words: tuple[str, ...], env: Mapping[str, str] | None, cwd: Path | None, *, has_input: bool
) -> tuple[subprocess.Popen[bytes], JobObject | None]:
    flags = 0
    if sys.platform == "win32":
        from provisioner.processes import job_object

        flags = job_object.CREATION_FLAGS
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(os.environ) if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,  # POSIX: one group, ended as a whole; Windows ignores it
            creationflags=flags,
        )
        return process, _hold(process)
    except OSError as error:
        thing = error.filename or words[0]
        message = f"could not be started: {thing}: {error.strerror or error}"
        raise _failed(message, words, (), reason="missing") from error


class _Pipes:
    """Both output pipes read by a thread each, and the input written by a third, so that none can block another."""

    def __init__(self, process: subprocess.Popen[bytes], input_bytes: bytes | None) -> None:
        self.open_streams = 2
        self._process = process
        self._pieces: queue.Queue[tuple[Stream, bytes]] = queue.Queue(maxsize=64)  # bounds memory to 64 chunks
        self._abandoned = threading.Event()
        self._threads = [
            threading.Thread(target=self._read, args=("stdout", process.stdout), daemon=True),
            threading.Thread(target=self._read, args=("stderr", process.stderr), daemon=True),
        ]
        if input_bytes is not None:
            self._threads.append(threading.Thread(target=self._write, args=(input_bytes,), daemon=True))
        for thread in self._threads:
            thread.start()

    def next_piece(self, timeout_s: float) -> tuple[Stream, bytes] | None:
        """Return the next piece of output; None where nothing came in time or a stream ended."""
        try:
            stream, chunk = self._pieces.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if chunk:
            return stream, chunk
        self.open_streams -= 1
        return None

    def close(self) -> None:
        """Let the threads end and close the pipes they no longer read."""
        self._abandoned.set()
        for thread in self._threads:
            thread.join(timeout=1.0)
        if not any(thread.is_alive() for thread in self._threads):
            # A pipe that another process still holds is left to its thread: closing it would wait.
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()

    def _read(self, stream: Stream, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # the pipe broke or was closed: it has ended
            while chunk := os.read(pipe.fileno(), _CHUNK_BYTES):
                self._offer(stream, chunk)
        self._offer(stream, b"")

    def _offer(self, stream: Stream, chunk: bytes) -> None:
        while not self._abandoned.is_set():
            try:
                self._pieces.put((stream, chunk), timeout=_TICK_S)
            except queue.Full:
                continue
            return

    def _write(self, data: bytes) -> None:
        pipe = self._process.stdin
        if pipe is None:
            return
        with contextlib.suppress(OSError), pipe:  # a program may end without reading its input
            pipe.write(data)


def _follow(
    process: subprocess.Popen[bytes], pipes: _Pipes, heard: _Heard, deadline: float, cancelled: Cancelled
) -> bool:
    """Read until the program ended and its pipes are silent; return False if it ran out of time."""
    last_sign = time.monotonic()
    while pipes.open_streams:
        if cancelled():
            raise KeyboardInterrupt
        has_ended = process.poll() is not None
        now = time.monotonic()
        if now >= deadline:
            return has_ended
        if has_ended and now - last_sign > _QUIET_S:
            return True
        piece = pipes.next_piece(min(_TICK_S, deadline - now))
        if piece is not None:
            heard.take(*piece)
        if piece is not None or not has_ended:
            last_sign = time.monotonic()
    try:
        process.wait(timeout=max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        return False
    return True


def _hold(process: subprocess.Popen[bytes]) -> JobObject | None:
    """Put a suspended program into a job and let it run; None where there are no jobs. Windows only."""
    if sys.platform != "win32":
        return None
    from provisioner.processes.job_object import JobObject, resume

    job = None
    try:
        with contextlib.suppress(OSError):
            job = JobObject(process.pid)
        resume(process)
    except BaseException:
        with process:  # closes its pipes
            _end_tree(process, job)  # also at Ctrl-C: a suspended program would stay for ever
        raise
    return job


def _end_tree(process: subprocess.Popen[bytes], job: JobObject | None) -> None:
    """End the program and everything it started: first politely, then by force."""
    if sys.platform == "win32":
        if job is not None:
            job.release()
        with contextlib.suppress(OSError):
            process.kill()
    else:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
        _signal_group(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_GRACE_S)  # a process stuck in a driver cannot be waited for


def _signal_group(group: int, number: int) -> None:
    if sys.platform != "win32":
        # Already ended; macOS says "not permitted" for a group with only a zombie left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


# --- keeping the output ------------------------------------------------------------------------


@dataclass(slots=True)
class _Kept:
    """Keeps the beginning and the end of a stream of bytes."""

    limit: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    left_out: int = 0

    def take(self, chunk: bytes) -> None:
        half = self.limit // 2
        room = max(half - len(self.head), 0)
        self.head += chunk[:room]
        self.tail += chunk[room:]
        if len(self.tail) > 2 * half:
            surplus = len(self.tail) - half
            del self.tail[:surplus]
            self.left_out += surplus

    def text(self) -> str:
        gap = f"\n[{self.left_out} bytes left out]\n".encode() if self.left_out else b""
        return bytes(self.head + gap + self.tail).decode("utf-8", "replace").replace("\r\n", "\n")


class _Lines:
    """Splits bytes into lines; a carriage return alone ends a line too, since progress bars use it."""

    def __init__(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._pending = ""

    def take(self, chunk: bytes, *, is_last: bool = False) -> list[str]:
        text: str = self._decoder.decode(chunk, final=is_last)
        *lines, self._pending = (self._pending + text).split("\n")
        while len(self._pending) > _LONGEST_LINE:
            lines.append(self._pending[:_LONGEST_LINE])
            self._pending = self._pending[_LONGEST_LINE:]
        if is_last and self._pending:
            lines.append(self._pending)
        return lines


class _Heard:
    """Keeps the output of both streams, within limits."""

    def __init__(self, keep_bytes: int, on_line: OnLine | None) -> None:
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._on_line = on_line
        self._kept: dict[Stream, _Kept] = {"stdout": _Kept(keep_bytes), "stderr": _Kept(keep_bytes)}
        self._splitters: dict[Stream, _Lines] = {"stdout": _Lines(), "stderr": _Lines()}

    def take(self, stream: Stream, chunk: bytes) -> None:
        self._kept[stream].take(chunk)
        self._hand_on(stream, self._splitters[stream].take(chunk))

    def finish(self) -> None:
        for stream, splitter in self._splitters.items():
            self._hand_on(stream, splitter.take(b"", is_last=True))

    def text(self, stream: Stream) -> str:
        return self._kept[stream].text()

    def _hand_on(self, stream: Stream, lines: list[str]) -> None:
        for line in lines:
            self.lines.append(line)
            if self._on_line is not None:
                self._on_line(stream, line)


# --- errors ------------------------------------------------------------------------------------


def _failed(
    what: str, words: Sequence[str], lines: Iterable[str], *, hint: str | None = None, **context: object
) -> CommandError:
    shown = [redact(printable(line)).rstrip() for line in lines]
    last = [line for line in shown if line.strip()][-_SHOWN_LINES:]
    said = f": {last[-1].strip()}" if last else ""
    return CommandError(
        f"{Path(words[0]).name} {redact(what)}{said}",
        hint=hint,
        command=[redact(word) for word in words],
        last_lines=last,
        **context,
    )


def _exit_status_in_words(returncode: int) -> str:
    """Return an exit status in words; a negative one is the signal that ended the program (POSIX).

    >>> _exit_status_in_words(3)
    'exit status 3'
    >>> _exit_status_in_words(-9)
    'signal 9 (SIGKILL)'
    """
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"signal {-returncode} ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"signal {-returncode}"
