"""Combinations that are known to fail: each row on its own one, on the good one next to it, and what avoids it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from provisioner.comfyui.known_bad import (
    Combination,
    known_bad,
    matching,
    options_that_avoid,
    release_that_works,
    requirements_that_avoid,
)
from provisioner.comfyui.release_models import ComfyTable, KnownBad
from provisioner.comfyui.releases import is_at_least, parse_comfy_table
from provisioner.core.errors import ManifestError
from provisioner.core.models import Gpu, Machine, OperatingSystem
from provisioner.environment.app_packages import requirement_lines
from provisioner.environment.requirements import unmet
from provisioner.manifest.shipped import read_table_text
from provisioner.torch.choose import TorchOptions, choose_torch

TEXT, FILE = read_table_text("comfyui")
TABLE = parse_comfy_table(TEXT, file=FILE)
ROWS = {row.id: row for row in TABLE.known_bad}
TREE = Path("/c")

# Of the rows about packages: what the failing combination has, and packages beside which it is a good one.
PACKAGES: dict[str, tuple[dict[str, str], tuple[dict[str, str], ...]]] = {
    "illegal-access-5090": ({"torch": "2.12.0+cu130"}, ({"torch": "2.9.0+cu130"}, {"torch": "2.13.0+cu130"}, {})),
    "compiler-without-bf16": ({"comfy-aimdo": "0.6.0"}, ({"comfy-aimdo": "0.5.6"}, {})),
    "fault-5060-ti": (
        {"comfy-aimdo": "0.5.5", "torch": "2.13.0+cu130"},
        ({"torch": "2.13.0+cu130"}, {"comfy-aimdo": "0.5.5", "torch": "2.12.1+cu130"}),
    ),
    "streaming-gfx1030": (
        {"comfy-aimdo": "0.4.13", "torch": "2.13.0+rocm10.0.0"},
        ({"comfy-aimdo": "0.4.13", "torch": "2.13.0+rocm7.2"}, {"torch": "2.13.0+rocm10.0.0"}),
    ),
    "rocm-7.14.1": ({"torch": "2.12.0+rocm7.14.1"}, ({"torch": "2.13.0+rocm10.0.0"}, {"torch": "2.12.0"}, {})),
    "rocm-7.14.0": ({"torch": "2.12.0+rocm7.14.0"}, ({"torch": "2.13.0+rocm10.0.0"},)),
    "rocm-gfx1102": ({"torch": "2.10.0+rocm7.11.0a20260101"}, ({"torch": "2.10.0+rocm7.12.0"},)),
    "cu130-old-gpu": ({"torch": "2.13.0+cu130"}, ({"torch": "2.13.0+cu126"}, {"torch": "2.11.0+cu128"})),
    "cu132-torchaudio": (
        {"torch": "2.13.0+cu132", "torchaudio": "2.11.0+cu130"},
        ({"torch": "2.13.0+cu130", "torchaudio": "2.11.0+cu130"}, {"torch": "2.13.0+cu132"}),
    ),
    "av-16": ({"av": "16.1.0"}, ({"av": "17.0.0"}, {"av": "18.1.0"}, {})),
    "frontend-1.40": (
        {"comfyui-frontend-package": "1.40.3"},
        ({"comfyui-frontend-package": "1.40.0"}, {"comfyui-frontend-package": "1.40.6"}),
    ),
    "sage-python-3.13.12": ({"sageattention": "2.2.0"}, ({"sageattention": "2.1.1"}, {})),
    "sage-ampere": ({"sageattention": "2.2.0.post3"}, ({"sageattention": "1.0.6"}, {})),
    "diffusers-0.36": ({"diffusers": "0.36.0"}, ({"diffusers": "0.37.0"}, {})),
    "kitchen-outdated": ({"comfy-kitchen": "0.2.30"}, ({"comfy-kitchen": "0.2.31"}, {})),
}
PYTHONS = {"sage-python-3.13.12": ("3.13.12", "3.12.10")}
DRIVERS = {"illegal-access-5090": ("610.47", "596.36")}


def combination_of(row: KnownBad) -> Combination:
    """Return the combination that a row is about."""
    gpu = Gpu(
        vendor=row.vendor or "nvidia",
        name="x",
        index=0,
        compute_capability=divmod(next(iter(row.sm), row.max_sm or 89), 10),
        architecture=next(iter(row.architectures), "gfx1100"),
        memory_total_bytes=(row.max_vram_gb or 12) * 2**30,
    )
    machine = Machine(
        os=row.os or "linux",
        os_release="1",
        is_wsl=row.is_wsl,
        architecture="x86_64",
        libc=None,
        python_version="3.12.3",
        gpus=tuple(replace(gpu, index=at) for at in range(row.min_gpus or 1)),
        memory_total_bytes=16 * 2**30,
        driver_version=DRIVERS.get(row.id, ("596.36",))[0],
    )
    return Combination(
        machine=machine,
        app=row.app,
        version=row.since or "0.20.0",
        commit="783545f689a0af730065994b46b382ae24844c99",
        requirements=("comfy-kitchen==0.2.31", "av>=16.0.0", "-r more.txt"),
        custom_nodes=tuple(each.upper() for each in row.custom_nodes),
        python=PYTHONS.get(row.id, ("3.12.3",))[0],
        packages=PACKAGES.get(row.id, ({},))[0],
    )


def ids(combination: Combination, table: ComfyTable = TABLE) -> set[str]:
    """Return the rows that a combination matches."""
    return {row.id for row in matching(combination, table)}


def test_the_table_has_the_31_combinations_that_were_collected() -> None:
    assert len(ROWS) == 31
    about_packages = {row.id for row in TABLE.known_bad if row.packages or row.torch_tags or row.outdated}
    assert about_packages == set(PACKAGES)


@pytest.mark.parametrize("row", TABLE.known_bad, ids=lambda row: row.id)
def test_a_row_matches_its_own_combination_and_none_next_to_it(row: KnownBad) -> None:
    own = combination_of(row)
    assert row.id in ids(own)
    others = [replace(own, packages=each) for each in PACKAGES.get(row.id, ({}, ()))[1]]
    if row.since is not None:
        others += [replace(own, version="0.3.1"), replace(own, version=None), replace(own, version="nightly")]
    if row.before is not None:
        others.append(replace(own, version=row.before))
    if row.is_unreleased:
        others += [replace(own, commit=TABLE.pinned.commit), replace(own, commit=None)]
    if row.python is not None:
        others += [replace(own, python=each) for each in (*PYTHONS[row.id][1:], None)]
    if row.custom_nodes:
        others.append(replace(own, custom_nodes=("another",)))
    other_app: Literal["comfyui", "diffusers"] = "diffusers" if row.app == "comfyui" else "comfyui"
    others.append(replace(own, app=other_app))
    others += [replace(own, machine=each) for each in machines_next_to(row, own.machine)]
    assert [each for each in others if row.id in ids(each)] == []


def machines_next_to(row: KnownBad, own: Machine) -> list[Machine]:
    """Return machines that differ from a row's own one in one respect that the row names."""
    gpu = own.gpus[0]
    found: list[Machine] = []
    other: OperatingSystem = "linux" if row.os == "windows" else "windows"
    if row.os is not None:
        found.append(replace(own, os=other))
    if row.is_wsl:
        found.append(replace(own, is_wsl=False))
    if row.driver is not None:
        found += [replace(own, driver_version=each) for each in (*DRIVERS[row.id][1:], None)]
    if row.vendor is not None:
        found += [replace(own, gpus=()), replace(own, gpus=(replace(gpu, vendor="intel"),) * len(own.gpus))]
    if row.sm or row.max_sm:
        found += [replace(own, gpus=(replace(gpu, compute_capability=each),)) for each in ((9, 0), None)]
    if row.architectures:
        found.append(replace(own, gpus=(replace(gpu, architecture="gfx942"),)))
    if row.min_gpus is not None:
        found.append(replace(own, gpus=(gpu,)))
    if row.max_vram_gb is not None:
        found += [replace(own, gpus=(replace(gpu, memory_total_bytes=each),)) for each in (24 * 2**30, None)]
    if row.max_memory_gb is not None:
        found += [replace(own, memory_total_bytes=each) for each in (64 * 2**30, None)]
    return found


