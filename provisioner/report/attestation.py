"""What ``verify --attest`` writes: an in-toto statement that a machine's files are right, and with what they run.

Pure: values in, JSON out, and back.  Holds no path, no name of a person or computer, and no serial number of a device.
``docs/attestation.md`` explains each field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from provisioner.core.errors import LockSignatureError
from provisioner.core.json_reader import FieldError, Fields, parse_object
from provisioner.core.models import Gpu, Machine, Manifest
from provisioner.report.changes import CheckedState

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://github.com/klein-setup/klein-setup/blob/main/docs/attestation.md#v1"
VERIFIER = "https://github.com/klein-setup/klein-setup"

LARGEST_ATTESTATION = 1024 * 1024
"""Bytes.  One of 20 files has about 5 kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a full check read and found right."""

    manifest: Manifest
    set_id: str
    files: Mapping[str, str]  # SHA-256 by the file's name below the models folder, or in its repository
    machine: Machine
    state: CheckedState  # of the environment and of ComfyUI
    packages_sha256: str | None = None  # of the list of what is installed in the environment
    image_sha256: str | None = None  # of the last test image there
    image_made_at: str | None = None  # ISO 8601, UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """The parts of a statement that a person wants to see."""

    time: str
    manifest: str  # "flux2-klein-4b/fp8"
    manifest_sha256: str
    lock_version: int | None
    files: Mapping[str, str]
    gpus: tuple[str, ...]
    is_recorded: bool  # the machine, read from a file
    torch: str | None
    comfyui_commit: str | None


def statement_text(verified: Verified) -> str:
    """Return the statement, as JSON."""
    state, machine, lock = verified.state, verified.machine, verified.manifest.lock
    predicate = {
        "verifier": {"id": VERIFIER, "version": state.klein_setup},
        "timeVerified": state.taken_at,
        "verificationResult": "PASSED",
        "manifest": {"id": verified.manifest.id, "set": verified.set_id, "sha256": verified.manifest.sha256},
        "lock": lock and _known(lockedOn=lock.locked_on, version=lock.version, expires=lock.expires),
        "machine": _known(
            isRecorded=machine.recorded_from is not None or None,  # by KLEIN_SETUP_MACHINE; nobody looked at it
            os=machine.os,
            osRelease=machine.os_release,
            distribution=machine.distribution,
            architecture=machine.architecture,
            memoryBytes=machine.memory_total_bytes,
            driver=machine.driver_version,
            cudaDriver=_dotted(machine.cuda_driver_version),
            gpus=[_gpu(each) for each in machine.gpus],
        ),
        "environment": _known(
            python=state.python_version,
            torch=state.torch,
            torchvision=state.torchvision,
            torchaudio=state.torchaudio,
            packagesSha256=verified.packages_sha256,
        ),
        "comfyui": _known(
            version=state.comfyui_version,
            commit=state.comfyui_commit,
            hasLocalChanges=state.comfyui_has_local_changes,
            customNodes=len(state.custom_nodes) if state.comfyui_commit or state.comfyui_version else None,
        ),
        "image": _known(sha256=verified.image_sha256, madeAt=verified.image_made_at),
    }
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(verified.files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {name: value for name, value in predicate.items() if value},
    }
    return json.dumps(statement, indent=1, allow_nan=False) + "\n"


def parse_statement(payload: bytes, *, label: str) -> Attestation:
    """Return what a statement says; raises LockSignatureError where it is none of ours.

    Parameters
    ----------
    payload : bytes
        The statement, its signature verified.
    label : str
        What messages call it.
    """
    try:
        return _attestation(Fields(parse_object(payload, most=LARGEST_ATTESTATION) or {}))
    except FieldError as error:
        raise LockSignatureError(
            f"{label} is no attestation of klein-setup: {error}.",
            hint="Name a file that `klein-setup verify --attest FILE --sign KEY` wrote.",
            path=label,
        ) from error


def _attestation(statement: Fields) -> Attestation:
    statement.choice("_type", (STATEMENT_TYPE,), "")
    statement.choice("predicateType", (PREDICATE_TYPE,), "")
    predicate = statement.inner("predicate")
    predicate.choice("verificationResult", ("PASSED",), "")
    manifest = predicate.inner("manifest")
    machine = predicate.inner("machine")
    lock, environment, comfyui = (_part(predicate, name) for name in ("lock", "environment", "comfyui"))
    return Attestation(
        time=predicate.text("timeVerified"),
        manifest=f"{manifest.text('id')}/{manifest.text('set')}",
        manifest_sha256=manifest.text("sha256"),
        lock_version=lock.optional_count("version"),
        files={each.text("name"): each.inner("digest").text("sha256") for each in statement.objects("subject")},
        gpus=tuple(each.text("name") for each in machine.objects("gpus")),
        is_recorded=machine.optional_flag("isRecorded") or False,
        torch=environment.optional_text("torch"),
        comfyui_commit=comfyui.optional_text("commit"),
    )


def _part(predicate: Fields, name: str) -> Fields:
    return predicate.inner(name) if name in predicate.values else Fields({})


def _known(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _gpu(gpu: Gpu) -> dict[str, object]:
    return _known(
        vendor=gpu.vendor,
        name=gpu.name,
        computeCapability=_dotted(gpu.compute_capability),
        architecture=gpu.architecture,
        memoryBytes=gpu.memory_total_bytes,
        driver=gpu.driver_version,
    )


def _dotted(pair: tuple[int, int] | None) -> str | None:
    return None if pair is None else f"{pair[0]}.{pair[1]}"
