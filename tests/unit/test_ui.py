"""Layout, the board and what a stream can show: the pure half of the interface."""

from __future__ import annotations

import doctest
import io
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.core.errors import CommandError, GatedError, ManifestError
from provisioner.core.events import FileProgress, Phase, Stage, StepFinished
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    Check,
    CheckStatus,
    ComfyFile,
    ComfyTarget,
    Conditions,
    Envelope,
    FetchFile,
    FilesPlan,
    FileStep,
    FileSystem,
    Finding,
    FolderLink,
    Gpu,
    HubCacheTarget,
    HubFile,
    Licence,
    LinkConsent,
    LocalCopy,
    Lookalike,
    Machine,
    Manifest,
    Outcome,
    OutcomeStatus,
    PlaceFile,
    ProbeResult,
    Provenance,
    RecordReceipt,
    SpaceNeed,
    UrlFile,
    Variant,
)
from provisioner.core.program import Program
from provisioner.core.redact import redact
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text
from provisioner.plan.steps import Plan
from provisioner.report.outcome import Report, ReportStatus
from provisioner.ui import text as text_module
from provisioner.ui.board import Board, bar, finished_line, overall_line, row_lines, state_words
from provisioner.ui.facts import machine_blocks, manifest_blocks, manifest_summary_blocks, manifests_blocks
from provisioner.ui.problems import error_blocks, finding_blocks
from provisioner.ui.stream import Output, Terminal, terminal_of, wants_colour
from provisioner.ui.tables import plan_blocks, report_blocks
from provisioner.ui.text import (
    Block,
    Column,
    Grid,
    Line,
    Para,
    Row,
    Span,
    cells,
    laid_out,
    pair,
    pair_blocks,
    path_span,
    rendered,
    shorten_path,
    span,
)
from tests.support.builders import whole

ROOT = Path("/models")


def artifact(identity: str, size: int = 1_000_000) -> Artifact:
    return Artifact(
        id=identity,
        role="vae",
        name=f"{identity}.safetensors",
        folder="vae",
        size=size,
        sha256="d" * 64,
        sources=(HubFile(repo_id="org/name", revision="a" * 40, filename="x"),),
    )


def place(of: Artifact) -> ComfyFile:
    return ComfyFile(root=ROOT, relative=PurePosixPath("vae", of.name))


A, B = artifact("first", 4_000_000), artifact("second", 6_000_000)
FETCH_A = FetchFile(artifact=A, destination=place(A), reason="missing")
FETCH_B = FetchFile(artifact=B, destination=place(B), reason="missing", held_bytes=1_000_000)


def plan(*steps: FileStep, checks: tuple[Check, ...] = (), is_commercial: bool = True) -> Plan:
    chosen = ArtifactSet(id="fp8", title="small", target="comfyui", artifacts=(A, B))
    licence = Licence(name="NC", url="https://l", is_commercial_use_allowed=is_commercial, notice="Accept it first.")
    manifest = Manifest(
        schema_version=1,
        id="m",
        title="M",
        licence=licence,
        default_set="fp8",
        sets=(chosen,),
        artifacts=(A, B),
        sha256="b" * 64,
    )
    target = ComfyTarget(given=ROOT, models=ROOT, folders=())
    return whole(FilesPlan(manifest=manifest, set=chosen, target=target, steps=steps, checks=checks))


def checked(of: Artifact, status: CheckStatus, identity: str | None = None) -> Check:
    return Check(artifact=of, destination=place(of), status=status, basis="sha256", identity=identity)


def progress(
    of: Artifact, phase: Phase = "fetching", on_disk: int = 0, hashed: int = 0, rate: float = 0
) -> FileProgress:
    return FileProgress(
        label=f"vae/{of.name}",
        phase=phase,
        size=of.size,
        bytes_on_disk=on_disk,
        bytes_hashed=hashed,
        rate_bytes_s=rate,
    )


def plain(lines: list[Line]) -> list[str]:
    return [rendered(line, is_coloured=False) for line in lines]


def written(blocks: list[Block], width: int | None = None) -> str:
    return "\n".join(plain(laid_out(blocks, width=width)))


# --- layout ----------------------------------------------------------------------------------


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(text_module)
    assert result.attempted > 4
    assert result.failed == 0


@given(st.text(alphabet="ab \u6a21", max_size=300), st.integers(min_value=40, max_value=120))
def test_wrapped_prose_keeps_its_words_and_stays_in_the_window(prose: str, width: int) -> None:
    lines = plain(laid_out([Para(line=span(prose), indent=2, hang=3)], width=width))
    assert "".join("".join(lines).split()) == "".join(prose.split())
    longest_word = max((cells(word) for word in prose.split()), default=0)
    assert all(cells(line.rstrip()) <= max(width, longest_word + 5) for line in lines)


