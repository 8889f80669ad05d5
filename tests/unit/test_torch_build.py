"""Which torch build a machine gets: the truth table, further cases, builds by name, and properties that always hold."""

from __future__ import annotations

import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from provisioner.core.errors import (
    DriverDroppedGpuError,
    DriverTooOldError,
    GpuTooOldError,
    GpuUnknownError,
    GpuUnsupportedError,
    JetsonIndexError,
    KleinError,
    NvidiaDriverMissingError,
    PlatformUnsupportedError,
    PythonUnsupportedError,
    UnsupportedMachineError,
    UsageError,
)
from provisioner.core.models import Gpu, Machine, OperatingSystem, ProbeResult
from provisioner.machine.readings import (
    GraphicsReading,
    HostReading,
    NvidiaDevice,
    NvidiaReading,
    assemble_machine,
    parse_driver_version,
)
from provisioner.manifest.shipped import read_table_text
from provisioner.torch.build_table import parse_torch_table
from provisioner.torch.builds import App, TorchBuild, TorchChoice
from provisioner.torch.compatibility import code_runs_on, subsets
from provisioner.torch.select import select_torch_build

CASES = yaml.safe_load((Path(__file__).parent / "data" / "torch_cases.yaml").read_text(encoding="utf-8"))
TEXT, FILE = read_table_text("torch")
TABLE = parse_torch_table(TEXT, file=FILE)
SYSTEMS: dict[str, OperatingSystem] = {"linux": "linux", "wsl": "linux", "windows": "windows", "macos": "macos"}


