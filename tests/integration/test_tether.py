"""A server of ours does not outlive a killed klein-setup; other servers are not touched.

Processes, pipes and signals are real: a small program starts a stand-in server as klein-setup does, and is killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from provisioner.comfyui.server.launch import Launch
from provisioner.comfyui.server.server_process import start_server
from provisioner.comfyui.server.watchdog_script import has_its_group

ROOT = Path(__file__).resolve().parents[2]
WATCHER = "watchdog_script.py"
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there is no watcher on Windows")

# What a server has beside it: a child that ignores requests, one that left the group, one whose own parent is gone.
CHILDREN = """
    import pathlib, subprocess
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
    sleep = [sys.executable, "-c", stubborn]
    children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
    between = f"import subprocess as s; print(s.Popen({sleep!r}, stdout=s.DEVNULL).pid)"
    orphan = subprocess.run([sys.executable, "-c", between], stdout=subprocess.PIPE, text=True).stdout.strip()
    said = " ".join([*(str(child.pid) for child in children), orphan])
    pathlib.Path(__file__).with_name("children").write_text(said)
"""

# A program that starts a server as klein-setup does, says who it and the others are, and waits.
SETUP = f"""
    import json, subprocess, sys, time
    from pathlib import Path
    sys.path.insert(0, {str(ROOT)!r})
    from provisioner.comfyui.server.server_process import start_server
    from provisioner.comfyui.server.launch import Launch

    def start(tree):
        made = tree.parent / "made"
        launch = Launch(python=Path(sys.executable), tree=tree, output=made / "o", user=made / "u", temp=made / "t")
        return start_server(launch, log_path=made / "log", cancelled=lambda: False)

    servers = [start(Path(tree)) for tree in sys.argv[2:]]
    heir = None
    if sys.argv[1] == "heir":  # started last, it would have the pipe if anybody had
        heir = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], close_fds=False)
    print(json.dumps({{"servers": [each.pid for each in servers], "heir": heir and heir.pid}}), flush=True)
    time.sleep(120)
"""


def stand_in(tree: Path, before: str = "") -> Path:
    """Write a main.py that answers as ComfyUI was recorded; return its tree."""
    tree.mkdir(parents=True)
    lines = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})",
        "from tests.support.comfy_server import serve_as_comfyui",
        textwrap.dedent(before),
        "serve_as_comfyui(sys.argv)",
    )
    (tree / "main.py").write_text("\n".join(lines), encoding="utf-8")
    return tree


def launch_of(tree: Path) -> Launch:
    made = tree.parent / "made"
    return Launch(python=Path(sys.executable), tree=tree, output=made / "o", user=made / "u", temp=made / "t")


def children_of(tree: Path) -> list[int]:
    return [int(pid) for pid in (tree / "children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended_within(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def watchers() -> list[psutil.Process]:
    """Return the watchers that this process has started."""
    return [each for each in psutil.Process().children() if any(WATCHER in word for word in each.cmdline())]


Setup = Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]


@pytest.fixture
def setup() -> Iterator[Setup]:
    """Return a function that starts the program and returns it with what it said; nothing of it stays."""
    started: list[subprocess.Popen[str]] = []
    seen: list[psutil.Process] = []

    def start(*trees: Path, heir: bool = False) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        words = [sys.executable, "-c", textwrap.dedent(SETUP), "heir" if heir else "alone", *map(str, trees)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        seen.extend(psutil.Process(process.pid).children(recursive=True))
        return process, said

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    for each in seen:
        if each.is_running():
            each.kill()


def test_a_killed_setup_takes_its_server_and_all_its_children_along(tmp_path: Path, setup: Setup) -> None:
    tree = stand_in(tmp_path / "ComfyUI", CHILDREN)
    process, said = setup(tree)
    everybody = [*said["servers"], *children_of(tree)]
    assert len(everybody) == 4
    assert all(is_alive(pid) for pid in everybody)
    process.kill()
    process.wait()
    assert ended_within(said["servers"], 5), "it holds the VRAM"
    assert ended_within(everybody, 10), "2 s for those who do not want to"


def test_a_server_of_somebody_else_stays(tmp_path: Path, setup: Setup) -> None:
    with start_server(
        launch_of(stand_in(tmp_path / "theirs" / "ComfyUI")), log_path=tmp_path / "log", cancelled=lambda: False
    ) as theirs:
        process, said = setup(stand_in(tmp_path / "ours" / "ComfyUI"))
        process.kill()
        process.wait()
        assert ended_within(said["servers"], 5)
        time.sleep(0.3)
        assert theirs.returncode is None


def test_the_pipe_is_inherited_by_no_other_child(tmp_path: Path, setup: Setup) -> None:
    """A second server and a child that is given every descriptor there is: one of them would keep the first alive."""
    trees = [stand_in(tmp_path / name / "ComfyUI") for name in ("first", "second")]
    process, said = setup(*trees, heir=True)
    process.kill()
    process.wait()
    assert ended_within(said["servers"], 5)
    assert is_alive(said["heir"])


@posix_only
def test_a_normal_end_leaves_no_watcher(tmp_path: Path) -> None:
    with start_server(
        launch_of(stand_in(tmp_path / "ComfyUI")), log_path=tmp_path / "log", cancelled=lambda: False
    ) as server:
        seen = watchers()
        assert [each.cmdline()[-2] for each in seen] == [str(server.pid)]
    assert watchers() == []
    assert not seen[0].is_running(), "not as a zombie either"


@posix_only
def test_a_server_that_ends_by_itself_leaves_no_watcher(tmp_path: Path) -> None:
    with start_server(
        launch_of(stand_in(tmp_path / "ComfyUI")), log_path=tmp_path / "log", cancelled=lambda: False
    ) as server:
        psutil.Process(server.pid).kill()
        deadline = time.monotonic() + 5
        while (
            server.returncode is None
        ):  # a zombie in the table before its last thread is gone and it can be waited for
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert watchers() == []


@posix_only
def test_a_watcher_that_is_killed_first_does_no_harm(tmp_path: Path) -> None:
    with start_server(
        launch_of(stand_in(tmp_path / "ComfyUI")), log_path=tmp_path / "log", cancelled=lambda: False
    ) as server:
        (watcher,) = watchers()
        watcher.kill()
        assert ended_within([watcher.pid], 5)
        assert server.returncode is None
        pid = server.pid
    assert ended_within([pid], 5)
    assert watchers() == []


@posix_only
def test_a_number_that_is_somebody_elses_by_now_is_not_signalled() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        itself = psutil.Process(bystander.pid)
        before: Any = SimpleNamespace(pid=bystander.pid)  # who had the number, and started at another time
        assert has_its_group(itself)
        assert not has_its_group(before)
    finally:
        bystander.kill()
        bystander.wait()
    assert has_its_group(itself), "nobody has the number: what is left of the group is its own"
