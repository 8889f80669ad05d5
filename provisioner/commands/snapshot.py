"""``klein-setup snapshot list | show | export``, and the taking of snapshots by other commands."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner import __version__
from provisioner.commands.choose_environment import environment_folder
from provisioner.commands.inspect_comfyui import ComfyUIInstall, inspect_comfyui
from provisioner.commands.output_file import write_file
from provisioner.commands.run import Run, kind_and_path
from provisioner.core.errors import EXIT_OK, KleinError, UsageError
from provisioner.core.models import Check, ComfyTarget
from provisioner.disk.locations import data_folder
from provisioner.environment.package_list import requirements_text
from provisioner.manifest.shipped import read_manifest_text
from provisioner.report.outcome import Report
from provisioner.snapshot.setup_snapshot import (
    KeptComfyUI,
    KeptEnvironment,
    KeptFile,
    KeptImage,
    SetupSnapshot,
    snapshot_text,
)
from provisioner.snapshot.snapshot_shelf import SnapshotShelf, read_kept

if TYPE_CHECKING:
    from provisioner.smoke_test.results import SmokeTest

_DATE = (1980, 1, 1, 0, 0, 0)  # of the files in a zip: when it was is in the snapshot itself


def shelf() -> SnapshotShelf:
    """Return where this user's snapshots are."""
    return SnapshotShelf(data_folder() / "snapshots")


def run_snapshot_list() -> Report:
    """Return every snapshot, the oldest first; writes nothing."""
    return Report(command="snapshot list", status="ok", exit_status=EXIT_OK, snapshots=shelf().all())


def run_snapshot_show(name: str) -> Report:
    """Return one snapshot; raises UsageError or UnreadableError."""
    found = shelf()
    snapshot = found.named(name)
    return Report(
        command="snapshot show", status="ok", exit_status=EXIT_OK, snapshot=snapshot, snapshot_image=found.image(name)
    )


def run_snapshot_export(name: str, output: Path, *, say: Callable[[str], None]) -> Report:
    """Write a snapshot as a zip file for other programs and other people.

    In it are the snapshot, the manifest, the packages as a requirements file with the digest of each, and the image.

    Raises
    ------
    UsageError, UnreadableError
        There is no such snapshot, or it is damaged.
    NotWritableError
        The file cannot be written there.
    """
    found = shelf()
    snapshot = found.named(name)
    contents = {"snapshot.json": snapshot_text(snapshot).encode(), "manifest.yaml": read_kept(found.manifest(name))}
    if snapshot.environment is not None and snapshot.environment.packages is not None:
        contents["requirements.txt"] = requirements_text(snapshot.environment.packages.packages).encode()
    image = found.image(name)
    if image is not None:
        contents["image.jpg"] = read_kept(image)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, data in contents.items():
            archive.writestr(zipfile.ZipInfo(each, _DATE), data)
    path = write_file(buffer.getvalue(), output)
    say(f"{path} holds the snapshot {name}: {', '.join(contents)}.")
    return Report(command="snapshot export", status="ok", exit_status=EXIT_OK, snapshot=snapshot)


# --- taking them ---------------------------------------------------------------------------------


def keep_proven(
    run: Run,
    smoke: SmokeTest,
    comfyui: ComfyUIInstall | None,
    environment: Path | None,
    checks: Iterable[Check] | None = None,
) -> None:
    """Keep what an image was generated with; that it cannot be kept is said, and no error.

    Parameters
    ----------
    run : Run
        The run.
    smoke : SmokeTest
        The image, which was right; a server that ran already may have used anything, so it is no proof of this setup.
    comfyui : ComfyUIInstall or None
        ComfyUI as it is now.
    environment : Path or None
        The folder that was named for the environment.
    checks : iterable of Check, optional
        The files as this run saw them; else their receipts say.
    """
    if smoke.image is None or (smoke.timings.start_s is None and comfyui is not None):
        return
    image = KeptImage(
        sha256=smoke.image.sha256,
        seed=smoke.options.seed,
        width=smoke.image.width,
        height=smoke.image.height,
        device=smoke.device,
    )
    _keep(run, "the test image was right", comfyui, environment, checks, image, smoke.image_path)


def keep_before(run: Run, command: str, environment: Path | None, checks: Iterable[Check]) -> None:
    """Keep what is there before a command changes it, unless the last snapshot says the same."""
    if not isinstance(run.target, ComfyTarget) or not run.target.is_new:
        _keep(run, f"before {command}", inspect_comfyui(run), environment, checks, None, None)


