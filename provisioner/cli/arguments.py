"""What may be typed: every command with its options, and how each value is read.

``klein-setup --help`` must answer at once, so this module imports argparse and nothing that takes time.  What a command
then does is `cli`'s business: the parser only writes its name under ``run``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from provisioner import __version__
from provisioner.core.errors import UsageError

if TYPE_CHECKING:
    from typing import TypeAlias

    Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"

_HELP_COLUMNS = 80  # until the terminal is asked
_EPILOG = """\
exit status: 0 as the manifest asks; 1 findings; 2 usage or manifest; 3 machine; 4 disk; 5 network; 6 access;
7 wrong bytes; 8 a command failed; 9 no picture, or the rehearsal found a claim that does not hold;
10 locked by another run; 70 a defect of klein-setup; 130 interrupted
"""


class _Formatter(argparse.HelpFormatter):
    """Asks how wide the terminal is when a help is written, not for every option: that imports ``shutil``, 5 ms."""

    def __init__(self, prog: str, **options: Any) -> None:  # noqa: ANN401 - argparse says no more
        super().__init__(prog, **{"width": _HELP_COLUMNS, **options})

    def format_help(self) -> str:
        """Return the help, as wide as the terminal."""
        asked = argparse.HelpFormatter(self._prog)
        self._width, self._max_help_position = asked._width, asked._max_help_position
        return super().format_help()


class _RawFormatter(_Formatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of a description as they are."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors of ours, so that ``--json`` holds for them too."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse says no more
        super().__init__(**{"formatter_class": _Formatter, **options})

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint=f"{self.prog} --help shows what there is.")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the command line: all of it, or one command alone, for making all their options takes 20 ms."""
    parser = _Parser(
        prog="klein-setup",
        description="Takes a machine from nothing to a proven FLUX.2 [klein] picture, and keeps it there.",
        epilog=_EPILOG,
        formatter_class=_RawFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"klein-setup {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", prog=parser.prog)
    for name, add in _ADDERS.items():
        if command == name or command not in _ADDERS:  # the help lists them all, and a complaint does
            add(subparsers)
    return parser


def _add(subparsers: Subparsers, name: str, text: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
    _add_output_options(parser)
    return parser


def add_install_parser(subparsers: Subparsers) -> None:
    """Add ``install``, which is also what ``klein-setup`` alone does."""
    parser = _add(subparsers, "install", "plan, ask, apply, prove, draw a picture (the default command)")
    _add_target_options(parser)
    _add_network_options(parser)
    _add_change_options(parser)
    _add_only_option(parser, None)
    _add_locked_option(parser)
    _add_environment_options(parser)
    _add_comfyui_options(parser)
    _add_image_options(parser)
    parser.set_defaults(run="install")


def add_plan_parser(subparsers: Subparsers) -> None:
    """Add ``plan``."""
    parser = _add(subparsers, "plan", "the same, nothing applied")
    _add_target_options(parser)
    _add_network_options(parser)
    _add_only_option(parser, None)
    _add_environment_options(parser)
    _add_comfyui_options(parser)
    parser.set_defaults(run="plan")


def add_detect_parser(subparsers: Subparsers) -> None:
    """Add ``detect``."""
    parser = _add(subparsers, "detect", "the machine, how each fact was learnt, and the torch build that suits it")
    group = _add_torch_options(parser)
    group.add_argument("--app", choices=("comfyui", "diffusers"), default="comfyui", help="who will use it")
    group.add_argument("--torch-python", metavar="VERSION", help="Python it goes into, 3.12 (default: this one)")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="folders whose free space is of interest")
    parser.set_defaults(run="detect")


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
    _add_environment_folder(group)
    group.add_argument("--python", type=Path, metavar="FILE", help="Python to make it from (default: one that fits)")
    group.add_argument("--uv", action="store_true", help="install with uv instead of pip")


def add_verify_parser(subparsers: Subparsers) -> None:
    """Add ``verify``."""
    parser = _add(subparsers, "verify", "read every byte and say what does not hold; changes nothing, needs no network")
    _add_target_options(parser)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="believe receipts instead of reading files; headers are still looked at",
    )
    parser.add_argument("--all", action="store_true", help="look at every other file of the models folder, too")
    _add_environment_folder(parser)
    parser.add_argument(
        "--no-smoke", action="store_true", help="draw no picture, even where ComfyUI, torch or the driver moved"
    )
    _add_locked_option(parser)
    _add_server_option(parser)
    _add_image_options(parser)
    parser.set_defaults(run="verify")