def capability(sm: int | None) -> tuple[int, int] | None:
    return None if sm is None else (sm // 10, sm % 10)


def nvidia(*sms: int | None) -> list[dict[str, Any]]:
    return [{"name": f"GPU of {sm}", "vendor": "nvidia", "sm": sm} for sm in sms]


def machine(**given_case: object) -> Machine:
    """Return the machine of a case, put together from what NVML, the kernel and the PCI bus would say."""
    case: dict[str, Any] = {**CASES["defaults"], **given_case}
    gpus = case["gpus"]
    cards = [gpu for gpu in gpus if gpu["vendor"] == "nvidia"]
    answers = bool(cards) and case.get("nvml", "as gpus") is not None
    lists = answers and "nvml" not in case
    devices = tuple(
        NvidiaDevice(
            index=at,
            name=gpu["name"],
            uuid=f"GPU-{at}",
            pci_bus_id=f"0000:{at + 1:02x}:00.0",
            compute_capability=capability(gpu["sm"]),
        )
        for at, gpu in enumerate(cards)
    )
    reading = NvidiaReading(source="nvml", driver_version=case["driver"], devices=devices if lists else ())
    silent = NvidiaReading(source="nvml", reason="the library is missing")
    system = SYSTEMS[case["os"]]
    return assemble_machine(
        host=HostReading(
            os=system,
            os_release=case.get("macos", "6.1.0-18-amd64"),
            is_wsl=case["os"] == "wsl",
            architecture=case["machine"],
            libc=case["libc"].replace("-", " ") if system == "linux" else None,
            python_version=f"{case['python']}.1",
        ),
        nvidia=(reading if answers else silent,),
        kernel_files=(("/sys/module/nvidia/version", case["driver"]),) if case["driver"] else (),
        graphics=GraphicsReading(
            source="PCI bus",
            gpus=tuple(
                Gpu(
                    vendor=gpu["vendor"],
                    name=gpu["name"],
                    index=at,
                    pci_bus_id=f"0000:{at + 1:02x}:00.0",
                    architecture=gpu.get("gfx"),
                )
                for at, gpu in enumerate(gpus)
            ),
        ),
    )


def choose(app: App = "comfyui", *, of: Machine | None = None, **case: object) -> TorchChoice:
    names = ("forced", "force", "index_base", "python_version")
    options: dict[str, Any] = {name: case.pop(name) for name in names if name in case}
    return select_torch_build(of or machine(**case), TABLE, app=app, **options)


def codes(choice: TorchChoice) -> set[str]:
    return {warning.code for warning in choice.warnings}


# --- the truth table --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["id"])
def test_the_truth_table_holds(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in case.get("env", {}).items():
        monkeypatch.setenv(name, value)  # what hides GPUs from CUDA must not change the choice
    expected = case["expect"]
    app = case.get("app", "comfyui")
    if "error" in expected:
        with pytest.raises(UnsupportedMachineError) as caught:
            choose(app, **case_fields(case))
        assert caught.value.code == expected["error"]
        assert caught.value.exit_status == 3
        assert caught.value.hint
        return
    choice = choose(app, **case_fields(case))
    assert choice.build.torch_backend == expected["index"]
    assert choice.build.sets
    assert all(each.torch in SpecifierSet(expected["torch"]) for each in choice.build.sets)
    assert codes(choice) >= set(expected.get("warn", ()))
    assert choice.reasons


def case_fields(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name in {*CASES["defaults"], "nvml", "macos"} - {"app"}}


def test_the_table_of_cases_is_whole() -> None:
    ids = [case["id"] for case in CASES["cases"]]
    assert len(ids) == len(set(ids)) == 60


# --- binary compatibility ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "sm", "cuda", "runs"),
    [
        (86, 89, (13, 0), True),  # an RTX 4070 needs no sm_89
        (80, 89, (12, 6), True),
        (89, 86, (13, 0), False),
        (80, 90, (13, 0), False),
        (120, 121, (13, 0), True),
        (100, 103, (13, 0), True),
        (100, 120, (13, 0), False),
        (100, 110, (13, 0), False),
        (100, 101, (13, 0), False),
        (110, 110, (13, 0), True),
        (101, 110, (12, 8), True),
        (110, 101, (13, 0), True),
        (101, 103, (12, 8), False),
        (80, 87, (13, 0), False),
        (86, 87, (13, 0), False),
        (80, 87, (13, 2), True),
        (87, 87, (12, 6), True),
        (87, 89, (13, 2), False),
        (70, 72, (13, 0), False),
        (70, 72, (13, 2), True),
        (72, 75, (13, 0), False),
        (70, 75, (12, 6), True),
        (52, 53, (12, 6), False),
        (60, 61, (12, 6), True),
        (61, 62, (13, 2), False),
    ],
)
def test_machine_code_runs_where_the_wheel_says(code: int, sm: int, cuda: tuple[int, int], runs: bool) -> None:
    assert code_runs_on(code, sm, cuda=cuda, table=TABLE) is runs


def test_the_reason_names_the_code_that_serves_a_gpu_without_code_of_its_own() -> None:
    choice = choose(gpus=[{"name": "RTX 4070", "vendor": "nvidia", "sm": 89}], driver="580.95.05")
    assert "Its machine code sm_86, written for 8.6, runs on the RTX 4070 (compute capability 8.9)." in choice.reasons
    assert 89 not in choice.build.sm


# --- what a build says ------------------------------------------------------------------------------


def test_a_build_is_ready_to_be_installed() -> None:
    build = choose(gpus=nvidia(89), driver="580.95.05").build
    assert build.index_url == "https://download.pytorch.org/whl/cu130"
    assert build.local_tag == "cu130"
    assert [each.torch for each in build.sets] == ["2.15.0", "2.14.1", "2.14.0", "2.13.0", "2.12.1", "2.12.0", "2.11.0"]
    assert {each.torchaudio for each in build.sets} == {"2.11.0"}
    assert build.sets[0].torchvision == "0.29.2"
    assert build.sm == (75, 80, 86, 90, 100, 120)
    assert build.ptx == ()


def test_diffusers_gets_no_torchaudio_and_may_use_a_newer_python_for_it() -> None:
    build = choose("diffusers", gpus=nvidia(89), driver="580.95.05", python="3.15").build
    assert [(each.torch, each.torchaudio) for each in build.sets] == [("2.15.0", None)]


def test_sets_before_2_11_are_offered_only_where_nothing_newer_serves() -> None:
    oldest = choose(gpus=nvidia(120), driver="570.211.01").build.sets[-1]
    assert oldest.torch == "2.11.0"
    only_old = choose("diffusers", gpus=nvidia(89), driver="580.95.05", python_version="3.13t").build.sets
    assert [each.torch for each in only_old] == ["2.12.0", "2.11.0"]
    old = choose(gpus=nvidia(130), driver="620.10", forced="cu130").build.sets
    assert [each.torch for each in old] == ["2.10.0", "2.9.1", "2.9.0"]


def test_windows_sets_leave_out_the_release_that_lost_maxwell() -> None:
    choice = choose(os="windows", gpus=nvidia(52), driver="581.15")
    assert choice.build.torch_backend == "cu126"
    assert all(each.torch >= "2.11" for each in choice.build.sets)


def test_a_mirror_replaces_the_base_and_leaves_the_default_index_alone() -> None:
    mirrored = choose(gpus=nvidia(89), driver="580.95.05", index_base="http://127.0.0.1:8080/whl/")
    assert mirrored.build.index_url == "http://127.0.0.1:8080/whl/cu130"
    mac = choose(os="macos", machine="arm64", macos="15.1", index_base="http://127.0.0.1:8080/whl")
    assert mac.build.index_url is None
    assert mac.build.local_tag is None
    assert mac.build.torch_backend == "default"


def test_the_python_of_the_environment_counts_and_not_the_one_that_runs_us() -> None:
    assert choose(gpus=nvidia(89), driver="580.95.05", python="3.15", python_version="3.12.4").build.sets
    with pytest.raises(PythonUnsupportedError, match=r"Python 3\.15; there are some for 3\.10 to 3\.14"):
        choose(gpus=nvidia(89), driver="580.95.05", python_version="3.15.0rc1")
    with pytest.raises(UsageError, match="'newest' is not a Python version"):
        choose(gpus=nvidia(89), driver="580.95.05", python_version="newest")


def test_reasons_say_which_builds_were_not_chosen_and_what_is_ignored() -> None:
    gpus = [*nvidia(89), {"name": "Radeon 780M", "vendor": "amd", "gfx": "gfx1103"}, {"name": "UHD", "vendor": "intel"}]
    choice = choose(gpus=gpus, driver="535.183.01")
    text = "\n".join(choice.reasons)
    assert "cu130 was not chosen: it needs NVIDIA driver 580 or newer; 535.183.01 is installed." in text
    assert "cu126 needs NVIDIA driver 525.60.13 or newer; installed is 535.183.01." in text
    assert "Ignored: Radeon 780M (an NVIDIA GPU comes first)." in text
    assert "Ignored: UHD (an NVIDIA GPU comes first)." in text
    assert choice.runner_up is not None
    assert choice.runner_up.startswith("cu128 (torch 2.11.0) would run too; cu126 comes first: ")


@pytest.mark.parametrize(
    ("case", "runner_up"),
    [
        ({"gpus": nvidia(89), "driver": "580.95.05"}, "cu126 (torch 2.14.1) would run too"),
        ({"gpus": nvidia(61), "driver": "580.95.05"}, "cu130 would come first, but it has no code for the GPU of 61"),
        (
            {"gpus": nvidia(110), "driver": "580.95.05", "machine": "aarch64"},
            "cu132 would come next, but it has no torchaudio",
        ),
        ({"gpus": [{"name": "UHD 770", "vendor": "intel"}]}, "xpu was not chosen: the UHD 770 is not among"),
        ({"gpus": [{"name": "Arc B580", "vendor": "intel"}]}, "cpu would run too"),
        ({"gpus": nvidia(89), "driver": "580.95.05", "forced": "cu126"}, "cu130 would have been chosen"),
        (
            {"gpus": nvidia(89), "driver": "580.95.05", "forced": "cu130"},
            "cu130 would also have been chosen without --torch.",
        ),
        ({"gpus": nvidia(89), "driver": "450.1", "forced": "cpu"}, "Without --torch none would have been chosen: the"),
    ],
)
def test_the_runner_up_is_named_with_why_it_was_not_chosen(case: dict[str, Any], runner_up: str) -> None:
    choice = choose(**case)
    assert choice.runner_up is not None
    assert choice.runner_up.startswith(runner_up)


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ({"gpus": nvidia(89), "driver": "450.80.02"}, DriverTooOldError, ["525.60.13", "450.80.02", "GPU of 89"]),
        (
            {"gpus": nvidia(89), "driver": "527.1", "os": "wsl"},
            DriverTooOldError,
            ["528.33", "527.1", "the number is Windows' driver"],
        ),
        ({"gpus": nvidia(120), "driver": "560.35.03"}, DriverTooOldError, ["570", "560.35.03", "GPU of 120"]),
        ({"gpus": nvidia(121), "driver": "570.1", "machine": "aarch64"}, DriverTooOldError, ["575", "570.1"]),
        ({"gpus": nvidia(89, 120), "driver": "560.35.03"}, DriverTooOldError, ["570", "560.35.03", "GPU of 120"]),
        ({"gpus": nvidia(61), "driver": "470.1"}, DriverTooOldError, ["525.60.13", "470.1", "GPU of 61"]),
        ({"gpus": nvidia(61, 89), "driver": "470.1"}, DriverTooOldError, ["525.60.13", "470.1", "GPU of 89"]),
        ({"gpus": nvidia(130, 89), "driver": "470.1"}, DriverTooOldError, ["525.60.13", "470.1", "GPU of 89"]),
        ({"gpus": nvidia(35), "driver": "470.1"}, GpuTooOldError, ["GPU of 35", "3.5", "5.0"]),
        ({"gpus": nvidia(130), "driver": "620.10"}, GpuUnsupportedError, ["GPU of 130", "13.0"]),
        ({"gpus": nvidia(75), "driver": "580.1", "machine": "aarch64"}, GpuUnsupportedError, ["7.5", "linux_aarch64"]),
        ({"gpus": nvidia(61), "driver": "591.44"}, DriverDroppedGpuError, ["591.44", "GPU of 61", "590"]),
        ({"gpus": nvidia(None), "driver": "550.1"}, GpuUnknownError, ["550.1", "GPU of None"]),
        ({"gpus": nvidia(89), "nvml": None}, NvidiaDriverMissingError, ["GPU of 89", "580"]),
        ({"gpus": nvidia(87), "driver": "540.4.0", "machine": "aarch64"}, JetsonIndexError, ["540.4.0", "GPU of 87"]),
        ({"gpus": nvidia(87), "driver": "595.50", "machine": "aarch64"}, JetsonIndexError, ["595.50", "ComfyUI"]),
        ({"gpus": nvidia(72), "driver": "540.4.0", "machine": "aarch64"}, JetsonIndexError, ["7.2"]),
        (
            {"gpus": nvidia(87), "driver": "540.4.0", "machine": "aarch64", "app": "diffusers"},
            JetsonIndexError,
            ["580", "540.4.0", "JetPack"],
        ),
        (
            {"gpus": [{"name": "RX 7900", "vendor": "amd", "gfx": None}], "os": "windows"},
            GpuUnknownError,
            ["RX 7900", "PCI id", "Windows"],
        ),
        ({"gpus": [{"name": "RX 7900", "vendor": "amd", "gfx": None}]}, GpuUnknownError, ["RX 7900", "amdgpu"]),
        ({"gpus": [{"name": "Old", "vendor": "amd", "gfx": "gfx803"}]}, GpuUnsupportedError, ["gfx803", "rocm7.2"]),
        (
            {"gpus": [{"name": "Rx", "vendor": "amd", "gfx": "gfx1100"}], "machine": "aarch64"},
            GpuUnsupportedError,
            ["gfx1100", "linux_aarch64"],
        ),
        ({"libc": "glibc-2.27"}, PlatformUnsupportedError, ["2.28", "2.27"]),
        ({"libc": "musl"}, PlatformUnsupportedError, ["2.28", "musl"]),
        ({"machine": "ppc64le"}, PlatformUnsupportedError, ["ppc64le", "x86_64"]),
        ({"os": "macos", "machine": "x86_64", "macos": "14.5"}, PlatformUnsupportedError, ["Intel Macs", "2.2.2"]),
        ({"os": "macos", "machine": "arm64", "macos": "10.15"}, PlatformUnsupportedError, ["11", "10.15"]),
        ({"os": "windows", "machine": "arm64"}, PlatformUnsupportedError, ["Windows on Arm"]),
        ({"python": "3.16"}, PythonUnsupportedError, ["3.16", "3.10 to 3.14"]),
        (
            {"gpus": [{"name": "Rx", "vendor": "amd", "gfx": "gfx1100"}], "python": "3.15", "app": "diffusers"},
            PythonUnsupportedError,
            ["3.15", "3.10 to 3.14", "gfx1100"],
        ),
    ],
)
def test_an_error_names_what_was_found_what_is_needed_and_one_thing_to_do(
    case: dict[str, Any], error: type[KleinError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        choose(case.pop("app", "comfyui"), **case)
    assert [word for word in words if word not in str(caught.value)] == []
    assert caught.value.hint
    assert caught.value.exit_status == 3
    assert "cpu" not in str(caught.value)


def test_gpu_without_a_build_is_not_given_the_cpu_build() -> None:
    for gpus in (nvidia(130), nvidia(35), [{"name": "Old", "vendor": "amd", "gfx": "gfx803"}]):
        with pytest.raises(UnsupportedMachineError):
            choose(gpus=gpus, driver="620.10" if gpus[0]["vendor"] == "nvidia" else None)


@pytest.mark.parametrize(
    ("os", "said"),
    [("linux", "nouveau"), ("windows", "nvidia.com/drivers"), ("wsl", "on Windows itself, and no driver inside WSL")],
)
def test_a_missing_driver_is_installed_where_it_belongs(os: str, said: str) -> None:
    with pytest.raises(NvidiaDriverMissingError) as caught:
        choose(os=os, gpus=nvidia(89), nvml=None)
    assert said in (caught.value.hint or "")


def test_a_driver_with_a_last_branch_is_not_called_or_newer() -> None:
    with pytest.raises(DriverTooOldError) as caught:
        choose(gpus=nvidia(61), driver="470.1")
    assert caught.value.hint == "Install the newest NVIDIA driver before 590; later ones no longer support this GPU."
    with pytest.raises(DriverTooOldError) as caught:
        choose(gpus=nvidia(89), driver="470.1")
    assert caught.value.hint == "Install NVIDIA driver 580 or newer."


def test_a_garbled_driver_version_is_no_driver() -> None:
    with pytest.raises(NvidiaDriverMissingError):
        choose(of=plain_machine(89, driver="ERR!"))


def test_a_container_with_a_driver_and_no_gpu_in_sight_is_not_given_the_cpu_build() -> None:
    with pytest.raises(GpuUnknownError):
        choose(driver="580.95.05")
    assert choose(driver="580.95.05", forced="cpu").build.torch_backend == "cpu"


# --- GPUs that could not be identified ------------------------------------------------------------------


def test_an_unread_gpu_on_a_driver_without_old_gpus_gets_the_build_that_serves_all_of_them() -> None:
    choice = choose(gpus=nvidia(None), nvml=None, driver="595.58.03")
    assert choice.build.torch_backend == "cu130"
    assert codes(choice) == {"gpu-not-identified"}
    with pytest.raises(GpuUnsupportedError):
        choose(gpus=nvidia(None), nvml=None, driver="595.58.03", machine="aarch64")  # it could be a T4G


def test_a_card_that_an_answering_driver_does_not_list_was_dropped() -> None:
    with pytest.raises(DriverDroppedGpuError, match=r"driver 595\.58\.03 does not support the GPU of 70"):
        choose(gpus=nvidia(70), nvml=[], driver="595.58.03")
    with pytest.raises(GpuUnknownError):
        choose(gpus=nvidia(70), nvml=[], driver="580.95.05")


# --- several GPUs -----------------------------------------------------------------------------------


def test_an_older_build_that_covers_all_gpus_comes_before_a_newer_one_that_does_not() -> None:
    choice = choose(gpus=nvidia(70, 89), driver="580.95.05")
    assert choice.build.torch_backend == "cu126"
    assert choice.uncovered == ()
    assert codes(choice) >= {"mixed-gpus", "legacy-last", "comfy-wants-cu130"}
    mixed = next(warning for warning in choice.warnings if warning.code == "mixed-gpus")
    assert "GPU of 89 (compute capability 8.9) alone would get cu130" in mixed.message


def test_a_gpu_that_no_build_covers_together_is_named_with_what_to_do() -> None:
    choice = choose(gpus=nvidia(61, 120), driver="580.95.05")
    assert choice.build.torch_backend == "cu130"
    assert choice.uncovered == ("GPU of 61",)
    mixed = next(warning for warning in choice.warnings if warning.code == "mixed-gpus")
    assert "GPU of 61" in mixed.message
    assert "CUDA_VISIBLE_DEVICES" in (mixed.hint or "")
    assert "--torch cu126 supports the GPU of 61" in (mixed.hint or "")


@pytest.mark.parametrize(
    ("sms", "driver", "tag", "uncovered"),
    [
        ((61, 86, 120), "580.95.05", "cu130", ("GPU of 61",)),
        ((70, 120), "570.211.01", "cu128", ("GPU of 70",)),  # old cu128 has sm_70, its cuDNN has not
        ((89, 130), "620.10", "cu130", ("GPU of 130",)),
        ((61, 89), "595.58.03", "cu130", ("GPU of 61",)),
        ((35, 86), "470.256", None, ()),
        ((35, 86), "580.95.05", "cu130", ("GPU of 35",)),
        ((89, 89, 89), "580.95.05", "cu130", ()),
        ((None, 89), "580.95.05", "cu130", ("GPU of None",)),
    ],
)
def test_the_newest_gpu_is_served_and_the_rest_is_named(
    sms: tuple[int | None, ...], driver: str, tag: str | None, uncovered: tuple[str, ...]
) -> None:
    if tag is None:
        with pytest.raises(DriverTooOldError):
            choose(gpus=nvidia(*sms), driver=driver)
        return
    choice = choose(gpus=nvidia(*sms), driver=driver)
    assert (choice.build.torch_backend, choice.uncovered) == (tag, uncovered)
    assert ("mixed-gpus" in codes(choice)) is bool(uncovered)


def test_dropped_gpus_are_not_promised_an_environment_of_their_own() -> None:
    choice = choose(gpus=nvidia(61, 89), driver="595.58.03")
    hint = next(warning.hint for warning in choice.warnings if warning.code == "mixed-gpus")
    assert "environment of its own" not in (hint or "")


def test_nvidia_beats_amd_beats_intel() -> None:
    amd = {"name": "RX 7900 XTX", "vendor": "amd", "gfx": "gfx1100"}
    arc = {"name": "Intel(R) Arc(TM) B580 Graphics", "vendor": "intel"}
    assert choose(gpus=[arc, amd, *nvidia(89)], driver="580.1").build.torch_backend == "cu130"
    assert choose(gpus=[arc, amd]).build.torch_backend == "rocm7.2"
    assert choose(gpus=[arc]).build.torch_backend == "xpu"
    beside = choose(gpus=[{**amd, "gfx": "gfx1036"}, arc])  # an integrated AMD GPU that nothing serves
    assert beside.build.torch_backend == "xpu"
    assert "Ignored: RX 7900 XTX (it is part of the processor)." in beside.reasons


def test_an_integrated_amd_gpu_does_not_hinder_the_card_beside_it() -> None:
    gpus = [
        {"name": "Radeon 610M", "vendor": "amd", "gfx": "gfx1036"},
        {"name": "RX 9070", "vendor": "amd", "gfx": "gfx1201"},
        {"name": "Unlisted", "vendor": "amd", "gfx": None},
    ]
    choice = choose(gpus=gpus)
    assert choice.build.torch_backend == "rocm7.2"
    assert choice.uncovered == ("Unlisted", "Radeon 610M")
    assert "HIP_VISIBLE_DEVICES" in str(next(w.hint for w in choice.warnings if w.code == "mixed-gpus"))


def test_amd_sets_hold_only_releases_with_code_for_the_architecture() -> None:
    newer = choose(gpus=[{"name": "780M", "vendor": "amd", "gfx": "gfx1103"}]).build.sets
    assert newer[-1].torch == "2.13.0"
    older = choose(gpus=[{"name": "RX 6800", "vendor": "amd", "gfx": "gfx1030"}]).build.sets
    assert older[-1].torch == "2.11.0"


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Intel(R) Arc(TM) A770 Graphics", "xpu"),
        ("Intel(R) Arc(TM) Graphics", "xpu"),
        ("Intel GPU (8086:e20b)", "xpu"),
        ("Intel GPU (8086:7d55)", "xpu"),
        ("Intel GPU (8086:4680)", "cpu"),
        ("Intel(R) UHD Graphics 770", "cpu"),
        ("Intel(R) Iris(R) Xe Graphics", "cpu"),
        ("Intel(R) Monarch Graphics", "cpu"),
    ],
)
def test_xpu_is_for_the_validated_intel_gpus_only(name: str, tag: str) -> None:
    assert choose(gpus=[{"name": name, "vendor": "intel"}]).build.torch_backend == tag


