"""The command line: reads the arguments, wires a run together, owns the exit status.

``klein-setup --help`` must answer at once, so everything but argparse is imported when a command runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from provisioner import __version__
from provisioner.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, KleinError, UsageError

if TYPE_CHECKING:
    from types import FrameType
    from typing import TypeAlias

    from provisioner.commands import Ask, Job, Wish
    from provisioner.environment_job import EnvironmentWish
    from provisioner.models import Plan, Report
    from provisioner.torch_wish import TorchWish
    from provisioner.ui import Mode, Ui
    from provisioner.wiring import Workbench

    Show: TypeAlias = "Callable[[Plan], None]"
    Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"
    _Handler: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"

_COMMANDS = ("install", "plan", "detect", "verify", "repair", "rehearse", "manifest")
_EPILOG = """\
exit status: 0 as the manifest asks; 1 findings; 2 usage or manifest; 3 machine; 4 disk; 5 network; 6 access;
7 wrong bytes; 8 a command failed; 9 no picture, or the rehearsal found a claim that does not hold;
10 locked by another run; 70 a defect of klein-setup; 130 interrupted
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM: the run ends as after Ctrl-C, with another status."""


# --- the parser ----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors of ours, so that ``--json`` holds for them too."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint=f"{self.prog} --help shows what there is.")


def build_parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    parser = _Parser(
        prog="klein-setup",
        description="Takes a machine from nothing to proven FLUX.2 [klein] files, and keeps them proven.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"klein-setup {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    add_install_parser(subparsers)
    add_plan_parser(subparsers)
    add_detect_parser(subparsers)
    add_verify_parser(subparsers)
    add_repair_parser(subparsers)
    add_rehearse_parser(subparsers)
    add_manifest_parser(subparsers)
    return parser


def _add(subparsers: Subparsers, name: str, text: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
    _add_output_options(parser)
    return parser


def add_install_parser(subparsers: Subparsers) -> None:
    """Add ``install``, which is also what ``klein-setup`` alone does."""
    parser = _add(subparsers, "install", "plan, ask, fetch what is missing, prove every file (the default command)")
    _add_wish_options(parser)
    _add_network_options(parser)
    _add_change_options(parser)
    _add_environment_options(parser)
    parser.set_defaults(run=_install)


def add_plan_parser(subparsers: Subparsers) -> None:
    """Add ``plan``."""
    parser = _add(subparsers, "plan", "the same, nothing applied")
    _add_wish_options(parser)
    _add_network_options(parser)
    _add_environment_options(parser)
    parser.add_argument("--only", default="files", metavar="PARTS", help="files (default), environment, or both")
    parser.set_defaults(run=_plan)


def add_detect_parser(subparsers: Subparsers) -> None:
    """Add ``detect``."""
    parser = _add(subparsers, "detect", "the machine, how each fact was learnt, and the torch build that suits it")
    group = _add_torch_options(parser)
    group.add_argument("--app", choices=("comfyui", "diffusers"), default="comfyui", help="who will use it")
    group.add_argument("--torch-python", metavar="VERSION", help="Python it goes into, 3.12 (default: this one)")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="folders whose free space is of interest")
    parser.set_defaults(run=_detect)


def _add_torch_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("torch")
    group.add_argument(
        "--torch", default="auto", metavar="TAG", help="auto (default), a build such as cu130 or cpu, or none"
    )
    group.add_argument("--torch-index", metavar="URL", help="base address of a mirror of the wheel index")
    group.add_argument("--force", action="store_true", help="take --torch TAG even where it cannot work")
    return group


def _add_environment_options(parser: argparse.ArgumentParser) -> None:
    group = _add_torch_options(parser)
    group.add_argument("--cpu", action="store_true", help="accept a machine without a GPU for torch (slow)")
    group.add_argument(
        "--environment", type=Path, metavar="DIR", help="virtual environment (default: .venv beside ComfyUI's models)"
    )
    group.add_argument("--python", type=Path, metavar="FILE", help="Python to make it from (default: one that fits)")
    group.add_argument("--uv", action="store_true", help="install with uv instead of pip")


def add_verify_parser(subparsers: Subparsers) -> None:
    """Add ``verify``."""
    parser = _add(subparsers, "verify", "read every byte and say what does not hold; changes nothing, needs no network")
    _add_wish_options(parser)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="believe receipts instead of reading files; headers are still looked at",
    )
    parser.add_argument(
        "--environment", type=Path, metavar="DIR", help="virtual environment (default: .venv beside ComfyUI's models)"
    )
    parser.set_defaults(run=_verify)


def add_repair_parser(subparsers: Subparsers) -> None:
    """Add ``repair``."""
    parser = _add(subparsers, "repair", "verify, then put right: what is wrong is set aside, never deleted")
    _add_wish_options(parser)
    _add_network_options(parser)
    _add_change_options(parser)
    _add_environment_options(parser)
    parser.set_defaults(run=_repair)


def add_rehearse_parser(subparsers: Subparsers) -> None:
    """Add ``rehearse``."""
    parser = _add(subparsers, "rehearse", "the whole job with small files against an embedded hub: no GPU, no account")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folder and say where it is")
    parser.set_defaults(run=_rehearse)


def add_manifest_parser(subparsers: Subparsers) -> None:
    """Add ``manifest list | show | check``."""
    parser = subparsers.add_parser("manifest", help="list, show and check manifests", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _add(actions, "list", "the manifests that come with klein-setup")
    listing.set_defaults(run=_manifest_list)
    show = _add(actions, "show", "one manifest: its sets, its files, where each digest was read")
    show.add_argument("manifest", nargs="?", default="flux2-klein-4b", metavar="ID|FILE", help="which one")
    show.set_defaults(run=_manifest_show)
    check = _add(actions, "check", "every complaint about manifest files, each with its line")
    check.add_argument("manifests", nargs="*", metavar="ID|FILE", help="which ones; all that are shipped by default")
    check.set_defaults(run=_manifest_check)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        nargs="?",
        const="document",
        choices=("document", "events"),
        metavar="events",
        help="one JSON document on stdout; with =events every event as a line, the document last",
    )
    group.add_argument("--quiet", action="store_true", help="only errors and the result")
    group.add_argument("--verbose", action="store_true", help="also every notice, and the codes of errors")
    group.add_argument("--no-color", action="store_true", help="no colours (NO_COLOR does the same)")


def _add_wish_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what and where")
    group.add_argument("--manifest", default="flux2-klein-4b", metavar="ID|FILE", help="default: flux2-klein-4b")
    group.add_argument(
        "--set", dest="set_id", metavar="ID", help="which files of it, or auto (default: the manifest's)"
    )
    group.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI tree, its models folder, or a new folder")
    group.add_argument(
        "--hf-cache", nargs="?", type=Path, const=Path(), metavar="DIR", help="an HF cache (default: the user's own)"
    )
    group.add_argument(
        "--extra-model-paths",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a further extra_model_paths.yaml, as ComfyUI's --extra-model-paths-config names it",
    )
    group.add_argument(
        "--look-in", action="append", type=Path, default=[], metavar="DIR", help="a folder that may hold the same bytes"
    )
    group.add_argument(
        "--follow-links", action="store_true", help="accept folder links that lead out of the models tree"
    )


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--endpoint", metavar="URL", help="Hub address (default: HF_ENDPOINT, else the Hub)")
    group.add_argument("--offline", action="store_true", help="no network: what is missing is an error that lists it")


def _add_change_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument(
        "--only", default="files", metavar="PARTS", help="parts of the plan: files (default), environment, or both"
    )
    group.add_argument("--connections", type=_connections, default=8, metavar="N", help="most connections (default: 8)")
    group.add_argument("--limit-rate", type=_rate, metavar="RATE", help="bytes per second for everything: 10M, 500k")
    group.add_argument(
        "--stall-timeout",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="open a connection anew that delivered less than 64 KiB/s for so long (default: 20)",
    )
    group.add_argument("--yes", action="store_true", help="answer every question with yes")
    group.add_argument("--no-input", action="store_true", help="ask nothing; what needs an answer is an error")
    group.add_argument("--no-wait", action="store_true", help="give up if another run has this target")


def _connections(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 32:
        message = f"{text!r} is not a number of connections from 1 to 32"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _rate(text: str) -> int:
    from provisioner.transfer import parse_rate

    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 3600:
        message = f"{text!r} is not a time from 0.1 to 3600 seconds"
        raise argparse.ArgumentTypeError(message)
    return seconds


# --- the commands --------------------------------------------------------------------------------------


def _wish(arguments: argparse.Namespace) -> Wish:
    from provisioner.commands import Wish

    return Wish(
        manifest=arguments.manifest,
        set_id=arguments.set_id,
        comfyui=arguments.comfyui,
        hf_cache=arguments.hf_cache,
        extra_model_paths=tuple(arguments.extra_model_paths),
        assume_yes=getattr(arguments, "yes", False),
    )


def _bench(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Workbench:
    from provisioner.wiring import Settings, Workbench

    settings = Settings(
        endpoint=getattr(arguments, "endpoint", None),
        is_offline=getattr(arguments, "offline", False),
        max_connections=getattr(arguments, "connections", 8),
        limit_bytes_s=getattr(arguments, "limit_rate", None),
        stall_timeout_s=getattr(arguments, "stall_timeout", 20.0),
        look_in=tuple(folder.expanduser() for folder in getattr(arguments, "look_in", ())),
        follow_links=getattr(arguments, "follow_links", False),
        wait_for_lock=not getattr(arguments, "no_wait", False),
    )
    bench = Workbench(settings=settings, events=ui.listener, cancelled=cancelled)
    for secret in bench.secrets:
        ui.keep_secret(secret)
    return bench


def _install(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner import commands

    return _bring_about(arguments, ui, cancelled, commands.run_install)


def _repair(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner import commands

    return _bring_about(arguments, ui, cancelled, commands.run_repair)


def _bring_about(
    arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event, run_files: Callable[[Job, Ask, Show], Report]
) -> Report:
    """Provide the files, then the environment, as far as they were asked for."""
    from provisioner import commands
    from provisioner.environment_job import run_environment

    parts = _parts(arguments.only)
    job = commands.open_job(_bench(arguments, ui, cancelled), _wish(arguments))
    report = run_files(job, ui.ask, ui.show_plan) if "files" in parts else None
    if "environment" not in parts or (report is not None and report.status == "failed"):
        return report or job.report(arguments.command, "ok", 0)
    return run_environment(job, arguments.command, report, _environment_wish(arguments), ask=ui.ask, say=ui.say)


def _parts(text: str) -> frozenset[str]:
    parts = frozenset(part.strip() for part in text.split(","))
    unknown = sorted(parts - {"files", "environment"})
    if unknown:
        raise UsageError(
            f"--only knows no part {', '.join(map(repr, unknown))}.", hint="There are two today: files, environment."
        )
    return parts


def _plan(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner import commands
    from provisioner.environment_job import show_environment

    parts = _parts(arguments.only)
    job = commands.open_job(_bench(arguments, ui, cancelled), _wish(arguments))
    report = commands.run_plan(job) if "files" in parts else job.report("plan", "planned", 0)
    if report.plan is not None:
        ui.show_plan(report.plan)
    return show_environment(job, report, _environment_wish(arguments), ui.say) if "environment" in parts else report


def _verify(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner import commands

    job = commands.open_job(_bench(arguments, ui, cancelled), _wish(arguments), with_machine=arguments.set_id == "auto")
    report = commands.run_verify(job, is_quick=arguments.quick)
    if arguments.quick:
        return report
    from provisioner.environment_job import verify_environment

    return verify_environment(job, report, arguments.environment)


def _detect(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner import commands

    bench, wish = _bench(arguments, ui, cancelled), _torch_wish(arguments)
    folders = tuple(arguments.folders) or (Path.cwd(),)
    return commands.run_detect(bench, folders, wish, arguments.app, ui.show_machine)


def _torch_wish(arguments: argparse.Namespace) -> TorchWish:
    from provisioner.torch_wish import TorchWish

    return TorchWish(
        tag=arguments.torch,
        python_version=getattr(arguments, "torch_python", None),
        index_base=arguments.torch_index,
        has_force=arguments.force,
    )


def _environment_wish(arguments: argparse.Namespace) -> EnvironmentWish:
    from provisioner.environment_job import EnvironmentWish

    return EnvironmentWish(
        where=arguments.environment,
        python=getattr(arguments, "python", None),
        has_uv=getattr(arguments, "uv", False),
        accepts_cpu=arguments.cpu,
        torch=_torch_wish(arguments),
    )


def _rehearse(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> Report:
    from provisioner.rehearsal.story import rehearse

    return rehearse(events=ui.listener, say=ui.say, cancelled=cancelled, keep=arguments.keep)


def _manifest_list(_: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner import commands

    manifests = commands.shipped()
    ui.show_manifests(manifests)
    return commands.about_manifests("manifest list", manifests)


def _manifest_show(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner import commands

    manifest = commands.load_manifest(arguments.manifest)
    ui.show_manifest(manifest)
    return commands.about_manifests("manifest show", (manifest,))


def _manifest_check(arguments: argparse.Namespace, ui: Ui, _cancelled: threading.Event) -> Report:
    from provisioner import commands

    good, bad = commands.check_manifests(tuple(arguments.manifests))
    for manifest in good:
        ui.say(f"{manifest.id}: no complaint ({len(manifest.artifacts)} artifacts, {len(manifest.sets)} sets)")
    return commands.about_manifests("manifest check", good, bad)


# --- the run -------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status (README, "Exit statuses")."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(_completed(given))
    except UsageError as error:
        return _show_error_before_start(given, error)
    cancelled = threading.Event()
    previous = _listen_to_signals(cancelled)
    from provisioner.ui import Ui

    try:
        with Ui(
            *_streams(),
            mode=_mode(given),
            quiet=arguments.quiet,
            verbose=arguments.verbose,
            color=False if arguments.no_color else None,
            interactive=not getattr(arguments, "no_input", False),
        ) as ui:
            return _run(arguments, ui, cancelled)
    finally:
        if not cancelled.is_set():  # otherwise a second signal on the way out would end in a trace
            for number, handler in previous:
                signal.signal(number, handler)


def _streams() -> tuple[TextIO, TextIO]:
    """Return where to write; a service manager or a desktop may start us with the standard streams closed."""
    nowhere = Path(os.devnull)
    return sys.stdout or nowhere.open("w", encoding="utf-8"), sys.stderr or nowhere.open("w", encoding="utf-8")


def _run(arguments: argparse.Namespace, ui: Ui, cancelled: threading.Event) -> int:
    command = arguments.command if arguments.command != "manifest" else f"manifest {arguments.action}"
    from provisioner.report import report_for_error

    try:
        report: Report = arguments.run(arguments, ui, cancelled)
    except KleinError as error:
        report = report_for_error(command, error)
    except KeyboardInterrupt as error:
        report = _interrupted(command, error)
    except Exception as error:  # the one place: a defect of ours gets a log, not a trace on the screen
        ui.show_defect(error, _keep_log(error))
        report = report_for_error(command, error)
    ui.show_report(report)
    return report.exit_status


def _interrupted(command: str, error: KeyboardInterrupt) -> Report:
    from provisioner.models import Report

    status = EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
    return Report(command=command, status="interrupted", exit_status=status)


def _keep_log(error: Exception) -> Path | None:
    import traceback

    from provisioner.adapters.host import state_folder
    from provisioner.adapters.state import write_defect_log
    from provisioner.redact import redact

    lines = [f"klein-setup {__version__}", f"Python {sys.version}", f"{sys.platform}", ""]
    text = "\n".join(lines) + "".join(traceback.format_exception(error))
    return write_defect_log(state_folder(), redact(text))


def _completed(given: list[str]) -> list[str]:
    """Return the arguments with what may be left out: the command, and what kind of ``--json``."""
    spelled = ["--json=document" if argument == "--json" else argument for argument in given]
    if not spelled or (spelled[0].startswith("-") and spelled[0] not in {"-h", "--help", "--version"}):
        return ["install", *spelled]
    return spelled


def _mode(given: Sequence[str]) -> Mode:
    if "--json=events" in given:
        return "events"
    return "json" if any(argument == "--json" or argument.startswith("--json=") for argument in given) else "human"


def _show_error_before_start(given: Sequence[str], error: UsageError) -> int:
    from provisioner.report import report_for_error
    from provisioner.ui import Ui

    with Ui(*_streams(), mode=_mode(given)) as ui:
        report = report_for_error(_command_of(given), error)
        ui.show_report(report)
    return report.exit_status


def _command_of(given: Sequence[str]) -> str:
    return given[0] if given and given[0] in _COMMANDS else "install"


def _leave_at_once(status: int) -> NoReturn:
    """End the process for somebody who asked twice; what is on disk is as good as after a kill, that is, good."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # the bars hide the cursor
    os._exit(status)


def _listen_to_signals(cancelled: threading.Event) -> list[tuple[int, _Handler]]:
    """Let Ctrl-C and SIGTERM end the run in order; return what was listening before."""
    if threading.current_thread() is not threading.main_thread():
        return []

    def stop(number: int, _frame: FrameType | None) -> None:
        if cancelled.is_set():
            _leave_at_once(EXIT_TERMINATED if number == signal.SIGTERM else EXIT_INTERRUPTED)
        cancelled.set()
        raise (Terminated if number == signal.SIGTERM else KeyboardInterrupt)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32":
        numbers.append(signal.SIGBREAK)
    return [(number, signal.signal(number, stop)) for number in numbers]
