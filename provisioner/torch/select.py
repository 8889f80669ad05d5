"""Select the torch build for a machine: the first one that its driver supports and that has code for every GPU.

The CPU build is never a fallback for a GPU that no build supports: that is an error, and the caller may then name
``cpu``.  Imports no torch, reads nothing, and takes microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from provisioner.core.errors import (
    GpuUnsupportedError,
    KleinError,
    PlatformUnsupportedError,
    UnsupportedMachineError,
    UsageError,
)
from provisioner.core.models import Machine
from provisioner.core.units import listing
from provisioner.machine.readings import parse_driver_version
from provisioner.torch.build_table import BuildKind, BuildRow, Platform, TorchTable, Version, version_of
from provisioner.torch.builds import App, TorchBuild, TorchChoice, TorchSet, TorchWarning
from provisioner.torch.card_table import with_known_cards
from provisioner.torch.compatibility import (
    Case,
    Device,
    Pick,
    Trial,
    attempt,
    best_code,
    capability_text,
    labels,
    min_driver,
    pick_build,
    reaches,
    subsets,
    version_text,
)
from provisioner.torch.gpus import (
    Candidates,
    amd_candidates,
    amd_gpus,
    known_devices,
    nvidia_candidates,
    nvidia_gpus,
    only_integrated,
    unreached_gpus,
    validated_intel_gpus,
)
from provisioner.torch.torch_warnings import gpu_warnings, plain_gpu_warnings, system_warnings
from provisioner.torch.unsupported import fault_error, forced_error, is_suitable_python, python_error, unsupported_error

_GPU_WORDS: dict[BuildKind, str] = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "validated Intel", "apple": "Apple"}


def select_torch_build(
    machine: Machine,
    table: TorchTable,
    *,
    app: App,
    python_version: str | None = None,
    forced: str | None = None,
    index_base: str | None = None,
    force: bool = False,
) -> TorchChoice:
    """Return the first build of the table that runs on a machine, on every GPU of it if any build does.

    A build runs when the NVIDIA driver is new enough for its CUDA, its wheels hold machine code for the compute
    capability of each GPU by the rules of binary compatibility, and there is a complete matched set for the system and
    the Python.  Where no build covers all GPUs, the one for the newest is chosen and the others are named.

    Parameters
    ----------
    machine : Machine
        The detected machine.  Unknown memory and MIG do not matter; ``CUDA_VISIBLE_DEVICES`` is ignored.
    table : TorchTable
        The known builds, preferred first.
    app : App
        The application that uses torch: ComfyUI needs torchaudio, diffusers does not.
    python_version : str, optional
        Python of the environment, ``"3.12"`` or ``"3.13t"``; by default the running one.
    forced : str, optional
        Tag of the build to use instead of choosing one: ``"cu126"``, ``"cpu"``.
    index_base : str, optional
        Address of a mirror, instead of the table's; the default index (macOS) does not change.
    force : bool
        Take a forced build even where it cannot work; the error becomes a warning.

    Returns
    -------
    TorchChoice
        The build with its matched sets, newest first, and why it was chosen.  ``cpu`` where there is no GPU that
        torch has a build for: the caller decides whether to use it.

    Raises
    ------
    UnsupportedMachineError
        No build runs; the subclass says why, the message what was found and what is needed.
    UsageError
        `forced` names no build or one that does not fit `app`, or `python_version` is not a version.
    """
    case = _case(machine, table, app, python_version)
    mirror = index_base.rstrip("/") if index_base else None
    if forced is not None:
        return _forced_choice(case, forced, mirror, force=force)
    return _automatic_choice(case, mirror)


# --- checks before any GPU ----------------------------------------------------------------------------


def _case(machine: Machine, table: TorchTable, app: App, python_version: str | None) -> Case:
    case = Case(
        machine=with_known_cards(machine, table.amd_gpus, table.intel_gpus),
        table=table,
        app=table.app(app),
        platform=_platform(machine, table).name,
        python=_python(python_version or machine.python_version),
        driver=parse_driver_version(machine.driver_version or ""),
        os_release=parse_driver_version(machine.os_release),
    )
    if not is_suitable_python(case, case.python):
        raise python_error(case)
    return case


def _platform(machine: Machine, table: TorchTable) -> Platform:
    platform = next(
        (row for row in table.platforms if (row.os, row.architecture) == (machine.os, machine.architecture)), None
    )
    if platform is None:
        _refuse_platform(machine, table)
    if platform.min_glibc is not None and machine.libc is not None:
        _check_libc(machine.libc, platform.min_glibc)
    return platform


def _refuse_platform(machine: Machine, table: TorchTable) -> NoReturn:
    known = next(
        (row for row in table.without_wheels if (row.os, row.architecture) == (machine.os, machine.architecture)), None
    )
    systems = listing([f"{row.os} on {row.architecture}" for row in table.platforms])
    what = known.what if known else f"there is no torch for {machine.os} on {machine.architecture}"
    raise PlatformUnsupportedError(
        f"{what}; there are wheels for {systems}",
        hint=known.hint if known else f"Use one of these: {systems}.",
        found=f"{machine.os} {machine.architecture}",
        needed=systems,
    )


def _check_libc(libc: str, needed: Version) -> None:
    match = re.fullmatch(r"glibc[ -]([0-9]+(\.[0-9]+)+)", libc)
    if match and version_of(match[1]) >= needed:
        return
    words = version_text(needed)
    raise PlatformUnsupportedError(
        f"the wheels of torch need glibc {words} or newer, and this system has {libc}",
        hint=f"Use a system with glibc {words} or newer: Debian 10, Ubuntu 18.10, RHEL 8 and everything after them.",
        found=libc,
        needed=f"glibc {words}",
    )


def _python(text: str) -> str:
    """Return major and minor of a Python version, with a t for the free-threaded build.

    >>> _python("3.11.7"), _python("3.13.1t"), _python("3.15.0rc1+")
    ('3.11', '3.13t', '3.15')
    """
    match = re.fullmatch(r"([0-9]{1,2}\.[0-9]{1,3})(\.[0-9]+)?((a|b|rc|alpha|beta)[0-9]+)?\+?(t?)", text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not a Python version", hint="Give a version like 3.12, or 3.13t for the free-threaded build."
        )
    return match[1] + match[5]


# --- the choice -----------------------------------------------------------------------------------------


def _automatic_choice(case: Case, mirror: str | None) -> TorchChoice:
    """Return a build for NVIDIA, AMD or Intel, in this order; without them the default index on macOS, else the CPU.

    An Intel card comes before an AMD GPU that is part of the processor.
    """
    if case.platform == "macosx_arm64":
        return _plain_choice(case, "apple", mirror)
    nvidia, amd = nvidia_gpus(case.machine), amd_gpus(case.machine)
    intel = validated_intel_gpus(case.machine, case.table.intel_gpus)
    if nvidia:
        return _gpu_choice(case, "nvidia", nvidia_candidates(case, nvidia), mirror)
    is_card_of_intel = any(not gpu.shares_memory for gpu in intel)
    if amd and not (is_card_of_intel and all(gpu.shares_memory for gpu in amd)):
        try:
            return _amd_choice(case, mirror)
        except UnsupportedMachineError:
            if not intel:
                raise
    if intel:
        return _plain_choice(case, "intel", mirror)
    return _plain_choice(case, "cpu", mirror)


def _amd_choice(case: Case, mirror: str | None) -> TorchChoice:
    """Return the build for the cards; for the GPU in the processor where no build serves a card."""
    candidates = amd_candidates(case, amd_gpus(case.machine))
    try:
        return _gpu_choice(case, "amd", candidates, mirror)
    except UnsupportedMachineError:
        others = only_integrated(candidates)
        if others is None:
            raise
        return _gpu_choice(case, "amd", others, mirror)


def _gpu_choice(case: Case, kind: BuildKind, candidates: Candidates, mirror: str | None) -> TorchChoice:
    builds = case.table.builds_of(kind)
    pick = pick_build(case, builds, candidates.devices)
    if pick is None:
        raise unsupported_error(case, builds, candidates.devices)
    trial, covered = _narrowed(case, pick.chosen, candidates.devices)
    reasons = [
        _first_reason(trial.build, pick.trials),
        *_build_reasons(case, trial, covered),
        *_passed_over(pick),
        *_ignored(case, kind),
    ]
    return TorchChoice(
        build=_torch_build(case, trial, mirror, covered),
        reasons=tuple(reasons),
        runner_up=_runner_up(pick),
        warnings=(*gpu_warnings(case, trial, candidates, covered), *system_warnings(case, trial)),
        uncovered=tuple(device.name for device in candidates.uncovered(covered)),
    )


def _narrowed(
    case: Case, trial: Trial, devices: Sequence[Device], *, with_ptx: bool = False
) -> tuple[Trial, tuple[Device, ...]]:
    """Return the trial with the sets that support the same GPUs as its newest set, and those GPUs."""
    newest = trial.offers[0].wheels
    covered = tuple(each for each in devices if reaches(case, trial.build, newest, each, with_ptx=with_ptx))
    left = attempt(case, trial.build, covered, with_ptx=with_ptx) if len(covered) > 1 else trial
    return replace(trial, offers=left.offers), covered


def _plain_choice(case: Case, kind: BuildKind, mirror: str | None) -> TorchChoice:
    """Return the one build of a kind whose GPUs need no further check."""
    trials = [attempt(case, build) for build in case.table.builds_of(kind)]
    trial = next((each for each in trials if each.fault is None), None)
    if trial is None:
        raise fault_error(case, trials[0], ())
    return TorchChoice(
        build=_torch_build(case, trial, mirror),
        reasons=(_plain_reason(trial.build), *_build_reasons(case, trial, ()), *_ignored(case, kind)),
        runner_up=_plain_runner_up(case, kind),
        warnings=(*plain_gpu_warnings(case, trial), *system_warnings(case, trial)),
    )


def _torch_build(case: Case, trial: Trial, mirror: str | None, covered: Sequence[Device] = ()) -> TorchBuild:
    row, newest = trial.build, trial.offers[0]
    targets = tuple(sorted({each.gfx for each in covered if each.gfx in newest.wheels.gfx}))
    with_audio = case.app.needs_torchaudio and row.has_torchaudio
    return TorchBuild(
        torch_backend=row.tag,
        index_url=_address(case.table, row, mirror),
        local_tag=None if row.is_default_index else row.tag,
        sets=tuple(
            TorchSet(
                torch=offer.release.torch,
                torchvision=offer.release.torchvision,
                torchaudio=(offer.wheels.torchaudio or offer.release.torchaudio) if with_audio else None,
            )
            for offer in trial.offers
        ),
        sm=newest.wheels.sm,
        ptx=newest.wheels.ptx,
        gfx=newest.wheels.gfx,
        targets=targets,
        device_extras=_device_extras(row, targets),
        is_alone=row.index is not None,
        source_packages=row.source_packages,
        names_digests=row.names_digests,
        digests=() if row.digests is None else row.digests.files,
    )


def _address(table: TorchTable, row: BuildRow, mirror: str | None) -> str | None:
    """Return a build's index; a mirror has each under its tag."""
    if row.is_default_index:
        return None
    if mirror is None and row.index is not None:
        return row.index
    return f"{mirror or table.index_base}/{row.tag}"


