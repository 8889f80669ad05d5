"""One run as one HTML page: the result, what was checked, the test image, what to do next.

The page is a single file: it loads no script, no font and no address, and its own policy forbids it.  Its one script
copies commands, and the policy names the script's digest.  It shows a document of `report.json_document` and decides
nothing; a key that is missing leaves a gap, never an error.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256

from provisioner.core.program import KLEIN_SETUP, Program
from provisioner.report.html.charts import time_section
from provisioner.report.html.diagnosis_section import diagnosis_section
from provisioner.report.html.footer import next_command_of, next_section, undo_section
from provisioner.report.html.image_section import cards_section, image_section
from provisioner.report.html.markup import Html, element, joined, path
from provisioner.report.html.moments import moment
from provisioner.report.html.node import Node
from provisioner.report.html.sections import (
    changes_section,
    errors_section,
    files_section,
    findings_section,
    machine_section,
    set_words,
    steps_section,
    tiles,
)
from provisioner.report.html.style import STYLE
from provisioner.report.html.verdict import Tone, kicker, verdict

_COPY = """
for(const b of document.querySelectorAll("button.copy")){const from=b.previousElementSibling;b.hidden=false;
b.addEventListener("click",async()=>{try{await navigator.clipboard.writeText(from.textContent)}
catch{getSelection().selectAllChildren(from);document.execCommand("copy")}
b.textContent="Copied";setTimeout(()=>{b.textContent="Copy"},2000)})}
"""


def _digest(text: str) -> str:
    """Return what a content security policy calls an inline script or style."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; style-src {_digest(STYLE)}; script-src {_digest(_COPY)}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

_ICONS: dict[Tone, str] = {
    "good": '<path d="M5 10.5l3.2 3.2L15 6.8"/>',
    "warn": '<path d="M10 5v6.2"/><path d="M10 14.6v.1"/>',
    "bad": '<path d="M6 6l8 8"/><path d="M14 6l-8 8"/>',
    "plain": '<path d="M10 9v5.4"/><path d="M10 5.6v.1"/>',
}


def render_page(
    document: Mapping[str, object], *, image: bytes | None = None, made_at: str, program: Program = KLEIN_SETUP
) -> str:
    """Return the page of a run.

    Parameters
    ----------
    document : mapping
        The ``--json`` document of the run, of this or an older version.  Beside its own keys these under ``details``
        are shown: ``smoke_test``, else ``last_image`` (``made_at``, ``target``, ``smoke_test``), ``changes``,
        ``environment``, ``torch``, ``licence`` (``name``, ``url``), ``transfers``, ``diagnosis`` and ``comfyui``
        (``version``, ``commit``, ``path``, ``has_local_changes``, ``custom_nodes``).
    image : bytes, optional
        The test image, PNG, JPEG or WebP; it becomes part of the page.
    made_at : str
        When the run was made, ISO 8601.
    program : Program, optional
        How the commands to paste call this program.

    Returns
    -------
    str
        The whole HTML document; write it as UTF-8.
    """
    node = Node(document)
    is_urgent = bool(next_command_of(node))  # then it stands at the top
    body = element(
        "main",
        _header(node, made_at),
        errors_section(node),
        findings_section(node),
        next_section(node, program) if is_urgent else "",
        diagnosis_section(node),
        image_section(node, image),
        cards_section(node),
        changes_section(node),
        files_section(node),
        time_section(node),
        steps_section(node),
        machine_section(node),
        "" if is_urgent else next_section(node, program),
        undo_section(node, program),
    )
    return whole_page(f"klein-setup: {verdict(node)}", body, _footer(node, made_at))


def whole_page(title: str, *body: Html) -> str:
    """Return an HTML document with the sheet, the script and the policy of every page of ours."""
    script = element("script", Html(_COPY))
    return f"<!DOCTYPE html>\n{element('html', _head(title), element('body', *body, script), lang='en')}\n"


def _head(title: str) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Html(STYLE)),
    )


def _header(document: Node, made_at: str) -> Html:
    word, tone = kicker(document)
    icon = (
        '<svg width="20" height="20" viewBox="0 0 20 20" fill="none" stroke="currentColor" stroke-width="2.2" '
        'stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><circle cx="10" cy="10" r="8.6" '
        f'stroke-width="1.6"/>{_ICONS[tone]}</svg>'
    )
    return element(
        "header",
        element("p", Html(icon), word, class_="kicker"),
        element("h1", verdict(document)),
        _about(document, made_at),
        tiles(document),
        class_=tone,
    )


def _about(document: Node, made_at: str) -> Html:
    """Return what the run was about, where, and when."""
    command = document.at("command").text
    parts: list[str] = [joined(["klein-setup ", command])] if command else []
    parts += [set_words(document)] if set_words(document) else []
    if document.at("target", "path").text:
        parts.append(path(document.at("target", "path").text))
    parts.append(element("time", moment(made_at), datetime=made_at))
    return element("p", joined(parts, " \u00b7 "), class_="about")


def _footer(document: Node, made_at: str) -> Html:
    version, manifest = document.at("klein_setup").text, document.at("manifest", "sha256").text
    words = [f"Made by klein-setup {version}".rstrip(), moment(made_at)]
    status = document.at("exit_status").whole
    words += [f"exit status {status}"] if status is not None else []
    words += [f"manifest {manifest[:12]}"] if manifest else []
    return element("footer", element("p", ", ".join(words) + "."))
