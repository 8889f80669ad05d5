"""``klein-setup detect`` on machines beyond NVIDIA on x86-64: build, warnings, set, and how little it does.
The recordings in ``tests/support/machines`` were put together from makers' pages and users' reports, field by field as
``detect --json`` writes them; none of these machines was at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.core.models import Gpu, Machine
from provisioner.files.choose_set import choose_set
from provisioner.machine.readings import parse_machine_record
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text
from provisioner.torch.card_table import with_known_cards
from provisioner.torch.choose import TorchOptions, choose_torch, shipped_table
from tests.support.builders import machine, recording_of
from tests.support.counted import IS_COUNTED, work_of
from tests.support.sandbox import Sandbox, tensors

MACHINES = Path(__file__).parent.parent / "support" / "machines"
KIB, MIB = 1024, 1024 * 1024

# By recording: the build with its device packages, the warnings, and the set of flux2-klein-4b that is chosen.
SERVED: dict[str, tuple[str, list[str], set[str], str]] = {
    "strix-halo-windows": (
        "rocm10.0.0",
        ["device-gfx1151"],
        {"shared-memory", "no-fp8", "no-digests"},
        "fp8",
    ),
    "strix-halo-linux": ("rocm7.2", [], {"shared-memory", "no-fp8"}, "fp8"),
    "rx-6900-xt-windows": (
        "rocm10.0.0",
        ["device-gfx1030"],
        {"no-fp8", "card-not-validated", "no-digests"},
        "fp8",
    ),
    "rx-6900-xt-linux": ("rocm7.2", [], {"no-fp8", "card-not-validated"}, "fp8"),
    "rx-7900-xtx-beside-ryzen-windows": (
        "rocm10.0.0",
        ["device-gfx1100"],
        {"mixed-gpus", "no-fp8", "no-digests"},
        "fp8",
    ),
    "rx-9070-xt-windows-10": (
        "rocm10.0.0",
        ["device-gfx1201"],
        {"amd-driver", "system-not-validated", "no-digests"},
        "fp8",
    ),
    "radeon-vii-linux": ("rocm6.3", [], {"no-fp8", "card-not-validated", "legacy-last"}, "fp8"),
    "arc-b580-windows": ("xpu", [], {"no-fp8"}, "fp8"),
    "arc-b580-linux": ("xpu", [], {"no-fp8"}, "fp8"),
    "panther-lake-linux": ("xpu", [], {"no-fp8", "shared-memory", "system-not-validated"}, "fp8"),
    "lunar-lake-windows": ("xpu", [], {"no-fp8", "shared-memory"}, "fp8"),
    "m4-16gb": ("default", [], {"no-fp8", "shared-memory"}, "bf16"),
    "m2-max-32gb-free-threaded": ("default", [], {"no-fp8", "shared-memory", "free-threaded"}, "bf16"),
    "gb10-linux": ("cu130", [], {"shared-memory"}, "fp8"),
    "jetson-thor-linux": ("cu130", [], {"shared-memory", "minor-version-compatibility"}, "fp8"),
}

# By recording: the error, and a word of its message or hint.
REFUSED = {
    "steam-deck-linux": ("gpu-unsupported", "wrong numbers"),
    "ryzen-5000-laptop-windows": ("gpu-unsupported", "ZLUDA"),
    "rtx-spark-windows-arm": ("platform-unsupported", "nvtorch_oot"),
}


def recorded(name: str) -> dict[str, str | None]:
    return {"KLEIN_SETUP_MACHINE": str(MACHINES / f"{name}.json")}


def test_every_recording_is_used() -> None:
    assert {path.stem for path in MACHINES.glob("*.json")} == {*SERVED, *REFUSED}


@pytest.mark.parametrize("name", SERVED)
def test_a_machine_gets_its_build_its_warnings_and_the_set_that_it_can_run(name: str) -> None:
    path = MACHINES / f"{name}.json"
    found = parse_machine_record(path.read_text(encoding="utf-8"), path)
    choice = choose_torch(found, TorchOptions(), app="comfyui")
    table = shipped_table()
    chosen = set_of(with_known_cards(found, table.amd_gpus, table.intel_gpus))
    warnings = {each.code for each in choice.warnings}
    assert (choice.build.torch_backend, list(choice.build.device_extras), warnings, chosen) == SERVED[name]
    assert choice.reasons


@pytest.mark.parametrize("name", ["strix-halo-windows", "rx-6900-xt-windows", "arc-b580-linux", "m4-16gb"])
def test_detect_shows_what_was_chosen_for_a_recording(sandbox: Sandbox, name: str) -> None:
    done = sandbox.run("detect", "--json", env=recorded(name))
    assert done.returncode == 0, done.said
    torch = done.json["details"]["torch"]
    shown = (
        torch["build"]["torch_backend"],
        torch["build"]["device_extras"],
        {each["code"] for each in torch["warnings"]},
    )
    assert shown == SERVED[name][:3]


def set_of(found: Machine) -> str:
    text, file = read_manifest_text("flux2-klein-4b")
    return choose_set(parse_manifest(text, file=file), "auto", kind="comfyui", look=lambda: found).set.id


@pytest.mark.parametrize("name", REFUSED)
def test_a_machine_that_cannot_be_served_is_told_why_and_what_is_left(sandbox: Sandbox, name: str) -> None:
    code, word = REFUSED[name]
    done = sandbox.run("detect", "--json", env=recorded(name))
    assert (done.returncode, done.codes) == (3, [code])
    (error,) = done.json["errors"]
    assert word in f"{error['message']} {error['hint']}"


@pytest.mark.skipif(not IS_COUNTED, reason="the kernel's counts are Linux'")
@pytest.mark.parametrize("name", SERVED)
def test_detection_does_so_little_that_half_a_second_is_plenty(sandbox: Sandbox, name: str) -> None:
    """On an idle computer it takes 0.2 to 0.3 s; a clock says nothing on a busy one, so its work is counted."""
    sandbox.environ.update({key: value for key, value in recorded(name).items() if value is not None})
    work = work_of(sandbox, "detect")
    assert (work.children, work.connections, work.requests, work.changed, work.flushed) == (0, 0, 0, 0, 0)
    assert work.modules <= 200
    assert work.calls <= 400
    assert work.read <= 96 * KIB
    assert work.peak <= 16 * MIB


def test_a_plan_shows_the_device_packages_before_anything_is_fetched(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.publish(tensors(1000))
    gpus = (
        Gpu(vendor="amd", name="AMD GPU (gfx1036)", index=0, pci_id="1002:164e", architecture="gfx1036"),
        Gpu(vendor="amd", name="AMD GPU (gfx1031)", index=1, pci_id="1002:73df", architecture="gfx1031"),
    )
    recording = tmp_path / "machine.json"
    recording.write_text(recording_of(machine(*gpus, os_release="6.17.0")), encoding="utf-8")
    env: dict[str, str | None] = {"KLEIN_SETUP_MACHINE": str(recording)}
    words = ("plan", "--comfyui", sandbox.tree, "--only", "environment", "--python", sys.executable)
    shown = sandbox.run(*words, env=env)
    assert shown.returncode == 0, shown.said
    assert "rocm10.0.0 with device-gfx1031, from https://stable.repo.amd.com/rocm/whl-next" in " ".join(
        shown.said.split()
    )
    assert "the index of rocm10.0.0 publishes no SHA-256" in " ".join(shown.said.split())
    (step,) = [
        each for each in sandbox.run(*words, "--json", env=env).json["steps"] if each["kind"] == "make-environment"
    ]
    assert step["bytes_to_fetch"] == 1_800_000_000


# --- the computer's memory, before anything is fetched -----------------------------------------

GIB = 1024**3
CARD_12 = Gpu(
    vendor="nvidia",
    name="NVIDIA GeForce RTX 3060",
    index=0,
    uuid="GPU-1",
    compute_capability=(8, 6),
    memory_total_bytes=12 * GIB,
)
SHORT: dict[str, tuple[Machine, str | None, str]] = {
    "16 GB and a card of 12 GB": (machine(CARD_12, memory_total_bytes=int(15.6 * GIB), swap_total_bytes=0), None, ""),
    "a container of 8 GB on a computer of 64 GB": (
        machine(CARD_12, memory_total_bytes=8 * GIB, memory_physical_bytes=64 * GIB, swap_total_bytes=0),
        "memory-too-small",
        "`--memory 15g`",
    ),
    "12 GB with swap": (
        machine(CARD_12, memory_total_bytes=12 * GIB, swap_total_bytes=8 * GIB),
        "memory-swaps",
        "`klein-setup install --set fp8-lean`",
    ),
    "a page file of 5 GB": (
        machine(CARD_12, os="windows", memory_total_bytes=16 * GIB, swap_total_bytes=5 * GIB, swap_grows=False),
        "page-file-too-small",
        "Let Windows manage",
    ),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_plan_says_what_memory_a_machine_is_short_of(
    make_sandbox: Callable[[], Sandbox], tmp_path: Path, name: str
) -> None:
    host, code, step = SHORT[name]
    (tmp_path / "machine.json").write_text(recording_of(host), encoding="utf-8")
    words = ("--manifest", "flux2-klein-4b", "--set", "fp8", "--only", "files", "--comfyui")
    done = make_sandbox().run(
        *("plan", *words, tmp_path / "ComfyUI", "--json"), env={"KLEIN_SETUP_MACHINE": str(tmp_path / "machine.json")}
    )
    found = [each for each in done.json["findings"] if each["code"].startswith(("memory", "page-file"))]
    assert done.returncode == 0, done.stderr
    assert [each["code"] for each in found] == ([code] if code else [])
    assert all(step in each["hint"] for each in found)
