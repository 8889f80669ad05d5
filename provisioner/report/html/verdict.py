"""The headline of the page: the result in one sentence."""

from __future__ import annotations

from typing import Literal

from provisioner.core.units import count, human_bytes, human_duration
from provisioner.report.html.node import Node

Tone = Literal["good", "warn", "bad", "plain"]

_KICKERS: dict[str, tuple[str, Tone]] = {
    "ok": ("OK", "good"),
    "planned": ("Plan", "plain"),
    "findings": ("Action needed", "warn"),
    "failed": ("Failed", "bad"),
    "interrupted": ("Interrupted", "warn"),
}

HASHED = {
    "fetch-file": "downloaded and hashed in this run",
    "patch-file": "repaired and hashed in this run",
    "place-file": "copied and hashed in this run",
    "move-file": "moved and hashed in this run",
    "record-receipt": "every byte was read in this run",
}
"""The steps at whose end a file was read as a whole."""


def kicker(document: Node) -> tuple[str, Tone]:
    """Return how a run ended in a word or two, and its colour."""
    if document.at("status").text == "ok" and document.at("command").text == "detect":
        return "Detected", "plain"
    if document.at("status").text == "ok" and warnings(document):
        return f"OK, with {count(len(warnings(document)), 'warning')}", "warn"
    return _KICKERS.get(document.at("status").text, ("Unknown", "plain"))


def verdict(document: Node) -> str:
    """Return the sentence."""
    match document.at("status").text:
        case "ok":
            return _ok_words(document)
        case "planned":
            return _planned_words(document)
        case "findings":
            return _findings_words(document)
        case "failed":
            return _failed_words(document)
        case "interrupted":
            return "The run was interrupted; what was fetched is kept."
        case _:
            return "This document does not say how the run ended."


def warnings(document: Node) -> set[str]:
    """Return what the run warns of, each once."""
    return {row.at("message").text or row.at("code").text for row in all_findings(document)}


def all_findings(document: Node) -> list[Node]:
    """Return the findings of the run, and of its test image."""
    return [*document.at("findings").rows, *document.at("details", "smoke_test", "findings").rows]


def basis_of(document: Node, check: Node) -> str:
    """Return how a file was checked; the kind of the step where this run itself wrote and hashed it a moment ago."""
    basis = check.at("basis").text
    if basis != "receipt":
        return basis
    where = check.at("destination").text or check.at("path").text
    done = (
        step.at("kind").text
        for step in document.at("steps").rows
        if step.at("outcome", "status").text == "done"
        and where == (step.at("destination").text or step.at("path").text)
        and step.at("kind").text in HASHED
    )
    return next(done, basis)


def has_image(document: Node) -> bool:
    """Whether an image was generated and has no problem."""
    return document.at("details", "smoke_test", "is_proven").flag is True


def _ok_words(document: Node) -> str:
    checks = document.at("checks").rows
    parts = [f"{_all_files(len(checks))} {_correct_words(document)}"] if checks else []
    if document.at("details", "environment", "holds").flag is True:
        parts.append("the torch environment works")
    if has_image(document):
        seconds = document.at("details", "smoke_test", "timings", "total_s").number
        parts.append("a test image was generated" + (f" in {human_duration(seconds)}" if seconds is not None else ""))
    if not parts:
        return _nothing_checked_words(document)
    sentence = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    return f"{sentence[0].upper()}{sentence[1:]}."


def _all_files(number: int) -> str:
    return "the one file is" if number == 1 else f"all {number} files are"


def _correct_words(document: Node) -> str:
    """Return that the files are correct, and how that was checked."""
    bases = {basis_of(document, check) for check in document.at("checks").rows}
    if "size" in bases:
        return "correct (only the size was checked)"
    if "receipt" in bases:
        return "correct (receipts trusted)"
    return "correct"


def _nothing_checked_words(document: Node) -> str:
    command = document.at("command").text
    if command == "detect":
        backend = document.at("details", "torch", "build", "torch_backend").text
        if backend == "cpu":
            return "torch runs on the CPU here: it has no build for a GPU of this machine."
        return f"The {backend} build of torch fits this machine." if backend else "This machine was detected."
    return f"{_capital(command) or 'The run'} completed."


def _planned_words(document: Node) -> str:
    steps = document.at("steps").rows
    if not steps:
        return "Nothing to do: everything is in place."
    fetched = document.at("totals", "bytes_to_fetch").number
    words = f"Nothing was changed yet: {count(len(steps), 'step')} to do"
    return f"{words}, {human_bytes(fetched)} to fetch." if fetched else f"{words}, nothing to fetch."


def _findings_words(document: Node) -> str:
    checks = document.at("checks").rows
    wrong = sum(check.at("status").text != "ok" for check in checks)
    problems = sum(each.at("severity").text == "problem" for each in document.at("findings").rows)
    parts = []
    if wrong:
        verb = "is" if wrong == 1 else "are"
        parts.append(f"{wrong} of {count(len(checks), 'file')} {verb} wrong or missing")
    if problems:
        parts.append(f"{count(problems, 'problem')} {'was' if problems == 1 else 'were'} found")
    return f"{' and '.join(parts) or 'There are findings'}."


def _failed_words(document: Node) -> str:
    command = _capital(document.at("command").text) or "The run"
    reasons = [each.at("message").text for each in document.at("errors").rows]
    reason = next((each for each in reasons if each), "")
    first = reason.split("\n", 1)[0].strip()
    if not first:
        return f"{command} failed."
    short = first if len(first) <= 160 else f"{first[:157].rstrip()}..."
    return f"{command} failed: {short}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
