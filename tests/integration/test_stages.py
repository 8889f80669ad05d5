"""Stages: what they tell, what of a program's output reaches the screen, and what the log of the run holds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from provisioner.commands.stages import Stages
from provisioner.core.errors import CommandError
from provisioner.core.events import Event, Lasting, Notice, Stage
from provisioner.disk import run_log
from provisioner.disk.run_log import RunLog
from provisioner.machine.process import run_process

CHATTER = "import sys\nfor n in range(3): print('Collecting', n)\nprint('a warning of pip', file=sys.stderr)"


class Run:
    """Stages with everything that was told about them."""

    def __init__(self, folder: Path, secrets: tuple[str, ...] = ()) -> None:
        self.events: list[Event] = []
        self.log = RunLog(lambda: folder, secrets)
        self.cancelled = threading.Event()
        self.stages = Stages(self.events.append, run=run_process, log=self.log, cancelled=self.cancelled.is_set)

    def fail(self) -> None:
        self.chat()
        raise CommandError("pip failed")

    def chat(self, program: str = CHATTER) -> None:
        self.stages.run([sys.executable, "-I", "-c", program], timeout_s=30.0)

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(each.state, each.detail) for each in self.events if isinstance(each, Stage)]

    @property
    def logged(self) -> str:
        assert self.log.path is not None
        return self.log.path.read_text(encoding="utf-8")


def test_a_stage_is_told_from_its_beginning_to_what_came_of_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.stages.stage("installing", "packages", "installed") as came_of_it:
        run.stages.say("Collecting numpy")
        came_of_it("42 packages")
    assert run.told == [("started", ""), ("working", "Collecting numpy"), ("done", "42 packages")]


def test_the_next_stage_ends_the_one_before_and_a_stage_within_is_a_detail(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.stages.begin("loading", "the models", "loaded")
    run.stages.begin("encoding", "the prompt", "encoded")
    with run.stages.stage("testing", "the environment", "tested"):
        pass
    run.stages.end()
    run.stages.end()
    assert run.told == [
        ("started", ""), ("done", ""), ("started", ""), ("working", "testing the environment"), ("done", "")
    ]  # fmt: skip


def test_outside_of_a_stage_a_line_is_a_line_and_in_one_only_what_lasts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.stages.say("before")
    with run.stages.stage("installing", "packages", "installed"):
        run.stages.say("passing")
        run.stages.say(Lasting("kept as backup"))
    notices = [each.message for each in run.events if isinstance(each, Notice) and each.severity == "progress"]
    assert notices == ["before", "kept as backup"]


def test_what_a_program_prints_is_whole_in_the_log_and_only_in_a_stage(tmp_path: Path) -> None:
    run = Run(tmp_path / "logs")
    run.chat("print('outside')")
    assert run.log.path is None
    with run.stages.stage("installing", "packages", "installed"):
        run.chat()
    assert "outside" not in run.logged
    assert [line for line in run.logged.splitlines() if line.startswith("Collecting")] == [
        "Collecting 0", "Collecting 1", "Collecting 2"
    ]  # fmt: skip
    assert "a warning of pip" in run.logged
    assert [state for state, _ in run.told] == ["started", "done"]  # the screen has none of it
    assert str(run.log.path) in str(run.events[-1])  # for --verbose


def test_a_failure_names_the_log(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(CommandError) as caught, run.stages.stage("installing", "packages", "installed"):
        run.fail()
    assert caught.value.context["log_path"] == str(run.log.path)
    assert run.told[-1] == ("failed", "")
    assert "Collecting 2" in run.logged


def test_a_failure_without_output_names_no_log_and_ctrl_c_is_no_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(CommandError) as caught, run.stages.stage("installing", "packages", "installed"):
        raise CommandError("no pip")
    assert "log_path" not in caught.value.context
    with pytest.raises(KeyboardInterrupt), run.stages.stage("installing", "packages", "installed"):
        raise KeyboardInterrupt
    assert run.told[-1] == ("interrupted", "")


def test_no_secret_reaches_the_log(tmp_path: Path) -> None:
    run = Run(tmp_path, secrets=("correct horse battery",))
    with run.stages.stage("installing", "packages", "installed"):
        run.chat("print('with correct horse battery at https://me:pass@host/x?sig=y and hf_" + "Ab1" * 12 + "')")
    assert "correct horse" not in run.logged
    assert "pass@" not in run.logged
    assert "Ab1Ab1" not in run.logged
    assert "https://host/x" in run.logged


def test_a_log_has_a_limit_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "MOST_BYTES", 4000)
    run = Run(tmp_path)
    with run.stages.stage("installing", "packages", "installed"):
        run.chat("for n in range(2000): print('line', n)")
    assert len(run.logged) < 4200
    assert run.logged.endswith("[The rest was left out: a log has at most 4,000 bytes.]\n")


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    for day in range(1, 31):
        (tmp_path / f"run-202601{day:02}T000000Z.txt").write_text("old")
    (tmp_path / "comfyui-20260101T000000Z.txt").write_text("another log")
    run = Run(tmp_path)
    with run.stages.stage("installing", "packages", "installed"):
        run.chat()
    kept = sorted(path.name for path in tmp_path.glob("run-*.txt"))
    assert len(kept) == run_log.MOST_LOGS
    assert kept[0] == "run-20260112T000000Z.txt"
    assert (tmp_path / "comfyui-20260101T000000Z.txt").exists()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    run = Run(tmp_path / "logs")
    with run.stages.stage("installing", "packages", "installed"):
        run.chat()
    assert run.log.path is None
    assert run.told[-1] == ("done", "")


def test_the_time_of_a_stage_is_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.stages.stage("installing", "packages", "installed"):
        threading.Event().wait(0.2)
    began = time.monotonic()
    with run.stages.stage("starting", "ComfyUI", "started"):
        pass
    first, second = (each.seconds for each in run.events if isinstance(each, Stage) and each.state == "done")
    assert first >= 0.2
    assert second <= time.monotonic() - began


def test_a_stage_without_an_installer_makes_no_log(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.stages.stage("denoising", "the image", "denoised"):
        run.stages.say("step 1 of 4")
    assert run.log.path is None
    assert list(tmp_path.iterdir()) == []


# --- several threads ---------------------------------------------------------------------------


def side_by_side(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own, to their ends."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


def test_each_thread_has_a_stage_of_its_own_and_the_log_says_whose_line_it_is(tmp_path: Path) -> None:
    run, both_are_open = Run(tmp_path), threading.Barrier(2)

    def work(what: str) -> None:
        with run.stages.stage("installing", what, "installed") as came_of_it:
            both_are_open.wait(10)
            run.chat(f"for n in range(200): print('{what}', n, flush=True)")
            came_of_it(f"{what} is there")

    side_by_side(partial(work, "torch"), partial(work, "git"))
    told = [each for each in run.events if isinstance(each, Stage)]
    assert [each.state for each in told] == ["started", "started", "done", "done"]
    assert {(each.what, each.detail) for each in told[2:]} == {("torch", "torch is there"), ("git", "git is there")}
    whose = ""
    lines: dict[str, list[str]] = {"torch": [], "git": []}
    for line in run.logged.splitlines():
        if line.startswith("==> "):
            whose = line.split()[2]
        elif not line.startswith("$ "):
            lines[line.split()[0]].append(line)
            assert whose in {"", line.split()[0]}
    assert lines == {what: [f"{what} {n}" for n in range(200)] for what in lines}


def test_what_a_helper_thread_says_belongs_to_the_stage_it_works_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.stages.stage("making", "the environment", "made"):
        tell = run.stages.teller
        side_by_side(lambda: tell("torch: 100 MB"))
    tell("afterwards")
    assert run.told == [("started", ""), ("working", "torch: 100 MB"), ("done", "")]
    assert [each.message for each in run.events if isinstance(each, Notice)] == ["afterwards"]


def test_a_cancelled_run_ends_one_program_of_a_thread_and_lets_it_clear_up(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def work() -> None:
        with pytest.raises(KeyboardInterrupt):
            run.chat("import time; time.sleep(60)")
        run.chat("print('cleared up')")  # as the way back of an update does

    threading.Timer(0.5, run.cancelled.set).start()
    began = time.monotonic()
    with run.stages.stage("updating", "ComfyUI", "updated"):
        side_by_side(work)
        run.chat("print('here')")  # the main thread is stopped by the signal itself
    assert time.monotonic() - began < 30
