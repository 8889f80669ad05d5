"""The steps of a run, every kind there is, and the Plan that holds them in the order in which they are told.

What waits for what is `order`'s; steps that need nothing of each other are applied side by side.

A step carries what was decided, so that applying it decides nothing.  A step that keeps something changes nothing; it
is in the plan because a person wants to read that the thing was found and stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from provisioner.core.exhaustive import assert_never
from provisioner.core.models import (
    ArtifactSet,
    Check,
    CustomNode,
    Download,
    FetchFile,
    FilesPlan,
    FileStep,
    Finding,
    FolderLink,
    Manifest,
    MoveFile,
    OciFile,
    PatchFile,
    PlaceFile,
    RecordReceipt,
    SetChoice,
    SpaceNeed,
    Target,
)

if TYPE_CHECKING:
    from provisioner.comfyui.release_models import ComfyRelease
    from provisioner.torch.builds import App, TorchChoice

FILE_STEPS = (PlaceFile, MoveFile, PatchFile, FetchFile, RecordReceipt)
"""The classes of `FileStep`, for ``isinstance``."""


# --- ComfyUI itself ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GetComfyUI:
    """Fetch a release of ComfyUI into a folder that has none."""

    folder: Path
    release: ComfyRelease
    source: str  # a repository or an archive
    reason: str
    download: Download
    kind: Literal["get-comfyui"] = "get-comfyui"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateComfyUI:
    """Move a git checkout of ComfyUI to a release; where it stood is recorded and can be restored."""

    folder: Path
    release: ComfyRelease
    source: str
    reason: str
    download: Download
    kind: Literal["update-comfyui"] = "update-comfyui"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepComfyUI:
    """Leave a ComfyUI that was found as it is."""

    folder: Path
    version: str | None  # None: could not be read
    reason: str
    kind: Literal["keep-comfyui"] = "keep-comfyui"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveNodePack:
    """Move one of ComfyUI's custom nodes, a git checkout, to a commit that it has."""

    folder: Path
    commit: str
    branch: str | None  # to be checked out where it is at that commit
    reason: str
    kind: Literal["move-node-pack"] = "move-node-pack"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallNodePack:
    """Install a pack of custom nodes that the manifest pins: third-party code, to which somebody agreed by its name."""

    folder: Path  # that it gets
    tree: Path  # of ComfyUI
    pack: CustomNode
    environment: Path  # where its requirements go, under the constraints
    reason: str
    kind: Literal["install-node-pack"] = "install-node-pack"


# --- the environment -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeEnvironment:
    """Make a virtual environment with a torch set in it."""

    where: Path
    choice: TorchChoice
    app: App
    reason: str
    download: Download
    python: Path | None = None  # given by the user
    python_versions: tuple[str, ...] = ()  # otherwise the first of these that is found
    replaces: str | None = None  # why the one that is there has to go
    is_foreign: bool = False  # the one that is there was not made by klein-setup: it is kept beside the new one
    kind: Literal["make-environment"] = "make-environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairEnvironment:
    """Install the torch set of an environment of ours again."""

    where: Path
    choice: TorchChoice
    app: App
    reason: str
    download: Download
    kind: Literal["repair-environment"] = "repair-environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepEnvironment:
    """Use an environment, or the Python of a ComfyUI, as it is."""

    where: Path
    reason: str
    choice: TorchChoice | None = None  # None: not made by klein-setup
    kind: Literal["keep-environment"] = "keep-environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPackages:
    """Install what ComfyUI or diffusers needs beside torch."""

    where: Path
    app: App
    tree: Path | None  # of ComfyUI, whose requirements.txt is read
    lines: tuple[str, ...] | None  # requirement lines that are not met; None: known once ComfyUI is there
    restores: tuple[str, ...] = ()  # packages that are no longer what was installed: the same files are installed again
    reason: str
    download: Download
    kind: Literal["install-packages"] = "install-packages"


# --- the network --------------------------------------------------------------------------------

HostWhen = Literal["always", "redirect", "if-needed"]
"""Contacted for sure; where another host sends it; or only when something goes another way than it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUse:
    """A host, and what for."""

    host: str  # "huggingface.co"; "*.hf.co" for every host below that name
    port: int
    what: str  # "model files"
    when: HostWhen = "always"
    proxy: str | None = None  # through which it is reached, without its login: "http://proxy.example:3128"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanHosts:
    """Every host of a plan."""

    uses: tuple[HostUse, ...]
    open_ended: tuple[str, ...]  # hosts that may send a download on to others, which only they know


# --- the test image, and taking away -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StartComfyUI:
    """Start the ComfyUI that generates the test image, without any model file; it is ended after the image."""

    folder: Path
    reason: str
    kind: Literal["start-comfyui"] = "start-comfyui"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateImage:
    """Generate the test image with what is installed."""

    app: App
    reason: str
    server: str | None = None  # a ComfyUI that runs already
    kind: Literal["generate-image"] = "generate-image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Remove something that klein-setup put there."""

    what: Literal["file", "environment", "comfyui", "custom-nodes"]
    path: Path
    reason: str
    size: int | None = None  # bytes; None where they were not counted
    kind: Literal["remove"] = "remove"


