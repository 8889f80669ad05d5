"""Warnings about a chosen torch build, each with what to do.

Never changes the choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.core.units import listing
from provisioner.machine.readings import parse_driver_version
from provisioner.torch.build_table import BuildRow, Offer, version_of
from provisioner.torch.builds import TorchWarning
from provisioner.torch.card_table import card_named
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
    found = _mixed_warnings(case, trial, candidates, covered) + _shared_memory_warnings(case, covered)
    if trial.build.kind == "nvidia":
        found += _comfy_warnings(case, trial, covered)
        found += _driver_warnings(case, trial)
        found += _legacy_warnings(case, covered)
        found += _fp8_warnings(covered)
        found += _guess_warnings(case, covered)
    if trial.build.kind == "amd":
        found += _amd_fp8_warnings(covered)
        found += _card_warnings(covered)
        found += _radeon_driver_warnings(case, trial)
        found += _last_rocm_warnings(covered)
        found += _validated_system_warnings(case, "AMD", trial.build.tag, trial.build.validated_on)
    return found


def plain_gpu_warnings(case: Case, trial: Trial) -> list[TorchWarning]:
    """Return the warnings about the GPUs of a build that needs no choice among them: Intel's, Apple's."""
    gpus = case.machine.gpus
    if trial.build.kind == "apple" and any(gpu.vendor == "apple" for gpu in gpus):
        chip = listing([gpu.name for gpu in gpus if gpu.vendor == "apple"])
        return [
            TorchWarning(
                code="no-fp8",
                message=f"FP8 files do not load on the {chip}: MPS has no float8, and"
                " PYTORCH_ENABLE_MPS_FALLBACK does not help.",
                hint="Use a set of BF16 files; without --set it is chosen here.",
            ),
            _shared_memory(chip),
        ]
    if trial.build.kind == "cpu" and case.machine.is_wsl and not gpus:
        return [
            TorchWarning(
                code="no-gpu-in-wsl",
                message="no GPU was found inside WSL. An NVIDIA GPU is found there by Windows' own driver, whose"
                " `nvidia-smi` then answers; AMD's ROCm for WSL is a technical preview that klein-setup does not"
                " install.",
                hint="With an AMD card run klein-setup in Windows itself.",
            )
        ]
    if trial.build.kind != "intel":
        return []
    found = [(gpu, row) for gpu in gpus if gpu.vendor == "intel" and (row := card_named(gpu, case.table.intel_gpus))]
    names = listing(list(dict.fromkeys(gpu.name for gpu, _ in found)))
    warnings = [
        TorchWarning(
            code="no-fp8",
            message=f"ComfyUI does not multiply in FP8 on the {names}: FP8 files are computed in a wider type,"
            " which is slower.",
        )
    ]
    sharing = list(dict.fromkeys(gpu.name for gpu, row in found if row.is_integrated))
    if sharing and len(sharing) == len({gpu.name for gpu, _ in found}):  # a card beside it has memory of its own
        warnings.append(_shared_memory(listing(sharing)))
    for gpu, row in found:
        warnings += _validated_system_warnings(case, "Intel", f"the {gpu.name}", row.validated_on)
    return list(dict.fromkeys(warnings))


def _mixed_warnings(case: Case, trial: Trial, candidates: Candidates, covered: Sequence[Device]) -> list[TorchWarning]:
    """Warn where GPUs are left out, or where supporting all of them costs the newest a better build."""
    integrated = [each.device for each in candidates.left_out if each.why == "integrated"]
    uncovered = [device for device in candidates.uncovered(covered) if device not in integrated]
    if integrated and not uncovered:
        return [
            TorchWarning(
                code="mixed-gpus",
                message=f"the {labels(integrated)} is part of the processor and left out: torch would take it for the"
                f" first GPU, before the {labels(covered)}.",
                hint=f"klein-setup starts {case.app.title} with HIP_VISIBLE_DEVICES, so that it sees the card only; set"
                " it where you start it yourself.",
            )
        ]
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


def _amd_fp8_warnings(covered: Sequence[Device]) -> list[TorchWarning]:
    without = [device for device in covered if device.card is not None and not device.card.has_fp8]
    if not without:
        return []
    return [
        TorchWarning(
            code="no-fp8",
            message=f"ComfyUI does not multiply in FP8 on the {labels(without)}: FP8 files are stored as they are and"
            " computed in a wider type, which is slower.",
        )
    ]


def _card_warnings(covered: Sequence[Device]) -> list[TorchWarning]:
    others = [device for device in covered if device.card is None or not device.card.is_validated]
    if not others:
        return []
    return [
        TorchWarning(
            code="card-not-validated",
            message=f"the build has code for the {labels(others)}, which AMD does not list among the cards it"
            " validated: it may be slow or fail.",
        )
    ]


def _radeon_driver_warnings(case: Case, trial: Trial) -> list[TorchWarning]:
    """Warn about a driver that is older than the one AMD validated; AMD names no oldest one, so none is refused."""
    validated = trial.build.radeon_driver
    if validated is None or case.machine.os != "windows":
        return []
    for gpu in case.machine.gpus:
        for found, wanted in ((gpu.adrenalin, validated.adrenalin), (gpu.driver_version, validated.file)):
            installed = parse_driver_version(found or "") if gpu.vendor == "amd" else None
            if installed is None:
                continue
            if installed >= version_of(wanted):
                break
            return [
                TorchWarning(
                    code="amd-driver",
                    message=f"the AMD driver is {found}; {trial.build.tag} was validated with Adrenalin"
                    f" {validated.adrenalin} ({validated.file}), and the driver's own libraries are loaded first.",
                    hint=f"Install AMD Software: Adrenalin Edition {validated.adrenalin} or newer if torch fails with"
                    " 'invalid argument'.",
                )
            ]
    return []


def _last_rocm_warnings(covered: Sequence[Device]) -> list[TorchWarning]:
    return [
        TorchWarning(
            code="legacy-last",
            message=f"ROCm {device.card.last_rocm} is the last whose libraries have code for the {device.label}.",
            hint="Stay with this build: newer ones will not run on this GPU.",
        )
        for device in dict.fromkeys(covered)
        if device.card is not None and device.card.last_rocm is not None
    ]


def _validated_system_warnings(case: Case, maker: str, what: str, validated_on: Sequence[str]) -> list[TorchWarning]:
    """Warn where the system is known and none of those the maker validated; a kernel counts to its second number."""
    machine = case.machine
    if machine.os == "windows":
        system, name = f"windows {machine.os_release}", f"Windows {machine.os_release}"
    elif machine.distribution is not None and not machine.is_wsl:
        kernel = ".".join(machine.os_release.split(".")[:2])
        system, name = f"{machine.distribution} {kernel}", f"{machine.distribution} with kernel {kernel}"
    else:
        return []
    if not validated_on or any(f"{system} ".startswith(f"{each} ") for each in validated_on):
        return []
    return [
        TorchWarning(
            code="system-not-validated",
            message=f"{maker} did not validate {what} on {name}, but on {listing(validated_on)}.",
            hint="If the GPU hangs or is not found, use one of these.",
        )
    ]


def _shared_memory_warnings(case: Case, covered: Sequence[Device]) -> list[TorchWarning]:
    sharing = [
        device
        for device in covered
        if (device.card is not None and device.card.is_integrated)
        or any((row := generation_of(case, sm)) is not None and row.shares_memory for sm in device.sms[:1])
    ]
    return [_shared_memory(labels(sharing))] if sharing else []


def _shared_memory(names: str) -> TorchWarning:
    return TorchWarning(
        code="shared-memory",
        message=f"the {names} uses the computer's own memory: what the model takes, other programs do not have.",
        hint="Close large programs before a run.",
    )


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
    """Return the warnings about a build on this system and Python, whatever the GPU."""
    return [*_old_mac_warnings(case, trial), *_python_warnings(case), *_digest_warnings(trial)]


def _python_warnings(case: Case) -> list[TorchWarning]:
    if not case.python.endswith("t"):
        return []
    return [
        TorchWarning(
            code="free-threaded",
            # pip, 2026-11-26: of safetensors only 0.9.0rc1 has a wheel for cp314t; ComfyUI's README about the lock
            message=f"Python {case.python} is the free-threaded build: packages that have no wheel for it, such as"
            " safetensors 0.8.0, are built from source (which needs Rust), and others turn its lock on again.",
            hint=f"Use Python {case.python.rstrip('t')}, unless you need the other one.",
        )
    ]


def _digest_warnings(trial: Trial) -> list[TorchWarning]:
    if trial.build.names_digests:
        return []
    return [
        TorchWarning(
            code="no-digests",
            message=f"the index of {trial.build.tag} publishes no SHA-256: what arrives over https is taken as it"
            " is, and from then on held to its SHA-256.",
        )
    ]


def _old_mac_warnings(case: Case, trial: Trial) -> list[TorchWarning]:
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
