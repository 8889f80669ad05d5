"""A list of packages that are pinned by version and SHA-256, as ``uv export --format requirements-txt`` writes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from provisioner.core.errors import HashMismatchError, NotTheFileError
from provisioner.core.redact import redact
from provisioner.environment.installer import Wheel

_LINE = re.compile(r"([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==([^\s;]+)(?: ; .*)?")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedList:
    """What is wanted: requirements for pip, without their hashes, and the SHA-256 that each version may have."""

    requirements: tuple[str, ...]  # "tomli==2.5.0 ; python_full_version < '3.11'"
    digests: Mapping[tuple[str, str], frozenset[str]]  # by name and version

    def check(self, wheels: Iterable[Wheel]) -> None:
        """Raise HashMismatchError where an index offers a file whose SHA-256 the list does not name."""
        for wheel in wheels:
            expected = self.digests.get((wheel.name, wheel.version), frozenset())
            if wheel.sha256 not in expected:
                raise HashMismatchError(
                    f"{wheel.file_name} is offered with the SHA-256 {wheel.sha256}, which klein-setup's own list of "
                    "packages does not name.",
                    hint="Take an index that has the files of PyPI, with --package-index URL, or leave the wheels out "
                    "with --no-wheels.",
                    package=wheel.name,
                    expected=sorted(expected),
                    observed=wheel.sha256,
                    url=redact(wheel.url),
                )


def parse_locked_list(text: str) -> LockedList:
    """Return what a locked list says; raises NotTheFileError where a line has another form.

    >>> parse_locked_list("six==1.17.0 ; python_version < '4' --hash=sha256:" + "0" * 64).requirements
    ("six==1.17.0 ; python_version < '4'",)
    """
    requirements, digests = [], {}
    for line in text.replace("\\\n", " ").splitlines():
        head, *hashes = re.split(r"\s+--hash=", line.strip())
        if not head or head.startswith("#"):
            continue
        match = _LINE.fullmatch(head)
        found = frozenset(each[1] for each in map(_HASH.fullmatch, hashes) if each is not None)
        if match is None or not found or len(found) < len(set(hashes)):
            raise NotTheFileError(
                f"klein-setup's own list of packages has a line that is none: {line.strip()[:80]!r}.",
                hint="Get klein-setup again.",
            )
        requirements.append(head)
        digests[match[1], match[2]] = found
    return LockedList(requirements=tuple(requirements), digests=digests)
