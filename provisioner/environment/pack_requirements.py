"""Which lines of a pack's requirements file are installed, which are not, and why.

A pack is somebody else's: its file may ask for another torch, another index, or code from an address.  None of that
is followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from provisioner.core.redact import printable, redact
from provisioner.environment.requirements import unmet
from provisioner.environment.state import FAMILY

_MOST_LINES = 500
_DIRECT = re.compile(r"(://|^git\+|^\.{0,2}[/\\]|\.(whl|zip|tar\.gz)$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequirements:
    """What a pack asks of the environment."""

    lines: tuple[str, ...] = ()  # to be installed, under the constraints
    left_out: tuple[str, ...] = ()  # packages of the torch set that this environment does not have
    refusals: tuple[str, ...] = ()  # why they are not installed at all, a clause each


def pack_requirements(
    rows: Sequence[str],
    *,
    installed: Mapping[str, str],
    python_version: str,
) -> PackRequirements:
    """Return what a pack's ``requirements.txt`` asks for.

    Parameters
    ----------
    rows : sequence of str
        Its lines, without comments.
    installed : mapping of str to str
        Normalized names and versions of what is in the environment.
    python_version : str
        Of the environment, "3.12.3", for markers.

    Examples
    --------
    >>> found = pack_requirements(
    ...     ["torch==1.0", "einops", "git+https://x.example/y"],
    ...     installed={"torch": "2.13.0+cpu"},
    ...     python_version="3.12.3",
    ... )
    >>> found.lines
    ('torch==1.0', 'einops')
    >>> found.refusals[0]
    'it requires torch==1.0, and the environment has torch 2.13.0+cpu, which stays'
    >>> found.refusals[1]
    "'git+https://x.example/y' is an address, of whose content nobody knows the SHA-256"
    """
    if len(rows) > _MOST_LINES:
        return PackRequirements(refusals=(f"its requirements.txt has more than {_MOST_LINES} lines",))
    lines: list[str] = []
    left_out: list[str] = []
    refusals: list[str] = []
    for row in rows:
        wanted = _parsed(row)
        if isinstance(wanted, str):
            refusals.append(wanted)
        elif not unmet([row], {}, python_version=python_version):  # not for this Python
            continue
        elif (name := canonicalize_name(wanted.name)) in FAMILY and name not in installed:
            left_out.append(name)
        else:
            lines.append(row)
            if name in FAMILY and unmet([row], installed, python_version=python_version):
                refusals.append(f"it requires {row}, and the environment has {name} {installed[name]}, which stays")
    return PackRequirements(lines=tuple(lines), left_out=tuple(left_out), refusals=tuple(refusals))


def _parsed(row: str) -> Requirement | str:
    """Return a line as a requirement, or why it is none that is followed."""
    said = redact(printable(row))[:120]
    if printable(row) != row:
        return f"{said!r} holds characters that nobody sees"
    if row.startswith("-"):
        return f"{said!r} is an option, which could bring packages from elsewhere"
    if _DIRECT.search(row):
        return f"{said!r} is an address, of whose content nobody knows the SHA-256"
    try:
        wanted = Requirement(row)
    except InvalidRequirement:
        return f"{said!r} is no requirement of Python's packages"
    return wanted if wanted.url is None else f"{said!r} is an address, of whose content nobody knows the SHA-256"


def joined(of_packs: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the requirement lines of several packs, each once.

    >>> joined({"b": ("einops", "av"), "a": ("einops",)})
    ('einops', 'av')
    """
    return tuple(dict.fromkeys(line for name in sorted(of_packs) for line in of_packs[name]))
