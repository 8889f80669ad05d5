#!/usr/bin/env python3
"""Write ``provisioner/cli/shell/``: what completes the command in four shells, and its man page; ``--check`` compares.

shtab and argparse-manpage (of the group "release") write them from the parser itself, and the wheel ships them: so the
program needs neither library, and completion starts no Python.  The last line of each file holds the digest of the
parser it was made from, which a test compares without the libraries.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from provisioner.cli.arguments import build_parser  # noqa: E402 - found through the line above when run as a script
from provisioner.cli.completion import FILES, FOLDER  # noqa: E402
from provisioner.files.choose_set import AUTO  # noqa: E402
from provisioner.manifest.parse import parse_manifest  # noqa: E402
from provisioner.manifest.shipped import read_manifest_text, shipped_manifests  # noqa: E402

MADE_FROM = "made by scripts/make_completions.py from the options with the digest "


def described(parser: argparse.ArgumentParser) -> Iterator[list[object]]:
    """Yield everything of a parser that can be seen in its completion or its manual."""
    yield [parser.prog, parser.description, parser.epilog]
    for action in parser._actions:
        choices = sorted(action.choices) if action.choices else None
        yield [list(action.option_strings), action.dest, action.help, action.metavar, str(action.nargs), choices]
        if isinstance(action, argparse._SubParsersAction):
            yield [[each.dest, each.help] for each in action._choices_actions]
            for each in dict.fromkeys(action.choices.values()):
                yield from described(each)


def digest() -> str:
    """Return what changes with the options: a SHA-256 in hex."""
    return hashlib.sha256(json.dumps([*described(build_parser()), set_ids()]).encode()).hexdigest()


def set_ids() -> list[str]:
    """Return the ids of the sets of every shipped manifest."""
    found: dict[str, None] = {}
    for name in shipped_manifests():
        text, file = read_manifest_text(name)
        found |= dict.fromkeys(each.id for each in parse_manifest(text, file=file).sets)
    return [*found, AUTO]


def completing_parser() -> argparse.ArgumentParser:
    """Return the parser with what its values may be completed with."""
    import shtab

    def improve(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for each in dict.fromkeys(action.choices.values()):
                    improve(each)
            elif action.metavar in {"DIR", "URL|DIR"}:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.metavar in {"FILE", "ID|FILE"}:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif "--set" in action.option_strings:
                action.choices = set_ids()

    parser = build_parser()
    improve(parser)
    return parser


def made() -> dict[str, str]:
    """Return the text of each file by its name."""
    import shtab
    from argparse_manpage.manpage import Manpage

    os.environ["COLUMNS"] = "80"  # wherever it is made
    page = Manpage(build_parser())
    page.description = "install and verify everything needed to run FLUX.2 [klein]"
    page.date, page.source, page.manual = "", "klein-setup", "klein-setup"
    texts = {FILES["man"]: f'{str(page).rstrip()}\n.\\" {MADE_FROM}{digest()}\n'}
    for shell, name in FILES.items():
        if shell != "man":
            texts[name] = f"{shtab.complete(completing_parser(), shell).rstrip()}\n\n# {MADE_FROM}{digest()}\n"
    return texts


def main() -> int:
    """Write the files, or name those that differ; return 1 if any does."""
    parser = argparse.ArgumentParser(description="Write what completes the command in shells, and its man page.")
    parser.add_argument("--check", action="store_true", help="only name the files that differ")
    is_check = parser.parse_args().check
    stale = []
    for name, text in made().items():
        path = FOLDER / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not is_check:
                path.write_text(text, encoding="utf-8", newline="\n")
    for name in stale:
        print(f"{name} {'differs' if is_check else 'written'}")
    return 1 if stale and is_check else 0


if __name__ == "__main__":
    sys.exit(main())
