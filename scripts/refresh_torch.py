#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "packaging>=24.0",
#     "pyyaml>=6.0.2",
#     "requests>=2.32.3",
# ]
# ///
"""Compare manifests/torch.yaml with the wheel indexes: which builds, releases, platforms and Pythons have wheels.

    uv run --script scripts/refresh_torch.py [FILE] [--torch-index URL] [--default-index URL] [--write] [--source ID]

Prints what differs, and a diff; writes only with ``--write``, and only what a page of an index shows: the Pythons of a
release, the newest release that was seen, a release that is not on the index of a build, the SHA-256 of the wheels of a
build's newest release.  A digest that differs from the table's is told and never written.  Wheels are never fetched, so
nothing is said of the machine code in them: a new build, and a release outside of a build's ranges, are named and left
to a person.  A new release becomes a row where ``--source`` gives the id, one of the table's own sources, that vouches
for it.

Exit status: 0 nothing differs; 1 something does; 2 the new file would be refused by its reader; 5, 6 an index could
not be looked at, and nothing was written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from provisioner.core.errors import (  # noqa: E402
    AccessError,
    ServerError,
    UsageError,
)
from provisioner.core.redact import redact  # noqa: E402
from provisioner.torch.build_table import (  # noqa: E402
    BuildRow,
    PlatformName,
    Release,
    TorchTable,
    Version,
    VersionRange,
    parse_torch_table,
    version_of,
)
from scripts.refreshing import Outcome, YamlEdits, refresh_table, run, table_parser  # noqa: E402
from scripts.wheel_pages import PLATFORMS, IndexReader, Wheel, dotted  # noqa: E402

if TYPE_CHECKING:
    from packaging.requirements import Requirement

TABLE = ROOT / "manifests" / "torch.yaml"
DEFAULT_INDEX = "https://pypi.org/simple"
PROJECTS = ("torch", "torchvision", "torchaudio")

# --- the indexes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Indexes:
    """What every index lists."""

    wheels: Mapping[str, Mapping[str, tuple[Wheel, ...]]]  # by tag of the table, then project
    missing: frozenset[str]  # tags without a page for torch
    others: Mapping[str, tuple[Wheel, ...]]  # wheels of torch by tags the table does not have
    requirements: Callable[[Wheel], tuple[Requirement, ...] | None]


def read_indexes(table: TorchTable, reader: IndexReader, base: str, default: str, outcome: Outcome) -> Indexes:
    """Return the pages of every build of the table.

    Raises
    ------
    NetworkError, AccessError
        An index was not reached or refused, or no build's has torch.
    """
    wheels: dict[str, dict[str, tuple[Wheel, ...]]] = {}
    missing: set[str] = set()
    whole = reader.project(base, "torch")
    if whole is None:
        outcome.notes.append(f"{redact(base)} has no page of its own for torch; new builds could not be looked for")
    for build in table.builds:
        tag = None if build.is_default_index else build.tag
        index = default if build.is_default_index else address_of(build, table, base)
        is_listed = whole is None or build.index is not None or any(each.local == tag for each in whole)
        pages = {name: _page(reader, index, name, may_lack=name != "torch" or not is_listed) for name in PROJECTS}
        if pages["torch"] is None:
            missing.add(build.tag)
        wheels[build.tag] = {
            name: tuple(each for each in page or () if tag is None or each.local == tag) for name, page in pages.items()
        }
    if missing >= {build.tag for build in table.builds if not build.is_default_index}:
        raise ServerError(f"{redact(base)} is no index of torch", hint="Look at --torch-index.")
    others: dict[str, list[Wheel]] = {}
    for wheel in whole or ():
        if wheel.local is not None and wheel.local not in wheels:
            others.setdefault(wheel.local, []).append(wheel)
    return Indexes(
        wheels, frozenset(missing), {tag: tuple(found) for tag, found in others.items()}, reader.requirements
    )


def address_of(build: BuildRow, table: TorchTable, base: str) -> str:
    """Return the index of a build: its own, unless a mirror was named."""
    base = base.rstrip("/")
    return build.index if build.index is not None and base == table.index_base else f"{base}/{build.tag}"


def _page(reader: IndexReader, index: str, name: str, *, may_lack: bool) -> tuple[Wheel, ...] | None:
    """Return a page of an index; where it may lack one, 403 says that it does: so do stores of plain files."""
    try:
        return reader.project(index, name)
    except AccessError as error:
        if may_lack and error.context.get("status") == 403:
            return None
        raise


# --- comparing ------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """The table beside what the indexes list."""

    table: TorchTable
    indexes: Indexes
    outcome: Outcome
    edits: YamlEdits
    source: str | None  # id that vouches for new releases
    base: str  # address of the indexes of the builds
    default: str  # address of the default index
    lowest: Version = field(init=False)  # older torch is nobody's business
    preferred: Version = field(init=False)

    def __post_init__(self) -> None:
        self.lowest = min(app.min_torch for app in self.table.apps)
        self.preferred = min(app.preferred_torch for app in self.table.apps)

    # --- releases ---

    def compare_releases(self) -> None:
        """Compare the Pythons of every release, and look for new ones, on the default index."""
        build = next((each for each in self.table.builds if each.is_default_index), None)
        if build is None or build.tag in self.indexes.missing:
            self.outcome.differences.append("the default index has no torch; releases were not compared")
            return
        pages = self.indexes.wheels[build.tag]
        for release in self.table.releases:
            self._compare_pythons(release, pages)
        known = {release.version for release in self.table.releases}
        for version in sorted({each.version for each in pages["torch"]} - known):
            if version > self.lowest:
                self._tell_new_release(version, pages)

    def _compare_pythons(self, release: Release, pages: Mapping[str, tuple[Wheel, ...]]) -> None:
        at = self._row_of(release)
        fields = (
            ("python", "torch", release.version, release.python),
            ("torchaudio_python", "torchaudio", version_of(release.torchaudio), release.torchaudio_python),
        )
        for key, project, version, stated in fields:
            wheels = [each for each in pages[project] if each.version == version]
            if not wheels:
                self.outcome.differences.append(
                    f"{project} {dotted(version)} is not on the default index; to be read again"
                )
                continue
            now = pythons_of(wheels, stated, besides=release.python)
            if now == stated:
                continue
            self.outcome.differences.append(
                f"torch {release.torch}: {key} says {', '.join(stated)}; the default index has wheels of "
                f"{project} {dotted(version)} for {', '.join(now)}"
            )
            if self.edits.holds(("sets", at, key)):
                self.edits.replace(("sets", at, key), now)
            else:
                self.outcome.notes.append(f"the set of torch {release.torch} has no {key}; to be read again")
        if not any(each.version == version_of(release.torchvision) for each in pages["torchvision"]):
            self.outcome.differences.append(
                f"torchvision {release.torchvision} is not on the default index; to be read again"
            )

    def _row_of(self, release: Release) -> int:
        """Return the place of a release in the file, whose order is nobody's rule."""
        return next(at for at, text in enumerate(self.edits.texts(("sets",), "torch")) if text == release.torch)

    def _tell_new_release(self, version: Version, pages: Mapping[str, tuple[Wheel, ...]]) -> None:
        wheels = [each for each in pages["torch"] if each.version == version]
        self.outcome.differences.append(f"new release, torch {dotted(version)}: {described(wheels)}")
        vision = self._companion("torchvision", version, pages)
        audio = self._companion("torchaudio", version, pages)
        if vision is None or audio is None:
            lacking = "torchvision" if vision is None else "torchaudio"
            self.outcome.notes.append(
                f"which {lacking} belongs to torch {dotted(version)} is not known; to be read again"
            )
            return
        audio_wheels = [each for each in pages["torchaudio"] if each.version == audio]
        pythons = pythons_of(wheels)
        lines = [
            f'torch: "{dotted(version)}"',
            f'torchvision: "{dotted(vision)}"',
            f'torchaudio: "{dotted(audio)}"',
            f"python: {json.dumps(pythons)}",
            f"torchaudio_python: {json.dumps(pythons_of(audio_wheels, besides=pythons))}",
            f"sources: [{self.source or '...'}]",
        ]
        if self.source is None:
            row = "\n    ".join(lines)
            self.outcome.notes.append(f"its row, for --source ID to write:\n  - {row}")
            return
        older = [each for each in self.table.releases if each.version < version]
        before = self._row_of(older[0]) if older else 0
        self.edits.insert_before(("sets", before), lines)
        self.outcome.notes.append(f"whether torchaudio {dotted(audio)} loads under it is to be read again")

    def _companion(self, project: str, torch: Version, pages: Mapping[str, tuple[Wheel, ...]]) -> Version | None:
        """Return the release of `project` that asks for a torch; of torchaudio else the newest that asks for none."""
        asks_for_none: list[Version] = []
        newest_first = sorted({each.version for each in pages[project]}, reverse=True)
        for version in newest_first[:12]:  # they appear together: what belongs to a new torch is new
            wheel = next(each for each in pages[project] if each.version == version)
            needs = self.indexes.requirements(wheel)
            if needs is None:
                continue
            wanted = [each for each in needs if each.name == "torch"]
            if any(str(each.specifier) == f"=={dotted(torch)}" for each in wanted):
                return version
            if not wanted:
                asks_for_none.append(version)
        return asks_for_none[0] if asks_for_none and project == "torchaudio" else None

    # --- builds ---

    def compare_builds(self) -> None:
        """Compare the releases of every build with its index, and look for builds the table does not have."""
        for at, build in enumerate(self.table.builds):
            if not self.indexes.wheels[build.tag]["torch"]:
                self.outcome.differences.append(f"{build.tag} has gone: its index has no torch; to be read again")
                continue
            self._compare_verified(at, build)
            for number in range(len(build.wheels)):
                self._compare_range(at, number, build)
            self._compare_digests(at, build)
            self._tell_wider(build)
            self._tell_companions(build)
        for tag, wheels in sorted(self.indexes.others.items()):
            self._tell_new_build(tag, wheels)

    def _seen(self, build: BuildRow, platform: PlatformName) -> set[Version]:
        return {each.version for each in self.indexes.wheels[build.tag]["torch"] if platform in each.platforms}

    def _compare_verified(self, at: int, build: BuildRow) -> None:
        if build.verified_torch is None:
            return
        offered = {
            offer.release.version
            for platform, offers in build.offers
            for offer in offers
            if offer.release.version in self._seen(build, platform)
        }
        newest = max(offered, default=None)
        if newest is not None and newest != build.verified_torch:
            was = dotted(build.verified_torch)
            self.outcome.differences.append(
                f"{build.tag}: {dotted(newest)} is the newest torch on its index, verified_torch says {was}"
            )
            self.outcome.notes.append(
                f"{build.tag}: its note, sources and confidence were written for {was}; to be read again"
            )
            self.edits.replace(("builds", at, "verified_torch"), dotted(newest))

    def _compare_range(self, at: int, number: int, build: BuildRow) -> None:
        """Take out of a range what none of its platforms has; releases nobody has seen yet may still come."""
        row = build.wheels[number]
        gone: list[Version] = []
        for release in self.table.releases:
            version = release.version
            if version not in row.torch or (build.verified_torch is not None and version > build.verified_torch):
                continue
            lacking = [platform for platform in row.platforms if version not in self._seen(build, platform)]
            if not lacking:
                continue
            self.outcome.differences.append(f"{build.tag}: no torch {release.torch} for {', '.join(lacking)}")
            if len(lacking) == len(row.platforms):
                gone.append(version)
            else:
                self.outcome.notes.append(f"{build.tag}: its row for torch {release.torch} is to be split by hand")
        if gone:
            self.edits.replace(("builds", at, "wheels", number, "torch"), narrowed(row.torch, gone))

    def _compare_digests(self, at: int, build: BuildRow) -> None:
        """Record what the index publishes of the wheels of a build's newest release."""
        known = dict(build.digests.files) if build.digests is not None else {}
        published = self._published(build)
        for name in sorted(set(known) & set(published)):
            if known[name] != published[name]:
                self.outcome.differences.append(
                    f"{build.tag}: {name} has another SHA-256 on the index than in the table: other bytes under the "
                    "same name; to be read again"
                )
        if not set(published) - set(known):
            return
        index = self.default if build.is_default_index else address_of(build, self.table, self.base)
        if not index.startswith("https:"):
            self.outcome.notes.append(f"{build.tag}: digests are recorded from an https index only")
            return
        files = [f"{known.get(name, sha256)}  {name}" for name, sha256 in sorted(published.items())]
        self.outcome.differences.append(
            f"{build.tag}: the index names {len(set(published) - set(known))} digests that the table does not have"
        )
        today = datetime.now(timezone.utc).date().isoformat()
        try:
            if build.digests is None:
                lines = ["digests:", f"  read_from: {index}", f'  read_on: "{today}"', "  files:"]
                lines += [f"    - {json.dumps(each)}" for each in files]
                self.edits.insert_key(("builds", at), lines, before="wheels")
            else:
                self.edits.replace_items(("builds", at, "digests", "files"), files)
                self.edits.replace(("builds", at, "digests", "read_from"), index)
                self.edits.replace(("builds", at, "digests", "read_on"), today)
        except LookupError:
            self.outcome.notes.append(f"{build.tag}: its row has no room for digests; to be written as a block")

    def _published(self, build: BuildRow) -> dict[str, str]:
        """Return by file name the digests of the wheels of the newest release of a build that its index has."""
        platforms = {platform for row in build.wheels for platform in row.platforms}
        offers = [offer.release for platform, found in build.offers for offer in found if platform in platforms]
        seen = {version for platform in platforms for version in self._seen(build, platform)}
        newest = max((each for each in offers if each.version in seen), key=lambda each: each.version, default=None)
        if newest is None:
            return {}
        versions = (newest.version, version_of(newest.torchvision), version_of(newest.torchaudio))
        return {
            wheel.file_name: wheel.sha256
            for project, version in zip(PROJECTS, versions, strict=True)
            for wheel in self.indexes.wheels[build.tag][project]
            if wheel.version == version and wheel.sha256 is not None and platforms & wheel.platforms
        }

    def _tell_wider(self, build: BuildRow) -> None:
        """Name the wheels outside of every range: what code they hold, a page does not say."""
        # The default index serves every system, and its row one of them.
        own = {platform for row in build.wheels for platform in row.platforms}
        for platform in own if build.is_default_index else PLATFORMS:
            rows = [row for row in build.wheels if platform in row.platforms]
            new = [each for each in self._seen(build, platform) if not any(each in row.torch for row in rows)]
            for version in sorted(each for each in new if each >= self.preferred):
                self.outcome.differences.append(
                    f"{build.tag}: there is torch {dotted(version)} for {platform}; its machine code is to be read, "
                    "then a range widened or a row added"
                )

    def _tell_companions(self, build: BuildRow) -> None:
        """Compare whether torchvision and torchaudio of the sets are on the index too."""
        if build.is_default_index:
            return  # said of the releases
        pages = self.indexes.wheels[build.tag]
        audio = {each.version for each in pages["torchaudio"]}
        seen = {each.version for each in pages["torch"]}
        offers = {each.release: each for _, found in build.offers for each in found if each.release.version in seen}
        for release in sorted(offers, key=lambda each: each.version):
            audio_version = version_of(offers[release].wheels.torchaudio or release.torchaudio)
            if not any(each.version == version_of(release.torchvision) for each in pages["torchvision"]):
                self.outcome.notes.append(
                    f"{build.tag}: torch {release.torch} without torchvision {release.torchvision}"
                )
            if build.has_torchaudio and audio_version not in audio:
                missing = dotted(audio_version)
                self.outcome.notes.append(f"{build.tag}: torch {release.torch} without torchaudio {missing}")
            if not build.has_torchaudio and audio_version in audio:
                self.outcome.differences.append(
                    f"{build.tag}: there is torchaudio {release.torchaudio} now, and has_torchaudio is false; "
                    "to be read again"
                )

    def _tell_new_build(self, tag: str, wheels: Sequence[Wheel]) -> None:
        newest = max(each.version for each in wheels)
        if newest >= self.preferred:
            about = described([each for each in wheels if each.version == newest])
            self.outcome.differences.append(
                f"new build, {tag}: torch {dotted(newest)}, {about}; its driver and machine code are to be read"
            )
        elif newest >= self.lowest:
            self.outcome.notes.append(f"{tag} is not in the table; its newest torch is {dotted(newest)}")


