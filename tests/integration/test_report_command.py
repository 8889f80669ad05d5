"""``klein-setup report``: the page of the last run, and the page of many machines."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.sandbox import Sandbox, tensors

SIZE = 200_000


def kept(sandbox: Sandbox, name: str, host: str) -> Path:
    """Keep the document of a verify, as another machine of that name would have printed it."""
    done = sandbox.run("verify", "--json")
    path = sandbox.folder / name
    path.write_text(json.dumps(done.json | {"host": host}), encoding="utf-8")
    return path


def test_the_documents_of_many_machines_become_one_page(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    bad = kept(sandbox, "one.json", "lab-1")
    assert sandbox.install().returncode == 0
    good = kept(sandbox, "two.json", "lab-2")
    page = sandbox.folder / "lab.html"
    done = sandbox.run("report", "--merge", bad, good, "--output", page, "--json")
    assert (done.returncode, done.json["details"]["page"]) == (0, str(page))
    html = page.read_text(encoding="utf-8")
    assert "2 machines: 1 Action needed, 1 OK" in html
    assert [html.count(f'href="#machine-{number}-title">lab-{number}<') for number in (1, 2)] == [1, 1]


def test_every_file_that_cannot_be_merged_is_named_and_no_page_is_written(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(SIZE))
    one, two = kept(sandbox, "one.json", "lab-1"), kept(sandbox, "two.json", "lab-1")
    page = sandbox.folder / "lab.html"
    done = sandbox.run("report", "--merge", one, two, sandbox.manifest, "--output", page, "--json")
    assert (done.returncode, done.codes) == (2, ["usage", "usage"])
    assert f"{one} and {two} are both of the host lab-1." in done.stderr
    assert f"{sandbox.manifest} is JSON, but not a document of klein-setup --json." in done.stderr
    assert not page.exists()


def test_a_file_that_is_not_there_is_a_usage_error(sandbox: Sandbox) -> None:
    done = sandbox.run("report", "--merge", "gone.json")
    assert done.returncode == 2
    assert "gone.json cannot be read: No such file or directory." in done.said
    assert sandbox.run("report", "--merge").returncode == 2
