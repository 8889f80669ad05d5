"""A diagnosis in the ``--json`` document, under ``details.diagnosis``; the keys are written out, as everywhere."""

from __future__ import annotations

from typing import Literal, TypedDict

from provisioner.smoke_test.diagnosis import Diagnosis, Guilty, Layer, Try, conclusion, sentence


class TroubleEntry(TypedDict):
    """Why a start made no good image."""

    code: str
    message: str
    is_late: bool  # the first image was good, a later one was not


class TryEntry(TypedDict):
    """One start of ComfyUI, and what came of it."""

    what: str
    result: Literal["image", "failed", "unclear"]
    options: list[str]  # of the user's, each with its values
    custom_nodes: list[str] | None  # those that were on; null: as the user has them
    extra: list[str]  # options of ours
    trouble: TroubleEntry | None
    seconds: float
    log_path: str | None
    was_known: bool  # from a diagnosis that was interrupted


class GuiltyEntry(TypedDict):
    """A layer that is at fault."""

    layer: Layer
    groups: list[list[str]]  # options or custom nodes that fail together, the decisive one first
    suspects: list[str]  # where the search ended early: one of these
    is_confirmed: bool  # without it, and with everything else, the image came
    sentence: str


class DiagnosisEntry(TypedDict):
    """What is known of a failure: ``details.diagnosis``; of one that was interrupted, so far."""

    is_over: bool
    is_healthy: bool | None  # whether the image came under the user's own conditions; null: not tried
    options: list[str]  # of the user's, each with its values
    options_from: str | None
    custom_nodes: list[str]
    tries: list[TryEntry]
    guilty: list[GuiltyEntry]
    conclusion: str  # where no layer is guilty, what that means


def diagnosis_entry(diagnosis: Diagnosis) -> DiagnosisEntry:
    """Return everything known of a diagnosis; the document masks what is secret in it."""
    return {
        "is_over": diagnosis.is_over,
        "is_healthy": diagnosis.is_healthy if diagnosis.tries else None,
        "options": [" ".join(each) for each in diagnosis.options],
        "options_from": diagnosis.options_from,
        "custom_nodes": list(diagnosis.nodes),
        "tries": [_try_entry(each) for each in diagnosis.tries],
        "guilty": [_guilty_entry(each) for each in diagnosis.guilty],
        "conclusion": "" if diagnosis.guilty else conclusion(diagnosis),
    }


def _try_entry(each: Try) -> TryEntry:
    trouble = each.trouble
    return {
        "what": each.what,
        "result": "unclear" if each.is_unclear else "image" if trouble is None else "failed",
        "options": [" ".join(option) for option in each.setup.options],
        "custom_nodes": None if each.setup.nodes is None else list(each.setup.nodes),
        "extra": list(each.setup.extra),
        "trouble": None
        if trouble is None
        else {"code": trouble.code, "message": trouble.message, "is_late": trouble.is_late},
        "seconds": round(each.seconds, 3),
        "log_path": each.log_path,
        "was_known": each.was_known,
    }


def _guilty_entry(guilty: Guilty) -> GuiltyEntry:
    return {
        "layer": guilty.layer,
        "groups": [list(each) for each in guilty.groups],
        "suspects": list(guilty.suspects),
        "is_confirmed": guilty.is_confirmed,
        "sentence": sentence(guilty),
    }
