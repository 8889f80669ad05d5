"""The page of a run: one file, everything escaped, whatever the document holds or lacks."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.core.errors import CommandError, NetworkError
from provisioner.core.models import Artifact, Finding, ProbeResult, SpaceNeed
from provisioner.core.program import KLEIN_SETUP, Program, quoted
from provisioner.report.changes import ChangesSince, CheckedState, checks_for, compare
from provisioner.report.html.footer import check_again_command
from provisioner.report.html.image_section import media_type
from provisioner.report.html.node import Node
from provisioner.report.html.page import render_page
from provisioner.report.html.verdict import kicker, verdict
from provisioner.smoke_test.media import audio_words, video_words
from tests.support.builders import (
    COMMIT,
    MODELS,
    check,
    comfy_file,
    file_system,
    gpu,
    machine,
    variant,
    whole,
)
from tests.support.films import FILM, FRAME, FRAMES, SAMPLES, SONG
from tests.support.report_documents import MODEL, SMOKE, VAE, document, installed, plan_of

SHELL = KLEIN_SETUP.shell
MADE_AT = "2026-11-23T06:16:12Z"
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u202e\ud800\x1b[31m"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 40
VOID = {"meta", "img", "wbr"}
INLINE = {"wbr", "code", "strong", "b"}


class Reader(HTMLParser):
    """Collects what a page is made of, and complains where an element is closed that was not open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.complaints: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("" if tag in INLINE else " ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.texts.append("" if tag in INLINE else " ")
        if not self.open or self.open.pop() != tag:
            self.complaints.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


def page_of(doc: Mapping[str, object], image: bytes | None = None) -> Reader:
    page = render_page(doc, image=image, made_at=MADE_AT)
    page.encode("utf-8")
    reader = Reader(page)
    assert reader.open == []
    assert reader.complaints == []
    return reader


# --- the page as a file ------------------------------------------------------------------------


def test_the_page_asks_for_nothing_outside_itself() -> None:
    reader = page_of(installed(), PNG)
    assert {tag for tag, _ in reader.tags} & {"link", "iframe", "object", "form", "base"} == set()
    assert [src[:22] for src in reader.attributes("src")] == ["data:image/png;base64,"]
    assert {tag for tag, attrs in reader.tags if "href" in attrs} == {"a"}
    assert not {"style", "ping", "srcset"} & {name for _, attrs in reader.tags for name in attrs}
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)
    page = render_page(installed(), made_at=MADE_AT)
    assert "url(" not in page
    assert "@import" not in page
    assert any("default-src 'none'" in content for content in reader.attributes("content"))


@pytest.mark.parametrize("kind", ["style", "script"])
def test_the_policy_names_the_one_style_and_the_one_script_by_their_digests(kind: str) -> None:
    page = render_page(installed(), image=PNG, made_at=MADE_AT)
    found = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
    assert len(found) == 1
    digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
    assert f"{kind}-src 'sha256-{digest}';" in html.unescape(page)
    assert "unsafe" not in page


def test_links_lead_to_the_pinned_source_the_licence_and_the_commit() -> None:
    doc = installed()
    details = doc["details"]
    assert isinstance(details, dict)
    details["comfyui"] = {"commit": "c0de" * 10}
    details["smoke_test"]["template"] = "image_flux2.json"
    links = {attrs["href"]: attrs.get("rel") for tag, attrs in page_of(doc).tags if tag == "a"}
    assert set(links) == {
        f"https://huggingface.co/org/name/blob/{COMMIT}/split_files/vae/vae.safetensors",
        f"https://huggingface.co/org/name/blob/{COMMIT}/split_files/vae/model.safetensors",
        "https://example.org/licence",
        f"https://github.com/Comfy-Org/ComfyUI/commit/{'c0de' * 10}",
        "https://github.com/Comfy-Org/workflow_templates/blob/main/templates/image_flux2.json",
    }
    assert set(links.values()) == {"noreferrer noopener"}


@pytest.mark.parametrize(
    "address",
    ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "https://u:p@h.example/", "//h.example/"],
)
def test_an_address_that_is_none_of_the_web_is_no_link(address: str) -> None:
    doc = {"checks": [{"path": "vae/a", "status": "ok", "source_url": address}]}
    assert page_of(doc).attributes("href") == []


