"""What a fleet is judged by: who has what, who differs, what it costs; and files that nobody can trust."""

from __future__ import annotations

import doctest
import json
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.core.models import Finding, Outcome
from provisioner.report import fleet_comparison, fleet_documents
from provisioner.report.fleet_comparison import (
    Fleet,
    FleetDifference,
    FleetHost,
    cost_words,
    difference_words,
    files_words,
    gpu_words,
    headline,
    stale_words,
    whole_cost_words,
)
from provisioner.report.fleet_documents import LARGEST_DOCUMENT, Document, read_document, seconds_of
from provisioner.report.json_document import document
from provisioner.report.json_value import json_object
from provisioner.report.outcome import Report
from tests.support.fleets import (
    DAY_S,
    NOW_S,
    OTHER_COMMIT,
    a_fleet,
    failed,
    judged,
    lock_of,
    of,
    other_lock,
    read,
    text,
)
from tests.support.report_documents import MODEL, plan_of
from tests.support.schemas import conforming

HOSTILE = "\x1b[31m<script>alert(1)</script>\x1b]0;x\x07\u202e\ud800\n" + "x" * 1000


def with_versions(host: str, comfyui: str = "0.33.0", torch: str = "2.14.1+cu130", **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return of(host, **changes) | {
        "versions": {"klein_setup": "1", "python": "3.12.1", "comfyui": comfyui, "torch": torch}
    }


def with_content(document: dict[str, Any], data: str, size: int = 9) -> dict[str, Any]:
    """Return a document whose host has, and wants, another model."""
    checks = [dict(each) for each in document["checks"]]
    checks[0] |= {"expected_sha256": data * 64, "observed_sha256": data * 64, "expected_size": size}
    return document | {"checks": checks}


def states(fleet: Fleet) -> dict[str, str]:
    return {each.host: each.state for each in fleet.hosts}


def host_of(fleet: Fleet, name: str) -> FleetHost:
    return next(each for each in fleet.hosts if each.host == name)


def said_of(fleet: Fleet, name: str) -> list[str]:
    return [difference_words(each) for each in host_of(fleet, name).differences]


@pytest.mark.parametrize("module", [fleet_comparison, fleet_documents])
def test_the_examples_hold(module: Any) -> None:  # noqa: ANN401
    result = doctest.testmod(module)
    assert (result.attempted > 0, result.failed) == (True, 0)


# --- who has what ---------------------------------------------------------------------------------


def test_a_host_in_line_is_said_with_what_it_has() -> None:
    (host,) = judged(of("lab-1")).hosts
    assert (host.host, host.state, host.command, host.file) == ("lab-1", "in-line", "verify", "1.json")
    assert (gpu_words(host), host.manifest, host.set) == ("RTX 4070", "flux2-klein-4b", "fp8")
    assert (host.comfyui, host.comfyui_commit, host.torch) == ("0.33.0", "c0de" * 10, "2.14.1+cu130")
    assert (host.files, host.files_correct, host.checked_at) == (2, 2, "2026-11-26T13:47:02.690Z")
    assert (host.differences, host.errors, cost_words(host)) == ((), (), "")


def test_trusted_receipts_are_told_from_files_that_were_read() -> None:
    trusted = of("lab-1")
    whole = [each | {"basis": "sha256"} for each in trusted["checks"]]
    half = [whole[0], trusted["checks"][1]]
    fleet = judged(trusted, of("lab-2") | {"checks": whole}, of("lab-3") | {"checks": half})
    assert [files_words(each) for each in fleet.hosts] == ["2 of 2, not read", "2 of 2", "2 of 2, 1 read"]


def test_what_an_install_fetched_and_hashed_is_there_at_its_end() -> None:
    plan = plan_of(statuses=("missing", "missing"))
    done = tuple(Outcome(step=step, status="done", detail="", bytes_fetched=9, seconds=1.0) for step in plan.steps)
    fleet = judged(of("lab-1", command="install", plan=plan, outcomes=done))
    assert (states(fleet), files_words(fleet.hosts[0])) == ({"lab-1": "in-line"}, "2 of 2")
    half = tuple([done[0], Outcome(step=plan.steps[1], status="failed", detail="", bytes_fetched=0, seconds=1.0)])
    fleet = judged(of("lab-1", command="install", status="failed", exit_status=5, plan=plan, outcomes=half))
    assert (states(fleet), files_words(fleet.hosts[0])) == ({"lab-1": "failed"}, "1 of 2")


def test_of_one_host_the_newest_document_counts_whatever_its_file_is_called() -> None:
    damaged = plan_of(statuses=("hash-mismatch", "ok"))
    old = of("lab-1", at="2026-11-25T00:00:00.000Z", status="findings", exit_status=1, plan=damaged)
    new = of("lab-1", at="2026-11-26T00:00:00.000Z")
    for pair in ((old, new), (new, old)):
        fleet = judged(*pair)
        assert (states(fleet), fleet.documents) == ({"lab-1": "in-line"}, 2)
    assert states(judged(new | {"ended_at": old["ended_at"]}, old | {"ended_at": new["ended_at"]})) == {
        "lab-1": "differs"
    }


def test_a_newer_detect_adds_the_machine_and_hides_no_verify() -> None:
    verify = of("lab-1") | {"machine": {}}
    detect = of("lab-1", at="2026-11-27T00:00:00.000Z", command="detect", plan=None, card="A new card")
    fleet = judged(verify, detect)
    (host,) = fleet.hosts
    assert (host.state, host.gpus, host.file, host.command) == ("in-line", ("A new card",), "1.json", "verify")


def test_a_host_that_was_only_detected_is_not_in_line() -> None:
    fleet = judged(of("lab-1", command="detect", plan=None))
    assert (states(fleet), fleet.is_in_line) == ({"lab-1": "unchecked"}, False)


def test_a_document_without_a_host_is_called_like_its_file_and_so_is_every_one_on_demand() -> None:
    (named,) = read(of(""))
    assert isinstance(named, Document)
    assert named.host == "1"
    assert [each.host for each in read(of("same"), of("same"), by_file=True) if isinstance(each, Document)] == [
        "1",
        "2",
    ]
    nowhere = read_document(".json", text(of("")))
    assert isinstance(nowhere, Document)
    assert nowhere.host == ".json"


# --- missing, old, failed -------------------------------------------------------------------------


def test_a_host_that_should_be_there_and_has_no_document_is_missing() -> None:
    fleet = judged(of("lab-1"), expected_hosts=["lab-1", "lab-2", "lab-2"])
    assert (states(fleet), fleet.is_in_line) == ({"lab-2": "missing", "lab-1": "in-line"}, False)
    assert headline(fleet) == "2 hosts: 1 without a document, 1 in line"


@pytest.mark.parametrize(
    ("at", "state"),
    [
        ("2026-11-20T12:00:01.000Z", "in-line"),
        ("2026-11-20T12:00:00.000Z", "stale"),
        ("2026-11-28T11:00:00.000Z", "in-line"),  # a clock may be ahead by hours
        ("2031-01-01T00:00:00.000Z", "stale"),  # and one by years proves nothing
    ],
)
def test_a_document_grows_old(at: str, state: str) -> None:
    assert states(judged(of("lab-1", at=at))) == {"lab-1": state}


@pytest.mark.parametrize("at", [None, "", "yesterday", 7, "2026-02-31T99:00:00Z"])
def test_a_document_without_a_date_is_old_and_never_the_newest(at: object) -> None:
    undated = of("lab-1", card="Another") | {"ended_at": at}
    assert states(judged(undated)) == {"lab-1": "stale"}
    assert host_of(judged(undated, of("lab-1")), "lab-1").gpus == ("NVIDIA RTX 4070",)


def test_a_date_of_the_future_does_not_hide_what_came_since() -> None:
    ahead = of("lab-1", at="2040-01-01T00:00:00.000Z", card="Another")
    assert host_of(judged(ahead, of("lab-1")), "lab-1").gpus == ("NVIDIA RTX 4070",)


def test_a_run_that_failed_last_is_failed_with_its_error_and_the_files_of_the_one_before() -> None:
    fleet = judged(of("lab-1"), failed("lab-1", at="2026-11-27T00:00:00.000Z"))
    (host,) = fleet.hosts
    assert (host.state, host.command, host.files_correct) == ("failed", "install", 2)
    assert [(each.code, each.message) for each in host.errors] == [("unreachable", "huggingface.co cannot be reached.")]
    assert host.checked_at == "2026-11-26T13:47:02.690Z"
    later = judged(failed("lab-1"), of("lab-1", at="2026-11-27T00:00:00.000Z"))
    assert (later.hosts[0].state, later.hosts[0].errors) == ("in-line", ())


# --- who differs ----------------------------------------------------------------------------------


def test_the_one_that_differs_from_most_is_named_with_what_most_have() -> None:
    fleet = judged(
        *(with_versions(f"lab-{number}") for number in (1, 2, 3)), with_versions("lab-4", "0.32.1", "2.13.0+cu130")
    )
    assert states(fleet) == {"lab-4": "differs", "lab-1": "in-line", "lab-2": "in-line", "lab-3": "in-line"}
    assert said_of(fleet, "lab-4") == [
        "ComfyUI is 0.32.1; expected is 0.33.0, as on 3 of 4 hosts",
        "torch is 2.13.0+cu130; expected is 2.14.1+cu130, as on 3 of 4 hosts",
    ]
    assert (host_of(fleet, "lab-4").steps, cost_words(host_of(fleet, "lab-4"))) == (2, "not known")
    assert whole_cost_words(fleet) == (
        "To bring all in line: 2 steps on 1 host. "
        "No document says how many bytes ComfyUI and Python packages are on 1 host."
    )


def test_a_tie_has_no_majority_and_both_sides_are_named() -> None:
    fleet = judged(with_versions("lab-1"), with_versions("lab-2", torch="2.13.0+cu130"))
    assert said_of(fleet, "lab-1") == ["torch is 2.14.1+cu130; no value has a majority"]
    assert states(fleet) == {"lab-1": "differs", "lab-2": "differs"}


def test_another_gpu_may_have_another_set_and_another_torch() -> None:
    other = with_versions("lab-3", torch="2.12.0+cu126", card="GTX 1080")
    other["manifest"] = other["manifest"] | {"set": "gguf"}
    fleet = judged(with_versions("lab-1"), with_versions("lab-2"), other)
    assert fleet.is_in_line
    other["machine"] = of("x")["machine"]  # on the same GPU both are differences
    assert said_of(judged(with_versions("lab-1"), with_versions("lab-2"), other), "lab-3") == [
        "the manifest is flux2-klein-4b, set gguf; expected is flux2-klein-4b, set fp8, as on 2 of 3 hosts",
        "torch is 2.12.0+cu126; expected is 2.14.1+cu130, as on 2 of 3 hosts",
    ]


def test_another_commit_of_the_same_version_is_a_difference() -> None:
    third = of("lab-3")
    third["details"]["comfyui"]["commit"] = OTHER_COMMIT
    fleet = judged(of("lab-1"), of("lab-2"), third)
    assert said_of(fleet, "lab-3") == [
        f"ComfyUI is commit {OTHER_COMMIT}; expected is commit {'c0de' * 10}, as on 2 of 3 hosts"
    ]


def test_a_file_with_other_bytes_than_most_have_is_a_difference_though_its_own_manifest_names_it() -> None:
    fleet = judged(of("lab-1"), of("lab-2"), with_content(of("lab-3"), "e", size=77))
    assert said_of(fleet, "lab-3") == [
        f"diffusion_models/model.safetensors: SHA-256 {'e' * 64}; expected is SHA-256 {MODEL.sha256}, as on most hosts"
    ]
    assert (fleet.bytes_to_fetch, fleet.steps, fleet.hosts_with_unknown_bytes) == (MODEL.size, 1, 0)
    tie = judged(of("lab-1"), with_content(of("lab-2"), "e"))
    assert said_of(tie, "lab-1") == [
        f"diffusion_models/model.safetensors: SHA-256 {MODEL.sha256}; no value has a majority"
    ]


def test_a_file_that_most_have_and_one_does_not_know_is_a_difference() -> None:
    short = of("lab-3")
    short["checks"] = short["checks"][1:]
    fleet = judged(of("lab-1"), of("lab-2"), short)
    assert said_of(fleet, "lab-3") == [
        f"diffusion_models/model.safetensors: not there; expected is SHA-256 {MODEL.sha256}, as on most hosts"
    ]
    assert judged(of("lab-1"), short, short | {"host": "lab-4"}).is_in_line  # of what most do not have nothing is asked


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("missing", "missing"),
        ("size-mismatch", "wrong size"),
        ("unreadable", "unreadable"),
        ("odd", "odd"),
        ("", "unknown"),
    ],
)
def test_a_file_that_is_not_right_is_named_with_what_is_wrong(status: str, said: str) -> None:
    wrong = of("lab-1")
    wrong["checks"][0]["status"] = status
    assert said_of(judged(wrong), "lab-1") == [f"diffusion_models/model.safetensors: {said}"]


