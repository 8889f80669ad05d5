"""What is written down is what happens: help in the docs, examples that need loopback, what an import costs."""

from __future__ import annotations

import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_readme import (
    COMMANDS,
    complaints_about_exit_table,
    program_help,
    renewed,
    same_words,
    with_every_command,
    with_exit_table,
    with_help,
)
from tests.support.documented import PAGES

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"huggingface_hub", "psutil", "pynvml", "requests", "rich", "tqdm"}


def test_the_help_in_the_docs_is_the_programs() -> None:
    assert [page.name for page in PAGES if renewed(page, text := page.read_text(encoding="utf-8")) != text] == []


def test_a_command_without_help_in_the_docs_gets_it() -> None:
    text = COMMANDS.read_text(encoding="utf-8")
    lacking = text.replace("```help manifest lock\n", "```text\n")
    assert with_every_command(text) == text
    assert with_every_command(lacking) == lacking + "\n## klein-setup manifest lock\n\n```help manifest lock\n```\n"


def test_a_stale_block_of_help_is_replaced_by_what_the_program_prints() -> None:
    text = "before\n```help\nusage: something else\n```\nafter\n"
    written = with_help(text, program_help)
    assert same_words(written, f"before\n```help\n{program_help('')}```\nafter\n")
    assert with_help(written, program_help) == written


def test_writing_makes_an_empty_table_complete_and_keeps_what_the_author_wrote() -> None:
    text = "# x\n\n| exit | code | when |\n|---|---|---|\n| 5 | | my own words |\n\nafter\n"
    written = with_exit_table(text)
    assert complaints_about_exit_table(written) == []
    assert "my own words" in written
    assert written.endswith("\n\nafter\n")


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
