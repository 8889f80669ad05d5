"""The diagnosis on the page: who is guilty, and every start of ComfyUI as evidence."""

from __future__ import annotations

from provisioner.core.units import human_duration
from provisioner.report.html.markup import Html, badge, element, facts, joined, paragraphs, path, section, table
from provisioner.report.html.node import Node

_RESULTS = {"image": ("the image came", "good"), "failed": ("failed", "bad"), "unclear": ("took too long", "warn")}


def diagnosis_section(document: Node) -> Html:
    """Return what a diagnosis found and how; nothing where there was none."""
    diagnosis = document.at("details", "diagnosis")
    if not diagnosis:
        return Html("")
    tries = diagnosis.at("tries").rows
    is_over = diagnosis.at("is_over").flag is True
    guilty = [each.at("sentence").text for each in diagnosis.at("guilty").rows]
    said = [] if is_over and guilty else guilty or [diagnosis.at("conclusion").text]  # the findings have said it
    options, origin = " ".join(diagnosis.at("options").texts), diagnosis.at("options_from").text
    conditions = facts(
        [
            ("Your options", f"{options} (from {origin})" if options else ""),
            ("Custom nodes", ", ".join(diagnosis.at("custom_nodes").texts)),
        ]
    )
    evidence = table(
        "Each start of ComfyUI",
        ("Start", "Without what", "Result", "Took", "Options of this start", "Log"),
        [_row(number, each) for number, each in enumerate(tries, 1)],
        numbers=("Took",),
    )
    title = "Diagnosis" if is_over else "Diagnosis, so far"
    return section(title, paragraphs(said), conditions, evidence, name="diagnosis")


def _row(number: int, each: Node) -> list[str]:
    result = badge(*_RESULTS.get(each.at("result").text, ("not known", "plain")))
    message = each.at("trouble", "message").text
    nodes = each.at("custom_nodes")
    words = [*each.at("options").texts, *each.at("extra").texts]
    if nodes.rows or nodes.texts:
        words.append(f"custom nodes: {', '.join(nodes.texts)}")
    log, seconds = each.at("log_path").text, each.at("seconds").number
    took = "" if seconds is None else human_duration(seconds)
    return [
        str(number),
        each.at("what").text,
        joined([result, element("p", message) if message else ""]),
        f"{took}, in an earlier run" if each.at("was_known").flag is True else took,
        " ".join(words),
        path(log) if log else "",
    ]
