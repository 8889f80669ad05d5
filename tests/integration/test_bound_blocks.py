"""What `verify` trusts: block digests of a receipt only where this user's own runs took them with the whole digest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from tests.support.sandbox import MIB, Sandbox, tensors, wait_until

SIZE = 37 * MIB


def digests(data: bytes) -> list[str]:
    return [hashlib.sha256(data[at : at + BLOCK_SIZE]).hexdigest() for at in range(0, len(data), BLOCK_SIZE)]


def basis(sandbox: Sandbox) -> tuple[int, str, str]:
    """Return the exit status of `verify`, and what it says of the one file."""
    done = sandbox.run("verify", "--json")
    check: dict[str, Any] = done.json["checks"][0]
    return done.returncode, check["status"], check["basis"]


def forge(sandbox: Sandbox, data: bytes) -> None:
    """Put other bytes there, and let the receipt say of each of their blocks that it is right."""
    path = sandbox.plant(sandbox.path(), data)
    file = sandbox.tree / "models" / STATE_FOLDER / "receipt.json"
    document = json.loads(file.read_text())
    (entry,) = document["files"].values()
    found = path.stat()
    entry.update(blocks=digests(data), mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns, inode=found.st_ino)
    file.write_text(json.dumps(document))


@pytest.fixture
def damaged() -> bytes:
    data = bytearray(tensors(SIZE))
    data[20 * MIB] ^= 1
    return bytes(data)


def test_a_receipt_with_the_digests_of_a_damaged_file_does_not_make_it_right(sandbox: Sandbox, damaged: bytes) -> None:
    sandbox.publish(tensors(SIZE))
    assert sandbox.install().returncode == 0
    assert basis(sandbox) == (0, "ok", "blocks")
    forge(sandbox, damaged)
    assert basis(sandbox) == (1, "hash-mismatch", "sha256")


def test_a_tree_from_elsewhere_is_read_whole_once(sandbox: Sandbox, damaged: bytes) -> None:
    sandbox.publish(tensors(SIZE))
    assert sandbox.install().returncode == 0
    shutil.rmtree(sandbox.home / "state")
    before = sandbox.tree.joinpath("models", STATE_FOLDER, "receipt.json").read_bytes()
    assert basis(sandbox) == (0, "ok", "sha256")
    assert basis(sandbox) == (0, "ok", "blocks")
    assert sandbox.tree.joinpath("models", STATE_FOLDER, "receipt.json").read_bytes() == before
    shutil.rmtree(sandbox.home / "state")
    forge(sandbox, damaged)
    assert basis(sandbox)[:2] == (1, "hash-mismatch")
    assert basis(sandbox)[:2] == (1, "hash-mismatch")


def test_a_log_that_lies_about_a_block_does_not_get_into_the_receipt(sandbox: Sandbox, damaged: bytes) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.hub.rate_bytes_s_per_connection = 20 * MIB
    running = sandbox.start("install", "--connections", "1")
    wait_until(lambda: sandbox.blocks_in_log(wanted) >= 2, what="two blocks are complete")
    running.kill()
    running.wait()
    sandbox.hub.rate_bytes_s_per_connection = None
    log = sandbox.log(wanted)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines[1:]:
        line["sha256"] = digests(damaged)[line["block"]]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sandbox.install().returncode == 0
    (entry,) = sandbox.receipt().values()
    assert entry["blocks"] == digests(wanted.data)
    forge(sandbox, damaged)
    assert basis(sandbox) == (1, "hash-mismatch", "sha256")


def test_blocks_of_one_manifest_are_no_proof_for_another(sandbox: Sandbox, damaged: bytes) -> None:
    """A manifest may say of a digest what it likes; what is learned from it holds for itself alone."""
    (wanted,) = sandbox.publish(tensors(SIZE))
    assert sandbox.install().returncode == 0
    shutil.rmtree(sandbox.home / "state")
    entry = wanted.artifact() | {"blocks": digests(damaged)}
    forge(sandbox, damaged)
    liar = Path(sandbox.folder, "liar.yaml")
    document = json.loads(sandbox.manifest.read_text())
    liar.write_text(json.dumps(document | {"artifacts": [entry]}))
    sandbox.run("repair", "--manifest", str(liar), "--endpoint", sandbox.hub.endpoint)
    assert basis(sandbox) == (1, "hash-mismatch", "sha256")


def test_what_a_killed_run_left_of_a_binding_is_removed_by_the_next_one(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(MIB))
    folder = sandbox.home / "state" / "klein-setup" / "blocks"
    folder.mkdir(parents=True)
    old, new = folder / f"{'a' * 64}.0123456789abcdef.tmp", folder / f"{'b' * 64}.0123456789abcdef.tmp"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    assert sandbox.run("install").returncode == 0
    assert (old.exists(), new.exists()) == (False, True)  # another run may be writing the new one
