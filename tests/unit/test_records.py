"""The quick dataclasses behave like the standard library's."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any, ClassVar

import pytest

from provisioner.core import records
from provisioner.core.records import dataclass, field, field_values, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Quick:
    """By keyword."""

    name: str
    size: int = 3
    parts: tuple[int, ...] = ()
    seen: list[int] = field(default_factory=list, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """The standard library's twin of `Quick`."""

    name: str
    size: int = 3
    parts: tuple[int, ...] = ()
    seen: list[int] = dataclasses.field(default_factory=list, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Pair:
    """By position, and checked."""

    left: int
    right: int = 2

    def __post_init__(self) -> None:
        """Refuse a negative left."""
        if self.left < 0:
            message = "negative"
            raise ValueError(message)


def test_fields_defaults_and_factories_are_those_of_a_dataclass() -> None:
    quick, plain = Quick(name="a"), Plain(name="a")
    assert asdict(quick) == asdict(plain)
    assert [each.name for each in fields(quick)] == [each.name for each in fields(plain)]
    assert quick.seen is not Quick(name="a").seen


def test_equality_hash_and_repr_are_those_of_a_dataclass() -> None:
    quick = Quick(name="a", seen=[1])
    assert quick == Quick(name="a", seen=[2])
    assert quick != Quick(name="b")
    plain: object = Plain(name="a")
    assert quick != plain
    assert hash(quick) == hash(Quick(name="a"))
    assert repr(quick) == repr(Plain(name="a")).replace("Plain", "Quick")


def test_nothing_can_be_changed_and_nothing_added() -> None:
    quick: Any = Quick(name="a")
    for name in ("name", "new"):
        with pytest.raises(FrozenInstanceError):
            setattr(quick, name, "b")
    with pytest.raises(FrozenInstanceError):
        del quick.name
    assert not hasattr(quick, "__dict__")
    assert replace(quick, size=4) == Quick(name="a", size=4)


def test_copies_and_pickles_are_equal() -> None:
    quick = Quick(name="a", parts=(1, 2))
    pickled = pickle.loads(pickle.dumps(quick))  # noqa: S301 - made a moment ago
    assert [copy.copy(quick), copy.deepcopy(quick), pickled] == [quick] * 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs name"),
        ({"name": "a", "weight": 1}, "has no weight"),
        ({"size": 1, "x": 2}, "needs name and has no x"),
    ],
)
def test_a_wrong_keyword_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Quick(**given)


def test_positions_count_where_the_class_allows_them() -> None:
    assert Pair(1) == Pair(1, 2) == Pair(right=2, left=1)
    match Pair(5, 6):
        case Pair(left, right):
            assert (left, right) == (5, 6)
    with pytest.raises(ValueError, match="negative"):
        Pair(-1)
    with pytest.raises(TypeError, match="two values"):
        Pair(1, left=1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Pair(1, 2, 3)  # type: ignore[call-arg]
    keyword_only: Any = Quick
    with pytest.raises(TypeError, match="positional"):
        keyword_only("a")


def test_a_method_of_its_own_is_kept() -> None:
    @dataclass(frozen=True, repr=False)
    class Shy:
        secret: str

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    assert Shy("a") == 3
    assert hash(Shy("a")) == 7
    assert "a" not in repr(Shy("secret-a")).split("Shy")[1].split(" object")[0]


@dataclass(slots=True)
class Count:
    """Can be changed; one field is made afterwards."""

    limit: ClassVar[int] = 10

    start: int
    now: int = field(init=False)

    def __post_init__(self) -> None:
        """Begin at the start."""
        self.now = self.start


@dataclass(slots=True)
class NamedCount(Count):
    """With the fields of its base first."""

    name: str = "a"


def test_a_field_that_is_made_afterwards_is_not_given() -> None:
    count = Count(3)
    count.now += 1
    assert (count, count.now, Count.limit) != (Count(3), 3, 10)
    assert replace(count, start=4) == Count(4)
    with pytest.raises(TypeError, match="has no now"):
        Count(start=1, now=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unhashable"):
        hash(count)


def test_a_class_has_the_fields_of_its_base() -> None:
    assert field_values(NamedCount(1, "b")) == [("start", 1), ("now", 1), ("name", "b")]
    assert [each.name for each in fields(NamedCount)] == ["start", "now", "name"]
    assert field_values(Plain(name="a")) is None


def test_the_standard_library_takes_them_for_its_own() -> None:
    quick = Quick(name="a", size=4)
    assert dataclasses.is_dataclass(quick)
    assert dataclasses.replace(quick, name="b") == replace(quick, name="b") == Quick(name="b", size=4)
    assert asdict(Quick(name="a")) == records.asdict(Quick(name="a"))
    assert {each.name: each.compare for each in fields(Quick)} == {each.name: each.compare for each in fields(Plain)}
