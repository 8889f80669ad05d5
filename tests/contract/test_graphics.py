"""Graphics processors read from trees, registries and programs in the form the systems give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from provisioner.core.errors import CommandError
from provisioner.core.models import Gpu
from provisioner.core.ports import RunProcess
from provisioner.machine.graphics import display_class_keys, read_graphics, read_linux_graphics, read_windows_graphics
from provisioner.machine.readings import HostReading, MemoryReading

HOST = HostReading(
    os="linux",
    os_release="6.1",
    is_wsl=False,
    architecture="x86_64",
    libc="glibc 2.36",
    python_version="3.11.7",
    memory=MemoryReading(total_bytes=64 * 2**30),
)


@dataclass(frozen=True)
class Said:
    returncode: int = 0
    stdout: str = ""
    stderr: str = ""
    last_lines: tuple[str, ...] = ()


def no_program(args: Sequence[str | Path], *, timeout_s: float, **_: object) -> Said:
    raise CommandError("sysctl could not be started")


def pci(root: Path, address: str, kind: str, vendor: str, device: str, **files: str) -> None:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, text in {"class": kind, "vendor": vendor, "device": device, **files}.items():
        (folder / name).write_text(f"{text}\n")


def kfd(root: Path, node: int, text: str) -> None:
    folder = root / "sys/class/kfd/kfd/topology/nodes" / str(node)
    folder.mkdir(parents=True)
    (folder / "properties").write_text(text)


# The kernel's form of a node; a processor has neither SIMDs nor an architecture.
PROCESSOR = "cpu_cores_count 16\nsimd_count 0\nvendor_id 0\ngfx_target_version 0\nlocation_id 0\ndomain 0\n"
RX_7900 = (
    "cpu_cores_count 0\nsimd_count 192\nvendor_id 4098\ndevice_id 29772\n"
    "location_id 768\ndomain 0\ngfx_target_version 110000\nunique_id 12345678901234567890\n"
)


def test_a_machine_without_a_pci_bus_has_no_graphics(tmp_path: Path) -> None:
    assert read_linux_graphics(tmp_path).gpus == ()


def test_the_bus_of_the_recorded_h200_machine(tmp_path: Path) -> None:
    """Classes, vendors and devices as /sys gave them on 2026-11-23."""
    pci(tmp_path, "0000:00:00.0", "0x060000", "0x8086", "0x0d57")
    pci(tmp_path, "0000:00:01.0", "0x018000", "0x1af4", "0x1042")
    pci(tmp_path, "0000:00:06.0", "0x030200", "0x10de", "0x2335")
    assert read_linux_graphics(tmp_path).gpus == (
        Gpu(vendor="nvidia", name="NVIDIA GPU (10de:2335)", index=0, pci_bus_id="0000:00:06.0", pci_id="10de:2335"),
    )


def test_amd_has_architecture_and_memory_from_the_kernel(tmp_path: Path) -> None:
    pci(
        tmp_path,
        "0000:03:00.0",
        "0x030000",
        "0x1002",
        "0x744c",
        mem_info_vram_total=str(24 * 2**30),
        mem_info_vram_used=str(2**30),
    )
    kfd(tmp_path, 0, PROCESSOR)
    kfd(tmp_path, 1, RX_7900)
    reading = read_linux_graphics(tmp_path)
    assert reading.gpus == (
        Gpu(
            vendor="amd",
            name="AMD GPU (gfx1100)",
            index=0,
            pci_bus_id="0000:03:00.0",
            pci_id="1002:744c",
            architecture="gfx1100",
            memory_total_bytes=24 * 2**30,
            memory_free_bytes=23 * 2**30,
        ),
    )
    assert reading.probes == ()


def test_amd_without_its_compute_driver_is_a_card_with_a_reason(tmp_path: Path) -> None:
    pci(tmp_path, "0000:03:00.0", "0x030000", "0x1002", "0x744c")
    reading = read_linux_graphics(tmp_path)
    (gpu,) = reading.gpus
    assert (gpu.vendor, gpu.architecture, gpu.memory_total_bytes) == ("amd", None, None)
    assert "KFD" in reading.probes[0].detail
    assert not reading.probes[0].is_ok


@pytest.mark.parametrize(("total", "used"), [("what", "1"), ("0x", "1"), ("", ""), ("-5", "1")])
def test_memory_that_is_no_number_is_not_known(tmp_path: Path, total: str, used: str) -> None:
    kfd(tmp_path, 1, RX_7900)
    pci(tmp_path, "0000:03:00.0", "0x030000", "0x1002", "0x744c", mem_info_vram_total=total, mem_info_vram_used=used)
    (gpu,) = read_linux_graphics(tmp_path).gpus
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes) == (None, None)


def test_the_name_of_a_server_card_is_the_one_it_gives(tmp_path: Path) -> None:
    kfd(tmp_path, 1, RX_7900.replace("110000", "90402").replace("location_id 768", "location_id 17921"))
    pci(tmp_path, "0000:46:00.1", "0x120000", "0x1002", "0x74a1", product_name="AMD Instinct MI300X")
    (gpu,) = read_linux_graphics(tmp_path).gpus
    assert (gpu.name, gpu.architecture, gpu.pci_bus_id) == ("AMD Instinct MI300X", "gfx942", "0000:46:00.1")


def test_vendors_are_numbered_each_for_itself(tmp_path: Path) -> None:
    pci(tmp_path, "0000:00:02.0", "0x030000", "0x8086", "0x46a6")
    pci(tmp_path, "0000:01:00.0", "0x030000", "0x10de", "0x2684")
    pci(tmp_path, "0000:02:00.0", "0x030000", "0x10de", "0x2684")
    pci(tmp_path, "0000:04:00.0", "0x030000", "0x1a03", "0x2000")  # a server's management chip
    pci(tmp_path, "0000:01:00.1", "0x040300", "0x10de", "0x22ba")  # sound
    gpus = read_linux_graphics(tmp_path).gpus
    assert [(gpu.vendor, gpu.index) for gpu in gpus] == [("nvidia", 0), ("nvidia", 1), ("intel", 0)]


def test_an_apple_chip_shares_the_computers_memory() -> None:
    mac = replace(HOST, os="macos", architecture="arm64")
    asked: list[Sequence[str | Path]] = []

    def sysctl(args: Sequence[str | Path], *, timeout_s: float, **_: object) -> Said:
        asked.append(args)
        return Said(stdout="Apple M3 Max\n")

    reading = read_graphics(mac, run=sysctl)
    assert reading.gpus == (
        Gpu(vendor="apple", name="Apple M3 Max", index=0, memory_total_bytes=64 * 2**30, shares_memory=True),
    )
    assert asked == [["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]]


def test_an_apple_chip_whose_name_is_not_told_is_still_there() -> None:
    mac = replace(HOST, os="macos", architecture="arm64")

    def failing(args: Sequence[str | Path], *, timeout_s: float, **_: object) -> Said:
        return Said(returncode=1)

    runs: tuple[RunProcess, ...] = (no_program, failing)
    for run in runs:
        reading = read_graphics(mac, run=run)
        assert [gpu.vendor for gpu in reading.gpus] == ["apple"]
        assert [probe.is_ok for probe in reading.probes] == [False]


def test_a_mac_with_an_intel_processor_has_no_gpu_for_torch() -> None:
    reading = read_graphics(replace(HOST, os="macos"), run=no_program)
    assert reading.gpus == ()
    assert not reading.probes[0].is_ok


def test_the_registry_of_windows() -> None:
    keys: list[dict[str, object]] = [
        {"DriverDesc": "Microsoft Basic Display Adapter", "MatchingDeviceId": r"pci\cc_0300"},
        {"DriverDesc": "Microsoft Remote Display Adapter", "MatchingDeviceId": "root\\rdpbus"},
        {
            "DriverDesc": "NVIDIA GeForce RTX 4090",
            "MatchingDeviceId": r"pci\ven_10de&dev_2684",
            "HardwareInformation.qwMemorySize": 24 * 2**30,
        },
        {
            "DriverDesc": "AMD Radeon RX 6800",
            "MatchingDeviceId": r"PCI\VEN_1002&DEV_73BF&REV_C3",
            "HardwareInformation.qwMemorySize": (16 * 2**30).to_bytes(8, "little"),
            "DriverVersion": "32.0.31041.1004",
            "RadeonSoftwareVersion": "26.8.1",
        },
        {
            "MatchingDeviceId": r"pci\ven_8086&dev_46a6",
            "HardwareInformation.qwMemorySize": b"odd",
            "DriverVersion": 32,
            "RadeonSoftwareVersion": "26.8.1",  # a Radeon's, which a switched laptop may leave in another key
        },
        {"DriverDesc": "Old", "MatchingDeviceId": "pci\\ven_1002", "RadeonSoftwareVersion": ""},
        {},
    ]
    reading = read_graphics(replace(HOST, os="windows"), run=no_program, registry=lambda: keys)
    assert reading.gpus == (
        Gpu(
            vendor="nvidia",
            name="NVIDIA GeForce RTX 4090",
            index=0,
            pci_id="10de:2684",
            memory_total_bytes=24 * 2**30,
        ),
        Gpu(
            vendor="amd",
            name="AMD Radeon RX 6800",
            index=0,
            pci_id="1002:73bf",
            memory_total_bytes=16 * 2**30,
            driver_version="32.0.31041.1004",
            adrenalin="26.8.1",
        ),
        Gpu(vendor="intel", name="Intel GPU", index=0, pci_id="8086:46a6"),
        Gpu(vendor="amd", name="Old", index=1),
    )


def test_a_registry_that_cannot_be_read_is_a_failed_probe() -> None:
    def closed() -> list[dict[str, object]]:
        raise PermissionError("access is denied")

    reading = read_windows_graphics(closed)
    assert reading.gpus == ()
    assert "access is denied" in reading.probes[0].detail


def test_this_computers_registry_is_readable_or_absent() -> None:
    assert all(isinstance(values, dict) for values in display_class_keys())


def test_an_unknown_system_says_so() -> None:
    reading = read_graphics(replace(HOST, os="other"), run=no_program)
    assert [probe.is_ok for probe in reading.probes] == [False]
