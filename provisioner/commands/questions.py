"""The questions of a run, each asked before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from provisioner.commands.run import Run, TargetOrigin, named_path
from provisioner.core.errors import AnswerNeededError, KleinError, PathOutsideRootError
from provisioner.core.events import Notice
from provisioner.core.models import FetchFile, FolderLink, Licence, PatchFile
from provisioner.core.units import count, human_bytes, listing
from provisioner.plan.steps import MakeEnvironment, Plan, replaced_by

Ask = Callable[[str], bool]
"""Asks a question; false is the answer that changes nothing."""


class AskToApply(Protocol):
    """Asks whether a plan shall be applied, of somebody who is there to answer."""

    def __call__(self, question: str, *, default: bool, takes_folder: bool) -> bool | Path:
        """Return the answer; a folder where another one was named, and only if `takes_folder`."""
        ...


def ask_about(run: Run, plan: Plan, ask: Ask) -> None:
    """Ask everything that a plan needs an answer to whoever is there; raises AnswerNeededError."""
    if any(isinstance(step, (FetchFile, PatchFile)) for step in plan.steps):
        for licence in run.manifest.licences:
            _accept_licence(run, licence, ask)
    if run.options.assume_yes:
        return
    for step in plan.steps:
        if isinstance(step, MakeEnvironment) and step.is_foreign:
            need_yes(
                ask,
                f"{step.where} was not made by klein-setup. Put a new one in its place, and keep it beside?",
                hint="Name another folder with --environment DIR, or agree with --yes.",
            )


def _accept_licence(run: Run, licence: Licence, ask: Ask) -> None:
    """Ask about a licence that does not simply allow commercial use, unless it was named; ``--yes`` is no answer.

    Whether a repository is gated plays no part: repackaged copies are not, and their licence is the same.

    Raises
    ------
    AnswerNeededError
        The answer was no, or nobody can be asked.
    """
    accepted = run.options.accepted_licences
    if licence.is_commercial_use_allowed or licence.id in accepted:
        return
    words = " ".join(filter(None, [licence.commercial_use_words, licence.notice]))
    question = f"{words} ({licence.url})\nDo you accept this licence?"
    hint = f"Read it at {licence.url}; if you accept it, add --accept-licence {licence.id}. Else use another manifest."
    refusal = AnswerNeededError(
        f"{run.manifest.title} is under the {licence.name}, which nobody accepted"
        f"{'; --yes does not' if run.options.assume_yes else ''}"
        f"{f', and --accept-licence {sorted(accepted)[0]} names another one' if accepted else ''}.\n"
        f"{words}",
        hint=hint,
        licence=licence.id,
        url=licence.url,
    )
    _need_consent(run, ask, question, refusal, hint=hint)


def ask_to_apply(run: Run, plan: Plan, ask: AskToApply | None, *, is_repair: bool) -> Path | None:
    """Ask once whether the plan shall be applied; return another folder if the answer names one.

    Parameters
    ----------
    run, plan
        What would be done, and where.
    ask : callable or None
        None: nobody is there.  Naming the folder on the command line is the answer then.
    is_repair : bool
        The run was asked to replace what is wrong.

    Raises
    ------
    AnswerNeededError
        The answer is no; or nobody is there, and the folder, or what would be replaced in it, was never agreed to.
    """
    if run.options.assume_yes or not plan.changes:
        return None
    replaced = sum(replaced_by(step) is not None for step in plan.file_steps)
    is_agreed = is_repair and run.set_before is not None
    is_risky = replaced > 0 and run.origin != "named" and not is_agreed
    question = _question(run, plan, replaced)
    if ask is None:
        if run.origin in {"found", "new"} or is_risky:
            raise AnswerNeededError(
                f"A question needs an answer, but this is no terminal or --no-input was given: {question}",
                hint="Name the folder yourself with --comfyui DIR or --hf-cache DIR, or agree with --yes.",
                question=question,
            )
        return None
    answer = ask(question, default=not is_risky, takes_folder=run.origin != "named")
    if isinstance(answer, Path):
        return answer
    if not answer:
        raise _answered_with_no("Name another folder with --comfyui DIR, or another set with --set.")
    return None


_ORIGINS: Mapping[TargetOrigin, str] = {
    "named": "",
    "remembered": ", the folder of the last run",
    "found": ", which was found there",
    "new": ", a new folder",
}


def _question(run: Run, plan: Plan, replaced: int) -> str:
    """Return the question with everything that it is about: bytes, folder, files that are replaced."""
    where = f"{named_path(run.target)}{_ORIGINS[run.origin]}"
    replaces = f"replace {count(replaced, 'file')} (kept as backups)" if replaced else ""
    fetches = f"fetch {human_bytes(plan.bytes_to_fetch)}" if plan.bytes_to_fetch else ""
    what = " and ".join(filter(None, [fetches, replaces])) or f"do {count(len(plan.changes), 'step')}"
    preposition = "into" if fetches and not replaces else "in"
    return f"{what[:1].upper()}{what[1:]} {preposition} {where}?"


def agree_to_links(run: Run, leading: Iterable[FolderLink], ask: Ask) -> None:
    """Ask once about the links that lead out of what the user named, and remember a yes.

    Raises
    ------
    PathOutsideRootError
        Nobody can be asked, or ``--yes`` was given, which is no answer to this question.
    AnswerNeededError
        The answer was no.
    """
    links = tuple(link for link in leading if link.consent == "no")
    if not links:
        return
    named = run.session.links.named
    ways = listing([f"{link.path} leads to {link.real}" for link in links])
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
    ends = "".join(f"\n  {link.path} leads to {link.real}" for link in links)
    question = (
        f"Files would be written, moved or deleted behind {count(len(links), 'link')} to a place outside of {named}:"
        f"{ends}\nFollow {'it' if len(links) == 1 else 'them'} now and in later runs?"
    )
    hint = "Name the folder that the link leads to, or put a folder in the link's place."
    _need_consent(run, ask, question, refusal, hint=hint)
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


def _need_consent(run: Run, ask: Ask, question: str, refusal: KleinError, *, hint: str) -> None:
    """Ask what ``--yes`` is no answer to; raise `refusal` where nobody can be asked, AnswerNeededError after a no."""
    if run.options.assume_yes:
        raise refusal
    try:
        is_agreed = ask(question)
    except AnswerNeededError as error:
        raise refusal from error
    if not is_agreed:
        raise _answered_with_no(hint)


def _answered_with_no(hint: str) -> AnswerNeededError:
    return AnswerNeededError("Nothing was done: the question was answered with no.", hint=hint)


def need_yes(ask: Ask, question: str, *, hint: str) -> None:
    """Ask, and raise AnswerNeededError unless the answer is yes."""
    if not ask(question):
        raise _answered_with_no(hint)
