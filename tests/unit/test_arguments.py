"""What the command line is read as."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from provisioner.cli.arguments import build_parser
from provisioner.core.errors import UsageError


@pytest.mark.parametrize(
    ("command", "name", "earlier", "values"),
    [
        ("smoke-test", "--image", "--picture", ["fox.png"]),
        ("install", "--image", "--picture", ["fox.png"]),
        ("rehearse", "--no-image", "--no-picture", []),
    ],
)
def test_the_earlier_name_of_an_option_still_works(command: str, name: str, earlier: str, values: list[str]) -> None:
    parsed = [build_parser(command).parse_args([command, word, *values]) for word in (name, earlier)]
    assert parsed[0] == parsed[1] != build_parser(command).parse_args([command])


@pytest.mark.parametrize(
    ("short", "long"), [("-y", "--yes"), ("-q", "--quiet"), ("-v", "--verbose"), ("-qvy", "--quiet --verbose --yes")]
)
def test_the_usual_letters_stand_for_the_usual_options(short: str, long: str) -> None:
    parsed = [build_parser("install").parse_args(["install", *words.split()]) for words in (short, long)]
    assert parsed[0] == parsed[1] != build_parser("install").parse_args(["install"])


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("instal", "There is no command 'instal'. Did you mean install?", "Run `klein-setup --help`"),
        ("manifest shwo", "There is no command 'shwo'. Did you mean show?", "Run `klein-setup manifest --help`"),
        ("nothing-alike", "There is no command 'nothing-alike'.", "Run `klein-setup --help`"),
        ("plan --comfui=hf_secret", "plan has no option --comfui. Did you mean --comfyui?", "klein-setup plan --help"),
        ("backups clear --Yes", "backups clear has no option --Yes. Did you mean --yes?", "backups clear --help"),
        ("plan -x", "plan has no option -x.", "Run `klein-setup plan --help`"),
        ("plan here", "Unexpected argument 'here'.", "Run `klein-setup plan --help`"),
        (
            "detect --app comfui",
            "--app cannot be 'comfui'. Did you mean comfyui?",
            "Choose one of: comfyui, diffusers.",
        ),
    ],
)
def test_a_slip_is_answered_with_what_was_probably_meant(given: str, message: str, hint: str) -> None:
    words = given.split()
    with pytest.raises(UsageError) as raised:
        build_parser(words[0]).parse_args(words)
    assert str(raised.value) == message
    assert raised.value.hint is not None
    assert hint in raised.value.hint


def epilog_of(command: str) -> str:
    """Return the text below the options of a command."""
    parser = build_parser(command)
    action = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return action.choices[command].epilog or ""


def test_every_help_has_examples_that_can_be_parsed() -> None:
    for command in ("install", "plan", "verify", "repair", "smoke-test", "uninstall"):
        lines = [line.strip() for line in epilog_of(command).splitlines()[1:]]
        assert lines
        for line in lines:
            words = shlex.split(re.split("  +| > ", line)[0])
            assert words[0] == "klein-setup"
            assert build_parser().parse_args(words[1:]).command == command
