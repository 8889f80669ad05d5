#!/usr/bin/env python3
"""Run the tests in a Windows Python: ``python3 scripts/run_windows_tests.py [--require-windows] [FILE ...]``.

Without files: the bootstrap, the rehearsal, the unit and contract tests, and the integration tests of ``INTEGRATION``;
each file in a process of its own that is ended after its time.  A file that failed is run once more, alone, and named.
All of them together have ``LIMIT_S``; what was not begun by then is named and counts as failed.  The last line on
standard output is the summary of all of them.

Where there is no Wine and none can be installed, that line says so and the exit status is 0; with
``--require-windows`` it is 3.  The exit status is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.windows_python import HOME, ROOT, MissingError, WindowsPython

MARK = "KLEIN_WINDOWS_JOB"  # in the environment of every process of one job
TYPED_IN = HOME / "typed"  # where commands are typed; the checkout is in a folder of it, as after `git clone`
LIMIT_S = 1800  # of everything, the making of the Windows Python included
JOB_TIMEOUT_S = 600
PREPARATION_TIMEOUT_S = 900  # installs the locked packages
WORD = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed|xpassed|rerun|warning|deselected)s?\b")

# The integration tests that are run: what Windows does otherwise than other systems.  The others would take an hour, or
# need what is not there: git, torch, a browser, a pseudo-terminal.  test_kills_and_locks is left out because it catches
# runs at a moment that it finds by their speed, and the start of a process takes seconds under Wine.
INTEGRATION = (
    "test_command_line",  # those that take long begin first
    "test_on_windows",
    "test_repair",
    "test_storage_trouble",
    "test_doctor_command",
    "test_store",
    "test_wine_gaps",
    "test_backups",
    "test_comfy_tree",
    "test_detect_command",
    "test_found_trees",
    "test_hub_adapter",
    "test_links",
    "test_misplaced_files",
    "test_output_and_signals",
    "test_process",
    "test_tether",
    "test_uninstall",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process to run: a file of tests, or a command."""

    name: str
    arguments: tuple[str, ...]  # of Python; or one line that is typed in the folder that holds a checkout
    timeout_s: float = JOB_TIMEOUT_S
    is_tests: bool = False
    is_typed: bool = False
    expected: int = 0  # its exit status


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What came of a job."""

    job: Job
    status: int | None  # None: it did not end in its time, or was not begun
    seconds: float
    output: str
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def is_passed(self) -> bool:
        """Whether everything of it passed; pytest's 5 is a file whose tests are all for another system."""
        return self.status == self.job.expected or (self.job.is_tests and self.status == 5)

    @property
    def rerun(self) -> list[str]:
        """The tests that passed at their second try only."""
        return [line for line in self.output.splitlines() if line.startswith("RERUN ")] if self.is_passed else []

    @property
    def line(self) -> str:
        """What is said of it."""
        said = ", ".join(f"{number} {word}" for word, number in self.counts.items()) or f"status {self.status}"
        if self.status is None:
            said = f"did not end within {self.seconds:.0f} s" if self.seconds else "not run, the time is up"
        return f"{'ok    ' if self.is_passed else 'FAILED'} {self.seconds:5.0f} s  {self.job.name}: {said}"


def pytest_job(*files: str, workers: int = 0) -> Job:
    """Return the job that runs files or folders of tests."""
    spread = ("-n", str(workers), "--dist", "loadfile") if workers else ("-p", "no:xdist")
    # The profile "ci" times no example and draws the same ones each time.
    options = ("-q", "-rfER", "--reruns", "1", "--tb=short", "-p", "no:cacheprovider", "--hypothesis-profile=ci")
    arguments = ("scripts/run_tests.py", *options, *spread, *files)
    return Job(
        name=Path(files[0]).stem, arguments=arguments, is_tests=True, timeout_s=JOB_TIMEOUT_S * (2 if workers else 1)
    )


def preparations() -> list[Job]:
    """Return what runs first, in the order of its beginning: both environments are made here, as by a first start."""
    line = readme_line((ROOT / "README.md").read_text(encoding="utf-8"))
    no_gpu = Job(name=line, arguments=(line,), is_typed=True, expected=3, timeout_s=PREPARATION_TIMEOUT_S)
    line += " rehearse --no-image"
    tests = ("scripts/run_tests.py", "--version")
    return [
        no_gpu,
        Job(name="test environment", arguments=tests, timeout_s=PREPARATION_TIMEOUT_S),
        Job(name=line, arguments=(line,), is_typed=True, timeout_s=PREPARATION_TIMEOUT_S),  # it may wait for the first
    ]


def readme_line(text: str) -> str:
    """Return what the README has a user of Windows type in the folder that holds the checkout, once it is cloned."""
    return text.partition("```powershell\ngit clone ")[2].partition("\n")[0].partition("; ")[2]


