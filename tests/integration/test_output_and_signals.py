"""Output that is lost, signals at any moment of a run, names that are empty."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sandbox import Completed, Sandbox, tensors

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="Linux has a file that is always full")
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals")

# Sends itself a signal the moment a module is asked for: from there on nothing else has a chance to run.
AT_IMPORT = """
import importlib.abc, os, runpy, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
sys.argv = ["klein-setup", "manifest", "list"]
runpy.run_module("provisioner", run_name="__main__", alter_sys=True)
"""


@needs_full
@pytest.mark.parametrize("words", [("plan", "--json"), ("plan",), ("plan", "--json=events"), ("verify",)], ids=" ".join)
def test_output_that_a_full_disk_takes_away_is_an_error(sandbox: Sandbox, words: tuple[str, ...]) -> None:
    sandbox.publish(tensors(1000))
    sandbox.tree.mkdir(parents=True)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "provisioner",
        *words,
        "--manifest",
        sandbox.manifest,
        "--comfyui",
        sandbox.tree,
    ]
    with FULL.open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=sandbox.environ, text=True, check=False, timeout=60
        )
    assert done.returncode == 4
    assert "The output could not be written: No space left on device." in done.stderr


@posix_only
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "module",
    ["provisioner.cli.main", "argparse", "provisioner.cli.arguments", "provisioner.ui.console", "provisioner.ui.text",
     "provisioner.report.outcome", "provisioner.commands.manifest"],
)  # fmt: skip
def test_a_signal_ends_a_run_quietly_however_early_it_comes(
    sandbox: Sandbox, module: str, number: signal.Signals, status: int
) -> None:
    code = AT_IMPORT.format(module=module, number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=sandbox.environ, text=True, check=False, timeout=60
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_signals_are_listened_to_before_anything_slow_is_imported(sandbox: Sandbox) -> None:
    code = "import sys, provisioner.cli.entry; print(sorted({'enum', 're', 'signal', 'typing'} & set(sys.modules)))"
    words = [sys.executable, "-S", "-c", code]
    done = subprocess.run(words, capture_output=True, env=sandbox.environ, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def complained(done: Completed) -> str:
    assert done.returncode == 2, done.said
    assert done.codes == ["usage"]
    message: str = done.json["errors"][0]["message"]
    return message


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--comfyui", ""),
        ("install", "--comfyui="),
        ("plan", "--hf-cache", ""),
        ("plan", "--environment", ""),
        ("plan", "--python", ""),
        ("plan", "--extra-model-paths", ""),
        ("plan", "--look-in", ""),
        ("plan", "--manifest", ""),
        ("plan", "--comfyui-source", ""),
        ("install", "--image", ""),
        ("report", "--output", ""),
        ("detect", ""),
    ],
    ids=" ".join,
)
def test_an_empty_name_is_no_folder(sandbox: Sandbox, words: tuple[str, ...]) -> None:
    """An unset variable of a shell: `--comfyui "$DIR"` would mean the folder one is in."""
    sandbox.publish(tensors(1000))
    given = [words[0], "--no-target", *words[1:]] if words[0] in {"plan", "install"} else list(words)
    assert "empty" in complained(sandbox.run(*given, "--json"))
    assert not (sandbox.folder / "models").exists()


@pytest.mark.parametrize("words", [("backups", "list"), ("backups", "clear", "--yes"), ("uninstall", "--dry-run")])
def test_the_target_is_named_whatever_the_command(sandbox: Sandbox, words: tuple[str, ...]) -> None:
    sandbox.publish(tensors(1000))
    sandbox.plant(sandbox.path(), b"something else")
    assert sandbox.run("repair").returncode == 0
    done = sandbox.run(*words, "--json")
    assert done.json["target"] == {"kind": "comfyui", "path": str(sandbox.tree / "models")}
