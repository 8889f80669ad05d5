"""A folder with more than twenty different damages comes back whole, with the fewest bytes, and nothing is lost.

All damages are done to one folder; `verify` names them, one `repair` puts them right, and each test below looks at one
row.  How little each may cost is written down in tests/support/damages.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from provisioner.core.models import BLOCK_SIZE, STATE_FOLDER
from tests.support.damages import BYSTANDERS, OLDER_BYTES, Damage, Model, all_damages, flip, make_folder, older_file
from tests.support.sandbox import Completed, Sandbox, sha256_of, tensors

DAMAGES = all_damages()
TOTAL = 135_901_104 - (0 if sys.platform != "win32" else 75_412 + 85_358)  # bytes to fetch; no links on Windows
Entry = tuple[str, str, tuple[int, int, int]]
"""Kind of a path, digest or target of what it is, and its size, mtime and inode."""


def inventory(folder: Path) -> dict[str, Entry]:
    """Return every file and link below a folder, without the program's own records."""
    found = {}
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != STATE_FOLDER]
        links = [name for name in folders if Path(where, name).is_symlink()]
        for path in (Path(where, name) for name in [*names, *links]):
            status = path.lstat()
            state = (status.st_size, status.st_mtime_ns, status.st_ino)
            name = path.relative_to(folder).as_posix()
            is_link = path.is_symlink()
            found[name] = ("link", str(path.readlink()), state) if is_link else ("file", sha256_of(path), state)
    return found


def kept_contents(models: Path) -> Iterator[tuple[str, str]]:
    """Yield kind and digest, or target, of everything that lies in ``aside``; saved pieces become the old file."""
    aside = models / STATE_FOLDER / "aside"
    indices = [path for path in aside.rglob("index.json") if path.parent.name.partition(".blocks")[1]]
    for index in indices:
        yield "file", sha256(old_file(models, index)).hexdigest()
    inside = {index.parent for index in indices}
    for path in aside.rglob("*"):
        if path.is_symlink():
            yield "link", str(path.readlink())
        elif path.is_file() and path.parent not in inside:
            yield "file", sha256_of(path)


def old_file(models: Path, index: Path) -> bytes:
    """Put a repaired file and its saved pieces together again, without the program's own code."""
    told = json.loads(index.read_text(encoding="utf-8"))
    data = bytearray((models / told["was"]).read_bytes()[: told["old_size"]])
    data.extend(bytes(told["old_size"] - len(data)))
    for piece in told["pieces"]:
        saved = (index.parent / piece["name"]).read_bytes()
        data[piece["offset"] : piece["offset"] + piece["size"]] = saved
    return bytes(data)


@dataclass
class Patient:
    """The folder after everything was done to it, and what was seen of it."""

    sandbox: Sandbox
    before: dict[str, Entry]
    after: dict[str, Entry]
    seen: Completed
    repaired: Completed
    checks: dict[str, dict[str, Any]] = field(init=False)
    steps: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.checks = {each["path"]: each for each in self.seen.json["checks"]}
        self.steps = self.repaired.json["steps"]

    @property
    def models(self) -> Path:
        """The models folder."""
        return self.sandbox.tree / "models"

    def check(self, file: Model) -> dict[str, Any]:
        """Return what `verify` said of a file."""
        return self.checks[f"{file.folder}/{file.name}"]

    def steps_of(self, row: Damage) -> list[dict[str, Any]]:
        """Return what was done for a row."""
        places = {f"{each.folder}/{each.name}" for each in row.files}
        return [step for step in self.steps if step["path"] in places]


@pytest.fixture(scope="module")
def patient(make_sandbox: Callable[[], Sandbox]) -> Patient:
    """Return the folder with every damage, verified and repaired."""
    sandbox = make_sandbox()
    make_folder(sandbox, DAMAGES)
    before = inventory(sandbox.tree / "models")
    seen = sandbox.run("verify", "--json")
    assert inventory(sandbox.tree / "models") == before, "looking changed something"
    repaired = sandbox.run("repair", "--json")
    return Patient(
        sandbox=sandbox, before=before, after=inventory(sandbox.tree / "models"), seen=seen, repaired=repaired
    )


def of_each(row: Damage) -> str:
    return row.id


# --- the whole -----------------------------------------------------------------------------------------


def test_there_are_at_least_twenty_damages_with_numbers_of_their_own() -> None:
    assert len(DAMAGES) >= 20
    assert sum(row.fetched for row in DAMAGES) == TOTAL
    assert sum(len(each.data) for row in DAMAGES for each in row.files) > 2 * TOTAL
    assert len({row.name for row in DAMAGES}) == len(DAMAGES)
    assert len({each.name for row in DAMAGES for each in row.files}) == sum(len(row.files) for row in DAMAGES)


def test_the_folder_comes_back_whole_with_the_fewest_bytes(patient: Patient) -> None:
    assert (patient.seen.returncode, patient.repaired.returncode) == (1, 0), patient.repaired.stderr
    assert patient.repaired.codes == []
    assert {each: sha256_of(each.below(patient.models)) for row in DAMAGES for each in row.files} == {
        each: each.sha256 for row in DAMAGES for each in row.files
    }
    assert patient.sandbox.bytes_served() == sum(row.fetched for row in DAMAGES)
    patient.sandbox.assert_in_place(*(each for row in DAMAGES for each in row.files if row.old != "untouched"))


def test_nothing_of_the_users_is_lost(patient: Patient) -> None:
    """Every content and every link that was there before is still somewhere, unless it was a published one."""
    published = {("file", each.sha256) for row in DAMAGES for each in row.files}
    had = {(kind, what) for kind, what, _ in patient.before.values()} - published
    has = {(kind, what) for kind, what, _ in patient.after.values()} | set(kept_contents(patient.models))
    assert had - has == set()


