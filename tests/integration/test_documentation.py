"""What is written down is what happens: help in the README, examples that need loopback, what an import costs."""

from __future__ import annotations

import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_readme import complaints_about_exit_table, program_help, same_words, with_exit_table, with_help

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
HEAVY = {"huggingface_hub", "psutil", "pynvml", "requests", "rich", "tqdm"}


@pytest.mark.skipif(not README.exists(), reason="there is no README yet")
def test_the_help_in_the_readme_is_the_programs() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_help(text, program_help) == text


def test_a_stale_block_of_help_is_replaced_by_what_the_program_prints() -> None:
    text = "before\n```help\nusage: something else\n```\nafter\n"
    renewed = with_help(text, program_help)
    assert same_words(renewed, f"before\n```help\n{program_help('')}```\nafter\n")
    assert with_help(renewed, program_help) == renewed


def test_writing_makes_an_empty_table_complete_and_keeps_what_the_author_wrote() -> None:
    text = "# x\n\n| exit | code | when |\n|---|---|---|\n| 5 | | my own words |\n\nafter\n"
    renewed = with_exit_table(text)
    assert complaints_about_exit_table(renewed) == []
    assert "my own words" in renewed
    assert renewed.endswith("\n\nafter\n")


@pytest.mark.parametrize("module", ["provisioner.rehearsal.hub"])
def test_the_examples_that_need_loopback_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    "modules",
    [
        "provisioner.core.errors, provisioner.core.models, provisioner.core.events, provisioner.manifest.parse",
        "provisioner.files.planner, provisioner.report.outcome, provisioner.files.engine, provisioner.files.observe",
        "provisioner.cli.main",
    ],
)
def test_an_import_pulls_in_nothing_heavy(modules: str) -> None:
    code = f"import {modules}, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    assert not HEAVY & {name.partition(".")[0] for name in json.loads(done.stdout)}
