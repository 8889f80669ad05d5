"""Documents of runs for the tests of the page: real ones, made of values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from provisioner.comfyui.checkout_models import ComfyCheckout
from provisioner.core.models import FetchFile, FilesPlan, Finding, Outcome, PlaceFile
from provisioner.plan.steps import Plan
from provisioner.report.changes import ChangesSince
from provisioner.report.json_document import document as report_document
from provisioner.report.outcome import Report
from provisioner.report.transfer_record import FileTimes, TransferRecord
from provisioner.smoke_test.results import ImageFacts, ImageOptions, ModelNames, SmokeTest, Timings, VramReading
from tests.support.builders import (
    GIB,
    artifact,
    artifact_set,
    check,
    comfy_file,
    comfy_target,
    gpu,
    local_copy,
    machine,
    whole,
)
from tests.support.builders import manifest as a_manifest
from tests.support.schemas import conforming

MADE_AT = "2026-11-23T06:16:12Z"
VAE = artifact(b"the right bytes", id="vae")
MODEL = artifact(b"the model", id="model", folder="diffusion_models", role="diffusion_model")
SET = artifact_set(VAE, MODEL)
MANIFEST = a_manifest(SET, id="flux2-klein-4b")

SMOKE = SmokeTest(
    backend="comfyui",
    options=ImageOptions(prompt="a red fox", seed=2**64 - 1),
    timings=Timings(start_s=6.0, load_s=2.0, encode_s=0.5, steps_s=(0.4, 0.3, 0.3, 0.3), decode_s=0.4, total_s=4.2),
    names=ModelNames(diffusion_model="model.safetensors", text_encoder="text.safetensors", vae="vae.safetensors"),
    image=ImageFacts(
        width=1024,
        height=1024,
        mode="RGB",
        size=1_500_000,
        sha256="ab" * 32,
        minimum=0,
        maximum=255,
        mean=120.0,
        deviation=60.0,
    ),
    image_path=Path("/images/fox.png"),
    vram=VramReading(
        gpu_name="A card",
        gpu_uuid=None,
        total_bytes=12 * 1024**3,
        free_at_start_bytes=11 * 1024**3,
        peak_used_bytes=9 * 1024**3,
        used_at_start_bytes=1024**3,
    ),
    device="cuda:0 A card",
    versions=(("comfyui", "0.33.0"), ("torch", "2.14.1+cu130")),
)


def plan_of(*, steps: bool = True, statuses: tuple[str, str] = ("ok", "ok"), **more: object) -> Plan:
    """Return a plan for two files."""
    fetch = FetchFile(artifact=MODEL, destination=comfy_file(MODEL), reason="missing", replaces="it is truncated")
    place = PlaceFile(
        artifact=VAE, destination=comfy_file(VAE), reason="here already", copy=local_copy(VAE, Path("/else/vae"))
    )
    files = FilesPlan(
        manifest=MANIFEST,
        set=SET,
        target=comfy_target(),
        steps=(fetch, place) if steps else (),
        checks=(check(MODEL, statuses[0], observed_sha256=MODEL.sha256), check(VAE, statuses[1])),
        **more,  # type: ignore[arg-type]
    )
    return whole(files)


def document(command: str = "install", status: str = "ok", exit_status: int = 0, **more: object) -> dict[str, object]:
    """Return the real document of a report."""
    given = {"machine": machine(gpu(name="NVIDIA GeForce RTX 4070")), "plan": plan_of(steps=False), **more}
    report = Report(command=command, status=status, exit_status=exit_status, **given)  # type: ignore[arg-type]
    return dict(conforming(report_document(report)))


def installed() -> dict[str, object]:
    """Return the document of an install with a test image."""
    plan = plan_of()
    outcomes = tuple(
        Outcome(step=step, status="done", detail="fetched from example.org", bytes_fetched=size, seconds=2.0)
        for step, size in zip(plan.steps, (5_000_000, 0), strict=True)
    )
    return document(plan=plan, outcomes=outcomes, smoke_test=SMOKE)


def measured() -> dict[str, object]:
    """Return the document of an install of which everything was measured, so that every chart is drawn."""
    plan = plan_of()
    outcomes = tuple(
        Outcome(
            step=step,
            status="done",
            detail="fetched from example.org",
            bytes_fetched=size,
            seconds=4.0,
            started_s=100.0 + 5 * number,
        )
        for number, (step, size) in enumerate(zip(plan.steps, (300_000_000, 0), strict=True))
    )
    transfers = TransferRecord(
        interval_s=0.5,
        received_bytes=(20_000_000, 90_000_000, 100_000_000, 90_000_000),
        files=(
            FileTimes(
                path="diffusion_models/model.safetensors",
                seconds=(("fetching", 2.0), ("waiting", 1.0), ("proving", 0.5), ("syncing", 0.25)),
            ),
            FileTimes(path="vae/vae.safetensors", seconds=(("placing", 3.0),)),
        ),
    )
    assert SMOKE.vram is not None
    curve = tuple((float(at_s), used * GIB) for at_s, used in enumerate((1, 1, 4, 8, 8, 9, 5)))
    phases = (("start", 0.0), ("load", 1.5), ("encode", 3.0), ("sample", 4.0), ("decode", 5.0), ("save", 5.5))
    smoke = replace(SMOKE, vram=replace(SMOKE.vram, curve=curve, phases=phases), template="image_flux2.json")
    comfyui = ComfyCheckout(given=Path("/c"), kind="git", tree=Path("/c"), version="0.33.0", commit="c0de" * 10)
    return document(plan=plan, outcomes=outcomes, smoke_test=smoke, transfers=transfers, comfyui=comfyui)


def damaged() -> dict[str, object]:
    """Return the document of a verify that found damage and a change, with the image of an earlier run."""
    warning = Finding(code="driver-old", severity="warning", message="The driver is old.", remedy="by-hand", hint="`x`")
    plan = plan_of(steps=False, statuses=("hash-mismatch", "missing"))
    changes = ChangesSince(changes=(), since="2026-11-01T08:00:00Z", mend="klein-setup repair")
    doc = document("verify", "findings", 1, plan=plan, findings=(warning,), changes=changes)
    details = measured()["details"]
    assert isinstance(doc["details"], dict)
    assert isinstance(details, dict)
    named = {key: doc[key] for key in ("target", "manifest")}
    doc["details"]["last_image"] = {"made_at": MADE_AT, **named, "smoke_test": details["smoke_test"]}
    return conforming(doc)
