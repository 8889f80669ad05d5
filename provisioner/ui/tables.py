"""The text of a plan and of a report: a row per file, then a summary and the next command.

Values in, blocks of text out; no width, no colour code, no stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    FileStep,
    Finding,
    FolderLink,
    Licence,
    LinkConsent,
    MoveFile,
    Outcome,
    PatchFile,
    PlaceFile,
    RecordReceipt,
    SpaceNeed,
    Target,
)
from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.core.units import count, exact_bytes, human_bytes, human_duration, human_rate, listing
from provisioner.files.layout import known_as
from provisioner.plan.steps import (
    FILE_STEPS,
    ComfyUIStep,
    GenerateImage,
    GetComfyUI,
    InstallNodePack,
    InstallPackages,
    KeepComfyUI,
    KeepEnvironment,
    MakeEnvironment,
    MoveNodePack,
    Plan,
    Remove,
    RepairEnvironment,
    StartComfyUI,
    Step,
    UpdateComfyUI,
    download_of,
    replaced_by,
)
from provisioner.report.outcome import Report, all_findings, next_command
from provisioner.ui.problems import finding_blocks
from provisioner.ui.text import (
    BLANK,
    Block,
    Column,
    Grid,
    Line,
    Para,
    Row,
    Span,
    Style,
    pair,
    pair_blocks,
    path_span,
    span,
)

if TYPE_CHECKING:
    from provisioner.torch.builds import App, TorchChoice

_BASES: dict[Basis, str] = {
    "sha256": "every byte read",
    "blocks": "every byte read, in blocks",
    "receipt": "receipt trusted, not read",
    "size": "size checked only",
    "none": "",
}

_VERDICTS: dict[CheckStatus, tuple[str, Style]] = {
    "ok": ("ok", "good"),
    "missing": ("missing", "bad"),
    "size-mismatch": ("wrong size", "bad"),
    "hash-mismatch": ("wrong bytes", "bad"),
    "unreadable": ("unreadable", "bad"),
}

_APP_NAMES: dict[App, str] = {"comfyui": "ComfyUI", "diffusers": "diffusers"}
_FILE_COLUMNS = (Column(), Column(is_path=True), Column(align="right"), Column(is_optional=True))


# --- the plan ----------------------------------------------------------------------------------


def plan_blocks(plan: Plan) -> list[Block]:
    """Return the plan: a row per step and file in the order in which they are told, then totals, space and findings."""
    from provisioner.ui.facts import licence_notice_blocks  # a plan speaks of the licence, a report does not

    blocks: list[Block] = [
        *_choice_blocks(plan),
        _heading("Plan", plan),
        BLANK,
        Grid(columns=_FILE_COLUMNS, rows=tuple(_plan_rows(plan))),
        BLANK,
    ]
    facts = _fact_rows(plan)
    facts += [pair("licence", f"{each.name}, {each.url}") for each in plan.manifest.licences if _is_free(each)]
    blocks += pair_blocks(facts)
    blocks += [block for each in plan.manifest.licences for block in licence_notice_blocks(each)]
    blocks += [Para(line=span(f"{each} is what the tag names now.")) for each in plan.pinned]
    blocks += [Para(line=span(note, "warn")) for note in plan.notes]
    blocks += finding_blocks(plan.findings)
    return blocks


def _is_free(licence: Licence) -> bool:
    return licence.is_commercial_use_allowed is True


def _plan_rows(plan: Plan) -> list[Row]:
    """Return the rows of a plan in the order of its steps; files with nothing to do come first among the files.

    ComfyUI is started for the test image, whose row says with what it is generated.
    """
    others = [step for step in plan.steps if not isinstance(step, (*FILE_STEPS, StartComfyUI))]
    rows = [_other_row(step) for step in others]
    if plan.is_about_files:
        number = sum(isinstance(step, ComfyUIStep) for step in others)  # before the files
        order = [step.artifact.id for step in plan.file_steps]
        place = {
            artifact.id: order.index(artifact.id) if artifact.id in order else -1 for artifact in plan.set.artifacts
        }
        files = sorted(plan.set.artifacts, key=lambda artifact: place[artifact.id])
        rows[number:number] = [_plan_row(plan, artifact) for artifact in files]
    return rows


def _choice_blocks(plan: Plan) -> list[Block]:
    """Return the machine, the set that was chosen for it, and why."""
    choice = plan.choice
    if choice is None or not (choice.machine or choice.because):
        return []
    words = f"set {plan.set.id}, {human_bytes(plan.set.size)}"
    line = (Span(f"{choice.machine}: " if choice.machine else ""), Span(words, "title"))
    why = [Para(line=span(f"because {choice.because}", "dim"), indent=2)] if choice.because else []
    return [Para(line=line, hang=2), *why, BLANK]


def _heading(title: str, plan: Plan, preposition: str = "into") -> Block:
    """Return the line that names the manifest, the set and the target."""
    return Para(
        line=(
            Span(title, "title"),
            Span(f"  {plan.manifest.title}, set {plan.set.id}: {plan.set.title}\n"),
            Span(f"{preposition} "),
            *target_words(plan.target),
        ),
        hang=len(title) + 2,
    )


def target_words(target: Target) -> Line:
    """Return the target as a sentence names it."""
    if isinstance(target, ComfyTarget):
        kind = "bundle" if target.is_bundle else "ComfyUI models folder"
        words = f"the {'new ' if target.is_new else ''}{kind} "
        return (Span(words), Span(str(target.models)) if target.is_new else path_span(target.models))
    return (Span("the Hugging Face cache "), path_span(target.cache))


def _plan_row(plan: Plan, artifact: Artifact) -> Row:
    """Return one file's row: what will be done, its path, its size, and why."""
    steps = [step for step in plan.file_steps if step.artifact.id == artifact.id]
    check = next((each for each in plan.checks if each.artifact.id == artifact.id), None)
    word, style = _action(steps, check)
    return Row(
        (Span(word, style), Span(_place(plan, artifact, steps, check)), Span(human_bytes(artifact.size)), Span("")),
        tuple(_plan_notes(artifact, steps, check, plan.target)),
    )


