"""A smoke test in the ``--json`` document, under ``details.smoke_test``.

The keys are written out here, so that renaming a field never renames a key somebody reads.  What was not measured is
null.  Nothing is judged: `is_verified` repeats what the smoke test itself found.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from provisioner.core.models import Finding
from provisioner.report.json_document import FindingEntry, ManifestEntry, TargetEntry, finding_entry
from provisioner.smoke_test.image_verdict import likeness_of
from provisioner.smoke_test.results import (
    AudioFigures,
    Backend,
    Card,
    CardEvidence,
    CardResult,
    ImageFacts,
    ImageFigures,
    ImageOptions,
    ImageRun,
    MediaFacts,
    MediaKind,
    ModelNames,
    SmokeTest,
    StartedWith,
    Verdict,
    VideoFigures,
    VramReading,
)


class WishEntry(TypedDict):
    """The parameters; with them the same image can be generated again."""

    prompt: str
    seed: int
    width: int  # pixels
    height: int
    steps: int
    guidance: float
    has_tiled_decode: bool


class FiguresEntry(TypedDict):
    """What tells a photograph from noise, measured of the image; of brightness where nothing else is said."""

    neighbour_correlation: float | None  # of neighbouring pixels, at most 1; white noise has 0
    spectrum_slope: float | None  # b, where amplitude falls as 1 / frequency**b: photographs have about 1
    edge_peakedness: float | None  # kurtosis of the differences between neighbours: noise has about 3
    contrast_variation: float | None  # of local contrast between 8 x 8 places, over its mean
    colour_detail: float | None  # colour differences over brightness differences, squared
    saturation: float | None  # 0 to 1
    tonal_range: int  # 0 to 255, without the darkest and the brightest 2 %
    levels: int  # of 256, used by the colour channel that uses most
    clipped: float | None  # share of values that are 0, or that are 255, whichever are fewer
    direction: float | None  # how many times as much neighbours differ in one direction as in the other
    block_edges: float | None  # differences at the edges of blocks over those elsewhere


class PictureEntry(TypedDict):
    """The image that was generated."""

    path: str | None  # where it was kept
    width: int  # pixels
    height: int
    mode: str  # "RGB"
    size: int  # bytes of the file
    sha256: str  # of the file
    minimum: int  # 0 to 255, over all channels
    maximum: int
    mean: float | None  # null: it is no number
    deviation: float | None  # standard deviation over all channels
    verdict: Verdict  # what it looks like
    because: str  # why, as a clause
    is_noise_expected: bool  # the manifest's weights are made up
    figures: FiguresEntry | None  # null: it is too small for them


class VideoEntry(TypedDict):
    """The frames of a video, all decoded; levels are 0 to 255, of 64 x 64 places in each colour."""

    codec: str
    width: int  # pixels
    height: int
    has_one_size: bool  # every frame has that size
    frames: int  # that were decoded
    frames_stated: int | None  # by the file
    frames_per_second: float | None
    duration_s: float | None  # of what was decoded
    maximum: int  # of any frame
    deviation: float | None  # the greatest standard deviation in a frame
    flat_frames: int  # those of one colour, black ones included
    change: float | None  # the most by which a place of any frame differs from the first frame
    damaged_frames: int  # that the decoder marks


class AudioEntry(TypedDict):
    """The samples of a sound, all decoded; levels are shares of full scale."""

    codec: str
    sample_rate: int  # hertz
    channels: int
    samples: int  # of each channel
    duration_s: float | None  # of what was decoded
    peak: float | None
    rms: float | None
    deviation: float | None  # the greatest standard deviation of a channel
    clipped: float | None  # share of the values at full scale, 0 to 1
    not_numbers: int  # values that are NaN or infinite


class FrameEntry(TypedDict):
    """The frame from the middle of a video."""

    path: str | None
    width: int  # pixels; its longer side is at most 768
    height: int
    sha256: str
    verdict: Verdict  # what it looks like
    because: str
    is_noise_expected: bool  # the manifest's weights are made up
    figures: FiguresEntry | None


class MediaEntry(TypedDict):
    """A video or a sound that a workflow made."""

    kind: MediaKind
    path: str | None  # where it was kept; null: it is neither
    format: str  # by its first bytes
    size: int  # bytes of the file
    sha256: str
    decoder: str | None  # null: it was not decoded, so nothing is known of it
    complaint: str | None  # what kept it from being decoded to its end
    duration_stated_s: float | None  # by the file
    video: VideoEntry | None
    audio: AudioEntry | None
    frame: FrameEntry | None


class TimingsEntry(TypedDict):
    """How long each part took, in seconds; null where it was not measured."""

    start_s: float | None  # until the server, or the pipeline's libraries, answered
    load_s: float | None
    encode_s: float | None
    steps_s: list[float]
    decode_s: float | None
    total_s: float | None  # from the request to the image
    warm_s: float | None  # the median of the images after it, with the models in memory


class RunEntry(TypedDict):
    """One of the images that a server made one after the other."""

    seed: int
    total_s: float | None  # from the request to the image
    vram_bytes: int | None  # held afterwards: by the server where NVML says it, else on the whole card
    memory_bytes: int | None  # resident, of the server and what it started
    verdict: Verdict | None  # what it looks like


class VramEntry(TypedDict):
    """GPU memory while the image was generated, in bytes."""

    gpu_name: str
    gpu_uuid: str | None
    total_bytes: int
    free_at_start_bytes: int
    used_at_start_bytes: int
    peak_used_bytes: int  # of the whole card, all processes
    peak_process_bytes: int | None  # of the image's processes alone
    samples: int
    curve: list[tuple[float, int]]  # seconds since the measuring began, bytes used then; at most 240
    phases: list[tuple[str, float]]  # a name, and when it began


class ModelsEntry(TypedDict):
    """The names of the three files in ComfyUI's loaders."""

    diffusion_model: str
    text_encoder: str
    vae: str


