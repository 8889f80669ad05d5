"""The stages of a run: work whose bytes nobody counts, one after the other.

Whatever an installer says is the latest detail of the stage that is open, and stands whole in the run's log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.core.errors import KleinError
from provisioner.core.events import Events, Lasting, Notice, Stage, StageState

if TYPE_CHECKING:
    from provisioner.core.ports import ProcessResult, RunProcess
    from provisioner.disk.run_log import RunLog


_LONGEST_COMMAND = 1000  # characters of it in the log: some hold a whole program


def _shortened(command: str) -> str:
    """Return a command on one line."""
    line = " ".join(command.split())
    return line if len(line) <= _LONGEST_COMMAND else f"{line[:_LONGEST_COMMAND]}..."


class Stages:
    """Tells which stage is open, and keeps what programs print in it.

    Parameters
    ----------
    events : callable
        Told every stage.
    run : callable
        Starts programs.
    log : RunLog
        Where their output goes.
    now : callable
        A monotonic clock, in seconds.
    """

    def __init__(
        self, events: Events, *, run: RunProcess, log: RunLog, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._events, self._run, self._log, self._now = events, run, log, now
        self._open: Stage | None = None
        self._began_s = 0.0
        self._is_logged = False  # whether a program ran in the stage that is open

    # --- stages --------------------------------------------------------------------------------------

    @contextmanager
    def stage(self, doing: str, what: str, done: str) -> Iterator[Callable[[str], None]]:
        """Open a stage for as long as the block takes; what is yielded takes the words of what came of it.

        In a stage that is open already it is a detail.  An error names the log in its context, as ``log_path``, where
        the stage's programs wrote one.
        """
        if self._open is not None:
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
        """Open a stage, "loading", "the models", "loaded"; one that is open is done."""
        self.end()
        self._began_s, self._is_logged = self._now(), False
        self._open = Stage(doing=doing, what=what, done=done, state="started")
        self._events(self._open)

    def end(self, result: str = "") -> None:
        """Close the stage that is open, as done."""
        if self._open is not None:
            self._close("done", result)
            if self._is_logged and self._log.path is not None:
                self._events(Notice(message=f"What the installer printed is in {self._log.path}."))

    def fail(self, error: BaseException) -> None:
        """Close the stage that is open, as failed or interrupted, and name its log in the error."""
        if self._open is None:
            return
        self._close("failed" if isinstance(error, Exception) else "interrupted", "")
        if self._is_logged and self._log.path is not None and isinstance(error, KleinError):
            error.context.setdefault("log_path", str(self._log.path))

    def _close(self, state: StageState, detail: str) -> None:
        stage, self._open = self._open, None
        self._log.flush()
        if stage is not None:
            self._events(replace(stage, state=state, detail=detail, seconds=self._now() - self._began_s))

    # --- what is said in them ------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Say what goes on: the detail of the open stage, else a line of its own."""
        if self._open is None or isinstance(line, Lasting):
            self._events(Notice(message=line, severity="progress"))
        if self._open is not None:
            if self._is_logged:  # else it is no installer's stage
                self._log.write(line)
            seconds = self._now() - self._began_s
            self._events(replace(self._open, state="working", detail=line, seconds=seconds))

    def _note(self, line: str) -> None:
        self._is_logged = True
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

        def listen(stream: str, line: str) -> None:
            self._note(line)
            if on_line is not None:
                on_line(stream, line)

        heard = on_line
        if self._open is not None:
            self._note(f"$ {_shortened(' '.join(map(str, args)))}")
            heard = listen
        start = self._run if keep_bytes is None else partial(self._run, keep_bytes=keep_bytes)
        return start(args, timeout_s=timeout_s, env=env, cwd=cwd, input_bytes=input_bytes, on_line=heard)
