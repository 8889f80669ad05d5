#!/usr/bin/env python3
"""Check that README.md and docs/ say what the program says; ``--write`` puts them right.

Two things are compared.  The table of ``docs/exit-statuses.md`` has a row for every exit status, and in it every code
of ``provisioner/core/errors.py``; the last column is the author's.  A block fenced as ```` ```help ```` or
```` ```help verify ```` holds what ``klein-setup --help`` or ``klein-setup verify --help`` prints 100 columns wide, and
``docs/commands.md`` has one for every command.  Line breaks are not compared: argparse breaks lines differently from
one Python to the next.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from provisioner.cli.arguments import build_parser  # noqa: E402 - found through the line above when run as a script
from provisioner.core import errors  # noqa: E402
from provisioner.core.errors import KleinError  # noqa: E402

EXIT_STATUSES = ROOT / "docs" / "exit-statuses.md"
COMMANDS = ROOT / "docs" / "commands.md"
HEADER = ("exit", "code", "when")
HELP_BLOCK = re.compile(r"^```help(?: ([a-z -]+))?\n(.*?)^```$", re.M | re.S)
NO_ERROR = {
    errors.EXIT_OK: "Everything the manifest lists is correct, or the plan was printed.",
    errors.EXIT_FINDINGS: "`verify` found a problem, `diagnose` what is at fault, or `fleet report` a difference; the "
    "check itself worked.",
    errors.EXIT_DEFECT: "Internal error; the log and where to report it are shown.",
    errors.EXIT_INTERRUPTED: "Interrupted with Ctrl-C.",
    errors.EXIT_TERMINATED: "Terminated by the system.",
}


def every_error(base: type[KleinError] = KleinError) -> Iterator[type[KleinError]]:
    """Yield the classes below `base` that the package defines."""
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from every_error(child)


def codes_by_status() -> dict[int, list[str]]:
    """Return the codes of each exit status, the general one first; none for a status that is no error."""
    found: dict[int, list[str]] = {status: [] for status in NO_ERROR}
    for error in sorted(set(every_error()), key=lambda error: (len(error.__mro__), error.code)):
        found.setdefault(error.exit_status, []).append(error.code)
    return dict(sorted(found.items()))


def reason(status: int) -> str:
    """Return what to write in the last column of a row that has no text yet."""
    if status in NO_ERROR:
        return NO_ERROR[status]
    kinds = [error for error in KleinError.__subclasses__() if error.exit_status == status]
    first_lines = [(kind.__doc__ or "").strip().splitlines()[0] for kind in kinds]
    return " ".join(line.replace("``", "`").split(": the base of")[0].rstrip(".") + "." for line in first_lines)


# --- the table of exit statuses ----------------------------------------------------------------


def cells(line: str) -> tuple[str, ...]:
    """Return the cells of one row of a Markdown table."""
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def find_exit_table(text: str) -> tuple[int, int] | None:
    """Return (first line, line after the last) of the table of exit statuses, None where there is none."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        if line.startswith("|") and cells(line) == HEADER:
            end = start
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            return start, end
    return None


def rows_of(text: str) -> dict[str, tuple[str, str]]:
    """Return (code, when) of each row of the table of exit statuses, by what its first cell says."""
    place = find_exit_table(text)
    if place is None:
        return {}
    rows = [cells(line) for line in text.splitlines()[place[0] + 2 : place[1]]]
    return {row[0].strip("`*"): (row[1], row[2]) for row in rows if len(row) == len(HEADER)}


def complaints_about_exit_table(text: str) -> list[str]:
    """Return where the table of exit statuses and the program differ, a sentence each."""
    if find_exit_table(text) is None:
        return ["there is no table with the header | exit | code | when |"]
    rows = rows_of(text)
    wanted = codes_by_status()
    found = [f"exit status {status} is not one of the program's" for status in rows if status not in map(str, wanted)]
    for status, codes in wanted.items():
        if str(status) not in rows:
            found.append(f"exit status {status} is missing")
            continue
        code, when = rows[str(status)]
        shown = re.findall(r"`([^`]+)`", code)
        found += [f"exit status {status}: `{each}` is not its code" for each in shown if each not in codes]
        found += [f"exit status {status}: `{each}` is missing" for each in codes if each not in shown]
        if not when:
            found.append(f"exit status {status} does not say when")
    return found


