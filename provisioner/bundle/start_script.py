"""Starts klein-setup out of the bundle that this file lies in: ``python3 klein-setup.py [arguments]``.

It runs where nothing of ours is installed and nobody is reached.  The first start makes a private environment in the
user's data folder from the wheels that are listed below, each verified by its SHA-256; every later one uses it.  The
standard library only, and readable by Python 3.6, whose reader gets a sentence.
"""

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Iterator, Mapping  # noqa: UP035 - before 3.9 those of collections.abc take no parameters

WHEELS: "dict[str, list[list[str]]]" = {}
"""What `bundle create` writes here: by system and Python, the name and the SHA-256 of each wheel, pip's first."""

PASSED = ("PATH", "HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "LANG", "LC_ALL")
"""What pip gets of the user's variables; it works on files of this computer alone."""

COMPLETE = "complete"  # written last; a folder without it is not used


class Refusal(Exception):
    """What is in the way, what to do, and the exit status."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


def kind() -> str:
    """Return what the wheels of this Python are listed under, ``linux-x86_64-cp312``."""
    threads = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    return f"{sys.platform}-{platform.machine().lower()}-cp{sys.version_info[0]}{sys.version_info[1]}{threads}"


def data_folder(environ: "Mapping[str, str]") -> Path:
    """Return where this user's programs keep their data, as klein-setup itself has it."""
    home = Path("~").expanduser()
    if sys.platform == "win32":
        local = Path(environ.get("LOCALAPPDATA", ""))
        return local if local.is_absolute() else home / "AppData" / "Local"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support"
    given = Path(environ.get("XDG_DATA_HOME", ""))
    return given if given.is_absolute() else home / ".local" / "share"


def environment_folder(wheels: "list[list[str]]", environ: "Mapping[str, str]") -> Path:
    """Return the folder of the environment with these wheels and this Python."""
    text = "\n".join([sys.base_prefix, sys.version, *(sha256 for _, sha256 in wheels)])
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return data_folder(environ) / "klein-setup" / "program" / f"{kind()}-{digest[:16]}"


def program(folder: Path, name: str) -> Path:
    """Return the path of a program in an environment."""
    return folder / "Scripts" / f"{name}.exe" if os.name == "nt" else folder / "bin" / name


def copy_verified(blob: Path, place: Path, sha256: str) -> None:
    """Copy a wheel, hashing what is copied; raise Refusal where it is missing or has another SHA-256."""
    again = "Copy the bundle again from where it was made."
    digest = hashlib.sha256()
    try:
        source = blob.open("rb")
    except OSError as error:
        raise Refusal(f"the bundle lacks {place.name}: {blob}: {error.strerror}.", again, 7) from error
    with source, place.open("wb") as copy:
        for block in iter(lambda: source.read(1024 * 1024), b""):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != sha256:
        raise Refusal(f"{place.name} is damaged: {blob} has the SHA-256 {digest.hexdigest()}.", again, 7)


@contextlib.contextmanager
def only_one(path: Path) -> "Iterator[None]":
    """Hold a lock that goes with the process; a file system without locks has none."""
    with path.open("a+b") as file:
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
            else:
                import fcntl

                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def make(blobs: Path, folder: Path, wheels: "list[list[str]]", environ: "Mapping[str, str]") -> None:
    """Make the environment: an empty one, then the verified wheels by the pip that is the first of them."""
    try:
        import venv
    except ImportError as error:
        raise Refusal(f"this Python ({sys.executable}) comes without venv.", "Use a complete Python.", 3) from error
    sys.stderr.write(f"klein-setup: installing klein-setup in {folder} (once) ...\n")
    sys.stderr.flush()
    if folder.exists():  # what a run that was killed left
        shutil.rmtree(folder)
    venv.EnvBuilder(symlinks=os.name != "nt").create(folder)
    copies = folder / "wheels"
    copies.mkdir()
    for name, sha256 in wheels:
        copy_verified(blobs / sha256, copies / name, sha256)
    (pip, _), *others = wheels
    lines = [f"./{name} --hash=sha256:{sha256}\n" for name, sha256 in others]
    (copies / "list.txt").write_text("".join(lines), encoding="utf-8")
    words = [str(program(folder, "python")), "-I", str(copies / pip / "pip"), "--isolated", "install", "--quiet"]
    words += ["--no-input", "--no-index", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-cache-dir"]
    kept = {name: environ[name] for name in PASSED if name in environ}
    done = subprocess.run(
        [*words, "--disable-pip-version-check", "-r", "list.txt"],
        cwd=str(copies),
        env={**kept, "PIP_CONFIG_FILE": os.devnull},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        last = done.stdout.decode("utf-8", "replace").strip().splitlines()[-8:]
        said = "\n".join(f"    {line}" for line in last)
        hint = "Free space if there is none; else make the bundle on a computer like this one."
        raise Refusal(f"pip could not install the wheels of the bundle:\n{said}", hint, 8)
    shutil.rmtree(copies)
    (folder / COMPLETE).write_bytes(b"")


def prepare(bundle: Path, environ: "Mapping[str, str]") -> Path:
    """Return the folder of the environment, which is made where it is not there; raises Refusal, OSError."""
    wheels = WHEELS.get(kind())
    if not wheels:
        raise Refusal(
            f"this bundle has klein-setup for {', '.join(sorted(WHEELS))}; {sys.executable} is {kind()}.",
            "Start it with one of those Pythons, or run `klein-setup bundle add` with one like yours (--python FILE).",
            3,
        )
    folder = environment_folder(wheels, environ)
    if not (folder / COMPLETE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with only_one(folder.parent / f"{folder.name}.lock"):
            if not (folder / COMPLETE).is_file():
                make(bundle / "blobs" / "sha256", folder, wheels, environ)
    return folder


def main() -> int:
    """Start klein-setup with the arguments of this script; return an exit status where that is not possible."""
    try:
        folder = prepare(Path(__file__).resolve().parent, os.environ)
    except Refusal as error:
        sys.stderr.write(f"klein-setup: {error}\n  {error.hint}\n")
        return error.status
    except OSError as error:
        is_full = error.errno == errno.ENOSPC
        hint = "Free about 200 MB of space." if is_full else "Name a folder of yours in XDG_DATA_HOME (LOCALAPPDATA)."
        sys.stderr.write(f"klein-setup: the environment cannot be made: {error}\n  {hint}\n")
        return 4
    named = str(program(folder, "klein-setup"))
    if os.name == "nt":
        return subprocess.call([named, *sys.argv[1:]])
    line = [str(program(folder, "python")), "-I", named, *sys.argv[1:]]
    os.execv(line[0], line)  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts it with an older one
        number = ".".join(map(str, sys.version_info[:2]))
        sys.stderr.write(
            f"klein-setup: this is Python {number} ({sys.executable}); Python 3.10 or newer is needed.\n"
            "  Start it with a newer one, for example: python3.12 klein-setup.py\n"
        )
        sys.exit(3)
    sys.exit(main())