def _device_extras(row: BuildRow, architectures: Sequence[str]) -> tuple[str, ...]:
    """Return the extras that bring the code for these architectures; where none is known, that of all."""
    if row.device_extra is None:
        return ()
    return tuple(f"{row.device_extra}-{each}" for each in architectures or ["all"])


# --- reasons --------------------------------------------------------------------------------------------


def _first_reason(build: BuildRow, trials: Sequence[Trial]) -> str:
    is_first = bool(trials) and trials[0].build is build
    order = "is the preferred build" if is_first else "is the first build, in order of preference, that runs here"
    return f"{build.tag} {order}: {build.because}."


def _build_reasons(case: Case, trial: Trial, covered: Sequence[Device]) -> list[str]:
    """Return why a build runs: its driver, its machine code, and the newest torch seen on its index."""
    build, newest = trial.build, trial.offers[0]
    reasons = []
    if build.kind == "nvidia" and case.driver is not None:
        whose = "Windows' driver, which WSL uses, is" if case.machine.is_wsl else "installed is"
        needed = min_driver(case, build)
        reasons.append(f"{build.tag} needs NVIDIA driver {needed} or newer; {whose} {case.machine.driver_version}.")
    reasons += [_code_reason(case, trial, device) for device in dict.fromkeys(covered)]
    if build.verified_torch is not None and newest.release.version > build.verified_torch:
        seen = version_text(build.verified_torch)
        reasons.append(
            f"The last torch seen on this index is {seen}; of the sets from {newest.release.torch} down, the newest"
            " one available is installed."
        )
    return reasons


