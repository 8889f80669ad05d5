"""The cards of AMD and Intel in ``manifests/torch.yaml``: how a system names them, and what torch does on them.

NVIDIA's driver tells the compute capability of a card; on Windows nothing tells the architecture of an AMD card, so the
table lists PCI ids and names.  Reads no file, and chooses no build.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from provisioner.core.models import Gpu, Machine
from provisioner.manifest.strict_yaml import BOOLEAN, LINE, Fields, Place, list_of, matching
from provisioner.manifest.table_rows import SOURCE_IDS, report_repeated

_PCI_ID = matching("a quoted PCI id of four lower-case hex digits like '56a0'", r"[0-9a-f]{4}")
_PCI_IDS = list_of(_PCI_ID, "a list of PCI ids")
_NAMES = list_of(LINE, "a list of names")
SYSTEMS = list_of(
    matching("a system like 'windows 11', or 'ubuntu 24.04 6.17' with its kernel", r"[a-z]+ [0-9.]+( [0-9.]+)?"),
    "a list of systems",
)
GFX = matching("an AMD architecture like gfx1100", r"gfx[0-9]{1,3}[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdGpu:
    """What is known of some AMD cards of one architecture."""

    gfx: str  # "gfx1100"
    names: tuple[str, ...]  # words in a card's name, "RX 7900 XT"
    pci_ids: tuple[str, ...] = ()  # "744c", without the vendor id
    is_integrated: bool = False  # part of a processor, with the computer's memory
    is_validated: bool = False  # in AMD's matrix of cards that it tested with ROCm
    has_fp8: bool = False  # it multiplies in FP8, and ComfyUI lets it
    last_rocm: str | None = None  # the last ROCm whose libraries have code for it
    wrong: str | None = None  # what goes wrong although everything can be installed: no build is chosen for it
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelGpu:
    """Intel cards that torch was validated on."""

    names: tuple[str, ...]  # words in the name on Windows
    pci_ids: tuple[str, ...] = ()  # "56a0", without the vendor id
    is_integrated: bool = False
    validated_on: tuple[str, ...]  # "windows 11", "ubuntu 24.04"; under WSL any is
    sources: tuple[str, ...]


class _Card(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def pci_ids(self) -> tuple[str, ...]: ...


_C = TypeVar("_C", bound=_Card)


# --- finding a card -------------------------------------------------------------------------------


def amd_card(gpu: Gpu, cards: Iterable[AmdGpu]) -> AmdGpu | None:
    """Return the row of an AMD card: by PCI id, else by name, else by the architecture that the kernel told."""
    cards = tuple(cards)
    if gpu.architecture:
        cards = tuple(each for each in cards if each.gfx == gpu.architecture)
    return card_named(gpu, cards) or (cards[0] if gpu.architecture and cards else None)


def card_named(gpu: Gpu, cards: Iterable[_C]) -> _C | None:
    """Return the row of a card by its PCI id, else by its name; of several names the longest counts."""
    cards = tuple(cards)
    device = pci_device(gpu)
    by_id = next((each for each in cards if device in each.pci_ids), None)
    if by_id is not None:
        return by_id
    words = _plain(gpu.name)
    found = [(len(name), at) for at, each in enumerate(cards) for name in each.names if _stands_in(name, words)]
    return cards[min(found, key=lambda each: (-each[0], each[1]))[1]] if found else None


def pci_device(gpu: Gpu) -> str | None:
    """Return the device part of a PCI id; without one, what Linux wrote into the name.

    >>> pci_device(Gpu(vendor="intel", name="Intel GPU (8086:e20b)", index=0))
    'e20b'
    """
    match = re.search(r"[0-9a-f]{4}:([0-9a-f]{4})\)?$", gpu.pci_id or gpu.name, re.IGNORECASE)
    return match[1].lower() if match else None


def _plain(name: str) -> str:
    """Return a name without the signs of trade marks: "AMD Radeon(TM) 890M" is a "radeon 890m"."""
    return " ".join(re.sub(r"\((r|tm|c)\)|[\u00ae\u2122]", " ", name.casefold()).split())


def _stands_in(name: str, words: str) -> bool:
    return f" {name.casefold()} " in f" {re.sub(r'[^a-z0-9. -]', ' ', words)} "


def with_known_cards(machine: Machine, amd: Iterable[AmdGpu], intel: Iterable[IntelGpu]) -> Machine:
    """Return a machine with what the table knows of its AMD and Intel cards: architecture, whether memory is shared.

    The architecture is filled in on Windows only: on Linux the kernel tells that of every card that its compute driver
    serves, and without that driver torch cannot use the card.
    """
    amd, intel = tuple(amd), tuple(intel)
    is_windows = machine.os == "windows"
    return replace(machine, gpus=tuple(_known(gpu, amd, intel, is_windows=is_windows) for gpu in machine.gpus))


def _known(gpu: Gpu, amd: tuple[AmdGpu, ...], intel: tuple[IntelGpu, ...], *, is_windows: bool) -> Gpu:
    if gpu.vendor == "amd":
        card = amd_card(gpu, amd)
        found = gpu.architecture or (card.gfx if card is not None and is_windows else None)
        return replace(gpu, architecture=found, shares_memory=card.is_integrated if card else gpu.shares_memory)
    if gpu.vendor == "intel":
        row = card_named(gpu, intel)
        return replace(gpu, shares_memory=row is None or row.is_integrated)  # UHD and Iris Xe are not listed
    return gpu


# --- reading the rows -----------------------------------------------------------------------------


def read_amd_gpu(place: Place) -> AmdGpu:
    """Return a row of ``amd_gpus``."""
    with Fields(place, {}) as fields:
        value = AmdGpu(
            gfx=fields.required("gfx", GFX),
            names=fields.required("names", _NAMES),
            pci_ids=fields.optional("pci_ids", _PCI_IDS, ()),
            is_integrated=fields.optional("is_integrated", BOOLEAN, default=False),
            is_validated=fields.optional("is_validated", BOOLEAN, default=False),
            has_fp8=fields.optional("has_fp8", BOOLEAN, default=False),
            last_rocm=fields.optional("last_rocm", LINE, None),
            wrong=fields.optional("wrong", LINE, None),
            sources=fields.required("sources", SOURCE_IDS),
        )
    report_repeated(place, "pci_ids", value.pci_ids)
    return value


def read_intel_gpu(place: Place) -> IntelGpu:
    """Return a row of ``intel_gpus``."""
    with Fields(place, {}) as fields:
        value = IntelGpu(
            names=fields.required("names", _NAMES),
            pci_ids=fields.optional("pci_ids", _PCI_IDS, ()),
            is_integrated=fields.optional("is_integrated", BOOLEAN, default=False),
            validated_on=fields.required("validated_on", SYSTEMS),
            sources=fields.required("sources", SOURCE_IDS),
        )
    report_repeated(place, "pci_ids", value.pci_ids)
    return value
