"""The page and the table of a fleet."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from provisioner.report.fleet_comparison import Fleet, FleetHost
from provisioner.report.html.fleet_page import render_fleet_page
from provisioner.ui.fleet_table import fleet_blocks
from provisioner.ui.text import laid_out
from tests.support.fleets import a_fleet, judged, lock_of, of, with_problems
from tests.unit.test_page import HOSTILE, Reader

MADE_AT = "2026-11-27T14:00:00.000Z"


def reader_of(fleet: Fleet, *manifests: str) -> Reader:
    page = render_fleet_page(fleet, made_at=MADE_AT, manifests=manifests)
    page.encode("utf-8")
    reader = Reader(page)
    assert reader.complaints == []
    assert reader.open == []
    ids = reader.attributes("id")
    assert len(ids) == len(set(ids))
    links = reader.attributes("href")
    assert [link for link in links if not link.startswith("#") or link[1:] not in ids] == []
    return reader


def lines_of(fleet: Fleet, *, width: int | None = None, is_quiet: bool = False) -> list[str]:
    lines = laid_out(fleet_blocks(fleet, is_quiet=is_quiet), width=width)
    return ["".join(each.text for each in line) for line in lines]


# --- the page -------------------------------------------------------------------------------------


def test_every_host_has_a_row_and_those_that_need_attention_a_section() -> None:
    reader = reader_of(a_fleet())
    assert "8 hosts: 1 failed, 2 different, 1 without a document, 1 too old, 1 not checked, 2 in line" in reader.words
    rows = reader.words.partition(" To fetch ")[2]
    for number in range(3, 9):
        assert f"lab-{number} " in rows
    assert (
        "RTX 5090 in line fp8 flux2-klein-4b 0.33.0 torch 2.14.1+cu130 2 of 2, not read 26 November 2026, 13:47 UTC"
        in rows
    )
    assert sorted(reader.attributes("href")) == [
        "#host-1-title",
        "#host-2-title",
        "#host-3-title",
        *["#hosts-title"] * 3,
    ]
    assert "huggingface.co cannot be reached. Hint: Check the network" in reader.words
    assert "The last install did not end well." in reader.words
    assert "torch is 2.13.0+cu130; expected is 2.14.1+cu130, as on 5 of 6 hosts" in reader.words
    assert "diffusion_models/model.safetensors: wrong bytes" in reader.words
    assert "8.json it is not a JSON object" in reader.words


def test_what_to_do_is_a_command_to_paste_of_ours_and_none_that_a_document_names() -> None:
    evil = of("lab-1", status="findings", exit_status=1) | {"next_command": "rm -rf /"}
    evil["checks"][0]["status"] = "missing"
    evil["steps"] = [{"kind": "fetch-file", "path": evil["checks"][0]["path"], "bytes_to_fetch": 9, "outcome": None}]
    page = render_fleet_page(judged(evil), made_at=MADE_AT, manifests=("my lab.yaml",))
    assert "klein-setup repair --manifest &#x27;my lab.yaml&#x27;" in page
    assert "rm -rf" not in page
    assert "--update-comfyui" not in page
    assert "--only environment" not in page
    two = render_fleet_page(judged(evil), made_at=MADE_AT, manifests=("a.yaml", "b.yaml"))
    assert "klein-setup repair</code>" in two  # which of them is meant depends on the host


def test_each_kind_of_difference_has_its_own_command() -> None:
    old = of("lab-1") | {"versions": {"comfyui": "0.32.0", "torch": "2.13.0"}}
    page = render_fleet_page(judged(old, of("lab-2"), of("lab-3")), made_at=MADE_AT)
    assert "klein-setup repair --only environment</code>" in page
    assert "klein-setup install --update-comfyui</code>" in page
    assert "klein-setup repair</code>" not in page
    assert "klein-setup verify --json &gt; HOST.json</code>" in page


def test_a_fleet_in_line_has_nothing_to_do() -> None:
    reader = reader_of(judged(of("lab-1")))
    assert "1 host: 1 in line" in reader.words
    assert "What to do" not in reader.words
    assert "Compared with what most hosts have" in reader.words
    assert reader.attributes("class")[:1] == ["good"]
    assert reader_of(judged(of("lab-1"), b"")).attributes("class")[:1] == ["warn"]


def test_the_page_says_what_it_compares_with() -> None:
    reader = reader_of(judged(of("lab-1"), locks=[lock_of()]), "lab.yaml", "other.yaml")
    assert "Compared with lab.yaml, other.yaml." in reader.words
    assert "A document older than 7 days does not count as proof." in reader.words


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    reader = reader_of(a_fleet())
    assert reader.attributes("src") == []
    policies = [attrs["content"] or "" for tag, attrs in reader.tags if "http-equiv" in attrs]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")


def test_hostile_texts_stay_text_on_the_page_and_in_the_table() -> None:
    hostile = with_problems(of("lab-1"), HOSTILE) | {"host": HOSTILE, "ended_at": HOSTILE, "command": HOSTILE}
    hostile |= {"machine": {"gpus": [{"name": HOSTILE}], "driver_version": HOSTILE}, "versions": {"torch": HOSTILE}}
    fleet = judged(hostile)
    tags = {tag for tag, _ in reader_of(fleet).tags}
    assert tags.isdisjoint({"img", "iframe", "b"})
    assert all(line.isprintable() for line in lines_of(fleet))


def test_an_empty_fleet_and_one_whose_every_text_is_empty_have_a_page() -> None:
    fleet = a_fleet()
    blank = {each.name: type(getattr(fleet.hosts[0], each.name))() for each in fields(FleetHost)}
    host = replace(fleet.hosts[0], **{**blank, "state": "failed"})
    reader_of(replace(fleet, hosts=(host,), unusable=()))
    reader_of(replace(fleet, hosts=(), unusable=()))


# --- the table ------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_host_with_what_is_wrong_below_it() -> None:
    lines = lines_of(a_fleet())
    head = next(line for line in lines if "Checked" in line)
    assert head.split() == ["Host", "GPU", "Set", "ComfyUI", "torch", "Files", "Checked", "To", "fetch"]
    first = lines.index(head) + 1
    assert lines[first].split()[:2] == ["failed", "lab-5"]
    assert lines[first + 1].strip() == "unreachable: huggingface.co cannot be reached."
    good = next(line for line in lines if "lab-1.example.org" in line)
    expected = "in line lab-1.example.org RTX 4070 fp8 0.33.0 2.14.1+cu130 2 of 2, not read 2026-11-26 13:47"
    assert good.split() == expected.split()
    assert "8.json: it is not a JSON object." in lines
    assert lines[-2].startswith("To bring all in line: ")
    assert lines[-1] == "A document older than 7 days does not count as proof."


def test_quiet_shows_only_the_hosts_that_are_not_in_line() -> None:
    assert not any("lab-1.example.org" in line for line in lines_of(a_fleet(), is_quiet=True))
    assert lines_of(judged(of("lab-1")), is_quiet=True) == ["1 host: 1 in line.", "No host has anything to fetch."]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_narrow_window_keeps_state_and_host(width: int) -> None:
    lines = lines_of(a_fleet(), width=width)
    assert any(line.strip().startswith("failed") and "lab-5" in line for line in lines)


def test_a_host_with_very_many_differences_shows_the_first_ones() -> None:
    doc = with_problems(of("lab-1"), *(f"problem {number}" for number in range(12)))
    lines = [line.strip() for line in lines_of(judged(doc))]
    assert "problem 7" in lines
    assert "problem 8" not in lines
    assert "and 4 more" in lines
