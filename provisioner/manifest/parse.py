"""YAML text -> `Manifest`: which keys there are, what each may contain, and what must fit together.

Reads no file, asks no server, and trusts no text: paths, addresses and sizes are checked before they are used.
``manifests/README.md`` explains each key; ``manifests/schema.json`` says the same for editors, and where they differ
this module decides.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import Literal, get_args

from provisioner.core.hosts import LOOPBACK, is_private
from provisioner.core.models import (
    BLOCK_SIZE,
    STATE_FOLDER,
    Artifact,
    ArtifactSet,
    Conditions,
    CustomNode,
    Envelope,
    Fingerprint,
    GitCommit,
    HubFile,
    Licence,
    Lock,
    Lookalike,
    Manifest,
    ManifestWorkflow,
    NodeArchive,
    OciFile,
    OciRepository,
    OperatingSystem,
    Provenance,
    Recipe,
    Role,
    Source,
    TargetKind,
    UrlFile,
    Variant,
)
from provisioner.disk.safe_path import complaint_about_path
from provisioner.manifest.strict_yaml import (
    BOOLEAN,
    DECIMAL,
    LINE,
    PROSE,
    Fields,
    Kind,
    Place,
    RefusedError,
    hex_digits,
    holds_token,
    list_of,
    matching,
    nearest,
    one_of,
    read_document,
    read_line,
    read_text,
    shown,
    whole_number,
)

SCHEMA_VERSION = 1
"""The version of the manifest format this program reads."""

LARGEST_LOCK_VERSION = 2**31 - 1
"""What is published once with the largest version can never be followed by another."""

LARGEST_PACK = 256 * 1024 * 1024
"""Bytes of an archive of custom nodes; the largest of the registry's well-known ones has about 100 MB."""

_MAX_FILE_BYTES = 2**40  # 1 TiB; the largest file of the 9B models is 18 GB
_HINT = "Fix it and check again with `klein-setup manifest check FILE`; manifests/README.md explains every key."

# What other tools call our keys, for the advice about an unknown key.
_SYNONYMS = {
    "bytes": "size",
    "commit": "revision",
    "digest": "sha256",
    "file": "filename",
    "files": "artifacts",
    "hash": "sha256",
    "path": "folder",
    "repo": "repo_id",
    "type": "role",
}

# --- single values ------------------------------------------------------------------------------

