"""From what a workflow names, and what servers say of it, to the artifacts of a manifest.

Decides which places really have the same file, and what cannot be pinned.  A digest that nobody stated is never made
up: such a file is left out, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from provisioner.core.errors import NotTheFileError
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    CustomNode,
    Fingerprint,
    HubFile,
    Licence,
    Manifest,
    ManifestWorkflow,
    OciFile,
    Provenance,
    Source,
)
from provisioner.core.redact import printable
from provisioner.workflow.model_files import PICKLES, ModelFile

_FREE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense"})
"""Licences that allow commercial use, by the Hub's name for them."""

_NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A place that has a file, and what it says of it."""

    label: str  # for a person
    source: Source
    size: int  # bytes
    sha256: str
    read_from: str  # for the provenance: "the Hub"
    is_own_word: bool = True  # the place itself states the digest
    licence: str | None = None
    is_gated: bool = False
    is_lfs: bool = True
    git_oid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceText:
    """The text of a repository's licence at one commit."""

    page: str  # where a person reads it
    git_oid: str  # its git blob id, which its bytes were compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """A file of a workflow with its digest."""

    file: ModelFile
    artifact: Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPinned:
    """A file of a workflow that no digest is known of."""

    file: ModelFile
    reason: str  # a clause: "its link is http, which others on the network can change"


def why_not_asked(file: ModelFile, given: str | None) -> str | None:
    """Return why nobody needs to be asked about a file, None where somebody is.

    Parameters
    ----------
    file : ModelFile
        From the workflow.
    given : str or None
        Its SHA-256, as the user knows it.
    """
    if file.complaint is not None:
        return f"its name or folder {file.complaint}"
    if file.folder is None:
        return f"the node {file.nodes[0]} is not known, so neither is the folder it reads"
    if file.name.casefold().endswith(PICKLES) and given is None:
        return "it is a pickle, which can run code when it is loaded; it is taken only where you give its SHA-256"
    return None


def pin(
    file: ModelFile,
    offers: Sequence[Offer],
    refusals: Sequence[str],
    *,
    given: str | None,
    known: Sequence[Artifact],
    read_on: str,
) -> Pinned | NotPinned:
    """Return the artifact of a file.

    Parameters
    ----------
    file : ModelFile
        From the workflow.
    offers : sequence of Offer
        Who has it.
    refusals : sequence of str
        Why others that its links name do not, a clause each.
    given : str or None
        Its SHA-256, as the user knows it.
    known : sequence of Artifact
        What the shipped manifests have.
    read_on : str
        ISO date of today.

    Raises
    ------
    NotTheFileError
        Two places have different files of that name, and nothing says which is meant.
    """
    stated = (given,) if given else file.sha256
    fitting = [each for each in offers if not stated or each.sha256 in stated]
    if offers and not fitting:
        said = "you gave" if given else "the workflow states"
        return NotPinned(
            file=file, reason=f"{said} the SHA-256 {stated[0]}, and {offers[0].label} has {offers[0].sha256}"
        )
    _check_agreement(file, fitting)
    if fitting:
        return Pinned(file=file, artifact=_artifact(file, fitting, known, read_on))
    own = _shipped(file, known, given)
    if own is not None:
        return Pinned(file=file, artifact=own)
    return NotPinned(file=file, reason="; ".join(refusals) or "the workflow has no link to it")


def _check_agreement(file: ModelFile, offers: Sequence[Offer]) -> None:
    others = [each for each in offers if each.sha256 != offers[0].sha256]
    if not others:
        return
    first, other = offers[0], others[0]
    raise NotTheFileError(
        f"{printable(file.label)} is two different files: {first.label} has the SHA-256 {first.sha256} "
        f"({first.size:,} bytes), {other.label} has {other.sha256} ({other.size:,} bytes).",
        hint=f"Say which is meant with --digest '{printable(file.name)}=SHA256'.",
        first=first.sha256,
        second=other.sha256,
    )


def _artifact(file: ModelFile, offers: Sequence[Offer], known: Sequence[Artifact], read_on: str) -> Artifact:
    first = offers[0]
    twins = [each for each in known if each.sha256 == first.sha256]
    sources = _once((*(each.source for each in offers), *(source for each in twins for source in each.sources)))
    folder, name = _place(file)
    is_pickle = name.casefold().endswith(PICKLES)
    note = "A pickle, which can run code when it is loaded; its SHA-256 was given by hand." if is_pickle else None
    return Artifact(
        id=slug(name.rpartition(".")[0]),
        role="other" if is_pickle else file.role,
        name=name,
        folder=folder,
        size=first.size,
        sha256=first.sha256,
        sources=sources,
        lookalikes=twins[0].lookalikes if twins else (),
        provenance=Provenance(
            read_from=first.read_from,
            read_on=read_on,
            agreeing=len({each.label for each in offers}),
            confidence="high" if first.is_own_word else "medium",
        ),
        licence=next((each.licence for each in offers if each.licence), None),
        is_gated=all(each.is_gated for each in offers),
        is_lfs=first.is_lfs,
        git_oid=None if first.is_lfs else first.git_oid,
        min_comfyui=twins[0].min_comfyui if twins else None,
        note=note,
    )


