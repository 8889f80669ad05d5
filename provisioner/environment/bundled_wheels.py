"""The wheels of a bundle: what one is, whether they suit a Python, and what of an application's packages they lack.

Pure.  Their names come from somebody's stick: one that is no plain name of a wheel is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from provisioner.core.errors import NotTheFileError
from provisioner.core.redact import printable
from provisioner.core.units import count
from provisioner.environment.package_list import ListedPackage
from provisioner.environment.requirements import unmet
from provisioner.environment.state import FAMILY, PythonFacts, python_number

IndexKind = Literal["torch", "packages"]
"""Which index a wheel came from: that of the torch set, or that of the other packages."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledWheel:
    """One wheel of a bundle; raises NotTheFileError where its name or its digest has another form.

    >>> wheel = BundledWheel(
    ...     file_name="torch-2.14.1+cu130-cp312-cp312-linux_x86_64.whl", sha256="0" * 64, index="torch"
    ... )
    >>> wheel.name, wheel.version
    ('torch', '2.14.1+cu130')
    """

    file_name: str  # "torch-2.14.1+cu130-cp312-cp312-manylinux_2_28_x86_64.whl"
    sha256: str  # 64 lower-case hex digits
    index: IndexKind

    def __post_init__(self) -> None:
        """Check the name, which becomes one on a disk."""
        try:
            is_wheel = _PLAIN_NAME.fullmatch(self.file_name) is not None and self.name != ""
        except InvalidWheelFilename:
            is_wheel = False
        if not is_wheel or not _SHA256.fullmatch(self.sha256):
            raise NotTheFileError(
                f"The bundle lists {printable(self.file_name)[:200]!r} with the SHA-256 "
                f"{printable(self.sha256)[:80]!r}: this is no wheel.",
                hint="Make the bundle anew.",
            )

    @property
    def name(self) -> str:
        """The package, normalized."""
        return parse_wheel_filename(self.file_name)[0]

    @property
    def version(self) -> str:
        """Its version."""
        return str(parse_wheel_filename(self.file_name)[1])

    @property
    def tags(self) -> frozenset[Tag]:
        """The Pythons and systems it is for."""
        return parse_wheel_filename(self.file_name)[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedWheels:
    """What an environment is installed from, as far as it can go into a bundle."""

    files: tuple[tuple[BundledWheel, Path], ...]  # each with its place in the cache; its bytes had the SHA-256
    left_out: tuple[tuple[str, str], ...] = ()  # ("rocm 10.0.0", "it was built on this computer")
    python: str = ""  # the Python they are for, "3.12", "3.13t"
    own: tuple[tuple[BundledWheel, Path], ...] = ()  # what klein-setup itself needs on that Python, pip first


def bundled(package: ListedPackage) -> BundledWheel:
    """Return an installed package as a wheel of a bundle; raises NotTheFileError where it can be none."""
    index: IndexKind = "torch" if package.origin == "torch" else "packages"
    return BundledWheel(file_name=package.file_name, sha256=package.sha256 or "", index=index)


def why_left_out(package: ListedPackage) -> str | None:
    """Return why a package cannot go into a bundle, as the rest of a sentence; None where it can."""
    if package.url is not None:
        return "the application names an address for it, which pip would ask"
    if not package.file_name.endswith(".whl"):
        return "its index has no wheel of it, only a source archive, which is built on each computer"
    if package.sha256 is None:
        return "it was built on this computer from a source archive, or its index names no SHA-256"
    try:
        bundled(package)
    except NotTheFileError:
        return f"its file is called {printable(package.file_name)[:200]!r}, which is no standard name of a wheel"
    return None


def complaint_about_wheels(wheels: Iterable[BundledWheel], python: PythonFacts, platforms: Sequence[str]) -> str | None:
    """Say why an environment cannot be made from these wheels with this Python, or return None.

    Only the torch set decides: of the other packages a bundle for several systems has some for one system alone.

    Parameters
    ----------
    wheels : iterable of BundledWheel
        Those of the bundle.
    python : PythonFacts
        What it said of itself.
    platforms : sequence of str
        The platform tags of this computer, best first: ``packaging.tags.platform_tags``.
    """
    abi = f"cp{python.release.replace('.', '')}"
    number = python_number(python.version)
    supported = {
        *cpython_tags(number, [abi], list(platforms)),
        *compatible_tags(number, abi.rstrip("t"), list(platforms)),
    }
    torch = [each for each in wheels if each.name in FAMILY]
    for name in FAMILY:
        some = [each for each in torch if each.name == name]
        if some and all(supported.isdisjoint(each.tags) for each in some):
            first = min(some[0].tags, key=str)
            more = f" and {count(len(some) - 1, 'other')}" if len(some) > 1 else ""
            return (
                f"The bundle has {name} {some[0].version} for {first.abi} on {first.platform}{more}; "
                f"{python.path} is {abi} on {platforms[0]}."
            )
    return None if torch else "The bundle has no torch."


def lacking(lines: Iterable[str], wheels: Iterable[BundledWheel], *, python_version: str) -> tuple[str, ...]:
    """Return the requirements that no wheel of a bundle meets; what those need in turn only pip knows.

    Parameters
    ----------
    lines : iterable of str
        Requirements, one a line, without comments.
    wheels : iterable of BundledWheel
        Those of the bundle.
    python_version : str
        Of the environment, "3.12.3", for markers.
    """
    held = [{}, *({each.name: each.version} for each in wheels)]
    return tuple(line for line in lines if _is_lacking(line, held, python_version))


def _is_lacking(line: str, held: Iterable[Mapping[str, str]], python_version: str) -> bool:
    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return "://" in line  # pip knows more forms, and would ask an address even without an index
    return wanted.url is not None or all(unmet([line], each, python_version=python_version) for each in held)
