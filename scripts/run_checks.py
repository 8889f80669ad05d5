#!/usr/bin/env python3
"""Run the static checks: ``python3 scripts/run_checks.py [lint] [types]``, by default both.

Like ``run_tests.py`` it starts from a checkout with nothing installed.  ``--here`` takes the interpreter it is
started with instead of the private environment; nox does.  Every check runs, one on each core, so one run shows
everything.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PLATFORMS = ("linux", "win32", "darwin")
CHECKS = {
    "lint": [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "codespell_lib"],
        ["scripts/check_lock.py"],
    ],
    # A cache for each platform: in a common one each would throw away what the others found.
    "types": [
        ["-m", "mypy", "--platform", platform, "--cache-dir", f".mypy_cache/{platform}"] for platform in PLATFORMS
    ],
}


def run_here(kinds: list[str]) -> int:
    """Run the checks of those kinds with this interpreter; return 1 if any failed."""
    status = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = [arguments for kind in kinds for arguments in CHECKS[kind]]
        for arguments, ended in zip(checks, pool.map(run_check, checks), strict=True):
            print("$ python", *arguments)
            print(ended.stdout, end="", flush=True)
            status |= ended.returncode != 0
    return status


def run_check(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one check and keep what it prints, so that two do not mix their lines."""
    line = [sys.executable, *arguments]
    return subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False)


def main() -> int:
    """Prepare, then check; return the exit status."""
    scripts = os.path.dirname(os.path.realpath(__file__))
    os.chdir(os.path.dirname(scripts))
    kinds = [word for word in sys.argv[1:] if word != "--here"]
    unknown = sorted(set(kinds) - set(CHECKS))
    if unknown:
        sys.stderr.write(f"run_checks: {', '.join(unknown)}: there are only {' and '.join(CHECKS)}.\n")
        return 2
    if "--here" in sys.argv:
        return run_here(kinds or list(CHECKS))
    sys.path.insert(0, scripts)
    from bootstrap import run  # type: ignore[import-not-found]  # a sibling; mypy knows it as scripts.bootstrap

    status: int = run("tests", [os.path.realpath(__file__), "--here", *kinds])
    return status


if __name__ == "__main__":
    sys.exit(main())
