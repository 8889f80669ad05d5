"""Which card an image is generated on, what is told to whom it does not have, and whether it was that one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisioner.core.errors import UsageError
from provisioner.core.models import Gpu, Machine, OperatingSystem, Vendor
from provisioner.smoke_test.cards import (
    card_of_option,
    cards_of,
    choose_cards,
    default_card,
    gpu_option,
    is_for_cpu,
    judge_card,
    plain_device_name,
    vendor_for,
)
from provisioner.smoke_test.results import Card, CardUse

GIB = 1024**3
FIRST, SECOND = "GPU-aaaa-1", "GPU-bbbb-2"
SLICES = ("MIG-1111", "MIG-2222")


def gpu(index: int = 0, uuid: str | None = FIRST, name: str = "NVIDIA H200", memory: int | None = 140 * GIB) -> Gpu:
    return Gpu(vendor="nvidia", name=name, index=index, uuid=uuid, memory_total_bytes=memory)


def machine(*gpus: Gpu) -> Machine:
    return Machine(
        os="linux",
        os_release="6.8",
        is_wsl=False,
        architecture="x86_64",
        libc="glibc 2.39",
        python_version="3.12.7",
        gpus=gpus,
    )


TWO = machine(gpu(0, FIRST), gpu(1, SECOND))
MIXED = machine(gpu(0, FIRST, "NVIDIA T4", 15 * GIB), gpu(1, SECOND, "NVIDIA L40S", 45 * GIB))
SPLIT = machine(
    replace(gpu(0, FIRST), is_mig_enabled=True, mig_devices=SLICES, mig_memory_bytes=(18 * GIB, 71 * GIB)),
    gpu(1, SECOND),
)
NVIDIA: Vendor = "nvidia"


def labels(cards: tuple[Card, ...]) -> list[str]:
    return [each.label for each in cards]


def chosen(asked: str, of: Machine = TWO, **environ: str) -> list[str]:
    return labels(choose_cards(of, asked, vendor=NVIDIA, environ=environ))


# --- which one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "of", "expected"),
    [
        ("0", TWO, ["GPU 0"]),
        ("1", TWO, ["GPU 1"]),
        (SECOND, TWO, ["GPU 1"]),
        ("gpu-b", TWO, ["GPU 1"]),
        ("all", TWO, ["GPU 0", "GPU 1"]),
        ("all", SPLIT, ["GPU 0:0", "GPU 0:1", "GPU 1"]),
        ("0", SPLIT, ["GPU 0:0", "GPU 0:1"]),
        ("0:1", SPLIT, ["GPU 0:1"]),
        ("MIG-2", SPLIT, ["GPU 0:1"]),
    ],
)
def test_a_card_is_named_by_number_by_uuid_or_by_all(asked: str, of: Machine, expected: list[str]) -> None:
    assert chosen(asked, of) == expected


def test_a_process_gets_the_uuid_of_its_card_and_a_slice_has_its_own_memory() -> None:
    first, second, whole = cards_of(SPLIT, NVIDIA)
    assert [dict(each.variables) for each in (first, second, whole)] == [
        {"CUDA_VISIBLE_DEVICES": uuid} for uuid in (*SLICES, SECOND)
    ]
    assert [each.memory_total_bytes for each in (first, second, whole)] == [18 * GIB, 71 * GIB, 140 * GIB]


def test_an_older_recording_of_slices_has_no_sizes() -> None:
    old = machine(replace(gpu(), is_mig_enabled=True, mig_devices=SLICES))
    assert [each.memory_total_bytes for each in cards_of(old, NVIDIA)] == [None, None]


@pytest.mark.parametrize(
    ("vendor", "variables"),
    [
        ("nvidia", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}),
        ("amd", {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"}),
        ("intel", {"ONEAPI_DEVICE_SELECTOR": "level_zero:1"}),
        ("apple", {}),
    ],
)
def test_without_a_uuid_the_number_names_it_as_each_vendor_does(vendor: Vendor, variables: dict[str, str]) -> None:
    (card,) = cards_of(machine(Gpu(vendor=vendor, name="X", index=1)), vendor)
    assert dict(card.variables) == variables


@pytest.mark.parametrize(
    ("asked", "of", "words"),
    [
        ("2", TWO, "There is no GPU 2 here."),
        ("0:0", TWO, "There is no GPU 0:0 here."),
        ("GPU-", TWO, "--gpu GPU- is the beginning of several UUIDs."),
        ("0", machine(), "--gpu 0: this machine has no GPU that was found."),
        (
            "all",
            machine(Gpu(vendor="amd", name="X", index=0)),
            "--gpu all: the environment has the torch build for NVIDIA, and this machine has no such GPU.",
        ),
        (
            "0",
            machine(replace(gpu(), is_mig_enabled=True)),
            "--gpu 0: the GPU is in MIG mode, and has no MIG device.",
        ),
    ],
)
def test_what_is_not_there_is_told(asked: str, of: Machine, words: str) -> None:
    with pytest.raises(UsageError) as error:
        chosen(asked, of)
    assert str(error.value) == words
    assert error.value.hint


def test_whoever_names_none_of_them_gets_the_list() -> None:
    with pytest.raises(UsageError) as error:
        chosen("7", MIXED)
    assert error.value.hint == (
        f"There is 0 (NVIDIA T4, 15.0 GiB, {FIRST}) and 1 (NVIDIA L40S, 45.0 GiB, {SECOND}); or --gpu all."
    )
    with pytest.raises(UsageError, match="torch build for the CPU"):
        choose_cards(TWO, "0", vendor=None, environ={})
    with pytest.raises(UsageError) as bare:
        chosen("7", machine(gpu(uuid=None, memory=None)))
    assert bare.value.hint == "There is 0 (NVIDIA H200); or --gpu all."


# --- what the user hid ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "asked", "expected"),
    [
        ("1", "all", ["GPU 1"]),
        ("0,1", "all", ["GPU 0", "GPU 1"]),
        (f"{SECOND},0", "1", ["GPU 1"]),
        ("gpu-b", "all", ["GPU 1"]),
        ("0,9,1", "all", ["GPU 0"]),  # CUDA reads no further than what names nothing
        ("0,0", "all", ["GPU 0"]),
    ],
)
def test_what_the_user_hid_stays_hidden(visible: str, asked: str, expected: list[str]) -> None:
    assert chosen(asked, CUDA_VISIBLE_DEVICES=visible) == expected


@pytest.mark.parametrize("visible", ["1", SECOND, "", "-1"])
def test_a_card_that_the_user_hid_is_an_error_that_names_the_variable(visible: str) -> None:
    with pytest.raises(UsageError, match=f"GPU 0: hidden by CUDA_VISIBLE_DEVICES={visible}") as error:
        chosen("0", CUDA_VISIBLE_DEVICES=visible)
    assert (error.value.hint or "").startswith("Unset it. There is 0 (")


def test_cudas_numbers_of_different_cards_are_not_guessed() -> None:
    with pytest.raises(UsageError, match="CUDA sorts by speed"):
        chosen("1", MIXED, CUDA_VISIBLE_DEVICES="0")
    assert chosen("all", MIXED, CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == ["GPU 0"]
    assert chosen("all", MIXED, CUDA_VISIBLE_DEVICES=SECOND) == ["GPU 1"]


@pytest.mark.parametrize(("vendor", "name"), [("amd", "ROCR_VISIBLE_DEVICES"), ("intel", "ZE_AFFINITY_MASK")])
def test_numbers_below_ours_are_not_guessed_either(vendor: Vendor, name: str) -> None:
    two = machine(*(Gpu(vendor=vendor, name="X", index=index) for index in range(2)))
    assert labels(choose_cards(two, "all", vendor=vendor, environ={})) == ["GPU 0", "GPU 1"]
    with pytest.raises(UsageError, match=f"{name}=1 is set"):
        choose_cards(two, "1", vendor=vendor, environ={name: "1"})


def test_an_amd_gpu_that_the_environment_has_no_code_for_is_hidden() -> None:
    two = machine(*(Gpu(vendor="amd", name="X", index=index) for index in range(2)))
    assert labels(choose_cards(two, "all", vendor="amd", environ={"HIP_VISIBLE_DEVICES": "1"})) == ["GPU 1"]
    with pytest.raises(UsageError, match="hidden by HIP_VISIBLE_DEVICES=1"):
        choose_cards(two, "0", vendor="amd", environ={"HIP_VISIBLE_DEVICES": "1"})


# --- nobody named one -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "environ", "label", "is_ours"),
    [
        (machine(gpu()), {}, "GPU 0", False),  # the only one: nothing to decide
        (TWO, {}, "GPU 0", True),
        (MIXED, {}, "GPU 1", True),  # for which `--set auto` chose
        (SPLIT, {}, "GPU 1", True),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "0"}, "GPU 0", False),
        (MIXED, {"CUDA_VISIBLE_DEVICES": f"{SECOND},{FIRST}"}, "GPU 1", False),
    ],
)
def test_the_default_is_the_users_first_else_the_largest(
    of: Machine, environ: dict[str, str], label: str, is_ours: bool
) -> None:
    card = default_card(of, environ)
    assert card is not None
    assert (card.label, bool(card.variables)) == (label, is_ours)


def test_there_may_be_no_default() -> None:
    assert default_card(machine(Gpu(vendor="amd", name="X", index=0)), {}) is None
    assert default_card(TWO, {"CUDA_VISIBLE_DEVICES": ""}) is None


@pytest.mark.parametrize(
    ("backend", "vendors", "expected"),
    [
        (None, ("intel", "nvidia"), "nvidia"),
        (None, ("intel", "amd"), "amd"),
        (None, (), None),
        ("cu130", ("amd",), "nvidia"),
        ("default", ("nvidia",), None),
        ("cpu", ("nvidia",), None),
    ],
)
def test_the_torch_build_says_whose_gpus(
    backend: str | None, vendors: tuple[Vendor, ...], expected: Vendor | None
) -> None:
    gpus = [Gpu(vendor=vendor, name="X", index=0) for vendor in vendors]
    assert vendor_for(backend, machine(*gpus)) == expected


@pytest.mark.parametrize(
    ("backend", "os", "vendors", "expected"),
    [
        ("cpu", "linux", ["nvidia"], True),
        ("cu130", "linux", [], False),  # ComfyUI says what is missing
        ("default", "macos", ["apple"], False),
        ("default", "macos", [], True),  # a Mac with an Intel processor
        ("default", "windows", ["nvidia"], True),
        (None, "linux", ["nvidia"], False),
        (None, "linux", [], True),
    ],
)
def test_the_torch_build_says_whether_the_cpu_generates(
    backend: str | None, os: OperatingSystem, vendors: list[Vendor], expected: bool
) -> None:
    gpus = [replace(gpu(0), vendor=each) for each in vendors]
    assert is_for_cpu(backend, replace(machine(*gpus), os=os)) is expected


@pytest.mark.parametrize(
    ("value", "label"),
    [("1", "GPU 1"), ("1,0", "GPU 1"), (SECOND, "GPU 1"), ("all", "GPU 0"), ("7", None)],
)
def test_an_option_of_comfyui_chooses_and_nothing_is_decided_for_it(value: str, label: str | None) -> None:
    card = card_of_option(TWO, value, {})
    assert (card and card.label, card and card.variables) == (label, () if label else None)


def test_the_last_option_that_chooses_a_gpu_counts() -> None:
    assert gpu_option([("--cuda-device", "0"), ("--default-device=1",)]) == ("--default-device", "1")
    assert gpu_option([("--fast", "fp16_accumulation"), ("--cuda-malloc",)]) is None


# --- whether it was that one ------------------------------------------------------------------------

CARDS = cards_of(TWO, NVIDIA)
UNLIKE = cards_of(MIXED, NVIDIA)


def uses(first: int, second: int, ours: str | None = None) -> tuple[CardUse, ...]:
    return tuple(
        CardUse(uuid=uuid, used_bytes=used, is_ours=uuid == ours) for uuid, used in ((FIRST, first), (SECOND, second))
    )


def judged(
    card: Card,
    others: tuple[Card, ...],
    device: str | None = "cuda:0 NVIDIA H200 : cudaMallocAsync",
    total: int | None = None,
    before: tuple[CardUse, ...] = (),
    after: tuple[CardUse, ...] = (),
) -> tuple[str | None, list[str]]:
    evidence, found = judge_card(card, others=others, device=device, total_bytes=total, before=before, after=after)
    assert all((each.code, each.severity) == ("image-on-another-gpu", "problem") for each in found)
    return evidence, [each.message for each in found]


@pytest.mark.parametrize(
    ("before", "after", "evidence"),
    [
        ((), uses(0, 0, SECOND), "processes"),
        (uses(GIB, GIB), uses(GIB, 9 * GIB), "memory"),
        (uses(GIB, GIB), uses(3 * GIB, 9 * GIB), "memory"),
        (uses(GIB, GIB), uses(9 * GIB, 3 * GIB), None),  # another program is at work on the other one
        (uses(GIB, GIB), uses(GIB, GIB), None),
        ((), (), None),
    ],
)
def test_nvml_says_which_of_two_of_the_same_name_it_was(
    before: tuple[CardUse, ...], after: tuple[CardUse, ...], evidence: str | None
) -> None:
    assert judged(CARDS[1], CARDS[:1], before=before, after=after) == (evidence, [])


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ((), uses(0, 0, FIRST), "NVML lists its process on GPU 0 (NVIDIA H200)"),
        (uses(GIB, GIB), uses(9 * GIB, GIB), "the memory in use grew on GPU 0 (NVIDIA H200), not there"),
    ],
)
def test_another_card_than_asked_for_is_a_problem(
    before: tuple[CardUse, ...], after: tuple[CardUse, ...], why: str
) -> None:
    evidence, (message,) = judged(CARDS[1], CARDS[:1], before=before, after=after)
    assert evidence is None
    assert message == f"The image was to be generated on GPU 1, NVIDIA H200, but it was not: {why}."


def test_a_name_alone_tells_it_where_no_other_card_has_it() -> None:
    assert judged(UNLIKE[1], UNLIKE[:1], "cuda:0 NVIDIA L40S") == ("name", [])
    assert judged(UNLIKE[1], UNLIKE[:1], None) == (None, [])
    _, (message,) = judged(UNLIKE[1], UNLIKE[:1], "cuda:0 NVIDIA T4 : native")
    assert "the program says that it used NVIDIA T4" in message


def test_the_memory_tells_a_slice_from_another() -> None:
    small, large, _ = cards_of(SPLIT, NVIDIA)
    name = "cuda:0 NVIDIA H200 MIG 1g.18gb : cudaMallocAsync"
    assert judged(small, (large,), name, 18 * GIB - 200_000_000) == (None, [])
    _, (message,) = judged(large, (small,), name, 18 * GIB)
    assert "the program says that its GPU has 18.0 GiB, and this one has 71.0 GiB" in message


def test_amd_names_differ_between_sources_so_only_the_name_of_another_card_counts() -> None:
    names = ("AMD Radeon(TM) Graphics", "AMD Radeon RX 7900 XTX")
    first, second = cards_of(machine(*(Gpu(vendor="amd", name=name, index=n) for n, name in enumerate(names))), "amd")
    assert judged(second, (first,), "cuda:0 Radeon RX 7900 XTX") == (None, [])
    assert judged(second, (first,), f"cuda:0 {names[1]}") == ("name", [])
    _, (message,) = judged(second, (first,), f"cuda:0 {names[0]}")
    assert f"it used {names[0]}" in message


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cuda:1 NVIDIA GeForce RTX 4070 Ti : native", "NVIDIA GeForce RTX 4070 Ti"),
        ("xpu:0 Intel(R) Arc(TM) B580 Graphics", "Intel(R) Arc(TM) B580 Graphics"),
        ("mps", "mps"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("", ""),
    ],
)
def test_the_name_of_a_device_is_read_from_what_comfyui_writes(text: str, name: str) -> None:
    assert plain_device_name(text) == name
