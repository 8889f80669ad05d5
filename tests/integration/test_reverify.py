"""``verify`` after updates: what changed since the last full check, what is generated again, what to run, what is kept.

One setup is verified, then every test changes one thing and changes it back.  The command is the real one
(`tests.support.setup_fixture` says what the driver replaces); ComfyUI is a stand-in, the torch set small test wheels.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from provisioner.comfyui.checkout.checkout_receipt import RECEIPT
from tests.support.comfy_server import ReplayServer
from tests.support.sandbox import Completed, Sandbox
from tests.support.schemas import conforming
from tests.support.setup_fixture import MODEL, VAE, SetupFixture, Upstream, git, inventory, states
from tests.support.wheels import ToyIndex

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the layout of the environment's folders")


@pytest.fixture(scope="module")
def verified(make_sandbox: Callable[[], Sandbox], index: ToyIndex, upstream: Upstream) -> SetupFixture:
    """Everything installed and verified by one run."""
    setup = SetupFixture(make_sandbox(), index, upstream)
    done = setup.run("install", "--yes", "--size", "256x256")
    assert done.returncode == 0, done.said
    return setup


@pytest.fixture
def setup(verified: SetupFixture) -> Iterator[SetupFixture]:
    """The same, with its saved state and its images as they were."""
    snapshot = verified.tree / "models" / ".klein-setup" / "proven.json"
    before = snapshot.read_bytes()
    shutil.rmtree(verified.images, ignore_errors=True)
    yield verified
    verified.set_machine()
    snapshot.write_bytes(before)


@contextmanager
def another(path: Path, text: str | bytes) -> Iterator[None]:
    """Give a file another content for a while, or make it for a while; its time stays."""
    was = path.read_bytes() if path.exists() else None
    facts = path.stat() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        yield
    finally:
        if was is None or facts is None:
            path.unlink()
        else:
            path.write_bytes(was)
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def verify(setup: SetupFixture, *words: str) -> tuple[Completed, dict[str, Any]]:
    """Run ``verify`` and return what it says of changes; assert that it writes nothing into the tree but its state."""
    before = states(setup.tree)
    done = setup.run("verify", "--size", "256x256", "--json", *words)
    moved = {path for path, state in states(setup.tree).items() if before.get(path) != state}
    own = setup.tree / "models" / ".klein-setup"
    assert moved <= {str(own), str(own / "proven.json")}
    assert bool(moved) == (done.returncode == 0 and bool(done.json["details"]["changes"]["changes"]))
    return done, done.json["details"]["changes"]


def generated(setup: SetupFixture) -> int:
    """Return how many test images lie there."""
    return len(list(setup.images.glob("*.png")))


def what_moved(told: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return what moved, and whether it matters."""
    return [(each["what"], each["matters"]) for each in told["changes"]]


# --- nothing moved, or nothing that matters ----------------------------------------------------


def test_where_nothing_moved_nothing_is_drawn_said_or_written(setup: SetupFixture) -> None:
    done, told = verify(setup)
    assert (done.returncode, told["changes"], told["mend_command"], generated(setup)) == (0, [], None, 0)
    assert done.json["details"]["environment"]["holds"] is True


def test_the_real_command_notices_that_the_toys_do_not_compute(setup: SetupFixture) -> None:
    """Without the driver the real probe runs, which no toy passes: the environment is named, and the way to mend it."""
    state = states(setup.tree)
    done = setup.sandbox.run("verify", "--json")
    assert done.returncode == 1
    assert "probe-torchvision-broken" in {each["code"] for each in done.json["findings"]}
    assert "install --only environment" in done.json["details"]["changes"]["mend_command"]
    assert states(setup.tree) == state


def test_a_new_kernel_is_said_and_needs_no_image(setup: SetupFixture) -> None:
    setup.set_machine(os_release="6.9")
    done, told = verify(setup)
    assert (done.returncode, what_moved(told), generated(setup)) == (0, [("system", False)], 0)
    _, again = verify(setup)
    assert again["changes"] == []  # it is the state of the last full check now


# --- what moved and still holds ----------------------------------------------------------------


def test_a_new_driver_is_tried_with_an_image_and_then_remembered(setup: SetupFixture) -> None:
    setup.set_machine(driver_version="590.10.01")
    page = setup.run("verify", "--size", "256x256")
    assert page.returncode == 0, page.said
    for words in ("Changes", "The NVIDIA driver changed from 580.95.05 to 590.10.01", "Everything is still correct"):
        assert words in page.said
    assert generated(setup) == 1
    _, again = verify(setup)
    assert (again["changes"], generated(setup)) == ([], 1)