# --- warnings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "case", "expected"),
    [
        ("comfyui", {"gpus": nvidia(89), "driver": "580.95.05"}, set()),
        ("comfyui", {"gpus": nvidia(89), "driver": "580.10"}, {"minor-version-compatibility"}),
        ("comfyui", {"gpus": nvidia(89), "driver": "570.1"}, {"comfy-wants-cu130"}),
        ("diffusers", {"gpus": nvidia(89), "driver": "570.1"}, set()),
        ("comfyui", {"gpus": nvidia(61), "driver": "570.1"}, {"legacy-last", "no-fp8"}),
        ("comfyui", {"gpus": nvidia(86), "driver": "580.95.05"}, {"no-fp8"}),
        ("comfyui", {"gpus": nvidia(90), "driver": "580.65.06"}, set()),
        ("comfyui", {"os": "windows", "gpus": nvidia(89), "driver": "580.65"}, {"minor-version-compatibility"}),
        ("comfyui", {"os": "windows", "gpus": nvidia(89), "driver": "580.88"}, set()),
        ("comfyui", {"os": "macos", "machine": "arm64", "macos": "13.6"}, {"mps-old"}),
        ("comfyui", {"os": "macos", "machine": "arm64", "macos": "14.0"}, set()),
    ],
)
def test_warnings_are_those_and_no_others(app: App, case: dict[str, Any], expected: set[str]) -> None:
    assert codes(choose(app, **case)) == expected


