"""The text of a diagnosis: every start of ComfyUI with what came of it, and who is guilty."""

from __future__ import annotations

from provisioner.core.units import count, human_duration
from provisioner.smoke_test.diagnosis import Diagnosis, Try, conclusion, sentence
from provisioner.ui.text import BLANK, Block, Column, Grid, Para, Row, Span, span

_COLUMNS = (Column(), Column(), Column(align="right"))


def diagnosis_blocks(diagnosis: Diagnosis) -> list[Block]:
    """Return a row for each start, why the failed ones failed, and what follows where no finding says it."""
    blocks: list[Block] = [Para(line=span("Diagnosis" if diagnosis.is_over else "Diagnosis, so far", "title")), BLANK]
    if diagnosis.options:
        words = " ".join(" ".join(each) for each in diagnosis.options)
        blocks.append(Para(line=span(f"Your options are {words} (from {diagnosis.options_from}).")))
    if diagnosis.nodes:
        blocks.append(Para(line=span(f"{count(len(diagnosis.nodes), 'custom node')}: {', '.join(diagnosis.nodes)}.")))
    blocks += [BLANK] if diagnosis.options or diagnosis.nodes else []
    blocks.append(Grid(columns=_COLUMNS, rows=tuple(_row(diagnosis, each) for each in diagnosis.tries)))
    blocks.append(BLANK)
    if diagnosis.is_over and not diagnosis.is_healthy:
        return blocks  # the findings and errors of the run follow
    blocks += [Para(line=span(sentence(each), "bad")) for each in diagnosis.guilty]
    if not diagnosis.guilty:
        blocks.append(Para(line=span(conclusion(diagnosis))))
    return blocks


def _row(diagnosis: Diagnosis, each: Try) -> Row:
    """Return what was tried and what came of it; the reason, where it differs from the first one's."""
    first = diagnosis.first
    word = Span("unclear", "warn") if each.is_unclear else Span("image", "good")
    notes = []
    if each.trouble is not None:
        word = word if each.is_unclear else Span("failed", "bad")
        if each is first or first is None or first.trouble is None or each.trouble.code != first.trouble.code:
            notes.append(span(each.trouble.message, "dim"))
    took = "known before" if each.was_known else human_duration(each.seconds)
    return Row((word, Span(each.what), Span(took, "dim")), tuple(notes))
