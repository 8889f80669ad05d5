"""The packages that were installed in an environment, each by the SHA-256 of its file: what a later look goes by.

Pure.  The list is kept in the user's own state folder; an environment lies in a tree, and what lies there is compared
with the list, never believed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from provisioner.core.errors import HashMismatchError
from provisioner.core.json_reader import FieldError, Fields, parse_object
from provisioner.core.models import Finding, Remedy
from provisioner.core.redact import redact
from provisioner.core.units import count, listing
from provisioner.environment.installer import Wheel
from provisioner.environment.state import FAMILY, Distribution

LIST_SCHEMA = 1

Origin = Literal["torch", "application"]
"""With what a package came: with the torch set, from its index, or with what the application requires."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # as `packaging.utils.canonicalize_name` gives it
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPackage:
    """One package as it was installed."""

    name: str  # normalized, "av"
    version: str  # METADATA's
    origin: Origin
    file_name: str  # of the wheel, or of the source archive it was built from
    sha256: str | None  # of that file; None where the index named none
    record_sha256: str | None = None  # of the RECORD that its installation wrote, which names the digest of each file
    url: str | None = None  # only where the requirement named an address: "https://x.example/av-14.0-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The line of a requirements file that means this package, and with a digest only this very file."""
        what = f"{self.name}=={self.version}" if self.url is None else f"{self.name} @ {self.url}"
        return what if self.sha256 is None else f"{what} --hash=sha256:{self.sha256}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageList:
    """Every package that klein-setup installed in one environment."""

    made_at: str  # ISO 8601, UTC
    packages: tuple[ListedPackage, ...] = ()  # sorted by name
    requirements_sha256: str | None = None  # of the requirements they were resolved from; None: only the torch set yet

    def names_of(self, origin: Origin) -> tuple[str, ...]:
        """Return the names of the packages that came with the torch set, or with what the application requires."""
        return tuple(each.name for each in self.packages if each.origin == origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageChange:
    """How a package differs from the list."""

    package: str
    what: Literal["missing", "replaced", "damaged"]
    locked: str  # the version that was installed
    found: str | None  # the one that is there; None: none
    origin: Origin
    files: tuple[str, ...] = ()  # of a damaged one, the files that differ, relative to the folder of packages


# --- keeping it --------------------------------------------------------------------------------


def list_text(packages: PackageList) -> str:
    """Return a list as the JSON that is kept; `parse_list` reads it."""
    return json.dumps({"schema_version": LIST_SCHEMA, **asdict(packages)}, indent=1) + "\n"


def parse_list(text: str) -> PackageList | None:
    """Return the list a text holds; None where it is none of ours, of a later schema, or damaged."""
    try:
        fields = Fields(parse_object(text) or {})
        fields.exactly("schema_version", LIST_SCHEMA)
        return PackageList(
            made_at=fields.text("made_at"),
            packages=tuple(_package(each) for each in fields.objects("packages")),
            requirements_sha256=fields.optional_text("requirements_sha256"),
        )
    except FieldError:
        return None


def _package(fields: Fields) -> ListedPackage:
    return ListedPackage(
        name=_like(fields, "name", _NAME),
        version=_like(fields, "version", _VERSION),
        origin=fields.choice("origin", get_args(Origin), "application"),
        file_name=fields.text("file_name"),
        sha256=_digest(fields, "sha256"),
        record_sha256=_digest(fields, "record_sha256"),
        url=fields.optional_text("url"),
    )


def _like(fields: Fields, name: str, form: re.Pattern[str]) -> str:
    value = fields.text(name)
    return value if form.fullmatch(value) else fields.complain(name, "of another form", value)


def _digest(fields: Fields, name: str) -> str | None:
    return None if fields.optional_text(name) is None else _like(fields, name, _SHA256)


def requirements_text(packages: Iterable[ListedPackage]) -> str:
    """Return packages as a requirements file that pip and uv take with ``--require-hashes``, one a line."""
    return "".join(f"{each.requirement}\n" for each in packages)


def requirements_digest(lines: Iterable[str]) -> str:
    """Return what tells one application's requirements from another's: 64 hex digits, whatever the lines' order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


# --- making it ---------------------------------------------------------------------------------


def listed(wheels: Iterable[Wheel], origin: Origin) -> tuple[ListedPackage, ...]:
    """Return what pip said it would install as packages of a list; an address loses its password and its query."""
    return tuple(
        ListedPackage(
            name=wheel.name,
            version=wheel.version,
            origin=origin,
            file_name=wheel.file_name,
            sha256=None if wheel.is_built else wheel.sha256,
            url=redact(wheel.url) if wheel.is_direct else None,
        )
        for wheel in wheels
    )


def merged(
    before: PackageList | None,
    installed: Iterable[ListedPackage],
    records: Mapping[str, str],
    *,
    made_at: str,
    requirements_sha256: str | None = None,
    forgets_changed: bool = False,
) -> PackageList:
    """Return the list after an installation.

    Parameters
    ----------
    before : PackageList or None
        The list until now.
    installed : iterable of ListedPackage
        What was installed now; it takes the place of packages of the same name.
    records : mapping of str to str
        By name, the SHA-256 of the RECORD that each of these packages has in the environment.
    made_at : str
        ISO 8601, UTC.
    requirements_sha256 : str, optional
        What was resolved; None: as before.
    forgets_changed : bool
        Leave out packages from before that are others now: of them nobody can say from which file they came.
    """
    fresh = {each.name: replace(each, record_sha256=records.get(each.name)) for each in installed}
    kept = {
        each.name: each
        for each in (before.packages if before is not None else ())
        if not forgets_changed or (each.record_sha256 is not None and records.get(each.name) == each.record_sha256)
    }
    known = before.requirements_sha256 if before is not None else None
    return PackageList(
        made_at=made_at,
        packages=tuple(sorted((kept | fresh).values(), key=lambda each: each.name)),
        requirements_sha256=requirements_sha256 or known,
    )


def enforced(wheels: Iterable[Wheel], known: Mapping[str, str], *, whose: str, way_out: str) -> list[Wheel]:
    """Return wheels with every digest that is known of them beforehand; it is compared when they arrive.

    Parameters
    ----------
    wheels : iterable of Wheel
        As an index offers them.
    known : mapping of str to str
        SHA-256 by the name of the file, or by that of the package.
    whose : str
        What names them, for the message: "the table of torch builds".
    way_out : str
        What to do where the index says otherwise.

    Raises
    ------
    HashMismatchError
        The index names another digest.
    """
    found = []
    for wheel in wheels:
        expected = known.get(wheel.file_name) or known.get(wheel.name)
        if expected is not None and wheel.sha256 not in (None, expected):
            raise HashMismatchError(
                f"{wheel.file_name} is offered with another SHA-256 than {whose} names. Nothing was installed.",
                hint=way_out,
                package=wheel.name,
                expected=expected,
                observed=wheel.sha256,
                url=redact(wheel.url),
            )
        found.append(wheel if expected is None else replace(wheel, sha256=expected))
    return found


# --- comparing ---------------------------------------------------------------------------------


def changed(
    packages: PackageList,
    distributions: Iterable[Distribution],
    records: Mapping[str, str],
    damaged: Mapping[str, tuple[str, ...]],
) -> tuple[PackageChange, ...]:
    """Return how an environment differs from its list; what was added to it is nobody's business.

    Parameters
    ----------
    packages : PackageList
        What was installed.
    distributions : iterable of Distribution
        What lies there.
    records : mapping of str to str
        By name, the SHA-256 of the RECORD that lies there.
    damaged : mapping of str to tuple of str
        By name, the files that differ from the RECORD; empty where they were not read.
    """
    now = {each.name: each.version for each in distributions}
    found = []
    for each in packages.packages:
        version = now.get(each.name)
        files = damaged.get(each.name, ())
        if each.record_sha256 is not None and records.get(each.name) != each.record_sha256:
            files = ("RECORD", *files)
        what: Literal["missing", "replaced", "damaged"] = "damaged"
        if version != each.version:
            what, files = "missing" if version is None else "replaced", ()
        elif not files:
            continue
        found.append(
            PackageChange(
                package=each.name, what=what, locked=each.version, found=version, origin=each.origin, files=files
            )
        )
    return tuple(found)


def findings_of(
    changes: Iterable[PackageChange],
    where: Path,
    *,
    list_file: Path,
    is_outdated: bool,
    distributions: Iterable[Distribution],
) -> tuple[Finding, ...]:
    """Return what a person should know of changed packages.

    Parameters
    ----------
    changes : iterable of PackageChange
        As `changed` gives them.
    where : Path
        The environment.
    list_file : Path
        Where the list is kept: whoever wants to keep a changed package deletes it.
    is_outdated : bool
        The application has other requirements than those the list was made for: another version is no damage then.
    distributions : iterable of Distribution
        What lies there, and in which folders.
    """
    folders = {each.name: each.location for each in distributions}
    return tuple(
        _finding(each, where, folders, list_file, is_outdated=is_outdated)
        for each in changes
        if each.what == "damaged" or each.package not in FAMILY  # of these three `drift` tells
    )


def _finding(
    change: PackageChange, where: Path, folders: Mapping[str, Path], list_file: Path, *, is_outdated: bool
) -> Finding:
    remedy: Remedy = "install-environment"
    hint, path, name = "Run `klein-setup repair`; it installs the very file again.", where, change.package
    hint += f" To keep what is there, delete the list: {list_file}."
    if change.what == "missing":
        message = f"{name} {change.locked} was installed and is gone."
    elif change.what == "replaced":
        message = f"{name} {change.locked} was replaced by {change.found}."
        if change.origin == "application" and not is_outdated:
            return Finding(
                code="package-replaced", severity="warning", message=message, remedy="repair", hint=hint, path=path
            )
    else:
        others = f" and {count(len(change.files) - 1, 'other file')}" if len(change.files) > 1 else ""
        message = f"{name} {change.locked} is no longer what was installed: {change.files[0]}{others} changed."
        remedy, path = "repair", folders.get(name, where)  # only `repair` reads every file
    if is_outdated and change.what != "damaged":
        hint = "The application's requirements changed since; `klein-setup install` resolves them anew."
        return Finding(
            code=f"package-{change.what}", severity="warning", message=message, remedy="install", hint=hint, path=path
        )
    return Finding(
        code=f"package-{change.what}", severity="problem", message=message, remedy=remedy, hint=hint, path=path
    )


def why_restored(changes: Collection[PackageChange]) -> str:
    """Return the clause that says why packages are installed again.

    >>> gone = PackageChange(package="av", what="missing", locked="14.0", found=None, origin="application")
    >>> why_restored([gone])
    'av 14.0 is missing'
    """
    words = {"missing": "is missing", "replaced": "was replaced", "damaged": "was changed"}
    return listing([f"{each.package} {each.locked} {words[each.what]}" for each in changes], most=3)
