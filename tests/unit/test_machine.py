from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.core.errors import UsageError
from provisioner.core.models import FileSystem, Gpu, Machine, OperatingSystem, ProbeResult
from provisioner.machine.readings import (
    NVIDIA_SMI_FIELDS,
    NVIDIA_SMI_OLD_FIELDS,
    OPERATING_SYSTEMS,
    VENDORS,
    GraphicsReading,
    HostReading,
    MemoryReading,
    MigDevice,
    NvidiaDevice,
    NvidiaReading,
    assemble_machine,
    fields_after_refusal,
    gpu_from_device,
    is_wsl_kernel,
    merge_devices,
    needs_nvidia_smi,
    normal_architecture,
    normal_pci_bus_id,
    operating_system_named,
    parse_compute_capability,
    parse_cuda_driver_version,
    parse_driver_version,
    parse_gfx_target_version,
    parse_kernel_driver_version,
    parse_machine_record,
    parse_nvidia_smi,
    windows_release,
)
from provisioner.report.json_document import document
from provisioner.report.outcome import Report
from tests.support.builders import recording_of

LINUX = HostReading(
    os="linux",
    os_release="6.1.0-18-amd64",
    is_wsl=False,
    architecture="x86_64",
    libc="glibc 2.36",
    python_version="3.11.7",
    memory=MemoryReading(total_bytes=64 * 2**30),
)
RTX_4090 = NvidiaDevice(
    index=0,
    name="NVIDIA GeForce RTX 4090",
    uuid="GPU-1",
    pci_bus_id="00000000:01:00.0",
    compute_capability=(8, 9),
    memory_total_bytes=24 * 2**30,
    memory_free_bytes=23 * 2**30,
)


def nvml(*devices: NvidiaDevice, driver: str | None = "580.95.05", reason: str | None = None) -> NvidiaReading:
    return NvidiaReading(
        source="nvml", driver_version=driver, cuda_driver_version=(13, 0), devices=devices, reason=reason
    )


NO_NVML = NvidiaReading(source="nvml", reason="NVML is not on this machine")


# --- versions and names ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("580.159.04", (580, 159, 4)),
        ("550.144.03\n", (550, 144, 3)),
        ("572.60", (572, 60)),  # Windows
        ("540.4.0", (540, 4, 0)),  # Jetson
        ("580", (580,)),
        ("", None),
        ("ERR!", None),
        ("N/A", None),
        ("580.", None),
        ("580.65.06-open", None),
        ("-1.2", None),
        ("5٨0.1", None),
        ("9" * 40, None),
    ],
)
def test_reads_driver_versions_as_dotted_integers(text: str, expected: tuple[int, ...] | None) -> None:
    assert parse_driver_version(text) == expected


def test_a_driver_version_is_no_decimal_number() -> None:
    newer, older = parse_driver_version("580.65.06"), parse_driver_version("580.9")
    assert newer is not None
    assert older is not None
    assert newer > older


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (nixbld@)  \n"
            "GCC version:  gcc version 15.3.0 (GCC) \n",
            "580.159.04",
        ),
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
            "535.183.01",
        ),
        ("580.159.04\n", "580.159.04"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n", "540.4.0"),
        ("GCC version:  gcc version 12.2.0\n", None),
        ("", None),
    ],
)
def test_reads_the_driver_version_from_the_kernels_files(text: str, expected: str | None) -> None:
    assert parse_kernel_driver_version(text) == expected


@pytest.mark.parametrize(("number", "expected"), [(13000, (13, 0)), (12080, (12, 8)), (11040, (11, 4)), (0, None)])
def test_reads_the_cuda_version_of_the_driver(number: int, expected: tuple[int, int] | None) -> None:
    assert parse_cuda_driver_version(number) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (110000, "gfx1100"),
        (100300, "gfx1030"),
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (110501, "gfx1151"),
        (120001, "gfx1201"),
        (0, None),  # a processor
    ],
)
def test_names_amd_architectures_with_a_hexadecimal_stepping(number: int, expected: str | None) -> None:
    assert parse_gfx_target_version(number) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("[N/A]", None), ("9", None), ("9.0.1", None)]
)
def test_reads_compute_capabilities(text: str, expected: tuple[int, int] | None) -> None:
    assert parse_compute_capability(text) == expected


