"""On a real GPU: the two ways of asking about it agree, and the whole detection finds it."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from provisioner.disk.locations import file_system_of
from provisioner.machine.detection import detect_machine, read_nvidia_smi
from provisioner.machine.graphics import read_graphics
from provisioner.machine.host import LocalHost
from provisioner.machine.nvml import read_nvml
from provisioner.machine.process import run_process
from provisioner.machine.readings import NvidiaReading, normal_pci_bus_id

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def nvml() -> NvidiaReading:
    reading = read_nvml()
    assert reading.reason is None, reading.reason
    return reading


@pytest.fixture(scope="module")
def smi() -> NvidiaReading:
    reading = read_nvidia_smi(run_process, LocalHost(file_system_of=file_system_of).nvidia_smi_paths())
    assert reading is not None, "no nvidia-smi on this machine"
    assert reading.reason is None, reading.reason
    return reading


def test_nvml_and_nvidia_smi_name_the_same_driver(nvml: NvidiaReading, smi: NvidiaReading) -> None:
    assert nvml.driver_version == smi.driver_version
    assert nvml.driver_version is not None


def test_nvml_and_nvidia_smi_describe_the_same_gpus(nvml: NvidiaReading, smi: NvidiaReading) -> None:
    by_uuid = {device.uuid: device for device in smi.devices}
    assert nvml.devices
    assert len(by_uuid) == len(nvml.devices)
    for device in nvml.devices:
        staging = by_uuid[device.uuid]
        assert (device.name, device.compute_capability) == (staging.name, staging.compute_capability)
        assert normal_pci_bus_id(device.pci_bus_id or "") == normal_pci_bus_id(staging.pci_bus_id or "-")
        assert (device.is_mig_enabled, device.is_display_active) == (staging.is_mig_enabled, staging.is_display_active)


def test_nvml_and_nvidia_smi_count_the_same_memory(nvml: NvidiaReading, smi: NvidiaReading) -> None:
    by_uuid = {device.uuid: device for device in smi.devices}
    for device in nvml.devices:
        total, staging = device.memory_total_bytes, by_uuid[device.uuid].memory_total_bytes
        assert (total is None) == (staging is None)
        if total is not None and staging is not None:
            assert abs(total - staging) < 2**20  # nvidia-smi rounds to MiB


def test_the_kernel_names_the_driver_that_nvml_names(nvml: NvidiaReading) -> None:
    files = LocalHost(file_system_of=file_system_of).kernel_driver_files()
    if not files:
        pytest.skip("no kernel files about the driver here (WSL, Windows)")
    assert nvml.driver_version is not None
    assert any(nvml.driver_version in text for _, text in files)


@pytest.mark.parametrize("visible", [None, "", "7"])
def test_detection_finds_every_gpu_whatever_cuda_may_see(nvml: NvidiaReading, visible: str | None) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "KLEIN_SETUP_MACHINE"}
    if visible is not None:
        environ["CUDA_VISIBLE_DEVICES"] = visible
    started = time.perf_counter()
    machine = detect_machine(
        nvml=read_nvml,
        run=run_process,
        host=LocalHost(file_system_of=file_system_of, environ=environ),
        graphics=partial(read_graphics, run=run_process),
        environ=environ,
        paths=(Path.cwd(),),
    )
    seconds = time.perf_counter() - started
    found = [gpu for gpu in machine.gpus if gpu.vendor == "nvidia"]
    assert [gpu.uuid for gpu in found] == [device.uuid for device in nvml.devices]
    assert machine.driver_version == nvml.driver_version
    assert machine.cuda_driver_version is not None
    assert seconds < 2, f"detection took {seconds:.2f} s"
    assert not [probe for probe in machine.probes if probe.source == "PCI bus"], machine.probes
