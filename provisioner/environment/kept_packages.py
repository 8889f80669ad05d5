"""Where the lists of installed packages are kept, and the reading of an environment's files to compare with one.

A list lies in the user's own state folder, a file per environment, named by the SHA-256 of the environment's path: the
environment itself may come from a stranger.  Only a RECORD that has the listed digest is followed to the files that it
names.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from provisioner.disk.root import Root
from provisioner.environment.package_list import ListedPackage, PackageList, list_text, parse_list
from provisioner.environment.state import Distribution
from provisioner.environment.swap import read_text

_RECORD_BYTES = 64 * 1024 * 1024  # torch's has 2 MB
_PIECE_BYTES = 1024 * 1024
_ALGORITHMS = frozenset({"sha256", "sha384", "sha512"})


@dataclass(frozen=True, slots=True)
class KeptPackages:
    """The lists of this user's runs.

    Parameters
    ----------
    folder : callable
        Returns the folder they are in; asked when it is needed.
    """

    folder: Callable[[], Path]

    def path(self, where: Path) -> Path:
        """Return the file that holds, or would hold, the list of an environment."""
        place = os.path.normcase(os.path.realpath(where))
        return self.folder() / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.json"

    def read(self, where: Path) -> PackageList | None:
        """Return the list of an environment; None where there is none, or one that cannot be read."""
        text = read_text(self.path(where), _RECORD_BYTES)
        return None if text is None else parse_list(text)

    def keep(self, where: Path, packages: PackageList) -> None:
        """Keep the list of an environment; raises StorageError."""
        Root(self.folder(), is_private=True).write_text(self.path(where), list_text(packages))

    def forget(self, where: Path) -> None:
        """Remove the list of an environment, if there is one; raises StorageError."""
        if self.path(where).exists():
            Root(self.folder(), is_private=True).remove(self.path(where))


# --- reading an environment --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """What the RECORD of a package said when it was read."""

    folder: Path  # of packages, which its paths are relative to
    content: bytes
    sha256: str


def read_records(packages: Iterable[ListedPackage], distributions: Iterable[Distribution]) -> dict[str, Record]:
    """Return the RECORD of each listed package by its name, the first of several; those without one are left out."""
    names = {each.name for each in packages}
    found: dict[str, Record] = {}
    for each in distributions:
        if each.info is not None and each.name in names - found.keys():
            with contextlib.suppress(OSError), (each.info / "RECORD").open("rb") as stream:
                content = stream.read(_RECORD_BYTES)
                found[each.name] = Record(each.location, content, hashlib.sha256(content).hexdigest())
    return found


def read_damaged(packages: PackageList, records: Mapping[str, Record]) -> dict[str, tuple[str, ...]]:
    """Read every file of the listed packages; return by name the files that are not as their RECORD says, sorted.

    Scripts are left out, because they hold the path of the environment, and so is what has no digest in a RECORD: the
    byte code that Python writes.
    """
    files = [
        (each.name, record.folder, *row)
        for each in packages.packages
        if (record := records.get(each.name)) is not None and record.sha256 == each.record_sha256
        for row in _rows(record.content)
    ]
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        wrong = pool.map(_is_wrong, files)
        found: dict[str, list[str]] = {}
        for (name, _, relative, _, _), is_wrong in zip(files, wrong, strict=True):
            if is_wrong:
                found.setdefault(name, []).append(relative)
    finally:
        pool.shutdown(cancel_futures=True)
    return {name: tuple(sorted(each)) for name, each in found.items()}


def _rows(record: bytes) -> Iterator[tuple[str, str, int]]:
    """Yield path, digest and size of each file of a RECORD that lies in the folder of packages."""
    for row in csv.reader(record.decode("utf-8", "replace").splitlines()):
        if len(row) != 3 or not row[1] or not row[2].isdecimal():
            continue
        parts = Path(row[0]).parts
        if ".." not in parts and not Path(row[0]).is_absolute():
            yield row[0], row[1], int(row[2])


def _is_wrong(file: tuple[str, Path, str, str, int]) -> bool:
    _, folder, relative, expected, size = file
    algorithm, _, digest = expected.partition("=")
    if algorithm not in _ALGORITHMS:
        return False
    hashed = hashlib.new(algorithm)
    try:
        status = (folder / relative).stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return True
        with (folder / relative).open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                hashed.update(piece)
    except OSError:
        return True
    return base64.urlsafe_b64encode(hashed.digest()).rstrip(b"=").decode() != digest