def test_the_page_can_be_read_without_seeing_it() -> None:
    reader = page_of(installed(), PNG)
    assert reader.attributes("lang") == ["en"]
    assert [attrs["alt"] for tag, attrs in reader.tags if tag == "img"] == [
        "The image generated for the prompt: a red fox"
    ]
    assert [attrs.get("scope") for tag, attrs in reader.tags if tag == "th" and attrs.get("scope") is None] == []
    assert [tag for tag, _ in reader.tags].count("h1") == 1
    assert [tag for tag, _ in reader.tags].count("caption") == [tag for tag, _ in reader.tags].count("table") == 2
    ids = reader.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(reader.attributes("aria-labelledby")) == set(ids)


def test_the_colours_follow_the_reader_and_paper_has_its_own_sheet() -> None:
    page = render_page({}, made_at=MADE_AT)
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page
    assert "width=device-width" in page


def line_to_check(artifact: Artifact) -> str:
    """Return a file's line as sha256sum writes it: one with backslashes in its path begins with one."""
    path = str(comfy_file(artifact).path)
    doubled = path.replace("\\", "\\\\")
    return f"{artifact.sha256}  {path}" if path == doubled else f"\\{artifact.sha256}  {doubled}"


# --- what it says ------------------------------------------------------------------------------


def test_an_install_is_told_from_the_verdict_to_the_undo() -> None:
    words = page_of(installed(), PNG).words
    for said in (
        "All 2 files are correct and a test image was generated in 4.2 s.",
        "downloaded and hashed in this run",
        "copied and hashed in this run",
        "23 November 2026, 06:16 UTC",
        "5.00 MB in 2.0 s",
        "RTX 4070 24.0 GiB",
        "18446744073709551615",
        "a red fox",
        "The 4 steps took 0.40, 0.30, 0.30, 0.30 seconds.",
        "At the peak 9.0 GiB of the 12.0 GiB of A card were in use; 11.0 GiB were free at the start.",
        "The replaced file is kept as a backup: it is truncated",
        "fetched from example.org",
        f"or the driver: klein-setup verify --set fp8 --comfyui {quoted(str(MODELS), SHELL)}",
        f"klein-setup uninstall --set fp8 --comfyui {quoted(str(MODELS), SHELL)}",
        f"klein-setup backups list --set fp8 --comfyui {quoted(str(MODELS), SHELL)}",
        "Generating 1.3 s",
        "0.33.0",
        "2.14.1+cu130",
    ):
        assert said in words


def test_the_notes_of_a_smoke_test_take_the_place_of_our_own_sentence_about_memory() -> None:
    noted = replace(SMOKE, notes=("The peak was 9.0 GiB; published are 8.4 GB.",))
    words = page_of(document(smoke_test=noted)).words
    assert "published are 8.4 GB." in words
    assert "At its peak" not in words


def test_digests_are_short_to_the_eye_and_whole_for_who_wants_them() -> None:
    reader = page_of(installed())
    assert "--undo-update" not in reader.words
    assert f"{MODEL.sha256[:12]}\u2026" in reader.words
    assert MODEL.sha256 in reader.attributes("title")
    assert " ".join(line_to_check(MODEL).split()) in reader.words


def test_the_digests_to_check_are_those_that_are_wanted_of_all_files() -> None:
    other = hashlib.sha256(b"other").hexdigest()
    wrong = (check(MODEL, "hash-mismatch", observed_sha256=other), check(VAE, "missing"))
    doc = document("verify", "findings", 1, plan=whole(replace(plan_of(steps=False).files, checks=wrong)))
    lines = checked_lines(doc)
    assert lines == [line_to_check(MODEL), line_to_check(VAE)]
    assert f"The file's own SHA-256 is {other}." in page_of(doc).words


def test_of_several_accepted_contents_the_one_that_is_there_is_checked() -> None:
    other = variant(b"as good")
    wanted = replace(MODEL, accept=(other,))
    right = (check(wanted, observed_sha256=other.sha256),)
    assert (
        checked_lines(document(plan=whole(replace(plan_of(steps=False).files, checks=right))))[0].lstrip("\\")[:64]
        == other.sha256
    )
    wrong = (check(wanted, "hash-mismatch", observed_sha256=other.sha256),)  # where the place takes only the own one
    assert (
        checked_lines(document(plan=whole(replace(plan_of(steps=False).files, checks=wrong))))[0].lstrip("\\")[:64]
        == MODEL.sha256
    )


def test_a_line_for_sha256sum_doubles_backslashes_and_says_so() -> None:
    entry = {"expected_sha256": "0" * 64, "destination": "C:\\models\\a"}
    assert checked_lines({"checks": [entry]}) == ["\\" + "0" * 64 + "  C:\\\\models\\\\a"]


