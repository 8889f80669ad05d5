"""What a plan and a report look like: a row per file, then what to make of it.

Values in, blocks of text out; no width, no colour code, no stream.  Every picture answers two
questions first: is it right, and what do I do now?
"""

from __future__ import annotations

from collections.abc import Sequence

from provisioner.core.models import (
    ROLE_WORDS,
    STATE_FOLDER,
    Artifact,
    Basis,
    Check,
    CheckStatus,
    ComfyFile,
    ComfyTarget,
    FetchFile,
    FilesPlan,
    FileStep,
    MoveFile,
    Outcome,
    PatchFile,
    PlaceFile,
    RecordReceipt,
    SpaceNeed,
    Target,
)
from provisioner.core.units import count, exact_bytes, human_bytes, human_duration
from provisioner.files.layout import known_as
from provisioner.report.outcome import Report, all_findings, label_of, next_command
from provisioner.ui.problems import finding_blocks
from provisioner.ui.text import BLANK, Block, Column, Grid, Line, Para, Row, Span, Style, pair, pair_blocks, span

_BASES: dict[Basis, str] = {
    "sha256": "every byte read",
    "blocks": "every byte read, by its blocks",
    "receipt": "by its receipt, not read",
    "size": "by its size only",
    "none": "",
}

_VERDICTS: dict[CheckStatus, tuple[str, Style]] = {
    "ok": ("ok", "good"),
    "missing": ("missing", "bad"),
    "size-mismatch": ("wrong size", "bad"),
    "hash-mismatch": ("wrong bytes", "bad"),
    "unreadable": ("unreadable", "bad"),
}

_FILE_COLUMNS = (Column(), Column(is_path=True), Column(align="right"), Column(is_optional=True))


# --- the plan ----------------------------------------------------------------------------------


def plan_blocks(plan: FilesPlan) -> list[Block]:
    """Return the plan: a row per file with its fate and the reason, the true totals, the space, the findings."""
    from provisioner.ui.facts import licence_notice_blocks  # a plan speaks of the licence, a report does not

    blocks: list[Block] = [_heading("Plan", plan), BLANK]
    blocks += [
        Grid(columns=_FILE_COLUMNS, rows=tuple(_plan_row(plan, artifact) for artifact in plan.set.artifacts)),
        BLANK,
    ]
    licence = plan.manifest.licence
    rows = _fact_rows(plan)
    if licence.is_commercial_use_allowed:
        rows.append(pair("licence", f"{licence.name}, {licence.url}"))
    blocks += pair_blocks(rows)
    blocks += licence_notice_blocks(licence)
    blocks += finding_blocks(plan.findings)
    return blocks


def _heading(title: str, plan: FilesPlan, preposition: str = "into") -> Block:
    """Return the line that says what is wanted, and where."""
    return Para(
        line=(
            Span(title, "title"),
            Span(f"  {plan.manifest.title}, set {plan.set.id}: {plan.set.title}\n"),
            Span(f"{preposition} {target_words(plan.target)}"),
        ),
        hang=len(title) + 2,
    )


def target_words(target: Target) -> str:
    """Return the target as a sentence names it."""
    if isinstance(target, ComfyTarget):
        return f"the {'new ' if target.is_new else ''}ComfyUI models folder {target.models}"
    return f"the Hugging Face cache {target.cache}"


def _plan_row(plan: FilesPlan, artifact: Artifact) -> Row:
    """Return one file's row: what will happen to it, where it is, how large, and why."""
    steps = [step for step in plan.steps if step.artifact.id == artifact.id]
    check = next((each for each in plan.checks if each.artifact.id == artifact.id), None)
    word, style = _fate(steps, check)
    return Row(
        (Span(word, style), Span(_place(plan, artifact, steps, check)), Span(human_bytes(artifact.size)), Span("")),
        tuple(_plan_notes(artifact, steps, check, plan.target)),
    )


