"""The fixture that forbids is itself held to what it promises."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest


def connect() -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def listen() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()


@pytest.mark.parametrize(
    "act",
    [
        connect,
        listen,
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("localhost", 80),
        lambda: urllib.request.urlopen("http://127.0.0.1:9/"),
    ],
    ids=["connect", "listen", "create_connection", "getaddrinfo", "urlopen"],
)
def test_a_socket_fails_the_test(act: Callable[[], object]) -> None:
    with pytest.raises(pytest.fail.Exception, match="a unit test may not"):
        act()


@pytest.mark.parametrize(
    "act",
    [
        lambda: subprocess.run([sys.executable, "-c", ""], check=False),
        lambda: subprocess.Popen([sys.executable, "-c", ""]),
        lambda: os.system("true"),  # noqa: S605 - refused, which is the point
        lambda: os.execv(sys.executable, ["python"]),  # noqa: S606 - refused, which is the point
    ],
    ids=["run", "Popen", "system", "execv"],
)
def test_a_process_fails_the_test(act: Callable[[], object]) -> None:
    with pytest.raises(pytest.fail.Exception, match="may not start a process"):
        act()


@pytest.mark.parametrize("name", sorted(name for name in dir(os) if name in {"fork", "forkpty", "posix_spawn"}))
def test_a_fork_fails_the_test(name: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="may not start a process"):
        getattr(os, name)()


def test_the_home_is_an_empty_scratch_folder() -> None:
    home = Path.home()
    assert home.name.startswith("home")
    assert list(home.iterdir()) == []
    assert os.environ["HF_HOME"] == str(home)


def test_no_setting_of_the_developer_is_left() -> None:
    left = {name for name in os.environ if name.startswith(("HF_", "HUGGING", "KLEIN_SETUP_"))}
    assert left == {"HF_HOME", "HF_HUB_DISABLE_TELEMETRY"}
    assert not {"NO_COLOR", "FORCE_COLOR", "COLUMNS"} & set(os.environ)