def checked_lines(doc: dict[str, object]) -> list[str]:
    """Return the lines for ``sha256sum --check`` as a browser would copy them."""
    found = re.search(
        r"sha256sum --check reads them</summary>.*?<code>(.*?)</code>", render_page(doc, made_at=MADE_AT), re.S
    )
    assert found is not None
    return html.unescape(found[1]).split("\n")


def test_findings_come_once_problems_first_with_what_to_do() -> None:
    warning = Finding(code="driver-changed", severity="warning", message="The driver moved.", remedy="by-hand")
    problem = Finding(
        code="torch-replaced",
        severity="problem",
        message="torch was replaced.",
        remedy="install-environment",
        hint="Run `klein-setup repair`.",
    )
    smoke = replace(SMOKE, findings=(problem,))
    doc = document("verify", "findings", 1, findings=(warning, problem), smoke_test=smoke)
    page = render_page(doc, made_at=MADE_AT)
    words = page_of(doc).words
    assert words.count("torch was replaced.") == 1
    assert words.index("torch was replaced.") < words.index("The driver moved.")
    assert "<code>klein-setup repair</code>" in page
    assert "To fix it: klein-setup install --only environment" in words


def test_what_an_error_says_no_finding_says_again() -> None:
    said = "The image is black."
    doc = document("smoke-test", "failed", 9, errors=(CommandError(said),)) | {
        "findings": [{"severity": "problem", "message": said}] * 2,
    }
    assert page_of(doc).words.count(said) == 3  # the title, the headline, and what went wrong


def test_a_note_that_is_a_finding_too_is_said_once() -> None:
    warning = Finding(code="w", severity="warning", message="The image has hardly any detail.", remedy="by-hand")
    smoke = replace(SMOKE, findings=(warning,), notes=(warning.message, "Another note."))
    words = page_of(document(smoke_test=smoke, findings=(warning,))).words
    assert words.count(warning.message) == 1
    assert "Another note." in words


def test_no_headline_is_green_beside_a_warning() -> None:
    warning = Finding(code="picture-flat", severity="warning", message="The image may be wrong.", remedy="by-hand")
    doc = document(smoke_test=replace(SMOKE, findings=(warning,)), findings=(warning,))
    assert kicker(Node(doc)) == ("OK, with 1 warning", "warn")
    assert kicker(Node(document(smoke_test=SMOKE))) == ("OK", "good")


def test_after_a_verify_that_found_damage_the_next_step_is_repair() -> None:
    changes = ChangesSince(changes=(), since="2026-11-01T08:00:00Z", mend="klein-setup repair --comfyui /m")
    doc = document("verify", "findings", 1, changes=changes, plan=plan_of(steps=False, statuses=("missing", "ok")))
    words = page_of(doc).words
    assert "To fix it: klein-setup repair --comfyui" in words
    assert words.index("What to run next") < words.index("The files")
    assert words.count("klein-setup repair") == 1


@pytest.mark.parametrize(
    ("command", "steps", "said"),
    [
        ("install", [], "receipt; file unchanged since"),
        ("install", [("fetch-file", "done")], "downloaded and hashed in this run"),
        ("install", [("fetch-file", "failed")], "receipt; file unchanged since"),
        ("repair", [("patch-file", "done")], "repaired and hashed in this run"),
        ("install", [("record-receipt", "done")], "every byte was read in this run"),
    ],
)
def test_a_file_that_was_read_a_second_ago_is_not_trusted_by_its_receipt(
    command: str, steps: list[tuple[str, str]], said: str
) -> None:
    done = [{"kind": kind, "destination": "/m/a", "outcome": {"status": status}} for kind, status in steps]
    checks = [{"path": "a", "destination": "/m/a", "status": "ok", "basis": "receipt"}]
    doc = {"command": command, "status": "ok", "steps": done, "checks": checks}
    assert said in page_of(doc).words
    assert ("receipts trusted" in page_of(doc).words) is (said.startswith("receipt"))


def test_the_last_image_stays_with_its_own_date_and_speaks_for_nobody_else() -> None:
    before = json.loads(json.dumps(installed()))
    doc = document("verify")
    last = {"made_at": MADE_AT, "target": before["target"], "smoke_test": before["details"]["smoke_test"]}
    doc["details"] = {"last_image": last}
    reader = page_of(doc, PNG)
    assert "The last test image, 23 November 2026, 06:16 UTC" in reader.words
    assert "This run generated no image; this is the last one." in reader.words
    assert [tag for tag, _ in reader.tags].count("img") == 1
    assert "a test image was generated" not in reader.words
    doc["target"] = {"kind": "comfyui", "path": "/another"}
    assert f"this is the last one, with the models of {MODELS}." in page_of(doc, PNG).words