def _fate(steps: Sequence[FileStep], check: Check | None) -> tuple[str, Style]:
    """Return what will happen to a file in a word or two."""
    kinds = {step.kind for step in steps}
    held = any(isinstance(step, FetchFile) and step.held_bytes for step in steps)
    if "patch-file" in kinds:
        return "repair", "warn"
    if any(isinstance(step, (FetchFile, PlaceFile, MoveFile)) and step.replaces for step in steps):
        return "replace", "warn"
    if "fetch-file" in kinds:
        return ("continue" if held else "fetch"), "command"
    if "place-file" in kinds:
        return "place", "command"
    if "move-file" in kinds:
        return "move", "command"
    if "record-receipt" in kinds or (check is not None and check.status == "ok"):
        return "in place", "good"
    return _VERDICTS[check.status] if check is not None else ("not looked at", "dim")


def _place(plan: FilesPlan, artifact: Artifact, steps: Sequence[FileStep], check: Check | None) -> str:
    """Return where the file is or will be: below the target, or the whole path when it is elsewhere."""
    destination = steps[-1].destination if steps else check.destination if check else None
    if destination is None:
        return artifact.name
    if (
        isinstance(destination, ComfyFile)
        and isinstance(plan.target, ComfyTarget)
        and destination.root != plan.target.models
    ):
        return str(destination.path)
    return label_of(destination)


def _plan_notes(artifact: Artifact, steps: Sequence[FileStep], check: Check | None, target: Target) -> list[Line]:
    """Return why, what happens to what is there, and what that is."""
    role = ROLE_WORDS[artifact.role]
    reasons = _distinct([step.reason for step in steps])
    if not reasons:
        basis = _BASES[check.basis] if check is not None and check.status == "ok" else ""
        return [span(f"{role}; {basis}" if basis else role, "dim")]
    lines = [span(f"{role}; {reasons[0]}", "dim"), *(span(reason, "dim") for reason in reasons[1:])]
    lines += [span(words, "dim") for step in steps if (words := _consequence(step, target))]
    if check is not None and check.identity and not any(check.identity in reason for reason in reasons):
        lines.append(span(f"there now: {check.identity}", "warn"))
    return lines


def _distinct(reasons: Sequence[str]) -> list[str]:
    """Return the reasons that no other one already says."""
    unique = list(dict.fromkeys(reasons))
    return [each for each in unique if not any(each != other and each in other for other in unique)]


def _consequence(step: FileStep, target: Target) -> str:
    """Return what a step does beyond what the row's first word and its reason say."""
    match step:
        case FetchFile(held_bytes=0) | PatchFile():
            return ""
        case PlaceFile() | MoveFile():
            where = known_as(step.copy.path, target)
            return "" if where in step.reason else f"from the {step.copy.origin} at {where}"
        case FetchFile():
            return f"{human_bytes(step.held_bytes)} held, {human_bytes(step.bytes_to_fetch)} to fetch"
        case RecordReceipt():
            return "its receipt is written"


def _fact_rows(plan: FilesPlan) -> list[Row]:
    """Return the true size of the set, what of it has to come over the network, and the room for it."""
    fetched = [step for step in plan.steps if isinstance(step, (FetchFile, PatchFile)) and step.bytes_to_fetch]
    rows = [pair("the set", f"{exact_bytes(plan.set.size)} ({human_bytes(plan.set.size)})")]
    if fetched:
        words = f"{human_bytes(plan.bytes_to_fetch)} in {count(len(fetched), 'file')}"
        rows.append(pair("to fetch", words, "title"))
    if plan.bytes_saved:
        rows.append(pair("saved", f"{human_bytes(plan.bytes_saved)} already on this machine", "good"))
    rows += [pair("space", _space_words(need), "" if need.is_enough else "bad") for need in plan.space]
    if any(not isinstance(step, RecordReceipt) and step.replaces for step in plan.steps):
        rows.append(pair("kept", f"what is replaced, in {STATE_FOLDER}/aside, once its successor is proven"))
    return rows


