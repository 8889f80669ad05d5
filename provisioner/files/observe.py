"""Looks at a target: what lies where the manifest wants files, and where else the same bytes may be.

Looking never writes in the target.  How deep it looks is the caller's choice: trust receipts (``claims``), read every
byte (``full``), or read nothing but receipts and headers (``quick``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from provisioner.core.errors import FileInCloudError, FileInUseError, UnreadableError
from provisioner.core.events import Events, FileProgress
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    Check,
    Damage,
    Destination,
    Finding,
    HubBlob,
    Inventory,
    LocalCopy,
    Target,
    Variant,
)
from provisioner.core.ports import Claim, FileDigest, Finder, HashProgress, Stamp, Store, Survey
from provisioner.files.blocks import (
    Trusted,
    block_count,
    damage_sentence,
    differing_blocks,
    digests_of_beginning,
    trusted_digests,
)
from provisioner.files.layout import candidates_for, destination_for

Depth = Literal["claims", "full", "quick"]
_EVENT_STEP_S = 0.1

_Seen = tuple[Check, list[Finding]]
_MAX_COPIES_TRIED = 3  # per artifact: reading a fourth file of the right size costs more than it promises


@dataclass
class Observer:
    """Looks at a target as often as asked, and reads no unchanged file twice."""

    store: Store
    finders: Sequence[Finder]
    events: Events
    is_unchanged: Callable[[Stamp, Stamp], bool]
    threads: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    _digests: dict[tuple[Path, Stamp], FileDigest] = field(default_factory=dict)
    _surveys: dict[tuple[Path, Stamp], Survey] = field(default_factory=dict)
    _unread: set[tuple[Path, Stamp]] = field(default_factory=set)  # what the disk did not give to its end
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(
        self, wanted: ArtifactSet, target: Target, *, depth: Depth, rejected: frozenset[tuple[str, Path]] = frozenset()
    ) -> Inventory:
        """Return what lies in the target and where the same bytes already lie.

        Parameters
        ----------
        wanted : ArtifactSet
            The files to look for.
        target : Target
            Where to look.
        depth : {"claims", "full", "quick"}
            How much is read.
        rejected : frozenset of (artifact id, path)
            Copies that were read and turned out to be something else, and files that could not be repaired by blocks.

        Raises
        ------
        StorageError
            A folder of the target cannot be looked at: a broken link, or a file in its place.
        FileInUseError
            A file changed while it was read: somebody is writing it, and no verdict would hold.
        """
        looked = self._in_parallel(lambda artifact: self._look(artifact, target, depth), wanted.artifacts, depth)
        has_work = any(check.status != "ok" for check, _ in looked)  # else nothing is written there
        systems = [self.store.file_system(check.destination, with_kind=has_work) for check, _ in looked]
        checks = tuple(
            replace(
                check,
                device=system.device,
                damage=None if _is_given_up(check, rejected) else check.damage,
                taken_bytes=0 if check.status == "ok" else self.store.taken_bytes(check.destination, check.artifact),
            )
            for (check, _), system in zip(looked, systems, strict=True)
        )
        return Inventory(
            target=target,
            checks=checks,
            copies=tuple(self._copies(checks, rejected)),
            file_systems=tuple({system.device: system for system in reversed(systems)}.values()),
            findings=tuple(finding for _, findings in looked for finding in findings),
        )

    def _in_parallel(
        self, look: Callable[[Artifact], _Seen], artifacts: Sequence[Artifact], depth: Depth
    ) -> list[_Seen]:
        """Look at every artifact, several at a time where files are read."""
        if depth == "quick":
            return [look(artifact) for artifact in artifacts]
        from concurrent.futures import ThreadPoolExecutor  # brings logging along; nothing is read in a quick look

        with ThreadPoolExecutor(self.threads, thread_name_prefix="look") as pool:
            return list(pool.map(look, artifacts))

    # --- one artifact ----------------------------------------------------------------------------

    def _look(self, artifact: Artifact, target: Target, depth: Depth) -> tuple[Check, list[Finding]]:
        home = destination_for(artifact, target)
        self.store.check_readable(home)
        places: Sequence[Destination] = candidates_for(artifact, target) or (home,)
        present = [place for place in places if self._is_there(place.path)]
        if not present:
            return self._missing(artifact, home), []
        first = self._check(artifact, present[0], depth)
        if first.status == "ok" or present[0].path == home.path:
            return first, self._unverified(first) if depth == "quick" else self._wrong_receipt(first)
        # Something else is read first, under this very name, from a folder that comes before ours.
        own = self._check(artifact, home, depth) if self._is_there(home.path) else self._missing(artifact, home)
        is_same_file = own.status != "missing" and self._is_same_file(present[0].path, home.path)
        return own, [] if is_same_file else [_stale_twin(artifact, first)]

    def _is_there(self, path: Path) -> bool:
        try:
            return self.store.stamp(path) is not None
        except UnreadableError:
            return True

    def _is_same_file(self, one: Path, other: Path) -> bool:
        """Whether two paths lead to one file: folders of a tree can be links to each other."""
        try:
            first, second = self.store.stamp(one), self.store.stamp(other)
        except UnreadableError:
            return False
        return first is not None and first == second and first.inode != 0

    def _missing(self, artifact: Artifact, home: Destination) -> Check:
        return Check(
            artifact=artifact,
            destination=home,
            status="missing",
            basis="none",
            held_bytes=self.store.held_bytes(home, artifact),
        )

    def _check(self, artifact: Artifact, place: Destination, depth: Depth) -> Check:
        held = self.store.held_bytes(place, artifact)
        try:
            return self._compare(artifact, place, depth, held)
        except UnreadableError as error:
            if not self._is_there(place.path):
                return self._missing(artifact, place)  # it went away while we looked
            return Check(
                artifact=artifact,
                destination=place,
                status="unreadable",
                basis="none",
                identity=str(error),
                held_bytes=held,
            )

    def _compare(self, artifact: Artifact, place: Destination, depth: Depth, held: int) -> Check:
        stamp = self.store.stamp(place.path)
        if stamp is None:
            return self._missing(artifact, place)
        if stamp.is_in_cloud:
            raise _in_cloud(place.path)
        contents = _contents(artifact, place)
        right_size = [content for content in contents if content.size == stamp.size]
        claim = self.store.claim(place)
        claimed = self._claimed(claim, place, stamp, right_size)
        if claimed is not None and depth != "full":
            return _ok(artifact, place, claimed, basis="receipt", is_recorded=True)
        if depth == "quick" and right_size:
            return self._by_header(artifact, place, stamp, held)
        trusted = None if depth == "quick" else self._trusted(artifact, claim, contents)
        if not right_size:
            damage = None if depth == "quick" else self._damage_of_other_size(place, stamp, contents, trusted)
            return Check(
                artifact=artifact,
                destination=place,
                status="size-mismatch",
                basis=_basis_of(damage, is_bound=trusted is not None and self._is_bound(trusted)),
                observed_size=stamp.size,
                identity=damage_sentence(damage) if damage else self._identity(place.path, stamp, artifact, None),
                held_bytes=held,
                damage=damage,
            )
        is_comparable = trusted is not None and trusted.content.size == stamp.size
        if trusted is not None and is_comparable and self._is_bound(trusted):
            found = self._by_blocks(artifact, place, stamp, trusted, right_size, held, claimed)
            if found is not None:
                return found
        try:
            check = self._by_digest(artifact, place, stamp, right_size, held, claimed, trusted)
        except UnreadableError:
            found = (
                self._by_blocks(artifact, place, stamp, trusted, right_size, held, claimed)
                if trusted and is_comparable
                else None
            )
            if found is None or found.status == "ok":
                raise
            return found
        file_digest = self._known_digest(place.path, stamp)
        if depth == "full" and check.status == "ok" and file_digest is not None:
            self.store.bind_blocks(file_digest)
        return check

    def blocks_to_compare(self, artifact: Artifact, place: Destination, stamp: Stamp) -> Trusted | None:
        """Return the digests of blocks that verify a file without a second reading; None where nobody bound any.

        A file of the wrong size has none.
        """
        trusted = self._trusted(artifact, self.store.claim(place), _contents(artifact, place))
        is_usable = trusted is not None and trusted.content.size == stamp.size and self._is_bound(trusted)
        return trusted if is_usable else None

    def _is_bound(self, trusted: Trusted) -> bool:
        """Whether blocks as these digests say verify the whole: the manifest says so, or a run of this user."""
        content = trusted.content
        return trusted.by == "manifest" or self.store.are_blocks_bound(
            FileDigest(size=content.size, sha256=content.sha256, blocks=trusted.digests)
        )

    def _claimed(
        self, claim: Claim | None, place: Destination, stamp: Stamp, contents: Sequence[Variant]
    ) -> FileDigest | None:
        """Return the receipt's proof if the file is as it was then and the content is one of those wanted.

        What this run has read with its own eyes outranks a claim: a disk can lose bits without touching the time.
        """
        if claim is None or not self.is_unchanged(claim.stamp, stamp):
            return None
        with self._lock:
            is_unread = (place.path, stamp) in self._unread
            survey = self._surveys.get((place.path, stamp))
        seen = self._known_digest(place.path, stamp)
        if is_unread or (seen is not None and not _agrees(claim.file_digest, seen)):
            return None
        if survey is not None and differing_blocks(survey.blocks, claim.file_digest.blocks):
            return None
        wanted = {(content.size, content.sha256) for content in contents}
        return claim.file_digest if (claim.file_digest.size, claim.file_digest.sha256) in wanted else None

    # --- by blocks -------------------------------------------------------------------------------

    def _trusted(self, artifact: Artifact, claim: Claim | None, contents: Sequence[Variant]) -> Trusted | None:
        """Return the block digests to compare with: the manifest's, else those of a receipt about wanted content."""
        return trusted_digests(
            contents,
            block_size=self.store.block_size,
            claimed=(claim.file_digest.sha256, claim.file_digest.blocks) if claim is not None else None,
            published=(artifact.sha256, artifact.blocks) if artifact.blocks else None,
        )

    def _by_blocks(
        self,
        artifact: Artifact,
        place: Destination,
        stamp: Stamp,
        trusted: Trusted,
        right_size: Sequence[Variant],
        held: int,
        claimed: FileDigest | None,
    ) -> Check | None:
        """Read every byte over all cores; None where that does not decide, and the digest of the whole has to.

        All blocks as bound digests say verifies the file.  A block that differs shows that it is wrong only where a run
        of this user read these digests together with the whole: a receipt or a manifest may be what is wrong.
        """
        path = place.path
        known = self._known_digest(path, stamp)
        if known is not None:
            is_right = (known.sha256, known.blocks) == (trusted.content.sha256, trusted.digests)
            return (
                _ok(artifact, place, known, basis="blocks", is_recorded=_agrees(claimed, known)) if is_right else None
            )
        survey = self._survey(place, stamp, trusted.content.size)
        bad = differing_blocks(survey.blocks, trusted.digests)
        if survey.unreadable is not None:
            damage = self._damage(place, stamp, trusted, bad, survey)
            return Check(
                artifact=artifact,
                destination=place,
                status="unreadable",
                basis="blocks",
                observed_size=stamp.size,
                identity=damage_sentence(damage) if damage else survey.unreadable,
                held_bytes=held,
                damage=damage,
            )
        file_digest = FileDigest(size=stamp.size, sha256=trusted.content.sha256, blocks=trusted.digests)
        if bad:
            is_certain = right_size == [trusted.content] and self.store.are_blocks_bound(file_digest)
            damage = self._damage(place, stamp, trusted, bad) if is_certain else None
            if damage is None:  # another file has no block in common with it, and is named by its digest
                return None
            return Check(
                artifact=artifact,
                destination=place,
                status="hash-mismatch",
                basis="blocks",
                observed_size=stamp.size,
                identity=damage_sentence(damage),
                held_bytes=held,
                damage=damage,
            )
        with self._lock:
            self._digests[path, stamp] = file_digest
        return _ok(artifact, place, file_digest, basis="blocks", is_recorded=_agrees(claimed, file_digest))

    def _survey(self, place: Destination, stamp: Stamp, size: int) -> Survey:
        """Return the digests of a file's blocks; an unchanged file is read once."""
        with self._lock:
            known = self._surveys.get((place.path, stamp))
        if known is not None:
            return known
        progress = self.progress_of(place.label, size)
        survey = self.store.survey(place.path, size=size, progress=progress)
        self._check_unchanged(place.path, stamp)
        with self._lock:
            self._surveys[place.path, stamp] = survey
            if survey.unreadable is not None:
                self._unread.add((place.path, stamp))
        return survey

    def _damage(
        self, place: Destination, stamp: Stamp, trusted: Trusted, bad: tuple[int, ...], survey: Survey | None = None
    ) -> Damage | None:
        """Return what is wrong with a file of which most can be kept; None where no block is right."""
        content, block_size = trusted.content, self.store.block_size
        if len(bad) == block_count(content.size, block_size):
            return None
        held = self.store.held_blocks(place, content.size, content.sha256)
        return Damage(
            size=content.size,
            sha256=content.sha256,
            block_size=block_size,
            digests=trusted.digests,
            trusted_by=trusted.by,
            observed_size=stamp.size,
            bad_blocks=bad,
            held_blocks=tuple(block for block in held if block in set(bad)),
            unreadable=survey.unreadable if survey else None,
            is_shared=self.store.is_shared(place, content.sha256),
        )

    def _damage_of_other_size(
        self, place: Destination, stamp: Stamp, contents: Sequence[Variant], trusted: Trusted | None
    ) -> Damage | None:
        """Return what can be kept of a file that is too short or too long."""
        if trusted is not None:
            survey = self._survey(place, stamp, min(stamp.size, trusted.content.size))
            bad = differing_blocks(survey.blocks, trusted.digests)
            return self._damage(place, stamp, trusted, bad, survey)
        asked_for = self._size_by_header(place.path, stamp)
        for content in contents:
            if stamp.size < content.size == asked_for:
                return self._damage_of_beginning(place, stamp, content)
            # One whose header accounts for every byte is another file, and not ours grown longer.
            if 0 < content.size < stamp.size != asked_for:
                file_digest = self._prefix_digest(place, stamp, content.size)
                if file_digest.sha256 == content.sha256:
                    return self._damage(
                        place, stamp, Trusted(content=content, digests=file_digest.blocks, by="whole"), ()
                    )
        return None

    def _damage_of_beginning(self, place: Destination, stamp: Stamp, content: Variant) -> Damage | None:
        """Return what is missing of a file that is taken for the beginning of a content."""
        survey = self._survey(place, stamp, stamp.size)
        digests = digests_of_beginning(
            survey.blocks, observed_size=stamp.size, size=content.size, block_size=self.store.block_size
        )
        bad = tuple(index for index, digest in enumerate(digests) if not digest)
        return self._damage(place, stamp, Trusted(content=content, digests=digests, by="header"), bad, survey)

    def _size_by_header(self, path: Path, stamp: Stamp) -> int | None:
        """Return how many bytes a file's own safetensors header asks for; None where it has none that is sound."""
        from provisioner.identify.identification import HeaderProblem, read_header  # imported where a file is in doubt

        found = read_header(self.store.head(path), stamp.size)
        return found.expected_size if isinstance(found, HeaderProblem) else stamp.size

    def _prefix_digest(self, place: Destination, stamp: Stamp, size: int) -> FileDigest:
        progress = self.progress_of(place.label, size)
        file_digest = self.store.hash_file(place.path, progress=progress, with_blocks=True, size=size)
        self._check_unchanged(place.path, stamp)
        return file_digest

    def _by_header(self, artifact: Artifact, place: Destination, stamp: Stamp, held: int) -> Check:
        """Without a receipt, and without reading the file: the size is right, and the header must cover it."""
        is_tensors = artifact.name.endswith((".safetensors", ".sft"))
        is_covered = self._size_by_header(place.path, stamp) == stamp.size
        is_broken = is_tensors and not is_covered
        return Check(
            artifact=artifact,
            destination=place,
            status="hash-mismatch" if is_broken else "ok",
            basis="size",
            observed_size=stamp.size,
            identity=self._identity(place.path, stamp, artifact, None) if is_broken else None,
            held_bytes=held,
        )

    def _by_digest(
        self,
        artifact: Artifact,
        place: Destination,
        stamp: Stamp,
        contents: Sequence[Variant],
        held: int,
        claimed: FileDigest | None,
        trusted: Trusted | None,
    ) -> Check:
        """Let the digest of the whole decide: what a receipt says of blocks may be the very thing that is damaged."""
        file_digest = self.digest_of(place.path, stamp, place.label)
        if any(file_digest.sha256 == content.sha256 for content in contents):
            return _ok(artifact, place, file_digest, basis="sha256", is_recorded=_agrees(claimed, file_digest))
        damage = None
        if trusted is not None and trusted.content.size == stamp.size:
            damage = self._damage(place, stamp, trusted, differing_blocks(file_digest.blocks, trusted.digests))
        return Check(
            artifact=artifact,
            destination=place,
            status="hash-mismatch",
            basis="sha256",
            observed_size=file_digest.size,
            observed_sha256=file_digest.sha256,
            identity=damage_sentence(damage)
            if damage
            else self._identity(place.path, stamp, artifact, file_digest.sha256),
            held_bytes=held,
            damage=damage,
        )

    def digest_of(self, path: Path, stamp: Stamp, label: str) -> FileDigest:
        """Return the proof of a file's content; an unchanged file is read once.

        Raises
        ------
        UnreadableError
            The system does not let us read it to its end.
        FileInUseError
            It changed meanwhile.
        """
        known = self._known_digest(path, stamp)
        if known is not None:
            return known
        try:
            file_digest = self.store.hash_file(path, progress=self.progress_of(label, stamp.size), with_blocks=True)
        except UnreadableError:
            with self._lock:
                self._unread.add((path, stamp))
            raise
        self._check_unchanged(path, stamp)
        with self._lock:
            self._digests[path, stamp] = file_digest
        return file_digest

    def progress_of(self, label: str, size: int, *, done: int = 0) -> HashProgress:
        """Return what tells how far the reading of a file is, at most ten times a second.

        Parameters
        ----------
        label, size
            Of the file; bytes.
        done : int
            Bytes that were read before.
        """
        last = 0.0

        def progress(count: int) -> None:
            nonlocal last
            now, count = time.monotonic(), done + count
            if now - last >= _EVENT_STEP_S or count == size:
                last = now
                self.events(
                    FileProgress(label=label, phase="hashing", size=size, bytes_on_disk=size, bytes_hashed=count)
                )

        return progress

    def _check_unchanged(self, path: Path, stamp: Stamp) -> None:
        """Raise where a file is not what it was when reading began."""
        after = self.store.stamp(path)
        if after is None:
            raise UnreadableError(f"{path} went away while it was read.", path=str(path))
        if after != stamp:
            raise FileInUseError(
                f"{path} changed while it was read: another program is writing it.",
                hint="Wait until nothing writes to it, then run the same command again.",
                path=str(path),
            )

    def _known_digest(self, path: Path, stamp: Stamp) -> FileDigest | None:
        with self._lock:
            return self._digests.get((path, stamp))

    def _identity(self, path: Path, stamp: Stamp, artifact: Artifact, sha256: str | None) -> str:
        """Return in words what the file is instead."""
        for lookalike in artifact.lookalikes:
            if lookalike.sha256 == sha256:
                return lookalike.what
        from provisioner.identify.identification import identify

        record = path.with_name(f"{path.name}.aria2")  # aria2 keeps it beside a file it has not finished
        beside = [f"{artifact.name}.aria2"] if self.store.stamp(record) is not None else []
        sentence = identify(self.store.head(path), stamp.size, name=artifact.name, beside=beside).sentence
        suspects = [each.what for each in artifact.lookalikes if each.size == stamp.size]
        if sha256 is None and suspects:
            return f"{sentence} By its size it may be: {suspects[0]}"
        return sentence

    # --- the whole -------------------------------------------------------------------------------

    def _copies(self, checks: Sequence[Check], rejected: frozenset[tuple[str, Path]]) -> list[LocalCopy]:
        copies = []
        for check in checks:
            artifact = check.artifact
            own = check.destination.path
            tried = sum(artifact_id == artifact.id and path != own for artifact_id, path in rejected)
            if check.status == "ok" or tried >= _MAX_COPIES_TRIED:
                continue
            taken = {path for artifact_id, path in rejected if artifact_id == artifact.id}
            for finder in self.finders:
                for copy in finder.find(artifact, _contents(artifact, check.destination)):
                    if copy.path not in taken and self._may_be_right(copy, check.destination.path):
                        taken.add(copy.path)
                        copies.append(copy)
        return copies

    def _may_be_right(self, copy: LocalCopy, home: Path) -> bool:
        """Whether nothing is known against a copy: it is there, is not the wrong file itself, was not read before."""
        try:
            stamp = self.store.stamp(copy.path)
        except UnreadableError:
            return False
        if stamp is None or stamp.is_in_cloud:
            return False
        if stamp.size != copy.size or copy.path == home or self._is_same_file(copy.path, home):
            return False
        seen = self._known_digest(copy.path, stamp)
        return seen is None or seen.sha256 == copy.sha256

    def _unverified(self, check: Check) -> list[Finding]:
        if check.basis != "size" or check.status != "ok":
            return []
        return [
            Finding(
                code="never-proven",
                severity="problem",
                message=f"{check.destination.label} has the right size, and no receipt says that it is right.",
                path=check.destination.path,
                remedy="repair",
                hint="Run `klein-setup verify` without --quick, or `klein-setup install`, which records them.",
            )
        ]

    def _wrong_receipt(self, check: Check) -> list[Finding]:
        """Say that a file is right and its receipt is not: next time it would be read twice."""
        claim = self.store.claim(check.destination) if (check.status, check.basis) == ("ok", "sha256") else None
        stamp = self.store.stamp(check.destination.path) if claim is not None else None
        file_digest = self._known_digest(check.destination.path, stamp) if stamp is not None else None
        if claim is None or stamp is None or file_digest is None or not self.is_unchanged(claim.stamp, stamp):
            return []
        if _agrees(claim.file_digest, file_digest) or not claim.file_digest.blocks:
            return []
        return [
            Finding(
                code="receipt-wrong",
                severity="warning",
                message=f"{check.destination.label} is right by its whole SHA-256, and its receipt says otherwise.",
                path=check.destination.path,
                remedy="repair",
                hint="Run `klein-setup repair`: it writes the receipt anew and leaves the file alone.",
            )
        ]


