#!/usr/bin/env python3
"""Make videos and sounds, right ones and broken ones, and see whether each is judged as it should be.

They are made by PyAV in the Python that ``--python`` names (one of ComfyUI has it), decoded there by the script that
judges a workflow's outputs, and judged here.  ``--write`` keeps the result in scripts/results/judge_media.md and the
decoder's answers, without the pixels, in tests/contract/data/media/answers.json.  Exit status 1: one was judged wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from provisioner.comfyui.server.api import OutputFile  # noqa: E402 - found through the line above
from provisioner.commands.made_media import MediaJudge  # noqa: E402
from provisioner.smoke_test.media import SCRIPT, Asked, audio_words, format_of, video_words  # noqa: E402

RESULT = ROOT / "scripts" / "results" / "judge_media.md"
ANSWERS = ROOT / "tests" / "contract" / "data" / "media" / "answers.json"

MAKE = r"""
import io, sys
from fractions import Fraction
from pathlib import Path
import av, numpy as np
from PIL import Image

out = Path(sys.argv[1])
W, H, N = 320, 192, 33
yy, xx = np.mgrid[0:H, 0:W]
chance = np.random.default_rng(7)
waves = 110 + 70 * np.sin(xx / 37) + 30 * np.sin(yy / 5 + xx / 90)
backdrop = np.stack([waves, 90 + 60 * np.cos(yy / 23), 60 + xx / 3], -1)

def scene(at):
    frame = backdrop.copy()
    x = 20 + 7 * at
    frame[60:130, x : x + 50] = (240, 220, 30 + 3 * at)
    return np.clip(frame, 0, 255).astype(np.uint8)

def mouth(at):
    frame = np.clip(backdrop, 0, 255).astype(np.uint8)
    frame[90 : 92 + at % 6, 150:164] = 15
    return frame

kinds = {
    "motion": scene,
    "mouth": mouth,
    "frozen": lambda at: scene(5),
    "black": lambda at: np.zeros((H, W, 3), np.uint8),
    "grey": lambda at: np.full((H, W, 3), 127, np.uint8),
    "noise": lambda at: chance.integers(0, 256, (H, W, 3), dtype=np.uint8),
    "half": lambda at: scene(at) if at < 12 else np.zeros((H, W, 3), np.uint8),
}

def video(path, kind, codec="libx264", pixels="yuv420p", sound=None, options=None, rate=24):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=options or {})
        stream.width, stream.height, stream.pix_fmt = W, H, pixels
        beside = None
        if sound is not None:
            beside = container.add_stream("aac" if path.suffix == ".mp4" else "libopus", rate=48000, layout="stereo")
        for at in range(N):
            frame = av.VideoFrame.from_ndarray(kinds[kind](at), format="rgb24").reformat(format=pixels)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if beside is not None:
            add(container, beside, sound(N / rate, 48000), 48000)

def add(container, stream, wave, rate):
    for at in range(0, wave.shape[1], 960):
        piece = np.ascontiguousarray(wave[:, at : at + 960].astype(np.float32))
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, at
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))

def tone(seconds, rate, volume=0.4):
    t = np.arange(int(seconds * rate)) / rate
    return np.stack([volume * np.sin(2 * np.pi * 440 * t), volume * np.sin(2 * np.pi * 523 * t)])

def silence(seconds, rate):
    return np.zeros((2, int(seconds * rate)))

def level(seconds, rate):
    return np.full((2, int(seconds * rate)), 0.25)

def clipped(seconds, rate):
    return np.clip(3 * tone(seconds, rate), -1, 1)

def not_numbers(seconds, rate):
    wave = tone(seconds, rate)
    wave[:, 3000:9000] = np.nan
    return wave

def sound(path, wave, codec, rate=44100, format=None):
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        add(container, stream, wave(2.5, rate), rate)

def animated(path, kind, **more):
    frames = [Image.fromarray(kinds[kind](at)) for at in range(N)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=41, **more)

def cut(name, source, share):
    data = (out / source).read_bytes()
    (out / name).write_bytes(data[: int(len(data) * share)])

