"""How many bytes each command reads: every byte of a file once to judge it, and once more to verify a repaired one.

Counted by the kernel for the whole process, so that no clock decides.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner.core.models import BLOCK_SIZE
from tests.support.sandbox import MIB, Sandbox, Wanted, tensors

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel does not count what is read")

FLIPPED = Wanted(data=tensors(5 * BLOCK_SIZE + 3 * MIB), name="flipped.safetensors")
CUT = Wanted(data=tensors(3 * BLOCK_SIZE + 5 * MIB), name="cut.safetensors")
CUT_AT = 2 * BLOCK_SIZE + MIB
BOTH = len(FLIPPED.data) + len(CUT.data)
ROOM = 8 * MIB  # modules that one command imports and another does not; a start without any work is taken off
PROGRAM = """
import sys
from provisioner.cli.main import main
status = main(sys.argv[1:])
with open("/proc/self/io") as counted:
    print(next(line for line in counted if line.startswith("rchar")), file=sys.stderr)
sys.exit(status)
"""


def bytes_read(sandbox: Sandbox, *arguments: str, status: int = 0) -> int:
    """Run a command and return how many bytes it read from files."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *sandbox.completed(arguments)],
        env=sandbox.environ,
        cwd=sandbox.folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return int(done.stderr.split("rchar:")[-1])


@pytest.fixture
def start(sandbox: Sandbox) -> int:
    """Install both files; return what a command reads that reads no file of a model."""
    sandbox.publish(FLIPPED, CUT)
    assert sandbox.install("--only", "files").returncode == 0
    return max(bytes_read(sandbox, "verify", "--quick") for _ in range(2))


def damage(sandbox: Sandbox) -> None:
    """Change one byte of one file, and cut the other."""
    with sandbox.path(FLIPPED).open("r+b") as file:
        file.seek(3 * BLOCK_SIZE + 7)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.truncate(sandbox.path(CUT), CUT_AT)


def test_verify_reads_every_byte_once_whatever_is_wrong(sandbox: Sandbox, start: int) -> None:
    healthy = bytes_read(sandbox, "verify") - start
    assert BOTH <= healthy <= BOTH + ROOM
    damage(sandbox)
    there = len(FLIPPED.data) + CUT_AT
    damaged = bytes_read(sandbox, "verify", status=1) - start
    assert there <= damaged <= there + ROOM


def test_repair_reads_what_it_repairs_once_more_and_nothing_else(sandbox: Sandbox, start: int) -> None:
    assert bytes_read(sandbox, "repair") - start <= BOTH + ROOM
    damage(sandbox)
    looked_at = len(FLIPPED.data) + CUT_AT
    verified = BOTH
    # The old bytes of a bad block are kept, what arrived is written into the file, and the file is read back.
    moved = 3 * BLOCK_SIZE + (CUT_AT % BLOCK_SIZE)
    read = bytes_read(sandbox, "repair") - start
    assert looked_at + verified <= read <= looked_at + verified + moved + ROOM
    for wanted in (FLIPPED, CUT):
        sandbox.assert_in_place(wanted)
    assert bytes_read(sandbox, "verify") - start <= BOTH + ROOM


def test_install_reads_nothing_of_what_a_receipt_speaks_of(sandbox: Sandbox, start: int) -> None:
    assert bytes_read(sandbox, "install", "--only", "files") - start <= ROOM
