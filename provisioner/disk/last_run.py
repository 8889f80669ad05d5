"""What this program remembers between runs: targets, the rate of downloads, the last report, logs of its defects."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from provisioner.core.errors import StorageError
from provisioner.core.json_reader import FieldError, Fields
from provisioner.disk.read_json import read_object
from provisioner.disk.root import Root

_SCHEMA_VERSION = 2
_LAST_RUNS = "last-run.json"
_MOST_TARGETS = 50
_LAST_REPORT = "last-report.json"

LARGEST_REPORT = 8 * 1024 * 1024
"""Bytes.  A report has about 20 kB; one that is larger is neither written nor read."""


LEAST_MEASURED = 50_000_000
"""Bytes.  A shorter download says little about the next one: much of its time goes by before the bytes flow."""


class LastRun(TypedDict):
    """A target that something was installed in."""

    kind: str  # "comfyui" or "hf_cache"
    path: str
    manifest: str
    set: str
    manifest_file: str | None  # None: the manifest comes with this program


def read_last_runs(folder: Path) -> tuple[LastRun, ...]:
    """Return each target of the runs so far once for each manifest, the latest first; empty if nothing can be read."""
    document = Fields(read_object(folder / _LAST_RUNS) or {})
    try:
        document.exactly("schema_version", _SCHEMA_VERSION)
        return tuple(_target(entry) for entry in document.objects("targets"))
    except FieldError:
        return ()


def _target(entry: Fields) -> LastRun:
    return LastRun(
        kind=entry.choice("kind", ("comfyui", "hf_cache"), "comfyui"),
        path=entry.text("path"),
        manifest=entry.text("manifest"),
        set=entry.text("set"),
        manifest_file=entry.optional_text("manifest_file"),
    )


def read_last_rate(folder: Path) -> int | None:
    """Return the bytes per second of the last large download, or None where none was measured."""
    document = Fields(read_object(folder / _LAST_RUNS) or {})
    try:
        document.exactly("schema_version", _SCHEMA_VERSION)
        return document.optional_count("rate_bytes_s") or None
    except FieldError:
        return None


def write_last_rate(folder: Path, *, fetched: int, seconds: float) -> None:
    """Remember how fast a run's files came, if they were large enough; an unwritable folder is no error."""
    if fetched >= LEAST_MEASURED and seconds > 0:
        _write(folder, list(read_last_runs(folder)), round(fetched / seconds))


def _write(folder: Path, targets: list[LastRun], rate: int | None) -> None:
    document: dict[str, object] = {"schema_version": _SCHEMA_VERSION, "targets": targets[:_MOST_TARGETS]}
    if rate is not None:
        document["rate_bytes_s"] = rate
    with contextlib.suppress(StorageError):
        _own(folder).write_text(folder / _LAST_RUNS, json.dumps(document, indent=1) + "\n")


def write_last_run(
    folder: Path, *, kind: str, path: Path, manifest: str, set_id: str, manifest_file: str | None = None
) -> None:
    """Remember a target; a folder that may not be written to is no error.  The last one again writes nothing."""
    entry = LastRun(kind=kind, path=str(path.absolute()), manifest=manifest, set=set_id, manifest_file=manifest_file)
    before = read_last_runs(folder)
    if before[:1] == (entry,):
        return
    place = (kind, entry["path"], manifest)
    others = [each for each in before if (each["kind"], each["path"], each["manifest"]) != place]
    _write(folder, [entry, *others], read_last_rate(folder))


def _own(folder: Path) -> Root:
    """Return the state folder to write in; what lies there is nobody else's business."""
    return Root(folder, is_private=True)


def read_last_report(folder: Path) -> dict[str, object] | None:
    """Return the last run's ``--json`` document, or None if nothing readable is there.

    Only its outermost shape is looked at: an object that says which ``schema_version`` it has.  Whoever shows it has
    to bear with missing keys.
    """
    document = read_object(folder / _LAST_REPORT, most=LARGEST_REPORT)
    return document if document is not None and isinstance(document.get("schema_version"), int) else None


def last_report_time(folder: Path) -> str:
    """Return when the last report was kept, ISO 8601 in UTC; now, where that cannot be read."""
    try:
        when_s = (folder / _LAST_REPORT).stat().st_mtime
    except OSError:
        when_s = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when_s))


def write_last_report(folder: Path, document: Mapping[str, object]) -> bool:
    """Keep a run's ``--json`` document for ``klein-setup report``; return whether it was kept.

    The last image stays in it, under ``details.last_image``, when the run generated none: ``made_at``, ``target``,
    ``manifest`` and ``smoke_test`` of the run that did.

    Parameters
    ----------
    folder : Path
        The user's state folder; one that cannot be written to is no error, and what was there stays.
    document : mapping
        From `report.document`, already redacted.
    """
    try:
        kept = _with_last_image(document, read_last_report(folder), folder)
        data = json.dumps(kept, indent=1, allow_nan=False).encode("ascii") + b"\n"
        if len(data) > LARGEST_REPORT:
            return False
        _own(folder).write_bytes(folder / _LAST_REPORT, data)
    except StorageError:
        return False
    return True


def write_for_user(path: Path, data: bytes) -> None:
    """Write a file into the state folder, for its user alone; raises StorageError."""
    _own(path.parent).write_bytes(path, data)


def _with_last_image(
    document: Mapping[str, object], before: Mapping[str, object] | None, folder: Path
) -> Mapping[str, object]:
    """Return a document that has the image of the one before it, unless it has one of its own."""
    details = document.get("details")
    if before is None or not isinstance(details, dict) or _made_something(details):
        return document
    earlier = before.get("details")
    if not isinstance(earlier, dict):
        return document
    last: object = earlier.get("last_image")
    if _made_something(earlier):
        ended_at = before.get("ended_at")
        made_at = ended_at if isinstance(ended_at, str) else last_report_time(folder)
        named = {key: before.get(key) for key in ("target", "manifest")}
        last = {"made_at": made_at, **named, "smoke_test": earlier["smoke_test"]}
    return document if last is None else {**document, "details": {**details, "last_image": last}}


def _made_something(details: Mapping[str, object]) -> bool:
    """Whether an image, a video or a sound stands in these details."""
    smoke = details.get("smoke_test")
    picture = smoke.get("picture") if isinstance(smoke, dict) else None
    has_image = isinstance(picture, dict) and isinstance(picture.get("path"), str)
    return has_image or (isinstance(smoke, dict) and bool(smoke.get("media")))


def write_defect_log(folder: Path, text: str) -> Path | None:
    """Keep a defect's trace for a bug report; return its path, or None where it cannot be written."""
    path = folder / "logs" / time.strftime("defect-%Y%m%dT%H%M%SZ.txt", time.gmtime())
    try:
        _own(folder).write_text(path, text)
    except StorageError:
        return None
    return path