def _space_words(need: SpaceNeed) -> str:
    free = need.file_system.free_bytes
    words = f"{human_bytes(need.needed_bytes)} needed, {human_bytes(free)} free on {need.file_system.path}"
    return words if need.is_enough else f"{words}: {human_bytes(need.needed_bytes - free)} short"


# --- the report --------------------------------------------------------------------------------


def report_blocks(report: Report, *, is_quiet: bool = False) -> list[Block]:
    """Return the result of a run: a row per file, the findings, one sentence, the next command.

    Quiet leaves out what is as it should be.  A report of a mere plan has no rows: ``plan_blocks``
    showed them.
    """
    plan, findings = report.plan, all_findings(report)
    if plan is None:
        return [*finding_blocks(findings), *verdict_blocks(report)]
    if report.status == "planned":
        return [*finding_blocks(each for each in findings if each not in plan.findings), *verdict_blocks(report)]
    rows = [_report_row(report, plan, artifact) for artifact in plan.set.artifacts]
    if is_quiet:
        rows = [row for row in rows if row.cells[0].style in {"bad", "warn"}]
        findings = tuple(each for each in findings if each.severity == "problem")
    preposition = "in" if report.command == "verify" else "into"
    head = [] if is_quiet else [_heading(report.command.capitalize(), plan, preposition), BLANK]
    grid = Grid(columns=_FILE_COLUMNS, rows=tuple(rows))
    gap = [BLANK] if rows or findings else []
    return [*head, grid, *finding_blocks(findings), *gap, *verdict_blocks(report)]


def _report_row(report: Report, plan: FilesPlan, artifact: Artifact) -> Row:
    """Return one file's verdict, place, size and what the verdict rests on."""
    outcomes = [outcome for outcome in report.outcomes if outcome.step.artifact.id == artifact.id]
    check = next((each for each in plan.checks if each.artifact.id == artifact.id), None)
    place = Span(_place(plan, artifact, [outcome.step for outcome in outcomes], check))
    size = Span(human_bytes(artifact.size))
    if outcomes:
        # A receipt that is written anew at the end is not what became of a file that was moved or replaced.
        outcomes = [each for each in outcomes if not isinstance(each.step, RecordReceipt)] or outcomes
        word, style = _outcome_word(outcomes)
        said = [outcome.detail for outcome in outcomes if outcome.error is None]  # an error is said in full below
        notes = [span(detail, "dim") for detail in dict.fromkeys(said) if detail]
        return Row((Span(word, style), place, size, Span("")), tuple(notes))
    if check is None:
        return Row((Span("not looked at", "dim"), place, size, Span("")))
    word, style = _VERDICTS[check.status]
    notes = [*_check_notes(check), *_whereabouts(plan, artifact)]
    return Row((Span(word, style), place, size, Span(_BASES[check.basis], "dim")), tuple(notes))


def _whereabouts(plan: FilesPlan, artifact: Artifact) -> list[Line]:
    """Return where on this machine the bytes may be that are not in their place."""
    copies = [
        step.copy for step in plan.steps if step.artifact.id == artifact.id and isinstance(step, (PlaceFile, MoveFile))
    ]
    return [span(f"its bytes may be in {known_as(copy.path, plan.target)}", "dim") for copy in copies]


def _outcome_word(outcomes: Sequence[Outcome]) -> tuple[str, Style]:
    """Return what became of a file over all its steps, the worst first."""
    last = outcomes[-1]
    if last.status != "done" and any(outcome.status == "failed" for outcome in outcomes):
        return "failed", "bad"  # a copy or blocks that were no good, and then another way that was, is no failure
    if last.status == "skipped":
        return "skipped", "warn"
    match last.step:
        case FetchFile():
            return ("replaced" if last.step.replaces else "fetched"), "good"
        case PatchFile():
            return "repaired", "good"
        case PlaceFile():
            return ("replaced" if last.step.replaces else "placed"), "good"
        case MoveFile():
            return ("replaced" if last.step.replaces else "moved"), "good"
        case RecordReceipt():
            return "ok", "good"


