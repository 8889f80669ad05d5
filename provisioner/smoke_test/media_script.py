"""Runs in ComfyUI's Python and says in one JSON line what a video or a sound holds, every frame and sample decoded.

Videos and sounds are decoded by PyAV, animated images by Pillow; ComfyUI has both, and where one is missing the answer
says so.  It is started by its path, imports nothing of ours, and writes nothing.  The file is a stranger's: the demuxer
is named by who starts this, so that no playlist is followed, and memory is limited where the system can.
"""

# ruff: noqa: ANN401 - neither PyAV nor numpy is there when this is checked

from __future__ import annotations

import base64
import contextlib
import json
import operator
import os
import sys
from pathlib import Path
from typing import Any

SIDE = 64  # a frame is measured in so many places each way
FLAT = 2.0  # standard deviation below which a frame is one colour, as for images
LONGEST_SHOWN = 768  # pixels of the longer side of the frame that is handed out
MOST_PIXELS = 64_000_000  # of a frame: as for images
FULL_SCALE = 0.9999  # 16 bits reach 32767 / 32768


class MediaError(Exception):
    """What keeps a file from being decoded, as a clause for a person."""


def one_line(error: BaseException) -> str:
    """Return what an exception says, in one line of bounded length; PyAV's without the file's name."""
    log = getattr(error, "log", None)
    text = log[2] if log else getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:200].rstrip(".") or type(error).__name__


# --- what is seen of frames and samples ---------------------------------------------------------


class Frames:
    """The figures of frames that come one after the other, each as SIDE x SIDE pixels of RGB."""

    def __init__(self) -> None:
        self.count = self.flat = self.maximum = self.change = 0
        self.deviation = self.spread = 0.0
        self.first = self.last = b""
        self.sizes: set[tuple[int, int]] = set()

    def add(self, small: bytes, width: int, height: int) -> None:
        """Take one frame."""
        self.count += 1
        self.sizes.add((width, height))
        if small != self.last:  # a frozen video is quick
            self.last = small
            self.maximum = max(self.maximum, max(small))
            self.spread = spread_of(small)
            self.deviation = max(self.deviation, self.spread)
            self.first = self.first or small
            self.change = max(self.change, max(map(abs, map(operator.sub, small, self.first))))
        self.flat += self.spread < FLAT

    def answer(self) -> dict[str, Any]:
        """Return the figures."""
        width, height = max(self.sizes) if self.sizes else (0, 0)
        return {
            "frames": self.count,
            "width": width,
            "height": height,
            "has_one_size": len(self.sizes) < 2,
            "maximum": self.maximum,
            "deviation": round(self.deviation, 3),
            "flat_frames": self.flat,
            "change": self.change,
        }


def spread_of(small: bytes) -> float:
    """Return the standard deviation of the values of each colour about its own mean, pooled over the colours."""
    variance = 0.0
    for colour in (small[0::3], small[1::3], small[2::3]):
        mean = sum(colour) / len(colour)
        variance += sum(map(operator.mul, colour, colour)) / len(colour) - mean * mean
    return float(max(0.0, variance / 3) ** 0.5)


class Samples:
    """The figures of samples that come in pieces, each an array of channels x samples of floating point."""

    def __init__(self, numpy: Any) -> None:
        self.numpy = numpy
        self.count = self.clipped = self.not_numbers = 0
        self.peak = 0.0
        self.sums: Any = 0.0
        self.squares: Any = 0.0

    def add(self, piece: Any) -> None:
        """Take one piece."""
        numpy = self.numpy
        values = piece.astype(numpy.float64)
        is_number = numpy.isfinite(values)
        self.not_numbers += int(values.size - is_number.sum())
        values = numpy.where(is_number, values, 0.0)
        self.count += values.shape[1]
        self.sums = self.sums + values.sum(axis=1)
        self.squares = self.squares + numpy.square(values).sum(axis=1)
        sizes = numpy.abs(values)
        self.peak = max(self.peak, float(sizes.max(initial=0.0)))
        self.clipped += int((sizes >= FULL_SCALE).sum())

    def answer(self) -> dict[str, Any]:
        """Return the figures."""
        numpy, count = self.numpy, max(1, self.count)
        squares, means = numpy.atleast_1d(self.squares) / count, numpy.atleast_1d(self.sums) / count
        spread = numpy.sqrt(numpy.maximum(0.0, squares - means * means))
        return {
            "samples": self.count,
            "peak": round(self.peak, 6),
            "rms": round(float(numpy.sqrt(squares.mean())), 6),
            "deviation": round(float(spread.max()), 6),
            "clipped": round(self.clipped / (count * len(means)), 6),
            "not_numbers": self.not_numbers,
        }


