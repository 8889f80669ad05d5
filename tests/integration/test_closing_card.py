"""The test image in a terminal: the real command in a pseudo-terminal that says what it can show."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.comfy_server import ReplayServer, drawn_png
from tests.support.sandbox import CALLED, ROOT, Sandbox
from tests.support.setup_fixture import with_existing_tree

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

COLD = "ok_fp8_h200_cold_1024"
HALF_BLOCK, SIXEL, KITTY = "\u2580", "\x1bP", "\x1b_G"
RICH = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
TERMINAL = {**RICH, "NO_COLOR": None}
NOTHING: Mapping[str, str] = {}
PLAIN = {b"\x1b[c": b"\x1b[?62;22c"}
WITH_SIXEL = {b"\x1b[c": b"\x1b[?62;4;22c"}
WITH_KITTY = {b"a=q": b"\x1b_Gi=31;OK\x1b\\", **PLAIN}


@pytest.fixture(scope="module")
def sandbox(make_sandbox: Callable[[], Sandbox]) -> Sandbox:
    return with_existing_tree(make_sandbox())


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[ReplayServer]:
    with ReplayServer(COLD, folder=sandbox.tree) as server:
        yield server


def in_a_terminal(
    sandbox: Sandbox, *words: str, answers: dict[bytes, bytes], env: dict[str, str | None], size: tuple[int, int]
) -> str:
    """Run the command in a terminal that gives these answers, once each; return everything it was sent."""
    ours, theirs = terminal_of(size)
    environ = {name: value for name, value in {**sandbox.environ, **env}.items() if value is not None}
    process = subprocess.Popen(
        [sys.executable, "-m", "provisioner", *sandbox.completed(words)],
        cwd=sandbox.folder,
        env=environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = conversation(ours, answers)
    assert process.wait(10) == 0, said
    return said


def terminal_of(size: tuple[int, int]) -> tuple[int, int]:
    """Return our end and the program's end of a terminal of so many columns and lines."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], size[0] * 10, size[1] * 20))
    return ours, theirs


def conversation(ours: int, answers: dict[bytes, bytes]) -> str:
    """Return everything that is written to a terminal, which gives these answers, once each."""
    left, said, deadline = dict(answers), b"", time.monotonic() + 60
    while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            said += os.read(ours, 65536)
        except OSError:  # its end: nobody holds the other side
            break
        for question in [each for each in left if each in said]:
            os.write(ours, left.pop(question))
    os.close(ours)
    return said.decode("utf-8", "replace")


def without_styles(text: str) -> str:
    return re.sub(r"\x1b(\[[0-9;]*m|\]8;[^\x1b]*\x1b\\)", "", text)


def smoke_test(
    sandbox: Sandbox,
    server: ReplayServer,
    *words: str,
    answers: dict[bytes, bytes] = PLAIN,
    size: tuple[int, int] = (80, 24),
    env: Mapping[str, str] = NOTHING,
) -> str:
    given = ("smoke-test", "--server", server.url, "--size", "64x64", *words)
    return in_a_terminal(sandbox, *given, answers=answers, env={**TERMINAL, **env}, size=size)


@pytest.mark.parametrize(
    ("answers", "sign", "others"),
    [
        (PLAIN, HALF_BLOCK, (SIXEL,)),
        (WITH_SIXEL, SIXEL, (HALF_BLOCK,)),
        (WITH_KITTY, KITTY + "i=", (HALF_BLOCK, SIXEL)),
    ],
    ids=["half blocks", "sixel", "kitty"],
)
def test_the_image_is_shown_as_the_terminal_can(
    sandbox: Sandbox, server: ReplayServer, answers: dict[bytes, bytes], sign: str, others: tuple[str, ...]
) -> None:
    pytest.importorskip("textual_image", reason="the extra `image` is not installed")
    said = smoke_test(sandbox, server, answers=answers)
    assert sign in said
    assert [each for each in others if each in said] == []
    image, _, words = said.rpartition("pictures/klein-")
    assert sign in image
    assert "all of it" in without_styles(words)


