"""The table of a fleet: a row for each host, those that need attention first, with what is wrong below.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from provisioner.report.fleet_comparison import (
    STATES,
    Fleet,
    FleetHost,
    FleetState,
    cost_words,
    difference_words,
    files_words,
    gpu_words,
    headline,
    stale_words,
    whole_cost_words,
)
from provisioner.ui.text import BLANK, Block, Column, Grid, Line, Para, Row, Span, Style, span

_STYLES: dict[FleetState, Style] = {
    "failed": "bad",
    "differs": "bad",
    "missing": "warn",
    "stale": "warn",
    "unchecked": "warn",
    "in-line": "good",
}
_COLUMNS = (
    Column(),
    Column(is_path=True),
    Column(is_optional=True),
    Column(),
    Column(is_optional=True),
    Column(is_optional=True),
    Column(),
    Column(),
    Column(align="right"),
)
_HEADINGS = ("", "Host", "GPU", "Set", "ComfyUI", "torch", "Files", "Checked", "To fetch")
_MOST_NOTES = 8  # of one host; the page and --json have them all


def fleet_blocks(fleet: Fleet, *, is_quiet: bool = False) -> list[Block]:
    """Return the table, the files that are no documents, and what bringing all in line costs.

    Quiet leaves out the hosts that are in line.
    """
    hosts = [each for each in fleet.hosts if not is_quiet or each.state != "in-line"]
    rows = (Row(tuple(Span(each, "dim") for each in _HEADINGS)), *map(_row, hosts))
    blocks: list[Block] = [Grid(columns=_COLUMNS, rows=rows), BLANK] if hosts else []
    blocks += [Para(line=(Span(each.file, "bad"), Span(f": {each.reason}.")), hang=2) for each in fleet.unusable]
    blocks.append(Para(line=span(f"{headline(fleet)}.", "good" if fleet.is_in_line else "bad")))
    blocks.append(Para(line=span(whole_cost_words(fleet))))
    if any(each.state == "stale" for each in fleet.hosts):
        blocks.append(Para(line=span(stale_words(fleet))))
    return blocks


def _row(host: FleetHost) -> Row:
    cells = (
        Span(STATES[host.state], _STYLES[host.state]),
        Span(host.host),
        Span(gpu_words(host)),
        Span(host.set),
        Span(host.comfyui),
        Span(host.torch),
        Span(files_words(host)),
        Span(host.checked_at[:16].replace("T", " ")),
        Span(cost_words(host)),
    )
    return Row(cells, tuple(_notes(host)))


def _notes(host: FleetHost) -> list[Line]:
    said: list[Line] = [span(f"{each.code}: {each.message}", "bad") for each in host.errors]
    said += [span(difference_words(each)) for each in host.differences]
    more = len(said) - _MOST_NOTES
    return [*said[:_MOST_NOTES], span(f"and {more} more", "dim")] if more > 0 else said
