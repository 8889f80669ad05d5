"""Check whether one build of torch runs on one machine and its GPUs.

Knows the rules of binary compatibility and the order in which a build is checked against a machine.  It never prefers
one build to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from provisioner.core.models import Machine
from provisioner.core.units import listing
from provisioner.torch.build_table import (
    AppNeeds,
    BuildRow,
    Offer,
    PlatformName,
    Release,
    TorchTable,
    Version,
    Wheels,
    version_of,
)
from provisioner.torch.card_table import AmdGpu

Fault = Literal["wheels", "system", "app", "code", "torchaudio", "python", "driver"]
"""Why a build does not run on a machine, in the order of the checks."""

# --- the machine and its GPUs-------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What decides about a machine and the options, and does not change from build to build."""

    machine: Machine
    table: TorchTable
    app: AppNeeds
    platform: PlatformName
    python: str  # "3.12"
    driver: Version | None  # the NVIDIA driver; None where there is none, or its version cannot be read
    os_release: Version | None  # None where it is not written as a version

    @property
    def driver_system(self) -> str:
        """The system whose driver numbers count: under WSL the driver is Windows' own."""
        return "windows" if self.machine.os == "windows" or self.machine.is_wsl else "linux"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, by what decides which machine code runs on it."""

    name: str
    sms: tuple[int, ...] = ()  # NVIDIA: 86 for 8.6; several where it could not be read and all of these are possible
    gfx: str = ""  # AMD
    card: AmdGpu | None = None  # what the table knows of an AMD card

    @property
    def rank(self) -> int:
        """Sort key of GPUs of one vendor, the newest highest."""
        return int(self.gfx.removeprefix("gfx"), 16) if self.gfx else max(self.sms, default=0)

    @property
    def label(self) -> str:
        """The GPU's name for messages, with its architecture."""
        if self.gfx:
            return f"{self.name} ({self.gfx})"
        if len(self.sms) == 1:
            return f"{self.name} (compute capability {capability_text(self.sms[0])})"
        return self.name


def capability_text(sm: int) -> str:
    """Return a compute capability as people write it.

    >>> capability_text(86), capability_text(121)
    ('8.6', '12.1')
    """
    return f"{sm // 10}.{sm % 10}"


def version_text(version: Version) -> str:
    """Return a version as people write it.

    >>> version_text((2, 11))
    '2.11'
    """
    return ".".join(map(str, version))


def labels(devices: Sequence[Device]) -> str:
    """Return the labels of GPUs as a list in a sentence, equal ones once."""
    return listing(list(dict.fromkeys(device.label for device in devices)))


def subsets(devices: Sequence[Device]) -> Iterator[tuple[Device, ...]]:
    """Yield the GPUs to try together: all, then without the oldest ones, and last without the newest."""
    if not devices:
        yield ()
    ranks = sorted({device.rank for device in devices})
    for newest in reversed(ranks):
        for oldest in ranks:
            if oldest <= newest:
                yield tuple(device for device in devices if oldest <= device.rank <= newest)


# --- binary compatibility --------------------------------------------------------------------------


def code_runs_on(code: int, sm: int, *, cuda: Version, table: TorchTable) -> bool:
    """Return whether machine code for one compute capability runs on a GPU of another.

    A cubin ``sm_XY`` runs on every X.Z with Z >= Y, which is why an 8.9 needs no sm_89; the exceptions are the
    table's (``torch/cuda/__init__.py`` of the 2.15.0 wheel, read on 2026-11-23).

    Parameters
    ----------
    code, sm : int
        Compute capability of the code and of the GPU, 86 for 8.6.
    cuda : tuple of int
        CUDA the code was built with; from 13.2 on two of the exceptions no longer hold.
    table : TorchTable
        Contains the exceptions.
    """
    only_on = table.only_on.get(code)
    if only_on is not None:
        return sm in only_on.gpus
    not_on = table.not_on.get(sm)
    if not_on is not None and code in not_on.code:
        return not_on.lifted_by_cuda is not None and cuda >= not_on.lifted_by_cuda
    return code // 10 == sm // 10 and code <= sm


