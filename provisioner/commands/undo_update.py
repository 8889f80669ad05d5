"""``repair --undo-update``: ComfyUI's checkout goes back to the commit it was at before ``--update-comfyui``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from provisioner.commands.questions import Ask, need_yes
from provisioner.commands.run import Run
from provisioner.core.errors import EXIT_OK, UsageError
from provisioner.core.models import ComfyTarget
from provisioner.report.outcome import Report


def run_undo_update(run: Run, *, ask: Ask, say: Callable[[str], None]) -> Report:
    """Move ComfyUI back to where its last update found it, after a yes; files and environment stay as they are.

    Raises
    ------
    AnswerNeededError
        Nobody agreed; nothing was moved.
    UsageError
        The target is no ComfyUI tree, or no update of it is known.
    CommandError
        Files of ComfyUI itself were changed since, or git failed.
    LockHeldError
        Another run works on the tree, and it is not to be waited for.
    """
    if not isinstance(run.target, ComfyTarget):
        raise UsageError("An update of ComfyUI is taken back in its tree.", hint="Name the tree with --comfyui DIR.")
    checkouts = run.session.checkouts
    before = checkouts.describe(run.target.given)
    folder = before.tree or before.given
    point = before.rollback_point
    if point is None:
        raise UsageError(
            f"No update of {folder} is known that could be taken back.",
            hint="`klein-setup install --update-comfyui` writes down where a checkout was before it is moved.",
            path=str(folder),
        )
    now, was = before.version or "an unknown version", point.version or point.commit[:12]
    if not run.options.assume_yes:
        where = f"branch {point.branch}" if point.branch is not None else f"commit {point.commit[:12]}"
        question = f"Move ComfyUI in {folder} from {now} back to {was} ({where})?"
        need_yes(ask, question, hint="Agree with --yes, or keep the release that is there.")
    checkouts.go_back(folder, progress=run.session.say_progress)
    say(f"ComfyUI in {folder} is at {was} again; it was at {now}.")
    say("Its packages may be those of the other release: `klein-setup install --only environment` looks.")
    report = run.report("repair", "ok", EXIT_OK)
    undone = {"path": str(folder), "from": before.version, "to": point.version, "commit": point.commit}
    return replace(report, extra=(*report.extra, ("undo_update", {**undone, "branch": point.branch})))
