"""The values of a smoke test: its options, timings, memory and image.

Times are seconds, memory is bytes; None means not measured, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from provisioner.core.errors import KleinError
from provisioner.core.models import Finding, Vendor

Backend = Literal["comfyui", "diffusers"]

DEFAULT_PROMPT = "a red fox sitting in fresh snow, morning light, photograph"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """The requested image."""

    prompt: str = DEFAULT_PROMPT
    seed: int = 0  # 0 to 2**64 - 1; a new one unless the user gave it: ComfyUI caches whole runs
    width: int = 1024  # pixels, a multiple of 16
    height: int = 1024
    steps: int = 4
    guidance: float = 1.0
    has_tiled_decode: bool = False  # for cards with little memory


CardEvidence = Literal["processes", "memory", "name"]
"""How it is known which card an image was generated on; `cards.judge_card` explains each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a process generates on: a GPU, or a MIG device of one, which CUDA shows as a GPU of its own."""

    label: str  # "GPU 1"; "GPU 1:0" for the first MIG device of it
    name: str  # of the whole GPU
    vendor: Vendor
    index: int  # of the whole GPU, as `detect` shows it
    slice_number: int | None = None  # of a MIG device, from 0
    uuid: str | None = None
    memory_total_bytes: int | None = None
    variables: tuple[tuple[str, str], ...] = ()  # that leave a process this one alone; empty: it is left to CUDA


@dataclass(frozen=True, slots=True, kw_only=True)
class CardUse:
    """What NVML says about one card at one moment."""

    uuid: str
    used_bytes: int  # by all processes
    is_ours: bool  # whether a process of ours is among those that it lists


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNames:
    """The names of the three files in ComfyUI's loaders: paths under the folder, with the server's separators."""

    diffusion_model: str
    text_encoder: str
    vae: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long each part took."""

    start_s: float | None = None  # until the server, or the pipeline's libraries, answered
    load_s: float | None = None  # reading the models, where measured separately
    encode_s: float | None = None  # the prompt
    steps_s: tuple[float, ...] = ()  # each denoising step that was measured
    decode_s: float | None = None  # latent to image
    total_s: float | None = None  # from the request to the image


@dataclass(frozen=True, slots=True, kw_only=True)
class VramReading:
    """What NVML reported about one GPU while the image was generated."""

    gpu_name: str
    gpu_uuid: str | None
    total_bytes: int
    free_at_start_bytes: int
    peak_used_bytes: int  # of the whole card, all processes
    used_at_start_bytes: int
    peak_process_bytes: int | None = None  # of the image's processes alone, where NVML reports it
    samples: int = 0
    curve: tuple[tuple[float, int], ...] = ()  # seconds since the measuring began, bytes used; at most 240 points
    phases: tuple[tuple[str, float], ...] = ()  # "start", "load", "encode", "sample", "decode", "save": when each began


