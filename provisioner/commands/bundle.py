"""``klein-setup bundle``: makes, adds to and verifies a bundle; and what ``--from`` reads one with."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.bundle.image_layout import (
    BLOBS,
    LAYOUT,
    Blob,
    Listed,
    Part,
    artifacts_of,
    blob_artifacts,
    index_bytes,
    manifest_files,
    models_part,
    parse_index,
    parse_manifest,
)
from provisioner.comfyui.checkout_models import ComfyCheckout
from provisioner.comfyui.install_plan import archive_address, is_web_address
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.commands.apply import apply_plan
from provisioner.commands.blob_runs import FILES_ONLY, run_on_blobs, run_on_listed
from provisioner.commands.bundle_program import NAME as PROGRAM
from provisioner.commands.bundle_program import START, own_list, program_part, start_of
from provisioner.commands.choose_environment import EnvironmentOptions, look_at_environment
from provisioner.commands.choose_release import ReleaseChooser
from provisioner.commands.inspect_comfyui import read_table
from provisioner.commands.install import RunUi
from provisioner.commands.lock import replaced_lock, sign_lock, verified_files
from provisioner.commands.look import plan_run
from provisioner.commands.open_bundle import (
    archive_suffix,
    blob_path,
    create_command,
    not_in_a_bundle,
    read_in,
    read_parts,
)
from provisioner.commands.packages import all_requirements
from provisioner.commands.questions import agree_to_links, ask_about, ask_to_apply, decide_on_token
from provisioner.commands.run import Options, Run, named_by_user, wanted_manifest
from provisioner.commands.signed_locks import read_signing_key
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import (
    EXIT_FINDINGS,
    EXIT_OK,
    HashMismatchError,
    IntegrityError,
    KleinError,
    UsageError,
)
from provisioner.core.events import Notice
from provisioner.core.models import (
    ArtifactSet,
    Check,
    Finding,
    Lock,
    Machine,
    Manifest,
    SetChoice,
)
from provisioner.core.units import count, human_bytes
from provisioner.disk.file_digest import sha256_of
from provisioner.disk.root import Root, is_link, scratch_folder
from provisioner.files import planner
from provisioner.files.choose_set import choose_set
from provisioner.machine.readings import normal_architecture, operating_system_named
from provisioner.manifest.lock_file import locked_text
from provisioner.report.outcome import Report, ReportStatus
from provisioner.signing.lock_statement import next_version

if TYPE_CHECKING:
    from provisioner.commands.session import Session
    from provisioner.torch.builds import App

_PROGRAMS = frozenset({"comfyui", "wheels"})  # what a lock lists of a bundle, beside the model files
_MOST_ARCHIVE_BYTES = 500_000_000  # of ComfyUI: releases have 15 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOptions:
    """What the command line asks for of a bundle that is made."""

    folder: Path
    environment: EnvironmentOptions
    comfyui_source: str | None = None
    comfyui_version: str | None = None  # "0.46.0", "latest", "pinned"; None: what the models need
    has_comfyui: bool = True
    has_wheels: bool = True
    adds: bool = False  # to a bundle that has to be there
    key: Path | None = None  # the private key to sign the lock with
    lock_version: int | None = None  # None: one more than the lock that is replaced
    expires: str | None = None  # of the lock, an ISO date


# --- making ------------------------------------------------------------------------------------------


def run_bundle_create(
    session: Session,
    options: Options,
    bundle: BundleOptions,
    ui: RunUi,
    say: Callable[[str], None],
    ask_password: Callable[[str], str | None],
    before: tuple[Part, ...] = (),
) -> tuple[Report, tuple[Part, ...]]:
    """Bring the files of a set, and ComfyUI's archive, into a bundle; `index.json` names them once all are right.

    What is there, or elsewhere on this computer, is not fetched again.  What an interrupted run left is continued.

    Returns
    -------
    Report, tuple of Part
        The outcome, and `before` with the parts that were made.

    Raises
    ------
    UsageError
        The folder holds something else, or there is no bundle to add to.
    KleinError
        As `install`; the bundle is as it was, and what arrived is kept.
    """
    folder = named_by_user(bundle.folder)
    if bundle.has_wheels and bundle.has_comfyui:
        _check_system(session.machine)
    key = None if bundle.key is None else read_signing_key(bundle.key, session.environ, ask_password)
    listed = _listed_in(folder, adds=bundle.adds)
    manifest, _ = wanted_manifest(session, options)
    choice = choose_set(manifest, options.set_id, kind=None, look=lambda: session.machine)
    lock_path = folder / f"{manifest.id}-{choice.set.id}.lock.yaml"
    lock = Lock(
        manifest_sha256=manifest.sha256,
        locked_on=time.strftime("%Y-%m-%d", time.gmtime()),
        version=bundle.lock_version or next_version(replaced_lock(lock_path)),
        expires=bundle.expires,
    )
    part = models_part(manifest.id, choice.set)
    run = run_on_blobs(session, options, manifest, choice, folder, blob_artifacts(choice.set.artifacts))
    say(f"{part.name}: {count(len(run.wanted.artifacts), 'file')}, {human_bytes(part.size)}, into {folder}.")

    is_known = any(each.name == part.name for each in listed)  # asked for again: because something may be wrong with it
    plan = plan_run(run, FILES_ONLY, "full" if is_known else "claims")
    if plan.steps:
        ui.show_plan(plan)
    if session.is_offline:
        planner.check_offline(plan.files)
    planner.check_file_sizes(plan.files)
    planner.check_space(plan.space)
    ask_to_apply(run, plan, ui.ask_to_apply, is_repair=False)
    agree_to_links(run, plan.links, ui.ask)
    ask_about(run, plan, ui.ask)
    decide_on_token(run, plan, ui.ask)
    applied = apply_plan(run, FILES_ONLY, plan, show_smoke=ui.show_smoke)
    if applied.errors:
        error = applied.errors[0]
        report = run.report(
            "bundle create",
            "failed",
            error.exit_status,
            plan=replace(plan, steps=applied.files.steps),
            outcomes=tuple(applied.outcomes),
            errors=tuple(applied.errors),
        )
        return report, before
    if applied.files.steps:
        raise IntegrityError(
            f"Every step was done, but {count(len(applied.files.steps), 'file')} of the bundle still differ.",
            hint="Something else changes this folder; stop it and run the same command again.",
        )
    root = session.root(folder)
    parts = [part, *_programs(run, root, choice.set, bundle, listed, say)]
    made = {each.name: each for each in (*before, *parts)}
    programs = [each for each in made.values() if each.kind in _PROGRAMS]
    lock = replace(lock, bundle_parts=tuple((each.name, _digest_of(each)) for each in programs))
    content = _locked(run, manifest, choice, lock)
    root.write_bytes(lock_path, content)
    say(f"{lock_path} is the locked manifest.")
    sign_lock(key, lock_path, content, lock, say)
    _write_layout(root, listed, parts)
    say(f"{folder} holds {', '.join(each.name for each in parts)}.")
    start = next(filter(None, map(start_of, parts)), None)
    if start is not None:
        say(f"There, `python3 {folder / START}` is klein-setup; the SHA-256 of this file is {start.sha256}.")
    report = run.report("bundle create", "ok", EXIT_OK, plan=plan, outcomes=tuple(applied.outcomes))
    return report, tuple(made.values())


def _listed_in(folder: Path, *, adds: bool) -> tuple[Listed, ...]:
    """Return what a bundle has so far; raises UsageError where the folder is no place for one."""
    if (folder / "index.json").exists():
        return parse_index(read_in(folder, "index.json"))
    if adds:
        raise UsageError(f"There is no bundle in {folder}.", hint=f"Make it with `{create_command(folder)}`.")
    ours = {".klein-setup", "blobs", "oci-layout", START}
    others = sorted(each.name for each in folder.iterdir() if each.name not in ours) if folder.is_dir() else []
    others = [each for each in others if not each.endswith((".lock.yaml", ".lock.yaml.sig"))]
    if others:
        raise UsageError(
            f"{folder} holds something else: {others[0]}.", hint="Name a new or an empty folder.", path=str(folder)
        )
    return ()


def _programs(
    run: Run,
    root: Root,
    wanted: ArtifactSet,
    bundle: BundleOptions,
    listed: Sequence[Listed],
    say: Callable[[str], None],
) -> list[Part]:
    """Bring ComfyUI's archive, and the wheels of the environment; return their parts of the bundle."""
    session = run.session
    if wanted.target != "comfyui":
        if not bundle.has_wheels:
            return []
        return _wheel_parts(session, root, "diffusers", None, bundle.environment, listed, say)
    if not bundle.has_comfyui:
        return []
    with scratch_folder("klein-setup-bundle-") as scratch:
        source = bundle.comfyui_source or read_table().repository
        release = _release_of(run, bundle.comfyui_version, source, scratch)
        held = _held_comfyui(session, root.folder, listed, scratch, release)
        parts = [_comfyui_part(session, root, source, scratch, say, release) if held is None else held]
        if bundle.has_wheels:
            parts += _wheel_parts(session, root, "comfyui", scratch / "ComfyUI", bundle.environment, listed, say)
    return parts