def test_nothing_else_of_the_tree_is_changed(patient: Patient) -> None:
    repaired = [row for row in DAMAGES if {*row.kinds} - {"record-receipt"}]
    ours = {f"{each.folder}/{each.name}" for row in repaired for each in row.files}
    gone = {"checkpoints/misplaced.safetensors", "vae/part-instead.safetensors.part"}
    gone |= {name for name in patient.before for place in ours if name.startswith(f"{place}/")}
    others = {name: entry for name, entry in patient.before.items() if name not in ours | gone}
    assert set(BYSTANDERS) < set(others)
    assert {name: patient.after.get(name) for name in others} == others
    assert set(patient.after) - set(patient.before) <= ours, "something new lies in the tree"
    assert gone & set(patient.after) == set()


def test_afterwards_verify_is_content_and_a_second_repair_does_nothing(patient: Patient) -> None:
    sandbox = patient.sandbox
    served, requests = sandbox.bytes_served(), len(sandbox.hub.requests)
    again = sandbox.run("verify", "--json")
    assert (again.returncode, again.json["steps"]) == (0, []), again.stdout
    second = sandbox.run("repair", "--json")
    assert (second.returncode, second.json["steps"]) == (0, [])
    assert (sandbox.bytes_served(), len(sandbox.hub.requests)) == (served, requests)
    assert inventory(patient.models) == patient.after


# --- each row ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", DAMAGES, ids=of_each)
def test_verify_says_what_it_is(patient: Patient, row: Damage) -> None:
    checks = [patient.check(each) for each in row.files]
    assert {check["status"] for check in checks} == {row.status}
    assert row.says in (checks[0]["identity"] or "")


@pytest.mark.parametrize("row", DAMAGES, ids=of_each)
def test_repair_costs_what_the_table_says(patient: Patient, row: Damage) -> None:
    assert sum(patient.sandbox.bytes_served(each) for each in row.files) == row.fetched
    steps = patient.steps_of(row)
    assert sorted(step["kind"] for step in steps) == sorted(row.kinds)
    assert {step["outcome"]["status"] for step in steps} <= ({"done", "skipped"} if len(row.files) > 1 else {"done"})


@pytest.mark.parametrize("row", [row for row in DAMAGES if row.old in {"backups", "pieces"}], ids=of_each)
def test_what_had_to_go_lies_aside(patient: Patient, row: Damage) -> None:
    (file,) = row.files
    kept = [name for name in patient.sandbox.backups() if name.startswith(f"{file.folder}/{file.name}")]
    assert kept
    assert {".blocks/" in name for name in kept} == {row.old == "pieces"}


@pytest.mark.parametrize("row", [row for row in DAMAGES if len(row.files) > 1], ids=of_each)
def test_changed_names_cost_nothing_by_themselves_and_without_a_network(sandbox: Sandbox, row: Damage) -> None:
    make_folder(sandbox, [row])
    repaired = sandbox.run("repair", "--json", "--offline")
    assert (repaired.returncode, repaired.codes, sandbox.hub.requests) == (0, [], ()), repaired.stderr
    sandbox.assert_in_place()


# --- by themselves -------------------------------------------------------------------------------------


def test_an_older_file_that_comfyui_reads_first_is_reported_and_not_changed(sandbox: Sandbox) -> None:
    row = older_file()
    make_folder(sandbox, [row])
    older = sandbox.tree / "models" / "unet" / row.files[0].name
    for command in ("verify", "repair"):
        run = sandbox.run(command, "--json")
        (finding,) = run.json["findings"]
        assert (run.returncode, finding["code"], finding["path"]) == (1, "stale-twin", str(older))
        assert row.says in finding["message"]
        assert older.read_bytes() == OLDER_BYTES
    older.rename(older.with_name("old.bin"))  # as the hint says
    assert sandbox.run("verify").returncode == 0
    assert sandbox.bytes_served() == 0


def test_a_torn_receipt_costs_right_files_nothing_and_a_damaged_one_its_whole(sandbox: Sandbox) -> None:
    right, damaged = (
        Model(data=tensors(200_000, 8), name="right.safetensors"),
        Model(data=tensors(BLOCK_SIZE + 90_000, 9), name="damaged.safetensors"),
    )
    row = Damage(
        name="the receipt torn", files=(damaged, right), inflict=flip(5), status="", says="", fetched=0,
        old="backups", kinds=(),
    )  # fmt: skip
    make_folder(sandbox, [row])
    receipt = sandbox.tree / "models" / STATE_FOLDER / "receipt.json"
    receipt.write_bytes(receipt.read_bytes()[:100])
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert (sandbox.bytes_served(right), sandbox.bytes_served(damaged)) == (0, len(damaged.data))
    sandbox.assert_in_place()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may read everything")
def test_a_file_without_permissions_is_fetched_anew_and_kept(sandbox: Sandbox) -> None:
    file = Model(
        data=tensors(3_000_000, 8), name="locked-away.safetensors"
    )  # larger than what the sandbox reads itself
    row = Damage(
        name="permissions removed",
        files=(file,),
        inflict=lambda models, files: files[0].below(models).chmod(0),
        status="",
        says="",
        fetched=len(file.data),
        old="backups",
        kinds=(),
    )
    make_folder(sandbox, [row])
    kept = file.below(sandbox.tree / "models").stat().st_ino
    repaired = sandbox.run("repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    assert "cannot be read" in repaired.json["steps"][0]["reason"]
    assert sandbox.bytes_served() == row.fetched
    assert [path.stat().st_ino for path in sandbox.backups().values() if path.name == file.name] == [kept]
    sandbox.assert_in_place()
