"""Styled text laid out for a width: paragraphs that wrap, grids that align; knows no terminal.

Pure functions over values.  Colour is added last, by ``rendered``; with no width (a pipe, a file)
nothing is wrapped or shortened, so that ``grep`` finds whole paths.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import Literal

Style = Literal["", "title", "good", "bad", "warn", "dim", "command"]

_SGR: dict[Style, str] = {"title": "1", "good": "32", "bad": "1;31", "warn": "33", "dim": "2", "command": "1;36"}

WIDEST_PROSE = 120
"""Cells: as wide as the window up to here; beyond it the eye loses the beginning of the next line."""

WIDEST_GRID = 120
"""Cells: beyond this the eye loses the row between two columns."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of text in one style."""

    text: str
    style: Style = ""
    href: str = ""  # where a click leads, in a terminal that has links


Line = tuple[Span, ...]
Clean = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Para:
    """A paragraph: wraps at spaces, later lines hang under the first."""

    line: Line
    indent: int = 0
    hang: int = 0  # further cells before every line but the first
    is_command: bool = False  # a terminal wraps it: a command with a line end in it cannot be pasted


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one column of a grid behaves."""

    align: Literal["left", "right"] = "left"
    is_path: bool = False  # shortened in the middle when the window is narrow
    is_optional: bool = False  # left out when the window is narrow


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a grid, with paragraphs under its second column."""

    cells: tuple[Span, ...]
    notes: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Rows whose columns line up."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    indent: int = 2


Block = Para | Grid


def span(text: str, style: Style = "") -> Line:
    """Return a line of one span."""
    return (Span(text, style),)


BLANK = Para(line=())


def path_span(path: PurePath, style: Style = "") -> Span:
    """Return a path that a click opens."""
    return Span(str(path), style, path.as_uri() if path.is_absolute() else "")


def pair(name: str, value: str | PurePath, style: Style = "") -> Row:
    """Return a row of a name and what it is."""
    return Row((Span(name, "dim"), path_span(value, style) if isinstance(value, PurePath) else Span(value, style)))


def pair_blocks(rows: Sequence[Row]) -> list[Block]:
    """Return name and value pairs as a list whose names line up and whose values wrap under themselves."""
    longest = max((cells(row.cells[0].text) for row in rows), default=0)
    blocks: list[Block] = []
    for name, value in (row.cells for row in rows):
        gap = Span(" " * (longest - cells(name.text) + 2))
        blocks.append(Para(line=(name, gap, value), indent=2, hang=longest + 2))
    return blocks


# --- measuring ---------------------------------------------------------------------------------


def cells(text: str) -> int:
    """Return how many cells a terminal needs for `text`.

    >>> cells("abc"), cells("\u6a21\u578b")
    (3, 4)
    """
    if text.isascii():
        return len(text)
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _head(text: str, width: int) -> str:
    """Return the longest beginning of `text` that fits `width` cells."""
    taken = 0
    for position, character in enumerate(text):
        taken += _cells_of(character)
        if taken > width:
            return text[:position]
    return text


def _tail(text: str, width: int) -> str:
    """Return the longest end of `text` that fits `width` cells."""
    return _head(text[::-1], width)[::-1]


def shorten(text: str, width: int, ellipsis: str = "...") -> str:
    """Return `text` cut at its end to fit `width` cells.

    >>> shorten("waiting for the server", 12)
    'waiting f...'
    """
    if cells(text) <= width:
        return text
    return _head(text, max(0, width - cells(ellipsis))).rstrip() + _head(ellipsis, width)


def shorten_path(path: str, width: int, ellipsis: str = "...") -> str:
    """Return `path` cut to fit `width` cells, leaving out the folder first, then the extension.

    >>> shorten_path("diffusion_models/flux-2-klein-4b-fp8.safetensors", 36)
    '.../flux-2-klein-4b-fp8.safetensors'
    >>> shorten_path("diffusion_models/flux-2-klein-4b-fp8.safetensors", 24)
    'flux-2-klein-4b-fp8...'
    >>> shorten_path("diffusion_models/flux-2-klein-4b-fp8.safetensors", 15)
    'flux-2...4b-fp8'
    """
    name = re.split(r"[/\\]", path)[-1]
    stem = name.rpartition(".")[0] or name
    for candidate in (path, f"{ellipsis}/{name}", name, f"{stem}{ellipsis}"):
        if cells(candidate) <= width:
            return candidate
    room = width - cells(ellipsis)
    if room < 2:
        return _head(stem, width)
    return f"{_head(stem, room - room // 2)}{ellipsis}{_tail(stem, room // 2)}"


