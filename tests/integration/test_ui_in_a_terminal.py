"""The interface as a person and a script meet it: terminals, pipes, questions, one document."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TextIO

import pytest

from provisioner import __version__
from provisioner.core.errors import AnswerNeededError, GatedError, UnreachableError
from provisioner.core.events import FileProgress, Notice, PlanMade, Stage, StageState, StepFinished, StepStarted
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    Check,
    ComfyFile,
    ComfyTarget,
    FetchFile,
    FilesPlan,
    HubFile,
    Licence,
    Machine,
    Manifest,
    Outcome,
)
from provisioner.plan.steps import Plan
from provisioner.report.outcome import Report, report_for_error
from provisioner.ui.console import Ui, issues_url
from tests.support.builders import whole
from tests.support.sandbox import wait_until
from tests.support.schemas import conforming

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f]")

ARTIFACT = Artifact(
    id="vae",
    role="vae",
    name="flux2-vae.safetensors",
    folder="vae",
    size=336_213_556,
    sha256="d64f3a68" + "0" * 56,
    sources=(HubFile(repo_id="org/name", revision="a" * 40, filename="x"),),
)
DESTINATION = ComfyFile(root=Path("/models"), relative=PurePosixPath("vae/flux2-vae.safetensors"))
STEP = FetchFile(artifact=ARTIFACT, destination=DESTINATION, reason="missing")
DONE = Outcome(step=STEP, status="done", detail="fetched", bytes_fetched=ARTIFACT.size, seconds=3.1)
STARTED = StepStarted(step=STEP, number=1, total=1)
FINISHED = StepFinished(step=STEP, outcome=DONE, number=1, total=1)


def plan() -> Plan:
    chosen = ArtifactSet(id="fp8", title="small", target="comfyui", artifacts=(ARTIFACT,))
    licence = Licence(name="Apache-2.0", url="https://l", is_commercial_use_allowed=True)
    manifest = Manifest(
        schema_version=1,
        id="flux2-klein-4b",
        title="FLUX.2",
        licence=licence,
        default_set="fp8",
        sets=(chosen,),
        artifacts=(ARTIFACT,),
        sha256="b" * 64,
    )
    files = FilesPlan(
        manifest=manifest,
        set=chosen,
        target=ComfyTarget(given=Path("/comfy"), models=Path("/models"), folders=()),
        steps=(STEP,),
        checks=(Check(artifact=ARTIFACT, destination=DESTINATION, status="missing", basis="none"),),
    )
    return whole(files)


def at(bytes_on_disk: int, **more: object) -> FileProgress:
    facts: dict[str, object] = {"phase": "fetching", "rate_bytes_s": 112e6, "connections": 8, **more}
    return FileProgress(
        label="vae/flux2-vae.safetensors",
        size=ARTIFACT.size,
        bytes_on_disk=bytes_on_disk,
        **facts,  # type: ignore[arg-type]
    )


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- no terminal -----------------------------------------------------------------------------


class Piped:
    """A run whose streams are no terminals."""

    def __init__(self, **options: object) -> None:
        self.out, self.err, self.clock = io.StringIO(), io.StringIO(), Clock()
        self.ui = Ui(self.out, self.err, stdin=io.StringIO(), environ={}, now=self.clock, **options)  # type: ignore[arg-type]


def test_without_a_terminal_a_step_has_two_lines_and_news_every_thirty_seconds() -> None:
    run = Piped()
    run.ui.listener(PlanMade(plan=plan().files))
    run.ui.listener(STARTED)
    for second in range(65):
        run.clock.now = 1000.0 + second
        run.ui.listener(at(second * 5_000_000))
    run.ui.listener(FINISHED)
    assert run.out.getvalue() == ""
    assert run.err.getvalue().splitlines() == [
        "[1/1] fetching vae/flux2-vae.safetensors (336 MB): missing",
        "vae/flux2-vae.safetensors: fetching, 44 %, 150 MB of 336 MB, 112 MB/s, 1.7 s left",
        "vae/flux2-vae.safetensors: fetching, 89 %, 300 MB of 336 MB, 112 MB/s, 0.3 s left",
        f"[1/1] verified  vae/flux2-vae.safetensors  336 MB  in 3.1 s  sha256 {ARTIFACT.sha256}",
    ]


def stage(state: StageState, detail: str = "", seconds: float = 0.0) -> Stage:
    return Stage(doing="installing", what="packages", done="installed", state=state, detail=detail, seconds=seconds)


def test_without_a_terminal_a_stage_has_a_line_at_its_beginning_and_end_and_every_thirty_seconds() -> None:
    run = Piped()
    run.ui.listener(stage("started"))
    for second in range(1, 73):
        run.clock.now = 1000.0 + second
        run.ui.listener(stage("working", f"Collecting package {second}\x1b[31m", float(second)))
    run.ui.listener(stage("done", "42 packages", 72.0))
    assert run.err.getvalue().splitlines() == [
        "installing packages",
        "installing packages: 30 s, Collecting package 30",
        "installing packages: 1 min, Collecting package 60",
        "installed 42 packages  1 min 12 s",
    ]


def test_without_a_terminal_a_silent_stage_is_told_of_as_well() -> None:
    run = Piped()
    run.ui.listener(stage("started"))
    run.clock.now += 31
    wait_until(lambda: "installing packages: 31 s" in run.err.getvalue(), what="the line after thirty seconds")
    run.ui.listener(stage("failed", seconds=40.0))
    run.clock.now += 100
    time.sleep(1.2)  # nothing ticks any more
    assert run.err.getvalue().splitlines()[-1] == "failed    installing packages  40 s"


def test_a_file_that_is_only_read_is_announced_at_once() -> None:
    run = Piped()
    run.ui.listener(at(ARTIFACT.size, phase="hashing", bytes_hashed=1, rate_bytes_s=0.0))
    run.clock.now += 29
    run.ui.listener(at(ARTIFACT.size, phase="hashing", bytes_hashed=2, rate_bytes_s=0.0))
    assert run.err.getvalue().splitlines() == ["vae/flux2-vae.safetensors: reading, 0 %, 1 byte of 336 MB"]


def test_no_control_character_of_a_server_reaches_a_log() -> None:
    run = Piped()
    evil = "\x1b[2J\x1b]0;owned\x07sorry\r\n\x9b31m"
    run.ui.listener(STARTED)
    run.ui.listener(Notice(message=evil, severity="warning"))
    run.clock.now += 60
    run.ui.listener(at(5, phase="waiting", note=evil))
    run.ui.listener(
        StepFinished(step=STEP, outcome=Outcome(step=STEP, status="failed", detail=evil), number=1, total=1)
    )
    run.ui.show_report(report_for_error("install", UnreachableError(evil, hint=evil), plan=plan()))
    text = run.err.getvalue() + run.out.getvalue()
    assert text.count("sorry") == 5
    assert "owned" not in text
    assert not CONTROL.search(text)


@pytest.mark.parametrize("mode", ["human", "json", "events"])
def test_token_never_appears_on_any_stream(mode: str) -> None:
    run = Piped(mode=mode, verbose=True, secrets=["my own password", "another one"])
    text = f"https://u:{TOKEN}@h/x?Signature=abc my own password {TOKEN}"
    run.ui.listener(STARTED)
    run.ui.listener(Notice(message=text + " another one"))
    run.ui.notice(text)
    run.ui.say(text)
    run.ui.show_defect(ValueError(text), Path("/log"))
    run.ui.show_report(
        replace(report_for_error("install", GatedError(text, hint=text, fact=text)), manifest_argument=text)
    )
    told = run.out.getvalue() + run.err.getvalue()
    assert told
    for secret in (TOKEN, "Signature", "my own password", "another one"):
        assert secret not in told


def test_notices_are_for_who_wants_them_and_warnings_for_everybody() -> None:
    for options, expected in (
        ({}, ["warning   careful"]),
        ({"verbose": True}, ["note      by the way", "warning   careful"]),
        ({"quiet": True}, []),
    ):
        run = Piped(**options)
        run.ui.listener(Notice(message="by the way"))
        run.ui.listener(Notice(message="careful", severity="warning"))
        assert run.err.getvalue().splitlines() == expected


def test_quiet_leaves_errors_and_the_result() -> None:
    run = Piped(quiet=True)
    run.ui.show_plan(plan())
    run.ui.listener(STARTED)
    run.ui.listener(FINISHED)
    run.ui.show_report(Report(command="verify", status="findings", exit_status=1, plan=plan()))
    assert run.err.getvalue() == ""
    assert run.out.getvalue().splitlines()[0].split()[:2] == ["missing", "vae/flux2-vae.safetensors"]
    assert "1 of 1 file is wrong or missing." in run.out.getvalue()


def test_what_a_command_was_asked_for_is_shown_quietly_too() -> None:
    run = Piped(quiet=True)
    run.ui.show_manifest(plan().manifest)
    assert plan().manifest.id in run.out.getvalue()
    assert run.err.getvalue() == ""


def test_an_error_is_said_once_with_what_to_do() -> None:
    run = Piped()
    error = UnreachableError("huggingface.co cannot be reached.", hint="Check the network.")
    run.ui.show_error(error)
    run.ui.show_report(report_for_error("install", error))
    assert run.err.getvalue() == "error: huggingface.co cannot be reached.\n  hint: Check the network.\n"
    assert run.out.getvalue() == ""


def test_a_defect_names_the_log_and_shows_the_traceback_when_asked() -> None:
    for is_verbose in (False, True):
        run = Piped(verbose=is_verbose)
        try:
            raise TypeError("int + str")
        except TypeError as error:
            run.ui.show_defect(error, Path("/var/log.txt"))
        assert "internal error in klein-setup: TypeError: int + str" in run.err.getvalue()
        assert str(Path("/var/log.txt")) in run.err.getvalue()
        assert issues_url() in run.err.getvalue()
        assert ("Traceback" in run.err.getvalue()) == is_verbose


# --- --json ----------------------------------------------------------------------------------


def test_json_is_one_document_when_it_fails() -> None:
    run = Piped(mode="json")
    run.ui.show_plan(plan())
    run.ui.say("for people")
    run.ui.listener(STARTED)
    run.ui.listener(FINISHED)
    run.ui.show_report(report_for_error("install", UnreachableError("no network"), plan=plan()))
    told = conforming(json.loads(run.out.getvalue()))
    assert (told["status"], told["exit_status"]) == ("failed", 5)
    assert "error: no network" in run.err.getvalue()


def test_the_document_says_where_and_when_in_utc() -> None:
    before = time.time()
    run = Piped(mode="json", host="lab-3\x1b[31m")
    run.clock.now += 61.2345
    run.ui.show_report(Report(command="verify", status="ok", exit_status=0))
    told = conforming(json.loads(run.out.getvalue()))
    began, ended = (datetime.fromisoformat(told[key].replace("Z", "+00:00")) for key in ("started_at", "ended_at"))
    assert told["host"] == "lab-3"
    assert before - 1 <= began.timestamp() <= time.time() + 1
    assert (ended - began).total_seconds() == pytest.approx(61.234, abs=0.002)
    assert told["seconds"] == pytest.approx(61.234, abs=0.001)
    assert told["versions"] == {
        "klein_setup": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "comfyui": None,
        "torch": None,
    }


@pytest.mark.skipif(sys.platform == "win32", reason="its two names differ in case, and in length")
def test_the_name_of_this_computer_is_that_of_the_socket_library() -> None:
    run = Piped(mode="json")
    run.ui.show_report(Report(command="verify", status="ok", exit_status=0))
    assert json.loads(run.out.getvalue())["host"] == socket.gethostname()


def test_events_are_a_line_each_and_the_document_is_the_last() -> None:
    run = Piped(mode="events")
    for event in (PlanMade(plan=plan().files), STARTED, at(5), FINISHED, Notice(message="two\nlines")):
        run.ui.listener(event)
    run.ui.show_report(Report(command="install", status="ok", exit_status=0, plan=plan(), outcomes=(DONE,)))
    told = [conforming(json.loads(line), "events") for line in run.out.getvalue().splitlines()]
    names = ["plan-made", "step-started", "file-progress", "step-finished", "notice", "report"]
    assert [each["event"] for each in told] == names
    assert told[-1]["schema_version"] == 2
    assert run.err.getvalue() == ""


def test_the_name_of_this_computer_is_cleaned_in_every_line() -> None:
    run = Piped(mode="events", host="lab\x1b[2J-1")
    run.ui.listener(Notice(message="x"))
    run.ui.show_report(Report(command="verify", status="ok", exit_status=0))
    assert [json.loads(line)["host"] for line in run.out.getvalue().splitlines()] == ["lab-1"] * 2


def test_events_of_many_threads_do_not_mix() -> None:
    run = Piped(mode="events")

    def work() -> None:
        for number in range(50):
            run.ui.listener(at(number))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(line)["event"] for line in run.out.getvalue().splitlines()] == ["file-progress"] * 200


# --- a locale without UTF-8, and what start-up may cost ------------------------------------------


SHOW_A_MACHINE = """
import sys
from provisioner.core.models import Machine
from provisioner.ui.console import Ui
ui = Ui(sys.stdout, sys.stderr)
ui.show_machine(Machine(
    os="linux", os_release="\\u6a21\\u578b \\udcff", is_wsl=False, architecture="x", libc=None, python_version="3"
))
ui.notice("Mod\\u00e8les", severity="warning")
print([name for name in ("rich", "tqdm", "requests", "huggingface_hub", "yaml") if name in sys.modules])
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_no_locale_makes_it_fail_and_no_drawing_library_is_imported_for_text(encoding: str) -> None:
    environ = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SHOW_A_MACHINE], env=environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.decode(encoding)
    assert "Machine" in told
    assert ("\u6a21\u578b" in told) == (encoding == "utf-8")
    assert told.splitlines()[-1] == "[]"


