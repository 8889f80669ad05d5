"""A bundle that is read: its parts, and what ``--from`` gives a run of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.bundle.image_layout import BLOBS, LARGEST_JSON, LAYOUT, Blob, Listed, Part, parse_index, parse_manifest
from provisioner.comfyui.release_models import ComfyRelease
from provisioner.comfyui.releases import version_key
from provisioner.commands.run import named_by_user
from provisioner.core.errors import EntryNotFoundError, NotTheFileError, UsageError
from provisioner.core.models import Manifest, OciRepository, Registry
from provisioner.core.program import KLEIN_SETUP
from provisioner.core.units import listing
from provisioner.disk.root import is_link
from provisioner.environment.bundled_wheels import BundledWheel
from provisioner.files import planner
from provisioner.network.loopback_files import LoopbackFiles, Served
from provisioner.plan.steps import GetComfyUI, InstallPackages, MakeEnvironment, RepairEnvironment, UpdateComfyUI
from provisioner.report.outcome import DEFAULT_MANIFEST

if TYPE_CHECKING:
    from provisioner.plan.steps import Plan
    from provisioner.torch.builds import TorchBuild

COMFYUI = "comfyui"
"""The folder in which ComfyUI's archive is served."""


def create_command(where: str | Path, action: str = "create") -> str:
    """Return the command that makes a bundle, or completes it."""
    return KLEIN_SETUP.command(f"bundle {action}", [str(where)])


def not_in_a_bundle(build: TorchBuild) -> str:
    """Say why no bundle has the wheels of a build that is completed on each computer."""
    return (
        f"No bundle can hold torch for {build.torch_backend}: its index has {listing(build.source_packages)} only as a "
        "source archive, which is built on each computer. The environment there is made with a network, after "
        "`--only files`."
    )


def archive_suffix(name: str) -> str:
    """Return how the name of ComfyUI's archive ends, which says how it is packed."""
    return ".zip" if name.lower().endswith(".zip") else ".tar.gz"


def read_parts(folder: Path) -> tuple[Part, ...]:
    """Return the parts of a bundle; raises UsageError where there is none, IntegrityError where it is malformed."""
    if not (folder / "index.json").is_file():
        raise UsageError(
            f"There is no bundle in {folder}: it has no index.json.",
            hint=f"Name the whole folder of a bundle, or make one where a network is: `{create_command(folder)}`.",
        )
    return parts_of(
        read_in(folder, "index.json"), lambda listed: read_in(folder, f"{BLOBS}/{listed.sha256}"), label=str(folder)
    )


def parts_of(index: bytes, read: Callable[[Listed], bytes], *, label: str) -> tuple[Part, ...]:
    """Return the parts that an index names; raises NotTheFileError where it is malformed, or names none."""
    found = (parse_manifest(each, read(each)) for each in parse_index(index))
    parts = tuple(each for each in found if each is not None)
    if not parts:
        raise NotTheFileError(
            f"{label} is an image layout without models, ComfyUI or wheels: its index names nothing of the kind.",
            hint="Name what `bundle create` of klein-setup made, as a whole.",
        )
    return parts


