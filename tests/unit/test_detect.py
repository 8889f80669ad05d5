from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from provisioner.core.errors import CommandError, StorageError, UnreadableError, UsageError
from provisioner.core.models import FileSystem, Gpu, Machine
from provisioner.machine.detection import MACHINE_VARIABLE, detect_machine
from provisioner.machine.readings import GraphicsReading, HostReading, MemoryReading, NvidiaDevice, NvidiaReading
from tests.support.builders import recording_of

GIB = 2**30
LINUX = HostReading(
    os="linux",
    os_release="6.1.0-18-amd64",
    is_wsl=False,
    architecture="x86_64",
    libc="glibc 2.36",
    python_version="3.11.7",
    memory=MemoryReading(total_bytes=64 * GIB, available_bytes=60 * GIB),
)
WSL = replace(LINUX, os_release="5.15.153.1-microsoft-standard-WSL2", is_wsl=True)
WINDOWS = replace(LINUX, os="windows", os_release="11", libc=None)
MAC = replace(LINUX, os="macos", os_release="14.5", libc=None, architecture="arm64")

USR_BIN = Path("/usr/bin/nvidia-smi")
WSL_LIB = Path("/usr/lib/wsl/lib/nvidia-smi")

RTX_4090 = NvidiaDevice(
    index=0,
    name="NVIDIA GeForce RTX 4090",
    uuid="GPU-1",
    pci_bus_id="00000000:01:00.0",
    compute_capability=(8, 9),
    memory_total_bytes=24 * GIB,
)
CARD = Gpu(vendor="nvidia", name="NVIDIA GPU (10de:2684)", index=0, pci_bus_id="0000:01:00.0")
RX_7900 = Gpu(vendor="amd", name="AMD GPU (gfx1100)", index=0, architecture="gfx1100", memory_total_bytes=24 * GIB)
M3 = Gpu(vendor="apple", name="Apple M3 Max", index=0, memory_total_bytes=64 * GIB)

NO_NVML = NvidiaReading(source="nvml", reason="NVML is not on this machine")
NO_GRAPHICS = GraphicsReading(source="PCI bus")

SMI_LINE = "0, NVIDIA GeForce RTX 4090, GPU-1, 00000000:01:00.0, 8.9, 24564, 23000, 300, Enabled, [N/A], 550.144.03\n"
REFUSES_COMPUTE_CAP = 'Field "compute_cap" is not a valid field to query.\n\n'


@dataclass(frozen=True)
class Said:
    returncode: int = 0
    stdout: str = ""
    stderr: str = ""
    last_lines: tuple[str, ...] = ()


@dataclass
class FakeMachine:
    """A machine made of answers; it counts what it is asked."""

    host_reading: HostReading = LINUX
    nvml: NvidiaReading = NO_NVML
    smi: dict[Path, list[Said | CommandError]] = field(default_factory=dict)
    kernel: tuple[tuple[str, str], ...] = ()
    graphics: GraphicsReading = NO_GRAPHICS
    files: dict[Path, str] = field(default_factory=dict)
    disks: Mapping[Path, FileSystem] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def detect(self, *paths: Path) -> Machine:
        return detect_machine(
            nvml=self._nvml,
            run=self._run,
            host=self,
            graphics=self._graphics,
            environ=self.environ,
            paths=paths,
        )

    def _nvml(self) -> NvidiaReading:
        self.asked.append("nvml")
        return self.nvml

    def _run(self, args: Sequence[str | Path], *, timeout_s: float, **more: object) -> Said:
        program = Path(args[0])
        self.asked.append(f"{program} {args[1]}")
        assert timeout_s <= 5
        answer = self.smi[program].pop(0)
        if isinstance(answer, CommandError):
            raise answer
        return answer

    def _graphics(self, host: HostReading) -> GraphicsReading:
        assert host is self.host_reading
        return self.graphics

    def read(self) -> HostReading:
        return self.host_reading

    def file_system_of(self, path: Path) -> FileSystem:
        if path not in self.disks:
            raise StorageError(f"no folder above {path} exists")
        return self.disks[path]

    def read_text(self, path: Path) -> str:
        if path not in self.files:
            raise UnreadableError(f"{path} cannot be read: No such file or directory")
        return self.files[path]

    def kernel_driver_files(self) -> tuple[tuple[str, str], ...]:
        self.asked.append("kernel")
        return self.kernel

    def nvidia_smi_paths(self) -> tuple[Path, ...]:
        return tuple(self.smi)


def answered(*devices: NvidiaDevice, driver: str | None = "580.95.05") -> NvidiaReading:
    return NvidiaReading(source="nvml", driver_version=driver, cuda_driver_version=(13, 0), devices=devices)


def failed_probes(machine: Machine) -> list[str]:
    return [f"{probe.source}: {probe.detail}" for probe in machine.probes if not probe.is_ok]


