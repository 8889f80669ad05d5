"""What the refreshing scripts share: a YAML file changed at its values' own places, and how the outcome is told.

A file is never written out of parsed values: every character that is not a changed value stays, comments and order
with it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK, KleinError, ManifestError, UsageError  # noqa: E402
from provisioner.core.redact import redact  # noqa: E402
from provisioner.manifest.shipped import read_manifest_text  # noqa: E402 - found through the line above

BOM = b"\xef\xbb\xbf"
KeyPath = tuple[str | int, ...]


class YamlEdits:
    r"""Changes to one YAML text, made at the places of its nodes.

    Parameters
    ----------
    text : str
        YAML that a reader of this project has accepted: one document, no anchors, no tags.

    Examples
    --------
    >>> edits = YamlEdits("a: 1 # one\nb: ['x',  'y']\n")
    >>> edits.replace(("a",), 2)
    >>> edits.replace(("b",), ("x", "z"))
    >>> edits.result()
    'a: 2 # one\nb: ["x", "z"]\n'
    """

    def __init__(self, text: str) -> None:
        self._text = text
        # PyYAML's own reader: its marks count characters, and it is quick enough for a script.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise UsageError("an empty document has no values to change")
        self._root: yaml.Node = root
        self._changes: list[tuple[int, int, str]] = []

    def replace(self, path: KeyPath, value: str | int | Sequence[str]) -> None:
        """Put another value at a key path; a text gets the quotes of the one it replaces, double ones if it has none.

        Raises
        ------
        LookupError
            There is no such key.
        """
        node = self._node(path)
        start, end = node.start_mark.index, node.end_mark.index
        if isinstance(value, int):
            new = str(value)
        elif isinstance(value, str):
            new = f"'{value}'" if getattr(node, "style", None) == "'" else json.dumps(value)
        else:
            new = f"[{', '.join(json.dumps(each) for each in value)}]"
        if self._text[start:end] != new:
            self._changes.append((start, end, new))

    def insert_before(self, path: KeyPath, *items: Sequence[str]) -> None:
        """Put block items in front of the item at a key path: their first lines get the dash, the others its room."""
        node = self._node(path)
        line_start = self._text.rfind("\n", 0, node.start_mark.index) + 1
        before = self._text[line_start : node.start_mark.index]
        ending = "\r\n" if "\r\n" in self._text else "\n"
        new = "".join(
            f"{before if at == 0 else ' ' * len(before)}{line}{ending}"
            for lines in items
            for at, line in enumerate(lines)
        )
        self._changes.append((line_start, line_start, new))

    def insert_key(self, path: KeyPath, lines: Sequence[str], *, before: str) -> None:
        """Put a key with its value in front of another key of a block mapping, in as many lines as it takes.

        Raises
        ------
        LookupError
            There is no such key, or the mapping stands between braces.
        """
        node = self._node(path)
        key = next((each for each, _ in node.value if each.value == before), None)
        if key is None or not isinstance(node, yaml.MappingNode) or node.flow_style:
            raise LookupError(path)
        ending = "\r\n" if "\r\n" in self._text else "\n"
        start = self._text.rfind("\n", 0, key.start_mark.index) + 1
        self._changes.append((start, start, "".join(f"{' ' * key.start_mark.column}{line}{ending}" for line in lines)))

    def replace_items(self, path: KeyPath, items: Sequence[str]) -> None:
        """Put other texts in the place of all items of a block list.

        Raises
        ------
        LookupError
            There is no such list, or it is empty or stands between brackets.
        """
        node = self._node(path)
        if not isinstance(node, yaml.SequenceNode) or not node.value or node.flow_style:
            raise LookupError(path)
        first, last = node.value[0].start_mark, node.value[-1].end_mark
        start = self._text.rfind("\n", 0, first.index) + 1
        ending = "\r\n" if "\r\n" in self._text else "\n"
        dash = self._text[start : first.index]
        self._changes.append((start, last.index, ending.join(f"{dash}{json.dumps(each)}" for each in items)))

    def texts(self, path: KeyPath, key: str) -> tuple[str, ...]:
        """Return what one key holds in every mapping of the list at a key path."""
        node = self._node(path)
        count = len(node.value) if isinstance(node, yaml.SequenceNode) else 0
        return tuple(str(self._node((*path, at, key)).value) for at in range(count))

    def holds(self, path: KeyPath) -> bool:
        """Return whether there is a value at a key path."""
        try:
            self._node(path)
        except LookupError:
            return False
        return True

    @property
    def has_changes(self) -> bool:
        """Whether anything is to be changed."""
        return bool(self._changes)

    def result(self) -> str:
        """Return the text with every change made."""
        text = self._text
        for start, end, new in sorted(self._changes, reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def _node(self, path: KeyPath) -> yaml.Node:
        node = self._root
        for step in path:
            if isinstance(node, yaml.MappingNode):
                node = {key.value: value for key, value in node.value}[step]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
                node = node.value[step]
            else:
                raise LookupError(path)  # noqa: TRY004 - a path that leads nowhere, whatever lies there
        return node


@dataclass
class Outcome:
    """What was found out about one file."""

    differences: list[str] = field(default_factory=list)  # between the file and the world, a sentence each
    notes: list[str] = field(default_factory=list)  # what a person should know, and what is to be read again
    refused: list[KleinError] = field(default_factory=list)  # what could not be looked at
    text: str = ""  # the file as it would be


def read_file(path: Path) -> tuple[str, bool]:
    """Return the text of a YAML file with its own line ends, and whether it begins with a byte order mark."""
    text, _ = read_manifest_text(str(path.absolute()))  # a relative one could be taken for an id
    with path.open("rb") as file:
        return text, file.read(len(BOM)) == BOM


def refresh_file(
    path: Path, look: Callable[[str], Outcome], check: Callable[[str], object], *, is_to_write: bool
) -> int:
    """Compare one file with the world, tell what differs, and write it if that was asked for.

    Parameters
    ----------
    path : Path
        The file.
    look : callable
        Takes the text and returns the outcome.
    check : callable
        The reader of such files; a new text that it refuses with a `ManifestError` is never written.
    is_to_write : bool
        ``--write`` was given.

    Returns
    -------
    int
        0: nothing differs; 1: something does; else the exit status of what kept us from looking.

    Raises
    ------
    KleinError
        Nothing could be looked at.
    """
    before, has_bom = read_file(path)
    outcome = look(before)
    if outcome.text != before:
        try:
            check(outcome.text)
        except ManifestError as error:
            outcome.refused.append(error)
    _tell(path.name, before, outcome)
    if outcome.refused:
        return max(error.exit_status for error in outcome.refused)
    if outcome.text != before and is_to_write:
        _replace(path, outcome.text, has_bom=has_bom)
        say(f"{path.name}: written")
    return EXIT_FINDINGS if outcome.differences or outcome.text != before else EXIT_OK


def refresh_table(
    options: argparse.Namespace,
    compare: Callable[..., Outcome],
    parse: Callable[..., object],
) -> int:
    """Compare the table that a `table_parser` was told of; `compare` and `parse` take its text and name."""
    file: Path = options.file
    look = partial(compare, file=file.name, options=options)
    return refresh_file(file, look, partial(parse, file=file.name), is_to_write=options.write)


def table_parser(prog: str, description: str, table: Path) -> argparse.ArgumentParser:
    """Return the parser of a script that compares one of the program's tables."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "file", nargs="?", type=Path, default=table, metavar="FILE", help="the table, else the program's"
    )
    parser.add_argument("--write", action="store_true", help="write what the diff shows")
    return parser