@pytest.mark.parametrize(("size", "least"), [((80, 24), 12), ((120, 40), 20), ((80, 12), 0)])
def test_image_and_words_fit_the_screen(
    sandbox: Sandbox, server: ReplayServer, size: tuple[int, int], least: int
) -> None:
    pytest.importorskip("textual_image", reason="the extra `image` is not installed")
    said = without_styles(smoke_test(sandbox, server, size=size))
    drawn = [line for line in said.splitlines() if HALF_BLOCK in line]
    _, *words = said.rpartition(HALF_BLOCK)[2].splitlines()
    rows = min(20, size[1] - 2 - sum(-(-len(line) // size[0]) for line in words)) if least else 0
    assert [line.count(HALF_BLOCK) for line in drawn] == [2 * rows] * rows
    assert rows >= least


@pytest.mark.parametrize(
    ("words", "env"),
    [
        ((), {"NO_COLOR": "1"}),
        ((), {"TERM": "dumb"}),
        (("--no-color",), {}),
        (("--quiet",), {}),
        (("--json",), {}),
    ],
    ids=["NO_COLOR", "TERM=dumb", "--no-color", "--quiet", "--json"],
)
def test_there_is_no_image_where_none_is_wanted(
    sandbox: Sandbox, server: ReplayServer, words: tuple[str, ...], env: dict[str, str]
) -> None:
    said = smoke_test(sandbox, server, *words, answers=WITH_SIXEL, env=env)
    assert [sign for sign in (HALF_BLOCK, SIXEL, KITTY, "\x1b[c") if sign in said] == []
    assert ("all of it" in said) == (not {"--quiet", "--json"} & set(words))


def test_without_the_library_the_words_name_the_image(sandbox: Sandbox, server: ReplayServer, tmp_path: Path) -> None:
    (tmp_path / "textual_image.py").write_text("raise ImportError('not installed')\n")
    path = f"{tmp_path}{os.pathsep}{sandbox.environ['PYTHONPATH']}"
    said = smoke_test(sandbox, server, env={"PYTHONPATH": path})
    assert HALF_BLOCK not in said
    card = without_styles(said.rpartition("\x1b[2mimage")[2])
    assert [each for each in ("pictures/klein-", "all of it") if each not in card] == []


def test_a_pipe_gets_the_words_alone(sandbox: Sandbox, server: ReplayServer) -> None:
    done = sandbox.run("smoke-test", "--server", server.url, "--size", "64x64")
    assert "\x1b" not in done.stdout
    assert f"all of it  {CALLED} report\n" in done.stdout
    assert done.stdout.endswith(f"To start ComfyUI (http://127.0.0.1:8188):\n  {CALLED} start\n")


@pytest.mark.skipif(shutil.which("setsid") is None, reason="needs a shell with a terminal of its own")
def test_a_run_in_the_background_is_not_stopped_and_a_terminal_without_a_size_gets_no_image(tmp_path: Path) -> None:
    pytest.importorskip("textual_image", reason="the extra `image` is not installed")
    image, script = tmp_path / "image.png", tmp_path / "draw.py"
    image.write_bytes(drawn_png(64, 64, 1))
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from provisioner.ui.closing_card import draw_image\nfrom provisioner.ui.stream import Output\n"
        f"print('drawn', draw_image(Path({str(image)!r}), Output(sys.stdout, color=None, environ=os.environ), 8))\n"
    )
    command = f"{sys.executable} {script}"
    behind, front = f"{command} & wait", f"{command}; true"
    for words, size, drawn in ((behind, (80, 24), False), (front, (80, 24), True), (front, (0, 0), False)):
        ours, theirs = terminal_of(size)
        shell = ["setsid", "--ctty", "sh", "-mc", words]
        process = subprocess.Popen(shell, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **RICH})
        os.close(theirs)
        assert f"drawn {drawn}" in conversation(ours, PLAIN)
        assert process.wait(10) == 0
