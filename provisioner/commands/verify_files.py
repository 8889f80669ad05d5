"""Compares every file of a set with the manifest: all that ``verify --quick`` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from provisioner.commands.run import Run
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK
from provisioner.core.models import Finding
from provisioner.plan.make_plan import make_plan
from provisioner.plan.steps import Plan
from provisioner.report.outcome import Report

T = TypeVar("T")
U = TypeVar("U")


def run_verify(run: Run, *, is_quick: bool) -> Report:
    """Return a report of which files are right and what the others need; nothing is written or fetched."""
    files = run.plan_files("quick" if is_quick else "full")
    plan = make_plan(files, files.steps, choice=run.choice)
    wrong = any(check.status != "ok" for check in plan.checks)
    problems = wrong or any(finding.severity == "problem" for finding in plan.findings)
    return run.report(
        "verify",
        "findings" if problems else "ok",
        EXIT_FINDINGS if problems else EXIT_OK,
        plan=plan,
        findings=_shared(run, plan) if wrong else (),
    )


def _shared(run: Run, plan: Plan) -> tuple[Finding, ...]:
    from provisioner.commands.shared_files import shared_findings  # most files are right

    return shared_findings(run, plan.checks)


def do_beside(work: Callable[[], T], beside: Callable[[], U]) -> tuple[T, U]:
    """Do two things at once and return what both gave; what `work` raises comes at once, what `beside` raises after it.

    Files are hashed on threads that let others run meanwhile: half a second of asking drivers and importing what comes
    later is no reason to begin half a second later.
    """
    import threading  # nothing of this is needed for a quick look

    from provisioner.files.store.hash_pool import Task

    task = Task(beside)
    threading.Thread(target=task.run, name="beside", daemon=True).start()  # an interruption does not wait for it
    done = work()
    return done, task.result()
