"""The progress of every file while the engine works: events in, numbers and lines out.

Keeps state but knows no clock, no stream and no terminal; the views read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from provisioner.core.events import FileProgress, Phase, Stage, StageState, StepFinished
from provisioner.core.models import FetchFile, FilesPlan, FileStep, HubBlob, MoveFile, PatchFile, PlaceFile
from provisioner.core.units import clock, count, human_bytes, human_duration, human_rate, percent
from provisioner.ui.text import WIDEST_PROSE, Line, Span, Style, cells, padded, shorten, shorten_path

_PHASES: dict[Phase, str] = {
    "hashing": "reading",
    "checking": "checking",
    "fetching": "fetching",
    "waiting": "waiting",
    "proving": "verifying",
    "placing": "placing",
    "syncing": "writing to disk",
}


_ENDS: dict[StageState, tuple[str, Style]] = {"failed": ("failed", "bad"), "interrupted": ("stopped", "warn")}

_ARRIVING = (FetchFile, PatchFile, PlaceFile, MoveFile)
"""Steps that put a correct file in place."""


def names_of(step: FileStep) -> tuple[str, ...]:
    """Return the labels that progress events of a step's file may have, the most specific first."""
    destination = step.destination
    names = [destination.label, destination.relative.as_posix(), destination.path.name]
    if isinstance(destination, HubBlob):
        names.append(f"{destination.root.name}/{destination.filename}")
    return tuple(dict.fromkeys((*names, str(destination.path), step.artifact.id)))


def position(progress: FileProgress) -> int:
    """Return the position of a bar in bytes: what was read when a file is read, else the frontier on disk."""
    done = progress.bytes_hashed if progress.phase in {"hashing", "checking"} else progress.bytes_on_disk
    return max(0, min(done, progress.size))


@dataclass(frozen=True, slots=True)
class OpenStage:
    """A stage that is open, and when it began on the clock of whoever shows it."""

    stage: Stage
    began_s: float


def time_left(remaining: int, rate: float) -> float | None:
    """Return seconds, or None while the rate is unknown."""
    return remaining / rate if rate >= 1 else None


@dataclass(slots=True)
class Board:
    """The files being worked on, the open stages, and the progress of the whole."""

    rows: dict[str, FileProgress] = field(default_factory=dict)
    plan: FilesPlan | None = None
    stages: dict[tuple[str, str], OpenStage] = field(default_factory=dict)  # by their key, the oldest first
    _read: dict[str, int] = field(default_factory=dict)  # files read to their end outside of a step: size by label
    _brought: dict[str, int] = field(default_factory=dict)  # files that no step announced and that arrived: the same
    _finished: set[str] = field(default_factory=set)  # every name of the files whose step is over
    _running: list[FileStep] = field(default_factory=list)

    def expect(self, plan: FilesPlan) -> None:
        """Start a plan; the reading that made it is finished, what else arrives goes on."""
        self.rows = {row.label: row for row in self._outside() if row.phase != "hashing"}
        self.plan = plan
        self._read.clear()
        self._finished.clear()

    def start(self, step: FileStep) -> None:
        """Accept progress of a step's file, also of one that an earlier step finished."""
        self._running.append(step)
        self._finished.difference_update(names_of(step))

    def move(self, progress: FileProgress) -> bool:
        """Store the progress of one file; return False for a late event of a file that is finished."""
        if progress.phase == "hashing" and progress.bytes_hashed >= progress.size:
            last = self.rows.pop(progress.label, None)
            has_arrived = last is not None and last.phase != "hashing"
            (self._brought if has_arrived else self._read)[progress.label] = progress.size
            return True
        if progress.label in self._finished and progress.phase != "hashing":
            return False
        self._read.pop(progress.label, None)
        self.rows[progress.label] = progress
        return True

    def finish(self, step: FileStep) -> None:
        """Remove a step's file from the board; a name that another running step's file has too is not touched."""
        self._running = [each for each in self._running if each is not step]
        of_others = {name for each in self._running for name in names_of(each)}
        for name in names_of(step):
            if name not in of_others:
                self.rows.pop(name, None)
                self._finished.add(name)

    def clear(self) -> None:
        """Forget what is in progress; what is finished stays finished."""
        self.rows.clear()
        self._read.clear()
        self._running.clear()
        self.stages.clear()

    def take_stage(self, stage: Stage, now_s: float) -> bool:
        """Store where a stage stands; return whether it is open."""
        is_open = stage.state in {"started", "working"}
        if is_open:
            self.stages[stage.key] = OpenStage(stage, now_s - stage.seconds)
        else:
            self.stages.pop(stage.key, None)
        return is_open

    @property
    def rate(self) -> float:
        """Bytes per second of all files in progress."""
        return sum(
            row.rate_bytes_s
            for row in self.rows.values()
            if row.phase in {"hashing", "checking", "fetching", "placing"}
        )

    @property
    def files(self) -> tuple[int, int]:
        """How many files arrived, and how many there are to arrive: of the plan, and what arrives beside it."""
        steps = self._arrivals()
        arrived = sum(self._is_finished(step) for step in steps) + len(self._brought)
        return arrived, len(steps) + len(self._brought) + sum(row.phase != "hashing" for row in self._outside())

    @property
    def done_and_total(self) -> tuple[int, int]:
        """Bytes done and bytes altogether: of the plan's arrivals, and of what is read or arrives beside them."""
        steps, outside = self._arrivals(), self._outside()
        done = total = sum(self._brought.values()) + (0 if steps else sum(self._read.values()))
        for step in steps:
            total += step.artifact.size
            done += self._done_of(step, self._row_of(step))
        done += sum(position(row) for row in outside)
        total += sum(row.size for row in outside)
        return done, total

    def _row_of(self, step: FileStep) -> FileProgress | None:
        return next((self.rows[name] for name in names_of(step) if name in self.rows), None)

    def _outside(self) -> list[FileProgress]:
        """Return the rows of files that no step of the plan is about."""
        ours = {name for step in self._arrivals() for name in names_of(step)}
        return [row for label, row in self.rows.items() if label not in ours]

    def _done_of(self, step: FileStep, row: FileProgress | None) -> int:
        if self._is_finished(step):
            return step.artifact.size
        if row is not None:
            return position(row)
        return step.held_bytes if isinstance(step, (FetchFile, PatchFile)) else 0

    def _arrivals(self) -> list[FileStep]:
        steps: Iterable[FileStep] = self.plan.steps if self.plan else ()
        return [step for step in steps if isinstance(step, _ARRIVING)]

    def _is_finished(self, step: FileStep) -> bool:
        return step.destination.label in self._finished


