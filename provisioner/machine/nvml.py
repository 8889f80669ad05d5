"""Read GPUs and driver from NVML, through the `pynvml` module of nvidia-ml-py.

Each query may fail by itself without affecting the others.  This module never raises for a machine
without NVIDIA, never uses ``CUDA_VISIBLE_DEVICES`` (NVML does not either), and changes no setting of
a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from provisioner.machine.readings import (
    MigDevice,
    NvidiaDevice,
    NvidiaReading,
    parse_cuda_driver_version,
    parse_driver_version,
)

T = TypeVar("T")

# Sentences for the reasons that have a next step; others are quoted from NVML.
_REASONS = {
    "NVMLError_LibraryNotFound": "NVML is not on this machine: no NVIDIA driver, or a container without its libraries",
    "NVMLError_DriverNotLoaded": "NVML is installed, but the NVIDIA driver is not loaded",
    "NVMLError_LibRmVersionMismatch": (
        "the NVIDIA driver was updated while its old version is still loaded: restart the computer"
    ),
    "NVMLError_NoPermission": "this user may not access the NVIDIA driver",
}
# nvmlDriverModel_t; Windows only, elsewhere the query is "Not Supported".
_DRIVER_MODELS = {0: "WDDM", 1: "TCC", 2: "MCDM"}


def read_nvml(library: Any = None) -> NvidiaReading:  # noqa: ANN401 - a module without types
    """Return what NVML reports about the driver and every GPU.

    Parameters
    ----------
    library : module, optional
        A module with the functions of `pynvml`; None imports that one.

    Returns
    -------
    NvidiaReading
        With ``reason`` set where NVML could not be used at all.
    """
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except (ImportError, OSError) as error:
            return NvidiaReading(source="nvml", reason=f"the Python module pynvml cannot be loaded: {error}")
    asked = _Asked(library)
    try:
        library.nvmlInit()
    except asked.may_fail as error:
        return NvidiaReading(source="nvml", reason=_REASONS.get(type(error).__name__) or f"NVML: {_said(error)}")
    try:
        return _read_driver(library, asked)
    finally:
        with contextlib.suppress(*asked.may_fail):
            library.nvmlShutdown()


class _Asked:
    """Runs one query at a time and records why it failed."""

    def __init__(self, library: Any) -> None:  # noqa: ANN401 - a module without types
        # Older bindings lack functions and arguments; names can contain bytes that are not text.
        self.may_fail: tuple[type[BaseException], ...] = (
            library.NVMLError,
            AttributeError,
            TypeError,
            ValueError,
            OSError,
        )
        self.failures: list[str] = []

    def __call__(self, what: str, ask: Callable[[], T], *, is_needed: bool = True) -> T | None:
        """Return the answer; None where the query failed, which is recorded if the answer is needed."""
        try:
            return ask()
        except self.may_fail as error:
            if is_needed:
                self.failures.append(f"{what}: {_said(error)}")
            return None


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _read_driver(library: Any, asked: _Asked) -> NvidiaReading:  # noqa: ANN401
    version = asked("driver version", lambda: _text(library.nvmlSystemGetDriverVersion()))
    if version is not None and parse_driver_version(version) is None:
        asked.failures.append(f"driver version: not a version: {version}")
        version = None
    cuda = asked("CUDA version", lambda: int(library.nvmlSystemGetCudaDriverVersion_v2()), is_needed=False)
    if cuda is None:
        cuda = asked("CUDA version", lambda: int(library.nvmlSystemGetCudaDriverVersion()))
    count = asked("number of GPUs", lambda: int(library.nvmlDeviceGetCount())) or 0
    return NvidiaReading(
        source="nvml",
        driver_version=version,
        cuda_driver_version=parse_cuda_driver_version(cuda) if cuda else None,
        devices=tuple(_read_device(library, index) for index in range(count)),
        failures=tuple(asked.failures),
    )


def _read_device(library: Any, index: int) -> NvidiaDevice:  # noqa: ANN401
    asked = _Asked(library)
    handle = asked("handle", lambda: library.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return NvidiaDevice(index=index, failures=tuple(asked.failures))
    capability = asked("compute capability", lambda: _pair(library.nvmlDeviceGetCudaComputeCapability(handle)))
    total, free, reserved = _memory(library, asked, handle)
    mig_mode = asked("MIG mode", lambda: _pair(library.nvmlDeviceGetMigMode(handle)), is_needed=False)
    model = asked("driver model", lambda: int(library.nvmlDeviceGetCurrentDriverModel(handle)), is_needed=False)
    display = asked("display", lambda: bool(library.nvmlDeviceGetDisplayActive(handle)), is_needed=False)
    return NvidiaDevice(
        index=index,
        name=asked("name", lambda: _text(library.nvmlDeviceGetName(handle))),
        uuid=asked("UUID", lambda: _text(library.nvmlDeviceGetUUID(handle))),
        pci_bus_id=asked("PCI address", lambda: _text(library.nvmlDeviceGetPciInfo(handle).busId)),
        compute_capability=capability,
        memory_total_bytes=total,
        memory_free_bytes=free,
        memory_reserved_bytes=reserved,
        is_display_active=display,
        is_mig_enabled=None if mig_mode is None else mig_mode[0] == 1,
        mig_devices=_mig_devices(library, handle) if mig_mode and mig_mode[0] == 1 else (),
        driver_model=None if model is None else _DRIVER_MODELS.get(model),
        failures=tuple(asked.failures),
    )


def _memory(library: Any, asked: _Asked, handle: Any) -> tuple[int | None, int | None, int | None]:  # noqa: ANN401
    """Return total, free and reserved bytes.

    The second version of the query reports the driver's own memory separately; the first
    counts it as used (measured on driver 580.159.04: 644,939,776 bytes of an H200).  GB10 answers
    neither (XuehaiPan/nvitop#208), and a GPU split by MIG may answer neither.
    """
    second = asked(
        "memory",
        lambda: library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2),
        is_needed=False,
    )
    if second is not None:
        return int(second.total), int(second.free), int(second.reserved)
    first = asked("memory", lambda: library.nvmlDeviceGetMemoryInfo(handle))
    return (None, None, None) if first is None else (int(first.total), int(first.free), None)


def _mig_devices(library: Any, parent: Any) -> tuple[MigDevice, ...]:  # noqa: ANN401
    asked = _Asked(library)
    places = asked("MIG devices", lambda: int(library.nvmlDeviceGetMaxMigDeviceCount(parent))) or 0
    found = []
    for place in range(places):
        handle = asked("MIG device", lambda: library.nvmlDeviceGetMigDeviceHandleByIndex(parent, place))  # noqa: B023
        uuid = asked("UUID", lambda: _text(library.nvmlDeviceGetUUID(handle))) if handle is not None else None  # noqa: B023
        if uuid is not None:  # most slots are empty, and NVML answers "Not Found" for them
            total, free, _ = _memory(library, asked, handle)
            found.append(MigDevice(uuid=uuid, memory_total_bytes=total, memory_free_bytes=free))
    return tuple(found)


def _text(value: object) -> str:
    """Return text; older bindings return bytes, and a PCI address can be a padded buffer."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.rstrip("\x00")


def _pair(value: Any) -> tuple[int, int]:  # noqa: ANN401
    first, second = value
    return int(first), int(second)