def _keep(
    run: Run,
    reason: str,
    comfyui: ComfyUIInstall | None,
    environment: Path | None,
    checks: Iterable[Check] | None,
    image: KeptImage | None,
    image_path: Path | None,
) -> None:
    if not run.session.settings.remembers:
        return
    if len(run.parts) > 1:
        run.session.notice("No snapshot is kept of several manifests at once.")
        return
    try:
        snapshot = replace(_taken(run, comfyui, environment, checks), reason=reason, image=image)
        if snapshot.comfyui is None and snapshot.environment is None and not snapshot.files:
            return  # nothing is there yet
        places = shelf()
        last = places.newest(snapshot)
        if last is not None and last.is_same_setup(snapshot) and (image is None or last.is_proven):
            return
        text, _ = read_manifest_text(snapshot.manifest_argument)
        small = None if image_path is None else _small(image_path)
        places.keep(snapshot, manifest=text.encode("utf-8"), image=small)
        if last is not None and last.is_same_setup(snapshot):
            places.remove(last.name)  # the same, without an image
    except KleinError as error:
        run.session.notice(f"No snapshot was kept: {error}")


def _small(path: Path) -> bytes:
    from provisioner.smoke_test.image import small_copy

    return small_copy(read_kept(path))


def _taken(
    run: Run, comfyui: ComfyUIInstall | None, environment: Path | None, checks: Iterable[Check] | None
) -> SetupSnapshot:
    """Return what is there now."""
    now = time.gmtime()
    kind, path = kind_and_path(run.target)
    if checks is None:
        checks = run.plan_files("quick").checks
    tree = None if comfyui is None else comfyui.checkout.tree
    return SetupSnapshot(
        name=time.strftime("%Y%m%d-%H%M%S", now),
        taken_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
        reason="",
        klein_setup=__version__,
        kind=kind,
        target=path,
        manifest_id=run.manifest.id,
        manifest_sha256=run.manifest.sha256,
        manifest_argument=run.manifest_argument,
        set_id=run.wanted.id,
        comfyui=_comfyui(comfyui),
        node_packs=tuple(
            replace(each, why_not_moved=None, is_interrupted=False)  # these are of another moment
            for each in (() if tree is None else run.session.checkouts.node_packs(tree, {}))
        ),
        environment=_environment(run, environment_folder(run, environment)),
        files=tuple(
            KeptFile(label=each.destination.label, size=each.observed_size or 0, sha256=each.observed_sha256)
            for each in checks
            if each.status == "ok" and each.observed_sha256 is not None
        ),
    )


def _comfyui(comfyui: ComfyUIInstall | None) -> KeptComfyUI | None:
    if comfyui is None or comfyui.checkout.tree is None:
        return None
    found = comfyui.checkout
    is_ours = found.receipt is not None and found.receipt.commit == found.commit
    release = next((each for each in comfyui.table.releases if each.commit == found.commit), None)
    return KeptComfyUI(
        version=found.version,
        commit=found.commit,
        tree=found.receipt.tree if is_ours and found.receipt is not None else release.tree if release else None,
        branch=found.branch,
        has_local_changes=found.has_local_changes,
    )


def _environment(run: Run, where: Path) -> KeptEnvironment | None:
    """Return the environment, if it is one of ours; only its folder of packages is read."""
    environments = run.session.environments
    seen = environments.observe(where) if where.is_dir() else None
    if seen is None or seen.receipt is None or seen.python is None:
        return None
    packages, changes, _ = environments.compare(where, seen, reads_files=False) or (None, (), None)
    changed = {each.package for each in changes}
    if packages is not None:
        packages = replace(packages, packages=tuple(each for each in packages.packages if each.name not in changed))
    listed = set() if packages is None else {each.name for each in packages.packages}
    return KeptEnvironment(
        path=str(where),
        python_version=seen.python.version,
        torch_backend=seen.receipt.torch_backend,
        set=seen.receipt.set,
        packages=packages,
        others=tuple(
            sorted({(each.name, each.version) for each in seen.distributions if each.name not in {*listed, "pip"}})
        ),
    )


def manifest_of(snapshot: SetupSnapshot) -> str:
    """Return what names the manifest of a snapshot: as it was named then if that is still the same, else the kept one.

    Raises
    ------
    UnreadableError
        The kept one was changed, or is gone.
    """
    from provisioner.commands.run import load_manifest

    try:
        if load_manifest(snapshot.manifest_argument).sha256 == snapshot.manifest_sha256:
            return snapshot.manifest_argument
    except KleinError:
        pass
    path = shelf().manifest(snapshot.name)
    read_kept(path)
    if load_manifest(str(path)).sha256 != snapshot.manifest_sha256:
        raise UsageError(
            f"{path} is not the manifest that the snapshot {snapshot.name} was taken with.",
            hint="Choose another snapshot from `klein-setup snapshot list`.",
            path=str(path),
        )
    return str(path)
