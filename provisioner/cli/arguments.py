"""The command line: every command with its options, and how each value is parsed.

``klein-setup --help`` must answer at once, so this module imports argparse and nothing that takes time.  The parser
only stores the command's name under ``run``; `main` calls it.
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

    from provisioner.core.models import OciFile, OciRepository

    Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"

_HELP_COLUMNS = 80  # until the terminal is asked
_EPILOG = """\
examples:
  klein-setup                               everything, after one question
  klein-setup plan --comfyui ~/ComfyUI      what would be done there, and how many bytes
  klein-setup verify                        is everything still correct?
  klein-setup repair                        fix what is not
  klein-setup uninstall --dry-run           what would be removed

environment variables:
  HF_TOKEN             a read token of huggingface.co, for gated repositories
                       (or log in once with `hf auth login`)
  HF_ENDPOINT          address of the Hub or a mirror
  HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE     as in huggingface_hub
  HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE as in requests
  NO_COLOR             no colours
  KLEIN_SETUP_VERIFY_WITH  as --verify-with, where neither it nor the file of
                       settings names a key
  KLEIN_SETUP_KEY_PASSWORD, KLEIN_SETUP_KEY_PASSWORD_FILE   the password of the key
                       that --sign names, or a file whose first line it is
  KLEIN_SETUP_MACHINE  a machine recorded with `detect --json`, instead of this one

