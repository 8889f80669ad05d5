"""A kill between the proof of a file and its receipt: the file is ours all the same, and a user's own never is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from provisioner.core.errors import StorageError
from provisioner.core.ports import FOUND_IN_PLACE, Claim, FileDigest, Stamp
from provisioner.disk.root import Root
from provisioner.files.store.receipts import (
    Receipts,
    read_announced,
    read_receipt,
    receipt_path,
)
from provisioner.files.store.removal import owned_files
from tests.support.placing import WAYS, Scene, Way, killed_before, killed_from
from tests.support.sandbox import MIB, Sandbox, sha256_of, tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

NAME = "vae.safetensors"
ANNOUNCED = "rename receipt.json.N.tmp receipt.json"
SEALED = "open receipt.json.N.tmp"  # the first call after every byte is verified

PLACED: dict[Way, str] = {
    "fetched": f"rename {NAME}.part {NAME}",
    "fetched-over": f"rename {NAME}.part {NAME}",
    "copied": f"rename {NAME}.N.placing.part {NAME}",
    "hard-linked": f"rename {NAME}.N.placing.part {NAME}",
    "cached": f"rename {NAME}.N.tmp {NAME}",  # the link to the blob
    "repaired": "utime",
    "cut": "utime",
}
"""The call after which the right bytes lie under the final name."""

CLAIM = Claim(
    artifact_id="vae",
    stamp=Stamp(size=3, mtime_ns=1_700_000_000_123_456_789, ctime_ns=5, inode=7, device=0),
    file_digest=FileDigest(size=3, sha256="0" * 64),
    source="the hub",
)

SOURCES: dict[Way, str] = {
    "fetched": "the hub",
    "fetched-over": "the hub",
    "copied": "copied from",
    "hard-linked": "hard-linked from",
    "cached": "the hub",
    "repaired": "the hub",
    "cut": "the hub, long ago",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_any_call_between_proof_and_receipt_leaves_the_file_ours(tmp_path: Path, way: Way) -> None:
    kills = killed_from(tmp_path, way, SEALED)
    assert (kills.calls.count(ANNOUNCED), kills.calls.count(PLACED[way])) == (2, 1)
    for scene, calls in kills.killed:
        assert scene.install() == 0, f"fetched again after {calls[-1]}"
        # Its last byte was written, and the time it was announced with was not yet: a file that anybody can have made.
        is_anybodys = way in {"repaired", "cut"} and len(calls) == kills.calls.index("utime")
        is_own_blob = way == "cached" and len(calls) == kills.calls.index(PLACED[way])
        said = FOUND_IN_PLACE if is_anybodys else "linked from" if is_own_blob else SOURCES[way]
        assert scene.source().startswith(said), f"after {calls[-1]}"
        assert read_announced(scene.destination.root) == {}
        assert "placing" not in json.loads(receipt_path(scene.destination.root).read_text(encoding="utf-8"))
        assert [name for name in scene.names() if name.endswith((".part", ".jsonl", ".tmp"))] == []
        assert scene.uninstall() == ["adopted" if is_anybodys else "ours"], f"after {calls[-1]}"
        assert os.path.lexists(scene.destination.path) == is_anybodys
        assert [path.read_bytes() for path in scene.elsewhere.glob("*")] in ([], [scene.data])


@pytest.mark.parametrize("way", ["fetched", "hard-linked", "cached"])
def test_what_a_kill_left_without_a_receipt_is_removed_at_once_without_another_installation(
    tmp_path: Path, way: Way
) -> None:
    placed = killed_from(tmp_path, way, PLACED[way]).killed[1:]
    for scene, calls in placed:
        assert scene.uninstall() == ["ours"], f"after {calls[-1]}"
        assert not os.path.lexists(scene.destination.path)
        assert read_announced(scene.destination.root) == {}
        assert [path.read_bytes() for path in scene.elsewhere.glob("*")] in ([], [scene.data])
    assert len(placed) > 3


def test_a_second_kill_when_the_blob_of_the_first_gets_its_link_leaves_the_file_ours(tmp_path: Path) -> None:
    placed = killed_from(tmp_path, "blob-there", PLACED["cached"]).killed
    for scene, calls in placed:
        assert scene.install() == 0, f"fetched again after {calls[-1]}"
        assert scene.source() != FOUND_IN_PLACE, f"after {calls[-1]}"
        assert scene.uninstall() == ["ours"], f"after {calls[-1]}"
        assert scene.names() == []
    assert len(placed) > 3


def test_a_second_kill_leaves_no_log_beside_a_file_that_is_recorded(tmp_path: Path) -> None:
    again = killed_from(tmp_path, "log-there", "rename receipt.json.N.tmp receipt.json").killed
    for scene, calls in again:
        assert scene.install() == 0
        assert [name for name in scene.names() if name.endswith(".jsonl")] == [], f"after {calls[-1]}"
    assert len(again) >= 2


# --- whose it is not ---------------------------------------------------------------------------------


def bring_ones_own(path: Path, data: bytes) -> None:
    """Put a file of the user's in a place, as a copy does: written beside it and moved over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name("download of the user")
    own.write_bytes(data)
    own.replace(path)


def test_a_blob_that_nobody_announced_and_a_user_links_to_stays_theirs(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "blob-there")
    scene.prepare()
    Receipts().drop_claims(Root(scene.destination.root), [str(scene.destination.relative)])
    (blob,) = (scene.destination.root / "blobs").iterdir()
    scene.destination.path.symlink_to(os.path.relpath(blob, scene.destination.path.parent))
    assert scene.install() == 0
    assert (scene.source(), scene.uninstall()) == (FOUND_IN_PLACE, ["adopted"])
    assert blob.read_bytes() == scene.data


