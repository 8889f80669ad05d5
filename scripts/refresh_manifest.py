#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "huggingface-hub>=2.2",
#     "pyyaml>=6.0.2",
#     "requests>=2.32.3",
# ]
# ///
"""Compare manifests/*.yaml with the Hub: is every pinned file still there, with the size and the digest we state.

    uv run --script scripts/refresh_manifest.py [FILE ...] [--endpoint URL] [--write] [--move] [--skip REPO]

Prints what differs, and a diff; writes only with ``--write``.  A revision is moved only with ``--move``: to the newest
commit of the default branch, for a repository in which a file of ours changed there.  What is a claim of a person
(where a digest was read, how many publications agree, what is known of a header) is never written: it is named as "to
be read again".

Exit status: 0 nothing differs; 1 something does; 2 the new file would be refused by its reader; 5, 6 the Hub, or a
repository of it, could not be looked at, and nothing was written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from provisioner.core.errors import (  # noqa: E402
    AccessError,
    NotTheFileError,
    OfflineError,
    RevisionNotFoundError,
)
from provisioner.core.models import HubFile, Manifest, Source, UrlFile  # noqa: E402
from provisioner.files.hub_cache import endpoint, find_token, is_offline  # noqa: E402
from provisioner.files.hub_facts import FileFacts, HubFacts  # noqa: E402
from provisioner.manifest.parse import parse_manifest  # noqa: E402
from provisioner.manifest.shipped import shipped_manifests  # noqa: E402 - found through the line above
from provisioner.network.http_session import Credentials  # noqa: E402
from scripts.refreshing import KeyPath, Outcome, YamlEdits, refresh_file, run  # noqa: E402

FOLDER = ROOT / "manifests"

# --- what the Hub says ----------------------------------------------------------------------------


class Pin(NamedTuple):
    """A commit of a repository, as manifests name it."""

    repo_id: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo_id} at {self.revision[:8]}"


@dataclass(frozen=True)
class Seen:
    """What the Hub says of one pin and of the newest commit of the default branch."""

    name: str  # of the repository, now
    head: str  # commit
    pinned: Mapping[str, FileFacts] | None  # by filename; None: there is no such commit
    newest: Mapping[str, FileFacts]


def look(hub: HubFacts, pin: Pin, filenames: Iterable[str]) -> Seen:
    """Return what the Hub says of some files, at the pinned commit and at the newest one.

    Raises
    ------
    NetworkError
        The Hub does not answer, or not as it should.
    AccessError
        It does not admit us to this repository, or not to its files.
    """
    names = sorted(set(filenames))
    about = hub.repository(pin.repo_id)
    try:
        pinned: Mapping[str, FileFacts] | None = hub.files(pin.repo_id, pin.revision, names)
    except RevisionNotFoundError:
        pinned = None
    newest = pinned if about.commit == pin.revision else hub.files(pin.repo_id, about.commit, names)
    return Seen(about.repo_id, about.commit, pinned, newest or {})


# --- what the manifest says -----------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """A source of a content, and where it stands."""

    path: KeyPath
    pin: Pin
    filename: str


@dataclass(frozen=True)
class Content:
    """Bytes a manifest asks for, and where they stand in it."""

    path: KeyPath
    label: str
    size: int  # bytes
    sha256: str
    offers: tuple[Offer, ...]
    is_lfs: bool | None = None  # None: not stated
    git_oid: str | None = None


def contents_of(manifest: Manifest) -> tuple[Content, ...]:
    """Return every content that has sources, with the key paths the file has it under."""
    found: list[Content] = []
    for at, artifact in enumerate(manifest.artifacts):
        path: KeyPath = ("artifacts", at)
        offers = _offers(path, artifact.sources)
        stated = artifact.size, artifact.sha256
        found.append(Content(path, artifact.id, *stated, offers, artifact.is_lfs, artifact.git_oid))
        for number, variant in enumerate(artifact.accept):
            below = (*path, "accept", number)
            label = f"{artifact.id}, accepted content {number + 1}"
            found.append(Content(below, label, variant.size, variant.sha256, _offers(below, variant.sources)))
    return tuple(found)


def _offers(path: KeyPath, sources: Sequence[Source]) -> tuple[Offer, ...]:
    return tuple(
        Offer((*path, "sources", at), Pin(source.repo_id, source.revision), source.filename)
        for at, source in enumerate(sources)
        if isinstance(source, HubFile)
    )


# --- comparing ------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """One manifest beside what the Hub says."""

    contents: tuple[Content, ...]
    seen: Mapping[Pin, Seen]  # without what was refused or skipped
    moved: set[Pin] = field(default_factory=set)
    outcome: Outcome = field(default_factory=Outcome)

    def entry(self, offer: Offer) -> FileFacts | None:
        """Return what an offer gives, where its pin is now; None where it was not looked at or gives nothing."""
        seen = self.seen.get(offer.pin)
        if seen is None:
            return None
        return (seen.newest if offer.pin in self.moved else seen.pinned or {}).get(offer.filename)

    def files_of(self, pin: Pin) -> list[str]:
        """Return the files of ours that a pin gives."""
        return sorted({each.filename for content in self.contents for each in content.offers if each.pin == pin})

    def select_moves(self) -> None:
        """Move every pin whose files changed, and that can be moved without two sources of one content disagreeing."""
        wanted = {pin for pin in self.seen if self._changed(pin) and not self._lost(pin)}
        while True:
            self.moved = set(wanted)
            torn = [each for each in self.contents if len({entry.sha256 for entry in self._entries(each)}) > 1]
            stuck = {offer.pin for content in torn for offer in content.offers} & wanted
            if not stuck:
                return
            for pin in sorted(stuck):
                self.outcome.notes.append(f"{pin} is not moved: other sources of its files would have other bytes")
            wanted -= stuck

    def _changed(self, pin: Pin) -> list[str]:
        """Return the files of a pin that differ on the default branch."""
        seen = self.seen[pin]
        pinned = seen.pinned or {}
        return [
            name
            for name in self.files_of(pin)
            if name in seen.newest and (name not in pinned or pinned[name].sha256 != seen.newest[name].sha256)
        ]

    def _lost(self, pin: Pin) -> list[str]:
        """Return the files of a pin that the default branch no longer has."""
        return [name for name in self.files_of(pin) if name not in self.seen[pin].newest]

    def _entries(self, content: Content) -> list[FileFacts]:
        return [entry for entry in map(self.entry, content.offers) if entry is not None]

    def tell_pins(self) -> None:
        """Say what became of every pin."""
        tell = self.outcome
        for pin, seen in sorted(self.seen.items()):
            if seen.name.casefold() != pin.repo_id.casefold():
                tell.notes.append(f"{pin.repo_id} is called {seen.name} now; to be read again")
            if pin in self.moved:
                tell.differences.append(f"{pin} moves to {seen.head}")
                continue
            if seen.pinned is None:
                lost = self._lost(pin)
                lacks = f", which has no {', '.join(lost)}" if lost else ""
                tell.differences.append(f"{pin}: there is no such commit; the newest is {seen.head}{lacks}")
                continue
            for name in self.files_of(pin):
                if name not in seen.pinned:
                    tell.differences.append(f"{pin} has no file {name}; to be read again")
            self._tell_newer(pin, seen, seen.pinned)

    def _tell_newer(self, pin: Pin, seen: Seen, pinned: Mapping[str, FileFacts]) -> None:
        for name in self._changed(pin):
            new = seen.newest[name]
            was = "differs" if name in pinned else "is there"
            self.outcome.notes.append(
                f"{name} of {pin} {was} in the newer commit {seen.head}: {new.size} bytes, sha256 {new.sha256}"
            )
        for name in self._lost(pin):
            if name in pinned:
                self.outcome.notes.append(f"{name} of {pin} is no longer there in the newer commit {seen.head}")

    def put_right(self, edits: YamlEdits) -> None:
        """Change what the Hub contradicts, where all sources of a content say the same."""
        for content in self.contents:
            for offer in content.offers:
                if offer.pin in self.moved:
                    edits.replace((*offer.path, "revision"), self.seen[offer.pin].head)
            offered = {(entry.size, entry.sha256): entry for entry in self._entries(content)}
            if len(offered) > 1:
                self._tell_torn(content)
            for entry in offered.values() if len(offered) == 1 else ():
                self._put_content_right(content, entry, edits)
            self._put_git_right(content, edits)

    def _tell_torn(self, content: Content) -> None:
        for offer in content.offers:
            entry = self.entry(offer)
            if entry is not None and (entry.size, entry.sha256) != (content.size, content.sha256):
                self.outcome.differences.append(
                    f"{content.label}: {offer.filename} of {offer.pin} has {entry.size} bytes, sha256 {entry.sha256}, "
                    "and another source has other ones; to be read again"
                )

    def _put_content_right(self, content: Content, entry: FileFacts, edits: YamlEdits) -> None:
        tell = self.outcome
        for key, was, now in (("size", content.size, entry.size), ("sha256", content.sha256, entry.sha256)):
            if was != now:
                tell.differences.append(f"{content.label}: {key} is {now} at the Hub, {was} here")
                edits.replace((*content.path, key), now)
        claims = [
            key for key in ("provenance", "fingerprint", "blocks", "note", "what") if edits.holds((*content.path, key))
        ]
        if claims and content.sha256 != entry.sha256:
            tell.notes.append(f"{content.label}: {', '.join(claims)} belong to the old bytes; to be read again")

    def _put_git_right(self, content: Content, edits: YamlEdits) -> None:
        """Compare how git keeps the file: only an artifact says it, of its first source."""
        entry = self.entry(content.offers[0]) if content.offers else None
        if content.is_lfs is None or entry is None:
            return
        if content.is_lfs != entry.is_lfs:
            kept = "in LFS, and is_lfs is false" if entry.is_lfs else "in git itself, and is_lfs is not false"
            self.outcome.differences.append(f"{content.label}: the Hub keeps it {kept}; to be read again")
        elif not entry.is_lfs and content.git_oid != entry.git_oid:
            self.outcome.differences.append(
                f"{content.label}: git_oid is {entry.git_oid} at the Hub, {content.git_oid or 'not stated'} here"
            )
            if content.git_oid is None:
                edits.insert_key(content.path, [f'git_oid: "{entry.git_oid}"'], before="is_lfs")
            else:
                edits.replace((*content.path, "git_oid"), entry.git_oid)

    def tell_remaining(self, text: str) -> None:
        """Say where a revision that moved still stands in the new text: in prose, where only a person can tell why."""
        for number, line in enumerate(text.splitlines(), start=1):
            for pin in self.moved:
                if pin.revision in line:
                    self.outcome.notes.append(f"line {number} still names {pin.revision}; to be read again")


def compare(text: str, hub: HubFacts, *, file: str, may_move: bool = False, skipped: Sequence[str] = ()) -> Outcome:
    """Return how a manifest differs from the Hub.

    Parameters
    ----------
    text : str
        The manifest.
    hub : HubFacts
        Whom to ask.
    file : str
        What complaints call the text.
    may_move : bool
        Whether revisions may move to the newest commit.
    skipped : sequence of str
        Repositories not to ask for.

    Raises
    ------
    ManifestError
        The text is no manifest.
    NetworkError
        The Hub was not reached.
    """
    manifest = parse_manifest(text, file=file)
    comparison = Comparison(contents_of(manifest), seen := {})
    outcome = comparison.outcome
    for pin in sorted({offer.pin for content in comparison.contents for offer in content.offers}):
        if pin.repo_id in skipped:
            outcome.notes.append(f"{pin} was not looked at, as was asked for")
            continue
        try:
            seen[pin] = look(hub, pin, comparison.files_of(pin))
        except (AccessError, NotTheFileError) as error:
            outcome.refused.append(error)
    for artifact in manifest.artifacts:
        for source in (*artifact.sources, *(each for variant in artifact.accept for each in variant.sources)):
            if not isinstance(source, HubFile):
                named = source.url if isinstance(source, UrlFile) else source
                outcome.notes.append(f"{artifact.id}: {named} is no file of the Hub and was not looked at")
    if may_move:
        comparison.select_moves()
    comparison.tell_pins()
    edits = YamlEdits(text)
    comparison.put_right(edits)
    outcome.text = edits.result()
    comparison.tell_remaining(outcome.text)
    return outcome


# --- the command ----------------------------------------------------------------------------------


def work(options: argparse.Namespace) -> int:
    """Compare every file; return the gravest exit status."""
    if is_offline(False, os.environ):
        raise OfflineError("HF_HUB_OFFLINE keeps this from asking the Hub", hint="Unset it and run this again.")
    files: list[Path] = options.files or [FOLDER / f"{each}.yaml" for each in shipped_manifests(FOLDER)]
    token = find_token(os.environ)
    hub = HubFacts(Credentials(token.value if token else None, endpoint(options.endpoint, os.environ)))
    statuses = [
        refresh_file(
            path,
            partial(compare, hub=hub, file=path.name, may_move=options.move, skipped=options.skip),
            partial(parse_manifest, file=path.name),
            is_to_write=options.write,
        )
        for path in files
    ]
    return max(statuses)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="refresh_manifest", description="Compare manifests with the Hub.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="manifests; those of the program if none")
    parser.add_argument("--endpoint", metavar="URL", help="address of the Hub, else HF_ENDPOINT, else the Hub")
    parser.add_argument("--write", action="store_true", help="write what the diff shows")
    parser.add_argument("--move", action="store_true", help="move revisions to the newest commit where files changed")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="REPO", help="do not look at this repository; may be repeated"
    )
    return run(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
