"""What tries to break the program sees when something is broken: each promise, broken on purpose, is reported."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provisioner.rehearsal.hub import RehearsalHub
from scripts import torture
from scripts.torturing import damages
from scripts.torturing.belongings import is_there_still
from scripts.torturing.call_order import complaint_about_order, parse_calls
from scripts.torturing.trial import (
    SECTOR,
    TOKEN,
    BrokenPromiseError,
    Ended,
    Starter,
    Trial,
    complaint_about_sectors,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="runs are forked")


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture
def trial(tmp_path: Path, starter: Starter) -> Iterator[Trial]:
    """A trial whose tree is as an installation leaves it."""
    with RehearsalHub() as hub, Trial(tmp_path / "trial", hub, starter, random.Random(1)) as trial:
        for file in trial.files:
            trial.path(file).parent.mkdir(parents=True, exist_ok=True)
            trial.path(file).write_bytes(file.data)
        trial.look_at_success()
        yield trial


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def replace_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


BREAKS: dict[str, Callable[[Trial], object]] = {
    "wrong bytes": lambda trial: flip(trial.path(trial.files[0])),
    "a file that is gone": lambda trial: trial.path(trial.files[1]).unlink(),
    "a file of the user's": lambda trial: flip(trial.models / "loras" / "mine.safetensors", 1),
    "a file of the user's that is gone": lambda trial: (trial.models / "vae" / "old.bad").unlink(),
    "a link of the user's": lambda trial: replace_link(trial.models / "loras" / "linked.safetensors"),
    "a file outside": lambda trial: flip(trial.theirs.outside / "house" / "photo.jpg", 1),
    "a new file outside": lambda trial: (trial.theirs.outside / "house" / "new").write_bytes(b""),
    "bytes that were to be kept": lambda trial: trial.theirs.keep(trial.path(trial.files[0]), b"mine"),
    "a copy": lambda trial: (trial.models / "vae" / "x.0123456789abcdef.placing.part").write_bytes(b""),
    "a record": lambda trial: (trial.home / "followed-links.json.0123456789abcdef.tmp").write_bytes(b""),
    "a temporary file": lambda trial: (trial.folder / "tmp" / "klein").write_bytes(b""),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_promise_about_the_disk_is_seen(trial: Trial, name: str) -> None:
    trial.look_at_disk()
    BREAKS[name](trial)
    with pytest.raises(BrokenPromiseError):
        trial.look_at(Ended(arguments=("install",), status=0, said=""))


def test_half_a_download_beside_a_whole_file_is_seen(trial: Trial) -> None:
    (trial.models / "vae" / "vae.safetensors.part.jsonl").write_bytes(b"")
    with pytest.raises(BrokenPromiseError, match="left behind after a success"):
        trial.look_at_success()


def test_a_record_that_was_planted_may_lie_there_and_one_that_a_run_wrote_may_not(trial: Trial) -> None:
    note = trial.state / "lock.json"
    note.parent.mkdir()
    note.write_text("planted", encoding="utf-8")
    trial.theirs.may_lie(note)
    trial.look_at_success()
    note.write_text('{"pid": 1}', encoding="utf-8")
    with pytest.raises(BrokenPromiseError, match="left behind after a success"):
        trial.look_at_success()


def test_an_obstacle_that_one_repair_passed_is_still_one_for_the_next(trial: Trial) -> None:
    trial.path(trial.files[3]).unlink()
    damages.note(trial)
    damages.repair(trial)
    (trial.state / "lock").unlink()
    (trial.state / "lock").symlink_to(trial.theirs.outside / "not there")
    trial.obstacles.append((trial.state / "lock").unlink)
    damages.repair(trial)
    trial.path(trial.files[3]).unlink()
    damages.note(trial)
    damages.repair(trial)
    assert trial.obstacles == []
    (trial.state / "lock").unlink()
    (trial.state / "lock").symlink_to(trial.theirs.outside / "not there")
    trial.path(trial.files[3]).unlink()
    damages.note(trial)
    with pytest.raises(BrokenPromiseError, match="is not repaired"):
        damages.repair(trial)


def test_a_receipt_that_was_broken_before_gets_no_lie(trial: Trial) -> None:
    trial.state.mkdir()
    (trial.state / "receipt.json").write_text("[" * 9999, encoding="utf-8")
    damages.lying_receipt(trial, trial.files[0])
    assert (trial.state / "receipt.json").read_text(encoding="utf-8") == "[" * 9999


@pytest.mark.parametrize(
    ("status", "said"), [(70, ""), (0, "Traceback (most recent call last)"), (0, TOKEN), (-11, ""), (120, "")]
)
def test_an_end_that_is_not_documented_is_seen(trial: Trial, status: int, said: str) -> None:
    trial.look_at(Ended(arguments=("verify",), status=1, said="1 of 4 files is wrong"))
    with pytest.raises(BrokenPromiseError):
        trial.look_at(Ended(arguments=("verify",), status=status, said=said))


def test_a_run_that_does_not_succeed_is_seen(trial: Trial) -> None:
    trial.manifest.write_text("{}", encoding="utf-8")
    with pytest.raises(BrokenPromiseError, match="does not succeed: install"):
        trial.succeed("install")


def test_a_damaged_file_may_be_half_repaired_and_not_worse() -> None:
    old, right = bytes(3 * SECTOR), b"r" * 3 * SECTOR
    half = right[:SECTOR] + old[SECTOR:]
    assert complaint_about_sectors(half, old, right) is None
    assert complaint_about_sectors(half[:-1] + b"x", old, right) is not None
    assert complaint_about_sectors(half[:-1], old, right) is not None


def test_what_was_replaced_is_found_whole_or_in_pieces(tmp_path: Path) -> None:
    path, right, old = tmp_path / "vae" / "x", b"right bytes", b"right BYTES!"
    path.parent.mkdir()
    path.write_bytes(right)
    assert not is_there_still(tmp_path, path, old, right)
    pieces = tmp_path / ".klein-setup" / "aside" / "1" / "vae" / "x.blocks"
    pieces.mkdir(parents=True)
    (pieces / "000000000000006").write_bytes(b"BYTES!")
    assert is_there_still(tmp_path, path, old, right)
    assert not is_there_still(tmp_path, path, b"right Bytes!", right)
    (tmp_path / "anywhere").write_bytes(b"right Bytes!")
    assert is_there_still(tmp_path, path, b"right Bytes!", right)


GOOD = """
7 pwrite64(5</m/vae/x.safetensors.part>, "..."..., 100, 0) = 100
7 fsync(5</m/vae/x.safetensors.part> <unfinished ...>
8 openat(AT_FDCWD</>, "nothing", O_RDONLY) = -1 ENOENT (No such file or directory)
7 <... fsync resumed>) = 0
7 renameat(4</m/vae>, "x.safetensors.part", 4</m/vae>, "x.safetensors") = 0
7 fsync(4</m/vae>) = 0
7 renameat(6</m/.klein-setup>, "receipt.json.0.tmp", 6</m/.klein-setup>, "receipt.json") = 0
""".strip().splitlines()


def test_the_order_of_calls_is_read_from_a_trace() -> None:
    assert complaint_about_order(parse_calls(GOOD), Path("/m")) is None


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ([0, 4, 1, 2, 3, 5, 6], "got its name before its bytes were flushed"),
        ([0, 1, 2, 3, 4, 6, 5], "the receipt was written before the folder"),
        ([0, 1, 2, 3, 4], "was not flushed"),
        ([6, 0, 1, 2, 3, 4, 5], "no receipt was written after"),
    ],
)
def test_a_wrong_order_of_calls_is_seen(order: list[int], says: str) -> None:
    complaint = complaint_about_order(parse_calls(GOOD[at] for at in order), Path("/m"))
    assert complaint is not None
    assert says in complaint


def test_what_is_broken_is_shown_with_the_command_that_plays_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(trial: Trial) -> None:
        trial.happened(3)
        trial.theirs.outside.joinpath("new").write_bytes(b"")
        trial.look_at_disk()

    monkeypatch.setitem(torture.KINDS, "damages", torture.Kind(broken, 1, "broken on purpose"))
    words = ["--only", "damages", "--seed", "9", "--trial", "4", "--folder", str(tmp_path)]
    assert torture.main(words) == 1
    said = capsys.readouterr().out
    assert "again: python3 scripts/torture.py --seed 9 --only damages --trial 4" in said
    assert "| damages | broken on purpose | 1 | 4 | 3 | 1 |" in said
    assert list(tmp_path.iterdir()) == []
