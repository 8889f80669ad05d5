"""What the command line is read as."""

from __future__ import annotations

import pytest

from provisioner.cli.arguments import build_parser


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
