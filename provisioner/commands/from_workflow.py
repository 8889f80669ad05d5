"""``manifest from-workflow``: a manifest of the model files that a workflow names, each with its digest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from provisioner.commands.manifest import shipped
from provisioner.commands.output_file import write_file
from provisioner.commands.pin_packs import NotPinnedPack, PackOptions, PackPinning
from provisioner.commands.session import Session
from provisioner.commands.workflow_source import FoundWorkflow, find_workflow
from provisioner.core.errors import (
    EXIT_FINDINGS,
    EXIT_OK,
    AccessError,
    IntegrityError,
    KleinError,
    ManifestError,
    UsageError,
)
from provisioner.core.events import Notice
from provisioner.core.json_reader import as_dict, as_list, parse_object
from provisioner.core.models import CustomNode, Finding, Fingerprint, HubFile, Manifest, ManifestWorkflow, UrlFile
from provisioner.core.redact import printable, redact
from provisioner.core.units import count, human_bytes, listing
from provisioner.files.hub_facts import FileFacts, HubFacts, RepositoryFacts
from provisioner.identify.safetensors_header import SafetensorsHeader, how_much_to_read, read_header
from provisioner.manifest.entries import manifest_text
from provisioner.manifest.parse import parse_manifest
from provisioner.report.outcome import Report
from provisioner.workflow.file_address import (
    Address,
    BadAddress,
    CivitaiAddress,
    HubAddress,
    PlainAddress,
    parse_address,
)
from provisioner.workflow.model_files import ModelFile, model_files
from provisioner.workflow.needed_packs import PackNeeds, needed_packs
from provisioner.workflow.pin_files import LicenceText, NotPinned, Offer, Pinned, manifest_of, pin, slug, why_not_asked
from provisioner.workflow.read_workflow import read_workflow

T = TypeVar("T")

CIVITAI = "https://civitai.com"
HUB = "https://huggingface.co"
_FIRST_READ = 256 * 1024
_MOST_ANSWER = 4 * 1024 * 1024
_SHOWN = 6  # classes in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class FromWorkflowOptions:
    """What the command line asks for."""

    workflow: str  # a file, an address, or the id of a template
    output: Path | None = None
    comfyui: Path | None = None
    digests: Mapping[str, str] = field(default_factory=dict)  # SHA-256 by file name
    civitai: str = CIVITAI
    server: str | None = None  # a ComfyUI that is asked which classes of nodes it has
    packs: PackOptions = field(default_factory=PackOptions)


def run_from_workflow(session: Session, options: FromWorkflowOptions, *, say: Callable[[str], None]) -> Report:
    """Write the manifest of a workflow; what cannot be pinned is listed, and is a finding.

    Raises
    ------
    UsageError
        There is no such workflow, it names no file, or the output is there already.
    IntegrityError
        Two places have different files of one name.
    NetworkError
        The Hub does not answer.
    NotWritableError
        The manifest cannot be written.
    """
    found = find_workflow(session, options.workflow, options.comfyui)
    flat = read_workflow(found.data, name=found.label)
    files = model_files(flat)
    _check_digests(options.digests, files)
    needs = needed_packs(flat, None if options.server is None else _classes_of(session, options.server))
    _check_versions(options.packs, needs)
    if not files:
        raise UsageError(
            f"{found.label} names no model file.",
            hint="A manifest has at least one. Its custom nodes can be installed in ComfyUI."
            if needs.packs
            else "Nothing has to be fetched for it: its nodes load no model.",
        )
    output = options.output or Path(f"{slug(found.name)}.yaml")
    if options.output is None and output.exists():
        raise UsageError(f"{output} is there already.", hint="Name another file, or this one, with --output FILE.")
    asking = _Asking(session, options)
    results = asking.pin_all(files)
    pinned = [each for each in results if isinstance(each, Pinned)]
    missing = [each for each in results if isinstance(each, NotPinned)]
    of_packs = PackPinning(session=session, options=options.packs).pin_all(needs.packs) if pinned else []
    packs = tuple(each for each in of_packs if isinstance(each, CustomNode))
    without_pin = [each for each in of_packs if isinstance(each, NotPinnedPack)]
    manifest = _written(found, pinned, packs, asking, output) if pinned else None
    _tell(say, files, pinned, missing, manifest)
    _tell_packs(say, needs, packs)
    if manifest is not None:
        words = ["--manifest", str(output), *(word for each in packs for word in ("--custom-node", each.id))]
        command = session.settings.program.command("install", words)
        say(f"{output} is written. Fetch and verify what it names: `{command}`")
    findings = (
        *map(_finding, missing),
        *map(_pack_finding, without_pin),
        *map(_unknown_finding, needs.unknown),
    )
    return Report(
        command="manifest from-workflow",
        status="findings" if findings else "ok",
        exit_status=EXIT_FINDINGS if findings else EXIT_OK,
        manifest=manifest,
        manifests=() if manifest is None else (manifest,),
        findings=findings,
    )


def _classes_of(session: Session, server: str) -> Mapping[str, object]:
    """Return what a running ComfyUI says of its classes of nodes; raises ServerNotUsableError."""
    from provisioner.comfyui.server.client import ComfyClient
    from provisioner.comfyui.server.launch import parse_address as parse_server

    parse_server(server)
    with ComfyClient(server, cancelled=session.cancelled.is_set) as client:
        return client.node_classes()


def _check_versions(options: PackOptions, needs: PackNeeds) -> None:
    names = [each.name for each in needs.packs]
    unknown = next((name for name in options.versions if name not in names), None)
    if unknown is not None:
        raise UsageError(
            f"--node-version names {printable(unknown)}, of which the workflow uses no node.",
            hint=f"It needs {', '.join(sorted(each.label for each in needs.packs)) or 'no custom nodes'}.",
        )


def _check_digests(digests: Mapping[str, str], files: Sequence[ModelFile]) -> None:
    names = {each.name for each in files}
    unknown = next((name for name in digests if name not in names), None)
    if unknown is not None:
        raise UsageError(
            f"--digest names {printable(unknown)}, which the workflow does not.",
            hint=f"It names {', '.join(sorted(map(printable, names))) or 'no model file'}.",
        )


def _written(
    found: FoundWorkflow,
    pinned: Sequence[Pinned],
    packs: tuple[CustomNode, ...],
    asking: _Asking,
    output: Path,
) -> Manifest:
    """Write the manifest and return it as it is read again, so that what was written is known to be one."""
    made = manifest_of(
        found.name,
        found.title,
        pinned,
        asking.fingerprints(pinned),
        min_comfyui=found.min_comfyui,
        workflow=_workflow_of(found, output),
        custom_nodes=packs,
        texts=asking.licence_texts,
    )
    label = " ".join(printable(found.label).split())
    text = f"# Made by `klein-setup manifest from-workflow` from {label}.\n{manifest_text(made)}"
    manifest = parse_manifest(text, file=output.name)
    write_file(text.encode("utf-8"), output)
    return manifest


def _workflow_of(found: FoundWorkflow, output: Path) -> ManifestWorkflow | None:
    """Return how the manifest names its workflow, None for a file that does not lie beside it.

    A copy is not made of it: strangers' links in it can hold signatures.
    """
    if found.is_template:
        return ManifestWorkflow(name=found.name)
    path = None if found.path is None else found.path.absolute()
    if path is None or path.parent != output.expanduser().absolute().parent:
        return None
    return ManifestWorkflow(name=path.name, sha256=hashlib.sha256(found.data).hexdigest())


def _fit(result: Pinned | NotPinned) -> Pinned | NotPinned:
    """Return a file that was pinned as one that was not, where a manifest would refuse it: what a stranger wrote."""
    if isinstance(result, NotPinned):
        return result
    try:
        parse_manifest(manifest_text(manifest_of("one", "one", [result], {})), file="one")
    except ManifestError as error:
        reason = error.issues[0].partition(": ")[2] if error.issues else str(error)
        return NotPinned(file=result.file, reason=f"a manifest does not take it: {reason}")
    return result


def _tell(
    say: Callable[[str], None],
    files: Sequence[ModelFile],
    pinned: Sequence[Pinned],
    missing: Sequence[NotPinned],
    manifest: Manifest | None,
) -> None:
    for each in pinned:
        off = f"; not read as the workflow stands: {each.file.why_off}" if each.file.why_off else ""
        known = f"; {each.artifact.note}" if each.artifact.note else ""
        gate = "; gated" if each.artifact.is_gated else ""
        licence = each.artifact.licence or "not stated"
        say(f"{each.file.label}  {human_bytes(each.artifact.size)}, licence {licence}{gate}{off}{known}")
    if manifest is None:
        say("No manifest was written: none of its files could be pinned.")
        return
    count = f"{len(pinned)} of {len(files)}" if missing else f"all {len(files)}"
    say(f"Pinned are {count} files ({human_bytes(sum(each.size for each in manifest.artifacts))}).")


def _tell_packs(say: Callable[[str], None], needs: PackNeeds, packs: Sequence[CustomNode]) -> None:
    for each in packs:
        version = f" {each.version}" if each.version else ""
        say(f"custom nodes {each.id}{version}  {each.pin}, third-party code from {redact(each.address)}")
    if needs.unused:
        say(f"Left out, as the workflow switches every node of theirs off: {listing(needs.unused)}.")
    if needs.unrecorded:
        number = count(len(needs.unrecorded), "class", "classes")
        say(
            f"The workflow names no pack for {number} of nodes. If some of them are not ComfyUI's own, --server URL "
            "finds out which: it asks a running ComfyUI."
        )


def _pack_finding(missing: NotPinnedPack) -> Finding:
    label = missing.pack.label
    classes = listing([printable(each)[:80] for each in missing.pack.nodes[:_SHOWN]])
    more = len(missing.pack.nodes) - _SHOWN
    return Finding(
        code="custom-nodes-not-pinned",
        severity="problem",
        message=f"The custom nodes {label} ({classes}{f' and {more} more' if more > 0 else ''}) are not in the "
        f"manifest: {missing.reason}.",
        remedy="by-hand",
        hint=f"If you know a version that works, give --node-version '{label}=VERSION' and run this again.",
    )


def _unknown_finding(kind: str) -> Finding:
    return Finding(
        code="unknown-custom-nodes",
        severity="problem",
        message=f"The workflow uses {printable(kind)[:80]}, of an unknown pack: it names none, and the ComfyUI that "
        "was asked does not have it.",
        remedy="by-hand",
        hint="Open the workflow in a ComfyUI that has the node, and save it again: the editor notes the pack.",
    )


def _finding(missing: NotPinned) -> Finding:
    label = printable(missing.file.label)
    off = f" (not read as the workflow stands: {missing.file.why_off})" if missing.file.why_off else ""
    return Finding(
        code="not-pinned",
        severity="problem",
        message=f"{label} is not in the manifest{off}: {missing.reason}.",
        remedy="by-hand",
        hint=f"If you know its SHA-256, give --digest '{printable(missing.file.name)}=SHA256' and run this again.",
    )


# --- asking ---------------------------------------------------------------------------------------


class _Asking:
    """Asks the Hub and Civitai about the files of one workflow, each repository once."""

    def __init__(self, session: Session, options: FromWorkflowOptions) -> None:
        self._session = session
        self._options = options
        self._known = tuple(artifact for manifest in shipped() for artifact in manifest.artifacts)
        self._repositories: dict[tuple[str, str], RepositoryFacts | KleinError] = {}
        self._files: dict[tuple[str, str], FileFacts] = {}  # by commit and file name
        self.licence_texts: dict[str, LicenceText] = {}  # by repository
        self._today = time.strftime("%Y-%m-%d", time.gmtime())

    def pin_all(self, files: Sequence[ModelFile]) -> list[Pinned | NotPinned]:
        """Return every file with its digest, or with the reason why it has none."""
        addresses = {
            url: parse_address(
                url, endpoint=self._session.endpoint, allows_loopback=self._session.settings.allows_loopback
            )
            for each in files
            for url in each.urls
        }
        if not self._session.is_offline:
            self._ask_hub([each for each in addresses.values() if isinstance(each, HubAddress)])
        found: list[Pinned | NotPinned] = []
        for file in files:
            given = self._options.digests.get(file.name)
            why = why_not_asked(file, given)
            if why is not None:
                found.append(NotPinned(file=file, reason=why))
                continue
            offers: list[Offer] = []
            refusals: list[str] = []
            for url in file.urls:
                answer = self._offer(url, addresses[url], given)
                if isinstance(answer, Offer):
                    offers.append(answer)
                else:
                    refusals.append(answer)
            found.append(_fit(pin(file, offers, refusals, given=given, known=self._known, read_on=self._today)))
        return found

    def fingerprints(self, pinned: Sequence[Pinned]) -> dict[str, Fingerprint]:
        """Return what the headers of the pinned safetensors files say, by SHA-256; a few kilobytes of each are read."""
        found: dict[str, Fingerprint] = {}
        for each in pinned:
            artifact = each.artifact
            source = artifact.sources[0]
            is_wanted = artifact.fingerprint is None and artifact.name.casefold().endswith((".safetensors", ".sft"))
            if self._session.is_offline or not is_wanted or not isinstance(source, HubFile):
                continue
            try:
                header = self._header(source, artifact.size)
            except (AccessError, IntegrityError) as error:  # gated: its digest is public, its bytes are not
                self._warn(f"The header of {artifact.name} was not read: {error}")
                continue
            if header is not None:
                found[artifact.sha256] = Fingerprint(
                    tensors=len(header.tensors),
                    header_bytes=header.header_bytes,
                    payload_bytes=header.payload_bytes,
                    schema_sha256=header.schema_sha256,
                    dtypes=header.dtypes,
                    proof="read from the header of the file",
                )
        return found

    def _header(self, source: HubFile, size: int) -> SafetensorsHeader | None:
        data = self._hub(lambda hub: hub.beginning(source, _FIRST_READ))
        needed = how_much_to_read(data[:8])
        if needed > len(data) == _FIRST_READ:
            data = self._hub(lambda hub: hub.beginning(source, needed))
        header = read_header(data, size)
        return header if isinstance(header, SafetensorsHeader) and header.tensors else None

    def _warn(self, message: str) -> None:
        self._session.events(Notice(message=message, severity="warning"))

    # --- the Hub ---

    def _hub(self, ask: Callable[[HubFacts], T]) -> T:
        cancelled = self._session.cancelled.is_set
        return self._session.fetcher.with_or_without_token(lambda credentials: ask(HubFacts(credentials, cancelled)))

    def _ask_hub(self, addresses: Sequence[HubAddress]) -> None:
        """Ask about every repository once; what it denies is remembered, a network that fails ends the command."""
        wanted: dict[tuple[str, str], list[str]] = {}
        for each in addresses:
            wanted.setdefault((each.repo_id, each.revision), []).append(each.filename)
        for (repo_id, revision), filenames in wanted.items():
            self._repositories[repo_id, revision] = self._about(repo_id, revision, filenames)

    def _about(self, repo_id: str, revision: str, filenames: list[str]) -> RepositoryFacts | KleinError:
        try:
            facts = self._hub(lambda hub: hub.repository(repo_id, None if revision == "main" else revision))
            files = self._hub(lambda hub: hub.files(facts.repo_id, facts.commit, filenames))
        except (AccessError, IntegrityError) as error:
            return error
        if facts.repo_id.casefold() != repo_id.casefold():
            self._warn(f"{repo_id} is called {facts.repo_id} now; the manifest has the new name.")
        self._files |= {(facts.commit, name): each for name, each in files.items()}
        if facts.licence_file is not None:
            self._read_licence(facts, facts.licence_file)
        return facts

    def _read_licence(self, facts: RepositoryFacts, name: str) -> None:
        """Remember where the text of a licence is; its bytes are compared with the id that the Hub lists."""
        try:
            found = self._hub(lambda hub: hub.files(facts.repo_id, facts.commit, [name])).get(name)
        except (AccessError, IntegrityError) as error:
            self._warn(f"The licence of {facts.repo_id} was not read: {error}")
            return
        if found is not None and not found.is_lfs:
            page = f"{HUB}/{facts.repo_id}/blob/{facts.commit}/{name}"
            self.licence_texts[facts.repo_id] = LicenceText(page=page, git_oid=found.git_oid)

    def _offer(self, url: str, address: Address, given: str | None) -> Offer | str:
        """Return what a link leads to, or why to nothing, as a clause."""
        match address:
            case BadAddress(complaint=complaint):
                return f"its link {complaint}"
            case HubAddress():
                return self._hub_offer(address)
            case CivitaiAddress(version=version):
                return self._civitai_offer(version)
            case PlainAddress():
                return self._plain_offer(url, given)

    def _hub_offer(self, address: HubAddress) -> Offer | str:
        facts = self._repositories.get((address.repo_id, address.revision))
        if facts is None:
            return "the Hub was not asked, as the network is off"
        if isinstance(facts, KleinError):
            return f"{facts}"
        label = f"{facts.repo_id}/{address.filename}"
        file = self._files.get((facts.commit, address.filename))
        if file is None:
            return f"{facts.repo_id} has no file {printable(address.filename)} at its commit {facts.commit[:12]}"
        return Offer(
            label=label,
            source=HubFile(repo_id=facts.repo_id, revision=facts.commit, filename=address.filename),
            size=file.size,
            sha256=file.sha256,
            read_from="the Hub" if file.is_lfs else "the Hub, by reading the whole file",
            licence=facts.licence,
            is_gated=facts.is_gated,
            is_lfs=file.is_lfs,
            git_oid=file.git_oid,
        )

    # --- elsewhere ---

    def _civitai_offer(self, version: int) -> Offer | str:
        """Return what Civitai says of a version's main file; its API is documented at developer.civitai.com."""
        from provisioner.files.download.small_file import fetch_bytes, patiently

        if self._session.is_offline:
            return "Civitai was not asked, as the network is off"
        api = f"{self._options.civitai.rstrip('/')}/api/v1/model-versions/{version}"
        try:
            answer = patiently(lambda: fetch_bytes(api, most=_MOST_ANSWER), cancelled=self._session.cancelled.is_set)
        except AccessError as error:
            return f"Civitai does not show version {version}: {error}"
        files = [as_dict(each) for each in as_list(as_dict(parse_object(answer)).get("files"))]
        chosen = next((each for each in files if each.get("primary") is True), files[0] if files else {})
        sha256, kilobytes = as_dict(chosen.get("hashes")).get("SHA256"), chosen.get("sizeKB")
        if not isinstance(sha256, str) or not isinstance(kilobytes, (int, float)) or not 0 < kilobytes < 2**40:
            return f"Civitai states no SHA-256 and size for version {version}"
        address = f"https://civitai.com/api/download/models/{version}"
        return Offer(
            label=f"civitai.com version {version}",
            source=UrlFile(url=address),
            size=round(kilobytes * 1024),
            sha256=sha256.lower(),
            read_from="Civitai",
        )

    def _plain_offer(self, url: str, given: str | None) -> Offer | str:
        from provisioner.files.download.small_file import fetch_size, patiently
        from provisioner.network.http_session import shown

        if given is None:
            return f"{shown(url)} states no SHA-256"
        if self._session.is_offline:
            return "its size was not asked for, as the network is off"
        try:
            size = patiently(lambda: fetch_size(url), cancelled=self._session.cancelled.is_set)
        except AccessError as error:
            return f"{error}".rstrip(".")
        if size is None:
            return f"{shown(url)} does not say how long it is"
        return Offer(
            label=shown(url),
            source=UrlFile(url=url),
            size=size,
            sha256=given,
            read_from="a digest that was given by hand",
            is_own_word=False,
        )