def test_a_path_longer_than_the_window_is_not_broken() -> None:
    path = "/a/very/long/path/" + "x" * 80
    assert path in plain(laid_out([Para(line=span(f"look at {path} now"))], width=40))


def test_a_command_in_a_sentence_is_not_broken() -> None:
    command = "`python3 /a/checkout/scripts/klein_setup.py detect`"
    lines = plain(laid_out([Para(line=span(f"Pass --cpu; {command} shows it, and a ` alone is none."))], width=40))
    assert lines == ["Pass --cpu;", command, "shows it, and a ` alone is none."]


def test_a_long_value_stays_beside_its_name() -> None:
    path = "/a/very/long/path/" + "x" * 80
    (line,) = laid_out(pair_blocks([pair("image", path)]), width=40)
    assert rendered(line, is_coloured=False) == f"  image  {path}"


def test_a_line_in_a_paragraph_keeps_its_indentation_when_it_wraps() -> None:
    text = "Files would be moved behind a link:\n    the link leads to a folder with a long name\nFollow it?"
    assert [rendered(line, is_coloured=False) for line in laid_out([Para(line=span(text))], width=40)] == [
        "Files would be moved behind a link:",
        "    the link leads to a folder with a",
        "    long name",
        "Follow it?",
    ]


def test_prose_is_as_wide_as_the_window_up_to_a_bound() -> None:
    lines = {width: laid_out([Para(line=span("word " * 60))], width=width) for width in (60, 110, 200)}
    widest = {width: max(cells(rendered(line, is_coloured=False)) for line in some) for width, some in lines.items()}
    assert widest == {60: 59, 110: 109, 200: 119}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("into /home/me/ComfyUI", "into ~/ComfyUI"),
        ("/home/me", "~"),
        ("in /home/me.", "in ~."),
        ("'/home/me/x', (/home/me/y)", "'~/x', (~/y)"),
        ("/home/me.old/x and /home/meg/x", "/home/me.old/x and /home/meg/x"),
        ("/mnt/home/me/x and --comfyui=/home/me/x", "/mnt/home/me/x and --comfyui=/home/me/x"),
        (
            "Run `klein-setup verify --comfyui /home/me/x` in /home/me/x",
            "Run `klein-setup verify --comfyui /home/me/x` in ~/x",
        ),
    ],
)
def test_the_home_folder_is_a_tilde_but_not_in_commands(text: str, shown: str) -> None:
    (line,) = laid_out([Para(line=span(text))], width=None, home="/home/me")
    assert rendered(line, is_coloured=False) == shown
    for plain in (Para(line=span(text), is_command=True), Para(line=span(text, "command"))):
        (line,) = laid_out([plain], width=None, home="/home/me")
        assert rendered(line, is_coloured=False) == text


def test_a_link_leads_where_it_says_and_never_to_a_secret() -> None:
    line = (Span("see https://a.example/x?y=1, then "), Span("the page", href="file:///tmp/page"), Span("https://b..."))
    shown = rendered(line, is_coloured=True, is_linked=True)
    assert re.findall("\x1b]8;;([^\x1b]+)", shown) == ["https://a.example/x?y=1", "file:///tmp/page"]
    assert re.sub("\x1b]8;;[^\x1b]*\x1b\\\\", "", shown) == rendered(line, is_coloured=True)
    secret = Para(line=(Span("a page", href="https://host/x?token=secret"),))
    (masked,) = laid_out([secret], width=80, clean=lambda text: text.replace("secret", "***"))
    assert [(each.text, each.href) for each in masked] == [("a page", "")]


def test_a_path_with_something_masked_in_it_is_no_link() -> None:
    in_a_path = Path("/data/token=abcdefgh/x").absolute()  # its address spells it token%3D, which no pattern knows
    (masked,) = laid_out([Para(line=(path_span(in_a_path),))], width=None, clean=redact)
    assert "abcdefgh" not in rendered(masked, is_coloured=True, is_linked=True)
    (kept,) = laid_out([Para(line=(path_span(Path("/data/x y").absolute()),))], width=None, clean=redact, home="/data")
    assert [each.href.endswith("/data/x%20y") for each in kept] == [True]


def test_without_a_terminal_nothing_is_wrapped_or_shortened() -> None:
    path = "diffusion_models/" + "x" * 200
    grid = Grid(columns=(Column(is_path=True), Column(is_optional=True)), rows=(Row((Span(path), Span("why"))),))
    assert plain(laid_out([grid, Para(line=span(path + " and more"))], width=None)) == [
        f"  {path}  why",
        f"{path} and more",
    ]


