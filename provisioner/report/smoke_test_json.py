"""A smoke test in the ``--json`` document, under ``details.smoke_test``.

The keys are written out here, so that renaming a field never renames a key somebody reads.  What was not measured is
null.  Nothing is judged: `is_verified` repeats what the smoke test itself found.
"""

from __future__ import annotations

from provisioner.core.models import Finding
from provisioner.report.json_value import JsonValue, json_value
from provisioner.smoke_test.results import ImageFacts, ImageOptions, ModelNames, SmokeTest, Timings, VramReading


def is_verified(smoke: SmokeTest) -> bool:
    """Whether an image was generated and has no problem."""
    return smoke.image is not None and not any(each.severity == "problem" for each in smoke.findings)


def smoke_entry(smoke: SmokeTest) -> dict[str, JsonValue]:
    """Return everything known of one image, as JSON values.

    Parameters
    ----------
    smoke : SmokeTest
        One image that was asked for, whether it was generated or not.

    Returns
    -------
    dict
        Keys ``backend``, ``is_proven``, ``wish``, ``picture``, ``timings``, ``vram``, ``device``, ``versions``,
        ``models``, ``log_path``, ``template``, ``notes`` and ``findings``, always all of them.  Times are seconds,
        memory is bytes.  ``picture``, ``vram``, ``models`` and ``template`` are null where there is none; an image has
        its ``path``, which is null where it was not kept.  ``vram.curve`` has at most 240 pairs of a time and the bytes
        used then, ``vram.phases`` pairs of a name and the time it began, both since the measuring began.
    """
    return {
        "backend": smoke.backend,
        "is_proven": is_verified(smoke),
        "wish": _options_entry(smoke.options),
        "picture": _image_entry(smoke.image, smoke) if smoke.image else None,
        "timings": _timings_entry(smoke.timings),
        "vram": _vram_entry(smoke.vram) if smoke.vram else None,
        "device": smoke.device,
        "versions": json_value(dict(smoke.versions)),
        "models": _models_entry(smoke.names) if smoke.names else None,
        "log_path": json_value(smoke.log_path),
        "template": json_value(smoke.template),
        "notes": json_value(smoke.notes),
        "findings": [_finding_entry(each) for each in smoke.findings],
    }


def _options_entry(options: ImageOptions) -> dict[str, JsonValue]:
    """Return the parameters; with them the same image can be generated again."""
    return {
        "prompt": json_value(options.prompt),
        "seed": options.seed,
        "width": options.width,
        "height": options.height,
        "steps": options.steps,
        "guidance": json_value(options.guidance),
        "has_tiled_decode": options.has_tiled_decode,
    }


def _image_entry(image: ImageFacts, smoke: SmokeTest) -> dict[str, JsonValue]:
    return {
        "path": json_value(smoke.image_path),
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
        "size": image.size,
        "sha256": image.sha256,
        "minimum": image.minimum,
        "maximum": image.maximum,
        "mean": json_value(image.mean),
        "deviation": json_value(image.deviation),
    }


def _timings_entry(timings: Timings) -> dict[str, JsonValue]:
    """Return the times to the millisecond; more digits mean nothing."""
    return {
        "start_s": _seconds(timings.start_s),
        "load_s": _seconds(timings.load_s),
        "encode_s": _seconds(timings.encode_s),
        "steps_s": [_seconds(each) for each in timings.steps_s],
        "decode_s": _seconds(timings.decode_s),
        "total_s": _seconds(timings.total_s),
    }


def _seconds(value: float | None) -> JsonValue:
    return json_value(None if value is None else round(float(value), 3))


def _vram_entry(vram: VramReading) -> dict[str, JsonValue]:
    return {
        "gpu_name": vram.gpu_name,
        "gpu_uuid": vram.gpu_uuid,
        "total_bytes": vram.total_bytes,
        "free_at_start_bytes": vram.free_at_start_bytes,
        "used_at_start_bytes": vram.used_at_start_bytes,
        "peak_used_bytes": vram.peak_used_bytes,
        "peak_process_bytes": vram.peak_process_bytes,
        "samples": vram.samples,
        "curve": [[at_s, used] for at_s, used in vram.curve],  # seconds, bytes; at most 240 points
        "phases": [[name, at_s] for name, at_s in vram.phases],
    }


def _models_entry(names: ModelNames) -> dict[str, JsonValue]:
    return {"diffusion_model": names.diffusion_model, "text_encoder": names.text_encoder, "vae": names.vae}


def _finding_entry(finding: Finding) -> dict[str, JsonValue]:
    """Return a finding with the keys the document's own ``findings`` have."""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "message": json_value(finding.message),
        "path": json_value(finding.path),
        "hint": json_value(finding.hint),
    }
