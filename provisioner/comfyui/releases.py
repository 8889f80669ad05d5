"""YAML text -> `ComfyTable`: which release of ComfyUI to install, which ones load Klein, which nodes our graph needs.

Knows the format of ``manifests/comfyui.yaml`` and checks that its parts fit together.  Reads no file, asks no server
and does not run git.  ``manifests/README.md`` explains every key.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal, get_args

from provisioner.comfyui.release_models import (
    ComfyRelease,
    ComfyTable,
    KnownBad,
    NodeNeed,
    NodeUse,
    SeenRelease,
    VersionBound,
)
from provisioner.core.models import OperatingSystem, Vendor
from provisioner.manifest.strict_yaml import (
    BOOLEAN,
    DOWNLOAD,
    LINE,
    PROSE,
    Fields,
    Kind,
    Place,
    check_sources,
    hex_digits,
    list_of,
    matching,
    nearest,
    one_of,
    read_document,
    shown,
    whole_number,
)
from provisioner.manifest.table_rows import DATE, ID, SOURCE_IDS, THREAD, report_repeated, rows_of, sources_of

SCHEMA_VERSION = 1
"""The version of the table's format this program reads."""

_HINT = "Fix it; manifests/README.md explains every key of comfyui.yaml."

# What other tools call our keys, for the advice about an unknown key.
_SYNONYMS = {
    "class_type": "class",
    "date": "released",
    "hash": "commit",
    "min": "minimum",
    "pin": "pinned",
    "reason": "because",
    "recommended": "advised",
    "repo": "repository",
    "revision": "commit",
    "source": "sources",
    "tag": "version",
    "url": "repository",
}


