"""All output and questions of one run: one ``Ui`` per run.

Results go to stdout; progress, warnings, questions and errors go to stderr.  With ``--json`` stdout
holds exactly one document, with ``--json=events`` one object per line and the document last.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO

from provisioner.core.errors import AnswerNeededError
from provisioner.core.events import Event
from provisioner.core.models import BackupEntry, Config, Finding, Machine, Manifest
from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.core.redact import printable, redact
from provisioner.plan.steps import Plan, PlanHosts
from provisioner.report.outcome import Report, RunFacts, all_errors
from provisioner.ui.problems import defect_blocks, error_blocks
from provisioner.ui.progress import Progress
from provisioner.ui.stream import Output
from provisioner.ui.tables import plan_blocks, report_blocks
from provisioner.ui.text import BLANK, Block, Line, Para, laid_out, span

if TYPE_CHECKING:
    from provisioner.report.changes import Change
    from provisioner.report.fleet_comparison import Fleet
    from provisioner.report.json_document import ReportDocument
    from provisioner.smoke_test.diagnosis import Diagnosis
    from provisioner.smoke_test.results import SmokeTest
    from provisioner.snapshot.setup_snapshot import OnShelf, SetupSnapshot
    from provisioner.torch.builds import TorchChoice

Mode = Literal["human", "json", "events"]

ISSUES_URL = "https://github.com/klein-setup/klein-setup/issues"
"""Where to report a bug when the program runs from a checkout, which has no package metadata."""


class Ui:
    """The user interface of one run.

    Parameters
    ----------
    stdout, stderr : text streams
        Where results, and where everything else, goes.
    stdin : text stream, optional
        Where answers come from; the process's own by default.
    mode : {"human", "json", "events"}
        What stdout is for.
    quiet, verbose : bool
        Only errors and the result; notices and codes too.
    color : bool, optional
        None decides by ``NO_COLOR`` and the terminal.
    interactive : bool
        False: nothing is ever asked (``--no-input``).
    program : Program, optional
        How the commands that are shown are written; as ``klein-setup`` by default.
    secrets : iterable of str
        Values masked wherever they stand.
    environ, now : optional
        The environment and a monotonic clock in seconds; for tests.
    host : str, optional
        Name of this computer; by default the system's.
    """

    def __init__(
        self,
        stdout: TextIO,
        stderr: TextIO,
        *,
        stdin: TextIO | None = None,
        mode: Mode = "human",
        quiet: bool = False,
        verbose: bool = False,
        color: bool | None = None,
        interactive: bool = True,
        program: Program = KLEIN_SETUP,
        secrets: Iterable[str] = (),
        environ: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
        host: str | None = None,
    ) -> None:
        environment = os.environ if environ is None else environ
        self._out = Output(stdout, color=color, environ=environment)
        self._err = Output(stderr, color=color, environ=environment)
        self._stdin = sys.stdin if stdin is None else stdin
        self._mode = mode
        self._is_quiet = quiet
        self._is_verbose = verbose
        self._is_interactive = interactive
        self.program = program
        self._secrets = tuple(secrets)
        self._lock = threading.Lock()  # a line of events must not be cut by another
        self._errors_shown: list[BaseException] = []
        self._findings_said: tuple[Finding, ...] = ()
        self._host = self._clean(host_name(environment) if host is None else host)
        self._now = now
        self._began = (now(), time.time())
        self._progress = Progress(
            self._err, now=now, clean=self._clean, is_verbose=verbose, is_quiet=quiet or mode == "events"
        )

    def __enter__(self) -> Ui:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bars from the terminal and show its cursor again; anything may be called afterwards."""
        self._progress.close()

    @property
    def lost_output(self) -> OSError | None:
        """Why the output could not be written to its end: the disk is full; None for a reader that has ended."""
        return self._out.lost

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values that are masked."""
        return self._secrets

    def keep_secret(self, value: str) -> None:
        """Mask a value from now on, whoever learned it while the command ran."""
        self._secrets = (*self._secrets, value)

    def _clean(self, text: str) -> str:
        """Return text without secrets and without characters that control a terminal."""
        return redact(printable(self.program.as_started(text)), self._secrets)

    # --- while it works ---

    def listener(self, event: Event) -> None:
        """Show, write or ignore one event of the engine, whichever thread it comes from."""
        if self._mode == "events":
            with self._lock:
                from provisioner.report.json_document import event_line  # only a run that speaks JSON pays for it

                line = event_line(event, time=utc(time.time()), host=self._host, secrets=self._secrets)
                self._out.write(f"{line}\n")
                self._out.flush()
        else:
            self._progress(event)

    def notice(self, message: str, *, severity: Literal["info", "warning"] = "info") -> None:
        """Write one line on stderr: warnings always, information with ``--verbose``."""
        self._progress.notice(message, severity=severity)

    def ask(self, question: str, *, default: bool = False) -> bool:
        """Return the answer to a yes-or-no question; an empty line is `default`, the end of input is no.

        Raises
        ------
        AnswerNeededError
            Nobody can be asked: no terminal, or ``--no-input``.
        """
        if not self.is_attended:
            raise AnswerNeededError(
                f"A question needs an answer, but this is no terminal or --no-input was given: {question}",
                hint="Pass --yes to go ahead, or run this in a terminal.",
                question=question,
            )
        return self._answer(question, default=default, takes_folder=False) is True

    def ask_password(self, question: str) -> str | None:
        """Return what a person types without its being shown; None where nobody can be asked, or the input ends."""
        if not self.is_attended:
            return None
        from getpass import getpass

        self.close()
        try:
            return getpass(question)
        except EOFError:
            return None

    def ask_to_apply(self, question: str, *, default: bool, takes_folder: bool) -> bool | Path:
        """Return the answer to a yes-or-no question, or the folder that was named instead."""
        return self._answer(question, default=default, takes_folder=takes_folder)

    @property
    def is_attended(self) -> bool:
        """Whether somebody is there to answer: a terminal, and no ``--no-input``."""
        return self._is_interactive and self._is_terminal_in() and self._err.isatty()

    def _answer(self, question: str, *, default: bool, takes_folder: bool) -> bool | Path:
        """Ask until the answer is one; an empty line is the default, the end of input is no."""
        self.close()
        choices = f"{'Y/n' if default else 'y/N'}{', or another folder' if takes_folder else ''}"
        while True:
            *before, last = self._laid_out(self._err, [Para(line=span(f"{question} [{choices}]"))])
            self._err.lines(before)
            self._err.write("".join(each.text for each in last) + " ")
            self._err.flush()
            answer = self._stdin.readline()
            if not answer:
                self._err.lines([()])  # the end of input left the cursor behind the question
                return False
            word = answer.strip()
            if word.lower() in {"", "y", "yes", "n", "no"}:
                return default if not word else word.lower().startswith("y")
            if takes_folder and (word.startswith(("~", ".")) or "/" in word or "\\" in word):
                return Path(word).expanduser()
            path = ", or a folder with its path: ./ComfyUI" if takes_folder else ""
            self._err.lines([span(f"Please answer y or n{path}.")])

    def _is_terminal_in(self) -> bool:
        try:
            return self._stdin.isatty()
        except (AttributeError, ValueError):
            return False

    # --- results ---

    def say(self, text: str) -> None:
        """Write a line of the result on stdout, for people only; empty text is an empty line."""
        self.close()
        if self._mode == "human" and not self._is_quiet:
            self._write(self._out, [Para(line=span(text), hang=4 if text.startswith(" ") else 0)])

    def show_machine(self, machine: Machine, choice: TorchChoice | None = None) -> None:
        """Show the machine, and the torch build for it."""
        from provisioner.ui.facts import machine_blocks

        blocks = machine_blocks(machine)
        if choice is not None:
            from provisioner.ui.torch_text import torch_blocks

            blocks = [*blocks, BLANK, *torch_blocks(choice)]
        self._result(blocks)

    def show_config(self, config: Config) -> None:
        """Show the user's own defaults for options, and where they are set."""
        from provisioner.ui.facts import config_blocks

        self._result(config_blocks(config))

    def show_plan(self, plan: Plan) -> None:
        """Show what will be done, why, and the exact bytes."""
        self._progress.expect(plan.files)
        self._on_the_way(plan_blocks(plan), plan.findings)

    def show_hosts(self, hosts: PlanHosts) -> None:
        """Show every host that a plan contacts."""
        from provisioner.ui.host_list import hosts_blocks

        self._result(hosts_blocks(hosts))

    def show_manifests(self, manifests: Sequence[Manifest]) -> None:
        """List manifests with their sets."""
        from provisioner.ui.facts import manifests_blocks

        self._result(manifests_blocks(manifests))

    def show_manifest(self, manifest: Manifest, *, has_files: bool = True, argument: str | None = None) -> None:
        """Show one manifest with every file and the source of each digest, or in one screen.

        `argument` is what the user gave for it, by default its id.
        """
        from provisioner.ui.facts import manifest_blocks, manifest_summary_blocks

        if has_files:
            self._result(manifest_blocks(manifest))
        else:
            whole = self.program.command("manifest show", [argument or manifest.id, "--files"])
            self._result(manifest_summary_blocks(manifest, whole))

    def show_smoke(self, smoke: SmokeTest) -> None:
        """Show the result of a smoke test."""
        from provisioner.ui.smoke_text import smoke_blocks

        self._on_the_way(smoke_blocks(smoke), smoke.findings)

    def show_diagnosis(self, diagnosis: Diagnosis) -> None:
        """Show what a diagnosis found, or has found so far."""
        from provisioner.ui.diagnosis_text import diagnosis_blocks

        self._result(diagnosis_blocks(diagnosis))

    def show_backups(self, entries: Sequence[BackupEntry]) -> None:
        """Show the backups."""
        from provisioner.ui.backup_list import backup_blocks

        self._result(backup_blocks(entries))

    def show_snapshots(self, shelf: Sequence[OnShelf]) -> None:
        """Show the snapshots."""
        from provisioner.ui.snapshot_list import snapshot_list_blocks

        self._result(snapshot_list_blocks(shelf))

    def show_snapshot(self, snapshot: SetupSnapshot, image: Path | None) -> None:
        """Show one snapshot."""
        from provisioner.ui.snapshot_list import snapshot_blocks

        self._result(snapshot_blocks(snapshot, image))

    def show_fleet(self, fleet: Fleet) -> None:
        """Show a fleet."""
        from provisioner.ui.fleet_table import fleet_blocks

        self._result(fleet_blocks(fleet, is_quiet=self._is_quiet))

    def document_of(self, report: Report) -> ReportDocument:
        """Return the document of ``--json``, with every secret of this run masked; the run ends now."""
        from provisioner.report.json_document import document

        began, started_at = self._began
        seconds = self._now() - began
        run = RunFacts(
            host=self._host,
            started_at=utc(started_at),
            ended_at=utc(started_at + seconds),
            seconds=round(seconds, 3),
        )
        return document(report, run=run, secrets=self._secrets, program=self.program)

    def show_changes(
        self, changes: Sequence[Change], checked: tuple[str, ...], findings: Sequence[Finding], mend: str | None
    ) -> None:
        """Show what changed since the last full check, and what is wrong now."""
        from provisioner.ui.change_list import changes_blocks

        self._on_the_way(changes_blocks(changes, checked, findings, mend), findings)

    def write_document(self, document: object) -> None:
        """Write a JSON document of its own as the result, for people to keep."""
        if self._mode == "human":
            self._out.write(_indented(document))

    def write_text(self, text: str) -> None:
        """Write a text of ours as the result, as it is."""
        if self._mode == "human":
            self._out.write(text)

    def show_report(self, report: Report) -> None:
        """Show the result of the run, and its errors on stderr: the last call of every run, failed ones too."""
        self.close()
        if self._mode == "human":
            blocks = report_blocks(report, is_quiet=self._is_quiet, program=self.program, said=self._findings_said)
            if blocks:
                self._write(self._out, blocks)
            self._show_card(report)
        for error in all_errors(report):
            self.show_error(error)
        if self._mode == "json":
            self._out.write(_indented(self.document_of(report)))
        elif self._mode == "events":
            from provisioner.report.json_document import report_line

            self._out.write(report_line(self.document_of(report)) + "\n")
        self._out.flush()

    def _show_card(self, report: Report) -> None:
        """Close a run that ended well with its image and how to go on."""
        smoke = report.smoke_test
        if smoke is None or report.status != "ok" or self._is_quiet or report.command == "verify":
            return
        from provisioner.ui.closing_card import card_blocks, draw_image, rows_of

        words = self._laid_out(self._out, card_blocks(report, smoke, self.program))
        self._write(self._out, [BLANK])
        can_show = self._out.terminal == "full" and self._out.is_coloured and self._out.is_unicode
        if smoke.shown_path is not None and can_show and self._is_terminal_in():
            draw_image(smoke.shown_path, self._out, rows_of(words, self._out.size[0]))
        self._out.lines(words)

    def _result(self, blocks: Sequence[Block]) -> None:
        """Write the result of the command."""
        self.close()
        if self._mode == "human":
            self._write(self._out, [*blocks, BLANK])

    def _on_the_way(self, blocks: Sequence[Block], findings: Sequence[Finding]) -> None:
        """Write what comes before the result, which does not say these findings again."""
        if not self._is_quiet:
            self._result(blocks)
            self._findings_said += tuple(findings)

    # --- errors ---

    def show_error(self, error: BaseException) -> None:
        """Write on stderr what happened and the hint; an error that was shown is not shown again."""
        if any(error is shown for shown in self._errors_shown):
            return
        self._errors_shown.append(error)
        self.close()
        self._write(self._err, error_blocks(error, is_verbose=self._is_verbose))

    def show_defect(self, error: BaseException, log_path: Path | None) -> None:
        """Write on stderr that there is an internal error, where the log is and where to send it."""
        if any(error is shown for shown in self._errors_shown):
            return
        self._errors_shown.append(error)
        self.close()
        if self._is_verbose:
            import traceback

            self._write(self._err, [Para(line=span("".join(traceback.format_exception(error)).rstrip(), "dim"))])
        where = str(log_path) if log_path is not None else None
        self._write(self._err, defect_blocks(error, log_path=where, issues_url=issues_url()))

    def _write(self, output: Output, blocks: Iterable[Block]) -> None:
        output.lines(self._laid_out(output, blocks))

    def _laid_out(self, output: Output, blocks: Iterable[Block]) -> list[Line]:
        return laid_out(blocks, width=output.width, clean=self._clean, ellipsis=output.ellipsis, home=output.home)


def host_name(environ: Mapping[str, str]) -> str:
    """Return the name of this computer; empty where the system has none.

    ``socket`` and ``platform`` ask the same and take milliseconds to import.
    """
    if sys.platform == "win32":
        return environ.get("COMPUTERNAME", "")
    return os.uname().nodename


def utc(seconds: float) -> str:
    """Return seconds since 1970 as UTC, ISO 8601, to the millisecond.

    >>> utc(1795700806.1234)
    '2026-11-26T13:46:46.123Z'
    """
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{thousandths:03}Z"


def _indented(value: object) -> str:
    """Return a JSON value for people to read and programs to parse."""
    import json

    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def issues_url() -> str:
    """Return where to report a bug: what the installed package's metadata says, in a checkout `ISSUES_URL`."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        lines = metadata("klein-setup").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ISSUES_URL
    return next((line.removeprefix("Issues, ") for line in lines if line.startswith("Issues, ")), ISSUES_URL)