def test_a_gpu_that_a_cpu_build_does_not_use_is_no_matter() -> None:
    own = combination_of(ROWS["noise-rdna"])
    assert "noise-rdna" in ids(own)
    assert "noise-rdna" not in ids(replace(own, packages={"torch": "2.13.0+cpu"}))


def test_a_version_that_is_none_matches_nothing() -> None:
    assert "av-16" not in ids(replace(combination_of(ROWS["av-16"]), packages={"av": "sixteen"}))


@pytest.mark.parametrize(
    ("row", "options", "message", "hint"),
    [
        (
            "memory-0.34.3",
            (),
            "ComfyUI 0.34.3 FAILS: the GPU's memory runs out where 0.34.2 had enough "
            "(Comfy-Org/ComfyUI#16138).",
            "Known to work: 0.34.2.",
        ),
        (
            "compiler-without-bf16",
            (),
            'ComfyUI 0.35.0 with comfy-aimdo 0.6.0 FAILS: GPUs without BF16 can stop with '
            '"aimdo memory compile error" (Comfy-Org/ComfyUI#16342).',
            "Start ComfyUI with --disable-comfy-compiler.",
        ),
        (
            "wsl-killed",
            ("--disable-dynamic-vram",),
            "ComfyUI 0.33.0 FAILS: memory streaming is on again in WSL, where servers were "
            "ended for lack of memory (Comfy-Org/ComfyUI#12704).",
            "Known to work: 0.32.0. klein-setup starts this ComfyUI with --disable-dynamic-vram; give it that yourself "
            "where you start it.",
        ),
        (
            "sage-python-3.13.12",
            (),
            "sageattention 2.2.0 with Python 3.13.12 FAILS: with --use-sage-attention the "
            "process can end with 0xC0000409 (woct0rdho/SageAttention#85).",
            "Known to work: Python 3.12.10, or ComfyUI without --use-sage-attention.",
        ),
        (
            "illegal-access-5090",
            (),
            'ComfyUI 0.27.0 with torch 2.12.0+cu130, the driver 610.47 FAILS: it stops with '
            '"illegal memory access", or the screen turns black (Comfy-Org/ComfyUI#14714).',
            "Known to work: torch 2.9.0. Start ComfyUI with --disable-async-offload.",
        ),
        (
            "av-16",
            (),
            "ComfyUI 0.33.0 with av 16.1.0 FAILS: it stops at its start with \"cannot import "
            "name 'ColorPrimaries'\" (Comfy-Org/ComfyUI#15784).",
            "Install `av>=17.0.0` into its environment.",
        ),
        (
            "kitchen-outdated",
            (),
            "comfy-kitchen 0.2.30 FAILS: it can stop at its start with \"cannot import name "
            "'TensorWiseINT8Layout'\" (Comfy-Org/ComfyUI#14766).",
            "Known to work: the version in ComfyUI's requirements.txt.",
        ),
        (
            "cu130-old-gpu",
            (),
            'torch 2.13.0+cu130 FAILS: it stops with "no kernel image is available": the '
            "build has no code for GPUs before Turing (Comfy-Org/ComfyUI#16438).",
            "Known to work: the builds cu126 and cu128.",
        ),
    ],
)  # fmt: skip
def test_the_warning_names_what_fails_the_thread_and_what_works(
    row: str, options: tuple[str, ...], message: str, hint: str
) -> None:
    found = known_bad(combination_of(ROWS[row]), TABLE, where=TREE, options=options)
    message = message.replace(" FAILS: ", " is known to fail on machines like this: ")
    (own,) = [each for each in found if each.message == message]
    assert (own.code, own.severity, own.path, own.hint) == ("comfyui-known-bad", "warning", TREE, hint)


