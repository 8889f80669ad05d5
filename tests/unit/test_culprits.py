"""The search for guilty parts, among up to 64, against guilty ones that are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import pytest

from provisioner.smoke_test.culprits import CulpritSearch, most_tries, tries_for_one


def searched(
    number: int, fails: Callable[[frozenset[str]], bool], *, most: int = 0
) -> tuple[CulpritSearch, list[frozenset[str]]]:
    """Return a search that was walked to its end, and what it tried."""
    search = CulpritSearch(tuple(f"p{each:02}" for each in range(number)), most=most)
    tried: list[frozenset[str]] = []
    steps = search.tries()
    try:
        asked = next(steps)
        while True:
            assert list(asked) == [each for each in search.parts if each in asked]  # in their order
            tried.append(frozenset(asked))
            asked = steps.send(fails(tried[-1]))
    except StopIteration:
        return search, tried


def any_of(guilty: Iterable[Iterable[str]]) -> Callable[[frozenset[str]], bool]:
    """Return what fails as soon as one of the groups is there as a whole."""
    groups = [frozenset(each) for each in guilty]
    return lambda parts: any(group <= parts for group in groups)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64])
def test_every_single_guilty_part_is_found_within_the_bound(number: int) -> None:
    for at in range(number):
        guilty = f"p{at:02}"
        search, tried = searched(number, any_of([[guilty]]))
        assert search.groups == [(guilty,)]
        assert search.is_over
        assert len(tried) == search.tried <= tries_for_one(number) == math.ceil(math.log2(number)) + 2
        assert len(set(tried)) == len(tried)  # nothing is tried twice
        assert guilty not in search.rest
        assert len(search.rest) == number - 1
        seen = {*tried, frozenset(search.parts)}
        assert frozenset([guilty]) in seen  # that it fails alone was seen, and that the rest passes
        assert frozenset(search.rest) in {*tried, frozenset()}


def test_16_parts_take_at_most_6_tries() -> None:
    assert max(len(searched(16, any_of([[f"p{at:02}"]]))[1]) for at in range(16)) == 6


@pytest.mark.parametrize("number", [2, 3, 8, 16, 33, 64])
def test_two_that_fail_only_together_are_both_found(number: int) -> None:
    chance = random.Random(number)
    for _ in range(40):
        pair = chance.sample([f"p{each:02}" for each in range(number)], 2)
        search, tried = searched(number, any_of([pair]))
        assert [sorted(group) for group in search.groups] == [sorted(pair)]
        assert search.is_over
        assert len(tried) <= 2 * tries_for_one(number)
        assert search.decisive[0] in pair
        assert not any_of([pair])(frozenset(search.rest))


@pytest.mark.parametrize("number", [2, 3, 8, 16, 33, 64])
def test_two_that_fail_each_alone_are_both_found(number: int) -> None:
    chance = random.Random(number)
    for _ in range(40):
        two = chance.sample([f"p{each:02}" for each in range(number)], 2)
        search, tried = searched(number, any_of([[each] for each in two]))
        assert sorted(search.groups) == sorted((each,) for each in two)
        assert search.is_over
        assert len(tried) <= 2 * tries_for_one(number)


def test_random_groups_leave_a_rest_that_passes_whatever_they_are() -> None:
    chance = random.Random(1)
    for _ in range(400):
        number = chance.randint(1, 64)
        names = [f"p{each:02}" for each in range(number)]
        groups = [chance.sample(names, min(number, chance.randint(1, 3))) for _ in range(chance.randint(1, 3))]
        fails = any_of(groups)
        search, tried = searched(number, fails)
        assert len(tried) <= most_tries(number)
        for group in search.groups:
            assert fails(frozenset(group))
            assert all(not fails(frozenset(group) - {each}) for each in group)  # none of it could be left out
        if search.is_over:
            assert not fails(frozenset(search.rest))
        else:
            assert len(tried) == most_tries(number)


def test_where_the_bound_is_reached_what_is_known_so_far_stands_there() -> None:
    search, tried = searched(64, any_of([["p40"]]), most=3)
    assert (search.is_over, search.groups, len(tried)) == (False, [], 3)
    assert "p40" in search.suspects
    assert len(search.suspects) == 8
    search, _ = searched(64, any_of([["p40"]]), most=7)  # found, and that it fails alone; the rest was not tried
    assert (search.is_over, search.groups, search.suspects) == (False, [("p40",)], ())
    search, _ = searched(8, any_of([["p03", "p06"]]), most=5)
    assert {"p06", "p03"} <= set(search.suspects)


def test_a_search_that_is_broken_off_knows_what_it_had_found() -> None:
    search = CulpritSearch(("a", "b", "c", "d"))
    steps = search.tries()
    assert next(steps) == ("a", "b")
    assert len(search.suspects) == 4
    assert steps.send(False) == ("a", "b", "c")
    assert list(search.suspects) == ["c", "d"]
    steps.close()
    assert (search.is_over, search.groups) == (False, [])


def test_a_part_that_hides_the_failure_does_not_lead_astray_for_ever() -> None:
    def fails(parts: frozenset[str]) -> bool:  # p05 hides what p02 does, unless p09 is there as well
        return "p02" in parts and ("p05" not in parts or "p09" in parts)

    search, tried = searched(16, fails)
    assert len(tried) <= most_tries(16)
    if search.is_over:
        assert not fails(frozenset(search.rest))


def test_parts_that_always_fail_end_at_the_bound() -> None:
    search, tried = searched(16, lambda parts: True)
    assert len(tried) <= most_tries(16)
    assert search.groups[0] == ("p00",)
