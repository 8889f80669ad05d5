"""``diagnose``: stand-ins for ComfyUI that fail with certain options or custom nodes, in real processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.builders import recording_of
from tests.support.sandbox import Completed, Sandbox, wait_until
from tests.support.setup_fixture import inventory, main_py, rtx_4070, states, with_existing_tree

SMALL = ("--size", "64x64", "--fresh")
NODES = ("a-pack", "b pack", "c-pack", "d-pack", "one.py")
BEFORE = """import os, sys
folder = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "custom_nodes")
on = set(os.listdir(folder))
if "--disable-all-custom-nodes" in sys.argv:
    at = sys.argv.index("--whitelist-custom-nodes") + 1 if "--whitelist-custom-nodes" in sys.argv else len(sys.argv)
    listed = sys.argv[at:]
    end = next((n for n, each in enumerate(listed) if each.startswith("--")), len(listed))
    on &= set(listed[:end])
assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"
BODY
"""
CLI_ARGS = 'a("--cpu")\nadd_argument("--disable-dynamic-vram")\nadd_argument("--fp32-vae")\n'


@pytest.fixture(scope="module")
def shared(make_sandbox: Callable[[], Sandbox]) -> Sandbox:
    sandbox = with_existing_tree(make_sandbox())
    nodes = sandbox.tree / "custom_nodes"
    nodes.mkdir(exist_ok=True)
    for name in NODES:
        if name.endswith(".py"):
            (nodes / name).write_text("", encoding="utf-8")
        else:
            (nodes / name).mkdir()
            (nodes / name / "__init__.py").write_text("", encoding="utf-8")
    for name in ("websocket_image_save.py", "README.md"):
        (nodes / name).write_text("", encoding="utf-8")
    (nodes / "off.disabled").mkdir()
    (sandbox.tree / "comfy" / "cli_args.py").write_text(CLI_ARGS, encoding="utf-8")
    return sandbox


@pytest.fixture
def sandbox(shared: Sandbox) -> Iterator[Sandbox]:
    """The tree, whose main.py a test writes."""
    before = (shared.tree / "main.py").read_bytes()
    yield shared
    (shared.tree / "main.py").write_bytes(before)


def fail_as(sandbox: Sandbox, code: str, faults: str = "Faults()") -> None:
    (sandbox.tree / "main.py").write_text(main_py(faults, before=BEFORE.replace("BODY", code)), encoding="utf-8")


def found(done: Completed) -> dict[str, Any]:
    told: dict[str, Any] = done.json["details"]["diagnosis"]
    return told


def test_an_image_that_comes_is_no_finding_and_the_tree_is_only_read(sandbox: Sandbox) -> None:
    fail_as(sandbox, 'print("Cannot import /x/custom_nodes/b pack module for custom nodes: no", flush=True)')
    before, times = inventory(sandbox.tree), states(sandbox.tree)
    for path in sorted(sandbox.tree.rglob("*"), reverse=True):
        if not path.is_symlink() and ".venv" not in path.parts:
            path.chmod(path.stat().st_mode & ~0o222)
    try:
        done = sandbox.run("diagnose", "--json", *SMALL)
    finally:
        for path in sandbox.tree.rglob("*"):
            if not path.is_symlink() and ".venv" not in path.parts:
                path.chmod(path.stat().st_mode | 0o200)
    assert done.returncode == 0, done.stderr
    told = found(done)
    assert (told["is_healthy"], told["is_over"], told["guilty"]) == (True, True, [])
    assert told["custom_nodes"] == sorted(NODES)
    assert [each["result"] for each in told["tries"]] == ["image"]
    warned = [each["message"] for each in done.json["findings"]]
    assert warned == ["A custom node did not load: /x/custom_nodes/b pack"]  # which ComfyUI survives
    assert inventory(sandbox.tree) == before
    assert states(sandbox.tree) == times


def test_the_custom_node_that_ends_the_server_is_named_with_the_way_to_live_without_it(sandbox: Sandbox) -> None:
    fail_as(sandbox, 'if "c-pack" in on: sys.exit("c-pack wants another Python")')
    before = inventory(sandbox.tree)
    done = sandbox.run("diagnose", *SMALL)
    assert done.returncode == 1, done.said
    assert "The custom node c-pack is at fault: with this one alone the test image fails." in done.said
    assert "Without c-pack it comes." in done.said
    assert str(sandbox.tree / "custom_nodes" / "c-pack") + " to c-pack.disabled" in done.said
    assert "-- --disable-all-custom-nodes --whitelist-custom-nodes a-pack 'b pack' d-pack one.py" in done.said
    assert inventory(sandbox.tree) == before  # renaming is the user's to do
    page = sandbox.run("report", "--output", sandbox.home / "page.html")
    assert page.returncode == 0
    text = (sandbox.home / "page.html").read_text(encoding="utf-8")
    assert "The custom node c-pack is at fault" in text
    assert "with the custom node c-pack alone" in text
    assert "c-pack wants another Python" in text


def test_two_that_fail_only_together_and_a_black_image(sandbox: Sandbox) -> None:
    fail_as(sandbox, 'draws = "black" if {"a-pack", "one.py"} <= on else "as asked"', "Faults(draws=draws)")
    done = sandbox.run("diagnose", "--json", *SMALL)
    assert done.returncode == 1, done.stderr
    told = found(done)
    assert told["tries"][0]["trouble"]["code"] == "picture-black"
    assert [sorted(group) for each in told["guilty"] for group in each["groups"]] == [["a-pack", "one.py"]]
    assert len(told["tries"]) <= 2 + 2 * 5


def test_an_image_that_stands_still_at_the_second_one_is_told_from_a_first(sandbox: Sandbox) -> None:
    code = 'second = Faults(never_ends=True) if "b pack" in on else None'
    code = (
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\nfrom tests.support.comfy_server import Faults\n{code}"
    )
    fail_as(sandbox, code, "Faults(second=second)")
    done = sandbox.run("diagnose", "--json", "--smoke-timeout", "2", *SMALL)
    assert done.returncode == 1, done.stderr
    told = found(done)
    assert told["tries"][0]["trouble"]["is_late"] is True
    assert told["guilty"][0]["groups"] == [["b pack"]]


def test_an_option_and_a_switch_of_comfyui_are_told_apart(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(recording_of(rtx_4070()), encoding="utf-8")
    env = {"KLEIN_SETUP_MACHINE": str(tmp_path / "machine.json")}
    fail_as(sandbox, 'if "--bad" in sys.argv: sys.exit("bad option")')
    done = sandbox.run("diagnose", "--json", "--comfyui-args", "--good 1 --bad 2 --also", *SMALL, env=env)
    told = found(done)
    assert (done.returncode, told["options"]) == (1, ["--good 1", "--bad 2", "--also"])
    assert [(each["layer"], each["groups"]) for each in told["guilty"]] == [("options", [["--bad 2"]])]
    assert "-- --good 1 --also" in done.json["findings"][0]["hint"]

    fail_as(sandbox, 'if "--no" in sys.argv: sys.exit("main.py: error: unrecognized arguments: --no")')
    done = sandbox.run("diagnose", "--json", "--comfyui-args", "--no", *SMALL, env=env)
    message = found(done)["tries"][0]["trouble"]["message"]
    assert message == "ComfyUI 0.33.0 has no option --no, which stands in --comfyui-args."

    fail_as(sandbox, 'if "--disable-dynamic-vram" not in sys.argv: os._exit(3)')
    done = sandbox.run("diagnose", "--json", *SMALL, env=env)
    told = found(done)
    assert [each["layer"] for each in told["guilty"]] == ["start-option"]
    assert [each["what"] for each in told["tries"]] == [
        "as you start it",
        "without custom nodes",
        "without ComfyUI's memory streaming (dynamic VRAM)",
        "as you start it, with --disable-dynamic-vram",
    ]


def test_what_fails_in_every_way_is_no_layers_fault(sandbox: Sandbox) -> None:
    fail_as(sandbox, "os._exit(3)")
    done = sandbox.run("diagnose", "--json", *SMALL)
    assert (done.returncode, done.codes) == (9, ["comfyui-server"])
    assert "It fails without custom nodes as well" in done.json["errors"][0]["message"]
    assert "klein-setup verify" in done.json["errors"][0]["hint"]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_diagnosis_says_what_it_knows_and_is_continued(sandbox: Sandbox) -> None:
    words = ("diagnose", "--size", "64x64", "--comfyui-args", "")
    fail_as(sandbox, 'if "a-pack" in on and len(on) < 5: import time; time.sleep(60)\nif "a-pack" in on: os._exit(3)')
    running = sandbox.start(*words)
    wait_until(lambda: "Start 3" in running.stderr_so_far, what="the search has begun", timeout_s=60)
    running.send(signal.SIGINT)
    done = running.wait(30)
    assert done.returncode == 130
    assert "Diagnosis, so far" in done.said
    assert "The custom node that is at fault is among a-pack, b pack, c-pack, d-pack and one.py" in done.said
    journal = json.loads((sandbox.state / "diagnosis.json").read_text(encoding="utf-8"))
    assert len(journal["tries"]) == 2
    fail_as(sandbox, 'if "a-pack" in on: os._exit(3)')  # another file than those that a diagnosis is about
    again = sandbox.run(*words, "--json")
    told = found(again)
    assert [each["was_known"] for each in told["tries"][:3]] == [True, True, False]
    assert told["guilty"][0]["groups"] == [["a-pack"]]
    third = sandbox.run(*words, "--json")  # one that came to its end is not continued
    assert not any(each["was_known"] for each in found(third)["tries"])


def test_without_a_comfyui_there_is_nothing_to_diagnose(make_sandbox: Callable[[], Sandbox]) -> None:
    done = make_sandbox().run("diagnose")
    assert done.returncode == 2, done.said
