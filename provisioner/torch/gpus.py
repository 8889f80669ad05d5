"""Select the GPUs of a machine that torch should use, before any build is tried.

NVIDIA comes before AMD, AMD before Intel.  ``CUDA_VISIBLE_DEVICES`` is ignored: every GPU of the machine counts, even
where one program may not see it today.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from provisioner.core.errors import (
    DriverDroppedGpuError,
    DriverTooOldError,
    GpuTooOldError,
    GpuUnknownError,
    GpuUnsupportedError,
    NvidiaDriverMissingError,
    UnsupportedMachineError,
)
from provisioner.core.models import Gpu, Machine
from provisioner.machine.readings import UNNAMED_NVIDIA_GPU
from provisioner.torch.build_table import BuildRow, GpuGeneration, Version, Wheels, version_of
from provisioner.torch.card_table import IntelGpu, amd_card, card_named
from provisioner.torch.compatibility import Case, Device, capability_text, labels, min_driver, reaches

LeftOutWhy = Literal["gpu-too-old", "driver-dropped-gpu", "gpu-unknown", "wrong-numbers", "integrated"]

CPU_HINT = "Add --cpu to use the processor, which is slow."


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A GPU of the machine that no build can support."""

    device: Device
    why: LeftOutWhy


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The GPUs of one vendor, before any build is tried."""

    devices: tuple[Device, ...]
    left_out: tuple[LeftOut, ...] = ()

    def uncovered(self, covered: Sequence[Device]) -> list[Device]:
        """Return the GPUs that are not among the covered ones."""
        rest = [device for device in self.devices if device not in covered]
        return rest + [each.device for each in self.left_out]


# --- by vendor --------------------------------------------------------------------------------------


def nvidia_gpus(machine: Machine) -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs; an unnamed one where a driver is loaded and nothing names its GPU.

    A container that has the kernel's files but not NVIDIA's libraries looks like that.
    """
    found = tuple(gpu for gpu in machine.gpus if gpu.vendor == "nvidia")
    if found or machine.driver_version is None or any(gpu.vendor == "amd" for gpu in machine.gpus):
        return found
    return (Gpu(vendor="nvidia", name=UNNAMED_NVIDIA_GPU, index=0),)


def amd_gpus(machine: Machine) -> tuple[Gpu, ...]:
    """Return the AMD GPUs, including integrated ones."""
    return tuple(gpu for gpu in machine.gpus if gpu.vendor == "amd")


def validated_intel_gpus(machine: Machine, known: Sequence[IntelGpu]) -> tuple[Gpu, ...]:
    """Return the Intel GPUs that torch was validated on; UHD and Iris Xe are left out."""
    return tuple(gpu for gpu in machine.gpus if gpu.vendor == "intel" and card_named(gpu, known) is not None)


def unreached_gpus(case: Case, build: BuildRow, wheels: Wheels) -> tuple[str, ...]:
    """Return the names of the GPUs of a build's vendor that it has no code for, with any driver."""
    found = []
    for gpu in case.machine.gpus:
        if gpu.vendor == build.kind and gpu.vendor in ("nvidia", "amd"):
            capability = gpu.compute_capability
            sms = (capability[0] * 10 + capability[1],) if capability else ()
            device = Device(name=gpu.name, sms=sms, gfx=_known_gfx(gpu.architecture or ""))
            if device.rank == 0 or not reaches(case, build, wheels, device, with_ptx=True):
                found.append(gpu.name)
    return tuple(found)


def amd_candidates(case: Case, gpus: Sequence[Gpu]) -> Candidates:
    """Return the AMD GPUs with their architecture; where there are cards, those that are part of a processor apart.

    Raises
    ------
    GpuUnknownError
        No architecture is known: the kernel's compute driver lists none of them, or no PCI id is in the table.
    GpuUnsupportedError
        torch computes wrong numbers on every one that is left.
    """
    every = [_amd_device(case, gpu) for gpu in gpus]
    known = [each for each in every if each.gfx]
    if not known:
        raise _unknown_amd(case, every)
    sound = [each for each in known if each.card is None or each.card.wrong is None]
    if not sound:
        raise _wrong_amd(case, known)
    cards = [each for each in sound if not _is_integrated(each)] or sound
    reasons: dict[LeftOutWhy, list[Device]] = {
        "gpu-unknown": [each for each in every if not each.gfx],
        "wrong-numbers": [each for each in known if each not in sound],
        "integrated": [each for each in sound if each not in cards],
    }
    left_out = tuple(LeftOut(device=device, why=why) for why, devices in reasons.items() for device in devices)
    return Candidates(devices=tuple(cards), left_out=left_out)


