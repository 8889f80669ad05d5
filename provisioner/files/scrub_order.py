"""What reading a little at a time remembers of each file: when it was read last, how far a reading is that goes on.

Pure.  These records say what is read first and where reading goes on; that a file is right is only ever said of bytes
that the same run has read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from provisioner.core.json_reader import FieldError, Fields, as_dict

RECORDS_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubRecord:
    """What is known of one file; times are seconds since 1970, in UTC."""

    size: int  # bytes
    mtime_ns: int
    inode: int
    sha256: str  # of the content it was compared with
    read_at: int | None = None  # when the last reading that reached its end began; None: none did
    began_at: int | None = None  # of a reading that goes on
    next_block: int = 0  # where that goes on
    is_damaged: bool = False  # what the last reading found


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubSummary:
    """What one run read, and how long ago the rest was read."""

    files: int  # that there should be
    wrong: int  # of them, missing, damaged or unreadable
    never_read: int  # right as far as known, and never read to their end
    oldest_read_at: int | None  # of the others, the time of the longest ago; None: there is no other
    read_files: int  # to their end, by this run
    read_bytes: int  # by this run
    ended_at: int

    @property
    def oldest_age_s(self) -> int | None:
        """How long ago the file was read that was read the longest ago."""
        return None if self.oldest_read_at is None else max(0, self.ended_at - self.oldest_read_at)


def parse_records(document: Mapping[str, object] | None, *, now: int) -> dict[str, ScrubRecord]:
    """Return the records of a document, by the file's path; what cannot be one, or lies in the future, counts as none.

    >>> parse_records({"schema_version": 1, "files": {"/x": {"size": "?"}}}, now=0)
    {}
    """
    try:
        fields = Fields(dict(document or {}))
        fields.exactly("schema_version", RECORDS_SCHEMA)
    except FieldError:
        return {}
    read = {path: _record(Fields(as_dict(entry)), now) for path, entry in as_dict(fields.values.get("files")).items()}
    return {path: record for path, record in read.items() if record is not None}


def _record(fields: Fields, now: int) -> ScrubRecord | None:
    try:
        record = ScrubRecord(
            size=fields.count("size"),
            mtime_ns=fields.integer("mtime_ns"),
            inode=fields.count("inode"),
            sha256=fields.text("sha256"),
            read_at=fields.optional_count("read_at"),
            began_at=fields.optional_count("began_at"),
            next_block=fields.count("next_block"),
            is_damaged=fields.flag("is_damaged"),
        )
    except FieldError:
        return None
    return None if max(record.read_at or 0, record.began_at or 0) > now else record


def records_document(records: Mapping[str, ScrubRecord]) -> dict[str, object]:
    """Return what `parse_records` reads."""
    return {"schema_version": RECORDS_SCHEMA, "files": {path: asdict(each) for path, each in sorted(records.items())}}


def reading_order(records: Mapping[str, ScrubRecord], *, damaged_first: bool = False) -> list[str]:
    """Return the paths in the order in which they are read: one that was begun, then what was read the longest ago.

    With `damaged_first` what was damaged when it was read last comes before these.

    >>> one = ScrubRecord(size=1, mtime_ns=1, inode=1, sha256="", read_at=5)
    >>> two = ScrubRecord(size=1, mtime_ns=1, inode=1, sha256="", read_at=9, began_at=20, next_block=1)
    >>> new = ScrubRecord(size=1, mtime_ns=1, inode=1, sha256="")
    >>> reading_order({"a": one, "b": two, "c": new})
    ['b', 'c', 'a']
    """

    def rank(path: str) -> tuple[bool, bool, int, str]:
        record = records[path]
        is_last = not (damaged_first and record.is_damaged)
        return is_last, record.began_at is None, -1 if record.read_at is None else record.read_at, path

    return sorted(records, key=rank)


def summary_of(
    records: Iterable[ScrubRecord], *, files: int, wrong: int, read_files: int, read_bytes: int, now: int
) -> ScrubSummary:
    """Return what a run came to.

    Parameters
    ----------
    records : iterable of ScrubRecord
        Of the files that are not known to be wrong.
    files, wrong, read_files, read_bytes
        As `ScrubSummary` has them.
    now : int
        The time at its end.
    """
    times = [each.read_at for each in records]
    return ScrubSummary(
        files=files,
        wrong=wrong,
        never_read=times.count(None),
        oldest_read_at=min((each for each in times if each is not None), default=None),
        read_files=read_files,
        read_bytes=read_bytes,
        ended_at=now,
    )