@pytest.mark.parametrize("version", [None, "unknown", "0.33.0"])
def test_nothing_is_said_of_the_pinned_release_on_linux_or_of_an_unknown_one(version: str | None) -> None:
    assert ids(replace(combination_of(ROWS["memory-0.34.3"]), version=version)) == set()


# --- what avoids ---------------------------------------------------------------------------------

# The first release that has an option, by the threads that name it; a release that lacks it ends at its start.
SINCE = {
    "--disable-async-offload": "0.3.76",
    "--disable-comfy-compiler": "0.35.0",
    "--disable-dynamic-vram": "0.16.0",
    "--disable-pinned-memory": "0.3.69",
    "--use-quad-cross-attention": "0.3.10",
}


@pytest.mark.parametrize("row", [row for row in TABLE.known_bad if row.option], ids=lambda row: row.id)
def test_an_option_avoids_a_row_wherever_the_release_has_it(row: KnownBad) -> None:
    own = combination_of(row)
    assert row.option is not None
    assert row.option in options_that_avoid(own, TABLE)
    assert row.since is not None
    assert is_at_least(row.since, SINCE[row.option])
    assert options_that_avoid(own, TABLE, ["--cpu"]) == {}
    assert row.option not in options_that_avoid(own, TABLE, [row.option])
    opposite = "--use-sage-attention" if "attention" in row.option else row.option.replace("--disable-", "--enable-")
    assert row.option not in options_that_avoid(own, TABLE, ["--fast", opposite])
    assert row.option in options_that_avoid(own, TABLE, ["--fast"])


def test_a_requirement_keeps_a_version_away_that_fails() -> None:
    own = combination_of(ROWS["av-16"])
    assert requirements_that_avoid(own, TABLE) == {"av>=17.0.0": ROWS["av-16"]}
    assert unmet(["av>=17.0.0"], own.packages, python_version="3.12.3") == ("av>=17.0.0",)
    has_good = replace(own, packages={"av": "18.1.0"})  # it stays required, or the next run would have another list
    assert list(requirements_that_avoid(has_good, TABLE)) == ["av>=17.0.0"]
    for lines in ([], ["tqdm"], ["av==16.1.0"]):  # not required, or exactly what fails: pip could not bring both about
        assert requirements_that_avoid(replace(own, requirements=tuple(lines)), TABLE) == {}
    assert requirements_that_avoid(replace(own, commit=TABLE.pinned.commit), TABLE) == {}


