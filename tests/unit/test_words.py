"""Sizes, rates, durations and counts in words."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.core import units as words


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(words)
    assert result.attempted > 8
    assert result.failed == 0


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (9_999, "10.0 kB"),
        (99_949, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (335_304_388, "335 MB"),
        (4_070_624_520, "4.07 GB"),
        (12_451_820_124, "12.45 GB"),
        (211_400_000_000, "211.4 GB"),
        (999_960_000_000, "1.00 TB"),
        (5 * 10**18, "5000.0 PB"),
        (-4_070_624_520, "-4.07 GB"),
    ],
)
def test_a_size_is_said_in_decimal_units(number: int, said: str) -> None:
    assert words.human_bytes(number) == said


@given(st.integers(min_value=1000, max_value=10**17))
def test_a_size_is_never_further_off_than_its_last_digit(number: int) -> None:
    value, unit = words.human_bytes(number).split()
    scale = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}[unit]
    assert 1 <= float(value) < 1000
    assert math.isclose(float(value) * scale, number, rel_tol=0.0051)


def test_the_exact_size_keeps_every_digit() -> None:
    assert words.exact_bytes(12_451_820_124) == "12,451,820,124 bytes"


@pytest.mark.parametrize(("rate", "said"), [(0.0, "0 B/s"), (999.6, "1.00 kB/s"), (1.6e9, "1.60 GB/s")])
def test_a_rate_is_said_per_second(rate: float, said: str) -> None:
    assert words.human_rate(rate) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "under 0.1 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (60, "1 min"),
        (100.2, "1 min 40 s"),
        (3599.7, "1 h"),
        (86_399, "23 h 59 min"),
        (86_400, "1 day"),
        (200_000, "2 days 7 h"),
        (math.inf, "an unknown time"),
        (math.nan, "an unknown time"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert words.human_duration(seconds) == said


@given(st.floats(min_value=0, max_value=10**7))
def test_no_duration_has_sixty_of_anything(seconds: float) -> None:
    assert "60 s" not in words.human_duration(seconds)
    assert "60 min" not in words.human_duration(seconds)


@pytest.mark.parametrize(("seconds", "shown"), [(59.7, "1:00"), (3600, "1:00:00"), (-1, "-:--"), (math.nan, "-:--")])
def test_a_clock_shows_what_is_left(seconds: float, shown: str) -> None:
    assert words.clock(seconds) == shown


@given(st.integers(min_value=0, max_value=10**12), st.integers(min_value=1, max_value=10**12))
def test_a_hundred_percent_means_all_of_it(done: int, total: int) -> None:
    assert (words.percent(done, total) == "100 %") == (done >= total)


def test_the_memory_of_a_gpu_is_said_in_binary_units() -> None:
    assert words.gib(150_754_820_096) == "140.4 GiB"


@pytest.mark.parametrize(("items", "said"), [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b and c")])
def test_a_listing_reads_as_a_sentence(items: list[str], said: str) -> None:
    assert words.listing(items) == said
