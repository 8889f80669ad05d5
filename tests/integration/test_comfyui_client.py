"""The client of a ComfyUI server against what goes wrong: on the wire, in the server, and at its start.

Servers are stand-ins that answer as ComfyUI 0.33.0 was recorded; sockets and processes are real.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from provisioner.comfyui.server.client import ComfyClient, GenerationProgress
from provisioner.comfyui.server.launch import Launch
from provisioner.comfyui.server.server_process import start_server
from provisioner.core.errors import (
    GenerationError,
    KleinError,
    MemoryExhaustedError,
    NotWritableError,
    ServerNotUsableError,
    SmokeTestError,
    UsageError,
)
from tests.support.comfy_server import IMAGE, Faults, ReplayServer, graph_of, whole_graph

ROOT = Path(__file__).resolve().parents[2]
WARM = "ok_fp8_h200_warm_1024"


def never() -> bool:
    return False


# --- faults on the wire ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "is_followed"),
    [
        pytest.param(Faults(has_noise=True), True, id="previews, unknown messages and other prompts in between"),
        pytest.param(Faults(files_only_in_history=True, empty_histories=2), True, id="history empty at first"),
        pytest.param(Faults(drop_socket_after=5, delay_s=0.01), False, id="the WebSocket drops"),
        pytest.param(Faults(drop_socket_after=0, empty_histories=2), False, id="the WebSocket drops at once"),
        pytest.param(Faults(refuses_socket=True), False, id="no WebSocket at all"),
        pytest.param(Faults(goes_silent_after=6), False, id="the WebSocket falls silent"),
    ],
)
def test_the_image_arrives_whatever_happens_to_the_messages(faults: Faults, is_followed: bool) -> None:
    with ReplayServer(WARM, faults=faults) as server:
        with ComfyClient(server.url, cancelled=never, patience_s=1.0) as client:
            generated = client.generate(graph_of(WARM), timeout_s=20)
        assert generated.image == IMAGE
        assert generated.was_followed is is_followed
        assert not generated.was_cached
        assert generated.files[0].filename == "klein-smoke_00002_.png"
        assert server.asked("POST", "/interrupt") == []


def test_a_cached_run_is_reported_without_the_websocket_too() -> None:
    with (
        ReplayServer("ok_fp8", faults=Faults(refuses_socket=True)) as server,
        ComfyClient(server.url, cancelled=never) as client,
    ):
        assert client.generate(whole_graph(), timeout_s=20).was_cached


def test_a_broken_file_is_named_from_the_history_when_the_websocket_is_lost() -> None:
    name = "truncated_diffusion_model"
    with (
        ReplayServer(name, faults=Faults(drop_socket_after=1)) as server,
        ComfyClient(server.url, cancelled=never) as client,
        pytest.raises(GenerationError, match=r"truncated\.safetensors is truncated"),
    ):
        client.generate(graph_of(name), timeout_s=20)


def test_a_server_that_forgot_the_prompt_is_gone() -> None:
    with (
        ReplayServer(WARM, faults=Faults(drop_socket_after=3, forgets=True)) as server,
        ComfyClient(server.url, cancelled=never, patience_s=0.5) as client,
        pytest.raises(ServerNotUsableError) as raised,
    ):
        client.generate(graph_of(WARM), timeout_s=20)
    assert raised.value.context["cause"] == "server-gone"


def test_a_prompt_that_takes_too_long_is_dropped_and_the_node_is_named() -> None:
    with ReplayServer(WARM, faults=Faults(never_ends=True)) as server:
        with ComfyClient(server.url, cancelled=never) as client, pytest.raises(GenerationError) as raised:
            client.generate(graph_of(WARM), timeout_s=1.0)
        assert raised.value.context["cause"] == "timeout"
        assert "SaveImage (node 13)" in str(raised.value)
        assert server.asked("POST", "/queue") == [{"delete": [server.prompt_id]}]
        assert server.asked("POST", "/interrupt") == [{"prompt_id": server.prompt_id}]


def test_cancelling_stops_the_prompt_on_the_server() -> None:
    stop = threading.Event()

    def on_progress(progress: GenerationProgress) -> None:
        if progress.value is not None:
            stop.set()

    with ReplayServer(WARM, faults=Faults(never_ends=True)) as server:
        with ComfyClient(server.url, cancelled=stop.is_set) as client, pytest.raises(KeyboardInterrupt):
            client.generate(graph_of(WARM), on_progress=on_progress, timeout_s=20)
        assert server.asked("POST", "/interrupt") == [{"prompt_id": server.prompt_id}]


def test_unloading_asks_for_models_and_cache() -> None:
    with ReplayServer() as server, ComfyClient(server.url, cancelled=never) as client:
        client.free()
        assert server.asked("POST", "/free") == [{"unload_models": True, "free_memory": True}]


def test_a_hostile_file_name_goes_back_as_a_query_and_nowhere_else(tmp_path: Path) -> None:
    with ReplayServer(WARM) as server:
        for entry in server.entries:
            if entry.get("ws", {}).get("type") == "executed":
                entry["ws"]["data"]["output"]["images"][0].update(filename="../../../etc/passwd", subfolder="..\\x")
        with ComfyClient(server.url, cancelled=never) as client:
            generated = client.generate(graph_of(WARM), timeout_s=20)
        asked = [target for _, target, _ in server.requests if target.startswith("/view")]
    assert generated.files[0].filename == "../../../etc/passwd"
    assert asked == ["/view?filename=..%2F..%2F..%2Fetc%2Fpasswd&subfolder=..%5Cx&type=output"]


def test_a_missing_image_is_an_error() -> None:
    faults = Faults(answers={"/view": (404, "text/plain", b"")})
    with (
        ReplayServer(WARM, faults=faults) as server,
        ComfyClient(server.url, cancelled=never) as client,
        pytest.raises(GenerationError, match="HTTP 404"),
    ):
        client.generate(graph_of(WARM), timeout_s=20)


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(is_a_web_page=True), "web page"),
        (Faults(answers={"/system_stats": (404, "text/plain", b"Not Found")}), "HTTP 404"),
        (Faults(answers={"/system_stats": (200, "application/json", b'{"status": "ok"}')}), "lacks"),
        (Faults(answers={"/system_stats": (200, "application/json", b"[" * 100_000)}), "not ComfyUI's"),
        (Faults(answers={"/system_stats": (401, "text/plain", b"")}), "login"),
        (Faults(answers={"/system_stats": (302, "text/plain", b"")}), "another address"),
        (Faults(answers={"/system_stats": (503, "text/html", b"<html>")}), "failed (HTTP 503)"),
        (Faults(answers={"/system_stats": (200, "application/json", b" " * (5 << 20))}), "more than 4,194,304 bytes"),
    ],
)
def test_what_is_not_a_comfyui_server_is_reported(faults: Faults, said: str) -> None:
    with (
        ReplayServer(faults=faults) as server,
        ComfyClient(server.url, cancelled=never) as client,
        pytest.raises(ServerNotUsableError) as raised,
    ):
        client.system_stats()
    assert said in str(raised.value)


def test_a_server_that_does_not_answer_is_reported() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with ComfyClient(url, cancelled=never) as client, pytest.raises(ServerNotUsableError, match="refused"):
            client.generate(whole_graph(), timeout_s=5)


def test_no_proxy_is_asked_for_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with ReplayServer(WARM) as server, ComfyClient(server.url, cancelled=never) as client:
        assert client.generate(graph_of(WARM), timeout_s=20).was_followed


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError) as raised:
        ComfyClient("http://me:hunter22@127.0.0.1:8188", cancelled=never)
    assert "hunter22" not in str(raised.value)


# --- a server of our own -----------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Return a launch of a stand-in tree that has no main.py yet."""
    tree = tmp_path / "ComfyUI"
    tree.mkdir()
    made = tmp_path / "made"
    return Launch(
        python=Path(sys.executable), tree=tree, output=made / "output", user=made / "user", temp=made / "temp"
    )


