"""The charts of the page, as inline SVG: the memory of the GPU, the throughput, and where the time went.

The shapes are SVG that stretches to any width; every word is HTML beside them, so that a narrow screen does not shrink
it.  Each chart says in its label what it shows, and no fact is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from provisioner.core.units import gib, human_duration, human_rate
from provisioner.report.html.markup import Html, element, joined, paragraphs, path, section
from provisioner.report.html.node import Node

_WIDTH, _HEIGHT = 1000, 240  # units of the drawing, not pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of a bar, in shares of the whole width."""

    start: float
    width: float
    tone: str  # a class of the style sheet


def bar(segments: Iterable[Segment]) -> Html:
    """Return coloured parts beside each other, as wide as the page lets them be; for eyes only."""
    rects = [
        element("rect", x=_percent(each.start), width=_percent(each.width), height="100%", class_=each.tone)
        for each in segments
    ]
    return element("svg", *rects, class_="bar", width="100%", height="12", aria_hidden="true", focusable="false")


def key(entries: Iterable[tuple[str, str, str]]) -> Html:
    """Return what the colours mean: class, name and value of each."""
    items = [
        element("li", swatch(tone), name, *((" ", element("b", value)) if value else ()))
        for tone, name, value in entries
    ]
    return element("ul", *items, class_="key") if items else Html("")


def swatch(tone: str) -> Html:
    """Return a small square of a colour."""
    square = element("rect", width="100%", height="100%", class_=tone)
    return element("svg", square, class_="swatch", width="11", height="11", aria_hidden="true", focusable="false")


