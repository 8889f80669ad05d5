from __future__ import annotations

import hashlib
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from provisioner.core.errors import CommandError
from provisioner.machine.process import run_checked, run_process


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for yet does not."""
    if sys.platform == "win32":
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def ended_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_returns_what_both_streams_said() -> None:
    done = run_process(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), timeout_s=30)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (3, "out", "err")
    assert sorted(done.last_lines) == ["err", "out"]
    assert 0 < done.seconds < 30


def test_a_megabyte_on_stderr_neither_blocks_nor_is_kept() -> None:
    done = run_process(
        python(
            """
            import sys
            print("first", file=sys.stderr)
            for number in range(20_000):
                print(f"line {number} " + "x" * 45, file=sys.stderr)
            print("last", file=sys.stderr)
            print("the answer")
            """
        ),
        timeout_s=60,
        keep_bytes=64 * 1024,
    )
    assert done.stdout.strip() == "the answer"
    assert done.stderr.startswith("first")
    assert done.stderr.rstrip().endswith("last")
    assert "bytes left out" in done.stderr
    assert len(done.stderr) < 100 * 1024
    assert len(done.last_lines) == 200
    assert done.last_lines[0].startswith("line 198")


def test_output_within_the_bound_is_kept_whole() -> None:
    done = run_process(python("import sys; sys.stdout.write('ab' * 50_000)"), timeout_s=30, keep_bytes=100_000)
    assert done.stdout == "ab" * 50_000


def test_a_program_that_hangs_is_stopped_and_its_last_lines_are_kept() -> None:
    started = time.monotonic()
    with pytest.raises(CommandError) as caught:
        run_process(python("import time; print('about to hang', flush=True); time.sleep(600)"), timeout_s=1.5)
    assert time.monotonic() - started < 10
    assert caught.value.context["reason"] == "timeout"
    assert caught.value.context["last_lines"] == ["about to hang"]
    assert "did not end within 1.5 s" in str(caught.value)
    assert caught.value.exit_status == 8


def test_a_timeout_also_ends_what_the_program_started() -> None:
    code = f"""
        import subprocess, time
        child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(600)"])
        print(child.pid, flush=True)
        time.sleep(600)
    """
    with pytest.raises(CommandError) as caught:
        run_process(python(code), timeout_s=2)
    lines = caught.value.context["last_lines"]
    assert isinstance(lines, list)
    assert ended_within(int(lines[0]), 5)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM is POSIX")
def test_a_program_that_ignores_the_request_to_end_is_killed() -> None:
    code = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        time.sleep(600)
    """
    with pytest.raises(CommandError) as caught:
        run_process(python(code), timeout_s=1)
    lines = caught.value.context["last_lines"]
    assert isinstance(lines, list)
    assert ended_within(int(lines[0]), 5)


def test_a_grandchild_holding_the_pipes_is_not_waited_for() -> None:
    code = f"""
        import subprocess
        child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(600)"])
        print(child.pid, flush=True)
    """
    started = time.monotonic()
    done = run_process(python(code), timeout_s=60)
    assert done.returncode == 0
    assert time.monotonic() - started < 15
    if sys.platform != "win32":  # there, nothing leads from a dead parent to its children
        assert ended_within(int(done.stdout), 5)
    else:
        os.kill(int(done.stdout), signal.SIGTERM)


def test_lines_arrive_while_the_program_runs_and_on_the_callers_thread() -> None:
    heard: list[tuple[str, str, bool]] = []
    here = threading.get_ident()
    code = """
        import sys, time
        print("one", flush=True)
        sys.stdout.write("10%\\r20%\\r"); sys.stdout.flush()
        sys.stdin.readline()
        print("unfinished", end="", flush=True)
    """
    done = run_process(
        python(code),
        timeout_s=30,
        input_bytes=b"go\n",
        on_line=lambda stream, line: heard.append((stream, line, threading.get_ident() == here)),
    )
    assert done.returncode == 0
    assert heard == [
        ("stdout", "one", True),
        ("stdout", "10%", True),
        ("stdout", "20%", True),
        ("stdout", "unfinished", True),
    ]