def _other_row(step: Step) -> Row:
    """Return the row of a step that is not about a model file: what is done, where, roughly how large, and why."""
    word, style, place, what = _other_words(step)
    download = download_of(step)
    size = f"~{human_bytes(download.fetched_bytes)}" if download is not None and download.fetched_bytes else ""
    reason = f"{what}; {step.reason}" if what else step.reason
    return Row((Span(word, style), Span(place), Span(size), Span("")), (span(reason, "dim"), *_trust_notes(step)))


def _trust_notes(step: Step) -> list[tuple[Span, ...]]:
    """Return what has to be agreed to beside the bytes: files that nobody named a SHA-256 of."""
    if not isinstance(step, MakeEnvironment):
        return []
    return [span(each.message, "warn") for each in step.choice.warnings if each.code == "no-digests"]


def _other_words(step: Step) -> tuple[str, Style, str, str]:
    """Return a word for what is done, its style, the place, and what it is about."""
    word: tuple[str, Style]
    match step:
        case GetComfyUI():
            return "get", "command", str(step.folder), f"ComfyUI {step.release.version} ({step.release.commit[:12]})"
        case UpdateComfyUI():
            return "update", "warn", str(step.folder), f"ComfyUI to {step.release.version}, which can be undone"
        case MoveNodePack():
            return "move", "warn", str(step.folder), f"a custom node, to {step.commit[:12]}"
        case InstallNodePack():
            what = f"custom nodes{f' {step.pack.version}' if step.pack.version else ''}, {step.pack.pin}"
            return "install", "warn", str(step.folder), what
        case KeepComfyUI():
            return "keep", "good", str(step.folder), f"ComfyUI {step.version}" if step.version else "ComfyUI"
        case MakeEnvironment():
            word = ("replace", "warn") if step.replaces else ("make", "command")
            return *word, str(step.where), _torch_words(step.choice)
        case RepairEnvironment():
            return "repair", "warn", str(step.where), _torch_words(step.choice)
        case KeepEnvironment():
            return "keep", "good", str(step.where), _torch_words(step.choice) if step.choice is not None else ""
        case InstallPackages():
            word = ("repair", "warn") if step.restores else ("install", "command")
            return *word, str(step.where), f"what {_APP_NAMES[step.app]} requires beside torch"
        case GenerateImage():
            return "generate", "command", "test image", f"with {_APP_NAMES[step.app]}"
        case Remove():
            return "remove", "warn", str(step.path), ""
        case _:
            raise AssertionError(step.kind)  # a file's row is another function's