def padded(text: str, width: int, align: Literal["left", "right"] = "left") -> str:
    """Return `text` filled with spaces up to `width` cells."""
    fill = " " * max(0, width - cells(text))
    return fill + text if align == "right" else text + fill


# --- laying out --------------------------------------------------------------------------------


def laid_out(
    blocks: Iterable[Block], *, width: int | None, clean: Clean = str, ellipsis: str = "...", home: str = ""
) -> list[Line]:
    """Return the lines of `blocks`, for a window of `width` cells or for none.

    Every text goes through `clean` before it is cut or wrapped, so that no secret is missed because it was split.
    Paths below `home` begin with a tilde.
    """
    lines: list[Line] = []
    for block in blocks:
        if isinstance(block, Grid):
            lines += _grid_lines(block, width, partial(_cleaned, clean=clean, home=home), ellipsis)
        else:
            lines += _para_lines(block, width, partial(_cleaned, clean=clean, home="" if block.is_command else home))
    return lines


def _cleaned(each: Span, *, clean: Clean, home: str) -> Span:
    """Return a run of text as it is shown: without secrets, its paths below the home folder short.

    Where something was removed, nothing is a link: an address spells a secret in its own way.
    """
    text = clean(each.text)
    shown = with_tilde(text, home) if home and each.style != "command" else text
    return Span(shown, each.style, each.href if text == each.text and clean(each.href) == each.href else "")


def with_tilde(text: str, home: str) -> str:
    """Return text with a tilde for the home folder in its paths, but for the commands, which stand in backquotes.

    >>> with_tilde("/home/me/ComfyUI; run `verify --comfyui /home/me/ComfyUI` in /home/me", "/home/me")
    '~/ComfyUI; run `verify --comfyui /home/me/ComfyUI` in ~'
    """
    if not home or home not in text:
        return text
    pattern = rf"(?<![\w./\\~=-]){re.escape(home)}(?=[/\\\s,:;)'\"]|\.?\Z|\.\s)"
    parts = text.split("`")
    parts[::2] = [re.sub(pattern, "~", part) for part in parts[::2]]
    return "`".join(parts)


def _para_lines(para: Para, width: int | None, clean: Callable[[Span], Span]) -> list[Line]:
    """Return a paragraph's lines; a newline in its text begins a new line that hangs, and keeps its own indentation."""
    lines: list[Line] = []
    room = None if width is None or para.is_command else max(20, min(width, WIDEST_PROSE) - para.indent)
    for number, part in enumerate(_split_lines(tuple(map(clean, para.line)))):
        before = para.hang if number else 0
        own = _indentation(part)
        words = _without(part, own)
        left = None if room is None else max(20, room - before - own)
        lines += _wrapped(words, left, para.indent + before + own, 0 if number else para.hang)
    return lines


def _indentation(line: Line) -> int:
    text = "".join(each.text for each in line)
    return len(text) - len(text.lstrip(" ")) if text.strip() else 0


def _without(line: Line, number: int) -> Line:
    """Return a line without its first characters."""
    kept: list[Span] = []
    for each in line:
        kept.append(replace(each, text=each.text[number:]))
        number = max(0, number - len(each.text))
    return tuple(kept)


def _split_lines(line: Line) -> list[Line]:
    """Return the line cut at its newlines."""
    parts: list[list[Span]] = [[]]
    for each in line:
        first, *rest = each.text.replace("\t", "  ").split("\n")
        parts[-1].append(replace(each, text=first))
        parts += [[replace(each, text=text)] for text in rest]
    return [tuple(part) for part in parts]


def _wrapped(line: Line, room: int | None, lead: int, hang: int) -> list[Line]:
    """Return `line` broken at spaces to `room` cells, after `lead` cells; later lines hang.

    A word longer than the room stays whole: a path that is broken in two cannot be pasted.
    """
    if room is None or sum(cells(each.text) for each in line) <= room:
        return [_led(line, lead)]
    lines: list[list[Span]] = [[]]
    used = 0
    for gap, word in _words(line):
        length = sum(cells(each.text) for each in word)
        begin = used + len(gap.text)
        if lines[-1] and begin + length > room and begin > hang:  # else the next line would give it no more room
            lines.append([])
            used = hang
        if lines[-1]:
            lines[-1].append(gap)
            used += len(gap.text)
        lines[-1] += word
        used += length
    return [_led(tuple(each), lead + (hang if number else 0)) for number, each in enumerate(lines)]


