"""Videos and sounds: what a file is, what its decoder may say, and each thing that can be wrong."""

from __future__ import annotations

import json
import random
import struct
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from provisioner.smoke_test.image import png_of, read_image
from provisioner.smoke_test.media import (
    Asked,
    MediaFormat,
    audio_words,
    format_of,
    header_words,
    is_cut_off,
    judge_media,
    parse_answer,
    video_words,
)
from provisioner.smoke_test.results import ImageFacts, MediaFacts
from tests.support.films import FILM, FRAMES, SAMPLES, SONG

MP4, FLAC = format_of(b"\0\0\0\x20ftypisom"), format_of(b"fLaC")


@pytest.mark.parametrize(
    ("data", "name", "decoder"),
    [
        (b"\0\0\0\x1cftypisom\0\0\2\0", "MP4", "mov"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webm", "WebM", "matroska"),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 60 + b"webm", "Matroska", "matroska"),
        (b"RIFF\x10\0\0\0WEBPVP8X", "WebP", "WEBP"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "WAV", "wav"),
        (b"\x89PNG\r\n\x1a\n", "PNG", "PNG"),
        (b"GIF89a", "GIF", "GIF"),
        (b"OggS" + b"\0" * 24 + b"OpusHead", "Opus", "ogg"),
        (b"OggS" + b"\0" * 24 + b"\x01vorbis", "Ogg", "ogg"),
        (b"ID3\x04", "MP3", "mp3"),
        (b"\xff\xfb\x90d", "MP3", "mp3"),
        (b"\xff\xf1\x50\x80", "AAC", "aac"),
    ],
)
def test_a_file_is_known_by_its_first_bytes(data: bytes, name: str, decoder: str) -> None:
    form = format_of(data)
    assert form is not None
    assert (form.name, form.decoder) == (name, decoder)
    assert form.extension.lstrip(".") in form.names


@pytest.mark.parametrize("data", [b"", b"\xff", b"<!DOCTYPE html>", b"#EXTM3U\n", bytes(100), b"\xff\xd8\xff\xe0JFIF"])
def test_what_is_no_video_and_no_sound_is_not_decoded_at_all(data: bytes) -> None:
    assert format_of(data) is None


def page(flags: int, body: bytes, *, said: int | None = None) -> bytes:
    """Return a page of Ogg with one segment, which says how long it is."""
    return b"OggS\0" + bytes([flags]) + bytes(20) + bytes([1, len(body) if said is None else said]) + body


def test_ogg_and_png_without_their_end_are_cut_off() -> None:
    ogg, png, flac = (format_of(each) for each in (b"OggS", b"\x89PNG\r\n\x1a\n", b"fLaC"))
    assert ogg
    assert png
    assert flac
    whole = page(2, b"first") + page(4, b"last")
    assert not is_cut_off(whole, ogg)
    assert is_cut_off(whole[:-1], ogg)
    assert is_cut_off(page(2, b"first") + page(0, b"middle"), ogg)
    assert is_cut_off(whole + b"OggS", ogg)
    assert not is_cut_off(png_of(2, 2, bytes(12)), png)
    assert is_cut_off(png_of(2, 2, bytes(12))[:-4], png)
    assert not is_cut_off(b"fLaC", flac)


def test_the_header_of_a_sound_that_nothing_decodes_is_said() -> None:
    packed = 44100 << 44 | 1 << 41 | 15 << 36 | 88200
    flac = b"fLaC\0\0\0\x22" + bytes(10) + packed.to_bytes(8, "big") + bytes(16)
    assert header_words(flac) == "by its header it has 2.0 s, 44100 Hz and 2 channels"
    wav = (
        b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16) + b"data\0\0\0\0" + bytes(8000)
    )
    assert header_words(wav) == "by its header it has 0.5 s, 8000 Hz and 1 channel"
    assert header_words(flac[:20]) == header_words(b"OggS") == ""


# --- the decoder's answer ------------------------------------------------------------------------


