"""``klein-setup detect`` on recorded machines: what it shows, what it chooses, how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner.core.models import Gpu, Machine
from tests.support.builders import recording_of
from tests.support.sandbox import Sandbox

RTX_4070 = Gpu(
    vendor="nvidia",
    name="NVIDIA GeForce RTX 4070",
    index=0,
    compute_capability=(8, 9),
    memory_total_bytes=12_878_610_432,
    memory_free_bytes=11_500_000_000,
)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return tmp_path / "machine.json"


def record(path: Path, *gpus: Gpu, driver: str | None) -> dict[str, str | None]:
    """Write a recorded Linux machine; return the variable that names it."""
    machine = Machine(
        os="linux",
        os_release="6.8",
        is_wsl=False,
        architecture="x86_64",
        libc="glibc 2.36",
        python_version="3.12.3",
        gpus=gpus,
        driver_version=driver,
    )
    path.write_text(recording_of(machine), encoding="utf-8")
    return {"KLEIN_SETUP_MACHINE": str(path)}


@pytest.mark.parametrize(("driver", "build"), [("580.95.05", "cu130"), ("550.144.03", "cu126"), ("525.60.13", "cu126")])
def test_chooses_a_build_by_driver_and_gpu_and_says_why(
    sandbox: Sandbox, recording: Path, driver: str, build: str
) -> None:
    done = sandbox.run("detect", env=record(recording, RTX_4070, driver=driver))
    assert done.returncode == 0
    assert f"build      {build}" in done.stdout
    assert "runs on the NVIDIA GeForce RTX 4070 (compute capability 8.9)" in done.said
    assert f"read from {recording}" in done.stdout


def test_old_driver_error_names_both_versions_and_shows_the_machine(sandbox: Sandbox, recording: Path) -> None:
    done = sandbox.run("detect", env=record(recording, RTX_4070, driver="470.256.02"))
    assert done.returncode == 3
    assert "NVIDIA GeForce RTX 4070" in done.stdout
    assert "470.256.02" in done.stderr
    assert "525.60.13" in done.stderr


def test_a_build_that_cannot_work_is_refused_unless_forced(sandbox: Sandbox, recording: Path) -> None:
    env = record(recording, RTX_4070, driver="550.144.03")
    refused = sandbox.run("detect", "--torch", "cu130", "--json", env=env)
    assert (refused.returncode, refused.codes) == (3, ["driver-too-old"])
    assert "to install cu126," in refused.json["errors"][0]["hint"]
    forced = sandbox.run("detect", "--torch", "cu130", "--force", "--json", env=env)
    assert (forced.returncode, forced.json["details"]["torch"]["build"]["torch_backend"]) == (0, "cu130")
    assert [each["code"] for each in forced.json["details"]["torch"]["warnings"]][:1] == ["forced"]


def test_a_mirror_replaces_the_base_address(sandbox: Sandbox, recording: Path) -> None:
    env = record(recording, RTX_4070, driver="580.95.05")
    done = sandbox.run("detect", "--torch-index", "https://mirror.example/whl", "--json", env=env)
    assert done.json["details"]["torch"]["build"]["index_url"] == "https://mirror.example/whl/cu130"


def test_none_asks_for_no_build(sandbox: Sandbox, recording: Path) -> None:
    done = sandbox.run("detect", "--torch", "none", "--json", env=record(recording, driver=None))
    assert (done.returncode, done.json["details"]["torch"]) == (0, None)


def test_an_unknown_build_and_a_broken_recording_are_usage_errors(sandbox: Sandbox, recording: Path) -> None:
    env = record(recording, RTX_4070, driver="580.95.05")
    assert sandbox.run("detect", "--torch", "cu999", env=env).returncode == 2
    recording.write_text("{", encoding="utf-8")
    broken = sandbox.run("detect", env=env)
    assert broken.returncode == 2
    assert str(recording) in broken.stderr
