"""What a diagnosis looks like: in the document, in the terminal, on the page; and how its starts are spelled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisioner.commands.diagnose import words_of
from provisioner.disk.diagnosis_journal import DiagnosisJournal
from provisioner.report.diagnosis_json import diagnosis_entry
from provisioner.report.html.diagnosis_section import diagnosis_section
from provisioner.report.html.node import Node
from provisioner.smoke_test.diagnosis import Diagnosis, Guilty, Setup, Trouble, Try
from provisioner.ui.diagnosis_text import diagnosis_blocks
from provisioner.ui.text import laid_out, rendered

BLACK = Trouble(code="picture-black", message="The image is black.")
DIED = Trouble(code="server-died", message="ComfyUI <ended>.")
CULPRIT = Guilty(layer="custom-nodes", name="custom nodes", groups=(("b",),), cure=Setup(nodes=("a",)))
FOUND = Diagnosis(
    tries=(
        Try(what="as you start it", setup=Setup(options=(("--fast", "x"),)), trouble=BLACK, seconds=61.0, log_path="l"),
        Try(what="without custom nodes", setup=Setup(nodes=()), seconds=30.12345),
        Try(what="with the custom node b alone", setup=Setup(nodes=("b",)), trouble=DIED, was_known=True),
        Try(what="on the CPU", setup=Setup(extra=("--cpu",)), trouble=DIED, is_unclear=True),
        Try(what="with both", setup=Setup(nodes=("a", "b")), trouble=BLACK),
    ),
    guilty=(CULPRIT,),
    is_over=True,
    options=(("--fast", "x"),),
    options_from="run.bat",
    nodes=("a", "b"),
)
SENTENCE = "The custom node b is at fault: with this one alone the test image fails. Without b it comes."


def shown(diagnosis: Diagnosis) -> list[str]:
    return [rendered(line, is_coloured=False).rstrip() for line in laid_out(diagnosis_blocks(diagnosis), width=None)]


def page(diagnosis: Diagnosis) -> str:
    return diagnosis_section(Node({"details": {"diagnosis": diagnosis_entry(diagnosis)}}))


def test_the_document_has_every_start_and_who_is_guilty() -> None:
    entry = diagnosis_entry(FOUND)
    assert (entry["is_over"], entry["is_healthy"], entry["options"], entry["options_from"]) == (
        True,
        False,
        ["--fast x"],
        "run.bat",
    )
    assert entry["custom_nodes"] == ["a", "b"]
    assert [each["result"] for each in entry["tries"]] == ["failed", "image", "failed", "unclear", "failed"]
    assert entry["tries"][0] == {
        "what": "as you start it",
        "result": "failed",
        "options": ["--fast x"],
        "custom_nodes": None,
        "extra": [],
        "trouble": {"code": "picture-black", "message": "The image is black.", "is_late": False},
        "seconds": 61.0,
        "log_path": "l",
        "was_known": False,
    }
    assert (entry["tries"][1]["custom_nodes"], entry["tries"][1]["seconds"]) == ([], 30.123)
    assert entry["guilty"] == [
        {
            "layer": "custom-nodes",
            "groups": [["b"]],
            "suspects": [],
            "is_confirmed": True,
            "sentence": SENTENCE,
        }
    ]
    assert entry["conclusion"] == ""


def test_a_diagnosis_without_a_start_says_that() -> None:
    entry = diagnosis_entry(Diagnosis())
    assert (entry["is_healthy"], entry["tries"], entry["guilty"], entry["conclusion"]) == (
        None,
        [],
        [],
        "Nothing was tried.",
    )


def test_the_terminal_has_a_row_for_each_start_and_why_it_failed_otherwise() -> None:
    lines = shown(FOUND)
    text = "\n".join(lines)
    assert lines[0] == "Diagnosis"
    assert "Your options are --fast x (from run.bat)." in lines
    assert "2 custom nodes: a, b." in lines
    assert text.count("The image is black.") == 1
    assert text.count("ComfyUI <ended>.") == 2  # another failure than the first
    assert "known before" in text
    assert "unclear" in text
    assert SENTENCE not in text  # a finding of the report says it
    early = shown(replace(FOUND, is_over=False))
    assert early[0] == "Diagnosis, so far"
    assert SENTENCE in early
    none = shown(replace(FOUND, is_over=False, guilty=()))
    assert none[-1] == "5 starts of ComfyUI did not show yet what is guilty."
    assert shown(Diagnosis())[-1] == "Nothing was tried."
    healthy = shown(Diagnosis(tries=(Try(what="as you start it", setup=Setup()),), is_over=True))
    assert healthy[-1] == "The test image comes as you start ComfyUI: there is nothing to find."


def test_the_page_has_the_evidence() -> None:
    html = page(FOUND)
    assert "<h2" in html
    assert "ComfyUI &lt;ended&gt;." in html
    assert "custom nodes: b" in html
    assert "took too long" in html
    assert "in an earlier run" in html
    assert "--fast x (from run.bat)" in html
    assert SENTENCE not in html
    assert SENTENCE in page(replace(FOUND, is_over=False))
    assert "did not show yet" in page(replace(FOUND, is_over=False, guilty=()))
    assert diagnosis_section(Node({})) == ""
    assert "not known" in diagnosis_section(Node({"details": {"diagnosis": {"tries": [{"result": "x"}]}}}))


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (Setup(), ()),
        (Setup(options=(("--fast", "a"), ("--x",)), extra=("--cpu",)), ("--fast", "a", "--x", "--cpu")),
        (Setup(nodes=(), extra=("--cpu",)), ("--disable-all-custom-nodes", "--cpu")),
        (
            Setup(options=(("--x",),), nodes=("a b", "c.py"), extra=("--fp32-vae",)),
            (
                *("--x", "--disable-all-custom-nodes", "--whitelist-custom-nodes", "a b", "c.py"),
                *("websocket_image_save.py", "--fp32-vae"),  # what comes with ComfyUI stays on
            ),
        ),
    ],
)
def test_no_option_of_a_start_swallows_another(setup: Setup, words: tuple[str, ...]) -> None:
    assert words_of(setup) == words


def test_the_journal_is_that_of_the_same_diagnosis_unless_it_came_to_its_end(tmp_path: Path) -> None:
    first = DiagnosisJournal(tmp_path, "this")
    assert (len(first), first.known("a")) == (0, None)
    first.keep("a", {"seconds": 1})
    again = DiagnosisJournal(tmp_path, "this")
    assert (len(again), again.known("a")) == (1, {"seconds": 1})
    assert len(DiagnosisJournal(tmp_path, "another")) == 0
    assert len(DiagnosisJournal(tmp_path, "this", is_fresh=True)) == 0
    again.end()
    assert len(DiagnosisJournal(tmp_path, "this")) == 0


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", '{"schema_version": 1}', '{"schema_version":1,"about":"this","tries":3}']
)
def test_a_journal_that_is_damaged_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "diagnosis.json").write_text(text)
    journal = DiagnosisJournal(tmp_path, "this")
    assert len(journal) == 0
    journal.keep("a", {})
    assert len(DiagnosisJournal(tmp_path, "this")) == 1


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    journal = DiagnosisJournal(tmp_path / "file", "this")
    journal.keep("a", {})
    journal.end()
    assert journal.known("a") == {}
