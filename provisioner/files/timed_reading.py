"""Reads the files of a set for so long and no longer: what was read the longest ago first, on where reading stopped.

A file whose blocks this user's runs have read together with the whole, or whose manifest names them, is read by blocks
and can be left in the middle.  Any other is read whole once, to its end, even when the time is over before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from provisioner.core.errors import FileInUseError
from provisioner.core.models import ArtifactSet, Check, Finding, Target
from provisioner.core.ports import Stamp
from provisioner.files.blocks import Trusted, block_count, differing_blocks
from provisioner.files.observe import Observer
from provisioner.files.scrub_order import ScrubRecord, ScrubSummary, reading_order, summary_of

_BLOCKS_AT_ONCE = 8  # 128 MiB between two looks at the clock


@dataclass
class TimedReading:
    """One run.

    Parameters
    ----------
    observer : Observer
        Looks at the target and reads it.
    wanted, target
        Which files, and where.
    records : mapping of str to ScrubRecord
        What earlier runs remember, by path.
    time_is_over : callable
        Asked between two pieces; a run reads one piece at least.
    now : callable
        The time, in seconds since 1970.
    save : callable
        Told the records whenever they changed.
    damaged_first : bool
        Read first what was damaged when it was read last.
    """

    observer: Observer
    wanted: ArtifactSet
    target: Target
    records: Mapping[str, ScrubRecord]
    time_is_over: Callable[[], bool]
    now: Callable[[], int]
    save: Callable[[Mapping[str, ScrubRecord]], None]
    damaged_first: bool = False
    findings: tuple[Finding, ...] = ()
    _checks: dict[str, Check] = field(default_factory=dict)  # by path, as far as this run knows
    _known: dict[str, ScrubRecord] = field(default_factory=dict)
    _read_files: set[str] = field(default_factory=set)
    _read_bytes: int = 0

    def run(self) -> tuple[tuple[Check, ...], ScrubSummary]:
        """Read, and return every file of the set as far as it is known now, with what was read.

        Raises
        ------
        StorageError
            A folder of the target cannot be looked at.
        KeyboardInterrupt
            Cancelled; the records say how far it was.
        """
        seen = self.observer.observe(self.wanted, self.target, depth="quick")
        self.findings = tuple(each for each in seen.findings if each.code != "never-proven")  # that is what this is for
        self._checks = {str(check.destination.path): check for check in seen.checks}
        self._known = {path: self._record_of(check) for path, check in self._checks.items() if check.status == "ok"}
        begun = {path: record.next_block for path, record in self._known.items() if record.began_at is not None}
        order = reading_order(self._known, damaged_first=self.damaged_first)
        for path in order:
            self._read(path)
        for path in order:  # with time left, what an earlier run read of a file is read again
            if begun.get(path) and path in self._known and self._known[path].began_at is None:
                self._read(path, end=begun[path])
        return tuple(self._checks.values()), self._summary()

    def _record_of(self, check: Check) -> ScrubRecord:
        stamp = self.observer.store.stamp(check.destination.path)
        path, sha256 = str(check.destination.path), check.observed_sha256 or check.artifact.sha256
        if stamp is None:  # it went away since
            return ScrubRecord(size=0, mtime_ns=0, inode=0, sha256=sha256)
        known = self.records.get(path)
        if known is None or not _is_about(known, stamp, sha256):
            return _new_record(stamp, sha256)
        goes_on = known.began_at is not None and known.next_block < block_count(
            stamp.size, self.observer.store.block_size
        )
        return known if goes_on else replace(known, began_at=None, next_block=0)

    def _read(self, path: str, *, end: int | None = None) -> None:
        """Read one file from where its record says, up to block `end`; as much as there is time for."""
        if self._read_bytes and self.time_is_over():
            return
        check, record = self._checks[path], self._known[path]
        place = check.destination
        stamp = self.observer.store.stamp(place.path)
        trusted = None if stamp is None else self.observer.blocks_to_compare(check.artifact, place, stamp)
        is_to_repair = self.damaged_first and record.is_damaged  # which needs to know of every block
        if stamp is None or trusted is None or is_to_repair or not _is_about(record, stamp, trusted.content.sha256):
            self._read_whole(path)
        else:
            self._read_blocks(path, stamp, trusted, end)

    def _read_blocks(self, path: str, stamp: Stamp, trusted: Trusted, end: int | None) -> None:
        store, place = self.observer.store, self._checks[path].destination
        size, step = trusted.content.size, store.block_size
        total = block_count(size, step)
        record = self._known[path]
        began, block = record.began_at or self.now(), record.next_block
        is_whole = block == 0 or end is not None
        while block < (total if end is None else end):
            if self._read_bytes and self.time_is_over():
                return
            until = min(block + _BLOCKS_AT_ONCE, total)
            survey = store.survey(
                place.path,
                first=block,
                size=min(until * step, size),
                progress=self.observer.progress_of(place.label, size, done=block * step),
            )
            self._read_bytes += min(until * step, size) - block * step
            is_other = store.stamp(place.path) != stamp
            if is_other or differing_blocks(survey.blocks, trusted.digests[block:until]):
                self._read_whole(path)  # which says what is wrong, and where
                return
            block = until
            self._note(path, replace(record, began_at=began, next_block=block))
        if end is None:
            self._note(path, replace(record, read_at=began, began_at=None, next_block=0, is_damaged=False))
        else:
            self._note(path, record)
        if is_whole:
            self._read_files.add(path)
            self._checks[path] = replace(
                self._checks[path], basis="blocks", observed_sha256=trusted.content.sha256, is_recorded=True
            )

    def _read_whole(self, path: str) -> None:
        """Let the observer read a file to its end and say what it is."""
        check, began = self._checks[path], self.now()
        one = replace(self.wanted, artifacts=(check.artifact,))
        try:
            found = self.observer.observe(one, self.target, depth="full").checks[0]
        except FileInUseError:
            return  # somebody is writing it: it stays what is read next
        stamp = self.observer.store.stamp(check.destination.path)
        self._read_bytes += 0 if stamp is None else stamp.size
        self._read_files.add(path)
        self._checks[path] = found
        if stamp is not None:
            sha256 = found.observed_sha256 if found.status == "ok" else None
            record = _new_record(stamp, sha256 or check.artifact.sha256)
            self._note(path, replace(record, read_at=began, is_damaged=found.status != "ok"))

    def _note(self, path: str, record: ScrubRecord) -> None:
        self._known[path] = record
        self.save(self._known)

    def _summary(self) -> ScrubSummary:
        wrong = [path for path in self._checks if self.is_wrong(path)]
        return summary_of(
            [record for path, record in self._known.items() if path not in wrong],
            files=len(self._checks),
            wrong=len(wrong),
            read_files=len(self._read_files),
            read_bytes=self._read_bytes,
            now=self.now(),
        )

    def is_wrong(self, path: str) -> bool:
        """Whether a file is not right, or was not when it was read last and was not read by this run."""
        if self._checks[path].status != "ok":
            return True
        return path in self._known and self._known[path].is_damaged

    def found_before(self) -> Sequence[Check]:
        """Return the files that an earlier run found damaged and this one did not get to."""
        return [check for path, check in self._checks.items() if check.status == "ok" and self.is_wrong(path)]


def _new_record(stamp: Stamp, sha256: str) -> ScrubRecord:
    """Return the record of a file that was never read."""
    return ScrubRecord(size=stamp.size, mtime_ns=stamp.mtime_ns, inode=stamp.inode, sha256=sha256)


def _is_about(record: ScrubRecord, stamp: Stamp, sha256: str) -> bool:
    """Whether a file is still the one the record speaks of, and is to have the same content."""
    known = (record.size, record.mtime_ns, record.inode, record.sha256)
    return known == (stamp.size, stamp.mtime_ns, stamp.inode, sha256)