def only_integrated(candidates: Candidates) -> Candidates | None:
    """Return the same GPUs with only those that are part of a processor to be served; None where there is none."""
    chosen = tuple(each.device for each in candidates.left_out if each.why == "integrated")
    if not chosen:
        return None
    rest = tuple(LeftOut(device=each, why="gpu-too-old") for each in candidates.devices)
    return Candidates(
        devices=chosen, left_out=(*rest, *(each for each in candidates.left_out if each.why != "integrated"))
    )


def known_devices(case: Case, build: BuildRow) -> tuple[Device, ...]:
    """Return the AMD GPUs whose architecture is known, of whatever use it is; none for a build of another vendor."""
    found = [_amd_device(case, gpu) for gpu in amd_gpus(case.machine)] if build.kind == "amd" else []
    return tuple(device for device in found if device.gfx)


def _amd_device(case: Case, gpu: Gpu) -> Device:
    return Device(name=gpu.name, gfx=_known_gfx(gpu.architecture or ""), card=amd_card(gpu, case.table.amd_gpus))


def _is_integrated(device: Device) -> bool:
    return device.card is not None and device.card.is_integrated


def _unknown_amd(case: Case, devices: Sequence[Device]) -> GpuUnknownError:
    names = labels(devices)
    if case.machine.os == "windows":
        build = next(row for row in case.table.builds_of("amd") if row.offers_for(case.platform))
        return GpuUnknownError(
            f"the architecture of the {names} is not known: neither its PCI id nor its name is in klein-setup's table,"
            " and AMD's build for Windows needs the packages for exactly that architecture",
            hint=f"Update klein-setup; or add --torch {build.tag} --force, which fetches the packages for every"
            " architecture (10 GB).",
            gpu=names,
        )
    return GpuUnknownError(
        f"the architecture of the {names} is not known: the kernel's compute driver (amdgpu with KFD) does not list it",
        hint="Install the kernel's amdgpu driver and give this user access to /dev/kfd.",
        gpu=names,
    )


def _wrong_amd(case: Case, devices: Sequence[Device]) -> GpuUnsupportedError:
    first = devices[0]
    why = first.card.wrong if first.card is not None else ""
    return GpuUnsupportedError(
        f"no build of torch is chosen for the {labels(devices)}: {why}",
        hint=alternatives_for(case),
        gpu=labels(devices),
    )


def alternatives_for(case: Case) -> str:
    """Return what is left on this system for an AMD GPU that no build serves."""
    return next((each.hint for each in case.table.alternatives if each.os == case.machine.os), CPU_HINT)


def _known_gfx(architecture: str) -> str:
    """Return the architecture; empty where it is not in AMD's spelling."""
    return architecture if re.fullmatch("gfx[0-9]{1,3}[0-9a-f]{2}", architecture) else ""


# --- NVIDIA -----------------------------------------------------------------------------------------


def nvidia_candidates(case: Case, gpus: Sequence[Gpu]) -> Candidates:
    """Return the NVIDIA GPUs with their compute capability, and apart from them those no build can support.

    Raises
    ------
    NvidiaDriverMissingError
        No driver answers.
    DriverTooOldError
        No GPU works with the loaded driver branch; a newer one is needed.
    DriverDroppedGpuError, GpuTooOldError, GpuUnknownError
        The same is wrong with every one of them.
    """
    driver = case.driver
    if driver is None:
        _raise_driver_missing(case, gpus)
    devices: list[Device] = []
    left_out: list[LeftOut] = []
    for gpu in gpus:
        found = _nvidia_candidate(case, gpu, driver)
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            devices.append(found)
    if not devices:
        raise _error_for_all(case, left_out)
    return Candidates(devices=tuple(devices), left_out=tuple(left_out))


def generation_of(case: Case, sm: int) -> GpuGeneration | None:
    """Return the table's row for a compute capability; None where it has none."""
    return next((row for row in case.table.gpus if row.sm == sm), None)


def driver_hint(case: Case, devices: Sequence[Device] = ()) -> str:
    """Return the hint for installing the driver that the best build for these GPUs needs."""
    dropped = _first_dropping_branch(case, devices)
    which = f"the newest NVIDIA driver before {dropped}" if dropped else f"NVIDIA driver {best_driver(case)} or newer"
    where = " on Windows itself, not inside WSL" if case.machine.is_wsl else ""
    last = "; later ones no longer support this GPU" if dropped else ""
    return f"Install {which}{where}{last}."


def best_driver(case: Case) -> str:
    """Return the driver that the preferred NVIDIA build needs."""
    build = next(row for row in case.table.builds if row.kind == "nvidia" and not row.only_on_request)
    return min_driver(case, build)


def _first_dropping_branch(case: Case, devices: Sequence[Device]) -> str | None:
    rows = (generation_of(case, sm) for device in devices for sm in device.sms)
    return next((row.dropped_from for row in rows if row and row.dropped_from), None)


