"""A run that names no folder finds the ComfyUI that another program wrote down, and reads how it is started."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.sandbox import Sandbox, tensors
from tests.support.setup_fixture import KLEIN


@pytest.fixture
def roaming(sandbox: Sandbox) -> Path:
    """Return the folder in which programs keep their settings; nothing of the sandbox is remembered."""
    sandbox.publish(tensors(300_000))
    if sys.platform == "win32":
        return Path(sandbox.environ["APPDATA"])
    if sys.platform == "darwin":
        return sandbox.home / "Library" / "Application Support"
    return Path(sandbox.environ["XDG_CONFIG_HOME"])


def planned(sandbox: Sandbox) -> Path:
    done = sandbox.run("plan", "--no-target", "--only", "files", "--json")
    assert done.returncode == 0, done.said
    return Path(done.json["target"]["path"]).parent  # of models


def test_the_folder_that_comfyui_desktop_wrote_down_is_found(sandbox: Sandbox, roaming: Path, tmp_path: Path) -> None:
    base = tmp_path / "models of Jürgen"
    for name in ("models", "custom_nodes"):
        (base / name).mkdir(parents=True)
    (roaming / "ComfyUI").mkdir(parents=True)
    (roaming / "ComfyUI" / "config.json").write_text(json.dumps({"basePath": str(base)}), encoding="utf-8")
    assert planned(sandbox) == base


def test_an_installation_of_comfy_desktop_is_found(sandbox: Sandbox, roaming: Path, tmp_path: Path) -> None:
    tree = tmp_path / "installs" / "one" / "ComfyUI"
    (tree / "models").mkdir(parents=True)
    for name in ("main.py", "folder_paths.py"):
        (tree / name).touch()
    folder = roaming / "Comfy Desktop"
    if sys.platform == "linux":
        folder = Path(sandbox.environ["XDG_DATA_HOME"]) / "comfyui-desktop-2"
    folder.mkdir(parents=True)
    records = [{"sourceId": "standalone", "installPath": str(tree.parent)}]
    (folder / "installations.json").write_text(json.dumps(records), encoding="utf-8")
    assert planned(sandbox) == tree


def test_a_batch_file_that_starts_comfyui_with_another_folder_is_said(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.publish(*KLEIN)
    names = [each.artifact()["id"] for each in KLEIN]
    sandbox.write_manifest(sets=[{"id": "a", "title": "a", "target": "comfyui", "artifacts": names}], default_set="a")
    portable = tmp_path / "ComfyUI_windows_portable"
    (portable / "python_embeded").mkdir(parents=True)
    (portable / "ComfyUI" / "models").mkdir(parents=True)
    for name in ("main.py", "folder_paths.py"):
        (portable / "ComfyUI" / name).touch()
    start = ".\\python_embeded\\python.exe -s ComfyUI\\main.py --base-directory D:\\AI\npause\n"
    (portable / "run_mine.bat").write_text(start, encoding="utf-8")
    named = ("--comfyui", portable, "--manifest", sandbox.manifest)
    assert sandbox.run("install", "--only", "files", "--yes", *named).returncode == 0
    zipped = tmp_path / "doctor.zip"
    assert sandbox.run("doctor", "--output", zipped, *named).returncode == 0
    with zipfile.ZipFile(zipped) as archive:
        assert archive.read("batch-files.txt") == b"run_mine.bat: --base-directory D:\\AI\n"
    done = sandbox.run("verify", "--json", *named)
    found = {each["code"]: each for each in done.json["findings"]}["comfyui-started-elsewhere"]
    assert found["severity"] == "warning"
    assert found["message"].startswith("run_mine.bat starts ComfyUI with --base-directory D:\\AI")