def _wheel_parts(
    session: Session,
    root: Root,
    app: App,
    tree: Path | None,
    options: EnvironmentOptions,
    listed: Sequence[Listed],
    say: Callable[[str], None],
) -> list[Part]:
    """Bring the wheels that the environment would be installed from here, and klein-setup's own; return their parts."""
    with scratch_folder("klein-setup-bundle-") as scratch:
        _, choice, _, fitting = look_at_environment(session, scratch / "none", app, options)
    build = choice.build
    is_whole = not build.source_packages
    if is_whole:
        say(f"Wheels: torch {build.sets[0].torch} ({build.torch_backend}), and what {app} needs.")
    else:
        session.events(Notice(message=not_in_a_bundle(build), severity="warning"))
    collected = session.environments.fetch(
        build if is_whole else None,
        all_requirements(app, tree) if is_whole else (),
        python=options.python,
        python_versions=fitting,
        own=own_list(),
        progress=session.stages.teller,
    )
    for name, why in collected.left_out:
        session.notice(f"{name} is not in the bundle: {why}.")
    blobs = []
    for wheel, path in collected.files:
        blobs.append(Blob(sha256=wheel.sha256, size=path.stat().st_size, title=wheel.file_name, kind=wheel.index))
        _copy_blob(root, wheel.sha256, path)
    torch = next((wheel.file_name for wheel, _ in collected.files if wheel.name == "torch"), "none")
    tags = torch.removesuffix(".whl").split("-", 2)[-1]
    parts = [Part(name=f"wheels/{app}-{build.torch_backend}-{tags}", kind="wheels", blobs=tuple(blobs))]
    if not is_whole:
        parts = []
    if collected.own:
        before = _part_named(root.folder, listed, PROGRAM)
        copy = partial(_copy_blob, root)
        parts.append(program_part(collected, before, write=partial(_write_blob, root), copy=copy))
    return parts


