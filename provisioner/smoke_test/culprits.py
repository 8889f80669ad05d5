"""Which of many parts make a run fail: found by halving, in as few tries as that takes.

It is known before that all parts together fail and that the run passes without them. The shortest row of parts from
the front that fails is searched; its last part is guilty, because two tries that differ in it alone end differently.
If it does not fail alone, its partners are searched among the parts before it in the same way (QuickXplain: Junker,
AAAI 2004; delta debugging: Zeller and Hildebrandt, IEEE TSE 2002). Then the rest is tried without it: if that fails
too, another part is guilty beside it, and the search begins again.

One guilty part among n is found in ``ceil(log2 n)`` tries, and two more confirm it: it fails alone, the rest passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

Tries = Generator[tuple[str, ...], bool, None]
"""Yields parts to try together, in their order; is sent whether they fail."""

_GUILTY_AT_ONCE = 4  # independent of each other; the fifth is found when the first four are gone


class _SpentError(Exception):
    """The bound of tries was reached."""


def most_tries(parts: int) -> int:
    """Return the largest number of tries for `parts`: for that many independent guilty ones, or pairs.

    >>> most_tries(1), most_tries(2), most_tries(16), most_tries(64)
    (8, 12, 24, 32)
    """
    return _GUILTY_AT_ONCE * tries_for_one(parts)


def tries_for_one(parts: int) -> int:
    """Return the largest number of tries where one of `parts` is guilty by itself.

    >>> tries_for_one(1), tries_for_one(2), tries_for_one(16), tries_for_one(17)
    (2, 3, 6, 7)
    """
    return (parts - 1).bit_length() + 2


@dataclass(slots=True)
class CulpritSearch:
    """A search; what is known so far stands in it at any time, also when it is broken off.

    Parameters
    ----------
    parts : tuple of str
        All of them, each once: together they fail, without all of them the run passes.
    most : int, optional
        Largest number of tries; `most_tries` by default.
    """

    parts: tuple[str, ...]
    most: int = 0
    groups: list[tuple[str, ...]] = field(default_factory=list)  # each fails together, the decisive part first
    suspects: tuple[str, ...] = ()  # among these is the next guilty one
    tried: int = 0
    is_over: bool = False  # the end was reached, within the bound
    _known: dict[frozenset[str], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.suspects = self.parts
        self.most = self.most or most_tries(len(self.parts))
        self._known = {frozenset(self.parts): True, frozenset(): False}

    @property
    def decisive(self) -> tuple[str, ...]:
        """The parts without which the rest passes: one of each group."""
        return tuple(group[0] for group in self.groups)

    @property
    def rest(self) -> tuple[str, ...]:
        """The parts without the decisive ones, in their order."""
        return tuple(each for each in self.parts if each not in self.decisive)

    def tries(self) -> Tries:
        """Yield what to try next until the guilty parts are found or the bound is reached."""
        try:
            while True:
                group = yield from self._smallest_failing(self.rest)
                self.groups.append(group)
                self.suspects = ()
                if not (yield from self._fails(self.rest)):
                    self.is_over = True
                    return
                self.suspects = self.rest
        except _SpentError:
            return

    def _smallest_failing(self, failing: Sequence[str]) -> Generator[tuple[str, ...], bool, tuple[str, ...]]:
        """Return parts that fail together, and do not without any of them; the first is the decisive one."""
        found: list[str] = []
        candidates = list(failing)
        while True:
            passing, end = 0, len(candidates)  # how many from the front pass, and how many fail
            while end - passing > 1:
                middle = (passing + end) // 2
                if (yield from self._fails((*found, *candidates[:middle]))):
                    end = middle
                else:
                    passing = middle
                self.suspects = (*found, *candidates[(passing if not found else 0) : end])
            found.append(candidates[end - 1])
            candidates = candidates[: end - 1]
            if not candidates or (yield from self._fails(found)):
                return tuple(found)

    def _fails(self, parts: Sequence[str]) -> Generator[tuple[str, ...], bool, bool]:
        """Return whether parts fail together: as it was seen, or because more than these passed."""
        asked = frozenset(parts)
        if asked in self._known:
            return self._known[asked]
        if any(asked <= passing for passing, fails in self._known.items() if not fails):
            return False
        if self.tried >= self.most:
            raise _SpentError
        self.tried += 1
        fails = yield tuple(each for each in self.parts if each in asked)
        self._known[asked] = fails
        return fails