def _torch_words(choice: TorchChoice) -> str:
    newest, build = choice.build.sets[0], choice.build
    named = (("torch", newest.torch), ("torchvision", newest.torchvision), ("torchaudio", newest.torchaudio))
    versions = ", ".join(f"{name} {version}" for name, version in named if version)
    extras = f" with {listing(build.device_extras)}" if build.device_extras else ""
    return f"{versions} ({build.torch_backend}{extras}, from {build.index_url or 'the default index'})"


def _action(steps: Sequence[FileStep], check: Check | None) -> tuple[str, Style]:
    """Return what will be done with a file, in a word or two."""
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
    return _VERDICTS[check.status] if check is not None else ("not checked", "dim")


def _place(plan: Plan, artifact: Artifact, steps: Sequence[FileStep], check: Check | None) -> str:
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
    return destination.label


def _plan_notes(artifact: Artifact, steps: Sequence[FileStep], check: Check | None, target: Target) -> list[Line]:
    """Return the reasons, what happens to the present file, and what that is."""
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
    """Return the reasons that are not part of another one."""
    unique = list(dict.fromkeys(reasons))
    return [each for each in unique if not any(each != other and each in other for other in unique)]


def _consequence(step: FileStep, target: Target) -> str:
    """Return what a step does that the row's first word and its reason do not say."""
    match step:
        case FetchFile(held_bytes=0) | PatchFile():
            return ""
        case PlaceFile() | MoveFile():
            where = known_as(step.copy.path, target)
            return "" if where in step.reason else f"from the {step.copy.origin} at {where}"
        case FetchFile():
            return f"{human_bytes(step.held_bytes)} already here, {human_bytes(step.bytes_to_fetch)} to fetch"
        case RecordReceipt():
            return "its receipt will be written"


def _fact_rows(plan: Plan) -> list[Row]:
    """Return the exact size of the set, how much of it has to be fetched, and the disk space for it."""
    fetched = [step for step in plan.steps if isinstance(step, (FetchFile, PatchFile)) and step.bytes_to_fetch]
    rows = (
        [pair("the set", f"{exact_bytes(plan.set.size)} ({human_bytes(plan.set.size)})")] if plan.is_about_files else []
    )
    words = []
    if fetched:
        model_bytes = human_bytes(plan.bytes_to_fetch - plan.estimated_bytes)
        words.append(f"{model_bytes} in {count(len(fetched), 'file')}")
    if plan.estimated_bytes:
        words.append(f"about {human_bytes(plan.estimated_bytes)} for ComfyUI, torch and packages")
    if len(words) > 1:
        words[0] = f"{human_bytes(plan.bytes_to_fetch)}: {words[0]}"
    if words:
        rows.append(pair("to fetch", f"{', '.join(words)}{_time_words(plan)}", "title"))
    if plan.is_about_files and plan.bytes_saved:
        rows.append(pair("saved", f"{human_bytes(plan.bytes_saved)} already on this machine", "good"))
    rows += [pair("space", _space_words(need), "" if need.is_enough else "bad") for need in plan.space]
    rows += [pair("link", *_link_words(link)) for link in plan.links]
    if any(replaced_by(step) for step in plan.file_steps):
        rows.append(pair("backups", f"what is replaced moves to {STATE_FOLDER}/aside once the new file is verified"))
    return rows


def _time_words(plan: Plan) -> str:
    if plan.rate is None:
        return ""
    origin = "as --limit-rate says" if plan.rate.is_limit else "the rate of the last download"
    took = human_duration(plan.bytes_to_fetch / plan.rate.bytes_s)
    return f"; about {took} at {human_rate(plan.rate.bytes_s)}, {origin}"


def _link_words(link: FolderLink) -> tuple[str, Style]:
    agreed: dict[LinkConsent, tuple[str, Style]] = {
        "option": ("followed, as --follow-links says", ""),
        "remembered": ("followed, as you agreed in an earlier run", ""),
        "no": ("you are asked before it is followed; --follow-links agrees", "warn"),
    }
    words, style = agreed[link.consent]
    return f"{link.path} leads to {link.real}: {words}", style


def _space_words(need: SpaceNeed) -> str:
    free = need.file_system.free_bytes
    words = f"{human_bytes(need.needed_bytes)} needed, {human_bytes(free)} free on {need.file_system.path}"
    return words if need.is_enough else f"{words}: {human_bytes(need.needed_bytes - free)} short"


