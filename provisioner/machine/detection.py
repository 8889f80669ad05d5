"""Detect the machine: read every source, each of which may fail by itself, and combine the answers.

It changes nothing, waits at most a few seconds for each source, and ignores ``CUDA_VISIBLE_DEVICES``: it
describes the machine, not what one program may see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from provisioner.core.errors import CommandError, StorageError, UsageError
from provisioner.core.models import FileSystem, Machine, ProbeResult
from provisioner.core.ports import RunProcess
from provisioner.machine.readings import (
    NVIDIA_SMI_FIELDS,
    GraphicsReading,
    HostReading,
    NvidiaReading,
    assemble_machine,
    fields_after_refusal,
    needs_nvidia_smi,
    nvidia_smi_arguments,
    parse_machine_record,
    parse_nvidia_smi,
)

MACHINE_VARIABLE = "KLEIN_SETUP_MACHINE"
"""Environment variable that names a recorded machine to use instead of detecting this one."""

NVIDIA_SMI_TIMEOUT_S = 5.0


class Host(Protocol):
    """The computer around the GPU."""

    def read(self) -> HostReading:
        """Return system, Python and RAM."""

    def file_system_of(self, path: Path) -> FileSystem:
        """Return the file system of a path; raises StorageError."""

    def read_text(self, path: Path) -> str:
        """Return the text of a small file; raises UnreadableError."""

    def kernel_driver_files(self) -> tuple[tuple[str, str], ...]:
        """Return the paths and texts of the kernel's files about the NVIDIA driver."""

    def nvidia_smi_paths(self) -> tuple[Path, ...]:
        """Return absolute paths of nvidia-smi, likeliest first."""


def detect_machine(
    *,
    nvml: Callable[[], NvidiaReading],
    run: RunProcess,
    host: Host,
    graphics: Callable[[HostReading], GraphicsReading],
    environ: Mapping[str, str],
    paths: Sequence[Path] = (),
) -> Machine:
    """Return what this machine is, or the recorded one that ``KLEIN_SETUP_MACHINE`` names.

    Parameters
    ----------
    nvml : callable
        Reads NVML.
    run : callable
        Starts nvidia-smi, where NVML does not answer everything.
    host : Host
        System, Python, RAM, file systems and small files.
    graphics : callable
        Lists graphics processors without NVIDIA's interfaces.
    environ : mapping
        Environment variables.
    paths : sequence of Path
        Paths whose file systems matter to a plan.

    Returns
    -------
    Machine
        With a probe for every source that was read; what no source knew is None.

    Raises
    ------
    UsageError
        The recording cannot be read or is not one.  Nothing else raises: a failed probe is part of the result.
    """
    recording = environ.get(MACHINE_VARIABLE)
    if recording:
        return _recorded_machine(Path(recording), host)
    reading = host.read()
    nvidia = _read_nvidia(nvml, run, host) if reading.os != "macos" else ()
    needs_kernel = not any(each.driver_version for each in nvidia)
    file_systems, probes = _read_file_systems(paths, host)
    return assemble_machine(
        host=reading,
        nvidia=nvidia,
        kernel_files=host.kernel_driver_files() if needs_kernel and reading.os == "linux" else (),
        graphics=graphics(reading),
        file_systems=file_systems,
        probes=probes,
    )


def _recorded_machine(file: Path, host: Host) -> Machine:
    try:
        text = host.read_text(file)
    except StorageError as error:
        raise UsageError(
            f"The recording of a machine cannot be read: {error}",
            hint=f"Correct --machine FILE, or correct or unset {MACHINE_VARIABLE}.",
            path=str(file),
        ) from error
    return parse_machine_record(text, file)


def _read_nvidia(nvml: Callable[[], NvidiaReading], run: RunProcess, host: Host) -> tuple[NvidiaReading, ...]:
    first = nvml()
    if not needs_nvidia_smi(first):
        return (first,)
    second = read_nvidia_smi(run, host.nvidia_smi_paths())
    return (first,) if second is None else (first, second)


def read_nvidia_smi(run: RunProcess, programs: Sequence[Path]) -> NvidiaReading | None:
    """Return the answer of the first nvidia-smi that works, or why none did; None where there is none.

    Parameters
    ----------
    run : callable
        Starts a program.
    programs : sequence of Path
        Absolute paths, tried in order.
    """
    failed: NvidiaReading | None = None
    for program in programs:
        reading = _ask_nvidia_smi(run, program)
        if reading.reason is None:
            return reading
        failed = failed or reading
    return failed


def _ask_nvidia_smi(run: RunProcess, program: Path) -> NvidiaReading:
    fields: tuple[str, ...] | None = NVIDIA_SMI_FIELDS
    reason = "it supports none of the requested fields"
    while fields:  # an old one rejects unknown fields, so ask again without them
        try:
            ran = run([program, *nvidia_smi_arguments(fields)], timeout_s=NVIDIA_SMI_TIMEOUT_S)
        except CommandError as error:
            return NvidiaReading(source="nvidia-smi", reason=str(error))
        if ran.returncode == 0:
            return parse_nvidia_smi(ran.stdout, fields)
        said = f"{ran.stdout}\n{ran.stderr}"
        reason = f"{program}: {_first_line(said) or f'exit status {ran.returncode}'}"
        fields = fields_after_refusal(fields, said)
    return NvidiaReading(source="nvidia-smi", reason=reason)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _read_file_systems(paths: Sequence[Path], host: Host) -> tuple[list[FileSystem], list[ProbeResult]]:
    """Return each file system once, in the order of the paths, and why any could not be read."""
    found: dict[int, FileSystem] = {}
    probes = []
    for path in paths:
        try:
            file_system = host.file_system_of(path)
        except StorageError as error:
            probes.append(ProbeResult(source="file system", is_ok=False, detail=str(error)))
        else:
            found.setdefault(file_system.device, file_system)
    return list(found.values()), probes
