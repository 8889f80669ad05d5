"""Completion as the shells do it, with the files that the wheel ships."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner.cli.arguments import build_parser
from provisioner.cli.completion import FILES, FOLDER, read_completion
from scripts import make_completions
from tests.support.sandbox import Sandbox

BASH = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
read -ra COMP_WORDS <<< "$2"
[[ $2 == *' ' ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
command=$(complete -p klein-setup | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$command" klein-setup "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
WORDS = [
    ("klein-setup inst", {"install"}),
    ("klein-setup manifest sh", {"show"}),
    ("klein-setup verify --qui", {"--quick", "--quiet"}),
    ("klein-setup plan --set fp8-l", {"fp8-lean", "fp8-lightning"}),
    ("klein-setup completion power", {"powershell"}),
]


def said_by(shell: str, *arguments: str, cwd: Path) -> str:
    """Return what a shell prints that was started without the user's settings."""
    found = shutil.which(shell)
    if found is None or (shell == "bash" and sys.platform in {"win32", "darwin"}):  # bash of macOS is older than 4
        pytest.skip(f"no {shell} here")
    environ = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8", "XDG_CONFIG_HOME": str(cwd)}
    done = subprocess.run(
        [found, *arguments], cwd=cwd, env=environ, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", FILES.values())
def test_each_file_was_made_from_the_options_of_today(name: str) -> None:
    last = (FOLDER / name).read_text(encoding="utf-8").splitlines()[-1]
    assert last.endswith(make_completions.MADE_FROM + make_completions.digest()), (
        "run `nox -s completions`: an option was added, changed or removed"
    )


def test_another_option_is_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_completions.digest()
    parser = build_parser()
    parser.add_argument("--new")
    monkeypatch.setattr("scripts.make_completions.build_parser", lambda: parser)
    assert make_completions.digest() != before


@pytest.mark.parametrize(("line", "expected"), WORDS)
def test_bash_completes(tmp_path: Path, line: str, expected: set[str]) -> None:
    said = said_by("bash", "--norc", "-c", BASH, "bash", str(FOLDER / FILES["bash"]), line, cwd=tmp_path)
    assert set(said.split()) == expected


@pytest.mark.parametrize(("line", "expected"), WORDS)
def test_fish_completes(tmp_path: Path, line: str, expected: set[str]) -> None:
    script = 'source $argv[1]; complete --do-complete "$argv[2]"'
    said = said_by("fish", "--no-config", "-c", script, str(FOLDER / FILES["fish"]), line, cwd=tmp_path)
    assert {row.partition("\t")[0] for row in said.splitlines()} == expected


def test_zsh_loads_it_for_the_command(tmp_path: Path) -> None:
    script = (
        "fpath=($1 $fpath); autoload -Uz compinit; compinit -u -D; autoload +X _klein-setup; print $_comps[klein-setup]"
    )
    assert said_by("zsh", "-f", "-c", script, "zsh", str(FOLDER), cwd=tmp_path) == "_klein-setup\n"


@pytest.mark.parametrize("shell", FILES)
def test_the_command_prints_the_file_and_nothing_else(sandbox: Sandbox, shell: str) -> None:
    done = sandbox.run("completion", shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, read_completion(shell), "")