def _shipped(file: ModelFile, known: Sequence[Artifact], given: str | None) -> Artifact | None:
    """Return what a shipped manifest knows by name; of links, one has to lead to its source."""
    folder, name = _place(file)
    for each in known:
        if (each.folder, each.name) != (folder, name) or given not in (None, each.sha256):
            continue
        tails = [f"/{source.filename}" for source in each.sources if isinstance(source, HubFile)]
        owners = {source.repo_id.partition("/")[0].casefold() for source in each.sources if isinstance(source, HubFile)}
        links = [url.partition("?")[0] for url in file.urls]
        is_same = any(
            link.endswith(tuple(tails)) and any(f"/{owner}/" in link.casefold() for owner in owners) for link in links
        )
        if is_same or not links:
            how = "by its name and link" if links else "by its name alone"
            return replace(
                each,
                id=slug(name.rpartition(".")[0]),
                accept=(),
                note=f"Known {how} from a manifest of klein-setup; no server was asked.",
            )
    return None


def _place(file: ModelFile) -> tuple[str, str]:
    """Return folder and name; a folder in the name belongs to the first."""
    below, _, name = file.name.rpartition("/")
    return (f"{file.folder}/{below}" if below else str(file.folder)), name


def _once(sources: Iterable[Source]) -> tuple[Source, ...]:
    return tuple(dict.fromkeys(sources))


# --- the manifest ---------------------------------------------------------------------------------


def slug(text: str) -> str:
    """Return an id for a manifest or an artifact.

    >>> slug("Some_Model (v2)"), slug("---"), slug("x" * 99)
    ('some_model-v2', 'file', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx')
    """
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.casefold()).strip("-._")
    return plain[:56].rstrip("-._") or "file"


def manifest_of(
    name: str,
    title: str,
    pinned: Sequence[Pinned],
    fingerprints: Mapping[str, Fingerprint],
    *,
    min_comfyui: str | None = None,
    workflow: ManifestWorkflow | None = None,
    custom_nodes: tuple[CustomNode, ...] = (),
    texts: Mapping[str, LicenceText] = MappingProxyType({}),
) -> Manifest:
    """Return the manifest of what was pinned: a set of what a run reads, and where that is less a set of everything.

    Parameters
    ----------
    name, title : str
        Of the workflow.
    pinned : sequence of Pinned
        At least one.
    fingerprints : mapping of str to Fingerprint
        By SHA-256, of those headers that were read.
    min_comfyui : str or None
        The first version of ComfyUI that runs the workflow, as its index says.
    workflow : ManifestWorkflow or None
        The workflow itself, which makes the test image.
    custom_nodes : tuple of CustomNode
        The packs whose nodes it uses.
    texts : mapping of str to LicenceText
        Of the licences, by repository, where they are known.
    """
    artifacts: dict[str, Artifact] = {}
    needed: list[Artifact] = []
    for each in pinned:
        key = next(key for key in _ids(each.artifact.id) if key not in artifacts)
        artifact = replace(
            each.artifact,
            id=key,
            fingerprint=fingerprints.get(each.artifact.sha256) or each.artifact.fingerprint,
            min_comfyui=newest(each.artifact.min_comfyui, min_comfyui),
        )
        artifacts[key] = artifact
        needed += [artifact] if each.file.why_off is None else []
    every = tuple(artifacts.values())
    sets = [_set("workflow", f"{title}: what it reads", needed, workflow)] if needed else []
    if len(needed) < len(every):
        sets.append(_set("everything", f"{title}: with what stands switched off in it", every, workflow))
    return Manifest(
        schema_version=1,
        id=slug(name),
        title=title,
        licence=_licence(slug(name), every, texts),
        default_set=sets[0].id,
        sets=tuple(sets),
        artifacts=every,
        sha256="",
        custom_nodes=custom_nodes,
    )


def _ids(first: str) -> Iterable[str]:
    yield first
    yield from (f"{first}-{number}" for number in range(2, 10_000))


def _set(key: str, title: str, artifacts: Iterable[Artifact], workflow: ManifestWorkflow | None) -> ArtifactSet:
    return ArtifactSet(id=key, title=title, target="comfyui", artifacts=tuple(artifacts), workflow=workflow)


def newest(*versions: str | None) -> str | None:
    """Return the newest of some versions.

    >>> newest("0.9.2", None, "0.11.0"), newest(None)
    ('0.11.0', None)
    """
    known = [each for each in versions if each]
    return max(known, key=lambda each: [int(part) for part in each.split(".")], default=None)


def _licence(manifest_id: str, artifacts: Sequence[Artifact], texts: Mapping[str, LicenceText]) -> Licence:
    """Return the licence of all together: free where each is known to allow commercial use, else one to accept."""
    named = {each.licence or _NOT_STATED: _page(each, texts) for each in reversed(artifacts)}
    asking = {name: page for name, page in named.items() if name.casefold() not in _FREE}
    oids = {each.page: each.git_oid for each in texts.values()}
    if not asking:
        url = _page(artifacts[0], texts)
        return Licence(name=", ".join(sorted(named)), url=url, is_commercial_use_allowed=True, git_oid=oids.get(url))
    pages = "; ".join(f"{name}: {page}" for name, page in sorted(asking.items()))
    url = next(reversed(asking.values()))
    return Licence(
        id=f"{manifest_id[:50].rstrip('-._')}-licences",
        name=", ".join(sorted(named)),
        url=url,
        is_commercial_use_allowed=None,
        commercial_use_condition="as far as the texts below allow it, which klein-setup has not read",
        notice=f"Read what these licences allow before you use the files commercially: {pages}",
        git_oid=oids.get(url),
    )


def _page(artifact: Artifact, texts: Mapping[str, LicenceText]) -> str:
    """Return where a person reads about a file: the text of its licence, else the page of its repository."""
    source = artifact.sources[0]
    if isinstance(source, HubFile):
        text = texts.get(source.repo_id)
        return f"https://huggingface.co/{source.repo_id}" if text is None else text.page
    return "https://huggingface.co" if isinstance(source, OciFile) else source.url.partition("?")[0]