@pytest.mark.parametrize(
    ("platform", "expected"), [("linux", "linux"), ("win32", "windows"), ("darwin", "macos"), ("freebsd14", "other")]
)
def test_names_operating_systems(platform: str, expected: str) -> None:
    assert operating_system_named(platform) == expected


@pytest.mark.parametrize(
    ("name", "system", "bits", "expected"),
    [
        ("x86_64", "linux", 64, "x86_64"),
        ("AMD64", "windows", 64, "x86_64"),
        ("amd64", "windows", 64, "x86_64"),
        ("win32", "windows", 32, "x86"),
        ("aarch64", "linux", 64, "aarch64"),
        ("arm64", "linux", 64, "aarch64"),
        ("arm64", "macos", 64, "arm64"),
        ("ARM64", "windows", 64, "arm64"),
        ("aarch64", "linux", 32, "arm"),
        ("x86_64", "linux", 32, "x86"),
        ("i686", "linux", 32, "x86"),
        ("riscv64", "linux", 64, "riscv64"),
        ("", "other", 64, "unknown"),
    ],
)
def test_spells_architectures_as_wheels_do(name: str, system: OperatingSystem, bits: int, expected: str) -> None:
    assert normal_architecture(name, system, pointer_bits=bits) == expected


@pytest.mark.parametrize(
    ("release", "environ", "expected"),
    [
        ("5.15.153.1-microsoft-standard-WSL2", {}, True),
        ("4.4.0-19041-Microsoft", {}, True),
        ("6.6.0-custom", {"WSL_DISTRO_NAME": "Ubuntu"}, True),
        ("6.1.0-18-amd64", {"WSL_DISTRO_NAME": ""}, False),
        ("6.1.0-18-amd64", {}, False),
    ],
)
def test_recognises_wsl(release: str, environ: dict[str, str], expected: bool) -> None:
    assert is_wsl_kernel(release, environ) is expected


def test_windows_11_is_recognised_by_its_build() -> None:
    assert [windows_release(10, 19045), windows_release(10, 22000), windows_release(6, 9600)] == ["10", "11", "6"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:0A:00.0", "0000:0a:00.0"),
        ("0000:0a:00.0", "0000:0a:00.0"),
        ("00010000:01:00.0", "00010000:01:00.0"),
        ("0001:01:00.0", "0001:01:00.0"),
    ],
)
def test_pci_addresses_of_nvidia_and_of_the_kernel_are_comparable(text: str, expected: str) -> None:
    assert normal_pci_bus_id(text) == expected


# --- nvidia-smi --------------------------------------------------------------------------------


def smi_row(**changes: str) -> str:
    values = {
        "index": "0",
        "name": "NVIDIA H200",
        "uuid": "GPU-1",
        "pci.bus_id": "00000000:00:06.0",
        "compute_cap": "9.0",
        "memory.total": "143771",
        "memory.free": "143156",
        "memory.reserved": "615",
        "display_active": "Disabled",
        "mig.mode.current": "Disabled",
        "driver_version": "580.159.04",
    }
    values.update({name.replace("__", "."): value for name, value in changes.items()})
    return ", ".join(values[name] for name in NVIDIA_SMI_FIELDS)


def test_reads_a_row_of_nvidia_smi() -> None:
    reading = parse_nvidia_smi(smi_row(), NVIDIA_SMI_FIELDS)
    assert reading.driver_version == "580.159.04"
    assert reading.devices == (
        NvidiaDevice(
            index=0,
            name="NVIDIA H200",
            uuid="GPU-1",
            pci_bus_id="00000000:00:06.0",
            compute_capability=(9, 0),
            memory_total_bytes=143771 * 2**20,
            memory_free_bytes=143156 * 2**20,
            memory_reserved_bytes=615 * 2**20,
            is_display_active=False,
            is_mig_enabled=False,
        ),
    )


