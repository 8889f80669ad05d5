"""The cache of wheels: the real engine, the real pip, a package index on loopback with faults."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioner.core.errors import EntryNotFoundError, InsufficientSpaceError, OfflineError, UnauthorizedError
from provisioner.core.events import Event, FileProgress
from provisioner.core.ports import OnlineFile
from provisioner.core.route import Route
from provisioner.disk.root import Root
from provisioner.environment.build_context import BuildContext
from provisioner.environment.installer import Wheel, route_to
from provisioner.environment.wheel_files import WheelFiles
from provisioner.files.download import wheel_cache as module
from provisioner.machine.process import run_process
from provisioner.report.transfer_record import TransferRecorder
from tests.support.wheels import Faults, Toy, ToyIndex, content_of, serving, wheel_cache

SMALL = Toy(name="small", version="1.0", padding=50_000)
OTHER = Toy(name="other", version="2.0", padding=60_000)
LARGE = Toy(name="large", version="3.0", padding=40_000_000)  # three blocks of 16 MiB
LOGIN = "Basic " + base64.b64encode(b"me:pass word").decode()


@pytest.fixture(scope="module")
def shop() -> Iterator[ToyIndex]:
    with serving([SMALL, OTHER, LARGE]) as shop:
        yield shop


@pytest.fixture(autouse=True)
def _as_it_was(shop: ToyIndex) -> None:
    shop.faults, shop.redirect = Faults(), None
    for each in (shop.requests, shop.asked, shop.sent):
        each.clear()


def sha256(toy: Toy) -> str:
    return hashlib.sha256(content_of(toy)).hexdigest()


def online(shop: ToyIndex, toy: Toy, route: Route = Route()) -> OnlineFile:  # noqa: B008 - frozen
    url = f"{shop.url.removesuffix('/simple')}/files/{toy.file_name}"
    return OnlineFile(url=url, name=toy.file_name, label=f"{toy.name} {toy.version}", sha256=sha256(toy), route=route)


def test_what_one_environment_fetched_the_next_one_takes(shop: ToyIndex, tmp_path: Path) -> None:
    first = wheel_cache(tmp_path).bring([online(shop, SMALL), online(shop, OTHER)])
    shop.faults = Faults(is_broken=True)
    again = wheel_cache(tmp_path, is_offline=True).bring([online(shop, SMALL), online(shop, OTHER)])
    assert first == again
    assert {sha: path.read_bytes() for sha, path in again.paths.items()} == {
        sha256(toy): content_of(toy) for toy in (SMALL, OTHER)
    }
    with pytest.raises(OfflineError, match=r"large 3\.0 is not on this computer"):
        wheel_cache(tmp_path, is_offline=True).bring([online(shop, LARGE)])
    if os.name == "posix":
        assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))


def test_wheels_come_side_by_side_and_are_counted_as_models_are(shop: ToyIndex, tmp_path: Path) -> None:
    recorder, heard = TransferRecorder(), list[str]()

    def hear(event: Event) -> None:
        assert isinstance(event, FileProgress)
        heard.append(event.label)
        recorder.hear(event, time.monotonic())

    shop.faults.bytes_per_s = 200_000.0
    wheel_cache(tmp_path, events=hear).bring([online(shop, SMALL), online(shop, OTHER)])
    assert heard.index("other 2.0") < len(heard) - heard[::-1].index("small 1.0")
    assert heard.index("small 1.0") < len(heard) - heard[::-1].index("other 2.0")
    assert recorder.record is not None
    assert sum(recorder.record.received_bytes) == len(content_of(SMALL)) + len(content_of(OTHER))
    assert {each.path for each in recorder.record.files} == {"small 1.0", "other 2.0"}


@pytest.mark.parametrize("toy", [SMALL, LARGE])
def test_a_server_without_ranges_is_read_in_one_go(shop: ToyIndex, tmp_path: Path, toy: Toy) -> None:
    shop.faults.no_ranges = True
    brought = wheel_cache(tmp_path).bring([online(shop, toy)])
    assert brought.paths[sha256(toy)].read_bytes() == content_of(toy)


def test_a_wheel_that_is_listed_and_not_there_is_named(shop: ToyIndex, tmp_path: Path) -> None:
    shop.faults.without_files = {OTHER.file_name}
    with pytest.raises(EntryNotFoundError, match=f"names {OTHER.file_name}") as caught:
        wheel_cache(tmp_path).bring([online(shop, SMALL), online(shop, OTHER)])
    assert "--torch-index" in (caught.value.hint or "")


def test_two_runs_at_once_fetch_a_wheel_once(shop: ToyIndex, tmp_path: Path) -> None:
    shop.faults.bytes_per_s = 20_000_000.0
    said: list[str] = []
    came: list[Path] = []

    def run() -> None:
        came.extend(wheel_cache(tmp_path, notice=said.append).bring([online(shop, LARGE)]).paths.values())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(came) == 2
    assert shop.sent[LARGE.file_name] < 1.1 * len(content_of(LARGE))
    assert any("Waiting for another run" in line for line in said)


def test_what_an_earlier_run_is_said_to_have_left_is_not_trusted(shop: ToyIndex, tmp_path: Path) -> None:
    path = tmp_path / "wheels" / sha256(LARGE) / LARGE.file_name
    path.parent.mkdir(parents=True)
    content, block = content_of(LARGE), 16 * 1024**2
    path.with_name(f"{path.name}.part").write_bytes(bytes(block) + content[block:])
    head = {"version": 1, "size": len(content), "sha256": sha256(LARGE), "block_size": block}
    digests = [hashlib.sha256(content[at : at + block]).hexdigest() for at in range(0, len(content), block)]
    lines = [head, *({"block": number, "sha256": digest} for number, digest in enumerate(digests))]
    path.with_name(f"{path.name}.part.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    brought = wheel_cache(tmp_path).bring([online(shop, LARGE)])
    assert brought.paths[sha256(LARGE)].read_bytes() == content
    assert block <= shop.sent[LARGE.file_name] < block + 10_000


# --- who asks ------------------------------------------------------------------------------------


def test_a_login_reaches_the_index_and_nobody_else(shop: ToyIndex, tmp_path: Path) -> None:
    with serving([SMALL]) as elsewhere:
        shop.redirect = elsewhere.url.removesuffix("/simple")
        wheel_cache(tmp_path).bring([online(shop, SMALL, Route(user=("me", "pass word")))])
        assert {login for _, login in shop.asked} == {LOGIN}
        assert {login for _, login in elsewhere.asked} == {None}


def test_a_netrc_file_is_read_for_its_host(shop: ToyIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text('machine 127.0.0.1 login me password "pass word"\n')
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    shop.faults.logins = {SMALL.file_name: LOGIN}
    assert wheel_cache(tmp_path).bring([online(shop, SMALL)]).refused == ()


@pytest.mark.parametrize("fault", ["login", "size"])
def test_what_only_pip_can_fetch_it_fetches(shop: ToyIndex, tmp_path: Path, fault: str) -> None:
    program = tmp_path / "bin" / "keyring"
    program.parent.mkdir()
    answer = json.dumps({"username": "me", "password": "pass word"})  # to `--mode=creds --output=json get URL me`
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    if fault == "login":
        shop.faults.logins = {SMALL.file_name: LOGIN}
    else:
        shop.faults.no_sizes = True
    index_url = shop.url.replace("//", "//me@")
    url = f"{shop.url.removesuffix('/simple')}/files/{SMALL.file_name}"
    cache, said = wheel_cache(tmp_path), list[str]()
    (tmp_path / "work").mkdir()
    environ = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    files = WheelFiles(
        context=BuildContext(run=run_process, environ=environ, cache=cache),
        python=Path(sys.executable),
        uv=None,
        root=Root(tmp_path),
        folder=tmp_path / "work",
        progress=said.append,
    )
    wheel = Wheel(name="small", version="1.0", url=url, sha256=sha256(SMALL))
    (fetched,) = files.fetch([wheel], {"keyring-provider": "subprocess", "no-cache-dir": "1"}, index_url)
    assert fetched.url == cache.held()[sha256(SMALL)].as_uri()
    assert any("pip fetches small 1.0 instead" in line for line in said)
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == [sha256(SMALL)]
    assert not any("pass word" in line for line in said)


def test_a_login_that_nobody_has_is_refused(shop: ToyIndex, tmp_path: Path) -> None:
    shop.faults.logins = {SMALL.file_name: LOGIN}
    route = route_to(shop.url, {}, shop.url.replace("//", "//me:wrong@"))
    brought = wheel_cache(tmp_path).bring([online(shop, SMALL, route), online(shop, OTHER, route)])
    assert set(brought.paths) == {sha256(OTHER)}
    assert [(file.name, type(error)) for file, error in brought.refused] == [(SMALL.file_name, UnauthorizedError)]


# --- room ----------------------------------------------------------------------------------------


def test_wheels_that_nobody_used_for_long_go_and_those_in_use_stay(tmp_path: Path) -> None:
    cache, now = wheel_cache(tmp_path), time.time()
    ages = {"a" * 64: module.UNUSED_S + 60, "b" * 64: module.UNUSED_S + 60, "c" * 64: 60.0}
    for name, age in ages.items():
        used = cache.root.folder / name / "used"
        used.parent.mkdir(parents=True)
        used.write_bytes(b"1")
        os.utime(used, (now - age, now - age))
    (cache.root.folder / "notes").mkdir()
    with cache._locked(cache.root.folder / ("b" * 64), "b", wait=False, cancelled=lambda: False):
        cache.remove_outlived(now)
    assert sorted(path.name for path in cache.root.folder.iterdir()) == ["b" * 64, "c" * 64, "notes"]


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounting needs root on Linux")
def test_a_full_disk_keeps_what_is_whole(shop: ToyIndex, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", small], check=False).returncode != 0:
        pytest.skip("this machine mounts nothing")
    try:
        wheel_cache(small).bring([online(shop, SMALL)])
        with pytest.raises(InsufficientSpaceError, match="full"):
            wheel_cache(small).bring([online(shop, SMALL), online(shop, LARGE)])
        assert list(wheel_cache(small).held()) == [sha256(SMALL)]
        subprocess.run(["mount", "-o", "remount,size=90m", small], check=True)
        assert len(wheel_cache(small).bring([online(shop, SMALL), online(shop, LARGE)]).paths) == 2
    finally:
        subprocess.run(["umount", small], check=True)
