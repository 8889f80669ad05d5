"""Tell what a video or a sound is from its bytes, read the answer of `media_script` about it, and judge the figures.

Judges only numbers, as `image` does: it detects what is black, frozen, silent, cut off or not what the server calls it,
but cannot tell whether a video shows its prompt.  Levels of a picture are 0 to 255, levels of a sound are shares of
full scale, and times are seconds.
"""

from __future__ import annotations

import binascii
import math
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from provisioner.core.json_reader import as_dict, as_int, parse_object
from provisioner.core.models import Finding
from provisioner.core.redact import printable, redact
from provisioner.core.units import count, human_bytes
from provisioner.smoke_test.image import MAX_BLACK, MIN_DEVIATION
from provisioner.smoke_test.image_verdict import likeness_of
from provisioner.smoke_test.results import AudioFigures, MediaFacts, MediaKind, VideoFigures

SCRIPT = Path(__file__).with_name("media_script.py")
"""What decodes; it runs in another Python."""

STILL = 16
"""A video in which no place of any frame differs by more than this from the first frame is frozen.  The same grainy
frame, encoded 300 times, gives 4 with H.264 as ComfyUI sets it and 12 at its worst; a mouth that speaks gives 90."""

SILENT = 0.001
"""Peak of a sound below which it is silent: -60 dB of full scale.  What encoders make of silence is below -90 dB."""

CONSTANT = 0.0005
"""Standard deviation below which the values of a sound are one and the same: nothing is heard, whatever the peak."""

CLIPPED = 0.01
"""Share of values at full scale above which a sound is audibly distorted; music that is mastered loud has 0.001."""

MISSING_S = 0.25
"""Seconds by which what was decoded may be shorter than what the file says: encoders pad sounds, and round."""

MISSING_SHARE = 0.02
"""The same as a share of the length, for long ones."""

ANSWER_CHARACTERS = 4 * 1024 * 1024
"""A frame of 768 x 768 pixels has 2.4 million characters; the rest has a thousand."""

_LONGEST_CLAUSE = 300  # characters of what a decoder says
_LONGEST_SIDE = 768  # pixels of the frame that is handed out
_MOST = 2**53

