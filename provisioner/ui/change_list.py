"""What a look after an update comes to, on one page: what changed, what was checked, what no longer holds, the command.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.core.models import Finding
from provisioner.core.units import count
from provisioner.report.changes import Change, summary
from provisioner.ui.problems import finding_blocks
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
        What was looked at again, as clauses.
    findings : sequence of Finding
        What no longer holds, and what to know.
    mend : str or None
        The one command that mends it.
    """
    blocks: list[Block] = [Para(line=(Span("Changes", "title"), Span(f"  {summary(changes)}")), hang=9)]
    blocks += [Para(line=_change_line(change), indent=2, hang=3) for change in changes]
    if checked:
        blocks += [BLANK, Para(line=span("Checked again", "title"))]
        blocks += [Para(line=(Span("*", "dim"), Span(f"  {words}")), indent=2, hang=3) for words in checked]
    blocks += finding_blocks(findings)
    return [*blocks, BLANK, *_end_blocks(changes, findings, mend)]


def _change_line(change: Change) -> tuple[Span, Span]:
    """Return a change after its mark: what can break the setup is loud, the rest is quiet."""
    style: Style = "warn" if change.matters else "dim"
    return Span(_MARKS[change.kind], style), Span(f"  {change.sentence}", "" if change.matters else "dim")


def _end_blocks(changes: Sequence[Change], findings: Sequence[Finding], mend: str | None) -> list[Block]:
    problems = sum(finding.severity == "problem" for finding in findings)
    if mend is not None:
        lead = f"{count(problems, 'problem')}. To put it right:" if problems else "To put it right:"
        return [Para(line=(Span(lead, "bad"), Span(f"  {mend}", "command")), hang=2)]
    if problems:
        return [Para(line=span(f"{count(problems, 'problem')}; what to do stands with each.", "bad"))]
    holds = "Everything that was proven still holds." if changes else "Everything holds."
    return [Para(line=span(holds, "good"))]
