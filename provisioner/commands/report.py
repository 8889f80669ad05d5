"""The last run as one HTML page."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from provisioner.core.errors import EXIT_OK, UsageError
from provisioner.core.json_reader import as_dict, as_list
from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.report.outcome import Report

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
    from provisioner.commands.output_file import write_file
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
    path = write_file(page.encode("utf-8"), output, name="klein-setup-report.html")
    say(f"The page is {path}; it needs nothing but a browser.")
    if opens:
        open_page(path, say)
    return Report(command="report", status="ok", exit_status=EXIT_OK, page=path)


def open_page(path: Path, say: Callable[[str], None]) -> None:
    """Show a page in the browser, or say that none can be opened."""
    from provisioner.comfyui.server.browser import has_display, open_browser

    if not (has_display(os.environ) and open_browser(path.as_uri(), os.environ)):
        say("No browser could be opened here; open the page yourself.")


def _image_of(document: Mapping[str, Any]) -> bytes | None:
    """Return the image of the run, or a frame of its video, else those of the last that made one; None: it is gone."""
    details = as_dict(document.get("details"))
    smoke = details.get("smoke_test") or as_dict(details.get("last_image")).get("smoke_test")
    frames = [as_dict(as_dict(each).get("frame")) for each in as_list(as_dict(smoke).get("media"))]
    picture = as_dict(as_dict(smoke).get("picture")) or next((each for each in frames if each), {})
    try:
        path = Path(str(picture["path"]))
        if not path.is_file() or path.stat().st_size > _LARGEST_IMAGE:
            return None
        image = path.read_bytes()
    except (KeyError, TypeError, OSError, ValueError):
        return None
    return image if hashlib.sha256(image).hexdigest() == picture.get("sha256") else None
