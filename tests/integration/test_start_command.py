"""``start``: the ComfyUI of a tree runs until Ctrl-C.  Processes, signals and ports are real, ComfyUI a stand-in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.builders import recording_of
from tests.support.comfy_server import ReplayServer, free_port
from tests.support.sandbox import CALLED, TOKEN, Completed, Running, Sandbox, wait_until
from tests.support.setup_fixture import VAE, main_py, rtx_4070, with_existing_tree

TEMPLATE = "image_flux2_klein_text_to_image"
posix_only = pytest.mark.skipif(os.name == "nt", reason="no signal that a test can send there is Ctrl-C")


@pytest.fixture(scope="module")
def sandbox(make_sandbox: Callable[[], Sandbox]) -> Sandbox:
    """A tree with the three files, a Python and a ComfyUI of its owner's, that was installed into last."""
    return with_existing_tree(make_sandbox())


@pytest.fixture
def comfyui(sandbox: Sandbox) -> Iterator[Path]:
    """The stand-in's main.py, put back afterwards; nothing of it runs on."""
    main = sandbox.tree / "main.py"
    before = main.read_bytes()
    yield main
    main.write_bytes(before)
    for process in servers_of(main):
        process.kill()


@pytest.fixture
def port() -> int:
    return free_port()


def servers_of(main: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(main) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def begin(sandbox: Sandbox, *words: str | Path, env: dict[str, str | None] | None = None) -> Running:
    """Start ComfyUI with nothing named but what a test is about, and return when it is shown to run."""
    running = sandbox.start("start", *words, env=env)
    said = running._streams[0]
    wait_until(
        lambda: " at http" in said.read_text(encoding="utf-8") or running.process.poll() is not None,
        what="that ComfyUI runs",
    )
    return running


def end(running: Running, number: signal.Signals = signal.SIGINT) -> Completed:
    running.send(number)
    return running.wait(20)


def argv_at(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/system_stats", timeout=5) as answer:
        argv: list[str] = json.load(answer)["system"]["argv"]
        return argv


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_last_target_is_started_without_naming_it_and_ends_with_status_0(
    sandbox: Sandbox, comfyui: Path, port: int, number: signal.Signals
) -> None:
    running = begin(sandbox, "--no-browser", "--port", str(port), "--", "--lowvram", "--preview-method", "auto")
    argv = argv_at(port)
    (server,) = servers_of(comfyui)
    assert Path(server.cmdline()[0]).is_relative_to(sandbox.tree / ".venv")
    assert "HF_TOKEN" not in server.environ()
    done = end(running, number)
    assert done.returncode == 0, done.said
    assert argv[1:5] == ["--listen", "127.0.0.1", "--port", str(port)]
    assert argv[-3:] == ["--lowvram", "--preview-method", "auto"]
    assert "--output-directory" not in argv  # it is the user's own, with the user's own folders
    assert f"ComfyUI 0.33.0 runs at http://127.0.0.1:{port}" in done.said
    assert "ComfyUI has ended." in done.said
    assert servers_of(comfyui) == []
    log = next(Path(word) for word in done.said.split() if word.startswith(str(sandbox.home)))
    assert "To see the GUI go to" in Path(str(log).rstrip(";")).read_text(encoding="utf-8")


@posix_only
def test_an_option_that_keeps_a_known_failure_away_is_given_and_said(
    sandbox: Sandbox, comfyui: Path, port: int, tmp_path: Path
) -> None:
    in_wsl = tmp_path / "machine.json"
    in_wsl.write_text(recording_of(rtx_4070(is_wsl=True)), encoding="utf-8")
    options = comfyui.parent / "comfy" / "cli_args.py"
    argvs, said = [], []
    for declared in ("--disable-smart-memory", "--disable-dynamic-vram"):  # an option it lacks would end it
        options.write_text(f'parser.add_argument("{declared}", action="store_true")\n', encoding="utf-8")
        running = begin(sandbox, "--no-browser", "--port", str(port), env={"KLEIN_SETUP_MACHINE": str(in_wsl)})
        argvs.append(argv_at(port))
        said.append(" ".join(end(running).said.split()))
    options.unlink()
    assert ["--disable-dynamic-vram" in argv for argv in argvs] == [False, True]
    sentence = "ComfyUI is started with --disable-dynamic-vram, because without it: memory streaming is on again in WSL"
    assert [sentence in each and "Comfy-Org/ComfyUI#12704" in each for each in said] == [False, True]


@posix_only
def test_a_killed_start_leaves_no_server(sandbox: Sandbox, comfyui: Path, port: int) -> None:
    running = begin(sandbox, "--no-browser", "--port", str(port))
    assert len(servers_of(comfyui)) == 1
    running.kill()
    running.wait()
    wait_until(lambda: servers_of(comfyui) == [], what="the end of the server")


@posix_only
def test_ctrl_c_before_it_answers_is_an_interruption(sandbox: Sandbox, comfyui: Path, port: int) -> None:
    comfyui.write_text("import time; time.sleep(60)\n", encoding="utf-8")
    running = sandbox.start("start", "--no-browser", "--port", str(port))
    wait_until(lambda: len(servers_of(comfyui)) == 1, what="the server's process")
    assert end(running).returncode == 130
    wait_until(lambda: servers_of(comfyui) == [], what="the end of the server's process")


@posix_only
def test_a_port_behind_the_dashes_is_the_one_that_counts(sandbox: Sandbox, comfyui: Path, port: int) -> None:
    running = begin(sandbox, "--no-browser", "--", f"--port={port}")
    assert argv_at(port)
    done = end(running)
    assert (done.returncode, f"http://127.0.0.1:{port}" in done.said) == (0, True)


# --- files that are wrong ------------------------------------------------------------------------


@posix_only
def test_a_missing_file_is_named_and_nothing_is_started_unless_that_is_wanted(
    sandbox: Sandbox, comfyui: Path, port: int
) -> None:
    gone = sandbox.path(VAE)
    kept = gone.rename(gone.with_suffix(".away"))
    try:
        done = sandbox.run("start", "--no-browser", "--port", str(port))
        assert done.returncode == 1
        assert "missing vae/flux2-vae.safetensors" in done.said
        assert f"To fix it: {CALLED} repair --manifest {sandbox.manifest} --comfyui {sandbox.tree}" in done.said
        assert servers_of(comfyui) == []
        running = begin(sandbox, "--no-browser", "--yes", "--port", str(port))
        insisted = end(running)
    finally:
        kept.rename(gone)
    assert insisted.returncode == 0
    assert "vae/flux2-vae.safetensors: missing. Starting anyway." in insisted.said
    once_more = end(begin(sandbox, "--no-browser", "--port", str(port)))  # the renamed file is no longer its receipt's
    assert (once_more.returncode, "no receipt says that it is right" in once_more.said) == (0, True)
    assert sandbox.install("--only", "files").returncode == 0


# --- a port that is taken ------------------------------------------------------------------------


def test_a_comfyui_that_already_reads_these_files_is_shown_and_goes_on(sandbox: Sandbox, comfyui: Path) -> None:
    with ReplayServer(folder=sandbox.tree) as server:
        port = server.url.rpartition(":")[2]
        done = sandbox.run("start", "--no-browser", "--port", port, "--json")
        said = sandbox.run("start", "--no-browser", "--port", port)
        assert argv_at(int(port))
    assert (done.returncode, said.returncode) == (0, 0)
    assert f"ComfyUI 0.33.0 already runs at {server.url}" in said.said
    assert done.json["details"]["server"] == {
        "url": server.url,
        "was_running": True,
        "template": None,
        "log_path": None,
    }
    assert servers_of(comfyui) == []


def test_a_comfyui_with_other_files_is_no_success(sandbox: Sandbox, tmp_path: Path, comfyui: Path) -> None:
    with ReplayServer(folder=tmp_path) as server:
        port = server.url.rpartition(":")[2]
        done = sandbox.run("start", "--no-browser", "--port", port)
    assert done.returncode == 9
    assert f"ComfyUI 0.33.0 already runs at {server.url}, but not with these files." in done.said
    assert f"`{CALLED} start --port {int(port) + 1}`" in done.said


def test_another_program_on_the_port_is_named(sandbox: Sandbox, comfyui: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = sandbox.run("start", "--no-browser", "--port", str(port), "--json")
    assert (done.returncode, done.codes) == (9, ["comfyui-server"])
    error = done.json["errors"][0]
    assert error["context"]["cause"] == "port-taken"
    assert f"Port {port} is taken by {psutil.Process().name()} (process {os.getpid()})" in error["message"]
    assert servers_of(comfyui) == []


# --- while it runs -------------------------------------------------------------------------------

TROUBLE = """
import threading, time
def trouble():
    time.sleep(1)
    print("loading a node\\nTraceback (most recent call last):\\n  File x, line 1\\nValueError: the node is broken")
    print("secret hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567 failed", flush=True)
    time.sleep(1)
    import os; os._exit(STATUS)
threading.Thread(target=trouble, daemon=True).start()
"""


@pytest.mark.parametrize(("status", "expected"), [(3, 9), (0, 0)])
def test_errors_are_shown_while_it_runs_and_its_own_end_is_told(
    sandbox: Sandbox, comfyui: Path, port: int, status: int, expected: int
) -> None:
    comfyui.write_text(main_py(before=TROUBLE.replace("STATUS", str(status))), encoding="utf-8")
    done = begin(sandbox, "--no-browser", "--port", str(port)).wait(20)
    assert done.returncode == expected, done.said
    assert "warning ComfyUI: ValueError: the node is broken" in done.said
    assert "loading a node" not in done.stdout
    assert "hf_Ab" not in done.said
    assert ("ended while it ran with exit status 3" in done.said) == (status == 3)


def test_a_comfyui_that_does_not_come_up_is_explained(sandbox: Sandbox, comfyui: Path, port: int) -> None:
    comfyui.write_text("import torch_that_is_not_there\n", encoding="utf-8")
    done = sandbox.run("start", "--no-browser", "--port", str(port))
    assert (done.returncode, "torch_that_is_not_there" in done.said) == (9, True)


@posix_only
def test_programs_get_one_document_or_a_line_when_it_is_ready(sandbox: Sandbox, comfyui: Path, port: int) -> None:
    running = sandbox.start("start", "--no-browser", "--port", str(port), "--json=events")
    said = running._streams[0]
    wait_until(lambda: "server-ready" in said.read_text(encoding="utf-8"), what="the event")
    done = end(running)
    (ready,) = [line for line in done.lines if line["event"] == "server-ready"]
    assert ready["url"] == f"http://127.0.0.1:{port}"
    last = done.lines[-1]
    assert (last["event"], last["command"], last["status"], last["exit_status"]) == ("report", "start", "ok", 0)
    assert last["details"]["server"]["log_path"] == ready["log_path"]


@posix_only
def test_the_browser_opens_the_template_and_sees_no_token(
    sandbox: Sandbox, comfyui: Path, port: int, tmp_path: Path
) -> None:
    site = next((sandbox.tree / ".venv").glob("lib/python3*/site-packages"))
    folder = site / "comfyui_workflow_templates_json" / "templates"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{TEMPLATE}.json").write_text("{}")
    titles = [{"templates": [{"name": TEMPLATE, "title": "Flux.2 [Klein] 4B: Text to Image"}]}]
    (folder / "index.json").write_text(json.dumps(titles))
    browser, opened = tmp_path / "browser", tmp_path / "opened.json"
    code = f"import json, os, sys; json.dump([sys.argv[1], dict(os.environ)], open({str(opened)!r}, 'w'))"
    browser.write_text(f"#!{sys.executable}\n{code}\n")
    browser.chmod(0o755)
    try:
        running = begin(sandbox, "--port", str(port), env={"BROWSER": str(browser), "DISPLAY": None})
        wait_until(lambda: opened.exists() or running.process.poll() is not None, what="the browser")
        done = end(running)
    finally:
        (folder / f"{TEMPLATE}.json").unlink()
    assert opened.exists(), done.said
    page, environ = json.loads(opened.read_text())
    assert page == f"http://127.0.0.1:{port}/?template={TEMPLATE}"
    assert TOKEN not in environ.values()
    assert f"among its Templates: Flux.2 [Klein] 4B: Text to Image ({TEMPLATE})." in done.said


# --- what cannot be started ----------------------------------------------------------------------


def test_what_is_no_comfyui_is_said_with_its_reason(sandbox: Sandbox, tmp_path: Path) -> None:
    base, models = tmp_path / "base", tmp_path / "models"
    for folder in (base / "models" / "vae", base / "user", models / "vae", models / "checkpoints"):
        folder.mkdir(parents=True)
    cases = {
        ("--comfyui", str(base)): "a base folder",
        ("--comfyui", str(models)): "a models folder alone",
        ("--comfyui", str(tmp_path / "new")): "nothing is installed there yet",
        ("--hf-cache", "--set", "diffusers"): "no server to start",
    }
    for words, reason in cases.items():
        done = sandbox.run("start", "--no-browser", *words)
        assert (done.returncode, reason in done.said) == (2, True), done.said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("ComfyUI",), "--comfyui DIR"),
        (("--port", "0"), "from 1 to 65535"),
        (("--", "--port", "x"), "is not a port"),
        (("--lowvram",), "--help"),
    ],
)
def test_a_wrong_word_is_a_usage_error_with_a_hint(sandbox: Sandbox, words: tuple[str, ...], hint: str) -> None:
    done = sandbox.run("start", "--no-browser", *words)
    assert (done.returncode, hint in done.said) == (2, True), done.said
