"""What a snapshot says of a setup: commit, custom nodes, packages, files; how it is written, and which ones stay.

Pure.  A snapshot says what to bring back.  It makes nothing right: commits, packages and files are verified when they
are brought back, as in every other run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import get_args

from provisioner.comfyui.checkout_models import NodePack, PackKind
from provisioner.core.json_reader import FieldError, Fields, parse_object
from provisioner.core.models import TargetKind
from provisioner.environment.package_list import PackageList, list_text, parse_list
from provisioner.torch.builds import TorchSet

SNAPSHOT_SCHEMA = 1

MOST_SNAPSHOTS = 20
MOST_BYTES = 32 * 1024 * 1024
"""Of all snapshots together; one has about 100 kB."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"\d{8}-\d{6}(-\d{1,3})?")
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,200}")
_PACK = re.compile(r"(?!\.{1,2}$)[^/\\:\0]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptComfyUI:
    """ComfyUI itself."""

    version: str | None
    commit: str | None
    tree: str | None  # git's id of every file of that commit, which verifies an archive
    branch: str | None
    has_local_changes: bool | None  # None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEnvironment:
    """An environment of ours: the torch set, the file of each package, and what else was installed in it."""

    path: str
    python_version: str  # "3.12.3"
    torch_backend: str
    set: TorchSet
    packages: PackageList | None  # those that were still what klein-setup had installed; None: nobody listed them
    others: tuple[tuple[str, str], ...] = ()  # name and version of what somebody else installed

    @property
    def python_minor(self) -> str:
        """The version of Python as wheels have it: "3.12"."""
        return ".".join(self.python_version.split(".")[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A model file that was right."""

    label: str  # "vae/flux2-vae.safetensors"
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptImage:
    """The test image; a small copy of it is kept beside the snapshot."""

    sha256: str  # of the whole image
    seed: int
    width: int  # pixels
    height: int
    device: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupSnapshot:
    """A setup at one moment."""

    name: str  # "20261127-031522", UTC
    taken_at: str  # ISO 8601, UTC
    reason: str  # a clause: "the test image was right", "before install"
    klein_setup: str  # version
    kind: TargetKind
    target: str  # the folder by which the user knows it
    manifest_id: str
    manifest_sha256: str
    manifest_argument: str  # what named the manifest: an id, or an absolute path
    set_id: str
    comfyui: KeptComfyUI | None = None
    node_packs: tuple[NodePack, ...] = ()
    environment: KeptEnvironment | None = None
    files: tuple[KeptFile, ...] = ()
    image: KeptImage | None = None  # None: it was not verified by an image

    @property
    def is_proven(self) -> bool:
        """Whether an image was generated with it."""
        return self.image is not None

    def is_same_setup(self, other: SetupSnapshot) -> bool:
        """Whether both say the same of the same setup, whenever and why they were taken."""
        return _content(self) == _content(other)

    def is_about(self, kind: TargetKind, target: str) -> bool:
        """Whether it is one of that folder."""
        return (self.kind, self.target) == (kind, target)


def _content(snapshot: SetupSnapshot) -> SetupSnapshot:
    return replace(snapshot, name="", taken_at="", reason="", klein_setup="", image=None)


# --- written and read ----------------------------------------------------------------------------


def snapshot_text(snapshot: SetupSnapshot) -> str:
    """Return a snapshot as the JSON that is kept; `parse_snapshot_text` reads it."""
    value = asdict(snapshot)
    if snapshot.environment is not None and snapshot.environment.packages is not None:
        value["environment"]["packages"] = json.loads(list_text(snapshot.environment.packages))
    return json.dumps({"schema_version": SNAPSHOT_SCHEMA, **value}, indent=1) + "\n"


def parse_snapshot_text(text: str | bytes, *, name: str) -> SetupSnapshot | str:
    """Return the snapshot a file of that name holds, or why it cannot be used.

    >>> parse_snapshot_text("{}", name="20261127-031522")
    'schema_version: must be 1; it is missing'
    """
    document = parse_object(text)
    if document is None:
        return "it is no JSON object"
    try:
        fields = Fields(document)
        fields.exactly("schema_version", SNAPSHOT_SCHEMA)
        if fields.text("name") != name:
            fields.complain("name", f"{name!r}, as the file is called", "")
        return SetupSnapshot(
            name=name,
            taken_at=fields.text("taken_at"),
            reason=fields.text("reason"),
            klein_setup=fields.text("klein_setup"),
            kind=fields.choice("kind", get_args(TargetKind), "comfyui"),
            target=fields.text("target"),
            manifest_id=fields.text("manifest_id"),
            manifest_sha256=_like(fields, "manifest_sha256", _SHA256),
            manifest_argument=fields.text("manifest_argument"),
            set_id=fields.text("set_id"),
            comfyui=_comfyui(fields.inner("comfyui")) if document.get("comfyui") is not None else None,
            node_packs=tuple(_pack(each) for each in fields.objects("node_packs")),
            environment=_environment(fields.inner("environment")) if document.get("environment") is not None else None,
            files=tuple(_file(each) for each in fields.objects("files")),
            image=_image(fields.inner("image")) if document.get("image") is not None else None,
        )
    except FieldError as error:
        return str(error)


def _comfyui(fields: Fields) -> KeptComfyUI:
    return KeptComfyUI(
        version=fields.optional_text("version"),
        commit=_like_or_none(fields, "commit", _COMMIT),
        tree=_like_or_none(fields, "tree", _COMMIT),
        branch=_like_or_none(fields, "branch", _BRANCH),
        has_local_changes=fields.optional_flag("has_local_changes"),
    )


def _pack(fields: Fields) -> NodePack:
    return NodePack(
        name=_like(fields, "name", _PACK),
        kind=fields.choice("kind", get_args(PackKind), "folder"),
        commit=_like_or_none(fields, "commit", _COMMIT),
        branch=_like_or_none(fields, "branch", _BRANCH),
        version=fields.optional_text("version"),
        url=fields.optional_text("url"),
        has_local_changes=fields.optional_flag("has_local_changes"),
    )


def _environment(fields: Fields) -> KeptEnvironment:
    kept = fields.values.get("packages")
    packages = None if kept is None else parse_list(json.dumps(kept))
    if kept is not None and packages is None:
        fields.complain("packages", "a list of packages", None)
    releases = fields.inner("set")
    return KeptEnvironment(
        path=fields.text("path"),
        python_version=fields.text("python_version"),
        torch_backend=fields.text("torch_backend"),
        set=TorchSet(
            torch=releases.text("torch"),
            torchvision=releases.text("torchvision"),
            torchaudio=releases.optional_text("torchaudio"),
        ),
        packages=packages,
        others=fields.pairs("others"),
    )


def _file(fields: Fields) -> KeptFile:
    return KeptFile(label=fields.text("label"), size=fields.count("size"), sha256=_like(fields, "sha256", _SHA256))


def _image(fields: Fields) -> KeptImage:
    return KeptImage(
        sha256=_like(fields, "sha256", _SHA256),
        seed=fields.count("seed"),
        width=fields.count("width"),
        height=fields.count("height"),
        device=fields.optional_text("device"),
    )


def _like(fields: Fields, name: str, form: re.Pattern[str]) -> str:
    value = fields.text(name)
    return value if form.fullmatch(value) else fields.complain(name, "of another form", value)


def _like_or_none(fields: Fields, name: str, form: re.Pattern[str]) -> str | None:
    return None if fields.optional_text(name) is None else _like(fields, name, form)


# --- which stay ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OnShelf:
    """A snapshot that is kept; without its content where that cannot be read."""

    name: str
    size: int  # bytes, with what lies beside it
    snapshot: SetupSnapshot | None
    problem: str | None = None  # why it cannot be used


def is_snapshot_name(name: str) -> bool:
    """Whether a name is one that a snapshot can have."""
    return _NAME.fullmatch(name) is not None


def superfluous(shelf: Sequence[OnShelf], *, most: int = MOST_SNAPSHOTS, most_bytes: int = MOST_BYTES) -> list[str]:
    """Return the names of those that go, so that at most so many, of so many bytes, are left: the oldest.

    Of each folder the last one that an image proved stays, and so does the newest of all.

    Parameters
    ----------
    shelf : sequence of OnShelf
        All of them, in any order.
    most, most_bytes : int
        The bounds.
    """
    ordered = sorted(shelf, key=lambda each: each.name)
    last = {(each.snapshot.kind, each.snapshot.target): each.name for each in _proven(ordered)}
    stay = {*last.values(), *(each.name for each in ordered[-1:])}
    number, size, gone = len(ordered), sum(each.size for each in ordered), []
    for each in ordered:
        if number <= most and size <= most_bytes:
            break
        if each.name not in stay:
            number, size = number - 1, size - each.size
            gone.append(each.name)
    return gone


def _proven(shelf: Iterable[OnShelf]) -> list[_Readable]:
    return [_Readable(each.name, each.snapshot) for each in shelf if each.snapshot and each.snapshot.is_proven]


@dataclass(frozen=True, slots=True)
class _Readable:
    name: str
    snapshot: SetupSnapshot


# --- what could not be brought back --------------------------------------------------------------


def packs_not_restored(then: Iterable[NodePack], now: Iterable[NodePack]) -> tuple[str, ...]:
    """Return in sentences how the custom nodes that are there differ from those of a snapshot."""
    there = {each.name: each for each in now}
    found = []
    for pack in then:
        present = there.pop(pack.name, None)
        was = pack.commit[:12] if pack.commit else pack.version or None
        if present is None:
            source = f" from {pack.url}" if pack.url else ""
            at = f" at {pack.commit or pack.version}" if was else ""
            found.append(
                f"The custom node {pack.name} is gone; klein-setup fetches none. Install it again{source}{at}."
            )
        elif pack.commit is not None and present.commit != pack.commit:
            why = present.why_not_moved or "it could not be moved"
            found.append(f"The custom node {pack.name} was at {was} and is not: {why}.")
        elif pack.commit is None and pack.version != present.version:
            found.append(
                f"The custom node {pack.name} was version {pack.version or 'unknown'} and is "
                f"{present.version or 'of an unknown version'}: without git it cannot be moved back."
            )
        elif pack.has_local_changes:
            found.append(f"Files of the custom node {pack.name} had been changed; the changes were not kept.")
    found += [f"The custom node {name} is newer than the snapshot; it stays." for name in there]
    return tuple(found)


def packages_not_restored(then: Iterable[tuple[str, str]], now: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return in sentences which packages that somebody else had installed are others now, or gone."""
    there = dict(now)
    return tuple(
        f"The package {name} {version} was not installed by klein-setup and is {there.get(name, 'gone')}: "
        "install it yourself if a custom node needs it."
        for name, version in then
        if there.get(name) != version
    )