class CardEntry(TypedDict):
    """The GPU, or the MIG device of one, that a process was given."""

    gpu: int  # as ``detect`` numbers it
    mig_device: int | None  # from 0; null: the whole GPU
    name: str  # of the whole GPU
    uuid: str | None
    memory_total_bytes: int | None
    is_chosen_by_us: bool  # a variable left the process this one alone; false: CUDA chose
    evidence: CardEvidence | None  # how it is known that the image was generated there; null: it is not


class StartedWithEntry(TypedDict):
    """The options that a ComfyUI ran with, but for where it listens and writes; without secrets."""

    flags: list[str]  # each with its values
    flags_from: str | None  # where those of the user were found; null: there are none
    left_out: list[str]  # options that stand there and that klein-setup sets itself


class SmokeTestEntry(TypedDict):
    """One image that was asked for, whether it was generated or not: ``details.smoke_test``."""

    backend: Backend
    is_proven: bool  # it was generated and has no problem
    wish: WishEntry
    picture: PictureEntry | None
    media: list[MediaEntry]  # of a workflow
    timings: TimingsEntry
    images: list[RunEntry]  # this one and those after it; empty for diffusers
    vram: VramEntry | None
    card: CardEntry | None  # null: no card of NVIDIA, and none was named
    device: str | None
    started_with: StartedWithEntry | None  # null for diffusers
    versions: dict[str, str]
    models: ModelsEntry | None
    log_path: str | None
    template: str | None  # of ComfyUI, with the same graph
    notes: list[str]
    findings: list[FindingEntry]


class CardResultEntry(TypedDict):
    """What came of one card of ``smoke-test --gpu``: a row of ``details.cards``."""

    card: CardEntry
    is_proven: bool
    picture: str | None  # the file; of a video, that with its frame
    total_s: float | None  # from the request to the image
    warm_s: float | None
    peak_bytes: int | None  # of the card's memory, all processes
    problem: str | None  # what is wrong, in a sentence


