"""Compares every file of a set with the manifest: all that ``verify --quick`` does."""

from __future__ import annotations

from provisioner.commands.run import Run
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK
from provisioner.plan.make_plan import make_plan
from provisioner.report.outcome import Report


def run_verify(run: Run, *, is_quick: bool) -> Report:
    """Return a report of which files are right and what the others need; nothing is written or fetched."""
    files = run.plan_files("quick" if is_quick else "full")
    plan = make_plan(files, files.steps, choice=run.choice)
    wrong = any(check.status != "ok" for check in plan.checks)
    problems = wrong or any(finding.severity == "problem" for finding in plan.findings)
    return run.report("verify", "findings" if problems else "ok", EXIT_FINDINGS if problems else EXIT_OK, plan=plan)
