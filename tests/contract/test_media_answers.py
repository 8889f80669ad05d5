"""What a real PyAV said of videos and sounds, right ones and broken ones, and how each is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provisioner.smoke_test.media import Asked, format_of, judge_media, parse_answer
from provisioner.smoke_test.results import MediaFacts
from scripts.judge_media import ANSWERS, EXPECTED

RECORDED = json.loads(ANSWERS.read_text(encoding="utf-8"))
SOUNDS = {".flac", ".mp3", ".opus", ".wav"}
NOT_IN_AN_ANSWER = {
    "cut.opus": "the bytes themselves lack the end",
    "noise.mp4": "told by the pixels of a frame, which were not recorded",
    "noise.webm": "the same",
}


@pytest.mark.parametrize("name", sorted(set(RECORDED) - set(NOT_IN_AN_ANSWER)))
def test_every_recorded_answer_is_judged_as_it_should_be(name: str) -> None:
    answer = parse_answer(json.dumps(RECORDED[name]))
    form = format_of(bytes.fromhex(RECORDED[name]["first_bytes"]))
    assert form is not None
    facts = MediaFacts(
        kind="audio" if Path(name).suffix in SOUNDS else "video",
        format=form.name,
        size=RECORDED[name]["size"],
        sha256="ab" * 32,
        decoder=answer.decoder,
        complaint=answer.complaint,
        duration_stated_s=answer.duration_stated_s,
        video=answer.video,
        audio=answer.audio,
    )
    found = judge_media(facts, form, name.rpartition(".")[2], Asked())
    assert tuple(each.code for each in found) == EXPECTED[name]


def test_every_file_that_is_decoded_was_recorded() -> None:
    assert set(EXPECTED) - set(RECORDED) == {"page.mp4", "playlist.mp4", "zeros.flac"}
