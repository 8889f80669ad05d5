"""The text of a check after an update: what changed, what was checked, what is wrong now, the command to fix it.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.core.models import Finding
from provisioner.core.units import count
from provisioner.report.changes import Change, summary
from provisioner.ui.problems import finding_blocks
from provisioner.ui.tables import command_blocks
from provisioner.ui.text import BLANK, Block, Para, Span, Style, span

_MARKS: dict[str, str] = {"changed": "~", "appeared": "+", "gone": "-"}


def changes_blocks(
    changes: Sequence[Change], checked: tuple[str, ...], findings: Sequence[Finding], mend: str | None
) -> list[Block]:
    """Return the page.

    Parameters
    ----------
    changes : sequence of Change
        From `changes.compare`.
    checked : tuple of str
        What was checked again, as clauses.
    findings : sequence of Finding
        Problems and warnings.
    mend : str or None
        The one command that fixes it.
    """
    blocks: list[Block] = [Para(line=(Span("Changes", "title"), Span(f"  {summary(changes)}")), hang=9)]
    blocks += [Para(line=_change_line(change), indent=2, hang=3) for change in changes]
    if checked:
        blocks += [BLANK, Para(line=span("Checked again", "title"))]
        blocks += [Para(line=(Span("*", "dim"), Span(f"  {words}")), indent=2, hang=3) for words in checked]
    blocks += finding_blocks(findings)
    return [*blocks, BLANK, *_end_blocks(changes, findings, mend)]


def _change_line(change: Change) -> tuple[Span, Span]:
    """Return a change after its mark; what can break the setup is highlighted."""
    style: Style = "warn" if change.matters else "dim"
    return Span(_MARKS[change.kind], style), Span(f"  {change.sentence}", "" if change.matters else "dim")


def _end_blocks(changes: Sequence[Change], findings: Sequence[Finding], mend: str | None) -> list[Block]:
    problems = sum(finding.severity == "problem" for finding in findings)
    if mend is not None:
        lead = f"{count(problems, 'problem')}. To fix it:" if problems else "To fix it:"
        return command_blocks(lead, mend, "bad")
    if problems:
        return [Para(line=span(f"{count(problems, 'problem')}; see the hint of each.", "bad"))]
    return [Para(line=span("Everything is still correct." if changes else "Everything is correct.", "good"))]
