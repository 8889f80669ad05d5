"""Commands that are shown can be pasted: the name, the shell's quotes, absolute paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provisioner.cli.arguments import PATH_OPTIONS, absolute_paths, build_parser
from provisioner.cli.started_as import started_as
from provisioner.core.program import Program, Shell, quoted


@pytest.mark.parametrize(
    ("word", "shell", "text"),
    [
        ("/my models/it's", "posix", "'/my models/it'\"'\"'s'"),
        ("D:\\AI\\ComfyUI", "cmd", "D:\\AI\\ComfyUI"),
        ("C:\\My Models\\it's", "cmd", '"C:\\My Models\\it\'s"'),
        ("D:\\AI\\ComfyUI", "powershell", "D:\\AI\\ComfyUI"),
        ("C:\\$Home\\it's", "powershell", "'C:\\$Home\\it''s'"),
        ("", "cmd", '""'),
        ("", "powershell", "''"),
    ],
)
def test_a_word_is_quoted_for_its_shell(word: str, shell: Shell, text: str) -> None:
    assert quoted(word, shell) == text


def test_commands_in_a_text_are_written_as_the_program_was_started() -> None:
    program = Program("python3 '/my checkout/scripts/klein_setup.py'")
    text = "klein-setup did not make it. Run `klein-setup repair`."
    assert program.as_started(text) == (
        "klein-setup did not make it. Run `python3 '/my checkout/scripts/klein_setup.py' repair`."
    )
    assert Program().as_started(text) == text


def started(argv0: str, prefix: str, *, is_windows: bool = False, **environ: str) -> str:
    return started_as(argv0, prefix=prefix, executable="/opt/py thon", environ=environ, is_windows=is_windows).name


@pytest.mark.skipif(os.name == "nt", reason="the paths are those of POSIX")
def test_each_way_to_start_it_has_its_words(tmp_path: Path) -> None:
    main = "/c/provisioner/__main__.py"
    script = "'/my c/scripts/klein_setup.py'"
    assert started(main, "/my c/.klein-setup-env/linux-1") == f"python3 {script}"
    assert started(main, "/my c/.klein-setup-env/win-1", is_windows=True, PROMPT="$P$G") == (
        'python "/my c/scripts/klein_setup.py"'
    )
    assert started(main, "/venv") == "'/opt/py thon' -m provisioner"
    assert started(main, "/venv", is_windows=True) == "& '/opt/py thon' -m provisioner"
    uvx = "/home/u/.cache/uv/archive-v0/x1"
    assert started(f"{uvx}/bin/klein-setup", uvx) == "uvx klein-setup"
    assert started("/home/u/.cache/pipx/1/bin/klein-setup", "/home/u/.cache/pipx/1") == "pipx run klein-setup"
    tool = tmp_path / "my tools" / "klein-setup"
    tool.parent.mkdir()
    tool.touch()
    assert started(str(tool), "/venv", PATH=f"/nowhere:{tool.parent}") == "klein-setup"
    assert started(str(tool), "/venv", PATH="/nowhere") == f"'{tool}'"
    other = tmp_path / "other" / "klein-setup"
    other.parent.mkdir()
    other.touch()
    assert started(str(tool), "/venv", PATH=f"{other.parent}:{tool.parent}") == f"'{tool}'"
    assert started("pytest", "/venv") == "klein-setup"


def test_paths_in_the_arguments_become_absolute() -> None:
    here = Path.cwd()
    given = ["--comfyui", "tree", "--set", "tree", "--look-in=a", "--hf-cache", "--json"]
    assert absolute_paths(given) == [
        "--comfyui",
        str(here / "tree"),
        "--set",
        "tree",
        f"--look-in={here / 'a'}",
        "--hf-cache",
        "--json",
    ]


def test_a_manifest_or_a_source_of_comfyui_is_a_path_where_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    given = ["--manifest", "mine.yaml", "--comfyui-source=mine.yaml", "--set=fp8", "--manifest", "flux2-klein-4b"]
    found = str(tmp_path / "mine.yaml")
    assert absolute_paths(given) == [
        "--manifest",
        found,
        f"--comfyui-source={found}",
        "--set=fp8",
        "--manifest",
        "flux2-klein-4b",
    ]


def test_every_option_that_takes_a_path_is_known() -> None:
    parsers = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    taking = set()
    for parser in parsers.values():  # type: ignore[union-attr]
        for action in parser._actions:
            if action.option_strings and getattr(action.type, "__name__", "") == "_path":
                taking.update(action.option_strings)
    assert taking <= PATH_OPTIONS
    assert {"--comfyui", "--picture"} <= taking
