"""The probes of what Wine cannot do succeed on systems that can, and tests are skipped by nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.wine import GAPS, is_wine

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(is_wine(), reason="shows what it lacks")
@pytest.mark.parametrize("name", GAPS)
def test_a_system_that_can_is_not_taken_for_one_that_cannot(name: str) -> None:
    assert GAPS[name].works()


def test_what_a_test_is_skipped_by_is_a_gap_and_no_gap_is_listed_for_nothing() -> None:
    texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py")]
    used = {name for text in texts for name in re.findall(r'(?:needs|skip_without)\("([^"]+)"\)', text)}
    assert used == set(GAPS)