def _in_cloud(path: Path) -> FileInCloudError:
    return FileInCloudError(
        f"The bytes of {path} are not on this disk: OneDrive, or another program with files in a cloud, has "
        "them. Reading the file would download all of it, so it was not read.",
        hint='In the file manager, choose "Always keep on this device" for it and wait until it is here, or keep '
        "models in a folder that is not synchronised; then run the same command again.",
        path=str(path),
    )


def _contents(artifact: Artifact, place: Destination) -> tuple[Variant, ...]:
    """Return what is right at a place: in a snapshot the commit's own bytes, elsewhere also what is as good."""
    return artifact.contents[:1] if isinstance(place, HubBlob) else artifact.contents


def _agrees(claimed: FileDigest | None, seen: FileDigest) -> bool:
    """Whether a receipt says of a file what was seen of it, the digests of its blocks included."""
    return claimed is not None and (claimed.sha256, claimed.blocks) == (seen.sha256, seen.blocks)


def _basis_of(damage: Damage | None, *, is_bound: bool) -> Literal["size", "sha256", "blocks"]:
    """Return what a verdict about a file of another size rests on: its bytes only where some are known to be right.

    Digests of blocks that nobody bound to the whole say what may be kept; the verdict is the size's alone.
    """
    if damage is None or damage.trusted_by == "header":
        return "size"
    if damage.trusted_by == "whole":
        return "sha256"
    return "blocks" if is_bound else "size"


def _is_given_up(check: Check, rejected: frozenset[tuple[str, Path]]) -> bool:
    """Whether repairing this file by blocks was tried in this run, and its whole did not come right."""
    return (check.artifact.id, check.destination.path) in rejected


def _ok(
    artifact: Artifact,
    place: Destination,
    file_digest: FileDigest,
    *,
    basis: Literal["receipt", "sha256", "blocks"],
    is_recorded: bool,
) -> Check:
    return Check(
        artifact=artifact,
        destination=place,
        status="ok",
        basis=basis,
        observed_size=file_digest.size,
        observed_sha256=file_digest.sha256,
        is_recorded=is_recorded,
    )


def _stale_twin(artifact: Artifact, check: Check) -> Finding:
    path = check.destination.path
    what = f" It is: {check.identity}" if check.identity else ""
    return Finding(
        code="stale-twin",
        severity="problem",
        message=f"ComfyUI reads {path} first, and it is not the {artifact.name} that the manifest names.{what}",
        path=path,
        remedy="by-hand",
        hint=f"Move {path.parent.name}/{path.name} out of the way; until then the right one is not seen.",
    )