# --- the charts --------------------------------------------------------------------------------


def charts(doc: Mapping[str, object]) -> list[str]:
    return [
        attrs["aria-label"] or "" for tag, attrs in page_of(doc).tags if tag == "svg" and attrs.get("role") == "img"
    ]


def test_the_memory_is_drawn_over_the_phases() -> None:
    assert SMOKE.vram is not None
    gib = 1024**3
    curve = ((0.0, gib), (2.0, 8 * gib), (3.0, 9 * gib), (4.0, 2 * gib))
    vram = replace(SMOKE.vram, curve=curve, phases=(("start", 0.0), ("load", 1.0), ("sample", 3.0)))
    doc = document(smoke_test=replace(SMOKE, vram=vram))
    assert "Other" not in page_of(doc).words
    assert charts(doc) == ["GPU memory: 9.0 GiB at the peak, of 12.0 GiB"]
    tags = page_of(doc).tags
    assert [attrs["points"] for tag, attrs in tags if tag == "polyline"] == [
        "0.0,220.0 500.0,80.0 750.0,60.0 1000.0,200.0"
    ]
    strip = [(a["x"], a["width"], a["class"]) for tag, a in tags if tag == "rect" and "x" in a]
    assert strip == [("0.000%", "25.000%", "p1"), ("25.000%", "50.000%", "p2"), ("75.000%", "25.000%", "p4")]


def test_without_a_curve_the_phases_are_a_bar() -> None:
    doc = document(smoke_test=SMOKE)
    assert charts(doc) == []
    assert [a["class"] for tag, a in page_of(doc).tags if tag == "rect" and "x" in a] == ["p1", "p2", "p3", "p4", "p5"]


def timed(kind: str, path: str, start_s: float, seconds: float, fetched: int = 0) -> dict[str, object]:
    outcome = {"status": "done", "started_s": start_s, "seconds": seconds, "bytes_fetched": fetched}
    return {"kind": kind, "path": path, "outcome": outcome}


def test_the_time_is_a_waterfall_with_the_rate_of_each_file() -> None:
    seconds = {"fetching": 5.0, "proving": 1.0, "unheard": 3.0}
    transfers = {"interval_s": 0.5, "received_bytes": [1, 3, 2], "files": [{"path": "vae/a", "seconds": seconds}]}
    steps = [timed("make-environment", "/e", 0, 10), timed("fetch-file", "vae/a", 10, 10, 500_000_000)]
    doc = {"command": "install", "status": "ok", "steps": steps, "details": {"transfers": transfers}}
    reader = page_of(doc)
    assert "Make the environment 10 s" in reader.words
    assert "vae/a 10 s \u00b7 100 MB/s" in reader.words
    bars = [(a["x"], a["width"], a["class"]) for tag, a in reader.tags if tag == "rect" and "x" in a]
    assert bars == [
        ("0.000%", "50.000%", "p0"),
        ("50.000%", "25.000%", "p1"),
        ("75.000%", "5.000%", "p3"),
        ("80.000%", "20.000%", "p0"),
    ]
    assert charts(doc) == ["Throughput: 4 B/s on average, 6 B/s at most"]
    assert "downloading hashing other work" in reader.words


def test_steps_that_went_side_by_side_are_drawn_where_they_were_and_the_gain_is_said() -> None:
    steps = [
        timed("fetch-file", "vae/a", 2, 8),
        timed("make-environment", "/e", 2, 5),
        timed("start-comfyui", "/c", 7, 3),
        timed("generate-image", "", 10, 2),
    ]
    reader = page_of({"command": "install", "status": "ok", "steps": steps})
    bars = [(a["x"], a["width"]) for tag, a in reader.tags if tag == "rect" and "x" in a]
    assert bars == [("16.667%", "66.667%"), ("16.667%", "41.667%"), ("58.333%", "25.000%"), ("83.333%", "16.667%")]
    assert "18 s of work in 12 s: what waits for nothing goes side by side." in reader.words
    assert "Start ComfyUI 3.0 s" in reader.words
    one_by_one = page_of({"command": "install", "status": "ok", "steps": steps[1:]})
    assert "of work in" not in one_by_one.words


