"""YAML text -> checked values; all complaints are reported at once, each with its file, line and key.

Values are made from the events of the YAML parser instead of YAML's types, so nothing is coerced (``on`` stays a word
and is rejected, ``2.10`` never becomes 2.1) and every value knows its line.  Knows nothing of manifests.  YAML's
conveniences are rejected: anchors, aliases, merge keys, tags and second documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from provisioner.core.errors import ManifestError
from provisioner.core.models import Download

if TYPE_CHECKING:
    from yaml import CSafeLoader, SafeLoader
    from yaml.events import AliasEvent, CollectionStartEvent, Event, NodeEvent, ScalarEvent

MAX_TEXT_BYTES = 1024 * 1024
"""Longer texts are rejected before they are parsed; the longest shipped manifest is a twentieth of it."""

_MAX_DEPTH = 16  # a manifest needs 6
_MAX_VALUES = 50_000  # a manifest of 1,000 files has about 30,000
_MAX_ISSUES = 100  # more than anyone reads; limits the cost of a hostile text
_MAX_DIGITS = 19
_MAX_LINE = 300  # characters
_MAX_PROSE = 4_000  # characters

_T = TypeVar("_T")
_D = TypeVar("_D")

# --- complaints --------------------------------------------------------------------------------


class Issues:
    """Every complaint about one text.

    Parameters
    ----------
    file : str
        Name of the text in complaints: a path, or an id.
    hint : str
        What to do about them, in the imperative.
    """

    def __init__(self, file: str, *, hint: str) -> None:
        self.file = file
        self.hint = hint
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, path: str, complaint: str) -> None:
        """Record a complaint; raise all of them when there are too many."""
        self._found.append((line, f"{self.file}:{line}: {path}: {complaint}"))
        if len(self._found) == _MAX_ISSUES:
            self.throw(f"at least {_MAX_ISSUES}")

    def throw(self, count: str | None = None) -> NoReturn:
        """Raise all of them as one `ManifestError`, in the order of their lines."""
        texts = tuple(text for _, text in sorted(self._found, key=lambda each: each[0]))
        many = count or str(len(texts))
        message = f"{self.file} cannot be used: {many} {'complaint' if many == '1' else 'complaints'}"
        raise ManifestError(message, issues=texts, hint=self.hint, file=self.file)

    def throw_if_any(self) -> None:
        """Raise all of them, if there are any."""
        if self._found:
            self.throw()


class RefusedError(Exception):
    """A value is not of the expected kind; never leaves `take`.

    Parameters
    ----------
    found : str or None
        What was found instead, as the beginning of a complaint; None when it was reported already.
    expected : str, optional
        What was expected, where the kind's own description does not fit.
    """

    def __init__(self, found: str | None, expected: str | None = None) -> None:
        super().__init__(found)
        self.found = found
        self.expected = expected


def shown(text: str) -> str:
    """Return `text` for a message: quoted, short, without control characters, tokens, passwords or queries.

    Examples
    --------
    >>> shown("https://somebody:secret@example.org/x?token=abc")
    "'https://example.org/x'"
    """
    from provisioner.core.redact import redact  # its patterns take milliseconds, needed only after a mistake

    text = redact(text[:2000])
    return repr(text if len(text) <= 70 else text[:60] + "...")


def holds_token(text: str) -> bool:
    """Return whether a Hub token is in `text`."""
    if "hf_" not in text:
        return False
    from provisioner.core.redact import MASK, redact

    return f"hf_{MASK}" in redact(re.sub(r"\W", " ", text))  # as plain words: `redact` drops queries


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"``, or nothing when no name is close."""
    from provisioner.core.suggestions import closest  # needed only after a mistake

    close = closest(name, names)
    return "" if close is None else f"; did you mean '{close}'?"


# --- from text to nodes ------------------------------------------------------------------------


class Scalar:
    """A single value, as written."""

    __slots__ = ("is_bare", "line", "text")
    what = "a single value"

    def __init__(self, line: int, text: str, *, is_bare: bool) -> None:
        self.line = line
        self.text = text
        self.is_bare = is_bare  # without quotes: where YAML would guess a type


