"""Which wheels of the cache go."""

from __future__ import annotations

from provisioner.files.download.wheel_cache import IN_USE_S, UNUSED_S, Entry, outlived

NOW = 1_000_000_000.0


def entry(name: str, size: int, age_s: float) -> Entry:
    return Entry(sha256=name, size=size, used_s=NOW - age_s)


def test_what_fits_and_was_used_stays() -> None:
    assert outlived([entry("a", 5, UNUSED_S), entry("b", 5, 0)], NOW, most_bytes=10) == []


def test_what_nobody_used_for_long_goes() -> None:
    old = entry("a", 1, UNUSED_S + 1)
    assert outlived([old, entry("b", 1, 1)], NOW, most_bytes=10) == [old]


def test_the_least_recently_used_go_until_the_rest_fits() -> None:
    entries = [entry("new", 4, IN_USE_S + 1), entry("old", 4, IN_USE_S + 3), entry("mid", 4, IN_USE_S + 2)]
    assert [each.sha256 for each in outlived(entries, NOW, most_bytes=8)] == ["old"]


def test_what_was_used_today_stays_whatever_its_size() -> None:
    assert outlived([entry("a", 100, IN_USE_S - 1), entry("b", 100, 0)], NOW, most_bytes=10) == []
