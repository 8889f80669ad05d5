"""Write a locked manifest: one set as it is installed on one machine, with the digest of every block.

Pure: values in, text out.  Only verified files are locked, with the digests found in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from provisioner.core.errors import LockDriftError, ManifestError
from provisioner.core.models import BLOCK_SIZE, Artifact, ArtifactSet, Lock, Manifest
from provisioner.manifest.entries import manifest_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One file that was just verified."""

    size: int  # bytes
    sha256: str
    blocks: tuple[str, ...]  # SHA-256 of every 16 MiB, in order


def locked_text(manifest: Manifest, wanted: ArtifactSet, verified: Mapping[str, Verified], lock: Lock) -> str:
    """Return the YAML text of a manifest of one set that names exactly the bytes on this machine.

    Parameters
    ----------
    manifest : Manifest
        The manifest to lock.
    wanted : ArtifactSet
        The set that is installed.
    verified : mapping of str to Verified
        By artifact id, the file that was found, every byte of it read.
    lock : Lock
        What is installed on the machine.

    Raises
    ------
    ManifestError
        A file was not verified, or is something the manifest does not accept.
    """
    artifacts = tuple(_locked(each, verified.get(each.id)) for each in wanted.artifacts)
    content = replace(wanted, artifacts=artifacts)
    return manifest_text(replace(manifest, default_set=wanted.id, sets=(content,), artifacts=artifacts, lock=lock))


def _locked(artifact: Artifact, file_digest: Verified | None) -> Artifact:
    """Return the artifact with the content found: its own, or the accepted variant of it."""
    variant = next((each for each in artifact.contents if file_digest and each.sha256 == file_digest.sha256), None)
    if file_digest is None or variant is None:
        raise ManifestError(
            f"{artifact.name} is not the file the manifest names, so it cannot be locked.",
            hint="Run `klein-setup verify`, fix what it finds, and lock again.",
        )
    if len(file_digest.blocks) != -(-file_digest.size // BLOCK_SIZE):
        raise ManifestError(
            f"{artifact.name} was verified without the digests of its blocks.",
            hint="Run `klein-setup verify` once, which records them, and lock again.",
        )
    is_own = file_digest.sha256 == artifact.sha256
    return replace(
        artifact,
        size=file_digest.size,
        sha256=file_digest.sha256,
        blocks=file_digest.blocks,
        accept=(),
        sources=artifact.sources if is_own else variant.sources or artifact.sources,
        fingerprint=artifact.fingerprint if is_own else None,
        provenance=artifact.provenance if is_own else None,
    )


def drift_from(
    lock: Lock,
    *,
    torch_backend: str | None,
    torch: str | None,
    comfyui_commit: str | None,
    torch_wheels: tuple[tuple[str, str], ...] = (),
) -> tuple[str, ...]:
    """Return a clause for every version known here that differs from the lock.

    >>> locked = Lock(manifest_sha256="0" * 64, locked_on="2026-11-23", torch="2.11.0", torch_backend="cu130")
    >>> drift_from(locked, torch_backend="cu130", torch="2.13.0", comfyui_commit=None)
    ('torch is 2.13.0 here and 2.11.0 in the lock',)
    """
    pairs = (
        ("torch", torch and torch.partition("+")[0], lock.torch),
        ("torch's build", torch_backend, lock.torch_backend),
        ("ComfyUI's commit", comfyui_commit, lock.comfyui_commit),
    )
    locked_wheels = dict(lock.torch_wheels)
    return (
        *(
            f"{what} is {here} here and {locked} in the lock"
            for what, here, locked in pairs
            if here and locked and here != locked
        ),
        *(
            f"{name} had the SHA-256 {sha256} here and has {locked_wheels[name]} in the lock"
            for name, sha256 in torch_wheels
            if locked_wheels.get(name, sha256) != sha256
        ),
    )


def refuse_drift(manifest: Manifest, differences: tuple[str, ...]) -> None:
    """Raise LockDriftError for differences, and ManifestError for a manifest that is not locked (``--locked``)."""
    if manifest.lock is None:
        raise ManifestError(
            f"{manifest.id} is not locked, and --locked was given.",
            hint="Name a file that `klein-setup manifest lock` wrote with --manifest FILE.",
        )
    if differences:
        raise LockDriftError(
            f"This machine differs from the lock of {manifest.lock.locked_on}: {'; '.join(differences)}.",
            hint="Restore it with `klein-setup repair`, or write a new lock with `klein-setup manifest lock`.",
            differences=list(differences),
        )