class Sequence:
    """Values in order."""

    __slots__ = ("items", "line")
    what = "a list"

    def __init__(self, line: int) -> None:
        self.line = line
        self.items: list[Node] = []


class Mapping:
    """Keys, each with its line and its value."""

    __slots__ = ("entries", "line")
    what = "a mapping of keys"

    def __init__(self, line: int) -> None:
        self.line = line
        self.entries: dict[str, tuple[int, Node]] = {}


class Unusable:
    """Stands for a value that was reported already."""

    __slots__ = ("line",)
    what = "unusable"

    def __init__(self, line: int) -> None:
        self.line = line


Node = Scalar | Sequence | Mapping | Unusable


class _Frame:
    """A list or mapping that is still open."""

    __slots__ = ("key", "key_line", "label", "node")

    def __init__(self, node: Sequence | Mapping, label: str) -> None:
        self.node = node
        self.label = label  # its key or index in the frame around it
        self.key: str | None = None  # of a mapping: the key whose value comes next
        self.key_line = node.line

    @property
    def wants_key(self) -> bool:
        return isinstance(self.node, Mapping) and self.key is None

    @property
    def label_of_next(self) -> str:
        return f"[{len(self.node.items)}]" if isinstance(self.node, Sequence) else _label(self.key or "(key)")


def _label(key: str) -> str:
    """Return a key as part of a key path; it comes from the file, so it may be anything."""
    return key[:60] if key.isprintable() and key else repr(key[:60])


class _StopError(Exception):
    """Nothing beyond this point can be read; the complaint was reported."""


class _Tree:
    """Builds nodes from events without recursion, so that depth cannot overflow the stack."""

    def __init__(self, issues: Issues) -> None:
        self.root: Node | None = None
        self._issues = issues
        self._frames: list[_Frame] = []
        self._values = 0

    def begin_document(self, line: int) -> None:
        """Handle the beginning of a document."""
        if self.root is not None:
            self._stop(line, "starts a second document; a file contains one")

    def open(self, event: CollectionStartEvent, node: Sequence | Mapping) -> None:
        """Handle the beginning of a list or a mapping."""
        self._refuse_as_key(node.line)
        if event.anchor or event.tag:
            self._complain_about_extras(event, event.tag, node.line)
        if len(self._frames) >= _MAX_DEPTH:
            self._stop(node.line, f"is nested deeper than {_MAX_DEPTH} levels")
        frame = _Frame(node, self._frames[-1].label_of_next if self._frames else "")
        self._attach(node)
        self._frames.append(frame)

    def close(self) -> None:
        """Handle the end of a list or a mapping."""
        self._frames.pop()

    def take_alias(self, event: AliasEvent) -> None:
        """Report an alias, which is not allowed."""
        line = _line_of(event)
        self._refuse_as_key(line)
        self._complain(line, f"is the alias *{event.anchor}; aliases are not used here, write the value out")
        self._attach(Unusable(line))

    def take_scalar(self, event: ScalarEvent) -> None:
        """Handle a key or a single value."""
        line = _line_of(event)
        if event.anchor or event.tag:
            self._complain_about_extras(event, event.tag, line)
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.wants_key:
            self._take_key(frame, event.value, line)
        else:
            self._attach(Scalar(line, event.value, is_bare=not event.style))

    def _take_key(self, frame: _Frame, key: str, line: int) -> None:
        frame.key, frame.key_line = key, line
        if key == "<<":
            self._complain(line, "is a merge key; merge keys are not used here, write the values out")
        elif isinstance(frame.node, Mapping) and key in frame.node.entries:
            self._complain(line, f"appears twice, first in line {frame.node.entries[key][0]}; expected every key once")

    def _attach(self, node: Node) -> None:
        self._values += 1
        if self._values > _MAX_VALUES:
            self._stop(node.line, f"is one value too many; a file may contain {_MAX_VALUES}")
        if not self._frames:
            self.root = node
            return
        frame = self._frames[-1]
        if isinstance(frame.node, Sequence):
            frame.node.items.append(node)
        else:  # a key that appears twice keeps its first value; it was reported
            frame.node.entries.setdefault(frame.key or "", (frame.key_line, node))
            frame.key = None

    def _refuse_as_key(self, line: int) -> None:
        if self._frames and self._frames[-1].wants_key:
            self._stop(line, "is a list, a mapping or an alias where a key belongs; expected a word")

    def _complain_about_extras(self, event: NodeEvent, tag: str | None, line: int) -> None:
        if event.anchor:
            self._complain(line, f"has the anchor &{event.anchor}; anchors are not used here")
        if tag:
            self._complain(line, f"has the tag {shown(tag)}; tags are not used here")

    def _complain(self, line: int, complaint: str) -> None:
        self._issues.add(line, self._path(), complaint)

    def _stop(self, line: int, complaint: str) -> NoReturn:
        self._complain(line, complaint)
        raise _StopError

    def _path(self) -> str:
        """Return the key path of the next value: ``artifacts[2].size``."""
        labels = [frame.label for frame in self._frames[1:]]
        if self._frames:
            labels.append(self._frames[-1].label_of_next)
        return ".".join(labels).replace(".[", "[") or "document"


