"""``klein-setup snapshot restore NAME``: commit, custom nodes, packages and files as they were, proven by an image.

It is a repair whose plan comes from the snapshot: shown, agreed to and applied as every other, and a kill in the middle
is gone on from by running it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.comfyui.release_models import ComfyRelease
from provisioner.commands.choose_environment import EnvironmentOptions, environment_folder
from provisioner.commands.image_options import SmokeTestOptions
from provisioner.commands.inspect_comfyui import ComfyUIOptions, inspect_comfyui
from provisioner.commands.install import RunUi, run_install
from provisioner.commands.look import InstallOptions
from provisioner.commands.parts import parse_parts
from provisioner.commands.run import Options, Run, named_path, open_run
from provisioner.commands.snapshot import manifest_of, shelf
from provisioner.core.errors import UsageError
from provisioner.snapshot.setup_snapshot import SetupSnapshot, packages_not_restored, packs_not_restored
from provisioner.torch.choose import TorchOptions

if TYPE_CHECKING:
    from provisioner.commands.session import Session
    from provisioner.environment.environments import Installer
    from provisioner.report.outcome import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """What the command line asks for."""

    name: str
    folder: Path | None = None  # where it is now, if not where it was
    verify_with: Path | None = None
    assume_yes: bool = False
    accepted_licences: frozenset[str] = frozenset()
    comfyui_source: str | None = None
    torch_index: str | None = None
    installer: Installer = "auto"
    smoke: SmokeTestOptions = field(default_factory=SmokeTestOptions)


def run_restore(session: Session, options: RestoreOptions, ui: RunUi, *, say: Callable[[str], None]) -> Report:
    """Bring a setup back to what a snapshot says, and generate an image with it.

    Raises
    ------
    UsageError
        There is no such snapshot, its folder is gone, or ComfyUI cannot be moved: files of it were changed, or it is
        no git checkout.  Nothing was changed.
    UnreadableError
        The snapshot is damaged.
    KleinError
        As `run_install`.
    """
    snapshot = shelf().named(options.name)
    run = _opened(session, snapshot, options)
    report = run_install(run, _install_options(run, snapshot, options), ui, "repair", depth="full")
    left = _not_restored(run, snapshot, report)
    for line in left:
        say(line)
    return replace(report, command="snapshot restore", snapshot=snapshot, not_restored=left)


def _opened(session: Session, snapshot: SetupSnapshot, options: RestoreOptions) -> Run:
    folder = (options.folder or Path(snapshot.target)).expanduser().absolute()
    option = "--comfyui" if snapshot.kind == "comfyui" else "--hf-cache"
    if options.folder is None and not folder.is_dir():
        raise UsageError(
            f"The snapshot {snapshot.name} is of {folder}, which is gone.",
            hint=f"If it was moved, name where it is now with {option} DIR; a new folder is filled anew.",
            path=str(folder),
        )
    is_signed = options.verify_with is not None  # then no other manifest is read than the one that is accepted
    manifest = snapshot.manifest_argument if is_signed else manifest_of(snapshot)
    named = Options(
        manifest=manifest,
        verify_with=options.verify_with,
        set_id=snapshot.set_id,
        comfyui=folder if snapshot.kind == "comfyui" else None,
        hf_cache=folder if snapshot.kind == "hf_cache" else None,
        assume_yes=options.assume_yes,
        accepted_licences=options.accepted_licences,
        is_of_snapshot=manifest != snapshot.manifest_argument,
    )
    run = open_run(session, named)
    if run.manifest.sha256 != snapshot.manifest_sha256:
        raise UsageError(
            f"The snapshot {snapshot.name} was taken with another manifest than {manifest} is now, and only a manifest "
            "that was signed is to be used.",
            hint="Go back to the lock of that time with `klein-setup manifest accept`, or leave --verify-with out.",
        )
    return run


def _install_options(run: Run, snapshot: SetupSnapshot, options: RestoreOptions) -> InstallOptions:
    """Return the options of the repair that brings a snapshot back."""
    kept, comfyui = snapshot.environment, snapshot.comfyui
    release = None
    if comfyui is not None and comfyui.commit is not None:
        release = ComfyRelease(version=comfyui.version or comfyui.commit[:12], commit=comfyui.commit, tree=comfyui.tree)
    backend = None if kept is None else kept.torch_backend
    tag = "none" if backend is None else "auto" if backend == "default" else backend
    environment = EnvironmentOptions(
        where=_environment_of(run, snapshot),
        installer=options.installer,
        accepts_cpu=backend == "cpu",
        torch=TorchOptions(tag=tag, index_base=options.torch_index),
    )
    return InstallOptions(
        parts=parse_parts(None, run.wanted),
        comfyui=ComfyUIOptions(source=options.comfyui_source, release=release),
        environment=environment,
        smoke=options.smoke,
        snapshot=snapshot,
    )


def _environment_of(run: Run, snapshot: SetupSnapshot) -> Path | None:
    """Return the folder of the environment; one that was in the snapshot's folder goes with that if it was moved."""
    if snapshot.environment is None:
        return None
    where, was = Path(snapshot.environment.path), Path(snapshot.target)
    return named_path(run.target) / where.relative_to(was) if was in where.parents else where


def _not_restored(run: Run, snapshot: SetupSnapshot, report: Report) -> tuple[str, ...]:
    """Return in sentences what is not as it was; what failed is among the report's errors, too."""
    found: list[str] = []
    comfyui = inspect_comfyui(run)
    if snapshot.comfyui is not None and comfyui is not None:
        commit = comfyui.checkout.commit
        if snapshot.comfyui.commit is not None and commit != snapshot.comfyui.commit:
            found.append(f"ComfyUI was at {snapshot.comfyui.commit[:12]} and is at {(commit or 'none')[:12]}.")
        if snapshot.comfyui.has_local_changes:
            found.append("Files of ComfyUI itself had been changed; the changes were not kept.")
    if comfyui is not None and comfyui.checkout.tree is not None:
        wanted = {each.name: each.commit for each in snapshot.node_packs if each.commit is not None}
        found += packs_not_restored(
            snapshot.node_packs, run.session.checkouts.node_packs(comfyui.checkout.tree, wanted)
        )
    if snapshot.environment is not None:
        seen = run.session.environments.observe(environment_folder(run, _environment_of(run, snapshot)))
        now = {each.name: each.version for each in seen.distributions}
        found += packages_not_restored(snapshot.environment.others, now.items())
        listed = snapshot.environment.packages
        found += [
            f"The package {each.name} was {each.version} and is {now.get(each.name, 'gone')}."
            for each in (() if listed is None else listed.packages)
            if now.get(each.name) != each.version
        ]
    elif snapshot.kind == "comfyui":
        found.append("The packages were not brought back: they are in a Python that klein-setup did not make.")
    right = {} if report.plan is None else {each.destination.label: each for each in report.plan.checks}
    for file in snapshot.files:
        check = right.get(file.label)
        if check is None or check.status != "ok":
            found.append(f"The file {file.label} (SHA-256 {file.sha256}) could not be brought back.")
    return tuple(found)
