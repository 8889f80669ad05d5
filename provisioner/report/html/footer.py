"""What to run after a run: to fix what was found, to check again, to remove everything."""

from __future__ import annotations

from provisioner.core.program import Program
from provisioner.report.html.markup import Html, command_block, element, joined, prose, section
from provisioner.report.html.node import Node
from provisioner.report.outcome import DEFAULT_MANIFEST

_READS_ONLY = frozenset({"plan", "verify", "detect", "diagnose", "manifest", "report"})
_LEADS = {
    "planned": "To apply the plan:",
    "findings": "To fix it:",
    "interrupted": "To continue:",
    "failed": "To find out what is at fault:",
}


def next_command_of(document: Node) -> str:
    """Return the command that fixes, applies or continues what the document is about; empty where there is none."""
    if document.at("status").text not in _LEADS:
        return ""
    return document.at("next_command").text or document.at("details", "changes", "mend_command").text


def next_section(document: Node, program: Program) -> Html:
    """Return what to run now, and what to run to check again, each ready to paste."""
    now, again = next_command_of(document), check_again_command(document, program)
    when = "To check everything again, for example after an update of ComfyUI, torch or the driver:"
    parts = [_pasted(_LEADS[document.at("status").text], now) if now else "", _pasted(when, again) if again else ""]
    return section("What to run next", *parts, name="next")


def undo_section(document: Node, program: Program) -> Html:
    """Return the commands that take back what the run did."""
    words = document.at("command").text.split()
    steps = [step for step in document.at("steps").rows if step.at("outcome", "status").text == "done"]
    if words and words[0] in _READS_ONLY:
        said = "This run changed nothing: there is nothing to undo."
        return section("How to undo it", element("p", said), name="undo")
    remove = command_for(document, program, "uninstall", *_environment(document))
    if not steps or not remove:
        return Html("")
    parts = [
        _pasted("This removes what klein-setup installed, and nothing else; with `--dry-run` it only lists it:", remove)
    ]
    if any(step.at("kind").text == "update-comfyui" for step in steps):
        undo = command_for(document, program, "repair --undo-update")
        parts.append(_pasted("To return to the ComfyUI from before the update:", undo))
    if any(step.at("replaces").text for step in steps):
        backups = command_for(document, program, "backups list")
        parts.append(_pasted("Replaced files are kept as backups; this lists them:", backups))
    return section("How to undo it", *parts, name="undo")


def _environment(document: Node) -> list[str]:
    """Return the option for an environment of ours."""
    environment = document.at("details", "environment")
    where = environment.at("path").text
    return ["--environment", where] if where and environment.at("receipt") else []


def _pasted(words: str, command: str) -> Html:
    return joined([element("p", prose(words)), command_block(command)])


def check_again_command(document: Node, program: Program) -> str:
    """Return the verify command for the same files in the same place; empty where the document names no place."""
    return command_for(document, program, "verify")


def command_for(document: Node, program: Program, verb: str, *more: str) -> str:
    """Return a command about the same files in the same place; empty where the document names no place."""
    target, manifest = document.at("target", "path").text, document.at("manifest", "id").text
    if not target:
        return ""
    given = document.at("details", "manifest_argument").text or manifest
    others = document.at("details", "more_manifest_arguments").texts
    words = ["--manifest", given] if given not in ("", DEFAULT_MANIFEST) or others else []
    words += [word for each in others for word in ("--manifest", each)]
    chosen = "" if others else document.at("manifest", "set").text
    words += ["--set", chosen] if chosen else []
    words += ["--comfyui" if document.at("target", "kind").text == "comfyui" else "--hf-cache", target, *more]
    return program.command(verb, words)
