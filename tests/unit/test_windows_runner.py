"""What the tests under Wine are said to have come to, and that the files they are chosen from exist."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.run_windows_tests import (
    INTEGRATION,
    Ended,
    Job,
    counted,
    pytest_job,
    readme_line,
    run,
    summary,
    with_second_tries,
)
from scripts.windows_python import WHEELS, WindowsPython, windows_path

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("..\n20 passed, 2 skipped in 1.20s\n", {"passed": 20, "skipped": 2}),
        ("=== 1 failed, 5191 passed, 2 errors in 368.16s (0:06:08) ===", {"failed": 1, "passed": 5191, "error": 2}),
        ("3 passed in 1.0s\nretried 4 times in 2.0s more\n1 failed in 0.5s", {"failed": 1}),
        ("Windows fatal exception: access violation", {}),
    ],
)
def test_the_numbers_are_those_of_pytests_last_summary(output: str, expected: dict[str, int]) -> None:
    assert counted(output) == expected


def ended(status: int | None, *, is_tests: bool = True, seconds: float = 1.0, **counts: int) -> Ended:
    job = Job(name="x", arguments=(), is_tests=is_tests)
    return Ended(job=job, status=status, seconds=seconds, output="", counts=Counter(counts))


@pytest.mark.parametrize(
    ("one", "is_passed", "said"),
    [
        (ended(0, passed=3, skipped=1), True, "3 passed, 1 skipped"),
        (ended(5, skipped=2), True, "2 skipped"),  # all of a file is for another system
        (ended(1, failed=1, passed=2), False, "1 failed, 2 passed"),
        (ended(None), False, "1 failed"),  # it did not end
        (ended(3221225477, passed=2), False, "1 failed, 2 passed"),  # it crashed
        (ended(5, is_tests=False), False, "1 failed"),
        (ended(0, is_tests=False), True, "nothing"),
    ],
)
def test_what_did_not_end_well_counts_as_failed(one: Ended, is_passed: bool, said: str) -> None:
    assert one.is_passed == is_passed
    assert summary([one], 61.0) == f"Windows (Wine): {said} in 61 s"


def test_what_the_time_did_not_suffice_for_is_named_and_counts_as_failed() -> None:
    late = ended(None, seconds=0.0)
    assert late.line == "FAILED     0 s  x: not run, the time is up"
    assert not late.is_passed
    assert run(WindowsPython(), late.job, deadline=0.0).line == late.line


def test_the_readme_shows_what_is_typed_in_windows() -> None:
    script = "klein-setup\\scripts\\klein_setup.py"
    assert readme_line((TESTS.parent / "README.md").read_text(encoding="utf-8")) == f"python {script}"


def test_a_file_that_failed_is_run_once_more_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    first = [ended(0, passed=3), replace(ended(1, passed=1), job=Job(name="y", arguments=(), is_tests=True))]
    done = with_second_tries(WindowsPython(), first, deadline=0.0)  # there is no time for it
    assert [each.job.name for each in done] == ["x", "y (second try)"]
    assert done[0] is first[0]
    assert not done[1].is_passed
    assert "y (second try)" in capsys.readouterr().out
    assert summary(done, 2.0) == "Windows (Wine): 1 failed, 3 passed, 1 tried twice in 2 s"
    command = ended(1, is_tests=False)
    assert with_second_tries(WindowsPython(), [command], deadline=0.0) == [command]


def test_a_test_that_passed_at_its_second_try_only_is_named() -> None:
    output = "=== rerun test summary info ===\nRERUN tests/a.py::test_x\n1 passed, 1 rerun in 0.64s\n"

    assert replace(ended(0), output=output).rerun == ["RERUN tests/a.py::test_x"]


def test_several_add_up() -> None:
    done = [ended(0, passed=3), ended(1, passed=1, failed=2), ended(None)]
    assert summary(done, 2.0) == "Windows (Wine): 3 failed, 4 passed in 2 s"


def test_what_is_chosen_exists() -> None:
    missing = [name for name in INTEGRATION if not (TESTS / "integration" / f"{name}.py").is_file()]
    assert missing == []
    assert len(set(INTEGRATION)) == len(INTEGRATION)
    assert "tests/unit" in pytest_job("tests/unit", workers=2).arguments


def test_the_wheels_are_pinned_by_hash() -> None:
    assert all(set(wheels) == {"panda3d", "msvc-runtime"} for wheels in WHEELS.values())
    assert all(len(digest) == 64 for wheels in WHEELS.values() for digest in wheels.values())


def test_only_what_concerns_a_windows_program_reaches_it() -> None:
    given = {"PIP_CERT": "/etc/ca.pem", "PYTHONPATH": "/x", "HOME": "/root", "https_proxy": "http://p", "DISPLAY": ":0"}
    environ = WindowsPython().environ(given)
    assert environ["PIP_CERT"] == windows_path("/etc/ca.pem") == r"Z:\etc\ca.pem"
    assert environ["https_proxy"] == "http://p"
    assert {"PYTHONPATH", "DISPLAY"}.isdisjoint(environ)
