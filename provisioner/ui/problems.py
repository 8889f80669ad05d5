"""The text of a finding and of an error: what is wrong, with which thing, and the hint what to do.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from provisioner.core.errors import ERRORS_URL, CommandError, KleinError, ManifestError
from provisioner.core.models import Finding
from provisioner.ui.text import BLANK, Block, Para, Span, Style, path_span, span


def finding_blocks(findings: Iterable[Finding]) -> list[Block]:
    """Return findings with their hints, problems before warnings."""
    blocks: list[Block] = []
    for finding in sorted(findings, key=lambda each: each.severity != "problem"):
        style: Style = "bad" if finding.severity == "problem" else "warn"
        blocks += [BLANK, Para(line=(Span(finding.severity, style), Span(f"  {finding.message}")), indent=2, hang=9)]
        if finding.path is not None and str(finding.path) not in finding.message:
            blocks.append(Para(line=(path_span(finding.path, "dim"),), indent=11))
        if finding.hint:
            blocks.append(Para(line=(Span("hint:", "title"), Span(f" {finding.hint}")), indent=11, hang=2))
    return blocks


def error_blocks(error: BaseException, *, is_verbose: bool) -> list[Block]:
    """Return an error: what happened, every issue, the hint; its code and facts when `is_verbose`."""
    is_ours = isinstance(error, KleinError)
    message = str(error) if is_ours else f"{type(error).__name__}: {error}"
    blocks: list[Block] = [Para(line=(Span("error:", "bad"), Span(f" {message}")), hang=7)]
    if isinstance(error, ManifestError):
        blocks += [Para(line=span(f"- {issue}"), indent=2, hang=2) for issue in error.issues if issue != message]
    if isinstance(error, CommandError):
        blocks += [Para(line=span(line, "dim"), indent=4) for line in _last_lines(error)]
    if isinstance(error, KleinError):
        if error.hint:
            blocks.append(Para(line=(Span("hint:", "title"), Span(f" {error.hint}")), indent=2, hang=2))
        log = error.context.get("log_path")
        if log is not None and str(log) not in f"{message}{error.hint}":
            blocks.append(Para(line=(Span("log:", "title"), Span(" "), path_span(Path(str(log)))), indent=2, hang=2))
        if is_verbose:
            blocks += _fact_blocks(error)
    return blocks


def _last_lines(error: CommandError, most: int = 20) -> list[str]:
    """Return the last lines of a failed process, from whichever fact holds lines."""
    said: list[str] = []
    for value in error.context.values():
        if isinstance(value, (list, tuple)):
            said += [str(each) for each in value]
        elif isinstance(value, str) and "\n" in value:
            said += value.splitlines()
    return said[-most:]


def _fact_blocks(error: KleinError) -> list[Block]:
    """Return an error's code, exit status, the address of its section in the docs, and its facts."""
    lines: list[Block] = [Para(line=span(f"code: {error.code}, exit status {error.exit_status}", "dim"), indent=2)]
    lines.append(Para(line=span(f"about it: {ERRORS_URL}#{error.code}", "dim"), indent=2))
    lines += [
        Para(line=span(f"{key}: {value}", "dim"), indent=2, hang=2)
        for key, value in error.context.items()
        if value is not None and key != "log_path" and not isinstance(value, (list, tuple, dict))
    ]
    return lines


def defect_blocks(error: BaseException, *, log_path: str | None, issues_url: str) -> list[Block]:
    """Return the text for an internal error: what happened, where the log is, where to send it."""
    sentence = f" internal error in klein-setup: {type(error).__name__}: {error}"
    what = f"Send the log {log_path}" if log_path else "Report it"
    todo = f" {what} to {issues_url}, and say what you did."
    return [
        Para(line=(Span("error:", "bad"), Span(sentence)), hang=7),
        Para(line=(Span("hint:", "title"), Span(todo)), indent=2, hang=2),
    ]
