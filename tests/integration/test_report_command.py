"""``report``: the page of real runs, where it is written, what it certifies, how it is opened."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sandbox import TOKEN, Sandbox, Wanted, tensors

PAGE = Path("state", "klein-setup", "klein-setup-report.html")


def page_of(sandbox: Sandbox) -> str:
    """Write the page into the state folder and return it."""
    done = sandbox.run("report")
    assert done.returncode == 0, done.said
    path = sandbox.home / PAGE
    assert str(path) in done.stdout
    return path.read_text(encoding="utf-8")


def digests_in(page: str) -> str:
    """Return what a person copies for ``sha256sum --check``."""
    found = re.search(r"sha256sum --check reads them</summary>.*?<code>(.*?)</code>", page, re.DOTALL)
    assert found is not None
    return html.unescape(found[1]) + "\n"


def check_of(lines: str) -> tuple[int, list[str]]:
    """Return the status of ``sha256sum --check`` and the files that fail; computed here where there is none."""
    program = shutil.which("sha256sum")
    if program is not None:
        done = subprocess.run(
            [program, "--check"], input=lines, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, [
            line.rpartition(": ")[0] for line in done.stdout.splitlines() if not line.endswith(": OK")
        ]
    wrong = []
    for line in lines.splitlines():
        digest, _, name = line.removeprefix("\\").partition("  ")
        path = Path(name.replace("\\\\", "\\") if line.startswith("\\") else name)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(str(path))
    return int(bool(wrong)), wrong


def test_what_the_page_lists_for_sha256sum_fails_on_a_damaged_and_a_missing_file(sandbox: Sandbox) -> None:
    one, other = Wanted(data=tensors(70_000), name="one.safetensors"), Wanted(data=tensors(50_000))
    sandbox.publish(one, other)
    assert sandbox.run("install", "--yes").returncode == 0
    page = page_of(sandbox)
    assert "downloaded and hashed in this run" in page
    assert "receipts trusted" not in page
    assert check_of(digests_in(page)) == (0, [])

    path = sandbox.path(one)
    data = bytearray(path.read_bytes())
    data[60_000] ^= 1
    sandbox.plant(path, bytes(data))
    sandbox.path(other).unlink()
    assert sandbox.run("verify").returncode == 1
    page = page_of(sandbox)
    assert check_of(digests_in(page)) == (1, [str(path), str(sandbox.path(other))])
    assert " -m provisioner repair" in page
    assert " -m provisioner verify" in page
    assert page.index(" -m provisioner repair") < page.index(">The files</h2>")


def test_a_run_tells_where_its_time_went(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(3_000_000))
    assert sandbox.run("install", "--yes", "--limit-rate", "2M").returncode == 0
    kept = json.loads((sandbox.home / "state" / "klein-setup" / "last-report.json").read_text(encoding="utf-8"))
    transfers = kept["details"]["transfers"]
    assert 3_000_000 <= sum(transfers["received_bytes"]) <= 3_100_000
    (times,) = transfers["files"]
    assert times["path"] == kept["steps"][0]["path"]
    outcome = kept["steps"][0]["outcome"]
    assert outcome["started_s"] == 0.0
    assert 0.5 < times["seconds"]["fetching"] <= outcome["seconds"]
    assert sum(times["seconds"].values()) <= outcome["seconds"] + 0.1
    page = page_of(sandbox)
    assert ">Where the time went</h2>" in page
    assert re.search(r"\d MB/s</span>", page)
    assert 'aria-label="Throughput: ' in page


def test_the_page_goes_where_output_says_and_nothing_into_the_current_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.publish(tensors(1000))
    assert sandbox.run("install", "--yes").returncode == 0
    page_of(sandbox)
    assert list(sandbox.folder.rglob("*.html")) == [sandbox.home / PAGE]
    done = sandbox.run("report", "--output", tmp_path / "page.html", "--json")
    assert done.json["details"]["page"] == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!DOCTYPE html>")


@pytest.mark.skipif(os.name == "nt", reason="the browser here is a shell script")
def test_open_shows_the_page_in_the_browser_which_gets_no_token(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.publish(tensors(1000))
    assert sandbox.run("install", "--yes").returncode == 0
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" > {seen}.new; env >> {seen}.new; mv {seen}.new {seen}\n')
    browser.chmod(0o700)
    done = sandbox.run("report", "--open", env={"BROWSER": str(browser), "HF_TOKEN": TOKEN})
    assert done.returncode == 0, done.said
    address, *environment = seen.read_text(encoding="utf-8").splitlines()
    assert address == (sandbox.home / PAGE).as_uri()
    assert not any(TOKEN in line for line in environment)


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="these always have a screen")
def test_without_a_screen_nothing_is_opened_and_that_is_said(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(1000))
    assert sandbox.run("install", "--yes").returncode == 0
    done = sandbox.run("report", "--open")
    assert done.returncode == 0
    assert "No browser could be opened here; open the page yourself." in done.stdout