def test_problems_packages_and_plans_that_nobody_applied_are_differences() -> None:
    problem = Finding(code="x", severity="problem", message="The encoder is another one.", remedy="repair")
    warning = Finding(code="y", severity="warning", message="Old driver.", remedy="by-hand")
    doc = of("lab-1", status="planned", plan=plan_of(statuses=("ok", "ok")), findings=(problem, problem, warning))
    doc["details"]["environment"] = {
        "packages": {
            "changed": [{"package": "numpy", "what": "damaged", "locked": "2.1"}, {"package": "av", "what": "gone"}]
        }
    }
    assert said_of(judged(doc), "lab-1") == [
        "numpy: damaged; expected is 2.1, as installed",
        "av: gone",
        "The encoder is another one.",
        "a plan of 2 steps was not applied",
    ]


# --- against a lock -------------------------------------------------------------------------------


def test_a_host_with_what_the_lock_names_is_in_line_and_so_is_one_that_says_less() -> None:
    silent = of("lab-2", comfyui=None, seen_versions=())
    assert judged(of("lab-1"), silent, locks=[lock_of()]).is_in_line
    assert judged(of("lab-1"), locks=[lock_of(lock=None)]).is_in_line  # a manifest that is no lock names only files


def test_what_differs_from_the_lock_is_named_even_where_all_hosts_agree() -> None:
    docs = [with_versions(f"lab-{number}", torch="2.13.0") for number in (1, 2)]
    for each in docs:
        each["details"]["comfyui"]["commit"] = OTHER_COMMIT
        each["details"]["environment"] = {"receipt": {"torch_backend": "cu126"}}
    fleet = judged(*docs, locks=[lock_of()])
    assert said_of(fleet, "lab-2") == [
        f"ComfyUI is commit {OTHER_COMMIT}; expected is commit {'c0de' * 10}, as locked",
        "torch is 2.13.0; expected is 2.14.1, as locked",
        "torch is build cu126; expected is build cu130, as locked",
    ]
    assert judged(*docs).is_in_line
    verified = with_versions("lab-1", torch="2.14.1+cu126")
    assert said_of(judged(verified, locks=[lock_of()]), "lab-1") == [
        "torch is build cu126; expected is build cu130, as locked"
    ]
    versionless = with_versions("lab-1", "0.1.0")
    versionless["details"]["comfyui"]["commit"] = None
    assert said_of(judged(versionless, locks=[lock_of()]), "lab-1") == [
        "ComfyUI is 0.1.0; expected is 0.33.0, as locked"
    ]