def test_every_warning_code_is_kebab_case() -> None:
    choice = choose(gpus=nvidia(61, 89), driver="535.1")
    assert choice.warnings
    assert all(re.fullmatch("[a-z][a-z0-9]*(-[a-z0-9]+)*", code) for code in codes(choice))


# --- by name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "case", "error", "said"),
    [
        ("cu126", {"gpus": nvidia(120), "driver": "580.95.05"}, GpuUnsupportedError, "no code for the GPU of 120"),
        (
            "cu130",
            {"gpus": nvidia(89), "driver": "550.1"},
            DriverTooOldError,
            "needs NVIDIA driver 580 or newer; 550.1",
        ),
        ("cu130", {"gpus": nvidia(61), "driver": "580.95.05"}, GpuUnsupportedError, "no code for the GPU of 61"),
        ("cu132", {"gpus": nvidia(89), "driver": "595.58.03"}, UsageError, "no torchaudio of its own"),
        ("cu124", {"gpus": nvidia(89), "driver": "595.58.03"}, UsageError, "ends at torch 2.6.0; ComfyUI needs 2.7"),
        ("cu130", {}, GpuUnsupportedError, "this machine has none: it has no GPU"),
        ("rocm7.2", {"gpus": nvidia(89), "driver": "580.95.05"}, GpuUnsupportedError, "is for AMD GPUs"),
        ("xpu", {"gpus": [{"name": "UHD", "vendor": "intel"}]}, GpuUnsupportedError, "is for validated Intel GPUs"),
        ("cu118", {"gpus": nvidia(80), "driver": "580.1", "machine": "aarch64"}, PlatformUnsupportedError, "no wheels"),
        ("default", {}, PlatformUnsupportedError, "has no wheels for linux_x86_64"),
        ("cu130", {"gpus": nvidia(89), "nvml": None}, NvidiaDriverMissingError, "no NVIDIA driver answers"),
        ("cu130", {"gpus": nvidia(61, 89), "driver": "535.1"}, DriverTooOldError, "needs NVIDIA driver 580"),
        ("rocm7.0", {"gpus": [{"name": "780M", "vendor": "amd", "gfx": "gfx1103"}]}, GpuUnsupportedError, "gfx1103"),
    ],
)
def test_a_build_by_name_that_cannot_work_is_refused(
    tag: str, case: dict[str, Any], error: type[KleinError], said: str
) -> None:
    with pytest.raises(error) as caught:
        choose(forced=tag, **case)
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("tag", "case", "uncovered"),
    [
        ("cu126", {"gpus": nvidia(120), "driver": "580.95.05"}, ("GPU of 120",)),
        ("cu130", {"gpus": nvidia(89), "driver": "550.1"}, ()),
        ("cu126", {"gpus": [*nvidia(120), {"name": "UHD", "vendor": "intel"}], "driver": "580.1"}, ("GPU of 120",)),
        ("cu132", {"gpus": nvidia(89), "driver": "595.58.03"}, ()),
        ("cu124", {"gpus": nvidia(89), "driver": "595.58.03"}, ()),
        ("cu130", {}, ()),
        ("cu130", {"gpus": nvidia(89), "nvml": None}, ("GPU of 89",)),
        ("rocm7.2", {"gpus": [{"name": "Old", "vendor": "amd", "gfx": "gfx803"}]}, ("Old",)),
    ],
)
def test_force_takes_a_refused_build_and_says_what_speaks_against_it(
    tag: str, case: dict[str, Any], uncovered: tuple[str, ...]
) -> None:
    choice = choose(forced=tag, force=True, **case)
    assert choice.build.torch_backend == tag
    assert choice.build.sets
    assert codes(choice) == {"forced"}
    assert choice.uncovered == uncovered
    if tag == "cu132":
        assert {each.torchaudio for each in choice.build.sets} == {None}


