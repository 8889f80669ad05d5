"""A fleet as one HTML page: a table with a row for each host, and below it a section for each that needs attention.

Like the page of one run it is a single file that loads nothing, and shows documents of any content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.core.units import count, human_bytes
from provisioner.report.fleet_comparison import (
    STATES,
    Fleet,
    FleetHost,
    FleetState,
    cost_words,
    difference_words,
    files_words,
    gpu_words,
    headline,
    stale_words,
    whole_cost_words,
)
from provisioner.report.html.markup import (
    Html,
    badge,
    bullets,
    code,
    command_block,
    element,
    facts,
    joined,
    paragraphs,
    prose,
    section,
    table,
)
from provisioner.report.html.moments import moment
from provisioner.report.html.page import whole_page
from provisioner.report.html.verdict import Tone

_TONES: dict[FleetState, Tone] = {
    "failed": "bad",
    "differs": "warn",
    "missing": "warn",
    "stale": "warn",
    "unchecked": "plain",
    "in-line": "good",
}
_HEADINGS = ("Host, GPU", "State", "Set", "ComfyUI, torch", "Files", "To fetch")


def render_fleet_page(
    fleet: Fleet, *, made_at: str, manifests: Sequence[str] = (), program: Program = KLEIN_SETUP
) -> str:
    """Return the page of a fleet.

    Parameters
    ----------
    fleet : Fleet
        The hosts, in the order in which they are shown.
    made_at : str
        When the page is made, ISO 8601.
    manifests : sequence of str
        The locks that were given, as they were named.
    program : Program, optional
        How the commands to paste call this program.

    Returns
    -------
    str
        The whole HTML document; write it as UTF-8.
    """
    title = headline(fleet)
    tone: Tone = _TONES[fleet.hosts[0].state] if fleet.hosts else "plain"
    tone = "warn" if fleet.unusable and tone in {"good", "plain"} else tone
    header = element(
        "header",
        element("h1", title),
        element("p", "made ", element("time", moment(made_at), datetime=made_at), class_="about"),
        _tiles(fleet),
        class_=tone,
    )
    names = {each.host: f"host-{number}" for number, each in enumerate(fleet.hosts, start=1) if _needs_attention(each)}
    rows = [_row(each, names.get(each.host)) for each in fleet.hosts]
    overview = section(
        "Hosts", table("Hosts", _HEADINGS, rows, numbers=("To fetch",)), _compared_with(fleet, manifests), name="hosts"
    )
    unusable = section(
        "Files that are no documents",
        table(
            "Files that are no documents", ("File", "Why"), [(code(each.file), each.reason) for each in fleet.unusable]
        ),
        element("p", "Fix or remove them: the host of such a file is not known.") if fleet.unusable else "",
        name="unusable",
    )
    attention = [_host(each, names[each.host]) for each in fleet.hosts if each.host in names]
    body = element("main", header, _to_do(fleet, manifests, program), overview, unusable, *attention)
    return whole_page(f"klein-setup: {title}", body)


def _tiles(fleet: Fleet) -> Html:
    states = Counter(each.state for each in fleet.hosts)
    unknown = fleet.hosts_with_unknown_bytes
    found = (
        ("In line", f"{states['in-line']} of {len(fleet.hosts)}", ""),
        ("Differ", str(states["differs"]), ""),
        ("Failed", str(states["failed"]), ""),
        ("Too old or missing", str(states["stale"] + states["missing"] + states["unchecked"]), ""),
        (
            "To fetch in all",
            human_bytes(fleet.bytes_to_fetch),
            f"and more on {count(unknown, 'host')}" if unknown else "",
        ),
    )
    items = [
        element(
            "li",
            element("span", label, class_="label"),
            element("span", value, class_="value"),
            element("span", note, class_="note") if note else "",
        )
        for label, value, note in found
    ]
    return element("ul", *items, class_="tiles")


def _to_do(fleet: Fleet, manifests: Sequence[str], program: Program) -> Html:
    """Return a command for each kind of trouble; none comes from a document, which anybody may have written."""
    options = ["--manifest", manifests[0]] if len(manifests) == 1 else []
    states = {each.state for each in fleet.hosts}
    kinds = {each.what for host in fleet.hosts for each in host.differences}
    again = f"{program.command('verify', [*options, '--json'])} > HOST.json"
    commands = (
        (kinds & {"file", "manifest"}, "Where files differ:", program.command("repair", options)),
        (
            kinds & {"torch", "package"},
            "Where torch or another package differs:",
            program.command("repair", [*options, "--only", "environment"]),
        ),
        (
            kinds & {"comfyui"},
            "Where ComfyUI differs, for the pinned release:",
            program.command("install", [*options, "--update-comfyui"]),
        ),
        (states - {"in-line"}, "For a new document, afterwards or where it is missing or too old:", again),
    )
    parts = [joined([element("p", said), command_block(command)]) for is_needed, said, command in commands if is_needed]
    return section("What to do", element("p", whole_cost_words(fleet)), *parts, name="next") if parts else Html("")


def _compared_with(fleet: Fleet, manifests: Sequence[str]) -> Html:
    if fleet.reference == "lock":
        against = joined(["Compared with ", joined(map(code, manifests), ", "), "."])
    else:
        against = Html("Compared with what most hosts have: sets and torch among hosts with the same GPUs.")
    is_trusting = any(each.files_read < each.files_correct for each in fleet.hosts)
    trusted = "Not read: the receipt of an earlier run was trusted." if is_trusting else ""
    return joined([element("p", against), paragraphs([trusted, stale_words(fleet)])])


def _needs_attention(host: FleetHost) -> bool:
    return host.state in {"failed", "differs"}


def _row(host: FleetHost, name: str | None) -> list[str]:
    return [
        _two(element("a", host.host, href=f"#{name}-title") if name else host.host, gpu_words(host)),
        badge(STATES[host.state], _TONES[host.state]),
        _two(host.set, host.manifest),
        _two(host.comfyui, f"torch {host.torch}" if host.torch else ""),
        _two(files_words(host), _when(host.checked_at)),
        cost_words(host),
    ]


def _two(first: str, second: str) -> str:
    """Return a cell with a smaller second line; empty where both are."""
    return element("span", first, element("span", second, class_="sub") if second else "") if first or second else ""


def _host(host: FleetHost, name: str) -> Html:
    """Return the section of one host: what is wrong, what failed, and what it is."""
    said = [
        element(
            "li",
            element("p", prose(each.message or "An error without a message."), class_="message"),
            *([element("p", element("strong", "Hint: "), prose(each.hint))] if each.hint else []),
            element("p", badge(each.code, "bad")),
            class_="bad",
        )
        for each in host.errors
    ]
    command = host.command or "run"
    rows = [
        ("Set", _set_words(host)),
        ("GPU", gpu_words(host)),
        ("Driver", host.driver),
        ("ComfyUI", joined([host.comfyui, *([" ", code(host.comfyui_commit)] if host.comfyui_commit else [])])),
        ("torch", host.torch),
        ("Files", files_words(host)),
        ("Checked", _when(host.checked_at)),
        ("Newest run", joined([command, ", ", _when(host.ended_at) or "without a date"])),
        ("Document", code(host.file)),
        ("To fetch", f"{cost_words(host)}, {count(host.steps, 'step')}" if host.steps else ""),
    ]
    failed = f"The last {command} did not end well." if host.state == "failed" else ""
    return section(
        host.host,
        element("p", badge(STATES[host.state], _TONES[host.state])),
        paragraphs([failed]),
        element("ul", *said, class_="said") if said else "",
        bullets(prose(difference_words(each)) for each in host.differences),
        facts(rows),
        element("p", element("a", "Back to all hosts", href="#hosts-title")),
        name=name,
    )


def _set_words(host: FleetHost) -> str:
    return f"{host.manifest}, set {host.set}" if host.manifest and host.set else host.manifest


def _when(text: str) -> str:
    return element("time", moment(text), datetime=text) if text else ""
