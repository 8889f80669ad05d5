"""Pins the packs of custom nodes that a workflow needs: a commit that its repository has, or an archive's SHA-256.

Nothing that is fetched here is run or kept: an archive is hashed, unpacked into a folder that is gone afterwards, and
that is all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner.core.errors import KleinError, ManifestError, NetworkError
from provisioner.core.hosts import LOOPBACK
from provisioner.core.json_reader import parse_object
from provisioner.core.models import (
    Artifact,
    ArtifactSet,
    CustomNode,
    GitCommit,
    Licence,
    Manifest,
    NodeArchive,
    UrlFile,
)
from provisioner.disk.root import scratch_folder
from provisioner.files.store.hash_file import hash_file
from provisioner.manifest.entries import manifest_text
from provisioner.manifest.pack_names import complaint_about_pack
from provisioner.manifest.parse import LARGEST_PACK, parse_manifest
from provisioner.workflow.needed_packs import (
    GITHUB,
    NeededPack,
    Wanted,
    archive_in,
    folder_of,
    pack_address,
    repository_address,
    repository_in,
    version_address,
    wanted_version,
)

if TYPE_CHECKING:
    from provisioner.commands.session import Session

REGISTRY = "https://api.comfy.org"
_MOST_ANSWER = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """What the command line asks for."""

    registry: str = REGISTRY
    github: str = GITHUB
    versions: dict[str, str] = field(default_factory=dict)  # by the name of the pack: instead of what the workflow says


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPinnedPack:
    """A pack that is not in the manifest, and why, as a clause."""

    pack: NeededPack
    reason: str


@dataclass(kw_only=True)
class PackPinning:
    """Asks the registry and the repositories about the packs of one workflow.

    Parameters
    ----------
    session : Session
        What to work with.
    options : PackOptions
        Whom to ask.
    timeout_s : float
        Seconds for an answer of the registry.
    """

    session: Session
    options: PackOptions = field(default_factory=PackOptions)
    timeout_s: float = 20.0
    _silent: str | None = None  # why the registry is not asked any more

    def pin_all(self, packs: Sequence[NeededPack]) -> list[CustomNode | NotPinnedPack]:
        """Return every pack with what proves it, or with the reason why nothing does."""
        found: list[CustomNode | NotPinnedPack] = []
        folders: dict[str, str] = {}
        for pack in packs:
            try:
                answer = self._pinned(pack)
            except KleinError as error:
                answer = f"{error}".rstrip(".")
            if isinstance(answer, CustomNode):
                other = folders.setdefault(answer.id.casefold(), pack.label)
                if other != pack.label:
                    answer = f"its folder {answer.id} would be that of {other}, on a system that takes A for a"
            found.append(answer if isinstance(answer, CustomNode) else NotPinnedPack(pack=pack, reason=answer))
        return found

    def _pinned(self, pack: NeededPack) -> CustomNode | str:
        wanted = wanted_version(pack, self.options.versions.get(pack.name))
        if isinstance(wanted, str):
            return wanted
        name = folder_of(wanted)
        complaint = complaint_about_pack(name)
        if complaint is not None:
            return f"the name of its folder {complaint}"
        source = self._commit(wanted) if wanted.kind == "commit" else self._archive(wanted)
        if isinstance(source, str):
            return source
        is_named = pack.name in self.options.versions
        by = "a version that was given by hand" if is_named else "the workflow"
        asked = "the Comfy registry" if isinstance(source, NodeArchive) else "its repository"
        made = CustomNode(
            id=name,
            source=source,
            version=wanted.version.removeprefix("v") if wanted.kind == "release" else None,
            read_from=f"{by}; {asked}" if not self.session.is_offline else f"{by}; nobody was asked",
            read_on=time.strftime("%Y-%m-%d", time.gmtime()),
            nodes=tuple(each for each in pack.nodes if _is_line(each)),
        )
        return _fit(made)

    # --- a commit ---

    def _commit(self, wanted: Wanted) -> GitCommit | str:
        """Return a commit of a repository, fetched once to know that it is there."""
        if wanted.repository is not None:
            address: str | None = repository_address(wanted.repository, self.options.github)
        else:
            address = repository_in(self._ask(pack_address(self.options.registry, wanted)), self.options.github)
        if address is None:
            return "the registry names no repository of it"
        complaint = self._complaint(address)
        if complaint is not None:
            return complaint
        if not self.session.is_offline:
            self._fetch(address, wanted.version)
        return GitCommit(repository=address, commit=wanted.version)

    def _fetch(self, address: str, commit: str) -> None:
        """Raise where a repository does not have a commit; without git nobody is asked, and the commit is the proof."""
        from provisioner.comfyui.release_models import WantedCommit

        hint = "Name another version of it with --node-version ID=COMMIT."
        wanted = WantedCommit(what="the custom nodes", commit=commit, elsewhere=hint)
        with scratch_folder("klein-setup-pack-") as folder:
            git = self.session.checkouts.git_in(folder, _silent, is_ours=True)
            if git is None:
                self.session.notice(f"git is not installed, so {address} was not asked for the commit {commit[:12]}.")
                return
            git.do("init", "--quiet", doing="make a repository")
            git.fetch(wanted, address, is_shallow=True)

    # --- an archive ---

    def _archive(self, wanted: Wanted) -> NodeArchive | str:
        """Return the archive of a version with its SHA-256, which nobody states: it is fetched, hashed and unpacked."""
        from provisioner.comfyui.checkout.archive import Bounds, unpack

        if self.session.is_offline:
            return "its archive was not fetched, as the network is off, and nobody states its SHA-256"
        url, why_not = archive_in(self._ask(version_address(self.options.registry, wanted)), wanted)
        if url is None:
            return str(why_not)
        complaint = self._complaint(url)
        if complaint is not None:
            return complaint
        what, hint = (
            f"the custom nodes {wanted.registry_id}",
            "Name another version of it with --node-version ID=VERSION.",
        )
        with scratch_folder("klein-setup-pack-") as folder:
            path = folder / "pack"
            self.session.whole_files.fetch(url, path, what=what, hint=hint, most_bytes=LARGEST_PACK, progress=_silent)
            bounds = Bounds(what=what, elsewhere=hint, has_folder=False)
            unpack(path, folder / "unpacked", bounds=bounds, cancelled=self.session.cancelled.is_set)
            found = hash_file(path, progress=lambda _: None, cancelled=self.session.cancelled.is_set)
            return NodeArchive(url=url, size=found.size, sha256=found.sha256)

    # --- asking ---

    def _ask(self, url: str) -> object:
        """Return what the registry answers; raises KleinError.  One that did not answer is not asked again."""
        from provisioner.core.errors import OfflineError, UnreachableError
        from provisioner.files.download.small_file import fetch_bytes

        if self.session.is_offline:
            raise OfflineError("The registry was not asked, as the network is off.", hint="Run it without --offline.")
        if self._silent is not None:
            raise UnreachableError(self._silent, hint="Run the same command again later.")
        try:
            answer = fetch_bytes(url, most=_MOST_ANSWER, accept="application/json", timeout_s=self.timeout_s)
        except NetworkError as error:
            self._silent = str(error)
            raise
        return parse_object(answer)

    def _complaint(self, address: str) -> str | None:
        """Return why a stranger's address is not followed: servers of this machine are none of their business."""
        from urllib.parse import urlsplit

        try:
            host = urlsplit(address).hostname
        except ValueError:
            return "its address is none"
        if host in LOOPBACK and not self.session.settings.allows_loopback:
            return "it is at an address of this machine"
        made = CustomNode(
            id="pack", source=GitCommit(repository=address, commit="0" * 40), read_from="a", read_on="2026-11-27"
        )
        fit = _fit(made)
        return fit if isinstance(fit, str) else None


def _silent(line: str) -> None:
    """Listen to nothing."""


def _is_line(text: str) -> bool:
    return text.isprintable() and text == text.strip() and 0 < len(text) <= 200


def _fit(pack: CustomNode) -> CustomNode | str:
    """Return a pack as a manifest takes it, or why none does."""
    file = Artifact(
        id="one",
        role="other",
        name="one",
        folder="one",
        size=1,
        sha256="0" * 64,
        sources=(UrlFile(url="https://example.org/one"),),
    )
    manifest = Manifest(
        schema_version=1,
        id="one",
        title="one",
        licence=Licence(name="one", url="https://example.org", is_commercial_use_allowed=True),
        default_set="one",
        sets=(ArtifactSet(id="one", title="one", target="comfyui", artifacts=(file,)),),
        artifacts=(file,),
        sha256="",
        custom_nodes=(pack,),
    )
    try:
        parse_manifest(manifest_text(manifest), file="one")
    except ManifestError as error:
        reason = error.issues[0].partition(": ")[2] if error.issues else str(error)
        return f"a manifest does not take it: {reason}"
    return pack