exit status: 0 everything is correct; 1 verify or diagnose found problems; 2 wrong usage or
manifest; 3 unsupported machine; 4 disk; 5 network; 6 access denied or not found;
7 wrong bytes; 8 a command failed; 9 ComfyUI did not start, no image, or a check of
the rehearsal failed; 10 locked by another run; 70 internal error; 130 interrupted
"""


class _Formatter(argparse.HelpFormatter):
    """Reads the width of the terminal once per help text, not for every option: that imports ``shutil``, 5 ms."""

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
    """A parser that raises UsageError, so that ``--json`` works for its errors too."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse says no more
        super().__init__(**{"formatter_class": _Formatter, **options})

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint=f"Run `{self.prog} --help` to see the options.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # noqa: ANN401
        """Return what was parsed; raise UsageError for an option that this command does not have."""
        found, unknown = super().parse_known_args(args, namespace)
        if not unknown:
            return found, unknown
        word = unknown[0].partition("=")[0] if unknown[0].startswith("-") else unknown[0]
        if not word.startswith("-"):
            self.error(f"unexpected argument {word!r}")
        from provisioner.core.suggestions import did_you_mean

        meant = did_you_mean(word, self._option_string_actions)
        raise UsageError(
            f"{self.prog.partition(' ')[2] or self.prog} has no option {word}.{meant}",
            hint=f"Run `{self.prog} --help` to see the options.",
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401 - argparse says no more
        """Raise UsageError for a command, or a value of an option, that is none of those there are."""
        choices = action.choices
        if choices is None or value in choices:
            return
        from provisioner.core.suggestions import did_you_mean

        is_command = isinstance(action, argparse._SubParsersAction)
        name = "/".join(action.option_strings) or str(action.metavar or action.dest)
        hint = (
            f"Run `{self.prog} --help` to see the commands." if is_command else f"Choose one of: {', '.join(choices)}."
        )
        what = f"There is no command {value!r}" if is_command else f"{name} cannot be {value!r}"
        raise UsageError(f"{what}.{did_you_mean(value, choices)}", hint=hint)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands, or of one command alone: making all their options takes 20 ms."""
    parser = _Parser(
        prog="klein-setup",
        description="Installs everything needed to run FLUX.2 [klein], verifies every byte, and keeps it working.",
        epilog=_EPILOG,
        formatter_class=_RawFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"klein-setup {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", prog=parser.prog)
    for name, add in _ADDERS.items():
        if (
            name == _ALIASES.get(command or "", command) or command not in COMMANDS
        ):  # --help and usage errors list them all
            add(subparsers)
    return parser


def _add(subparsers: Subparsers, name: str, text: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=text,
        description=text,
        epilog=_examples_of(subparsers, name),
        formatter_class=_RawFormatter,
        allow_abbrev=False,
    )
    _add_output_options(parser)
    return parser


_EXAMPLES = {
    "install": """\
  klein-setup install --comfyui ~/ComfyUI          into this ComfyUI, or a new one
  klein-setup install --only files --set fp8-lean  only the model files of one set
  klein-setup install --hf-cache                   for diffusers
  klein-setup install -y --comfyui /srv/ComfyUI    in a script
""",
    "plan": """\
  klein-setup plan                           for the usual folder
  klein-setup plan --set auto --json         the set for this GPU, for a program
""",
    "detect": """\
  klein-setup detect                         this machine
  klein-setup detect --json > machine.json   to show somebody else
""",
    "verify": """\
  klein-setup verify                         read every byte of the usual folder
  klein-setup verify --quick                 only the receipts: a quarter of a second
  klein-setup verify --all --no-smoke        every model file, no test image
  klein-setup verify --attest lab-3.json --sign lab-3.key
  klein-setup verify --for 5m --schedule daily    a part every day
""",
    "repair": """\
  klein-setup repair                         fetch only the blocks that are wrong
  klein-setup repair --only environment      only Python and torch
""",
    "smoke-test": """\
  klein-setup smoke-test --prompt "a red fox" --seed 7 --image fox.png
  klein-setup smoke-test --gpu all
  klein-setup smoke-test --server http://127.0.0.1:8188
  klein-setup smoke-test --comfyui-args auto       with the options you start it with
""",
    "diagnose": """\
  klein-setup diagnose                       with the options and custom nodes you have
  klein-setup diagnose --comfyui-args "--fast" --size 512x512
  klein-setup diagnose --images 6            look for memory that grows with every image
""",
    "start": """\
  klein-setup start                          ComfyUI in the browser; Ctrl-C stops it
  klein-setup start --no-browser             only the address
  klein-setup start -- --lowvram             what follows -- goes to ComfyUI
""",
    "rehearse": """\
  klein-setup rehearse                       fetches torch for the CPU, 270 MB
  klein-setup rehearse --no-image            a few seconds, no network
""",
    "report": """\
  klein-setup report --output last-run.html
""",
    "fleet report": """\
  klein-setup fleet report documents/                      against what most hosts have
  klein-setup fleet report documents/ --manifest lab.yaml  against a lock
""",
    "snapshot restore": """\
  klein-setup snapshot list
  klein-setup snapshot restore 20261127-031522
""",
    "doctor": """\
  klein-setup doctor --output problem.zip
""",
    "uninstall": """\
  klein-setup uninstall --dry-run            what would be removed
  klein-setup uninstall --only environment
""",
    "completion": """\
  klein-setup completion bash > ~/.local/share/bash-completion/completions/klein-setup
  klein-setup completion zsh > "${fpath[1]}/_klein-setup"
  klein-setup completion fish > ~/.config/fish/completions/klein-setup.fish
  klein-setup completion powershell >> $PROFILE
  klein-setup completion man | man -l -
""",
    "manifest show": """\
  klein-setup manifest show                  the sets, in one screen
  klein-setup manifest show --files          every file with its digest and sources
""",
    "bundle create": """\
  klein-setup bundle create /mnt/stick/klein --set fp8
  klein-setup bundle verify /mnt/stick/klein           every byte, on all cores
  klein-setup install --from /mnt/stick/klein          there, with the network off
  klein-setup bundle create oci://registry.lab/klein:v1
  klein-setup install --from oci://registry.lab/klein:v1
""",
    "manifest check": """\
  klein-setup manifest check my.yaml         every error, with its line
  klein-setup manifest check lab.yaml --verify-with lab.pub
""",
    "manifest lock": """\
  klein-setup manifest lock --output locked.yaml
  klein-setup manifest lock --output lab.yaml --sign lab.key --expires 90d
""",
    "manifest from-workflow": """\
  klein-setup manifest from-workflow image_z_image_turbo
  klein-setup manifest from-workflow my-workflow.json --output mine.yaml
  klein-setup manifest from-workflow ComfyUI_00012_.png --digest style.safetensors=SHA256
""",
    "manifest accept": """\
  klein-setup manifest accept lab.yaml --verify-with lab.pub
""",
}


def _examples_of(subparsers: Subparsers, name: str) -> str | None:
    """Return the examples below the help of a command."""
    path = f"{subparsers._prog_prefix} {name}".partition(" ")[2]
    return f"examples:\n{_EXAMPLES[path]}" if path in _EXAMPLES else None


def add_install_parser(subparsers: Subparsers) -> None:
    """Add ``install``, which is also what ``klein-setup`` alone does."""
    parser = _add(
        subparsers, "install", "install and verify everything, then generate a test image (the default command)"
    )
    _add_target_options(parser)
    _add_from_option(parser)
    _add_network_options(parser)
    _add_change_options(parser)
    _add_only_option(parser, None)
    _add_locked_option(parser)
    _add_environment_options(parser)
    _add_comfyui_options(parser)
    _add_peer_options(parser)
    _add_image_options(parser)
    _add_pass_env_option(parser)
    parser.set_defaults(run="install")


def add_plan_parser(subparsers: Subparsers) -> None:
    """Add ``plan``."""
    parser = _add(subparsers, "plan", "show what install would do, without changing anything")
    _add_target_options(parser)
    _add_from_option(parser)
    _add_machine_option(parser, is_one=True)
    _add_network_options(parser)
    _add_only_option(parser, None)
    _add_environment_options(parser)
    _add_comfyui_options(parser)
    parser.add_argument(
        "--hosts", action="store_true", help="list every host that install would contact, without contacting any"
    )
    parser.set_defaults(run="plan")


def add_detect_parser(subparsers: Subparsers) -> None:
    """Add ``detect``."""
    parser = _add(subparsers, "detect", "show the machine, the source of each fact, and the torch build for it")
    group = _add_torch_options(parser)
    group.add_argument(
        "--app", choices=("comfyui", "diffusers"), default="comfyui", help="what will use torch (default: comfyui)"
    )
    group.add_argument(
        "--torch-python", metavar="VERSION", help="Python version to choose for, such as 3.12 (default: this one)"
    )
    parser.add_argument("folders", nargs="*", type=_path, metavar="DIR", help="folders whose free space is shown")
    parser.set_defaults(run="detect")


def _add_torch_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("torch")
    group.add_argument(
        "--torch", default="auto", metavar="TAG", help="auto (default), a build such as cu130 or cpu, or none"
    )
    group.add_argument("--torch-index", type=_index, metavar="URL", help="base address of a mirror of the wheel index")
    group.add_argument("--force", action="store_true", help="use --torch TAG even if it cannot work on this machine")
    return group


def _add_environment_options(parser: argparse.ArgumentParser) -> None:
    group = _add_wheel_options(parser)
    _add_environment_folder(group)
    unpacker = group.add_mutually_exclusive_group()
    unpacker.add_argument("--uv", action="store_true", help="install with uv, and fail without it (default: if found)")
    unpacker.add_argument("--no-uv", action="store_true", help="install with pip, even if uv is found")


def _add_wheel_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = _add_torch_options(parser)
    group.add_argument("--cpu", action="store_true", help="accept a machine without a GPU (slow)")
    group.add_argument(
        "--python", type=_path, metavar="FILE", help="Python to make the environment from (default: a suitable one)"
    )
    group.add_argument(
        "--package-index",
        type=_index,
        metavar="URL",
        help="index of ComfyUI's packages (default: pip's); a login comes from .netrc or a keyring",
    )
    return group


def add_verify_parser(subparsers: Subparsers) -> None:
    """Add ``verify``."""
    parser = _add(subparsers, "verify", "read every byte and report what is wrong; changes nothing, needs no network")
    _add_target_options(parser)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="trust the receipts instead of reading the files; headers are still read",
    )
    parser.add_argument("--all", action="store_true", help="also check every other file of the models folder")
    _add_scrub_options(parser)
    _add_environment_folder(parser)
    parser.add_argument(
        "--no-smoke", action="store_true", help="generate no test image, even if ComfyUI, torch or the driver changed"
    )
    _add_answers(parser)
    _add_locked_option(parser)
    parser.add_argument(
        "--attest", type=_path, metavar="FILE", help="write what was found correct as an in-toto statement"
    )
    _add_sign_option(parser, "sign the statement with this private key (PEM, elliptic curve)")
    _add_server_option(parser)
    _add_image_options(parser)
    _add_pass_env_option(parser)
    parser.set_defaults(run="verify")


def _add_scrub_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a little at a time")
    group.add_argument(
        "--for",
        dest="scrub_s",
        type=_duration,
        metavar="TIME",
        help="read only model files, and for this long (5m, 2h): what was read the longest ago comes first",
    )
    group.add_argument(
        "--metrics", type=_path, metavar="FILE", help="write what --for found as Prometheus metrics (FILE.prom)"
    )
    group.add_argument(
        "--schedule",
        choices=("hourly", "daily", "weekly", "off"),
        help="let systemd or Windows' Task Scheduler run this; shown first, written after a yes; off: not any more",
    )


def add_repair_parser(subparsers: Subparsers) -> None:
    """Add ``repair``."""
    parser = _add(subparsers, "repair", "verify, then fix what is wrong; replaced files are kept as backups")
    _add_target_options(parser)
    _add_from_option(parser)
    _add_network_options(parser)
    _add_change_options(parser)
    _add_only_option(parser, "files")
    _add_environment_options(parser)
    _add_comfyui_options(parser)
    _add_peer_options(parser)
    _add_image_options(parser)
    parser.add_argument(
        "--undo-update",
        action="store_true",
        help="only move ComfyUI back to the commit it was at before --update-comfyui",
    )
    _add_scrub_options(parser)
    _add_pass_env_option(parser)
    parser.set_defaults(run="repair")


def add_smoke_test_parser(subparsers: Subparsers) -> None:
    """Add ``smoke-test``."""
    parser = _add(subparsers, "smoke-test", "generate only the test image: 4 steps, measured and checked")
    _add_target_options(parser)
    _add_environment_options(parser)
    _add_server_option(parser)
    _add_image_options(parser)
    _add_gpu_option(parser)
    _add_comfyui_args_option(parser, None)
    _add_pass_env_option(parser)
    parser.add_argument(
        "--workflow",
        metavar="FILE|TEMPLATE",
        help="generate what this workflow of ComfyUI does, with another seed, instead of the image for the set",
    )
    parser.add_argument(
        "--graph", action="store_true", help="print the graph in ComfyUI's API format and generate nothing"
    )
    parser.set_defaults(run="smoke-test")


def _add_gpu_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu",
        type=_name,
        metavar="N|UUID|all",
        help="the GPU to generate it on, by its number or UUID in `detect`; all: each one after the other (default: the"
        " first in CUDA_VISIBLE_DEVICES, else the one with the most memory)",
    )


def add_diagnose_parser(subparsers: Subparsers) -> None:
    """Add ``diagnose``."""
    parser = _add(
        subparsers, "diagnose", "find out which layer makes the test image fail: options, custom nodes, GPU; tries each"
    )
    _add_target_options(parser)
    _add_environment_options(parser)
    _add_image_options(parser)
    _add_gpu_option(parser)
    _add_comfyui_args_option(parser, "auto")
    _add_pass_env_option(parser)
    parser.add_argument("--fresh", action="store_true", help="begin anew, even if the last one was interrupted")
    parser.set_defaults(run="diagnose")


def add_start_parser(subparsers: Subparsers) -> None:
    """Add ``start``."""
    parser = _add(subparsers, "start", "start ComfyUI and open it in the browser; Ctrl-C stops it")
    _add_target_options(parser)
    _add_environment_folder(parser)
    parser.add_argument("--port", type=_port, default=8188, metavar="N", help="where it listens (default: 8188)")
    parser.add_argument("--no-browser", action="store_true", help="open no browser; without a display none is opened")
    _add_answers(parser)
    _add_pass_env_option(parser)
    parser.add_argument("comfyui_arguments", nargs="*", metavar="ARGUMENT", help="after --: arguments for ComfyUI")
    parser.set_defaults(run="start")


def add_report_parser(subparsers: Subparsers) -> None:
    """Add ``report``."""
    parser = _add(subparsers, "report", "write the last run as one HTML page")
    _add_page_options(parser)
    parser.set_defaults(run="report")


def _add_page_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=_path, metavar="FILE", help="where to write it (default: a file of the user's state folder)"
    )
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def add_fleet_parser(subparsers: Subparsers) -> None:
    """Add ``fleet report``."""
    parser = subparsers.add_parser("fleet", help="compare many machines by their documents", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    report = _add(actions, "report", "show who has what, who differs, and what bringing all in line costs")
    report.add_argument("folder", type=_path, metavar="DIR", help="a folder of documents of --json, of any commands")
    report.add_argument(
        "--manifest",
        action="append",
        type=_name,
        default=[],
        metavar="LOCK",
        help="what all should have, from `manifest lock`; once for each set (default: what most hosts have)",
    )
    report.add_argument(
        "--stale",
        type=_duration,
        default=7 * 86_400,
        metavar="AGE",
        help="how old a document may be: 12h, 7d (default: 7d)",
    )
    report.add_argument(
        "--expect", type=_path, metavar="FILE", help="names of the hosts that there should be, one on each line"
    )
    report.add_argument(
        "--by-file", action="store_true", help="a host is called like its file, whatever the document says"
    )
    _add_page_options(report)
    report.set_defaults(run="fleet report")


def add_doctor_parser(subparsers: Subparsers) -> None:
    """Add ``doctor``."""
    parser = _add(subparsers, "doctor", "write what a bug report needs as one zip file, without secrets")
    _add_target_options(parser)
    _add_environment_folder(parser)
    parser.add_argument(
        "--output", type=_path, metavar="FILE", help="where to write it (default: in the user's state folder)"
    )
    parser.set_defaults(run="doctor")


def add_backups_parser(subparsers: Subparsers) -> None:
    """Add ``backups list | restore | clear``; ``aside`` is its old name."""
    parser = subparsers.add_parser(
        "backups", aliases=["aside"], help="list, restore or delete files that were replaced", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _add(actions, "list", "list the backups: what was replaced, when and why")
    restore = _add(actions, "restore", "put a backup back; the file in its place becomes a backup")
    restore.add_argument("entry", metavar="ENTRY", help="its name, as `backups list` shows it")
    clear = _add(actions, "clear", "delete backups for good")
    clear.add_argument("entries", nargs="*", metavar="ENTRY", help="which ones (default: all)")
    _add_answers(clear)
    for each in (listing, restore, clear):
        _add_target_options(each)
        each.set_defaults(run=f"aside {each.prog.rpartition(' ')[2]}")


def add_snapshot_parser(subparsers: Subparsers) -> None:
    """Add ``snapshot list | show | restore | export``."""
    parser = subparsers.add_parser(
        "snapshot", help="list, show, restore or export what was verified last", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _add(actions, "list", "list the snapshots: taken after each test image and before each change")
    listing.set_defaults(run="snapshot list")
    show = _add(actions, "show", "show one: commit, custom nodes, packages and files")
    restore = _add(
        actions, "restore", "bring ComfyUI's commit, custom nodes, packages and files back, then generate an image"
    )
    export = _add(actions, "export", "write one as a zip file: record, manifest, requirements.txt and image")
    export.add_argument("--output", type=_path, required=True, metavar="FILE", help="where to write it")
    for each in (show, restore, export):
        each.add_argument("name", metavar="NAME", help="as `snapshot list` shows it")
        each.set_defaults(run=f"snapshot {each.prog.rpartition(' ')[2]}")
    group = restore.add_argument_group("where")
    group.add_argument(
        "--comfyui", type=_path, metavar="DIR", help="where ComfyUI is now, if it was moved; a new folder is filled"
    )
    group.add_argument("--hf-cache", type=_path, metavar="DIR", help="where the HF cache is now, if it was moved")
    _add_verify_with_option(group)
    group.add_argument(
        "--look-in", action="append", type=_path, default=[], metavar="DIR", help="another folder to look for files in"
    )
    group.add_argument("--comfyui-source", type=_name, metavar="URL|DIR", help="repository that has ComfyUI's commit")
    group.add_argument("--torch-index", type=_index, metavar="URL", help="base address of a mirror of the wheel index")
    _add_network_options(restore)
    _add_change_options(restore)
    _add_image_options(restore)
    _add_pass_env_option(restore)


def add_uninstall_parser(subparsers: Subparsers) -> None:
    """Add ``uninstall``."""
    parser = _add(subparsers, "uninstall", "remove what klein-setup installed, and nothing else")
    _add_target_options(parser)
    _add_environment_folder(parser)
    parser.add_argument("--only", metavar="PARTS", help="files, environment, comfyui, custom-nodes (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be removed and remove nothing")
    _add_answers(parser)
    parser.set_defaults(run="uninstall")


def add_bundle_parser(subparsers: Subparsers) -> None:
    """Add ``bundle create | add | verify``."""
    parser = subparsers.add_parser(
        "bundle", help="put everything for machines without a network into one folder", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("create", "make a bundle: an OCI image layout with the model files, ComfyUI and the wheels"),
        ("add", "add the files of another set or manifest; what is there already costs nothing"),
    ):
        making = _add(actions, name, text)
        making.add_argument(
            "folder", type=_bundle, metavar="DIR|oci://REGISTRY/NAME:TAG", help="where the bundle is, or shall be"
        )
        _add_wanted_options(making)
        making.add_argument("--no-comfyui", action="store_true", help="leave ComfyUI's archive out, and its wheels")
        making.add_argument("--no-wheels", action="store_true", help="leave torch's and the other wheels out")
        _add_wheel_options(making)
        _add_machine_option(making, is_one=False)
        making.add_argument(
            "--comfyui-source", type=_name, metavar="URL|FILE", help="get ComfyUI's archive from a mirror or a file"
        )
        _add_version_option(making)
        _add_lock_options(making)
        _add_network_options(making)
        _add_change_options(making)
        making.set_defaults(run=f"bundle {name}")
    verifying = _add(actions, "verify", "read every byte of a bundle and report what is wrong, missing or more")
    verifying.add_argument("folder", type=_bundle, metavar="DIR|oci://REGISTRY/NAME:TAG", help="where the bundle is")
    verifying.set_defaults(run="bundle verify")


def add_seed_parser(subparsers: Subparsers) -> None:
    """Add ``seed``."""
    parser = _add(subparsers, "seed", "verify the files of a set and send them to other hosts (BitTorrent v2)")
    _add_target_options(parser)
    group = parser.add_argument_group("peers")
    group.add_argument(
        "--listen", type=_listen, required=True, metavar="ADDRESS:PORT", help="where other hosts reach this one"
    )
    group.add_argument("--torrent", type=_path, metavar="FILE", help="where to write the torrent for the other hosts")
    group.add_argument(
        "--limit-rate", type=_rate, metavar="RATE", help="largest rate in bytes per second, in total: 10M, 500k"
    )
    group.add_argument(
        "--for", dest="seed_s", type=_duration, metavar="TIME", help="end after this long, 12h (default: with Ctrl-C)"
    )
    parser.set_defaults(run="seed")


def _add_peer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("peers")
    group.add_argument("--torrent", type=_path, metavar="FILE", help="the torrent that the host which seeds wrote")
    group.add_argument(
        "--peer",
        action="append",
        type=_peer,
        default=[],
        metavar="HOST:PORT",
        help="a host that seeds, or takes the same files: they are asked before every other source",
    )
    group.add_argument(
        "--listen",
        type=_listen,
        metavar="ADDRESS:PORT",
        help="where the other hosts reach this one while it fetches (default: they cannot)",
    )


def add_rehearse_parser(subparsers: Subparsers) -> None:
    """Add ``rehearse``."""
    parser = _add(subparsers, "rehearse", "test the whole installation with small files: no GPU, no account needed")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folder and show where it is")
    image = parser.add_mutually_exclusive_group()
    image.add_argument(
        "--no-image",
        "--no-picture",
        action="store_true",
        help="generate no test image; the environment for it is not needed then",
    )
    image.add_argument(
        "--comfyui", type=_path, metavar="DIR", help="a ComfyUI that generates an image of the second model, too"
    )
    parser.add_argument("--environment", type=_path, metavar="DIR", help="an environment to use instead of a new one")
    parser.add_argument("--torch-index", type=_index, metavar="URL", help="base address of a mirror of the wheel index")
    parser.set_defaults(run="rehearse")


def add_manifest_parser(subparsers: Subparsers) -> None:
    """Add ``manifest list | show | check | from-workflow | lock | accept``."""
    parser = subparsers.add_parser(
        "manifest", help="list, show, check, make, lock or accept manifests", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _add(actions, "list", "list the manifests that come with klein-setup")
    listing.set_defaults(run="manifest list")
    show = _add(actions, "show", "show one manifest: its sets, its files, the source of each digest")
    show.add_argument(
        "manifest", nargs="?", default="flux2-klein-4b", metavar="ID|FILE", help="which one (default: flux2-klein-4b)"
    )
    show.add_argument("--files", action="store_true", help="also every file: digest, sources, licence")
    _add_verify_with_option(show)
    show.set_defaults(run="manifest show")
    check = _add(actions, "check", "report every error in manifest files, each with its line")
    check.add_argument(
        "manifests", nargs="*", metavar="ID|FILE", help="which ones (default: all that come with klein-setup)"
    )
    _add_verify_with_option(check)
    check.set_defaults(run="manifest check")
    _add_from_workflow_parser(actions)
    lock = _add(actions, "lock", "write a manifest of an installed set with the digest of every block")
    _add_target_options(lock)
    lock.add_argument("--environment", type=_path, metavar="DIR", help="virtual environment to record")
    lock.add_argument("--output", type=_path, metavar="FILE", required=True, help="where to write the locked manifest")
    _add_lock_options(lock)
    lock.set_defaults(run="manifest lock")
    accept = _add(actions, "accept", "accept a signed lock here although a newer one was accepted before")
    accept.add_argument("manifest", metavar="FILE", help="the lock, with its signature beside it")
    _add_verify_with_option(accept)
    accept.set_defaults(run="manifest accept")


def _add_from_workflow_parser(actions: Subparsers) -> None:
    parser = _add(actions, "from-workflow", "write a manifest of the model files that a ComfyUI workflow names")
    parser.add_argument(
        "workflow",
        metavar="FILE|TEMPLATE|URL",
        help="a workflow as JSON, an image that ComfyUI saved as PNG, an address of one, or the id of a template",
    )
    parser.add_argument(
        "--output", type=_path, metavar="FILE", help="where to write it (default: its id with .yaml, if not there yet)"
    )
    parser.add_argument(
        "--digest",
        type=_digest,
        action="append",
        default=[],
        metavar="NAME=SHA256",
        help="the SHA-256 of a file that you know, for a file that no server states one of; may be repeated",
    )
    parser.add_argument("--comfyui", type=_path, metavar="DIR", help="the ComfyUI whose templates are looked at first")
    parser.add_argument("--package-index", type=_index, metavar="URL", help="index of the package with the templates")
    parser.add_argument(
        "--civitai", type=_index, default="https://civitai.com", metavar="URL", help="address of Civitai or a mirror"
    )
    _add_custom_nodes_group(parser)
    group = parser.add_argument_group("network")
    group.add_argument(
        "--endpoint", metavar="URL", help="address of the Hub or a mirror (default: HF_ENDPOINT, else the Hub)"
    )
    group.add_argument("--send-token", action="store_true", help="send the Hub's token to another --endpoint, too")
    group.add_argument("--allow-loopback", action="store_true", help="accept addresses of this machine, for tests")
    group.add_argument(
        "--offline", action="store_true", help="ask nobody: only what the manifests of klein-setup know is pinned"
    )
    parser.set_defaults(run="manifest from-workflow")


def _add_custom_nodes_group(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("custom nodes")
    group.add_argument(
        "--server", metavar="URL", help="a running ComfyUI, asked which nodes of an unknown pack it does not have"
    )
    group.add_argument(
        "--node-version",
        type=_node_version,
        action="append",
        default=[],
        metavar="ID=VERSION",
        help="the version or commit of a pack, instead of what the workflow says; may be repeated",
    )
    group.add_argument(
        "--node-registry",
        type=_index,
        default="https://api.comfy.org",
        metavar="URL",
        help="address of the Comfy registry or a mirror",
    )
    group.add_argument(
        "--github", type=_index, default="https://github.com", metavar="URL", help="address of GitHub or a mirror"
    )


def _node_version(text: str) -> tuple[str, str]:
    name, _, version = text.rpartition("=")
    if not name or not version:
        raise argparse.ArgumentTypeError("expected ID=VERSION, the version as a release or a commit of 40 hex digits")
    return name, version


def _digest(text: str) -> tuple[str, str]:
    name, _, sha256 = text.rpartition("=")
    if not name or len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef"):
        raise argparse.ArgumentTypeError("expected NAME=SHA256, the digest as 64 hex digits")
    return name.replace("\\", "/"), sha256.lower()


def add_attestation_parser(subparsers: Subparsers) -> None:
    """Add ``attestation``."""
    parser = _add(subparsers, "attestation", "verify what verify --attest --sign wrote, and show what it says")
    parser.add_argument("files", nargs="+", type=_path, metavar="FILE", help="the attestations, one of each machine")
    parser.add_argument(
        "--verify-with", type=_path, metavar="KEY", help="the public key that they have to be signed with"
    )
    parser.set_defaults(run="attestation")


def add_completion_parser(subparsers: Subparsers) -> None:
    """Add ``completion``."""
    parser = _add(subparsers, "completion", "print what completes this command in a shell, or its man page")
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "powershell", "man"), help="for what")
    parser.set_defaults(run="completion")


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        nargs="?",
        const="document",
        choices=("document", "events"),
        metavar="events",
        help="print one JSON document on stdout; with =events also every event as a line before it",
    )
    group.add_argument("-q", "--quiet", action="store_true", help="show only errors and the result")
    group.add_argument("-v", "--verbose", action="store_true", help="also show every notice, and the codes of errors")
    group.add_argument("--no-color", action="store_true", help="no colours (NO_COLOR does the same)")


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    group = _add_wanted_options(parser)
    group.add_argument(
        "--comfyui", type=_path, metavar="DIR", help="a ComfyUI folder, its models folder, or a new folder"
    )
    group.add_argument(
        "--hf-cache",
        nargs="?",
        type=_path,
        const=Path(),
        metavar="DIR",
        help="install into an HF cache (default: the user's own)",
    )
    group.add_argument(
        "--extra-model-paths",
        action="append",
        type=_path,
        default=[],
        metavar="FILE",
        help="another extra_model_paths.yaml, as given to ComfyUI's --extra-model-paths-config",
    )


class _Manifests(argparse.Action):
    """Collects what is named; one that comes from the user's own defaults counts only where nothing is."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, values: object, _option: object = None) -> None:
        """Add what was named to what was named before."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(before if isinstance(before, list) else []), values])


def _add_wanted_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("what and where")
    group.add_argument(
        "--manifest",
        type=_name,
        action=_Manifests,
        metavar="ID|FILE",
        help="manifest to use; several in one tree: once for each (default: flux2-klein-4b)",
    )
    _add_verify_with_option(group)
    group.add_argument(
        "--set",
        dest="set_id",
        metavar="ID",
        help="a set of the manifest (default: what is installed there, else auto: the first that suits this GPU)",
    )
    group.add_argument(
        "--look-in",
        action="append",
        type=_path,
        default=[],
        metavar="DIR",
        help="another folder to look for the same files in",
    )
    group.add_argument(
        "--follow-links",
        action="store_true",
        help="write, move and delete also behind folder links that lead out of DIR (default: ask once, and remember)",
    )
    return group


def _add_verify_with_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--verify-with",
        type=_path,
        metavar="KEY",
        help="accept only a lock that this public key signed, not expired and not older than the last one",
    )


def _add_lock_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lock-version",
        type=_lock_version,
        metavar="N",
        help="version of the lock; an older one is refused by --verify-with (default: 1 more than that of FILE)",
    )
    parser.add_argument(
        "--expires", type=_expiry, metavar="TIME", help="last day of the lock: a number of days like 90d, or a date"
    )
    _add_sign_option(parser, "write FILE.sig, the signature of the lock, with this private key (PEM, elliptic curve)")


def _add_sign_option(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--sign", type=_path, metavar="KEY", help=text)


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--endpoint", metavar="URL", help="address of the Hub or a mirror (default: HF_ENDPOINT, else the Hub)"
    )
    group.add_argument(
        "--registry",
        type=_registry,
        metavar="ADDRESS",
        help="OCI registry (HOST/NAME) or image layout (https://...) that is asked first for every model file",
    )
    group.add_argument(
        "--registry-only", action="store_true", help="take model files from --registry alone, and from no other host"
    )
    group.add_argument(
        "--send-token", action="store_true", help="send the Hub's token to another --endpoint, too (default: ask)"
    )
    group.add_argument(
        "--allow-loopback", action="store_true", help="accept addresses of this machine in a manifest, for tests"
    )
    group.add_argument(
        "--offline", action="store_true", help="use no network, not with git or pip either; what is missing is an error"
    )


def _registry(text: str) -> OciRepository:
    from provisioner.core.redact import redact
    from provisioner.oci.reference import parse_repository

    try:
        return parse_repository(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{redact(repr(text))} {error}") from error


def _bundle(text: str) -> Path | OciFile:
    from provisioner.core.redact import redact
    from provisioner.oci.reference import parse_reference

    if not text.lower().startswith("oci://"):
        return _path(text)
    try:
        return parse_reference(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{redact(repr(text))} {error}") from error


def _add_environment_folder(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--environment", type=_path, metavar="DIR", help="virtual environment (default: .venv in the ComfyUI folder)"
    )


def _add_answers(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "-y", "--yes", action="store_true", help="answer yes, except about licences, links and sending the token"
    )
    parser.add_argument("--no-input", action="store_true", help="ask nothing; what a person has to decide is an error")


def _add_pass_env_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pass-env",
        action="append",
        type=_variable,
        default=[],
        metavar="NAME",
        help="a variable to pass to ComfyUI, pip and git too; tokens and most others are not passed",
    )


def _add_from_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="from_bundle",
        type=_bundle,
        metavar="DIR|oci://...",
        help="take files, ComfyUI and wheels from this bundle alone; `bundle create` makes one",
    )


def _add_machine_option(parser: argparse.ArgumentParser, *, is_one: bool) -> None:
    parser.add_argument(
        "--machine",
        dest="for_machine",
        type=_path,
        action="store" if is_one else "append",
        nargs=1 if is_one else None,
        default=[],
        metavar="FILE",
        help="for another machine than this one: what `detect --json` wrote there"
        + ("" if is_one else "; may be given several times"),
    )


def _add_only_option(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--only",
        default=default,
        metavar="PARTS",
        help=f"only these parts: files, environment, smoke (default: {default or 'all of them'})",
    )


def _add_locked_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--locked", action="store_true", help="fail if this machine differs from the locked manifest")


def _add_comfyui_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("ComfyUI")
    group.add_argument(
        "--comfyui-source", type=_name, metavar="URL|DIR", help="get ComfyUI from a mirror or a local repository"
    )
    group.add_argument(
        "--update-comfyui", action="store_true", help="update an existing checkout to the pinned release"
    )
    _add_version_option(group)
    group.add_argument(
        "--custom-node",
        type=_name,
        action="append",
        default=[],
        metavar="ID",
        help="agree to a pack of custom nodes that the manifest pins: third-party code; may be repeated",
    )
    _add_server_option(group)


def _add_version_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--comfyui-version",
        type=_comfyui_version,
        metavar="VERSION|latest|pinned",
        help="the release of ComfyUI to install, or to move a checkout to: 0.46.0, latest, or pinned, the one that was "
        "verified with klein-setup (default: pinned, or the oldest one that loads the models)",
    )


def _comfyui_version(text: str) -> str:
    from provisioner.comfyui.which_release import parse_wanted_version
    from provisioner.core.redact import printable

    try:
        return parse_wanted_version(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{printable(text)!r} {error}") from error


def _add_server_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--server", metavar="URL", help="generate the image with a running ComfyUI; it is not stopped")


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("test image")
    group.add_argument("--prompt", metavar="TEXT", help="what the image shows")
    group.add_argument("--seed", type=_seed, metavar="N", help="to get the same image again (default: a random one)")
    group.add_argument(
        "--size", type=_image_size, metavar="WxH", help="size in pixels (default: 1024x1024, or the workflow's)"
    )
    group.add_argument(
        "--steps", type=_steps, metavar="N", help="steps of denoising (default: the set's or workflow's)"
    )
    group.add_argument("--tiled-decode", action="store_true", help="decode in tiles, for GPUs with little memory")
    group.add_argument("--reserve-vram", type=_gibibytes, metavar="GB", help="GPU memory to leave for other programs")
    group.add_argument(
        "--image", "--picture", type=_path, metavar="FILE", help="where to keep it (default: in the user's data folder)"
    )
    group.add_argument(
        "--images",
        type=_image_count,
        metavar="N",
        help="images by one server, each with another seed; the first is kept (default: 2, or 1 on a CPU)",
    )
    group.add_argument(
        "--smoke-timeout",
        type=_seconds,
        default=900.0,
        metavar="SECONDS",
        help="longest time for the image (default: 900)",
    )


def _add_comfyui_args_option(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--comfyui-args",
        default=default,
        metavar="OPTIONS|auto|URL",
        help='options for the ComfyUI that is started: "--use-sage-attention --fast"; auto: those of your launcher, or '
        f"of your ComfyUI if it runs; URL: those of the server there (default: {default or 'none'})",
    )


def _add_change_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to run")
    group.add_argument(
        "--connections", type=_connections, default=8, metavar="N", help="largest number of connections (default: 8)"
    )
    group.add_argument(
        "--limit-rate",
        type=_rate,
        metavar="RATE",
        help="largest rate in bytes per second, in total, for files, ComfyUI's archive and wheels: 10M, 500k; not for "
        "git, nor for a pip older than 25.3",
    )
    group.add_argument(
        "--stall-timeout",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="reopen a connection slower than 64 KiB/s for this long (default: 20)",
    )
    _add_answers(group)
    group.add_argument(
        "--accept-licence",
        action="append",
        type=_name,
        default=[],
        metavar="ID",
        help="accept a licence that does not allow commercial use; the plan and the question show its id",
    )
    group.add_argument("--no-wait", action="store_true", help="fail if another run is using this target")


def _name(text: str) -> str:
    if not text.strip():
        message = "the name is empty: was a variable of the shell not set?"
        raise argparse.ArgumentTypeError(message)
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


PATH_OPTIONS = frozenset(
    {
        "--attest",
        "--comfyui",
        "--environment",
        "--extra-model-paths",
        "--from",
        "--hf-cache",
        "--image",
        "--look-in",
        "--machine",
        "--metrics",
        "--expect",
        "--torrent",
        "--output",
        "--picture",
        "--python",
        "--sign",
        "--verify-with",
    }
)
"""The options whose value is a path."""


def absolute_paths(given: list[str]) -> list[str]:
    """Return arguments whose paths are absolute, so that they mean the same in any folder.

    >>> absolute_paths(["--comfyui", "/a/./b", "--set=fp8"])
    ['--comfyui', '/a/b', '--set=fp8']
    """
    words: list[str] = []
    for word in given:
        option, equals, value = word.partition("=")
        if words and not word.startswith("-"):
            words.append(_absolute_value(words[-1], word))
        else:
            words.append(f"{option}={_absolute_value(option, value)}" if equals else word)
    return words


def _absolute_value(option: str, value: str) -> str:
    """Return an option's value, a path as an absolute one; of a name or an address that may be one, if it is there."""
    path = Path(value).expanduser()
    if value.lower().startswith("oci://"):
        return value
    is_path = option in PATH_OPTIONS or (option in {"--manifest", "--comfyui-source"} and path.exists())
    return str(path.absolute()) if is_path else value


def _variable(text: str) -> str:
    if not text or "=" in text:
        message = f"{text!r} is not the name of a variable: name it alone, its value is taken from your environment"
        raise argparse.ArgumentTypeError(message)
    return text


def _lock_version(text: str) -> int:
    from provisioner.manifest.parse import LARGEST_LOCK_VERSION

    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:20]) <= LARGEST_LOCK_VERSION:
        message = f"{text!r} is not a whole number from 1 to {LARGEST_LOCK_VERSION}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _expiry(text: str) -> str:
    from provisioner.commands.signed_locks import day_after
    from provisioner.signing.lock_statement import parse_expiry

    try:
        return parse_expiry(text, day_after)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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


