#!/usr/bin/env python3
"""Run a Windows CPython under Wine: ``python3 scripts/windows_python.py [python's arguments]``.

What is real: ``python3XX.dll``, its extension modules and OpenSSL are those of python.org, as the wheel of panda3d on
PyPI ships them; Microsoft's runtime comes from the wheel of msvc-runtime.  What is not: the standard library's ``.py``
files are those of the Python that runs this script, which has to be of the same minor version; ``python.exe``,
``python3.dll`` and the ``python.exe`` of virtual environments are compiled here from ``scripts/wine/``.  Both wheels
are taken by their SHA-256.

The first run takes about a minute and 400 MB in ``.klein-setup-wine/`` of the checkout; where Wine and the compiler are
missing, root on a Debian-like system gets them from apt-get.  Later runs start at once.  Without arguments it says
where everything is.  The drive ``Z:`` is this machine's root folder, ``C:`` is in the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Path(__file__).with_name("wine")
HOME = ROOT / ".klein-setup-wine"
LAYOUT = 1  # of what is made; raise it to have everything made anew
MINOR = sys.version_info[1]
COMPILER = "x86_64-w64-mingw32-gcc"
PACKAGES = ["wine", "wine64", "gcc-mingw-w64-x86-64"]
WINE_PROGRAMS = ("/usr/lib/wine/wine64", "/usr/lib/wine/wine", "wine64", "wine")

# The interpreter's DLL and the runtime it needs: minor version -> SHA-256 of the wheel for win_amd64.
PANDA3D = "1.10.16"
MSVC_RUNTIME = "14.44.35112"
WHEELS: dict[int, dict[str, str]] = {
    11: {
        "panda3d": "37acfb92655c4226879f95c988e2ef1449a53c54486d6c1ebc00e2772429af82",
        "msvc-runtime": "aba7fbe71897d25ed53fbb7f391e9f50289378a8a9ae218ba18530c663448391",
    },
    12: {
        "panda3d": "f6493e2ecc0d1b7c1556a999556e5278cbc9484fe5fe1e159a1ccc02b870b18f",
        "msvc-runtime": "32f9c706009e16ccc319d6947ce3bffe20e5192bee52b18cf48313f9e7bedfbe",
    },
    13: {
        "panda3d": "0e505261bb58d8402d0099c291f1a3459acfdd38f3e7d666e72aa2e1ea5dc46f",
        "msvc-runtime": "d4f6cf106aaf235f2a90952f9ec7de49e9946323880d051abf9745a6d4bf60bf",
    },
}

UNUSED_LIBRARY = shutil.ignore_patterns(
    *("__pycache__", "site-packages", "lib-dynload", "config-*", "_sysconfigdata*", "test", "tests", "idlelib"),
    *("tkinter", "turtledemo", "lib2to3"),
)
PASSED_ON = re.compile(
    r"PATH|HOME|USER|TMPDIR|CI|PIP_.*|PYTEST_.*|KLEIN_.*|HF_.*|SSL_CERT_.*|.*_CA_BUNDLE|(?i:.*_proxy)"
)
NAMES_A_FILE = re.compile(r"PIP_CERT|PIP_FIND_LINKS|PIP_CONFIG_FILE|SSL_CERT_.*|.*_CA_BUNDLE")


class MissingError(Exception):
    """Something is missing here that a Windows Python needs; the message says what, and what to do."""


def say(line: str) -> None:
    """Write one line to stderr; stdout belongs to what is run."""
    sys.stderr.write(f"windows_python: {line}\n")
    sys.stderr.flush()


# --- what the machine has to bring ---------------------------------------------------------------------------------


def find_wine() -> str | None:
    """Return the 64-bit Wine, or None."""
    return next((found for name in WINE_PROGRAMS if (found := shutil.which(name))), None)


def require_tools() -> None:
    """Have Wine and the compiler, from apt-get where that is allowed.

    Raises
    ------
    MissingError
        They are not here and cannot be installed.
    """
    if find_wine() and shutil.which(COMPILER):
        return
    wanted = " ".join(PACKAGES)
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingError(f"Wine or {COMPILER} is not installed; on Debian or Ubuntu: sudo apt-get install {wanted}")
    say(f"installing {wanted} with apt-get ...")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *PACKAGES]):
        require(["apt-get", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", *words], env=environ)
    if not (find_wine() and shutil.which(COMPILER)):
        raise MissingError(f"apt-get installed {wanted}, and there is still no 64-bit Wine or no {COMPILER}")


def standard_library() -> Path:
    """Return the folder of this Python's standard library.

    Raises
    ------
    MissingError
        There is no DLL for this minor version, or the library is a distribution's own.
    """
    if MINOR not in WHEELS:
        known = ", ".join(f"3.{each}" for each in WHEELS)
        raise MissingError(f"there is no python3{MINOR}.dll on PyPI; start this script with Python {known}")
    library = Path(os.__file__).parent
    if "dist-packages" in (library / "site.py").read_text(encoding="utf-8"):
        hint = "start this script with a Python from uv, pyenv or python.org"
        raise MissingError(f"{library} is the standard library as Debian changed it, which fails on Windows; {hint}")
    return library


# --- processes ---------------------------------------------------------------------------------------------------


def run_quietly(
    words: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its output, both streams together."""
    return subprocess.run(
        [str(word) for word in words],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def require(words: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program that has to succeed and return its output.

    Raises
    ------
    MissingError
        It failed; the message has its last line.
    """
    try:
        done = run_quietly(words, env=env, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{words[0]}: {error}") from error
    if done.returncode != 0:
        shown = " ".join(str(word) for word in words[:4])
        raise MissingError(f"{shown} failed with status {done.returncode}: {last_line(done.stdout)}")
    return done.stdout


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")


# --- making it ---------------------------------------------------------------------------------------------------


class WindowsPython:
    """The Windows Python of this checkout, for one minor version."""

    def __init__(self) -> None:
        made_of = [each.read_bytes() for each in (*sorted(SOURCES.iterdir()), Path(os.__file__))]
        digest = hashlib.sha256(b"\0".join([*made_of, repr((LAYOUT, WHEELS.get(MINOR), sys.version)).encode()]))
        self.folder = HOME / f"py3.{MINOR}-{digest.hexdigest()[:12]}"
        self.prefix = self.folder / "prefix"
        self.home = self.prefix / "drive_c" / f"Python3{MINOR}"
        self.program = rf"C:\Python3{MINOR}\python.exe"

    def make(self) -> None:
        """Make it where it is not there yet; raises MissingError."""
        require_tools()
        if (self.folder / "complete").exists():
            self._start()
            return
        library = standard_library()
        started = time.monotonic()
        say(f"making a Windows Python 3.{MINOR} in {self.folder} ...")
        for other in HOME.glob(f"py3.{MINOR}-*"):
            shutil.rmtree(other, ignore_errors=True)  # one that is in use now goes the next time
        build = self.folder / "build"
        build.mkdir(parents=True)
        self._make_prefix()
        self.home.mkdir()
        for wheel in self._wheels(build):
            self._unpack(wheel)
        self._copy_library(library)
        self._compile(build)
        self._check()
        shutil.rmtree(build)
        (self.folder / "complete").touch()
        say(f"ready after {time.monotonic() - started:.0f} s")

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment for Wine: what a Windows program may know of this machine's."""
        kept = {name: value for name, value in environ.items() if PASSED_ON.fullmatch(name)}
        for name, value in kept.items():
            if NAMES_A_FILE.fullmatch(name) and value.startswith("/"):
                kept[name] = windows_path(value)
        return kept | {
            "WINEPREFIX": str(self.prefix),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree=;mshtml=;winemenubuilder.exe=",  # asks nobody about .NET or a browser
            "LC_ALL": "C.UTF-8",
        }

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command line that runs it."""
        return [find_wine() or "wine", self.program, *arguments]

    def typed(self, line: str) -> list[str]:
        """Return the command line that runs what a user types where Python is on the PATH."""
        return [find_wine() or "wine", "cmd", "/c", rf"set PATH=C:\Python3{MINOR};%PATH%&& {line}"]

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Keep Wine's server and services running.

        They end with the last program; the next one would start them anew and, being its children, they would be ended
        with it, under the hands of every other program.
        """
        waits = self.command(["-I", "-c", "import sys; sys.stdin.read()"])
        nowhere = subprocess.DEVNULL
        environ = self.environ(os.environ)
        process = subprocess.Popen(waits, env=environ, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere)
        try:
            yield
        finally:
            process.communicate()  # ends its input

    def _wine(self, *words: str) -> str:
        return require([find_wine() or "wine", *words], env=self.environ(os.environ))

    def _start(self, *words: str) -> None:
        """Have Wine's server and services run; they would keep the pipes open of whoever needs them first."""
        nowhere = subprocess.DEVNULL
        line = [find_wine() or "wine", "wineboot", *words]
        environ = self.environ(os.environ)
        try:
            subprocess.run(line, env=environ, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"Wine does not start: {error}") from error

    def _make_prefix(self) -> None:
        self._start("--init")
        self._wine("winecfg", "-v", "win10")
        # Wine links the user's folders into the home of this machine's user; nothing may be written there.
        for link in [each for each in (self.prefix / "drive_c" / "users").rglob("*") if each.is_symlink()]:
            link.unlink()
            link.mkdir()

    def _wheels(self, build: Path) -> list[Path]:
        names = {"panda3d": PANDA3D, "msvc-runtime": MSVC_RUNTIME}
        lines = [f"{name}=={version} --hash=sha256:{WHEELS[MINOR][name]}" for name, version in names.items()]
        wanted = build / "wanted.txt"
        wanted.write_text("\n".join(lines), encoding="utf-8")
        target = ["--platform=win_amd64", f"--python-version=3.{MINOR}", "--implementation=cp", "--only-binary=:all:"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        require([*pip, *target, "-d", HOME / "wheels", "-r", wanted])
        tag = f"cp3{MINOR}-cp3{MINOR}-win_amd64.whl"
        return [
            HOME / "wheels" / f"panda3d-{PANDA3D}-{tag}",
            HOME / "wheels" / f"msvc_runtime-{MSVC_RUNTIME}-{tag}",
        ]

    def _unpack(self, wheel: Path) -> None:
        """Take the interpreter, its extension modules and the DLLs out of a wheel, by their names alone."""
        runtime = re.compile(rf"python3{MINOR}\.dll|vcruntime140.*\.dll|msvcp140.*\.dll", re.IGNORECASE)
        modules = re.compile(r"(?!_tkinter).*\.pyd|lib(crypto|ssl|ffi).*\.dll|sqlite3\.dll", re.IGNORECASE)
        (self.home / "DLLs").mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for each in archive.infolist():
                folder, _, name = each.filename.rpartition("/")
                if runtime.fullmatch(name):
                    (self.home / name).write_bytes(archive.read(each))
                elif folder == "deploy_libs" and modules.fullmatch(name):
                    (self.home / "DLLs" / name).write_bytes(archive.read(each))

    def _copy_library(self, library: Path) -> None:
        shutil.copytree(library, self.home / "Lib", ignore=UNUSED_LIBRARY, copy_function=shutil.copyfile)
        (self.home / "Lib" / "site-packages").mkdir()
        shutil.copyfile(SOURCES / "sitecustomize.py", self.home / "Lib" / "sitecustomize.py")

    def _compile(self, build: Path) -> None:
        """Compile what python.org ships as programs, and what Wine 8 lacks."""
        dll = self.home / f"python3{MINOR}.dll"
        listed = require([COMPILER.replace("gcc", "objdump"), "-p", dll])
        names = re.findall(r"^\s*\[ *\d+\] (?:\+base\[ *\d+\] +[0-9a-f]+ )?(_?Py\w+)$", listed, re.MULTILINE)
        if "Py_Main" not in names:
            raise MissingError(f"{dll} does not export Py_Main")
        (build / "long_paths.rc").write_text(f'1 24 "{SOURCES / "long_paths.manifest"}"\n', encoding="utf-8")
        require([COMPILER.replace("gcc", "windres"), "long_paths.rc", "-O", "coff", "-o", "long_paths.o"], cwd=build)
        program: list[str | Path] = [COMPILER, "-O1", "-municode", "-s", "-static-libgcc"]
        environments = self.home / "Lib" / "venv" / "scripts" / "nt"
        environments.mkdir(parents=True, exist_ok=True)
        for window, ending in (("-mconsole", ""), ("-mwindows", "w")):
            made = self.home / f"python{ending}.exe"
            require([*program, window, "-o", made, SOURCES / "python.c", "long_paths.o", dll], cwd=build)
            redirector = environments / f"python{ending}.exe"
            require([*program, window, "-o", redirector, SOURCES / "venv_redirector.c", "long_paths.o"], cwd=build)
            for other in (f"venv{ending}launcher.exe", f"venv{ending}launchert.exe"):  # their names since Python 3.13
                shutil.copyfile(redirector, environments / other)
        # Extension modules for any Python 3 ("abi3") ask python3.dll, which passes everything on.
        forwards = "".join(f"{name} = python3{MINOR}.{name}\n" for name in names)
        (build / "python3.def").write_text(f"LIBRARY python3.dll\nEXPORTS\n{forwards}", encoding="utf-8")
        (build / "nothing.c").write_text(
            "int __stdcall entry(void *a, unsigned b, void *c) { (void)a; (void)b; (void)c; return 1; }\n",
            encoding="utf-8",
        )
        stub: list[str | Path] = [COMPILER, "-shared", "-nostdlib", "-Wl,-e,entry", "-o", self.home / "python3.dll"]
        require([*stub, "nothing.c", "python3.def"], cwd=build)
        system = self.prefix / "drive_c" / "windows" / "system32" / "bcryptprimitives.dll"
        if not system.exists():
            require([COMPILER, "-O1", "-s", "-shared", "-o", system, SOURCES / "bcryptprimitives.c", "-ladvapi32"])

    def _check(self) -> None:
        """See that it is Windows to itself, and that pip can be installed."""
        modules = "asyncio, bz2, ctypes, decimal, hashlib, lzma, msvcrt, sqlite3, ssl, venv, winreg"
        said = self._wine(self.program, "-I", "-c", f"import {modules}, sys; print(sys.platform)")
        if last_line(said) != "win32":
            raise MissingError(f"the Python that was made says: {last_line(said)}")
        self._wine(self.program, "-I", "-m", "ensurepip", "--default-pip")


def windows_path(path: str | Path) -> str:
    r"""Return how Wine calls a path of this machine.

    >>> windows_path("/etc/ssl/cert.pem")
    'Z:\\etc\\ssl\\cert.pem'
    """
    return "Z:" + str(path).replace("/", "\\")


# --- running it --------------------------------------------------------------------------------------------------


@contextmanager
def no_plain_file(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield the stream, or where it leads to a plain file a pipe that is copied there.

    Wine answers GetFileInformationByHandle for no plain file that it was handed, and Python's start asks that.
    """
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        yield stream
        return
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as far, os.fdopen(writing, "wb") as near:
        copying = threading.Thread(target=shutil.copyfileobj, args=(far, stream))
        copying.start()
        try:
            yield near
        finally:
            near.close()
            copying.join()
            stream.flush()


def run(python: WindowsPython, arguments: Sequence[str]) -> int:
    """Run it with this process's streams; return its exit status."""
    with no_plain_file(sys.stdout.buffer) as out, no_plain_file(sys.stderr.buffer) as err:
        stdin = subprocess.DEVNULL if not sys.stdin or stat.S_ISREG(os.fstat(0).st_mode) else None
        environ = python.environ(os.environ)
        process = subprocess.Popen(python.command(arguments), env=environ, stdin=stdin, stdout=out, stderr=err)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # Ctrl-C reaches every process of the terminal


def main() -> int:
    """Make it, run it; return the exit status."""
    python = WindowsPython()
    try:
        python.make()
    except MissingError as error:
        say(str(error))
        return 3
    if len(sys.argv) == 1:
        print(f"{python.home}\npython3 {Path(__file__)} -m pip --version")
        return 0
    return run(python, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