def best_code(build: BuildRow, wheels: Wheels, sm: int, table: TorchTable) -> int | None:
    """Return the newest machine code in some wheels that runs on a GPU; None where there is none."""
    cuda = build.cuda or ()
    running = [code for code in wheels.sm if code_runs_on(code, sm, cuda=cuda, table=table)]
    return max(running) if running else None


def reaches(case: Case, build: BuildRow, wheels: Wheels, device: Device, *, with_ptx: bool = False) -> bool:
    """Return whether some wheels, for NVIDIA or AMD, contain code that a GPU runs.

    Parameters
    ----------
    with_ptx : bool
        Also count virtual code that the driver can compile.  A choice does not: torch has shipped none since 2.11, and
        where it did, its libraries had code for the listed GPUs only.
    """
    if build.kind == "amd":
        return device.gfx in wheels.gfx
    if build.min_sm is not None and min(device.sms) < build.min_sm:
        return False
    return all(
        best_code(build, wheels, sm, case.table) is not None or (with_ptx and _compiles(case, build, wheels, sm))
        for sm in device.sms
    )


def _compiles(case: Case, build: BuildRow, wheels: Wheels, sm: int) -> bool:
    """Return whether the driver can compile the virtual code: it must not be older than the toolkit that built it."""
    native = native_driver(case, build)
    is_new_enough = native is not None and case.driver is not None and case.driver >= version_of(native)
    return is_new_enough and any(code <= sm for code in wheels.ptx)


def min_driver(case: Case, build: BuildRow) -> str:
    """Return the oldest driver a build runs with, numbered as on the driver's system."""
    return dict(build.min_driver)[case.driver_system]


def native_driver(case: Case, build: BuildRow) -> str | None:
    """Return the driver that came with the build's CUDA toolkit; None where it is not known."""
    return dict(build.native_driver).get(case.driver_system)


# --- checking a build against a machine --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The result of checking one build against a machine and some of its GPUs."""

    build: BuildRow
    offers: tuple[Offer, ...] = ()  # what is left to install, newest first
    fault: Fault | None = None
    complaint: str = ""  # the rest of a sentence that starts with "it": "needs NVIDIA driver 580 or newer; ..."

    @property
    def is_automatic(self) -> bool:
        """Whether it may be chosen without being named."""
        return self.fault is None and not self.build.only_on_request


def attempt(
    case: Case, build: BuildRow, devices: Sequence[Device] = (), *, with_ptx: bool = False, is_unchecked: bool = False
) -> Trial:
    """Return what a build offers to a machine with these GPUs, or the first reason why it does not run.

    Parameters
    ----------
    case : Case
        The machine, and the application torch is for.
    build : BuildRow
        A row of the table.
    devices : sequence of Device
        GPUs that it must support, every one.
    with_ptx : bool
        Also count virtual code, see `reaches`.
    is_unchecked : bool
        Check only whether there is something to install: wheels for this system and Python.
    """
    return _Check(case, build, tuple(dict.fromkeys(devices)), with_ptx).trial(is_unchecked=is_unchecked)


# Code before Python and driver: those can be changed, so an old driver is only named where the code would run.
_HURDLES: tuple[Fault, ...] = ("system", "app", "code", "torchaudio", "python", "driver")
_UNCHECKED_HURDLES: tuple[Fault, ...] = ("system", "python")