def _line_of(event: Event) -> int:
    mark = event.start_mark
    return int(mark.line) + 1 if mark is not None else 1


def _grow(tree: _Tree, stream: Iterable[Event]) -> None:
    """Add every event to `tree`."""
    from yaml import events

    for event in stream:
        if isinstance(event, events.ScalarEvent):
            tree.take_scalar(event)
        elif isinstance(event, events.MappingStartEvent):
            tree.open(event, Mapping(_line_of(event)))
        elif isinstance(event, events.SequenceStartEvent):
            tree.open(event, Sequence(_line_of(event)))
        elif isinstance(event, events.CollectionEndEvent):
            tree.close()
        elif isinstance(event, events.AliasEvent):
            tree.take_alias(event)
        elif isinstance(event, events.DocumentStartEvent):
            tree.begin_document(_line_of(event))


def compose(text: str, issues: Issues, *, loader: type[SafeLoader | CSafeLoader] | None = None) -> Node:
    """Return the one node that `text` contains.

    Parameters
    ----------
    text : str
        YAML.
    issues : Issues
        Collects the complaints after which the rest can still be read.
    loader : type, optional
        The parser: by default PyYAML's libyaml binding, twenty times faster, or its own where that is missing.

    Raises
    ------
    ManifestError
        The text is too long, is not YAML, or has too many levels or values.
    """
    _refuse_before_parsing(text, issues)
    import yaml  # 10 ms and more, needed only to read a manifest

    chosen: type[SafeLoader | CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader) if loader is None else loader
    tree = _Tree(issues)
    try:
        _grow(tree, yaml.parse(text, Loader=chosen))
    except _StopError:
        issues.throw()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read"
        issues.add(mark.line + 1 if mark else 1, "document", f"is not YAML: {shown(str(problem))}")
        issues.throw()
    if tree.root is None:
        issues.add(1, "document", "is empty; expected a mapping of keys")
        issues.throw()
    return tree.root


