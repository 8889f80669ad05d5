"""Progress on stderr: bars where a terminal can redraw, one plain bar where it cannot, else lines.

The engine may call from several threads; one lock orders them.  rich and tqdm are imported when the
first bar is drawn, and not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Literal, NoReturn, Protocol, cast

from provisioner.core.events import (
    Event,
    FileProgress,
    Notice,
    PlanMade,
    ServerReady,
    Stage,
    StepFinished,
    StepStarted,
)
from provisioner.core.models import FilesPlan, FileStep
from provisioner.core.units import count
from provisioner.ui.board import (
    Board,
    OpenStage,
    ended_stage,
    finished_line,
    names_of,
    overall_line,
    overall_words,
    progress_words,
    row_lines,
    stage_line,
    stage_words,
    started_words,
)
from provisioner.ui.stream import Output
from provisioner.ui.text import Clean, Line, Para, Span, Style, cells, laid_out, linked, shorten, span, with_tilde

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text
    from tqdm.std import tqdm

LINE_FROM_BYTES = 100_000_000  # a tenth of a second's reading
LINE_EVERY_S = 30.0
"""Seconds between two progress lines of one file or stage, where every line is kept."""

TICK_S = 0.5
"""Seconds between two looks at the clock while a stage is open, so that one of seconds never skips one."""

REDRAWS_PER_SECOND = 8

_RICH_STYLES: dict[Style, str] = {
    "": "",
    "title": "bold",
    "good": "green",
    "bad": "bold red",
    "warn": "yellow",
    "dim": "dim",
    "command": "bold cyan",
}


Severity = Literal["info", "progress", "warning"]
_LEADS: dict[Severity, Span] = {
    "info": Span("note      ", "dim"),
    "progress": Span("          ", "dim"),
    "warning": Span("warning   ", "warn"),
}


class View(Protocol):
    """One way to show a board."""

    def started(self, step: FileStep, lines: list[Line]) -> None:
        """Show that a step begins; the lines say it, cleaned and laid out."""

    def moved(self, progress: FileProgress) -> None:
        """Show the progress of a file."""

    def stage_began(self, stage: Stage) -> None:
        """Show that a stage begins."""

    def tick(self) -> None:
        """Show that time passes: an open stage is on the board."""

    def above(self, lines: list[Line]) -> None:
        """Write lines that stay."""

    def close(self) -> None:
        """Restore the terminal."""


class Progress:
    """A listener of events that shows them; usable again after ``close``."""

    def __init__(
        self,
        output: Output,
        *,
        now: Callable[[], float],
        clean: Clean,
        is_verbose: bool = False,
        is_quiet: bool = False,
    ) -> None:
        self._output = output
        self._now = now
        self._clean = clean
        self._is_verbose = is_verbose
        self._is_quiet = is_quiet
        self._lock = threading.RLock()
        self._board = Board()
        self._view: View | None = None
        self._ticking: threading.Event | None = None  # set to stop the thread that ticks

    def __call__(self, event: Event) -> None:
        """Handle one event."""
        if self._is_quiet:
            return
        with self._lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case PlanMade(plan=plan):
                self._board.expect(plan)
            case StepStarted(step=step):
                self._board.start(step)
                words = f"[{event.number}/{event.total}] {started_words(step)}"
                self._shown().started(step, self._laid_out(span(words)))
            case FileProgress():
                cleaned = replace(event, label=self._one_line(event.label), note=self._one_line(event.note))
                if self._board.move(cleaned):
                    self._shown().moved(cleaned)
            case StepFinished(step=step):
                self._board.finish(step)
                self._shown().above(self._finished(event))
            case Stage():
                self._take_stage(replace(event, detail=self._one_line(event.detail), what=self._one_line(event.what)))
            case Notice(message=message, severity=severity):
                self.notice(message, severity=severity)
            case ServerReady():
                pass  # `start` says it in its own words

    def _take_stage(self, stage: Stage) -> None:
        is_open = self._board.take_stage(stage, self._now())
        view = self._shown()
        if not is_open:
            if not self._board.stages:
                self._stop_ticking()
            view.above(self._laid_out(ended_stage(stage)))
            return
        if stage.state == "started":
            view.stage_began(stage)
        else:
            view.tick()
        if self._ticking is None:
            self._ticking = threading.Event()
            threading.Thread(target=self._tick, args=(self._ticking,), daemon=True).start()

    def _tick(self, stopped: threading.Event) -> None:
        """Let the clock of a stage go on while nothing happens, until `stopped`."""
        while not stopped.wait(TICK_S):
            with self._lock:  # before any lock of rich's, as everywhere
                if not stopped.is_set() and self._view is not None:
                    self._view.tick()

    def _stop_ticking(self) -> None:
        # Not waited for: this thread has the lock that the other one wants, and it draws nothing once it has it.
        if self._ticking is not None:
            self._ticking.set()
            self._ticking = None

    def expect(self, plan: FilesPlan) -> None:
        """Start counting the bytes of `plan`; the same as the event ``PlanMade``."""
        self(PlanMade(plan=plan))

    def _finished(self, event: StepFinished) -> list[Line]:
        """Return the line of a finished step, with control characters removed from the server's text."""
        outcome = replace(event.outcome, detail=self._one_line(event.outcome.detail))
        width, ellipsis = self._output.width, self._output.ellipsis
        number = () if self._output.terminal == "full" else span(f"[{event.number}/{event.total}] ")
        room = None if width is None else width - sum(cells(each.text) for each in number)
        line = finished_line(replace(event, outcome=outcome), width=room, ellipsis=ellipsis)
        return self._laid_out((*number, *line))

    def _laid_out(self, line: Line) -> list[Line]:
        para = Para(line=line, hang=10)
        return laid_out([para], width=self._output.width, clean=self._one_line, home=self._output.home)

    def _one_line(self, text: str) -> str:
        return self._clean(text).replace("\n", " ").replace("\t", " ")

    def notice(self, message: str, *, severity: Severity) -> None:
        """Show one notice: warnings and progress always, information with ``--verbose``."""
        if self._is_quiet or (severity == "info" and not self._is_verbose):
            return
        lead = _LEADS[severity]
        with self._lock:
            lines = self._laid_out((lead, Span(message)))
            if self._view is None:
                self._output.lines(lines)
            else:
                self._view.above(lines)

    def close(self) -> None:
        """Remove the bars from the terminal; the lines above them stay."""
        with self._lock:
            self._stop_ticking()
            if self._view is not None:
                self._view.close()
                self._view = None
            self._board.clear()

    def _shown(self) -> View:
        """Return the view, made when there is something to show."""
        if self._view is None:
            self._view = self._make_view()
        return self._view

    def _make_view(self) -> View:
        if self._output.terminal == "full":
            return Bars(self._output, self._board, self._now)
        if self._output.terminal == "plain":
            return PlainBar(self._output, self._board, self._now)
        return Lines(self._output, self._board, self._now)