video(out / "motion.mp4", "motion")
video(out / "motion_with_sound.mp4", "motion", sound=tone)
video(out / "motion_silent.mp4", "motion", sound=silence)
video(out / "ten_bits.mp4", "motion", pixels="yuv420p10le")
video(out / "front.mp4", "motion", options={"crf": "12"})
video(out / "mouth.mp4", "mouth")
video(out / "vp9.webm", "motion", codec="libvpx-vp9", options={"crf": "32", "b": "0"})
video(out / "av1.webm", "motion", codec="libsvtav1", pixels="yuv420p10le", options={"crf": "32", "preset": "8"})
video(out / "vp9_with_sound.webm", "motion", codec="libvpx-vp9", sound=tone)
video(out / "prores.mov", "motion", codec="prores_ks", pixels="yuv422p10le")
for kind in ("frozen", "black", "grey", "noise", "half"):
    video(out / f"{kind}.mp4", kind)
    video(out / f"{kind}.webm", kind, codec="libvpx-vp9", options={"crf": "40", "b": "0"})
animated(out / "motion.webp", "motion", quality=80)
animated(out / "motion.png", "motion")
animated(out / "motion.gif", "motion")
animated(out / "frozen.webp", "frozen", minimize_size=False, allow_mixed=False, lossless=False, kmin=1, kmax=1)
animated(out / "black.png", "black")
animated(out / "merged.png", "frozen")
for name, wave in (("tone", tone), ("silence", silence), ("level", level), ("clipped", clipped)):
    sound(out / f"{name}.flac", wave, "flac")
    sound(out / f"{name}.mp3", wave, "libmp3lame")
    sound(out / f"{name}.opus", wave, "libopus", rate=48000)
