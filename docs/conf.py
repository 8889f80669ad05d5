"""Sphinx settings: ``uv run nox -s docs`` builds the site strictly into ``build/docs``.

The pages are plain Markdown that GitHub shows as it is.  What a site needs beside is made here: the table of contents
from the lists of ``index.md``, and links to files outside of ``docs/``, which lead to the repository.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import tomllib
from pygments.lexers.special import TextLexer

ROOT = Path(__file__).resolve().parent.parent
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Source"]
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
LISTED = re.compile(r"^- \[[^]]*\]\(([^)#:]+)\.md\)", re.M)

project = "klein-setup"
author = "the authors of klein-setup"
extensions = ["myst_parser"]
exclude_patterns = ["schema"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "klein-setup"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"source_repository": SOURCE, "source_branch": "main", "source_directory": "docs/"}
nitpicky = True


def to_the_repository(docname: str, text: str) -> str:
    """Return a page whose links to files that are no pages lead to the repository."""
    folder = PurePosixPath("docs", docname).parent

    def led(match: re.Match[str]) -> str:
        path = (ROOT / folder / match[1]).resolve()
        inside = ROOT / "docs" in path.parents and path.suffix in {".md", ".svg", ".png"}
        if inside or not path.exists():  # Sphinx complains about what does not exist
            return match[0]
        kind = "tree" if path.is_dir() else "blob"
        return f"]({SOURCE}/{kind}/main/{path.relative_to(ROOT).as_posix()}{match[2] or ''})"

    return LINK.sub(led, text)


def with_contents(text: str) -> str:
    """Return the front page with a table of contents for each of its lists."""
    made = []
    for section in text.split("\n## ")[1:]:
        entries = "\n".join(LISTED.findall(section))
        made.append(f"\n```{{toctree}}\n:hidden:\n:caption: {section.splitlines()[0]}\n\n{entries}\n```\n")
    return text + "".join(made)


def read(app: Any, docname: str, source: list[str]) -> None:  # noqa: ANN401, ARG001 - what Sphinx passes
    """Change a page after it was read."""
    source[0] = to_the_repository(docname, source[0])
    if docname == "index":
        source[0] = with_contents(source[0])
    if docname == "decisions/README":
        pages = re.findall(r"\((\d[^)]*)\.md\)", source[0])
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Any) -> None:  # noqa: ANN401 - Sphinx has no stubs where this is checked
    """Connect; called by Sphinx."""
    app.add_lexer("help", TextLexer)
    app.connect("source-read", read)