# --- no terminal -------------------------------------------------------------------------------


class Lines:
    """A line per step, and at most one per file or stage, and one for all files, in thirty seconds: for logs."""

    def __init__(self, output: Output, board: Board, now: Callable[[], float]) -> None:
        self._output = output
        self._stage_lines = StageLines(board, now)
        self._now = now
        self._board = board
        self._last: dict[str, float] = {}
        self._last_of_all = now()

    def started(self, step: FileStep, lines: list[Line]) -> None:
        """Write that a step begins; no progress of its file is written for the next thirty seconds."""
        self._last.update(dict.fromkeys(names_of(step), self._now()))
        self._output.lines(lines)

    def moved(self, progress: FileProgress) -> None:
        """Write the progress of a file: first if no step announced it, then when the last line is thirty seconds old.

        A small file that is read at once gets no line.
        """
        now = self._now()
        last = self._last.get(progress.label)
        if last is None and progress.size < LINE_FROM_BYTES:
            return
        if last is None or now - last >= LINE_EVERY_S:
            self._write(progress, now)

    def stage_began(self, stage: Stage) -> None:
        """Write that a stage begins."""
        self._output.lines(self._stage_lines.began(stage))

    def tick(self) -> None:
        """Write how the stage stands, when its last line is thirty seconds old."""
        self._output.lines(self._stage_lines.due())

    def _write(self, progress: FileProgress, now: float) -> None:
        self._last[progress.label] = now
        lines = [span(progress_words(progress))]
        if len(self._board.rows) > 1 and now - self._last_of_all >= LINE_EVERY_S:
            self._last_of_all = now
            lines.append(span(f"together: {overall_words(self._board)}"))
        self._output.lines(lines)

    def above(self, lines: list[Line]) -> None:
        """Write lines."""
        self._output.lines(lines)

    def close(self) -> None:
        """Nothing to restore."""


class StageLines:
    """The lines of stages where every line is kept: their beginnings, and what is going on every thirty seconds."""

    def __init__(self, board: Board, now: Callable[[], float]) -> None:
        self._board = board
        self._now = now
        self._last_s: dict[tuple[str, str], float] = {}

    def began(self, stage: Stage) -> list[Line]:
        """Return the line of a stage's beginning."""
        self._last_s[stage.key] = self._now()
        return [span(f"{stage.doing} {stage.what}")]

    def due(self) -> list[Line]:
        """Return the lines that are due: of every open stage whose last one is thirty seconds old."""
        now = self._now()
        due = [
            each
            for key, each in self._board.stages.items()
            if now - self._last_s.setdefault(key, each.began_s) >= LINE_EVERY_S
        ]
        self._last_s.update({each.stage.key: now for each in due})
        return [span(stage_words(each.stage, now - each.began_s)) for each in due]


# --- a terminal that cannot move its cursor up ---------------------------------------------------


