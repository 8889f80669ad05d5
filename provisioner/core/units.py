"""Sizes, rates, durations and counts as text.

Decimal units for files, as browsers and ``curl`` show them (1 GB = 1,000,000,000 bytes); binary units only for
the memory of a GPU.  English only; the locale is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def exact_bytes(number: int) -> str:
    """Return every digit of a size.

    >>> exact_bytes(12451820124)
    '12,451,820,124 bytes'
    >>> exact_bytes(1)
    '1 byte'
    """
    return count(number, "byte")


def human_bytes(number: float) -> str:
    """Return a size in decimal units, with at least three digits from one kB up.

    Gigabytes keep two decimals below 100, because the files of a set differ in them.

    >>> [human_bytes(n) for n in (0, 999, 4_070_624_520, 12_451_820_124, 336_213_556)]
    ['0 bytes', '999 bytes', '4.07 GB', '12.45 GB', '336 MB']
    >>> human_bytes(999_999_999)
    '1.00 GB'
    """
    if number < 0:
        return f"-{human_bytes(-number)}"
    if round(number) < 1000:
        return count(round(number), "byte")
    return _scaled(number)


def human_rate(bytes_per_second: float) -> str:
    """Return a transfer rate, in decimal units per second.

    >>> human_rate(112_400_000), human_rate(950.4), human_rate(0)
    ('112 MB/s', '950 B/s', '0 B/s')
    """
    if round(bytes_per_second) < 1000:
        return f"{round(bytes_per_second)} B/s"
    return f"{_scaled(bytes_per_second)}/s"


def _scaled(number: float) -> str:
    """Return `number` with the first unit in which it stays below 1000 after rounding."""
    value = float(number)
    for unit in _UNITS:
        value /= 1000
        text = f"{value:.{_decimals(value, unit)}f}"
        if float(text) < 1000 or unit == _UNITS[-1]:
            return f"{text} {unit}"
    raise AssertionError("the last unit always returns")  # pragma: no cover - for the type checker


def _decimals(value: float, unit: str) -> int:
    """Return the decimals that say enough: 4.07 GB, 12.45 GB, 336 MB, 33.6 MB."""
    if value >= 99.95:
        return 1 if unit in {"GB", "TB", "PB"} else 0
    if value >= 9.995 and unit in {"kB", "MB"}:
        return 1
    return 2


def gib(number: int) -> str:
    """Return an amount of GPU memory in binary gigabytes, as drivers report it.

    >>> gib(25_757_220_864)
    '24.0 GiB'
    """
    return f"{number / 1024**3:.1f} GiB"


def human_duration(seconds: float) -> str:
    """Return a length of time in the two largest units that matter.

    >>> [human_duration(s) for s in (0.02, 3.14, 38.2, 100, 7500, 97200)]
    ['under 0.1 s', '3.1 s', '38 s', '1 min 40 s', '2 h 5 min', '1 day 3 h']
    """
    if not math.isfinite(seconds):
        return "an unknown time"
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _pair(whole, 60, "min", "s")
    if whole < 86400:
        return _pair(whole // 60, 60, "h", "min")
    days, hours = divmod(whole // 3600, 24)
    return count(days, "day") + (f" {hours} h" if hours else "")


def _pair(number: int, base: int, large: str, small: str) -> str:
    """Return `number` of the small unit as large and small, the small one left out when it is zero."""
    first, second = divmod(number, base)
    return f"{first} {large} {second} {small}" if second else f"{first} {large}"


def clock(seconds: float) -> str:
    """Return a length of time as a clock shows it, for places a few cells wide.

    >>> clock(7), clock(100), clock(3723), clock(float("inf"))
    ('0:07', '1:40', '1:02:03', '-:--')
    """
    if not math.isfinite(seconds) or seconds < 0:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(done: int, total: int) -> str:
    """Return how much is done, rounded down, so that 100 % means all of it.

    >>> percent(999, 1000), percent(1000, 1000), percent(0, 0)
    ('99 %', '100 %', '100 %')
    """
    if total <= 0:
        return "100 %"
    return f"{min(100, max(0, done) * 100 // total)} %"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun.

    >>> count(1, "file"), count(0, "file"), count(1200, "copy", "copies")
    ('1 file', '0 files', '1,200 copies')
    """
    noun = singular if number == 1 else plural or f"{singular}s"
    return f"{number:,} {noun}"


def listing(items: Sequence[str], *, most: int | None = None) -> str:
    """Return items as a sentence lists them, at most so many by name.

    >>> listing(["a"]), listing(["a", "b"]), listing(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    >>> listing(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    if most is not None and len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
