"""Which hosts a plan contacts, known before it contacts one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from provisioner.comfyui.install_plan import is_archive, is_web_address
from provisioner.comfyui.which_release import tags_address
from provisioner.core.exhaustive import assert_never
from provisioner.core.models import (
    FetchFile,
    HubCacheTarget,
    HubFile,
    OciFile,
    PatchFile,
    PlaceFile,
    Registry,
    Source,
    UrlFile,
)
from provisioner.files.offers import sources_of
from provisioner.plan.steps import (
    FILE_STEPS,
    GenerateImage,
    GetComfyUI,
    HostUse,
    HostWhen,
    InstallNodePack,
    InstallPackages,
    MakeEnvironment,
    Plan,
    PlanHosts,
    RepairEnvironment,
    Step,
    UpdateComfyUI,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a run looks for what it fetches."""

    endpoint: str  # of the Hub
    indexes: Sequence[str]  # of packages: the first one, extra ones, pages of links
    has_git: bool  # else ComfyUI comes as an archive
    registry: Registry | None = None  # asked first for every file
    bundle: str | None = None  # the registry that everything comes from: that of a bundle


# Where a host sends a download.  The Hub: huggingface/hub-docs, models-downloading.md, "Downloading behind a proxy or
# firewall" (pull 2628, 2026-07).  PyTorch: its pages name wheels on download-r2, and those of pure Python packages on
# PyPI's own host (pytorch/ci-infra issue 660, 2026-05).  PyPI and GitHub: as their pages and archives answer, 2026-11.
# Docker Hub: its allow list, token service included (docker/docs pull 25122, 2026).  Quay: Red Hat's note on firewalls
# (access.redhat.com/node/7001746, 2023).
REDIRECTS: Mapping[str, tuple[str, ...]] = {
    "huggingface.co": ("*.hf.co", "*.xethub.hf.co", "*.huggingface.co"),
    "pypi.org": ("files.pythonhosted.org",),
    "download.pytorch.org": ("download-r2.pytorch.org", "files.pythonhosted.org"),
    "github.com": ("codeload.github.com",),
    "registry-1.docker.io": (
        "auth.docker.io",
        "production.cloudflare.docker.com",
        "production.cloudfront.docker.com",
        "*.r2.cloudflarestorage.com",
    ),
    "quay.io": ("cdn.quay.io", "cdn01.quay.io", "cdn02.quay.io", "cdn03.quay.io"),
}
_FINAL = frozenset({"files.pythonhosted.org", "codeload.github.com"})

_FILES, _PACKAGES, _TORCH, _COMFYUI = "model files", "packages of Python", "torch", "ComfyUI"
_IMAGE, _NODES = "the test image", "custom nodes"


def hosts_of(plan: Plan, addresses: Addresses, proxy_for: Callable[[str], str | None]) -> PlanHosts:
    """Return every host that applying a plan contacts.

    ComfyUI and its custom nodes are not in it: what they do once they run, they decide themselves.

    Parameters
    ----------
    plan : Plan
        The steps.
    addresses : Addresses
        Where they look.
    proxy_for : callable
        Returns the proxy, without its login, through which an address is reached; None for none.
    """
    found: dict[tuple[str, int, str], HostUse] = {}
    open_ended: list[str] = []

    def add(use: HostUse) -> None:
        key = (use.host, use.port, use.what)
        if key not in found or _rank(use) < _rank(found[key]):
            found[key] = use

    for url, what, when in _asked(plan, addresses):
        named = _host_of(url)
        if named is None:
            continue
        host, port, scheme = named
        proxy = proxy_for(f"{scheme}://{host}:{port}/") if scheme in {"http", "https"} else None
        add(HostUse(host=host, port=port, what=what, when=when, proxy=proxy))
        leads = () if host == "github.com" and addresses.has_git else REDIRECTS.get(host)
        for other in leads or ():
            via = proxy_for(f"https://{other.replace('*', 'any')}/")
            add(HostUse(host=other, port=443, what=what, when="redirect" if when == "always" else when, proxy=via))
        if leads is None and host not in _FINAL and host not in open_ended and scheme in {"http", "https"}:
            open_ended.append(host)
    ordered = sorted(found.values(), key=_rank)
    return PlanHosts(uses=tuple(ordered), open_ended=tuple(open_ended))


def _rank(use: HostUse) -> int:
    return ("always", "redirect", "if-needed").index(use.when)


def _asked(plan: Plan, addresses: Addresses) -> Iterator[tuple[str, str, HostWhen]]:
    """Return the addresses that are asked, for what, and whether for sure."""
    is_confirmed = isinstance(plan.target, HubCacheTarget) and not plan.target.is_shipped
    for step in plan.to_do:
        if isinstance(step, FILE_STEPS):
            fetches = isinstance(step, (FetchFile, PatchFile))
            for number, source in enumerate(sources_of(step.artifact, addresses.registry)):
                is_sure = (fetches and number == 0) or (is_confirmed and isinstance(source, HubFile))
                if is_sure or fetches or isinstance(step, PlaceFile):  # a copy may turn out to be another file
                    yield _address_of(source, addresses), _FILES, "always" if is_sure else "if-needed"
        else:
            for url, what, when in _asked_by(step, addresses):
                yield url if addresses.bundle is None or what == _IMAGE else addresses.bundle, what, when


def _address_of(source: Source, addresses: Addresses) -> str:
    match source:
        case HubFile():
            return addresses.endpoint
        case OciFile():
            return source.repository.base
        case UrlFile():
            return source.url
        case _:
            assert_never(source)


def _asked_by(step: Step, addresses: Addresses) -> Iterator[tuple[str, str, HostWhen]]:
    match step:
        case GetComfyUI() | UpdateComfyUI():
            yield step.source, _COMFYUI, "always"
            is_server = is_web_address(step.source) and not is_archive(step.source)
            if not step.release.commit and is_server and not addresses.has_git:  # it says which commit a version is
                yield tags_address(step.source, 1), _COMFYUI, "always"
        case MakeEnvironment() | RepairEnvironment():
            index = step.choice.build.index_url
            for url in addresses.indexes if index is None else (index,):
                yield url, _TORCH, "always"
            for url in addresses.indexes:  # a newer pip, and what the index of torch lacks
                yield url, _PACKAGES, "if-needed"
        case InstallNodePack():
            yield step.pack.address, _NODES, "always"
            for url in addresses.indexes:
                yield url, _PACKAGES, "if-needed"
        case InstallPackages():
            for url in (*addresses.indexes, *_direct(step.lines or ())):
                yield url, _PACKAGES, "always"
        case GenerateImage() if step.server is not None:
            yield step.server, _IMAGE, "always"


def _direct(lines: Iterable[str]) -> list[str]:
    """Return the addresses in requirement lines such as ``name @ https://host/x.whl`` and ``git+https://host/x``."""
    return re.findall(r"(?:https?|ssh)://\S+", " ".join(lines))


def _host_of(address: str) -> tuple[str, int, str] | None:
    """Return host, port and scheme of an address; None for what is on this disk."""
    if re.match(r"[A-Za-z]:[\\/]", address):
        return None
    of_ssh = re.match(r"(?:[^/@:]+@)?([^/:@]+):(?!//|[\\/])", address)  # git@host:path
    if "://" not in address:
        return (of_ssh[1].lower(), 22, "ssh") if of_ssh else None
    parts = urlsplit(address)
    ports = {"http": 80, "https": 443, "ssh": 22, "git": 9418}
    if not parts.hostname or parts.scheme not in ports:
        return None
    return parts.hostname, parts.port or ports[parts.scheme], parts.scheme