def test_a_narrow_window_loses_the_optional_column_before_the_path_is_cut() -> None:
    row = Row((Span("ok"), Span("vae/flux2-vae.safetensors"), Span("every byte read")))
    grid = Grid(columns=(Column(), Column(is_path=True), Column(is_optional=True)), rows=(row,))
    assert plain(laid_out([grid], width=40)) == ["  ok  vae/flux2-vae.safetensors"]
    assert "every byte read" in plain(laid_out([grid], width=80))[0]


def test_secrets_go_before_anything_is_cut() -> None:
    seen: list[str] = []

    def clean(text: str) -> str:
        seen.append(text)
        return text.replace("SECRET", "")

    row = Row((Span("a" * 30 + "SECRET" + "b" * 30),))
    lines = plain(laid_out([Grid(columns=(Column(is_path=True),), rows=(row,))], width=40, clean=clean))
    assert any("SECRET" in each for each in seen)
    assert "SEC" not in lines[0]


@given(st.text(alphabet="ab/.\u6a21\u578b", min_size=1, max_size=80), st.integers(min_value=5, max_value=60))
def test_a_shortened_path_fits(path: str, width: int) -> None:
    assert cells(shorten_path(path, width)) <= width


def test_colour_is_only_added_when_asked_for() -> None:
    line = (Span("bad", "bad"), Span(" plain"))
    assert rendered(line, is_coloured=False) == "bad plain"
    assert rendered(line, is_coloured=True) == "\x1b[1;31mbad\x1b[0m plain"


# --- what a stream can do --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_terminal", "term", "is_windows", "escapes", "kind"),
    [
        (False, "xterm", False, True, "none"),
        (True, "xterm-256color", False, True, "full"),
        (True, "dumb", False, True, "plain"),
        (True, None, False, True, "plain"),
        (True, None, True, True, "full"),
        (True, None, True, False, "plain"),
        (False, None, True, False, "none"),
    ],
)
def test_knows_what_a_terminal_can_do(
    is_terminal: bool, term: str | None, is_windows: bool, escapes: bool, kind: Terminal
) -> None:
    told = terminal_of(is_terminal=is_terminal, term=term, is_windows=is_windows, has_escape_sequences=escapes)
    assert told == kind


@pytest.mark.parametrize(
    ("terminal", "choice", "environ", "is_coloured"),
    [
        ("full", None, {}, True),
        ("full", None, {"NO_COLOR": "1"}, False),
        ("full", None, {"NO_COLOR": ""}, True),
        ("full", False, {}, False),
        ("full", True, {"NO_COLOR": "1"}, True),
        ("none", None, {}, False),
        ("none", True, {}, True),
        ("plain", True, {}, False),
    ],
)
def test_colours_when_the_terminal_can_and_nobody_objects(
    terminal: Terminal, choice: bool | None, environ: dict[str, str], is_coloured: bool
) -> None:
    assert wants_colour(terminal=terminal, choice=choice, environ=environ) == is_coloured


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_encoding_makes_writing_fail(encoding: str) -> None:
    raw = io.BytesIO()
    output = Output(io.TextIOWrapper(raw, encoding=encoding, errors="strict"), color=None, environ={})
    output.lines([span("Mod\u00e8les \u6a21\u578b \udcff")])
    assert raw.getvalue().decode(encoding).startswith("Mod")
    assert output.is_unicode == (encoding == "utf-8")