# --- by PyAV ------------------------------------------------------------------------------------


def decode_streams(path: str, demuxer: str) -> dict[str, Any]:
    """Return the figures of the first video and the first sound of a file."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each thread of it reserves memory, which is limited here
    try:
        import av  # type: ignore[import-not-found, unused-ignore]
        import numpy  # type: ignore[import-not-found, unused-ignore]
    except Exception as error:  # a broken installation raises anything
        raise MediaError(f"this Python has no PyAV that can be imported ({one_line(error)})") from None
    av.logging.set_level(av.logging.ERROR)  # errors then carry what FFmpeg says
    answer: dict[str, Any] = {"decoder": f"PyAV {av.__version__}"}
    frames, samples, seen = Frames(), Samples(numpy), 0
    damaged, ends, kept = 0, [0.0], None
    try:
        with Path(path).open("rb") as file, av.open(file, format=demuxer) as container:
            videos = [each for each in container.streams.video if not is_cover(each)][:1]
            sounds = list(container.streams.audio)[:1]
            if container.duration:
                answer["duration_stated_s"] = container.duration / 1e6
            for each in (*videos, *sounds):
                each.codec_context.thread_count = 1  # several swallow what they find
                each.codec_context.options = {"err_detect": "explode"}  # else damage is painted over
            for each in videos:
                check_size(each.codec_context.width, each.codec_context.height)
                rate = each.average_rate
                answer["video"] = {
                    "codec": each.codec_context.name,
                    "frames_stated": each.frames or None,
                    "frames_per_second": float(rate) if rate else None,
                }
                seen = each.frames or round(float(rate or 0) * (answer.get("duration_stated_s") or 0))
            resampler: Any = None
            for each in sounds:
                context = each.codec_context
                answer["audio"] = {
                    "codec": context.name, "sample_rate": context.sample_rate, "channels": context.channels
                }  # fmt: skip
                resampler = av.AudioResampler(format="fltp")
            for packet in container.demux(*videos, *sounds) if videos or sounds else ():
                for frame in packet.decode():
                    if frame.time is not None and frame.time > ends[-1]:
                        ends.append(frame.time)
                    if packet.stream.type == "audio":
                        for piece in resampler.resample(frame):
                            samples.add(piece.to_ndarray())
                        continue
                    check_size(frame.width, frame.height)
                    damaged += bool(getattr(frame, "is_corrupt", False))
                    small = frame.reformat(SIDE, SIDE, "rgb24", interpolation="AREA").to_ndarray()
                    frames.add(small.tobytes(), frame.width, frame.height)
                    if kept is None or frames.count <= seen // 2 + 1:
                        kept = frame
    except (av.FFmpegError, ValueError, EOFError, OSError) as error:
        where = (
            f"after frame {frames.count}" if frames.count else f"after {samples.count} samples" if samples.count else ""
        )
        answer["complaint"] = f"{one_line(error)} {where}".strip()
    if "video" in answer:
        rate = answer["video"]["frames_per_second"]
        lasts = ends[-1] + 1 / rate if rate and frames.count else None
        answer["video"] |= {**frames.answer(), "duration_s": lasts, "damaged_frames": damaged}
    if "audio" in answer:
        answer["audio"] |= samples.answer()
    if kept is not None:
        answer["frame"] = shown(
            *shrunk(kept.width, kept.height), lambda w, h: kept.reformat(w, h, "rgb24").to_ndarray().tobytes()
        )
    return answer


def is_cover(stream: Any) -> bool:
    """Whether a video stream is the cover of a sound: one picture beside it."""
    disposition = getattr(stream, "disposition", None)
    return bool(disposition is not None and "attached_pic" in str(disposition).lower())


# --- by Pillow ----------------------------------------------------------------------------------


def decode_animation(path: str, kind: str) -> dict[str, Any]:
    """Return the figures of an animated image."""
    try:
        import PIL
        from PIL import Image
    except Exception as error:
        raise MediaError(f"this Python has no Pillow that can be imported ({one_line(error)})") from None
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    answer: dict[str, Any] = {"decoder": f"Pillow {PIL.__version__}"}
    frames, stated, spent_ms, middle = Frames(), None, 0.0, None
    try:
        with Image.open(path, formats=[kind]) as image:
            check_size(*image.size)
            stated = int(getattr(image, "n_frames", 1))
            for number in range(stated):
                image.seek(number)
                image.load()
                spent_ms += float(image.info.get("duration") or 0)
                seen = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA")).convert(
                    "RGB"
                )
                frames.add(seen.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes(), *seen.size)
                middle = seen if number <= stated // 2 else middle
    except Exception as error:  # Pillow's decoders document none of what they raise
        answer["complaint"] = f"{one_line(error)} {f'after frame {frames.count}' if frames.count else ''}".strip()
    seconds = spent_ms / 1000 or None
    answer["video"] = {
        "codec": kind.lower(),
        "frames_stated": stated,
        "frames_per_second": round(frames.count / seconds, 3) if seconds else None,
        **frames.answer(),
        "duration_s": seconds,
        "damaged_frames": 0,
    }
    if middle is not None:
        answer["frame"] = shown(*shrunk(*middle.size), lambda w, h: middle.resize((w, h)).tobytes())
    return answer


# --- both ---------------------------------------------------------------------------------------


def check_size(width: int, height: int) -> None:
    """Raise where a frame is too large to be decoded."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"a frame has {width} x {height} pixels; expected at most {MOST_PIXELS:,}")


