"""The values used throughout the program: manifest, machine, inventory, plan, outcomes.

Everything here is a frozen dataclass with tuples inside.  Nothing here reads a disk, a clock, an
environment variable or a network.  Sizes are bytes, times are seconds, paths are what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

BLOCK_SIZE = 16 * 1024 * 1024
"""Bytes of one part of a download and of one block digest in a receipt (16 MiB)."""

STATE_FOLDER = ".klein-setup"
"""Name of the folder, beside the files, that holds receipts, the lock and the backups."""

# --- the manifest ------------------------------------------------------------------------------

Role = Literal[
    "diffusion_model",
    "text_encoder",
    "vae",
    "checkpoint",
    "lora",
    "controlnet",
    "upscale_model",
    "clip_vision",
    "config",
    "tokenizer",
    "licence",
    "other",
]
ROLE_WORDS: Mapping[Role, str] = {
    "diffusion_model": "diffusion model",
    "text_encoder": "text encoder",
    "vae": "VAE",
    "checkpoint": "checkpoint",
    "lora": "LoRA",
    "controlnet": "ControlNet",
    "upscale_model": "upscaler",
    "clip_vision": "vision encoder",
    "config": "configuration",
    "tokenizer": "tokenizer",
    "licence": "licence",
    "other": "file",
}
"""What a person calls each kind of file."""

TargetKind = Literal["comfyui", "hf_cache"]
OperatingSystem = Literal["linux", "windows", "macos", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file in a repository on the Hub, at one commit."""

    repo_id: str  # "Comfy-Org/flux2-klein-4B"
    revision: str  # a commit, 40 lower-case hex digits; never a branch
    filename: str  # path inside the repository, "split_files/vae/flux2-vae.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlFile:
    """A file at an https address."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OciRepository:
    """A repository of an OCI registry, or an OCI image layout that a web server serves as it lies."""

    base: str  # scheme, host and port of the registry, "https://registry.lab:5000"
    name: str  # "models/klein"; empty: there can only be a layout
    layout: str | None = None  # where a layout may lie, "http://mirror.lab/bundle"; None: it is a registry
    is_named_by_user: bool = False  # with --registry, and by no manifest: it may lead into a private network
    known_as: str | None = None  # what a person calls it where its address says nothing, "the bundle /mnt/stick"

    def __str__(self) -> str:
        """Return it as a person writes it, ``registry.lab:5000/models/klein``."""
        return self.known_as or (self.layout or f"{self.base}/{self.name}").partition("://")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class OciFile:
    """A file in an OCI registry, where it is a blob under its SHA-256."""

    repository: OciRepository
    tag: str | None = None
    digest: str | None = None  # SHA-256 of the file, or of a manifest that lists it; None: the tag was not looked up

    def __str__(self) -> str:
        """Return the reference, ``oci://registry.lab:5000/models/klein:v1@sha256:...``."""
        if self.repository.known_as is not None:
            return self.repository.known_as
        tag, digest = (f":{self.tag}" if self.tag else ""), (f"@sha256:{self.digest}" if self.digest else "")
        return f"oci://{self.repository}{tag}{digest}"


