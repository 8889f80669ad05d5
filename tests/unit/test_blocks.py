"""Block digests: whose may be used, which blocks differ, and how that is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisioner.core.models import Damage
from provisioner.files.blocks import damage_sentence, differing_blocks, named_blocks, trusted_digests
from tests.support.builders import variant

RIGHT, OTHER = variant(b"r" * 40), variant(b"o" * 33)
THREE = ("a", "b", "c")
DAMAGE = Damage(
    size=40,
    sha256=RIGHT.sha256,
    block_size=16,
    digests=THREE,
    trusted_by="receipt",
    observed_size=40,
    bad_blocks=(),
)


@pytest.mark.parametrize(
    ("claimed", "published", "by"),
    [
        (None, None, None),
        ((RIGHT.sha256, THREE), None, "receipt"),
        (None, (RIGHT.sha256, THREE), "manifest"),
        ((RIGHT.sha256, ("x", "y", "z")), (RIGHT.sha256, THREE), "manifest"),
        (("0" * 64, THREE), None, None),  # of content nobody asks for
        ((RIGHT.sha256, ()), None, None),
        ((RIGHT.sha256, ("a", "b")), None, None),
        ((RIGHT.sha256, ("a", "b")), (OTHER.sha256, THREE), "manifest"),
        ((OTHER.sha256, THREE), (RIGHT.sha256, ("x", "y", "z")), "receipt"),
    ],
)
def test_digests_are_used_that_fit_a_wanted_content(
    claimed: tuple[str, tuple[str, ...]] | None, published: tuple[str, tuple[str, ...]] | None, by: str | None
) -> None:
    found = trusted_digests((RIGHT, OTHER), block_size=16, claimed=claimed, published=published)
    assert (found and found.by) == by
    if found is not None:
        assert found.digests == THREE
        named = claimed if by == "receipt" else published
        assert named is not None
        assert found.content.sha256 == named[0]


def test_an_empty_content_has_no_blocks_to_compare() -> None:
    empty = variant(b"")
    assert trusted_digests((empty,), block_size=16, claimed=(empty.sha256, ())) is None


@pytest.mark.parametrize(
    ("found", "differ"),
    [
        (["a", "b", "c"], ()),
        (["a", "x", "c"], (1,)),
        (["a", "b"], (2,)),
        ([], (0, 1, 2)),
        (["a", None, "c", "more"], (1,)),
    ],
)
def test_what_differs_is_what_is_not_as_wanted(found: list[str | None], differ: tuple[int, ...]) -> None:
    assert differing_blocks(found, THREE) == differ


def test_many_places_are_counted_and_not_listed() -> None:
    assert named_blocks(range(0, 40, 2)) == "blocks 0, 2, 4, 6, 8, 10 and 14 more places"


@pytest.mark.parametrize(
    ("observed", "bad", "unreadable", "said"),
    [
        (40, (1,), None, "block 1 (of 0 to 2) differs"),
        (40, (0, 1), None, "blocks 0-1 (of 0 to 2) differ"),
        (33, (2,), None, "truncated at byte 33 of 40; its first 32 bytes are right"),
        (32, (2,), None, "truncated at byte 32 of 40; what is there is right"),
        (33, (1, 2), None, "truncated at byte 33 of 40; block 1 (of 0 to 2) differs"),
        (41, (), None, "1 byte too long; the first 40 bytes are right"),
        (1041, (0,), None, "1,001 bytes too long; block 0 (of 0 to 2) differs"),
        (40, (1,), "the disk failed at byte 17", "the disk failed at byte 17; block 1 (of 0 to 2) cannot be used"),
        (40, (1, 2), "the disk failed at byte 17", "the disk failed at byte 17; blocks 1-2 (of 0 to 2) cannot be used"),
    ],
)
def test_damage_is_said_in_a_sentence(observed: int, bad: tuple[int, ...], unreadable: str | None, said: str) -> None:
    damage = replace(DAMAGE, observed_size=observed, bad_blocks=bad, unreadable=unreadable)
    assert damage_sentence(damage) == said


def test_a_file_whose_blocks_nobody_knows_is_too_short_by_its_own_header() -> None:
    damage = replace(DAMAGE, trusted_by="header", digests=(), observed_size=33)
    assert damage_sentence(damage) == "truncated at byte 33 of the 40 its own header asks for"
