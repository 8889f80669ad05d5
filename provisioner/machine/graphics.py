"""List graphics processors as the system does: PCI bus and AMD's topology, Apple's chip, Windows registry.

It finds cards, not working drivers, and uses no product names except the system's.
What cannot be found this way is None, with a probe that says so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from provisioner.core.errors import CommandError
from provisioner.core.models import Gpu, ProbeResult, Vendor
from provisioner.core.ports import RunProcess
from provisioner.machine.readings import GraphicsReading, HostReading, normal_pci_bus_id, parse_gfx_target_version

_PCI_VENDORS: dict[int, Vendor] = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel"}
_VENDOR_NAMES: dict[Vendor, str] = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
_DISPLAY_CLASS = 0x03  # VGA, 3D and other display controllers
_DISPLAY_CLASS_KEY = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
_SYSCTL = "/usr/sbin/sysctl"


def read_graphics(
    host: HostReading,
    *,
    run: RunProcess,
    root: Path = Path("/"),
    registry: Callable[[], Iterable[Mapping[str, object]]] | None = None,
) -> GraphicsReading:
    """Return the graphics processors the system itself lists.

    Parameters
    ----------
    host : HostReading
        Which system this is, and its RAM, which is also an Apple chip's graphics memory.
    run : callable
        Starts a program by argument list (macOS: ``sysctl``).
    root : Path
        Folder that contains ``/sys``.
    registry : callable, optional
        Returns the values of each key of the Windows display class; this computer's where None.
    """
    if host.os == "linux":
        return read_linux_graphics(root)
    if host.os == "macos":
        return read_apple_graphics(host, run)
    if host.os == "windows":
        return read_windows_graphics(registry or display_class_keys)
    nothing = ProbeResult(source="graphics", is_ok=False, detail="no way to list graphics processors on this system")
    return GraphicsReading(source="graphics", probes=(nothing,))


# --- Linux -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _PciCard:
    address: str
    vendor: Vendor
    ids: str  # "10de:2684"


def read_linux_graphics(root: Path) -> GraphicsReading:
    """Return the display controllers on the PCI bus, AMD's with architecture and memory."""
    cards = list(_pci_cards(root / "sys/bus/pci/devices"))
    topology = _kfd_nodes(root / "sys/class/kfd/kfd/topology/nodes")
    gpus: list[Gpu] = [_plain_gpu(card, index) for index, card in enumerate(_of_vendor(cards, "nvidia"))]
    probes: list[ProbeResult] = []
    ids = {card.address: card.ids for card in cards}
    for address, architecture in topology.items():
        index = sum(gpu.vendor == "amd" for gpu in gpus)
        gpus.append(_amd_gpu(root, address, architecture, index, ids.get(address)))
    for card in _of_vendor(cards, "amd"):
        if card.address not in topology:
            gpus.append(_plain_gpu(card, sum(gpu.vendor == "amd" for gpu in gpus)))
            detail = f"AMD card at {card.address}: the kernel's compute driver (amdgpu, KFD) does not list it"
            probes.append(ProbeResult(source="kfd", is_ok=False, detail=detail))
    gpus += [_plain_gpu(card, index) for index, card in enumerate(_of_vendor(cards, "intel"))]
    return GraphicsReading(source="PCI bus", gpus=tuple(gpus), probes=tuple(probes))


def _of_vendor(cards: Iterable[_PciCard], vendor: Vendor) -> list[_PciCard]:
    return [card for card in cards if card.vendor == vendor]


def _plain_gpu(card: _PciCard, index: int) -> Gpu:
    name = f"{_VENDOR_NAMES[card.vendor]} GPU ({card.ids})"
    return Gpu(vendor=card.vendor, name=name, index=index, pci_bus_id=card.address, pci_id=card.ids)


def _pci_cards(devices: Path) -> Iterable[_PciCard]:
    for folder in _folders(devices):
        kind, vendor, device = (_number(folder / name) for name in ("class", "vendor", "device"))
        known = _PCI_VENDORS.get(vendor or 0)
        if known and kind is not None and kind >> 16 == _DISPLAY_CLASS:
            yield _PciCard(address=normal_pci_bus_id(folder.name), vendor=known, ids=f"{vendor:04x}:{device or 0:04x}")


def _kfd_nodes(nodes: Path) -> dict[str, str]:
    """Return PCI address and architecture of every GPU in AMD's compute topology; processors are nodes too."""
    found = {}
    for folder in sorted(_folders(nodes), key=lambda each: (len(each.name), each.name)):
        properties = _properties(folder / "properties")
        architecture = parse_gfx_target_version(properties.get("gfx_target_version", 0))
        if architecture and properties.get("simd_count", 0) > 0:
            place = properties.get("location_id", 0)  # bus, device and function, as in a PCI address
            address = f"{properties.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"
            found[address] = architecture
    return found


