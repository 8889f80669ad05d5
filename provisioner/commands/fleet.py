"""``klein-setup fleet report``: many documents of ``--json``, one page and one table."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from provisioner.commands.output_file import write_file
from provisioner.commands.run import load_manifest
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK, UsageError
from provisioner.core.program import Program
from provisioner.disk.read_json import read_at_most
from provisioner.report.fleet_comparison import Fleet, fleet_of
from provisioner.report.fleet_documents import LARGEST_DOCUMENT, Document, UnusableFile, read_document
from provisioner.report.html.fleet_page import render_fleet_page
from provisioner.report.outcome import Report
from provisioner.ui.console import utc

MOST_FILES = 20_000
"""Files below the folder; ten documents of each of 2,000 hosts."""

_LONGEST_LIST = 4 * 1024 * 1024  # bytes of a list of hosts
_Reader = Callable[[str, bytes], Document | UnusableFile]
_HINT = "Make documents with `klein-setup verify --json > HOST.json` and put them into one folder."


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """What ``fleet report`` is asked for."""

    folder: Path
    manifests: tuple[str, ...]  # locks
    expected: Path | None  # a file with the names of the hosts that there should be
    stale_after_s: int
    by_file: bool
    output: Path | None
    opens: bool


def run_fleet_report(
    options: FleetOptions,
    *,
    show: Callable[[Fleet], None],
    say: Callable[[str], None],
    program: Program,
    secrets: Sequence[str] = (),
) -> Report:
    """Show the fleet that the documents in a folder are about, and write its page, without the secrets.

    Raises
    ------
    UsageError
        The folder or the list of hosts cannot be read, or no document is there.
    ManifestError
        A lock is wrong.
    NotWritableError
        The page cannot be written there.
    """
    locks = tuple(map(load_manifest, options.manifests))
    expected = _names_in(options.expected) if options.expected is not None else ()
    now_s = time.time()
    fleet = fleet_of(
        _read(options.folder.expanduser(), partial(read_document, by_file=options.by_file, secrets=secrets)),
        locks=locks,
        expected_hosts=expected,
        now_s=int(now_s),
        stale_after_s=options.stale_after_s,
    )
    if not fleet.hosts:
        wrong = "; ".join(f"{each.file}: {each.reason}" for each in fleet.unusable[:5])
        raise UsageError(
            f"There is no document of klein-setup in {options.folder}{f' ({wrong})' if wrong else ''}.",
            hint=_HINT,
            path=str(options.folder),
        )
    page = render_fleet_page(fleet, made_at=utc(now_s), manifests=options.manifests, program=program)
    path = write_file(page.encode("utf-8"), options.output, name="klein-setup-fleet.html")
    show(fleet)
    say(f"The page is {path}; it needs nothing but a browser.")
    if options.opens:
        from provisioner.commands.report import open_page

        open_page(path, say)
    return Report(
        command="fleet report",
        status="ok" if fleet.is_in_line else "findings",
        exit_status=EXIT_OK if fleet.is_in_line else EXIT_FINDINGS,
        page=path,
        fleet=fleet,
    )


def _read(folder: Path, read: _Reader) -> Iterator[Document | UnusableFile]:
    """Read every file below a folder, one at a time; hidden ones and links to folders are left alone."""
    number = 0
    for where, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(each for each in names if not each.startswith(".")):
            number += 1
            if number > MOST_FILES:
                raise UsageError(
                    f"There are more than {MOST_FILES:,} files below {folder}.",
                    hint="Keep the newest documents of each host.",
                    path=str(folder),
                )
            path = Path(where, name)
            label = path.relative_to(folder).as_posix()
            yield _read_one(path, label, read)


def _read_one(path: Path, label: str, read: _Reader) -> Document | UnusableFile:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would be waited for, a link may lead anywhere
            return UnusableFile(file=label, reason="it is not a regular file")
        with path.open("rb") as stream:
            data = read_at_most(stream, LARGEST_DOCUMENT)
    except OSError as error:
        return UnusableFile(file=label, reason=f"it cannot be read: {error.strerror or error}")
    return read(label, data)


def _refuse(error: OSError) -> None:
    raise UsageError(
        f"{error.filename} cannot be read: {error.strerror or error}.", hint=_HINT, path=str(error.filename)
    ) from error


def _names_in(file: Path) -> tuple[str, ...]:
    """Return the names in a list of hosts: one a line, ``#`` begins a comment."""
    try:
        with file.expanduser().open("rb") as stream:
            data = read_at_most(stream, _LONGEST_LIST)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror or error}.",
            hint="Name a file with the name of one host on each line.",
            path=str(file),
        ) from error
    lines = data.decode("utf-8-sig", "replace").splitlines()
    return tuple(dict.fromkeys(name for line in lines if (name := " ".join(line.partition("#")[0].split()))))