def test_without_an_image_on_request_what_moved_is_still_said(setup: SetupFixture) -> None:
    setup.set_machine(driver_version="590.10.01")
    done, told = verify(setup, "--no-smoke")
    assert (done.returncode, what_moved(told), generated(setup)) == (0, [("driver", True)], 0)
    assert done.json["details"].get("smoke_test") is None


def test_another_comfyui_is_tried_with_an_image(setup: SetupFixture) -> None:
    commit = git(setup.tree, "rev-parse", "HEAD")
    with another(setup.tree / "comfyui_version.py", '__version__ = "0.34.0"\n'):
        git(setup.tree, "commit", "-q", "-a", "-m", "newer")
        done, told = verify(setup)
        git(setup.tree, "reset", "-q", commit)
    assert (done.returncode, what_moved(told), generated(setup)) == (0, [("comfyui", True)], 1)
    assert "whether it still generates an image" in told["checked"]


def test_a_new_custom_node_is_tried_with_an_image(setup: SetupFixture) -> None:
    with another(setup.tree / "custom_nodes" / "theirs.py", "pass\n"):
        done, told = verify(setup)
    assert (done.returncode, what_moved(told), generated(setup)) == (0, [("custom-nodes", True)], 1)
    assert told["changes"][0]["sentence"] == "New custom nodes: theirs.py."


def test_a_running_server_draws_it_where_one_is_named(setup: SetupFixture) -> None:
    setup.set_machine(driver_version="590.10.01")
    with ReplayServer("ok_fp8_h200_cold_1024", folder=setup.tree) as server:
        done, _ = verify(setup, "--server", server.url)
        assert len(server.asked("POST", "/prompt")) == 1
    assert (done.returncode, generated(setup)) == (0, 1)
    assert done.json["details"]["smoke_test"]["log_path"] is None


# --- what moved and no longer holds ------------------------------------------------------------


def test_an_image_that_no_longer_comes_is_told_with_what_moved_and_nothing_is_remembered(setup: SetupFixture) -> None:
    code = "raise SystemExit(\"ImportError: cannot import name 'x' from 'mine'\")\n"
    with another(setup.tree / "main.py", code), another(setup.tree / "custom_nodes" / "theirs.py", "pass\n"):
        state = states(setup.tree)
        page = setup.run("verify")
        assert states(setup.tree) == state
    assert page.returncode == 9
    for words in ("ComfyUI's own files were edited", "New custom nodes: theirs.py.", "No correct image", "import name"):
        assert words in page.said
    assert "still correct" not in page.said


def test_a_torch_that_somebody_replaced_is_named_with_the_command_that_mends_it(setup: SetupFixture) -> None:
    info = next(setup.environment.rglob("torch-2.15.0+cu130.dist-info"))
    text = (info / "METADATA").read_text(encoding="utf-8")
    with another(info / "METADATA", text.replace("2.15.0+cu130", "2.16.0")):
        other = info.rename(info.with_name("torch-2.16.0.dist-info"))
        try:
            done, told = verify(setup)
        finally:
            other.rename(info)
    assert (done.returncode, ("torch", True) in what_moved(told), generated(setup)) == (1, True, 0)
    assert told["mend_command"].startswith("klein-setup install --only environment")
    assert str(setup.tree) in told["mend_command"]
    assert "torch changed from 2.15.0+cu130 to 2.16.0." in [each["sentence"] for each in told["changes"]]


def test_an_environment_that_is_gone_is_named_although_there_is_nothing_to_compare(setup: SetupFixture) -> None:
    setup.set_machine(driver_version="590.10.01")
    aside = setup.environment.rename(setup.environment.with_name("aside"))
    try:
        done, told = verify(setup)
    finally:
        aside.rename(setup.environment)
    assert (done.returncode, generated(setup)) == (1, 0)
    assert "environment-gone" in {each["code"] for each in done.json["findings"]}
    assert told["mend_command"].startswith("klein-setup install --only environment")


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_program_that_is_gone_is_named(setup: SetupFixture, is_ours: bool) -> None:
    gone = [setup.tree / "main.py", *([] if is_ours else [setup.tree / RECEIPT])]
    asides = [path.rename(path.with_name(f"aside-{path.name}")) for path in gone]
    try:
        done, told = verify(setup)
    finally:
        for aside, path in zip(asides, gone, strict=True):
            aside.rename(path)
    assert (done.returncode, generated(setup)) == (1, 0)
    (finding,) = (each for each in done.json["findings"] if each["code"] == "comfyui-gone")
    assert ("klein-setup install" in finding["hint"]) is is_ours  # nothing is put where a stranger's files are left
    assert (done.json["next_command"] or "").startswith("klein-setup install --") is is_ours
    assert told["mend_command"] == done.json["next_command"]


