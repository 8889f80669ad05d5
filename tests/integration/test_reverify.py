"""``verify`` after updates: what moved since everything was proven, what was drawn again, what to run, what is kept.

One setup is proven, then every test moves one thing and puts it back.  The command is the real one
(`tests.support.studio` says what the driver exchanges); ComfyUI is a stand-in, the torch set toys that pip installed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.comfy_server import ReplayServer
from tests.support.studio import MODEL, VAE, Studio, Upstream, git, index_of_toys, inventory, states
from tests.support.world import Completed, World

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the layout of the environment's folders")


@pytest.fixture(scope="module")
def verified(make_world: Callable[[], World], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Everything installed and proven by one run."""
    index = index_of_toys()
    studio = Studio(make_world(), index, Upstream(tmp_path_factory.mktemp("upstream") / "ComfyUI"))
    done = studio.run("install", "--yes", "--size", "256x256")
    assert done.returncode == 0, done.said
    yield studio
    index.close()


@pytest.fixture
def studio(verified: Studio) -> Iterator[Studio]:
    """The same, with its proven state and its pictures as they were."""
    snapshot = verified.tree / "models" / ".klein-setup" / "proven.json"
    before = snapshot.read_bytes()
    shutil.rmtree(verified.pictures, ignore_errors=True)
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


def verify(studio: Studio, *words: str) -> tuple[Completed, dict[str, Any]]:
    """Run ``verify`` and return what it says of changes; assert that it writes nothing into the tree but its state."""
    before = states(studio.tree)
    done = studio.run("verify", "--size", "256x256", "--json", *words)
    moved = {path for path, state in states(studio.tree).items() if before.get(path) != state}
    own = studio.tree / "models" / ".klein-setup"
    assert moved <= {str(own), str(own / "proven.json")}
    assert bool(moved) == (done.returncode == 0 and bool(done.json["details"]["changes"]["changes"]))
    return done, done.json["details"]["changes"]


def generated(studio: Studio) -> int:
    """Return how many pictures lie there."""
    return len(list(studio.pictures.glob("*.png")))


