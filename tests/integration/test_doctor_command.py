"""``klein-setup doctor``: everything a bug report needs, and nothing that is secret, large or a model."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from provisioner.commands import doctor
from provisioner.commands.doctor import DoctorOptions, run_doctor
from provisioner.commands.run import Options
from provisioner.commands.session import Session, Settings
from provisioner.report.json_document import document
from provisioner.report.outcome import LeftOut, Report
from tests.support.sandbox import TOKEN, Completed, Sandbox, tensors
from tests.support.schemas import conforming

DATA = tensors(200_000)
MARK = "MARKED"
NAMED = {"MY_API_KEY": f"{MARK}-of-the-environment", "HF_TOKEN": TOKEN}


@pytest.fixture
def logs(sandbox: Sandbox) -> Path:
    """Return the folder of logs after an installation."""
    sandbox.publish(DATA)
    assert sandbox.install().returncode == 0
    folder = sandbox.state / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def contents(sandbox: Sandbox, path: Path | None = None) -> dict[str, bytes]:
    """Return the files of the zip, by default of the one in the state folder."""
    with zipfile.ZipFile(path or sandbox.state / "klein-setup-doctor.zip") as archive:
        assert archive.testzip() is None
        assert {each.date_time for each in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        return {each.filename: archive.read(each) for each in archive.infolist()}


def told(done: Completed) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    bundle: dict[str, Any] = done.json["details"]["bundle"]
    return bundle


@pytest.mark.skipif(os.name == "nt", reason="the layout of the environment's folders")
def test_it_holds_the_last_run_the_machine_the_target_the_packages_and_the_logs(sandbox: Sandbox, logs: Path) -> None:
    (logs / "comfyui-20261126T134646Z.txt").write_text("it started\n", encoding="utf-8")
    packages = sandbox.tree / ".venv" / "lib" / "python3.12" / "site-packages"
    for name, version in (("torch", "2.15.0+cu130"), ("einops", "0.8.1")):
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n", encoding="utf-8")
    python = sandbox.tree / ".venv" / "bin" / "python3.12"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\ntouch started\n", encoding="utf-8")
    python.chmod(0o755)
    (python.parent / "python").symlink_to(python)
    (sandbox.tree / ".venv" / "pyvenv.cfg").write_text("version = 3.12.3\n", encoding="utf-8")

    bundle = told(sandbox.run("doctor", "--manifest", sandbox.manifest, "--comfyui", sandbox.tree, "--json"))
    held = contents(sandbox)
    assert sorted(held) == list(held) == [each["name"] for each in bundle["files"]]
    assert list(held) == [
        "contents.txt",
        "last-report.html",
        "last-report.json",
        "logs/comfyui-20261126T134646Z.txt",
        "machine.json",
        "packages.txt",
        "verify-quick.json",
    ]
    assert bundle["left_out"] == []
    for name in ("machine.json", "last-report.json", "verify-quick.json"):
        conforming(json.loads(held[name]))
    assert json.loads(held["last-report.json"])["command"] == "install"
    assert [each["status"] for each in json.loads(held["verify-quick.json"])["checks"]] == ["ok"]
    assert held["packages.txt"].decode().splitlines()[1:] == ["# Python 3.12.3", "einops==0.8.1", "torch==2.15.0+cu130"]
    assert held["logs/comfyui-20261126T134646Z.txt"] == b"it started\n"
    assert not list(sandbox.folder.rglob("started"))
    listed = held["contents.txt"].decode()
    assert all(name in listed for name in held if name != "contents.txt")


def test_the_machine_in_it_can_be_replayed(sandbox: Sandbox, logs: Path) -> None:
    told(sandbox.run("doctor", "--json"))
    recording = sandbox.folder / "machine.json"
    recording.write_bytes(contents(sandbox)["machine.json"])
    done = sandbox.run("detect", "--json", env={"KLEIN_SETUP_MACHINE": str(recording)})
    assert done.json["errors"] == []
    replayed, recorded = done.json["machine"], json.loads(recording.read_bytes())["machine"]
    assert {**replayed, "recorded_from": None, "file_systems": []} == {**recorded, "file_systems": []}


def test_no_marked_secret_gets_in(sandbox: Sandbox, logs: Path) -> None:
    named = NAMED["MY_API_KEY"]
    secrets = [
        f"Authorization: Bearer {MARK}-bearer",
        f"Cookie: session={MARK}-cookie",
        f"GET https://user:{MARK}-pw@example.org/a/b?X-Amz-Signature={MARK}-signature HTTP/1.1",
        f"--password={MARK}-password",
        f'{{"api_key": "{MARK}-json"}}',
        f"node says {named} and {TOKEN}",
        f"\x1b[1mto\x1b[0mken={MARK}-hidden",
    ]
    (logs / "comfyui-20261126T134646Z.txt").write_text("\n".join([*secrets, "the end"]), encoding="utf-8")
    (logs / "defect-20261126T134646Z.txt").write_text(  # its end begins inside a token
        f"token={'x' * 20}{MARK}{'x' * doctor.MOST_OF_A_LOG}"[: doctor.MOST_OF_A_LOG + 2] + "\nthe end",
        encoding="utf-8",
    )
    report = logs.parent / "last-report.json"
    sandbox.is_secret(report, *logs.iterdir())
    tampered = json.loads(report.read_text(encoding="utf-8"))
    tampered["details"] |= {"api_key": f"{MARK}-key", f"https://u:{MARK}-as-key@h": 1, "list": [named, {"x": TOKEN}]}
    tampered["next_command"] = f"klein-setup --endpoint https://u:{MARK}-url@example.org"
    report.write_text(json.dumps(tampered), encoding="utf-8")

    done = sandbox.run("doctor", "--comfyui", sandbox.folder / f"token={MARK}-folder", env=NAMED)
    assert done.returncode == 0, done.stderr
    held = contents(sandbox)
    assert {"last-report.html", "logs/defect-20261126T134646Z.txt"} <= set(held)
    for name, data in held.items():
        assert MARK.encode() not in data, (name, data[max(0, data.find(MARK.encode()) - 80) :][:200])
        assert TOKEN[3:].encode() not in data, name
        for home in (str(sandbox.home), json.dumps(str(sandbox.home))[1:-1], sandbox.home.as_posix()):
            assert home.encode() not in data, name
    assert MARK not in done.said
    assert b"the end" in held["logs/comfyui-20261126T134646Z.txt"]  # what is not secret is there
    json.loads(held["last-report.json"])


def test_no_bytes_of_a_model_or_of_a_strange_file_get_in(sandbox: Sandbox, logs: Path) -> None:
    if os.name != "nt":  # links need a privilege there
        (logs / "comfyui-20261126T134646Z.txt").symlink_to(sandbox.path())
    (logs / "diffusers-20261126T134646Z.txt").write_bytes(DATA)
    (logs / "defect-20261126T134646Z.txt").mkdir()
    (logs / "notes.txt").write_text("mine", encoding="utf-8")
    (logs / "id_rsa-20261126T134646Z.txt").write_text("mine", encoding="utf-8")
    bundle = told(sandbox.run("doctor", "--json"))
    assert bundle["left_out"] == [{"name": "logs/diffusers-20261126T134646Z.txt", "reason": "it is not text"}]
    held = contents(sandbox)
    assert [name for name in held if name.startswith("logs/")] == []
    assert all(DATA[1000:1064] not in data for data in held.values())


def test_it_stays_small_whatever_was_logged(sandbox: Sandbox, logs: Path) -> None:
    for number in range(30):
        line = "".join(chr(97 + (number * index) % 26) for index in range(99))
        (logs / f"comfyui-20261126T1346{number:02}Z.txt").write_text(f"{line}\n" * 10_000, encoding="utf-8")
    (logs.parent / "last-report.json").write_text(
        json.dumps({"schema_version": 2, "details": {str(number): "x" * 200_000 for number in range(20)}}),
        encoding="utf-8",
    )
    bundle = told(sandbox.run("doctor", "--json"))
    held = contents(sandbox)
    kept = [name for name in held if name.startswith("logs/")]
    assert kept == [f"logs/comfyui-20261126T1346{number}Z.txt" for number in range(20, 30)]  # the newest
    assert max(map(len, held.values())) <= doctor.MOST_OF_A_LOG
    assert sum(map(len, held.values())) < 10_000_000
    assert [each["name"] for each in bundle["left_out"]] == ["last-report.json"]
    assert "too many" in bundle["left_out"][0]["reason"]


def nothing(sandbox: Sandbox) -> tuple[str | Path, ...]:
    return ()


def wrong_manifest(sandbox: Sandbox) -> tuple[str | Path, ...]:
    path = sandbox.folder / "wrong.yaml"
    path.write_text("id: [", encoding="utf-8")
    return ("--manifest", path)


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [(nothing, []), (wrong_manifest, ["verify-quick.json", "packages.txt", "batch-files.txt"])],
)
def test_a_part_that_cannot_be_made_is_left_out_with_the_reason(
    sandbox: Sandbox, arguments: Callable[[Sandbox], tuple[str | Path, ...]], left_out: list[str]
) -> None:
    output = sandbox.folder / "bug.zip"
    bundle = told(sandbox.run("doctor", *arguments(sandbox), "--output", output, "--json"))
    assert (bundle["path"], bundle["size"]) == (str(output), output.stat().st_size)
    assert [each["name"] for each in bundle["left_out"]] == left_out
    assert all(each["reason"] for each in bundle["left_out"])
    assert "last-report.json" not in contents(sandbox, output)  # there was no run


def test_a_defect_in_one_part_takes_no_other_with_it(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, sandbox.environ[name])

    def broken(report: Report) -> dict[str, object]:
        if report.command == "verify":
            raise TypeError(f"token={MARK}")
        return dict(document(report))

    output = sandbox.folder / "bug.zip"
    session = Session(settings=Settings(), environ=sandbox.environ)
    asked = DoctorOptions(output=output)
    report = run_doctor(session, Options(), asked, known_secrets=(), document_of=broken, say=lambda _: None)
    assert report.bundle is not None
    assert report.bundle.left_out == (LeftOut(name="verify-quick.json", reason="TypeError: token=***"),)
    assert {"machine.json", "contents.txt"} <= set(contents(sandbox, output))


def test_it_says_where_it_is_and_what_is_in_it(sandbox: Sandbox, logs: Path) -> None:
    done = sandbox.run("doctor")
    path = sandbox.state / "klein-setup-doctor.zip"
    assert str(path) in done.stdout
    assert all(name in done.stdout for name in contents(sandbox))
    if os.name != "nt":
        assert path.stat().st_mode & 0o077 == 0


def test_a_place_that_cannot_be_written_is_an_error_that_names_the_option(sandbox: Sandbox) -> None:
    done = sandbox.run("doctor", "--output", sandbox.folder / "gone" / "bug.zip", "--json")
    assert (done.returncode, done.codes) == (4, ["not-writable"])
    assert "--output" in done.json["errors"][0]["hint"]