@pytest.mark.parametrize("word", ["[N/A]", "N/A", "[Not Supported]", "ERR!", "[Unknown Error]", "[GPU is lost]", ""])
def test_texts_for_not_known_are_none_and_never_zero(word: str) -> None:
    row = smi_row(memory__total=word, memory__free=word, compute_cap=word, mig__mode__current=word, uuid=word)
    (device,) = parse_nvidia_smi(row, NVIDIA_SMI_FIELDS).devices
    assert device.memory_total_bytes is None
    assert device.memory_free_bytes is None
    assert device.compute_capability is None
    assert device.is_mig_enabled is None
    assert device.uuid is None
    assert len(device.failures) == 2


def test_reads_two_gpus_and_windows_line_ends() -> None:
    output = smi_row() + "\r\n" + smi_row(index="1", uuid="GPU-2", display_active="Enabled") + "\r\n"
    one, two = parse_nvidia_smi(output, NVIDIA_SMI_FIELDS).devices
    assert (one.index, two.index) == (0, 1)
    assert two.is_display_active is True


@pytest.mark.parametrize("output", ["", "\n", "No devices were found\n"])
def test_no_gpu_is_an_answer(output: str) -> None:
    reading = parse_nvidia_smi(output, NVIDIA_SMI_FIELDS)
    assert reading.reason is None
    assert reading.devices == ()
    assert reading.failures


def test_something_else_than_rows_is_a_reason() -> None:
    reading = parse_nvidia_smi("Unable to determine the device handle", NVIDIA_SMI_FIELDS)
    assert reading.reason is not None
    assert "Unable to determine the device handle" in reading.reason


def test_a_row_of_another_shape_does_not_spoil_the_others() -> None:
    reading = parse_nvidia_smi(f"{smi_row()}\nGPU is lost\n", NVIDIA_SMI_FIELDS)
    assert len(reading.devices) == 1
    assert reading.failures == ("a row was not understood: GPU is lost",)


@pytest.mark.parametrize(
    ("fields", "output", "expected"),
    [
        (
            NVIDIA_SMI_FIELDS,
            'Field "compute_cap" is not a valid field to query.\n\n',
            tuple(each for each in NVIDIA_SMI_FIELDS if each != "compute_cap"),
        ),
        (NVIDIA_SMI_FIELDS, "That is not a valid field.", NVIDIA_SMI_OLD_FIELDS),
        (NVIDIA_SMI_OLD_FIELDS, "That is not a valid field.", None),
        (("index",), 'Field "index" is not a valid field to query.', ()),
        (NVIDIA_SMI_FIELDS, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", None),
    ],
)
def test_asks_an_old_nvidia_smi_for_less(
    fields: tuple[str, ...], output: str, expected: tuple[str, ...] | None
) -> None:
    assert fields_after_refusal(fields, output) == expected


# --- combining the readings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (nvml(RTX_4090), False),
        (nvml(), False),
        (nvml(replace(RTX_4090, memory_total_bytes=None)), False),  # nvidia-smi knows no better
        (nvml(replace(RTX_4090, compute_capability=None)), True),
        (nvml(RTX_4090, NvidiaDevice(index=1)), True),
        (nvml(driver=None), True),
        (NO_NVML, True),
    ],
)
def test_nvidia_smi_is_asked_only_where_it_may_help(reading: NvidiaReading, expected: bool) -> None:
    assert needs_nvidia_smi(reading) is expected