def test_a_verify_shows_how_fast_each_file_was_read() -> None:
    checks = [{"path": "vae/a", "status": "ok", "basis": "sha256", "observed_size": 3_000_000_000}]
    transfers = {"interval_s": 0.25, "received_bytes": [], "files": [{"path": "vae/a", "seconds": {"hashing": 2.0}}]}
    words = page_of({"command": "verify", "checks": checks, "details": {"transfers": transfers}}).words
    assert "vae/a 2.0 s \u00b7 1.50 GB/s" in words


@pytest.mark.parametrize("received", [[], [5], [0, 0, 0], [1, -2, 3]])
def test_what_is_no_throughput_is_not_drawn(received: list[int]) -> None:
    assert charts({"details": {"transfers": {"interval_s": 0.5, "received_bytes": received}}}) == []


def test_an_error_is_shown_with_its_hint_and_the_last_lines_of_the_process() -> None:
    error = CommandError("pip failed.", hint="Look at the proxy.", tail=["ERROR: no", "such <host>"])
    words = page_of(document(status="failed", exit_status=8, errors=(error,))).words
    assert "Install failed: pip failed." in words
    assert "Hint: Look at the proxy." in words
    assert "ERROR: no such <host>" in words


def test_what_changed_is_told_with_the_one_command() -> None:
    before = CheckedState(taken_at="2026-11-01T08:00:00Z", klein_setup="0.1.0", driver_version="580.159.04")
    changes = compare(before, replace(before, driver_version="590.20"))
    since = ChangesSince(changes=changes, since=before.taken_at, checked=checks_for(changes), mend="klein-setup repair")
    words = page_of(document("verify", "findings", 1, changes=since)).words
    assert "Compared with the last full check, 1 November 2026, 08:00 UTC:" in words
    assert "The NVIDIA driver changed from 580.159.04 to 590.20. can break the setup" in words
    assert "whether torch still computes on this GPU with this driver" in words
    assert words.count("klein-setup repair") == 1


@pytest.mark.parametrize(
    ("since", "said"),
    [
        ("2026-11-01T08:00:00Z", "Nothing changed since 1 November 2026, 08:00 UTC."),
        (None, "There is no earlier full check to compare with."),
    ],
)
def test_that_nothing_changed_is_said_too(since: str | None, said: str) -> None:
    assert said in page_of(document("verify", changes=ChangesSince(changes=(), since=since))).words


def test_a_plan_says_what_is_to_do_and_how_to_do_it() -> None:
    short = SpaceNeed(file_system=file_system(free_bytes=10), needed_bytes=5010)
    words = page_of(document("plan", "planned", plan=plan_of(statuses=("missing", "missing"), space=(short,)))).words
    assert "Nothing was changed yet: 2 steps to do" in words
    assert "5.01 kB needed, 10 bytes free" in words
    assert "5.00 kB too little." in words
    assert "To apply the plan: klein-setup install" in words
    assert "This run changed nothing: there is nothing to undo." in words


def test_a_file_that_is_wrong_is_told_by_what_it_is_and_by_its_sizes() -> None:
    wrong = (check(MODEL, "size-mismatch", observed_size=4, identity="an HTML page"), check(VAE, "missing"))
    words = page_of(
        document("verify", "findings", 1, plan=whole(replace(plan_of(steps=False).files, checks=wrong)))
    ).words
    assert "It is: an HTML page" in words
    assert f"4 bytes instead of {MODEL.size} bytes" in words
    assert "wrong size" in words
    assert "Files correct 0 of 2" in words


def test_the_machine_is_told_with_what_could_not_be_learnt() -> None:
    seen = machine(
        gpu(name="NVIDIA GeForce RTX 4070", memory_free_bytes=11 * 1024**3),
        gpu(name="A second card", index=1, memory_total_bytes=None),
        driver_version="580.159.04",
        cuda_driver_version=(13, 0),
        is_wsl=True,
        memory_total_bytes=32 * 1024**3,
        file_systems=(file_system(Path("/data")),),
        probes=(ProbeResult(source="nvml", is_ok=False, detail="it hung"),),
        recorded_from="machine.json",
    )
    words = page_of(document(machine=seen)).words
    for said in (
        "GPU 0 NVIDIA GeForce RTX 4070, 24.0 GiB, 11.0 GiB free, compute capability 8.9",
        "GPU 1 A second card, compute capability 8.9",
        "RTX 4070 24.0 GiB, and 1 more",
        "580.159.04, supports CUDA up to 13.0",
        "Memory 32.0 GiB",
        "Linux 6.1, x86_64, glibc 2.36 (under WSL)",
        "1.00 TB free of 10.00 TB on",
        "nvml: it hung",
        "read from machine.json, not from this computer",
    ):
        assert said in words