def _check_notes(check: Check) -> list[Line]:
    """Return what is wrong with a file, in words."""
    lines: list[Line] = []
    if check.status == "size-mismatch" and check.observed_size is not None and check.damage is None:
        lines.append(span(f"{exact_bytes(check.observed_size)} instead of {exact_bytes(check.artifact.size)}"))
    if check.identity:
        lead = "damaged" if check.damage is not None else "why" if check.status == "unreadable" else "it is"
        lines.append(span(f"{lead}: {check.identity}", "warn"))
    if check.status != "ok" and check.held_bytes:
        lines.append(span(f"{human_bytes(check.held_bytes)} held from an interrupted download", "dim"))
    return lines


def verdict_blocks(report: Report) -> list[Block]:
    """Return the last sentence of a run and the next command."""
    blocks: list[Block] = []
    sentence = _verdict(report)
    if sentence:
        blocks.append(Para(line=sentence))
    command = next_command(report)
    if command is not None:
        lead = {"findings": "To put it right:", "planned": "To do it:", "interrupted": "To continue:"}.get(
            report.status, "To check again:"
        )
        blocks.append(Para(line=(Span(lead), Span(f"  {command}", "command")), hang=2))
    return blocks


def _verdict(report: Report) -> Line | None:
    """Return the one sentence that says how it stands; None where there is nothing to add."""
    match report.status:
        case "ok":
            return span(_ok_words(report, report.plan), "good") if report.plan is not None else None
        case "findings":
            return span(_findings_words(report), "bad")
        case "planned":
            return span(_planned_words(report.plan)) if report.plan is not None else None
        case "interrupted":
            return span("Interrupted. Nothing unproven has a final name; what arrived is kept.", "warn")
        case "failed":
            return span(_failed_words(report), "bad") if report.plan is not None else None
        case _:
            return None


def _failed_words(report: Report) -> str:
    done = sum(outcome.status == "done" for outcome in report.outcomes)
    what = f", after {count(done, 'step')} that went well" if done else ""
    return f"{report.command.capitalize()} failed{what}."


def _ok_words(report: Report, plan: FilesPlan) -> str:
    words = f"All is as the manifest asks: {count(len(plan.set.artifacts), 'file')}, {human_bytes(plan.set.size)}."
    fetched = sum(outcome.bytes_fetched for outcome in report.outcomes)
    seconds = sum(outcome.seconds for outcome in report.outcomes if outcome.bytes_fetched)
    bases = [check.basis for check in plan.checks]
    if fetched:
        return f"{words} Fetched {human_bytes(fetched)} in {human_duration(seconds)}."
    if "size" in bases:
        return f"{words} That is by size only for {count(bases.count('size'), 'file')}; verify reads every byte."
    if "receipt" in bases:
        return f"{words} That is by the receipts; verify without --quick reads every byte."
    return words


def _findings_words(report: Report) -> str:
    """Return how many files and problems there are, in numbers a person can act on."""
    checks = report.plan.checks if report.plan else ()
    wrong = [check for check in checks if check.status != "ok"]
    problems = [finding for finding in all_findings(report) if finding.severity == "problem"]
    parts = (
        [f"{len(wrong)} of {count(len(checks), 'file')} {'is' if len(wrong) == 1 else 'are'} not as the manifest asks"]
        if wrong
        else []
    )
    parts += [count(len(problems), "problem")] if problems else []
    if not parts:
        parts = [f"{count(len(report.plan.steps), 'step')} still to do"] if report.plan else ["Something was found"]
    return f"{'; '.join(parts)}."


def _planned_words(plan: FilesPlan | None) -> str:
    if plan is None or not plan.steps:
        return "Nothing to do."
    return f"Nothing was changed. {count(len(plan.steps), 'step')}, {human_bytes(plan.bytes_to_fetch)} to fetch."
