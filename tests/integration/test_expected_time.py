"""How long the fetching takes is said before the question, as soon as a download was long enough to be measured."""

from __future__ import annotations

import json
import re

import pytest

from provisioner.disk.last_run import LEAST_MEASURED, read_last_rate, write_last_rate, write_last_run
from tests.support.sandbox import Sandbox, Wanted, tensors

LARGE = LEAST_MEASURED + 1_000_000


def test_the_rate_of_a_large_download_is_the_estimate_of_the_next(sandbox: Sandbox) -> None:
    large, _ = sandbox.publish(Wanted(data=tensors(LARGE)), Wanted(data=tensors(200_000), name="other.safetensors"))
    assert "the last download" not in sandbox.run("plan").said
    assert sandbox.run("install", "--yes").returncode == 0
    state = sandbox.home / "state" / "klein-setup"
    rate = read_last_rate(state)
    assert rate is not None
    assert 1_000_000 < rate < 5_000_000_000

    sandbox.path(large).unlink()
    said = sandbox.run("plan").said
    assert re.search(r"to fetch 51.0 MB in 1 file; about [^;]* at [^;]*B/s, the rate of the last download", said), said
    limited = sandbox.run("install", "--limit-rate", "500K", "--offline").said
    assert "about 1 min 42 s at 500 kB/s, as --limit-rate says" in limited


def test_a_small_download_is_no_measure(sandbox: Sandbox) -> None:
    sandbox.publish(tensors(300_000))
    assert sandbox.run("install", "--yes").returncode == 0
    state = sandbox.home / "state" / "klein-setup"
    assert json.loads((state / "last-run.json").read_bytes())["targets"]
    assert read_last_rate(state) is None


def test_targets_and_rate_leave_each_other_alone(sandbox: Sandbox) -> None:
    folder = sandbox.home / "state" / "klein-setup"
    write_last_rate(folder, fetched=LARGE, seconds=2.0)
    write_last_run(folder, kind="comfyui", path=sandbox.tree, manifest="small", set_id="tree")
    assert read_last_rate(folder) == LARGE // 2
    write_last_rate(folder, fetched=2 * LARGE, seconds=2.0)
    assert read_last_rate(folder) == LARGE
    assert json.loads((folder / "last-run.json").read_bytes())["targets"][0]["set"] == "tree"


@pytest.mark.parametrize("rate", ["fast", -1, 0, 1.5, None, True])
def test_a_rate_that_is_none_is_not_taken(sandbox: Sandbox, rate: object) -> None:
    folder = sandbox.home / "state" / "klein-setup"
    folder.mkdir(parents=True)
    (folder / "last-run.json").write_text(json.dumps({"schema_version": 2, "targets": [], "rate_bytes_s": rate}))
    assert read_last_rate(folder) is None
