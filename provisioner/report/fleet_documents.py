"""The ``--json`` documents of many machines, read with distrust: what a fleet is judged by, and nothing else of them.

A document may come from anywhere.  Whatever it holds, what is returned is small, printable and of the expected types.
"""

from __future__ import annotations

import calendar
import codecs
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from provisioner.core.json_reader import as_dict, as_int, as_list, parse_object
from provisioner.core.redact import MASK, SHORTEST_SECRET, printable
from provisioner.report.json_document import SCHEMA_VERSION

LARGEST_DOCUMENT = 8 * 1024 * 1024
"""Bytes.  A document has about 20 kB."""

MOST_OF_A_KIND = 1000
"""Files, steps, errors and problems of one document that are looked at; a set has three files."""

_LONGEST = 300  # characters of one text; a path of Windows has at most 260
_KEPT_AS_FOUND = frozenset({"keep-comfyui", "keep-environment"})
_NO_CHANGE = _KEPT_AS_FOUND | {"record-receipt", "start-comfyui", "generate-image"}
_HASHED = frozenset({"fetch-file", "patch-file", "place-file", "move-file", "record-receipt"})
_MOMENT = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d{1,6})?Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFact:
    """One model file, as a document says it is."""

    path: str  # below the models folder: "vae/flux2-vae.safetensors"
    artifact: str  # its id in the manifest
    status: str  # "ok", "missing", ...
    sha256: str  # of the content that is there; empty where that is not known
    expected_sha256: str
    size: int  # bytes, of the content that is expected
    is_read: bool  # every byte was


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFact:
    """One step that changes the machine and is not done."""

    kind: str
    path: str
    bytes_to_fetch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetError:
    """Why a run failed."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What counts of one document."""

    file: str
    host: str
    at_s: int | None  # when the run ended, seconds since 1970; None where it does not say
    ended_at: str  # the same as it stands there; empty where it does not say
    command: str
    status: str
    manifest: str  # its id
    set: str
    gpus: tuple[str, ...]
    driver: str
    comfyui: str  # version; empty where it is not known, as below
    comfyui_commit: str
    has_local_changes: bool | None  # of ComfyUI's own files
    torch: str
    torch_backend: str
    files: tuple[FileFact, ...]
    steps: tuple[StepFact, ...]  # what is left to do
    problems: tuple[str, ...]
    packages: tuple[tuple[str, str, str], ...]  # name, what is wrong, version that was installed
    errors: tuple[FleetError, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusableFile:
    """A file in the folder that is no document."""

    file: str
    reason: str  # a clause


def read_document(
    file: str, data: bytes, *, by_file: bool = False, secrets: Iterable[str] = ()
) -> Document | UnusableFile:
    """Return what counts of a document, or why it cannot be used.

    Parameters
    ----------
    file : str
        Its path below the folder, with slashes.
    data : bytes
        What it holds; of a long one the first ``LARGEST_DOCUMENT + 1`` bytes are enough.
    by_file : bool
        The host is called like the file, without its ending, even where the document names a host.
    secrets : iterable of str
        Values to mask wherever they stand; the machine that made the document knew only its own.
    """
    file = _text(file)
    document = _parsed(_masked(data, secrets))
    if not isinstance(document, dict):
        return UnusableFile(file=file, reason=document)
    version = document.get("schema_version")
    if not isinstance(version, int) or not all(isinstance(document.get(each), str) for each in ("command", "status")):
        return UnusableFile(file=file, reason="it is JSON, but not a document of klein-setup --json")
    if version != SCHEMA_VERSION:
        which = "an older" if version < SCHEMA_VERSION else "a newer"
        reason = f"{which} klein-setup made it (schema_version {str(version)[:20]}, {SCHEMA_VERSION} is read here)"
        return UnusableFile(file=file, reason=reason)
    host = "" if by_file else _word(document.get("host"))
    return _document(file, host or _word(PurePath(file).stem) or file, document)


def _masked(data: bytes, secrets: Iterable[str]) -> bytes:
    """Return JSON in UTF-8 without the secrets, as they are or as JSON spells them."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what > of Windows PowerShell writes
        data = data.decode("utf-16", "replace").encode("utf-8")
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            for spelled in {secret, *(json.dumps(secret, ensure_ascii=each)[1:-1] for each in (True, False))}:
                data = data.replace(spelled.encode("utf-8", "replace"), MASK.encode())
    return data


def _parsed(data: bytes) -> dict[str, object] | str:
    """Return the JSON object in some bytes, also the last one of ``--json=events``, or why there is none."""
    if len(data) > LARGEST_DOCUMENT:
        return "it has more than 8 MiB, and no document of klein-setup is so large"
    document = parse_object(data)
    if document is not None:
        return document
    last = parse_object(data.rstrip().rpartition(b"\n")[2])
    if last is not None and last.get("event") == "report":
        return last
    if last is not None and "event" in last:
        return "it holds events of --json=events, and the run has not ended"
    return "it is not a JSON object" if data.strip() else "it is empty"


def _document(file: str, host: str, document: dict[str, object]) -> Document:
    details, versions = as_dict(document.get("details")), as_dict(document.get("versions"))
    comfyui, machine = as_dict(details.get("comfyui")), as_dict(document.get("machine"))
    environment, manifest = as_dict(details.get("environment")), as_dict(document.get("manifest"))
    changes = comfyui.get("has_local_changes")
    ended_at, torch = _text(document.get("ended_at")), _word(versions.get("torch"))
    at_s = seconds_of(ended_at)
    steps = [as_dict(each) for each in as_list(document.get("steps"))[:MOST_OF_A_KIND]]
    return Document(
        file=file,
        host=host,
        at_s=at_s,
        ended_at=ended_at if at_s is not None else "",
        command=_word(document.get("command")),
        status=_word(document.get("status")),
        manifest=_word(manifest.get("id")),
        set=_word(manifest.get("set")),
        gpus=tuple(_word(each.get("name")) for each in _objects(machine.get("gpus"))[:64]),
        driver=_word(machine.get("driver_version")),
        comfyui=_word(versions.get("comfyui")) or _word(comfyui.get("version")),
        comfyui_commit=_word(comfyui.get("commit")),
        has_local_changes=changes if isinstance(changes, bool) else None,
        torch=torch,
        torch_backend=_word(as_dict(environment.get("receipt")).get("torch_backend")) or _backend_of(torch),
        files=tuple(_file(each, steps) for each in _objects(document.get("checks"))),
        steps=tuple(_step(each) for each in steps if _is_left(each)),
        problems=_problems(document),
        packages=tuple(
            (_word(each.get("package")), _word(each.get("what")), _word(each.get("locked")))
            for each in _objects(as_dict(environment.get("packages")).get("changed"))
        ),
        errors=tuple(
            FleetError(
                code=_word(each.get("code")) or "error",
                message=_text(each.get("message")),
                hint=_text(each.get("hint")),
            )
            for each in _objects(document.get("errors"))[:5]
        ),
    )


def _backend_of(torch: str) -> str:
    """Return the build that a version of torch names; a verify has no receipt to say it.  Only these labels are builds.

    >>> _backend_of("2.14.1+cu130"), _backend_of("2.9.0+rocm7.10.0a1"), _backend_of("2.14.1")
    ('cu130', '', '')
    """
    label = torch.partition("+")[2]
    return label if re.fullmatch(r"cu\d+|cpu", label, re.ASCII) else ""


def _problems(document: dict[str, object]) -> tuple[str, ...]:
    """Return what a run calls a problem, each once, but for what is said of its files and packages anyway."""
    said = (
        _text(each.get("message")) for each in _objects(document.get("findings")) if each.get("severity") == "problem"
    )
    return tuple(dict.fromkeys(each for each in said if each))[:20]


def _file(check: dict[str, object], steps: Iterable[dict[str, object]]) -> FileFact:
    """Return a file as it was at the end of the run: what the run itself fetched is there."""
    place = check.get("destination") or check.get("path")
    done = any(
        step.get("kind") in _HASHED
        and as_dict(step.get("outcome")).get("status") == "done"
        and place == (step.get("destination") or step.get("path"))
        for step in steps
    )
    status = "ok" if done else _word(check.get("status"))
    expected, observed = _word(check.get("expected_sha256")), _word(check.get("observed_sha256"))
    return FileFact(
        path=_word(check.get("path")),
        artifact=_word(check.get("artifact")),
        status=status,
        sha256=expected if status == "ok" else observed,
        expected_sha256=expected,
        size=_count(check.get("expected_size")),
        is_read=done or check.get("basis") in {"sha256", "blocks"},
    )


def _is_left(step: dict[str, object]) -> bool:
    """Whether a step changes the machine and is not done."""
    return step.get("kind") not in _NO_CHANGE and as_dict(step.get("outcome")).get("status") not in {"done", "skipped"}


def _step(step: dict[str, object]) -> StepFact:
    return StepFact(
        kind=_word(step.get("kind")), path=_word(step.get("path")), bytes_to_fetch=_count(step.get("bytes_to_fetch"))
    )


# --- parts ---------------------------------------------------------------------------------------


def seconds_of(moment: str) -> int | None:
    """Return a time as klein-setup writes it as seconds since 1970; None where it is none.

    >>> seconds_of("2026-11-26T13:46:46.123Z"), seconds_of("2026-13-01T00:00:00Z"), seconds_of("now")
    (1795700806, None, None)
    """
    found = _MOMENT.fullmatch(moment)
    if found is None:
        return None
    year, month, day, hour, minute, second = map(int, found.groups())
    if not (year >= 1970 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def _objects(value: object) -> list[dict[str, object]]:
    return [each for each in as_list(value)[:MOST_OF_A_KIND] if isinstance(each, dict)]


def _count(value: object) -> int:
    """Return a number of bytes; 0 where there is none that can be true."""
    number = as_int(value)
    return number if number is not None and 0 <= number < 2**53 else 0


def _text(value: object) -> str:
    """Return a text without what controls a terminal, and not too long; empty where it is none."""
    if not isinstance(value, str):
        return ""
    whole = printable(value[: 4 * _LONGEST].encode("utf-8", "replace").decode("utf-8")).strip()
    return whole if len(whole) <= _LONGEST else f"{whole[: _LONGEST - 3].rstrip()}..."


def _word(value: object) -> str:
    """Return a text on one line."""
    return " ".join(_text(value).split())