def what_moved(told: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return what moved, and whether it matters."""
    return [(each["what"], each["matters"]) for each in told["changes"]]


# --- nothing moved, or nothing that matters ----------------------------------------------------


def test_where_nothing_moved_nothing_is_drawn_said_or_written(studio: Studio) -> None:
    done, told = verify(studio)
    assert (done.returncode, told["changes"], told["mend_command"], generated(studio)) == (0, [], None, 0)
    assert done.json["details"]["environment"]["holds"] is True


def test_the_real_command_notices_that_the_toys_do_not_compute(studio: Studio) -> None:
    """Without the driver the real probe runs, which no toy passes: the environment is named, and the way to mend it."""
    state = states(studio.tree)
    done = studio.world.run("verify", "--json")
    assert done.returncode == 1
    assert "probe-torchvision-broken" in {each["code"] for each in done.json["findings"]}
    assert "install --only environment" in done.json["details"]["changes"]["mend_command"]
    assert states(studio.tree) == state


def test_a_new_kernel_is_said_and_needs_no_picture(studio: Studio) -> None:
    studio.set_machine(os_release="6.9")
    done, told = verify(studio)
    assert (done.returncode, what_moved(told), generated(studio)) == (0, [("system", False)], 0)
    _, again = verify(studio)
    assert again["changes"] == []  # it is the last proven state now


# --- what moved and still holds ----------------------------------------------------------------


def test_a_new_driver_is_tried_with_a_picture_and_then_remembered(studio: Studio) -> None:
    studio.set_machine(driver_version="590.10.01")
    page = studio.run("verify", "--size", "256x256")
    assert page.returncode == 0, page.said
    for words in ("Changes", "The NVIDIA driver went from 580.95.05 to 590.10.01", "Everything that was proven still"):
        assert words in page.said
    assert generated(studio) == 1
    _, again = verify(studio)
    assert (again["changes"], generated(studio)) == ([], 1)


def test_without_a_picture_on_request_what_moved_is_still_said(studio: Studio) -> None:
    studio.set_machine(driver_version="590.10.01")
    done, told = verify(studio, "--no-smoke")
    assert (done.returncode, what_moved(told), generated(studio)) == (0, [("driver", True)], 0)
    assert done.json["details"].get("smoke_test") is None


def test_another_comfyui_is_tried_with_a_picture(studio: Studio) -> None:
    commit = git(studio.tree, "rev-parse", "HEAD")
    with another(studio.tree / "comfyui_version.py", '__version__ = "0.34.0"\n'):
        git(studio.tree, "commit", "-q", "-a", "-m", "newer")
        done, told = verify(studio)
        git(studio.tree, "reset", "-q", commit)
    assert (done.returncode, what_moved(told), generated(studio)) == (0, [("comfyui", True)], 1)
    assert "whether a picture still comes out" in told["checked"]


def test_a_new_custom_node_is_tried_with_a_picture(studio: Studio) -> None:
    with another(studio.tree / "custom_nodes" / "theirs.py", "pass\n"):
        done, told = verify(studio)
    assert (done.returncode, what_moved(told), generated(studio)) == (0, [("custom-nodes", True)], 1)
    assert told["changes"][0]["sentence"] == "New custom nodes: theirs.py."


def test_a_running_server_draws_it_where_one_is_named(studio: Studio) -> None:
    studio.set_machine(driver_version="590.10.01")
    with ReplayServer("ok_fp8_h200_cold_1024", folder=studio.tree) as server:
        done, _ = verify(studio, "--server", server.url)
        assert len(server.asked("POST", "/prompt")) == 1
    assert (done.returncode, generated(studio)) == (0, 1)
    assert done.json["details"]["smoke_test"]["log_path"] is None


# --- what moved and no longer holds ------------------------------------------------------------


def test_a_picture_that_no_longer_comes_is_told_with_what_moved_and_nothing_is_remembered(studio: Studio) -> None:
    code = "raise SystemExit(\"ImportError: cannot import name 'x' from 'mine'\")\n"
    with another(studio.tree / "main.py", code), another(studio.tree / "custom_nodes" / "theirs.py", "pass\n"):
        state = states(studio.tree)
        page = studio.run("verify")
        assert states(studio.tree) == state
    assert page.returncode == 9
    for words in ("ComfyUI's own files were edited", "New custom nodes: theirs.py.", "No good picture", "import name"):
        assert words in page.said
    assert "still holds" not in page.said


def test_a_torch_that_somebody_replaced_is_named_with_the_command_that_mends_it(studio: Studio) -> None:
    info = next(studio.environment.rglob("torch-2.15.0+cu130.dist-info"))
    text = (info / "METADATA").read_text(encoding="utf-8")
    with another(info / "METADATA", text.replace("2.15.0+cu130", "2.16.0")):
        other = info.rename(info.with_name("torch-2.16.0.dist-info"))
        try:
            done, told = verify(studio)
        finally:
            other.rename(info)
    assert (done.returncode, ("torch", True) in what_moved(told), generated(studio)) == (1, True, 0)
    assert told["mend_command"].startswith("klein-setup install --only environment")
    assert str(studio.tree) in told["mend_command"]
    assert "torch went from 2.15.0+cu130 to 2.16.0." in [each["sentence"] for each in told["changes"]]


def test_an_environment_that_is_gone_is_named_although_there_is_nothing_to_compare(studio: Studio) -> None:
    studio.set_machine(driver_version="590.10.01")
    aside = studio.environment.rename(studio.environment.with_name("aside"))
    try:
        done, told = verify(studio)
    finally:
        aside.rename(studio.environment)
    assert (done.returncode, generated(studio)) == (1, 0)
    assert "environment-gone" in {each["code"] for each in done.json["findings"]}
    assert told["mend_command"].startswith("klein-setup install --only environment")


def test_a_program_that_is_gone_is_named(studio: Studio) -> None:
    aside = (studio.tree / "main.py").rename(studio.tree / "aside.py")
    try:
        done, _ = verify(studio)
    finally:
        aside.rename(studio.tree / "main.py")
    assert (done.returncode, generated(studio)) == (1, 0)
    (gone,) = (each for each in done.json["findings"] if each["code"] == "comfyui-gone")
    assert "klein-setup install" not in gone["hint"]  # what is left is no place for a new one
    assert done.json["next_command"] is None


def test_a_program_whose_whole_folder_is_gone_is_fetched_again_by_install(studio: Studio) -> None:
    aside = studio.tree.with_name("aside")
    studio.tree.rename(aside)
    studio.tree.mkdir()
    (aside / "models").rename(studio.tree / "models")
    (aside / studio.environment.name).rename(studio.environment)
    try:
        done, told = verify(studio)
    finally:
        (studio.tree / "models").rename(aside / "models")
        studio.environment.rename(aside / studio.environment.name)
        studio.tree.rmdir()
        aside.rename(studio.tree)
    assert (done.returncode, generated(studio)) == (1, 0)
    assert "comfyui-gone" in {each["code"] for each in done.json["findings"]}
    assert done.json["next_command"].startswith("klein-setup install --")
    assert told["mend_command"] == done.json["next_command"]


def test_a_file_that_changed_is_named_and_repair_mends_it(studio: Studio) -> None:
    path = studio.world.path(VAE)
    damaged = VAE.data[:-1] + bytes([VAE.data[-1] ^ 1])
    studio.world.plant(path, damaged)
    done, told = verify(studio)
    assert (done.returncode, what_moved(told), generated(studio)) == (1, [("file", True)], 0)
    assert told["mend_command"].startswith("klein-setup repair")
    mended = studio.run("repair", "--yes")
    assert mended.returncode == 0, mended.said
    again, told = verify(studio)
    assert (again.returncode, told["changes"]) == (0, [])


def test_a_comfyui_that_is_too_old_is_named_with_the_command_that_updates_it(studio: Studio) -> None:
    with another(studio.tree / "comfyui_version.py", '__version__ = "0.8.0"\n'):
        done, told = verify(studio)
    assert (done.returncode, generated(studio)) == (1, 0)
    assert told["mend_command"].startswith("klein-setup install --update-comfyui")


def test_an_emptied_extra_model_paths_file_is_named_before_comfyui_dies_of_it(studio: Studio) -> None:
    with another(studio.tree / "extra_model_paths.yaml", "# everything commented out\n"):
        done, told = verify(studio)
    assert (done.returncode, generated(studio)) == (1, 0)
    assert "comfyui-empty-config" in {each["code"] for each in done.json["findings"]}
    assert ("extra-model-paths", True) in what_moved(told)


def test_a_server_that_reads_other_folders_is_a_finding(studio: Studio, tmp_path: Path) -> None:
    path = tmp_path / "models" / MODEL.folder / MODEL.name
    path.parent.mkdir(parents=True)
    path.write_bytes(MODEL.data)
    with ReplayServer("ok_fp8_h200_cold_1024", folder=tmp_path) as server:
        done, told = verify(studio, "--server", server.url)
        assert server.asked("POST", "/prompt") == []
    assert (done.returncode, told["mend_command"]) == (1, None)
    assert "server-reads-elsewhere" in {each["code"] for each in done.json["findings"]}


def test_a_look_that_is_quick_draws_nothing_and_leaves_no_trace(studio: Studio) -> None:
    studio.set_machine(driver_version="590.10.01")
    state, home = states(studio.tree), inventory(studio.world.home)
    done = studio.world.run("verify", "--quick", "--json")
    assert (done.returncode, "changes" in done.json["details"], generated(studio)) == (0, False, 0)
    assert (states(studio.tree), inventory(studio.world.home)) == (state, home)


def test_a_state_that_cannot_be_read_is_not_believed_and_not_fatal(studio: Studio) -> None:
    with another(studio.tree / "models" / ".klein-setup" / "proven.json", "{half"):
        done = studio.run("verify", "--json")
    assert done.returncode == 0
    assert "changes" not in done.json["details"]


def test_a_report_of_the_last_look_has_its_changes(studio: Studio, tmp_path: Path) -> None:
    studio.set_machine(driver_version="590.10.01")
    verify(studio)
    page = tmp_path / "page.html"
    assert studio.world.run("report", "--output", page).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert "590.10.01" in text
    assert "data:image/png;base64," in text
    kept = json.loads((studio.world.home / "state" / "klein-setup" / "last-report.json").read_text(encoding="utf-8"))
    assert kept["command"] == "verify"
