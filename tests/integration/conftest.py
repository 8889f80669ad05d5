"""What the integration tests share: a sandbox of one's own for every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioner.rehearsal.hub import RehearsalHub
from tests.support.sandbox import TOKEN, Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """Return a hub without files, a scratch home and a tree that does not exist yet."""
    with RehearsalHub(tokens=[TOKEN]) as hub:
        sandbox = Sandbox(tmp_path / "sandbox", hub)
        try:
            yield sandbox
        finally:
            sandbox.close()


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
