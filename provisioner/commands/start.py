"""``klein-setup start``: ComfyUI with its own Python, on this machine, until Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.server.launch import Launch, ServerAddress, listening_address
from provisioner.commands.choose_environment import environ_for, start_command
from provisioner.commands.combination import start_options
from provisioner.commands.comfyui_image import check_server, python_of, server_options
from provisioner.commands.image_options import log_path_of
from provisioner.commands.inspect_comfyui import ComfyUIInstall, check_comfyui, inspect_comfyui
from provisioner.commands.questions import Ask
from provisioner.commands.run import Run
from provisioner.commands.templates import Template, find_template
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import EXIT_OK, AnswerNeededError, ServerNotUsableError, UsageError
from provisioner.core.events import Notice, ServerReady
from provisioner.core.models import ComfyTarget
from provisioner.core.units import human_duration
from provisioner.report.outcome import Report, StartedServer, all_findings

if TYPE_CHECKING:
    from provisioner.comfyui.server.api import ServerFacts
    from provisioner.comfyui.server.server_process import ServerProcess

_FIRST_ANSWER_S = 900.0  # custom nodes are imported first, and some install packages
_TICK_S = 0.2  # between two looks at the log
_NO_PROGRAM = {  # by the kind of folder
    "base": "it is a base folder (models, custom_nodes, user) whose program is elsewhere, as ComfyUI Desktop keeps it",
    "models": "it is a models folder alone",
    "empty": "nothing is installed there yet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """What the command line asks for."""

    environment: Path  # the virtual environment of ours, if there is one
    port: int
    opens_browser: bool
    arguments: tuple[str, ...] = ()  # for ComfyUI


def run_start(run: Run, options: StartOptions, *, ask: Ask, say: Callable[[str], None]) -> Report:
    """Start ComfyUI, wait until it answers, show where, and run it until Ctrl-C; return the report of it.

    A ComfyUI that already answers there with these files is shown instead, and left running.

    Raises
    ------
    UsageError
        There is no ComfyUI to start, or no Python for it.
    ServerNotUsableError
        It cannot work, its port is taken, it did not come up, or it ended by itself with an error.
    KeyboardInterrupt
        Interrupted before it answered.
    """
    from provisioner.comfyui.server.server_process import find_listener

    address = listening_address(options.arguments, options.port)
    comfyui = _program(run)
    python, seen = python_of(run, comfyui, options.environment)
    if python is None:
        raise UsageError(
            f"No Python was found for {comfyui.folder}.",
            hint="Make an environment with `klein-setup install --only environment`, or name one with "
            "--environment DIR.",
        )
    refused = _check_files(run, ask)
    if refused is not None:
        return refused
    template = find_template(python, run.wanted)
    holder = find_listener(address, cancelled=run.session.cancelled.is_set)
    if holder is not None:
        return _show_running(run, options, address, holder, template, say)
    given = (*server_options(run, run.session.machine, seen), *options.arguments)
    avoiding = start_options(run, comfyui, options.environment, given)
    launch = Launch(python=python, tree=comfyui.folder, extra=(*avoiding, *given))
    return _run_until_ended(run, options, launch, address, template, say, environ_for(run.session, seen.receipt))


def _program(run: Run) -> ComfyUIInstall:
    """Return the ComfyUI of the target; raises where there is none, or one that cannot start."""
    if not isinstance(run.target, ComfyTarget):
        raise UsageError(
            f"The set {run.wanted.id} is for diffusers, which has no server to start.",
            hint="Name a ComfyUI folder with --comfyui DIR.",
        )
    comfyui = inspect_comfyui(run)
    if comfyui is None or comfyui.checkout.tree is None:
        kind = "other" if comfyui is None else comfyui.checkout.kind
        hint = (
            "Start it from ComfyUI Desktop, or name a ComfyUI folder with --comfyui DIR."
            if kind == "base"
            else "Install one with `klein-setup install`, or name a ComfyUI folder with --comfyui DIR."
        )
        raise UsageError(
            f"There is no ComfyUI to start in {run.target.given}: {_NO_PROGRAM.get(kind, 'it has no main.py')}.",
            hint=hint,
        )
    for finding in check_comfyui(comfyui):
        if finding.severity == "problem":
            raise ServerNotUsableError(finding.message, hint=finding.hint, cause=finding.code)
    if comfyui.checkout.kind == "portable" and sys.platform != "win32":
        raise UsageError(
            f"{comfyui.folder} is ComfyUI's portable build, whose Python runs on Windows only.",
            hint="Run klein-setup on Windows, or install ComfyUI here with `klein-setup install --comfyui DIR`.",
        )
    return comfyui


def _check_files(run: Run, ask: Ask) -> Report | None:
    """Look at the files as ``verify --quick`` does; return its report where ComfyUI is not to be started with them.

    Files that are damaged or missing are a question, and nobody to ask is a no.  A file that was never verified is only
    named: it may be right, and reading it takes as long as verify.
    """
    report = run_verify(run, is_quick=True)
    checks = report.plan.checks if report.plan is not None else ()
    found = [f"{each.destination.label}: {each.status}" for each in checks if each.status != "ok"]
    for each in all_findings(report):
        if each.code == "never-proven":
            run.session.events(Notice(message=each.message, severity="warning"))
        elif each.severity == "problem":
            found.append(each.message)
    if not found:
        return None
    said = f"{found[0]} (and {len(found) - 1} more)" if len(found) > 1 else found[0]
    said = said if said.endswith(".") else f"{said}."
    if run.options.assume_yes:
        run.session.events(Notice(message=f"{said} Starting anyway.", severity="warning"))
        return None
    try:
        is_wanted = ask(f"{said} Start ComfyUI anyway?")
    except AnswerNeededError:
        is_wanted = False
    return None if is_wanted else replace(report, command="start")


# --- one that runs already ---------------------------------------------------------------------


def _show_running(
    run: Run,
    options: StartOptions,
    address: ServerAddress,
    holder: ServerFacts | str,
    template: Template | None,
    say: Callable[[str], None],
) -> Report:
    from provisioner.comfyui.server.failures import port_taken_error

    if isinstance(holder, str):
        raise port_taken_error(address, holder)
    name = f"ComfyUI {holder.comfyui_version}" if holder.comfyui_version else "ComfyUI"
    beside = start_command(run, options.environment, "--port", str(address.port + 1))
    for finding in check_server(run, address.url):
        raise ServerNotUsableError(
            f"{name} already runs at {address.url}, but not with these files. {finding.message}",
            hint=f"Stop it, or start this one beside it with `{beside}`.",
            cause="port-taken",
            url=address.url,
        )
    say(f"{name} already runs at {address.url}; it was not started again, and goes on.")
    _show(run, options, address, template, say)
    return _report(run, address, template, log_path=None)


# --- one of ours -------------------------------------------------------------------------------


def _run_until_ended(
    run: Run,
    options: StartOptions,
    launch: Launch,
    address: ServerAddress,
    template: Template | None,
    say: Callable[[str], None],
    environ: Mapping[str, str],
) -> Report:
    from provisioner.comfyui.server.server_process import start_server

    run.session.stages.say(f"Starting ComfyUI from {launch.tree}.")
    with start_server(
        launch,
        log_path=log_path_of("comfyui"),
        cancelled=run.session.cancelled.is_set,
        timeout_s=_FIRST_ANSWER_S,
        environ=environ,
        pass_env=run.session.settings.pass_env,
        address=address,
    ) as server:
        try:
            version = server.facts.comfyui_version if server.facts is not None else None
            name = f"ComfyUI {version}" if version else "ComfyUI"
            say(f"{name} runs at {address.url} (started in {human_duration(server.start_s)}).")
            say(f"Its log is {server.log_path}; errors are shown here. Ctrl-C stops it.")
            run.session.events(ServerReady(url=address.url, log_path=server.log_path))
            _show(run, options, address, template, say)
            _follow(run, server)
        except KeyboardInterrupt:  # how it is meant to be ended
            say("Stopping ComfyUI.")
    death = server.death()
    if death is not None and server.returncode and not run.session.cancelled.is_set():
        raise death
    say("ComfyUI has ended.")
    return _report(run, address, template, log_path=server.log_path)


def _follow(run: Run, server: ServerProcess) -> None:
    """Show the errors of a server until it ends."""
    from provisioner.comfyui.server.log_lines import error_lines

    is_running = True
    while is_running:
        is_running = server.returncode is None  # asked first: what it wrote before its end is shown
        for line in error_lines(server.new_lines()):
            run.session.events(Notice(message=f"ComfyUI: {line}", severity="warning"))
        if is_running:
            time.sleep(_TICK_S)


# --- both --------------------------------------------------------------------------------------


def _show(
    run: Run, options: StartOptions, address: ServerAddress, template: Template | None, say: Callable[[str], None]
) -> None:
    """Name the template to open, and open the browser on it."""
    from provisioner.comfyui.server.browser import has_display, open_browser

    if template is not None:
        title = f"{template.title} ({template.name})" if template.title else template.name
        say(f"The workflow for this model is among its Templates: {title}.")
    if not options.opens_browser or not has_display(run.session.environ):
        return
    page = address.url if template is None else f"{address.url}{template.query}"
    if not open_browser(page, run.session.environ):
        run.session.events(
            Notice(message=f"No browser could be opened; open {address.url} yourself.", severity="warning")
        )


def _report(run: Run, address: ServerAddress, template: Template | None, *, log_path: Path | None) -> Report:
    server = StartedServer(
        url=address.url,
        was_running=log_path is None,
        template=None if template is None else template.name,
        log_path=log_path,
    )
    return replace(run.report("start", "ok", EXIT_OK), server=server)