_VERSION = matching("a quoted version like '0.33.0'", r"(0|[1-9][0-9]{0,4})(\.(0|[1-9][0-9]{0,4})){2}")
_COMMIT = hex_digits("a commit", 40, "is a branch or a tag, which moves")
_TREE = hex_digits("a git tree", 40)
_CLASS = matching("the name of a node class like UNETLoader", r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_INPUT = matching("the name of an input like unet_name", r"[a-z_][a-z0-9_]{0,63}")
_REPOSITORY = matching(
    "an https address without '.git', credentials and query",
    r"https://[a-z0-9.-]+(:[0-9]{1,5})?(/[\w-]+(\.(?!git$)[\w-]+)*)+",
)
_SCHEMA_VERSION = whole_number(str(SCHEMA_VERSION), SCHEMA_VERSION, SCHEMA_VERSION)
_COMPARED = r"(==|!=|<=|>=|<|>)[0-9][0-9a-z.]{0,30}(\.\*)?"
_SPECIFIER = matching("a version specifier like '>=610,<611'", rf"{_COMPARED}(,{_COMPARED})*")
_REQUIREMENT = matching(
    "a requirement like 'av>=17.0.0', or a name alone", rf"[a-z0-9]+(-[a-z0-9]+)*({_COMPARED}(,{_COMPARED})*)?"
)
_OPTION = matching("an option of ComfyUI like --disable-pinned-memory", r"--[a-z0-9_]+(-[a-z0-9_]+)*")
_SM = whole_number("a compute capability like 120", 10, 999)
_GB = whole_number("a number of GB", 1, 4096)
_GFX = matching("the beginning of an architecture like gfx11", r"gfx[0-9a-f]{1,6}")
_VENDORS: tuple[Vendor, ...] = get_args(Vendor)
_SYSTEMS: tuple[OperatingSystem, ...] = get_args(OperatingSystem)
_APPS: tuple[Literal["comfyui", "diffusers"], ...] = ("comfyui", "diffusers")
_USES: tuple[NodeUse, ...] = get_args(NodeUse)


# --- versions -------------------------------------------------------------------------------------


def version_key(version: str) -> tuple[int, ...]:
    """Return the number that a version begins with, for comparing; empty where there is none.

    ComfyUI writes its own version with and without a "v", and ``git describe`` appends to it.

    >>> version_key("v0.9.2") < version_key("0.10.0") < version_key("0.33.0-12-g783545f")
    True
    >>> version_key("unknown")
    ()
    """
    found = re.match(r"v?([0-9]{1,6}(?:\.[0-9]{1,6})*)", version.strip(), re.ASCII)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def is_at_least(version: str, bound: str) -> bool | None:
    """Return whether a version is not older than another; None where it cannot be compared.

    >>> is_at_least("0.9.2", "0.9.2"), is_at_least("0.9.1", "0.9.2"), is_at_least("nightly", "0.9.2")
    (True, False, None)
    """
    found = version_key(version)
    return found >= version_key(bound) if found else None


# --- the mappings ---------------------------------------------------------------------------------


def _release(place: Place) -> ComfyRelease:
    with Fields(place, _SYNONYMS) as fields:
        return ComfyRelease(
            version=fields.required("version", _VERSION),
            commit=fields.required("commit", _COMMIT),
            tree=fields.optional("tree", _TREE, None),
            released=fields.optional("released", DATE, None),
            note=fields.optional("note", PROSE, None),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _seen(place: Place) -> SeenRelease:
    with Fields(place, _SYNONYMS) as fields:
        return SeenRelease(
            version=fields.required("version", _VERSION),
            released=fields.required("released", DATE),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _bound(place: Place) -> VersionBound:
    with Fields(place, _SYNONYMS) as fields:
        return VersionBound(
            version=fields.required("version", _VERSION),
            because=fields.required("because", LINE),
            sources=fields.required("sources", SOURCE_IDS),
        )


def _node(place: Place) -> NodeNeed:
    with Fields(place, _SYNONYMS) as fields:
        value = NodeNeed(
            class_type=fields.required("class", _CLASS),
            inputs=fields.required("inputs", list_of(_INPUT, "a list of the inputs our graph gives")),
            use=fields.optional("use", one_of(_USES), "always"),
            sources=fields.required("sources", SOURCE_IDS),
        )
    report_repeated(place, "inputs", value.inputs)
    return value


def _known_bad(place: Place) -> KnownBad:
    with Fields(place, _SYNONYMS) as fields:
        value = KnownBad(
            id=fields.required("id", ID),
            app=fields.optional("app", one_of(_APPS), "comfyui"),
            since=fields.optional("since", _VERSION, None),
            before=fields.optional("before", _VERSION, None),
            is_unreleased=fields.optional("is_unreleased", BOOLEAN, False),
            packages=fields.optional("packages", list_of(_REQUIREMENT, "a list of requirements"), ()),
            outdated=fields.optional("outdated", ID, None),
            torch_tags=fields.optional("torch_tags", list_of(ID, "a list of beginnings like cu130"), ()),
            python=fields.optional("python", _SPECIFIER, None),
            driver=fields.optional("driver", _SPECIFIER, None),
            custom_nodes=fields.optional("custom_nodes", list_of(LINE, "a list of folder names"), ()),
            vendor=fields.optional("vendor", one_of(_VENDORS), None),
            os=fields.optional("os", one_of(_SYSTEMS), None),
            is_wsl=fields.optional("is_wsl", BOOLEAN, False),
            sm=fields.optional("sm", list_of(_SM, "a list of compute capabilities like 120"), ()),
            max_sm=fields.optional("max_sm", _SM, None),
            architectures=fields.optional("architectures", list_of(_GFX, "a list of beginnings like gfx11"), ()),
            min_gpus=fields.optional("min_gpus", whole_number("a number of GPUs", 2, 16), None),
            max_vram_gb=fields.optional("max_vram_gb", _GB, None),
            max_memory_gb=fields.optional("max_memory_gb", _GB, None),
            symptom=fields.required("symptom", LINE),
            good=fields.optional("good", LINE, None),
            option=fields.optional("option", _OPTION, None),
            requirement=fields.optional("requirement", _REQUIREMENT, None),
            threads=fields.required("threads", list_of(THREAD, "a list of threads")),
        )
    if value.before and value.since and version_key(value.before) <= version_key(value.since):
        place.complain(f"is {value.before}, not newer than 'since' ({value.since})", "before")
    if not (value.since or value.packages or value.outdated or value.torch_tags):
        place.complain("names no version; expected 'since', 'packages', 'outdated' or 'torch_tags'")
    if not (value.good or value.option or value.requirement):
        place.complain("names nothing that works; expected 'good', 'option' or 'requirement'")
    return value


_BOUND = Kind("a mapping of version, because and sources", _bound, VersionBound(version="", because=""))
_SEEN: Kind[SeenRelease | None] = Kind("a mapping of version, released and sources", _seen, None)
_RELEASES = rows_of(_release, "a mapping of version, commit and sources")
_KNOWN_BAD = rows_of(_known_bad, "a mapping of id, symptom, threads, what fails and what works")
_NODES = rows_of(_node, "a mapping of class, inputs and sources")


# --- the whole ------------------------------------------------------------------------------------


def _table(place: Place) -> ComfyTable:
    with Fields(place, _SYNONYMS) as fields:
        releases = fields.required("releases", _RELEASES)
        pinned = fields.required("pinned", _VERSION)
        value = ComfyTable(
            schema_version=fields.required("schema_version", _SCHEMA_VERSION),
            repository=fields.required("repository", _REPOSITORY),
            pinned=_pinned(place, pinned, releases),
            releases=tuple(sorted(releases, key=lambda each: version_key(each.version), reverse=True)),
            download=fields.required("download", DOWNLOAD),
            minimum=fields.required("minimum", _BOUND),
            advised=fields.required("advised", _BOUND),
            nodes=fields.required("nodes", _NODES),
            known_bad=fields.optional("known_bad", _KNOWN_BAD, ()),
            newest_seen=fields.optional("newest_seen", _SEEN, None),
            sources=fields.required("sources", sources_of(_SYNONYMS)),
        )
    _check_uniqueness(place, value)
    _check_order(place, value)
    _check_sources(place, value)
    return value


def _pinned(place: Place, version: str, releases: tuple[ComfyRelease, ...]) -> ComfyRelease:
    """Return the pinned release; report one that is not listed, or has no tree to verify it by."""
    found = next((each for each in releases if each.version == version), None)
    if found is None:
        known = [each.version for each in releases if each.version]
        if version and known:
            place.complain(f"is {shown(version)}, which is not in 'releases'{nearest(version, known)}", "pinned")
        return ComfyRelease(version="", commit="")
    if found.tree is None:
        place.complain(f"is {version}, whose release has no 'tree'; expected one, to verify an archive with", "pinned")
    return found


def _check_uniqueness(place: Place, table: ComfyTable) -> None:
    report_repeated(place, "releases", (each.version for each in table.releases if each.version))
    report_repeated(place, "releases", (each.commit for each in table.releases if each.commit))
    report_repeated(place, "releases", (each.tree for each in table.releases if each.tree))
    uses = (f"{each.class_type} for {each.use}" for each in table.nodes if each.class_type)
    report_repeated(place, "nodes", uses)
    report_repeated(place, "known_bad", (each.id for each in table.known_bad if each.id))
    report_repeated(place, "sources", (each.id for each in table.sources if each.id))


def _check_order(place: Place, table: ComfyTable) -> None:
    """Report bounds that contradict each other: the order is minimum, advised, pinned, newest_seen."""
    steps = [("minimum", table.minimum.version), ("advised", table.advised.version), ("pinned", table.pinned.version)]
    if table.newest_seen is not None:
        steps.append(("newest_seen", table.newest_seen.version))
    for (low_key, low), (high_key, high) in pairwise(steps):
        if low and high and version_key(high) < version_key(low):
            place.complain(f"is {high}, older than '{low_key}' ({low}); expected it not to be older", high_key)


def _check_sources(place: Place, table: ComfyTable) -> None:
    """Report facts without an existing source, and sources that nothing names."""
    known = {each.id for each in table.sources}
    rows = [("releases", each.version, each.sources) for each in table.releases]
    rows += [("nodes", each.class_type, each.sources) for each in table.nodes]
    rows += [("minimum", "sources", table.minimum.sources), ("advised", "sources", table.advised.sources)]
    rows += [] if table.newest_seen is None else [("newest_seen", "sources", table.newest_seen.sources)]
    check_sources(place, known, rows)


def parse_comfy_table(text: str, *, file: str) -> ComfyTable:
    """Return the table that `text` describes.

    Parameters
    ----------
    text : str
        YAML, at most 1 MiB of it.
    file : str
        Name of the text in complaints: a path, or a name.

    Returns
    -------
    ComfyTable
        Complete and consistent: the pinned release is listed with its tree, no bound contradicts another, every
        source exists.

    Raises
    ------
    ManifestError
        Something is wrong; ``issues`` holds every complaint as ``file:line: key.path: complaint``, in the order of
        the lines.  For a format newer than this program it contains only that.
    """
    return read_document(
        text,
        Kind[ComfyTable | None]("a mapping with schema_version, repository, pinned and releases", _table, None),
        file=file,
        known=SCHEMA_VERSION,
        what="table",
        newer="Update klein-setup, or use the table that came with it.",
        hint=_HINT,
    )
