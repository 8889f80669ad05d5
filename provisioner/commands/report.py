"""The last run as one HTML page."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from provisioner.core.errors import EXIT_OK, NotWritableError, StorageError, UsageError
from provisioner.report.outcome import Report

_LARGEST_IMAGE = 64 * 1024 * 1024  # bytes; the test image has about 1.5 MB


def run_report(output: Path | None, *, opens: bool = False, say: Callable[[str], None]) -> Report:
    """Write the page and say where it is; show it in the browser if asked to.

    Parameters
    ----------
    output : Path or None
        Where to write it; None for the user's state folder.
    opens : bool
        Show it in the browser.
    say : callable
        Told where the page is.

    Raises
    ------
    UsageError
        There was no run yet.
    NotWritableError
        The page cannot be written there.
    """
    from provisioner.disk.last_run import last_report_time, read_last_report, write_page
    from provisioner.disk.locations import state_folder
    from provisioner.disk.os_errors import reason_of
    from provisioner.disk.root import write_output
    from provisioner.report.html.page import render_page

    folder = state_folder()
    document = read_last_report(folder)
    if document is None:
        raise UsageError("There is no run to report on yet.", hint="Run `klein-setup verify` first.")
    ended_at = document.get("ended_at")
    made_at = ended_at if isinstance(ended_at, str) else last_report_time(folder)
    page = render_page(document, image=_image_of(document), made_at=made_at).encode("utf-8")
    path = folder if output is None else output.expanduser().absolute()
    try:
        if output is None:
            path = write_page(folder, page)
        else:
            write_output(path, page)
    except StorageError as error:
        raise NotWritableError(
            f"{path} cannot be written: {reason_of(error)}.", hint="Name another --output FILE.", path=str(path)
        ) from error
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
    details = document.get("details")
    details = details if isinstance(details, dict) else {}
    smoke = details.get("smoke_test") or _dict(details.get("last_image")).get("smoke_test")
    picture = _dict(_dict(smoke).get("picture"))
    try:
        path = Path(picture["path"])
        if not path.is_file() or path.stat().st_size > _LARGEST_IMAGE:
            return None
        image = path.read_bytes()
    except (KeyError, TypeError, OSError, ValueError):
        return None
    return image if hashlib.sha256(image).hexdigest() == picture.get("sha256") else None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
