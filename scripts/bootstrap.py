"""A private environment inside the checkout, made once from a locked list and reused while it fits.

Shared by ``klein_setup.py``, ``run_tests.py`` and ``run_checks.py``; standard library only.  This module is what
every start passes through: it finds the environment that fits and hands over to it.  Making one is
``private_environment.py``, imported only when there is something to make.

Where: ``.klein-setup-env/<platform>-py<version>-<digest>/`` (``.klein-setup-env-tests/`` for the tests).  The digest
is over the locked list and the interpreter, so a changed list or an upgraded Python simply has another folder, and
nothing that is in use is ever rewritten.

What is in it: the packages of ``scripts/locked/*.txt``, each by hash, and a path file that leads back to the
checkout.  The package itself is not built or copied: building would need a backend outside the locked list, and a
copy would go stale with the next ``git pull``.  The path file is relative, so its text is ASCII whatever the folder
is called (before Python 3.13 such files are read in the locale's encoding).
"""

from __future__ import annotations

import hashlib
import os
import sys

TYPE_CHECKING = False  # importing `typing` would cost a warm start 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
HOMES = {"run": ".klein-setup-env", "tests": ".klein-setup-env-tests"}
COMPLETE = "complete"  # written last; a folder without it is not an environment
PYTHON = os.path.join("Scripts", "python.exe") if os.name == "nt" else os.path.join("bin", "python")
LAYOUT = "1"  # of what is inside; raise it to have every environment made anew


def locked_list(kind: str, root: str = ROOT) -> str:
    """Return the path of the hash-pinned requirements of that kind of environment."""
    return os.path.join(root, "scripts", "locked", kind + ".txt")


def interpreter() -> str:
    """Return what tells this interpreter from another one, as text."""
    machine = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
    return "\n".join([sys.base_prefix, sys.version, sys.platform, machine])


def environment_folder(kind: str, root: str = ROOT) -> str:
    """Return the folder of the one environment that fits the locked list and this interpreter.

    Raises
    ------
    FileNotFoundError
        The locked list is not there: this is not a whole checkout.
    """
    with open(locked_list(kind, root), "rb") as file:
        digest = hashlib.sha256(file.read())
    digest.update(os.fsencode("\n".join([LAYOUT, interpreter()])))
    name = f"{sys.platform}-py{sys.version_info[0]}.{sys.version_info[1]}-{digest.hexdigest()[:16]}"
    return os.path.join(root, HOMES[kind], name)


def is_ready(folder: str) -> bool:
    """Whether the environment was finished and the Python it was made from is still there."""
    return os.path.isfile(os.path.join(folder, COMPLETE)) and os.path.exists(os.path.join(folder, PYTHON))


def command(python: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs `arguments` in the environment, isolated from the caller's Python settings.

    ``-I`` keeps the working directory, ``PYTHONPATH`` and the user's site-packages off the path: a ``requests.py``
    where the command happens to be typed must not be imported.  UTF-8 mode is the one setting that is passed on.
    """
    flags = ["-I", "-X", "utf8"] if sys.flags.utf8_mode else ["-I"]
    return [python, *flags, *arguments]


def hand_over(line: list[str]) -> int:
    """Become the command; on Windows, where a process cannot, wait for it and return its exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(line[0], line)  # noqa: S606 - no shell is what is wanted
    import subprocess

    process = subprocess.Popen(line)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # Ctrl-C reaches every process of the console: the child decides what it means


def run(kind: str, arguments: Sequence[str]) -> int:
    """Run Python with `arguments` in the private environment, which is made first where none fits.

    Parameters
    ----------
    kind : str
        ``run`` or ``tests``: which locked list.
    arguments : sequence of str
        What follows ``python``: ``["-m", "provisioner", "--help"]``.

    Returns
    -------
    int
        An exit status: the command's own (POSIX does not return), or that of a preparation that failed.
    """
    try:
        folder = environment_folder(kind)
    except FileNotFoundError as error:
        sys.stderr.write(f"klein-setup: {error.filename} is missing; get the whole repository, then try again.\n")
        return 4
    if not is_ready(folder):
        import private_environment  # type: ignore[import-not-found]  # a sibling; scripts.private_environment to mypy

        status: int = private_environment.prepare(folder, locked_list(kind), ROOT, PYTHON, COMPLETE)
        if status != 0:
            return status
    return hand_over(command(os.path.join(folder, PYTHON), arguments))