def test_nvml_alone_is_enough_when_it_answers() -> None:
    fake = FakeMachine(nvml=answered(RTX_4090), smi={USR_BIN: []}, kernel=(("/x", "535.1"),))
    machine = fake.detect()
    assert fake.asked == ["nvml"]
    assert machine.driver_version == "580.95.05"
    assert machine.cuda_driver_version == (13, 0)
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA GeForce RTX 4090"]
    assert failed_probes(machine) == []


def test_nvidia_smi_answers_where_nvml_is_missing() -> None:
    machine = FakeMachine(smi={USR_BIN: [Said(stdout=SMI_LINE)]}).detect()
    (gpu,) = machine.gpus
    assert machine.driver_version == "550.144.03"
    assert machine.cuda_driver_version is None
    assert gpu.compute_capability == (8, 9)
    assert gpu.memory_total_bytes == 24564 * 2**20
    assert gpu.is_display_attached is True
    assert failed_probes(machine) == ["nvml: NVML is not on this machine"]


def test_an_old_nvidia_smi_is_asked_again_without_what_it_rejected() -> None:
    line = "0, NVIDIA TITAN V, GPU-1, 00000000:01:00.0, 12066, 12000, 1, Disabled, [N/A], 470.182.03\n"
    fake = FakeMachine(smi={USR_BIN: [Said(returncode=2, stdout=REFUSES_COMPUTE_CAP), Said(stdout=line)]})
    machine = fake.detect()
    assert machine.driver_version == "470.182.03"
    assert machine.gpus[0].compute_capability is None
    questions = [each for each in fake.asked if each.startswith(str(USR_BIN))]
    assert ["compute_cap" in question for question in questions] == [True, False]


def test_an_nvidia_smi_that_refuses_everything_is_not_asked_for_ever() -> None:
    refusal = Said(returncode=2, stdout="That is not a valid field.")
    fake = FakeMachine(smi={USR_BIN: [refusal] * 20})
    machine = fake.detect()
    assert len([each for each in fake.asked if each.startswith(str(USR_BIN))]) == 2
    assert machine.driver_version is None


def test_the_next_nvidia_smi_is_tried_when_the_first_fails() -> None:
    missing = CommandError("nvidia-smi could not be started")
    fake = FakeMachine(host_reading=WSL, smi={USR_BIN: [missing], WSL_LIB: [Said(stdout=SMI_LINE)]})
    machine = fake.detect()
    assert machine.is_wsl
    assert machine.driver_version == "550.144.03"


def test_an_nvidia_smi_that_hangs_is_a_probe_with_its_reason() -> None:
    hung = CommandError("nvidia-smi did not end within 5 s and was stopped")
    machine = FakeMachine(smi={USR_BIN: [hung]}).detect()
    assert machine.gpus == ()
    assert "nvidia-smi: nvidia-smi did not end within 5 s and was stopped" in failed_probes(machine)


def test_what_a_failing_nvidia_smi_said_is_the_reason() -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nMake sure ...\n"
    machine = FakeMachine(smi={USR_BIN: [Said(returncode=9, stdout=said)]}).detect()
    (probe,) = [each for each in failed_probes(machine) if each.startswith("nvidia-smi")]
    assert "couldn't communicate" in probe
    assert "Make sure" not in probe


def test_the_kernels_file_names_the_driver_where_nothing_else_does() -> None:
    fake = FakeMachine(
        kernel=(("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX  Kernel Module  535.183.01  x"),)
    )
    fake.graphics = GraphicsReading(source="PCI bus", gpus=(CARD,))
    machine = fake.detect()
    assert machine.driver_version == "535.183.01"
    assert machine.gpus == (CARD,)
    assert any("does not list it" in each for each in failed_probes(machine))


def test_a_card_without_any_driver_is_reported_with_what_is_missing() -> None:
    machine = FakeMachine(graphics=GraphicsReading(source="PCI bus", gpus=(CARD,))).detect()
    assert machine.gpus == (CARD,)
    assert machine.driver_version is None
    assert any("the driver is missing or not loaded" in each for each in failed_probes(machine))


def test_one_failing_gpu_of_two_is_completed_by_nvidia_smi() -> None:
    broken = NvidiaDevice(
        index=1, uuid="GPU-2", name="NVIDIA L4", failures=("compute capability: Unknown Error",), memory_total_bytes=GIB
    )
    rows = SMI_LINE + "1, NVIDIA L4, GPU-2, 00000000:02:00.0, 8.9, 23034, 22000, 500, Disabled, Disabled, 580.95.05\n"
    fake = FakeMachine(nvml=answered(RTX_4090, broken), smi={USR_BIN: [Said(stdout=rows)]})
    machine = fake.detect()
    assert [gpu.compute_capability for gpu in machine.gpus] == [(8, 9), (8, 9)]
    assert machine.gpus[1].memory_total_bytes == GIB  # what NVML said stays
    assert machine.driver_version == "580.95.05"
    assert "nvml: GPU 1 (NVIDIA L4): compute capability: Unknown Error" in failed_probes(machine)