def test_gaps_are_filled_from_the_same_device_whatever_its_number() -> None:
    broken = NvidiaDevice(index=0, uuid="GPU-B", pci_bus_id="00000000:02:00.0")
    by_smi = (
        replace(RTX_4090, index=0, uuid="GPU-A", pci_bus_id="00000000:01:00.0", compute_capability=(8, 9)),
        replace(RTX_4090, index=1, uuid="GPU-B", pci_bus_id="00000000:02:00.0", compute_capability=(7, 5)),
    )
    (merged,) = merge_devices((broken,), by_smi)
    assert merged.uuid == "GPU-B"
    assert merged.compute_capability == (7, 5)
    assert merged.index == 0


def test_devices_without_uuid_are_matched_by_pci_address_and_then_by_number() -> None:
    by_address = NvidiaDevice(index=5, pci_bus_id="0000:01:00.0")
    by_number = NvidiaDevice(index=0)
    assert merge_devices((by_address,), (RTX_4090,))[0].name == RTX_4090.name
    assert merge_devices((by_number,), (RTX_4090,))[0].name == RTX_4090.name
    assert merge_devices((NvidiaDevice(index=1),), (RTX_4090,))[0].name is None


def test_the_first_source_wins() -> None:
    other = replace(RTX_4090, name="something else", memory_total_bytes=1)
    assert merge_devices((RTX_4090,), (other,)) == (RTX_4090,)
    assert merge_devices((), (other,)) == (other,)


MIG_PARENT = replace(RTX_4090, name="NVIDIA A100", is_mig_enabled=True, memory_total_bytes=80 * 2**30)
SMALL = MigDevice(uuid="MIG-1", memory_total_bytes=10 * 2**30, memory_free_bytes=9 * 2**30)
LARGE = MigDevice(uuid="MIG-2", memory_total_bytes=40 * 2**30, memory_free_bytes=39 * 2**30)
REFUSED = MigDevice(uuid="MIG-3")


@pytest.mark.parametrize(
    ("slices", "total", "free"),
    [
        ((SMALL, LARGE), 40 * 2**30, 39 * 2**30),
        ((SMALL, REFUSED), 10 * 2**30, 9 * 2**30),
        ((REFUSED,), None, None),
        ((), None, None),
    ],
)
def test_a_gpu_split_by_mig_has_the_memory_of_its_largest_slice(
    slices: tuple[MigDevice, ...], total: int | None, free: int | None
) -> None:
    gpu = gpu_from_device(replace(MIG_PARENT, mig_devices=slices))
    assert (gpu.memory_total_bytes, gpu.memory_free_bytes) == (total, free)
    assert gpu.mig_devices == tuple(each.uuid for each in slices)
    assert gpu.mig_memory_bytes == tuple(each.memory_total_bytes for each in slices)


@pytest.mark.parametrize(
    ("slices", "is_ok", "said"), [((), False, "CUDA cannot use it"), ((SMALL, LARGE), True, "split by MIG; 2 visible")]
)
def test_mig_is_reported_and_without_a_visible_slice_it_is_unusable(
    slices: tuple[MigDevice, ...], is_ok: bool, said: str
) -> None:
    machine = assemble_machine(host=LINUX, nvidia=(nvml(replace(MIG_PARENT, mig_devices=slices)),))
    assert [probe.is_ok for probe in machine.probes if said in probe.detail] == [is_ok]


def test_an_unanswered_question_becomes_a_probe_that_names_the_gpu() -> None:
    gb10 = replace(
        RTX_4090,
        name="NVIDIA GB10",
        compute_capability=(12, 1),
        memory_total_bytes=None,
        memory_free_bytes=None,
        failures=("memory: Not Supported",),
    )
    machine = assemble_machine(host=LINUX, nvidia=(nvml(gb10),))
    assert machine.gpus[0].memory_total_bytes is None
    assert machine.gpus[0].compute_capability == (12, 1)
    assert (
        ProbeResult(source="nvml", is_ok=False, detail="GPU 0 (NVIDIA GB10): memory: Not Supported") in machine.probes
    )


def test_the_kernels_files_give_the_driver_alone() -> None:
    files = (("/sys/module/nvidia/version", "580.159.04\n"),)
    machine = assemble_machine(host=LINUX, nvidia=(NO_NVML,), kernel_files=files)
    assert machine.driver_version == "580.159.04"
    assert machine.gpus == ()
    assert ProbeResult(source="/sys/module/nvidia/version", is_ok=True, detail="driver 580.159.04") in machine.probes