def test_force_finds_no_wheels_where_there_are_none() -> None:
    with pytest.raises(PlatformUnsupportedError):
        choose(forced="default", force=True)
    with pytest.raises(GpuUnsupportedError) as caught:
        choose(forced="cu130", force=True, os="macos", machine="arm64", macos="15.0")
    assert "nothing of cu130" in (caught.value.hint or "")
    with pytest.raises(PythonUnsupportedError):
        choose("diffusers", forced="cu126", force=True, gpus=nvidia(89), driver="580.95.05", python="3.15")


def test_a_build_by_name_that_works_needs_no_force() -> None:
    choice = choose(forced="cu118", gpus=nvidia(89), driver="580.95.05")
    assert choice.build.torch_backend == "cu118"
    assert choice.reasons[0] == "cu118 was named."
    assert "forced" not in codes(choice)
    assert choose(forced="cu130", gpus=nvidia(61, 120), driver="580.95.05").uncovered == ("GPU of 61",)
    assert choose(forced="cpu", gpus=nvidia(130), driver="620.10").build.local_tag == "cpu"
    assert choose(forced="xpu", gpus=[{"name": "Arc A770", "vendor": "intel"}]).build.torch_backend == "xpu"


def test_cpu_by_name_is_the_default_index_on_macos() -> None:
    assert choose(forced="cpu", os="macos", machine="arm64", macos="15.0").build.torch_backend == "default"


