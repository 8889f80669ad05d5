#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "packaging>=24.0",
#     "pyyaml>=6.0.2",
# ]
# ///
"""Compare manifests/comfyui.yaml with the tags of a repository: which releases of ComfyUI exist, and at which commits.

    uv run --script scripts/refresh_comfyui.py [FILE] [--repository URL|DIR] [--since VERSION] [--write] [--source ID]

Prints what differs, and a diff; writes only with ``--write``: a row for every release newer than ``--since`` (the
pinned one) that the table lacks, with commit, tree and day, and the tree and the day of rows that have none.  A commit
or a tree that differs from the table's is told and never written.  ``pinned`` is never moved: that takes a run with
the release.  Needs git; fetches the commits alone, not their files, where the server allows it.

Exit status: 0 nothing differs; 1 something does; 2 the new file would be refused by its reader; 5, 6 the repository
could not be looked at, and nothing was written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from provisioner.comfyui.checkout.git import Git, find_git  # noqa: E402
from provisioner.comfyui.release_models import ComfyRelease, ComfyTable  # noqa: E402
from provisioner.comfyui.releases import parse_comfy_table, version_key  # noqa: E402
from provisioner.comfyui.which_release import check_has_tags, parse_wanted_version  # noqa: E402
from provisioner.core.errors import UsageError  # noqa: E402
from provisioner.core.redact import redact  # noqa: E402
from provisioner.core.units import count  # noqa: E402
from provisioner.disk.root import scratch_folder  # noqa: E402
from provisioner.machine.process import run_process  # noqa: E402
from scripts.refreshing import Outcome, YamlEdits, refresh_table, run, table_parser  # noqa: E402

TABLE = ROOT / "manifests" / "comfyui.yaml"
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Seen:
    """A release as the repository has it."""

    commit: str
    tree: str
    day: str  # ISO date (UTC): of an annotated tag its own, else its commit's


# --- the repository -----------------------------------------------------------------------------


def read_repository(
    source: str, wanted: Iterable[str], since: str
) -> tuple[Mapping[str, Seen], tuple[ComfyRelease, ...]]:
    """Return the releases that a repository has of `wanted` and of all newer ones, and all of its releases.

    Raises
    ------
    UsageError
        git is not installed, or the source has no tags.
    KleinError
        As `Git.tags_at`.
    """
    check_has_tags(source)
    program = find_git(run_process, os.environ)
    if program is None:
        raise UsageError("git is needed, and it is not installed.", hint="Install git.")
    with scratch_folder("klein-setup-git-") as folder:
        git = Git(
            program=program,
            run=run_process,
            environ=os.environ,
            tree=folder,
            cancelled=lambda: False,
            progress=lambda _: None,
            is_ours=True,
        )
        releases = git.tags_at(source, timeout_s=_TIMEOUT_S)
        names = set(wanted)
        chosen = [each for each in releases if each.version in names or version_key(each.version) > version_key(since)]
        return (_details(git, source, chosen) if chosen else {}), releases


def _details(git: Git, source: str, releases: Sequence[ComfyRelease]) -> Mapping[str, Seen]:
    """Fetch the commits of tags and return what they say, by version."""
    git.do("init", "--quiet", doing="make a repository")
    there, address = git.reaching(source)
    refs = [f"refs/tags/{each.tag}:refs/tags/{each.tag}" for each in releases]
    words = ("fetch", "--quiet", "--no-tags", "--depth=1", "--filter=tree:0", "--upload-pack=git-upload-pack")
    there.do(*words, "--", address, *refs, doing="fetch the releases", source=source, timeout_s=_TIMEOUT_S)
    made = git.do("for-each-ref", "--format=%(refname:strip=2) %(creatordate:unix)", "refs/tags", doing="list the tags")
    seconds = dict(line.split(" ") for line in made.splitlines())
    found = {}
    for each in releases:
        said = git.do("log", "-1", "--format=%H %T", f"refs/tags/{each.tag}", doing=f"read {each.tag}")
        commit, tree = said.split()
        day = datetime.fromtimestamp(int(seconds[str(each.tag)]), timezone.utc).date().isoformat()
        found[each.version] = Seen(commit, tree, day)
    return found


# --- comparing ------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """The table beside what the repository has."""

    table: ComfyTable
    seen: Mapping[str, Seen]
    outcome: Outcome
    edits: YamlEdits
    source: str  # id of the one that vouches for new facts

    def compare_rows(self) -> None:
        """Compare each row with its tag, and complete it."""
        for at, version in enumerate(self.edits.texts(("releases",), "version")):
            row, found = self.table.release(version), self.seen.get(version)
            if row is None or found is None:
                self.outcome.differences.append(f"{version}: the repository has no such tag")
            elif row.commit != found.commit or row.tree not in (None, found.tree):
                what = "commit" if row.commit != found.commit else "tree"
                self.outcome.differences.append(
                    f"{version}: its tag leads to another {what} than the table's; to be read"
                )
            else:
                lines = [] if row.tree is not None else [f"tree: {json.dumps(found.tree)}"]
                lines += [] if row.released is not None else [f"released: {json.dumps(found.day)}"]
                if lines and self.source in row.sources:
                    self.edits.insert_key(("releases", at), lines, before="sources")
                    self.outcome.differences.append(
                        f"{version}: {' and '.join(each.split(':')[0] for each in lines)} added"
                    )

    def add_rows(self) -> None:
        """Put a row for each release that the table lacks where it belongs, newest first."""
        listed = self.edits.texts(("releases",), "version")
        places: dict[int, list[str]] = {}
        for version in sorted(self.seen, key=version_key, reverse=True):
            if version not in listed:
                older = (at for at, each in enumerate(listed) if version_key(each) < version_key(version))
                places.setdefault(next(older, len(listed) - 1), []).append(version)
        for at, versions in places.items():
            self.edits.insert_before(("releases", at), *map(self._row, versions))
        new = [version for versions in places.values() for version in versions]
        if new:
            self.outcome.differences.append(f"{count(len(new), 'new release')}: {', '.join(new)}")
        newest = self.table.newest_seen
        if newest is not None and any(version_key(each) >= version_key(newest.version) for each in self.seen):
            self.outcome.notes.append("newest_seen is not newer than the rows any more; to be removed, with its source")

    def _row(self, version: str) -> list[str]:
        found = self.seen[version]
        facts = {"version": version, "commit": found.commit, "tree": found.tree, "released": found.day}
        return [*(f"{key}: {json.dumps(value)}" for key, value in facts.items()), f"sources: [{self.source}]"]

    def note_the_day(self) -> None:
        """Write down that the source that vouches was read today, where anything of it is new."""
        if self.edits.has_changes:
            at = self.edits.texts(("sources",), "id").index(self.source)
            self.edits.replace(("sources", at, "read_on"), datetime.now(timezone.utc).date().isoformat())


# --- the command ----------------------------------------------------------------------------------


def compare(text: str, *, file: str, options: argparse.Namespace) -> Outcome:
    """Return how a table differs from the tags.

    Raises
    ------
    ManifestError
        The text is no table.
    UsageError
        ``--source`` names none of its sources, or the repository has no tag of a release.
    NetworkError, AccessError
        The repository could not be looked at.
    """
    table = parse_comfy_table(text, file=file)
    known = [each.id for each in table.sources]
    if options.source not in known:
        raise UsageError(f"{options.source!r} is none of the table's sources", hint=f"Name one of {', '.join(known)}.")
    repository = options.repository or table.repository
    since = options.since or table.pinned.version
    seen, releases = read_repository(repository, (each.version for each in table.releases), since)
    if not releases:
        raise UsageError(f"{redact(repository)} has no tag of a release", hint="Look at --repository.")
    outcome = Outcome()
    comparison = Comparison(table, seen, outcome, YamlEdits(text), options.source)
    comparison.compare_rows()
    comparison.add_rows()
    comparison.note_the_day()
    outcome.text = comparison.edits.result()
    return outcome


def _version(text: str) -> str:
    """Return a version without its "v"; raises ValueError for what is none."""
    if not version_key(text):
        raise ValueError(text)
    return parse_wanted_version(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = table_parser(
        "refresh_comfyui", "Compare the table of ComfyUI's releases with the tags of a repository.", TABLE
    )
    parser.add_argument("--repository", metavar="URL|DIR", help="where the tags are, else the table's own repository")
    parser.add_argument(
        "--since", type=_version, metavar="VERSION", help="older ones get no row, else the pinned release"
    )
    parser.add_argument(
        "--source",
        metavar="ID",
        default="tags",
        help="the table's source that vouches for new rows, default %(default)s",
    )
    return run(parser, partial(refresh_table, compare=compare, parse=parse_comfy_table), arguments)


if __name__ == "__main__":
    sys.exit(main())
