"""Build a `Machine` from the readings of drivers and systems, and read and write machines as recordings.

Everything here is a pure function of text and values.  Nothing is guessed: what a source did not
say is None, and the reason becomes a `ProbeResult`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

from provisioner.core.errors import UsageError
from provisioner.core.json_reader import Fields
from provisioner.core.models import FileSystem, Gpu, Machine, OperatingSystem, ProbeResult, Vendor

T = TypeVar("T")

RECORDING_SCHEMA_VERSION = 1
_DOCUMENT_VERSIONS = (1, 2)  # of ``--json``: the machine is the same in both

UNNAMED_NVIDIA_GPU = "NVIDIA GPU"

OPERATING_SYSTEMS: tuple[OperatingSystem, ...] = get_args(OperatingSystem)
VENDORS: tuple[Vendor, ...] = get_args(Vendor)

# --- readings: what one source said, not yet combined -------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MigDevice:
    """A slice of a GPU; CUDA sees it as a separate device."""

    uuid: str
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaDevice:
    """One GPU as NVML or nvidia-smi describes it; None where the query failed."""

    index: int
    name: str | None = None
    uuid: str | None = None
    pci_bus_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    is_display_active: bool | None = None
    is_mig_enabled: bool | None = None
    mig_devices: tuple[MigDevice, ...] = ()
    driver_model: str | None = None  # Windows: "WDDM", "TCC", "MCDM"
    failures: tuple[str, ...] = ()  # "memory: Not Supported"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaReading:
    """What NVML or nvidia-smi reported about driver and GPUs."""

    source: Literal["nvml", "nvidia-smi"]
    reason: str | None = None  # why there is no reading at all; everything else is empty then
    driver_version: str | None = None
    cuda_driver_version: tuple[int, int] | None = None
    devices: tuple[NvidiaDevice, ...] = ()
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """What the operating system reported about memory; None: not known."""

    total_bytes: int | None = None  # RAM, at most the limit of the container
    available_bytes: int | None = None
    physical_bytes: int | None = None  # of the computer, where a container's limit is smaller
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    swap_grows: bool | None = None
    locked_limit_bytes: int | None = None
    probe: ProbeResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """What the operating system reported about itself and the running Python."""

    os: OperatingSystem
    os_release: str
    is_wsl: bool
    architecture: str
    libc: str | None
    python_version: str
    distribution: str | None = None
    memory: MemoryReading = MemoryReading()
    probes: tuple[ProbeResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphicsReading:
    """Graphics processors found without NVIDIA's own interfaces; its NVIDIA entries are cards, not working GPUs."""

    source: str  # "PCI bus", "registry", "sysctl"
    gpus: tuple[Gpu, ...] = ()
    probes: tuple[ProbeResult, ...] = ()


# --- versions and names ------------------------------------------------------------------------


def parse_driver_version(text: str) -> tuple[int, ...] | None:
    """Return a driver version as integers, to be compared part by part; None where the text is not a version.

    Never compare these as decimal numbers: 580.65.06 is newer than 580.9.

    >>> parse_driver_version("580.65.06")
    (580, 65, 6)
    >>> parse_driver_version("572.60") < parse_driver_version("580.9") < parse_driver_version("580.65.06")
    True
    >>> parse_driver_version("ERR!") is None
    True
    """
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){0,5}", text.strip()):
        return None
    return tuple(int(part) for part in text.strip().split("."))


