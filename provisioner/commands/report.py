"""The last run, or those of many machines, as one HTML page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from provisioner.core.errors import EXIT_OK, NotWritableError, StorageError, UsageError
from provisioner.report.outcome import Report
from provisioner.ui.console import utc

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
    from provisioner.report.html.page import render_page

    document = read_last_report(state_folder())
    if document is None:
        raise UsageError("There is no run to report on yet.", hint="Run `klein-setup verify` first.")
    ended_at = document.get("ended_at")
    page = render_page(
        document, image=_image_of(document), made_at=ended_at if isinstance(ended_at, str) else utc(time.time())
    )
    return _written(page, output, say)


def run_merged_report(files: tuple[Path, ...], output: Path | None, *, say: Callable[[str], None]) -> Report:
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
    return _written(render_merged_page(documents, made_at=utc(time.time())), output, say)


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


def _written(page: str, output: Path | None, say: Callable[[str], None]) -> Report:
    from provisioner.disk.os_errors import reason_of
    from provisioner.disk.root import write_output

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
