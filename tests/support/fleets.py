"""Documents of many machines for the tests of a fleet: real ones, made of values, and changed where a test says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provisioner.comfyui.checkout_models import ComfyCheckout
from provisioner.core.models import Lock, Manifest
from provisioner.report.fleet_comparison import Fleet, fleet_of
from provisioner.report.fleet_documents import Document, UnusableFile, read_document, seconds_of
from provisioner.report.json_document import document
from provisioner.report.outcome import Report, RunFacts
from tests.support.builders import artifact, artifact_set, gpu, machine
from tests.support.builders import manifest as a_manifest
from tests.support.report_documents import MODEL, VAE, plan_of
from tests.support.schemas import conforming

NOW = "2026-11-27T12:00:00.000Z"
NOW_S = seconds_of(NOW) or 0
DAY_S = 86_400
COMMIT = "c0de" * 10
OTHER_COMMIT = "beef" * 10
LOCK = Lock(
    manifest_sha256="0" * 64,
    locked_on="2026-11-20",
    torch="2.14.1",
    torch_backend="cu130",
    comfyui_commit=COMMIT,
    comfyui_version="0.33.0",
)


def of(
    host: str, *, at: str = "2026-11-26T13:47:02.690Z", card: str = "NVIDIA RTX 4070", **changes: object
) -> dict[str, Any]:
    """Return the real document of a verify that found every file right; `changes` are those of its report."""
    comfyui = ComfyCheckout(given=Path("/c"), kind="git", tree=Path("/c"), version="0.33.0", commit=COMMIT)
    given: dict[str, Any] = {
        "command": "verify",
        "status": "ok",
        "exit_status": 0,
        "machine": machine(gpu(name=card)),
        "plan": plan_of(steps=False),
        "comfyui": comfyui,
        "seen_versions": (("comfyui", "0.33.0"), ("torch", "2.14.1+cu130")),
    }
    run = RunFacts(host=host, started_at=at, ended_at=at, seconds=16.567)
    told: dict[str, Any] = json.loads(json.dumps(document(Report(**{**given, **changes}), run=run)))
    return conforming(told)


def text(value: object) -> bytes:
    """Return a document as its file holds it."""
    return json.dumps(value).encode()


def read(*documents: Mapping[str, Any] | bytes, by_file: bool = False) -> list[Document | UnusableFile]:
    """Return what the files 1.json, 2.json and so on say."""
    return [
        read_document(f"{number}.json", each if isinstance(each, bytes) else text(each), by_file=by_file)
        for number, each in enumerate(documents, start=1)
    ]


def judged(*documents: Mapping[str, Any] | bytes, **options: Any) -> Fleet:  # noqa: ANN401 - those of fleet_of
    """Return the fleet that some documents are about, a day after most of them were made."""
    return fleet_of(read(*documents), **{"now_s": NOW_S, "stale_after_s": 7 * DAY_S, **options})


def lock_of(**changes: object) -> Manifest:
    """Return the lock of what `of` says that a host has."""
    given = {"id": "flux2-klein-4b", "lock": LOCK, **changes}
    return a_manifest(artifact_set(VAE, MODEL), **given)


def other_lock() -> Manifest:
    """Return a lock with another model file of a megabyte."""
    return a_manifest(
        artifact_set(VAE, artifact(bytes(1_000_000), id="model", folder="diffusion_models")),
        id="flux2-klein-4b",
        lock=LOCK,
    )


def failed(host: str, *, at: str = "2026-11-26T13:47:02.690Z") -> dict[str, Any]:
    """Return the document of an install that the network ended."""
    error = {
        "code": "unreachable",
        "message": "huggingface.co cannot be reached.",
        "hint": "Check the network, then run the same command again.",
        "exit_status": 5,
        "context": {},
    }
    return of(host, command="install", status="failed", exit_status=5, plan=None, at=at) | {"errors": [error]}


def a_fleet() -> Fleet:
    """Return a fleet in which every state occurs."""
    damaged = plan_of(statuses=("hash-mismatch", "ok"))
    old_torch = of("lab-3") | {"versions": {"comfyui": "0.33.0", "torch": "2.13.0+cu130"}}
    return judged(
        of("lab-1.example.org"),
        of("lab-2.example.org", card="NVIDIA GeForce RTX 5090"),
        old_torch,
        of("lab-4", status="findings", exit_status=1, plan=damaged),
        failed("lab-5"),
        of("lab-6", at="2026-10-01T08:00:00.000Z"),
        of("lab-7", command="detect", plan=None),
        b"\x00 no document",
        expected_hosts=["lab-8"],
    )


def with_problems(document: dict[str, Any], *messages: str) -> dict[str, Any]:
    """Return a document with problems."""
    findings = [{"code": "x", "severity": "problem", "message": each} for each in messages]
    return document | {"status": "findings", "findings": findings}