# --- words -------------------------------------------------------------------------------------


def state_words(progress: FileProgress, width: int, ellipsis: str = "...") -> str:
    """Return the state of a file, with as many facts as fit `width` cells."""
    if progress.phase == "waiting":
        return shorten(f"waiting: {progress.note}" if progress.note else "waiting for the server", width, ellipsis)
    if progress.phase == "checking":
        return _longest([f"checking {human_bytes(progress.bytes_on_disk)} on disk", "checking"], width)
    if progress.phase in {"proving", "syncing"}:
        return shorten(_PHASES[progress.phase], width)
    parts = [human_rate(progress.rate_bytes_s)] if progress.rate_bytes_s >= 1 else [_PHASES[progress.phase]]
    seconds = time_left(progress.size - position(progress), progress.rate_bytes_s)
    if seconds is not None:
        parts.append(f"{clock(seconds)} left")
    choices = ["  ".join(parts), parts[0]]
    if progress.connections > 1 and progress.phase == "fetching":
        choices = [
            "  ".join([*parts, f"{progress.connections} connections"]),
            "  ".join([*parts, f"x{progress.connections}"]),
            *choices,
        ]
    return _longest(choices, width)


def _longest(choices: list[str], width: int) -> str:
    """Return the first choice that fits; the last one is cut when none does."""
    return next((each for each in choices if cells(each) <= width), shorten(choices[-1], width))


