"""Which GPU, or MIG device of one, an image is generated on, and whether it was generated there.

CUDA sorts GPUs by speed, NVML by their place on the bus, and the user may hide some: a process gets a variable that
leaves it one card, named by UUID where it has one.  Afterwards the name and the memory that the process reports are
compared with those of the card, and NVML says which card the process used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from provisioner.core.errors import UsageError
from provisioner.core.models import Finding, Gpu, Machine, Vendor
from provisioner.core.units import gib, listing
from provisioner.smoke_test.results import Card, CardEvidence, CardUse

ALL = "all"

SAME_SIZE = 0.1
"""Share by which the memory that a process reports may differ from NVML's: the driver keeps part of it (644,939,776
bytes of an H200's 150,754,820,096, driver 580.159.04)."""

LEAST_USE_BYTES = 256 * 1024**2
"""Growth of a card's memory that a test image causes in any case; a CUDA context alone takes about that."""

_CHOOSES = ("--cuda-device", "--default-device", "--oneapi-device-selector")
_VENDORS: tuple[Vendor, ...] = ("nvidia", "amd", "intel", "apple")
_RENUMBERS: Mapping[Vendor, str] = {"amd": "ROCR_VISIBLE_DEVICES", "intel": "ZE_AFFINITY_MASK"}
"""Variables of the layer below, after which the numbers of ours mean other GPUs."""


def vendor_for(backend: str | None, machine: Machine) -> Vendor | None:
    """Return whose GPUs a torch build uses; of an unknown build the first vendor that torch would take; None: no GPU's.

    >>> mac = Machine(
    ...     os="macos", os_release="15", is_wsl=False, architecture="arm64", libc=None, python_version="3.12.7"
    ... )
    >>> [vendor_for(each, mac) for each in ("cu130", "rocm7.2", "xpu", "cpu", "default", None)]
    ['nvidia', 'amd', 'intel', None, 'apple', None]
    """
    if backend is None:
        found = {each.vendor for each in machine.gpus}
        return next((each for each in _VENDORS if each in found), None)
    if backend == "default":
        return "apple" if machine.os == "macos" else None
    named: tuple[tuple[str, Vendor], ...] = (("cu", "nvidia"), ("rocm", "amd"), ("xpu", "intel"))
    return next((vendor for start, vendor in named if backend.startswith(start)), None)


def is_for_cpu(backend: str | None, machine: Machine) -> bool:
    """Whether a torch build generates on the CPU: the default build of a Mac with an Apple GPU has MPS.

    Of an unknown build the machine decides; a build for GPUs fails on a machine without one, and that is to be seen.
    """
    if backend is None:
        return not machine.gpus
    return backend == "cpu" or (backend == "default" and not cards_of(machine, vendor_for(backend, machine)))


def cards_of(machine: Machine, vendor: Vendor | None) -> tuple[Card, ...]:
    """Return what a process can be given: each GPU of the vendor, and of one that is split by MIG each slice."""
    found: list[Card] = []
    for gpu in machine.gpus:
        if gpu.vendor == vendor:
            found += _slices(gpu) if gpu.is_mig_enabled else [_whole(gpu)]
    return tuple(found)


def _whole(gpu: Gpu) -> Card:
    return Card(
        label=f"GPU {gpu.index}",
        name=gpu.name,
        vendor=gpu.vendor,
        index=gpu.index,
        uuid=gpu.uuid,
        memory_total_bytes=gpu.memory_total_bytes,
        variables=_variables(gpu.vendor, gpu.index, gpu.uuid),
    )


def _slices(gpu: Gpu) -> list[Card]:
    sizes = gpu.mig_memory_bytes or (None,) * len(gpu.mig_devices)
    return [
        Card(
            label=f"GPU {gpu.index}:{number}",
            name=gpu.name,
            vendor=gpu.vendor,
            index=gpu.index,
            slice_number=number,
            uuid=uuid,
            memory_total_bytes=size,
            variables=_variables(gpu.vendor, gpu.index, uuid),
        )
        for number, (uuid, size) in enumerate(zip(gpu.mig_devices, sizes, strict=False))
    ]


