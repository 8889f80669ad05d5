"""The first thing the page says: in one sentence, how it stands."""

from __future__ import annotations

from typing import Literal

from provisioner.core.units import count, human_bytes, human_duration
from provisioner.report.html.node import Node

Tone = Literal["good", "warn", "bad", "plain"]

_KICKERS: dict[str, tuple[str, Tone]] = {
    "ok": ("In order", "good"),
    "planned": ("A plan", "plain"),
    "findings": ("Something needs you", "warn"),
    "failed": ("It failed", "bad"),
    "interrupted": ("Interrupted", "warn"),
}


def kicker(document: Node) -> tuple[str, Tone]:
    """Return how a run ended in a word or two, and how to colour it."""
    if document.at("status").text == "ok" and document.at("command").text == "detect":
        return "Looked at", "plain"
    return _KICKERS.get(document.at("status").text, ("Not known", "plain"))


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
            return "The run was interrupted before its end; what had arrived is kept."
        case _:
            return "This document does not say how the run ended."


def has_image(document: Node) -> bool:
    """Whether a picture came out and nothing was wrong with it."""
    return document.at("details", "smoke_test", "is_proven").flag is True


def _ok_words(document: Node) -> str:
    checks = document.at("checks").rows
    parts = [f"{_all_files(len(checks))} {_as_asked(checks)}"] if checks else []
    if document.at("details", "environment", "holds").flag is True:
        parts.append("the torch environment still holds")
    if has_image(document):
        seconds = document.at("details", "smoke_test", "timings", "total_s").number
        parts.append("a picture came out" + (f" in {human_duration(seconds)}" if seconds is not None else ""))
    if not parts:
        return _nothing_checked_words(document)
    sentence = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    return f"{sentence[0].upper()}{sentence[1:]}."


def _all_files(number: int) -> str:
    return "the one file is" if number == 1 else f"all {number} files are"


def _as_asked(checks: list[Node]) -> str:
    """Return what the files are said to be, and how far that was looked at."""
    bases = {check.at("basis").text for check in checks}
    if "size" in bases:
        return "as the manifest asks, going by size"
    if "receipt" in bases:
        return "as the manifest asks, going by the receipts"
    return "as the manifest asks"


def _nothing_checked_words(document: Node) -> str:
    command = document.at("command").text
    if command == "detect":
        backend = document.at("details", "torch", "build", "torch_backend").text
        if backend == "cpu":
            return "On this machine torch computes on the CPU: there is no GPU that it has a build for."
        return f"This machine suits the {backend} build of torch." if backend else "This machine was looked at."
    return f"{_capital(command) or 'The run'} ended well."


def _planned_words(document: Node) -> str:
    steps = document.at("steps").rows
    if not steps:
        return "Nothing is to do: everything is in place."
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
        parts.append(f"{wrong} of {count(len(checks), 'file')} {verb} not as the manifest asks")
    if problems:
        parts.append(f"{count(problems, 'problem')} {'was' if problems == 1 else 'were'} found")
    return f"{' and '.join(parts) or 'Something was found'}."


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
