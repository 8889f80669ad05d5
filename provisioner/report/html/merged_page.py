"""The runs of many machines as one HTML page: a table with a row for each, and below it a section for each.

Like the page of one run it is a single file that loads nothing, and shows documents of any content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from provisioner.core.units import count, gib, human_bytes, human_duration
from provisioner.report.html.markup import (
    Html,
    badge,
    bullets,
    command_block,
    element,
    facts,
    joined,
    path,
    prose,
    section,
    table,
)
from provisioner.report.html.moments import moment
from provisioner.report.html.node import Node
from provisioner.report.html.page import whole_page
from provisioner.report.html.sections import set_words, status_badge
from provisioner.report.html.verdict import Tone, kicker, verdict

_HEADINGS = ("Host", "GPU", "Driver", "Set", "Result", "Took", "Findings", "When")
_WORST_FIRST: tuple[Tone, ...] = ("bad", "warn", "plain", "good")


def render_merged_page(documents: Sequence[Mapping[str, object]], *, made_at: str) -> str:
    """Return the page of many machines, in the order given.

    Parameters
    ----------
    documents : sequence of mapping
        A ``--json`` document of each machine; `report.merge` has checked them.
    made_at : str
        When the page is made, ISO 8601.

    Returns
    -------
    str
        The whole HTML document; write it as UTF-8.
    """
    nodes = [Node(each) for each in documents]
    words = Counter(_result(node) for node in nodes)
    ordered = sorted(words, key=lambda each: (_WORST_FIRST.index(each[1]), each[0]))
    title = f"{count(len(nodes), 'machine')}: {', '.join(f'{words[each]} {each[0]}' for each in ordered)}"
    header = element(
        "header",
        element("h1", title),
        element("p", "made ", element("time", moment(made_at), datetime=made_at), class_="about"),
        class_=ordered[0][1] if ordered else "plain",
    )
    rows = [_row(node, _name(number)) for number, node in enumerate(nodes, start=1)]
    overview = section("Machines", table("Machines", _HEADINGS, rows, numbers=("Took", "Findings")), name="machines")
    machines = [_machine(node, _name(number)) for number, node in enumerate(nodes, start=1)]
    return whole_page(f"klein-setup: {title}", element("main", header, overview, *machines))


def _result(document: Node) -> tuple[str, Tone]:
    """Return how a run ended, in the same words whatever the number of its warnings, and its colour."""
    word, tone = kicker(document)
    return ("OK with warnings" if document.at("status").text == "ok" and tone == "warn" else word), tone


def _name(number: int) -> str:
    return f"machine-{number}"


def _row(document: Node, name: str) -> list[str]:
    seconds = document.at("seconds").number
    return [
        element("a", _host(document), href=f"#{name}-title"),
        _gpus(document),
        document.at("machine", "driver_version").text,
        set_words(document),
        badge(*kicker(document)),
        human_duration(seconds) if seconds is not None else "",
        str(len(_complaints(document))),
        _when(document),
    ]


def _machine(document: Node, name: str) -> Html:
    """Return the section of one machine: its result, what it is, what is wrong, and what to run."""
    checks = document.at("checks").rows
    right = sum(check.at("status").text == "ok" for check in checks)
    wrong = [check for check in checks if check.at("status").text != "ok"]
    versions, target = document.at("versions"), document.at("target", "path").text
    memory = document.at("machine", "memory_total_bytes").whole
    rows = [
        ("Command", f"klein-setup {document.at('command').text}"),
        ("Set", set_words(document)),
        ("Folder", path(target) if target else ""),
        ("Files", f"{right} of {len(checks)} correct" if checks else ""),
        ("GPU", _gpus(document)),
        ("Driver", document.at("machine", "driver_version").text),
        ("Memory", gib(memory) if memory is not None else ""),
        ("ComfyUI", versions.at("comfyui").text),
        ("torch", versions.at("torch").text),
        ("klein-setup", versions.at("klein_setup").text),
        ("When", _when(document)),
    ]
    command = document.at("next_command").text
    return section(
        _host(document),
        element("p", badge(*kicker(document)), " ", verdict(document)),
        bullets(_complaints(document)),
        table("Files that are not correct", ("File", "Status", "Size"), [_file(each) for each in wrong]),
        facts(rows),
        element("p", "To run there:") if command else "",
        command_block(command) if command else "",
        element("p", element("a", "Back to all machines", href="#machines-title")),
        name=name,
    )


def _file(check: Node) -> list[str]:
    size = check.at("expected_size").number
    return [path(check.at("path").text), status_badge(check), human_bytes(size) if size is not None else ""]


def _complaints(document: Node) -> list[Html]:
    """Return errors and findings, each with its hint."""
    rows = [*document.at("errors").rows, *document.at("findings").rows]
    said = []
    for row in rows:
        hint = row.at("hint").text
        said.append(joined([prose(row.at("message").text), *([" ", prose(hint)] if hint else [])]))
    return said


def _host(document: Node) -> str:
    return document.at("host").text


def _gpus(document: Node) -> str:
    """Return the names of the GPUs, each once, with their number."""
    names = Counter(gpu.at("name").text for gpu in document.at("machine", "gpus").rows)
    return ", ".join(name if number == 1 else f"{number} x {name}" for name, number in names.items())


def _when(document: Node) -> str:
    ended_at = document.at("ended_at").text
    return element("time", moment(ended_at), datetime=ended_at) if ended_at else ""