sound(out / "tone.wav", tone, "pcm_s16le")
sound(out / "not_numbers.wav", not_numbers, "pcm_f32le")
cut("cut.mp4", "motion.mp4", 0.6)
cut("cut.webm", "vp9.webm", 0.6)
cut("cut.webp", "motion.webp", 0.6)
cut("cut.png", "motion.png", 0.6)
cut("cut.flac", "tone.flac", 0.6)
cut("cut.mp3", "tone.mp3", 0.6)
cut("cut.opus", "tone.opus", 0.6)
data = bytearray((out / "front.mp4").read_bytes())
for at in range(len(data) // 3, len(data) // 3 + 400):
    data[at] ^= 0x5A
(out / "flipped.mp4").write_bytes(data)
(out / "called_otherwise.mp4").write_bytes((out / "tone.flac").read_bytes())
(out / "called_webm.mp4").write_bytes((out / "vp9.webm").read_bytes())
(out / "image.mp4").write_bytes((out / "motion.png").read_bytes())
(out / "page.mp4").write_bytes(b"<!DOCTYPE html><html><body>no such file</body></html>")
(out / "zeros.flac").write_bytes(bytes(50000))
(out / "playlist.mp4").write_bytes(b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n")
(out / "only_a_header.mp4").write_bytes((out / "motion.mp4").read_bytes()[:32])
"""

EXPECTED: dict[str, tuple[str, ...]] = {  # file -> codes of what is wrong
    "motion.mp4": (),
    "motion_with_sound.mp4": (),
    "motion_silent.mp4": ("video-silent",),
    "ten_bits.mp4": (),
    "front.mp4": (),
    "mouth.mp4": (),
    "vp9.webm": (),
    "av1.webm": (),
    "vp9_with_sound.webm": (),
    "prores.mov": (),
    "frozen.mp4": ("video-frozen",),
    "frozen.webm": ("video-frozen",),
    "black.mp4": ("video-black",),
    "black.webm": ("video-black",),
    "grey.mp4": ("video-constant",),
    "grey.webm": ("video-constant",),
    "noise.mp4": ("video-noise",),
    "noise.webm": ("video-noise",),
    "half.mp4": ("video-flat",),
    "half.webm": ("video-flat",),
    "motion.webp": (),
    "motion.png": (),
    "motion.gif": (),
    "frozen.webp": ("video-frozen",),  # saved as one frame
    "black.png": ("video-black",),
    "merged.png": ("video-frozen",),
    **{f"tone.{each}": () for each in ("flac", "mp3", "opus", "wav")},
    **{f"silence.{each}": ("audio-silent",) for each in ("flac", "mp3", "opus")},
    **{f"level.{each}": ("audio-constant",) for each in ("flac", "mp3")},
    **{f"clipped.{each}": ("audio-clipped",) for each in ("flac", "opus")},
    "clipped.mp3": (),  # its filters round what was cut off: 0.1 % of the values are at full scale
    "not_numbers.wav": ("audio-not-numbers",),
    **{f"cut.{each}": ("media-damaged",) for each in ("mp4", "webm", "webp", "png", "flac", "mp3", "opus")},
    "flipped.mp4": ("media-damaged",),
    "called_otherwise.mp4": ("media-other-format", "media-damaged"),
    "called_webm.mp4": ("media-other-format",),
    "image.mp4": ("media-other-format",),
    "page.mp4": ("media-other-format",),
    "zeros.flac": ("media-other-format",),
    "playlist.mp4": ("media-other-format",),
    "only_a_header.mp4": ("media-damaged",),
}


def judged(folder: Path, python: Path) -> list[dict[str, Any]]:
    """Return a row for every file: what was found, in how long."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in sorted(EXPECTED):
            file = folder / name
            kind: Literal["video", "audio"] = "audio" if file.suffix in {".flac", ".mp3", ".opus", ".wav"} else "video"
            output = OutputFile(filename=name, subfolder="", folder="output", kind=kind)

            def keep(data: bytes, end: str, name: str = name) -> Path:
                path = Path(scratch) / f"{name}{end}"
                path.write_bytes(data)
                return path

            def fetch(_: OutputFile, file: Path = file) -> bytes:
                return file.read_bytes()

            began = time.perf_counter()
            judge = MediaJudge(python=python, cancelled=lambda: False, asked=Asked())
            (facts,), found = judge.judge([output], fetch, keep)
            rows.append(
                {
                    "name": name,
                    "facts": facts,
                    "codes": tuple(each.code for each in found),
                    "said": [each.message for each in found],
                    "seconds": time.perf_counter() - began,
                }
            )
    return rows


def answer_of(file: Path, python: Path) -> dict[str, Any] | None:
    """Return the decoder's answer about a file without the pixels, and what it is; None where nothing decodes it."""
    data = file.read_bytes()
    form = format_of(data)
    if form is None:
        return None
    words: list[str | Path] = [python, "-I", SCRIPT, file, form.library, form.decoder, str(3 * 2**30)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    answer.pop("frame", None)
    return {"size": len(data), "first_bytes": data[:64].hex(), **answer}


def report(rows: list[dict[str, Any]], version: str) -> str:
    """Return the result as Markdown."""
    wrong = [row for row in rows if row["codes"] != EXPECTED[row["name"]]]
    lines = [
        "# The judge of videos and sounds",
        "",
        "Made by `scripts/judge_media.py --write`.  Each file was made by PyAV or Pillow, decoded in a process of its",
        "own, and judged.  Videos have 33 frames of 320 x 192, sounds 2.5 s.",
        "",
        f"{len(rows)} files, {len(wrong)} judged otherwise than expected; {version}.",
        "",
        "| file | judged as | seen and heard | s |",
        "|---|---|---|---:|",
    ]
    for row in rows:
        facts = row["facts"]
        seen = [video_words(facts.video)] if facts.video else []
        seen += [audio_words(facts.audio)] if facts.audio else []
        codes = ", ".join(f"`{code}`" for code in row["codes"]) or "right"
        lines.append(f"| {row['name']} | {codes} | {'; '.join(seen)} | {row['seconds']:.2f} |")
    lines += ["", "What is said of those that are wrong:", ""]
    lines += [f"- {row['name']}: {' '.join(row['said'])}" for row in rows if row["said"]]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Judge everything; return 1 where one was judged otherwise than expected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", type=Path, required=True, help="a Python with PyAV, numpy and Pillow")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        subprocess.run([options.python, "-I", "-c", MAKE, folder], check=True)
        rows = judged(folder, options.python)
        decoder = next(row["facts"].decoder for row in rows if row["name"] == "motion.mp4")
        text = report(rows, str(decoder))
        if options.write:
            RESULT.write_text(text, encoding="utf-8")
            answers = {name: answer_of(folder / name, options.python) for name in sorted(EXPECTED)}
            ANSWERS.parent.mkdir(parents=True, exist_ok=True)
            kept = {name: each for name, each in answers.items() if each is not None}
            ANSWERS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8", newline="\n")
    sys.stdout.write(text)
    return 1 if any(row["codes"] != EXPECTED[row["name"]] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
