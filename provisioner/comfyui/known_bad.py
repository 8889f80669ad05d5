"""A release of ComfyUI and a machine -> warnings: combinations that are known to fail, and what works there."""

from __future__ import annotations

from pathlib import Path

from provisioner.comfyui.release_models import ComfyTable, KnownBad
from provisioner.comfyui.releases import is_at_least
from provisioner.core.models import Finding, Machine

_GB = 1000**3


def known_bad(version: str | None, machine: Machine, table: ComfyTable, *, tree: Path) -> tuple[Finding, ...]:
    """Return a warning for each row of the table that the release and the machine match.

    Parameters
    ----------
    version : str, optional
        Of ComfyUI; without one, or with one that cannot be compared, nothing is known.
    machine : Machine
        This machine.
    table : ComfyTable
        Contains the rows.
    tree : Path
        ComfyUI's folder.
    """
    return tuple(
        Finding(
            code="comfyui-known-bad",
            severity="warning",
            message=f"ComfyUI {version} is known to fail on machines like this: {row.symptom} ({row.threads[0]}).",
            remedy="by-hand",
            path=tree,
            hint=f"Known to work: {row.good}.",
        )
        for row in table.known_bad
        if version is not None and _has_release(row, version) and _has_machine(row, machine)
    )


def _has_release(row: KnownBad, version: str) -> bool:
    return is_at_least(version, row.since) is True and (row.before is None or not is_at_least(version, row.before))


def _has_machine(row: KnownBad, machine: Machine) -> bool:
    if row.os not in (None, machine.os) or (row.is_wsl and not machine.is_wsl):
        return False
    memory, most = machine.memory_total_bytes, row.max_memory_gb
    if most is not None and (memory is None or memory > most * 1.1 * _GB):  # sold as 24 GB: 24 GiB, 25.8 GB
        return False
    gpus = [gpu for gpu in machine.gpus if row.vendor in (None, gpu.vendor)]
    if row.min_sm is not None:
        gpus = [gpu for gpu in gpus if gpu.compute_capability and _sm(gpu.compute_capability) >= row.min_sm]
    if row.architectures:
        gpus = [gpu for gpu in gpus if (gpu.architecture or "").startswith(row.architectures)]
    return len(gpus) >= (row.min_gpus or 1)


def _sm(capability: tuple[int, int]) -> int:
    return capability[0] * 10 + capability[1]
