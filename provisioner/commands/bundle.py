"""``klein-setup bundle``: makes, adds to and verifies a bundle; and what ``--from`` reads one with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.bundle.image_layout import (
    BLOBS,
    LARGEST_JSON,
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
from provisioner.comfyui.install_plan import archive_address, is_web_address
from provisioner.commands.apply import apply_plan
from provisioner.commands.bundle_program import NAME as PROGRAM
from provisioner.commands.bundle_program import START, own_list, program_part, start_of
from provisioner.commands.choose_environment import EnvironmentOptions, look_at_environment
from provisioner.commands.inspect_comfyui import read_table
from provisioner.commands.lock import replaced_lock, sign_lock, verified_files
from provisioner.commands.look import InstallOptions, plan_run
from provisioner.commands.packages import all_requirements
from provisioner.commands.questions import Ask, AskToApply, agree_to_links, ask_about, ask_to_apply, decide_on_token
from provisioner.commands.run import Options, Run, named_by_user, wanted_manifest
from provisioner.commands.signed_locks import read_signing_key
from provisioner.commands.verify_files import run_verify
from provisioner.core.errors import (
    EXIT_FINDINGS,
    EXIT_OK,
    EntryNotFoundError,
    HashMismatchError,
    IntegrityError,
    KleinError,
    NotTheFileError,
    UsageError,
)
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    Check,
    ComfyTarget,
    Finding,
    Licence,
    Lock,
    Manifest,
    OciRepository,
    Registry,
    SetChoice,
)
from provisioner.core.units import count, human_bytes
from provisioner.disk.root import Root, is_link, scratch_folder
from provisioner.environment.bundled_wheels import BundledWheel
from provisioner.environment.wheel_files import sha256_of
from provisioner.files import planner
from provisioner.files.choose_set import choose_set
from provisioner.manifest.lock_file import locked_text
from provisioner.network.loopback_files import LoopbackFiles, Served
from provisioner.plan.steps import GetComfyUI, InstallPackages, MakeEnvironment, RepairEnvironment, UpdateComfyUI
from provisioner.report.outcome import Report, ReportStatus
from provisioner.signing.lock_statement import next_version

if TYPE_CHECKING:
    from provisioner.commands.session import Session
    from provisioner.plan.steps import Plan
    from provisioner.torch.builds import App

_FILES_ONLY = InstallOptions(parts=frozenset({"files"}))
_MOST_ARCHIVE_BYTES = 500_000_000  # of ComfyUI: releases have 15 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleUi:
    """How a bundle is talked about, and how it asks."""

    ask: Ask
    show_plan: Callable[[Plan], None]
    say: Callable[[str], None]
    ask_password: Callable[[str], str | None]
    ask_to_apply: AskToApply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOptions:
    """What the command line asks for of a bundle that is made."""

    folder: Path
    environment: EnvironmentOptions
    comfyui_source: str | None = None
    has_comfyui: bool = True
    has_wheels: bool = True
    adds: bool = False  # to a bundle that has to be there
    key: Path | None = None  # the private key to sign the lock with
    lock_version: int | None = None  # None: one more than the lock that is replaced
    expires: str | None = None  # of the lock, an ISO date


# --- making ------------------------------------------------------------------------------------------


def run_bundle_create(session: Session, options: Options, bundle: BundleOptions, ui: BundleUi) -> Report:
    """Bring the files of a set, and ComfyUI's archive, into a bundle; `index.json` names them once all are right.

    What is there, or elsewhere on this computer, is not fetched again.  What an interrupted run left is continued.

    Raises
    ------
    UsageError
        The folder holds something else, or there is no bundle to add to.
    KleinError
        As `install`; the bundle is as it was, and what arrived is kept.
    """
    folder = named_by_user(bundle.folder)
    key = None if bundle.key is None else read_signing_key(bundle.key, session.environ, ui.ask_password)
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
    run = _run_on_blobs(session, options, manifest, choice, folder, blob_artifacts(choice.set.artifacts))
    ui.say(f"{part.name}: {count(len(run.wanted.artifacts), 'file')}, {human_bytes(part.size)}, into {folder}.")

    is_known = any(each.name == part.name for each in listed)  # asked for again: because something may be wrong with it
    plan = plan_run(run, _FILES_ONLY, "full" if is_known else "claims")
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
    applied = apply_plan(run, _FILES_ONLY, plan, show_smoke=lambda smoke: None)
    if applied.errors:
        error = applied.errors[0]
        return run.report(
            "bundle create",
            "failed",
            error.exit_status,
            plan=replace(plan, steps=applied.files.steps),
            outcomes=tuple(applied.outcomes),
            errors=tuple(applied.errors),
        )
    if applied.files.steps:
        raise IntegrityError(
            f"Every step was done, but {count(len(applied.files.steps), 'file')} of the bundle still differ.",
            hint="Something else changes this folder; stop it and run the same command again.",
        )
    root = session.root(folder)
    parts = [part, *_programs(session, root, choice.set, bundle, listed, ui.say)]
    content = _locked(run, manifest, choice, lock)
    root.write_bytes(lock_path, content)
    ui.say(f"{lock_path} is the locked manifest.")
    sign_lock(key, lock_path, content, lock, ui.say)
    _write_layout(root, listed, parts)
    ui.say(f"{folder} holds {', '.join(each.name for each in parts)}.")
    start = next(filter(None, map(start_of, parts)), None)
    if start is not None:
        ui.say(f"There, `python3 {folder / START}` is klein-setup; the SHA-256 of this file is {start.sha256}.")
    return run.report("bundle create", "ok", EXIT_OK, plan=plan, outcomes=tuple(applied.outcomes))


def _listed_in(folder: Path, *, adds: bool) -> tuple[Listed, ...]:
    """Return what a bundle has so far; raises UsageError where the folder is no place for one."""
    if (folder / "index.json").exists():
        return parse_index(_read(folder, "index.json"))
    if adds:
        raise UsageError(f"There is no bundle in {folder}.", hint="Make it with `klein-setup bundle create`.")
    ours = {".klein-setup", "blobs", "oci-layout", START}
    others = sorted(each.name for each in folder.iterdir() if each.name not in ours) if folder.is_dir() else []
    others = [each for each in others if not each.endswith((".lock.yaml", ".lock.yaml.sig"))]
    if others:
        raise UsageError(
            f"{folder} holds something else: {others[0]}.", hint="Name a new or an empty folder.", path=str(folder)
        )
    return ()


def _run_on_blobs(
    session: Session,
    options: Options,
    manifest: Manifest,
    choice: SetChoice,
    folder: Path,
    artifacts: tuple[Artifact, ...],
) -> Run:
    """Return a run whose target is a bundle: each file of the set has the place of its blob."""
    wanted = replace(choice.set, target="comfyui", artifacts=artifacts)
    return Run(
        session=session,
        options=replace(options, extra_model_paths=()),
        manifest=replace(manifest, artifacts=artifacts, sets=(wanted,)),
        choice=replace(choice, set=wanted),
        target=ComfyTarget(given=folder, models=folder, folders=(), is_new=not folder.exists(), is_bundle=True),
        machine=session.known_machine,
    )


def _programs(
    session: Session,
    root: Root,
    wanted: ArtifactSet,
    bundle: BundleOptions,
    listed: Sequence[Listed],
    say: Callable[[str], None],
) -> list[Part]:
    """Bring ComfyUI's archive, and the wheels of the environment; return their parts of the bundle."""
    if wanted.target != "comfyui":
        if not bundle.has_wheels:
            return []
        return _wheel_parts(session, root, "diffusers", None, bundle.environment, listed, say)
    if not bundle.has_comfyui:
        return []
    with scratch_folder("klein-setup-bundle-") as scratch:
        held = _held_comfyui(session, root.folder, listed, scratch)
        parts = [_comfyui_part(session, root, bundle.comfyui_source, scratch, say) if held is None else held]
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
    say(f"Wheels: torch {build.sets[0].torch} ({build.torch_backend}), and what {app} needs.")
    collected = session.environments.fetch(
        build,
        all_requirements(app, tree),
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
    if collected.own:
        before = _part_named(root.folder, listed, PROGRAM)
        copy = partial(_copy_blob, root)
        parts.append(program_part(collected, before, write=partial(_write_blob, root), copy=copy))
    return parts


def _part_named(folder: Path, listed: Sequence[Listed], name: str) -> Part | None:
    """Return a part that the bundle has; None where it has none of that name, or a damaged one, which is made anew."""
    row = next((each for each in listed if each.name == name), None)
    if row is None:
        return None
    with contextlib.suppress(KleinError):
        return parse_manifest(row, _read(folder, f"{BLOBS}/{row.sha256}"))
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


def _held_comfyui(session: Session, folder: Path, listed: Sequence[Listed], scratch: Path) -> Part | None:
    """Return the part that holds the ComfyUI of now, verified by unpacking it below `scratch`; None where none does."""
    release = read_table().pinned
    part = _part_named(folder, listed, "comfyui")
    if part is None or part.kind != "comfyui" or part.version != release.version or len(part.blobs) != 1:
        return None
    with contextlib.suppress(KleinError):
        (blob,) = part.blobs
        if blob.size > _MOST_ARCHIVE_BYTES:
            return None
        archive = scratch / f"held{_suffix(blob.title)}"
        Root(scratch).copy_file(_blob_path(folder, blob), archive)
        if hashlib.sha256(archive.read_bytes()).hexdigest() != blob.sha256:
            return None
        session.checkouts.fetch(release, scratch / "ComfyUI", source=str(archive), progress=lambda line: None)
        return part
    return None


def _suffix(name: str) -> str:
    return ".zip" if name.lower().endswith(".zip") else ".tar.gz"


def _comfyui_part(session: Session, root: Root, source: str | None, scratch: Path, say: Callable[[str], None]) -> Part:
    """Bring ComfyUI's archive, verified by unpacking it below `scratch`; return its part of the bundle."""
    table = read_table()
    release = table.pinned
    address = archive_address(source or table.repository, release)
    if address is None:
        raise UsageError(
            f"{source} is a git repository, and a bundle holds an archive of ComfyUI.",
            hint="Name an archive (.zip, .tar.gz) with --comfyui-source, or leave ComfyUI out with --no-comfyui.",
        )
    suffix = _suffix(address)
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
    return Part(name="comfyui", kind="comfyui", blobs=(blob,), version=release.version)


def _locked(run: Run, manifest: Manifest, choice: SetChoice, lock: Lock) -> bytes:
    """Return the text of the locked manifest: with the digests of the blocks, from what was just verified."""
    found = verified_files(run, run.plan_files("claims").checks)
    by_content = {each.sha256: each for each in found.values()}  # the same bytes are one blob
    verified = {each.id: by_content[each.sha256] for each in choice.set.artifacts}
    return locked_text(manifest, choice.set, verified, lock).encode("utf-8")


def _write_layout(root: Root, listed: Sequence[Listed], parts: Sequence[Part]) -> None:
    """Write the manifests of the parts, and the index last: until then nothing of them counts."""
    named = {each.name: each for each in listed}
    for part in parts:
        manifest, config = manifest_files(part)
        for data in (config, manifest):
            _write_blob(root, hashlib.sha256(data).hexdigest(), data)
        named[part.name] = Listed(name=part.name, sha256=hashlib.sha256(manifest).hexdigest(), size=len(manifest))
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
    whole = ArtifactSet(id="bundle", title=f"All of {folder}", target="comfyui", artifacts=artifacts)
    manifest = Manifest(
        schema_version=1,
        id="bundle",
        title=whole.title,
        licence=Licence(name="of its parts", url="", is_commercial_use_allowed=True),
        default_set=whole.id,
        sets=(whole,),
        artifacts=artifacts,
        sha256=hashlib.sha256(_read(folder, "index.json")).hexdigest(),
    )
    run = _run_on_blobs(session, Options(), manifest, SetChoice(set=whole), folder, artifacts)
    plan = run_verify(run, is_quick=False).plan
    checks = () if plan is None else plan.checks
    found = [_complaint(check) for check in checks if check.status != "ok"]
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
            hint=f"Do not start it. Copy it again, or copy {_blob_path(folder, start)} in its place.",
        )
    ]