def parse_cuda_driver_version(number: int) -> tuple[int, int] | None:
    """Return the CUDA version that NVML writes as one number, 1000 * major + 10 * minor.

    >>> parse_cuda_driver_version(12080)
    (12, 8)
    """
    return (number // 1000, number % 1000 // 10) if number >= 1000 else None


def parse_compute_capability(text: str) -> tuple[int, int] | None:
    """Return a compute capability as nvidia-smi prints it.

    >>> parse_compute_capability("12.1")
    (12, 1)
    """
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", text.strip())
    return (int(match[1]), int(match[2])) if match else None


def parse_kernel_driver_version(text: str) -> str | None:
    """Return the driver version in ``/sys/module/nvidia/version`` or ``/proc/driver/nvidia/version``.

    >>> parse_kernel_driver_version(
    ...     "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC"
    ... )
    '535.183.01'
    >>> parse_kernel_driver_version("580.159.04")
    '580.159.04'
    """
    first_line = text.strip().partition("\n")[0]
    match = re.search(r"(?<![\w.])[0-9]{3,}\.[0-9]+(\.[0-9]+)*(?![\w.])", first_line)
    return match[0] if match else None


def parse_gfx_target_version(number: int) -> str | None:
    """Return AMD's name of an architecture from the kernel's ``gfx_target_version``; the stepping is hexadecimal.

    >>> [parse_gfx_target_version(number) for number in (110000, 90010, 110501, 0)]
    ['gfx1100', 'gfx90a', 'gfx1151', None]
    """
    if number <= 0:
        return None
    return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"


def operating_system_named(platform: str) -> OperatingSystem:
    """Return our name for a value of ``sys.platform``."""
    names: dict[str, OperatingSystem] = {"linux": "linux", "win32": "windows", "darwin": "macos"}
    return names.get(platform, "other")


def normal_architecture(name: str, os: OperatingSystem, *, pointer_bits: int = 64) -> str:
    """Return the architecture as wheels for that system spell it.

    A 32-bit Python on a 64-bit system is the 32-bit architecture: wheels follow the interpreter.

    >>> normal_architecture("AMD64", "windows"), normal_architecture("arm64", "linux")
    ('x86_64', 'aarch64')
    >>> normal_architecture("x86_64", "linux", pointer_bits=32)
    'x86'
    """
    name = name.strip().lower()
    if name in ("x86_64", "amd64", "x64"):
        return "x86_64" if pointer_bits == 64 else "x86"
    if name in ("aarch64", "arm64", "armv8b", "armv8l"):
        if pointer_bits != 64:
            return "arm"
        return "arm64" if os in ("macos", "windows") else "aarch64"
    if name in ("i386", "i486", "i586", "i686", "x86", "win32"):
        return "x86"
    return name or "unknown"


def is_wsl_kernel(release: str, environ: Mapping[str, str]) -> bool:
    """Whether a Linux kernel is the one of the Windows Subsystem for Linux."""
    return "microsoft" in release.lower() or bool(environ.get("WSL_DISTRO_NAME") or environ.get("WSL_INTEROP"))


def parse_distribution(text: str) -> str | None:
    r"""Return the name and release that a Linux distribution gives itself in ``/etc/os-release``.

    >>> parse_distribution('NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="24.04"')
    'ubuntu 24.04'
    >>> parse_distribution("ID=arch"), parse_distribution("")
    ('arch', None)
    """
    values = dict(re.findall(r"(?m)^(ID|VERSION_ID)=[\"']?([A-Za-z0-9._-]+)", text))
    return f"{values['ID']} {values.get('VERSION_ID', '')}".strip().lower() if "ID" in values else None


def windows_release(major: int, build: int) -> str:
    """Return the commonly used release number; Windows 11 reports version 10.0 and starts at build 22000.

    >>> windows_release(10, 26100), windows_release(10, 19045)
    ('11', '10')
    """
    return "11" if major == 10 and build >= 22000 else str(major)


def normal_pci_bus_id(text: str) -> str:
    """Return a PCI address in the form of ``/sys``; NVIDIA writes the domain with eight digits.

    >>> normal_pci_bus_id("00000000:0A:00.0")
    '0000:0a:00.0'
    """
    domain, separator, rest = text.strip().lower().partition(":")
    return f"{domain[-4:]}{separator}{rest}" if len(domain) > 4 and not domain[:-4].strip("0") else text.strip().lower()


# --- nvidia-smi --------------------------------------------------------------------------------

NVIDIA_SMI_FIELDS = (
    "index",
    "name",
    "uuid",
    "pci.bus_id",
    "compute_cap",
    "memory.total",
    "memory.free",
    "memory.reserved",
    "display_active",
    "mig.mode.current",
    "driver_version",
)
NVIDIA_SMI_OLD_FIELDS = ("index", "name", "uuid", "pci.bus_id", "memory.total", "memory.free", "driver_version")

_MIB = 1024 * 1024
_UNKNOWN_WORDS = frozenset({"", "n/a", "err!", "not supported", "unknown error", "unknown"})


def nvidia_smi_arguments(fields: Sequence[str]) -> tuple[str, ...]:
    """Return the arguments that make nvidia-smi answer in rows of these fields."""
    return (f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")


def fields_after_refusal(fields: Sequence[str], output: str) -> tuple[str, ...] | None:
    """Return the fields without those an old nvidia-smi rejected; None where it failed for another reason.

    Drivers of the 470 branch do not know ``compute_cap`` (huggingface/candle#733); the error is
    on stdout, with exit status 2 (CoHDI/composable-resource-operator#37).
    """
    if "not a valid field" not in output:
        return None
    refused = set(re.findall(r'"([^"\n]+)" is not a valid field', output))
    smaller = tuple(each for each in fields if each not in refused)
    if smaller == tuple(fields):
        smaller = NVIDIA_SMI_OLD_FIELDS
    return smaller if len(smaller) < len(fields) else None


def parse_nvidia_smi(output: str, fields: Sequence[str]) -> NvidiaReading:
    """Return what the rows of nvidia-smi say; its memory is in MiB, and ``[N/A]`` and the like mean not known.

    The CUDA version is not queried: it is only in a header that can contain ``ERR!``
    (microsoft/WSL#11589).
    """
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines or lines[0].strip().lower().startswith("no devices"):
        return NvidiaReading(source="nvidia-smi", failures=("it lists no GPU",))
    import csv  # only where nvidia-smi was needed

    rows = list(csv.reader(lines, skipinitialspace=True))
    good = [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
    if not good:
        return NvidiaReading(source="nvidia-smi", reason=f"its output is not the requested rows: {lines[0]}")
    failures = tuple(f"a row was not understood: {','.join(row)}" for row in rows if len(row) != len(fields))
    versions = [text for row in good if (text := _known(row.get("driver_version"))) and parse_driver_version(text)]
    return NvidiaReading(
        source="nvidia-smi",
        driver_version=versions[0] if versions else None,
        devices=tuple(_smi_device(row, number) for number, row in enumerate(good)),
        failures=failures,
    )


def _smi_device(row: Mapping[str, str], number: int) -> NvidiaDevice:
    index = _known(row.get("index"))
    capability = _known(row.get("compute_cap"))
    return NvidiaDevice(
        index=int(index) if index and index.isascii() and index.isdigit() else number,
        name=_known(row.get("name")),
        uuid=_known(row.get("uuid")),
        pci_bus_id=_known(row.get("pci.bus_id")),
        compute_capability=parse_compute_capability(capability) if capability else None,
        memory_total_bytes=_mebibytes(row.get("memory.total")),
        memory_free_bytes=_mebibytes(row.get("memory.free")),
        memory_reserved_bytes=_mebibytes(row.get("memory.reserved")),
        is_display_active=_switch(row.get("display_active")),
        is_mig_enabled=_switch(row.get("mig.mode.current")),
        failures=tuple(
            f"{name}: {row[name].strip()}"
            for name in ("memory.total", "compute_cap")
            if name in row and not _known(row[name])
        ),
    )


def _known(text: str | None) -> str | None:
    """Return the text, or None for nvidia-smi's ways of saying that it does not know."""
    text = (text or "").strip()
    return None if text.startswith("[") or text.lower() in _UNKNOWN_WORDS else text


def _mebibytes(text: str | None) -> int | None:
    known = _known(text)
    return int(known) * _MIB if known and known.isascii() and known.isdigit() else None


def _switch(text: str | None) -> bool | None:
    return {"enabled": True, "disabled": False, "yes": True, "no": False}.get((text or "").strip().lower())


# --- combining the readings --------------------------------------------------------------------


def needs_nvidia_smi(nvml: NvidiaReading) -> bool:
    """Whether NVML lacks something that nvidia-smi may know.

    Memory does not count: where NVML does not report it (GB10, a GPU split by MIG), nvidia-smi prints ``[N/A]``.
    """
    return nvml.driver_version is None or any(
        device.uuid is None or device.name is None or device.compute_capability is None for device in nvml.devices
    )


def merge_devices(first: Sequence[NvidiaDevice], second: Sequence[NvidiaDevice]) -> tuple[NvidiaDevice, ...]:
    """Return the first source's devices, their gaps filled from the second; all of the second where there are none."""
    if not first:
        return tuple(second)
    merged = []
    for device in first:
        other = next((each for each in second if _is_same_device(device, each)), None)
        merged.append(_filled(device, other) if other else device)
    return tuple(merged)


def _is_same_device(one: NvidiaDevice, other: NvidiaDevice) -> bool:
    """Return whether UUIDs match, else PCI addresses, else numbers: the order of devices can differ between sources."""
    if one.uuid and other.uuid:
        return one.uuid == other.uuid
    if one.pci_bus_id and other.pci_bus_id:
        return normal_pci_bus_id(one.pci_bus_id) == normal_pci_bus_id(other.pci_bus_id)
    return one.index == other.index


def _filled(device: NvidiaDevice, other: NvidiaDevice) -> NvidiaDevice:
    return replace(
        device,
        name=_first(device.name, other.name),
        uuid=_first(device.uuid, other.uuid),
        pci_bus_id=_first(device.pci_bus_id, other.pci_bus_id),
        compute_capability=_first(device.compute_capability, other.compute_capability),
        memory_total_bytes=_first(device.memory_total_bytes, other.memory_total_bytes),
        memory_free_bytes=_first(device.memory_free_bytes, other.memory_free_bytes),
        memory_reserved_bytes=_first(device.memory_reserved_bytes, other.memory_reserved_bytes),
        is_display_active=_first(device.is_display_active, other.is_display_active),
        is_mig_enabled=_first(device.is_mig_enabled, other.is_mig_enabled),
    )


def _first(one: T | None, other: T | None) -> T | None:
    return other if one is None else one


def gpu_from_device(device: NvidiaDevice) -> Gpu:
    """Return the GPU that a device reading describes.

    A process sees one slice of a GPU that is split by MIG, so its memory is that of the largest
    slice, and unknown where no slice could be read: the whole GPU's memory would be too much.
    """
    total, free = device.memory_total_bytes, device.memory_free_bytes
    if device.is_mig_enabled:
        readable = [each for each in device.mig_devices if each.memory_total_bytes is not None]
        largest = max(readable, key=lambda each: each.memory_total_bytes or 0, default=None)
        total = largest.memory_total_bytes if largest else None
        free = largest.memory_free_bytes if largest else None
    return Gpu(
        vendor="nvidia",
        name=device.name or UNNAMED_NVIDIA_GPU,
        index=device.index,
        uuid=device.uuid,
        pci_bus_id=device.pci_bus_id,
        compute_capability=device.compute_capability,
        memory_total_bytes=total,
        memory_free_bytes=free,
        memory_reserved_bytes=device.memory_reserved_bytes,
        is_display_attached=device.is_display_active,
        is_mig_enabled=device.is_mig_enabled,
        mig_devices=tuple(each.uuid for each in device.mig_devices),
        mig_memory_bytes=tuple(each.memory_total_bytes for each in device.mig_devices),
        driver_model=device.driver_model,
    )


def probes_of(reading: NvidiaReading) -> tuple[ProbeResult, ...]:
    """Return the probes of a reading: one for the whole, one for every query that failed."""
    if reading.reason is not None:
        return (ProbeResult(source=reading.source, is_ok=False, detail=reading.reason),)
    summary = ProbeResult(source=reading.source, is_ok=reading.driver_version is not None, detail=_summary(reading))
    open_questions = [*reading.failures]
    for device in reading.devices:
        open_questions += [f"GPU {device.index} ({device.name or 'no name'}): {each}" for each in device.failures]
    return (
        summary,
        *(ProbeResult(source=reading.source, is_ok=False, detail=each) for each in open_questions),
        *(_mig_probe(reading.source, device) for device in reading.devices if device.is_mig_enabled),
    )


def _summary(reading: NvidiaReading) -> str:
    driver = f"driver {reading.driver_version}" if reading.driver_version else "driver version not known"
    cuda = f", CUDA up to {'.'.join(map(str, reading.cuda_driver_version))}" if reading.cuda_driver_version else ""
    return f"{driver}{cuda}, {len(reading.devices)} GPU{'' if len(reading.devices) == 1 else 's'}"


def _mig_probe(source: str, device: NvidiaDevice) -> ProbeResult:
    count = len(device.mig_devices)
    if not count:
        detail = f"GPU {device.index} is in MIG mode and no MIG device is visible: CUDA cannot use it"
        return ProbeResult(source=source, is_ok=False, detail=detail)
    detail = f"GPU {device.index} is split by MIG; {count} visible; its memory is that of the largest"
    return ProbeResult(source=source, is_ok=True, detail=detail)


def assemble_machine(
    *,
    host: HostReading,
    nvidia: Sequence[NvidiaReading] = (),
    kernel_files: Sequence[tuple[str, str]] = (),
    graphics: GraphicsReading | None = None,
    file_systems: Iterable[FileSystem] = (),
    probes: Iterable[ProbeResult] = (),
) -> Machine:
    """Return the machine that the readings describe.

    Parameters
    ----------
    host : HostReading
        Operating system, Python, RAM.
    nvidia : sequence of NvidiaReading
        What NVML and then nvidia-smi said; the first one wins, the second fills gaps.
    kernel_files : sequence of (path, text)
        The kernel's files about the driver, used only for its version.
    graphics : GraphicsReading, optional
        GPUs of other vendors, and NVIDIA cards whether or not they have a working driver.
    file_systems, probes
        Added to the result as they are.
    """
    devices: tuple[NvidiaDevice, ...] = ()
    for reading in nvidia:
        devices = merge_devices(devices, reading.devices)
    kernel_version, kernel_probes = _kernel_driver(kernel_files)
    driver_version = next((each.driver_version for each in nvidia if each.driver_version), kernel_version)
    cards = graphics or GraphicsReading(source="PCI bus")
    nvidia_gpus, card_probes = _with_silent_cards(tuple(map(gpu_from_device, devices)), cards, driver_version)
    return Machine(
        os=host.os,
        os_release=host.os_release,
        is_wsl=host.is_wsl,
        architecture=host.architecture,
        libc=host.libc,
        python_version=host.python_version,
        distribution=host.distribution,
        gpus=(*nvidia_gpus, *(gpu for gpu in cards.gpus if gpu.vendor != "nvidia")),
        driver_version=driver_version,
        cuda_driver_version=next((each.cuda_driver_version for each in nvidia if each.cuda_driver_version), None),
        memory_total_bytes=host.memory.total_bytes,
        memory_available_bytes=host.memory.available_bytes,
        memory_physical_bytes=host.memory.physical_bytes,
        swap_total_bytes=host.memory.swap_total_bytes,
        swap_free_bytes=host.memory.swap_free_bytes,
        swap_grows=host.memory.swap_grows,
        locked_limit_bytes=host.memory.locked_limit_bytes,
        file_systems=tuple(file_systems),
        probes=(
            *(probe for reading in nvidia for probe in probes_of(reading)),
            *kernel_probes,
            *card_probes,
            *cards.probes,
            *((host.memory.probe,) if host.memory.probe is not None else ()),
            *host.probes,
            *probes,
        ),
    )


def _kernel_driver(files: Sequence[tuple[str, str]]) -> tuple[str | None, tuple[ProbeResult, ...]]:
    for path, text in files:
        version = parse_kernel_driver_version(text)
        if version:
            return version, (ProbeResult(source=path, is_ok=True, detail=f"driver {version}"),)
    return None, tuple(ProbeResult(source=path, is_ok=False, detail="no version in it") for path, _ in files)


def _with_silent_cards(
    gpus: tuple[Gpu, ...], cards: GraphicsReading, driver_version: str | None
) -> tuple[tuple[Gpu, ...], tuple[ProbeResult, ...]]:
    """Return the GPUs with the NVIDIA cards that have no working driver; next to working GPUs only a probe names them.

    Drivers from 590 on no longer list Maxwell, Pascal and Volta cards, and a card can be handed to a
    virtual machine: the other GPUs still work.
    """
    listed = {normal_pci_bus_id(gpu.pci_bus_id) for gpu in gpus if gpu.pci_bus_id}
    silent = tuple(
        card
        for card in cards.gpus
        if card.vendor == "nvidia"
        and (normal_pci_bus_id(card.pci_bus_id) not in listed if card.pci_bus_id else not gpus)
    )
    probes = tuple(
        ProbeResult(source=cards.source, is_ok=False, detail=_silence(card, driver_version, bool(gpus)))
        for card in silent
    )
    return (gpus or silent), probes


def _silence(card: Gpu, driver_version: str | None, others_answer: bool) -> str:
    where = f" at {card.pci_bus_id}" if card.pci_bus_id else ""
    if driver_version is None:
        return f"{card.name}{where}: no NVIDIA driver answers; the driver is missing or not loaded"
    if others_answer:
        return f"{card.name}{where}: driver {driver_version} does not list it; too old for that driver, or in other use"
    return (
        f"{card.name}{where}: driver {driver_version} is loaded but does not list it; too old for that driver,"
        " or a container without access to it"
    )


# --- a machine as a recording ------------------------------------------------------------------


def parse_machine_record(text: str, file: Path) -> Machine:
    """Return the machine a recording describes, with ``recorded_from`` set to the file.

    Parameters
    ----------
    text : str
        What `machine_record` returned, as JSON, by itself or under the key ``machine`` of a
        ``--json`` document.  What may be unknown may be missing.
    file : Path
        Where the text comes from.

    Raises
    ------
    UsageError
        The text is not such a recording; the message and ``issues`` in the context list every complaint.
    """
    complaints: list[str] = []
    record = _json_object(text, complaints)
    machine = None if complaints else _machine(Fields(record, complaints=complaints), file)
    if machine is None or complaints:
        count = "1 complaint" if len(complaints) == 1 else f"{len(complaints)} complaints"
        raise UsageError(
            f"{file} is not a recorded machine ({count}): {'; '.join(complaints)}",
            hint="record one with `klein-setup detect --json`, or unset KLEIN_SETUP_MACHINE",
            issues=complaints,
            path=str(file),
        )
    return machine


def _json_object(text: str, complaints: list[str]) -> Mapping[str, object]:
    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        complaints.extend(f"{name}: given twice" for name in sorted(set(names)) if names.count(name) > 1)
        return dict(pairs)

    try:
        record = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        complaints.append(f"it is not JSON: {error}")
        return {}
    if not isinstance(record, dict):
        complaints.append("it is JSON, but not an object")
        return {}
    inner = record.get("machine")
    if isinstance(inner, dict) and "command" in record:  # a whole --json document, whose version covers its parts
        version = record.get("schema_version")
        return {"schema_version": RECORDING_SCHEMA_VERSION if version in _DOCUMENT_VERSIONS else version, **inner}
    return record


def _machine(fields: Fields, file: Path) -> Machine:
    fields.exactly("schema_version", RECORDING_SCHEMA_VERSION)
    fields.optional_text("recorded_from")  # set in a recording made from a recording: this file replaces it
    machine = Machine(
        os=fields.choice("os", OPERATING_SYSTEMS, "other"),
        os_release=fields.text("os_release"),
        is_wsl=fields.flag("is_wsl"),
        architecture=fields.text("architecture"),
        libc=fields.optional_text("libc"),
        python_version=fields.text("python_version"),
        distribution=fields.optional_text("distribution"),
        gpus=tuple(_gpu(each) for each in fields.optional_objects("gpus")),
        driver_version=_optional_version(fields, "driver_version"),
        cuda_driver_version=fields.optional_pair("cuda_driver_version"),
        memory_total_bytes=fields.optional_count("memory_total_bytes"),
        memory_available_bytes=fields.optional_count("memory_available_bytes"),
        memory_physical_bytes=fields.optional_count("memory_physical_bytes"),
        swap_total_bytes=fields.optional_count("swap_total_bytes"),
        swap_free_bytes=fields.optional_count("swap_free_bytes"),
        swap_grows=fields.optional_flag("swap_grows"),
        locked_limit_bytes=fields.optional_count("locked_limit_bytes"),
        file_systems=tuple(_file_system(each) for each in fields.optional_objects("file_systems")),
        probes=tuple(_probe(each) for each in fields.optional_objects("probes")),
        recorded_from=str(file),
    )
    fields.report_unknown_keys()
    return machine


def _optional_version(fields: Fields, name: str) -> str | None:
    value = fields.values.get(name)
    if value is None or (isinstance(value, str) and parse_driver_version(value)):
        return fields.optional_text(name)
    return fields.complain(name, 'numbers separated by dots, such as "580.95.05", or null', None)


def _gpu(fields: Fields) -> Gpu:
    gpu = Gpu(
        vendor=fields.choice("vendor", VENDORS, "other"),
        name=fields.text("name"),
        index=fields.count("index"),
        uuid=fields.optional_text("uuid"),
        pci_bus_id=fields.optional_text("pci_bus_id"),
        pci_id=fields.optional_text("pci_id"),
        compute_capability=fields.optional_pair("compute_capability"),
        architecture=fields.optional_text("architecture"),
        memory_total_bytes=fields.optional_count("memory_total_bytes"),
        memory_free_bytes=fields.optional_count("memory_free_bytes"),
        memory_reserved_bytes=fields.optional_count("memory_reserved_bytes"),
        is_display_attached=fields.optional_flag("is_display_attached"),
        is_mig_enabled=fields.optional_flag("is_mig_enabled"),
        mig_devices=fields.optional_texts("mig_devices"),
        mig_memory_bytes=fields.optional_counts("mig_memory_bytes"),
        driver_model=fields.optional_text("driver_model"),
        driver_version=fields.optional_text("driver_version"),
        shares_memory=fields.optional_flag("shares_memory") is True,
        adrenalin=fields.optional_text("adrenalin"),
    )
    fields.report_unknown_keys()
    return gpu


def _file_system(fields: Fields) -> FileSystem:
    file_system = FileSystem(
        path=Path(fields.text("path")),
        device=fields.count("device"),
        total_bytes=fields.count("total_bytes"),
        free_bytes=fields.count("free_bytes"),
        kind=fields.optional_text("kind"),
    )
    fields.report_unknown_keys()
    return file_system


def _probe(fields: Fields) -> ProbeResult:
    probe = ProbeResult(source=fields.text("source"), is_ok=fields.flag("is_ok"), detail=fields.text("detail"))
    fields.report_unknown_keys()
    return probe