def test_a_file_of_the_lock_that_the_host_has_otherwise_is_fetched_whole() -> None:
    fleet = judged(of("lab-1"), locks=[other_lock()])
    assert [each.what for each in fleet.hosts[0].differences] == ["file"]
    assert (fleet.bytes_to_fetch, fleet.steps) == (1_000_000, 1)


def test_one_lock_for_each_set_and_a_host_with_none_of_them_is_named() -> None:
    doc = of("lab-1")
    doc["manifest"] = doc["manifest"] | {"set": "gguf"}
    fleet = judged(doc, locks=[lock_of()])
    assert said_of(fleet, "lab-1") == [
        "the manifest is flux2-klein-4b, set gguf; expected is flux2-klein-4b, set fp8, as locked"
    ]
    doc["manifest"] = {**doc["manifest"], "id": "other", "set": "fp8"}
    fleet = judged(doc, locks=[lock_of()])
    assert [each.what for each in fleet.hosts[0].differences] == ["manifest"]
    assert (fleet.steps, fleet.hosts[0].has_unknown_bytes) == (1, True)
    assert judged(of("lab-1", command="detect", plan=None), locks=[lock_of()]).hosts[0].differences == ()
    second = other_lock()
    gguf = replace(second, sets=(replace(second.sets[0], id="gguf"),), default_set="gguf")
    assert judged(of("lab-1"), locks=[gguf, lock_of()]).is_in_line
    doc["manifest"] = {**doc["manifest"], "id": "flux2-klein-4b", "set": "gguf"}
    assert [each.name for each in judged(doc, locks=[lock_of(), gguf]).hosts[0].differences] == [
        "diffusion_models/model.safetensors"
    ]