def _index(text: str) -> str:
    from provisioner.core.hosts import is_in_the_clear

    if is_in_the_clear(text):  # it may hold a password, and is not shown
        message = "http lets others on the network change what is installed; write it as https://"
        raise argparse.ArgumentTypeError(message)
    if ":" in text.partition("://")[2].partition("/")[0].rpartition("@")[0]:  # it is not shown
        message = "everybody on this computer can read a password here; write it into .netrc or a keyring"
        raise argparse.ArgumentTypeError(message)
    return text


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**64:
        message = f"{text!r} is not a seed from 0 to 18446744073709551615"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _image_count(text: str) -> int:
    if text.isdigit() and 1 <= int(text) <= 1000:
        return int(text)
    message = f"{text!r} is not a number of images from 1 to 1000"
    raise argparse.ArgumentTypeError(message)


def _steps(text: str) -> int:
    if text.isdigit() and 1 <= int(text) <= 4096:
        return int(text)
    message = f"{text!r} is not a number of steps from 1 to 4096"
    raise argparse.ArgumentTypeError(message)


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


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        message = f"{text!r} is not a port from 1 to 65535"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _peer(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or any(character in host for character in "/@ ,"):
        message = f"{text!r} is not HOST:PORT, like lab-1:6881"
        raise argparse.ArgumentTypeError(message)
    return host.strip("[]"), _port(port)


def _listen(text: str) -> str:
    import ipaddress

    host, port = _peer(text)
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        message = f"{text!r} is not ADDRESS:PORT with an address of this host, like 10.0.0.5:6881"
        raise argparse.ArgumentTypeError(message) from error
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _duration(text: str) -> int:
    """Return seconds: ``90s``, ``5m``, ``12h``, ``7d``."""
    number, unit = text[:-1], text[-1:]
    unit_s = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(unit)
    if unit_s is None or not (number.isascii() and number.isdecimal() and len(number) < 8 and int(number) > 0):
        message = f"{text!r} is not a time like 90s, 5m, 12h or 7d"
        raise argparse.ArgumentTypeError(message)
    return int(number) * unit_s


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
    "diagnose": add_diagnose_parser,
    "start": add_start_parser,
    "rehearse": add_rehearse_parser,
    "report": add_report_parser,
    "fleet": add_fleet_parser,
    "doctor": add_doctor_parser,
    "backups": add_backups_parser,
    "snapshot": add_snapshot_parser,
    "bundle": add_bundle_parser,
    "seed": add_seed_parser,
    "uninstall": add_uninstall_parser,
    "manifest": add_manifest_parser,
    "attestation": add_attestation_parser,
    "completion": add_completion_parser,
}
_ALIASES = {"aside": "backups"}
COMMANDS = (*_ADDERS, *_ALIASES)
