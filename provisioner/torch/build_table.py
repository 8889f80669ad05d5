"""YAML text -> `TorchTable`: which builds of torch exist, which driver they need, which GPUs they have code for.

Knows the format of ``manifests/torch.yaml`` and checks that its parts fit together.  Reads no file, asks no index, and
chooses nothing: that is ``select.py``.  ``manifests/README.md`` explains every key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from provisioner.core.models import Download, OperatingSystem
from provisioner.manifest.strict_yaml import (
    BOOLEAN,
    DOWNLOAD,
    LINE,
    PROSE,
    Fields,
    Kind,
    Place,
    RefusedError,
    check_sources,
    list_of,
    matching,
    one_of,
    read_document,
    read_line,
    shown,
    whole_number,
)
from provisioner.manifest.table_rows import DATE, ID, SOURCE_IDS, report_repeated, rows_of, sources_of
from provisioner.manifest.table_source import TableSource
from provisioner.torch.builds import App
from provisioner.torch.card_table import GFX, SYSTEMS, AmdGpu, IntelGpu, read_amd_gpu, read_intel_gpu

SCHEMA_VERSION = 1
"""The version of the table's format this program reads."""

Version = tuple[int, ...]
"""A release, driver or CUDA version as integers, to be compared part by part."""

BuildKind = Literal["nvidia", "amd", "intel", "apple", "cpu"]
PlatformName = Literal["linux_x86_64", "linux_aarch64", "win_amd64", "macosx_arm64"]

_HINT = "Fix it; manifests/README.md explains every key of torch.yaml."

# What other tools call our keys, for the advice about an unknown key.
_SYNONYMS = {
    "archs": "sm",
    "compute_capabilities": "sm",
    "driver": "min_driver",
    "glibc": "min_glibc",
    "index": "tag",
    "name": "tag",
    "source": "sources",
    "vendor": "kind",
}

