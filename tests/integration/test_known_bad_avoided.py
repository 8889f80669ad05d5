"""An installation keeps away what is known to fail: with real pip, a real environment and a stand-in for ComfyUI."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.setup_fixture import SetupFixture, git
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