def copy_checkout(folder: Path) -> None:
    """Copy the checkout as it is now, without what runs left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "build"))


def run(python: WindowsPython, job: Job, deadline: float = math.inf) -> Ended:
    """Run a job to its end, or to the end of its time or of everybody's."""
    started = time.monotonic()
    if started >= deadline:
        return Ended(job=job, status=None, seconds=0.0, output="")
    environ = python.environ(os.environ) | {MARK: job.name}
    process = subprocess.Popen(
        python.typed(*job.arguments) if job.is_typed else python.command(job.arguments),
        cwd=TYPED_IN if job.is_typed else ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = bytearray()
    reader = threading.Thread(target=lambda: output.extend(process.stdout.read() if process.stdout else b""))
    reader.start()
    try:
        status: int | None = process.wait(min(job.timeout_s, deadline - started))
    except subprocess.TimeoutExpired:
        status = None
    if status is not None:
        reader.join(5)
    end_all(job.name)  # also what was left over and holds the pipe
    process.wait()
    reader.join()
    text = output.decode("utf-8", "replace").replace("\r\n", "\n")
    counts = counted(text) if job.is_tests else Counter()
    return Ended(job=job, status=status, seconds=time.monotonic() - started, output=text, counts=counts)


def counted(output: str) -> Counter[str]:
    """Return the numbers of pytest's own summary line, the last one it printed."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    return Counter({word: int(number) for number, word in WORD.findall(lines[-1])}) if lines else Counter()


def end_all(name: str) -> None:
    """End what a job started and left; a Windows process under Wine keeps the environment of the first."""
    wanted = f"{MARK}={name}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), 9)


def in_turn(python: WindowsPython, jobs: Iterable[Job], at_once: int = 1, deadline: float = math.inf) -> list[Ended]:
    """Run jobs, some at a time, and say of each what came of it."""
    done = []
    with ThreadPoolExecutor(at_once) as pool:
        for ended in pool.map(lambda job: run(python, job, deadline), jobs):
            if not ended.is_passed:
                print(f"---- {ended.job.name}\n{ended.output[-20_000:]}")
            print(ended.line, *ended.rerun, sep="\n          ", flush=True)
            done.append(ended)
    return done


def with_second_tries(python: WindowsPython, done: Sequence[Ended], deadline: float = math.inf) -> list[Ended]:
    """Run the files that failed once more, alone, and return the results that count: what fails twice is broken.

    pytest does that with a test; this is for what ends a whole process, or outlives the test in it.
    """
    counted_once = []
    for each in done:
        if each.is_passed or not each.job.is_tests:
            counted_once.append(each)
            continue
        (again,) = in_turn(python, [replace(each.job, name=f"{each.job.name} (second try)")], 1, deadline)
        counted_once.append(again)
    return counted_once


def summary(done: Sequence[Ended], seconds: float) -> str:
    """Return the line that stands for all of it."""
    total: Counter[str] = Counter({"tried twice": sum(each.job.name.endswith("(second try)") for each in done)})
    for each in done:
        total.update(each.counts)
        if not each.is_passed and not each.counts["failed"] + each.counts["error"]:
            total["failed"] += 1  # a command, a file that did not end, or one that could not be read
    words = [
        f"{total[word]} {word}"
        for word in ("failed", "error", "passed", "skipped", "xfailed", "rerun", "tried twice")
        if total[word]
    ]
    return f"Windows (Wine): {', '.join(words) or 'nothing'} in {seconds:.0f} s"


def all_done(python: WindowsPython, files: Sequence[str], deadline: float) -> list[Ended]:
    """Run these files, or everything."""
    if files:
        return in_turn(python, [pytest_job(file) for file in files], 1, deadline)
    cores = os.cpu_count() or 1
    whole = [pytest_job(f"tests/{each}", workers=cores) for each in ("unit", "contract")]
    chosen = [pytest_job(f"tests/integration/{each}.py") for each in INTEGRATION]
    copy_checkout(TYPED_IN / "klein-setup")
    prepared = in_turn(python, preparations(), cores, deadline)
    return prepared + in_turn(python, whole, 1, deadline) + in_turn(python, chosen, cores, deadline)


def main() -> int:
    """Make the Windows Python, run everything in it; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--require-windows", action="store_true", help="fail where there is no Wine")
    parser.add_argument("files", nargs="*", help="tests to run, instead of all that run there")
    options = parser.parse_args()
    started = time.monotonic()
    deadline = started + LIMIT_S
    python = WindowsPython()
    try:
        python.make()
    except MissingError as error:
        print(f"Windows (Wine): not run: {error}")
        return 3 if options.require_windows else 0
    with python.awake():
        done = with_second_tries(python, all_done(python, options.files, deadline), deadline)
    print(summary(done, time.monotonic() - started))
    return 0 if all(each.is_passed for each in done) else 1


if __name__ == "__main__":
    sys.exit(main())
