"""Unit tests touch nothing: no network, no process, no home of a person."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

HOMES = (
    "HOME",
    "USERPROFILE",
    "APPDATA",
    "LOCALAPPDATA",
    "PROGRAMDATA",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "HF_HOME",
)
PROCESS_CALLS = tuple(
    name
    for name in dir(os)
    if name in {"fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile", "system"}
    or name.startswith(("exec", "spawn"))
    if callable(getattr(os, name))
)


def refusal(what: str) -> Callable[..., NoReturn]:
    """Return a stand-in that fails the test which calls it."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        pytest.fail(f"a unit test may not {what}; inject a port, or move the test to tests/integration")

    return refuse


@pytest.fixture(autouse=True, scope="module")  # a fresh home and fifty patches for each test cost more than the tests
def _touch_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "listen"):  # not bind: urllib3 looks for IPv6 that way when imported
            patch.setattr(socket.socket, name, refusal("use a socket"))
        patch.setattr(socket, "create_connection", refusal("use a socket"))
        patch.setattr(socket, "getaddrinfo", refusal("ask for an address"))
        patch.setattr(subprocess.Popen, "__init__", refusal("start a process"))
        for name in PROCESS_CALLS:
            patch.setattr(os, name, refusal("start a process"))
        home = tmp_path_factory.mktemp("home")
        for name in HOMES:
            patch.setenv(name, str(home))
        yield
        assert list(home.iterdir()) == [], "a unit test may not write into the home folder"


@pytest.fixture
def repository_root() -> Path:
    """Return the folder of the checkout."""
    return Path(__file__).resolve().parents[2]