# --- the report --------------------------------------------------------------------------------


def report_blocks(
    report: Report, *, is_quiet: bool = False, program: Program = KLEIN_SETUP, said: Sequence[Finding] = ()
) -> list[Block]:
    """Return the result of a run: a row per file, the findings, one sentence, the next command.

    Quiet leaves out what is correct.  The report of a plan has no rows: ``plan_blocks`` showed them.  A warning that
    was `said` is not said again, a problem is: it stands.
    """
    plan = report.plan
    findings = tuple(each for each in all_findings(report) if each.severity == "problem" or each not in said)
    if report.cards:
        from provisioner.ui.smoke_text import cards_blocks

        return [*cards_blocks(report.cards), *finding_blocks(findings), *verdict_blocks(report, program)]
    if plan is None:
        return [*finding_blocks(findings), *verdict_blocks(report, program)]
    if report.status == "planned":
        return [
            *finding_blocks(each for each in findings if each not in plan.findings),
            *verdict_blocks(report, program),
        ]
    rows = [_report_row(report, plan, artifact) for artifact in plan.set.artifacts] if plan.is_about_files else []
    if is_quiet:
        rows = [row for row in rows if row.cells[0].style in {"bad", "warn"}]
        findings = tuple(each for each in findings if each.severity == "problem")
    preposition = {"verify": "in", "start": "in", "uninstall": "from"}.get(report.command, "into")
    head = [] if is_quiet else [_heading(report.command.capitalize(), plan, preposition), BLANK]
    grid = Grid(columns=_FILE_COLUMNS, rows=tuple(rows))
    gap = [BLANK] if rows or findings else []
    return [*head, grid, *finding_blocks(findings), *gap, *verdict_blocks(report, program)]


def _report_row(report: Report, plan: Plan, artifact: Artifact) -> Row:
    """Return one file's status, path, size and how it was checked."""
    done = [(outcome, outcome.step) for outcome in report.outcomes if isinstance(outcome.step, FILE_STEPS)]
    outcomes = [outcome for outcome, step in done if step.artifact.id == artifact.id]
    steps = [step for _, step in done if step.artifact.id == artifact.id]
    check = next((each for each in plan.checks if each.artifact.id == artifact.id), None)
    place = Span(_place(plan, artifact, steps, check))
    size = Span(human_bytes(artifact.size))
    if outcomes:
        # A receipt written again at the end is not the main result for a file that was moved or replaced.
        outcomes = [each for each in outcomes if not isinstance(each.step, RecordReceipt)] or outcomes
        word, style = _outcome_word(outcomes)
        said = [outcome.detail for outcome in outcomes if outcome.error is None]  # errors are shown in full below
        notes = [span(detail, "dim") for detail in dict.fromkeys(said) if detail]
        return Row((Span(word, style), place, size, Span("")), tuple(notes))
    if check is None:
        return Row((Span("not checked", "dim"), place, size, Span("")))
    word, style = _VERDICTS[check.status]
    notes = [*_check_notes(check), *_whereabouts(plan, artifact)]
    return Row((Span(word, style), place, size, Span(_BASES[check.basis], "dim")), tuple(notes))


def _whereabouts(plan: Plan, artifact: Artifact) -> list[Line]:
    """Return where on this machine a missing file's bytes may be."""
    copies = [
        step.copy
        for step in plan.file_steps
        if step.artifact.id == artifact.id and isinstance(step, (PlaceFile, MoveFile))
    ]
    return [span(f"its bytes may be in {known_as(copy.path, plan.target)}", "dim") for copy in copies]


def _outcome_word(outcomes: Sequence[Outcome]) -> tuple[str, Style]:
    """Return the result of all steps of one file in a word, the worst first."""
    last = outcomes[-1]
    if last.status != "done" and any(outcome.status == "failed" for outcome in outcomes):
        return "failed", "bad"  # a bad copy followed by another way that worked is no failure
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
        case _:
            return "ok", "good"


