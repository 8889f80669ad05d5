"""What the integration tests share: a sandbox of one's own for every test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioner.rehearsal.hub import RehearsalHub
from tests.support.disks import Mount
from tests.support.sandbox import TOKEN, Sandbox
from tests.support.setup_fixture import SetupFixture, Upstream, index_of_toys
from tests.support.wheels import ToyIndex, own_pip


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """Return a hub without files, a scratch home and a tree that does not exist yet."""
    with RehearsalHub(tokens=[TOKEN]) as hub:
        sandbox = Sandbox(tmp_path / "sandbox", hub)
        try:
            yield sandbox
        finally:
            sandbox.close()


@pytest.fixture
def cold_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run begin with a Python of its own."""
    monkeypatch.setenv("COLD_STARTS", "1")


@pytest.fixture(scope="module")
def make_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Sandbox]]:
    """Return a function that makes sandboxes which live as long as the module: for runs that wait side by side."""
    sandboxes: list[Sandbox] = []

    def make() -> Sandbox:
        sandboxes.append(Sandbox(tmp_path_factory.mktemp("sandboxes") / "sandbox", RehearsalHub(tokens=[TOKEN])))
        return sandboxes[-1]

    try:
        yield make
    finally:
        for each in sandboxes:
            each.close()
            each.hub.close()


@pytest.fixture(scope="module")
def index() -> Iterator[ToyIndex]:
    """Return an index with a torch set and what the stand-in for ComfyUI requires."""
    index = index_of_toys(own_pip())
    yield index
    index.close()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """Return a repository with a release of the stand-in."""
    return Upstream(tmp_path_factory.mktemp("upstream") / "ComfyUI")


@pytest.fixture
def setup(sandbox: Sandbox, index: ToyIndex, upstream: Upstream) -> SetupFixture:
    """Return a whole setup, with nothing installed."""
    return SetupFixture(sandbox, index, upstream)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Return a function that mounts a file system in memory; skips where that needs rights we do not have."""
    mounted: list[Path] = []

    def tmpfs(options: str) -> Path:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("mounting a file system takes root on Linux")
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"this machine does not let us mount: {done.stderr.strip()}")
        mounted.append(place)
        return place

    try:
        yield tmpfs
    finally:
        for place in reversed(mounted):
            subprocess.run(["umount", "-l", str(place)], check=True)
