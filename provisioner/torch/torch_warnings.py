"""Warnings about a chosen torch build, each with what to do.

Never changes the choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.torch.build_table import BuildRow, Offer, version_of
from provisioner.torch.builds import TorchWarning
from provisioner.torch.compatibility import (
    Case,
    Device,
    Trial,
    attempt,
    capability_text,
    labels,
    native_driver,
    pick_build,
    reaches,
    version_text,
)
from provisioner.torch.gpus import Candidates, driver_hint, generation_of

_FP8_FROM_SM = 89
"""``torch._scaled_mm`` rejects GPUs before 8.9 (kijai/ComfyUI-HunyuanVideoWrapper#98, read on 2026-11-23)."""


def gpu_warnings(case: Case, trial: Trial, candidates: Candidates, covered: Sequence[Device]) -> list[TorchWarning]:
    """Return the warnings about a build, the GPUs it supports, and those it does not.

    Parameters
    ----------
    case : Case
        The machine, and the application torch is for.
    trial : Trial
        What was chosen.
    candidates : Candidates
        Every GPU considered.
    covered : sequence of Device
        The GPUs that the build supports.
    """
    found = _mixed_warnings(case, trial, candidates, covered)
    if trial.build.kind == "nvidia":
        found += _comfy_warnings(case, trial, covered)
        found += _driver_warnings(case, trial)
        found += _legacy_warnings(case, covered)
        found += _fp8_warnings(covered)
        found += _guess_warnings(case, covered)
    return found


def _mixed_warnings(case: Case, trial: Trial, candidates: Candidates, covered: Sequence[Device]) -> list[TorchWarning]:
    """Warn where GPUs are left out, or where supporting all of them costs the newest a better build."""
    uncovered = candidates.uncovered(covered)
    if uncovered:
        return [
            TorchWarning(
                code="mixed-gpus",
                message=f"{trial.build.tag} has no code for the {labels(uncovered)}; no build supports all GPUs.",
                hint=_hint_for_uncovered(case, trial, uncovered, covered),
            )
        ]
    newest = [device for device in covered if device.rank == max(each.rank for each in covered)]
    alone = pick_build(case, case.table.builds_of(trial.build.kind), newest) if len(set(covered)) > 1 else None
    if alone is None or alone.chosen.build is trial.build:
        return []
    better = alone.chosen.build.tag
    return [
        TorchWarning(
            code="mixed-gpus",
            message=f"{trial.build.tag} was chosen because it supports every GPU; the {labels(newest)} alone would get"
            f" {better}.",
            hint=f"To use {better}, add --torch {better}; the other GPUs then stay unused.",
        )
    ]


def _hint_for_uncovered(case: Case, trial: Trial, uncovered: Sequence[Device], covered: Sequence[Device]) -> str:
    kind = trial.build.kind
    variable = "CUDA_VISIBLE_DEVICES" if kind == "nvidia" else "HIP_VISIBLE_DEVICES"
    keep = f"Set {variable} so that {case.app.title} sees only the {labels(covered)}"
    other = pick_build(case, case.table.builds_of(kind), [each for each in uncovered if each.sms or each.gfx])
    still_driven = other is not None and not any(_is_dropped(case, device) for device in other.served)
    if other is None or not still_driven:
        return f"{keep}."
    tag = other.chosen.build.tag
    return f"{keep}; a separate environment with --torch {tag} supports the {labels(other.served)}."


def _is_dropped(case: Case, device: Device) -> bool:
    rows = [generation_of(case, sm) for sm in device.sms]
    driver = case.driver or ()
    return any(row and row.dropped_from and driver >= version_of(row.dropped_from) for row in rows)


def _comfy_warnings(case: Case, trial: Trial, covered: Sequence[Device]) -> list[TorchWarning]:
    wanted, from_sm = case.app.wants_cuda, case.app.wants_cuda_from_sm
    if wanted is None or from_sm is None or (trial.build.cuda or ()) >= wanted:
        return []
    losing = [device for device in covered if device.sms and min(device.sms) >= from_sm]
    if not losing:
        return []
    tags = [
        build for build in case.table.builds_of("nvidia") if (build.cuda or ()) >= wanted and not build.only_on_request
    ]
    alone = [attempt(case, build, losing) for build in tags]
    needs_driver = any(each.fault == "driver" for each in alone)
    tag = next((each.build.tag for each in alone if each.fault is None), None)
    other = f"A separate environment with --torch {tag}, for the {labels(losing)} alone, has them." if tag else None
    return [
        TorchWarning(
            code="comfy-wants-cu130",
            message=f"{case.app.title} turns its own CUDA operations off on the {labels(losing)} below CUDA"
            f" {version_text(wanted)}, and {trial.build.tag} is built for {version_text(trial.build.cuda or ())}.",
            hint=driver_hint(case) if needs_driver else other,
        )
    ]


def _driver_warnings(case: Case, trial: Trial) -> list[TorchWarning]:
    native = native_driver(case, trial.build)
    if native is None or case.driver is None or case.driver >= version_of(native):
        return []
    return [
        TorchWarning(
            code="minor-version-compatibility",
            message=f"driver {case.machine.driver_version} is older than {native}, which came with the CUDA of"
            f" {trial.build.tag}: torch runs, extensions that the driver has to compile may not.",
            hint=f"Update the NVIDIA driver to {native} or newer if an extension fails.",
        )
    ]


def _legacy_warnings(case: Case, covered: Sequence[Device]) -> list[TorchWarning]:
    """Warn about GPUs that the newest torch no longer supports."""
    builds = [build for build in case.table.builds_of("nvidia") if not build.only_on_request]
    newest = max(offer.release.version for build in builds for offer in build.offers_for(case.platform)[:1])
    found = []
    for device in dict.fromkeys(covered):
        reaching = [(offer.release, build) for build in builds if (offer := _newest_offer(case, build, device))]
        if not reaching:
            continue
        last, build = max(reaching, key=lambda each: each[0].version)
        if last.version < newest:
            found.append(
                TorchWarning(
                    code="legacy-last",
                    message=f"torch {last.torch}, in {build.tag}, is the last with code for the {device.label}.",
                    hint="Stay with it: newer torch will not run on this GPU.",
                )
            )
    return found


def _newest_offer(case: Case, build: BuildRow, device: Device) -> Offer | None:
    offers = build.offers_for(case.platform)
    return next((offer for offer in offers if reaches(case, build, offer.wheels, device)), None)


def _fp8_warnings(covered: Sequence[Device]) -> list[TorchWarning]:
    without = [device for device in covered if device.sms and min(device.sms) < _FP8_FROM_SM and len(device.sms) == 1]
    if not without:
        return []
    return [
        TorchWarning(
            code="no-fp8",
            message=f"the {labels(without)} cannot multiply in FP8, which begins with compute capability"
            f" {capability_text(_FP8_FROM_SM)}: FP8 files are computed in a wider type, which is slower.",
        )
    ]


def _guess_warnings(case: Case, covered: Sequence[Device]) -> list[TorchWarning]:
    unread = [device for device in covered if len(device.sms) > 1]
    if not unread:
        return []
    return [
        TorchWarning(
            code="gpu-not-identified",
            message=f"the compute capability of the {labels(unread)} could not be read; the build has code for"
            f" every GPU that driver {case.machine.driver_version} supports.",
            hint="Make nvidia-smi work here to know for certain.",
        )
    ]


def system_warnings(case: Case, trial: Trial) -> list[TorchWarning]:
    """Return the warnings about a build on this release of the system."""
    needed = trial.build.gpu_from_os_release
    if needed is None or case.os_release is None or case.os_release >= needed:
        return []
    return [
        TorchWarning(
            code="mps-old",
            message=f"torch uses an Apple GPU (MPS) from macOS {version_text(needed)} on, but this is"
            f" {case.machine.os_release}: it will run on the processor, and newer torch does not install here.",
            hint=f"Update macOS to {version_text(needed)} or newer.",
        )
    ]
