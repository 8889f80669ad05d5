"""``klein-setup manifest list | show | check``."""

from __future__ import annotations

from pathlib import Path

from provisioner.commands.run import load_manifest
from provisioner.core.errors import EXIT_OK, IntegrityError, ManifestError
from provisioner.core.models import Manifest
from provisioner.manifest.shipped import shipped_manifests
from provisioner.report.outcome import Report


def shipped() -> tuple[Manifest, ...]:
    """Return every manifest that comes with the program."""
    return tuple(load_manifest(name) for name in shipped_manifests())


def about_manifests(
    command: str, manifests: tuple[Manifest, ...], errors: tuple[ManifestError | IntegrityError, ...] = ()
) -> Report:
    """Return a report about manifests; one that is wrong makes it fail."""
    return Report(
        command=command,
        status="failed" if errors else "ok",
        exit_status=errors[0].exit_status if errors else EXIT_OK,
        manifest=manifests[0] if len(manifests) == 1 else None,
        errors=errors,
        manifests=manifests,
    )


def named_manifest(name: str, key: Path | None) -> Manifest:
    """Return a manifest by its id or its file; with a public key only a signed lock that may be used."""
    if key is None:
        return load_manifest(name)
    from provisioner.commands.signed_locks import check_signed

    return check_signed(name, key)


def check_manifests(
    files: tuple[str, ...], key: Path | None
) -> tuple[tuple[Manifest, ...], tuple[ManifestError | IntegrityError, ...]]:
    """Return the manifests that are right, and the errors of those that are not."""
    good: list[Manifest] = []
    bad: list[ManifestError | IntegrityError] = []
    for file in files or shipped_manifests():
        try:
            good.append(named_manifest(file, key))
        except (ManifestError, IntegrityError) as error:
            bad.append(error)
    return tuple(good), tuple(bad)