def area(
    title: str, words: str, points: Sequence[tuple[float, float]], *, most: float, ends: tuple[str, str], top: str
) -> Html:
    """Return a filled line.

    Parameters
    ----------
    title, words : str
        The heading, and what the line shows in a sentence.
    points : sequence of (x, y)
        Shares of the width, ascending, and values.
    most : float
        The value at the upper edge.
    ends : (str, str)
        What stands below the left and the right end.
    top : str
        What stands at the upper edge.
    """
    placed = [(x * _WIDTH, _HEIGHT * (1 - min(y / most, 1.0))) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    drawn = [
        element("line", x1="0", x2=str(_WIDTH), y1=str(y), y2=str(y), class_="rule") for y in (0, _HEIGHT // 2, _HEIGHT)
    ]
    drawn.append(element("polygon", points=f"{placed[0][0]:.1f},{_HEIGHT} {line} {placed[-1][0]:.1f},{_HEIGHT}"))
    drawn.append(element("polyline", points=line))
    picture = element(
        "svg",
        *drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}: {words}",
        focusable="false",
    )
    axis = element("div", *(element("span", each) for each in ends), class_="ends", aria_hidden="true")
    return joined(
        [element("div", element("span", top, class_="top", aria_hidden="true"), picture, class_="plot"), axis]
    )


def _percent(share: float) -> str:
    return f"{max(0.0, min(share, 1.0)) * 100:.3f}%"


# --- the memory of the GPU -----------------------------------------------------------------------

PHASES = (
    ("p1", "Starting", "start", "start_s"),
    ("p2", "Loading the models", "load", "load_s"),
    ("p3", "Reading the prompt", "encode", "encode_s"),
    ("p4", "Generating", "sample", "steps_s"),
    ("p5", "Decoding", "decode", "decode_s"),
)
"""Colour, name, name of the phase in ``vram.phases``, key of its time in ``timings``."""


def phases_chart(smoke: Node) -> Html:
    """Return the parts of the time as a bar, below the curve of the GPU's memory where that was measured."""
    taken = [(tone, name, _seconds(smoke.at("timings", key_))) for tone, name, _, key_ in PHASES]
    found = [(tone, name, seconds) for tone, name, seconds in taken if seconds is not None and seconds >= 0]
    curve, length_s = _curve(smoke.at("vram"))
    entries = [(tone, name, human_duration(seconds)) for tone, name, seconds in found]
    if not curve:
        return joined([_strip(found), key(entries)])
    strip = _measured_strip(smoke.at("vram"), length_s)
    entries += [("p0", "Other", "")] if 'class="p0"' in strip else []
    total, peak = smoke.at("vram", "total_bytes").number, max(used for _, used in curve)
    most = max(total or 0, peak, 1.0)
    words = f"{gib(int(peak))} at the peak" + (f", of {gib(int(total))}" if total else "")
    heading = element("h3", "GPU memory ", element("span", words, class_="quiet"))
    chart = area(
        "GPU memory",
        words,
        [(at_s / length_s, used) for at_s, used in curve],
        most=most,
        ends=("0 s", human_duration(length_s)),
        top=gib(int(most)),
    )
    return element("div", heading, chart, strip, key(entries), class_="chart")


def _curve(vram: Node) -> tuple[list[tuple[float, float]], float]:
    """Return the points that can be drawn, in ascending order, and the time of the last; none of fewer than three."""
    rows = [(row.rows[0].number, row.rows[1].number) for row in vram.at("curve").rows if len(row.rows) == 2]
    points = sorted(
        (at_s, used) for at_s, used in rows if at_s is not None and used is not None and min(at_s, used) >= 0
    )
    length_s = points[-1][0] if points else 0.0
    return (points, length_s) if len(points) > 2 and length_s > 0 else ([], 0.0)


def _measured_strip(vram: Node, length_s: float) -> Html:
    """Return the phases where they were, on the axis of the curve."""
    tones = {phase: tone for tone, _, phase, _ in PHASES}
    rows = [(row.rows[0].text, row.rows[1].number) for row in vram.at("phases").rows if len(row.rows) == 2]
    begun = sorted((at_s, name) for name, at_s in rows if at_s is not None and 0 <= at_s <= length_s)
    ends = [*(at_s for at_s, _ in begun[1:]), length_s]
    return bar(
        Segment(start=at_s / length_s, width=(end - at_s) / length_s, tone=tones.get(name, "p0"))
        for (at_s, name), end in zip(begun, ends, strict=True)
    )


def _strip(found: Sequence[tuple[str, str, float]]) -> Html:
    """Return the phases one after the other."""
    total = sum(seconds for _, _, seconds in found)
    if len(found) < 2 or total <= 0:
        return Html("")
    segments, start = [], 0.0
    for tone, _, seconds in found:
        segments.append(Segment(start=start / total, width=seconds / total, tone=tone))
        start += seconds
    return bar(segments)


def _seconds(node: Node) -> float | None:
    """Return one time, or the sum of a list of them."""
    if node.number is not None:
        return node.number
    known = [row.number for row in node.rows]
    parts = [part for part in known if part is not None]
    return sum(parts) if parts else None


# --- where the time went ---------------------------------------------------------------------------

_WORK = {
    "fetching": ("p1", "downloading"),
    "waiting": ("p4", "waiting"),
    "checking": ("p2", "reading what was there"),
    "hashing": ("p2", "reading every byte"),
    "proving": ("p3", "hashing"),
    "placing": ("p5", "copying"),
    "syncing": ("p5", "writing to the disk"),
}
_NAMES = {
    "get-comfyui": "Get ComfyUI",
    "update-comfyui": "Update ComfyUI",
    "move-node-pack": "Move a custom node",
    "install-node-pack": "Install custom nodes",
    "make-environment": "Make the environment",
    "repair-environment": "Repair the environment",
    "install-packages": "Install packages",
    "start-comfyui": "Start ComfyUI",
    "generate-image": "Generate the test image",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    name: str
    start_s: float
    seconds: float
    parts: tuple[tuple[str, float], ...]  # what the time went into, for a file
    rate: float | None  # bytes a second, while it was downloaded or read


def time_section(document: Node) -> Html:
    """Return the steps of a run on one axis of time, and the throughput of its downloads."""
    rows = _step_rows(document) or _reading_rows(document)
    return section(
        "Where the time went", _waterfall(rows), _throughput(document.at("details", "transfers")), name="time"
    )


def _step_rows(document: Node) -> list[_Row]:
    """Return the steps that took time."""
    files = _file_times(document)
    rows = []
    for step in document.at("steps").rows:
        outcome = step.at("outcome")
        start_s, seconds = outcome.at("started_s").number, outcome.at("seconds").number
        if start_s is None or seconds is None or start_s < 0 or seconds < 0.05:
            continue
        label = step.at("path").text
        parts = {name: spent for name, spent in files.get(label, {}).items() if name != "hashing"}
        received, fetching_s = outcome.at("bytes_fetched").number, parts.get("fetching", 0.0)
        rows.append(
            _Row(
                name=_NAMES.get(step.at("kind").text) or path(label),
                start_s=start_s,
                seconds=seconds,
                parts=tuple(parts.items()),
                rate=received / fetching_s if received and fetching_s > 0.05 else None,
            )
        )
    return rows


def _reading_rows(document: Node) -> list[_Row]:
    """Return the files that were read, where nothing else was done."""
    sizes = {check.at("path").text: check.at("observed_size").number for check in document.at("checks").rows}
    rows, start_s = [], 0.0
    for label, parts in _file_times(document).items():
        seconds, size = parts.get("hashing", 0.0), sizes.get(label)
        if seconds >= 0.05:
            rate = size / seconds if size else None
            rows.append(
                _Row(name=path(label), start_s=start_s, seconds=seconds, parts=(("hashing", seconds),), rate=rate)
            )
            start_s += seconds
    return rows


def _file_times(document: Node) -> dict[str, dict[str, float]]:
    """Return the seconds of each phase of each file."""
    found: dict[str, dict[str, float]] = {}
    for each in document.at("details", "transfers", "files").rows:
        spent = [(name, seconds.number) for name, seconds in each.at("seconds").items]
        parts = {name: seconds for name, seconds in spent if name in _WORK and seconds is not None and seconds > 0}
        if each.at("path").text and parts:
            found[each.at("path").text] = parts
    return found


def _waterfall(rows: Sequence[_Row]) -> Html:
    end_s = max((row.start_s + row.seconds for row in rows), default=0.0)
    if end_s <= 0:
        return Html("")
    items = []
    for row in rows:
        rate = f" \u00b7 {human_rate(row.rate)}" if row.rate is not None else ""
        name = element("span", row.name, class_="what")
        took = element("span", human_duration(row.seconds), rate, class_="took")
        items.append(element("li", name, took, bar(_segments(row, end_s))))
    used = {part for row in rows for part, _ in row.parts}
    tones: dict[tuple[str, str], None] = {_WORK[part]: None for part in _WORK if part in used}
    if any(not row.parts for row in rows):
        tones["p0", "other work"] = None
    legend = key((tone, words, "") for tone, words in tones) if len(tones) > 1 else Html("")
    work_s = sum(row.seconds for row in rows)
    overlap = f"{human_duration(work_s)} of work in {human_duration(end_s)}: what waits for nothing goes side by side."
    words = paragraphs([overlap] if work_s > 1.05 * end_s else [])
    return joined([words, element("ol", *items, class_="waterfall"), legend])


def _segments(row: _Row, end_s: float) -> list[Segment]:
    """Return the bar of a row: its parts one after the other, and what none of them explains."""
    known = sum(seconds for _, seconds in row.parts)
    scale = min(1.0, row.seconds / known) if known > 0 else 0.0
    segments, at_s = [], row.start_s
    for part, seconds in row.parts:
        segments.append(Segment(start=at_s / end_s, width=seconds * scale / end_s, tone=_WORK[part][0]))
        at_s += seconds * scale
    rest_s = row.start_s + row.seconds - at_s
    if rest_s > 0:
        segments.append(Segment(start=at_s / end_s, width=rest_s / end_s, tone="p0"))
    return segments


def _throughput(transfers: Node) -> Html:
    """Return what came over the network over time."""
    interval_s = transfers.at("interval_s").number
    received = [row.number or 0 for row in transfers.at("received_bytes").rows]
    if interval_s is None or interval_s <= 0 or len(received) < 3 or min(received) < 0 or max(received) <= 0:
        return Html("")
    rates = [each / interval_s for each in received]
    length_s = interval_s * len(rates)
    words = f"{human_rate(sum(received) / length_s)} on average, {human_rate(max(rates))} at most"
    heading = element("h3", "Throughput of the downloads ", element("span", words, class_="quiet"))
    middles = [((number + 0.5) / len(rates), rate) for number, rate in enumerate(rates)]
    points = [(0.0, rates[0]), *middles, (1.0, rates[-1])]
    chart = area(
        "Throughput",
        words,
        points,
        most=max(rates),
        ends=("0 s", human_duration(length_s)),
        top=human_rate(max(rates)),
    )
    return element("div", heading, chart, class_="chart")
