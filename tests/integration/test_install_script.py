"""``scripts/install.sh`` for real: a shell, a PATH of a few programs without Python or uv, the wheel of uv on loopback.

That wheel is made here from the uv of this environment, so a copy of the script names its SHA-256.  Nothing leaves this
machine: the klein-setup that is installed is a small wheel of one module, and uv stays offline.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "install.sh"
PROGRAMS = ("chmod", "curl", "env", "grep", "mkdir", "mktemp", "mv", "rm", "sha256sum", "sh", "uname", "unzip")
SHELLS = [shell for shell in ("dash", "bash", "busybox", "zsh") if shutil.which(shell)]
TOY = "import sys\n\n\ndef main():\n    print(*sys.argv[1:], sep='|')\n    sys.exit(9)\n"

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="for POSIX shells; Windows has install.ps1"),
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=f"needs {', '.join(PROGRAMS)}"),
]


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Wheels:
    """Answers every request with the wheel of uv, or with what is wrong."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel.read_bytes()
        self.asked: list[str] = []
        self.status = 200
        self.sent: int | None = None  # bytes before the connection drops
        self.wrong = False
        wheels = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wheels.asked.append(self.path)
                body = wheels.wheel[:-1] + b"!" if wheels.wrong else wheels.wheel
                self.send_response(wheels.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: wheels.sent])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/some/folder"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel of uv, a klein-setup, and a copy of the script that knows this wheel of uv."""
    folder = tmp_path_factory.mktemp("wheels")
    with zipfile.ZipFile(folder / "uv.whl", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
        for name in ("uv", "uvx"):
            wheel.write(Path(sys.executable).with_name(name), f"uv-9.9.9.data/scripts/{name}")
    info = "klein_setup-1.0.dist-info"
    with zipfile.ZipFile(folder / "klein_setup-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy.py", TOY)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: klein-setup\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\nklein-setup = toy:main\n")
        wheel.writestr(f"{info}/RECORD", "".join(f"{each.filename},,\n" for each in wheel.infolist()))
    digest = hashlib.sha256((folder / "uv.whl").read_bytes()).hexdigest()
    script = re.sub(r"sha256=[0-9a-f]{64}", f"sha256={digest}", SCRIPT.read_text(encoding="utf-8"))
    (folder / "install.sh").write_text(script, encoding="utf-8")
    return folder


@pytest.fixture
def wheels(made: Path) -> Iterator[Wheels]:
    serving = Wheels(made / "uv.whl")
    yield serving
    serving.server.shutdown()
    serving.server.server_close()


class Person:
    """Somebody with a home folder that is empty, and few programs."""

    def __init__(self, folder: Path, made: Path, wheels: Wheels) -> None:
        self.home = folder / "home of Jürgen & co"
        self.programs = folder / "bin"
        self.temporary = folder / "tmp"
        for each in (self.home, self.programs, self.temporary):
            each.mkdir()
        self.has(*PROGRAMS)
        self.script = made / "install.sh"
        self.environ = {
            "HOME": str(self.home),
            "PATH": str(self.programs),
            "TMPDIR": str(self.temporary),
            "KLEIN_SETUP_UV_FROM": wheels.address,
            "KLEIN_SETUP_PACKAGE": str(made / "klein_setup-1.0-py3-none-any.whl"),
            "UV_OFFLINE": "1",
            "UV_PYTHON": sys.executable,
        }

    def has(self, *programs: str) -> None:
        for name in programs:
            found = sys.executable if name == "python3" else shutil.which(name)  # not one of a version manager
            (self.programs / name).symlink_to(found or name)

    def says(self, name: str, text: str) -> None:
        """Have a program that answers with a text."""
        (self.programs / name).unlink(missing_ok=True)
        (self.programs / name).write_text(f"#!/bin/sh\necho '{text}'\n", encoding="utf-8")
        (self.programs / name).chmod(0o755)

    def run(self, *arguments: str, shell: str = "sh") -> Ended:
        words = [str(shutil.which(shell)), *(["sh"] if shell == "busybox" else [])]
        done = subprocess.run(
            [*words, str(self.script), *arguments],
            env=self.environ,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def left(self) -> list[Path]:
        """Return what lies in the home folder and in the temporary one."""
        return [*self.home.rglob("*"), *self.temporary.rglob("*")]


@pytest.fixture
def person(tmp_path: Path, made: Path, wheels: Wheels) -> Person:
    return Person(tmp_path, made, wheels)


@pytest.mark.parametrize("shell", SHELLS)
def test_it_brings_uv_and_starts_klein_setup_with_the_arguments(person: Person, wheels: Wheels, shell: str) -> None:
    ended = person.run("plan", "--comfyui", "a folder", "", shell=shell)
    assert ended.out == "plan|--comfyui|a folder|\n", ended.err
    assert ended.status == 9  # klein-setup's own
    assert [path.rpartition("-py3-none-")[0].rpartition("/")[0] for path in wheels.asked] == ["/some/folder"]
    programs = person.home / ".local" / "bin"
    assert {each.name for each in programs.iterdir()} >= {"uv", "uvx", "klein-setup"}
    assert f"{programs} is not on PATH" in ended.err
    assert list(person.temporary.iterdir()) == []
    assert not (person.home / ".cache").exists()
    again = person.run("verify", shell=shell)
    assert (again.out, again.status, len(wheels.asked)) == ("verify\n", 9, 1)  # with the uv that is there now


def test_a_uv_that_is_there_is_used_and_nothing_is_fetched(person: Person, wheels: Wheels) -> None:
    person.programs.joinpath("uv").symlink_to(Path(sys.executable).with_name("uv"))
    ended = person.run("detect")
    assert (ended.out, ended.status, wheels.asked) == ("detect\n", 9, [])
    assert not (person.home / ".local" / "bin" / "uv").exists()


@pytest.mark.parametrize("missing", ["curl", "unzip", "sha256sum"])
def test_another_program_does_the_same(person: Person, missing: str) -> None:
    others = {"curl": ["wget"], "unzip": ["bsdtar", "python3"], "sha256sum": ["shasum", "openssl"]}[missing]
    other = next((name for name in others if shutil.which(name)), None)
    if other is None:
        pytest.skip(f"none of {others} is here")
    (person.programs / missing).unlink()
    person.has(other, *(["perl"] if other == "shasum" else []))
    assert person.run("detect").out == "detect\n"


@pytest.mark.parametrize(
    ("missing", "said"), [("curl", "neither curl nor wget"), ("unzip", "unzip"), ("sha256sum", "sha256sum")]
)
def test_a_program_that_is_missing_is_named_before_anything_is_fetched(
    person: Person, wheels: Wheels, missing: str, said: str
) -> None:
    (person.programs / missing).unlink()
    ended = person.run()
    assert (ended.status, wheels.asked, person.left()) == (8, [], [])
    assert said in ended.err
    assert "hint: Install" in ended.err


def test_a_wrong_checksum_is_refused_and_nothing_of_it_is_run(person: Person, wheels: Wheels) -> None:
    wheels.wrong = True
    ended = person.run()
    assert (ended.status, person.left()) == (7, [])
    assert "is not the file that is expected" in ended.err


@pytest.mark.parametrize("download", ["curl", "wget"])
def test_an_interrupted_download_is_said_and_leaves_nothing(person: Person, wheels: Wheels, download: str) -> None:
    if shutil.which(download) is None:
        pytest.skip(f"no {download} here")
    if download == "wget":
        (person.programs / "curl").unlink()
        person.has("wget")
        wheels.status = 404  # it would ask for the rest of a file that was cut off, again and again
    wheels.sent = 100_000
    ended = person.run()
    assert (ended.status, person.left()) == (5, [])
    assert "uv could not be fetched from http://127.0.0.1" in ended.err


def test_what_uv_cannot_install_leaves_nothing_not_even_uv(person: Person) -> None:
    person.environ["KLEIN_SETUP_PACKAGE"] = "klein-setup"  # uv is offline, and has no cache
    ended = person.run()
    assert ended.status == 8
    assert "uv could not install klein-setup" in ended.err
    assert person.left() == []


@pytest.mark.parametrize(
    ("system", "libc", "said"),
    [
        ("FreeBSD", "", "(FreeBSD-FreeBSD)"),
        ("Linux", "musl libc (x86_64)", "with musl"),
        ("Haiku", "", "(Haiku-Haiku)"),
    ],
)
def test_a_computer_without_pytorch_is_refused_at_once(
    person: Person, wheels: Wheels, system: str, libc: str, said: str
) -> None:
    person.says("uname", system)
    person.says("ldd", libc)
    ended = person.run()
    assert (ended.status, wheels.asked, person.left()) == (3, [], [])
    assert said in ended.err


def test_a_script_that_was_cut_off_does_nothing(person: Person, wheels: Wheels) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    for size in range(0, text.rindex('main "$@"') + 1, 600):
        person.script = person.temporary.parent / "cut.sh"
        person.script.write_text(text[:size], encoding="utf-8")
        person.run()
    assert (wheels.asked, person.left()) == ([], [])
