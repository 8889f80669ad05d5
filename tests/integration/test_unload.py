"""A repair tells the ComfyUI that reads these files to let go of the old ones: the real command, a recorded server."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.commands.unload import DEFAULT_SERVER
from tests.support.comfy_server import ReplayServer
from tests.support.sandbox import Sandbox, tensors

COLD = "ok_fp8_h200_cold_1024"
LET_GO = [{"unload_models": True, "free_memory": True}]


def spoiled(sandbox: Sandbox) -> Sandbox:
    """Install a file and put another in its place."""
    (wanted,) = sandbox.publish(tensors(2000))
    assert sandbox.install("--only", "files").returncode == 0
    sandbox.plant(sandbox.path(), tensors(2000, seed=1))
    assert wanted.data != sandbox.path().read_bytes()
    return sandbox


def test_a_server_that_is_named_is_told_once_something_was_replaced(sandbox: Sandbox) -> None:
    with ReplayServer(COLD, folder=spoiled(sandbox).tree) as server:
        done = sandbox.run("repair", "--verbose", "--server", server.url)
        assert server.asked("POST", "/free") == LET_GO
        assert "was told to unload its models" in done.said
        again = sandbox.run("repair", "--server", server.url)  # nothing to repair, nothing to let go of
        assert server.asked("POST", "/free") == LET_GO
    assert (done.returncode, again.returncode) == (0, 0)
    sandbox.assert_in_place()


def test_a_server_that_cannot_be_reached_is_said_and_the_repair_counts(sandbox: Sandbox, tmp_path: Path) -> None:
    done = spoiled(sandbox).run("repair", "--verbose", "--server", "http://127.0.0.1:9")
    assert done.returncode == 0, done.said
    assert "could not be told to unload" in done.said
    sandbox.assert_in_place()


@pytest.mark.parametrize("reads_this_tree", [True, False])
def test_a_server_at_the_usual_address_is_told_only_if_it_reads_this_tree(
    sandbox: Sandbox, tmp_path: Path, reads_this_tree: bool
) -> None:
    tree = spoiled(sandbox).tree
    folder = tree if reads_this_tree else tmp_path / "of somebody else"
    try:
        server = ReplayServer(COLD, folder=folder, port=int(DEFAULT_SERVER.rpartition(":")[2]))
    except OSError:
        pytest.skip("something else listens there")
    with server:
        assert sandbox.run("repair").returncode == 0
        assert server.asked("POST", "/free") == (LET_GO if reads_this_tree else [])
    sandbox.assert_in_place()
