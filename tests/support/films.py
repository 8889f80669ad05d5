"""A video and a sound that are right."""

from __future__ import annotations

from provisioner.smoke_test.results import AudioFigures, ImageFacts, MediaFacts, VideoFigures
from tests.support.pictures import SOUND as PHOTOGRAPH

FRAMES = VideoFigures(
    codec="h264",
    width=832,
    height=480,
    has_one_size=True,
    frames=81,
    frames_stated=81,
    frames_per_second=16.0,
    duration_s=81 / 16,
    maximum=250,
    deviation=58.0,
    flat_frames=0,
    change=120,
    damaged_frames=0,
)
SAMPLES = AudioFigures(
    codec="flac",
    sample_rate=44100,
    channels=2,
    samples=220500,
    peak=0.8,
    rms=0.1,
    deviation=0.1,
    clipped=0.0,
    not_numbers=0,
)
FILM = MediaFacts(
    kind="video",
    format="MP4",
    size=1_000_000,
    sha256="ab" * 32,
    decoder="PyAV 18",
    duration_stated_s=5.07,
    video=FRAMES,
)
SONG = MediaFacts(
    kind="audio", format="FLAC", size=700_000, sha256="cd" * 32, decoder="PyAV 18", duration_stated_s=5.0, audio=SAMPLES
)
FRAME = ImageFacts(
    width=768,
    height=443,
    mode="RGB",
    size=500_000,
    sha256="ef" * 32,
    minimum=0,
    maximum=255,
    mean=120.0,
    deviation=60.0,
    figures=PHOTOGRAPH,
)