class _Closed(io.StringIO):
    """A pipe whose reader left."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise BrokenPipeError


def test_a_reader_that_left_does_not_stop_the_work() -> None:
    stream = _Closed()
    output = Output(stream, color=None, environ={})
    output.lines([span("one")])
    output.lines([span("two")])
    assert stream.writes == 1


# --- the board -------------------------------------------------------------------------------


def test_the_whole_counts_what_is_held_arriving_and_there() -> None:
    board = Board()
    board.expect(plan(FETCH_A, FETCH_B).files)
    assert board.done_and_total == (1_000_000, 10_000_000)
    board.move(progress(A, on_disk=2_000_000, rate=500_000))
    assert board.done_and_total == (3_000_000, 10_000_000)
    board.finish(FETCH_A)
    assert board.done_and_total == (5_000_000, 10_000_000)
    assert board.files == (1, 2)


def test_the_whole_says_how_long_it_takes() -> None:
    board = Board()
    board.expect(plan(FETCH_A, FETCH_B).files)
    board.move(progress(A, on_disk=2_000_000, rate=500_000))
    board.move(progress(B, on_disk=2_000_000, rate=100_000))
    assert plain([overall_line(board)]) == ["  0 of 2 files, 4.00 MB of 10.0 MB, 600 kB/s, 0:10 left"]


def test_files_that_are_only_read_are_counted_as_read() -> None:
    board = Board()
    board.move(progress(A, "hashing", A.size, A.size))
    board.move(progress(B, "hashing", B.size, 1_000_000, rate=2e6))
    assert list(board.rows) == ["vae/second.safetensors"]
    assert plain([overall_line(board)]) == ["  5.00 MB read, 2.00 MB/s"]


def test_what_arrives_beside_a_plan_is_in_the_whole_from_its_beginning_to_its_end() -> None:
    wheel = replace(progress(A, on_disk=1_000_000, rate=200_000), label="torch-2.whl")
    board = Board()
    board.move(wheel)
    board.expect(plan(FETCH_A, FETCH_B).files)
    board.move(progress(A, on_disk=2_000_000, rate=500_000))
    assert board.done_and_total == (4_000_000, 10_000_000 + A.size)
    assert (board.files, board.rate) == ((0, 3), 700_000)
    board.move(replace(wheel, phase="hashing", bytes_hashed=A.size))
    assert board.done_and_total == (3_000_000 + A.size, 10_000_000 + A.size)
    assert (board.files, list(board.rows)) == ((1, 3), ["vae/first.safetensors"])
    board.expect(plan(FETCH_B).files)
    assert board.files == (1, 2), "the next plan forgets its own files only"


def test_a_file_that_ends_leaves_the_row_of_a_running_one_that_shares_a_name_with_it() -> None:
    other = replace(FETCH_B, destination=replace(place(B), root=Path("/other"), relative=place(A).relative))
    board = Board()
    board.start(FETCH_A)
    board.start(other)
    board.finish(FETCH_A)
    assert board.move(progress(A, on_disk=2)), "the label of both"
    board.finish(other)
    assert not board.move(progress(A, on_disk=3))


def test_stages_are_told_apart_by_what_is_done_to_what() -> None:
    board = Board()
    packages = Stage(doing="installing", what="packages", done="installed", state="started")
    server = Stage(doing="starting", what="ComfyUI", done="started", state="started")
    assert board.take_stage(packages, 10.0)
    assert board.take_stage(server, 12.0)
    assert board.take_stage(replace(packages, state="working", detail="numpy", seconds=5.0), 15.0)
    assert [(each.stage.what, each.stage.detail, each.began_s) for each in board.stages.values()] == [
        ("packages", "numpy", 10.0),
        ("ComfyUI", "", 12.0),
    ]
    assert not board.take_stage(replace(packages, state="done"), 16.0)
    assert [each.stage.what for each in board.stages.values()] == ["ComfyUI"]


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (80, "  0 of 2 files, 4.00 MB of 10.0 MB, 600 kB/s, 0:10 left"),
        (50, "  4.00 MB of 10.0 MB, 600 kB/s, 0:10 left"),
        (40, "  4.00 MB of 10.0 MB, 0:10 left"),
    ],
)
def test_a_narrow_window_keeps_the_time_left_of_the_whole(width: int, words: str) -> None:
    board = Board()
    board.expect(plan(FETCH_A, FETCH_B).files)
    board.move(progress(A, on_disk=2_000_000, rate=500_000))
    board.move(progress(B, on_disk=2_000_000, rate=100_000))
    assert plain([overall_line(board, width=width)]) == [words]


def test_a_straggler_does_not_bring_a_finished_file_back() -> None:
    board = Board()
    board.move(progress(A, on_disk=1))
    board.finish(FETCH_A)
    assert not board.move(progress(A, on_disk=2))
    assert board.rows == {}


def test_a_second_step_of_the_same_file_is_shown_again() -> None:
    board = Board()
    board.finish(RecordReceipt(artifact=A, destination=place(A), reason="verified just now"))
    board.start(FETCH_A)
    assert board.move(progress(A, on_disk=2))


def test_a_verified_copy_is_still_shown_while_it_is_placed() -> None:
    board = Board()
    board.move(progress(A, "hashing", A.size, A.size))
    board.move(progress(A, "placing", 1_000_000))
    assert list(board.rows) == ["vae/first.safetensors"]


@pytest.mark.parametrize(
    ("given_progress", "words"),
    [
        (progress(B, "checking", 1_000_000), "checking 1.00 MB on disk"),
        (progress(B, "fetching", 3_000_000, rate=1e6), "1.00 MB/s  0:03 left"),
        (progress(B, "fetching"), "fetching"),
        (progress(B, "proving", B.size), "verifying"),
        (progress(B, "syncing", B.size), "writing to disk"),
        (progress(B, "waiting"), "waiting: the server is..."),
    ],
)
def test_every_phase_is_named(given_progress: FileProgress, words: str) -> None:
    noted = FileProgress(
        **{
            **{name: getattr(given_progress, name) for name in given_progress.__slots__},
            "note": "the server is busy, trying again in 12 s" if given_progress.phase == "waiting" else "",
        }
    )
    assert state_words(noted, 25) == words


@pytest.mark.parametrize("width", [40, 60, 80, 100, 130])
@pytest.mark.parametrize("phase", get_args(Phase))
def test_a_row_stays_inside_the_window(phase: Phase, width: int) -> None:
    long = FileProgress(
        label="diffusion_models/flux-2-klein-4b-fp8.safetensors",
        phase=phase,
        size=10**10,
        bytes_on_disk=10**9,
        rate_bytes_s=999e6,
        connections=16,
        note="the server asked for 12 s of patience (429), which is a long time to wait for an answer",
    )
    lines = row_lines([long, progress(A)], width=width, is_unicode=True)
    assert all(cells(line) < width for line in plain(lines))


@given(st.integers(0, 10**10), st.integers(0, 10**10), st.integers(4, 40))
def test_a_bar_has_its_width_and_is_full_only_at_the_end(done: int, total: int, width: int) -> None:
    generated = "".join(each.text for each in bar(done, total, width, is_unicode=False))
    assert len(generated) == width
    assert ("-" not in generated) == (done >= total)


def finished(status: OutcomeStatus, width: int | None) -> str:
    outcome = Outcome(step=FETCH_A, status=status, detail="fetched from hub.example", seconds=3.1)
    event = StepFinished(step=FETCH_A, outcome=outcome, number=1, total=1)
    return plain([finished_line(event, width=width)])[0]


def test_a_finished_file_keeps_its_digest_whole_in_a_log_and_short_on_a_screen() -> None:
    assert finished("done", None) == f"verified  vae/first.safetensors  4.00 MB  in 3.1 s  sha256 {'d' * 64}"
    assert finished("done", 80) == "verified  vae/first.safetensors  4.00 MB  in 3.1 s  sha256 dddddddd..."
    assert finished("done", 52) == "verified  vae/first.safetensors  4.00 MB  in 3.1 s"
    assert cells(finished("done", 40)) <= 40


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_failed_step_is_not_called_verified(status: OutcomeStatus) -> None:
    assert finished(status, None) == f"{status:8}  vae/first.safetensors: fetched from hub.example"


# --- blocks ----------------------------------------------------------------------------------


def test_a_plan_says_the_true_size_and_what_is_saved() -> None:
    told = written(plan_blocks(plan(FETCH_A, FETCH_B)))
    assert "10,000,000 bytes (10.0 MB)" in told
    assert "9.00 MB in 2 files" in told
    assert "1.00 MB already on this machine" in told
    assert "continue  vae/second.safetensors" in told
    assert "1.00 MB already here, 5.00 MB to fetch" in told


def test_a_plan_says_what_happens_to_a_file_in_the_way_and_what_it_is() -> None:
    why = "other bytes of the right size"
    fetch = FetchFile(artifact=A, destination=place(A), reason=why, replaces=why)
    checks = (checked(A, "hash-mismatch", "the base model"), checked(B, "ok"))
    told = written(plan_blocks(plan(fetch, checks=checks)))
    assert "replace   vae/first.safetensors" in told
    assert told.count("other bytes of the right size") == 1
    assert ".klein-setup/aside" in told
    assert "there now: the base model" in told
    assert "in place  vae/second.safetensors" in told


def test_a_plan_says_where_a_copy_comes_from() -> None:
    copy = LocalCopy(
        artifact_id="first", path=Path("/cache/blob"), origin="HF cache", device=1, size=A.size, sha256="d"
    )
    step = PlaceFile(artifact=A, destination=place(A), reason="missing", copy=copy)
    told = written(plan_blocks(plan(step)))
    assert f"from the HF cache at {Path('/cache/blob')}" in told
    assert "place " in told


def test_a_licence_without_commercial_use_is_said_with_its_notice() -> None:
    assert "NC does not allow commercial use (https://l)" in written(plan_blocks(plan(is_commercial=False)))
    assert "Accept it first." in written(plan_blocks(plan(is_commercial=False)))
    assert "does not allow" not in written(plan_blocks(plan()))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("missing", "missing"),
        ("hash-mismatch", "wrong bytes"),
        ("size-mismatch", "wrong size"),
        ("unreadable", "unreadable"),
    ],
)
def test_a_report_says_in_words_what_is_wrong_and_what_to_do(status: CheckStatus, words: str) -> None:
    seen = plan(FETCH_A, checks=(checked(A, status, "an HTML page"), checked(B, "ok")))
    told = written(report_blocks(Report(command="verify", status="findings", exit_status=1, plan=seen)))
    assert words in told
    assert f"{'why' if status == 'unreadable' else 'it is'}: an HTML page" in told
    assert "1 of 2 files is wrong or missing." in told
    assert "To fix it:\n  klein-setup repair --manifest m" in told


def test_a_quiet_report_leaves_out_what_is_right() -> None:
    seen = plan(FETCH_A, checks=(checked(A, "missing"), checked(B, "ok")))
    told = written(report_blocks(Report(command="verify", status="findings", exit_status=1, plan=seen), is_quiet=True))
    assert "first" in told
    assert "second" not in told


@pytest.mark.parametrize(
    ("basis", "words"),
    [("sha256", ""), ("receipt", "receipts were trusted"), ("size", "Of 1 file only the size was checked")],
)
def test_success_says_what_it_rests_on(basis: str, words: str) -> None:
    seen = Check(artifact=A, destination=place(A), status="ok", basis=basis)  # type: ignore[arg-type]
    report = Report(command="verify", status="ok", exit_status=0, plan=plan(checks=(seen, checked(B, "ok"))))
    last = written(report_blocks(report)).splitlines()[-1]
    assert last.startswith("All 2 files are correct (10.0 MB).")
    assert words in last
    assert last.endswith("(10.0 MB).") != bool(words)


def test_a_manifest_error_lists_every_issue() -> None:
    error = ManifestError("x.yaml has 2 mistakes.", issues=("x.yaml:3: a", "x.yaml:9: b"), hint="Put them right.")
    assert written(error_blocks(error, is_verbose=False)).splitlines() == [
        "error: x.yaml has 2 mistakes.",
        "  - x.yaml:3: a",
        "  - x.yaml:9: b",
        "  hint: Put them right.",
    ]


def test_a_failed_command_shows_its_last_lines() -> None:
    error = CommandError("pip failed.", last_lines=[f"line {number}" for number in range(50)], exit_status=1)
    told = written(error_blocks(error, is_verbose=False)).splitlines()
    assert told[1].strip() == "line 30"
    assert told[-1].strip() == "line 49"


def test_the_code_of_an_error_is_for_who_asks_for_more() -> None:
    error = GatedError("403", repo_id="org/name")
    assert "code:" not in written(error_blocks(error, is_verbose=False))
    told = written(error_blocks(error, is_verbose=True))
    assert "code: gated, exit status 6" in told
    assert "docs/errors.md#gated" in told
    assert "repo_id: org/name" in told


def test_a_machine_never_shows_a_zero_for_what_was_not_learnt() -> None:
    machine = Machine(
        os="windows",
        os_release="11",
        is_wsl=False,
        architecture="AMD64",
        libc=None,
        python_version="3.12.1",
        probes=(ProbeResult(source="nvml", is_ok=False, detail="no library"),),
    )
    told = written(machine_blocks(machine))
    assert "none found" in told
    assert "nvml: no library" in told
    assert "memory   unknown" in told
    assert "0.0" not in told


def test_manifests_are_listed_and_one_is_shown_with_what_it_claims() -> None:
    manifest = plan().manifest
    assert "fp8" in written(manifests_blocks([manifest]))
    told = written(manifest_blocks(manifest))
    for claim in ("10,000,000 bytes (10.0 MB)", "d" * 64, "a" * 40, "vae/second.safetensors"):
        assert claim in told


@pytest.mark.parametrize("name", ["flux2-klein-4b", "flux2-klein-9b"])
def test_a_manifest_fits_one_screen_and_says_how_to_see_the_rest(name: str) -> None:
    text, file = read_manifest_text(name)
    manifest = parse_manifest(text, file=file)
    told = written(manifest_summary_blocks(manifest, Program().command("manifest show", [name, "--files"])), width=80)
    assert (
        sum(1 + (len(line) - 1) // 80 for line in told.splitlines() if line) + told.count("\n\n") <= 23
    )  # and the blank line at the end
    assert told.splitlines()[-1] == f"`klein-setup manifest show {name} --files`"
    assert "12.45 GB (default)" in told or "18.43 GB (default)" in told
    assert all(f"  {each.id} " in told for each in manifest.sets)


# --- the whole vocabulary ----------------------------------------------------------------------


def outcome(step: FileStep, status: OutcomeStatus = "done", error: Exception | None = None) -> Outcome:
    return Outcome(step=step, status=status, detail="what came of it", bytes_fetched=5, seconds=2, error=error)


REPLACE = FetchFile(artifact=A, destination=place(A), reason="in the way", replaces="in the way")
COPY = LocalCopy(artifact_id="first", path=Path("/c"), origin="HF cache", device=1, size=A.size, sha256="d")
PLACE = PlaceFile(artifact=A, destination=place(A), reason="missing", copy=COPY)
RECORD = RecordReceipt(artifact=A, destination=place(A), reason="verified just now")


@pytest.mark.parametrize(
    ("outcomes", "word"),
    [
        ((outcome(FETCH_A),), "fetched"),
        ((outcome(REPLACE),), "replaced"),
        ((outcome(replace(PLACE, replaces="in the way")),), "replaced"),
        ((outcome(PLACE),), "placed"),
        ((outcome(RECORD),), "ok"),
        ((outcome(REPLACE, "failed", GatedError("403")),), "failed"),
        ((outcome(FETCH_A, "skipped"),), "skipped"),
    ],
)
def test_a_row_says_what_became_of_a_file_over_all_its_steps(outcomes: tuple[Outcome, ...], word: str) -> None:
    done = plan(checks=(checked(A, "ok"), checked(B, "ok")))
    told = written(report_blocks(Report(command="install", status="ok", exit_status=0, plan=done, outcomes=outcomes)))
    row = next(line for line in told.splitlines() if "vae/first" in line)
    assert row.split("  ")[1] == word
    assert told.count("what came of it") == any(each.error is None for each in outcomes)  # once, however many say it


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ((REPLACE,), "replace"),
        ((replace(PLACE, replaces="in the way"),), "replace"),
        ((PLACE,), "place"),
        ((RECORD,), "in place"),
        ((FETCH_A,), "fetch"),
        ((), "unreadable"),
    ],
)
def test_a_plan_says_the_fate_of_a_file_in_a_word(steps: tuple[FileStep, ...], word: str) -> None:
    told = written(plan_blocks(plan(*steps, checks=(checked(A, "unreadable"),))))
    row = next(line for line in told.splitlines() if "first.safetensors" in line)
    assert row.split("  ")[1] == word
    assert "not checked  second.safetensors" in told


@pytest.mark.parametrize(
    ("status", "steps", "last"),
    [
        ("planned", (FETCH_A,), "To apply it:\n  klein-setup install --manifest m --comfyui /models"),
        ("planned", (), "Nothing to do."),
        ("failed", (FETCH_A,), "Plan failed after 1 completed step."),
        ("interrupted", (FETCH_A,), "To continue:\n  klein-setup plan --manifest m --comfyui /models"),
        ("findings", (FETCH_A,), "To fix it:\n  klein-setup repair --manifest m --comfyui /models"),
    ],
)
@pytest.mark.skipif(ROOT.drive != "" or str(ROOT) != "/models", reason="the path is spelled the POSIX way")
def test_a_report_ends_with_what_to_do_next(status: ReportStatus, steps: tuple[FileStep, ...], last: str) -> None:
    outcomes = (outcome(FETCH_A),) if status == "failed" else ()
    report = Report(command="plan", status=status, exit_status=0, plan=plan(*steps), outcomes=outcomes)
    assert written(report_blocks(report)).rstrip("\n").endswith(last)


def test_a_report_without_a_plan_adds_nothing_to_what_was_shown() -> None:
    for status in ("ok", "failed"):
        assert report_blocks(Report(command="detect", status=status, exit_status=0)) == []


def test_findings_come_problems_first_each_with_what_to_do() -> None:
    problem = Finding(code="p", severity="problem", message="cut off", remedy="by-hand")
    warning = replace(problem, severity="warning", message="a twin", path=Path("/x/twin"), hint="Move it.")
    told = written(finding_blocks([warning, problem]))
    assert told.index("problem  cut off") < told.index("warning  a twin")
    assert str(Path("/x/twin")) in told
    assert "hint: Move it." in told


def test_too_little_space_is_said_with_what_is_short() -> None:
    system = FileSystem(path=Path("/home"), device=1, total_bytes=9 * 10**9, free_bytes=10**9)
    short = replace(plan(FETCH_A), space=(SpaceNeed(file_system=system, needed_bytes=4 * 10**9),))
    assert "4.00 GB needed, 1.00 GB free on " in written(plan_blocks(short))
    assert "3.00 GB short" in written(plan_blocks(short))


@pytest.mark.parametrize(
    ("consent", "words"),
    [
        ("no", "you are asked before it is followed; --follow-links agrees"),
        ("remembered", "followed, as you agreed in an earlier run"),
        ("option", "followed, as --follow-links says"),
    ],
)
def test_a_link_on_the_way_is_named_with_where_it_leads_and_who_agreed(consent: LinkConsent, words: str) -> None:
    link = FolderLink(path=Path("/m/vae"), real=Path("/drive/vae"), consent=consent)
    told = written(plan_blocks(replace(plan(FETCH_A), links=(link,))))
    assert f"{Path('/m/vae')} leads to {Path('/drive/vae')}: {words}" in " ".join(told.split())


def test_a_plan_for_an_hf_cache_or_another_disk_says_where() -> None:
    cache = whole(replace(plan().files, target=HubCacheTarget(cache=Path("/cache"))))
    assert f"into the Hugging Face cache {Path('/cache')}" in written(plan_blocks(cache))
    elsewhere = ComfyFile(root=Path("/other"), relative=PurePosixPath("vae/first.safetensors"))
    moved = plan(FetchFile(artifact=A, destination=elsewhere, reason="missing"))
    assert str(elsewhere.path) in written(plan_blocks(moved))


def test_a_gpu_is_told_with_what_decides_about_it() -> None:
    card = Gpu(
        vendor="nvidia",
        name="RTX 4090",
        index=0,
        compute_capability=(8, 9),
        memory_total_bytes=24 * 1024**3,
        memory_free_bytes=22 * 1024**3,
        is_display_attached=True,
        driver_model="WDDM",
    )
    split = replace(card, index=2, uuid="GPU-c", is_mig_enabled=True)
    split = replace(split, mig_devices=("MIG-1", "MIG-2"), mig_memory_bytes=(10 * 1024**3, None))
    radeon = Gpu(vendor="amd", name="RX 7900", index=1, architecture="gfx1100", is_mig_enabled=True, mig_devices=("a",))
    machine = Machine(
        os="linux",
        os_release="6.1",
        is_wsl=True,
        architecture="x86_64",
        libc="glibc 2.36",
        python_version="3.11.7",
        gpus=(card, radeon, split),
        driver_version="550.144.03",
        cuda_driver_version=(12, 4),
        memory_total_bytes=64 * 1024**3,
        memory_available_bytes=32 * 1024**3,
        memory_physical_bytes=128 * 1024**3,
        swap_total_bytes=2 * 1024**3,
        file_systems=(FileSystem(path=Path("/"), device=1, total_bytes=10**12, free_bytes=10**11),),
        recorded_from="machine.json",
    )
    told = written(machine_blocks(machine))
    for fact in (
        "Linux 6.1, x86_64, glibc 2.36 (under WSL)",
        "RTX 4090, 24.0 GiB, 22.0 GiB free, compute capability 8.9, drives a display, WDDM",
        "RX 7900, gfx1100, MIG on, 1 device",
        "GPU-c",
        "GPU 2:0   10.0 GiB, MIG-1",
        "GPU 2:1   MIG-2",
        "550.144.03, supports CUDA up to 12.4",
        "64.0 GiB, 32.0 GiB available, the limit of this container (the computer has 128.0 GiB), swap 2.0 GiB",
        "100.0 GB free of 1.00 TB",
        "read from machine.json, not from this computer",
    ):
        assert fact in told


def test_no_swap_is_said_and_windows_calls_it_a_page_file() -> None:
    bare = Machine(
        os="linux",
        os_release="6.1",
        is_wsl=False,
        architecture="x86_64",
        libc=None,
        python_version="3.12.7",
        memory_total_bytes=1024**3,
        swap_total_bytes=0,
    )
    assert "1.0 GiB, no swap" in written(machine_blocks(bare))
    assert "1.0 GiB, no page file" in written(machine_blocks(replace(bare, os="windows")))


def test_a_manifest_shows_conditions_figures_and_where_digests_were_read() -> None:
    full = replace(
        A,
        sources=(UrlFile(url="https://mirror.example/a"),),
        provenance=Provenance(read_from="the model page", read_on="2026-11-23", agreeing=1, confidence="high"),
        licence="Apache-2.0",
        is_gated=True,
        accept=(Variant(size=5, sha256="e" * 64, what="the other release"),),
        lookalikes=(Lookalike(size=6, sha256="f" * 64, what="a private merge"),),
        min_comfyui="0.9.2",
        note="small",
        folder=None,
    )
    chosen = replace(
        plan().set,
        artifacts=(full,),
        conditions=Conditions(
            min_vram_bytes=8 * 1024**3, min_compute_capability=(8, 9), platforms=("linux", "windows")
        ),
        envelope=Envelope(vram_bytes=9 * 1024**3, steps=4, guidance=1.0, source="model card"),
        note="for small cards",
    )
    told = written(manifest_blocks(replace(plan().manifest, sets=(chosen,), artifacts=(full,))))
    for claim in (
        "from 8.0 GiB of VRAM; from compute capability 8.9; on linux and windows",
        "9.0 GiB of VRAM at the peak, 4 steps, guidance 1.0 (model card)",
        "https://mirror.example/a",
        "the model page, 2026-11-23; 1 independent publication agrees; confidence high",
        "Apache-2.0, gated",
        "the other release",
        "a private merge",
        "0.9.2 or newer",
        "for small cards",
    ):
        assert claim in told
