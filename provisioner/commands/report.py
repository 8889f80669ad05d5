"""The last run as one HTML page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from provisioner.core.errors import EXIT_OK, NotWritableError, StorageError, UsageError
from provisioner.report.outcome import Report

_DEFAULT = Path("klein-setup-report.html")


def run_report(output: Path | None, *, say: Callable[[str], None]) -> Report:
    """Write the page and say where it is.

    Raises
    ------
    UsageError
        There was no run yet.
    NotWritableError
        The page cannot be written there.
    """
    from provisioner.disk.last_run import read_last_report
    from provisioner.disk.locations import state_folder
    from provisioner.disk.os_errors import reason_of
    from provisioner.disk.root import write_output
    from provisioner.report.html.page import render_page

    document = read_last_report(state_folder())
    if document is None:
        raise UsageError("There is no run to report on yet.", hint="Run `klein-setup verify` first.")
    page = render_page(document, image=_image_of(document), made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    path = (output or _DEFAULT).expanduser().absolute()
    try:
        write_output(path, page.encode("utf-8"))
    except StorageError as error:
        raise NotWritableError(
            f"{path} cannot be written: {reason_of(error)}.", hint="Name another --output FILE.", path=str(path)
        ) from error
    say(f"The page is {path}; it needs nothing but a browser.")
    return Report(command="report", status="ok", exit_status=EXIT_OK, page=path)


def _image_of(document: Mapping[str, object]) -> bytes | None:
    """Return the image the document names, or None where it is gone."""
    found: object = document
    for key in ("details", "smoke_test", "picture", "path"):
        found = found.get(key) if isinstance(found, Mapping) else None
    try:
        return Path(found).read_bytes() if isinstance(found, str) else None
    except (OSError, ValueError):
        return None