def test_virtual_code_counts_only_for_a_build_by_name_and_only_on_a_driver_as_new_as_its_toolkit() -> None:
    choice = choose(forced="cu130", gpus=nvidia(130), driver="620.10")
    assert choice.build.ptx == (120,)
    assert "compiled-by-the-driver" in codes(choice)
    with pytest.raises(GpuUnsupportedError):
        choose(forced="cu130", gpus=nvidia(130), driver="580.10")
    with pytest.raises(GpuUnsupportedError):
        choose(gpus=nvidia(130), driver="620.10")


def test_an_unknown_build_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no torch build 'cu140'; known are cu130, cu132, .*cpu"):
        choose(forced="cu140", force=True)


# --- speed ------------------------------------------------------------------------------------------


def test_a_choice_takes_less_than_a_millisecond() -> None:
    found = machine(gpus=nvidia(89), driver="535.183.01")
    times = []
    watcher = sys.gettrace()  # coverage watches every line, which takes longer than the lines
    sys.settrace(None)
    try:
        for _ in range(101):
            start = time.perf_counter()
            select_torch_build(found, TABLE, app="comfyui")
            times.append(time.perf_counter() - start)
    finally:
        sys.settrace(watcher)
    assert statistics.median(times) < 1e-3


def test_no_torch_is_imported() -> None:
    choose(gpus=nvidia(89), driver="580.95.05")
    assert "torch" not in sys.modules