Verdict = Literal["image", "noise", "uncertain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFigures:
    """What tells a photograph from noise, of brightness where nothing else is said."""

    neighbour_correlation: float  # of neighbouring pixels, at most 1; white noise has 0
    spectrum_slope: float  # b, where amplitude falls as 1 / frequency**b: white noise has 0, photographs about 1
    edge_peakedness: float  # kurtosis of the differences between neighbours: noise has about 3, photographs over 8
    contrast_variation: float  # of local contrast between 8 x 8 places, over its mean: noise has under 0.5
    colour_detail: float  # colour differences over brightness differences, squared: noise has 1 to 2
    saturation: float  # 0 to 1
    tonal_range: int  # 0 to 255, without the darkest and the brightest 2 %
    levels: int  # of 256, used by the colour channel that uses most
    clipped: float  # share of values that are 0, or that are 255, whichever are fewer
    direction: float  # how many times as much neighbours differ in one direction as in the other; 1: as much
    block_edges: float  # differences at the edges of blocks of 16 or 64 pixels over those elsewhere; 1: as large


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """Facts about a decoded image."""

    width: int
    height: int
    mode: str  # "RGB"
    size: int  # bytes of the encoded file
    sha256: str  # of the encoded file
    minimum: int  # 0 to 255, over all channels
    maximum: int
    mean: float
    deviation: float  # standard deviation over all channels, in the same units
    figures: ImageFigures | None = None  # None: too small for them


MediaKind = Literal["video", "audio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFigures:
    """What the frames of a video hold, all of them decoded.

    Levels are 0 to 255, of 64 x 64 places in each of the three colours: each value is the mean of what lies there.
    """

    codec: str  # "h264", "webp"
    width: int  # pixels
    height: int
    has_one_size: bool  # every frame has that size
    frames: int  # that were decoded
    frames_stated: int | None  # by the file; None: it does not say
    frames_per_second: float | None
    duration_s: float | None  # of what was decoded
    maximum: int  # of any frame
    deviation: float  # the greatest standard deviation in a frame, about the mean of each colour
    flat_frames: int  # those of one colour, black ones included
    change: float  # the most by which a place of any frame differs from the first frame
    damaged_frames: int  # that the decoder itself marks


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFigures:
    """What the samples of a sound hold, all of them decoded.  Levels are shares of full scale."""

    codec: str  # "flac", "mp3float"
    sample_rate: int  # hertz
    channels: int
    samples: int  # of each channel
    peak: float  # the largest value, whatever its sign
    rms: float  # root of the mean square, over all channels
    deviation: float  # the greatest standard deviation of a channel about its own mean
    clipped: float  # share of the values that are at full scale, 0 to 1
    not_numbers: int  # values that are NaN or infinite; they are left out of the others

    @property
    def duration_s(self) -> float:
        """Seconds of what was decoded."""
        return self.samples / self.sample_rate if self.sample_rate else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFacts:
    """Facts about a video or a sound that a workflow made."""

    kind: MediaKind  # what the server says that it is
    format: str  # what it is by its first bytes: "MP4", "FLAC"
    size: int  # bytes of the file
    sha256: str  # of the file
    path: Path | None = None  # where it was saved
    decoder: str | None = None  # "PyAV 18.1.0"; None: it was not decoded, and `complaint` says why
    complaint: str | None = None  # what kept it from being decoded to its end, as a clause
    duration_stated_s: float | None = None  # by the file
    video: VideoFigures | None = None
    audio: AudioFigures | None = None
    frame: ImageFacts | None = None  # one from the middle, its longer side at most 768 pixels
    frame_path: Path | None = None  # where that was saved, as PNG


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRun:
    """One of the images that a server made one after the other, and the memory it held afterwards."""

    seed: int
    total_s: float  # from the request to the image
    vram_bytes: int | None = None  # of the server where NVML says it, else of the whole card
    memory_bytes: int | None = None  # resident, of the server and what it started
    verdict: Verdict | None = None  # what the image looks like


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedWith:
    """The options that a ComfyUI ran with, but for where it listens and writes."""

    words: tuple[str, ...] = ()  # each option with its values, as it is typed, without secrets
    origin: str | None = None  # where those of the user come from; None: there are none
    left_out: tuple[str, ...] = ()  # options that stand there and that klein-setup sets itself


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTest:
    """One requested image, and everything known about it."""

    backend: Backend
    options: ImageOptions
    timings: Timings
    names: ModelNames | None = None  # ComfyUI only
    image: ImageFacts | None = None
    image_path: Path | None = None  # where it was saved
    media: tuple[MediaFacts, ...] = ()  # ComfyUI only: videos and sounds of a workflow
    is_stand_in: bool = False  # the weights are made up, so that noise is expected
    runs: tuple[ImageRun, ...] = ()  # ComfyUI only: this image and those after it
    vram: VramReading | None = None
    card: Card | None = None  # that it was given; None: not one of NVIDIA, and nobody named one
    card_evidence: CardEvidence | None = None  # how it is known that it was that one
    device: str | None = None  # "cuda:0 NVIDIA GeForce RTX 4070", "cpu"
    started_with: StartedWith | None = None  # ComfyUI only
    versions: tuple[tuple[str, str], ...] = ()  # ("comfyui", "0.33.0"), ("torch", "2.11.0+cu130")
    log_path: Path | None = None  # the server's or the script's whole output
    template: str | None = None  # file name of ComfyUI's own workflow for the model, where its package is there
    notes: tuple[str, ...] = ()  # sentences for the user that explain the figures
    findings: tuple[Finding, ...] = field(default=())

    @property
    def shown_path(self) -> Path | None:
        """Where the image is, else a frame of the first video; None where there is neither."""
        return self.image_path or next((each.frame_path for each in self.media if each.frame_path), None)

    @property
    def warm_s(self) -> float | None:
        """Seconds of an image with the models in memory: the median of those after the first; None without one."""
        later = [each.total_s for each in self.runs[1:]]
        return median(later) if later else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardResult:
    """What came of one of the cards that ``--gpu`` names."""

    card: Card
    smoke: SmokeTest | None = None  # None: no image; `error` says why
    error: KleinError | None = None

    @property
    def problem(self) -> KleinError | Finding | None:
        """What is wrong, None where nothing is."""
        found = self.smoke.findings if self.smoke is not None else ()
        return self.error or next((each for each in found if each.severity == "problem"), None)
