"""``fleet report``: the documents of real runs in a folder become a table, a page and a document of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.counted import IS_COUNTED, work_of
from tests.support.fleets import of, text
from tests.support.sandbox import Sandbox, Wanted, tensors

SIZE = 200_000
PAGE = Path("state", "klein-setup", "klein-setup-fleet.html")


def documents(sandbox: Sandbox) -> Path:
    """Return the folder of documents."""
    folder = sandbox.folder / "documents"
    folder.mkdir(exist_ok=True)
    return folder


def kept(sandbox: Sandbox, host: str, *command: str) -> Path:
    """Keep what a command printed, as another machine of that name would have printed it."""
    done = sandbox.run(*(command or ("verify",)), "--json")
    path = documents(sandbox) / f"{host}-{(command or ('verify',))[0]}.json"
    path.write_text(json.dumps(done.json | {"host": host}), encoding="utf-8")
    return path


def damaged(sandbox: Sandbox, wanted: Wanted) -> None:
    """Change one byte of a file."""
    data = bytearray(wanted.data)
    data[len(data) // 2] ^= 1
    sandbox.plant(sandbox.path(wanted), bytes(data))


def test_three_hosts_one_of_them_damaged_are_told_apart_and_the_repair_brings_them_in_line(sandbox: Sandbox) -> None:
    (wanted,) = sandbox.publish(tensors(SIZE))
    assert sandbox.install().returncode == 0
    kept(sandbox, "lab-1", "install", "--only", "files")
    for host in ("lab-1", "lab-2"):
        kept(sandbox, host)
    damaged(sandbox, wanted)
    kept(sandbox, "lab-3")

    done = sandbox.run("fleet", "report", documents(sandbox), "--json")
    assert (done.returncode, done.json["status"]) == (1, "findings")
    fleet = done.json["details"]["fleet"]
    assert [(each["host"], each["state"]) for each in fleet["hosts"]] == [
        ("lab-3", "differs"),
        ("lab-1", "in-line"),
        ("lab-2", "in-line"),
    ]
    assert fleet["documents"] == 4
    (difference,) = [each for each in fleet["hosts"][0]["differences"] if each["what"] == "file"]
    assert difference["here"] == "wrong bytes"
    assert 0 < fleet["bytes_to_fetch"] <= SIZE
    page = sandbox.home / PAGE
    assert done.json["details"]["page"] == str(page)
    assert "3 hosts: 1 different, 2 in line" in page.read_text(encoding="utf-8")

    shown = sandbox.run("fleet", "report", documents(sandbox), "--quiet")
    assert (shown.returncode, "lab-3" in shown.stdout, "lab-2" in shown.stdout) == (1, True, False)
    assert "To bring all in line: " in shown.stdout

    assert sandbox.run("repair", "--only", "files", "--yes").returncode == 0
    kept(sandbox, "lab-3")
    after = sandbox.run("fleet", "report", documents(sandbox))
    assert (after.returncode, "3 hosts: 3 in line." in after.stdout) == (0, True)


def test_hosts_are_held_against_a_lock_of_the_first(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    assert sandbox.install().returncode == 0
    lock = sandbox.folder / "lab.yaml"
    assert sandbox.run("manifest", "lock", "--output", lock).returncode == 0
    kept(sandbox, "lab-1")
    good = sandbox.run("fleet", "report", documents(sandbox), "--manifest", lock)
    assert good.returncode == 0, good.said
    changed = lock.read_text(encoding="utf-8").replace("sha256: ", "sha256: 0", 1)
    assert sandbox.run("fleet", "report", documents(sandbox), "--manifest", "gone.yaml").returncode == 2
    lock.write_text(changed, encoding="utf-8")
    assert sandbox.run("fleet", "report", documents(sandbox), "--manifest", lock).returncode == 2


def test_what_is_no_document_is_named_and_stops_nothing(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    assert sandbox.install().returncode == 0
    kept(sandbox, "lab-1")
    folder = documents(sandbox)
    (folder / "notes.txt").write_text("\x1b[31mred", encoding="utf-8")
    (folder / ".hidden").write_text("not looked at", encoding="utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("not looked at", encoding="utf-8")
    (folder / "below").mkdir()
    (folder / "below" / "lab-2.json").write_bytes(text(of("lab-2", at="2020-01-01T00:00:00.000Z")))
    names = ["notes.txt"]
    if sys.platform != "win32":
        os.mkfifo(folder / "pipe")
        (folder / "link").symlink_to("/dev/zero")
        (folder / "loop").symlink_to(folder)
        names = ["link", "loop", "notes.txt", "pipe"]
    (folder / "list").write_text("lab-1  # here\n\nlab-9\n", encoding="utf-8")
    listed = folder.parent / "list"
    (folder / "list").rename(listed)
    done = sandbox.run("fleet", "report", folder, "--expect", listed, "--json")
    fleet = done.json["details"]["fleet"]
    assert done.returncode == 1
    assert {each["host"]: each["state"] for each in fleet["hosts"]}.items() >= {"lab-9": "missing"}.items()
    assert {"lab-1", "lab-2"} <= {each["host"] for each in fleet["hosts"]}
    assert [each["file"] for each in fleet["unusable"] if each["file"] != "loop"] == [
        each for each in names if each != "loop"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["empty"], "There is no document of klein-setup in "),
        (["gone"], "cannot be read: "),
        (["junk"], "(x: it is not a JSON object)"),
        (["empty", "--expect", "gone.txt"], "gone.txt cannot be read: "),
        (["empty", "--stale", "7"], "'7' is not a time like 90s, 5m, 12h or 7d"),
        (["empty", "--stale", "0d"], "'0d' is not a time"),
        ([], "folder"),
    ],
)
def test_what_cannot_be_reported_on_is_a_usage_error(sandbox: Sandbox, words: list[str], said: str) -> None:
    (sandbox.folder / "empty").mkdir()
    (sandbox.folder / "junk").mkdir()
    (sandbox.folder / "junk" / "x").write_text("x", encoding="utf-8")
    given = [str(sandbox.folder / word) if word in {"empty", "gone", "junk"} else word for word in words]
    done = sandbox.run("fleet", "report", *given)
    assert (done.returncode, said in done.said or "DIR" in done.said) == (2, True), done.said
    assert not (sandbox.home / PAGE).exists()


@pytest.mark.skipif(not IS_COUNTED, reason="this system does not count what a process reads")
def test_two_thousand_documents_are_opened_once_each_and_kept_small(sandbox: Sandbox) -> None:
    folder = documents(sandbox)
    one = text(of("HOST") | {"details": {"padding": "x" * 10_000}})
    for number in range(2000):
        (folder / f"{number}.json").write_bytes(one.replace(b"HOST", b"lab-%d" % number))
    size = sum(each.stat().st_size for each in folder.iterdir())
    work = work_of(sandbox, "fleet", "report", str(folder), "--stale", "9999d", "--quiet", has_peak=False)
    assert work.opened <= 2000 + 40
    assert work.read <= size + 2_000_000
    assert (work.children, work.connections) == (0, 0)
    assert work.listed <= 3