Library = Literal["av", "pillow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFormat:
    """A kind of file, and what decodes it."""

    name: str  # "MP4"
    extension: str  # that the file is kept with: ".mp4"
    library: Library
    decoder: str  # FFmpeg's name of the demuxer, Pillow's of the format
    names: frozenset[str]  # extensions that a file of this kind may have


def _format(name: str, extensions: str, library: Library, decoder: str) -> MediaFormat:
    words = extensions.split()
    return MediaFormat(name=name, extension=f".{words[0]}", library=library, decoder=decoder, names=frozenset(words))


_MP4 = _format("MP4", "mp4 m4v mov m4a 3gp", "av", "mov")
_WEBM = _format("WebM", "webm mkv", "av", "matroska")
_MATROSKA = _format("Matroska", "mkv webm", "av", "matroska")
_OPUS = _format("Opus", "opus ogg", "av", "ogg")
_OGG = _format("Ogg", "ogg oga ogv opus", "av", "ogg")
_MP3 = _format("MP3", "mp3", "av", "mp3")
_AAC = _format("AAC", "aac", "av", "aac")
_FORMATS: tuple[tuple[int, bytes, MediaFormat], ...] = (  # where, magic
    (4, b"ftyp", _MP4),
    (0, b"\x1a\x45\xdf\xa3", _MATROSKA),
    (0, b"fLaC", _format("FLAC", "flac", "av", "flac")),
    (0, b"OggS", _OGG),
    (8, b"WAVE", _format("WAV", "wav", "av", "wav")),
    (8, b"AVI ", _format("AVI", "avi", "av", "avi")),
    (8, b"WEBP", _format("WebP", "webp", "pillow", "WEBP")),
    (0, b"\x89PNG\r\n\x1a\n", _format("PNG", "png apng", "pillow", "PNG")),
    (0, b"GIF8", _format("GIF", "gif", "pillow", "GIF")),
    (0, b"ID3", _MP3),
)


def format_of(data: bytes) -> MediaFormat | None:
    r"""Return what kind of file this is by its first bytes; None where it is none that is judged.

    >>> [each and each.name for each in map(format_of, (b"fLaC", b"\0\0\0\x20ftypisom", b"\xff\xfb\x90", b"<html>"))]
    ['FLAC', 'MP4', 'MP3', None]
    """
    found = next((each for at, magic, each in _FORMATS if data[at : at + len(magic)] == magic), None)
    if found is _MATROSKA and b"webm" in data[:64]:
        return _WEBM
    if found is _OGG and b"OpusHead" in data[:64]:
        return _OPUS
    if found is None and len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:  # a frame's first bits
        return _MP3 if data[1] & 0x06 else _AAC
    return found


def is_cut_off(data: bytes, form: MediaFormat) -> bool:
    """Whether an Ogg file or a PNG lacks its end; others say how long they are, and decoders take these as they are.

    The last page of Ogg has the mark of the end (RFC 3533, section 6).
    """
    if form.name == "PNG":
        return b"IEND\xaeB`\x82" not in data[-64 * 1024 :]
    if form.decoder != "ogg":
        return False
    last = data.rfind(b"OggS")
    header = data[last : last + 27]
    return (
        len(header) < 27
        or not header[5] & 4
        or last + 27 + header[26] + sum(data[last + 27 : last + 27 + header[26]]) > len(data)
    )


def header_words(data: bytes) -> str:
    """Return what the header of a FLAC or WAV file says of its sound; nothing of others.

    Where the fields lie: RFC 9639, section 8.2; for WAV the layout that Python's `wave` writes, too.
    """
    if data.startswith(b"fLaC") and len(data) >= 26:
        packed = int.from_bytes(data[18:26], "big")
        rate, channels, samples = packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
        seconds = samples / rate if rate else 0.0
    elif data[8:16] == b"WAVEfmt " and len(data) >= 44:
        channels, rate = int.from_bytes(data[22:24], "little"), int.from_bytes(data[24:28], "little")
        seconds = (len(data) - 44) / max(1, int.from_bytes(data[28:32], "little"))
    else:
        return ""
    return f"by its header it has {seconds:.1f} s, {rate} Hz and {count(channels, 'channel')}"


# --- the answer of the script -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptAnswer:
    """What the script says of a file."""

    decoder: str | None = None
    complaint: str | None = None
    duration_stated_s: float | None = None
    video: VideoFigures | None = None
    audio: AudioFigures | None = None
    frame: tuple[int, int, bytes] | None = None  # width, height, pixels of RGB


def parse_answer(text: str) -> ScriptAnswer:
    """Return the answer in the script's last line; another program's words become a complaint.

    The script reads a stranger's file, so nothing of what it says is trusted: numbers that are none, negative or
    endless become 0 or None, and a frame whose pixels are not as many as it says is left out.
    """
    body = parse_object(text.strip().rpartition("\n")[2], most=ANSWER_CHARACTERS)
    if body is None or "pid" in body:
        return ScriptAnswer(complaint="the decoder ended without an answer")
    video, audio = as_dict(body.get("video")), as_dict(body.get("audio"))
    return ScriptAnswer(
        decoder=_clause(body.get("decoder")),
        complaint=_clause(body.get("complaint")),
        duration_stated_s=_number(body.get("duration_stated_s")) or None,
        video=video_figures(video) if video else None,
        audio=audio_figures(audio) if audio else None,
        frame=_frame(as_dict(body.get("frame"))),
    )


def video_figures(body: Mapping[str, object]) -> VideoFigures:
    """Return the figures of a video, from the script's answer or a document that repeats it."""
    return VideoFigures(
        codec=_clause(body.get("codec")) or "",
        width=_whole(body.get("width")),
        height=_whole(body.get("height")),
        has_one_size=body.get("has_one_size") is True,
        frames=_whole(body.get("frames")),
        frames_stated=_whole(body.get("frames_stated")) or None,
        frames_per_second=_number(body.get("frames_per_second")) or None,
        duration_s=_number(body.get("duration_s")) or None,
        maximum=_whole(body.get("maximum")),
        deviation=_number(body.get("deviation")),
        flat_frames=_whole(body.get("flat_frames")),
        change=_number(body.get("change")),
        damaged_frames=_whole(body.get("damaged_frames")),
    )


def audio_figures(body: Mapping[str, object]) -> AudioFigures:
    """Return the figures of a sound, from the script's answer or a document that repeats it."""
    return AudioFigures(
        codec=_clause(body.get("codec")) or "",
        sample_rate=_whole(body.get("sample_rate")),
        channels=_whole(body.get("channels")),
        samples=_whole(body.get("samples")),
        peak=_number(body.get("peak")),
        rms=_number(body.get("rms")),
        deviation=_number(body.get("deviation")),
        clipped=_number(body.get("clipped")),
        not_numbers=_whole(body.get("not_numbers")),
    )


def _frame(body: Mapping[str, object]) -> tuple[int, int, bytes] | None:
    width, height, text = _whole(body.get("width")), _whole(body.get("height")), body.get("rgb")
    if not isinstance(text, str) or not 0 < width <= _LONGEST_SIDE or not 0 < height <= _LONGEST_SIDE:
        return None
    try:
        pixels = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return (width, height, pixels) if len(pixels) == 3 * width * height else None


def _clause(value: object) -> str | None:
    return " ".join(redact(printable(value)).split())[:_LONGEST_CLAUSE] if isinstance(value, str) and value else None


def _whole(value: object) -> int:
    number = as_int(value) or 0
    return number if 0 <= number < _MOST else 0


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return 0.0
    return float(value) if 0 <= value < _MOST else 0.0  # not NaN either


# --- judging ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is known of how a video was asked for; None: the workflow decides it."""

    size: tuple[int, int] | None = None  # width and height in pixels, where they were put into the graph
    frames: int | None = None  # as they stand in the graph


def judge_media(
    facts: MediaFacts, form: MediaFormat | None, extension: str, asked: Asked, *, is_stand_in: bool = False
) -> tuple[Finding, ...]:
    """Return what is wrong with a video or a sound; empty when it passes.

    A video passes when every frame was decoded (as many as the file states, each of the size asked for), its frames are
    not all black or of one colour, not all the same, and the one in its middle does not look like noise.  A sound
    passes when it was decoded to its end, holds numbers only, and is neither silent nor constant.

    Parameters
    ----------
    facts : MediaFacts
        Levels of a picture are 0 to 255, those of a sound shares of full scale, times are seconds.
    form : MediaFormat or None
        From `format_of`.
    extension : str
        Of the server's name for the file, without the dot: what the server takes it for.
    asked : Asked
        The size in pixels and the number of frames, where they are known.
    is_stand_in : bool, optional
        Whether the weights are made up, as the manifest says: noise is what they give.

    Returns
    -------
    tuple of Finding
        Problems: ``media-other-format``, ``media-not-decoded``, ``media-damaged``, ``video-size``, ``video-black``,
        ``video-constant``, ``video-frozen``, ``video-noise``, ``audio-not-numbers``, ``audio-silent``,
        ``audio-constant``.  Warnings: ``video-length``, ``video-flat``, ``video-silent``, ``audio-clipped``.
    """
    what = _word(facts.kind)
    if form is None:
        hint = "Read the server's log; if a proxy answers for this address, bypass it."
        return (_problem("media-other-format", f"The {what} is {facts.complaint}.", hint),)
    found: list[Finding] = []
    if extension not in form.names:
        said = f"The server calls the {what} `.{printable(extension)[:10]}`, but its bytes are {form.name}."
        found.append(_problem("media-other-format", said, "Choose a format that fits the name in the node that saves."))
    if facts.decoder is None:
        return (*found, _not_decoded(facts))
    part = facts.video if facts.kind == "video" else facts.audio
    complaint = facts.complaint or (_shorter(facts) if part is not None else f"it holds no {what}")
    if complaint is not None:
        return (*found, _damaged(facts, complaint))
    if facts.video is not None:
        content = _content_of_frames(facts.video, facts, form, is_stand_in=is_stand_in)
        found += [*_shape(facts.video, asked), *([content] if content else [])]
    if facts.audio is not None:
        sound = _content_of_samples(facts.audio, is_of_a_video=facts.kind == "video")
        found += [sound] if sound else []
    return tuple(found)


def _word(kind: MediaKind) -> str:
    return "video" if kind == "video" else "sound"


def _not_decoded(facts: MediaFacts) -> Finding:
    return _problem(
        "media-not-decoded",
        f"The {_word(facts.kind)} is there ({facts.format}, {human_bytes(facts.size)}), but it was not decoded:"
        f" {facts.complaint}. Whether it is right is not known.",
        "Name the ComfyUI whose Python has PyAV with --comfyui DIR, or install it beside klein-setup: pip install av.",
    )


def _damaged(facts: MediaFacts, complaint: str) -> Finding:
    return _problem(
        "media-damaged",
        f"The {_word(facts.kind)} cannot be decoded to its end: {complaint}"
        f" ({facts.format}, {count(facts.size, 'byte')} arrived).",
        "Generate it again; if that fails too, check for a full disk or a broken connection.",
    )


def _shorter(facts: MediaFacts) -> str | None:
    """Return how much less was decoded than the file states, as a clause; None where it is as much."""
    video, audio = facts.video, facts.audio
    if video is not None and video.damaged_frames:
        return f"{video.damaged_frames} of {count(video.frames, 'frame')} are damaged"
    if video is not None and video.frames < (video.frames_stated or 1):
        return f"{video.frames} of the {count(video.frames_stated or 1, 'frame')} that it states were decoded"
    stated = facts.duration_stated_s
    if audio is not None and not audio.samples and stated:
        return "its sound holds no sample"
    lasts = [each.duration_s for each in (video, audio) if each is not None and each.duration_s is not None]
    if not stated or not lasts or max(lasts) >= stated - max(MISSING_S, MISSING_SHARE * stated):
        return None
    return f"{max(lasts):.1f} s of the {stated:.1f} s that it states were decoded"


def _shape(video: VideoFigures, asked: Asked) -> list[Finding]:
    found = []
    if not video.has_one_size or asked.size not in (None, (video.width, video.height)):
        wanted = "all of one size" if asked.size is None else f"{asked.size[0]} x {asked.size[1]}"
        has = f"{video.width} x {video.height} pixels" if video.has_one_size else "frames of several sizes"
        found.append(
            _problem(
                "video-size",
                f"The video has {has}, not {wanted}.",
                "Check whether a node of the workflow scales or crops it.",
            )
        )
    if asked.frames is not None and asked.frames != video.frames:
        found.append(
            _warning(
                "video-length",
                f"The video has {count(video.frames, 'frame')}; the workflow asks for {asked.frames}.",
                "Expected where a node of the workflow cuts, repeats or interpolates frames.",
            )
        )
    return found


def _content_of_frames(
    video: VideoFigures, facts: MediaFacts, form: MediaFormat, *, is_stand_in: bool
) -> Finding | None:
    """Return the worst finding about what the frames show; None where they pass."""
    if video.maximum <= MAX_BLACK:
        return _problem(
            "video-black",
            f"The video is black: no value of its {count(video.frames, 'frame')} is above {video.maximum} of 255."
            " Values that are not numbers (NaN) look like this.",
            "Check the files (`klein-setup verify`) and the driver; in ComfyUI try --fp32-vae.",
        )
    if video.deviation < MIN_DEVIATION:
        return _problem(
            "video-constant",
            f"Each frame of the video is one colour: its values vary by {video.deviation:.1f} of 255 at most.",
            "Verify the model files: weights without their scales, or another model's VAE, give such videos.",
        )
    is_merged = video.frames == 1 and form.library == "pillow"  # Pillow saves frames that are the same as one
    if is_merged or (video.frames > 1 and video.change <= STILL):
        return _problem(
            "video-frozen",
            f"The video is frozen: its {count(video.frames, 'frame')} are the same, no place differs by more than"
            f" {video.change:.0f} of 255 from the first."
            if not is_merged
            else "The video is frozen: the animated image has one frame.",
            "View it; if the workflow repeats one image, that is right. Else verify the model files.",
        )
    likeness = likeness_of(facts.frame.figures) if facts.frame is not None else None
    if likeness is not None and likeness.verdict == "noise" and not is_stand_in:
        return _problem(
            "video-noise",
            f"The frame in the middle of the video looks like noise: {likeness.because}.",
            "View it, then run `klein-setup verify`: damaged weights, another model's VAE or text encoder, an optimised"
            " attention or a faulty driver give such videos.",
        )
    if 2 * video.flat_frames >= video.frames:
        return _warning(
            "video-flat",
            f"{video.flat_frames} of the {count(video.frames, 'frame')} of the video are black or one colour.",
            "View it; if it should not be so, verify the model files.",
        )
    return None


def _content_of_samples(audio: AudioFigures, *, is_of_a_video: bool) -> Finding | None:
    """Return the worst finding about what is heard; None where it passes."""
    if audio.not_numbers:
        return _problem(
            "audio-not-numbers",
            f"{audio.not_numbers} of the values of the sound are no numbers (NaN) or infinite.",
            "Verify the model files; in ComfyUI try --fp32-vae.",
        )
    if audio.peak < SILENT and is_of_a_video:
        return _warning(
            "video-silent",
            f"The sound of the video is silent: {_level_words(audio.peak)}.",
            "Listen to it; some models give none.",
        )
    if audio.peak < SILENT:
        return _problem(
            "audio-silent",
            f"The sound is silent: {_level_words(audio.peak)}.",
            "Verify the model files: another model's VAE, or a text encoder that gives nothing, end like this.",
        )
    if audio.deviation < CONSTANT:
        return _problem(
            "audio-constant",
            f"The sound is one value all the time ({audio.peak:.3f} of full scale), so nothing is heard.",
            "Verify the model files; values that are no numbers (NaN) become such a sound.",
        )
    if audio.clipped > CLIPPED:
        return _warning(
            "audio-clipped",
            f"{audio.clipped:.1%} of the values of the sound are at full scale, which is heard as distortion.",
            "Listen to it; a lower volume in the node before it is saved helps.",
        )
    return None


def _level_words(peak: float) -> str:
    return f"its peak is {20 * math.log10(peak):.0f} dB of full scale" if peak else "every value is 0"


def _problem(code: str, message: str, hint: str) -> Finding:
    return Finding(code=code, severity="problem", remedy="by-hand", message=message, hint=hint)


def _warning(code: str, message: str, hint: str) -> Finding:
    return Finding(code=code, severity="warning", remedy="by-hand", message=message, hint=hint)


# --- in words -----------------------------------------------------------------------------------


def video_words(video: VideoFigures) -> str:
    """Return the figures of a video, as a person reads them."""
    rate = f" at {video.frames_per_second:.4g} a second" if video.frames_per_second else ""
    return (
        f"{count(video.frames, 'frame')}{rate}, {video.width} x {video.height}, {video.codec}; a place changes by up to"
        f" {video.change:.0f} of 255, values vary by up to {video.deviation:.0f} in a frame"
    )


def audio_words(audio: AudioFigures) -> str:
    """Return the figures of a sound, as a person reads them."""
    root = f"{20 * math.log10(audio.rms):.0f} dB" if audio.rms else "nothing"
    return (
        f"{audio.duration_s:.1f} s of sound, {audio.sample_rate} Hz, {count(audio.channels, 'channel')}, {audio.codec};"
        f" {_level_words(audio.peak)}, on average {root}"
    )