def test_a_repair_is_told_by_its_blocks_and_its_moves() -> None:
    done = {"status": "done", "detail": "", "bytes_fetched": 16_777_216, "seconds": 1.0}
    target = {"kind": "comfyui", "path": "/models"}
    steps = [
        {"kind": "patch-file", "path": "vae/a", "outcome": done, "replaces": "block 3 differs"},
        {
            "kind": "move-file",
            "path": "vae/b",
            "destination": "/models/vae/b",
            "reason": "it lay in /models/b",
            "outcome": done,
        },
    ]
    checks = [{"path": "vae/a", "status": "hash-mismatch", "basis": "blocks", "damage": {"bad_blocks": [3]}}]
    words = page_of({"status": "ok", "command": "repair", "steps": steps, "checks": checks, "target": target}).words
    for said in (
        "Replace only the damaged blocks of vae/a",
        "1 block of it is damaged; the others are correct.",
        "every byte was read, in blocks",
        "Move to the right folder vae/b",
        "klein-setup uninstall --comfyui /models",
        "klein-setup backups list --comfyui /models",
    ):
        assert said in words


def test_a_backtick_that_nothing_closes_stays_a_backtick() -> None:
    assert "it`s" in page_of({"errors": [{"message": "it`s"}]}).words


def test_an_update_of_comfyui_is_taken_back_by_a_command() -> None:
    step = {"kind": "update-comfyui", "path": "/c", "outcome": {"status": "done"}}
    words = page_of({"command": "install", "steps": [step], "target": {"kind": "comfyui", "path": "/c"}}).words
    assert "klein-setup repair --undo-update --comfyui /c" in words
    assert "backups list" not in words


def test_the_environment_is_shown_with_its_versions_and_reasons() -> None:
    environment = {
        "path": "/x/.venv",
        "action": "make",
        "torch": {
            "build": {"torch_backend": "cu130", "index_url": "https://example.org/cu130"},
            "reasons": ["Because."],
        },
        "receipt": {"torch_backend": "cu130", "versions": [["torch", "2.14.1+cu130"]], "python_version": "3.12.3"},
    }
    comfyui = {"version": "0.33.0", "commit": "c0de" * 10, "has_local_changes": True, "custom_nodes": ["A", "B"]}
    words = page_of(installed() | {"details": {"environment": environment, "comfyui": comfyui}}).words
    for said in (
        "2.14.1+cu130",
        "cu130",
        "Because.",
        "--environment /x/.venv",
        "c0dec0dec0de",
        "A, B",
        "Edited",
    ):
        assert said in words


# --- the verdict -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("doc", "tone", "said"),
    [
        ({}, "plain", "This document does not say how the run ended."),
        ({"status": "ok", "command": "rehearse"}, "good", "Rehearse completed."),
        ({"status": "ok", "command": "detect"}, "plain", "This machine was detected."),
        (
            {"status": "ok", "command": "detect", "details": {"torch": {"build": {"torch_backend": "cu130"}}}},
            "plain",
            "The cu130 build of torch fits this machine.",
        ),
        (
            {"status": "ok", "command": "detect", "details": {"torch": {"build": {"torch_backend": "cpu"}}}},
            "plain",
            "torch runs on the CPU here: it has no build for a GPU of this machine.",
        ),
        (
            {"status": "ok", "checks": [{"status": "ok", "basis": "sha256"}]},
            "good",
            "The one file is correct.",
        ),
        (
            {"status": "ok", "checks": [{"basis": "size"}] * 2, "details": {"environment": {"holds": True}}},
            "good",
            "All 2 files are correct (only the size was checked) and the torch environment works.",
        ),
        ({"status": "planned"}, "plain", "Nothing to do: everything is in place."),
        (
            {"status": "planned", "steps": [{}], "totals": {"bytes_to_fetch": 0}},
            "plain",
            "Nothing was changed yet: 1 step to do, nothing to fetch.",
        ),
        ({"status": "findings"}, "warn", "There are findings."),
        (
            {
                "status": "findings",
                "checks": [{"status": "missing"}, {"status": "ok"}],
                "findings": [{"severity": "problem"}],
            },
            "warn",
            "1 of 2 files is wrong or missing and 1 problem was found.",
        ),
        ({"status": "failed"}, "bad", "The run failed."),
        ({"status": "failed", "command": "repair", "errors": [{"message": "No.\nMore."}]}, "bad", "Repair failed: No."),
        ({"status": "failed", "errors": [{"message": "x" * 500}]}, "bad", f"The run failed: {'x' * 157}..."),
        ({"status": "interrupted"}, "warn", "The run was interrupted; what was fetched is kept."),
    ],
)
def test_the_verdict_is_one_sentence(doc: dict[str, object], tone: str, said: str) -> None:
    assert verdict(Node(doc)) == said
    assert kicker(Node(doc))[1] == tone
    assert said in page_of(doc).words


