"""HTML that is escaped unless it is known to be HTML already, so that no foreign text becomes markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from functools import lru_cache

from provisioner.core.redact import printable, redact
from provisioner.report.web_addresses import is_web_address

_ALONE = frozenset({"img", "meta", "br"})


class Html(str):
    """Finished markup; every other string is text and is escaped where it is put in."""

    __slots__ = ()


def escaped(text: str) -> Html:
    """Return a text escaped for HTML, without secrets and without characters that hide or reverse text."""
    return text if isinstance(text, Html) else _as_html(text)


@lru_cache(maxsize=2048)
def _as_html(text: str) -> Html:
    """Return a text as `escaped` does; a page repeats many texts."""
    whole = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written
    return Html(html.escape(redact(printable(whole)), quote=True))


def joined(parts: Iterable[str], between: str = "") -> Html:
    """Return the parts one after the other, each escaped unless it is HTML."""
    return Html(escaped(between).join(escaped(part) for part in parts))


def element(tag: str, *children: str, **attributes: str | None) -> Html:
    """Return an element; attributes that are None are left out, ``class_`` is ``class``, ``data_label`` ``data-label``.

    >>> element("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _ALONE:
        return Html(f"<{tag}{named}>")
    return Html(f"<{tag}{named}>{joined(children)}</{tag}>")


def code(text: str, *, title: str | None = None, class_: str | None = None) -> Html:
    """Return text in monospace."""
    return element("code", text, title=title, class_=class_)


def link(text: str, url: str) -> Html:
    """Return a text that leads to an address; the text alone where that is none of the web."""
    return element("a", text, href=url, rel="noreferrer noopener") if is_web_address(url) else escaped(text)


def command_block(text: str) -> Html:
    """Return a command, or lines, with a button that copies it; without script there is no button."""
    button = element("button", "Copy", type="button", class_="copy", hidden="", aria_live="polite")
    return element("div", element("pre", code(text)), button, class_="command")


def prose(text: str) -> Html:
    """Return a sentence with what is between backticks in monospace.

    >>> prose("Run `klein-setup repair`.")
    'Run <code>klein-setup repair</code>.'
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick that nothing closes
        return escaped(text)
    return joined(code(part) if number % 2 else part for number, part in enumerate(parts))


def path(text: str) -> Html:
    """Return a path that may break after its separators, so that a phone need not scroll."""
    whole = escaped(text)
    rest = whole[1:].replace("/", "/<wbr>").replace("\\", "\\<wbr>")
    return element("code", Html(whole[:1] + rest), class_="path")


def badge(word: str, tone: str) -> Html:
    """Return a highlighted word; the tone is its colour."""
    return element("span", word, class_=f"badge {tone}")


def section(title: str, *children: str, name: str) -> Html:
    """Return a part of the page under its heading; nothing if it has no content."""
    body = joined(children)
    if not body:
        return Html("")
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, body, aria_labelledby=f"{name}-title", class_=name)


def facts(rows: Iterable[tuple[str, str]]) -> Html:
    """Return names with their values; a row without a value is left out."""
    pairs = [joined([element("dt", name), element("dd", value)]) for name, value in rows if value]
    return element("dl", *(element("div", pair) for pair in pairs)) if pairs else Html("")


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Iterable[str] = ()) -> Html:
    """Return a table whose first cell heads its row; on a phone each row becomes a small card.

    A column that is empty in every row is left out.
    The roles are written out, because browsers forget what a table is when its rows are laid out otherwise.
    """
    if not rows:
        return Html("")
    kept = [column for column in range(len(headings)) if column == 0 or any(row[column] for row in rows)]
    headings = [headings[column] for column in kept]
    rows = [[row[column] for column in kept] for row in rows]
    classes = {heading: "number" for heading in numbers}
    head = element(
        "tr",
        *(element("th", each, scope="col", role="columnheader", class_=classes.get(each)) for each in headings),
        role="row",
    )
    body = [_row(headings, row, classes) for row in rows]
    return element(
        "table",
        element("caption", caption),
        element("thead", head, role="rowgroup"),
        element("tbody", *body, role="rowgroup"),
        role="table",
    )


def _row(headings: Sequence[str], row: Sequence[str], classes: dict[str, str]) -> Html:
    first, *rest = row
    cells = [
        element("td", cell, role="cell", data_label=heading, class_=classes.get(heading))
        for heading, cell in zip(headings[1:], rest, strict=True)
    ]
    return element("tr", element("th", first, scope="row", role="rowheader"), *cells, role="row")


def bullets(items: Iterable[str]) -> Html:
    """Return a list; nothing where there are no items."""
    lines = [element("li", item) for item in items]
    return element("ul", *lines) if lines else Html("")


def paragraphs(sentences: Iterable[str]) -> Html:
    """Return a paragraph for each sentence that is not empty."""
    return joined(element("p", each) for each in sentences if each)