# --- what it costs --------------------------------------------------------------------------------


def test_a_repair_by_blocks_costs_its_blocks_and_a_step_that_is_done_nothing() -> None:
    doc = of("lab-1", status="findings", exit_status=1, plan=plan_of(statuses=("hash-mismatch", "ok")))
    doc["steps"] = [
        {
            "kind": "patch-file",
            "path": "diffusion_models/model.safetensors",
            "bytes_to_fetch": 16_777_216,
            "outcome": None,
        },
        {"kind": "fetch-file", "path": "vae/vae.safetensors", "bytes_to_fetch": 5, "outcome": {"status": "done"}},
        {"kind": "record-receipt", "path": "x", "bytes_to_fetch": 0, "outcome": None},
    ]
    fleet = judged(doc, of("lab-2"), of("lab-3"))
    host = host_of(fleet, "lab-1")
    assert (host.steps, host.bytes_to_fetch, host.has_unknown_bytes) == (1, 16_777_216, False)
    assert whole_cost_words(fleet) == "To bring all in line: 1 step on 1 host, 16.8 MB to fetch."
    assert whole_cost_words(judged(of("lab-1"))) == "No host has anything to fetch."


def test_a_step_that_brings_another_content_than_the_reference_counts_with_the_reference() -> None:
    doc = of("lab-1", status="findings", exit_status=1, plan=plan_of(statuses=("missing", "ok")))
    assert doc["steps"][0]["path"] == "diffusion_models/model.safetensors"
    fleet = judged(doc, locks=[other_lock()])
    assert (fleet.bytes_to_fetch, fleet.steps) == (1_000_000, 2)  # the other step places the VAE


