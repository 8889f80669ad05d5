"""The text of a smoke test: the image, its parameters, how long each phase took, the memory it used.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from provisioner.core.units import count, gib, human_bytes, human_duration
from provisioner.smoke_test.image_verdict import figure_words, likeness_of, verdict_words
from provisioner.smoke_test.media import audio_words, video_words
from provisioner.smoke_test.results import (
    Card,
    CardEvidence,
    CardResult,
    ImageFacts,
    MediaFacts,
    SmokeTest,
    StartedWith,
    Timings,
    VramReading,
)
from provisioner.ui.problems import finding_blocks
from provisioner.ui.text import BLANK, Block, Column, Grid, Para, Row, Span, Style, pair, pair_blocks, span


def smoke_blocks(smoke: SmokeTest) -> list[Block]:
    """Return the image with its parameters, the times, the memory in sentences, the versions and the findings."""
    rows = [*_image_rows(smoke), *(row for each in smoke.media for row in _media_rows(each, smoke))]
    rows += [pair("prompt", smoke.options.prompt), pair("made with", _options_words(smoke))]
    rows += _timing_rows(smoke.timings)
    rows += [pair("next", later_words(smoke))] if smoke.runs[1:] else []
    memory = smoke.notes or ((_vram_words(smoke.vram),) if smoke.vram else ())
    rows += [pair("notes" if smoke.notes else "memory", "\n".join(memory))] if memory else []
    rows += [pair("device", smoke.device)] if smoke.device else []
    rows += [pair("GPU", card_words(smoke.card, smoke.card_evidence))] if smoke.card else []
    rows += [pair("options", started_words(smoke.started_with))] if smoke.started_with else []
    if smoke.versions:
        rows.append(pair("versions", ", ".join(f"{name} {version}" for name, version in smoke.versions)))
    rows += [pair("log", smoke.log_path)] if smoke.log_path else []
    return [Para(line=span("Test image", "title")), *pair_blocks(rows), *finding_blocks(smoke.findings)]


_EVIDENCE: dict[CardEvidence, str] = {
    "processes": "the driver lists the program there",
    "memory": "its memory grew while the program ran",
    "name": "by its name, which no other GPU here has",
}


def card_words(card: Card, evidence: CardEvidence | None) -> str:
    """Return which card it was, and how that is known."""
    known = _EVIDENCE[evidence] if evidence is not None else "not verified: the driver does not say"
    return f"{card.label.removeprefix('GPU ')}, {card.uuid or card.name} ({known})"


def cards_blocks(results: Sequence[CardResult]) -> list[Block]:
    """Return a row for each card of ``smoke-test --gpu``, and below it what is wrong."""
    rows = []
    for each in results:
        smoke, problem = each.smoke, each.problem
        name = (
            each.card.name
            if each.card.memory_total_bytes is None
            else f"{each.card.name}, {gib(each.card.memory_total_bytes)}"
        )
        parts = []
        if smoke is not None and smoke.timings.total_s is not None:
            parts.append(human_duration(smoke.timings.total_s))
        if smoke is not None and smoke.warm_s is not None:
            parts.append(f"next {human_duration(smoke.warm_s)}")
        if smoke is not None and smoke.vram is not None:
            parts.append(f"{gib(smoke.vram.peak_used_bytes)} at the peak")
        word = Span("failed", "bad") if problem is not None else Span("ok", "good")
        rows.append(Row((word, Span(each.card.label), Span(name), Span(", ".join(parts), "dim"))))
    columns = (Column(), Column(), Column(), Column())
    return [Para(line=span("GPUs", "title")), Grid(columns=columns, rows=tuple(rows)), BLANK] if rows else []


def _image_rows(smoke: SmokeTest) -> list[Row]:
    """Return where the image is and its size; a missing image is shown as such, not left out."""
    if smoke.image is None:
        return [] if smoke.media else [pair("image", "none was generated", "bad")]
    facts = f"{smoke.image.width} x {smoke.image.height}, {human_bytes(smoke.image.size)}"
    if smoke.image_path is None:
        rows = [pair("image", f"{facts}, not kept", "good")]
    else:
        rows = [pair("image", smoke.image_path, "good"), pair("", facts, "good")]
    return [*rows, *_verdict_rows(smoke.image, is_noise_expected=smoke.is_stand_in)]


def _media_rows(media: MediaFacts, smoke: SmokeTest) -> list[Row]:
    """Return where a video or a sound is, and what was seen and heard in it."""
    name = "video" if media.kind == "video" else "sound"
    style: Style = "good" if media.decoder is not None and media.complaint is None else "warn"
    rows = [pair(name, media.path, style)] if media.path is not None else []
    rows.append(pair("" if rows else name, f"{media.format}, {human_bytes(media.size)}", style))
    rows += [pair("", video_words(media.video), style)] if media.video is not None else []
    rows += [pair("", audio_words(media.audio), style)] if media.audio is not None else []
    if media.decoder is None and media.path is not None:
        rows.append(pair("", "not decoded, so it is not known whether it is right", "warn"))
    if media.frame is not None:
        rows += [pair("its frame", media.frame_path)] if media.frame_path is not None else []
        rows += _verdict_rows(media.frame, is_noise_expected=smoke.is_stand_in)
    return rows


def _verdict_rows(image: ImageFacts, *, is_noise_expected: bool) -> list[Row]:
    """Return what the image looks like, and the figures that say so."""
    likeness = likeness_of(image.figures)
    is_good = likeness.verdict == "image" or is_noise_expected
    words = verdict_words(likeness.verdict, likeness.because, is_noise_expected=is_noise_expected)
    rows = [pair("verdict", words, "good" if is_good else "warn")]
    if image.figures is not None:
        rows.append(pair("", figure_words(asdict(image.figures))))
    return rows


def _options_words(smoke: SmokeTest) -> str:
    options = smoke.options
    words = f"seed {options.seed}, {count(options.steps, 'step')}, guidance {options.guidance:g}"
    if smoke.image is not None or not smoke.media or any(each.video for each in smoke.media):
        words = f"{words}, {options.width} x {options.height}"
    return f"{words}, decoded in tiles" if options.has_tiled_decode else words


def started_words(started: StartedWith) -> str:
    """Return the options that ComfyUI ran with, and where the user's come from."""
    words = " ".join(started.words) or "none"
    if started.origin is None:
        return words
    left_out = f", without its {', '.join(started.left_out)}" if started.left_out else ""
    return f"{words} (from {started.origin}{left_out})"


