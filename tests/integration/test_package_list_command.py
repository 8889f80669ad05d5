"""`verify`, `repair`, `install` and `manifest lock` with the list of what was installed, by the real command."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.setup_fixture import TORCH, SetupFixture
from tests.support.wheels import Toy, ToyIndex, content_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the driver's environment is made with links")


@pytest.fixture(scope="module")
def index(index: ToyIndex) -> ToyIndex:
    index.toys += [Toy(name="einops", version="0.9"), Toy(name="extra", version="1.0")]
    return index


@pytest.fixture
def setup(setup: SetupFixture) -> SetupFixture:
    done = setup.run("install", "--only", "files,environment")
    assert done.returncode == 0, done.said
    return setup


def pip(setup: SetupFixture, *words: str) -> None:
    command = [str(setup.environment / "bin" / "python"), "-m", "pip", "-q", *words]
    subprocess.run(command, env={**os.environ, "PIP_INDEX_URL": setup.index.url}, check=True)


def test_a_package_that_changed_is_named_put_back_and_left_alone_where_comfyui_asks_for_another(
    setup: SetupFixture,
) -> None:
    """The whole life of a list: made, compared, repaired from, renewed when ComfyUI's requirements change."""
    fine = setup.run("verify", "--no-smoke", "--json")
    assert fine.returncode == 0, fine.said
    told = fine.json["details"]["environment"]["packages"]
    assert (told["listed"], told["is_outdated"], told["changed"]) == (len(TORCH) + 1, False, [])
    site = next(setup.environment.glob("lib/python*/site-packages"))
    original = (site / "einops" / "__init__.py").read_bytes()

    (site / "einops" / "__init__.py").write_bytes(original + b"# ")
    damaged = setup.run("verify", "--no-smoke", "--json")
    assert damaged.returncode == 1
    assert "package-damaged" in [each["code"] for each in damaged.json["findings"]]
    (change,) = damaged.json["details"]["environment"]["packages"]["changed"]
    assert (change["package"], change["what"], change["locked"], change["found"]) == (
        "einops",
        "damaged",
        "0.9",
        "0.9",
    )
    assert change["files"] == ["einops/__init__.py"]
    setup.index.requests.clear()
    assert setup.run("repair", "--only", "environment").returncode == 0
    assert setup.index.fetched() == []  # the cache has it
    assert (site / "einops" / "__init__.py").read_bytes() == original
    assert setup.run("verify", "--no-smoke").returncode == 0

    pip(setup, "install", "einops==0.8.1")
    upgraded = setup.run("verify", "--no-smoke", "--json")  # as a custom node does it
    assert {each["code"]: each["severity"] for each in upgraded.json["findings"]}["package-replaced"] == "warning"
    planned = setup.run("plan", "--only", "environment", "--json").json["steps"]
    assert "install-packages" not in [each["kind"] for each in planned]
    repaired = setup.run("repair", "--only", "environment", "--json")
    assert repaired.returncode == 0
    assert "einops 0.9 was replaced" in [each["reason"] for each in repaired.json["steps"]]
    assert (site / "einops" / "__init__.py").read_bytes() == original

    pip(setup, "install", "einops==0.8.1")
    requirements = setup.tree / "requirements.txt"
    requirements.write_text("torch\neinops<0.9\n", encoding="utf-8")
    outdated = setup.run("verify", "--no-smoke", "--json").json
    severities = {each["code"]: each["severity"] for each in outdated["findings"]}
    assert severities["package-replaced"] == "warning"
    assert outdated["details"]["environment"]["packages"]["is_outdated"] is True
    renewed = setup.run("install", "--only", "environment", "--json")
    assert renewed.returncode == 0, renewed.said
    assert "its requirements changed since they were resolved" in [each["reason"] for each in renewed.json["steps"]]
    again = setup.run("plan", "--only", "environment", "--json").json["steps"]
    assert "install-packages" not in [each["kind"] for each in again]
    assert next(site.glob("einops-*.dist-info")).name == "einops-0.8.1.dist-info"

    requirements.write_text("torch\neinops<0.9\nextra\n", encoding="utf-8")
    assert setup.run("install", "--only", "environment").returncode == 0
    assert "extra==1.0 --hash=sha256:" in (setup.environment / ".klein-setup" / "packages.txt").read_text()


def test_the_files_that_torch_was_installed_from_are_locked(setup: SetupFixture, tmp_path: Path) -> None:
    output = tmp_path / "lab.yaml"
    done = setup.run("manifest", "lock", "--output", output)
    assert done.returncode == 0, done.said
    wheels = yaml.safe_load(output.read_text(encoding="utf-8"))["lock"]["torch_wheels"]
    digests = {toy.file_name: hashlib.sha256(content_of(toy)).hexdigest() for toy in TORCH}
    assert {each["file"]: each["sha256"] for each in wheels} == digests

    text = output.read_text(encoding="utf-8").replace(digests[TORCH[0].file_name], "ab" * 32)
    output.write_text(text, encoding="utf-8")
    words = setup.arguments("install", "--only", "environment")
    words[words.index("--manifest") + 1] = str(output)
    there = [*words, "--environment", str(tmp_path / "other")]
    driver = [str(setup.sandbox.folder / "driver.py"), str(setup.sandbox.folder / "probe.py")]
    refused = subprocess.run(
        [sys.executable, *driver, json.dumps(setup.upstream.release), *there],
        env=setup.sandbox.environ,
        cwd=setup.sandbox.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 7, refused.stdout + refused.stderr
    assert "another SHA-256" in refused.stderr
    assert not (tmp_path / "other").exists()
