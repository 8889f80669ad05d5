"""The NVML adapter over a recording of a real driver, and over the errors of real drivers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from provisioner.machine.nvml import read_nvml
from provisioner.machine.readings import HostReading, MigDevice, NvidiaDevice, assemble_machine, probes_of

RECORDING = Path(__file__).parent / "data" / "nvml-h200-580" / "nvml-and-torch.json"
QUESTIONS = (
    "nvmlInit",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetCudaDriverVersion",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetDisplayActive",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetCurrentDriverModel",
)
NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
NOT_FOUND = pynvml.NVML_ERROR_NOT_FOUND


class Replay:
    """An NVML that answers what was recorded; `answers` replaces answers for one device or for all.

    Errors are those of the real binding, so their names and texts are, too.
    """

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2

    def __init__(self, answers: dict[Any, Any] | None = None, *, count: int | None = None) -> None:
        self.recorded = json.loads(RECORDING.read_text(encoding="utf-8"))
        self.answers = answers or {}
        self.count = count
        self.is_open = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml") or self.answers.get(name) is AttributeError:
            raise AttributeError(name)

        def answer(device: object = None, *rest: object, version: int | None = None) -> object:
            return self._answer(name, device, *rest, version=version)

        return answer

    def _answer(self, name: str, device: object = None, *rest: object, version: int | None = None) -> object:
        key = f"{name}_v2" if version else name
        places = [(key, device, *rest), (key, device), key]
        value = next((self.answers[place] for place in places if place in self.answers), None)
        if value is None:
            value = self._recorded_answer(key, device)
        if isinstance(value, dict) and "error" in value:
            raise pynvml.NVMLError(value["value"])
        return SimpleNamespace(**value) if isinstance(value, dict) else value

    def _recorded_answer(self, key: str, device: object) -> object:
        if key == "nvmlInit":
            self.is_open = True
            return 0
        if key == "nvmlShutdown":
            self.is_open = False
            return 0
        if key == "nvmlDeviceGetCount" and self.count is not None:
            return self.count
        if key == "nvmlDeviceGetHandleByIndex":
            return device
        return self.recorded["pci"] if key == "nvmlDeviceGetPciInfo" else self.recorded[key]


def refuses(code: int) -> dict[str, Any]:
    return {"error": "recorded", "value": code}


H200 = NvidiaDevice(
    index=0,
    name="NVIDIA H200",
    uuid="GPU-00000000-0000-0000-0000-000000000001",
    pci_bus_id="00000000:00:06.0",
    compute_capability=(9, 0),
    memory_total_bytes=150_754_820_096,
    memory_free_bytes=150_109_880_320,
    memory_reserved_bytes=644_939_776,
    is_display_active=False,
    is_mig_enabled=False,
)


def test_every_question_exists_in_the_real_binding() -> None:
    assert [name for name in QUESTIONS if not callable(getattr(pynvml, name, None))] == []
    assert issubclass(pynvml.NVMLError, Exception)


def test_reads_the_recorded_h200() -> None:
    replay = Replay()
    reading = read_nvml(replay)
    assert reading.reason is None
    assert reading.driver_version == "580.159.04"
    assert reading.cuda_driver_version == (13, 0)
    assert reading.devices == (H200,)
    assert reading.failures == ()
    assert not replay.is_open


def test_older_bindings_answer_with_bytes() -> None:
    replay = Replay(
        {
            "nvmlSystemGetDriverVersion": b"580.159.04",
            "nvmlDeviceGetName": b"NVIDIA H200",
            "nvmlDeviceGetUUID": b"GPU-00000000-0000-0000-0000-000000000001",
            "nvmlDeviceGetPciInfo": {"busId": b"00000000:00:06.0\x00\x00"},
        }
    )
    reading = read_nvml(replay)
    assert reading.driver_version == "580.159.04"
    assert reading.devices == (H200,)


@pytest.mark.parametrize("refusal", [refuses(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND), refuses(NOT_SUPPORTED)])
def test_without_the_second_memory_question_the_first_one_counts(refusal: dict[str, Any]) -> None:
    (device,) = read_nvml(Replay({"nvmlDeviceGetMemoryInfo_v2": refusal})).devices
    assert device.memory_total_bytes == 150_754_820_096
    assert device.memory_free_bytes == 150_109_880_320
    assert device.memory_reserved_bytes is None
    assert device.failures == ()


def test_a_binding_without_the_newer_cuda_question_is_asked_the_older_one() -> None:
    replay = Replay({"nvmlSystemGetCudaDriverVersion_v2": AttributeError, "nvmlSystemGetCudaDriverVersion": 12080})
    assert read_nvml(replay).cuda_driver_version == (12, 8)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver, or a container"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the computer"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "may not access"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
    ],
)
def test_an_nvml_that_cannot_start_is_a_reading_with_its_reason(code: int, words: str) -> None:
    reading = read_nvml(Replay({"nvmlInit": refuses(code)}))
    assert reading.reason is not None
    assert words in reading.reason
    assert reading.devices == ()
    assert [probe.is_ok for probe in probes_of(reading)] == [False]


def test_this_machine_with_or_without_a_driver_is_a_reading() -> None:
    reading = read_nvml()
    assert (reading.reason is None) == (reading.driver_version is not None)


def test_no_gpu_is_no_failure() -> None:
    reading = read_nvml(Replay(count=0))
    assert reading.devices == ()
    assert reading.failures == ()
    assert reading.driver_version == "580.159.04"


@pytest.mark.parametrize(
    ("question", "field", "what"),
    [
        ("nvmlDeviceGetName", "name", "name"),
        ("nvmlDeviceGetUUID", "uuid", "UUID"),
        ("nvmlDeviceGetPciInfo", "pci_bus_id", "PCI address"),
        ("nvmlDeviceGetCudaComputeCapability", "compute_capability", "compute capability"),
        ("nvmlDeviceGetDisplayActive", "is_display_active", None),
        ("nvmlDeviceGetMigMode", "is_mig_enabled", None),
    ],
)
def test_one_refused_question_costs_one_answer(question: str, field: str, what: str | None) -> None:
    replay = Replay({(question, 1): refuses(pynvml.NVML_ERROR_UNKNOWN)}, count=2)
    one, two = read_nvml(replay).devices
    assert one == H200
    assert getattr(two, field) is None
    assert two.failures == ((f"{what}: Unknown Error",) if what else ())
    others = [name for name in NvidiaDevice.__dataclass_fields__ if name not in (field, "failures", "index")]
    assert [name for name in others if getattr(two, name) != getattr(H200, name)] == []


def test_a_lost_gpu_does_not_hide_the_other_one() -> None:
    replay = Replay({("nvmlDeviceGetHandleByIndex", 0): refuses(pynvml.NVML_ERROR_GPU_IS_LOST)}, count=2)
    lost, well = read_nvml(replay).devices
    assert lost == NvidiaDevice(index=0, failures=("handle: GPU is lost",))
    assert well.name == "NVIDIA H200"


def test_gb10_has_no_memory_answer_and_everything_else() -> None:
    replay = Replay(
        {
            "nvmlDeviceGetName": "NVIDIA GB10",
            "nvmlDeviceGetCudaComputeCapability": (12, 1),
            "nvmlDeviceGetMemoryInfo": refuses(NOT_SUPPORTED),
            "nvmlDeviceGetMemoryInfo_v2": refuses(NOT_SUPPORTED),
        }
    )
    (device,) = read_nvml(replay).devices
    assert (device.memory_total_bytes, device.memory_free_bytes) == (None, None)
    assert device.compute_capability == (12, 1)
    assert device.failures == ("memory: Not Supported",)


@pytest.mark.parametrize(("model", "name"), [(0, "WDDM"), (1, "TCC"), (2, "MCDM"), (9, None)])
def test_names_the_driver_model_of_windows(model: int, name: str | None) -> None:
    (device,) = read_nvml(Replay({"nvmlDeviceGetCurrentDriverModel": model})).devices
    assert device.driver_model == name


def mig_replay() -> Replay:
    """An A100 in MIG mode with two slices in seven slots; the parent does not report its memory."""
    answers: dict[Any, Any] = {
        "nvmlDeviceGetMigMode": [1, 1],
        "nvmlDeviceGetMaxMigDeviceCount": 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": refuses(NOT_FOUND),
        ("nvmlDeviceGetMigDeviceHandleByIndex", 0, 1): "slice-1",
        ("nvmlDeviceGetMigDeviceHandleByIndex", 0, 4): "slice-4",
        ("nvmlDeviceGetUUID", "slice-1"): "MIG-1",
        ("nvmlDeviceGetUUID", "slice-4"): "MIG-4",
    }
    for question in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"):
        answers[question, 0] = refuses(pynvml.NVML_ERROR_NO_PERMISSION)
        answers[question, "slice-1"] = {"total": 10, "free": 9, "reserved": 0}
        answers[question, "slice-4"] = refuses(NOT_SUPPORTED)
    return Replay(answers)


def test_mig_slices_are_read_and_empty_slots_skipped() -> None:
    (device,) = read_nvml(mig_replay()).devices
    assert device.is_mig_enabled is True
    assert device.mig_devices == (
        MigDevice(uuid="MIG-1", memory_total_bytes=10, memory_free_bytes=9),
        MigDevice(uuid="MIG-4"),
    )
    assert device.failures == ("memory: Insufficient Permissions",)


def test_the_machine_of_a_mig_parent_has_its_slice_memory() -> None:
    host = HostReading(
        os="linux", os_release="6", is_wsl=False, architecture="x86_64", libc="glibc 2.36", python_version="3.12.3"
    )
    (gpu,) = assemble_machine(host=host, nvidia=(read_nvml(mig_replay()),)).gpus
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes) == (10, 9)
    assert gpu.mig_devices == ("MIG-1", "MIG-4")


def test_a_driver_version_that_is_none_is_a_failure() -> None:
    reading = read_nvml(Replay({"nvmlSystemGetDriverVersion": "N/A"}))
    assert reading.driver_version is None
    assert reading.failures == ("driver version: not a version: N/A",)


def test_a_failing_shutdown_changes_nothing() -> None:
    replay = Replay({"nvmlShutdown": refuses(pynvml.NVML_ERROR_UNINITIALIZED)})
    assert read_nvml(replay).devices == (H200,)