def test_what_is_installed_for_diffusers_is_none_that_fails() -> None:
    lines = [line for line in requirement_lines("diffusers") if line.startswith("diffusers")]
    assert unmet(lines, {"diffusers": "0.36.0"}, python_version="3.12.3") == tuple(lines)


CHOSEN = {
    "streaming-gfx1030": "rocm7.2",
    "rocm-7.14.1": "rocm10.0.0",
    "rocm-7.14.0": "rocm10.0.0",
    "rocm-gfx1102": "rocm10.0.0",
    "cu130-old-gpu": "cu126",
    "cu132-torchaudio": "cu130",
}


@pytest.mark.parametrize("row", [row for row in TABLE.known_bad if row.torch_tags], ids=lambda row: row.id)
def test_the_torch_build_that_is_chosen_is_none_that_fails(row: KnownBad) -> None:
    own = combination_of(row)
    capability = (7, 0) if row.max_sm else (8, 9)  # a V100
    gpu = replace(own.machine.gpus[0], compute_capability=capability)
    if row.vendor == "amd":
        gpu = replace(gpu, driver_version="32.0.31041.1004", adrenalin="26.8.1")
    machine = replace(own.machine, gpus=(gpu,), os_release="11", driver_version="580.95", cuda_driver_version=(13, 0))
    chosen = choose_torch(machine, TorchOptions(), app="comfyui", python_version="3.12").build.local_tag
    assert chosen == CHOSEN[row.id]
    installed = replace(own, machine=machine, packages={"torch": f"2.13.0+{chosen}", "torchaudio": "2.11.0"})
    assert row.id not in ids(installed)


def with_rows(*rows: str, pinned: str = "0.33.0") -> ComfyTable:
    """Return the table with other rows, given as YAML, and another pinned release."""
    kept = TEXT[: TEXT.index("known_bad:")] + "known_bad:\n" + "".join(f"  - {row}\n" for row in rows)
    text = kept + TEXT[TEXT.index("\nsources:\n") :]
    return parse_comfy_table(text.replace('pinned: "0.33.0"', f'pinned: "{pinned}"'), file=FILE)


OOM = "{id: oom, since: '0.33.0', vendor: nvidia, symptom: memory runs out, good: '0.32.0', threads: [a/b#1]}"
OLDER = "{id: older, since: '0.32.0', before: '0.33.0', symptom: it hangs, good: '0.31.0', threads: [a/b#2]}"


def test_a_release_that_fails_here_is_not_installed_where_another_one_works() -> None:
    machine = combination_of(ROWS["memory-0.34.3"]).machine
    release, bad = release_that_works(machine, with_rows(OOM))
    assert (release.version, bad and bad.id) == ("0.32.0", "oom")
    assert release_that_works(machine, with_rows(OOM, OLDER))[0].version == "0.31.0"
    assert release_that_works(replace(machine, gpus=()), with_rows(OOM)) == (TABLE.pinned, None)
    # an option avoids it; without git no other can be verified; none is left
    avoidable = OOM.replace("good: '0.32.0'", "option: --disable-dynamic-vram")
    assert release_that_works(machine, with_rows(avoidable)) == (TABLE.pinned, None)
    assert release_that_works(machine, with_rows(OOM), needs_tree=True)[0] == TABLE.pinned
    everything = OOM.replace("'0.33.0'", "'0.1.0'", 1)
    assert release_that_works(machine, with_rows(everything)) == (TABLE.pinned, None)


def test_the_pinned_release_is_installed_wherever_nothing_speaks_against_it() -> None:
    for row in TABLE.known_bad:
        assert release_that_works(combination_of(row).machine, TABLE) == (TABLE.pinned, None)


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('before: "0.30.2"', 'before: "0.29.0"', "not newer than 'since'"),
        ("id: file-reader", "id: read-file-slice", "twice"),
        ("vendor: nvidia", "vendor: nvidea", "vendor"),
        ("threads: [Comfy-Org/ComfyUI#12943]", "threads: ['#12943']", "a thread like"),
        ('packages: ["av<17"]', 'packages: ["av (17)"]', "a requirement like"),
        ('driver: ">=610,<611"', "driver: '610'", "a version specifier like"),
        ("option: --disable-comfy-compiler", "option: --disable x", "an option of ComfyUI"),
        ('packages: ["comfyui-frontend-package>=1.40.2,<=1.40.5"]\n', "os: linux\n", "names no version"),
        ("good: 'comfyui-frontend-package 1.40.0'\n", "os: linux\n", "names nothing that works"),
    ],
)
def test_a_row_with_a_mistake_is_refused(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(ManifestError) as caught:
        parse_comfy_table(TEXT.replace(old, new, 1), file=FILE)
    assert any(said in each for each in caught.value.issues)
