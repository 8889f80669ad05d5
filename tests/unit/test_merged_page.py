"""The page of many machines, and what is refused before it is made."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.core.models import Finding
from provisioner.report.html.merged_page import render_merged_page
from provisioner.report.json_document import document
from provisioner.report.merge import LARGEST_DOCUMENT, read_documents
from provisioner.report.outcome import Report, RunFacts
from tests.support.builders import gpu, machine
from tests.support.report_documents import plan_of
from tests.support.schemas import conforming
from tests.unit.test_page import HOSTILE, Reader

PROBLEM = Finding(
    code="x",
    severity="problem",
    message="The encoder is another one.",
    remedy="repair",
    hint="Run `klein-setup repair`.",
)


def of(host: str, **changes: object) -> dict[str, Any]:
    """Return a real document of a machine."""
    card = gpu(name="NVIDIA GeForce RTX 4070")
    given = {"command": "verify", "status": "ok", "exit_status": 0, "machine": machine(card, card), "plan": plan_of()}
    report = Report(**{**given, **changes})  # type: ignore[arg-type]
    run = RunFacts(
        host=host, started_at="2026-11-26T13:46:46.123Z", ended_at="2026-11-26T13:47:02.690Z", seconds=16.567
    )
    told: dict[str, Any] = json.loads(json.dumps(document(report, run=run)))
    return conforming(told)


def text(value: object) -> bytes:
    return json.dumps(value).encode()


def reader_of(*documents: dict[str, Any]) -> Reader:
    page = render_merged_page(documents, made_at="2026-11-26T14:00:00.000Z")
    page.encode("utf-8")
    reader = Reader(page)
    assert reader.complaints == []
    assert reader.open == []
    ids = reader.attributes("id")
    assert len(ids) == len(set(ids))
    links = reader.attributes("href")
    assert [link for link in links if not link.startswith("#") or link[1:] not in ids] == []
    return reader


def test_each_machine_has_a_row_that_leads_to_its_section() -> None:
    broken = plan_of(statuses=("hash-mismatch", "ok"))
    reader = reader_of(
        of("lab-1"), of("lab-2", status="findings", exit_status=1, plan=replace(broken), findings=(PROBLEM,))
    )
    assert "2 machines: 1 Action needed, 1 OK" in reader.words
    rows = reader.words.partition(" When ")[2].partition("Back to all machines")[0]
    for said in (
        "lab-1 2 x NVIDIA GeForce RTX 4070",
        "flux2-klein-4b, set fp8",
        "17 s",
        "26 November 2026, 13:47 UTC",
        "Action needed",
    ):
        assert said in rows, (said, rows)
    assert "The encoder is another one. Run klein-setup repair." in reader.words
    assert "1 of 2 correct" in reader.words
    assert "diffusion_models/model.safetensors wrong bytes 9 bytes" in reader.words  # as on the page of one run
    assert {"#machine-1-title", "#machine-2-title"} <= set(reader.attributes("href"))


def test_machines_with_warnings_are_counted_together_however_many_warnings_each_has() -> None:
    first, second = (replace(PROBLEM, severity="warning", message=said) for said in ("Old.", "Hot."))
    reader = reader_of(
        of("lab-1", findings=(first,)),
        of("lab-2"),
        of("lab-3", findings=(first, second)),
        of("lab-4", status="findings", exit_status=1),
    )
    assert "4 machines: 1 Action needed, 2 OK with warnings, 1 OK" in reader.words
    assert "OK, with 2 warnings" in reader.words  # in the row of the machine


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    reader = reader_of(of("lab-1"))
    assert [url for url in reader.attributes("src") if not url.startswith("data:")] == []
    policies = [attrs["content"] or "" for tag, attrs in reader.tags if "http-equiv" in attrs]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")


def test_a_hostile_document_stays_text() -> None:
    doc = of("lab-1") | {"host": HOSTILE, "next_command": HOSTILE, "ended_at": HOSTILE, "command": HOSTILE}
    doc["findings"] = [{"message": HOSTILE, "hint": HOSTILE}]
    doc["machine"] = {"gpus": [{"name": HOSTILE}], "driver_version": HOSTILE}
    doc["versions"] = {"torch": HOSTILE}
    tags = {tag for tag, _ in reader_of(doc).tags}
    assert "img" not in tags


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(of("x"))), _JSON, max_size=6))
def test_any_content_makes_a_page(changes: dict[str, Any]) -> None:
    reader_of(of("lab-1") | changes)


# --- bad input -------------------------------------------------------------------------------


def test_the_documents_are_returned_in_the_order_given() -> None:
    documents, errors = read_documents([("b", text(of("lab-2"))), ("a", text(of("lab-1")))])
    assert ([each["host"] for each in documents], errors) == (["lab-2", "lab-1"], ())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"", "b.json is not a JSON object."),
        (b"\xff\x00", "b.json is not a JSON object."),
        (b"[1]", "b.json is not a JSON object."),
        (text({"id": "x"}), "b.json is JSON, but not a document of klein-setup --json."),
        (text({"schema_version": "2", "command": "verify", "status": "ok"}), "not a document of klein-setup --json."),
        (text(of("lab-2") | {"schema_version": 1}), "b.json has schema_version 1; 2 is expected."),
        (text(of("lab-2") | {"schema_version": 3}), "b.json has schema_version 3; 2 is expected."),
        (text(of("")), "b.json does not name its host."),
        (text(of("lab-1")), "a.json and b.json are both of the host lab-1."),
        (b'{"event":"notice"}\n{"event":"report"}\n', "b.json holds the lines of --json=events, not one document."),
        (b" " * (LARGEST_DOCUMENT + 1), "b.json has more than 8 MiB"),
    ],
)
def test_what_is_no_document_is_named_with_what_to_do(given: bytes, said: str) -> None:
    documents, errors = read_documents([("a.json", text(of("lab-1"))), ("b.json", given)])
    assert [each["host"] for each in documents] == ["lab-1"]
    (error,) = errors
    assert said in str(error)
    assert error.hint
    assert error.context["path"] == "b.json"


def test_every_bad_file_is_named_not_only_the_first() -> None:
    _, errors = read_documents([("a", b""), ("b", text(of("lab-1"))), ("c", b"{")])
    assert [error.context["path"] for error in errors] == ["a", "c"]
