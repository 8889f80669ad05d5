"""``verify --for 5m`` and ``repair --for 5m``: read a little at a time, what was read the longest ago first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from provisioner.commands.output_file import write_file
from provisioner.commands.run import Run, named_path
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK, KleinError, StorageError
from provisioner.core.models import Check, Finding
from provisioner.core.units import count, human_bytes, human_duration
from provisioner.disk.last_run import write_for_user
from provisioner.disk.locations import state_folder
from provisioner.disk.read_json import read_object
from provisioner.files import planner
from provisioner.files.scrub_order import ScrubRecord, ScrubSummary, parse_records, records_document
from provisioner.files.timed_reading import TimedReading
from provisioner.plan.make_plan import make_plan
from provisioner.report.metrics import metrics_text
from provisioner.report.outcome import Report, exit_status_of

_SAVED_EVERY_S = 10.0


def run_scrub(run: Run, seconds: float, *, say: Callable[[str], None], damaged_first: bool = False) -> Report:
    """Read files for so long and return the report; nothing but this user's own records is written.

    Parameters
    ----------
    run : Run
        Which files.
    seconds : float
        When to stop; a file that cannot be left in the middle is read to its end.
    say : callable
        Told in sentences what was read.
    damaged_first : bool
        Begin with what an earlier run found damaged: it is to be repaired.

    Raises
    ------
    StorageError
        A folder of the target cannot be looked at.
    """
    began_s = time.monotonic()
    records = _Records(_records_path(run))
    reading = TimedReading(
        observer=run.observer,
        wanted=run.wanted,
        target=run.target,
        records=records.known,
        time_is_over=lambda: time.monotonic() - began_s >= seconds,
        now=lambda: int(time.time()),
        save=records.save,
        damaged_first=damaged_first,
    )
    try:
        checks, summary = reading.run()
    finally:
        records.write()
    if records.problem is not None:
        run.session.notice(
            f"What was read could not be remembered, so that the next run begins anew: {records.problem}"
        )
    for line in _sentences(summary, time.monotonic() - began_s):
        say(line)
    findings = (*reading.findings, *(_found_before(check) for check in reading.found_before()))
    is_wrong = summary.wrong > 0 or any(each.severity == "problem" for each in findings)
    files = replace(planner.no_steps(run.manifest, run.wanted, run.target), checks=checks)
    report = run.report(
        "verify",
        "findings" if is_wrong else "ok",
        EXIT_FINDINGS if is_wrong else EXIT_OK,
        plan=make_plan(files, (), findings=findings, choice=run.choice),
    )
    return replace(report, scrub=summary)


def _sentences(summary: ScrubSummary, seconds: float) -> Iterator[str]:
    ended = f"{summary.read_files} of {count(summary.files, 'file')} to the end"
    yield f"{human_bytes(summary.read_bytes)} were read in {human_duration(seconds)}, {ended}."
    if summary.never_read:
        verb = "was" if summary.never_read == 1 else "were"
        yield f"{count(summary.never_read, 'file')} {verb} not read to the end yet."
    elif summary.oldest_age_s is not None:
        yield f"Every file that is right was read in the last {human_duration(max(summary.oldest_age_s, 1))}."


def _found_before(check: Check) -> Finding:
    return Finding(
        code="damaged-before",
        severity="problem",
        remedy="repair",
        message=f"{check.destination.label} was damaged when it was read last; this run did not get to it.",
        path=check.destination.path,
        hint="Run `klein-setup repair`, or give --for more time.",
    )


# --- the metrics ---------------------------------------------------------------------------------


@dataclass
class Metrics:
    """The file of ``--metrics``, written whatever becomes of the run; `about` and `report` are set on the way."""

    path: Path | None
    about: Run | None = None
    report: Report | None = None

    @contextlib.contextmanager
    def written(self) -> Iterator[Metrics]:
        """Write the file when the block ends; an error of the block goes on after that."""
        try:
            yield self
        except BaseException as error:
            with contextlib.suppress(KleinError):
                self._write(exit_status_of(error))
            raise
        self._write(EXIT_OK if self.report is None else self.report.exit_status)

    def _write(self, exit_status: int) -> None:
        if self.path is None:
            return
        labels = {}
        if self.about is not None:
            labels = {"target": str(named_path(self.about.target)), "set": self.about.wanted.id}
        summary = None if self.report is None else self.report.scrub
        text = metrics_text(summary, labels=labels, exit_status=exit_status, ended_at=int(time.time()))
        write_file(text.encode("utf-8"), self.path, option="--metrics")


# --- what is remembered --------------------------------------------------------------------------


def _records_path(run: Run) -> Path:
    place = os.path.normcase(os.path.realpath(named_path(run.target)))
    return state_folder() / "scrub" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.json"


@dataclass
class _Records:
    """The records of one target, in the user's own state folder; files that are gone are forgotten."""

    path: Path
    known: dict[str, ScrubRecord] = field(init=False)
    problem: StorageError | None = None
    _is_changed: bool = False
    _written_s: float = 0.0

    def __post_init__(self) -> None:
        self.known = parse_records(read_object(self.path), now=int(time.time()))
        self._written_s = time.monotonic()

    def save(self, changed: Mapping[str, ScrubRecord]) -> None:
        self.known |= changed
        self._is_changed = True
        if time.monotonic() - self._written_s >= _SAVED_EVERY_S:
            self.write()

    def write(self) -> None:
        if not self._is_changed:
            return
        kept = {path: record for path, record in self.known.items() if os.path.lexists(path)}
        try:
            write_for_user(self.path, (json.dumps(records_document(kept), indent=1) + "\n").encode("ascii"))
        except StorageError as error:
            self.problem = error
        self._is_changed, self._written_s = False, time.monotonic()