def _nvidia_candidate(case: Case, gpu: Gpu, driver: Version) -> Device | LeftOut:
    if gpu.compute_capability is None:
        return _unread_candidate(case, gpu, driver)
    major, minor = gpu.compute_capability
    device = Device(name=gpu.name, sms=(major * 10 + minor,))
    if device.rank < min(row.sm for row in case.table.gpus):
        return LeftOut(device=device, why="gpu-too-old")
    row = generation_of(case, device.rank)
    if row and row.dropped_from and driver >= version_of(row.dropped_from):
        return LeftOut(device=device, why="driver-dropped-gpu")
    if row and row.min_driver and driver < version_of(row.min_driver):
        raise DriverTooOldError(
            f"the {device.label} needs NVIDIA driver {row.min_driver} or newer;"
            f" {case.machine.driver_version} is installed",
            hint=driver_hint(case, (device,)),
            gpu=gpu.name,
            found=case.machine.driver_version,
            needed=row.min_driver,
        )
    return device


def _unread_candidate(case: Case, gpu: Gpu, driver: Version) -> Device | LeftOut:
    """Return what a GPU of unknown compute capability may be, judged by the GPUs that the driver supports.

    From the branch that dropped the old GPUs on, all supported ones run the same code; before it they do not.
    """
    dropping = [row for row in case.table.gpus if row.dropped_from]
    device = Device(name=gpu.name)
    if any(driver < version_of(row.dropped_from or "") for row in dropping):
        return LeftOut(device=device, why="gpu-unknown")
    if gpu.uuid is None and any(probe.source == "nvml" and probe.is_ok for probe in case.machine.probes):
        return LeftOut(device=device, why="driver-dropped-gpu")  # NVML answers and does not list it
    possible = tuple(
        row.sm
        for row in case.table.gpus
        if not row.dropped_from
        and not (row.min_driver and driver < version_of(row.min_driver))
        and not (row.is_jetson and case.platform != "linux_aarch64")
    )
    return Device(name=gpu.name, sms=possible)


def _raise_driver_missing(case: Case, gpus: Sequence[Gpu]) -> NoReturn:
    names = labels([Device(name=gpu.name) for gpu in gpus])
    needed = best_driver(case)
    where = {
        "windows": "Install NVIDIA driver {} from nvidia.com/drivers and restart.",
        "wsl": "Install NVIDIA driver {} on Windows itself, and no driver inside WSL.",
        "linux": "Install NVIDIA's driver {} (the open-source nouveau cannot run CUDA) and restart.",
    }["wsl" if case.machine.is_wsl else case.driver_system]
    raise NvidiaDriverMissingError(
        f"there is an NVIDIA GPU ({names}) but no NVIDIA driver answers; driver {needed} or newer is needed",
        hint=where.format(needed),
        gpu=names,
        found=case.machine.driver_version,
        needed=needed,
    )


def _error_for_all(case: Case, left_out: Sequence[LeftOut]) -> UnsupportedMachineError:
    """Return the error where no build supports any GPU; it names the first fault that can be fixed."""
    order: tuple[LeftOutWhy, ...] = ("gpu-unknown", "driver-dropped-gpu", "gpu-too-old")
    why = next(each for each in order if each in [one.why for one in left_out])
    devices = [one.device for one in left_out if one.why == why]
    names, driver = labels(devices), case.machine.driver_version
    if why == "gpu-unknown":
        return GpuUnknownError(
            f"driver {driver} is loaded but the compute capability of the {names} cannot be read; builds of torch for"
            " the GPUs this driver supports differ",
            hint="Make nvidia-smi work here; in a container, start it with access to the GPU.",
            gpu=names,
            found=driver,
        )
    if why == "driver-dropped-gpu":
        branch = next(row.dropped_from for row in case.table.gpus if row.dropped_from)
        return DriverDroppedGpuError(
            f"driver {driver} does not support the {names}: from {branch} on it knows no GPU before compute capability"
            f" {capability_text(_oldest_kept(case))}; one before {branch} is needed",
            hint=f"Install the newest NVIDIA driver before {branch}.",
            gpu=names,
            found=driver,
            needed=f"before {branch}",
        )
    oldest = capability_text(min(row.sm for row in case.table.gpus))
    return GpuTooOldError(
        f"the {names} is too old: torch has code from compute capability {oldest} on",
        hint=CPU_HINT,
        gpu=names,
        needed=oldest,
    )


def _oldest_kept(case: Case) -> int:
    """Return the oldest compute capability, of graphics cards, that no driver branch has dropped."""
    return min(row.sm for row in case.table.gpus if not row.dropped_from and not row.is_jetson)
