"""The videos and sounds of a workflow: fetched, kept, decoded by a process of their own, and judged.

The file is the server's, so it is never decoded here: ComfyUI's Python does that (`media_script`), for a limited time
and with limited memory, and hands back figures and the pixels of one frame.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.core.errors import CommandError
from provisioner.core.json_reader import as_int, parse_object
from provisioner.core.models import Finding
from provisioner.core.ports import Cancelled
from provisioner.core.units import gib
from provisioner.machine.process import run_process
from provisioner.smoke_test.image import png_of, read_image, what_it_is
from provisioner.smoke_test.media import (
    ANSWER_CHARACTERS,
    SCRIPT,
    Asked,
    MediaFormat,
    ScriptAnswer,
    format_of,
    header_words,
    is_cut_off,
    judge_media,
    parse_answer,
)
from provisioner.smoke_test.results import MediaFacts
from provisioner.smoke_test.vram import resident_bytes

if TYPE_CHECKING:
    from provisioner.comfyui.server.api import OutputFile

DECODE_S = 300.0
"""Seconds after which decoding is ended; a minute of 4K takes about sixty."""

MEMORY_BYTES = 3 * 1024**3
"""Bytes that decoding may take: a frame of 64 megapixels has 384 MB in 16 bits, and refers to a few others."""

_RESERVED = (
    4  # times as much may be reserved: FFmpeg scales with a thread for each core, of whose stacks little is used
)

Keep = Callable[[bytes, str], Path]
"""Writes a file and returns its path: the content, and what follows the name of the image, as ``-2.mp4``."""


class _TooMuchMemoryError(Exception):
    """The decoder takes more memory than it may."""


@dataclass(frozen=True, kw_only=True)
class MediaJudge:
    """Decodes and judges what a workflow makes beside images."""

    python: Path | None  # of ComfyUI; None: the one that runs us
    cancelled: Cancelled
    asked: Asked
    is_stand_in: bool = False

    def judge(
        self, files: Iterable[OutputFile], fetch: Callable[[OutputFile], bytes], keep: Keep, *, first: int = 1
    ) -> tuple[tuple[MediaFacts, ...], tuple[Finding, ...]]:
        """Return the facts of each file, numbered from `first` on, and what is wrong; raises as `fetch` and `keep`."""
        made: list[MediaFacts] = []
        found: list[Finding] = []
        for number, file in enumerate(files, first):
            data = fetch(file)
            form = format_of(data)
            facts = MediaFacts(
                kind="audio" if file.kind == "audio" else "video",
                format=form.name if form is not None else "unknown",
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                complaint=None if form is not None else what_it_is(data),
            )
            if form is not None:
                facts = self._decoded(facts, form, data, keep, "" if number == 1 else f"-{number}")
            extension = file.filename.rpartition(".")[2].casefold()
            made.append(facts)
            found += judge_media(facts, form, extension, self.asked, is_stand_in=self.is_stand_in)
        return tuple(made), tuple(found)

    def _decoded(self, facts: MediaFacts, form: MediaFormat, data: bytes, keep: Keep, end: str) -> MediaFacts:
        path = keep(data, f"{end}{form.extension}")
        own = Path(sys.executable)
        answer = decode(path, form, python=self.python or own, cancelled=self.cancelled)
        if answer.decoder is None and self.python is not None:  # ours has Pillow, and PyAV where somebody installed it
            answer = decode(path, form, python=own, cancelled=self.cancelled)
        complaint = answer.complaint or ("its end is missing" if is_cut_off(data, form) else None)
        if answer.decoder is None:
            complaint = "; ".join(each for each in (complaint, header_words(data)) if each)
        facts = replace(
            facts,
            path=path,
            decoder=answer.decoder,
            complaint=complaint,
            duration_stated_s=answer.duration_stated_s,
            video=answer.video,
            audio=answer.audio,
        )
        if answer.frame is None:
            return facts
        frame = png_of(*answer.frame)
        return replace(facts, frame=read_image(frame), frame_path=keep(frame, f"{end}-frame.png"))


def decode(
    path: Path,
    form: MediaFormat,
    *,
    python: Path,
    cancelled: Cancelled,
    timeout_s: float = DECODE_S,
    memory_bytes: int = MEMORY_BYTES,
) -> ScriptAnswer:
    """Return what a file holds, from a process that may take so long and so much memory; never an error of the file.

    Raises
    ------
    KeyboardInterrupt
        Cancelled.
    """
    pid: int | None = None

    def hear(stream: str, line: str) -> None:
        nonlocal pid
        if pid is None and stream == "stdout":
            pid = as_int((parse_object(line) or {}).get("pid"))

    def must_stop() -> bool:
        if pid is not None and (resident_bytes(pid) or 0) > memory_bytes:
            raise _TooMuchMemoryError
        return cancelled()

    limits = ScriptAnswer(decoder="a decoder with limits")
    try:
        done = run_process(
            [python, "-I", SCRIPT, path, form.library, form.decoder, str(_RESERVED * memory_bytes)],
            timeout_s=timeout_s,
            keep_bytes=2 * ANSWER_CHARACTERS,  # the first half of it holds the whole answer
            on_line=hear,
            cancelled=must_stop,
        )
    except _TooMuchMemoryError:
        return replace(limits, complaint=f"decoding it takes more than {gib(memory_bytes)} of memory")
    except CommandError as error:
        if error.context.get("reason") == "timeout":
            return replace(limits, complaint=f"decoding it takes longer than {timeout_s:g} s")
        return ScriptAnswer(complaint=f"{python} could not be started")
    if done.returncode:
        return replace(limits, complaint=f"the decoder crashed (exit status {done.returncode})")
    return parse_answer(done.stdout)