def bar(done: int, total: int, width: int, *, is_unicode: bool) -> Line:
    """Return a bar of `width` cells; thick and thin, so that it reads without colour too."""
    full = width if total <= 0 else max(0, min(width, done * width // total))
    heavy, light = ("\u2501", "\u2500") if is_unicode else ("#", "-")
    return (Span(heavy * full, "command"), Span(light * (width - full), "dim"))


def row_lines(rows: Sequence[FileProgress], *, width: int, is_unicode: bool) -> list[Line]:
    """Return a line per file for a terminal: name, bar, percent, and state."""
    ellipsis = "\u2026" if is_unicode else "..."
    state_width = 36 if width >= 100 else 24 if width >= 76 else 20 if width >= 56 else 10
    room = width - 13 - state_width  # margins, gaps and percent; the last cell of the window stays empty
    least_bar = 16 if width >= 100 else 12 if width >= 76 else 6
    names = [shorten_path(row.label, max(10, room - least_bar), ellipsis) for row in rows]
    name_width = max((cells(name) for name in names), default=0)
    bar_width = max(4, min(40, room - name_width))
    lines: list[Line] = []
    for row, name in zip(rows, names, strict=True):
        label = Span(f"  {padded(name, name_width)}  ")
        if row.phase == "waiting":
            lines.append((label, Span(state_words(row, bar_width + 8 + state_width, ellipsis), "warn")))
            continue
        done = position(row)
        drawn = bar(done, row.size, bar_width, is_unicode=is_unicode)
        figures = Span(f" {padded(percent(done, row.size), 5, 'right')}  ")
        lines.append((label, *drawn, figures, Span(state_words(row, state_width, ellipsis), "dim")))
    return lines


def overall_words(board: Board, width: int = 200) -> str:
    """Return how everything together stands: files arrived, how much of the bytes, rate and time left; what fits."""
    arrived, files = board.files
    done, total = board.done_and_total
    rate = [human_rate(board.rate)] if board.rate >= 1 else []
    if not files:
        return ", ".join([f"{human_bytes(done)} read", *rate])
    seconds = time_left(total - done, board.rate)
    left = [] if seconds is None else [f"{clock(seconds)} left"]
    bytes_of = f"{human_bytes(done)} of {human_bytes(total)}"
    parts = [f"{arrived} of {count(files, 'file')}", bytes_of, *rate, *left]
    return _longest([", ".join(parts), ", ".join([bytes_of, *rate, *left]), ", ".join([bytes_of, *left])], width)


def overall_line(board: Board, *, width: int = 80) -> Line:
    """Return the line under the bars."""
    return (Span(f"  {overall_words(board, width - 3)}", "title"),)


def stage_line(stage: Stage, seconds: float, *, width: int, ellipsis: str = "...") -> Line:
    """Return the line of an open stage: what is done, for how long, and the latest detail in what is left of it."""
    head = shorten(f"  {stage.doing} {stage.what}  {clock(seconds)}", width - 1, ellipsis)
    room = width - cells(head) - 3  # a gap, and the last cell of the window, which stays empty
    detail = Span(f"  {shorten(stage.detail, room, ellipsis)}", "dim")
    return (Span(head, "title"), detail) if stage.detail and room >= 8 else (Span(head, "title"),)


def stage_words(stage: Stage, seconds: float) -> str:
    """Return where an open stage stands, as a sentence for a log."""
    detail = f", {stage.detail}" if stage.detail else ""
    return f"{stage.doing} {stage.what}: {human_duration(seconds)}{detail}"


def ended_stage(stage: Stage) -> Line:
    """Return the line that stays when a stage has ended."""
    word, style = _ENDS.get(stage.state, (stage.done, "good"))
    what = (stage.detail or stage.what) if stage.state == "done" else f"{stage.doing} {stage.what}"
    took = Span(f"  {human_duration(stage.seconds)}", "dim")
    return (Span(f"{padded(word, 9)} ", style), Span(what), took)


def progress_words(progress: FileProgress) -> str:
    """Return the progress of a file, as a sentence for a log."""
    if progress.phase == "waiting":
        return f"{progress.label}: {state_words(progress, 200)}"
    done = position(progress)
    parts = [
        _PHASES[progress.phase],
        percent(done, progress.size),
        f"{human_bytes(done)} of {human_bytes(progress.size)}",
    ]
    if progress.rate_bytes_s >= 1:
        parts.append(human_rate(progress.rate_bytes_s))
    seconds = time_left(progress.size - done, progress.rate_bytes_s)
    if seconds is not None and done < progress.size:
        parts.append(f"{human_duration(seconds)} left")
    return f"{progress.label}: {', '.join(parts)}"


def started_words(step: FileStep) -> str:
    """Return the beginning of a step, as a sentence for a log."""
    verbs = {
        "fetch-file": "fetching",
        "place-file": "placing",
        "move-file": "moving",
        "patch-file": "repairing",
        "record-receipt": "recording",
    }
    return f"{verbs[step.kind]} {step.destination.label} ({human_bytes(step.artifact.size)}): {step.reason}"


def finished_line(event: StepFinished, *, width: int | None, ellipsis: str = "...") -> Line:
    """Return the line that stays when a step is finished, in as much detail as `width` allows."""
    outcome, artifact = event.outcome, event.step.artifact
    label = event.step.destination.label
    if outcome.status != "done":
        style: Style = "bad" if outcome.status == "failed" else "warn"
        return (Span(padded(outcome.status, 8), style), Span(f"  {label}: {outcome.detail}"))
    if not isinstance(event.step, _ARRIVING):
        return (Span("done    ", "good"), Span(f"  {label}"), Span(f"  {outcome.detail}", "dim"))
    size, took, digest = (
        human_bytes(artifact.size),
        f"in {human_duration(outcome.seconds)}",
        f"sha256 {artifact.sha256}",
    )
    tails = [
        f"  {size}  {took}  {digest}",
        f"  {size}  {took}  {digest[:15]}{ellipsis}",
        f"  {size}  {took}",
        f"  {size}",
    ]
    if width is None:
        return (Span("verified", "good"), Span(f"  {label}"), Span(tails[0], "dim"))
    room = min(width, WIDEST_PROSE) - 11
    tail = next((each for each in tails[1:] if cells(label) + cells(each) <= room), tails[2])
    return (
        Span("verified", "good"),
        Span(f"  {shorten_path(label, max(10, room - cells(tail)), ellipsis)}"),
        Span(tail, "dim"),
    )