# --- a real terminal ---------------------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="the pty module is for POSIX; consoles are tested by hand")


class Terminal:
    """The near end of a pseudo-terminal whose far end collects everything."""

    def __init__(
        self, near: TextIO, said: bytearray, type_: Callable[[bytes], object], settle: Callable[[], None]
    ) -> None:
        self.near = near
        self._said = said
        self.type = type_
        self._settle = settle

    @property
    def text(self) -> str:
        self._settle()
        return self._said.decode()


@contextmanager
def terminal(columns: int = 80, lines: int = 24, encoding: str = "utf-8") -> Iterator[Terminal]:
    """Open a pseudo-terminal of that size."""
    if sys.platform == "win32":
        pytest.skip("no pseudo-terminals here")
    import fcntl
    import pty
    import struct
    import termios
    import time

    far, near = pty.openpty()
    fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    said = bytearray()

    def collect() -> None:
        while True:
            try:
                chunk = os.read(far, 65536)
            except OSError:  # Linux: EIO when the near end is closed
                return
            if not chunk:  # macOS: end of file
                return
            said.extend(chunk)

    def settle() -> None:
        """Wait until the reader has had everything that was written."""
        marker = b"<settled>"
        os.write(near, marker)
        deadline = time.monotonic() + 10
        while marker not in said and time.monotonic() < deadline:
            time.sleep(0.002)
        del said[said.index(marker) :]

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    stream = os.fdopen(os.dup(near), "w", encoding=encoding, newline="")
    try:
        yield Terminal(stream, said, lambda typed: os.write(far, typed), settle)
    finally:
        stream.close()
        os.close(near)
        reader.join(timeout=5)
        os.close(far)