def test_an_environment_that_the_plan_makes_is_not_counted_twice() -> None:
    doc = with_versions("lab-1", torch="2.13.0")
    doc["steps"] = [{"kind": "make-environment", "path": "", "bytes_to_fetch": 2_000_000, "outcome": None}]
    fleet = judged(doc, locks=[lock_of()])
    assert (fleet.steps, fleet.bytes_to_fetch, fleet.hosts_with_unknown_bytes) == (1, 2_000_000, 0)
    doc["details"]["comfyui"]["commit"] = OTHER_COMMIT
    assert cost_words(judged(doc, locks=[lock_of()]).hosts[0]) == "2.00 MB and more"
    doc["steps"] += [{"kind": "update-comfyui", "path": "", "bytes_to_fetch": 1_000_000, "outcome": None}]
    assert cost_words(judged(doc, locks=[lock_of()]).hosts[0]) == "3.00 MB"


# --- files that nobody can trust ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\xff\x00", "it is not a JSON object"),
        (b"[1]", "it is not a JSON object"),
        (b"[" * 100_000, "it is not a JSON object"),
        (
            b'{"event":"notice"}\n{"event":"step-started"}\n',
            "it holds events of --json=events, and the run has not ended",
        ),
        (b"{}\n{}", "it is not a JSON object"),
        (text({"id": "x"}), "it is JSON, but not a document of klein-setup --json"),
        (text({"schema_version": "2", "command": "verify", "status": "ok"}), "it is JSON, but not a document"),
        (text(of("a") | {"schema_version": 1}), "an older klein-setup made it (schema_version 1, 2 is read here)"),
        (text(of("a") | {"schema_version": 3}), "a newer klein-setup made it (schema_version 3, 2 is read here)"),
        (b" " * (LARGEST_DOCUMENT + 1), "it has more than 8 MiB, and no document of klein-setup is so large"),
    ],
)
def test_a_file_that_is_no_document_is_named_and_the_others_count(data: bytes, reason: str) -> None:
    fleet = judged(of("lab-1"), data)
    assert states(fleet) == {"lab-1": "in-line"}
    assert [(each.file, each.reason.startswith(reason)) for each in fleet.unusable] == [("2.json", True)]
    assert not fleet.is_in_line