def test_what_the_listener_raises_ends_the_program() -> None:
    pids: list[int] = []

    def refuse(stream: str, line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        run_process(python(code), timeout_s=60, on_line=refuse)
    assert ended_within(pids[0], 5)


def test_a_slow_listener_loses_no_line_of_a_program_that_already_ended() -> None:
    heard: list[str] = []

    def listen(stream: str, line: str) -> None:
        time.sleep(0.0005)
        heard.append(line)

    run_process(python("for number in range(3000): print(number)"), timeout_s=60, on_line=listen)
    assert heard == [str(number) for number in range(3000)]


def test_input_of_any_size_reaches_the_program() -> None:
    data = bytes(range(256)) * 8192  # 2 MiB, more than any pipe holds
    code = """
        import hashlib, sys
        data = sys.stdin.buffer.read()
        sys.stderr.write("x" * 300_000)
        print(len(data), hashlib.sha256(data).hexdigest())
    """
    done = run_process(python(code), timeout_s=60, input_bytes=data)
    assert done.stdout.split() == [str(len(data)), hashlib.sha256(data).hexdigest()]


def test_input_that_nobody_reads_is_no_error() -> None:
    assert run_process(python("pass"), timeout_s=30, input_bytes=b"x" * 1_000_000).returncode == 0


def test_there_is_no_input_unless_it_is_given() -> None:
    assert run_process(python("import sys; print(repr(sys.stdin.read()))"), timeout_s=30).stdout.strip() == "''"


def test_undecodable_output_is_replaced() -> None:
    done = run_process(python(r"import sys; sys.stdout.buffer.write(b'r\xe9sum\xc3\xa9\n')"), timeout_s=30)
    assert done.stdout == "r\ufffdsum\u00e9\n"


def test_environment_and_folder_are_those_given(tmp_path: Path) -> None:
    env = {**os.environ, "KLEIN_TEST": "42"}
    done = run_process(
        python("import os; print(os.environ['KLEIN_TEST'], os.getcwd())"), timeout_s=30, env=env, cwd=tmp_path
    )
    assert done.stdout.strip() == f"42 {tmp_path.resolve()}"


def test_arguments_never_meet_a_shell(tmp_path: Path) -> None:
    done = run_process(
        [*python("import sys; print(sys.argv[1:])"), "$HOME; echo hi", "%PATH%", "a b"], timeout_s=30, cwd=tmp_path
    )
    assert done.stdout.strip() == "['$HOME; echo hi', '%PATH%', 'a b']"


@pytest.mark.parametrize("where", ["program", "folder"])
def test_a_missing_program_or_folder_is_named(tmp_path: Path, where: str) -> None:
    missing = tmp_path / "nothing-here"
    args = [missing] if where == "program" else python("pass")
    with pytest.raises(CommandError) as caught:
        run_process(args, timeout_s=5, cwd=missing if where == "folder" else None)
    assert caught.value.context["reason"] == "missing"
    assert "nothing-here" in str(caught.value) or sys.platform == "win32"


def test_run_checked_raises_with_the_last_lines_and_without_secrets() -> None:
    code = """
        import sys
        print("Looking in https://me:pa55word@pypi.example/simple?sig=abcdef")
        print("ERROR: no matching distribution", file=sys.stderr)
        sys.exit(1)
    """
    with pytest.raises(CommandError) as caught:
        run_checked(
            [*python(code), "--index-url=https://me:pa55word@pypi.example/simple"], timeout_s=30, hint="try again"
        )
    error = caught.value
    assert error.hint == "try again"
    assert error.context["reason"] == "exit-status"
    assert error.context["returncode"] == 1
    assert "ended with exit status 1" in str(error)
    shown = f"{error} {error.context}"
    assert "ERROR: no matching distribution" in shown
    assert "pypi.example" in shown
    assert "pa55word" not in shown
    assert "abcdef" not in shown


def test_run_checked_returns_what_succeeded() -> None:
    assert run_checked(python("print('fine')"), timeout_s=30).stdout.strip() == "fine"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_program_ended_by_a_signal_is_reported_so() -> None:
    with pytest.raises(CommandError, match=r"signal 9 \(SIGKILL\)"):
        run_checked(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), timeout_s=30)


def test_runs_leave_no_thread_behind() -> None:
    before = threading.active_count()
    for _ in range(10):
        run_process(python("pass"), timeout_s=30, input_bytes=b"x")
    assert threading.active_count() == before


def test_a_program_that_a_thread_waits_for_is_ended_when_the_run_is_cancelled() -> None:
    """A signal reaches the main thread only."""
    cancelled = threading.Event()
    seen: list[int] = []

    def hear(_stream: str, line: str) -> None:
        seen.append(int(line))
        cancelled.set()

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_process(python(code), timeout_s=60, on_line=hear, cancelled=cancelled.is_set)
    assert time.monotonic() - began < 20
    assert ended_within(seen[0], 5)