_ID = matching("a short name of a-z, 0-9, '.', '_' and '-', like qwen3-4b-bf16", r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = hex_digits("a SHA-256", 64)
_REVISION = hex_digits("a commit", 40, "is a branch or tag, which can move")
_GIT_OID = hex_digits("a git blob id", 40)
_REPO_ID = matching(
    "a Hub repository like Comfy-Org/flux2-klein-4B",
    r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?/[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?",
)
_VERSION = matching("a version like 0.9.2", r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}")
_DATE = matching("a quoted date like '2026-11-23'", r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")

_ROLES: tuple[Role, ...] = get_args(Role)
_TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)
_PLATFORMS: tuple[OperatingSystem, ...] = ("linux", "windows", "macos")
_CONFIDENCES: tuple[Literal["high", "medium", "low"], ...] = ("high", "medium", "low")

_ROLE, _TARGET, _CONFIDENCE = one_of(_ROLES), one_of(_TARGETS), one_of(_CONFIDENCES)
_SIZE = whole_number("the size in bytes, from 1 to 1 TiB", 1, _MAX_FILE_BYTES)
_BYTES = whole_number("a number of bytes, from 1 to 1 TiB", 1, _MAX_FILE_BYTES)
_COUNT = whole_number("a whole number from 1 to 1000000", 1, 1_000_000)
_STEPS = whole_number("a number of steps from 1 to 1000", 1, 1_000)
_SCHEMA_VERSION = whole_number(str(SCHEMA_VERSION), SCHEMA_VERSION, SCHEMA_VERSION)

_UNITS = {"MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}


def _memory(place: Place) -> int:
    text = read_line(place)
    match = re.fullmatch(r"([1-9][0-9]{0,5}(?:\.[0-9]{1,3})?) (MiB|GiB|MB|GB)", text, re.ASCII)
    if match is None:
        raise RefusedError(f"is {shown(text)}")
    return round(float(match[1]) * _UNITS[match[2]])


def _capability(place: Place) -> tuple[int, int]:
    text = read_line(place)
    match = re.fullmatch(r"([1-9][0-9]?)\.([0-9])", text, re.ASCII)
    if match is None:
        raise RefusedError(f"is {shown(text)}")
    return int(match[1]), int(match[2])


_MEMORY = Kind("an amount of memory like 11 GiB: a number, a space, and MiB, GiB, MB or GB", _memory, 0)
_CAPABILITY = Kind("a quoted compute capability like '8.9'", _capability, (0, 0))

# --- names, paths and addresses ------------------------------------------------------------------

# The store keeps "<name>.part" and "<name>.part.jsonl" beside an unfinished file; the others are other programs'.
_UNFINISHED = frozenset({"part", "partial", "incomplete", "crdownload", "download", "aria2", "tmp"})
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_RENAMED_FOLDERS = {"unet": "diffusion_models", "clip": "text_encoders"}
_SECRETS = ("token", "secret", "sig", "key", "passw", "cred", "auth", "session", "policy", "expires")
_ADDRESS = r"(?a)(https?)://([^/@?#\s\\]+)(/[^\s#\\]*)?"


def _path(place: Place) -> str:
    text = read_text(place)
    complaint = complaint_about_path(text)
    if complaint is not None:
        raise RefusedError(f"{shown(text)} {complaint}")
    *before, ending = text.lower().split(".")
    if before and (ending in _UNFINISHED or "part" in before[1:][-1:]):
        raise RefusedError(f"{shown(text)} has the ending of an unfinished download")
    return text


def _name(place: Place) -> str:
    text = _path(place)
    if "/" in text:
        raise RefusedError(f"{shown(text)} has a folder in it, which belongs under 'folder'")
    return text


def _folder(place: Place) -> str:
    text = _path(place)
    first = text.split("/", 1)[0].casefold()
    if first in _RENAMED_FOLDERS:
        modern = _RENAMED_FOLDERS[first]
        raise RefusedError(
            f"{shown(text)} is the older name of a folder that ComfyUI now calls {modern}", f"'{modern}'"
        )
    if STATE_FOLDER.casefold() in text.casefold().split("/"):
        raise RefusedError(f"{shown(text)} is where klein-setup keeps its own records")
    return text


def _url(place: Place) -> str:
    text = read_text(place)
    if "@" in text.split("://", 1)[-1].split("/", 1)[0]:
        raise RefusedError("holds a user name, a password or a token")  # deliberately not shown
    match = re.fullmatch(_ADDRESS, text)
    if match is None or not text.isprintable() or not text.isascii() or len(text) > 2000:
        raise RefusedError(f"{shown(text)} is not such an address")
    complaint = _complaint_about_host(match[1], text) or _complaint_about_query(text)
    if complaint is not None:
        raise RefusedError(complaint)
    return text


def _oci(place: Place) -> OciFile:
    from provisioner.oci.reference import parse_reference  # most manifests name no registry

    text = read_text(place)
    if "@" in text.split("://", 1)[-1].split("/", 1)[0]:
        raise RefusedError("holds a user name, a password or a token")  # deliberately not shown
    try:
        found = parse_reference(text)
    except ValueError as error:
        raise RefusedError(f"{shown(text)} {error}") from error
    complaint = _complaint_about_host("https", text)
    if complaint is not None:
        raise RefusedError(complaint)
    return found


def _complaint_about_host(scheme: str, text: str) -> str | None:
    from urllib.parse import urlsplit  # takes 6 ms, needed for addresses only

    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return f"{shown(text)} has no valid host or port"
    if not host:
        return f"{shown(text)} has no host"
    if host not in LOOPBACK and is_private(host):
        return f"{shown(text)} is an address of a private network, which means something else on every computer"
    if scheme == "http" and host not in LOOPBACK:
        return f"{shown(text)} is http, which others on the network can change"
    return None


def _complaint_about_query(text: str) -> str | None:
    from urllib.parse import unquote

    query = unquote(text.partition("?")[2])
    names = [pair.partition("=")[0].lower() for pair in re.split("[&;?]", query)]
    if any(secret in name for name in names for secret in _SECRETS) or holds_token(unquote(text)):
        return "holds a token, a signature or another secret, which expires or does not belong in a file"
    return None


_FILENAME = Kind("a path inside the repository, like split_files/vae/flux2-vae.safetensors", _path, "")
_NAME = Kind("a file name like flux2-vae.safetensors", _name, "")
_FOLDER = Kind("a folder of ComfyUI's models tree, like diffusion_models or loras/flux", _folder, "")
_URL = Kind("an https address without credentials (http only for this machine)", _url, "")

_OCI = Kind(
    "a reference like oci://registry.example/models:v1, or with @sha256: and a digest",
    _oci,
    OciFile(repository=OciRepository(base="", name="")),
)

# --- the mappings ---------------------------------------------------------------------------------


def _variant(place: Place) -> Variant:
    with Fields(place, _SYNONYMS) as fields:
        return Variant(
            size=fields.required("size", _SIZE),
            sha256=fields.required("sha256", _SHA256),
            what=fields.required("what", LINE),
            sources=fields.optional("sources", _SOURCES, ()),
        )


def _lookalike(place: Place) -> Lookalike:
    with Fields(place, _SYNONYMS) as fields:
        return Lookalike(
            size=fields.required("size", _SIZE),
            sha256=fields.required("sha256", _SHA256),
            what=fields.required("what", LINE),
        )


def _source(place: Place) -> Source:
    with Fields(place, _SYNONYMS) as fields:
        if fields.has("url"):
            return UrlFile(url=fields.required("url", _URL))
        if fields.has("oci"):
            return fields.required("oci", _OCI)
        return HubFile(
            repo_id=fields.required("repo_id", _REPO_ID),
            revision=fields.required("revision", _REVISION),
            filename=fields.required("filename", _FILENAME),
        )


def _dtypes(place: Place) -> tuple[tuple[str, int], ...]:
    fields = Fields(place, _SYNONYMS)
    for name in fields.names:
        if not re.fullmatch("[A-Z][A-Z0-9_]{0,15}", name, re.ASCII):
            place.complain(f"{shown(name)} is not a data type of safetensors; expected a name like F8_E4M3", name)
    if not fields.names:
        raise RefusedError("is empty")
    return tuple((name, fields.required(name, _COUNT)) for name in fields.names)


def _fingerprint(place: Place) -> Fingerprint:
    with Fields(place, _SYNONYMS) as fields:
        value = Fingerprint(
            tensors=fields.optional("tensors", _COUNT, None),
            header_bytes=fields.optional("header_bytes", _BYTES, None),
            payload_bytes=fields.optional("payload_bytes", _BYTES, None),
            schema_sha256=fields.optional("schema_sha256", _SHA256, None),
            dtypes=fields.optional("dtypes", _DTYPES, ()),
            proof=fields.optional("proof", LINE, None),
        )
    counted = sum(count for _, count in value.dtypes)
    if value.tensors and value.dtypes and all(count for _, count in value.dtypes) and counted != value.tensors:
        place.complain(f"counts {counted} tensors; expected the {value.tensors} of 'tensors'", "dtypes")
    return value


def _provenance(place: Place) -> Provenance:
    with Fields(place, _SYNONYMS) as fields:
        return Provenance(
            read_from=fields.required("read_from", LINE),
            read_on=fields.required("read_on", _DATE),
            agreeing=fields.required("agreeing", _COUNT),
            confidence=fields.required("confidence", _CONFIDENCE),
        )


_DTYPES: Kind[tuple[tuple[str, int], ...]] = Kind("data types with their number of tensors", _dtypes, ())
_BLOCKS = list_of(_SHA256, "a list of SHA-256 digests, one for every 16 MiB of the file")
_SOURCES = list_of(
    Kind[Source](
        "a source: repo_id, revision and filename, or url, or oci",
        _source,
        HubFile(repo_id="", revision="", filename=""),
    ),
    "a list of places to fetch the file from, the best first",
)
_ACCEPT = list_of(
    Kind("a content: size, sha256 and what", _variant, Variant(size=0, sha256="", what="")), "a list of contents"
)
_LOOKALIKES = list_of(
    Kind("a content: size, sha256 and what", _lookalike, Lookalike(size=0, sha256="", what="")), "a list of contents"
)
_FINGERPRINT = Kind("a mapping that describes a safetensors header", _fingerprint, Fingerprint())
_PROVENANCE: Kind[Provenance | None] = Kind("read_from, read_on, agreeing and confidence", _provenance, None)


def _artifact(place: Place) -> Artifact:
    with Fields(place, _SYNONYMS) as fields:
        sources = fields.required("sources", _SOURCES)
        value = Artifact(
            id=fields.required("id", _ID),
            role=fields.required("role", _ROLE),
            name=_name_in(fields, sources),
            folder=fields.optional("folder", _FOLDER, None),
            size=fields.required("size", _SIZE),
            sha256=fields.required("sha256", _SHA256),
            sources=sources,
            accept=fields.optional("accept", _ACCEPT, ()),
            lookalikes=fields.optional("lookalikes", _LOOKALIKES, ()),
            fingerprint=fields.optional("fingerprint", _FINGERPRINT, None),
            provenance=fields.optional("provenance", _PROVENANCE, None),
            licence=fields.optional("licence", LINE, None),
            is_gated=fields.optional("is_gated", BOOLEAN, default=False),
            is_lfs=fields.optional("is_lfs", BOOLEAN, default=True),
            git_oid=fields.optional("git_oid", _GIT_OID, None),
            min_comfyui=fields.optional("min_comfyui", _VERSION, None),
            note=fields.optional("note", PROSE, None),
            blocks=fields.optional("blocks", _BLOCKS, ()),
        )
    _check_name(place, value)
    _check_contents(place, value)
    _check_header(place, value)
    _check_blocks(place, value)
    return value


def _name_in(fields: Fields, sources: tuple[Source, ...]) -> str:
    """Return the file name; by default the last part of the first source's."""
    if sources and isinstance(sources[0], HubFile):
        return fields.optional("name", _NAME, sources[0].filename.rsplit("/", 1)[-1])
    return fields.required("name", _NAME)


def _check_name(place: Place, artifact: Artifact) -> None:
    """Report a pickle, which can run any code when it is loaded."""
    if artifact.role in ("config", "tokenizer", "licence", "other"):
        return
    files = [source.filename for source in artifact.sources if isinstance(source, HubFile)]
    pickle = next((name for name in (artifact.name, *files) if name.casefold().endswith(_PICKLES)), None)
    if pickle is not None:
        place.complain(
            f"{shown(pickle)} is a pickle, which runs code when it is loaded; expected a .safetensors or .gguf file",
            "name",
        )


def _check_contents(place: Place, artifact: Artifact) -> None:
    """Report the same bytes named twice under one artifact, for example as accepted and as wrong."""
    seen = {artifact.sha256: "the artifact itself"}
    named = [("accept", at, each.sha256) for at, each in enumerate(artifact.accept)]
    named += [("lookalikes", at, each.sha256) for at, each in enumerate(artifact.lookalikes)]
    for key, at, sha256 in named:
        if sha256 and sha256 in seen:
            place.complain(f"has in entry {at} the SHA-256 of {seen[sha256]}; expected another content", key)
        seen.setdefault(sha256, f"{key}[{at}]")


def _check_header(place: Place, artifact: Artifact) -> None:
    """Report a size that is not the sum of 8 bytes of length, the header and the payload."""
    known = artifact.fingerprint
    if known is None or not (known.header_bytes and known.payload_bytes and artifact.size):
        return
    total = 8 + known.header_bytes + known.payload_bytes
    if total != artifact.size:
        place.complain(f"makes a file of {total} bytes; expected the {artifact.size} of 'size'", "fingerprint")


def _check_blocks(place: Place, artifact: Artifact) -> None:
    """Report a number of block digests that is not the file's number of 16 MiB blocks."""
    count = -(-artifact.size // BLOCK_SIZE)
    if artifact.blocks and artifact.size and len(artifact.blocks) != count:
        place.complain(f"has {len(artifact.blocks)} digests; expected {count}, one for every 16 MiB", "blocks")


# --- sets ----------------------------------------------------------------------------------------


def _conditions(place: Place) -> Conditions:
    with Fields(place, _SYNONYMS) as fields:
        value = Conditions(
            min_vram_bytes=fields.optional("min_vram", _MEMORY, None),
            min_compute_capability=fields.optional("min_compute_capability", _CAPABILITY, None),
            platforms=fields.optional("platforms", list_of(one_of(_PLATFORMS), "a list of systems"), ()),
        )
    if len(set(value.platforms)) < len(value.platforms):
        place.complain("names a system twice; expected every system once", "platforms")
    return value


def _envelope(place: Place) -> Envelope:
    with Fields(place, _SYNONYMS) as fields:
        value = Envelope(
            vram_bytes=fields.optional("vram", _MEMORY, None),
            steps=fields.optional("steps", _STEPS, None),
            guidance=fields.optional("guidance", DECIMAL, None),
            source=fields.optional("source", LINE, None),
        )
    if value.vram_bytes is not None and not fields.has("source"):
        place.complain("is missing; expected the source of 'vram'", "source")
    return value


def _recipe(place: Place) -> Recipe:
    with Fields(place, _SYNONYMS) as fields:
        value = Recipe(
            clip_type=fields.required("clip_type", _WORD),
            latent=fields.required("latent", _NODE),
            sampler=fields.required("sampler", _WORD),
            scheduler=fields.optional("scheduler", _WORD, None),
            scheduler_node=fields.optional("scheduler_node", _NODE, None),
            shift_node=fields.optional("shift_node", _NODE, None),
            shift=fields.optional("shift", DECIMAL, None),
            embedded_guidance=fields.optional("embedded_guidance", DECIMAL, None),
        )
    if fields.has("scheduler") == fields.has("scheduler_node"):
        place.complain("needs one of scheduler and scheduler_node; expected exactly one of them", "scheduler")
    if fields.has("shift") != fields.has("shift_node"):
        place.complain("comes with shift_node; expected both or neither", "shift")
    return value


def _workflow(place: Place) -> ManifestWorkflow | None:
    with Fields(place, _SYNONYMS) as fields:
        name, sha256 = fields.required("name", _NAME), fields.optional("sha256", _SHA256, None)
        return ManifestWorkflow(name=name, sha256=sha256)


def _set(place: Place, known: dict[str, Artifact], workflow: ManifestWorkflow | None) -> ArtifactSet:
    """Return a set; `workflow` is that of the manifest, for a set that has none of its own."""
    with Fields(place, _SYNONYMS) as fields:
        target = fields.required("target", _TARGET)
        workflow = fields.optional("workflow", _WORKFLOW, workflow if target == "comfyui" else None)
        value = ArtifactSet(
            id=fields.required("id", _ID),
            title=fields.required("title", LINE),
            target=target,
            artifacts=fields.required("artifacts", Kind("a list of artifact ids", partial(_members, known=known), ())),
            conditions=fields.optional("conditions", _CONDITIONS, Conditions()),
            envelope=fields.optional("envelope", _ENVELOPE, Envelope()),
            recipe=fields.optional("recipe", _RECIPE, None),
            workflow=workflow,
            template=fields.optional("template", _TEMPLATE, None),
            note=fields.optional("note", PROSE, None),
        )
    if fields.has("workflow") and target != "comfyui":
        place.complain("is for a set that ComfyUI reads; expected target: comfyui beside it", "workflow")
    _check_places(place, value)
    return value


def _members(place: Place, known: dict[str, Artifact]) -> tuple[Artifact, ...]:
    """Return the artifacts a set names."""
    if not known:
        raise RefusedError(None)  # the missing artifacts were reported already
    member = Kind[Artifact | None]("the id of an artifact", partial(_member, known=known), None)
    found: dict[str, Artifact] = {}
    for each in list_of(member, "").read(place):
        if each is not None and each.id in found:
            place.complain(f"names '{each.id}' twice; expected every artifact once")
        elif each is not None:
            found[each.id] = each
    return tuple(found.values())


def _member(place: Place, known: dict[str, Artifact]) -> Artifact | None:
    text = read_line(place)
    if text not in known:
        raise RefusedError(f"{shown(text)} is not an artifact of this manifest{nearest(text, known)}")
    return known[text]


def _check_places(place: Place, wanted: ArtifactSet) -> None:
    """Report artifacts without a path in the target, and two artifacts with the same path."""
    taken: dict[str, str] = {}
    for artifact in wanted.artifacts:
        where = _place_of(artifact, wanted.target)
        if where is None:
            lacks, needed = (
                ("has no folder", "a folder")
                if wanted.target == "comfyui"
                else ("has no Hub file as its first source", "repo_id, revision and filename there")
            )
            complaint = f"names '{artifact.id}', which {lacks}; expected {needed} in a set for {wanted.target}"
            place.complain(complaint, "artifacts")
        elif not where.endswith("/"):  # a name that was rejected already
            _claim(place, taken, artifact.id, where.casefold())


def _place_of(artifact: Artifact, target: TargetKind) -> str | None:
    """Return an artifact's path in a kind of target, as text to compare; None where it has none."""
    if target == "comfyui":
        return None if artifact.folder is None else f"{artifact.folder}/{artifact.name}"
    source = artifact.sources[0] if artifact.sources else None
    return f"{source.repo_id}/{source.revision}/{source.filename}" if isinstance(source, HubFile) else None


def _claim(place: Place, taken: dict[str, str], artifact_id: str, where: str) -> None:
    """Reserve the path `where` and the folders above it for an artifact; report one that is taken.

    `taken` maps a file to its artifact's id and a folder to the id of one artifact in it.  Files may share a folder;
    a file shares its name with nothing, and macOS and Windows see no difference between ``A`` and ``a``.
    """
    parts = where.split("/")
    folders = ["/".join(parts[:count]) + "/" for count in range(1, len(parts))]
    other = taken.get(where) or taken.get(where + "/")
    other = other or next((taken[each[:-1]] for each in folders if each[:-1] in taken), None)
    if other is not None:
        complaint = f"sends '{other}' and '{artifact_id}' to the same place, {shown(where)}"
        place.complain(f"{complaint}; expected a different place for each, ignoring the case of letters", "artifacts")
        return
    taken[where] = artifact_id
    for folder in folders:
        taken.setdefault(folder, artifact_id)


_CONDITIONS = Kind("a mapping of min_vram, min_compute_capability and platforms", _conditions, Conditions())
_ENVELOPE = Kind("a mapping of vram, steps, guidance and source", _envelope, Envelope())
_WORD = matching("a name as ComfyUI lists it, like res_multistep", r"[a-z0-9][a-z0-9_+-]{0,63}")
_NODE = matching("the class of a node of ComfyUI, like BasicScheduler", r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TEMPLATE = matching(
    "the name of a template of ComfyUI, like image_flux2_klein_text_to_image", r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
)
_RECIPE: Kind[Recipe | None] = Kind("a mapping of clip_type, latent, sampler and a scheduler", _recipe, None)
_WORKFLOW: Kind[ManifestWorkflow | None] = Kind("a mapping of name and sha256", _workflow, None)

# --- the whole ------------------------------------------------------------------------------------


_IS_FREE = Kind(BOOLEAN.expected, BOOLEAN.read, True)  # a complaint about it is enough: none about the id


def _licence(place: Place) -> Licence:
    with Fields(place, _SYNONYMS) as fields:
        condition, is_free = fields.optional("commercial_use_condition", LINE, None), None
        if not fields.has("commercial_use_condition"):
            is_free = fields.required("is_commercial_use_allowed", _IS_FREE)
        elif fields.has("is_commercial_use_allowed"):
            complaint = "comes with commercial_use_condition, which takes its place; expected one of the two"
            place.complain(complaint, "is_commercial_use_allowed")
            fields.optional("is_commercial_use_allowed", BOOLEAN, default=False)
        return Licence(
            id=fields.optional("id", _ID, None) if is_free else fields.required("id", _ID),
            name=fields.required("name", LINE),
            url=fields.required("url", _URL),
            is_commercial_use_allowed=is_free,
            commercial_use_condition=condition,
            notice=fields.optional("notice", PROSE, None),
            git_oid=fields.optional("git_oid", _GIT_OID, None),
        )


_LICENCE = Kind(
    "a mapping of name, url and is_commercial_use_allowed or commercial_use_condition",
    _licence,
    Licence(name="", url="", is_commercial_use_allowed=False),
)
_ARTIFACTS: Kind[tuple[Artifact | None, ...]] = list_of(
    Kind[Artifact | None]("an artifact: a mapping with id, role, size, sha256 and sources", _artifact, None),
    "a list of artifacts",
)


_LOCK_VERSION = whole_number(f"a whole number from 1 to {LARGEST_LOCK_VERSION}", 1, LARGEST_LOCK_VERSION)


def _lock(place: Place) -> Lock:
    with Fields(place, _SYNONYMS) as fields:
        return Lock(
            manifest_sha256=fields.required("manifest_sha256", _SHA256),
            locked_on=fields.required("locked_on", _DATE),
            torch_backend=fields.optional("torch_backend", LINE, None),
            torch=fields.optional("torch", _VERSION, None),
            torch_wheels=fields.optional("torch_wheels", _TORCH_WHEELS, ()),
            comfyui_commit=fields.optional("comfyui_commit", _REVISION, None),
            comfyui_version=fields.optional("comfyui_version", _VERSION, None),
            version=fields.optional("version", _LOCK_VERSION, None),
            expires=fields.optional("expires", _DATE, None),
            bundle_parts=fields.optional("bundle_parts", _BUNDLE_PARTS, ()),
        )


def _torch_wheel(place: Place) -> tuple[str, str]:
    with Fields(place, _SYNONYMS) as fields:
        return fields.required("file", _TORCH_WHEEL), fields.required("sha256", _SHA256)


_TORCH_WHEEL = matching(
    "the file name of a wheel of the torch set", r"torch(vision|audio)?-[A-Za-z0-9.+_-]{1,200}\.whl"
)
_TORCH_WHEELS: Kind[tuple[tuple[str, str], ...]] = list_of(
    Kind("a mapping of file and sha256", _torch_wheel, ("", "")), "a list of wheels"
)


def _bundle_part(place: Place) -> tuple[str, str]:
    with Fields(place, _SYNONYMS) as fields:
        return fields.required("name", LINE), fields.required("sha256", _SHA256)


_BUNDLE_PARTS: Kind[tuple[tuple[str, str], ...]] = list_of(
    Kind("a mapping of name and sha256", _bundle_part, ("", "")), "a list of parts"
)
_LOCK: Kind[Lock | None] = Kind("a mapping of manifest_sha256, locked_on and what was installed", _lock, None)


def _pack_id(place: Place) -> str:
    from provisioner.manifest.pack_names import complaint_about_pack  # most manifests pin no pack

    text = read_line(place)
    complaint = complaint_about_pack(text)
    if complaint is not None:
        raise RefusedError(f"{shown(text)} {complaint}")
    return text


_PACK_ID = Kind("the name of a folder of custom_nodes, like comfyui-kjnodes", _pack_id, "")
_PACK_VERSION = matching("a version like 1.2.3 or a commit", r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_NODE_CLASSES = list_of(LINE, "a list of classes of nodes")
_NO_COMMIT = GitCommit(repository="", commit="")
_NO_PACK = CustomNode(id="", source=_NO_COMMIT, read_from="", read_on="")


def _custom_node(place: Place) -> CustomNode:
    with Fields(place, _SYNONYMS) as fields:
        source: GitCommit | NodeArchive
        if fields.has("archive"):
            source = NodeArchive(
                url=fields.required("archive", _URL),
                size=fields.required("size", _PACK_SIZE),
                sha256=fields.required("sha256", _SHA256),
            )
        else:
            source = GitCommit(
                repository=fields.required("repository", _URL), commit=fields.required("commit", _REVISION)
            )
        return CustomNode(
            id=fields.required("id", _PACK_ID),
            source=source,
            version=fields.optional("version", _PACK_VERSION, None),
            read_from=fields.required("read_from", LINE),
            read_on=fields.required("read_on", _DATE),
            nodes=fields.optional("nodes", _NODE_CLASSES, ()),
        )


_PACK_SIZE = whole_number(f"the size of the archive in bytes, from 1 to {LARGEST_PACK}", 1, LARGEST_PACK)
_CUSTOM_NODES = list_of(
    Kind(
        "a pack: id, read_from, read_on, and repository and commit, or archive, size and sha256", _custom_node, _NO_PACK
    ),
    "a list of packs of custom nodes",
)


def _check_packs(place: Place, packs: tuple[CustomNode, ...]) -> None:
    """Report two packs in one folder; macOS and Windows see no difference between ``A`` and ``a``."""
    seen: dict[str, str] = {}
    for each in packs:
        other = seen.get(each.id.casefold())
        if each.id and other is not None:
            complaint = f"puts '{other}' and '{each.id}' into one folder"
            place.complain(
                f"{complaint}; expected a different name for each, ignoring the case of letters", "custom_nodes"
            )
        seen[each.id.casefold()] = each.id


def _manifest(place: Place, sha256: str) -> Manifest:
    with Fields(place, _SYNONYMS) as fields:
        schema_version = fields.required("schema_version", _SCHEMA_VERSION)
        artifacts = tuple(each for each in fields.required("artifacts", _ARTIFACTS) if each is not None)
        workflow = fields.optional("workflow", _WORKFLOW, None)
        one_set = Kind[ArtifactSet | None](
            "a set: a mapping with id, title, target and artifacts",
            partial(_set, known={each.id: each for each in artifacts}, workflow=workflow),
            None,
        )
        sets = fields.required("sets", list_of(one_set, "a list of sets, the preferred first"))
        value = Manifest(
            schema_version=schema_version,
            id=fields.required("id", _ID),
            title=fields.required("title", LINE),
            licence=fields.required("licence", _LICENCE),
            default_set=fields.required("default_set", _ID),
            sets=tuple(each for each in sets if each is not None),
            artifacts=artifacts,
            sha256=sha256,
            lock=fields.optional("lock", _LOCK, None),
            is_stand_in=fields.optional("is_stand_in", BOOLEAN, default=False),
            custom_nodes=fields.optional("custom_nodes", _CUSTOM_NODES, ()),
        )
    _check_packs(place, value.custom_nodes)
    _check_ids(place, "artifacts", [each.id for each in value.artifacts])
    _check_ids(place, "sets", [each.id for each in value.sets])
    _check_default(place, value)
    return value


def _check_ids(place: Place, key: str, ids: list[str]) -> None:
    seen: set[str] = set()
    for each in ids:
        if each and each in seen:
            place.complain(f"has two entries with the id '{each}'; expected every id once", key)
        seen.add(each)


def _check_default(place: Place, manifest: Manifest) -> None:
    ids = [each.id for each in manifest.sets]
    if manifest.default_set and ids and manifest.default_set not in ids:
        complaint = f"{shown(manifest.default_set)} is not a set of this manifest{nearest(manifest.default_set, ids)}"
        place.complain(f"{complaint}; expected one of {', '.join(ids)}", "default_set")


def parse_manifest(text: str, *, file: str) -> Manifest:
    """Return the manifest that `text` describes.

    Parameters
    ----------
    text : str
        YAML, at most 1 MiB of it.
    file : str
        Name of the text in complaints: a path, or an id.

    Returns
    -------
    Manifest
        Complete and consistent: every id resolves, every path stays inside its root on any system, every revision
        is a commit.  ``sha256`` is over the UTF-8 bytes of `text`.

    Raises
    ------
    ManifestError
        Something is wrong; ``issues`` holds every complaint as ``file:line: key.path: complaint``, in the order of
        the lines.  For a format newer than this program it contains only that.
    """
    kind = Kind[Manifest | None](
        "a mapping with schema_version, id, title, licence, default_set, sets and artifacts",
        # Hashed only once it is read: a text with half a character in it is rejected before.
        lambda place: _manifest(place, sha256=hashlib.sha256(text.encode()).hexdigest()),
        None,
    )
    return read_document(
        text,
        kind,
        file=file,
        known=SCHEMA_VERSION,
        what="manifest",
        newer="Update klein-setup, or use a manifest made for this version.",
        hint=_HINT,
    )