def shrunk(width: int, height: int) -> tuple[int, int]:
    """Return the size with a longer side of at most LONGEST_SHOWN pixels."""
    by = max(1.0, max(width, height) / LONGEST_SHOWN)
    return max(1, round(width / by)), max(1, round(height / by))


def shown(width: int, height: int, pixels: Any) -> dict[str, Any]:
    """Return a frame as pixels of RGB, row by row, so that who reads it decodes nothing."""
    return {"width": width, "height": height, "rgb": base64.b64encode(pixels(width, height)).decode("ascii")}


def limit_memory(limit: int) -> None:
    """Make the system refuse more address space, where it can; who starts this looks at the memory in use as well."""
    if sys.platform == "win32":
        return
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(arguments: list[str]) -> int:
    """Print two JSON lines, our process id and the answer; the exit status is 0 where there is one."""
    line_out = os.dup(1)
    os.dup2(2, 1)  # libraries print when they are imported; only our lines may reach stdout
    with os.fdopen(line_out, "w", encoding="ascii", newline="\n") as stream:
        stream.write(json.dumps({"pid": os.getpid()}) + "\n")
        stream.flush()
        path, library, kind, limit = arguments
        limit_memory(int(limit))
        try:
            answer = decode_streams(path, kind) if library == "av" else decode_animation(path, kind)
        except MediaError as error:
            answer = {"complaint": str(error)}
        except MemoryError:
            answer = {"complaint": f"it needs more than {int(limit) // 2**20} MiB of memory"}
        stream.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