class LastImageEntry(TypedDict):
    """The image of an earlier run: ``details.last_image``, only in the document that is kept for ``report``."""

    made_at: str  # UTC, ISO 8601
    target: TargetEntry
    manifest: ManifestEntry
    smoke_test: SmokeTestEntry


def is_verified(smoke: SmokeTest) -> bool:
    """Whether an image, a video or a sound was generated and nothing of it has a problem."""
    return bool(smoke.image or smoke.media) and not any(each.severity == "problem" for each in smoke.findings)


def smoke_entry(smoke: SmokeTest) -> SmokeTestEntry:
    """Return everything known of one image, always under the same keys; the document masks what is secret in it."""
    return {
        "backend": smoke.backend,
        "is_proven": is_verified(smoke),
        "wish": _options_entry(smoke.options),
        "picture": _image_entry(smoke.image, smoke) if smoke.image else None,
        "media": [_media_entry(each, smoke) for each in smoke.media],
        "timings": _timings_entry(smoke),
        "images": [_run_entry(each) for each in smoke.runs],
        "vram": _vram_entry(smoke.vram) if smoke.vram else None,
        "card": _card_entry(smoke.card, smoke) if smoke.card else None,
        "device": smoke.device,
        "started_with": _started_entry(smoke.started_with) if smoke.started_with else None,
        "versions": dict(smoke.versions),
        "models": _models_entry(smoke.names) if smoke.names else None,
        "log_path": _text(smoke.log_path),
        "template": smoke.template,
        "notes": list(smoke.notes),
        "findings": [finding_entry(each) for each in smoke.findings],
    }


def card_result_entry(result: CardResult) -> CardResultEntry:
    """Return the row of one card."""
    smoke, problem = result.smoke, result.problem
    return {
        "card": _card_entry(result.card, smoke),
        "is_proven": smoke is not None and is_verified(smoke),
        "picture": _text(smoke.shown_path) if smoke else None,
        "total_s": _seconds(smoke.timings.total_s) if smoke else None,
        "warm_s": _seconds(smoke.warm_s) if smoke else None,
        "peak_bytes": smoke.vram.peak_used_bytes if smoke and smoke.vram else None,
        "problem": problem.message if isinstance(problem, Finding) else None if problem is None else str(problem),
    }


def _card_entry(card: Card, smoke: SmokeTest | None) -> CardEntry:
    return {
        "gpu": card.index,
        "mig_device": card.slice_number,
        "name": card.name,
        "uuid": card.uuid,
        "memory_total_bytes": card.memory_total_bytes,
        "is_chosen_by_us": bool(card.variables),
        "evidence": smoke.card_evidence if smoke else None,
    }


def _options_entry(options: ImageOptions) -> WishEntry:
    return {
        "prompt": options.prompt,
        "seed": options.seed,
        "width": options.width,
        "height": options.height,
        "steps": options.steps,
        "guidance": options.guidance,
        "has_tiled_decode": options.has_tiled_decode,
    }


def _image_entry(image: ImageFacts, smoke: SmokeTest) -> PictureEntry:
    likeness = likeness_of(image.figures)
    return {
        "path": _text(smoke.image_path),
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
        "size": image.size,
        "sha256": image.sha256,
        "minimum": image.minimum,
        "maximum": image.maximum,
        "mean": image.mean,
        "deviation": image.deviation,
        "verdict": likeness.verdict,
        "because": likeness.because,
        "is_noise_expected": smoke.is_stand_in,
        "figures": _figures_entry(image.figures) if image.figures else None,
    }


def _figures_entry(figures: ImageFigures) -> FiguresEntry:
    """Return the figures with four digits after the point; more mean nothing."""
    return {
        "neighbour_correlation": round(figures.neighbour_correlation, 4),
        "spectrum_slope": round(figures.spectrum_slope, 4),
        "edge_peakedness": round(figures.edge_peakedness, 4),
        "contrast_variation": round(figures.contrast_variation, 4),
        "colour_detail": round(figures.colour_detail, 4),
        "saturation": round(figures.saturation, 4),
        "tonal_range": figures.tonal_range,
        "levels": figures.levels,
        "clipped": round(figures.clipped, 4),
        "direction": round(figures.direction, 4),
        "block_edges": round(figures.block_edges, 4),
    }