def _complaint(check: Check) -> Finding:
    """Return what is wrong with a blob, under the name that it has for a person."""
    what = {"missing": "is missing", "size-mismatch": "has another size", "unreadable": "cannot be read"}
    said = what.get(check.status, "has wrong bytes")
    return Finding(
        code=f"bundle-{check.status}",
        severity="problem",
        remedy="by-hand",
        path=check.destination.path,
        message=f"{check.artifact.id} {said}{f', SHA-256 {check.observed_sha256}' if check.observed_sha256 else ''}.",
        hint="Complete it with `klein-setup bundle create` where a network is, or copy this file again.",
    )


def read_parts(folder: Path) -> tuple[Part, ...]:
    """Return the parts of a bundle; raises UsageError where there is none, IntegrityError where it is malformed."""
    if not (folder / "index.json").is_file():
        raise UsageError(
            f"There is no bundle in {folder}: it has no index.json.",
            hint="Name the folder that `klein-setup bundle create` made, as a whole.",
        )
    parts = []
    for each in parse_index(_read(folder, "index.json")):
        part = parse_manifest(each, _read(folder, f"{BLOBS}/{each.sha256}"))
        if part is not None:
            parts.append(part)
    if not parts:
        raise NotTheFileError(
            f"{folder} is an image layout without models, ComfyUI or wheels: index.json names nothing of the kind.",
            hint="Name the folder that `klein-setup bundle create` made, as a whole.",
        )
    return tuple(parts)


