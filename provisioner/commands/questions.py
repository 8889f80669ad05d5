"""The questions of a run, each asked before anything is changed."""

from __future__ import annotations

from collections.abc import Callable

from provisioner.commands.run import Run
from provisioner.core.errors import AnswerNeededError, PathOutsideRootError
from provisioner.core.events import Notice
from provisioner.core.models import ComfyTarget, FetchFile, PatchFile, Target
from provisioner.core.units import count, listing
from provisioner.plan.steps import GetComfyUI, MakeEnvironment, Plan, UpdateComfyUI

Ask = Callable[[str], bool]
"""Asks a question; false is the answer that changes nothing."""


def ask_about(run: Run, plan: Plan, ask: Ask) -> None:
    """Ask everything that a plan needs an answer to; raises AnswerNeededError."""
    if run.options.assume_yes:
        return
    licence = run.manifest.licence
    fetches = any(isinstance(step, (FetchFile, PatchFile)) for step in plan.steps)
    if fetches and not licence.is_commercial_use_allowed:
        need_yes(
            ask,
            f"{licence.notice or licence.name} ({licence.url})\nDo you accept this licence?",
            hint="Choose another manifest, or accept with --yes.",
        )
    writes = plan.file_steps or any(isinstance(step, (GetComfyUI, UpdateComfyUI)) for step in plan.steps)
    if run.is_target_chosen_here and writes:
        need_yes(
            ask,
            f"Use {_shown(run.target)}?",
            hint="Name the folder yourself with --comfyui DIR or --hf-cache DIR.",
        )
    for step in plan.steps:
        if isinstance(step, MakeEnvironment) and step.is_foreign:
            need_yes(
                ask,
                f"{step.where} was not made by klein-setup. Put a new one in its place, and keep it beside?",
                hint="Name another folder with --environment DIR, or agree with --yes.",
            )


def agree_to_links(run: Run, plan: Plan, ask: Ask) -> None:
    """Ask once about the links that lead out of what the user named, and remember a yes.

    Raises
    ------
    PathOutsideRootError
        Nobody can be asked, or ``--yes`` was given, which is no answer to this question.
    AnswerNeededError
        The answer was no.
    """
    links = tuple(link for link in plan.links if link.consent == "no")
    if not links:
        return
    named = run.session.links.named
    ways = listing([f"{link.path} is a link to {link.real}" for link in links])
    refusal = PathOutsideRootError(
        f"{ways}, outside of {named}, and nobody agreed that files are written, moved or deleted there. "
        "Nothing was changed.",
        hint="Pass --follow-links to agree for this run, or run the same command in a terminal without --yes: it asks, "
        "and remembers the answer. Else name the folder that it leads to.",
        path=str(links[0].path),
        root=str(named),
        real=str(links[0].real),
        links=[{"path": str(link.path), "leads_to": str(link.real)} for link in links],
    )
    if run.options.assume_yes:
        raise refusal
    ends = "".join(f"\n  {link.path} leads to {link.real}" for link in links)
    question = (
        f"Files would be written, moved or deleted behind {count(len(links), 'link')} to a place outside of {named}:"
        f"{ends}\nFollow {'it' if len(links) == 1 else 'them'} now and in later runs?"
    )
    try:
        is_agreed = ask(question)
    except AnswerNeededError as error:
        raise refusal from error
    hint = "Name the folder that the link leads to, or put a folder in the link's place."
    need_yes(lambda _question: is_agreed, question, hint=hint)
    run.session.links.agree(links)


def decide_on_token(run: Run, plan: Plan, ask: Ask) -> None:
    """Ask once whether another Hub may see the token; where nobody can be asked it is not sent, and that is said."""
    session = run.session
    fetches = any(isinstance(step, (FetchFile, PatchFile)) for step in plan.steps)
    if not fetches or session.token is None or session.sends_token or not session.is_other_origin:
        return
    name, host = session.token.found_in, session.endpoint.partition("://")[2]
    if not run.options.assume_yes:
        try:
            session.sends_token = ask(f"{host} is not the Hub. Send it the token of {name}, too?")
        except AnswerNeededError:
            pass
        else:
            return
    session.events(
        Notice(
            message=f"The token of {name} is not sent to {host}, which is not the Hub; --send-token sends it.",
            severity="warning",
        )
    )


def need_yes(ask: Ask, question: str, *, hint: str) -> None:
    """Ask, and raise AnswerNeededError unless the answer is yes."""
    if not ask(question):
        raise AnswerNeededError("Nothing was done: the question was answered with no.", hint=hint)


def _shown(target: Target) -> str:
    return str(target.models if isinstance(target, ComfyTarget) else target.cache)
