"""What nvidia-smi really prints, read by the parser."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from provisioner.machine.readings import (
    NVIDIA_SMI_FIELDS,
    fields_after_refusal,
    nvidia_smi_arguments,
    parse_kernel_driver_version,
    parse_nvidia_smi,
)

DATA = Path(__file__).parent / "data" / "nvml-h200-580"
ANSWER = (DATA / "nvidia-smi-query.csv").read_text(encoding="utf-8")


def test_the_recorded_answer_is_one_to_the_question_we_ask() -> None:
    recorded = json.loads((DATA / "nvidia-smi-arguments.json").read_text(encoding="utf-8"))
    assert recorded == list(nvidia_smi_arguments(NVIDIA_SMI_FIELDS))


def test_reads_the_recorded_answer() -> None:
    reading = parse_nvidia_smi(ANSWER, NVIDIA_SMI_FIELDS)
    assert reading.reason is None
    assert reading.failures == ()
    assert reading.driver_version == "580.159.04"
    (device,) = reading.devices
    assert device.name == "NVIDIA H200"
    assert device.compute_capability == (9, 0)
    assert device.is_display_active is False
    assert device.is_mig_enabled is False
    assert device.failures == ()


def test_nvidia_smi_and_nvml_agree_on_the_memory_of_the_recorded_gpu() -> None:
    nvml = json.loads((DATA / "nvml-and-torch.json").read_text(encoding="utf-8"))["nvmlDeviceGetMemoryInfo_v2"]
    (device,) = parse_nvidia_smi(ANSWER, NVIDIA_SMI_FIELDS).devices
    assert device.memory_total_bytes == nvml["total"]
    assert device.memory_reserved_bytes is not None
    assert abs(device.memory_reserved_bytes - nvml["reserved"]) < 2**20  # nvidia-smi rounds to MiB


def test_units_in_the_header_are_the_ones_the_parser_assumes() -> None:
    header = next(csv.reader((DATA / "nvidia-smi.csv").read_text(encoding="utf-8").splitlines(), skipinitialspace=True))
    assert {"memory.total [MiB]", "memory.free [MiB]"} <= set(header)


@pytest.mark.parametrize("file", ["/sys/module/nvidia/version", "/proc/driver/nvidia/version"])
def test_the_kernels_files_name_the_same_driver(file: str) -> None:
    files = json.loads((DATA / "nvml-and-torch.json").read_text(encoding="utf-8"))["files"]
    assert parse_kernel_driver_version(files[file]) == "580.159.04"


def test_an_old_refusal_as_it_was_recorded_is_understood() -> None:
    said = (DATA / "nvidia-smi-refusal.txt").read_text(encoding="utf-8")
    assert fields_after_refusal(("index", "no_such_field", "name"), said) == ("index", "name")
