"""The closing card: the test image, and in at most eight lines what it took and how to go on.

The image is drawn by ``textual-image``, the extra ``image`` of this package: as sixels, by Kitty's protocol, or in half
blocks.  It is imported when an image is drawn, because that asks the terminal what it can show.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from provisioner.core.models import Outcome
from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.core.units import gib, human_bytes, human_duration
from provisioner.plan.steps import FILE_STEPS, STEPS, download_of
from provisioner.report.outcome import KEPT_COMMANDS, Report
from provisioner.ui.tables import command_blocks
from provisioner.ui.text import Block, Line, Row, cells, pair, pair_blocks

if TYPE_CHECKING:
    from provisioner.smoke_test.results import SmokeTest
    from provisioner.ui.stream import Output

_MOST_ROWS = 20  # of the image: a larger one pushes the words before it off the screen


def card_blocks(report: Report, smoke: SmokeTest, program: Program = KLEIN_SETUP) -> list[Block]:
    """Return the words of the card, a line for each thing that is known."""
    rows: list[Row] = []
    if smoke.image_path is not None:
        rows.append(pair("image", str(smoke.image_path), "good"))
    rows += [pair("video" if each.kind == "video" else "sound", str(each.path), "good") for each in smoke.media]
    rows.append(pair("GPU" if smoke.vram is not None else "device", f"{_device_words(smoke)}{_time_words(smoke)}"))
    if smoke.vram is not None:
        peak, free = gib(smoke.vram.peak_used_bytes), gib(smoke.vram.free_at_start_bytes)
        rows.append(pair("VRAM", f"{peak} at the peak, {free} was free at the start"))
    fetched = _fetched_words(report.outcomes)
    rows += [pair("fetched", fetched)] if fetched else []
    opening = report.opening
    if opening is not None and opening.template is not None:
        rows.append(pair("workflow", f"{opening.template}, among ComfyUI's Templates"))
    if report.command in KEPT_COMMANDS:
        rows.append(pair("all of it", program.command("report"), "command"))
    start = command_blocks(f"To start ComfyUI ({opening.url}):", opening.command) if opening is not None else []
    return [*pair_blocks(rows), *start]


def _device_words(smoke: SmokeTest) -> str:
    return smoke.vram.gpu_name if smoke.vram is not None else smoke.device or "not known"


def _time_words(smoke: SmokeTest) -> str:
    total, start = smoke.timings.total_s, smoke.timings.start_s
    if total is None:
        return ""
    before = "" if start is None else f", after {human_duration(start)} to start"
    after = "" if smoke.warm_s is None else f", the next one {human_duration(smoke.warm_s)}"
    return f"; took {human_duration(total)}{before}{after}"


def _fetched_words(outcomes: tuple[Outcome, ...]) -> str:
    """Return the bytes of model files that were fetched, the estimate of the rest, and the time from first to last."""
    files = sum(each.bytes_fetched for each in outcomes)
    others = 0
    for each in outcomes:
        if each.status == "done" and isinstance(each.step, STEPS) and not isinstance(each.step, FILE_STEPS):
            download = download_of(each.step)
            others += download.fetched_bytes if download is not None else 0
    if not files + others:
        return ""
    words = [f"{human_bytes(files)} of models"] if files else []
    words += [f"about {human_bytes(others)} of packages"] if others else []
    begun = [(each.started_s, each.seconds) for each in outcomes if each.started_s is not None]
    ends = [began + seconds for began, seconds in begun]  # some went side by side
    took = max(ends, default=0.0) - min((began for began, _ in begun), default=0.0)
    return f"{', '.join(words)}; {human_duration(took)} in all"


def rows_of(words: Sequence[Line], columns: int) -> int:
    """Return how many rows of the terminal these lines take; it wraps a command by itself."""
    widths = [sum(cells(each.text) for each in line) for line in words]
    return sum(max(1, -(-width // columns)) for width in widths)


def rows_for(lines: int, words: int) -> int:
    """Return how many rows of the terminal the image may take beside the words and the prompt; 0 where it is too low.

    >>> rows_for(24, 10), rows_for(40, 8), rows_for(12, 8)
    (12, 20, 0)
    """
    rows = min(_MOST_ROWS, lines - words - 2)  # many prompts have two lines
    return rows if rows >= 4 else 0


def _is_in_background(output: Output) -> bool:
    """Whether the shell runs us with ``&``: the system stops who then changes how the terminal reads."""
    if sys.platform == "win32":
        return False
    try:
        return os.tcgetpgrp(output.fileno()) != os.getpgrp()
    except OSError:  # not the terminal that controls us
        return False


def draw_image(path: Path, output: Output, words: int) -> bool:
    """Draw an image into a terminal that can redraw and has colours; return False where that is not possible.

    It leaves room for so many rows of words.  Standard input has to be the same terminal: it is asked what it can show,
    and answers there.
    """
    columns, lines = output.size
    rows = rows_for(lines, words)
    if _is_in_background(output):
        return False
    logging.getLogger("textual_image").addHandler(logging.NullHandler())  # a terminal that does not answer is no news
    try:
        from PIL import Image as Pictures
        from rich.console import Console
        from textual_image.renderable import Image

        with Pictures.open(path) as picture:
            picture.load()
            width = min(columns, round(2 * rows * picture.width / picture.height))  # a cell is twice as high as wide
            if width < 4:
                return False
            console = Console(
                file=cast("IO[str]", output), force_terminal=True, width=columns, height=lines, legacy_windows=False
            )
            output.flush()
            console.print(Image(picture, width=width, height="auto"))
    except (ImportError, OSError, ValueError, ZeroDivisionError):  # the last: a terminal that says it has no size
        return False
    return True