def _variables(vendor: Vendor, index: int, uuid: str | None) -> tuple[tuple[str, str], ...]:
    """Return the variables that leave a process this card alone.

    For AMD both names, as ComfyUI's own ``--cuda-device`` sets them: HIP reads the second one too.
    """
    if vendor == "nvidia":
        if uuid is not None:
            return (("CUDA_VISIBLE_DEVICES", uuid),)
        return (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", str(index)))
    if vendor == "amd":
        return (("HIP_VISIBLE_DEVICES", str(index)), ("CUDA_VISIBLE_DEVICES", str(index)))
    return (("ONEAPI_DEVICE_SELECTOR", f"level_zero:{index}"),) if vendor == "intel" else ()


# --- which one ------------------------------------------------------------------------------------


def choose_cards(
    machine: Machine, asked: str, *, vendor: Vendor | None, environ: Mapping[str, str]
) -> tuple[Card, ...]:
    """Return the cards that ``--gpu`` names.

    Parameters
    ----------
    machine : Machine
        The machine.
    asked : str
        ``all``; the number of a GPU as ``detect`` shows it; ``0:1`` for a MIG device of it; or a UUID or its beginning.
        A GPU that is split by MIG stands for all its MIG devices.
    vendor : str or None
        Whose GPUs the torch build uses; None: no GPU's.
    environ : mapping
        The variables that the process would get: what they hide stays hidden.

    Raises
    ------
    UsageError
        There is no such card, the user hid it, or it is not known which ones the user hid; the hint lists the cards.
    """
    cards = cards_of(machine, vendor)
    if not cards:
        raise UsageError(f"--gpu {asked}: {_none_here(machine, vendor)}.", hint="`klein-setup detect` shows the GPUs.")
    wanted = cards if asked == ALL else tuple(each for each in cards if _is_named(each, asked))
    if not wanted:
        raise UsageError(f"There is no GPU {asked} here.", hint=_hint(cards))
    if asked != ALL and _is_uuid(asked) and len({(each.index, each.uuid) for each in wanted}) > 1:
        raise UsageError(f"--gpu {asked} is the beginning of several UUIDs.", hint=_hint(wanted))
    seen = _visible(cards, vendor, environ)
    shown = tuple(each for each in wanted if each in seen)
    if not shown:
        hidden = " and ".join(f"{name}={environ[name]}" for name in _hiding(vendor) if name in environ)
        raise UsageError(
            f"{listing([each.label for each in wanted])}: hidden by {hidden}.",
            hint=f"Unset it. {_hint(cards)}",
        )
    return shown


def default_card(machine: Machine, environ: Mapping[str, str]) -> Card | None:
    """Return the NVIDIA card that is used where nobody named one.

    The first that the user's CUDA_VISIBLE_DEVICES leaves visible, which is passed on as it is; else the one with the
    most memory, for which ``--set auto`` chooses, with variables only where there are several.
    """
    cards = cards_of(machine, "nvidia")
    if "CUDA_VISIBLE_DEVICES" in environ:
        try:
            seen = _visible(cards, "nvidia", environ)
        except UsageError:  # CUDA's order is not known; most likely it is NVML's
            seen = _visible(cards, "nvidia", {**environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
        return _undecided(seen[0]) if seen else None
    best = max(cards, key=lambda each: each.memory_total_bytes or 0, default=None)
    return best if best is None or len(cards) > 1 else _undecided(best)


def gpu_option(options: Iterable[Sequence[str]]) -> tuple[str, str] | None:
    """Return the option of ComfyUI that chooses a GPU, and its value; the last one counts.

    >>> gpu_option([("--fast",), ("--cuda-device", "1")]), gpu_option([("--default-device=0",)]), gpu_option([])
    (('--cuda-device', '1'), ('--default-device', '0'), None)
    """
    found = None
    for first, *rest in options:
        name, _, value = first.partition("=")
        if name in _CHOOSES:
            found = (name, value or " ".join(rest))
    return found


def card_of_option(machine: Machine, value: str, environ: Mapping[str, str]) -> Card | None:
    """Return the NVIDIA card that ComfyUI's own option names: it sets CUDA_VISIBLE_DEVICES to the value."""
    card = default_card(machine, environ if value == ALL else {**environ, "CUDA_VISIBLE_DEVICES": value})
    return None if card is None else _undecided(card)


def _undecided(card: Card) -> Card:
    return replace(card, variables=())


def _is_uuid(asked: str) -> bool:
    return not asked.replace(":", "").isdigit()


def _is_named(card: Card, asked: str) -> bool:
    if _is_uuid(asked):
        return (card.uuid or "").casefold().startswith(asked.casefold())
    return asked in {str(card.index), f"{card.index}:{card.slice_number}"}


def _hiding(vendor: Vendor | None) -> tuple[str, ...]:
    """Return the variables with which a user hides GPUs of a vendor from programs."""
    if vendor == "amd":
        return ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    return ("CUDA_VISIBLE_DEVICES",) if vendor == "nvidia" else ()


def _visible(cards: Sequence[Card], vendor: Vendor | None, environ: Mapping[str, str]) -> tuple[Card, ...]:
    """Return the cards that the user's variables leave visible, in their order; raises UsageError where unknown."""
    below = _RENUMBERS.get(vendor) if vendor is not None else None
    if below is not None and below in environ:
        raise UsageError(
            f"{below}={environ[below]} is set, which numbers the GPUs anew: which one is which is not known.",
            hint=f"Unset {below} and use --gpu alone. {_hint(cards)}",
        )
    name = next((each for each in _hiding(vendor) if each in environ), None)
    if name is None:
        return tuple(cards)
    words = [each.strip() for each in environ[name].split(",")]
    if vendor == "nvidia" and any(each.isdigit() for each in words) and not _has_known_order(cards, environ):
        raise UsageError(
            f"{name}={environ[name]} names GPUs by CUDA's numbers. This machine has different GPUs, which CUDA sorts by"
            " speed and klein-setup by their place on the bus, so which one is meant is not known.",
            hint=f"Set {name} to a UUID, or CUDA_DEVICE_ORDER to PCI_BUS_ID, or unset it. {_hint(cards)}",
        )
    seen: list[Card] = []
    for word in words:
        found = [each for each in cards if word and _is_named(each, word)]
        if not found:  # CUDA reads no further than the first that names nothing
            break
        seen += [each for each in found if each not in seen]
    return tuple(seen)


def _has_known_order(cards: Sequence[Card], environ: Mapping[str, str]) -> bool:
    return environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({each.name for each in cards}) == 1


def _none_here(machine: Machine, vendor: Vendor | None) -> str:
    if not machine.gpus:
        return "this machine has no GPU that was found"
    if vendor is None:
        return "the environment has the torch build for the CPU"
    if any(each.vendor == vendor for each in machine.gpus):
        return "the GPU is in MIG mode, and has no MIG device"
    return f"the environment has the torch build for {vendor.upper()}, and this machine has no such GPU"


def _hint(cards: Sequence[Card]) -> str:
    """Return the cards with their numbers, sizes and UUIDs."""
    told = [
        f"{each.label.removeprefix('GPU ')} ({each.name}"
        + (f", {gib(each.memory_total_bytes)}" if each.memory_total_bytes is not None else "")
        + (f", {each.uuid})" if each.uuid else ")")
        for each in cards
    ]
    return f"There is {listing(told)}; or --gpu all."


# --- whether it was that one ------------------------------------------------------------------------


def plain_device_name(text: str) -> str:
    """Return the name of a GPU without what ComfyUI writes around it.

    >>> plain_device_name("cuda:0 NVIDIA GeForce RTX 4070 : cudaMallocAsync"), plain_device_name("cpu")
    ('NVIDIA GeForce RTX 4070', 'cpu')
    """
    first, _, rest = text.partition(" ")
    name = rest if ":" in first and first.rpartition(":")[2].isdigit() else text
    return name.partition(" : ")[0].strip()


def judge_card(
    card: Card,
    *,
    others: Sequence[Card],
    device: str | None,
    total_bytes: int | None,
    before: Sequence[CardUse] = (),
    after: Sequence[CardUse] = (),
) -> tuple[CardEvidence | None, tuple[Finding, ...]]:
    """Return how it is known that an image was generated on a card, and what speaks against it.

    Parameters
    ----------
    card : Card
        The one that it was given.
    others : sequence of Card
        The other cards of the machine.
    device : str or None
        What the process calls its device.
    total_bytes : int or None
        The memory that the process says its device has.
    before, after : sequence of CardUse
        NVML's answers for every card: before the process was started, and after the image while it still ran.

    Returns
    -------
    str or None
        ``processes``: NVML lists the process on that card.  ``memory``: it lists no process of ours, as in a container
        or on Windows, and that card's memory grew the most.  ``name``: NVML says nothing, and no other card here has
        that name.  None: nothing tells it from another of the same name.
    tuple of Finding
        A problem where it was another card.
    """
    wrong = _wrong_device(card, others, device, total_bytes)
    if wrong is not None:
        return None, (wrong,)
    ours = [each.uuid for each in after if each.is_ours]
    if ours:
        if card.uuid in ours:
            return "processes", ()
        used = listing([_label_of(uuid, others) for uuid in ours])
        return None, (_other_card(card, f"NVML lists its process on {used}"),)
    earlier = {each.uuid: each.used_bytes for each in before}
    grown = {each.uuid: each.used_bytes - earlier[each.uuid] for each in after if each.uuid in earlier}
    most = max(grown, key=lambda uuid: grown[uuid], default=None)
    if most is not None and grown[most] >= LEAST_USE_BYTES and card.uuid in grown:
        if most == card.uuid:
            return "memory", ()
        if grown[card.uuid] < LEAST_USE_BYTES:
            return None, (_other_card(card, f"the memory in use grew on {_label_of(most, others)}, not there"),)
    is_named = device is not None and _is_called(card, plain_device_name(device))
    return ("name" if is_named and not any(each.name == card.name for each in others) else None), ()


def _wrong_device(card: Card, others: Sequence[Card], device: str | None, total_bytes: int | None) -> Finding | None:
    """Return the problem of a device with another name or size; names of AMD and Intel differ between sources."""
    if device is not None:
        name = plain_device_name(device)
        is_other = card.vendor == "nvidia" or any(_is_called(each, name) for each in others)
        if is_other and not _is_called(card, name):
            return _other_card(card, f"the program says that it used {name}")
    size = card.memory_total_bytes
    if size and total_bytes is not None and card.vendor != "apple" and abs(total_bytes - size) > SAME_SIZE * size:
        return _other_card(card, f"the program says that its GPU has {gib(total_bytes)}, and this one has {gib(size)}")
    return None


def _is_called(card: Card, name: str) -> bool:
    """Whether a process's name of its device is that of a card; a MIG device's has its profile behind."""
    return name.casefold() == card.name.casefold() or name.casefold().startswith(f"{card.name.casefold()} mig ")


def _label_of(uuid: str, cards: Sequence[Card]) -> str:
    return next((f"{each.label} ({each.name})" for each in cards if each.uuid == uuid), uuid)


def _other_card(card: Card, why: str) -> Finding:
    return Finding(
        code="image-on-another-gpu",
        severity="problem",
        remedy="by-hand",
        message=f"The image was to be generated on {card.label}, {card.name}, but it was not: {why}.",
        hint="A custom node may choose a GPU by itself: try it with a ComfyUI that has none.",
    )