def _code_reason(case: Case, trial: Trial, device: Device) -> str:
    if device.gfx:
        return f"Its wheels contain code for the {device.label}."
    if len(device.sms) > 1:
        return f"Its wheels contain code for every GPU that driver {case.machine.driver_version} supports."
    sm = device.sms[0]
    code = best_code(trial.build, trial.offers[0].wheels, sm, case.table)
    if code is None:
        return f"The driver compiles its virtual code for the {device.label}."
    for_others = "" if code == sm else f", written for {capability_text(code)},"
    return f"Its machine code sm_{code}{for_others} runs on the {device.label}."


def _passed_over(pick: Pick) -> list[str]:
    before = pick.trials[: pick.trials.index(pick.chosen)]
    faulty = [trial for trial in before if trial.fault not in (None, "wheels")]
    return [f"{trial.build.tag} was not chosen: it {trial.complaint}." for trial in faulty]


def _ignored(case: Case, kind: BuildKind) -> list[str]:
    """Return which GPUs of other vendors were ignored, and why."""
    reasons = []
    for vendor in ("amd", "intel", "other"):
        gpus = [gpu for gpu in case.machine.gpus if gpu.vendor == vendor != kind]
        if not gpus:
            continue
        if kind == "nvidia":
            why = "an NVIDIA GPU comes first"
        elif kind == "amd":
            why = "an AMD GPU comes first"
        elif vendor == "amd":
            is_beside_a_card = kind == "intel" and all(gpu.shares_memory for gpu in gpus)
            why = "it is part of the processor" if is_beside_a_card else "no build supports it here"
        else:
            why = "it is not among the GPUs that torch was validated on"
        reasons.append(f"Ignored: {listing(list(dict.fromkeys(gpu.name for gpu in gpus)))} ({why}).")
    return reasons


