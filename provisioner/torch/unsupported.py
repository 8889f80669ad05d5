"""Errors for a machine that no torch build runs on: what was found, what is needed, and one thing to do.

The functions return errors; their callers raise them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from provisioner.core.errors import (
    DriverTooOldError,
    GpuUnsupportedError,
    JetsonIndexError,
    KleinError,
    PlatformUnsupportedError,
    PythonUnsupportedError,
    UsageError,
)
from provisioner.core.units import listing
from provisioner.torch.build_table import BuildRow, TorchTable, version_of
from provisioner.torch.compatibility import Case, Device, Trial, attempt, capability_text, labels, min_driver
from provisioner.torch.gpus import CPU_HINT, alternatives_for, driver_hint, generation_of

_JETSON_HINT = "Install torch from NVIDIA's index for your JetPack, then use --torch none."


def unsupported_error(case: Case, builds: Sequence[BuildRow], devices: Sequence[Device]) -> KleinError:
    """Return the error where no build supports any of the GPUs; it names the fault that is easiest to fix."""
    automatic = [build for build in builds if not build.only_on_request]
    ranks = sorted({device.rank for device in devices}, reverse=True)
    groups = [tuple(device for device in devices if device.rank == rank) for rank in ranks]
    tried = [(group, attempt(case, build, group)) for group in groups for build in automatic]
    for fault in ("driver", "python", "torchaudio"):
        for group, trial in tried:
            if trial.fault == fault:
                return fault_error(case, trial, group, [each for one, each in tried if one == group])
    group, trial = next(((one, each) for one, each in tried if each.fault == "code"), tried[0])
    return fault_error(case, trial, group)


def fault_error(case: Case, trial: Trial, devices: Sequence[Device], others: Sequence[Trial] = ()) -> KleinError:
    """Return the error for why one build does not run, nor any of the equally good `others`."""
    names = labels(devices)
    if trial.fault == "driver":
        return _driver_error(case, [each for each in others or [trial] if each.fault == "driver"], devices)
    if trial.fault == "python":
        return python_error(case, [each.build for each in others or [trial]], devices)
    if trial.fault in ("system", "wheels") and not devices:
        return PlatformUnsupportedError(
            f"{trial.build.tag} {trial.complaint}",
            hint="Update the system, or use another computer.",
            found=case.machine.os_release,
        )
    if _is_jetson(case, devices):
        return JetsonIndexError(
            f"no build of torch on this index supports the {names} with {case.app.title} and driver"
            f" {case.machine.driver_version}: Jetson boards need NVIDIA's own builds",
            hint=_JETSON_HINT,
            gpu=names,
            found=case.machine.driver_version,
        )
    return GpuUnsupportedError(
        f"no build of torch for {case.platform} supports the {names}: {trial.build.tag} {trial.complaint}",
        hint=_hint_for_unsupported(case, devices),
        gpu=names,
        needed=_known_gpus(case, trial.build),
    )


def _known_gpus(case: Case, build: BuildRow) -> str:
    """Return the architectures that the newest wheels of a build have code for."""
    offers = build.offers_for(case.platform)
    codes = [f"sm_{code}" for code in offers[0].wheels.sm] + list(offers[0].wheels.gfx) if offers else []
    return ", ".join(codes)


def _hint_for_unsupported(case: Case, devices: Sequence[Device]) -> str:
    if devices and devices[0].gfx:
        return alternatives_for(case)
    newest = max(row.sm for row in case.table.gpus)
    if devices and devices[0].rank > newest:
        return f"Update klein-setup: its table ends at compute capability {capability_text(newest)}."
    return CPU_HINT


def _is_jetson(case: Case, devices: Sequence[Device]) -> bool:
    rows = [generation_of(case, sm) for device in devices for sm in device.sms]
    return case.platform == "linux_aarch64" and bool(rows) and all(row is not None and row.is_jetson for row in rows)


def _driver_error(case: Case, trials: Sequence[Trial], devices: Sequence[Device]) -> KleinError:
    needed = min((min_driver(case, trial.build) for trial in trials), key=version_of)
    if _is_jetson(case, devices):
        return JetsonIndexError(
            f"the {labels(devices)} needs driver {needed} for the builds on this index, and has"
            f" {case.machine.driver_version}: its driver comes with JetPack, and so do NVIDIA's own builds of torch",
            hint=_JETSON_HINT,
            gpu=labels(devices),
            found=case.machine.driver_version,
            needed=needed,
        )
    whose = " (the number is Windows' driver)" if case.machine.is_wsl else ""
    return DriverTooOldError(
        f"the {labels(devices)} needs NVIDIA driver {needed} or newer; {case.machine.driver_version} is"
        f" installed{whose}",
        hint=driver_hint(case, devices),
        gpu=labels(devices),
        found=case.machine.driver_version,
        needed=needed,
    )


def python_error(
    case: Case, builds: Sequence[BuildRow] | None = None, devices: Sequence[Device] = ()
) -> PythonUnsupportedError:
    """Return the error for a Python without a complete set; if builds are given, of those, for these GPUs."""
    suitable = [
        python
        for python in _all_pythons(case.table)
        if is_suitable_python(case, python)
        and (builds is None or any(_has_python(replace(case, python=python), build, devices) for build in builds))
    ]
    names = ["torch", "torchvision", *(["torchaudio"] if case.app.needs_torchaudio else [])]
    where = f" with code for the {labels(devices)}" if devices else ""
    ordinary = [each for each in suitable if not each.endswith("t")]
    among = f"{ordinary[0]} to {ordinary[-1]}" if len(ordinary) > 1 else listing(suitable) or "none"
    return PythonUnsupportedError(
        f"{case.app.title} needs {listing(names)}, but no set of them{where} has wheels for Python {case.python};"
        f" there are some for {among}",
        hint=f"Use Python {among} for the environment.",
        found=case.python,
        needed=among,
    )


def _has_python(case: Case, build: BuildRow, devices: Sequence[Device]) -> bool:
    return attempt(case, build, devices).fault in (None, "driver")


def _all_pythons(table: TorchTable) -> tuple[str, ...]:
    """Return every Python the table names, oldest first, free-threaded builds last."""
    names = {python for release in table.releases for python in release.python}
    return tuple(sorted(names, key=lambda each: (each.endswith("t"), version_of(each.rstrip("t")))))


def is_suitable_python(case: Case, python: str) -> bool:
    """Return whether a complete set for the application has wheels for a Python, on some system."""
    app = case.app
    return version_of(python.rstrip("t")) >= app.min_python and any(
        python in release.python and (not app.needs_torchaudio or python in release.torchaudio_python)
        for release in case.table.releases
        if release.version >= app.min_torch
    )


def forced_error(case: Case, trial: Trial, devices: Sequence[Device]) -> KleinError:
    """Return the error for why a build that was named does not run."""
    tag = trial.build.tag
    if trial.fault in ("torchaudio", "app"):
        return UsageError(f"{tag} does not fit {case.app.title}: it {trial.complaint}", torch=tag)
    if trial.fault == "code":
        return GpuUnsupportedError(
            f"{tag} {trial.complaint}", gpu=labels(devices), needed=_known_gpus(case, trial.build)
        )
    if trial.fault == "driver":
        needed, found = min_driver(case, trial.build), case.machine.driver_version
        return DriverTooOldError(f"{tag} {trial.complaint}", gpu=labels(devices), found=found, needed=needed)
    if trial.fault == "python":
        return python_error(case, [trial.build], devices)
    return PlatformUnsupportedError(
        f"{tag} {trial.complaint}", found=f"{case.machine.os} {case.machine.os_release}", needed=case.platform
    )
