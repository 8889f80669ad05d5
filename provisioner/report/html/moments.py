"""Dates and times for people."""

from __future__ import annotations


def moment(text: str) -> str:
    """Return a date and time for people; a text that is not ISO 8601 is returned unchanged.

    >>> moment("2026-11-23T06:16:12Z"), moment("yesterday")
    ('23 November 2026, 06:16 UTC', 'yesterday')
    """
    from datetime import datetime

    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return text
    offset = when.strftime("%z")
    zone = "" if not offset else " UTC" if offset == "+0000" else f" UTC{offset[:3]}:{offset[3:5]}"
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}, {when:%H:%M}{zone}"  # no locale decides


# fmt: off
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December")
# fmt: on