# --- what always holds ------------------------------------------------------------------------------

SMS = (35, 50, 52, 60, 61, 70, 75, 80, 86, 89, 90, 100, 103, 120, 121, 130)
DRIVERS = (
    "450.80.02",
    "470.1",
    "525.60.12",
    "528.32",
    "535.183.01",
    "560.1",
    "572.60",
    "575.1",
    "580.95.05",
    "582.1",
    "590.1",
)
sms = st.lists(st.sampled_from(SMS), min_size=1, max_size=4)
drivers = st.sampled_from((*DRIVERS, "595.58.03", "620.10"))
systems = st.sampled_from([("linux", "x86_64"), ("wsl", "x86_64"), ("windows", "x86_64"), ("linux", "aarch64")])
apps = st.sampled_from(["comfyui", "diffusers"])
pythons = st.sampled_from(["3.10", "3.12", "3.14", "3.15"])
ORDER = [build.tag for build in TABLE.builds]


def plain_machine(*found: int, driver: str | None, system: tuple[str, str] = ("linux", "x86_64")) -> Machine:
    os, architecture = system
    return Machine(
        os=SYSTEMS[os],
        os_release="11",
        is_wsl=os == "wsl",
        architecture=architecture,
        libc="glibc 2.36",
        python_version="3.12.1",
        gpus=tuple(
            Gpu(vendor="nvidia", name=f"GPU of {sm}", index=at, uuid=str(at), compute_capability=capability(sm))
            for at, sm in enumerate(found)
        ),
        driver_version=driver,
        probes=(ProbeResult(source="nvml", is_ok=True, detail="it answers"),),
    )