def _check_notes(check: Check) -> list[Line]:
    """Return what is wrong with a file."""
    lines: list[Line] = []
    if check.status == "size-mismatch" and check.observed_size is not None and check.damage is None:
        lines.append(span(f"{exact_bytes(check.observed_size)} instead of {exact_bytes(check.artifact.size)}"))
    if check.identity:
        lead = "damaged" if check.damage is not None else "why" if check.status == "unreadable" else "it is"
        lines.append(span(f"{lead}: {check.identity}", "warn"))
    if check.status != "ok" and check.held_bytes:
        lines.append(span(f"{human_bytes(check.held_bytes)} kept from an interrupted download", "dim"))
    return lines


def verdict_blocks(report: Report, program: Program = KLEIN_SETUP) -> list[Block]:
    """Return the last sentence of a run and the next command."""
    blocks: list[Block] = []
    sentence = _verdict(report)
    if sentence:
        blocks.append(Para(line=sentence))
    command = next_command(report, program)
    if command is not None:
        leads = {
            "findings": "To fix it:",
            "planned": "To apply it:",
            "interrupted": "To continue:",
            "failed": "To find out what is at fault:",
        }
        lead = leads.get(report.status, "To check again:")
        blocks += command_blocks(lead, command)
    return blocks


def command_blocks(lead: str, command: str, style: Style = "") -> list[Block]:
    """Return a command under what it is for, on a line of its own, so that it can be pasted."""
    return [Para(line=span(lead, style)), Para(line=span(command, "command"), indent=2, is_command=True)]


def _verdict(report: Report) -> Line | None:
    """Return the sentence that sums up the run; None where there is nothing to add."""
    match report.status:
        case "ok":
            return span(_ok_words(report, report.plan), "good") if report.plan is not None else None
        case "findings":
            return span(_findings_words(report), "bad") if report.fleet is None else None  # its table has said it
        case "planned":
            return span(_planned_words(report.plan)) if report.plan is not None else None
        case "interrupted":
            return span("Interrupted. No unverified file has its final name; what was fetched is kept.", "warn")
        case "failed":
            return span(_failed_words(report), "bad") if report.plan is not None else None
        case _:
            return None


def _failed_words(report: Report) -> str:
    done = sum(outcome.status == "done" for outcome in report.outcomes)
    what = f" after {count(done, 'completed step')}" if done else ""
    return f"{report.command.capitalize()} failed{what}."


def _ok_words(report: Report, plan: Plan) -> str:
    if not plan.is_about_files:
        return "Everything requested is done." if plan.steps else "Nothing to do."
    if report.scrub is not None and not report.outcomes:
        return "What was read is correct."
    number = len(plan.set.artifacts)
    files = f"All {number} files are" if number > 1 else "The one file is"
    words = f"{files} correct ({human_bytes(plan.set.size)})."
    fetched = sum(outcome.bytes_fetched for outcome in report.outcomes)
    seconds = sum(outcome.seconds for outcome in report.outcomes if outcome.bytes_fetched)
    bases = [check.basis for check in plan.checks]
    if fetched:
        return f"{words} Fetched {human_bytes(fetched)} in {human_duration(seconds)}."
    if "size" in bases:
        return f"{words} Of {count(bases.count('size'), 'file')} only the size was checked; verify reads every byte."
    if "receipt" in bases:
        return f"{words} The receipts were trusted; verify without --quick reads every byte."
    return words


def _findings_words(report: Report) -> str:
    """Return how many files are wrong and how many problems there are."""
    checks = report.plan.checks if report.plan else ()
    wrong = [check for check in checks if check.status != "ok"]
    problems = [finding for finding in all_findings(report) if finding.severity == "problem"]
    parts = (
        [f"{len(wrong)} of {count(len(checks), 'file')} {'is' if len(wrong) == 1 else 'are'} wrong or missing"]
        if wrong
        else []
    )
    parts += [count(len(problems), "problem")] if problems else []
    if not parts:
        parts = [f"{count(len(report.plan.steps), 'step')} still to do"] if report.plan else ["There are findings"]
    return f"{'; '.join(parts)}."


def _planned_words(plan: Plan | None) -> str:
    if plan is None or not plan.to_do:
        return "Nothing to do."
    if any(step.kind == "remove" for step in plan.to_do):
        return f"Nothing was removed. {count(len(plan.to_do), 'step')}, {human_bytes(plan.bytes_to_remove)} to remove."
    return f"Nothing was changed. {count(len(plan.to_do), 'step')}, {human_bytes(plan.bytes_to_fetch)} to fetch."
