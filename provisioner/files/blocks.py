"""What the digests of a file's blocks say: whose digests may be used, which blocks differ, and that in words.

Pure: digests in, block numbers and sentences out.  It never says that a file is right; that is for whoever read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from provisioner.core.models import Damage, TrustedBy, Variant
from provisioner.core.units import count, listing

_MOST_RUNS = 6  # more runs of blocks than that are not listed one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """The block digests of a content that a file may be compared with."""

    content: Variant
    digests: tuple[str, ...]  # SHA-256 of every block, in order
    by: TrustedBy


def block_count(size: int, block_size: int) -> int:
    """Return how many blocks so many bytes have; the last one may be short.

    >>> block_count(0, 16), block_count(16, 16), block_count(17, 16)
    (0, 1, 2)
    """
    return -(-size // block_size)


def trusted_digests(
    contents: Sequence[Variant],
    *,
    block_size: int,
    claimed: tuple[str, tuple[str, ...]] | None = None,
    published: tuple[str, tuple[str, ...]] | None = None,
) -> Trusted | None:
    """Return the digests to compare a file with, or None where nobody has any for a wanted content.

    Parameters
    ----------
    contents : sequence of Variant
        What is right at the place, preferred first.
    block_size : int
        Bytes of a block.
    claimed : tuple of (sha256, blocks), optional
        What the receipt says: the digest of the whole, and those of its blocks.
    published : tuple of (sha256, blocks), optional
        The same from the manifest.  It is reviewed, so of the same content it goes before a receipt; a receipt of
        another content that is as good says what the file was, so it goes before the manifest.
    """
    offers: list[tuple[TrustedBy, tuple[str, tuple[str, ...]] | None]] = [("manifest", published), ("receipt", claimed)]
    if claimed is not None and published is not None and claimed[0] != published[0]:
        offers.reverse()
    for by, offer in offers:
        for content in contents:
            if offer is None or offer[0] != content.sha256 or content.size == 0:
                continue
            if len(offer[1]) == block_count(content.size, block_size):
                return Trusted(content=content, digests=offer[1], by=by)
    return None


def digests_of_beginning(
    found: Sequence[str | None], *, observed_size: int, size: int, block_size: int
) -> tuple[str, ...]:
    """Return the digests of the whole blocks of a truncated file, and an empty one for every other block.

    >>> digests_of_beginning(["a", "b", "c"], observed_size=40, size=70, block_size=16)
    ('a', 'b', '', '', '')
    """
    whole = observed_size // block_size
    known = tuple(digest or "" for digest in found[:whole])
    return known + ("",) * (block_count(size, block_size) - len(known))


def differing_blocks(found: Sequence[str | None], wanted: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the blocks that are not as wanted: other bytes, not there, or not to be read (None).

    >>> differing_blocks(["a", None, "x"], ["a", "b", "c", "d"])
    (1, 2, 3)
    """
    return tuple(index for index, digest in enumerate(wanted) if index >= len(found) or found[index] != digest)


def runs_of(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending block numbers as runs, first and last of each.

    >>> runs_of([0, 1, 2, 7, 9, 10])
    [(0, 2), (7, 7), (9, 10)]
    """
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return runs


def named_blocks(blocks: Sequence[int]) -> str:
    """Return block numbers as a person reads them, counted from 0 as in the receipt.

    >>> named_blocks([12]), named_blocks([3, 12, 13])
    ('block 12', 'blocks 3 and 12-13')
    """
    runs = runs_of(blocks)
    names = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:_MOST_RUNS]]
    if len(runs) > _MOST_RUNS:
        names.append(f"{len(runs) - _MOST_RUNS} more places")
    return f"{'block' if len(blocks) == 1 else 'blocks'} {listing(names)}"


def damage_sentence(damage: Damage) -> str:
    """Return what is wrong with a file whose blocks were compared, as a sentence without its full stop.

    Two things can be true at once: the length is another one, and blocks within it differ.
    """
    total = block_count(damage.size, damage.block_size)
    if damage.observed_size < damage.size:
        inside = tuple(i for i in damage.bad_blocks if (i + 1) * damage.block_size <= damage.observed_size)
        what = f"truncated at byte {damage.observed_size:,} of {damage.size:,}"
        if damage.trusted_by == "header":
            return f"truncated at byte {damage.observed_size:,} of the {damage.size:,} its own header asks for"
        if inside:
            return f"{what}; {_differ(inside, total)}"
        cut = damage.observed_size % damage.block_size  # bytes of a block that is not whole: nobody can say of them
        right = f"its first {damage.observed_size - cut:,} bytes are right" if cut else "what is there is right"
        return f"{what}; {right}"
    extra = damage.observed_size - damage.size
    longer = f"{count(extra, 'byte')} too long" if extra else ""
    if not damage.bad_blocks:
        return f"{longer}; the first {damage.size:,} bytes are right"
    what = _differ(damage.bad_blocks, total)
    if damage.unreadable:
        return (
            f"{damage.unreadable.rstrip('.')}; {named_blocks(damage.bad_blocks)} (of 0 to {total - 1}) cannot be used"
        )
    return f"{longer}; {what}" if longer else what


def _differ(blocks: Sequence[int], total: int) -> str:
    """Return which blocks of how many differ.

    >>> _differ([3], 5), _differ([1, 2], 5)
    ('block 3 (of 0 to 4) differs', 'blocks 1-2 (of 0 to 4) differ')
    """
    verb = "differs" if len(blocks) == 1 else "differ"
    return f"{named_blocks(blocks)} (of 0 to {total - 1}) {verb}"