def add_repair_parser(subparsers: Subparsers) -> None:
    """Add ``repair``."""
    parser = _add(subparsers, "repair", "verify, then put right: what is wrong is set aside, never deleted")
    _add_target_options(parser)
    _add_network_options(parser)
    _add_change_options(parser)
    _add_only_option(parser, "files")
    _add_environment_options(parser)
    _add_comfyui_options(parser)
    _add_image_options(parser)
    parser.add_argument(
        "--undo-update",
        action="store_true",
        help="only move ComfyUI back to the commit it was at before --update-comfyui",
    )
    parser.set_defaults(run="repair")


def add_smoke_test_parser(subparsers: Subparsers) -> None:
    """Add ``smoke-test``."""
    parser = _add(subparsers, "smoke-test", "only the picture: 4 steps with what is installed, measured and judged")
    _add_target_options(parser)
    _add_environment_options(parser)
    _add_server_option(parser)
    _add_image_options(parser)
    parser.add_argument("--graph", action="store_true", help="print the graph in ComfyUI's API form and draw nothing")
    parser.set_defaults(run="smoke-test")


def add_report_parser(subparsers: Subparsers) -> None:
    """Add ``report``."""
    parser = _add(subparsers, "report", "the last run as one HTML page")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write it (default: klein-setup-report.html)"
    )
    parser.set_defaults(run="report")


def add_backups_parser(subparsers: Subparsers) -> None:
    """Add ``aside list | restore | clear``."""
    parser = subparsers.add_parser("aside", help="what repair took out of the way: list, restore, clear")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _add(actions, "list", "what was set aside, when and why")
    restore = _add(actions, "restore", "put one back; what is in its place now is set aside instead")
    restore.add_argument("entry", metavar="ENTRY", help="as `aside list` names it")
    clear = _add(actions, "clear", "delete what was set aside")
    clear.add_argument("entries", nargs="*", metavar="ENTRY", help="which; everything by default")
    _add_answers(clear)
    for each in (listing, restore, clear):
        _add_target_options(each)
        each.set_defaults(run=f"aside {each.prog.rpartition(' ')[2]}")


def add_uninstall_parser(subparsers: Subparsers) -> None:
    """Add ``uninstall``."""
    parser = _add(subparsers, "uninstall", "remove what the receipts say is ours, and only that")
    _add_target_options(parser)
    _add_environment_folder(parser)
    parser.add_argument("--only", metavar="PARTS", help="files, environment, comfyui (default: all three)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed and remove nothing")
    _add_answers(parser)
    parser.set_defaults(run="uninstall")


def add_rehearse_parser(subparsers: Subparsers) -> None:
    """Add ``rehearse``."""
    parser = _add(subparsers, "rehearse", "the whole job with small files against an embedded hub: no GPU, no account")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folder and say where it is")
    parser.add_argument(
        "--no-image",
        "--no-picture",
        action="store_true",
        help="leave out the picture, and with it the environment it needs",
    )
    parser.add_argument(
        "--environment", type=Path, metavar="DIR", help="an environment to draw in instead of a new one"
    )
    parser.add_argument("--torch-index", metavar="URL", help="base address of a mirror of the wheel index")
    parser.set_defaults(run="rehearse")


