"""Steps that need nothing of each other go side by side: what overlaps, what an error stops, what a signal leaves.

The command is the real one, as in `test_one_shot`; the hub is slow, so that files still arrive while the rest is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import Any

import psutil
import pytest

from provisioner.commands.side_by_side import run_side_by_side
from provisioner.plan.order import Task, TaskState
from provisioner.rehearsal.faults import Stall
from tests.integration.test_one_shot import servers_in
from tests.support.sandbox import REPOSITORY, REVISION, Completed, wait_until
from tests.support.setup_fixture import ENCODER, KLEIN, MODEL, SetupFixture
from tests.support.warm import Warm

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals, and links to a Python")

KILL = 9  # Windows has no name for it
SLOW = 8_000  # bytes a second of one connection: a file takes ten seconds
INSTALL = ("install", "--yes", "--size", "256x256", "--stall-timeout", "300", "--json")


@pytest.fixture
def setup(setup: SetupFixture) -> SetupFixture:
    """Return the setup with a slow hub."""
    setup.sandbox.hub.rate_bytes_s_per_connection = SLOW
    return setup


def outcomes(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return status and detail of each kind of step; of the files, of the last one."""
    return {each["kind"]: (each["outcome"]["status"], each["outcome"]["detail"]) for each in document["steps"]}