def test_the_last_line_of_events_and_a_document_in_utf_16_are_documents() -> None:
    events = b'{"event":"notice"}\n' + json.dumps({"event": "report", "time": "x", **of("lab-1")}).encode() + b"\n"
    windows = json.dumps(of("lab-2")).encode("utf-16")  # what > of Windows PowerShell writes
    assert states(judged(events, windows)) == {"lab-1": "in-line", "lab-2": "in-line"}


def test_our_own_secrets_in_a_document_of_others_are_masked_in_any_spelling() -> None:
    secret = 'p\u00e4ss"word'
    for data in (text(of("x", card=secret)), json.dumps(of("x", card=secret), ensure_ascii=False).encode("utf-16")):
        found = read_document("x.json", data, secrets=[secret, "x"])
        assert isinstance(found, Document)
        assert (found.host, found.gpus) == ("x", ("***",))


def test_hostile_texts_are_short_printable_and_valid() -> None:
    doc = of("lab-1") | {"host": HOSTILE, "command": HOSTILE, "status": "failed"}
    doc["errors"] = [{"code": HOSTILE, "message": HOSTILE, "hint": HOSTILE}]
    doc["machine"] = {"gpus": [{"name": HOSTILE}] * 5000}
    fleet = judged(doc)
    texts = [each for each in _texts(json_object(fleet, ())) if each]
    assert max(map(len, texts)) <= 300
    assert all(each.replace("\n", "").isprintable() for each in texts)
    json.dumps(texts, ensure_ascii=False).encode("utf-8")
    assert len(fleet.hosts[0].gpus) == 64


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.items() for part in each for text in _texts(part)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(of("x"))), _JSON, max_size=6))
def test_any_content_is_judged_and_its_document_keeps_to_the_schema(changes: dict[str, Any]) -> None:
    fleet = judged(of("lab-1"), of("lab-1") | changes, locks=[lock_of()])
    conforming(
        json.loads(json.dumps(document(Report(command="fleet report", status="ok", exit_status=0, fleet=fleet))))
    )


def test_a_number_of_bytes_that_cannot_be_is_none() -> None:
    for number in (-1, 2**60, True, "9"):
        doc = of("lab-1", status="findings", exit_status=1, plan=plan_of(statuses=("missing", "ok")))
        doc["steps"][0]["bytes_to_fetch"] = number
        assert judged(doc).bytes_to_fetch == 0


def test_the_work_for_a_host_is_the_same_among_1000_as_among_100() -> None:
    def calls(number: int) -> int:
        made = [each for each in read(of("x")) for _ in range(number) if isinstance(each, Document)]
        many = [_named(each, index) for index, each in enumerate(made)]
        counted = 0

        def count_one(_frame: object, event: str, _argument: object) -> None:
            nonlocal counted
            counted += event in {"call", "c_call"}

        before = sys.getprofile()
        sys.setprofile(count_one)
        try:
            fleet_comparison.fleet_of(many, now_s=NOW_S, stale_after_s=DAY_S * 7)
        finally:
            sys.setprofile(before)
        return counted // number

    assert calls(1000) <= calls(100) * 1.1


def _named(document: Document, number: int) -> Document:
    return replace(document, host=f"lab-{number}", torch=f"2.{number}.0")  # no two have the same torch


# --- in words -------------------------------------------------------------------------------------


def test_the_headline_counts_every_state_worst_first() -> None:
    assert headline(a_fleet()) == (
        "8 hosts: 1 failed, 2 different, 1 without a document, 1 too old, 1 not checked, 2 in line"
    )
    assert stale_words(a_fleet()) == "A document older than 7 days does not count as proof."


def test_a_difference_without_a_name_says_itself() -> None:
    difference = FleetDifference(what="other", name="", here="It is odd", expected="", because="")
    assert difference_words(difference) == "It is odd"


@pytest.mark.parametrize(
    "moment",
    [
        "1969-01-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01 00:00:00",
        "\u0662026-01-01T00:00:00Z",
    ],
)
def test_what_is_no_time_is_none(moment: str) -> None:
    assert seconds_of(moment) is None
