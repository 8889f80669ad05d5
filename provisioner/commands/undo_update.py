"""``repair --undo-update``: ComfyUI's checkout goes back to the commit it had before ``--update-comfyui``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from provisioner.commands.questions import Ask, agree_to_links, need_yes
from provisioner.commands.run import Run
from provisioner.core.errors import EXIT_OK, UsageError
from provisioner.core.models import ComfyTarget
from provisioner.report.outcome import Report, UndoneUpdate


def run_undo_update(run: Run, *, ask: Ask, say: Callable[[str], None]) -> Report:
    """Undo the last update of ComfyUI, after a yes; model files and environment are not changed.

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
        raise UsageError("Only an update of a ComfyUI folder can be undone.", hint="Name it with --comfyui DIR.")
    checkouts = run.session.checkouts
    before = checkouts.describe(run.target.given)
    folder = before.tree or before.given
    point = before.rollback_point
    if point is None:
        raise UsageError(
            f"There is no update of {folder} to undo.",
            hint="Only an update by `klein-setup install --update-comfyui` can be undone.",
            path=str(folder),
        )
    agree_to_links(run, run.session.links.on_the_way_into(folder), ask)
    now, was = before.version or "an unknown version", point.version or point.commit[:12]
    if not run.options.assume_yes:
        where = f"branch {point.branch}" if point.branch is not None else f"commit {point.commit[:12]}"
        question = f"Move ComfyUI in {folder} from {now} back to {was} ({where})?"
        need_yes(ask, question, hint="Agree with --yes, or keep the release that is there.")
    with run.session.stages.stage("moving back", "ComfyUI", "moved back"):
        checkouts.go_back(folder, progress=run.session.stages.teller)
    say(f"ComfyUI in {folder} is at {was} again; it was at {now}.")
    say("Its packages may be those of the other release; `klein-setup install --only environment` checks them.")
    undone = UndoneUpdate(
        path=folder, left=before.version, version=point.version, commit=point.commit, branch=point.branch
    )
    return replace(run.report("repair", "ok", EXIT_OK), undone_update=undone)
