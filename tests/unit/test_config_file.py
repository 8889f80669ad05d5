"""klein-setup.toml: the user's own defaults for options."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from provisioner.cli.arguments import build_parser
from provisioner.cli.config_file import KEYS, read_config, use_as_defaults
from provisioner.core.errors import UsageError

FULL = Path("/").absolute() / "models"  # on Windows with its drive


def parsed(tmp_path: Path, text: str, *given: str) -> argparse.Namespace:
    """Return what a command line means where a file has that text."""
    file = tmp_path / "klein-setup.toml"
    file.write_text(text, encoding="utf-8")
    parser = build_parser(given[0])
    use_as_defaults(parser, read_config(file), given)
    return parser.parse_args(given)


def refusal(tmp_path: Path, text: str, *given: str) -> str:
    """Return why a file is not taken, without its path."""
    with pytest.raises(UsageError) as raised:
        parsed(tmp_path, text, *(given or ("install",)))
    assert raised.value.hint
    return str(raised.value).removeprefix(str(tmp_path / "klein-setup.toml"))


def test_each_setting_is_an_option_with_a_value() -> None:
    parser = build_parser()
    commands = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction)).choices
    actions = {word: each for name in commands for each in commands[name]._actions for word in each.option_strings}
    assert all(actions[f"--{key}"].nargs != 0 for key in KEYS)


def test_settings_are_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    text = (
        f"connections = 4\nlimit-rate = '10M'\nlook-in = ['{FULL.as_posix()}']\nsize = '64x64'\nstall-timeout = 2.5\n"
    )
    found = parsed(tmp_path, text, "install")
    assert (found.connections, found.limit_rate, found.size) == (4, 10_000_000, (64, 64))
    assert (found.look_in, found.stall_timeout) == ([FULL], 2.5)
    found = parsed(tmp_path, text, "install", "--connections", "2", "--look-in", "other")
    assert (found.connections, found.look_in) == (2, [FULL, Path("other")])
    assert not hasattr(parsed(tmp_path, text, "verify"), "connections")  # it has no such option


def test_a_setting_reaches_the_actions_of_a_command(tmp_path: Path) -> None:
    assert parsed(tmp_path, f"comfyui = '{FULL.as_posix()}'", "backups", "list").comfyui == FULL
    assert parsed(tmp_path, "comfyui = '~/ComfyUI'", "plan").comfyui == Path.home() / "ComfyUI"


@pytest.mark.parametrize(
    ("setting", "given", "comfyui", "hf_cache", "set_id"),
    [
        ("comfyui", (), FULL, None, "fp8"),
        ("comfyui", ("--comfyui=x",), Path("x"), None, "fp8"),
        ("comfyui", ("--hf-cache",), None, Path(), None),
        ("hf-cache", (), None, FULL, "fp8"),
        ("hf-cache", ("--comfyui", "x"), Path("x"), None, None),
        ("comfyui", ("--manifest", "flux2-klein-9b"), FULL, None, None),
    ],
)
def test_what_belongs_to_another_choice_does_not_count(
    tmp_path: Path,
    setting: str,
    given: tuple[str, ...],
    comfyui: Path | None,
    hf_cache: Path | None,
    set_id: str | None,
) -> None:
    found = parsed(tmp_path, f"{setting} = '{FULL.as_posix()}'\nset = 'fp8'", "plan", *given)
    assert (found.comfyui, found.hf_cache, found.set_id) == (comfyui, hf_cache, set_id)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# mine\n\nconections = 3", ":3: conections is not a setting. Did you mean connections? Expected one of: "),
        ("limit_rate = 3", ":1: limit_rate is not a setting. Did you mean limit-rate?"),
        ("yes = true", ":1: yes is not a setting. Expected one of"),
        ("accept-licence = ['x']", ":1: accept-licence is not a setting."),
        ("[install]\nset = 'fp8'", ":1: install is not a setting."),
        ("set = 'a'\n[torch]", ":2: torch is neither a text nor a number; expected one of them."),
        ("connections = true", ":1: connections is neither a text nor a number"),
        ("look-in = 'x'", ":1: look-in is no list of texts; expected one"),
        ("look-in = [3]", ":1: look-in is no list of texts; expected one"),
        ("connections = 99", ":1: connections is wrong: '99' is not a number of connections from 1 to 32."),
        ("torch-index = 'http://mirror.example'", ":1: torch-index is wrong: http lets others"),
        ("comfyui = 'ComfyUI'", ":1: comfyui is 'ComfyUI', which means another place in each folder; expected a full"),
        ("set = ", " is not valid TOML: "),
        ("set = 'a'\nset = 'b'", " is not valid TOML: "),
        ("x" * 65_537, " is longer than 65536 bytes."),
        ("comfyui = '~/a'\nhf-cache = '~/b'", ":2: hf-cache names a second target beside comfyui"),
    ],
)
def test_what_is_not_understood_is_an_error_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    assert refusal(tmp_path, text).startswith(complaint)


@pytest.mark.parametrize(
    "text",
    [
        "hf-token = 'SECRET'",
        "token = 1",
        "endpoint = 'https://user:SECRET@mirror.example'",
        f"manifest = 'hf_{'SECRET' * 6}'",
        f"x = {{y = ['hf_{'SECRET' * 6}']}}",
    ],
)
def test_a_token_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    said = refusal(tmp_path, text)
    assert "holds a token or a password" in said
    assert "SECRET" not in said


def test_what_is_no_text_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "klein-setup.toml"
    file.write_bytes(b"set = '\xff'")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_config(file)
    with pytest.raises(UsageError, match="is not a regular file"):
        read_config(tmp_path)
    with pytest.raises(
        UsageError, match=r"cannot be read: (No such file|The system cannot find the file|File not found)"
    ):
        read_config(tmp_path / "none")
