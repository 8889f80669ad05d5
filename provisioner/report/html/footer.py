"""The end of the page: how to undo the run, and what to run next."""

from __future__ import annotations

import re
import shlex

from provisioner.core.models import STATE_FOLDER
from provisioner.report.html.markup import Html, bullets, code, element, joined, paragraphs, path, section
from provisioner.report.html.node import Node

_READS_ONLY = frozenset({"plan", "verify", "detect", "manifest", "report"})


def undo_section(document: Node) -> Html:
    """Return how to undo the run, from its steps."""
    items = _undo_items(document)
    if items:
        return section("How to undo it", bullets(items), name="undo")
    words = document.at("command").text.split()
    if words and words[0] in _READS_ONLY:
        return section(
            "How to undo it", paragraphs(["This run changed nothing: there is nothing to undo."]), name="undo"
        )
    return Html("")


def _undo_items(document: Node) -> list[str]:
    done = [step for step in document.at("steps").rows if step.at("outcome", "status").text == "done"]
    placed = [step for step in done if step.at("kind").text in {"fetch-file", "place-file"}]
    target, is_tree = document.at("target", "path").text, document.at("target", "kind").text == "comfyui"
    state = _beneath(target, STATE_FOLDER) if is_tree and target else ""
    items: list[str] = []
    if placed:
        files = [element("li", path(step.at("destination").text or step.at("path").text)) for step in placed]
        items.append(joined(["Delete the files this run installed:", element("ul", *files)]))
    for step in done:
        if step.at("kind").text == "move-file":
            moved = path(step.at("destination").text or step.at("path").text)
            items.append(joined(["Move back ", moved, f" (why it was moved: {step.at('reason').text})"]))
    if state and any(step.at("replaces").text for step in done):
        kept = path(_beneath(state, "aside"))
        items.append(joined(["Replaced files were kept in ", kept, ": move back the ones you want."]))
    if state and done:
        items.append(joined(["Delete ", path(state), ", which holds receipts and records, but no models."]))
    environment = document.at("details", "environment")
    if environment.at("action").text in {"make", "put-back", "make-anew"} and environment.at("receipt"):
        items.append(joined(["Delete the environment ", path(environment.at("path").text), "."]))
    return items


def _beneath(folder: str, name: str) -> str:
    """Return a path one level deeper, with the separator of the system the folder is on."""
    return f"{folder}{chr(92) if _is_windows(folder) else '/'}{name}"


_LEADS = {"planned": "To apply the plan:", "findings": "To fix it:", "interrupted": "To continue:"}


def next_section(document: Node) -> Html:
    """Return what to run now, and what to run to check again, each ready to paste."""
    status = document.at("status").text
    is_said = bool(document.at("details", "changes", "mend_command").text)  # on the page already
    now = document.at("next_command").text if status in _LEADS and not is_said else None
    again = check_again_command(document)
    when = "To check everything again, for example after an update of ComfyUI, torch or the driver:"
    parts = [_pasted(_LEADS[status], now) if now else "", _pasted(when, again) if again else ""]
    return section("What to run next", *parts, name="next")


def _pasted(words: str, command: str) -> Html:
    return joined([element("p", words), code(command, class_="command")])


def check_again_command(document: Node) -> str | None:
    """Return the verify command for the same files in the same place; None where the document names no place."""
    return _command(document, "verify")


def _command(document: Node, verb: str) -> str | None:
    target, manifest = document.at("target", "path").text, document.at("manifest", "id").text
    if not target:
        return None
    given = document.at("details", "manifest_argument").text or manifest
    words = ["klein-setup", verb, *(["--manifest", given] if given else [])]
    words += ["--set", document.at("manifest", "set").text] if document.at("manifest", "set").text else []
    words += ["--comfyui" if document.at("target", "kind").text == "comfyui" else "--hf-cache", target]
    if not _is_windows(target):
        return shlex.join(words)
    return " ".join(f'"{word}"' if set(word) & set(" &()^;,='") else word for word in words)


def _is_windows(folder: str) -> bool:
    return re.match(r"[A-Za-z]:[\\/]|\\\\", folder) is not None