Source = HubFile | UrlFile | OciFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Where ``--registry`` looks for every file by its SHA-256, before the sources of the manifest."""

    repository: OciRepository
    is_only: bool = False  # ``--registry-only``: those are not asked
    holds: frozenset[str] | None = None  # the SHA-256 of everything that it has; None: it has to be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Other content that is accepted for an artifact."""

    size: int  # bytes
    sha256: str  # 64 lower-case hex digits
    what: str  # one sentence
    sources: tuple[Source, ...] = ()  # where these bytes are, tried after the artifact's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookalike:
    """Content that is published under an artifact's name and is something else."""

    size: int  # bytes
    sha256: str  # 64 lower-case hex digits
    what: str  # one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What is known of a safetensors header; None where it was not read."""

    tensors: int | None = None  # number of tensors, without __metadata__
    header_bytes: int | None = None  # the 8-byte length's value: JSON plus padding
    payload_bytes: int | None = None  # bytes after the header
    schema_sha256: str | None = None  # over "name:(dtype, shape)" lines sorted by name; see manifests/README.md
    dtypes: tuple[tuple[str, int], ...] = ()  # ("F8_E4M3", 80): tensors of each dtype
    proof: str | None = None  # how the fingerprint was established


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a digest was read and how many independent publications agree on it."""

    read_from: str
    read_on: str  # ISO date
    agreeing: int  # distinct public projects that print the same SHA-256; 10 and more are lower bounds
    confidence: Literal["high", "medium", "low"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One file to have, and how to know it is the right one."""

    id: str
    role: Role
    name: str  # file name in a ComfyUI models folder
    folder: str | None  # ComfyUI models folder, "diffusion_models"; None: only in an HF cache
    size: int  # bytes
    sha256: str  # 64 lower-case hex digits
    sources: tuple[Source, ...]  # tried in order
    accept: tuple[Variant, ...] = ()
    lookalikes: tuple[Lookalike, ...] = ()
    fingerprint: Fingerprint | None = None
    provenance: Provenance | None = None
    licence: str | None = None  # SPDX id or the licence's own name
    is_gated: bool = False
    is_lfs: bool = True  # on the Hub: stored by LFS, so an HF cache names its blob by SHA-256
    git_oid: str | None = None  # git blob id, the blob's name in an HF cache when not LFS
    min_comfyui: str | None = None  # first ComfyUI version that loads it
    note: str | None = None
    blocks: tuple[str, ...] = ()  # SHA-256 of every 16 MiB block, in order; empty: not known
    known_as: str | None = None  # of a blob in a bundle: the name that the file has elsewhere

    @property
    def contents(self) -> tuple[Variant, ...]:
        """Every content that is accepted for this artifact, its own first."""
        return (Variant(size=self.size, sha256=self.sha256, what="the file the manifest names"), *self.accept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a machine must have for a set to be chosen by ``--set auto``; None asks for nothing."""

    min_vram_bytes: int | None = None
    min_compute_capability: tuple[int, int] | None = None
    platforms: tuple[OperatingSystem, ...] = ()  # empty: any


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Published figures to compare a run with; ``source`` says whose they are."""

    vram_bytes: int | None = None  # peak
    steps: int | None = None
    guidance: float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How ComfyUI's own nodes make an image with a set: one transformer, one text encoder, one VAE.

    Steps and guidance are those of the envelope.  Node classes are data here: no code knows a model.
    """

    clip_type: str  # ``type`` of CLIPLoader
    latent: str  # class of the node that makes the empty latent; takes width, height and batch_size
    sampler: str  # ``sampler_name`` of KSamplerSelect, "euler"
    scheduler: str | None = None  # ``scheduler`` of BasicScheduler, "simple"
    scheduler_node: str | None = None  # instead of it: a class that takes steps, width and height
    shift_node: str | None = None  # a class that takes model and shift, "ModelSamplingAuraFlow"
    shift: float | None = None  # never None with ``shift_node``
    embedded_guidance: float | None = None  # of FluxGuidance, for a model that was trained with it


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSet:
    """A choice of artifacts that work together in one kind of target."""

    id: str
    title: str
    target: TargetKind
    artifacts: tuple[Artifact, ...]
    conditions: Conditions = Conditions()
    envelope: Envelope = Envelope()
    recipe: Recipe | None = None  # how the test image is made without a workflow
    workflow: ManifestWorkflow | None = None  # makes the test image, also where there is a recipe
    template: str | None = None  # ComfyUI's own workflow template for it, "image_flux2_klein_text_to_image"
    note: str | None = None

    @property
    def min_comfyui(self) -> str | None:
        """The first ComfyUI version that loads every file of the set; None where none says."""
        known = [each.min_comfyui for each in self.artifacts if each.min_comfyui is not None]
        return max(known, key=lambda text: tuple(map(int, text.split("."))), default=None)

    @property
    def size(self) -> int:
        """Bytes of the whole set."""
        return sum(artifact.size for artifact in self.artifacts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """The licence the user accepts by using the files."""

    name: str
    url: str
    is_commercial_use_allowed: bool | None  # None: under ``commercial_use_condition``
    id: str | None = None  # what ``--accept-licence`` takes; never None where commercial use is not simply allowed
    commercial_use_condition: str | None = None  # a clause, "for companies below US$1M of yearly revenue"
    notice: str | None = None  # said before anything is fetched
    git_oid: str | None = None  # git blob id of the text at ``url``, where that is a file of a commit

    @property
    def commercial_use_words(self) -> str | None:
        """What it says about commercial use, in a sentence; None where that is simply allowed.

        >>> licence = Licence(
        ...     name="X", url="", is_commercial_use_allowed=None, commercial_use_condition="if it is paid"
        ... )
        >>> licence.commercial_use_words
        'X allows commercial use under a condition: if it is paid.'
        """
        if self.commercial_use_condition is not None:
            return f"{self.name} allows commercial use under a condition: {self.commercial_use_condition}."
        return None if self.is_commercial_use_allowed else f"{self.name} does not allow commercial use."


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What was installed on the machine where a manifest was locked; None: not known there."""

    manifest_sha256: str  # of the manifest that was locked
    locked_on: str  # ISO date
    torch_backend: str | None = None  # "cu130"
    torch: str | None = None  # "2.11.0"
    torch_wheels: tuple[tuple[str, str], ...] = ()  # file name and SHA-256 of torch, torchvision and torchaudio
    comfyui_commit: str | None = None  # 40 lower-case hex digits
    comfyui_version: str | None = None  # "0.33.0"
    version: int | None = None  # grows with every lock of the same name; from 1 up
    expires: str | None = None  # ISO date, the last day (UTC) on which it may be used
    bundle_parts: tuple[tuple[str, str], ...] = ()  # what of programs the bundle holds: a name, and its SHA-256


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedLock:
    """A signed lock that this user's runs have accepted; the newest of its name and key."""

    name: str  # of its file: "lab.yaml"
    key_id: str  # SHA-256 of the public key
    version: int
    sha256: str  # of the lock's bytes
    accepted_on: str  # ISO date, by this machine's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestWorkflow:
    """The workflow of ComfyUI that a set's test image is made with: a template, or a file beside the manifest."""

    name: str  # of the template, "image_flux2_klein_text_to_image", or of the file
    sha256: str | None = None  # of the file's bytes; None: it is a template


@dataclass(frozen=True, slots=True, kw_only=True)
class GitCommit:
    """A commit of a git repository, which is its own proof."""

    repository: str  # https address
    commit: str  # 40 hex digits


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeArchive:
    """An archive of custom nodes, as the Comfy registry has them."""

    url: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomNode:
    """A pack of custom nodes that a workflow needs: third-party code, which runs as whoever runs ComfyUI."""

    id: str  # the name of its folder below custom_nodes, by which a person agrees to it
    source: GitCommit | NodeArchive
    version: str | None = None
    read_from: str  # where the commit or the digest comes from
    read_on: str  # ISO date
    nodes: tuple[str, ...] = ()  # classes that the workflow uses

    @property
    def pin(self) -> str:
        """What proves it, as a person reads it: "commit 0123456789ab" or "SHA-256 0123456789ab"."""
        source = self.source
        return f"commit {source.commit[:12]}" if isinstance(source, GitCommit) else f"SHA-256 {source.sha256[:12]}"

    @property
    def address(self) -> str:
        """Where it comes from."""
        return self.source.repository if isinstance(self.source, GitCommit) else self.source.url


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is wanted: sets of artifacts with their licence."""

    schema_version: int
    id: str
    title: str
    licence: Licence
    default_set: str
    sets: tuple[ArtifactSet, ...]
    artifacts: tuple[Artifact, ...]
    sha256: str  # of the manifest's own bytes
    lock: Lock | None = None  # only what `manifest lock` wrote has one
    custom_nodes: tuple[CustomNode, ...] = ()
    is_stand_in: bool = False  # the weights are made up, for a test or a rehearsal: an image of theirs is noise
    other_licences: tuple[Licence, ...] = ()  # of a run for several manifests: those beside ``licence``

    @property
    def licences(self) -> tuple[Licence, ...]:
        """Every licence that the user accepts by using the files."""
        return (self.licence, *self.other_licences)

    def set_named(self, set_id: str) -> ArtifactSet | None:
        """Return the set of that id, or None."""
        return next((each for each in self.sets if each.id == set_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The user's own defaults for options."""

    file: Path  # where it is, or would be
    settings: Mapping[str, object]  # option without dashes: text, number or list of texts


# --- the machine -------------------------------------------------------------------------------

Vendor = Literal["nvidia", "amd", "apple", "intel", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One graphics processor.  None means unknown (see ``Machine.probes``), never zero."""

    vendor: Vendor
    name: str
    index: int
    uuid: str | None = None
    pci_bus_id: str | None = None
    pci_id: str | None = None  # vendor and device, "1002:744c"
    compute_capability: tuple[int, int] | None = None  # NVIDIA, (8, 9)
    architecture: str | None = None  # AMD, "gfx1100"
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_reserved_bytes: int | None = None  # held by the driver itself
    is_display_attached: bool | None = None
    is_mig_enabled: bool | None = None
    mig_devices: tuple[str, ...] = ()  # UUIDs of the MIG devices carved out of it
    mig_memory_bytes: tuple[int | None, ...] = ()  # the memory of each of those, in their order
    driver_model: str | None = None  # Windows: "WDDM", "TCC", "MCDM"
    driver_version: str | None = None  # AMD and Intel on Windows, as Windows numbers it, "32.0.31041.1004"
    shares_memory: bool = False  # part of a processor: it uses the computer's memory beside its own
    adrenalin: str | None = None  # AMD on Windows, the driver as AMD names it, "26.8.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of asking one source; a probe that failed says why."""

    source: str  # "nvml", "nvidia-smi", "/proc/driver/nvidia/version", "ram"
    is_ok: bool
    detail: str  # what was found, or why nothing was, in a sentence


_FAT = frozenset({"vfat", "msdos", "umsdos", "fat", "fat12", "fat16", "fat32"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """One file system that a plan uses."""

    path: Path  # a folder on it that exists
    device: int  # st_dev: equal for paths on the same file system
    total_bytes: int
    free_bytes: int  # for this user
    kind: str | None = None  # as the system calls it: "ext4", "vfat", "FAT32"; None: not known

    @property
    def largest_file_bytes(self) -> int | None:
        """How large a file can be; None where models are no matter.

        FAT writes the length in 32 bits: https://learn.microsoft.com/windows/win32/fileio/filesystem-functionality-comparison

        >>> FileSystem(path=Path("E:/"), device=1, total_bytes=9, free_bytes=9, kind="FAT32").largest_file_bytes
        4294967295
        """
        return 2**32 - 1 if self._kind in _FAT else None

    @property
    def has_links(self) -> bool:
        """Whether a file can have a second name, or another name lead to it."""
        return self._kind not in _FAT | {"exfat"}

    @property
    def _kind(self) -> str:
        return (self.kind or "").casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was detected, on this computer or read from a recording."""

    os: OperatingSystem
    os_release: str  # "6.1.0-18-amd64", "11", "14.5"
    is_wsl: bool
    architecture: str  # "x86_64", "aarch64", "arm64"
    libc: str | None  # "glibc 2.36", "musl"; None outside Linux
    python_version: str  # "3.11.7"; "3.14.1t": the free-threaded build
    distribution: str | None = None  # Linux, "ubuntu 24.04"
    gpus: tuple[Gpu, ...] = ()
    driver_version: str | None = None  # the NVIDIA driver, "550.144.03"
    cuda_driver_version: tuple[int, int] | None = None  # the newest CUDA that driver knows, (12, 4)
    memory_total_bytes: int | None = None  # RAM, at most what a container may use
    memory_available_bytes: int | None = None
    memory_physical_bytes: int | None = None  # RAM of the computer, where a container may use less
    swap_total_bytes: int | None = None  # swap, or Windows' page file; 0: there is none
    swap_free_bytes: int | None = None
    swap_grows: bool | None = None  # the system enlarges it as needed: macOS, and Windows unless its size is set
    locked_limit_bytes: int | None = None  # that a process may lock in RAM (``ulimit -l``); None: no limit, or unknown
    file_systems: tuple[FileSystem, ...] = ()
    probes: tuple[ProbeResult, ...] = ()
    recorded_from: str | None = None  # path of the recording this was read from


# --- where things go ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyFile:
    """A file in a ComfyUI models folder."""

    root: Path  # the models root; receipts live in root/.klein-setup
    relative: PurePosixPath  # "vae/flux2-vae.safetensors"
    known_as: str | None = field(default=None, compare=False)  # in a bundle, where its path is a digest

    @property
    def label(self) -> str:
        """What a person calls it: its path below the root."""
        return self.known_as or self.relative.as_posix()

    @property
    def path(self) -> Path:
        """What ComfyUI opens."""
        return self.root.joinpath(*self.relative.parts)

    @property
    def part_folder(self) -> Path:
        """The folder of the unfinished download: the file's own, so that the last step is a rename."""
        return self.path.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class HubBlob:
    """A file in an HF cache: a blob, and the snapshot path that points to it."""

    root: Path  # the repository's folder, <cache>/models--org--name
    revision: str  # commit
    filename: str  # path inside the repository
    is_lfs: bool
    is_shipped: bool = False  # wanted by a manifest that came with klein-setup: needs nobody's confirmation
    blob_id: str | None = field(default=None, compare=False)  # the Hub's name of the content; None: not known

    @property
    def label(self) -> str:
        """What a person calls it: its path inside the repository."""
        return self.filename

    @property
    def path(self) -> Path:
        """The snapshot path, which is what readers open."""
        return self.root.joinpath("snapshots", self.revision, *PurePosixPath(self.filename).parts)

    @property
    def relative(self) -> PurePosixPath:
        """The snapshot path, relative to the repository's folder."""
        return PurePosixPath("snapshots", self.revision, self.filename)

    @property
    def part_folder(self) -> Path:
        """The folder of the unfinished download: ``blobs``."""
        return self.root / "blobs"


Destination = ComfyFile | HubBlob


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRoots:
    """Where ComfyUI looks for one kind of model, in its own order, and where klein-setup writes."""

    folder: str  # "diffusion_models"
    read: tuple[Path, ...]  # folders, first wins
    write: Path
    write_root: Path  # the models root that ``write`` belongs to


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyTarget:
    """A ComfyUI models folder, with the folders that ComfyUI itself would read."""

    given: Path  # what the user named
    models: Path  # the main models root
    folders: tuple[FolderRoots, ...]
    is_new: bool = False  # nothing there yet
    is_bundle: bool = False  # a bundle: each file lies under its SHA-256, and no ComfyUI reads it
    config: Path | None = None  # the extra_model_paths.yaml that was read


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCacheTarget:
    """An HF cache: the folder that holds ``models--*``."""

    cache: Path
    is_shipped: bool = False  # it is for a manifest that came with klein-setup


Target = ComfyTarget | HubCacheTarget

# --- what is there -----------------------------------------------------------------------------

CheckStatus = Literal["ok", "missing", "size-mismatch", "hash-mismatch", "unreadable"]
Basis = Literal["receipt", "sha256", "blocks", "size", "none"]
TrustedBy = Literal["receipt", "manifest", "whole", "header"]
PatchWay = Literal["in-place", "continue", "beside"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Where a file differs from a content whose block digests are known; every other block of it is correct.

    Where no block digests are known they are the file's own.  A file that is too long: they were taken while its
    beginning was verified as the whole content ("whole").  A truncated file whose header asks for exactly the size of
    the content is assumed to be its beginning ("header"); only the digest of the finished file verifies that.
    """

    size: int  # bytes of the right content
    sha256: str  # of the right content
    block_size: int  # bytes
    digests: tuple[str, ...]  # SHA-256 of every block of the right content; empty where nobody knows it
    trusted_by: TrustedBy  # whose digests those are; "whole" and "header": the file's own, see above
    observed_size: int  # bytes of the file
    bad_blocks: tuple[int, ...] = ()  # ascending: other bytes, cut short, missing or unreadable
    held_blocks: tuple[int, ...] = ()  # of those, the ones an interrupted repair has fetched already
    unreadable: str | None = None  # where reading failed, in words
    is_shared: bool = False  # a link, or bytes with a second name, or not writable: never written in place

    @property
    def bad_bytes(self) -> int:
        """Bytes of the blocks that have to be replaced."""
        return self._bytes_of(self.bad_blocks)

    @property
    def held_bytes(self) -> int:
        """Bytes of those that are already here."""
        return self._bytes_of(self.held_blocks)

    @property
    def extra_bytes(self) -> int:
        """Bytes after the end of the right content, to be cut off."""
        return max(0, self.observed_size - self.size)

    def _bytes_of(self, blocks: tuple[int, ...]) -> int:
        return sum(min(self.block_size, self.size - index * self.block_size) for index in blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One artifact compared with what is at its destination."""

    artifact: Artifact
    destination: Destination
    status: CheckStatus
    basis: Basis  # what the status is based on: a receipt, every byte, or only the size
    observed_size: int | None = None
    observed_sha256: str | None = None
    identity: str | None = None  # what the file is instead, in words
    held_bytes: int = 0  # of an interrupted download that can be continued
    taken_bytes: int = 0  # of the disk, by a part file that a new download would grow into
    is_recorded: bool = False  # a receipt with the file's current stamp exists
    device: int | None = None  # st_dev of the destination's file system
    damage: Damage | None = None  # which blocks are wrong, where most of the file can be kept


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCopy:
    """A file elsewhere on this machine that may hold an artifact's bytes; not yet verified."""

    artifact_id: str
    path: Path
    origin: str  # "HF cache", "--look-in", "other models folder"
    device: int  # st_dev: the same as the destination's means no second copy is needed
    size: int
    sha256: str  # the content it would have to be


Remedy = Literal["repair", "update-comfyui", "install-environment", "install", "by-hand"]
"""Which command of ours fixes a finding; ``by-hand``: none does, and the hint says what a person can do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing the user should know, with a hint what to do about it."""

    code: str  # kebab-case
    severity: Literal["warning", "problem"]  # a problem makes ``verify`` exit with 1
    message: str
    remedy: Remedy  # whoever finds something says what fixes it
    path: Path | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What is in the target, and where the same bytes already are on this machine."""

    target: Target
    checks: tuple[Check, ...]
    copies: tuple[LocalCopy, ...] = ()
    file_systems: tuple[FileSystem, ...] = ()  # of every destination
    findings: tuple[Finding, ...] = ()


# --- the plan ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """What comes with a program or with packages, and the room it takes: an estimate from the shipped tables."""

    fetched_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFile:
    """Verify a copy found on this machine and put it in place: reflink, else hard link, else copy."""

    artifact: Artifact
    destination: Destination
    reason: str
    copy: LocalCopy
    replaces: str | None = None  # why the present file is replaced; it is kept in the backups
    kind: Literal["place-file"] = "place-file"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFile:
    """Verify a file in the wrong folder of the same tree and move it to its place: no byte is written."""

    artifact: Artifact
    destination: Destination
    reason: str
    copy: LocalCopy
    replaces: str | None = None  # why the present file is replaced; it is kept in the backups
    kind: Literal["move-file"] = "move-file"


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchFile:
    """Keep the correct blocks of a damaged file and fetch the others; the whole is verified before it is used.

    ``in-place``: the file stays where it is, and its bad blocks are overwritten once the whole is verified with the new
    ones.  ``continue``: a truncated file becomes a download that is continued.  ``beside``: the correct blocks are
    copied into a new file, because the damaged one has another name or cannot be read everywhere.
    """

    artifact: Artifact  # its size and sha256 are those of the content that is repaired
    destination: Destination
    reason: str
    damage: Damage
    way: PatchWay
    replaces: str | None = None  # why bytes of the present file are replaced; they are kept in the backups
    kind: Literal["patch-file"] = "patch-file"

    @property
    def held_bytes(self) -> int:
        """Bytes that need not be fetched: correct blocks, and those of an interrupted repair."""
        return self.damage.size - self.bytes_to_fetch

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that still have to come over the network."""
        return self.damage.bad_bytes - self.damage.held_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFile:
    """Fetch the artifact from its sources, verify it, put it in place."""

    artifact: Artifact
    destination: Destination
    reason: str
    held_bytes: int = 0  # already on disk from an interrupted run
    replaces: str | None = None  # why the present file is replaced; it is kept in the backups
    kind: Literal["fetch-file"] = "fetch-file"

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that still have to come over the network."""
        return self.artifact.size - self.held_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReceipt:
    """Write the receipt of a file that was verified and has none."""

    artifact: Artifact
    destination: Destination
    reason: str
    kind: Literal["record-receipt"] = "record-receipt"


FileStep = PlaceFile | MoveFile | PatchFile | FetchFile | RecordReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceNeed:
    """What a plan needs of one file system."""

    file_system: FileSystem
    needed_bytes: int  # beyond what is already there, margin included

    @property
    def is_enough(self) -> bool:
        """Whether the free space covers the need."""
        return self.needed_bytes <= self.file_system.free_bytes


LinkConsent = Literal["option", "remembered", "no"]
"""Who agreed that a link is followed: ``--follow-links``, an answer that was remembered, or nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderLink:
    """A link that leads out of the folder the user named, on the way to something that a plan changes."""

    path: Path  # the link
    real: Path  # where it leads, every link resolved
    consent: LinkConsent


@dataclass(frozen=True, slots=True, kw_only=True)
class SetChoice:
    """The set a run is about, and why."""

    set: ArtifactSet
    machine: str = ""  # the GPU in a few words; empty where the machine was not looked at
    because: str = ""  # a clause; empty where the set was named, or where there is no other


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesPlan:
    """The steps that the files of a set still need, each with its reason; no step means that all are correct."""

    manifest: Manifest
    set: ArtifactSet
    target: Target
    steps: tuple[FileStep, ...]
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...] = ()
    space: tuple[SpaceNeed, ...] = ()

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that have to come over the network."""
        return sum(step.bytes_to_fetch for step in self.steps if isinstance(step, (FetchFile, PatchFile)))

    @property
    def bytes_saved(self) -> int:
        """Bytes of the set that need not be fetched: in place, held, or elsewhere on this machine."""
        return self.set.size - self.bytes_to_fetch


# --- backups ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupEntry:
    """One file or folder in the backups, or the bytes that a repair replaced."""

    id: str  # "20261123T061404Z/vae/flux2-vae.safetensors", unique below its root
    root: Path  # the models root it came from
    was: str  # its path then, relative to the root; empty where it was not recorded
    path: Path  # where it is now
    time: str  # UTC, "2026-11-23T06:14:04Z"; empty where the folder's name says none
    reason: str
    size: int  # bytes it takes
    is_blocks: bool = False  # only the bytes that a repair in place replaced, not the whole file


# --- results -----------------------------------------------------------------------------------

OutcomeStatus = Literal["done", "skipped", "failed"]


class AnyStep(Protocol):
    """A step of any kind; `provisioner.plan.steps` has them all."""

    @property
    def kind(self) -> str:
        """What it does, in kebab-case: "fetch-file"."""

    @property
    def reason(self) -> str:
        """Why it is needed, as a clause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one step."""

    step: AnyStep
    status: OutcomeStatus
    detail: str  # a sentence: "fetched 4.1 GB in 38.2 s from huggingface.co", "hard-linked from ..."
    bytes_fetched: int = 0
    seconds: float = 0.0
    started_s: float | None = None  # on the monotonic clock; None where it was not begun
    error: Exception | None = None