def test_what_the_decoder_says_is_read() -> None:
    body = {
        "decoder": "PyAV 18.1.0",
        "duration_stated_s": 2.5,
        "video": {"codec": "h264", "width": 4, "height": 2, "frames": 3, "frames_stated": 3, "has_one_size": True},
        "audio": {"codec": "aac", "sample_rate": 48000, "channels": 2, "samples": 96000, "peak": 0.5},
        "frame": {"width": 2, "height": 1, "rgb": b64encode(b"abcdef").decode()},
    }
    answer = parse_answer('{"pid": 7}\n' + json.dumps(body) + "\n")
    assert (answer.decoder, answer.complaint, answer.duration_stated_s) == ("PyAV 18.1.0", None, 2.5)
    assert answer.video
    assert answer.audio
    assert (answer.video.frames, answer.video.has_one_size, answer.video.frames_per_second) == (3, True, None)
    assert (answer.audio.duration_s, answer.audio.peak) == (2.0, 0.5)
    assert answer.frame == (2, 1, b"abcdef")


@pytest.mark.parametrize("text", ["", "Segmentation fault", '{"pid": 7}', "[1]", '{"video": ' + "[" * 100_000])
def test_a_decoder_that_says_nothing_is_a_complaint(text: str) -> None:
    assert parse_answer(text).complaint == "the decoder ended without an answer"


@pytest.mark.parametrize("value", [-1, 2**60, 10**400, float("nan"), float("inf"), True, "7", None, [1]])
def test_numbers_that_are_none_count_for_nothing(value: object) -> None:
    body = {"video": {"frames": value, "change": value}, "audio": {"sample_rate": value, "samples": value}}
    answer = parse_answer(json.dumps({**body, "duration_stated_s": value, "complaint": 3}))
    assert answer.video
    assert answer.audio
    assert (answer.video.frames, answer.video.change, answer.video.frames_stated) == (0, 0.0, None)
    assert (answer.audio.duration_s, answer.duration_stated_s, answer.complaint) == (0.0, None, None)


@pytest.mark.parametrize(
    "frame",
    [
        {"width": 2, "height": 1, "rgb": b64encode(b"abcde").decode()},
        {"width": 2, "height": 1, "rgb": "not base64!"},
        {"width": 2, "height": 1, "rgb": "\u20ac"},
        {"width": 2, "height": 1, "rgb": None},
        {"width": 0, "height": 1, "rgb": ""},
        {"width": 769, "height": 1, "rgb": b64encode(bytes(3 * 769)).decode()},
        {"width": 1, "height": 769, "rgb": b64encode(bytes(3 * 769)).decode()},
    ],
)
def test_a_frame_that_is_not_what_it_says_is_left_out(frame: object) -> None:
    assert parse_answer(json.dumps({"frame": frame})).frame is None


def test_words_of_a_decoder_are_shown_without_control_characters_and_shortened() -> None:
    answer = parse_answer(json.dumps({"complaint": "bad \x1b[31mdata\n" + "x" * 1000}))
    assert answer.complaint is not None
    assert not {"\x1b", "\n"} & set(answer.complaint)
    assert len(answer.complaint) <= 300


# --- judging ------------------------------------------------------------------------------------


def codes(
    facts: MediaFacts, form: MediaFormat | None = MP4, extension: str = "mp4", asked: Asked | None = None
) -> list[str]:
    return [each.code for each in judge_media(facts, form, extension, asked or Asked())]


def test_what_is_right_passes() -> None:
    assert codes(FILM, asked=Asked(size=(832, 480), frames=81)) == []
    assert codes(replace(FILM, audio=SAMPLES)) == []
    assert codes(SONG, FLAC, "flac") == []


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"frames": 40}, "media-damaged", "40 of the 81 frames that it states"),
        ({"frames": 0, "frames_stated": None}, "media-damaged", "0 of the 1 frame"),
        ({"damaged_frames": 2}, "media-damaged", "2 of 81 frames are damaged"),
        ({"frames_stated": None, "duration_s": 3.0}, "media-damaged", "3.0 s of the 5.1 s that it states"),
        ({"has_one_size": False}, "video-size", "frames of several sizes, not all of one size"),
        ({"maximum": 16}, "video-black", "no value of its 81 frames is above 16"),
        ({"deviation": 1.9}, "video-constant", "vary by 1.9 of 255 at most"),
        ({"change": 16}, "video-frozen", "its 81 frames are the same"),
        ({"flat_frames": 41}, "video-flat", "41 of the 81 frames of the video are black or one colour"),
    ],
)
def test_what_is_wrong_with_frames_is_said(change: Any, code: str, said: str) -> None:  # noqa: ANN401 - figures of any kind
    (found,) = judge_media(replace(FILM, video=replace(FRAMES, **change)), MP4, "mp4", Asked())
    assert found.code == code
    assert said in found.message
    assert found.hint
    assert found.severity == ("warning" if code == "video-flat" else "problem")