def test_gb10_without_a_memory_answer_is_not_asked_twice() -> None:
    gb10 = replace(RTX_4090, name="NVIDIA GB10", compute_capability=(12, 1), memory_total_bytes=None)
    fake = FakeMachine(
        host_reading=replace(LINUX, architecture="aarch64"),
        nvml=answered(replace(gb10, failures=("memory: Not Supported",))),
        smi={USR_BIN: []},
    )
    machine = fake.detect()
    assert fake.asked == ["nvml"]
    assert machine.gpus[0].memory_total_bytes is None
    assert failed_probes(machine) == ["nvml: GPU 0 (NVIDIA GB10): memory: Not Supported"]


def test_windows_with_wddm() -> None:
    registry = GraphicsReading(source="registry", gpus=(replace(CARD, pci_bus_id=None),))
    fake = FakeMachine(
        host_reading=WINDOWS, nvml=answered(replace(RTX_4090, driver_model="WDDM"), driver="572.60"), graphics=registry
    )
    machine = fake.detect()
    assert (machine.os, machine.driver_version) == ("windows", "572.60")
    assert [(gpu.name, gpu.driver_model) for gpu in machine.gpus] == [("NVIDIA GeForce RTX 4090", "WDDM")]


def test_windows_has_no_kernel_files() -> None:
    fake = FakeMachine(host_reading=WINDOWS, kernel=(("/x", "535.1"),))
    assert fake.detect().driver_version is None
    assert "kernel" not in fake.asked


def test_a_mac_is_not_asked_for_nvidia() -> None:
    fake = FakeMachine(host_reading=MAC, graphics=GraphicsReading(source="sysctl", gpus=(M3,)), smi={USR_BIN: []})
    machine = fake.detect()
    assert fake.asked == []
    assert machine.gpus == (M3,)
    assert machine.architecture == "arm64"


def test_amd_alone() -> None:
    machine = FakeMachine(graphics=GraphicsReading(source="PCI bus", gpus=(RX_7900,))).detect()
    assert machine.gpus == (RX_7900,)
    assert machine.driver_version is None


def test_a_machine_without_any_gpu_is_no_error() -> None:
    machine = FakeMachine().detect()
    assert machine.gpus == ()
    assert failed_probes(machine) == ["nvml: NVML is not on this machine"]


@pytest.mark.parametrize("visible", ["", "7", "-1", "GPU-9"])
def test_what_cuda_may_see_is_not_what_is_there(visible: str) -> None:
    machine = FakeMachine(nvml=answered(RTX_4090), environ={"CUDA_VISIBLE_DEVICES": visible}).detect()
    assert len(machine.gpus) == 1


def test_each_file_system_is_reported_once_and_a_missing_one_is_a_fact() -> None:
    home = FileSystem(path=Path("/home"), device=1, total_bytes=100, free_bytes=50)
    data = FileSystem(path=Path("/data"), device=2, total_bytes=200, free_bytes=80)
    disks = {Path("/home/a"): home, Path("/home/b"): home, Path("/data/x"): data}
    machine = FakeMachine(disks=disks).detect(Path("/home/a"), Path("/data/x"), Path("/home/b"), Path("/gone"))
    assert machine.file_systems == (home, data)
    assert "file system: no folder above /gone exists" in [each.replace("\\", "/") for each in failed_probes(machine)]


# --- recordings --------------------------------------------------------------------------------

FILE = Path("/support/machine.json")


def test_a_recorded_machine_is_read_instead_of_this_one() -> None:
    recorded = FakeMachine(nvml=answered(RTX_4090)).detect()
    fake = FakeMachine(files={FILE: recording_of(recorded)}, environ={MACHINE_VARIABLE: str(FILE)})
    machine = fake.detect(Path("/anywhere"))
    assert machine == replace(recorded, recorded_from=str(FILE))
    assert fake.asked == []


def test_an_empty_variable_names_no_recording() -> None:
    fake = FakeMachine(nvml=answered(RTX_4090), environ={MACHINE_VARIABLE: ""})
    assert fake.detect().recorded_from is None


@pytest.mark.parametrize("text", [None, "{}", "not JSON"])
def test_a_recording_that_cannot_be_used_is_a_usage_error(text: str | None) -> None:
    files = {} if text is None else {FILE: text}
    with pytest.raises(UsageError) as caught:
        FakeMachine(files=files, environ={MACHINE_VARIABLE: str(FILE)}).detect()
    assert caught.value.exit_status == 2
    assert MACHINE_VARIABLE in f"{caught.value} {caught.value.hint}"
