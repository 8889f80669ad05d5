"""Which torch build AMD, Intel and Apple machines get, and why; what it takes beside, and what FP8 does there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from provisioner.core.errors import GpuUnknownError, GpuUnsupportedError, UnsupportedMachineError, UsageError
from provisioner.core.models import Gpu, Machine, OperatingSystem
from provisioner.files.choose_set import choose_set
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text, read_table_text
from provisioner.torch.build_table import parse_torch_table
from provisioner.torch.builds import App, TorchChoice
from provisioner.torch.card_table import amd_card, card_named, with_known_cards
from provisioner.torch.select import select_torch_build

CASES = yaml.safe_load((Path(__file__).parent / "data" / "torch_cases_beyond_cuda.yaml").read_text(encoding="utf-8"))
TEXT, FILE = read_table_text("torch")
TABLE = parse_torch_table(TEXT, file=FILE)
SYSTEMS: dict[str, OperatingSystem] = {"linux": "linux", "wsl": "linux", "windows": "windows", "macos": "macos"}
GIB = 1024**3


def machine(*gpus: Gpu, **case: Any) -> Machine:  # noqa: ANN401 - keys of a case
    """Return the machine of a case."""
    system = case.get("system", "linux")
    listed = gpus or tuple(gpu_of(each, at) for at, each in enumerate(case.get("gpus", ())))
    memory = case.get("memory_gib", 64) * GIB
    return Machine(
        os=SYSTEMS[system],
        os_release=case.get("release", "6.1.0-18-amd64"),
        is_wsl=system == "wsl",
        architecture=case.get("architecture", "x86_64"),
        libc="glibc 2.39" if SYSTEMS[system] == "linux" else None,
        python_version=case.get("python", "3.12"),
        distribution=case.get("distribution"),
        gpus=listed,
        driver_version=case.get("driver"),
        memory_total_bytes=memory,
    )


def gpu_of(given: dict[str, Any], index: int) -> Gpu:
    known: dict[str, Any] = {"uuid": f"GPU-{index}"} if given["vendor"] == "nvidia" else {}
    if "capability" in given:
        major, _, minor = given["capability"].partition(".")
        known["compute_capability"] = (int(major), int(minor))
    return Gpu(index=index, **known, **{name: value for name, value in given.items() if name != "capability"})


def choose(found: Machine, app: App = "comfyui", **options: Any) -> TorchChoice:  # noqa: ANN401
    return select_torch_build(found, TABLE, app=app, **options)


def codes(choice: TorchChoice) -> set[str]:
    return {warning.code for warning in choice.warnings}


# --- the cases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["id"])
def test_every_case_holds(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in case.get("variables", {}).items():
        monkeypatch.setenv(name, value)
    expected = case["expect"]
    if "error" in expected:
        with pytest.raises(UnsupportedMachineError) as caught:
            choose(machine(**case), case.get("app", "comfyui"))
        assert caught.value.code == expected["error"]
        assert expected.get("says", "") in (caught.value.hint or "")
        assert caught.value.hint
        return
    choice = choose(machine(**case), case.get("app", "comfyui"))
    assert choice.build.torch_backend == expected["build"]
    assert choice.build.sets
    assert all(each.torch in SpecifierSet(expected["torch"]) for each in choice.build.sets)
    assert list(choice.build.device_extras) == expected.get("extras", [])
    assert codes(choice) >= set(expected.get("warnings", ()))
    assert choice.reasons
    if "set" in expected:
        assert set_for(machine(**case), None) == expected["set"]


def set_for(found: Machine, named: str | None) -> str:
    text, file = read_manifest_text("flux2-klein-4b")
    return choose_set(parse_manifest(text, file=file), named, kind="comfyui", look=lambda: found).set.id


def test_the_cases_are_whole() -> None:
    ids = [case["id"] for case in CASES["cases"]]
    assert len(ids) == len(set(ids)) == 45 + 7
    assert all(case["source"] and case["basis"] in "ABC" for case in CASES["cases"])


# --- finding a card ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pci_id", "gfx"),
    [
        ("AMD Radeon RX 7900 XTX", None, "gfx1100"),
        ("AMD Radeon RX 7700 XT", None, "gfx1101"),
        ("AMD Radeon(TM) RX 7700S", None, "gfx1102"),
        ("AMD Radeon RX 6800M", None, "gfx1031"),
        ("AMD Radeon RX 6800S", None, "gfx1032"),
        ("AMD Radeon RX 6800", None, "gfx1030"),
        ("AMD Radeon PRO W6800", None, "gfx1030"),
        ("AMD Radeon(TM) 8060S Graphics", None, "gfx1151"),
        ("AMD Radeon(TM) Graphics", "1002:15bf", "gfx1103"),
        ("AMD Radeon(TM) Graphics", "1002:13C0", "gfx1036"),
        ("AMD Radeon RX 9070", "1002:744c", "gfx1100"),  # the id counts, a name can be anything
        ("AMD Radeon(TM) Graphics", None, None),
        ("AMD Radeon RX 99700 XT", None, None),
        ("Radeon RX Vega", None, "gfx900"),
        ("AMD Radeon(TM) RX Vega 11 Graphics", None, "gfx902"),
    ],
)
def test_on_windows_a_card_is_found_by_its_pci_id_and_else_by_its_name(
    name: str, pci_id: str | None, gfx: str | None
) -> None:
    found = machine(Gpu(vendor="amd", name=name, index=0, pci_id=pci_id), system="windows", release="11")
    assert with_known_cards(found, TABLE.amd_gpus, TABLE.intel_gpus).gpus[0].architecture == gfx


def test_on_linux_only_the_kernel_tells_an_architecture() -> None:
    """Without the compute driver torch cannot use the card, whatever it is."""
    found = machine(Gpu(vendor="amd", name="AMD GPU (1002:744c)", index=0, pci_id="1002:744c"))
    assert with_known_cards(found, TABLE.amd_gpus, TABLE.intel_gpus).gpus[0].architecture is None
    with pytest.raises(GpuUnknownError, match="KFD"):
        choose(found)


def test_one_architecture_has_cards_that_amd_validated_and_others() -> None:
    def row(pci_id: str | None) -> bool:
        card = amd_card(Gpu(vendor="amd", name="x", index=0, architecture="gfx1030", pci_id=pci_id), TABLE.amd_gpus)
        assert card is not None
        return card.is_validated

    assert [row("1002:73a3"), row("1002:73bf"), row(None)] == [True, False, False]
    strange = Gpu(vendor="amd", name="x", index=0, architecture="gfx1030", pci_id="1002:744c")
    assert amd_card(strange, TABLE.amd_gpus) == amd_card(replace(strange, pci_id=None), TABLE.amd_gpus)
    assert amd_card(replace(strange, architecture="gfx777"), TABLE.amd_gpus) is None


@pytest.mark.parametrize(
    ("name", "pci_id", "is_integrated"),
    [
        ("Intel(R) Arc(TM) B580 Graphics", None, False),
        ("Intel(R) Arc(TM) Graphics", None, True),
        ("Intel(R) Graphics", "8086:7d55", True),
        ("Intel(R) Arc(TM) B390 GPU", None, True),
        ("Intel(R) Arc(TM) 140V GPU (16GB)", None, True),
        ("Intel(R) UHD Graphics 770", "8086:4680", None),
    ],
)
def test_intel_cards_and_processors_are_told_apart(name: str, pci_id: str | None, is_integrated: bool | None) -> None:
    row = card_named(Gpu(vendor="intel", name=name, index=0, pci_id=pci_id), TABLE.intel_gpus)
    assert (row.is_integrated if row is not None else None) is is_integrated


# --- AMD's own build ----------------------------------------------------------------------------------

RX_7900 = Gpu(vendor="amd", name="AMD Radeon RX 7900 XTX", index=0, pci_id="1002:744c", adrenalin="26.8.1")
WINDOWS = {"system": "windows", "release": "11", "python": "3.13"}


def test_amds_build_says_what_it_takes_to_install_it() -> None:
    build = choose(machine(RX_7900, **WINDOWS)).build
    assert build.index_url == "https://stable.repo.amd.com/rocm/whl-next"
    assert (build.local_tag, build.is_alone, build.names_digests) == ("rocm10.0.0", True, False)
    assert build.device_extras == ("device-gfx1100",)
    assert build.source_packages == ("rocm",)
    assert [(each.torch, each.torchvision, each.torchaudio) for each in build.sets] == [
        ("2.13.0", "0.28.0", "2.11.0.2")
    ]
    assert choose(machine(RX_7900, **WINDOWS), "diffusers").build.sets[0].torchaudio is None


def test_a_mirror_of_amds_index_is_the_mirrors_address_and_the_tag() -> None:
    mirrored = choose(machine(RX_7900, **WINDOWS), index_base="https://mirror.example/whl/")
    assert mirrored.build.index_url == "https://mirror.example/whl/rocm10.0.0"


def test_builds_for_other_systems_are_no_reason_and_no_runner_up() -> None:
    choice = choose(machine(RX_7900, **WINDOWS))
    assert "win_amd64" not in " ".join((*choice.reasons, choice.runner_up or ""))
    linux = choose(machine(Gpu(vendor="amd", name="RX 6700 XT", index=0, architecture="gfx1031")))
    assert "rocm7.2 was not chosen: it has no code for the RX 6700 XT (gfx1031)." in linux.reasons


def test_amds_build_is_estimated_with_the_packages_of_one_architecture() -> None:
    estimate = TABLE.download_of("rocm10.0.0")
    assert estimate.fetched_bytes < TABLE.download_of("rocm7.2").fetched_bytes / 2


def test_a_card_that_nobody_knows_can_be_given_the_packages_of_all() -> None:
    unknown = machine(Gpu(vendor="amd", name="AMD Radeon Graphics", index=0), **WINDOWS)
    with pytest.raises(GpuUnknownError) as caught:
        choose(unknown)
    assert "--torch rocm10.0.0 --force" in (caught.value.hint or "")
    assert choose(unknown, forced="rocm10.0.0", force=True).build.device_extras == ("device-all",)
    old = machine(Gpu(vendor="amd", name="Radeon RX 580 Series", index=0), **WINDOWS)
    assert choose(old, forced="rocm10.0.0", force=True).build.device_extras == ("device-all",)
    known = choose(machine(RX_7900, **WINDOWS), forced="rocm10.0.0")
    assert known.build.device_extras == ("device-gfx1100",)


@pytest.mark.parametrize("tag", ["rocm7.14.1", "rocm7.2.1"])
def test_a_build_that_is_known_to_be_broken_is_refused_with_the_reason(tag: str) -> None:
    with pytest.raises(UsageError, match=r"hipErrorInvalidValue|crash in torch"):
        choose(machine(RX_7900, **WINDOWS), forced=tag, force=True)


def test_wrong_numbers_are_refused_even_by_name_and_named_when_forced() -> None:
    deck = machine(Gpu(vendor="amd", name="Deck", index=0, architecture="gfx1033"))
    with pytest.raises(GpuUnsupportedError, match="wrong numbers"):
        choose(deck, forced="rocm10.0.0")
    assert "wrong numbers" in choose(deck, forced="rocm10.0.0", force=True).warnings[0].message


def test_a_card_beside_one_with_wrong_numbers_is_served() -> None:
    deck = Gpu(vendor="amd", name="Deck", index=0, architecture="gfx1033")
    card = Gpu(vendor="amd", name="Card", index=1, architecture="gfx1100")
    choice = choose(machine(deck, card))
    assert (choice.build.torch_backend, choice.uncovered) == ("rocm7.2", ("Deck",))


def test_an_intel_gpu_is_used_where_no_build_serves_the_amd_card() -> None:
    old = Gpu(vendor="amd", name="RX 580", index=0, architecture="gfx803")
    arc = Gpu(vendor="intel", name="Intel(R) Arc(TM) Graphics", index=0)
    choice = choose(machine(old, arc))
    assert choice.build.torch_backend == "xpu"
    assert "Ignored: RX 580 (no build supports it here)." in choice.reasons


# --- warnings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ({"adrenalin": "26.8.1"}, set()),
        ({"adrenalin": "26.10.41.05"}, set()),
        ({"adrenalin": "26.6.4"}, {"amd-driver"}),
        ({"adrenalin": None, "driver_version": "32.0.31041.1004"}, set()),
        ({"adrenalin": None, "driver_version": "31.0.24027.1012"}, {"amd-driver"}),
        ({"adrenalin": "26.8.1", "driver_version": "1.0.0.0"}, set()),  # AMD's own number counts
        ({"adrenalin": None}, set()),
        ({"adrenalin": "what"}, set()),
    ],
)
def test_an_older_radeon_driver_is_a_warning(gpu: dict[str, str | None], expected: set[str]) -> None:
    found = codes(choose(machine(replace(RX_7900, **gpu), **WINDOWS)))  # type: ignore[arg-type]
    assert found == {"no-fp8", "no-digests", *expected}


@pytest.mark.parametrize(
    ("case", "is_warned"),
    [
        ({"distribution": "ubuntu 24.04", "release": "6.17.0-14-generic"}, False),
        ({"distribution": "ubuntu 24.04", "release": "7.0.0-3-generic"}, True),
        ({"distribution": "ubuntu 26.04", "release": "7.0.0-3-generic"}, False),
        ({"distribution": "arch", "release": "7.1.2-arch1"}, True),
        ({"release": "7.1.2"}, False),  # nobody knows
        ({"distribution": "ubuntu 24.04", "release": "6.6.0-microsoft", "system": "wsl"}, False),
    ],
)
def test_a_system_that_amd_did_not_validate_is_a_warning(case: dict[str, str], is_warned: bool) -> None:
    card = Gpu(vendor="amd", name="Card", index=0, architecture="gfx1201")
    assert ("system-not-validated" in codes(choose(machine(card, **case)))) is is_warned


def test_in_wsl_without_a_gpu_the_way_to_one_is_said() -> None:
    assert codes(choose(machine(system="wsl"))) == {"no-gpu-in-wsl"}
    assert codes(choose(machine(system="linux"))) == set()
    arc = Gpu(vendor="intel", name="Intel(R) Arc(TM) B580", index=0)
    assert "no-gpu-in-wsl" not in codes(choose(machine(arc, system="wsl")))


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (Gpu(vendor="amd", name="RX 9070", index=0, architecture="gfx1201"), set()),
        (Gpu(vendor="amd", name="MI355X", index=0, architecture="gfx950"), set()),
        (Gpu(vendor="amd", name="RX 7900", index=0, architecture="gfx1100"), {"no-fp8"}),
        (Gpu(vendor="amd", name="8060S", index=0, architecture="gfx1151"), {"no-fp8", "shared-memory"}),
        (Gpu(vendor="amd", name="RX 6900 XT", index=0, architecture="gfx1030"), {"no-fp8", "card-not-validated"}),
        (
            Gpu(vendor="amd", name="VII", index=0, architecture="gfx906"),
            {"no-fp8", "card-not-validated", "legacy-last"},
        ),
        (Gpu(vendor="intel", name="Intel(R) Arc(TM) B580", index=0), {"no-fp8"}),
        (Gpu(vendor="intel", name="Intel(R) Arc(TM) 140V", index=0), {"no-fp8", "shared-memory"}),
        (Gpu(vendor="intel", name="Intel(R) UHD 770", index=0), set()),
    ],
)
def test_what_fp8_does_on_a_gpu_and_whether_its_memory_is_shared_is_said(gpu: Gpu, expected: set[str]) -> None:
    assert codes(choose(machine(gpu))) == expected


def test_an_intel_card_beside_the_graphics_of_the_processor_shares_no_memory() -> None:
    card = Gpu(vendor="intel", name="Intel(R) Arc(TM) B580 Graphics", index=0)
    inside = Gpu(vendor="intel", name="Intel(R) Arc(TM) Graphics", index=1)
    assert codes(choose(machine(card, inside))) == {"no-fp8"}
    assert codes(choose(machine(card, inside), forced="xpu")) == {"no-fp8"}


@pytest.mark.parametrize(("capability", "architecture"), [((12, 1), "aarch64"), ((11, 0), "aarch64")])
def test_nvidia_chips_that_share_the_computers_memory_say_so(capability: tuple[int, int], architecture: str) -> None:
    gpu = Gpu(vendor="nvidia", name="GB10", index=0, uuid="GPU-1", compute_capability=capability)
    assert "shared-memory" in codes(choose(machine(gpu, architecture=architecture, driver="580.126.09")))


# --- memory that is shared, and the set ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "memory_gib", "chosen"),
    [
        (Gpu(vendor="amd", name="8060S", index=0, architecture="gfx1151", memory_total_bytes=GIB // 2), 125, "fp8"),
        (Gpu(vendor="amd", name="8060S", index=0, architecture="gfx1151", memory_total_bytes=96 * GIB), 31, "fp8"),
        (Gpu(vendor="amd", name="780M", index=0, architecture="gfx1103", memory_total_bytes=2 * GIB), 14, "fp8-lean"),
        (
            Gpu(vendor="amd", name="RX 7600", index=0, architecture="gfx1102", memory_total_bytes=8 * GIB),
            64,
            "fp8-lean",
        ),
    ],
)
def test_the_memory_of_the_computer_counts_where_a_gpu_shares_it(gpu: Gpu, memory_gib: int, chosen: str) -> None:
    found = with_known_cards(machine(gpu, memory_gib=memory_gib), TABLE.amd_gpus, TABLE.intel_gpus)
    assert set_for(found, "auto") == chosen


# --- Pythons ---------------------------------------------------------------------------------------------

NVIDIA = Gpu(vendor="nvidia", name="RTX 4090", index=0, uuid="GPU-1", compute_capability=(8, 9))


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t"])
@pytest.mark.parametrize(
    "found",
    [
        machine(NVIDIA, driver="580.95.05"),
        machine(NVIDIA, driver="580.95.05", system="windows", release="11"),
        machine(NVIDIA, driver="580.126.09", architecture="aarch64"),
        machine(Gpu(vendor="amd", name="RX 9070", index=0, architecture="gfx1201")),
        machine(Gpu(vendor="intel", name="Intel(R) Arc(TM) B580", index=0)),
        machine(Gpu(vendor="apple", name="M4", index=0), system="macos", release="26.1", architecture="arm64"),
        machine(),
    ],
    ids=["cuda", "cuda-windows", "cuda-aarch64", "rocm", "xpu", "mps", "cpu"],
)
def test_every_python_that_comfyui_runs_on_gets_a_complete_set(found: Machine, python: str) -> None:
    if found.architecture == "aarch64":
        found = replace(found, gpus=(replace(NVIDIA, compute_capability=(9, 0)),))
    choice = choose(found, python_version=f"{python.rstrip('t')}.1{'t' if python.endswith('t') else ''}")
    assert all(each.torchaudio for each in choice.build.sets)
    assert ("free-threaded" in codes(choice)) is python.endswith("t")
    newest = {"3.10": "2.14.1", "3.13t": "2.12.0"}.get(python, "2.15.0")
    assert choice.build.sets[0].torch == (
        "2.14.1" if found.gpus and found.gpus[0].vendor == "amd" and newest > "2.14.1" else newest
    )


@pytest.mark.parametrize("python", ["3.9", "3.15", "3.15t", "3.12t"])
def test_other_pythons_are_refused_for_comfyui(python: str) -> None:
    with pytest.raises(UnsupportedMachineError) as caught:
        choose(machine(NVIDIA, driver="580.95.05"), python_version=python)
    assert caught.value.code == "python-unsupported"


@pytest.mark.parametrize("python", ["3.13t", "3.14t"])
def test_amds_build_has_nothing_for_a_free_threaded_python(python: str) -> None:
    with pytest.raises(UnsupportedMachineError) as caught:
        choose(machine(RX_7900, **WINDOWS), python_version=python)
    assert caught.value.code == "python-unsupported"
    assert caught.value.hint == "Use Python 3.10 to 3.14 for the environment."