def with_exit_table(text: str) -> str:
    """Return `text` with the table as the program has it, the author's last column kept.

    Each code is a link to its section of ``docs/errors.md``.
    """
    place = find_exit_table(text)
    if place is None:
        return text
    rows = rows_of(text)
    table = ["| exit | code | when |", "| --- | --- | --- |"]
    for status, codes in codes_by_status().items():
        when = rows.get(str(status), ("", ""))[1] or reason(status)
        table.append(
            f"| {status} | {', '.join(f'[`{code}`](errors.md#{code})' for code in codes)} | {when} |".replace(
                "|  |", "| |"
            )
        )
    lines = text.splitlines()
    return "\n".join([*lines[: place[0]], *table, *lines[place[1] :]]) + "\n"


# --- blocks of help ----------------------------------------------------------------------------


def program_help(command: str) -> str:
    """Return what ``klein-setup COMMAND --help`` prints, 100 columns wide and without colour.

    Raises
    ------
    CalledProcessError
        There is no such command.
    """
    environ = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHON_COLORS": "0", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "provisioner", *command.split(), "--help"],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return done.stdout


def same_words(shown: str, printed: str) -> bool:
    r"""Whether two help texts differ in nothing but line breaks and what Python versions write differently.

    Python 3.13 writes ``-q, --quiet N`` where older ones write ``-q N, --quiet N``.

    >>> same_words("usage: a\n  [-h]", "usage: a [-h]")
    True
    >>> same_words("-o N, --out N  where", "-o, --out N  where")
    True
    >>> same_words("-o N, --out N  where", "-o, --out N  why")
    False
    """

    def words(text: str) -> str:
        plain = " ".join(text.split())
        return re.sub(r"(^| )(-\w) (\S+), (--[\w-]+) \3(?= |$)", r"\1\2, \4 \3", plain)

    return words(shown) == words(printed)


def with_help(text: str, ask: Callable[[str], str]) -> str:
    """Return `text` with each stale block of help replaced by what the program prints."""

    def renewed(match: re.Match[str]) -> str:
        printed = ask(match[1] or "")
        if same_words(match[2], printed):
            return match[0]
        fence = f"```help {match[1]}" if match[1] else "```help"
        return f"{fence}\n{printed.rstrip()}\n```"

    return HELP_BLOCK.sub(renewed, text)


def every_command(parser: argparse.ArgumentParser | None = None, words: str = "") -> Iterator[str]:
    """Yield the words of each command that does something: ``verify``, ``manifest lock``."""
    parser = parser or build_parser()
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not choices:
        yield words
        return
    own_names = {id(each): name for name, each in reversed(choices[0].items())}  # without the aliases
    for each in dict.fromkeys(choices[0].values()):
        yield from every_command(each, f"{words} {own_names[id(each)]}".lstrip())


def with_every_command(text: str) -> str:
    """Return `text` with a heading and an empty block for each command that has none."""
    shown = {match[1] or "" for match in HELP_BLOCK.finditer(text)}
    missing = [command for command in ("", *every_command()) if command not in shown]
    added = [
        f"\n## klein-setup {command}".rstrip() + f"\n\n{f'```help {command}'.rstrip()}\n```\n" for command in missing
    ]
    return text + "".join(added)


def renewed(page: Path, text: str) -> str:
    """Return the text of a page as it should be."""
    if page == EXIT_STATUSES:
        text = with_exit_table(text)
    return with_help(with_every_command(text) if page == COMMANDS else text, program_help)


def main() -> int:
    """Print the difference and what is missing; return 1 if there is any."""
    parser = argparse.ArgumentParser(description="Check that README.md and docs/ say what the program says.")
    parser.add_argument("--write", action="store_true", help="put them right")
    arguments = parser.parse_args()
    status = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        before = page.read_text(encoding="utf-8")
        after = renewed(page, before)
        name = page.relative_to(ROOT).as_posix()
        if not arguments.write:
            lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, "the program")
            print("".join(lines), end="")
        elif after != before:
            page.write_text(after, encoding="utf-8", newline="\n")
            before = after
        found = complaints_about_exit_table(before) if page == EXIT_STATUSES else []
        print("".join(f"{name}: {line}\n" for line in found), end="")
        status |= bool(found) or after != before
    return status


if __name__ == "__main__":
    sys.exit(main())
