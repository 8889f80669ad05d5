"""What a set needs of the computer's memory, on machines that are short of it in each way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisioner.core.models import ArtifactSet, Envelope, Finding, Gpu, Machine, OperatingSystem
from provisioner.files.memory_fit import (
    largest_fitting,
    memory_findings,
    memory_need,
    memory_words,
    more_memory,
    pinned_limits,
    shortage,
)
from provisioner.manifest.parse import parse_manifest
from provisioner.manifest.shipped import read_manifest_text

GIB = 1024**3
MANIFEST = parse_manifest(read_manifest_text("flux2-klein-4b")[0], file="flux2-klein-4b.yaml")


def set_named(name: str) -> ArtifactSet:
    found = MANIFEST.set_named(name)
    assert found is not None
    return found


FP8 = set_named("fp8")  # 12.45 GB, 11.6 GiB: encoder 8.04 GB
RTX_3060 = Gpu(vendor="nvidia", name="NVIDIA GeForce RTX 3060", index=0, memory_total_bytes=12 * GIB)
RTX_3070 = replace(RTX_3060, name="NVIDIA GeForce RTX 3070 Laptop GPU", memory_total_bytes=8 * GIB)
RTX_4090 = replace(RTX_3060, name="NVIDIA GeForce RTX 4090", memory_total_bytes=24 * GIB)
APPLE = Gpu(vendor="apple", name="Apple M4", index=0, shares_memory=True)
ARC = Gpu(vendor="intel", name="Arc 140V", index=0, memory_total_bytes=GIB, shares_memory=True)


def machine(
    memory: float | None,
    *gpus: Gpu,
    swap: float | None = 0,
    os: OperatingSystem = "linux",
    physical: float | None = None,
    grows: bool | None = None,
    is_wsl: bool = False,
) -> Machine:
    def size(gib: float | None) -> int | None:
        return None if gib is None else int(gib * GIB)

    return Machine(
        os=os,
        os_release="11",
        is_wsl=is_wsl,
        architecture="x86_64",
        libc=None,
        python_version="3.12.7",
        gpus=gpus or (RTX_3060,),
        memory_total_bytes=size(memory),
        memory_physical_bytes=size(physical),
        swap_total_bytes=size(swap),
        swap_grows=grows,
    )


def found(wanted: ArtifactSet, host: Machine) -> Finding:
    (finding,) = memory_findings(wanted, host, MANIFEST.sets)
    assert (finding.severity, finding.remedy) == ("warning", "by-hand")
    return finding


# --- what was published ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "host", "expected"),
    [
        ("fp8", machine(15.6, RTX_3060), None),  # 16 GB with 12 GB: within what was published
        ("fp8", machine(15.6, RTX_3070), None),  # ran on such a laptop
        ("diffusers", machine(31.2, RTX_4090), None),  # advised
        ("diffusers", machine(15.6, RTX_4090), "memory-too-small"),
        ("bf16", machine(24, APPLE, os="macos"), None),
        ("bf16", machine(16, APPLE, os="macos"), "memory-swaps"),
        ("bf16", machine(8, APPLE, os="macos"), "memory-too-small"),
    ],
)
def test_the_rules_agree_with_published_machines(wanted: str, host: Machine, expected: str | None) -> None:
    assert shortage(set_named(wanted), host) == expected


# --- each way to be short -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (machine(8, physical=64), "memory-too-small"),
        (machine(12), "memory-too-small"),
        (machine(12, swap=None), "memory-too-small"),
        (machine(12, swap=4), "memory-swaps"),
        (machine(14.7), None),
        (machine(12, RTX_4090), None),  # which keeps all weights: only the largest file passes through
        (machine(10, RTX_4090), "memory-too-small"),
        (machine(12, replace(RTX_3060, memory_total_bytes=None)), None),  # nothing is known against it
        (machine(None), None),
        (machine(16, os="windows", swap=5, grows=False), "page-file-too-small"),
        (machine(16, os="windows", swap=5), "page-file-too-small"),  # recorded before it was known
        (machine(16, os="windows", swap=5, grows=True), None),
        (machine(16, os="windows", swap=7), None),
        (machine(16, os="windows", swap=None), None),
        (machine(32, os="windows", swap=0, grows=False), None),
        (machine(12, os="windows", swap=5, grows=False), "memory-too-small"),
        (machine(12, os="windows", swap=16, grows=False), "memory-swaps"),
        (machine(12, os="windows", swap=1, grows=True), "memory-swaps"),
        (machine(8, os="windows", swap=1, grows=True), "memory-too-small"),
    ],
)
def test_each_way_to_be_short_of_memory(host: Machine, expected: str | None) -> None:
    assert shortage(FP8, host) == expected
    assert [each.code for each in memory_findings(FP8, host, MANIFEST.sets)] == ([expected] if expected else [])


def test_a_container_of_8_gib_on_a_computer_of_64_is_told_with_numbers_and_what_fits() -> None:
    finding = found(FP8, replace(machine(8, physical=64), memory_available_bytes=7 * GIB))
    assert finding.code == "memory-too-small"
    assert finding.message == (
        "The set fp8 needs 14.6 GiB of memory: 11.6 GiB for the weights, which stay there while the GPU with 12.0 GiB"
        " works on a part of them, and about 3.0 GiB for everything else."
        " This container may use 8.0 GiB (the computer has 64.0 GiB), 7.0 GiB of it free, and no swap."
        " ComfyUI will most likely be ended by the system, or stop with an error, while it loads."
    )
    more = (
        "Give the container at least 15 GiB: `--memory 15g` of docker and podman, resources.limits.memory of"
        " Kubernetes, or MemoryMax= of systemd. "
    )
    assert finding.hint == (
        f"{more}Or use the set fp8-lean, the largest that fits this machine (8.26 GB):"
        " `klein-setup install --set fp8-lean`."
    )
    assert found(FP8, machine(6, physical=64)).hint == f"{more}No other set of this manifest fits this machine."


def test_the_set_that_is_named_is_the_largest_that_fits() -> None:
    assert found(FP8, machine(12)).hint == (
        "Add 3 GiB of swap, or more memory. Or use the set fp8-lean, the largest that fits this machine"
        " (8.26 GB): `klein-setup install --set fp8-lean`."
    )
    best = largest_fitting(FP8, machine(13), MANIFEST.sets)
    assert best is not None
    assert best.id == "fp8-midi"
    assert largest_fitting(set_named("base-fp8"), machine(64), MANIFEST.sets) is None  # nothing replaces the base model
    big = machine(64, replace(RTX_4090, compute_capability=(12, 0)))
    assert largest_fitting(set_named("fp8-lean"), big, MANIFEST.sets) == FP8


def test_a_page_file_of_5_gib_is_told_as_windows_counts() -> None:
    finding = found(FP8, machine(16, os="windows", swap=5, grows=False))
    assert finding.message == (
        "The set fp8 needs 14.6 GiB of memory: 11.6 GiB for the weights, which stay there while the GPU with 12.0 GiB"
        " works on a part of them, and about 3.0 GiB for everything else; while it reads the largest file Windows"
        " counts 7.5 GiB more. This machine has 16.0 GiB, and a page file of 5.0 GiB. Windows will most likely refuse"
        " to open a model file (os error 1455)."
    )
    hint = finding.hint or ""
    assert hint.startswith("Let Windows manage the size of the page file, on a drive with 7 GiB free or more")
    assert "pin half of the memory, 8.0 GiB here; the weights are 11.6 GiB. If ComfyUI stops with os error 1450" in hint
    assert "--disable-pinned-memory" in hint


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (machine(8, is_wsl=True), "memory=15GB in the section [wsl2]"),
        (machine(8, APPLE, os="macos"), "Close other programs before an image"),
        (machine(12, swap=1), "Add 2 GiB of swap, or more memory."),
        (machine(12, os="windows", swap=0), "on a drive with 11 GiB free"),
        (machine(12, os="windows", swap=3, grows=True), "Keep 11 GiB free on the drive of the page file"),
    ],
)
def test_the_next_step_is_that_of_the_system(host: Machine, said: str) -> None:
    assert said in (found(FP8, host).hint or "")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (machine(None), "How much memory there is here is not known."),
        (machine(16, swap=None), "This machine has 16.0 GiB."),
        (machine(16), "This machine has 16.0 GiB, and no swap."),
        (machine(16, swap=2), "This machine has 16.0 GiB, and 2.0 GiB of swap."),
        (machine(16, os="windows"), "This machine has 16.0 GiB, and no page file."),
        (machine(16, os="macos", swap=2), "This machine has 16.0 GiB."),
    ],
)
def test_what_there_is_in_a_sentence(host: Machine, words: str) -> None:
    assert memory_words(host) == words


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (machine(20, physical=64), "at least 22 GiB"),
        (machine(20), "Add 2 GiB of swap"),
        (machine(64, os="windows"), "on a drive with 2 GiB free"),
    ],
)
def test_a_machine_that_should_have_had_enough_is_given_more_than_it_has(host: Machine, said: str) -> None:
    assert said in more_memory(FP8, host)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (machine(16, os="windows"), "Windows lets a program pin half of the memory, 8.0 GiB here;"),
        (
            replace(machine(16), locked_limit_bytes=8 * 1024**2),
            "A process may lock 8.39 MB in memory here (`ulimit -l`);",
        ),
        (machine(16), None),
        (machine(None, os="windows"), None),
    ],
)
def test_what_may_be_pinned_is_said_where_it_is_known(host: Machine, said: str | None) -> None:
    sentences = pinned_limits(FP8, host)
    assert sentences == ([f"{said} the weights are 11.6 GiB."] if said else [])


@pytest.mark.parametrize(
    ("free", "total", "is_told"),
    [(7.0, 12, True), (8.0, 12, False), (7.0, 7.5, False), (None, 12, False), (7.0, None, False)],
)
def test_a_gpu_that_others_use_is_compared_with_the_published_peak(
    free: float | None, total: float | None, is_told: bool
) -> None:
    sizes = [None if each is None else int(each * GIB) for each in (free, total)]
    host = machine(64, replace(RTX_3060, memory_free_bytes=sizes[0], memory_total_bytes=sizes[1]))
    told = memory_findings(FP8, host, MANIFEST.sets)
    assert [each.code for each in told] == (["gpu-memory-in-use"] if is_told else [])
    if is_told:
        assert "7.0 GiB of 12.0 GiB are free on NVIDIA GeForce RTX 3060, and the published peak" in told[0].message


def test_a_machine_can_be_short_of_both_memories() -> None:
    host = machine(8, replace(RTX_3060, memory_free_bytes=GIB))
    assert [each.code for each in memory_findings(FP8, host, MANIFEST.sets)] == [
        "memory-too-small",
        "gpu-memory-in-use",
    ]
    assert memory_findings(replace(FP8, envelope=Envelope()), replace(host, memory_total_bytes=64 * GIB), ()) == ()
    assert memory_findings(FP8, replace(machine(64), gpus=()), ()) == ()
    sliced = machine(64, replace(RTX_3060, memory_free_bytes=GIB, is_mig_enabled=True))
    assert memory_findings(FP8, sliced, ()) == ()


# --- which weights count --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "gpus", "weights", "why"),
    [
        ("fp8", (RTX_3060,), FP8.size, "a part of them"),
        ("fp8", (RTX_4090,), 8_044_982_048, "the largest file"),
        ("fp8", (replace(APPLE, memory_total_bytes=64 * GIB), RTX_4090), 8_044_982_048, "the largest file"),
        (
            "fp8",
            (replace(APPLE, name="Arc 140V", memory_total_bytes=GIB),),
            FP8.size,
            "Arc 140V has no memory of its own",
        ),
        ("diffusers", (RTX_4090,), set_named("diffusers").size, "diffusers reads"),
    ],
)
def test_the_gpu_decides_which_weights_stay_in_memory(
    wanted: str, gpus: tuple[Gpu, ...], weights: int, why: str
) -> None:
    need = memory_need(set_named(wanted), machine(64, *gpus))
    assert need.weights_bytes == weights
    assert why in need.why


def test_without_a_gpu_all_weights_do() -> None:
    need = memory_need(FP8, replace(machine(64), gpus=()))
    assert (need.weights_bytes, need.why) == (FP8.size, "all weights, without a GPU")
    empty = memory_need(replace(FP8, artifacts=()), machine(64))
    assert (empty.weights_bytes, empty.largest_bytes) == (0, 0)


def test_diffusers_is_called_by_its_name() -> None:
    assert "diffusers will most likely be ended" in found(set_named("diffusers"), machine(15.6, RTX_4090)).message