def read_in(folder: Path, relative: str) -> bytes:
    """Return a small file of a bundle; raises UsageError where it cannot be read, NotTheFileError for a link."""
    path = folder / relative
    try:
        if _has_link(folder, path) or not path.is_file():
            raise NotTheFileError(f"{path} is missing, or is no file.", hint="Copy the bundle again.", path=str(path))
        with path.open("rb") as stream:
            return stream.read(LARGEST_JSON + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="Check the stick or the share.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBundle:
    """A bundle that a run takes everything from."""

    label: str  # for a person, "the bundle /mnt/stick"
    named: str  # as it was named: "/mnt/stick", "oci://registry.lab/klein:v1"
    folder: Path  # below which its blobs lie, or are brought to
    registry: Registry  # where model files come from
    served_at: str  # where ComfyUI's archive is served to this run, "http://127.0.0.1:1234/comfyui"
    parts: tuple[Part, ...]
    bring: Callable[[Sequence[str]], None] = lambda digests: None  # has blobs lie in the folder, by their SHA-256
    is_here: bool = True  # on a disk of this computer
    lock: str | None = None  # what says which of its programs count, for a person; None: nothing does

    @property
    def wheels(self) -> tuple[BundledWheel, ...]:
        """The wheels of environments."""
        return tuple(
            BundledWheel(
                file_name=blob.title, sha256=blob.sha256, index="torch" if blob.kind == "torch" else "packages"
            )
            for part in self.parts
            if part.kind == "wheels"
            for blob in part.blobs
        )

    @property
    def comfyui(self) -> Blob | None:
        """ComfyUI's archive."""
        return next((blob for part in self.parts if part.kind == "comfyui" for blob in part.blobs), None)

    @property
    def comfyui_release(self) -> ComfyRelease | None:
        """The release that the archive is of; None where the bundle does not say it."""
        part = next((each for each in self.parts if each.kind == "comfyui"), None)
        if part is None or part.commit is None or part.tree is None or not version_key(part.version or ""):
            return None
        return ComfyRelease(version=part.version or "", commit=part.commit, tree=part.tree)

    @property
    def comfyui_source(self) -> str | None:
        """The address of ComfyUI's archive; None where it holds none."""
        blob = self.comfyui
        return None if blob is None else f"{self.served_at}/{blob.sha256}{archive_suffix(blob.title)}"

    def blob(self, sha256: str) -> Path:
        """Return the place of a blob, whether or not it is there."""
        return self.folder / BLOBS / sha256

    def held_to(self, manifest: Manifest) -> OpenBundle:
        """Return the bundle with those programs alone that a lock lists; as it is where the lock lists none."""
        listed = {sha256 for _, sha256 in (() if manifest.lock is None else manifest.lock.bundle_parts)}
        if not listed:
            return self
        kept = tuple(each for each in self.parts if each.kind == "models" or each.manifest_sha256 in listed)
        return replace(self, parts=kept, lock=manifest.id)

    def narrowed(self, plan: Plan) -> OpenBundle:
        """Return the bundle with the wheels of the torch build that a plan installs, where it has them by that name."""
        builds = {each.choice.build for each in plan.steps if isinstance(each, (MakeEnvironment, RepairEnvironment))}
        marks = [f"-{each.torch_backend}-" for each in builds]
        wanted = [each for each in self.parts if each.kind == "wheels" and any(mark in each.name for mark in marks)]
        if not wanted:
            return self
        return replace(self, parts=tuple(each for each in self.parts if each.kind != "wheels" or each in wanted))

    def prepare(self, plan: Plan) -> None:
        """Have ComfyUI's archive here where a plan unpacks it; raises as `bring_blobs`."""
        if self.comfyui is not None and any(isinstance(step, (GetComfyUI, UpdateComfyUI)) for step in plan.steps):
            self.bring([self.comfyui.sha256])

    def check(self, plan: Plan, manifest: str) -> None:
        """Raise EntryNotFoundError where a plan needs what the bundle does not hold; nothing was changed yet."""
        words = ["--set", plan.files.set.id]
        words += [] if manifest == DEFAULT_MANIFEST else ["--manifest", manifest]
        complete = KLEIN_SETUP.command("bundle add", [self.named, *words])
        planner.check_registry(plan.files, self.registry, complete=complete)
        builds = [step.choice.build for step in plan.steps if isinstance(step, (MakeEnvironment, RepairEnvironment))]
        if builds and builds[0].source_packages:
            raise EntryNotFoundError(
                f"{not_in_a_bundle(builds[0])} Nothing was changed.",
                hint="Add --only files; where a network is, `klein-setup install --only environment` makes the rest.",
                missing=list(builds[0].source_packages),
            )
        needs = (
            ("ComfyUI", self.comfyui is None, (GetComfyUI, UpdateComfyUI)),
            ("wheels", not self.wheels, (MakeEnvironment, RepairEnvironment, InstallPackages)),
        )
        for what, is_lacking, kinds in needs:
            if is_lacking and any(isinstance(step, kinds) for step in plan.steps):
                of_lock = "" if self.lock is None else f" that the lock of {self.lock} lists"
                raise EntryNotFoundError(
                    f"{self.label} holds no {what}{of_lock}, and the plan needs some: nothing was changed.",
                    hint=f"Make it anew without leaving that out, `{create_command(self.named)}`, or use --only files."
                    if self.lock is None
                    else "The bundle was changed after its lock was written: do not trust it. Copy it again, or name "
                    "the lock that was written with it.",
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
    blobs = {blob.sha256: blob_path(folder, blob) for part in parts for blob in part.blobs}
    with serving(blobs, parts) as address:
        yield OpenBundle(
            label=f"The bundle {folder}",
            named=str(folder),
            folder=folder,
            registry=Registry(
                repository=OciRepository(
                    base=address, name="", layout=address, is_named_by_user=True, known_as=f"the bundle {folder}"
                ),
                is_only=True,
                holds=frozenset(blobs),
            ),
            served_at=f"{address}/{COMFYUI}",
            parts=parts,
        )


@contextlib.contextmanager
def serving(blobs: Mapping[str, Path], parts: Sequence[Part]) -> Iterator[str]:
    """Serve blobs as an image layout on 127.0.0.1, and beside it ComfyUI's archive; yield the address."""
    files = LoopbackFiles(pages={"/oci-layout": LAYOUT})
    for sha256, path in blobs.items():
        files.files[f"/{BLOBS}/{sha256}"] = Served(path, etag=f"sha256:{sha256}")
    for blob in (blob for part in parts if part.kind == "comfyui" for blob in part.blobs):
        name = f"/{COMFYUI}/{blob.sha256}{archive_suffix(blob.title)}"
        files.files[name] = Served(blobs[blob.sha256], etag=f"sha256:{blob.sha256}")
    with files.serve() as address, _without_proxy():
        yield address


def _has_link(folder: Path, path: Path) -> bool:
    """Whether a path below a bundle is a link, or a folder on the way to it is one; raises OSError."""
    return any(is_link(each) for each in (path, *path.parents) if folder in each.parents)


def blob_path(folder: Path, blob: Blob) -> Path:
    """Return the place of a blob; raises NotTheFileError where it is missing, or a link."""
    path = folder / BLOBS / blob.sha256
    if _has_link(folder, path):
        raise NotTheFileError(
            f"{path} is a link, or in one; the files of a bundle are none.", hint="Copy the bundle again."
        )
    if not path.is_file():
        raise NotTheFileError(
            f"The bundle lacks {blob.title}: there is no {path}.",
            hint=f"Copy the bundle again, or complete it where a network is: `{create_command(folder)}`.",
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