def _runner_up(pick: Pick) -> str | None:
    """Return the next candidate, and why it was not chosen."""
    at = pick.trials.index(pick.chosen)
    before = [trial for trial in pick.trials[:at] if trial.fault != "wheels"]
    after = [trial for trial in pick.trials[at + 1 :] if trial.fault != "wheels"]
    chosen = pick.chosen.build
    for trial in after:
        if trial.is_automatic:
            newest = trial.offers[0].release.torch
            return f"{trial.build.tag} (torch {newest}) would run too; {chosen.tag} comes first: {chosen.because}."
    if before:
        return f"{before[0].build.tag} would come first, but it {before[0].complaint}."
    refused = next((trial for trial in after if not trial.build.only_on_request), None)
    return f"{refused.build.tag} would come next, but it {refused.complaint}." if refused else None


def _plain_reason(build: BuildRow) -> str:
    if build.kind == "cpu":
        return "cpu is chosen because there is no GPU that torch has a build for."
    return f"{build.tag} is chosen: {build.because}."


def _plain_runner_up(case: Case, kind: BuildKind) -> str | None:
    if kind == "cpu":
        names = [gpu.name for gpu in case.machine.gpus if gpu.vendor == "intel"]
        if names:
            return f"xpu was not chosen: the {listing(names)} is not among the Intel GPUs that torch was validated on."
        return None
    return "cpu would run too, but would leave the GPU unused." if kind == "intel" else None


# --- a build by name ------------------------------------------------------------------------------------


def _forced_choice(case: Case, tag: str, mirror: str | None, *, force: bool) -> TorchChoice:
    build = _named_build(case, tag)
    try:
        return _checked_choice(case, build, mirror)
    except (UnsupportedMachineError, UsageError) as refused:
        if not force:
            refused.hint = _hint_for_forced(case, refused)
            raise
        return _unchecked_choice(case, build, mirror, refused)


def _named_build(case: Case, tag: str) -> BuildRow:
    build = case.table.build(tag)
    broken = next((each for each in case.table.known_broken if each.tag == tag), None)
    if broken is not None:
        raise UsageError(
            f"{tag} is not installed: {broken.what}",
            hint="Omit --torch to have a build chosen.",
        )
    if build is None:
        known = [each.tag for each in case.table.builds]
        raise UsageError(
            f"there is no torch build {tag!r}; known are {', '.join(known)}",
            hint="Name one of these, or omit --torch to have one chosen.",
            known=known,
        )
    if build.kind == "cpu" and not build.offers_for(case.platform):
        return next(iter(case.table.builds_of("apple")), build)  # on macOS one build is for both processor and GPU
    return build