def write_main(launch: Launch, code: str) -> None:
    launch.main.write_text(textwrap.dedent(code), encoding="utf-8")


def stand_in(launch: Launch, faults: str = "Faults()", before: str = "") -> None:
    """Write a main.py that answers as recorded."""
    lines = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})",
        "from tests.support.comfy_server import Faults, serve_as_comfyui",
        textwrap.dedent(before),
        f"serve_as_comfyui(sys.argv, {WARM!r}, {faults})",
    )
    write_main(launch, "\n".join(lines))


def log_of(launch: Launch) -> Path:
    return launch.folders[0].parent / "logs" / "comfyui.log"


def ended_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def failed_start(launch: Launch, timeout_s: float = 20) -> SmokeTestError:
    with pytest.raises(SmokeTestError) as raised:
        start_server(launch, log_path=log_of(launch), cancelled=never, timeout_s=timeout_s)
    return raised.value


def test_a_server_starts_generates_and_is_stopped(launch: Launch) -> None:
    stand_in(launch)
    with start_server(launch, log_path=log_of(launch), cancelled=never) as server:
        assert server.start_s > 0
        assert server.facts is not None
        assert server.facts.comfyui_version == "0.33.0"
        with ComfyClient(server.address.url, cancelled=never, process=server) as client:
            assert client.generate(graph_of(WARM), timeout_s=20).image == IMAGE
        assert server.returncode is None
        pid = server.pid
    assert ended_within(pid, 5)
    assert server.returncode is not None
    assert "To see the GUI go to" in log_of(launch).read_text()
    assert launch.user.is_dir()
    server.stop()  # twice does no harm