def _words(line: Line) -> list[tuple[Span, list[Span]]]:
    """Return the words of a line, each after the spaces before it; a word may change its style half way.

    A command in backquotes is one word: with a line end in it, it could not be pasted.
    """
    words: list[tuple[Span, list[Span]]] = []
    gap = Span("")
    is_open = False
    for each in line:
        for piece in re.findall(r"\s+|(?:`[^`]*`|\S)+", each.text):
            if piece.isspace():
                gap = Span(piece if is_open or not words else gap.text + piece)
                is_open = False
            elif is_open:
                words[-1][1].append(replace(each, text=piece))
            else:
                words.append((gap, [replace(each, text=piece)]))
                is_open = True
    return words


def _led(line: Line, lead: int) -> Line:
    """Return the line after `lead` spaces; an empty line stays empty."""
    return (Span(" " * lead), *line) if lead and any(each.text for each in line) else line


def _grid_lines(grid: Grid, width: int | None, clean: Callable[[Span], Span], ellipsis: str) -> list[Line]:
    """Return a grid's lines: columns as wide as needed, the path column narrowed first."""
    if not grid.rows:
        return []
    rows = [tuple(Span(" ".join(clean(each).text.split("\n")), each.style) for each in row.cells) for row in grid.rows]
    widths = [max(cells(row[index].text) for row in rows) for index in range(len(grid.columns))]
    shown = _fit(grid, widths, width)
    lines: list[Line] = []
    for row, source in zip(rows, grid.rows, strict=True):
        lines.append(_grid_line(grid, row, widths, shown, ellipsis))
        for note in source.notes:
            lines += _para_lines(Para(line=note, indent=grid.indent + widths[0] + 2), width, clean)
    return lines


def _fit(grid: Grid, widths: list[int], width: int | None) -> list[int]:
    """Return the columns to show, after narrowing `widths` in place to what a window of `width` takes."""
    shown = list(range(len(grid.columns)))
    if width is None:
        return shown
    room = min(width, WIDEST_GRID) - grid.indent

    def excess() -> int:
        return sum(widths[index] for index in shown) + 2 * (len(shown) - 1) - room

    for index in reversed(range(len(grid.columns))):
        if excess() > 0 and grid.columns[index].is_optional:
            shown.remove(index)
    for index in shown:
        if excess() > 0 and grid.columns[index].is_path:
            widths[index] = max(12, widths[index] - excess())
    return shown


def _grid_line(grid: Grid, row: Sequence[Span], widths: list[int], shown: list[int], ellipsis: str) -> Line:
    """Return one row, its cells cut and padded; nothing trails the last one."""
    spans: list[Span] = [Span(" " * grid.indent)]
    for index in shown:
        column, cell = grid.columns[index], row[index]
        text = shorten_path(cell.text, widths[index], ellipsis) if column.is_path else cell.text
        spans += [Span(padded(text, widths[index], column.align), cell.style), Span("  ")]
    while spans and not spans[-1].text.strip():
        spans.pop()
    if spans:
        spans[-1] = replace(spans[-1], text=spans[-1].text.rstrip())
    return tuple(spans)


def rendered(line: Line, *, is_coloured: bool, is_linked: bool = False) -> str:
    """Return a line as characters, with SGR colours and OSC 8 links or without."""
    if not is_coloured:
        return "".join(each.text for each in line)
    return "".join(_coloured(each, is_linked=is_linked) for each in (linked(line) if is_linked else line))


def _coloured(each: Span, *, is_linked: bool) -> str:
    text = f"\x1b[{_SGR[each.style]}m{each.text}\x1b[0m" if each.style and each.text.strip() else each.text
    return f"\x1b]8;;{each.href}\x1b\\{text}\x1b]8;;\x1b\\" if each.href and is_linked else text


_ADDRESS = re.compile(r"https?://[^\s<>\"'`)\]]*[^\s<>\"'`)\].,;:]")


def linked(line: Line) -> Line:
    """Return a line whose web addresses lead where they say; one that was cut short leads nowhere.

    >>> [each.href for each in linked(span("see https://a.example/x, please"))]
    ['', 'https://a.example/x', '']
    """
    spans: list[Span] = []
    for each in line:
        end = 0
        for found in () if each.href else _ADDRESS.finditer(each.text):
            address = found[0]
            if not address.isascii() or each.text.startswith("...", found.end()):
                continue
            spans += [replace(each, text=each.text[end : found.start()]), replace(each, text=address, href=address)]
            end = found.end()
        spans.append(replace(each, text=each.text[end:]))
    return tuple(each for each in spans if each.text) or line