@dataclass(frozen=True, slots=True)
class _Check:
    """One build being checked against one machine and some of its GPUs."""

    case: Case
    build: BuildRow
    devices: tuple[Device, ...]
    with_ptx: bool

    def trial(self, *, is_unchecked: bool) -> Trial:
        offers = self.build.offers_for(self.case.platform)
        if not offers:
            return Trial(build=self.build, fault="wheels", complaint=f"has no wheels for {self.case.platform}")
        for fault in _UNCHECKED_HURDLES if is_unchecked else _HURDLES:
            kept = self._past(fault, offers)
            if not kept:
                return Trial(build=self.build, fault=fault, complaint=self._complaint(fault, offers))
            offers = kept
        preferred = tuple(each for each in offers if each.release.version >= self.case.app.preferred_torch)
        return Trial(build=self.build, offers=preferred or offers)

    def _past(self, fault: Fault, offers: tuple[Offer, ...]) -> tuple[Offer, ...]:
        """Return the offers that do not have this fault."""
        if fault == "torchaudio":
            return offers if self.build.has_torchaudio or not self.case.app.needs_torchaudio else ()
        if fault == "driver":
            return offers if self._has_driver() else ()
        if fault == "system":
            return tuple(each for each in offers if self._suits_system(each.wheels))
        if fault == "app":
            return tuple(each for each in offers if each.release.version >= self.case.app.min_torch)
        if fault == "python":
            return tuple(each for each in offers if self._has_python(each.release))
        distinct = {id(each.wheels): each.wheels for each in offers}  # releases share their description
        reaching = {key for key, wheels in distinct.items() if self._reaches_all(wheels)}
        return tuple(each for each in offers if id(each.wheels) in reaching)

    def _has_driver(self) -> bool:
        if self.build.kind != "nvidia":
            return True
        needed = version_of(min_driver(self.case, self.build))
        return self.case.driver is not None and self.case.driver >= needed

    def _suits_system(self, wheels: Wheels) -> bool:
        needed, found = wheels.min_os_release, self.case.os_release
        return needed is None or found is None or found >= needed

    def _has_python(self, release: Release) -> bool:
        if self.build.python:
            return self.case.python in self.build.python
        wants_audio = self.case.app.needs_torchaudio and self.build.has_torchaudio
        return self.case.python in release.python and (not wants_audio or self.case.python in release.torchaudio_python)

    def _reaches(self, wheels: Wheels, device: Device) -> bool:
        return reaches(self.case, self.build, wheels, device, with_ptx=self.with_ptx)

    def _reaches_all(self, wheels: Wheels) -> bool:
        return all(self._reaches(wheels, device) for device in self.devices)

    def _complaint(self, fault: Fault, offers: tuple[Offer, ...]) -> str:
        """Return the fault as the rest of a sentence that starts with the build's name."""
        app, machine = self.case.app, self.case.machine
        if fault == "system":
            needed = min(each.wheels.min_os_release or () for each in offers)
            return f"needs release {version_text(needed)} of the system or newer; this is {machine.os_release}"
        if fault == "app":
            newest = offers[0].release.torch
            return f"ends at torch {newest}; {app.title} needs {version_text(app.min_torch)} or newer"
        if fault == "code":
            missed = [each for each in self.devices if not any(self._reaches(offer.wheels, each) for offer in offers)]
            where = "" if missed else " in one and the same release"
            return f"has no code for the {labels(missed or self.devices)}{where}"
        if fault == "torchaudio":
            return f"has no torchaudio of its own, and {app.title} does not start without one"
        if fault == "python":
            return f"has no complete set of wheels for Python {self.case.python}"
        installed = f"{machine.driver_version} is installed" if machine.driver_version else "none is installed"
        return f"needs NVIDIA driver {min_driver(self.case, self.build)} or newer; {installed}"


# --- the first that runs -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """The build that was picked, and the checks of all builds."""

    chosen: Trial
    trials: tuple[Trial, ...]  # of every build, in the table's order, with the GPUs that are supported
    served: tuple[Device, ...]


def pick_build(case: Case, builds: Sequence[BuildRow], devices: Sequence[Device]) -> Pick | None:
    """Return the first build that supports the most GPUs any build supports together, including the newest."""
    for group in subsets(devices):
        trials = tuple(attempt(case, build, group) for build in builds)
        chosen = next((trial for trial in trials if trial.is_automatic), None)
        if chosen is not None:
            return Pick(chosen=chosen, trials=trials, served=group)
    return None