def _not_listed(folder: Path, parts: Sequence[Part]) -> list[str]:
    known = {each.sha256 for each in artifacts_of(parts)}
    known |= {each.sha256 for each in parse_index(_read(folder, "index.json"))}
    return sorted(each.name for each in (folder / BLOBS).iterdir() if each.name not in known)


def _read(folder: Path, relative: str) -> bytes:
    path = folder / relative
    try:
        if _has_link(folder, path) or not path.is_file():
            raise NotTheFileError(f"{path} is missing, or is no file.", hint="Copy the bundle again.", path=str(path))
        with path.open("rb") as stream:
            return stream.read(LARGEST_JSON + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="Check the stick or the share.") from error


# --- installing from one -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBundle:
    """A bundle that is read through 127.0.0.1 while a run goes on."""

    folder: Path
    registry: Registry
    comfyui_source: str | None  # None: it holds none
    wheels: tuple[BundledWheel, ...]

    def blob(self, sha256: str) -> Path:
        """Return the place of a blob, whether or not it is there."""
        return self.folder / BLOBS / sha256

    def check(self, plan: Plan) -> None:
        """Raise EntryNotFoundError where a plan needs what the bundle does not hold; nothing was changed yet."""
        planner.check_registry(plan.files, self.registry)
        needs = (
            ("ComfyUI", self.comfyui_source is None, (GetComfyUI, UpdateComfyUI)),
            ("wheels", not self.wheels, (MakeEnvironment, RepairEnvironment, InstallPackages)),
        )
        for what, is_lacking, kinds in needs:
            if is_lacking and any(isinstance(step, kinds) for step in plan.steps):
                raise EntryNotFoundError(
                    f"The bundle {self.folder} holds no {what}, and the plan needs some: nothing was changed.",
                    hint="Make it with `klein-setup bundle create` and without leaving that out, or use --only files.",
                    missing=[what],
                )


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[OpenBundle]:
    """Serve a bundle to this run and the programs it starts, which contact nobody else for what it holds.

    Raises
    ------
    UsageError
        There is no bundle.
    NotTheFileError
        It is malformed.
    """
    folder = named_by_user(folder)
    parts = read_parts(folder)
    files = LoopbackFiles(pages={"/oci-layout": LAYOUT})
    comfyui = None
    for part in parts:
        for blob in part.blobs:
            served = Served(_blob_path(folder, blob), etag=f"sha256:{blob.sha256}")
            files.files[f"/{BLOBS}/{blob.sha256}"] = served
            if part.kind == "comfyui":
                comfyui = f"/comfyui/{blob.sha256}{_suffix(blob.title)}"
                files.files[comfyui] = served
    with files.serve() as address, _without_proxy():
        yield OpenBundle(
            folder=folder,
            wheels=tuple(
                BundledWheel(
                    file_name=blob.title, sha256=blob.sha256, index="torch" if blob.kind == "torch" else "packages"
                )
                for part in parts
                if part.kind == "wheels"
                for blob in part.blobs
            ),
            registry=Registry(
                repository=OciRepository(
                    base=address, name="", layout=address, is_named_by_user=True, known_as=f"the bundle {folder}"
                ),
                is_only=True,
                holds=frozenset(blob.sha256 for part in parts for blob in part.blobs),
            ),
            comfyui_source=None if comfyui is None else f"{address}{comfyui}",
        )


def _has_link(folder: Path, path: Path) -> bool:
    """Whether a path below a bundle is a link, or a folder on the way to it is one; raises OSError."""
    return any(is_link(each) for each in (path, *path.parents) if folder in each.parents)


def _blob_path(folder: Path, blob: Blob) -> Path:
    path = folder / BLOBS / blob.sha256
    if _has_link(folder, path):
        raise NotTheFileError(
            f"{path} is a link, or in one; the files of a bundle are none.", hint="Copy the bundle again."
        )
    if not path.is_file():
        raise NotTheFileError(
            f"The bundle lacks {blob.title}: there is no {path}.",
            hint="Copy the bundle again, or complete it with `klein-setup bundle create` where a network is.",
        )
    return path


@contextlib.contextmanager
def _without_proxy() -> Iterator[None]:
    """Have nobody ask a proxy for 127.0.0.1: this process, and those that get its variables."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    kept = next((value for value in before.values() if value), "")
    for name in before:
        os.environ[name] = ",".join(filter(None, (kept, "127.0.0.1")))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
