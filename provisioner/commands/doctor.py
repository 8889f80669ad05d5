"""``klein-setup doctor``: what a bug report needs, as one zip file without secrets.

Every part is text that was cleaned: the tokens of this run, the values of variables that are named like secrets, and
whatever looks like one are masked, and the home folder is written ``~``.  A part that cannot be made is left out, with
the reason; nothing that lies in a tree is started, and no model file is read whole.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from provisioner.commands.choose_environment import environment_folder
from provisioner.commands.detect import detected
from provisioner.commands.output_file import write_file
from provisioner.commands.run import Options, open_run
from provisioner.commands.session import Session
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import EXIT_OK, KleinError
from provisioner.core.models import ComfyTarget
from provisioner.core.redact import MASK, printable, redact
from provisioner.disk.last_run import last_report_time, read_last_report
from provisioner.disk.locations import state_folder
from provisioner.machine.child_environment import is_secret_name, secret_values
from provisioner.report.html.page import render_page
from provisioner.report.outcome import Bundle, BundledFile, LeftOut, Report
from provisioner.torch.choose import TorchOptions

MOST_OF_A_LOG = 128 * 1024
"""Bytes of the end of one log."""

MOST_LOGS = 10

MOST_OF_A_FILE = 2 * 1024 * 1024
"""Bytes of one file in the zip; the whole holds less than 10 MB."""

_DATE = (1980, 1, 1, 0, 0, 0)  # the zip says nothing about when; the documents do
_LOG_NAME = re.compile(r"[a-z][a-z-]{0,40}-\d{8}T\d{6}Z\.txt")

DocumentOf: TypeAlias = "Callable[[Report], Mapping[str, object]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """What the command line asks for."""

    environment: Path | None = None
    output: Path | None = None  # None: in the user's state folder
    config_error: KleinError | None = None  # why the user's own defaults do not count


def run_doctor(
    session: Session,
    options: Options,
    asked: DoctorOptions,
    *,
    known_secrets: Iterable[str],
    document_of: DocumentOf,
    say: Callable[[str], None],
) -> Report:
    """Write the zip file, and say where it is and what is in it.

    Parameters
    ----------
    session, options, asked
        What to look at; by default the last target.
    known_secrets : iterable of str
        Tokens and passwords to mask, beside the values of variables that are named like secrets.
    document_of : callable
        Makes the ``--json`` document of a report.
    say : callable
        Told one line at a time.

    Raises
    ------
    NotWritableError
        The file cannot be written there.
    """
    secrets = (*known_secrets, *secret_values(session.environ))
    bundle = _Contents(secrets)
    machine = detected(session, (), TorchOptions(), "comfyui")
    bundle.add(
        "machine.json",
        "this machine and the torch build for it; KLEIN_SETUP_MACHINE=machine.json replays it",
        lambda: _json(document_of(machine), secrets),
    )
    bundle.add("last-report.json", "the last run", lambda: _json(_last_report(), secrets))
    bundle.add("last-report.html", "the last run as a page, without its image", lambda: _page(_last_report(), secrets))
    bundle.add(
        "verify-quick.json",
        "what is there of the target, and the steps it needs; receipts were trusted",
        lambda: _json(document_of(_quick(session, options)), secrets),
    )
    bundle.add(
        "packages.txt",
        "the packages of the environment, read from its files",
        lambda: clean_text(_packages(session, options, asked.environment), secrets),
    )
    bundle.add(
        "batch-files.txt",
        "how the batch files of the portable build start ComfyUI",
        lambda: clean_text(_batch_files(session, options), secrets),
    )
    for log in _logs(state_folder() / "logs"):
        bundle.add(f"logs/{log.name}", "the end of a log", partial(_end_of, log, secrets))
    if asked.config_error is not None:
        bundle.leave_out("klein-setup.toml", str(asked.config_error))
    bundle.add("contents.txt", "this list", bundle.listing)
    data = bundle.zipped()
    path = write_file(data, asked.output, name="klein-setup-doctor.zip")
    written = Bundle(path=path, size=len(data), files=bundle.files, left_out=tuple(bundle.left_out))
    _tell(written, say)
    return replace(machine, command="doctor", status="ok", exit_status=EXIT_OK, errors=(), bundle=written)


# --- cleaning --------------------------------------------------------------------------------------


def clean_text(text: str, secrets: Iterable[str]) -> str:
    """Return a text without secrets and with ``~`` for the home folder; a line at a time, since `redact` shortens."""
    hidden = tuple(secrets)
    whole = "\n".join(redact(printable(line), hidden) for line in text.split("\n"))
    home = os.path.expanduser("~")  # noqa: PTH111 - it never fails
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", whole) if len(home) > 1 else whole


def clean_document(document: Mapping[str, object], secrets: Iterable[str]) -> dict[str, object]:
    """Return a document with every key and value cleaned, and what stands under the name of a secret masked."""
    hidden = tuple(secrets)

    def clean(value: object, key: str) -> object:
        match value:
            case str():
                return MASK if is_secret_name(key) else clean_text(value, hidden)
            case dict():
                return {clean_text(name, hidden): clean(each, name) for name, each in value.items()}
            case list():
                return [clean(each, key) for each in value]
            case _:
                return value

    return {clean_text(name, hidden): clean(each, name) for name, each in document.items()}


class _Contents:
    """The cleaned texts by their names."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._texts: dict[str, tuple[str, bytes]] = {}
        self.left_out: list[LeftOut] = []

    def add(self, name: str, what: str, make: Callable[[], str]) -> None:
        """Add a clean text unless it is empty; one that is too large or cannot be made is left out, with the reason."""
        try:
            data = make().encode("utf-8", "replace")
        except Exception as error:  # a defect in one part is what the others are for
            said = str(error) if isinstance(error, (KleinError, ValueError)) else f"{type(error).__name__}: {error}"
            self.leave_out(name, said)
            return
        if len(data) > MOST_OF_A_FILE:
            self.leave_out(name, f"it has {len(data):,} bytes, too many for a report")
        elif data:
            self._texts[name] = (what, data)

    def leave_out(self, name: str, reason: str) -> None:
        """Say why something is not in the file."""
        self.left_out.append(LeftOut(name=name, reason=clean_text(reason, self._secrets)))

    def listing(self) -> str:
        """Return what is in the file, and what is not."""
        lines = [f"{name}: {what} ({len(data):,} bytes)" for name, (what, data) in sorted(self._texts.items())]
        lines += [f"left out: {each.name}: {each.reason}" for each in self.left_out]
        return "\n".join([*lines, ""])

    @property
    def files(self) -> tuple[BundledFile, ...]:
        """What is in the file."""
        return tuple(
            BundledFile(name=name, what=what, size=len(data)) for name, (what, data) in sorted(self._texts.items())
        )

    def zipped(self) -> bytes:
        """Return the zip file."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (_, data) in sorted(self._texts.items()):
                archive.writestr(zipfile.ZipInfo(name, _DATE), data, zipfile.ZIP_DEFLATED)
        return buffer.getvalue()


# --- the parts -------------------------------------------------------------------------------------


def _json(document: Mapping[str, object], secrets: Iterable[str]) -> str:
    """Return a cleaned document as JSON for people; nothing where there is none."""
    return json.dumps(clean_document(document, secrets), indent=1) + "\n" if document else ""


def _last_report() -> dict[str, object]:
    return read_last_report(state_folder()) or {}


def _page(document: Mapping[str, object], secrets: Iterable[str]) -> str:
    ended_at = document.get("ended_at")
    made_at = ended_at if isinstance(ended_at, str) else last_report_time(state_folder())
    return render_page(clean_document(document, secrets), made_at=made_at) if document else ""


def _quick(session: Session, options: Options) -> Report:
    return run_verify(open_run(session, options, with_machine=False), is_quick=True)


def _packages(session: Session, options: Options, environment: Path | None) -> str:
    """Return what is installed, as ``pip freeze`` writes it; nothing where there is no environment."""
    run = open_run(session, options, with_machine=False)
    seen = session.environments.observe(environment_folder(run, environment))
    if not seen.is_there:
        return ""
    python = f"Python {seen.python.version}" if seen.python is not None else seen.broken or "no Python"
    names = sorted(f"{each.name}=={each.version}" for each in seen.distributions)
    return "\n".join([f"# {seen.where}", f"# {python}", *names, ""])


def _batch_files(session: Session, options: Options) -> str:
    """Return the flags in the batch files of a portable build, a line each; nothing for another target."""
    run = open_run(session, options, with_machine=False)
    checkout = session.checkouts.describe(run.target.given) if isinstance(run.target, ComfyTarget) else None
    if checkout is None or checkout.kind != "portable" or checkout.tree is None:
        return ""
    from provisioner.comfyui.installed_programs import batch_files_of

    return "".join(f"{each.name}: {' '.join(each.flags)}\n" for each in batch_files_of(checkout.tree.parent))


def _logs(folder: Path) -> Iterable[Path]:
    """Return our newest logs: regular files with our names, no links, whatever else was put there."""
    try:
        names = [
            each.name
            for each in os.scandir(folder)
            if _LOG_NAME.fullmatch(each.name) and each.is_file(follow_symlinks=False)
        ]
    except OSError:
        return ()
    newest = sorted(names, key=lambda name: name.rpartition("-")[2], reverse=True)[:MOST_LOGS]
    return [folder / name for name in newest]


def _end_of(path: Path, secrets: Iterable[str]) -> str:
    """Return the cleaned end of a log from the beginning of a line on; half a secret would not be found."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - MOST_OF_A_LOG))
        data = stream.read(MOST_OF_A_LOG)
    if b"\0" in data:
        message = "it is not text"
        raise ValueError(message)
    whole_lines = data.partition(b"\n")[2] if size > MOST_OF_A_LOG else data
    return clean_text(whole_lines.decode("utf-8", "replace"), secrets)


def _tell(bundle: Bundle, say: Callable[[str], None]) -> None:
    from provisioner.core.units import human_bytes

    say(f"{bundle.path} ({human_bytes(bundle.size)}) holds:")
    for each in bundle.files:
        say(f"  {each.name}: {each.what}")
    for left in bundle.left_out:
        say(f"  left out: {left.name}: {left.reason}")
    say("Secrets were masked. Look through it once more before you attach it to an issue: it names folders of yours.")