def _timing_rows(timings: Timings) -> list[Row]:
    """Return the total time and its parts; what was not measured is left out, never shown as zero."""
    rows: list[Row] = []
    if timings.total_s is not None:
        rows.append(pair("took", human_duration(timings.total_s)))
    parts = [
        ("start", timings.start_s),
        ("load", timings.load_s),
        ("encode", timings.encode_s),
        ("denoise", sum(timings.steps_s) if timings.steps_s else None),
        ("decode", timings.decode_s),
    ]
    known = [_part_words(name, seconds, timings) for name, seconds in parts if seconds is not None]
    return [*rows, pair("phases", ", ".join(known))] if known else rows


def later_words(smoke: SmokeTest) -> str:
    """Return how long the images after the first one took."""
    later = [each.total_s for each in smoke.runs[1:]]
    if len(later) == 1:
        return f"{human_duration(later[0])} for a second one of the same prompt, with the models in memory"
    shortest, longest = human_duration(min(later)), human_duration(max(later))
    return f"{shortest} to {longest} for each of {len(later)} more of the same prompt, with the models in memory"


def _part_words(name: str, seconds: float, timings: Timings) -> str:
    words = f"{name} {human_duration(seconds)}"
    if name != "denoise" or len(timings.steps_s) < 2:
        return words
    return f"{words} ({' + '.join(f'{each:.2f}' for each in timings.steps_s)})"


def _vram_words(vram: VramReading) -> str:
    """Return the peak and what was free at the start, without which a peak says nothing."""
    words = f"The peak was {gib(vram.peak_used_bytes)} of {gib(vram.total_bytes)} on {vram.gpu_name}"
    words += f", with {gib(vram.free_at_start_bytes)} free at the start."
    if vram.peak_process_bytes is not None:
        words += f" {gib(vram.peak_process_bytes)} of it was used by the generating process."
    return words
