"""Makes the private environment that ``bootstrap.py`` looks for; knows venv, pip and what goes wrong with them.

It refuses to put anything where it will be used before it is whole: everything happens in a folder aside, which gets
its name last.  It refuses packages that the locked list does not name by hash, and it builds nothing.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[1]
BUILDING = "building-"
PATH_FILE = "klein-setup-checkout.pth"


NETWORK_SIGNS = (
    "connection",
    "could not fetch url",
    "failed to establish",
    "max retries exceeded",
    "name resolution",
    "network is unreachable",
    "proxyerror",
    "read timed out",
    "sslerror",
    "temporary failure",
)


class Wanted(NamedTuple):
    """The environment to make, in the words of ``bootstrap.py``."""

    folder: Path  # where it will be
    locked: Path  # the hash-pinned requirements
    root: Path  # the checkout
    python: Path  # its interpreter, relative to the folder
    mark: str  # name of the file that says it is whole

    @property
    def home(self) -> Path:
        """The folder that holds the environments, the lock, and what is being built."""
        return self.folder.parent

    def is_ready(self) -> bool:
        """Whether it is whole and the Python it was made from is still there."""
        return (self.folder / self.mark).is_file() and (self.folder / self.python).exists()


class PreparationError(Exception):
    """The environment could not be made.

    Parameters
    ----------
    message : str
        What happened.
    status : int
        The exit status, as in the README's table.
    hint : str
        What to do next.
    """

    def __init__(self, message: str, *, status: int, hint: str) -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint


def say(line: str) -> None:
    """Write one line to stderr; stdout belongs to the command."""
    sys.stderr.write(f"klein-setup: {line}\n")
    sys.stderr.flush()


# --- what pip is told --------------------------------------------------------------------------


def without_passwords(text: str) -> str:
    """Return `text` with the credentials of addresses blotted out.

    >>> without_passwords("Looking in https://me:secret@mirror.example/simple")
    'Looking in https://****@mirror.example/simple'
    """
    return re.sub(r"://[^/\s@]+@", "://****@", text)


def explain_pip_failure(output: str) -> PreparationError:
    """Return the error that pip's output amounts to: its last lines, a status, and what to do."""
    lines = [line for line in without_passwords(output).splitlines() if line.strip()]
    message = "pip could not install the locked packages:\n" + "\n".join(f"    {line}" for line in lines[-8:])
    text = output.lower()
    if "no space left" in text or "errno 28" in text:
        return PreparationError(message, status=4, hint="Free some disk space (about 200 MB), then run it again.")
    if "do not match the hashes" in text:
        hint = "The index or a proxy delivered other bytes than the locked ones. Try another network or index."
        return PreparationError(message, status=7, hint=hint)
    if any(sign in text for sign in NETWORK_SIGNS):
        hint = "Check the network; a proxy is taken from HTTPS_PROXY, an index mirror from PIP_INDEX_URL."
        if "certificate" in text:
            hint = "Name your company's certificates in REQUESTS_CA_BUNDLE: the pip of this Python may know no other."
        return PreparationError(message, status=5, hint=hint)
    hint = (
        "Either the index was not reached (check the network, HTTPS_PROXY, PIP_INDEX_URL), "
        "or it has no package for this Python or system (start with another Python, 3.10 to 3.14)."
    )
    return PreparationError(message, status=8, hint=hint)


# --- processes ---------------------------------------------------------------------------------


def ask(line: list[str], environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command to its end; return its status and everything it wrote."""
    done = subprocess.run(
        line,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def require_venv() -> None:
    """Raise unless this Python can make virtual environments with pip in them."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if not missing:
        return
    message = f"this Python ({sys.executable}) comes without {' and '.join(missing)}, so it cannot make an environment."
    if Path("/etc/debian_version").exists():
        own = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        hint = f"Install it with: sudo apt install python3-venv  (for a Python beside the system's: {own})"
    else:
        hint = "Use a complete Python 3.10 or newer, from python.org or your system's packages."
    raise PreparationError(message, status=3, hint=hint)


def create(folder: Path) -> None:
    """Make an empty virtual environment in `folder`."""
    status, output = ask([sys.executable, "-I", "-m", "venv", str(folder)])
    if status != 0:
        last = "\n".join(f"    {line}" for line in output.splitlines()[-8:])
        hint = "See whether this works: python3 -m venv /tmp/try"
        raise PreparationError(f"python -m venv failed:\n{last}", status=8, hint=hint)


def install(python: Path, locked: Path) -> None:
    """Install the locked packages, each by its hash, none of them built here."""
    sys.path.insert(0, str(ROOT))
    from provisioner.environment.pip_settings import installer_environment, parse_pip_settings, parse_pip_version
    from provisioner.network.certificates import pip_variables
    from provisioner.network.system_files import store_for_old_pips

    pip = [str(python), "-I", "-m", "pip"]
    status, listed = ask([*pip, "config", "list"])
    settings = parse_pip_settings(listed, with_indexes=True) if status == 0 else {}  # hashes decide, whatever the index
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    wanted = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "-r", str(locked)]
    environ = installer_environment(os.environ, settings, no_file=os.devnull)
    version = parse_pip_version(ask([*pip, "--version"])[1])
    environ |= pip_variables(os.environ, version, store_for_old_pips())
    status, output = ask([*pip, "install", *options, *wanted], environ)
    if status != 0:
        raise explain_pip_failure(output)


