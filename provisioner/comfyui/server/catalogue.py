"""YAML text -> `Catalogue`: the known failures of a ComfyUI server, and the first one that explains a text.

Knows the format of ``manifests/failures.yaml`` and checks that its parts fit together.  Reads no file.
``manifests/README.md`` explains every key.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Literal, get_args

from provisioner.core.models import Remedy
from provisioner.core.redact import printable
from provisioner.manifest.strict_yaml import (
    LINE,
    Fields,
    Kind,
    Place,
    RefusedError,
    check_sources,
    list_of,
    matching,
    one_of,
    read_document,
    read_line,
    whole_number,
)
from provisioner.manifest.table_rows import ID, SOURCE_IDS, THREAD, report_repeated, rows_of, sources_of
from provisioner.manifest.table_source import TableSource

SCHEMA_VERSION = 1
"""The version of the table's format this program reads."""

Layer = Literal[
    "model-files",
    "model-pairing",
    "gpu-memory",
    "computer-memory",
    "memory-streaming",
    "driver",
    "torch",
    "packages",
    "comfyui",
    "frontend",
    "database",
    "custom-node",
    "start-options",
    "network",
    "port",
    "disk",
    "permissions",
    "antivirus",
]
"""What is at fault."""

Where = Literal["node-error", "server-death", "log-line", "hang"]
"""Where a failure shows: a node raised, the server ended, it went on and warned, a prompt did not end in time."""

