"""An installation keeps away what is known to fail: with real pip, a real environment and a stand-in for ComfyUI."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from provisioner.comfyui.checkout_models import ComfyCheckout
from provisioner.comfyui.release_models import KnownBad
from provisioner.commands import inspect_comfyui
from provisioner.commands.run import Run
from provisioner.plan.make_plan import comfyui_step
from provisioner.plan.steps import GetComfyUI
from tests.support import builders
from tests.support.setup_fixture import SetupFixture, git, rtx_4070
from tests.support.wheels import Toy, ToyIndex

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the driver's environment is made with links")

SENTENCE = "av>=17.0.0 is required too, because with an older one: it stops at its start with"


@pytest.fixture(scope="module")
def index(index: ToyIndex) -> ToyIndex:
    index.toys += [Toy(name="av", version="16.1.0"), Toy(name="av", version="18.1.0")]
    return index


def test_a_package_that_fails_with_this_comfyui_is_replaced_and_the_next_plan_is_empty(setup: SetupFixture) -> None:
    """ComfyUI between two releases needs a newer av than its own requirements say."""
    assert setup.run("install", "--only", "files,environment").returncode == 0
    pip = [str(setup.environment / "bin" / "python"), "-m", "pip", "-q", "install", "av==16.1.0"]
    subprocess.run(pip, env={**os.environ, "PIP_INDEX_URL": setup.index.url}, check=True)
    (setup.tree / "requirements.txt").write_text("torch\neinops>=0.8\nav>=16.0.0\n", encoding="utf-8")
    git(setup.tree, "commit", "-q", "-a", "-m", "a day after the release")

    installed = setup.run("install", "--only", "environment", "--yes")
    assert installed.returncode == 0, installed.said
    said = " ".join(installed.said.split())
    assert "ComfyUI 0.33.0 with av 16.1.0 is known to fail on machines like this" in said
    assert f"{SENTENCE} \"cannot import name 'ColorPrimaries'\" (Comfy-Org/ComfyUI#15784)." in said
    assert list(setup.environment.glob("lib/python*/site-packages/av-18.1.0.dist-info"))
    again = setup.run("plan", "--only", "environment", "--json").json
    assert [each["kind"] for each in again["steps"]] == ["keep-comfyui", "keep-environment"]
    assert "comfyui-known-bad" not in [each["code"] for each in again["findings"]]


def test_the_plan_says_with_which_option_a_new_comfyui_is_started(setup: SetupFixture) -> None:
    setup.set_machine(is_wsl=True)
    said = " ".join(setup.run("plan").said.split())
    assert (
        "klein-setup will start this ComfyUI with --disable-dynamic-vram, because without it: memory streaming" in said
    )
    assert "(Comfy-Org/ComfyUI#12704)" in said


def test_a_release_that_fails_on_this_machine_is_not_the_one_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = inspect_comfyui.read_table()
    row = KnownBad(
        id="oom", since="0.33.0", vendor="nvidia", symptom="memory runs out", good="0.32.0", threads=("a/b#1",)
    )
    monkeypatch.setattr(inspect_comfyui, "read_table", lambda: replace(table, known_bad=(row,)))

    def planned(*, has_git: bool, is_nvidia: bool = True) -> GetComfyUI:
        session = SimpleNamespace(
            checkouts=SimpleNamespace(
                describe=lambda folder: ComfyCheckout(given=folder, kind="empty"),
                has_git=lambda: has_git,
                with_tree=lambda release, source: release,
            ),
            machine=rtx_4070() if is_nvidia else builders.machine(),
        )
        run = SimpleNamespace(
            target=replace(builders.comfy_target(tmp_path / "models"), given=tmp_path),
            session=session,
            wanted=SimpleNamespace(min_comfyui=None, artifacts=()),
            manifest=SimpleNamespace(lock=None),
        )
        found = inspect_comfyui.inspect_comfyui(cast("Run", run), inspect_comfyui.ComfyUIOptions())
        assert found is not None
        step = comfyui_step(found.checkout, found.plan, found.table, folder=found.folder, source="x")
        assert isinstance(step, GetComfyUI)
        return step

    other = planned(has_git=True)
    assert (other.release.version, other.release.commit) == ("0.32.0", "c2bcbecd82ec5ae66594340b395c24ef0217b238")
    assert other.reason == (
        "there is no ComfyUI yet; not 0.33.0, which is known to fail on machines like this: memory runs out (a/b#1)"
    )
    assert planned(has_git=True, is_nvidia=False).release == table.pinned
    assert planned(has_git=False).release == table.pinned  # the tree of no other release is known, to verify it by