def test_a_kernel_file_without_a_version_is_a_failed_probe() -> None:
    machine = assemble_machine(host=LINUX, nvidia=(NO_NVML,), kernel_files=(("/proc/driver/nvidia/version", "?"),))
    assert machine.driver_version is None
    assert ProbeResult(source="/proc/driver/nvidia/version", is_ok=False, detail="no version in it") in machine.probes


CARD = Gpu(vendor="nvidia", name="NVIDIA GPU (10de:2684)", index=0, pci_bus_id="0000:01:00.0")
AMD = Gpu(vendor="amd", name="AMD GPU (gfx1100)", index=0, architecture="gfx1100", pci_bus_id="0000:03:00.0")


def on_the_bus(*gpus: Gpu) -> GraphicsReading:
    return GraphicsReading(source="PCI bus", gpus=gpus)


def test_a_card_without_a_driver_is_a_gpu_and_the_probe_says_what_is_missing() -> None:
    machine = assemble_machine(host=LINUX, nvidia=(NO_NVML,), graphics=on_the_bus(CARD))
    assert machine.gpus == (CARD,)
    (probe,) = [each for each in machine.probes if each.source == "PCI bus"]
    assert not probe.is_ok
    assert "no NVIDIA driver answers" in probe.detail


def test_a_card_the_driver_lists_is_one_gpu_not_two() -> None:
    machine = assemble_machine(host=LINUX, nvidia=(nvml(RTX_4090),), graphics=on_the_bus(CARD, AMD))
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA GeForce RTX 4090", "AMD GPU (gfx1100)"]
    assert not [probe for probe in machine.probes if probe.source == "PCI bus"]


def test_a_card_the_driver_no_longer_lists_is_mentioned_and_hinders_nobody() -> None:
    pascal = replace(CARD, pci_bus_id="0000:02:00.0", name="NVIDIA GPU (10de:1b06)")
    machine = assemble_machine(
        host=LINUX, nvidia=(nvml(RTX_4090, driver="595.58.03"),), graphics=on_the_bus(CARD, pascal)
    )
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA GeForce RTX 4090"]
    (probe,) = [each for each in machine.probes if each.source == "PCI bus"]
    assert "595.58.03 does not list it" in probe.detail


def test_a_driver_that_lists_nothing_does_not_hide_the_card() -> None:
    machine = assemble_machine(host=LINUX, nvidia=(nvml(driver="595.58.03"),), graphics=on_the_bus(CARD))
    assert machine.gpus == (CARD,)
    assert machine.driver_version == "595.58.03"
    assert any("does not list it" in probe.detail for probe in machine.probes)


def test_a_registry_entry_without_an_address_counts_only_without_a_driver() -> None:
    entry = replace(CARD, pci_bus_id=None)
    windows = replace(LINUX, os="windows", libc=None)
    with_driver = assemble_machine(host=windows, nvidia=(nvml(RTX_4090),), graphics=on_the_bus(entry))
    without = assemble_machine(host=windows, nvidia=(NO_NVML,), graphics=on_the_bus(entry))
    assert [gpu.uuid for gpu in with_driver.gpus] == ["GPU-1"]
    assert without.gpus == (entry,)


# --- recordings --------------------------------------------------------------------------------