@pytest.mark.parametrize(
    ("exit_status", "words", "kind", "said"),
    [
        (1, "RuntimeError: something new", ServerNotUsableError, "exit status 1: RuntimeError: something new"),
        (137, "", MemoryExhaustedError, "most likely for lack of memory"),
        (1, "torch.OutOfMemoryError: CUDA out of memory.", MemoryExhaustedError, "GPU's memory ran out"),
    ],
)
def test_a_server_that_dies_in_the_middle_is_explained_from_its_log(
    launch: Launch, exit_status: int, words: str, kind: type[KleinError], said: str
) -> None:
    stand_in(launch, f"Faults(dies_after=12, exit_status={exit_status}, last_words={words!r}, delay_s=0.03)")
    with (
        start_server(launch, log_path=log_of(launch), cancelled=never) as server,
        ComfyClient(server.address.url, cancelled=never, process=server) as client,
        pytest.raises(SmokeTestError) as raised,
    ):
        client.generate(graph_of(WARM), timeout_s=20)
    assert type(raised.value) is kind
    assert said in str(raised.value)
    assert "SamplerCustomAdvanced (node 11)" in str(raised.value)
    assert raised.value.context["log_path"] == str(log_of(launch))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_server_killed_by_the_system_is_explained_by_memory(launch: Launch) -> None:
    stand_in(launch, "Faults(never_ends=True)")
    with start_server(launch, log_path=log_of(launch), cancelled=never) as server:
        threading.Timer(0.5, os.kill, (server.pid, 9)).start()
        with (
            ComfyClient(server.address.url, cancelled=never, process=server) as client,
            pytest.raises(MemoryExhaustedError, match="The system ended it"),
        ):
            client.generate(graph_of(WARM), timeout_s=20)


@pytest.mark.parametrize(
    ("code", "cause", "said"),
    [
        ("import torch_that_is_not_there", "missing-module", "torch_that_is_not_there"),
        (
            """raise RuntimeError("Detected that PyTorch and TorchAudio were compiled with different CUDA versions. "
            "PyTorch has CUDA version 13.2 whereas TorchAudio has CUDA version 13.0.")""",
            "torch-set-mismatch",
            "torch was built for CUDA 13.2 and torchaudio for CUDA 13.0",
        ),
        ("import os; os.listdir('/nowhere/custom_nodes')", "custom-nodes-missing", "/nowhere/custom_nodes"),
        ("import sys; sys.exit('main.py: error: unrecognized arguments: --database-url')", "unknown-option", "--data"),
        ("print('goodbye'); raise SystemExit(3)", "server-died", "exit status 3: goodbye"),
        ("raise SystemExit(4)", "server-died", "exit status 4, without output"),
    ],
)
def test_a_server_that_dies_at_start_is_explained(launch: Launch, code: str, cause: str, said: str) -> None:
    write_main(launch, code)
    error = failed_start(launch)
    assert error.context["cause"] == cause
    assert said in str(error)
    assert error.hint