LEAD_BACK = """
import os, sys, sysconfig
folder = sysconfig.get_path("purelib")
back = os.path.relpath(sys.argv[1], folder)
with open(os.path.join(folder, sys.argv[2]), "w", encoding="ascii") as file:
    file.write(back + "\\n")
"""


def lead_back(python: Path, root: Path) -> None:
    """Write the path file that makes the checkout importable, and see that it does."""
    for line in (["-c", LEAD_BACK, str(root), PATH_FILE], ["-c", "import provisioner"]):
        status, output = ask([str(python), "-I", *line])
        if status != 0:
            last = output.strip().splitlines()[-1:] or [f"status {status}"]
            hint = "Get the whole repository again, then try once more."
            raise PreparationError(f"the checkout cannot be imported: {last[0]}", status=8, hint=hint)


# --- files -------------------------------------------------------------------------------------


def try_lock(descriptor: int) -> bool:
    """Take the lock on an open file and return True, or return False where another process has it.

    Raises
    ------
    OSError
        The file system knows no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the lock of `home`; wait for it, and say so, where another run is making the environment.

    The lock goes with the process, however it ends.  Where the file system has none, two first runs both build and
    the second finds its place taken, which is harmless.
    """
    with (home / "lock").open("a+b") as file:
        has_waited = False
        with contextlib.suppress(OSError):
            while not try_lock(file.fileno()):
                if not has_waited:
                    say("another run is preparing the environment; waiting for it ...")
                    has_waited = True
                time.sleep(0.2)
        yield


def settle(built: Path, wanted: Wanted) -> None:
    """Give the finished environment its name; leave what is there if another run was first."""
    if wanted.is_ready():
        return
    if wanted.folder.exists():  # its Python is gone, or it lost its mark
        shutil.rmtree(wanted.folder)
    for attempt in range(10):
        try:
            built.rename(wanted.folder)
        except PermissionError:  # on Windows a virus scanner may still be reading the new files
            if os.name != "nt" or attempt == 9:
                raise
            time.sleep(0.5)
        else:
            return


def sweep(wanted: Wanted) -> None:
    """Remove what interrupted runs left, and the environments of this same Python that the wanted one supersedes."""
    for other in wanted.home.iterdir():
        if other == wanted.folder or not other.is_dir():
            continue
        if other.name.startswith(BUILDING) or owner(other / wanted.mark) == sys.base_prefix:
            shutil.rmtree(other, ignore_errors=True)


def owner(mark: Path) -> str | None:
    """Return the prefix of the Python an environment was made from; None where it does not say."""
    try:
        return mark.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
    except OSError:
        return None


def build(wanted: Wanted) -> None:
    """Make the environment aside, then give it its name.

    Raises
    ------
    PreparationError
        With the exit status and what to do.
    OSError
        The folder cannot be written.
    """
    require_venv()
    wanted.home.mkdir(exist_ok=True)
    with only_one(wanted.home):
        if wanted.is_ready():
            return  # the run we waited for made it
        started = time.monotonic()
        say(f"preparing the private environment in {wanted.home} (once, about half a minute) ...")
        built = wanted.home / f"{BUILDING}{os.getpid()}-{time.time_ns()}"
        built.mkdir()  # not tempfile's: its 0700 would lock out the checkout's other users
        try:
            create(built)
            say("  installing the locked packages, each verified by its SHA-256 ...")
            install(built / wanted.python, wanted.locked)
            lead_back(built / wanted.python, wanted.root)
            mark = built / wanted.mark
            mark.write_text(sys.base_prefix + "\n", encoding="utf-8", errors="surrogateescape")
            settle(built, wanted)
        finally:
            shutil.rmtree(built, ignore_errors=True)
        sweep(wanted)
        say(f"  ready after {time.monotonic() - started:.0f} s.")


def explain_os_error(error: OSError, home: Path) -> PreparationError:
    """Return the error that a refusal of the disk amounts to."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        hint = "Free some space (about 200 MB), then run it again."
        return PreparationError(f"the disk of {home} is full.", status=4, hint=hint)
    message = f"the private environment cannot be made in {home}: {error.strerror or error}."
    hint = "Put the repository where you may write, for example below your home folder."
    return PreparationError(message, status=4, hint=hint)


def prepare(folder: str, locked: str, root: str, python: str, mark: str) -> int:
    """Make the environment (see `Wanted`) and return 0; or say what is in the way and return the exit status."""
    wanted = Wanted(Path(folder), Path(locked), Path(root), Path(python), mark)
    try:
        build(wanted)
    except PreparationError as error:
        return refuse(error)
    except OSError as error:
        return refuse(explain_os_error(error, wanted.home))
    except KeyboardInterrupt:
        say("interrupted; the next run starts the preparation anew.")
        return 130
    return 0


def refuse(error: PreparationError) -> int:
    """Say what is in the way and what to do; return the exit status."""
    say(str(error))
    say(f"  {error.hint}")
    return error.status
