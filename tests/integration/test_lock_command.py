"""`manifest lock` on one machine, `repair` and `verify --locked` on another, with the real command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from provisioner.core.models import BLOCK_SIZE
from tests.support.sandbox import MIB, Sandbox, Wanted, sha256_of, tensors
from tests.support.setup_fixture import PROGRAM, git

SIZE = 2 * BLOCK_SIZE + MIB


@pytest.fixture
def locked(sandbox: Sandbox) -> tuple[Wanted, Path]:
    """A file that was verified here, and the manifest that was locked from it."""
    (wanted,) = sandbox.publish(tensors(SIZE))
    assert sandbox.install("--only", "files").returncode == 0
    path = sandbox.folder / "lab.yaml"
    done = sandbox.run("manifest", "lock", "--output", path)
    assert done.returncode == 0, done.said
    assert "names 1 files and 3 blocks of 16 MiB" in done.said
    sandbox.hub.wait_until_idle()
    sandbox.hub.clear_requests()
    return wanted, path


def test_another_machine_repairs_by_blocks_what_it_never_received(
    sandbox: Sandbox, locked: tuple[Wanted, Path]
) -> None:
    wanted, manifest = locked
    other = sandbox.folder / "another machine"
    path = other / "models" / wanted.folder / wanted.name
    damaged = bytearray(wanted.data)
    damaged[BLOCK_SIZE + 5] ^= 1
    sandbox.plant(path, bytes(damaged))
    repaired = sandbox.run("repair", "--json", "--manifest", manifest, "--comfyui", other)
    assert repaired.returncode == 0, repaired.said
    assert sandbox.bytes_served() == BLOCK_SIZE
    assert sha256_of(path) == wanted.sha256
    (step,) = repaired.json["steps"]
    assert (step["way"], step["blocks"]) == ("in-place", [1])


def test_nothing_is_locked_that_is_not_right(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    assert sandbox.install("--only", "files").returncode == 0
    damaged = wanted.data[:-1] + bytes([wanted.data[-1] ^ 1])
    sandbox.plant(sandbox.path(), damaged)
    output = sandbox.folder / "lab.yaml"
    done = sandbox.run("manifest", "lock", "--output", output)
    assert done.returncode == 1
    assert "Nothing was locked" in done.said
    assert not output.exists()


def test_the_workflow_that_the_manifest_names_comes_along(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(1000))
    own = sandbox.plant(sandbox.folder / "own.json", b'{"nodes": []}')
    sandbox.write_manifest(workflow={"name": own.name, "sha256": sha256_of(own)})
    assert sandbox.install("--only", "files").returncode == 0
    output, beside = sandbox.folder / "lab" / "lab.yaml", sandbox.folder / "lab" / own.name
    sandbox.plant(beside, b"another one")

    refused = sandbox.run("manifest", "lock", "--output", output)
    assert (refused.returncode, output.exists()) == (2, False)
    assert f"{beside} is another file" in refused.said
    beside.unlink()
    done = sandbox.run("manifest", "lock", "--output", output)
    assert done.returncode == 0, done.said
    assert beside.read_bytes() == own.read_bytes()
    assert sandbox.run("manifest", "lock", "--output", output).returncode == 0
    own.write_bytes(b"changed")
    assert sandbox.run("manifest", "lock", "--output", output).returncode == 7


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed here")
def test_a_machine_with_another_comfyui_is_refused(sandbox: Sandbox) -> None:
    for name, text in PROGRAM.items():
        sandbox.plant(sandbox.tree / name, text.encode())
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one")):
        git(sandbox.tree, *words)
    sandbox.publish(tensors(2000))
    assert sandbox.install("--only", "files").returncode == 0
    manifest = sandbox.folder / "lab.yaml"
    assert sandbox.run("manifest", "lock", "--output", manifest).returncode == 0
    there = ("verify", "--manifest", manifest, "--locked", "--quick", "--json")
    assert sandbox.run(*there).returncode == 0
    git(sandbox.tree, "commit", "-q", "--allow-empty", "-m", "two")
    refused = sandbox.run(*there)
    assert refused.returncode == 7
    (error,) = refused.json["errors"]
    assert error["code"] == "lock-drift"
    assert git(sandbox.tree, "rev-parse", "HEAD").strip() in error["message"]


def test_a_manifest_that_is_not_locked_is_refused(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(2000))
    sandbox.tree.mkdir(parents=True)
    refused = sandbox.run("verify", "--locked", "--json")
    assert (refused.returncode, refused.json["errors"][0]["code"]) == (2, "manifest-invalid")