def _media_entry(media: MediaFacts, smoke: SmokeTest) -> MediaEntry:
    return {
        "kind": media.kind,
        "path": _text(media.path),
        "format": media.format,
        "size": media.size,
        "sha256": media.sha256,
        "decoder": media.decoder,
        "complaint": media.complaint,
        "duration_stated_s": _seconds(media.duration_stated_s),
        "video": _video_entry(media.video) if media.video else None,
        "audio": _audio_entry(media.audio) if media.audio else None,
        "frame": _frame_entry(media.frame, media.frame_path, smoke) if media.frame else None,
    }


def _video_entry(video: VideoFigures) -> VideoEntry:
    return {
        "codec": video.codec,
        "width": video.width,
        "height": video.height,
        "has_one_size": video.has_one_size,
        "frames": video.frames,
        "frames_stated": video.frames_stated,
        "frames_per_second": video.frames_per_second,
        "duration_s": _seconds(video.duration_s),
        "maximum": video.maximum,
        "deviation": video.deviation,
        "flat_frames": video.flat_frames,
        "change": video.change,
        "damaged_frames": video.damaged_frames,
    }


def _audio_entry(audio: AudioFigures) -> AudioEntry:
    return {
        "codec": audio.codec,
        "sample_rate": audio.sample_rate,
        "channels": audio.channels,
        "samples": audio.samples,
        "duration_s": _seconds(audio.duration_s),
        "peak": audio.peak,
        "rms": audio.rms,
        "deviation": audio.deviation,
        "clipped": audio.clipped,
        "not_numbers": audio.not_numbers,
    }


def _frame_entry(frame: ImageFacts, path: Path | None, smoke: SmokeTest) -> FrameEntry:
    likeness = likeness_of(frame.figures)
    return {
        "path": _text(path),
        "width": frame.width,
        "height": frame.height,
        "sha256": frame.sha256,
        "verdict": likeness.verdict,
        "because": likeness.because,
        "is_noise_expected": smoke.is_stand_in,
        "figures": _figures_entry(frame.figures) if frame.figures else None,
    }


def _timings_entry(smoke: SmokeTest) -> TimingsEntry:
    """Return the times to the millisecond; more digits mean nothing."""
    timings = smoke.timings
    return {
        "start_s": _seconds(timings.start_s),
        "load_s": _seconds(timings.load_s),
        "encode_s": _seconds(timings.encode_s),
        "steps_s": [round(float(each), 3) for each in timings.steps_s],
        "decode_s": _seconds(timings.decode_s),
        "total_s": _seconds(timings.total_s),
        "warm_s": _seconds(smoke.warm_s),
    }


def _run_entry(run: ImageRun) -> RunEntry:
    return {
        "seed": run.seed,
        "total_s": _seconds(run.total_s),
        "vram_bytes": run.vram_bytes,
        "memory_bytes": run.memory_bytes,
        "verdict": run.verdict,
    }


def _started_entry(started: StartedWith) -> StartedWithEntry:
    return {"flags": list(started.words), "flags_from": started.origin, "left_out": list(started.left_out)}


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)


def _vram_entry(vram: VramReading) -> VramEntry:
    return {
        "gpu_name": vram.gpu_name,
        "gpu_uuid": vram.gpu_uuid,
        "total_bytes": vram.total_bytes,
        "free_at_start_bytes": vram.free_at_start_bytes,
        "used_at_start_bytes": vram.used_at_start_bytes,
        "peak_used_bytes": vram.peak_used_bytes,
        "peak_process_bytes": vram.peak_process_bytes,
        "samples": vram.samples,
        "curve": list(vram.curve),
        "phases": list(vram.phases),
    }


def _models_entry(names: ModelNames) -> ModelsEntry:
    return {"diffusion_model": names.diffusion_model, "text_encoder": names.text_encoder, "vae": names.vae}