def test_a_tree_without_main_is_named(launch: Launch) -> None:
    error = failed_start(launch)
    assert error.context["cause"] == "missing-program"
    assert str(launch.main) in str(error)


def test_a_missing_interpreter_is_named(launch: Launch, tmp_path: Path) -> None:
    from dataclasses import replace

    error = failed_start(replace(launch, python=tmp_path / "venv" / "python"))
    assert error.context["cause"] == "missing-program"
    assert str(tmp_path / "venv" / "python") in str(error)


def test_a_log_that_cannot_be_made_is_a_storage_error(launch: Launch) -> None:
    launch.folders[0].parent.write_text("a file is in the way")
    with pytest.raises(NotWritableError):
        start_server(launch, log_path=log_of(launch), cancelled=never)


def test_a_server_that_never_answers_is_stopped(launch: Launch, tmp_path: Path) -> None:
    write_main(launch, f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
               "print('installing things')\ntime.sleep(60)")  # fmt: skip
    error = failed_start(launch, timeout_s=1.5)
    assert error.context["cause"] == "start-timeout"
    assert "installing things" in str(error)
    assert ended_within(int((tmp_path / "pid").read_text()), 5)


def test_cancelling_a_start_leaves_nothing_running(launch: Launch, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    write_main(
        launch,
        f"import os, time\nopen({str(pid)!r} + '~', 'w').write(str(os.getpid()))\n"
        f"os.replace({str(pid)!r} + '~', {str(pid)!r})\ntime.sleep(60)",
    )
    with pytest.raises(KeyboardInterrupt):
        start_server(launch, log_path=log_of(launch), cancelled=pid.exists)
    assert ended_within(int(pid.read_text()), 5)


def test_a_taken_port_is_left_alone_and_another_one_is_tried(launch: Launch, tmp_path: Path) -> None:
    first = tmp_path / "first"
    before = f"""
        import pathlib
        first = pathlib.Path({str(first)!r})
        if not first.exists():
            first.touch()
            print("Port 8188 is already in use on address 127.0.0.1. Please close the other application")
            sys.exit(1)
    """
    stand_in(launch, before=before)
    with start_server(launch, log_path=log_of(launch), cancelled=never) as server:
        assert first.exists()
        assert server.returncode is None


def test_another_server_on_the_port_is_not_taken_for_ours(launch: Launch) -> None:
    """The stand-in says another command line than it was given: what a server does that came first."""
    stand_in(launch, before="sys.argv = [*sys.argv[:5], '--output-directory', '/somebody/elses']")
    error = failed_start(launch)
    assert error.context["cause"] == "port-taken"


def test_every_port_taken_is_an_error_after_a_few_tries(launch: Launch) -> None:
    write_main(launch, "raise OSError(98, 'Address already in use')")
    error = failed_start(launch)
    assert error.context["cause"] == "port-taken"


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that has nothing to do with any server."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_stopping_ends_the_whole_tree_and_nothing_else(
    launch: Launch, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    pids = tmp_path / "pids"
    before = f"""
        import subprocess
        stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
        sleep = [sys.executable, "-c", stubborn]
        children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
        open({str(pids)!r}, "w").write(" ".join(str(child.pid) for child in children))
    """
    stand_in(launch, before=before)
    with start_server(launch, log_path=log_of(launch), cancelled=never) as server:
        children = [int(pid) for pid in pids.read_text().split()]
        assert all(psutil.pid_exists(pid) for pid in children)
    assert all(ended_within(pid, 5) for pid in (server.pid, *children))
    assert bystander.poll() is None


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_children_of_a_server_that_died_are_ended_too(launch: Launch, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    before = f"""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(pids)!r}, "w").write(str(child.pid))
    """
    stand_in(launch, "Faults(dies_after=3)", before=before)
    with (
        start_server(launch, log_path=log_of(launch), cancelled=never) as server,
        ComfyClient(server.address.url, cancelled=never, process=server) as client,
        pytest.raises(ServerNotUsableError),
    ):
        client.generate(graph_of(WARM), timeout_s=20)
    assert ended_within(int(pids.read_text()), 5)
