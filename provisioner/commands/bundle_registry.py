"""A bundle in an OCI registry: pushed there, read there, and taken from there."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.bundle.image_layout import (
    BLOBS,
    INDEX_TYPE,
    LAYOUT,
    MANIFEST_TYPE,
    Listed,
    Part,
    artifacts_of,
    parse_index,
)
from provisioner.commands.blob_runs import bring_blobs
from provisioner.commands.open_bundle import COMFYUI, OpenBundle, create_command, parts_of, read_in, serving
from provisioner.core.errors import EXIT_FINDINGS, EXIT_OK, EntryNotFoundError, OfflineError, UsageError
from provisioner.core.models import Finding, OciFile, Registry
from provisioner.core.units import count, human_bytes
from provisioner.disk.locations import own_cache_folder
from provisioner.disk.root import Root
from provisioner.report.outcome import Report

if TYPE_CHECKING:
    from provisioner.commands.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteBundle:
    """What a registry says of a bundle; the bytes of its files are not here."""

    reference: OciFile  # with the digest of its index
    index: bytes
    manifests: tuple[tuple[Listed, bytes], ...]
    parts: tuple[Part, ...]


def read_remote(session: Session, reference: OciFile) -> RemoteBundle:
    """Return what a registry has under a reference.

    Raises
    ------
    OfflineError
        The network is off.
    EntryNotFoundError
        There is nothing.
    NotTheFileError
        It is no bundle.
    KleinError
        As `OciRegistries.locate`.
    """
    if session.is_offline:
        raise OfflineError(
            f"{reference} is in a registry, and offline none is asked.",
            hint="Run it without --offline (or HF_HUB_OFFLINE), or name a bundle in a folder.",
        )
    registries = session.registries
    pinned = registries.pin(replace(reference, repository=replace(reference.repository, is_named_by_user=True)))
    index = registries.read_manifest(pinned)
    manifests: dict[Listed, bytes] = {}

    def read(listed: Listed) -> bytes:
        manifests[listed] = registries.read_manifest(OciFile(repository=pinned.repository, digest=listed.sha256))
        return manifests[listed]

    parts = parts_of(index, read, label=str(reference))
    return RemoteBundle(reference=pinned, index=index, manifests=tuple(manifests.items()), parts=parts)


# --- pushing -----------------------------------------------------------------------------------------


def folder_of(reference: OciFile) -> Path:
    """Return the folder in which a bundle for a registry is made; raises UsageError without a tag to push to."""
    if reference.tag is None or reference.digest is not None:
        raise UsageError(
            f"{reference} is no place to make a bundle in: it needs a tag, and no digest.",
            hint=f"Name a tag: oci://{reference.repository}:v1.",
        )
    name = re.sub(r"[^A-Za-z0-9.-]", "_", str(reference.repository))
    return own_cache_folder() / "bundles" / name


def begin_from_remote(session: Session, reference: OciFile, folder: Path, *, must_exist: bool) -> None:
    """Have a folder list what the registry has under the tag, so that the new bundle is added to it.

    Raises
    ------
    UsageError
        There is nothing to add to.
    KleinError
        As `read_remote`.
    """
    root = Root(folder, is_private=True)
    try:
        found = read_remote(session, reference)
    except EntryNotFoundError:
        if must_exist:
            raise UsageError(
                f"There is no bundle {reference}.", hint=f"Make it with `{create_command(str(reference))}`."
            ) from None
        root.remove(folder / "index.json")
        return
    for listed, data in found.manifests:
        root.write_bytes(folder / BLOBS / listed.sha256, data)
    root.write_bytes(folder / "oci-layout", LAYOUT)
    root.write_bytes(folder / "index.json", found.index)


def push_bundle(session: Session, folder: Path, reference: OciFile, say: Callable[[str], None]) -> OciFile:
    """Push a bundle to the tag of a registry, its index last; return the reference with the digest of the index.

    Raises
    ------
    KleinError
        As `Pusher.push_blob`; what has arrived is kept there, and is not sent again.
    """
    from provisioner.oci.push import LocalBlob, Pusher

    pusher = Pusher(
        session.registries, reference.repository, lambda sent: session.limiter.delay_s(sent, time.monotonic())
    )
    index = read_in(folder, "index.json")
    listed = parse_index(index)
    manifests = {each.sha256: read_in(folder, f"{BLOBS}/{each.sha256}") for each in listed}
    artifacts = artifacts_of(parts_of(index, lambda each: manifests[each.sha256], label=str(folder)))
    sent_bytes = 0
    for each in artifacts:
        path = folder / BLOBS / each.sha256
        blob = LocalBlob(sha256=each.sha256, size=each.size, title=each.id, path=path if path.is_file() else None)
        if pusher.push_blob(blob):
            say(f"pushed {each.id} ({human_bytes(each.size)})")
            sent_bytes += each.size
    for row in listed:
        pusher.push_manifest(manifests[row.sha256], MANIFEST_TYPE, f"sha256:{row.sha256}")
    pusher.push_manifest(index, INDEX_TYPE, reference.tag or "")
    pushed = replace(reference, digest=hashlib.sha256(index).hexdigest())
    say(f"{pushed} has {count(len(artifacts), 'file')}; {human_bytes(sent_bytes)} had to be sent.")
    return pushed


# --- taking from there -------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_remote(session: Session, reference: OciFile) -> Iterator[OpenBundle]:
    """Give a run a bundle in a registry: model files are fetched into their places, programs into the user's cache.

    Raises
    ------
    KleinError
        As `read_remote`.
    """
    found = read_remote(session, reference)
    repository = found.reference.repository
    folder = own_cache_folder() / "bundles" / "taken"
    programs = [each for each in found.parts if each.kind in {"comfyui", "wheels"}]
    known = {
        each.sha256: replace(each, sources=(OciFile(repository=repository, digest=each.sha256),))
        for each in artifacts_of(programs)
    }
    index_sha256 = hashlib.sha256(found.index).hexdigest()

    def bring(digests: Sequence[str]) -> None:
        bring_blobs(session, folder, [known[each] for each in digests], index_sha256)

    with serving({sha256: folder / BLOBS / sha256 for sha256 in known}, programs) as address:
        yield OpenBundle(
            label=f"The bundle {found.reference}",
            named=str(reference),
            folder=folder,
            registry=Registry(
                repository=repository,
                is_only=True,
                holds=frozenset(blob.sha256 for part in found.parts for blob in part.blobs),
            ),
            served_at=f"{address}/{COMFYUI}",
            parts=found.parts,
            bring=bring,
            is_here=False,
        )
    if folder.is_dir():  # the run has ended well, and what it installed from lies in the cache of wheels
        Root(folder.parent).remove_tree(folder)


# --- verifying ---------------------------------------------------------------------------------------


def run_verify_remote(session: Session, reference: OciFile, say: Callable[[str], None]) -> Report:
    """Read every byte of a bundle out of a registry, and say what is wrong; raises as `read_remote`."""
    found = read_remote(session, reference)
    repository = found.reference.repository
    findings = []
    artifacts = artifacts_of(found.parts)
    for each in artifacts:
        try:
            is_right = session.registries.hash_blob(OciFile(repository=repository, digest=each.sha256), each) == (
                each.sha256,
                each.size,
            )
            said = "has wrong bytes"
        except EntryNotFoundError:
            is_right, said = False, "is missing"
        if not is_right:
            findings.append(
                Finding(
                    code="bundle-hash-mismatch" if said == "has wrong bytes" else "bundle-missing",
                    severity="problem",
                    remedy="by-hand",
                    message=f"{each.id} {said} (SHA-256 {each.sha256}).",
                    hint="Delete the blob in the registry, and push it again: "
                    f"`{create_command(str(reference))}` for the same set.",
                )
            )
    for part in found.parts:
        say(f"{part.name}: {count(len(part.blobs), 'file')}, {human_bytes(part.size)}")
    if not findings:
        size = human_bytes(sum(each.size for each in artifacts))
        say(f"All {count(len(artifacts), 'file')} of {found.reference} are correct ({size}); every byte was read.")
    return Report(
        command="bundle verify",
        status="findings" if findings else "ok",
        exit_status=EXIT_FINDINGS if findings else EXIT_OK,
        findings=tuple(findings),
    )
