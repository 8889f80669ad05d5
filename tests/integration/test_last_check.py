"""The last verified state, kept with the files: durable, whole or as it was, and read with a bound."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.core.errors import InsufficientSpaceError, NotWritableError, StorageError
from provisioner.disk.root import Root
from provisioner.report.changes import CheckedState, SeenFile
from provisioner.report.last_check import LARGEST_STATE, last_check_path, read_last_check, write_last_check
from tests.support.faulty_root import FaultyRoot

SNAPSHOT = CheckedState(
    taken_at="2026-11-23T06:00:00Z",
    klein_setup="0.1.0",
    custom_nodes=("Knoten-\u00e4\u6a21",),
    files=(SeenFile(label="vae/x", size=5, sha256="a" * 64),),
)


def test_the_state_lies_in_the_state_folder_and_comes_back(tmp_path: Path) -> None:
    path = write_last_check(Root(tmp_path), SNAPSHOT)
    assert path == tmp_path / ".klein-setup" / "proven.json"
    assert read_last_check(tmp_path) == (SNAPSHOT, None)
    newer = replace(SNAPSHOT, taken_at="2026-11-24T06:00:00Z")
    write_last_check(Root(tmp_path), newer)
    assert read_last_check(tmp_path) == (newer, None)
    assert [each.name for each in path.parent.iterdir()] == ["proven.json"]


def test_that_there_is_none_is_nothing_to_complain_about(tmp_path: Path) -> None:
    assert read_last_check(tmp_path) == (None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be used: it is not a JSON object"),
        (b"\xff\xfe", "cannot be used: it is not UTF-8"),
        (b'{"schema_version": 7}', "cannot be used: its schema_version is '7', and 1 is expected"),
        (b" " * (LARGEST_STATE + 1), "is larger than 1,048,576 bytes"),
    ],
)
def test_a_damaged_one_is_none_with_where_and_why(tmp_path: Path, data: bytes, reason: str) -> None:
    path = last_check_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(data)
    assert read_last_check(tmp_path) == (None, f"{path} {reason}")


def test_a_folder_in_its_place_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    path = last_check_path(tmp_path)
    path.mkdir(parents=True)
    state, reason = read_last_check(tmp_path)
    assert state is None
    assert reason is not None
    assert reason.startswith(f"{path} cannot be read (")
    with pytest.raises(StorageError, match=r"proven\.json"):
        write_last_check(Root(tmp_path), SNAPSHOT)
    assert [each.name for each in path.parent.iterdir()] == ["proven.json"]  # no temporary file stays behind


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, InsufficientSpaceError, "The disk is full"),
        (errno.EACCES, NotWritableError, "No permission to write"),
        (errno.EIO, StorageError, "The system could not write"),
    ],
)
def test_what_the_system_refuses_is_an_error_with_a_hint_and_costs_nothing(
    tmp_path: Path, number: int, kind: type[StorageError], said: str
) -> None:
    def refuse(source: Path, destination: Path) -> None:
        assert source.parent == destination.parent
        raise OSError(number, os.strerror(number))

    write_last_check(Root(tmp_path), SNAPSHOT)
    with pytest.raises(kind, match=said) as caught:
        write_last_check(FaultyRoot(tmp_path, move_records=refuse), replace(SNAPSHOT, taken_at="later"))
    assert type(caught.value) is kind
    assert caught.value.hint is not None
    assert read_last_check(tmp_path) == (SNAPSHOT, None)
    assert [each.name for each in last_check_path(tmp_path).parent.iterdir()] == ["proven.json"]


def test_a_file_where_the_state_folder_should_be_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / ".klein-setup").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError):
        write_last_check(Root(tmp_path), SNAPSHOT)
    assert (tmp_path / ".klein-setup").read_text(encoding="utf-8") == "in the way"
