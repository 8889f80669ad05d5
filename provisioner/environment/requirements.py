"""Which lines of a requirements file an environment does not meet yet; reads nothing, installs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


def unmet(lines: Iterable[str], installed: Mapping[str, str], *, python_version: str) -> tuple[str, ...]:
    """Return the lines that have to be installed.

    Parameters
    ----------
    lines : iterable of str
        Requirements, one a line, without comments.  A line this program cannot read counts as unmet: the installer
        knows more forms.
    installed : mapping of str to str
        Normalized names and versions.
    python_version : str
        Of the environment, "3.12.3", for markers.

    Examples
    --------
    >>> unmet(["av>=14", "Pillow", "tqdm; python_version < '3'"], {"pillow": "13.0.0"}, python_version="3.12.3")
    ('av>=14',)
    """
    major_minor = ".".join(python_version.split(".")[:2])
    return tuple(line for line in lines if not _is_met(line, installed, python_version, major_minor))


def _is_met(line: str, installed: Mapping[str, str], full: str, major_minor: str) -> bool:
    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return False
    if wanted.marker is not None and not wanted.marker.evaluate(
        {"python_version": major_minor, "python_full_version": full}
    ):
        return True
    version = installed.get(canonicalize_name(wanted.name))
    if version is None:
        return False
    try:
        return wanted.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