def _check_system(machine: Machine) -> None:
    """Raise UsageError where the bundle is for another system than this computer's: pip finds no wheels for it."""
    system = operating_system_named(sys.platform)
    here = (system, normal_architecture(platform.machine(), system))
    if (machine.os, machine.architecture) != here:
        raise UsageError(
            f"The recorded machine is {machine.os} on {machine.architecture}, this computer is {' on '.join(here)}: "
            "wheels are found for this computer's system alone.",
            hint="Make the bundle on a computer with that system, or leave the wheels out with --no-wheels.",
        )


def _part_named(folder: Path, listed: Sequence[Listed], name: str) -> Part | None:
    """Return a part that the bundle has; None where it has none of that name, or a damaged one, which is made anew."""
    row = next((each for each in listed if each.name == name), None)
    if row is None:
        return None
    with contextlib.suppress(KleinError):
        return parse_manifest(row, read_in(folder, f"{BLOBS}/{row.sha256}"))
    return None


def _copy_blob(root: Root, sha256: str, path: Path) -> None:
    """Copy a file to the place of its blob, and read it there; what is there and right is kept."""
    place = root.folder / BLOBS / sha256
    if place.is_file() and not place.is_symlink() and sha256_of(place) == sha256:
        return
    arriving = place.with_name(f"{sha256}.arriving")
    root.remove(arriving)
    root.make_folder(place.parent)
    if not root.reflink(path, arriving):
        root.copy_file(path, arriving)
    found = sha256_of(arriving)
    if found != sha256:
        root.remove(arriving)
        raise HashMismatchError(
            f"The copy of {path.name} has the SHA-256 {found}, not {sha256}.",
            hint="The drive of the bundle, or the memory, gives back other bytes than it was given: check it.",
            expected=sha256,
            observed=found,
            path=str(arriving),
        )
    root.replace(arriving, place)