FILE = Path("machine.json")
COUNT = st.integers(min_value=0, max_value=2**63)
PAIR = st.tuples(st.integers(0, 200), st.integers(0, 200))
TEXT = st.text(max_size=20)
GPUS = st.builds(
    Gpu,
    vendor=st.sampled_from(VENDORS),
    name=TEXT,
    index=st.integers(0, 15),
    uuid=st.none() | TEXT,
    pci_bus_id=st.none() | TEXT,
    pci_id=st.sampled_from([None, "1002:744c"]),
    compute_capability=st.none() | PAIR,
    architecture=st.none() | TEXT,
    memory_total_bytes=st.none() | COUNT,
    memory_free_bytes=st.none() | COUNT,
    memory_reserved_bytes=st.none() | COUNT,
    is_display_attached=st.none() | st.booleans(),
    is_mig_enabled=st.none() | st.booleans(),
    mig_devices=st.lists(TEXT, max_size=3).map(tuple),
    mig_memory_bytes=st.sampled_from([(), (None, 2**33)]),
    driver_model=st.none() | TEXT,
    driver_version=st.sampled_from([None, "32.0.31041.1004"]),
    adrenalin=st.sampled_from([None, "26.8.1"]),
    shares_memory=st.booleans(),
)
MACHINES = st.builds(
    Machine,
    os=st.sampled_from(OPERATING_SYSTEMS),
    os_release=TEXT,
    is_wsl=st.booleans(),
    architecture=TEXT,
    libc=st.none() | TEXT,
    python_version=TEXT,
    distribution=st.sampled_from([None, "ubuntu 24.04"]),
    gpus=st.lists(GPUS, max_size=3).map(tuple),
    driver_version=st.none() | st.from_regex(r"[0-9]{3}\.[0-9]{1,3}(\.[0-9]{2})?", fullmatch=True),
    cuda_driver_version=st.none() | PAIR,
    memory_total_bytes=st.none() | COUNT,
    memory_available_bytes=st.none() | COUNT,
    memory_physical_bytes=st.sampled_from([None, 2**36]),
    swap_total_bytes=st.sampled_from([None, 0, 2**33]),
    swap_free_bytes=st.sampled_from([None, 2**32]),
    swap_grows=st.sampled_from([None, False, True]),
    locked_limit_bytes=st.sampled_from([None, 2**23]),
    file_systems=st.lists(
        st.builds(
            FileSystem,
            path=st.sampled_from([Path("/"), Path("/home/someone"), Path("D:/models")]),
            device=COUNT,
            total_bytes=COUNT,
            free_bytes=COUNT,
        ),
        max_size=2,
    ).map(tuple),
    probes=st.lists(st.builds(ProbeResult, source=TEXT, is_ok=st.booleans(), detail=TEXT), max_size=3).map(tuple),
    recorded_from=st.none() | TEXT,
)


@given(MACHINES)
def test_a_recorded_machine_is_read_back_as_it_was(machine: Machine) -> None:
    read = parse_machine_record(recording_of(machine), FILE)
    assert read == replace(machine, recorded_from="machine.json")


def recording(**changes: object) -> str:
    record = {
        "schema_version": 1,
        "os": "linux",
        "os_release": "6.1",
        "is_wsl": False,
        "architecture": "x86_64",
        "python_version": "3.11.7",
        "gpus": [{"vendor": "nvidia", "name": "NVIDIA L4", "index": 0, "compute_capability": [8, 9]}],
        "driver_version": "580.95.05",
    }
    return json.dumps({name: value for name, value in {**record, **changes}.items() if value != "left out"})


def test_what_may_be_unknown_may_be_left_out() -> None:
    machine = parse_machine_record(recording(), FILE)
    assert machine.gpus[0].compute_capability == (8, 9)
    assert machine.gpus[0].memory_total_bytes is None
    assert machine.libc is None
    assert machine.recorded_from == "machine.json"


def test_a_whole_json_document_is_a_recording_too() -> None:
    inner = json.loads(recording(schema_version="left out"))
    earlier = {"schema_version": 1, "command": "detect", "status": "ok", "machine": inner}
    assert parse_machine_record(json.dumps(earlier), FILE).gpus[0].name == "NVIDIA L4"
    with pytest.raises(UsageError, match="schema_version: must be 1; not 9"):
        parse_machine_record(json.dumps(earlier | {"schema_version": 9}), FILE)


