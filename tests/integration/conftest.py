"""What the integration tests share: a world of one's own for every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioner.rehearsal.hub import RehearsalHub
from tests.support.world import TOKEN, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return a hub without files, a scratch home and a tree that does not exist yet."""
    with RehearsalHub(tokens=[TOKEN]) as hub:
        world = World(tmp_path / "world", hub)
        try:
            yield world
        finally:
            world.close()


@pytest.fixture(scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], World]]:
    """Return a function that makes worlds which live as long as the module: for runs that wait side by side."""
    worlds: list[World] = []

    def make() -> World:
        worlds.append(World(tmp_path_factory.mktemp("worlds") / "world", RehearsalHub(tokens=[TOKEN])))
        return worlds[-1]

    try:
        yield make
    finally:
        for each in worlds:
            each.close()
            each.hub.close()