def _release_of(run: Run, wanted: str | None, source: str, scratch: Path) -> ComfyRelease:
    """Return the release of ComfyUI to hold, with its tree: the files of the archive are compared with it."""
    checkout = ComfyCheckout(given=scratch, kind="empty")
    chosen = ReleaseChooser(run=run, table=read_table(), checkout=checkout, source=source).choose(wanted)
    if chosen.why is not None:
        run.session.notice(f"ComfyUI {chosen.release.version} goes into the bundle; {chosen.why}.")
    return run.session.checkouts.with_tree(chosen.release, source, comes_as_archive=True)


def _held_comfyui(
    session: Session, folder: Path, listed: Sequence[Listed], scratch: Path, release: ComfyRelease
) -> Part | None:
    """Return the part that holds a release, verified by unpacking it below `scratch`; None where none does."""
    part = _part_named(folder, listed, "comfyui")
    if part is None or part.kind != "comfyui" or part.version != release.version or len(part.blobs) != 1:
        return None
    with contextlib.suppress(KleinError):
        (blob,) = part.blobs
        if blob.size > _MOST_ARCHIVE_BYTES:
            return None
        archive = scratch / f"held{archive_suffix(blob.title)}"
        Root(scratch).copy_file(blob_path(folder, blob), archive)
        if hashlib.sha256(archive.read_bytes()).hexdigest() != blob.sha256:
            return None
        session.checkouts.fetch(release, scratch / "ComfyUI", source=str(archive), progress=lambda line: None)
        return part
    return None


def _comfyui_part(
    session: Session, root: Root, source: str, scratch: Path, say: Callable[[str], None], release: ComfyRelease
) -> Part:
    """Bring ComfyUI's archive, verified by unpacking it below `scratch`; return its part of the bundle."""
    address = archive_address(source, release)
    if address is None:
        raise UsageError(
            f"{source} is a git repository, and a bundle holds an archive of ComfyUI.",
            hint="Name an archive (.zip, .tar.gz) with --comfyui-source, or leave ComfyUI out with --no-comfyui.",
        )
    suffix = archive_suffix(address)
    archive = scratch / f"ComfyUI{suffix}"
    if is_web_address(address):
        session.whole_files.fetch(
            address,
            archive,
            what="ComfyUI",
            hint="Name a complete and current mirror of ComfyUI with --comfyui-source.",
            most_bytes=_MOST_ARCHIVE_BYTES,
            progress=say,
        )
    else:
        Root(scratch).copy_file(Path(address), archive)
    session.checkouts.fetch(release, scratch / "ComfyUI", source=str(archive), progress=lambda line: None)
    data = archive.read_bytes()
    blob = Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data), title=f"ComfyUI-{release.version}{suffix}")
    _write_blob(root, blob.sha256, data)
    return Part(
        name="comfyui",
        kind="comfyui",
        blobs=(blob,),
        version=release.version,
        commit=release.commit,
        tree=release.tree,
    )


def _locked(run: Run, manifest: Manifest, choice: SetChoice, lock: Lock) -> bytes:
    """Return the text of the locked manifest: with the digests of the blocks, from what was just verified."""
    found = verified_files(run, run.plan_files("claims").checks)
    by_content = {each.sha256: each for each in found.values()}  # the same bytes are one blob
    verified = {each.id: by_content[each.sha256] for each in choice.set.artifacts}
    return locked_text(manifest, choice.set, verified, lock).encode("utf-8")


def _digest_of(part: Part) -> str:
    """Return the SHA-256 of a part's manifest, which names every file in it."""
    return hashlib.sha256(manifest_files(part)[0]).hexdigest()