def test_one_frame_cannot_be_frozen_and_silence_before_the_end_is_no_fault() -> None:
    one = replace(FRAMES, frames=1, frames_stated=1, change=0, duration_s=None)
    assert codes(replace(FILM, video=one)) == []
    assert codes(replace(FILM, video=one), format_of(b"GIF89a"), "gif") == ["video-frozen"]  # equal frames become one
    assert codes(replace(FILM, video=replace(FRAMES, frames_stated=None, duration_s=4.9))) == []  # within the tolerance
    assert codes(replace(FILM, video=replace(FRAMES, flat_frames=40))) == []


def test_size_and_length_count_only_where_they_were_asked_for() -> None:
    assert codes(FILM, asked=Asked(size=(832, 482))) == ["video-size"]
    assert codes(FILM, asked=Asked(frames=97)) == ["video-length"]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"samples": 0}, "media-damaged", "its sound holds no sample"),
        ({"samples": 100_000}, "media-damaged", "2.3 s of the 5.0 s"),
        ({"not_numbers": 5}, "audio-not-numbers", "5 of the values"),
        ({"peak": 0.0, "rms": 0.0, "deviation": 0.0}, "audio-silent", "every value is 0"),
        ({"peak": 0.0009, "deviation": 0.0001}, "audio-silent", "its peak is -61 dB of full scale"),
        ({"deviation": 0.0004}, "audio-constant", "one value all the time (0.800 of full scale)"),
        ({"clipped": 0.02}, "audio-clipped", "2.0% of the values"),
    ],
)
def test_what_is_wrong_with_samples_is_said(change: Any, code: str, said: str) -> None:  # noqa: ANN401 - figures of any kind
    (found,) = judge_media(replace(SONG, audio=replace(SAMPLES, **change)), FLAC, "flac", Asked())
    assert found.code == code
    assert said in found.message
    assert found.severity == ("warning" if code == "audio-clipped" else "problem")


def test_a_video_may_be_silent_and_that_is_a_warning() -> None:
    (found,) = judge_media(replace(FILM, audio=replace(SAMPLES, peak=0.0)), MP4, "mp4", Asked())
    assert (found.code, found.severity) == ("video-silent", "warning")


def test_a_file_that_is_not_what_the_server_calls_it_is_named_as_what_it_is() -> None:
    (page,) = judge_media(replace(FILM, decoder=None, video=None, complaint="a web page"), None, "mp4", Asked())
    assert page.message == "The video is a web page."
    called = judge_media(replace(SONG, kind="video"), FLAC, "mp4", Asked())
    assert [each.code for each in called] == ["media-other-format", "media-damaged"]
    assert "`.mp4`, but its bytes are FLAC" in called[0].message
    assert "it holds no video" in called[1].message


def test_what_was_not_decoded_is_never_right() -> None:
    facts = replace(SONG, decoder=None, audio=None, complaint="this Python has no PyAV")
    (found,) = judge_media(facts, FLAC, "flac", Asked())
    assert (found.code, found.severity) == ("media-not-decoded", "problem")
    assert "this Python has no PyAV. Whether it is right is not known." in found.message
    (damaged,) = judge_media(replace(FILM, complaint="moov atom not found"), MP4, "mp4", Asked())
    assert "cannot be decoded to its end: moov atom not found (MP4, 1,000,000 bytes arrived)" in damaged.message


def test_a_frame_of_noise_is_a_problem_unless_the_weights_are_made_up(noisy: ImageFacts) -> None:
    film = replace(FILM, frame=noisy)
    assert codes(film) == ["video-noise"]
    assert judge_media(film, MP4, "mp4", Asked(), is_stand_in=True) == ()


@pytest.fixture(scope="module")
def noisy() -> ImageFacts:
    return read_image(png_of(128, 128, random.Random(7).randbytes(3 * 128 * 128)))


def test_figures_are_put_into_words() -> None:
    assert video_words(FRAMES).startswith(
        "81 frames at 16 a second, 832 x 480, h264; a place changes by up to 120 of 255"
    )
    assert "at" not in video_words(replace(FRAMES, frames_per_second=None)).partition(",")[0]
    assert audio_words(SAMPLES) == (
        "5.0 s of sound, 44100 Hz, 2 channels, flac; its peak is -2 dB of full scale, on average -20 dB"
    )
    assert audio_words(replace(SAMPLES, peak=0.0, rms=0.0, sample_rate=0)).startswith("0.0 s of sound")