def add_manifest_parser(subparsers: Subparsers) -> None:
    """Add ``manifest list | show | check | lock``."""
    parser = subparsers.add_parser("manifest", help="list, show, check and lock manifests", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _add(actions, "list", "the manifests that come with klein-setup")
    listing.set_defaults(run="manifest list")
    show = _add(actions, "show", "one manifest: its sets, its files, where each digest was read")
    show.add_argument("manifest", nargs="?", default="flux2-klein-4b", metavar="ID|FILE", help="which one")
    show.set_defaults(run="manifest show")
    check = _add(actions, "check", "every complaint about manifest files, each with its line")
    check.add_argument("manifests", nargs="*", metavar="ID|FILE", help="which ones; all that are shipped by default")
    check.set_defaults(run="manifest check")
    lock = _add(actions, "lock", "read every byte of an installed set and write it down, block by block")
    _add_target_options(lock)
    lock.add_argument("--environment", type=Path, metavar="DIR", help="virtual environment to note")
    lock.add_argument("--output", type=Path, metavar="FILE", required=True, help="where to write the locked manifest")
    lock.set_defaults(run="manifest lock")


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


def _add_target_options(parser: argparse.ArgumentParser) -> None:
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
    group.add_argument(
        "--offline",
        action="store_true",
        help="no network, not for git or pip either: what is missing is an error that lists it",
    )


def _add_environment_folder(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--environment", type=Path, metavar="DIR", help="virtual environment (default: .venv beside ComfyUI's models)"
    )


def _add_answers(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--yes", action="store_true", help="answer every question with yes")
    parser.add_argument("--no-input", action="store_true", help="ask nothing; what needs an answer is an error")


def _add_only_option(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--only",
        default=default,
        metavar="PARTS",
        help=f"parts of the plan: files, environment, smoke (default: {default or 'all of them'})",
    )


def _add_locked_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--locked", action="store_true", help="refuse a machine that differs from the locked manifest it is given"
    )


def _add_comfyui_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("ComfyUI itself")
    group.add_argument(
        "--comfyui-source", metavar="URL|DIR", help="where to get it from: a mirror or a local repository"
    )
    group.add_argument(
        "--update-comfyui", action="store_true", help="move a checkout that is there to the pinned release"
    )
    _add_server_option(group)


def _add_server_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--server", metavar="URL", help="a ComfyUI that runs already, for the picture; it is not stopped"
    )


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the picture")
    group.add_argument("--prompt", metavar="TEXT", help="what to draw")
    group.add_argument("--seed", type=_seed, metavar="N", help="for the same picture again (default: a fresh one)")
    group.add_argument(
        "--size", type=_image_size, default=(1024, 1024), metavar="WxH", help="in pixels (default: 1024x1024)"
    )
    group.add_argument("--tiled-decode", action="store_true", help="decode in tiles, for cards with little memory")
    group.add_argument(
        "--reserve-vram", type=_gibibytes, metavar="GB", help="leave so much of the card's memory to others"
    )
    group.add_argument(
        "--image", "--picture", type=Path, metavar="FILE", help="where to keep it (default: a folder of the user's)"
    )
    group.add_argument(
        "--smoke-timeout", type=_seconds, default=900.0, metavar="SECONDS", help="longest wait (default: 900)"
    )


def _add_change_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument("--connections", type=_connections, default=8, metavar="N", help="most connections (default: 8)")
    group.add_argument(
        "--limit-rate",
        type=_rate,
        metavar="RATE",
        help="bytes per second for files, ComfyUI's archive and wheels together: 10M, 500k; what git fetches is not "
        "limited, nor what a pip older than 25.3 does",
    )
    group.add_argument(
        "--stall-timeout",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="open a connection anew that delivered less than 64 KiB/s for so long (default: 20)",
    )
    _add_answers(group)
    group.add_argument("--no-wait", action="store_true", help="give up if another run has this target")


def _connections(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 32:
        message = f"{text!r} is not a number of connections from 1 to 32"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _rate(text: str) -> int:
    from provisioner.files.download.policy import parse_rate

    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**64:
        message = f"{text!r} is not a seed from 0 to 18446744073709551615"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _image_size(text: str) -> tuple[int, int]:
    numbers = text.lower().split("x")
    if len(numbers) == 2 and all(each.isdigit() for each in numbers):
        width, height = int(numbers[0]), int(numbers[1])
        if all(64 <= each <= 4096 and each % 16 == 0 for each in (width, height)):
            return width, height
    message = f"{text!r} is not a size like 1024x1024: multiples of 16 from 64 to 4096"
    raise argparse.ArgumentTypeError(message)


def _gibibytes(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount <= 1024:
        message = f"{text!r} is not an amount of memory in GB, like 1.5"
        raise argparse.ArgumentTypeError(message)
    return amount


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 3600:
        message = f"{text!r} is not a time from 0.1 to 3600 seconds"
        raise argparse.ArgumentTypeError(message)
    return seconds


_ADDERS: dict[str, Callable[[Subparsers], None]] = {
    "install": add_install_parser,
    "plan": add_plan_parser,
    "detect": add_detect_parser,
    "verify": add_verify_parser,
    "repair": add_repair_parser,
    "smoke-test": add_smoke_test_parser,
    "rehearse": add_rehearse_parser,
    "report": add_report_parser,
    "aside": add_backups_parser,
    "uninstall": add_uninstall_parser,
    "manifest": add_manifest_parser,
}
COMMANDS = tuple(_ADDERS)