def _write_layout(root: Root, listed: Sequence[Listed], parts: Sequence[Part]) -> None:
    """Write the manifests of the parts, and the index last: until then nothing of them counts."""
    named = {each.name: each for each in listed}
    for part in parts:
        manifest, config = manifest_files(part)
        for data in (config, manifest):
            _write_blob(root, hashlib.sha256(data).hexdigest(), data)
        named[part.name] = Listed(name=part.name, sha256=_digest_of(part), size=len(manifest))
        start = start_of(part)
        if start is not None:
            root.write_bytes(root.folder / START, (root.folder / BLOBS / start.sha256).read_bytes())
    root.write_bytes(root.folder / "oci-layout", LAYOUT)
    root.write_bytes(root.folder / "index.json", index_bytes(named.values()))


def _write_blob(root: Root, sha256: str, data: bytes) -> None:
    path = root.folder / BLOBS / sha256
    root.make_folder(path.parent)
    root.write_bytes(path, data)


# --- reading -----------------------------------------------------------------------------------------


def run_bundle_verify(session: Session, folder: Path, say: Callable[[str], None]) -> Report:
    """Read every byte of a bundle, on all cores, and say what is wrong, missing or more than it lists."""
    folder = named_by_user(folder)
    parts = read_parts(folder)
    artifacts = artifacts_of(parts)
    run = run_on_listed(session, folder, artifacts, hashlib.sha256(read_in(folder, "index.json")).hexdigest())
    plan = run_verify(run, is_quick=False).plan
    checks = () if plan is None else plan.checks
    found = [_complaint(folder, check) for check in checks if check.status != "ok"]
    more = _not_listed(folder, parts)
    if more:
        found.append(
            Finding(
                code="bundle-more",
                severity="warning",
                remedy="by-hand",
                message=f"{count(len(more), 'file')} in {folder / BLOBS} belong to nothing that index.json names:"
                f" {more[0]}.",
                hint="An interrupted `bundle create` left them, and goes on with them; nothing else reads them.",
            )
        )
    found += _wrong_start(folder, parts)
    is_whole = all(each.severity != "problem" for each in found)
    for part in parts:
        say(f"{part.name}: {count(len(part.blobs), 'file')}, {human_bytes(part.size)}")
    if is_whole:
        size = human_bytes(sum(each.size for each in artifacts))
        say(f"All {count(len(artifacts), 'file')} of {folder} are correct ({size}); every byte was read.")
    status: ReportStatus = "ok" if is_whole else "findings"
    return run.report("bundle verify", status, EXIT_OK if is_whole else EXIT_FINDINGS, findings=tuple(found))


def _wrong_start(folder: Path, parts: Sequence[Part]) -> list[Finding]:
    """Return what is wrong with the script that starts klein-setup: it is a copy of a blob."""
    start = next(filter(None, map(start_of, parts)), None)
    path = folder / START
    if start is None or (path.is_file() and not is_link(path) and sha256_of(path) == start.sha256):
        return []
    return [
        Finding(
            code="bundle-start",
            severity="problem",
            remedy="by-hand",
            path=path,
            message=f"{START} is missing, or is not the script that the bundle lists (SHA-256 {start.sha256}).",
            hint=f"Do not start it. Copy it again, or copy {blob_path(folder, start)} in its place.",
        )
    ]


def _complaint(folder: Path, check: Check) -> Finding:
    """Return what is wrong with a blob, under the name that it has for a person."""
    what = {"missing": "is missing", "size-mismatch": "has another size", "unreadable": "cannot be read"}
    said = what.get(check.status, "has wrong bytes")
    return Finding(
        code=f"bundle-{check.status}",
        severity="problem",
        remedy="by-hand",
        path=check.destination.path,
        message=f"{check.artifact.id} {said}{f', SHA-256 {check.observed_sha256}' if check.observed_sha256 else ''}.",
        hint=f"Complete it where a network is, for the same set: `{create_command(folder)}`; or copy this file again.",
    )


def _not_listed(folder: Path, parts: Sequence[Part]) -> list[str]:
    known = {each.sha256 for each in artifacts_of(parts)}
    known |= {each.sha256 for each in parse_index(read_in(folder, "index.json"))}
    return sorted(each.name for each in (folder / BLOBS).iterdir() if each.name not in known)