@pytest.mark.parametrize(
    ("target", "program", "command"),
    [
        (("comfyui", "/my models"), Program(), "klein-setup verify --set fp8 --comfyui '/my models'"),
        (("hf_cache", "/hub"), Program("uvx klein-setup"), "uvx klein-setup verify --set fp8 --hf-cache /hub"),
        (("comfyui", "C:\\My UI"), Program("klein-setup", "cmd"), 'klein-setup verify --set fp8 --comfyui "C:\\My UI"'),
        (
            ("comfyui", "C:\\My UI"),
            Program("klein-setup", "powershell"),
            "klein-setup verify --set fp8 --comfyui 'C:\\My UI'",
        ),
        (("", ""), Program(), ""),
    ],
)
def test_the_command_to_check_again_names_the_same_place(
    target: tuple[str, str], program: Program, command: str
) -> None:
    node = Node({"target": dict(zip(("kind", "path"), target, strict=True)), "manifest": {"set": "fp8"}})
    assert check_again_command(node, program) == command


def test_every_command_on_the_page_calls_the_program_as_it_was_started() -> None:
    doc = installed()
    text = render_page(doc, made_at=MADE_AT, program=Program("uvx klein-setup"))
    commands = [each for each in re.findall(r"<code[^>]*>([^<]*)</code>", text) if "klein-setup " in each]
    assert len(commands) > 1
    assert [each for each in commands if not each.startswith("uvx klein-setup ")] == []


# --- the test image --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", None),
        (b"", None),
    ],
)
def test_an_image_is_known_by_its_bytes(data: bytes, expected: str | None) -> None:
    assert media_type(data) == expected
    images = [attrs["src"] for tag, attrs in page_of(installed(), data).tags if tag == "img"]
    assert len(images) == (0 if expected is None else 1)


def test_without_a_smoke_test_an_image_has_no_place() -> None:
    assert "img" not in {tag for tag, _ in page_of(document(), PNG).tags}


def test_an_image_that_did_not_come_is_said() -> None:
    words = page_of(document(smoke_test=replace(SMOKE, image=None))).words
    assert "No image was generated." in words
    assert "Test image not verified" in words


# --- strangers' texts and strangers' documents -------------------------------------------------