_LONGEST_LINE = 2_000  # characters of a line that are searched: limits the cost of a hostile log
_LONGEST_TEXT = 200_000  # characters of a text, its end
_MEMORY: frozenset[Layer] = frozenset({"gpu-memory", "computer-memory"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFailure:
    """A failure, how it is recognised, and what helps."""

    id: str
    cause: str  # its name in --json; several rows can be ways to say the same
    layer: Layer
    where: tuple[Where, ...]
    sentence: str  # {0}: a group of the pattern; {where}, {file}, {model}, {message}: from the failure
    remedy: str
    pattern: re.Pattern[str] | None = None
    exception: re.Pattern[str] | None = None  # of the exception's type, else any
    node: re.Pattern[str] | None = None  # of the class of the node that raised, else any
    behind: re.Pattern[str] | None = None  # of the class of a node it depends on, else any
    exit_statuses: tuple[int, ...] = ()
    action: Remedy = "by-hand"
    flags: tuple[str, ...] = ()  # of ComfyUI, which the remedy names
    versions: str | None = None
    threads: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def is_about_memory(self) -> bool:
        """Whether the GPU's memory or the computer's ran out."""
        return self.layer in _MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFlag:
    """An option of ComfyUI that a remedy names."""

    name: str
    since: str  # the first release that has it; "0.3.10" also stands for older ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A known failure that explains a text, and what its pattern's groups found."""

    failure: KnownFailure
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The known failures, special ones before general ones."""

    schema_version: int
    failures: tuple[KnownFailure, ...]
    flags: tuple[KnownFlag, ...]
    sources: tuple[TableSource, ...]

    def matches(
        self,
        where: Where,
        text: str,
        *,
        exception: str = "",
        classes: tuple[str, ...] = (),
        exit_status: int | None = None,
    ) -> tuple[Match, ...]:
        """Return every failure that explains a text, the most special one first.

        Parameters
        ----------
        where : str
            Where the failure showed.
        text : str
            The exception's type and message, or the server's output, as it came.
        exception : str
            The type of the exception.
        classes : tuple of str
            The class of the node that raised, then those of the nodes it depends on.
        exit_status : int, optional
            How the server ended; negative is the signal.
        """
        searched = _searched(text)
        own, others = classes[:1], classes[1:]
        found: list[Match] = []
        for each in self.failures:
            fits = where in each.where and all(
                pattern is None or any(pattern.search(name) for name in names)
                for pattern, names in ((each.exception, (exception,)), (each.node, own), (each.behind, (*own, *others)))
            )
            said = each.pattern.search(searched) if fits and each.pattern is not None else None
            if said is not None:
                found.append(Match(failure=each, groups=tuple(group for group in said.groups() if group)))
            elif fits and exit_status in each.exit_statuses:
                found.append(Match(failure=each))
        return tuple(found)


def _searched(text: str) -> str:
    """Return what is searched of a text: no control characters, no overlong lines, not more than its end."""
    lines = printable(text[-_LONGEST_TEXT:]).splitlines()
    return "\n".join(line[:_LONGEST_LINE].rstrip() for line in lines)


# --- the mappings ---------------------------------------------------------------------------------

_HINT = "Fix it; manifests/README.md explains every key of failures.yaml."
_SYNONYMS = {"regex": "pattern", "hint": "remedy", "message": "sentence", "name": "id", "issues": "threads"}
_FIELDS = frozenset({"where", "file", "model", "message"})
_FLAG = matching("an option like '--disable-mmap'", r"--[a-z][a-z0-9_-]{1,60}")
_VERSION = matching("a version like '0.33.0'", r"(0|[1-9][0-9]{0,4})(\.(0|[1-9][0-9]{0,4})){2}")
_LAYERS: tuple[Layer, ...] = get_args(Layer)
_WHERES: tuple[Where, ...] = get_args(Where)
_ACTIONS: tuple[Remedy, ...] = ("by-hand", "repair")
_STATUS = whole_number(
    "an exit status; negative is a signal, or a status of Windows as a signed number", -(2**31), 2**32
)


def _pattern(place: Place) -> re.Pattern[str]:
    text = read_line(place)
    try:
        return re.compile(text, re.MULTILINE)
    except re.error as error:
        raise RefusedError(f"is not a regular expression ({error})") from None


_PATTERN = Kind("a regular expression", _pattern, re.compile(""))


def _failure(place: Place) -> KnownFailure:
    with Fields(place, _SYNONYMS) as fields:
        name = fields.required("id", ID)
        value = KnownFailure(
            id=name,
            cause=fields.optional("cause", ID, name),
            layer=fields.required("layer", one_of(_LAYERS)),
            where=fields.required("where", list_of(one_of(_WHERES), "a list of places where it shows")),
            pattern=fields.optional("pattern", _PATTERN, None),
            exception=fields.optional("exception", _PATTERN, None),
            node=fields.optional("node", _PATTERN, None),
            behind=fields.optional("behind", _PATTERN, None),
            exit_statuses=fields.optional("exit_statuses", list_of(_STATUS, "a list of exit statuses"), ()),
            sentence=fields.required("sentence", LINE),
            remedy=fields.required("remedy", LINE),
            action=fields.optional("action", one_of(_ACTIONS), "by-hand"),
            flags=fields.optional("flags", list_of(_FLAG, "a list of ComfyUI's options"), ()),
            versions=fields.optional("versions", LINE, None),
            threads=fields.optional("threads", list_of(THREAD, "a list of threads"), ()),
            sources=fields.optional("sources", SOURCE_IDS, ()),
        )
    _check_row(place, value)
    return value


def _check_row(place: Place, row: KnownFailure) -> None:
    if row.pattern is None and not row.exit_statuses:
        place.complain("has no 'pattern' and no 'exit_statuses'; expected a way to recognise it")
    if not row.threads and not row.sources:
        place.complain("has no 'threads' and no 'sources'; expected where it was read")
    groups = 0 if row.pattern is None else row.pattern.groups
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(row.sentence) if name is not None}
    except ValueError as error:
        place.complain(f"has braces that do not fit ({error})", "sentence")
        return
    for name in sorted(used - _FIELDS - {str(at) for at in range(groups)}):
        place.complain(f"names {{{name}}}, which is neither a group of 'pattern' nor a field", "sentence")


def _flag(place: Place) -> KnownFlag:
    with Fields(place, {}) as fields:
        return KnownFlag(name=fields.required("name", _FLAG), since=fields.required("since", _VERSION))


def _table(place: Place) -> Catalogue:
    with Fields(place, _SYNONYMS) as fields:
        value = Catalogue(
            schema_version=fields.required("schema_version", whole_number("1", SCHEMA_VERSION, SCHEMA_VERSION)),
            failures=fields.required("failures", rows_of(_failure, "a mapping of id, layer, where and sentence")),
            flags=fields.required("flags", rows_of(_flag, "a mapping of name and since")),
            sources=fields.required("sources", sources_of(_SYNONYMS)),
        )
    report_repeated(place, "failures", (each.id for each in value.failures if each.id))
    report_repeated(place, "flags", (each.name for each in value.flags if each.name))
    report_repeated(place, "sources", (each.id for each in value.sources if each.id))
    known = {each.name for each in value.flags}
    for row in value.failures:
        for flag in row.flags:
            if flag not in known:
                place.complain(f"names in {row.id} the option {flag}, which is not in 'flags'", "failures")
    check_sources(
        place, {each.id for each in value.sources}, [("failures", each.id, each.sources) for each in value.failures]
    )
    return value


def parse_catalogue(text: str, *, file: str) -> Catalogue:
    """Return the catalogue that `text` describes.

    Parameters
    ----------
    text : str
        YAML, at most 1 MiB of it.
    file : str
        Name of the text in complaints.

    Raises
    ------
    ManifestError
        Something is wrong; ``issues`` holds every complaint as ``file:line: key.path: complaint``.
    """
    return read_document(
        text,
        Kind[Catalogue | None]("a mapping with schema_version, failures, flags and sources", _table, None),
        file=file,
        known=SCHEMA_VERSION,
        what="table",
        newer="Update klein-setup, or use the table that came with it.",
        hint=_HINT,
    )
