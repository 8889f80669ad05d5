"""`repair` and `verify` with the real command: how little is fetched, what is kept, what is said of a damaged file."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from provisioner.commands.run import Options, open_run
from provisioner.commands.session import Session, Settings
from provisioner.commands.verify_files import run_verify
from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER, PatchFile
from provisioner.core.ports import Claim, FileDigest
from provisioner.disk.locations import file_system_of
from provisioner.disk.root import Root
from provisioner.files.store.file_store import FileStore
from provisioner.files.store.read_at import open_for_reading
from provisioner.files.store.receipts import Receipts, stamp_of
from provisioner.rehearsal.faults import IgnoreRange
from tests.support.sandbox import MIB, Completed, Sandbox, Wanted, sha256_of, tensors

FIVE = 4 * BLOCK_SIZE + 12 * MIB  # 80 MB: five blocks, the last one short
SIZE = BLOCK_SIZE + MIB  # two blocks, which is enough to be right in part
LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")


def installed(sandbox: Sandbox, size: int = SIZE) -> Wanted:
    """Put one file and its receipt where an installation would have put them."""
    (wanted,) = sandbox.publish(tensors(size))
    sandbox.plant(sandbox.path(), wanted.data)
    file_digest = FileDigest(size=size, sha256=wanted.sha256, blocks=digests_of(size))
    claim = Claim(artifact_id="small", stamp=stamp_of(sandbox.path()), file_digest=file_digest, source="the hub")
    root = Root(sandbox.tree / "models")
    Receipts().write_claim(root, f"vae/{wanted.name}", claim, recorded_at="2026-11-23T00:00:00Z")
    return wanted


@functools.lru_cache
def digests_of(size: int) -> tuple[str, ...]:
    data = memoryview(tensors(size))
    return tuple(hashlib.sha256(data[at : at + BLOCK_SIZE]).hexdigest() for at in range(0, size, BLOCK_SIZE))


def damage(sandbox: Sandbox, change: Callable[[bytearray], None]) -> bytes:
    """Change a file's bytes in place; return them. The sandbox knows them as the user's from then on."""
    data = bytearray(sandbox.path().read_bytes())
    change(data)
    with sandbox.path().open("r+b") as stream:
        stream.write(data)
        stream.truncate(len(data))
    sandbox.expect(sandbox.path(), bytes(data))
    return bytes(data)


def flip(offset: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset] ^= 1

    return change


def cut(length: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[length:]

    return change


def step_of(run: Completed) -> dict[str, Any]:
    (step,) = run.json["steps"]
    assert isinstance(step, dict)
    return step


def leftovers(sandbox: Sandbox) -> list[str]:
    return sorted(path.name for path in sandbox.path().parent.iterdir() if path != sandbox.path())


# --- one block -------------------------------------------------------------------------------------


def test_one_flipped_byte_costs_one_block(sandbox: Sandbox) -> None:
    wanted = installed(sandbox, FIVE)
    old = damage(sandbox, flip(3 * BLOCK_SIZE + 5))
    inode = sandbox.path().stat().st_ino
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert sandbox.bytes_served() == BLOCK_SIZE
    step = step_of(repaired)
    assert (step["kind"], step["way"], step["blocks"]) == ("patch-file", "in-place", [3])
    assert (step["bytes_to_fetch"], step["outcome"]["bytes_fetched"]) == (BLOCK_SIZE, BLOCK_SIZE)
    sandbox.assert_in_place(wanted)
    assert sandbox.path().stat().st_ino == inode
    assert leftovers(sandbox) == []
    kept = [path for name, path in sandbox.backups().items() if name.endswith(f"{3 * BLOCK_SIZE:015d}")]
    assert [path.read_bytes() for path in kept] == [old[3 * BLOCK_SIZE : 4 * BLOCK_SIZE]]
    again = sandbox.run("verify", "--json")
    assert (again.returncode, again.json["checks"][0]["basis"]) == (0, "blocks")


@pytest.mark.parametrize(
    ("offset", "block", "fetched"),
    [(0, 0, BLOCK_SIZE), (SIZE - 1, 1, MIB)],
    ids=["first byte", "last byte"],
)
def test_the_block_that_differs_is_named_and_fetched(sandbox: Sandbox, offset: int, block: int, fetched: int) -> None:
    wanted = installed(sandbox)
    damage(sandbox, flip(offset))
    seen = sandbox.run("verify", "--json")
    assert seen.returncode == 1
    (check,) = seen.json["checks"]
    assert (check["status"], check["damage"]["bad_blocks"]) == ("hash-mismatch", [block])
    assert check["identity"] == f"block {block} (of 0 to 1) differs"
    assert sandbox.run("repair").returncode == 0
    assert sandbox.bytes_served() == fetched
    sandbox.assert_in_place(wanted)


def test_what_a_truncated_file_still_has_is_not_fetched(sandbox: Sandbox) -> None:
    wanted = installed(sandbox, FIVE)
    length = 3 * BLOCK_SIZE + 3 * MIB
    damage(sandbox, cut(length))
    seen = sandbox.run("verify", "--json")
    assert seen.json["checks"][0]["identity"] == (
        f"truncated at byte {length:,} of {FIVE:,}; its first {3 * BLOCK_SIZE:,} bytes are right"
    )
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert sandbox.bytes_served() == FIVE - 3 * BLOCK_SIZE
    assert (step_of(repaired)["way"], leftovers(sandbox)) == ("continue", [])
    sandbox.assert_in_place(wanted)


def test_a_truncated_file_that_nobody_has_a_receipt_of_is_continued_all_the_same(sandbox: Sandbox) -> None:
    """As other programs leave it: under its final name, and nobody took the digests of its blocks."""
    (wanted,) = sandbox.publish(tensors(FIVE))
    length = 3 * BLOCK_SIZE + 3 * MIB
    sandbox.plant(sandbox.path(), wanted.data[:length])
    seen = sandbox.run("verify", "--json")
    (check,) = seen.json["checks"]
    assert check["identity"] == f"truncated at byte {length:,} of the {FIVE:,} its own header asks for"
    assert (check["basis"], check["damage"]["trusted_by"]) == ("size", "header")
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert sandbox.bytes_served() == FIVE - 3 * BLOCK_SIZE
    assert (step_of(repaired)["way"], leftovers(sandbox)) == ("beside", [])
    sandbox.assert_in_place(wanted)
    assert sandbox.run("verify").returncode == 0


def test_a_truncated_file_of_another_content_costs_a_download_and_is_kept(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(FIVE))
    another = tensors(FIVE, seed=1)[: 4 * BLOCK_SIZE]  # the same header, other weights
    sandbox.plant(sandbox.path(), another)
    repaired = sandbox.run("repair", "--verbose")
    assert repaired.returncode == 0, repaired.stderr
    assert "is not the beginning of the right file; fetching anew" in repaired.said
    assert "block fetched from" not in repaired.said  # all of it was
    assert sandbox.bytes_served() == FIVE - 4 * BLOCK_SIZE + FIVE
    sandbox.assert_in_place(wanted)
    assert [path.read_bytes() for path in sandbox.backups().values() if path.suffix != ".jsonl"] == [another]


def test_what_is_too_long_is_cut_without_asking_anybody(sandbox: Sandbox) -> None:
    wanted = installed(sandbox)
    (sandbox.tree / "models" / STATE_FOLDER / "receipt.json").unlink()
    damage(sandbox, lambda data: data.extend(b"<html>appended by a broken tool</html>"))
    repaired = sandbox.run("repair", "--json", "--offline")
    assert repaired.returncode == 0, repaired.stderr
    assert sandbox.hub.requests == ()
    assert (step_of(repaired)["kind"], step_of(repaired)["blocks"]) == ("patch-file", [])
    sandbox.assert_in_place(wanted)
    assert any(path.read_bytes().startswith(b"<html>") for path in sandbox.backups().values() if path.is_file())


def test_a_file_with_another_name_is_repaired_beside_it(sandbox: Sandbox) -> None:
    wanted = installed(sandbox)
    other = sandbox.folder / "theirs.bin"
    os.link(sandbox.path(), other)
    old = damage(sandbox, flip(BLOCK_SIZE))
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert (step_of(repaired)["way"], sandbox.bytes_served()) == ("beside", MIB)
    sandbox.assert_in_place(wanted)
    assert other.read_bytes() == old
    assert [sha256_of(path) for name, path in sandbox.backups().items() if name == f"vae/{wanted.name}"] == [
        sha256_of(old)
    ]


@LINKS
def test_a_link_to_a_damaged_file_is_never_written_through(sandbox: Sandbox) -> None:
    wanted = installed(sandbox)
    elsewhere = sandbox.folder / "elsewhere.bin"
    sandbox.path().replace(elsewhere)
    sandbox.path().symlink_to(elsewhere)
    old = damage(sandbox, flip(BLOCK_SIZE))
    sandbox.expect(elsewhere, old)
    repaired = sandbox.run("repair", "--json", "--follow-links")
    assert repaired.returncode == 0, repaired.stderr
    assert (step_of(repaired)["way"], sandbox.bytes_served()) == ("beside", MIB)
    assert not sandbox.path().is_symlink()
    assert elsewhere.read_bytes() == old
    sandbox.assert_in_place(wanted)


def test_a_hub_that_ignores_ranges_still_repairs_the_block(sandbox: Sandbox) -> None:
    wanted = installed(sandbox)
    damage(sandbox, flip(BLOCK_SIZE + 1))
    sandbox.hub.fault(IgnoreRange(), times=None)
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    sandbox.assert_in_place(wanted)
    assert leftovers(sandbox) == []


# --- receipts that lie -----------------------------------------------------------------------------


def edit_receipt(sandbox: Sandbox, change: Callable[[dict[str, Any]], None]) -> None:
    path = sandbox.tree / "models" / STATE_FOLDER / "receipt.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document["files"][f"vae/{sandbox.files[0].name}"])
    path.write_text(json.dumps(document), encoding="utf-8")


def lie_of_a_block(entry: dict[str, Any]) -> None:
    entry["blocks"][1] = "0" * 64


def lie_of_every_block(entry: dict[str, Any]) -> None:
    entry["blocks"] = ["0" * 64] * len(entry["blocks"])


def lie_of_the_whole(entry: dict[str, Any]) -> None:
    entry["sha256"] = "0" * 64


def lose_a_block(entry: dict[str, Any]) -> None:
    entry["blocks"].pop()


@pytest.mark.parametrize("lie", [lie_of_a_block, lie_of_every_block, lie_of_the_whole, lose_a_block])
def test_a_receipt_that_lies_never_costs_a_right_file_a_byte(
    sandbox: Sandbox, lie: Callable[[dict[str, Any]], None]
) -> None:
    wanted = installed(sandbox)
    edit_receipt(sandbox, lie)
    before = sandbox.path().stat()
    seen = sandbox.run("verify", "--json")
    assert (seen.returncode, seen.json["checks"][0]["status"]) == (0, "ok")
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert (sandbox.hub.requests, step_of(repaired)["kind"]) == ((), "record-receipt")
    after = sandbox.path().stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    sandbox.assert_in_place(wanted)
    assert sandbox.backups() == {}
    assert sandbox.run("verify", "--json").json["checks"][0]["basis"] == "blocks"


def test_a_damaged_file_with_a_receipt_that_lies_is_put_right_all_the_same(sandbox: Sandbox) -> None:
    wanted = installed(sandbox, SIZE + BLOCK_SIZE)
    damage(sandbox, flip(0))
    edit_receipt(sandbox, lie_of_a_block)
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert step_of(repaired)["blocks"] == [0, 1]  # one of them is accused in vain
    assert sandbox.bytes_served() == 2 * BLOCK_SIZE
    sandbox.assert_in_place(wanted)
    assert sandbox.run("verify", "--json").json["checks"][0]["basis"] == "blocks"


def test_a_receipt_that_vouches_for_damage_ends_in_a_download_of_the_whole(sandbox: Sandbox) -> None:
    wanted = installed(sandbox)
    bad = damage(sandbox, flip(0))
    damage(sandbox, flip(BLOCK_SIZE))

    def vouch(entry: dict[str, Any]) -> None:
        entry["blocks"][0] = sha256_of(bad[:BLOCK_SIZE])

    edit_receipt(sandbox, vouch)
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    kinds = [(step["kind"], step["outcome"]["status"]) for step in repaired.json["steps"]]
    assert kinds == [("patch-file", "failed"), ("fetch-file", "done")]
    sandbox.assert_in_place(wanted)


# --- files that were there before us -----------------------------------------------------------------


def test_a_file_that_was_there_before_us_is_proved_once_and_not_touched(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    sandbox.plant(sandbox.path(), wanted.data)
    os.utime(sandbox.path(), ns=(1_000_000_000, 2_000_000_000))
    before = sandbox.path().stat()
    done = sandbox.install("--json")
    assert (done.returncode, sandbox.hub.requests) == (0, ()), done.stderr
    assert step_of(done)["kind"] == "record-receipt"
    after = sandbox.path().stat()
    facts = ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_nlink")
    assert [getattr(after, fact) for fact in facts] == [getattr(before, fact) for fact in facts]
    assert tuple(sandbox.receipt()[f"vae/{wanted.name}"]["blocks"]) == digests_of(SIZE)
    damage(sandbox, flip(7))
    assert sandbox.run("repair").returncode == 0
    assert sandbox.bytes_served() == BLOCK_SIZE


# --- what the system does not allow -------------------------------------------------------------------


def is_root() -> bool:
    return getattr(os, "geteuid", lambda: 1)() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.skipif(is_root(), reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told_and_nothing_is_lost(sandbox: Sandbox) -> None:
    installed(sandbox)
    old = damage(sandbox, flip(7))
    folder = sandbox.path().parent
    folder.chmod(0o555)
    try:
        repaired = sandbox.run("repair", "--json")
    finally:
        folder.chmod(0o755)
    assert (repaired.returncode, repaired.codes) == (4, ["not-writable"])
    assert sandbox.path().read_bytes() == old
    assert sandbox.bytes_served() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.skipif(is_root(), reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_repaired_beside_it(sandbox: Sandbox) -> None:
    wanted = installed(sandbox)
    damage(sandbox, flip(7))
    sandbox.path().chmod(0o444)
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert (step_of(repaired)["way"], sandbox.bytes_served()) == ("beside", BLOCK_SIZE)
    sandbox.assert_in_place(wanted)


def test_offline_names_what_a_repair_would_fetch(sandbox: Sandbox) -> None:
    wanted = installed(sandbox)
    damage(sandbox, flip(7))
    repaired = sandbox.run("repair", "--json", "--offline")
    assert (repaired.returncode, repaired.codes) == (5, ["offline"])
    assert f"{wanted.name} ({BLOCK_SIZE:,} bytes" in repaired.json["errors"][0]["message"]


def test_a_repair_that_cannot_reach_the_hub_leaves_the_file_as_it_was(sandbox: Sandbox) -> None:
    installed(sandbox)
    old = damage(sandbox, flip(7))
    repaired = sandbox.run("repair", "--json", "--endpoint", "http://127.0.0.1:9")
    assert repaired.returncode == 5
    assert sandbox.path().read_bytes() == old
    assert sandbox.backups() == {}


class BadSector:
    """A file on a disk that does not give one byte."""

    def __init__(self, path: Path) -> None:
        self._file = open_for_reading(path)

    def read_into(self, view: memoryview, offset: int) -> int:
        if offset <= BLOCK_SIZE + 5 < offset + len(view):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._file.read_into(view, offset)

    def close(self) -> None:
        self._file.close()


def test_a_bad_sector_is_named_by_its_byte_and_its_block_comes_anew_into_another_file(sandbox: Sandbox) -> None:
    wanted = installed(sandbox, SIZE + BLOCK_SIZE)
    inode = sandbox.path().stat().st_ino
    session = Session(settings=Settings(remembers=False, endpoint=sandbox.hub.endpoint), environ=sandbox.environ)
    session.__dict__["store"] = FileStore(file_system_of=file_system_of, opener=BadSector)
    run = open_run(session, Options(manifest=str(sandbox.manifest), comfyui=sandbox.tree))
    report = run_verify(run, is_quick=False)
    assert report.plan is not None
    (check,) = report.plan.checks
    assert (report.exit_status, check.status) == (1, "unreadable")
    assert f"at byte {BLOCK_SIZE:,}; block 1 (of 0 to 2) cannot be used" in (check.identity or "")
    (step,) = report.plan.steps
    assert isinstance(step, PatchFile)
    assert (step.way, step.bytes_to_fetch) == ("beside", BLOCK_SIZE)
    engine = session.engine(run.observer)
    (outcome,) = engine.apply(report.plan.files)
    assert (outcome.status, sandbox.bytes_served()) == ("done", BLOCK_SIZE)
    assert sha256_of(sandbox.path()) == wanted.sha256
    (kept,) = [path for path in sandbox.backups().values() if path.name == wanted.name]
    assert kept.stat().st_ino == inode  # the bad sector stays in use, by the file that is kept


# --- an HF cache -------------------------------------------------------------------------------------


def cached(sandbox: Sandbox) -> tuple[Wanted, Path]:
    """Install one file into an HF cache; return it and its blob."""
    wanted = Wanted(data=tensors(SIZE))
    sandbox.publish(wanted)
    sandbox.write_manifest(
        sets=[{"id": "tree", "title": "All", "target": "hf_cache", "artifacts": [wanted.artifact()["id"]]}]
    )
    assert sandbox.run("install", "--hf-cache", sandbox.cache).returncode == 0
    sandbox.hub.wait_until_idle()
    sandbox.hub.clear_requests()
    (blob,) = [path for path in sandbox.cache.rglob("blobs/*") if path.stat().st_size == SIZE]
    return wanted, blob


@LINKS
def test_a_truncated_blob_that_nobody_has_a_receipt_of_is_continued(sandbox: Sandbox) -> None:
    wanted, blob = cached(sandbox)
    (receipt,) = sandbox.cache.rglob("receipt.json")
    receipt.unlink()
    os.truncate(blob, BLOCK_SIZE + 100)
    repaired = sandbox.run("repair", "--json", "--hf-cache", sandbox.cache)
    assert repaired.returncode == 0, repaired.stderr
    assert (step_of(repaired)["way"], sandbox.bytes_served()) == ("beside", MIB)
    assert sha256_of(blob) == wanted.sha256
    assert sorted(path.name for path in blob.parent.iterdir()) == [wanted.sha256]


@LINKS
def test_a_blob_of_a_snapshot_is_repaired_in_place(sandbox: Sandbox) -> None:
    wanted, blob = cached(sandbox)
    with blob.open("r+b") as stream:
        stream.seek(BLOCK_SIZE)
        stream.write(b"?")
    repaired = sandbox.run("repair", "--json", "--hf-cache", sandbox.cache)
    assert repaired.returncode == 0, repaired.stderr
    assert (step_of(repaired)["way"], sandbox.bytes_served()) == ("in-place", MIB)
    assert sha256_of(blob) == wanted.sha256
    assert sorted(path.name for path in blob.parent.iterdir()) == [wanted.sha256]


def test_the_table_says_what_is_repaired(sandbox: Sandbox) -> None:
    installed(sandbox)
    damage(sandbox, flip(BLOCK_SIZE))
    repaired = sandbox.run("repair")
    assert repaired.returncode == 0, repaired.said
    assert "block 1 (of 0 to 1) differs; 1.05 MB of 17.8 MB are fetched and written in place" in repaired.said
    assert "repaired" in repaired.said
    assert Path(sandbox.path()).exists()
