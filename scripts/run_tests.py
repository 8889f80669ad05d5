#!/usr/bin/env python3
"""Run the test suite from a checkout with nothing installed: ``python3 scripts/run_tests.py [pytest arguments]``.

The exit status is pytest's.  The tools below come from the system: on a Debian-like system, as root, a missing one
is installed; anywhere else the tests that need it say so and skip.  Like ``klein_setup.py`` this file is readable
by any Python 3.
"""

import os
import shutil
import subprocess
import sys

if sys.version_info < (3, 10):
    sys.stderr.write(
        "run_tests: this is Python %d.%d (%s); Python 3.10 or newer is needed.\n"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    sys.exit(3)

# What tests start, under any of these names -> the Debian packages that bring it.
TOOLS = {
    ("curl",): ["curl"],
    ("docker-registry",): ["docker-registry"],
    ("nginx", "/usr/sbin/nginx"): ["nginx-light"],
    ("chromium", "chromium-browser", "google-chrome"): ["chromium", "fonts-dejavu-core"],
}

# Without arguments: the tests of a file together, since they share what they set up; tests/conftest.py orders them.
# Real processes on a busy computer: what fails once is run again and named (-rR); what fails twice is broken.
WHOLE_SUITE = ["--dist", "loadfile", "--no-loadscope-reorder", "--reruns", "1", "-rfER"]


def processes() -> int:
    """Return how many processes run the whole suite: two for each core, since many tests wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 * cores


def missing_packages() -> list:  # type: ignore[type-arg]  # `list[str]` is not readable by Python 3.8
    """Return the Debian packages of the tools that are not on PATH."""
    missing = [packages for names, packages in TOOLS.items() if not any(map(shutil.which, names))]
    return [package for packages in missing for package in packages]


def can_install() -> bool:
    """Whether apt-get is here and this is root."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: list) -> None:  # type: ignore[type-arg]  # as above
    """Install system packages; where that fails the tests that need them skip."""
    sys.stderr.write("run_tests: installing %s with apt-get ...\n" % ", ".join(packages))
    environ = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for arguments in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends"] + packages):
        try:
            done = subprocess.run(
                ["apt-get"] + arguments,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=600,  # Chromium and what it needs are 120 MB
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            sys.stderr.write("run_tests: apt-get %s: %s\n" % (arguments[0], error))
            return
        if done.returncode != 0:
            sys.stderr.write("run_tests: apt-get %s failed with status %d\n" % (arguments[0], done.returncode))


def main() -> int:
    """Prepare, then hand over to pytest; return its exit status where the system has no ``exec``."""
    packages = missing_packages()
    if packages and can_install():
        install(packages)
    scripts = os.path.dirname(os.path.realpath(__file__))
    sys.path.insert(0, scripts)
    from bootstrap import run  # type: ignore[import-not-found]  # a sibling; mypy knows it as scripts.bootstrap

    os.chdir(os.path.dirname(scripts))
    status: int = run("tests", ["-m", "pytest"] + (sys.argv[1:] or ["-n", str(processes())] + WHOLE_SUITE))
    return status


if __name__ == "__main__":
    sys.exit(main())