def _refuse_before_parsing(text: str, issues: Issues) -> None:
    if len(text) > MAX_TEXT_BYTES or len(text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        issues.add(1, "document", f"is too long; expected at most {MAX_TEXT_BYTES} bytes")
        issues.throw()
    clean = True
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.isprintable() and not line.removesuffix("\r").replace("\t", "").isprintable():
            issues.add(number, "document", "has a control or invisible character; expected readable text")
            clean = False
    if not clean:
        issues.throw()


# --- from nodes to values ----------------------------------------------------------------------


class Place:
    """A node and its place in the document; the key path is built only for a complaint."""

    __slots__ = ("_above", "_key", "issues", "line", "node")

    def __init__(
        self,
        node: Node,
        issues: Issues,
        *,
        above: Place | None = None,
        key: str | int = "",
        line: int | None = None,
    ) -> None:
        self.node = node
        self.issues = issues
        self._above = above
        self._key = key
        self.line = node.line if line is None else line

    @property
    def path(self) -> str:
        """The key path: ``artifacts[2].size``; empty for the document."""
        above = "" if self._above is None else self._above.path
        if isinstance(self._key, int):
            return f"{above}[{self._key}]"
        if not self._key and self._above is None:
            return ""
        return f"{above}.{_label(self._key)}" if above else _label(self._key)

    def complain(self, complaint: str, key: str = "") -> None:
        """Record a complaint about this place, or about one of its keys."""
        if key and isinstance(self.node, Mapping):
            line = self.node.entries[key][0] if key in self.node.entries else self.line
            self.issues.add(line, self.path_of(key), complaint)
        else:
            self.issues.add(self.line, self.path or "document", complaint)

    def path_of(self, key: str) -> str:
        """Return the key path of one of its keys."""
        return f"{self.path}.{_label(key)}" if self.path else _label(key)


class Kind(Generic[_T]):
    """A kind of value.

    Parameters
    ----------
    expected : str
        Its description in complaints: ``"a commit, 40 lower-case hex digits"``.
    read : callable
        Returns the value at a place, or raises `RefusedError`.
    fallback : object
        Replaces the value after a complaint, so that reading continues; never returned, as the complaint is raised.
    """

    __slots__ = ("expected", "fallback", "read")

    def __init__(self, expected: str, read: Callable[[Place], _T], fallback: _T) -> None:
        self.expected = expected
        self.read = read
        self.fallback = fallback


def take(place: Place, kind: Kind[_T]) -> _T:
    """Return the value at `place`, or record a complaint and return the kind's fallback."""
    try:
        return kind.read(place)
    except RefusedError as refusal:
        if refusal.found is not None:
            place.complain(f"{refusal.found}; expected {refusal.expected or kind.expected}")
        return kind.fallback


_N = TypeVar("_N", Scalar, Sequence, Mapping)


def expect(node: Node, form: type[_N]) -> _N:
    """Return `node` as the form it must have; raise `RefusedError` when it has another."""
    if isinstance(node, form):
        return node
    if isinstance(node, Unusable):
        raise RefusedError(None)
    if isinstance(node, Scalar):
        raise RefusedError("is empty" if node.text == "" else f"is {shown(node.text)}")
    raise RefusedError(f"is {node.what}")


class Fields:
    """The keys of one mapping.  A key that was not read is unknown, so accepted keys and code cannot differ.

    Used in a ``with``, whose end reports the keys that were not read; `synonyms` maps other tools' names to ours.
    """

    def __init__(self, place: Place, synonyms: dict[str, str]) -> None:
        self._entries = expect(place.node, Mapping).entries
        self._place = place
        self._synonyms = synonyms
        self._asked: list[str] = []

    def has(self, key: str) -> bool:
        """Return whether the key is present."""
        return key in self._entries

    @property
    def names(self) -> tuple[str, ...]:
        """The keys that are present, for mappings whose keys are data."""
        return tuple(self._entries)

    def required(self, key: str, kind: Kind[_T]) -> _T:
        """Return the value of a key that must be present."""
        if key in self._entries:
            return self.optional(key, kind, kind.fallback)
        self._asked.append(key)
        self._place.complain(f"is missing; expected {kind.expected}", key)
        return kind.fallback

    def optional(self, key: str, kind: Kind[_T], default: _D) -> _T | _D:
        """Return the value of a key, or `default` where it is missing."""
        self._asked.append(key)
        if key not in self._entries:
            return default
        line, node = self._entries[key]
        return take(Place(node, self._place.issues, above=self._place, key=key, line=line), kind)

    def __enter__(self) -> Fields:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for key in self._entries if kind is None else ():
            if key not in self._asked and key != "<<":
                word = self._synonyms.get(key.casefold())
                meant = f"; did you mean '{word}'?" if word in self._asked else nearest(key, self._asked)
                self._place.complain(f"is not a key here{meant or '; known are ' + ', '.join(self._asked)}", key)


def list_of(kind: Kind[_T], expected: str) -> Kind[tuple[_T, ...]]:
    """Return the kind of a non-empty list whose items are of `kind`."""

    def read(place: Place) -> tuple[_T, ...]:
        items = expect(place.node, Sequence).items
        if not items:
            raise RefusedError("is empty")
        return tuple(take(Place(item, place.issues, above=place, key=at), kind) for at, item in enumerate(items))

    return Kind(expected, read, ())


# --- text ---------------------------------------------------------------------------------------

# What YAML 1.1 or 1.2 turns into something other than text when it has no quotes.
_LONGEST_COERCED = 5  # "false"
_COERCED_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false"})
_COERCED = (
    (r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([t ].*)?", "a date"),
    (r"[-+]?(0[box][0-9a-f_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)", "a number"),
    (r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)(e[-+]?[0-9]+)?", "a number"),
    (r"[-+]?\.(inf|nan)", "a number"),
)


def read_text(place: Place) -> str:
    """Return the text at `place`; unquoted text that YAML would read as something else is rejected."""
    node = expect(place.node, Scalar)
    if node.text.strip() == "":
        raise RefusedError("is empty")
    meant = coerced(node.text) if node.is_bare else None
    if meant is not None:
        found = f"is {shown(node.text)} without quotes, which YAML reads as {meant}"
        raise RefusedError(found, "quotes around it, if the text is meant")
    return node.text


def coerced(text: str) -> str | None:
    """Return what YAML reads an unquoted word as; None when it stays text."""
    if text[0].isalpha() and len(text) > _LONGEST_COERCED:
        return None
    word = text.casefold()
    if word in ("~", "null"):
        return "nothing"
    if word in _COERCED_WORDS:
        return "true or false"
    if word[0].isalpha():
        return None
    return next((what for pattern, what in _COERCED if re.fullmatch(pattern, word, re.ASCII)), None)


def read_line(place: Place) -> str:
    """Return one line of text."""
    text = read_text(place)
    if not text.isprintable():
        raise RefusedError(f"{shown(text)} has a control or invisible character")
    if text != text.strip():
        raise RefusedError(f"{shown(text)} starts or ends with a space")
    if len(text) > _MAX_LINE:
        raise RefusedError(f"is {len(text)} characters long")
    return text


def read_prose(place: Place) -> str:
    """Return text of one or more lines, without blank lines around it."""
    text = read_text(place).strip("\n ")
    if not text.replace("\n", "").isprintable():
        raise RefusedError(f"{shown(text)} has a control or invisible character")
    if len(text) > _MAX_PROSE:
        raise RefusedError(f"is {len(text)} characters long")
    return text


def matching(expected: str, pattern: str) -> Kind[str]:
    """Return the kind of a line that matches `pattern`, from end to end."""

    def read(place: Place) -> str:
        text = read_line(place)
        if not re.fullmatch(pattern, text, re.ASCII):
            raise RefusedError(f"is {shown(text)}")
        return text

    return Kind(expected, read, "")


def hex_digits(expected: str, digits: int, otherwise: str = "is not a hex number") -> Kind[str]:
    """Return the kind of a lower-case hex number of exactly so many digits; `otherwise` describes other text."""

    def read(place: Place) -> str:
        text = read_line(place)
        if len(text) == digits and not text.strip("0123456789abcdef"):
            return text
        if text.strip("0123456789abcdefABCDEF"):
            raise RefusedError(f"{shown(text)} {otherwise}")
        fault = "has upper-case letters" if len(text) == digits else f"has {len(text)} digits"
        raise RefusedError(f"{shown(text)} {fault}")

    return Kind(f"{expected}, {digits} lower-case hex digits", read, "")


def one_of(choices: tuple[_T, ...]) -> Kind[_T]:
    """Return the kind of a word that is one of `choices`."""
    names = {str(choice): choice for choice in choices}

    def read(place: Place) -> _T:
        text = read_line(place)
        if text not in names:
            raise RefusedError(f"is {shown(text)}{nearest(text, names)}")
        return names[text]

    return Kind("one of " + ", ".join(names), read, choices[0])


LINE = Kind(f"a line of text of up to {_MAX_LINE} characters", read_line, "")
PROSE = Kind(f"text of up to {_MAX_PROSE} characters", read_prose, "")

# --- numbers ------------------------------------------------------------------------------------


def read_bare(place: Place) -> str:
    """Return a number or a truth value as written; quotes would make it text."""
    node = expect(place.node, Scalar)
    if node.text == "":
        raise RefusedError("is empty")
    if not node.is_bare:
        raise RefusedError(f"is {shown(node.text)} in quotes, which makes it text")
    return node.text


def whole_number(expected: str, lowest: int, highest: int) -> Kind[int]:
    """Return the kind of a whole number, written in plain decimal digits, within inclusive bounds."""

    def read(place: Place) -> int:
        text = read_bare(place)
        digits = text.removeprefix("-")
        is_plain = digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS
        if not is_plain or (digits[0] == "0" and digits != "0"):
            raise RefusedError(f"is {shown(text)}, not a whole number in plain decimal digits")
        if not lowest <= int(text) <= highest:
            raise RefusedError(f"is {text}, too {'small' if int(text) < lowest else 'large'}")
        return int(text)

    return Kind(expected, read, 0)


BYTES = whole_number("a number of bytes", 0, 2**50)


def _download(place: Place) -> Download:
    with Fields(place, {"size": "fetched_bytes", "bytes": "fetched_bytes"}) as fields:
        return Download(
            fetched_bytes=fields.required("fetched_bytes", BYTES), disk_bytes=fields.required("disk_bytes", BYTES)
        )


DOWNLOAD: Kind[Download] = Kind(
    "a mapping of fetched_bytes and disk_bytes", _download, Download(fetched_bytes=0, disk_bytes=0)
)
"""What comes with a program or with packages: an estimate."""


def _read_decimal(place: Place) -> float:
    text = read_bare(place)
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", text, re.ASCII):
        raise RefusedError(f"is {shown(text)}")
    return float(text)


def _read_boolean(place: Place) -> bool:
    text = read_bare(place)
    if text not in ("true", "false"):
        raise RefusedError(f"is {shown(text)}")
    return text == "true"


DECIMAL = Kind("a number from 0 to 999, like 1.0, without quotes", _read_decimal, 0.0)
BOOLEAN = Kind("true or false, without quotes", _read_boolean, False)


def refuse_newer(root: Node, file: str, *, known: int, what: str, hint: str) -> None:
    """Raise if the format is newer than this program.

    Raises
    ------
    ManifestError
        ``schema_version`` is a whole number above `known`.
    """
    line, node = root.entries.get("schema_version", (1, None)) if isinstance(root, Mapping) else (1, None)
    if isinstance(node, Scalar) and re.fullmatch("[1-9][0-9]{0,8}", node.text) and int(node.text) > known:
        only = Issues(file, hint=hint)
        only.add(line, "schema_version", f"is {node.text}; expected {known}: this {what} needs a newer klein-setup")
        only.throw()


def read_document(
    text: str,
    kind: Kind[_T | None],
    *,
    file: str,
    known: int,
    what: str,
    newer: str,
    hint: str,
) -> _T:
    """Return the value of a whole document; complaints are collected and raised together.

    Parameters
    ----------
    text : str
        YAML, at most 1 MiB of it.
    kind : Kind
        Of the document itself; its reader is only called for a mapping.
    file : str
        Name of the text in complaints.
    known : int
        The newest ``schema_version`` this program reads.
    what : str
        Name of the document in messages: "table".
    newer, hint : str
        What to do about a newer format, and about any complaint.

    Raises
    ------
    ManifestError
        Something is wrong; ``issues`` holds every complaint in the order of the lines, or that the format is newer.
    """
    issues = Issues(file, hint=hint)
    root = compose(text, issues)
    refuse_newer(root, file, known=known, what=what, hint=newer)
    value = take(Place(root, issues), kind)
    if value is None:
        issues.throw()  # the document is a list, a word or an alias, which was reported
    issues.throw_if_any()
    return value


def check_sources(place: Place, known: Collection[str], rows: Iterable[tuple[str, str, Collection[str]]]) -> None:
    """Report sources that rows name but `sources` lacks, and those that no row names.

    Parameters
    ----------
    place : Place
        The whole document.
    known : collection of str
        Ids under the key ``sources``; where it is empty, that was reported already.
    rows : iterable of (key, row, sources)
        The key a row is under, its name, and the sources it names.
    """
    if not known:
        return
    rows = tuple(rows)
    for key, row, named in rows:
        for source in named:
            if source and source not in known:
                complaint = f"names in {row} the source {shown(source)}, which is not in 'sources'"
                place.complain(f"{complaint}{nearest(source, known)}", key)
    for source in sorted(set(known) - {each for _, _, named in rows for each in named} - {""}):
        place.complain(f"contains {shown(source)}, which no row names", "sources")