def pythons_of(wheels: Sequence[Wheel], stated: Sequence[str] = (), *, besides: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the Pythons that wheels of one release are for.

    Platforms differ at times: what all of them have is in, what none of them has is out, and in between the table may
    say either.

    Parameters
    ----------
    wheels : sequence of Wheel
        Of one release.
    stated : sequence of str
        What the table says, whose order is kept.
    besides : iterable of str
        Pythons to ask for that no wheel names: one for the stable ABI serves them all.
    """
    named = {f"3.{tag.interpreter[3:]}" for each in wheels for tag in each.tags if tag.interpreter.startswith("cp3")}
    named |= {f"{each}t" for each in named} | set(besides)
    candidates = [*stated, *sorted(named - set(stated), key=_python_order)]
    platforms = {platform for each in wheels for platform in each.platforms}
    kept: list[str] = []
    for python in candidates:
        having = {platform for each in wheels if each.serves(python) for platform in each.platforms}
        if having and (having == platforms or python in stated):
            kept.append(python)
    return tuple(kept) if set(kept) <= set(stated) else tuple(sorted(kept, key=_python_order))


def _python_order(python: str) -> tuple[bool, int]:
    return python.endswith("t"), int(python.removeprefix("3.").removesuffix("t"))


def narrowed(known: VersionRange, gone: Iterable[Version]) -> str:
    """Return a range without some versions, as the table writes it.

    >>> narrowed(VersionRange(lowest=(2, 8), before=(2, 14), without=((2, 12, 0),)), [(2, 9, 1)])
    '>=2.8,<2.14,!=2.9.1,!=2.12.0'
    """
    without = "".join(f",!={dotted(each)}" for each in sorted({*known.without, *gone}))
    return f">={dotted(known.lowest)},<{dotted(known.before)}{without}"


def described(wheels: Sequence[Wheel]) -> str:
    """Return platforms, Pythons, sizes and days of some wheels in words."""
    by_platform = [
        f"{platform} ({', '.join(pythons_of(found))})"
        for platform in PLATFORMS
        if (found := [each for each in wheels if platform in each.platforms])
    ]
    sizes = [each.size for each in wheels if each.size is not None]
    days = [each.uploaded for each in wheels if each.uploaded is not None]
    words = [", ".join(by_platform) or "for no system of the table"]
    if sizes:
        words.append(f"up to {max(sizes):,} bytes")
    if days:
        words.append(f"since {min(days)}")
    return "; ".join(words)


# --- the command ----------------------------------------------------------------------------------


def compare(text: str, *, file: str, options: argparse.Namespace) -> Outcome:
    """Return how a table differs from the indexes.

    Raises
    ------
    ManifestError
        The text is no table.
    UsageError
        ``--source`` names none of its sources.
    NetworkError, AccessError
        An index could not be looked at.
    """
    table = parse_torch_table(text, file=file)
    known = [each.id for each in table.sources]
    if options.source is not None and options.source not in known:
        raise UsageError(f"{options.source!r} is none of the table's sources", hint=f"Name one of {', '.join(known)}.")
    outcome = Outcome()
    base = options.torch_index or table.index_base
    indexes = read_indexes(table, IndexReader(), base, options.default_index, outcome)
    comparison = Comparison(table, indexes, outcome, YamlEdits(text), options.source, base, options.default_index)
    comparison.compare_releases()
    comparison.compare_builds()
    outcome.text = comparison.edits.result()
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = table_parser("refresh_torch", "Compare the table of torch builds with its indexes.", TABLE)
    parser.add_argument("--torch-index", metavar="URL", help="base address of the wheel indexes, else the table's")
    parser.add_argument(
        "--default-index", metavar="URL", default=DEFAULT_INDEX, help="the installer's own index, default %(default)s"
    )
    parser.add_argument("--source", metavar="ID", help="the table's source that vouches for new releases")
    return run(parser, partial(refresh_table, compare=compare, parse=parse_torch_table), arguments)


if __name__ == "__main__":
    sys.exit(main())