class PlainBar:
    """One bar of tqdm for everything together: a carriage return is all it needs."""

    def __init__(self, output: Output, board: Board, now: Callable[[], float]) -> None:
        self._output = output
        self._board = board
        self._now = now
        self._drawn_s = float("-inf")
        self._bar: tqdm[NoReturn] | None = None
        self._stage_lines = StageLines(board, now)

    def started(self, step: FileStep, lines: list[Line]) -> None:  # noqa: ARG002 - the lines name it
        """Write that a step begins."""
        self.above(lines)

    def stage_began(self, stage: Stage) -> None:
        """Write that a stage begins."""
        self.above(self._stage_lines.began(stage))

    def tick(self) -> None:
        """Write how the stage stands, when its last line is thirty seconds old."""
        lines = self._stage_lines.due()
        if lines:
            self.above(lines)

    def moved(self, progress: FileProgress) -> None:
        """Move the bar."""
        if self._bar is None:
            self._bar = self._make_bar()
        self._bar.n, self._bar.total = self._board.done_and_total
        others = len(self._board.rows) - 1
        name = shorten(progress.label.rpartition("/")[2], 24) if others < 1 else count(others + 1, "file")
        self._bar.set_description_str(name, refresh=False)
        now = self._now()
        if now - self._drawn_s >= 1:
            self._drawn_s = now
            self._bar.refresh()

    def _make_bar(self) -> tqdm[NoReturn]:
        from tqdm.std import tqdm

        tqdm.monitor_interval = 0  # no thread: it repairs what tqdm counts by itself, and nothing is here
        done, total = self._board.done_and_total
        return tqdm(
            total=total,
            initial=done,
            file=cast("IO[str]", self._output),
            ascii=True,
            unit="B",
            unit_scale=True,
            leave=False,
            ncols=self._output.size[0] - 1,
        )

    def above(self, lines: list[Line]) -> None:
        """Write lines above the bar."""
        if self._bar is not None:
            self._bar.clear()
        self._output.lines(lines)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


# --- a terminal that can redraw ------------------------------------------------------------------


class Bars:
    """A bar per file with a line for the whole under them, and a line per open stage, redrawn by rich."""

    def __init__(self, output: Output, board: Board, now: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._output = output
        self._board = board
        self._now = now
        self._drawn_s = float("-inf")
        self._console: Console = Console(
            file=cast("IO[str]", output),
            force_terminal=True,
            color_system="standard" if output.is_coloured else None,
            legacy_windows=False,
            markup=False,
            highlight=False,
            emoji=False,
        )
        # Redrawn on events and by the ticks of `Progress`, which hold its lock, and not by a thread of rich: two locks
        # taken in two orders could deadlock.
        self._live: Live = Live(
            console=self._console,
            get_renderable=self._drawing,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _drawing(self) -> Text:
        """Return all bars, for the current size of the window."""
        columns, height = self._output.size
        self._console.size = type(self._console.size)(columns, height)
        return self._text(self._bar_lines(columns, height))

    def _bar_lines(self, columns: int, height: int) -> list[Line]:
        width = max(40, min(columns, 130))
        rows, stages = list(self._board.rows.values()), list(self._board.stages.values())
        shown = self._stage_lines(stages, width, max(1, height // 3))
        lines: list[Line] = []
        if rows:
            most = max(1, height - 3 - max(1, len(shown)))
            lines = row_lines(rows[:most], width=width, is_unicode=self._output.is_unicode)
            if len(rows) > most:
                lines.append(span(f"  and {len(rows) - most} more", "dim"))
            lines.append(overall_line(self._board, width=width))
        return lines + shown

    def _stage_lines(self, stages: list[OpenStage], width: int, most: int) -> list[Line]:
        lines = []
        for each in stages[:most]:
            stage = replace(each.stage, detail=with_tilde(each.stage.detail, self._output.home))
            lines.append(stage_line(stage, self._now() - each.began_s, width=width, ellipsis=self._output.ellipsis))
        if len(stages) > most:
            lines[-1] = span(f"  and {count(len(stages) - most + 1, 'task')} more", "dim")
        return lines

    def _text(self, lines: list[Line]) -> Text:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="crop", end="")
        for number, line in enumerate(lines):
            text.append("\n" if number else "")
            for each in linked(line) if self._output.is_linked else line:
                link = f" link {each.href}" if each.href and self._output.is_linked else ""
                text.append(each.text, style=f"{_RICH_STYLES[each.style]}{link}".strip())
        return text

    def started(self, step: FileStep, lines: list[Line]) -> None:
        """Nothing: the bar shows it."""

    def stage_began(self, stage: Stage) -> None:  # noqa: ARG002 - drawn from the board
        """Draw the stage."""
        self._live.refresh()

    def tick(self) -> None:
        """Redraw, at most eight times a second."""
        self._redraw()

    def moved(self, progress: FileProgress) -> None:  # noqa: ARG002 - drawn from the board
        """Redraw, at most eight times a second."""
        self._redraw()

    def _redraw(self) -> None:
        now = self._now()
        if now - self._drawn_s >= 1 / REDRAWS_PER_SECOND:
            self._drawn_s = now
            self._live.refresh()

    def above(self, lines: list[Line]) -> None:
        """Write lines that stay, above the bars."""
        self._live.refresh()  # first: printing repeats the last drawing, which may show a finished file
        for line in lines:
            self._console.print(self._text([line]), soft_wrap=True)

    def close(self) -> None:
        """Remove the bars and show the cursor."""
        self._live.stop()