def _amd_gpu(root: Path, address: str, architecture: str, index: int, pci_id: str | None) -> Gpu:
    device = root / "sys/bus/pci/devices" / address
    total, used = _number(device / "mem_info_vram_total"), _number(device / "mem_info_vram_used")
    name = _text(device / "product_name") or f"AMD GPU ({architecture})"
    return Gpu(
        vendor="amd",
        name=name,
        index=index,
        pci_bus_id=address,
        pci_id=pci_id,
        architecture=architecture,
        memory_total_bytes=total,
        memory_free_bytes=total - used if total is not None and used is not None and used <= total else None,
    )


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(parent.iterdir())
    except OSError:
        return []  # no such bus or driver


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(file: Path) -> int | None:
    text = _text(file) or ""
    return int(text, 0) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}|[1-9][0-9]{0,19}|0", text) else None


def _properties(file: Path) -> dict[str, int]:
    lines = (line.split() for line in (_text(file) or "").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and re.fullmatch(r"[0-9]{1,20}", words[1])}


# --- macOS -------------------------------------------------------------------------------------


def read_apple_graphics(host: HostReading, run: RunProcess) -> GraphicsReading:
    """Return the graphics processor of an Apple chip; it shares the computer's memory."""
    if host.architecture != "arm64":
        detail = "a Mac without an Apple chip: torch has no GPU support for it"
        return GraphicsReading(source="sysctl", probes=(ProbeResult(source="sysctl", is_ok=False, detail=detail),))
    name, probes = "Apple chip", []
    try:
        ran = run([_SYSCTL, "-n", "machdep.cpu.brand_string"], timeout_s=2.0)
        if ran.returncode != 0 or not ran.stdout.strip():
            probes.append(ProbeResult(source="sysctl", is_ok=False, detail=f"exit status {ran.returncode}"))
        else:
            name = ran.stdout.strip()
    except CommandError as error:
        probes.append(ProbeResult(source="sysctl", is_ok=False, detail=str(error)))
    gpu = Gpu(vendor="apple", name=name, index=0, memory_total_bytes=host.memory.total_bytes, shares_memory=True)
    return GraphicsReading(source="sysctl", gpus=(gpu,), probes=tuple(probes))


# --- Windows -----------------------------------------------------------------------------------


def read_windows_graphics(registry: Callable[[], Iterable[Mapping[str, object]]]) -> GraphicsReading:
    """Return the display adapters that a Windows driver was installed for.

    The registry may still list a card that was removed, so this is less certain than a driver's answer.
    Entries without a PCI vendor (remote desktop, the basic display driver) are not GPUs.
    """
    try:
        keys = list(registry())
    except OSError as error:
        failed = ProbeResult(source="registry", is_ok=False, detail=f"the display adapters cannot be read: {error}")
        return GraphicsReading(source="registry", probes=(failed,))
    gpus: list[Gpu] = []
    for values in keys:
        device = str(values.get("MatchingDeviceId", ""))
        match = re.search(r"ven_([0-9a-f]{4})(?:&dev_([0-9a-f]{4}))?", device, re.IGNORECASE)
        vendor = _PCI_VENDORS.get(int(match[1], 16)) if match else None
        if match and vendor:
            gpus.append(
                Gpu(
                    vendor=vendor,
                    name=str(values.get("DriverDesc") or f"{_VENDOR_NAMES[vendor]} GPU"),
                    index=sum(gpu.vendor == vendor for gpu in gpus),
                    pci_id=f"{match[1]}:{match[2]}".lower() if match[2] else None,
                    memory_total_bytes=_registry_size(values.get("HardwareInformation.qwMemorySize")),
                    driver_version=_registry_text(values.get("DriverVersion")),
                    adrenalin=_registry_text(values.get("RadeonSoftwareVersion")) if vendor == "amd" else None,
                )
            )
    return GraphicsReading(source="registry", gpus=tuple(gpus))


def _registry_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _registry_size(value: object) -> int | None:
    """Return a size in bytes, which drivers store as a number or as eight little-endian bytes."""
    if isinstance(value, bytes) and len(value) == 8:
        value = int.from_bytes(value, "little")
    return value if isinstance(value, int) and value > 0 else None


def display_class_keys() -> list[dict[str, object]]:
    """Return the values of each key of this computer's display class; an empty list outside Windows."""
    if sys.platform != "win32":
        return []
    import winreg

    found = []
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _DISPLAY_CLASS_KEY) as parent:
        names = [winreg.EnumKey(parent, number) for number in range(winreg.QueryInfoKey(parent)[0])]
        for name in names:
            if re.fullmatch(r"[0-9]{4}", name):  # users may not read its neighbours ("Properties")
                with winreg.OpenKey(parent, name) as key:
                    rows = [winreg.EnumValue(key, number) for number in range(winreg.QueryInfoKey(key)[1])]
                    found.append({row[0]: row[1] for row in rows})
    return found
