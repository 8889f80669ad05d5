"""How fast the model files came, and what each of them waited for: collected from the events of a run.

Memory is bounded however long a run takes: when there are more than `MOST_POINTS` intervals, neighbours are added up.
Has no clock; whoever passes the events says when they came.
"""

from __future__ import annotations

from dataclasses import dataclass

from provisioner.core.events import Event, FileProgress, Phase, StepFinished

MOST_POINTS = 240
"""Intervals that are kept; a chart of a page shows no more."""

_MOST_FILES = 200  # a set has three; a folder that is checked whole may have thousands
_FIRST_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTimes:
    """What one file's time went into."""

    path: str  # "vae/flux2-vae.safetensors"
    seconds: tuple[tuple[Phase, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord:
    """What came over the network in a run, over time, and the time of each file."""

    interval_s: float
    received_bytes: tuple[int, ...]  # in each interval from the first byte on; at most `MOST_POINTS`
    files: tuple[FileTimes, ...]


class TransferRecorder:
    """Listens to a run."""

    def __init__(self) -> None:
        self._interval_s = _FIRST_INTERVAL_S
        self._received: list[int] = []
        self._began_s: float | None = None  # when the first byte came
        self._counted: dict[str, int] = {}  # bytes of a file that are in `_received`
        self._since: dict[str, tuple[Phase, float]] = {}
        self._spent: dict[str, dict[Phase, float]] = {}

    def hear(self, event: Event, now_s: float) -> None:
        """Take an event that came at `now_s`, in seconds of a clock that only runs forward."""
        match event:
            case FileProgress():
                self._turn(event.label, event.phase, now_s)
                self._count(event, now_s)
            case StepFinished(step=step):
                self._turn(step.destination.label, None, now_s)
            case _:
                pass

    @property
    def record(self) -> TransferRecord | None:
        """What was heard so far; None where no file was worked on."""
        if not self._spent:
            return None
        files = (
            FileTimes(path=path, seconds=tuple((phase, round(each, 3)) for phase, each in spent.items()))
            for path, spent in self._spent.items()
        )
        return TransferRecord(interval_s=self._interval_s, received_bytes=tuple(self._received), files=tuple(files))

    def _turn(self, label: str, phase: Phase | None, now_s: float) -> None:
        """Add the time since the last word about a file to the phase it was in."""
        last = self._since.pop(label, None)
        if last is not None and (label in self._spent or len(self._spent) < _MOST_FILES):
            spent = self._spent.setdefault(label, {})
            spent[last[0]] = spent.get(last[0], 0.0) + now_s - last[1]
        if phase is not None:
            self._since[label] = (phase, now_s)

    def _count(self, event: FileProgress, now_s: float) -> None:
        """Add the bytes that are new to the interval they came in."""
        before = self._counted.get(event.label, 0)
        new = event.bytes_received - before if event.bytes_received >= before else event.bytes_received
        self._counted[event.label] = event.bytes_received
        if new == 0:
            return
        if self._began_s is None:
            self._began_s = now_s
        while (number := int((now_s - self._began_s) / self._interval_s)) >= MOST_POINTS:
            self._received = [sum(self._received[at : at + 2]) for at in range(0, len(self._received), 2)]
            self._interval_s *= 2
        self._received += [0] * (number + 1 - len(self._received))
        self._received[number] += new