def outcome(found: Machine, app: App, python: str) -> TorchChoice | UnsupportedMachineError:
    try:
        return select_torch_build(found, TABLE, app=app, python_version=python)
    except UnsupportedMachineError as error:
        return error


def runs_by_the_rules(code: int, sm: int) -> bool:
    """Say whether x86 and SBSA code runs on a card, by NVIDIA's rule written down a second time; no Jetsons."""
    (code_major, code_minor), (major, minor) = divmod(code, 10), divmod(sm, 10)
    return code_major == major and code_minor <= minor


def unreached(build: TorchBuild, found: list[int]) -> set[str]:
    return {f"GPU of {sm}" for sm in found if not any(runs_by_the_rules(code, sm) for code in build.sm)}


@given(found=sms, driver=drivers, system=systems, app=apps, python=pythons)
def test_the_code_of_a_choice_reaches_every_gpu_that_is_not_named_as_left_out(
    found: list[int], driver: str, system: tuple[str, str], app: App, python: str
) -> None:
    choice = outcome(plain_machine(*found, driver=driver, system=system), app, python)
    if isinstance(choice, TorchChoice):
        assert unreached(choice.build, found) <= set(choice.uncovered)
        assert ("mixed-gpus" in codes(choice)) or not choice.uncovered
        assert len(choice.uncovered) < len(found)
        assert choice.build.sets
        assert list(choice.build.sets) == sorted(choice.build.sets, key=lambda each: release(each.torch), reverse=True)
        installed = parse_driver_version(driver)
        assert installed is not None
        assert installed >= ((528, 33) if system[0] in ("windows", "wsl") else (525, 60, 13))
    else:
        assert str(choice)
        assert choice.hint


def release(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


@given(found=sms, older=st.sampled_from(SMS), driver=drivers, system=systems, app=apps, python=pythons)
def test_an_older_gpu_never_turns_an_error_into_a_build_silently_and_never_makes_a_build_newer(
    found: list[int], older: int, driver: str, system: tuple[str, str], app: App, python: str
) -> None:
    older = min(older, *found)
    put = partial(plain_machine, driver=driver, system=system)
    before, after = outcome(put(*found), app, python), outcome(put(*found, older), app, python)
    if isinstance(after, TorchChoice) and isinstance(before, UnsupportedMachineError):
        assert after.uncovered
        assert "mixed-gpus" in codes(after)
    if isinstance(after, TorchChoice) and isinstance(before, TorchChoice):
        assert ORDER.index(after.build.torch_backend) >= ORDER.index(before.build.torch_backend)


@given(found=sms, pair=st.lists(drivers, min_size=2, max_size=2), system=systems, app=apps, python=pythons)
def test_a_newer_driver_never_makes_an_error_of_a_choice_but_where_its_branch_dropped_the_gpus(
    found: list[int], pair: list[str], system: tuple[str, str], app: App, python: str
) -> None:
    low, high = sorted(pair, key=release)
    before = outcome(plain_machine(*found, driver=low, system=system), app, python)
    after = outcome(plain_machine(*found, driver=high, system=system), app, python)
    if isinstance(before, TorchChoice) and isinstance(after, UnsupportedMachineError):
        served = [sm for sm in found if f"GPU of {sm}" not in before.uncovered]
        assert all(sm < 75 for sm in served)
        assert release(high) >= (590,) > release(low)


@given(found=sms, driver=drivers, system=systems)
def test_the_order_in_which_gpus_are_listed_does_not_matter(
    found: list[int], driver: str, system: tuple[str, str]
) -> None:
    one = outcome(plain_machine(*found, driver=driver, system=system), "comfyui", "3.12")
    other = outcome(plain_machine(*reversed(found), driver=driver, system=system), "comfyui", "3.12")
    if isinstance(one, TorchChoice):
        assert isinstance(other, TorchChoice)
        assert (one.build, sorted(one.uncovered)) == (other.build, sorted(other.uncovered))
    else:
        assert type(one) is type(other)


def test_all_gpus_are_tried_before_any_is_left_out_and_the_newest_is_left_out_last() -> None:
    from provisioner.torch.compatibility import Device

    one, two, three = (Device(name=str(sm), sms=(sm,)) for sm in (61, 86, 120))
    groups = [tuple(device.name for device in group) for group in subsets((three, one, two))]
    assert groups == [
        ("120", "61", "86"),
        ("120", "86"),
        ("120",),
        ("61", "86"),
        ("86",),
        ("61",),
    ]