def poisoned(value: object) -> object:
    """Return a document in which every text is hostile; keys and statuses stay, so that every part is drawn."""
    if isinstance(value, dict):
        kept = {"status", "command", "severity", "kind", "basis", "action"}
        return {key: each if key in kept else poisoned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


def test_each_gpu_that_was_tested_by_itself_is_a_row() -> None:
    gib = 1024**3
    card = {"gpu": 1, "mig_device": None, "name": "A card", "uuid": "GPU-b", "memory_total_bytes": 12 * gib}
    good = {"card": card, "is_proven": True, "total_s": 6.1, "warm_s": 0.6, "peak_bytes": 9 * gib}
    bad = {"card": {**card, "mig_device": 2}, "is_proven": False, "problem": "It did not start."}
    rows = [good, bad, {"card": {}, "peak_bytes": gib}]
    words = page_of({"command": "smoke-test", "status": "failed", "details": {"cards": rows}}).words
    for said in ("The test image on each GPU", "GPU 1", "GPU 1:2", "A card", "GPU-b", "6.1 s", "0.6 s"):
        assert said in words
    for said in ("9.0 GiB of 12.0 GiB", "It did not start.", "1.0 GiB"):
        assert said in words


def test_mig_devices_are_listed_below_their_gpu() -> None:
    gpu = {
        "index": 0,
        "name": "A card",
        "uuid": "GPU-a",
        "mig_devices": ["MIG-1", "MIG-2"],
        "mig_memory_bytes": [2**30],
    }
    words = page_of({"command": "detect", "status": "ok", "machine": {"gpus": [gpu], "swap_total_bytes": 0}}).words
    assert "Swap none" in words
    assert "Swap 2.0 GiB" in page_of({"command": "detect", "machine": {"os": "linux", "swap_total_bytes": 2**31}}).words
    assert "A card, GPU-a" in words
    assert "GPU 0:0 1.0 GiB, MIG-1 GPU 0:1 MIG-2" in words


def test_a_video_is_shown_by_a_frame_and_its_figures() -> None:
    film = replace(FILM, path=Path("/images/fox.mp4"), frame=FRAME, frame_path=Path("/images/fox-frame.png"))
    doc = document(smoke_test=replace(SMOKE, image=None, image_path=None, media=(film, SONG)))
    page = render_page(doc, image=PNG, made_at=MADE_AT)
    assert 'alt="The video, one frame of it, generated for the prompt: a red fox"' in page
    assert 'width="768"' in page
    assert "No image was generated" not in page
    said = page_of(doc, PNG).words
    for words in (video_words(FRAMES), audio_words(SAMPLES), "Looks like an image", "fox.mp4"):
        assert words in said
    quiet = replace(SONG, decoder=None, audio=None, complaint="this Python has no PyAV")
    page = render_page(
        document(smoke_test=replace(SMOKE, image=None, image_path=None, media=(quiet,))), made_at=MADE_AT
    )
    assert "not decoded, so it is not known whether it is right" in page


@pytest.mark.parametrize("status", ["ok", "findings", "failed", "planned"])
def test_hostile_texts_stay_text_wherever_they_stand(status: str) -> None:
    doc = installed() | {"status": status}
    doc["errors"] = [{"message": "m", "hint": "h", "code": "c", "context": {"tail": ["line"]}}]
    doc["findings"] = [{"severity": "problem", "message": "m", "path": "p", "hint": "h", "code": "c"}]
    details = doc["details"]
    assert isinstance(details, dict)
    details["comfyui"] = {"version": "v", "commit": "c", "path": "p", "custom_nodes": ["n"]}
    details["environment"] = {
        "path": "p",
        "action": "make",
        "receipt": {"versions": [["torch", "2"]]},
        "torch": {"reasons": ["r"]},
    }
    details["changes"] = {
        "since": "s",
        "changes": [{"sentence": "s", "matters": True}],
        "checked": ["c"],
        "mend_command": "m",
    }
    details["licence"] = {"name": "n", "url": "u"}
    details["cards"] = [{"card": {"name": "n", "uuid": "u"}, "problem": "p"}]
    details["transfers"] = {
        "interval_s": 0.5,
        "received_bytes": [1, 2, 3],
        "files": [{"path": "p", "seconds": {"fetching": 1.0}}],
    }
    hostile = poisoned(doc)
    assert isinstance(hostile, dict)
    page = render_page(hostile, image=PNG, made_at=HOSTILE)
    reader = page_of(hostile, PNG)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert set(reader.attributes("href")) == set()
    assert [tag for tag, _ in reader.tags].count("img") == 1
    assert "onerror" not in {name for _, attrs in reader.tags for name in attrs}
    assert "alert(1)" in reader.words
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert Reader(page).complaints == []


def test_a_secret_that_was_missed_elsewhere_does_not_reach_the_page() -> None:
    doc = {"status": "failed", "errors": [{"message": "GET https://u:pw@h.example/f?X-Sig=abc with hf_AbCdEfGh1234"}]}
    page = render_page(doc, made_at=MADE_AT)
    for secret in ("pw@", "X-Sig", "AbCdEfGh1234"):
        assert secret not in page


def holes(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Return the way to every place in a document."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in entries:
        yield (*path, key)
        yield from holes(each, (*path, key))


def test_a_missing_key_never_breaks_the_page() -> None:
    whole = json.loads(json.dumps(installed()))
    ways = [way for way in holes(whole) if not {each for each in way if isinstance(each, int)} - {0}]
    assert len(ways) > 100
    for way in ways:
        doc = json.loads(json.dumps(whole))
        place = doc
        for key in way[:-1]:
            place = place[key]
        del place[way[-1]]
        page_of(doc)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400) | st.just(HOSTILE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_value_of_any_other_type_never_breaks_the_page(data: st.DataObject) -> None:
    doc = json.loads(json.dumps(installed()))
    way = data.draw(st.sampled_from(list(holes(doc))))
    place = doc
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = data.draw(VALUES)
    page_of(doc)


def test_an_error_without_anything_is_still_an_error() -> None:
    assert "An error without a message." in page_of({"status": "failed", "errors": [{}]}).words


def test_a_network_error_of_ours_is_shown_without_lines_it_does_not_have() -> None:
    words = page_of(document(status="failed", exit_status=5, errors=(NetworkError("No route.", url="x"),))).words
    assert "Install failed: No route." in words
    assert "Its last lines" not in words