def test_a_file_that_changed_is_named_and_repair_mends_it(setup: SetupFixture) -> None:
    path = setup.sandbox.path(VAE)
    damaged = VAE.data[:-1] + bytes([VAE.data[-1] ^ 1])
    setup.sandbox.plant(path, damaged)
    done, told = verify(setup)
    assert (done.returncode, what_moved(told), generated(setup)) == (1, [("file", True)], 0)
    assert told["mend_command"].startswith("klein-setup repair")
    mended = setup.run("repair", "--yes")
    assert mended.returncode == 0, mended.said
    again, told = verify(setup)
    assert (again.returncode, told["changes"]) == (0, [])


def test_a_comfyui_that_is_too_old_is_named_with_the_command_that_updates_it(setup: SetupFixture) -> None:
    with another(setup.tree / "comfyui_version.py", '__version__ = "0.8.0"\n'):
        done, told = verify(setup)
    assert (done.returncode, generated(setup)) == (1, 0)
    assert told["mend_command"].startswith("klein-setup install --update-comfyui")


def test_an_emptied_extra_model_paths_file_is_named_before_comfyui_dies_of_it(setup: SetupFixture) -> None:
    with another(setup.tree / "extra_model_paths.yaml", "# everything commented out\n"):
        done, told = verify(setup)
    assert (done.returncode, generated(setup)) == (1, 0)
    assert "comfyui-empty-config" in {each["code"] for each in done.json["findings"]}
    assert ("extra-model-paths", True) in what_moved(told)


def test_a_server_that_reads_other_folders_is_a_finding(setup: SetupFixture, tmp_path: Path) -> None:
    path = tmp_path / "models" / MODEL.folder / MODEL.name
    path.parent.mkdir(parents=True)
    path.write_bytes(MODEL.data)
    with ReplayServer("ok_fp8_h200_cold_1024", folder=tmp_path) as server:
        done, told = verify(setup, "--server", server.url)
        assert server.asked("POST", "/prompt") == []
    assert (done.returncode, told["mend_command"]) == (1, None)
    assert "server-reads-elsewhere" in {each["code"] for each in done.json["findings"]}


def test_a_look_that_is_quick_draws_nothing_and_leaves_no_trace(setup: SetupFixture) -> None:
    setup.set_machine(driver_version="590.10.01")
    state, home = states(setup.tree), inventory(setup.sandbox.home)
    done = setup.sandbox.run("verify", "--quick", "--json")
    assert (done.returncode, "changes" in done.json["details"], generated(setup)) == (0, False, 0)
    assert (states(setup.tree), inventory(setup.sandbox.home)) == (state, home)


def test_a_state_that_cannot_be_read_is_not_believed_and_not_fatal(setup: SetupFixture) -> None:
    with another(setup.tree / "models" / ".klein-setup" / "proven.json", "{half"):
        done = setup.run("verify", "--json")
    assert done.returncode == 0
    assert "changes" not in done.json["details"]


def test_a_report_of_the_last_look_has_its_changes(setup: SetupFixture, tmp_path: Path) -> None:
    setup.set_machine(driver_version="590.10.01")
    verify(setup)
    page = tmp_path / "page.html"
    assert setup.sandbox.run("report", "--output", page).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert "590.10.01" in text
    assert "data:image/png;base64," in text
    kept = last_report(setup)
    assert kept["command"] == "verify"


def last_report(setup: SetupFixture) -> dict[str, Any]:
    """Return what the state folder holds of the last run."""
    path = setup.sandbox.home / "state" / "klein-setup" / "last-report.json"
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))


def test_the_image_of_a_run_stays_on_the_page_when_a_verify_comes_after_it(setup: SetupFixture, tmp_path: Path) -> None:
    setup.set_machine(driver_version="590.10.01")
    verify(setup)
    drawn = last_report(setup)["details"]["smoke_test"]
    done, _ = verify(setup)
    assert "smoke_test" not in done.json["details"]
    kept = conforming(last_report(setup))["details"]
    assert kept["last_image"]["smoke_test"] == drawn
    page = tmp_path / "page.html"
    assert setup.sandbox.run("report", "--output", page).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert ">The last test image, " in text
    assert "data:image/png;base64," in text
    image = Path(drawn["picture"]["path"])
    image.write_bytes(image.read_bytes() + b"more")  # another image under the same name
    assert setup.sandbox.run("report", "--output", page).returncode == 0
    assert "data:image/png;base64," not in page.read_text(encoding="utf-8")
