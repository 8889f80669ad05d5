"""The last run, or those of many machines, as one HTML page."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from provisioner.core.errors import EXIT_OK, UsageError
from provisioner.core.json_reader import as_dict
from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.report.outcome import Report
from provisioner.ui.console import utc

_LARGEST_IMAGE = 64 * 1024 * 1024  # bytes; the test image has about 1.5 MB


def run_report(
    output: Path | None, *, opens: bool = False, say: Callable[[str], None], program: Program = KLEIN_SETUP
) -> Report:
    """Write the page and say where it is; show it in the browser if asked to.

    Parameters
    ----------
    output : Path or None
        Where to write it; None for the user's state folder.
    opens : bool
        Show it in the browser.
    say : callable
        Told where the page is.
    program : Program, optional
        How the commands on the page call this program.

    Raises
    ------
    UsageError
        There was no run yet.
    NotWritableError
        The page cannot be written there.
    """
    from provisioner.disk.last_run import last_report_time, read_last_report
    from provisioner.disk.locations import state_folder
    from provisioner.report.html.page import render_page

    folder = state_folder()
    document = read_last_report(folder)
    if document is None:
        raise UsageError("There is no run to report on yet.", hint="Run `klein-setup verify` first.")
    ended_at = document.get("ended_at")
    made_at = ended_at if isinstance(ended_at, str) else last_report_time(folder)
    page = render_page(document, image=_image_of(document), made_at=made_at, program=program)
    return _written(page, "klein-setup-report.html", output, opens=opens, say=say)


def run_merged_report(
    files: tuple[Path, ...], output: Path | None, *, opens: bool = False, say: Callable[[str], None]
) -> Report:
    """Write one page of the documents of many machines and say where it is; a file that is none is an error each.

    Raises
    ------
    UsageError
        A file cannot be read.
    NotWritableError
        The page cannot be written there.
    """
    from provisioner.report.html.merged_page import render_merged_page
    from provisioner.report.merge import read_documents

    documents, errors = read_documents([(str(file), _bytes_of(file)) for file in files])
    if errors:
        return Report(command="report", status="failed", exit_status=UsageError.exit_status, errors=errors)
    page = render_merged_page(documents, made_at=utc(time.time()))
    return _written(page, "klein-setup-machines.html", output, opens=opens, say=say)


def _bytes_of(file: Path) -> bytes:
    """Return the beginning of a file, which is all of any document."""
    from provisioner.report.merge import LARGEST_DOCUMENT

    try:
        with file.expanduser().open("rb") as stream:
            return stream.read(LARGEST_DOCUMENT + 1)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror or error}.", hint="Name files that `--json` made.", path=str(file)
        ) from error


def _written(page: str, name: str, output: Path | None, *, opens: bool, say: Callable[[str], None]) -> Report:
    """Write a page where it was asked for, else under its name into the state folder; show it if asked to."""
    from provisioner.commands.output_file import write_file

    path = write_file(page.encode("utf-8"), output, name=name)
    say(f"The page is {path}; it needs nothing but a browser.")
    if opens:
        _open(path, say)
    return Report(command="report", status="ok", exit_status=EXIT_OK, page=path)


def _open(path: Path, say: Callable[[str], None]) -> None:
    from provisioner.comfyui.server.browser import has_display, open_browser

    if not (has_display(os.environ) and open_browser(path.as_uri(), os.environ)):
        say("No browser could be opened here; open the page yourself.")


def _image_of(document: Mapping[str, Any]) -> bytes | None:
    """Return the image of the run, else of the last one that made an image; None where it is gone or another one."""
    details = as_dict(document.get("details"))
    smoke = details.get("smoke_test") or as_dict(details.get("last_image")).get("smoke_test")
    picture = as_dict(as_dict(smoke).get("picture"))
    try:
        path = Path(str(picture["path"]))
        if not path.is_file() or path.stat().st_size > _LARGEST_IMAGE:
            return None
        image = path.read_bytes()
    except (KeyError, TypeError, OSError, ValueError):
        return None
    return image if hashlib.sha256(image).hexdigest() == picture.get("sha256") else None
