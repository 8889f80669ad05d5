"""The stages of a run: work whose bytes nobody counts; each thread has one open at a time.

Whatever an installer says is the latest detail of the stage that is open, and stands whole in the run's log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.core.errors import KleinError
from provisioner.core.events import Events, Lasting, Notice, Stage, StageState

if TYPE_CHECKING:
    from provisioner.core.ports import Cancelled, ProcessResult
    from provisioner.disk.run_log import RunLog


_LONGEST_COMMAND = 1000  # characters of it in the log: some hold a whole program


def _shortened(command: str) -> str:
    """Return a command on one line."""
    line = " ".join(command.split())
    return line if len(line) <= _LONGEST_COMMAND else f"{line[:_LONGEST_COMMAND]}..."


@dataclass(slots=True)
class _Place:
    """Where the stage of one thread stands."""

    open: Stage | None = None
    began_s: float = 0.0
    is_logged: bool = False  # whether a program ran in the stage that is open
    was_interrupted: bool = False  # whether a program of this thread was ended by a signal


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.place = _Place()


class Stages:
    """Tells which stages are open, and keeps what programs print in them.

    Parameters
    ----------
    events : callable
        Told every stage.
    run : callable
        Starts programs: `provisioner.machine.process.run_process`.
    log : RunLog
        Where their output goes.
    cancelled : callable
        True means: stop now.  Asked in other threads than the main one, which a signal stops by itself; it ends one
        program of a thread, so that a way back is walked to its end, whoever is in a hurry.
    now : callable
        A monotonic clock, in seconds.
    """

    def __init__(
        self,
        events: Events,
        *,
        run: Callable[..., ProcessResult],
        log: RunLog,
        cancelled: Cancelled = lambda: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events, self._run, self._log, self._cancelled, self._now = events, run, log, cancelled, now
        self._of_thread = _OfThread()
        self._lock = threading.Lock()  # of the log
        self._logged_last: Stage | None = None

    # --- stages --------------------------------------------------------------------------------------

    @contextmanager
    def stage(self, doing: str, what: str, done: str) -> Iterator[Callable[[str], None]]:
        """Open a stage for as long as the block takes; what is yielded takes the words of what came of it.

        In a stage that is open already it is a detail.  An error names the log in its context, as ``log_path``, where
        the stage's programs wrote one.
        """
        if self._of_thread.place.open is not None:
            self.say(f"{doing} {what}")
            yield lambda _: None
            return
        result = [""]
        self.begin(doing, what, done)
        try:
            yield lambda text: result.__setitem__(0, text)
        except BaseException as error:
            self.fail(error)
            raise
        self.end(result[0])

    def begin(self, doing: str, what: str, done: str) -> None:
        """Open a stage, "loading", "the models", "loaded"; one that this thread has open is done."""
        self.end()
        place = self._of_thread.place
        place.began_s, place.is_logged = self._now(), False
        place.open = Stage(doing=doing, what=what, done=done, state="started")
        self._events(place.open)

    def end(self, result: str = "") -> None:
        """Close the stage that this thread has open, as done."""
        place = self._of_thread.place
        if place.open is not None:
            self._close(place, "done", result)
            if place.is_logged and self._log.path is not None:
                self._events(Notice(message=f"What the installer printed is in {self._log.path}."))

    def fail(self, error: BaseException) -> None:
        """Close the stage that this thread has open, as failed or interrupted, and name its log in the error."""
        place = self._of_thread.place
        if place.open is None:
            return
        self._close(place, "failed" if isinstance(error, Exception) else "interrupted", "")
        if place.is_logged and self._log.path is not None and isinstance(error, KleinError):
            error.context.setdefault("log_path", str(self._log.path))

    def _close(self, place: _Place, state: StageState, detail: str) -> None:
        stage, place.open = place.open, None
        with self._lock:
            self._log.flush()
        if stage is not None:
            self._events(replace(stage, state=state, detail=detail, seconds=self._now() - place.began_s))

    # --- what is said in them ------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Say what goes on: the detail of the stage that this thread has open, else a line of its own."""
        self._say(self._of_thread.place, line)

    @property
    def teller(self) -> Callable[[str], None]:
        """What says what goes on in the stage of the thread that asks for it, whichever thread calls it then."""
        place = self._of_thread.place
        return lambda line: self._say(place, line)

    def _say(self, place: _Place, line: str) -> None:
        stage = place.open
        if stage is None or isinstance(line, Lasting):
            self._events(Notice(message=line, severity="progress"))
        if stage is not None:
            if place.is_logged:  # else it is no installer's stage
                self._note(stage, line)
            self._events(replace(stage, state="working", detail=line, seconds=self._now() - place.began_s))

    def _note(self, stage: Stage, line: str) -> None:
        """Write a line into the log, behind a headline where the line before it is another stage's."""
        with self._lock:
            if self._logged_last not in {None, stage}:
                self._log.write(f"==> {stage.doing} {stage.what} <==")
            self._logged_last = stage
            self._log.write(line)

    def run(
        self,
        args: Sequence[str | Path],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input_bytes: bytes | None = None,
        on_line: Callable[[str, str], None] | None = None,
        keep_bytes: int | None = None,
    ) -> ProcessResult:
        """Run a program as `RunProcess` does; in a stage, its output goes into the log as well."""
        place = self._of_thread.place
        stage = place.open

        def listen(stream: str, line: str) -> None:
            if stage is not None:
                self._note(stage, line)
            if on_line is not None:
                on_line(stream, line)

        if stage is not None:
            place.is_logged = True
            self._note(stage, f"$ {_shortened(' '.join(map(str, args)))}")
        more: dict[str, object] = {} if keep_bytes is None else {"keep_bytes": keep_bytes}
        if threading.current_thread() is not threading.main_thread() and not place.was_interrupted:
            more["cancelled"] = self._cancelled
        heard = on_line if stage is None else listen
        try:
            return self._run(
                args, timeout_s=timeout_s, env=env, cwd=cwd, input_bytes=input_bytes, on_line=heard, **more
            )
        except KeyboardInterrupt:
            place.was_interrupted = True
            raise
