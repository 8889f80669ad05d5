"""The user's own options for ComfyUI: how they are split, which are taken, and what a launcher's records say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from provisioner.comfyui.batch_files import BatchFile
from provisioner.comfyui.recorded_flags import of_running_server, recorded_flags
from provisioner.comfyui.server.failures import rejected_options_error
from provisioner.comfyui.users_flags import (
    UsersFlags,
    found_flags,
    known_options,
    node_options,
    options_of,
    split_line,
    typed_flags,
    without_node_options,
)
from provisioner.core.errors import UsageError
from provisioner.core.models import OperatingSystem

HOME = Path("/home/me")


@pytest.mark.parametrize(
    ("text", "is_windows", "words"),
    [
        ("", False, ()),
        ("--use-sage-attention --fast", False, ("--use-sage-attention", "--fast")),
        ("--x 'my models' --y \"a b\" --z a\\ b", False, ("--x", "my models", "--y", "a b", "--z", "a b")),
        ("--x $(rm) `x` ; y", False, ("--x", "$(rm)", "`x`", ";", "y")),  # nothing is expanded or run
        (r'--x "D:\my models" --y D:\a\b', True, ("--x", r"D:\my models", "--y", r"D:\a\b")),
        (r'--x "D:\a\\" --y', True, ("--x", "D:\\a\\", "--y")),
        (r'--x "say \"hi\"" \\server\x', True, ("--x", 'say "hi"', r"\\server\x")),
        ('--x ""', True, ("--x", "")),
        ("--x 'a b'", True, ("--x", "'a", "b'")),  # quotes of a shell are none on Windows
        (" \t ", True, ()),
    ],
)
def test_a_line_is_split_as_its_system_does(text: str, is_windows: bool, words: tuple[str, ...]) -> None:
    assert split_line(text, is_windows=is_windows) == words


@pytest.mark.parametrize(("text", "is_windows"), [("--x 'a", False), ('--x "a', True), ("x" * 9000, False)])
def test_a_line_that_cannot_be_split_is_a_usage_error(text: str, is_windows: bool) -> None:
    with pytest.raises(UsageError):
        split_line(text, is_windows=is_windows)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--port 8189", "--port cannot be given in --comfyui-args: klein-setup sets where the test server listens"),
        ("--fast --listen=0.0.0.0", "--listen cannot be given"),
        ("--output-dir x", "stands for --output-directory"),  # argparse takes the beginning of an option
        ("--user-directory x", "where the test server writes"),
        ("--base-directory /x", "--comfyui DIR"),
        ("--help", "it ends ComfyUI before an image is made"),
        ("fast", "'fast' is no option of ComfyUI"),
        ("-- --fast", "'--' is no option of ComfyUI"),
    ],
)
def test_what_klein_setup_sets_itself_is_refused_where_it_was_typed(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        typed_flags(text, is_windows=False)
    assert said in str(error.value)
    assert error.value.hint


def test_what_was_typed_is_passed_on_as_it_stands() -> None:
    flags = typed_flags("--fast fp16_accumulation --reserve-vram -1 --disable-dynamic-vram", is_windows=False)
    assert flags.words == ("--fast", "fp16_accumulation", "--reserve-vram", "-1", "--disable-dynamic-vram")
    assert flags.options == (("--fast", "fp16_accumulation"), ("--reserve-vram", "-1"), ("--disable-dynamic-vram",))


def test_a_secret_in_an_option_is_never_shown() -> None:
    flags = UsersFlags(words=("--api-key", "not-for-you", "--a-token=nor-this", "--url", "https://u:pw@h/?q=s", "--x"))
    assert flags.shown == "--api-key *** --a-token=*** --url https://h/ --x"
    assert flags.secrets == ("not-for-you", "nor-this")
    assert UsersFlags(words=("--fast", "a")).secrets == ()


def test_what_was_found_goes_without_what_klein_setup_sets() -> None:
    found = found_flags(["main.py", "--port=1", "--fast", "a", "--verbose", "DEBUG", "x.log", "--port", "2"], "x.bat")
    assert (found.words, found.left_out, found.origin) == (("--fast", "a"), ("--port", "--verbose"), "x.bat")


def test_options_about_custom_nodes_are_apart() -> None:
    assert without_node_options(("--fast", "--whitelist-custom-nodes", "a")) == (("--fast",), None)  # nothing is off
    words = ("--disable-all-custom-nodes", "--whitelist-custom-nodes=x", "--cpu", "--whitelist-custom-nodes", "a", "b")
    assert without_node_options(words) == (("--cpu",), ("a", "b"))  # the last one counts
    assert without_node_options(("--disable-all-custom-nodes",)) == ((), ())
    one = ("--disable-all-custom-nodes", "--whitelist-custom-nodes=x")
    assert without_node_options(one) == ((), ("x",))
    for nodes in (None, (), ("a", "b.py")):
        assert without_node_options(node_options(nodes)) == ((), nodes)


def test_the_options_of_a_release_are_read_from_its_source() -> None:
    source = 'p.add_argument("--cpu-vae", action="store_true")\np.add_argument(\n    "--front-end",\n    type=str)\n'
    assert known_options(source) == {"--cpu-vae", "--front-end"}
    assert known_options("") == frozenset()
    assert options_of([]) == ()


# --- launchers ---------------------------------------------------------------------------------


def found_in(
    records: Mapping[str, object],
    tree: str,
    system: OperatingSystem = "linux",
    batch_files: tuple[BatchFile, ...] = (),
) -> UsersFlags | None:
    texts = {Path(path): each if isinstance(each, str) else json.dumps(each) for path, each in records.items()}
    return recorded_flags(lambda path: texts.get(path), Path(tree), HOME, {}, system, batch_files)


def test_nothing_is_known_of_a_tree_without_a_launcher() -> None:
    assert found_in({}, "/opt/ComfyUI") is None
    assert found_in({}, "/") is None


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["run_cpu.bat", "run_nvidia_gpu.bat", "run_nvidia_gpu_fast.bat"], "run_nvidia_gpu.bat"),
        (["Run_CPU.bat", "run_amd_gpu.bat"], "Run_CPU.bat"),
        (["mine.bat", "run_nvidia_gpu.bat"], "mine.bat"),  # somebody made it
    ],
)
def test_of_several_batch_files_the_users_own_counts_then_the_usual_one(names: list[str], chosen: str) -> None:
    files = tuple(BatchFile(name, ("--windows-standalone-build", "--fast")) for name in names)
    found = found_in({}, "/p/ComfyUI", batch_files=files)
    assert found == UsersFlags(words=("--fast",), origin=chosen, left_out=("--windows-standalone-build",))


def test_comfy_desktop_keeps_one_line_for_each_installation() -> None:
    file = "/home/me/.local/share/comfyui-desktop-2/installations.json"
    records = [
        {"installPath": "/other", "launchArgs": "--cpu"},
        {"installPath": "/mine", "launchArgs": "--fast --x 'a b' --port 8000", "sourceId": "standalone"},
    ]
    found = found_in({file: records}, "/mine/ComfyUI")
    assert found is not None
    assert (found.words, found.left_out) == (("--fast", "--x", "a b"), ("--port",))
    assert found.origin == "the settings of Comfy Desktop"
    for record in (
        {"installPath": "/mine"},
        {"installPath": "/mine", "launchArgs": 7},
    ):
        assert found_in({file: [record]}, "/mine/ComfyUI") == UsersFlags(origin="the settings of Comfy Desktop")
    for other in ({"installPath": "/mine", "sourceId": "cloud"}, {"installPath": 3}, 5):
        assert found_in({file: [other]}, "/mine/ComfyUI") is None
    assert found_in({file: [{"installPath": "/mine", "launchArgs": "'open"}]}, "/mine/ComfyUI") is None


def test_comfy_desktop_on_windows_writes_backslashes() -> None:
    file = "/home/me/AppData/Roaming/Comfy Desktop/installations.json"
    found = found_in({file: [{"installPath": "C:\\Mine", "launchArgs": "--fast"}]}, "c:/mine/ComfyUI", "windows")
    assert found is not None
    assert found.words == ("--fast",)


def test_the_older_desktop_has_an_object_of_options() -> None:
    settings = {
        "Comfy.Server.LaunchArgs": {"fast": "", "reserve-vram": "2", "listen": "x"},
        "Comfy.Server.ServerConfigValues": {"reserve-vram": 1, "cpu-vae": True, "preview-size": None},
    }
    found = found_in({"/t/user/default/comfy.settings.json": settings}, "/t")
    assert found is not None
    assert found.words == ("--reserve-vram", "2", "--cpu-vae", "--fast")
    assert found.left_out == ("--listen",)
    assert found_in({"/t/user/default/comfy.settings.json": {"Comfy.Locale": "de"}}, "/t") is None
    assert found_in({"/t/user/default/comfy.settings.json": "no json"}, "/t") is None


def test_stability_matrix_has_a_list_of_options() -> None:
    package = {
        "PackageName": "ComfyUI",
        "LibraryPath": "Packages\\ComfyUI",
        "LaunchArgs": [
            {"Name": "--fast", "Type": "Bool", "OptionValue": True},
            {"Name": "--cpu", "Type": "Bool", "OptionValue": False},
            {"Name": "--reserve-vram", "Type": "String", "OptionValue": "0.9"},
            {"Name": "--port", "Type": "String", "OptionValue": ""},
            {"Name": "", "Type": "String", "OptionValue": "--x 'a b'"},
            {"Name": "", "Type": "String", "OptionValue": "'open"},
            "nonsense",
        ],
    }
    settings = {"InstalledPackages": [{"LibraryPath": 3}, {"LibraryPath": "Packages/Other"}, package]}
    found = found_in({"/lib/settings.json": settings}, "/lib/Packages/ComfyUI", "windows")
    assert found is not None
    assert found.words == ("--fast", "--reserve-vram", "0.9", "--x", "'a", "b'", "'open")
    package["LibraryPath"] = "Packages/ComfyUI"
    found = found_in({"/lib/settings.json": settings}, "/lib/Packages/ComfyUI", "linux")
    assert found is not None
    assert found.words == ("--fast", "--reserve-vram", "0.9", "--x", "a b")
    assert found_in({"/lib/settings.json": settings}, "/lib/Packages/Another") is None


FDS = """\
0:
\ttype: swarmswarm
\tenabled: true
1:
# a comment
\ttype: comfyui_selfstart
\tenabled: {enabled}
\tsettings:
\t\tStartScript: dlbackend/comfy/ComfyUI/main.py
\t\tDisableInternalArgs: {disabled}
\t\tExtraArgs: {extra}
"""


@pytest.mark.parametrize(
    ("enabled", "disabled", "extra", "words"),
    [
        ("true", "false", "--lowvram --port 1", ("--fast", "fp16_accumulation", "cublas_ops", "--lowvram")),
        ("true", "true", "--lowvram", ("--lowvram",)),
        ("true", "false", "--fast --x", ("--fast", "--x")),
        ("false", "false", "--lowvram", None),
        ("true", "false", "'open", None),
    ],
)
def test_swarmui_adds_options_of_its_own(enabled: str, disabled: str, extra: str, words: tuple[str, ...]) -> None:
    text = FDS.format(enabled=enabled, disabled=disabled, extra=extra)
    found = found_in({"/s/Data/Backends.fds": text}, "/s/dlbackend/comfy/ComfyUI")
    assert (None if found is None else found.words) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('message: ["python main.py --fast", "x"]', ("--fast",)),
        ('message: [\'python3 app/main.py {{platform === "win32" ? "--directml" : ""}} --lowvram\']', ("--lowvram",)),
        ("message: [`python main.py ${args} --cpu`]", ("--cpu",)),
        ('message: ["node server.js"]', None),
        ('message: ["python main.py \\"]', None),
    ],
)
def test_pinokios_script_is_read_and_not_run(line: str, words: tuple[str, ...] | None) -> None:
    found = found_in({"/p/start.js": f"module.exports = {{ run: [{{ {line} }}] }}"}, "/p/app")
    assert (None if found is None else found.words) == words


def test_a_server_that_reports_no_command_line_says_nothing() -> None:
    assert of_running_server((), "http://127.0.0.1:8188") is None


# --- options that this release does not take -----------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said", "names"),
    [
        (
            "main.py: error: unrecognized arguments: --use-sage-atention",
            "ComfyUI 0.33.0 has no option --use-sage-atention, which stands in run.bat. Did you mean "
            "--use-sage-attention?",
            ["--use-sage-atention"],
        ),
        (
            "main.py: error: unrecognized arguments: --a --b=not-shown x",
            "ComfyUI 0.33.0 has no option --a and --b, which stands in run.bat.",
            ["--a", "--b"],
        ),
        ("main.py: error: unrecognized arguments: word", "has no option word", ["word"]),
        (
            "main.py: error: argument --cpu/--x: not allowed with argument --gpu-only",
            "ComfyUI 0.33.0 does not take --cpu as it stands in run.bat: not allowed with argument --gpu-only.",
            ["--cpu"],
        ),
        ("something else", "ComfyUI 0.33.0 does not take the options of run.bat.", None),
    ],
)
def test_an_option_that_a_release_lacks_is_named_with_the_release(
    line: str, said: str, names: list[str] | None
) -> None:
    error = rejected_options_error(
        ["usage: main.py", line], version="0.33.0", origin="run.bat", known=["--use-sage-attention"], log_path="x"
    )
    assert said in str(error)
    assert (error.context["cause"], error.context.get("flags")) == ("unknown-option", names)


def test_a_release_without_a_number_is_only_comfyui() -> None:
    assert str(rejected_options_error([], version=None, origin="x", known=(), log_path="")).startswith("ComfyUI does")