# --- the values -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AppNeeds:
    """What one application needs of torch."""

    id: App
    title: str
    min_torch: Version
    preferred_torch: Version  # older sets are offered only where no such set runs
    min_python: Version
    needs_torchaudio: bool
    packages: Download  # what it needs beside torch: an estimate
    wants_cuda: Version | None = None  # below it the application turns a feature off
    wants_cuda_from_sm: int | None = None  # on GPUs from this compute capability on
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release of torch, the releases that go with it, and the Pythons it has wheels for."""

    version: Version
    torch: str
    torchvision: str
    torchaudio: str
    python: tuple[str, ...]  # "3.12"; "3.13t": the free-threaded build
    torchaudio_python: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A system that has wheels."""

    name: PlatformName
    os: OperatingSystem
    architecture: str
    min_glibc: Version | None = None
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutWheels:
    """A system that people use and that has no wheels."""

    os: OperatingSystem
    architecture: str
    what: str  # a clause for the error message
    hint: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuGeneration:
    """What is known of the GPUs of one compute capability."""

    sm: int  # 86 for 8.6
    names: str
    min_driver: str | None = None  # first driver branch that supports it
    dropped_from: str | None = None  # first driver branch that no longer supports it
    is_jetson: bool = False
    shares_memory: bool = False  # with the processor
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlyOn:
    """Machine code that runs on these GPUs only, an exception to the rule."""

    code: int
    gpus: tuple[int, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotOn:
    """A GPU that does not run machine code that the rule says it would."""

    gpu: int
    code: tuple[int, ...]
    lifted_by_cuda: Version | None = None  # code built with this CUDA or a newer one runs
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """What is left, on one system, for a GPU that no build supports."""

    os: OperatingSystem
    hint: str  # sentences
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBroken:
    """A build that exists and is never installed."""

    tag: str  # local label, "rocm7.14.1"
    what: str  # a clause
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RadeonDriver:
    """The driver that AMD validated a build with; AMD names no oldest one."""

    adrenalin: str  # as AMD names it, "26.8.1"
    file: str  # as Windows numbers it, "32.0.31041.1004"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRange:
    """Versions from one up to but excluding another, without some exceptions."""

    lowest: Version
    before: Version
    without: tuple[Version, ...] = ()

    def __contains__(self, version: Version) -> bool:
        return self.lowest <= version < self.before and version not in self.without


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheels:
    """What the wheels of some releases contain, on some platforms."""

    platforms: tuple[PlatformName, ...]
    torch: VersionRange
    sm: tuple[int, ...] = ()
    ptx: tuple[int, ...] = ()
    gfx: tuple[str, ...] = ()
    min_os_release: Version | None = None
    torchaudio: str | None = None  # the release on this index where it is not the set's


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One release on one platform, and what its wheel contains."""

    release: Release
    wheels: Wheels


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """The SHA-256 of wheels, as a page of an index published them."""

    read_from: str  # address of the index
    read_on: str  # ISO date
    files: tuple[tuple[str, str], ...]  # file name and 64 lower-case hex digits


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRow:
    """One build: an index of wheels, and what a machine needs for it."""

    tag: str
    kind: BuildKind
    because: str  # why it comes before the next one, a clause
    cuda: Version | None = None
    min_driver: tuple[tuple[str, str], ...] = ()  # ("linux", "525.60.13"), ("windows", "528.33")
    native_driver: tuple[tuple[str, str], ...] = ()  # the driver of the toolkit it was built with
    min_sm: int | None = None  # older GPUs are not supported even where there is code for them
    has_torchaudio: bool = True
    is_default_index: bool = False
    index: str | None = None  # an index of its own, never used together with another; None: ``index_base`` and the tag
    device_extra: str | None = None  # torch and torchvision need the extra "device-gfx1100": its first word
    source_packages: tuple[str, ...] = ()  # packages of the set that its index has as source archives only
    names_digests: bool = True  # its index publishes the SHA-256 of its files
    python: tuple[str, ...] = ()  # the Pythons its wheels are for; empty: those of the set
    radeon_driver: RadeonDriver | None = None
    download: Download | None = None  # an estimate of its own; None: that of its kind
    validated_on: tuple[str, ...] = ()  # systems it was validated on, "windows 11"; empty: not known
    only_on_request: bool = False
    gpu_from_os_release: Version | None = None  # on older systems it runs on the CPU
    verified_torch: Version | None = None  # newest release seen on its index
    digests: Digests | None = None  # None: no page was read that named any
    note: str | None = None
    confidence: Literal["A", "B", "C"]
    sources: tuple[str, ...]
    wheels: tuple[Wheels, ...]
    offers: tuple[tuple[PlatformName, tuple[Offer, ...]], ...]  # per platform, newest release first

    def offers_for(self, platform: PlatformName) -> tuple[Offer, ...]:
        """Return the releases with wheels for a platform, newest first."""
        return next((offers for name, offers in self.offers if name == platform), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class KindDownload:
    """What a torch set for one kind of GPU brings with it: an estimate."""

    kind: BuildKind
    download: Download
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchTable:
    """Everything known about the builds of torch."""

    schema_version: int
    index_base: str  # https address, without a slash at the end
    apps: tuple[AppNeeds, ...]
    releases: tuple[Release, ...]  # newest first
    platforms: tuple[Platform, ...]
    without_wheels: tuple[WithoutWheels, ...]
    gpus: tuple[GpuGeneration, ...]
    only_on: dict[int, OnlyOn]  # by code
    not_on: dict[int, NotOn]  # by GPU
    amd_gpus: tuple[AmdGpu, ...]
    intel_gpus: tuple[IntelGpu, ...]
    alternatives: tuple[Alternatives, ...]
    known_broken: tuple[KnownBroken, ...]
    builds: tuple[BuildRow, ...]  # preferred first
    downloads: dict[BuildKind, KindDownload]
    sources: tuple[TableSource, ...]

    def app(self, app_id: App) -> AppNeeds:
        """Return what an application needs; the parser made sure that every application is listed."""
        return next(each for each in self.apps if each.id == app_id)

    def download_of(self, tag: str) -> Download:
        """Return the estimate for the torch set of a build; nothing for a build that the table does not have."""
        row = self.build(tag)
        if row is None:
            return Download(fetched_bytes=0, disk_bytes=0)
        return row.download or self.downloads[row.kind].download

    def build(self, tag: str) -> BuildRow | None:
        """Return the build of that tag, or None."""
        return next((each for each in self.builds if each.tag == tag), None)

    def builds_of(self, kind: BuildKind) -> tuple[BuildRow, ...]:
        """Return the builds for one kind of GPU, preferred first."""
        return tuple(each for each in self.builds if each.kind == kind)


# --- versions -------------------------------------------------------------------------------------


def version_of(text: str) -> Version:
    """Return a version of digits and dots as integers.

    >>> version_of("580.65.06") > version_of("580.9")
    True
    """
    return tuple(int(part) for part in text.split("."))


_VERSION_PATTERN = r"(0|[0-9]{1,5})(\.[0-9]{1,5}){0,3}"


def _version(place: Place) -> Version:
    return version_of(_VERSION_TEXT.read(place))


def _range(place: Place) -> VersionRange:
    text = read_line(place)
    match = re.fullmatch(
        rf">=(?P<lowest>{_VERSION_PATTERN}),<(?P<before>{_VERSION_PATTERN})(?P<without>(,!={_VERSION_PATTERN})*)", text
    )
    if match is None:
        raise RefusedError(f"is {shown(text)}")
    lowest, before = version_of(match["lowest"]), version_of(match["before"])
    if not lowest < before:
        raise RefusedError(f"is {shown(text)}, which contains no version")
    left_out = match["without"].split(",!=")[1:]
    return VersionRange(lowest=lowest, before=before, without=tuple(version_of(each) for each in left_out))


_VERSION_TEXT = matching("a quoted version like '2.14.1'", _VERSION_PATTERN)
_VERSION: Kind[Version] = Kind("a quoted version like '2.14.1'", _version, ())
_RANGE = Kind(
    "a quoted range like '>=2.9,<2.16' or '>=2.12,<2.14,!=2.12.0'",
    _range,
    VersionRange(lowest=(), before=()),
)
_DRIVER = matching("a quoted driver version like '525.60.13'", r"[0-9]{3,5}(\.[0-9]{1,5}){0,3}")
_PYTHON = matching("a quoted Python like '3.12', or '3.13t' for the free-threaded build", r"3\.[0-9]{1,2}t?")
_FILE_VERSION = matching("a quoted version like '32.0.31041.1004'", r"[0-9]{1,5}(\.[0-9]{1,5}){2,3}")
_INDEX_BASE = matching(
    "an https address without credentials and query", r"https://[a-z0-9.-]+(:[0-9]{1,5})?(/[\w.-]+)*"
)
_SM = whole_number("a compute capability as wheels spell it, 86 for 8.6, from 30 to 999", 30, 999)
_SCHEMA_VERSION = whole_number(str(SCHEMA_VERSION), SCHEMA_VERSION, SCHEMA_VERSION)

_APPS: tuple[App, ...] = get_args(App)
_SYSTEMS: tuple[OperatingSystem, ...] = ("linux", "windows", "macos")
_PLATFORM_NAMES: tuple[PlatformName, ...] = get_args(PlatformName)
_KINDS: tuple[BuildKind, ...] = get_args(BuildKind)
_CONFIDENCES: tuple[Literal["A", "B", "C"], ...] = ("A", "B", "C")

_SMS = list_of(_SM, "a list of compute capabilities like [75, 80, 86]")
_PYTHONS = list_of(_PYTHON, "a list of Pythons")


# --- the mappings ---------------------------------------------------------------------------------


def _app(place: Place) -> AppNeeds:
    with Fields(place, _SYNONYMS) as fields:
        value = AppNeeds(
            id=fields.required("id", one_of(_APPS)),
            title=fields.required("title", LINE),
            min_torch=fields.required("min_torch", _VERSION),
            preferred_torch=fields.required("preferred_torch", _VERSION),
            min_python=fields.required("min_python", _VERSION),
            needs_torchaudio=fields.required("needs_torchaudio", BOOLEAN),
            packages=fields.required("packages", DOWNLOAD),
            wants_cuda=fields.optional("wants_cuda", _VERSION, None),
            wants_cuda_from_sm=fields.optional("wants_cuda_from_sm", _SM, None),
            sources=fields.required("sources", SOURCE_IDS),
        )
    if (value.wants_cuda is None) != (value.wants_cuda_from_sm is None):
        place.complain("is given alone; expected 'wants_cuda' and 'wants_cuda_from_sm' together", "wants_cuda")
    return value


def _release(place: Place) -> Release:
    with Fields(place, _SYNONYMS) as fields:
        torch = fields.required("torch", _VERSION_TEXT)
        python = fields.required("python", _PYTHONS)
        return Release(
            version=version_of(torch) if torch else (),
            torch=torch,
            torchvision=fields.required("torchvision", _VERSION_TEXT),
            torchaudio=fields.required("torchaudio", _VERSION_TEXT),
            python=python,
            torchaudio_python=fields.optional("torchaudio_python", _PYTHONS, python),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _platform(place: Place) -> Platform:
    with Fields(place, _SYNONYMS) as fields:
        return Platform(
            name=fields.required("name", one_of(_PLATFORM_NAMES)),
            os=fields.required("os", one_of(_SYSTEMS)),
            architecture=fields.required("architecture", LINE),
            min_glibc=fields.optional("min_glibc", _VERSION, None),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _without_wheels(place: Place) -> WithoutWheels:
    with Fields(place, _SYNONYMS) as fields:
        return WithoutWheels(
            os=fields.required("os", one_of(_SYSTEMS)),
            architecture=fields.required("architecture", LINE),
            what=fields.required("what", LINE),
            hint=fields.required("hint", LINE),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _gpu(place: Place) -> GpuGeneration:
    with Fields(place, _SYNONYMS) as fields:
        return GpuGeneration(
            sm=fields.required("sm", _SM),
            names=fields.required("names", LINE),
            min_driver=fields.optional("min_driver", _DRIVER, None),
            dropped_from=fields.optional("dropped_from", _DRIVER, None),
            is_jetson=fields.optional("is_jetson", BOOLEAN, default=False),
            shares_memory=fields.optional("shares_memory", BOOLEAN, default=False),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _only_on(place: Place) -> OnlyOn:
    with Fields(place, _SYNONYMS) as fields:
        return OnlyOn(
            code=fields.required("code", _SM),
            gpus=fields.required("gpus", _SMS),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _not_on(place: Place) -> NotOn:
    with Fields(place, _SYNONYMS) as fields:
        return NotOn(
            gpu=fields.required("gpu", _SM),
            code=fields.required("code", _SMS),
            lifted_by_cuda=fields.optional("lifted_by_cuda", _VERSION, None),
            sources=fields.required("sources", SOURCE_IDS),
        )


_ONLY_ON = rows_of(_only_on, "a mapping of code, gpus and sources")
_NOT_ON = rows_of(_not_on, "a mapping of gpu, code and sources")


def _machine_code(place: Place) -> tuple[tuple[OnlyOn, ...], tuple[NotOn, ...]]:
    with Fields(place, _SYNONYMS) as fields:
        value = (fields.required("only_on", _ONLY_ON), fields.required("not_on", _NOT_ON))
    report_repeated(place, "only_on", (each.code for each in value[0]))
    report_repeated(place, "not_on", (each.gpu for each in value[1]))
    return value


def _alternatives(place: Place) -> Alternatives:
    with Fields(place, _SYNONYMS) as fields:
        return Alternatives(
            os=fields.required("os", one_of(_SYSTEMS)),
            hint=fields.required("hint", PROSE),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _known_broken(place: Place) -> KnownBroken:
    with Fields(place, _SYNONYMS) as fields:
        return KnownBroken(
            tag=fields.required("tag", ID),
            what=fields.required("what", LINE),
            sources=fields.required("sources", SOURCE_IDS),
        )


# --- builds ---------------------------------------------------------------------------------------


def _drivers(place: Place) -> tuple[tuple[str, str], ...]:
    with Fields(place, _SYNONYMS) as fields:
        value = tuple((name, fields.required(name, _DRIVER)) for name in ("linux", "windows") if fields.has(name))
    if not value:
        raise RefusedError("names neither 'linux' nor 'windows'")
    return value


_DRIVERS: Kind[tuple[tuple[str, str], ...]] = Kind("a mapping of linux and windows to driver versions", _drivers, ())


def _wheels(place: Place) -> Wheels:
    with Fields(place, _SYNONYMS) as fields:
        value = Wheels(
            platforms=fields.required("platforms", list_of(one_of(_PLATFORM_NAMES), "a list of platforms")),
            torch=fields.required("torch", _RANGE),
            sm=fields.optional("sm", _SMS, ()),
            ptx=fields.optional("ptx", _SMS, ()),
            gfx=fields.optional("gfx", list_of(GFX, "a list of AMD architectures"), ()),
            min_os_release=fields.optional("min_os_release", _VERSION, None),
            torchaudio=fields.optional("torchaudio", _VERSION_TEXT, None),
        )
    for key in ("platforms", "sm", "ptx", "gfx"):
        report_repeated(place, key, getattr(value, key))
    return value


def _radeon_driver(place: Place) -> RadeonDriver:
    with Fields(place, _SYNONYMS) as fields:
        return RadeonDriver(
            adrenalin=fields.required("adrenalin", _FILE_VERSION), file=fields.required("file", _FILE_VERSION)
        )


_OWN_DOWNLOAD: Kind[Download | None] = Kind(DOWNLOAD.expected, DOWNLOAD.read, None)
_RADEON_DRIVER: Kind[RadeonDriver | None] = Kind("a mapping of adrenalin and file", _radeon_driver, None)
_WHEELS = rows_of(_wheels, "a mapping of platforms and torch, with sm, ptx or gfx")


def _build(place: Place, releases: tuple[Release, ...]) -> BuildRow:
    with Fields(place, _SYNONYMS) as fields:
        wheels = fields.required("wheels", _WHEELS)
        value = BuildRow(
            tag=fields.required("tag", ID),
            kind=fields.required("kind", one_of(_KINDS)),
            because=fields.required("because", LINE),
            cuda=fields.optional("cuda", _VERSION, None),
            min_driver=fields.optional("min_driver", _DRIVERS, ()),
            native_driver=fields.optional("native_driver", _DRIVERS, ()),
            min_sm=fields.optional("min_sm", _SM, None),
            has_torchaudio=fields.optional("has_torchaudio", BOOLEAN, default=True),
            is_default_index=fields.optional("is_default_index", BOOLEAN, default=False),
            index=fields.optional("index", _INDEX_BASE, None),
            device_extra=fields.optional("device_extra", ID, None),
            source_packages=fields.optional("source_packages", list_of(ID, "a list of packages"), ()),
            names_digests=fields.optional("names_digests", BOOLEAN, default=True),
            python=fields.optional("python", _PYTHONS, ()),
            radeon_driver=fields.optional("radeon_driver", _RADEON_DRIVER, None),
            download=fields.optional("download", _OWN_DOWNLOAD, None),
            validated_on=fields.optional("validated_on", SYSTEMS, ()),
            only_on_request=fields.optional("only_on_request", BOOLEAN, default=False),
            gpu_from_os_release=fields.optional("gpu_from_os_release", _VERSION, None),
            verified_torch=fields.optional("verified_torch", _VERSION, None),
            digests=fields.optional("digests", _DIGESTS, None),
            note=fields.optional("note", LINE, None),
            confidence=fields.required("confidence", one_of(_CONFIDENCES)),
            sources=fields.required("sources", SOURCE_IDS),
            wheels=wheels,
            offers=tuple((name, _offers(wheels, name, releases)) for name in _PLATFORM_NAMES),
        )
    _check_kind(place, value)
    _check_wheels(place, value, releases)
    return value


def _digests(place: Place) -> Digests:
    with Fields(place, _SYNONYMS) as fields:
        files = fields.required("files", _FILES)
        value = Digests(
            read_from=fields.required("read_from", _INDEX_BASE),
            read_on=fields.required("read_on", DATE),
            files=tuple((name, sha256) for sha256, _, name in (each.partition("  ") for each in files)),
        )
    report_repeated(place, "files", (name for name, _ in value.files))
    return value


_FILES = list_of(
    matching(
        "64 hex digits, two spaces and the name of a wheel of the set, as sha256sum prints them",
        r"[0-9a-f]{64}  torch(vision|audio)?-[A-Za-z0-9.+_-]{1,200}\.whl",
    ),
    "a list of digests and file names",
)
_DIGESTS: Kind[Digests | None] = Kind("a mapping of read_from, read_on and files", _digests, None)


def _offers(wheels: tuple[Wheels, ...], platform: PlatformName, releases: tuple[Release, ...]) -> tuple[Offer, ...]:
    rows = [row for row in wheels if platform in row.platforms]
    return tuple(
        Offer(release=release, wheels=row) for release in releases for row in rows if release.version in row.torch
    )


def _check_kind(place: Place, build: BuildRow) -> None:
    """Report what a build of this kind lacks or must not have."""
    is_nvidia = build.kind == "nvidia"
    for key, is_there in (("cuda", build.cuda is not None), ("min_driver", bool(build.min_driver))):
        if is_nvidia and not is_there:
            place.complain("is missing; expected it in a build for NVIDIA GPUs", key)
        if not is_nvidia and is_there:
            place.complain(f"is given in a build for {build.kind}; expected it for NVIDIA only", key)
    if len(build.min_driver) == 1:
        place.complain(f"names {build.min_driver[0][0]} only; expected linux and windows", "min_driver")
    wanted = {"nvidia": "sm", "amd": "gfx"}.get(build.kind)
    for at, row in enumerate(build.wheels):
        held = {key for key in ("sm", "ptx", "gfx") if getattr(row, key)}
        if wanted is not None and wanted not in held:
            place.complain(f"has in entry {at} no '{wanted}'; expected the GPUs its code is for", "wheels")
        for key in sorted(held - ({"sm", "ptx"} if is_nvidia else {"gfx"} if build.kind == "amd" else set())):
            place.complain(f"has in entry {at} the key '{key}'; expected none in a build for {build.kind}", "wheels")


def _check_wheels(place: Place, build: BuildRow, releases: tuple[Release, ...]) -> None:
    """Report rows that describe one wheel twice, and rows that describe no wheel."""
    for platform, offers in build.offers:
        versions = [offer.release.torch for offer in offers]
        for version in sorted({each for each in versions if versions.count(each) > 1}):
            place.complain(f"describes torch {version} for {platform} twice; expected every wheel once", "wheels")
    for at, row in enumerate(build.wheels):
        if row.torch.before and releases and not any(release.version in row.torch for release in releases):
            place.complain(f"has in entry {at} a range that contains none of the releases in 'sets'", "wheels")


# --- the whole ------------------------------------------------------------------------------------


_MACHINE_CODE: Kind[tuple[tuple[OnlyOn, ...], tuple[NotOn, ...]]] = Kind(
    "a mapping of only_on and not_on", _machine_code, ((), ())
)


def _kind_download(place: Place) -> KindDownload:
    with Fields(place, _SYNONYMS) as fields:
        return KindDownload(
            kind=fields.required("kind", one_of(_KINDS)),
            download=fields.required("download", DOWNLOAD),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _table(place: Place) -> TorchTable:
    with Fields(place, _SYNONYMS) as fields:
        releases = fields.required("sets", rows_of(_release, "a mapping of torch, torchvision, torchaudio and python"))
        releases = tuple(sorted(releases, key=lambda each: each.version, reverse=True))
        only_on, not_on = fields.required("machine_code", _MACHINE_CODE)
        downloads = fields.required("downloads", rows_of(_kind_download, "a mapping of kind and download"))
        value = TorchTable(
            schema_version=fields.required("schema_version", _SCHEMA_VERSION),
            index_base=fields.required("index_base", _INDEX_BASE),
            apps=fields.required("apps", rows_of(_app, "a mapping of id, title and what the application needs")),
            releases=releases,
            platforms=fields.required("platforms", rows_of(_platform, "a mapping of name, os and architecture")),
            without_wheels=fields.required(
                "without_wheels", rows_of(_without_wheels, "a mapping of os, architecture, what")
            ),
            gpus=fields.required("gpus", rows_of(_gpu, "a mapping of sm and names")),
            only_on={each.code: each for each in only_on},
            not_on={each.gpu: each for each in not_on},
            amd_gpus=fields.optional("amd_gpus", rows_of(read_amd_gpu, "a mapping of gfx, names and pci_ids"), ()),
            intel_gpus=fields.required("intel_gpus", rows_of(read_intel_gpu, "a mapping of names and pci_ids")),
            alternatives=fields.optional("alternatives", rows_of(_alternatives, "a mapping of os and hint"), ()),
            known_broken=fields.optional("known_broken", rows_of(_known_broken, "a mapping of tag and what"), ()),
            builds=fields.required(
                "builds", rows_of(partial(_build, releases=releases), "a mapping of tag, kind, because and wheels")
            ),
            downloads={each.kind: each for each in downloads},
            sources=fields.required("sources", sources_of(_SYNONYMS)),
        )
    _check_uniqueness(place, value)
    _check_completeness(place, value)
    _check_sources(place, value)
    return value


def _check_uniqueness(place: Place, table: TorchTable) -> None:
    report_repeated(place, "apps", (each.id for each in table.apps))
    report_repeated(place, "sets", (each.version for each in table.releases if each.version))
    report_repeated(place, "platforms", (each.name for each in table.platforms))
    report_repeated(place, "gpus", (each.sm for each in table.gpus))
    report_repeated(place, "amd_gpus", (device for each in table.amd_gpus for device in each.pci_ids))
    report_repeated(place, "intel_gpus", (device for each in table.intel_gpus for device in each.pci_ids))
    report_repeated(place, "alternatives", (each.os for each in table.alternatives))
    report_repeated(place, "known_broken", (each.tag for each in table.known_broken))
    report_repeated(place, "builds", (each.tag for each in table.builds if each.tag))
    report_repeated(place, "sources", (each.id for each in table.sources if each.id))


def _check_completeness(place: Place, table: TorchTable) -> None:
    """Report what the choice needs and the table lacks: an application, a platform, a CPU build."""
    for app in _APPS:
        if table.apps and app not in [each.id for each in table.apps]:
            place.complain(f"has no entry for {app}; expected {' and '.join(_APPS)}", "apps")
    known = {each.name for each in table.platforms}
    used = {name for build in table.builds for row in build.wheels for name in row.platforms}
    for name in sorted(used - known) if known else ():
        place.complain(f"has no entry for {name}, which 'builds' uses", "platforms")
    for kind in _KINDS:
        if table.downloads and kind not in table.downloads:
            place.complain(f"has no entry for {kind}; expected one for each kind of build", "downloads")
    if table.builds and not any(build.kind == "cpu" for build in table.builds):
        place.complain("has no build of the kind cpu; expected one", "builds")


def _check_sources(place: Place, table: TorchTable) -> None:
    """Report facts without an existing source, and sources that nothing names."""
    known = {each.id for each in table.sources}
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    rows += [("apps", each.id, each.sources) for each in table.apps]
    rows += [("sets", each.torch, each.sources) for each in table.releases]
    rows += [("platforms", each.name, each.sources) for each in table.platforms]
    rows += [("without_wheels", f"{each.os} {each.architecture}", each.sources) for each in table.without_wheels]
    rows += [("gpus", str(each.sm), each.sources) for each in table.gpus]
    rows += [("machine_code", f"only_on {each.code}", each.sources) for each in table.only_on.values()]
    rows += [("machine_code", f"not_on {each.gpu}", each.sources) for each in table.not_on.values()]
    rows += [("amd_gpus", each.gfx, each.sources) for each in table.amd_gpus]
    rows += [("intel_gpus", each.names[0], each.sources) for each in table.intel_gpus if each.names]
    rows += [("alternatives", each.os, each.sources) for each in table.alternatives]
    rows += [("known_broken", each.tag, each.sources) for each in table.known_broken]
    rows += [("downloads", each.kind, each.sources) for each in table.downloads.values()]
    rows += [("builds", each.tag, each.sources) for each in table.builds]
    check_sources(place, known, rows)


def parse_torch_table(text: str, *, file: str) -> TorchTable:
    """Return the table that `text` describes.

    Parameters
    ----------
    text : str
        YAML, at most 1 MiB of it.
    file : str
        Name of the text in complaints: a path, or a name.

    Returns
    -------
    TorchTable
        Complete and consistent: every source exists, every wheel is described once, releases are newest first and
        builds in the order of the file, which is the order of preference.

    Raises
    ------
    ManifestError
        Something is wrong; ``issues`` holds every complaint as ``file:line: key.path: complaint``, in the order of
        the lines.  For a format newer than this program it contains only that.
    """
    return read_document(
        text,
        Kind[TorchTable | None]("a mapping with schema_version, apps, sets, gpus, builds and sources", _table, None),
        file=file,
        known=SCHEMA_VERSION,
        what="table",
        newer="Update klein-setup, or use the table that came with it.",
        hint=_HINT,
    )
