"""The words of the closing card."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from provisioner.core.models import Download, Finding, Outcome
from provisioner.core.program import Program
from provisioner.plan.steps import InstallPackages
from provisioner.report.outcome import Opening, Report
from provisioner.smoke_test.results import SmokeTest
from provisioner.ui.closing_card import card_blocks, rows_of
from provisioner.ui.console import Ui
from provisioner.ui.text import BLANK, Para, cells, laid_out, rendered, span
from tests.unit.test_ui_smoke import BARE, SMOKE

PACKAGES = InstallPackages(
    where=Path("env"),
    app="comfyui",
    tree=None,
    lines=None,
    reason="",
    download=Download(fetched_bytes=700_000_000, disk_bytes=0),
)
OPENING = Opening(command="klein-setup start", url="http://127.0.0.1:8188", template="Flux.2 [Klein] 4B: Text to Image")
WHOLE = Report(
    command="install",
    status="ok",
    exit_status=0,
    smoke_test=SMOKE,
    opening=OPENING,
    outcomes=(
        Outcome(step=PACKAGES, detail="", status="done", seconds=60, started_s=9.0),
        Outcome(step=PACKAGES, detail="", status="skipped", seconds=0),
        Outcome(step=PACKAGES, detail="", status="failed", bytes_fetched=12_000_000_000, seconds=600, started_s=9.0),
    ),
)


def words_of(report: Report, smoke: SmokeTest, width: int | None = None) -> list[str]:
    return [rendered(line, is_coloured=False) for line in laid_out(card_blocks(report, smoke), width=width)]


def test_everything_that_is_known_takes_eight_lines() -> None:
    assert words_of(WHOLE, SMOKE, 80) == [
        "  image      fox.png",
        "  GPU        A card; took 6.1 s, after 6.4 s to start",
        "  VRAM       9.0 GiB at the peak, 11.0 GiB was free at the start",
        "  fetched    12.00 GB of models, about 700 MB of packages; 10 min in all",
        "  workflow   Flux.2 [Klein] 4B: Text to Image, among ComfyUI's Templates",
        "  all of it  klein-setup report",
        "To start ComfyUI (http://127.0.0.1:8188):",
        "  klein-setup start",
    ]


def test_a_run_whose_report_is_not_kept_names_no_report() -> None:
    assert not [each for each in words_of(replace(WHOLE, command="rehearse"), SMOKE) if "report" in each]


def test_what_is_not_known_is_left_out() -> None:
    report = replace(WHOLE, opening=None, outcomes=())
    assert words_of(report, BARE) == ["  device     not known", "  all of it  klein-setup report"]
    on_cpu = replace(BARE, device="cpu", timings=replace(BARE.timings, total_s=3.0))
    assert words_of(replace(report, opening=replace(OPENING, template=None)), on_cpu) == [
        "  device     cpu; took 3.0 s",
        "  all of it  klein-setup report",
        "To start ComfyUI (http://127.0.0.1:8188):",
        "  klein-setup start",
    ]


def test_commands_are_written_as_the_program_was_started() -> None:
    lines = laid_out(card_blocks(WHOLE, SMOKE, Program("uvx klein-setup")), width=80)
    assert "  all of it  uvx klein-setup report" in [rendered(each, is_coloured=False) for each in lines]


def test_a_narrow_window_wraps_the_words_but_not_the_command() -> None:
    command = "klein-setup start --comfyui '/home/a user/ComfyUI of the lab'"
    *words, last = words_of(replace(WHOLE, opening=replace(OPENING, command=command)), SMOKE, 40)
    assert last == f"  {command}"
    assert max(cells(line) for line in words) <= 40


def test_the_image_takes_what_the_words_leave_counted_as_the_terminal_wraps_them() -> None:
    lines = laid_out([Para(line=span("a" * 85), is_command=True), BLANK, Para(line=span("b"))], width=40)
    assert (rows_of(lines, 40), rows_of(lines, 85), rows_of(lines, 200)) == (5, 3, 3)


def test_the_card_is_last_on_the_screen_and_only_after_a_good_end() -> None:
    def shown(report: Report, *, quiet: bool = False) -> str:
        out = io.StringIO()
        with Ui(out, io.StringIO(), stdin=io.StringIO(), environ={}, quiet=quiet) as ui:
            ui.show_report(report)
        return out.getvalue()

    assert shown(WHOLE).endswith(":\n  klein-setup start\n")
    assert "all of it" in shown(WHOLE)
    for other in ({"status": "failed"}, {"smoke_test": None}, {"command": "verify"}):
        assert "all of it" not in shown(replace(WHOLE, **other))
    assert shown(WHOLE, quiet=True) == ""


def test_a_warning_of_the_image_is_said_once() -> None:
    warning = Finding(
        code="image-weights-missing", severity="warning", message="The image may be wrong.", remedy="repair"
    )
    smoke = replace(BARE, findings=(warning,))
    out = io.StringIO()
    with Ui(out, io.StringIO(), stdin=io.StringIO(), environ={}) as ui:
        ui.show_smoke(smoke)
        ui.show_report(replace(WHOLE, smoke_test=smoke, findings=(warning,)))
    assert out.getvalue().count("The image may be wrong.") == 1