def _checked_choice(case: Case, build: BuildRow, mirror: str | None) -> TorchChoice:
    candidates = _candidates_for(case, build)
    pick = _forced_pick(case, build, candidates.devices)
    if isinstance(pick, Trial):
        raise forced_error(case, pick, candidates.devices)
    trial, covered = _narrowed(case, pick.chosen, candidates.devices, with_ptx=True)
    warnings = gpu_warnings(case, trial, candidates, covered) if candidates.devices else plain_gpu_warnings(case, trial)
    warnings += system_warnings(case, trial)
    compiled = [each for each in covered if not reaches(case, build, trial.offers[0].wheels, each)]
    if compiled:
        warnings.append(
            TorchWarning(
                code="compiled-by-the-driver",
                message=f"{build.tag} has no machine code for the {labels(compiled)}; the driver compiles its virtual"
                " code at the first start, which takes long, and libraries beside torch may fail.",
            )
        )
    return TorchChoice(
        build=_torch_build(case, trial, mirror, covered),
        reasons=(f"{build.tag} was named.", *_build_reasons(case, trial, covered)),
        runner_up=_choice_without_name(case, build),
        warnings=tuple(warnings),
        uncovered=tuple(device.name for device in candidates.uncovered(covered)),
    )


def _candidates_for(case: Case, build: BuildRow) -> Candidates:
    """Return the GPUs a build of that kind is for; raise on a machine that has none."""
    if build.kind in ("cpu", "apple"):
        return Candidates(devices=())
    if build.kind == "nvidia" and nvidia_gpus(case.machine):
        return nvidia_candidates(case, nvidia_gpus(case.machine))
    if build.kind == "amd" and amd_gpus(case.machine):
        return amd_candidates(case, amd_gpus(case.machine))
    if build.kind == "intel" and validated_intel_gpus(case.machine, case.table.intel_gpus):
        return Candidates(devices=())
    words = _GPU_WORDS[build.kind]
    names = listing([gpu.name for gpu in case.machine.gpus]) or "no GPU"
    raise GpuUnsupportedError(
        f"{build.tag} is for {words} GPUs, and this machine has none: it has {names}",
        gpu=names,
        needed=words,
    )


def _forced_pick(case: Case, build: BuildRow, devices: Sequence[Device]) -> Pick | Trial:
    """Return the GPUs that the build supports, or why it does not support the newest."""
    failed: Trial | None = None
    for group in subsets(devices):
        trial = attempt(case, build, group, with_ptx=True)
        if trial.fault is None:
            return Pick(chosen=trial, trials=(trial,), served=group)
        failed = trial if failed is None or trial.fault == "driver" else failed
    assert failed is not None  # noqa: S101 - there is always one group
    return failed


def _choice_without_name(case: Case, build: BuildRow) -> str | None:
    """Return what would have been chosen if no build had been named."""
    try:
        automatic = _automatic_choice(case, None).build.torch_backend
    except UnsupportedMachineError as error:
        return f"Without --torch none would have been chosen: {error}."
    if automatic == build.tag:
        return f"{automatic} would also have been chosen without --torch."
    return f"{automatic} would have been chosen without --torch."


def _hint_for_forced(case: Case, refused: KleinError) -> str:
    try:
        automatic = _automatic_choice(case, None).build.torch_backend
    except UnsupportedMachineError:
        return refused.hint or "Add --force to install it anyway."
    return f"Omit --torch to install {automatic}, or add --force to install this build anyway."


def _unchecked_choice(case: Case, build: BuildRow, mirror: str | None, refused: KleinError) -> TorchChoice:
    """Return a build that does not fit but was forced; only its wheels must exist."""
    trial = attempt(case, build, is_unchecked=True)
    if trial.fault is not None:
        refused.hint = refused.hint or f"Omit --torch: there is nothing of {build.tag} to install here."
        raise refused
    return TorchChoice(
        build=_torch_build(case, trial, mirror, known_devices(case, build)),
        reasons=(f"{build.tag} was named, and --force was given.",),
        runner_up=_choice_without_name(case, build),
        warnings=(TorchWarning(code="forced", message=f"This is not expected to work: {refused}."),),
        uncovered=unreached_gpus(case, build, trial.offers[0].wheels),
    )