ComfyUIStep = GetComfyUI | UpdateComfyUI | KeepComfyUI
EnvironmentStep = MakeEnvironment | RepairEnvironment | KeepEnvironment
NODES_LEFT_OUT = "custom-nodes-not-installed"
"""Code of what is found about a pack of custom nodes that a manifest pins and a run leaves out."""

NodeStep = MoveNodePack | InstallNodePack
Step = ComfyUIStep | NodeStep | EnvironmentStep | InstallPackages | FileStep | StartComfyUI | GenerateImage | Remove


STEPS = (
    *FILE_STEPS,
    GetComfyUI,
    UpdateComfyUI,
    KeepComfyUI,
    MoveNodePack,
    InstallNodePack,
    MakeEnvironment,
    RepairEnvironment,
    KeepEnvironment,
    InstallPackages,
    StartComfyUI,
    GenerateImage,
    Remove,
)
"""The classes of `Step`, for ``isinstance``."""


def place_of(step: Step) -> Path | None:
    """Return the file or folder a step is about; None for the test image, whose file has no name yet."""
    match step:
        case PlaceFile() | MoveFile() | PatchFile() | FetchFile() | RecordReceipt():
            return step.destination.path
        case GetComfyUI() | UpdateComfyUI() | KeepComfyUI() | MoveNodePack() | InstallNodePack() | StartComfyUI():
            return step.folder
        case MakeEnvironment() | RepairEnvironment() | KeepEnvironment() | InstallPackages():
            return step.where
        case Remove():
            return step.path
        case GenerateImage():
            return None
        case _:
            assert_never(step)


def replaced_by(step: Step) -> str | None:
    """Return why what is there has to go; None where nothing is replaced."""
    return step.replaces if isinstance(step, (PlaceFile, MoveFile, PatchFile, FetchFile, MakeEnvironment)) else None


def download_of(step: Step) -> Download | None:
    """Return the estimate of what a step fetches besides model files; None for a step that fetches nothing such."""
    if isinstance(step, (GetComfyUI, UpdateComfyUI, MakeEnvironment, RepairEnvironment, InstallPackages)):
        return step.download
    return None


@dataclass(frozen=True, slots=True)
class ExpectedRate:
    """How fast the bytes will come, as far as anybody can know."""

    bytes_s: int
    is_limit: bool = False  # what --limit-rate says; else what the last download had


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a run will do, in the order in which it is told.  Nothing in `to_do` means: nothing to do."""

    files: FilesPlan  # its steps are in ``steps``, too, where the run is about files
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()  # what will not be done, and why, in sentences
    space: tuple[SpaceNeed, ...] = ()
    links: tuple[FolderLink, ...] = ()  # behind which a step writes, moves or deletes
    choice: SetChoice | None = None  # of the set; None where nothing was chosen
    rate: ExpectedRate | None = None  # None: nothing was measured yet
    pinned: tuple[OciFile, ...] = ()  # tags of OCI registries, with the digests that they name now

    @property
    def manifest(self) -> Manifest:
        """The manifest that says what is wanted."""
        return self.files.manifest

    @property
    def set(self) -> ArtifactSet:
        """The files that are wanted."""
        return self.files.set

    @property
    def target(self) -> Target:
        """Where they go."""
        return self.files.target

    @property
    def checks(self) -> tuple[Check, ...]:
        """The files as they were found."""
        return self.files.checks

    @property
    def is_about_files(self) -> bool:
        """Whether the run looked at the model files."""
        return bool(self.files.checks or self.files.steps)

    @property
    def file_steps(self) -> tuple[FileStep, ...]:
        """The steps that are about model files."""
        return tuple(step for step in self.steps if isinstance(step, FILE_STEPS))

    @property
    def bytes_to_remove(self) -> int:
        """Bytes of what is removed, where they were counted."""
        return sum(step.size or 0 for step in self.steps if isinstance(step, Remove))

    @property
    def to_do(self) -> tuple[Step, ...]:
        """The steps that do something: all but those that keep what was found."""
        return tuple(step for step in self.steps if not isinstance(step, (KeepComfyUI, KeepEnvironment)))

    @property
    def changes(self) -> tuple[Step, ...]:
        """The steps that change what is there, or add to it: all of `to_do` but records and the test image."""
        return tuple(step for step in self.to_do if not isinstance(step, (RecordReceipt, StartComfyUI, GenerateImage)))

    @property
    def estimated_bytes(self) -> int:
        """Bytes of ComfyUI, torch and other packages: the part of `bytes_to_fetch` that is an estimate."""
        return sum(each.fetched_bytes for each in map(download_of, self.steps) if each is not None)

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that have to come over the network."""
        files = sum(step.bytes_to_fetch for step in self.steps if isinstance(step, (FetchFile, PatchFile)))
        return files + self.estimated_bytes

    @property
    def bytes_saved(self) -> int:
        """Bytes of the set that need not be fetched: in place, held, or elsewhere on this machine."""
        return self.files.bytes_saved
