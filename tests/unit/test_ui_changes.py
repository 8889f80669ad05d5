"""What a look after an update looks like in a terminal."""

from __future__ import annotations

from dataclasses import replace

from provisioner.core.models import Finding
from provisioner.report.changes import CheckedState, checks_for, compare
from provisioner.ui.change_list import changes_blocks
from provisioner.ui.text import cells, laid_out, rendered

BEFORE = CheckedState(
    taken_at="2026-11-01T08:00:00Z",
    klein_setup="0.1.0",
    driver_version="580.159.04",
    os_release="6.8.0-45",
    custom_nodes=("Old",),
)
CHANGES = compare(BEFORE, replace(BEFORE, driver_version="590.20", os_release="6.8.0-60", custom_nodes=()))
PROBLEM = Finding(
    code="torch-replaced",
    severity="problem",
    message="torch was replaced.",
    remedy="install-environment",
    hint="Put it back.",
)


def generated(*arguments: object, width: int | None = None) -> list[str]:
    blocks = changes_blocks(*arguments)  # type: ignore[arg-type]
    return [rendered(line, is_coloured=False) for line in laid_out(blocks, width=width)]


def test_the_whole_page_reads_from_what_moved_to_the_one_command() -> None:
    mend = "klein-setup install --only environment --comfyui /x"
    assert generated(CHANGES, checks_for(CHANGES), (PROBLEM,), mend) == [
        "Changes  3 things changed since the last full check; 2 of them can break the setup.",
        "  ~  The NVIDIA driver changed from 580.159.04 to 590.20.",
        "  -  Removed custom nodes: Old.",
        "  ~  The system changed from 6.8.0-45 to 6.8.0-60.",
        "",
        "Checked again",
        "  *  whether torch still computes on this GPU with this driver",
        "  *  whether it still generates an image",
        "",
        "  problem  torch was replaced.",
        "           hint: Put it back.",
        "",
        "1 problem. To fix it:",
        "  klein-setup install --only environment --comfyui /x",
    ]


def test_when_all_holds_it_says_so() -> None:
    assert generated(CHANGES[:1], (), (), None)[-1] == "Everything is still correct."
    assert generated((), (), (), None) == [
        "Changes  Nothing changed since the last full check.",
        "",
        "Everything is correct.",
    ]


def test_a_problem_without_a_command_points_to_its_own_hint() -> None:
    assert generated((), (), (PROBLEM,), None)[-1] == "1 problem; see the hint of each."


def test_wrong_files_have_a_command_even_where_no_finding_says_so() -> None:
    assert generated((), (), (), "klein-setup repair")[-2:] == ["To fix it:", "  klein-setup repair"]


def test_it_fits_a_narrow_window() -> None:
    mend = "klein-setup repair --comfyui '/home/a user/ComfyUI of the lab'"
    *lines, command = generated(CHANGES, checks_for(CHANGES), (PROBLEM,), mend, width=50)
    assert max(cells(line) for line in lines) <= 50
    assert command == f"  {mend}"  # a line end in it could not be pasted