def _tell(name: str, before: str, outcome: Outcome) -> None:
    for difference in outcome.differences:
        say(f"{name}: {difference}")
    for note in outcome.notes:
        say(f"{name}: note: {note}")
    lines = difflib.unified_diff(before.splitlines(True), outcome.text.splitlines(True), f"a/{name}", f"b/{name}")
    sys.stdout.write(redact("".join(line if line.endswith("\n") else f"{line}\n" for line in lines)))
    for error in outcome.refused:
        complain(error, name)


def _replace(path: Path, text: str, *, has_bom: bool) -> None:
    """Write a file as a whole or not at all."""
    content = (BOM if has_bom else b"") + text.encode()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    os.chmod(file.name, path.stat().st_mode & 0o777)  # noqa: PTH101 - `file.name` is a text
    os.replace(file.name, path)  # noqa: PTH105 - the same


def say(text: str) -> None:
    """Print a line to stdout, without anything secret."""
    print(redact(text))


def complain(error: KleinError, name: str) -> None:
    """Print an error with its hint and its single complaints to stderr, without anything secret."""
    lines = [f"{name}: {error}", *map(str, getattr(error, "issues", ()))]
    if error.hint:
        lines.append(error.hint)
    print(redact("\n".join(lines)), file=sys.stderr)


def run(
    parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None
) -> int:
    """Parse the command line, do the work, and turn an error into words and an exit status."""
    options = parser.parse_args(arguments)
    try:
        return work(options)
    except KleinError as error:
        complain(error, parser.prog)
        return error.exit_status