@pytest.mark.parametrize("nth", [0, 1], ids=["not yet announced", "placed and without a receipt"])
def test_the_users_own_file_with_the_same_bytes_in_the_same_place_stays_theirs(tmp_path: Path, nth: int) -> None:
    scene = killed_before(tmp_path, "fetched", SEALED, nth)
    bring_ones_own(scene.destination.path, scene.data)
    assert scene.install() == 0
    assert (scene.source(), scene.uninstall()) == (FOUND_IN_PLACE, ["adopted"])
    assert scene.destination.path.read_bytes() == scene.data


def test_a_file_brought_while_ours_waits_for_its_name_stays_theirs(tmp_path: Path) -> None:
    scene = killed_before(tmp_path, "fetched", PLACED["fetched"])
    assert set(read_announced(scene.models)) == {f"vae/{NAME}"}
    bring_ones_own(scene.destination.path, scene.data)
    assert scene.uninstall() == []
    assert scene.install() == 0
    assert (scene.source(), scene.names(), scene.uninstall()) == (FOUND_IN_PLACE, [NAME], ["adopted"])


def test_a_file_that_only_waited_as_a_hard_link_is_theirs_when_they_move_it_there_themselves(tmp_path: Path) -> None:
    scene = killed_before(tmp_path, "hard-linked", PLACED["hard-linked"])
    (scene.elsewhere / "theirs.bin").replace(scene.destination.path)
    assert scene.install() == 0
    assert (scene.source(), scene.names(), scene.uninstall()) == (FOUND_IN_PLACE, [NAME], ["adopted"])


def test_a_file_changed_after_the_kill_is_not_believed_to_be_ours(tmp_path: Path) -> None:
    scene = killed_before(tmp_path, "fetched", SEALED, 1)
    with scene.destination.path.open("r+b") as stream:
        stream.write(scene.data)  # the same bytes, and another time
    assert scene.uninstall() == []
    assert scene.install() == 0
    assert (scene.source(), scene.uninstall()) == (FOUND_IN_PLACE, ["adopted"])


def test_bytes_that_rot_after_the_kill_are_found_out_as_if_nothing_had_been_announced(tmp_path: Path) -> None:
    scene = killed_before(tmp_path, "fetched", SEALED, 1)
    path = scene.destination.path
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"?")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scene.install() == len(scene.data)
    assert path.read_bytes() == scene.data


@pytest.mark.parametrize("placing", [None, [], "x", {"vae/x": []}, {"vae/x": {"inode": 1}}, {"vae/x": None}])
def test_announcements_nobody_can_read_are_none_and_harm_no_receipt(tmp_path: Path, placing: object) -> None:
    receipt_path(tmp_path).parent.mkdir()
    document = {"schema_version": 1, "files": {}, "placing": placing}
    receipt_path(tmp_path).write_text(json.dumps(document), encoding="utf-8")
    assert (read_announced(tmp_path), owned_files(Root(tmp_path))) == ({}, ())
    Receipts().announce_claim(Root(tmp_path), "vae/y", CLAIM, recorded_at="now")
    assert (read_announced(tmp_path), read_receipt(tmp_path)) == ({"vae/y": CLAIM}, {})
    Receipts().write_claim(Root(tmp_path), "vae/y", CLAIM, recorded_at="now")
    assert (read_announced(tmp_path), read_receipt(tmp_path)) == ({}, {"vae/y": CLAIM})


def test_a_file_that_did_not_get_its_name_is_not_announced_any_more(tmp_path: Path) -> None:
    def refuse(source: Path, destination: Path) -> None:
        raise StorageError("it is in use")

    scene = Scene(tmp_path, "copied")
    scene.prepare()
    with pytest.raises(AssertionError, match="it is in use"):
        scene.install(move=refuse)
    assert read_announced(scene.models) == {}
    assert scene.install() == 0
    assert scene.source().startswith("copied from")


# --- through the command -----------------------------------------------------------------------------

DIES_BEFORE_THE_RECEIPT = """
import os, signal, sys
names = []
def look(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("receipt.json"):
        names.append(arguments[1])
        if len(names) == 2:  # the first announces the file
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
"""


def test_an_install_killed_before_the_receipt_is_ended_by_the_next_and_undone_by_uninstall(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(2 * MIB))
    site = sandbox.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(DIES_BEFORE_THE_RECEIPT, encoding="utf-8")
    path = f"{site}{os.pathsep}{sandbox.environ['PYTHONPATH']}"
    killed = sandbox.start("install", env={"PYTHONPATH": path}).wait()
    assert killed.returncode == -9
    assert sha256_of(sandbox.path()) == wanted.sha256
    assert sandbox.receipt() == {}
    sandbox.hub.clear_requests()
    done = sandbox.install("--json")
    assert (done.returncode, sandbox.hub.requests) == (0, ()), done.stderr
    sandbox.assert_in_place(wanted)
    (entry,) = sandbox.receipt().values()
    assert entry["source"].startswith(sandbox.hub.endpoint) or "127.0.0.1" in entry["source"], entry["source"]
    undone = sandbox.run("uninstall", "--yes", "--json")
    assert (undone.returncode, undone.json["findings"]) == (0, []), undone.stderr
    assert not sandbox.path().exists()