def spans(document: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return when each kind of step began and ended; of the files, the first and the last."""
    found: dict[str, tuple[float, float]] = {}
    for step in document["steps"]:
        began, took = step["outcome"]["started_s"], step["outcome"]["seconds"]
        earlier = found.get(step["kind"], (began, 0.0))
        found[step["kind"]] = (min(began, earlier[0]), max(round(began + took, 3), earlier[1]))
    return found


def start_with_files_behind_the_server(setup: SetupFixture) -> Warm | subprocess.Popen[str]:
    """Install from a hub that is slow until ComfyUI has started, however long this computer takes for that."""
    setup.sandbox.hub.rate_bytes_s_per_connection = 1_000
    process = setup.start(*INSTALL)
    errors = setup.sandbox.folder / f"driven-{setup.runs}.err"
    wait_until(lambda: "started   ComfyUI" in errors.read_text(encoding="utf-8"), what="ComfyUI", timeout_s=80)
    return process


def run_with_files_behind_the_server(setup: SetupFixture) -> Completed:
    """Install; the files come when ComfyUI has started."""
    process = start_with_files_behind_the_server(setup)
    setup.sandbox.hub.rate_bytes_s_per_connection = None
    said, _ = process.communicate(timeout=60)
    return setup.completed(process, said, *INSTALL)


def test_environment_and_the_start_of_comfyui_are_hidden_behind_the_files(setup: SetupFixture) -> None:
    done = run_with_files_behind_the_server(setup)
    assert done.returncode == 0, done.said
    seen = spans(done.json)
    kinds = ["get-comfyui", "fetch-file", "make-environment", "install-packages", "start-comfyui", "generate-image"]
    assert [kind for kind in dict.fromkeys(each["kind"] for each in done.json["steps"])] == kinds
    files, environment, server = seen["fetch-file"], seen["make-environment"], seen["start-comfyui"]
    assert seen["get-comfyui"][1] <= min(files[0], environment[0])  # its folder appears whole
    assert max(files[0], environment[0]) < min(files[1], environment[1])
    assert seen["install-packages"][1] <= server[0] < server[1] < files[1] <= seen["generate-image"][0]
    took = max(end for _, end in seen.values())
    assert took < sum(end - began for began, end in seen.values())
    assert done.json["details"]["smoke_test"]["is_proven"] is True
    assert servers_in(setup.tree) == []
    setup.sandbox.assert_in_place()
    page = setup.sandbox.folder / "page.html"
    assert setup.sandbox.run("report", "--output", page).returncode == 0
    assert "of work in" in page.read_text(encoding="utf-8")


def test_an_index_that_is_not_there_does_not_stop_the_files_and_the_next_run_does_the_rest(setup: SetupFixture) -> None:
    nowhere = "http://127.0.0.1:9/simple"  # the discard port, where nobody listens
    process = setup.start(*INSTALL, "--torch-index", nowhere, env={"PIP_RETRIES": "0"})
    said, _ = process.communicate(timeout=100)
    failed = setup.completed(process, said, *INSTALL)
    assert failed.returncode == 5, failed.said
    came = outcomes(failed.json)
    assert came["make-environment"][0] == "failed"
    for kind in ("install-packages", "start-comfyui", "generate-image"):
        assert came[kind] == ("skipped", "left out after an error in the environment")
    assert came["fetch-file"][0] == came["get-comfyui"][0] == "done"
    setup.sandbox.assert_in_place()
    assert "An error in the environment: " in failed.said
    assert "What comes after is left out; going on with the model files" in failed.said
    assert [error["code"] for error in failed.json["errors"]] == ["unreachable"]

    asked = len(setup.sandbox.hub.requests)
    done = setup.run(*INSTALL)
    assert done.returncode == 0, done.said
    assert len(setup.sandbox.hub.requests) == asked
    assert [each["kind"] for each in done.json["steps"]] == [
        "keep-comfyui",
        "make-environment",
        "install-packages",
        "start-comfyui",
        "generate-image",
    ]


def test_a_file_that_fails_ends_the_server_that_waits_for_it(setup: SetupFixture) -> None:
    there = {each.filename: each.data for each in KLEIN[:2]}
    digests = {each.filename: each.sha256 for each in KLEIN[:2]}
    setup.sandbox.hub.add_repository(REPOSITORY, REVISION, there, digests=digests)  # the third is gone
    failed = run_with_files_behind_the_server(setup)
    assert failed.returncode == 6, failed.said
    came = outcomes(failed.json)
    assert came["make-environment"][0] == came["install-packages"][0] == came["start-comfyui"][0] == "done"
    assert came["generate-image"] == ("skipped", "left out after an error in the model files")
    assert servers_in(setup.tree) == []
    setup.sandbox.assert_in_place(MODEL, ENCODER)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (KILL, -9)])
def test_a_signal_in_the_middle_of_both_ends_everything_and_the_next_run_goes_on(
    setup: SetupFixture, number: int, status: int
) -> None:
    setup.index.faults.bytes_per_s = 5_000  # a wheel of torch takes twenty seconds
    setup.index.requests.clear()
    setup.sandbox.hub.fault(Stall(0.5, 300), filename=ENCODER.filename)
    try:
        process = setup.start(*INSTALL)

        def is_between() -> bool:
            if any(setup.sandbox.path(each).is_file() for each in KLEIN):
                setup.sandbox.hub.rate_bytes_s_per_connection = 200  # the others stay on their way
            is_slow = setup.sandbox.hub.rate_bytes_s_per_connection == 200
            return is_slow and bool(setup.index.fetched()) and any(setup.sandbox.part(each).exists() for each in KLEIN)

        wait_until(is_between, what="a file, a part and a wheel", timeout_s=80)
        arrived = [each for each in KLEIN if setup.sandbox.path(each).is_file()]
        growing = [each for each in KLEIN if each not in arrived and setup.sandbox.part(each).exists()]
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
        seconds = time.monotonic() - began
    finally:
        setup.index.faults.bytes_per_s = None
    if number == KILL:
        for child in children:  # nobody was left to end them
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    else:
        stopped = setup.completed(process, said, *INSTALL)
        assert stopped.json["status"] == "interrupted"
        assert seconds < 25  # the stall alone is 300
    assert process.returncode == status
    _, alive = psutil.wait_procs(children, timeout=1)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
    assert all(setup.sandbox.part(each).exists() for each in growing)
    assert not setup.environment.exists()

    setup.sandbox.hub.rate_bytes_s_per_connection = None
    setup.sandbox.hub.clear_requests()
    done = setup.run(*INSTALL)
    assert done.returncode == 0, done.said
    assert [setup.sandbox.gets(each) for each in arrived] == [[] for _ in arrived]
    setup.sandbox.assert_in_place()
    assert servers_in(setup.tree) == []


def test_a_signal_while_the_server_waits_for_files_ends_it(setup: SetupFixture) -> None:
    process = start_with_files_behind_the_server(setup)
    assert servers_in(setup.tree) != []
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 25  # the files would take more than a minute
    assert setup.completed(process, said, *INSTALL).returncode == 130
    assert servers_in(setup.tree) == []
    assert setup.environment.is_dir()


# --- threads -----------------------------------------------------------------------------------

TASKS = (Task(name="files", steps=()), Task(name="environment", steps=()))


@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyboardInterrupt()], ids=repr)
def test_what_a_task_raises_stops_the_others_and_reaches_the_caller(error: BaseException) -> None:
    cancelled, ended = threading.Event(), []

    def do(task: Task) -> TaskState:
        if task.name == "files":
            raise error
        assert cancelled.wait(20)
        time.sleep(0.3)  # it clears up
        ended.append(task.name)
        raise KeyboardInterrupt

    with pytest.raises(type(error)) as caught:
        run_side_by_side(TASKS, do, states={}, skip=lambda task, cause: None, cancelled=cancelled)
    assert caught.value is error
    assert caught.traceback[-1].name == "do"  # the trace says where
    assert ended == ["environment"]


def test_a_defect_in_a_step_is_an_internal_error_with_its_trace(setup: SetupFixture) -> None:
    driver = setup.sandbox.folder / "driver.py"
    broken = "from provisioner.commands import apply\napply.inspect_comfyui = lambda *given: 1 / 0\n"
    driver.write_text(driver.read_text().replace("sys.exit(", f"{broken}sys.exit("))
    done = setup.run(*INSTALL)
    assert done.returncode == 70, done.said
    logs = [path.read_text() for path in (setup.sandbox.home / "state").rglob("*") if path.is_file()]
    assert any("ZeroDivisionError" in text and "_apply_comfyui" in text for text in logs)