def test_the_document_of_today_is_replayed_as_the_same_machine() -> None:
    machine = parse_machine_record(recording(), FILE)
    told = document(Report(command="detect", status="ok", exit_status=0, machine=machine))
    assert parse_machine_record(json.dumps(told), FILE) == machine


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it is not JSON"),
        ("[]", "it is JSON, but not an object"),
        ("[" * 100_000, "it is not JSON"),
        (recording(schema_version=2), "schema_version: must be 1; not 2"),
        (recording(schema_version="left out"), "schema_version: must be 1; it is missing"),
        (recording(os="linus"), 'os: must be one of linux, windows, macos, other; not "linus"'),
        (recording(os=[]), "os: must be one of"),
        (recording(os_release="left out"), "os_release: must be a string; it is missing"),
        (recording(is_wsl=0), "is_wsl: must be true or false; not 0"),
        (recording(driver_version=580.95), "driver_version: must be numbers separated by dots"),
        (recording(driver_version="latest"), "driver_version: must be numbers separated by dots"),
        (recording(memory_total_bytes=-1), "memory_total_bytes: must be a whole number from 0 up or null; not -1"),
        (recording(memory_total_bytes=True), "memory_total_bytes: must be a whole number"),
        (recording(memory_total_bytes=1.5), "memory_total_bytes: must be a whole number"),
        (recording(cuda_driver_version="13.0"), "cuda_driver_version: must be two whole numbers"),
        (recording(cuda_driver_version=[13]), "cuda_driver_version: must be two whole numbers"),
        (recording(cuda_driver_version=[13, "0"]), "cuda_driver_version: must be two whole numbers"),
        (recording(gpus={}), "gpus: must be a list"),
        (recording(gpus=[1]), "gpus[0]: must be an object; not 1"),
        (
            recording(gpus=[{"vendor": "nvidia", "name": "x"}]),
            "gpus[0].index: must be a whole number from 0 up; it is missing",
        ),
        (recording(gpus=[{"vendor": "nvidia", "name": "x", "index": 0, "sm": 89}]), "gpus[0].sm: not known"),
        (
            recording(gpus=[{"vendor": "nvidia", "name": "x", "index": 0, "mig_devices": [1]}]),
            "gpus[0].mig_devices[0]: must be a string; not 1",
        ),
        (
            recording(gpus=[{"vendor": "nvidia", "name": "x", "index": 0, "mig_memory_bytes": [None, -1]}]),
            "gpus[0].mig_memory_bytes: must be a list of whole numbers from 0 up or null",
        ),
        (
            recording(gpus=[{"vendor": "nvidia", "name": "x", "index": 0, "is_mig_enabled": "no"}]),
            "gpus[0].is_mig_enabled: must be true, false or null",
        ),
        (recording(libc=2), "libc: must be a string or null; not 2"),
        (recording(colour="red"), "colour: not known"),
        ('{"os": "linux", "os": "windows"}', "os: given twice"),
        (recording(file_systems=[{"path": "/", "device": 1, "total_bytes": 1}]), "file_systems[0].free_bytes"),
        (
            recording(probes=[{"source": "nvml", "is_ok": "yes", "detail": ""}]),
            "probes[0].is_ok: must be true or false",
        ),
    ],
)
def test_refuses_what_is_no_recording(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_machine_record(text, FILE)
    issues = caught.value.context["issues"]
    assert isinstance(issues, list)
    assert any(complaint in issue for issue in issues), issues
    assert caught.value.exit_status == 2
    assert "machine.json" in str(caught.value)


def test_every_complaint_about_a_recording_is_reported_at_once() -> None:
    text = recording(os="linus", is_wsl="maybe", colour="red", gpus=[{"vendor": "nvidia", "name": "x", "index": -1}])
    with pytest.raises(UsageError) as caught:
        parse_machine_record(text, FILE)
    assert str(caught.value).startswith("machine.json is not a recorded machine (4 complaints)")
    for part in ("os:", "is_wsl:", "colour:", "gpus[0].index:"):
        assert part in str(caught.value)