def ui_on(screen: Terminal, clock: Clock, term: str = "xterm-256color", **options: object) -> Ui:
    environ = {"TERM": term, **options.pop("environ", {})}  # type: ignore[dict-item]
    return Ui(screen.near, screen.near, environ=environ, now=clock, **options)  # type: ignore[arg-type]


def generate(ui: Ui, clock: Clock) -> None:
    """A download from its first byte to its proof, with news on the way."""
    ui.listener(PlanMade(plan=plan().files))
    ui.listener(STARTED)
    for part in range(5):
        clock.now += 1
        ui.listener(at(ARTIFACT.size * part // 5))
    ui.listener(Notice(message="a retry is due", severity="warning"))
    clock.now += 1
    ui.listener(at(ARTIFACT.size, phase="syncing"))


def bare(text: str) -> str:
    """Return text without escape sequences, each place the cursor went to on a line of its own."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


@posix
@pytest.mark.parametrize("columns", [60, 100, 200])
def test_bars_fit_the_window_and_leave_one_line_per_file(columns: int) -> None:
    clock = Clock()
    with terminal(columns) as screen:
        ui = ui_on(screen, clock)
        generate(ui, clock)
        generated = screen.text
        ui.listener(FINISHED)
        ui.close()
        left = screen.text[len(generated) :]
    assert "79 %" in generated
    assert "112 MB/s" in generated
    assert "writing to disk" in generated
    assert "0 of 1 file, " in generated
    assert "a retry is due" in generated
    assert all(len(line) <= columns for line in bare(generated).split("\n"))
    assert "verified" in bare(left)
    assert "in 3.1 s" in bare(left)
    assert generated.count("\x1b[?25l") == 1
    assert left.count("\x1b[?25h") == 1, "the cursor comes back"


CLOCK = re.compile(r"\b0:\d\d\b")


@posix
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_clock_of_a_silent_stage_moves_and_its_row_fits(columns: int) -> None:
    began = time.monotonic()
    with terminal(columns=columns) as screen:
        with Ui(screen.near, screen.near, environ={"TERM": "xterm"}) as ui:
            ui.listener(stage("started"))
            ui.listener(stage("working", "Collecting " + "x" * 200))
            wait_until(lambda: len(set(CLOCK.findall(bare(screen.text)))) > 2, what="three times, of any seconds")
            ui.listener(stage("done", "42 packages", time.monotonic() - began))
        lines = bare(screen.text).splitlines()
    rows = [line for line in lines if "installing packages" in line]
    assert len({clock for row in rows for clock in CLOCK.findall(row)}) > 2
    assert max(map(len, rows)) < columns
    assert ("Collecting" in rows[-1]) == (columns > 40)
    assert re.fullmatch(r"installed 42 packages  [\d.]+ s", [line for line in lines if line.strip()][-1])


@posix
def test_a_terminal_that_cannot_move_its_cursor_gets_the_lines_of_a_stage() -> None:
    clock = Clock()
    with terminal() as screen:
        with ui_on(screen, clock, term="dumb") as ui:
            ui.listener(stage("started"))
            clock.now += 30
            ui.listener(stage("working", "Collecting numpy", 30.0))
            ui.listener(stage("done", "42 packages", 31.0))
        text = screen.text
    assert "\x1b" not in text
    assert text.splitlines() == [
        "installing packages", "installing packages: 30 s, Collecting numpy", "installed 42 packages  31 s"
    ]  # fmt: skip


def both_at_once(ui: Ui, clock: Clock) -> None:
    """Let two files and two stages go on at once for a minute, and end one of each."""
    server = Stage(doing="starting", what="ComfyUI", done="started", state="started")
    ui.listener(PlanMade(plan=plan().files))
    ui.listener(STARTED)
    ui.listener(stage("started"))
    clock.now += 10
    ui.listener(server)
    for second in range(1, 61):
        clock.now += 1
        ui.listener(at(second * 5_000_000, rate_bytes_s=5e6))
        ui.listener(replace(at(second * 2_000_000, rate_bytes_s=2e6), label="torch-2.13.0-cp311.whl", size=600_000_000))
        ui.listener(stage("working", f"Collecting package {second}", 10.0 + second))
        ui.listener(replace(server, state="working", detail="importing", seconds=float(second)))
    ui.listener(stage("done", "42 packages", 70.0))
    clock.now += 1
    ui.listener(replace(server, state="working", detail="listening", seconds=61.0))


@posix
@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_files_and_stages_at_once_have_a_row_each_and_one_line_for_all_files(columns: int, encoding: str) -> None:
    clock = Clock()
    with terminal(columns) as screen:
        with (
            os.fdopen(os.dup(screen.near.fileno()), "w", encoding=encoding) as near,
            Ui(near, near, environ={"TERM": "xterm", "NO_COLOR": "1"}, now=clock) as ui,
        ):
            both_at_once(ui, clock)
        lines = [line for line in bare(screen.text).splitlines() if line.strip()]
    assert all(len(line) <= columns for line in lines)
    last = max(number for number, line in enumerate(lines) if "20 %" in line)
    drawing = "\n".join(lines[last - 1 :])
    for words in ("flux", "  torc", "89 %", "20 %", "420 MB of 936 MB", "1:14 left", "starting ComfyUI  1:01"):
        assert words in drawing, drawing
    assert any(line.startswith("installed 42 packages") for line in lines)
    assert any("installing packages" in line and "starting" not in line for line in lines)
    assert "installing packages" not in drawing, "it has ended"


@posix
@pytest.mark.parametrize("is_terminal", [True, False])
def test_files_and_stages_at_once_have_lines_that_name_them_where_nothing_is_redrawn(is_terminal: bool) -> None:
    clock = Clock()
    if is_terminal:
        with terminal() as screen:
            with ui_on(screen, clock, term="dumb") as ui:
                both_at_once(ui, clock)
            text = screen.text
    else:
        out = io.StringIO()
        with Ui(out, out, stdin=io.StringIO(), environ={}, now=clock) as ui:
            both_at_once(ui, clock)
        text = out.getvalue()
    assert "\x1b" not in text
    lines = bare(text).splitlines()
    told = [line for line in lines if ": " in line or line.startswith(("installing", "starting", "installed"))]
    for one in (
        "installing packages",
        "starting ComfyUI",
        "installing packages: 30 s, Collecting package 20",
        "starting ComfyUI: 30 s, importing",
        "installing packages: 1 min, Collecting package 50",
        "starting ComfyUI: 1 min, importing",
        "installed 42 packages  1 min 10 s",
    ):
        assert told.count(one) == 1, (one, told)
    if is_terminal:
        assert "2 files:  " in text
    else:
        assert sum(line.startswith("torch-2.13.0-cp311.whl: fetching") for line in lines) == 2
        assert sum(line.startswith("vae/flux2-vae.safetensors: fetching") for line in lines) == 2
        assert sum(line.startswith("together: 0 of 2 files, ") for line in lines) == 2


@posix
@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_paths_are_short_and_links_are_for_terminals_that_redraw(environ: dict[str, str]) -> None:
    clock, home = Clock(), {"HOME": "/models", **environ}
    with terminal() as screen:
        with ui_on(screen, clock, environ=home) as ui:
            ui.show_plan(plan())
            ui.listener(Notice(message="kept as /models/old, see https://a.example", severity="warning"))
        text = screen.text
    has_links = not environ
    assert ("\x1b]8;;https://l\x1b\\" in text) == has_links  # the licence's
    assert ("https://a.example\x1b\\" in text) == has_links  # written by rich, with an id of its own
    assert "ComfyUI models folder ~" in re.sub("\x1b(]8;[^\x1b]*\x1b\\\\|\\[[0-9;]*m)", "", text)
    assert "~/old" in text


def test_in_a_pipe_paths_are_whole_and_nothing_is_a_link() -> None:
    run = Piped()
    run.ui = Ui(run.out, run.err, stdin=io.StringIO(), environ={"HOME": "/models"}, color=True)
    run.ui.show_plan(plan())
    assert "/models" in run.out.getvalue()
    assert "~" not in run.out.getvalue()
    assert "\x1b]8" not in run.out.getvalue()


@posix
def test_a_finished_file_leaves_the_bars() -> None:
    clock = Clock()
    with terminal() as screen:
        ui = ui_on(screen, clock)
        generate(ui, clock)
        before = len(screen.text)
        ui.listener(FINISHED)
        left = bare(screen.text[before:])
        ui.close()
    assert "writing to disk" not in left


@posix
@pytest.mark.parametrize(("environ", "color"), [({"NO_COLOR": "1"}, None), ({}, False)])
def test_no_color_still_draws_bars_without_a_colour(environ: dict[str, str], color: bool | None) -> None:
    clock = Clock()
    with terminal() as screen:
        ui = ui_on(screen, clock, environ=environ, color=color)
        generate(ui, clock)
        ui.show_plan(plan())
        text = screen.text
    assert "\u2501" in text
    assert not re.search(r"\x1b\[[0-9;]*m", text)


@posix
def test_colour_is_used_where_nobody_objects() -> None:
    clock = Clock()
    with terminal() as screen:
        ui_on(screen, clock).show_report(Report(command="verify", status="findings", exit_status=1, plan=plan()))
        assert "\x1b[1;31mmissing" in screen.text


@posix
def test_a_terminal_that_cannot_move_its_cursor_gets_a_plain_bar() -> None:
    clock = Clock()
    with terminal() as screen:
        ui = ui_on(screen, clock, term="dumb")
        generate(ui, clock)
        ui.listener(FINISHED)
        ui.close()
        text = screen.text
    assert "\x1b" not in text
    assert "80%|" in text
    assert "[1/1] verified  vae/flux2-vae.safetensors" in text
    assert "a retry is due" in text


@posix
def test_a_step_begins_without_escapes_and_secrets_where_the_cursor_cannot_move() -> None:
    step = replace(STEP, reason=f"\x1b]0;owned\x07asked for\r\nwith token=abcdefgh, {TOKEN}")
    with terminal() as screen:
        with ui_on(screen, Clock(), term="dumb") as ui:
            ui.listener(replace(STARTED, step=step))
        text = screen.text
    assert " ".join(text.split()) == (
        "[1/1] fetching vae/flux2-vae.safetensors (336 MB): asked for with token=***, hf_***"
    )


@posix
def test_a_terminal_without_utf_8_gets_ascii_bars() -> None:
    clock = Clock()
    with terminal(encoding="ascii") as screen:
        ui = ui_on(screen, clock)
        generate(ui, clock)
        ui.close()
        text = screen.text
    assert text.isascii()
    assert "###" in text


@posix
def test_more_files_than_lines_are_counted_not_drawn() -> None:
    clock = Clock()
    with terminal(lines=8) as screen:
        ui = ui_on(screen, clock)
        for number in range(10):
            clock.now += 1
            ui.listener(FileProgress(label=f"shard-{number}", phase="fetching", size=10, bytes_on_disk=1))
        ui.close()
        assert "and 6 more" in screen.text


@posix
def test_progress_from_many_threads_neither_fails_nor_hangs() -> None:
    with terminal() as screen:
        ui = Ui(screen.near, screen.near, environ={"TERM": "xterm"})
        ui.listener(STARTED)

        def work(label: str) -> None:
            for number in range(100):
                ui.listener(FileProgress(label=label, phase="fetching", size=100, bytes_on_disk=number))
                ui.listener(Notice(message=f"{label} {number}", severity="warning"))

        threads = [threading.Thread(target=work, args=(f"file-{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
        ui.close()
        text = bare(screen.text)
    assert all(f"file-{number} 99" in text for number in range(4))


# --- questions -------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("typed", "default", "answer"),
    [
        (b"y\n", False, True),
        (b"YES\n", False, True),
        (b"n\n", True, False),
        (b"\n", False, False),
        (b"\n", True, True),
        (b"maybe\ny\n", False, True),
        (b"\x04", False, False),
    ],
)
def test_a_question_is_answered_and_silence_is_the_default(typed: bytes, default: bool, answer: bool) -> None:
    with terminal() as screen, os.fdopen(os.dup(screen.near.fileno()), "r") as keyboard:
        ui = ui_on(screen, Clock(), stdin=keyboard)
        screen.type(typed)
        assert ui.ask("Fetch 12.45 GB?", default=default) is answer
        assert f"Fetch 12.45 GB? [{'Y/n' if default else 'y/N'}] " in screen.text
        assert ("Please answer" in screen.text) == (typed.startswith(b"maybe"))


@posix
def test_with_no_input_nothing_is_asked_even_on_a_terminal() -> None:
    with terminal() as screen, os.fdopen(os.dup(screen.near.fileno()), "r") as keyboard:
        with pytest.raises(AnswerNeededError, match="Fetch it"):
            ui_on(screen, Clock(), stdin=keyboard, interactive=False).ask("Fetch it?")
        assert screen.text == ""


def test_without_a_terminal_a_question_is_an_error_that_says_how_to_go_on() -> None:
    with pytest.raises(AnswerNeededError) as caught:
        Piped().ui.ask("Fetch it?")
    assert caught.value.hint is not None
    assert "--yes" in caught.value.hint


# --- what else is shown --------------------------------------------------------------------------


def test_machine_and_manifests_go_to_stdout_for_people_only() -> None:
    machine = Machine(
        os="linux", os_release="6.1", is_wsl=True, architecture="x86_64", libc=None, python_version="3.11"
    )
    for mode, is_shown in (("human", True), ("json", False)):
        run = Piped(mode=mode)
        run.ui.show_machine(machine)
        run.ui.show_manifests([plan().manifest])
        run.ui.show_manifest(plan().manifest)
        assert ("under WSL" in run.out.getvalue()) == is_shown
        assert (ARTIFACT.sha256 in run.out.getvalue()) == is_shown


def test_the_command_for_every_file_names_the_manifest_as_it_was_given() -> None:
    run = Piped()
    run.ui.show_manifest(plan().manifest, has_files=False, argument="my own.yaml")
    assert "`klein-setup manifest show 'my own.yaml' --files`" in run.out.getvalue()


def test_a_reader_that_leaves_early_does_not_break_the_run() -> None:
    code = (
        "import sys; from provisioner.ui.console import Ui; ui = Ui(sys.stdout, sys.stderr)\n"
        "for n in range(20000): ui.say('line %d' % n)\n"
        "sys.stderr.write('reached the end'); sys.exit(7)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"reached the end"
    assert process.returncode == 7
