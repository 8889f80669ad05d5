"""``smoke-test --comfyui-args``: a stand-in for ComfyUI that refuses what it does not know, as argparse does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.builders import recording_of
from tests.support.comfy_server import ReplayServer
from tests.support.sandbox import Sandbox
from tests.support.setup_fixture import main_py, rtx_4070, with_existing_tree

SMALL = ("--size", "256x256")
KNOWN = ("--fast", "--use-sage-attention", "--disable-dynamic-vram")
REFUSING = f"""import sys
known = {KNOWN!r}
ours = ("--listen", "--port", "--disable-auto-launch", "--output-directory", "--user-directory", "--temp-directory",
    "--database-url", "--cpu")
unknown = [each for each in sys.argv if each.startswith("--") and each not in known + ours]
if unknown:
    print("usage: main.py [-h]\\nmain.py: error: unrecognized arguments: " + " ".join(unknown), file=sys.stderr)
    raise SystemExit(2)"""
CLI_ARGS = "".join(f'parser.add_argument("{each}", action="store_true")\n' for each in KNOWN)


@pytest.fixture(scope="module")
def sandbox(make_sandbox: Callable[[], Sandbox]) -> Sandbox:
    sandbox = with_existing_tree(make_sandbox())
    (sandbox.tree / "main.py").write_text(main_py(before=REFUSING), encoding="utf-8")
    (sandbox.tree / "comfy").mkdir(exist_ok=True)
    (sandbox.tree / "comfy" / "cli_args.py").write_text(CLI_ARGS, encoding="utf-8")
    return sandbox


def test_comfyui_gets_the_options_that_were_typed_and_the_test_says_so(sandbox: Sandbox) -> None:
    done = sandbox.run("smoke-test", "--json", "--comfyui-args", "--use-sage-attention --fast", *SMALL)
    assert done.returncode == 0, done.stderr
    told = done.json["details"]["smoke_test"]["started_with"]
    assert told["flags"][-2:] == ["--use-sage-attention", "--fast"]
    assert (told["flags_from"], told["left_out"]) == ("--comfyui-args", [])
    shown = sandbox.run("smoke-test", "--comfyui-args", "--fast", *SMALL)  # one word, which argparse takes for ours
    assert "--fast (from --comfyui-args)" in shown.said
    page = sandbox.run("report")
    assert page.returncode == 0
    text = next((sandbox.home / "state").rglob("*.html")).read_text(encoding="utf-8")
    assert "--fast (from --comfyui-args)" in text


def test_what_avoids_a_known_failure_is_no_part_of_the_users_own_conditions(sandbox: Sandbox, tmp_path: Path) -> None:
    in_wsl = tmp_path / "machine.json"
    in_wsl.write_text(recording_of(rtx_4070(is_wsl=True)), encoding="utf-8")
    avoided = [
        "--disable-dynamic-vram" in sandbox.run(*words, *SMALL, env={"KLEIN_SETUP_MACHINE": str(in_wsl)}).said
        for words in (["smoke-test"], ["smoke-test", "--comfyui-args", "--fast"])
    ]
    assert avoided == [True, False]


def test_an_option_that_comfyui_does_not_know_is_named_with_its_release(sandbox: Sandbox) -> None:
    done = sandbox.run("smoke-test", "--json", "--comfyui-args", "--use-sage-atention --api-key hush-hush-hush", *SMALL)
    assert done.returncode == 9
    error = done.json["errors"][0]
    assert error["message"] == (
        "ComfyUI 0.33.0 has no option --use-sage-atention and --api-key, which stands in --comfyui-args."
    )
    assert error["context"]["flags"] == ["--use-sage-atention", "--api-key"]
    assert "hush-hush" not in done.stdout + done.stderr
    one = sandbox.run("smoke-test", "--comfyui-args", "--use-sage-atention", *SMALL)
    assert "Did you mean --use-sage-attention?" in one.said


@pytest.mark.parametrize("words", [("--port 8189",), ("--fast", "--server", "http://127.0.0.1:1")])
def test_what_cannot_be_given_is_a_usage_error(sandbox: Sandbox, words: tuple[str, ...]) -> None:
    done = sandbox.run("smoke-test", "--comfyui-args", *words, *SMALL)
    assert done.returncode == 2, done.said


@pytest.mark.skipif(os.name == "nt", reason="the record of another system lies elsewhere")
def test_the_launchers_options_are_offered_and_taken_when_asked_for(sandbox: Sandbox) -> None:
    record = sandbox.home / ".local" / "share" / "comfyui-desktop-2" / "installations.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    tree = sandbox.tree
    installed = tree.rename(tree.with_name("ComfyUI")) if tree.name != "ComfyUI" else tree
    entry = {"installPath": str(installed.parent), "launchArgs": "--port 8000 --fast", "sourceId": "standalone"}
    record.write_text(json.dumps([entry]), encoding="utf-8")
    env = {"XDG_DATA_HOME": str(record.parents[1])}
    try:
        offered = sandbox.run("smoke-test", "--comfyui", installed, *SMALL, env=env)
        taken = sandbox.run("smoke-test", "--comfyui", installed, "--json", "--comfyui-args", "auto", *SMALL, env=env)
    finally:
        record.unlink()
        installed.rename(tree)
    assert "Here ComfyUI is started with --fast (from the settings of Comfy Desktop)" in offered.said
    assert "--comfyui-args auto" in offered.said
    told = taken.json["details"]["smoke_test"]["started_with"]
    assert told["flags"][-1] == "--fast"
    assert (told["flags_from"], told["left_out"]) == ("the settings of Comfy Desktop", ["--port"])


def test_a_server_that_runs_lends_its_options(sandbox: Sandbox, tmp_path: Path) -> None:
    argv = ["main.py", "--listen", "0.0.0.0", "--fast"]  # noqa: S104 - a command line
    with ReplayServer(folder=sandbox.tree, argv=argv) as server:
        lent = sandbox.run("smoke-test", "--json", "--comfyui-args", server.url, *SMALL)
        itself = sandbox.run("smoke-test", "--json", "--server", server.url, *SMALL)
    told = lent.json["details"]["smoke_test"]["started_with"]
    assert told["flags"][-1] == "--fast"
    assert told["left_out"] == ["--listen"]
    assert told["flags_from"] == f"the ComfyUI that runs at {server.url}"
    told = itself.json["details"]["smoke_test"]["started_with"]
    assert (told["flags"], told["flags_from"]) == (["--fast"], f"the ComfyUI that runs at {server.url}")
